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
from typing import Any

from repro.judge.decide import INF, LEAST_SEEDS, Decision, Region, decide, number
from repro.judge.values import CannotJudge, Values
from repro.spec.model import Measure, Rule, Settings

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
    data = Values(rule, rows, measures, settings, offset)
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
        told["why"] = f"{levels_text(judged[telling].cell)}: {told['why']}"
    several = any(part.cell for part in judged)
    return {**told, "inside": whole.inside, "diverged": sorted(diverged), "parts": parts if several else []}


def _identity(data: Values, cell: dict[str, Any], level: float, no_level: float, diverged: set[int]) -> Part:
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


def _compare(data: Values, cell: dict[str, Any], level: float, no_level: float, diverged: set[int]) -> Part:
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


def levels_text(cell: Mapping[str, Any]) -> str:
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
