"""GPT-2 (Radford et al. 2019) as a `repro.models.gpt.GPT`, Small with its trained weights, and its tokenizer.

    model, pieces = small(device), tokenizer()
    model(torch.tensor([pieces.encode("Hello world")], device=device))

Learnt positions, biases everywhere but in the head, GELU by its formula with tanh, the head's matrix that of the
embedding.  The Hub has the matrices of linear layers as (inputs, outputs), where torch has (outputs, inputs); queries,
keys and values stand one after the other there as here.
"""

from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from repro.data import gpt2 as data
from repro.models.gpt import GPT
from repro.models.pretrained import BytePairs

NAMES = {
    "attention.norm": "ln_1",
    "attention.sublayer.qkv": "attn.c_attn",
    "attention.sublayer.out": "attn.c_proj",
    "feed_forward.norm": "ln_2",
    "feed_forward.sublayer.up": "mlp.c_fc",
    "feed_forward.sublayer.down": "mlp.c_proj",
}


class DroppedAttention(nn.Module):
    """softmax(q k^T / sqrt(K) + causal mask) v, the softmax under dropout in training."""

    def __init__(self, dropout: float):
        super().__init__()
        self.dropout = dropout

    def forward(self, q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor) -> Tensor:
        dropout = self.dropout if self.training else 0.0
        return F.scaled_dot_product_attention(q_BHTK, k_BHTK, v_BHTK, dropout_p=dropout, is_causal=True)


def decoder(
    vocab: int = data.VOCAB,
    context: int = 1024,
    width: int = 768,
    depth: int = 12,
    *,
    heads: int = 12,
    dropout: float = 0.0,
    generator: torch.Generator,
) -> GPT:
    """GPT-2's decoder with weights that are drawn; the sizes are those of Small.

    dropout: of the embedded tokens, the attention's weights and what each sub-layer adds; GPT-2 was trained with 0.1.
    """
    attend, act = DroppedAttention(dropout), partial(nn.GELU, "tanh")
    options = {"positions": "learned", "bias": True, "tied": True, "act": act, "attend": attend, "dropout": dropout}
    return GPT(vocab, context, width, depth, heads=heads, generator=generator, **options)


def fill(model: GPT, tensors: dict[str, Tensor]) -> GPT:
    """Give a `decoder` the Hub's tensors, in place; those that it has no place for, such as masks, are left out."""
    tensors = {name.removeprefix("transformer."): t for name, t in tensors.items()}
    names = {"embedding": "wte", "positions": "wpe", "norm": "ln_f", "head": "wte"}
    for i in range(len(model.blocks)):
        names |= {f"blocks.{i}.{ours}": f"h.{i}.{theirs}" for ours, theirs in NAMES.items()}
    state = {}
    for name in model.state_dict():
        module, kind = name.rsplit(".", 1)
        t = tensors[f"{names[module]}.{kind}"]
        turned = kind == "weight" and module.endswith(("qkv", "out", "up", "down"))
        state[name] = t.mT.contiguous() if turned else t
    model.load_state_dict(state, assign=True)
    model.head.weight = model.embedding.weight
    return model


def small(device: torch.device | str = "cpu", cache: str | Path | None = None, *, dropout: float = 0.0) -> GPT:
    """GPT-2 Small with its trained weights, or without them on the meta device, which has no numbers."""
    source = torch.Generator()
    with torch.device("meta"):
        model = decoder(dropout=dropout, generator=source)
    if torch.device(device).type == "meta":
        return model
    return fill(model, data.weights(cache)).to(device)


class Tokenizer(BytePairs):
    """GPT-2's byte pair encoding: the split of `BytePairs`, but that digits stay together."""

    def encode(self, text: str) -> list[int]:
        """Token ids of a text; special tokens are not looked for in it."""
        return [i for word in self.split.findall(text) for i in self.word(word)]


def tokenizer(cache: str | Path | None = None) -> Tokenizer:
    """The tokenizer of all GPT-2 models."""
    return Tokenizer(*data.vocabulary(cache))
