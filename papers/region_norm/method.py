"""Region Normalization (Yu et al., AAAI 2020, arXiv:1911.10375), Section 3.

With a mask that is 1 in the hole and 0 elsewhere, each sample and channel is normalized in its two regions R apart:

    mu_R = mean of x over R      s2_R = mean of (x - mu_R)^2 over R      x^ = (x - mu_R) / sqrt(s2_R + eps) on R

    RN-B, for the first layers      y = (1 + gamma_R) x^ + beta_R, two vectors for the hole and two for the rest
    RN-L, for the others, no mask   s = sigmoid(conv(mean over channels of x, maximum over channels of x))
                                    y = (1 + gamma(s)) x^ + beta(s), the hole being where s >= t = 0.8

x and y have the shape (B, C, H, W), mask (B, 1, H', W'), resized to the nearest pixel, s (B, 1, H, W).  gamma_R and
beta_R have the shape (C,) and start at 0.  conv, gamma and beta are 7 x 7 convolutions to one channel, which all
channels share, with torch's initial values.  The gradient flows through mu_R and s2_R, not through the mask.  There are
no running
statistics: training and evaluation agree.

The authors' code (geekyutao/RN, rn.py) differs from the paper, or the paper is silent, in five places:
  D1  Statistics are those of a sample, as in the paper; theirs are those of the batch: batchwise=True.
  D2  eps = 1e-5 is added to s2_R.  Their detour (the other region filled with mu_R, batch norm over everything, times
      sqrt(|R| / all)) adds eps all / |R| instead, which hushes small regions: batchwise=True does so too.
  D3  beta_R of RN-B acts on its region; theirs, both are added everywhere, so that only their sum matters.
  D4  An empty region takes no part, and a region of one pixel, or of one value, gives 0.
  D5  RN-L computes s without autocast, since rounding would move pixels to the other region.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from repro.models.affine import leaf, wide

__all__ = ["RegionNormB", "RegionNormL", "region_norm"]


@leaf
def region_norm(x: Tensor, mask: Tensor, eps: float = 1e-5, *, batchwise: bool = False) -> Tensor:
    """Return x^ of x: (B, C, H, W), without any affine map; mask: (B, 1, H, W), 1 or True in the hole, 0 elsewhere
    (Section 3).

    batchwise=True: mu and s2 over the whole batch, and eps, as in the authors' code (D1, D2).
    Raises ValueError if a shape does not fit, TypeError if x is an integer.
    """
    if x.dim() != 4 or mask.shape != (x.shape[0], 1, *x.shape[2:]):
        raise ValueError(f"x {tuple(x.shape)} and mask {tuple(mask.shape)} are not (B, C, H, W) and (B, 1, H, W)")
    values, axes = wide(x), (0, 2, 3) if batchwise else (2, 3)
    hole, y = mask.detach().to(values.dtype), torch.zeros_like(values)
    for region in (hole, 1 - hole):
        size = region.sum(axes, keepdim=True).clamp(min=1)  # D4
        centred = (values - (values * region).sum(axes, keepdim=True) / size) * region
        variance = centred.square().sum(axes, keepdim=True) / size
        diluted = mask.numel() / size if batchwise else 1  # D2
        y = y + centred / (variance + eps * diluted).sqrt()
    return y.to(x.dtype)


@leaf
def images(x: Tensor, channels: int) -> Tensor:
    """Return x: (B, channels, H, W) in float32 at least.  Raise ValueError for another shape."""
    if x.dim() != 4 or x.shape[1] != channels:
        raise ValueError(f"input of shape {tuple(x.shape)} is not (B, {channels}, H, W)")
    return wide(x)


@leaf
def self_aware_maps(x: Tensor, pool: Tensor, *maps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return s, gamma(s) and beta(s) in the precision of the kernels; pool: the one of s; maps: weights and biases."""
    same = {"padding": pool.shape[-1] // 2}
    with torch.autocast(x.device.type, enabled=False):  # D5
        x = x.to(pool.dtype)
        pooled = torch.cat([x.mean(1, keepdim=True), x.max(1, keepdim=True).values], 1)
        s = torch.sigmoid(F.conv2d(pooled, pool, **same))
        return s, F.conv2d(s, *maps[:2], **same), F.conv2d(s, *maps[2:], **same)


class RegionNormB(nn.Module):
    """RN-B, basic region normalization with a gain and a bias per region and channel: forward(x, mask) (Section 3).

    State dict of the authors' RN_B.  mask: (B, 1, H', W') of any size, 1 in the hole.  batchwise: as in `region_norm`.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        batchwise: bool = False,
    ):
        super().__init__()
        self.num_features, self.eps, self.batchwise = int(num_features), eps, batchwise
        for name in ("foreground_gamma", "foreground_beta", "background_gamma", "background_beta"):
            self.register_parameter(name, nn.Parameter(torch.empty(num_features, device=device, dtype=dtype)))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for p in self.parameters():
            nn.init.zeros_(p)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        if x.dim() != 4 or x.shape[1] != self.num_features or mask.shape[:2] != (x.shape[0], 1):
            raise ValueError(
                f"x {tuple(x.shape)} is not (B, {self.num_features}, H, W), "
                f"or mask {tuple(mask.shape)} not (B, 1, H', W')"
            )
        values = wide(x)
        hole = F.interpolate(mask.detach().to(values.dtype), x.shape[2:], mode="nearest")
        y = region_norm(values, hole, self.eps, batchwise=self.batchwise)
        in_hole, elsewhere = (
            (self.foreground_gamma, self.foreground_beta),
            (self.background_gamma, self.background_beta),
        )
        gamma, beta = (
            hole * a.view(-1, 1, 1) + (1 - hole) * b.view(-1, 1, 1) for a, b in zip(in_hole, elsewhere, strict=True)
        )  # D3
        return (y * (1 + gamma) + beta).to(x.dtype)

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps}, batchwise={self.batchwise}"


class SelfAwareAffine(nn.Module):
    """The map s and the two maps gamma(s) and beta(s) that RN-L takes from x (Section 3)."""

    def __init__(self, kernel_size: int, device: torch.device | str | None, dtype: torch.dtype | None):
        super().__init__()
        like = {"padding": kernel_size // 2, "device": device, "dtype": dtype}
        self.conv1 = nn.Conv2d(2, 1, kernel_size, bias=False, **like)
        self.gamma_conv, self.beta_conv = (nn.Conv2d(1, 1, kernel_size, **like) for _ in range(2))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        gamma, beta = self.gamma_conv, self.beta_conv
        return self_aware_maps(x, self.conv1.weight, gamma.weight, gamma.bias, beta.weight, beta.bias)


class RegionNormL(nn.Module):
    """RN-L, learnable region normalization, which finds the hole by itself: forward(x) (Section 3).

    State dict of the authors' RN_L.  threshold: of s, from which on a pixel counts as hole.  An odd kernel_size.
    """

    def __init__(
        self,
        num_features: int,
        threshold: float = 0.8,
        eps: float = 1e-5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        kernel_size: int = 7,
        batchwise: bool = False,
    ):
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size={kernel_size} would move the map: write an odd number")
        super().__init__()
        self.num_features, self.threshold, self.eps, self.batchwise = int(num_features), threshold, eps, batchwise
        self.sa = SelfAwareAffine(kernel_size, device, dtype)

    def reset_parameters(self) -> None:
        for conv in self.sa.children():
            conv.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        values = images(x, self.num_features)
        s, gamma, beta = self.sa(values)
        y = region_norm(values, s.detach() >= self.threshold, self.eps, batchwise=self.batchwise)
        return (y * (1 + gamma) + beta).to(x.dtype)

    def extra_repr(self) -> str:
        return f"{self.num_features}, threshold={self.threshold}, eps={self.eps}, batchwise={self.batchwise}"
