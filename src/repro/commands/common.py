"""What the commands share: their options, how they find papers and results, how they print."""

import json
import shutil
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from repro.errors import ReproError, one_line
from repro.files import paths
from repro.files.paths import PROFILES

READ, MEASURE, KEEP, WRITE = "Read", "Measure", "Keep", "Write"

F = TypeVar("F", bound=Callable)


def end_with_parent(wanted: bool) -> None:
    """End this process with its parent, where the option asks for it."""
    if wanted:
        from repro.run.engines.worker import die_with_parent

        die_with_parent()


def print_version(wanted: bool) -> None:
    """Print the version and end, where the option asks for it."""
    if wanted:
        from repro import __version__

        say(f"repro {__version__}")
        raise typer.Exit


Slugs = Annotated[list[str] | None, typer.Argument(metavar="SLUG...", help="The papers, such as rmsnorm.")]
Slug = Annotated[str, typer.Argument(metavar="SLUG", help="The paper, such as rmsnorm.")]
All = Annotated[bool, typer.Option("--all", help="Take every paper.")]
Profile = Annotated[
    str | None,
    typer.Option(help=f"Take the profile {', '.join(PROFILES[:-1])} or {PROFILES[-1]}, in place of params.yaml's."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
Device = Annotated[
    str | None, typer.Option(help="Compute on cpu, cuda, cuda:N or auto, in place of the device in params.yaml.")
]
Force = Annotated[bool, typer.Option("--force", help="Measure again what the store holds already.")]
# Stages of DVC ask for it: a stage that outlives a killed DVC would write beside the next one.
WithParent = Annotated[
    bool,
    typer.Option(
        "--with-parent",
        help="End when the process that started this one ends.",
        hidden=True,
        callback=end_with_parent,
    ),
]


def say(text: str = "") -> None:
    """Print a line at once."""
    print(text, flush=True)


def dump(value: object) -> None:
    """Print a value as JSON."""
    say(json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False))


def table(head: list[str], rows: list[list[str]]) -> None:
    """Print a table for people: with rich on a terminal, as aligned lines elsewhere.

    On a terminal on which some column would be narrower than its words, each row becomes a paragraph.
    """
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        longest = [
            max(len(word) for row in [head, *rows] for word in ["", *str(row[i]).split()]) for i in range(len(head))
        ]
        longest[0] = max(len(str(row[0])) for row in [head, *rows])  # the first column is whole
        if sum(longest) + 2 * len(head) > Console().width:
            for row in rows:
                say(str(row[0]))
                for title, cell in zip(head[1:], row[1:], strict=True):
                    if str(cell).strip():
                        paragraph(str(cell), f"  {title}: " if title else "  ", "    ")
            return
        shown = Table(box=None, pad_edge=False, header_style="bold")
        for title, width in zip(head, longest, strict=True):
            shown.add_column(title, min_width=width)
        for row in rows:
            shown.add_row(*(Text(str(cell)) for cell in row))
        Console().print(shown)
        return
    rows = [[" ".join(str(cell).split()) for cell in row] for row in rows]  # a title over two lines would look like two
    widths = [max(len(str(row[i])) for row in [head, *rows]) for i in range(len(head))]
    for row in [head, *rows]:
        say("  ".join(str(cell).ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def paragraph(text: str, first: str = "", rest: str | None = None) -> None:
    """Print a text within the width of the terminal, its first line after `first`, the others after `rest`."""
    width = max(40, min(shutil.get_terminal_size((100, 24)).columns, 120))
    rest = " " * len(first) if rest is None else rest
    lines = textwrap.wrap(
        " ".join(str(text).split()),
        width,
        initial_indent=first,
        subsequent_indent=rest,
        break_on_hyphens=False,
        break_long_words=False,
    )
    say("\n".join(lines) or first.rstrip())


def duration(seconds: float) -> str:
    """A length of time as people read it."""
    if seconds < 600:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 36_000 else f"{seconds / 3600:.1f} h"


def root() -> Path:
    """The checkout in which a command works."""
    from repro.run import provenance

    found = provenance.root()
    if not (found / "params.yaml").is_file():
        raise ReproError(
            f"{found}: no checkout of this suite (no params.yaml); clone the repository and run this inside it"
        )
    return found


def profile_of(given: str | None) -> str:
    """The profile that a command was given, else that of params.yaml."""
    from repro.spec.load import load_params

    profile = load_params(root()).profile if given is None else given
    if profile not in PROFILES:
        import difflib

        near = difflib.get_close_matches(profile, PROFILES, 1)
        hint = f"did you mean {near[0]}?" if near else f"write one of {', '.join(PROFILES)}"
        raise ReproError(f"--profile {profile}: unknown profile; {hint}")
    return profile


class Faults:
    """Papers that could not be read or measured, named as they are met; the others go on."""

    def __init__(self) -> None:
        self.code = 0

    def add(self, error: ReproError) -> None:
        print(one_line(error), file=sys.stderr)
        self.code = max(self.code, error.exit_code)

    def end(self) -> None:
        """End the command with a code other than 0 where there was one."""
        if self.code:
            raise typer.Exit(self.code)


def papers(slugs: list[str] | None, every: bool, faults: Faults | None = None) -> list:
    """The papers that a command was asked for; with `faults` one that cannot be read stops no other."""
    from repro.spec import load as spec

    if not slugs and not every:
        raise ReproError("which papers? name them, such as `rmsnorm`, or write --all")
    if slugs and every:
        raise ReproError("papers are named and --all is written; write one of the two")
    wanted = spec.slugs() if every else list(dict.fromkeys(slugs or ()))
    loaded = []
    for slug in wanted:
        try:
            loaded.append(spec.load(slug))
        except ReproError as error:
            if faults is None or len(wanted) == 1:
                raise
            faults.add(error)
    return loaded


def needs(paper, profile: str) -> None:
    """Refuse a profile that a paper does not have."""
    if profile not in paper.profiles:
        raise ReproError(
            f"papers/{paper.slug}/paper.yaml: has no profile {profile}; it has {', '.join(paper.profiles)}"
        )


def results(slug: str, profile: str, kind: str) -> Path:
    """The path of a paper's rows, verdict or error rates at a profile."""
    if profile == "smoke":  # seconds, for tests, never judged: kept apart from what is committed
        return root() / ".repro" / "smoke" / slug / f"{kind}.json"
    return paths.results(slug, profile, kind, root())


def staleness(paper, profile: str) -> str | None:
    """Why the rows of a profile no longer describe the source, as people read it; None while they do."""
    from repro.files.rows import read_rows
    from repro.report import staleness as compared

    path, again = results(paper.slug, profile, "rows"), f"`repro run {paper.slug} --profile {profile}`"
    why = compared(paper, profile, read_rows(path, f"run {again} again")) if path.is_file() else None
    return why and f"{why}. {again} measures again, `repro refresh` keeps rows that an edit has not changed."


def verdict_table(paper, verdict: dict) -> None:
    """Print the claims and identities of a verdict."""
    from repro.publish.evidence import ours
    from repro.words import number, verdict_words

    rows = []
    for name, judged in verdict["claims"].items():
        claim = paper.claims[name]
        value = claim.paper_value.text or number(claim.paper_value.value)
        row = [
            name + "*" * (verdict["headline"] == name),
            short(value),
            short(ours(judged)),
            verdict_words(judged["state"], judged.get("mark"), claim.fidelity),
        ]
        rows.append(row)
    if rows:
        table(["claim (* headline)", "the paper", "here", "verdict"], rows)
    if identities := verdict.get("identities"):
        table(["identity", ""], [[name, verdict_words(one["state"])] for name, one in identities.items()])
    if verdict["post_hoc"]:
        say("Post hoc: rules, headline or seeds were changed after these rows were measured.")
    if why := staleness(paper, verdict["profile"]):
        paragraph(f"Stale: {why}")
    if any(judged["estimate"] is None and judged["state"] == "inconclusive" for judged in verdict["claims"].values()):
        say(f"`repro show {paper.slug}` says why a claim without a number is not decided.")


def short(text: str, most: int = 60) -> str:
    """A cell of a table."""
    from repro.publish.markdown import short as cut

    return cut(text, most)
