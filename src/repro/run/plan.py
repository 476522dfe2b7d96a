"""From paper.yaml to the trials that a run makes: plain data, no torch, ready for another machine.

plan = {schema, digest, entries}, an entry being {paper, profile, registered, judged, experiments, tune?, trials}:

    experiments  {name: {module, function, exclusive, batched, ranks, arms, config}}
    trials       [{experiment, arm, seed, factors}], in seed-major order
    tune         {experiment: {factor, seeds, levels, start?, measure, better}}: on these seeds an arm's level is chosen
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product
from math import prod
from statistics import median

from repro.errors import ReproError
from repro.files.plan import written
from repro.run.execute import LARGEST_RANKS
from repro.run.tuning import TUNING_SEEDS
from repro.spec.model import Paper

LARGEST_PLAN = 200_000  # trials of one paper at one profile


def entry(paper: Paper, profile: str, seeds: int | None = None) -> dict:
    """The trials of one paper at one profile; `seeds` overrides how many the paper plans.

    Of a tuned experiment the tuning trials stand in the plan with every level that is tried at any rate; its judged
    trials lack the tuned factor, whose level the tuning rows choose (`measure.settled`, which adds what an arm climbs).
    """
    experiments, wanted, tuned = {}, [], tuning(paper, profile)
    _bounded(paper, profile, tuned, seeds)
    for name in paper.experiments_in(profile):
        setting = paper.settings(profile, name)
        experiments[name] = {
            "module": setting.module or f"repro.papers.{paper.slug}.experiment",
            "function": getattr(setting, "function", None) or name,
            "exclusive": setting.exclusive,
            "batched": setting.batched,
            "ranks": setting.ranks,
            "arms": list(setting.arms),
            "config": setting.config,
        }
        first = min(setting.seeds, default=0)
        main = list(range(first, first + seeds)) if seeds is not None else list(setting.seeds)
        tune = tuned.get(name)
        factors = {k: v for k, v in setting.factors.items() if tune is None or k != tune["factor"]}
        cells = [dict(zip(factors, row, strict=True)) for row in product(*factors.values())]
        for cell, arm in product(cells, setting.arms):
            own = {*main, *setting.offset_seeds.get(arm, ())}
            if tune is None:
                own |= set(setting.tuning_seeds)
            else:
                levels = product(tune.get("start", tune["levels"]), tune["seeds"])
                wanted += [_trial(name, arm, s, {**cell, tune["factor"]: level}) for level, s in levels]
                own -= set(tune["seeds"])  # an A/A control may have seeds that are measured at every level already
            wanted += [_trial(name, arm, seed, cell) for seed in sorted(own)]
    trials = sorted(wanted, key=lambda trial: trial["seed"])  # stable: seed-major, arms side by side
    made = {
        "paper": paper.slug,
        "profile": profile,
        "registered": paper.registration(profile),
        "judged": paper.registered_experiments(profile),
        "experiments": experiments,
        "trials": trials,
    }
    return {**made, "tune": tuned} if tuned else made


def _trial(experiment: str, arm: str, seed: int, factors: dict) -> dict:
    return {"experiment": experiment, "arm": arm, "seed": seed, "factors": dict(factors)}


def tuning(paper: Paper, profile: str) -> dict[str, dict]:
    """Per tuned experiment {factor, seeds, levels, start?, measure, better}, as the claims judged there ask for it.

    The experiments of a claim's controls are tuned alike.  ReproError where two claims ask for different tunings.
    """
    found: dict[str, dict] = {}
    for claim_id in paper.judged_in(profile):
        claim, rules = paper.claims[claim_id], paper.rules(claim_id, profile)
        tune = getattr(claim, "tune", None)
        if tune is None or isinstance(tune, str):  # `shared`: one recipe for all arms is the paper's point
            continue
        measure = tune.by or rules[0].measure
        for name in dict.fromkeys([claim.experiment, *(c.experiment for c in claim.controls if c.experiment)]):
            setting = paper.settings(profile, name) if name in paper.experiments_in(profile) else None
            if setting is None or tune.factor not in setting.factors:
                continue
            made = {
                "factor": tune.factor,
                "seeds": [TUNING_SEEDS + n for n in range(tune.seeds)],
                "levels": list(setting.factors[tune.factor]),
                **({"start": list(tune.start)} if tune.start else {}),
                "measure": measure,
                "better": paper.measures[measure].better,
            }
            if found.setdefault(name, made) != made:
                raise ReproError(
                    f"papers/{paper.slug}/paper.yaml: claims.{claim_id}.tune: experiment '{name}' is tuned otherwise "
                    "by another claim; write the same factor, seeds and measure"
                )
    return found


def _bounded(paper: Paper, profile: str, tuned: dict[str, dict], seeds: int | None) -> None:
    """Refuse a plan of more trials, or of more processes for a trial, than anyone means, before it is spelled out."""
    for name in paper.experiments_in(profile):
        setting = paper.settings(profile, name)
        where = f"papers/{paper.slug}/paper.yaml: profiles.{profile}.{name}"
        if (setting.ranks or 1) > LARGEST_RANKS:
            raise ReproError(f"{where}.ranks: {setting.ranks} processes for one trial; write at most {LARGEST_RANKS}")
        cells = prod(map(len, setting.factors.values())) * len(setting.arms)
        offset = max(map(len, setting.offset_seeds.values()), default=0)
        count = (len(setting.seeds) if seeds is None else seeds) + len(setting.tuning_seeds) + offset
        count += len(tuned[name]["seeds"]) if name in tuned else 0
        if cells * count > LARGEST_PLAN:
            raise ReproError(
                f"{where}: {cells * count} trials ({cells} combinations of arms and levels, {count} seeds); "
                f"write fewer levels, arms or seeds (at most {LARGEST_PLAN} trials)"
            )


def make(papers: list[Paper], profile: str, seeds: int | None = None) -> dict:
    """The plan of several papers at one profile."""
    return written({"entries": [entry(paper, profile, seeds) for paper in papers]})


def seconds_of(trials: list[dict], rows: list[dict]) -> float | None:
    """Expected seconds of one process, from the committed rows of the same arms; None where there are none."""
    known: dict[tuple, list[float]] = {}
    for row in rows:
        levels = row["factors"].items()
        for part in {frozenset(levels), *(frozenset(pair for pair in levels if pair[0] != k) for k, _ in levels)}:
            known.setdefault((row["experiment"], row["arm"], part), []).append(row["seconds"])
    costs = [known.get((t["experiment"], t["arm"], frozenset(t["factors"].items()))) for t in trials]
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
class Rate:
    """What a large GPU does, as far as a cost is estimated from it; stated, not measured here."""

    flop_per_second: float
    step_seconds: float  # that a step takes however small its model, launching its kernels

    def __str__(self) -> str:
        return f"{self.flop_per_second / 1e12:.0f} TFLOP/s and at least {1e3 * self.step_seconds:.0f} ms a step"


GPU = Rate(flop_per_second=20e12, step_seconds=5e-3)  # float32 on an H100 or H200 at a third of its peak


@dataclass(frozen=True)
class Cost:
    """What an experiment of a plan costs: seconds, None where no rate is known, and where the rate comes from."""

    experiment: str
    trials: int
    seconds: float | None
    basis: str
    of: str = "cpu"  # whose seconds these are: those of a process on a CPU, or of a GPU


def costs(
    paper: Paper,
    profile: str,
    rows: Callable[[str], list[dict]],
    seeds: int | None = None,
    rehearsed: Mapping[str, Mapping[str, Mapping[str, float]]] | None = None,
) -> list[Cost]:
    """The costs of a profile's experiments from measured rates: its own rows(profile), else those of a smaller profile.

    A rate from elsewhere is multiplied by the ratio of each setting that work is proportional to (LINEAR), or to whose
    square it is (SQUARED); the basis says by how much.  Rates of a CPU say nothing of a GPU: without rows of their own,
    the profiles gpu and paper take the floating-point operations that `repro rehearse` counted, experiment -> arm ->
    {"flop", "steps", "seconds"} of one trial, at the rate of GPU.
    """
    planned, found = entry(paper, profile, seeds), []
    of = "gpu" if profile in ("gpu", "paper") else "cpu"
    for name, setting in planned["experiments"].items():
        trials = [t for t in planned["trials"] if t["experiment"] == name]
        own = seconds_of(trials, rows(profile))
        if own is not None:
            found.append(Cost(name, len(trials), own, "measured", of))
        elif of == "gpu":
            found.append(_rehearsed_cost(paper.slug, profile, name, trials, (rehearsed or {}).get(name, {})))
        else:
            found.append(_scaled_cost(paper, profile, name, trials, setting["config"], rows))
    return found


def _rehearsed_cost(slug: str, profile: str, name: str, trials: list[dict], arms: Mapping[str, Mapping]) -> Cost:
    wanted = {t["arm"] for t in trials}
    if not wanted <= arms.keys():
        return Cost(name, len(trials), None, f"unknown; run `repro rehearse {slug} --profile {profile}`", "gpu")
    each = {
        a: max(arms[a]["flop"] / GPU.flop_per_second, arms[a]["steps"] * GPU.step_seconds, arms[a]["seconds"])
        for a in wanted
    }
    total = sum(each[t["arm"]] for t in trials)
    flop = sum(arms[t["arm"]]["flop"] for t in trials)
    return Cost(name, len(trials), total, f"{flop:.1e} FLOP, at {GPU}", "gpu")


def _scaled_cost(
    paper: Paper, profile: str, name: str, trials: list[dict], config: dict, rows: Callable[[str], list[dict]]
) -> Cost:
    smaller = [p for p in ("long", "cpu", "smoke") if p != profile and name in paper.experiments_in(p)]
    for other in smaller:
        known = [row["seconds"] for row in rows(other) if row["experiment"] == name]
        if known:
            shape = _shape(config, paper.settings(other, name).config)
            factor = prod(ratio for _, ratio in shape)
            told = " x ".join([other, *(f"{key} {ratio:.3g}" for key, ratio in shape)])
            return Cost(name, len(trials), len(trials) * factor * sum(known) / len(known), f"from {told}")
    return Cost(name, len(trials), None, "no rows to judge by")


def _shape(wanted: dict, known: dict) -> list[tuple[str, float]]:
    """By how much work grows from one configuration to another: (setting, factor), factors of 1 left out."""
    found = []
    for key, power in [*((key, 1) for key in LINEAR), *((key, 2) for key in SQUARED)]:
        one, other = wanted.get(key), known.get(key)
        if all(type(value) in (int, float) and value > 0 for value in (one, other)) and one != other:
            found.append((key, (one / other) ** power))
    return found
