"""Fold what is left of removed LayerNorms into linear layers (Baroni et al., arXiv:2507.02559, Section 3).

The equation stands at the head of method.py.
"""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from repro.models.gpt import GPT
from repro.models.slots import Bare
from repro.papers.ln_removal.method import FakeLayerNorm

__all__ = ["fold_layernorm"]


def _linear(f: Callable[[Tensor], Tensor], like: Tensor) -> nn.Linear:
    """The linear layer of an affine map f, from f at 0 and at the unit vectors; `like`: any (m, n) matrix."""
    rows = f(
        torch.eye(like.shape[1] + 1, like.shape[1], dtype=like.dtype, device=like.device)
    ).detach()  # the last is f(0)
    made = nn.Linear(len(rows) - 1, rows.shape[1], device="meta")
    made.weight, made.bias = nn.Parameter((rows[:-1] - rows[-1]).mT.contiguous()), nn.Parameter(rows[-1].clone())
    return made


def fold_layernorm(model: GPT) -> GPT:
    """A copy of `model` without any norm: FakeLN is folded into the linear layers behind it (equation at the head).

    The copy gives the same logits up to rounding; qkv, up, gate and head get biases, and a tied head its own weight.
    Raises ValueError where a norm is not removed yet.
    """
    model = copy.deepcopy(model)
    norms = [module for module in model.modules() if isinstance(module, FakeLayerNorm)]
    if model.norm not in norms or not all(norm.removed for norm in norms):
        raise ValueError("a norm is left, and is not linear: let remove_layernorm's schedule remove them all first")
    for block in model.blocks:
        attention, layer, norm = block.attention.sublayer, block.feed_forward.sublayer, block.feed_forward.norm.eval()
        attention.qkv = _linear(attention.qkv.eval(), attention.qkv.linear.weight)
        for name in ("up", "gate") if layer.gate is not None else ("up",):
            setattr(layer, name, _linear(nn.Sequential(norm, getattr(layer, name)), getattr(layer, name).weight))
        block.attention, block.feed_forward = Bare(attention, None, 0, 0, 1), Bare(layer, None, 0, 0, 1)
    model.head, model.norm = _linear(nn.Sequential(model.norm.eval(), model.head), model.head.weight), nn.Identity()
    return model
