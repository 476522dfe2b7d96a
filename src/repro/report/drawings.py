"""From rows and verdicts to figures: what is drawn, and what its text alternative says."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from repro import words
from repro.report import figures
from repro.report.figures import Estimate, Group

MOST = 18  # lines of one figure
STANDS = {"reproduced": "meets the rule", "not_reproduced": "fails the rule", "inconclusive": "open"}
Span = tuple[float | None, float | None]


@dataclass(frozen=True)
class Figure:
    svg: str
    caption: str


@dataclass(frozen=True)
class Scene:
    """Rows of one experiment at one profile, and the rule for whose sake they are drawn."""

    name: str
    profile: str
    rule: Mapping[str, Any]
    roles: Mapping[str, str]  # arm -> method, against, control, ...
    rows: Sequence[Mapping[str, Any]]
    unit: str | None = None
    tuned: str | None = None  # the factor of which every arm has a level of its own

    @property
    def measure(self) -> str:
        return self.rule["measure"]

    @property
    def axis(self) -> str:
        return f"{self.measure} ({self.unit})" if self.unit and self.unit != self.measure else self.measure

    @property
    def chosen(self) -> str | None:
        """The tuned factor, if each arm is drawn at its own level of it alone."""
        if self.tuned is None:
            return None
        levels: dict[str, set] = {}
        for row in self.rows:
            others = {name: level for name, level in row["factors"].items() if name != self.tuned}
            levels.setdefault(json.dumps([row["arm"], others], sort_keys=True), set()).add(
                row["factors"].get(self.tuned)
            )
        return self.tuned if all(len(own) == 1 for own in levels.values()) else None

    @property
    def varying(self) -> dict[str, list]:
        """Factor -> its levels, for factors with more than one among the rows; without that which each arm chose."""
        found: dict[str, list] = {}
        for row in self.rows:
            for name, level in row["factors"].items():
                if level not in found.setdefault(name, []):
                    found[name].append(level)
        chosen = self.chosen
        return {name: levels for name, levels in found.items() if len(levels) > 1 and name != chosen}

    def bundles(self, factors: Iterable[str]) -> dict[tuple[str, str], list[Mapping[str, Any]]]:
        """Rows by (label, arm), the levels of `factors` in their order, then the arms in the order of their roles."""
        factors, arms, place = list(factors), list(self.roles), {}
        for row in self.rows:
            place.setdefault(json.dumps([row["factors"].get(f) for f in factors]), len(place))

        def order(row: Mapping[str, Any]) -> tuple[int, int]:
            return place[json.dumps([row["factors"].get(f) for f in factors])], arms.index(row["arm"])

        found: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
        for row in sorted(self.rows, key=order):
            level = words.levels({f: row["factors"].get(f) for f in factors})
            found.setdefault((f"{row['arm']}, {level}" if level else row["arm"], row["arm"]), []).append(row)
        return found


def draw(scene: Scene) -> Figure:
    """The figure that suits the rows: curves, lines over a factor, or dots."""
    if any(isinstance(row["measures"].get(scene.measure), list) for row in scene.rows):
        return curves(scene)
    varying = scene.varying
    numeric = [f for f, levels in varying.items() if len(levels) >= 3 and all(type(v) in (int, float) for v in levels)]
    across = scene.rule.get("x") if scene.rule.get("x") in varying else None
    across = across or max(numeric, key=lambda f: len(varying[f]), default=None)
    return over_levels(scene, across) if across else seed_dots(scene)


# --- dots -------------------------------------------------------------------------------------------------------------


def mean_interval(values: list[float], level: float) -> tuple[float, float, float] | None:
    """Low, mean and high of Student's t over seeds, each end at `level`; None below three or without spread."""
    if len(values) < 3 or max(values) == min(values):
        return None
    from repro.judge.decide import t_quantile

    mean = math.fsum(v / len(values) for v in values)  # the sum alone may be too large
    try:
        spread = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1))
    except OverflowError:
        return None
    half = t_quantile(level, len(values) - 1) * spread / math.sqrt(len(values))
    return mean - half, mean, mean + half


def limits_of(rule: Mapping[str, Any]) -> list[float]:
    """The bounds that a rule sets on the measure itself."""
    if rule.get("contrast") or rule.get("steps_to"):
        return []
    if rule["kind"] == "identity":
        return [rule["bound"]]
    ends = rule.get("between") or [rule.get("min"), rule.get("max")]
    return [v for v in ends if v is not None] if rule["kind"] == "bound" else []


def seed_dots(scene: Scene) -> Figure:
    """A dot per seed, one line per arm and level."""
    groups, rule = [], scene.rule
    for (label, arm), rows in scene.bundles(scene.varying).items():
        good = [r for r in rows if r["status"] == "ok" and scene.measure in r["measures"]]
        values = {r["seed"]: r["measures"][scene.measure] for r in good}
        lost = tuple(r["seed"] for r in rows if r["status"] == "diverged")
        plain = lost or rule["kind"] == "identity"
        interval = None if plain else mean_interval(list(values.values()), rule.get("level") or 0.95)
        groups.append(Group(label, scene.roles[arm], values, lost, interval))
    caption = f"{scene.profile}: {scene.axis} by seed"
    caption += "; below the dots their mean and its interval." if any(g.interval for g in groups) else "."
    caption += f" Each arm has its own {scene.chosen}." if scene.chosen else ""
    if limits := limits_of(rule):
        caption += " The line is what the rule sets."
    if any(g.diverged for g in groups):
        caption += " Crosses at the right edge are seeds that diverged."
    if len(groups) > MOST:
        caption += f" The first {MOST} of {len(groups)} lines are drawn; the table below has all."
    drawing = figures.dots(
        groups[:MOST],
        name=f"{scene.name}-seeds",
        axis=scene.axis,
        limits=limits,
        title=f"{scene.axis} per seed, {scene.profile}",
        description=" ".join(map(_dots_told, groups)),
    )
    return Figure(drawing, caption)


def _dots_told(group: Group) -> str:
    parts = []
    if group.values:
        low, high = (words.number(f(group.values.values())) for f in (min, max))
        count = f"{len(group.values)} seed{'s' * (len(group.values) != 1)}"
        parts.append(f"{count} at {low}" if low == high else f"{count} at {low} to {high}")
    if group.interval:
        low, mean, high = map(words.number, group.interval)
        parts.append(f"mean {mean}, interval {low} to {high}")
    if group.diverged:
        parts.append(f"{len(group.diverged)} diverged")
    return f"{group.label}: {', '.join(parts) or 'no values'}."


# --- lines ------------------------------------------------------------------------------------------------------------


def curves(scene: Scene) -> Figure:
    """A line per seed for a measure that is a list; of a factor with many levels the first and the last."""
    steps = scene.rule.get("steps_to") or {}
    keep = {f: (levels[0], levels[-1]) for f, levels in scene.varying.items()}
    rows = [r for r in scene.rows if all(r["factors"].get(f) in ends for f, ends in keep.items())]
    shown = replace(scene, rows=rows)
    groups, told = [], []
    for (label, arm), some in shown.bundles(scene.varying).items():
        drawn = {r["seed"]: _curve(r["measures"], scene.measure, steps.get("axis")) for r in some}
        drawn = {seed: line for seed, line in drawn.items() if line}
        lost = sum(r["status"] == "diverged" for r in some)
        groups.append(Group(f"{label} ({lost} diverged)" if lost else label, scene.roles[arm], lines=drawn))
        ends = [line[-1][1] for line in drawn.values()]
        span = f" ending between {words.number(min(ends))} and {words.number(max(ends))}" if ends else ""
        told.append(f"{groups[-1].label}: {len(ends)} lines{span}.")
    goal = steps.get("target") if type(steps.get("target")) in (int, float) else None
    caption = f"{scene.profile}: {scene.axis}, one line per seed"
    caption += "; first and last level drawn." if len(rows) < len(scene.rows) else "."
    caption += "" if goal is None else " The horizontal line is the level to reach."
    return _lines(scene, groups, steps.get("axis") or "index", told, caption, target=goal)


def _curve(measures: Mapping[str, Any], name: str, axis: str | None) -> list[tuple[float, float]]:
    ys, xs = measures.get(name), measures.get(axis or "")
    if not isinstance(ys, list):
        return []
    return list(zip(xs if isinstance(xs, list) and len(xs) == len(ys) else range(len(ys)), ys, strict=True))


def over_levels(scene: Scene, across: str) -> Figure:
    """A measure over the levels of a factor, one line per seed."""
    groups, told, levels = [], [], scene.varying[across]
    for (label, arm), rows in scene.bundles(f for f in scene.varying if f != across).items():
        drawn: dict[int, list[tuple[float, float]]] = {}
        for r in rows:
            if r["status"] == "ok" and scene.measure in r["measures"]:
                drawn.setdefault(r["seed"], []).append((r["factors"][across], r["measures"][scene.measure]))
        lost = sum(r["status"] == "diverged" for r in rows)
        label += f" ({lost} of {len(rows)} diverged)" if lost else ""
        groups.append(Group(label, scene.roles[arm], lines={seed: sorted(line) for seed, line in drawn.items()}))
        means = []
        for level in (min(levels), max(levels)):
            values = [y for line in drawn.values() for x, y in line if x == level]
            mean = words.number(math.fsum(v / len(values) for v in values)) if values else "no value"
            means.append(f"{mean} at {across} {level}")
        told.append(f"{label}: mean {' and '.join(means)}.")
    caption = f"{scene.profile}: {scene.axis} over {across}, one line per seed."
    return _lines(
        scene,
        groups,
        across,
        told,
        caption,
        marks=True,
        log_x=scene.rule.get("scale") in ("logx", "loglog") or (min(levels) > 0 and figures.is_log(levels)),
        levels=sorted(levels) if len(levels) <= 8 else None,
    )


def _lines(scene: Scene, groups: list[Group], across: str, told: list[str], caption: str, **options: Any) -> Figure:
    title, description = f"{scene.axis} over {across}, {scene.profile}", " ".join(told)
    if not any(g.lines for g in groups):
        return Figure("", f"{caption} Nothing to draw: {description}")
    drawing = figures.lines(
        groups[:6],
        name=f"{scene.name}-lines",
        axis=scene.axis,
        across=across,
        title=title,
        description=description,
        **options,
    )
    if len(groups) > 6:
        caption += f" The first 6 of {len(groups)} bundles are drawn; the table below has all."
    return Figure(drawing, caption)


CURVES = {"learning_curve": "training loss"}  # what `repro.tasks` records
AXES = ("learning_steps", "step", "steps", "eval_steps")  # measures that say when the points of a curve were taken


def curve_of(rows: Sequence[Mapping[str, Any]]) -> tuple[str, str] | None:
    """(measure, axis) of the learning curve that rows hold; None where they hold none."""
    for row in rows:
        held = row["measures"]
        for axis in AXES:
            if not isinstance(held.get(axis), list):
                continue
            for name in ("learning_curve", "curve", *held):
                values = held.get(name)
                if name not in AXES and isinstance(values, list) and len(values) == len(held[axis]) > 1:
                    return name, axis
    return None


def learning(scene: Scene, unit: str | None = None) -> Figure | None:
    """Loss against steps: per arm the mean over the seeds, and the band from the least to the greatest.

    None where rows hold no curve, or where the rule is about that curve, which is drawn seed by seed already.
    unit: of the curve.
    """
    found = curve_of(scene.rows)
    if found is None or found[0] == scene.measure:
        return None
    measure, axis = found
    keep = {f: levels[-1] for f, levels in scene.varying.items()}
    rows = [r for r in scene.rows if all(r["factors"].get(f) == level for f, level in keep.items())]
    groups, told = [], []
    for arm in scene.roles:
        own = [_curve(r["measures"], measure, axis) for r in rows if r["arm"] == arm]
        points: dict[float, list[float]] = {}
        for x, y in (point for line in own for point in line):
            points.setdefault(x, []).append(y)
        band = [(x, math.fsum(y / len(ys) for y in ys), min(ys), max(ys)) for x, ys in sorted(points.items())]
        if band:
            groups.append(Group(arm, scene.roles[arm], band=band))
            told.append(f"{arm}: from {words.number(band[0][1])} to {words.number(band[-1][1])}.")
    if not groups:
        return None
    drawing = figures.bands(
        groups[:6],
        name=scene.name,
        axis=CURVES.get(measure, measure.replace("_", " ")) + (f" ({unit})" if unit else ""),
        across=axis.replace("_", " "),
        title=f"Learning curves, {scene.profile}",
        description=" ".join(told),
    )
    at = f" at {words.levels(keep)}" if keep else ""
    own = f", each arm at its own {scene.chosen}" if scene.chosen else ""
    caption = f"{scene.profile}: learning curves{at}{own}; mean over the seeds, and the band of all of them."
    return Figure(drawing, caption)


# --- decisions --------------------------------------------------------------------------------------------------------


def decision(
    name: str,
    profile: str,
    rule: Mapping[str, Any],
    span: Span,
    log: bool,
    lines: Sequence[tuple[str, str, Mapping[str, Any]]],
    unit: str | None,
) -> Figure | None:
    """Estimates (role, label, judged) against the region of a rule; None where none has an estimate."""
    estimates = []
    for role, label, judged in lines[:MOST]:
        low, high = judged.get("interval") or (None, None)
        estimates.append(
            Estimate(label, role, judged.get("words") or STANDS[judged["state"]], judged.get("estimate"), low, high)
        )
    if all(e.value is None for e in estimates):
        return None
    told = [f"The rule asks for {_span_told(span)}.", *map(_estimate_told, estimates)]
    drawing = figures.decision(
        estimates,
        span,
        name=f"{name}-decision",
        axis=estimate_axis(rule, unit),
        log=log,
        title=f"Estimates against the rule, {profile}",
        description=" ".join(told),
    )
    caption = "estimates and intervals; shaded, what the rule asks for. Arrows point to what lies outside the axis."
    return Figure(drawing, f"{profile}: {caption}")


def _estimate_told(e: Estimate) -> str:
    told = f"{e.label}:"
    if e.value is not None:
        told += f" {words.number(e.value)},"
        if e.low is not None or e.high is not None:
            low, high = -math.inf if e.low is None else e.low, math.inf if e.high is None else e.high
            told += f" interval {words.number(low)} to {words.number(high)},"
    return f"{told} {e.state}."


def _span_told(span: Span) -> str:
    low, high = span
    if low is None:
        return "any value" if high is None else f"below {words.exactly(high)}"
    return f"above {words.exactly(low)}" if high is None else f"between {words.exactly(low)} and {words.exactly(high)}"


def _cell_kind(rule: Mapping[str, Any]) -> str:
    """The kind of a rule; of a count that of the rule which each cell must meet."""
    if rule["kind"] != "count":
        return rule["kind"]
    if rule.get("against") is None:
        return "bound"
    return "ratio" if any(rule.get(k) is not None for k in ("min", "max", "between")) else "ordering"


def estimate_axis(rule: Mapping[str, Any], unit: str | None) -> str:
    """What the estimate of a rule (of a count: of one cell) is."""
    measure, kind = rule["measure"], _cell_kind(rule)
    if steps := rule.get("steps_to"):
        measure = f"{steps['axis']} to {steps['target']}"
    if contrast := rule.get("contrast"):
        sign = "÷" if contrast["as"] == "ratio" else "−"
        measure = f"{measure}, {contrast['factor']} {contrast['levels'][0]} {sign} {contrast['levels'][1]}"
    tail = f" ({unit})" if unit and unit != "ratio" else ""
    if kind == "ratio" or rule.get("ratio") is not None:
        return f"{measure}: {rule['arm']} ÷ {rule['against']}"
    if kind in ("ordering", "noninferiority", "equivalence"):
        return f"{measure}: {rule['arm']} − {rule['against']}{tail}"
    if kind == "slope":
        less = f": {rule['arm']} − {rule['against']}" if rule.get("against") else ""
        return f"slope of {measure} over {rule['x']}{less}{tail}"
    return f"{measure}{tail}"
