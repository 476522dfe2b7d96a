"""BatchNorm (Ioffe & Szegedy, ICML 2015, arXiv:1502.03167), Algorithms 1 and 2.

    training:    mu_B = mean_i x_i     var_B = mean_i (x_i - mu_B)^2     y = gamma (x - mu_B) / sqrt(var_B + eps) + beta
    inference:   E[x] = mean_B mu_B and Var[x] = mean_B m/(m-1) var_B, over training batches B, take their place

x and y: (N, C, *). Each of the C features has its own statistics, over the m = N * (product of *) values that it
has in the batch (Sec. 3.2). gamma ("weight") and beta ("bias"): (C,). The statistics take part in the gradient.
Place it before the non-linearity and drop the bias of the layer in front (Sec. 3.2).

Where the paper is silent or leaves a choice:
  D1  eps = 1e-5, gamma starts at 1 and beta at 0, as in torch.nn; the paper gives no values.
  D2  E[x] and Var[x] are moving averages (Sec. 3.1 allows them), new = (1 - momentum) * old + momentum * batch with
      momentum = 0.1 as in torch.nn; None weighs all batches alike. `population_statistics` is Alg. 2 itself.

Training on one value per feature is a ValueError; an empty batch gives an empty y and leaves E[x] and Var[x]
as they were (both as in torch). In float32 the squares overflow once their sum passes 3.4e38; y is then beta.
"""

from collections.abc import Iterable
from itertools import chain

import torch
from torch import Tensor, nn

from repro.models.affine import leaf, never_fuse, wide
from repro.models.recompute import recomputing

__all__ = ["BatchNorm", "batch_norm", "population_statistics"]


@leaf
def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float | Tensor = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Alg. 1 if `training` (running statistics, if given, are updated in place), else Alg. 2; as F.batch_norm."""
    x = wide(input)
    for t in (running_mean, running_var, weight, bias):
        if x.dim() < 2 or (t is not None and t.shape[0] != x.shape[1]):
            raise ValueError(f"input of shape {tuple(x.shape)} is not (N, {'C' if t is None else t.shape[0]}, *)")

    def column(t: Tensor) -> Tensor:  # (C,) -> (1, C, 1, ...)
        return t.to(x.dtype).view(1, -1, *[1] * (x.dim() - 2))

    mean, var = running_mean, running_var
    if training:
        batch, m = [0, *range(2, x.dim())], x.shape[0] * x.shape[2:].numel()
        if m == 1:
            raise ValueError(f"one value per feature in {tuple(x.shape)}: train on larger batches or call .eval()")
        mean = x.mean(batch)
        var = (x - column(mean)).square().mean(batch)  # biased, divisor m
        if running_mean is not None and running_var is not None and m > 0:
            with torch.no_grad():  # in place by copy_, so that buffers stacked for torch.func.vmap are updated too
                running_mean.copy_((1 - momentum) * running_mean + momentum * mean)
                running_var.copy_((1 - momentum) * running_var + momentum * (m / (m - 1) * var))  # unbiased
    elif mean is None or var is None:
        raise ValueError("inference needs running_mean and running_var: pass both, or training=True")
    y = (x - column(mean)) / (column(var) + eps).sqrt()
    if weight is not None:
        y = y * column(weight)
    if bias is not None:
        y = y + column(bias)
    return y.to(input.dtype)


class BatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch normalisation of (N, C, *) with the arguments, state dict and modes of torch.nn.BatchNorm1d, 2d and 3d.

    It is a batch normalisation to torch's tools too: update_bn renews its statistics, convert_sync_batchnorm replaces
    it.
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
        super().__init__(int(num_features), eps, momentum, affine, track_running_stats, device, dtype)
        never_fuse(self)

    def forward(self, input: Tensor) -> Tensor:
        update = self.training and self.track_running_stats and not recomputing()
        mean, var = (self.running_mean, self.running_var) if update or not self.training else (None, None)
        momentum = self.momentum
        if momentum is None and update:  # a tensor, not a Python number: it must survive torch.compile and vmap
            momentum = 1 / (self.num_batches_tracked + 1).to(torch.promote_types(mean.dtype, torch.float32))
        y = batch_norm(input, mean, var, self.weight, self.bias, self.training or mean is None, momentum, self.eps)
        if update:
            self.num_batches_tracked.add_(1)
        return y


@torch.no_grad()
def population_statistics(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Alg. 2, lines 7-10: set E[x] and Var[x] of every BatchNorm in `model`, in place, from training mini-batches.

    Each batch goes through `model` in training mode and counts alike; parameters and modes end as they were.
    Raises ValueError if there is no batch, or no BatchNorm that tracks its statistics.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, BatchNorm) and layer.track_running_stats]
    first = next(batches := iter(batches), None)
    if first is None or not layers:
        raise ValueError("give a model with BatchNorm layers that track statistics, and at least one batch")
    momenta, modes = [layer.momentum for layer in layers], [(module, module.training) for module in model.modules()]
    model.train()
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # plain averages of mu_B and of m/(m-1) var_B
    try:
        for batch in chain([first], batches):
            model(batch)
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
        for module, mode in modes:
            module.training = mode
