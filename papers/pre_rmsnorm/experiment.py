"""What papers/pre_rmsnorm measures: its two layers, converted Transformers, training them, and the time of a pass."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from repro import trivial
from repro.models.gpt import GPT
from repro.models.vit import vit
from repro.papers.layernorm import LayerNorm, layer_norm
from repro.papers.pre_rmsnorm.method import CRMSNorm, RMSNorm, ZeroMeanLinear, anatomy, to_pre_crmsnorm, to_pre_rmsnorm
from repro.tasks import Measures, Text, Timed, Worst, learning, relative, timed, trained
from repro.train import Source, generator

# --- the two layers --------------------------------------------------------------------------------------------------


class InputAxis(nn.Linear):
    """The matrix is recentred over its inputs, a known mistake."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight - self.weight.mean(1, keepdim=True), self.bias - self.bias.mean())


LAYERS = {
    "paper": (ZeroMeanLinear, CRMSNorm),
    "input_axis": (InputAxis, CRMSNorm),
    "not_decompressed": (ZeroMeanLinear, RMSNorm),
}


@dataclass(frozen=True, kw_only=True)
class Layers:
    widths: tuple[int, ...]
    draws: int


def layers(arm: str, seed: int, config: Layers, device: torch.device) -> dict[str, float]:
    """ZeroMeanLinear against a linear layer less its mean, CRMSNorm against LayerNorm of (z, -sum z): relative errors
    of outputs and gradients, case by case, in float64."""
    source, worst = generator("pre_rmsnorm layers", seed), Worst()
    for n in config.widths * config.draws:
        x, weight, other, upstream = torch.randn(4, n, n, generator=source, dtype=torch.float64).to(device)
        x = (x * 10 ** other[:, :1] + other[:, -1:]).requires_grad_()  # of many sizes and means
        linear, norm = (
            make(*size, device=device, dtype=x.dtype) for make, size in zip(LAYERS[arm], ((n, n), (n,)), strict=True)
        )
        linear.weight.data, linear.bias.data = weight, other[0]
        y, whole = x @ weight.T + other[0], torch.cat([x, -x.sum(-1, keepdim=True)], -1)
        for outputs in ((linear(x), y - y.mean(-1, keepdim=True)), (norm(x), layer_norm(whole, n + 1)[..., :-1])):
            got, want = (torch.cat([out, *torch.autograd.grad(out, x, upstream, retain_graph=True)]) for out in outputs)
            worst.record("layer_error", (got - want).abs().amax(1) / want.abs().amax(1))  # row by row
    return worst


# --- whole models ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Model:
    model: str  # gpt or vit
    width: int
    depth: int
    heads: int
    batch: int
    length: int
    image: int
    patch: int


def build(config: Model, source: torch.Generator, norm: Callable[[int], nn.Module]) -> tuple[nn.Module, Tensor]:
    """The Pre-LN model, and an input."""
    if config.model == "vit":
        model = vit(
            config.image,
            config.patch,
            config.width,
            config.depth,
            heads=config.heads,
            classes=100,
            class_token=True,
            norm=norm,
            generator=source,
        )
        return model, torch.randn(config.batch, 3, config.image, config.image, generator=source)
    model = GPT(
        256,
        config.length,
        config.width,
        config.depth,
        heads=config.heads,
        positions="learned",
        bias=True,
        norm=norm,
        generator=source,
    )
    return model, torch.randint(256, (config.batch, config.length), generator=source)


def reversed_features(model: nn.Module) -> nn.Module:
    """The same Pre-LN model with its features in reverse order: what rounding alone does."""
    written, norms, _ = anatomy(model := copy.deepcopy(model))
    parts = [*written, *((layer, "weight", 1) for readers in norms.values() for layer in readers)]
    parts += [(norm, name, 0) for norm in norms for name in ("weight", "bias") if getattr(norm, name) is not None]
    for owner, name, axis in parts:
        getattr(owner, name).data = getattr(owner, name).data.flip(axis)
    return model


def one_writer(model: nn.Module) -> nn.Module:
    """The last layer that writes the main branch is left as it was."""
    converted = to_pre_rmsnorm(model)
    anatomy(converted)[0][-1][0].load_state_dict(anatomy(model)[0][-1][0].state_dict())
    return converted


CONVERSIONS = {
    "pre_rmsnorm": to_pre_rmsnorm,
    "pre_crmsnorm": to_pre_crmsnorm,
    "online": partial(to_pre_rmsnorm, online=True),
    "reversed_features": reversed_features,
    "one_writer": one_writer,
}


def equivalence(arm: str, seed: int, config: Model, device: torch.device) -> dict[str, float]:
    """Random models in float64, gains and biases of the norms included: the largest change of a logit, relative."""
    source = generator("pre_rmsnorm equivalence", seed)
    model, x = build(config, source, nn.LayerNorm)
    for p in model.parameters():  # matrices N(0, 1 / fan_in), all else N(0, 1)
        p.data = (
            torch.randn(p.shape, generator=source, dtype=torch.float64)
            / (p[0].numel() if p.ndim in (2, 4) else 1) ** 0.5
        )
    model, x = model.to(device).eval(), x.to(device, torch.float64 if x.is_floating_point() else None)
    with torch.no_grad():
        return {"logit_error": relative(CONVERSIONS[arm](model)(x), model(x))}


@dataclass(frozen=True, kw_only=True)
class Training(Text, Model):
    """A decoder; `lr` is one of the two rates, by the optimizer."""

    optimizer: str
    adamw: float  # learning rates
    momentum: float
    weight_decay: float
    lr: float = 0.0
    context: int = 0
    windows: int = 0


def training(arm: str, seed: int, config: Training, device: torch.device) -> Measures:
    """A Pre-LN decoder and the arm's, from the same start and with the same batches, in float64: how far they part."""
    corpus = config.load(device)
    model, _ = build(config, generator("pre_rmsnorm training", seed), partial(nn.LayerNorm, elementwise_affine=False))
    pair = [model.to(device, torch.float64), CONVERSIONS[arm](model)]
    how = {"optimizer": config.optimizer, "lr": getattr(config, config.optimizer), "context": config.length}
    how |= {"weight_decay": config.weight_decay}
    runs = [trained(each, corpus.train, "pre_rmsnorm batches", seed, config, **how) for each in pair]
    losses = [run.train_loss for run in runs]
    x, _ = Source(corpus.valid, config.length, device).take(torch.arange(config.batch, device=device) * config.length)
    with torch.no_grad():
        want, got = (each(x) for each in pair)
    return {
        "logit_gap": relative(got, want),
        "loss": losses[1],
        "loss_gap": [abs(a - b) for a, b in zip(*losses, strict=True)],
        **learning(runs[1]),
        **trivial.text(corpus.train, corpus.valid, config.trivial),
    }


# --- time ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Speed(Timed, Model):
    mode: str  # inference, or training: forward and backward
    dtype: str
    kernels: bool  # LayerNorm as torch's kernel, not of elementary operators as on a CPU torch's RMSNorm is


def passes(arm: str, seed: int, config: Speed, device: torch.device) -> Callable[[], None]:
    """One pass of an arm.  In training, Pre-RMSNorm recentres its parameters each time.

    `..._compiled`: the same model under torch.compile, as in the authors' code, which compiles its norms.
    """
    training, dtype, kind = config.mode == "training", getattr(torch, config.dtype), arm.removesuffix("_compiled")
    norm = nn.LayerNorm if config.kernels or kind == "kernel_ln" else LayerNorm
    model, x = build(config, generator("pre_rmsnorm speed", seed), partial(norm, elementwise_affine=False))
    if kind == "pre_crmsnorm":
        model = to_pre_crmsnorm(model)
    if kind == "pre_rmsnorm":
        model = to_pre_rmsnorm(model, online=training)
    model, x = model.to(device, dtype).train(training), x.to(device, dtype if x.is_floating_point() else None)
    run = torch.compile(model) if kind != arm else model

    def call() -> None:
        with torch.set_grad_enabled(training):
            out = run(x)
        if training:
            model.zero_grad()
            out.float().square().mean().backward()

    return call


speed_group = timed(passes, reference="pre_ln", memory=False)
