"""GoLU (Das, Safari, Adriaensen & Hutter, NeurIPS 2025, arXiv:2502.03654): x times the Gompertz function of x.

    f(x) = x G(x),      G(x) = alpha exp(-beta exp(-gamma x)),      f'(x) = G(x) (1 + beta gamma x exp(-gamma x))

alpha = beta = gamma = 1, for which G is the distribution function of the standard Gumbel law, f'(0) = 1/e, and the
minimum is -0.09726 at x = -0.56714.  Element by element, without parameters; training and evaluation agree.

Where we differ from the authors' kernel (automl/GoLU, golu_cuda_kernel.cu):
  D1  beta exp(-gamma x) is exp(z), z = ln(beta) - gamma x, and z stops at 10, from where on G is 0 in float64 too.  So
      no infinity arises, and gradients far below 0 are 0 without a NaN to replace.
  D2  alpha, beta and gamma must be above 0: ValueError otherwise.  The authors warn of others and take them.
"""

import math

import torch
from torch import Tensor, nn

from repro.models.affine import leaf, wide

__all__ = ["GoLU", "golu"]

FLAT = 10.0  # exp(-exp(10)) is 0 in float64


@leaf
def golu(input: Tensor, alpha: float = 1.0, beta: float = 1.0, gamma: float = 1.0) -> Tensor:
    """Return x G(x), element by element, in the dtype of x.

    input: floating point, of any shape; TypeError otherwise.  alpha, beta, gamma: the gate's height, shift and rate,
    ValueError unless above 0.
    """
    if not (alpha > 0 and beta > 0 and gamma > 0):
        raise ValueError(f"alpha={alpha}, beta={beta}, gamma={gamma}: the gate is S-shaped above 0 alone; write such")
    x = wide(input)
    gate = alpha * torch.exp(-torch.exp((math.log(beta) - gamma * x).clamp(max=FLAT)))
    return (x * gate).to(input.dtype)


class GoLU(nn.Module):
    """`golu` as a module without parameters; the arguments are those of the authors' module."""

    def __init__(self, alpha: float = 1.0, beta: float = 1.0, gamma: float = 1.0):
        super().__init__()
        golu(torch.zeros(()), alpha, beta, gamma)  # refuse what has no S-shape
        self.alpha, self.beta, self.gamma = alpha, beta, gamma

    def forward(self, input: Tensor) -> Tensor:
        return golu(input, self.alpha, self.beta, self.gamma)

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}, beta={self.beta}, gamma={self.gamma}"
