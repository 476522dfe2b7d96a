"""The way of one parameter under an optimizer and given gradients: adam, ademamix."""

from collections.abc import Callable

import torch
from torch import Tensor, nn


def walk(optimizer: Callable[[list[Tensor]], torch.optim.Optimizer], gradients: Tensor, start: float = 0.0) -> Tensor:
    """Return where a parameter that begins at `start` stands after each gradient: (steps, *shape)."""
    p = nn.Parameter(torch.full_like(gradients[0], start))
    chosen, path = optimizer([p]), []
    for g in gradients:
        p.grad = g.clone()
        chosen.step()
        path.append(p.detach().clone())
    return torch.stack(path)
