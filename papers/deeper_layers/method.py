"""Angular distance and removal of blocks (Gromov et al., ICLR 2025, arXiv:2403.17887), Sec. 3.

    d(x, y)  = arccos( x . y / (|x| |y|) ) / pi                             in [0, 1]
    d(l, n)  = mean over sequences of d(x_T^(l), x_T^(l+n))                 T the last token of a sequence
    l*(n)    = argmin over l of d(l, n);  remove blocks l*, ..., l* + n - 1 and feed x^(l*) to block l* + n

x^(l): (B, T, D), what block l of the L blocks reads.  The simple variant removes the n blocks before the last one.
Nothing is trained here: the paper then heals the model by a little fine-tuning (QLoRA on the feed-forward layers).

    distances = block_distances(model, tokens, n=7)
    remove_blocks(model, int(distances.argmin()), 7)

`model` is any decoder whose blocks are one list: those of Hugging Face, `repro.models.gpt.GPT`, or your own.

Where the paper is silent:
  D1  The angle is 2 atan2(|u - v|, |u + v|) of unit vectors: arccos loses half of the digits at small angles, in
      float32 everything below 3e-4.
  D2  Blocks are counted from 0, and l + n <= L - 1: distances are between what blocks read, so the last block stays.
  D3  The last token is the last column, or the one at lengths - 1 where sequences are padded on the right.
  D4  `remove_blocks` renumbers what Hugging Face counts (layer_idx, num_hidden_layers, layer_types), so that the
      cache of keys and values still fits.
  D5  A vector of length 0 has the angle 1/2 to all others; torch's cosine has it so, too.
"""

import math

import torch
from torch import Tensor, nn

from repro.models.affine import wide
from repro.models.pretrained import blocks, stream

__all__ = ["angular_distance", "block_distances", "deepest_block", "remove_blocks"]


def angular_distance(x: Tensor, y: Tensor) -> Tensor:
    """The angle between x and y over pi, in [0, 1].  x, y: (..., D) -> (...), in float32 at least."""
    x, y = (wide(v) / wide(v).norm(dim=-1, keepdim=True).clamp_min(torch.finfo(wide(v).dtype).tiny) for v in (x, y))
    return 2 / math.pi * torch.atan2((x - y).norm(dim=-1), (x + y).norm(dim=-1))  # D1


@torch.no_grad()
def block_distances(model: nn.Module, tokens_BT: Tensor, n: int, lengths_B: Tensor | None = None) -> Tensor:
    """d(l, n) for l = 0, ..., L - 1 - n, averaged over the sequences: (L - n,), by one forward pass.

    lengths: tokens of each sequence that are no padding, which stands on the right.
    Raises ValueError unless 1 <= n < L.
    """
    depth = _checked(model, n)
    last_B = torch.full_like(tokens_BT[:, 0], tokens_BT.shape[1] - 1) if lengths_B is None else lengths_B - 1  # D3
    rows_B = torch.arange(len(last_B), device=last_B.device)
    ends = [x_BTD[rows_B, last_B] for x_BTD in stream(model, tokens_BT)]
    return torch.stack([angular_distance(ends[i], ends[i + n]).mean() for i in range(depth - n)])  # D2


def deepest_block(model: nn.Module, n: int) -> int:
    """Start L - 1 - n of the n blocks before the last one, the simple variant.  Raises ValueError unless 1 <= n < L."""
    return _checked(model, n) - 1 - n


def remove_blocks(model: nn.Module, start: int, n: int) -> nn.Module:
    """Take out blocks start, ..., start + n - 1, in place, and return the model.

    Raises ValueError unless 1 <= n < L and 0 <= start <= L - n.
    """
    depth = _checked(model, n)
    if not 0 <= start <= depth - n:
        raise ValueError(f"start={start}: {n} of {depth} blocks are to go; write a start from 0 to {depth - n}")
    chain = blocks(model)
    del chain[start : start + n]
    for index, block in enumerate(chain):  # D4
        for module in block.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = index
    config = getattr(model, "config", None)
    if hasattr(config, "num_hidden_layers"):
        config.num_hidden_layers = len(chain)
    if getattr(config, "layer_types", None):
        config.layer_types = [*config.layer_types[:start], *config.layer_types[start + n :]]
    return model


def _checked(model: nn.Module, n: int) -> int:
    depth = len(blocks(model))
    if not 1 <= n < depth:
        raise ValueError(f"n={n}: the model has {depth} blocks; write an n from 1 to {depth - 1}")
    return depth
