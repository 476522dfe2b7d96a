"""LAuReL, Learned Augmented Residual Layer (Menghani, Kumar & Kumar, ICML 2025, arXiv:2411.07501).

    general   x_{i+1} = alpha f(x_i) + g(x_i, x_{i-1}, ..., x_0)        in place of f(x_i) + x_i
    RW        x_{i+1} = alpha f(x_i) + beta x_i
    LR        x_{i+1} = f(x_i) + B A x_i + x_i
    RW+LR     x_{i+1} = alpha f(x_i) + beta (B A x_i + x_i)
    PA        x_{i+1} = f(x_i) + x_i + sum_{j < k} gamma_j h(x_{i-j})

f: a sub-layer behind its norm.  x: (..., dim).  alpha, beta: numbers of each residual connection; A: (r, dim),
B: (dim, r); gamma: (k); h is B A, or nothing.  B starts at 0 and A_ji at 1 / sqrt(r dim) where i mod r = j and 0
elsewhere ("column orthogonal"), so that every variant starts as the plain residual connection.  A connection has 2
parameters more in RW, 2 r dim in LR, k or 2 r dim + k in PA.  Training and evaluation agree.

Where the paper leaves a choice:
  D1  "softmax or sigmoid" bounds alpha and beta: here (alpha, beta) = 2 softmax(w), which is (1, 1) at the start w = 0.
  D2  every residual connection has its own weights, two in a Transformer block; Table 5 counts one for each block.
  D3  gamma starts at 0 where h is nothing, and at 1 where h = B A: at 0 neither it nor B would ever have a gradient.
  D4  activations before the first count as 0.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from repro.models.affine import leaf
from repro.models.slots import Norm

__all__ = ["LaurelLR", "LaurelPA", "LaurelRW", "LaurelRWLR", "ReadHistory", "StartHistory"]


class LowRank(nn.Module):
    """B A x, (..., dim) -> (..., dim), 0 at the start.  Raises ValueError unless 1 <= rank <= dim."""

    def __init__(self, dim: int, rank: int):
        super().__init__()
        if not 1 <= rank <= dim:
            raise ValueError(f"rank={rank} is none of a matrix of width {dim}; write 1 to {dim}")
        row, column = torch.arange(rank)[:, None], torch.arange(dim)[None]
        self.A = nn.Parameter((column % rank == row) / math.sqrt(rank * dim))
        self.B = nn.Parameter(torch.zeros(dim, rank))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(nn.functional.linear(x, self.A), self.B)


class LaurelRW(nn.Module):
    """A placement: y = alpha f(Norm(x)) + beta x with (alpha, beta) = 2 softmax(weights), (..., dim) -> (..., dim).

    weights: (2), 0 at the start.  Leave them out of weight decay, which pulls both to 1.
    """

    total = 2.0

    def __init__(self, sublayer: nn.Module, norm: Norm, dim: int, index: int, depth: int):
        super().__init__()
        self.norm, self.sublayer = norm(dim), sublayer
        self.weights = nn.Parameter(torch.zeros(2))

    def skip(self, x: Tensor) -> Tensor:
        """What beta multiplies."""
        return x

    def forward(self, x: Tensor, *args: Any, **options: Any) -> Tensor:
        alpha, beta = self.total * self.weights.softmax(0)
        return alpha * self.sublayer(self.norm(x), *args, **options) + beta * self.skip(x)


class LaurelLR(nn.Module):
    """A placement: y = f(Norm(x)) + B A x + x, (..., dim) -> (..., dim).

    rank r: 16 for a ResNet-50, 4 and 64 for language models of one and four billion parameters.
    """

    def __init__(self, sublayer: nn.Module, norm: Norm, dim: int, index: int, depth: int, *, rank: int = 4):
        super().__init__()
        self.norm, self.sublayer, self.low_rank = norm(dim), sublayer, LowRank(dim, rank)

    def forward(self, x: Tensor, *args: Any, **options: Any) -> Tensor:
        return self.sublayer(self.norm(x), *args, **options) + self.low_rank(x) + x


class LaurelRWLR(LaurelRW):
    """A placement: y = alpha f(Norm(x)) + beta (B A x + x), (..., dim) -> (..., dim); rank as in `LaurelLR`."""

    def __init__(self, sublayer: nn.Module, norm: Norm, dim: int, index: int, depth: int, *, rank: int = 4):
        super().__init__(sublayer, norm, dim, index, depth)
        self.low_rank = LowRank(dim, rank)

    def skip(self, x: Tensor) -> Tensor:
        return self.low_rank(x) + x


@leaf
def _history(x: Tensor, k: int) -> Tensor:
    if x.shape[-2] != k:
        raise ValueError(f"input of shape {tuple(x.shape)} is not (..., {k}, dim); write StartHistory first")
    return x


@leaf
def _started(x: Tensor, k: int) -> Tensor:
    return torch.cat([x.unsqueeze(-2), x.new_zeros(*x.shape[:-1], k - 1, x.shape[-1])], -2)


class LaurelPA(nn.Module):
    """A placement over the last k activations: y = f(Norm(x_0)) + x_0 + sum_j gamma_j h(x_j).

    x: (..., k, dim), the newest first, as `StartHistory` makes it; the result has y first and has lost the oldest.
    rank: of h = B A, one for all j; None for no h.  Raises ValueError where x has no k activations.
    """

    def __init__(
        self, sublayer: nn.Module, norm: Norm, dim: int, index: int, depth: int, *, k: int = 3, rank: int | None = None
    ):
        super().__init__()
        self.norm, self.sublayer, self.k = norm(dim), sublayer, k
        self.low_rank = nn.Identity() if rank is None else LowRank(dim, rank)
        self.gamma = nn.Parameter(torch.zeros(k) if rank is None else torch.ones(k))  # D3

    def forward(self, x: Tensor, *args: Any, **options: Any) -> Tensor:
        x = _history(x, self.k)
        newest = x[..., 0, :]
        past = self.low_rank((self.gamma[:, None] * x).sum(-2))  # h is linear
        y = self.sublayer(self.norm(newest), *args, **options) + newest + past
        return torch.cat([y.unsqueeze(-2), x[..., :-1, :]], -2)


class StartHistory(nn.Module):
    """x (..., dim) -> (..., k, dim), x and k - 1 zeros (D4): for the slot `after_embedding` before `LaurelPA`."""

    def __init__(self, dim: int, k: int = 3):
        super().__init__()
        self.k = k

    def forward(self, x: Tensor) -> Tensor:
        return _started(x, self.k)


class ReadHistory(nn.Module):
    """(..., k, dim) -> norm of the newest, (..., dim): in place of the final norm after `LaurelPA`."""

    def __init__(self, norm: nn.Module):
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x[..., 0, :])
