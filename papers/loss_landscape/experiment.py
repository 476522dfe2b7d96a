"""What papers/loss_landscape measures: surfaces of plain and residual networks, and what rescaling does to curves."""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from repro import tasks, trivial
from repro.errors import Diverged
from repro.experiments.residual_nets import Nets
from repro.models.convnet import Basic, Plain, cifar_resnet
from repro.papers.loss_landscape import filter_normalized, loss_line, nonconvexity, random_direction
from repro.train import cosine, draws, evaluate_classifier, generator

# --- plain and residual networks (Figures 5 and 6, Table 1) -----------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Surfaces(Nets):
    """lines: directions through the minimum, of `points` points in [-1, 1], on the first `scored` training images;
    below: the loss up to which bends count.
    """

    lines: int
    points: int
    below: float = 10.0


def build(arm: str, config: Surfaces, source: torch.Generator) -> nn.Module:
    """A CIFAR network with or without shortcuts: plain_32, residual_8."""
    kind, _, depth = arm.partition("_")
    block = {"plain": Plain, "residual": Basic}[kind]
    return cifar_resnet(int(depth), width=config.width, channels=config.channels, block=block, generator=source)


def surfaces(arm: str, seed: int, config: Surfaces, device: torch.device) -> tasks.Measures:
    """Share of bends that go down along random lines, the mean curve, and the error on the test images."""
    model = build(arm, config, generator("loss_landscape", seed)).to(device)
    train, test = config.load(device)
    history = tasks.trained(
        model,
        train,
        "loss_landscape batches",
        seed,
        config,
        optimizer="momentum",
        weight_decay=config.weight_decay,
        schedule=cosine(config.warmup),
    )
    x, y = (t[: config.scored] for t in train)
    source, a = generator("loss_landscape lines", seed), torch.linspace(-1, 1, config.points)
    curves = torch.stack(
        [
            loss_line(model, lambda m: F.cross_entropy(m(x), y), random_direction(model, source), a)
            for _ in range(config.lines)
        ]
    )
    try:
        bends = [nonconvexity(curve, config.below) for curve in curves]
    except ValueError:  # in eval mode the loss is so high, or rises so steeply, that no surface can be seen
        raise Diverged(config.steps) from None
    return {
        "nonconvexity": sum(bends) / len(bends),
        "curve": curves.nan_to_num(nan=1e300, posinf=1e300).log1p().mean(0).tolist(),
        "curve_at": a.tolist(),
        "error": evaluate_classifier(model, *test)["error"],
        "train_nats": float(curves[0, config.points // 2]),
        **tasks.learning(history),
        **trivial.classes(train, test, config.trivial, measure="error"),
    }


# --- rescaled networks, in float64 (Section 4) ------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Rescaled:
    width: int
    points: int
    factor: float


def normed(arm: str, direction: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The direction as the arm has it: by filter, by layer, as drawn, or by filter with the one-axis parameters too."""
    found = filter_normalized(direction, model)
    for name, p in model.named_parameters():
        if p.dim() > 1 and arm == "raw":
            found[name] = direction[name]
        if p.dim() > 1 and arm == "by_layer":
            found[name] = direction[name] * (p.detach().norm() / direction[name].norm())
        if p.dim() == 1 and arm == "one_axis":
            found[name] = direction[name]
    return found


@torch.no_grad()
def rescaled(arm: str, seed: int, config: Rescaled, device: torch.device) -> tasks.Measures:
    """By how much curves change when layers of a ReLU network, or filters before a BatchNorm, are rescaled."""
    draw, n, c = draws(device, "loss_landscape rescaled", seed), config.width, config.factor
    x, y = draw(16, n), draw(16, n)
    plain = nn.Sequential(nn.Linear(n, n, bias=False), nn.ReLU(), nn.Linear(n, n, bias=False), nn.ReLU())
    plain.append(nn.Linear(n, n, bias=False))
    norm = nn.BatchNorm1d(n, eps=0.0)
    nets = {"layers": plain, "filters": nn.Sequential(nn.Linear(n, n), norm, nn.ReLU(), nn.Linear(n, n))}
    a, errors = torch.linspace(-1, 1, config.points, dtype=torch.float64), {}
    for name, net in nets.items():
        net.to(device, torch.float64)
        for p in net.parameters():
            p.copy_(draw(*p.shape) / n**0.5)
        norm.running_mean.copy_(draw(n)), norm.running_var.copy_(draw(n).exp())
        other = copy.deepcopy(net)
        factors = draw(n).exp() * c
        if name == "layers":
            for layer, by in zip(other[::2], (c, c, c**-2) if arm != "neurons" else (factors, 1, 1), strict=True):
                layer.weight.mul_(by[:, None] if isinstance(by, Tensor) else by)
            if arm == "neurons":
                other[2].weight.div_(factors)
        else:
            other[0].weight.mul_(factors[:, None])
            other[0].bias.mul_(factors)
            other[1].running_mean.mul_(factors)
            other[1].running_var.mul_(factors.square())
        direction = {key: draw(*p.shape) for key, p in net.named_parameters()}
        kinds = [loss_line(m, lambda m: F.mse_loss(m(x), y), normed(arm, direction, m), a) for m in (net, other)]
        errors[f"{name}_error"] = tasks.relative(kinds[1], kinds[0])
    return errors
