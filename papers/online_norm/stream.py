"""Online Normalization in training, forward and backward (Chiley et al., arXiv:1905.05894, Section 3).

The equations and the departures D1 to D4 stand at the head of method.py.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


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
    """f = gamma y + beta behind its guard, and the root of the mean of f^2 + eps over the features, which are on
    `axes`.
    """
    f = y if gamma is None else y * gamma + beta
    root = (f.square().mean(axes, keepdim=True) + eps).sqrt()
    return f / root if guard == "scale" else f.clamp(-5, 5) if guard == "clamp" else f.clone(), root


class Stream(torch.autograd.Function):
    """The layer in training.  x: (..., N, C, M), gamma and beta: (..., 1, C, 1), mu, s2, u and v: (..., C).

    Without the M where `maps` is false.  Returns z, y, sqrt(s2 + eps) of each sample, the root of layer scaling, the
    new mu and the new s2; the backward pass changes u and v in place.
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
