"""The encoder-decoder Transformer (Vaswani et al. 2017, arXiv:1706.03762), with the slots of `repro.models.slots`.

    attend(q, k, v, keep, causal) -> (B, H, T, K)    keep (B, 1, 1, S) marks the keys that count, None all of them

Shape suffixes: B batch, S source position, T target position, D width, H head, K head width, V vocabulary.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from repro.models.slots import Act, Init, Norm, Placement, Post, embedding, linear, placed

Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None, bool], Tensor]
PAD, START, END = 0, 1, 2


def softmax_attention(q: Tensor, k: Tensor, v: Tensor, keep: Tensor | None, causal: bool) -> Tensor:
    """softmax(q k^T / sqrt(K)) v over the kept keys, or over those not after the query."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=keep, is_causal=causal)


def sinusoids(length: int, dim: int) -> Tensor:
    """(length, dim): sin and cos of t / 10000^(2i / dim), side by side (Section 3.5)."""
    rate = 10_000.0 ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    angle = torch.outer(torch.arange(length, dtype=torch.float64), rate)
    return torch.stack([angle.sin(), angle.cos()], -1).flatten(1)[:, :dim].float()


class Surroundings:
    """What a sub-layer sees beside its input, for the length of one forward pass: a placement passes on one tensor."""

    memory: Tensor | None = None
    keep: Tensor | None = None


class Attention(nn.Module):
    """Attention with `heads` heads: of the input to itself (causal or not), or to the encoder's output (`cross`)."""

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        generator: torch.Generator,
        bias: bool,
        std: float | None,
        around: Surroundings,
        causal: bool = False,
        cross: bool = False,
        attend: Attend = softmax_attention,
        dropout: float = 0.0,
    ):
        super().__init__()
        if dim % heads:
            raise ValueError(f"heads={heads} must divide width={dim}")
        self.heads, self.causal, self.cross, self.attend, self.around = heads, causal, cross, attend, around
        size = std or math.sqrt(1 / dim)
        self.query, self.key, self.value, self.out = (
            linear(dim, dim, bias=bias, std=size, generator=generator) for _ in range(4)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BTD: Tensor) -> Tensor:
        read = self.around.memory if self.cross else x_BTD
        q, k, v = (
            layer(part).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer, part in ((self.query, x_BTD), (self.key, read), (self.value, read))
        )
        keep = None if self.causal else self.around.keep
        return self.dropout(self.out(self.attend(q, k, v, keep, self.causal).transpose(1, 2).flatten(2)))


class FeedForward(nn.Module):
    """W2 act(W1 x)."""

    def __init__(
        self,
        dim: int,
        hidden: int,
        *,
        generator: torch.Generator,
        act: Act,
        bias: bool,
        std: float | None,
        dropout: float = 0.0,
    ):
        super().__init__()
        size = std or math.sqrt(2 / (dim + hidden))
        self.up = linear(dim, hidden, bias=bias, std=size, generator=generator)
        self.act = act()
        self.down = linear(hidden, dim, bias=bias, std=size, generator=generator)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.down(self.act(self.up(x))))


class Transformer(nn.Module):
    """tokens (B, source + T) -> logits (B, T, V): the first `source` columns are the sentence, padded, that is
    translated, the others are what the decoder reads.

    placement(sublayer, norm, dim, index, depth) is called for the two sub-layers of each encoder block and the three of
    each decoder block; index and depth are those of its stack.  norm may be a dict {"attention", "feed_forward",
    "final"}.  final_norm=None: a norm ends each stack unless the placement is Post.
    tied: source and target embedding and head are one matrix.  Matrices start as N(0, 2 / (fan_in + fan_out)) or
    N(0, std^2), embeddings as N(0, 1 / D), read times sqrt(D); biases as 0.
    """

    def __init__(
        self,
        vocab: int,
        source: int,
        context: int,
        width: int,
        depth: int,
        *,
        heads: int,
        generator: torch.Generator,
        hidden: int | None = None,
        norm: Norm | dict[str, Norm] = nn.LayerNorm,
        placement: str | Placement = "post",
        act: Act = nn.ReLU,
        attend: Attend = softmax_attention,
        bias: bool = True,
        tied: bool = True,
        final_norm: bool | None = None,
        dropout: float = 0.0,
        std: float | None = None,
        init: Init | None = None,
    ):
        super().__init__()
        norms = norm if isinstance(norm, dict) else dict.fromkeys(("attention", "feed_forward", "final"), norm)
        wrap, hidden = placed(placement), hidden or 4 * width
        final_norm = wrap is not Post if final_norm is None else final_norm
        common = {"generator": generator, "bias": bias, "std": std, "dropout": dropout}
        self.source, self.context, self.scale = source, context, math.sqrt(width)
        self.around = Surroundings()
        self.embedding = embedding(vocab, width, std=width**-0.5, generator=generator)
        self.target_embedding = self.embedding
        if not tied:
            self.target_embedding = embedding(vocab, width, std=width**-0.5, generator=generator)
        self.register_buffer("positions", sinusoids(max(source, context), width), persistent=False)
        self.dropout = nn.Dropout(dropout)

        def stack(*kinds: dict) -> nn.ModuleList:
            """`depth` blocks: attention of each kind, then feed-forward."""
            made = nn.ModuleList()
            for index in range(depth):
                parts = [
                    (Attention(width, heads, around=self.around, attend=attend, **kind, **common), norms["attention"])
                    for kind in kinds
                ]
                parts.append((FeedForward(width, hidden, act=act, **common), norms["feed_forward"]))
                made.append(nn.Sequential(*(wrap(part, norm, width, index, depth) for part, norm in parts)))
            return made

        self.encoder, self.decoder = stack({}), stack({"causal": True}, {"cross": True})
        ends = [norms["final"](width) if final_norm else nn.Identity() for _ in range(2)]
        self.encoder_norm, self.decoder_norm = ends
        self.head = linear(width, vocab, bias=False, std=width**-0.5, generator=generator)
        if init is not None:
            init(self, generator)
        if tied:
            self.head.weight = self.embedding.weight

    def _read(self, table: nn.Embedding, tokens: Tensor) -> Tensor:
        return self.dropout(self.scale * table(tokens) + self.positions[: tokens.shape[1]])

    def encode(self, source_BS: Tensor) -> tuple[Tensor, Tensor]:
        """The encoder's output (B, S, D), and which of its positions hold a token (B, 1, 1, S)."""
        keep = (source_BS != PAD)[:, None, None]
        self.around.keep = keep
        x_BSD = self._read(self.embedding, source_BS)
        for block in self.encoder:
            x_BSD = block(x_BSD)
        self.around.keep = None
        return self.encoder_norm(x_BSD), keep

    def decode(self, memory: Tensor, keep: Tensor, target_BT: Tensor) -> Tensor:
        """Logits (B, T, V) of the token after each of the target."""
        self.around.memory, self.around.keep = memory, keep
        x_BTD = self._read(self.target_embedding, target_BT)
        for block in self.decoder:
            x_BTD = block(x_BTD)
        self.around.memory = self.around.keep = None
        return self.head(self.decoder_norm(x_BTD))

    def forward(self, tokens_BN: Tensor) -> Tensor:
        source, target = tokens_BN[:, : self.source], tokens_BN[:, self.source :]
        if not 1 <= target.shape[1] <= self.context:
            wanted = f"{self.source + 1} to {self.source + self.context}"
            raise ValueError(f"{tokens_BN.shape[1]} columns: write {wanted}, the source first")
        return self.decode(*self.encode(source), target)

    @torch.no_grad()
    def translate(self, source_BS: Tensor, length: int | None = None) -> Tensor:
        """The likeliest next token, one after another, until END: (B, length), START not among them, then PAD."""
        memory, keep = self.encode(source_BS)
        out = torch.full((len(source_BS), 1), START, device=source_BS.device)
        over = torch.zeros(len(source_BS), dtype=torch.bool, device=source_BS.device)
        for _ in range(length or self.context):
            following = self.decode(memory, keep, out)[:, -1].argmax(-1)
            following = torch.where(over, PAD, following)
            out = torch.cat([out, following[:, None]], 1)
            over |= following == END
            if bool(over.all()):
                break
        return out[:, 1:]
