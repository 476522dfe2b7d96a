"""`repro history SLUG`: the verdicts of every commit, as far as git has them."""

import json
from pathlib import Path
from typing import Any

from repro.errors import ReproError
from repro.files.paths import results_name
from repro.run import provenance

CHANGE = ["date", "commit", "claim", "was", "is", "estimate", "why"]


def changes(slug: str, profile: str, root: Path) -> tuple[list[list[str]], str | None]:
    """A line (CHANGE) for every change of a claim's state, oldest first, and what must be said of the history.

    The headline has a star.  A claim that is there no more is `gone`; rules that changed after the rows were measured
    add `post hoc`.  A commit whose verdict cannot be read says nothing.
    """
    name = results_name(slug, profile, "verdict")
    log = provenance.git("log", "--reverse", "--format=%H %as", "--", name, folder=root)
    lines: list[list[str]] = []
    states: dict[str, str] = {}
    for commit, date in (line.split() for line in log.splitlines()):
        stored = _read(commit, name, root)
        if stored is None:
            continue
        now = {claim: _state(one, stored) for claim, one in _claims(stored).items()}
        for claim in [*now, *(states.keys() - now.keys())]:
            was, state = states.get(claim, "–"), now.get(claim, "gone")
            if state != was:
                one = _claims(stored).get(claim) or {}
                star = "*" * (claim == stored.get("headline"))
                lines.append([date, commit[:10], claim + star, was, state, _estimate(one), str(one.get("why", ""))])
        states = {**{claim: "gone" for claim in states}, **now}
    cut = "The history of this clone is cut (git clone --depth): the first line is not the first verdict."
    return lines, f"{cut} `git fetch --unshallow` brings the rest." if provenance.shallow(root) else None


def _read(commit: str, name: str, root: Path) -> dict[str, Any] | None:
    """The verdict at a commit, whatever its schema; None where it is damaged; without claims where it was removed."""
    try:
        stored = json.loads(provenance.git("show", f"{commit}:./{name}", folder=root))
    except ReproError:
        return {"claims": {}}
    except (ValueError, RecursionError):
        return None
    return stored if isinstance(stored, dict) else None


def _claims(stored: dict[str, Any]) -> dict[str, dict]:
    """Claims and identities that have a state."""
    found = {}
    for kind in ("claims", "identities"):
        entries = stored.get(kind)
        for claim, one in entries.items() if isinstance(entries, dict) else ():
            if isinstance(one, dict) and isinstance(one.get("state"), str):
                found[claim] = one
    return found


def _state(one: dict, stored: dict) -> str:
    return one["state"].replace("_", " ") + ", post hoc" * bool(stored.get("post_hoc"))


def _estimate(one: dict) -> str:
    """The estimate of a verdict of any schema."""
    from repro.publish.evidence import estimate

    try:
        return estimate(one)
    except (TypeError, ValueError, KeyError, AttributeError):
        return "–"
