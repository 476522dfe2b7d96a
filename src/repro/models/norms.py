"""Arrangements of batch normalisation that several papers compare with; no paper here invented them."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from repro.models.recompute import recomputing


def over_tokens(kind: type[nn.Module]) -> type[nn.Module]:
    """Return `kind`, a norm of (N, C), as a norm over the tokens of (..., C): every token is a case."""

    class OverTokens(kind):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.flatten(0, -2)).view_as(x)

    OverTokens.__name__ = OverTokens.__qualname__ = f"Token{kind.__name__}"
    return OverTokens


class GhostBatchNorm(nn.BatchNorm2d):
    """BatchNorm2d that in training normalises every `size` images by themselves, as workers with `size` images do."""

    def __init__(self, num_features: int, size: int):
        super().__init__(num_features)
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        k = len(x) // self.size  # groups, whose channels stand side by side: image i is in group i modulo k
        mean, var, weight, bias = (t.repeat(k) for t in (self.running_mean, self.running_var, self.weight, self.bias))
        y = F.batch_norm(x.reshape(self.size, -1, *x.shape[2:]), mean, var, weight, bias, True, self.momentum, self.eps)
        if not recomputing():
            with torch.no_grad():
                self.running_mean.copy_(mean.view(k, -1).mean(0))
                self.running_var.copy_(var.view(k, -1).mean(0))
        return y.reshape(x.shape)
