"""Unified Normalization, UN (Yang et al., ACM MM 2022, arXiv:2208.01313), as in the authors' code.

    forward pass         x2 = mean_b x_b^2, kept for the last M = `window_size` batches
                         var = GM(x2), the geometric mean of the M     z = x / sqrt(var + eps)     y = gamma z + beta
                         running <- alpha running + (1 - alpha) var
    backward pass        r = sqrt(var + eps) / sqrt(running + eps), within [1/5, 5]
                         g = gamma r dL/dy     gz = mean_b g_b z_b, kept likewise
                         ema <- alpha ema + (1 - alpha) mean(gz)
                         dL/dx = (g - ema z) / sqrt(var + eps)     dL/dgamma = sum_b r z_b dL/dy_b
    outlier filtration   a batch is left out if AM(x2) - GM(x2) > M V in any channel, V the variance of the sqrt(x2)
    that
                         were kept before, of all channels
    inference            y = gamma x / sqrt(running + eps) + beta, a fixed map, which folds into the next linear layer

x and y: (..., num_features), with statistics per feature over all else.  running is read before its update, ema after
it. At the start gamma = running = 1 and all else is 0; eps = 1e-5, alpha = 0.9, M = 4.  Forward statistics are
geometric means over batches that are gone, through which no gradient can flow: the backward pass is an approximation.

The code (hikvision-research/Unified-Normalization, unified_normalization.py) says more than the paper, and we depart
twice:
  D1  In the first `warmup_iters` - 1 batches (4000, at least M) and in those left out, var = x2 and mean(gz) = gz, as
      in the code.  r = 1 there and in the first 1000 batches.
  D2  Of a batch left out, running and ema stand in for x2 and gz among the last M, and dL/dx takes gz for ema, as in
      the code.
  D3  Filtration (off by default) waits for M batches even if the warm-up is shorter; the code takes the zeros at the
      start for recorded values, so that everything is an outlier to it.
  D4  Padding (pad_mask) has no part in the statistics of both passes, and is not pulled by ema; the code leaves it out
      of x2 only.  NaN and infinity at padding count as 0.
"""

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from repro.models.recompute import recomputing
from repro.papers.powernorm.method import PowerNormV, inference, token_mean

__all__ = ["UnifiedNorm", "fuse_into_linear"]


class Smoothed(torch.autograd.Function):
    """z = x / root; the backward pass smooths gz and updates buffer_gz and ema_gz in place.  kept: root, r, skip,
    plain.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor, kept: Tensor, buffer_gz: Tensor, ema_gz: Tensor, real: Tensor | None, alpha: float
    ) -> Tensor:
        return x / kept[0]

    @staticmethod
    def setup_context(ctx, inputs: tuple, output: Tensor) -> None:
        _, *saved, ctx.alpha = inputs
        ctx.save_for_backward(output, *saved)

    @staticmethod
    @once_differentiable
    def backward(ctx, g: Tensor) -> tuple[Tensor | None, ...]:
        z, kept, buffer_gz, ema_gz, real = ctx.saved_tensors
        root, _, skip, plain = kept.unbind()
        gz = token_mean(g * z, real)
        window = torch.cat([buffer_gz[1:], torch.where(skip > 0, ema_gz, gz)[None]])
        mean_gz = torch.where(plain > 0, gz, window.mean(0))
        ema = ctx.alpha * ema_gz + (1 - ctx.alpha) * mean_gz
        dx = (g - torch.where(skip > 0, mean_gz, ema) * (z if real is None else torch.where(real, z, 0.0))) / root
        buffer_gz.copy_(window)
        ema_gz.copy_(ema)
        return dx, None, None, None, None, None


class GradientTimes(torch.autograd.Function):
    """The identity, whose gradient is multiplied by r."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, r: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def setup_context(ctx, inputs: tuple, output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx, g: Tensor) -> tuple[Tensor, None]:
        return g * ctx.saved_tensors[0], None


class UnifiedNorm(PowerNormV):
    """UN over the last axis, as in the header (Sec. 3); `running_psi2` is the running value, alpha the weight of its
    old one.

    x: (..., num_features) -> the same.  pad_mask: (...), True at padding.  affine=False: neither gamma nor beta.  The
    backward pass changes buffer_gz and ema_gz, which it reads as they are by then; it has no second derivatives.
    outlier_filtration: the authors' advice is True for vision, False for language.  window_size=1: each batch by
    itself. `skip_counter` counts what was left out.
    Raises ValueError where the shape of x or pad_mask, alpha or window_size does not fit, TypeError where x is an
    integer.
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
        window_size: int = 4,
        warmup_iters: int = 4000,
        outlier_filtration: bool = False,
    ):
        if window_size < 1:
            raise ValueError(f"window_size={window_size} keeps no batch: write 1 or more, such as 4")
        super().__init__(num_features, eps, affine, device, dtype, alpha=alpha)
        self.window_size, self.warmup_iters, self.outlier_filtration = window_size, warmup_iters, outlier_filtration
        for name, rows in (("buffer_x2", (window_size,)), ("buffer_gz", (window_size,)), ("ema_gz", ())):
            self.register_buffer(name, torch.zeros(*rows, self.num_features, device=device, dtype=dtype))
        self.register_buffer("skip_counter", torch.zeros((), device=device, dtype=torch.long))

    def reset_running_stats(self) -> None:
        super().reset_running_stats()
        for buffer in (self.buffer_x2, self.buffer_gz, self.ema_gz, self.skip_counter):
            buffer.zero_()

    def is_outlier(self, recorded: Tensor, window: Tensor) -> Tensor:
        """AM - GM > M V in any channel; recorded and window: (M, num_features), without and with this batch."""
        gap = window.mean(0) - window.log().mean(0).exp()
        return (gap > self.window_size * recorded.sqrt().var()).any()

    def in_training(self, x: Tensor, real: Tensor | None) -> Tensor:
        if not x.numel():
            return inference(x, self.running_psi2, self.weight, None, self.eps)
        m, x2 = self.window_size, token_mean(x.detach().square(), real)
        buffers = self.running_psi2, self.buffer_x2, self.num_batches_tracked
        old, recorded, count = (
            t.to(x.dtype) if t.is_floating_point() else t + 1 for t in self.before(lambda: x2, buffers)
        )
        window, outlier = torch.cat([recorded[1:], x2[None]]), torch.zeros_like(count, dtype=torch.bool)
        if self.outlier_filtration and m > 1:
            outlier = (count > m) & (count >= self.warmup_iters) & self.is_outlier(recorded, window)  # D3
        skip = torch.ones_like(outlier) if m == 1 else outlier
        plain = skip | (count <= m) | (count < self.warmup_iters)
        var = torch.where(plain, x2, window.log().mean(0).exp())
        root = (var + self.eps).sqrt()
        r = torch.where(
            skip | (count <= max(1000, self.warmup_iters)), 1.0, (root / (old + self.eps).sqrt()).clamp(0.2, 5)
        )
        # Buffers through .data: a backward pass that changes them must not spoil what another one has saved.
        kept = torch.stack([root, r, *(flag.to(root).expand_as(root) for flag in (skip, plain))])
        z = Smoothed.apply(x, kept, self.buffer_gz.data, self.ema_gz.data, real, self.alpha)
        if not recomputing():
            self.buffer_x2.copy_(torch.cat([recorded[1:], torch.where(outlier, old, x2)[None]]))  # D2
            self.skip_counter.add_(outlier)
        self.track(old, var, x)
        return GradientTimes.apply(self.gain(z), kept[1])

    def extra_repr(self) -> str:
        names = ("window_size", "warmup_iters", "outlier_filtration")
        return ", ".join([super().extra_repr(), *(f"{name}={getattr(self, name)}" for name in names)])


@torch.no_grad()
def fuse_into_linear(norm: PowerNormV, linear: nn.Linear) -> nn.Linear:
    """Return the linear layer equal to linear(norm(x)) at inference (abstract); neither argument changes.

    W' = W diag(gamma / sqrt(running + eps)), b' = b + W beta.  W: (out, num_features).  norm: UnifiedNorm, PowerNormV,
    or PowerNorm(groups=None), in eval mode.  Raises TypeError where the norm is no fixed map, ValueError in training
    mode or where the sizes differ.
    """
    if not isinstance(norm, PowerNormV) or norm.groups is not None:
        raise TypeError(f"{norm!r} has statistics of the token itself and cannot be folded: write UnifiedNorm(n)")
    if norm.training or linear.in_features != norm.num_features:
        raise ValueError(
            f"{norm.num_features} features into {linear!r}: call norm.eval() and give the layer that follows"
        )
    weight, bias = linear.weight.double(), None if linear.bias is None else linear.bias.double()
    ones = torch.ones(1, norm.num_features, dtype=torch.float64, device=weight.device)
    scale = inference(ones, norm.running_psi2, norm.weight, None, norm.eps)
    if norm.bias is not None:
        bias = weight @ norm.bias.double() + (0 if bias is None else bias)
    size, like = (linear.in_features, linear.out_features), {"device": weight.device, "dtype": linear.weight.dtype}
    made = nn.utils.skip_init(nn.Linear, *size, bias is not None, **like)
    made.weight.copy_(weight * scale)
    if bias is not None:
        made.bias.copy_(bias)
    return made.train(linear.training)
