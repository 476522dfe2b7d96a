"""Mish (Misra, BMVC 2020, arXiv:1908.08681), Sec. 2: x times the hyperbolic tangent of softplus(x).

    f(x) = x tanh(softplus(x)),      softplus(x) = ln(1 + e^x)
    f'(x) = sech^2(softplus(x)) x sigmoid(x) + f(x) / x;      f'(0) = tanh(ln 2) = 3/5

Element by element, without parameters; training and evaluation agree.  The minimum is -0.30884 at x = -1.19243.

Two things are ours:
  D1  softplus(x) is x itself where x > 20, as in torch, where e^x alone would overflow; tanh is 1 there in float64 too.
  D2  No backward pass of its own: autograd keeps what each step gave.  The author's and torch's kernels keep x alone
      and compute the rest again; where memory counts, torch.nn.Mish is the same function.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from repro.models.affine import leaf, wide

__all__ = ["Mish", "mish"]


@leaf
def mish(input: Tensor, inplace: bool = False) -> Tensor:
    """Return x tanh(softplus(x)), element by element, in the dtype of x.

    input: floating point, of any shape; TypeError otherwise.  inplace: write the result into x.
    """
    x = wide(input)
    y = (x * torch.tanh(F.softplus(x))).to(input.dtype)
    return input.copy_(y) if inplace else y


class Mish(nn.Module):
    """`mish` as a module without parameters; stands where torch.nn.Mish does."""

    def __init__(self, inplace: bool = False):
        super().__init__()
        self.inplace = inplace

    def forward(self, input: Tensor) -> Tensor:
        return mish(input, self.inplace)

    def extra_repr(self) -> str:
        return "inplace=True" if self.inplace else ""
