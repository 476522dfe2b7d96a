"""`python -m dev`: inject faults into small checkouts, or try the corpus of bad input (`--inputs`)."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from dev import badinput
from dev import chaos as faults
from repro.commands.common import AsJson, dump, root, say, table
from repro.errors import Failed

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def chaos(
    runs: Annotated[int, typer.Option(min=1, help="repeats of a fault whose time or place is drawn")] = 20,
    only: Annotated[list[str] | None, typer.Option(help="one kind of fault; may be given again")] = None,
    inputs: Annotated[bool, typer.Option("--inputs", help="the corpus of bad input instead (tests/bad_input)")] = False,
    write: Annotated[Path | None, typer.Option(help="put the table into this Markdown file, between its marks")] = None,
    as_json: AsJson = False,
) -> None:
    """For developers: inject faults into small checkouts and count what is detected, recovered and lost."""
    if inputs:
        results = badinput.run(root())
        head, *lines = badinput.table(results)
        if as_json:
            dump([asdict(result) for result in results])
        else:
            table(head, lines)
        if write is not None:
            faults.write(write, head, lines, "python -m dev --inputs")
        if wrong := [f"{r.subject}: {r.name} ({r.why})" for r in results if r.outcome == "wrong"]:
            raise Failed(f"{len(wrong)} cases came out wrong, first {wrong[0]}")
        return
    found = faults.run(runs, only, (lambda text: None) if as_json else say)
    if as_json:
        dump([asdict(fault) for fault in found])
    else:
        say()
        table(faults.HEAD, faults.table(found))
    if write is not None:
        faults.write(
            write,
            faults.HEAD,
            faults.table(found),
            " ".join(["python -m dev", f"--runs {runs}", *(f"--only {name}" for name in only or ())]),
        )
    if bad := [fault.name for fault in found if not fault.ok]:
        raise Failed(f"not all was detected and recovered: {'; '.join(bad)}")


if __name__ == "__main__":
    app()
