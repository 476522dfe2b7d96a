"""LayerNorm Scaling (Sun et al., NeurIPS 2025, arXiv:2502.05795, The Curse of Depth in Large Language Models).

    y = x + f(Norm(x) / sqrt(l))        l = 1, 2, ..., L counts the blocks                              (Eq. 12)

f: a sub-layer (attention or feed-forward) that keeps the shape of its input.  x, y: (..., dim), Norm over dim.
Both sub-layers of block l have the same factor; block 1 is plain Pre-LN, and the norm after block L is not scaled.
The factor is a constant: no parameter, no buffer, no hyper-parameter, and the state dict is that of Pre-LN.
All weights start as in Pre-LN, without the extra 1 / sqrt(2 L) on output projections ("scaled initialization",
footnote 1 and Table 6), and the norm's gain at 1.

Where the paper is silent:
  D1  The norm's output keeps its dtype: the product is taken in it and rounded to it, as in the authors' code.
  D2  A network whose residual blocks are single sub-layers (an MLP) counts those.
"""

import math
from typing import Any

from torch import Tensor, nn

from repro.models.slots import Norm, Pre

__all__ = ["LayerNormScaling"]


class LayerNormScaling(Pre):
    """A placement: y = x + f(Norm(x) / sqrt(index + 1)), x and y: (..., dim) (Eq. 12; Sec. 4).

    index counts blocks from 0, so l = index + 1.  Raises ValueError unless 0 <= index < depth.
    """

    def __init__(self, sublayer: nn.Module, norm: Norm, dim: int, index: int, depth: int):
        if not 0 <= index < depth:
            raise ValueError(f"index={index} is no block of depth={depth}; write 0 <= index < depth")
        super().__init__(sublayer, norm, dim, index, depth)
        self.scale = 1 / math.sqrt(index + 1)

    def forward(self, x: Tensor, *args: Any, **options: Any) -> Tensor:
        return x + self.sublayer(self.norm(x) * self.scale, *args, **options)  # D1

    def extra_repr(self) -> str:
        return f"scale={self.scale:.4g}"
