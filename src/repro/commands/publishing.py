"""`repro index`, `report`, `cite` and `new`: what is generated from the papers."""

from typing import Annotated

import typer

from repro.commands.common import Slug, WithParent, root, say
from repro.errors import Failed, ReproError
from repro.files.paths import JUDGED


def new(slug: Slug) -> None:
    """Create the files of a new paper; its tests fail until you fill them in."""
    from repro.commands import new as scaffold

    for path in scaffold.write(slug, root()):
        say(f"wrote {path.relative_to(root())}")
    say(f"fill them, then: repro run {slug} --profile smoke && repro index")


def generate(
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing, and fail if a generated file is out of date.")
    ] = False,
) -> None:
    """Write all that is generated: DVC stages, READMEs, package files."""
    from repro.publish import index

    here = root()
    if not check:
        for path in index.write(here):
            say(f"wrote {path.relative_to(here)}")
        return
    outdated = index.check(here)
    for line in outdated:
        say(line)
    if outdated:
        raise Failed(f"{len(outdated)} generated files are out of date; run `repro index` and commit them")
    say("everything generated is up to date")


def report(
    slug: Annotated[
        str | None, typer.Argument(metavar="[SLUG]", help="The paper to render, in place of all and the index.")
    ] = None,
    index_only: Annotated[bool, typer.Option("--index", help="Render the comparison page alone.")] = False,
    track: Annotated[
        str | None, typer.Option("--arena", metavar="TRACK", help="Render the page of one track of the arena alone.")
    ] = None,
    with_parent: WithParent = False,
) -> None:
    """Render the pages of papers, arena and index."""
    from repro import report as pages
    from repro.spec import load as spec

    here = root()
    if track:
        from repro.arena import protocol

        if track not in protocol.tracks(here):
            raise ReproError(f"--arena {track}: no such track; write one of {', '.join(protocol.tracks(here))}")
        return say(f"rendered {pages.render_arena(track, here)}")
    if slug:
        spec.load(slug)
    if not index_only:
        for one in [slug] if slug else spec.slugs():
            say(f"rendered {pages.render_paper(one, here)}")
    if not index_only and not slug:
        for name in sorted({path.name.partition(".")[0] for path in (here / "arena").glob("*.table.json")}):
            say(f"rendered {pages.render_arena(name, here)}")
    if index_only or not slug:
        say(f"rendered {pages.render_index(here)}")


def cite_paper(
    slug: Slug, cff: Annotated[bool, typer.Option("--cff", help="Print the Citation File Format.")] = False
) -> None:
    """Print BibTeX of a paper and of its implementation here."""
    from repro.publish import cite, index
    from repro.spec.load import load

    one = load(slug)
    verdict = next((v for p in reversed(JUDGED) if (v := index.read_verdict(slug, p))), None)
    say(cite.cff(one) if cff else cite.bibtex(one, verdict))
