"""What papers/relu_attention measures: ViTs that differ in their attention, and sizes at the start against the length.

`off` sets all keys to zero, so that no token reads another; `relu` has alpha = 0, `squared_length` alpha = 2.  The
language models are in `repro.experiments.byte_decoder`, whose attentions the functions `..._` change.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from repro.models.gpt import Attention
from repro.models.vit import scaled_to_width, vit
from repro.papers.relu_attention.method import ReLUAttention, relu_attention
from repro.tasks import Measures, Pictures, classify
from repro.train import cosine, generator

CLASSES = 10


def off(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """ReLU attention to keys of zero: the weights are 0, and so is what is returned."""
    return relu_attention(q, torch.zeros_like(k), v)


def summed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """ReLU's weights, divided by their sum."""
    return relu_attention(q, k, v, alpha=0.0) / (relu_attention(q, k, torch.ones_like(v), alpha=0.0) + 1e-9)


ATTEND: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "softmax": F.scaled_dot_product_attention,
    "relu_by_length": relu_attention,
    "relu": partial(relu_attention, alpha=0.0),
    "root_length": partial(relu_attention, alpha=0.5),
    "squared_length": partial(relu_attention, alpha=2.0),
    "summed": summed,
    "off": off,
}


# --- arms of byte_decoder --------------------------------------------------------------------------------------------


def attend_(model: nn.Module, attend: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    """Give all attentions of a decoder another function of queries, keys and values."""
    for module in model.modules():
        if isinstance(module, Attention):
            module.attend = attend


def by_length_(model: nn.Module) -> None:
    """Causal ReLU attention over the length."""
    attend_(model, partial(relu_attention, is_causal=True))


def undivided_(model: nn.Module) -> None:
    """Causal ReLU attention without a division."""
    attend_(model, partial(relu_attention, is_causal=True, alpha=0.0))


def by_squared_length_(model: nn.Module) -> None:
    """Causal ReLU attention over the squared length."""
    attend_(model, partial(relu_attention, is_causal=True, alpha=2.0))


def off_(model: nn.Module) -> None:
    """No position reads another."""
    attend_(model, off)


# --- accuracy --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Accuracy(Pictures):
    patch: int
    width: int
    depth: int
    heads: int
    warmup: float = 0.1
    weight_decay: float = 0.05


def accuracy(arm: str, seed: int, config: Accuracy, device: torch.device) -> Measures:
    """Test accuracy of a ViT with normalised queries and keys and the attention of the arm."""
    model = vit(
        config.side,
        config.patch,
        config.width,
        config.depth,
        heads=config.heads,
        classes=CLASSES,
        channels=config.channels,
        init=scaled_to_width,
        options={"qk_norm": True},
        generator=generator("relu_attention", seed),
    )
    for block in model.blocks:
        block.attn = ReLUAttention(block.attn, ATTEND[arm])
    return classify(
        model,
        "relu_attention",
        seed,
        config,
        device,
        schedule=cosine(config.warmup, 0.0),
        clip=1.0,
        weight_decay=config.weight_decay,
    )


# --- sizes against the length ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sizes:
    length: int
    width: int
    heads: int


def sizes(arm: str, seed: int, config: Sizes, device: torch.device) -> Measures:
    """Root mean square of the outputs for Gaussian queries, keys and values, and the mean sum of a row's weights."""
    source = generator("relu_attention sizes", seed)
    shape = (config.heads, config.length, config.width)
    q, k, v = (torch.randn(shape, generator=source, dtype=torch.float64).to(device) for _ in range(3))
    return {
        "output_size": float(ATTEND[arm](q, k, v).square().mean().sqrt()),
        "row_sum": float(ATTEND[arm](q, k, torch.ones_like(v)).mean()),
    }
