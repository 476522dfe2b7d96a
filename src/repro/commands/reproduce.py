"""`make reproduce PAPER=...`: fetch data, force the paper's stages through DVC, render, compare with git."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from repro import data
from repro.errors import Failed, ReproError
from repro.files.paths import results, results_name
from repro.run import provenance
from repro.spec import load as paper
from repro.store import write_file


def data_sets(slug: str, profile: str) -> list[str]:
    """The data sets that the experiments of one paper import."""
    one = paper.load(slug)
    modules: set[str] = set()
    for name in one.experiments_in(profile):
        setting = one.settings(profile, name)
        modules |= set(provenance.experiment_modules(slug, {"module": setting.module, "arms": setting.arms}))
    imported = {name.rpartition(".")[2] for name in provenance.closure(*modules) if name.startswith("repro.data.")}
    return sorted(imported & set(data.names()))


def committed_verdict(slug: str, profile: str, root: Path) -> dict | None:
    """The verdict in git's HEAD, or None."""
    name = f"HEAD:./{results_name(slug, profile, 'verdict')}"
    shown = subprocess.run(["git", "-C", str(root), "show", name], capture_output=True, text=True)
    return json.loads(shown.stdout) if shown.returncode == 0 else None


@contextmanager
def _profile_set(profile: str, root: Path) -> Iterator[None]:
    """DVC's stages exist for the profile of params.yaml: set it for the time of the run, then put it back."""
    path = root / "params.yaml"
    before = path.read_text(encoding="utf-8")
    now = re.sub(r"^profile:.*$", f"profile: {profile}", before, count=1, flags=re.M)
    if now != before and paper.load_params(root).profile != profile:
        write_file(path, now)
        try:
            yield
        finally:
            write_file(path, before)
    else:
        yield


def dvc(*words: str, root: Path) -> None:
    """Run DVC in the checkout with this environment's commands first on the path."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    done = subprocess.run([sys.executable, "-m", "dvc", *words], cwd=root, env={**os.environ, "PATH": path})
    if done.returncode:
        raise Failed(f"`dvc {' '.join(words)}` ended with code {done.returncode}; what it printed above says why")


def reproduce(slug: str, profile: str, root: Path, say: Callable[[str], None]) -> tuple[dict, dict | None, Path]:
    """Fresh verdict, committed verdict (or None) and the path of the rendered page."""
    if profile not in paper.load(slug).profiles or profile == "smoke":
        judged = [p for p in paper.load(slug).profiles if p != "smoke"]
        raise ReproError(f"--profile {profile}: {slug} has no verdict at it; write one of {', '.join(judged)}")
    for name in data_sets(slug, profile):
        say(f"data {name}: {data.fetch(name)}")
    committed = committed_verdict(slug, profile, root)
    with _profile_set(profile, root):
        dvc("repro", "-f", f"papers/{slug}", root=root)
        dvc("repro", f"reports/papers/{slug}", root=root)
    fresh = json.loads(results(slug, profile, "verdict", root).read_text(encoding="utf-8"))
    return fresh, committed, root / "reports" / "papers" / f"{slug}.html"
