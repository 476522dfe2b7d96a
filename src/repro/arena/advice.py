"""What `repro recommend` says: methods that a track's table shows to be as good as the best, near what was asked."""

import math
from typing import Any

from repro.arena.protocol import CONTROLS


def recommended(ranking: list[dict], margin: float) -> list[dict]:
    """The methods whose simultaneous interval against the best lies within the margin; controls are left out.

    A wide interval is no recommendation, however small the difference.
    """
    return [
        line
        for line in ranking
        if line["arm"] not in CONTROLS and line["gap"][2] is not None and line["gap"][2] <= margin
    ]


REACH = 4  # how far, as a factor, a setting may lie from one that was measured


def nearest_cell(made: dict, depth: int | None, batch: int | None) -> tuple[dict | None, Any]:
    """The cell measured nearest to a depth and a batch size (on a log scale), with its own depth and batch.

    None, and a sentence that says what was measured, where all are farther than a factor of `REACH`.
    """
    places = [
        (cell, {name: {**made["settings"], **cell["changed"]}[name] for name in ("depth", "batch")})
        for cell in made["cells"]
    ]
    wanted = {name: value for name, value in (("depth", depth), ("batch", batch)) if value is not None}

    def off(place: dict[str, int]) -> list[float]:
        return [abs(math.log(place[name] / value)) for name, value in wanted.items()]

    cell, place = min(places, key=lambda pair: sum(off(pair[1])))
    if any(distance > math.log(REACH) + 1e-9 for distance in off(place)):
        told = " or ".join(f"depth {p['depth']} at batch {p['batch']}" for _, p in places)
        return None, f"measured: {told}"
    return cell, place
