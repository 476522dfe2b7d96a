"""`repro doctor`: what works on this machine, what does not, what to do."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path


def report(root: Path, say: Callable[[str], None]) -> bool:
    """Print one line per check; False when something that a run needs is missing."""
    from repro import data
    from repro.run import measure as run
    from repro.run import provenance
    from repro.spec import load as paper

    bad = 0

    def line(ok: bool | None, what: str, hint: str = "") -> None:
        nonlocal bad
        bad += ok is False
        mark = {True: "ok  ", False: "FAIL", None: "note"}[ok]
        say(f"{mark}  {what}" + (f"; {hint}" if hint and ok is not True else ""))

    line(sys.version_info >= (3, 11), f"Python {sys.version.split()[0]}", "3.11 or newer is needed")
    for name in ("torch", "numpy", "timm", "datasets", "dvc", "papermill", "altair"):
        try:
            line(True, f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            needed = name in ("torch", "numpy", "dvc")
            line(False if needed else None, f"{name} is not installed", "run `make setup`")
    line(
        True,
        f"processor {provenance.cpu()['model']} ({provenance.cpu()['class']}), "
        f"{run.default_jobs('cpu')} processes for a CPU run",
    )
    import torch

    count = torch.cuda.device_count()
    line(
        True if count else None,
        ", ".join(torch.cuda.get_device_name(i) for i in range(count)) or "no GPU",
        "the gpu profile needs one; the cpu profile does not",
    )
    for name in data.names():
        there = data.info(name)["cached"]
        line(
            True if there else None,
            f"data {name}: {'in the cache' if there else 'not fetched'}",
            f"`repro data fetch {name}`",
        )
    line(shutil.which("git") is not None, "git", "install git; verdicts are compared with the committed ones")
    line((root / ".dvc").is_dir(), "DVC repository", "run `dvc init` in the checkout")
    status = subprocess.run([sys.executable, "-m", "dvc", "status", "-q"], cwd=root, capture_output=True)
    line(True if status.returncode == 0 else None, "dvc status", "some stages are out of date; `dvc status` names them")
    try:
        paper.load_params(root)
        line(True, "params.yaml")
    except Exception as error:
        line(False, str(error))
    free = shutil.disk_usage(root).free / 2**30
    line(free > 1, f"{free:.0f} GiB of disk free", "at least 1 GiB is needed")
    return bad == 0
