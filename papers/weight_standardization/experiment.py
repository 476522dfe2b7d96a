"""What papers/weight_standardization measures: identities of WS, accumulation, distance from elimination singularities.

`identities` and `accumulation` are exact statements in float64.  `initial` looks at the channels of an untrained
network, `micro_batch` trains with normalisation over one image, or over all.
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from repro import tasks
from repro.data import fashion_mnist
from repro.models.convnet import ConvNet, cifar_resnet
from repro.models.norms import GhostBatchNorm
from repro.papers.weight_standardization.method import BatchChannelNorm, WSConv2d, standardize
from repro.train import cosine, cross_entropy, draws, evaluate_classifier, generator, measured

# --- identities ------------------------------------------------------------------------------------------------------

SHAPES = ((4, 3, 3), (16, 16, 1), (32, 16, 3), (64, 64, 3))  # outputs, inputs, kernel: filters of 16 to 576 weights


def wrong(weight: Tensor, eps: float, *, fault: str) -> Tensor:
    """Statistics left out of the gradient, taken per input channel, or of the deviation alone: known mistakes."""
    axes = (0, 2, 3) if fault == "input_axis" else (1, 2, 3)
    variance, mean = torch.var_mean(weight, axes, correction=0, keepdim=True)
    if fault == "detached":
        variance, mean = variance.detach(), mean.detach()
    return (weight - (0 if fault == "uncentred" else mean)) / (variance + eps).sqrt()


STANDARDIZE = {
    "ws": standardize,
    **{fault: partial(wrong, fault=fault) for fault in ("detached", "input_axis", "uncentred")},
}


@dataclass(frozen=True, kw_only=True)
class Identities:
    draws: int
    eps: float


def identities(arm: str, seed: int, config: Identities, device: torch.device) -> dict[str, float]:
    """Random convolutions under a random loss, filter by filter: what WS forgets, and the gradient that reaches W."""
    draw, worst = draws(device, "weight_standardization identities", seed), tasks.Worst()

    def keep(name: str, errors: Tensor) -> None:
        worst.record(name, errors.abs())

    ws = partial(STANDARDIZE[arm], eps=config.eps)
    for outputs, inputs, kernel in SHAPES * config.draws:
        n = inputs * kernel**2
        w = (draw(outputs, inputs, kernel, kernel) / n**0.5).requires_grad_()
        scale, shift = 2 + 8 * draw(outputs, 1, 1, 1).sigmoid(), draw(outputs, 1, 1, 1)
        w_hat = ws(w)
        worst.relative("invariance_error", ws(scale * w + shift), w_hat)
        y = F.conv2d(draw(2, inputs, 6, 6), w_hat, padding="same")
        below, above = torch.autograd.grad((draw(*y.shape) * y.sin()).sum(), (w, w_hat))
        g, above, v, v_hat = (t.detach().flatten(1) for t in (below, above, w, w_hat))
        variance, mean = torch.var_mean(v, 1, correction=0, keepdim=True)
        root, length = (variance[:, 0] + config.eps).sqrt(), g.norm(dim=1)
        keep("mean_error", g.sum(1) / (n**0.5 * length))
        keep("orthogonality_error", (g * (v - mean)).sum(1) / (length * (v - mean).norm(dim=1)))
        wanted = above.square().sum(1) - above.sum(1).square() / n - (above * v_hat).sum(1).square() / n
        keep("norm_error", (root * length).square() / wanted - 1)
        keep("norm_share", root * length / above.norm(dim=1))
    return worst


# --- networks --------------------------------------------------------------------------------------------------------


class UnequalConv2d(nn.Conv2d):
    """Weights centred over the outputs, each filter divided by a number from 1/3 to 3, both outside the gradient."""

    def forward(self, x: Tensor) -> Tensor:
        divisor = 3.0 ** torch.arange(self.out_channels, device=x.device).sin().view(-1, 1, 1, 1)
        return self._conv_forward(x, (self.weight - self.weight.detach().mean(0)) / divisor, self.bias)


@dataclass(frozen=True, kw_only=True)
class Network:
    depth: int
    width: int
    groups: int


def network(arm: str, config: Network, source: torch.Generator, size: int = 1, channels: int = 1) -> ConvNet:
    """A CIFAR ResNet with the norm and the convolutions of an arm; `size`: images per worker."""
    norm = {
        "gn": lambda n: nn.GroupNorm(config.groups, n),
        "bn": nn.BatchNorm2d,
        "small": partial(GhostBatchNorm, size=size),
        "bcn": partial(BatchChannelNorm, num_groups=config.groups),
        "est": partial(BatchChannelNorm, num_groups=config.groups, estimate=True),
    }[arm.split("_")[0]]
    conv = WSConv2d if arm.endswith("_ws") else UnequalConv2d if arm.endswith("_unequal") else nn.Conv2d
    options = {"width": config.width, "channels": channels, "shortcut": "project", "generator": source}
    return cifar_resnet(config.depth, norm=norm, conv=conv, **options)


@dataclass(frozen=True, kw_only=True)
class Accumulation(Network):
    batch: int
    micro: int


def accumulation(arm: str, seed: int, config: Accumulation, device: torch.device) -> dict[str, float]:
    """The gradient of a batch against the mean of those of its micro-batches, in float64."""
    source = generator("weight_standardization accumulation", seed)
    model = network(arm, config, source).to(device, torch.float64)
    x = torch.randn(config.batch, 1, 8, 8, generator=source, dtype=torch.float64).to(device)
    y = torch.randint(10, (config.batch,), generator=source).to(device)

    def gradient(x: Tensor, y: Tensor) -> Tensor:
        return torch.cat(
            [g.flatten() for g in torch.autograd.grad(cross_entropy(model(x), y), list(model.parameters()))]
        )

    whole = gradient(x, y)
    parts = [gradient(a, b) for a, b in zip(x.split(config.micro), y.split(config.micro), strict=True)]
    return {"accumulation_error": float((torch.stack(parts).mean(0) - whole).norm() / whole.norm())}


# --- elimination singularities ---------------------------------------------------------------------------------------


@torch.no_grad()
def singularities(model: ConvNet, x: Tensor) -> dict[str, float | list]:
    """Norms: how far channels are from mean 0 and deviation 1 before gain and bias.  ReLUs: channels that are off."""
    distances, off = [], []

    def record(module: nn.Module, args: tuple, y: Tensor) -> None:
        if isinstance(module, nn.BatchNorm2d | nn.GroupNorm | BatchChannelNorm):
            gain, bias = (
                t.view(-1, 1).repeat(1, y.shape[1] // t.numel()).view(1, -1, 1, 1) for t in (module.weight, module.bias)
            )
            variance, mean = torch.var_mean((y - bias) / gain, (0, 2, 3), correction=0)
            distances.append((mean.square() + (variance.sqrt() - 1).square()).sqrt().mean())
        elif isinstance(module, nn.ReLU):
            off.append(((args[0] > 0).float().mean((0, 2, 3)) < 0.01).float().mean())

    with nn.modules.module.register_module_forward_hook(record):
        model(x)
    by_norm = torch.stack(distances)
    return {"distance": float(by_norm.mean()), "off": float(torch.stack(off).mean()), "distances": by_norm.tolist()}


@dataclass(frozen=True, kw_only=True)
class Initial(Network):
    pool: int
    test: int


def initial(arm: str, seed: int, config: Initial, device: torch.device) -> dict[str, float | list]:
    """Before training, with batch statistics where the norm has them."""
    model = network(arm, config, generator("weight_standardization initial", seed)).to(device)
    return singularities(model, fashion_mnist.load(device).pooled("test", config.test, config.pool)[0])


@dataclass(frozen=True, kw_only=True)
class MicroBatch(tasks.Pictures, Network):
    micro: int
    warmup: float = 0.0  # share of the steps


def micro_batch(arm: str, seed: int, config: MicroBatch, device: torch.device) -> tasks.Measures:
    """SGD with the same batches in every arm: what differs is over how many images a norm takes its statistics."""
    source, (train, (x, y)) = generator("weight_standardization micro_batch", seed), config.load(device)
    model = network(arm, config, source, config.micro, config.channels)
    scores = tasks.classify(
        model,
        "weight_standardization batches",
        seed,
        config,
        device,
        data=(train, (x, y)),
        optimizer="momentum",
        schedule=cosine(config.warmup),
        weight_decay=1e-4,
    )
    score = evaluate_classifier(model, x, y)
    return {**scores, **score, **measured(lambda m: singularities(m, x[:1000]), model)}
