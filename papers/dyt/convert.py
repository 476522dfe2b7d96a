"""Give the norms of a Transformer to DyT (Zhu et al., arXiv:2503.10622): each becomes a fresh DyT whose alpha fits
its place.

The paper starts language models from other alphas before attention than elsewhere (Sec. 7.2 and Appendix A), so the
converter reads the place of a norm off its name.  The departures D2 and D3 of method.py are about this file.
"""

import re

from torch import Tensor, nn

from repro.papers.dyt.method import DyT
from repro.papers.layernorm.method import LayerNorm
from repro.papers.rmsnorm.method import RMSNorm

__all__ = ["convert_ln_to_dyt"]

NORM = re.compile(r"(Layer|RMS|Rms)Norm(Gated|Act|Exp|2d|Fp32)*$")  # class names: libraries bring norms of their own
PLACES = (  # the first line that fits decides
    ("embedding", r"embed"),
    ("feed_forward", r"norm2|ln_?2|ffn|mlp|feed_?forward"),
    ("attention", r"norm1|ln_?1|attn|attention|input|mixer"),
)


class ChannelsFirstDyT(DyT):
    """DyT of maps (B, C, H, W) with gain and bias per channel C, as the authors have it in ConvNeXt."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.movedim(1, -1)).movedim(-1, 1)


class GatedDyT(DyT):
    """DyT of x silu(gate), in the place of the gated RMS norm of Mamba-2."""

    def forward(self, input: Tensor, gate: Tensor | None = None) -> Tensor:
        return super().forward(input if gate is None else input * nn.functional.silu(gate))


def place_of(name: str, beside: set[str]) -> str | None:
    """Return the place of a norm by its name in the model and the names beside it; None where they do not tell.

    `post_attention_layernorm` follows attention in Llama, where it is the norm before the feed-forward network.
    Gemma-2 and OLMo-2 have norms on the outputs too, so that there it belongs to attention; `beside` tells.
    """
    inside = name.lower()
    if (last := inside.rpartition(".")[2]).startswith("post_attention"):
        both = any(re.match(r"(pre|post)_feed_?forward", other) for other in beside)
        return "attention" if both else "feed_forward"
    if last == "norm" and "mixer" in beside:
        return "attention"
    for place, words in PLACES:
        if re.search(words, last) or (place != "embedding" and re.search(words, inside)):
            return place
    if re.search(r"(^|\.)embed[a-z]*\.", inside):
        return "embedding"
    return None if re.search(r"(^|\.)\d+\.", inside) else "final"


def convert_ln_to_dyt(
    model: nn.Module,
    alpha_init: float = 0.5,
    *,
    attention: float | None = None,
    feed_forward: float | None = None,
    final: float | None = None,
) -> nn.Module:
    """Replace every layer norm and RMS norm of `model` by a fresh DyT, in place, and return the model (Sec. 4).

    Replaced are torch's and this suite's LayerNorm and RMSNorm, and classes named ...LayerNorm, ...RMSNorm or
    ...RmsNorm (transformers, timm; there also ...2d and ...Fp32).  Channels-first norms (timm's ...2d, ConvNeXt's
    data_format) become a DyT over axis 1. A `model` that is itself a norm is not changed: take what is returned.  Do
    this before the optimizer is made.

    alpha_init is alpha_0 everywhere, unless attention=, feed_forward= or final= give one for norms of that place
    (LLaMA 7B: attention=0.8, feed_forward=0.2, final=0.2).  The place is read off the name: norm1, ln_1, attn, mixer or
    input is attention, norm2, ln_2, mlp, ffn or feed_forward is feed-forward, and so is post_attention unless there are
    norms around the feed-forward network beside it (Gemma-2, OLMo-2).  A norm outside the numbered blocks is the final
    one, unless it is one of embeddings, which takes alpha_init.

    Raises ValueError if there is no such norm, if a name does not tell the place and places are asked for, or if a norm
    holds an activation (timm's LayerNormAct).
    """
    places, made = {"attention": attention, "feed_forward": feed_forward, "final": final}, {}
    for name, norm in list(model.named_modules(remove_duplicate=False)):
        if not (isinstance(norm, (nn.LayerNorm, nn.RMSNorm, LayerNorm, RMSNorm)) or NORM.search(type(norm).__name__)):
            continue
        beside = {child for child, _ in model.get_submodule(name.rpartition(".")[0]).named_children()}
        place = place_of(name, beside)
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
        if isinstance(layer, nn.TransformerEncoder):
            layer.use_nested_tensor = False  # only a layer norm takes nested tensors
    return model


def dyt_for(norm: nn.Module, alpha: float, like: Tensor | None) -> DyT:
    """Return a DyT with the shape, the parameters, the device and the dtype of `norm` (or of the model where it has
    none).
    """
    weight = getattr(norm, "weight", next(norm.parameters(), None))
    shape = getattr(norm, "normalized_shape", None) or getattr(weight, "shape", None)
    if shape is None or hasattr(norm, "act"):
        raise ValueError(f"{norm!r} has no known shape or holds an activation: write DyT there by hand")
    first = "2d" in type(norm).__name__ or getattr(norm, "data_format", "") == "channels_first"
    like = like if weight is None else weight
    kind = ChannelsFirstDyT if first else GatedDyT if "Gated" in type(norm).__name__ else DyT
    made = kind(
        shape,
        alpha,
        elementwise_affine=weight is not None,
        bias=getattr(norm, "bias", None) is not None,
        device=getattr(like, "device", None),
        dtype=getattr(like, "dtype", None),
    )
    return made.train(norm.training)
