"""NovoGrad (Ginsburg et al., 2019, arXiv:1905.11286), Algorithm 1.

    v <- b2 v + (1 - b2) ||g||^2          m <- b1 m + (g / (sqrt(v) + eps) + weight_decay w)          w <- w - lr m

g, m and w of one parameter have one shape, v is one number for the whole of it: ||g||^2 is the sum over all entries.
At the first step v = ||g||^2 and m = g / ||g|| + weight_decay w, so that nothing is corrected later.  betas = (0.95,
0.98), eps = 1e-8 and no decay, as in the authors' code (NVIDIA/OpenSeq2Seq).  m is a sum and no mean: under a constant
gradient the step grows from lr to lr / (1 - b1).  The decay joins after the normalization and goes through m, which is
not the decoupling of AdamW.

    grad_averaging=True    what joins m is multiplied by 1 - b1, from the first step on

  D1  v starts at the first gradient that is not 0, as in the code; in the paper at the first one.
  D2  In half precision m and v are kept in float32, and the step is rounded once.
"""

from typing import Any

import torch
from torch import Tensor

from repro.models.optimizer import Parameters, Rule, State, positive, shares, wide_zeros

__all__ = ["NovoGrad"]


class NovoGrad(Rule):
    """SGD with momentum on gradients that are divided, tensor by tensor, by a running root mean square of their norm.

    State: `exp_avg`, a tensor like the parameter, and `exp_avg_sq`, one number.  weight_decay goes through the
    momentum.  ValueError for numbers outside their range, RuntimeError for sparse gradients and complex parameters.
    """

    def __init__(
        self,
        params: Parameters,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.95, 0.98),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        grad_averaging: bool = False,
        maximize: bool = False,
    ):
        positive(lr=lr, eps=eps, weight_decay=weight_decay)
        shares(beta1=betas[0], beta2=betas[1])
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, {**defaults, "grad_averaging": grad_averaging, "maximize": maximize})

    def start(self, p: Tensor, group: dict[str, Any]) -> State:
        m = wide_zeros(p)
        return {"exp_avg": m, "exp_avg_sq": m.new_zeros(())}

    def square(self, g: Tensor) -> Tensor:
        """Return ||g||^2, what v is a mean of."""
        return g.square().sum()

    def update(self, p: Tensor, g: Tensor, state: State, group: dict[str, Any]) -> None:
        (b1, b2), m, v = group["betas"], state["exp_avg"], state["exp_avg_sq"]
        w, g = p.to(m.dtype), g.to(m.dtype)
        now = self.square(g)
        v.copy_(torch.where(v == 0, now, b2 * v + (1 - b2) * now))  # D1
        joins = (g / (v.sqrt() + group["eps"])).add_(w, alpha=group["weight_decay"])
        m.mul_(b1).add_(joins, alpha=1 - b1 if group["grad_averaging"] else 1.0)
        p.copy_(w - group["lr"] * m)
