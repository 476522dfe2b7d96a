"""RMSNorm and pRMSNorm (Zhang & Sennrich, NeurIPS 2019, arXiv:1910.07467), Eq. 4.

    RMS(a) = sqrt(mean_i a_i^2)          y = g * a / RMS(a)

a and y have the shape (..., *normalized_shape), whose last axes together are the n summed inputs of one layer.  The
gain g ("weight") has the shape normalized_shape and starts at 1.  Nothing is centred, there is no bias (the b of f(y +
b) belongs to the layer around), and training and evaluation are the same.  pRMSNorm takes RMS over the first k = ceil(n
p) inputs and divides all n by it.

The paper is silent, or the authors' code (bzhangGo/rmsnorm, rmsnorm_torch.py) differs from it, in two places:
  D1  eps = 1e-8 is added to RMS(a), outside the root, as in that file.  Their TensorFlow file and torch.nn put it
      inside; the two part company where RMS(a) is not much larger than sqrt(eps).
  D2  k is rounded up, as in the paper; the code rounds down and divides by zero when n p < 1.

In float32 the squares overflow once their sum passes 3.4e38; y is then 0, as in torch.  The derivative at a = 0 is g /
eps, which float16 cannot hold: there, and in float16 alone, it is g.
"""

import math

import torch
from torch import Tensor

from repro.models.affine import Affine, Shape, as_shape, leaf, length, trailing_axes, wide

__all__ = ["PartialRMSNorm", "RMSNorm", "rms_norm"]

EPS = 1e-8  # D1


def count(n: int, p: float) -> int:
    """Return k = ceil(n p), the number of inputs that RMS is taken over."""
    if not 0 < p <= 1:
        raise ValueError(f"p={p} is no share of the inputs: write 0 < p <= 1")
    return max(1, math.ceil(round(n * p, 9)))  # D2; rounded, since 100 * 0.07 > 7 in binary


@leaf
def normalised(input: Tensor, shape: Shape, weight: Tensor | None, eps: float, k: int) -> Tensor:
    """Return g * a / (RMS of the first k inputs + eps) over the last axes of a."""
    flat = wide(input).flatten(trailing_axes(input, shape)[0])  # (..., n)
    rms = length(flat[..., :k], (-1,)) / k**0.5
    below = rms + eps  # D1
    if input.dtype == torch.float16:
        below = below.masked_fill(rms == 0, 1.0)
    y = (flat / below).reshape(input.shape)
    return (y if weight is None else y * weight).to(input.dtype)


def rms_norm(
    input: Tensor, normalized_shape: Shape, weight: Tensor | None = None, eps: float | None = EPS, *, p: float = 1.0
) -> Tensor:
    """Return g * a / (RMS of the first ceil(n p) inputs + eps) over the last axes of a; arguments as F.rms_norm."""
    k = count(math.prod(as_shape(normalized_shape)), p)
    return normalised(input, normalized_shape, weight, EPS if eps is None else eps, k)


class RMSNorm(Affine):
    """RMS normalisation with the arguments, state dict and shapes of torch.nn.RMSNorm (but for the
    place of eps: D1).
    """

    def __init__(
        self,
        normalized_shape: Shape,
        eps: float | None = EPS,
        elementwise_affine: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__(normalized_shape, elementwise_affine, bias=False, device=device, dtype=dtype)
        self.eps, self.k = EPS if eps is None else eps, math.prod(self.normalized_shape)

    def forward(self, input: Tensor) -> Tensor:
        return normalised(input, self.normalized_shape, self.weight, self.eps, self.k)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, eps={self.eps}"


class PartialRMSNorm(RMSNorm):
    """pRMSNorm: RMS is estimated from the first ceil(n p) of the n inputs; p = 6.25 % in the paper."""

    def __init__(
        self,
        normalized_shape: Shape,
        p: float = 0.0625,
        eps: float | None = EPS,
        elementwise_affine: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__(normalized_shape, eps, elementwise_affine, device, dtype)
        self.p, self.k = p, count(self.k, p)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, p={self.p}"
