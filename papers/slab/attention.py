"""Simplified linear attention, SLA, of SLAB (Guo, Chen, Tang & Wang, ICML 2024, arXiv:2405.11582), Sec. 4.2.

    SLA(x)_i  = relu(q_i) sum_j relu(k_j)^T v_j / relu(q_i) sum_j relu(k_j)^T + DWC(v)_i

The symbols are those of method.py.  The authors' code is slab_deit.py of xinghaochen/SLAB.
"""

import math

import torch
from torch import Tensor, nn

from repro.models.affine import wide

__all__ = ["SLA"]


class SLA(nn.Module):
    """Simplified linear attention (Sec. 4.2) of tokens x: (B, N, dim) on a grid (rows, columns), N = rows columns.

    (relu(q) relu(k)^T) v is computed as relu(q) (relu(k)^T v), at a cost linear in N; the denominator is kept above 0
    by eps.  Raises ValueError if heads does not divide dim or N is not the size of the grid.
    """

    def __init__(self, dim: int, heads: int, grid: tuple[int, int], *, bias: bool = True, eps: float = 1e-6):
        super().__init__()
        if dim % heads:
            raise ValueError(f"heads={heads} must divide dim={dim}: write another number of heads")
        self.heads, self.grid, self.eps = heads, grid, eps
        self.qkv, self.proj = nn.Linear(dim, 3 * dim, bias=bias), nn.Linear(dim, dim)
        self.dwc = nn.Conv2d(dim // heads, dim // heads, 5, padding=2, groups=dim // heads)
        self.positional_encoding = nn.Parameter(torch.zeros(1, math.prod(grid), dim))

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1:2] != (math.prod(self.grid),):
            raise ValueError(f"{tuple(x.shape)} does not hold the tokens of a {self.grid} grid: write (B, N, dim)")
        q, k, v = self.qkv(x).chunk(3, -1)
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, k + self.positional_encoding, v))
        with torch.autocast(x.device.type, enabled=False):
            y = self.attend(*map(wide, (q, k, v))).to(v.dtype)
        local = self.dwc(v.transpose(-2, -1).flatten(0, 1).unflatten(-1, self.grid)).flatten(-2)
        y = y + local.transpose(-2, -1).unflatten(0, (-1, self.heads))
        return self.proj(y.transpose(1, 2).flatten(-2)).to(x.dtype)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The attention without DWC; q, k, v and the result: (B, heads, N, K)."""
        q, k = q.relu(), k.relu()
        return q @ (k.transpose(-2, -1) @ v) / (q @ k.sum(-2).unsqueeze(-1) + self.eps)
