"""From rules to the verdict of a claim, and from rows.json to verdict.json.

A claim is reproduced where its rules hold, and not reproduced where one fails; each has a gate of its own:

either           the arms have levels of the tuned factor inside the grid, and the comparator has learnt (it beats the
                 trivial predictor)
reproduced       every negative control fails, every part of the rules is failed by one of them, the method without its
                 idea is shown to fail the rules, and the method is not shown to be worse than the trivial predictor
not reproduced   of a claim about trained arms: an arm that is known to show the effect shows it in the same setting,
                 and in a part that the method fails

An arm that is compared with itself meets every rule that asks it to be as good and fails every rule that asks it to be
better, whatever the rows say.  So it is no known-good arm; and it shows that a part can fail, but one control at least
must fail by its rows.

A claim that misses its gate is inconclusive, and `mark` says why.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from repro.errors import ReproError
from repro.files.paths import SCHEMA, results_name
from repro.files.rows import read_rows
from repro.judge.decide import INF, LEAST_SEEDS, LEAST_TRAINED, Decision, Region, decide, failure_rate
from repro.judge.identities import judge_identity
from repro.judge.rules import (
    Part,
    Seen,
    Terms,
    cells_of,
    failed_runs,
    judge_rule,
    levels_text,
    parts_of,
    shown_region,
    weight,
)
from repro.judge.values import CannotJudge, Values
from repro.spec.load import shown
from repro.spec.model import Bound, Claim, Control, Fails, Paper, Rule, Settings, as_dict, controlled
from repro.store import rows_digest
from repro.words import all_of, control_text, listed, sentence


@dataclass(frozen=True)
class Outcome:
    """What several rules that must all hold come to, of the arms as they are or with some replaced.

    parts: as the document shows them.  failed: which parts of the rules fail, as (place of the rule, place of the
    part).  itself: which parts compare an arm with itself.  first: the estimate of the first rule and its unit.
    """

    state: str
    why: str
    shown: dict[str, Any]
    needed: int | None
    first: tuple[float | None, str]
    p: float
    parts: list[dict[str, Any]]
    failed: set[tuple[int, int]]
    itself: set[tuple[int, int]]
    seen: Seen


@dataclass(frozen=True)
class Case:
    """A claim at a profile with the rows on which it is judged."""

    paper: Paper
    profile: str
    claim: Claim
    rules: list[Rule]
    rows: list[dict]

    @classmethod
    def of(cls, paper: Paper, profile: str, claim_id: str, rows: list[dict]) -> "Case":
        return cls(paper, profile, paper.claims[claim_id], paper.rules(claim_id, profile), rows)

    @property
    def settings(self) -> Settings:
        return self.paper.settings(self.profile, self.claim.experiment)

    @property
    def terms(self) -> Terms:
        """What holds for all rules, controls included: seeds, tuning, and the number of parts that must hold."""
        tuned = self.claim.tune not in (None, "shared")
        settings = self.settings
        return Terms(
            least=LEAST_TRAINED if self.claim.trained else LEAST_SEEDS,
            parts=sum(weight(rule, settings) for rule in self.rules),
            tune=settings.tune if tuned else None,
        )

    def rows_of(self, experiment: str) -> list[dict]:
        return [row for row in self.rows if row["experiment"] == experiment]

    @property
    def fails(self) -> bool:
        """Is the failure rate a parameter of the claim, so that single failed runs do not bar it?"""
        return self.claim.fails is not None or any(rule.kind == "failures" for rule in self.rules)

    def parts(self, i: int) -> list[str]:
        """Names of the parts of a rule that must hold, as a reason gives them; one where some of its cells suffice."""
        rule = self.rules[i]
        name = [rule.name or f"{rule.kind} of {rule.measure}"] if rule.name or len(self.rules) > 1 else []
        if rule.kind == "ranks":
            return [", ".join([*name, f"against {other}"]) for other in rule.others]
        cells = cells_of(rule, self.settings)
        if rule.per is None or rule.at_least not in (None, len(cells)):
            return [", ".join(name) or "the rule"]
        return [", ".join([*name, levels_text(cell)]) for cell in cells]

    def outcome(self, control: Control | None = None) -> Outcome:
        """Judge all rules, under a control if one is given."""
        experiment = control.experiment if control and control.experiment else self.claim.experiment
        settings, rows, terms = self.paper.settings(self.profile, experiment), self.rows_of(experiment), self.terms
        if terms.tune and experiment != self.claim.experiment:
            terms = replace(terms, tune=settings.tune)
        seen, results, failed, itself = Seen(), [], set(), set()
        for i, rule in enumerate(self.rules):
            used, offset = controlled(rule, control) if control else rule, {}
            if control and control.seed_offset:
                named = {"arm": rule.arm, "against": getattr(rule, "against", None)}
                offset = {side: control.seed_offset for side, name in named.items() if name in control.replace}
            result = judge_rule(used, rows, self.paper.measures, settings, offset, terms, seen)
            barred = result["diverged"] and result["inside"] and result["state"] != "not_reproduced"
            if control is None and barred and not self.fails:
                seeds = ", ".join(map(str, result["diverged"]))
                why = f"the arm {rule.arm} diverged at seed {seeds}, and a method that diverges cannot be reproduced."
                result |= {"state": "inconclusive", "needed_seeds": None, "why": why, "p": 1.0}
            results.append(result)
            failed |= set(_failed(i, rule, used, result, len(self.parts(i)), self.settings))
            itself |= {(i, j) for j in range(len(self.parts(i))) if _compares_itself(used, offset, j)}
        states = [result["state"] for result in results]
        state = next((s for s in ("not_reproduced", "inconclusive") if s in states), "reproduced")
        place, needed = states.index(state), None
        if state == "inconclusive":
            place, needed = _most_open(results)
        telling = results[place]
        why = telling["why"]
        if len(self.rules) > 1:
            rule = self.rules[place]
            why = f"{all_of(len(results))} rules hold." if state == "reproduced" else f"{rule.name or rule.kind}: {why}"
        return Outcome(
            state=state,
            why=why,
            shown={k: telling[k] for k in ("estimate", "interval", "level", "n", "unit")},
            needed=needed,
            first=(results[0]["estimate"], results[0]["unit"]),
            p=max(result["p"] for result in results),
            parts=[
                part for rule, result in zip(self.rules, results, strict=True) for part in self._parts(rule, result)
            ],
            failed=failed,
            itself=itself,
            seen=seen,
        )

    def _parts(self, rule: Rule, result: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """The parts of a rule as the document shows them."""
        several = rule.name or len(self.rules) > 1
        label = {"name": rule.name or f"{rule.kind} of {rule.measure}"} if several else {}
        left_out = ("parts", "diverged", "inside", "p")
        whole = {k: v for k, v in result.items() if k not in left_out}
        for part in result["parts"] or [whole]:
            at = {"name": f"{label['name']}, {levels_text(part['at'])}"} if label and "at" in part else label
            yield {**at, **part, "why": sentence(part["why"])}


def _failed(
    i: int, rule: Rule, used: Rule, result: dict[str, Any], parts: int, settings: Settings
) -> Iterator[tuple[int, int]]:
    """Which parts of rule i fail, where `used` was judged in its place."""
    if parts > 1 and len(result["parts"]) == parts:
        yield from ((i, j) for j, part in enumerate(result["parts"]) if part["state"] == "not_reproduced")
    elif result["state"] == "not_reproduced":
        fixed = used.at.get(rule.per) if rule.per else None
        levels = settings.factors[rule.per] if rule.per else []
        places = [levels.index(fixed)] if parts > 1 and fixed in levels else range(parts)
        yield from ((i, j) for j in places)


def _compares_itself(used: Rule, offset: Mapping[str, int], j: int) -> bool:
    """Whether part j of a rule compares an arm with itself at the same seeds."""
    against = used.others[j] if used.kind == "ranks" else getattr(used, "against", None)
    return used.arm == against and offset.get("arm") == offset.get("against")


# ---- one claim ----------------------------------------------------------------------------------------------------


def _most_open(results: list[dict[str, Any]]) -> tuple[int, int | None]:
    """Of rules that must all hold and none of which fails: the one that tells most, and the seeds that would decide.

    One rule that fails decides, so of those that lean that way the one that is nearest to it tells; where all lean
    towards holding, the one that is furthest from it.
    """
    open_ = [i for i, result in enumerate(results) if result["state"] == "inconclusive"]
    needed = {i: results[i]["needed_seeds"] for i in open_}
    leaning = [i for i in open_ if not results[i]["inside"] and needed[i]]
    if leaning:
        place = min(leaning, key=needed.__getitem__)
        return place, needed[place]
    unknown = [i for i in open_ if not needed[i]]
    place = unknown[0] if unknown else max(open_, key=needed.__getitem__)
    return place, needed[place]


def claim_parts(paper: Paper, profile: str, claim_id: str, rows: list[dict]) -> list[tuple[Rule, list[Part]]]:
    """Return the rules of a claim, each with the parts that decide it; CannotJudge where rows are missing."""
    case = Case.of(paper, profile, claim_id, rows)
    own = case.rows_of(case.claim.experiment)
    return [(r, parts_of(r, own, paper.measures, case.settings, terms=case.terms)) for r in case.rules]


def judge_claim(paper: Paper, profile: str, claim_id: str, rows: list[dict]) -> dict[str, Any]:
    """Return the verdict of one claim: its rules, then the gates of what they say."""
    case = Case.of(paper, profile, claim_id, rows)
    claim, method = case.claim, case.outcome()
    state, why, mark, needed = method.state, method.why, None, method.needed
    trivial = _learnt(case)
    controls = [_control(case, control) for control in claim.controls]
    positive = _positive(case)
    unread = state == "inconclusive" and trivial and trivial["n"] is None  # its rows are missing, as `why` says
    stop = _ignores_seed(case) or _edge(case, method.seen)
    short = len(case.settings.seeds) < case.terms.least
    if stop is None and trivial and trivial["state"] != "reproduced" and not unread and not short:
        stop = _not_learnt(trivial)
    if stop is None and state == "reproduced":
        stop = _control_gate(case, controls) or _below_trivial(case)
    if stop is None and state == "not_reproduced" and (claim.trained or claim.positive):
        stop = _positive_gate(case, method, positive)
    if stop:
        state, why, mark, needed = "inconclusive", stop.why, stop.mark, stop.needed
    rule = [as_dict(rule) for rule in case.rules]
    tuned = _tuned(case, [method, *(outcome for _, outcome in controls), *([positive[1]] if positive else [])])
    failures = _failures(case) if claim.trained or case.fails else {}
    return {
        "state": state,
        "mark": mark,
        "why": sentence(why),
        **method.shown,
        "p": method.p,
        "paper_value": as_dict(claim.paper_value),
        "magnitude": _magnitude(claim, *method.first),
        "rule": rule[0] if len(rule) == 1 else rule,
        "regions": [shown_region(rule, paper.measures) for rule in case.rules],
        "controls": [entry for entry, _ in controls],
        **({"positive": positive[0]} if positive else {}),
        **({"trivial": trivial} if trivial else {}),
        **({"tuned": tuned} if tuned else {}),
        **({"mutants": _mutants(case)} if claim.mutants else {}),
        **({"failures": failures} if failures else {}),
        "parts": method.parts,
        "needed_seeds": needed,
    }


@dataclass(frozen=True)
class Stop:
    """Why a claim is inconclusive, whatever its rules say."""

    why: str
    mark: str | None = None
    needed: int | None = None


def _ignores_seed(case: Case) -> Stop | None:
    """An experiment that draws nothing of its seed has one run, not n.

    A single arm may be constant (a network that is dead, a reference that is computed).  That all measures of the arms
    which a rule compares are, or that what it reads is in every arm of the experiment, does not happen by chance.
    """
    cells: dict[tuple[str, frozenset], list[dict]] = {}
    seeds = set(case.settings.seeds)
    for row in case.rows_of(case.claim.experiment):
        if row["seed"] in seeds and row["status"] == "ok":
            cells.setdefault((row["arm"], frozenset(row["factors"].items())), []).append(row["measures"])
    several = [(arm, measures) for (arm, _), measures in cells.items() if len(measures) > 1]

    def constant(arms: Collection[str], names: Collection[str] | None = None) -> bool:
        """Whether the named measures (all of them: None) of the arms are the same at all seeds."""
        shown = [
            [{k: v for k, v in one.items() if names is None or k in names} for one in measures]
            for arm, measures in several
            if arm in arms
        ]
        return set(arms) <= {arm for arm, _ in several} and all(one == each[0] for each in shown for one in each)

    compared = {name: None for rule in case.rules for name in (rule.arm, getattr(rule, "against", None)) if name}
    everywhere = {arm: None for arm, _ in several}
    what = f"every row of {listed(list(compared))}" if constant(compared) else None
    for rule in case.rules:
        if what is None and everywhere and rule.kind != "failures" and constant(everywhere, [rule.measure]):
            what = f"the measure {rule.measure} of every arm"
    if what is None:
        return None
    return Stop(
        f"{what} is the same at all {len(seeds)} seeds, so that the experiment ignores its seed. "
        "Mend the experiment, or state an identity where nothing is drawn."
    )


def _edge(case: Case, seen: Seen, of: str = "") -> Stop | None:
    """A best level at the edge of the grid: a better one may lie outside."""
    if case.claim.tune in (None, "shared"):
        return None
    factor = case.claim.tune.factor
    for (arm, cell), chosen in seen.chosen.items():
        place = f" at {levels_text(dict(sorted(cell)))}" if _varying(case, cell) else ""
        if chosen.edge and chosen.level is None and not of:
            return Stop(
                f"the arm {arm} diverged at every level of {factor}{place} on the tuning seeds.", "edge_of_grid"
            )
        if chosen.edge and chosen.level is not None:
            return Stop(
                f"the best {factor} of {of}{arm}{place}, {chosen.level}, lies at the edge of the grid, so that a "
                "better one may lie outside. A new registration with a wider grid would tell.",
                "edge_of_grid",
            )
    return None


def _varying(case: Case, cell: frozenset) -> dict[str, Any]:
    """The levels of a cell of those factors that have several."""
    factors = case.settings.factors
    return {k: v for k, v in sorted(cell) if len(factors.get(k, ())) > 1}


# ---- has it learnt? -----------------------------------------------------------------------------------------------


def _places(rule: Rule, settings: Settings) -> list[dict[str, Any]]:
    """All levels of factors at which a rule reads rows."""
    axes: list[list[dict[str, Any]]] = [[dict(rule.at)], cells_of(rule, settings) or [{}]]
    if rule.contrast:
        axes.append([{rule.contrast.factor: level} for level in rule.contrast.levels])
    for name in (getattr(rule, "x", None), getattr(rule, "over", None)):
        if name:
            axes.append([{name: level} for level in settings.factors[name]])
    return [{k: v for levels in each for k, v in levels.items()} for each in product(*axes)]


def _learnt(case: Case) -> dict[str, Any] | None:
    """The comparator (the arm, where there is none) against the trivial predictor at every level that a rule reads."""
    trivial = case.claim.predictor
    if trivial is None:
        return None
    decided = []
    for rule in case.rules:
        arm = trivial.arm or getattr(rule, "against", None) or rule.arm
        measure = trivial.measure or rule.measure
        for place in _places(rule, case.settings):
            head = {"predictor": trivial.predictor, "measure": measure, "arm": arm, "at": place}
            try:
                found = _beats(case, rule, measure, arm, place)
            except CannotJudge as error:
                decided.append({**head, "state": "inconclusive", "why": sentence(str(error)), **_NOTHING})
                continue
            decided.append(
                {
                    **head,
                    "state": found.state,
                    "why": sentence(found.why),
                    "estimate": found.estimate,
                    "interval": list(found.interval),
                    "level": found.level,
                    "n": found.n,
                    "slack": found.slack,
                }
            )
    order = {"not_reproduced": 0, "inconclusive": 1, "reproduced": 2}
    telling = min(decided, key=lambda entry: (order[entry["state"]], entry.get("slack", 0.0)))
    return {k: v for k, v in telling.items() if k != "slack" and not (k == "at" and not v)}


def _beats(case: Case, rule: Rule, measure: str, arm: str, place: Mapping[str, Any]) -> Decision:
    """Whether an arm is better than the trivial predictor in a measure; CannotJudge where rows are missing."""
    bound = Bound(kind="bound", measure=measure, arm=arm, level=rule.level, max=0.0)
    data = Values(bound, case.rows_of(case.claim.experiment), case.paper.measures, case.settings, {}, case.terms.tune)
    higher = case.paper.measures[measure].better == "higher"
    region = Region(*((0.0, INF) if higher else (-INF, 0.0)), text="the range of 'better'")
    gaps, out = _beyond(data, place, case.claim.predictor.predictor)
    return decide(gaps, region, rule.level, out=frozenset(out), least=case.terms.least)


def _below_trivial(case: Case) -> Stop | None:
    """A method that is to be better than another arm, or as good, and is shown to be worse than the trivial predictor.

    Read where the rule's measure is of the kind that the predictor is scored in.
    """
    trivial, measures = case.claim.predictor, case.paper.measures
    for rule in case.rules if trivial else ():
        if getattr(rule, "against", None) is None:
            continue
        told, own = measures[trivial.measure or rule.measure], measures[rule.measure]
        if (told.unit, told.better) != (own.unit, own.better):
            continue
        for place in _places(rule, case.settings):
            try:
                found = _beats(case, rule, rule.measure, rule.arm, place)
            except CannotJudge:  # the rows have no such predictor
                continue
            if found.state == "not_reproduced":
                return Stop(
                    f"the method has not learnt: {rule.measure} of {rule.arm} is worse than that of the trivial "
                    f"predictor '{trivial.predictor}' ({found.why.rstrip('.')}).",
                    "not_learnt",
                )
    return None


_NOTHING = {"estimate": None, "interval": [None, None], "level": None, "n": None}


def _beyond(data: Values, place: Mapping[str, Any], predictor: str) -> tuple[list[float], set[int]]:
    """The comparator minus the trivial predictor at every seed, and the places of seeds at which it diverged."""
    gaps, out, arm = [], set(), data.rule.arm
    for i, seed in enumerate(data.seeds["arm"]):
        at = data.tuned(arm, place)
        row = None if data.untunable(arm, at) else data.row(arm, seed, at)
        value = None if row is None else data.measure(row, data.rule.measure)
        value = value[-1] if isinstance(value, list) and value else value
        if value is None:
            out.add(i)
            gaps.append(data.sign * INF)
            continue
        name = f"trivial_{predictor}"
        against = data.measure(row, name if name in row["measures"] or predictor not in row["measures"] else predictor)
        against = against[-1] if isinstance(against, list) and against else against
        if against is None:
            raise CannotJudge(f"the trivial predictor '{predictor}' has no score at seed {seed}.")
        gaps.append(value - against)
    return gaps, out


def _not_learnt(trivial: Mapping[str, Any]) -> Stop:
    place = f" at {levels_text(trivial['at'])}" if trivial.get("at") else ""
    reason = trivial["why"][0].lower() + trivial["why"][1:]
    return Stop(
        f"the baseline has not learnt: {trivial['measure']} of {trivial['arm']}{place} is not shown to be better "
        f"than that of the trivial predictor '{trivial['predictor']}' ({reason.rstrip('.')}).",
        "not_learnt",
    )


# ---- controls -----------------------------------------------------------------------------------------------------


def _control(case: Case, control: Control) -> tuple[dict[str, Any], Outcome]:
    came = case.outcome(control)
    ok = came.state == "not_reproduced" or _not_met(control) and came.state == "inconclusive"
    shown = {k: came.shown[k] for k in ("estimate", "interval")}
    return {**as_dict(control, drop={"why"}), "ok": ok, "state": came.state, "why": sentence(came.why), **shown}, came


def _control_gate(case: Case, controls: list[tuple[dict[str, Any], Outcome]]) -> Stop | None:
    """What keeps rules that hold from being a reproduction."""
    parts = {(i, j): name for i in range(len(case.rules)) for j, name in enumerate(case.parts(i))}
    for entry, came in controls:
        if entry.get("without") == "idea" and entry["state"] == "reproduced" and came.itself != parts.keys():
            return Stop(
                f"the method without its idea ({control_text(entry)}) meets the rules too, so that the effect is "
                "not the method's.",
                "phenomenon_only",
            )
    for (entry, came), control in zip(controls, case.claim.controls, strict=True):
        if not entry["ok"]:
            return Stop(
                f"the control {control_text(entry)} came out {entry['state'].replace('_', ' ')}, and "
                f"{'anything but reproduced' if _not_met(control) else 'not reproduced'} is expected of it: "
                f"{came.why}",
                needed=came.needed,
            )
    broken = [came for (_, came), control in zip(controls, case.claim.controls, strict=True) if not _is_aa(control)]
    failed = set().union(*(came.failed for came in broken))
    if missed := [name for place, name in parts.items() if place not in failed]:
        these = "this part was" if len(missed) == 1 else "these parts were"
        return Stop(
            f"no control fails {listed(missed, 'or')}, so that {these} never shown able to fail."
            if broken
            else "no control is there that could fail."
        )
    if not any(came.failed - came.itself for came in broken):
        return Stop("the only control that fails compares an arm with itself, which fails whatever the rows say.")
    return next(
        (stop for entry, came in controls if (stop := _edge(case, came.seen, f"the control {control_text(entry)}, "))),
        None,
    )


def _is_aa(control: Control) -> bool:
    """An A/A control tests how often chance passes, not whether a part can fail."""
    return _not_met(control) or control.seed_offset is not None


def _not_met(control: Control) -> bool:
    """Whether anything but reproduced will do; never of the method without its idea, whatever is written."""
    return control.expect == "not_met" and control.without is None


def _positive(case: Case) -> tuple[dict[str, Any], Outcome] | None:
    if case.claim.positive is None:
        return None
    came = case.outcome(Control(expect="not_met", replace=case.claim.swaps))
    arm = case.claim.positive
    arm = arm if isinstance(arm, str) else ", ".join(f"{new} in place of {old}" for old, new in arm.items())
    shown = {k: came.shown[k] for k in ("estimate", "interval")}
    return {"arm": arm, "state": came.state, "why": sentence(came.why), **shown}, came


def _positive_gate(case: Case, method: Outcome, positive: tuple[dict[str, Any], Outcome] | None) -> Stop | None:
    """What keeps rules that fail from being a contradiction."""
    if positive is None:
        return Stop(
            f"the rules fail ({method.why.rstrip('.')}), but no arm is named that is known to show the effect, so that "
            "the setting may not be able to show it.",
            "not_shown",
        )
    entry, came = positive
    if not method.failed - came.itself:
        if not case.claim.trained:
            return None
        return Stop(
            f"the rules fail ({method.why.rstrip('.')}), but where they do the known-good arm {entry['arm']} is the "
            "comparator itself, and an arm that is compared with itself shows nothing of the setting.",
            "not_shown",
        )
    if entry["state"] != "reproduced":
        return Stop(
            f"the setting could not have shown it: the known-good arm {entry['arm']} is not reproduced either "
            f"({came.why.rstrip('.')}).",
            "not_shown",
            came.needed,
        )
    return _edge(case, came.seen, "the known-good arm ")


def _mutants(case: Case) -> list[dict[str, Any]]:
    """Near wrong methods in the method's place; `told`: the verdict tells them from the method."""
    entries = []
    for arm in case.claim.mutants:
        came = case.outcome(Control(expect="not_met", replace={rule.arm: arm for rule in case.rules}))
        told = came.state == "not_reproduced"
        entries.append({"arm": arm, "state": came.state, "told": told, "why": sentence(came.why)})
    return entries


# ---- what is stored beside ----------------------------------------------------------------------------------------


def _tuned(case: Case, outcomes: list[Outcome]) -> list[dict[str, Any]]:
    """The level of the tuned factor that every arm has, with the scores it was chosen by."""
    chosen = {key: level for came in outcomes for key, level in came.seen.chosen.items()}
    return [
        {
            "arm": arm,
            "at": _varying(case, cell),
            "level": found.level,
            "edge": found.edge,
            "scores": [[level, score] for level, score in found.scores.items()],
        }
        for (arm, cell), found in sorted(chosen.items(), key=lambda item: (item[0][0], sorted(map(str, item[0][1]))))
    ]


def _failures(case: Case) -> dict[str, dict[str, Any]]:
    """How many runs failed of each arm of the rules, a seed having failed where it did at any level that they read."""
    settings, rows = case.settings, case.rows_of(case.claim.experiment)
    counted: dict[str, dict[str, Any]] = {}
    for rule in case.rules:
        threshold = rule if rule.kind == "failures" else case.claim.fails or Fails(measure=rule.measure)
        for arm in filter(None, (rule.arm, getattr(rule, "against", None), *getattr(rule, "others", ()))):
            if arm in counted:
                continue
            probe = Bound(kind="bound", measure=rule.measure, arm=arm, max=0.0)
            data = Values(probe, rows, case.paper.measures, settings, {}, case.terms.tune)
            try:
                each = [failed_runs(data, "arm", place, threshold) for place in _places(rule, settings)]
            except CannotJudge:
                continue
            failed = sum(map(any, zip(*each, strict=True)))
            n = len(settings.seeds)
            counted[arm] = {"k": failed, "n": n, "upper95": failure_rate(failed, n, 0.95)[1]}
    return counted


def _magnitude(claim: Claim, ours: float | None, unit: str) -> dict[str, Any] | None:
    """Our estimate beside the paper's number.

    The ratio is to the nearest end of a range, and 1 inside it; it is None where the units differ or the number is 0: a
    loss per token and one per byte are not compared.
    """
    value = claim.paper_value
    if ours is None or value.value is None and (value.low is None or value.high is None):
        return None
    paper = value.value if value.value is not None else [value.low, value.high]
    nearest = value.value if value.value is not None else min(max(ours, value.low), value.high)
    same = (value.unit or "1") in (unit, *(("1",) if unit in ("ratio", "exponent", "failure rate") else ())) and nearest
    return {"ours": ours, "paper": paper, "ratio": ours / nearest if same else None}


# ---- documents ----------------------------------------------------------------------------------------------------


def judge(paper: Paper, profile: str, document: dict[str, Any], *, check_digest: bool = True) -> dict[str, Any]:
    """Return the verdict document (`verdict.json`) of a paper at a profile from its rows document (`rows.json`).

    One entry per identity and claim that has a rule at this profile.  ReproError where the rows are another paper's or
    profile's, or (unless `check_digest` is False) are not those that were measured.
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
    rows = document["rows"]
    _check_names(name, paper, rows)
    return {
        "schema": SCHEMA,
        "paper": paper.slug,
        "profile": profile,
        "rows_digest": rows_digest(rows),
        "post_hoc": document["registered"] != paper.registration(profile),
        "headline": paper.headline_for(profile),
        "identities": {name: judge_identity(paper, profile, name, rows) for name in paper.identities_in(profile)},
        "claims": {name: judge_claim(paper, profile, name, rows) for name in paper.judged_in(profile)},
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
    """Return a rows document; ReproError where it is no valid JSON, of another schema, incomplete or edited by hand."""
    path = Path(path)
    name = shown(path)
    document = read_rows(path, "run the profile again", name)
    _check_digest(name, document)
    return document
