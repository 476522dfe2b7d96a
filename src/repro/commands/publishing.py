"""`repro index`, `report`, `cite` and `new`: what is generated from the papers."""

from pathlib import Path
from typing import Annotated

import typer

from repro.commands.common import All, Faults, Slug, Slugs, WithParent, papers, root, say
from repro.errors import Failed, ReproError


def new(slug: Slug) -> None:
    """Create the files of a new paper; its tests fail until you fill them in."""
    from repro.commands import new as scaffold

    for path in scaffold.write(slug, root()):
        say(f"wrote {path.relative_to(root())}")
    say(f"fill them in, then: repro index && repro run {slug} --profile smoke")


def generate(
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing, and fail if a generated file is out of date.")
    ] = False,
    only_sources: Annotated[
        bool, typer.Option("--sources", help="Write sources.json alone, by which DVC knows what changed.")
    ] = False,
) -> None:
    """Write all that is generated: DVC stages, READMEs, package files."""
    from repro.publish import index

    here, faults = root(), Faults()
    if check and only_sources:
        raise ReproError("--check and --sources contradict each other; write one of the two")
    if only_sources:
        return say(f"wrote {index.sources(here).relative_to(here)}")
    if not check:
        written, unread = index.write(here)
        for path in written:
            say(f"wrote {path.relative_to(here)}")
        for why in unread.values():
            faults.add(ReproError(why))
        return faults.end()
    outdated = index.check(here)
    for line in outdated:
        say(line)
    if outdated:
        raise Failed(f"{len(outdated)} of what is generated is out of date or cannot be read; run `repro index`")
    say("everything generated is up to date")


def report(
    slug: Annotated[
        str | None, typer.Argument(metavar="[SLUG]", help="The paper to render, in place of all and the index.")
    ] = None,
    index_only: Annotated[bool, typer.Option("--index", help="Render the comparison page alone.")] = False,
    track: Annotated[
        str | None, typer.Option("--arena", metavar="TRACK", help="Render the page of one track of the arena alone.")
    ] = None,
    question: Annotated[
        str | None, typer.Option("--question", metavar="NAME", help="Render the page of one question alone.")
    ] = None,
    with_parent: WithParent = False,
) -> None:
    """Render the pages of papers, questions, arena and index."""
    from repro import report as pages
    from repro.files import questions
    from repro.run.processes import orderly
    from repro.spec import load as spec

    here, faults = root(), Faults()
    if sum((slug is not None, index_only, track is not None, question is not None)) > 1:
        raise ReproError("a paper, --index, --arena and --question contradict each other; write one of the four")
    with orderly():
        if track:
            from repro.arena import protocol

            if track not in protocol.tracks(here):
                raise ReproError(f"--arena {track}: no such track; write one of {', '.join(protocol.tracks(here))}")
            return say(f"rendered {pages.render_arena(track, here)}")
        if question:
            return say(f"rendered {pages.render_question(question, here)}")
        if slug:
            spec.load(slug)
            return say(f"rendered {pages.render_paper(slug, here)}")
        if not index_only:
            for one in spec.slugs():
                try:
                    say(f"rendered {pages.render_paper(one, here)}")
                except ReproError as error:
                    faults.add(error)
            for name in questions.names(here):
                say(f"rendered {pages.render_question(name, here)}")
            for name in sorted({path.name.partition(".")[0] for path in (here / "arena").glob("*.table.json")}):
                say(f"rendered {pages.render_arena(name, here)}")
        say(f"rendered {pages.render_index(here)}")
    faults.end()


def cite_papers(
    slugs: Slugs = None,
    every: All = False,
    cff: Annotated[bool, typer.Option("--cff", help="Print the Citation File Format.")] = False,
) -> None:
    """Print BibTeX of papers and of their implementations here."""
    from repro.publish import cite
    from repro.publish.evidence import STRONGEST, read_verdict

    faults = Faults()
    chosen = papers(slugs, every, faults)
    if cff and len(chosen) != 1:
        raise ReproError("--cff cites one paper; name one")
    for i, one in enumerate(chosen):
        try:
            verdict = next((v for p in STRONGEST if p in one.profiles and (v := read_verdict(one, p))), None)
        except ReproError as error:
            if len(chosen) == 1:
                raise
            faults.add(error)
            verdict = None
        say("\n" * bool(i) + (cite.cff(one) if cff else cite.bibtex(one, verdict)))
    faults.end()


def export(
    slug: Annotated[str | None, typer.Argument(metavar="[SLUG]", help="The paper, in place of all.")] = None,
    claim: Annotated[str | None, typer.Option(help="Keep one claim alone.")] = None,
    form: Annotated[str, typer.Option("--format", help="Write csv, parquet, json (lines), md or latex.")] = "md",
    out: Annotated[Path | None, typer.Option(help="Write to this file, in place of standard output.")] = None,
) -> None:
    """Print verdicts to paste, or to load into a data frame."""
    from repro.publish import export as exports
    from repro.store import write_file

    if form == "parquet" and out is None:
        raise ReproError("--format parquet is no text; write a file with --out verdicts.parquet")
    faults, unread = Faults(), []
    data = exports.exported(root(), form, slug, claim, unread)
    if out is None:
        say(data.decode().rstrip("\n"))
    else:
        write_file(out, data)
        say(f"wrote {out}")
    for why in unread:
        faults.add(ReproError(why))
    faults.end()


def figure(
    slug: Slug,
    claim: Annotated[str, typer.Argument(help="The claim whose figures are written.")],
    profile: Annotated[
        str | None, typer.Option(help="Take this profile, in place of the largest that has run.")
    ] = None,
    as_png: Annotated[bool, typer.Option("--png", help="Write PNG beside SVG.")] = False,
    out: Annotated[Path, typer.Option(help="Write into this folder.")] = Path("."),
) -> None:
    """Write the figures of a claim as files, with caption and digest."""
    from repro.publish import export as exports
    from repro.store import write_file

    drawn = exports.figure(root(), slug, claim, profile)
    if not drawn:
        raise Failed(f"{slug}: claim {claim} has no figure")
    for name, svg, caption in drawn:
        write_file(out / f"{name}.svg", svg)
        say(f"wrote {out / name}.svg: {caption}")
        if as_png:
            write_file(out / f"{name}.png", exports.png(svg, caption))
            say(f"wrote {out / name}.png")


def badge(
    slug: Slug,
    claim: Annotated[str | None, typer.Argument(help="The claim, in place of the headline.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write to this file, in place of standard output.")] = None,
) -> None:
    """Print a badge of a verdict as SVG."""
    from repro.publish import export as exports
    from repro.store import write_file

    picture = exports.badge(root(), slug, claim)
    if out is None:
        return say(picture.rstrip("\n"))
    write_file(out, picture)
    say(f"wrote {out}")
