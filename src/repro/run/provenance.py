"""What a number came from: source digests, versions, device, commit.

The digest of an experiment covers the modules of this suite that it imports, transitively, read as syntax trees
without comments and docstrings: a reworded comment leaves every result fresh, an edited report too.
"""

import ast
import functools
import hashlib
import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path

import repro
from repro.errors import ReproError

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


def module_file(module: str) -> Path | None:
    """The source file of a module of this suite, found without importing it."""
    parts = module.split(".")
    if parts[0] != "repro":
        return None
    for base in map(Path, repro.__path__):
        path = base.joinpath(*parts[1:])
        for candidate in (path.with_suffix(".py"), path / "__init__.py"):
            if len(parts) > 1 and candidate.is_file():
                return candidate
    return None


@functools.cache
def _imports(path: Path, stamp: tuple[int, int], module: str) -> set[str]:
    """What the file of a module imports, with all parent packages."""
    found, is_package = set(), path.name == "__init__.py"
    for node in ast.walk(_parse(path, stamp)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".")[: None if is_package and node.level == 1 else -node.level + is_package]
                base = ".".join([*parents, *([base] if base else [])])
            found |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    return set().union(*map(_parents, found))


def _parents(module: str) -> set[str]:
    parts = module.split(".")
    return {".".join(parts[:i]) for i in range(1, len(parts) + 1)}


def _stamp(path: Path) -> tuple[int, int]:
    """What changes with a file."""
    stat = path.stat()
    return stat.st_mtime_ns, stat.st_size


@functools.cache
def _parse(path: Path, stamp: tuple[int, int]) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def parse(path: Path) -> ast.Module:
    """The syntax tree of a file, read again only when the file changes."""
    return _parse(path, _stamp(path))


def closure(*modules: str) -> dict[str, Path]:
    """Every module of this suite that `modules` import, themselves included, that may change a number."""
    files, todo = {}, list(modules)
    for module in modules:
        if module_file(module) is None:
            raise ReproError(f"{module}: no such module in this suite")
    while todo:
        module = todo.pop()
        path = module_file(module)
        if path is None or module in files or module in NEUTRAL:
            continue
        files[module] = path
        todo += _imports(path, _stamp(path), module)
    return dict(sorted(files.items()))


def _shape(node: object) -> object:
    """A syntax tree as nested lists, equal on every supported Python version."""
    if isinstance(node, ast.AST):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            first = body[0]
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                node = type(node)(**{**dict(ast.iter_fields(node)), "body": body[1:]})
        fields = [(k, _shape(v)) for k, v in ast.iter_fields(node) if k not in _SKIPPED_FIELDS and v not in (None, [])]
        return [type(node).__name__, *fields]
    return [_shape(item) for item in node] if isinstance(node, list) else repr(node)


@functools.cache
def _file_digest(path: Path, stamp: tuple[int, int]) -> str:
    return hashlib.sha256(repr(_shape(_parse(path, stamp))).encode()).hexdigest()


def source_digest(*modules: str) -> str:
    """Digest of everything in this suite that `modules` run."""
    total = hashlib.sha256()
    for name, path in closure(*modules).items():
        total.update(f"{name} {_file_digest(path, _stamp(path))}\n".encode())
    return "sha256:" + total.hexdigest()


@functools.cache
def _arm_modules(path: Path, stamp: tuple[int, int]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
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
    return found


def arm_modules(module: str, arm: str) -> set[str]:
    """Modules that only this arm imports: those that a dictionary of arms names as "module:attribute".

    An arm of the arena, "slot:slug.Name", names its own: `repro.papers.<slug>`.
    """
    path = module_file(module)
    if path is None:
        return set()
    own = re.fullmatch(r"\w+:(\w+)\.\w+", arm)
    named = {f"repro.papers.{own[1]}"} if own and own[1] != "control" else set()
    return named | _arm_modules(path, _stamp(path)).get(arm, set())


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


def device_class(device: str) -> str:
    """Rows are bitwise comparable within one such class (and one thread count)."""
    return cpu()["class"] if device == "cpu" else "cuda-" + device_model(device)


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


def commit() -> dict[str, object]:
    """The checkout's commit, and whether its source differs from it."""

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(root()), *words], capture_output=True, text=True, timeout=20)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    head = git("rev-parse", "HEAD")
    changed = (
        git("status", "--porcelain", "--", "src", ":(glob)papers/*/*.py", ":(glob)papers/*/paper.yaml")
        if head
        else None
    )
    return {"commit": head, "dirty": bool(changed)}
