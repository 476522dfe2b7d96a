"""What papers/weight_init measures: a linearised layer, two inputs on their way through sigmoid layers, trained
perceptrons.

Arms of a seed start from the same normal numbers; they differ in the scale.
"""

import math
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import nn

from repro.experiments.plain_init import Plain, train_plain
from repro.models.slots import Init, scaled_gaussian
from repro.papers.weight_init.method import at_zero, kumar_gain, kumar_init_, kumar_normal_
from repro.tasks import Measures
from repro.train import Diverged, generator

SIGMOID = 12.8  # N v^2 of the sigmoid
INITS: dict[str, Init] = {
    "kumar": kumar_init_,
    "xavier": scaled_gaussian(1.0),
    "script": scaled_gaussian(math.sqrt(3.6)),  # the variance that the author's script passes
    "sigmoid_rule": scaled_gaussian(math.sqrt(SIGMOID)),  # under another activation
}


# --- layer: the theorem -----------------------------------------------------------------------------------------------

PRINTED = {"sigmoid": SIGMOID, "tanh": 1.0, "softplus": 4 / (1 + math.log(2) ** 2)}


@dataclass(frozen=True)
class Layer:
    width: int  # N
    outputs: int
    inputs: int


def layer(arm: str, seed: int, config: Layer, device: torch.device) -> dict[str, float]:
    """Variance of g(0) + g'(0) W x for x of mean g(0) and variance 1; `no_mean` leaves the factor 1 + g(0)^2 out."""
    activation = {"no_mean": torch.sigmoid, "softplus": nn.functional.softplus}.get(arm) or getattr(torch, arm)
    source, (value, slope, _) = generator("weight_init layer", seed), at_zero(activation)
    x = value + torch.randn(config.inputs, config.width, generator=source, dtype=torch.float64)
    w = kumar_normal_(torch.empty(config.outputs, config.width, dtype=torch.float64), activation, generator=source)
    gain = kumar_gain(activation)
    if arm == "no_mean":
        w, gain = w * math.sqrt(1 + value**2), gain * math.sqrt(1 + value**2)
    printed = PRINTED[{"no_mean": "sigmoid"}.get(arm, arm)]
    y = slope * x.to(device) @ w.to(device).T
    return {"formula_error": abs(gain**2 / printed - 1), "variance": float(y.square().mean())}


# --- pairs: two inputs in a deep sigmoid network ----------------------------------------------------------------------


@dataclass(frozen=True)
class Pairs:
    width: int
    depth: int
    pairs: int
    first: int  # layers from which to which the contraction is taken;
    last: int  # the moments are those of later layers


def pairs(arm: str, seed: int, config: Pairs, device: torch.device) -> Measures:
    """Factor by which |x - x'|^2 changes per layer; second moment of y, variance of x in later layers."""
    variance = {"kumar": SIGMOID, "script": 3.6, "xavier": 1.0}[arm]
    source, n = generator("weight_init pairs", seed), config.width
    x = torch.randn(2, config.pairs, n, generator=source, dtype=torch.float64).to(device)
    moments, variances, distances = [], [], []
    for _ in range(config.depth):
        w = torch.randn(n, n, generator=source, dtype=torch.float64).to(device) * math.sqrt(variance / n)
        y = x @ w.T
        x = torch.sigmoid(y)
        distances.append(float((x[0] - x[1]).square().mean()))
        moments.append(float(y.square().mean()))
        variances.append(float(x.var()))
    ratio = distances[config.last - 1] / distances[config.first - 1]
    return {
        "contraction": ratio ** (1 / (config.last - config.first)),
        "second_moment": fmean(moments[config.last :]),
        "variance": fmean(variances[config.last :]),
        "distances": distances,
        "layer": [float(i + 1) for i in range(config.depth)],
    }


# --- trained: Figure 3 ------------------------------------------------------------------------------------------------


def sigmoid_batch(arm: str, seeds: list[int], config: Plain, device: torch.device) -> list[Measures | Diverged]:
    """Sigmoid perceptrons on MNIST under RMSprop."""
    return train_plain(nn.Sigmoid, INITS[arm], seeds, config, device)


def tanh_batch(arm: str, seeds: list[int], config: Plain, device: torch.device) -> list[Measures | Diverged]:
    """The same with tanh."""
    return train_plain(nn.Tanh, INITS[arm], seeds, config, device)
