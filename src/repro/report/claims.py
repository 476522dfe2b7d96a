"""One claim as the templates show it: results by profile, controls, parts, figures, rows."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from repro import words
from repro.report import drawings
from repro.report.drawings import STANDS, Figure, Scene
from repro.report.records import Record, Result

MOST_RULES = 6  # of a claim, that are drawn
SHAPES = {"method": "●", "against": "■", "control": "▲", "positive": "◆"}


class ClaimView:
    """One claim of a paper; `rows` of seed 1000 and up (tuning, A/A controls) are listed and not drawn."""

    def __init__(self, one: Record, name: str):
        self.record, self.name, self.claim = one, name, one.paper["claims"][name]
        self.measures: dict[str, dict] = one.paper.get("measures") or {}
        self.experiment = self.claim.get("experiment")
        tunes = [c.get("tune") for c in one.paper["claims"].values() if c.get("experiment") == self.experiment]
        self.tuned: str | None = next((tune["factor"] for tune in tunes if isinstance(tune, Mapping)), None)

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
        results = [self.result(r) for r in self.record.results.values()]
        return {
            "id": self.name,
            "told": words.told(self.claim["paper_value"]),
            "headline": self.record.headline == self.name,
            "results": results,
            "strongest": next((r for r in results if r["judged"]), None),
        }

    def section(self) -> dict[str, Any]:
        """What the claim's own section shows."""
        c, figures, summary = self.claim, self.figures(), self.summary()
        experiment = (self.record.paper.get("experiments") or {}).get(self.experiment) or {}
        return {
            **summary,
            "shown": [r for r in summary["results"] if r["judged"]],
            "absent": [(r["profile"], r["absent"]) for r in summary["results"] if not r["judged"]],
            "statement": c["statement"],
            "where": c["where"],
            "read": c.get("read"),
            "rules": self.rules_told(),
            "fidelity": words.FIDELITY.get(c.get("fidelity"), c.get("fidelity")),
            "experiment": self.experiment,
            "about": experiment.get("about"),
            "note": c.get("note"),
            "erratum": c.get("erratum"),
            "controls": self.controls(),
            "parts": self.parts(),
            "guards": self.guards(),
            "elsewhere": [e for e in self.record.paper.get("elsewhere") or [] if e["claim"] == self.name],
            "figures": figures,
            "key": self.key() if figures else [],
            "tables": self.tables(),
        }

    def meaning(self, judged: Mapping[str, Any], profile: str) -> str | None:
        """What the estimate that stands out is, and what its sign means: that of the rule which decides."""
        rules, parts = self.rule(profile), judged.get("parts") or []
        if not rules:
            return None
        telling = 0
        if len(parts) == len(rules) > 1:
            shown = (judged.get("estimate"), judged.get("interval"))
            telling = next((i for i, p in enumerate(parts) if (p.get("estimate"), p.get("interval")) == shown), 0)
        return meaning(rules[telling], self.measures, counted=words.is_count(judged.get("unit")))

    def guards(self) -> list[dict[str, Any]]:
        """Per profile what stands beside the rule: trivial predictor, tuned levels, positive arm, mutants, failures."""
        found = []
        for profile, _, judged in self.judged():
            told = [*_trivial(judged.get("trivial")), *_tuned(judged.get("tuned"), self.claim.get("tune"))]
            told += [
                *_positive(judged.get("positive"), self.rule(profile), self.claim.get("positive")),
                *_mutants(judged.get("mutants"), judged["state"]),
                *_failures(judged.get("failures")),
            ]
            if told:
                found.append({"profile": profile, "facts": told})
        return found

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
        several = [p for p in told.get("parts") or [] if p.get("estimate") is not None]
        return {
            "profile": result.profile,
            "judged": judged is not None,
            "state": told.get("state", "not_run"),
            "words": words.verdict_words(told.get("state", "not_run"), told.get("mark"), self.claim.get("fidelity")),
            "mark": words.MARKS.get(told.get("mark") or ""),
            "stale": result.stale_for(self.claim) if judged else None,
            "post_hoc": bool(judged and (result.verdict or {}).get("post_hoc")),
            **estimate_of(told),
            **{k: told.get(k) for k in ("why", "unit", "level", "n", "needed_seeds")},
            "meaning": self.meaning(told, result.profile) if judged else None,
            "counted": "tasks" if judged and [r["kind"] for r in self.rule(result.profile)] == ["ranks"] else "seeds",
            "parts": [{"text": part_name(p, i), "unit": p.get("unit"), **estimate_of(p)} for i, p in enumerate(several)]
            if len(told.get("parts") or []) > 1
            else [],
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
        found = [
            (p, {**k, "unit": judged["unit"] if words.is_count(judged.get("unit")) else None})
            for p, _, judged in self.judged()
            for k in judged.get("controls") or []
        ]
        found = found or [("–", k) for k in self.claim.get("controls") or []]
        return [
            {
                "profile": p,
                "text": words.control_text(k),
                "expect": words.expected(k),
                "idea": k.get("without") == "idea",
                "itself": words.alone_text(k, self.rule(p)),
                "state": k.get("state"),
                "ok": k.get("ok") if counts(k, self.rule(p)) else None,
                "reason": k.get("why"),
                "unit": k.get("unit"),
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
                "words": STANDS[part["state"]],
                "unit": part.get("unit"),
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
            if control.get("without") == "idea":
                found.update({arm: "control" for arm in (control.get("replace") or {}).values() if arm not in found})
            for old, arm in (control.get("replace") or {}).items():
                if old in (rule["arm"], rule.get("against")) and not control.get("seed_offset"):
                    found.setdefault(arm, "control")
        positive = self.claim.get("positive")
        for arm in [positive] if isinstance(positive, str) else (positive or {}).values():
            found.setdefault(arm, "positive")
        for arm in rule.get("others") or []:
            found.setdefault(arm, "against")
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
            found, seen, curves = self.decisions(profile, judged), [], []
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
                    scene = Scene(f"{self.name}-{profile}-{len(seen)}", profile, rule, roles, rows, unit, self.tuned)
                    found.append(drawings.draw(scene))
                    if [roles, rows] not in curves:
                        curves.append([roles, rows])
                        found += self.learning(scene)
            every += [found] if found else []
        return every

    def learning(self, scene: Scene) -> list[Figure]:
        """The learning curves behind a rule, if its rows hold some."""
        held = drawings.curve_of(scene.rows)
        unit = (self.measures.get(held[0]) or {}).get("unit") if held else None
        drawn = drawings.learning(replace(scene, name=f"{scene.name}-learning"), unit)
        return [drawn] if drawn else []

    def decisions(self, profile: str, judged: Mapping[str, Any]) -> list[Figure]:
        """Estimates of the method and of the controls against the region that each rule asks for."""
        rules, parts = self.rule(profile), judged.get("parts") or []
        if len(rules) > 1 and len(parts) != len(rules):  # some rule has parts of its own: the table tells them
            return []
        found = []
        told = words.verdict_words(judged["state"], judged.get("mark"), self.claim.get("fidelity"))
        counted = words.is_count(judged.get("unit"))
        for i, rule in enumerate(rules[:MOST_RULES]):
            lines: list[tuple[str, str, Mapping[str, Any]]] = []
            if len(rules) > 1:
                lines = [("method", rule["arm"], parts[i])]
            elif len(parts) > 1 or rule["kind"] == "count":
                lines = [("method", f"{rule['arm']}, {part_name(p, k)}", p) for k, p in enumerate(parts)]
            else:
                lines = [("method", rule["arm"], {**judged, "words": told})]
            if len(rules) == 1 and not counted:  # the controls of a count are counts, which have another axis
                lines += [("control", words.control_text(c), c) for c in judged.get("controls") or []]
            if rule["kind"] == "identity" or not lines:  # an identity is told by its rows alone
                continue
            regions = judged.get("regions") or []
            if i >= len(regions):
                continue
            span, log = (regions[i]["low"], regions[i]["high"]), bool(regions[i]["log"])
            unit = lines[0][2].get("unit") or (None if counted else judged.get("unit"))
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


def counts(control: Mapping[str, Any], rules: list[Mapping[str, Any]]) -> bool:
    """Whether a control says something in some rule, and does not only compare an arm with itself."""
    return not rules or len(words.alone(control, rules)) < len(rules)


def part_name(part: Mapping[str, Any], index: int) -> str:
    """`depth 4`, a rule's name, or `part 2`."""
    return str(part.get("name") or words.levels(part.get("at") or {}) or f"part {index + 1}")


def _magnitude(told: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """`paper` as the list of one number or of the two ends of a range; None where the units differ."""
    if not told or told["ratio"] is None:
        return None
    return {**told, "paper": told["paper"] if isinstance(told["paper"], list) else [told["paper"]]}


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
    """`3 rows diverged (identity), 2 of them while tuning`, for the fine print."""
    told = []
    for status in ("diverged", "invalid"):
        lost = [r for r in rows if r["status"] == status]
        if lost:
            arms, tuning = ", ".join(dict.fromkeys(r["arm"] for r in lost)), sum(r["seed"] >= 1000 for r in lost)
            while_ = "" if not tuning else ", all while tuning" if tuning == len(lost) else f", {tuning} while tuning"
            told.append(f"{len(lost)} row{'s' * (len(lost) > 1)} {status} ({arms}){while_}")
    return "; ".join(told)


# ---- in words -----------------------------------------------------------------------------------------------------


def meaning(rule: Mapping[str, Any], measures: Mapping[str, Mapping[str, Any]], *, counted: bool = False) -> str | None:
    """What the estimate of a rule is, and what its sign or size means, as one sentence.

    counted: whether the estimate is the number of cells in which the rule's condition holds.
    """
    kind, arm, against = rule["kind"], f"`{rule['arm']}`", rule.get("against") and f"`{rule['against']}`"
    told = measures.get(rule["measure"]) or {}
    measure, better = f"`{rule['measure']}`", told.get("better")
    has = f"has the {better} {measure}"
    if steps := rule.get("steps_to"):
        measure, better = f"the number of `{steps['axis']}` to the target", "lower"
        has = f"needs fewer `{steps['axis']}`"
    if kind == "identity":
        return None
    if kind == "count" or counted:
        return f"The estimate counts the cells in which the condition holds, of all cells ({measure} of {arm})."
    if kind == "ranks":
        others = rule.get("others") or []
        than = f"that of `{others[0]}`" if len(others) == 1 else "that of the arm it is compared with"
        return f"The estimate is the mean rank of {arm} less {than}; 1 is the best rank, so less than 0 is better."
    if kind == "failures":
        return f"The estimate is the share of runs of {arm} that fail" + (
            f", less that of {against}." if against else "."
        )
    if kind == "slope":
        less = f" less that of {against}" if against else ""
        falls = "a negative one means that it falls"
        return f"The estimate is the slope of {measure} of {arm} over `{rule['x']}`{less}; {falls}."
    if contrast := rule.get("contrast"):
        first, second = contrast["levels"]
        how = f"{measure} at `{contrast['factor']}` {first} {'divided by' if contrast['as'] == 'ratio' else 'less'}"
        less = f", compared with the same of {against}" if against else ""
        return f"The estimate is, of {arm}, {how} that at {second}{less}."
    if against is None:
        return f"The estimate is the mean of {measure} of {arm}" + (f"; {better} is better." if better else ".")
    if kind == "ratio" or rule.get("ratio") is not None:
        side = {"lower": "below", "higher": "above"}.get(better or "")
        size = f"; {side} 1, {arm} {has}, which is better." if side else "."
        return f"The estimate is {measure} of {arm} divided by that of {against}{size}"
    sign = {"lower": "negative", "higher": "positive"}.get(better or "")
    size = f"; where it is {sign}, {arm} {has}, which is better." if sign else "."
    return f"The estimate is {measure} of {arm} less that of {against}{size}"


def _trivial(told: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    if not told:
        return []
    gap = f" (difference {words.number(told['estimate'])})" if told.get("estimate") is not None else ""
    says = {"reproduced": "beats it", "not_reproduced": "does not beat it"}.get(
        told["state"], "is not shown to beat it"
    )
    at = f" at {words.levels(told['at'])}" if told.get("at") else ""
    return [("trivial predictor", f"{told['predictor']}: {told['arm']}{at} {says} in {told['measure']}{gap}.")]


def _tuned(told: Iterable[Mapping[str, Any]] | None, tune: Any) -> list[tuple[str, str]]:
    if not told:
        return (
            [("tuned levels", "one recipe for all arms, which is the paper's own point.")] if tune == "shared" else []
        )
    factor = tune.get("factor", "level") if isinstance(tune, Mapping) else "level"
    parts = []
    for one in told:
        at = f" ({words.levels(one['at'])})" if one.get("at") else ""
        edge = ", at the edge of the grid" if one.get("edge") else ""
        parts.append(f"{one['arm']}{at} {'none: all diverged' if one['level'] is None else one['level']}{edge}")
    return [("tuned levels", f"{factor}, chosen for each arm on its tuning seeds: {'; '.join(parts)}.")]


def _positive(
    told: Mapping[str, Any] | None, rules: list[Mapping[str, Any]], positive: str | Mapping[str, str] | None
) -> list[tuple[str, str]]:
    if not told:
        return []
    swaps = {rule["arm"]: positive for rule in rules} if isinstance(positive, str) else positive or {}
    alone = words.alone_text({"replace": swaps}, rules)
    if not counts({"replace": swaps}, rules):
        return [("known-good arm", f"none: {told['arm']} is the comparator against itself.")]
    shows = {"reproduced": "shows the effect here", "not_reproduced": "does not show the effect here"}
    says = shows.get(told["state"], "is not shown to show the effect here")
    return [("known-good arm", f"{told['arm']} {says}{f'; {alone}' if alone else ''}.")]


def _mutants(told: Iterable[Mapping[str, Any]] | None, state: str) -> list[tuple[str, str]]:
    told = list(told or [])
    if not told:
        return []
    missed = [m["arm"] for m in told if not m["told"]]
    if state != "reproduced":
        fail = f"{len(told) - len(missed)} of {len(told)} fail the rule, which the method is not shown to meet either."
        return [("near wrong methods", fail)]
    all_of = f"all {len(told)} are told from the method." if len(told) > 1 else "it is told from the method."
    says = f"this verdict cannot tell {words.listed(missed)} from the method" if missed else all_of
    return [("near wrong methods", f"{says} ({len(told) - len(missed)} of {len(told)} told)." if missed else says)]


def _failures(told: Mapping[str, Mapping[str, Any]] | None) -> list[tuple[str, str]]:
    if not told:
        return []
    parts = [
        f"{arm} {one['k']} of {one['n']} (at most {words.rate(one['upper95'])} % of runs, 95 % bound)"
        for arm, one in told.items()
    ]
    return [("runs that failed", "; ".join(parts) + ".")]
