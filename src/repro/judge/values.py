"""From rows to one value per arm and seed.

value  a measure at fixed levels; with `contrast` the difference (first minus second level) or ratio of two levels, with
       `steps_to` the first step at which a curve reaches the target (infinite where it never does), of a slope rule the
       least-squares slope over the levels of x

Where the claim tunes, every arm is read at its own level of the tuned factor, which `repro.run.tuning.choose`
picks from
the rows of the tuning seeds, for each cell of the other factors.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from repro.judge.decide import INF, number
from repro.run.tuning import Chosen, Invalid, choose
from repro.spec.model import Measure, Rule, Settings, Tuning


class CannotJudge(Exception):
    """Rows that are missing, invalid or outside a rule's domain: the rule is inconclusive, and why."""


@dataclass(frozen=True)
class Value:
    x: float
    diverged: bool = False


def _key(arm: str, seed: int, factors: Mapping[str, Any]) -> tuple:
    return arm, seed, frozenset(factors.items())


class Values:
    """The values of a rule's arms, seed by seed; `seeds[side][i]` is the i-th seed of `arm` or `against`."""

    def __init__(
        self,
        rule: Rule,
        rows: Iterable[dict],
        measures: Mapping[str, Measure],
        settings: Settings,
        offset: Mapping[str, int],
        tune: Tuning | None = None,
    ):
        self.rule, self.measures, self.settings, self.tune = rule, measures, settings, tune
        self.rows = {_key(row["arm"], row["seed"], row["factors"]): row for row in rows}
        self.names = {"arm": rule.arm, "against": getattr(rule, "against", None)}
        self.seeds = {side: [seed + offset.get(side, 0) for seed in settings.seeds] for side in self.names}
        self.single = {name: levels[0] for name, levels in settings.factors.items() if len(levels) == 1}
        better = measures[rule.measure].better
        self.sign = {"lower": 1.0, "higher": -1.0}.get(better, math.nan)  # worst value: sign * inf
        self.worst = INF if rule.steps_to else self.sign * INF
        self.chosen: dict[tuple[str, frozenset], Chosen] = {}

    def row(self, name: str, seed: int, fixed: Mapping[str, Any]) -> dict:
        row = self.rows.get(_key(name, seed, {**self.single, **fixed}))
        where = ", ".join([name, f"seed {seed}", *(f"{k} {v}" for k, v in fixed.items())])
        if row is None:
            raise CannotJudge(f"the row of {where} is missing; run the profile again.")
        if row["status"] not in ("ok", "diverged"):
            raise CannotJudge(f"the row of {where} is {row['status']}: {row.get('why', 'no reason given')}.")
        return row

    def measure(self, row: dict, name: str) -> Any:
        """The measure of a row; None where the row diverged or the number is not finite."""
        if row["status"] == "diverged":
            return None
        if name not in row["measures"]:
            raise CannotJudge(f"the row of {row['arm']}, seed {row['seed']} has no measure '{name}'; run it again.")
        value = row["measures"][name]
        whole = value if isinstance(value, list) else [value]
        return value if all(v is not None and math.isfinite(v) for v in whole) else None

    def at_row(self, side: str, i: int, fixed: Mapping[str, Any]) -> Value:
        """One number of one row: the measure, or the steps to the target."""
        if self.untunable(self.names[side], fixed):
            return Value(self.worst, diverged=True)
        row = self.row(self.names[side], self.seeds[side][i], fixed)
        value = self.measure(row, self.rule.measure)
        if value is None:
            return Value(self.worst, diverged=True)
        if self.rule.steps_to:
            return Value(self.steps(row, value, self.target(side, i, fixed, value)))
        if isinstance(value, list):
            raise CannotJudge(f"measure '{self.rule.measure}' is a curve; the rule needs steps_to.")
        return Value(float(value))

    def target(self, side: str, i: int, fixed: Mapping[str, Any], own: Any) -> float | None:
        """The target of steps_to; None (anything reaches it) where the comparator whose best it is diverged."""
        target = self.rule.steps_to.target
        if target != "best":
            return target
        if side == "arm":
            other = self.names["against"]
            fixed = self.tuned(other, {k: v for k, v in fixed.items() if not self.tune or k != self.tune.factor})
            if self.untunable(other, fixed):
                return None
            own = self.measure(self.row(self.names["against"], self.seeds["against"][i], fixed), self.rule.measure)
        return None if own is None else self.sign * min(self.sign * v for v in self.curve(own))

    def curve(self, value: Any) -> list[float]:
        if not isinstance(value, list) or not value:
            raise CannotJudge(f"measure '{self.rule.measure}' is no curve; steps_to needs one.")
        return value

    def steps(self, row: dict, curve: Any, target: float | None) -> float:
        """The first entry of the axis at which the curve is as good as the target."""
        axis = self.measure(row, self.rule.steps_to.axis)
        if not isinstance(axis, list) or len(axis) != len(self.curve(curve)):
            raise CannotJudge(
                f"'{self.rule.measure}' and its axis '{self.rule.steps_to.axis}' differ in length "
                f"({row['arm']}, seed {row['seed']})."
            )
        good = (a for a, v in zip(axis, curve, strict=True) if target is None or self.sign * v <= self.sign * target)
        return float(next(good, INF))

    def tuned(self, name: str, fixed: Mapping[str, Any]) -> dict[str, Any]:
        """`fixed` with the arm's own level of the tuned factor; None there where every level diverged."""
        if self.tune is None:
            return dict(fixed)
        factor = self.tune.factor
        cell = {k: v for k, v in {**self.single, **fixed}.items() if k != factor}
        key = (name, frozenset(cell.items()))
        if key not in self.chosen:
            try:
                self.chosen[key] = choose(
                    self.rows.values(),
                    arm=name,
                    cell=cell,
                    factor=factor,
                    levels=self.settings.factors[factor],
                    seeds=self.tune.seeds,
                    measure=self.tune.measure,
                    better=self.tune.better,
                    start=self.tune.start,
                )
            except Invalid as error:
                raise CannotJudge(str(error)) from None
            except KeyError:
                raise CannotJudge(
                    f"rows of {name} at the tuning seeds are missing, so that no {factor} can be chosen; run the "
                    "profile again."
                ) from None
        return {**fixed, factor: self.chosen[key].level}

    def untunable(self, name: str, fixed: Mapping[str, Any]) -> bool:
        """Did the arm diverge at every level of the tuned factor?"""
        return self.tune is not None and fixed.get(self.tune.factor) is None

    def at_levels(self, side: str, i: int, fixed: Mapping[str, Any], log: bool) -> Value:
        """One number of an arm and seed: a row's, or the contrast of two; its logarithm if `log`."""
        contrast = self.rule.contrast
        if contrast is None:
            value = self.at_row(side, i, self.tuned(self.names[side], fixed))
            return Value(_log(value.x), value.diverged) if log else value
        a, b = (
            self.at_row(side, i, self.tuned(self.names[side], {**fixed, contrast.factor: lv})) for lv in contrast.levels
        )
        if b.diverged:  # what is subtracted cannot be scored
            return Value(math.nan, True)
        if contrast.as_ == "difference":
            x = _log(a.x - b.x) if log else a.x - b.x
        elif log:
            x = _log(a.x) - _log(b.x)
        elif b.x == 0:
            raise CannotJudge(
                f"{contrast.factor} {contrast.levels[1]} of {self.names[side]} is 0, and no ratio to it can be taken."
            )
        else:
            x = a.x / b.x
        return Value(x, a.diverged)

    def value(self, side: str, i: int, fixed: Mapping[str, Any], log: bool) -> Value:
        """The value of an arm and seed: as above, or the slope of it over the levels of x."""
        rule = self.rule
        if rule.kind != "slope":
            return self.at_levels(side, i, fixed, log)
        levels = self.settings.factors[rule.x]
        ys = [self.at_levels(side, i, {**fixed, rule.x: lv}, rule.scale in ("logy", "loglog")) for lv in levels]
        if any(y.diverged for y in ys):
            return Value(math.nan, True)
        xs = [math.log(lv) if rule.scale in ("logx", "loglog") else lv for lv in levels]
        return Value(_slope(xs, [y.x for y in ys]))


def _log(x: float) -> float:
    if not math.isfinite(x):
        return x  # worst of either direction, or not scored
    if x <= 0:
        raise CannotJudge(f"a value of {number(x)} has no logarithm, and the rule is about a ratio.")
    return math.log(x)


def _slope(xs: list[float], ys: list[float]) -> float:
    """Least-squares slope of y over x; NaN where a y is infinite."""
    x_mean, y_mean = math.fsum(xs) / len(xs), sum(ys) / len(ys)
    if not math.isfinite(y_mean):
        return math.nan
    return math.fsum((x - x_mean) * (y - y_mean) for x, y in zip(xs, ys, strict=True)) / math.fsum(
        (x - x_mean) ** 2 for x in xs
    )
