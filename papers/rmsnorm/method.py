"""RMSNorm and pRMSNorm (Zhang & Sennrich, NeurIPS 2019, arXiv:1910.07467), Eq. 4.

    RMS(a) = sqrt(mean_i a_i^2)          y = g * a / RMS(a)

a and y: (..., *normalized_shape), of which the last axes together are the n summed inputs of one layer.
g ("weight"): normalized_shape, starts at 1. No centring and no bias (the b of f(y + b) belongs to the layer
around); train and eval agree. pRMSNorm takes RMS over the first k = ceil(n p) inputs, and divides all n by it.

Where the paper is silent, or the authors' code (bzhangGo/rmsnorm, rmsnorm_torch.py) differs from it:
  D1  eps = 1e-8 is added to RMS(a), outside the root, as in that file. Their TensorFlow file and torch.nn put
      it inside; the two part company where RMS(a) is not much larger than sqrt(eps).
  D2  RMS is computed in float32 at least and y has the dtype of a, under autocast also.
  D3  k is rounded up, as in the paper; the code rounds down and divides by zero when n p < 1.

In float32 the squares overflow once their sum passes 3.4e38; y is then 0, as in torch.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from repro.models.affine import Affine, trailing_axes

__all__ = ["PartialRMSNorm", "RMSNorm", "rms_norm"]


def rms_norm(
    a: Tensor,
    normalized_shape: int | Sequence[int],
    weight: Tensor | None = None,
    eps: float = 1e-8,
    *,
    p: float = 1.0,
) -> Tensor:
    """g * a / (RMS of the first ceil(n p) inputs + eps) over the last axes of `a`; arguments as F.rms_norm."""
    axes = trailing_axes(a, normalized_shape)
    if not 0 < p <= 1:
        raise ValueError(f"p={p} is no share of the inputs: write 0 < p <= 1")
    wide = a.to(torch.promote_types(a.dtype, torch.float32))  # D2
    flat = wide.flatten(axes[0])  # (..., n)
    k = max(1, math.ceil(round(flat.shape[-1] * p, 9)))  # D3; rounded, since 100 * 0.07 > 7 in binary
    # vector_norm rather than square().mean().sqrt(): its gradient at a = 0 is 0 instead of NaN.
    rms = torch.linalg.vector_norm(flat[..., :k], dim=-1, keepdim=True) / k**0.5
    y = (flat / (rms + eps)).reshape(a.shape)  # D1
    if weight is not None:
        y = y * weight
    return y.to(a.dtype)


class RMSNorm(Affine):
    """RMS normalisation with the arguments, state dict and shapes of torch.nn.RMSNorm (but for eps: D1)."""

    p = 1.0  # the share of the inputs that RMS is taken over

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float = 1e-8,
        elementwise_affine: bool = True,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__(normalized_shape, elementwise_affine, bias=False, device=device, dtype=dtype)
        self.eps = eps

    def forward(self, a: Tensor) -> Tensor:
        return rms_norm(a, self.normalized_shape, self.weight, self.eps, p=self.p)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, eps={self.eps}"


class PartialRMSNorm(RMSNorm):
    """pRMSNorm: RMS is estimated from the first ceil(n p) of the n inputs; p = 6.25 % in the paper."""

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        p: float = 0.0625,
        eps: float = 1e-8,
        elementwise_affine: bool = True,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        if not 0 < p <= 1:
            raise ValueError(f"p={p} is no share of the inputs: write 0 < p <= 1")
        super().__init__(normalized_shape, eps, elementwise_affine, device=device, dtype=dtype)
        self.p = p

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, p={self.p}"
