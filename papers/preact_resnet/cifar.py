"""The networks of Table 1 on CIFAR-10 (profile `paper`), which differ in their shortcuts or in their units."""

from dataclasses import dataclass

import torch
from torch import nn

from repro.experiments.cifar import Cifar, classified
from repro.experiments.residual_nets import Conv, Half
from repro.models.convnet import Basic, cifar_resnet
from repro.papers.preact_resnet.method import preact_resnet
from repro.tasks import Measures
from repro.train import generator

BLOCKS = {"half": Half, "conv": Conv}  # original units with other shortcuts than the identity


@dataclass(frozen=True, kw_only=True)
class Networks(Cifar):
    """depth: layers of every network but `identity20`."""

    depth: int


def network(arm: str, config: Networks, source: torch.Generator) -> nn.Module:
    """The network of an arm: original units unless it is `preact`, and identity shortcuts unless BLOCKS has others."""
    if arm == "preact":
        return preact_resnet(config.depth, config.classes, width=config.width, generator=source)
    depth, block = 20 if arm == "identity20" else config.depth, BLOCKS.get(arm, Basic)
    return cifar_resnet(depth, classes=config.classes, width=config.width, block=block, generator=source)


def cifar(arm: str, seed: int, config: Networks, device: torch.device) -> Measures:
    """Test error of a network with the shortcuts, or with the units, of an arm."""
    model = network(arm, config, generator("preact_resnet cifar", seed))
    return classified(model, "preact_resnet cifar", seed, config, device)
