"""L2 regularization versus batch and weight normalization (van Laarhoven, 2017, arXiv:1706.05350).

    y(X; a w, gamma, beta) = y(X; w, gamma, beta)     a > 0, w: the weights of a unit before its norm
    loss(w) + lambda ||w||^2                          has its gradient at w less 2 lambda w orthogonal to w
    lr_eff = lr / ||w||^2                             all that lambda changes, because it shrinks w

SGD from (a w, a^2 lr, lambda / a^2) has the function of SGD from (w, lr, lambda) at every step, with momentum too.
Adam removes one of the two powers: (a w, a lr, lambda / a^2), or (a w, a lr, lambda / a) where the decay stands apart
from the gradient (w - lr (u + 2 lambda w), AdamW), with an eps divided by a.  At rest ||w||^4 = lr G / (4 lambda),
where G = ||w||^2 ||g||^2 is the squared gradient at norm 1.  The paper's cure is ||w|| = 1 and no lambda: `UnitNorm`.

w: (units, ...), one norm for each row.  gamma and beta are not regularised.  torch's weight_decay is 2 lambda.

    optimizer = UnitNorm(torch.optim.SGD(model.parameters(), lr=0.1), [layer.weight for layer in normalised_layers])

Where the paper has no word on it:
  D1  `resting_norm` keeps the term lr lambda of the balance, ||w||^4 = lr G / (4 lambda (1 - lr lambda)).
  D2  a row of zeros stays as it is.
"""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from repro.models.affine import wide
from repro.models.optimizer import positive

__all__ = ["UnitNorm", "effective_rate", "equivalent", "resting_norm", "unit_norm_"]

POWERS = {"sgd": (2.0, 2.0), "adam": (1.0, 2.0), "adamw": (1.0, 1.0)}  # of a in lr, and of 1 / a in lambda


def _norms(weight: Tensor) -> Tensor:
    return wide(weight.detach()).flatten(1).norm(dim=1)


def effective_rate(weight: Tensor, lr: float, power: int = 2) -> Tensor:
    """Return lr / ||w||^power of every row: power 2 for SGD, 1 for Adam.  weight: (units, ...) -> (units,)."""
    return lr / _norms(weight) ** power


def equivalent(scale: float, lr: float, decay: float, optimizer: str = "sgd") -> tuple[float, float]:
    """Return the lr and lambda with which weights `scale` times as large have the same function at every step.

    optimizer: sgd (with any momentum), adam (lambda in the gradient) or adamw (apart from it); an eps is to be divided
    by `scale`.  ValueError for another one, or a scale that is not above 0.
    """
    if optimizer not in POWERS:
        raise ValueError(f"optimizer={optimizer!r} is unknown; write one of {', '.join(POWERS)}")
    if not 0 < scale < float("inf"):
        raise ValueError(f"scale={scale}: write a number above 0")
    positive(lr=lr, decay=decay)
    rate, shrink = POWERS[optimizer]
    return lr * scale**rate, decay / scale**shrink


def resting_norm(lr: float, decay: float, gradient: Tensor | float) -> Tensor:
    """Return the ||w|| at which SGD with lambda = `decay` neither lengthens nor shortens w (D1).

    gradient: G, the mean of ||w||^2 ||g||^2, which does not change with ||w||.  ValueError unless 0 < lr decay < 1.
    """
    if not 0 < lr * decay < 1:
        raise ValueError(f"lr={lr}, decay={decay}: there is a rest where their product lies between 0 and 1")
    return (lr * torch.as_tensor(gradient) / (4 * decay * (1 - lr * decay))) ** 0.25


@torch.no_grad()
def unit_norm_(weights: Iterable[Tensor]) -> None:
    """Divide every row of every weight by its norm, in place (D2).  weights: (units, ...) each."""
    for weight in weights:
        norms = _norms(weight)
        norms = norms.masked_fill(norms == 0, 1.0).view(-1, *[1] * (weight.dim() - 1))
        weight.copy_(wide(weight) / norms)


class UnitNorm(torch.optim.Optimizer):
    """An optimizer that steps as the one that it wraps and then puts ||w|| = 1 for every row of `weights`.

    weights: those in front of a norm; every parameter of two axes or more, unless given.  They are put to norm 1 at
    once.  Parameter groups, state, state dict and everything else are those of the wrapped `optimizer`.  TypeError if
    `optimizer` is none, ValueError where `weights` holds what it does not train, or a vector, RuntimeError for complex
    parameters.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, weights: Sequence[Tensor] | None = None):
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(f"{type(optimizer).__name__} is no optimizer; write UnitNorm(torch.optim.SGD(...))")
        trained = [p for group in optimizer.param_groups for p in group["params"]]
        weights = [p for p in trained if p.dim() > 1] if weights is None else list(weights)
        known = {id(p) for p in trained}
        if any(id(p) not in known or p.dim() < 2 for p in weights):
            raise ValueError("weights holds what the optimizer does not train, or a vector; write [layer.weight]")
        if any(p.is_complex() for p in weights):
            raise RuntimeError("UnitNorm takes no complex parameters: write torch.view_as_real(parameter)")
        self.optimizer, self.weights = optimizer, weights
        for name in ("add_param_group", "load_state_dict", "state_dict", "zero_grad"):
            setattr(self, name, getattr(optimizer, name))
        unit_norm_(weights)

    def __reduce__(self) -> tuple:  # for copies
        return type(self), (self.optimizer, self.weights)

    def __getattr__(self, name: str) -> object:
        return getattr(self.__dict__["optimizer"], name)

    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """Step, then put every row to norm 1."""
        loss = self.optimizer.step(closure)
        unit_norm_(self.weights)
        return loss
