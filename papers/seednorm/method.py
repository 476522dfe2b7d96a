"""SeeDNorm, Self-Rescaled Dynamic Normalization (Cai, Zhu, Liu & Min, ICLR 2026, arXiv:2510.22777), Sec. 3.

    SeeDNorm(x) = (tanh(x . beta) * alpha + gamma) * x / RMS(x),        RMS(x) = sqrt(mean_i x_i^2 + eps)

x and SeeDNorm(x) have the shape (..., *normalized_shape), of which the last axes together are the D features of one
token. x . beta is ONE number per token, the dot product with the input as it comes, not divided by RMS(x): this is how
the size of the input gets through.  alpha, beta and gamma ("weight") have the shape normalized_shape; gamma and alpha
start at 1 and beta at 0, where the layer is RMSNorm exactly.  With `heads` = n (multi-head SeeDNorm, for vision) x and
beta are cut into n contiguous slices of D / n; the tanh of a slice's dot product multiplies that slice of alpha.  RMS
is over all D.

No statistics are kept: training and evaluation agree.  Weight decay is meant to act on alpha and beta, although they
are vectors; gamma is treated as the gain of the norm that is replaced.

The paper leaves three choices:
  D1  eps = 1e-6, inside the root, as in swiss-ai/Megatron-LM, torch_norm.py (whose caller may pass 1e-5).
  D2  gamma is called `weight`, so that checkpoints of RMSNorm load but for alpha and beta.  elementwise_affine=False
      leaves out gamma alone, which gives (tanh(x . beta) * alpha + 1) * x / RMS(x), the inner part of AdaSeeDNorm.
  D3  Dropout on the dynamic term and its division by D, which ViT and ConvNeXt add, belong to their recipe, not here.
"""

import math

import torch
from torch import Tensor, nn

from repro.models.affine import Affine, Shape, rms_norm, trailing_axes, wide

__all__ = ["SeeDNorm"]

EPS = 1e-6  # D1


class SeeDNorm(Affine):
    """(tanh(x . beta) * alpha + weight) * x / RMS(x) (Sec. 3), in the place and with the shapes of torch.nn.RMSNorm.

    x: (..., *normalized_shape).  heads: into how many slices the D features are cut for the dot products; 1 in language
    models, 16 in ViT-B.  alpha_init: initial value of alpha.  elementwise_affine=False: no `weight`.

    Raises ValueError if heads does not divide D, alpha_init is 0 or not finite, or the shape of x does not fit;
    TypeError if x is an integer.
    """

    def __init__(
        self,
        normalized_shape: Shape,
        eps: float | None = EPS,
        elementwise_affine: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        heads: int = 1,
        alpha_init: float = 1.0,
    ):
        super().__init__(normalized_shape, elementwise_affine, bias=False, device=device, dtype=dtype)
        if heads < 1 or math.prod(self.normalized_shape) % heads:
            raise ValueError(f"heads={heads} does not cut {self.normalized_shape} into equal slices: write a divisor")
        if not (math.isfinite(alpha_init) and alpha_init):
            raise ValueError(f"alpha_init={alpha_init} would keep beta at 0 for ever: write a number such as 1.0")
        self.eps, self.heads, self.alpha_init = EPS if eps is None else eps, heads, alpha_init
        self.alpha, self.beta = (
            nn.Parameter(torch.empty(self.normalized_shape, device=device, dtype=dtype)) for _ in range(2)
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        super().reset_parameters()
        nn.init.constant_(self.alpha, self.alpha_init)
        nn.init.zeros_(self.beta)

    def cut(self, x: Tensor) -> Tensor:
        """(..., *normalized_shape) -> (..., heads, D / heads)."""
        flat = x.flatten(-len(self.normalized_shape))
        return flat.unflatten(-1, (self.heads, flat.shape[-1] // self.heads))

    def rescale(self, x: Tensor) -> Tensor:
        """tanh(x . beta) of every slice: (..., heads, D / heads) -> (..., heads, 1)."""
        return torch.tanh((x * self.cut(self.beta)).sum(-1, keepdim=True))

    def forward(self, x: Tensor) -> Tensor:
        trailing_axes(x, self.normalized_shape)
        normed = rms_norm(wide(x), self.normalized_shape, self.eps)  # D1
        gamma = 1.0 if self.weight is None else self.cut(self.weight)  # D2
        y = (self.rescale(self.cut(wide(x))) * self.cut(self.alpha) + gamma) * self.cut(normed)
        return y.reshape(x.shape).to(x.dtype)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, eps={self.eps}, heads={self.heads}, alpha_init={self.alpha_init}"
