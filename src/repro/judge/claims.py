"""From rules to the verdict of a claim, and from rows.json to verdict.json."""

from pathlib import Path
from typing import Any

from repro.errors import ReproError
from repro.files.paths import SCHEMA, results_name
from repro.files.rows import read_rows
from repro.judge.rules import Part, judge_rule, levels_text, parts_of
from repro.spec.load import shown
from repro.spec.model import Claim, Control, Paper, Rule, as_dict, controlled
from repro.store import rows_digest


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
            at = {"name": f"{label['name']}, {levels_text(part['at'])}"} if label and "at" in part else label
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
    extra += [f"at {levels_text(control.at)}"] if control.at else []
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
