"""The exceptions that the measuring core and the command line share, and how a message names what it knows."""

import re
from collections.abc import Iterable
from difflib import get_close_matches


class ReproError(Exception):
    """A mistake of the user's, told in one line: where it is and what to write instead."""

    exit_code = 2


class Failed(ReproError):
    """Something that was asked for rightly did not succeed: a trial raised, a check found a difference."""

    exit_code = 1


class Diverged(ArithmeticError):
    """Training reached a non-finite loss at `step`; the trial becomes a row `{status: diverged, step}`."""

    def __init__(self, step: int, what: str = "loss"):
        super().__init__(f"{what} is not finite at step {step}")
        self.step = step


class InvalidMeasurement(Exception):
    """A measurement that failed its own check (a timing whose A/A arms disagree); the row says why."""


def one_line(error: object) -> str:
    """What a command prints of an error: one line, whatever the names in it hold, and not without end."""
    text = " ".join(str(error).split())
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return "error: " + (text if len(text) <= 2000 else f"{text[:1200]} ... {text[-700:]}")


def did_you_mean(word: object, names: Iterable[object], *, every: bool = False) -> str:
    """`; did you mean 'x'?`, else `; write one of ...`; with `every` the near name is followed by all others."""
    known = list(dict.fromkeys(map(str, names)))
    near = get_close_matches(str(word)[:200], known, 1, 0.6)
    if not near:
        return f"; write one of {', '.join(known)}" if known else "; there is none"
    return f"; did you mean '{near[0]}'?" + (f" (allowed: {', '.join(known)})" if every else "")


def known(kind: str, name: object, names: Iterable[object], where: str = "") -> str | None:
    """`no arm 'x' in experiment 'y'; did you mean 'z'?`; None where there is such a name."""
    names = list(names)
    return None if name in names else f"no {kind} '{name}'{where}{did_you_mean(name, names)}"


def choices(text: str) -> list[str]:
    """The texts that a message of pydantic's, `'a', 'b' or 'c'`, or one of ours, `a, b, c`, lists."""
    return re.findall(r"'([^']*)'", text) or text.split(", ")
