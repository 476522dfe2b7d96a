"""What papers/mish measures of the function itself; its networks are in `repro.experiments.activations`.

`swish` is torch's SiLU; `exponential` takes e^x before the logarithm, in the dtype that it is given; `half_gate` is
x tanh(softplus(x) / 2), which equals x sigmoid(x - ln 2).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from repro.papers.mish.method import mish
from repro.tasks import Measures, Worst
from repro.train import draws


@dataclass(frozen=True)
class Function:
    points: int


def of(arm: str) -> Callable[[Tensor], Tensor]:
    """The function of an arm."""
    return {
        "mish": mish,
        "swish": F.silu,
        "exponential": lambda x: x * torch.tanh(torch.log(1 + torch.exp(x))),
        "half_gate": lambda x: x * torch.tanh(F.softplus(x) / 2),
    }[arm]


def slope(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """f'(x) by autograd."""
    x = x.detach().requires_grad_()
    return torch.autograd.grad(f(x).sum(), x)[0]


def written_slope(x: Tensor) -> Tensor:
    """f' as the paper writes it: sech^2(softplus(x)) x sigmoid(x) + f(x) / x."""
    gate = F.softplus(x)
    return torch.cosh(gate.clamp(max=300.0)) ** -2 * x * torch.sigmoid(x) + torch.tanh(gate)


def function(arm: str, seed: int, config: Function, device: torch.device) -> Measures:
    """The minimum, the slope at 0 and f' in float64; the distance from torch's Mish in units of the last digit."""
    f, worst = of(arm), Worst()
    x = 8 * draws(device, "mish function", seed)(config.points)
    worst.absolute("slope_error", slope(f, x), written_slope(x))
    low, high = -4.0, -0.1
    for _ in range(60):
        middle = (low + high) / 2
        rising = float(slope(f, torch.tensor([middle], dtype=torch.float64, device=device))) > 0
        low, high = (low, middle) if rising else (middle, high)
    zero = torch.zeros(1, dtype=torch.float64, device=device)
    wide = torch.linspace(-100, 100, 2001, dtype=torch.float64, device=device)
    for dtype in (torch.float32, torch.bfloat16):
        z, finfo = wide.to(dtype), torch.finfo(dtype)
        for got, want in ((f(z), F.mish(z)), (slope(f, z), slope(F.mish, z))):
            gap = (got.double() - want.double()).abs() / want.double().abs().clamp_min(1.0) / finfo.eps
            worst.record("digits", gap.nan_to_num(nan=math.inf).clamp(max=1e9))
    return {**worst, "least_at": low, "least": float(f(zero + low)), "slope_at_0": float(slope(f, zero))}
