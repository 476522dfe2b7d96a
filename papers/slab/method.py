"""SLAB: RepBN, PRepBN and SLA (Guo, Chen, Tang & Wang, ICML 2024, arXiv:2405.11582), Sec. 4.

    RepBN(x)  = BN(x; mu, sigma, gamma, beta) + eta x = BN(x; mu, sigma, gamma + eta sigma, beta + eta mu)
    PRepBN(x) = lambda LN(x) + (1 - lambda) RepBN(x),   lambda = 1 - t / T at training step t < T, 0 from then on
    SLA(x)_i  = relu(q_i) sum_j relu(k_j)^T v_j / relu(q_i) sum_j relu(k_j)^T + DWC(v)_i

x and y have the shape (..., C), tokens (B, N, C) in a Transformer.  BN is `repro.papers.batchnorm` with its initial
values and running statistics; each channel has its own over all axes but the last, that is over B N tokens.  eta is ONE
learned number per layer, of shape (1,), and starts at 1; sigma = sqrt(running variance + eps).  In evaluation PRepBN is
RepBN alone, whatever lambda is, and `fuse` makes it part of the next linear layer.  q, k, v are, per head (N, K), the
projections of x, k plus a learned position that starts at 0.  DWC is a depthwise 5 x 5 convolution over the grid of
tokens, common to all heads.  SLA itself stands in attention.py.

We depart from the authors' code (xinghaochen/SLAB, prepbn.py and slab_deit.py) in four places:
  D1  x may have any number of axes before the last; theirs is (B, N, C).
  D2  The running statistics are gathered in the steps of LN alone (`warm`) too; theirs begin after them.
  D3  total_steps (T) has no default; theirs is 300000, which is 80 % of 300 epochs of ImageNet at batch 1024.
  D4  fuse refuses a PRepBN whose lambda is not yet 0: the network was not trained as it would be evaluated.
"""

import torch
from torch import Tensor, nn

from repro.models.affine import never_fuse, trailing_axes, wide
from repro.models.recompute import Rewind, recomputing
from repro.papers.batchnorm.method import BatchNorm
from repro.papers.layernorm.method import LayerNorm

__all__ = ["PRepBN", "RepBN", "fuse"]


BUFFERS = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


class RepBN(nn.Module):
    """BN(x) + eta x over the last axis of x: (..., C) (Sec. 4.1); arguments of BatchNorm, which is its part `bn`.

    The state dict is that of the authors, with `eta` for their alpha; one of a BatchNorm loads but for eta.
    Raises ValueError if the last axis is not C or, in training, if there is one token only; TypeError on integers.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        self.bn = BatchNorm(num_features, eps, momentum, affine, track_running_stats, device, dtype)
        self.eta = nn.Parameter(torch.ones(1, device=device, dtype=dtype))
        self.register_load_state_dict_pre_hook(self.rename)
        never_fuse(self)

    @staticmethod
    def rename(module: nn.Module, state: dict, prefix: str, *_: object) -> None:
        for name in BUFFERS:
            if prefix + name in state:
                state[f"{prefix}bn.{name}"] = state.pop(prefix + name)

    @property
    def eps(self) -> float:
        return self.bn.eps

    def reset_parameters(self) -> None:
        self.bn.reset_parameters()
        nn.init.ones_(self.eta)

    def forward(self, input: Tensor) -> Tensor:
        trailing_axes(input, self.bn.num_features)
        tokens = wide(input).reshape(-1, self.bn.num_features)  # D1
        return (self.bn(tokens) + self.eta * tokens).reshape(input.shape).to(input.dtype)


class PRepBN(nn.Module):
    """lambda LN(x) + (1 - lambda) RepBN(x) in training, RepBN(x) in evaluation; x: (..., C) (Sec. 4.1).

    lambda falls in a straight line from r0 to 0 over `total_steps` training steps, after `warm` steps of LN alone; a
    step is a forward pass in training mode, counted in the buffer `step`.  Raises ValueError on a total_steps below 1.
    """

    def __init__(
        self,
        num_features: int,
        total_steps: int,
        eps: float = 1e-5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        warm: int = 0,
        r0: float = 1.0,
    ):
        super().__init__()
        if total_steps < 1:
            raise ValueError(f"total_steps={total_steps}: write the number of training steps after which LN is gone")
        self.total_steps, self.warm, self.r0 = total_steps, warm, r0  # D3
        self.layernorm = LayerNorm(num_features, eps, device=device, dtype=dtype)
        self.repbn = RepBN(num_features, eps, device=device, dtype=dtype)
        self.register_buffer("step", torch.zeros((), device=device, dtype=torch.long))
        self.before = Rewind()
        never_fuse(self)

    @property
    def eps(self) -> float:
        return self.layernorm.eps

    def reset_parameters(self) -> None:
        self.layernorm.reset_parameters()
        self.repbn.reset_parameters()
        self.step.zero_()

    def lam(self, step: Tensor | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return lambda of a training step, the next one if not given, a scalar on the device of the module."""
        step = self.step if step is None else step
        left = 1 - (step - self.warm).to(dtype) / self.total_steps
        return torch.where(step < self.warm, 1.0, self.r0 * left.clamp(0, 1))

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return self.repbn(input)
        trailing_axes(input, self.repbn.bn.num_features)
        x = wide(input)
        (step,) = self.before(lambda: x.flatten(0, -2).sum(0), (self.step,))
        lam = self.lam(step, x.dtype)
        if not recomputing():
            self.step.add_(1)
        return (lam * self.layernorm(x) + (1 - lam) * self.repbn(x)).to(input.dtype)  # D2

    def extra_repr(self) -> str:
        return f"total_steps={self.total_steps}, warm={self.warm}, r0={self.r0}"


@torch.no_grad()
def fuse(norm: RepBN | PRepBN, linear: nn.Linear | None = None) -> BatchNorm | nn.Linear:
    """What `norm` is in evaluation, without its eta x and its LN (Sec. 4.1, lemma); `norm` and `linear` stay as they
    are.

    fuse(norm): a plain BatchNorm with gamma + eta sigma and beta + eta mu, in evaluation mode, for (N, C, *).
    fuse(norm, linear): a linear layer with a bias, equal to linear(norm(x)) to rounding; drop the norm when it is in
    place. Raises TypeError on another kind of norm and ValueError on a PRepBN that still has LN in it.
    """
    if isinstance(norm, PRepBN):
        if norm.lam() > 0:  # D4
            raise ValueError(f"lambda is still {norm.lam():.3g}: train past total_steps={norm.total_steps}, then fuse")
        norm = norm.repbn
    if not isinstance(norm, RepBN):
        raise TypeError(f"{type(norm).__name__} cannot be fused: write a RepBN or a PRepBN")
    bn, eta = norm.bn, norm.eta.double()
    mu, var = bn.running_mean.double(), bn.running_var.double()
    gamma, beta = (1.0, 0.0) if bn.weight is None else (bn.weight.double(), bn.bias.double())
    sigma = (var + bn.eps).sqrt()
    if linear is None:
        plain = BatchNorm(bn.num_features, bn.eps, bn.momentum, device=mu.device, dtype=norm.eta.dtype)
        plain.load_state_dict({**bn.state_dict(), "weight": gamma + eta * sigma, "bias": beta + eta * mu})
        return plain.eval()
    made = nn.utils.skip_init(nn.Linear, *linear.weight.shape[::-1], device=mu.device, dtype=linear.weight.dtype)
    matrix = linear.weight.double()
    made.weight.copy_(matrix * (gamma / sigma + eta))
    made.bias.copy_(matrix @ (beta - gamma * mu / sigma) + (0 if linear.bias is None else linear.bias))
    return made.train(linear.training)
