"""What papers/relus_revival measures: decoders with and without norms in their blocks, under GELU, ReLU and others.

Weights have the standard deviation that 0.02 is at width 768, a model of another width takes 0.02 sqrt(768 / width).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.special import entr

from repro import tasks
from repro.models.gpt import GPT
from repro.models.slots import Act
from repro.papers.relus_revival import method
from repro.train import generator, linear


class Half(nn.Module):
    """x / 2: what GELU is for small x."""

    def forward(self, x: Tensor) -> Tensor:
        return x / 2


ACTS: dict[str, Act] = {"gelu": nn.GELU, "relu": nn.ReLU, "silu": nn.SiLU, "half": Half}


@dataclass(frozen=True, kw_only=True)
class Model:
    width: int
    depth: int
    heads: int
    context: int
    batch: int


def build(act: Act, norm: str, seed: int, config: Model, vocab: int, device: torch.device) -> GPT:
    """Without norms in the blocks (none), or with layer norms before the sub-layers and all else alike (layernorm)."""
    make = method.norm_free_gpt if norm == "none" else partial(GPT, norm=nn.LayerNorm, placement="pre")
    return make(
        vocab,
        config.context,
        config.width,
        config.depth,
        heads=config.heads,
        act=act,
        std=0.02 * math.sqrt(768 / config.width),
        embedding_std=0.02,
        generator=generator("relus_revival", seed),
    ).to(device)


# --- without training ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class EntropyRange(Model):
    vocab: int
    scales: tuple[float, ...]  # of the queries' and keys' weights


@dataclass(frozen=True, kw_only=True)
class Start(EntropyRange):  # its scales are those of the stream; the first is tiny, the last huge
    norm: str


def random_tokens(name: str, seed: int, config: EntropyRange, device: torch.device) -> Tensor:
    source = generator(f"relus_revival {name}", seed)
    return torch.randint(config.vocab, (config.batch, config.context), generator=source).to(device)


def start(arm: str, seed: int, config: Start, device: torch.device) -> dict[str, float | list[float]]:
    """Untrained models that read random tokens: how a feed-forward branch answers to the size of its input, and how far
    its activations are from a straight line (the share of their variance that none explains), block by block."""
    shares, errors, limits = [], [], []
    model = build(ACTS[arm], config.norm, seed, config, config.vocab, device).double().requires_grad_(False)

    def record(act: nn.Module, args: tuple[Tensor], out: Tensor) -> None:
        shares.append(1 - float(torch.corrcoef(torch.stack([args[0].flatten(), out.flatten()]))[0, 1] ** 2))

    handles = [block.feed_forward.sublayer.act.register_forward_hook(record) for block in model.blocks]
    model(random_tokens("start", seed, config, device))
    for handle in handles:
        handle.remove()
    x = torch.randn(config.batch, config.width, generator=generator("relus_revival x", seed), dtype=torch.float64).to(
        device
    )

    def apart(a: Tensor, b: Tensor) -> float:
        return float((a - b).abs().max() / b.abs().max())

    for layer in (block.feed_forward for block in model.blocks):
        up, down = layer.sublayer.up, layer.sublayer.down
        branches = [(layer(c * x) - c * x) / c for c in (*config.scales, 1.0)]
        errors += [apart(branch, branches[-1]) for branch in branches]
        limits += [apart(branches[0], down(up(x) / 2)), apart(branches[-2], down(up(x).relu()))]
    return {
        "block": list(range(1, config.depth + 1)),
        "nonlinear_share": shares,
        "largest_share": max(shares),
        "least_share": min(shares),
        "scale_error": max(errors),
        "gelu_limits": limits,
    }


PROBES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {  # q, k -> entropies (..., H, T); all wrong
    "no_mask": lambda q, k: entr((q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)).sum(-1),
    "bits": lambda q, k: entr(method.attention_weights(q, k)).sum(-1) / math.log(2),
    "mean_map": lambda q, k: entr(method.attention_weights(q, k).mean(0, keepdim=True)).sum(-1),
}


def probed(arm: str, model: GPT, tokens: Tensor) -> Tensor:
    """Entropies (layers, heads) by the probe, or by a wrong one."""
    if arm == "probe":
        return method.attention_entropy(model, tokens)
    found: list[Tensor] = []
    with method.watch_attention(model, lambda layer, q, k: found.append(PROBES[arm](q, k).mean((0, -1)))):
        model(tokens)
    return torch.stack(found)


def entropy_range(arm: str, seed: int, config: EntropyRange, device: torch.device) -> dict[str, float]:
    """Entropies in float64 where queries are 0 (uniform attention), where scores are huge (one key each), and
    between.
    """
    model = build(nn.ReLU, "none", seed, config, config.vocab, device).double().requires_grad_(False)
    tokens = random_tokens("entropy", seed, config, device)
    limit = math.fsum(math.log(i) for i in range(1, config.context + 1)) / config.context
    first = [block.attention.sublayer.qkv.weight.clone() for block in model.blocks]

    def at(scale: float) -> Tensor:
        """Entropies over the limit, with the weights of queries and keys multiplied."""
        for block, weight in zip(model.blocks, first, strict=True):
            block.attention.sublayer.qkv.weight[: 2 * config.width] = scale * weight[: 2 * config.width]
        return probed(arm, model, tokens) / limit

    between = torch.stack([at(scale) for scale in config.scales])
    return {
        "uniform_error": float((at(0.0) - 1).abs().max()),
        "sharp_entropy": float(at(1e8).abs().max()),
        "range_excess": max(float(between.max()) - 1, -float(between.min()), 0.0),
    }


# --- trained models --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class LanguageModel(tasks.Text, Model):
    norm: str
    warmup: float  # share of the steps; then linear to 0
    clip: float
    weight_decay: float  # of matrices


def groups(model: nn.Module) -> list[dict]:
    """Gains, biases and slopes do not decay."""
    matrices, others = ([p for p in model.parameters() if (p.dim() > 1) is wanted] for wanted in (True, False))
    return [{"params": matrices}, {"params": others, "weight_decay": 0.0}]


def trained(act: Act, steps: int, seed: int, config: LanguageModel, device: torch.device) -> tuple[GPT, tasks.Measures]:
    """A byte-level language model after `steps`, and its scores."""
    corpus = config.load(device)
    model = build(act, config.norm, seed, config, corpus.vocab, device)
    scores = tasks.language_model(
        model,
        "relus_revival batches",
        seed,
        config,
        device,
        steps=steps,
        weight_decay=config.weight_decay,
        groups=groups,
        schedule=linear(config.warmup),
        clip=config.clip,
    )
    return model, scores


def language_model(arm: str, seed: int, config: LanguageModel, device: torch.device) -> tasks.Measures:
    """Held-out perplexity and the entropies of all heads on held-out text."""
    act, _, untrained = arm.partition("_")
    model, scores = trained(ACTS[act], 0 if untrained else config.steps, seed, config, device)
    held_out = config.load(device).valid
    tokens = held_out[: config.windows * config.context].view(config.windows, config.context).long()
    entropy = method.attention_entropy(model, tokens)
    top, half = float(entropy.max()), config.depth // 2
    whole, early = (method.entropy_bands(part, top) for part in (entropy, entropy[:half]))
    ratio = method.entropy_bands(method.attention_entropy(model, tokens, normalized=True))
    return {
        **tasks.perplexities(scores, most=math.inf),
        "val_nats": scores["val_nats"],
        "block": list(range(1, config.depth + 1)),
        "layer_entropy": entropy.mean(1).tolist(),
        "head_entropy": entropy.flatten().tolist(),
        "overload": float(whole[3]),
        "collapse": float(whole[0]),
        "early_overload": float(early[3]),
        "normalized_overload": float(ratio[3]),
    }


@dataclass(frozen=True, kw_only=True)
class Slopes(LanguageModel):
    slope: float  # at the start


def slopes(arm: str, seed: int, config: Slopes, device: torch.device) -> tasks.Measures:
    """A learnable negative slope per layer, after training, over what it started from."""
    make = partial(method.LearnableLeakyReLU, config.slope)
    model, scores = trained(make, 0 if arm == "slope_untrained" else config.steps, seed, config, device)
    found = [
        float(m.slope.detach()) / config.slope for m in model.modules() if isinstance(m, method.LearnableLeakyReLU)
    ]
    return {
        "block": list(range(1, config.depth + 1)),
        "slope_share": found,
        "mean_slope": sum(map(abs, found)) / len(found),
        **scores,
    }
