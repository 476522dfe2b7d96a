"""What most optimizers share beside their update rule: a closure, parameter groups, refusals, and state by parameter.

A rule is a subclass of `Rule` with two functions of one parameter; all else is torch.optim's, so that schedulers, state
dicts, parameter groups and gradient scalers work as they do with torch's own.  State has torch's names (`step`,
`exp_avg`, `exp_avg_sq`), so that a checkpoint of torch's twin loads.
"""

from collections.abc import Callable, Iterable
from itertools import chain
from typing import Any

import torch
from torch import Tensor

Parameters = Iterable[Tensor] | Iterable[dict[str, Any]] | Iterable[tuple[str, Tensor]]
State = dict[str, Any]


class Rule(torch.optim.Optimizer):
    """An optimizer whose subclass has `start`, the state of a parameter, and `update`, which changes the parameter.

    state["step"] counts the updates of a parameter, from 1 on when `update` first sees it.  With `maximize` the rule
    sees the gradient with the other sign.
    """

    def start(self, p: Tensor, group: dict[str, Any]) -> State:
        """Return the state of a parameter before its first step."""
        raise NotImplementedError(f"{type(self).__name__} has no start(p, group)")

    def update(self, p: Tensor, g: Tensor, state: State, group: dict[str, Any]) -> None:
        """Change `p` in place, by its gradient `g`."""
        raise NotImplementedError(f"{type(self).__name__} has no update(p, g, state, group)")

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """Update every parameter that has a gradient; `closure` computes the loss and the gradients first."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                refuse(self, p)
                state = self.state[p]
                if not state:
                    state.update(step=0, **self.start(p, group))
                state["step"] = int(state["step"]) + 1  # a checkpoint of torch's holds a tensor
                self.update(p, -p.grad if group.get("maximize") else p.grad, state, group)
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load as torch does, but keep what is wider than its parameter, such as float32 beside bfloat16."""
        super().load_state_dict(state_dict)
        theirs = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
        ours = chain.from_iterable(group["params"] for group in self.param_groups)
        for index, p in zip(theirs, ours, strict=True):
            for name, value in state_dict["state"].get(index, {}).items():
                if torch.is_tensor(value) and value.is_floating_point() and name != "step":
                    self.state[p][name] = value.to(p.device, copy=True)


def wide_zeros(p: Tensor) -> Tensor:
    """Return zeros of the parameter's shape, in float32 at least."""
    return torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float32))


def refuse(optimizer: torch.optim.Optimizer, p: Tensor) -> None:
    """Raise RuntimeError where a gradient is sparse, or a parameter complex."""
    name = type(optimizer).__name__
    if p.grad.is_sparse:
        raise RuntimeError(f"{name} takes no sparse gradients: write nn.Embedding(sparse=False)")
    if p.is_complex():
        raise RuntimeError(f"{name} takes no complex parameters: write torch.view_as_real(parameter)")


def positive(**numbers: float) -> None:
    """Raise ValueError where a number is negative or not finite."""
    for name, value in numbers.items():
        if not 0 <= float(value) < float("inf"):
            raise ValueError(f"{name}={value}: write a number from 0 on")


def shares(**numbers: float) -> None:
    """Raise ValueError where a number lies outside [0, 1)."""
    for name, value in numbers.items():
        if not 0 <= float(value) < 1:
            raise ValueError(f"{name}={value}: write a number from 0 to below 1")
