"""What papers/pre_rmsnorm measures: its two layers, converted Transformers, training them, and the time of a pass."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from repro.data import shakespeare
from repro.models.gpt import GPT
from repro.models.vit import vit
from repro.papers.layernorm import LayerNorm, layer_norm
from repro.papers.pre_rmsnorm.method import CRMSNorm, RMSNorm, ZeroMeanLinear, anatomy, to_pre_crmsnorm, to_pre_rmsnorm
from repro.timing import compare
from repro.train import Source, fit, generator, seed_of

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


@dataclass(frozen=True)
class Layers:
    widths: tuple[int, ...]
    draws: int


def layers(arm: str, seed: int, config: Layers, device: torch.device) -> dict[str, float]:
    """ZeroMeanLinear against a linear layer less its mean, CRMSNorm against LayerNorm of (z, -sum z): relative errors of
    outputs and gradients, case by case, in float64."""
    source, found = generator("pre_rmsnorm layers", seed), []
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
            found.append(((got - want).abs().amax(1) / want.abs().amax(1)).max().detach())  # row by row
    return {"layer_error": float(torch.stack(found).max())}


# --- whole models ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
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
        want, got = model(x), CONVERSIONS[arm](model)(x)
    return {"logit_error": float((got - want).abs().max() / want.abs().max())}


@dataclass(frozen=True)
class Training(Model):
    optimizer: str
    steps: int
    adamw: float  # learning rates
    momentum: float
    weight_decay: float


def training(arm: str, seed: int, config: Training, device: torch.device) -> dict[str, float | list[float]]:
    """A Pre-LN decoder and the arm's, from the same start and with the same batches, in float64: how far they part."""
    corpus = shakespeare.load(device)
    model, _ = build(config, generator("pre_rmsnorm training", seed), partial(nn.LayerNorm, elementwise_affine=False))
    pair = [model.to(device, torch.float64), CONVERSIONS[arm](model)]
    losses = [
        fit(
            each,
            corpus.train,
            context=config.length,
            steps=config.steps,
            batch=config.batch,
            seed=seed_of("pre_rmsnorm batches", seed),
            lr=getattr(config, config.optimizer),
            optimizer=config.optimizer,
            weight_decay=config.weight_decay,
        ).train_loss
        for each in pair
    ]
    x, _ = Source(corpus.valid, config.length, device).take(torch.arange(config.batch, device=device) * config.length)
    with torch.no_grad():
        want, got = (each(x) for each in pair)
    return {
        "logit_gap": float((got - want).abs().max() / want.abs().max()),
        "loss": losses[1],
        "loss_gap": [abs(a - b) for a, b in zip(*losses, strict=True)],
    }


# --- time ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Speed(Model):
    mode: str  # inference, or training: forward and backward
    dtype: str
    kernels: bool  # LayerNorm as torch's kernel, not of elementary operators as on a CPU torch's RMSNorm is
    blocks: int
    calls: int
    aa_limit: float


def passes(arm: str, seed: int, config: Speed, device: torch.device) -> Callable[[], None]:
    """One pass of an arm.  In training, Pre-RMSNorm recentres its parameters each time."""
    training, dtype = config.mode == "training", getattr(torch, config.dtype)
    norm = nn.LayerNorm if config.kernels or arm == "kernel_ln" else LayerNorm
    model, x = build(config, generator("pre_rmsnorm speed", seed), partial(norm, elementwise_affine=False))
    if arm == "pre_crmsnorm":
        model = to_pre_crmsnorm(model)
    if arm == "pre_rmsnorm":
        model = to_pre_rmsnorm(model, online=training)
    model, x = model.to(device, dtype).train(training), x.to(device, dtype if x.is_floating_point() else None)

    def call() -> None:
        with torch.set_grad_enabled(training):
            out = model(x)
        if training:
            model.zero_grad()
            out.float().square().mean().backward()

    return call


def speed_group(arms: list[str], seed: int, config: Speed, device: torch.device) -> dict[str, dict[str, float]]:
    calls = {arm: passes(arm, seed, config, device) for arm in arms}
    timings = compare(
        calls,
        reference="pre_ln",
        device=device,
        blocks=config.blocks,
        calls=config.calls,
        seed=seed,
        aa_limit=config.aa_limit,
        memory=False,
    )
    return {arm: {"seconds": timing.percentile(50), **timing.measures()} for arm, timing in timings.items()}
