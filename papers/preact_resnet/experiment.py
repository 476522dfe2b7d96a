"""What papers/preact_resnet measures by itself: the sum over all units, and the gradient along the shortcuts.

The trained networks are those of `repro.experiments.residual_nets`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from repro.models.convnet import Slots
from repro.papers.preact_resnet.method import PreActBlock
from repro.tasks import Worst
from repro.train import draws, generator

HALF = 0.5


@dataclass(frozen=True)
class Units:
    units: int
    channels: int
    size: int


class ReluAfter(PreActBlock):
    """relu(x + F(x)): an activation behind the addition."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu()


class Scaled(PreActBlock):
    """x / 2 + F(x)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) - (1 - HALF) * x


class Convolved(PreActBlock):
    """A 1 x 1 convolution of x, and F(x)."""

    def __init__(self, c_in: int, c_out: int, stride: int, slots: Slots, index: int, depth: int):
        super().__init__(c_in, c_out, stride, slots, index, depth)
        self.other = slots.conv1(c_in, c_out)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) - x + self.other(x)


KINDS = {"identity": PreActBlock, "relu_after": ReluAfter, "half": Scaled, "conv": Convolved}


def units_of(arm: str, seed: int, config: Units, device: torch.device) -> tuple[nn.ModuleList, Tensor]:
    """`units` units in float64, in evaluation mode, and an input."""
    slots = Slots(nn.BatchNorm2d, nn.ReLU, nn.Conv2d, "pad", False, generator("preact_resnet units", seed))
    c = config.channels
    made = nn.ModuleList(KINDS[arm](c, c, 1, slots, i, config.units) for i in range(config.units))
    x = draws(device, "preact_resnet x", seed)(2, c, config.size, config.size)
    return made.to(device, torch.float64).eval(), x


def additive(arm: str, seed: int, config: Units, device: torch.device) -> dict[str, float]:
    """Largest |x_L - x_0 - sum F(x_i)| over the largest |x_L|; last convolutions are made small against overflow."""
    units, first = units_of(arm, seed, config, device)
    x, total, worst = first, torch.zeros_like(first), Worst()
    with torch.no_grad():
        for unit in units:
            unit.conv2.weight.mul_(config.units**-0.5)
            total += unit.branch(unit.act1(unit.norm1(x)))
            x = unit(x)
    worst.record("sum_error", (x - first - total).abs().max() / x.abs().max())
    return dict(worst)


def gradient(arm: str, seed: int, config: Units, device: torch.device) -> dict[str, float]:
    """|dx_L/dx_0 / lambda^L - 1| where all branches are zero, lambda being 0.5 (`half`) or 1, and log2 dx_L/dx_0."""
    units, x = units_of(arm, seed, config, device)
    y = x.requires_grad_()
    for unit in units:
        nn.init.zeros_(unit.conv2.weight)
        y = unit(y)
    slope = torch.autograd.grad(y.sum(), x)[0]
    worst = Worst()
    worst.record("product_error", (slope / (HALF if arm == "half" else 1.0) ** config.units - 1).abs())
    worst.record("log2_gradient", slope.abs().mean().log2())
    return dict(worst)
