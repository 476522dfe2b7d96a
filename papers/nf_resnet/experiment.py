"""What papers/nf_resnet measures: signal propagation at initialization, its constants, training in small batches."""

import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from repro.models.convnet import Slots, cifar_resnet
from repro.models.slots import Init, draw_, fan_in, scaled_gaussian
from repro.papers.nf_resnet.method import NFBlock, ScaledActivation, ScaledWSConv2d, ScaledWSLinear, activation_gamma
from repro.papers.nf_resnet.networks import NFResNet, nf_resnet
from repro.papers.nf_resnet.plot import signal_propagation_plot
from repro.tasks import Measures, Pictures, classify
from repro.train import generator

RELU_VARIANCE = 1 - 1 / math.pi  # of a layer with He weights behind a ReLU of N(0, 1)


@dataclass(frozen=True, kw_only=True)
class Propagation:
    blocks: tuple[int, ...]
    widths: tuple[int, ...]
    size: int
    batch: int
    alpha: float
    stem: str = "cifar"  # or "imagenet", the paper's: 7 x 7 at stride 2 and a max-pool, both to 64 channels
    wrap: bool = True  # padding of 3 x 3 convolutions: wrapped around, or zeros as in the paper


def plain_weights(gain: float) -> Init:
    """N(0, gain^2 / fan-in), but gain 1 in the stem: it reads the image and not an activation."""

    def init(model: nn.Module, source: torch.Generator) -> None:
        scaled_gaussian(gain)(model, source)
        draw_(model.stem, fan_in(model.stem) ** -0.5, source)

    return init


def bn_block(c_in: int, c_out: int, stride: int, slots: Slots, index: int, depth: int, *, norm_first: bool) -> NFBlock:
    """The bottleneck block of ResNet-V2 in either order, BN-ReLU-Conv or ReLU-BN-Conv; nothing is scaled."""

    def pre(n: int) -> nn.Sequential:
        pair = (slots.norm(n), slots.act())
        return nn.Sequential(*(pair if norm_first else pair[::-1]))

    c = c_out // 4
    branch = [slots.conv1(c_in, c), pre(c), slots.conv3(c, c, stride), pre(c), slots.conv1(c, c_out)]
    projection = None if stride == 1 and c_in == c_out else slots.conv1(c_in, c_out, stride)
    return NFBlock(pre(c_in), nn.Sequential(*branch), projection, alpha=1.0, skip_gain=1.0)


def propagation_network(arm: str, config: Propagation, source: torch.Generator) -> NFResNet:
    # Zeros around a small image take variance away at its border, which the theory leaves out: `wrap` around there.
    mode = "circular" if config.wrap else "zeros"
    stem = {"stem": config.stem, "stem_width": 64} if config.stem == "imagenet" else {}
    scaled, plain = (partial(conv, padding_mode=mode) for conv in (ScaledWSConv2d, nn.Conv2d))
    if arm in ("bn", "relu_bn"):
        return NFResNet(
            config.blocks,
            config.widths,
            classes=10,
            generator=source,
            norm=nn.BatchNorm2d,
            conv=plain,
            block=partial(bn_block, norm_first=arm == "bn"),
            init=plain_weights(math.sqrt(2) if arm == "bn" else 1.0),
            **stem,
        )
    options = {
        "nf": {"conv": scaled},
        "no_reset": {"conv": scaled},
        "zero_padding": {},
        "naive": {"conv": plain, "act": nn.ReLU, "init": plain_weights(math.sqrt(2))},
        "gamma_only": {"conv": plain, "init": plain_weights(1.0)},
    }[arm]
    model = nf_resnet(
        blocks=config.blocks,
        widths=config.widths,
        alpha=config.alpha,
        skip_gain=1.0,
        generator=source,
        **options,
        **stem,
    )
    if arm == "no_reset":
        for index, block in enumerate(model.blocks):
            block.beta = math.sqrt(1 + index * config.alpha**2)
    return model


def propagation(arm: str, seed: int, config: Propagation, device: torch.device) -> dict[str, float | list]:
    """Signal propagation plot at initialization beside the theory's variance, and the worst of all blocks."""
    source = generator("nf_resnet propagation", seed)
    model = propagation_network(arm, config, source).to(device)
    images = torch.randn(config.batch, 3, config.size, config.size, generator=source).to(device)
    curves, expected, variance = signal_propagation_plot(model, images), [], 1.0
    branch = RELU_VARIANCE if arm == "bn" else 1.0
    for block in model.blocks:
        variance = (variance if block.projection is None else branch) + block.alpha**2 * branch
        expected.append(variance)
    return {
        **curves,
        "predicted_variance": expected,
        "worst_variance_error": max(abs(v / e - 1) for v, e in zip(curves["variance"], expected, strict=True)),
        "worst_branch_error": max(abs(v - 1) for v in curves["branch_variance"]),
        "worst_squared_mean": max(curves["squared_mean"]),
        "mean_branch_variance": sum(curves["branch_variance"]) / len(expected),
    }


def overlap(arm: str, seed: int, config: Propagation, device: torch.device) -> dict[str, float | list]:
    """The plot of an arm beside that of ReLU-BN-Conv on the same images; `relu_bn` itself has other weights there."""
    source = generator("nf_resnet overlap", seed)
    images = torch.randn(config.batch, 3, config.size, config.size, generator=source).to(device)
    reference, ours = (
        signal_propagation_plot(propagation_network(name, config, source).to(device), images)
        for name in ("relu_bn", arm)
    )
    gaps = {
        name: max(abs(a / b - 1) for a, b in zip(ours[name], reference[name], strict=True))
        for name in ("variance", "branch_variance")
    }
    return {
        **ours,
        "reference_variance": reference["variance"],
        "variance_gap": gaps["variance"],
        "branch_gap": gaps["branch_variance"],
        "mean_share": max(m / v for m, v in zip(ours["squared_mean"], ours["variance"], strict=True)),
    }


@dataclass(frozen=True, kw_only=True)
class Layer:
    width: int
    samples: int


def layer(arm: str, seed: int, config: Layer, device: torch.device) -> dict[str, float]:
    """Channel variance and squared channel mean of W relu(x), x ~ N(0, I), in float64."""
    source, n = generator("nf_resnet layer", seed), config.width
    x = torch.randn(config.samples, n, generator=source, dtype=torch.float64).to(device)
    w = (ScaledWSLinear if arm == "scaled_ws" else nn.Linear)(n, n, bias=False, dtype=torch.float64)
    draw_(w, math.sqrt((2 if arm == "he" else 1) / n), source)
    act = ScaledActivation("relu") if arm in ("scaled_ws", "gamma_only") else F.relu
    with torch.no_grad():
        variance, mean = torch.var_mean(w.to(device)(act(x)), 0, correction=0)
    return {"layer_variance": float(variance.mean()), "layer_squared_mean": float(mean.square().mean())}


# The constants that nfnets/base.py of the authors' code multiplies activations by, under torch's names.
AUTHORS = {
    "celu": 1.270926833152771,
    "elu": 1.2716004848480225,
    "gelu": 1.7015043497085571,
    "leaky_relu": 1.70590341091156,
    "logsigmoid": 1.9193484783172607,
    "relu": 1.7139588594436646,
    "relu6": 1.7131484746932983,
    "selu": 1.0008515119552612,
    "sigmoid": 4.803835391998291,
    "silu": 1.7881293296813965,
    "softplus": 1.9203323125839233,
    "softsign": 2.338853120803833,
    "tanh": 1.5939117670059204,
}
TABLES = {"authors": AUTHORS, "uncentred": {**AUTHORS, "relu": math.sqrt(2)}, "misprint": {**AUTHORS, "silu": 2.218}}


@dataclass(frozen=True, kw_only=True)
class Gamma:
    pass


def gamma(arm: str, seed: int, config: Gamma, device: torch.device) -> dict[str, float]:
    """Largest relative difference between a table of constants and the exact ones; the same for every seed."""
    return {"table_error": max(abs(value / activation_gamma(name) - 1) for name, value in TABLES[arm].items())}


@dataclass(frozen=True, kw_only=True)
class SmallBatch(Pictures):
    """lr: at a batch of 32; it grows with the batch."""

    depth: int
    width: int
    epochs: float
    steps: int = 0  # 0: as many as the epochs have


def without_ws(config: Pictures, source: torch.Generator) -> NFResNet:
    """The NF network with the same constants, but plain weights N(0, 1 / fan-in)."""
    return nf_resnet(
        config.depth,
        width=config.width,
        channels=config.channels,
        alpha=config.alpha,
        conv=nn.Conv2d,
        init=plain_weights(1.0),
        generator=source,
    )


def small_batch(arm: str, seed: int, config: SmallBatch, device: torch.device) -> Measures:
    """Test accuracy after training on equally many examples whatever the batch size."""
    common = {"width": config.width, "channels": config.channels}
    common["generator"] = generator("nf_resnet small batch", seed)
    norms = {"bn": nn.BatchNorm2d, "groupnorm": partial(nn.GroupNorm, 4)}
    if arm in norms:
        model = cifar_resnet(config.depth, norm=norms[arm], shortcut="project", **common)
    else:  # `no_ws`: the same without Scaled Weight Standardization
        model = nf_resnet(
            config.depth, **({} if arm == "nf" else {"conv": nn.Conv2d, "init": plain_weights(1.0)}), **common
        )
    return classify(
        model,
        "nf_resnet small batch",
        seed,
        config,
        device,
        steps=config.steps or int(config.examples * config.epochs) // config.batch,
        lr=config.lr * config.batch / 32,
        optimizer="nesterov",
        schedule="cosine",
        weight_decay=5e-5,
    )
