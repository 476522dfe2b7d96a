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


def rank(value: Any) -> str:
    fine = type(value) is list and len(value) == 2 and not any(map(positive, value)) and value[0] <= value[1]
    return "" if fine else "[best rank, worst rank]"


def share(value: Any) -> str:
    return "" if not number(value) and 0 <= value <= 1 else "a number from 0 to 1"


def shares(value: Any) -> str:
    return "" if type(value) is list and len(value) == 2 and not any(map(share, value)) else "[low, high] of a share"


def point(value: Any) -> str:
    fine = type(value) is list and len(value) == 4 and not any(map(number, value))
    return "" if fine else "[step, mean, least, greatest]"


def gap(value: Any) -> str:
    fine = type(value) is list and len(value) == 3 and not any(v is not None and number(v) for v in value)
    return "" if fine and (value[1] is None) == (value[2] is None) else "[difference, low, high] or nulls"


CELL = {"depth": positive, "batch": positive, "steps": positive, "width?": positive}
CONTRAST = {"better": ARM, "worse": ARM, "at?": {...: positive}}
BUDGET = {
    "tuning": {"seeds": seeds, "lr": [above_zero], "extend": whole},
    "final": {"seeds": seeds},
    "settings": {...: level},
    "cells": [CELL],
    "cost": {"seeds": seeds, "blocks": positive, "calls": positive, "aa_limit": above_zero},
}
BASICS = {"what": words, "measure": one_of("valid_nats", "valid_error"), "margin": cost, "calibration": [CONTRAST]}
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
    rates, cells = settings["tuning"]["lr"], settings["cells"]
    if not rates:
        file.fail((*where, "tuning", "lr"), "is empty; write at least one")
    if len(set(rates)) < len(rates):
        file.fail((*where, "tuning", "lr"), "holds a learning rate twice; write each once")
    if settings["tuning"]["extend"] > 10:
        file.fail((*where, "tuning", "extend"), "lets the grid grow by more than 10 rates; write a whole number to 10")
    if not cells:
        file.fail((*where, "cells"), "is empty; write at least one, such as {depth: 4, batch: 16, steps: 100}")
    for i, cell in enumerate(cells):
        if cell in cells[:i]:
            file.fail((*where, "cells", i), "stands twice; write each once")
        if "width" not in cell and "width" not in settings["settings"]:
            file.fail((*where, "cells", i), "has no width, nor have the settings; write one")


def read_arena_plan(path: Path, again: str, known: Iterable[str]) -> dict[str, Any]:
    """A plan for `python -m repro.arena`; `known`: the tracks that this suite has."""
    file = JsonFile(path, again)
    one = {
        "track": NAME,
        "profile": one_of(*PROFILES),
        "settings": {**BASICS, **BUDGET},
        "arms": [ARM],
        "same": [{...: text}],
        "out": {...: text},
    }
    check(file, {"tracks": [one]}, file.data)
    for i, track in enumerate(file.data["tracks"]):
        if track["track"] not in known:
            file.fail(("tracks", i, "track"), f"{told(track['track'])}; write one of {', '.join(known)}")
        _budget(file, ("tracks", i, "settings"), track["settings"])
        if "base" not in track["arms"]:
            file.fail(("tracks", i, "arms"), "lacks base, the unchanged model")
        if len(track["same"]) != len(track["settings"]["cells"]):
            file.fail(("tracks", i, "same"), "has another length than the cells of the settings")
    return file.data


def read_arena_rows(path: Path, again: str, shown: str, track: str, profile: str, settings: Any = None) -> Any:
    """The rows of a track; with the settings of the track also complete enough for its table."""
    file = JsonFile(path, again, shown)
    document = rows_file.checked(file, (f"arena-{track}", profile))
    check(file, {"provenance": {"device_model": text, "trials": [text]}}, document)
    check(file, {"same?": [{...: text}], "out?": {...: text}}, document)
    trained = {"lr": above_zero, ...: level}
    measures = {"steps": [number], "curve": [number], "fails_above?": number, "learns_below?": number}
    for i, row in enumerate(document["rows"]):
        where = ("rows", i)
        check(file, {"arm": ARM, "experiment": one_of(track, "cost")}, row, where)
        if row["experiment"] == "cost":
            if row["status"] == "ok":
                check(file, {"seconds": cost, "peak_bytes": cost}, row["measures"], (*where, "measures"))
            continue
        check(file, trained, row["factors"], (*where, "factors"))
        if row["status"] == "ok":
            check(file, measures, row["measures"], (*where, "measures"))
            if settings is not None:
                check(file, {settings["measure"]: number}, row["measures"], (*where, "measures"))
            if len(row["measures"]["steps"]) != len(row["measures"]["curve"]):
                file.fail((*where, "measures", "curve"), "has another length than steps")
    if settings is not None:
        _complete(file, document, settings)
    return document


def _complete(file: JsonFile, document: dict[str, Any], settings: dict[str, Any]) -> None:
    """Every cell has its base, and every arm of a cell its tuning seeds and judged seeds."""
    if len(document.get("same", settings["cells"])) != len(settings["cells"]):
        file.fail(("same",), "has another length than the cells of arena.yaml")
    for cell in settings["cells"]:
        seen: dict[str, set[bool]] = {}
        tuned: dict[str, set[tuple]] = {}
        for row in document["rows"]:
            if row["experiment"] != "cost" and all(row["factors"].get(k) == v for k, v in cell.items()):
                seen.setdefault(row["arm"], set()).add(row["seed"] >= 1000)
                if row["seed"] >= 1000:
                    tuned.setdefault(row["arm"], set()).add((row["seed"], row["factors"]["lr"]))
        told_cell = ", ".join(f"{k} {v}" for k, v in cell.items())
        for arm in ("base", *seen):
            if seen.get(arm, set()) != {True, False}:
                file.fail(("rows",), f"lacks tuning seeds or judged seeds of {arm} at {told_cell}")
            seeds, rates = ({pair[i] for pair in tuned[arm]} for i in (0, 1))
            if len(tuned[arm]) != len(seeds) * len(rates):
                file.fail(("rows",), f"lacks a tuning seed of {arm} at {told_cell}")


LINE = {
    "arm": ARM,
    "control": truth,
    "mean": number,
    "spread": (number,),
    "n": whole,
    "failed": whole,
    "failures": shares,
    "gap": gap,
    "rank": rank,
    "standing": one_of("the base", "better", "as good", "not told apart", "worse", "fails", "no better than a control"),
    "no_better_than": [ARM],
    "lr": above_zero,
    "edge": truth,
    "tuning": [{"lr": above_zero, "mean": (number,)}],
    "tuning_runs": whole,
    "best": (number,),
    "steps_to_target": (cost,),
    "curve": [point],
}
METHOD = {
    "arm": ARM,
    "slot": text,
    "control": truth,
    "source": one_of("paper", "torch", "pytorch_optimizer", "control"),
    "trials": [text],
    "step_seconds": (cost,),
    "peak_bytes": (cost,),
}
TABLE = {
    "track": NAME,
    "profile": one_of(*PROFILES),
    "what": text,
    "measure": words,
    "margin": cost,
    "settings": {...: level},
    "level": above_zero,
    "seeds": positive,
    "tuning_seeds": positive,
    "rows_digest": digest_text,
    "device": text,
    "methods": [METHOD],
    "out": {...: text},
    "cells": [
        {
            "at": {"depth": positive, "batch": positive, "steps": positive, ...: level},
            "target": number,
            "fails_above": (number,),
            "learns_below": (number,),
            "learnt": truth,
            "ranks": truth,
            "calibration": [{"better": ARM, "worse": ARM, "ok": truth, "gap": (number,)}],
            "same": {...: text},
            "slots": {...: {"usable": truth, "why": (text,), "controls": {...: truth}, "lines": [LINE]}},
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
            if not found["lines"]:
                file.fail(("cells", i, "slots", slot, "lines"), "is empty; write at least one")
            for k, line in enumerate(found["lines"]):
                if line["arm"] not in known:
                    file.fail(
                        ("cells", i, "slots", slot, "lines", k, "arm"),
                        f"{told(line['arm'])}, which is not among methods",
                    )
    return document
