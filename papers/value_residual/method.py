"""Value residual learning (Zhou, Wu, Jiang, Obeid & Lan, ACL 2025, arXiv:2410.17897): ResFormer and SVFormer.

    V_n = H_{n-1} W^V_n                          the values of attention n = 1, ..., L before the heads are split
    ResFormer   U_n = A_n (lambda1 V_1 + lambda2 V_n)   n >= 2, lambda1 = lambda2 = 1/2
    SVFormer    U_n = A_n V_1                           n >= 2, and no W^V_n
    U_1 = A_1 V_1 in both

A_n: the attention's own weights, softmax(q k^T / sqrt(d_k)) under its mask.  H: (B, T, d), V and U: (B, T, d).  Values
are taken after their projection, without rotation of positions and without a detached gradient: V_1 learns from every
layer.  ResFormer adds no parameter; SVFormer saves (L - 1) d^2 of them and keeps L keys and one set of values, (L + 1)
/ 2L of the cache.  All weights start as those of the attention that is changed.  Training and evaluation agree.

Attentions with one projection `qkv`, whose output is (..., 3 d) in the order q, k, v, are changed in place: those of
`repro.models.gpt` and of timm.

  D1  V_1 is handed on by an object that all layers share, and forgotten after the last one, where the authors' code
      (Zcchill/Value-Residual-Learning) passes a list through the model.  So whole passes work, in order, and a layer
      that is computed again by itself (activation checkpointing of single blocks) is refused.
  D2  The lambdas are constants; the learned ones of later versions are left out.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["FirstValues", "SharedValueQKV", "ValueResidualQKV", "resformer_", "svformer_"]


class FirstValues:
    """The values of the first attention, (..., d), from its pass to that of the last one (D1)."""

    def __init__(self) -> None:
        self.values: Tensor | None = None

    def put(self, values: Tensor) -> None:
        """Keep the values of the first layer."""
        self.values = values

    def get(self, last: bool) -> Tensor:
        """Return them, and forget them after the last layer.  Raises RuntimeError where the first layer has not run."""
        values = self.values
        if values is None:
            raise RuntimeError(
                "no first values: call all layers in order, and checkpoint the whole stack in place of single blocks"
            )
        if last:
            self.values = None
        return values


class ValueResidualQKV(nn.Module):
    """In place of a projection qkv, (..., d) -> (..., 3 d): the values become lambda1 V_1 + lambda2 V_n.

    The first layer (`index` 0) hands its values on through `first`; the last one is index = depth - 1.  The state dict
    is that of `qkv`, an nn.Linear whose output has the order q, k, v.
    """

    def __init__(
        self, qkv: nn.Linear, first: FirstValues, index: int, depth: int, lambda1: float = 0.5, lambda2: float = 0.5
    ):
        super().__init__()
        self.weight, self.bias = qkv.weight, qkv.bias
        self.first, self.index, self.depth, self.lambda1, self.lambda2 = first, index, depth, lambda1, lambda2

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = F.linear(x, self.weight, self.bias).chunk(3, -1)
        if self.index == 0:
            self.first.put(v)
        else:
            v = self.lambda1 * self.first.get(self.index == self.depth - 1) + self.lambda2 * v
        return torch.cat([q, k, v], -1)

    def extra_repr(self) -> str:
        return f"index={self.index}, lambda1={self.lambda1}, lambda2={self.lambda2}"


class SharedValueQKV(nn.Module):
    """In place of the projection qkv of a layer after the first, (..., d) -> (..., 3 d): q and k of its own, and V_1.

    weight: (2 d, d), the rows of `qkv` without those of the values; bias: (2 d) or None.
    """

    def __init__(self, qkv: nn.Linear, first: FirstValues, index: int, depth: int):
        super().__init__()
        kept = 2 * qkv.out_features // 3
        self.weight = nn.Parameter(qkv.weight.detach()[:kept].clone())
        self.bias = None if qkv.bias is None else nn.Parameter(qkv.bias.detach()[:kept].clone())
        self.first, self.last = first, index == depth - 1

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([F.linear(x, self.weight, self.bias), self.first.get(self.last)], -1)


def projections(model: nn.Module) -> list[nn.Module]:
    """The attentions of a model, in order, by their projection `qkv`.

    Raises ValueError where there are fewer than two, or where their widths differ.
    """
    found = [module for module in model.modules() if isinstance(getattr(module, "qkv", None), nn.Linear)]
    if len(found) < 2 or len({module.qkv.out_features for module in found}) > 1:
        raise ValueError(
            f"{type(model).__name__} has {len(found)} attentions with one linear layer `qkv`; "
            "write a model with two or more of one width, that has not been changed yet"
        )
    return found


def resformer_(model: nn.Module, lambda1: float = 0.5, lambda2: float = 0.5) -> None:
    """Make a ResFormer of a finished model, in place: every attention but the first mixes V_1 into its values."""
    found, first = projections(model), FirstValues()
    for index, module in enumerate(found):
        module.qkv = ValueResidualQKV(module.qkv, first, index, len(found), lambda1, lambda2)


def svformer_(model: nn.Module) -> None:
    """Make an SVFormer of a finished model, in place: every attention reads V_1, and the other projections go."""
    found, first = projections(model), FirstValues()
    found[0].qkv = ValueResidualQKV(found[0].qkv, first, 0, len(found))
    for index, module in enumerate(found[1:], 1):
        module.qkv = SharedValueQKV(module.qkv, first, index, len(found))
