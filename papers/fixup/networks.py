"""Fixup ResNets (Zhang, Dauphin & Ma, ICLR 2019, arXiv:1901.09321, Sec. 3, Figure 1), whose blocks follow all three
rules.
"""

import torch
from torch import Tensor, nn

from repro.models.convnet import ConvNet, Slots
from repro.models.slots import Act, identity
from repro.papers.fixup.method import rescale_

__all__ = ["FixupBasicBlock", "FixupBottleneck", "fixup_resnet"]


class Bias(nn.Module):
    """y = x + b, one number for all of x."""

    fixup_scalars = True  # fixup_init_ puts its parameter back

    def __init__(self):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bias


class FixupBasicBlock(nn.Module):
    """The equation of method.py (Figure 1, right), m = 2, initialised by all three rules.

    Arguments are those of a block of `repro.models.convnet`; `depth` is L, the number of blocks in the network.
    """

    expansion, m = 1, 2
    fixup_scalars = True

    def __init__(self, c_in: int, c_out: int, stride: int, slots: Slots, index: int, depth: int):
        super().__init__()
        for name in [f"bias{i + 1}{side}" for i in range(self.m) for side in "ab"]:
            self.register_parameter(name, nn.Parameter(torch.zeros(1)))
        self.scale = nn.Parameter(torch.ones(1))
        self.build(c_in, c_out, stride, slots)
        self.act, self.skip = slots.act(), slots.skip(c_in, c_out, stride)
        rescale_([getattr(self, f"conv{i + 1}").weight for i in range(self.m)], depth, self.m)

    def build(self, c_in: int, c_out: int, stride: int, slots: Slots) -> None:
        self.conv1, self.conv2 = slots.conv3(c_in, c_out, stride), slots.conv3(c_out, c_out)

    def branch(self, x: Tensor) -> Tensor:
        y = self.act(self.conv1(x + self.bias1a) + self.bias1b)
        return self.conv2(y + self.bias2a) * self.scale + self.bias2b

    def forward(self, x: Tensor) -> Tensor:
        skip = x if isinstance(self.skip, nn.Identity) else self.skip(x + self.bias1a)  # D4
        return self.act(skip + self.branch(x))


class FixupBottleneck(FixupBasicBlock):
    """The same with convolutions 1 x 1 (to c_out / 4), 3 x 3 (with the stride) and 1 x 1, m = 3."""

    expansion, m = 4, 3

    def build(self, c_in: int, c_out: int, stride: int, slots: Slots) -> None:
        c = c_out // 4
        self.conv1, self.conv2, self.conv3 = slots.conv1(c_in, c), slots.conv3(c, c, stride), slots.conv1(c, c_out)

    def branch(self, x: Tensor) -> Tensor:
        y = self.act(self.conv1(x + self.bias1a) + self.bias1b)
        y = self.act(self.conv2(y + self.bias2a) + self.bias2b)
        return self.conv3(y + self.bias3a) * self.scale + self.bias3b


def fixup_resnet(
    depth: int,
    *,
    generator: torch.Generator,
    classes: int = 10,
    width: int = 16,
    channels: int = 3,
    block: type[FixupBasicBlock] = FixupBasicBlock,
    act: Act = nn.ReLU,
) -> ConvNet:
    """The CIFAR ResNet of depth 6n + 2 (FixupBottleneck: 9n + 2) by all three rules.  x: (B, channels, H, W) -> logits.

    Stages of `width`, 2 width and 4 width channels (bottleneck: four times that); a scalar bias follows the stem and
    precedes the classifier.  Raises ValueError for another depth.
    """
    k = 3 * block.m
    n, rest = divmod(depth - 2, k)
    if rest or n < 1:
        raise ValueError(f"depth={depth} is not {k}n + 2; write {max(n, 1) * k + 2} or {(max(n, 1) + 1) * k + 2}")
    model = ConvNet(
        [n] * 3,
        [block.expansion * width * 2**stage for stage in range(3)],
        classes=classes,
        generator=generator,
        channels=channels,
        block=block,
        norm=identity,
        act=act,
        bias=False,
        stem_width=width,
        shortcut="pad" if block.expansion == 1 else "project",
    )
    nn.init.zeros_(model.head.weight)  # Rule 1
    model.norm, model.head = Bias(), nn.Sequential(Bias(), model.head)
    return model
