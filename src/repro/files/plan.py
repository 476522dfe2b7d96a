"""Plans for `python -m repro.run` as files."""

import json
import re
from pathlib import Path
from typing import Any

from repro.files.paths import PROFILES, SLUG
from repro.files.strict import (
    JsonFile,
    above_zero,
    check,
    head,
    level,
    matching,
    one_of,
    text,
    told,
    truth,
    whole,
    words,
)

MODULE = matching(re.compile(r"repro(\.\w+)+"), "a module of this suite, such as repro.papers.rmsnorm.experiment")
SLUG_KIND = matching(SLUG, "a paper's name of a-z, 0-9 and _, such as rmsnorm")
PLAN = {
    "entries": [
        {
            "paper": SLUG_KIND,
            "profile": one_of(*PROFILES),
            "registered": text,
            "experiments": {
                ...: {
                    "module": MODULE,
                    "exclusive": truth,
                    "batched": truth,
                    "ranks?": (above_zero,),
                    "arms": [words],
                    "config": {...: lambda value: ""},
                }
            },
            "trials": [{"experiment": words, "arm": words, "seed": whole, "factors": {...: level}}],
        }
    ],
}


def read_plan(path: Path, again: str) -> dict[str, Any]:
    """A plan for `python -m repro.run`."""
    file = JsonFile(path, again)
    document = head(file)
    check(file, PLAN, document)
    if not document["entries"]:
        file.fail(("entries",), "is empty; write at least one")
    for i, entry in enumerate(document["entries"]):
        if not entry["trials"]:
            file.fail(("entries", i, "trials"), "is empty; write at least one")
        seen: dict[str, int] = {}
        for k, trial in enumerate(entry["trials"]):
            where = ("entries", i, "trials", k)
            setting = entry["experiments"].get(trial["experiment"])
            if setting is None:
                file.fail(
                    (*where, "experiment"),
                    f"{told(trial['experiment'])}; write one of {', '.join(entry['experiments']) or 'none'}",
                )
            if trial["arm"] not in setting["arms"]:
                file.fail((*where, "arm"), f"{told(trial['arm'])}; write one of {', '.join(setting['arms']) or 'none'}")
            key = json.dumps(trial, sort_keys=True)
            if key in seen:
                file.fail(where, f"stands twice, first as entries[{i}].trials[{seen[key]}]")
            seen[key] = k
    return document
