"""The networks of Tables 5 and 6 on CIFAR-10 (profile `paper`), with the recipe of Section 3."""

import torch
from torch import Tensor
from torch.nn import functional as F

from repro.experiments.cifar import Cifar, classified, moved
from repro.papers.wide_resnet.method import wide_resnet
from repro.tasks import Measures
from repro.train import generator


def reflected(x: Tensor, generator: torch.Generator) -> Tensor:
    """Return pictures, half of them mirrored, each cut out at a place of its own of itself with 4 reflected pixels."""
    return moved(F.pad(x, (4,) * 4, mode="reflect"), generator, 4, True)[..., 4:-4, 4:-4]


def cifar(arm: str, seed: int, config: Cifar, device: torch.device) -> Measures:
    """Test error of the network that an arm names by its depth and k: wrn_28_10 is WRN-28-10."""
    depth, k = map(int, arm.split("_")[1:])
    model = wide_resnet(depth, k, config.classes, width=config.width, generator=generator("wide_resnet cifar", seed))
    recipe = {"optimizer": "nesterov", "augment": reflected}
    return classified(model, "wide_resnet cifar", seed, config, device, **recipe)
