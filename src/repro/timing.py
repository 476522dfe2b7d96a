"""Interleaved paired timings with their own checks: an A/A arm, a copy floor and a measure of foreign load.

Absolute times mean little on a shared machine; ratios of arms timed turn by turn in one run do.  So every block times
every arm once, in an order drawn afresh; the reference arm takes part twice (A/A), and if its two medians disagree the
timing is invalid, whatever the arms say.  The seconds that count (`Sample.seconds`, percentiles p20, p50, p80) are

    cpu, one torch thread   CPU time of the process: holds within 5 % where neighbours make wall time swing by 20 times
    cpu, several threads    wall time (threads that spin make CPU time meaningless): wants an idle machine
    cuda                    event time of back-to-back plain calls, or of graph replays with `graph=True`

Wall and CPU time of plain calls are given beside them in every case.  On CUDA use ten calls or more unless a call is
long: the first of a block also pays for its launch.
"""

import ctypes
import gc
import platform
import random
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import NamedTuple

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from repro.errors import InvalidMeasurement, ReproError


class Sample(NamedTuple):
    """One block of one arm, in seconds per call: the number that counts, and wall and CPU time of plain calls."""

    seconds: float
    wall: float
    cpu: float


Call = Callable[[], object]
Clock = Callable[[Call, int], Sample]  # (call, how often) -> seconds per call


@dataclass(frozen=True)
class Timing:
    """What `compare` found of one arm.  Bytes are those of one call; `relative` is to the reference arm."""

    samples: tuple[Sample, ...]  # one per block
    relative: float  # median over blocks of this arm's seconds / the reference's in the same block
    aa_gap: float  # larger / smaller - 1 of the A/A medians, the same for all arms of a run
    aa_gap_wall: float  # the same of wall times, which decides nothing
    copy_bytes_per_s: float  # bytes read plus bytes written per second by a large copy in the same run
    peak_bytes: int | None = None  # see `peak_bytes`
    bytes_moved: int | None = None  # least traffic that the arm's task needs, by the caller's count
    threads: int = 1  # among which CPU time is shared

    def percentile(self, q: float) -> float:
        return float(np.percentile([sample.seconds for sample in self.samples], q))

    @property
    def contention(self) -> float:
        """Wall time over CPU time, per thread: about 1 if no neighbour used our core, 2 if we had half of it."""
        return self.threads * median(sample.wall / max(sample.cpu, 1e-9) for sample in self.samples)

    def measures(self) -> dict[str, float]:
        """The measures of a row: plain floats, seconds per call and bytes."""
        found = {f"p{q}": self.percentile(q) for q in (20, 50, 80)} | {
            "cpu_seconds": median(sample.cpu for sample in self.samples),
            "wall_seconds": median(sample.wall for sample in self.samples),
            "relative": self.relative,
            "aa_gap": self.aa_gap,
            "aa_gap_wall": self.aa_gap_wall,
            "copy_bytes_per_s": self.copy_bytes_per_s,
            "contention": self.contention,
            "blocks": float(len(self.samples)),
        }
        if self.peak_bytes is not None:
            found["peak_bytes"] = float(self.peak_bytes)
        if self.bytes_moved is not None:
            found["bytes_per_s"] = self.bytes_moved / found["p50"]
            found["copy_fraction"] = found["bytes_per_s"] / self.copy_bytes_per_s
        return found


def compare(
    arms: dict[str, Call],
    *,
    reference: str,
    device: torch.device | str = "cpu",
    blocks: int = 20,
    calls: int = 1,
    warmup: int = 3,
    max_rounds: int = 3,
    aa_limit: float = 0.02,
    bytes_moved: dict[str, int] | None = None,
    seed: int = 0,
    cold: bool = False,
    graph: bool = False,
    memory: bool = True,
    copy_bytes: int | None = None,
    clock: Clock | None = None,
) -> dict[str, Timing]:
    """Times `arms` against each other and returns a `Timing` for each, in the given order.

    reference    the arm that is timed twice (A/A) and that `relative` refers to
    blocks       each times every arm once with `calls` calls, in an order shuffled by `seed`
    max_rounds   while the A/A medians are more than `aa_limit` apart, the number of blocks is doubled, until it has
                 been taken max_rounds times; only the A/A pair is looked at, never the effect
    cold         the cache is overwritten before every call, untimed on the device
    graph        CUDA: `seconds` times replays of a captured graph (arms must be capturable: static inputs, an
                 optimizer with capturable=True); wall and CPU time remain those of plain calls
    memory       also call each arm twice to find its `peak_bytes`
    copy_bytes   size of each of the two buffers of the copy floor; 64 MiB on a CPU, 256 MiB on CUDA
    clock        takes the place of the real one (for tests)

    Raises ReproError for arguments that make no sense, InvalidMeasurement when the A/A arms stay apart.
    On CPU the allocator is steadied first (`steady_malloc`), for the whole process.
    """
    device = torch.device(device)
    if device.type not in ("cpu", "cuda"):
        raise ReproError(f"timing: device {device} is unknown here; write cpu or cuda")
    if reference not in arms:
        raise ReproError(f"timing: reference {reference!r} is not an arm; write one of {', '.join(arms)}")
    if unknown := set(bytes_moved or ()) - set(arms):
        raise ReproError(f"timing: bytes_moved names {', '.join(sorted(unknown))}; write one of {', '.join(arms)}")
    if min(blocks, calls, warmup, max_rounds) < 1:
        raise ReproError("timing: blocks, calls, warmup and max_rounds must be 1 or more")
    if graph and device.type == "cpu":
        raise ReproError("timing: graph=True needs cuda; write graph=False")

    on_cpu = device.type == "cpu"
    if on_cpu:
        steady_malloc()
    source = torch.ones((copy_bytes or (64 if on_cpu else 256) << 20) // 4, device=device)
    target = torch.empty_like(source)
    if clock is None:
        flush = target.zero_ if cold else None
        clock = _cpu_clock(flush) if on_cpu else _cuda_clock(device, flush, graph)

    # The twin and the copy are arms like any other, under keys that no arm's name can equal.
    turns: dict[tuple[str, str], tuple[Call, int]] = {("arm", name): (call, calls) for name, call in arms.items()}
    turns["twin", reference] = (arms[reference], calls)
    turns["copy", ""] = (lambda: target.copy_(source), 1 if on_cpu else 10)
    for call, _ in turns.values():
        clock(call, warmup)
    peaks = {name: peak_bytes(call, device) if memory else None for name, call in arms.items()}

    taken: dict[tuple[str, str], list[Sample]] = {key: [] for key in turns}
    draw = random.Random(seed)
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for taking in range(max_rounds):
            while len(taken["copy", ""]) < blocks * 2**taking:
                for key in draw.sample(list(turns), len(turns)):
                    call, times = turns[key]
                    taken[key].append(clock(call, times))
                gc.collect(1)  # between blocks, so that arms that leave cycles do not fill the memory
            base = taken["arm", reference]
            gap = _gap(base, taken["twin", reference], "seconds")
            if gap <= aa_limit:
                break
        else:
            raise InvalidMeasurement(_unsteady(reference, gap, aa_limit, base, on_cpu))
    finally:
        if collecting:
            gc.enable()

    rate = 2 * source.nbytes / median(sample.seconds for sample in taken["copy", ""])
    return {
        name: Timing(
            samples=tuple(taken["arm", name]),
            relative=median(a.seconds / b.seconds for a, b in zip(taken["arm", name], base, strict=True)),
            aa_gap=gap,
            aa_gap_wall=_gap(base, taken["twin", reference], "wall"),
            copy_bytes_per_s=rate,
            peak_bytes=peaks[name],
            bytes_moved=(bytes_moved or {}).get(name),
            threads=torch.get_num_threads() if on_cpu else 1,
        )
        for name in arms
    }


def _gap(one: Sequence[Sample], other: Sequence[Sample], field: str) -> float:
    low, high = sorted(median(getattr(sample, field) for sample in samples) for samples in (one, other))
    if low <= 0:
        raise InvalidMeasurement(
            "The reference arm took no measurable time. Write more calls per block, then run again."
        )
    return high / low - 1


def _unsteady(reference: str, gap: float, limit: float, samples: Sequence[Sample], on_cpu: bool) -> str:
    """Say why no timing came of it, and what would help."""
    wall, cpu = (sum(getattr(sample, name) for sample in samples) for name in ("wall", "cpu"))
    busy = wall / max(cpu, 1e-9) * (torch.get_num_threads() if on_cpu else 1)
    cause = f" Wall time was {busy:.1f} times the CPU time: other processes used this machine." if busy > 1.2 else ""
    return (
        f"This machine could not take the timing: two identical copies of {reference!r} still differed by {gap:.1%} "
        f"after {len(samples)} blocks, where at most {limit:.1%} is allowed, so that no difference between arms could "
        f"be trusted.{cause if on_cpu else ''} Use an idle machine, or more blocks or calls, then run again."
    )


def _cpu_clock(flush: Call | None) -> Clock:
    def clock(call: Call, calls: int) -> Sample:
        wall = cpu = 0.0
        for group in [1] * calls if flush else [calls]:
            if flush:
                flush()
            w, c = time.perf_counter(), time.process_time()
            for _ in range(group):
                call()
            wall, cpu = wall + time.perf_counter() - w, cpu + time.process_time() - c
        return Sample((cpu if torch.get_num_threads() == 1 else wall) / calls, wall / calls, cpu / calls)

    return clock


def _cuda_clock(device: torch.device, flush: Call | None, graph: bool) -> Clock:
    replays: dict[Call, Call] = {}

    def on_device(call: Call, calls: int) -> float:
        """Event time; nothing waits inside, so that the host runs ahead and its gaps stay out where they can."""
        spans = []
        for group in [1] * calls if flush else [calls]:
            if flush:
                flush()
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            for _ in range(group):
                call()
            end.record()
            spans.append((start, end))
        torch.cuda.synchronize(device)
        return sum(start.elapsed_time(end) for start, end in spans) / 1e3

    def clock(call: Call, calls: int) -> Sample:
        with torch.cuda.device(device):
            if graph and call not in replays:
                replays[call] = _captured(call)
            torch.cuda.synchronize(device)
            w, c = time.perf_counter(), time.process_time()
            if graph or flush:  # plain calls and device time are two things, measured one after the other
                for _ in range(calls):
                    call()
                torch.cuda.synchronize(device)
                seconds = None
            else:
                seconds = on_device(call, calls)
            wall, cpu = time.perf_counter() - w, time.process_time() - c
            if seconds is None:
                seconds = on_device(replays.get(call, call), calls)
        return Sample(seconds / calls, wall / calls, cpu / calls)

    return clock


def _captured(call: Call) -> Call:
    """`call` recorded as a CUDA graph, warmed up on a side stream as capture requires; returns its replay."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def peak_bytes(call: Call, device: torch.device | str = "cpu") -> int:
    """Most bytes of tensors alive at once during `call` above those alive when it began.

    These are activations, gradients and temporaries; what outlives a call (parameters, optimizer state) is not in it,
    and to tell the two apart a first call is made.  CUDA: from the allocator.  CPU: counted at the operators, so that
    scratch memory within a kernel is left out and a compiled function is counted as its eager operators.
    """
    device = torch.device(device)
    if device.type == "cuda":
        call()
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with _LiveBytes() as count:
        call()  # so that whatever the second call frees is known
        before = count.peak = count.live
        call()
    return count.peak - before


class _LiveBytes(TorchDispatchMode):
    """Follows every storage that an operator returns until it dies; those it only reads count from nought."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.known: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.see([args, kwargs], size=False)
        out = func(*args, **(kwargs or {}))
        self.see(out, size=True)
        return out

    def see(self, value: object, size: bool) -> None:
        if isinstance(value, (tuple, list)):
            for item in value:
                self.see(item, size)
        elif isinstance(value, dict):
            self.see(list(value.values()), size)
        elif isinstance(value, torch.Tensor) and (key := value.untyped_storage()._cdata) not in self.known:
            storage = value.untyped_storage()
            count = storage.nbytes() if size else 0
            self.live += count
            self.peak = max(self.peak, self.live)
            self.known[key] = weakref.ref(storage, lambda _: self.forget(key, count))

    def forget(self, key: int, count: int) -> None:
        del self.known[key]
        self.live -= count


def steady_malloc() -> bool:
    """Tells glibc to keep freed memory instead of handing it back, for this process; False where libc is another.

    Otherwise every large tensor is mapped and unmapped by the kernel: tens of thousands of page faults and over half
    of the time of a pass of elementwise operators.  Values do not change; memory once used stays with the process.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    trim_threshold, mmap_max = -1, -4  # names of <malloc.h>
    return bool(mallopt(trim_threshold, -1) and mallopt(mmap_max, 0))
