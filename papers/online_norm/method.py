"""Online Normalization (Chiley et al., NeurIPS 2019, arXiv:1905.05894), Section 3.

For every sample t, in order, and every feature (or channel), with s2 the variance and the statistics from BEFORE x_t:

    forward     y_t = (x_t - mu_{t-1}) / sqrt(s2_{t-1} + eps)
                s2_t = a_f s2_{t-1} + a_f (1 - a_f) (x_t - mu_{t-1})^2        mu_t = a_f mu_{t-1} + (1 - a_f) x_t
    backward    q_t = g_t - (1 - a_b) v_{t-1} y_t                             v_t = v_{t-1} + mean(q_t y_t)
                dL/dx_t = q_t / sqrt(s2_{t-1} + eps) - (1 - a_b) u_{t-1}      u_t = u_{t-1} + mean(dL/dx_t)
    output      z_t = f_t / sqrt(mean over all features of f_t^2 + eps), f_t = gamma y_t + beta      (layer scaling)

x and z: (N, C, *).  mean() is over the positions * of a sample; for maps x_t in the two statistics is the mean over
them and s2_t grows by (1 - a_f) times the variance over them.  mu ("running_mean"), s2 ("running_var"): (C,), start
at 0 and 1; u, v, the accumulated errors of the gradient: (C,), start at 0.  gamma ("weight"), beta ("bias"): (C,),
start at 1 and 0.  a_f = 0.999, a_b = 0.99.  No gradient flows through mu, s2, u and v.  Evaluation: mu, s2 stay.

  D1  eps = 1e-5 stands under both roots, as in the authors' code (Cerebras/online-normalization).
  D2  the guard after the affine map is layer scaling; their module has a clamp to [-5, 5] unless told otherwise.
  D3  the samples of a batch go through the recursions in order, as in their kernels; mu, s2 and u, whose recursions
      have constant coefficients, in one product with a triangular matrix: N^2 C operations in place of N steps.
  D4  dL/dx is no derivative of the output, so a second derivative is refused.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from repro.models.affine import Affine, channels_first, leaf
from repro.models.recompute import Rewind, recomputing

__all__ = ["OnlineNorm"]


def powers(n: int, decay: float, like: Tensor) -> Tensor:
    """decay^(i - j) for i >= j, else 0: (n + 1, n + 1)."""
    steps = torch.arange(n + 1, device=like.device, dtype=like.dtype)
    return (decay ** (steps[:, None] - steps).clamp(min=0)).tril()


def recursion(powers: Tensor, start: Tensor, added: Tensor) -> Tensor:
    """All states of z_t = decay z_{t-1} + added_t, the first too: (..., C), (..., N, C) -> (..., N + 1, C).  (D3)"""
    added = torch.cat([start.to(added.dtype).unsqueeze(-2), added], -2)
    finite = added.isfinite()
    with torch.autocast(added.device.type, enabled=False):
        states = powers @ torch.where(finite, added, 0.0)
    return states + torch.where(finite, 0.0, added).cumsum(-2)  # inf and NaN reach what comes later, nothing before


def output(
    y: Tensor, gamma: Tensor | None, beta: Tensor | None, guard: str | None, eps: float, axes: list[int]
) -> tuple[Tensor, Tensor]:
    """f = gamma y + beta behind its guard, and the root of the mean of f^2 + eps over the features, which are on `axes`."""
    f = y if gamma is None else y * gamma + beta
    root = (f.square().mean(axes, keepdim=True) + eps).sqrt()
    return f / root if guard == "scale" else f.clamp(-5, 5) if guard == "clamp" else f.clone(), root


class Stream(torch.autograd.Function):
    """The layer in training.  x: (..., N, C, M), gamma and beta: (..., 1, C, 1), mu, s2, u and v: (..., C).

    Without the M where `maps` is false.  Returns z, y, sqrt(s2 + eps) of each sample, the root of layer scaling, the new
    mu and the new s2; the backward pass changes u and v in place.
    """

    @staticmethod
    def forward(x, gamma, beta, mu, s2, u, v, a_f, a_b, eps, guard, maps):
        m = x.mean(-1) if maps else x
        decays = powers(m.shape[-2], a_f, m)
        mus = recursion(decays, mu, (1 - a_f) * m)
        centred = m - mus[..., :-1, :]
        added = a_f * (1 - a_f) * centred.square()
        s2s = recursion(decays, s2, added + (1 - a_f) * x.var(-1, correction=0) if maps else added)
        scale = (s2s[..., :-1, :] + eps).sqrt()
        y = (x - mus[..., :-1, :, None]) / scale.unsqueeze(-1) if maps else centred / scale
        z, root = output(y, gamma, beta, guard, eps, [-2, -1] if maps else [-1])
        return z, y, scale, root, mus[..., -1, :], s2s[..., -1, :]

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*output[1:4], *inputs[1:3])  # not z, on which an activation may work in place
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        ctx.errors, ctx.rate, ctx.guard, ctx.maps = inputs[5:7], 1 - inputs[8], *inputs[10:]

    @staticmethod
    @once_differentiable  # D4
    def backward(ctx, h, *_):
        (y, scale, root, gamma, beta), (u, v), rate, dgamma, dbeta = ctx.saved_tensors, ctx.errors, ctx.rate, None, None
        mean, wide = ((lambda t: t.mean(-1)), (lambda t: t.unsqueeze(-1))) if ctx.maps else ((lambda t: t),) * 2
        features, samples = ([-2, -1], [-3, -1]) if ctx.maps else ([-1], [-2])
        f = y if gamma is None else y * gamma + beta
        if ctx.guard == "scale":
            h = (h - f * ((h * f).mean(features, keepdim=True) / root.square())) / root
        elif ctx.guard == "clamp":
            h = h * (f.abs() < 5)
        if gamma is not None:
            dgamma, dbeta, h = (h * y).sum(samples, keepdim=True), h.sum(samples, keepdim=True), h * gamma
        keep, vs = 1 - rate * mean(y.square()), [v.to(y.dtype)]
        for keep_t, added_t in zip(keep.unbind(-2), mean(h * y).unbind(-2), strict=True):
            vs.append(torch.addcmul(added_t, keep_t, vs[-1]))  # v_t = v_{t-1} + mean(q_t y_t)
        d = torch.addcmul(h, wide(torch.stack(vs[:-1], -2)), y, value=-rate) / wide(scale)
        us = recursion(powers(keep.shape[-2], 1 - rate, keep), u, mean(d))
        v.copy_(vs[-1])
        u.copy_(us[..., -1, :])
        return d.sub_(wide(us[..., :-1, :]), alpha=rate), dgamma, dbeta, *[None] * 9

    @staticmethod
    def vmap(info, in_dims, *inputs):
        alike = [
            t.expand(info.batch_size, *t.shape) if isinstance(t, Tensor) and d is None else t
            for t, d in zip(inputs, in_dims, strict=True)
        ]
        return Stream.apply(*(t.movedim(d, 0) if d else t for t, d in zip(alike, in_dims, strict=True))), 0


@leaf
def inference(
    input: Tensor,
    mu: Tensor,
    s2: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    guard: str | None,
    eps: float,
) -> Tensor:
    """z of `input`: (N, C, *) by statistics that stay."""
    x = channels_first(input, len(mu), 2)
    mu, root, gamma, beta = (
        None if t is None else t.view(-1, *[1] * (x.dim() - 2)) for t in (mu, (s2 + eps).sqrt(), gamma, beta)
    )
    return output((x - mu) / root, gamma, beta, guard, eps, list(range(1, x.dim())))[0].to(input.dtype)


class OnlineNorm(Affine):
    """Online Normalization of (N, C, *), in the place of torch.nn.BatchNorm1d and 2d, whose first arguments it has.

    The samples of a batch are a stream: their order matters, and N = 1 is as good as any.  guard: "scale" (layer
    scaling, Section 3), "clamp" (to [-5, 5], the authors' later choice) or None.  alpha_forward = 1 freezes mu and s2,
    alpha_backward = 1 turns the control of the gradient off.  The backward pass changes the buffers u and v.

    Raises ValueError if the shape of x, an alpha or the guard does not fit, TypeError if x is an integer.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        affine: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        alpha_forward: float = 0.999,
        alpha_backward: float = 0.99,
        guard: str | None = "scale",
    ):
        if not (0 < alpha_forward <= 1 and 0 < alpha_backward <= 1):
            raise ValueError(f"alphas {alpha_forward} and {alpha_backward} are no decay: write 0 < alpha <= 1")
        if guard not in ("scale", "clamp", None):
            raise ValueError(f"guard={guard!r} is unknown: write 'scale', 'clamp' or None")
        super().__init__(num_features, affine, True, device, dtype)
        self.num_features, self.eps, self.guard = int(num_features), eps, guard
        self.alpha_forward, self.alpha_backward = alpha_forward, alpha_backward
        for name in ("running_mean", "running_var", "u", "v"):
            self.register_buffer(name, torch.empty(num_features, device=device, dtype=dtype))
        self.before = Rewind()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        super().reset_parameters()
        for buffer in self.buffers():
            buffer.fill_(1.0 if buffer is self.running_var else 0.0)

    def forward(self, input: Tensor) -> Tensor:
        mu, s2 = self.running_mean, self.running_var
        if not self.training or not input.numel():
            return inference(input, mu, s2, self.weight, self.bias, self.guard, self.eps)
        x, maps = channels_first(input, self.num_features, 2), input.dim() > 2
        x, column = (x.flatten(2), (1, -1, 1)) if maps else (x, (1, -1))
        gamma, beta = (None if t is None else t.view(column) for t in (self.weight, self.bias))
        alphas, before = (
            (self.alpha_forward, self.alpha_backward),
            self.before(lambda: x.transpose(0, 1).sum(1), (mu, s2)),
        )
        z, *_, new_mu, new_s2 = Stream.apply(
            x, gamma, beta, *before, self.u, self.v, *alphas, self.eps, self.guard, maps
        )
        if not recomputing():
            with torch.no_grad():  # by copy_, so that buffers stacked for torch.func.vmap are updated too
                mu.copy_(new_mu)
                s2.copy_(new_s2)
        return z.view(input.shape).to(input.dtype)

    def extra_repr(self) -> str:
        return (
            f"{self.num_features}, eps={self.eps}, affine={self.weight is not None}, guard={self.guard}, "
            f"alpha_forward={self.alpha_forward}, alpha_backward={self.alpha_backward}"
        )
