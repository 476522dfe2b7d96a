"""The logic of repro.timing under a clock of our own; no test here asserts how long anything takes."""

import gc
from itertools import count

import pytest
import torch
from torch.nn import functional as F

from repro.errors import InvalidMeasurement, ReproError
from repro.timing import Sample, Timing, compare, peak_bytes, steady_malloc

SMALL = {"copy_bytes": 4096, "memory": False, "warmup": 1}


class FakeClock:
    """Tells the time from a table: {call: function of its turn (0, 1, ...) -> seconds}; other calls take 1 s.

    The A/A twin is the same callable as the reference arm, so that its turns number twice as many.
    """

    def __init__(self, table):
        self.table, self.log, self.turns = table, [], {}

    def __call__(self, call, calls):
        turn = self.turns[call] = self.turns.get(call, -1) + 1
        self.log.append((call, calls))
        seconds = self.table[call](turn) if call in self.table else 1.0
        return Sample(seconds, 3 * seconds, 2 * seconds)


def base():
    pass


def other():
    pass


def third():
    pass


class SlowTwin(FakeClock):
    """One of the A/A arms is slower by `gap`, for as long as fewer than `until` blocks have been taken."""

    def __init__(self, gap, until=10**9, table=None):
        super().__init__(table or {})
        self.gap, self.until, self.blocks = gap, until, count()

    def __call__(self, call, calls):
        sample = super().__call__(call, calls)
        if call is base and calls > 1:
            turn = next(self.blocks)
            slow = turn % 2 and turn // 2 < self.until
            return Sample(1 + self.gap, 1.0, 1.0) if slow else Sample(1.0, 1.0, 1.0)
        return sample


def in_order(monkeypatch):
    """Turns in the order of the arms, so that a fake clock can tell the twin (second) from the reference (first)."""
    monkeypatch.setattr("random.Random.sample", lambda self, population, k: list(population)[:k])


def measured_blocks(clock, arms, per_block):
    """The log without warm-up, cut into blocks, as the calls that were timed."""
    calls = [call for call, _ in clock.log][arms:]
    return [calls[i : i + per_block] for i in range(0, len(calls), per_block)]


def test_every_block_times_every_arm_once_and_the_reference_twice():
    clock = FakeClock({})
    compare({"a": base, "b": other, "c": third}, reference="a", blocks=12, clock=clock, **SMALL)
    blocks = measured_blocks(clock, arms=5, per_block=5)
    assert len(blocks) == 12
    for block in blocks:
        assert [block.count(call) for call in (base, other, third)] == [2, 1, 1]  # and the copy is the fifth


def test_order_changes_from_block_to_block_and_follows_the_seed():
    def orders(seed):
        clock = FakeClock({})
        compare({"a": base, "b": other, "c": third}, reference="a", blocks=12, seed=seed, clock=clock, **SMALL)
        names = {base: "a", other: "b", third: "c"}
        return ["".join(names.get(c, "-") for c in block) for block in measured_blocks(clock, arms=5, per_block=5)]

    assert len(set(orders(0))) > 6
    assert orders(0) == orders(0) != orders(1)
    assert len({order.index("b") for order in orders(0)}) == 5  # every place in the block


def test_percentiles_and_medians_are_those_of_the_samples():
    # turn 0 is the warm-up; then 1, ..., 11 seconds
    clock = FakeClock({other: lambda turn: float(turn)})
    found = compare({"a": base, "b": other}, reference="a", blocks=11, clock=clock, **SMALL)
    row = found["b"].measures()
    assert (row["p20"], row["p50"], row["p80"]) == (3.0, 6.0, 9.0)
    assert (row["wall_seconds"], row["cpu_seconds"], row["relative"], row["blocks"]) == (18.0, 12.0, 6.0, 11.0)
    assert row["contention"] == 1.5 * torch.get_num_threads()
    assert found["a"].measures()["relative"] == 1.0
    assert all(type(value) is float for value in row.values())
    assert list(found) == ["a", "b"]


def test_relative_is_paired_within_blocks():
    # A neighbour comes after four of nine blocks and slows everything by 8: each block still tells 3 times.
    slow = iter([1.0] * 2 + [k for _ in range(4) for k in (1.0, 1.0)] + [k for _ in range(5) for k in (8.0, 8.0)])
    clock = FakeClock({base: lambda turn: next(slow), other: lambda turn: 3.0 if turn <= 4 else 24.0})
    found = compare({"a": base, "b": other}, reference="a", blocks=9, clock=clock, **SMALL)
    assert found["b"].relative == 3.0
    assert found["a"].aa_gap == 0.0


def test_twin_too_far_is_invalid_and_says_how_far_after_how_many_blocks(monkeypatch):
    in_order(monkeypatch)
    told = r"differed by 3\.1% after 64 blocks, where at most 2\.0% is allowed.* run again\.$"
    with pytest.raises(InvalidMeasurement, match=told):
        compare({"a": base}, reference="a", blocks=16, calls=2, max_rounds=3, clock=SlowTwin(0.031), **SMALL)


def test_twin_within_the_limit_stops_after_the_planned_blocks(monkeypatch):
    in_order(monkeypatch)
    found = compare({"a": base}, reference="a", blocks=16, calls=2, clock=SlowTwin(0.019), **SMALL)
    assert len(found["a"].samples) == 16
    assert found["a"].aa_gap == pytest.approx(0.019)
    assert found["a"].aa_gap_wall == 0.0


def test_more_blocks_are_taken_until_the_twin_agrees(monkeypatch):
    in_order(monkeypatch)
    found = compare({"a": base}, reference="a", blocks=4, calls=2, clock=SlowTwin(0.5, until=4), **SMALL)
    assert len(found["a"].samples) == 16  # 4: all slow; 8: the median is halfway; 16: a quarter is slow
    assert found["a"].aa_gap == 0.0


@pytest.mark.parametrize("effect", [lambda turn: 0.1, lambda turn: 1.0, lambda turn: 10.0 + 9 * (-1) ** turn])
def test_the_effect_does_not_influence_stopping(monkeypatch, effect):
    in_order(monkeypatch)
    clock = SlowTwin(0.5, until=4, table={other: effect})
    found = compare({"a": base, "b": other}, reference="a", blocks=4, calls=2, clock=clock, **SMALL)
    assert len(found["b"].samples) == len(found["a"].samples) == 16


def test_an_arm_that_takes_no_time_is_invalid():
    with pytest.raises(InvalidMeasurement, match="no measurable time"):
        compare({"a": base}, reference="a", clock=FakeClock({base: lambda turn: 0.0}), **SMALL)


def test_copy_floor_and_fraction():
    found = compare({"a": base, "b": other}, reference="a", bytes_moved={"b": 1024}, clock=FakeClock({}), **SMALL)
    assert found["a"].copy_bytes_per_s == 2 * 4096  # read and written, in one second
    row = found["b"].measures()
    assert (row["bytes_per_s"], row["copy_fraction"]) == (1024.0, 0.125)
    assert "copy_fraction" not in found["a"].measures()
    assert "peak_bytes" not in row  # memory=False


@pytest.mark.parametrize("cold", [False, True])
def test_real_clock_calls_as_often_as_asked(cold):
    called = []
    found = compare(
        {"a": lambda: called.append(sum(range(5000)))},
        reference="a",
        blocks=3,
        calls=4,
        warmup=2,
        aa_limit=1e9,
        cold=cold,
        copy_bytes=4096,
        memory=False,
    )
    assert len(called) == 2 * (2 + 3 * 4)
    (row,) = [timing.measures() for timing in found.values()]
    assert 0 < row["p20"] <= row["p50"] <= row["p80"]
    assert row["contention"] > 0 and row["copy_bytes_per_s"] > 0
    assert gc.isenabled()


def test_one_thread_counts_cpu_time_and_several_count_wall_time():
    threads = torch.get_num_threads()
    try:
        for n, field in ((1, "cpu"), (2, "wall")):
            torch.set_num_threads(n)
            found = compare({"a": lambda: sum(range(5000))}, reference="a", blocks=2, aa_limit=1e9, **SMALL)
            assert all(sample.seconds == getattr(sample, field) for sample in found["a"].samples)
            assert found["a"].threads == n
    finally:
        torch.set_num_threads(threads)


def test_garbage_collection_returns_after_a_failure():
    with pytest.raises(InvalidMeasurement):
        compare({"a": base}, reference="a", clock=FakeClock({base: lambda turn: 0.0}), **SMALL)
    assert gc.isenabled()


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"reference": "z"}, "write one of a"),
        ({"bytes_moved": {"z": 1}}, "bytes_moved names z"),
        ({"blocks": 0}, "1 or more"),
        ({"graph": True}, "needs cuda"),
        ({"device": "meta"}, "write cpu or cuda"),
    ],
)
def test_errors_say_what_to_write(wrong, message):
    with pytest.raises(ReproError, match=message):
        compare({"a": base}, **{"reference": "a"} | wrong)


N = 1000 * 256 * 4


def test_peak_bytes_of_known_operators():
    x = torch.ones(1000, 256)
    assert peak_bytes(lambda: x + 1) == N
    assert peak_bytes(lambda: x.mul(2).add(1).sub(3)) == 2 * N  # one operand, one result at a time
    assert peak_bytes(lambda: x.view(-1)) == peak_bytes(lambda: x.add_(0)) == 0
    assert peak_bytes(lambda: (x + 1, x + 2, x + 3)) == 3 * N
    sizes = iter([9, 2])  # the first call, which only prepares, does not count
    assert peak_bytes(lambda: torch.ones(next(sizes) * 1000, 256)) == 2 * N


def test_peak_bytes_sees_what_autograd_keeps():
    x = torch.ones(1000, 256, requires_grad=True)
    ones = torch.ones(1000, 256)
    # e = exp x and its tanh (held as an argument of grad), the gradient by e, and that times e
    assert peak_bytes(lambda: torch.autograd.grad(x.exp().tanh(), x, ones)) == 4 * N
    assert peak_bytes(lambda: x.exp().exp().exp()) == 3 * N
    with torch.no_grad():
        assert peak_bytes(lambda: x.exp().exp().exp()) == 2 * N


def test_peak_bytes_leaves_out_what_outlives_the_call():
    weight = torch.ones(1000, 256, requires_grad=True)
    optimizer = torch.optim.Adam([weight], foreach=False)

    def step():
        optimizer.zero_grad(set_to_none=False)
        weight.square().sum().backward()
        optimizer.step()

    first = peak_bytes(step)
    assert first == peak_bytes(step)  # the first time Adam made its state (2 N), which is not counted
    assert 2 * N < first < 5 * N


def test_compare_reports_peak_bytes():
    x = torch.ones(1000, 256)
    arms = {"one": lambda: x + 1, "two": lambda: (x + 1, x + 1)}
    found = compare(arms, reference="one", blocks=1, clock=FakeClock({}), copy_bytes=4096)
    assert {name: timing.measures()["peak_bytes"] for name, timing in found.items()} == {"one": N, "two": 2.0 * N}


def test_timing_alone():
    timing = Timing((Sample(1.0, 2.0, 1.0),), relative=1.0, aa_gap=0.0, aa_gap_wall=0.0, copy_bytes_per_s=1.0)
    assert timing.contention == 2.0
    assert timing.measures()["p50"] == 1.0


def test_steady_malloc_says_whether_it_could(monkeypatch):
    assert steady_malloc() in (True, False)
    monkeypatch.setattr("platform.libc_ver", lambda: ("", ""))
    assert steady_malloc() is False


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("options", [{}, {"cold": True}, {"graph": True}, {"graph": True, "cold": True}])
def test_on_cuda(options):
    x = torch.randn(1024, 1024, device="cuda", requires_grad=True)
    arms = {
        "relu": lambda: torch.autograd.grad(F.relu(x), x, x.detach()),
        "tanh": lambda: torch.autograd.grad(F.tanh(x), x, x.detach()),
    }
    found = compare(arms, reference="relu", device="cuda", blocks=3, calls=10, aa_limit=1e9, **options)
    for timing in found.values():
        row = timing.measures()
        assert 0 < row["p20"] <= row["p50"] <= row["p80"]
        assert row["wall_seconds"] > 0 and row["copy_bytes_per_s"] > 0
        assert row["peak_bytes"] >= x.nbytes
