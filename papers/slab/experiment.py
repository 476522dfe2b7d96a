"""What papers/slab measures: RepBN folded away, the cost of SLA, a ViT that loses its LayerNorm, and its latency."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from repro.models.convnet import seeded
from repro.models.vit import scaled_to_width, vit, without_norms
from repro.papers.slab.attention import SLA
from repro.papers.slab.method import PRepBN, RepBN, fuse
from repro.tasks import Measures, Pictures, Timed, Worst, classify, relative, timed
from repro.train import cosine, generator

# --- folding ---------------------------------------------------------------------------------------------------------


def folded(arm: str, norm: RepBN, linear: nn.Linear | None = None) -> nn.Module:
    """`fuse`, or a fold that people get wrong."""
    norm = copy.deepcopy(norm)
    if arm == "no_eps":  # sigma is the root of the running variance alone
        norm.bn.eps = 0.0
    if arm == "eta_shift":  # beta + eta in place of beta + eta mu
        norm.bn.bias += norm.eta * (1 - norm.bn.running_mean)
    return fuse(norm, linear)


@dataclass(frozen=True, kw_only=True)
class Folding:
    widths: tuple[int, ...]
    draws: int
    rows: int
    depth: int  # of a ViT as wide as the last of the widths
    dtype: str


@torch.no_grad()
def folding(arm: str, seed: int, config: Folding, device: torch.device) -> dict[str, float]:
    """RepBN in evaluation against its folds, as shares of the largest output: alone, before a linear
    layer, in a ViT.
    """
    source, dtype = generator("slab folding", seed), getattr(torch, config.dtype)
    worst = Worst()

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=source, dtype=torch.float64).to(device, dtype)

    def trained(norm: RepBN) -> RepBN:
        """Statistics and parameters as training might leave them: deviations from 0.1 to 10, means of their size."""
        n, norm = norm.bn.num_features, norm.to(device, dtype).eval()
        norm.bn.running_var.copy_(100 ** draw(n).clamp(-1, 1))
        norm.bn.running_mean.copy_(norm.bn.running_var.sqrt() * draw(n))
        for t in (norm.bn.weight, norm.bn.bias, norm.eta):
            t.copy_(draw(len(t)))
        return norm

    for n in config.widths * config.draws:
        norm, linear = trained(RepBN(n)), seeded(partial(nn.Linear, n, n), source).to(device, dtype)
        x = norm.bn.running_mean + norm.bn.running_var.sqrt() * draw(config.rows, n)
        worst.relative("norm_error", folded(arm, norm)(x), norm(x))
        worst.relative("linear_error", folded(arm, norm, linear)(x), linear(norm(x)))
    model = (
        vit(28, 7, n, config.depth, heads=2, classes=10, channels=1, norm=RepBN, generator=source)
        .to(device, dtype)
        .eval()
    )
    for norm in [module for module in model.modules() if isinstance(module, RepBN)]:
        trained(norm)
    images = draw(config.rows, 1, 28, 28)
    want = model(images)
    worst.relative("network_error", without_norms(model, partial(folded, arm))(images), want)
    return worst


# --- attention -------------------------------------------------------------------------------------------------------


class Quadratic(SLA):
    """The same attention, its weights (N, N) written out."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        weights = q.relu() @ k.relu().transpose(-2, -1)
        return weights @ v / (weights.sum(-1, keepdim=True) + self.eps)


class Softmax(SLA):
    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(-1) @ v


@dataclass(frozen=True, kw_only=True)
class Attention:
    dim: int
    heads: int
    tokens: int


@torch.no_grad()
def attention(arm: str, seed: int, config: Attention, device: torch.device) -> dict[str, float]:
    """Multiplications and additions of the whole layer for one image, and its output against the
    weights written out.
    """
    kind, source = {"sla": SLA, "quadratic": Quadratic, "softmax": Softmax}[arm], generator("slab attention", seed)
    layer = seeded(partial(kind, config.dim, config.heads, (math.isqrt(config.tokens),) * 2), source).to(
        device, torch.float64
    )
    x = torch.randn(1, config.tokens, config.dim, generator=source, dtype=torch.float64).to(device)
    with FlopCounterMode(display=False) as counter:
        y = layer(x)
    layer.attend = partial(Quadratic.attend, layer)
    want = layer(x)
    return {"operations": counter.get_total_flops(), "order_error": relative(y, want)}


@dataclass(frozen=True, kw_only=True)
class AttentionTime(Attention, Timed):
    batch: int


def attending(arm: str, seed: int, config: AttentionTime, device: torch.device) -> Callable[[], Tensor]:
    """A forward pass of one attention layer without gradients."""
    kind, source = {"sla": SLA, "quadratic": Quadratic, "softmax": Softmax}[arm], generator("slab attention", seed)
    layer = seeded(partial(kind, config.dim, config.heads, (math.isqrt(config.tokens),) * 2), source).to(device)
    x = torch.randn(config.batch, config.tokens, config.dim, generator=source).to(device)
    return torch.no_grad()(partial(layer, x))


attention_time_group = timed(attending, reference="softmax", memory=False)


# --- training --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Training(Pictures):
    patch: int
    dim: int
    depth: int
    decay: float  # lambda reaches 0 at this share of the steps
    scaled: bool = False  # initial weights scaled to the width


def plain_batchnorm(n: int) -> RepBN:
    """BatchNorm of tokens: eta is 0 and stays."""
    norm = RepBN(n)
    nn.init.zeros_(norm.eta).requires_grad_(False)
    return norm


def training(arm: str, seed: int, config: Training, device: torch.device) -> Measures:
    """A ViT on pictures; test accuracy at the end, of the network with its norms merged where they can be."""
    prepbn, stuck = partial(PRepBN, total_steps=round(config.decay * config.steps)), partial(PRepBN, total_steps=10**12)
    norms = {"layernorm": nn.LayerNorm, "batchnorm": plain_batchnorm, "repbn": RepBN, "prepbn": prepbn, "stuck": stuck}
    model = vit(
        config.side,
        config.patch,
        config.dim,
        config.depth,
        heads=config.dim // 16,
        classes=10,
        channels=config.channels,
        norm=norms[arm],
        init=scaled_to_width if config.scaled else None,
        generator=generator("slab training", seed),
    )
    merged = {} if arm in ("layernorm", "stuck") else {"finish": lambda model: without_norms(model, fuse)}
    how = {"weight_decay": 0.05, "schedule": cosine(0.05), **merged}
    return classify(model, "slab training batches", seed, config, device, **how)


# --- latency ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Latency(Timed):
    patch: int
    dim: int
    depth: int
    batch: int


def forward_of(arm: str, seed: int, config: Latency, device: torch.device) -> Callable[[], Tensor]:
    """A forward pass of a ViT without gradients: with torch's LayerNorm, with RepBN as it is, with RepBN merged."""
    source, norm = generator("slab latency", seed), nn.LayerNorm if arm == "layernorm" else RepBN
    x = torch.randn(config.batch, 1, 28, 28, generator=source).to(device)
    shape = {"heads": config.dim // 64, "classes": 10, "channels": 1}
    model = vit(28, config.patch, config.dim, config.depth, norm=norm, generator=source, **shape).to(device).eval()
    return torch.no_grad()(partial(without_norms(model, fuse) if arm == "merged" else model, x))


latency_group = timed(forward_of, reference="layernorm", memory=False)
