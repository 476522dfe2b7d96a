"""LayerNorm and the pointwise layers put in its place, DyT (arXiv:2503.10622) and DyISRU (arXiv:2503.21708).

scatter      every (input, output) of every LayerNorm of a network, and the DyT and the DyISRU nearest to them
norm_speed   one layer alone, forward and backward, all layers interleaved

A fit has two numbers per layer, both by least squares over all tokens and channels: the scale k of the shape and its
amplitude a.  DyT is a tanh(k x), k = alpha; DyISRU is a k x / sqrt(1 + (k x)^2), k = 1 / sqrt(b).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from statistics import median

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from repro import trivial
from repro.models.slots import identity
from repro.models.vit import scaled_to_width, vit
from repro.tasks import PICTURES, Measures, Pictures, Timed, learning, timed, trained
from repro.train import evaluate_classifier, generator

SHAPES: dict[str, Callable[[Tensor], Tensor]] = {"dyt": torch.tanh, "dyisru": lambda u: u * (1 + u * u).rsqrt()}
EDGES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.97, 0.99, 0.997, 0.999)  # of bins


@dataclass(frozen=True, kw_only=True)
class Scatter(Pictures):
    """The accuracy is that of the last `test` test images; the activations of the first `images` are fitted."""

    dim: int
    depth: int
    patch: int
    images: int
    tail: float  # share of the inputs, largest |x| first, that `tail_ratio` is taken over
    test: int = 2000
    scaled: bool = False  # initial weights scaled to the width


def inputs(arm: str, seed: int, config: Scatter, device: torch.device) -> tuple[list[Tensor], Measures]:
    """Per LayerNorm its inputs (tokens, channels) on held-out images; the accuracy, and the learning curve."""
    source, heads = generator("pointwise scatter", seed), config.dim // 16
    if arm == "synthetic":  # one channel of each vector, with a size between 10^0.5 and 10^2.5, among N(0, 1)
        tokens, draws = config.images * (config.side // config.patch) ** 2, []
        for _ in range(2 * config.depth + 1):
            x = torch.randn(tokens, config.dim, generator=source)
            x[:, 0] *= 10 ** (0.5 + 2 * torch.rand(tokens, generator=source)) / x[:, 0].abs()
            draws.append(x.to(device))
        return draws, {}
    data, beside = PICTURES[config.data](device), {}
    test = data.normalised(data.test_x[-config.test :]), data.test_y[-config.test :]
    shape = {"heads": heads, "classes": 10, "channels": config.channels, "generator": source}
    init = scaled_to_width if config.scaled else None
    model = vit(config.side, config.patch, config.dim, config.depth, init=init, **shape).to(device)
    if arm == "trained":
        train = data.normalised(data.train_x[: config.examples]), data.train_y[: config.examples]
        how = {"weight_decay": 0.05, "schedule": "one_cycle", "clip": 1.0}
        beside = learning(trained(model, train, "pointwise batches", seed, config, **how))
        beside |= trivial.classes(train, test, config.trivial)
    accuracy = evaluate_classifier(model, *test)["accuracy"]
    seen: list[Tensor] = []
    norms = [module for module in model.modules() if isinstance(module, nn.LayerNorm)]
    hooks = [norm.register_forward_pre_hook(lambda _, args: seen.append(args[0].flatten(0, -2))) for norm in norms]
    with torch.no_grad():
        model.eval()(data.normalised(data.test_x[: config.images]))
    for hook in hooks:
        hook.remove()
    return seen, {"accuracy": accuracy, **beside}


def least_squares(shape: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> tuple[float, float]:
    """k and a at which sum (y - a shape(k x))^2 is least: k from a grid that is refined thrice, a by projection."""

    def amplitude(k: float) -> tuple[Tensor, Tensor]:
        s = shape(k * x)
        a = (s @ y) / (s @ s)
        return (y - a * s).square().sum(), a

    low, high = math.log(1e-3 / float(x.std())), math.log(1e2 / float(x.std()))
    for points in (24, 9, 9, 9):
        grid = torch.linspace(low, high, points, dtype=torch.float64).tolist()
        best = min(grid, key=lambda log_k: float(amplitude(math.exp(log_k))[0]))
        low, high = best - (grid[1] - grid[0]), best + (grid[1] - grid[0])
    return math.exp(best), float(amplitude(math.exp(best))[1])


def scatter(arm: str, seed: int, config: Scatter, device: torch.device) -> Measures:
    """Fits of every norm, those of the last one inside the blocks also as binned curves."""
    norms, found = inputs(arm, seed, config, device)
    fits: list[dict[str, tuple[float, float]]] = []
    rmse: dict[str, list[float]] = {name: [] for name in (*SHAPES, "line")}
    tail: dict[str, list[float]] = {name: [] for name in (*SHAPES, "line")}
    curves: dict[str, list[float]] = {}
    for i, wide in enumerate(norms):
        wide = wide.double()
        x, y = wide.flatten(), F.layer_norm(wide, wide.shape[-1:]).flatten()
        outer = x.abs().topk(max(1, round(config.tail * len(x)))).indices
        fits.append({name: least_squares(shape, x, y) for name, shape in SHAPES.items()})
        outputs = {name: a * SHAPES[name](k * x) for name, (k, a) in fits[-1].items()}
        outputs["line"] = (x @ y) / (x @ x) * x
        for name, output in outputs.items():
            rmse[name].append(float((output - y).square().mean().sqrt()))
            tail[name].append(float((output - y)[outer].square().mean().sqrt()))
        if i == len(norms) - 2:
            order, cuts = x.argsort(), [round(edge * len(x)) for edge in EDGES]
            drawn = {"input": x, "output_layernorm": y, **{f"output_{name}": outputs[name] for name in SHAPES}}
            curves = {name: [float(b.mean()) for b in v[order].tensor_split(cuts)] for name, v in drawn.items()}

    def ratios(of: dict[str, list[float]], over: str, under: str) -> list[float]:
        return [a / b for a, b in zip(of[over], of[under], strict=True)]

    bend, outside = ratios(rmse, "dyt", "line"), ratios(tail, "dyisru", "dyt")
    return {
        "rmse_ratio": median(ratios(rmse, "dyisru", "dyt")),
        "tail_ratio": median(outside),
        "line_ratio": median(bend),
        "line_ratio_least": min(bend),
        "layer": list(range(len(norms))),
        "layer_line_ratio": bend,
        "layer_tail_ratio": outside,
        "layer_rmse_dyt": rmse["dyt"],
        "layer_rmse_dyisru": rmse["dyisru"],
        "alpha": [each["dyt"][0] for each in fits],
        "b": [each["dyisru"][0] ** -2 for each in fits],
        **curves,
        **found,
    }


LAYERS = {
    "layernorm": nn.LayerNorm,
    "rmsnorm": nn.RMSNorm,
    "rmsnorm_composed": "repro.papers.rmsnorm:RMSNorm",
    "dyt": "repro.papers.dyt:DyT",
    "eln": "repro.papers.eln:ELN",
    "identity": identity,
}


@dataclass(frozen=True, kw_only=True)
class NormSpeed(Timed):
    rows: int
    width: int
    dtype: str


def passes(arm: str, seed: int, config: NormSpeed, device: torch.device) -> Callable[[], object]:
    """Forward and backward pass of a layer."""
    shape, source = (config.rows, config.width), generator("pointwise norm_speed", seed)
    dtype, make = getattr(torch, config.dtype), LAYERS[arm]
    x, dy = (torch.randn(shape, generator=source).to(device, dtype) for _ in range(2))
    x.requires_grad_()
    if isinstance(make, str):
        module, name = make.split(":")
        make = getattr(import_module(module), name)
    layer = make(config.width).to(device, dtype)
    return lambda: torch.autograd.grad(layer(x), [x, *layer.parameters()], dy)


def least_traffic(config: NormSpeed) -> dict[str, int]:
    """At least the input is read twice, dy once, and y and dx are written."""
    size = 5 * config.rows * config.width * getattr(torch, config.dtype).itemsize
    return {arm: size for arm in LAYERS if arm != "identity"}


norm_speed_group = timed(passes, reference="layernorm", bytes_moved=least_traffic)
