"""AdamW and SGDW (Loshchilov & Hutter, ICLR 2019, arXiv:1711.05101), Algorithms 1 and 2.

    AdamW   theta <- theta - eta_t (alpha m^ / (sqrt(v^) + eps) + lambda theta)       m, v see no decay, as in Adam
    SGDW    m <- momentum m + eta_t alpha g,     theta <- theta - m - eta_t lambda theta

alpha is the rate before the schedule, eta_t the schedule's factor, so that a group's `lr` is eta_t alpha.  theta, g, m
and v of one parameter have one shape, m and v start at 0, lambda multiplies the old theta, and every parameter decays
that its group does not exempt.  alpha = 1e-3, betas = (0.9, 0.999), eps = 1e-8; lambda = 1e-5, which at this rate is
the default of torch.optim.AdamW.

    parametrization="paper"   theta loses eta_t lambda of itself in a step, whatever alpha is
    parametrization="torch"   theta loses lr weight_decay of itself: lambda = alpha weight_decay

normalized_decay is Appendix B: lambda = lambda_norm sqrt(b / (B T)): b examples a batch, B in the training
set, T epochs.

  D1  eta_t is read off as lr / base_lr, where base_lr is a group's rate when the group is made; the state dict has it.
      A rate of 0 gives eta_t = 0.
  D2  In half precision m and v are kept in float32, and decay and step are rounded together, once.
"""

import math
from typing import Any

from torch import Tensor

from repro.models.optimizer import Parameters, Rule, State, positive, shares, wide_zeros
from repro.papers.adam import Adam

__all__ = ["SGDW", "AdamW", "normalized_decay"]

PARAMETRIZATIONS = ("paper", "torch")


def normalized_decay(norm: float, batch: int, examples: int, epochs: float) -> float:
    """Return lambda = norm sqrt(batch / (examples epochs)), in the paper's parametrization (Appendix B)."""
    return norm * math.sqrt(batch / (examples * epochs))


def kept(group: dict[str, Any]) -> float:
    """Return what a step leaves of a parameter, as a factor."""
    if group["parametrization"] == "torch":
        return 1 - group["lr"] * group["weight_decay"]
    eta = group["lr"] / group["base_lr"] if group["base_lr"] else 0.0  # D1
    return 1 - eta * group["weight_decay"]


class Decoupled(Rule):
    """What AdamW and SGDW share: the two keys of a group that say how it decays."""

    elementwise = True

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, and remember its rate; ValueError for an unknown parametrization."""
        group = {**self.defaults, **param_group}
        if group["parametrization"] not in PARAMETRIZATIONS:
            raise ValueError(
                f"parametrization={group['parametrization']!r}: write one of {', '.join(PARAMETRIZATIONS)}"
            )
        positive(weight_decay=group["weight_decay"])
        param_group.setdefault("base_lr", group["lr"])
        super().add_param_group(param_group)


class AdamW(Decoupled, Adam):
    """Adam with decoupled weight decay; arguments and state as those of torch.optim.AdamW but for the decay.

    weight_decay: lambda, a share of the weight per step (torch's is times lr), or torch's coefficient with
    parametrization="torch".  ValueError for numbers outside their range, RuntimeError for sparse gradients and complex
    parameters.
    """

    def __init__(
        self,
        params: Parameters,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-5,
        *,
        parametrization: str = "paper",
        maximize: bool = False,
        foreach: bool = False,
    ):
        positive(lr=lr, eps=eps)
        shares(beta1=betas[0], beta2=betas[1])
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "maximize": maximize}
        defaults |= {"parametrization": parametrization, "foreach": foreach, "bias_correction": True}
        Rule.__init__(self, params, defaults)

    def update(self, p: Tensor, g: Tensor, state: State, group: dict[str, Any]) -> None:
        wide = p.to(state["exp_avg"].dtype).mul_(kept(group))
        super().update(wide, g, state, group)
        p.copy_(wide)


class SGDW(Decoupled):
    """SGD with momentum and decoupled weight decay; arguments of AdamW where they are the same, errors too.

    The rate stands inside the momentum, as in Algorithm 1, so that a fall of the rate shows after 1 / (1 - momentum)
    steps.  State: `velocity`.
    """

    def __init__(
        self,
        params: Parameters,
        lr: float = 1e-3,
        momentum: float = 0.9,
        weight_decay: float = 1e-5,
        *,
        parametrization: str = "paper",
        maximize: bool = False,
        foreach: bool = False,
    ):
        positive(lr=lr)
        shares(momentum=momentum)
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "maximize": maximize}
        super().__init__(params, {**defaults, "parametrization": parametrization, "foreach": foreach})

    def start(self, p: Tensor, group: dict[str, Any]) -> State:
        return {"velocity": wide_zeros(p)}

    def update(self, p: Tensor, g: Tensor, state: State, group: dict[str, Any]) -> None:
        m = state["velocity"]
        m.mul_(group["momentum"]).add_(g.to(m.dtype), alpha=group["lr"])
        p.copy_(p.to(m.dtype).mul_(kept(group)).sub_(m))
