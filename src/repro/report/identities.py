"""Exact statements as the templates show them: verified or violated, without a number of seeds or an interval."""

from typing import Any

from repro import words
from repro.report.records import Record


def section(one: Record) -> dict[str, Any]:
    """Every identity of a paper at the profiles at which it was checked."""
    lines = []
    for name, identity in (one.paper.get("identities") or {}).items():
        judged = [(p, found) for p, r in one.results.items() if (found := r.identity(name)) is not None]
        lines.append(
            {
                "id": name,
                "statement": identity["statement"],
                "where": identity["where"],
                "note": identity.get("note"),
                "stale": [p for p, r in one.results.items() if r.identity(name) and r.stale_for(identity)],
                "state": judged[0][1]["state"] if judged else "not_run",
                "shown": [{"profile": p, **checked(found)} for p, found in judged],
            }
        )
    counts = {state: sum(line["state"] == state for line in lines) for state in ("verified", "violated", "incomplete")}
    return {"lines": lines, "of": len(lines), **counts}


def checked(judged: dict[str, Any]) -> dict[str, Any]:
    """One identity at one profile."""
    controls = judged.get("controls") or []
    return {
        "state": judged["state"],
        "why": judged["why"],
        "controls": [
            {"text": words.control_text(k), "state": k.get("state", "incomplete"), "ok": k.get("ok")} for k in controls
        ],
    }


def count(records: list[Record]) -> dict[str, int]:
    """How many exact statements of all papers hold, are violated, or were not checked."""
    states = [line["state"] for one in records for line in section(one)["lines"]]
    return {"of": len(states), **{s: states.count(s) for s in ("verified", "violated", "incomplete", "not_run")}}
