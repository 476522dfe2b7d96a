"""ReLU attention (Wortsman, Lee, Gilmer & Kornblith 2023, arXiv:2309.08586), Sec. 3.

    weights = L^-alpha h(q k^T / sqrt(d))        h = ReLU, alpha = 1; no row is made to sum to 1
    output  = weights v

q: (..., T, d), k: (..., L, d), v: (..., L, e), output: (..., T, e).  L is the number of keys.  h may be any of
ACTIVATIONS: ReLU, squared ReLU, GELU, softplus, identity, ReLU6, sigmoid.  Softmax's weights are 1 / L on average, and
so are those of h / L in size.  No parameter.  Training and evaluation agree.

Where the paper, which has neither masks nor causal attention, is silent:
  D1  keys that a mask hides get the weight 0 after h, so that no infinity passes through it (GELU and the identity
      would return NaN).
  D2  L counts the keys that are there, also where a mask hides some; length= gives another one, such as the longest
      sequence of the training.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from repro.models.affine import wide

__all__ = ["ACTIVATIONS", "ReLUAttention", "relu_attention"]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "relu2": lambda x: F.relu(x).square(),
    "gelu": F.gelu,
    "softplus": F.softplus,
    "identity": lambda x: x,
    "relu6": F.relu6,
    "sigmoid": torch.sigmoid,
}


def relu_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    *,
    activation: str = "relu",
    alpha: float = 1.0,
    length: int | None = None,
    scale: float | None = None,
) -> Tensor:
    """L^-alpha h(scale q k^T) v, in float32 at least and returned in the dtype of `query`.

    query: (..., T, d), key: (..., L, d), value: (..., L, e) -> (..., T, e).  attn_mask: booleans that broadcast to
    (..., T, L), true where a key is seen; is_causal: position t sees keys <= t.  scale: 1 / sqrt(d) unless given.
    `partial(relu_attention, is_causal=True)` fits GPT(attend=).

    Raises ValueError for an unknown activation or a mask that is not boolean.
    """
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation={activation!r} is unknown; write one of {', '.join(ACTIVATIONS)}")
    if attn_mask is not None and attn_mask.dtype != torch.bool:
        raise ValueError(f"attn_mask is {attn_mask.dtype}; write booleans, true where a key is seen")
    with torch.autocast(query.device.type, enabled=False):
        scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
        weights = ACTIVATIONS[activation](scale * wide(query) @ wide(key).mT)
        weights = weights / (length or key.shape[-2]) ** alpha  # D2
        if is_causal:
            weights = weights.tril()
        if attn_mask is not None:
            weights = weights.masked_fill(~attn_mask, 0.0)  # D1
        return (weights @ wide(value)).to(query.dtype)


class ReLUAttention(nn.Module):
    """Takes the place of timm's Attention, x: (B, L, dim) -> (B, L, dim), with its layers and its state dict.

    attend(q, k, v), heads in the second axis: `relu_attention` unless given.  Masks are handed on by keyword.
    """

    def __init__(self, attention: nn.Module, attend: Callable[..., Tensor] = relu_attention):
        super().__init__()
        self.num_heads, self.attend = attention.num_heads, attend
        self.qkv, self.proj = attention.qkv, attention.proj
        self.q_norm, self.k_norm = attention.q_norm, attention.k_norm

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        masks = {} if attn_mask is None and not is_causal else {"attn_mask": attn_mask, "is_causal": is_causal}
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind()
        return self.proj(self.attend(self.q_norm(q), self.k_norm(k), v, **masks).transpose(1, 2).flatten(2))
