"""What is made of a track's rows: one table, with rankings per cell and slot, costs and limits.

rank        [best, worst] that the seeds allow: 1 + the methods that are significantly better, and the number of
            methods less those significantly worse (paired t-tests by seed over all pairs, Holm's correction)
to the best mean difference from the best method, its interval simultaneous over all methods (Bonferroni)
diverged    a run that diverged, or ended above the loss of chance, counts as chance; the former are counted
controls    a network without a norm, and a broken norm; where one of them is not significantly worse than the
            best method and than the unchanged model, the track does not discriminate there and says so
"""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from statistics import fmean, median_high, stdev
from typing import Any

from repro.arena.protocol import BASE, CONTROLS, TUNING, loss_of, path_of
from repro.files.paths import SCHEMA
from repro.run import measure as run
from repro.store import write_file

LEVEL = 0.95


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
                    "error": _finite(_mean(loss_of(r, "valid_error") for r in some)),
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
            loss_of(r, settings["measure"])
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
        scores.setdefault(row["arm"], {})[row["seed"]] = min(loss_of(row, measure), chance_of(rows))
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
                "mean": _finite(_mean(loss_of(r, measure) for r in own)),
                "diverged": sum(r["status"] == "diverged" for r in own) / len(own),
            }
        )
    return found


def largest_stable(rows: list[dict], measure: str, chance: float) -> float | None:
    """The largest learning rate up to which no tuning seed diverged or ended above the loss of chance."""
    stable = None
    for lr in sorted({r["factors"]["lr"] for r in rows}):
        own = [r for r in rows if r["factors"]["lr"] == lr]
        if any(loss_of(r, measure) > chance for r in own):
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
