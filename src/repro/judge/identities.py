"""Exact statements: an equation, an equivalence or a limit, which holds on every row or is violated.

There is nothing to sample: no number of seeds, no interval, no level and no error rate belong to it.  A rule of any
kind but `identity` is looked at seed by seed: its parameter must lie in R at each of them.
"""

import math
from collections.abc import Mapping
from itertools import product
from typing import Any

from repro.judge.decide import INF, number
from repro.judge.rules import cells_of, levels_text, parameters, region_of
from repro.judge.values import CannotJudge, Values
from repro.spec.model import Control, Measure, Paper, Rule, Settings, as_dict, controlled
from repro.words import all_of, control_text, sentence


def judge_identity(paper: Paper, profile: str, name: str, rows: list[dict]) -> dict[str, Any]:
    """Return {state, why, rule, controls, parts} of one identity; `state` is verified, violated or incomplete.

    It is incomplete where rows are missing, and where a control, which must violate the same rules, meets them.
    """
    statement, rules = paper.identities[name], paper.rules(name, profile)
    state, why, parts = _outcome(paper, profile, statement.experiment, rows, rules)
    controls = []
    for control in statement.controls:
        place = control.experiment or statement.experiment
        came, reason, _ = _outcome(paper, profile, place, rows, rules, control)
        ok = came == "violated"
        plain = as_dict(control, drop={"why"})
        controls.append({**plain, "ok": ok, "state": came, "why": sentence(reason)})
        if not ok and state == "verified":
            state, why = "incomplete", f"the control {control_text(plain)} came out {came}: {reason}"
    rule = [as_dict(rule) for rule in rules]
    return {
        "state": state,
        "why": sentence(why),
        "rule": rule[0] if len(rule) == 1 else rule,
        "controls": controls,
        "parts": parts,
    }


def _outcome(
    paper: Paper, profile: str, experiment: str, rows: list[dict], rules: list[Rule], control: Control | None = None
) -> tuple[str, str, list[dict[str, Any]]]:
    """(state, why, parts) of rules that must all hold, with arms replaced by a control if one is given."""
    settings = paper.settings(profile, experiment)
    rows = [row for row in rows if row["experiment"] == experiment]
    parts = []
    for rule in rules:
        used = controlled(rule, control) if control else rule
        offset = {}
        if control and control.seed_offset:
            named = {"arm": rule.arm, "against": getattr(rule, "against", None)}
            offset = {side: control.seed_offset for side, arm in named.items() if arm in control.replace}
        label = {"name": rule.name or f"{rule.kind} of {rule.measure}"} if rule.name or len(rules) > 1 else {}
        parts.append({**label, **judge_exactly(used, rows, paper.measures, settings, offset)})
    states = [part["state"] for part in parts]
    state = next((s for s in ("violated", "incomplete") if s in states), "verified")
    telling = parts[states.index(state)]
    why = telling["why"]
    if len(parts) > 1:
        why = f"{all_of(len(parts))} rules hold." if state == "verified" else f"{telling['name']}: {why}"
    return state, why, [{**part, "why": sentence(part["why"])} for part in parts]


def judge_exactly(
    rule: Rule,
    rows: list[dict],
    measures: Mapping[str, Measure],
    settings: Settings,
    offset: Mapping[str, int] = {},  # noqa: B006
) -> dict[str, Any]:
    """Return {state, why, estimate, unit} of one rule; `estimate` is the value that lies nearest to violating it."""
    unit = measures[rule.measure].unit
    try:
        data = Values(rule, rows, measures, settings, offset)
        state, why, worst = (_every_row if rule.kind == "identity" else _every_seed)(data)
    except CannotJudge as error:
        return {"state": "incomplete", "why": str(error), "estimate": None, "unit": unit}
    return {"state": state, "why": why, "estimate": worst if math.isfinite(worst) else None, "unit": unit}


def _every_row(data: Values) -> tuple[str, str, float]:
    """|value| < bound, or the value in the region: on every row and element, over all levels that are not fixed."""
    rule, factors = data.rule, data.settings.factors
    region = None if rule.bound is not None else region_of(rule, data.measures)
    open_ = [name for name in factors if name not in rule.at]
    worst, excess, where = 0.0, -INF, ""
    for levels in product(*(factors[name] for name in open_)):
        for seed in data.seeds["arm"]:
            row = data.row(rule.arm, seed, {**rule.at, **dict(zip(open_, levels, strict=True))})
            value = data.measure(row, rule.measure)
            if value == []:
                raise CannotJudge(
                    f"'{rule.measure}' of {rule.arm}, seed {seed}, is an empty list, which shows nothing."
                )
            for x in (math.nan,) if value is None else value if isinstance(value, list) else (value,):
                past = INF if math.isnan(x) else _excess(x, rule.bound, region)
                if past > excess:
                    worst, excess = abs(x) if region is None else x, past
                    where = f"seed {seed}" + "".join(f", {k} {v}" for k, v in row["factors"].items())
    bound = f"the bound {number(rule.bound)}" if region is None else region.text
    if excess == INF:
        return "violated", f"the run of {rule.arm} diverged ({where}).", math.nan
    what = "the largest error" if region is None else "the value nearest to the boundary"
    if excess < 0:
        return "verified", f"{what} is {number(worst)}, {'below' if region is None else 'inside'} {bound}.", worst
    what = "the largest error" if region is None else "the value farthest outside"
    return (
        "violated",
        f"{what} is {number(worst)} ({where}), {'not below' if region is None else 'not inside'} {bound}.",
        worst,
    )


def _excess(x: float, bound: float | None, region: Any) -> float:
    """How far a value lies outside; below 0 inside."""
    return abs(x) - bound if region is None else max(region.low - x, x - region.high)


def _every_seed(data: Values) -> tuple[str, str, float]:
    """The parameter in the region at every seed, and at every level of `per`."""
    region = region_of(data.rule, data.measures)
    worst, excess, where = 0.0, -INF, ""
    for cell in cells_of(data.rule, data.settings):
        values, other, out = parameters(data, cell, region.log)
        values = values if other is None else [a - b for a, b in zip(values, other, strict=True)]
        for i, x in enumerate(values):
            past = INF if i in out or math.isnan(x) else _excess(x, None, region)
            if past > excess:
                worst, excess = x, past
                where = ", ".join(filter(None, [f"seed {data.seeds['arm'][i]}", levels_text(cell)]))
    if excess == INF:
        return "violated", f"a run diverged ({where}).", math.nan
    shown = region.display(worst)
    if excess < 0:
        return "verified", f"the value nearest to the boundary is {number(shown)}, inside {region.text}.", shown
    return "violated", f"the value farthest outside is {number(shown)} ({where}), not inside {region.text}.", shown
