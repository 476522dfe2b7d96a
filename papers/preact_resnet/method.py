"""Pre-activation residual networks (He, Zhang, Ren & Sun, ECCV 2016, arXiv:1603.05027).

    x_{l+1} = x_l + F(x_l),     F = conv3x3 . relu . BN . conv3x3 . relu . BN                           PreActBlock
                                F = conv1x1 . relu . BN . conv3x3 . relu . BN . conv1x1 . relu . BN     PreActBottleneck

Nothing follows the addition, so that for any l < L

    x_L = x_l + sum_{i=l}^{L-1} F(x_i)                                                                        (Eq. 4)
    dE/dx_l = dE/dx_L (1 + d/dx_l sum_{i=l}^{L-1} F(x_i))                                                     (Eq. 5)

x: (B, c_in, H, W), x_{l+1}: (B, c_out, H / stride, W / stride).  Where the shape changes, both the branch and the
shortcut, a 1 x 1 convolution, read relu(BN(x_l)).  The network is a 3 x 3 convolution, the units, BN, ReLU, the mean
over the map and a linear layer; a convolution has no bias.  Gains of BatchNorm start at 1, its biases at 0.

The authors' code (KaimingHe/resnet-1k-layers) has the bottleneck alone: 9n + 2 layers, n units in each stage, of 64,
128 and 256 channels, the stride on the first 1 x 1 layer; the first unit of the first stage changes the shape too.

Where the paper leaves a choice:
  D1  the network of 110 layers, of units with two 3 x 3 layers, has projections where the shape changes, as the others;
      its first unit, 16 channels to 16, keeps the identity.
  D2  convolutions start as N(0, 2 / fan_out), as in the authors' code; the linear layer as N(0, 1 / fan_in) (theirs:
      torch's default), its bias at 0.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from repro.models.convnet import ConvNet, Slots

__all__ = [
    "PreActBlock",
    "PreActBottleneck",
    "PreActResNet",
    "preact_resnet",
    "preact_resnet110",
    "preact_resnet164",
    "preact_resnet1001",
]


class PreActBlock(nn.Module):
    """The unit above with two 3 x 3 layers.  Arguments are those of a block of `repro.models.convnet`."""

    expansion, layers = 1, 2

    def __init__(self, c_in: int, c_out: int, stride: int, slots: Slots, index: int, depth: int):
        super().__init__()
        self.norm1, self.act1, self.conv1 = slots.norm(c_in), slots.act(), slots.conv3(c_in, c_out, stride)
        self.norm2, self.act2, self.conv2 = slots.norm(c_out), slots.act(), slots.conv3(c_out, c_out)
        self.skip = None if stride == 1 and c_in == c_out else slots.conv1(c_in, c_out, stride)

    def branch(self, z: Tensor) -> Tensor:
        """F, of z = relu(BN(x))."""
        return self.conv2(self.act2(self.norm2(self.conv1(z))))

    def forward(self, x: Tensor) -> Tensor:
        z = self.act1(self.norm1(x))
        return (x if self.skip is None else self.skip(z)) + self.branch(z)


class PreActBottleneck(PreActBlock):
    """The unit above with 1 x 1 (to c_out / 4, with the stride), 3 x 3 and 1 x 1 layers."""

    expansion, layers = 4, 3

    def __init__(self, c_in: int, c_out: int, stride: int, slots: Slots, index: int, depth: int):
        nn.Module.__init__(self)
        c = c_out // 4
        self.norm1, self.act1, self.conv1 = slots.norm(c_in), slots.act(), slots.conv1(c_in, c, stride)
        self.norm2, self.act2, self.conv2 = slots.norm(c), slots.act(), slots.conv3(c, c)
        self.norm3, self.act3, self.conv3 = slots.norm(c), slots.act(), slots.conv1(c, c_out)
        self.skip = None if stride == 1 and c_in == c_out else slots.conv1(c_in, c_out, stride)

    def branch(self, z: Tensor) -> Tensor:
        return self.conv3(self.act3(self.norm3(super().branch(z))))


class PreActResNet(ConvNet):
    """x: (B, channels, H, W) -> logits (B, classes): `ConvNet` whose norm and activation follow the last unit.

    blocks, widths: number and output channels of the units of each stage; stem_width: channels of the first layer.
    """

    def __init__(
        self,
        blocks: Sequence[int],
        widths: Sequence[int],
        *,
        stem_width: int,
        classes: int = 10,
        channels: int = 3,
        block: Callable[..., nn.Module] = PreActBlock,
        norm: Callable[[int], nn.Module] = nn.BatchNorm2d,
        act: Callable[[], nn.Module] = nn.ReLU,
        generator: torch.Generator | None = None,
    ):
        super().__init__(
            blocks,
            widths,
            classes=classes,
            channels=channels,
            block=block,
            norm=norm,
            act=act,
            bias=False,
            stem_width=stem_width,
            generator=torch.default_generator if generator is None else generator,
        )
        self.norm = norm(widths[-1])

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(self.act(self.norm(x)).mean((2, 3)))


def preact_resnet(
    depth: int,
    num_classes: int = 10,
    in_channels: int = 3,
    *,
    block: type[PreActBlock] = PreActBlock,
    width: int = 16,
    generator: torch.Generator | None = None,
) -> PreActResNet:
    """The CIFAR network of 6n + 2 layers (PreActBottleneck: 9n + 2).  x: (B, in_channels, H, W) -> (B, num_classes).

    width: channels of the first layer and of the 3 x 3 layers of the first stage.  generator: draws the weights;
    PyTorch's own unless given.  Raises ValueError for another depth.
    """
    k = 3 * block.layers
    n, rest = divmod(depth - 2, k)
    if rest or n < 1:
        raise ValueError(f"depth={depth} is not {k}n + 2; write {max(n, 1) * k + 2} or {(max(n, 1) + 1) * k + 2}")
    widths = [block.expansion * width * 2**stage for stage in range(3)]
    options = {"classes": num_classes, "channels": in_channels, "block": block, "generator": generator}
    return PreActResNet([n] * 3, widths, stem_width=width, **options)


def preact_resnet110(
    num_classes: int = 10, in_channels: int = 3, *, generator: torch.Generator | None = None
) -> PreActResNet:
    """54 units of two 3 x 3 layers."""
    return preact_resnet(110, num_classes, in_channels, generator=generator)


def preact_resnet164(
    num_classes: int = 10, in_channels: int = 3, *, generator: torch.Generator | None = None
) -> PreActResNet:
    """54 bottleneck units; 1.7 million parameters."""
    return preact_resnet(164, num_classes, in_channels, block=PreActBottleneck, generator=generator)


def preact_resnet1001(
    num_classes: int = 10, in_channels: int = 3, *, generator: torch.Generator | None = None
) -> PreActResNet:
    """333 bottleneck units; 10.2 million parameters without those of BatchNorm."""
    return preact_resnet(1001, num_classes, in_channels, block=PreActBottleneck, generator=generator)
