"""Residual networks on small images that differ in their units alone: resnet, preact_resnet and wide_resnet.

    plain, residual     the two networks of resnet, at depths 20 and 56
    half, conv          other shortcuts than the identity (preact_resnet, Table 1)
    norm_after          the second norm behind the addition (preact_resnet, Table 2)
    preact              norm and activation before each convolution (preact_resnet)
    wide, narrow        16 layers, twice as wide as the others and as wide (wide_resnet)
    shortcuts           the wide network whose branches are cut off

The arms of a seed see the same batches under the same recipe, and a trial is known by its arm and settings, so that an
arm that two papers have is trained once.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

import torch
from torch import Tensor, nn

from repro import trivial
from repro.models.convnet import Basic, Slots, cifar_resnet
from repro.tasks import Measures, Pictures, learning, trained
from repro.train import cosine, evaluate_classifier, generator


@dataclass(frozen=True, kw_only=True)
class Nets(Pictures):
    """width: channels of the first stage; scored: training images of which the error is measured."""

    width: int
    scored: int
    weight_decay: float = 1e-4
    warmup: float = 0.1


class Half(Basic):
    """Shortcut and branch times 0.5, the constant scaling of Table 1."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(self.act1(self.norm1(self.conv1(x)))))
        return self.act2(0.5 * y + 0.5 * self.skip(x))


class Conv(Basic):
    """A 1 x 1 convolution and a norm on every shortcut, option C of resnet."""

    def __init__(self, c_in: int, c_out: int, stride: int, slots: Slots, index: int, depth: int):
        super().__init__(c_in, c_out, stride, slots, index, depth)
        self.skip = nn.Sequential(slots.conv1(c_in, c_out, stride), slots.norm(c_out))


class NormAfter(Basic):
    """act(Norm(x + conv(act(Norm(conv(x)))))): the second norm behind the addition."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(self.act1(self.norm1(self.conv1(x))))
        return self.act2(self.norm2(y + self.skip(x)))


@dataclass(frozen=True)
class Arm:
    """depth and block of the kernel's CIFAR network; or network(*shape, 10, channels, width=, generator=) instead."""

    depth: int = 56
    block: str = "repro.models.convnet:Basic"
    network: str | None = None
    shape: tuple[int, ...] = ()


ARMS = {
    "plain_20": Arm(20, "repro.models.convnet:Plain"),
    "plain_56": Arm(56, "repro.models.convnet:Plain"),
    "residual_20": Arm(20),
    "residual_56": Arm(56),
    "half_56": Arm(56, "repro.experiments.residual_nets:Half"),
    "conv_56": Arm(56, "repro.experiments.residual_nets:Conv"),
    "norm_after_56": Arm(56, "repro.experiments.residual_nets:NormAfter"),
    "preact_56": Arm(network="repro.papers.preact_resnet:preact_resnet", shape=(56,)),
    "wide_16": Arm(network="repro.papers.wide_resnet:wide_resnet", shape=(16, 2)),
    "narrow_16": Arm(network="repro.papers.wide_resnet:wide_resnet", shape=(16, 1)),
    "shortcuts_16": Arm(network="repro.papers.wide_resnet.experiment:shortcuts", shape=(16, 2)),
}


def named(name: str) -> Callable:
    """The attribute that "module:attribute" names."""
    module, attribute = name.split(":")
    return getattr(import_module(module), attribute)


def build(arm: str, config: Nets, source: torch.Generator) -> nn.Module:
    """The network of an arm."""
    kind = ARMS[arm]
    if kind.network is not None:
        return named(kind.network)(*kind.shape, 10, config.channels, width=config.width, generator=source)
    return cifar_resnet(
        kind.depth, width=config.width, channels=config.channels, block=named(kind.block), generator=source
    )


def quality(arm: str, seed: int, config: Nets, device: torch.device) -> Measures:
    """Error on the test images and on `scored` of the training images after SGD with momentum and a cosine."""
    model, (train, test) = build(arm, config, generator("residual_nets", seed)).to(device), config.load(device)
    history = trained(
        model,
        train,
        "residual_nets batches",
        seed,
        config,
        optimizer="momentum",
        weight_decay=config.weight_decay,
        schedule=cosine(config.warmup),
    )
    seen = evaluate_classifier(model, *(t[: config.scored] for t in train))
    return {
        "error": evaluate_classifier(model, *test)["error"],
        "train_error": seen["error"],
        "train_nats": seen["loss"],
        "parameters": float(sum(p.numel() for p in model.parameters())),
        **learning(history),
        **trivial.classes(train, test, config.trivial, measure="error"),
    }
