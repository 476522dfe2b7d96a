"""The gates of GLU Variants (Shazeer 2020, arXiv:2002.05202, Eq. 5) as layers without weights, for a layer that has
computed x W and x V at once.

    [a, b] = halves of x along `dim`        y = g(a) * b        * element-wise

x: (..., 2 h, ...) with 2 h along `dim`, y: (..., h, ...).  The first half is gated by g, as x W is in the paper and in
Llama's fused projections; torch.nn.GLU takes the second half for the gate.
"""

from torch import Tensor, nn

from repro.models.affine import leaf
from repro.papers.glu_variants.method import geglu, reglu, swiglu

__all__ = ["GEGLU", "ReGLU", "SwiGLU"]


@leaf
def _halves(x: Tensor, dim: int) -> tuple[Tensor, ...]:
    if x.shape[dim] % 2:
        raise ValueError(f"input of shape {tuple(x.shape)} has no two halves along axis {dim}")
    return x.chunk(2, dim)


class _Gate(nn.Module):
    """y = g(a) * b of the halves of x along `dim`.  ValueError where that axis is odd."""

    def __init__(self, dim: int = -1):
        super().__init__()
        self.dim = dim

    def extra_repr(self) -> str:
        return f"dim={self.dim}"


class ReGLU(_Gate):
    """y = ReLU(a) * b."""

    def forward(self, x: Tensor) -> Tensor:
        halves = _halves(x, self.dim)
        return reglu(halves[0], halves[1])


class GEGLU(_Gate):
    """y = GELU(a) * b, with the exact GELU."""

    def forward(self, x: Tensor) -> Tensor:
        halves = _halves(x, self.dim)
        return geglu(halves[0], halves[1])


class SwiGLU(_Gate):
    """y = SiLU(a) * b."""

    def forward(self, x: Tensor) -> Tensor:
        halves = _halves(x, self.dim)
        return swiglu(halves[0], halves[1])
