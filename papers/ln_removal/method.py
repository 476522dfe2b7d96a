"""Removing LayerNorm by fine-tuning (Baroni, Khara, Schaeffer, Subkhankulov & Heimersheim, 2025, arXiv:2507.02559).

    LN(x)     = (x - mu) / sigma     * gamma + beta,    sigma = sqrt(mean_h (x_h - mu)^2 + eps)            (Eq. 1)
    FakeLN(x) = (x - mu) / sigma_avg * gamma + beta,    sigma_avg = mean of sigma over batch and positions (Eq. 2)
    L_aux     = lambda mean_{b,s} (sigma_{b,s} - sigma_hat)^2, sigma_hat the mean over ordinary positions  (Eq. 3)

x, y: (B, T, D).  A trained Pre-LN decoder is fine-tuned while its norms turn into FakeLN one by one: those before the
feed-forward layers ("mlp"), then those of queries and keys ("qk"), then those of values ("v"), each kind from the first
block to the last, then the one before the head ("final").  qk and v of a block share gamma and beta.  sigma_avg is that
of the last training batch until the norm is removed, and never changes afterwards.  The linear layer behind FakeLN,

    W FakeLN(x) + b = A (I - 1 1^T / D) x + (W beta + b),   A = W diag(gamma) / sigma_avg,

is one linear layer on x, so that a model whose norms are all removed is one without norms (Section 3).  LN starts as
it was; gamma and beta go on learning.

Where the paper leaves a choice, or the authors' code (submarat/removing-layer-norm, train.py) differs:
  D1  sigma_avg is always that of the last batch; for its two larger models the paper takes a moving average.
  D2  The mean is subtracted, as in Eq. 2; one version of the code leaves that out.
  D3  The first position is like any other in sigma_avg, as in Eq. 2; the code has a second sigma for it at first.
  D4  No gradient passes through sigma_hat, as in the code; the paper does not say.
  D5  sigma_avg is the mean of the tokens' sigmas, as in Eq. 2 and in the code since May 2025; before, the code pooled
      the variance over the batch at each position, took its root, and then the mean.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from repro.models.affine import Shape, apply_affine, trailing_axes, wide
from repro.models.gpt import GPT
from repro.models.recompute import kept, recomputing
from repro.models.slots import Pre
from repro.papers.layernorm.method import LayerNorm

__all__ = [
    "FakeLayerNorm",
    "LayerNormRemoval",
    "auxiliary_loss",
    "removal_schedule",
    "remove_layernorm",
]


class FakeLayerNorm(LayerNorm):
    """LayerNorm that can be turned into a linear map (Eq. 2), with the arguments of torch.nn.LayerNorm.

    Buffers: std, sigma_avg, which is 0 before the first batch in training mode; removed, whether it divides.
    Raises ValueError or TypeError where x is no float tensor that ends in normalized_shape.
    """

    def __init__(
        self,
        normalized_shape: Shape,
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__(normalized_shape, eps, elementwise_affine, bias, device, dtype)
        self.register_buffer("std", torch.empty((), device=device, dtype=dtype))
        self.register_buffer("removed", torch.empty((), dtype=torch.long, device=device))  # AveragedModel takes no bool
        self.reset_parameters()

    def reset_parameters(self) -> None:
        super().reset_parameters()
        self.std.fill_(0.0)
        self.removed.fill_(0)

    def forward(self, input: Tensor) -> Tensor:
        axes, x, removed = trailing_axes(input, self.normalized_shape), wide(input), self.removed > 0
        centred = x - x.mean(axes, keepdim=True)  # D2
        sigma = (centred.square().mean(axes, keepdim=True) + self.eps).sqrt()
        std = kept(self.std) if self.training else self.std
        if self.training and input.numel() and not recomputing():  # an empty batch tells nothing
            self.std.copy_(torch.where(removed, std, sigma.detach().mean()))  # D1, D3, D5
        return apply_affine(centred / torch.where(removed, std, sigma), self.weight, self.bias).to(input.dtype)

    def remove(self) -> None:
        """From now on sigma_avg divides.  Raises ValueError where no batch was seen in training mode."""
        if self.std == 0:
            raise ValueError("sigma_avg is unknown: run the model in training mode on a batch before a norm is removed")
        self.removed.fill_(1)


class _Projection(nn.Module):
    """x -> queries, keys and values, the values through a norm of their own."""

    def __init__(self, linear: nn.Linear, qk: FakeLayerNorm, v: FakeLayerNorm):
        super().__init__()
        self.linear, self.qk, self.v = linear, qk, v

    def forward(self, x: Tensor) -> Tensor:
        cut = [2 * self.linear.out_features // 3]
        biases = (None, None) if self.linear.bias is None else self.linear.bias.tensor_split(cut)
        return torch.cat(
            list(map(nn.functional.linear, (self.qk(x), self.v(x)), self.linear.weight.tensor_split(cut), biases)), -1
        )


def removal_schedule(
    depth: int, *, start: int = 20, gap_mlp: int = 2, gap_qk: int = 2, gap_v: int = 3
) -> list[tuple[int, str]]:
    """[(step, site)]: mlp.0, ..., qk.0, ..., v.0, ..., final (Section 3, Tables 3 and 4; the gaps of GPT-2 small).

    A site is removed before the forward pass of its step, steps counting from 0, by the sigma_avg of the step before.
    """
    schedule = []
    for kind, gap in (("mlp", gap_mlp), ("qk", gap_qk), ("v", gap_v)):
        schedule += [(start + gap * block, f"{kind}.{block}") for block in range(depth)]
        start += gap * depth
    return [*schedule, (start, "final")]


@dataclass
class LayerNormRemoval:
    """What remove_layernorm returns: a hook for repro.train.fit, which removes what is due at the step after `step`.

    sites: mlp.i, qk.i, v.i and final -> FakeLayerNorm.  Raises ValueError where one has seen no training batch.
    """

    sites: dict[str, FakeLayerNorm]
    schedule: Sequence[tuple[int, str]]

    def __call__(self, step: int, model: nn.Module, loss: Tensor | None = None) -> None:
        for site in [site for at, site in self.schedule if at == step + 1]:
            self.sites[site].remove()


def _fake(norm: nn.Module) -> FakeLayerNorm:
    """A FakeLayerNorm that shares the parameters of a layer norm."""
    made = FakeLayerNorm(norm.normalized_shape, norm.eps, device=None if norm.weight is None else norm.weight.device)
    made.weight, made.bias = norm.weight, norm.bias
    return made.train(norm.training)


def remove_layernorm(model: GPT, schedule: Sequence[tuple[int, str]] | None = None) -> LayerNormRemoval:
    """Make every LayerNorm of a Pre-LN `model` a FakeLayerNorm, in place, to be removed by `schedule` (Section 3).

    fit(model, ..., hook=remove_layernorm(model, schedule)) fine-tunes and removes; by default removal_schedule(depth).
    Until then the model computes what it did, of the same parameters.  Do this before the optimizer is made.
    Raises ValueError where the model is no Pre-LN GPT with layer norms, or the schedule names a site that it has not or
    a step below 1, before which there is no batch.
    """
    placed = [part for block in getattr(model, "blocks", ()) for part in (block.attention, block.feed_forward)]
    norms = (
        [getattr(part, "norm", None) for part in (*placed, model)] if all(type(part) is Pre for part in placed) else []
    )
    if len(norms) < 2 or not all(isinstance(norm, nn.LayerNorm | LayerNorm) for norm in norms):
        raise ValueError(
            'this is no Pre-LN decoder: give a repro.models.gpt.GPT with placement="pre", norm=nn.LayerNorm'
        )
    schedule, sites = (
        removal_schedule(len(model.blocks)) if schedule is None else schedule,
        {"final": _fake(model.norm)},
    )
    for i, (attention, feed_forward) in enumerate(zip(placed[::2], placed[1::2], strict=True)):
        sites |= {
            f"mlp.{i}": _fake(feed_forward.norm),
            f"qk.{i}": _fake(attention.norm),
            f"v.{i}": _fake(attention.norm),
        }
    if wrong := [(step, site) for step, site in schedule if site not in sites or step < 1]:
        raise ValueError(
            f"{wrong[0]} is no step and site of this model: write a step from 1 on and mlp.i, qk.i, v.i or final"
        )
    model.norm = sites["final"]
    for i, (attention, feed_forward) in enumerate(zip(placed[::2], placed[1::2], strict=True)):
        attention.norm, feed_forward.norm = nn.Identity(), sites[f"mlp.{i}"]
        attention.sublayer.qkv = _Projection(attention.sublayer.qkv, sites[f"qk.{i}"], sites[f"v.{i}"])
    return LayerNormRemoval(sites, schedule)


def auxiliary_loss(x_BTD: Tensor, weight: float = 0.1, special_BT: Tensor | None = None) -> Tensor:
    """lambda mean (sigma - sigma_hat)^2 over all positions of the stream before the last norm (Eq. 3; eps 1e-5 in
    sigma).

    sigma_hat: the mean of sigma over positions that are neither the first nor `special` (end of text).
    Raises ValueError where no such position is left.
    """
    sigma = (wide(x_BTD).var(-1, correction=0) + 1e-5).sqrt()
    ordinary = sigma.detach()[:, 1:] if special_BT is None else sigma.detach()[:, 1:][~special_BT[:, 1:]]
    if not ordinary.numel():
        raise ValueError("every position is a first or a special one: write sequences of at least 2 tokens")
    return weight * (sigma - ordinary.mean()).square().mean()  # D4
