"""PowerNorm, PN-V and PN (Shen, Yao, Gholami, Mahoney & Keutzer, ICML 2020, arXiv:2003.07845), Sec. 4, Algorithm 2.

    PN-V                 psi_B^2 = mean_b x_b^2     xh = x / psi_B     y = gamma xh + beta      (no centring)
    PN, forward pass     xh = x / psi     y = gamma xh + beta     psi^2 <- alpha psi^2 + (1 - alpha) psi_B^2
    PN, backward pass    g = gamma dL/dy     x' = g - nu xh     dL/dx = x' / psi
                         nu <- nu (1 - (1 - alpha) Gamma) + (1 - alpha) Lambda,
                         Gamma = mean_b xh_b^2,  Lambda = mean_b g_b xh_b
    inference            y = gamma x / psi + beta, for both

x and y: (..., num_features).  Each feature has its own statistics, over the B values that it has in the batch and along
the sequence.  psi and nu are used before they are updated.  gamma ("weight"), beta ("bias"), psi^2 ("running_psi2") and
nu have the shape (num_features,).  PN-V's gradient is that of autograd.  PN's is not that of any function: in place of
the projection mean_b(g xh) of this batch it subtracts nu, a moving average of it.

The paper is silent, or the authors' code (sIncerass/powernorm, mask_powernorm.py) differs from it, in six places:
  D1  eps = 1e-5 inside the root, alpha = 0.9, gamma, psi^2 = 1 and beta, nu = 0 at the start, as in the code.
  D2  PN first divides each token by the RMS of each of its `groups` of features, as in the code (groups is the number
      of heads there and 1 here); groups=None is Algorithm 2.
  D3  dL/dx is divided by the running psi, as in Algorithm 2; the code takes psi_B, also where the forward pass did not.
  D4  In the first `warmup_iters` batches (0 here, 10000 in the code) PN normalises by psi_B; in all but the last of
      them psi^2 is averaged over all batches so far and then updated as above, as in the code.
  D5  Padding (pad_mask) has no part in psi, Gamma and Lambda, and nu pulls at no padding; the code leaves it out of psi
      only.  NaN and infinity at padding count as 0.
  D6  PN-V at inference takes a moving average of psi_B^2 with the same alpha.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from repro.models.affine import Affine, apply_affine, leaf, rms_norm, trailing_axes, wide
from repro.models.recompute import Rewind, recomputing

__all__ = ["PowerNorm", "PowerNormV"]


def token_mean(values: Tensor, real: Tensor | None) -> Tensor:
    """Return the mean over all axes but the last; real: (..., 1), False at padding.  0 where there is no token."""
    axes = tuple(range(values.dim() - 1))
    if real is None:
        return values.sum(axes) / max(values[..., 0].numel(), 1)
    return torch.where(real, values, 0.0).sum(axes) / real.sum().clamp(min=1)


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
    @once_differentiable
    def backward(ctx, g: Tensor) -> tuple[Tensor, None, None, None, None]:
        xhat, psi, nu, real = ctx.saved_tensors
        estimate = g - nu * (xhat if real is None else torch.where(real, xhat, 0.0))
        dx = estimate / psi
        nu.copy_(nu + (1 - ctx.alpha) * token_mean(estimate * xhat, real))  # Lambda - nu Gamma
        return dx, None, None, None, None


@leaf
def scaled(x: Tensor, groups: int | None, eps: float) -> Tensor:
    """Return each group of features of a token over its RMS, in float32 at least (D2)."""
    if groups is None:
        return wide(x)
    parts = wide(x).unflatten(-1, (groups, x.shape[-1] // groups))
    return rms_norm(parts, parts.shape[-1:], eps).flatten(-2)


@leaf
def inference(x: Tensor, psi2: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """Return gamma x / psi + beta."""
    return apply_affine(x / (psi2.to(x.dtype) + eps).sqrt(), weight, bias)


class PowerNormV(Affine):
    """PN-V, gamma x / sqrt(mean_b x_b^2 + eps) + beta (Sec. 4.1): batch normalization without centring, over the last
    axis.

    x: (..., num_features) -> the same.  pad_mask: (...), True at padding.  alpha: weight of the old running value.
    affine=False: neither gamma nor beta.  Raises ValueError where the shape of x or pad_mask or alpha does not fit,
    TypeError where x is an integer.
    """

    groups: int | None = None

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        affine: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        alpha: float = 0.9,
    ):
        if not 0 <= alpha < 1:
            raise ValueError(f"alpha={alpha} is no weight of the old value: write 0 <= alpha < 1, such as 0.9")
        super().__init__(int(num_features), affine, device=device, dtype=dtype)
        self.num_features, self.eps, self.alpha, self.before = int(num_features), eps, alpha, Rewind()
        self.register_buffer("running_psi2", torch.ones(self.num_features, device=device, dtype=dtype))
        self.register_buffer("num_batches_tracked", torch.zeros((), device=device, dtype=torch.long))

    def reset_running_stats(self) -> None:
        self.running_psi2.fill_(1)
        self.num_batches_tracked.zero_()

    def reset_parameters(self) -> None:
        super().reset_parameters()
        self.reset_running_stats()

    def forward(self, input: Tensor, pad_mask: Tensor | None = None) -> Tensor:
        trailing_axes(input, self.normalized_shape)
        if pad_mask is not None and (pad_mask.dtype != torch.bool or pad_mask.shape != input.shape[:-1]):
            raise ValueError(
                f"pad_mask of {pad_mask.dtype}, {tuple(pad_mask.shape)}: write torch.bool, {tuple(input.shape[:-1])}"
            )
        x, real = input, None if pad_mask is None else ~pad_mask[..., None]
        if real is not None:
            x = torch.where(real | x.isfinite(), x, 0.0)  # D5: 0 times NaN would be NaN
        x = scaled(x, self.groups, self.eps)
        if self.training:
            y = apply_affine(self.in_training(x, real), None, self.bias)
        else:
            y = inference(x, self.running_psi2, self.weight, self.bias, self.eps)
        return y.to(input.dtype)

    def gain(self, xhat: Tensor) -> Tensor:
        """Return gamma xh."""
        return xhat if self.weight is None else xhat * self.weight

    def in_training(self, x: Tensor, real: Tensor | None) -> Tensor:
        """Return gamma xh; update the buffers."""
        psi2 = token_mean(x.square(), real)
        self.track(self.running_psi2, psi2.detach(), x)
        return self.gain(x / (psi2 + self.eps).sqrt())

    def track(self, old: Tensor, psi2: Tensor, x: Tensor) -> None:
        """psi^2 <- alpha old + (1 - alpha) psi_B^2, in place; an empty batch and one that runs again change nothing."""
        if x.numel() and not recomputing():
            self.running_psi2.copy_(self.alpha * old + (1 - self.alpha) * psi2)
            self.num_batches_tracked.add_(1)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, eps={self.eps}, alpha={self.alpha}"


class PowerNorm(PowerNormV):
    """PN (Sec. 4.2, Algorithm 2): by the running quadratic mean, with the approximate backward pass of the header.

    Arguments are those of PowerNormV, and groups and warmup_iters (D2, D4).  The backward pass changes nu, which it
    reads as it is by then; it has no second derivatives.  Raises ValueError where groups does not divide num_features.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        affine: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        alpha: float = 0.9,
        groups: int | None = 1,
        warmup_iters: int = 0,
    ):
        if groups is not None and (groups < 1 or num_features % groups):
            raise ValueError(f"groups={groups} does not divide num_features={num_features}: write a divisor, or None")
        super().__init__(num_features, eps, affine, device, dtype, alpha=alpha)
        self.groups, self.warmup_iters = groups, warmup_iters
        self.register_buffer("nu", torch.zeros(self.num_features, device=device, dtype=dtype))

    def reset_running_stats(self) -> None:
        super().reset_running_stats()
        self.nu.zero_()

    def in_training(self, x: Tensor, real: Tensor | None) -> Tensor:
        psi2 = token_mean(x.detach().square(), real)
        old, count = self.before(lambda: psi2, (self.running_psi2, self.num_batches_tracked))
        old, count = old.to(x.dtype), count + 1
        psi = (torch.where(count <= self.warmup_iters, psi2, old) + self.eps).sqrt()
        # Through .data: a backward pass that changes nu must not spoil what another one has saved.
        xhat = Power.apply(x, psi, self.nu.data, real, self.alpha)
        self.track(torch.where(count < self.warmup_iters, old + (psi2 - old) / count, old), psi2, x)
        return self.gain(xhat)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, groups={self.groups}, warmup_iters={self.warmup_iters}"
