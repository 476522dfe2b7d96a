"""Edits that change no number: proved by measuring before and after, and written down in `equal_edits.json`.

An edit of a module that many papers use would make all their rows stale, also where it only mends what no experiment
does.  `prove` measures every trial of the smoke profile that runs the module twice, with the module as it was and as it
is, and some committed trials again.  Where all are equal bit for bit, the digest of the new text stands for that of the
old one, so that rows stay fresh and keep their keys (`provenance.standing_for`).
"""

import json
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable
from datetime import date
from pathlib import Path

from repro.errors import Failed, ReproError
from repro.files.paths import JUDGED, results, row_key
from repro.run import again, plan, provenance
from repro.run import measure as run
from repro.run.engines import local
from repro.run.processes import call
from repro.spec import load as papers
from repro.store import write_file

Say = Callable[[str], None]
FIRST_STEPS = {"steps": 2, "evaluations": 1}  # of a trial of the arena, which has no smoke profile


def module_of(path: Path, root: Path) -> str:
    """The dotted name of a source file of the checkout, whose edits can be proved as a whole."""
    full, root = path.resolve(), root.resolve()
    for base in (root / "src", root):
        if full.is_relative_to(base / ("repro" if base.name == "src" else "papers")) and full.suffix == ".py":
            parts = full.relative_to(base).with_suffix("").parts
            name = ".".join(parts if base.name == "src" else ("repro", *parts))
            if (known := provenance.module_file(name)) is None or known.resolve() != full:
                break
            if name.startswith("repro.experiments.") or parts[-1] == "experiment":
                raise ReproError(
                    f"{path}: the digest of an experiment covers what its function uses, not the file; "
                    "run `repro refresh SLUG` for each paper that is stale"
                )
            return name
    raise ReproError(f"{path}: no source file of this checkout; write one such as src/repro/models/slots.py")


def prove(path: Path, since: str, root: Path, *, rerun: int, timings: str | None, say: Say) -> dict:
    """Measure before and after an edit; return the record that `equal_edits.json` holds then.

    since: the commit that has the file as it was.
    rerun: this many committed trials are measured again too, where rows of this machine's kind are at hand.
    timings: why the edit cannot change how long a step takes; timings become stale where this is None.
    """
    module = module_of(path, root)
    file = provenance.module_file(module)
    commit = provenance.git("rev-parse", "--short", f"{since}^{{commit}}", folder=root).strip()
    before = provenance.git("show", f"{commit}:./{file.relative_to(root)}", folder=root)
    with tempfile.TemporaryDirectory(prefix="repro-equal-") as folder:
        earlier = Path(folder) / file.name
        earlier.write_text(before, encoding="utf-8")
        old, new = provenance.file_digest(earlier), provenance.file_digest(file)
        if old == new:
            raise ReproError(f"{path}: only comments and docstrings differ from commit {commit}; no row is stale by it")
        if provenance.imports(earlier, module) != provenance.imports(file, module):
            raise ReproError(f"{path}: it imports other modules than at commit {commit}; measure the papers anew")
        entries = _entries(module, root)
        if not entries:
            raise ReproError(f"{path}: no paper's trials run it; no row is stale by it")
        count = sum(len(entry["trials"]) for entry in entries)
        plans = "1 plan" if len(entries) == 1 else f"{len(entries)} plans"
        say(f"measuring {count} trials of {plans} with {file.name} as at {commit}, and as it is")
        kept = {}
        for name, text in (("before", before), ("after", None)):
            kept[name] = _measured(_copy(root, Path(folder) / name, file, text), entries)
    differ = [key for key in kept["before"].keys() | kept["after"].keys() if _unequal(key, kept)]
    if differ:
        raise Failed(f"{path}: {len(differ)} of {count} trials differ, first {min(map(str, differ))}; measure anew")
    again_too = _measured_again(module, root, rerun, say)
    proof = f"{count} trials of {plans} before and after, and {again_too} committed trials, bitwise equal"
    record = {
        "module": module,
        "digest": new,
        "equal_to": provenance.standing_for(module, old),
        "commit": commit,
        "date": date.today().isoformat(),
        "proof": proof,
        "timings": timings and {"equal_to": provenance.standing_for(module, old, timed=True), "why": timings},
    }
    kept = [edit for edit in provenance.equal_edits() if (edit["module"], edit["digest"]) != (module, new)]
    write_file(root / provenance.EQUAL, json.dumps({"edits": [*kept, record]}, indent=1) + "\n")
    return record


def faults(root: Path) -> list[str]:
    """Records of `equal_edits.json` whose file was never what they say at the commit that they name.

    A commit that this clone has not, as a shallow one, is not looked at.
    """
    found, known = [], {}
    for edit in provenance.equal_edits(root):
        file = provenance.module_file(edit["module"])
        where = f"{provenance.EQUAL}: {edit['module']}"
        if file is None:
            found.append(f"{where}: no such module in this suite; delete its record")
            continue
        try:
            before = provenance.git("show", f"{edit['commit']}:./{file.relative_to(root)}", folder=root)
        except ReproError:
            continue
        digest = _digest_of(before, file.name)
        said = {"numbers": edit["equal_to"]}
        if edit.get("timings"):
            said["timings"] = edit["timings"]["equal_to"]
        if any(known.get((edit["module"], digest, kind), digest) != other for kind, other in said.items()):
            found.append(f"{where}: at commit {edit['commit']} the file was another one; prove the edit again")
        known |= {(edit["module"], edit["digest"], kind): other for kind, other in said.items()}
    return found


def _digest_of(text: str, name: str) -> str:
    with tempfile.TemporaryDirectory(prefix="repro-equal-") as folder:
        (Path(folder) / name).write_text(text, encoding="utf-8")
        return provenance.file_digest(Path(folder) / name)


def _unequal(key: tuple, kept: dict[str, dict]) -> bool:
    before, after = kept["before"].get(key), kept["after"].get(key)
    return before != after or before["status"] not in ("ok", "diverged", "invalid")


def _uses(setting: dict, name: str, module: str) -> bool:
    return module in provenance.function_closure(setting["module"], run.called(name, setting), tuple(setting["arms"]))


def _entries(module: str, root: Path) -> list[dict]:
    """The smoke trials of all experiments that run a module, and the first steps of the arena's arms; no timings."""
    made = [_settled(plan.entry(papers.load(slug), "smoke")) for slug in papers.slugs()]
    made += list(_arena_entries(root))
    found = []
    for entry in made:
        kept = {n: s for n, s in entry["experiments"].items() if not s["exclusive"] and _uses(s, n, module)}
        trials = [trial for trial in entry["trials"] if trial["experiment"] in kept]
        found += [{**entry, "experiments": kept, "trials": trials}] if trials else []
    return found


def _settled(entry: dict) -> dict:
    """A plan whose tuned experiments take their first level at the judged seeds: nothing is chosen here."""
    tuned, trials = entry.pop("tune", {}), {}
    for trial in entry["trials"]:
        tune = tuned.get(trial["experiment"])
        levels = {tune["factor"]: tune["levels"][0], **trial["factors"]} if tune else trial["factors"]
        trial = {**trial, "factors": levels}
        trials[row_key(trial)] = trial
    return {**entry, "trials": list(trials.values())}


def _arena_entries(root: Path) -> Iterable[dict]:
    """Per track of the arena that has rows: every arm in the first cell for two steps."""
    from repro.arena import protocol

    for track in protocol.tracks(root) if (root / "arena.yaml").is_file() else ():
        document = protocol.read(root, track, "long", "rows")
        if document is None:
            continue
        entry = protocol.entry_of(root, document)
        setting = entry["experiments"][track]
        first = next(trial["factors"] for trial in entry["trials"] if trial["experiment"] == track)
        levels = {**first, **{k: v for k, v in FIRST_STEPS.items() if k in first}}
        fewer = {k: v for k, v in FIRST_STEPS.items() if k in setting["config"]}
        trials = [{"experiment": track, "arm": arm, "seed": 0, "factors": levels} for arm in setting["arms"]]
        experiments = {track: {**setting, "config": {**setting["config"], **fewer}}}
        yield {"paper": entry["paper"], "profile": "long", "experiments": experiments, "trials": trials}


def _copy(root: Path, folder: Path, file: Path, text: str | None) -> Path:
    """A copy of the checkout's source, with one file as it was; data sets are shared."""
    names = provenance.git("ls-files", "-co", "--exclude-standard", "-z", folder=root).split("\0")
    wanted = {name for name in names if name.endswith(".py") and name.startswith(("src/", "papers/"))}
    wanted |= {name for name in names if name.endswith("paper.yaml")} | {"params.yaml", "arena.yaml"}
    for name in sorted(wanted):
        if (root / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, folder / name)
    if text is not None:
        (folder / file.relative_to(root)).write_text(text, encoding="utf-8")
    (folder / ".repro").mkdir()
    (root / ".repro" / "data").mkdir(parents=True, exist_ok=True)
    (folder / ".repro" / "data").symlink_to(root / ".repro" / "data", target_is_directory=True)
    return folder


def _measured(folder: Path, entries: list[dict]) -> dict[tuple, dict]:
    """(paper, experiment, arm, seed, levels) -> status and measures, with the source in a folder."""
    (folder / "entries.json").write_text(json.dumps(entries), encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(folder / "src"), "REPRO_CHECKOUT": str(folder)}
    with open(folder / "printed", "w") as printed:
        code = call([sys.executable, "-m", __name__], cwd=folder, env=environment, stdout=printed.fileno())
    if code:
        raise Failed(f"the trials of {folder.name} the edit ended with code {code}")
    found = json.loads((folder / "found.json").read_bytes())
    return {(paper, *row_key(trial)): result for paper, trial, result in found}


def main() -> int:
    """Measure the trials of `entries.json` in the present folder with the source there, into `found.json`."""
    found, units = [], []
    for entry in json.loads(Path("entries.json").read_bytes()):
        units += [{**unit, "paper": entry["paper"]} for unit in run.units_of(entry, "cpu")]

    def done(unit: dict, answer: dict) -> None:
        results = answer.get("results") or [{"status": answer["error"]}] * len(unit["trials"])
        for trial, result in zip(unit["trials"], results, strict=True):
            named = {name: trial[name] for name in run.IDENTITY}
            found.append([unit["paper"], named, {"status": result["status"], "measures": result.get("measures")}])

    local.run_units(units, jobs=run.default_jobs("cpu"), state=Path(".repro").absolute(), done=done)
    Path("found.json").write_text(json.dumps(found), encoding="utf-8")
    return 0


def _measured_again(module: str, root: Path, count: int, say: Say) -> int:
    """Measure some committed trials that run the module again; how many there were, all equal."""
    from repro.judge import load_rows

    pool, done, found = [], 0, []
    for slug in papers.slugs() if count else ():
        one = papers.load(slug)
        for profile in (p for p in JUDGED if p in one.profiles):
            path = results(slug, profile, "rows", root)
            document = load_rows(path) if path.is_file() else None
            device = again.same_machine(document) if document else None
            if device:
                entry = plan.entry(one, profile)
                units = again.units_of(entry, document, device)
                runs = {n for n, s in entry["experiments"].items() if _uses(s, n, module)}
                rows = {row_key(row) for row in document["rows"]}  # a new registration plans others
                pool += [
                    (unit, document)
                    for unit in units
                    if unit["experiment"] in runs and rows.issuperset(map(row_key, unit["trials"]))
                ]
    for unit, document in random.sample(pool, len(pool)):
        if done >= count:
            break
        found += again.compare([unit], document, root / ".repro")
        done += len(unit["trials"])
        what = "a committed trial" if len(unit["trials"]) == 1 else f"{len(unit['trials'])} committed trials"
        say(f"{document['paper']} {document['profile']}: {what} measured again")
    if found:
        raise Failed(f"{len(found)} committed trials are not what they were ({found[0]}); measure the papers anew")
    return done


if __name__ == "__main__":
    sys.exit(main())
