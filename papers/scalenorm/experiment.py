"""What papers/scalenorm measures: its identities, language models with and without warm-up, the time of a step."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from repro import trivial
from repro.models.gpt import GPT
from repro.papers.layernorm import LayerNorm
from repro.papers.scalenorm.method import FixNormEmbedding, ScaleNorm, small_init
from repro.tasks import Measures, Text, Timed, Worst, learning, timed, trained
from repro.train import Source, constant, cross_entropy, evaluate_classifier, generator

# --- identities ------------------------------------------------------------------------------------------------------


class AddedEps(ScaleNorm):
    """eps = 0.01 is added to the norm."""

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x / (torch.linalg.vector_norm(x, dim=-1, keepdim=True) + 0.01)


IDENTITY = {"scalenorm": ScaleNorm, "added_eps": AddedEps, "rmsnorm": partial(nn.RMSNorm, eps=0.0)}


@dataclass(frozen=True, kw_only=True)
class Identity:
    widths: tuple[int, ...]
    draws: int


def identity(arm: str, seed: int, config: Identity, device: torch.device) -> dict[str, float]:
    """A fresh norm against RMSNorm without a gain, for cases of lengths 1e-3 to 1e3, in float64.

    Errors of outputs are relative to sqrt(d), their length, and those of gradients to |upstream| sqrt(d) / |x|.
    """
    source, worst = generator("scalenorm identity", seed), Worst()
    for n in config.widths * config.draws:
        norm, root = IDENTITY[arm](n, device=device, dtype=torch.float64), n**0.5
        x, upstream = F.normalize(torch.randn(2, 64, n, generator=source, dtype=torch.float64), dim=-1).to(device)
        length = 10 ** (6 * torch.rand(64, 1, generator=source, dtype=torch.float64).to(device) - 3)
        x = (length * x).requires_grad_()
        y, rms = norm(x), F.rms_norm(x, (n,), eps=0.0)
        slope, wanted = (torch.autograd.grad(out, x, upstream)[0] * length / root for out in (y, rms))
        worst.record("rms_error", (y - rms).norm(dim=-1) / root)
        worst.record("rms_error", (slope - wanted).norm(dim=-1))
        worst.record("rescaling_error", (norm(x / length) - y).norm(dim=-1) / root)
        worst.record("radial_error", (x / length * slope).sum(-1).abs())
    return {**worst, "extra_parameters": sum(p.numel() for p in norm.parameters()) - 1}


@dataclass(frozen=True, kw_only=True)
class Cosine:
    width: int
    words: int


def cosine(arm: str, seed: int, config: Cosine, device: torch.device) -> dict[str, float]:
    """Logits of words of lengths 1e-3 to 1e3, behind the final norm with a random g, against g cos(w,
    x), in float64.
    """
    source = generator("scalenorm cosine", seed)
    w, x = torch.randn(2, config.words, config.width, generator=source, dtype=torch.float64)
    sizes, g = (
        10 ** (6 * torch.rand(config.words, 1, generator=source) - 3),
        5 + 20 * float(torch.rand((), generator=source)),
    )
    table = FixNormEmbedding(config.words, config.width, device=device, dtype=w.dtype).requires_grad_(False)
    norm = (nn.LayerNorm if arm == "layernorm" else ScaleNorm)(
        config.width, device=device, dtype=w.dtype
    ).requires_grad_(False)
    table.weight.copy_(w * sizes)
    next(norm.parameters()).fill_(g)
    x = 1 + x.to(device)
    got = F.linear(norm(x), table.weight) if arm == "input_only" else table.logits(norm(x))
    want = g * F.cosine_similarity(x[:, None], table.weight, dim=-1)
    return {"cosine_error": float((got - want).abs().max() / g)}


# --- language models -------------------------------------------------------------------------------------------------


class Tied(FixNormEmbedding):
    """Embeddings of free length, times sqrt(d) at the input, tied to the softmax: what FixNorm replaces."""

    def unit(self, w: Tensor) -> Tensor:
        return w


class Softmax(nn.Module):
    """The head of a model that is tied to its embedding."""

    def __init__(self, embedding: FixNormEmbedding):
        super().__init__()
        self.embedding = embedding

    def forward(self, x: Tensor) -> Tensor:
        return self.embedding.logits(x)


ARMS = {  # (placement, norm, embedding, share of the steps for warm-up)
    "postnorm": ("post", nn.LayerNorm, Tied, 0.0),
    "postnorm_warmup": ("post", nn.LayerNorm, Tied, 0.5),
    "prenorm": ("pre", nn.LayerNorm, Tied, 0.0),
    "scalenorm": ("pre", ScaleNorm, Tied, 0.0),
    "scalenorm_fixnorm": ("pre", ScaleNorm, FixNormEmbedding, 0.0),
    "unit_g": ("pre", lambda n: ScaleNorm(1.0).requires_grad_(False), Tied, 0.0),  # g stays at 1
    "untrained": ("pre", ScaleNorm, FixNormEmbedding, 0.0),
}


@dataclass(frozen=True, kw_only=True)
class Decoder:
    width: int
    depth: int
    heads: int
    context: int
    batch: int


@dataclass(frozen=True, kw_only=True)
class LanguageModel(Text, Decoder):
    warmup: float = 0.0  # share of the steps, in the arms that have a share of 0


def build(arm: str, config: LanguageModel, vocab: int, source: torch.Generator) -> GPT:
    """A decoder as in the paper: SmallInit, ReLU, biases, softmax tied to the embedding; learned positions."""
    placement, norm, embedding, _ = ARMS[arm]
    model = GPT(
        vocab,
        config.context,
        config.width,
        config.depth,
        heads=config.heads,
        norm=norm,
        placement=placement,
        act=nn.ReLU,
        bias=True,
        positions="learned",
        std=0.7,
        final_norm=placement == "pre",
        init=small_init,
        generator=source,
    )
    model.embedding = embedding(vocab, config.width)
    if embedding is FixNormEmbedding:
        model.embedding.weight.data.uniform_(-0.01, 0.01, generator=source)
    else:
        model.embedding.weight.data.normal_(0.0, config.width**-0.5, generator=source)
    model.head = Softmax(model.embedding)
    return model


def correlation(values: list[float]) -> float:
    """Pearson's r with the position in the list; 0 where all are equal."""
    return float(torch.tensor([values, range(len(values))], dtype=torch.float64).corrcoef()[0, 1].nan_to_num())


def language_model(arm: str, seed: int, config: LanguageModel, device: torch.device) -> Measures:
    """Adam, clipping and a constant rate as in the paper (Sec. 3.3, Appendix A), on the bytes of a text."""
    corpus = config.load(device)
    model = build(arm, config, corpus.vocab, generator("scalenorm language model", seed)).to(device)
    source = Source(corpus.valid, config.context, device)
    x, y = source.take(torch.arange(config.windows, device=device) * (source.n // config.windows))
    history = trained(
        model,
        corpus.train,
        "scalenorm batches",
        seed,
        config,
        steps=0 if arm == "untrained" else config.steps,
        optimizer="adam",
        clip=1.0,
        schedule=constant(ARMS[arm][3] or config.warmup),
    )
    loss = evaluate_classifier(model, x, y, batch=config.batch)["loss"]
    share = torch.bincount(y.flatten()).double() / y.numel()
    found = {
        "val_nats": loss,
        "below_unigram": float(torch.special.entr(share).sum()) - loss,
        "train_nats": history.train_loss,
        **learning(history),
        **trivial.text(corpus.train, corpus.valid, config.trivial),
    }
    if isinstance(model.norm, ScaleNorm):
        sites = {
            "attention": [block.attention.norm for block in model.blocks],
            "feed_forward": [*(block.feed_forward.norm for block in model.blocks), model.norm],
        }
        for site, norms in sites.items():
            found[f"{site}_g"] = [norm.scale.item() for norm in norms]
            found[f"{site}_r"] = correlation(found[f"{site}_g"])
    return found


# --- the time of a pass ----------------------------------------------------------------------------------------------

# The authors' code has torch's nn.LayerNorm against a ScaleNorm of elementary operators; composed_layernorm is as
# theirs.
NORMS = {
    "layernorm": nn.LayerNorm,
    "layernorm_again": nn.LayerNorm,
    "scalenorm": ScaleNorm,
    "composed_layernorm": LayerNorm,
}


@dataclass(frozen=True, kw_only=True)
class Speed(Timed, Decoder):
    pass


def passes(arm: str, seed: int, config: Speed, device: torch.device) -> Callable[[], None]:
    """Forward and backward pass of a decoder on random tokens."""
    source = generator("scalenorm speed", seed)
    model = GPT(
        256,
        config.context,
        config.width,
        config.depth,
        heads=config.heads,
        norm=NORMS[arm],
        act=nn.ReLU,
        bias=True,
        generator=source,
    ).to(device)
    tokens = torch.randint(256, (config.batch, config.context), generator=source).to(device)

    def call() -> None:
        model.zero_grad()
        cross_entropy(model(tokens), tokens).backward()

    return call


speed_group = timed(passes, reference="layernorm", memory=False)
