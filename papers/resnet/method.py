"""Residual networks (He, Zhang, Ren & Sun, CVPR 2016, arXiv:1512.03385), Sec. 3 and 4.

    y = relu( F(x) + S(x) )       F = BN . conv3x3 . relu . BN . conv3x3                            BasicBlock
                                  F = BN . conv1x1 . relu . BN . conv3x3 . relu . BN . conv1x1      BottleneckBlock
    y = relu( F(x) )                                                                                PlainBlock

x: (B, c_in, H, W), y: (B, c_out, H / stride, W / stride).  S is the identity; where a stage doubles the channels and
halves the map it is, without parameters, every second pixel and zeros for the new channels ("pad", option A), or a
1 x 1 convolution ("project", option B).  The ReLU comes behind the addition; convolutions have no bias.

CIFAR networks (Sec. 4.2) have 6n + 2 layers: a 3 x 3 convolution to 16 channels, n blocks each of 16, 32 and 64
channels, the mean over the map and a linear layer; all shortcuts are of option A.  ImageNet networks (Table 1) have a
7 x 7 convolution and a max-pool before four stages.  Gains of BatchNorm start at 1, its biases at 0.

The blocks and the loop over them are those of `repro.models.convnet`, which other papers build on too.

Where the paper leaves a choice, or we depart from it:
  D1  the stride of a bottleneck is on its 3 x 3 layer, as torchvision has it; the authors' models have it on the first
      1 x 1 layer.  Parameters are the same, the operations are not.
  D2  "the initialization in [13]" is N(0, 2 / fan_out) for convolutions, the backward form; the linear layer starts
      as N(0, 1 / fan_in).  The paper does not tell which form it takes.
  D3  ImageNet networks have option B unless told otherwise (the paper has A in Table 2, B for 50 layers and more), and
      a BatchNorm behind the projection, as torchvision has it.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from repro.models.convnet import Basic as BasicBlock
from repro.models.convnet import Bottleneck as BottleneckBlock
from repro.models.convnet import ConvNet, cifar_resnet
from repro.models.convnet import Plain as PlainBlock

__all__ = [
    "BasicBlock",
    "BottleneckBlock",
    "PlainBlock",
    "load_torchvision_",
    "plain18",
    "plain20",
    "plain32",
    "plain34",
    "plain44",
    "plain56",
    "plain110",
    "resnet18",
    "resnet20",
    "resnet32",
    "resnet34",
    "resnet44",
    "resnet50",
    "resnet56",
    "resnet101",
    "resnet110",
    "resnet152",
    "resnet1202",
]


def _cifar(depth: int, block: type[nn.Module] = BasicBlock) -> Callable[..., ConvNet]:
    """The constructor of the CIFAR network of 6n + 2 layers."""

    def build(
        num_classes: int = 10,
        in_channels: int = 3,
        *,
        width: int = 16,
        shortcut: str = "pad",
        norm: Callable[[int], nn.Module] = nn.BatchNorm2d,
        generator: torch.Generator | None = None,
    ) -> ConvNet:
        return cifar_resnet(
            depth,
            classes=num_classes,
            channels=in_channels,
            width=width,
            shortcut=shortcut,
            norm=norm,
            block=block,
            generator=torch.default_generator if generator is None else generator,
        )

    return _named(build, depth, block, "CIFAR")


def _imagenet(depth: int, blocks: list[int], block: type[nn.Module] = BasicBlock) -> Callable[..., ConvNet]:
    """The constructor of an ImageNet network (Table 1)."""

    def build(
        num_classes: int = 1000,
        in_channels: int = 3,
        *,
        width: int = 64,
        shortcut: str = "project",
        norm: Callable[[int], nn.Module] = nn.BatchNorm2d,
        generator: torch.Generator | None = None,
    ) -> ConvNet:
        return ConvNet(
            blocks,
            [block.expansion * width * 2**stage for stage in range(4)],
            classes=num_classes,
            channels=in_channels,
            shortcut=shortcut,
            norm=norm,
            block=block,
            stem="imagenet",
            stem_width=width,
            generator=torch.default_generator if generator is None else generator,
        )

    return _named(build, depth, block, "ImageNet")


def _named(build: Callable[..., ConvNet], depth: int, block: type[nn.Module], data: str) -> Callable[..., ConvNet]:
    kind = "plain" if block is PlainBlock else "resnet"
    build.__name__ = build.__qualname__ = f"{kind}{depth}"
    build.__doc__ = (
        f"The {'plain' if kind == 'plain' else 'residual'} network of {depth} layers for {data}.  "
        "x: (B, in_channels, H, W) -> logits (B, num_classes).\n\n"
        "width: channels of the first stage.  shortcut: pad (option A) or project (option B); a plain network has\n"
        "none.  generator: draws the weights; PyTorch's own unless given."
    )
    return build


resnet20, resnet32, resnet44, resnet56 = _cifar(20), _cifar(32), _cifar(44), _cifar(56)
resnet110, resnet1202 = _cifar(110), _cifar(1202)
plain20, plain32, plain44 = _cifar(20, PlainBlock), _cifar(32, PlainBlock), _cifar(44, PlainBlock)
plain56, plain110 = _cifar(56, PlainBlock), _cifar(110, PlainBlock)
resnet18, resnet34 = _imagenet(18, [2, 2, 2, 2]), _imagenet(34, [3, 4, 6, 3])
plain18, plain34 = _imagenet(18, [2, 2, 2, 2], PlainBlock), _imagenet(34, [3, 4, 6, 3], PlainBlock)
resnet50 = _imagenet(50, [3, 4, 6, 3], BottleneckBlock)
resnet101 = _imagenet(101, [3, 4, 23, 3], BottleneckBlock)
resnet152 = _imagenet(152, [3, 8, 36, 3], BottleneckBlock)


def load_torchvision_(model: ConvNet, state_dict: Mapping[str, Tensor]) -> None:
    """Load a state dict of torchvision's ResNet of the same kind into `model`, in place: both keep one order of layers.

    Raises ValueError where numbers or shapes of the tensors differ.
    """
    own = model.state_dict()
    if [v.shape for v in own.values()] != [v.shape for v in state_dict.values()]:
        raise ValueError(f"{len(state_dict)} tensors do not fit these {len(own)}: write a ResNet of the same depth")
    model.load_state_dict(dict(zip(own, state_dict.values(), strict=True)))
