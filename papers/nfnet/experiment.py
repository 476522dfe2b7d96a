"""What papers/nfnet measures: the algebra of clipping, the size of NFNets, large steps and batches, latency."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from repro.data import digits, fashion_mnist
from repro.models.convnet import seeded
from repro.papers.nf_resnet import NFBlock, ScaledActivation, ScaledWSLinear, nf_resnet
from repro.papers.nfnet.method import AGC, VARIANTS, NFNetBlock, adaptive_clip_grad_, nfnet
from repro.timing import compare
from repro.train import cosine, cross_entropy, evaluate_classifier, fit, generator, seed_of

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
    source, errors = generator("nfnet algebra", seed), {"length_error": [], "untouched_error": [], "turn": []}

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
        errors["length_error"].append((clipped / torch.minimum(raw, bound) - 1).abs().max())
        errors["untouched_error"].append(((h - g).norm(dim=1) / raw * (raw <= bound)).max())
        errors["turn"].append((1 - (g * h).sum(1) / (raw * clipped)).abs().max())
    return {name: float(torch.stack(found).max()) for name, found in errors.items()}


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

LAMBDAS = {"off": None, "off_small_lr": None, "agc_016": 0.16, "agc_004": 0.04, "agc_001": 0.01, "never_active": 10.0}


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


@dataclass(frozen=True)
class Training:
    data: str  # digits: a residual MLP; fashion_mnist: an NF-ResNet
    width: int
    depth: int
    images: int  # seen in training; the others measure accuracy
    batch: int
    epochs: int
    lr: float = 0.0
    small_lr: float = 0.0


def large_lr(arm: str, seed: int, config: Training, device: torch.device) -> dict[str, float]:
    """SGD with Nesterov momentum 0.9, 5 % of warm-up and cosine, clipped or not; accuracy on unseen images."""
    data = {"digits": digits, "fashion_mnist": fashion_mnist}[config.data].load(device)
    x, y = (torch.cat(parts) for parts in zip(*map(data.split, ("train", "valid", "test")), strict=True))
    x, n, weights = data.normalised(x), config.images, generator("nfnet weights", seed)
    resnet = partial(nf_resnet, config.depth, width=config.width, channels=1, skip_gain=1.0, generator=weights)
    model = seeded(partial(nf_mlp, config.width, config.depth) if config.data == "digits" else resnet, weights).to(
        device
    )

    def optimizer(groups: list[dict], lr: float) -> torch.optim.Optimizer:
        sgd = torch.optim.SGD(groups, lr=lr, momentum=0.9, nesterov=True)
        return sgd if LAMBDAS[arm] is None else AGC(sgd, LAMBDAS[arm], exclude=[model.head.weight])

    fit(
        model,
        (x[:n], y[:n]),
        steps=config.epochs * n // config.batch,
        batch=config.batch,
        optimizer=optimizer,
        lr=config.small_lr if arm == "off_small_lr" else config.lr,
        seed=seed_of("nfnet batches", seed),
        schedule=cosine(0.05),
    )
    return {"accuracy": evaluate_classifier(model, x[n:], y[n:])["accuracy"]}


def batch_size(arm: str, seed: int, config: Training, device: torch.device) -> dict[str, float]:
    """The same for an equal number of epochs at each batch size, with the paper's learning rate 0.1 batch / 256."""
    return large_lr(arm, seed, replace(config, lr=0.1 * config.batch / 256), device)


# --- Table 6 ---------------------------------------------------------------------------------------------------------


class BNBlock(NFNetBlock):
    """The block with BatchNorm before each activation, plain convolutions and no constants."""

    def forward(self, x: Tensor) -> Tensor:
        z = self.act(x)
        return (x if self.projection is None else self.projection(z)) + self.branch(z)


@dataclass(frozen=True)
class Latency:
    mode: str  # eager or compile
    depths: tuple[int, ...]
    widths: tuple[int, ...]
    pixels: int
    batch: int
    blocks: int
    aa_limit: float


def latency_group(arms: list[str], seed: int, config: Latency, device: torch.device) -> dict[str, dict[str, float]]:
    """Whole training steps in bfloat16 autocast on one random batch; `nf_again` is `nf` under another name."""
    source = generator("nfnet latency", seed)
    x = torch.randn(config.batch, 3, config.pixels, config.pixels, generator=source).to(
        device, memory_format=torch.channels_last
    )
    y = torch.randint(1000, (config.batch,), generator=source).to(device)

    norm = {
        "block": BNBlock,
        "conv": partial(nn.Conv2d, bias=False),
        "act": lambda c: nn.Sequential(nn.BatchNorm2d(c), nn.GELU("tanh")),
    }

    def step_of(kind: str) -> Callable[[], None]:
        model = seeded(
            partial(nfnet, depths=config.depths, widths=config.widths, **(norm if kind == "bn" else {})), source
        )
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

    made = {kind: step_of(kind) for kind in sorted({arm.removesuffix("_again") for arm in arms})}
    timings = compare(
        {arm: made[arm.removesuffix("_again")] for arm in arms},
        reference="nf",
        device=device,
        blocks=config.blocks,
        calls=5,
        warmup=5,
        seed=seed,
        aa_limit=config.aa_limit,
        memory=False,
        copy_bytes=16 << 20,
    )
    return {arm: {"seconds": timing.percentile(50), **timing.measures()} for arm, timing in timings.items()}
