"""NF-ResNets (Brock, De & Smith, ICLR 2021, arXiv:2101.08692): networks of the blocks of method.py."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from repro.models.convnet import ConvNet, Slots
from repro.models.slots import Act, Init, identity
from repro.papers.nf_resnet.method import NFBlock, ScaledActivation, ScaledWSConv2d

__all__ = ["NFResNet", "nf_resnet"]


class NFResNet(ConvNet):
    """ConvNet as a pre-activation network: its activation follows the last block instead of the stem (Sec. 4)."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.stem(x))
        for block in self.blocks:
            x = block(x)
        return self.head(self.act(x).mean((2, 3)))


def nf_resnet(
    depth: int | None = None,
    *,
    generator: torch.Generator,
    blocks: Sequence[int] | None = None,
    widths: Sequence[int] | None = None,
    width: int = 16,
    classes: int = 10,
    channels: int = 3,
    alpha: float = 0.2,
    skip_gain: float = 0.0,
    act: Act = ScaledActivation,
    conv: Callable[..., nn.Module] = ScaledWSConv2d,
    init: Init | None = None,
    stem: str = "cifar",
    stem_width: int | None = None,
) -> NFResNet:
    """NF-ResNet of NFBlocks with the betas of Sec. 4.  x: (B, channels, height, width) -> logits (B, classes).

    depth = 6n + 2: three stages of n blocks of two 3 x 3 layers, of width, 2 width and 4 width channels.  Or blocks and
    widths: number and output channels of the bottleneck blocks of each stage (1 x 1, 3 x 3 and 1 x 1, a quarter of the
    channels within).  Other arguments as ConvNet's, with `generator` for the weights.  ValueError for any other depth.
    """
    basic = depth is not None
    if basic != (blocks is None) or basic != (widths is None) or basic and (depth < 8 or depth % 6 != 2):
        raise ValueError(f"depth={depth}: write depth=6n + 2, such as 20, or else blocks= and widths= of each stage")
    made: list[NFBlock] = []

    def block(c_in: int, c_out: int, stride: int, slots: Slots, index: int, total: int) -> NFBlock:
        c = c_out // 4
        layers = (
            [slots.conv3(c_in, c_out, stride), slots.act(), slots.conv3(c_out, c_out)]
            if basic
            else [slots.conv1(c_in, c), slots.act(), slots.conv3(c, c, stride), slots.act(), slots.conv1(c, c_out)]
        )
        projection = None if stride == 1 and c_in == c_out else slots.conv1(c_in, c_out, stride)
        beta = made[-1].variance ** 0.5 if made else 1.0
        made.append(
            NFBlock(slots.act(), nn.Sequential(*layers), projection, alpha=alpha, beta=beta, skip_gain=skip_gain)
        )
        return made[-1]

    return NFResNet(
        blocks or [depth // 6] * 3,
        widths or [width, 2 * width, 4 * width],
        classes=classes,
        act=act,
        conv=conv,
        generator=generator,
        channels=channels,
        block=block,
        norm=identity,
        init=init,
        stem=stem,
        stem_width=stem_width,
    )
