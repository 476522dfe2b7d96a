"""Loss surfaces along filter-normalized directions (Li, Xu, Taylor, Studer, Goldstein, NeurIPS 2018, arXiv:1712.09913).

    f(a) = L(theta + a d)          f(a, b) = L(theta + a d + b e)          d, e Gaussian, drawn apart
    d_ij <- d_ij / |d_ij| |theta_ij|          filter j of layer i: the weights W[j] that make one output channel

A row of a linear layer is a filter too.  Parameters of one axis (biases, scales and shifts of BatchNorm) get a
direction of zeros, and buffers stay as they are, as in the authors' code (tomgoldstein/loss-landscape, net_plotter.py).
The network is evaluated in eval mode, its mode and weights are put back bit for bit.

A curve does not change when filters before a BatchNorm are multiplied by positive numbers, or the layers of a ReLU
network without biases by positive numbers whose product is 1; it does change when single neurons without BatchNorm are
rescaled.

  D1  A filter of zeros gets a direction of zeros, and |d_ij| has no 1e-10 added, which the code does.
  D2  `nonconvexity` is ours: the paper looks at pictures, and at eigenvalues of the Hessian.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

__all__ = ["filter_normalized", "loss_line", "loss_plane", "nonconvexity", "random_direction"]

Direction = dict[str, Tensor]


def filter_normalized(direction: Direction, model: nn.Module) -> Direction:
    """Return the direction with the norm of every filter of `model`; zeros for parameters of one axis."""
    found = {}
    for name, p in model.named_parameters():
        d, w = direction[name], p.detach()
        if d.shape != w.shape:
            raise ValueError(f"{name} has the shape {tuple(w.shape)} and its direction {tuple(d.shape)}")
        if w.dim() < 2:
            found[name] = torch.zeros_like(w)
            continue
        norm = d.flatten(1).norm(dim=1)
        scale = torch.where(norm > 0, w.flatten(1).norm(dim=1) / norm, 0.0)
        found[name] = d * scale.view(-1, *[1] * (d.dim() - 1))
    return found


def random_direction(model: nn.Module, generator: torch.Generator, *, normalized: bool = True) -> Direction:
    """Return a Gaussian direction by parameter name, filter-normalized or as drawn; zeros for parameters of one axis.

    generator: a CPU generator, which draws in the order of named_parameters.
    """
    drawn = {
        name: torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p)
        if p.dim() > 1
        else torch.zeros_like(p.detach())
        for name, p in model.named_parameters()
    }
    return filter_normalized(drawn, model) if normalized else drawn


@torch.no_grad()
def _losses(model: nn.Module, loss: Callable[[nn.Module], Tensor], steps: Sequence[dict[str, Tensor]]) -> Tensor:
    parameters = dict(model.named_parameters())
    before = {name: p.detach().clone() for name, p in parameters.items()}
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        values = []
        for step in steps:
            for name, p in parameters.items():
                p.copy_(before[name] + step[name])
            values.append(torch.as_tensor(loss(model)).detach().double().cpu())
    finally:
        for name, p in parameters.items():
            p.copy_(before[name])
        for module, mode in modes.items():
            module.training = mode
    return torch.stack(values)


def loss_line(model: nn.Module, loss: Callable[[nn.Module], Tensor], d: Direction, a: Tensor) -> Tensor:
    """Return loss(model) at theta + a d for each of `a`: (n,) -> (n,), float64 on the CPU."""
    return _losses(model, loss, [{name: float(x) * part for name, part in d.items()} for x in a])


def loss_plane(
    model: nn.Module, loss: Callable[[nn.Module], Tensor], d: Direction, e: Direction, a: Tensor, b: Tensor
) -> Tensor:
    """Return loss(model) at theta + a d + b e: a (n,), b (m,) -> (n, m), float64 on the CPU."""
    rows = []
    for x in a:
        steps = [{name: float(x) * d[name] + float(y) * e[name] for name in d} for y in b]
        rows.append(_losses(model, loss, steps))
    return torch.stack(rows)


def nonconvexity(line: Tensor, below: float = math.inf) -> float:
    """Return the share of bends that go down: sum max(0, -s) / sum |s|, s the second differences; 0 where convex.

    line: (..., n) values at even distances, n at least 3.  below: a bend counts where its three points are at most
    this; the authors' pictures end at 10 nats.  Raises ValueError where fewer than three bends count.
    """
    bends = line.diff(dim=-1).diff(dim=-1)[line.unfold(-1, 3, 1).amax(-1) <= below]
    if bends.numel() < min(3, line.shape[-1] - 2):
        raise ValueError(f"{bends.numel()} bends lie below {below}: take more points, or points that are nearer")
    return float((-bends).clamp_min(0).sum() / bends.abs().sum().clamp_min(torch.finfo(line.dtype).tiny))
