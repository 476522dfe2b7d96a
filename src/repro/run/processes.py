"""Processes that end with the one that started them, and what a command needs of its own process.

Standard library alone: a stage of DVC imports this before anything else.
"""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType

TRY_AGAIN = 75  # exit code (EX_TEMPFAIL) of a worker that could not finish for a reason that a second try may not meet


class TryAgain(BaseException):
    """The unit could not be finished for a reason outside the experiment: this process ends, and another one tries."""


def die_with_parent() -> None:
    """Linux: SIGKILL this process when its parent ends, however it ends.  Elsewhere the closed pipe ends it."""
    try:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    except (OSError, AttributeError):
        pass


@contextmanager
def orderly() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end this process as an exception: what is open is closed, and children are ended."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def call(
    command: Sequence[str | Path],
    *,
    cwd: Path | None = None,
    env: dict[str, str] | None = None,
    stdout: int | None = None,
) -> int:
    """Run a command and return its exit code.

    The command never outlives this process: it is killed when this one ends, and when an exception leaves this call
    (Ctrl-C, SIGTERM inside `orderly`).  What it has started must end with it likewise (`--with-parent`).
    """
    process = subprocess.Popen(
        [str(word) for word in command], cwd=cwd, env=env, stdout=stdout, preexec_fn=die_with_parent
    )
    try:
        return process.wait()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def quiet_bytecode() -> dict[str, str]:
    """The environment of a process that writes no bytecode into the checkout: a full disk would leave it cut short."""
    return {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}


def damaged_bytecode(error: BaseException) -> Path | None:
    """The file of Python's bytecode that an import found cut short, or None where the error is another one."""
    if not (isinstance(error, EOFError | ValueError | TypeError) and "marshal" in str(error)):
        return None
    trace: TracebackType | None = error.__traceback__
    while trace is not None:
        path = trace.tb_frame.f_locals.get("bytecode_path")
        if isinstance(path, str) and "importlib" in trace.tb_frame.f_code.co_filename:
            return Path(path)
        trace = trace.tb_next
    return None


def mended_bytecode(error: BaseException) -> str | None:
    """Delete the damaged bytecode that raised this error; the line that says so, or None where it is another error."""
    path = damaged_bytecode(error)
    if path is None:
        return None
    try:
        path.unlink(missing_ok=True)
    except OSError as refusal:
        return f"{path}: Python's bytecode is cut short (a full disk?); delete it ({refusal.strerror})"
    return f"{path}: Python's bytecode was cut short (a full disk?) and is deleted; run the same command again"


def enter_checkout(module: str, arguments: Sequence[str]) -> None:
    """Start again with the source of the checkout in which this command stands, where that is not the one that runs.

    Returns where they are the same, or where the command stands in no checkout.  Raises ReproError where the other
    checkout's source does not take over.
    """
    from repro.errors import ReproError
    from repro.run import provenance

    here = provenance.another_checkout()
    if here is None:
        return
    if os.environ.get("REPRO_CHECKOUT") == str(here):
        raise ReproError(
            f"{here}: this environment belongs to {provenance.root()}; "
            f"run `uv pip install -e .` in an environment of {here}"
        )
    paths = os.pathsep.join(filter(None, [str(here / "src"), os.environ.get("PYTHONPATH")]))
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(  # nothing of this process is left
        sys.executable,
        [sys.executable, "-m", module, *arguments],
        {**os.environ, "PYTHONPATH": paths, "REPRO_CHECKOUT": str(here)},
    )


def here(module: str, main: Callable[[], int]) -> int:
    """Run `main` of a module, `python -m MODULE`, on the checkout in which it stands; return the exit code."""
    from repro.errors import ReproError, one_line

    try:
        enter_checkout(module, sys.argv[1:])
    except ReproError as error:
        print(one_line(error), file=sys.stderr)
        return error.exit_code
    return main()
