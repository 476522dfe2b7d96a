"""Measuring a model in evaluation mode, whatever mode it is in."""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

Result = TypeVar("Result")


def measured(evaluate: Callable[[nn.Module], Result], model: nn.Module) -> Result:
    """Return `evaluate(model)` in eval mode and without gradients; the mode is put back."""
    mode = model.training
    model.eval()
    try:
        with torch.no_grad():
            return evaluate(model)
    finally:
        model.train(mode)
