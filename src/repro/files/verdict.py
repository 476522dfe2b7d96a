"""Verdicts and their error rates (`results/<profile>.verdict.json`, `.quality.json`) as files."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from repro.files.paths import PROFILES, STATES, place
from repro.files.strict import (
    JsonFile,
    Where,
    check,
    digest_text,
    head,
    level,
    measure,
    number,
    one_of,
    placed,
    text,
    told,
    truth,
    whole,
    words,
)

DECIDED = {
    "state": one_of(*STATES),
    "why": text,
    "estimate": (number,),
    "interval": [(number,)],
    "level?": (number,),
    "n?": (whole,),
    "unit?": text,
    "needed_seeds?": (whole,),
}
CONTROL = {
    **DECIDED,
    "expect": one_of("not_reproduced", "not_met"),
    "ok": truth,
    "replace?": {...: text},
    "at?": {...: level},
    "experiment?": (text,),
    "seed_offset?": (whole,),
}
PART = {**DECIDED, "at?": {...: level}, "name?": text}
CLAIM = {
    **DECIDED,
    "unit": text,
    "n": (whole,),
    "paper_value": {...: level},
    "controls": [CONTROL],
    "parts": [PART],
    "magnitude?": ({"ours": number, "paper": measure, "ratio": (number,)},),
    "positive?": ({"arm": text, "state": one_of(*STATES), "why": text},),
}
VERDICT = {
    "paper": words,
    "profile": one_of(*PROFILES),
    "rows_digest": digest_text,
    "post_hoc": truth,
    "headline": (text,),
    "claims": {...: CLAIM},
}


def read_verdict(path: Path, again: str, shown: str | None = None, claims: Any = None) -> dict[str, Any]:
    """A verdict document (`results/<profile>.verdict.json`); `claims`: those that its paper has."""
    file = JsonFile(path, again, shown)
    document = head(file)
    check(file, VERDICT, document)
    if here := place(path):
        placed(file, document, *here)
    for name, claim in document["claims"].items():
        for where, judged in _judged(("claims", name), claim):
            if len(judged["interval"]) != 2:
                file.fail((*where, "interval"), f"has {len(judged['interval'])} ends; write [low, high]")
        rules = claim.get("rule")
        if not isinstance(rules, dict) and not (isinstance(rules, list) and all(isinstance(r, dict) for r in rules)):
            file.fail(("claims", name, "rule"), f"{told(rules)}; write a rule or a list of rules")
        if claims is not None and name not in claims:
            file.fail(("claims", name), "no such claim in paper.yaml")
    if document["headline"] is not None and document["headline"] not in document["claims"]:
        file.fail(
            ("headline",), f"{told(document['headline'])}; write one of {', '.join(document['claims']) or 'null'}"
        )
    return document


def share(value: Any) -> str:
    return "" if not number(value) and 0 <= value <= 1 else "a number from 0 to 1"


RATES = {
    "false_rate": (share,),
    "false_interval": ([share],),
    "allowed": (share,),
    "at": (text,),
    "power": (share,),
    "power_interval": ([share],),
    "power_at": (one_of("paper", "here"),),
    "n": whole,
    "why?": text,
    "draws?": whole,
}
QUALITY = {
    "paper": words,
    "profile": one_of(*PROFILES),
    "rows_digest": digest_text,
    "draws": whole,
    "claims": {...: RATES},
}


def read_quality(path: Path, again: str, shown: str | None = None) -> dict[str, Any]:
    """A document of error rates (`results/<profile>.quality.json`)."""
    file = JsonFile(path, again, shown)
    document = head(file)
    check(file, QUALITY, document)
    if here := place(path):
        placed(file, document, *here)
    for name, claim in document["claims"].items():
        for rate in ("false", "power"):
            value, ends = claim[f"{rate}_rate" if rate == "false" else rate], claim[f"{rate}_interval"]
            if (value is None) != (ends is None) or ends is not None and len(ends) != 2:
                file.fail(
                    ("claims", name, f"{rate}_interval"),
                    "is not the interval of a rate; write [low, high], or null for both",
                )
        if claim["false_rate"] is not None and (claim["allowed"] is None or claim["at"] is None):
            file.fail(("claims", name), "has a false rate; write what is allowed, and at which edge")
        if (claim["power"] is None) != (claim["power_at"] is None):
            file.fail(("claims", name, "power_at"), "does not fit the power; write paper or here, or null for both")
        if None in (claim["false_rate"], claim["power"]) and "why" not in claim:
            file.fail(("claims", name), "lacks a rate; write why")
    return document


def _judged(where: Where, claim: dict[str, Any]) -> Iterator[tuple[Where, dict[str, Any]]]:
    yield where, claim
    for key in ("controls", "parts"):
        yield from (((*where, key, i), one) for i, one in enumerate(claim[key]))
