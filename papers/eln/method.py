"""ELN / DyISRU (Stollenwerk, 2025, arXiv:2503.21708; v1 Elementwise Layer Normalization, v2 on DyISRU; EACL 2026).

    RMSNorm(x)_i = x_i / sqrt(mean_k x_k^2) = sqrt(C) x_i / sqrt(x_i^2 + b),   b = sum_{k != i} x_k^2    (exact)
    DyISRU(x)    = gamma * sqrt(C) x / sqrt(x^2 + b) + beta                    b > 0 one learned scalar

x and y: (..., *normalized_shape), C the number of elements of normalized_shape.  gamma ("weight") and beta ("bias"):
normalized_shape, starting at 1 and 0.  No statistics are taken, so train and eval agree and no eps is needed.
As a function of x_i alone, its channels otherwise fixed, RMSNorm is exactly the slice above, and LayerNorm is
sqrt(C - 1) d / sqrt(d^2 + C s^2), d = x_i - m, with m and s^2 the mean and the biased variance of the others.
Along x_i the slope of RMSNorm is dy/dx = (1/sigma)(1 - y^2/C), sigma = sqrt(mean_k x_k^2).  With sigma held fixed
this integrates to sqrt(C) tanh(x / (sqrt(C) sigma)), which is DyT; with sigma = x/y put back, to the slice.

Where the paper is silent, or its code (flxst/dynamic-activation-functions) differs:
  D1  b starts at C, so that the slope at 0 is gamma: RMSNorm of channels of mean square 1.  The paper trains nothing.
  D2  The parameter is log b, so that no step of an optimizer leaves b > 0.
  D3  The amplitude is sqrt(C) and x is not centred, as in v3; v1 and v2 derive LayerNorm's sqrt(C - 1) and x - mu.
      The two differ by a constant that gamma and beta can learn, but for the mean of each vector.
  D4  sqrt(x^2 + b) is a hypot, so that no square overflows.
"""

import math

import torch
from torch import Tensor, nn

from repro.models.affine import Affine, Shape, apply_affine, trailing_axes, wide

__all__ = ["ELN", "dyisru", "layernorm_slice", "rmsnorm_slice", "tanh_slice"]


def dyisru(x: Tensor, b: Tensor | float, c: float) -> Tensor:
    """sqrt(c) x / sqrt(x^2 + b), elementwise and bounded by sqrt(c) (v3, the element-wise counterpart of RMSNorm).

    x: any shape; b > 0: a number or a tensor that broadcasts with x; c: the number of channels C.
    """
    if not c > 0:
        raise ValueError(f"c={c} is no number of channels: write c > 0")
    return math.sqrt(c) * (x / torch.hypot(x, torch.as_tensor(b, dtype=x.dtype, device=x.device).sqrt()))


def rmsnorm_slice(x: Tensor, others: Tensor) -> Tensor:
    """RMSNorm's output at a channel of value x, the C - 1 others fixed: exact (v3, decoupling in function space).

    x: (n,), values of the one channel; others: (C - 1,).  Returns (n,); bounded by sqrt(C).
    """
    return dyisru(x, others.square().sum(), others.numel() + 1)


def layernorm_slice(x: Tensor, others: Tensor) -> Tensor:
    """LayerNorm's output at a channel of value x, the C - 1 others fixed: exact (v1, ELN).

    x: (n,); others: (C - 1,), not all equal.  Returns (n,); bounded by sqrt(C - 1): 7 at C = 50.
    """
    c = others.numel() + 1
    return dyisru(x - others.mean(), c * others.var(correction=0), c - 1)


def tanh_slice(x: Tensor, sigma: Tensor | float, c: float) -> Tensor:
    """sqrt(c) tanh(x / (sqrt(c) sigma)), the slice if sigma did not depend on x: DyT with alpha = 1 / (sqrt(c) sigma).

    x: any shape; sigma > 0: the root mean square of the vector at which it is held (decoupling in derivative space).
    """
    return math.sqrt(c) * torch.tanh(x / (math.sqrt(c) * sigma))


class ELN(Affine):
    """DyISRU as a layer: gamma * sqrt(C) x / sqrt(x^2 + b) + beta, with b = exp(log_b) learned (v3; v1 calls it ELN).

    normalized_shape, elementwise_affine, bias, device and dtype are those of torch.nn.LayerNorm; b_init: the initial b,
    C unless given (D1).  log_b has shape (1,) and is learned without elementwise_affine too.
    """

    def __init__(
        self,
        normalized_shape: Shape,
        elementwise_affine: bool = True,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        b_init: float | None = None,
    ):
        super().__init__(normalized_shape, elementwise_affine, bias, device, dtype)
        self.channels = math.prod(self.normalized_shape)
        self.b_init = float(self.channels if b_init is None else b_init)  # D1
        if not 0 < self.b_init < math.inf:
            raise ValueError(f"b_init={self.b_init} is no initial b: write a finite b_init > 0")
        self.log_b = nn.Parameter(torch.empty(1, device=device, dtype=dtype))  # D2
        self.reset_parameters()

    def reset_parameters(self) -> None:
        super().reset_parameters()
        nn.init.constant_(self.log_b, math.log(self.b_init))

    def forward(self, input: Tensor) -> Tensor:
        trailing_axes(input, self.normalized_shape)
        x, gain = wide(input), math.sqrt(self.channels)
        root = (self.log_b.to(x.dtype) / 2).exp()
        exported = torch.onnx.is_in_onnx_export()  # ONNX has no hypot
        y = x / ((x.square() + root.square()).sqrt() if exported else torch.hypot(x, root))  # D4
        y = y * (gain if self.weight is None else gain * self.weight.to(x.dtype))  # one pass over y, not two
        return apply_affine(y, None, self.bias).to(input.dtype)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, b_init={self.b_init:g}"
