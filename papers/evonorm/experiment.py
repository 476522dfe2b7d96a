"""What papers/evonorm measures: dependence on the batch, the form of both layers, and small ResNets on a GPU."""

import math
from dataclasses import dataclass
from functools import partial
from itertools import product

import torch
from torch import Tensor, nn

from repro.models.convnet import ConvNet, cifar_resnet
from repro.models.norms import GhostBatchNorm
from repro.models.slots import scaled_gaussian
from repro.papers.batchnorm import BatchNorm
from repro.papers.evonorm.method import EvoNormB0, EvoNormS0
from repro.tasks import Measures, Pictures, Worst, classify
from repro.train import cosine, draws, generator

# --- the arms --------------------------------------------------------------------------------------------------------


class Bare(EvoNormS0):
    """S0 without its denominator, gamma x sigmoid(v x) + beta."""

    def activate(self, x: Tensor, v: Tensor) -> Tensor:
        return x * torch.sigmoid(v * x)


class Least(EvoNormB0):
    """B0 with min in place of max."""

    def activate(self, x: Tensor, v: Tensor) -> Tensor:
        batch, within = deviations(x)
        return x / torch.minimum(batch, v * x + within)


class Linear(EvoNormB0):
    """B0 with v at 0 and without max: the input over the batch's deviation."""

    def activate(self, x: Tensor, v: Tensor) -> Tensor:
        super().activate(x, v)  # keeps the running variance
        return x / (deviations(x)[0] if self.training else self.running_var.view(v.shape).sqrt())


def deviations(x: Tensor) -> tuple[Tensor, Tensor]:
    """Of every channel over the batch, and within every image."""
    return x.std((0, 2, 3), correction=0, keepdim=True), x.std((2, 3), correction=0, keepdim=True)


EVONORMS = {"b0": EvoNormB0, "s0": EvoNormS0, "bare": Bare, "least": Least, "linear": Linear}


@dataclass(frozen=True, kw_only=True)
class Network:
    depth: int
    width: int
    groups: int


def network(arm: str, config: Network, source: torch.Generator, size: int = 1, channels: int = 1) -> ConvNet:
    """A CIFAR ResNet.  EvoNorms stand for norm and ReLU, and as gamma x + beta where no ReLU follows."""
    evo = EVONORMS.get(arm)
    if evo is not None and issubclass(evo, EvoNormS0):
        evo = partial(evo, num_groups=config.groups)
    others = {"small": partial(GhostBatchNorm, size=size), "gn": partial(nn.GroupNorm, config.groups)}
    norm = evo or others.get(arm, nn.BatchNorm2d)
    model = cifar_resnet(
        config.depth,
        width=config.width,
        channels=channels,
        norm=norm,
        act=nn.SiLU if arm == "bn_silu" else nn.ReLU,
        bias=False,
        shortcut="project",
        generator=source,
        init=scaled_gaussian(1.0),
    )
    for block in model.blocks if evo else ():
        model.act = block.act1 = nn.Identity()
        block.norm2 = evo(block.norm2.num_features, nonlinearity=False)
        if isinstance(block.skip, nn.Sequential):
            block.skip[1] = evo(block.norm2.num_features, nonlinearity=False)
    return model


# --- dependence on the batch -----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Independence(Network):
    draws: int
    images: int


def independence(arm: str, seed: int, config: Independence, device: torch.device) -> dict[str, float]:
    """In float64: an image among others and alone, in training; training against evaluation after some batches."""
    source, worst = generator("evonorm independence", seed), Worst()
    for _ in range(config.draws):
        layer = EVONORMS[arm](32) if arm in EVONORMS else nn.Sequential(nn.BatchNorm2d(32), nn.ReLU())
        for name, module, channels in (("layer", layer, 32), ("network", network(arm, config, source), 1)):
            module = module.to(device, torch.float64)
            x, others = torch.randn(2, config.images, channels, 8, 8, generator=source, dtype=torch.float64).to(device)
            with torch.no_grad():
                together, alone, again = module(x), module(x[:1]), module(torch.cat([x[:1], others[1:]]))
                worst.relative(f"{name}_error", alone, together[:1])
                worst.relative("others_error", again[:1], together[:1])
                worst.relative("mode_error", module.eval()(x), together)
    return worst


# --- form ------------------------------------------------------------------------------------------------------------

SCALES, SHIFTS, SLOPES = (1e-2, 1.0, 1e3), (-1.0, 0.0, 1.0), (0.5, 1.0, 2.0)


@dataclass(frozen=True, kw_only=True)
class Form:
    draws: int


def form(arm: str, seed: int, config: Form, device: torch.device) -> dict[str, float]:
    """One layer without eps, in float64, over inputs of several sizes, shifts and contrasts, and several v."""
    draw, worst, bends = draws(device, "evonorm form", seed), Worst(), []
    for scale, shift, v in list(product(SCALES, SHIFTS, SLOPES)) * config.draws:
        x = scale * (shift + (0.5 * draw(8, 4, 1, 1)).exp() * draw(8, 4, 8, 8))
        layer = (
            BatchNorm(4, eps=0.0)
            if arm == "bn"
            else EVONORMS[arm](4, eps=0.0, **({"num_groups": 2} if arm == "s0" else {}))
        )
        layer.to(device, torch.float64).requires_grad_(False)
        if arm != "bn":
            layer.v.fill_(v)
        y, (batch, within) = layer(x), deviations(x)
        group = x.view(8, 2, 2, 8, 8).std((2, 3, 4), correction=0).repeat_interleave(2, 1)[..., None, None]
        line, low = x / batch, v * x + within <= batch

        def keep(name: str, error: Tensor, unit: Tensor) -> None:
            worst.record(name, error.abs().max() / unit.abs().max())

        keep("bound_excess", (v * y - 1).clamp_min(0), torch.ones(1))
        keep("line_error", (y - line) * low, line)
        keep("scale_error", torch.stack([layer(k * x) - y for k in (1e-3, 0.1, 10.0, 1e3)]), y)
        keep("small_error", layer(1e-8 / scale * x) - x / (2 * group), x / group)
        keep("large_error", layer(1e8 / scale * x) - x.relu() / group, x / group)
        if shift == 0:
            pairs = zip(x.transpose(0, 1).flatten(1), y.transpose(0, 1).flatten(1), strict=True)
            shares = [1 - float(torch.corrcoef(torch.stack(pair))[0, 1]) ** 2 for pair in pairs]
            bends.append(math.fsum(shares) / len(shares))
    return {**worst, "bend": min(bends)}


# --- training --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Training(Pictures, Network):
    micro: int


def trainable(arm: str, config: Network, source: torch.Generator, size: int = 1) -> ConvNet:
    """The network whose branches start at 0, as the authors' code starts the last gamma of each of them."""
    model = network(arm, config, source, size, config.channels)
    for block in model.blocks:
        nn.init.zeros_(block.norm2.weight)
    return model


# The arms of the shared experiment on pictures: builders of (config, generator).
s0_network, b0_network, bare_network = (partial(trainable, arm) for arm in ("s0", "b0", "bare"))


def training(arm: str, seed: int, config: Training, device: torch.device) -> Measures:
    """SGD with the same batches in every arm; `small` takes its statistics over `micro` images.  Test accuracy."""
    model = trainable(arm, config, generator("evonorm training", seed), config.micro)
    how = {"optimizer": "momentum", "schedule": cosine(0.05), "weight_decay": 1e-4}
    return classify(model, "evonorm batches", seed, config, device, **how)
