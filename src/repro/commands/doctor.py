"""`repro doctor`: what works on this machine, what does not, what to do."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

DISTRIBUTION = "repro-papers"  # ours; the package `repro` of the registries is a stranger's
NEEDED = ("torch", "numpy")
SUITE = ("pydantic", "typer", "ruamel.yaml", "scipy", "dvc", "papermill", "altair", "timm", "datasets")


@dataclass(frozen=True)
class Check:
    """One line of the report: `ok` is None where it is only worth knowing."""

    ok: bool | None
    what: str
    hint: str = ""

    def __str__(self) -> str:
        mark = {True: "ok  ", False: "FAIL", None: "note"}[self.ok]
        return f"{mark}  {self.what}" + (f"; {self.hint}" if self.hint and self.ok is not True else "")


def checks(root: Path) -> Iterator[Check]:
    """Everything that a run needs, and what is worth knowing."""
    yield Check(sys.version_info >= (3, 11), f"Python {sys.version.split()[0]}", "3.11 or newer is needed")
    yield from _packages()
    yield from _machine()
    yield from _data()
    yield from _checkout(root)
    free = shutil.disk_usage(root).free / 2**30
    yield Check(free > 1, f"{free:.0f} GiB of disk are free", "at least 1 GiB is needed")


def _packages() -> Iterator[Check]:
    for name in (*NEEDED, *SUITE):
        try:
            yield Check(True, f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            yield Check(False, f"{name} is not installed", "run `make setup`, or `uv pip install -e '.[suite]'`")
    yield from stranger()


def stranger() -> Iterator[Check]:
    """The package of the registries that has our import name: it may have replaced files of ours."""
    try:
        found = metadata.distribution("repro")
    except metadata.PackageNotFoundError:
        return
    own = Path(__file__).resolve().parents[2]  # where an installation of ours by its former name left its record
    if Path(str(found.locate_file(""))).resolve() == own and (own / "repro.egg-info").is_dir():
        return
    version = found.version
    yield Check(
        False,
        f"the package `repro` {version} of a registry is installed, which is another project of the same import name",
        f"run `pip uninstall repro`, then `pip install -e .` in the checkout (ours is called {DISTRIBUTION})",
    )


def _machine() -> Iterator[Check]:
    from repro.run import measure, provenance

    here = provenance.cpu()
    yield Check(
        True, f"processor {here['model']} ({here['class']}), {measure.default_jobs('cpu')} processes for a CPU run"
    )
    if find_spec("torch"):
        import torch

        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        yield Check(
            bool(names) or None, ", ".join(names) or "no GPU", "the gpu profile needs one; the cpu profile does not"
        )


def _data() -> Iterator[Check]:
    from repro import data

    for name in data.names():
        there = data.info(name)["cached"]
        state = "in the cache" if there else "not fetched"
        yield Check(True if there else None, f"data {name}: {state}", f"`repro data fetch {name}` fetches it")


def _checkout(root: Path) -> Iterator[Check]:
    from repro.errors import ReproError
    from repro.run import provenance
    from repro.spec.load import load_params

    try:
        provenance.git("rev-parse", "HEAD", folder=root)
        yield Check(True, "git: this is a clone")
        if provenance.shallow(root):
            yield Check(None, "the history of this clone is cut", "`git fetch --unshallow` brings the rest")
    except ReproError as error:
        yield Check(
            None, str(error), "without it verdicts are compared with the files that are here, not with a commit"
        )
    try:
        load_params(root)
        yield Check(True, "params.yaml")
    except ReproError as error:
        yield Check(False, str(error))
    if not (root / ".dvc").is_dir():
        yield Check(
            False, "this is no DVC repository", "run `dvc init` in the checkout (`dvc init --no-scm` without git)"
        )
    elif find_spec("dvc"):
        yield dvc_status(root)


def dvc_status(root: Path) -> Check:
    """What `dvc status` says: nothing to do, stages out of date, or its own error."""
    command = [sys.executable, "-m", "dvc", "status", "--json"]  # with -q it would say no error either
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, errors="replace")
    if done.returncode == 0 and done.stdout.strip() == "{}":
        return Check(True, "dvc status: everything is up to date")
    if done.returncode == 0:
        return Check(None, "dvc status: some stages are out of date", "`dvc status` names them, `dvc repro` runs them")
    lines = done.stderr.strip().splitlines() or [f"ended with code {done.returncode}"]
    hint = "in a folder without git, run `dvc config core.no_scm true`" if not (root / ".git").exists() else ""
    return Check(None, f"dvc status failed: {lines[0]}", hint or "`dvc status -v` says more")
