"""Res2Net (Gao, Cheng, Zhao, Zhang, Yang & Torr, TPAMI 2021, arXiv:1904.01169), Sec. 3.1.

A bottleneck whose 3 x 3 layer becomes a hierarchy.  Behind the first 1 x 1 layer the channels are split into s subsets
x_1 ... x_s of w channels each (Eq. 1):

    y_1 = x_1,     y_2 = K_2(x_2),     y_i = K_i(x_i + y_{i-1})  for 2 < i <= s,     K = relu . BN . conv3x3 (w to w)
    y = relu( BN(conv1x1([y_1, ..., y_s])) + shortcut(x) )

x: (B, c_in, H, W), y: (B, c_out, H / stride, W / stride).  s = 1 is the bottleneck of ResNet.  "26w x 4s" has s = 4 and
w = 26 in a stage of 64 planes, in proportion elsewhere, rounded down.  The 3 x 3 layers have (s - 1) / s^2 of the
parameters that one layer over all sw channels has, and the largest receptive field of a block is 2 (s - 1) + 1.
Convolutions have no bias; gains of BatchNorm start at 1, its biases at 0.

Where the paper and the authors' code (Res2Net/Res2Net-PretrainedModels) differ, or leave a choice:
  D1  the subset without a convolution is the last one, as in the code, and not x_1: the same graph under other labels.
  D2  in the first block of a stage, as in the code, nothing is added, each subset has a convolution of its own with the
      stride, and the one without has a 3 x 3 mean with the stride, which counts the zeros around the map.
  D3  convolutions start as N(0, 2 / fan_out), as in the code; the linear layer as N(0, 1 / fan_in) (theirs: torch's
      default), its bias at 0.
  D4  cardinality (Res2NeXt) and squeeze-and-excitation are left out.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from repro.models.convnet import ConvNet, Slots

__all__ = [
    "Res2NetBlock",
    "res2net101_26w_4s",
    "res2net50_14w_8s",
    "res2net50_26w_4s",
    "res2net50_26w_6s",
    "res2net50_26w_8s",
    "res2net50_48w_2s",
]


class Res2NetBlock(nn.Module):
    """The block above.  Arguments are those of a block of `repro.models.convnet`, and w (at 64 planes) and s.

    Raises ValueError where w would be 0 or s is below 1.
    """

    expansion = 4

    def __init__(
        self,
        c_in: int,
        c_out: int,
        stride: int,
        slots: Slots,
        index: int,
        depth: int,
        *,
        base_width: int = 26,
        scale: int = 4,
    ):
        super().__init__()
        w = self.width = c_out // self.expansion * base_width // 64
        if w < 1 or scale < 1:
            raise ValueError(f"base_width={base_width}, scale={scale} leave no channel at {c_out}; write larger ones")
        self.first = stride != 1 or c_in != c_out  # D2
        self.conv1, self.norm1, self.act = slots.conv1(c_in, w * scale), slots.norm(w * scale), slots.act()
        self.convs = nn.ModuleList(slots.conv3(w, w, stride) for _ in range(max(1, scale - 1)))
        self.norms = nn.ModuleList(slots.norm(w) for _ in self.convs)
        self.pool = nn.AvgPool2d(3, stride, 1) if self.first else nn.Identity()
        self.conv3, self.norm3 = slots.conv1(w * scale, c_out), slots.norm(c_out)
        self.skip = slots.skip(c_in, c_out, stride)

    def hierarchy(self, x: Tensor) -> Tensor:
        """(B, sw, H, W) -> (B, sw, H / stride, W / stride): the y_i side by side."""
        splits, y = x.split(self.width, 1), []
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            alone = i == 0 or self.first
            y.append(self.act(norm(conv(splits[i] if alone else splits[i] + y[-1]))))
        return torch.cat([*y, *map(self.pool, splits[len(y) :])], 1)  # D1

    def forward(self, x: Tensor) -> Tensor:
        y = self.hierarchy(self.act(self.norm1(self.conv1(x))))
        return self.act(self.norm3(self.conv3(y)) + self.skip(x))


def _imagenet(layers: int, blocks: list[int], base_width: int, scale: int) -> Callable[..., ConvNet]:
    """The constructor of a network with the stages of ResNet-50 or ResNet-101."""

    def build(
        num_classes: int = 1000, in_channels: int = 3, *, width: int = 64, generator: torch.Generator | None = None
    ) -> ConvNet:
        return ConvNet(
            blocks,
            [4 * width * 2**stage for stage in range(4)],
            classes=num_classes,
            channels=in_channels,
            block=partial(Res2NetBlock, base_width=base_width, scale=scale),
            stem="imagenet",
            stem_width=width,
            generator=torch.default_generator if generator is None else generator,
        )

    build.__name__ = build.__qualname__ = f"res2net{layers}_{base_width}w_{scale}s"
    build.__doc__ = (
        f"Res2Net-{layers}, {base_width}w x {scale}s.  x: (B, in_channels, H, W) -> logits (B, num_classes).\n\n"
        "width: channels of the first layer, and planes of the first stage.  generator: draws the weights; PyTorch's\n"
        "own unless given."
    )
    return build


res2net50_26w_4s = _imagenet(50, [3, 4, 6, 3], 26, 4)
res2net50_48w_2s = _imagenet(50, [3, 4, 6, 3], 48, 2)
res2net50_14w_8s = _imagenet(50, [3, 4, 6, 3], 14, 8)
res2net50_26w_6s = _imagenet(50, [3, 4, 6, 3], 26, 6)
res2net50_26w_8s = _imagenet(50, [3, 4, 6, 3], 26, 8)
res2net101_26w_4s = _imagenet(101, [3, 4, 23, 3], 26, 4)
