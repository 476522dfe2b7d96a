"""EvoNorm-B0 and EvoNorm-S0 (Liu, Brock, Simonyan & Le, NeurIPS 2020, arXiv:2004.02967).

    B0:  y = gamma x / max( sqrt(var_bwh(x) + eps), v x + sqrt(var_wh(x) + eps) ) + beta
    S0:  y = gamma x sigmoid(v x) / sqrt(var_whg(x) + eps) + beta

One layer in place of a norm and the activation behind it.  x, y: (N, C, H, W), also one or three axes of places.
var_bwh: of a channel over the batch and its places; var_wh: of a channel of one image; var_whg: of a group of channels
of one image.  The x above is not centred, the variances are about their means.  v, gamma ("weight") and beta ("bias"):
(C,), start at 1, 1 and 0.  In evaluation a moving average takes the place of var_bwh; everything else is the same, so
that S0 has no modes and no image sees another.

"The authors' code": tensorflow/tpu, models/official/resnet/resnet_model.py.

  D1  eps = 1e-5 inside every root, and biased variances, as there; timm's B0 has 1e-3.
  D2  running_var <- 0.9 running_var + 0.1 var_bwh, of the biased variance, from 1 on, as there; timm takes the
      unbiased.
  D3  S0 has 32 groups, or the next smaller number of groups that divides C, as there.
  D4  nonlinearity=False is gamma x + beta alone: what stands, as there, where a norm has no activation behind it (at
      the end of a residual branch and behind a projection; the ReLU after the addition stays).
  D5  (N, C) is refused: without places var_wh is 0, and so is var_whg where a group has one channel.
"""

import torch
from torch import Tensor, nn

from repro.models.affine import Affine, channels_first, leaf
from repro.models.recompute import recomputing

__all__ = ["EvoNormB0", "EvoNormS0"]


@leaf
def deviation(x: Tensor, eps: float, batch: bool = False) -> tuple[Tensor, Tensor]:
    """Return sqrt(var + eps) and var over all axes from the third on (and the batch): biased."""
    axes = (*((0,) if batch else ()), *range(2, x.dim()))
    variance = (x - x.mean(axes, keepdim=True)).square().mean(axes, keepdim=True)
    return (variance + eps).sqrt(), variance


@leaf
def column(x: Tensor, t: Tensor) -> Tensor:
    """Return t: (C,) as (C, 1, ...), to stand beside x."""
    return t.view(-1, *[1] * (x.dim() - 2))


class _EvoNorm(Affine):
    """What B0 and S0 share: the parameters, and gamma activate(x, v) + beta."""

    v: nn.Parameter | None

    def __init__(
        self,
        num_features: int,
        eps: float,
        nonlinearity: bool,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ):
        super().__init__(num_features, device=device, dtype=dtype)
        self.num_features, self.eps, self.nonlinearity = int(num_features), eps, nonlinearity
        empty = torch.empty(num_features, device=device, dtype=dtype) if nonlinearity else None  # D4
        self.register_parameter("v", None if empty is None else nn.Parameter(empty))

    def reset_parameters(self) -> None:
        super().reset_parameters()
        if self.v is not None:
            nn.init.ones_(self.v)

    def forward(self, input: Tensor) -> Tensor:
        x = channels_first(input, self.num_features)  # D5
        y = x if self.v is None else self.activate(x, column(x, self.v))
        return (y * column(x, self.weight) + column(x, self.bias)).to(input.dtype)

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps}, nonlinearity={self.nonlinearity}"


class EvoNormB0(_EvoNorm):
    """gamma x / max(batch deviation, v x + deviation within the image) + beta (Sec. on EvoNorms, B0).

    x: (N, C, *places); ValueError otherwise, TypeError for integers.  State dict: weight, bias, v, running_var.
    momentum: the weight of a batch in running_var, which evaluation takes in place of the batch's variance.  For v >
    0, with gamma 1 and beta 0, y < 1 / v.  nonlinearity=False: gamma x + beta, without v and running_var.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float = 0.1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        nonlinearity: bool = True,
    ):
        super().__init__(num_features, eps, nonlinearity, device, dtype)
        self.momentum = momentum
        empty = torch.empty(num_features, device=device, dtype=dtype) if nonlinearity else None
        self.register_buffer("running_var", empty)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        super().reset_parameters()
        if self.running_var is not None:
            self.running_var.fill_(1)

    def activate(self, x: Tensor, v: Tensor) -> Tensor:
        if self.training:
            batch, variance = deviation(x, self.eps, batch=True)
            if x.numel() and not recomputing():
                with torch.no_grad():  # by copy_, so that buffers stacked for torch.func.vmap are updated too
                    self.running_var.copy_((1 - self.momentum) * self.running_var + self.momentum * variance.flatten())
        else:
            batch = (self.running_var.view(v.shape) + self.eps).sqrt()
        return x / torch.maximum(batch, v * x + deviation(x, self.eps)[0])


class EvoNormS0(_EvoNorm):
    """gamma x sigmoid(v x) / (deviation within the image's group of channels) + beta (Figure 1).

    x: (N, C, *places); ValueError otherwise, TypeError for integers.  State dict: weight, bias, v.  num_groups: 32
    unless given (D3); ValueError if it does not divide num_features.  Training and evaluation are the same.
    nonlinearity=False: gamma x + beta, without v.
    """

    def __init__(
        self,
        num_features: int,
        num_groups: int | None = None,
        eps: float = 1e-5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        nonlinearity: bool = True,
    ):
        super().__init__(num_features, eps, nonlinearity, device, dtype)
        if num_groups is None:  # D3
            num_groups = next(g for g in range(32, 0, -1) if num_features % g == 0)
        if num_groups < 1 or num_features % num_groups:
            raise ValueError(f"num_groups={num_groups} does not divide num_features={num_features}: write a divisor")
        self.num_groups = num_groups
        self.reset_parameters()

    def activate(self, x: Tensor, v: Tensor) -> Tensor:
        groups = (self.num_groups, self.num_features // self.num_groups)
        root, _ = deviation(x.unflatten(1, groups), self.eps)
        return ((x * torch.sigmoid(v * x)).unflatten(1, groups) / root).flatten(1, 2)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, num_groups={self.num_groups}"
