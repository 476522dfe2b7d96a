"""SAM-ON, SAM of the norms only (Müller, Vlaar, Rolnick & Hein, NeurIPS 2023, arXiv:2306.04226).

    e_n = rho T^2 g_n / ||T g_n||    e = 0 elsewhere    g' = grad L at w + e    the wrapped optimizer steps with g'

g_n is the gradient of the gains and shifts of the model's normalization layers, (C,) each, and ||.|| is taken over
them alone, about a thousandth of all parameters.  All parameters step.  T = 1 is SAM; with `adaptive=True` it is
diag(|w_n| + eta), the element-wise ASAM, with eta = 0.01 as in the authors' class; their script passes 0.  The best
rho is larger than SAM's.  The script has 0.5 as the default of all its variants, SAM's too, and 10 in an example of
the adaptive form.  Without parameters or state of its own; a step costs two gradients.

    optimizer = SAMON(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), rho=0.5, model=model)
    loss = closure()              # zero_grad, forward, backward
    optimizer.step(closure)       # calls it once more, at w + e

Where the authors' code (mueller-mp/SAM-ON) does otherwise:
  D1  the norms are found by their type; the code takes every parameter whose name contains "norm" or "bn".
  D2  the running statistics of BatchNorm are those of the pass at w; in the code the second pass updates them again.
  D3  T scales shifts as well as gains, which the code does with its option normalize_bias alone.
  D4  a gradient of 0 gives e = 0, and w is put back from a copy, as in `repro.papers.sam`; the code has ||.|| + 1e-16.
"""

import torch
from torch import Tensor, nn

from repro.models.affine import wide
from repro.models.optimizer import positive
from repro.papers.bn_only import norm_parameters
from repro.papers.sam import SAM

__all__ = ["NORMS", "SAMON"]

NORMS = (
    nn.modules.batchnorm._BatchNorm,
    nn.modules.instancenorm._InstanceNorm,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
)


class SAMON(SAM):
    """SAM whose e lies in the gains and shifts of a model's norms; everything else is `repro.papers.sam.SAM`.

    model: that whose norms are perturbed.  norms: the types of layers that count as such, torch's unless given; write
    `norms=(RMSNorm, ...)` for those of the suite.  Without a model those parameter groups of `optimizer` are perturbed
    that hold `"norm": True`.  ValueError where there are neither, where the model has no norm with parameters, or where
    a number is negative.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        rho: float = 0.5,
        *,
        model: nn.Module | None = None,
        norms: tuple[type[nn.Module], ...] = NORMS,
        adaptive: bool = False,
        eta: float = 0.01,
    ):
        super().__init__(optimizer, rho, model=model)
        positive(eta=eta)
        self.norms, self.adaptive, self.eta = tuple(norms), adaptive, eta
        if model is not None:
            norm_parameters(model, self.norms)  # says so where there is none
        elif not any(group.get("norm") for group in optimizer.param_groups):
            raise ValueError('SAMON does not know the norms: write model=model, or groups with "norm": True')

    def __reduce__(self) -> tuple:  # for copies
        return _rebuild, (type(self), self.optimizer, self.rho, self.model, self.norms, self.adaptive, self.eta)

    def perturbed(self) -> list[Tensor]:
        """Return the parameters that e moves: those of the norms that the optimizer trains."""
        groups = self.param_groups
        if self.model is None:
            return [p for group in groups if group.get("norm") for p in group["params"]]
        chosen = {id(p) for p in norm_parameters(self.model, self.norms).values()}
        return [p for group in groups for p in group["params"] if id(p) in chosen]

    def directions(self, parameters: list[Tensor]) -> list[Tensor]:
        """Return e of the given parameters, from their gradients as they are now."""
        if not self.adaptive:
            return super().directions(parameters)
        sizes = [wide(p).abs() + self.eta for p in parameters]
        scaled = [t * wide(p.grad) for t, p in zip(sizes, parameters, strict=True)]
        norm = torch.stack([part.norm() for part in scaled]).norm()
        scale = self.rho / norm.masked_fill(norm == 0, 1.0)
        return [(t * part * scale).to(p.dtype) for t, part, p in zip(sizes, scaled, parameters, strict=True)]

    @torch.no_grad()
    def ascend(self) -> None:
        """Move the norms to w + e; their gradients must be there."""
        self.restore()
        self.move([p for p in self.perturbed() if p.grad is not None])


def _rebuild(kind: type[SAMON], optimizer: torch.optim.Optimizer, rho: float, model: nn.Module | None, *rest) -> SAMON:
    norms, adaptive, eta = rest
    return kind(optimizer, rho, model=model, norms=norms, adaptive=adaptive, eta=eta)
