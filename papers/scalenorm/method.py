"""ScaleNorm and FixNorm (Nguyen & Salazar, IWSLT 2019, arXiv:1910.05895), Sec. 2.2 and 2.3.

    ScaleNorm(x; g) = g x / ||x||                                 (Eq. 5)    x: (..., d)
    FixNorm         every word embedding w is used as w / ||w||, at the input times sqrt(d), and in the softmax,
                    which is tied to it; with a final ScaleNorm       logit = g cos(w, x)        (Eq. 6)
    SmallInit       all matrices of attention and feed-forward ~ N(0, 2 / (d + 4 d)), attention too (Sec. 2.2)

||.|| is the l2 norm over the features.  g ("scale") is ONE learned number per norm, of shape (1,); it starts at
sqrt(d), where ScaleNorm is RMSNorm with gain 1.  No mean is subtracted, there is no bias, and training and evaluation
are the same.  Word embeddings start as U(-0.01, 0.01) (Sec. 3.2).  A norm stands before each sub-layer (PreNorm, Eq.
3), and one more after the last.

The paper is silent, or the authors' code (tnq177/transformers_without_tears) differs from it, in five places:
  D1  Their ScaleNorm(scale) takes the first g, for inputs of any width.  So does ours where `scale` is a float; an int
      or a shape is the width d, as of torch.nn's norms, and g starts at sqrt(d).
  D2  ||x|| is clamped at eps = 1e-5, as in their layers.py (Eq. 5 has no eps), and ||w|| at 1e-12, as by F.normalize.
  D3  At the input only the rows that are looked up are normalised; they normalise the whole table.
  D4  small_init leaves embeddings and head to the model; d is the smaller side of a matrix.
  D5  The softmax has no bias, as in Eq. 6; their code adds a learned one (out_bias).

The derivative at x = 0 is g / eps, which float16 cannot hold: there, and in float16 alone, it is g.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from repro.models.affine import Shape, as_shape, leaf, length, load_with_shape, never_fuse, trailing_axes, wide
from repro.models.slots import draw_

__all__ = ["FixNormEmbedding", "ScaleNorm", "small_init"]


@leaf
def to_unit_length(x: Tensor, axes: tuple[int, ...], eps: float) -> Tensor:
    """Return x / max(||x||, eps) over the axes, in float32 at least."""
    size = length(wide(x), axes)
    below = size.clamp_min(eps)  # D2
    return wide(x) / (below.masked_fill(size == 0, 1.0) if x.dtype == torch.float16 else below)


class ScaleNorm(nn.Module):
    """y = g x / max(||x||, eps) (Eq. 5), with one learned number g, called `scale` as in the authors' code.

    scale: an int or a shape is normalized_shape, as in torch.nn.RMSNorm, and g starts at sqrt(d); a float is where g
    starts, and then x may have any width.  ScaleNorm(512) and ScaleNorm(512**0.5) do the same.  x and y have the shape
    (..., *normalized_shape).  `.requires_grad_(False)` holds g at sqrt(d) (Table 7).

    Raises TypeError for integers x, ValueError where x does not end in that shape.
    """

    def __init__(
        self,
        scale: Shape | float,
        eps: float = 1e-5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        free = isinstance(scale, float)  # D1
        self.normalized_shape = () if free else as_shape(scale)
        self.start = scale if free else math.sqrt(max(math.prod(self.normalized_shape), 0))
        if not 0 < self.start < math.inf or free == bool(self.normalized_shape):
            raise ValueError(
                f"scale={scale}: write the width, such as 512, or the first g as a float, such as 512**0.5"
            )
        self.eps = eps
        self.scale = nn.Parameter(torch.empty(1, device=device, dtype=dtype))
        load_with_shape(self, "scale")  # the authors' g has no axis
        never_fuse(self)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.constant_(self.scale, self.start)

    def forward(self, x: Tensor) -> Tensor:
        axes = trailing_axes(x, self.normalized_shape) if self.normalized_shape else (-1,)
        return (self.scale * to_unit_length(x, axes, self.eps)).to(x.dtype)

    def extra_repr(self) -> str:
        return f"{self.normalized_shape or '...'}, start={self.start:.4g}, eps={self.eps}"


class FixNormEmbedding(nn.Embedding):
    """Word embeddings of fixed length: sqrt(d) w / ||w|| at the input, and `logits` for the softmax tied to it (Eq. 6).

    Arguments and state dict of torch.nn.Embedding.  tokens: (...) -> (..., d).
    """

    def reset_parameters(self) -> None:
        nn.init.uniform_(self.weight, -0.01, 0.01)
        self._fill_padding_idx_with_zero()

    def forward(self, tokens: Tensor) -> Tensor:
        return math.sqrt(self.embedding_dim) * self.unit(super().forward(tokens))  # D3

    def logits(self, x: Tensor) -> Tensor:
        """Return x . w / ||w|| for every word: (..., d) -> (..., V).  After a ScaleNorm it is g cos(w, x)."""
        return F.linear(x, self.unit(self.weight))  # D5

    def unit(self, w: Tensor) -> Tensor:
        return to_unit_length(w, (-1,), 1e-12).to(w.dtype)


def small_init(model: nn.Module, generator: torch.Generator) -> None:
    """The init slot: linear layers of `model.blocks` ~ N(0, 2 / (5 d)), biases 0 (Sec. 2.2).
    ValueError without any.
    """
    layers = [layer for layer in getattr(model, "blocks", nn.ModuleList()).modules() if isinstance(layer, nn.Linear)]
    if not layers:
        raise ValueError(f"{type(model).__name__} has no linear layers in blocks: write a GPT or a ViT")
    for layer in layers:
        draw_(layer, math.sqrt(2 / (5 * min(layer.weight.shape))), generator)  # D4
