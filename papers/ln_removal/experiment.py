"""What papers/ln_removal measures: the folding of FakeLN, what removal costs, and direct logit attribution after it."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial

import torch
from torch import Tensor, nn

from repro import tasks, trivial
from repro.models.gpt import GPT, Attention
from repro.papers.ln_removal import fold_layernorm, method
from repro.train import History, Source, cosine, cross_entropy, evaluate_lm, generator, linear

# --- folding ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Model:
    width: int
    depth: int
    heads: int
    context: int
    batch: int


@dataclass(frozen=True, kw_only=True)
class Folding(Model):
    vocab: int


def sabotage(arm: str, removal: method.LayerNormRemoval) -> None:
    """What a wrong folding would leave out."""
    for site, norm in removal.sites.items():
        if arm == "no_bias":
            norm.bias.zero_()
        elif arm == "no_gain":
            norm.weight.fill_(1.0)
        elif arm == "one_sigma" and site.startswith("v."):
            norm.std.copy_(removal.sites[site.replace("v", "qk")].std)
        elif arm == "no_centring":
            norm.forward = lambda x, norm=norm: x / norm.std * norm.weight + norm.bias


@torch.no_grad()
def folding(arm: str, seed: int, config: Folding, device: torch.device) -> dict[str, float]:
    """Logits of a folded model against those of the one with FakeLN, in float64; weights, gains, biases, sigmas at
    random.
    """
    source = generator("ln_removal folding", seed)
    model = (
        GPT(
            config.vocab,
            config.context,
            config.width,
            config.depth,
            heads=config.heads,
            generator=source,
            bias=True,
            std=config.width**-0.5,
            embedding_std=1.0,
        )
        .to(device)
        .double()
    )
    for p in model.parameters():
        if p.dim() == 1:
            p += torch.randn(p.shape, generator=source, dtype=p.dtype).to(device) / 2
    tokens = torch.randint(config.vocab, (config.batch, config.context), generator=source).to(device)
    removal = method.remove_layernorm(model)
    model(tokens)
    for norm in removal.sites.values():
        norm.std *= 0.5 + torch.rand((), generator=source).to(device)  # as if frozen at different times
        norm.remove()
    want = model.eval()(tokens)
    sabotage(arm, removal)
    folded = fold_layernorm(model)
    return {
        "fold_error": float((folded(tokens) - want).abs().max() / want.abs().max()),
        "norms_left": sum(isinstance(m, nn.LayerNorm | method.FakeLayerNorm) for m in folded.modules()),
    }


# --- removal by fine-tuning ------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Removal(tasks.Text, Model):
    tuning_steps: int
    tuning_lr: float
    start: int  # first removal
    gaps: tuple[int, int, int]  # between removals of mlp, qk and v
    auxiliary: float  # weight of the auxiliary loss


RECIPE = {"clip": 1.0, "weight_decay": 0.01}


@lru_cache(maxsize=1)
def pretrained(seed: int, config: Removal, device: torch.device) -> tuple[GPT, History]:
    """A Pre-LN decoder, the same for all arms of a seed; to be copied, not changed."""
    corpus = config.load(device)
    model = GPT(
        corpus.vocab,
        config.context,
        config.width,
        config.depth,
        heads=config.heads,
        bias=True,
        std=0.02 * math.sqrt(768 / config.width),
        embedding_std=0.02,
        generator=generator("ln_removal", seed),
    ).to(device)
    name = "ln_removal pre-training"
    return model, tasks.trained(model, corpus.train, name, seed, config, schedule=linear(0.1), **RECIPE)


def tracked_loss(model: GPT, weight: float) -> Callable[[Tensor, Tensor], Tensor]:
    """Cross-entropy and the auxiliary loss of the stream before the last norm."""
    streams: list[Tensor] = []
    model.norm.register_forward_pre_hook(lambda norm, args: streams.append(args[0]))

    def loss(logits: Tensor, target: Tensor) -> Tensor:
        stream = streams[-1]
        streams.clear()  # evaluations leave some too
        return cross_entropy(logits, target) + method.auxiliary_loss(stream, weight)

    return loss


@torch.no_grad()
def attribution_error(model: GPT, x: Tensor, y: Tensor) -> float:
    """NMAE of direct logit attribution (Eqs. 4, 5, 9 and 10): heads' effects on the target's logit at the last
    position.
    """
    model = copy.deepcopy(model).double().eval()
    heads = [part for part in model.modules() if isinstance(part, Attention)]
    caught: list[Tensor] = []  # the heads' outputs, then the stream before the last norm
    for part in (*(head.out for head in heads), model.norm):
        part.register_forward_pre_hook(lambda module, args: caught.append(args[0][:, -1]))
    model(x)
    *mixed, stream = caught[:]
    norm, unembed, errors = model.norm, model.head.weight[y[:, -1]], []
    sigma = (stream.var(-1, correction=0, keepdim=True) + norm.eps).sqrt()
    sigma = torch.where(norm.removed > 0, norm.std, sigma) if isinstance(norm, method.FakeLayerNorm) else sigma
    for part, z in zip(heads, mixed, strict=True):
        pieces = zip(z.chunk(part.heads, -1), part.out.weight.chunk(part.heads, 1), strict=True)
        for c in (piece @ weight.T for piece, weight in pieces):
            effect = ((norm(stream) - norm(stream - c)) * unembed).sum(-1)
            attributed = ((c - c.mean(-1, keepdim=True)) / sigma * norm.weight * unembed).sum(-1)
            errors.append(float((attributed - effect).abs().mean() / effect.abs().mean()))
    return sum(errors) / len(errors)


def removal(arm: str, seed: int, config: Removal, device: torch.device) -> tasks.Measures:
    """Held-out loss of one pre-trained model after fine-tuning alone (vanilla), after fine-tuning with removal
    (one_by_one, at_once; first_block: of the norms of one block), and after removal alone (untuned; all_but_final;
    tripled, where sigma_avg is three times too large).
    """
    corpus, (first, begun) = config.load(device), pretrained(seed, config, device)
    model, hook, loss = copy.deepcopy(first), None, cross_entropy
    if arm != "vanilla":
        gaps = dict(zip(("gap_mlp", "gap_qk", "gap_v"), config.gaps, strict=True))
        schedule = method.removal_schedule(config.depth, start=config.start, **gaps)
        some = {"one_by_one": schedule, "first_block": [(t, s) for t, s in schedule if s.endswith(".0")]}
        hook = method.remove_layernorm(model, some.get(arm, [(config.start, s) for _, s in schedule]))
        loss = tracked_loss(model, config.auxiliary)
    evaluate = partial(evaluate_lm, tokens=corpus.valid, context=config.context, windows=config.windows)
    steps = config.tuning_steps if arm in ("vanilla", "one_by_one", "first_block", "at_once") else 0
    history = tasks.trained(
        model,
        corpus.train,
        "ln_removal fine-tuning",
        seed,
        config,
        steps=steps,
        lr=config.tuning_lr,
        hook=hook,
        loss=loss,
        schedule=cosine(0.08, 0.5),
        evaluate=evaluate,
        eval_every=max(steps // 6, 1),
        **RECIPE,
    )
    if not steps:
        with torch.no_grad():  # one batch, for sigma_avg
            model.train()(
                Source(corpus.train, config.context, device).take(torch.arange(config.batch, device=device))[0]
            )
        for site, norm in hook.sites.items():
            norm.std *= 3.0 if arm == "tripled" else 1.0
            if arm != "all_but_final" or site != "final":
                norm.remove()
    nats = evaluate(model)["loss"]
    held_out = Source(corpus.valid, config.context, device)
    x, y = held_out.take(torch.arange(config.windows, device=device) * (held_out.n // config.windows))
    return {
        "val_nats": nats,
        "attribution_error": attribution_error(model, x, y),
        "steps": history.eval_steps or [0],
        "val_curve": history.curves.get("loss", [nats]),
        **tasks.learning(begun),
        **trivial.text(corpus.train, corpus.valid, config.trivial),
    }
