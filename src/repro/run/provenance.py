"""What a number came from: source digests, versions, device, commit.

The digest of an experiment covers what its function uses of its own module (other functions, classes, constants and
imports, transitively) and the whole of every other module of this suite that these import.  All is read as syntax trees
without comments and docstrings: a reworded comment leaves every result fresh, and so does an edit of another experiment
in the same file, or of a report.
"""

import ast
import functools
import gc
import hashlib
import json
import os
import platform
import re
import subprocess
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import repro
from repro.errors import ReproError, one_line

# Modules that carry or check numbers and cannot change one (data are checked by sha256 after fetching).
NEUTRAL = {
    "repro",
    "repro.papers",
    "repro.experiments",
    "repro.errors",
    "repro.live",
    "repro.store",
    "repro.run.provenance",
    "repro.run.execute",
    "repro.run.measure",
    "repro.run.engines",
    "repro.data",
    "repro.data.archives",
    "repro.data.hub",
    "repro.data.sources",
    "repro.testing",
}
_SKIPPED_FIELDS = {"ctx", "kind", "type_comment", "type_ignores", "type_params"}  # absent on some Python versions


def root() -> Path:
    """The checkout (the folder of `params.yaml` and `papers/`); where installed without one, the current folder."""
    for base in map(Path, repro.__path__):
        if (base / "params.yaml").is_file() and (base / "papers").is_dir():
            return base
    return Path.cwd()


_steady: dict[object, object] | None = None  # what was looked up while `steady` is open


@contextmanager
def steady(memory: Path | None = None) -> Iterator[None]:
    """Take it that no source is written while this is open, so that each module is looked for and read once.

    memory: a file in which what was found out about each file is kept by the digest of its content.  It is for what is
    generated alone: what runs, judges or verifies reads the source anew.
    """
    global _steady
    before, collecting = _steady, gc.isenabled()
    _steady = {"files": _remembered(memory)} if before is None else before
    gc.disable()  # syntax trees are many and all stay: to search them for garbage takes a third of the time
    try:
        yield
        if before is None and memory is not None and _steady.get("changed"):
            _remember(memory, _steady["files"])
    finally:
        _steady = before
        if collecting:
            gc.enable()


def _own_digest() -> str:
    return hashlib.sha256(Path(__file__).read_bytes()).hexdigest()


def _seal(files: object) -> str:
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def _remembered(memory: Path | None) -> dict[str, dict]:
    """What an earlier call found out by the same rules; nothing where the file is damaged."""
    try:
        kept = json.loads(memory.read_bytes()) if memory else {}
        files = kept["files"] if (kept["by"], kept["seal"]) == (_own_digest(), _seal(kept["files"])) else {}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}
    return files if isinstance(files, dict) and all(isinstance(one, dict) for one in files.values()) else {}


def _remember(memory: Path, files: dict[str, dict]) -> None:
    from repro.store import write_file

    try:
        write_file(memory, json.dumps({"by": _own_digest(), "seal": _seal(files), "files": files}))
    except ReproError:
        pass  # a checkout that may not be written is only slower


def _by_content(function: Callable) -> Callable:
    """Let a function of (path, stamp, texts...) that returns JSON ask the memory of `steady` first."""

    @functools.wraps(function)
    def call(path: Path, stamp: tuple[int, int], *rest: str) -> Any:
        if _steady is None:
            return function(path, stamp, *rest)
        if ("content", path, stamp) not in _steady:
            _steady["content", path, stamp] = hashlib.sha256(path.read_bytes()).hexdigest()
        known = _steady["files"].setdefault(_steady["content", path, stamp], {})
        name = " ".join([function.__name__, *rest])
        if name not in known:
            known[name], _steady["changed"] = function(path, stamp, *rest), True
        return known[name]

    return call


def module_file(module: str) -> Path | None:
    """The source file of a module of this suite, found without importing it."""
    if not module.startswith("repro."):
        return None
    if _steady is None:
        return _module_file(module)
    if module not in _steady:
        _steady[module] = _module_file(module)
    return _steady[module]


def _module_file(module: str) -> Path | None:
    parts = module.split(".")
    for base in map(Path, repro.__path__):
        path = base.joinpath(*parts[1:])
        for candidate in (path.with_suffix(".py"), path / "__init__.py"):
            if candidate.is_file():
                return candidate
    return None


@_by_content
@functools.cache
def _imports(path: Path, stamp: tuple[int, int], module: str) -> list[str]:
    """What the file of a module imports, with all parent packages."""
    return sorted(_imported([_parse(path, stamp)], module, path.name == "__init__.py"))


def _imported(trees: Iterable[ast.AST], module: str, is_package: bool = False) -> set[str]:
    """Every name that import statements in these syntax trees of a module may load, with all parent packages."""
    names: set[str] = set()
    for node in _nested(trees):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".")[: None if is_package and node.level == 1 else -node.level + is_package]
                base = ".".join([*parents, *([base] if base else [])])
            names |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    return set().union(*map(_parents, names))


def _nested(trees: Iterable[ast.AST]) -> Iterator[ast.AST]:
    """These statements and all that stand in them, without the expressions, in which nothing is imported."""
    todo = list(trees)
    while todo:
        node = todo.pop()
        yield node
        for name in ("body", "orelse", "handlers", "finalbody", "cases"):
            inner = getattr(node, name, None)
            if isinstance(inner, list):  # the body of a lambda is an expression
                todo += inner


def _parents(module: str) -> set[str]:
    parts = module.split(".")
    return {".".join(parts[:i]) for i in range(1, len(parts) + 1)}


def stamp_of(path: Path) -> tuple[int, int]:
    """What changes with a file."""
    stat = path.stat()
    return stat.st_mtime_ns, stat.st_size


@functools.cache
def _parse(path: Path, stamp: tuple[int, int]) -> ast.Module:
    return ast.parse(path.read_bytes(), filename=str(path))


def parse(path: Path) -> ast.Module:
    """The syntax tree of a file, read again only when the file changes."""
    return _parse(path, stamp_of(path))


def imports(path: Path, module: str) -> set[str]:
    """What the file of a module imports, with all parent packages."""
    return _imports(path, stamp_of(path), module)


def closure(*modules: str) -> dict[str, Path]:
    """Every module of this suite that `modules` import, themselves included, that may change a number."""
    files: dict[str, Path] = {}
    for module in modules:
        if module_file(module) is None:
            raise ReproError(f"{module}: no such module in this suite")
        files |= _reached(module)
    return dict(sorted(files.items()))


def _reached(module: str) -> dict[str, Path]:
    """The modules that one module imports, directly or through others, itself included."""
    if _steady is not None and ("reached", module) in _steady:
        return _steady["reached", module]
    files, todo = {}, [module]
    while todo:
        name = todo.pop()
        path = module_file(name)
        if path is None or name in files or name in NEUTRAL:
            continue
        files[name] = path
        todo += _imports(path, stamp_of(path), name)
    if _steady is not None:
        _steady["reached", module] = files
    return files


def _shape(node: object) -> str:
    """A syntax tree as the text of nested lists, equal on every supported Python version; docstrings are left out."""
    kind = type(node)
    if kind is list:
        return f"[{', '.join([_shape(one) for one in node])}]"
    if kind is str or not isinstance(node, ast.AST):
        return repr(repr(node))
    parts = [repr(kind.__name__)]
    for name in kind._fields:
        value = getattr(node, name, None)
        if name == "body" and kind in _DOCUMENTED and value and _is_text(value[0]):
            value = value[1:]
        if value is not None and value != [] and name not in _SKIPPED_FIELDS:
            parts.append(f"({name!r}, {_shape(value)})")
    return f"[{', '.join(parts)}]"


_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef)


def _is_text(statement: ast.stmt) -> bool:
    constant = statement.value if isinstance(statement, ast.Expr) else None
    return isinstance(constant, ast.Constant) and isinstance(constant.value, str)


@functools.cache
def _shapes(path: Path, stamp: tuple[int, int]) -> list[str]:
    """The shape of each statement of a file's top level."""
    return [_shape(statement) for statement in _parse(path, stamp).body]


@_by_content
@functools.cache
def _file_digest(path: Path, stamp: tuple[int, int]) -> str:
    tree, shapes = _parse(path, stamp), _shapes(path, stamp)
    shapes = shapes[1:] if tree.body and _is_text(tree.body[0]) else shapes
    body = f", ('body', [{', '.join(shapes)}])" if shapes else ""
    return hashlib.sha256(f"['Module'{body}]".encode()).hexdigest()


def file_digest(path: Path) -> str:
    """Digest of what a source file says, without its comments and docstrings."""
    return _file_digest(path, stamp_of(path))


def source_digest(*modules: str) -> str:
    """Digest of everything in this suite that `modules` run."""
    total = hashlib.sha256()
    for name, path in closure(*modules).items():
        total.update(f"{name} {_module_digest(name, path)}\n".encode())
    return "sha256:" + total.hexdigest()


# --- edits that change no number --------------------------------------------------------------------------------------

EQUAL = "equal_edits.json"  # at the root; `repro refresh --module` writes it
TIMED = "_group"  # how the functions end that time their arms side by side


def equal_edits(folder: Path | None = None) -> list[dict[str, Any]]:
    """The edits that were proved to change no number, from `equal_edits.json`: {module, digest, equal_to, ...}."""
    path = (folder or root()) / EQUAL
    if not path.is_file():
        return []
    stamp = stamp_of(path)
    return _equal_edits(path, stamp)


@functools.cache
def _equal_edits(path: Path, stamp: tuple[int, int]) -> list[dict[str, Any]]:
    from repro.files.strict import JsonFile

    file = JsonFile(path, f"write it with `repro refresh --module FILE`, or run `git checkout {EQUAL}`", EQUAL)
    edits = file.data.get("edits") if isinstance(file.data, dict) else None
    if not isinstance(edits, list):
        file.fail((), "has no list 'edits'")
    for i, edit in enumerate(edits):
        texts = ("module", "digest", "equal_to", "commit", "date", "proof")
        if not isinstance(edit, dict) or not all(isinstance(edit.get(name), str) for name in texts):
            file.fail(("edits", i), f"wants the texts {', '.join(texts)}")
        kept = edit.get("timings")
        if kept is not None and not (
            isinstance(kept, dict) and {str} == {type(kept.get(k)) for k in ("equal_to", "why")}
        ):
            file.fail(("edits", i, "timings"), "wants null, or the texts equal_to and why")
    return edits


def standing_for(module: str, digest: str, timed: bool = False) -> str:
    """The digest under which rows of a module are kept: that of the text to which later edits were proved equal.

    timed: of timings, which an edit may change though it changes no number: only edits that say why they do not.
    """
    for edit in equal_edits():
        if (edit["module"], edit["digest"]) == (module, digest):
            return (edit.get("timings") or {}).get("equal_to", digest) if timed else edit["equal_to"]
    return digest


def _module_digest(module: str, path: Path, timed: bool = False) -> str:
    return standing_for(module, file_digest(path), timed)


# --- one function of a module ----------------------------------------------------------------------------------------

_OPAQUE = {"globals", "locals", "vars", "eval", "exec", "__import__", "modules"}  # with these any name may be used


def _binds(statement: ast.stmt) -> set[str]:
    """The names that a statement of a module's top level binds or changes."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {statement.name}
    if isinstance(statement, ast.Import | ast.ImportFrom):
        return {(alias.asname or alias.name).split(".")[0] for alias in statement.names}
    if isinstance(statement, ast.Assign | ast.AnnAssign | ast.AugAssign):
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        return {node.id for target in targets for node in ast.walk(target) if isinstance(node, ast.Name)}
    return set()


def _uses(statement: ast.stmt) -> set[str]:
    """The names that a statement reads; a text that is a name counts, as annotations and tables of arms hold such."""
    names: set[str] = set()
    for node in ast.walk(statement):
        if isinstance(node, ast.Name):
            names.add(node.id)
        elif isinstance(node, ast.Attribute) and node.attr in _OPAQUE:
            names.add(node.attr)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.isidentifier():
            names.add(node.value)
    return names


@functools.cache
def _statements(path: Path, stamp: tuple[int, int]) -> list[tuple[ast.stmt, set[str], set[str], str]]:
    """The statements of a file's top level: what each binds and reads (imports: nothing), its shape."""
    found = []
    for statement, shape in zip(_parse(path, stamp).body, _shapes(path, stamp), strict=True):
        uses = set() if isinstance(statement, ast.Import | ast.ImportFrom) else _uses(statement)
        found.append((statement, _binds(statement), uses, shape))
    return found


@_by_content
@functools.cache
def _slice(path: Path, stamp: tuple[int, int], module: str, function: str) -> list | None:
    """Digest of the statements that one function of a module uses, and what they import.

    None where the module has no such function, or where no reading can tell what it uses.
    """
    body = _statements(path, stamp)
    defined = set().union(*(binds for _, binds, _, _ in body))
    if function not in defined or "*" in defined:
        return None
    # What binds no name is run for its effects, and so belongs to every function of the module.
    kept = {i for i, (_, binds, _, _) in enumerate(body) if not binds}
    names, todo = {function}, [function, *(name for i in kept for name in body[i][2])]
    while todo:
        name = todo.pop()
        for i in (i for i, (_, binds, _, _) in enumerate(body) if name in binds and i not in kept):
            kept.add(i)
            todo += body[i][2]
        names.add(name)
    if names & _OPAQUE:
        return None
    statements, shapes = [], []
    for i in sorted(kept):
        statement, _, _, shape = body[i]
        if isinstance(statement, ast.Import | ast.ImportFrom):
            used = [a for a in statement.names if (a.asname or a.name).split(".")[0] in names]
            statement = type(statement)(**{**dict(ast.iter_fields(statement)), "names": used})
            shape = _shape(statement)
        if not (isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)):
            statements.append(statement)
            shapes.append(shape)
    digest = hashlib.sha256(f"[{', '.join(shapes)}]".encode()).hexdigest()
    return [digest, sorted(_imported(statements, module, path.name == "__init__.py"))]


def function_closure(module: str, function: str, arms: Iterable[str] = ()) -> dict[str, Path]:
    """Every module that one function with these arms runs and that may change a number, its own included."""
    return _traced(module, function, arms)[1]


def function_digest(module: str, function: str, arms: Iterable[str] = ()) -> str:
    """Digest of everything in this suite that one function of a module runs with these arms."""
    part, files = _traced(module, function, arms)
    timed = function.endswith(TIMED)
    lines = [f"{module}:{function} {part}"] if part else []
    lines += [
        f"{name} {_module_digest(name, path, timed)}" for name, path in files.items() if name != module or not part
    ]
    return "sha256:" + hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _traced(module: str, function: str, arms: Iterable[str]) -> tuple[str | None, dict[str, Path]]:
    """Digest of the part of a module that a function uses (None: all of it), and every module that it runs."""
    if _steady is None:
        return _trace(module, function, arms)
    key = module, function, tuple(arms)
    if key not in _steady:
        _steady[key] = _trace(module, function, arms)
    return _steady[key]


def _trace(module: str, function: str, arms: Iterable[str]) -> tuple[str | None, dict[str, Path]]:
    path = module_file(module)
    if path is None:
        raise ReproError(f"{module}: no such module in this suite")
    named = set().union(*(arm_modules(module, arm) for arm in arms))
    found = _slice(path, stamp_of(path), module, function)
    imported = {module} if found is None else {m for m in found[1] if module_file(m) is not None}
    files = closure(*sorted(imported | named))
    if module in files:  # as a whole, because something imports it back, or nothing can be told apart
        return None, files
    return found[0] if found else None, dict(sorted({**files, module: path}.items()))


# --- what arms name ---------------------------------------------------------------------------------------------------


@_by_content
@functools.cache
def _arm_modules(path: Path, stamp: tuple[int, int]) -> dict[str, list[str]]:
    found: dict[str, set[str]] = {}
    if not re.search(rb"repro(\.\w+)+:\w", path.read_bytes()):
        return {}
    for node in ast.walk(_parse(path, stamp)):
        if isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if isinstance(key, ast.Constant) and isinstance(key.value, str):
                    names = {
                        c.value.split(":")[0]
                        for c in ast.walk(value)
                        if isinstance(c, ast.Constant)
                        and isinstance(c.value, str)
                        and re.fullmatch(r"repro(\.\w+)+:\w+", c.value)
                    }
                    found.setdefault(key.value, set()).update(names)
    return {arm: sorted(names) for arm, names in found.items()}


def arm_modules(module: str, arm: str) -> set[str]:
    """Modules that only this arm imports: those that a dictionary of arms names as "module:attribute".

    An arm of the arena, "slot:slug.Name", names its own, `repro.papers.<slug>`, where there is such a paper.
    """
    path = module_file(module)
    if path is None:
        return set()
    own = re.fullmatch(r"\w+:(\w+)\.\w+", arm)
    named = {f"repro.papers.{own[1]}"} if own and module_file(f"repro.papers.{own[1]}") else set()
    return named.union(_arm_modules(path, stamp_of(path)).get(arm, ()))


def experiment_modules(paper: str, settings: dict) -> list[str]:
    """The module of an experiment and those that its arms name."""
    module = settings.get("module") or f"repro.papers.{paper}.experiment"
    named = set().union(*(arm_modules(module, arm) for arm in settings.get("arms", ())))
    return [module, *sorted(named)]


@functools.cache
def cpu() -> dict[str, str]:
    """Model and instruction-set class of this machine's processor."""
    model, vendor, flags = platform.processor() or platform.machine(), "", ""
    try:
        text = Path("/proc/cpuinfo").read_text()
        fields = dict(re.findall(r"^(model name|vendor_id|flags)\s*: (.*)$", text, re.M))
        model, vendor, flags = (fields.get(k, "") for k in ("model name", "vendor_id", "flags"))
    except OSError:
        pass
    isa = next((name for name in ("avx512f", "avx2") if name in flags.split()), "base")
    return {
        "model": model or platform.machine(),
        "class": "-".join(filter(None, ["cpu", platform.machine(), vendor, isa])),
    }


NATIVE = {
    "avx512f": "AVX512",
    "avx2": "AVX2",
    "base": "DEFAULT",
}  # of each class, the kernels that torch takes by itself


def vector_capability() -> str:
    """The vector instructions for which torch chooses its CPU kernels here (ATEN_CPU_CAPABILITY may lower them)."""
    import torch

    return torch.backends.cpu.get_cpu_capability()


# Variables by which the libraries under torch are told to take other kernels than the machine's own: they change bits.
_KERNELS = {
    "cpu": ("MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS", "MKL_DEBUG_CPU_TYPE", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"),
    "cuda": ("NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE"),
}


def device_class(device: str) -> str:
    """Rows are bitwise comparable within one such class (and one thread count)."""
    kind = device.partition(":")[0]
    told = "".join(f"-with-{name}-{os.environ[name]}".lower() for name in _KERNELS[kind] if os.environ.get(name))
    told = re.sub(r"[^\w.-]+", "-", told)
    if kind != "cpu":
        return "cuda-" + device_model(device) + told
    name, vector = cpu()["class"], vector_capability()
    native = NATIVE.get(name.rpartition("-")[2]) == vector
    return (name if native else f"{name}-with-{vector.lower().replace(' ', '-')}") + told


def device_model(device: str) -> str:
    """The processor's or the GPU's marketing name."""
    if device == "cpu":
        return cpu()["model"]
    import torch

    return torch.cuda.get_device_name(device)


def place(device: str) -> dict[str, str]:
    """Class and model of a device of this machine."""
    return {"class": device_class(device), "model": device_model(device)}


@functools.cache
def versions() -> dict[str, str]:
    """Versions of what computes the numbers."""
    found = {"python": platform.python_version(), "repro": repro.__version__}
    for name in ("torch", "numpy", "timm"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            pass
    return found


def git(*words: str, folder: Path | None = None) -> str:
    """What git prints; a ReproError in git's own words where it refuses (no repository, another owner, no git)."""
    folder = folder or root()
    try:
        done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, timeout=60)
    except FileNotFoundError:
        raise ReproError("git is not installed here; install it, or work without the history") from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ReproError(f"git {words[0]} in {folder}: {error}") from None
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or [f"ended with code {done.returncode}"]
        hint = next((line.strip() for line in lines if line.strip().startswith("git config")), None)
        raise ReproError(f"git {words[0]} in {folder}: {lines[0]}" + (f"; git advises `{hint}`" if hint else ""))
    return done.stdout.decode(errors="replace")


def shallow(folder: Path | None = None) -> bool:
    """Whether the history of this clone is cut (`git clone --depth`), so that its first commit is not the first."""
    return git("rev-parse", "--is-shallow-repository", folder=folder).strip() == "true"


def commit() -> dict[str, object]:
    """The checkout's commit, and whether its source differs from it; where git cannot tell, what git said."""
    try:
        head = git("rev-parse", "HEAD").strip()
        changed = git("status", "--porcelain", "--", "src", ":(glob)papers/*/*.py", ":(glob)papers/*/paper.yaml")
    except ReproError as error:
        return {"commit": None, "git": one_line(error).removeprefix("error: ")}  # a folder may have any name
    return {"commit": head, "dirty": bool(changed.strip())}


# --- another checkout -------------------------------------------------------------------------------------------------


def checkout_of(folder: Path) -> Path | None:
    """The checkout in which a folder lies: the nearest parent with `params.yaml`, `papers/` and `src/repro`."""
    for base in (folder, *folder.parents):
        if (base / "params.yaml").is_file() and (base / "papers").is_dir() and (base / "src" / "repro").is_dir():
            return base
    return None


def another_checkout(folder: Path | None = None) -> Path | None:
    """The checkout in which `folder` (the current one) lies where the source that runs is not its own, else None."""
    try:
        here = checkout_of((folder or Path.cwd()).resolve())
    except OSError:  # the current folder is gone
        return None
    return here if here is not None and here != root().resolve() else None
