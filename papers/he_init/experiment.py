"""What papers/he_init measures: second moments through 30 layers, gradients of VGG's model B, and trained perceptrons.

Arms of a seed start from the same normal numbers; they differ in the scale.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from repro.experiments.plain_init import Plain, train_plain
from repro.models.slots import Init, scaled_gaussian
from repro.papers.he_init.method import he_gain, he_init_, he_normal_
from repro.tasks import Measures
from repro.train import Diverged, generator

SLOPE = 0.25  # of PReLU at the start
XAVIER = scaled_gaussian(1.0)  # N(0, 1 / n), the forward form with which the paper compares
SLOPE_HALF = scaled_gaussian(he_gain(0.5))  # 1.6 / n: the rule of another rectifier
INITS: dict[str, Init] = {"he": he_init_, "xavier": XAVIER, "slope_half": SLOPE_HALF}


# --- signals: Eq. 8 and 15 --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Signals:
    width: int
    depth: int
    draws: int
    inputs: int  # Gaussian inputs of each draw


# The slope of the network, and n Var[w]; `he_gain_of_prelu` has a ReLU, `relu_gain` a PReLU.
SIGNALS = {
    "he": (0.0, he_gain() ** 2),
    "xavier": (0.0, 1.0),
    "prelu": (SLOPE, he_gain(SLOPE) ** 2),
    "torch_default": (0.0, 1 / 3),  # of nn.Linear: U(-b, b) with b = 1 / sqrt(n)
    "he_gain_of_prelu": (0.0, he_gain(SLOPE) ** 2),
    "relu_gain": (SLOPE, he_gain() ** 2),
    "linear": (1.0, 1.0),
}


def signals(arm: str, seed: int, config: Signals, device: torch.device) -> Measures:
    """Change per layer of log2 E[y^2], the mean over draws and inputs, by least squares from layer 2 on."""
    (slope, variance), source, n = SIGNALS[arm], generator("he_init signals", seed), config.width
    x = torch.randn(config.draws, config.inputs, n, generator=source).to(device)
    log2, w = [], torch.empty(config.draws, n, n)
    for _ in range(config.depth):
        for each in w:
            he_normal_(each, generator=source)
        y = x @ w.to(device).mT * math.sqrt(variance / 2)
        log2.append(y.double().square().mean(2).log2().mean().item())
        x = F.leaky_relu(y, slope)
    curve = torch.tensor(log2[1:], dtype=torch.float64)
    steps = torch.arange(len(curve)) - (len(curve) - 1) / 2
    fitted = float((steps * curve).sum() / steps.square().sum())
    return {"log2_slope": fitted, "log2_moment": log2, "layer": [float(i + 1) for i in range(config.depth)]}


# --- vgg: "Discussions", the gradient under a constant deviation of 0.01 ----------------------------------------------

PRINTED = 1.7e4


@dataclass(frozen=True)
class Vgg:
    filters: tuple[int, ...]  # d of every 3 x 3 convolution; a pooling layer after every second of the first eight
    size: int  # pixels along an edge
    examples: int
    std: float


def gradient_std(weights: list[Tensor], x: Tensor, upstream: Tensor) -> float:
    """Deviation of the gradient at the response of the first convolution, which is the input of the second one."""
    first = F.conv2d(x, weights[0], padding=1).detach().requires_grad_()
    y = first
    for i, weight in enumerate(weights[1:], 2):
        y = F.conv2d(y.relu(), weight, padding=1)
        if i % 2 == 0 and i < 10:
            y = F.max_pool2d(y, 2)
    return float(torch.autograd.grad(y, first, upstream)[0].std())


def vgg(arm: str, seed: int, config: Vgg, device: torch.device) -> dict[str, float]:
    """How much smaller the gradient at conv1 is with one deviation for all layers than with the derived ones.

    A rectifier network is positively homogeneous: the ratio is the product of derived over constant deviations.
    """
    source, weights, product = generator("he_init vgg", seed), [], 1.0
    for i, (c, d) in enumerate(zip((3, *config.filters), config.filters, strict=False)):
        weight = torch.empty(d, c, 3, 3, dtype=torch.float64)
        weights.append(he_normal_(weight, mode=arm, generator=source).to(device))
        product *= 1.0 if i == 0 else math.sqrt(2 / (9 * d)) / config.std  # Eq. 14
    x = torch.randn(config.examples, 3, config.size, config.size, generator=source, dtype=torch.float64).to(device)
    shape = (config.examples, config.filters[-1], config.size // 16, config.size // 16)
    upstream = torch.randn(shape, generator=source, dtype=torch.float64).to(device)
    fans = [w[0].numel() if arm == "fan_in" else 9 * len(w) for w in weights]
    constant = [weight * config.std / math.sqrt(2 / fan) for weight, fan in zip(weights, fans, strict=True)]
    ratio = gradient_std(weights, x, upstream) / gradient_std(constant, x, upstream)
    return {"ratio": ratio, "product_error": abs(ratio / product - 1), "printed_error": abs(ratio / PRINTED - 1)}


# --- trained: Figures 2 and 3 -----------------------------------------------------------------------------------------


def trained_batch(arm: str, seeds: list[int], config: Plain, device: torch.device) -> list[Measures | Diverged]:
    """Rectifier perceptrons on MNIST under SGD with momentum."""
    return train_plain(nn.ReLU, INITS[arm], seeds, config, device)
