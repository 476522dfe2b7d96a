"""What papers/curse_of_depth measures by itself: a trained Pre-LN language model that others made, SmolLM2-135M.

Variance at initialization and the language models trained here are in `repro.experiments`.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor, nn

from repro.data import prose
from repro.experiments.decoder import line
from repro.models import pretrained
from repro.tasks import Measures
from repro.train import cross_entropy, generator


@dataclass(frozen=True, kw_only=True)
class OpenModel:
    """windows  pieces of held-out prose, drawn by the seed;  context  tokens of each."""

    windows: int
    context: int


def passages(tokenizer: pretrained.BytePairs, seed: int, config: OpenModel) -> Tensor:
    """Tokens (windows, context + 1) of held-out English prose."""
    text = prose.load().valid
    length = 12 * (config.context + 1)  # bytes; a token has about four
    starts = torch.randint(len(text) - length, (config.windows,), generator=generator("open_model", seed)).tolist()
    pieces = (bytes(text[start : start + length].tolist()).decode("utf-8", "ignore") for start in starts)
    return torch.tensor([tokenizer.encode(piece)[: config.context + 1] for piece in pieces])


def forget(model: nn.Module, seed: int) -> None:
    """Draw every matrix anew from N(0, 0.02^2), with gains of 1: the model before it was trained."""
    source = generator("open_model weights", seed)
    for p in model.parameters():
        fresh = torch.ones(p.shape) if p.dim() == 1 else torch.randn(p.shape, generator=source) * 0.02
        p.data.copy_(fresh)


def without_each(model: pretrained.Decoder, states: list[Tensor], y: Tensor) -> Iterator[float]:
    """The loss with each block left out in its turn, then that of the whole model."""
    for after, x in enumerate(states, 1):  # states before the first block, then after each
        for block in model.blocks[after:]:
            x = block(x)
        yield cross_entropy(model.head(model.norm(x)), y)


@torch.no_grad()
def open_model(arm: str, seed: int, config: OpenModel, device: torch.device) -> Measures:
    """Growth of the stream over the blocks, and the loss of deleting each; `exchanged` calls late blocks early."""
    model, tokenizer = pretrained.smollm2(device, context=config.context)
    if arm == "untrained":
        forget(model, seed)
    tokens = passages(tokenizer, seed, config).to(device)
    x, y = tokens[:, :-1], tokens[:, 1:]
    states = pretrained.stream(model, x)
    squares = torch.stack([s.square().mean(-1).median() for s in states[1:]]).double().cpu()  # the median over tokens
    block = torch.arange(1, len(squares) + 1, dtype=torch.float64)
    slope, exponential_r2 = line(block, squares.log())
    linear_r2 = line(block, squares)[1]
    *losses, whole = map(float, without_each(model, states, y))
    drop = [loss - whole for loss in losses]
    half = len(drop) // 2
    early, late = fmean(drop[1:half]), fmean(drop[half:-1])  # the first and the last block are left out
    early, late = (late, early) if arm == "exchanged" else (early, late)
    return {
        "block": block.tolist(),
        "mean_square": squares.tolist(),
        "growth_per_block": math.exp(slope),
        "exponential_r2": exponential_r2,
        "linear_r2": linear_r2,
        "r2_gain": exponential_r2 - linear_r2,
        "drop_increase": drop,
        "deletion_ratio": late / early,
        "val_nats_token": whole,
    }
