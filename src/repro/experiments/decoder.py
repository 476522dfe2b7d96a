"""Decoders that differ in where their norms stand, before any training, and the probes of all decoders.

All are LLaMA-like: RMSNorm, rotary positions, SwiGLU, no biases, untied head.  Arms of one seed start from the same
weights, N(0, std^2) with `std` as at width 768: a model of another width takes std * sqrt(768 / width), which keeps the
size of what a matrix product returns.  `embedding_std` is taken as it stands.  Blocks count from 1 to L = depth.
"""

import math
from dataclasses import dataclass
from importlib import import_module
from statistics import median

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from repro import tasks
from repro.models.gpt import GPT, Attention, FeedForward
from repro.models.slots import Norm, Post, Pre, identity
from repro.papers.rmsnorm import RMSNorm
from repro.train import cross_entropy, generator

Measures = tasks.Measures


class Scale(nn.Module):
    """y = factor x."""

    def __init__(self, factor: float):
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x


def scaled(norm: Norm, factor: float) -> Norm:
    """The norm slot, its output multiplied by a constant."""
    return lambda n: nn.Sequential(norm(n), Scale(factor))


class OutputNorm(nn.Module):
    """y = x + Norm(f(x)): Peri-LN without its input norm."""

    def __init__(self, sublayer: nn.Module, norm: Norm, dim: int, index: int, depth: int):
        super().__init__()
        self.sublayer, self.norm = sublayer, norm(dim)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.norm(self.sublayer(x))


def reversed_mix(sublayer: nn.Module, norm: Norm, dim: int, index: int, depth: int) -> nn.Module:
    """Mix-LN the wrong way round: Post-LN in the last quarter of the blocks."""
    return (Pre if index < depth - depth // 4 else Post)(sublayer, norm, dim, index, depth)


def scaled_up(sublayer: nn.Module, norm: Norm, dim: int, index: int, depth: int) -> nn.Module:
    """LayerNorm Scaling the wrong way round: the norm's output times sqrt(l)."""
    return Pre(sublayer, scaled(norm, math.sqrt(index + 1)), dim, index, depth)


@dataclass(frozen=True)
class Arm:
    """placement: "module:attribute", so that an arm depends on no paper but its own.

    alpha           MixLN's share of Post-LN blocks
    embedding_norm  a norm after the embedding
    branch          both output projections of a block start with std * (2 L)^branch
    final           the final norm's output is multiplied by L^final
    """

    placement: str
    alpha: float | None = None
    embedding_norm: bool = False
    branch: float = 0.0
    final: float = 0.0


ARMS = {
    "pre": Arm("repro.models.slots:Pre"),
    "pre_embedding_norm": Arm("repro.models.slots:Pre", embedding_norm=True),
    "post": Arm("repro.models.slots:Post"),
    "peri": Arm("repro.papers.peri_ln:PeriLN", embedding_norm=True),
    "output_norm_only": Arm("repro.experiments.decoder:OutputNorm", embedding_norm=True),
    "mix": Arm("repro.papers.mix_ln:MixLN", alpha=0.25),
    "reversed_mix": Arm("repro.experiments.decoder:reversed_mix"),
    "lns": Arm("repro.papers.curse_of_depth:LayerNormScaling"),
    "lns_up": Arm("repro.experiments.decoder:scaled_up"),
    "lns_final_only": Arm("repro.models.slots:Pre", final=-0.5),
    "scaled_init": Arm("repro.models.slots:Pre", branch=-0.5),
    "scaled_up_init": Arm("repro.models.slots:Pre", branch=0.5),
}


@dataclass(frozen=True, kw_only=True)
class Model:
    width: int
    depth: int
    heads: int
    context: int
    batch: int
    std: float
    embedding_std: float


@dataclass(frozen=True, kw_only=True)
class AtInitialization(Model):
    vocab: int


@dataclass(frozen=True, kw_only=True)
class LanguageModel(tasks.Text, Model):
    """The held-out windows are spread evenly over the text."""

    warmup: float  # share of the steps
    floor: float  # of the cosine, as a share of lr
    clip: float  # bound of the gradient's norm
    weight_decay: float
    eval_every: int


def build(arm: str, seed: int, config: Model, vocab: int, device: torch.device) -> GPT:
    """The model of an arm, on the device."""
    kind, depth = ARMS[arm], config.depth
    module, name = kind.placement.split(":")
    placement = getattr(import_module(module), name)

    def init(model: nn.Module, source: torch.Generator) -> None:
        for part in model.modules():
            if isinstance(part, Attention | FeedForward):
                last = part.out if isinstance(part, Attention) else part.down
                last.weight.data.mul_((2 * depth) ** kind.branch)

    return GPT(
        vocab,
        config.context,
        config.width,
        depth,
        heads=config.heads,
        generator=generator("decoder", seed),
        norm={"attention": RMSNorm, "feed_forward": RMSNorm, "final": scaled(RMSNorm, depth**kind.final)},
        placement=placement if kind.alpha is None else placement(alpha=kind.alpha),
        act=nn.SiLU,
        gated=True,
        after_embedding=RMSNorm if kind.embedding_norm else identity,
        init=init,
        std=config.std * math.sqrt(768 / config.width),
        embedding_std=config.embedding_std,
    ).to(device)


# --- what is measured of a model -------------------------------------------------------------------------------------


def stream(model: GPT, x_BT: Tensor) -> list[Tensor]:
    """The residual stream (B, T, D) after the embedding and after each block: L + 1 tensors."""
    states = [model.after_embedding(model.embedding(x_BT))]
    for block in model.blocks:
        states.append(block(states[-1]))
    return states


def late(values: list[float]) -> float:
    """The mean over the last third of the blocks, without the last block."""
    chosen = values[-max(2, len(values) // 3) : -1]
    return sum(chosen) / len(chosen)


def line(x: Tensor, y: Tensor) -> tuple[float, float]:
    """Slope and R^2 of the least-squares line; R^2 of a constant y is 0."""
    x, y = x - x.mean(), y - y.mean()
    return float(x @ y / (x @ x)), float((x @ y).square() / (x @ x * (y @ y)).clamp_min(1e-300))


def propagation(model: GPT, x_BT: Tensor, y_BT: Tensor) -> Measures:
    """Per block: mean square of the stream after it, the angle by which it turns the stream, its gradient's norm.

    The angle is arccos(cosine) / pi, the mean over tokens; the gradient is that of the mean next-token cross-entropy,
    its norm taken over the weight matrices of the block.
    """
    model.zero_grad()
    states = stream(model, x_BT)
    cross_entropy(model.head(model.norm(states[-1])), y_BT).backward()
    with torch.no_grad():
        squares = torch.stack([s.square().mean() for s in states]).double().cpu()
        cosines = [F.cosine_similarity(a, b, dim=-1).clamp(-1, 1) for a, b in zip(states, states[1:], strict=False)]
        angles = torch.stack([(c.arccos() / math.pi).mean() for c in cosines]).tolist()
        sizes = [[torch.linalg.vector_norm(p.grad) for p in b.parameters() if p.dim() == 2] for b in model.blocks]
        gradient = torch.stack([torch.linalg.vector_norm(torch.stack(s)) for s in sizes]).double().cpu()
    model.zero_grad()
    block, after = torch.arange(1, len(squares), dtype=torch.float64), squares[1:]
    slope, linear_r2 = line(block, after)
    return {
        "block": block.tolist(),
        "mean_square": after.tolist(),
        "gradient_norm": gradient.tolist(),
        "angular_distance": angles,
        "input_mean_square": float(squares[0]),
        "last_mean_square": float(after[-1]),
        "growth": float(after[-1] / after[0]),
        "slope_per_sublayer": slope / 2,
        "linear_r2": linear_r2,
        "log_r2": line(block.log(), after)[1],
        "gradient_cv": float(gradient.std(correction=0) / gradient.mean()),
        "gradient_last_over_first": float(gradient[-1] / gradient[0]),
        "late_distance": late(angles),
    }


@torch.no_grad()
def drop_increase(model: GPT, x_BT: Tensor, y_BT: Tensor) -> list[float]:
    """How much the loss rises (nats) when each block by itself is deleted."""
    states, losses = stream(model, x_BT), []
    for after, x in enumerate(states, 1):  # block `after` is left out; the last state is that of the whole model
        for block in model.blocks[after:]:
            x = block(x)
        losses.append(cross_entropy(model.head(model.norm(x)), y_BT))
    *without, whole = torch.stack(losses).tolist()
    return [loss - whole for loss in without]


def spikes(norms: list[float], window: int = 20) -> int:
    """Steps whose gradient norm is above 3 times the median of the `window` steps before."""
    return sum(norms[i] > 3 * median(norms[i - window : i]) for i in range(window, len(norms)))


# --- the experiments -------------------------------------------------------------------------------------------------


def at_initialization(arm: str, seed: int, config: AtInitialization, device: torch.device) -> Measures:
    """Signal and gradient in an untrained model that reads random tokens."""
    model = build(arm, seed, config, config.vocab, device)
    shape, source = (config.batch, config.context + 1), generator("decoder tokens", seed)
    tokens = torch.randint(config.vocab, shape, generator=source).to(device)
    return propagation(model, tokens[:, :-1], tokens[:, 1:])
