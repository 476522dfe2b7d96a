"""What papers/weight_norm measures on CIFAR-10: the test error of ConvPool-CNN-C (Table 2), as in the authors' code.

Arms of a seed start from the same directions v, and see the same batches, noise and dropout.
"""

from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from repro.experiments.cifar import Cifar, classified
from repro.papers.batchnorm import BatchNorm
from repro.papers.weight_norm.experiment import Averaged, Unnormalised, halved
from repro.papers.weight_norm.method import MeanOnlyBatchNorm, data_dependent_init, weight_norm
from repro.tasks import Measures
from repro.train import forked_rng, generator, seed_of


@dataclass(frozen=True, kw_only=True)
class Whole(Cifar):
    """init: images of the initialization; noise: deviation of that on the images.

    ridge: what the whitening adds to every variance; 0 for no whitening.
    """

    init: int = 500
    noise: float = 0.15
    ridge: float = 1e-5
    crop: int = 0
    flip: bool = False
    weight_decay: float = 0.0


class Noise(nn.Module):
    """Adds Gaussian noise in training."""

    def __init__(self, deviation: float):
        super().__init__()
        self.deviation = deviation

    def forward(self, x: Tensor) -> Tensor:
        return x + self.deviation * torch.randn_like(x) if self.training else x


def whitened(train: Tensor, test: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """ZCA: turn images so that the training images' covariance is nearly the unit matrix, all pixels taken together."""
    mean = train.flatten(1).double().mean(0)
    centred = train.flatten(1).double() - mean
    values, vectors = torch.linalg.eigh(centred.T @ centred / len(centred))
    turn = (vectors / (values.clamp(min=0) + ridge).sqrt()) @ vectors.T
    first, second = (((x.flatten(1).double() - mean) @ turn).float().view_as(x) for x in (train, test))
    return first, second


def convpool_cnn_c(arm: str, width: int, noise: float, classes: int, source: torch.Generator) -> nn.Sequential:
    """The authors' network: nine convolutions, the mean over the map and a linear layer, all v drawn N(0, 0.05^2)."""
    norm = partial(BatchNorm, eps=1e-6) if arm == "bn" else MeanOnlyBatchNorm if "mobn" in arm else None
    n, m = width, 2 * width
    pool = [nn.MaxPool2d(2), nn.Dropout(0.5)]
    layers: list[nn.Module] = [Noise(noise)]
    stages = [[(3, n, 3, 1), (n, n, 3, 1), (n, n, 3, 1)], [(n, m, 3, 1), (m, m, 3, 1), (m, m, 3, 1)]]
    for stage in [*stages, [(m, m, 3, 0), (m, m, 1, 0), (m, m, 1, 0)]]:
        for a, b, kernel, padding in stage:
            layers.append(nn.Conv2d(a, b, kernel, padding=padding, bias=norm is None))
            layers += [*([norm(b)] if norm else []), nn.LeakyReLU(0.1)]
        layers += [Averaged()] if stage[0][3] == 0 else pool
    layers += [nn.Linear(m, classes, bias=norm is None), *([norm(classes)] if norm else [])]
    for layer in layers:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            with torch.no_grad():
                layer.weight.copy_(0.05 * torch.randn(layer.weight.shape, generator=source))
                if layer.bias is not None:
                    layer.bias.zero_()
            if arm.startswith("wn"):
                weight_norm(layer)
            elif arm != "bn":  # ordinary weights v with a fixed scale g, as in the authors' code
                parametrize.register_parametrization(layer, "weight", Unnormalised(0), unsafe=True)
                layer.parametrizations.weight.original0.requires_grad_(False).fill_(1.0)
    return nn.Sequential(*layers)


def cifar(arm: str, seed: int, config: Whole, device: torch.device) -> Measures:
    """Test error of ConvPool-CNN-C on whitened images; `wn_mobn_moved` sees crops and mirrored images besides."""
    if arm == "wn_mobn_moved":
        config = replace(config, crop=4, flip=True)
    (x, y), (test_x, test_y) = config.load(device)
    if config.ridge:  # images of deviation 1/2, as in the authors' code
        x, test_x = whitened(x / 2, test_x / 2, config.ridge)
    with forked_rng(device):
        torch.manual_seed(seed_of("weight_norm cifar", seed))  # of the noise and of dropout, and of torch's own draws
        source = generator("weight_norm cifar v", seed)
        model = convpool_cnn_c(arm, config.width, config.noise, config.classes, source).to(device)
        if arm != "bn":
            data_dependent_init(model, x[: config.init], std=None)
    made = []

    def adam(groups: list[dict], lr: float) -> torch.optim.Optimizer:
        made[:] = [torch.optim.Adam(groups, lr=lr, eps=1e-4, fused=True)]
        return made[0]

    def calm(step: int, *rest: object) -> None:
        for group in made[0].param_groups:
            group["betas"] = (0.9 if 2 * step < config.steps else 0.5, 0.999)

    data = ((x, y), (test_x, test_y))
    options = {"optimizer": adam, "schedule": halved, "hook": calm}
    return classified(model, "weight_norm cifar", seed, config, device, data=data, **options)
