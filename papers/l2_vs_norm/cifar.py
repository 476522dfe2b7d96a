"""What papers/l2_vs_norm measures on CIFAR-10: the test error of a convolutional net at three lambdas."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from repro.experiments.cifar import Cifar, classified
from repro.tasks import Measures
from repro.train import generator


@dataclass(frozen=True, kw_only=True)
class Grid(Cifar):
    """decays: lambda of the arms weak, middle and strong."""

    decays: tuple[float, float, float]


class Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


def convnet(normalised: bool, width: int, classes: int, source: torch.Generator) -> nn.Sequential:
    """Six 3 x 3 convolutions in three stages, the mean over the map, a linear layer.

    normalised: each of the seven has a BatchNorm behind it and nothing to train but weights; else each has a bias.
    """
    layers, channels = [], 3
    for i, b in enumerate((width, width, 2 * width, 2 * width, 4 * width, 4 * width, classes)):
        last = i == 6
        if last:
            layer = nn.Linear(channels, b, bias=not normalised)
        else:
            layer = nn.Conv2d(channels, b, 3, padding=1, bias=not normalised)
        fan, channels = layer.weight[0].numel(), b
        with torch.no_grad():
            layer.weight.copy_(torch.randn(layer.weight.shape, generator=source) * (2 / fan) ** 0.5)
            if layer.bias is not None:
                layer.bias.zero_()
        norm = (nn.BatchNorm1d if last else nn.BatchNorm2d)(b).requires_grad_(False) if normalised else nn.Identity()
        if normalised and last:
            norm.weight.fill_(2.0)  # logits that leave room for certainty
        layers += [Mean(), layer, norm] if last else [layer, norm, nn.ReLU()]
        if i in (1, 3):
            layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers)


def cifar(arm: str, seed: int, config: Grid, device: torch.device) -> Measures:
    """Test error with one lambda, of weights alone; `bn_narrow` has half the channels and the middle lambda."""
    normalised, level = arm.startswith("bn"), arm.split("_")[1]
    source, width = generator("l2_vs_norm cifar", seed), config.width // (2 if level == "narrow" else 1)
    model = convnet(normalised, width, config.classes, source)
    decay = dict(zip(("weak", "middle", "strong"), config.decays, strict=True)).get(level, config.decays[1])

    def groups(model: nn.Module) -> list[dict]:
        matrices = [p for p in model.parameters() if p.dim() > 1]
        others = [p for p in model.parameters() if p.dim() < 2 and p.requires_grad]
        decayed = [{"params": matrices, "weight_decay": 2 * decay}]
        return decayed + ([{"params": others, "weight_decay": 0.0}] if others else [])

    measures = classified(model, "l2_vs_norm cifar", seed, config, device, optimizer="nesterov", groups=groups)
    size = torch.cat([p.detach().flatten(1).norm(dim=1) for p in model.parameters() if p.dim() > 1])
    return {**measures, "size": float(size.mean())}
