"""The LayerNorm-free decoder and its entropy probe (Jha & Reagen, ATTRIB workshop at NeurIPS 2024, arXiv:2410.09637).

    x <- x + Attn(x);    x <- x + W2 act(W1 x);    logits = head(LN_f(x))

    a_ij = softmax_j(q_i k_j^T / sqrt(d_k)), j <= i;    E(l, h) = mean_i -sum_j a_ij log a_ij

x has the shape (B, T, D).  It is a GPT whose blocks have no norm, ReLU in place of GELU; the norm after the last block
stays, as in the authors' code (Nandan91/relu-revival-normfree, model_utils.py), which replaces the blocks of GPT-2
alone.  All weights start as N(0, 0.02^2) whatever the depth, the norm's gain as 1 and its bias as 0.  E(l, h) is the
mean over queries and sequences of the entropy, in nats, of head h of layer l; row i of a causal map has i keys, so E <=
mean_i log i.  Heads are in entropic overload where E is in [3/4 max, max], in entropy collapse where it is in [0, 1/4
max), max being the largest E of the model (their follow-up, arXiv:2501.03489, Equation 7 and Section 3, has these
definitions).

We depart from the authors' code in four places:
  D1  No layer has a bias.  There queries and keys have a trained one (that of the keys changes no weight).
  D2  Rotary positions and an untied head by default, as in Pythia, the paper's second model; GPT-2's are
      positions="learned", tied=True.
  D3  0 log 0 = 0 by itself: nothing is added inside the logarithm, and a NaN is not dropped from the sum.
  D4  normalized=True divides the entropy of a row by its largest value, the log of the number of its keys; the paper
      does not.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from repro.models.gpt import GPT, Attention, causal
from repro.models.modes import measured
from repro.models.slots import Act

__all__ = [
    "LearnableLeakyReLU",
    "attention_entropy",
    "attention_weights",
    "entropy_bands",
    "norm_free_gpt",
    "watch_attention",
]


def norm_free_gpt(
    vocab: int,
    context: int,
    width: int,
    depth: int,
    *,
    heads: int,
    generator: torch.Generator,
    act: Act = nn.ReLU,
    positions: str = "rotary",
    tied: bool = False,
    std: float = 0.02,
    embedding_std: float | None = None,
) -> GPT:
    """A decoder without norms in its blocks: tokens (B, T) -> logits (B, T, vocab) ("SM + R" in the paper's tables;
    with GELU "SM + G").

    x + Attn(x), then x + W2 act(W1 x), `depth` times; LayerNorm and the head follow.  Arguments as of
    repro.models.gpt.GPT. Raises ValueError where heads does not divide width or positions is unknown.
    """
    return GPT(
        vocab,
        context,
        width,
        depth,
        heads=heads,
        generator=generator,
        placement="none",
        act=act,
        norm=nn.LayerNorm,
        positions=positions,
        tied=tied,
        std=std,
        embedding_std=embedding_std,
        bias=False,
    )


class LearnableLeakyReLU(nn.Module):
    """y = x where x >= 0, else slope x: one learnable slope, which starts at `slope` (learnable_lrelu in the authors'
    code).

    As an act each layer has a slope of its own; for a global one make it once and give `act=lambda: it`.
    x, y: any shape, of one dtype.  Raises ValueError unless the slope is a finite number.
    """

    def __init__(self, slope: float = 0.01, device: torch.device | str | None = None, dtype: torch.dtype | None = None):
        if not abs(slope) < float("inf"):
            raise ValueError(f"slope={slope} is no slope: write a finite number such as 0.01")
        super().__init__()
        self.slope = nn.Parameter(torch.full((1,), slope, device=device, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x >= 0, x, x * self.slope.to(x.dtype))

    def extra_repr(self) -> str:
        return "slope=?" if self.slope.is_meta else f"slope={self.slope.item():.4g}"


def attention_weights(q_BHTK: Tensor, k_BHTK: Tensor) -> Tensor:
    """a_ij = softmax_j(q_i k_j^T / sqrt(K)), 0 where j > i; (B, H, T, T), in float32 at least (Equation 6 of
    arXiv:2501.03489).
    """
    q, k = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in (q_BHTK, k_BHTK))
    later = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device).triu(1)
    return (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(later, -torch.inf).softmax(-1)


@contextmanager
def watch_attention(model: nn.Module, record: Callable[[int, Tensor, Tensor], object]) -> Iterator[None]:
    """While it lasts, record(layer, q, k) is called as each attention of `model` is: layer from 0, q and k (B, H, T,
    K).

    q and k are as the scores see them, rotated and normalised.  The model computes what it computes without.
    Raises ValueError where the model has no repro.models.gpt.Attention, or one that is no causal softmax.
    """
    layers = [module for module in model.modules() if isinstance(module, Attention)]
    if not layers or any(layer.attend is not causal for layer in layers):
        raise ValueError("the entropy is that of causal softmax attention: write a GPT with attend=causal, its default")

    def watched(index: int) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            record(index, q, k)
            return causal(q, k, v)

        return attend

    try:
        for index, layer in enumerate(layers):
            layer.attend = watched(index)
        yield
    finally:
        for layer in layers:
            layer.attend = causal


def attention_entropy(model: nn.Module, tokens_BT: Tensor, *, normalized: bool = False, batch: int = 64) -> Tensor:
    """E(l, h) in nats, (layers, heads): the mean over queries and sequences of -sum_j a_ij log a_ij.

    normalized: row i is divided by log i (i from 1), its largest value, and the row of one key is left out (D4).
    Runs the model in eval mode, `batch` sequences at a time, and changes nothing of it.
    Raises ValueError as watch_attention does, and where a normalized entropy has one position only.
    """
    t = tokens_BT.shape[1]
    if normalized and t < 2:
        raise ValueError("one position has one key and no entropy to divide by: write at least 2 tokens per sequence")
    sums: dict[int, Tensor] = {}

    def record(layer: int, q: Tensor, k: Tensor) -> None:
        rows_HT = torch.special.entr(attention_weights(q, k)).sum(-1).double().sum(0)  # D3
        if normalized:
            rows_HT = rows_HT[:, 1:] / torch.arange(2, t + 1, device=q.device).double().log()
        sums[layer] = sums.get(layer, 0) + rows_HT.mean(-1)

    with watch_attention(model, record):
        measured(lambda m: [m(part) for part in tokens_BT.split(batch)], model)
    return torch.stack([sums[layer] for layer in sorted(sums)]) / len(tokens_BT)


def entropy_bands(entropy: Tensor, maximum: float | None = None) -> Tensor:
    """Shares of heads with E in [0, max/4), [max/4, max/2), [max/2, 3max/4), [3max/4, max]: (4,), float64.

    The last is entropic overload, the first entropy collapse (Figure 2a of arXiv:2501.03489).  maximum: max, by default
    the largest of `entropy`, any shape.  Raises ValueError where max is not positive or an entropy is above it or
    negative.
    """
    top = float(entropy.max()) if maximum is None else maximum
    if not (top > 0 and entropy.min() >= 0 and entropy.max() <= top):
        raise ValueError(
            f"entropies must lie from 0 to maximum={top}, which is positive: write the largest of all models"
        )
    index = (entropy.double() * (4 / top)).long().clamp(max=3)
    return torch.bincount(index.flatten(), minlength=4).double() / index.numel()
