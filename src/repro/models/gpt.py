"""Decoder language models: GPT-2 and LLaMA and what lies between, by slots.

Shape suffixes: B batch, T position, D width, H head, K head width, F feed-forward width, V vocabulary.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from repro.models.slots import Act, Init, Norm, Placement, embedding, identity, linear, placed

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def causal(q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(K) + causal mask) v: position t reads positions <= t."""
    return F.scaled_dot_product_attention(q_BHTK, k_BHTK, v_BHTK, is_causal=True)


def rotary_table(context: int, dim: int, base: float = 10_000.0) -> tuple[Tensor, Tensor]:
    """cos, sin (T, dim / 2) of the angles t * base^(-2i / dim) (Su et al. 2021, arXiv:2104.09864, Eq. 15)."""
    rate = base ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    angle = torch.outer(torch.arange(context, dtype=torch.float64), rate)
    return angle.cos().float(), angle.sin().float()


def rotate(x_BHTK: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair (x_i, x_{i + K/2}) by its angle.  The pairing is LLaMA's; the paper pairs (2i, 2i + 1)."""
    a, b = x_BHTK.chunk(2, -1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1).type_as(x_BHTK)


class Attention(nn.Module):
    """Causal self-attention with `heads` heads; qk_norm normalises queries and keys per head, before the rotation."""

    def __init__(
        self,
        dim: int,
        heads: int,
        context: int,
        *,
        generator: torch.Generator,
        bias: bool,
        std: float,
        rotary: bool,
        qk_norm: Norm = identity,
        attend: Attend = causal,
        dropout: float = 0.0,
    ):
        super().__init__()
        if dim % heads or (rotary and dim // heads % 2):
            raise ValueError(f"heads={heads} must divide width={dim} into heads of one{' even' * rotary} size")
        self.heads, self.attend = heads, attend
        self.qkv = linear(dim, 3 * dim, bias=bias, std=std, generator=generator)
        self.out = linear(dim, dim, bias=bias, std=std, generator=generator)
        self.norm_q, self.norm_k = qk_norm(dim // heads), qk_norm(dim // heads)
        self.dropout = nn.Dropout(dropout)
        cos, sin = rotary_table(context, dim // heads) if rotary else (None, None)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        t = x_BTD.shape[1]
        qkv = self.qkv(x_BTD).unflatten(-1, (3, self.heads, -1))
        q_BHTK, k_BHTK, v_BHTK = qkv.permute(2, 0, 3, 1, 4).unbind()
        q_BHTK, k_BHTK = self.norm_q(q_BHTK), self.norm_k(k_BHTK)
        if self.cos is not None:
            q_BHTK, k_BHTK = (rotate(x, self.cos[:t], self.sin[:t]) for x in (q_BHTK, k_BHTK))
        return self.dropout(self.out(self.attend(q_BHTK, k_BHTK, v_BHTK).transpose(1, 2).flatten(2)))


class FeedForward(nn.Module):
    """W2 act(W1 x), or gated W2 (act(W1 x) * W3 x): SwiGLU with act SiLU (Shazeer 2020, arXiv:2002.05202)."""

    def __init__(
        self,
        dim: int,
        hidden: int,
        *,
        generator: torch.Generator,
        act: Act,
        gated: bool,
        bias: bool,
        std: float,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.up = linear(dim, hidden, bias=bias, std=std, generator=generator)
        self.gate = linear(dim, hidden, bias=bias, std=std, generator=generator) if gated else None
        self.act = act()
        self.down = linear(hidden, dim, bias=bias, std=std, generator=generator)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BTD: Tensor) -> Tensor:
        h_BTF = self.act(self.up(x_BTD) if self.gate is None else self.gate(x_BTD))
        if self.gate is not None:
            h_BTF = h_BTF * self.up(x_BTD)
        return self.dropout(self.down(h_BTF))


class Block(nn.Module):
    """Attention, then feed-forward, each under the placement, which brings the norms."""

    def __init__(self, attention: nn.Module, feed_forward: nn.Module):
        super().__init__()
        self.attention, self.feed_forward = attention, feed_forward

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.feed_forward(self.attention(x_BTD))


class GPT(nn.Module):
    """tokens (B, T), T <= context -> logits (B, T, V).

    placement(sublayer, norm, dim, index, depth) is called for both sub-layers of block `index` (0-based) of `depth`.
    norm may be a dict {"attention", "feed_forward", "final"} of norms where they differ.
    after_embedding(dim) is applied to the embedded tokens: a norm (Peri-LN) or a scale.
    Weights start as N(0, std^2), std 0.02; biases as 0.  hidden: 4 width, gated 8/3 width up to a multiple of 8.
    """

    def __init__(
        self,
        vocab: int,
        context: int,
        width: int,
        depth: int,
        *,
        heads: int,
        generator: torch.Generator,
        norm: Norm | dict[str, Norm] = nn.LayerNorm,
        placement: str | Placement = "pre",
        act: Act = nn.GELU,
        gated: bool = False,
        hidden: int | None = None,
        positions: str = "rotary",
        bias: bool = False,
        tied: bool = False,
        final_norm: bool = True,
        after_embedding: Norm = identity,
        qk_norm: Norm = identity,
        attend: Attend = causal,
        dropout: float = 0.0,
        std: float = 0.02,
        embedding_std: float | None = None,
        init: Init | None = None,
    ):
        super().__init__()
        if positions not in ("rotary", "learned", "none"):
            raise ValueError(f"positions={positions!r} is unknown; write rotary, learned or none")
        norms = norm if isinstance(norm, dict) else dict.fromkeys(("attention", "feed_forward", "final"), norm)
        hidden = hidden or (-(-8 * width // 24) * 8 if gated else 4 * width)
        common, wrap = {"generator": generator, "bias": bias, "std": std, "dropout": dropout}, placed(placement)
        self.context = context
        self.embedding = embedding(vocab, width, std=embedding_std or std, generator=generator)
        learned = positions == "learned"
        self.positions = embedding(context, width, std=std, generator=generator) if learned else None
        self.after_embedding = after_embedding(width)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList()
        for index in range(depth):
            attention = Attention(
                width, heads, context, rotary=positions == "rotary", qk_norm=qk_norm, attend=attend, **common
            )
            feed_forward = FeedForward(width, hidden, act=act, gated=gated, **common)
            self.blocks.append(
                Block(
                    wrap(attention, norms["attention"], width, index, depth),
                    wrap(feed_forward, norms["feed_forward"], width, index, depth),
                )
            )
        self.norm = norms["final"](width) if final_norm else nn.Identity()
        self.head = linear(width, vocab, bias=False, std=std, generator=generator)
        if init is not None:
            init(self, generator)
        if tied:
            self.head.weight = self.embedding.weight

    def forward(self, tokens_BT: Tensor) -> Tensor:
        t = tokens_BT.shape[1]
        if t > self.context:
            raise ValueError(f"{t} tokens are more than context={self.context}; pass at most that many")
        x_BTD = self.embedding(tokens_BT)
        if self.positions is not None:
            x_BTD = x_BTD + self.positions.weight[:t]
        x_BTD = self.dropout(self.after_embedding(x_BTD))
        for block in self.blocks:
            x_BTD = block(x_BTD)
        return self.head(self.norm(x_BTD))
