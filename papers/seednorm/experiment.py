"""What papers/seednorm measures: its start, what it keeps of the input's norm, its gradients, and a decoder."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from repro import tasks
from repro.experiments.decoder import LanguageModel
from repro.models.gpt import GPT
from repro.papers.dyt import DyT
from repro.papers.seednorm.method import SeeDNorm
from repro.tasks import relative
from repro.train import cosine, draws, generator

Layer = Callable[..., nn.Module]  # called as layer(width, ...)


def altered(dynamic: Callable[[SeeDNorm, Tensor, Tensor], Tensor]) -> Layer:
    """SeeDNorm with dynamic(layer, x, x * beta) for tanh(x . beta); x: (..., heads, D / heads)."""

    class Altered(SeeDNorm):
        def rescale(self, x: Tensor) -> Tensor:
            return dynamic(self, x, x * self.cut(self.beta))

    return Altered


def dot(product: Tensor) -> Tensor:
    return product.sum(-1, keepdim=True)


LAYERS: dict[str, Layer] = {
    "seednorm": SeeDNorm,
    "rmsnorm": altered(lambda layer, x, product: 0 * dot(product)),
    "dyt": lambda width, eps, **options: DyT(width, bias=False, **options),
    "sigmoid": altered(lambda layer, x, product: dot(product).sigmoid()),
    "unbounded": altered(lambda layer, x, product: dot(product)),
    "normalised_dot": altered(
        lambda layer, x, product: (dot(product) / x.square().mean((-2, -1), keepdim=True).sqrt()).tanh()
    ),
    "mean_dot": altered(lambda layer, x, product: (dot(product) / layer.beta.numel()).tanh()),
    "elementwise": altered(lambda layer, x, product: product.tanh()),
    "one_head": lambda width, heads, **options: SeeDNorm(width, **options),
    "beta_one": altered(lambda layer, x, product: (dot(x) + dot(product)).tanh()),
}


def learned(arm: str, width: int, draw: Callable[..., Tensor], device: torch.device) -> nn.Module:
    """A layer as training may leave it: gains in [0.5, 1.5], and beta such that x . beta is about N(0, 1)."""
    layer = LAYERS[arm](width, eps=0.0, device=device, dtype=torch.float64).requires_grad_(False)
    layer.weight.copy_(1 + 0.5 * draw(width).tanh())
    if isinstance(layer, SeeDNorm):
        layer.alpha.copy_(1 + 0.5 * draw(width).tanh())
        layer.beta.copy_(draw(width) / width**0.5)
    return layer


@dataclass(frozen=True, kw_only=True)
class AtInit:
    heads: int
    widths: tuple[int, ...]
    tokens: int


def at_init(arm: str, seed: int, config: AtInit, device: torch.device) -> dict[str, float]:
    """A fresh layer against torch's RMSNorm, on tokens of very different norms; which parameters have a gradient."""
    draw, errors, alpha, beta = draws(device, "seednorm at init", seed), [], [], []
    for width in config.widths:
        layer = LAYERS[arm](width, heads=config.heads, device=device, dtype=torch.float64)
        x, up = (draw(config.tokens, width) * 10 ** draw(config.tokens, 1)).requires_grad_(), draw(config.tokens, width)
        gain = torch.ones_like(layer.weight).requires_grad_()
        y, wanted = layer(x), F.rms_norm(x, (width,), gain, layer.eps)
        *slopes, dalpha, dbeta = torch.autograd.grad(y, (x, layer.weight, layer.alpha, layer.beta), up)
        errors += map(relative, (y, *slopes), (wanted, *torch.autograd.grad(wanted, (x, gain), up)))
        alpha.append(float(dalpha.norm() / slopes[1].norm()))
        beta.append(float(dbeta.norm() / slopes[1].norm()))
    return {"init_error": max(errors), "alpha_gradient": max(alpha), "beta_gradient": min(beta)}


@dataclass(frozen=True, kw_only=True)
class NormInformation:
    width: int
    tokens: int
    scales: tuple[float, ...]


def norm_information(
    arm: str, seed: int, config: NormInformation, device: torch.device
) -> dict[str, float | list[float]]:
    """What y(k x) says of k: before training, and after; a change is that of the median token, relative to its y."""
    draw = draws(device, "seednorm norm information", seed)
    fresh = LAYERS[arm](config.width, eps=0.0, device=device, dtype=torch.float64).requires_grad_(False)
    layer, x = learned(arm, config.width, draw, device), draw(config.tokens, config.width)
    normed, ys = F.rms_norm(x, (config.width,), None, 0.0), [layer(k * x) for k in config.scales]
    beyond = [float(((y - layer.weight * normed) / (layer.alpha * normed)).abs().max()) - 1 for y in ys]

    def change(y: Tensor, before: Tensor) -> float:
        return float(((y - before).norm(dim=-1) / before.norm(dim=-1)).median())

    return {
        "init_change": max(relative(fresh(k * x), fresh(x)) for k in config.scales),
        "kept": change(layer(2 * x), layer(x)),
        "late_change": change(ys[-1], ys[-2]),
        "excess": max(0.0, *beyond),
        "scale": list(config.scales),
        "change": [change(y, ys[0]) for y in ys],
    }


@dataclass(frozen=True, kw_only=True)
class InputGradient:
    width: int
    k: float
    tokens: int


def input_gradient(arm: str, seed: int, config: InputGradient, device: torch.device) -> dict[str, float]:
    """The gradient with respect to the input k x, of the median token and in mean square over tokens; logarithms.

    The size is bimodal over tokens, and its median jumps between the modes.  `log_change` is the median over tokens of
    each token's own change, log |gradient at k x| - log |gradient at x|.
    """
    draw = draws(device, "seednorm input gradient", seed)
    layer, x = learned(arm, config.width, draw, device), draw(config.tokens, config.width)
    up = draw(config.tokens, config.width)

    def sizes(k: float) -> Tensor:
        scaled = (k * x).requires_grad_()
        return torch.linalg.vector_norm(torch.autograd.grad(layer(scaled), scaled, up)[0], dim=-1)

    at_k, at_one = sizes(config.k), sizes(1.0)
    found = torch.stack([at_k.median(), at_k.square().mean().sqrt()]).clamp_min(1e-300).log().tolist()
    changes = at_k.clamp_min(1e-300).log() - at_one.clamp_min(1e-300).log()
    return dict(
        zip(("log_gradient", "log_mean_gradient", "log_change"), (*found, float(changes.median())), strict=True)
    )


@dataclass(frozen=True, kw_only=True)
class AlphaGradient:
    width: int
    heads: int
    tokens: int
    draws: int
    beta: float  # deviation of beta's entries, small enough for tanh to be straight


def alpha_gradient(arm: str, seed: int, config: AlphaGradient, device: torch.device) -> dict[str, float]:
    """Mean square of one token's gradient of alpha, for inputs, beta and upstream gradients drawn independently."""
    draw, found = draws(device, "seednorm alpha gradient", seed), 0.0
    for _ in range(config.draws):
        layer = LAYERS[arm](config.width, heads=config.heads, device=device, dtype=torch.float64)
        layer.beta.data = config.beta * draw(config.width)
        x, up = draw(config.tokens, config.width), draw(config.tokens, config.width)
        (gradient,) = torch.autograd.grad(layer(x), layer.alpha, up)
        found += float(gradient.square().mean()) / config.tokens
    return {"alpha_variance": found / config.draws}


NORMS: dict[str, Callable[[int], nn.Module]] = {
    "rmsnorm": partial(nn.RMSNorm, eps=1e-6),
    "seednorm": SeeDNorm,
    "normalised_dot": LAYERS["normalised_dot"],
    "alpha_ten": partial(SeeDNorm, alpha_init=10.0),
    "alpha_tenth": partial(SeeDNorm, alpha_init=0.1),
}


def decayed(model: nn.Module) -> list[dict]:
    """Weight decay for matrices, alpha and beta; none for gains (gamma is treated as the norm's that it replaces)."""
    parts = {True: [], False: []}
    for name, p in model.named_parameters():
        parts[p.ndim > 1 or name.endswith(("alpha", "beta"))].append(p)
    return [{"params": parts[True]}, {"params": parts[False], "weight_decay": 0.0}]


def language_model(arm: str, seed: int, config: LanguageModel, device: torch.device) -> tasks.Measures:
    """A pre-norm decoder on the bytes of a text; `longer` is RMSNorm trained for a quarter more steps."""
    if arm == "longer":
        return language_model("rmsnorm", seed, replace(config, steps=config.steps * 5 // 4), device)
    model = GPT(
        256,
        config.context,
        config.width,
        config.depth,
        heads=config.heads,
        gated=True,
        act=nn.SiLU,
        norm=NORMS[arm],
        generator=generator("seednorm language model", seed),
        std=config.std * (768 / config.width) ** 0.5,
        embedding_std=config.embedding_std,
    )
    return tasks.language_model(
        model,
        "seednorm batches",
        seed,
        config,
        device,
        groups=decayed,
        weight_decay=config.weight_decay,
        schedule=cosine(config.warmup, config.floor),
        clip=config.clip,
        optimizer_options={"betas": (0.9, 0.95)},
    )
