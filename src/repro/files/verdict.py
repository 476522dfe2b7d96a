"""Verdicts and their error rates (`results/<profile>.verdict.json`, `.quality.json`) as files."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, NotRequired

from pydantic import AfterValidator, Field
from typing_extensions import TypedDict

from repro.errors import ReproError
from repro.files.paths import STATES, place, results, results_name
from repro.files.rows import read_rows
from repro.files.schema import (
    OPEN,
    Digest,
    Level,
    Measured,
    Number,
    ProfileName,
    Share,
    Text,
    Truth,
    Wanted,
    Whole,
    Words,
    one_of,
    whole_file,
)
from repro.files.strict import JsonFile, Where, head, placed, told
from repro.store import rows_digest

State = one_of(*STATES)
Interval = list[Number | None]  # of two ends, which is checked apart, so that its message can name the end
MARKS = ("not_shown", "phenomenon_only", "not_learnt", "edge_of_grid")
Rule = Annotated[dict[str, Any] | list[dict[str, Any]], Wanted("a rule or a list of rules")]


def _scored(pair: list[Any]) -> list[Any]:
    """[level, score]: a level is no null, and a score is a number, or null where a run diverged."""
    if pair[0] is None or type(pair[1]) not in (int, float, type(None)):
        raise ValueError
    return pair


class Decision(TypedDict):
    """What a rule says of rows."""

    __pydantic_config__ = OPEN
    state: State
    why: Text
    estimate: Number | None
    interval: Interval
    level: NotRequired[Number | None]
    n: NotRequired[Whole | None]
    unit: NotRequired[Text]
    needed_seeds: NotRequired[Whole | None]


class Control(Decision):
    """The same rule for other arms, and what was expected of them."""

    __pydantic_config__ = OPEN
    expect: one_of("not_reproduced", "not_met")
    ok: Truth
    replace: NotRequired[dict[str, Text]]
    at: NotRequired[dict[str, Level]]
    experiment: NotRequired[Text | None]
    seed_offset: NotRequired[Whole | None]


class Part(Decision):
    """One of the rules, or one level of a factor, that must hold."""

    __pydantic_config__ = OPEN
    at: NotRequired[dict[str, Level]]
    name: NotRequired[Text]


class Magnitude(TypedDict):
    """Our number beside the paper's."""

    __pydantic_config__ = OPEN
    ours: Number
    paper: Measured
    ratio: Number | None


class Region(TypedDict):
    """What a rule asks of its parameter, as pages draw it; an open end is null."""

    __pydantic_config__ = OPEN
    low: Number | None
    high: Number | None
    log: Truth
    unit: Text
    text: Text


class PositiveArm(TypedDict):
    """The arm that is known to show the effect."""

    __pydantic_config__ = OPEN
    arm: Text
    state: State
    why: Text
    estimate: NotRequired[Number | None]
    interval: NotRequired[Interval]


class TrivialOutcome(TypedDict):
    """Whether the comparator beats the trivial predictor, at the level where that is least sure."""

    __pydantic_config__ = OPEN
    predictor: Words
    measure: Words
    arm: Words
    state: State
    why: Text
    at: NotRequired[dict[str, Level]]
    estimate: Number | None
    interval: Interval
    level: Share | None
    n: Whole | None


Score = Annotated[
    list[Level | None], Field(min_length=2, max_length=2), AfterValidator(_scored), Wanted("[level, score or null]")
]


class TunedArm(TypedDict):
    """The level of the tuned factor that an arm has, and the scores by which it was chosen."""

    __pydantic_config__ = OPEN
    arm: Words
    at: dict[str, Level]
    level: Level | None
    edge: Truth
    scores: list[Score]


class Mutant(TypedDict):
    """A near wrong method in the method's place."""

    __pydantic_config__ = OPEN
    arm: Words
    state: State
    told: Truth
    why: Text


class FailedRuns(TypedDict):
    """How many runs of an arm failed."""

    __pydantic_config__ = OPEN
    k: Whole
    n: Whole
    upper95: Share


class Claim(Decision):
    """The verdict on a claim."""

    __pydantic_config__ = OPEN
    unit: Text
    n: Whole | None
    paper_value: dict[str, Level]
    controls: list[Control]
    parts: list[Part]
    rule: Rule
    magnitude: NotRequired[Magnitude | None]
    mark: NotRequired[one_of(*MARKS) | None]
    p: NotRequired[Share]
    regions: NotRequired[list[Region]]
    positive: NotRequired[PositiveArm]
    trivial: NotRequired[TrivialOutcome]
    tuned: NotRequired[list[TunedArm]]
    mutants: NotRequired[list[Mutant]]
    failures: NotRequired[dict[str, FailedRuns]]


ExactState = one_of("verified", "violated", "incomplete")


class ExactControl(TypedDict):
    """The same rules for a broken arm, which must violate them."""

    __pydantic_config__ = OPEN
    expect: one_of("violated")
    ok: Truth
    state: ExactState
    why: Text
    replace: NotRequired[dict[str, Text]]
    at: NotRequired[dict[str, Level]]
    experiment: NotRequired[Text | None]
    seed_offset: NotRequired[Whole | None]


class ExactPart(TypedDict):
    """One rule of an identity, and the value that lies nearest to violating it."""

    __pydantic_config__ = OPEN
    state: ExactState
    why: Text
    estimate: Number | None
    unit: Text
    name: NotRequired[Text]


class Identity(TypedDict):
    """The verdict on an exact statement."""

    __pydantic_config__ = OPEN
    state: ExactState
    why: Text
    rule: Rule
    controls: list[ExactControl]
    parts: list[ExactPart]


class Verdict(TypedDict):
    """All verdicts of a paper at a profile."""

    __pydantic_config__ = OPEN
    paper: Words
    profile: ProfileName
    rows_digest: Digest
    rows_file: NotRequired[Digest]
    post_hoc: Truth
    headline: Text | None
    claims: dict[str, Claim]
    identities: NotRequired[dict[str, Identity]]


def read_verdict(
    path: Path,
    again: str,
    shown: str | None = None,
    claims: Iterable[str] | None = None,
    raw: bytes | None = None,
    *,
    identities: Iterable[str] | None = None,
) -> dict[str, Any]:
    """A verdict document (`results/<profile>.verdict.json`); `claims`, `identities`: those that its paper has.

    raw: the content where git gave it; then the path only names it.
    """
    file = JsonFile(path, again, shown, raw)
    document = head(file)
    whole_file(file, Verdict)
    if here := place(path):
        placed(file, document, *here)
    for name, claim in document["claims"].items():
        _coherent(file, ("claims", name), claim)
        if claims is not None and name not in claims:
            file.fail(("claims", name), "no such claim in paper.yaml")
    for name in document.get("identities", {}):
        if identities is not None and name not in identities:
            file.fail(("identities", name), "no such identity in paper.yaml")
    if document["headline"] is not None and document["headline"] not in document["claims"]:
        known = ", ".join(document["claims"]) or "null"
        file.fail(("headline",), f"{told(document['headline'])}; write one of {known}")
    return document


def _coherent(file: JsonFile, where: Where, claim: dict[str, Any]) -> None:
    """What the parts of a claim's verdict ask of each other."""
    judged = [(where, claim)]
    judged += (((*where, key), claim[key]) for key in ("positive", "trivial") if "interval" in claim.get(key, {}))
    judged += (((*where, key, i), one) for key in ("controls", "parts") for i, one in enumerate(claim[key]))
    for inside, one in judged:
        if len(one["interval"]) != 2:
            file.fail((*inside, "interval"), f"has {len(one['interval'])} ends; write [low, high]")
    mark, regions = claim.get("mark"), claim.get("regions")
    if mark is not None and claim["state"] != "inconclusive":
        file.fail((*where, "mark"), f"{told(mark)} beside the state {claim['state']}; write null")
    rules = len(claim["rule"]) if isinstance(claim["rule"], list) else 1
    if regions is not None and len(regions) != rules:
        file.fail((*where, "regions"), f"has {len(regions)} for {rules} of rule; write one for each")
    for i, region in enumerate(regions or ()):
        if None not in (region["low"], region["high"]) and region["low"] > region["high"]:
            file.fail((*where, "regions", i, "low"), f"{told(region['low'])}, above high; write the lower end")
    for arm, runs in claim.get("failures", {}).items():
        if runs["k"] > runs["n"]:
            file.fail(
                (*where, "failures", arm, "k"), f"{told(runs['k'])} of {runs['n']} runs; write at most {runs['n']}"
            )


def stored(
    slug: str,
    profile: str,
    root: Path | None = None,
    claims: Iterable[str] | None = None,
    *,
    identities: Iterable[str] | None = None,
    seal: bool = True,
) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """(verdict, rows) of a paper at a profile; None where it has not run.

    A verdict without its rows, or of other rows than those beside it, is refused: nothing may show it.
    seal: whether the seal of the rows over provenance and seconds, which decide no verdict, is checked too.
    """
    paths = {kind: results(slug, profile, kind, root) for kind in ("verdict", "rows")}
    shown = {kind: results_name(slug, profile, kind) for kind in paths}
    if not os.path.lexists(paths["verdict"]):  # a link to nowhere is no verdict that has not run, but a broken one
        return None
    judge = f"run `repro judge {slug} --profile {profile}`"
    verdict = read_verdict(paths["verdict"], judge, shown["verdict"], claims, identities=identities)
    again = f"run `repro run {slug} --profile {profile}`"
    if not paths["rows"].exists():
        raise ReproError(f"{shown['verdict']}: has no rows beside it ({shown['rows']} is missing); {again}")
    rows = read_rows(paths["rows"], again, shown["rows"], seal=seal)
    digest = rows_digest(rows["rows"])
    if digest != rows["provenance"]["digest"]:
        raise ReproError(f"{shown['rows']}: the rows were edited by hand: their digest differs; {again}")
    if digest != verdict["rows_digest"]:
        raise ReproError(f"{shown['verdict']}: is the verdict on other rows than those of {shown['rows']}; {judge}")
    return verdict, rows


class Rates(TypedDict):
    """How often a verdict on a claim errs."""

    __pydantic_config__ = OPEN
    false_rate: Share | None
    false_interval: list[Share] | None
    allowed: Share | None
    at: Text | None
    power: Share | None
    power_interval: list[Share] | None
    power_at: one_of("paper", "here") | None
    n: Whole
    why: NotRequired[Text]
    draws: NotRequired[Whole]


class Quality(TypedDict):
    """The error rates of all claims of a paper at a profile."""

    __pydantic_config__ = OPEN
    paper: Words
    profile: ProfileName
    rows_digest: Digest
    draws: Whole
    claims: dict[str, Rates]


def read_quality(path: Path, again: str, shown: str | None = None) -> dict[str, Any]:
    """A document of error rates (`results/<profile>.quality.json`)."""
    file = JsonFile(path, again, shown)
    document = head(file)
    whole_file(file, Quality)
    if here := place(path):
        placed(file, document, *here)
    for name, claim in document["claims"].items():
        where = ("claims", name)
        for rate in ("false", "power"):
            value, ends = claim[f"{rate}_rate" if rate == "false" else rate], claim[f"{rate}_interval"]
            if (value is None) != (ends is None) or ends is not None and len(ends) != 2:
                wrong = "is not the interval of a rate; write [low, high], or null for both"
                file.fail((*where, f"{rate}_interval"), wrong)
        if claim["false_rate"] is not None and (claim["allowed"] is None or claim["at"] is None):
            file.fail(where, "has a false rate; write what is allowed, and at which edge")
        if (claim["power"] is None) != (claim["power_at"] is None):
            file.fail((*where, "power_at"), "does not fit the power; write paper or here, or null for both")
        if None in (claim["false_rate"], claim["power"]) and "why" not in claim:
            file.fail(where, "lacks a rate; write why")
    return document
