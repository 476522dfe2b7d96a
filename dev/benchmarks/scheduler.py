"""What the suite adds to a trial: 10,000 trials that do nothing, through the store and an engine.

    python dev/benchmarks/scheduler.py [--trials 10000] [--engine local] [--jobs 2]

Prints seconds per phase, milliseconds per trial, and the growth of this process's memory from the first tenth of the
trials to the end (flat: it does not grow with their number beyond their rows).
"""

import argparse
import resource
import tempfile
import time
from pathlib import Path

from repro.run import engines
from repro.run import measure as run
from repro.store import Store

PER_LEVEL = 100  # seeds of one level of the factor


def entry(trials: int) -> dict:
    """A plan of so many trials of `repro.experiments.noop`."""
    experiment = {
        "module": "repro.experiments.noop",
        "exclusive": False,
        "batched": False,
        "arms": ["noop"],
        "config": {},
    }
    wanted = [
        {"experiment": "noop", "arm": "noop", "seed": i % PER_LEVEL, "factors": {"level": i // PER_LEVEL}}
        for i in range(trials)
    ]
    return {"paper": "noop", "profile": "cpu", "registered": "", "experiments": {"noop": experiment}, "trials": wanted}


def megabytes() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6


class Watch(run.Progress):
    """Says nothing; remembers memory after a tenth of the trials and at the end, and when the first trial ended."""

    def __init__(self) -> None:
        super().__init__(say=lambda text: None)
        self.marks: list[tuple[float, float]] = []

    def unit(self, unit: dict, answer: dict, finished: int, total: int) -> None:
        if "error" in answer:
            raise SystemExit(answer["traceback"])
        if finished in (1, total // 10, total):
            self.marks.append((time.perf_counter(), megabytes()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--engine", default="local")
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    plan = entry(options.trials)
    with tempfile.TemporaryDirectory() as folder, engines.chosen(options.engine, "cpu", options.jobs) as where:
        root = Path(folder)

        def measure() -> tuple[float, Watch]:
            watch, began = Watch(), time.perf_counter()
            document = run.measure(
                plan, store=Store(root / "trials"), state=root, device="cpu", jobs=options.jobs, progress=watch, **where
            )
            assert len(document["rows"]) == options.trials
            run.write_rows(root / "rows.json", document)
            return time.perf_counter() - began, watch

        cold, watch = measure()
        warm, _ = measure()
        (first, _), (_, early), (last, late) = watch.marks
    print(f"{options.trials} trials, engine {options.engine}, {options.jobs} jobs")
    print(
        f"{'measured':<12}{cold:7.1f} s in all, {1000 * cold / options.trials:.2f} ms a trial; {1000 * (last - first) / options.trials:.2f} ms once workers are up"  # noqa: E501
    )
    print(f"{'remembered':<12}{warm:7.1f} s in all, {1000 * warm / options.trials:.2f} ms a trial")
    print(
        f"{'memory':<12}{early:7.0f} MB after a tenth, {late:.0f} MB at the end ({1000 * (late - early) / (0.9 * options.trials):.1f} kB a trial)"  # noqa: E501
    )


if __name__ == "__main__":
    main()
