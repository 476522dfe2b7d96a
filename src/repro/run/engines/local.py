"""The default engine: a few worker processes of this machine, one thread each.

A worker that is killed is replaced and its unit tried again (at most `RETRIES` times).  An exception of the experiment
is an answer and is not retried, nor is an experiment that ends its own process or spoils the answer.  Exclusive units
(timings) run one at a time after all others, and a lock on the machine keeps units of a second run away from them.
"""

import fcntl
import json
import os
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from repro.run.processes import TRY_AGAIN, quiet_bytecode

RETRIES = 2


LONGEST = 256 << 20  # bytes of an answer; what is longer is none


class Spoilt(Exception):
    """What came in place of an answer."""


class Worker:
    """One worker process; `ask` sends a unit and waits for the answer."""

    def __init__(self, log: Path):
        log.parent.mkdir(parents=True, exist_ok=True)
        self.ready = False
        with open(log, "ab") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "repro.run.engines.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env={**quiet_bytecode(), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )

    def ask(self, unit: dict, heard: Callable[[dict, dict], None]) -> dict | None:
        """The answer, or None when the process ended; `heard(unit, {"step", "steps", "loss"})` meanwhile.

        Raises Spoilt when a line came that is no answer to this request.
        """
        ticket = secrets.token_hex(8)
        try:
            self.process.stdin.write(json.dumps({"ticket": ticket, "unit": unit}).encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            self.code()
            return None
        while line := self.process.stdout.readline(LONGEST):
            try:
                answer = json.loads(line)
                if answer.pop("ticket") != (ticket if self.ready else ""):
                    raise KeyError("ticket")
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                if not line.endswith(b"\n") and len(line) < LONGEST and self.code() != 0:
                    return None  # killed in the middle of its answer
                raise Spoilt(f"it wrote {line[:40]!r} where answers go") from None
            if not self.ready:  # before any code of an experiment ran
                self.ready = True
            elif "step" in answer:
                heard(unit, answer)
            else:
                return answer
        self.code()
        return None

    def code(self) -> int:
        """The exit code of a process that has closed its pipe; Spoilt where it goes on without it."""
        try:
            return self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            raise Spoilt("it closed the pipe of its answers and went on") from None

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
def machine(lock: Path, exclusive: bool, given_up: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """Hold this machine: shared by ordinary units, alone for a timing; not held where the wait was `given_up`."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with open(lock, "a") as file:
        while True:
            try:
                fcntl.flock(file, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if given_up():
                    break
                time.sleep(0.05)
        yield


def run_units(
    units: list[dict],
    *,
    jobs: int,
    state: Path,
    done: Callable[[dict, dict], None],
    heard: Callable[[dict, dict], None] = lambda unit, at: None,
    deadline: float | None = None,
) -> None:
    """Run every unit and call `done(unit, answer)` for each, from one thread at a time.

    `answer` is {"results", "seconds"}, or {"error", "traceback"}.  `state` is the folder of logs and locks.
    `heard(unit, {"step", "steps", "loss"})` tells now and then where a running unit stands.
    deadline: the time (`time.monotonic`) at which units that still run are given up and no other one starts.
    """
    shared = [unit for unit in units if not unit["exclusive"]]
    alone = [unit for unit in units if unit["exclusive"]]
    lock, guard = state / "machine.lock", threading.Lock()
    failure: list[BaseException] = []
    workers: set[Worker] = set()
    passed = threading.Event()

    def out_of_time() -> bool:
        return passed.is_set()

    def started(worker: Worker) -> Worker:
        with guard:
            workers.add(worker)
        if out_of_time():
            worker.process.kill()
        return worker

    def ended(worker: Worker) -> None:
        with guard:
            workers.discard(worker)
        worker.close()

    def give_up() -> None:
        passed.set()
        with guard:
            for worker in workers:
                worker.process.kill()

    def told(unit: dict, at: dict) -> None:
        with guard:
            heard(unit, at)

    def slot(queue: list[dict], number: int) -> None:
        worker = None
        try:
            while not failure:
                with guard:
                    if not queue or out_of_time():
                        return
                    unit = queue.pop(0)
                for attempt in range(RETRIES + 1):
                    worker = worker or started(Worker(state / "logs" / f"worker-{number}.log"))
                    try:
                        with machine(lock, unit["exclusive"], out_of_time):
                            answer = worker.ask(unit, told)
                        reason = None
                    except Spoilt as error:
                        answer, reason = None, str(error)
                    if answer is not None:
                        break
                    code, ready = worker.process.poll(), worker.ready
                    ended(worker)
                    worker = None
                    if out_of_time():
                        return
                    text = f"the worker process ended with code {code} ({attempt + 1} of {RETRIES + 1} tries)"
                    # A signal may come from outside (no memory left, another user); its own exit is the experiment's.
                    again = reason is None and (code is None or code < 0 or code == TRY_AGAIN)
                    if not ready:
                        text = f"the worker process could not start: exit code {code}"
                    elif not again:
                        text = f"the experiment ended its process: {reason or f'exit code {code}'}"
                    answer = {"error": text, "traceback": text + f"\nits output: {state / 'logs'}/worker-{number}.log"}
                    if not again:
                        break
                with guard:
                    done(unit, answer)
        except BaseException as error:
            failure.append(error)
        finally:
            if worker is not None:
                ended(worker)

    alarm = None
    if deadline is not None:
        alarm = threading.Timer(deadline - time.monotonic(), give_up)
        alarm.daemon = True
        if deadline <= time.monotonic():
            return
        alarm.start()
    for queue, slots in ((shared, jobs), (alone, 1)):
        # Each worker lives and dies with the thread that made it (PR_SET_PDEATHSIG looks at the thread).
        threads = [threading.Thread(target=slot, args=(queue, n), daemon=True) for n in range(min(slots, len(queue)))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if alarm is not None:
        alarm.cancel()
    if failure:
        raise failure[0]
