"""`repro list`, `show`, `ask`, `history` and `trial`: what the papers are and what their verdicts say."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated

import typer

from repro.commands.common import (
    AsJson,
    Faults,
    Profile,
    Slug,
    dump,
    paragraph,
    profile_of,
    root,
    say,
    staleness,
    table,
    verdict_table,
)
from repro.errors import Failed, ReproError
from repro.files.paths import JUDGED, STATES, results

WANTED = (*STATES, "not_run")


def list_papers(
    family: Annotated[str | None, typer.Option(help="List the papers of this family alone.")] = None,
    verdict: Annotated[
        str | None, typer.Option(help="List the papers whose headline has this verdict in some profile.")
    ] = None,
    stale: Annotated[
        bool, typer.Option("--stale", help="Say whose source changed after its rows, which takes some seconds more.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List every paper with its verdict, of the strongest evidence."""
    from repro.publish.listing import listing

    state = verdict and verdict.replace(" ", "_").replace("-", "_")
    if state is not None and state not in WANTED:
        raise ReproError(f"--verdict {verdict}: unknown verdict; write one of {', '.join(WANTED)}")
    if family is not None:
        from repro.spec.model import FAMILIES

        if family not in FAMILIES:
            raise ReproError(f"--family {family}: unknown family; write one of {', '.join(FAMILIES)}")
    faults, shown = Faults(), []
    for one in (SimpleNamespace(**line) for line in listing()):
        if one.fault:
            faults.add(ReproError(one.fault))
        chosen = family in (None, one.family) and state in (None, *(one.states or {}).values())
        shown += [one] if chosen else []
    if stale:
        _mark_stale(shown)
    if as_json:
        dump([vars(one) for one in shown])
    else:
        head = ["paper", "verdict", "headline", "ours", "title"]
        table(head, [_line(one) for one in shown])
    faults.end()


def _mark_stale(lines: list[SimpleNamespace]) -> None:
    """Add to each line why its rows no longer describe the source, or None."""
    from repro.run import provenance
    from repro.spec.load import load

    with provenance.steady():
        for one in lines:
            one.stale = staleness(load(one.slug), one.profile) if one.judged and not one.fault else None


def _line(one) -> list[str]:
    slug = one.slug + " (withdrawn)" * bool(one.withdrawn)
    if one.fault:
        return [slug, "cannot be read", one.headline, "", one.title]
    words = one.words.replace("`", "") + ", stale" * bool(getattr(one, "stale", None))
    return [slug, words, one.headline, one.estimate if one.judged else "", one.title]


def show(
    slug: Slug,
    profile: Profile = None,
    verdict: Annotated[bool, typer.Option("--verdict", help="Print the table of verdicts alone.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show a paper's equation and claims, with its numbers beside ours."""
    from repro.publish.evidence import read_verdict
    from repro.spec.load import load
    from repro.spec.model import as_dict

    one = load(slug)
    profiles = [profile_of(profile)] if profile or verdict else [p for p in JUDGED if p in one.profiles]
    verdicts = {p: read_verdict(one, p) for p in profiles}
    if verdict and as_json:
        return dump(verdicts)
    if not verdict:
        stale = {p: why for p in verdicts if (why := staleness(one, p))}
        if as_json:
            return dump({"paper": as_dict(one), "verdicts": verdicts, "stale": stale})
        return _show(one, verdicts, stale)
    for p, stored in verdicts.items():
        if stored is None:
            raise ReproError(
                f"{slug} has no verdict at profile {p}; run `repro run {slug} --profile {p}` and `repro judge {slug}`"
            )
        verdict_table(one, stored)


def _show(one, verdicts: dict[str, dict | None], stale: dict[str, str]) -> None:
    """Print everything about a paper that people read."""
    from repro.publish.plaintext import equation

    source = f" arXiv:{one.arxiv}." if one.arxiv else f" {one.doi or one.url or ''}"
    paragraph(one.title)
    paragraph(f"{', '.join(one.authors)}. {one.venue}.{source}")
    say()
    paragraph(one.summary)
    say()
    page = f"reports/papers/{one.slug}.html"
    paragraph(equation(one.equation) or f"The equation is in papers/{one.slug}/method.py and on {page}.", "  ")
    for p, why in stale.items():
        say()
        paragraph(f"{p} is stale: {why}")
    for name, claim in one.claims.items():
        say()
        headline = ", headline" if name == one.headline else ""
        say(f"{name} ({claim.fidelity}{headline}; {claim.where})")
        _claim(one, name, verdicts)
    if one.identities:
        say("\nIdentities, which are exact statements and hold on every row or not at all:")
    for name, identity in one.identities.items():
        states = [
            f"{v['identities'][name]['state']} ({p})"
            for p, v in verdicts.items()
            if v and name in v.get("identities", {})
        ]
        say(f"\n{name} ({identity.where})")
        paragraph(identity.statement, "  states   ")
        paragraph(", ".join(states) or "not run", "  here     ")


def _claim(one, name: str, verdicts: dict[str, dict | None]) -> None:
    """Print one claim: the paper's number, ours, the rule and its controls."""
    from repro import words
    from repro.files.earlier import read_earlier
    from repro.publish.evidence import ours
    from repro.spec.model import as_dict

    claim = one.claims[name]
    measures = {key: as_dict(value) for key, value in one.measures.items()}
    paragraph(claim.statement, "  claim    ")
    paragraph(claim.paper_value.text or words.number(claim.paper_value.value), "  paper    ")
    if claim.untested:
        return paragraph(claim.untested, "  untested ")
    printed: set[str] = set()
    for p, verdict in verdicts.items():
        judged = (verdict or {"claims": {}})["claims"].get(name)
        if judged:
            state = words.verdict_words(judged["state"], judged.get("mark"), claim.fidelity)
            here = f"{ours(judged)}. " if judged["estimate"] is not None else ""
            paragraph(f"{state}. {here}{words.sentence(judged['why'])}", f"  {p:<8} ")
        elif one.rules(name, p):
            say(f"  {p:<8} not run")
        for text in [words.rule_text(as_dict(rule), measures) for rule in one.rules(name, p)]:
            if text not in printed:
                paragraph(text, "  rule     ")
            printed.add(text)
        for control in judged["controls"] if judged else ():
            state = f"{words.verdict_words(control['state'])}, {'as' if control['ok'] else 'NOT as'} expected"
            paragraph(f"{words.control_text(control)}: {state}", "  control  ")
        for look in read_earlier(results(one.slug, p, "earlier")) if judged and name == one.headline else ():
            state = words.verdict_words(look["state"]) if look["state"] else "no verdict"
            ends = "seeds {} to {}".format(*look["seeds"])
            paragraph(f"registered before, since {look['since']}, {ends}: {state}", "  before   ")


def ask(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="The question, in place of all.")] = None,
    as_json: AsJson = False,
) -> None:
    """Answer the questions that people dispute, as far as verdicts here do."""
    from repro.report import questions

    found = questions.answers(root(), only=name)
    if as_json:
        return dump(found)
    for i, one in enumerate(found):
        say("\n" * bool(i) + f"{one['name']}: {one['question']}")
        paragraph(f"{one['title']}. {one['sentence']}", "  answer   ")
        for claim in one["claims"] if name else ():
            verdict = claim["line"]["verdict"] if claim["line"] else "not run"
            paragraph(f"{claim['claim']}: {verdict}, speaks for {claim['side'] or 'neither'}", "  claim    ")
        for place in one["places"] if name else ():
            told = f"{place['standing']}{place['numbers']}, speaks for {place['side'] or 'neither'}"
            paragraph(f"{place['place']}: {place['arm']}: {told}", "  arena    ")
        for voice in one["voices"] if name else ():
            paragraph(f"{voice['who']}: {voice['text']} ({voice['where']})", f"  {voice['says']:<8} ")
        if name:
            paragraph(one["would_change"], "  change   ")
    if faults := {slug: why for one in found for slug, why in one["faults"].items()}:
        raise Failed(f"{len(faults)} of the papers cannot be read: {'; '.join(faults.values())}")


def history(
    slug: Annotated[str | None, typer.Argument(metavar="[SLUG]", help="The paper, such as rmsnorm.")] = None,
    profile: Profile = None,
    write: Annotated[
        bool, typer.Option("--write", help="Bring the stored list of earlier registrations up to date, from git.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show how a paper's verdicts changed, commit by commit; without a paper, which claims were registered before."""
    from repro.commands import history as past
    from repro.spec.load import load, slugs

    if slug is None or write:
        named = [load(slug).slug] if slug else slugs()
        if write:
            past.write(named, root())
        profile = profile and profile_of(profile)
        lines = [line for line in past.looks(named, root()) if profile in (None, line[1])]
        heads, note = past.LOOK, None
    else:
        heads, (lines, note) = past.CHANGE, past.changes(load(slug).slug, profile_of(profile), root())
    if as_json:
        if note:
            print(f"note: {note}", file=sys.stderr)
        return dump([dict(zip(heads, line, strict=True)) for line in lines])
    table(heads, lines)
    if note:
        say(note)
    if slug and (withdrawn := load(slug).withdrawn):
        say(f"withdrawn: {withdrawn}")


def trial(
    key: Annotated[
        str, typer.Argument(metavar="KEY", help="The key of a trial, or the beginning of one; with ARM, a paper.")
    ],
    arm: Annotated[
        str | None, typer.Argument(metavar="[ARM]", help="The arm of the paper's headline whose first trial is meant.")
    ] = None,
    script: Annotated[
        Path | None,
        typer.Option(help="Write a program to this file that measures the trial again with torch and numpy alone."),
    ] = None,
) -> None:
    """Show the trial of a key that a page or a command printed, or write it as one file that runs by itself."""
    from repro.commands import trials
    from repro.publish import script as scripts
    from repro.store import write_file

    key = key if arm is None else scripts.of_arm(key, arm, root())
    found = trials.find(key, root())
    if not found:
        raise Failed(f"{key[:80]}: no trial with such a key is stored or committed here")
    if script is None:
        return dump(found)
    rows = [one for one in found if one["in"].startswith(("papers/", "arena/"))]
    if len({one["key"] for one in found}) > 1 or not rows:
        raise ReproError(f"{key[:80]}: names {'several trials' if rows else 'no committed row'}; write its whole key")
    write_file(script, scripts.script(rows[0]["key"], rows[0]["in"], root(), script.name))
    say(f"wrote {script}")
