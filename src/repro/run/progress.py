"""How a run shows itself: a bar on a terminal, plain lines elsewhere, one JSON object a line for programs."""

import json
import sys
from dataclasses import replace

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from repro.errors import ReproError
from repro.files.paths import row_key
from repro.run import measure as run


class Forming:
    """The verdict of the headline as it would be if the run had planned only the seeds that are complete so far."""

    def __init__(self, entry: dict):
        from repro.spec import load as paper

        self.entry, self.profile, self.claim, self.rows = entry, entry["profile"], None, {}
        try:
            self.paper = paper.load(entry["paper"])
            self.claim = self.paper.headline_for(self.profile)
        except ReproError:  # a track of the arena, a plan of another checkout
            return
        if self.claim is not None:
            claim = self.paper.claims[self.claim]
            self.places = {place for place in (claim.experiment, *(c.experiment for c in claim.controls)) if place}
            self.planned = [t for t in entry["trials"] if t["experiment"] in self.places]

    def add(self, rows: list[dict]) -> None:
        for row in rows:
            self.rows[row_key(row)] = row

    def told(self) -> str:
        """`headline: 0.98 [0.95, 1.01], reproduced at 3 seeds`, or nothing before three seeds are complete."""
        if self.claim is None:
            return ""
        planned = {**self.entry, "trials": self.planned}
        settled = run.settled(planned, self.rows.values())
        if run.missing_trials(planned, settled, settled):  # some arm has no level of its tuned factor yet
            return ""
        missing = {t["seed"] for t in settled if row_key(t) not in self.rows}
        seeds = sorted({t["seed"] for t in self.planned if t["seed"] < 1000})
        complete = next((i for i, seed in enumerate(seeds) if seed in missing), len(seeds))
        if complete < 3 or any(seed >= 1000 for seed in missing):
            return ""
        from repro import judge
        from repro.words import number

        settings = dict(self.paper.profiles[self.profile])
        fewer = {
            name: {**settings[name], "seeds": complete} for name in self.places if isinstance(settings.get(name), dict)
        }
        short = replace(self.paper, profiles={**self.paper.profiles, self.profile: {**settings, **fewer}})
        found = judge.judge_claim(short, self.profile, self.claim, list(self.rows.values()))
        low, high = found.get("interval") or (None, None)
        span = "" if low is None and high is None else f" [{number(low)}, {number(high)}]"
        value = "" if found.get("estimate") is None else f"{number(found['estimate'])}{span}, "
        return f"{self.claim}: {value}{found['state'].replace('_', ' ')} at {complete} seeds"


def last_measure(answer: dict) -> str:
    """`val_nats 1.62`: the first number of what has just ended."""
    for result in answer.get("results", ()):
        for name, value in result["measures"].items():
            if isinstance(value, int | float):
                return f"{name} {value:.4g}"
    return ""


class Bar(run.Progress):
    """A line that counts trials, with the time left and the last result; a line for each trial that trains; a verdict.

    The verdict is that of the headline as it forms.  What went wrong is printed above them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bar: Progress | None = None
        self.running: dict[str, TaskID] = {}

    def start(self, entry: dict, total: int, missing: int) -> None:
        super().start(entry, total, missing)
        self.forming = Forming(entry)
        if missing:
            self.bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=Console(),
                transient=True,
            )
            self.task = self.bar.add_task(entry["paper"], total=missing)
            self.verdict = self.bar.add_task("", total=None, visible=False)
            self.bar.start()

    def stored(self, rows: list[dict]) -> None:
        self.forming.add(rows)

    def heard(self, unit: dict, at: dict) -> None:
        if self.bar is None:
            return
        key = unit["trials"][0]["key"]
        if key not in self.running:
            self.running[key] = self.bar.add_task("", total=at["steps"])
        told = f"  {run.name_of(unit)}: loss {at['loss']:.4g}, step"
        self.bar.update(self.running[key], completed=at["step"], total=at["steps"], description=told)

    def unit(self, unit: dict, answer: dict, finished: int, total: int) -> None:
        bar, trial = self.bar, unit["trials"][0]
        if bar is None:
            return
        if trial["key"] in self.running:
            bar.remove_task(self.running.pop(trial["key"]))
        told = f"{trial['experiment']} {trial['arm']} {last_measure(answer)}".rstrip()
        bar.update(self.task, advance=len(unit["trials"]), description=told)
        if "results" in answer:
            self.forming.add([{**t, **r} for t, r in zip(unit["trials"], answer["results"], strict=True)])
            if forming := self.forming.told():
                bar.update(self.verdict, description=forming, visible=True)
        if "error" in answer or any(result["status"] != "ok" for result in answer["results"]):
            self.say, kept = (lambda text: bar.console.print(text, markup=False, highlight=False)), self.say
            super().unit(unit, answer, finished, total)
            self.say = kept

    def close(self) -> None:
        if self.bar is not None:
            self.bar.stop()


class Lines(run.Progress):
    """One JSON object a line: {"event": "start" | "unit" | "end", ...}."""

    def emit(self, **values: object) -> None:
        self.say(json.dumps(values, allow_nan=False, ensure_ascii=False))

    def start(self, entry: dict, total: int, missing: int) -> None:
        self.emit(event="start", paper=entry["paper"], profile=entry["profile"], trials=total, missing=missing)

    def unit(self, unit: dict, answer: dict, finished: int, total: int) -> None:
        trials = [{k: t[k] for k in ("experiment", "arm", "seed", "factors", "key")} for t in unit["trials"]]
        self.emit(event="unit", finished=finished, units=total, trials=trials, **answer)

    def end(self, entry: dict, seconds: float) -> None:
        self.emit(event="end", paper=entry["paper"], profile=entry["profile"], seconds=round(seconds, 3))


def choose(quiet: bool = False, as_json: bool = False) -> run.Progress:
    """Nothing, JSON lines, or the bar where standard output is a terminal."""
    if quiet:
        return run.Progress(say=lambda text: None)
    if as_json:
        return Lines()
    return Bar() if sys.stdout.isatty() else run.Progress()
