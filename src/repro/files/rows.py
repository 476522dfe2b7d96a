"""Rows (`papers/<slug>/results/<profile>.rows.json`) as a file.

They are read on machines with nothing but torch and numpy too, where a run is taken up again: there the seal says
whether a file is as it was written.
"""

import importlib.util
from pathlib import Path
from typing import Any

from repro.files.paths import place, row_key
from repro.files.strict import JsonFile, head, placed, told
from repro.store import sealed


def read_rows(path: Path, again: str, shown: str | None = None, *, seal: bool = True) -> dict[str, Any]:
    """A rows document (`papers/<slug>/results/<profile>.rows.json`); its digest is not checked.

    seal: whether the seal over provenance and seconds is checked too.
    """
    return checked(JsonFile(path, again, shown), place(path), seal=seal)


def checked(file: JsonFile, here: tuple[str, str] | None, *, seal: bool = True) -> dict[str, Any]:
    """The rows of a file, which belong to the paper and profile `here`."""
    document = head(file)
    if importlib.util.find_spec("pydantic"):
        from repro.files.kinds import Rows
        from repro.files.schema import whole_file

        whole_file(file, Rows)
    else:
        try:
            fine = document == sealed(document)
        except (KeyError, TypeError, AttributeError):
            fine = False
        if not fine:
            file.fail((), "the file is not as it was written (edited by hand, or damaged)")
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
    sealable = seal and document["provenance"].keys() & {"trials", "checksum"}  # every run seals it
    if sealable and document != sealed(document):
        file.fail(("provenance", "checksum"), "the file is not as it was written (edited by hand, or damaged)")
    return document
