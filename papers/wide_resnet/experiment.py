"""What papers/wide_resnet measures by itself: parameters, the place of dropout, and the time of a training step.

The trained networks are those of `repro.experiments.residual_nets`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from repro.models.convnet import Slots
from repro.papers.preact_resnet import PreActBlock, PreActBottleneck, PreActResNet, preact_resnet
from repro.papers.wide_resnet.method import WideBlock, wide_resnet
from repro.tasks import Timed, Worst, timed
from repro.train import draws, generator

TABLE = {  # Table 4: depth and k, millions of parameters
    "40-1": 0.6,
    "40-2": 2.2,
    "40-4": 8.9,
    "40-8": 35.7,
    "28-10": 36.5,
    "28-12": 52.5,
    "22-8": 17.2,
    "22-10": 26.8,
    "16-8": 11.0,
    "16-10": 17.1,
}


# --- a network for `repro.experiments.residual_nets` -----------------------------------------------------------------


class Cut(WideBlock):
    """A unit without its branch."""

    def branch(self, z: Tensor) -> Tensor:
        return torch.zeros(())


def shortcuts(
    depth: int, factor: int, classes: int, channels: int, *, width: int, generator: torch.Generator
) -> nn.Module:
    """The wide network of which the two ends and the projections are left."""
    model = wide_resnet(depth, factor, classes, channels, width=width, generator=generator)
    for block in model.blocks:
        block.__class__ = Cut
    return model


# --- parameters -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Counts:
    networks: tuple[str, ...]


class InnerWide(PreActBlock):
    """A unit that is `factor` times as wide between its layers alone, as WRN-50-2-bottleneck is."""

    def __init__(self, c_in: int, c_out: int, stride: int, slots: Slots, index: int, depth: int, factor: int):
        super().__init__(c_in, c_out, stride, slots, index, depth)
        self.conv1, self.norm2 = slots.conv3(c_in, factor * c_out, stride), slots.norm(factor * c_out)
        self.conv2 = slots.conv3(factor * c_out, c_out)


def counts(arm: str, seed: int, config: Counts, device: torch.device) -> dict[str, float]:
    """Largest difference from Table 4, in millions, rounded as printed there; no weight is drawn."""
    worst = Worst()
    for name in config.networks:
        depth, k = map(int, name.split("-"))
        with torch.device("meta"):
            if arm == "wide":
                model: nn.Module = wide_resnet(depth, k)
            elif arm == "inner":
                model = PreActResNet(
                    [(depth - 4) // 6] * 3, [16, 32, 64], stem_width=16, block=partial(InnerWide, factor=k)
                )
            else:  # wide_stem
                model = wide_resnet(depth, 1, width=16 * k)
        worst.record("table_error", abs(round(sum(p.numel() for p in model.parameters()) / 1e6, 1) - TABLE[name]))
    return dict(worst)


# --- dropout ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    channels: int
    dropout: float


class OnSkip(WideBlock):
    """Dropout on the shortcut."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) - x + F.dropout(x, 0.3, self.training)


class AtEnd(WideBlock):
    """Dropout behind the addition."""

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(super().forward(x), 0.3, self.training)


def place(arm: str, seed: int, config: Place, device: torch.device) -> dict[str, float]:
    """|y - x| in training mode, relative, where the branch is zero, with dropout, in float64."""
    kind = {"between": WideBlock, "on_skip": OnSkip, "at_end": AtEnd}[arm]
    slots = Slots(nn.BatchNorm2d, nn.ReLU, nn.Conv2d, "pad", False, generator("wide_resnet place", seed))
    block = kind(config.channels, config.channels, 1, slots, 0, 1, dropout=config.dropout).to(device, torch.float64)
    nn.init.zeros_(block.conv2.weight)
    x = draws(device, "wide_resnet x", seed)(8, config.channels, 6, 6)
    worst = Worst()
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        worst.relative("shortcut_error", block(x), x)
    return dict(worst)


# --- time: Figure 4 ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Speed(Timed):
    """thin: layers of the thin network, of which `half_thin` has half the units."""

    batch: int
    thin: int
    side: int
    wide: tuple[int, int] = (40, 4)
    widest: tuple[int, int] = (28, 10)


def step(arm: str, seed: int, config: Speed, device: torch.device) -> Callable[[], object]:
    """A forward and a backward pass over one batch."""
    source = generator("wide_resnet speed", seed)
    if arm in ("thin", "half_thin"):
        layers = config.thin if arm == "thin" else 9 * ((config.thin - 2) // 18) + 2
        model = preact_resnet(layers, block=PreActBottleneck, generator=source)
    else:
        model = wide_resnet(*(config.wide if arm == "wide" else config.widest), generator=source)
    model.to(device).train()
    x = torch.randn(config.batch, 3, config.side, config.side, generator=source).to(device)
    target = torch.randint(10, (config.batch,), generator=source).to(device)

    def call() -> None:
        model.zero_grad(set_to_none=True)
        F.cross_entropy(model(x), target).backward()

    return call


speed_group = timed(step, reference="wide", memory=False, warmup=1, max_rounds=1, copy_bytes=16 << 20)
