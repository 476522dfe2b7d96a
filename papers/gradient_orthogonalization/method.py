"""Orthogonalized gradients as trust-region steps, and Muon (Kovalev, 2025, arXiv:2503.12645).

    m <- (1 - a) m + a g,        m = 0 at the start
    x <- (1 - b) x - eta d(m),   d(m) = argmax of <m, d> over ||d|| <= 1

x, m, g and d have one shape.  The norm of the ball decides: the spectral one gives d = U V^T of m = U S V^T (Muon), the
largest entry gives sign(m), the Euclidean one m / ||m||.  <m, d> is then the dual norm of m: the sum of the singular
values, the sum of |m_i|, ||m||.  With decay b the iterate stays in the ball of radius eta / b, if it starts there.

Muon as it is used (Jordan et al. 2024, KellerJordan/Muon) takes five steps of the Newton-Schulz iteration

    X <- p X + (q A + r A^2) X,   A = X X^T,   X = m / ||m||_F at the start,   (p, q, r) = (3.4445, -4.7750, 2.0315)

in place of U V^T, which leaves the singular values between about 0.68 and 1.13; Nesterov's form of the momentum; and
AdamW for embeddings, heads and vectors.

  D1  A tensor of more than two axes, such as a convolution (out, in, h, w), is orthogonalized as (out, in h w).
  D2  Newton-Schulz runs in float32 at least; the published code runs it in bfloat16 (`dtype=torch.bfloat16`).
  D3  b = lr * weight_decay, as in PyTorch: the ball has the radius 1 / weight_decay.  The paper's a is 1 - momentum.
  D4  d(0) = 0, which is one of the maximizers.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from repro.models.optimizer import Parameters, Rule, State, positive, shares, wide_zeros
from repro.papers.adam import Adam

__all__ = ["Muon", "TrustRegion", "muon_groups", "newton_schulz", "polar"]

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
SCALES = {  # what multiplies the rate of a matrix of n rows and m columns
    "none": lambda n, m: 1.0,
    "original": lambda n, m: max(1.0, n / m) ** 0.5,
    "spectral": lambda n, m: (n / m) ** 0.5,
    "match_rms_adamw": lambda n, m: 0.2 * max(n, m) ** 0.5,
}


def polar(m: Tensor) -> Tensor:
    """Return U V^T of m = U S V^T (..., rows, columns), without directions whose singular value is 0 (D4)."""
    u, s, vh = torch.linalg.svd(m, full_matrices=False)
    kept = s > s.amax(-1, keepdim=True) * max(m.shape[-2:]) * torch.finfo(s.dtype).eps
    return (u * kept.unsqueeze(-2)) @ vh


def newton_schulz(
    m: Tensor, steps: int = 5, coefficients: Sequence[float] = COEFFICIENTS, dtype: torch.dtype | None = None
) -> Tensor:
    """Return nearly U V^T of m (..., rows, columns): singular values between about 0.68 and 1.13 (D2)."""
    x = m.to(dtype or torch.promote_types(m.dtype, torch.float32))
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp_min(1e-7)
    p, q, r = coefficients
    for _ in range(steps):
        gram = x @ x.mT
        x = p * x + (q * gram + r * gram @ gram) @ x
    return (x.mT if tall else x).to(m.dtype)


def spectral(m: Tensor) -> Tensor:
    """The maximizer over the ball of the spectral norm."""
    return polar(m.flatten(1)).view_as(m) if m.dim() > 1 else euclidean(m)


def euclidean(m: Tensor) -> Tensor:
    """The maximizer over the ball of the Euclidean norm."""
    size = torch.linalg.vector_norm(m)
    return m / size.masked_fill(size == 0, 1.0)


NORMS = {"spectral": spectral, "max": torch.sign, "euclidean": euclidean}


class TrustRegion(Rule):
    """The paper's method: a running mean of the gradient, then the maximizer over the ball of a norm.

    norm: spectral (of each matrix, by its singular values), max (the sign) or euclidean.  ValueError for another norm
    or numbers outside their range.
    """

    def __init__(
        self,
        params: Parameters,
        lr: float = 0.02,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        *,
        norm: str = "spectral",
        maximize: bool = False,
    ):
        positive(lr=lr, weight_decay=weight_decay)
        shares(momentum=momentum)
        if norm not in NORMS:
            raise ValueError(f"norm={norm!r} is unknown; write one of {', '.join(NORMS)}")
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "norm": norm, "maximize": maximize}
        super().__init__(params, defaults)

    def start(self, p: Tensor, group: dict[str, Any]) -> State:
        return {"momentum_buffer": wide_zeros(p)}

    def update(self, p: Tensor, g: Tensor, state: State, group: dict[str, Any]) -> None:
        m = state["momentum_buffer"].lerp_(g.to(state["momentum_buffer"].dtype), 1 - group["momentum"])
        shrunk = p.to(m.dtype) * (1 - group["lr"] * group["weight_decay"])
        p.copy_(shrunk.sub_(NORMS[group["norm"]](m), alpha=group["lr"]))


class Muon(TrustRegion):
    """Muon as it is used: Newton-Schulz on matrices; AdamW in the groups that say `adam: True` (see `muon_groups`).

    scale: what multiplies the rate of a matrix: original, sqrt(max(1, rows / columns)); match_rms_adamw, 0.2
    sqrt(max(rows, columns)); spectral, sqrt(rows / columns); or none.  betas and eps are those of AdamW.  ValueError
    for a vector outside the groups of AdamW, another scale, or numbers outside their range.
    """

    def __init__(
        self,
        params: Parameters,
        lr: float = 0.02,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        *,
        nesterov: bool = True,
        steps: int = 5,
        scale: str = "original",
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        dtype: torch.dtype | None = None,
        maximize: bool = False,
    ):
        positive(lr=lr, weight_decay=weight_decay, eps=eps)
        shares(momentum=momentum, beta1=betas[0], beta2=betas[1])
        if scale not in SCALES:
            raise ValueError(f"scale={scale!r} is unknown; write one of {', '.join(SCALES)}")
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "nesterov": nesterov, "steps": steps}
        defaults |= {"scale": scale, "betas": betas, "eps": eps, "dtype": dtype, "maximize": maximize, "adam": False}
        super(TrustRegion, self).__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        if not group["adam"] and any(p.dim() < 2 for p in group["params"]):
            raise ValueError("Muon is for matrices: write Muon(muon_groups(model)), which gives the rest to AdamW")

    def start(self, p: Tensor, group: dict[str, Any]) -> State:
        return Adam.start(self, p, group) if group["adam"] else super().start(p, group)

    def update(self, p: Tensor, g: Tensor, state: State, group: dict[str, Any]) -> None:
        p.mul_(1 - group["lr"] * group["weight_decay"])
        if group["adam"]:
            return Adam.update(self, p, g, state, {**group, "bias_correction": True})
        m, g = state["momentum_buffer"], g.to(state["momentum_buffer"].dtype)
        m.lerp_(g, 1 - group["momentum"])
        ahead = g.lerp(m, group["momentum"]) if group["nesterov"] else m
        d = newton_schulz(ahead.flatten(1), group["steps"], dtype=group["dtype"])  # D1
        size = group["lr"] * SCALES[group["scale"]](*d.shape)
        p.copy_(p.to(m.dtype).sub_(d.view_as(p), alpha=size))


def muon_groups(model: nn.Module, *, adam_lr: float = 3e-4, head: str | None = None) -> list[dict[str, Any]]:
    """Return parameter groups for `Muon`: hidden matrices, and all else for AdamW at the rate `adam_lr`.

    All else is embeddings, vectors and scalars, and the last linear layer of the model, or the one named `head`.
    """
    linear = {name: part for name, part in model.named_modules() if isinstance(part, nn.Linear)}
    last = head if head is not None else next(reversed(linear), None)
    apart = [part for part in model.modules() if isinstance(part, nn.Embedding)]
    apart += [model.get_submodule(last)] if last is not None else []
    kept = {id(p) for part in apart for p in part.parameters()}
    trained = [p for p in model.parameters() if p.requires_grad]
    matrices = [p for p in trained if p.dim() > 1 and id(p) not in kept]
    hidden = {id(p) for p in matrices}
    others = [p for p in trained if id(p) not in hidden]
    return [{"params": matrices}, {"params": others, "adam": True, "lr": adam_lr}]
