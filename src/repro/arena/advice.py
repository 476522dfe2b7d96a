"""What `repro recommend` says: methods that a track's table shows to be as good as the tuned base, near what was asked.

Nothing is advised in a cell whose base has not learnt or whose known contrasts do not come out, nor in a slot whose
controls are not shown to be worse; and no method that fails, that equals a control or whose interval is too wide.
"""

import math
from typing import Any

from repro.errors import ReproError

REACH = 4  # how far, as a factor, a setting may lie from one that was measured


def recommended(slot: dict, margin: float) -> list[dict]:
    """The lines of a slot that are shown to be no worse than the base by the margin; the base itself is one of them."""
    if not slot["usable"]:
        return []
    chosen = []
    for line in slot["lines"]:
        high, fails = line["gap"][2], line["failed"] > 0
        fine = line["standing"] == "the base" or high is not None and high <= margin and not line["no_better_than"]
        if fine and not fails and not line["control"]:
            chosen.append(line)
    return chosen


def nearest_cell(made: dict, depth: int | None, batch: int | None) -> tuple[dict | None, str]:
    """The cell measured nearest to a depth and a batch size (on a log scale), and a sentence on where it lies.

    The sentence says plainly where the answer is for another depth or batch than asked.  None, and a sentence that says
    what was measured, where all are farther than a factor of `REACH`.
    """
    wanted = {name: value for name, value in (("depth", depth), ("batch", batch)) if value is not None}

    def level(cell: dict, name: str) -> Any:
        return {**made["settings"], **cell["at"]}[name]

    def off(cell: dict) -> list[float]:
        return [abs(math.log(level(cell, name)) - math.log(value)) for name, value in wanted.items()]

    cells = sorted(made["cells"], key=lambda cell: (sum(off(cell)), -cell["at"].get("steps", 0)))
    cell = cells[0]
    if any(distance > math.log(REACH) + 1e-9 for distance in off(cell)):
        places = dict.fromkeys(f"depth {level(c, 'depth')} at batch {level(c, 'batch')}" for c in made["cells"])
        return None, f"measured: {' or '.join(places)}"
    other = [f"{name} {level(cell, name)}, not {value}" for name, value in wanted.items() if level(cell, name) != value]
    if other:
        return cell, f"This answers for {' and '.join(other)}: nothing nearer to what you asked was measured."
    return cell, "This was measured at what you asked." if wanted else "No depth or batch was asked for."


def under(cell: dict, optimizer: str) -> str:
    """Say whether the advice of other slots holds under an optimizer: all of them were measured under AdamW.

    ReproError where the cell has not measured such an optimizer.
    """
    lines = {
        line["arm"].rpartition(".")[2].lower(): line for line in cell["slots"].get("optimizer", {}).get("lines", ())
    }
    if optimizer.lower() == "adamw":
        return "All slots but the optimizer's were measured under AdamW, as you asked."
    if optimizer.lower() not in lines:
        known = sorted({line["arm"].rpartition(".")[2] for line in lines.values() if not line["control"]} | {"AdamW"})
        raise ReproError(f"--optimizer {optimizer}: not measured here; write one of {', '.join(known)}")
    line = lines[optimizer.lower()]
    return (
        f"All slots but the optimizer's were measured under AdamW, not under {optimizer}, and may be ordered otherwise "
        f"there. {line['arm'].rpartition('.')[2]} itself against the tuned base: {line['standing']}."
    )
