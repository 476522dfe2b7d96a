"""A perceptron on small Fashion-MNIST, with BatchNorm or without, trained by different optimizers: adamp, novograd.

The arms of a seed start from the same weights and see the same batches; the arms `sgd` and `adamw` train once for both
papers.  With BatchNorm every weight but the output layer's is scale invariant.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import import_module

import torch
from torch import nn

from repro import trivial
from repro.models.mlp import MLP
from repro.models.slots import identity
from repro.tasks import Measures, Pictures, learning, trained
from repro.train import cosine, evaluate_classifier, generator


@dataclass(frozen=True)
class Arm:
    """What trains the perceptron.

    optimizer  "module:attribute" of a function (groups, lr, config) -> optimizer
    images     training images, as a multiple of the Config's, in as many steps
    length     steps, as a multiple of the Config's, with a cosine of its own
    """

    optimizer: str
    images: float = 1.0
    length: float = 1.0


ARMS = {
    "sgd": Arm("repro.experiments.optim_images:sgd"),
    "adamw": Arm("repro.experiments.optim_images:adamw"),
    "sgd_more_images": Arm("repro.experiments.optim_images:sgd", images=2.0),
    "adamw_more_images": Arm("repro.experiments.optim_images:adamw", images=2.0),
    "sgdp": Arm("repro.papers.adamp.experiment:sgdp"),
    "adamp": Arm("repro.papers.adamp.experiment:adamp"),
    "sgdp_never": Arm("repro.papers.adamp.experiment:sgdp_never"),
    "sgdp_half": Arm("repro.papers.adamp.experiment:sgdp_half"),
    "sgdp_everywhere": Arm("repro.papers.adamp.experiment:sgdp_everywhere"),
    "sgdp_radial": Arm("repro.papers.adamp.experiment:sgdp_radial"),
    "adamp_radial": Arm("repro.papers.adamp.experiment:adamp_radial"),
    "novograd": Arm("repro.papers.novograd.experiment:novograd"),
    "novograd_short": Arm("repro.papers.novograd.experiment:novograd", length=0.1),
    "novograd_last": Arm("repro.papers.novograd.experiment:last"),
    "novograd_whole": Arm("repro.papers.novograd.experiment:whole"),
    "novograd_from_zero": Arm("repro.papers.novograd.experiment:from_zero"),
    "novograd_plain": Arm("repro.papers.novograd.experiment:plain"),
    "novograd_once": Arm("repro.papers.novograd.experiment:once"),
}


@dataclass(frozen=True, kw_only=True)
class OptimImages(Pictures):
    """width, depth: of the hidden layers.  norm: whether they have BatchNorm.  gain: multiplies all initial weights."""

    width: int
    depth: int
    lr: float
    batch: int = 128
    pool: int = 2
    norm: bool = True
    gain: float = 1.0
    weight_decay: float = 0.0  # of matrices
    warmup: float = 0.0
    floor: float = 0.0
    momentum: float = 0.9


def sgd(groups: list[dict], lr: float, config: OptimImages) -> torch.optim.Optimizer:
    """torch.optim.SGD with momentum; its decay goes through the momentum."""
    return torch.optim.SGD(groups, lr=lr, momentum=config.momentum, fused=True)


def adamw(groups: list[dict], lr: float, config: OptimImages) -> torch.optim.Optimizer:
    """torch.optim.AdamW."""
    return torch.optim.AdamW(groups, lr=lr, fused=True)


def named(name: str) -> Callable:
    """The attribute that "module:attribute" names."""
    module, attribute = name.split(":")
    return getattr(import_module(module), attribute)


def hidden(model: MLP) -> list[nn.Parameter]:
    """The weights of the hidden layers."""
    return [layer.linear.weight for layer in model.hidden]


def optim_images(arm: str, seed: int, config: OptimImages, device: torch.device) -> Measures:
    """Test error, and what is left of the effective step lr / |w|^2, the schedule apart, in the median hidden layer."""
    kind = ARMS[arm]
    config = replace(config, steps=round(config.steps * kind.length), examples=round(config.examples * kind.images))
    train, test = config.load(device)
    model = MLP(
        [config.channels * config.side**2, *[config.width] * config.depth, 10],
        norm=nn.BatchNorm1d if config.norm else identity,
        generator=generator("optim_images", seed),
    ).to(device)
    with torch.no_grad():
        for w in [*hidden(model), model.head.weight]:
            w.mul_(config.gain)
    before = [w.detach().square().sum() for w in hidden(model)]

    def groups(model: nn.Module) -> list[dict]:
        return [
            {"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": config.weight_decay},
            {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0},
        ]

    history = trained(
        model,
        train,
        "optim_images batches",
        seed,
        config,
        groups=groups,
        optimizer=lambda groups, lr: named(kind.optimizer)(groups, lr, config),
        schedule=cosine(config.warmup, config.floor),
    )
    left = torch.stack([old / w.detach().square().sum() for old, w in zip(before, hidden(model), strict=True)])
    return {
        "error": evaluate_classifier(model, *test)["error"],
        "step_left": float(left.median()),
        **learning(history),
        **trivial.classes(train, test, config.trivial, measure="error"),
    }
