"""LayerNorm (Ba, Kiros & Hinton, 2016, arXiv:1607.06450), Eq. 3.

    mu = mean_i a_i        sigma = sqrt(mean_i (a_i - mu)^2)        y = g * (a - mu) / sigma + b

a and y: (..., *normalized_shape), of which the last axes together are the H summed inputs of one layer.
g ("weight") and b ("bias"): normalized_shape; g starts at 1, b at 0 (Sec. 6; the supplement swaps the labels).
The variance is the biased one. Every case stands alone: no running statistics, train and eval agree, and a
batch of one or of none is as good as any.

Where the paper is silent:
  D1  eps = 1e-5 is added to the variance, inside the root, as the authors' code does (ryankiros/layer-norm,
      layers.py) and torch.nn too; the paper's equation has none.
  D2  mu and sigma are computed in float32 at least and y has the dtype of a, under autocast also. (Under CUDA
      autocast torch.nn.LayerNorm returns float32; on CPU it does as we do.)

In float32 the squares overflow once the sum of (a_i - mu)^2 passes 3.4e38; y is then 0 (torch: 0 or NaN).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from repro.models.affine import Affine

__all__ = ["LayerNorm", "layer_norm"]


def trailing_axes(x: Tensor, normalized_shape: int | Sequence[int]) -> tuple[int, ...]:
    """The axes (-k, ..., -1) of `x` that `normalized_shape` stands for.

    Raises TypeError if `x` is not floating point, ValueError if its last axes differ from `normalized_shape`.
    """
    shape = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
    if not x.is_floating_point():
        raise TypeError(f"a norm needs floating-point input, got {x.dtype}: write x.float()")
    if not shape or x.shape[-len(shape) :] != shape:  # broadcasting would hide this when the axis of x has size 1
        raise ValueError(f"input of shape {tuple(x.shape)} does not end in normalized_shape {shape}")
    return tuple(range(-len(shape), 0))


def layer_norm(
    a: Tensor,
    normalized_shape: int | Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """g * (a - mu) / sqrt(sigma^2 + eps) + b over the last axes of `a`; arguments as F.layer_norm."""
    axes = trailing_axes(a, normalized_shape)
    wide = a.to(torch.promote_types(a.dtype, torch.float32))  # D2
    # Centre first: E[a^2] - E[a]^2 loses every digit when |mu| is much larger than sigma.
    centred = wide - wide.mean(axes, keepdim=True)
    variance = centred.square().mean(axes, keepdim=True)
    y = centred / (variance + eps).sqrt()  # D1
    if weight is not None:
        y = y * weight
    if bias is not None:
        y = y + bias
    return y.to(a.dtype)


class LayerNorm(Affine):
    """Layer normalisation with the arguments, state dict and shapes of torch.nn.LayerNorm."""

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__(normalized_shape, elementwise_affine, bias, device=device, dtype=dtype)
        self.eps = eps

    def forward(self, a: Tensor) -> Tensor:
        return layer_norm(a, self.normalized_shape, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, eps={self.eps}"
