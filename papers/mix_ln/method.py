"""Mix-LN (Li, Yin & Liu, ICLR 2025, arXiv:2412.13795): Post-LN in the first blocks of a Transformer, Pre-LN in the
rest.

    blocks 0 .. floor(alpha L) - 1   (Post-LN)   y = Norm(x + f(x))
    blocks floor(alpha L) .. L - 1   (Pre-LN)    y = x + f(Norm(x))

f: a sub-layer (attention or feed-forward) that keeps the shape of its input.  x, y: (..., dim), Norm over dim.
L blocks; both sub-layers of a block are of the same kind.  alpha = 0.25 (Table 5; 0.0625 for the model of 7B).
alpha = 0 is Pre-LN, alpha = 1 is Post-LN.  Nothing is added: no parameter, no buffer, one norm in each sub-layer.
The norm after the last block stays in every variant, Post-LN included; it belongs to the model.

Where the paper is silent:
  D1  A share that is k of L blocks, rounded to a tenth of a percent or better, counts as k: 1/3 and 0.333 of 24 blocks
      are 8 and 0.167 of 24 are 4, the counts behind the rounded shares of Table 5; 0.29 of 100 are 29, although
      0.29 * 100 is below 29 in floating point.  The authors' code is given the number of blocks instead of alpha.
  D2  A network whose residual blocks are single sub-layers (an MLP) counts those.
"""

import math

from torch import nn

from repro.models.slots import Norm, Post, Pre

__all__ = ["MixLN"]


class MixLN:
    """A placement, called as MixLN(alpha)(sublayer, norm, dim, index, depth): Post-LN where index < floor(alpha depth).

    Returns a `repro.models.slots.Post` or `Pre` of y: (..., dim) from x: (..., dim) (Sec. 3.2; Fig. 2).
    Raises ValueError unless 0 <= alpha <= 1 and 0 <= index < depth.
    """

    def __init__(self, alpha: float = 0.25):
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha={alpha} is no share of the blocks; write 0 <= alpha <= 1, such as 0.25")
        self.alpha = alpha

    def post_blocks(self, depth: int) -> int:
        """Return floor(alpha * depth), the number of Post-LN blocks, which come first."""
        nearest = round(self.alpha * depth)
        return nearest if abs(nearest / depth - self.alpha) < 5e-4 else math.floor(self.alpha * depth)  # D1

    def __call__(self, sublayer: nn.Module, norm: Norm, dim: int, index: int, depth: int) -> nn.Module:
        if not 0 <= index < depth:
            raise ValueError(f"index={index} is no block of depth={depth}; write 0 <= index < depth")
        kind = Post if index < self.post_blocks(depth) else Pre
        return kind(sublayer, norm, dim, index, depth)

    def __repr__(self) -> str:
        return f"MixLN(alpha={self.alpha})"
