"""ReLU as the classification function (Agarap, 2018, arXiv:1803.08375), Sec. 2.4: max(0, o) in the place of softmax(o).

    o = theta h + b,      p = max(0, o),      class = argmax p,      loss = -log(p_y / sum_j p_j)

h: (*, features) -> p: (*, classes).  The gradient is 1 / sum - 1 / p_y at the right class, 1 / sum at others above 0,
and 0 at those below; where o_y <= 0 it is 0 everywhere, and the loss is -log(1e-7) = 16.118.

Where the paper leaves a choice:
  D1  The printed loss (Eq. 7) is -log(p_y) without the division.  Keras, in which the paper was run, divides by the sum
      and clips to [1e-7, 1 - 1e-7]; so do we.  normalise=False is the printed one, clipped from below alone.
  D2  Where every output is 0 Keras divides 0 by 0; here the share is 0, with the loss 16.118 and no gradient.
  D3  Weights start by Glorot's uniform rule and biases at 0, Keras' defaults (torch's nn.Linear does otherwise).
"""

import torch
from torch import Tensor, nn

from repro.models.affine import wide

__all__ = ["relu_cross_entropy", "relu_head"]

EPS = 1e-7  # Keras' epsilon


def relu_cross_entropy(input: Tensor, target: Tensor, reduction: str = "mean", *, normalise: bool = True) -> Tensor:
    """Return -log of the share of max(0, input) that the right class has, clipped as in Keras (D1, D2).

    input: (*, classes), scores before or after the ReLU, whose dtype the loss has; TypeError for integers.
    target: (*) of classes.  reduction: "mean", "sum" or "none"; ValueError otherwise.
    """
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction={reduction!r} is unknown; write mean, sum or none")
    p = wide(input).relu()
    share = p.gather(-1, target.unsqueeze(-1)).squeeze(-1)
    if normalise:
        total = p.sum(-1)
        share = share / torch.where(total > 0, total, 1.0)  # D2
    loss = -share.clamp(EPS, 1 - EPS if normalise else None).log()
    return (loss if reduction == "none" else getattr(loss, reduction)()).to(input.dtype)


def relu_head(
    in_features: int,
    num_classes: int,
    bias: bool = True,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> nn.Sequential:
    """Return the last layer max(0, theta h + b): a torch.nn.Linear as Keras would start it (D3), then a ReLU."""
    layer = nn.Linear(in_features, num_classes, bias, device, dtype)
    nn.init.xavier_uniform_(layer.weight)
    if bias:
        nn.init.zeros_(layer.bias)
    return nn.Sequential(layer, nn.ReLU())
