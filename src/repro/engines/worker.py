"""A worker process: reads one unit of work a line on standard input, answers with one JSON line.

Before the answer there may be lines {"step", "steps", "loss"}: where the training loop of the unit stands.

Everything that the experiment prints goes to standard error, so that the answer stays a line of its own.
"""

import ctypes
import json
import os
import signal
import sys
import time
import traceback

TELL_EVERY = 0.5  # seconds between two lines that tell where a trial stands


def die_with_parent() -> None:
    """Linux: SIGKILL this process when its parent ends, however it ends.  Elsewhere the closed pipe ends it."""
    try:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    except (OSError, AttributeError):
        pass


def main() -> None:
    parent = os.getppid()
    die_with_parent()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    import torch  # the costly import, done before the first unit arrives

    from repro import live, run, timing

    told = [0.0]

    def tell(step: int, steps: int, loss: float) -> None:
        if time.monotonic() - told[0] > TELL_EVERY:
            told[0] = time.monotonic()
            answers.write(json.dumps({"step": step, "steps": steps, "loss": loss}) + "\n")
            answers.flush()

    live.listen(tell)
    timing.steady_malloc()
    torch.set_num_threads(1)
    torch.set_num_interop_threads(1)
    for line in sys.stdin:
        unit = json.loads(line)
        began = time.perf_counter()
        try:
            answer = {"results": run.execute(unit), "seconds": time.perf_counter() - began}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
        if os.getppid() != parent:
            return
        answers.write(json.dumps(answer, allow_nan=False) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
