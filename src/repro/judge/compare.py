"""Whether two verdicts (or any two stored tables) are the same, over versions of the libraries that computed them."""

import math
import re
from collections.abc import Mapping
from typing import Any

TOLERANCE = 1e-6  # relative, of numbers: quantiles of SciPy 1.14 to 1.16 differ from the 9th digit on
SEEDS = 0.02  # of needed_seeds, a whole number that is searched for
_NUMBER = re.compile(r"-?\d+\.?\d*(?:e[+-]?\d+)?")


def same(a: Any, b: Any, tolerance: float = TOLERANCE) -> bool:
    """Are two documents the same: states, names and whole numbers exactly, other numbers within `tolerance`?

    Numbers within a text (a reason) are compared as they are printed, with four digits, of which the last may differ.
    """
    return difference(a, b, tolerance) is None


def difference(a: Any, b: Any, tolerance: float = TOLERANCE, where: str = "") -> str | None:
    """Return where two documents differ, such as `claims.parity.state`; None where they are the same."""
    here = where or "the document"
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        if a.keys() != b.keys():
            return f"{where}.{sorted(a.keys() ^ b.keys())[0]}".lstrip(".")
        found = (difference(a[k], b[k], tolerance, f"{where}.{k}".lstrip(".")) for k in a)
        return next((place for place in found if place), None)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        if len(a) != len(b):
            return here
        found = (difference(x, y, tolerance, f"{where}[{i}]") for i, (x, y) in enumerate(zip(a, b, strict=True)))
        return next((place for place in found if place), None)
    if isinstance(a, str) and isinstance(b, str):
        return None if _same_text(a, b) else here
    if _is_number(a) and _is_number(b):
        if where.endswith("needed_seeds"):
            return None if abs(a - b) <= max(1, SEEDS * max(a, b)) else here
        whole = isinstance(a, int) and isinstance(b, int)
        close = a == b if whole else math.isclose(a, b, rel_tol=tolerance, abs_tol=1e-12)
        return None if close else here
    return None if type(a) is type(b) and a == b else here


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _same_text(a: str, b: str) -> bool:
    if a == b:
        return True
    if _NUMBER.sub("#", a) != _NUMBER.sub("#", b):
        return False
    pairs = zip(_NUMBER.findall(a), _NUMBER.findall(b), strict=True)
    return all(math.isclose(float(x), float(y), rel_tol=1e-3, abs_tol=1e-12) for x, y in pairs)
