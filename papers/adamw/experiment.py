"""What papers/adamw measures: test errors of networks that overfit, best decays at several rates, and exact limits."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import fmean

import torch
from torch import Tensor, nn

from repro import tasks
from repro.errors import Diverged
from repro.models.mlp import MLP
from repro.papers.adam import Adam
from repro.papers.adamw import SGDW, AdamW
from repro.train import cosine, draws, evaluate_classifier, generator

Make = Callable[[list[dict], float], torch.optim.Optimizer]

# --- arms -------------------------------------------------------------------------------------------------------------


class AdamL2(Adam):
    """Adam with L2 regularization: the gradient of decay / 2 |theta|^2 goes through both moments."""

    def __init__(self, params: list, lr: float, decay: float):
        super().__init__(params, lr)
        self.decay = decay

    def update(self, p: Tensor, g: Tensor, state: dict, group: dict) -> None:
        super().update(p, g.add(p, alpha=self.decay), state, group)


class Preconditioned(Adam):
    """Decay that passes by the moments and is still divided by sqrt(v^) + eps: decoupled by half."""

    def __init__(self, params: list, lr: float, decay: float):
        super().__init__(params, lr)
        self.decay = decay

    def update(self, p: Tensor, g: Tensor, state: dict, group: dict) -> None:
        old = p.clone()
        super().update(p, g, state, group)
        below = (state["exp_avg_sq"] / (1 - group["betas"][1] ** state["step"])).sqrt_().add_(1e-8)
        p.sub_(group["lr"] * self.decay * (old / below))


USUAL = {"adamw": 1e-3, "adam_l2": 4e-3, "preconditioned": 1e-5}  # decays


def optimizer_of(arm: str, strength: float) -> Make:
    """optimizer(groups, lr) of an arm whose decay is `strength` times its usual one."""
    kind = {"adamw_torch": "adamw", "more_images": "adamw"}.get(arm, arm)
    decay = strength * USUAL[kind]

    def make(groups: list[dict], lr: float) -> torch.optim.Optimizer:
        if kind == "adamw":
            return AdamW(groups, lr=lr, weight_decay=decay)
        return {"adam_l2": AdamL2, "preconditioned": Preconditioned}[kind](groups, lr, decay)

    make.elementwise = True
    return make


# --- networks that overfit --------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Decayed(tasks.Pictures):
    """strength: multiple of the arm's usual decay; noise: share of the training labels that are drawn anew."""

    width: int
    noise: float
    strength: float
    lr: float
    batch: int = 128
    pool: int = 2


def networks(seeds: list[int], config: Decayed) -> list[nn.Module]:
    """A perceptron for each seed."""
    inputs, w = config.channels * config.side**2, config.width
    return [MLP([inputs, w, w, 10], generator=generator("adamw", seed)) for seed in seeds]


def error_batch(arm: str, seeds: list[int], config: Decayed, device: torch.device) -> list[tasks.Measures | Diverged]:
    """Test error and loss; `more_images` has twice the training images in as many steps."""
    config = replace(config, examples=config.examples * (2 if arm == "more_images" else 1))

    def measure(model: nn.Module, history: object) -> tasks.Measures:
        scores = evaluate_classifier(model, *test)
        return {"error": scores["error"], "nats": scores["loss"]}

    (x, y), test = config.load(device)
    source = generator("adamw noise")
    wrong, drawn = torch.rand(len(y), generator=source) < config.noise, torch.randint(10, (len(y),), generator=source)
    train = (x, torch.where(wrong.to(device), drawn.to(device), y))
    return tasks.classify_batch(
        networks(seeds, config),
        "adamw batches",
        seeds,
        config,
        device,
        data=(train, test),
        score="error",
        measure=measure,
        optimizer=optimizer_of(arm, config.strength),
        schedule=cosine(),
    )


def error(arm: str, seed: int, config: Decayed, device: torch.device) -> tasks.Measures:
    """`error_batch` of one seed."""
    return one(error_batch(arm, [seed], config, device))


def one(results: list) -> tasks.Measures:
    """The only result, or the error that it is."""
    if isinstance(results[0], Diverged):
        raise results[0]
    return results[0]


# --- the best decay at several rates (Figure 1 and 2) -----------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Grid(Decayed):
    """rates and strengths: the grid that one trial trains; they take the places of lr and strength."""

    rates: tuple[float, ...]
    strengths: tuple[float, ...]
    lr: float = 1.0
    strength: float = 1.0


def lowest(x: list[float], y: list[float]) -> float:
    """Where the parabola through the least y and its neighbours is least; an end of x where y is least there."""
    i = min(range(len(y)), key=y.__getitem__)
    if i in (0, len(y) - 1):
        return x[i]
    left, right = y[i - 1] - y[i], y[i + 1] - y[i]
    return x[i] + (x[i + 1] - x[i]) * 0.5 * (left - right) / (left + right) if left + right else x[i]


def slope(x: list[float], y: list[float]) -> float:
    """Least-squares slope of y on x."""
    mx, my = fmean(x), fmean(y)
    return sum((a - mx) * (b - my) for a, b in zip(x, y, strict=True)) / sum((a - mx) ** 2 for a in x)


def grid_batch(arm: str, seeds: list[int], config: Grid, device: torch.device) -> list[tasks.Measures]:
    """|slope| of the log of the best decay on the log of the rate; `adamw_torch` counts decay in torch's unit."""
    best, least, beside = [[] for _ in seeds], [math.inf] * len(seeds), {}
    for rate in config.rates:
        nats = [[] for _ in seeds]
        for strength in config.strengths:
            cell = replace(config, lr=rate, strength=strength)
            for k, result in enumerate(error_batch(arm, seeds, cell, device)):
                failed = isinstance(result, Diverged)
                nats[k].append(math.log(10) if failed else result["nats"])
                if not failed:
                    least[k] = min(least[k], result["error"])
                    beside = {name: value for name, value in result.items() if name.startswith("trivial_")}
        logs = [math.log(s) - (math.log(rate) if arm == "adamw_torch" else 0.0) for s in config.strengths]
        for k in range(len(seeds)):
            best[k].append(lowest(logs, nats[k]))
    axis = [math.log(rate) for rate in config.rates]
    return [
        {"coupling": abs(slope(axis, found)), "slope": slope(axis, found), "best_decays": found, "error": e, **beside}
        for found, e in zip(best, least, strict=True)
    ]


def grid(arm: str, seed: int, config: Grid, device: torch.device) -> tasks.Measures:
    """`grid_batch` of one seed."""
    return grid_batch(arm, [seed], config, device)[0]


# --- exact limits, in float64 (Propositions 1 to 3) -------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Limits:
    width: int
    steps: int


def walk(make: Callable[[list[Tensor]], torch.optim.Optimizer], gradients: Tensor, l2: Tensor | float = 0.0) -> Tensor:
    """Where a parameter that starts at 1 stands after each gradient, to which l2 theta is added: (steps, *shape)."""
    p = nn.Parameter(torch.ones_like(gradients[0]))
    chosen, path = make([p]), []
    for g in gradients:
        p.grad = g + l2 * p.detach()
        chosen.step()
        path.append(p.detach().clone())
    return torch.stack(path)


def limits(arm: str, seed: int, config: Limits, device: torch.device) -> tasks.Measures:
    """Distances from L2 for SGD, from scale-adjusted L2 for a fixed preconditioner, and from torch's AdamW."""
    draw, lr, decay = draws(device, "adamw limits", seed), 0.05, 0.01
    g = draw(config.steps, config.width)
    scale = draw(config.width).exp()  # a fixed preconditioner diag(scale)^-1 is SGD on the gradients g / scale
    momentum = 0.9 if arm == "momentum" else 0.0
    coefficient = decay if arm == "same_coefficient" else decay / lr
    adjusted = torch.ones_like(scale) if arm == "plain_l2" else scale
    sgdw = walk(lambda p: SGDW(p, lr, momentum, decay), g)
    sgd = walk(lambda p: torch.optim.SGD(p, lr, momentum), g, coefficient)
    fixed = walk(lambda p: SGDW(p, lr, 0.0, decay), g / scale)
    scaled = walk(lambda p: torch.optim.SGD(p, lr), g / scale, decay / lr * adjusted / scale)
    unit = "torch" if arm == "other_unit" else "paper"
    ours = walk(lambda p: AdamW(p, lr, weight_decay=decay, parametrization=unit), g)
    theirs = walk(lambda p: torch.optim.AdamW(p, lr, weight_decay=decay / lr), g)
    return {
        "sgd_error": tasks.relative(sgdw, sgd),
        "preconditioned_error": tasks.relative(fixed, scaled),
        "torch_error": tasks.relative(ours, theirs),
    }
