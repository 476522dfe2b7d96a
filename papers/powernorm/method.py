"""PowerNorm, PN-V and PN (Shen, Yao, Gholami, Mahoney & Keutzer, ICML 2020, arXiv:2003.07845), Sec. 4, Algorithm 2.

    PN-V                 psi_B^2 = mean_b x_b^2     xh = x / psi_B     y = gamma xh + beta      (no centring)
    PN, forward pass     xh = x / psi     y = gamma xh + beta     psi^2 <- alpha psi^2 + (1 - alpha) psi_B^2
    PN, backward pass    g = gamma dL/dy     x' = g - nu xh     dL/dx = x' / psi
                         nu <- nu (1 - (1 - alpha) Gamma) + (1 - alpha) Lambda,  Gamma = mean_b xh_b^2,  Lambda = mean_b g_b xh_b
    inference            y = gamma x / psi + beta, for both

x and y: (..., num_features). Each feature has its own statistics, over the B values that it has in the batch and along the
sequence. psi and nu are used before they are updated. gamma ("weight"), beta ("bias"), psi^2 ("running_psi2") and
nu: (num_features,). PN-V's gradient is that of autograd. PN's is not that of any function: in place of the
projection mean_b(g xh) of this batch it subtracts nu, a moving average of it.

Where the paper is silent, or the authors' code (sIncerass/powernorm, mask_powernorm.py) differs from it:
  D1  eps = 1e-5 inside the root, alpha = 0.9, gamma, psi^2 = 1 and beta, nu = 0 at the start, as in the code.
  D2  PN first divides each token by the RMS of each of its `groups` of features, as in the code (groups: the number of
      heads there, 1 here); groups=None is Algorithm 2.
  D3  dL/dx is divided by the running psi, as in Algorithm 2; the code takes psi_B, also where the forward pass did not.
  D4  In the first `warmup_iters` batches (0 here, 10000 in the code) PN normalises by psi_B; in all but the last of them
      psi^2 is averaged over all batches so far and then updated as above, as in the code.
  D5  Padding (pad_mask) has no part in psi, Gamma and Lambda, and nu pulls at no padding; the code leaves it out of psi only.
  D6  PN-V at inference takes a moving average of psi_B^2 with the same alpha.
  D7  Statistics are computed in float32 at least and y has the dtype of x, under autocast also.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from repro.models.affine import Affine, trailing_axes

__all__ = ["PowerNorm", "PowerNormV"]


def token_mean(values: Tensor, real: Tensor | None) -> Tensor:
    """Mean over all axes but the last; real: (..., 1), 0 at padding and 1 elsewhere.  0 where there is no token."""
    axes = tuple(range(values.dim() - 1))
    if real is None:
        return values.sum(axes) / max(values[..., 0].numel(), 1)
    return (values * real).sum(axes) / real.sum().clamp(min=1)


class Power(torch.autograd.Function):
    """xh = x / psi with Algorithm 2's backward pass, which updates nu in place."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, psi: Tensor, nu: Tensor, real: Tensor | None, alpha: float) -> Tensor:
        return x / psi

    @staticmethod
    def setup_context(ctx, inputs: tuple, output: Tensor) -> None:
        _, psi, nu, real, ctx.alpha = inputs
        ctx.save_for_backward(output, psi, nu, real)

    @staticmethod
    def backward(ctx, g: Tensor) -> tuple[Tensor, None, None, None, None]:
        xhat, psi, nu, real = ctx.saved_tensors
        estimate = g - nu * (xhat if real is None else xhat * real)
        change = token_mean((estimate * xhat).detach(), real)  # Lambda - nu Gamma
        dx = estimate / psi
        nu.copy_(nu + (1 - ctx.alpha) * change)
        return dx, None, None, None, None


class PowerNormV(Affine):
    """PN-V, gamma x / sqrt(mean_b x_b^2 + eps) + beta (Sec. 4.1): batch normalization without centring, over the last axis.

    x: (..., num_features) -> the same.  pad_mask: (...), True at padding.  alpha: weight of the old running value.
    affine=False: neither gamma nor beta.  Raises ValueError where the shape of x or pad_mask or alpha does not fit,
    TypeError where x is an integer.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        *,
        alpha: float = 0.9,
        affine: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        if not 0 <= alpha < 1:
            raise ValueError(f"alpha={alpha} is no weight of the old value: write 0 <= alpha < 1, such as 0.9")
        super().__init__(num_features, affine, device=device, dtype=dtype)
        self.num_features, self.eps, self.alpha = num_features, eps, alpha
        self.register_buffer("running_psi2", torch.ones(num_features, device=device, dtype=dtype))
        self.register_buffer("num_batches_tracked", torch.tensor(0, device=device))

    def reset_running_stats(self) -> None:
        self.running_psi2.fill_(1)
        self.num_batches_tracked.zero_()

    def reset_parameters(self) -> None:
        super().reset_parameters()
        self.reset_running_stats()

    def forward(self, x: Tensor, pad_mask: Tensor | None = None) -> Tensor:
        trailing_axes(x, self.normalized_shape)
        wide, real = x.to(torch.promote_types(x.dtype, torch.float32)), None  # D7
        if pad_mask is not None:
            if pad_mask.dtype != torch.bool or pad_mask.shape != x.shape[:-1]:
                raise ValueError(
                    f"pad_mask of {pad_mask.dtype}, {tuple(pad_mask.shape)}: write torch.bool, {tuple(x.shape[:-1])}"
                )
            real = (~pad_mask[..., None]).to(wide.dtype)
        y = self.in_training(wide, real) if self.training else self.gain(self.at_inference(wide))
        return (y if self.bias is None else y + self.bias).to(x.dtype)

    def gain(self, xhat: Tensor) -> Tensor:
        """gamma xh."""
        return xhat if self.weight is None else xhat * self.weight

    def in_training(self, x: Tensor, real: Tensor | None) -> Tensor:
        """gamma xh; updates the buffers."""
        psi2 = token_mean(x.square(), real)
        self.track(self.running_psi2, psi2.detach(), x)
        return self.gain(x / (psi2 + self.eps).sqrt())

    def at_inference(self, x: Tensor) -> Tensor:
        """xh by the running value."""
        return x / (self.running_psi2.to(x.dtype) + self.eps).sqrt()

    def track(self, old: Tensor, psi2: Tensor, x: Tensor) -> None:
        """psi^2 <- alpha old + (1 - alpha) psi_B^2, in place; an empty batch changes nothing."""
        if x.numel():
            self.running_psi2.copy_(self.alpha * old + (1 - self.alpha) * psi2)
            self.num_batches_tracked.add_(1)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, eps={self.eps}, alpha={self.alpha}"


class PowerNorm(PowerNormV):
    """PN (Sec. 4.2, Algorithm 2): by the running quadratic mean, with the approximate backward pass of the header.

    Arguments as PowerNormV; groups, warmup_iters: D2, D4.  Raises ValueError where groups does not divide num_features.
    The backward pass changes nu: one backward pass for each forward pass, no second derivatives.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        *,
        alpha: float = 0.9,
        affine: bool = True,
        groups: int | None = 1,
        warmup_iters: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        if groups is not None and (groups < 1 or num_features % groups):
            raise ValueError(f"groups={groups} does not divide num_features={num_features}: write a divisor, or None")
        super().__init__(num_features, eps, alpha=alpha, affine=affine, device=device, dtype=dtype)
        self.groups, self.warmup_iters = groups, warmup_iters
        self.register_buffer("nu", torch.zeros(num_features, device=device, dtype=dtype))

    def reset_running_stats(self) -> None:
        super().reset_running_stats()
        self.nu.zero_()

    def scaled(self, x: Tensor) -> Tensor:
        """Each group of features of a token over its RMS (D2)."""
        if self.groups is None:
            return x
        parts = x.unflatten(-1, (self.groups, self.num_features // self.groups))
        return F.rms_norm(parts, parts.shape[-1:], eps=self.eps).flatten(-2)

    def in_training(self, x: Tensor, real: Tensor | None) -> Tensor:
        x, old, count = self.scaled(x), self.running_psi2.to(x.dtype), self.num_batches_tracked + 1
        psi2 = token_mean(x.detach().square(), real)
        # Stacked, since torch.compile computes anything else again in the backward pass, from a buffer that has changed.
        both = torch.stack([old, psi2])
        psi = (torch.where(count <= self.warmup_iters, both[1], both[0]) + self.eps).sqrt()
        xhat = Power.apply(x, psi, self.nu, real, self.alpha)
        self.track(torch.where(count < self.warmup_iters, old + (psi2 - old) / count, old), psi2, x)
        return self.gain(xhat)

    def at_inference(self, x: Tensor) -> Tensor:
        return super().at_inference(self.scaled(x))

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, groups={self.groups}, warmup_iters={self.warmup_iters}"
