"""Label smoothing (Müller, Kornblith & Hinton, NeurIPS 2019, arXiv:1906.02629, When Does Label Smoothing Help?).

    q_k  = (1 - a) [k = y] + a / K                                                     smoothed targets, Sec. 1.1
    loss = - sum_k q_k log p_k = (1 - a) (- log p_y) + a mean_k (- log p_k)            p = softmax(z)
    gap  = z_y - z_k = log((K (1 - a) + a) / a)                                        where a free z has its minimum
    ECE  = sum over bins of n_b / n |accuracy_b - confidence_b|                        15 bins of equal width, Sec. 3
    distillation = T^2 * cross-entropy(softmax(z_teacher / T), softmax(z / T))         Sec. 4, pure distillation

z: (..., K) logits of K classes, y: (...) their targets.  Smoothing is for training; models are scored on y.

Where the paper is silent:
  D1  The uniform part contains the true class, as in torch: p_y = 1 - a + a / K at the minimum, not 1 - a.
  D2  Confidences of exactly 0 fall into the first bin; bins are open on the left and closed on the right.
  D3  The temperature of `temperature_scaling` is found by golden section on log T between 1/20 and 20.
  D4  The distillation loss keeps T^2 (Hinton et al. 2015), so that its gradient does not shrink with T; T may be a
      tensor that broadcasts over the examples.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from repro.models.affine import wide

__all__ = [
    "distillation_loss",
    "expected_calibration_error",
    "label_smoothing_loss",
    "logit_gap",
    "smoothed_targets",
    "temperature_scaling",
]


def smoothed_targets(y: Tensor, classes: int, label_smoothing: float = 0.1) -> Tensor:
    """q: (..., K), which sums to 1.  Raises ValueError unless 0 <= label_smoothing <= 1."""
    _checked(label_smoothing)
    return (1 - label_smoothing) * F.one_hot(y, classes).to(torch.get_default_dtype()) + label_smoothing / classes


def label_smoothing_loss(z: Tensor, y: Tensor, label_smoothing: float = 0.1) -> Tensor:
    """The mean loss over all examples.  z: (..., K), y: (...).  Raises ValueError unless 0 <= label_smoothing <= 1."""
    _checked(label_smoothing)
    log_p = wide(z).log_softmax(-1)
    right = log_p.gather(-1, y[..., None]).squeeze(-1)
    return -((1 - label_smoothing) * right + label_smoothing * log_p.mean(-1)).mean()


def logit_gap(classes: int, label_smoothing: float) -> float:
    """z_y - z_k at the minimum of the loss of one example, infinite for label_smoothing = 0."""
    _checked(label_smoothing)
    a = label_smoothing
    return math.log((classes * (1 - a) + a) / a) if a else math.inf


def expected_calibration_error(p: Tensor, y: Tensor, bins: int = 15) -> float:
    """ECE of the largest probability.  p: (n, K) probabilities, y: (n,)."""
    confidence, guess = wide(p).double().max(-1)
    gap = (guess == y).double() - confidence
    index = (confidence * bins).ceil().long().clamp(1, bins) - 1  # D2
    return float(torch.zeros(bins, dtype=gap.dtype, device=gap.device).index_add_(0, index, gap).abs().sum() / len(gap))


@torch.no_grad()
def temperature_scaling(z: Tensor, y: Tensor) -> float:
    """The T > 0 for which the held-out loss of z / T is least.  z: (n, K), y: (n,)."""
    z, golden = wide(z).double(), (math.sqrt(5) - 1) / 2
    low, high = -math.log(20.0), math.log(20.0)  # D3
    for _ in range(60):
        left, right = high - golden * (high - low), low + golden * (high - low)
        worse = F.cross_entropy(z / math.exp(left), y) > F.cross_entropy(z / math.exp(right), y)
        low, high = (left, high) if worse else (low, right)
    return math.exp((low + high) / 2)


def distillation_loss(z: Tensor, teacher_z: Tensor, temperature: float | Tensor = 1.0) -> Tensor:
    """The mean over all examples.  z, teacher_z: (..., K); temperature above 0, a number or (...)."""
    t = temperature[..., None] if isinstance(temperature, Tensor) else temperature
    target, log_p = (wide(teacher_z) / t).softmax(-1), (wide(z) / t).log_softmax(-1)
    return -(t**2 * target * log_p).sum(-1).mean()  # D4


def _checked(label_smoothing: float) -> None:
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing={label_smoothing}: write a share from 0 to 1, such as 0.1")
