"""`repro list`, `show` and `history`: what the papers are and what their verdicts say."""

from typing import Annotated

import typer

from repro.commands.common import AsJson, Profile, Slug, dump, profile_of, root, say, table, verdict_table
from repro.errors import ReproError
from repro.files.paths import JUDGED

STATES = ("reproduced", "not_reproduced", "inconclusive", "not_run")


def list_papers(
    family: Annotated[str | None, typer.Option(help="List the papers of this family alone.")] = None,
    verdict: Annotated[
        str | None, typer.Option(help="List the papers whose headline has this verdict in some profile.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List every paper with its family, headline and verdicts."""
    from repro.publish import index
    from repro.spec import load as spec
    from repro.spec.model import FAMILIES

    if verdict is not None and verdict.replace(" ", "_") not in STATES:
        raise ReproError(f"--verdict {verdict}: unknown verdict; write one of {', '.join(STATES)}")
    chosen = []
    for slug in spec.slugs():
        one = spec.load(slug)
        states = {}
        for profile in JUDGED:
            if profile in one.profiles:
                stored = index.read_verdict(slug, profile)
                head = stored["claims"].get(stored["headline"]) if stored else None
                states[profile] = head["state"] if head else "not_run"
        row = {
            "slug": slug,
            "title": one.title,
            "year": one.year,
            "family": one.family,
            "withdrawn": one.withdrawn,
            "headline": {p: one.headline_for(p) for p in states},
            "verdicts": states,
        }
        if (family is None or one.family == family) and (
            verdict is None or verdict.replace(" ", "_") in states.values()
        ):
            chosen.append(row)
    if family is not None and family not in FAMILIES:
        raise ReproError(f"--family {family}: unknown family; write one of {', '.join(FAMILIES)}")
    if as_json:
        return dump(chosen)
    lines = [
        [
            row["slug"] + " (withdrawn)" * bool(row["withdrawn"]),
            row["title"],
            row["family"],
            row["headline"].get("cpu") or row["headline"].get("gpu") or "",
            *(row["verdicts"].get(p, "–").replace("_", " ") for p in ("cpu", "gpu")),
        ]
        for row in chosen
    ]
    table(["paper", "title", "family", "headline", "cpu", "gpu"], lines)


def show(
    slug: Slug,
    profile: Profile = None,
    verdict: Annotated[bool, typer.Option("--verdict", help="Print the table of verdicts alone.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show a paper's equation and claims, with its numbers beside ours."""
    from repro.publish import index
    from repro.spec.load import load
    from repro.spec.model import as_dict

    one = load(slug)
    profiles = [profile_of(profile)] if profile or verdict else [p for p in JUDGED if p in one.profiles]
    verdicts = {p: index.read_verdict(slug, p) for p in profiles}
    if as_json:
        return dump({"paper": as_dict(one), "verdicts": verdicts})
    if not verdict:
        return _show(one, profiles, verdicts)
    for p, stored in verdicts.items():
        if stored is None:
            raise ReproError(
                f"{slug} has no verdict at profile {p}; run `repro run {slug} --profile {p}` and `repro judge {slug}`"
            )
        verdict_table(one, stored)


def _show(one, profiles: list[str], verdicts: dict[str, dict | None]) -> None:
    """Print everything about a paper that people read."""
    from repro import words
    from repro.publish import index
    from repro.spec.model import as_dict

    measures = as_dict(one)["measures"]
    say(f"{one.title}\n{', '.join(one.authors)}. {one.venue}." + (f" arXiv:{one.arxiv}" if one.arxiv else ""))
    say(f"\n{one.summary}\n\n  {' '.join(one.equation.split())}\n")
    for name, claim in one.claims.items():
        value = claim.paper_value.text or index.number(claim.paper_value.value)
        say(f"{name} ({claim.fidelity}; {claim.where})\n  claim    {claim.statement}\n  paper    {value}")
        if claim.untested:
            say(f"  untested {claim.untested}")
        printed: set[str] = set()
        for p in profiles:
            judged = (verdicts[p] or {"claims": {}})["claims"].get(name)
            if judged:
                say(f"  {p:<8} {index.estimate(judged)}: {judged['state'].replace('_', ' ')}; {judged['why']}")
            elif one.rules(name, p):
                say(f"  {p:<8} not run")
            for text in [words.rule_text(as_dict(rule), measures) for rule in one.rules(name, p)]:
                if text not in printed:
                    say(f"  rule     {text}")
                printed.add(text)
            for control in judged["controls"] if judged else ():
                state = f"{control['state'].replace('_', ' ')} ({'as' if control['ok'] else 'NOT as'} expected)"
                say(f"  control  {words.control_text(control)}: {state}")
        say()


def history(slug: Slug, profile: Profile = None, as_json: AsJson = False) -> None:
    """Show how a paper's verdicts changed, commit by commit."""
    from repro.commands import verify as checks
    from repro.spec.load import load

    one = load(slug)
    changes = checks.history(slug, profile_of(profile), root())
    if as_json:
        return dump([dict(zip(checks.CHANGE, line, strict=True)) for line in changes])
    table(checks.CHANGE, changes)
    if one.withdrawn:
        say(f"withdrawn: {one.withdrawn}")
