"""Weight Standardization and Batch-Channel Normalization (Qiao, Wang, Liu, Shen & Yuille, 2019, arXiv:1903.10520 v2).

    W_hat_ij = (W_ij - mu_i) / sigma_i,   mu_i = (1/n) sum_j W_ij,   sigma_i = sqrt((1/n) sum_j W_ij^2 - mu_i^2 + eps)
    BCN(x) = CN(BN(x))

W and W_hat have the shape (outputs, ...); the filter of output i holds n weights.  The layer computes with W_hat,
without a gain of its own, and the optimizer moves W: gradients go through mu and sigma.  It is meant for layers that a
norm follows.

BN is batch normalization, per channel, with gain and bias (1 and 0 at first).  CN splits each image's channels into
groups; every group is centred and divided by its deviation over channels and places, and has one gain and one bias (1
and 0).  In micro-batches BN is EstBN, which in training too normalises with running estimates that carry no gradient:

    var  <- (1 - r) var  + r mean((x - mean)^2),      mean <- (1 - r) mean + r mean(x)

x and y have the shape (N, C, H, W), or one or three axes of places.  r ("estbn_moving_speed") is a buffer, to be
lowered with the learning rate.  "The authors' code": joe-siyuan-qiao/WeightStandardization and
Batch-Channel-Normalization.

  D1  eps = 1e-5, and sigma as in the equation of v2: biased, eps inside the root.  v1 and the authors' first code add
      eps to the unbiased deviation, their second puts it inside the unbiased one, timm has 1e-6.  Up to eps the norm
      that follows sees no difference.
  D2  A filter of one weight, which would be standardised to 0, is refused.
  D3  EstBN's variance is about the mean of before the update, as in the authors' code; both are updated before use.
  D4  r starts at 0.1.  In the authors' code it starts at 0, where EstBN never learns anything until it is set.
  D5  32 groups, as there; else the largest number below 32 that divides C and leaves two channels to a group, or 1.
  D6  BCN refuses (N, C), where CN would have no places and next to no values to average over.
"""

from typing import Any

import torch
from torch import Tensor, nn

from repro.models.affine import channels_first, leaf, load_with_shape, never_fuse, wide
from repro.models.recompute import Rewind, recomputing
from repro.papers.batchnorm.method import BatchNorm, batch_norm

__all__ = ["BatchChannelNorm", "EstBN", "WSConv2d", "standardize"]


@leaf
def standardize(weight: Tensor, eps: float = 1e-5) -> Tensor:
    """Return W_hat = (W - mu) / sqrt(sigma^2 + eps), filter by filter (Eq. 10 of v2, D1).  weight: (outputs, ...).

    Raises ValueError for filters of one weight.
    """
    if weight[0].numel() < 2:
        raise ValueError("a filter of one weight is standardised to 0: write fewer groups, or nn.Conv2d")
    rows = wide(weight).flatten(1)
    variance, mean = torch.var_mean(rows, 1, correction=0, keepdim=True)
    return ((rows - mean) / (variance + eps).sqrt()).view_as(weight).to(weight.dtype)


class WSConv2d(nn.Conv2d):
    """nn.Conv2d that convolves with `standardize(weight, eps)` (Eq. 10 of v2).  Arguments and state dict of nn.Conv2d.

    ValueError at the first use if a filter has one weight, as in a depthwise 1 x 1 convolution.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        eps: float = 1e-5,
    ):
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype
        )
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, standardize(self.weight, self.eps), self.bias)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, eps={self.eps}"


class EstBN(BatchNorm):
    """weight (x - mean) / sqrt(var + eps) + bias with running estimates, in training too (Algorithm of micro-batch
    BCN).

    x: (N, C, *).  `momentum` is the first value of the buffer r; change it by `norm.estbn_moving_speed.fill_(r)`.
    With momentum None the estimates are averages over all batches, each variance around its own batch's mean, as
    `torch.optim.swa_utils.update_bn` wants them.  `convert_sync_batchnorm` would make a batch norm of it.  The state
    dict is that of the authors' EstBN.  TypeError for integers, ValueError for another number of channels.
    """

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self.before = Rewind()

    def reset_running_stats(self) -> None:
        super().reset_running_stats()
        if not hasattr(self, "estbn_moving_speed"):  # the first call, from the constructor
            self.register_buffer("estbn_moving_speed", self.running_var.new_empty(1))
        self.estbn_moving_speed.fill_(self.momentum)  # D4

    def forward(self, input: Tensor) -> Tensor:
        mean, var = self.running_mean, self.running_var
        if self.training and input.numel():
            mean, var = self.updated(channels_first(input, self.num_features, 2).detach().transpose(0, 1).flatten(1))
        return batch_norm(input, mean, var, self.weight, self.bias, eps=self.eps)

    @torch.no_grad()
    def updated(self, channels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the running estimates with this batch (C, values), and keep them."""
        now, buffers, r = channels.mean(1), (self.running_mean, self.running_var), self.estbn_moving_speed
        old_mean, old_var = self.before(lambda: now, buffers)
        centre = old_mean  # D3
        if self.momentum is None:
            r, centre = 1 / (self.num_batches_tracked + 1), now
        around = (channels - centre[:, None]).square().mean(1)
        new = ((1 - r) * old_mean + r * now, (1 - r) * old_var + r * around)
        if not recomputing():
            for buffer, value in zip(buffers, new, strict=True):
                buffer.copy_(value)
            self.num_batches_tracked.add_(1)
        return new


@leaf
def channel_norm(z: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Return CN(z): as many groups of channels as `weight` has entries.  z: (N, C, *)."""
    groups = z.unflatten(1, (len(weight), z.shape[1] // len(weight)))
    inside = tuple(range(2, groups.dim()))  # the channels of a group, and places
    centred = groups - groups.mean(inside, keepdim=True)
    variance = centred.square().mean(inside, keepdim=True)
    weight, bias = (t.view(-1, *[1] * (groups.dim() - 2)) for t in (weight, bias))
    return (centred / (variance + eps).sqrt() * weight + bias).flatten(1, 2)


class BatchChannelNorm(nn.Module):
    """y = CN(BN(x)): batch norm `bn`, then group norm with one number of `weight` and `bias` (num_groups,) per group.

    estimate=False: `bn` is batch normalization, for large batches (train and eval differ as there); True: EstBN, for
    micro-batches.  num_groups: 32 unless given (D5); momentum: that of the running statistics, of EstBN the first r.
    x: (N, C, *places), ValueError otherwise (D6), or if num_groups does not divide num_features.  State dict: the
    authors', whose weight and bias (1, num_groups, 1) load too.
    """

    def __init__(
        self,
        num_features: int,
        num_groups: int | None = None,
        eps: float = 1e-5,
        momentum: float = 0.1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        estimate: bool = False,
    ):
        super().__init__()
        if num_groups is None:  # D5
            num_groups = next(g for g in range(max(1, min(32, num_features // 2)), 0, -1) if num_features % g == 0)
        if num_groups < 1 or num_features % num_groups:
            raise ValueError(f"num_groups={num_groups} does not divide num_features={num_features}: write a divisor")
        self.num_features, self.num_groups, self.eps = int(num_features), int(num_groups), eps
        self.weight, self.bias = (nn.Parameter(torch.empty(num_groups, device=device, dtype=dtype)) for _ in "12")
        load_with_shape(self, "weight", "bias")
        never_fuse(self)
        self.bn = (EstBN if estimate else BatchNorm)(num_features, eps, momentum, device=device, dtype=dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)
        self.bn.reset_parameters()

    def forward(self, input: Tensor) -> Tensor:
        z = self.bn(channels_first(input, self.num_features))
        return channel_norm(z, self.weight, self.bias, self.eps).to(input.dtype)

    def extra_repr(self) -> str:
        return f"{self.num_features}, num_groups={self.num_groups}, eps={self.eps}"
