"""Swish (Ramachandran, Zoph & Le, 2017, arXiv:1710.05941), Sec. 4: x times the sigmoid of beta x.

    f(x) = x sigmoid(beta x),      f'(x) = beta f(x) + sigmoid(beta x) (1 - beta f(x))

beta is a constant, 1 unless told otherwise (Swish-1, which is torch's SiLU), or is learned.  beta = 0 is x / 2, beta ->
infinity is ReLU.  Element by element, so that input and output have one shape; training and evaluation agree.

The paper leaves two things open:
  D1  A learned beta starts at 1 and is one number of a layer, of shape (1,); of the trained ones Figure 7 shows values
      from 0 to 1.5 with a peak near 1, but not for how many units each stands.
  D2  beta may take any sign, also while it is learned; the paper draws values above 0.
"""

import torch
from torch import Tensor, nn

from repro.models.affine import leaf, wide

__all__ = ["Swish", "swish"]


@leaf
def swish(input: Tensor, beta: Tensor | float = 1.0) -> Tensor:
    """Return x sigmoid(beta x), element by element, in the dtype of x.

    input: floating point, of any shape; TypeError otherwise.  beta: a number, or a tensor that broadcasts against x.
    """
    x = wide(input)
    return (x * torch.sigmoid(beta * x)).to(input.dtype)


class Swish(nn.Module):
    """`swish` as a module.  `beta` is a number, or with learnable=True a parameter of shape (1,) that starts there."""

    def __init__(
        self,
        beta: float = 1.0,
        learnable: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        self.start, self.learnable = beta, learnable
        self.beta = nn.Parameter(torch.empty(1, device=device, dtype=dtype)) if learnable else beta
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set a learned beta to the number that the constructor got."""
        if self.learnable:
            nn.init.constant_(self.beta, self.start)

    def forward(self, input: Tensor) -> Tensor:
        return swish(input, self.beta)

    def extra_repr(self) -> str:
        return f"beta={self.start}, learnable={self.learnable}"
