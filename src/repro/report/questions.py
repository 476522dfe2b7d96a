"""Pages by question: who says what, which claims of the suite bear on it, and the answer that their verdicts give.

The answer follows from the verdicts by one rule: a claim that holds or does not speaks for a side, which its file
fixes; all on one side give its answer, both sides give the answer "both", and nothing decided gives none.  A question
that `needs: all` is a conjunction: "yes" asks that every claim and line speaks for it, and "no" one that denies it.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import repro
from repro import words
from repro.report import arena
from repro.report.records import Stale, claim_lines, load_paper, readable, strongest
from repro.report.templates import Fragment, part

UNDECIDED = "What is measured here does not decide it."
UNMEASURED = "Nothing that could decide it has been measured here yet."
IN_PART = "A part of what it asks holds here; the rest is not decided, and it asks for all."
MIDWAY = (
    "It is better at equal steps, and does not reach the other's final loss in as few steps as are asked for. That was "
    "read midway in a run whose schedule has full length; a run whose schedule is as short was not measured."
)
LEVEL = 0.05  # of the sign test over seeds that decides a share of the steps
SIGNS = {"yes": "reproduced", "no": "not_reproduced", "both": "inconclusive", None: "not_run"}  # badges of answers
TITLES = {"yes": "yes", "no": "no", "both": "it depends", None: "not decided"}
Line = Mapping[str, Any]
Question = Mapping[str, Any]


def speaks(one: Mapping[str, Any], state: str) -> str | None:
    """The side for which a claim speaks by its state; None where it is not decided, or says nothing then."""
    return {"reproduced": one["holds"], "not_reproduced": one.get("fails")}.get(state)


def of_arena(one: Mapping[str, Any], tables: Iterable[Line]) -> list[dict[str, Any]]:
    """What the arena's cells say of an arm: state, and in which share of the steps it reaches the base's loss.

    `why`: why a share is not decided, where there is more to say than that seeds are few.
    """
    found = []
    for made in (table for table in tables if table["track"] == one["track"]):
        for cell in made["cells"]:
            place = f"{made['track']}, {words.levels(cell['at'])} ({made['profile']})"
            for pair in (pair for pair in cell["interactions"] if pair["arm"] == one["arm"]):
                state = of_pair(pair, made["margin"]) if cell["ranks"] else "inconclusive"
                told = {"state": state, "standing": pair["standing"], "gap": pair["interaction"]}
                found.append({"place": place, "profile": made["profile"], "reached": None, "why": None, **told})
            slot = cell["slots"].get(one["arm"].partition(":")[0])
            line = next((x for x in slot["lines"] if x["arm"] == one["arm"]), None) if slot else None
            if line is None:
                continue
            steps, share, state, why = line["steps_to_target"], None, "inconclusive", None
            if slot["usable"] and line["standing"] != "not told apart":
                length = cell["at"].get("steps", made["settings"].get("steps"))
                share = None if steps is None else steps / length
                if one.get("share") is not None and line["standing"] == "better":
                    state, why = of_share(line["reached"], one["share"], length)
                else:
                    good = one.get("share") is None and line["standing"] in ("better", "as good")
                    state = "reproduced" if good else "not_reproduced"
            told = {"state": state, "standing": line["standing"], "gap": line["gap"], "why": why}
            found.append({"place": place, "profile": made["profile"], "reached": share, **told})
    return found


def of_share(reached: list[float | None], share: float, length: float) -> tuple[str, str | None]:
    """Whether an arm that is better at equal steps is shown to need at most a share of them: a sign test over seeds.

    That it needs more is not shown by missing them: the loss midway in a long schedule is not that of a short one.
    """
    from repro.judge.decide import sign_p  # here, since to import reports is light

    n, soon = len(reached), sum(step is not None and step <= share * length for step in reached)
    if sign_p(soon, n) <= LEVEL:
        return "reproduced", None
    return "inconclusive", MIDWAY if share < 1 and sign_p(n - soon, n) <= LEVEL else None


def of_pair(pair: Mapping[str, Any], margin: float) -> str:
    """Whether a norm is shown to lose more under another optimizer; not, where it loses at most `margin` more."""
    high = pair["interaction"][2]
    if pair["standing"] == "loses more":
        return "reproduced"
    return "not_reproduced" if high is not None and high <= margin else "inconclusive"


def numbers(place: Mapping[str, Any]) -> str:
    """What the arena measured of an arm, to follow its standing: the gap with its interval, and the share of steps."""
    value, low, high = place["gap"]
    gap = "" if value is None else f", {words.number(value)}"
    if low is not None:
        value, low, high = words.with_ends(value, low, high)
        gap = f", {value} [{low}, {high}]"
    if gap:
        gap += " more lost under the other optimizer" if place["arm"].startswith("pair:") else " from the tuned base"
    if place["reached"] is not None:
        gap += f", whose loss it reaches in {words.number(place['reached'])} of the steps"
    return gap


def answered(question: Question, lines: Mapping[str, Line], tables: Iterable[Line]) -> dict[str, Any]:
    """The evidence of a question with the side for which each piece speaks, and the answer."""
    claims = []
    for one in question["claims"]:
        line = lines.get(one["claim"])
        state = "not_run" if line is None or line["stale"] else line["state"]
        claims.append({"fails": None, **one, "line": line, "state": state, "side": speaks(one, state)})
    ranked = [{"fails": None, "share": None, **one} for one in question.get("arena", ())]
    places = [
        {**one, **found, "side": speaks(one, found["state"]), "numbers": numbers({**one, **found})}
        for one in ranked
        for found in of_arena(one, tables)
    ]
    waits = [one for one in ranked if not any(p["arm"] == one["arm"] for p in places)]
    sides = {one["side"] for one in [*claims, *places]} - {None}
    answer = "both" if len(sides) == 2 else next(iter(sides), None)
    measured = places or any(claim["state"] != "not_run" for claim in claims)
    open_ = next((place["why"] for place in places if place["why"]), UNDECIDED if measured else UNMEASURED)
    if (
        question.get("needs") == "all"
        and answer == "yes"
        and (waits or None in [x["side"] for x in [*claims, *places]])
    ):
        answer, open_ = None, IN_PART
    return {
        "answer": answer,
        "title": TITLES[answer],
        "badge": SIGNS[answer],
        "sentence": question["answers"][answer] if answer else open_,
        "claims": claims,
        "places": places,
        "waits": waits,
        "needs": question.get("needs"),
    }


def answers(root: Path, lines: Iterable[Line] | None = None, only: str | None = None) -> list[dict[str, Any]]:
    """Every question, or `only` one, with its answer; `lines` are the strongest verdicts, if they were read already.

    `faults` of a question: papers whose verdicts cannot be read, each with the reason; their claims count as not run.
    """
    from repro.files.questions import names, read_question

    asked = {name: read_question(root, name) for name in (names(root) if only is None else [only])}
    faults: dict[str, str] = {}
    if lines is None:
        lines, faults = lines_of(asked.values(), root)
    by_claim, tables = _by_claim(lines), arena.tables(root)
    return [
        {"name": name, **one, **answered(one, by_claim, tables), "faults": _of(one, faults)}
        for name, one in asked.items()
    ]


def lines_of(
    asked: Iterable[Question], root: Path, stale: Mapping[str, Stale] | None = None
) -> tuple[list[Line], dict[str, str]]:
    """The strongest verdict of every claim of the papers that these questions name; and papers that cannot be read."""
    slugs = sorted({one["claim"].partition("/")[0] for question in asked for one in question["claims"]})
    found, faults = readable(root, only=slugs, stale=stale)
    return strongest([line for one in found for line in claim_lines(one)]), faults


def _of(question: Question, faults: Mapping[str, str]) -> dict[str, str]:
    """The faults of the papers that a question names."""
    slugs = {one["claim"].partition("/")[0] for one in question["claims"]}
    return {slug: why for slug, why in faults.items() if slug in slugs}


def _by_claim(lines: Iterable[Line]) -> dict[str, Line]:
    return {f"{line['paper']}/{line['claim']}": line for line in lines}


class QuestionPage:
    """What the notebook's cell calls for one question; `stale` replaces the comparison of digests."""

    def __init__(self, name: str, root: str | Path = ".", stale: Mapping[str, Stale] | None = None):
        from repro.files.questions import read_question

        root = Path(root)
        self.name, self.question = name, read_question(root, name)
        lines, self.faults = lines_of([self.question], root, stale)
        self.found = answered(self.question, _by_claim(lines), arena.tables(root))
        self.root = root

    def page(self) -> Fragment:
        """The whole page."""
        for one in self.found["claims"]:
            one["slug"], _, one["id"] = one["claim"].partition("/")
            if one["state"] == "not_run" and one["slug"] not in self.faults:
                profiles = load_paper(one["slug"], self.root).judged_profiles(one["id"])
                one["waits_for"] = "long" if "long" in profiles else next(iter(profiles), "long")
        voices = {side: [v for v in self.question["voices"] if v["says"] == side] for side in ("yes", "no")}
        found = {**self.found, "claims": [one for one in self.found["claims"] if one["slug"] not in self.faults]}
        values = {**self.question, **found, "name": self.name, "faults": self.faults, "voices": voices}
        values["version"] = repro.__version__
        return part("questions.html.j2", "page", values)
