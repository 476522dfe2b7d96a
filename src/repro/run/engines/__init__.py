"""Where units of work run: `local` (worker processes of this machine) or `ray` (a cluster)."""

from collections.abc import Iterator
from contextlib import contextmanager

from repro.errors import ReproError


@contextmanager
def chosen(name: str, device: str, jobs: int, address: str | None = None) -> Iterator[dict]:
    """What `repro.run.measure.measure` is told of an engine: {"engine", "place"}, nothing for the local one."""
    if name not in ("local", "ray"):
        raise ReproError(f"--engine {name}: unknown engine; write local or ray")
    if name == "local":
        if address is not None:
            raise ReproError(f"--address {address}: the local engine has none; add --engine ray")
        yield {}
        return
    from repro.run.engines import ray

    with ray.cluster(address, jobs if device == "cpu" else None) as library:
        engine = ray.Engine(library, device, jobs)
        yield {"engine": engine.run_units, "place": engine.place}
