"""Rows (`papers/<slug>/results/<profile>.rows.json`) as a file."""

from pathlib import Path
from typing import Any, NotRequired

from typing_extensions import TypedDict

from repro.files.paths import place, row_key
from repro.files.schema import (
    OPEN,
    Cost,
    Digest,
    Level,
    Measured,
    ProfileName,
    Text,
    Truth,
    Whole,
    Words,
    one_of,
    whole_file,
)
from repro.files.strict import JsonFile, head, placed, told
from repro.store import sealed


class Row(TypedDict):
    """What one trial gave."""

    __pydantic_config__ = OPEN
    experiment: Words
    arm: Words
    seed: Whole
    factors: dict[str, Level]
    status: one_of("ok", "diverged", "invalid")
    seconds: Cost
    measures: dict[str, Measured]
    step: NotRequired[Whole | None]
    why: NotRequired[Text]


class Provenance(TypedDict):
    """Where and from what the rows were measured."""

    __pydantic_config__ = OPEN
    digest: Digest
    commit: NotRequired[Text | None]
    dirty: NotRequired[Truth]
    device: NotRequired[Text]
    device_model: NotRequired[Text]
    device_class: NotRequired[Text]
    threads: NotRequired[Whole]
    versions: NotRequired[dict[str, Text]]
    platform: NotRequired[Text]
    started: NotRequired[Text]
    seconds: NotRequired[Cost]
    sources: NotRequired[dict[str, Text]]
    config: NotRequired[dict[str, Text]]
    trials: NotRequired[list[Text]]
    notes: NotRequired[list[Text]]
    missing: NotRequired[Whole]
    git: NotRequired[Text]
    checksum: NotRequired[Digest]


class Rows(TypedDict):
    """All rows of a paper at a profile."""

    __pydantic_config__ = OPEN
    paper: Words
    profile: ProfileName
    provenance: Provenance
    registered: Text
    rows: list[Row]
    out: NotRequired[dict[str, Text]]


def read_rows(path: Path, again: str, shown: str | None = None) -> dict[str, Any]:
    """A rows document (`papers/<slug>/results/<profile>.rows.json`); its digest is not checked."""
    return checked(JsonFile(path, again, shown), place(path))


def checked(file: JsonFile, here: tuple[str, str] | None) -> dict[str, Any]:
    """The rows of a file, which belong to the paper and profile `here`."""
    document = head(file)
    whole_file(file, Rows)
    if here:
        placed(file, document, *here)
    seen: dict[tuple, int] = {}
    kinds: dict[tuple[str, str], str] = {}
    for i, row in enumerate(document["rows"]):
        for name, value in row["factors"].items():
            kind = {str: "a text", bool: "true or false"}.get(type(value), "a number")
            if kinds.setdefault((row["experiment"], name), kind) != kind:
                known = kinds[row["experiment"], name]
                file.fail(("rows", i, "factors", name), f"{told(value)}; write {known} as in the other rows")
        key = row_key(row)
        if key in seen:
            file.fail(("rows", i), f"stands twice, first as rows[{seen[key]}] ({row['arm']}, seed {row['seed']})")
        seen[key] = i
    trials = document["provenance"].get("trials")
    if trials is not None and len(trials) != len(document["rows"]):
        file.fail(("provenance", "trials"), f"{len(trials)} keys for {len(document['rows'])} rows")
    if document["provenance"].keys() & {"trials", "checksum"} and document != sealed(document):  # every run seals it
        file.fail(("provenance", "checksum"), "the file is not as it was written (edited by hand, or damaged)")
    return document
