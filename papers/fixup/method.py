"""Fixup (Zhang, Dauphin & Ma, ICLR 2019, arXiv:1901.09321), Sec. 3: a residual network without normalization.

    Rule 1  the last weight layer of every residual branch and the classification layer start at 0;
    Rule 2  every other layer starts by a standard method, and the weight layers inside branches are then multiplied by
            L^(-1 / (2m - 2)): L branches in the network, m weight layers in a branch (m = 2: L^-1/2, m = 3: L^-1/4);
    Rule 3  a scalar multiplier (from 1) in every branch, and a scalar bias (from 0) before each convolution, linear and
            element-wise activation layer.

    y = relu(skip(x) + scale * conv2(relu(conv1(x + b1a) + b1b) + b2a) + b2b)      x: (B, c_in, H, W)

y: (B, c_out, H / stride, W / stride).  Scalars have shape (1,), as in the authors' code (hongyi-zhang/Fixup), whose
names they keep.  Convolutions have no bias of their own.  Training and evaluation agree, and no case depends on the
batch.

Where the paper leaves a choice:
  D1  "a standard method" is N(0, 2 / fan): for convolutions, the stem too, fan_out as in the authors' code (whose stem
      keeps torch's default); for linear layers fan_in.  What is outside the branches `fixup_init_` leaves as it was
      built.
  D2  attention counts q, k, v and the output as m = 4 layers, L^-1/6, as the authors' Transformer does; q, k, v are
      drawn as N(0, 1 / fan_in), since no ReLU follows (theirs: Xavier, uniform).
  D3  the gate of a gated feed-forward layer counts as a layer: m = 3.  The paper has none.
  D4  where the shape changes the shortcut reads x + b1a, as in the authors' code: every stride-th pixel and zeros for
      new channels (basic block), or an unscaled 1 x 1 convolution without bias (bottleneck).
  D5  `fixup_groups` gives lr / 10 to every bias and multiplier, those of linear layers too, as the authors' script
      does.
"""

import torch
from torch import Tensor, nn

__all__ = ["fixup_groups", "fixup_init_"]

BRANCHES = {  # package.class: the weight layers of each residual branch that it holds, the last one last
    "repro.FixupBasicBlock": ["conv1 conv2"],
    "repro.FixupBottleneck": ["conv1 conv2 conv3"],
    "repro.Branch": ["up down"],
    "repro.FeedForward": ["up gate down"],
    "repro.Attention": ["qkv out"],
    "timm.Attention": ["qkv proj"],
    "timm.Mlp": ["fc1 fc2"],
    "torch.TransformerEncoderLayer": ["self_attn.in_proj self_attn.out_proj", "linear1 linear2"],
    "torch.TransformerDecoderLayer": [
        "self_attn.in_proj self_attn.out_proj",
        "linear1 linear2",
        "multihead_attn.in_proj multihead_attn.out_proj",
    ],
}


@torch.no_grad()
def rescale_(weights: list[Tensor], branches: int, m: int) -> None:
    """Rules 1 and 2 on the weights of one of L = `branches` branches, drawn by a standard method."""
    for weight in weights[:-1]:
        weight.mul_(branches ** (-1 / (2 * m - 2)))
    weights[-1].zero_()


def is_scalar(name: str) -> bool:
    """Is the parameter of this name a bias or a multiplier?"""
    return "bias" in name.rpartition(".")[2] or name.rpartition(".")[2] == "scale"


def find_branches(model: nn.Module) -> list[tuple[list[Tensor], int]]:
    """(weights, m) of every residual branch that BRANCHES knows; a subclass counts as its base."""
    found = []
    for module in model.modules():
        kinds = (f"{kind.__module__.split('.')[0]}.{kind.__name__}" for kind in type(module).__mro__)
        for names in next((BRANCHES[kind] for kind in kinds if kind in BRANCHES), ()):
            held = {
                n: p for n in names.split() for k, p in module.named_parameters() if k in (f"{n}.weight", f"{n}_weight")
            }
            found.append((list(held.values()), len(held) + 2 * any(n.endswith(("qkv", "in_proj")) for n in held)))  # D2
    return found


@torch.no_grad()
def fixup_init_(
    model: nn.Module, generator: torch.Generator | None = None, *, branches: list[list[Tensor]] | None = None
) -> None:
    """Rules 1 and 2 on a finished residual network or Transformer, in place; fits the slot `init` of the models.

    Branches are those of our Fixup blocks, of `repro.models.mlp.ResidualMLP`, of GPT, of timm's Attention and Mlp and
    of torch's TransformerEncoderLayer and TransformerDecoderLayer.  For other models pass `branches`: of every branch
    the weights, the last layer's last.  Weights in branches are drawn anew, the biases beside them become 0, and
    Fixup's scalars are put back.  The classifier is the last nn.Linear that is registered after all branches; a model
    may have none.  Everything else (stem, embeddings, projections, norms) is left as it is.

    Raises ValueError where no branch is found, a branch has one weight, or the classifier is tied to another layer.
    """
    found = find_branches(model) if branches is None else [(weights, len(weights)) for weights in branches]
    if not found or min(m for _, m in found) < 2:
        raise ValueError(
            f"{type(model).__name__}: knows no residual branch of 2 or more layers; "
            "write branches=[[first.weight, ..., last.weight], ...]"
        )
    modules, drawn, last = list(model.modules()), {id(weight) for weights, _ in found for weight in weights}, -1
    for i, module in enumerate(modules):
        last = i if any(id(parameter) in drawn for parameter in module.parameters(recurse=False)) else last
        for name, parameter in module.named_parameters(recurse=False):
            if is_scalar(name) and (last == i or getattr(module, "fixup_scalars", False)):
                parameter.fill_(name == "scale")
    for head in [module for module in modules[last + 1 :] if isinstance(module, nn.Linear)][-1:]:
        if any(module is not head and getattr(module, "weight", None) is head.weight for module in modules):
            raise ValueError("Rule 1 would zero the layer to which the classifier is tied; untie them")
        for parameter in head.parameters():
            parameter.zero_()
    for weights, m in found:
        for weight in weights:
            fan = weight[0].numel() if weight.dim() == 2 else weight.numel() // weight.shape[1]  # D1
            std = ((2 if m == len(weights) else 1) / fan) ** 0.5  # D2
            weight.copy_(torch.empty(weight.shape, dtype=weight.dtype).normal_(0.0, std, generator=generator))
        rescale_(weights, len(found), m)


def fixup_groups(model: nn.Module, lr_scale: float = 0.1) -> list[dict]:
    """Parameter groups for `repro.train.fit(groups=)`: biases and multipliers learn at `lr_scale` times the rate (D5).

    `lr_scale` is the factor that `repro.train.set_lr` knows; weight decay is for all groups, as in the authors' script.
    """
    groups = [[p for name, p in model.named_parameters() if is_scalar(name) == slow] for slow in (False, True)]
    return [{"params": groups[0]}, {"params": groups[1], "lr_scale": lr_scale}]
