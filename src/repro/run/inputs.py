"""What a trial reads beside its configuration: an audit hook refuses files and modules that its key does not cover.

A row is a function of its key.  Code of this suite is in the key through its source digest; data sets are, because the
modules that load them check them by sha256 (those of `repro.data.original`, which `paper` profiles alone read, have no
checksum and are held to their numbers of items); installed packages are, by torch's version.  A file that an experiment
opens by itself, or a module of this suite that it imports by a name computed at run time, is in none of them, and would
change rows under equal keys.  The hook sees what Python opens and imports, and refuses connections and programs that an
experiment asks for.  It cannot see what a library reads in C++, nor variables of the environment and the clock: it
guards against mistakes, not against an experiment that means to deceive.
"""

import builtins
import getpass
import importlib
import os
import site
import sys
import sysconfig
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from repro.errors import ReproError
from repro.run import provenance

SYSTEM = (
    "/proc",
    "/sys",
    "/dev",
    "/etc",
    "/usr",
    "/lib",
    "/lib64",
    "/opt",
    "/bin",
    "/nix",
    "/run",
    "/var/cache",
    "/snap",
)


STARTS = {"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn"}
EVENTS = {"open", "import", "os.mkdir", "socket.connect", "sqlite3.connect", *STARTS}


class UncoveredInput(ReproError):
    """A trial read something that its key does not cover."""

    exit_code = 1


def _within(path: str, folders: tuple[str, ...]) -> bool:
    return any(path == folder or path.startswith(folder.rstrip("/") + "/") for folder in folders)


def _callers() -> Iterator[str]:
    """The modules of the functions that are being called, the innermost first, without this one."""
    frame = sys._getframe()
    while frame is not None:
        if (name := frame.f_globals.get("__name__", "")) != __name__:
            yield name
        frame = frame.f_back


def _installed() -> tuple[str, ...]:
    """Folders of the interpreter and of installed packages."""
    folders = [*sysconfig.get_paths().values(), sys.prefix, sys.base_prefix, sys.exec_prefix, *site.getsitepackages()]
    folders += [site.getusersitepackages()]
    return tuple({os.path.realpath(folder) for folder in folders})


class _Guard:
    """What one process may read while a trial runs; off between trials."""

    def __init__(self) -> None:
        self.on = threading.local()
        self.modules: frozenset[str] = frozenset()
        self.folders: tuple[str, ...] = ()
        self.files: set[str] = set()
        self.root = ""
        self.offence: str | None = None
        self.installed = False

    def hook(self, event: str, arguments: tuple) -> None:
        if event not in EVENTS or not getattr(self.on, "now", False):
            return
        if event == "socket.connect":
            self.connection(*arguments)
        elif event in STARTS:
            self.process(arguments[0])
        elif event == "sqlite3.connect":
            self.file(arguments[0], "r", None) if arguments[0] != ":memory:" else None
        elif event == "import":
            self.module(arguments[0])
        elif event == "os.mkdir":  # what a trial makes itself it may read
            path = os.path.realpath(os.fsdecode(arguments[0]))
            self.folders += () if os.path.exists(path) else (path,)
        else:
            self.file(*arguments[:3])

    def connection(self, socket: Any, address: object) -> None:
        if isinstance(address, tuple) and not any(name.startswith("repro.data.") for name in _callers()):
            self.refuse(
                f"it connects to {address[0]}, and its key does not cover what comes from there; read data through "
                "repro.data (checked by sha256)"
            )

    def process(self, program: object) -> None:
        """Libraries may start a compiler; what this suite starts in a trial reads what no hook sees."""
        asker = next((name for name in _callers() if name.partition(".")[0] not in sys.stdlib_module_names), "")
        if asker.startswith("repro.") and not asker.startswith("repro.data."):
            self.refuse(f"it starts the program {program!r}, and its key does not cover what that reads; compute here")

    def module(self, name: str) -> None:
        if name.startswith("repro.") and name not in self.modules and provenance.module_file(name) is not None:
            self.refuse(
                f"it imports {name}, which the source digest of this experiment does not cover; import it by name"
            )

    def file(self, name: object, mode: object, flags: object) -> None:
        if not isinstance(name, str | bytes | os.PathLike):  # a descriptor that is open already
            return
        path = os.path.realpath(os.fsdecode(name))
        if mode is None and (os.path.isdir(path) or not os.path.isabs(os.fsdecode(name)) and not os.path.lexists(path)):
            return  # by os.open: a folder, or a name within one that is open already, as when a folder is deleted
        if isinstance(mode, str):
            reads, makes = "r" in mode or "+" in mode, "w" in mode or "x" in mode
        else:
            number = flags if isinstance(flags, int) else os.O_RDONLY
            reads = number & os.O_ACCMODE != os.O_WRONLY and not number & os.O_CREAT
            makes = bool(number & (os.O_TRUNC | os.O_EXCL))
        if makes:  # what a trial wrote itself it may read again
            self.files.add(path)
        elif reads and path not in self.files and not self.allowed(path):
            self.refuse(
                f"it opens {path}, which its key does not cover; read data through repro.data (checked by sha256), "
                "and write settings into paper.yaml"
            )

    def allowed(self, path: str) -> bool:
        if path.startswith(self.root) and os.path.dirname(path).endswith(".egg-info"):
            return True  # what an editable install says of the distribution; libraries look for entry points there
        if path.endswith((".py", ".pyc")) and _within(path, (os.path.dirname(os.path.dirname(__file__)),)):
            return True  # a module of this suite: `module` looks at what is imported
        return _within(path, self.folders) or _within(path, SYSTEM) and not _within(path, (self.root,))

    def refuse(self, what: str) -> None:
        self.offence = self.offence or what
        raise UncoveredInput(what)


_guard = _Guard()


def _install() -> None:
    """Once a process: an audit hook cannot be taken away again."""
    if not _guard.installed:
        _guard.installed = True
        sys.addaudithook(_guard.hook)


@contextmanager
def _imports_watched() -> Iterator[None]:
    """Look at imports of modules that are loaded already too, of which no audit event tells."""
    plain, computed = builtins.__import__, importlib.import_module

    def statement(
        name: str, globals: Mapping[str, Any] | None = None, locals: Any = None, fromlist: Any = (), level: int = 0
    ) -> Any:
        if not level and name.startswith("repro") and getattr(_guard.on, "now", False):
            for one in (name, *(f"{name}.{part}" for part in fromlist or ())):
                _guard.module(one)
        return plain(name, globals, locals, fromlist, level)

    def function(name: str, package: str | None = None) -> Any:
        if getattr(_guard.on, "now", False):
            _guard.module(name)
        return computed(name, package)

    builtins.__import__, importlib.import_module = statement, function
    try:
        yield
    finally:
        builtins.__import__, importlib.import_module = plain, computed


def covered(unit: dict, function: str | None) -> set[str]:
    """The modules of this suite that the source digest of a unit covers, and those that change no number.

    function: the one that is called, or None while its module is imported, with all that stands at its top.
    """
    arms = [trial["arm"] for trial in unit["trials"]]
    if function is None:
        packages = [m for m in provenance._parents(unit["module"]) if provenance.module_file(m) is not None]
        named = set(provenance.closure(*packages))
    else:
        named = set(provenance.function_closure(unit["module"], function, arms))
    return {parent for name in named | provenance.NEUTRAL for parent in provenance._parents(name)}


@contextmanager
def watched(unit: dict, function: str | None) -> Iterator[None]:
    """Refuse inside this block, to the trial and to who called it, files and modules that its key does not cover."""
    from repro.data.sources import cache_root

    _install()
    home = Path.home()
    caches = [
        cache_root(),
        home / ".cache",
        *(os.environ.get(name) for name in ("HF_HOME", "TORCH_HOME", "XDG_CACHE_HOME")),
    ]
    scratch = [unit["scratch"]] if unit.get("scratch") else []
    kept = [provenance.root() / ".repro" / "data", home / ".triton", home / ".nv"]
    kept += [f"{tempfile.gettempdir()}/torchinductor_{getpass.getuser()}"]
    modules = covered(unit, function)
    sources = {os.path.realpath(path) for name in modules if (path := provenance.module_file(name)) is not None}
    bytecode = {os.path.dirname(path) + "/__pycache__" for path in sources}
    folders = [str(folder) for folder in (*caches, *scratch, *kept) if folder]
    _guard.modules, _guard.offence = frozenset(modules), None
    _guard.files = set(sources)
    _guard.folders = (*_installed(), *bytecode, *map(os.path.realpath, folders))
    _guard.root = os.path.realpath(provenance.root())
    with _imports_watched():
        _guard.on.now = True
        try:
            yield
        finally:
            _guard.on.now = False
    if _guard.offence:  # the experiment caught the refusal
        raise UncoveredInput(_guard.offence)
