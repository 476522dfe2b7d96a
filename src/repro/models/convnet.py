"""Residual and plain convolution networks (He et al. 2016, arXiv:1512.03385) with slots.

conv(c_in, c_out, kernel, stride, padding, bias=) -> Module    nn.Conv2d, or a paper's own
block(c_in, c_out, stride, slots, index, depth) -> Module      `Basic`, `Bottleneck`, `Plain`, or a paper's own;
                                                               `slots.conv3`, `.conv1`, `.norm`, `.act` build it
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from repro.models.slots import Act, Init, Norm, draw_, fan_out, has_bias, linear


@dataclass(frozen=True)
class Slots:
    """What blocks are made of; weights are drawn as N(0, 2 / fan_out), as in the authors' code."""

    norm: Norm
    act: Act
    conv: Callable[..., nn.Module]
    shortcut: str
    bias: bool
    generator: torch.Generator

    def _conv(self, c_in: int, c_out: int, kernel: int, stride: int) -> nn.Module:
        with torch.random.fork_rng([]):  # constructors draw weights of their own, in vain
            layer = self.conv(c_in, c_out, kernel, stride, kernel // 2, bias=self.bias)
        draw_(layer, math.sqrt(2 / fan_out(layer)), self.generator)
        return layer

    def conv3(self, c_in: int, c_out: int, stride: int = 1) -> nn.Module:
        """A 3 x 3 convolution, padded."""
        return self._conv(c_in, c_out, 3, stride)

    def conv1(self, c_in: int, c_out: int, stride: int = 1) -> nn.Module:
        """A 1 x 1 convolution."""
        return self._conv(c_in, c_out, 1, stride)

    def skip(self, c_in: int, c_out: int, stride: int) -> nn.Module:
        """The shortcut: identity, or where shapes change "pad" (option A) or "project" (option B)."""
        if stride == 1 and c_in == c_out:
            return nn.Identity()
        if self.shortcut == "pad":
            return Pad(c_out - c_in, stride)
        return nn.Sequential(self.conv1(c_in, c_out, stride), self.norm(c_out))


class Pad(nn.Module):
    """Every stride-th pixel, and zeros for the new channels."""

    def __init__(self, channels: int, stride: int):
        super().__init__()
        self.channels, self.stride = channels, stride

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.channels))


class Basic(nn.Module):
    """y = act(skip(x) + Norm(conv3(act(Norm(conv3(x))))))."""

    expansion = 1

    def __init__(self, c_in: int, c_out: int, stride: int, slots: Slots, index: int, depth: int):
        super().__init__()
        self.conv1, self.norm1, self.act1 = slots.conv3(c_in, c_out, stride), slots.norm(c_out), slots.act()
        self.conv2, self.norm2, self.act2 = slots.conv3(c_out, c_out), slots.norm(c_out), slots.act()
        self.skip = slots.skip(c_in, c_out, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.act1(self.norm1(self.conv1(x)))
        return self.act2(self.norm2(self.conv2(y)) + self.skip(x))


class Plain(Basic):
    """The same two layers without the shortcut."""

    def __init__(self, c_in: int, c_out: int, stride: int, slots: Slots, index: int, depth: int):
        super().__init__(c_in, c_out, stride, slots, index, depth)
        self.skip = None

    def forward(self, x: Tensor) -> Tensor:
        return self.act2(self.norm2(self.conv2(self.act1(self.norm1(self.conv1(x))))))


class Bottleneck(nn.Module):
    """1 x 1 down to c_out / 4, 3 x 3, 1 x 1 up; the stride is on the 3 x 3 layer, as torchvision has it."""

    expansion = 4

    def __init__(self, c_in: int, c_out: int, stride: int, slots: Slots, index: int, depth: int):
        super().__init__()
        c = c_out // 4
        self.conv1, self.norm1, self.act1 = slots.conv1(c_in, c), slots.norm(c), slots.act()
        self.conv2, self.norm2, self.act2 = slots.conv3(c, c, stride), slots.norm(c), slots.act()
        self.conv3, self.norm3, self.act3 = slots.conv1(c, c_out), slots.norm(c_out), slots.act()
        self.skip = slots.skip(c_in, c_out, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.act1(self.norm1(self.conv1(x)))
        y = self.act2(self.norm2(self.conv2(y)))
        return self.act3(self.norm3(self.conv3(y)) + self.skip(x))


Block = Callable[[int, int, int, Slots, int, int], nn.Module]


class ConvNet(nn.Module):
    """x: (B, channels, height, width) -> logits (B, classes).

    blocks, widths: number and output channels of the blocks of each stage; every stage but the first halves the image.
    stem: "cifar" is one 3 x 3 convolution, "imagenet" 7 x 7 at stride 2 and a max-pool, both to `stem_width` channels.
    index counts blocks from 0 to depth - 1 through all stages.  bias=None: convolutions have one iff the norm has none.
    shortcut="project" puts a norm after the projection.  The head starts as N(0, 1 / fan_in), biases as 0.
    """

    def __init__(
        self,
        blocks: Sequence[int],
        widths: Sequence[int],
        *,
        classes: int,
        generator: torch.Generator,
        channels: int = 3,
        block: Block = Basic,
        norm: Norm = nn.BatchNorm2d,
        act: Act = nn.ReLU,
        conv: Callable[..., nn.Module] = nn.Conv2d,
        shortcut: str = "project",
        stem: str = "cifar",
        stem_width: int | None = None,
        bias: bool | None = None,
        init: Init | None = None,
    ):
        super().__init__()
        if shortcut not in ("pad", "project"):
            raise ValueError(f"shortcut={shortcut!r} is unknown; write pad or project")
        if stem not in ("cifar", "imagenet"):
            raise ValueError(f"stem={stem!r} is unknown; write cifar or imagenet")
        c = stem_width or widths[0]
        bias = not has_bias(norm(c)) if bias is None else bias
        slots = Slots(norm, act, conv, shortcut, bias, generator)
        first = slots.conv3(channels, c) if stem == "cifar" else slots._conv(channels, c, 7, 2)
        pool = nn.Identity() if stem == "cifar" else nn.MaxPool2d(3, 2, 1)
        self.stem, self.norm, self.act, self.pool = first, norm(c), act(), pool
        self.blocks, depth = nn.ModuleList(), sum(blocks)
        for stage, (count, width) in enumerate(zip(blocks, widths, strict=True)):
            for number in range(count):
                stride = 2 if stage and not number else 1
                self.blocks.append(block(c, width, stride, slots, len(self.blocks), depth))
                c = width
        self.head = linear(c, classes, bias=True, std=c**-0.5, generator=generator)
        if init is not None:
            init(self, generator)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.act(self.norm(self.stem(x))))
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((2, 3)))


def cifar_resnet(
    depth: int,
    *,
    classes: int = 10,
    generator: torch.Generator,
    width: int = 16,
    channels: int = 3,
    residual: bool = True,
    block: Block | None = None,
    norm: Norm = nn.BatchNorm2d,
    act: Act = nn.ReLU,
    conv: Callable[..., nn.Module] = nn.Conv2d,
    shortcut: str = "pad",
    bias: bool | None = None,
    init: Init | None = None,
) -> ConvNet:
    """The CIFAR network of He et al. 2016, 4.2: depth 6n + 2, stages of width, 2 width and 4 width."""
    n, rest = divmod(depth - 2, 6)
    if rest or n < 1:
        raise ValueError(f"depth={depth} is not 6n + 2; write {max(6 * n + 2, 8)} or {6 * max(n, 1) + 8}")
    return ConvNet(
        [n] * 3,
        [width, 2 * width, 4 * width],
        classes=classes,
        generator=generator,
        channels=channels,
        block=block or (Basic if residual else Plain),
        norm=norm,
        act=act,
        conv=conv,
        shortcut=shortcut,
        bias=bias,
        init=init,
    )


def seeded(build: Callable[[], nn.Module], generator: torch.Generator) -> nn.Module:
    """Run a library's constructor, which draws from PyTorch's own generator, as a function of ours."""
    seed = int(torch.randint(2**62, (), generator=generator))
    with torch.random.fork_rng([]):
        torch.default_generator.manual_seed(seed)
        return build()
