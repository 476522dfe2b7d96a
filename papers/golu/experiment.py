"""What papers/golu measures of the function and of one random layer.

`golu_mirrored` has the gate 1 - G(-x), whose density leans to the other side; `plain_autograd` has no bound on z.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from repro.data import fashion_mnist
from repro.experiments.activations import Arm, activation
from repro.papers.golu.method import golu
from repro.tasks import Measures
from repro.train import draws, generator

ARMS = {
    "relu": Arm("torch.nn:ReLU"),
    "gelu": Arm("torch.nn:GELU"),
    "swish": Arm("repro.papers.swish:Swish"),
    "mish": Arm("repro.papers.mish:Mish"),
    "golu": Arm("repro.papers.golu:GoLU"),
    "golu_mirrored": Arm("repro.papers.golu.experiment:Mirrored"),
}


class Mirrored(nn.Module):
    """x (1 - G(-x)) = x + golu(-x): the gate of the smallest Gumbel, with slope 1 - 1/e at 0."""

    def forward(self, x: Tensor) -> Tensor:
        return x + golu(-x)


# --- latent: one random convolution -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Latent:
    images: int
    filters: int


@torch.no_grad()
def latent(arm: str, seed: int, config: Latent, device: torch.device) -> Measures:
    """Images, one random 3 x 3 convolution, BatchNorm by its batch, the activation: the variance over all values."""
    images = fashion_mnist.load(device)
    x = images.normalised(images.split("train")[0][seed * config.images : (seed + 1) * config.images])
    weight = torch.randn(config.filters, x.shape[1], 3, 3, generator=generator("golu latent", seed)).to(device) / 3
    y = activation(ARMS[arm])()(F.batch_norm(F.conv2d(x, weight), None, None, training=True))
    return {"variance": float(y.double().var())}


# --- the function -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Function:
    points: int


def of(arm: str) -> Callable[[Tensor], Tensor]:
    """The function of an arm."""
    return {
        "golu": golu,
        "golu_mirrored": lambda x: x + golu(-x),
        "plain_autograd": lambda x: x * torch.exp(-torch.exp(-x)),
        "double": lambda x: golu(x, alpha=2.0),
        "gelu": F.gelu,
        "swish": F.silu,
        "mish": F.mish,
        "relu": F.relu,
    }[arm]


def slope(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """f'(x) by autograd."""
    x = x.detach().requires_grad_()
    return torch.autograd.grad(f(x).sum(), x)[0]


def gaussian_mean(f: Callable[[Tensor], Tensor], device: torch.device) -> Tensor:
    """The mean of f(z), z ~ N(0, 1), by the trapezoidal rule on 12 deviations to either side."""
    z = torch.linspace(-12, 12, 48_001, dtype=torch.float64, device=device)
    weight = torch.exp(-z.square() / 2)
    return (weight * f(z)).sum() / weight.sum()


def gaussian_variance(f: Callable[[Tensor], Tensor], device: torch.device) -> float:
    """The variance of f(z), z ~ N(0, 1)."""
    mean = gaussian_mean(f, device)
    return float(gaussian_mean(lambda z: (f(z) - mean).square(), device))


def function(arm: str, seed: int, config: Function, device: torch.device) -> Measures:
    """The gate against the Gumbel law, slope at 0 and minimum in float64; gradients in two narrow dtypes."""
    f = of(arm)
    x = 4 * draws(device, "golu function", seed)(config.points)
    gumbel = torch.distributions.Gumbel(torch.zeros((), dtype=torch.float64, device=device), 1.0, validate_args=False)
    grid = torch.linspace(-4, 0, 400_001, dtype=torch.float64, device=device)
    far = torch.linspace(-1e4, 1e4, 20_001, device=device)
    bad = [~slope(f, far.to(dtype)).isfinite() for dtype in (torch.float32, torch.bfloat16)]
    y = f(grid)
    return {
        "gate_error": float((f(x) - x * gumbel.cdf(x)).abs().max()),
        "slope_at_0": float(slope(f, torch.zeros(1, dtype=torch.float64, device=device))),
        "least": float(y.min()),
        "least_at": float(grid[y.argmin()]),
        "gaussian_variance": gaussian_variance(f, device),
        "gaussian_slope": float(gaussian_mean(lambda z: slope(f, z).square(), device)),
        "not_finite": float(sum(int(b.sum()) for b in bad)),
    }
