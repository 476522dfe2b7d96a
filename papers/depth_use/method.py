"""How a decoder uses its depth (Csordas, Manning & Potts, NeurIPS 2025, arXiv:2505.13898): probes of its blocks.

    h_{l+1} = h_l + u_l,   u_l = a_l + m_l               a, m: outputs of attention and of the feed-forward layer
    contribution    |u_l| / |h_l|                        how much block l adds to the stream
    cosine          cos(u_l, h_l)                        below 0 it erases, near 0 it adds, above 0 it amplifies
    later effect    |u_l - u'_l| / |u_l|,   l > s        u', p': the run in which block s returns what it reads
    output effect   |p - p'|                             p: probabilities of the next token, Euclidean norm

h_l: (B, T, D), what block l of the L blocks reads; p: (B, T, V).  An effect on future tokens skips block s at positions
below `before` alone, and looks at positions from there on.

    relative, cosine = contributions(model, tokens)
    later, output = skip_effects(model, tokens)

`model` is any Pre-LN decoder whose blocks are one list: those of Hugging Face, `repro.models.gpt.GPT`, or your own.

Where the paper is silent, or another choice is offered:
  D1  The first position is never skipped and never looked at: it is a massive activation (the authors' code has
      no_skip_front = 1, but looks at it; nothing is changed there).
  D2  reduction="max" is the authors' maximum over positions and sequences; "mean" is less at the mercy of one token.
  D3  Blocks are counted from 0; an effect on block s itself and on earlier ones is 0.
  D4  Updates shorter than 1e-6 count as 1e-6 in a denominator, as in the authors' code.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from repro.models.affine import wide
from repro.models.pretrained import blocks, stream

__all__ = ["contributions", "skip_effects", "skipped"]

FIRST = 1  # positions at the start that are neither skipped nor looked at  (D1)
SHORTEST = 1e-6


@torch.no_grad()
def contributions(model: nn.Module, tokens_BT: Tensor) -> tuple[Tensor, Tensor]:
    """|u_l| / |h_l| and cos(u_l, h_l) of every block, each the mean over positions but the first: (L,), (L,)."""
    h = [wide(x_BTD)[:, FIRST:] for x_BTD in stream(model, tokens_BT)]
    pairs = [(after - before, before) for before, after in zip(h, h[1:], strict=False)]
    relative = [(u.norm(dim=-1) / x.norm(dim=-1).clamp_min(SHORTEST)).mean() for u, x in pairs]
    return torch.stack(relative), torch.stack([F.cosine_similarity(u, x, dim=-1).mean() for u, x in pairs])


@contextmanager
def skipped(model: nn.Module, index: int, before: int | None = None) -> Iterator[None]:
    """Inside, block `index` returns what it reads at positions 1 to before - 1, or at all but the first."""

    def merge(module: nn.Module, arguments: tuple, options: dict, out: object) -> object:
        read_BTD, end = arguments[0] if arguments else options["hidden_states"], before
        done_BTD = out[0] if isinstance(out, tuple) else out
        end = read_BTD.shape[1] if before is None else before
        mixed_BTD = torch.cat([done_BTD[:, :FIRST], read_BTD[:, FIRST:end], done_BTD[:, end:]], 1)
        return (mixed_BTD, *out[1:]) if isinstance(out, tuple) else mixed_BTD

    hook = blocks(model)[index].register_forward_hook(merge, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()


@torch.no_grad()
def skip_effects(
    model: nn.Module, tokens_BT: Tensor, *, before: int | None = None, reduction: str = "max"
) -> tuple[Tensor, Tensor]:
    """What skipping each block s does to the updates of each block l, and to the output: (L, L) over (s, l), and (L,).

    before: skip at positions below it alone, and look at positions from it on.
    It costs L + 1 forward passes.  Raises ValueError for another reduction, or a `before` that leaves no position.
    """
    if reduction not in ("max", "mean"):
        raise ValueError(f'reduction={reduction!r}: write "max" or "mean"')
    if before is not None and not FIRST < before < tokens_BT.shape[1]:
        raise ValueError(f"before={before}: write a position from {FIRST + 1} to {tokens_BT.shape[1] - 1}")
    reduce, start = getattr(torch, reduction), before or FIRST

    def run() -> tuple[list[Tensor], Tensor]:
        caught: list[Tensor] = []
        hook = model.register_forward_hook(
            lambda m, a, out: caught.append(out if isinstance(out, Tensor) else out.logits)
        )
        try:
            h = [wide(x_BTD)[:, start:] for x_BTD in stream(model, tokens_BT)]
        finally:
            hook.remove()
        return [after - x for x, after in zip(h, h[1:], strict=False)], wide(caught[0][:, start:]).softmax(-1)

    updates, p = run()
    later, output = torch.zeros(len(updates), len(updates)), torch.zeros(len(updates))
    for s in range(len(updates)):
        with skipped(model, s, before):
            changed, q = run()
        output[s] = reduce((p - q).norm(dim=-1))
        for i in range(s + 1, len(updates)):
            gap = (updates[i] - changed[i]).norm(dim=-1)
            later[s, i] = reduce(gap / updates[i].norm(dim=-1).clamp_min(SHORTEST))
    return later, output
