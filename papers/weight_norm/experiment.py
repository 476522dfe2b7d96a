"""What papers/weight_norm measures: exact statements on gradients and on the initialization, and classifiers.

Arms of a seed start from the same directions v and see the same batches.  `plain` is drawn and scaled like `wn` and
then has ordinary weights; `narrow` is `wn` at half the width.
"""

from dataclasses import dataclass, replace
from statistics import fmean

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from repro import tasks
from repro.papers.batchnorm import BatchNorm
from repro.papers.weight_norm.method import (
    MeanOnlyBatchNorm,
    WeightNorm,
    data_dependent_init,
    normalised_layers,
    weight_norm,
)
from repro.train import draws, forked_rng, generator, seed_of

# --- identities ------------------------------------------------------------------------------------------------------


class Unnormalised(WeightNorm):
    """w = g v: the division left out."""

    def forward(self, g: Tensor, v: Tensor) -> Tensor:
        return g * v


class Renormalised(WeightNorm):
    """w = g v / ||v|| with a norm that carries no gradient."""

    def forward(self, g: Tensor, v: Tensor) -> Tensor:
        return g * v / self.norm(v).detach()


KINDS = {"unnormalised": Unnormalised, "detached": Renormalised}


def perceptron(arm: str, config: "Identities", draw) -> nn.Sequential:
    """Linear layers and tanh in float64, weight-normalised as the arm has it, v drawn with deviation 0.05."""
    width, layers = config.width, []
    for _ in range(config.depth):
        linear = nn.Linear(width, width, dtype=torch.float64)
        linear.weight.data.copy_(0.05 * draw(width, width))
        nn.init.zeros_(linear.bias)
        parametrize.register_parametrization(linear, "weight", KINDS.get(arm, WeightNorm)(0), unsafe=True)
        layers += [linear, nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def in_one_pass(model: nn.Module, x: Tensor) -> None:
    """A wrong initialization: the statistics of all layers from one pass that is not normalised on its way."""
    found = []
    layers = normalised_layers(model)
    handles = [layer.register_forward_hook(lambda layer, args, t: found.append(t.detach())) for layer in layers]
    model(x)
    with torch.no_grad():
        for layer, handle, t in zip(layers, handles, found, strict=True):
            handle.remove()
            sigma, mu = torch.std_mean(t, 0, correction=0)
            layer.parametrizations.weight.original0.div_(sigma[:, None])
            layer.bias.copy_((layer.bias - mu) / sigma)


@dataclass(frozen=True, kw_only=True)
class Identities:
    width: int
    depth: int
    examples: int
    lr: float


def identities(arm: str, seed: int, config: Identities, device: torch.device) -> tasks.Measures:
    """One step of SGD on v, unit by unit, and the pre-activations after the data-dependent initialization."""
    draw, worst = draws(device, "weight_norm identities", seed), tasks.Worst()
    model = perceptron(arm, config, draw).to(device)
    x = draw(config.examples, config.width)
    (model(x).tanh() * draw(config.examples, config.width)).sum().backward()
    for layer in normalised_layers(model):
        v = layer.parametrizations.weight.original1
        before, slope = v.detach().norm(dim=1), v.grad.norm(dim=1)
        worst.record("cosine", ((v.detach() * v.grad).sum(1) / (before * slope)).abs())
        after = (v.detach() - config.lr * v.grad).norm(dim=1)
        worst.record("growth_error", (after.square() / (before.square() + (config.lr * slope).square()) - 1).abs())
    if arm == "one_pass":
        in_one_pass(model, x)
    else:
        data_dependent_init(model, x, std=None)
    for layer in (m for m in model if isinstance(m, nn.Linear)):
        x = layer(x if layer is model[0] else x.tanh())
        variance, mean = torch.var_mean(x, 0, correction=0)
        worst.record("init_error", torch.maximum(mean.abs(), (variance - 1).abs()))
    return worst


# --- classifiers -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ConvPool(tasks.Pictures):
    width: int
    init: int  # images of the initialization
    noise: float  # deviation of the noise on the images of training


class Averaged(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


def network(arm: str, config: ConvPool) -> nn.Sequential:
    """Two stages of 3 x 3 convolutions with pooling, a 1 x 1 convolution, the average, and a linear layer."""
    n = config.width // 2 if arm == "narrow" else config.width
    norm = BatchNorm if arm == "bn" else MeanOnlyBatchNorm if "mobn" in arm else None
    shapes = [(config.channels, n, 3), (n, n, 3), None, (n, 2 * n, 3), (2 * n, 2 * n, 3), None, (2 * n, 2 * n, 1)]
    layers: list[nn.Module] = []
    for shape in shapes:
        if shape is None:
            layers.append(nn.MaxPool2d(2))
            continue
        layers.append(nn.Conv2d(*shape, padding=shape[2] // 2, bias=norm is None))
        layers += [norm(shape[1])] if norm else []
        layers.append(nn.LeakyReLU(0.1))
    layers += [Averaged(), nn.Linear(2 * n, 10, bias=norm is None), *([norm(10)] if norm else [])]
    return nn.Sequential(*layers)


def halved(step: int, steps: int) -> float:
    """The authors' schedule: constant for half of the run, then linear to 0."""
    return min(1.0, 2 * (1 - step / steps))


def convpool(arm: str, seed: int, config: ConvPool, device: torch.device) -> tasks.Measures:
    """Test error at the last step of a small ConvPool network, and its training loss over the first half of the run."""
    if arm == "wn_mobn_more_images":
        config = replace(config, examples=4 * config.examples)
    train, test = config.load(device)
    with forked_rng(torch.device("cpu")):
        torch.manual_seed(seed_of("weight_norm construction", seed))
        model = network(arm, config)
    for layer in model:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            weight_norm(layer)
    model.to(device)
    data_dependent_init(model, train[0][: config.init], generator=generator("weight_norm v", seed))
    if arm in ("plain", "plain_mobn", "bn"):
        for layer in normalised_layers(model):
            parametrize.remove_parametrizations(layer, "weight")

    def noisy(x: Tensor, source: torch.Generator) -> Tensor:
        return x + config.noise * torch.randn(x.shape, generator=source).to(x)

    measures = tasks.classify(
        model,
        "weight_norm batches",
        seed,
        config,
        device,
        data=(train, test),
        score="error",
        optimizer="adam",
        schedule=halved,
        augment=noisy,
    )
    curve = measures["learning_curve"]
    return {**measures, "early_loss": fmean(curve[: (len(curve) + 1) // 2])}
