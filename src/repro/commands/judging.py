"""`repro judge`, `quality`, `verify` and `refresh`: what the rows decide, and whether that still holds."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from repro.commands import common
from repro.commands.common import All, AsJson, Profile, Slugs, WithParent, dump, say, table
from repro.errors import Failed, ReproError
from repro.files.paths import JUDGED


def _judged(slugs: list[str] | None, every: bool, profile: str | None, faults: common.Faults) -> Iterator[tuple]:
    """Yield (paper, profile, rows document, verdict, error rates) of all that was asked for; --all leaves out what has
    not run.

    A paper whose files cannot be read, or whose rows cannot be judged, is named, and the others go on.
    """
    from repro.judge import judge, load_rows, quality

    for one in common.papers(slugs, every, faults):
        profiles = [p for p in JUDGED if p in one.profiles]
        for p in [common.profile_of(profile)] if profile or not every else profiles:
            if every and p not in one.profiles:
                continue
            common.needs(one, p)
            if p == "smoke":
                raise ReproError("--profile smoke: smoke rows are never judged; write cpu or gpu")
            rows = common.results(one.slug, p, "rows")
            try:
                if not rows.exists():
                    if every and not common.results(one.slug, p, "verdict").exists():
                        continue
                    raise ReproError(f"{rows}: no rows yet; run `repro run {one.slug} --profile {p}` first")
                document = load_rows(rows)
                found = judge(one, p, document), quality.assess(one, p, document)
            except ReproError as error:
                if not every and len(slugs or ()) == 1:
                    raise
                faults.add(error)
                continue
            yield one, p, document, *found


def judge(
    slugs: Slugs = None,
    every: All = False,
    profile: Profile = None,
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing, and fail if a stored verdict differs from a fresh one.")
    ] = False,
    as_json: AsJson = False,
    with_parent: WithParent = False,
) -> None:
    """Decide every claim from its measured rows."""
    faults, differing, made = common.Faults(), [], []
    for one, p, _, fresh, rates in _judged(slugs, every, profile, faults):
        if check:
            wrong = stored_differs(one, p, fresh, rates)
            if not as_json:
                say(f"{one.slug} {p}: {wrong or 'the stored verdict holds'}")
            differing += [f"{one.slug} {p}"] if wrong else []
            made.append({"paper": one.slug, "profile": p, "holds": wrong is None, "why": wrong})
            continue
        write(one, p, fresh, rates)
        made.append(fresh)
        if not as_json:
            say(f"{one.slug} {p}")
            common.verdict_table(one, fresh)
    if as_json:
        dump(made)
    if differing:
        raise Failed(
            f"stored verdicts differ from the rows: {', '.join(differing)}; "
            "run `repro judge` on them and look at the change"
        )
    faults.end()


def write(paper, profile: str, fresh: dict, rates: dict) -> None:
    """Write the verdict with the digest of the file of rows that it is on, its error rates, and `dvc metrics`."""
    from repro.judge import quality
    from repro.store import file_digest, write_file

    fresh = {**fresh, "rows_file": file_digest(common.results(paper.slug, profile, "rows"))}
    write_file(common.results(paper.slug, profile, "quality"), quality.text(rates))
    text = json.dumps(fresh, indent=1, allow_nan=False, ensure_ascii=False)
    write_file(common.results(paper.slug, profile, "verdict"), text + "\n")
    shown = json.dumps(metrics(fresh), indent=1, allow_nan=False)
    write_file(common.results(paper.slug, profile, "metrics"), shown + "\n")


def metrics(verdict: dict) -> dict:
    """What `dvc metrics` shows of a verdict: state and estimate of the headline."""
    head = verdict["claims"].get(verdict["headline"]) or {}
    return {"state": head.get("state"), "estimate": head.get("estimate")}


def stored_differs(paper, profile: str, fresh: dict, rates: dict) -> str | None:
    """How the stored verdict differs from a fresh one; None where it holds.  Numbers agree within a tolerance."""
    from repro.judge import difference, quality
    from repro.publish.evidence import read_verdict

    try:
        known = read_verdict(paper, profile)
        if known is None:
            return "no verdict is stored"
        known.pop("rows_file", None)  # it spares lists of papers to read the rows, and is no part of the verdict
        if place := difference(known, json.loads(json.dumps(fresh))):
            return f"the stored verdict DIFFERS in {place}"
        stored = quality.read(paper.slug, profile)
        if stored is None:
            return "no error rates are stored"
        if place := difference(stored, json.loads(json.dumps(rates)), 1e-6):
            return f"the stored error rates DIFFER in {place}"
        if (place := _metrics_differ(paper.slug, profile, fresh)) is not None:
            return f"the stored metrics DIFFER in {place}"
    except ReproError as error:
        return str(error)
    return None


def _metrics_differ(slug: str, profile: str, fresh: dict) -> str | None:
    from repro.files.strict import read_regular
    from repro.judge import difference

    path = common.results(slug, profile, "metrics")
    try:
        stored = json.loads(read_regular(path))
    except (OSError, ValueError, RecursionError):
        return path.name
    return difference(stored, metrics(fresh))


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
    from repro.files.strict import plain
    from repro.judge import quality
    from repro.store import write_file

    rates, days, faults = [], [], common.Faults()
    for _, _, document, _, own in _judged(slugs, every, profile, faults):
        rates.append(own)
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
    faults.end()


def verify(
    slug: Annotated[
        str | None, typer.Argument(metavar="[SLUG]", help="The paper to check, in place of all of them.")
    ] = None,
    rerun: Annotated[int, typer.Option(min=0, help="Measure this many random trials again.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Derive every digest, verdict and generated file again, offline."""
    from repro.commands import verify as checks
    from repro.run.processes import orderly

    faults = common.Faults()
    with orderly():
        papers = common.papers([slug] if slug else None, slug is None, faults)
        wrong = checks.verify(papers, common.root(), rerun, (lambda text: None) if as_json else say, slug)
        notes = checks.on_trust(common.root())
    if as_json:
        dump({"ok": not wrong and not faults.code, "wrong": wrong, "notes": notes})
    else:
        for note in notes:
            say(f"note: {note}")
    if wrong:
        raise Failed(f"{len(wrong)} of the checks failed, first: {wrong[0]}")
    faults.end()
    if not as_json:
        say("all checks passed")


def refresh(
    slug: Annotated[str | None, typer.Argument(metavar="[SLUG]", help="The paper, such as rmsnorm.")] = None,
    profile: Profile = None,
    module: Annotated[
        Path | None, typer.Option("--module", help="Prove an edit of this file for all papers, in place of SLUG.")
    ] = None,
    since: Annotated[
        str | None, typer.Option(help="Take the file as it was at this commit. Default: HEAD.", show_default=False)
    ] = None,
    rerun: Annotated[
        int | None,
        typer.Option(min=0, max=1000, help="Measure so many committed trials too. Default: 10.", show_default=False),
    ] = None,
    timings: Annotated[
        str | None, typer.Option(help="Keep timings too, for this reason; else they become stale.")
    ] = None,
) -> None:
    """Keep rows fresh after an edit that is proved to change nothing.

    Of a paper, the trials of the first seed are measured again, and must be equal to their rows bit for bit.  Of a
    module, all smoke trials that run it are measured before and after the edit.
    """
    from repro.commands import verify as checks
    from repro.run.equal import prove
    from repro.run.processes import orderly
    from repro.spec.load import load

    if (slug is None) == (module is None):
        raise ReproError("write either a paper or --module FILE, such as `repro refresh rmsnorm`")
    if module is None and (since is not None or rerun is not None or timings is not None):
        raise ReproError("--since, --rerun and --timings belong to --module; leave them out")
    if module is not None and profile is not None:
        raise ReproError("--profile: with --module all profiles keep their rows; leave it out")
    with orderly():
        if module is None:
            return checks.refresh(load(slug), common.profile_of(profile), common.root(), say)
        count = 10 if rerun is None else rerun
        made = prove(module, since or "HEAD", common.root(), rerun=count, timings=timings, say=say)
    say(f"{module}: {made['proof']}; equal_edits.json says so. Run `repro index`, then commit both")
