"""What was registered before (`results/<profile>.earlier.json`): how often a claim was looked at, and what came of it.

A registration is the digest of claims, rules, seeds and headline under which rows were measured.  Whoever takes fresh
seeds or other rules after rows have been read gets one more chance to err, so the page says how many there were.
"""

import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from typing_extensions import TypedDict

from repro.files.paths import SCHEMA, STATES, place
from repro.files.schema import CLOSED, Digest, ProfileName, Wanted, Whole, Words, matching, one_of, whole_file
from repro.files.strict import JsonFile, head, placed
from repro.store import write_file

State = one_of(*STATES)


class Registration(TypedDict):
    """One registration with rows that is no longer the present one.

    since   day of the commit that brought its first rows;  commit  the last commit that has them
    seeds   first and last judged seed;  headline, state  of their last verdict that is not post hoc, where there is one
    """

    __pydantic_config__ = CLOSED
    registered: Digest
    since: matching(r"\d{4}-\d\d-\d\d", "a day, such as 2026-11-29")
    commit: matching(r"[0-9a-f]{40}", "the 40 digits of a commit")
    seeds: Annotated[list[Whole], Field(min_length=2, max_length=2), Wanted("[first, last]")]
    headline: Words | None
    state: State | None


class Earlier(TypedDict):
    """The earlier registrations of a paper at a profile, oldest first."""

    __pydantic_config__ = CLOSED
    schema: Whole
    paper: Words
    profile: ProfileName
    registrations: list[Registration]


def read_earlier(path: Path, again: str = "run `repro history --write` again") -> list[dict[str, Any]]:
    """The earlier registrations of a file; none where there is no file."""
    if not path.exists():
        return []
    file = JsonFile(path, again)
    document = head(file)
    whole_file(file, Earlier)
    if here := place(path):
        placed(file, document, *here)
    return document["registrations"]


def write_earlier(path: Path, registrations: list[dict[str, Any]]) -> None:
    """Write the file, or remove it where there is nothing to say."""
    if not registrations:
        path.unlink(missing_ok=True)
        return
    paper, profile = place(path)
    document = {"schema": SCHEMA, "paper": paper, "profile": profile, "registrations": registrations}
    write_file(path, json.dumps(document, indent=1) + "\n")
