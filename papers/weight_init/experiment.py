"""What papers/weight_init measures: a linearised layer, two inputs on their way through sigmoid layers, trained
perceptrons, and the convolutions of Figure 2 on CIFAR-10.

Arms of a seed start from the same normal numbers; they differ in the scale.
"""

import math
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import nn

from repro import trivial
from repro.experiments.cifar import Cifar
from repro.experiments.plain_init import Plain, rmsprop, train_plain
from repro.models.modes import measured
from repro.models.slots import Init, scaled_gaussian
from repro.papers.he_init import he_normal_
from repro.papers.weight_init.method import at_zero, kumar_gain, kumar_init_, kumar_normal_
from repro.tasks import Examples, Measures, learning, trained
from repro.train import Diverged, evaluate_classifier, generator

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


# --- cifar: Figures 2 and 3 -------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Convolutions(Cifar):
    """widths: channels of the three stages, each of three convolutions and a max-pool."""

    widths: tuple[int, ...]
    crop: int = 0
    flip: bool = False

    def load(self, device: torch.device) -> tuple[Examples, Examples]:
        """The pictures with every channel from 0 to 1, as the author's script has them."""
        (x, y), (test_x, test_y) = super().load(device)
        low, high = x.amin((0, 2, 3), keepdim=True), x.amax((0, 2, 3), keepdim=True)
        return ((x - low) / (high - low), y), ((test_x - low) / (high - low), test_y)


def draw_(arm: str, w: torch.Tensor, source: torch.Generator) -> None:
    """Draw a convolution; those of the script and its Xavier are cut at two deviations, as Keras' normal of 2017."""
    fan_in, fan_out = w[0].numel(), w[:, 0].numel()
    cut = {"script": 3.6 / fan_in, "xavier": 2 / (fan_in + fan_out)}
    if arm in cut:
        v = math.sqrt(cut[arm])
        nn.init.trunc_normal_(w, 0.0, v, -2 * v, 2 * v, generator=source)
    else:
        {"kumar": kumar_normal_, "relu": he_normal_}[arm](w, generator=source)


def figure_2(arm: str, config: Convolutions, source: torch.Generator) -> nn.Sequential:
    """Nine convolutions under a sigmoid (under ReLU in the arm `relu`) and an output layer drawn as Keras does."""
    layers, c = [], 3
    for width in config.widths:
        for _ in range(3):
            conv = nn.Conv2d(c, width, 3, padding=1)
            draw_(arm, conv.weight, source)
            layers += [conv, nn.ReLU() if arm == "relu" else nn.Sigmoid()]
            c = width
        layers.append(nn.MaxPool2d(2))
    head = nn.Linear(16 * c, config.classes)
    nn.init.xavier_uniform_(head.weight, generator=source)
    net = nn.Sequential(*layers, nn.Flatten(), head)
    for layer in net.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            nn.init.zeros_(layer.bias)
    return net


def top_5(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    """Share of images whose class is among the five with the largest logits; 0.5 for a constant answer."""

    def hits(model: nn.Module) -> float:
        parts = zip(x.split(2000), y.split(2000), strict=True)
        return sum(float((model(a).topk(5).indices == b[:, None]).sum()) for a, b in parts)

    return measured(hits, model) / len(y)


def cifar(arm: str, seed: int, config: Convolutions, device: torch.device) -> Measures:
    """Top-5 accuracy of the network of Figure 2 on test images, after every tenth of the run."""
    train, test = config.load(device)
    model = figure_2(arm, config, generator("weight_init cifar", seed)).to(device)
    history = trained(
        model,
        train,
        "weight_init cifar",
        seed,
        config,
        optimizer=rmsprop,
        schedule=lambda step, steps: 1 / (1 + 1e-6 * step),
        evaluate=lambda model: {"top_5": top_5(model, *test)},
        eval_every=max(config.steps // 10, 1),
    )
    return {
        "top_5": history.curves["top_5"][-1],
        "accuracy": evaluate_classifier(model, *test)["accuracy"],
        "top_5_curve": history.curves["top_5"],
        "curve_steps": [float(step) for step in history.eval_steps],
        **learning(history),
        **trivial.classes(train, test, config.trivial),
    }
