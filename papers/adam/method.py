"""Adam and AdaMax (Kingma & Ba, ICLR 2015, arXiv:1412.6980), Algorithms 1 and 2.

    m <- b1 m + (1 - b1) g          v <- b2 v + (1 - b2) g^2          m, v = 0 at the start, t = 1, 2, ...
    Adam     theta <- theta - lr m^ / (sqrt(v^) + eps),    m^ = m / (1 - b1^t),  v^ = v / (1 - b2^t)
    AdaMax   u <- max(b2 u, |g|),   theta <- theta - lr / (1 - b1^t) m / u,    u = 0 at the start

theta, g, m, v and u of one parameter have one shape; everything is element by element.  lr = 1e-3 (AdaMax 2e-3), b1 =
0.9, b2 = 0.999, eps = 1e-8.  Each parameter needs two tensors of its size.

The division by 1 - b^t makes up for the start at 0: without it the first step is (1 - b1) / sqrt(1 - b2) = 3.16 times
too large.  eps stands outside the root and after that division; with eps = 0 a step does not change when all gradients
of a coordinate are multiplied by one number.

  D1  AdaMax adds eps = 1e-8 to |g| before the maximum, as torch does: Algorithm 2 divides 0 by 0 where every gradient
      of a coordinate was 0.
  D2  In half precision m, v and u are kept in float32, and the step is rounded once, to the parameter's dtype.
"""

from typing import Any

import torch
from torch import Tensor

from repro.models.optimizer import Parameters, Rule, State, positive, shares, wide_zeros

__all__ = ["AdaMax", "Adam"]


class Adam(Rule):
    """Adam with the arguments and the state of torch.optim.Adam.

    bias_correction=False leaves out the division by 1 - b^t (Section 6.4 compares the two).  foreach=True updates all
    parameters of a group at once.  ValueError for numbers
    outside their range, RuntimeError for sparse gradients and complex parameters.
    """

    elementwise = True

    def __init__(
        self,
        params: Parameters,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        *,
        maximize: bool = False,
        bias_correction: bool = True,
        foreach: bool = False,
    ):
        positive(lr=lr, eps=eps)
        shares(beta1=betas[0], beta2=betas[1])
        defaults = {"lr": lr, "betas": betas, "eps": eps, "maximize": maximize, "foreach": foreach}
        super().__init__(params, {**defaults, "bias_correction": bias_correction})

    def start(self, p: Tensor, group: dict[str, Any]) -> State:
        return {"exp_avg": wide_zeros(p), "exp_avg_sq": wide_zeros(p)}

    def update(self, p: Tensor, g: Tensor, state: State, group: dict[str, Any]) -> None:
        (b1, b2), t = group["betas"], state["step"] if group["bias_correction"] else float("inf")
        m, v, g = state["exp_avg"], state["exp_avg_sq"], g.to(state["exp_avg"].dtype)
        m.lerp_(g, 1 - b1)
        v.mul_(b2).addcmul_(g, g, value=1 - b2)
        below = (v / (1 - b2**t)).sqrt_().add_(group["eps"])
        p.copy_(p.to(m.dtype).addcdiv_(m, below, value=-group["lr"] / (1 - b1**t)))


class AdaMax(Rule):
    """AdaMax with the arguments and the state of torch.optim.Adamax; errors as those of Adam."""

    elementwise = True

    def __init__(
        self,
        params: Parameters,
        lr: float = 2e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        *,
        maximize: bool = False,
        foreach: bool = False,
    ):
        positive(lr=lr, eps=eps)
        shares(beta1=betas[0], beta2=betas[1])
        defaults = {"lr": lr, "betas": betas, "eps": eps, "maximize": maximize, "foreach": foreach}
        super().__init__(params, defaults)

    def start(self, p: Tensor, group: dict[str, Any]) -> State:
        return {"exp_avg": wide_zeros(p), "exp_inf": wide_zeros(p)}

    def update(self, p: Tensor, g: Tensor, state: State, group: dict[str, Any]) -> None:
        (b1, b2), t = group["betas"], state["step"]
        m, u, g = state["exp_avg"], state["exp_inf"], g.to(state["exp_avg"].dtype)
        m.lerp_(g, 1 - b1)
        torch.maximum(u.mul_(b2), g.abs().add_(group["eps"]), out=u)  # D1
        p.copy_(p.to(m.dtype).addcdiv_(m, u, value=-group["lr"] / (1 - b1**t)))
