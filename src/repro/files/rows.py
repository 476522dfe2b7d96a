"""Rows (`papers/<slug>/results/<profile>.rows.json`) as a file."""

from pathlib import Path
from typing import Any

from repro.files.paths import PROFILES, place, row_key
from repro.files.strict import (
    JsonFile,
    check,
    cost,
    digest_text,
    head,
    level,
    measure,
    one_of,
    placed,
    text,
    told,
    truth,
    whole,
    words,
)
from repro.store import sealed

ROW = {
    "experiment": words,
    "arm": words,
    "seed": whole,
    "factors": {...: level},
    "status": one_of("ok", "diverged", "invalid"),
    "seconds": cost,
    "measures": {...: measure},
    "step?": (whole,),
    "why?": text,
}
PROVENANCE = {
    "digest": digest_text,
    "commit?": (text,),
    "dirty?": truth,
    "device?": text,
    "device_model?": text,
    "device_class?": text,
    "threads?": whole,
    "versions?": {...: text},
    "platform?": text,
    "started?": text,
    "seconds?": cost,
    "sources?": {...: text},
    "config?": {...: text},
    "trials?": [text],
    "notes?": [text],
    "checksum?": digest_text,
}
ROWS = {
    "paper": words,
    "profile": one_of(*PROFILES),
    "provenance": PROVENANCE,
    "registered": text,
    "rows": [ROW],
    "out?": {...: text},
}


def read_rows(path: Path, again: str, shown: str | None = None) -> dict[str, Any]:
    """A rows document (`papers/<slug>/results/<profile>.rows.json`); its digest is not checked."""
    return checked(JsonFile(path, again, shown), place(path))


def checked(file: JsonFile, here: tuple[str, str] | None) -> dict[str, Any]:
    document = head(file)
    check(file, ROWS, document)
    if here:
        placed(file, document, *here)
    seen: dict[tuple, int] = {}
    kinds: dict[tuple[str, str], str] = {}
    for i, row in enumerate(document["rows"]):
        for name, value in row["factors"].items():
            kind = {str: "a text", bool: "true or false"}.get(type(value), "a number")
            if kinds.setdefault((row["experiment"], name), kind) != kind:
                file.fail(
                    ("rows", i, "factors", name),
                    f"{told(value)}; write {kinds[row['experiment'], name]} as in the other rows",
                )
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
