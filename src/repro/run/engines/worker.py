"""A worker process: reads one unit of work a line on standard input, answers with one JSON line.

A request is {"ticket", "unit"}, and every line of the answer carries the ticket, which the experiment is not told: what
it writes on any descriptor can spoil an answer but cannot pass for one.  The first line of all is {"ready"}; before an
answer there may be lines with "step", "steps" and "loss": where the training loop of the unit stands.

Everything that the experiment prints goes to standard error, so that the answer stays a line of its own.
"""

import functools
import json
import os
import sys
import time
import traceback

from repro.run.processes import TRY_AGAIN, TryAgain, die_with_parent, mended_bytecode

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

    return execute.execute(unit, watch=True)


def answer(unit: dict) -> dict:
    """{"results", "seconds"} of a unit, or {"error", "traceback"} of what it raised, SystemExit and Ctrl-C included."""
    began = time.perf_counter()
    try:
        return {"results": results(unit), "seconds": time.perf_counter() - began}
    except TryAgain:
        raise
    except BaseException as error:
        if (line := mended_bytecode(error)) is not None:
            raise TryAgain(line) from error
        name = type(error).__name__
        text = f"{name}: {error}" if str(error) or isinstance(error, Exception) else name
        if isinstance(error, SystemExit | KeyboardInterrupt | GeneratorExit):
            text = f"the experiment tried to end its process ({text})"
        return {"error": text, "traceback": traceback.format_exc()}


def main() -> None:
    parent = os.getppid()
    die_with_parent()
    requests, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)  # an experiment that reads standard input finds it empty, and takes no request away
    os.dup2(2, 1)
    prepare()
    from repro import live

    told, ticket = [0.0], [""]

    def write(line: dict) -> None:
        answers.write(json.dumps({"ticket": ticket[0], **line}, allow_nan=False) + "\n")
        answers.flush()

    def tell(step: int, steps: int, loss: float) -> None:
        if time.monotonic() - told[0] > TELL_EVERY:
            told[0] = time.monotonic()
            write({"step": step, "steps": steps, "loss": loss})

    live.listen(tell)
    write({"ready": True})
    for line in requests:
        request = json.loads(line)
        ticket[0] = request["ticket"]
        answered = answer(request["unit"])
        if os.getppid() != parent:
            return
        write(answered)


def run() -> None:
    """Run `main`; what another process may do better ends with the code that asks for it."""
    try:
        main()
    except TryAgain as error:
        print(error, file=sys.stderr, flush=True)
        os._exit(TRY_AGAIN)  # whatever threads the experiment left behind
    except (EOFError, ValueError, TypeError) as error:
        if (text := mended_bytecode(error)) is None:
            raise
        print(text, file=sys.stderr, flush=True)
        os._exit(TRY_AGAIN)


if __name__ == "__main__":
    run()
