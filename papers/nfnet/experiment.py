"""What papers/nfnet measures: the algebra of clipping, the size of NFNets, large steps and batches, latency."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from repro.models.convnet import cifar_resnet, seeded
from repro.models.mlp import ResidualMLP
from repro.papers.batchnorm import BatchNorm
from repro.papers.nf_resnet import NFBlock, ScaledActivation, ScaledWSLinear, nf_resnet
from repro.papers.nfnet.method import AGC, adaptive_clip_grad_
from repro.papers.nfnet.networks import VARIANTS, NFNetBlock, nfnet
from repro.tasks import PICTURES, Measures, Pictures, Timed, Worst, classify, timed
from repro.train import cosine, cross_entropy, generator

# --- Eq. 3, unit by unit ---------------------------------------------------------------------------------------------


def wrong_clip(p: nn.Parameter, *, fault: str) -> None:
    """Versions that people have shipped: one norm for the whole layer, norms over the outputs, eps added."""
    axes = {"layer_wise": tuple(range(p.dim())), "input_axis": (0,)}.get(
        fault, tuple(range(p.squeeze().dim() > 1, p.dim()))
    )
    g_norm, w_norm = (
        torch.linalg.vector_norm(t, dim=axes if p.dim() else None, keepdim=True) for t in (p.grad, p.detach())
    )
    bound = 0.01 * (w_norm + 1e-3 if fault == "eps_added" else w_norm.clamp(min=1e-3))
    p.grad.mul_((bound / g_norm).clamp(max=1.0))


CLIPS = {
    "agc": adaptive_clip_grad_,
    **{f: partial(wrong_clip, fault=f) for f in ("layer_wise", "input_axis", "eps_added")},
}
SHAPES = (
    (16, 8, 3, 3),
    (16, 1, 3, 3),
    (24, 32),
    (24, 8, 5),
    (32,),
    (32, 1, 1, 1),
    (),
)  # convolutions, linear, bias, gain, scalar


@dataclass(frozen=True)
class Algebra:
    draws: int


def algebra(arm: str, seed: int, config: Algebra, device: torch.device) -> dict[str, float]:
    """Length and direction of each unit's gradient after clipping, gradients log-uniform over 6 decades, in float64."""
    source, worst = generator("nfnet algebra", seed), Worst()

    def draw(shape: tuple[int, ...], low: float, high: float) -> Tensor:
        """Normal numbers, those of each unit times 10^u, u uniform from low to high."""
        scale = 10 ** (
            low
            + (high - low) * torch.rand((*shape[:1], *[1] * (len(shape) - 1)), generator=source, dtype=torch.float64)
        )
        return (torch.randn(shape, generator=source, dtype=torch.float64) * scale).to(device)

    for shape in SHAPES * config.draws:
        p = nn.Parameter(draw(shape, -6.0, 1.0))  # some units are below eps
        before = draw(shape, -6.0, 0.0)
        p.grad = before.clone()
        CLIPS[arm](p)
        matrix = sum(n > 1 for n in shape) > 1
        w, g, h = (t.detach().reshape(shape[0] if matrix else 1, -1) for t in (p, before, p.grad))
        bound = 0.01 * w.norm(dim=1).clamp(min=1e-3)
        raw, clipped = g.norm(dim=1), h.norm(dim=1)
        worst.absolute("length_error", clipped / torch.minimum(raw, bound), 1.0)
        worst.record("untouched_error", (h - g).norm(dim=1) / raw * (raw <= bound))
        worst.absolute("turn", (g * h).sum(1) / (raw * clipped), 1.0)
    return worst


# --- Table 3 ---------------------------------------------------------------------------------------------------------

TABLE_3 = {  # millions of parameters, thousand millions of multiplications at the test resolution
    "F0": (71.5, 12.38),
    "F1": (132.6, 35.54),
    "F2": (193.8, 62.59),
    "F3": (254.9, 114.76),
    "F4": (316.1, 215.24),
    "F5": (377.2, 289.76),
    "F6": (438.4, 377.28),
}


@dataclass(frozen=True)
class Size:
    variants: tuple[str, ...]


def size(arm: str, seed: int, config: Size, device: torch.device) -> dict[str, list[float]]:
    """Parameters, and multiplications of convolutions and linear layers for one image, counted on the meta device."""
    options = {
        "one_conv": {"block": partial(NFNetBlock, two_convs=False)},
        "resnet_widths": {"widths": (256, 512, 1024, 2048)},
    }
    errors: dict[str, list[float]] = {"params_error": [], "flops_error": []}
    for variant in config.variants if arm == "nfnet" else config.variants[:1]:  # one miss is enough for a control
        model, products = nfnet(variant, device="meta", **options.get(arm, {})), []
        for layer in model.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                layer.register_forward_hook(
                    lambda layer, args, y, found=products: found.append(layer.weight[0].numel() * y.numel())
                )
        with torch.no_grad():
            model(torch.empty(1, 3, VARIANTS[variant][-1], VARIANTS[variant][-1], device="meta"))
        params, flops = TABLE_3[variant]
        errors["params_error"].append(sum(p.numel() for p in model.parameters()) / 1e6 - params)
        errors["flops_error"].append(sum(products) / 1e9 - flops)
    return errors


# --- training --------------------------------------------------------------------------------------------------------

LAMBDAS = {"agc_016": 0.16, "agc_004": 0.04, "agc_001": 0.01, "never_active": 10.0}  # the other arms have no AGC


def nf_mlp(width: int, depth: int) -> nn.Sequential:
    """64 inputs, a Scaled-WS layer, `depth` NF blocks of two of them, classifier `head`."""
    layers, variance = [nn.Flatten(), ScaledWSLinear(64, width)], 1.0
    for _ in range(depth):
        branch = nn.Sequential(ScaledWSLinear(width, width), ScaledActivation(), ScaledWSLinear(width, width))
        layers.append(NFBlock(ScaledActivation(), branch, beta=variance**0.5, skip_gain=1.0))
        variance = layers[-1].variance
    head = nn.Linear(width, 10)
    nn.init.normal_(head.weight, 0.0, 0.01)
    return nn.Sequential(OrderedDict(body=nn.Sequential(*layers, ScaledActivation()), head=head))


@dataclass(frozen=True, kw_only=True)
class Training(Pictures):
    """digits: a residual MLP; other pictures: an NF-ResNet.  The images beyond `examples` measure accuracy."""

    width: int
    depth: int
    epochs: int
    lr: float = 0.0
    small_lr: float = 0.0
    bound: float = 1.0  # of the gradient's norm, in the arm norm_clip
    steps: int = 0  # 0: as many as the epochs have
    test: int = 10_000


def network(arm: str, config: Training, source: torch.Generator) -> nn.Module:
    """The normalizer-free network, or with `bn` the same kind of network with BatchNorm."""
    common = {"width": config.width, "channels": config.channels, "generator": source}
    if config.data != "digits":
        if arm == "bn":
            return cifar_resnet(config.depth, shortcut="project", **common)
        return seeded(partial(nf_resnet, config.depth, skip_gain=1.0, **common), source)
    if arm == "bn":
        return ResidualMLP(64, config.width, config.depth, 10, norm=BatchNorm, generator=source)
    return seeded(partial(nf_mlp, config.width, config.depth), source)


def large_lr(arm: str, seed: int, config: Training, device: torch.device) -> Measures:
    """SGD with Nesterov momentum 0.9, 5 % of warm-up and cosine, clipped or not; accuracy on unseen images."""
    data, n = PICTURES[config.data](device), config.examples
    x, y = (torch.cat(parts) for parts in zip(*map(data.split, ("train", "valid", "test")), strict=True))
    x, unseen = data.normalised(x), slice(n, n + config.test)
    x = F.avg_pool2d(x, config.pool) if config.pool > 1 else x
    if config.data == "digits":
        x = x.flatten(1)
    model = network(arm, config, generator("nfnet weights", seed)).to(device)

    def optimizer(groups: list[dict], lr: float) -> torch.optim.Optimizer:
        sgd = torch.optim.SGD(groups, lr=lr, momentum=0.9, nesterov=True)
        return AGC(sgd, LAMBDAS[arm], exclude=[model.head.weight]) if arm in LAMBDAS else sgd

    return classify(
        model,
        "nfnet batches",
        seed,
        config,
        device,
        data=((x[:n], y[:n]), (x[unseen], y[unseen])),
        steps=config.steps or config.epochs * n // config.batch,
        optimizer=optimizer,
        lr=config.small_lr if arm == "off_small_lr" else config.lr,
        clip=config.bound if arm == "norm_clip" else None,
        schedule=cosine(0.05),
    )


def batch_size(arm: str, seed: int, config: Training, device: torch.device) -> Measures:
    """The same for an equal number of epochs at each batch size, with the paper's learning rate 0.1 batch / 256."""
    return large_lr(arm, seed, replace(config, lr=0.1 * config.batch / 256), device)


# --- Table 6 ---------------------------------------------------------------------------------------------------------


class BNBlock(NFNetBlock):
    """The block with BatchNorm before each activation, plain convolutions and no constants."""

    def forward(self, x: Tensor) -> Tensor:
        z = self.act(x)
        return (x if self.projection is None else self.projection(z)) + self.branch(z)


@dataclass(frozen=True, kw_only=True)
class Latency(Timed):
    mode: str  # eager or compile
    depths: tuple[int, ...]
    widths: tuple[int, ...]
    pixels: int
    batch: int
    calls: int = 5


def training_step(arm: str, seed: int, config: Latency, device: torch.device) -> Callable[[], None]:
    """A training step in bfloat16 autocast on one random batch; `nf_again` is `nf` once more."""
    source, kind = generator("nfnet latency", seed), arm.removesuffix("_again")
    x = torch.randn(config.batch, 3, config.pixels, config.pixels, generator=source)
    x = x.to(device, memory_format=torch.channels_last)
    y = torch.randint(1000, (config.batch,), generator=source).to(device)
    norm = {
        "block": BNBlock,
        "conv": partial(nn.Conv2d, bias=False),
        "act": lambda c: nn.Sequential(nn.BatchNorm2d(c), nn.GELU("tanh")),
    }
    options = norm if kind == "bn" else {}
    model = seeded(partial(nfnet, depths=config.depths, widths=config.widths, **options), source)
    model.to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, nesterov=True)
    optimizer = AGC(optimizer, exclude=[model.head.weight]) if kind == "nf" else optimizer
    run = torch.compile(model) if config.mode == "compile" else model

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16):
            loss = cross_entropy(run(x), y)
        loss.backward()
        optimizer.step()

    return step


latency_group = timed(training_step, reference="nf", warmup=5, memory=False, copy_bytes=16 << 20)
