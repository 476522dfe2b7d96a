"""The engine for many machines: the same units as tasks of a Ray cluster (Ray core alone; the extra `cluster`).

A worker or a machine that dies has its units tried again elsewhere (at most `local.RETRIES` times); an exception of the
experiment is an answer and is not retried.  The driver alone writes the store, as answers come in.  Every machine needs
the checkout at the same path, and must be of one device class with one torch: a task says so before it measures.
"""

import os
import socket
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

from repro.errors import ReproError
from repro.run import provenance
from repro.run.engines import local
from repro.run.processes import TRY_AGAIN, TryAgain

AHEAD = 4  # units in flight for each that the cluster can run, so that memory stays flat however many there are


@contextmanager
def cluster(address: str | None, cores: int | None):
    """The Ray cluster at `address` (`auto`, `host:port`), or one of this machine alone with so many CPUs; yields it."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_AUTH_MODE", "token")  # else whoever reaches the port may run code
    try:
        import ray
    except ImportError as error:
        raise ReproError(
            "--engine ray: Ray is not installed; run `uv pip install -e '.[cluster]'` in the checkout, "
            "or write --engine local"
        ) from error
    if address is not None and ":" in address.removeprefix("ray://"):
        _answers(address)
    here = {"num_cpus": cores, "include_dashboard": False} if address is None else {}
    paths = os.pathsep.join(dict.fromkeys(filter(None, sys.path)))
    try:
        ray.init(
            address or "local",
            log_to_driver=False,
            configure_logging=False,
            runtime_env={"env_vars": {"PYTHONPATH": paths}},
            **here,
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ReproError(
            f"--address {address}: no Ray cluster there ({' '.join(str(error).split())[:200]}); "
            "start one with `ray start --head`"
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _answers(address: str) -> None:
    """Raise ReproError unless something listens there; Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except (OSError, ValueError) as error:
        raise ReproError(
            f"--address {address}: no Ray cluster there ({error}); start one with `ray start --head`"
        ) from error


def _node(device: str) -> dict:
    """What this machine is, as far as rows depend on it."""
    return {**provenance.place(device), "torch": provenance.versions()["torch"]}


def _task(unit: dict, lock: str, expected: dict) -> dict:
    """One unit, in a process of the cluster; what it raises is part of the answer."""
    from repro.run.engines import worker

    worker.prepare()
    if (found := _node(unit["device"])) != expected:
        text = f"a machine of the cluster is {found}, the first one was {expected}; run on machines of one kind"
        return {"error": text, "traceback": text}
    with local.machine(Path(lock), unit["exclusive"]):
        try:
            return worker.answer(unit)
        except TryAgain as error:
            print(error, file=sys.stderr, flush=True)
            os._exit(TRY_AGAIN)  # Ray runs the task again, in another process


class Engine:
    """Where units run: `Engine(ray, device, jobs).run_units` in place of `repro.run.engines.local.run_units`.

    On a CPU a unit takes one core; on GPUs `jobs` units share one.  `place` is what the cluster's machines are.
    """

    def __init__(self, ray, device: str, jobs: int):
        self.ray, self.gpus = ray, 0.0 if device == "cpu" else 1.0 / jobs
        have = ray.cluster_resources()
        if self.gpus and have.get("GPU", 0) < 1:
            raise ReproError(
                f"--device {device}: the cluster has no GPU; write --device cpu --profile cpu, "
                "or add a machine that has one"
            )
        self.slots = int(have["GPU"] * jobs) if self.gpus else int(have["CPU"])
        self.cores = min(
            node["Resources"]["CPU"] for node in ray.nodes() if node["Alive"] and "CPU" in node["Resources"]
        )
        self.expected = ray.get(ray.remote(_node).options(num_cpus=1, num_gpus=self.gpus).remote(device))
        self.place = {name: self.expected[name] for name in ("class", "model")}
        if self.expected["torch"] != provenance.versions()["torch"]:
            raise ReproError(
                f"the cluster has torch {self.expected['torch']}, here is {provenance.versions()['torch']}; "
                "install one version"
            )

    def run_units(
        self,
        units: list[dict],
        *,
        jobs: int,
        state: Path,
        done: Callable[[dict, dict], None],
        heard: Callable[[dict, dict], None] = lambda unit, at: None,
        deadline: float | None = None,
    ) -> None:
        """Run every unit and call `done(unit, answer)` for each, as `repro.run.engines.local.run_units` does."""
        lock = str(state / "machine.lock")
        task = self.ray.remote(max_retries=local.RETRIES, retry_exceptions=False)(_task)
        expected = self.ray.put(self.expected)

        def start(unit: dict):
            ranks = unit["ranks"] or 1
            cores = self.cores if unit["exclusive"] else ranks  # a timing wants a machine of its own
            return task.options(num_cpus=cores, num_gpus=self.gpus * ranks).remote(unit, lock, expected)

        shared = [unit for unit in units if not unit["exclusive"]]
        alone = [unit for unit in units if unit["exclusive"]]
        for queue, ahead in ((shared, AHEAD * self.slots), (alone, 1)):
            queue, running = list(reversed(queue)), {}
            while queue or running:
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    for task_running in running:
                        self.ray.cancel(task_running, force=True)
                    return
                while queue and len(running) < ahead:
                    unit = queue.pop()
                    running[start(unit)] = unit
                ready, _ = self.ray.wait(list(running), num_returns=1, timeout=left)
                for finished in ready:
                    done(running.pop(finished), self._answer(finished))

    def _answer(self, one) -> dict:
        try:
            return self.ray.get(one)
        except self.ray.exceptions.RayError as error:  # the process or the machine is gone, every time
            text = f"{type(error).__name__}: lost {local.RETRIES + 1} times: {str(error).splitlines()[0]}"
            return {"error": text, "traceback": str(error)}
