"""What papers/gradient_orthogonalization measures: the order of mean and orthogonalization, and trust-region steps."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from repro import tasks
from repro.experiments.optim_bytes import OptimBytes
from repro.papers.gradient_orthogonalization import Muon, TrustRegion, newton_schulz, polar
from repro.train import draws, generator

# --- arms -------------------------------------------------------------------------------------------------------------


class OrthogonalSGDM(TrustRegion):
    """Orthogonal-SGDM (Tuddenham et al. 2022, arXiv:2202.07052): the gradient is orthogonalized, then averaged."""

    orthogonalize: Callable[[Tensor], Tensor] = staticmethod(polar)

    def update(self, p: Tensor, g: Tensor, state: dict, group: dict) -> None:
        m = state["momentum_buffer"].lerp_(self.orthogonalize(g), 1 - group["momentum"])
        p.sub_(m, alpha=group["lr"])


class Averaged(Muon):
    """Muon with the paper's plain mean, whose arm decides what becomes of the gradient of a matrix."""

    def __init__(self, params: list[dict], lr: float, arm: str, momentum: float, source: torch.Generator):
        super().__init__(params, lr, momentum, nesterov=False)
        self.arm, self.source = arm, source

    def update(self, p: Tensor, g: Tensor, state: dict, group: dict) -> None:
        if group["adam"] or self.arm == "muon":
            return super().update(p, g, state, group)
        if self.arm == "random":  # a direction that knows nothing of the gradient
            d = newton_schulz(torch.randn(p.shape, generator=self.source).to(p))
        else:
            d = state["momentum_buffer"].lerp_(newton_schulz(g), 1 - group["momentum"])
        rows, columns = p.shape
        p.mul_(1 - group["lr"] * group["weight_decay"])
        p.sub_(d, alpha=group["lr"] * max(1.0, rows / columns) ** 0.5)


def _averaged(arm: str) -> Callable[..., torch.optim.Optimizer]:
    def make(groups: list[dict], lr: float, config: OptimBytes, seed: int) -> torch.optim.Optimizer:
        parts = [{**group, "adam": not group.get("hidden", False)} for group in groups]
        return Averaged(parts, lr, arm, config.momentum, generator("gradient_orthogonalization random", seed))

    return make


muon, orthogonal_sgdm, random = _averaged("muon"), _averaged("orthogonal_sgdm"), _averaged("random")


# --- noisy least squares ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class LeastSquares:
    """f(X) = ||X - B||^2 / 2 with B of n x n normal numbers, whose gradients have noise of deviation `noise`."""

    n: int
    steps: int
    noise: float
    lr: float
    momentum: float = 0.95


def least_squares(arm: str, seed: int, config: LeastSquares, device: torch.device) -> tasks.Measures:
    """Root mean square distance of the last tenth of the iterates from the optimum."""
    draw = draws(device, "gradient_orthogonalization least_squares", seed)
    target, x = draw(config.n, config.n), nn.Parameter(torch.zeros(config.n, config.n, dtype=torch.float64))
    kind = TrustRegion if arm.startswith("muon") else OrthogonalSGDM
    momentum = 0.0 if arm.endswith("without_mean") else config.momentum
    optimizer, far = kind([x], config.lr, momentum), []
    for step in range(config.steps):
        x.grad = (x.detach() - target) + config.noise * draw(config.n, config.n)
        optimizer.step()
        if step >= config.steps - config.steps // 10:
            far.append((x.detach() - target).square().mean())
    return {"distance": float(torch.stack(far).mean().sqrt())}


# --- trust-region steps, in float64 -----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Steps:
    rows: int
    columns: int
    steps: int
    lr: float


def trust_region(arm: str, seed: int, config: Steps, device: torch.device) -> tasks.Measures:
    """How far <m, d> is from the dual norm, the descent inequality on least squares, and the ball of weight decay."""
    draw = draws(device, "gradient_orthogonalization trust_region", seed)
    worst, m = tasks.Worst(), draw(config.rows, config.columns)
    maximizer = {"newton_schulz": newton_schulz, "rows": lambda m: F.normalize(m, dim=1)}.get(arm, polar)
    nuclear = torch.linalg.matrix_norm(m, "nuc")
    worst.record("dual_gap", ((m * maximizer(m)).sum() - nuclear).abs() / nuclear)
    if arm not in ("newton_schulz", "rows"):
        worst.record("dual_gap", ((m * torch.sign(m)).sum() / m.abs().sum() - 1).abs())

    # f(X) = ||X - B||^2 / 2 has L = min(rows, columns) in the spectral norm, 1 in the Euclidean one
    smooth = 1.0 if arm == "euclidean_constant" else float(min(config.rows, config.columns))
    x, violations = draw(config.rows, config.columns), 0
    for _ in range(config.steps):
        g = x - m
        new = x - config.lr * polar(g)
        bound = -config.lr * torch.linalg.matrix_norm(g, "nuc") + smooth * config.lr**2 / 2
        violations += bool(((new - m).square().sum() - g.square().sum()) / 2 > bound + 1e-9)
        x = new
    worst.record("violations", violations / config.steps)

    p = nn.Parameter(10 * draw(config.rows, config.columns))
    optimizer = TrustRegion([p], config.lr, weight_decay=0.0 if arm == "no_decay" else 1.0)
    for _ in range(math.ceil(12 / config.lr)):
        p.grad = 3.0 + draw(config.rows, config.columns)
        optimizer.step()
    worst.record("radius", torch.linalg.matrix_norm(p.detach(), 2))
    return worst
