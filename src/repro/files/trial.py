"""Records of trials in the store: what a complete one holds.

The store is read where nothing but torch and numpy is installed, so this is checked without pydantic.
"""

import re
import sys
from typing import Any

LARGEST = sys.float_info.max


def is_record(body: Any) -> bool:
    """Whether the body of a trial's record is complete: damage of any kind makes it count as absent."""
    texts = ("device", "measured")
    try:
        row, measures = body["row"], body["row"]["measures"]
        return (
            all(type(body[key]) is str for key in texts)
            and all(type(row[key]) is str and row[key] for key in ("experiment", "arm"))
            and _whole(row["seed"])
            and row["status"] in ("ok", "diverged", "invalid")
            and _amount(row["seconds"])
            and type(row["factors"]) is dict
            and all(type(level) in (bool, str) or _number(level) for level in row["factors"].values())
            and type(measures) is dict
            and all(map(_measure, measures.values()))
            and (row.get("step") is None or _whole(row["step"]))
            and type(row.get("why", "")) is str
            and type(body["registered"]) is dict
            and all(type(one) is str for one in body["registered"].values())
            and type(body["versions"]) is dict
            and all(type(one) is str for one in body["versions"].values())
            and type(body.get("notes", [])) is list
            and all(type(note) is str for note in body.get("notes", []))
            and type(body["config"]) is dict
            and re.fullmatch(r"\d{4}-\d\d-\d\d", body["measured"]) is not None
        )
    except (KeyError, TypeError, AttributeError):
        return False


def _number(value: Any) -> bool:
    """What a float can hold; a whole number of 400 digits is below infinity, and no reader of rows takes it."""
    return type(value) in (int, float) and abs(value) <= LARGEST


def _whole(value: Any) -> bool:
    return type(value) is int and 0 <= value <= LARGEST


def _amount(value: Any) -> bool:
    return _number(value) and value >= 0


def _measure(value: Any) -> bool:
    many = value if type(value) is list else [value]
    return bool(many) and all(map(_number, many))
