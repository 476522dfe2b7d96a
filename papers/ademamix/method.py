"""AdEMAMix (Pagliardini, Ablin & Grangier, ICLR 2025, arXiv:2409.03137), Algorithm 1.

    m1 <- b1 m1 + (1 - b1) g        m2 <- b3(t) m2 + (1 - b3(t)) g        v <- b2 v + (1 - b2) g^2
    theta <- theta - lr ( (m1 / (1 - b1^t) + alpha(t) m2) / (sqrt(v / (1 - b2^t)) + eps) + weight_decay theta )

theta, g, m1, m2 and v of one parameter have one shape; the state starts at 0, t = 1, 2, ...  lr = 1e-3, (b1, b2, b3) =
(0.9, 0.999, 0.9999), alpha = 2 and eps = 1e-8, as in the authors' code (apple/ml-ademamix).  m2 starts at 0 on purpose:
it is not corrected, so that it comes in slowly.  Each parameter needs three tensors of its size.

During `alpha_warmup` and `beta3_warmup` steps, in the paper all steps of the run,

    alpha(t) = alpha t / T          b3(t) = h^-1( (1 - t/T) h(b1) + (t/T) h(b3) ),   h(b) = log 0.5 / log b - 1

so that the half-life of m2 grows in a straight line, and not b3 itself.

  D1  h has no 1e-8 under the logarithm, which the code adds; it moves b3 by less than 1e-7.
  D2  In half precision the state is kept in float32, and the step is rounded once, to the parameter's dtype.
"""

import math
from typing import Any

from torch import Tensor

from repro.models.optimizer import Parameters, Rule, State, positive, shares, wide_zeros

__all__ = ["AdEMAMix", "beta3_at"]


def half_life(beta: float) -> float:
    """Return the steps after which a mean has forgotten half, less one."""
    return math.log(0.5) / math.log(beta) - 1


def beta3_at(share: float, start: float, end: float) -> float:
    """Return b3 after a share of the warm-up: `start` at 0, `end` from 1 on, with a half-life that grows evenly."""
    if share >= 1 or start == end:
        return end
    if start == 0:
        raise ValueError("beta1=0 has no half-life for b3 to start from: write beta3_warmup=0")
    between = (1 - share) * half_life(start) + share * half_life(end)
    return 0.5 ** (1 / (between + 1))


class AdEMAMix(Rule):
    """AdamW with a second, slow mean of the gradient.

    betas: b1, b2 and b3.  alpha_warmup, beta3_warmup: steps T in which alpha and b3 rise; 0, as in the authors' code,
    for none.  weight_decay is decoupled and multiplied by lr.  ValueError for numbers outside their range.
    """

    elementwise = True

    def __init__(
        self,
        params: Parameters,
        lr: float = 1e-3,
        betas: tuple[float, float, float] = (0.9, 0.999, 0.9999),
        alpha: float = 2.0,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        alpha_warmup: int = 0,
        beta3_warmup: int = 0,
        maximize: bool = False,
        foreach: bool = False,
    ):
        positive(lr=lr, alpha=alpha, eps=eps, weight_decay=weight_decay)
        positive(alpha_warmup=alpha_warmup, beta3_warmup=beta3_warmup)
        shares(beta1=betas[0], beta2=betas[1], beta3=betas[2])
        defaults = {"lr": lr, "betas": betas, "alpha": alpha, "eps": eps, "weight_decay": weight_decay}
        defaults |= {
            "alpha_warmup": alpha_warmup,
            "beta3_warmup": beta3_warmup,
            "maximize": maximize,
            "foreach": foreach,
        }
        super().__init__(params, defaults)

    def start(self, p: Tensor, group: dict[str, Any]) -> State:
        return {"exp_avg": wide_zeros(p), "exp_avg_slow": wide_zeros(p), "exp_avg_sq": wide_zeros(p)}

    def update(self, p: Tensor, g: Tensor, state: State, group: dict[str, Any]) -> None:
        (b1, b2, b3), t, lr = group["betas"], state["step"], group["lr"]
        fast, slow, v = state["exp_avg"], state["exp_avg_slow"], state["exp_avg_sq"]
        g = g.to(v.dtype)
        fast.lerp_(g, 1 - b1)
        slow.lerp_(g, 1 - beta3_at(risen(t, group["beta3_warmup"]), b1, b3))
        v.mul_(b2).addcmul_(g, g, value=1 - b2)
        above = (fast / (1 - b1**t)).add_(slow, alpha=group["alpha"] * risen(t, group["alpha_warmup"]))
        below = (v / (1 - b2**t)).sqrt_().add_(group["eps"])
        shrunk = p.to(v.dtype) * (1 - lr * group["weight_decay"])
        p.copy_(shrunk.addcdiv_(above, below, value=-lr))


def risen(t: int, warmup: int) -> float:
    """Return t / warmup, at most 1; 1 without a warm-up."""
    return min(t / warmup, 1.0) if warmup else 1.0
