"""Arms x seeds -> rows: asks the store for each trial, hands the missing ones to an engine, writes the rows.

Works from a plan alone (`repro plan SLUG --json`), with no more than torch and numpy installed:

    python -m repro.run plan.json --out DIR [--device cuda] [--jobs 1]
"""

import argparse
import functools
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Set
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

from repro.errors import Failed, ReproError, one_line
from repro.files import plan as plan_file
from repro.files.paths import SCHEMA, row_key
from repro.files.strict import JsonFile, head, read_regular
from repro.files.trial import is_record
from repro.run import provenance
from repro.run.engines import local
from repro.run.execute import LARGEST_RANKS, SUFFIX, function_name
from repro.run.tuning import TUNING_SEEDS, Chosen, Further, Level, choose, level_to_run
from repro.store import Store, digest, rows_digest, sealed, write_file


def name_of(unit: dict) -> str:
    """`quality rmsnorm depth=4 seed 0,1,2`: a unit as people read it."""
    arms = "+".join(dict.fromkeys(t["arm"] for t in unit["trials"]))
    seeds = ",".join(str(s) for s in dict.fromkeys(t["seed"] for t in unit["trials"]))
    levels = "".join(f" {k}={v}" for k, v in unit["trials"][0]["factors"].items())
    return f"{unit['experiment']} {arms}{levels} seed {seeds}"


@dataclass
class Progress:
    """What a run reports as it goes; the command line draws it, the default prints plain lines."""

    say: Callable[[str], None] = field(default=lambda text: print(text, flush=True))

    def start(self, entry: dict, total: int, missing: int) -> None:
        self.say(
            f"{entry['paper']} {entry['profile']}: {total} trials, {total - missing} in the store, {missing} to measure"
        )

    def stored(self, rows: list[dict]) -> None:
        """The rows that need not be measured."""

    def unit(self, unit: dict, answer: dict, finished: int, total: int) -> None:
        if "error" in answer:
            outcome = f"FAILED: {answer['error']}"
        else:
            ended = [r["status"] for r in answer["results"] if r["status"] != "ok"]
            outcome = f"{answer['seconds']:.1f} s" + (f", {len(ended)} {ended[0]}" if ended else "")
        self.say(f"  [{finished}/{total}] {name_of(unit)}: {outcome}")

    def heard(self, unit: dict, at: dict) -> None:
        """Where a unit that runs stands: {"step", "steps", "loss"}."""

    def end(self, entry: dict, seconds: float) -> None:
        self.say(f"{entry['paper']} {entry['profile']}: done in {seconds:.1f} s")

    def close(self) -> None:
        """Called when the run is over, however it ended."""


def resolve_device(name: str, profile: str, here: bool = True) -> str:
    """`cpu`, `cuda` or `cuda:N`; `auto` is the CPU for the profiles smoke, cpu and long, else the first GPU.

    Whether there is one is asked only where the work is to be done `here`.
    """
    if name == "auto":
        name = "cpu" if profile in ("smoke", "cpu", "long") else "cuda"
    if name == "cpu":
        return name
    kind, _, index = name.partition(":")
    if not re.fullmatch(r"cuda(:[0-9]{1,3})?", name):
        raise ReproError(f"--device {name}: unknown device; write cpu, cuda, cuda:N or auto")
    if not here:
        return kind
    import torch

    count = torch.cuda.device_count()
    if int(index or 0) >= count:
        have = f"{count} GPU{'s' * (count != 1)} here" if count else "no GPU here"
        raise ReproError(f"--device {name}: {have}; write --device cpu --profile cpu, or run on a machine that has it")
    return name


def units_of(
    entry: dict, device: str, place: dict[str, str] | None = None, trials: list[dict] | None = None
) -> list[dict]:
    """The units of work of one planned paper, in seed-major order, each trial with its key.

    place: class and model of the device that will measure, where it is not one of this machine; its `torch` is the
    version there.
    trials: those that `settled` returns; all of the plan where none is open.
    """
    groups: dict[tuple, dict] = {}
    tuned = entry.get("tune") or {}
    for trial in entry["trials"] if trials is None else trials:
        name = trial["experiment"]
        setting = entry["experiments"][name]
        if (setting.get("ranks") or 1) > LARGEST_RANKS:
            raise ReproError(f"{entry['paper']}: {name}: {setting['ranks']} ranks; write at most {LARGEST_RANKS}")
        path = "exclusive" if setting["exclusive"] else "batched" if setting["batched"] else "single"
        together = {"single": (trial["arm"], trial["seed"]), "batched": trial["arm"], "exclusive": trial["seed"]}[path]
        tuning = (
            name in tuned and trial["seed"] in tuned[name]["seeds"]
        )  # measured before the others, so apart from them
        group = (name, tuning, json.dumps(trial["factors"], sort_keys=True), together)
        unit = groups.setdefault(
            group,
            {
                "experiment": name,
                "module": setting["module"],
                "function": setting.get("function") or name,
                "config": setting["config"],
                "where": f"papers/{entry['paper']}/paper.yaml: profiles.{entry['profile']}.{name}",
                "path": path,
                "exclusive": path == "exclusive",
                "ranks": setting.get("ranks"),
                "device": device,
                "trials": [],
            },
        )
        unit["trials"].append(trial)
    source = functools.cache(provenance.function_digest)  # units share their sources
    for unit in groups.values():
        _add_keys(unit, place or provenance.place(device), source)
    return list(groups.values())


def _add_keys(unit: dict, place: dict[str, str], source: Callable[..., str]) -> None:
    """What determines a row, digested; data are pinned by sha256 in the modules that the source digest covers.

    Neither the paper nor its name of the experiment counts: papers that share an experiment share its trials.
    """
    trials = unit["trials"]
    everyone = {
        "single": unit["ranks"],
        "batched": [t["seed"] for t in trials],
        "exclusive": [t["arm"] for t in trials],
    }
    keyed = []
    for trial in trials:
        arms = everyone["exclusive"] if unit["exclusive"] else [trial["arm"]]
        keyed.append(
            {
                **trial,
                "key": digest(
                    {
                        "experiment": [unit["module"], unit["function"]],
                        "arm": trial["arm"],
                        "seed": trial["seed"],
                        "config": {**unit["config"], **trial["factors"]},
                        "path": [unit["path"], everyone[unit["path"]]],
                        "source": source(unit["module"], function_name(unit), tuple(arms)),
                        "device": place["model" if unit["exclusive"] else "class"],
                        "threads": 1,
                        "torch": place.get("torch") or provenance.versions()["torch"],
                    }
                ),
            }
        )
    unit["trials"] = keyed


# --- tuning -----------------------------------------------------------------------------------------------------------


def is_open(entry: dict, trial: dict) -> bool:
    """Whether a planned trial waits for the level of its tuned factor."""
    tuned = (entry.get("tune") or {}).get(trial["experiment"])
    return tuned is not None and tuned["factor"] not in trial["factors"]


def chosen_level(entry: dict, rows: Iterable[dict], experiment: str, arm: str, cell: dict) -> Chosen:
    """What the tuning rows of an experiment choose for an arm where the other factors are as in `cell`.

    KeyError where a tuning row is missing or invalid, Further where the climb asks for more levels.
    """
    tuned = entry["tune"][experiment]
    return choose(
        (row for row in rows if row["experiment"] == experiment and row["seed"] in tuned["seeds"]),
        arm=arm,
        cell=cell,
        factor=tuned["factor"],
        levels=tuned["levels"],
        seeds=tuned["seeds"],
        measure=tuned["measure"],
        better=tuned["better"],
        start=tuned.get("start"),
    )


def settled(entry: dict, rows: Iterable[dict]) -> list[dict]:
    """The planned trials, open ones at the level that the tuning rows choose; without those that must wait for it.

    At the end stand the tuning trials that no plan can name: those at the levels to which an arm climbed.
    """
    rows, found, trials, climbed = list(rows), {}, [], []
    for trial in entry["trials"]:
        tuned = (entry.get("tune") or {}).get(trial["experiment"])
        if tuned is None:
            trials.append(trial)
            continue
        factor = tuned["factor"]
        cell = {name: level for name, level in trial["factors"].items() if name != factor}
        place = trial["experiment"], trial["arm"], frozenset(cell.items())
        if place not in found:
            found[place], tried = _level(entry, rows, *place[:2], cell)
            further = [level for level in tried if level not in tuned.get("start", tuned["levels"])]
            climbed += [
                {**trial, "seed": seed, "factors": {**cell, factor: level}}
                for level in further
                for seed in tuned["seeds"]
            ]
        if not is_open(entry, trial):
            trials.append(trial)
        elif found[place] is not None:
            trials.append({**trial, "factors": {**cell, factor: found[place]}})
    return trials + climbed


def _level(entry: dict, rows: list[dict], experiment: str, arm: str, cell: dict) -> tuple[Level | None, list[Level]]:
    """The level at which the judged seeds of an arm run, None before it is known; and the levels to try for it."""
    try:
        chosen = chosen_level(entry, rows, experiment, arm, cell)
    except Further as more:
        return None, more.levels
    except KeyError:  # a tuning row is missing, or invalid and to be measured again
        return None, []
    return level_to_run(chosen), list(chosen.scores)


def missing_trials(entry: dict, trials: list[dict], rows: list[dict]) -> int:
    """How many trials have no row yet, of those that are planned and of those that `settled` returned."""
    planned = {row_key(trial) for trial in entry["trials"] if not is_open(entry, trial)}
    tuned = entry.get("tune") or {}
    climbed = [
        trial
        for trial in trials
        if trial["experiment"] in tuned
        and trial["seed"] in tuned[trial["experiment"]]["seeds"]
        and row_key(trial) not in planned
    ]
    return len(entry["trials"]) + len(climbed) - len(rows)


# --- measuring --------------------------------------------------------------------------------------------------------


def measure(
    entry: dict,
    *,
    store: Store,
    state: Path,
    device: str,
    jobs: int,
    force: bool = False,
    progress: Progress | None = None,
    engine: Callable | None = None,
    place: dict[str, str] | None = None,
    results: Path | None = None,
    deadline: float | None = None,
) -> dict:
    """All rows of one planned paper, as the document that `results/<profile>.rows.json` holds.

    Tuning trials come first; they choose the level at which the judged trials of a tuned experiment run.

    engine: where the units run, a function like `repro.run.engines.local.run_units` (the default).
    place: as in `units_of`.
    results: the rows file of the paper: those of its rows whose keys still hold need not be measured, and its
    registration is kept.  deadline: the time (`time.monotonic`) at which the run stops with what is finished; then
    `provenance.missing` of the document counts the trials that are not.
    """
    began, progress, place = time.perf_counter(), progress or Progress(), place or provenance.place(device)
    store.sweep()
    documents, sources = earlier_documents(results), entry_sources(entry)
    first = [trial for trial in entry["trials"] if not is_open(entry, trial)]
    taken: set[tuple] = set()
    units: list[dict] = []

    def gather(trials: list[dict]) -> list[dict]:
        """Take up these trials; the units of them that must be measured."""
        new = units_of(entry, device, place, trials)
        taken.update(row_key(trial) for trial in trials)
        units.extend(new)
        if not force:
            _take_up(new, documents[:1], store)
            _take_up(new, _of_other_papers(new, results, store), store)
        kept = {t["key"]: _final(store.get(t["key"])) for unit in new for t in unit["trials"]}
        missing = [unit for unit in new if force or not all(kept[t["key"]] for t in unit["trials"])]
        for unit in missing:
            if unit["ranks"]:  # its checkpoints outlive a killed run
                unit["scratch"] = str(state / "ranks" / unit["trials"][0]["key"].removeprefix("sha256:"))
        return missing

    def rest() -> list[dict]:
        """The trials that the rows have settled by now, and that are not taken up yet."""
        return [trial for trial in settled(entry, _stored(units, store)) if row_key(trial) not in taken]

    def waiting() -> int:
        """How many planned trials still wait for the level of their arm."""
        return missing_trials(entry, settled(entry, _stored(units, store)), [*taken])

    queue = gather(first)
    while not queue and (more := rest()):
        queue = gather(more)
    asked = {t["key"] for unit in queue for t in unit["trials"]}
    progress.start(entry, len(entry["trials"]), len(asked) + waiting())
    progress.stored(_stored(units, store, but=asked))
    failures: list[tuple[dict, dict]] = []
    finished, total = [0], len(queue) + waiting()

    def done(unit: dict, answer: dict) -> None:
        finished[0] += 1
        if "error" not in answer and _edited(entry, unit["experiment"], sources):
            answer = {"error": CHANGED, "traceback": f"{name_of(unit)}: {CHANGED}"}
        progress.unit(unit, answer, finished[0], total)
        if "error" in answer:
            failures.append((unit, answer))
            return
        for trial, result in zip(unit["trials"], answer["results"], strict=True):
            body = {
                "row": {
                    **{name: trial[name] for name in IDENTITY},
                    **result,
                    "seconds": answer["seconds"] / len(unit["trials"]),
                },
                "config": unit["config"],
                "registered": {entry["paper"]: entry["registered"]},
                "device": place["model"],
                "versions": provenance.versions(),
                "measured": datetime.now(UTC).date().isoformat(),
            }
            # Replaced in place, so that a second run that gathers its rows now never misses one.
            store.put(trial["key"], body, replace=force or not _final(store.get(trial["key"])))

    options = {} if deadline is None else {"deadline": deadline}

    def run(units: list[dict]) -> None:
        (engine or local.run_units)(units, jobs=jobs, state=state, done=done, heard=progress.heard, **options)

    try:
        run(queue)
        while not failures and (deadline is None or time.monotonic() < deadline) and (more := rest()):
            queue = gather(more)
            total = finished[0] + len(queue) + waiting()
            run(queue)
    finally:
        progress.close()
    if failures:
        raise _failed(entry, failures, state)
    document = _document(entry, units, store, device, place, documents, sources)
    if document["provenance"].get("missing") and deadline is None:
        raise Failed(
            f"{entry['paper']}: {document['provenance']['missing']} trials have no record; run the same command again"
        )
    progress.end(entry, time.perf_counter() - began)
    return document


IDENTITY = ("experiment", "arm", "seed", "factors")


def _stored(units: list[dict], store: Store, but: Set[str] = frozenset()) -> list[dict]:
    """The rows of these units that are in the store, named as this plan names them."""
    rows = []
    for trial in (trial for unit in units for trial in unit["trials"] if trial["key"] not in but):
        if (record := _record(store, trial["key"])) is not None:
            rows.append({**record["row"], **{name: trial[name] for name in IDENTITY}})
    return rows


def earlier_documents(results: Path | None) -> list[dict]:
    """The rows documents that a run must not forget: the file as it lies there, and as git's HEAD has it.

    A file that is damaged, or that another version wrote, is left out; the run replaces it.
    """
    if results is None:
        return []
    found = []
    try:
        found.append(_read_rows(results))
    except ReproError:
        pass
    try:
        text = provenance.git("show", f"HEAD:./{results.name}", folder=results.parent)
        committed = json.loads(text)
        if isinstance(committed["registered"], str) and all(IDENTITY[2] in row for row in committed["rows"]):
            found.append(committed)
    except (ReproError, ValueError, KeyError, TypeError, RecursionError):
        pass
    return found


def _read_rows(path: Path) -> dict:
    """A rows document that is as a run wrote it; checked in every part where pydantic is installed."""
    try:
        from repro.files.rows import read_rows
    except ImportError:  # a bare machine
        file = JsonFile(path, "run the profile again")
        document = head(file)
        if not isinstance(document.get("provenance"), dict) or document != sealed(document):
            file.fail((), "the file is not as it was written")
        return document
    return read_rows(path, "run the profile again")


def _of_other_papers(units: list[dict], results: Path | None, store: Store) -> list[dict]:
    """The rows documents of other papers, at the same profile, that hold a trial which is still to be measured.

    Papers that use a module of `repro.experiments` share its trials: one that another paper has committed counts.
    """
    shared = (unit for unit in units if unit["module"].startswith("repro.experiments."))
    missing = {
        trial["key"].encode() for unit in shared for trial in unit["trials"] if not _final(store.get(trial["key"]))
    }
    if results is None or results.parents[2].name != "papers" or not missing:
        return []
    found = []
    for path in sorted(results.parents[2].glob(f"*/results/{results.name}")):
        if path != results and not missing.isdisjoint(re.findall(rb"sha256:[0-9a-f]{64}", path.read_bytes())):
            try:
                found.append(_read_rows(path))
            except ReproError:  # damaged: its own paper says so
                continue
    return found


def _take_up(units: list[dict], documents: list[dict], store: Store) -> None:
    """Put rows whose keys are those of planned trials into the store; they need not be measured.

    Only of files that were read strictly.
    """
    wanted = {t["key"]: unit for unit in units for t in unit["trials"]}
    for document in documents:
        source = document["provenance"]
        if not {"trials", "checksum", "device_model", "versions", "started"} <= source.keys():
            continue
        for row, key in zip(document["rows"], source["trials"], strict=True):
            if key in wanted and row["status"] != "invalid" and not _final(store.get(key)):
                body = {
                    "row": row,
                    "config": wanted[key]["config"],
                    "registered": {document["paper"]: document["registered"]},
                    "device": source["device_model"],
                    "versions": source["versions"],
                    "measured": source["started"],
                    "notes": source.get("notes", []),
                }
                if is_record(body):
                    store.put(key, body, replace=True)


def _record(store: Store, key: str) -> dict | None:
    """The record of a trial; one that is damaged in any way, whoever sealed it, counts as absent."""
    record = store.get(key)
    return record if record is not None and is_record(record) else None


def _final(record: dict | None) -> bool:
    """Whether a record counts; a measurement that failed its own check does not: the next run tries it again."""
    return record is not None and is_record(record) and record["row"]["status"] != "invalid"


def _failed(entry: dict, failures: list[tuple[dict, dict]], state: Path) -> Failed:
    log = state / "logs" / f"{entry['paper']}-{entry['profile']}.log"
    write_file(log, "\n".join(answer["traceback"] for _, answer in failures))
    unit, answer = failures[0]
    trial = unit["trials"][0]
    return Failed(
        f"{len(failures)} of {entry['paper']}'s trials failed, first "
        f"{trial['experiment']} {trial['arm']} seed {trial['seed']}: "
        f"{answer['error']} (tracebacks: {log}); finished trials are kept, rows were not written"
    )


def _document(
    entry: dict,
    units: list[dict],
    store: Store,
    device: str,
    place: dict[str, str],
    documents: list[dict],
    sources: dict[str, str],
) -> dict:
    found: dict[tuple, tuple[str, dict]] = {}
    for trial in (trial for unit in units for trial in unit["trials"]):
        if (record := _record(store, trial["key"])) is not None:
            found[row_key(trial)] = (
                trial["key"],
                {**record, "row": {**record["row"], **{n: trial[n] for n in IDENTITY}}},
            )
    trials = settled(entry, [record["row"] for _, record in found.values()])
    order = [row_key(trial) for trial in trials]
    keys = [found[key][0] for key in order if key in found]
    records = [found[key][1] for key in order if key in found]
    rows = [record["row"] for record in records]
    missing = missing_trials(entry, trials, rows)
    if not rows:
        raise Failed(f"{entry['paper']} {entry['profile']}: no trial ended in time; write more --minutes")
    return {
        "schema": SCHEMA,
        "paper": entry["paper"],
        "profile": entry["profile"],
        "provenance": {
            "digest": rows_digest(rows),
            **provenance.commit(),
            "device": device,
            "device_model": place["model"],
            "device_class": place["class"],
            "threads": 1,
            "versions": provenance.versions(),
            "platform": " ".join(os.uname()[i] for i in (0, 4)) if hasattr(os, "uname") else sys.platform,
            "started": min(r["measured"] for r in records),
            "seconds": round(sum(row["seconds"] for row in rows), 3),
            "sources": sources,
            "config": entry_configs(entry),
            "trials": keys,
            "notes": list(dict.fromkeys(note for r in records for note in r.get("notes", ()))),
            **({"missing": missing} if missing else {}),
        },
        "registered": _registered(entry, records, documents),
        "rows": rows,
    }


def _registered(entry: dict, records: list[dict], documents: list[dict]) -> str:
    """The registration of these rows: that under which rows of the same seeds were first seen.

    Rules that were changed after rows of these seeds had been seen show as post hoc, whatever became of the store.
    Only rows whose judged seeds are all fresh begin a new registration.  Rows that no claim reads, such as those of
    identities, are not registered.
    """
    names = entry.get("judged", list(entry["experiments"]))
    judged = [r for r in records if r["row"]["seed"] < TUNING_SEEDS and r["row"]["experiment"] in names]
    seeds = {(record["row"]["experiment"], record["row"]["seed"]) for record in judged}
    for document in documents:
        rows = [row for row in document["rows"] if row["seed"] < TUNING_SEEDS and row.get("experiment") in names]
        seen = {(row["experiment"], row["seed"]) for row in rows}
        if document["registered"] != entry["registered"] and seen & seeds:
            return document["registered"]
    earlier = {r["registered"].get(entry["paper"], entry["registered"]) for r in judged} - {entry["registered"]}
    return min(earlier) if earlier else entry["registered"]


def entry_sources(entry: dict) -> dict[str, str]:
    """Per experiment the digest of the source that its rows depend on."""
    return {name: _source(name, setting) for name, setting in entry["experiments"].items()}


def _source(name: str, setting: dict) -> str:
    return provenance.function_digest(setting["module"], called(name, setting), tuple(setting["arms"]))


CHANGED = "its source was edited while it was measured; run the same command again"


def _edited(entry: dict, name: str, sources: dict[str, str]) -> bool:
    """Whether the source of an experiment is another one than when the run began and made the keys of its trials."""
    try:
        return _source(name, entry["experiments"][name]) != sources[name]
    except (ReproError, OSError, SyntaxError, ValueError):  # in the middle of an edit
        return True


def called(name: str, setting: dict) -> str:
    """The function that executes the units of a planned experiment."""
    path = "exclusive" if setting["exclusive"] else "batched" if setting["batched"] else "single"
    return (setting.get("function") or name) + SUFFIX[path]


def entry_configs(entry: dict) -> dict[str, str]:
    """Per experiment the digest of its resolved settings and trials."""
    tuned = entry.get("tune") or {}
    return {
        name: digest(
            [
                setting["config"],
                setting.get("ranks") or setting["batched"],
                [t for t in entry["trials"] if t["experiment"] == name],
                *([tuned[name]] if name in tuned else []),
            ]
        )
        for name, setting in entry["experiments"].items()
    }


def write_rows(path: Path, document: dict) -> None:
    """Write `rows.json`: the head as indented JSON, then one row a line, so that a diff shows rows.

    A file that says the same but for the commit at which its trials were gathered is left as it is.  Rows of which some
    are missing never take the place of rows of which none is: ReproError.
    """
    missing = document["provenance"].get("missing")
    if missing and _complete(path):
        raise Failed(
            f"{path}: {missing} trials are not measured yet, and the file holds all rows of an earlier run; "
            "it is left as it is, finished trials are kept: run the same command again"
        )
    if _without_commit(path) == _comparable(document):
        return
    document = sealed(document)
    head = json.dumps({k: v for k, v in document.items() if k != "rows"}, indent=1, allow_nan=False, ensure_ascii=False)
    rows = ",\n".join("  " + json.dumps(row, allow_nan=False, ensure_ascii=False) for row in document["rows"])
    write_file(path, f'{head[:-2]},\n "rows": [\n{rows}\n ]\n}}\n')


def _complete(path: Path) -> bool:
    try:
        return not _read_rows(path)["provenance"].get("missing")
    except ReproError:
        return False


def _comparable(document: dict) -> dict:
    kept = {k: v for k, v in document["provenance"].items() if k not in ("commit", "dirty", "git", "checksum")}
    return {**document, "provenance": kept}


def _without_commit(path: Path) -> dict | None:
    try:
        return _comparable(json.loads(read_regular(path)))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def default_jobs(device: str) -> int:
    """Two processes on a CPU (fewer where there is one core), one on a GPU."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(2, cores) if device == "cpu" else 1


def read_plan(path: Path) -> dict:
    """A plan written by `repro plan --json`."""
    return plan_file.read_plan(path, "write it with `repro plan SLUG --profile gpu --json > plan.json`")


def positive(text: str) -> int:
    """A number of processes."""
    if not re.fullmatch(r"[0-9]{1,3}", text) or int(text) == 0:
        raise argparse.ArgumentTypeError(f"is {text!r}; write a whole number from 1 to 999")
    return int(text)


def minutes(text: str) -> float:
    """A time for `--minutes`."""
    if not re.fullmatch(r"[0-9]{1,6}([.][0-9]{1,6})?", text) or float(text) == 0:
        raise argparse.ArgumentTypeError(f"is {text!r}; write a number above 0, such as 30 or 0.5")
    return float(text)


class Arguments(argparse.ArgumentParser):
    """A parser whose refusal is one line, as that of the `repro` command."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{one_line(message)}; `{self.prog} --help` tells more\n")


def main(arguments: list[str] | None = None) -> int:
    """`python -m repro.run plan.json --out DIR`: measure a plan where only torch and numpy are installed."""
    parser = Arguments(prog="python -m repro.run", description=main.__doc__)
    parser.add_argument("plan", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="rows go to DIR/<slug>/<profile>.rows.json")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--jobs", type=positive)
    parser.add_argument("--force", action="store_true", help="measure again what the store holds")
    parser.add_argument("--minutes", type=minutes, help="stop after so many minutes with what is finished")
    options = parser.parse_args(arguments)
    state, bad = provenance.root() / ".repro", 0
    deadline = None if options.minutes is None else time.monotonic() + 60 * options.minutes
    try:
        for entry in read_plan(options.plan)["entries"]:
            device = resolve_device(options.device, entry["profile"])
            jobs = options.jobs or default_jobs(device)
            try:
                path = options.out / entry["paper"] / f"{entry['profile']}.rows.json"
                document = measure(
                    entry,
                    store=Store(state / "trials"),
                    state=state,
                    device=device,
                    jobs=jobs,
                    force=options.force,
                    results=path,
                    deadline=deadline,
                )
                write_rows(path, document)
            except ReproError as error:
                print(one_line(error), file=sys.stderr)
                bad = max(bad, error.exit_code)
    except ReproError as error:
        print(one_line(error), file=sys.stderr)
        return error.exit_code
    except OSError as error:  # of the place for the rows
        print(
            one_line(f"{error.filename or options.out}: {error.strerror or error}; write another --out"),
            file=sys.stderr,
        )
        return 2
    return bad


if __name__ == "__main__":
    sys.exit(main())
