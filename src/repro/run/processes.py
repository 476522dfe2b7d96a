"""Processes that end with the one that started them.  Standard library alone: a stage imports this before anything else."""

import ctypes
import signal


def die_with_parent() -> None:
    """Linux: SIGKILL this process when its parent ends, however it ends.  Elsewhere the closed pipe ends it."""
    try:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    except (OSError, AttributeError):
        pass
