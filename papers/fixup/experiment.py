"""What papers/fixup measures: the size of updates, a bound on gradients, one epoch at growing depth, a ResNet.

Arms of a seed start from the same draws.  `no_rule2` is Fixup without the factor L^(-1/(2m-2)); `he` draws every layer
of a ResNet by He's rule; `root_half` divides every sum of shortcut and branch by sqrt(2).
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from repro import trivial
from repro.batched import fit_batched
from repro.models.convnet import cifar_resnet
from repro.models.mlp import ResidualMLP
from repro.models.slots import Bare, fan_in, fan_out, identity, linear, scaled_gaussian
from repro.papers.batchnorm import BatchNorm
from repro.papers.fixup.method import fixup_groups, fixup_init_
from repro.papers.fixup.networks import fixup_resnet
from repro.tasks import Measures, Pictures, classify, classify_batch
from repro.train import Diverged, generator, seed_of

CLASSES, WEIGHT_DECAY, HE = 10, 5e-4, scaled_gaussian(2**0.5)
TUNING_SEEDS = 1000  # seeds from here on choose the rate
XAVIER = scaled_gaussian(1.0, lambda layer: (fan_in(layer) + fan_out(layer)) / 2)


# --- updates: Theorem 2 -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Updates:
    width: int
    examples: int
    steps: int
    lr: float
    branches: int  # L
    m: int  # weight layers of a branch


def residual_net(arm: str, config: Updates, source: torch.Generator) -> ResidualMLP:
    """Bias-free blocks x + W_m relu(... W_1 x).  `other_exponent`: L^-1/4 for m = 2, L^-1/2 for m = 3."""

    def block(sublayer: nn.Module, norm: object, dim: int, index: int, depth: int) -> nn.Module:
        weighted = [linear(dim, dim, bias=False, std=(2 / dim) ** 0.5, generator=source) for _ in range(config.m)]
        return Bare(
            nn.Sequential(*[part for layer in weighted for part in (nn.ReLU(), layer)][1:]), norm, dim, index, depth
        )

    model = ResidualMLP(
        config.width, config.width, config.branches, CLASSES, placement=block, bias=False, generator=source
    )
    branches = [list(branch.parameters()) for branch in model.blocks]
    fixup_init_(model, source, branches=branches)
    rule2 = -1 / (2 * config.m - 2)
    exponent = {"fixup": rule2, "no_rule2": 0.0, "other_exponent": -0.75 - rule2}[arm]
    for weight in [weight for branch in branches for weight in branch[:-1]]:
        weight.data *= config.branches ** (exponent - rule2)
    return model


def updates_batch(arm: str, seeds: list[int], config: Updates, device: torch.device) -> list[dict | Diverged]:
    """How far full-batch SGD moves the outputs, and by how much less once the branches are put back to their start."""
    models, data = [], []
    for seed in seeds:
        source = generator("fixup updates", seed)
        x = torch.randn(config.examples, config.width, generator=source, dtype=torch.float64).to(device)
        data.append((x, torch.randint(CLASSES, (config.examples,), generator=source).to(device)))
        models.append(residual_net(arm, config, source).to(device, torch.float64))
    starts = copy.deepcopy(models)
    histories = fit_batched(
        models,
        data,
        seeds=[seed_of("fixup updates", seed) for seed in seeds],
        steps=config.steps,
        batch=config.examples,
        lr=config.lr,
        optimizer="sgd",
    )
    results: list[dict | Diverged] = []
    for model, start, (x, _), history in zip(models, starts, data, histories, strict=True):
        with torch.no_grad():
            before, end = start(x), model(x)
            model.blocks = start.blocks
            moved, part = ((end - other).norm(dim=1).mean().item() for other in (before, model(x)))
        results.append(history if isinstance(history, Diverged) else {"update": moved, "branch_update": part})
    return results


# --- bound: Theorem 1 -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bound:
    width: int
    branches: int
    examples: int
    bias: float  # deviation of the biases in the arm `biases`


def bound(arm: str, seed: int, config: Bound, device: torch.device) -> dict[str, float]:
    """Loss, entropy and gradients of x + W2 relu(W1 x), W1 ~ N(0, 2/n), W2 ~ N(0, 1/n), at the input of every block."""
    n, source = config.width, generator("fixup bound", seed)
    model = ResidualMLP(n, n, config.branches, CLASSES, placement="none", bias=False, generator=source).double()
    x = model.stem(torch.randn(config.examples, n, generator=source, dtype=torch.float64))
    target, inputs = torch.randint(CLASSES, (config.examples,), generator=source).to(device), [x.to(device)]
    for block in model.to(device).blocks:
        block.sublayer.down.weight.data *= 2**0.5 if arm == "he_last" else 1
        shift = torch.randn(n, generator=source, dtype=torch.float64).to(device) if arm == "biases" else 0
        inputs.append(block(inputs[-1]) + config.bias * shift)
    logits = model.head(inputs[-1])
    log_p = logits.log_softmax(1)
    loss = F.nll_loss(log_p, target, reduction="none")
    excess = (loss + (log_p.exp() * log_p).sum(1)).detach()  # loss - H(p)
    gradient, x = torch.stack(torch.autograd.grad(loss.sum(), inputs)), torch.stack(inputs).detach()
    size = logits.detach().norm(dim=1)  # the scale of <gradient, x> = (p - y) . z, by which rounding is measured
    doublings = x.var((1, 2), correction=0).log2()
    steps = torch.arange(len(x), device=device) - config.branches / 2
    return {
        "violations": float((gradient.norm(dim=2) * x.norm(dim=2) < excess - 1e-9 * size).double().mean()),
        "euler_error": float((((gradient * x).sum(2) - excess).abs() / size).max()),
        "doublings": float((steps * doublings).sum() / steps.square().sum()),
    }


# --- one epoch at growing depth: Figure 3 -----------------------------------------------------------------------------


class RootHalf(nn.Module):
    """x / sqrt(2); in the place of a norm after the sum."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 0.5**0.5


@dataclass(frozen=True, kw_only=True)
class Ladder(Pictures):
    """layers: 2 L + 2 of each network of a row, the shallowest first, at which the rate of every arm is chosen."""

    width: int
    layers: tuple[int, ...]


def deep_mlp(arm: str, width: int, layers: int, inputs: int, source: torch.Generator) -> ResidualMLP:
    """inputs-width, L blocks x + W2 relu(W1 x + b1) + b2, width-10; BatchNorm at the start of each branch and at the
    end.

    `unscaled` and `root_half` draw W1 ~ N(0, 2/n) and W2 ~ N(0, 1/n): a branch has the variance of its input, which
    doubles at every block, or is kept where the sum is divided by sqrt(2).  `quarter` has L^-1/4 in Rule 2.
    """
    norm: Callable[[int], nn.Module]
    placement, norm = {"batchnorm": ("pre", BatchNorm), "root_half": ("post", lambda n: RootHalf())}.get(
        arm, ("none", identity)
    )
    exponent, depth = {"fixup": -0.5, "quarter": -0.25, "no_rule2": 0.0}.get(arm), (layers - 2) // 2
    model = ResidualMLP(
        inputs,
        width,
        depth,
        CLASSES,
        placement=placement,
        norm=norm,
        final_norm=arm == "batchnorm",
        init=None if exponent is None else fixup_init_,
        generator=source,
    )
    for block in () if exponent is None else model.blocks:
        block.sublayer.up.weight.data *= depth ** (exponent + 0.5)
    return model


def ladder_batch(arm: str, seeds: list[int], config: Ladder, device: torch.device) -> list[Measures]:
    """Test accuracy at every depth after `steps`; a run that diverges is at chance.  Tuning seeds stay shallow."""
    (x, y), (test_x, test_y) = config.load(device)
    x, test_x = x.flatten(1), test_x.flatten(1)
    results: dict[int, Measures] = {seed: {} for seed in seeds}
    for layers in config.layers:
        chosen = [seed for seed in seeds if layers == config.layers[0] or seed < TUNING_SEEDS]
        if not chosen:
            continue
        runs = classify_batch(
            [deep_mlp(arm, config.width, layers, x.shape[1], generator("fixup ladder", seed)) for seed in chosen],
            "fixup ladder",
            chosen,
            config,
            device,
            data=((x, y), (test_x, test_y)),
            optimizer="momentum",
            weight_decay=WEIGHT_DECAY,
            groups=fixup_groups if arm in ("fixup", "quarter", "no_rule2") else None,
        )
        for seed, run in zip(chosen, runs, strict=True):
            failed = isinstance(run, Diverged)
            results[seed][f"accuracy_{layers}"] = 1 / CLASSES if failed else run["accuracy"]
            results[seed].setdefault("accuracies", []).append(results[seed][f"accuracy_{layers}"])
            results[seed].setdefault("layers", []).append(float(layers))
            beside = trivial.classes((x, y), (test_x, test_y), config.trivial)
            results[seed] |= {**beside, f"diverged_{layers}": float(failed)}
    for measures in results.values():
        measures["lost"] = measures["accuracies"][0] - measures["accuracies"][-1]
    return [results[seed] for seed in seeds]


# --- resnet: Table 1 --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Resnet(Pictures):
    """lr: a tenth of it for Xavier's initialisation, as the authors have it."""

    depth: int
    width: int


def resnet_of(arm: str, config: Resnet, source: torch.Generator) -> nn.Module:
    """A CIFAR ResNet; `xavier`, `he` and `root_half` have neither normalization nor Fixup's scalars."""
    common = {"width": config.width, "channels": config.channels, "generator": source}
    if arm in ("fixup", "no_rule2"):
        model = fixup_resnet(config.depth, **common)
        for block in model.blocks if arm == "no_rule2" else ():
            block.conv1.weight.data *= len(model.blocks) ** 0.5
        return model
    if arm == "batchnorm":
        return cifar_resnet(config.depth, **common)
    model = cifar_resnet(config.depth, norm=identity, init=XAVIER if arm == "xavier" else HE, **common)
    for block in model.blocks if arm == "root_half" else ():
        block.act2 = nn.Sequential(RootHalf(), nn.ReLU())
    return model


def resnet(arm: str, seed: int, config: Resnet, device: torch.device) -> Measures:
    """Test error of a CIFAR ResNet under the recipe of one cycle."""
    return classify(
        resnet_of(arm, config, generator("fixup resnet", seed)),
        "fixup resnet",
        seed,
        config,
        device,
        score="error",
        weight_decay=WEIGHT_DECAY,
        lr=config.lr * (0.1 if arm == "xavier" else 1),
        optimizer="momentum",
        schedule="one_cycle",
        groups=fixup_groups if arm in ("fixup", "no_rule2") else None,
    )
