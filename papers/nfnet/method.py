"""Adaptive gradient clipping and NFNets (Brock, De, Smith & Simonyan, ICML 2021, arXiv:2102.06171).

    G_i <- lambda ||W_i||* / ||G_i|| G_i   where ||G_i|| / ||W_i||* > lambda;   ||W_i||* = max(||W_i||, eps)     (Eq. 3)

G_i and W_i: gradient and weights of one output unit i, over its fan-in: row i of a matrix (out, in), w[i] of a
convolution (out, in / groups, kh, kw).  Euclidean norms; lambda = 0.01, eps = 1e-3.  Gradients are clipped before
weight decay and momentum see them; the weight of the final linear layer is left out (Sec. 4.1), which is for the
caller to say (`exclude`).

NFNet-F (Sec. 5, Table 1): depths N (1, 2, 6, 3), N = 1 to 7 for F0 to F6, widths (256, 512, 1536, 1536); x: (B, 3,
height, width) -> (B, classes).  NF blocks, Scaled WS and gamma are those of `repro.papers.nf_resnet`, with its
initial values: gains 1, biases 0, skip gain 0.  The classifier starts as N(0, 0.01^2).

    D1  Tensors with at most one axis longer than 1 (biases, gains, scalars) are one unit, as in the authors' code
        (google-deepmind/deepmind-research, nfnets/optim.py); Eq. 3 speaks of matrices.
    D2  Norms are taken in float32 at least.  The code's floor of 1e-6 under ||G_i|| is left out: where it would matter
        (lambda eps < 1e-6) it breaks the bound.
    D3  3 x 3 convolutions are padded by 1 on each side; "SAME" of the code pads strided ones on one side only.
    D4  The activation reads x / beta, as the paper writes (code: gelu(x) / beta); gamma is exact (code: 1.7015).
    D5  No stochastic depth, moving average or augmentation: they belong to the recipe for ImageNet.
"""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

__all__ = ["AGC", "adaptive_clip_grad_", "unitwise_norm"]


def unitwise_norm(x: Tensor) -> Tensor:
    """||x_i|| of each output unit i (Sec. 4), float32 at least; broadcasts against x.

    x: (out, ...) -> (out, 1, ...), or a scalar where x has at most one axis longer than 1 (D1).  Integers: TypeError.
    """
    if not x.is_floating_point():
        raise TypeError(f"a gradient norm needs floating-point input, got {x.dtype}: write x.float()")
    axes = tuple(range(1, x.dim())) if x.squeeze().dim() > 1 else None  # D1
    return torch.linalg.vector_norm(
        x, dim=axes, keepdim=axes is not None, dtype=torch.promote_types(x.dtype, torch.float32)
    )


@torch.no_grad()
def adaptive_clip_grad_(parameters: Tensor | Iterable[Tensor], clipping: float = 0.01, eps: float = 1e-3) -> None:
    """Eq. 3 for every unit of every parameter that has a gradient, in place on `.grad`; other units stay bitwise the
    same.

    parameters: those to clip, so without the weight of the final linear layer.  clipping: lambda.  ValueError unless
    both numbers are above 0.
    """
    if not (clipping > 0 and eps > 0):
        raise ValueError(f"clipping={clipping}, eps={eps}: write numbers above 0; to clip nothing, drop AGC")
    for p in [parameters] if isinstance(parameters, Tensor) else parameters:
        if p.grad is not None:
            norm, bound = unitwise_norm(p.grad), clipping * unitwise_norm(p).clamp_min(eps)
            p.grad.mul_(torch.where(norm > bound, bound / norm, 1.0))


class AGC(torch.optim.Optimizer):
    """An optimizer that clips by Eq. 3 and then steps as the one that it wraps: AGC(SGD(model.parameters(), lr=0.1)).

    exclude: parameters that are not clipped, such as exclude=[model.head.weight] (Sec. 4.1).  Parameter groups, state,
    state dict and everything else are those of the wrapped `optimizer`; a closure's gradients are clipped as well.
    TypeError if `optimizer` is none, ValueError where `exclude` holds what it does not train, or numbers not above 0.
    """

    _step_supports_amp_scaling = False  # so that GradScaler unscales before we clip

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        clipping: float = 0.01,
        eps: float = 1e-3,
        exclude: Sequence[Tensor] = (),
    ):
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(
                f"{type(optimizer).__name__} is no optimizer; write AGC(torch.optim.SGD(parameters, lr=0.1))"
            )
        trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
        if isinstance(exclude, Tensor) or any(id(p) not in trained for p in exclude):
            raise ValueError("exclude holds what the optimizer does not train; write exclude=[model.head.weight]")
        adaptive_clip_grad_([], clipping, eps)  # checks the numbers
        self.optimizer, self.clipping, self.eps, self.exclude = optimizer, clipping, eps, list(exclude)
        for name in ("add_param_group", "load_state_dict", "state_dict", "zero_grad"):
            setattr(self, name, getattr(optimizer, name))

    def __reduce__(self) -> tuple:  # for copies
        return type(self), (self.optimizer, self.clipping, self.eps, self.exclude)

    def __getattr__(self, name: str) -> object:
        return getattr(self.__dict__["optimizer"], name)

    def clip_(self) -> None:
        """Clip the gradients as they are now."""
        kept = {id(p) for p in self.exclude}
        clipped = [p for group in self.param_groups for p in group["params"] if id(p) not in kept]
        adaptive_clip_grad_(clipped, self.clipping, self.eps)

    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """Clip, then step."""

        def clipped() -> Tensor:
            loss = closure()
            self.clip_()
            return loss

        self.clip_()
        return self.optimizer.step(None if closure is None else clipped)
