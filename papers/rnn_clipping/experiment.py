"""What papers/rnn_clipping measures: the temporal order task, the wall of gradients, and when gradients vanish."""

import copy
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import grad, vmap

from repro.papers.rnn_clipping.method import TemporalRNN, clip_norm_, regularised_backward
from repro.tasks import Measures
from repro.train import Diverged, generator

# --- the temporal order task ------------------------------------------------------------------------------------------

SYMBOLS, CLASSES, SOLVED = 6, 4, 0.01
BAG = 0.25  # the error of who sees which symbols came and not in which order


@dataclass(frozen=True, kw_only=True)
class TemporalOrder:
    """Sequences of `length` symbols;  `tests` of them for each evaluation, every `every` of `updates`."""

    length: int
    hidden: int
    batch: int
    lr: float
    updates: int
    every: int
    tests: int
    threshold: float = 1.0
    weight: float = 2.0  # of the regulariser


def sequences(length: int, count: int, source: torch.Generator) -> tuple[Tensor, Tensor]:
    """One-hot symbols (T, B, 6) and the class (B,) of the order in which two of A and B came (the authors' code)."""
    tenth, rows = length // 10, torch.arange(count)
    symbols = torch.randint(2, SYMBOLS, (length, count), generator=source)
    first, second = torch.randint(2, (2, count), generator=source)
    symbols[tenth + torch.randint(tenth, (count,), generator=source), rows] = first
    symbols[length // 2 + torch.randint(tenth, (count,), generator=source), rows] = second
    return nn.functional.one_hot(symbols, SYMBOLS).float(), first + 2 * second


def stacked(models: list[TemporalRNN]) -> TemporalRNN:
    """One network whose parameters have an axis of networks in front."""
    whole = copy.deepcopy(models[0])
    for name, _ in models[0].named_parameters():
        setattr(whole, name, nn.Parameter(torch.stack([getattr(model, name).detach() for model in models])))
    return whole


def temporal_order_batch(
    arm: str, seeds: list[int], config: TemporalOrder, device: torch.device
) -> list[Measures | Diverged]:
    """Updates until the test error is below 1 %, or the budget; all seeds in one pass.

    `sgd`; `sgd_c` clips; `sgd_cr` has the regulariser too; `sgd_c_huge` has a threshold that nothing reaches.
    """
    threshold = {"sgd": math.inf, "sgd_c_huge": 1e6}.get(arm, config.threshold)
    weight = config.weight if arm == "sgd_cr" else 0.0
    models = [TemporalRNN(SYMBOLS, config.hidden, CLASSES, generator=generator("rnn_clipping", seed)) for seed in seeds]
    whole, sources = stacked(models).to(device), [generator("rnn_clipping data", seed) for seed in seeds]
    held_out = [sequences(config.length, config.tests, generator("rnn_clipping test", seed)) for seed in seeds]
    test_x, test_y = (
        torch.stack(parts, d).to(device) for d, parts in ((1, [x for x, _ in held_out]), (0, [y for _, y in held_out]))
    )
    solved: dict[int, int] = {}
    diverged: dict[int, int] = {}
    errors: list[list[float]] = [[] for _ in seeds]
    for update in range(1, config.updates + 1):
        batch = [sequences(config.length, config.batch, source) for source in sources]
        whole.zero_grad()
        states = whole.states(torch.stack([x for x, _ in batch], 1).to(device))
        y = torch.stack([y for _, y in batch]).to(device)
        loss = nn.functional.cross_entropy(whole.read(states[-1]).mT, y, reduction="none").mean(-1)
        regularised_backward(loss, states, whole.recurrent, weight)
        with torch.no_grad():
            if threshold < math.inf:
                for k in range(len(seeds)):
                    clip_norm_([p.grad[k] for p in whole.parameters()], threshold)
            for p in whole.parameters():
                p -= config.lr * p.grad
        if update % config.every and update < config.updates:
            continue
        with torch.no_grad():
            error = (whole(test_x).argmax(-1) != test_y).double().mean(-1)
        for k, (e, finite) in enumerate(zip(error.tolist(), loss.isfinite().tolist(), strict=True)):
            if k in solved or k in diverged:
                continue
            errors[k].append(e)
            if not finite:
                diverged[k] = update
            elif e < SOLVED:
                solved[k] = update
        if len(solved) + len(diverged) == len(seeds):
            break
    return [
        Diverged(diverged[k])
        if k in diverged
        else {
            "updates": float(solved.get(k, config.updates)),
            "effort": solved.get(k, config.updates) + config.updates * errors[k][-1],
            "error": errors[k][-1],
            "solved": float(k in solved),
            "bag": BAG,
            "errors": errors[k],
        }
        for k in range(len(seeds))
    ]


# --- the wall of Figure 6 ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Wall:
    steps: int
    points: int


def wall(arm: str, seed: int, config: Wall, device: torch.device) -> Measures:
    """Gradient norms of E = (s(x_T) - 0.7)^2, x_t = w s(x_{t-1}) + b, x_0 = 0.5, at random (w, b), in float64.

    The largest over the median; `short` has two steps.
    """
    draw = torch.rand(2, config.points, generator=generator("rnn_clipping wall", seed), dtype=torch.float64).to(device)
    w, b = 4 + 3 * draw[0], -3.6 + 1.8 * draw[1]

    def cost(theta: Tensor) -> Tensor:
        x = torch.full_like(theta[0], 0.5)
        for _ in range(2 if arm == "short" else config.steps):
            x = theta[0] * torch.sigmoid(x) + theta[1]
        return (torch.sigmoid(x) - 0.7).square()

    norms = vmap(grad(cost))(torch.stack([w, b], 1)).norm(dim=1)
    return {"wall": float(norms.max() / norms.median())}


# --- identities -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Jacobians:
    width: int
    steps: int


def jacobians(arm: str, seed: int, config: Jacobians, device: torch.device) -> Measures:
    """Products of Jacobians diag(s') W^T at the origin, in float64: growth per step against log(radius * g).

    excess: how far a product's norm exceeds (g * largest singular value)^T, in nats a step; at a random state.
    `logistic_as_tanh` takes g = 1 for the logistic function, `radius` the spectral radius of a nilpotent weight in the
    singular value's place.
    """
    source, n, g = generator("rnn_clipping jacobians", seed), config.width, 1.0 if arm == "tanh" else 0.25
    weight = torch.randn(n, n, generator=source, dtype=torch.float64).to(device)
    radius = 0.5 + 5 * float(torch.rand((), generator=source))
    weight *= radius / torch.linalg.eigvals(weight).abs().max()
    believed = 1.0 if arm == "logistic_as_tanh" else g
    product, logs = torch.eye(n, dtype=torch.float64, device=device), [0.0]
    for _ in range(config.steps):
        product = g * weight @ product
        logs.append(logs[-1] + math.log(float(product.norm())))
        product /= product.norm()
    half = config.steps // 2
    growth = (logs[-1] - logs[half]) / (config.steps - half)
    mixer = torch.linalg.qr(torch.randn(n, n, generator=source, dtype=torch.float64))[0].to(device)
    triangular = mixer @ torch.randn(n, n, generator=source, dtype=torch.float64).to(device).triu(1) @ mixer.T
    largest = 1e-6 if arm == "radius" else float(torch.linalg.matrix_norm(triangular, 2))
    product, worst = torch.eye(n, dtype=torch.float64, device=device), -math.inf
    for step in range(1, 5):
        slopes = g * torch.rand(n, generator=source, dtype=torch.float64).to(device)
        product = slopes[:, None] * triangular @ product
        worst = max(worst, math.log(float(torch.linalg.matrix_norm(product, 2))) / step - math.log(g * largest))
    return {"growth_error": abs(growth - math.log(radius * believed)), "excess": max(worst, 0.0)}
