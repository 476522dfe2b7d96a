"""What a paper's headline stands on: the verdict of the largest profile that has run, derived from its rows."""

from dataclasses import dataclass
from typing import Any

from repro.errors import ReproError
from repro.files.paths import JUDGED
from repro.files.verdict import stored
from repro.spec.load import load
from repro.spec.model import Paper
from repro.words import number, percent, rules, verdict_words

STRONGEST = JUDGED[::-1]


QUANTITIES = {
    "ratio": "ratio of {}",
    "ordering": "difference in {}",
    "noninferiority": "difference in {}",
    "equivalence": "difference in {}",
    "slope": "slope of {}",
    "count": "cells with {}",
}


def measured(judged: dict[str, Any]) -> str:
    """The name of what was estimated: `ratio of seconds`."""
    first = next(iter(rules(judged.get("rule"))), {})
    measure = first.get("measure", "")
    if first.get("steps_to"):
        measure = first["steps_to"]["axis"]
    kind = "ratio" if first.get("ratio") or (first.get("contrast") or {}).get("as") == "ratio" else first.get("kind")
    return QUANTITIES.get(kind, "{}").format(measure)


def estimate(judged: dict[str, Any]) -> str:
    """An estimate as every table prints it: `0.43 nats [0.41, 0.45] (95 %), n = 5`."""
    if judged.get("estimate") is None:
        return "–"
    low, high = judged.get("interval") or (None, None)
    unit = f" {judged['unit']}" if judged.get("unit") else ""
    text = number(judged["estimate"]) + unit
    if low is not None or high is not None:
        level = f" ({percent(judged['level'])})" if judged.get("level") else ""
        text += f" [{number(low)}, {number(high)}]{level}"
    return text + (f", n = {judged['n']}" if judged.get("n") else "")


@dataclass(frozen=True)
class Evidence:
    """One paper in a list of papers.  `fault` says why nothing else can be said of it."""

    slug: str
    title: str = ""
    year: int | None = None
    family: str = ""
    withdrawn: str | None = None
    headline: str = ""
    statement: str = ""
    paper_value: str = ""
    states: dict[str, str] | None = None  # profile -> state of the headline there, or not_run
    profile: str | None = None  # of the strongest evidence
    judged: bool = False
    measured: str = ""
    estimate: str = ""
    words: str = "not run"
    identities: dict[str, int] | None = None  # verified, violated, incomplete: how many
    fault: str | None = None


def read_verdict(paper: Paper, profile: str) -> dict[str, Any] | None:
    """The stored verdict of a paper, or None where it has not run; one without its rows is refused."""
    claims = {*paper.claims}
    found = stored(paper.slug, profile, claims=claims, seal=False)
    return found[0] if found else None


def evidence(slug: str) -> Evidence:
    """The evidence of one paper; a fault where its files cannot be read."""
    try:
        paper = load(slug)
    except ReproError as error:
        return Evidence(slug, fault=str(error))
    claim = paper.claims[paper.headline]
    known = {
        "title": paper.title,
        "year": paper.year,
        "family": paper.family,
        "withdrawn": paper.withdrawn,
        "headline": paper.headline,
        "statement": claim.statement,
        "paper_value": claim.paper_value.text or number(claim.paper_value.value),
    }
    states: dict[str, str] = {}
    shown: dict[str, Any] = {}
    try:
        for profile in [p for p in STRONGEST if p in paper.profiles]:
            verdict = read_verdict(paper, profile)
            judged = verdict["claims"].get(paper.headline) if verdict else None
            states[profile] = judged["state"] if judged else "not_run"
            if judged and not shown:
                words = verdict_words(judged["state"], judged.get("mark"), claim.fidelity)
                shown = {
                    "profile": profile,
                    "judged": True,
                    "measured": measured(judged),
                    "estimate": estimate(judged),
                    "words": f"{words} (`{profile}`)" + ", post hoc" * bool(verdict["post_hoc"]),
                    "identities": _count(verdict.get("identities") or {}),
                }
    except ReproError as error:
        return Evidence(slug, **known, fault=str(error))
    return Evidence(slug, **known, states=dict(reversed(states.items())), **shown)


def _count(identities: dict[str, dict]) -> dict[str, int]:
    states = [one["state"] for one in identities.values()]
    return {state: states.count(state) for state in dict.fromkeys(states)}
