"""SLAB: RepBN, PRepBN and SLA (Guo, Chen, Tang & Wang, ICML 2024, arXiv:2405.11582), Sec. 4.

    RepBN(x)  = BN(x; mu, sigma, gamma, beta) + eta x = BN(x; mu, sigma, gamma + eta sigma, beta + eta mu)
    PRepBN(x) = lambda LN(x) + (1 - lambda) RepBN(x),   lambda = 1 - t / T at training step t < T, 0 from then on
    SLA(x)_i  = relu(q_i) sum_j relu(k_j)^T v_j / relu(q_i) sum_j relu(k_j)^T + DWC(v)_i

x and y: (..., C), tokens (B, N, C) in a Transformer.  BN is `repro.papers.batchnorm` with its initial values and
running statistics; each channel has its own over all axes but the last, that is over B N tokens.  eta: ONE learned
number per layer, shape (1,), starts at 1.  sigma = sqrt(running variance + eps).  In evaluation PRepBN is RepBN alone,
whatever lambda is, and `fuse` makes it part of the next linear layer.  q, k, v: per head (N, K), the projections of x, k
plus a learned position that starts at 0; DWC: a depthwise 5 x 5 convolution over the grid of tokens, common to all heads.

Departures from the authors' code (xinghaochen/SLAB, prepbn.py and slab_deit.py):
  D1  x may have any number of axes before the last; theirs is (B, N, C).
  D2  norms and attention compute in float32 at least and y has the dtype of x, under autocast also.
  D3  the running statistics are gathered in the steps of LN alone (`warm`) too; theirs begin after them.
  D4  total_steps (T) has no default; theirs is 300000, which is 80 % of 300 epochs of ImageNet at batch 1024.
  D5  fuse refuses a PRepBN whose lambda is not yet 0: the network was not trained as it would be evaluated.
"""

import math

import torch
from torch import Tensor, nn

from repro.models.affine import trailing_axes
from repro.papers.batchnorm.method import BatchNorm
from repro.papers.layernorm.method import LayerNorm

__all__ = ["SLA", "PRepBN", "RepBN", "fuse"]


class RepBN(BatchNorm):
    """BN(x) + eta x over the last axis of x: (..., C) (Sec. 4.1); arguments and state dict of BatchNorm, and `eta`.

    Raises ValueError if the last axis is not C or, in training, if there is one token only; TypeError on integers.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__(num_features, eps, momentum, device=device, dtype=dtype)
        self.eta = nn.Parameter(torch.ones(1, device=device, dtype=dtype))

    def reset_parameters(self) -> None:
        super().reset_parameters()
        if hasattr(self, "eta"):  # BatchNorm's constructor comes here first
            nn.init.ones_(self.eta)

    def forward(self, x: Tensor) -> Tensor:
        trailing_axes(x, self.num_features)
        tokens = x.to(torch.promote_types(x.dtype, torch.float32)).reshape(-1, self.num_features)  # D1, D2
        return (super().forward(tokens) + self.eta * tokens).reshape(x.shape).to(x.dtype)


class PRepBN(nn.Module):
    """lambda LN(x) + (1 - lambda) RepBN(x) in training, RepBN(x) in evaluation; x: (..., C) (Sec. 4.1).

    lambda falls in a straight line from r0 to 0 over `total_steps` training steps, after `warm` steps of LN alone; a
    step is a forward pass in training mode, counted in the buffer `step`.  Raises ValueError on a total_steps below 1.
    """

    def __init__(
        self,
        num_features: int,
        total_steps: int,
        *,
        warm: int = 0,
        r0: float = 1.0,
        eps: float = 1e-5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        if total_steps < 1:
            raise ValueError(f"total_steps={total_steps}: write the number of training steps after which LN is gone")
        self.total_steps, self.warm, self.r0 = total_steps, warm, r0  # D4
        self.layernorm = LayerNorm(num_features, eps, device=device, dtype=dtype)
        self.repbn = RepBN(num_features, eps, device=device, dtype=dtype)
        self.register_buffer("step", torch.tensor(0, device=device))

    def reset_parameters(self) -> None:
        self.layernorm.reset_parameters()
        self.repbn.reset_parameters()
        self.step.zero_()

    def lam(self) -> Tensor:
        """lambda of the next training step, a scalar on the device of the module."""
        left = 1 - (self.step.double() - self.warm) / self.total_steps
        return torch.where(self.step < self.warm, 1.0, self.r0 * left.clamp(0, 1))

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return self.repbn(x)
        trailing_axes(x, self.repbn.num_features)
        wide, lam = x.to(torch.promote_types(x.dtype, torch.float32)), self.lam()  # D2
        self.step.add_(1)
        return (lam * self.layernorm(wide) + (1 - lam) * self.repbn(wide)).to(x.dtype)  # D3

    def extra_repr(self) -> str:
        return f"total_steps={self.total_steps}, warm={self.warm}, r0={self.r0}"


@torch.no_grad()
def fuse(norm: RepBN | PRepBN, linear: nn.Linear | None = None) -> BatchNorm | nn.Linear:
    """What `norm` is in evaluation, without its eta x and its LN (Sec. 4.1, lemma); `norm` and `linear` stay as they are.

    fuse(norm): a plain BatchNorm with gamma + eta sigma and beta + eta mu, in evaluation mode, for (N, C, *).
    fuse(norm, linear): a linear layer with a bias, equal to linear(norm(x)) to rounding; drop the norm when it is in place.
    Raises TypeError on another kind of norm and ValueError on a PRepBN that still has LN in it.
    """
    if isinstance(norm, PRepBN):
        if norm.lam() > 0:  # D5
            raise ValueError(f"lambda is still {norm.lam():.3g}: train past total_steps={norm.total_steps}, then fuse")
        norm = norm.repbn
    if not isinstance(norm, RepBN):
        raise TypeError(f"{type(norm).__name__} cannot be fused: write a RepBN or a PRepBN")
    mu, var, gamma, beta, eta = (
        t.double() for t in (norm.running_mean, norm.running_var, norm.weight, norm.bias, norm.eta)
    )
    sigma = (var + norm.eps).sqrt()
    if linear is None:
        plain = BatchNorm(norm.num_features, norm.eps, norm.momentum, device=mu.device, dtype=norm.weight.dtype)
        kept = {name: t for name, t in norm.state_dict().items() if name != "eta"}
        plain.load_state_dict({**kept, "weight": gamma + eta * sigma, "bias": beta + eta * mu})
        return plain.eval()
    made = nn.utils.skip_init(nn.Linear, *linear.weight.shape[::-1], device=mu.device, dtype=linear.weight.dtype)
    wide = linear.weight.double()
    made.weight.copy_(wide * (gamma / sigma + eta))
    made.bias.copy_(wide @ (beta - gamma * mu / sigma) + (0 if linear.bias is None else linear.bias))
    return made.train(linear.training)


class SLA(nn.Module):
    """Simplified linear attention (Sec. 4.2) of tokens x: (B, N, dim) on a grid (rows, columns), N = rows columns.

    (relu(q) relu(k)^T) v is computed as relu(q) (relu(k)^T v), at a cost linear in N; the denominator is kept above 0 by
    eps.  Raises ValueError if heads does not divide dim or N is not the size of the grid.
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
            y = self.attend(*(t.to(torch.promote_types(t.dtype, torch.float32)) for t in (q, k, v))).to(v.dtype)  # D2
        local = self.dwc(v.transpose(-2, -1).flatten(0, 1).unflatten(-1, self.grid)).flatten(-2)
        y = y + local.transpose(-2, -1).unflatten(0, (-1, self.heads))
        return self.proj(y.transpose(1, 2).flatten(-2)).to(x.dtype)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The attention without DWC; q, k, v and the result: (B, heads, N, K)."""
        q, k = q.relu(), k.relu()
        return q @ (k.transpose(-2, -1) @ v) / (q @ k.sum(-2).unsqueeze(-1) + self.eps)
