"""Adaptive gradient clipping and NFNets (Brock, De, Smith & Simonyan, ICML 2021, arXiv:2102.06171).

    G_i <- lambda ||W_i||* / ||G_i|| G_i   where ||G_i|| / ||W_i||* > lambda;   ||W_i||* = max(||W_i||, eps)     (Eq. 3)

G_i and W_i: gradient and weights of one output unit i, over its fan-in: row i of a matrix (out, in), w[i] of a convolution
(out, in / groups, kh, kw).  Euclidean norms; lambda = 0.01, eps = 1e-3.  Gradients are clipped before weight decay and
momentum see them; the weight of the final linear layer is left out (Sec. 4.1), which is for the caller to say (`exclude`).

NFNet-F (Sec. 5, Table 1): depths N (1, 2, 6, 3), N = 1 to 7 for F0 to F6, widths (256, 512, 1536, 1536); x: (B, 3, height,
width) -> (B, classes).  NF blocks, Scaled WS and gamma are those of `repro.papers.nf_resnet`, with its initial values:
gains 1, biases 0, skip gain 0.  The classifier starts as N(0, 0.01^2).

    D1  Tensors with at most one axis longer than 1 (biases, gains, scalars) are one unit, as in the authors' code
        (google-deepmind/deepmind-research, nfnets/optim.py); Eq. 3 speaks of matrices.
    D2  Norms are taken in float32 at least.  The code's floor of 1e-6 under ||G_i|| is left out: where it would matter
        (lambda eps < 1e-6) it breaks the bound.
    D3  3 x 3 convolutions are padded by 1 on each side; "SAME" of the code pads strided ones on one side only.
    D4  The activation reads x / beta, as the paper writes (code: gelu(x) / beta); gamma is exact (code: 1.7015).
    D5  No stochastic depth, moving average or augmentation: they belong to the recipe for ImageNet.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from repro.papers.nf_resnet import NFBlock, ScaledActivation, ScaledWSConv2d

__all__ = ["AGC", "NFNetBlock", "adaptive_clip_grad_", "nfnet", "unitwise_norm"]

# variant: N of the depths, dropout, pixels in training, pixels in the test (Table 1)
VARIANTS = {
    "F0": (1, 0.2, 192, 256),
    "F1": (2, 0.3, 224, 320),
    "F2": (3, 0.4, 256, 352),
    "F3": (4, 0.4, 320, 416),
    "F4": (5, 0.5, 384, 512),
    "F5": (6, 0.5, 416, 544),
    "F6": (7, 0.5, 448, 576),
}
Layer = Callable[..., nn.Module]
GELU = ScaledActivation(partial(F.gelu, approximate="tanh"))  # the form of jax.nn.gelu; it has no state


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
    """Eq. 3 for every unit of every parameter that has a gradient, in place on `.grad`; other units stay bitwise the same.

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


class SqueezeExcite(nn.Module):
    """y = 2 sigmoid(W1 relu(W0 mean(x))) x, c / 2 hidden units; the 2 is from the authors' code.  x: (B, c, h, w)."""

    def __init__(self, c: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None):
        super().__init__()
        self.fc0, self.fc1 = (nn.Linear(a, b, device=device, dtype=dtype) for a, b in pairwise((c, c // 2, c)))

    def forward(self, x: Tensor) -> Tensor:
        gate = 2 * torch.sigmoid(self.fc1(F.relu(self.fc0(x.mean((2, 3))))))
        return gate[:, :, None, None] * x


class NFNetBlock(NFBlock):
    """The bottleneck block of NFNet-F (Sec. 5): y = shortcut + alpha skip_gain SE(branch(z)), z = act(x / beta).

    branch: 1 x 1 to c = c_out / 2 channels, two 3 x 3 in groups of `group_width` channels, 1 x 1 to c_out, an activation
    between any two.  shortcut: x, or in a transition block a 1 x 1 convolution of z, which is first averaged over
    2 x 2 where stride = 2.  x: (B, c_in, h, w) -> (B, c_out, h / stride, w / stride), rounded up.
    conv(c_in, c_out, kernel, stride, padding, groups=, device=, dtype=) and act(channels) make the layers.
    """

    def __init__(
        self,
        c_in: int,
        c_out: int,
        stride: int = 1,
        *,
        alpha: float = 0.2,
        beta: float = 1.0,
        group_width: int = 128,
        two_convs: bool = True,
        conv: Layer = ScaledWSConv2d,
        act: Layer = lambda c: GELU,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        if c_out // 2 % group_width:
            raise ValueError(
                f"c_out={c_out}: half of it must be a multiple of group_width={group_width}; write another"
            )
        conv, c = partial(conv, device=device, dtype=dtype), c_out // 2
        branch = [conv(c_in, c, 1), act(c), conv(c, c, 3, stride, 1, groups=c // group_width), act(c)]
        if two_convs:
            branch += [conv(c, c, 3, 1, 1, groups=c // group_width), act(c)]
        branch += [conv(c, c_out, 1), SqueezeExcite(c_out, device=device, dtype=dtype)]
        pool = nn.AvgPool2d(stride, ceil_mode=True, count_include_pad=False)
        projection = nn.Sequential(pool, conv(c_in, c_out, 1)) if stride > 1 or c_in != c_out else None
        super().__init__(act(c_in), nn.Sequential(*branch), projection, alpha=alpha, beta=beta)
        self.to(device=device, dtype=dtype)  # the skip gain


def nfnet(
    variant: str = "F0",
    *,
    classes: int = 1000,
    channels: int = 3,
    depths: Sequence[int] | None = None,
    widths: Sequence[int] = (256, 512, 1536, 1536),
    dropout: float | None = None,
    block: Layer = NFNetBlock,
    conv: Layer = ScaledWSConv2d,
    act: Layer = lambda c: GELU,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> nn.Sequential:
    """NFNet-F0 to F6 (Sec. 5, Table 1) for images of any size, or another of its kind by `depths` and `widths`.

    x: (B, channels, height, width) -> logits (B, classes); the classifier is `.head`.  dropout: that of the variant unless
    given.  block(c_in, c_out, stride, beta=, conv=, act=, device=, dtype=) makes the blocks: partial(NFNetBlock,
    group_width=8) for narrow stages.  device="meta" is enough for counting.  ValueError for an unknown variant.
    """
    if variant not in VARIANTS:
        raise ValueError(f"variant={variant!r} is unknown; write one of {', '.join(VARIANTS)}")
    n, usual, *_ = VARIANTS[variant]
    factory, variance, c = {"device": device, "dtype": dtype}, 1.0, widths[0] // 2
    stem, blocks = [], []
    for (a, b), stride in zip(pairwise((channels, 16, 32, 64, c)), (2, 1, 1, 2), strict=True):
        stem += [conv(a, b, 3, stride, 1, **factory), act(b)]
    for stage, (depth, width) in enumerate(zip(depths or (n, 2 * n, 6 * n, 3 * n), widths, strict=True)):
        for stride in [2 if stage else 1] + [1] * (depth - 1):
            blocks.append(block(c, width, stride, beta=variance**0.5, conv=conv, act=act, **factory))
            c, variance = width, blocks[-1].variance
    head = nn.Linear(2 * c, classes, **factory)
    nn.init.normal_(head.weight, 0.0, 0.01)
    nn.init.zeros_(head.bias)
    return nn.Sequential(
        OrderedDict(
            stem=nn.Sequential(*stem[:-1]),
            blocks=nn.Sequential(*blocks),
            final_conv=conv(c, 2 * c, 1, **factory),
            act=act(2 * c),
            pool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            dropout=nn.Dropout(usual if dropout is None else dropout),
            head=head,
        )
    )
