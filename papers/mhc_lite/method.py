"""mHC-lite (Yang & Gao 2026, arXiv:2601.05732) and mHC (Xie et al. 2025, arXiv:2512.24880), whose streams it mixes.

    X' = H_res X + H_post f(H_pre X)        X: (..., n, C), n residual streams of a token; f: a sub-layer of (..., C)

    v       = RMSNorm of all n C entries of X, with a gain 1 + gamma, gamma = 0 at the start
    H_pre   = sigmoid(s_pre v A_pre + a_pre)             (..., n)
    H_post  = 2 sigmoid(s_post v A_post + a_post)        (..., n)
    H_res   = mHC        Sinkhorn(s_res v A_res + a_res)         (..., n, n): exp, then 20 times columns, then rows
              mHC-lite   sum_r p_r P_r, p = softmax(s_res v A_res + a_res)   over the n! permutations P_r

Stream t of X' is the sum over s of H_res[s, t] X_s.  mHC-lite's H_res is doubly stochastic for every p; of mHC's the
rows, which are normalised last, sum to 1, and the columns where 20 rounds were enough.  At the start all A are 0 and
all s 0.01; a_res is 0 for the identity (on the diagonal) and -8 elsewhere; a_pre and a_post are 1 for one stream and
-1 for the others.  The embedded token is copied to all streams, and the final norm of each is summed over them.
Training and evaluation agree.  The authors' code: FFTYYY/mhc-lite, hyper_conn/.

  D1  the first stream of residual connection `index` is index mod n, where the authors draw it at random.
  D2  s_post has the shape (1,), where the authors have a scalar, which torch's fully_shard refuses.
"""

import math
from itertools import permutations
from typing import Any

import torch
from torch import Tensor, nn

from repro.models.affine import leaf, wide
from repro.models.slots import Norm

__all__ = ["MHC", "ExpandStreams", "MHCLite", "SumStreams", "mix_permutations", "sinkhorn"]


def sinkhorn(logits: Tensor, iterations: int = 20) -> Tensor:
    """exp(logits), (..., n, n), with columns (axis -2) and then rows divided by their sums, `iterations` times."""
    for _ in range(iterations):
        logits = logits - logits.logsumexp(-2, keepdim=True)
        logits = logits - logits.logsumexp(-1, keepdim=True)
    return logits.exp()


def mix_permutations(logits: Tensor, table: Tensor) -> Tensor:
    """sum_r softmax(logits)_r P_r.  logits: (..., n!); table: (n!, n, n), the permutations; result: (..., n, n)."""
    return (logits.softmax(-1) @ table.flatten(1)).unflatten(-1, table.shape[1:])


@leaf
def _as_streams(x: Tensor, streams: int, dim: int) -> Tensor:
    """Return x.  Raise ValueError where it is not (..., streams, dim)."""
    if x.shape[-2:] != (streams, dim):
        raise ValueError(f"input of shape {tuple(x.shape)} is not (..., {streams}, {dim}); write ExpandStreams first")
    return x


class MHC(nn.Module):
    """A placement over streams: X' = H_res X + H_post f(Norm(H_pre X)), (..., n, dim) -> (..., n, dim), by Sinkhorn.

    Raises ValueError where the input has not `streams` streams of width dim.
    """

    def __init__(
        self,
        sublayer: nn.Module,
        norm: Norm,
        dim: int,
        index: int,
        depth: int,
        *,
        streams: int = 4,
        iterations: int = 20,
    ):
        super().__init__()
        self.norm, self.sublayer = norm(dim), sublayer
        self.dim, self.streams, self.iterations = dim, streams, iterations
        one = torch.full((streams,), -1.0)
        one[index % streams] = 1.0  # D1
        self.gamma = nn.Parameter(torch.zeros(streams * dim))
        for name, bias in (("pre", one), ("post", one.clone()), ("res", self.start())):
            self.register_parameter(f"A_{name}", nn.Parameter(torch.zeros(streams * dim, len(bias))))
            self.register_parameter(f"a_{name}", nn.Parameter(bias))
            self.register_parameter(f"s_{name}", nn.Parameter(torch.full((1,), 0.01)))  # D2

    def start(self) -> Tensor:
        """a_res at the start, flat."""
        return 8 * (torch.eye(self.streams) - 1).flatten()

    def residual(self, logits: Tensor) -> Tensor:
        """H_res (..., n, n) of its logits."""
        return sinkhorn(logits.unflatten(-1, (self.streams, self.streams)), self.iterations)

    def mixing(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """H_pre (..., n), H_post (..., n) and H_res (..., n, n) of streams x (..., n, dim), in float32 at least."""
        v = wide(x).flatten(-2)
        v = nn.functional.normalize(v, dim=-1) * math.sqrt(self.streams * self.dim) * (1 + self.gamma)

        def logits(name: str) -> Tensor:
            s, matrix, bias = (getattr(self, f"{kind}_{name}").to(v.dtype) for kind in "sAa")
            return s * (v @ matrix) + bias

        return logits("pre").sigmoid(), 2 * logits("post").sigmoid(), self.residual(logits("res"))

    def forward(self, x: Tensor, *args: Any, **options: Any) -> Tensor:
        x = _as_streams(x, self.streams, self.dim)
        pre, post, res = (h.to(x.dtype) for h in self.mixing(x))
        y = self.sublayer(self.norm((pre.unsqueeze(-2) @ x).squeeze(-2)), *args, **options)
        return res.mT @ x + post.unsqueeze(-1) * y.unsqueeze(-2)


class MHCLite(MHC):
    """A placement over streams: as `MHC`, with H_res = sum_r p_r P_r over all n! permutations, doubly stochastic.

    The permutations are those of itertools, the identity first.  n = 4 has 24, n = 8 would have 40,320.
    """

    def __init__(self, sublayer: nn.Module, norm: Norm, dim: int, index: int, depth: int, *, streams: int = 4):
        super().__init__(sublayer, norm, dim, index, depth, streams=streams)
        table = torch.eye(streams)[torch.tensor(list(permutations(range(streams))))]
        self.register_buffer("table", table, persistent=False)

    def start(self) -> Tensor:
        logits = torch.full((math.factorial(self.streams),), -8.0)
        logits[0] = 0.0
        return logits

    def residual(self, logits: Tensor) -> Tensor:
        return mix_permutations(logits, self.table.to(logits.dtype))


class ExpandStreams(nn.Module):
    """x (..., dim) -> (..., n, dim), n copies: for the slot `after_embedding` before `MHC` or `MHCLite`."""

    def __init__(self, dim: int, streams: int = 4):
        super().__init__()
        self.streams = streams

    def forward(self, x: Tensor) -> Tensor:
        return x.unsqueeze(-2).expand(*x.shape[:-1], self.streams, x.shape[-1])


class SumStreams(nn.Module):
    """(..., n, dim) -> the sum over the streams of the norm of each, (..., dim): in place of the final norm."""

    def __init__(self, norm: nn.Module):
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x).sum(-2)
