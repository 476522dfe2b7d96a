"""What papers/one_cycle measures: a short run under 1cycle against a long one of piecewise constant rates."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import nn

from repro import tasks, trivial
from repro.models.slots import draw_
from repro.papers.one_cycle import OneCycle, momentum_at, rate_at
from repro.train import evaluate_classifier, generator

# --- schedules --------------------------------------------------------------------------------------------------------


def piecewise(step: int, steps: int) -> float:
    """1, a tenth after half of the steps, a hundredth after three quarters."""
    return 0.1 ** ((4 * step >= 2 * steps) + (4 * step >= 3 * steps))


def linear(step: int, steps: int) -> float:
    """The first twentieth rises, then a straight line to 0."""
    warmup = max(1, steps // 20)
    return (step + 1) / warmup if step < warmup else (steps - step) / (steps - warmup)


def flat(step: int, steps: int) -> float:
    """The cycle without its rise: the rate of its ends, and its last phase."""
    return min(rate_at(step, steps), 0.1)


SCHEDULES: dict[str, Callable[[int, int], float]] = {
    "one_cycle": rate_at,
    "flat": flat,
    "linear": linear,
    "piecewise": piecewise,
    "piecewise_long": piecewise,
}


class Cycled(torch.optim.SGD):
    """SGD whose momentum moves against the rate of the cycle."""

    def __init__(self, params: list[dict], lr: float, steps: int):
        super().__init__(params, lr=lr, momentum=0.95, weight_decay=5e-4)
        self.count, self.total = 0, steps

    def step(self, closure=None):
        for group in self.param_groups:
            group["momentum"] = momentum_at(self.count, self.total)
        self.count += 1
        return super().step(closure)


# --- a convolutional network ------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class LeNet(tasks.Pictures):
    """width: channels of the first convolution; longer: steps of `piecewise_long` over those of the others."""

    width: int
    longer: int = 7
    data: str = "mnist"


def lenet(config: LeNet, source: torch.Generator) -> nn.Module:
    """Two convolutions with max-pooling and two linear layers; weights by He's rule."""
    w, side = config.width, config.side // 4
    model = nn.Sequential(
        nn.Conv2d(config.channels, w, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(w, 2 * w, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(2 * w * side**2, 16 * w),
        nn.ReLU(),
        nn.Linear(16 * w, 10),
    )
    for layer in model:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            draw_(layer, math.sqrt(2 / layer.weight[0].numel()), source)
    return model


def mnist(arm: str, seed: int, config: LeNet, device: torch.device) -> tasks.Measures:
    """Test error after a run under a schedule, the arm's own highest rate being the factor `lr`."""
    if arm == "piecewise_long":
        config = replace(config, steps=config.longer * config.steps)
    train, test = config.load(device)
    model = lenet(config, generator("one_cycle", seed)).to(device)
    plain = partial(torch.optim.SGD, momentum=0.9, weight_decay=5e-4)
    cycled = partial(Cycled, steps=config.steps)
    history = tasks.trained(
        model,
        train,
        "one_cycle batches",
        seed,
        config,
        schedule=SCHEDULES[arm],
        optimizer=lambda groups, lr: (cycled if arm in ("one_cycle", "flat") else plain)(groups, lr=lr),
    )
    return {
        "error": evaluate_classifier(model, *test)["error"],
        **tasks.learning(history),
        **trivial.classes(train, test, config.trivial, measure="error"),
    }


# --- the schedule, against torch's ------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Schedule:
    steps: int


def schedule(arm: str, seed: int, config: Schedule, device: torch.device) -> dict[str, float]:
    """Largest distance of rate and momentum from torch's OneCycleLR with three straight phases, over one run."""
    steps = config.steps + seed % 7
    worst, kept = tasks.Worst("rate_error", "momentum_error"), []
    for ours in (True, False):
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0, momentum=0.9)
        if ours and arm == "one_cycle":
            scheduler = OneCycle(optimizer, 2.0, steps)
        else:
            lines = {} if ours else {"three_phase": True, "anneal_strategy": "linear"}
            options = {"div_factor": 10.0, "final_div_factor": 100.0, "pct_start": 0.45, **lines}
            scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2.0, steps, **options)
        path = []
        for _ in range(steps):
            path.append((optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["momentum"]))
            optimizer.step()
            if len(path) < steps:
                scheduler.step()
        kept.append(torch.tensor(path, dtype=torch.float64))
    worst.absolute("rate_error", kept[0][:, 0], kept[1][:, 0])
    worst.absolute("momentum_error", kept[0][:, 1], kept[1][:, 1])
    return dict(worst)
