"""What papers/dyt measures: the form of the layer, a ViT with and without squashing, the time of a LLaMA-7B.

The scatter of LayerNorm's inputs and outputs and the speed of single layers are `repro.experiments.pointwise`.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from repro.models.gpt import GPT
from repro.models.slots import identity
from repro.models.vit import scaled_to_width, vit
from repro.papers.dyt.method import DyT
from repro.tasks import Measures, Pictures, Timed, Worst, classify
from repro.timing import compare
from repro.train import cosine, cross_entropy, generator


class Unsquashed(DyT):
    """gamma * alpha * x + beta, the identity in place of tanh (v2, Section 6.1)."""

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (self.alpha * x) + self.bias


class Stuck(DyT):
    """DyT whose alpha stays at 0.01, where tanh is a straight line."""

    def reset_parameters(self) -> None:
        super().reset_parameters()
        nn.init.constant_(self.alpha.requires_grad_(False), 0.01)


LAYERS: dict[str, Callable[[int], nn.Module]] = {
    "dyt": DyT,
    "dyt_one": partial(DyT, alpha_init=1.0),
    "stuck": Stuck,
    "layernorm": partial(nn.LayerNorm, eps=1e-6),
    "rmsnorm": partial(nn.RMSNorm, eps=1e-6),
    "identity": Unsquashed,
}


@dataclass(frozen=True)
class Form:
    tokens: int
    channels: int
    draws: int


def form(arm: str, seed: int, config: Form, device: torch.device) -> dict[str, float]:
    """Random layers and inputs in float64: the bound, the slope at small inputs, and what one element
    does to others.
    """
    source, worst = generator("dyt form", seed), Worst()
    for _ in range(config.draws):
        layer = LAYERS[arm](config.channels).to(device, torch.float64).requires_grad_(False)
        x = torch.randn(config.tokens, config.channels, generator=source, dtype=torch.float64).to(device)
        alpha, gain = (
            0.5 + torch.rand(n, generator=source, dtype=torch.float64).to(device) for n in (1, config.channels)
        )
        layer.weight.copy_(gain)
        layer.bias.copy_(torch.randn(config.channels, generator=source, dtype=torch.float64))
        if arm != "layernorm":
            layer.alpha.copy_(alpha)
        worst.absolute("bound_error", ((layer(1e3 * x) - layer.bias) / gain).abs().max(), 1.0)
        line = gain * alpha * (1e-5 * x)
        worst.relative("slope_error", layer(1e-5 * x) - layer.bias, line)
        other = x.clone()
        other[0, 0] += 1
        worst.absolute("crosstalk", layer(other).flatten()[1:], layer(x).flatten()[1:])
    return worst


@dataclass(frozen=True, kw_only=True)
class Squashing(Pictures):
    patch: int
    dim: int
    depth: int
    lr: float = 0.0
    usual: float = 0.0  # the learning rate at which LayerNorm did best on the tuning seeds
    high: float = 0.0  # a larger one, at which it still learns
    rate: str = "lr"  # which of them: lr, usual or high
    scaled: bool = False  # initial weights scaled to the width
    smoothing: float = 0.1


def decayed(model: nn.Module) -> list[dict]:
    """Weight decay for matrices alone, as in the authors' vision code: none for gains, biases and alpha."""
    flat = [p for p in model.parameters() if p.ndim < 2]
    return [{"params": [p for p in model.parameters() if p.ndim >= 2]}, {"params": flat, "weight_decay": 0.0}]


def squashing(arm: str, seed: int, config: Squashing, device: torch.device) -> Measures:
    """A ViT with the recipe of the paper (Appendix A) without its augmentation: test accuracy at the end."""
    model = vit(
        config.side,
        config.patch,
        config.dim,
        config.depth,
        heads=config.dim // 16,
        classes=10,
        channels=config.channels,
        norm=LAYERS[arm],
        init=scaled_to_width if config.scaled else None,
        generator=generator("dyt squashing", seed),
    )
    return classify(
        model,
        "dyt squashing batches",
        seed,
        config,
        device,
        lr=getattr(config, config.rate),
        weight_decay=0.05,
        groups=decayed,
        schedule=cosine(0.05),
        loss=partial(F.cross_entropy, label_smoothing=config.smoothing),
    )


class ComposedRMSNorm(nn.Module):
    """RMSNorm as transformers' LLaMA has it: elementary operators, statistics in float32."""

    def __init__(self, n: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(n))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
        return self.weight * wide.to(x.dtype)


LLAMA: dict[str, Callable[[int], nn.Module]] = {
    "rmsnorm": ComposedRMSNorm,
    "dyt": partial(DyT, bias=False),
    "identity": identity,
    "rmsnorm_again": ComposedRMSNorm,
    "rmsnorm_compiled": ComposedRMSNorm,
    "dyt_compiled": partial(DyT, bias=False),
    "rmsnorm_fused": partial(nn.RMSNorm, eps=1e-6),
}


class Switch(nn.Module):
    """The norms of all arms at one place of the model, of which `Switch.arm` works: 7B weights fit the memory once."""

    arm = ""

    def __init__(self, n: int, arms: list[str]):
        super().__init__()
        self.norms = nn.ModuleDict({arm: LLAMA[arm](n) for arm in arms})

    def forward(self, x: Tensor) -> Tensor:
        return self.norms[Switch.arm](x)


@dataclass(frozen=True, kw_only=True)
class Latency(Timed):
    width: int
    depth: int
    heads: int
    hidden: int
    vocab: int
    length: int
    dtype: str
    mode: str  # inference or training


def latency_group(arms: list[str], seed: int, config: Latency, device: torch.device) -> dict[str, dict[str, float]]:
    """Passes of one sequence through LLaMA with random weights, loss included; training adds the backward pass."""
    source = generator("dyt latency", seed)
    model = GPT(
        config.vocab,
        config.length,
        config.width,
        1,
        heads=config.heads,
        hidden=config.hidden,
        gated=True,
        act=nn.SiLU,
        norm=partial(Switch, arms=arms),
        generator=source,
    ).to(device, getattr(torch, config.dtype))
    # Time does not depend on the values: drawing 7 billion of them on the CPU would take longer than the measurement.
    model.blocks.extend(copy.deepcopy(model.blocks[0]) for _ in range(config.depth - 1))
    for name, layer in model.named_modules():
        if name.endswith("_compiled"):
            layer.compile()  # the layer alone: of the whole model the authors found it slower (v2, Appendix C)
    tokens, target = torch.randint(config.vocab, (2, 1, config.length), generator=source).to(device)

    def run(arm: str) -> None:
        Switch.arm = arm
        with torch.set_grad_enabled(config.mode == "training"):
            loss = cross_entropy(model(tokens), target)
        if config.mode == "training":
            loss.backward()

    timings = compare(
        {arm: partial(run, arm) for arm in arms},
        reference="rmsnorm",
        device=device,
        blocks=config.blocks,
        calls=config.calls,
        seed=seed,
        aa_limit=config.aa_limit,
        memory=False,
    )
    seconds = {arm: timing.percentile(50) for arm, timing in timings.items()}
    return {
        arm: {"model_seconds": seconds[arm], "layer_seconds": seconds[arm] - seconds["identity"], **timing.measures()}
        for arm, timing in timings.items()
    }


compiled_group = latency_group
