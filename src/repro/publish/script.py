"""One measured trial as a single file: `repro trial KEY --script` writes a program that needs torch and numpy alone.

The file holds the source of every module that the trial runs, the settings, and the row that was measured.  It measures
the trial again and prints both.  Modules of papers that need timm or pandas need them there too.
"""

import json
import tokenize
from pathlib import Path
from typing import Any

from repro.arena import protocol
from repro.errors import ReproError
from repro.files.paths import JUDGED, results
from repro.files.rows import read_rows
from repro.run import measure, plan, provenance
from repro.spec.load import load

HEAD = '''\
"""One trial of `repro`: {about}.

{title}.
Measures the trial again and prints it beside the row that was measured before:

    python {file} [--device cuda]

It needs {needs}; below stands the source of all that the trial runs, from commit {commit}.
Data that are not in `.repro/data` of the current folder or in ~/.cache/repro/data are fetched from a package registry.
"""

import argparse
import importlib
import importlib.abc
import importlib.util
import json
import sys
from pathlib import Path

UNIT = json.loads({unit})
TRIAL = {trial}  # which of the unit's trials the row is of
ROW = json.loads({row})
SOURCES = {{}}
'''

TAIL = '''

# --- the modules above as a package, and the measurement --------------------------------------------------------------


class Embedded(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports the modules of SOURCES; a package without source of its own is empty."""

    def find_spec(self, name, path=None, target=None):
        package = any(other.startswith(name + ".") for other in SOURCES)
        if name not in SOURCES and not package:
            return None
        spec = importlib.util.spec_from_loader(name, self, origin=str(self.place(name)), is_package=package)
        spec.has_location = True
        return spec

    def place(self, name):
        return Path.cwd().joinpath("src", *name.split(".")).with_suffix(".py")

    def exec_module(self, module):
        text = SOURCES.get(module.__name__, "")
        exec(compile(text, str(self.place(module.__name__)), "exec"), module.__dict__)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\\n")[0])
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    sys.meta_path.insert(0, Embedded())
    import torch

    torch.set_num_threads(1)
    execute = importlib.import_module("repro.run.execute").execute
    found = execute({**UNIT, "device": options.device})[TRIAL]
    print(json.dumps({"measured before": ROW, "measured here": found}, indent=1))
    equal = found["status"] == ROW["status"] and found["measures"] == ROW["measures"]
    print(f"{'equal' if equal else 'not equal'} to the last digit; another machine or torch may round otherwise")


if __name__ == "__main__":
    main()
'''


def of_arm(slug: str, arm: str, root: Path) -> str:
    """The key of the first judged trial of an arm in the experiment of the paper's headline, of the largest profile."""
    paper = load(slug)
    for profile in reversed(JUDGED):
        path = results(slug, profile, "rows", root)
        if not path.is_file():
            continue
        document = read_rows(path, f"run `repro run {slug} --profile {profile}`")
        wanted = paper.claims[paper.headline].experiment
        pairs = list(zip(document["rows"], document["provenance"].get("trials", ()), strict=False))
        own = [(row, key) for row, key in pairs if row["arm"] == arm and row["seed"] < 1000]
        if own:
            return min(own, key=lambda pair: (pair[0]["experiment"] != wanted, pair[0]["seed"]))[1]
    known = sorted({arm for one in paper.experiments.values() for arm in one.arms})
    raise ReproError(f"{slug}: no measured trial of arm {arm}; its arms are {', '.join(known)}")


def script(key: str, place: str, root: Path, file: str = "trial.py") -> str:
    """The program of one trial of committed rows.

    place: the file that holds its row, such as papers/rmsnorm/results/cpu.rows.json or arena/gpt.long.rows.json.
    """
    if place.startswith("arena/"):
        track, profile = Path(place).name.split(".")[:2]
        document = protocol.read(root, track, profile, "rows")
        whole, name = protocol.entry_of(root, document), f"arena, {track}"
        title = protocol.track_of(root, track, profile)["what"]
    else:
        _, name, _, rows = place.split("/")
        profile = rows.partition(".")[0]
        paper = load(name)
        document = read_rows(results(name, profile, "rows", root), f"run `repro run {name} --profile {profile}`")
        whole, title = plan.entry(paper, profile), paper.title
    row = document["rows"][document["provenance"]["trials"].index(key)]
    if row["experiment"] not in whole["experiments"]:
        raise ReproError(f"{name}: experiment {row['experiment']} is not in profile {profile} any more; run it again")
    mine = _identity(row)
    trials = [_identity(one) for one in document["rows"] if one["experiment"] == row["experiment"]]
    unit = next(u for u in measure.units_of(whole, "cpu", trials=trials) if mine in map(_identity, u["trials"]))
    unit = {**unit, "trials": [_identity(trial) for trial in unit["trials"]]}
    sources, foreign = everything(unit["module"], *_of_arms(unit), "repro.run.execute", "repro.store")
    head = HEAD.format(
        about=f"{name}, {profile}, {row['experiment']}, {row['arm']}, seed {row['seed']}",
        title=title,
        file=file,
        needs=" and ".join(sorted({"torch", "numpy"} | foreign)),
        commit=document["provenance"].get("commit") or "unknown",
        unit=repr(json.dumps(unit)),
        trial=unit["trials"].index(mine),
        row=repr(json.dumps({part: row[part] for part in ("status", "measures")})),
    )
    return head + "".join(f"\nSOURCES[{name!r}] = {_quoted(text)}\n" for name, text in sources.items()) + TAIL


def _identity(trial: dict[str, Any]) -> dict[str, Any]:
    return {part: trial[part] for part in measure.IDENTITY}


def _of_arms(unit: dict[str, Any]) -> list[str]:
    return sorted(set().union(*(provenance.arm_modules(unit["module"], t["arm"]) for t in unit["trials"])))


def everything(*modules: str) -> tuple[dict[str, str], set[str]]:
    """The source of every module of the suite that these load, and the libraries that one of them needs to start."""
    found, foreign, todo = {}, set(), [*modules]
    while todo:
        module = todo.pop()
        path = provenance.module_file(module)
        if path is None or module in found:
            continue
        try:
            with tokenize.open(path) as file:
                found[module] = file.read()
        except (SyntaxError, UnicodeDecodeError) as error:
            raise ReproError(f"{path}: {error}; write the file in UTF-8") from None
        imported = provenance.imports(path, module)
        foreign |= {name for name in LIBRARIES if name in imported and module.startswith("repro.papers.")}
        todo += imported
    return dict(sorted(found.items())), foreign


LIBRARIES = ("timm", "pandas", "scipy")


def _quoted(text: str) -> str:
    """A source file as a literal that a person can read."""
    if "'''" in text or text.rstrip("\n").endswith(("'", "\\")):
        return repr(text)
    return f"r'''{text}'''"
