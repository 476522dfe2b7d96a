"""One trial over two processes: equal to one process within rounding, restarted from its checkpoint, never orphaned."""

import json
import math
import signal
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.testing._internal.distributed import fake_pg

from conftest import Checkout
from repro import train
from repro.errors import ReproError

EXPERIMENT = '''"""A small network trained by `fit`; `mode` makes one rank misbehave."""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from repro import train

ARMS = {"method": None, "broken": None}
HERE = Path(__file__).parent


@dataclass(frozen=True)
class Main:
    depth: int
    mode: str


def noisy(x, g):
    return x + 0.1 * torch.randn(x.shape, generator=g, dtype=x.dtype)


def main(arm: str, seed: int, config: Main, device: torch.device) -> dict:
    rank, world = train.ranks()
    draw = train.generator("data", seed)
    x = torch.randn(640, 8, generator=draw, dtype=torch.float64)
    y = (x[:, 0] > 0).long()
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 2)).double()
    seen = []

    def hook(step, model, loss):
        seen.append(step)
        with open(HERE / "steps", "a") as file:
            file.write(f"{rank} {step} {os.getpid()}\\n")
        if config.mode == "die" and step == 25 and rank == 1 and not (HERE / "died").exists():
            (HERE / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if config.mode == "raise" and step == 25 and rank == 1:
            raise ValueError("the experiment is broken")
        if config.mode == "slow":
            time.sleep(0.2)
        if config.mode == "diverge" and step == 25:
            with torch.no_grad():
                model[0].weight.fill_(float("inf"))

    history = train.fit(model, (x, y), steps=40, batch=64, lr=0.05, seed=seed, optimizer="momentum", hook=hook,
                        clip=1.0, checkpoint_every=10, augment=noisy)
    return {"error": history.train_loss[-1], "curve": history.train_loss, "world": world, "first": seen[0]}
'''
YAML = {
    "  curve: {unit: nats, better: lower, diverged: worst}\n": "  curve: {unit: nats, better: lower, diverged: worst}\n"
    "  world: {unit: ranks, better: lower, diverged: worst}\n"
    "  first: {unit: step, better: lower, diverged: worst}\n",
    "factors: {depth: [1, 2]}": "factors: {depth: [1]}",
    ", per: depth}": "}",
    "seeds: 1, main: {mode: plain}": "seeds: 1, main: {mode: plain, ranks: 2, arms: [method]}",
}


@pytest.fixture
def ranked(checkout: Checkout) -> Checkout:
    (checkout.paper / "experiment.py").write_text(EXPERIMENT)
    for old, new in YAML.items():
        checkout.edit(old, new)
    return checkout


def row(checkout: Checkout, *words: str) -> dict:
    checkout.ok("run", "demo", "--profile", "smoke", *words)
    [found] = json.loads((checkout.root / ".repro" / "smoke" / "demo" / "rows.json").read_text())["rows"]
    return found


def steps(checkout: Checkout) -> list[list[int]]:
    return [[int(word) for word in line.split()] for line in (checkout.paper / "steps").read_text().splitlines()]


def test_two_ranks_equal_one_process_and_a_killed_rank_goes_on_from_the_checkpoint(ranked: Checkout) -> None:
    two = row(ranked)["measures"]
    assert two["world"] == 2 and {rank for rank, *_ in steps(ranked)} == {0, 1}
    assert not list((ranked.root / ".repro" / "ranks").iterdir()), "checkpoints end with the trial"
    ranked.edit("mode: plain, ranks: 2", "mode: plain")
    alone = row(ranked)["measures"]
    assert all(math.isclose(a, b, rel_tol=1e-9) for a, b in zip(alone["curve"], two["curve"], strict=True))
    assert len(set(alone["curve"])) == 40 and alone["curve"][-1] < alone["curve"][0]
    ranked.edit("mode: plain, arms", "mode: die, ranks: 2, arms")
    killed = row(ranked)["measures"]
    assert (ranked.paper / "died").exists() and killed["first"] == 20, "the checkpoint after 20 steps was taken up"
    assert killed["curve"] == two["curve"], "bitwise"


def test_an_exception_of_the_experiment_is_not_retried(ranked: Checkout) -> None:
    ranked.edit("mode: plain, ranks", "mode: raise, ranks")
    assert "ValueError: the experiment is broken" in ranked.refused("run", "demo", "--profile", "smoke", code=1)
    assert [step for rank, step, _ in steps(ranked) if rank == 1].count(0) == 1


def test_divergence_ends_all_ranks_alike(ranked: Checkout) -> None:
    ranked.edit("mode: plain, ranks", "mode: diverge, ranks")
    found = row(ranked)
    assert (found["status"], found["step"]) == ("diverged", 26)


def test_kill_9_of_the_parent_leaves_no_rank_and_the_next_run_resumes(ranked: Checkout) -> None:
    ranked.edit("mode: plain, ranks", "mode: slow, ranks")
    process = ranked.start("run", "demo", "--profile", "smoke")
    while not (ranked.paper / "steps").exists() or len(steps(ranked)) < 26:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    pids = {pid for *_, pid in steps(ranked)}
    deadline = time.monotonic() + 600
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids), "ranks outlive their parent"
    assert row(ranked)["measures"]["first"] == 10


@pytest.mark.parametrize(
    "setting, words",
    [("ranks: 0", "at least 1"), ("ranks: true", "whole number"), ("ranks: 2, batched: true", "leave out ranks")],
)
def test_what_ranks_may_be(ranked: Checkout, setting: str, words: str) -> None:
    ranked.edit("ranks: 2", setting)
    assert words in ranked.refused("plan", "demo", "--profile", "smoke")


@pytest.mark.parametrize("rank", [0, 1])
def test_a_batch_that_ranks_cannot_share(rank: int, tmp_path: Path) -> None:
    """Each of two ranks says so before it exchanges anything: a group that the other one has not joined is enough."""
    dist.init_process_group("fake", store=fake_pg.FakeStore(), rank=rank, world_size=2)
    try:
        assert train.ranks() == (rank, 2)
        with pytest.raises(ReproError, match="batch=3: 2 ranks share it; write a multiple of 2"):
            train.fit(
                torch.nn.Linear(2, 2), (torch.zeros(8, 2), torch.zeros(8).long()), steps=1, batch=3, lr=0.1, seed=0
            )
    finally:
        dist.destroy_process_group()
