"""What papers/eln measures: the slices of RMSNorm and LayerNorm, the two differential equations, and outliers.

The fits to a trained network and the timings are `repro.experiments.pointwise`, shared with papers/dyt.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from repro.papers.eln.method import dyisru, layernorm_slice, rmsnorm_slice, tanh_slice
from repro.papers.rmsnorm import rms_norm
from repro.train import generator

Rate = Callable[[float, float], float]  # dy/dx at (x, y)


# --- slices: the output of one channel as a function of that channel --------------------------------------------------


@dataclass(frozen=True)
class Slices:
    widths: tuple[int, ...]
    draws: int


def closed_form(arm: str, x: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """RMSNorm's and LayerNorm's output at a channel of value x, as the arm has them."""
    c, mean, variance = others.numel() + 1, others.mean(), others.var(correction=0)
    total = others.square().sum()
    if arm == "exact":
        return rmsnorm_slice(x, others), layernorm_slice(x, others)
    if arm == "tanh":  # with the slopes of the exact slices at their zeros
        return tanh_slice(x, (total / c).sqrt(), c), tanh_slice(x - mean, (c * variance / (c - 1)).sqrt(), c - 1)
    if arm == "wrong_amplitude":  # each with the amplitude of the other
        return dyisru(x, total, c - 1), dyisru(x - mean, c * variance, c)
    raise ValueError(f"slices has no arm {arm!r}")


def slices(arm: str, seed: int, config: Slices, device: torch.device) -> dict[str, float | list[float]]:
    """Largest error over x in +-1000 deviations of the others, and of the bounds further out; one curve for C = 50."""
    source = generator("eln slices", seed)

    def draw(n: int) -> Tensor:
        return torch.randn(n, generator=source, dtype=torch.float64)

    def norms(x: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
        v = torch.cat([x[:, None], others.expand(len(x), -1)], 1)
        return F.rms_norm(v, v.shape[1:], eps=0.0)[:, 0], F.layer_norm(v, v.shape[1:], eps=0.0)[:, 0]

    near, far = (torch.linspace(-end, end, 201, dtype=torch.float64) for end in (10, 1e3))
    errors, bounds = [], []
    for c in config.widths:
        for _ in range(config.draws):
            others = (10 ** draw(1) * (draw(c - 1) + draw(1))).to(device)
            scale = others.std()
            x = torch.cat([near, far]).to(device) * scale
            pairs = zip(closed_form(arm, x, others), norms(x, others), strict=True)
            errors.append(torch.stack([(a - b).abs().max() for a, b in pairs]))
            ends = norms(others.mean() + 1e3 * c**0.5 * scale * far[[0, -1]].sign().to(device), others)
            squares = (c - 1, c) if arm == "wrong_amplitude" else (c, c - 1)
            bounds += [(end.abs() - square**0.5).abs().max() for end, square in zip(ends, squares, strict=True)]
    rms, layer = torch.stack(errors).max(0).values.tolist()
    others, x = draw(49), torch.linspace(-60, 60, 41, dtype=torch.float64)
    return {
        "rmsnorm_error": rms,
        "layernorm_error": layer,
        "bound_error": float(torch.stack(bounds).max()),
        "input": x.tolist(),
        "output": closed_form(arm, x, others)[1].tolist(),
        "output_layernorm": norms(x, others)[1].tolist(),
    }


# --- ode: where the tanh and the inverse square root come from --------------------------------------------------------


@dataclass(frozen=True)
class Ode:
    widths: tuple[int, ...]
    steps: int


def runge_kutta(rate: Rate, xs: list[float], y: float) -> list[float]:
    """y at every x of the grid, by the classical method of fourth order, one step between neighbours."""
    ys = [y]
    for x, end in zip(xs, xs[1:], strict=False):
        h = end - x
        k1 = rate(x, y)
        k2 = rate(x + h / 2, y + h / 2 * k1)
        k3 = rate(x + h / 2, y + h / 2 * k2)
        k4 = rate(end, y + h * k3)
        y += h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        ys.append(y)
    return ys


def ode(arm: str, seed: int, config: Ode, device: torch.device) -> dict[str, float]:
    """Both equations against their solutions from sqrt(b) / 100 to 10 sqrt(b); and the slope of RMSNorm itself."""
    source = generator("eln ode", seed)
    found: dict[str, list[float]] = {"tanh_error": [], "isru_error": [], "slope_error": []}
    for c in config.widths:
        vector = torch.randn(c, generator=source, dtype=torch.float64).to(device)
        sigma = float(vector.square().mean().sqrt())
        b = c * sigma**2  # so that both solutions have the slope 1 / sigma at 0
        fixed, coupled, linear = (  # sigma held; sigma = x / y put back; the slope of the normalizer forgotten
            lambda x, y, c=c, sigma=sigma: (1 - y * y / c) / sigma,
            lambda x, y, c=c: (1 - y * y / c) * y / x,
            lambda x, y, sigma=sigma: 1 / sigma + 0 * y,
        )
        first, second = {"derived": (fixed, coupled), "swapped": (coupled, fixed), "linear": (linear, linear)}[arm]
        xs = torch.logspace(-2, 1, config.steps + 1, dtype=torch.float64) * b**0.5
        for name, rate, solution in (("tanh", first, tanh_slice(xs, sigma, c)), ("isru", second, dyisru(xs, b, c))):
            ys = torch.tensor(runge_kutta(rate, xs.tolist(), float(solution[0])), dtype=torch.float64)
            found[f"{name}_error"].append(float((ys - solution).abs().max()) / c**0.5)
        slope = torch.autograd.functional.jacobian(lambda v, c=c: rms_norm(v, c, eps=0.0), vector).diagonal()
        found["slope_error"].append(float((slope - first(vector, vector / sigma)).abs().max()) * sigma)
    return {name: max(errors) for name, errors in found.items()}


# --- outliers: an outlying channel's output, from one shared b or alpha -----------------------------------------------

SHAPES = {
    "dyisru": lambda u: u / (1 + u * u).sqrt(),
    "dyt": torch.tanh,
    "cubic": lambda u: u / (1 + u.abs() ** 3) ** (1 / 3),  # nearly DyISRU: the same slope and bound, another exponent
}


@dataclass(frozen=True)
class Outliers:
    vectors: int
    data: str
    width: int


def outlying(config: Outliers, source: torch.Generator) -> tuple[Tensor, Tensor, float, int]:
    """The outlying inputs x and their outputs y, the bulk's b, and the square of the bound."""
    c = config.width
    if config.data == "sweep":  # LayerNorm of C values N(0, 2^2), the largest moved by 5 to 45 (the author's notebook)
        v = (2 * torch.randn(c, generator=source, dtype=torch.float64)).sort().values.repeat(9, 1)
        v[:, -1] += 5 * torch.arange(1, 10)
        return v[:, -1], F.layer_norm(v, (c,), eps=0.0)[:, -1], c * float(v[0, :-1].var(correction=0)), c - 1
    v = torch.randn(config.vectors, c, generator=source, dtype=torch.float64)
    if config.data == "vectors":
        v[:, -1] = v[:, -1].sign() * 10 ** (0.5 + 2 * torch.rand(config.vectors, generator=source))
    elif config.data != "gaussian":
        raise ValueError(f"data={config.data!r} is unknown; write sweep, vectors or gaussian")
    return v[:, -1], F.rms_norm(v, (c,), eps=0.0)[:, -1], c - 1, c


def outliers(arm: str, seed: int, config: Outliers, device: torch.device) -> dict[str, float]:
    """Errors of bound * shape(k x), k = 1 / sqrt(b) of the bulk, or in `..._fit` from least squares on the outliers."""
    source = generator(f"eln outliers {config.data} {config.width}", seed)
    x, y, b, c = outlying(config, source)
    x, y, shape, k = x.to(device), y.to(device), SHAPES[arm.removesuffix("_fit")], b**-0.5
    if arm.endswith("_fit"):
        for width, points in ((3.0, 241), (0.05, 81), (0.002, 81)):  # of the logarithm of k / k_bulk
            ks = k * torch.linspace(-width, width, points, dtype=torch.float64, device=device).exp()
            k = ks[(c**0.5 * shape(ks[:, None] * x) - y).square().mean(1).argmin()]
    error = c**0.5 * shape(k * x) - y
    return {"residual": float(error.abs().mean()), "rmse": float(error.square().mean().sqrt())}
