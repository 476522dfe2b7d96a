"""From paper.yaml to the trials that a run makes: plain data, no torch, ready for another machine.

plan = {schema, entries: [{paper, profile, registered, experiments: {name: {module, exclusive, batched, ranks, arms, config}},
trials: [{experiment, arm, seed, factors}]}]}, the trials in seed-major order.
"""

from itertools import product
from statistics import median

from repro.paper import Paper

SCHEMA = 1


def entry(paper: Paper, profile: str, seeds: int | None = None) -> dict:
    """The trials of one paper at one profile; `seeds` overrides how many the paper plans."""
    experiments, wanted = {}, []
    for name in paper.experiments_in(profile):
        setting = paper.settings(profile, name)
        experiments[name] = {
            "module": setting.module or f"repro.papers.{paper.slug}.experiment", "exclusive": setting.exclusive,
            "batched": setting.batched, "ranks": setting.ranks, "arms": list(setting.arms), "config": setting.config,
        }  # fmt: skip
        main = list(range(seeds)) if seeds is not None else list(setting.seeds)
        levels = [dict(zip(setting.factors, row, strict=True)) for row in product(*setting.factors.values())]
        for factors, arm in product(levels, setting.arms):
            own = sorted({*main, *setting.tuning_seeds, *setting.offset_seeds.get(arm, ())})
            wanted += [{"experiment": name, "arm": arm, "seed": seed, "factors": factors} for seed in own]
    trials = sorted(wanted, key=lambda trial: trial["seed"])  # stable: seed-major, arms side by side
    return {"paper": paper.slug, "profile": profile, "registered": paper.registration(profile),
            "experiments": experiments, "trials": trials}  # fmt: skip


def make(papers: list[Paper], profile: str, seeds: int | None = None) -> dict:
    """The plan of several papers at one profile."""
    return {"schema": SCHEMA, "entries": [entry(paper, profile, seeds) for paper in papers]}


def seconds(trials: list[dict], rows: list[dict]) -> float | None:
    """Expected seconds of one process, from the committed rows of the same arms; None where there are none."""
    known: dict[tuple, list[float]] = {}
    for row in rows:
        known.setdefault((row["experiment"], row["arm"], tuple(sorted(row["factors"].items()))), []).append(row["seconds"])
    costs = [known.get((t["experiment"], t["arm"], tuple(sorted(t["factors"].items())))) for t in trials]
    return sum(median(cost) for cost in costs) if costs and all(costs) else None
