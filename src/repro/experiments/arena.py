"""The arena: every drop-in method of the suite in the same model, on the same data, with the same budget.

An arm "norm:rmsnorm.RMSNorm" puts `repro.papers.rmsnorm.RMSNorm` into the slot `norm` of a track's model and leaves all
else as it is; "base" changes nothing; "norm:control.identity" and "norm:control.broken" are negative controls.  What a slot asks of a method:

    norm        name(n) -> Module over the last axis (n features); of a convnet over the channels of (B, C, H, W)
    act         name() -> element-wise Module
    placement   a class (sublayer, norm, dim, index, depth) -> Module, or a class whose instance is one
    init        name(model, generator) -> None
    weight      a subclass of nn.Conv2d
    optimizer   an Optimizer class (groups, lr=), or a class that wraps one (here AdamW)
"""

import copy
import inspect
from dataclasses import dataclass
from importlib import import_module

import torch
from torch import Tensor, nn

from repro.batched import fit_batched
from repro.data import fashion_mnist, fashion_mnist_m, shakespeare
from repro.errors import Diverged
from repro.models import vit as vision
from repro.models.convnet import cifar_resnet
from repro.models.gpt import GPT
from repro.models.mlp import MLP
from repro.models.slots import identity
from repro.timing import compare, peak_bytes
from repro.train import (
    cosine,
    cross_entropy,
    evaluate_classifier,
    evaluate_lm,
    fit,
    generator,
    make_optimizer,
    seed_of,
)

SLOTS = {
    "mlp": ("norm", "act", "init", "optimizer"),
    "convnet": ("norm", "act", "init", "weight", "optimizer"),
    "vit": ("norm", "act", "placement", "init", "optimizer"),
    "gpt": ("norm", "act", "placement", "init", "optimizer"),
}


class Broken(nn.Module):
    """A norm that centres and divides by ten instead of by the deviation: a negative control."""

    def __init__(self, n: int):
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        return (x - x.mean(-1, keepdim=True)) / 10


CONTROLS = {"identity": identity, "broken": Broken}


@dataclass(frozen=True)
class Track:
    """One model and its training; `lr`, `batch` and `depth` are levels, `lr` tuned for each arm."""

    depth: int
    width: int
    batch: int
    steps: int
    lr: float
    examples: int = 0  # training images; 0: all
    context: int = 0  # length of a text's windows
    heads: int = 4
    evaluations: int = 8  # points of the validation curve
    windows: int = 256  # held-out windows of a text
    amp: bool = False  # bfloat16 autocast


def slots_of(arm: str) -> dict[str, object]:
    """The keyword arguments of a model (and `optimizer` of the loop) that put an arm's method in place."""
    if arm == "base":
        return {}
    slot, _, place = arm.partition(":")
    module, _, name = place.partition(".")
    method = CONTROLS[name] if module == "control" else getattr(import_module(f"repro.papers.{module}"), name)
    if slot == "placement" and not issubclass(method, nn.Module):
        method = method()
    if slot == "optimizer":
        return {"optimizer": optimizer(method)}
    return {{"weight": "conv"}.get(slot, slot): method}


def optimizer(method: type):
    """`factory(groups, lr)` of an optimizer class, or of one that wraps the optimizer of the track."""
    if "lr" in inspect.signature(method).parameters:
        return lambda groups, lr: method(groups, lr=lr)
    return lambda groups, lr: method(make_optimizer("adamw", groups, lr))


def build(track: str, slots: dict, config: Track, source: torch.Generator) -> nn.Module:
    """The track's model: LayerNorm (BatchNorm in the convnet), ReLU or GELU, Pre-LN, unless a slot says otherwise."""
    slots = {k: v for k, v in slots.items() if k != "optimizer"}
    if track == "mlp":
        return MLP([196, *[config.width] * config.depth, 10], **{"norm": nn.LayerNorm, **slots}, generator=source)
    if track == "convnet":
        return cifar_resnet(config.depth, width=config.width, **slots, generator=source)
    if track == "vit":
        return vision.vit(32, 4, config.width, config.depth, heads=config.heads, classes=10, **slots, generator=source)
    return GPT(256, config.context, config.width, config.depth, heads=config.heads, **slots, generator=source)


def data_of(track: str, config: Track, device: torch.device) -> dict[str, tuple[Tensor, Tensor] | Tensor]:
    """Training and validation data of a track, in the form in which `fit` takes them."""
    if track == "gpt":
        corpus = shakespeare.load(device)
        return {"train": corpus.train, "valid": corpus.valid}
    images = (fashion_mnist if track == "mlp" else fashion_mnist_m).load(device)
    pick = slice(config.examples or None)

    def ready(x: Tensor) -> Tensor:
        x = images.normalised(x)
        return nn.functional.avg_pool2d(x, 2) if track == "mlp" else x

    return {
        "train": (ready(images.train_x[pick]), images.train_y[pick]),
        "valid": (ready(images.valid_x), images.valid_y),
    }


def _settings(track: str, config: Track, slots: dict, data: dict) -> dict:
    """The arguments of `fit` that all arms share."""

    def evaluate(model: nn.Module) -> dict[str, float]:
        if track == "gpt":
            return evaluate_lm(model, data["valid"], config.context, windows=config.windows)
        return evaluate_classifier(model, *data["valid"])

    return {
        "steps": config.steps,
        "batch": config.batch,
        "lr": config.lr,
        "schedule": cosine(0.1),
        "evaluate": evaluate,
        "eval_every": max(config.steps // config.evaluations, 1),
        "optimizer": slots.get("optimizer", "adamw"),
        "context": config.context or None,
        "amp": torch.bfloat16 if config.amp else None,
    }


def _measures(history) -> dict[str, float | list[float]] | Diverged:
    if isinstance(history, Diverged):
        return history
    last = history.final
    return {
        "valid_nats": last["loss"],
        "valid_error": last["error"],
        "curve": history.curves["loss"],
        "steps": history.eval_steps,
    }


def trained(track: str, arm: str, seeds: list[int], config: Track, device: torch.device) -> list[dict | Diverged]:
    """Train the track's model with the method of `arm`; all seeds in one pass where that is faster (small MLPs)."""
    data, slots = data_of(track, config, device), slots_of(arm)
    models = [build(track, slots, config, generator("arena", track, seed)).to(device) for seed in seeds]
    settings, orders = _settings(track, config, slots, data), [seed_of("arena batches", track, seed) for seed in seeds]
    if track == "mlp" and isinstance(settings["optimizer"], str):
        return [_measures(h) for h in fit_batched(models, data["train"], seeds=orders, **settings)]
    found = []
    for model, seed in zip(models, orders, strict=True):
        try:
            found.append(_measures(fit(model, data["train"], seed=seed, channels_last=track == "convnet", **settings)))
        except Diverged as error:
            found.append(error)
    return found


def mlp_batch(arm: str, seeds: list[int], config: Track, device: torch.device) -> list[dict | Diverged]:
    return trained("mlp", arm, seeds, config, device)


def _one(track: str, arm: str, seed: int, config: Track, device: torch.device) -> dict:
    (result,) = trained(track, arm, [seed], config, device)
    if isinstance(result, Diverged):
        raise result
    return result


def convnet(arm: str, seed: int, config: Track, device: torch.device) -> dict:
    return _one("convnet", arm, seed, config, device)


def vit(arm: str, seed: int, config: Track, device: torch.device) -> dict:
    return _one("vit", arm, seed, config, device)


def gpt(arm: str, seed: int, config: Track, device: torch.device) -> dict:
    return _one("gpt", arm, seed, config, device)


# --- the cost of a step ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cost(Track):
    track: str = "mlp"
    blocks: int = 10
    calls: int = 1
    aa_limit: float = 0.05


def inputs(config: Cost, source: torch.Generator, device: torch.device) -> tuple[Tensor, Tensor]:
    """A batch of the track's shapes, of random numbers."""
    if config.track == "gpt":
        return tuple(torch.randint(256, (2, config.batch, config.context), generator=source).to(device))
    shape = (196,) if config.track == "mlp" else (3, 32, 32)
    x = torch.randn(config.batch, *shape, generator=source)
    return x.to(device), torch.randint(10, (config.batch,), generator=source).to(device)


def step_of(arm: str, seed: int, config: Cost, device: torch.device):
    """One whole training step of an arm: forward, backward, update."""
    slots, source = slots_of(arm), generator("arena cost", config.track, seed)
    model = build(config.track, slots, config, source).to(device)
    x, y = inputs(config, source, device)
    update = make_optimizer(slots.get("optimizer", "adamw"), [{"params": list(model.parameters())}], 1e-4)

    def step() -> None:
        update.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=config.amp):
            loss = cross_entropy(model(x), y)
        loss.backward()
        update.step()

    return step


def cost_group(arms: list[str], seed: int, config: Cost, device: torch.device) -> dict[str, dict[str, float]]:
    """Seconds of a training step, all arms interleaved, and the most bytes alive during one beyond the weights."""
    steps = {arm: step_of(arm, seed, config, device) for arm in arms}
    timings = compare(
        steps,
        reference=arms[0],
        device=device,
        blocks=config.blocks,
        calls=config.calls,
        warmup=3,
        seed=seed,
        aa_limit=config.aa_limit,
    )
    return {
        arm: {"seconds": t.percentile(50), "peak_bytes": peak_bytes(steps[arm], device), "aa_gap": t.aa_gap}
        for arm, t in timings.items()
    }


# --- what fits -------------------------------------------------------------------------------------------------------


def misfit(track: str, arm: str) -> str | None:
    """Why the method of `arm` cannot take part in a track, tried on a tiny model; None where it can."""
    config = Cost(
        track=track, depth=8 if track == "convnet" else 2, width=8, batch=4, steps=1, lr=1e-4, context=6, heads=2
    )
    try:
        slots, source = slots_of(arm), generator("arena fit")
        model = build(track, slots, config, source)
        step_of(arm, 0, config, torch.device("cpu"))()
        if track != "gpt":
            return None
        x, _ = inputs(config, source, torch.device("cpu"))
        other, changed = copy.deepcopy(model), x.clone()  # with the running statistics that the first pass meets
        changed[:, -1] = (changed[:, -1] + 1) % 256
        gap = (other(changed) - model(x))[:, :-1].abs().max()
    except (TypeError, ValueError, RuntimeError, AttributeError) as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else 'no message'}"
    return "later tokens leak into earlier ones" if gap > 1e-6 else None
