"""Signal propagation plots (Brock, De & Smith, ICLR 2021, arXiv:2101.08692, Sec. 3), the paper's way to look at a
network.
"""

import torch
from torch import Tensor, nn

from repro.models.convnet import Basic, Bottleneck
from repro.papers.nf_resnet.method import NFBlock

__all__ = ["signal_propagation_plot"]


@torch.no_grad()
def signal_propagation_plot(model: nn.Module, x: Tensor | None = None) -> dict[str, list]:
    """The curves of a signal propagation plot (Sec. 3), one number per residual block in the order of the model.

        block            1, 2, ...
        squared_mean     of the block's output: mean over channels of (mean over the other axes)^2
        variance         of the block's output: mean over channels of the (biased) variance over the other axes
        branch_variance  that variance at the end of the residual branch, before alpha, skip gain and addition

    Blocks are NFBlock, and Basic and Bottleneck of repro.models.convnet.  x: 64 images N(0, 1) of 32 x 32 unless given.
    The model stays in its mode, its running statistics stay as they are.  ValueError where there is no block.
    """
    ends = ((NFBlock, "branch"), (Bottleneck, "norm3"), (Basic, "norm2"))
    pairs = [(m, m.get_submodule(end)) for m in model.modules() for kind, end in ends if isinstance(m, kind)]
    if not pairs:
        raise ValueError("the model has no residual block; write one made of NFBlock, Basic or Bottleneck")
    stem = next(model.parameters())
    x = torch.randn(64, stem.shape[1], 32, 32, generator=torch.Generator().manual_seed(0)) if x is None else x
    seen = dict.fromkeys(module for pair in pairs for module in pair)

    def record(module: nn.Module, args: tuple, y: Tensor) -> None:
        if module in seen:
            variance, mean = torch.var_mean(y.double(), [0, *range(2, y.dim())], correction=0)
            seen[module] = float(mean.square().mean()), float(variance.mean())

    with nn.modules.module.register_module_forward_hook(record):
        torch.func.functional_call(model, {k: b.clone() for k, b in model.named_buffers()}, (x.to(stem),))
    rows = [(i, *seen[block], seen[end][1]) for i, (block, end) in enumerate(pairs, 1)]
    names = ("block", "squared_mean", "variance", "branch_variance")
    return dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
