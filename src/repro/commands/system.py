"""`repro data` and `doctor`: what this machine has and what it lacks."""

from typing import Annotated

import typer

from repro.commands.common import AsJson, dump, root, say, table

data = typer.Typer(no_args_is_help=True, help="List data sets, or fetch them and check their files.")


@data.command("list")
def data_list(as_json: AsJson = False) -> None:
    """List the data sets with contents, licence and sources."""
    from repro import data

    sets = [{"name": name, **data.info(name)} for name in data.names()]
    if as_json:
        return dump(sets)
    lines = [[d["name"], d["what"], d["items"], d["licence"], ", ".join(d["sources"])] for d in sets]
    table(["name", "what", "items", "licence", "sources"], lines)


@data.command("fetch")
def data_fetch(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="The data sets, such as digits.")],
) -> None:
    """Fetch data sets into the cache, and check every file's sha256."""
    from repro import data

    for name in names:
        data.info(name)  # a name that is none is refused before anything is fetched
    for name in names:
        say(f"{name}: {data.fetch(name)}")


def doctor(as_json: AsJson = False) -> None:
    """Say what works on this machine, what does not, and what to do."""
    from dataclasses import asdict

    from repro.commands.doctor import checks

    made = []
    for check in checks(root()):
        made.append(check)
        if not as_json:
            say(str(check))
    if as_json:
        dump([asdict(check) for check in made])
    if any(check.ok is False for check in made):
        raise typer.Exit(1)
