"""The `repro` command: registers what `repro.commands` holds.

Every command imports what it needs when it is called: `repro list` starts no torch.
"""

import sys
from typing import Annotated

import typer

from repro.commands import arena, common, judging, measure, outcomes, papers, publishing, system
from repro.commands.common import KEEP, MEASURE, READ, WRITE

app = typer.Typer(
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Reference implementations of deep-network methods, each with a verdict.",
)
COMMANDS = {
    READ: {
        "list": papers.list_papers,
        "show": papers.show,
        "history": papers.history,
        "trial": papers.trial,
        "cite": publishing.cite_papers,
        "recommend": arena.recommend,
        "ask": papers.ask,
        "export": publishing.export,
        "figure": publishing.figure,
        "badge": publishing.badge,
    },
    MEASURE: {
        "run": measure.run,
        "judge": judging.judge,
        "plan": measure.plan_trials,
        "tune": measure.tune,
        "rehearse": measure.rehearse,
        "reproduce": measure.reproduce,
        "arena": arena.arena,
    },
    KEEP: {
        "verify": judging.verify,
        "refresh": judging.refresh,
        "quality": judging.show_quality,
        "index": publishing.generate,
        "report": publishing.report,
        "doctor": system.doctor,
    },
    WRITE: {"new": publishing.new},
}
for panel, commands in COMMANDS.items():
    for name, command in commands.items():
        app.command(name, rich_help_panel=panel)(command)
app.add_typer(system.data, name="data", rich_help_panel=KEEP)


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version and end.", is_eager=True, callback=common.print_version),
    ] = False,
) -> None:
    """Reference implementations of deep-network methods, each with a verdict."""


def main() -> None:
    """Run the command: whatever is wrong with what was given is one line on standard error and a code other than 0."""
    sys.exit(outcomes.code_of(lambda: app(standalone_mode=False, prog_name="repro"), sys.argv[1:]))


if __name__ == "__main__":
    main()
