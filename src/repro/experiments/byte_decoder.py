"""Small decoders on the bytes of Shakespeare: feed-forward layers, attention and residual connections exchanged.

Shared by glu_variants, value_residual, laurel, mhc_lite and relu_attention, so that their common arm `base` trains
once: GPT with RMSNorm before each sub-layer, rotary positions, GELU in a feed-forward layer of 4 times the width, no
biases, untied head.  Matrices start as N(0, std^2) with `std` as at width 768, and decay; vectors (gains, learned
weights of residual connections) do not decay, whatever the arm.  Arms of one seed start from the same embeddings,
attentions and head and see the same batches.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module

import torch
from torch import nn

from repro import trivial
from repro.models.gpt import GPT, FeedForward
from repro.models.slots import draw_, identity
from repro.papers.rmsnorm import RMSNorm
from repro.tasks import Measures, Text, learning, trained
from repro.train import Source, cosine, evaluate_classifier, generator

Options = tuple[tuple[str, object], ...]


@dataclass(frozen=True)
class Arm:
    """Names are "module:attribute", so that an arm depends on its own paper alone.

    act           of a feed-forward layer without a gate
    feed_forward  feed_forward(width, hidden) takes the place of every feed-forward layer, hidden 2/3 of 4 width
    attention     attention(model, **attention_options) changes the attentions of the finished model
    placement     the residual connection of each sub-layer, with options
    expand        expand(width) makes several streams of the embedding; collapse(norm) reads them at the end
    deeper        blocks more than the config says
    """

    act: str = "torch.nn:GELU"
    feed_forward: str | None = None
    attention: str | None = None
    attention_options: Options = ()
    placement: str = "repro.models.slots:Pre"
    options: Options = ()
    expand: str | None = None
    collapse: str | None = None
    deeper: int = 0


STREAMS = {"expand": "repro.papers.mhc_lite:ExpandStreams", "collapse": "repro.papers.mhc_lite:SumStreams"}
ARMS = {
    "base": Arm(),
    # glu_variants
    "relu": Arm("torch.nn:ReLU"),
    "swish": Arm("torch.nn:SiLU"),
    "glu": Arm(feed_forward="repro.papers.glu_variants:FFNGLU"),
    "bilinear": Arm(feed_forward="repro.papers.glu_variants:FFNBilinear"),
    "reglu": Arm(feed_forward="repro.papers.glu_variants:FFNReGLU"),
    "geglu": Arm(feed_forward="repro.papers.glu_variants:FFNGEGLU"),
    "swiglu": Arm(feed_forward="repro.papers.glu_variants:FFNSwiGLU"),
    "swiglu_added": Arm(feed_forward="repro.papers.glu_variants.experiment:Added"),
    "swiglu_open": Arm(feed_forward="repro.papers.glu_variants.experiment:OpenGate"),
    # value_residual
    "resformer": Arm(attention="repro.papers.value_residual:resformer_"),
    "svformer": Arm(attention="repro.papers.value_residual:svformer_"),
    "resformer_sum": Arm(
        attention="repro.papers.value_residual:resformer_", attention_options=(("lambda1", 1.0), ("lambda2", 1.0))
    ),
    "resformer_halved": Arm(
        attention="repro.papers.value_residual:resformer_", attention_options=(("lambda1", 0.0), ("lambda2", 0.5))
    ),
    "resformer_other": Arm(attention="repro.papers.value_residual.experiment:other_sequence_"),
    # laurel
    "laurel_rw": Arm(placement="repro.papers.laurel:LaurelRW"),
    "laurel_rw_half": Arm(placement="repro.papers.laurel.experiment:HalfRW"),
    "laurel_lr": Arm(placement="repro.papers.laurel:LaurelLR", options=(("rank", 8),)),
    "laurel_rw_lr": Arm(placement="repro.papers.laurel:LaurelRWLR", options=(("rank", 8),)),
    "laurel_pa": Arm(
        placement="repro.papers.laurel:LaurelPA",
        options=(("rank", 8),),
        expand="repro.papers.laurel:StartHistory",
        collapse="repro.papers.laurel:ReadHistory",
    ),
    "base_deeper": Arm(deeper=1),
    # mhc_lite
    "mhc": Arm(placement="repro.papers.mhc_lite:MHC", **STREAMS),
    "mhc_lite": Arm(placement="repro.papers.mhc_lite:MHCLite", **STREAMS),
    "mhc_uniform": Arm(placement="repro.papers.mhc_lite.experiment:Uniform", **STREAMS),
    "mhc_cold": Arm(placement="repro.papers.mhc_lite.experiment:Cold", **STREAMS),
    # relu_attention
    "relu_by_length": Arm(attention="repro.papers.relu_attention.experiment:by_length_"),
    "relu_undivided": Arm(attention="repro.papers.relu_attention.experiment:undivided_"),
    "relu_by_squared_length": Arm(attention="repro.papers.relu_attention.experiment:by_squared_length_"),
    "attention_off": Arm(attention="repro.papers.relu_attention.experiment:off_"),
}


@dataclass(frozen=True, kw_only=True)
class ByteDecoder(Text):
    """steps, batch, lr, context, windows, text, amp, trivial: as in `tasks.Text`.

    warmup  share of the steps in which the rate rises;  floor  of the cosine, as a share of lr
    """

    width: int
    depth: int
    heads: int
    eval_every: int
    warmup: float = 0.1
    floor: float = 0.1
    clip: float = 1.0
    weight_decay: float = 0.1
    std: float = 0.02
    text: str = "shakespeare"
    trivial: tuple[str, ...] = ("bigram", "trigram")


def named(name: str) -> Callable:
    """The attribute that "module:attribute" names."""
    module, attribute = name.split(":")
    return getattr(import_module(module), attribute)


def build(kind: Arm, seed: int, config: ByteDecoder, vocab: int, device: torch.device) -> GPT:
    """The model of an arm, on the device."""
    std = config.std * math.sqrt(768 / config.width)

    def finish(model: nn.Module, source: torch.Generator) -> None:
        for holder in [m for m in model.modules() if isinstance(getattr(m, "sublayer", None), FeedForward)]:
            if kind.feed_forward is not None:
                holder.sublayer = named(kind.feed_forward)(config.width, 2 * 4 * config.width // 3)
                for layer in holder.sublayer.modules():
                    if isinstance(layer, nn.Linear):
                        draw_(layer, std, source)
        if kind.attention is not None:
            named(kind.attention)(model, **dict(kind.attention_options))

    return GPT(
        vocab,
        config.context,
        config.width,
        config.depth + kind.deeper,
        heads=config.heads,
        generator=generator("byte_decoder", seed),
        norm={
            "attention": RMSNorm,
            "feed_forward": RMSNorm,
            "final": RMSNorm if kind.collapse is None else lambda n: named(kind.collapse)(RMSNorm(n)),
        },
        placement=partial(named(kind.placement), **dict(kind.options)),
        act=named(kind.act),
        after_embedding=identity if kind.expand is None else named(kind.expand),
        init=finish,
        std=std,
    ).to(device)


def decayed(model: nn.Module, weight_decay: float) -> list[dict]:
    """Parameter groups: weight decay for matrices alone."""
    matrices, vectors = ([p for p in model.parameters() if (p.dim() > 1) == wide] for wide in (True, False))
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]


def byte_decoder(arm: str, seed: int, config: ByteDecoder, device: torch.device) -> Measures:
    """Train the model of an arm: its held-out loss against the steps."""
    corpus = config.load(device)
    model = build(ARMS[arm], seed, config, corpus.vocab, device)
    held_out = Source(corpus.valid, config.context, device)
    windows = min(config.windows, held_out.n)
    x, y = held_out.take(torch.arange(windows, device=device) * (held_out.n // windows))
    history = trained(
        model,
        corpus.train,
        "byte_decoder batches",
        seed,
        config,
        optimizer_options={"betas": (0.9, 0.95)},
        groups=partial(decayed, weight_decay=config.weight_decay),
        schedule=cosine(config.warmup, config.floor),
        clip=config.clip,
        evaluate=lambda model: {"val_nats": evaluate_classifier(model, x, y, batch=config.batch)["loss"]},
        eval_every=config.eval_every,
    )
    return {
        "val_nats": history.final["val_nats"],
        "val_curve": history.curves["val_nats"],
        "steps": history.eval_steps,
        "parameters": sum(p.numel() for p in model.parameters()),
        **learning(history),
        **trivial.text(corpus.train, corpus.valid, config.trivial, vocab=corpus.vocab),
    }
