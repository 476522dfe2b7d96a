"""What most optimizers share beside their update rule: a closure, parameter groups, refusals, and state by parameter.

A rule is a subclass of `Rule` with two functions of one parameter; all else is torch.optim's, so that schedulers, state
dicts, parameter groups and gradient scalers work as they do with torch's own.  State has torch's names (`step`,
`exp_avg`, `exp_avg_sq`), so that a checkpoint of torch's twin loads.

A rule that treats every element alone may take foreach=True: many parameters are laid end to end and updated as one, so
that a GPU launches few kernels for many small tensors.  The results are those of the loop.
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
    sees the gradient with the other sign.  `elementwise`: whether `update` treats every element alone, so that
    groups with foreach=True may be updated as one vector.
    """

    elementwise = False

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
            moving = [p for p in group["params"] if p.grad is not None]
            for p in moving:
                refuse(self, p)
                state = self.state[p]
                if not state:
                    state.update(step=0, **self.start(p, group))
                state["step"] = int(state["step"]) + 1  # a checkpoint of torch's holds a tensor
            if self.elementwise and group.get("foreach"):
                for several in alike(moving, self.state):
                    self._update_as_one(several, group)
            else:
                for p in moving:
                    self.update(p, descended(p.grad, group), self.state[p], group)
        return loss

    def _update_as_one(self, several: list[Tensor], group: dict[str, Any]) -> None:
        """Update parameters that are alike as one vector, and copy it and its state back into theirs."""
        states = [self.state[p] for p in several]
        p, g = (torch.cat([x.flatten() for x in xs]) for xs in (several, [x.grad for x in several]))
        state = end_to_end(states)
        self.update(p, descended(g, group), state, group)
        spread(p, several)
        for name, value in state.items():
            if torch.is_tensor(value):
                spread(value, [each[name] for each in states])

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load as torch does, but keep what is wider than its parameter, such as float32 beside bfloat16."""
        super().load_state_dict(state_dict)
        theirs = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
        ours = chain.from_iterable(group["params"] for group in self.param_groups)
        for index, p in zip(theirs, ours, strict=True):
            for name, value in state_dict["state"].get(index, {}).items():
                if torch.is_tensor(value) and value.is_floating_point() and name != "step":
                    self.state[p][name] = value.to(p.device, copy=True)


def descended(g: Tensor, group: dict[str, Any]) -> Tensor:
    """Return the gradient that a rule descends along: that of the loss, or its opposite with `maximize`."""
    return -g if group.get("maximize") else g


def alike(parameters: list[Tensor], states: dict[Tensor, State]) -> list[list[Tensor]]:
    """Return the parameters in lists of one device, dtype (of the gradient too) and number of steps."""
    lists: dict[tuple, list[Tensor]] = {}
    for p in parameters:
        lists.setdefault((p.device, p.dtype, p.grad.dtype, states[p]["step"]), []).append(p)
    return list(lists.values())


def end_to_end(states: list[State]) -> State:
    """Return one state for the parameters laid end to end: its tensors are vectors, all else is that of the first."""
    return {
        name: torch.cat([state[name].flatten() for state in states]) if torch.is_tensor(value) else value
        for name, value in states[0].items()
    }


def spread(vector: Tensor, tensors: list[Tensor]) -> None:
    """Copy a vector back into the tensors that were laid end to end."""
    pieces = vector.split([t.numel() for t in tensors])
    torch._foreach_copy_(tensors, [piece.view(t.shape) for piece, t in zip(pieces, tensors, strict=True)])


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
