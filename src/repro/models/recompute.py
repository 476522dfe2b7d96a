"""What layers that count steps or keep running values need, so that a forward pass that runs twice counts once.

Activation checkpointing runs a forward pass again inside the backward pass, and torch.compile may compute a value again
there from a buffer that has changed since.
"""

from collections import deque
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def recomputing() -> bool:
    """Return whether this forward pass is one that checkpointing runs again, inside the backward pass."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def to_be_recomputed() -> bool:
    """Return whether this forward pass may run again: without gradients (reentrant) or under hooks on saved tensors."""
    if torch.compiler.is_compiling() or torch._C._functorch.maybe_current_level() is not None:
        return False
    return not torch.is_grad_enabled() or torch._C._autograd._top_saved_tensors_default_hooks(False) is not None


@torch.library.custom_op("repro::keep", mutates_args=())
def _keep(x: Tensor) -> Tensor:
    return x.clone()


@_keep.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def kept(buffer: Tensor) -> Tensor:
    """Return a copy of `buffer` from before its update.

    The compiled backward pass takes this copy; of a plain copy it would take the buffer itself, which has changed by
    then.
    """
    return _keep(buffer) if torch.compiler.is_compiling() else buffer.clone()


class Rewind:
    """The buffers from before the last forward passes, for those that run again.

    A pass is known again by a fingerprint of its batch, such as its statistics: passes may run again in any order.  The
    fingerprint is a function, called only where a pass runs again or may do so.
    """

    def __init__(self, passes: int = 64):
        self.passes: deque[tuple[Tensor, list[Tensor]]] = deque(maxlen=passes)

    def __call__(self, fingerprint: Callable[[], Tensor], buffers: Sequence[Tensor]) -> list[Tensor]:
        """Return copies of `buffers` as they were before the pass of this fingerprint, which may be the present one."""
        if recomputing():
            now = fingerprint().detach()
            for i, (known, before) in enumerate(self.passes):
                if torch.equal(known, now):
                    del self.passes[i]
                    return before
        before = [kept(buffer) for buffer in buffers]
        if to_be_recomputed():
            self.passes.appendleft((fingerprint().detach().clone(), before))
        return before

    def __reduce__(self) -> tuple:  # a copy of a layer has passes of its own
        return Rewind, (self.passes.maxlen,)
