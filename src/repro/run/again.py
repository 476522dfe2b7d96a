"""Trials measured again and compared with their rows: bit for bit if possible, else by the spread of seeds."""

import statistics
from collections.abc import Callable, Iterable
from pathlib import Path

from repro.errors import Failed, ReproError
from repro.files.paths import row_key
from repro.run import measure as run
from repro.run import provenance
from repro.run.engines import local
from repro.store import Store, rows_digest

Say = Callable[[str], None]
NEEDED = ("config", "device", "device_class", "device_model", "notes", "sources", "started", "trials", "versions")
SPREADS = 4.0  # standard deviations by which a number measured elsewhere may lie off the mean of its cell


def same_machine(document: dict) -> str | None:
    """The device on which these rows can be measured again bit for bit, or None."""
    record = document["provenance"]
    if any(name not in record for name in NEEDED):
        return None
    same = record["device"] == "cpu" and record["device_class"] == provenance.device_class("cpu")
    return record["device"] if same and record["versions"]["torch"] == provenance.versions()["torch"] else None


def units_of(entry: dict, document: dict, device: str) -> list[dict]:
    """The units that made these rows, timings left out, each trial with the key that it has now."""
    trials = run.settled(entry, document["rows"])
    return [unit for unit in run.units_of(entry, device, None, trials) if not unit["exclusive"]]


def trace(units: Iterable[dict], experiments: Iterable[str]) -> list[dict]:
    """The fewest units that run every arm of these experiments at every combination of levels: the first seeds."""
    wanted, found, seen = set(experiments), [], set()
    for unit in sorted(units, key=lambda one: min(trial["seed"] for trial in one["trials"])):
        cells = {(t["experiment"], t["arm"], frozenset(t["factors"].items())) for t in unit["trials"]}
        if unit["experiment"] in wanted and cells - seen:
            found.append(unit)
            seen |= cells
    return found


def compare(units: list[dict], document: dict, state: Path, exact: bool = True) -> list[str]:
    """Measure units again, outside the store; one line for each trial that is not what its row says.

    exact: bit for bit; else (another device class or torch) each number within the spread of its cell's seeds.
    """
    return [line for _, line in differing(units, document, state, exact)]


def differing(units: list[dict], document: dict, state: Path, exact: bool = True) -> list[tuple[dict, str]]:
    """As `compare`, with the trial before its line."""
    rows, found = {row_key(row): row for row in document["rows"]}, []

    def done(unit: dict, answer: dict) -> None:
        for i, trial in enumerate(unit["trials"]):
            named = f"{document['paper']}: {trial['experiment']} {trial['arm']} seed {trial['seed']}"
            if "error" in answer:
                found.append((trial, f"{named} failed: {answer['error']}"))
                continue
            result, row = answer["results"][i], rows.get(row_key(trial))
            if exact:
                same = row is not None and all(row.get(k) == result.get(k) for k in ("status", "measures"))
                found.extend([] if same else [(trial, f"{named} differs")])
            elif apart := unexpected(result, trial, document["rows"]):
                found.append((trial, f"{named} differs in {', '.join(apart)}"))

    local.run_units(units, jobs=run.default_jobs("cpu"), state=state, done=done)
    return found


def unexpected(result: dict, trial: dict, rows: list[dict]) -> list[str]:
    """What of a trial measured elsewhere its rows do not let one expect: its status, or measures with their distance.

    Another device rounds otherwise, and training amplifies that to the spread of seeds at most.  So a number may lie
    SPREADS standard deviations off the mean of its cell (the rows that differ in the seed alone), the deviation being
    that of the cell or of the experiment's middle cell, whichever is larger: a deviation of five seeds may be small by
    chance.  Numbers that no seed changes must agree to one part in a thousand.
    """
    cells: dict[tuple, list[dict]] = {}
    for row in rows:
        if row["experiment"] == trial["experiment"]:
            cells.setdefault((row["arm"], frozenset(row["factors"].items())), []).append(row)
    cell = cells.get((trial["arm"], frozenset(trial["factors"].items())), [])
    if result.get("status") not in {row["status"] for row in cell}:
        return ["status"]
    apart = []
    for name, value in result.get("measures", {}).items():
        known = {place: _numbers(name, its) for place, its in cells.items()}
        here = _numbers(name, cell)
        if not here or type(value) not in (int, float):
            continue
        deviations = [statistics.stdev(numbers) for numbers in known.values() if len(numbers) > 1]
        own = statistics.stdev(here) if len(here) > 1 else 0.0
        spread = max(own, statistics.median(deviations)) if deviations and any(here[0] != x for x in here) else own
        mean, exactly = statistics.fmean(here), 1e-3 * abs(statistics.fmean(here)) + 1e-9
        if abs(value - mean) > SPREADS * spread * (1 + 1 / len(here)) ** 0.5 + exactly:
            far = f" by {abs(value - mean) / spread:.1f} standard deviations of its seeds" if spread else ""
            apart.append(name + far)
    return apart


def _numbers(name: str, rows: list[dict]) -> list[float]:
    return [row["measures"][name] for row in rows if type(row["measures"].get(name)) in (int, float)]


def refresh(entry: dict, document: dict, *, state: Path, again: str, say: Say = lambda text: None) -> dict:
    """The rows document, fresh as far as a bitwise trace of every arm proves that an edit changed no number.

    Timings cannot be proved unchanged: their experiments keep the digests that they had.  The trials are put into the
    store under their new keys.  again: what to do where rows cannot be kept, such as "run `repro run demo`".
    """
    record = document["provenance"]
    if missing := [name for name in NEEDED if name not in record]:
        raise ReproError(f"provenance: '{missing[0]}' is missing; {again}")
    now = run.entry_sources(entry)
    stale = {name for name, digest in now.items() if record["sources"].get(name) != digest}
    if run.entry_configs(entry) != record["config"]:
        raise ReproError(f"the settings are other ones; {again}")
    device = same_machine(document)
    if device is None:
        raise ReproError(f"measured on {record['device_model']} with another torch or device class; refresh it there")
    timed = {name for name, setting in entry["experiments"].items() if setting["exclusive"]}
    units = units_of(entry, document, device)
    chosen = trace(units, stale - timed)
    if not chosen:
        raise ReproError(f"its stale rows are timings, which are never compared; {again}")
    count = sum(len(unit["trials"]) for unit in chosen)
    edited = ", ".join(sorted(stale - timed))
    say(f"{document['paper']} {document['profile']}: measuring {count} trials of {edited} again")
    if found := compare(chosen, document, state):
        raise Failed(f"{len(found)} trials are not what they were ({found[0]}); {again}")
    note = f"source of {edited} changed; {count} trials measured again, bitwise equal"
    keys = {row_key(trial): trial["key"] for unit in units for trial in unit["trials"]}
    trials = [keys.get(row_key(row), key) for row, key in zip(document["rows"], record["trials"], strict=True)]
    record = {
        **record,
        "sources": {**record["sources"], **{name: digest for name, digest in now.items() if name not in timed}},
        "notes": [*record["notes"], note],
        "trials": trials,
    }
    if rows_digest(document["rows"]) != record["digest"]:
        raise ReproError(f"the rows are not those of their digest; {again}")
    document = {**document, "provenance": record}
    keep(entry, document, state, timed)
    return document


def keep(entry: dict, document: dict, state: Path, left_out: set[str]) -> None:
    """Put rows into the store under the keys that stand beside them, but for those of the experiments `left_out`."""
    store, record = Store(state / "trials"), document["provenance"]
    for row, key in zip(document["rows"], record["trials"], strict=True):
        if row["experiment"] not in left_out:
            body = {
                "row": row,
                "notes": record["notes"],
                "config": entry["experiments"][row["experiment"]]["config"],
                "registered": {document["paper"]: document["registered"]},
                "device": record["device_model"],
                "versions": record["versions"],
                "measured": record["started"],
            }
            store.put(key, body, replace=True)
