"""From rows to a verdict: a closed list of rules, each an interval (or an exact sign test) against a region R.

The way of every rule: rows -> one value per arm and seed -> one parameter per seed -> a decision (`repro.judge.decide`).

    value      a measure at fixed levels; with `contrast` the difference (first minus second level) or ratio of two
               levels, with `steps_to` the first step at which a curve reaches the target (infinite where it never
               does), of a slope rule the least-squares slope over the levels of x
    parameter  the value, or arm minus against seed by seed (two unpaired samples where `pair: false`); of logarithms
               where the rule is about a ratio
    R          an open interval: touching its boundary decides nothing

A diverged row has the worst value of its measure; a seed at which the arm diverged lies outside R.  A list of rules,
the levels of `per` and the cells of a count are judged one by one and put together.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from repro.errors import ReproError
from repro.files.paths import SCHEMA, results_name
from repro.files.rows import read_rows
from repro.judge.decide import INF, LEAST_SEEDS, Decision, Region, decide, number
from repro.spec.load import shown
from repro.spec.model import Claim, Control, Measure, Paper, Rule, Settings, as_dict, controlled
from repro.store import rows_digest


class CannotJudge(Exception):
    """Rows that are missing, invalid or outside a rule's domain: the rule is inconclusive, and why."""


# ---- regions ------------------------------------------------------------------------------------------------------


def _given(rule: Rule, log: bool) -> Region:
    """R of min, max or between."""
    low, high = rule.between or (rule.min, rule.max)
    low, high = -INF if low is None else low, INF if high is None else high
    text = (
        f"the range below {number(high)}"
        if low == -INF
        else f"the range above {number(low)}"
        if high == INF
        else f"the range {number(low)} to {number(high)}"
    )
    if log:
        low, high = -INF if low == -INF else math.log(low), INF if high == INF else math.log(high)
    return Region(low, high, log, text)


def region_of(rule: Rule, measures: Mapping[str, Measure]) -> Region:
    """R on the scale of the parameter; for a count that of one cell."""
    higher = measures[rule.measure].better == "higher" and not rule.steps_to
    margin = getattr(rule, "margin", None) or 0.0
    match _cell_kind(rule):
        case "ordering":
            region = Region(margin, INF) if higher else Region(-INF, -margin)
            text = f"better by more than {number(margin)}" if margin else "better"
            return Region(region.low, region.high, False, f"the range of '{text}'")
        case "noninferiority":
            region = Region(-margin, INF) if higher else Region(-INF, margin)
            return Region(region.low, region.high, False, f"the margin {number(margin)}")
        case "equivalence" if rule.ratio is None:
            return Region(-margin, margin, False, f"the margin {number(margin)}")
        case "equivalence":
            low, high = rule.ratio
            return Region(math.log(low), math.log(high), True, f"the range {number(low)} to {number(high)}")
        case "ratio":
            return _given(rule, log=True)
        case "bound":
            return _given(rule, log=bool(rule.contrast and rule.contrast.as_ == "ratio"))
        case "slope":
            return _given(rule, log=False)
    raise AssertionError(rule.kind)


def _cell_kind(rule: Rule) -> str:
    """The kind of a rule; for a count that of the rule which each cell must meet."""
    if rule.kind != "count":
        return rule.kind
    if rule.against is None:
        return "bound"
    return "ordering" if rule.min is rule.max is rule.between is None else "ratio"


def unit_of(rule: Rule, measures: Mapping[str, Measure]) -> str:
    """The unit of the parameter."""
    unit = measures[rule.steps_to.axis if rule.steps_to else rule.measure].unit
    kind = _cell_kind(rule)
    if kind == "ratio" or getattr(rule, "ratio", None) or rule.contrast and rule.contrast.as_ == "ratio":
        return "ratio"
    if kind == "slope":
        return {
            "linear": f"{unit} per {rule.x}",
            "logx": f"{unit} per e-fold of {rule.x}",
            "logy": f"log {unit} per {rule.x}",
            "loglog": "exponent",
        }[rule.scale]
    return unit


# ---- rows -> values -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Value:
    x: float
    diverged: bool = False


def _key(arm: str, seed: int, factors: Mapping[str, Any]) -> tuple:
    return arm, seed, frozenset(factors.items())


class _Values:
    """The values of a rule's arms, seed by seed; `seeds[side][i]` is the i-th seed of `arm` or `against`."""

    def __init__(
        self,
        rule: Rule,
        rows: Iterable[dict],
        measures: Mapping[str, Measure],
        settings: Settings,
        offset: Mapping[str, int],
    ):
        self.rule, self.measures, self.settings = rule, measures, settings
        self.rows = {_key(row["arm"], row["seed"], row["factors"]): row for row in rows}
        self.names = {"arm": rule.arm, "against": getattr(rule, "against", None)}
        self.seeds = {side: [seed + offset.get(side, 0) for seed in settings.seeds] for side in self.names}
        self.single = {name: levels[0] for name, levels in settings.factors.items() if len(levels) == 1}
        better = measures[rule.measure].better
        self.sign = {"lower": 1.0, "higher": -1.0}.get(better, math.nan)  # worst value: sign * inf
        self.worst = INF if rule.steps_to else self.sign * INF
        self.chosen: dict[tuple, Any] = {}

    def row(self, name: str, seed: int, fixed: Mapping[str, Any]) -> dict:
        row = self.rows.get(_key(name, seed, {**self.single, **fixed}))
        where = ", ".join([name, f"seed {seed}", *(f"{k} {v}" for k, v in fixed.items())])
        if row is None:
            raise CannotJudge(f"the row of {where} is missing; run the profile again")
        if row["status"] not in ("ok", "diverged"):
            raise CannotJudge(f"the row of {where} is {row['status']}: {row.get('why', 'no reason given')}")
        return row

    def measure(self, row: dict, name: str) -> Any:
        """The measure of a row; None where the row diverged or the number is not finite."""
        if row["status"] == "diverged":
            return None
        if name not in row["measures"]:
            raise CannotJudge(f"the row of {row['arm']}, seed {row['seed']} has no measure '{name}'; run it again")
        value = row["measures"][name]
        whole = value if isinstance(value, list) else [value]
        return value if all(v is not None and math.isfinite(v) for v in whole) else None

    def at_row(self, side: str, i: int, fixed: Mapping[str, Any]) -> _Value:
        """One number of one row: the measure, or the steps to the target."""
        row = self.row(self.names[side], self.seeds[side][i], fixed)
        value = self.measure(row, self.rule.measure)
        if value is None:
            return _Value(self.worst, diverged=True)
        if self.rule.steps_to:
            return _Value(self.steps(row, value, self.target(side, i, fixed, value)))
        if isinstance(value, list):
            raise CannotJudge(f"measure '{self.rule.measure}' is a curve; the rule needs steps_to")
        return _Value(float(value))

    def target(self, side: str, i: int, fixed: Mapping[str, Any], own: Any) -> float | None:
        """The target of steps_to; None (anything reaches it) where the comparator whose best it is diverged."""
        target = self.rule.steps_to.target
        if target != "best":
            return target
        if side == "arm":
            fixed = self.select("against", {k: v for k, v in fixed.items() if k != self.selected})
            own = self.measure(self.row(self.names["against"], self.seeds["against"][i], fixed), self.rule.measure)
        return None if own is None else self.sign * min(self.sign * v for v in self.curve(own))

    def curve(self, value: Any) -> list[float]:
        if not isinstance(value, list) or not value:
            raise CannotJudge(f"measure '{self.rule.measure}' is no curve; steps_to needs one")
        return value

    def steps(self, row: dict, curve: Any, target: float | None) -> float:
        """The first entry of the axis at which the curve is as good as the target."""
        axis = self.measure(row, self.rule.steps_to.axis)
        if not isinstance(axis, list) or len(axis) != len(self.curve(curve)):
            raise CannotJudge(
                f"'{self.rule.measure}' and its axis '{self.rule.steps_to.axis}' differ in length "
                f"({row['arm']}, seed {row['seed']})"
            )
        good = (a for a, v in zip(axis, curve, strict=True) if target is None or self.sign * v <= self.sign * target)
        return float(next(good, INF))

    @property
    def selected(self) -> str | None:
        return self.rule.select.factor if self.rule.select else None

    def select(self, side: str, fixed: Mapping[str, Any]) -> dict[str, Any]:
        """`fixed` with the level of the selected factor that is best on the arm's tuning seeds (the first of equals).

        The score is the measure (of a curve the last point), its mean over the tuning seeds; divergence is the worst.
        """
        if self.selected is None:
            return dict(fixed)
        name = self.names[side]
        key = _key(name, -1, fixed)
        if key not in self.chosen:
            scores = []
            for level in self.settings.factors[self.selected]:
                rows = [self.row(name, s, {**fixed, self.selected: level}) for s in self.settings.tuning_seeds]
                found = [self.measure(row, self.rule.measure) for row in rows]
                ends = [v[-1] if isinstance(v, list) else v for v in found]
                scores.append(INF if not ends or None in ends else self.sign * math.fsum(ends) / len(ends))
            self.chosen[key] = self.settings.factors[self.selected][scores.index(min(scores))]
        return {**fixed, self.selected: self.chosen[key]}

    def at_levels(self, side: str, i: int, fixed: Mapping[str, Any], log: bool) -> _Value:
        """One number of an arm and seed: a row's, or the contrast of two; its logarithm if `log`."""
        contrast = self.rule.contrast
        if contrast is None:
            value = self.at_row(side, i, self.select(side, fixed))
            return _Value(_log(value.x), value.diverged) if log else value
        a, b = (self.at_row(side, i, self.select(side, {**fixed, contrast.factor: lv})) for lv in contrast.levels)
        if b.diverged:  # what is subtracted cannot be scored
            return _Value(math.nan, True)
        if contrast.as_ == "difference":
            x = _log(a.x - b.x) if log else a.x - b.x
        elif log:
            x = _log(a.x) - _log(b.x)
        elif b.x == 0:
            raise CannotJudge(f"{contrast.factor} {contrast.levels[1]} of {self.names[side]} is 0; no ratio to it")
        else:
            x = a.x / b.x
        return _Value(x, a.diverged)

    def value(self, side: str, i: int, fixed: Mapping[str, Any], log: bool) -> _Value:
        """The value of an arm and seed: as above, or the slope of it over the levels of x."""
        rule = self.rule
        if rule.kind != "slope":
            return self.at_levels(side, i, fixed, log)
        levels = self.settings.factors[rule.x]
        ys = [self.at_levels(side, i, {**fixed, rule.x: lv}, rule.scale in ("logy", "loglog")) for lv in levels]
        if any(y.diverged for y in ys):
            return _Value(math.nan, True)
        xs = [math.log(lv) if rule.scale in ("logx", "loglog") else lv for lv in levels]
        return _Value(_slope(xs, [y.x for y in ys]))


def _log(x: float) -> float:
    if not math.isfinite(x):
        return x  # worst of either direction, or not scored
    if x <= 0:
        raise CannotJudge(f"a value of {number(x)} has no logarithm, and the rule is about a ratio")
    return math.log(x)


def _slope(xs: list[float], ys: list[float]) -> float:
    """Least-squares slope of y over x; NaN where a y is infinite."""
    x_mean, y_mean = math.fsum(xs) / len(xs), sum(ys) / len(ys)
    if not math.isfinite(y_mean):
        return math.nan
    return math.fsum((x - x_mean) * (y - y_mean) for x, y in zip(xs, ys, strict=True)) / math.fsum(
        (x - x_mean) ** 2 for x in xs
    )


# ---- one rule -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """One level of `per` or cell of a rule (the whole rule where it has neither), decided.

    `values`, `region` and `other` are what `decide` was given: a parameter per seed, or two unpaired samples.  An
    identity, which looks at every row, has no values and no region.
    """

    cell: dict[str, Any]
    decision: Decision
    level: float
    values: tuple[float, ...] = ()
    region: Region | None = None
    other: tuple[float, ...] | None = None
    out: frozenset[int] = frozenset()


def parts_of(
    rule: Rule,
    rows: Iterable[dict],
    measures: Mapping[str, Measure],
    settings: Settings,
    offset: Mapping[str, int] = {},
    diverged: set[int] | None = None,
) -> list[Part]:  # noqa: B006
    """The parts of a rule, of which `at_least` (or all) must hold; CannotJudge where its rows do not allow it.

    `diverged` takes up the seeds at which the arm diverged.
    """
    data = _Values(rule, rows, measures, settings, offset)
    over = [rule.per] if rule.per else rule.cell_factors
    cells = [dict(zip(over, levels, strict=True)) for levels in product(*(settings.factors[name] for name in over))]
    diverged = set() if diverged is None else diverged
    level, no_level = rule.level, rule.level
    if rule.at_least is not None:  # partial conjunction: at least k of n hold, at most k - 1 do
        level = 1 - (1 - rule.level) / (len(cells) - rule.at_least + 1)
        no_level = 1 - (1 - rule.level) / rule.at_least
    judge_cell = _identity if rule.kind == "identity" else _compare
    try:
        found = [judge_cell(data, cell, level, no_level, diverged) for cell in cells]
        if not all(
            v is None or math.isfinite(v) for part in found for v in (part.decision.estimate, *part.decision.interval)
        ):
            raise OverflowError
    except OverflowError:
        raise CannotJudge(f"values of '{rule.measure}' are too large to be squared and added") from None
    return found


def judge_rule(
    rule: Rule,
    rows: Iterable[dict],
    measures: Mapping[str, Measure],
    settings: Settings,
    offset: Mapping[str, int] = {},
) -> dict[str, Any]:  # noqa: B006
    """The verdict of one rule on the rows of its experiment; `offset` moves the seeds of `arm` or `against`.

    Returns {state, why, estimate, interval, level, n, unit, needed_seeds, inside, diverged, parts}: `parts` has one
    entry per level of `per` or cell, `diverged` the seeds at which the arm diverged, `inside` whether the estimate is
    in R.  Rules that need all levels to hold judge each at `level`.
    """
    diverged: set[int] = set()
    unit = unit_of(rule, measures)
    try:
        judged = parts_of(rule, rows, measures, settings, offset, diverged)
    except CannotJudge as error:
        return {
            "state": "inconclusive",
            "why": str(error),
            "estimate": None,
            "interval": [None, None],
            "level": rule.level,
            "n": len(settings.seeds),
            "unit": unit,
            "needed_seeds": None,
            "inside": False,
            "diverged": [],
            "parts": [],
        }
    found = [part.decision for part in judged]
    parts = [_part(part.decision, unit, part.cell) for part in judged]
    whole = _together(found, rule.at_least)
    telling = _telling(found, whole)
    told = _part(whole if rule.at_least is not None else found[telling], unit, {})
    told["state"], told["needed_seeds"] = whole.state, whole.needed
    if rule.at_least is not None:
        told |= {"unit": f"of {len(judged)} cells", "level": rule.level}
    elif judged[telling].cell:
        told["why"] = f"{_levels(judged[telling].cell)}: {told['why']}"
    several = any(part.cell for part in judged)
    return {**told, "inside": whole.inside, "diverged": sorted(diverged), "parts": parts if several else []}


def _identity(data: _Values, cell: dict[str, Any], level: float, no_level: float, diverged: set[int]) -> Part:
    """|value| < bound on every row and every element, over all levels that are not fixed."""
    rule, factors = data.rule, data.settings.factors
    fixed = {**rule.at, **cell}
    open_ = [name for name in factors if name not in fixed]
    largest, where = -1.0, ""
    for levels in product(*(factors[name] for name in open_)):
        for seed in data.seeds["arm"]:
            row = data.row(rule.arm, seed, {**fixed, **dict(zip(open_, levels, strict=True))})
            value = data.measure(row, rule.measure)
            if value is None:
                diverged.add(seed)
            error = INF if value is None else max(map(abs, value if isinstance(value, list) else [value]), default=0.0)
            if error > largest:
                largest, where = error, f"seed {seed}" + "".join(f", {k} {v}" for k, v in row["factors"].items())
    holds = largest < rule.bound
    what = "a row diverged" if largest == INF else f"the largest error is {number(largest)}"
    why = f"{what}{'' if holds else f' ({where})'}, {'below' if holds else 'not below'} the bound {number(rule.bound)}"
    decision = Decision(
        "reproduced" if holds else "not_reproduced",
        why,
        largest if largest < INF else None,
        n=len(data.seeds["arm"]),
        slack=rule.bound - largest,
        inside=holds,
    )
    return Part(cell, decision, level)


def _compare(data: _Values, cell: dict[str, Any], level: float, no_level: float, diverged: set[int]) -> Part:
    """One parameter at fixed levels: values of the arm, alone or against those of the other."""
    rule, region = data.rule, region_of(data.rule, data.measures)
    fixed = {**rule.at, **cell}
    indices = range(len(data.settings.seeds))
    arm = [data.value("arm", i, fixed, region.log) for i in indices]
    out = {i for i in indices if arm[i].diverged}
    diverged |= {data.seeds["arm"][i] for i in out}
    values, other = [v.x for v in arm], None
    if data.names["against"] is not None:
        against = [data.value("against", i, fixed, region.log) for i in indices]
        other = [v.x for v in against]
        if rule.kind == "slope":
            out |= {i for i in indices if against[i].diverged}
        if rule.pair:
            values, other = [a - b for a, b in zip(values, other, strict=True)], None
    decision = decide(values, region, level, other=other, out=frozenset(out), no_level=no_level)
    return Part(cell, decision, level, tuple(values), region, None if other is None else tuple(other), frozenset(out))


def _together(found: list[Decision], at_least: int | None) -> Decision:
    """One state of several: all must hold (any that does not decides), or at least k of n."""
    n = len(found)
    k = n if at_least is None else at_least
    yes, no = (sum(d.state == s for d in found) for s in ("reproduced", "not_reproduced"))
    state = "reproduced" if yes >= k else "not_reproduced" if n - no < k else "inconclusive"
    needed = None
    if state == "inconclusive":
        for inside, wanted in ((True, k), (False, n - k + 1)):  # the side on which enough estimates lie
            least = sorted(d.n if d.state != "inconclusive" else d.needed or INF for d in found if d.inside is inside)
            if len(least) >= wanted:
                needed = None if least[wanted - 1] == INF else int(least[wanted - 1])
        if any(d.n < LEAST_SEEDS for d in found if d.state == "inconclusive"):
            needed = LEAST_SEEDS
    why = f"{yes} of {n} hold and {no} do not; at least {k} are asked for"
    if state == "inconclusive":
        why += f": {found[0].n} seeds; " + (f"about {needed} would decide" if needed else "more would hardly decide")
    points = sum(d.inside for d in found)
    return Decision(
        state, why, float(points), (float(yes), float(n - no)), None, found[0].n, needed, inside=points >= k
    )


def _telling(found: list[Decision], whole: Decision) -> int:
    """The part that decided: one that does not hold, else the one left open, else the one that held most narrowly."""
    states = [(decision.state, decision.needed) for decision in found]
    if whole.state == "not_reproduced":
        return [state for state, _ in states].index("not_reproduced")
    if whole.state == "inconclusive":
        return states.index(("inconclusive", whole.needed))
    return min(range(len(found)), key=lambda i: found[i].slack)


def _levels(cell: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {level}" for name, level in cell.items())


def _part(decision: Decision, unit: str, cell: Mapping[str, Any]) -> dict[str, Any]:
    d, at = decision, {"at": dict(cell)} if cell else {}
    return {
        **at,
        "state": d.state,
        "why": d.why,
        "estimate": d.estimate,
        "interval": list(d.interval),
        "level": d.level,
        "n": d.n,
        "unit": unit,
        "needed_seeds": d.needed,
    }


# ---- one claim ----------------------------------------------------------------------------------------------------


def _judge_rules(
    paper: Paper,
    profile: str,
    experiment: str,
    rows: list[dict],
    rules: list[Rule],
    control: Control | None = None,
    cap: bool = False,
) -> dict[str, Any]:
    """Several rules that must all hold, under a control if one is given; `cap`: no rule holds for a diverged arm."""
    settings = paper.settings(profile, experiment)
    rows = [row for row in rows if row["experiment"] == experiment]
    results = []
    for rule in rules:
        offset = {}
        if control and control.seed_offset:
            named = {"arm": rule.arm, "against": getattr(rule, "against", None)}
            offset = {side: control.seed_offset for side, name in named.items() if name in control.replace}
        result = judge_rule(controlled(rule, control) if control else rule, rows, paper.measures, settings, offset)
        if cap and result["diverged"] and result["inside"] and result["state"] != "not_reproduced":
            seeds = ", ".join(map(str, result["diverged"]))
            why = f"{rule.arm} diverged at seed {seeds}; a method that diverges cannot be reproduced"
            result |= {"state": "inconclusive", "needed_seeds": None, "why": why}
        results.append(result)
    states = [result["state"] for result in results]
    state = next((s for s in ("not_reproduced", "inconclusive") if s in states), "reproduced")
    told = results[states.index(state)]
    open_ = [r["needed_seeds"] for r in results if r["state"] == "inconclusive"]
    parts = []
    for rule, result in zip(rules, results, strict=True):
        label = {"name": rule.name or f"{rule.kind} of {rule.measure}"} if rule.name or len(rules) > 1 else {}
        whole = {k: v for k, v in result.items() if k not in ("parts", "diverged", "inside")}
        for part in result["parts"] or [whole]:
            at = {"name": f"{label['name']}, {_levels(part['at'])}"} if label and "at" in part else label
            parts.append({**at, **part})
    why = told["why"]
    if len(rules) > 1:
        rule = rules[states.index(state)]
        why = f"all {len(rules)} rules hold" if state == "reproduced" else f"{rule.name or rule.kind}: {why}"
    needed = max(open_) if state == "inconclusive" and all(open_) else None
    return {
        **{k: told[k] for k in ("estimate", "interval", "level", "n", "unit")},
        "state": state,
        "why": why,
        "needed_seeds": needed,
        "parts": parts,
        "first": results[0]["estimate"],
    }


def claim_parts(paper: Paper, profile: str, claim_id: str, rows: list[dict]) -> list[tuple[Rule, list[Part]]]:
    """The rules of a claim, each with the parts that `judge_claim` puts together; CannotJudge where rows are missing."""
    experiment = paper.claims[claim_id].experiment
    settings, own = paper.settings(profile, experiment), [row for row in rows if row["experiment"] == experiment]
    return [(rule, parts_of(rule, own, paper.measures, settings)) for rule in paper.rules(claim_id, profile)]


def judge_claim(paper: Paper, profile: str, claim_id: str, rows: list[dict]) -> dict[str, Any]:
    """The verdict of one claim: its rules, then its controls, then its known-good arm."""
    claim, rules = paper.claims[claim_id], paper.rules(claim_id, profile)
    method = _judge_rules(paper, profile, claim.experiment, rows, rules, cap=True)
    state, why, needed = method["state"], method["why"], method["needed_seeds"]
    positive = None
    if claim.positive is not None:
        swap = Control(expect="not_met", replace={rule.arm: claim.positive for rule in rules})
        found = _judge_rules(paper, profile, claim.experiment, rows, rules, swap)
        positive = {"arm": claim.positive, **{k: found[k] for k in ("state", "why", "estimate", "interval")}}
        if state == "not_reproduced" and found["state"] != "reproduced":
            state, needed = "inconclusive", found["needed_seeds"]
            why = f"the known-good arm {claim.positive} is not reproduced either ({found['why']})"
    controls = []
    for control in claim.controls:
        found = _judge_rules(paper, profile, control.experiment or claim.experiment, rows, rules, control)
        expected = ("not_reproduced",) if control.expect == "not_reproduced" else ("not_reproduced", "inconclusive")
        ok = found["state"] in expected
        controls.append(
            {
                **as_dict(control, drop={"why"}),
                "ok": ok,
                **{k: found[k] for k in ("state", "why", "estimate", "interval")},
            }
        )
        if not ok and all(c["ok"] for c in controls[:-1]):
            needed = found["needed_seeds"] if state != "inconclusive" else needed
            state = "inconclusive"
            why = (
                f"the control {_control_text(control)} came out {found['state'].replace('_', ' ')}, expected "
                f"{control.expect.replace('_', ' ')} ({found['why']})"
            )
    rule = [as_dict(rule) for rule in rules]
    return {
        "state": state,
        "why": why,
        **{k: method[k] for k in ("estimate", "interval", "level", "n", "unit")},
        "paper_value": as_dict(claim.paper_value),
        "magnitude": _magnitude(claim, method["first"], method["unit"]),
        "rule": rule[0] if len(rule) == 1 else rule,
        "controls": controls,
        **({"positive": positive} if positive else {}),
        "parts": method["parts"],
        "needed_seeds": needed,
    }


def _control_text(control: Control) -> str:
    swaps = [f"{new} for {old}" for old, new in control.replace.items()]
    extra = [f"on {control.experiment}"] if control.experiment else []
    extra += [f"at {_levels(control.at)}"] if control.at else []
    extra += ["under other seeds"] if control.seed_offset else []
    return "'" + " ".join([", ".join(swaps), *extra]).strip() + "'"


def _magnitude(claim: Claim, ours: float | None, unit: str) -> dict[str, Any] | None:
    """Our estimate beside the paper's number.  Of a range the ratio is to its nearest end, and 1 inside it; it is
    None where the paper's unit is another or its number is 0."""
    told = claim.paper_value
    if ours is None or told.value is None and (told.low is None or told.high is None):
        return None
    paper = told.value if told.value is not None else [told.low, told.high]
    nearest = told.value if told.value is not None else min(max(ours, told.low), told.high)
    same = told.unit in (None, unit) and nearest != 0
    return {"ours": ours, "paper": paper, "ratio": ours / nearest if same else None}


# ---- documents ----------------------------------------------------------------------------------------------------


def judge(paper: Paper, profile: str, document: dict[str, Any], *, check_digest: bool = True) -> dict[str, Any]:
    """The verdict document (`verdict.json`) of a paper at a profile from its rows document (`rows.json`).

    One entry per claim that has a rule at this profile.  ReproError where the rows are another paper's or profile's, or
    (unless `check_digest` is False) are not those that were measured.
    """
    name = results_name(paper.slug, profile, "rows")
    if (document.get("paper"), document.get("profile")) != (paper.slug, profile):
        raise ReproError(
            f"{name}: holds rows of {document.get('paper')} at profile {document.get('profile')}, "
            f"not of {paper.slug} at {profile}"
        )
    if profile not in paper.profiles or profile == "smoke":
        why = "is never judged" if profile == "smoke" else f"is not one of {', '.join(paper.profiles)}"
        raise ReproError(f"{name}: profile {profile} {why}")
    if check_digest:
        _check_digest(name, document)
    _check_names(name, paper, document["rows"])
    return {
        "schema": SCHEMA,
        "paper": paper.slug,
        "profile": profile,
        "rows_digest": rows_digest(document["rows"]),
        "post_hoc": document["registered"] != paper.registration(profile),
        "headline": paper.headline_for(profile),
        "claims": {c: judge_claim(paper, profile, c, document["rows"]) for c in paper.judged_in(profile)},
    }


def _check_digest(name: str, document: dict[str, Any]) -> None:
    if document["provenance"].get("digest") != rows_digest(document["rows"]):
        raise ReproError(
            f"{name}: the rows are not those that were measured (edited by hand?); measure them again: "
            f"repro run {document['paper']} --profile {document['profile']} --force"
        )


def _check_names(name: str, paper: Paper, rows: list[dict]) -> None:
    """Refuse rows of experiments, arms or factors that the paper does not have."""
    again = f"bring rows of this paper, or run `repro run {paper.slug}` again"
    for i, row in enumerate(rows):
        declared = paper.experiments.get(row["experiment"])
        if declared is None:
            raise ReproError(
                f"{name}: rows[{i}].experiment: no experiment '{row['experiment']}' in paper.yaml; {again}"
            )
        if row["arm"] not in declared.arms:
            raise ReproError(
                f"{name}: rows[{i}].arm: no arm '{row['arm']}' in experiment '{row['experiment']}'; {again}"
            )
        if row["factors"].keys() != declared.factors.keys():
            have, want = (", ".join(names) or "none" for names in (row["factors"], declared.factors))
            raise ReproError(
                f"{name}: rows[{i}].factors: has {have}, experiment '{row['experiment']}' has {want}; {again}"
            )


def load_rows(path: str | Path) -> dict[str, Any]:
    """A rows document; ReproError where it is no valid JSON, of another schema, incomplete or edited by hand."""
    path = Path(path)
    name = shown(path)
    document = read_rows(path, "run the profile again", name)
    _check_digest(name, document)
    return document
