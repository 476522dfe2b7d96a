"""What papers/sdd measures: identities of the layer, gradients through depth, what it can stand for, and decoders of
it.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from repro.data.kinds import Corpus
from repro.experiments.decoder import LanguageModel, Model, propagation
from repro.models.gpt import GPT
from repro.models.slots import Placement, Post, Pre
from repro.papers.rmsnorm import RMSNorm
from repro.papers.sdd.method import PostSDD, PreSDD, SDDLinear
from repro.tasks import Measures, Worst, relative
from repro.tasks import language_model as trained_model
from repro.train import cosine, draws, generator


def variant(forward: Callable[[SDDLinear, Tensor], Tensor]) -> type[SDDLinear]:
    """A layer with V and alpha of its own and another formula."""
    return type("Variant", (SDDLinear,), {"forward": forward})


def plain(layer: SDDLinear, x: Tensor) -> Tensor:
    return layer.alpha * F.linear(x, layer.weight)


LAYERS: dict[str, type[SDDLinear]] = {
    "sdd": SDDLinear,
    "linear": variant(plain),
    "weight_norm": variant(lambda layer, x: layer.alpha * F.linear(x, F.normalize(layer.weight, dim=1))),
    "input_norm": variant(
        lambda layer, x: layer.alpha * F.linear(F.rms_norm(x, x.shape[-1:], None, 0.0), layer.weight)
    ),
}


def built(arm: str, weight: Tensor, alpha: Tensor) -> SDDLinear:
    layer = LAYERS[arm](1, 1, eps=0.0)  # draws one number; forward takes all sizes from V
    layer.weight, layer.alpha = nn.Parameter(weight), nn.Parameter(alpha)
    return layer


@dataclass(frozen=True, kw_only=True)
class Scale:
    inputs: int
    outputs: int
    cases: int
    scales: tuple[float, ...]


def scale(arm: str, seed: int, config: Scale, device: torch.device) -> dict[str, float]:
    """c V in place of V: outputs, gradient; the gradient along V and against Equation 8; the size of y / alpha."""
    draw = draws(device, "sdd scale", seed)
    weight, alpha = draw(config.outputs, config.inputs), draw(config.outputs)
    x, up = draw(config.cases, config.inputs), draw(config.cases, config.outputs)

    def passed(c: float) -> tuple[Tensor, Tensor]:
        layer = built(arm, c * weight, alpha)
        y = layer(x)
        return y.detach(), torch.autograd.grad((y * up).sum(), layer.weight)[0]

    (y, gradient), z = passed(1.0), x @ weight.T
    size, pulled = z.square().mean(-1, keepdim=True).sqrt(), alpha * up
    wanted = (pulled / size - z * (z * pulled).mean(-1, keepdim=True) / size**3).T @ x
    worst = Worst()
    for c in config.scales:
        scaled_y, scaled_gradient = passed(c)
        worst.relative("output_change", scaled_y, y)
        worst.relative("gradient_change", c * scaled_gradient, gradient)
    return {
        **worst,
        "radial_share": float((weight * gradient).sum().abs() / (weight.norm() * gradient.norm())),
        "equation_error": relative(gradient, wanted),
        "size_error": float(((y / alpha).square().mean(-1).sqrt() - 1).abs().max()),
    }


@dataclass(frozen=True, kw_only=True)
class Expressiveness:
    width: int
    cases: int


def expressiveness(arm: str, seed: int, config: Expressiveness, device: torch.device) -> dict[str, float]:
    """alpha norm(V x) with V = W and one alpha against W x, W of N(0, 1 / n): relative error, root mean square."""
    draw, n = draws(device, "sdd expressiveness", seed), config.width
    weight, x = draw(n, n) / n**0.5, draw(config.cases, n)
    x = x if arm == "gaussian" else x * 2 ** draw(config.cases, 1)  # spread: inputs of different norms
    y, wanted = built("sdd", weight, torch.ones(n, dtype=x.dtype, device=device))(x).detach(), x @ weight.T
    return {"relative_error": float(((y - wanted).norm(dim=-1) / wanted.norm(dim=-1)).square().mean().sqrt())}


def altered(change: Callable[[SDDLinear], object]) -> Placement:
    """PostSDD with change(layer) done to each of its layers."""

    def placement(sublayer: nn.Module, *place) -> nn.Module:
        block = PostSDD(sublayer, *place)
        for layer in [m for m in block.modules() if isinstance(m, SDDLinear)]:
            change(layer)
        return block

    return placement


PLACEMENTS: dict[str, Placement] = {
    "pre": Pre,
    "post": Post,
    "post_sdd": PostSDD,
    "pre_sdd": PreSDD,
    "alpha_one": altered(lambda layer: nn.init.ones_(layer.alpha)),
    "no_norm": altered(lambda layer: setattr(layer, "forward", lambda x: plain(layer, x))),
}


def decoder(arm: str, seed: int, config: Model, vocab: int, device: torch.device) -> GPT:
    """A LLaMA-like decoder; the embedding is normalised, and Post-Norm has no norm after the last block's."""
    return GPT(
        vocab,
        config.context,
        config.width,
        config.depth,
        heads=config.heads,
        gated=True,
        act=nn.SiLU,
        norm=RMSNorm,
        placement=PLACEMENTS[arm],
        after_embedding=RMSNorm,
        final_norm=arm.startswith("pre"),
        std=config.std * (768 / config.width) ** 0.5,
        embedding_std=config.embedding_std,
        generator=generator("sdd decoder", seed),
    ).to(device)


@dataclass(frozen=True, kw_only=True)
class LayerGradients(Model):
    vocab: int


def layer_gradients(
    arm: str, seed: int, config: LayerGradients, device: torch.device
) -> dict[str, float | list[float]]:
    """Gradient norms of the weight matrices, block by block, in an untrained decoder that reads random tokens."""
    tokens = torch.randint(
        config.vocab, (config.batch, config.context + 1), generator=generator("sdd tokens", seed)
    ).to(device)
    found = propagation(decoder(arm, seed, config, config.vocab, device), tokens[:, :-1], tokens[:, 1:])
    return {name: found[name] for name in ("block", "gradient_norm", "gradient_cv", "gradient_last_over_first")}


@dataclass(frozen=True, kw_only=True)
class Training(LanguageModel):
    condition: str  # base, or what is disturbed: no_warmup, small_init (a tenth), high_lr (five times)


def unigram(corpus: Corpus) -> float:
    """Nats per byte of the held-out text under the byte frequencies of the training text."""
    counts = torch.bincount(corpus.train.long(), minlength=corpus.vocab).double() + 1
    return float(-(counts / counts.sum()).log()[corpus.valid.long()].mean())


def training(arm: str, seed: int, config: Training, device: torch.device) -> Measures:
    """A byte-level decoder under a condition of Table 2: held-out loss, and how far it is below the unigram's."""
    corpus, disturbed = config.load(device), config.condition
    size, faster = 0.1 if disturbed == "small_init" else 1.0, 5.0 if disturbed == "high_lr" else 1.0
    model = decoder(arm, seed, replace(config, std=size * config.std), corpus.vocab, device)
    scores = trained_model(
        model,
        "sdd batches",
        seed,
        config,
        device,
        lr=faster * config.lr,
        optimizer_options={"betas": (0.9, 0.95)},
        weight_decay=config.weight_decay,
        schedule=cosine(0.0 if disturbed == "no_warmup" else config.warmup, config.floor),
        clip=config.clip or None,
    )
    return {**scores, "gain": unigram(corpus) - scores["val_nats"]}


def loss(arm: str, seed: int, config: Training, device: torch.device) -> Measures:
    """The same; `longer` is Pre-Norm trained for 1.5 times as many steps."""
    if arm == "longer":
        return training("pre", seed, replace(config, steps=config.steps * 3 // 2), device)
    return training(arm, seed, config, device)
