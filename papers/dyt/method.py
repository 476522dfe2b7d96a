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
  D2  convert_ln_to_dyt also replaces RMS norms, keeps device and dtype, and gives a DyT the gain and the bias that
      the norm had (theirs always both), so that a norm without a bias becomes the DyT of their LLaMA.
  D3  convert_ln_to_dyt refuses a model without such norms instead of returning it as it is.
"""

import math
import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from repro.models.affine import Affine, trailing_axes
from repro.papers.layernorm.method import LayerNorm
from repro.papers.rmsnorm.method import RMSNorm

__all__ = ["DyT", "convert_ln_to_dyt"]


class DyT(Affine):
    """weight * tanh(alpha * x) + bias (Sec. 4), in the place and with the shapes of torch.nn.LayerNorm.

    The second argument is alpha_0, where LayerNorm has eps.  elementwise_affine=False leaves alpha alone learnable,
    bias=False is the DyT of LLaMA.  x: (..., *normalized_shape), of any memory layout.  Works in the dtype that x and
    the parameters have in common.

    Raises ValueError if alpha_0 is 0 or not finite or the shape of x does not fit, TypeError if x is an integer.
    """

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        alpha_init: float = 0.5,
        elementwise_affine: bool = True,
        bias: bool = True,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        if not (math.isfinite(alpha_init) and alpha_init):
            raise ValueError(f"alpha_init={alpha_init} would pass no signal: write a number such as 0.5")
        super().__init__(normalized_shape, elementwise_affine, bias, device=device, dtype=dtype)
        self.alpha_init = alpha_init
        self.alpha = nn.Parameter(torch.empty(1, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        super().reset_parameters()
        nn.init.constant_(self.alpha, self.alpha_init)

    def forward(self, x: Tensor) -> Tensor:
        trailing_axes(x, self.normalized_shape)
        y = torch.tanh(self.alpha * x)
        if self.weight is not None:
            y = y * self.weight
        if self.bias is not None:
            y = y + self.bias
        return y.to(x.dtype)  # D1

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, alpha_init={self.alpha_init}"


class ChannelsFirstDyT(DyT):
    """DyT of maps (B, C, H, W) with gain and bias per channel C, as the authors have it in ConvNeXt."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


NORM = re.compile(r"(Layer|RMS|Rms)Norm(Act|Exp|2d|Fp32)*$")  # class names: libraries bring norms of their own
PLACES = (
    ("feed_forward", r"norm2|ln_?2|ffn|mlp|feed_?forward|post_attention"),
    ("attention", r"norm1|ln_?1|attn|attention|input"),
)


def place_of(name: str) -> str | None:
    """The place of a norm by its name in the model; None where the name does not tell."""
    inside = next((place for place, words in PLACES if re.search(words, name.lower())), None)
    return inside or (None if re.search(r"(^|\.)\d+\.", name) else "final")


def convert_ln_to_dyt(
    model: nn.Module,
    alpha_init: float = 0.5,
    *,
    attention: float | None = None,
    feed_forward: float | None = None,
    final: float | None = None,
) -> nn.Module:
    """Replace every layer norm and RMS norm of `model` by a fresh DyT, in place, and return the model (Sec. 4).

    Replaced are torch's and this suite's LayerNorm and RMSNorm, and classes named ...LayerNorm, ...RMSNorm or ...RmsNorm
    (transformers, timm; there also ...2d and ...Fp32).  Channels-first norms (timm's ...2d, ConvNeXt's data_format) become a DyT over axis 1.
    A `model` that is itself a norm is not changed: take what is returned.  Do this before the optimizer is made.

    alpha_init is alpha_0 everywhere, unless attention=, feed_forward= or final= give one for norms of that place
    (LLaMA 7B: attention=0.8, feed_forward=0.2, final=0.2).  The place is read off the name: norm1, ln_1, attn or input is
    attention, norm2, ln_2, mlp, ffn, feed_forward or post_attention is feed-forward, outside the numbered blocks is final.

    Raises ValueError if there is no such norm, if a name does not tell the place and places are asked for, or if a norm
    holds an activation (timm's LayerNormAct).
    """
    places, made = {"attention": attention, "feed_forward": feed_forward, "final": final}, {}
    for name, norm in list(model.named_modules(remove_duplicate=False)):
        if not (isinstance(norm, (nn.LayerNorm, nn.RMSNorm, LayerNorm, RMSNorm)) or NORM.search(type(norm).__name__)):
            continue
        place = place_of(name)
        if place is None and any(alpha is not None for alpha in places.values()):
            raise ValueError(f"cannot tell the place of '{name}': leave out attention=, feed_forward= and final=")
        alpha = alpha_init if places.get(place) is None else places[place]
        if norm not in made:  # a norm that is used at two places stays one
            made[norm] = dyt_for(norm, alpha, next(model.parameters(), None))
        if not name:
            return made[norm]
        model.set_submodule(name, made[norm])
    if not made:
        raise ValueError(
            f"{type(model).__name__} has no LayerNorm and no RMSNorm (BatchNorm and GroupNorm are not replaced)"
        )
    for layer in model.modules():
        if isinstance(layer, nn.TransformerEncoderLayer):
            layer.activation_relu_or_gelu = 0  # else torch's fused inference would compute a LayerNorm
    return model


def dyt_for(norm: nn.Module, alpha: float, like: Tensor | None) -> DyT:
    """A DyT with the shape, the parameters, the device and the dtype of `norm` (or of the model where it has none)."""
    weight = getattr(norm, "weight", next(norm.parameters(), None))
    shape = getattr(norm, "normalized_shape", None) or getattr(weight, "shape", None)
    if shape is None or hasattr(norm, "act"):
        raise ValueError(f"{norm!r} has no known shape or holds an activation: write DyT there by hand")
    first = "2d" in type(norm).__name__ or getattr(norm, "data_format", "") == "channels_first"
    like = like if weight is None else weight
    kind = ChannelsFirstDyT if first else DyT
    made = kind(
        shape,
        alpha,
        elementwise_affine=weight is not None,
        bias=getattr(norm, "bias", None) is not None,
        device=getattr(like, "device", None),
        dtype=getattr(like, "dtype", None),
    )
    return made.train(norm.training)
