"""Wide residual networks (Zagoruyko & Komodakis, BMVC 2016, arXiv:1605.07146), Sec. 2 and 3.

WRN-n-k has n = 6N + 4 convolutions (the projections of three shortcuts among them) and the widening factor k: a 3 x 3
convolution to 16 channels, three groups of N units of 16k, 32k and 64k channels, BN, ReLU, the mean over the map and a
linear layer.  A unit is the pre-activation unit of two 3 x 3 layers (`repro.papers.preact_resnet`), with dropout
between them:

    z = relu(BN(x)),     y = conv3x3(dropout(relu(BN(conv3x3(z))))) + (x, or conv1x1(z) where the shape changes)

x: (B, c_in, H, W), y: (B, c_out, H / stride, W / stride).  Parameters grow as k^2 and in proportion to N.  Convolutions
have no bias; gains of BatchNorm start at 1, its biases at 0.

Where the paper leaves a choice:
  D1  dropout acts on single numbers, as in the authors' Torch code, and is off unless asked for (theirs: 0.3 on CIFAR,
      0.4 on SVHN).
  D2  convolutions start as N(0, 2 / fan_out), as in that code; the linear layer as N(0, 1 / fan_in) (theirs: torch's
      default), its bias at 0.
  D3  with k = 1 the first unit of the first group changes no shape and has no projection, as in that code.
"""

from functools import partial

import torch
from torch import nn

from repro.models.convnet import Slots
from repro.papers.preact_resnet import PreActBlock, PreActResNet

__all__ = ["WideBlock", "wide_resnet", "wrn_16_4", "wrn_16_8", "wrn_28_10", "wrn_40_2", "wrn_40_4"]


class WideBlock(PreActBlock):
    """The unit above (B(3, 3) of Sec. 2.1).  Arguments are those of a block of `repro.models.convnet`, and dropout."""

    def __init__(
        self, c_in: int, c_out: int, stride: int, slots: Slots, index: int, depth: int, *, dropout: float = 0.0
    ):
        super().__init__(c_in, c_out, stride, slots, index, depth)
        self.act2 = nn.Sequential(self.act2, nn.Dropout(dropout)) if dropout else self.act2


def wide_resnet(
    depth: int,
    widen_factor: int,
    num_classes: int = 10,
    in_channels: int = 3,
    *,
    dropout: float = 0.0,
    width: int = 16,
    generator: torch.Generator | None = None,
) -> PreActResNet:
    """WRN-depth-widen_factor for CIFAR.  x: (B, in_channels, H, W) -> logits (B, num_classes).

    width: channels of the first layer, and of the first group at k = 1.  generator: draws the weights; PyTorch's own
    unless given.  Raises ValueError where depth is not 6N + 4 or the factor is below 1.
    """
    n, rest = divmod(depth - 4, 6)
    if rest or n < 1 or widen_factor < 1:
        raise ValueError(f"WRN-{depth}-{widen_factor} is not WRN-(6N + 4)-k; write {max(n, 1) * 6 + 4} and k from 1 on")
    return PreActResNet(
        [n] * 3,
        [widen_factor * width * 2**group for group in range(3)],
        stem_width=width,
        classes=num_classes,
        channels=in_channels,
        block=partial(WideBlock, dropout=dropout),
        generator=generator,
    )


def wrn_16_4(
    num_classes: int = 10, in_channels: int = 3, *, dropout: float = 0.0, generator: torch.Generator | None = None
) -> PreActResNet:
    """WRN-16-4; 2.7 million parameters."""
    return wide_resnet(16, 4, num_classes, in_channels, dropout=dropout, generator=generator)


def wrn_16_8(
    num_classes: int = 10, in_channels: int = 3, *, dropout: float = 0.0, generator: torch.Generator | None = None
) -> PreActResNet:
    """WRN-16-8; 11.0 million parameters."""
    return wide_resnet(16, 8, num_classes, in_channels, dropout=dropout, generator=generator)


def wrn_28_10(
    num_classes: int = 10, in_channels: int = 3, *, dropout: float = 0.0, generator: torch.Generator | None = None
) -> PreActResNet:
    """WRN-28-10; 36.5 million parameters."""
    return wide_resnet(28, 10, num_classes, in_channels, dropout=dropout, generator=generator)


def wrn_40_2(
    num_classes: int = 10, in_channels: int = 3, *, dropout: float = 0.0, generator: torch.Generator | None = None
) -> PreActResNet:
    """WRN-40-2; 2.2 million parameters."""
    return wide_resnet(40, 2, num_classes, in_channels, dropout=dropout, generator=generator)


def wrn_40_4(
    num_classes: int = 10, in_channels: int = 3, *, dropout: float = 0.0, generator: torch.Generator | None = None
) -> PreActResNet:
    """WRN-40-4; 8.9 million parameters."""
    return wide_resnet(40, 4, num_classes, in_channels, dropout=dropout, generator=generator)
