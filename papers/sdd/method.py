"""Scale-Distribution Decoupling, SDD (Wang et al., 2025, arXiv:2502.15499), Sec. 2.2, Eq. 1.

    y = alpha * norm(V x)          norm(z) = z / ||z||,    ||z|| = sqrt(mean_i z_i^2) over the OUTPUT features

x: (..., n), V ("weight"): (m, n), alpha: (m,), y: (..., m), without a bias.  The layer takes the place of every fully
connected layer of a Transformer's blocks (queries, keys, values and output of attention, gate, up and down of the
feed-forward network; Fig. 2), but not of the embedding and the head.  alpha starts at 1, and at 1 / sqrt(L) at the
output of attention and of the feed-forward network, L blocks.  V starts as N(0, 1 / (2.5 d)), d the width of the model
(Sec. 4.1), which is the smaller side of each of these layers.  y does not depend on the size of V, only the step that
training takes does: dL/dV goes as 1 / ||V||.  Blocks are Post-Norm, x <- Norm(x + f(x)), or Pre-Norm.

The paper leaves a choice, or the authors' code (kaihemo/SDD) differs from it, in four places:
  D1  eps = 1e-6 is added to the mean square, as in the class of their README (their training files: 1e-5).
  D2  Each of queries, keys and values is one layer: `groups` = 3 normalises the thirds of a fused projection by
      themselves.  Their model.py normalises queries and keys head by head, values only after attention (all heads
      together), and gate and up of the feed-forward network together.
  D3  1 / sqrt(L) is the paper's; their code has 1 / sqrt(2 L), with a V that is 10 times smaller (dense/run.sh).
  D4  convert_to_sdd keeps the V that a layer has, and refuses a sub-layer whose output projection it does not know.

y has the dtype of V x, under autocast the lower one, as nn.Linear's would.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from repro.models.affine import rms_norm, wide
from repro.models.slots import Norm, Post, Pre

__all__ = ["PostSDD", "PreSDD", "SDDLinear", "convert_to_sdd"]

OUTPUTS = ("out", "down", "proj", "fc2", "o_proj", "down_proj")  # names of the last layer of a sub-layer
FUSED = {"qkv": 3}  # layers that are several, one above the other


class SDDLinear(nn.Linear):
    """y = alpha * norm(V x) (Eq. 1) in the place of nn.Linear, with `weight` = V; the bias, if wanted, is added behind
    it.

    x: (..., in_features) -> (..., out_features).  groups: into how many equal slices the outputs are cut that are each
    normalised by themselves.  alpha_init: initial value of alpha.  Raises ValueError where groups does not divide
    out_features.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        groups: int = 1,
        alpha_init: float = 1.0,
        eps: float = 1e-6,
    ):
        super().__init__(int(in_features), int(out_features), bias, device, dtype)
        if groups < 1 or out_features % groups:
            raise ValueError(f"groups={groups} does not cut {out_features} outputs into equal slices: write a divisor")
        self.groups, self.alpha_init, self.eps = groups, alpha_init, eps
        self.alpha = nn.Parameter(torch.empty(int(out_features), device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        if not hasattr(self, "alpha"):  # nn.Linear calls this before there is one: the weights are drawn once, after it
            return
        nn.init.normal_(self.weight, std=1 / math.sqrt(2.5 * min(self.in_features, self.out_features)))
        if self.bias is not None:
            nn.init.zeros_(self.bias)
        nn.init.constant_(self.alpha, self.alpha_init)

    def forward(self, input: Tensor) -> Tensor:
        z = F.linear(input, self.weight)
        size = self.weight.shape[0] // self.groups
        slices = wide(z).unflatten(-1, (self.groups, size))
        y = rms_norm(slices, (size,), self.eps).flatten(-2) * self.alpha
        return (y if self.bias is None else y + self.bias).to(z.dtype)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, groups={self.groups}, alpha_init={self.alpha_init}, eps={self.eps}"


def convert_to_sdd(sublayer: nn.Module, depth: int) -> nn.Module:
    """Replace every linear layer of a sub-layer (attention or feed-forward) by an SDDLinear, in place; return it.

    V is the layer's own weight, a bias is dropped.  alpha starts at 1, and at 1 / sqrt(depth) in the output projection
    (Sec. 4.1), which is told by its name: out, down, proj, fc2, o_proj or down_proj.  A fused `qkv` is three layers.
    Do this before the optimizer is made.  Raises ValueError if depth < 1 or there is no such layer.
    """
    if depth < 1:
        raise ValueError(f"depth={depth} is no number of blocks: write 1 or more")
    linears = {name: layer for name, layer in sublayer.named_modules() if isinstance(layer, nn.Linear)}
    ends = {name: name.rpartition(".")[2] for name in linears}
    if not set(ends.values()) & set(OUTPUTS):
        raise ValueError(
            f"{type(sublayer).__name__} has no linear layer that is named {', '.join(OUTPUTS)}: rename its last one"
        )
    for name, layer in linears.items():
        sdd = SDDLinear(
            layer.in_features,
            layer.out_features,
            device=layer.weight.device,
            dtype=layer.weight.dtype,
            groups=FUSED.get(ends[name], 1),
            alpha_init=depth**-0.5 if ends[name] in OUTPUTS else 1.0,
        )
        sdd.weight = layer.weight  # D4
        sublayer.set_submodule(name, sdd.train(layer.training))
    return sublayer


class PostSDD(Post):
    """A placement: y = Norm(x + f(x)) with f's linear layers SDD, called as PostSDD(sublayer, norm, dim, index, depth).

    x, y: (..., dim).  The sub-layer is converted by `convert_to_sdd`, which raises what it raises.
    """

    def __init__(self, sublayer: nn.Module, norm: Norm, dim: int, index: int, depth: int):
        super().__init__(convert_to_sdd(sublayer, depth), norm, dim, index, depth)


class PreSDD(Pre):
    """A placement: y = x + f(Norm(x)) with f's linear layers SDD (Sec. 4.4, SDD on Pre-Norm); arguments as PostSDD."""

    def __init__(self, sublayer: nn.Module, norm: Norm, dim: int, index: int, depth: int):
        super().__init__(convert_to_sdd(sublayer, depth), norm, dim, index, depth)
