"""AdamP and SGDP (Heo et al., ICLR 2021, arXiv:2006.08217), as in the authors' code (clovaai/AdamP).

    SGDP    m <- momentum m + (1 - dampening) g          u = m,  with nesterov  g + momentum m
    AdamP   m, v as in Adam                              u = m^ / (sqrt(v^) + eps)
    both    q = u - (w_hat . u) w_hat,  w_hat = w / ||w||,   where w looks scale invariant, else q = u
            w <- w - lr q

w, g, m and v of one parameter have one shape; m and v start at 0; with nesterov AdamP has b1 m + (1 - b1) g
in place of m.  A weight in front of a norm has w . g = 0, so that
||w_{t+1}||^2 = ||w_t||^2 + lr^2 ||q||^2, while momentum without the projection adds products of past steps.

A parameter (out, ...) of two axes or more is looked at row by row, (out, -1), and then as one row, (1, -1).  It is
scale invariant if |cos(g, w)| < delta / sqrt(length of a row) in all of its rows; the first view for which this holds
is projected, row by row.  m itself is not projected.  Vectors are never projected.

Weight decay is decoupled and acts before the step: w loses lr weight_decay of itself (SGDP: lr weight_decay / (1 -
momentum)), times wd_ratio where it is projected.  delta = wd_ratio = 0.1, eps = 1e-8; AdamP lr = 1e-3, betas = (0.9,
0.999).

  D1  In half precision m and v are kept in float32, and projection, decay and step are rounded once.
  D2  SGDP has a default rate, that of torch.optim.SGD; the code demands one.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from repro.models.optimizer import Parameters, Rule, State, positive, shares, wide_zeros

__all__ = ["SGDP", "AdamP", "project"]


def project(w: Tensor, g: Tensor, u: Tensor, delta: float = 0.1, eps: float = 1e-8) -> tuple[Tensor, bool]:
    """Return u without its part along w, and True, if the gradient g says that w is scale invariant; else u and False.

    w, g, u: (out, ...) of one shape and dtype; a vector is never scale invariant.
    """
    if w.dim() < 2:
        return u, False
    for rows in (w.shape[0], 1):
        each, step = w.reshape(rows, -1), u.reshape(rows, -1)
        cosines = F.cosine_similarity(g.reshape(rows, -1), each, dim=1, eps=eps).abs()
        if cosines.max() < delta / math.sqrt(each.shape[1]):
            unit = each / torch.linalg.vector_norm(each, dim=1, keepdim=True).add(eps)
            return (step - unit * (unit * step).sum(1, keepdim=True)).view_as(u), True
    return u, False


class SGDP(Rule):
    """SGD with momentum whose step leaves the norm of scale-invariant weights alone; arguments of torch.optim.SGD.

    delta: how small the cosine must be, times the root of a row's length; 0 never projects.  wd_ratio: what is left of
    the decay of projected weights.  ValueError for numbers outside their range.
    """

    project = staticmethod(project)

    def __init__(
        self,
        params: Parameters,
        lr: float = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        eps: float = 1e-8,
        delta: float = 0.1,
        wd_ratio: float = 0.1,
        maximize: bool = False,
    ):
        positive(lr=lr, weight_decay=weight_decay, eps=eps, delta=delta, wd_ratio=wd_ratio)
        shares(momentum=momentum)
        defaults = {"lr": lr, "momentum": momentum, "dampening": dampening, "weight_decay": weight_decay}
        defaults |= {"nesterov": nesterov, "eps": eps, "delta": delta, "wd_ratio": wd_ratio, "maximize": maximize}
        super().__init__(params, defaults)

    def start(self, p: Tensor, group: dict[str, Any]) -> State:
        return {"momentum_buffer": wide_zeros(p)}

    def update(self, p: Tensor, g: Tensor, state: State, group: dict[str, Any]) -> None:
        m, momentum, lr = state["momentum_buffer"], group["momentum"], group["lr"]
        w, g = p.to(m.dtype), g.to(m.dtype)  # D1
        m.mul_(momentum).add_(g, alpha=1 - group["dampening"])
        u = g + momentum * m if group["nesterov"] else m
        q, projected = self.project(w, g, u, group["delta"], group["eps"])
        decay = group["weight_decay"] / (1 - momentum) * (group["wd_ratio"] if projected else 1.0)
        p.copy_((w * (1 - lr * decay)).sub_(q, alpha=lr))


class AdamP(Rule):
    """AdamW whose step leaves the norm of scale-invariant weights alone; arguments of torch.optim.AdamW.

    delta and wd_ratio as in `SGDP`.  ValueError for numbers outside their range.
    """

    project = staticmethod(project)

    def __init__(
        self,
        params: Parameters,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        delta: float = 0.1,
        wd_ratio: float = 0.1,
        nesterov: bool = False,
        maximize: bool = False,
    ):
        positive(lr=lr, weight_decay=weight_decay, eps=eps, delta=delta, wd_ratio=wd_ratio)
        shares(beta1=betas[0], beta2=betas[1])
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "delta": delta}
        super().__init__(params, {**defaults, "wd_ratio": wd_ratio, "nesterov": nesterov, "maximize": maximize})

    def start(self, p: Tensor, group: dict[str, Any]) -> State:
        return {"exp_avg": wide_zeros(p), "exp_avg_sq": wide_zeros(p)}

    def update(self, p: Tensor, g: Tensor, state: State, group: dict[str, Any]) -> None:
        (b1, b2), t, lr = group["betas"], state["step"], group["lr"]
        m, v = state["exp_avg"], state["exp_avg_sq"]
        w, g = p.to(v.dtype), g.to(v.dtype)  # D1
        m.mul_(b1).add_(g, alpha=1 - b1)
        v.mul_(b2).addcmul_(g, g, value=1 - b2)
        above = b1 * m + (1 - b1) * g if group["nesterov"] else m
        u = above / (v / (1 - b2**t)).sqrt_().add_(group["eps"])
        q, projected = self.project(w, g, u, group["delta"], group["eps"])
        decay = group["weight_decay"] * (group["wd_ratio"] if projected else 1.0)
        p.copy_((w * (1 - lr * decay)).sub_(q, alpha=lr / (1 - b1**t)))
