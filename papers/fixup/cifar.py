"""The networks of Table 1 on CIFAR-10 (profile `paper`), with the recipe of the authors' script but without Mixup."""

from dataclasses import dataclass, replace

import torch

from repro.experiments.cifar import Cifar, classified
from repro.papers.fixup.experiment import resnet_of
from repro.papers.fixup.method import fixup_groups
from repro.tasks import Measures
from repro.train import generator

SHALLOWER = {"fixup20": ("fixup", 20), "batchnorm56": ("batchnorm", 56)}  # kind and layers


@dataclass(frozen=True, kw_only=True)
class Deep(Cifar):
    """depth: layers of every network but those of SHALLOWER; warmup: of BatchNorm alone."""

    depth: int
    channels: int = 3


def cifar(arm: str, seed: int, config: Deep, device: torch.device) -> Measures:
    """Test error of a CIFAR ResNet; scalars of Fixup learn at a tenth of the rate."""
    kind, depth = SHALLOWER.get(arm, (arm, config.depth))
    config = replace(config, depth=depth, warmup=config.warmup if kind == "batchnorm" else 0)
    groups = fixup_groups if kind in ("fixup", "no_rule2") else None
    model = resnet_of(kind, config, generator("fixup cifar", seed))
    return classified(model, "fixup cifar", seed, config, device, groups=groups)
