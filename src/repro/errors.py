"""The exceptions that the measuring core and the command line share."""


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
