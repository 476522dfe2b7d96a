"""Scale-Distribution Decoupling, SDD (Wang et al., 2025, arXiv:2502.15499), Sec. 2.2, Eq. 1.

    y = alpha * norm(V x)          norm(z) = z / ||z||,    ||z|| = sqrt(mean_i z_i^2) over the OUTPUT features

x: (..., n), V ("weight"): (m, n), alpha: (m,), y: (..., m); no bias.  It takes the place of every fully connected layer
of a Transformer's blocks (queries, keys, values and output of attention, gate, up and down of the feed-forward network;
Fig. 2), not of the embedding and the head.  alpha starts at 1, at the output of attention and of the feed-forward
network at 1 / sqrt(L), L blocks; V starts as N(0, 1 / (2.5 n)) (Sec. 4.1).  y does not depend on the size of V, only the
step that training takes does: dL/dV goes as 1 / ||V||.  Blocks are Post-Norm, x <- Norm(x + f(x)), or Pre-Norm.

Where the paper leaves a choice, or the authors' code (kaihemo/SDD) differs from it:
  D1  eps = 1e-6 is added to the mean square, as in the class of their README (their training files: 1e-5).
  D2  Each of queries, keys and values is one layer: `groups` = 3 normalises the thirds of a fused projection by
      themselves.  Their model.py normalises queries and keys head by head, values only after attention (all heads
      together), and gate and up of the feed-forward network together.
  D3  ||z|| is taken in float32 at least; y has the dtype of V x (under autocast the lower one), as nn.Linear's would.
  D4  1 / sqrt(L) is the paper's; their code has 1 / sqrt(2 L), with a V that is 10 times smaller (dense/run.sh).
  D5  convert_to_sdd keeps the V that a layer has, and refuses a sub-layer whose output projection it does not know.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from repro.models.slots import Norm, Post, Pre

__all__ = ["PostSDD", "PreSDD", "SDDLinear", "convert_to_sdd"]

OUTPUTS = ("out", "down", "proj", "fc2", "o_proj", "down_proj")  # names of the last layer of a sub-layer
FUSED = {"qkv": 3}  # layers that are several, one above the other


class SDDLinear(nn.Linear):
    """y = alpha * norm(V x) (Eq. 1) in the place of nn.Linear, with `weight` = V, and without a bias.

    x: (..., in_features) -> (..., out_features).  groups: into how many equal slices the outputs are cut that are each
    normalised by themselves.  alpha_init: initial value of alpha.  Raises ValueError where groups does not divide
    out_features.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        groups: int = 1,
        alpha_init: float = 1.0,
        eps: float = 1e-6,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__(in_features, out_features, bias=False, device=device, dtype=dtype)
        if groups < 1 or out_features % groups:
            raise ValueError(f"groups={groups} does not cut {out_features} outputs into equal slices: write a divisor")
        self.groups, self.alpha_init, self.eps = groups, alpha_init, eps
        self.alpha = nn.Parameter(torch.empty(out_features, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=1 / math.sqrt(2.5 * self.in_features))
        if hasattr(self, "alpha"):  # nn.Linear calls this before there is one
            nn.init.constant_(self.alpha, self.alpha_init)

    def forward(self, x: Tensor) -> Tensor:
        z = F.linear(x, self.weight)
        wide = z.to(torch.promote_types(z.dtype, torch.float32))  # D3
        slices = wide.unflatten(-1, (self.groups, z.shape[-1] // self.groups))
        return (F.rms_norm(slices, slices.shape[-1:], None, self.eps).flatten(-2) * self.alpha).to(z.dtype)

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
            groups=FUSED.get(ends[name], 1),
            alpha_init=depth**-0.5 if ends[name] in OUTPUTS else 1.0,
            device=layer.weight.device,
            dtype=layer.weight.dtype,
        )
        sdd.weight = layer.weight
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
