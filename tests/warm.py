"""Commands of small checkouts, run in processes that have imported torch already: the start of one costs no seconds.

`python tests/warm.py SOCKET` imports what the command needs of other packages, nothing of this one, and then forks for
every request: {"module", "words", "folder", "environment"} with the descriptors 0, 1 and 2.  The answers are the number
of the process and, at its end, the exit code.  A command that is killed by its caller ends when the connection closes,
as do the modules of this suite that it starts as processes: workers, proofs of edits, torchrun and its ranks.
"""

import _imp
import array
import atexit
import gc
import importlib
import io
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Sequence
from importlib.machinery import EXTENSION_SUFFIXES, SOURCE_SUFFIXES, ExtensionFileLoader, FileFinder, SourceFileLoader
from pathlib import Path
from types import CodeType
from typing import Any

PATIENCE = 600.0  # seconds; against hanging alone
MODULES = ("repro.run.engines.worker", "repro.run.engines.ranks", "repro.run.equal", "torch.distributed.run")
# The first optimizer of a process imports torch._dynamo; those of the arena import pytorch_optimizer, and transformers.
BARE = ["torch", "torch._dynamo", "numpy", "pytorch_optimizer"]
PACKAGES = [*BARE, "pydantic", "typer", "rich.console", "rich.progress", "ruamel.yaml", "scipy.stats"]


class Process:
    """A process forked for a request; what this package and torchrun use of `subprocess.Popen`."""

    def __init__(self, address: str, request: dict, descriptors: list[int]):
        self.args = [request["module"], *request["words"]]
        self.returncode: int | None = None
        self.stdin: io.BufferedIOBase | None = None
        self.stdout: io.BufferedIOBase | None = None
        self._connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._connection.connect(address)
        text = json.dumps(request).encode()
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))]
        self._connection.sendmsg([len(text).to_bytes(8, "little")], rights)
        self._connection.sendall(text)
        self.pid = int.from_bytes(self._connection.recv(4), "little")

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *error: object) -> None:
        self.wait()

    def communicate(self, input: None = None, timeout: float | None = None) -> tuple[None, None]:
        """Wait for a process that was started without pipes."""
        assert input is None and self.stdin is None and self.stdout is None
        self.wait(timeout)
        return None, None

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            self._connection.settimeout(timeout)
            try:
                self.returncode = int.from_bytes(self._connection.recv(4), "little", signed=True)
            except TimeoutError:
                raise subprocess.TimeoutExpired("a warm process", timeout or 0.0) from None
            self._connection.close()
        return self.returncode

    def poll(self) -> int | None:
        if self.returncode is None and select.select([self._connection], [], [], 0)[0]:
            return self.wait()
        return self.returncode

    def kill(self) -> None:
        if self.returncode is None:
            try:
                self._connection.shutdown(socket.SHUT_WR)
            except OSError:
                pass


class Server:
    """The process that forks, started at the first command.

    packages: what it imports, in an environment of its own where one is given.
    """

    def __init__(self, packages: Sequence[str] = PACKAGES, environment: dict[str, str] | None = None) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="warm-")
        self.address = f"{self.folder.name}/socket"
        words = [sys.executable, __file__, self.address, *packages]
        self.process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
        assert self.process.stdout and self.process.stdout.readline() == b"ready\n"

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()
        self.folder.cleanup()

    def run(
        self,
        words: Sequence[str],
        folder: Path,
        environment: dict[str, str],
        timeout: float = PATIENCE,
        module: str = "repro.cli",
    ) -> subprocess.CompletedProcess:
        """Run the command `repro`, or another module, with these words, as `subprocess.run` would."""
        with open(os.devnull) as nothing, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            request = {"module": module, "words": words, "folder": str(folder), "environment": environment}
            process = Process(self.address, request, [nothing.fileno(), out.fileno(), err.fileno()])
            code = process.wait(timeout)
            texts = []
            for file in (out, err):
                file.seek(0)
                texts.append(file.read().decode())
        return subprocess.CompletedProcess(words, code, *texts)


CODE: dict[bytes, CodeType] = {}


class Source(SourceFileLoader):
    """Take the code of a file whose text is one of this package's from memory; a checkout in a test is a copy."""

    def source_to_code(self, data, path, *, _optimize=-1):  # noqa: ANN001, ANN201
        if isinstance(data, bytes) and (code := CODE.get(data)) is not None:
            _imp._fix_co_filename(code, path)
            return code
        return super().source_to_code(data, path, _optimize=_optimize)


def _prepare(packages: list[str]) -> None:
    """Import what every command needs of other packages, and compile this package without importing it."""
    for name in packages:
        importlib.import_module(name)
    if {"pydantic", "typer"} <= set(packages):
        import pydantic
        import typer

        app = typer.Typer()

        @app.command()
        def warm_up(number: int = 0) -> None:
            pydantic.TypeAdapter(pydantic.BaseModel)

        app([], standalone_mode=False)
    for path in (Path(__file__).parents[1] / "src").rglob("*.py"):
        text = path.read_bytes()
        CODE[text] = compile(text, str(path), "exec", dont_inherit=True)
    # As the machinery of imports has it, with this loader in the place of its own.
    hook = FileFinder.path_hook((ExtensionFileLoader, EXTENSION_SUFFIXES), (Source, SOURCE_SUFFIXES))
    sys.path_hooks.insert(1, hook)


def _module(args: Sequence[str]) -> list[str]:
    """The module and its words, where a command is one of those that are forked; nothing otherwise."""
    words = [str(word) for word in args] if isinstance(args, list | tuple) else []
    if words[:1] == [sys.executable]:
        del words[: 2 if words[1:2] == ["-u"] else 1]
        if words[:1] == ["-m"] and words[1] in MODULES:
            return words[1:]
    return []


def _forked(
    address: str,
    words: list[str],
    *,
    cwd: Path | None = None,
    env: dict[str, str] | None = None,
    stdin: Any = None,
    stdout: Any = None,
    stderr: Any = None,
    start_new_session: bool = False,
    preexec_fn: Callable[[], None] | None = None,
) -> Process:
    """A module as a process of the same server; `preexec_fn` is `die_with_parent`, which the connection does here."""
    ends: dict[str, int] = {}
    descriptors, passed = [], []
    for number, (name, given) in enumerate((("stdin", stdin), ("stdout", stdout), ("stderr", stderr))):
        if given == subprocess.PIPE:
            reader, writer = os.pipe()
            ends[name], theirs = (writer, reader) if name == "stdin" else (reader, writer)
            passed.append(theirs)
        else:
            theirs = number if given is None else given if isinstance(given, int) else given.fileno()
        descriptors.append(theirs)
    folder, environment = str(cwd or os.getcwd()), dict(os.environ if env is None else env)
    asked = {"module": words[0], "words": words[1:], "folder": folder, "environment": environment}
    process = Process(address, {**asked, "session": start_new_session}, descriptors)
    for descriptor in passed:
        os.close(descriptor)
    for name, descriptor in ends.items():
        setattr(process, name, os.fdopen(descriptor, "wb" if name == "stdin" else "rb"))
    return process


def _execute(request: dict, address: str) -> int:
    """Run a module as `python -m` does, inside a process that was just forked; workers come from the same server."""
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    roots = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:] = [os.getcwd(), *filter(None, roots), *sys.path]
    sys.path_importer_cache.clear()
    sys.argv[:] = [request["module"], *request["words"]]
    sys.stdin, sys.stdout, sys.stderr = (
        os.fdopen(os.dup(number), mode, encoding="utf-8") for number, mode in ((0, "r"), (1, "w"), (2, "w"))
    )

    class Popen(subprocess.Popen):
        def __new__(cls, args, **options):  # noqa: ANN001, ANN003
            if words := _module(args):
                return _forked(address, words, **options)
            return super().__new__(cls)

    subprocess.Popen = Popen
    try:
        runpy.run_module(request["module"], run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def _attend(connection: socket.socket, address: str) -> None:
    """Fork for one request, wait for the end, and answer with the exit code."""
    size, [(_, _, rights)], *_ = connection.recvmsg(8, socket.CMSG_SPACE(12))
    length, text = int.from_bytes(size, "little"), b""
    while len(text) < length:
        text += connection.recv(length - len(text))
    descriptors = list(array.array("i", rights))
    request = json.loads(text)
    child = os.fork()
    if child == 0:
        if request.get("session"):
            os.setsid()
        connection.sendall(os.getpid().to_bytes(4, "little"))
        for number, descriptor in enumerate(descriptors):
            os.dup2(descriptor, number)
        os.closerange(3, 1024)
        os._exit(_execute(request, address))
    for descriptor in (*descriptors, 0, 1, 2):
        os.close(descriptor)
    ended = os.pidfd_open(child)
    if ended not in select.select([connection, ended], [], [])[0]:
        os.kill(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    try:
        connection.sendall(code.to_bytes(4, "little", signed=True))
    except OSError:
        pass


def main(address: str, *packages: str) -> None:
    parent = os.getppid()
    sys.path[:] = sys.path[1:]  # not the folder of this file
    _prepare(list(packages))
    gc.collect()
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    server.bind(address)
    server.listen(64)
    print("ready", flush=True)
    while os.getppid() == parent:
        if not select.select([server], [], [], 1.0)[0]:
            continue
        connection, _ = server.accept()
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            server.close()
            _attend(connection, address)
            os._exit(0)
        connection.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
