"""What papers/mix_ln measures by itself: which blocks are Post-LN, and derivatives of a sub-layer.

Gradient norms at the start of training are in `repro.experiments.decoder`, the models in `language_model`.
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import jacrev

from repro.experiments.decoder import reversed_mix
from repro.models.gpt import FeedForward
from repro.models.slots import Bare, Post, Pre
from repro.papers.layernorm import LayerNorm
from repro.papers.mix_ln.method import MixLN
from repro.tasks import Worst
from repro.train import generator


@dataclass(frozen=True)
class Definition:
    width: int
    heads: int
    depth: int
    tokens: int
    alpha: float


class SelfAttention(nn.Module):
    """Self-attention of one argument, with the parameters of a torch.nn.TransformerEncoderLayer."""

    def __init__(self, layer: nn.TransformerEncoderLayer):
        super().__init__()
        self.inner = layer.self_attn

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x, x, x, need_weights=False)[0]


class PerSublayer:
    """alpha read as a share of all sub-layers, called in their order: the last Post-LN block can be half Pre-LN."""

    def __init__(self, alpha: float):
        self.alpha, self.calls = alpha, 0

    def __call__(self, sublayer: nn.Module, norm, dim: int, index: int, depth: int) -> nn.Module:
        self.calls += 1
        return (Post if self.calls <= int(self.alpha * 2 * depth) else Pre)(sublayer, norm, dim, index, depth)


PLACEMENTS = {
    "mix": MixLN,
    "reversed_mix": lambda alpha: reversed_mix,
    "per_sublayer": PerSublayer,
    "pre": lambda alpha: Pre,
}


def definition(arm: str, seed: int, config: Definition, device: torch.device) -> dict[str, float]:
    """Relative error of outputs and gradients against torch's encoder whose first int(alpha L) layers are Post-LN."""
    source, depth = generator("mix_ln definition", seed), config.depth
    layers = [
        nn.utils.skip_init(
            nn.TransformerEncoderLayer,
            config.width,
            config.heads,
            4 * config.width,
            dropout=0.0,
            batch_first=True,
            norm_first=i >= int(config.alpha * depth),
            device=device,
            dtype=torch.float64,
        )
        for i in range(depth)
    ]
    parameters = [p for layer in layers for p in layer.parameters()]
    for p in parameters:
        noise = torch.randn(p.shape, generator=source, dtype=torch.float64)
        p.data.copy_(noise / config.width**0.5 if p.dim() == 2 else 1 + 0.3 * noise)
    place, blocks = PLACEMENTS[arm](config.alpha), []
    for i, layer in enumerate(layers):
        feed_forward = nn.Sequential(layer.linear1, nn.ReLU(), layer.linear2)
        blocks.append(place(SelfAttention(layer), lambda n, layer=layer: layer.norm1, config.width, i, depth))
        blocks.append(place(feed_forward, lambda n, layer=layer: layer.norm2, config.width, i, depth))
    x, direction = torch.randn(2, 2, config.tokens, config.width, generator=source, dtype=torch.float64).to(device)
    outcomes, worst = [], Worst()
    for stack in (nn.Sequential(*blocks), nn.Sequential(*layers)):
        y = stack(x)
        gradients = torch.autograd.grad((y * direction).sum(), parameters)
        outcomes.append((y.detach(), torch.cat([g.flatten() for g in gradients])))
    for got, want in zip(*outcomes, strict=True):
        worst.relative("stack_error", got, want)
    return worst


@dataclass(frozen=True)
class Derivative:
    width: int
    draws: int
    stretch: tuple[int, ...]  # the factors c


def derivative(arm: str, seed: int, config: Derivative, device: torch.device) -> dict[str, float]:
    """J(c x), J the Jacobian of a sub-layer at a token x: does J - I, or J itself, shrink by exactly 1 / c?

    LayerNorm has no eps and the feed-forward layer is ReLU without biases, so that f(c x) = c f(x).
    """
    source, n = generator("mix_ln derivative", seed), config.width
    norm = partial(LayerNorm, eps=0.0, device=device, dtype=torch.float64)
    kind, identity = {"pre": Pre, "post": Post, "none": Bare}[arm], torch.eye(n, dtype=torch.float64, device=device)
    departures, shrinkages = [], []
    for _ in range(config.draws):
        f = FeedForward(n, 4 * n, generator=source, act=nn.ReLU, gated=False, bias=False, std=n**-0.5)
        layer = kind(f.to(device, torch.float64), norm, n, 0, 1)
        x = torch.randn(n, generator=source, dtype=torch.float64).to(device)
        at_x = jacrev(layer)(x).detach()
        for c in config.stretch:
            at_cx = jacrev(layer)(c * x).detach()
            departures.append(c * (at_cx - identity).norm() / (at_x - identity).norm() - 1)
            shrinkages.append(c * at_cx.norm() / at_x.norm() - 1)
    return {
        "departure_error": float(torch.stack(departures).abs().max()),
        "shrinkage_error": float(torch.stack(shrinkages).abs().max()),
    }
