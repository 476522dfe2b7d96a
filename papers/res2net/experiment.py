"""What papers/res2net measures: parameters, receptive fields, the time of a forward pass, and accuracy at equal size.

`unconnected` is the block without the additions between its subsets; `all_splits` has a convolution on every subset.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from repro import trivial
from repro.models.convnet import Bottleneck, ConvNet, Slots
from repro.papers.res2net.method import Res2NetBlock
from repro.tasks import Measures, Pictures, Timed, Worst, learning, timed, trained
from repro.train import cosine, evaluate_classifier, generator

LAYERS = {50: [3, 4, 6, 3], 101: [3, 4, 23, 3]}
MILLIONS = {  # README of the authors' code: layers, w, s
    "50-48-2": 25.29,
    "50-26-4": 25.70,
    "50-14-8": 25.06,
    "50-26-6": 37.05,
    "50-26-8": 48.40,
    "101-26-4": 45.21,
}
PRESERVED = ["50-48-2", "50-26-4", "50-14-8"]


class Unconnected(Res2NetBlock):
    """No additions between the subsets."""

    def __init__(self, c_in: int, c_out: int, stride: int, slots: Slots, *place: int, **shape: int):
        super().__init__(c_in, c_out, stride, slots, *place, **shape)
        self.first = True


class AllSplits(Res2NetBlock):
    """A convolution on every subset."""

    def __init__(self, c_in: int, c_out: int, stride: int, slots: Slots, *place: int, **shape: int):
        super().__init__(c_in, c_out, stride, slots, *place, **shape)
        if len(self.convs) > 1 or shape["scale"] == 2:
            self.convs.append(slots.conv3(self.width, self.width, stride))
            self.norms.append(slots.norm(self.width))


# --- parameters -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Counts:
    models: tuple[str, ...]


def size(layers: int, block: Callable[..., nn.Module]) -> int:
    """Parameters of an ImageNet network; no weight is drawn."""
    with torch.device("meta"):
        shape = {"stem": "imagenet", "stem_width": 64, "generator": torch.default_generator}
        made = ConvNet(LAYERS[layers], [256, 512, 1024, 2048], classes=1000, block=block, **shape)
    return sum(p.numel() for p in made.parameters())


def counts(arm: str, seed: int, config: Counts, device: torch.device) -> dict[str, float]:
    """Difference from the README, in millions, and from ResNet-50 where its complexity is preserved (or 26w x 8s)."""
    worst, kind, thick = Worst(), AllSplits if arm == "all_splits" else Res2NetBlock, size(50, Bottleneck)
    for name in config.models:
        layers, w, s = map(int, name.split("-"))
        ours = size(layers, partial(kind, base_width=w, scale=s))
        worst.record("table_error", abs(round(ours / 1e6, 2) - MILLIONS[name]))
        if name in (["50-26-8"] if arm == "scale_8" else PRESERVED):
            worst.record("excess", abs(ours / thick - 1))
    return dict(worst)


# --- receptive field --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Field:
    channels: int
    size: int
    scales: tuple[int, ...]


def field(arm: str, seed: int, config: Field, device: torch.device) -> dict[str, float]:
    """Pixels along an edge that the centre of a block's output reads, against 2 (s - 1) + 1; activations left out."""
    worst, middle = Worst(), config.size // 2
    kind = {"connected": Res2NetBlock, "unconnected": Unconnected, "all_splits": AllSplits}[arm]
    for s in config.scales:
        slots = Slots(nn.BatchNorm2d, nn.Identity, nn.Conv2d, "project", False, generator("res2net field", seed, s))
        c = config.channels
        block = kind(c, c, 1, slots, 0, 1, base_width=64, scale=s).to(device, torch.float64).eval()
        block.pool = nn.Identity()
        x = torch.randn(1, c, config.size, config.size, generator=slots.generator, dtype=torch.float64).to(device)
        y = block.hierarchy(block.conv1(x.requires_grad_()))
        slope = torch.autograd.grad(y[..., middle, middle].sum(), x)[0].abs().sum((0, 1))
        worst.record("field_error", abs(float((slope.sum(0) > 0).sum()) - max(3, 2 * (s - 1) + 1)))
    return dict(worst)


# --- time: Table 3 ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Runtime(Timed):
    """Images of size x size; planes of the first stage."""

    batch: int
    size: int
    planes: int = 64


def inference(arm: str, seed: int, config: Runtime, device: torch.device) -> Callable[[], Tensor]:
    """A forward pass of ResNet-50, or of Res2Net-50 with 4 or 8 subsets."""
    blocks = {"resnet": Bottleneck, "res2net": Res2NetBlock, "scale_8": partial(Res2NetBlock, base_width=14, scale=8)}
    source = generator("res2net runtime", seed)
    model = ConvNet(
        LAYERS[50],
        [4 * config.planes * 2**stage for stage in range(4)],
        classes=1000,
        block=blocks[arm],
        stem="imagenet",
        stem_width=config.planes,
        generator=source,
    )
    model.to(device).eval()
    x = torch.randn(config.batch, 3, config.size, config.size, generator=source).to(device)
    return torch.no_grad()(partial(model, x))


runtime_group = timed(inference, reference="resnet", memory=False, warmup=1, copy_bytes=16 << 20)


# --- accuracy at equal size -------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Quality(Pictures):
    """Three stages of `blocks` blocks of planes, 2 planes and 4 planes."""

    planes: int
    blocks: int
    weight_decay: float = 1e-4
    warmup: float = 0.1


def quality(arm: str, seed: int, config: Quality, device: torch.device) -> Measures:
    """Test error after SGD with momentum and a cosine; the arms see the same batches."""
    kinds = {"resnet": Bottleneck, "res2net": Res2NetBlock, "unconnected": Unconnected}
    model = ConvNet(
        [config.blocks] * 3,
        [4 * config.planes * 2**stage for stage in range(3)],
        classes=10,
        channels=config.channels,
        block=kinds[arm],
        stem_width=config.planes,
        generator=generator("res2net quality", seed),
    ).to(device)
    train, test = config.load(device)
    recipe = {"optimizer": "momentum", "weight_decay": config.weight_decay, "schedule": cosine(config.warmup)}
    history = trained(model, train, "res2net quality batches", seed, config, **recipe)
    return {
        "error": evaluate_classifier(model, *test)["error"],
        "parameters": float(sum(p.numel() for p in model.parameters())),
        **learning(history),
        **trivial.classes(train, test, config.trivial, measure="error"),
    }
