"""One protocol for all: every drop-in method of the suite in the same model, tuned and trained with the same budget.

Methods are found in `provides:` of every paper.yaml; nothing lists them.  A track (arena.yaml) first tries a grid of
learning rates on tuning seeds, in rungs: the best few of each go on to more steps.  Then each method trains at its best
learning rate on the judged seeds, and again with one setting changed (depth, batch).  Trials lie in the same store as
those of the papers.  What comes of it is one table per track:

    rank        [best, worst] that the seeds allow: 1 + the methods that are significantly better, and the number of
                methods less those significantly worse (paired t-tests by seed over all pairs, Holm's correction)
    to the best mean difference from the best method, its interval simultaneous over all methods (Bonferroni)
    diverged    a run that diverged, or ended above the loss of chance, counts as chance; the former are counted
    controls    a network without a norm, and a broken norm; where one of them is not significantly worse than the
                best method and than the unchanged model, the track does not discriminate there and says so
"""

import difflib
import json
import math
import sys
from collections.abc import Iterable
from pathlib import Path
from statistics import fmean, median_high, stdev
from typing import Any, get_type_hints

from repro.errors import ReproError, one_line
from repro.files import arena as arena_files
from repro.files.paths import PROFILES, SCHEMA
from repro.files.strict import told, unlike
from repro.run import measure as run
from repro.run import provenance
from repro.spec import load as paper
from repro.store import Store, digest, rows_digest, write_file

LEVEL = 0.95
TUNING = 1000  # the first tuning seed
EXPERIMENT = "repro.experiments.arena"
BASE = "base"  # the model with torch's own layers
CONTROLS = ("norm:control.identity", "norm:control.broken")
Trial = dict[str, Any]


# --- what takes part -------------------------------------------------------------------------------------------------


def _file(root: Path) -> Any:
    path = root / "arena.yaml"
    if not path.is_file():
        raise ReproError(f"{path}: no such file; run from a checkout of the suite")
    from repro.spec.yaml import YamlFile

    return YamlFile(path, "arena.yaml", path.read_bytes())


def tracks(root: Path) -> dict[str, dict]:
    """`arena.yaml`: the tracks with their settings."""
    return arena_files.read_tracks(_file(root))


def track_of(root: Path, name: str, profile: str) -> dict:
    """The settings of a track, those of the profile among them."""
    known = tracks(root)
    if name not in known:
        raise ReproError(f"--track {name}: no such track; write one of {', '.join(known)}")
    if profile not in known[name]:
        have = [key for key in PROFILES if key in known[name]]
        raise ReproError(f"arena.yaml: track {name} has no profile {profile}; it has {', '.join(have) or 'none'}")
    one = known[name]
    return {**{k: v for k, v in one.items() if k not in PROFILES}, **one[profile]}


def entrants(track: str) -> tuple[list[str], dict[str, str]]:
    """The arms of a track, controls last; and the methods that do not fit it, each with the reason."""
    from repro.experiments.arena import SLOTS, misfit

    arms, out = [], {}
    for slug in paper.slugs():
        for one in paper.load(slug).provides:
            if one.slot in SLOTS[track]:
                arm = f"{one.slot}:{slug}.{one.name}"
                reason = misfit(track, arm)
                if reason is None:
                    arms.append(arm)
                else:
                    out[arm] = reason
    return [BASE, *arms, *CONTROLS], out


# --- what is run -----------------------------------------------------------------------------------------------------


def plan(root: Path, track: str, profile: str) -> dict:
    """Plain data from which `measure` works, also on a machine that has torch and numpy alone."""
    from repro.experiments.arena import SLOTS, Track

    settings = track_of(root, track, profile)
    if track not in SLOTS:
        _file(root).fail((track,), f"is no model of the arena; write one of {', '.join(SLOTS)}")
    kinds = get_type_hints(Track)
    for name, value in settings["settings"].items():
        where = (track, profile, "settings", name)
        if name not in kinds:
            near = difflib.get_close_matches(name, kinds, 1)
            hint = f"did you mean '{near[0]}'?" if near else f"allowed: {', '.join(kinds)}"
            _file(root).fail(where, f"unknown setting; {hint}")
        if wanted := unlike(kinds[name], value):
            _file(root).fail(where, f"{told(value)}; write {wanted}")
    arms, out = entrants(track)
    return {"track": track, "profile": profile, "settings": settings, "arms": arms, "out": out}


def _entry(plan: dict, trials: list[Trial]) -> dict:
    track, settings, arms = plan["track"], plan["settings"], plan["arms"]
    cost = {k: v for k, v in settings["cost"].items() if k != "seeds"}
    model = {k: v for k, v in settings["settings"].items() if k not in ("batch", "depth")}
    return {
        "paper": f"arena-{track}",
        "profile": plan["profile"],
        "registered": digest(settings),
        "experiments": {
            track: {"module": EXPERIMENT, "exclusive": False, "batched": track == "mlp", "arms": arms, "config": model},
            "cost": {
                "module": EXPERIMENT,
                "exclusive": True,
                "batched": False,
                "arms": arms,
                "config": {**settings["settings"], **cost, "track": track, "steps": 1, "lr": 1e-4},
            },
        },
        "trials": sorted(trials, key=lambda trial: trial["seed"]),
    }


def _trials(plan: dict, pairs: Iterable[tuple[str, float]], seeds: Iterable[int], **changed: Any) -> list[Trial]:
    """The trials of (arm, learning rate) pairs with the track's batch and depth, or others."""
    base = {k: plan["settings"]["settings"][k] for k in ("batch", "depth")}
    return [
        {"experiment": plan["track"], "arm": arm, "seed": seed, "factors": {**base, "lr": lr, **changed}}
        for arm, lr in pairs
        for seed in seeds
    ]


def measure(plan: dict, root: Path, *, device: str, jobs: int, force: bool, progress: run.Progress) -> dict:
    """All rows of a track: tuning, judged seeds, changed settings, costs."""
    settings, trials = plan["settings"], []
    store, state = Store(root / ".repro" / "trials"), root / ".repro"

    def measured(more: list[Trial]) -> list[dict]:
        trials.extend(t for t in more if t not in trials)
        return run.measure(
            _entry(plan, more), store=store, state=state, device=device, jobs=jobs, force=force, progress=progress
        )["rows"]

    tuning, final, cost = settings["tuning"], settings["final"], settings["cost"]
    alive = [(arm, lr) for arm in plan["arms"] for lr in tuning["lr"]]
    for steps, keep in tuning["rungs"]:
        rows = measured(_trials(plan, alive, range(TUNING, TUNING + tuning["seeds"]), steps=steps))
        alive = survivors(rows, settings["measure"], keep)
    for cell in [{}, *settings.get("cells", [])]:
        measured(_trials(plan, alive, range(final["seeds"]), **{"steps": final["steps"], **cell}))
    measured(
        [
            {"experiment": "cost", "arm": arm, "seed": seed, "factors": {}}
            for arm in plan["arms"]
            for seed in range(cost["seeds"])
        ]
    )
    quiet = run.Progress(say=lambda text: None)
    document = run.measure(_entry(plan, trials), store=store, state=state, device=device, jobs=jobs, progress=quiet)
    return {**document, "out": plan["out"]}


def survivors(rows: list[dict], measure: str, keep: int) -> list[tuple[str, float]]:
    """Of each arm the `keep` learning rates with the least mean over the tuning seeds; of equals the smaller."""
    scores: dict[str, dict[float, list[float]]] = {}
    for row in rows:
        scores.setdefault(row["arm"], {}).setdefault(row["factors"]["lr"], []).append(_value(row, measure))
    return [
        (arm, lr)
        for arm, rates in scores.items()
        for lr in sorted(rates, key=lambda lr, rates=rates: (fmean(rates[lr]), lr))[:keep]
    ]


def _value(row: dict, measure: str) -> float:
    return row["measures"].get(measure, math.inf) if row["status"] == "ok" else math.inf


# --- what is made of it ----------------------------------------------------------------------------------------------


def table(document: dict, settings: dict) -> dict:
    """The track's table from its rows alone: a ranking per cell and slot, and what each method costs and stands."""
    rows, measure = document["rows"], settings["measure"]
    base = {**{k: settings["settings"][k] for k in ("batch", "depth")}, "steps": settings["final"]["steps"]}
    trained = [row for row in rows if row["experiment"] != "cost"]
    judged, tuned = ([r for r in trained if (r["seed"] >= TUNING) == late] for late in (False, True))
    tuned = [r for r in tuned if r["factors"]["steps"] == settings["tuning"]["rungs"][0][0]]
    arms = list(dict.fromkeys(row["arm"] for row in trained))
    cells = [
        {"changed": cell, "slots": _rankings([r for r in judged if _at(r, {**base, **cell})], arms, measure)}
        for cell in [{}, *settings.get("cells", [])]
    ]
    keys = list(zip(rows, document["provenance"]["trials"], strict=True))
    methods = [
        _method(
            arm,
            [r for r in judged if r["arm"] == arm],
            [r for r in tuned if r["arm"] == arm],
            base,
            settings,
            [r for r in rows if r["experiment"] == "cost" and r["arm"] == arm and r["status"] == "ok"],
            [key for row, key in keys if row["arm"] == arm],
        )
        for arm in arms
    ]
    return {
        "schema": SCHEMA,
        "track": document["paper"].removeprefix("arena-"),
        "profile": document["profile"],
        **{k: settings[k] for k in ("what", "measure", "target", "margin", "settings")},
        "level": LEVEL,
        "seeds": settings["final"]["seeds"],
        "steps": base["steps"],
        "rows_digest": document["provenance"]["digest"],
        "device": document["provenance"]["device_model"],
        "cells": cells,
        "methods": methods,
        "out": document.get("out", {}),
    }


def _rankings(rows: list[dict], arms: list[str], measure: str) -> dict[str, dict]:
    """slot -> the ranking of its methods and of the unchanged model in one cell."""
    found = {}
    for slot in dict.fromkeys(arm.partition(":")[0] for arm in arms if arm != BASE):
        own = [arm for arm in arms if arm == BASE or arm.partition(":")[0] == slot]
        scores = _scores([r for r in rows if r["arm"] in own], measure)
        if not scores:
            continue
        ranks, gaps = rank_intervals(scores), to_the_best(scores)
        lines = []
        for arm in sorted(scores, key=lambda arm: _mean(scores[arm].values())):
            values, some = list(scores[arm].values()), [r for r in rows if r["arm"] == arm]
            lines.append(
                {
                    "arm": arm,
                    "mean": _mean(values),
                    "spread": stdev(values) if len(values) > 1 else None,
                    "error": _finite(_mean(_value(r, "valid_error") for r in some)),
                    "n": len(values),
                    "diverged": sum(r["status"] == "diverged" for r in some),
                    "rank": ranks[arm],
                    "gap": gaps[arm],
                }
            )
        found[slot] = {
            "discriminates": discriminates(scores) if set(CONTROLS) & set(scores) else None,
            "ranking": lines,
        }
    return found


def _method(
    arm: str, judged: list[dict], tuned: list[dict], base: dict, settings: dict, costs: list[dict], trials: list[str]
) -> dict:
    """What is known of one method beside its ranks."""
    own, chance = [r for r in judged if _at(r, base)], chance_of(judged)
    seconds = _median([r["measures"]["seconds"] for r in costs])
    reached = _median([steps_to(r, settings["target"]) for r in own])
    depths = sorted({r["factors"]["depth"] for r in judged})
    learns = {
        d: _mean(
            _value(r, settings["measure"])
            for r in judged
            if r["factors"]["depth"] == d and r["factors"]["batch"] == base["batch"]
        )
        < 0.9 * chance
        for d in depths
    }
    return {
        "arm": arm,
        "slot": arm.partition(":")[0],
        "control": arm in CONTROLS,
        "lr": own[0]["factors"]["lr"],
        "sensitivity": sensitivity(tuned, settings["measure"]),
        "largest_stable_lr": largest_stable(tuned, settings["measure"], chance),
        "steps_to_target": reached,
        "seconds_to_target": reached * seconds if reached and seconds else None,
        "step_seconds": seconds,
        "peak_bytes": _median([r["measures"]["peak_bytes"] for r in costs]),
        "depths": depths,
        "fails_at_depth": next((d for d in depths if not learns[d]), None),
        "trials": trials,
    }


def chance_of(rows: list[dict]) -> float:
    """The loss of a model that knows nothing: log of the number of classes, or of bytes."""
    return math.log(256 if rows[0]["experiment"] == "gpt" else 10)


def _at(row: dict, wanted: dict) -> bool:
    return all(row["factors"].get(k) == v for k, v in wanted.items())


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return fmean(values) if values and all(map(math.isfinite, values)) else math.inf


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _median(values: list[float]) -> float | None:
    """The median, None where it is infinite or there is none."""
    return _finite(median_high(values)) if values else None


def _scores(rows: list[dict], measure: str) -> dict[str, dict[int, float]]:
    """arm -> seed -> loss; a run that diverged, or ended above the loss of chance, counts as chance."""
    scores: dict[str, dict[int, float]] = {}
    for row in rows:
        scores.setdefault(row["arm"], {})[row["seed"]] = min(_value(row, measure), chance_of(rows))
    return scores


def steps_to(row: dict, target: float) -> float:
    """The first point of the validation curve at or below the target; infinite where there is none."""
    if row["status"] != "ok":
        return math.inf
    pairs = zip(row["measures"]["steps"], row["measures"]["curve"], strict=True)
    return next((float(step) for step, loss in pairs if loss <= target), math.inf)


def sensitivity(rows: list[dict], measure: str) -> list[dict]:
    """Per learning rate of the first rung, which tries them all: mean over the tuning seeds, share that diverged."""
    found = []
    for lr in sorted({r["factors"]["lr"] for r in rows}):
        own = [r for r in rows if r["factors"]["lr"] == lr]
        found.append(
            {
                "lr": lr,
                "mean": _finite(_mean(_value(r, measure) for r in own)),
                "diverged": sum(r["status"] == "diverged" for r in own) / len(own),
            }
        )
    return found


def largest_stable(rows: list[dict], measure: str, chance: float) -> float | None:
    """The largest learning rate up to which no tuning seed diverged or ended above the loss of chance."""
    stable = None
    for lr in sorted({r["factors"]["lr"] for r in rows}):
        own = [r for r in rows if r["factors"]["lr"] == lr]
        if any(_value(r, measure) > chance for r in own):
            return stable
        stable = lr
    return stable


# --- statistics ------------------------------------------------------------------------------------------------------


def paired_p(a: dict[int, float], b: dict[int, float]) -> float:
    """Two-sided p of "a and b have the same mean": Student's t over the differences by seed; 1 below three seeds."""
    from scipy import stats

    gaps = [a[s] - b[s] for s in sorted(set(a) & set(b))]
    if len(gaps) < 3:
        return 1.0
    spread = stdev(gaps)
    if spread == 0:
        return 1.0 if gaps[0] == 0 else 0.0
    return float(2 * stats.t.sf(abs(fmean(gaps)) * math.sqrt(len(gaps)) / spread, len(gaps) - 1))


def holm(p: dict[Any, float], level: float = LEVEL) -> set:
    """The hypotheses that Holm's step-down procedure rejects."""
    rejected, ordered = set(), sorted(p, key=p.get)
    for i, name in enumerate(ordered):
        if p[name] > (1 - level) / (len(ordered) - i):
            break
        rejected.add(name)
    return rejected


def rank_intervals(scores: dict[str, dict[int, float]], level: float = LEVEL) -> dict[str, list[int]]:
    """arm -> [best, worst rank] that the seeds allow; lower scores are better."""
    arms = list(scores)
    p = {(a, b): paired_p(scores[a], scores[b]) for i, a in enumerate(arms) for b in arms[i + 1 :]}
    differ = holm(p, level)

    def below(a: str, b: str) -> bool:
        """Is a significantly better than b?"""
        return ((a, b) in differ or (b, a) in differ) and _mean(scores[a].values()) < _mean(scores[b].values())

    return {
        a: [1 + sum(below(b, a) for b in arms if b != a), len(arms) - sum(below(a, b) for b in arms if b != a)]
        for a in arms
    }


def to_the_best(scores: dict[str, dict[int, float]], level: float = LEVEL) -> dict[str, list[float | None]]:
    """arm -> [mean difference from the best arm, low, high], simultaneous over the arms; no ends below two seeds."""
    from scipy import stats

    best = min(scores, key=lambda arm: _mean(scores[arm].values()))
    found = {}
    for arm, own in scores.items():
        gaps = [own[s] - scores[best][s] for s in sorted(set(own) & set(scores[best]))]
        if arm == best or len(gaps) < 2:
            found[arm] = [0.0, 0.0, 0.0] if arm == best else [fmean(gaps), None, None]
            continue
        half = (
            stats.t.ppf(1 - (1 - level) / 2 / max(len(scores) - 1, 1), len(gaps) - 1)
            * stdev(gaps)
            / math.sqrt(len(gaps))
        )
        found[arm] = [fmean(gaps), fmean(gaps) - float(half), fmean(gaps) + float(half)]
    return found


def discriminates(scores: dict[str, dict[int, float]], level: float = LEVEL) -> dict[str, Any]:
    """Whether every control is significantly worse than the best method and than the unchanged model.

    One-sided, with Bonferroni's correction over these comparisons.  A control that is no worse than the unchanged model
    shows that the slot matters little in this cell: then its ranking says nothing of what a good method is.
    """
    best = min((arm for arm in scores if arm not in CONTROLS), key=lambda arm: _mean(scores[arm].values()))
    against = [arm for arm in dict.fromkeys((best, BASE)) if arm in scores]
    present = [arm for arm in CONTROLS if arm in scores]
    worse = {}
    for arm in present:
        pairs = [
            (paired_p(scores[arm], scores[b]) / 2, _mean(scores[arm].values()) - _mean(scores[b].values()))
            for b in against
        ]
        worse[arm] = all(gap > 0 and p <= (1 - level) / (len(present) * len(against)) for p, gap in pairs)
    return {"ok": all(worse.values()), "best": best, "worse": worse}


# --- files -----------------------------------------------------------------------------------------------------------


def path_of(root: Path, track: str, profile: str, kind: str) -> Path:
    return root / "arena" / f"{track}.{profile}.{kind}.json"


def write(root: Path, document: dict, settings: dict) -> dict:
    """Rows and table of a track; returns the table."""
    run.write_rows(path_of(root, document["paper"].removeprefix("arena-"), document["profile"], "rows"), document)
    return write_table(root, document, settings)


def write_table(root: Path, document: dict, settings: dict) -> dict:
    """The table of rows that were measured here or elsewhere."""
    track, profile = document["paper"].removeprefix("arena-"), document["profile"]
    made = table(document, settings)
    write_file(
        path_of(root, track, profile, "table"), json.dumps(made, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    )
    return made


def read(root: Path, track: str, profile: str, kind: str) -> dict | None:
    """Rows or table of a track; None where it has not been run."""
    path, again = path_of(root, track, profile, kind), f"run `repro arena --track {track} --profile {profile}` again"
    if not path.exists():
        return None
    if kind == "table":
        return arena_files.read_table(path, again, paper.shown(path), track, profile)
    found = arena_files.read_arena_rows(path, again, paper.shown(path), track, profile, track_of(root, track, profile))
    if rows_digest(found["rows"]) != found["provenance"]["digest"]:
        raise ReproError(f"{path}: the rows do not match their digest (edited by hand?); {again}")
    return found


def recommended(ranking: list[dict], margin: float) -> list[dict]:
    """The methods whose simultaneous interval against the best lies within the margin; controls are left out.

    A wide interval is no recommendation, however small the difference.
    """
    return [
        line
        for line in ranking
        if line["arm"] not in CONTROLS and line["gap"][2] is not None and line["gap"][2] <= margin
    ]


REACH = 4  # how far, as a factor, a setting may lie from one that was measured


def nearest_cell(made: dict, depth: int | None, batch: int | None) -> tuple[dict | None, Any]:
    """The cell measured nearest to a depth and a batch size (on a log scale), with its own depth and batch.

    None, and a sentence that says what was measured, where all are farther than a factor of `REACH`.
    """
    places = [
        (cell, {name: {**made["settings"], **cell["changed"]}[name] for name in ("depth", "batch")})
        for cell in made["cells"]
    ]
    wanted = {name: value for name, value in (("depth", depth), ("batch", batch)) if value is not None}

    def off(place: dict[str, int]) -> list[float]:
        return [abs(math.log(place[name] / value)) for name, value in wanted.items()]

    cell, place = min(places, key=lambda pair: sum(off(pair[1])))
    if any(distance > math.log(REACH) + 1e-9 for distance in off(place)):
        told = " or ".join(f"depth {p['depth']} at batch {p['batch']}" for _, p in places)
        return None, f"measured: {told}"
    return cell, place


def main(arguments: list[str] | None = None) -> int:
    """`python -m repro.arena plan.json --out DIR`: measure planned tracks where only torch and numpy are installed."""
    parser = run.Arguments(prog="python -m repro.arena", description=main.__doc__)
    parser.add_argument("plan", type=Path, help="written by `repro arena --plan`")
    parser.add_argument("--out", type=Path, required=True, help="rows go to DIR/<track>.<profile>.rows.json")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--jobs", type=run.positive)
    options = parser.parse_args(arguments)
    root = provenance.root()
    try:
        from repro.experiments.arena import SLOTS

        for one in arena_files.read_arena_plan(options.plan, "write it with `repro arena --plan > plan.json`", SLOTS)[
            "tracks"
        ]:
            device = run.resolve_device(options.device, one["profile"])
            document = measure(
                one,
                root,
                device=device,
                jobs=options.jobs or run.default_jobs(device),
                force=False,
                progress=run.Progress(),
            )
            run.write_rows(options.out / f"{one['track']}.{one['profile']}.rows.json", document)
    except ReproError as error:
        print(one_line(error), file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
