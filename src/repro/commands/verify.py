"""Checks of what is stored: digests, verdicts and generated files re-derived; trials measured again."""

import random
import statistics
from collections.abc import Callable
from pathlib import Path

from scipy import stats

from repro import judge
from repro.commands import judging
from repro.errors import Failed, ReproError
from repro.files.paths import JUDGED, results, row_key
from repro.judge import quality
from repro.publish import index
from repro.report import staleness
from repro.run import measure as run
from repro.run import plan, provenance
from repro.run.engines import local
from repro.spec.model import Paper
from repro.store import Store, rows_digest

Say = Callable[[str], None]
NEEDED = {
    "config",
    "device",
    "device_class",
    "device_model",
    "notes",
    "sources",
    "started",
    "trials",
    "versions",
}  # to measure again


def verify(papers: list[Paper], root: Path, rerun: int, say: Say, only: str | None = None) -> list[str]:
    """Everything that does not hold, one line each; `rerun` random trials are measured again.

    only: the paper to which generated files are restricted.
    """
    wrong = index.check(root, only)
    measured = []
    for paper in papers:
        for profile in [p for p in JUDGED if p in paper.profiles]:
            path = results(paper.slug, profile, "rows", root)
            if not path.is_file():
                continue
            try:
                document = judge.load_rows(path)
                if why := staleness(paper, profile, document):
                    wrong.append(f"{paper.slug} {profile}: stale; {why}")
                fresh, rates = judge.judge(paper, profile, document), quality.assess(paper, profile, document)
                if why := judging.stored_differs(paper, profile, fresh, rates):
                    wrong.append(f"{paper.slug} {profile}: {why}")
                measured.append((paper, profile, document))
            except ReproError as error:
                wrong.append(str(error))
            say(f"{paper.slug} {profile}: checked")
        wrong += orphans(paper, root)
    if rerun:
        wrong += _rerun(measured, rerun, root, say)
    for line in wrong:
        say(line)
    return wrong


def orphans(paper: Paper, root: Path) -> list[str]:
    """Verdicts, error rates and metrics without the rows of which they were made, or of no profile of the paper."""
    lines = []
    for path in sorted((root / "papers" / paper.slug / "results").glob("*.json")):
        profile, _, kind = path.name.removesuffix(".json").partition(".")
        shown = path.relative_to(root)
        if profile not in paper.profiles or profile not in JUDGED:
            lines.append(f"{shown}: {paper.slug} has no profile {profile}; delete the file")
        elif kind != "rows" and not results(paper.slug, profile, "rows", root).is_file():
            lines.append(f"{shown}: has no rows beside it; run `repro run {paper.slug} --profile {profile}`")
    return lines


def _comparable(document: dict) -> str | None:
    """The device on which these rows can be measured again bit for bit, or None."""
    if NEEDED - document["provenance"].keys():
        return None
    device = document["provenance"]["device"]
    same = device == "cpu" and document["provenance"]["device_class"] == provenance.device_class("cpu")
    return device if same and document["provenance"]["versions"]["torch"] == provenance.versions()["torch"] else None


def remeasure(units: list[dict], document: dict, root: Path, exact: bool = True) -> list[str]:
    """Measure units again, outside the store; one line per trial that is not what its row says.

    exact: bit for bit; else (another device class or torch) each number must lie where the other seeds' rows let one
    more seed be expected.
    """
    rows, found = {row_key(row): row for row in document["rows"]}, []

    def done(unit: dict, answer: dict) -> None:
        for trial, result in zip(unit["trials"], answer.get("results", [{}] * len(unit["trials"])), strict=True):
            row, told = (
                rows.get(row_key(trial)),
                f"{document['paper']}: {trial['experiment']} {trial['arm']} seed {trial['seed']}",
            )
            if exact and (
                row is None
                or {k: row.get(k) for k in ("status", "measures")} != {k: result.get(k) for k in ("status", "measures")}
            ):
                found.append(f"{told} differs")
            if not exact and (
                apart := _unexpected(
                    result,
                    [r for key, r in rows.items() if key[:2] + key[3:] == row_key(trial)[:2] + row_key(trial)[3:]],
                )
            ):
                found.append(f"{told} differs in {', '.join(apart)}")

    local.run_units(units, jobs=run.default_jobs("cpu"), state=root / ".repro", done=done)
    return found


def _unexpected(result: dict, rows: list[dict]) -> list[str]:
    """Measures of a trial outside the prediction interval (99.9 %, Student's t) of one more seed, given a cell's rows.

    Numbers that no seed changes must agree to one part in a thousand; cells of fewer than three rows tell nothing.
    """
    if result.get("status") not in {row["status"] for row in rows}:
        return ["status"]
    found = []
    for name, value in result.get("measures", {}).items():
        known = [row["measures"][name] for row in rows if type(row["measures"].get(name)) in (int, float)]
        if len(known) < 3 or type(value) not in (int, float):
            continue
        n, mean, spread = len(known), statistics.fmean(known), statistics.stdev(known)
        reach = stats.t.ppf(0.9995, n - 1) * spread * (1 + 1 / n) ** 0.5 + 1e-3 * abs(mean) + 1e-9
        if abs(value - mean) > reach:
            found.append(name)
    return found


def _rerun(measured: list[tuple], count: int, root: Path, say: Say) -> list[str]:
    pool = []
    for paper, profile, document in measured:
        device, exact = document["provenance"]["device"], _comparable(document) is not None
        try:
            run.resolve_device(device, profile)
        except ReproError:
            say(f"{paper.slug} {profile}: measured on {device}, which is not here; not measured again")
            continue
        if not exact:
            say(
                f"{paper.slug} {profile}: measured on another device class or torch version, "
                "compared by the interval of its seeds"
            )
        entry = plan.entry(paper, profile)
        units = run.units_of(entry, device, trials=run.settled(entry, document["rows"]))
        units = [unit for unit in units if not unit["exclusive"]]
        pool += [(unit, document, exact) for unit in units]
    found, done = [], 0
    for unit, document, exact in random.sample(pool, len(pool)):
        if done >= count:
            break
        found += remeasure([unit], document, root, exact)
        done += len(unit["trials"])
    say(f"{done} trials measured again, {len(found)} differ")
    return found


def refresh(paper: Paper, profile: str, root: Path, say: Say) -> None:
    """Mark stale rows fresh when the units of the first seed, measured again, are bitwise equal to their rows."""
    path = results(paper.slug, profile, "rows", root)
    if not path.is_file():
        raise ReproError(f"{path}: no rows to refresh; run `repro run {paper.slug} --profile {profile}`")
    document = judge.load_rows(path)
    again = f"run `repro run {paper.slug} --profile {profile}`"
    if missing := NEEDED - document["provenance"].keys():
        raise ReproError(f"{path}: provenance: '{min(missing)}' is missing; {again}")
    entry = plan.entry(paper, profile)
    why = staleness(paper, profile, document)
    if why is None:
        return say(f"{paper.slug} {profile}: the rows are fresh already")
    if run.entry_configs(entry) != document["provenance"]["config"]:
        raise ReproError(f"{path}: {why}; other settings need a run: `repro run {paper.slug} --profile {profile}`")
    device = _comparable(document)
    if device is None:
        raise ReproError(
            f"{path}: measured on {document['provenance']['device_model']} with another torch or device class; "
            "refresh it there"
        )
    units = run.units_of(entry, device, trials=run.settled(entry, document["rows"]))
    first = min(trial["seed"] for trial in entry["trials"])
    trace = [u for u in units if not u["exclusive"] and any(t["seed"] == first for t in u["trials"])]
    if not trace:
        raise ReproError(
            f"{path}: holds timings alone, which are never compared; run `repro run {paper.slug} --profile {profile}`"
        )
    say(f"{paper.slug} {profile}: {why}; measuring {sum(len(u['trials']) for u in trace)} trials again")
    if found := remeasure(trace, document, root):
        raise Failed(
            f"{len(found)} trials are not what they were ({found[0]}); run `repro run {paper.slug} --profile {profile}`"
        )
    note = f"source changed; {sum(len(u['trials']) for u in trace)} trials measured again, bitwise equal"
    # A timing cannot be proved unchanged: its rows stay stale until they are measured again.
    timed = {name for name, setting in entry["experiments"].items() if setting["exclusive"]}
    keys = {row_key(trial): trial["key"] for unit in units for trial in unit["trials"] if not unit["exclusive"]}
    record = document["provenance"]
    record["sources"] |= {name: digest for name, digest in run.entry_sources(entry).items() if name not in timed}
    record["notes"] = [*record["notes"], note]
    record["trials"] = [
        keys.get(row_key(row), key) for row, key in zip(document["rows"], record["trials"], strict=True)
    ]
    store = Store(root / ".repro" / "trials")
    for row, key in zip(document["rows"], record["trials"], strict=True):
        if row["experiment"] in timed:
            continue
        store.put(
            key,
            {
                "row": row,
                "notes": record["notes"],
                "config": entry["experiments"][row["experiment"]]["config"],
                "registered": {paper.slug: document["registered"]},
                "device": record["device_model"],
                "versions": record["versions"],
                "measured": record["started"],
            },
            replace=True,
        )
    assert rows_digest(document["rows"]) == record["digest"]
    run.write_rows(path, document)
    judging.write(paper, profile, judge.judge(paper, profile, document), quality.assess(paper, profile, document))
    if why := staleness(paper, profile, document):
        raise Failed(
            f"{paper.slug} {profile}: {note}, but {why}; timings must be measured: "
            f"`repro run {paper.slug} --profile {profile}`"
        )
    say(f"{paper.slug} {profile}: fresh; {note}")
