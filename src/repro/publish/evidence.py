"""What a paper's headline stands on: the verdict of the largest profile that has run, derived from its rows."""

from dataclasses import dataclass
from typing import Any

from repro.errors import ReproError
from repro.files.paths import JUDGED, results, results_name
from repro.files.verdict import read_verdict as verdict_file
from repro.files.verdict import stored
from repro.spec.load import load
from repro.spec.model import Paper
from repro.store import file_digest
from repro.words import is_count, number, percent, rules, verdict_words, with_ends, without_interval

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
    measure = first["steps_to"].get("axis") if first.get("steps_to") else first.get("measure")
    kind = "ratio" if first.get("ratio") or (first.get("contrast") or {}).get("as") == "ratio" else first.get("kind")
    return QUANTITIES.get(str(kind), "{}").format(str(measure or "").replace("_", " "))


def estimate(judged: dict[str, Any]) -> str:
    """An estimate as every table prints it: `0.43 nats [0.41, 0.45] (95 %), n = 5`."""
    low, high = judged.get("interval") or (None, None)
    value, unit = judged.get("estimate"), str(judged.get("unit") or "")
    level = f" ({percent(judged['level'])})" if judged.get("level") else ""
    text = without_interval(value, low, high, unit)
    if text == "–":
        return text
    if text is None:
        shown, *ends = with_ends(value, low, high)
        text = shown + (f" {unit}" if unit not in ("", "ratio") else "")
        text += f" [{', '.join(ends)}]{level}" if low is not None or high is not None else ""
    elif value is None:
        text += level
    return text + (f", n = {judged['n']}" if judged.get("n") else "")


def ours(judged: dict[str, Any]) -> str:
    """The estimate with its name: `ratio of seconds: 0.43 [0.41, 0.45] (95 %), n = 5`.

    Where cells are counted, their estimates stand before: `ratio of error: 0.986 to 0.992; 3 of 3 cells, n = 12`.
    """
    told = estimate(judged)
    if is_count(judged.get("unit")):
        cells = [part["estimate"] for part in judged.get("parts", ()) if part.get("estimate") is not None]
        span = f"{number(min(cells))} to {number(max(cells))}" if len(cells) > 1 else ""
        ratios = {part.get("unit") for part in judged.get("parts", ())} == {"ratio"}
        name = measured(judged).replace("cells with", "ratio of" if ratios else "")
        return f"{name.strip()}: {span}; {told}" if span else told
    name = measured(judged)
    return f"{name}: {told}" if name and told != "–" else told


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
    cpu_decides: bool = False  # whether a profile that runs on a CPU judges the headline
    estimate: str = ""
    ours: str = ""  # the estimate with its name
    words: str = "not run"
    identities: dict[str, int] | None = None  # verified, violated, incomplete: how many
    fault: str | None = None


def read_verdict(paper: Paper, profile: str) -> dict[str, Any] | None:
    """The stored verdict of a paper, or None where it has not run; one without its rows is refused."""
    found = stored(paper.slug, profile, claims={*paper.claims}, identities={*paper.identities}, seal=False)
    return found[0] if found else None


def verdicts_of(paper: Paper) -> dict[str, dict[str, Any] | None]:
    """Profile -> the stored verdict, weakest first, for lists of many papers.

    Where the file of rows is byte for byte the one that was judged, the rows are not read again.  `repro verify` and
    `repro judge --check`, which decide whether what is stored can be trusted, read them.
    """
    return {profile: _shown(paper, profile) for profile in JUDGED if profile in paper.profiles}


def _shown(paper: Paper, profile: str) -> dict[str, Any] | None:
    path = results(paper.slug, profile, "verdict")
    again, name = f"run `repro judge {paper.slug} --profile {profile}`", results_name(paper.slug, profile, "verdict")
    if path.is_file():
        verdict = verdict_file(path, again, name, {*paper.claims}, identities={*paper.identities})
        try:
            if verdict.get("rows_file") == file_digest(results(paper.slug, profile, "rows")):
                return verdict
        except OSError:
            pass  # said below, in one line
    return read_verdict(paper, profile)


def evidence(slug: str, verdicts: dict[str, dict[str, Any] | None] | None = None) -> Evidence:
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
        "cpu_decides": bool({"cpu", "long"} & {*paper.judged_profiles(paper.headline)}),
    }
    states: dict[str, str] = {}
    shown: dict[str, Any] = {}
    try:
        verdicts = verdicts_of(paper) if verdicts is None else verdicts
        for profile in [p for p in STRONGEST if p in paper.profiles]:
            verdict = verdicts[profile]
            judged = verdict["claims"].get(paper.headline) if verdict else None
            states[profile] = judged["state"] if judged else "not_run"
            if judged and not shown:
                words = verdict_words(judged["state"], judged.get("mark"), claim.fidelity)
                shown = {
                    "profile": profile,
                    "judged": True,
                    "estimate": estimate(judged),
                    "ours": ours(judged),
                    "words": f"{words} (`{profile}`)" + ", post hoc" * bool(verdict["post_hoc"]),
                    "identities": _count(verdict.get("identities") or {}),
                }
    except ReproError as error:
        return Evidence(slug, **known, fault=str(error))
    return Evidence(slug, **known, states=dict(reversed(states.items())), **shown)


def _count(identities: dict[str, dict]) -> dict[str, int]:
    states = [one["state"] for one in identities.values()]
    return {state: states.count(state) for state in dict.fromkeys(states)}
