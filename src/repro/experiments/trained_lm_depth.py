"""SmolLM2-135M as it was published, damaged copies of it, and passages of held-out prose: where depth is probed.

    x_BT, y_BT = passages(seed, config, device)
    model = damaged("untrained", seed, config, device)

Seeds draw passages; the trained model is one, so that an interval over seeds is about this model.  Kinds of model:

    trained      as published: 30 Pre-LN blocks of width 576, 4 bits a weight, instruction-tuned
    untrained    the entries of each matrix in random order, and gains of 1: nothing learnt, the same scales
    exchanged    the two halves of the blocks in each other's place
    damped       what a block of the second half adds is multiplied by a tenth
"""

import copy
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn

from repro.data import prose
from repro.models import pretrained
from repro.train import generator

KINDS = ("trained", "untrained", "exchanged", "damped")


@dataclass(frozen=True, kw_only=True)
class Passages:
    """windows  pieces of held-out prose, drawn by the seed;  context  tokens of each.

    model    smollm2, or `small`: a random decoder of 8 blocks that reads random bytes, which takes no time
    """

    windows: int
    context: int
    model: str = "smollm2"


@lru_cache(maxsize=1)
def published(name: str, device: torch.device) -> tuple[pretrained.Decoder, pretrained.BytePairs | None]:
    """The model and its tokenizer, kept for the life of the process: to be read, not changed."""
    if name == "smollm2":
        return pretrained.smollm2(device, context=512)
    if name != "small":
        raise ValueError(f"model={name!r}: write smollm2, or small")
    shape = {"heads": 2, "shared": 1, "hidden": 32, "context": 512, "base": 1e4, "eps": 1e-5}
    model, source = pretrained.Decoder(256, 16, 8, **shape), generator("trained_lm_depth small")
    for p in model.parameters():
        if p.dim() > 1:
            p.data.copy_(torch.randn(p.shape, generator=source) / 4)
    return model.to(device).eval(), None


def passages(seed: int, config: Passages, device: torch.device, windows: int | None = None) -> tuple[Tensor, Tensor]:
    """Inputs and targets (windows, context) from the held-out text, of as many windows as the Config says."""
    windows, source = windows or config.windows, generator("trained_lm_depth", seed)
    tokenizer = published(config.model, device)[1]
    if tokenizer is None:
        tokens = torch.randint(256, (windows, config.context + 1), generator=source).to(device)
    else:
        text, length = prose.load().valid, 12 * (config.context + 1)  # bytes; a token has about four
        starts = torch.randint(len(text) - length, (windows,), generator=source).tolist()
        pieces = (bytes(text[start : start + length].tolist()).decode("utf-8", "ignore") for start in starts)
        tokens = torch.tensor([tokenizer.encode(piece)[: config.context + 1] for piece in pieces], device=device)
    return tokens[:, :-1], tokens[:, 1:]


class Damped(nn.Module):
    """x + factor (block(x) - x)."""

    def __init__(self, block: nn.Module, factor: float):
        super().__init__()
        self.block, self.factor = block, factor

    def forward(self, x: Tensor) -> Tensor:
        return torch.lerp(x, self.block(x), self.factor)


def rewired(model: pretrained.Decoder, blocks: list[nn.Module]) -> pretrained.Decoder:
    """The model with another list of blocks; weights are shared."""
    other = copy.copy(model)
    other._modules = {**model._modules, "blocks": nn.ModuleList(blocks)}
    return other


def damaged(kind: str, seed: int, config: Passages, device: torch.device) -> pretrained.Decoder:
    """The Config's model, or a copy of a kind that is named above; raises ValueError for another name."""
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r}: write one of {', '.join(KINDS)}")
    model = published(config.model, device)[0]
    blocks, half = list(model.blocks), len(model.blocks) // 2
    if kind == "exchanged":
        return rewired(model, blocks[half:] + blocks[:half])
    if kind == "damped":
        return rewired(model, [Damped(block, 1.0 if i < half else 0.1) for i, block in enumerate(blocks)])
    if kind == "untrained":
        model, source = copy.deepcopy(model), generator("trained_lm_depth weights", seed)
        for p in model.parameters():
            order = torch.randperm(p.numel(), generator=source).to(device)
            p.data.copy_(torch.ones_like(p) if p.dim() == 1 else p.data.flatten()[order].view_as(p))
    return model
