"""DyT, Dynamic Tanh (Zhu, Chen, He, LeCun & Liu, CVPR 2025, arXiv:2503.10622), Sec. 4.

    DyT(x) = gamma * tanh(alpha * x) + beta

x and DyT(x): (..., *normalized_shape).  gamma ("weight") and beta ("bias"): normalized_shape, start at 1 and 0.
alpha: ONE learnable number per layer, kept as shape (1,) as in the authors' code (jiachenzhu/DyT, dynamic_tanh.py);
it starts at alpha_0 = 0.5 in every model but language models (Sec. 4, Sec. 7).  No statistics: train and eval agree,
and no element sees another.  It takes the place of every norm of a Transformer: before attention, before the
feed-forward network, and the final one.

LLaMA (v2, Sec. 7.2 and Appendix A) starts from other alphas, by width and place, has no beta, and multiplies the
embedded tokens by a learnable number that starts at sqrt(d).

Departures from the authors' code:
  D1  the output has the dtype of x.  There, half-precision x and float32 weights (autocast) give float32.
  D2  convert_ln_to_dyt (convert.py) also replaces RMS norms, keeps device and dtype, and gives a DyT a fresh gain and a
      fresh bias only where the norm had them (theirs always both): without a bias it is the DyT of their LLaMA.
  D3  convert_ln_to_dyt refuses a model without such norms instead of returning it as it is.
"""

import math

import torch
from torch import Tensor, nn

from repro.models.affine import Affine, Shape, apply_affine, trailing_axes

__all__ = ["DyT"]


class DyT(Affine):
    """weight * tanh(alpha * x) + bias (Sec. 4), in the place and with the shapes of torch.nn.LayerNorm.

    The second argument is alpha_0, where LayerNorm has eps.  elementwise_affine=False leaves alpha alone learnable,
    bias=False is the DyT of LLaMA.  x: (..., *normalized_shape), of any memory layout.  Works in the dtype that x and
    the parameters have in common.

    Raises ValueError if alpha_0 is 0 or not finite or the shape of x does not fit, TypeError if x is an integer.
    """

    def __init__(
        self,
        normalized_shape: Shape,
        alpha_init: float = 0.5,
        elementwise_affine: bool = True,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        if not (math.isfinite(alpha_init) and alpha_init):
            raise ValueError(f"alpha_init={alpha_init} would pass no signal: write a number such as 0.5")
        super().__init__(normalized_shape, elementwise_affine, bias, device, dtype)
        self.alpha_init = alpha_init
        self.alpha = nn.Parameter(torch.empty(1, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        super().reset_parameters()
        nn.init.constant_(self.alpha, self.alpha_init)

    def forward(self, input: Tensor) -> Tensor:
        trailing_axes(input, self.normalized_shape)
        y = torch.tanh(self.alpha * input)
        return apply_affine(y, self.weight, self.bias).to(input.dtype)  # D1

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, alpha_init={self.alpha_init}"
