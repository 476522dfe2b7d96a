"""`repro judge`, `quality`, `verify` and `refresh`: what the rows decide, and whether that still holds."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from repro.commands import common
from repro.commands.common import All, AsJson, Profile, Slug, Slugs, dump, say, table
from repro.errors import Failed, ReproError
from repro.files.paths import JUDGED


def _measured(slugs: list[str] | None, every: bool, profile: str | None) -> Iterator[tuple]:
    """Yield (paper, profile, rows document) for all that was asked for; --all leaves out what has no rows."""
    from repro.judge import load_rows

    for one in common.papers(slugs, every):
        judged = [p for p in JUDGED if p in one.profiles]
        for p in [common.profile_of(profile)] if profile or not every else judged:
            if every and p not in one.profiles:
                continue
            common.needs(one, p)
            if p == "smoke":
                raise ReproError("--profile smoke: smoke rows are never judged; write cpu or gpu")
            rows = common.results(one.slug, p, "rows")
            if rows.exists():
                yield one, p, load_rows(rows)
            elif not every:
                raise ReproError(f"{rows}: no rows yet; run `repro run {one.slug} --profile {p}` first")


def judge(
    slugs: Slugs = None,
    every: All = False,
    profile: Profile = None,
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing, and fail if a stored verdict differs from a fresh one.")
    ] = False,
) -> None:
    """Decide every claim from its measured rows."""
    from repro import judge as judging
    from repro.judge import quality
    from repro.publish import index
    from repro.store import write_file

    differing = []
    for one, p, document in _measured(slugs, every, profile):
        fresh, rates = judging.judge(one, p, document), quality.assess(one, p, document)
        if check:
            same = index.read_verdict(one.slug, p) == json.loads(json.dumps(fresh))
            known = quality.read(one.slug, p) in (None, rates)  # None: judged before there were any
            say(
                f"{one.slug} {p}: {'the stored verdict holds' if same else 'the stored verdict DIFFERS'}"
                + ("" if known else ", its stored error rates DIFFER")
            )
            differing += [] if same and known else [f"{one.slug} {p}"]
            continue
        write_file(common.results(one.slug, p, "quality"), quality.text(rates))
        text = json.dumps(fresh, indent=1, allow_nan=False, ensure_ascii=False)
        write_file(common.results(one.slug, p, "verdict"), text + "\n")
        say(f"{one.slug} {p}")
        common.verdict_table(one, fresh)
    if differing:
        raise Failed(
            f"stored verdicts differ from the rows: {', '.join(differing)}; "
            "run `repro judge` on them and look at the change"
        )


def show_quality(
    slugs: Slugs = None,
    every: All = False,
    profile: Profile = None,
    write: Annotated[
        Path | None, typer.Option(metavar="PAGE", help="Put the table between its marks in a page of Markdown.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Estimate how often verdicts are wrong, by simulation from the rows."""
    from repro import judge as judging
    from repro.files.strict import plain
    from repro.judge import quality
    from repro.store import write_file

    rates, days = [], []
    for one, p, document in _measured(slugs, every, profile):
        judging.judge(one, p, document)  # refuses what is not judged, with the reason
        rates.append(quality.assess(one, p, document))
        days.append(document["provenance"].get("started"))
    if write:
        if not write.is_file():
            raise ReproError(f"--write {write}: no such file; docs/quality.md has the marks")
        write_file(write, quality.with_table(plain(write), rates, days, str(write)))
    if as_json:
        dump(rates)
    else:
        table(quality.HEAD, quality.lines(rates))
        say(quality.summary_text(rates))
    if wrong := quality.summary(rates)["above"]:
        raise Failed(
            f"{wrong} claims would be called reproduced too often where they are false; see ABOVE in the table"
        )


def verify(
    slug: Annotated[
        str | None, typer.Argument(metavar="[SLUG]", help="The paper to check, in place of all of them.")
    ] = None,
    rerun: Annotated[int, typer.Option(min=0, help="Measure this many random trials again.")] = 0,
) -> None:
    """Derive every digest, verdict and generated file again, offline."""
    from repro.commands import verify as checks

    faults = checks.verify(common.papers([slug] if slug else None, slug is None), common.root(), rerun, say)
    if faults:
        raise Failed(f"{len(faults)} of the checks failed, first: {faults[0]}")
    say("all checks passed")


def refresh(slug: Slug, profile: Profile = None) -> None:
    """Keep rows fresh after an edit that is proved to change nothing.

    The trials of the first seed are measured again, and must be equal to their rows bit for bit.
    """
    from repro.commands import verify as checks
    from repro.spec.load import load

    checks.refresh(load(slug), common.profile_of(profile), common.root(), say)
