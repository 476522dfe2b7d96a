"""What is made of a track's rows: one table, every arm of a cell against the tuned base.

reference   the base at its own best learning rate, fixed before anything is run (the best arm is chosen by the data);
            of optimizers that tune their weight decay, the base's AdamW with its decay tuned
gap         mean difference from the base in the measure, paired by seed; Student's t with Bonferroni's correction over
            the methods of a slot, so that all intervals of a slot hold at once, however unequal the spreads are.
            (Dunnett's pooled variance would be narrower, but a method that is steadier or wilder than the others breaks
            it: with a spread for each method Dunnett's limit lets 7 % through in place of 5 %.)
rank        [best, worst] that the seeds allow: t-tests of all pairs of a slot with Holm's correction
failed      runs that diverged or ended above `fails_above` (what letter frequencies, or a guess, reach); their share
            has an exact interval (Clopper-Pearson), and their loss counts as `fails_above`
standing    better, as good (the interval ends below the margin), worse, not told apart; fails; no better than a control
steps       median number of steps to the target, which is the mean final loss of the reference; a miss is infinite
reached     these steps seed by seed; a miss is null
interaction of a norm and an optimizer: how much more the norm loses to the base's under the other optimizer than under
            the base's, paired by seed; Bonferroni's correction over the pairs
calibration contrasts that are known beforehand; where one does not come out, the cell ranks nothing and says so
"""

import json
import math
from pathlib import Path
from statistics import fmean, median_high, stdev
from typing import Any

from repro.arena.protocol import (
    BASE,
    TUNING,
    best_decay,
    best_rate,
    full,
    is_control,
    path_of,
    rate_of,
    slot_of,
)
from repro.files.paths import SCHEMA
from repro.run import measure as run
from repro.store import write_file

LEVEL = 0.95
Scores = dict[str, dict[int, float]]


def table(document: dict, settings: dict) -> dict:
    """The track's table from its rows alone."""
    from repro.experiments.arena import SLOTS

    rows = document["rows"]
    keys = dict(zip(map(id, rows), document["provenance"]["trials"], strict=True))
    same = document.get("same") or [{} for _ in settings["cells"]]
    arms = list(dict.fromkeys(row["arm"] for row in rows if row["experiment"] != "cost"))
    track = document["paper"].removeprefix("arena-")
    measured = document.get("slots") or [list(SLOTS[track]) for _ in settings["cells"]]
    cells = list(zip(settings["cells"], same, measured, strict=True))
    return {
        "schema": SCHEMA,
        "track": track,
        "profile": document["profile"],
        **{k: settings[k] for k in ("what", "measure", "margin", "settings")},
        "level": LEVEL,
        "seeds": settings["final"]["seeds"],
        "tuning_seeds": settings["tuning"]["seeds"],
        "rows_digest": document["provenance"]["digest"],
        "device": document["provenance"]["device_model"],
        "absent": [
            {"at": full(settings, cell), "slots": missing}
            for cell, _, slots in cells
            if (missing := [slot for slot in SLOTS[track] if slot not in slots])
        ],
        "cells": [_cell(rows, cell, left_out, slots, settings) for cell, left_out, slots in cells if slots],
        "methods": [_method(arm, [r for r in rows if r["arm"] == arm], keys) for arm in arms],
        "out": document.get("out", {}),
    }


def _cell(rows: list[dict], cell: dict, same: dict[str, str], measured: list[str], settings: dict) -> dict:
    """One size and budget: what the base reaches, whether the cell can rank, and every slot that was measured."""
    at, measure = full(settings, cell), settings["measure"]
    here = [r for r in rows if r["experiment"] != "cost" and _at(r, at)]
    judged = [r for r in here if r["seed"] < TUNING]
    arms = [arm for arm in dict.fromkeys(r["arm"] for r in judged) if arm not in same]
    limits = limits_of(judged, measure)
    scores = {arm: scores_of([r for r in judged if r["arm"] == arm], measure, limits) for arm in arms}
    target = fmean(scores[BASE].values())
    learnt = limits["learns_below"] is None or target < limits["learns_below"]
    calibration = [_contrast(c, scores) for c in settings["calibration"] if _at({"factors": at}, c.get("at", {}))]
    ranks = learnt and all(c["ok"] for c in calibration)
    slots = {}
    for slot in dict.fromkeys(slot for arm in arms if (slot := slot_of(arm)) in measured and slot != "pair"):
        reference = reference_of(slot, scores)
        own = {arm: scores[arm] for arm in arms if arm == reference or slot_of(arm) == slot}
        worse, places = controls_worse(own, reference), rank_intervals(own)
        lines = [
            _line(arm, own, [r for r in here if r["arm"] == arm], at, settings, limits, reference, worse, places[arm])
            for arm in own
        ]
        why = None
        if not learnt:
            why = f"the base has not learnt here: it ends at {target:.3g}, a table of frequencies or a guess has less"
        elif all(len(found) > 2 and len(set(found.values())) == 1 for found in own.values()):
            why = "every arm has the same loss at every seed: the track ignores its seed"
        elif not ranks:
            named = ", ".join(
                f"{c['worse']} is not shown to be worse than {c['better']}" for c in calibration if not c["ok"]
            )
            why = f"a contrast that is known beforehand does not come out here: {named}"
        elif not worse:
            why = "no control took part in this slot"
        elif not all(worse.values()):
            named = ", ".join(arm for arm, ok in worse.items() if not ok)
            why = f"a method that is wrong on purpose is not shown to be worse than the base: {named}"
        slots[slot] = {
            "usable": why is None,
            "why": why,
            "reference": reference,
            "target": fmean(scores[reference].values()),
            "controls": worse,
            "lines": sorted(lines, key=lambda line: (line["mean"], line["arm"])),
        }
    return {
        "at": at,
        "target": target,
        **limits,
        "learnt": learnt,
        "calibration": calibration,
        "ranks": ranks,
        "same": same,
        "slots": slots,
        "interactions": interactions(scores) if "pair" in measured else [],
    }


def reference_of(slot: str, scores: Scores) -> str:
    """The arm with which the methods of a slot are compared."""
    from repro.experiments.arena import ADAMW

    return ADAMW if slot == "optimizer" and ADAMW in scores else BASE


def interactions(scores: Scores) -> list[dict]:
    """Per pair: what the norm costs under the base's optimizer and under the other, and the difference of the two."""
    from repro.experiments.arena import PAIRS

    present = {arm: parts for arm, parts in PAIRS.items() if {arm, *parts} <= scores.keys()}
    found = []
    for arm, (norm, optimizer) in present.items():
        under_base, under_other = _less(scores[norm], scores[BASE]), _less(scores[arm], scores[optimizer])
        gap = difference(under_other, under_base, len(present))
        low, high = gap[1:]
        told = "loses more" if low is not None and low > 0 else "loses less" if high is not None and high < 0 else None
        found.append(
            {
                "arm": arm,
                "norm": norm,
                "optimizer": optimizer,
                "under_base": difference(scores[norm], scores[BASE], len(present)),
                "under_other": difference(scores[arm], scores[optimizer], len(present)),
                "interaction": gap,
                "standing": told or "not told apart",
            }
        )
    return found


def _line(
    arm: str,
    scores: Scores,
    rows: list[dict],
    at: dict,
    settings: dict,
    limits: dict,
    reference: str,
    worse: dict[str, bool],
    ranks: list[int],
) -> dict:
    """One arm of a slot in a cell."""
    values, judged = list(scores[arm].values()), [r for r in rows if r["seed"] < TUNING]
    failed = sum(is_failed(r, settings["measure"], limits) for r in judged)
    low, high = share_interval(failed, len(judged))
    chosen, shrunk = best_rate(rows, arm, at, settings), best_decay(rows, arm, at, settings)
    family = sum(other != reference and not is_control(other) for other in scores)
    gap = difference(scores[arm], scores[reference], family) if arm != reference else [0.0, None, None]
    asked = arm != reference and not is_control(arm)
    no_better = [c for c in worse if asked and not below(scores[arm], scores[c])]
    best = [r["measures"]["best_nats"] for r in judged if r["status"] == "ok" and "best_nats" in r["measures"]]
    steps = [steps_to(r, fmean(scores[reference].values())) for r in judged]
    return {
        "arm": arm,
        "control": is_control(arm),
        "mean": fmean(values),
        "spread": stdev(values) if len(values) > 1 else None,
        "n": len(values),
        "failed": failed,
        "failures": [low, high],
        "gap": gap,
        "rank": ranks,
        "standing": "the base"
        if arm == reference
        else standing(gap, failed / max(len(judged), 1), no_better, settings["margin"]),
        "no_better_than": no_better,
        "lr": rate_of(chosen),
        "edge": chosen.edge,
        "tuning": [{"lr": lr, "mean": mean} for lr, mean in chosen.scores.items()],
        "decay": shrunk.level or 0.0,
        "decay_edge": shrunk.edge,
        "decays": [{"decay": decay, "mean": mean} for decay, mean in shrunk.scores.items()],
        "tuning_runs": sum(r["seed"] >= TUNING for r in rows),
        "best": fmean(best) if best else None,
        "steps_to_target": _finite(median_high(steps)) if steps else None,
        "reached": [_finite(step) for step in steps],
        "curve": mean_curve(judged),
    }


def standing(gap: list, failed: float, no_better: list[str], margin: float) -> str:
    """One word for a line that is not the reference; nothing that a broken control equals is praised."""
    if failed > 0.5:
        return "fails"
    _, low, high = gap
    if low is None or high is None:
        return "not told apart"
    if low > 0 and high > margin:
        return "worse"
    if no_better:
        return "no better than a control"
    if high < 0:
        return "better"
    return "as good" if high <= margin else "not told apart"


def _contrast(told: dict, scores: Scores) -> dict:
    """Whether a contrast that is known beforehand comes out, one-sided at the level."""
    missing = [arm for arm in (told["better"], told["worse"]) if arm not in scores]
    ok = not missing and below(scores[told["better"]], scores[told["worse"]])
    gap = None if missing else fmean(scores[told["worse"]].values()) - fmean(scores[told["better"]].values())
    return {"better": told["better"], "worse": told["worse"], "ok": ok, "gap": gap}


def _method(arm: str, rows: list[dict], keys: dict[int, str]) -> dict:
    """What an arm costs, and its trials."""
    timed = [r["measures"] for r in rows if r["experiment"] == "cost" and r["status"] == "ok"]
    module = arm.partition(":")[2].partition(".")[0]
    return {
        "arm": arm,
        "slot": slot_of(arm),
        "control": is_control(arm),
        "source": "control"
        if module == "control"
        else "paper"
        if arm != BASE and module not in LIBRARIES
        else "torch"
        if module in ("", "torch", "models")
        else module,
        "step_seconds": _median([m["seconds"] for m in timed]),
        "peak_bytes": _median([m["peak_bytes"] for m in timed]),
        "trials": [keys[id(r)] for r in rows],
    }


LIBRARIES = ("torch", "models", "pytorch_optimizer")  # where a method comes from that no paper of the suite holds


def _at(row: dict, wanted: dict) -> bool:
    return all(row["factors"].get(k) == v for k, v in wanted.items())


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _median(values: list[float]) -> float | None:
    """The median, None where it is infinite or there is none."""
    return _finite(median_high(values)) if values else None


def loss_of(row: dict, measure: str) -> float:
    return row["measures"].get(measure, math.inf) if row["status"] == "ok" else math.inf


def limits_of(rows: list[dict], measure: str) -> dict[str, float | None]:
    """The two losses that rows carry (None without any), which mean something for the loss alone."""
    for row in rows:
        if row["status"] == "ok" and measure == "valid_nats" and "fails_above" in row["measures"]:
            return {k: row["measures"][k] for k in ("fails_above", "learns_below")}
    return {"fails_above": None, "learns_below": None}


def is_failed(row: dict, measure: str, limits: dict) -> bool:
    """Whether a run diverged, or ended above what needs no network."""
    ceiling = math.inf if limits["fails_above"] is None else limits["fails_above"]
    return not loss_of(row, measure) < ceiling


def scores_of(rows: list[dict], measure: str, limits: dict) -> dict[int, float]:
    """seed -> loss; a failed run counts as `fails_above`."""
    worst = limits["fails_above"]
    worst = max((v for r in rows if math.isfinite(v := loss_of(r, measure))), default=1.0) if worst is None else worst
    return {row["seed"]: min(loss_of(row, measure), worst) for row in rows}


def steps_to(row: dict, target: float) -> float:
    """The first point of the validation curve at or below the target; infinite where there is none."""
    if row["status"] != "ok":
        return math.inf
    pairs = zip(row["measures"]["steps"], row["measures"]["curve"], strict=True)
    return next((float(step) for step, loss in pairs if loss <= target), math.inf)


def mean_curve(rows: list[dict]) -> list[list[float]]:
    """[step, mean, least, greatest] of the validation curve over the seeds that did not diverge."""
    curves = [
        list(zip(r["measures"]["steps"], r["measures"]["curve"], strict=True)) for r in rows if r["status"] == "ok"
    ]
    points: dict[float, list[float]] = {}
    for step, loss in (point for curve in curves for point in curve):
        points.setdefault(step, []).append(loss)
    return [[step, fmean(losses), min(losses), max(losses)] for step, losses in sorted(points.items())]


# --- statistics ------------------------------------------------------------------------------------------------------


def gaps_of(a: dict[int, float], b: dict[int, float]) -> list[float]:
    """Differences by seed."""
    return [a[seed] - b[seed] for seed in sorted(set(a) & set(b))]


def _less(a: dict[int, float], b: dict[int, float]) -> dict[int, float]:
    return {seed: a[seed] - b[seed] for seed in a.keys() & b.keys()}


def difference(a: dict[int, float], b: dict[int, float], family: int = 1) -> list[float | None]:
    """[mean of a - b, low, high], paired by seed, simultaneous over `family` comparisons; no ends below three seeds."""
    from scipy import stats

    gaps = gaps_of(a, b)
    mean = fmean(gaps)
    if len(gaps) < 3:
        return [mean, None, None]
    half = stats.t.ppf(1 - (1 - LEVEL) / 2 / max(family, 1), len(gaps) - 1) * stdev(gaps) / math.sqrt(len(gaps))
    return [mean, mean - float(half), mean + float(half)]


def below(a: dict[int, float], b: dict[int, float], family: int = 1) -> bool:
    """Whether a's mean is shown to be below b's: one-sided, paired by seed."""
    from scipy import stats

    gaps = gaps_of(a, b)
    if len(gaps) < 3:
        return False
    spread = stdev(gaps)
    half = stats.t.ppf(1 - (1 - LEVEL) / max(family, 1), len(gaps) - 1) * spread / math.sqrt(len(gaps))
    return fmean(gaps) + float(half) < 0


def controls_worse(scores: Scores, reference: str = BASE) -> dict[str, bool]:
    """control -> whether it is shown to be worse than the reference; corrected for the number of controls."""
    present = [arm for arm in scores if is_control(arm)]
    return {arm: below(scores[reference], scores[arm], len(present)) for arm in present}


def share_interval(k: int, n: int) -> tuple[float, float]:
    """The exact (Clopper-Pearson) interval of a share of failures."""
    if not n:
        return 0.0, 1.0
    from scipy import stats

    found = stats.binomtest(k, n).proportion_ci(LEVEL, "exact")
    return float(found.low), float(found.high)


def paired_p(a: dict[int, float], b: dict[int, float]) -> float:
    """Two-sided p of "a and b have the same mean": Student's t over the differences by seed; 1 below three seeds."""
    from scipy import stats

    gaps = gaps_of(a, b)
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


def rank_intervals(scores: Scores, level: float = LEVEL) -> dict[str, list[int]]:
    """arm -> [best, worst rank] that the seeds allow; lower scores are better."""
    arms = list(scores)
    p = {(a, b): paired_p(scores[a], scores[b]) for i, a in enumerate(arms) for b in arms[i + 1 :]}
    differ = holm(p, level)

    def better(a: str, b: str) -> bool:
        return ((a, b) in differ or (b, a) in differ) and fmean(scores[a].values()) < fmean(scores[b].values())

    return {
        a: [1 + sum(better(b, a) for b in arms if b != a), len(arms) - sum(better(a, b) for b in arms if b != a)]
        for a in arms
    }


# --- files -----------------------------------------------------------------------------------------------------------


def write(root: Path, document: dict, settings: dict) -> dict:
    """Rows and table of a track; returns the table."""
    run.write_rows(path_of(root, document["paper"].removeprefix("arena-"), document["profile"], "rows"), document)
    return write_table(root, document, settings)


def write_table(root: Path, document: dict, settings: dict) -> dict:
    """The table of rows that were measured here or elsewhere."""
    track, profile = document["paper"].removeprefix("arena-"), document["profile"]
    made = table(document, settings)
    path = path_of(root, track, profile, "table")
    write_file(path, json.dumps(made, indent=1, allow_nan=False, ensure_ascii=False) + "\n")
    return made
