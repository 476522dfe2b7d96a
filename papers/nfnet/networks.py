"""NFNet-F (Brock, De, Smith & Simonyan, ICML 2021, arXiv:2102.06171, Sec. 5 and Table 1), the networks that AGC trains.

Departures D3 to D5 of method.py are about this file.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from repro.papers.nf_resnet.method import NFBlock, ScaledActivation, ScaledWSConv2d

__all__ = ["NFNetBlock", "nfnet"]

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

    branch: 1 x 1 to c = c_out / 2 channels, two 3 x 3 in groups of `group_width` channels, 1 x 1 to c_out, an
    activation between any two.  shortcut: x, or in a transition block a 1 x 1 convolution of z, which is first
    averaged over 2 x 2 where stride = 2.  x: (B, c_in, h, w) -> (B, c_out, h / stride, w / stride), rounded up.
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

    x: (B, channels, height, width) -> logits (B, classes); the classifier is `.head`.  dropout: that of the variant
    unless given.  block(c_in, c_out, stride, beta=, conv=, act=, device=, dtype=) makes the blocks:
    partial(NFNetBlock, group_width=8) for narrow stages.  device="meta" is enough for counting.  ValueError for an
    unknown variant.
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
