"""LayerNorm (Ba, Kiros & Hinton, 2016, arXiv:1607.06450), Eq. 3.

    mu = mean_i a_i        sigma = sqrt(mean_i (a_i - mu)^2)        y = g * (a - mu) / sigma + b

a and y: (..., *normalized_shape), of which the last axes together are the H summed inputs of one layer.
g ("weight") and b ("bias"): normalized_shape; g starts at 1, b at 0 (Sec. 6; the supplement swaps the labels).
The variance is the biased one. Every case stands alone: no running statistics, train and eval agree, and a
batch of one or of none is as good as any.

Where the paper is silent:
  D1  eps = 1e-5 is added to the variance, inside the root, as the authors' code does (ryankiros/layer-norm,
      layers.py) and torch.nn too; the paper's equation has none.  The invariances of the paper's Table 1 hold for
      eps = 0, and up to a relative error of eps / sigma^2 for the class as it is.

In float32 the squares overflow once the sum of (a_i - mu)^2 passes 3.4e38; y is then 0 (torch: 0 or NaN).
"""

import torch
from torch import Tensor

from repro.models.affine import Affine, Shape, apply_affine, leaf, trailing_axes, wide

__all__ = ["LayerNorm", "layer_norm"]


@leaf
def layer_norm(
    input: Tensor,
    normalized_shape: Shape,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Return g * (a - mu) / sqrt(sigma^2 + eps) + b over the last axes of a = `input`; arguments as F.layer_norm."""
    axes, a = trailing_axes(input, normalized_shape), wide(input)
    # Centre first: E[a^2] - E[a]^2 loses every digit when |mu| is much larger than sigma.
    centred = a - a.mean(axes, keepdim=True)
    variance = centred.square().mean(axes, keepdim=True)
    y = centred / (variance + eps).sqrt()  # D1
    return apply_affine(y, weight, bias).to(input.dtype)


class LayerNorm(Affine):
    """Layer normalisation with the arguments, state dict and shapes of torch.nn.LayerNorm."""

    def __init__(
        self,
        normalized_shape: Shape,
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__(normalized_shape, elementwise_affine, bias, device, dtype)
        self.eps = eps

    def forward(self, input: Tensor) -> Tensor:
        return layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, eps={self.eps}"
