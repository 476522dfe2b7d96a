"""What papers/value_residual measures by itself: exact statements; and the broken attention that `byte_decoder` trains.

The language models are in `repro.experiments.byte_decoder`.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from repro.models.gpt import GPT, rotate
from repro.papers.value_residual.method import FirstValues, ValueResidualQKV, projections, resformer_, svformer_
from repro.tasks import Measures, relative
from repro.train import generator

# --- a broken arm of byte_decoder ------------------------------------------------------------------------------------


class Shifted(FirstValues):
    """Hands each sequence the first values of the one before it in the batch: causal still, and of no use."""

    def put(self, values: Tensor) -> None:
        self.values = values.roll(1, 0)


def other_sequence_(model: nn.Module) -> None:
    """`resformer_` with the first values of another sequence."""
    found, first = projections(model), Shifted()
    for index, module in enumerate(found):
        module.qkv = ValueResidualQKV(module.qkv, first, index, len(found))


# --- equation ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Equation:
    width: int
    depth: int
    heads: int
    context: int


def decoder(seed: int, config: Equation) -> GPT:
    source = generator("value_residual equation", seed)
    return GPT(256, config.context, config.width, config.depth, heads=config.heads, std=0.3, generator=source).double()


def written_out(model: GPT, tokens: Tensor, mix: str) -> Tensor:
    """Logits of the decoder with its values mixed by hand: half of V_1, half of V_n, or what `mix` says."""
    x, first, before = model.embedding(tokens), None, None
    for block in model.blocks:
        attention = block.attention.sublayer
        q, k, v = attention.qkv(block.attention.norm(x)).chunk(3, -1)
        first = v if first is None else first
        before = v if before is None else before
        if v is not first:
            v = {"half": (first + v) / 2, "sum": first + v, "previous": (before + v) / 2, "shared": first}[mix]
        before = v
        q, k, v = (part.unflatten(-1, (attention.heads, -1)).transpose(1, 2) for part in (q, k, v))
        q, k = (rotate(part, attention.cos, attention.sin) for part in (q, k))
        scores = q @ k.mT / math.sqrt(q.shape[-1])
        later = torch.ones(scores.shape[-2:], device=x.device).triu(1).bool()
        weights = scores.masked_fill(later, -math.inf).softmax(-1)
        x = block.feed_forward(x + attention.out((weights @ v).transpose(1, 2).flatten(2)))
    return model.head(model.norm(x))


def equation(arm: str, seed: int, config: Equation, device: torch.device) -> Measures:
    """ResFormer and SVFormer against their equations, in float64; arms have the wrong mixture written out."""
    tokens = torch.randint(256, (2, config.context), generator=generator("value_residual tokens", seed)).to(device)
    plain, mixed, shared = (decoder(seed, config).to(device) for _ in range(3))
    resformer_(mixed)
    svformer_(shared)
    wrong = None if arm == "values" else arm
    return {
        "resformer_error": relative(mixed(tokens), written_out(plain, tokens, wrong or "half")),
        "svformer_error": relative(shared(tokens), written_out(plain, tokens, wrong or "shared")),
    }


# --- cost ------------------------------------------------------------------------------------------------------------


def cost(arm: str, seed: int, config: Equation, device: torch.device) -> Measures:
    """Parameters that an arm has more than the decoder, and its keys and values in a cache, against the equations."""
    plain, model = decoder(seed, config), decoder(seed, config)
    if arm != "base":
        {"resformer": resformer_, "svformer": svformer_}[arm](model)
    count, before = (sum(p.numel() for p in each.parameters()) for each in (model, plain))
    depth, d = config.depth, config.width
    own = [block.attention.sublayer.qkv for block in model.blocks]
    cached = sum(qkv.weight.shape[0] - d for qkv in own)  # a layer caches what it projects beside its queries
    return {
        "added_parameters": count - before,
        "saved_error": before - count - (depth - 1) * d**2,
        "cache_error": cached / (2 * depth * d) - (depth + 1) / (2 * depth),
    }
