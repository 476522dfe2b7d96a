"""A worker process: reads one unit of work a line on standard input, answers with one JSON line.

Before the answer there may be lines {"step", "steps", "loss"}: where the training loop of the unit stands.

Everything that the experiment prints goes to standard error, so that the answer stays a line of its own.
"""

import functools
import json
import os
import sys
import time
import traceback

from repro.run.processes import die_with_parent

TELL_EVERY = 0.5  # seconds between two lines that tell where a trial stands


@functools.cache
def prepare() -> None:
    """Once a process: the costly imports, one thread, and memory that is not handed back between steps."""
    import torch

    from repro import timing

    timing.steady_malloc()
    torch.set_num_threads(1)
    try:
        torch.set_num_interop_threads(1)
    except RuntimeError:  # set already, by whoever made this process
        pass


def results(unit: dict) -> list[dict]:
    """What the trials of a unit measured, in this process or, where it asks for ranks, in several."""
    if unit.get("ranks"):
        from repro.run.engines import ranks

        return ranks.execute(unit)
    from repro.run import execute

    return execute.execute(unit)


def answer(unit: dict) -> dict:
    """{"results", "seconds"} of a unit, or {"error", "traceback"} of what it raised."""
    began = time.perf_counter()
    try:
        return {"results": results(unit), "seconds": time.perf_counter() - began}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}


def main() -> None:
    parent = os.getppid()
    die_with_parent()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    prepare()
    from repro import live

    told = [0.0]

    def tell(step: int, steps: int, loss: float) -> None:
        if time.monotonic() - told[0] > TELL_EVERY:
            told[0] = time.monotonic()
            answers.write(json.dumps({"step": step, "steps": steps, "loss": loss}) + "\n")
            answers.flush()

    live.listen(tell)
    for line in sys.stdin:
        found = answer(json.loads(line))
        if os.getppid() != parent:
            return
        answers.write(json.dumps(found, allow_nan=False) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
