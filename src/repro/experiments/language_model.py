"""A sweep of decoders trained on prose, byte by byte: where norms stand, which norms there are, how weights start.

The deep setting (12 blocks of width 96 to 128) is for peri_ln, mix_ln, curse_of_depth, sdd and scalenorm, the wide
one (4 blocks of width 128) for rmsnorm, seednorm, relus_revival, dyt and ln_removal; a common arm of one setting
trains once.  All are LLaMA-like unless the arm says otherwise: rotary positions, SwiGLU, no biases, untied head.
Arms of one seed start from the same weights, N(0, std^2) with `std` as at width 768 (`repro.experiments.decoder`,
which also has the probes).
"""

import math
from dataclasses import dataclass
from functools import partial
from importlib import import_module

import torch
from torch import nn

from repro import trivial
from repro.experiments.decoder import drop_increase, late, propagation, scaled, spikes
from repro.models.gpt import GPT, Attention, FeedForward
from repro.models.slots import identity
from repro.tasks import Measures, Text, learning, trained
from repro.train import Source, constant, cosine, evaluate_classifier, generator


@dataclass(frozen=True)
class Arm:
    """Names are "module:attribute", so that an arm depends on its own paper alone.

    norm, options   the norm and its options, as (name, value)
    final           the norm before the head, where it is another
    placed          options of the placement, called first: MixLN's share of Post-LN blocks
    embedding_norm  a norm after the embedding
    branch          both output projections of a block start with std * (2 L)^branch
    final_scale     the final norm's output is multiplied by L^final_scale
    init            changes the finished model: init(model, generator)
    warmup          False: the rate does not rise at the start
    trained         False: no step is taken
    """

    placement: str = "repro.models.slots:Pre"
    norm: str = "repro.papers.rmsnorm:RMSNorm"
    options: tuple[tuple[str, object], ...] = ()
    final: str | None = None
    placed: tuple[tuple[str, object], ...] = ()
    act: str = "torch.nn:SiLU"
    gated: bool = True
    qk_norm: str | None = None
    embedding_norm: bool = False
    branch: float = 0.0
    final_scale: float = 0.0
    init: str | None = None
    warmup: bool = True
    trained: bool = True


ARMS = {
    # where norms stand
    "pre": Arm(),
    "pre_cold": Arm(warmup=False),
    "pre_embedding_norm": Arm(embedding_norm=True),
    "post": Arm("repro.models.slots:Post"),
    "post_cold": Arm("repro.models.slots:Post", warmup=False),
    "peri": Arm("repro.papers.peri_ln:PeriLN", embedding_norm=True),
    "output_norm_only": Arm("repro.experiments.decoder:OutputNorm", embedding_norm=True),
    "mix": Arm("repro.papers.mix_ln:MixLN", placed=(("alpha", 0.25),)),
    "mix_eighth": Arm("repro.papers.mix_ln:MixLN", placed=(("alpha", 0.125),)),
    "mix_half": Arm("repro.papers.mix_ln:MixLN", placed=(("alpha", 0.5),)),
    "reversed_mix": Arm("repro.experiments.decoder:reversed_mix"),
    "lns": Arm("repro.papers.curse_of_depth:LayerNormScaling"),
    "lns_up": Arm("repro.experiments.decoder:scaled_up"),
    "lns_final_only": Arm(final_scale=-0.5),
    # how weights start
    "scaled_init": Arm(branch=-0.5),
    "scaled_up_init": Arm(branch=0.5),
    "lns_scaled_init": Arm("repro.papers.curse_of_depth:LayerNormScaling", branch=-0.5),
    # which norm
    "layernorm": Arm(norm="repro.papers.layernorm:LayerNorm"),
    "prmsnorm": Arm(norm="repro.papers.rmsnorm:PartialRMSNorm", options=(("p", 0.0625),)),
    "scalenorm": Arm(norm="repro.papers.scalenorm:ScaleNorm"),
    "scalenorm_cold": Arm(norm="repro.papers.scalenorm:ScaleNorm", warmup=False),
    "seednorm": Arm(norm="repro.papers.seednorm:SeeDNorm"),
    "dyt": Arm(norm="repro.papers.dyt:DyT"),
    "qk_norm": Arm(qk_norm="repro.papers.rmsnorm:RMSNorm"),
    "no_norm": Arm("repro.models.slots:Bare", final="repro.models.slots:identity"),
    "final_norm_only": Arm("repro.models.slots:Bare"),
    # which activation, in a plain feed-forward layer
    "layernorm_gelu": Arm(norm="repro.papers.layernorm:LayerNorm", act="torch.nn:GELU", gated=False),
    "layernorm_relu": Arm(norm="repro.papers.layernorm:LayerNorm", act="torch.nn:ReLU", gated=False),
    "no_norm_gelu": Arm(
        "repro.models.slots:Bare", act="torch.nn:GELU", gated=False, final="repro.models.slots:identity"
    ),
    "no_norm_relu": Arm(
        "repro.models.slots:Bare", act="torch.nn:ReLU", gated=False, final="repro.models.slots:identity"
    ),
    # at the start
    "pre_untrained": Arm(trained=False),
    "mix_untrained": Arm("repro.papers.mix_ln:MixLN", placed=(("alpha", 0.25),), trained=False),
    "lns_untrained": Arm("repro.papers.curse_of_depth:LayerNormScaling", trained=False),
}


@dataclass(frozen=True, kw_only=True)
class LanguageModel(Text):
    """steps, batch, lr, context, windows, text, amp, trivial: as in `tasks.Text`.

    warmup  share of the steps in which the rate rises;  floor  of the cosine, as a share of lr, 1: no cosine
    """

    width: int
    depth: int
    heads: int
    warmup: float
    eval_every: int
    std: float = 0.02
    embedding_std: float = 0.02
    floor: float = 0.1
    clip: float = 1.0
    weight_decay: float = 0.1
    text: str = "prose"
    trivial: tuple[str, ...] = ("bigram", "trigram")


def named(name: str) -> object:
    """The attribute that "module:attribute" names."""
    module, attribute = name.split(":")
    return getattr(import_module(module), attribute)


def build(kind: Arm, seed: int, config: LanguageModel, vocab: int, device: torch.device) -> GPT:
    """The model of an arm, on the device."""
    norm = partial(named(kind.norm), **dict(kind.options)) if kind.options else named(kind.norm)
    last = norm if kind.final is None else named(kind.final)
    placement = named(kind.placement)

    def init(model: nn.Module, source: torch.Generator) -> None:
        for part in model.modules():
            if isinstance(part, Attention | FeedForward):
                out = part.out if isinstance(part, Attention) else part.down
                out.weight.data.mul_((2 * config.depth) ** kind.branch)
        if kind.init is not None:
            named(kind.init)(model, source)

    return GPT(
        vocab,
        config.context,
        config.width,
        config.depth,
        heads=config.heads,
        generator=generator("language_model", seed),
        norm={"attention": norm, "feed_forward": norm, "final": scaled(last, config.depth**kind.final_scale)},
        placement=placement(**dict(kind.placed)) if kind.placed else placement,
        act=named(kind.act),
        gated=kind.gated,
        qk_norm=identity if kind.qk_norm is None else named(kind.qk_norm),
        after_embedding=norm if kind.embedding_norm else identity,
        init=init,
        std=config.std * math.sqrt(768 / config.width),
        embedding_std=config.embedding_std * math.sqrt(768 / config.width),
    ).to(device)


def run(kind: Arm, seed: int, config: LanguageModel, device: torch.device) -> Measures:
    """Train one model and probe it: what `language_model` does for an arm by name."""
    corpus = config.load(device)
    model = build(kind, seed, config, corpus.vocab, device)
    held_out = Source(corpus.valid, config.context, device)
    windows = min(config.windows, held_out.n)
    x, y = held_out.take(torch.arange(windows, device=device) * (held_out.n // windows))
    few = slice(0, None, -(-windows // config.batch))  # about a batch of them, for what needs more memory
    evaluate = partial(evaluate_classifier, x=x, y=y, batch=config.batch)
    first, before, norms = evaluate(model)["loss"], propagation(model, x[few], y[few]), []
    warmup = config.warmup if kind.warmup else 0.0

    def clip(parameters: list[nn.Parameter]) -> None:
        norms.append(nn.utils.clip_grad_norm_(parameters, config.clip))

    history = trained(
        model,
        corpus.train,
        "language_model batches",
        seed,
        config,
        **({} if kind.trained else {"steps": 0}),
        optimizer_options={"betas": (0.9, 0.95)},
        weight_decay=config.weight_decay,
        schedule=constant(warmup) if config.floor == 1 else cosine(warmup, config.floor),
        clip=clip,
        evaluate=lambda model: {"loss": evaluate(model)["loss"]},
        eval_every=config.eval_every,
    )
    curve = [first, *history.curves.get("loss", ())]
    after, drop = propagation(model, x[few], y[few]), drop_increase(model, x[few], y[few])
    sizes = torch.stack(norms).tolist() if norms else []
    return {
        **after,
        "val_nats": curve[-1],
        "val_curve": curve,
        "steps": [0, *history.eval_steps],
        "first_mean_square": before["mean_square"],
        "last_change": after["last_mean_square"] / before["last_mean_square"],
        "drop_increase": drop,
        "late_drop": late(drop),
        "spikes": spikes(sizes) if sizes else 0,
        **({"gradient_sizes": sizes[:: max(1, len(sizes) // 50)]} if sizes else {}),
        **learning(history),
        **trivial.text(corpus.train, corpus.valid, config.trivial, vocab=corpus.vocab),
    }


def language_model(arm: str, seed: int, config: LanguageModel, device: torch.device) -> Measures:
    """A byte-level language model: held-out loss against steps, and signal, gradients and the worth of each block."""
    return run(ARMS[arm], seed, config, device)
