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
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

from repro.errors import Failed, ReproError, one_line
from repro.files import plan as plan_file
from repro.files.paths import SCHEMA, row_key
from repro.run import provenance
from repro.run.engines import local
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
    """`cpu`, `cuda` or `cuda:N`; `auto` is the CPU for the profiles smoke and cpu, else the first GPU.

    Whether there is one is asked only where the work is to be done `here`.
    """
    if name == "auto":
        name = "cpu" if profile in ("smoke", "cpu") else "cuda"
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


def units_of(entry: dict, device: str, place: dict[str, str] | None = None) -> list[dict]:
    """The units of work of one planned paper, in seed-major order, each trial with its key.

    place: class and model of the device that will measure, where it is not one of this machine.
    """
    groups: dict[tuple, dict] = {}
    for trial in entry["trials"]:
        setting = entry["experiments"][trial["experiment"]]
        path = "exclusive" if setting["exclusive"] else "batched" if setting["batched"] else "single"
        together = {"single": (trial["arm"], trial["seed"]), "batched": trial["arm"], "exclusive": trial["seed"]}[path]
        group = (trial["experiment"], json.dumps(trial["factors"], sort_keys=True), together)
        unit = groups.setdefault(
            group,
            {
                "experiment": trial["experiment"],
                "module": setting["module"],
                "config": setting["config"],
                "where": f"papers/{entry['paper']}/paper.yaml: profiles.{entry['profile']}.{trial['experiment']}",
                "path": path,
                "exclusive": path == "exclusive",
                "ranks": setting.get("ranks"),
                "device": device,
                "trials": [],
            },
        )
        unit["trials"].append(trial)
    source = functools.cache(provenance.source_digest)  # units share their sources
    for unit in groups.values():
        _add_keys(unit, place or provenance.place(device), source)
    return list(groups.values())


def _add_keys(unit: dict, place: dict[str, str], source: Callable[..., str]) -> None:
    """What determines a row, digested; data are pinned by sha256 in the modules that the source digest covers."""
    trials = unit["trials"]
    everyone = {
        "single": unit["ranks"],
        "batched": [t["seed"] for t in trials],
        "exclusive": [t["arm"] for t in trials],
    }
    keyed = []
    for trial in trials:
        arms = everyone["exclusive"] if unit["exclusive"] else [trial["arm"]]
        named = set().union(*(provenance.arm_modules(unit["module"], arm) for arm in arms))
        keyed.append(
            {
                **trial,
                "key": digest(
                    {
                        "experiment": [unit["module"], unit["experiment"]],
                        "arm": trial["arm"],
                        "seed": trial["seed"],
                        "config": {**unit["config"], **trial["factors"]},
                        "path": [unit["path"], everyone[unit["path"]]],
                        "source": source(unit["module"], *sorted(named)),
                        "device": place["model" if unit["exclusive"] else "class"],
                        "threads": 1,
                        "torch": provenance.versions()["torch"],
                    }
                ),
            }
        )
    unit["trials"] = keyed


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
) -> dict:
    """All rows of one planned paper, as the document that `results/<profile>.rows.json` holds.

    engine: where the units run, a function like `repro.run.engines.local.run_units` (the default); place: as in `units_of`.
    """
    began, progress, place = time.perf_counter(), progress or Progress(), place or provenance.place(device)
    store.sweep()
    units = units_of(entry, device, place)
    known = {t["key"]: store.get(t["key"]) for unit in units for t in unit["trials"]}
    missing = [unit for unit in units if force or not all(_final(known[t["key"]]) for t in unit["trials"])]
    for unit in missing:
        if unit["ranks"]:  # its checkpoints outlive a killed run
            unit["scratch"] = str(state / "ranks" / unit["trials"][0]["key"].removeprefix("sha256:"))
    total = len(entry["trials"])
    progress.start(entry, total, sum(len(u["trials"]) for u in missing))
    asked = {t["key"] for unit in missing for t in unit["trials"]}
    progress.stored([record["row"] for key, record in known.items() if record is not None and key not in asked])
    failures, finished = [], [0]

    def done(unit: dict, answer: dict) -> None:
        finished[0] += 1
        progress.unit(unit, answer, finished[0], len(missing))
        if "error" in answer:
            failures.append((unit, answer))
            return
        for trial, result in zip(unit["trials"], answer["results"], strict=True):
            body = {
                "row": {
                    "experiment": trial["experiment"],
                    "arm": trial["arm"],
                    "seed": trial["seed"],
                    "factors": trial["factors"],
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

    try:
        (engine or local.run_units)(missing, jobs=jobs, state=state, done=done, heard=progress.heard)
    finally:
        progress.close()
    if failures:
        raise _failed(entry, failures, state)
    document = _document(entry, units, store, device, place)
    progress.end(entry, time.perf_counter() - began)
    return document


def _final(record: dict | None) -> bool:
    """Whether a record counts; a measurement that failed its own check does not: the next run tries it again."""
    return record is not None and record["row"]["status"] != "invalid"


def _failed(entry: dict, failures: list[tuple[dict, dict]], state: Path) -> Failed:
    log = state / "logs" / f"{entry['paper']}-{entry['profile']}.log"
    write_file(log, "\n".join(answer["traceback"] for _, answer in failures))
    unit, answer = failures[0]
    trial = unit["trials"][0]
    return Failed(
        f"{len(failures)} of {entry['paper']}'s trials failed, first {trial['experiment']} {trial['arm']} seed {trial['seed']}: "
        f"{answer['error']} (tracebacks: {log}); finished trials are kept, rows were not written"
    )


def _document(entry: dict, units: list[dict], store: Store, device: str, place: dict[str, str]) -> dict:
    planned = {row_key(trial): trial["key"] for unit in units for trial in unit["trials"]}
    keys = [planned[row_key(trial)] for trial in entry["trials"]]
    records = [store.get(key) for key in keys]
    rows = [record["row"] for record in records]
    # Rows measured under another registration keep it, so that a rule changed since then shows as post hoc.
    earlier = {r["registered"].get(entry["paper"], entry["registered"]) for r in records} - {entry["registered"]}
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
            "sources": entry_sources(entry),
            "config": entry_configs(entry),
            "trials": keys,
            "notes": list(dict.fromkeys(note for r in records for note in r.get("notes", ()))),
        },
        "registered": min(earlier) if earlier else entry["registered"],
        "rows": rows,
    }


def entry_sources(entry: dict) -> dict[str, str]:
    """Per experiment the digest of the source that its rows depend on."""
    return {
        name: provenance.source_digest(*provenance.experiment_modules(entry["paper"], setting))
        for name, setting in entry["experiments"].items()
    }


def entry_configs(entry: dict) -> dict[str, str]:
    """Per experiment the digest of its resolved settings and trials."""
    return {
        name: digest(
            [
                setting["config"],
                setting.get("ranks") or setting["batched"],
                [t for t in entry["trials"] if t["experiment"] == name],
            ]
        )
        for name, setting in entry["experiments"].items()
    }


def write_rows(path: Path, document: dict) -> None:
    """Write `rows.json`: the head as indented JSON, then one row a line, so that a diff shows rows.

    A file that says the same but for the commit at which its trials were gathered is left as it is.
    """
    if _without_commit(path) == _comparable(document):
        return
    document = sealed(document)
    head = json.dumps({k: v for k, v in document.items() if k != "rows"}, indent=1, allow_nan=False, ensure_ascii=False)
    rows = ",\n".join("  " + json.dumps(row, allow_nan=False, ensure_ascii=False) for row in document["rows"])
    write_file(path, f'{head[:-2]},\n "rows": [\n{rows}\n ]\n}}\n')


def _comparable(document: dict) -> dict:
    kept = {k: v for k, v in document["provenance"].items() if k not in ("commit", "dirty", "checksum")}
    return {**document, "provenance": kept}


def _without_commit(path: Path) -> dict | None:
    try:
        return _comparable(json.loads(path.read_bytes()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
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
    options = parser.parse_args(arguments)
    state, bad = provenance.root() / ".repro", 0
    try:
        for entry in read_plan(options.plan)["entries"]:
            device = resolve_device(options.device, entry["profile"])
            jobs = options.jobs or default_jobs(device)
            try:
                document = measure(
                    entry, store=Store(state / "trials"), state=state, device=device, jobs=jobs, force=options.force
                )
                write_rows(options.out / entry["paper"] / f"{entry['profile']}.rows.json", document)
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
