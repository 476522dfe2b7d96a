"""The figures and rankings that `paper.yaml` asks for beside its claims: rows as they are, judged by no rule."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from repro import words
from repro.report import drawings
from repro.report.drawings import Scene
from repro.report.figures import is_log
from repro.report.records import Record, Result

MOST = 40  # lines of the table below a figure
Row = Mapping[str, Any]


def sentence(text: str | None) -> str | None:
    """The text with a capital at its start and a full stop at its end."""
    return f"{text[0].upper()}{text[1:].rstrip('.')}." if text else None


class FigureView:
    """One entry of `figures:` at every profile that has its rows; seeds of 1000 and up are left out."""

    def __init__(self, one: Record, index: int):
        self.record, self.index, self.told = one, index, one.paper["figures"][index]
        self.declared = one.paper["experiments"][self.told["experiment"]]
        self.arms: list[str] = self.told.get("arms") or self.declared["arms"]

    def section(self) -> dict[str, Any]:
        """What the template shows."""
        found = [(p, self.rows(r)) for p, r in self.record.results.items()]
        return {
            **{key: self.told.get(key) for key in ("title", "where", "experiment")},
            "about": sentence(self.told.get("about")),
            "index": self.index,
            "profiles": [
                {"profile": p, "figure": self.draw(p, rows), "table": self.table(rows)} for p, rows in found if rows
            ],
            "absent": [p for p, rows in found if not rows and self.told["experiment"] in self.settings(p)],
        }

    def settings(self, profile: str) -> Mapping[str, Any]:
        return (self.record.paper.get("profiles") or {}).get(profile) or {}

    def rows(self, result: Result) -> list[Row]:
        at, measure = (self.told.get("at") or {}).items(), self.told["measure"]
        rows = [
            r
            for r in result.of(self.told["experiment"])
            if r["arm"] in self.arms and r["seed"] < 1000 and all(r["factors"].get(k) == v for k, v in at)
        ]
        return rows if any(measure in r["measures"] for r in rows) else []

    def roles(self) -> dict[str, str]:
        """Arms in the order of the entry, each coloured by its part in the claims on the same experiment."""
        part: dict[str, str] = {}
        for claim in self.record.paper["claims"].values():
            if claim.get("experiment") != self.told["experiment"]:
                continue
            every = claim.get("rule") or []
            if isinstance(every, Mapping):
                every = [every] if "kind" in every else [r for rules in every.values() for r in words.rules(rules)]
            for rule in every:
                part[rule["arm"]] = "method"
                part.setdefault(rule.get("against"), "against")
            for control in claim.get("controls") or []:
                for arm in (control.get("replace") or {}).values():
                    part.setdefault(arm, "control")
        return {arm: part.get(arm, "other") for arm in self.arms}

    def draw(self, profile: str, rows: Sequence[Row]) -> drawings.Figure:
        measure, x = self.told["measure"], self.told.get("x")
        unit = (self.record.paper["measures"].get(measure) or {}).get("unit")
        levels = self.declared.get("factors", {}).get(x) or []
        rule = {
            "kind": "shown",
            "measure": measure,
            "arm": self.arms[0],
            "x": x,
            "steps_to": {"axis": x},
            "scale": "logx" if is_log(levels) else "linear",
        }
        scene = Scene(f"figure-{self.index}-{profile}", profile, rule, self.roles(), rows, unit)
        if any(isinstance(row["measures"].get(measure), list) for row in rows):
            return drawings.curves(scene)
        return drawings.over_levels(scene, x) if x in scene.varying else drawings.seed_dots(scene)

    def table(self, rows: Sequence[Row]) -> dict[str, Any]:
        """Mean, least and greatest value over seeds, per arm and place."""
        measure, x = self.told["measure"], self.told.get("x")
        cells: dict[tuple, list[float]] = {}
        for row in rows:
            values = row["measures"].get(measure)
            if values is None:
                continue
            many = values if isinstance(values, list) else [values]
            across = row["measures"].get(x) if isinstance(values, list) else [row["factors"].get(x)]
            if not isinstance(across, list) or len(across) != len(many):
                across = list(range(len(many)))
            level = words.levels({k: v for k, v in row["factors"].items() if k != x})
            for place, value in zip(across, many, strict=True):
                cells.setdefault((row["arm"], level, place), []).append(value)
        lines = [
            {
                "arm": arm,
                "level": level,
                "x": place,
                "n": len(v),
                "mean": math.fsum(y / len(v) for y in v),
                "low": min(v),
                "high": max(v),
            }
            for (arm, level, place), v in cells.items()
        ]
        keep = (
            sorted({round(i * (len(lines) - 1) / (MOST - 1)) for i in range(MOST)})
            if len(lines) > MOST
            else range(len(lines))
        )
        return {
            "measure": measure,
            "x": x or ("index" if any(line["x"] for line in lines) else None),
            "levels": any(line["level"] for line in lines),
            "count": len(lines),
            "lines": [lines[i] for i in keep],
        }


class RankingView:
    """One entry of `rankings:` at every profile that has its rows."""

    def __init__(self, one: Record, index: int):
        self.record, self.index, self.told = one, index, one.paper["rankings"][index]

    def section(self) -> dict[str, Any]:
        """What the template shows."""
        found = [(p, self.table(r)) for p, r in self.record.results.items()]
        return {
            **{key: self.told.get(key) for key in ("title", "where", "experiment", "measure", "over", "arm")},
            "about": sentence(self.told.get("about")),
            "index": self.index,
            "profiles": [{"profile": p, **table} for p, table in found if table],
        }

    def table(self, result: Result) -> dict[str, Any] | None:
        """Average ranks over the levels (1 is best, ties share), and the tests; None without rows.

        Seeds are averaged within a level first.  A level at which an arm diverged counts as its worst there.
        """
        told = self.told
        arms = told.get("arms") or self.record.paper["experiments"][told["experiment"]]["arms"]
        higher = self.record.paper["measures"][told["measure"]].get("better") == "higher"
        values: dict[str, dict[str, list[float]]] = {}
        for row in result.of(told["experiment"]):
            if row["arm"] in arms and row["seed"] < 1000:
                value = row["measures"].get(told["measure"]) if row["status"] == "ok" else None
                cell = values.setdefault(row["factors"][told["over"]], {}).setdefault(row["arm"], [])
                cell.append(math.inf if value is None else -value if higher else value)
        levels = [level for level, cells in values.items() if set(cells) == set(arms)]
        if not levels or len(arms) < 2:
            return None
        scores = [
            [math.fsum(v / len(values[level][arm]) for v in values[level][arm]) for arm in arms] for level in levels
        ]
        return {
            "levels": levels,
            "seeds": len(values[levels[0]][arms[0]]),
            **rank_table(arms, scores, told["arm"], higher),
        }


def rank_table(
    arms: Sequence[str], scores: Sequence[Sequence[float]], own: str, higher: bool = False
) -> dict[str, Any]:
    """scores: one list per case, lower is better (negated where `higher`) -> ranks, Friedman's test, Wilcoxon's p.

    Friedman needs three arms and two cases; Wilcoxon's signed-rank test (two-sided) two cases that differ.
    """
    from scipy import stats

    ranks = [stats.rankdata(case).tolist() for case in scores]
    mean = [math.fsum(r[i] for r in ranks) / len(ranks) for i in range(len(arms))]
    friedman = None
    if len(arms) >= 3 and len(scores) >= 2 and any(len(set(case)) > 1 for case in scores):
        found = stats.friedmanchisquare(*zip(*ranks, strict=True))
        friedman = {"statistic": float(found.statistic), "p": float(found.pvalue), "freedom": len(arms) - 1}
    column = dict(zip(arms, zip(*scores, strict=True), strict=True))

    def wilcoxon(arm: str) -> float | None:
        if arm == own:
            return None
        # inf - inf: both diverged; a finite stand-in keeps the sign where only one did
        gaps = [0.0 if a == b else a - b for a, b in zip(column[arm], column[own], strict=True)]
        top = max((abs(g) for g in gaps if math.isfinite(g)), default=1.0)
        gaps = [math.copysign(2 * top, g) if math.isinf(g) else g for g in gaps]
        gaps = [g for g in gaps if g]
        return float(stats.wilcoxon(gaps).pvalue) if len(gaps) >= 2 else None

    sign = -1.0 if higher else 1.0
    lines = [
        {
            "arm": arm,
            "rank": r,
            "p": wilcoxon(arm),
            "scores": [sign * v if math.isfinite(v) else None for v in column[arm]],
        }
        for arm, r in sorted(zip(arms, mean, strict=True), key=lambda pair: pair[1])
    ]
    return {"friedman": friedman, "lines": lines}
