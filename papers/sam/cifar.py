"""What papers/sam measures on CIFAR-10: test error of ResNet-32 after training on wrong labels (Section 3.3)."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from repro.experiments.cifar import Cifar, classified
from repro.papers.resnet.method import resnet32
from repro.papers.sam.method import SAM
from repro.tasks import Measures
from repro.train import cosine, generator


@dataclass(frozen=True, kw_only=True)
class NoisyCifar(Cifar):
    """noise: share of the training labels that are replaced by another class."""

    noise: float
    rho: float
    weight_decay: float = 5e-4
    clip: float = 5.0  # bound of the gradient's norm, as in the authors' code


class AnyDirection(SAM):
    """A wrong SAM, whose e is a random direction, drawn by PyTorch's generator, which the loop seeds at every step."""

    def directions(self, parameters: list[Tensor]) -> list[Tensor]:
        drawn = [torch.randn_like(p) for p in parameters]
        norm = torch.stack([d.norm() for d in drawn]).norm()
        return [self.rho * d / norm for d in drawn]


def mislabelled(y: Tensor, share: float, classes: int, source: torch.Generator) -> Tensor:
    """Return labels of which about `share` are wrong, all wrong ones being equally likely."""
    wrong = torch.rand(len(y), generator=source) < share
    shift = torch.randint(1, classes, (len(y),), generator=source)
    return torch.where(wrong.to(y.device), (y + shift.to(y.device)) % classes, y)


def cifar(arm: str, seed: int, config: NoisyCifar, device: torch.device) -> Measures:
    """Error on clean test images of ResNet-32; `tenth` has a tenth of rho, `clean` is SGD on the right labels."""
    (x, y), test = config.load(device)
    if arm != "clean":
        y = mislabelled(y, config.noise, config.classes, generator("sam cifar noise", seed))
    model = resnet32(config.classes, width=config.width, generator=generator("sam cifar", seed))
    config = replace(config, steps=config.steps * (2 if arm == "sgd_longer" else 1))
    kind = {"sam": SAM, "tenth": SAM, "random_ball": AnyDirection}.get(arm)
    rho = config.rho / (10 if arm == "tenth" else 1)

    def optimizer(groups: list[dict], lr: float) -> torch.optim.Optimizer:
        options = {"momentum": 0.9, "nesterov": True, "weight_decay": config.weight_decay}
        base = torch.optim.SGD(groups, lr=lr, fused=True, **options)
        return base if kind is None else kind(base, rho, model=model)

    options = {"optimizer": optimizer, "schedule": cosine(), "clip": config.clip}
    return classified(model, "sam cifar", seed, config, device, data=((x, y), test), **options)
