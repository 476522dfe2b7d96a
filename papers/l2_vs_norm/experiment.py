"""What papers/l2_vs_norm measures: the same network with and without L2, exact statements, and how long weights become.

`norms` lies in repro.experiments.scale_invariant.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from repro import tasks, trivial
from repro.batched import fit_batched
from repro.errors import Diverged
from repro.papers.l2_vs_norm.method import UnitNorm, equivalent, resting_norm
from repro.train import draws, evaluate_classifier, generator, linear, seed_of

CLASSES = 10


# --- wrong labels: with and without L2 --------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Quality(tasks.Pictures):
    """noise: share of the training labels that are drawn anew; decay: lambda of the arms that have one."""

    width: int
    noise: float
    decay: float
    momentum: float = 0.9


class StackedUnitNorm(torch.optim.SGD):
    """SGD, then ||w|| = 1 for each unit.  The first group has weights (..., inputs, units), as `repro.batched` has."""

    elementwise = True  # as far as seeds go

    @torch.no_grad()
    def step(self, closure: Callable | None = None) -> None:
        super().step(closure)
        for w in self.param_groups[0]["params"]:
            w.div_(w.norm(dim=-2, keepdim=True))


class StackedSGD(torch.optim.SGD):
    elementwise = True


def network(arm: str, inputs: int, width: int, source: torch.Generator) -> nn.Sequential:
    """Two hidden layers; with `bn` every layer is normalised, the last one too, and there is nothing but weights."""
    layers: list[nn.Module] = []
    for a, b in ((inputs, width), (width, width), (width, CLASSES)):
        layer = nn.Linear(a, b, bias=not arm.startswith("bn"))
        with torch.no_grad():
            layer.weight.copy_(torch.randn(b, a, generator=source) * (2 / a) ** 0.5)
            if layer.bias is not None:
                layer.bias.zero_()
        layers += [layer, nn.BatchNorm1d(b, eps=1e-12) if arm.startswith("bn") else nn.Identity(), nn.ReLU()]
    if arm.startswith("bn"):
        for norm in layers[1::3]:
            norm.requires_grad_(False)
        layers[-2].weight.fill_(2.0)  # logits that leave room for certainty
    return nn.Sequential(*layers[:-1])


def quality_batch(arm: str, seeds: list[int], config: Quality, device: torch.device) -> list:
    """Error on clean test images after training on wrong labels; weights alone are regularised."""
    train, test = ((x.flatten(1), y) for x, y in config.load(device))
    models, data = [], []
    for seed in seeds:
        source, (x, y) = generator("l2_vs_norm", seed), train
        anew = torch.rand(len(y), generator=source) < config.noise
        other = torch.randint(CLASSES, (len(y),), generator=source)
        data.append((x, torch.where(anew.to(device), other.to(device), y)))
        models.append(network(arm, x.shape[1], config.width, source).to(device))
        if arm == "bn_unit":
            UnitNorm(torch.optim.SGD(models[-1].parameters(), lr=0.0))  # starts at norm 1
    decay = 2 * config.decay if arm.endswith("_l2") else 0.0

    def groups(model: nn.Module) -> list[dict]:
        matrices = [p for p in model.parameters() if p.dim() > 1]
        others = [p for p in model.parameters() if p.dim() < 2 and p.requires_grad]
        return [{"params": matrices, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]

    def optimizer(groups: list[dict], lr: float) -> torch.optim.Optimizer:
        kind = StackedUnitNorm if arm == "bn_unit" else StackedSGD
        return kind(groups, lr=lr, momentum=config.momentum)

    optimizer.elementwise = True
    runs = fit_batched(
        models,
        data,
        seeds=[seed_of("l2_vs_norm batches", seed) for seed in seeds],
        steps=config.steps,
        batch=config.batch,
        lr=config.lr,
        optimizer=optimizer,
        groups=groups,
        schedule=linear(),
    )

    def measure(model: nn.Module, history: object) -> tasks.Measures:
        size = torch.cat([p.detach().norm(dim=1) for p in model.parameters() if p.dim() > 1])
        return {"error": evaluate_classifier(model, *test)["error"], "size": float(size.mean())}

    rows = tasks.each(models, runs, measure)
    return [
        row if isinstance(row, Diverged) else {**row, **trivial.classes(one, test, config.trivial, measure="error")}
        for row, one in zip(rows, data, strict=True)
    ]


# --- exact statements -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Exact:
    width: int
    steps: int
    scale: float


def logits(weights: list[Tensor], x: Tensor, eps: float, normalised: bool = True) -> Tensor:
    """x: (B, n), weights: (units, inputs) each; every layer normalised over the batch."""
    for i, w in enumerate(weights):
        h = x @ w.T
        if normalised:
            h = (h - h.mean(0)) / (h.var(0, correction=0) + eps).sqrt()
        x = h if i == len(weights) - 1 else h.relu()
    return x


def exact(arm: str, seed: int, config: Exact, device: torch.device) -> tasks.Measures:
    """How far two trajectories of rescaled weights part; the cosine of w and its gradient; the rest of the norm."""
    worst, n = tasks.Worst(), config.width
    normalised, eps = arm != "plain", 0.1 if arm == "large_eps" else 0.0
    for rule in ("sgd", "adam", "adamw"):
        draw = draws(device, "l2_vs_norm exact", seed)
        first = [draw(n, n) / n**0.5, draw(n, n) / n**0.5, draw(CLASSES, n) / n**0.5]
        x, y = (
            draw(4 * n, n),
            torch.randint(CLASSES, (4 * n,), generator=generator("l2_vs_norm labels", seed)).to(device),
        )
        lr, decay = (0.1, 0.01) if rule == "sgd" else (0.01, 0.02)
        same = "sgd" if arm == "sgd_for_all" else rule
        other = (lr, decay) if arm == "unchanged" else equivalent(config.scale, lr, decay, same)
        runs = []
        for size, (rate, shrink) in ((1.0, (lr, decay)), (config.scale, other)):
            weights = [nn.Parameter(size * w) for w in first]
            options = {"lr": rate, "weight_decay": 2 * shrink}
            if rule == "sgd":
                optimizer = torch.optim.SGD(weights, momentum=0.9, **options)
            else:
                kind = torch.optim.Adam if rule == "adam" else torch.optim.AdamW
                optimizer = kind(weights, eps=1e-8 / size, **options)
            outputs = []
            for _ in range(config.steps):
                optimizer.zero_grad()
                outputs.append(out := logits(weights, x, eps, normalised))
                F.cross_entropy(out, y).backward()
                for w in weights:
                    cosine = F.cosine_similarity(w.detach(), w.grad, dim=1).abs()
                    worst.record("cosine", cosine.max())
                optimizer.step()
            runs.append(torch.stack(outputs).detach())
        worst.absolute("parted", *runs)
    return worst


@dataclass(frozen=True, kw_only=True)
class Rest:
    width: int
    lr: float
    decay: float


def rest(arm: str, seed: int, config: Rest, device: torch.device) -> tasks.Measures:
    """Mean ||w||^4 over what lr, lambda and G foretell, for plain SGD on labels that are drawn anew at each step."""
    draw, n = draws(device, "l2_vs_norm rest", seed), config.width
    source = generator("l2_vs_norm rest labels", seed)
    w, decay = draw(n, n) / n**0.5, config.decay / (2 if arm == "weight_decay_for_lambda" else 1)
    steps, total, square = round(6 / (config.lr * config.decay)), 0.0, 0.0
    for step in range(steps):
        x, y = draw(4 * n, n), torch.randint(n, (4 * n,), generator=source).to(device)
        w.requires_grad_()
        (g,) = torch.autograd.grad(F.cross_entropy(logits([w], x, 0.0, arm != "plain"), y), w)
        w = w.detach()
        if 3 * step >= steps:
            total, square = total + w.norm(dim=1) ** 4, square + (w.norm(dim=1) * g.norm(dim=1)) ** 2
        w = w - config.lr * (g + 2 * decay * w)
    count = steps - -(-steps // 3)
    want = resting_norm(config.lr, config.decay, square / count) ** 4
    return {"balance": float((total / count / want).mean())}
