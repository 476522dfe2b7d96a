"""What papers/resnet measures by itself: the networks of Table 6, parameters, and the block whose branch is zero.

The other trained networks are those of `repro.experiments.residual_nets`.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from repro.experiments.cifar import Cifar, classified
from repro.models.convnet import Slots, cifar_resnet
from repro.papers.resnet import method
from repro.papers.resnet.method import BasicBlock
from repro.tasks import Measures, Worst
from repro.train import draws, generator

MILLIONS = {20: "0.27", 32: "0.46", 44: "0.66", 56: "0.85", 110: "1.7", 1202: "19.4"}  # Table 6


def cifar(arm: str, seed: int, config: Cifar, device: torch.device) -> Measures:
    """Test error of a network of Table 6, named as in `method`; 110 layers alone begin with the warm-up."""
    network = getattr(method, arm)(config.classes, width=config.width, generator=generator("resnet cifar", seed))
    if arm != "resnet110":
        config = replace(config, warmup=0)
    return classified(network, "resnet cifar", seed, config, device)


@dataclass(frozen=True)
class Counts:
    depths: tuple[int, ...]


def counts(arm: str, seed: int, config: Counts, device: torch.device) -> dict[str, float]:
    """Parameters beside Table 6 and the plain twin; `one_more` has a block more in every stage."""
    worst = Worst()
    for depth in config.depths:
        shape = {"shortcut": "project" if arm == "option_b" else "pad", "generator": generator("resnet counts", seed)}
        layers = depth + 6 if arm == "one_more" else depth
        ours, plain = (
            sum(p.numel() for p in cifar_resnet(n, residual=residual, **shape).parameters())
            for n, residual in ((layers, True), (layers, False))
        )
        printed = MILLIONS[depth]
        worst.record("table_error", abs(float(f"{ours / 1e6:.{len(printed.split('.')[1])}f}") - float(printed)))
        worst.record("extra_parameters", float(abs(ours - plain)))
    return dict(worst)


@dataclass(frozen=True)
class Zero:
    channels: int


class ReluBefore(BasicBlock):
    """x + relu(F(x)): the ReLU before the addition."""

    def forward(self, x: Tensor) -> Tensor:
        return self.act2(self.norm2(self.conv2(self.act1(self.norm1(self.conv1(x)))))) + self.skip(x)


class NormAfter(BasicBlock):
    """relu(BN(F(x) + x)): the second norm behind the addition."""

    def forward(self, x: Tensor) -> Tensor:
        return self.act2(self.norm2(self.conv2(self.act1(self.norm1(self.conv1(x)))) + self.skip(x)))


def zero(arm: str, seed: int, config: Zero, device: torch.device) -> dict[str, float]:
    """Largest |y - relu(x)|, relative, of a block whose last convolution is zero, in training mode and float64."""
    kind = {"original": BasicBlock, "relu_before": ReluBefore, "norm_after": NormAfter}[arm]
    slots = Slots(nn.BatchNorm2d, nn.ReLU, nn.Conv2d, "pad", False, generator("resnet zero", seed))
    block = kind(config.channels, config.channels, 1, slots, 0, 1).to(device, torch.float64)
    nn.init.zeros_(block.conv2.weight)
    x = 3 * draws(device, "resnet zero x", seed)(8, config.channels, 6, 6)
    worst = Worst()
    worst.relative("zero_error", block(x), x.relu())
    return dict(worst)
