"""From paper.yaml to the trials that a run makes: plain data, no torch, ready for another machine.

plan = {schema, entries: [{paper, profile, registered, experiments: {name: {module, exclusive, batched, ranks, arms, config}},
trials: [{experiment, arm, seed, factors}]}]}, the trials in seed-major order.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from math import prod
from statistics import median

from repro.files.paths import JUDGED, SCHEMA
from repro.spec.model import Paper


def entry(paper: Paper, profile: str, seeds: int | None = None) -> dict:
    """The trials of one paper at one profile; `seeds` overrides how many the paper plans."""
    experiments, wanted = {}, []
    for name in paper.experiments_in(profile):
        setting = paper.settings(profile, name)
        experiments[name] = {
            "module": setting.module or f"repro.papers.{paper.slug}.experiment",
            "exclusive": setting.exclusive,
            "batched": setting.batched,
            "ranks": setting.ranks,
            "arms": list(setting.arms),
            "config": setting.config,
        }
        main = list(range(seeds)) if seeds is not None else list(setting.seeds)
        levels = [dict(zip(setting.factors, row, strict=True)) for row in product(*setting.factors.values())]
        for factors, arm in product(levels, setting.arms):
            own = sorted({*main, *setting.tuning_seeds, *setting.offset_seeds.get(arm, ())})
            wanted += [{"experiment": name, "arm": arm, "seed": seed, "factors": factors} for seed in own]
    trials = sorted(wanted, key=lambda trial: trial["seed"])  # stable: seed-major, arms side by side
    return {
        "paper": paper.slug,
        "profile": profile,
        "registered": paper.registration(profile),
        "experiments": experiments,
        "trials": trials,
    }


def make(papers: list[Paper], profile: str, seeds: int | None = None) -> dict:
    """The plan of several papers at one profile."""
    return {"schema": SCHEMA, "entries": [entry(paper, profile, seeds) for paper in papers]}


def seconds(trials: list[dict], rows: list[dict]) -> float | None:
    """Expected seconds of one process, from the committed rows of the same arms; None where there are none."""
    known: dict[tuple, list[float]] = {}
    for row in rows:
        known.setdefault((row["experiment"], row["arm"], tuple(sorted(row["factors"].items()))), []).append(
            row["seconds"]
        )
    costs = [known.get((t["experiment"], t["arm"], tuple(sorted(t["factors"].items())))) for t in trials]
    return sum(median(cost) for cost in costs) if costs and all(costs) else None


LINEAR = (
    "steps",
    "tuning_steps",
    "epochs",
    "batch",
    "examples",
    "draws",
    "rows",
    "cases",
    "images",
    "context",
    "depth",
)
SQUARED = ("width", "dim")


@dataclass(frozen=True)
class Cost:
    """What an experiment of a plan costs: seconds of one process, None where no rate is known, and where the rate comes from."""

    experiment: str
    trials: int
    seconds: float | None
    basis: str


def costs(paper: Paper, profile: str, rows: Callable[[str], list[dict]], seeds: int | None = None) -> list[Cost]:
    """The costs of a profile's experiments from measured rates: its own rows(profile), else those of a smaller profile.

    A rate from elsewhere is multiplied by the ratio of each setting that work is proportional to (LINEAR), or to whose
    square it is (SQUARED); the basis says by how much.  It is that of the device on which those rows were measured.
    """
    planned, found = entry(paper, profile, seeds), []
    for name, setting in planned["experiments"].items():
        trials = [t for t in planned["trials"] if t["experiment"] == name]
        own = seconds(trials, rows(profile))
        if own is not None:
            found.append(Cost(name, len(trials), own, "measured"))
            continue
        for other in (p for p in reversed(JUDGED) if p != profile and name in paper.experiments_in(p)):
            known = [row["seconds"] for row in rows(other) if row["experiment"] == name]
            if known:
                shape = _shape(setting["config"], paper.settings(other, name).config)
                factor = prod(ratio for _, ratio in shape)
                told = " x ".join([other, *(f"{key} {ratio:.3g}" for key, ratio in shape)])
                found.append(Cost(name, len(trials), len(trials) * factor * sum(known) / len(known), f"from {told}"))
                break
        else:
            found.append(Cost(name, len(trials), None, "no rows to judge by"))
    return found


def _shape(wanted: dict, known: dict) -> list[tuple[str, float]]:
    """By how much work grows from one configuration to another: (setting, factor), factors of 1 left out."""
    found = []
    for key, power in [*((key, 1) for key in LINEAR), *((key, 2) for key in SQUARED)]:
        one, other = wanted.get(key), known.get(key)
        if all(type(value) in (int, float) and value > 0 for value in (one, other)) and one != other:
            found.append((key, (one / other) ** power))
    return found
