"""What papers/adamp measures: errors and effective steps with BatchNorm, growth of norms, exact statements."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from repro import tasks
from repro.experiments.optim_images import OptimImages
from repro.models.convnet import cifar_resnet
from repro.models.slots import identity
from repro.papers.adamp import SGDP, AdamP, project
from repro.train import cross_entropy, draws, generator

# --- arms -------------------------------------------------------------------------------------------------------------


def never(w: Tensor, g: Tensor, u: Tensor, delta: float, eps: float) -> tuple[Tensor, bool]:
    """SGD with momentum, in the code of SGDP."""
    return u, False


def half(w: Tensor, g: Tensor, u: Tensor, delta: float, eps: float) -> tuple[Tensor, bool]:
    """Half of the radial part is taken out."""
    q, projected = project(w, g, u, delta, eps)
    return (u + q) / 2, projected


def everywhere(w: Tensor, g: Tensor, u: Tensor, delta: float, eps: float) -> tuple[Tensor, bool]:
    """Every matrix is projected, whatever the cosine says: the output layer too."""
    return project(w, g, u, math.inf, eps)


def radial(w: Tensor, g: Tensor, u: Tensor, delta: float, eps: float) -> tuple[Tensor, bool]:
    """The wrong part is kept: scale-invariant weights move along themselves alone, and keep their direction."""
    q, projected = project(w, g, u, delta, eps)
    return (u - q, True) if projected else (u, False)


def _with(kind: type[SGDP] | type[AdamP], rule: Callable = project) -> Callable[..., torch.optim.Optimizer]:
    class Altered(kind):
        project = staticmethod(rule)

    def make(groups: list[dict], lr: float, config: OptimImages) -> torch.optim.Optimizer:
        return Altered(groups, lr, config.momentum) if kind is SGDP else Altered(groups, lr)

    return make


sgdp, adamp = _with(SGDP), _with(AdamP)
sgdp_never, sgdp_half, sgdp_everywhere = _with(SGDP, never), _with(SGDP, half), _with(SGDP, everywhere)
sgdp_radial, adamp_radial = _with(SGDP, radial), _with(AdamP, radial)


# --- growth of the norm under noise, in float64 (Section 2) -----------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Growth:
    """f_t(w) = z_t . w / |w| with z_t drawn anew: w in R^n, which starts as N(0, 1)."""

    n: int
    steps: int
    lr: float
    momentum: float


def follow(optimizer: torch.optim.Optimizer, w: nn.Parameter, noise: Tensor, *, scaled: bool = True) -> Tensor:
    """Where w (1, n) stands before the first step and after each: (steps + 1, n)."""
    path = [w.detach()[0].clone()]
    for z in noise:
        size = torch.linalg.vector_norm(w.detach()) if scaled else torch.ones_like(w.detach()).sum().sqrt()
        unit = w.detach() / size
        w.grad = ((z - unit * (unit * z).sum()) / size) if scaled else z[None] / size
        optimizer.step()
        path.append(w.detach()[0].clone())
    return torch.stack(path)


def growth(arm: str, seed: int, config: Growth, device: torch.device) -> tasks.Measures:
    """Growth of |w|^2 over the sum of the squared steps."""
    draw = draws(device, "adamp growth", seed)
    w, noise = nn.Parameter(draw(1, config.n)), draw(config.steps, config.n)
    momentum = 0.8 if arm == "less_momentum" else config.momentum
    kind = {"sgdp": sgdp, "half": sgdp_half}.get(arm, sgdp_never)
    settings = OptimImages(width=1, depth=1, lr=1.0, steps=1, examples=1, test=1, momentum=momentum)
    path = follow(kind([{"params": [w]}], config.lr, settings), w, noise)
    return {"growth": float((path[-1].square().sum() - path[0].square().sum()) / path.diff(dim=0).square().sum())}


# --- exact statements -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Exact:
    """n, steps: of the walk; depth, width, images, side: of the residual network whose weights are looked at."""

    n: int
    steps: int
    depth: int
    width: int
    images: int
    side: int


def exact(arm: str, seed: int, config: Exact, device: torch.device) -> tasks.Measures:
    """Errors of the norm's recursion and of the direction of a step, and the share of weights that the test finds."""
    draw, lr, momentum = draws(device, "adamp exact", seed), 0.1, 0.9
    w, noise = nn.Parameter(draw(1, config.n)), draw(config.steps, config.n)
    path = follow(torch.optim.SGD([w], lr, momentum), w, noise, scaled=arm != "not_invariant")
    squares = (path.diff(dim=0) / lr).square().sum(1)
    age = torch.arange(config.steps, device=device)[:, None] - torch.arange(config.steps, device=device)
    memory = torch.where(age > 0, momentum ** age.clamp_min(0).double(), 0.0)
    expected = lr**2 * (squares.sum() + 2 * (memory @ squares).sum())
    grown = path[-1].square().sum() - path[0].square().sum()

    v, g, u = draw(4, config.n), draw(4, config.n), draw(4, config.n)
    g = g - v * (g * v).sum(1, keepdim=True) / v.square().sum(1, keepdim=True)
    q = project(g if arm == "along_gradient" else v, torch.zeros_like(g), u)[0]

    def tangent(step: Tensor) -> Tensor:
        unit, new = nn.functional.normalize(v), nn.functional.normalize(v - lr * step)
        return nn.functional.normalize(new - unit * (unit * new).sum(1, keepdim=True))

    source = generator("adamp exact", seed)
    norm = identity if arm == "no_norm" else nn.BatchNorm2d
    model = cifar_resnet(config.depth, width=config.width, norm=norm, generator=source).to(device)
    x = torch.randn(config.images, 3, config.side, config.side, generator=source).to(device)
    y = torch.randint(10, (config.images,), generator=source).to(device)
    cross_entropy(model(x), y).backward()
    found = sum(p.numel() for p in model.parameters() if project(p.detach(), p.grad, p.grad)[1])
    return {
        "recursion_error": float((grown - expected).abs() / expected),
        "direction_error": tasks.relative(tangent(q), tangent(u)),
        "found": found / sum(p.numel() for p in model.parameters()),
    }
