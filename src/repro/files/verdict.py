"""Verdicts and their error rates (`results/<profile>.verdict.json`, `.quality.json`) as files."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, NotRequired

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
Rule = Annotated[dict[str, Any] | list[dict[str, Any]], Wanted("a rule or a list of rules")]


class Decision(TypedDict):
    """What a rule says of rows."""

    __pydantic_config__ = OPEN
    state: State
    why: Text
    estimate: Number | None
    interval: list[Number | None]
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


class PositiveArm(TypedDict):
    """The arm that is known to show the effect."""

    __pydantic_config__ = OPEN
    arm: Text
    state: State
    why: Text


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
    positive: NotRequired[PositiveArm | None]
    mark: NotRequired[Text | None]
    regions: NotRequired[list[Any]]


class Identity(TypedDict):
    """The verdict on an exact statement."""

    __pydantic_config__ = OPEN
    state: one_of("verified", "violated", "incomplete")
    why: Text


class Verdict(TypedDict):
    """All verdicts of a paper at a profile."""

    __pydantic_config__ = OPEN
    paper: Words
    profile: ProfileName
    rows_digest: Digest
    post_hoc: Truth
    headline: Text | None
    claims: dict[str, Claim]
    identities: NotRequired[dict[str, Identity]]


def read_verdict(
    path: Path, again: str, shown: str | None = None, claims: Iterable[str] | None = None, raw: bytes | None = None
) -> dict[str, Any]:
    """A verdict document (`results/<profile>.verdict.json`); `claims`: those that its paper has.

    raw: the content where git gave it; then the path only names it.
    """
    file = JsonFile(path, again, shown, raw)
    document = head(file)
    whole_file(file, Verdict)
    if here := place(path):
        placed(file, document, *here)
    for name, claim in document["claims"].items():
        for where, judged in _decisions(("claims", name), claim):
            if len(judged["interval"]) != 2:
                file.fail((*where, "interval"), f"has {len(judged['interval'])} ends; write [low, high]")
        if claims is not None and name not in claims:
            file.fail(("claims", name), "no such claim in paper.yaml")
    if document["headline"] is not None and document["headline"] not in document["claims"]:
        known = ", ".join(document["claims"]) or "null"
        file.fail(("headline",), f"{told(document['headline'])}; write one of {known}")
    return document


def stored(
    slug: str,
    profile: str,
    root: Path | None = None,
    claims: Iterable[str] | None = None,
    *,
    seal: bool = True,
) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """(verdict, rows) of a paper at a profile; None where it has not run.

    A verdict without its rows, or of other rows than those beside it, is refused: nothing may show it.
    seal: whether the seal of the rows over provenance and seconds, which decide no verdict, is checked too.
    """
    paths = {kind: results(slug, profile, kind, root) for kind in ("verdict", "rows")}
    shown = {kind: results_name(slug, profile, kind) for kind in paths}
    if not paths["verdict"].exists():
        return None
    judge = f"run `repro judge {slug} --profile {profile}`"
    verdict = read_verdict(paths["verdict"], judge, shown["verdict"], claims)
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


def _decisions(where: Where, claim: dict[str, Any]) -> Iterator[tuple[Where, dict[str, Any]]]:
    yield where, claim
    for key in ("controls", "parts"):
        yield from (((*where, key, i), one) for i, one in enumerate(claim[key]))
