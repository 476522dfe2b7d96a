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

from repro.data import fashion_mnist
from repro.models.gpt import GPT
from repro.models.slots import identity
from repro.models.vit import vit
from repro.papers.dyt.method import DyT
from repro.timing import compare
from repro.train import cosine, cross_entropy, evaluate_classifier, fit, generator, seed_of


class Unsquashed(DyT):
    """gamma * alpha * x + beta, the identity in place of tanh (v2, Section 6.1)."""

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (self.alpha * x) + self.bias


LAYERS: dict[str, Callable[[int], nn.Module]] = {
    "dyt": DyT,
    "layernorm": partial(nn.LayerNorm, eps=1e-6),
    "identity": Unsquashed,
}


@dataclass(frozen=True)
class Form:
    tokens: int
    channels: int
    draws: int


def form(arm: str, seed: int, config: Form, device: torch.device) -> dict[str, float]:
    """Random layers and inputs in float64: the bound, the slope at small inputs, and what one element does to others."""
    source, found = generator("dyt form", seed), {"bound_error": [], "slope_error": [], "crosstalk": []}
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
        found["bound_error"].append(((layer(1e3 * x) - layer.bias) / gain).abs().max() - 1)
        line = gain * alpha * (1e-5 * x)
        found["slope_error"].append((layer(1e-5 * x) - layer.bias - line).abs().max() / line.abs().max())
        other = x.clone()
        other[0, 0] += 1
        found["crosstalk"].append((layer(other) - layer(x)).flatten()[1:].abs().max())
    return {name: float(torch.stack(values).abs().max()) for name, values in found.items()}


@dataclass(frozen=True)
class Squashing:
    patch: int
    dim: int
    depth: int
    examples: int
    test: int
    steps: int
    batch: int
    usual: float  # the learning rate at which LayerNorm did best on the tuning seeds
    high: float  # a larger one, at which it still learns
    amp: bool
    rate: str  # usual or high


def decayed(model: nn.Module) -> list[dict]:
    """Weight decay for matrices alone, as in the authors' vision code: none for gains, biases and alpha."""
    flat = [p for p in model.parameters() if p.ndim < 2]
    return [{"params": [p for p in model.parameters() if p.ndim >= 2]}, {"params": flat, "weight_decay": 0.0}]


def squashing(arm: str, seed: int, config: Squashing, device: torch.device) -> dict[str, float]:
    """A ViT on Fashion-MNIST with the recipe of the paper (Appendix A) without its augmentation: accuracy at the end."""
    data = fashion_mnist.load(device)
    model = vit(
        28,
        config.patch,
        config.dim,
        config.depth,
        heads=config.dim // 16,
        classes=10,
        channels=1,
        norm=LAYERS[arm],
        generator=generator("dyt squashing", seed),
    ).to(device)
    train = data.normalised(data.train_x[: config.examples]), data.train_y[: config.examples]
    fit(
        model,
        train,
        steps=config.steps,
        batch=config.batch,
        lr=getattr(config, config.rate),
        seed=seed_of("dyt squashing batches", seed),
        optimizer="adamw",
        weight_decay=0.05,
        groups=decayed,
        schedule=cosine(0.05),
        loss=partial(F.cross_entropy, label_smoothing=0.1),
        amp=torch.bfloat16 if config.amp else None,
    )
    return {
        "accuracy": evaluate_classifier(model, data.normalised(data.test_x[: config.test]), data.test_y[: config.test])[
            "accuracy"
        ]
    }


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


@dataclass(frozen=True)
class Latency:
    width: int
    depth: int
    heads: int
    hidden: int
    vocab: int
    length: int
    dtype: str
    blocks: int
    calls: int
    aa_limit: float
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


def compiled_group(arms: list[str], seed: int, config: Latency, device: torch.device) -> dict[str, dict[str, float]]:
    """The same, other arms."""
    return latency_group(arms, seed, config, device)
