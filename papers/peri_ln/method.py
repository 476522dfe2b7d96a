"""Peri-LN (Kim et al., ICML 2025, arXiv:2502.02732): one norm before each sub-layer and one on its output.

    Post-LN   y = Norm(x + f(x))
    Pre-LN    y = x + f(Norm(x))
    Peri-LN   y = x + Norm_out(f(Norm_in(x)))

f is a sub-layer (attention or feed-forward) that keeps the shape of its input; x, y: (..., dim), and Norm acts over
dim. The output norm acts on f's output, before the addition: after it, it would be Post-LN.  Norm_in and Norm_out are
two modules of one kind (LayerNorm or RMSNorm), each with parameters of its own that start as the norm starts them
(gain 1, bias 0) and are trained.  A Transformer block has four norms; the model keeps the norm after its last block.

Without eps, RMSNorm gives every branch RMS at most max |gain|, whatever the weights, so that
    RMS(x_L) <= RMS(x_0) + sum of max |gain| over the output norms,
and the mean square grows by gain^2 per sub-layer where branch and stream are uncorrelated.

The paper leaves three choices:
  D1  The kind of norm and its eps are the caller's; both norms are built by the same call.
  D2  The norm on the embeddings (optional in the paper) belongs to the model: GPT(after_embedding=).
  D3  Gains are stored as they multiply (start 1), not less 1 as in Gemma.
"""

from typing import Any

from torch import Tensor, nn

from repro.models.slots import Norm
from repro.models.slots import Post as PostLN
from repro.models.slots import Pre as PreLN

__all__ = ["PeriLN", "PostLN", "PreLN"]


class PeriLN(nn.Module):
    """A placement, called as PeriLN(sublayer, norm, dim, index, depth): y = x + Norm_out(f(Norm_in(x))) (Section 3).

    x, y: (..., dim).  norm(dim) is called twice.  Neither index (0-based block) nor depth changes the block.  What
    forward gets beside x (masks, positions, caches) goes to the sub-layer.
    Raises TypeError where norm is a module instead of what builds one, ValueError unless 0 <= index < depth.
    """

    def __init__(self, sublayer: nn.Module, norm: Norm, dim: int, index: int, depth: int):
        super().__init__()
        if isinstance(norm, nn.Module) or not callable(norm):
            raise TypeError(
                f"norm={norm!r} builds no norm; write nn.LayerNorm, or lambda dim: ..., called as norm(dim)"
            )
        if not 0 <= index < depth:
            raise ValueError(f"index={index} is no block of depth={depth}; write 0 <= index < depth")
        self.input_norm, self.sublayer, self.output_norm = norm(dim), sublayer, norm(dim)

    def forward(self, x: Tensor, *args: Any, **options: Any) -> Tensor:
        return x + self.output_norm(self.sublayer(self.input_norm(x), *args, **options))
