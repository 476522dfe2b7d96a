"""Plans for `python -m repro.run` and `python -m repro.arena` as files.

A machine with nothing but torch and numpy reads them too.  There the schema's version, the digest and what reaches
paths and imports are checked; where pydantic is installed, so is everything else.
"""

import importlib.util
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from repro.errors import did_you_mean
from repro.files.paths import PROFILES, SCHEMA, SLUG, row_key
from repro.files.strict import JsonFile, Where, head, told
from repro.store import digest

MODULE = re.compile(r"repro(\.\w+)+")


def written(document: dict[str, Any]) -> dict[str, Any]:
    """A plan with the schema's version and the digest by which its reader knows that it is whole."""
    body = {key: value for key, value in document.items() if key not in ("schema", "digest")}
    return {"schema": SCHEMA, "digest": digest(body), **body}


def read_plan(path: Path, again: str) -> dict[str, Any]:
    """A plan for `python -m repro.run`."""
    file = JsonFile(path, again)
    document = head(file)
    if importlib.util.find_spec("pydantic"):
        from repro.files.kinds import Plan
        from repro.files.schema import whole_file

        whole_file(file, Plan)
        _trials(file, document)
    _unchanged(file, document)
    for where, name in _each(document, "paper"):
        if not SLUG.fullmatch(name):
            file.fail(where, f"{told(name)}; write a paper's name of a-z, 0-9 and _, such as rmsnorm")
    for where, name in _each(document, "profile"):
        if name not in PROFILES:
            file.fail(where, f"{told(name)}{did_you_mean(name, PROFILES, every=True)}")
    for i, entry in enumerate(document["entries"]):
        for name, setting in entry["experiments"].items():
            if not MODULE.fullmatch(setting["module"]):
                place = ("entries", i, "experiments", name, "module")
                file.fail(place, f"{told(setting['module'])}; write a module of this suite")
    return document


def _each(document: dict[str, Any], key: str) -> Iterator[tuple[Where, str]]:
    yield from ((("entries", i, key), entry[key]) for i, entry in enumerate(document["entries"]))


def _unchanged(file: JsonFile, document: dict[str, Any]) -> None:
    """Refuse a plan that is not as it was written."""
    if document.get("digest") != written(document)["digest"]:
        file.fail(("digest",) if "digest" in document else (), "the plan is not as it was written (edited, or damaged)")


def _trials(file: JsonFile, document: dict[str, Any]) -> None:
    """Every trial is one of an experiment of the plan, and stands once."""
    if not document["entries"]:
        file.fail(("entries",), "is empty; write at least one")
    for i, entry in enumerate(document["entries"]):
        if not entry["trials"]:
            file.fail(("entries", i, "trials"), "is empty; write at least one")
        seen: dict[tuple, int] = {}
        for k, trial in enumerate(entry["trials"]):
            where, setting = ("entries", i, "trials", k), entry["experiments"].get(trial["experiment"])
            if setting is None:
                known = did_you_mean(trial["experiment"], entry["experiments"])
                file.fail((*where, "experiment"), f"{told(trial['experiment'])}{known}")
            if trial["arm"] not in setting["arms"]:
                file.fail((*where, "arm"), f"{told(trial['arm'])}{did_you_mean(trial['arm'], setting['arms'])}")
            if (key := row_key(trial)) in seen:
                file.fail(where, f"stands twice, first as entries[{i}].trials[{seen[key]}]")
            seen[key] = k


def read_arena_plan(path: Path, again: str, known: Iterable[str]) -> dict[str, Any]:
    """A plan for `python -m repro.arena`; `known`: the tracks that this suite has."""
    file = JsonFile(path, again)
    document = head(file)
    if importlib.util.find_spec("pydantic"):
        from repro.files.arena import check_plan

        check_plan(file)
    _unchanged(file, document)
    for i, track in enumerate(document["tracks"]):
        if track["track"] not in known:
            file.fail(("tracks", i, "track"), f"{told(track['track'])}{did_you_mean(track['track'], known)}")
        if track["profile"] not in PROFILES:
            file.fail(("tracks", i, "profile"), f"{told(track['profile'])}{did_you_mean(track['profile'], PROFILES)}")
    return document
