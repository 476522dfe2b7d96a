"""Tracks, plans, rows and tables of the arena as files."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from repro.files import rows as rows_file
from repro.files.paths import PROFILES, SLUG
from repro.files.strict import (
    JsonFile,
    Where,
    above_zero,
    check,
    cost,
    digest_text,
    head,
    level,
    matching,
    number,
    one_of,
    text,
    told,
    truth,
    whole,
    words,
)

NAME = matching(SLUG, "a name of a-z, 0-9 and _, such as mlp")
ARM = matching(re.compile(r"base|[a-z]+:\w+\.\w+"), "base, or an arm such as norm:rmsnorm.RMSNorm")


def positive(value: Any) -> str:
    return "" if not whole(value) and value else "a whole number from 1 on"


def seeds(value: Any) -> str:
    return "" if not positive(value) and value <= 1000 else "a whole number from 1 to 1000"


def rung(value: Any) -> str:
    fine = type(value) is list and len(value) == 2 and not any(map(positive, value))
    return "" if fine else "[steps, how many learning rates go on]"


def rank(value: Any) -> str:
    fine = not rung(value) and value[0] <= value[1]
    return "" if fine else "[best rank, worst rank]"


def gap(value: Any) -> str:
    fine = type(value) is list and len(value) == 3 and not any(v is not None and number(v) for v in value)
    return "" if fine and (value[1] is None) == (value[2] is None) else "[difference, low, high] or nulls"


BUDGET = {
    "tuning": {"seeds": seeds, "lr": [above_zero], "rungs": [rung]},
    "final": {"seeds": seeds, "steps": positive},
    "settings": {"depth": positive, "batch": positive, ...: level},
    "cells?": [{"depth?": positive, "batch?": positive, "steps?": positive}],
    "cost": {"seeds": seeds, "blocks": positive, "calls": positive, "aa_limit": above_zero},
}
BASICS = {"what": words, "measure": one_of("valid_nats", "valid_error"), "target": number, "margin": cost}
TRACK = {**BASICS, **{f"{profile}?": BUDGET for profile in PROFILES}}


def read_tracks(file: Any) -> dict[str, Any]:
    """`arena.yaml` (a YamlFile) as plain data; here a key that is not known is a mistake."""
    check(file, {...: TRACK}, file.data, strict=True)
    for name, track in file.data.items():
        if wanted := NAME(name):
            file.fail((name,), f"{told(name)}; write {wanted}")
        if not set(track) & set(PROFILES):
            file.fail((name,), f"has no profile; write its budget under one of {', '.join(PROFILES)}")
        for profile in set(track) & set(PROFILES):
            _budget(file, (name, profile), track[profile])
    return file.data


def _budget(file: Any, where: Where, settings: dict[str, Any]) -> None:
    """What the parts of a budget ask of each other."""
    tuning = settings["tuning"]
    for i, cell in enumerate(settings.get("cells", ())):
        if not cell:
            file.fail((*where, "cells", i), "changes nothing; write depth, batch or steps")
    for key in ("lr", "rungs"):
        if not tuning[key]:
            file.fail((*where, "tuning", key), "is empty; write at least one")
    if len(set(tuning["lr"])) < len(tuning["lr"]):
        file.fail((*where, "tuning", "lr"), "holds a learning rate twice; write each once")
    left = len(tuning["lr"])
    for i, (_, keep) in enumerate(tuning["rungs"]):
        if keep > left:
            file.fail((*where, "tuning", "rungs", i), f"keeps {keep} of {left} learning rates; write at most {left}")
        left = keep
    if left != 1:
        file.fail(
            (*where, "tuning", "rungs", len(tuning["rungs"]) - 1), f"keeps {left} learning rates; the last rung keeps 1"
        )


def read_arena_plan(path: Path, again: str, known: Iterable[str]) -> dict[str, Any]:
    """A plan for `python -m repro.arena`; `known`: the tracks that this suite has."""
    file = JsonFile(path, again)
    one = {
        "track": NAME,
        "profile": one_of(*PROFILES),
        "settings": {**BASICS, **BUDGET},
        "arms": [ARM],
        "out": {...: text},
    }
    check(file, {"tracks": [one]}, file.data)
    for i, track in enumerate(file.data["tracks"]):
        if track["track"] not in known:
            file.fail(("tracks", i, "track"), f"{told(track['track'])}; write one of {', '.join(known)}")
        _budget(file, ("tracks", i, "settings"), track["settings"])
        if "base" not in track["arms"]:
            file.fail(("tracks", i, "arms"), "lacks base, the unchanged model")
    return file.data


def read_arena_rows(
    path: Path, again: str, shown: str, track: str, profile: str, settings: dict[str, Any]
) -> dict[str, Any]:
    """The rows of a track, complete enough for its table."""
    file, base = JsonFile(path, again, shown), {k: settings["settings"][k] for k in ("depth", "batch")}
    document = rows_file.checked(file, (f"arena-{track}", profile))
    check(file, {"provenance": {"device_model": text, "trials": [text]}}, document)
    trained = {**{k: number for k in ("depth", "batch")}, "lr": above_zero, "steps": positive}
    at_base: dict[str, bool] = {}
    for i, row in enumerate(document["rows"]):
        where = ("rows", i)
        check(file, {"arm": ARM, "experiment": one_of(track, "cost")}, row, where)
        if row["experiment"] == "cost":
            if row["status"] == "ok":
                check(file, {"seconds": cost, "peak_bytes": cost}, row["measures"], (*where, "measures"))
            continue
        check(file, trained, row["factors"], (*where, "factors"))
        judged = row["seed"] < 1000 and all(
            row["factors"][k] == v for k, v in {**base, "steps": settings["final"]["steps"]}.items()
        )
        at_base[row["arm"]] = at_base.get(row["arm"], False) or judged
        if row["status"] == "ok":
            check(
                file,
                {settings["measure"]: number, "steps": [number], "curve": [number]},
                row["measures"],
                (*where, "measures"),
            )
            if len(row["measures"]["steps"]) != len(row["measures"]["curve"]):
                file.fail((*where, "measures", "curve"), "has another length than steps")
    missing = next((arm for arm in ("base", *at_base) if not at_base.get(arm)), None)
    if missing:
        told_base = ", ".join(f"{k} {v}" for k, v in base.items())
        file.fail(("rows",), f"no row of arm {missing} at {told_base} and {settings['final']['steps']} steps")
    return document


LINE = {
    "arm": ARM,
    "mean": number,
    "spread?": (number,),
    "error": (number,),
    "n": whole,
    "diverged": whole,
    "rank": rank,
    "gap": gap,
}
METHOD = {
    "arm": ARM,
    "slot": text,
    "control": truth,
    "lr": above_zero,
    "trials": [text],
    "depths": [positive],
    "sensitivity": [{"lr": above_zero, "mean": (number,), "diverged": cost}],
    "largest_stable_lr": (above_zero,),
    "steps_to_target": (cost,),
    "seconds_to_target": (cost,),
    "step_seconds": (cost,),
    "peak_bytes": (cost,),
    "fails_at_depth": (positive,),
}
TABLE = {
    "track": NAME,
    "profile": one_of(*PROFILES),
    "what": text,
    "measure": words,
    "target": number,
    "margin": cost,
    "settings": {"depth": positive, "batch": positive, ...: level},
    "level": above_zero,
    "seeds": positive,
    "steps": positive,
    "rows_digest": digest_text,
    "device": text,
    "methods": [METHOD],
    "out": {...: text},
    "cells": [
        {
            "changed": {...: positive},
            "slots": {...: {"discriminates": ({"ok": truth, "best": text, "worse": {...: truth}},), "ranking": [LINE]}},
        }
    ],
}


def read_table(path: Path, again: str, shown: str, track: str, profile: str) -> dict[str, Any]:
    """The table of a track."""
    file = JsonFile(path, again, shown)
    document = head(file)
    check(file, TABLE, document)
    for key, own in (("track", track), ("profile", profile)):
        if document[key] != own:
            file.fail((key,), f"{told(document[key])} in the place of {own}; bring the table of {track} at {profile}")
    if not document["cells"]:
        file.fail(("cells",), "is empty; write at least one")
    known = {method["arm"] for method in document["methods"]}
    for i, cell in enumerate(document["cells"]):
        for slot, found in cell["slots"].items():
            if not found["ranking"]:
                file.fail(("cells", i, "slots", slot, "ranking"), "is empty; write at least one")
            for k, line in enumerate(found["ranking"]):
                if line["arm"] not in known:
                    file.fail(
                        ("cells", i, "slots", slot, "ranking", k, "arm"),
                        f"{told(line['arm'])}, which is not among methods",
                    )
    return document
