"""What papers/peri_ln measures by itself: how far a stream can grow, and the gradient of a sub-layer's last matrix.

The propagation at initialization is in `repro.experiments.decoder`, the trained models in `language_model`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from repro.models.mlp import ResidualMLP
from repro.models.slots import Norm
from repro.papers.layernorm import LayerNorm
from repro.papers.peri_ln.method import PeriLN, PostLN, PreLN
from repro.papers.rmsnorm import RMSNorm
from repro.tasks import Worst
from repro.train import generator

NORMS = {"rmsnorm": RMSNorm, "layernorm": partial(LayerNorm, bias=False)}
ARMS = {  # (placement, eps of its norms)
    "peri": (PeriLN, 0.0),
    "pre": (PreLN, 0.0),
    "post": (PostLN, 0.0),
    "peri_eps": (PeriLN, 1.0),
}


def built(kind: str, eps: float, source: torch.Generator, device: torch.device) -> Norm:
    """A norm slot in float64 with random gains in [0.5, 1.5]."""

    def norm(n: int) -> nn.Module:
        module = NORMS[kind](n, eps=eps, device=device, dtype=torch.float64)
        module.weight.data = 0.5 + torch.rand(n, generator=source, dtype=torch.float64).to(device)
        return module

    return norm


# --- Proposition 3.1 -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class GradientScaling:
    norm: str
    dim: int
    hidden: int
    cases: int
    scales: tuple[float, ...]


class LastMatrix(nn.Module):
    """a = W2 (c h), h = silu(W1 x); each case has its own copy of W2, so that one pass gives the gradient of each."""

    def __init__(self, w1: Tensor, w2: Tensor, c: float):
        super().__init__()
        self.w1, self.w2, self.c = w1, w2, c

    def forward(self, x: Tensor) -> Tensor:
        self.h = self.c * F.silu(x @ self.w1.T)
        self.a = torch.einsum("noi,ni->no", self.w2, self.h)
        return self.a


def gradient_scaling(arm: str, seed: int, config: GradientScaling, device: torch.device) -> dict[str, float]:
    """dL/dW2 of L = <g, y>, |g| = 1, as the hidden activation h is multiplied by c; the first scale is the reference.

    invariance_error: how far the gradient moves; proportion_error: how far the gradient over c moves; both relative.
    bound_share: the largest ||dL/dW2|| over 4 max(gain) sqrt(D) ||h|| / ||a||, the bound of Proposition 3.1.
    """
    source = generator("peri_ln gradient scaling", seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=source, dtype=torch.float64).to(device)

    placement, eps = ARMS[arm]
    w1, w2 = draw(config.hidden, config.dim) / config.dim**0.5, draw(config.dim, config.hidden) / config.hidden**0.5
    x, g = draw(config.cases, config.dim), F.normalize(draw(config.cases, config.dim), dim=-1)
    block = placement(nn.Identity(), built(config.norm, eps, source, device), config.dim, 0, 1)
    gain = max(float(p.detach().max()) for p in block.parameters())
    gradients, worst = [], Worst()
    for c in config.scales:
        leaf = w2.repeat(config.cases, 1, 1).requires_grad_()
        block.sublayer = LastMatrix(w1, leaf, c)
        (gradient,) = torch.autograd.grad((block(x) * g).sum(), leaf)
        h, a = (torch.linalg.vector_norm(t.detach(), dim=-1) for t in (block.sublayer.h, block.sublayer.a))
        limit = 4 * gain * config.dim**0.5 * h / a
        worst.record("bound_share", gradient.flatten(1).norm(dim=1) / limit)
        gradients.append(gradient)

    first = gradients[0]
    for c, gradient in zip(config.scales, gradients, strict=True):
        for name, power in (("invariance_error", 0), ("proportion_error", 1)):
            worst.record(name, (gradient / (c / config.scales[0]) ** power - first).norm() / first.norm())
    return worst


# --- how far the stream can grow -------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class StreamBound:
    norm: str
    branch: str  # random: weights of every size; aligned: f(x) = x and gains of 1, the worst case
    dim: int
    depth: int
    cases: int


def stream_bound(arm: str, seed: int, config: StreamBound, device: torch.device) -> dict[str, float]:
    """RMS(x_l) against RMS(x_0) + sum of the output gains: the excess (relative, 0 if none) and |ratio - 1| at x_L."""
    source = generator("peri_ln stream bound", seed)
    placement, eps = ARMS[arm]
    aligned = config.branch == "aligned"
    norm: Callable[[int], nn.Module] = built(config.norm, eps, source, device)
    model = ResidualMLP(config.dim, config.dim, config.depth, 1, generator=source, norm=norm, placement=placement)
    model.double().to(device)
    x = torch.randn(config.cases, config.dim, generator=source, dtype=torch.float64).to(device)
    for block in model.blocks:
        if aligned:
            block.sublayer = nn.Identity()
            for gain in block.parameters():
                gain.data.fill_(1.0)
        else:  # from 0.01 to 100 times the usual size
            block.sublayer.down.weight.data.mul_(100 ** (2 * float(torch.rand(1, generator=source)) - 1))
    if config.norm == "layernorm":  # its output has no mean, so that only a stream without one can be aligned
        x = x - x.mean(-1, keepdim=True) if aligned else x
    limit, excess = x.square().mean(-1).sqrt(), 0.0
    for block in model.blocks:
        x = block(x).detach()
        last = getattr(block, "output_norm", None) or block.norm
        limit = limit + last.weight.abs().max().detach()
        ratio = x.square().mean(-1).sqrt() / limit
        excess = max(excess, float(ratio.max()) - 1)
    return {"excess": excess, "slack": float((ratio - 1).abs().max())}
