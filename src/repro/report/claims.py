"""One claim as the templates show it: results by profile, controls, parts, figures, rows."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from repro import words
from repro.report import drawings
from repro.report.drawings import Figure, Scene
from repro.report.records import Record, Result

SHAPES = {"method": "●", "against": "■", "control": "▲", "positive": "◆"}


class ClaimView:
    """One claim of a paper; `rows` of seed 1000 and up (tuning, A/A controls) are listed and not drawn."""

    def __init__(self, one: Record, name: str):
        self.record, self.name, self.claim = one, name, one.paper["claims"][name]
        self.measures: dict[str, dict] = one.paper.get("measures") or {}
        self.experiment = self.claim.get("experiment")

    def judged(self) -> list[tuple[str, Result, dict[str, Any]]]:
        """(profile, result, verdict of this claim) where there is one."""
        found = [(p, r, r.claim(self.name)) for p, r in self.record.results.items()]
        return [(p, r, judged) for p, r, judged in found if judged is not None]

    def rule(self, profile: str) -> list[Mapping[str, Any]]:
        """The rules that apply at a profile: those of the verdict, else those of paper.yaml."""
        judged = self.record.results[profile].claim(self.name) if profile in self.record.results else None
        named = (judged or {}).get("rule") or self.claim.get("rule")
        if isinstance(named, Mapping) and "kind" not in named:
            named = named.get(profile)
        return words.rules(named)

    def summary(self) -> dict[str, Any]:
        """What the table of verdicts shows."""
        headline = [p for p in self.record.results if self.record.headline(p) == self.name]
        return {
            "id": self.name,
            "told": words.told(self.claim["paper_value"]),
            "headline_on": headline,
            "headline_everywhere": len(headline) == len(self.record.results),
            "results": [self.result(r) for r in self.record.results.values()],
        }

    def section(self) -> dict[str, Any]:
        """What the claim's own section shows."""
        c, figures = self.claim, self.figures()
        experiment = (self.record.paper.get("experiments") or {}).get(self.experiment) or {}
        return {
            **self.summary(),
            "statement": c["statement"],
            "where": c["where"],
            "rules": self.rules_told(),
            "fidelity": words.FIDELITY.get(c.get("fidelity"), c.get("fidelity")),
            "experiment": self.experiment,
            "about": experiment.get("about"),
            "note": c.get("note"),
            "erratum": c.get("erratum"),
            "controls": self.controls(),
            "parts": self.parts(),
            "figures": figures,
            "key": self.key() if figures else [],
            "tables": self.tables(),
        }

    def rules_told(self) -> list[tuple[str | None, str]]:
        """(profile, rule in words); the profile is None where all have the same rules."""
        told = {p: [words.rule_text(r, self.measures) for r in self.rule(p)] for p in self.record.results}
        some = [lines for lines in told.values() if lines]
        if some and all(lines == some[0] for lines in some):
            return [(None, line) for line in some[0]]
        return [(p, line) for p, lines in told.items() for line in lines]

    def result(self, result: Result) -> dict[str, Any]:
        """This claim at one profile."""
        judged, rows = result.claim(self.name), result.of(self.experiment)
        told = judged or {}
        return {
            "profile": result.profile,
            "judged": judged is not None,
            "state": told.get("state", "not_run"),
            "stale": result.stale_for(self.claim) if judged else None,
            "post_hoc": bool(judged and (result.verdict or {}).get("post_hoc")),
            **estimate_of(told),
            **{k: told.get(k) for k in ("why", "unit", "level", "n", "needed_seeds", "positive")},
            "magnitude": _magnitude(told.get("magnitude")),
            "device": result.provenance.get("device_model"),
            "seconds": math.fsum(r["seconds"] for r in rows),
            "lost": _lost(rows),
            "absent": None if judged else self.absent(result.profile),
            "rates": result.rates(self.name) if judged else None,
        }

    def absent(self, profile: str) -> str:
        """Why a profile has no verdict of this claim."""
        settings = (self.record.paper.get("profiles") or {}).get(profile)
        if settings is None:
            return f"This paper has no profile {profile}."
        if self.experiment not in settings:
            return "Not part of this profile."
        if not self.rule(profile):
            return "No rule for this profile."
        return f"Not run here yet: repro run {self.record.slug} --profile {profile}"

    def controls(self) -> list[dict[str, Any]]:
        """One line per control and profile; before any run one per control."""
        found = [(p, k) for p, _, judged in self.judged() for k in judged.get("controls") or []]
        found = found or [("–", k) for k in self.claim.get("controls") or []]
        return [
            {
                "profile": p,
                "text": words.control_text(k),
                "expect": words.EXPECTED[k["expect"]],
                "state": k.get("state"),
                "ok": k.get("ok"),
                "reason": k.get("why"),
                **estimate_of(k),
            }
            for p, k in found
        ]

    def parts(self) -> list[dict[str, Any]]:
        """The parts of a rule where it has several."""
        several = [(p, judged["parts"]) for p, _, judged in self.judged() if len(judged.get("parts") or []) > 1]
        return [
            {
                "profile": p,
                "text": part_name(part, i),
                "state": part["state"],
                "n": part.get("n"),
                "level": part.get("level"),
                **estimate_of(part),
            }
            for p, parts in several
            for i, part in enumerate(parts)
        ]

    # rows

    def roles(self, rule: Mapping[str, Any]) -> dict[str, str]:
        """Arm -> its part in the rule, in the order in which figures show them."""
        found = {rule["arm"]: "method"}
        if rule.get("against"):
            found.setdefault(rule["against"], "against")
        for control in self.claim.get("controls") or []:
            for old, arm in (control.get("replace") or {}).items():
                if old in (rule["arm"], rule.get("against")) and not control.get("seed_offset"):
                    found.setdefault(arm, "control")
        if self.claim.get("positive"):
            found.setdefault(self.claim["positive"], "positive")
        return found

    def key(self) -> list[tuple[str, str, list[str]]]:
        """(role, mark, arms) of the figures."""
        named: dict[str, list[str]] = {}
        rules = [rule for p, _, _ in self.judged() for rule in self.rule(p)]
        for arm, role in (pair for rule in rules for pair in self.roles(rule).items()):
            if arm not in named.setdefault(role, []):
                named[role].append(arm)
        return [(role, SHAPES[role], named[role]) for role in SHAPES if role in named]

    def figures(self) -> list[list[Figure]]:
        """The figures of each profile: the decision, then the rows behind up to three rules."""
        every = []
        for profile, result, judged in self.judged():
            found, seen = self.decisions(profile, judged), []
            for rule in self.rule(profile):
                what = [rule["measure"], rule.get("at"), rule["arm"], rule.get("against")]
                if what in seen or len(seen) == 3:
                    continue
                seen.append(what)
                roles, at = self.roles(rule), (rule.get("at") or {}).items()
                rows = [
                    r
                    for r in result.of(self.experiment)
                    if r["arm"] in roles and r["seed"] < 1000 and all(r["factors"].get(k) == v for k, v in at)
                ]
                unit = (self.measures.get(rule["measure"]) or {}).get("unit")
                if rows:
                    name = f"{self.name}-{profile}-{len(seen)}"
                    found.append(drawings.draw(Scene(name, profile, rule, roles, rows, unit)))
            every += [found] if found else []
        return every

    def decisions(self, profile: str, judged: Mapping[str, Any]) -> list[Figure]:
        """Estimates of the method and of the controls against the region that each rule asks for."""
        rules, parts = self.rule(profile), judged.get("parts") or []
        if len(rules) > 1 and len(parts) != len(rules):  # some rule has parts of its own: the table tells them
            return []
        found = []
        for i, rule in enumerate(rules[:3]):
            lines: list[tuple[str, str, Mapping[str, Any]]] = []
            if len(rules) > 1:
                lines = [("method", rule["arm"], parts[i])]
            elif len(parts) > 1 or rule["kind"] == "count":
                lines = [("method", f"{rule['arm']}, {part_name(p, k)}", p) for k, p in enumerate(parts)]
            else:
                lines = [("method", rule["arm"], judged)]
            if len(rules) == 1 and rule["kind"] != "count":
                lines += [("control", words.control_text(c), c) for c in judged.get("controls") or []]
            if rule["kind"] == "identity" or not lines:  # an identity is told by its rows alone
                continue
            span, log = drawings.region(rule, self.measures)
            unit = lines[0][2].get("unit") or judged.get("unit")
            figure = drawings.decision(f"{self.name}-{profile}-{i}", profile, rule, span, log, lines, unit)
            found += [figure] if figure else []
        return found

    def tables(self) -> list[dict[str, Any]]:
        """Every row behind the claim, by profile, with the measures that its rules name."""
        found = []
        for profile, result, _ in self.judged():
            rules = self.rule(profile)
            named = [n for r in rules for n in (r["measure"], (r.get("steps_to") or {}).get("axis")) if n]
            measures, arms = list(dict.fromkeys(named)), {arm for r in rules for arm in self.roles(r)}
            rows = [r for r in result.of(self.experiment) if r["arm"] in arms]
            if rows:
                found.append(
                    {
                        "profile": profile,
                        "factors": list(dict.fromkeys(k for r in rows for k in r["factors"])),
                        "measures": measures,
                        "tuning": any(r["seed"] >= 1000 for r in rows),
                        "keys": any(r["key"] for r in rows),
                        "rows": [_row(r, measures) for r in rows],
                    }
                )
        return found


def estimate_of(judged: Mapping[str, Any]) -> dict[str, Any]:
    low, high = judged.get("interval") or (None, None)
    return {"estimate": judged.get("estimate"), "low": low, "high": high}


def part_name(part: Mapping[str, Any], index: int) -> str:
    """`depth 4`, a rule's name, or `part 2`."""
    return str(part.get("name") or words.levels(part.get("at") or {}) or f"part {index + 1}")


def _magnitude(told: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """`paper` as the list of one number or of the two ends of a range."""
    return {**told, "paper": told["paper"] if isinstance(told["paper"], list) else [told["paper"]]} if told else None


def _row(row: Mapping[str, Any], measures: Iterable[str]) -> dict[str, Any]:
    """A row with its status in words and, per measure, (number, length of the curve whose last point it is or None)."""
    told = row["status"]
    if told == "diverged" and row.get("step") is not None:
        told = f"diverged at step {row['step']}"
    elif row.get("why"):
        told = f"{told}: {row['why']}"
    values = [row["measures"].get(name) for name in measures]
    cells = [((v[-1] if v else None), len(v)) if isinstance(v, list) else (v, None) for v in values]
    return {**row, "told": told, "cells": cells, "short": (row["key"] or "–").removeprefix("sha256:")[:12]}


def _lost(rows: Iterable[Mapping[str, Any]]) -> str:
    """`3 rows diverged (identity)`, for the fine print."""
    told = []
    for status in ("diverged", "invalid"):
        arms = [r["arm"] for r in rows if r["status"] == status]
        if arms:
            told.append(f"{len(arms)} row{'s' * (len(arms) > 1)} {status} ({', '.join(dict.fromkeys(arms))})")
    return "; ".join(told)
