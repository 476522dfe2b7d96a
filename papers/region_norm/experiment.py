"""What papers/region_norm measures: statistics of corrupted images, the case of one region, and a small inpainting
network.

`inpainting` is the authors' generator (networks.py) with fewer channels and blocks, on Fashion-MNIST with rectangular
holes and an l1 loss, without adversary: 7 x 7 convolution, two strided ones, dilated residual blocks, pixel shuffles.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from repro import tasks
from repro.data import fashion_mnist
from repro.models.convnet import seeded
from repro.papers.region_norm.method import RegionNormB, RegionNormL, region_norm
from repro.train import cosine, draws, generator, measured

EPS = 1e-12
NORMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "region": lambda x, mask: region_norm(x, mask, EPS),
    "batchwise": lambda x, mask: region_norm(x, mask, EPS, batchwise=True),
    "instance": lambda x, mask: F.instance_norm(x, eps=EPS),
    "other_mask": lambda x, mask: region_norm(x, mask.roll(1, 0), EPS),
}


def holes(count: int, low: float, high: float, source: torch.Generator, side: int) -> Tensor:
    """Rectangles that cover a share of the image between low and high: (count, 1, side, side), 1 in the hole."""
    share, aspect, top, left = torch.rand(4, count, 1, 1, 1, generator=source).unbind()
    area, aspect = low + (high - low) * share, 0.6 + aspect
    height, width = ((area * a).sqrt().mul(side).round().clamp(1, side - 1) for a in (aspect, 1 / aspect))
    at = torch.arange(side)
    first, start = (top * (side - height + 1)).floor(), (left * (side - width + 1)).floor()
    rows, columns = ((at >= begin) & (at < begin + length) for begin, length in ((first, height), (start, width)))
    return (rows.transpose(2, 3) & columns).float()


# --- statistics: Section 3 --------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Statistics:
    images: int
    channels: int
    hole: float  # share of the image


def moments(x: Tensor, region: Tensor) -> Tensor:
    """Mean and variance over a region, by sample and channel: (2, B, C)."""
    size = region.sum((2, 3))
    mean = (x * region).sum((2, 3)) / size
    return torch.stack([mean, ((x - mean[..., None, None]).square() * region).sum((2, 3)) / size])


def statistics(arm: str, seed: int, config: Statistics, device: torch.device) -> dict[str, float]:
    """Images with a hole of one grey value, and random filters' responses to them, before and after a norm, in
    float64.
    """
    source, data, norm = generator("region_norm statistics", seed), fashion_mnist.load(device), NORMS[arm]
    chosen = torch.randperm(len(data.test_x), generator=source)[: config.images].to(device)
    noise, filters = (
        torch.randn(*s, generator=source).to(device) for s in ((config.images, 1, 28, 28), (config.channels, 1, 3, 3))
    )
    x = (data.unit(data.test_x[chosen]) + 0.05 * noise).double()  # noise: no region has one value alone
    mask = holes(config.images, config.hole, config.hole, source, 28).to(device).double()
    p, valid, worst = mask.mean((2, 3)), 1 - mask, tasks.Worst()
    for fill in (0.0, 0.5, 1.0):
        z = x * valid + fill * mask
        mean, variance = moments(z, valid)
        full_mean, full_variance = (1 - p) * mean + p * fill, (1 - p) * variance + p * (1 - p) * (mean - fill).square()
        shifted = torch.stack([(mean - full_mean) / (full_variance + EPS).sqrt(), variance / (full_variance + EPS)])
        after, maps = moments(norm(z, mask), valid), norm(F.conv2d(z, filters.double(), padding=1), mask)
        worst.absolute("shift_error", after, shifted)
        for region in (mask, valid):
            unit = torch.tensor([0.0, 1.0], dtype=x.dtype, device=device).view(2, 1, 1)
            worst.absolute("region_error", moments(maps, region), unit)
    return {
        **worst,
        "valid_mean": float(after[0].abs().mean()),
        "valid_variance": float(after[1].mean()),
    }  # holes of white


@dataclass(frozen=True, kw_only=True)
class OneRegion:
    batch: int
    channels: int
    side: int


def one_region(arm: str, seed: int, config: OneRegion, device: torch.device) -> dict[str, float]:
    """A mask that is 0, or 1, everywhere: against torch's instance norm and batch norm, outputs and gradients, in
    float64.
    """
    draw, worst = draws(device, "region_norm one region", seed), tasks.Worst()
    x, upstream = draw(2, config.batch, config.channels, config.side, config.side)
    x = (3 + 2 * x).requires_grad_()

    def run(y: Tensor) -> Tensor:
        return torch.stack([y.detach(), torch.autograd.grad(y, x, upstream)[0]])

    wanted = {
        "instance_error": F.instance_norm(x, eps=EPS),
        "batch_error": F.batch_norm(x, None, None, training=True, eps=EPS),
    }
    for name, other in {name: run(y) for name, y in wanted.items()}.items():
        masks = torch.zeros_like(x[:, :1]), torch.ones_like(x[:, :1])
        for mask in masks:
            worst.absolute(name, run(NORMS[arm](x, mask)), other)
    return worst


# --- inpainting: Section 4 --------------------------------------------------------------------------------------------


Instance = partial(nn.InstanceNorm2d, affine=True)
LAYERS = {  # the norms of the first layers, and of the others
    "instance": (Instance, Instance),
    "batch": (nn.BatchNorm2d, nn.BatchNorm2d),
    "encoder": (RegionNormB, Instance),
    "region": (RegionNormB, RegionNormL),
    "region_batchwise": tuple(
        partial(norm, batchwise=True) for norm in (RegionNormB, RegionNormL)
    ),  # the authors' code
    "other_mask": (RegionNormB, RegionNormL),
}


class Inpainter(nn.Module):
    """(B, 2, H, W), an image and the mask of its hole -> (B, 2, H, W), the whole image as the network has it, and the
    mask.
    """

    def __init__(self, arm: str, c: int, blocks: int, fill: float):
        super().__init__()
        early, late = LAYERS[arm]
        self.other_mask, self.fill, wide = arm == "other_mask", fill, {"padding_mode": "reflect"}
        self.convs = nn.ModuleList(
            [nn.Conv2d(1, c, 7, padding=3, **wide), nn.Conv2d(c, 2 * c, 4, 2, 1), nn.Conv2d(2 * c, 4 * c, 4, 2, 1)]
        )
        self.norms = nn.ModuleList(early(n) for n in (c, 2 * c, 4 * c))
        self.middle = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(4 * c, 4 * c, 3, padding=2, dilation=2, **wide),
                late(4 * c),
                nn.ReLU(),
                nn.Conv2d(4 * c, 4 * c, 3, padding=1, **wide),
                late(4 * c),
            )
            for _ in range(blocks)
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(4 * c, 8 * c, 3, padding=1),
            nn.PixelShuffle(2),
            late(2 * c),
            nn.ReLU(),
            nn.Conv2d(2 * c, 4 * c, 3, padding=1),
            nn.PixelShuffle(2),
            late(c),
            nn.ReLU(),
            nn.Conv2d(c, 1, 7, padding=3, **wide),
        )

    def forward(self, x: Tensor) -> Tensor:
        image, mask = x.split(1, 1)
        h, told = image * (1 - mask) + self.fill * mask, mask.roll(1, 0) if self.other_mask else mask
        for conv, norm in zip(self.convs, self.norms, strict=True):
            h = conv(h)
            h = F.relu(norm(h, told) if isinstance(norm, RegionNormB) else norm(h))
        for block in self.middle:
            h = h + block(h)
        return torch.cat([(torch.tanh(self.decoder(h)) + 1) / 2, mask], 1)


@dataclass(frozen=True, kw_only=True)
class Inpainting(tasks.Training):
    side: int  # of the images, a multiple of 4
    channels: int
    blocks: int
    examples: int
    test: int
    fill: float = 1.0  # grey value of the hole, 1 is white
    trivial: tuple[str, ...] = ("mean", "nearest_neighbour")


def l1(out: Tensor, target: Tensor) -> Tensor:
    """Mean absolute error over the image, and over the holes."""
    error, mask = (out[:, :1] - target).abs(), out[:, 1:]
    return error.mean() + (error * mask).sum() / mask.sum()


def guesses(train: Tensor, test: Tensor, mask: Tensor, names: tuple[str, ...]) -> dict[str, float]:
    """PSNR in the holes of the mean training image, and of the mean of the five that are nearest in the
    known pixels.
    """
    known, images, found = (1 - mask).flatten(1), train.flatten(1), {}
    if "mean" in names:
        found["trivial_mean"] = images.mean(0).expand(len(test), -1)
    if "nearest_neighbour" in names:
        gaps = known @ images.square().T - 2 * (known * test.flatten(1)) @ images.T
        nearest = gaps.topk(min(5, len(images)), largest=False).indices
        found["trivial_nearest_neighbour"] = torch.stack([images[index].mean(0) for index in nearest])
    return {name: psnr(guess.view_as(test), test, mask) for name, guess in found.items()}


def psnr(out: Tensor, target: Tensor, mask: Tensor) -> float:
    """In the holes, over all their pixels together."""
    return float(-10 * torch.log10(((out - target) * mask).square().sum() / mask.sum()))


def inpainting(arm: str, seed: int, config: Inpainting, device: torch.device) -> tasks.Measures:
    """PSNR in the holes of test images, over all their pixels together, for holes of 10 to 50 % of the image, and by
    size.
    """
    data, source = fashion_mnist.load(device), generator("region_norm inpainting", seed)
    model = seeded(lambda: Inpainter(arm, config.channels, config.blocks, config.fill), source).to(device)
    train, test = (
        F.interpolate(data.unit(x[:n]), config.side, mode="area")
        for x, n in ((data.train_x, config.examples), (data.test_x, config.test))
    )
    history = tasks.trained(
        model,
        (train, train),
        "region_norm inpainting",
        seed,
        config,
        optimizer="adam",
        schedule=cosine(0.05),
        loss=l1,
        augment=lambda x, source: torch.cat([x, holes(len(x), 0.1, 0.5, source, config.side).to(x)], 1),
    )

    def hidden(low: float, high: float) -> Tensor:
        return holes(len(test), low, high, generator("region_norm holes", low, high), config.side).to(test)

    def score(model: nn.Module, low: float, high: float) -> float:
        mask, errors = hidden(low, high), 0.0
        for x, m in zip(test.split(500), mask.split(500), strict=True):
            errors = errors + ((model(torch.cat([x, m], 1))[:, :1] - x) * m).square().sum()
        return float(-10 * torch.log10(errors / mask.sum()))

    sizes = {"psnr": (0.1, 0.5), "small": (0.1, 0.2), "large": (0.4, 0.5)}
    found = measured(lambda model: {name: score(model, *size) for name, size in sizes.items()}, model)
    beside = guesses(train, test, hidden(0.1, 0.5), config.trivial)
    return {**found, "drop": found["small"] - found["large"], **tasks.learning(history), **beside}
