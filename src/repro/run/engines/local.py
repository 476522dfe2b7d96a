"""The default engine: a few worker processes of this machine, one thread each.

A worker that dies is replaced and its unit tried again (at most `RETRIES` times); an exception of the experiment is
an answer and is not retried.  Exclusive units (timings) run one at a time after all others, and a lock on the machine
keeps units of a second run away from them.
"""

import fcntl
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

RETRIES = 2


class Worker:
    """One worker process; `ask` sends a unit and waits for the answer."""

    def __init__(self, log: Path):
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "ab") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "repro.run.engines.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )

    def ask(self, unit: dict, heard: Callable[[dict, dict], None]) -> dict | None:
        """The answer, or None when the process died; `heard(unit, {"step", "steps", "loss"})` meanwhile."""
        try:
            self.process.stdin.write(json.dumps(unit).encode() + b"\n")
            self.process.stdin.flush()
            while "step" in (answer := json.loads(self.process.stdout.readline())):
                heard(unit, answer)
            return answer
        except (BrokenPipeError, ValueError):
            return None

    def close(self) -> None:
        """End the process, busy or idle."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            try:
                pipe.close()
            except BrokenPipeError:
                pass


@contextmanager
def machine(lock: Path, exclusive: bool):
    """Hold this machine: shared by ordinary units, alone for a timing."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with open(lock, "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)
        yield


def run_units(
    units: list[dict],
    *,
    jobs: int,
    state: Path,
    done: Callable[[dict, dict], None],
    heard: Callable[[dict, dict], None] = lambda unit, at: None,
) -> None:
    """Run every unit and call `done(unit, answer)` for each, from one thread at a time.

    `answer` is {"results", "seconds"}, or {"error", "traceback"}.  `state` is the folder of logs and locks.
    `heard(unit, {"step", "steps", "loss"})` tells now and then where a running unit stands.
    """
    shared = [unit for unit in units if not unit["exclusive"]]
    alone = [unit for unit in units if unit["exclusive"]]
    lock, guard = state / "machine.lock", threading.Lock()
    failure: list[BaseException] = []

    def told(unit: dict, at: dict) -> None:
        with guard:
            heard(unit, at)

    def slot(queue: list[dict], number: int) -> None:
        worker = None
        try:
            while not failure:
                with guard:
                    if not queue:
                        return
                    unit = queue.pop(0)
                for attempt in range(RETRIES + 1):
                    worker = worker or Worker(state / "logs" / f"worker-{number}.log")
                    with machine(lock, unit["exclusive"]):
                        answer = worker.ask(unit, told)
                    if answer is not None:
                        break
                    code = worker.process.wait()
                    worker.close()
                    worker = None
                    text = f"the worker process ended with code {code} ({attempt + 1} of {RETRIES + 1} tries)"
                    answer = {"error": text, "traceback": text + f"\nits output: {state / 'logs'}/worker-{number}.log"}
                with guard:
                    done(unit, answer)
        except BaseException as error:
            failure.append(error)
        finally:
            if worker is not None:
                worker.close()

    for queue, slots in ((shared, jobs), (alone, 1)):
        # Each worker lives and dies with the thread that made it (PR_SET_PDEATHSIG looks at the thread).
        threads = [threading.Thread(target=slot, args=(queue, n), daemon=True) for n in range(min(slots, len(queue)))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if failure:
        raise failure[0]
