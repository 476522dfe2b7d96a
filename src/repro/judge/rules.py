"""From values to the decision on a rule: a closed list of rules, each an interval or an exact test against a region R.

parameter  the value of an arm, or arm minus against seed by seed (two unpaired samples where `pair: false`); of
           logarithms where the rule is about a ratio
R          an open interval: touching its boundary decides nothing

A diverged row has the worst value of its measure; a seed at which the arm diverged lies outside R, and one at which
the comparator has no slope counts for neither side.  The levels of `per`
and the cells of a count are judged one by one and put together.

Both errors are held at 1 - level.  Of n parts of which at least k must hold, each holds at 1 - alpha / (n - k + 1).
Where one failing part decides, it fails at 1 - alpha / m only, m being the number of parts of the whole claim that must
hold: `per`, a list of rules and `at_least: n` of n are treated alike.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import product
from statistics import fmean
from typing import Any

from repro.judge.decide import INF, LEAST_SEEDS, POWER, Decision, Region, advice, decide, decide_rate, few, number
from repro.judge.values import CannotJudge, Values
from repro.spec.model import Measure, Rule, Settings, Tuning

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
        case "slope" | "identity":
            return _given(rule, log=False)
        case "failures" if rule.against is None:
            return _given(rule, log=False)
        case "failures" | "ranks":
            return Region(-INF, 0.0, False, "the range of 'better'")
    raise AssertionError(rule.kind)


def _cell_kind(rule: Rule) -> str:
    """The kind of a rule; for a count that of the rule which each cell must meet."""
    if rule.kind != "count":
        return rule.kind
    if rule.against is None:
        return "bound"
    return "ordering" if rule.min is rule.max is rule.between is None else "ratio"


def unit_of(rule: Rule, measures: Mapping[str, Measure]) -> str:
    """Return the unit of the parameter."""
    unit = measures[rule.steps_to.axis if rule.steps_to else rule.measure].unit
    kind = _cell_kind(rule)
    if kind == "ratio" or getattr(rule, "ratio", None) or rule.contrast and rule.contrast.as_ == "ratio":
        return "ratio"
    if kind == "failures":
        return "failure rate"
    if kind == "ranks":
        return "difference of mean ranks"
    if kind == "slope":
        return {
            "linear": f"{unit} per {rule.x}",
            "logx": f"{unit} per e-fold of {rule.x}",
            "logy": f"log {unit} per {rule.x}",
            "loglog": "exponent",
        }[rule.scale]
    return unit


def shown_region(rule: Rule, measures: Mapping[str, Measure]) -> dict[str, Any]:
    """Return the region of a rule (of a count that of one cell) as pages draw it: ratios as ratios, open ends null."""
    region = region_of(rule, measures)
    return {
        "low": region.display(region.low),
        "high": region.display(region.high),
        "log": region.log,
        "unit": "ratio" if region.log else unit_of(rule, measures),
        "text": region.text,
    }


# ---- one rule -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """One level of `per` or cell of a rule (the whole rule where it has neither), decided.

    `values`, `region` and `other` are what `decide` was given: a parameter per seed, or two unpaired samples.  What is
    decided otherwise (failure rates, ranks) has no values and no region.  `sign`: the rule asks for the sign test.
    """

    cell: dict[str, Any]
    decision: Decision
    level: float
    no_level: float
    values: tuple[float, ...] = ()
    region: Region | None = None
    other: tuple[float, ...] | None = None
    out: frozenset[int] = frozenset()
    sign: bool = False


@dataclass(frozen=True)
class Terms:
    """What a claim says of all its rules.

    least: with fewer seeds nothing is decided.  parts: of how many parts one that fails decides; those of the rule
    alone where it is 0.  tune: what is tuned.
    """

    least: int = LEAST_SEEDS
    parts: int = 0
    tune: Tuning | None = None


def weight(rule: Rule, settings: Settings) -> int:
    """Return the number of parts that must hold: m of `1 - alpha / m`."""
    if rule.kind == "ranks":
        return len(rule.others)
    return rule.at_least or (len(settings.factors[rule.per]) if rule.per else 1)


def cells_of(rule: Rule, settings: Settings) -> list[dict[str, Any]]:
    """Return the levels at which the parts of a rule are judged, one mapping each."""
    over = [rule.per] if rule.per else rule.cell_factors
    return [dict(zip(over, levels, strict=True)) for levels in product(*(settings.factors[name] for name in over))]


def parts_of(
    rule: Rule,
    rows: Iterable[dict],
    measures: Mapping[str, Measure],
    settings: Settings,
    offset: Mapping[str, int] = {},  # noqa: B006
    terms: Terms = Terms(),  # noqa: B008
    seen: "Seen | None" = None,
) -> list[Part]:
    """Decide the parts of a rule, of which `at_least` (or all) must hold; CannotJudge where rows do not allow it."""
    data = Values(rule, rows, measures, settings, offset, terms.tune)
    seen = Seen() if seen is None else seen
    cells = cells_of(rule, settings)
    level = 1 - (1 - rule.level) / (len(cells) - (rule.at_least or len(cells)) + 1)
    parts_all = terms.parts or weight(rule, settings)
    no_level = 1 - (1 - rule.level) / parts_all
    power = POWER ** (1 / parts_all)  # of each part, so that all of them hold with POWER
    try:
        if rule.kind == "ranks":
            parts = _ranks(data, level, no_level, terms.least, seen)
        else:
            judge_cell = _failures if rule.kind == "failures" else _compare
            parts = [judge_cell(data, cell, level, no_level, terms.least, seen, power) for cell in cells]
        ends = (v for part in parts for v in (part.decision.estimate, *part.decision.interval))
        if not all(v is None or math.isfinite(v) for v in ends):
            raise OverflowError
    except OverflowError:
        raise CannotJudge(f"values of '{rule.measure}' are too large to be squared and added.") from None
    finally:
        seen.chosen.update(data.chosen)
    return parts


class Seen:
    """What is noticed while rules are judged: seeds at which the arm diverged, and the levels that were chosen."""

    def __init__(self):
        self.diverged: set[int] = set()
        self.chosen: dict[tuple[str, frozenset], Any] = {}


def judge_rule(
    rule: Rule,
    rows: Iterable[dict],
    measures: Mapping[str, Measure],
    settings: Settings,
    offset: Mapping[str, int] = {},  # noqa: B006
    terms: Terms = Terms(),  # noqa: B008
    seen: Seen | None = None,
) -> dict[str, Any]:
    """Return the verdict of one rule on the rows of its experiment; `offset` moves the seeds of `arm` or `against`.

    {state, why, estimate, interval, level, n, unit, p, needed_seeds, inside, diverged, parts}: `parts` has one entry
    per level of `per`, cell or other arm ranked, `diverged` the seeds at which the arm diverged, `inside` whether the
    estimate is in R.
    """
    seen = Seen() if seen is None else seen
    unit, here = unit_of(rule, measures), Seen()
    try:
        judged = parts_of(rule, rows, measures, settings, offset, terms, here)
    except CannotJudge as error:
        return {
            "state": "inconclusive",
            "why": str(error),
            "estimate": None,
            "interval": [None, None],
            "level": rule.level,
            "n": len(settings.seeds),
            "unit": unit,
            "p": 1.0,
            "needed_seeds": None,
            "inside": False,
            "diverged": [],
            "parts": [],
        }
    finally:
        seen.chosen.update(here.chosen)
        seen.diverged |= here.diverged
    decisions = [part.decision for part in judged]
    parts = [_part(part.decision, unit, part.cell) for part in judged]
    whole = _together(decisions, rule.at_least)
    telling = _telling(decisions, whole)
    result = _part(whole if rule.at_least is not None else decisions[telling], unit, {})
    result["state"], result["needed_seeds"] = whole.state, whole.needed
    if rule.at_least is not None:
        result |= {"unit": f"of {len(judged)} cells", "level": rule.level}
    elif judged[telling].cell and rule.kind != "ranks":
        result["why"] = f"at {levels_text(judged[telling].cell)}, {result['why']}"
    several = any(part.cell for part in judged)
    more = {"p": whole.p, "inside": whole.inside, "diverged": sorted(here.diverged)}
    return {**result, **more, "parts": parts if several else []}


def _compare(
    data: Values, cell: dict[str, Any], level: float, no_level: float, least: int, seen: Seen, power: float
) -> Part:
    """One parameter at fixed levels: values of the arm, alone or against those of the other."""
    rule, region = data.rule, region_of(data.rule, data.measures)
    values, other, out = parameters(data, cell, region.log)
    seen.diverged |= {data.seeds["arm"][i] for i in out}
    decision = decide(
        values,
        region,
        level,
        other=other,
        out=frozenset(out),
        no_level=no_level,
        least=least,
        sign=rule.statistic == "sign",
        power=power,
    )
    itself = data.names["arm"] == data.names["against"] and data.seeds["arm"] == data.seeds["against"]
    if itself and rule.pair and decision.state == "inconclusive" and not region.holds(0.0) and len(values) >= least:
        why = f"an arm against itself differs by nothing, which lies outside {region.text}."
        decision = replace(decision, state="not_reproduced", why=why, level=no_level, needed=None, slack=-INF)
    kept = None if other is None else tuple(other)
    return Part(cell, decision, level, no_level, tuple(values), region, kept, frozenset(out), rule.statistic == "sign")


def parameters(data: Values, cell: Mapping[str, Any], log: bool) -> tuple[list[float], list[float] | None, set[int]]:
    """Return the parameter of every seed (or two unpaired samples), and the places at which the arm diverged."""
    rule, fixed = data.rule, {**data.rule.at, **cell}
    indices = range(len(data.settings.seeds))
    arm = [data.value("arm", i, fixed, log) for i in indices]
    out = {i for i in indices if arm[i].diverged}
    values = [v.x for v in arm]
    if data.names["against"] is None:
        return values, None, out
    against = [data.value("against", i, fixed, log) for i in indices]
    if rule.pair:
        return [a - b.x for a, b in zip(values, against, strict=True)], None, out
    return values, [v.x for v in against], out


def _failures(
    data: Values, cell: dict[str, Any], level: float, no_level: float, least: int, seen: Seen, power: float
) -> Part:
    """The failure rate of an arm in its region, or smaller than that of the other (exact test of McNemar)."""
    rule, region = data.rule, region_of(data.rule, data.measures)
    fixed, n = {**rule.at, **cell}, len(data.settings.seeds)
    fails = {side: failed_runs(data, side, fixed, rule) for side, name in data.names.items() if name}
    if rule.against is None:
        decision = decide_rate(sum(fails["arm"]), n, region, level, no_level, least, power)
        return Part(cell, decision, level, no_level)
    counts = f"{sum(fails['arm'])} runs of {rule.arm} and {sum(fails['against'])} of {rule.against} failed, of {n} each"
    rate = (sum(fails["arm"]) - sum(fails["against"])) / n
    unlike = [float(a - b) for a, b in zip(fails["arm"], fails["against"], strict=True) if a != b]
    if n < least:
        decision = Decision("inconclusive", few(n, least), rate, level=level, n=n, needed=least)
    elif not unlike:
        decision = Decision(
            "inconclusive", f"{counts}, at the same seeds.", rate, level=level, n=n, inside=False, p=1.0
        )
    else:
        found = decide(unlike, region, level, no_level=no_level, least=0, sign=True, pairs=n, power=power)
        why = f"{counts}: of the {len(unlike)} seeds at which only one failed, {found.why}"
        decision = Decision(
            found.state, why, rate, level=found.level, n=n, needed=found.needed, slack=0.0, inside=rate < 0, p=found.p
        )
    return Part(cell, decision, level, no_level)


def failed_runs(data: Values, side: str, fixed: Mapping[str, Any], threshold: Any) -> list[bool]:
    """Return for every seed whether the run failed: it diverged, or its measure lies past `below` or `above`."""
    name, failed = data.names[side], []
    for seed in data.seeds[side]:
        at = data.tuned(name, fixed)
        value = None if data.untunable(name, at) else data.measure(data.row(name, seed, at), threshold.measure)
        value = value[-1] if isinstance(value, list) and value else value
        past = value is None or value == []
        past = past or threshold.below is not None and value < threshold.below
        failed.append(past or threshold.above is not None and value > threshold.above)
    return failed


def _ranks(data: Values, level: float, no_level: float, least: int, seen: Seen) -> list[Part]:
    """The arm before each other one over the levels of a factor: Friedman's test, then Wilcoxon's of each pair."""
    from scipy import stats

    rule, seeds = data.rule, data.seeds["arm"]
    if len(seeds) < least:
        few_ = Decision("inconclusive", few(len(seeds), least), level=level, n=len(seeds), needed=least)
        return [Part({"against": other}, few_, level, no_level) for other in rule.others]
    arms, cases = [rule.arm, *rule.others], data.settings.factors[rule.over]
    scores = {name: [_score(data, name, {**rule.at, rule.over: case}) for case in cases] for name in arms}
    for case in cases:
        values = _seeds_of(data, rule.arm, {**rule.at, rule.over: case})
        seen.diverged |= {seed for seed, value in zip(seeds, values, strict=True) if value == INF}
    table = [[scores[name][i] for name in arms] for i in range(len(cases))]
    ranks = [list(stats.rankdata(line)) for line in table]
    mean = {name: fmean(line[i] for line in ranks) for i, name in enumerate(arms)}
    alike = 1.0
    if len(arms) > 2 and len(cases) > 1 and any(len(set(line)) > 1 for line in ranks):
        alike = float(stats.friedmanchisquare(*zip(*ranks, strict=True)).pvalue)
    parts = []
    for other in rule.others:
        gaps = _gaps(scores[rule.arm], scores[other])
        better, worse = 1.0, 1.0
        if len(gaps) > 1:
            better, worse = (float(stats.wilcoxon(gaps, alternative=side).pvalue) for side in ("less", "greater"))
        apart = len(arms) == 2 or alike <= 1 - level
        gap = mean[rule.arm] - mean[other]
        state = "inconclusive"
        if apart and better <= 1 - level and gap < 0:
            state = "reproduced"
        elif worse <= 1 - no_level and gap > 0:
            state = "not_reproduced"
        p = better if len(arms) == 2 else max(better, alike)
        why = (
            f"the mean rank of {rule.arm} over {len(cases)} levels of {rule.over} is {mean[rule.arm]:.2f} and that of "
            f"{other} {mean[other]:.2f} (Wilcoxon p = {better if gap < 0 else worse:.2g}"
            + (f"; Friedman over {len(arms)} arms p = {alike:.2g}" if len(arms) > 2 else "")
            + ")."
        )
        used = no_level if state == "not_reproduced" else level
        decision = Decision(state, why, gap, (None, None), used, len(cases), slack=-better, inside=gap < 0, p=p)
        parts.append(Part({"against": other}, decision, level, no_level))
    return parts


def _score(data: Values, name: str, fixed: Mapping[str, Any]) -> float:
    """The mean of an arm over the seeds, less being better; infinite where one diverged."""
    return fmean(_seeds_of(data, name, fixed))


def _seeds_of(data: Values, name: str, fixed: Mapping[str, Any]) -> list[float]:
    """The value of an arm at every seed, less being better; infinite where it diverged."""
    fixed, values = data.tuned(name, fixed), []
    for seed in data.seeds["arm"]:
        value = None if data.untunable(name, fixed) else data.measure(data.row(name, seed, fixed), data.rule.measure)
        if isinstance(value, list):
            raise CannotJudge(f"measure '{data.rule.measure}' is a curve, which has no rank.")
        values.append(INF if value is None else data.sign * value)
    return values


def _gaps(ours: list[float], theirs: list[float]) -> list[float]:
    """Differences that are not 0; of a diverged run a finite one that is larger than all others."""
    gaps = [0.0 if a == b else a - b for a, b in zip(ours, theirs, strict=True)]
    top = max((abs(gap) for gap in gaps if math.isfinite(gap)), default=1.0)
    return [math.copysign(2 * top, gap) if math.isinf(gap) else gap for gap in gaps if gap]


def _together(decisions: list[Decision], at_least: int | None) -> Decision:
    """One state of several: all must hold (any that does not decides), or at least k of n."""
    n = len(decisions)
    k = n if at_least is None else at_least
    yes, no = (sum(d.state == s for d in decisions) for s in ("reproduced", "not_reproduced"))
    state = "reproduced" if yes >= k else "not_reproduced" if n - no < k else "inconclusive"
    needed = None
    if state == "inconclusive":
        for inside, wanted in ((True, k), (False, n - k + 1)):  # the side on which enough estimates lie
            least = sorted(
                d.n if d.state != "inconclusive" else d.needed or INF for d in decisions if d.inside is inside
            )
            if len(least) >= wanted:
                needed = None if least[wanted - 1] == INF else int(least[wanted - 1])
        short = [d.needed for d in decisions if d.state == "inconclusive" and d.needed and d.why == few(d.n, d.needed)]
        needed = short[0] if short else needed
    why = f"{yes} of {n} conditions {'holds' if yes == 1 else 'hold'}, {no} {'fails' if no == 1 else 'fail'} and "
    why += f"{n - yes - no} "
    why += f"{'is' if n - yes - no == 1 else 'are'} open; {k} {'is' if k == 1 else 'are'} needed."
    if state == "inconclusive":
        why += f" {advice(decisions[0].n, needed)}"
    points = sum(d.inside for d in decisions)
    ps = sorted(1.0 if d.p is None else d.p for d in decisions)
    p = min(1.0, (n - k + 1) * ps[k - 1])
    ends = (float(yes), float(n - no))
    return Decision(state, why, float(points), ends, None, decisions[0].n, needed, inside=points >= k, p=p)


def _telling(decisions: list[Decision], whole: Decision) -> int:
    """The part that decided: one that does not hold, else the one left open, else the one that held most narrowly."""
    states = [(decision.state, decision.needed) for decision in decisions]
    if whole.state == "not_reproduced":
        return [state for state, _ in states].index("not_reproduced")
    if whole.state == "inconclusive":
        return states.index(("inconclusive", whole.needed))
    return min(range(len(decisions)), key=lambda i: decisions[i].slack)


def levels_text(cell: Mapping[str, Any]) -> str:
    """Return levels as a reason names them: `depth 4, lr 0.01`."""
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
