"""`repro trial KEY`: the trials whose keys begin so, in committed rows and in the store."""

import re
from pathlib import Path

from repro.errors import ReproError
from repro.files.paths import JUDGED, results, results_name
from repro.files.rows import read_rows
from repro.files.strict import read_regular
from repro.store import Store

SHORTEST = 6


def find(key: str, root: Path) -> list[dict]:
    """Every trial of this key: where it is written, and its row."""
    wanted = key.removeprefix("sha256:")
    if not re.fullmatch(rf"[0-9a-f]{{{SHORTEST},64}}", wanted):
        raise ReproError(f"{key[:80]!r} is no key of a trial; write {SHORTEST} or more of its digits, such as 3f9a0c12")
    found = []
    for slug in sorted(path.parent.name for path in (root / "papers").glob("*/paper.yaml")):
        for profile in JUDGED:
            path = results(slug, profile, "rows", root)
            try:
                if wanted.encode() not in read_regular(path):
                    continue
            except OSError:
                continue
            document = read_rows(path, f"run `repro run {slug} --profile {profile}`")
            for row, full in zip(document["rows"], document["provenance"].get("trials", ()), strict=False):
                if full.removeprefix("sha256:").startswith(wanted):
                    found.append({"key": full, "in": results_name(slug, profile, "rows"), "row": row})
    found += _of_arena(wanted, root)
    known = {one["key"] for one in found}
    for path in sorted((root / ".repro" / "trials").glob(f"{wanted[:2]}/{wanted}*.json")):
        full = "sha256:" + path.stem
        if full not in known:
            record = Store(root / ".repro" / "trials").get(full)
            found += [{"key": full, "in": str(path.relative_to(root)), "row": record["row"]}] if record else []
    return found


def _of_arena(wanted: str, root: Path) -> list[dict]:
    """The trials of the arena whose keys begin so; `repro recommend` prints them."""
    from repro.arena import protocol

    found = []
    for path in sorted((root / "arena").glob("*.rows.json")):
        track, profile = path.name.split(".")[:2]
        if wanted.encode() not in read_regular(path):
            continue
        document = protocol.read(root, track, profile, "rows")
        for row, full in zip(document["rows"], document["provenance"]["trials"], strict=False):
            if full.removeprefix("sha256:").startswith(wanted):
                found.append({"key": full, "in": f"arena/{path.name}", "row": row})
    return found
