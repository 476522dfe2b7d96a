"""Training BatchNorm and only BatchNorm (Frankle, Schwab & Morcos, ICLR 2021, arXiv:2003.00152).

    y = gamma (x - mean) / sqrt(var + eps) + beta        gamma and beta are trained, all else stays as it was drawn

x: (B, C, ...), gamma and beta: (C,).  gamma starts as U(0, 1) and beta at 0.  Convolutions, shortcuts and the output
layer keep their random weights; running statistics go on being measured.  A CIFAR ResNet of 14, 110 and 866 layers
(widths 16, 32, 64; 1 x 1 shortcuts with BatchNorm) has 1,120, 8,288 and 64,736 such numbers.

    train_only_norms_(model, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1, momentum=0.9)

Where the paper has no word on it:
  D1  `norms` may name other layers than BatchNorm, such as (nn.LayerNorm, nn.GroupNorm): the paper is about BatchNorm.
  D2  affine parameters that a model shares between layers are drawn once.
"""

import torch
from torch import nn

__all__ = ["norm_parameters", "train_only_norms_"]

BATCHNORM = (nn.modules.batchnorm._BatchNorm,)
Kinds = tuple[type[nn.Module], ...]


def norm_parameters(model: nn.Module, norms: Kinds = BATCHNORM) -> dict[str, nn.Parameter]:
    """Return gamma and beta of every norm of a model, by name.  ValueError where it has no norm with parameters."""
    found: dict[str, nn.Parameter] = {}
    for place, module in model.named_modules():
        if isinstance(module, norms):
            own = module.named_parameters(recurse=False)
            found |= {f"{place}.{name}".lstrip("."): p for name, p in own}
    if not found:
        kinds = ", ".join(kind.__name__.lstrip("_") for kind in norms)
        raise ValueError(f"{type(model).__name__} has no {kinds} with parameters: write norms=(nn.LayerNorm,), say")
    return found


@torch.no_grad()
def train_only_norms_(
    model: nn.Module,
    *,
    norms: Kinds = BATCHNORM,
    gamma: str = "uniform",
    generator: torch.Generator | None = None,
) -> list[nn.Parameter]:
    """Freeze all of a model but gamma and beta of its norms, in place, and return those.

    gamma: uniform draws gamma anew from U(0, 1) and sets beta to 0, as in the paper; keep leaves both as they are.
    Running statistics are not frozen: they follow the batches while the model is in training mode.  ValueError for
    another gamma, or where the model has no norm with parameters.
    """
    if gamma not in ("uniform", "keep"):
        raise ValueError(f"gamma={gamma!r} is unknown; write uniform or keep")
    trained = norm_parameters(model, norms)
    for p in model.parameters():
        p.requires_grad_(False)
    unique = {id(p): (name, p) for name, p in trained.items()}  # D2
    for name, p in unique.values():
        if gamma == "uniform" and name.rpartition(".")[2] == "weight":
            p.uniform_(0.0, 1.0, generator=generator)
        elif gamma == "uniform":
            p.zero_()
        p.requires_grad_(True)
    return [p for _, p in unique.values()]
