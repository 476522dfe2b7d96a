"""`repro tune`: the tuning seeds of an experiment, and the level that they choose for each arm."""

import sys
from pathlib import Path
from typing import Any

from repro.errors import Failed
from repro.run import measure, plan, progress
from repro.run.tuning import Invalid
from repro.spec.load import load_params
from repro.spec.model import Paper
from repro.store import Store
from repro.words import levels, number

HEAD = ["paper", "experiment", "arm", "at", "scores", "chosen"]


def tune(paper: Paper, profile: str, root: Path, device: str | None, jobs: int | None, quiet: bool) -> list[dict]:
    """Measure the tuning trials of a paper at a profile; a line for each arm and cell of the other factors.

    The trials are those that `repro run` measures first: it finds them in the store.
    """
    entry = plan.entry(paper, profile, load_params(root).seeds)
    tuned = entry.get("tune") or {}
    trials = [t for t in entry["trials"] if t["experiment"] in tuned and t["seed"] in tuned[t["experiment"]]["seeds"]]
    if not trials:
        return []
    where = measure.resolve_device(device or load_params(root).device, profile)
    shown = measure.Progress(say=lambda text: print(text, file=sys.stderr)) if quiet else progress.choose()
    document = measure.measure(
        {**entry, "trials": trials},
        store=Store(root / ".repro" / "trials"),
        state=root / ".repro",
        device=where,
        jobs=jobs or measure.default_jobs(where),
        progress=shown,
    )
    lines, seen = [], set()
    for trial in trials:
        factor = tuned[trial["experiment"]]["factor"]
        cell = {name: level for name, level in trial["factors"].items() if name != factor}
        place = trial["experiment"], trial["arm"], frozenset(cell.items())
        if place in seen:
            continue
        seen.add(place)
        try:
            chosen = measure.chosen_level(entry, document["rows"], *place[:2], cell)
        except Invalid as error:
            raise Failed(f"{paper.slug}: {error} Run the same command again") from None
        lines.append(
            {
                "paper": paper.slug,
                "experiment": place[0],
                "arm": place[1],
                "at": cell,
                "factor": factor,
                "scores": [[level, score] for level, score in chosen.scores.items()],
                "level": chosen.level,
                "edge": chosen.edge,
            }
        )
    return lines


def line(one: dict[str, Any]) -> list[str]:
    """A line as people read it."""
    scores = ", ".join(f"{level}: {'diverged' if score is None else number(score)}" for level, score in one["scores"])
    edge = ", the edge of the grid" if one["edge"] else ""
    chosen = "none: every level diverged" if one["level"] is None else f"{one['factor']} {one['level']}{edge}"
    return [one["paper"], one["experiment"], one["arm"], levels(one["at"]), scores, chosen]
