"""Names that every stored file shares: profiles, schema, where results lie, what makes a row one."""

import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import repro
from repro.errors import ReproError

SCHEMA = 2  # of every stored document: trial records, rows, verdicts, error rates, plans, tables
PROFILES = ("smoke", "cpu", "long", "gpu", "paper")  # from small to large
JUDGED = ("cpu", "long", "gpu", "paper")  # profiles that have verdicts; the last one that ran is the strongest
STATES = ("reproduced", "not_reproduced", "inconclusive")
KINDS = ("rows", "verdict", "quality")
SLUG = re.compile(r"[a-z][a-z0-9_]{0,59}")


@functools.cache
def paper_dirs() -> Path:
    """The folder that holds the papers: `papers/` of the checkout, or of the installed package."""
    found = [path for base in map(Path, repro.__path__) if (path := base / "papers").is_dir()]
    if not found:
        raise ReproError("no papers folder beside this package; install from a checkout: pip install -e .")
    return next((path for path in found if (path.parent / "params.yaml").is_file()), found[0]).resolve()


def results(slug: str, profile: str, kind: str, root: str | Path | None = None) -> Path:
    """Path of the rows, the verdict or the error rates (`kind`) of a paper, in the suite or under `root`."""
    folder = paper_dirs() if root is None else Path(root) / "papers"
    return folder / slug / "results" / f"{profile}.{kind}.json"


def results_name(slug: str, profile: str, kind: str) -> str:
    """The same path as messages, DVC and git name it: from the checkout on."""
    return f"papers/{slug}/results/{profile}.{kind}.json"


def place(path: Path) -> tuple[str, str] | None:
    """(paper, profile) that a path `papers/<slug>/results/<profile>.<kind>.json` stands for."""
    full = path.absolute()
    named = full.parent.name == "results" and full.parents[2].name == "papers"
    return (full.parents[1].name, full.name.partition(".")[0]) if named else None


def row_key(row: Mapping[str, Any]) -> tuple:
    """What makes a row, or a planned trial, the one it is: experiment, arm, seed and the levels of factors."""
    return row["experiment"], row["arm"], row["seed"], frozenset(row["factors"].items())
