"""The `repro` command: registers what `repro.commands` holds.

Every command imports what it needs when it is called: `repro list` starts no torch.
"""

import os
import sys

import typer

from repro.commands import arena, judging, measure, papers, publishing, system
from repro.commands.common import KEEP, MEASURE, READ, WRITE
from repro.errors import ReproError, one_line

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Reference implementations of deep-network methods, each with a verdict.",
)
COMMANDS = {
    READ: {
        "list": papers.list_papers,
        "show": papers.show,
        "history": papers.history,
        "cite": publishing.cite_paper,
        "recommend": arena.recommend,
    },
    MEASURE: {
        "run": measure.run,
        "judge": judging.judge,
        "plan": measure.plan_trials,
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

USAGE_ERROR = typer.BadParameter.__base__  # click's, or that of the copy of click that typer carries


def main() -> None:
    """Entry point: whatever is wrong with what was given is one line on standard error and a non-zero exit code."""
    try:
        code = app(standalone_mode=False, prog_name="repro")
        sys.stdout.flush()
    except ReproError as error:
        code = error.exit_code
        print(one_line(error), file=sys.stderr)
    except USAGE_ERROR as error:
        code = error.exit_code
        if type(error).__name__ == "NoArgsIsHelpError":
            error.show()
        else:
            path = error.ctx.command_path if error.ctx else "repro"
            print(one_line(f"{error.format_message()} (`{path} --help` tells more)"), file=sys.stderr)
    except SyntaxError as error:  # of a method.py or experiment.py, which are read as they stand
        code = 2
        place = f"{error.filename or 'a Python file'}:{error.lineno}"
        print(one_line(f"{place}: {error.msg}; correct this line"), file=sys.stderr)
    except BrokenPipeError:  # `repro list | head`: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except OSError as error:
        code = 2
        print(one_line(f"{error.filename or 'a file'}: {error.strerror or error}"), file=sys.stderr)
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
