"""What `repro list` prints, remembered: the evidence of each paper, until one of its files changes.

Reading 345 papers with their rows takes seconds, so their lines are kept under `.repro/list.json`, by the size and time
of every file that they are made from.  Nothing but `repro list` reads this file, and it holds no rule: what judges,
checks and renders reads papers and rows anew.
"""

import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import repro
from repro.errors import ReproError
from repro.files.paths import JUDGED, paper_dirs
from repro.files.strict import read_regular
from repro.store import write_file

SOURCES = ("errors.py", "store.py", "words.py", "files", "judge", "publish", "spec")  # what makes a line


def listing() -> list[dict[str, Any]]:
    """The evidence of every paper as plain data (the fields of `evidence.Evidence`), sorted by slug."""
    folder, source = paper_dirs(), _source()
    kept = folder.parent / ".repro" / "list.json"
    known, lines = _read(kept), {}
    changed = False
    for slug in sorted(
        entry.name
        for entry in os.scandir(folder)
        if entry.name[0] != "." and os.path.isfile(f"{entry.path}/paper.yaml")
    ):
        mark = _mark(folder / slug, source)
        line = known.get(slug)
        if not _is_line(line, slug, mark):
            from repro.publish.evidence import evidence

            line, changed = {"mark": mark, "line": asdict(evidence(slug))}, True
        lines[slug] = line
    if (changed or lines.keys() != known.keys()) and (folder.parent / "params.yaml").is_file():
        sound = {slug: line for slug, line in lines.items() if not line["line"]["fault"]}
        try:
            write_file(kept, json.dumps({slug: {**line, "seal": _seal(line)} for slug, line in sound.items()}))
        except ReproError:
            pass  # a checkout that may not be written is only slower
    return [line["line"] for line in lines.values()]


def _read(path: Path) -> dict[str, Any]:
    try:
        lines = json.loads(read_regular(path))
    except (OSError, ValueError, RecursionError):
        return {}
    return lines if isinstance(lines, dict) else {}


def _is_line(line: Any, slug: str, mark: str) -> bool:
    """Whether a remembered line is one of this paper as it lies there now, and as it was written."""
    if not isinstance(line, dict) or line.get("mark") != mark or not isinstance(line.get("line"), dict):
        return False
    return line["line"].get("slug") == slug and line.get("seal") == _seal(line)


def _seal(line: dict[str, Any]) -> str:
    """The digest of a line: what a damaged file holds is made again."""
    return hashlib.sha256(json.dumps([line["mark"], line["line"]], sort_keys=True).encode()).hexdigest()


def _mark(folder: Path, source: str) -> str:
    """A digest of the size and time of every file that a paper's line is made from."""
    names = ["paper.yaml", *(f"results/{profile}.{kind}.json" for profile in JUDGED for kind in ("rows", "verdict"))]
    return hashlib.sha256(repr([source, *(_stat(f"{folder}/{name}") for name in names)]).encode()).hexdigest()


def _stat(path: str) -> tuple[int, ...]:
    try:
        found = os.stat(path)
    except OSError:
        return ()
    return found.st_size, found.st_mtime_ns, found.st_ino


def _source() -> str:
    """The same of the modules that make the lines."""
    base = Path(repro.__path__[0])
    places = [base / name for name in SOURCES]
    files = sorted(file for place in places for file in (place.glob("*.py") if place.is_dir() else [place]))
    return repr([(file.name, _stat(str(file))) for file in files])
