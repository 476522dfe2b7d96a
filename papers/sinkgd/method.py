"""SinkGD (Scetbon, Ma, Gong & Meeds, NeurIPS 2025, arXiv:2502.06742), SR-Sinkhorn and Sinkhorn gradient descent.

    X <- G                                                          the gradient of a matrix, (m, n)
    five times:   X <- sqrt(n) X / (norm of its row)                every row has the norm sqrt(n)
                  X <- sqrt(m) X / (norm of its column)             every column has the norm sqrt(m)
    W <- W - lr X

There is no state, momentum or eps.  After each half of a sweep ||X||_F = sqrt(m n), so that an entry is 1 in the root
mean square and lr is that of Adam in size.  Where the sweeps converge, X^2 entry by entry is what Sinkhorn's algorithm
makes of G^2, with row sums n and column sums m; signs are those of G, and multiplying rows or columns of G by positive
numbers changes nothing.

Matrices of the blocks are for SinkGD; embeddings, the head and vectors go to AdamW, in groups that say `adam: True`
(see `sinkgd_groups`).

  D1  A row or column of zeros stays one; the formula divides 0 by 0.
  D2  G is divided by its largest entry first, which changes nothing but overflow and underflow.
  D3  A tensor of more than two axes, such as a convolution (out, in, h, w), is normalized as (out, in h w).
  D4  weight_decay, decoupled and times lr, 0 unless asked for; the method has none.
  D5  X is computed in float32 at least, and the step is rounded once.
"""

from typing import Any

import torch
from torch import Tensor, nn

from repro.models.optimizer import Parameters, Rule, State, positive, shares
from repro.papers.adam import Adam
from repro.papers.gradient_orthogonalization import muon_groups

__all__ = ["SinkGD", "sinkgd_groups", "sr_sinkhorn"]


def scaled(x: Tensor, dim: int, size: float) -> Tensor:
    """Return x with norms of `size` along an axis, zeros apart (D1)."""
    norms = torch.linalg.vector_norm(x, dim=dim, keepdim=True)
    return x * (size / norms.masked_fill(norms == 0, 1.0))


def sr_sinkhorn(g: Tensor, sweeps: int = 5) -> Tensor:
    """Return g (..., m, n) after `sweeps` times rows to the norm sqrt(n) and columns to sqrt(m); 0: g itself."""
    x = g.to(torch.promote_types(g.dtype, torch.float32))
    if sweeps and x.numel():
        largest = x.abs().amax((-2, -1), keepdim=True)
        x = x / largest.masked_fill(largest == 0, 1.0)  # D2
    m, n = x.shape[-2:]
    for _ in range(sweeps):
        x = scaled(scaled(x, -1, n**0.5), -2, m**0.5)
    return x.to(g.dtype)


class SinkGD(Rule):
    """Gradient descent on matrices with SR-Sinkhorn, without state; AdamW in the groups that say `adam: True`.

    sweeps: over rows and columns.  betas and eps are those of AdamW.  ValueError for a vector outside the groups of
    AdamW, no sweep, or numbers outside their range.
    """

    def __init__(
        self,
        params: Parameters,
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        *,
        sweeps: int = 5,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        maximize: bool = False,
    ):
        positive(lr=lr, weight_decay=weight_decay, eps=eps)
        shares(beta1=betas[0], beta2=betas[1])
        if sweeps < 1:
            raise ValueError(f"sweeps={sweeps}: write 1 or more")
        defaults = {"lr": lr, "weight_decay": weight_decay, "sweeps": sweeps, "betas": betas, "eps": eps}
        super().__init__(params, {**defaults, "maximize": maximize, "adam": False})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        if not group["adam"] and any(p.dim() < 2 for p in group["params"]):
            raise ValueError(
                "SinkGD is for matrices: write SinkGD(sinkgd_groups(model)), which gives the rest to AdamW"
            )

    def start(self, p: Tensor, group: dict[str, Any]) -> State:
        return Adam.start(self, p, group) if group["adam"] else {}

    def direction(self, g: Tensor, group: dict[str, Any]) -> Tensor:
        """Return what multiplies the rate: g (m, n) after the sweeps."""
        return sr_sinkhorn(g, group["sweeps"])

    def update(self, p: Tensor, g: Tensor, state: State, group: dict[str, Any]) -> None:
        kept = 1 - group["lr"] * group["weight_decay"]
        if group["adam"]:
            p.mul_(kept)
            return Adam.update(self, p, g, state, {**group, "bias_correction": True})
        x = self.direction(g.flatten(1).to(torch.promote_types(g.dtype, torch.float32)), group)  # D3, D5
        p.copy_((p.to(x.dtype) * kept).sub_(x.view_as(p), alpha=group["lr"]))


def sinkgd_groups(model: nn.Module, *, adam_lr: float = 1e-3, head: str | None = None) -> list[dict[str, Any]]:
    """Return parameter groups for `SinkGD`: hidden matrices, and all else for AdamW at the rate `adam_lr`.

    All else is embeddings, vectors and scalars, and the last linear layer of the model, or the one named `head`.
    """
    return muon_groups(model, adam_lr=adam_lr, head=head)
