"""The networks of 14 and 110 layers on CIFAR-10 with the recipe of the authors' code, of which a part is trained."""

import torch
from torch import nn

from repro.experiments.cifar import Cifar, classified
from repro.models.convnet import ConvNet, cifar_resnet
from repro.papers.bn_only import norm_parameters
from repro.papers.bn_only.experiment import choose_
from repro.tasks import Measures
from repro.train import generator


def two_a_channel_(model: nn.Module, decay: float, source: torch.Generator) -> None:
    """Train two random weights for each channel of every convolution, which alone decay, on the model's own device."""
    for p in model.parameters():
        p.requires_grad_(False)
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            scores = torch.rand(layer.weight.flatten(1).shape, generator=source)
            chosen = torch.zeros_like(scores).scatter_(1, scores.topk(2, 1).indices, 1.0)
            w, keep = layer.weight.requires_grad_(True), chosen.view_as(layer.weight).to(layer.weight)
            w.register_hook(lambda g, w=w, keep=keep: keep * (g + decay * w.detach()))


def network(arm: str, source: torch.Generator, config: Cifar, device: torch.device | str = "cpu") -> ConvNet:
    """The network of an arm, of which the arm's part is trained; the output layer has He's initialization too."""
    depth, random = int(arm.rpartition("_")[2]), arm.startswith("random")
    model = cifar_resnet(
        depth, classes=config.classes, width=config.width, shortcut="project", bias=False, generator=source
    )
    with torch.no_grad():
        model.head.weight.mul_(2**0.5)
    choose_("norms" if random else arm, model, source)
    model.to(device)
    if random:
        two_a_channel_(model, config.weight_decay, source)
    return model


def cifar(arm: str, seed: int, config: Cifar, device: torch.device) -> Measures:
    """Test error of a network of which a part is trained, and the share of channels that are off at its end."""
    model = network(arm, generator("bn_only cifar", seed), config, device)
    decay = 0.0 if arm.startswith(("random", "undecayed")) else config.weight_decay
    found = classified(model, "bn_only cifar", seed, config, device, weight_decay=decay)
    gammas = torch.cat([p.detach().flatten() for name, p in norm_parameters(model).items() if name.endswith("weight")])
    return {**found, "off": float((gammas.abs() < 0.01).float().mean())}
