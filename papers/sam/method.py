"""Sharpness-aware minimization (Foret, Kleiner, Mobahi & Neyshabur, ICLR 2021, arXiv:2010.01412), Eq. 2 and 3.

    min over w of  max over ||e|| <= rho of L(w + e) + lambda ||w||^2

    g = grad L(w)      e = rho g / ||g||      g' = grad L at w + e      then the wrapped optimizer steps from w with g'

g is the gradient over one batch, ||g|| the Euclidean norm over all parameters together, and g' is taken over the same
batch; no derivative passes through e.  rho = 0.05.  Weight decay belongs to the wrapped optimizer: it is in neither
gradient.  A step costs two gradients.  Without parameters or state of its own.

    optimizer = SAM(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), rho=0.05, model=model)
    loss = closure()              # zero_grad, forward, backward
    optimizer.step(closure)       # calls it once more, at w + e

With a GradScaler the closure scales its loss too: `scaler.step(optimizer, closure)`.  `ascend` and `descend` are the
two halves, for loops that accumulate gradients.  In the paper each part of m examples has an e of its own
("m-sharpness"): call `ascend` for each part.  Where a group of the optimizer has `maximize`, e goes downhill.

The authors' code (google-research/sam) departs from the equations or is silent in these places:
  D1  a gradient of 0 gives e = 0.
  D2  with `model=`, running statistics of BatchNorm are those of the pass at w; the second pass leaves them alone.
  D3  w is put back from a copy, bit for bit, and not by subtracting e.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from repro.models.affine import wide
from repro.models.optimizer import refuse

__all__ = ["SAM", "keep_running_statistics"]


@contextmanager
def keep_running_statistics(model: nn.Module) -> Iterator[None]:
    """Within it, BatchNorm layers in training normalise by the batch and leave their running statistics as they are."""
    kept = [
        (module, buffer.detach().clone(), name)
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
        if name in ("running_mean", "running_var", "num_batches_tracked") and buffer is not None
    ]
    try:
        yield
    finally:
        with torch.no_grad():
            for module, value, name in kept:
                getattr(module, name).copy_(value)


class SAM(torch.optim.Optimizer):
    """An optimizer that steps as the one that it wraps, with the gradient at the worst point within `rho`.

    Parameter groups, state, state dict and everything else are those of the wrapped `optimizer`.  model: that whose
    BatchNorm statistics the second pass leaves alone (D2).  TypeError if `optimizer` is none, ValueError where rho is
    negative, RuntimeError where `step` gets no closure or
    finds no new gradients at w, and for sparse gradients and complex parameters.
    """

    needs_closure = True
    _step_supports_amp_scaling = True  # GradScaler hands over its scale, since the closure's gradients have it too

    def __init__(self, optimizer: torch.optim.Optimizer, rho: float = 0.05, *, model: nn.Module | None = None):
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(
                f"{type(optimizer).__name__} is no optimizer; write SAM(torch.optim.SGD(parameters, lr=0.1))"
            )
        if not 0 <= rho < float("inf"):
            raise ValueError(f"rho={rho}: write a number from 0 on")
        self.optimizer, self.rho, self.model = optimizer, rho, model
        self.before: list[tuple[Tensor, Tensor]] = []  # parameters and what they were, between ascend and descend
        for name in ("add_param_group", "load_state_dict", "state_dict", "zero_grad"):
            setattr(self, name, getattr(optimizer, name))

    def __reduce__(self) -> tuple:  # for copies
        return _rebuild, (type(self), self.optimizer, self.rho, self.model)

    def __getattr__(self, name: str) -> object:
        return getattr(self.__dict__["optimizer"], name)

    def directions(self, parameters: list[Tensor]) -> list[Tensor]:
        """Return e of each parameter (Eq. 2), from the gradients as they are now."""
        norm = torch.stack([wide(p.grad).norm() for p in parameters]).norm()
        scale = self.rho / norm.masked_fill(norm == 0, 1.0)  # D1
        return [(p.grad * scale).to(p.dtype) for p in parameters]

    @torch.no_grad()
    def ascend(self) -> None:
        """Move to w + e; the gradients must be there."""
        self.restore()
        self.move([p for group in self.param_groups for p in group["params"] if p.grad is not None])

    def move(self, parameters: list[Tensor]) -> None:
        """Move these parameters by their e."""
        for p in parameters:
            refuse(self, p)
        downhill = {id(p) for group in self.param_groups if group.get("maximize") for p in group["params"]}
        for p, e in zip(parameters, self.directions(parameters) if parameters else [], strict=True):
            self.before.append((p, p.detach().clone()))
            p.add_(-e if id(p) in downhill else e)

    @torch.no_grad()
    def restore(self) -> None:
        """Move back to w (D3)."""
        for p, value in self.before:
            p.copy_(value)
        self.before = []

    def descend(self) -> None:
        """Move back to w and step with the gradients as they are now."""
        self.restore()
        self.optimizer.step()

    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """Step with the gradients at w + e, which `closure` computes; those at w must be there.  Return the loss there.

        closure: zeroes the gradients, computes the loss of the same batch and its gradients.  Under a GradScaler a
        step is left out where gradients at w or at w + e are not finite.
        """
        if closure is None:
            raise RuntimeError(
                "SAM needs the gradients at w and at w + e: write closure(), then optimizer.step(closure)"
            )
        first = next((p.grad for group in self.param_groups for p in group["params"] if p.grad is not None), None)
        if first is None or getattr(first, "spent", None) == first._version:
            raise RuntimeError("SAM has no new gradients at w: write closure(), then optimizer.step(closure)")
        scale, overflow = self.__dict__.get("grad_scale"), self.__dict__.get("found_inf")  # a GradScaler's
        if overflow is not None and scale is None:
            raise RuntimeError("SAM unscales the gradients at w and at w + e itself: leave out scaler.unscale_")
        if overflow is not None and overflow.item():
            return None
        self.unscale(scale)
        self.ascend()
        try:
            if self.model is None:
                with torch.enable_grad():
                    loss = closure()
            else:
                with keep_running_statistics(self.model), torch.enable_grad():
                    loss = closure()
        finally:
            self.restore()
        if self.unscale(scale):
            self.optimizer.step()
        for group in self.param_groups:  # gradients at w + e, of which no step may start
            for p in group["params"]:
                if p.grad is not None:
                    p.grad.spent = p.grad._version
        return loss

    @torch.no_grad()
    def unscale(self, scale: Tensor | None) -> bool:
        """Divide all gradients by the scale of a GradScaler, if there is one; return whether they are finite."""
        if scale is None:
            return True
        gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        for g in gradients:
            g.div_(scale)
        return all(bool(torch.isfinite(g).all()) for g in gradients)


def _rebuild(kind: type[SAM], optimizer: torch.optim.Optimizer, rho: float, model: nn.Module | None) -> SAM:
    return kind(optimizer, rho, model=model)
