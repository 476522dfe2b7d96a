"""What papers/sam measures: test accuracy after training on wrong labels, sharpness, and the expansion in rho."""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from repro import tasks, trivial
from repro.models.mlp import MLP
from repro.papers.sam import SAM
from repro.train import cosine, cross_entropy, draws, evaluate_classifier, generator


class RandomBall(SAM):
    """A wrong SAM, whose e is a random direction of the same length."""

    def __init__(self, optimizer: torch.optim.Optimizer, rho: float, source: torch.Generator):
        super().__init__(optimizer, rho)
        self.source = source

    def directions(self, parameters: list[Tensor]) -> list[Tensor]:
        drawn = [torch.randn(p.shape, generator=self.source).to(p) for p in parameters]
        norm = torch.stack([d.norm() for d in drawn]).norm()
        return [self.rho * d / norm for d in drawn]


# --- wrong labels -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Noisy(tasks.Pictures):
    """noise: share of the training labels that are replaced by another class; decay takes the weight decay's place."""

    width: int
    noise: float
    rho: float
    decay: float
    batch: int = 128
    scored: int = 2000  # training images on which sharpness is measured


def sharpness(model: nn.Module, x: Tensor, y: Tensor, source: torch.Generator, steps: int = 20) -> float:
    """The largest eigenvalue of the Hessian of the loss, by power iteration."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    slopes = torch.autograd.grad(cross_entropy(model(x), y), parameters, create_graph=True)
    v, value = [torch.randn(p.shape, generator=source).to(p) for p in parameters], 0.0
    for _ in range(steps):
        norm = torch.stack([part.norm() for part in v]).norm()
        v = [part / norm for part in v]
        product = torch.autograd.grad(slopes, parameters, v, retain_graph=True)
        value = float(sum((a * b).sum() for a, b in zip(v, product, strict=True)))
        v = [part.detach() for part in product]
    return value


def noisy_labels(arm: str, seed: int, config: Noisy, device: torch.device) -> tasks.Measures:
    """Accuracy on clean test images at the end and at the best epoch; `sgd_longer` takes as many gradients as SAM."""
    train, test = ((x.flatten(1), y) for x, y in config.load(device))
    source, (x, y) = generator("sam noise", seed), train
    wrong = torch.rand(len(y), generator=source) < config.noise
    shift = torch.randint(1, 10, (len(y),), generator=source)
    y = torch.where(wrong.to(device), (y + shift.to(device)) % 10, y)
    model = MLP([x.shape[1], config.width, config.width, 10], act=nn.ReLU, generator=generator("sam", seed)).to(device)
    config = replace(config, steps=config.steps * (2 if arm == "sgd_longer" else 1))

    def optimizer(groups: list[dict], lr: float) -> torch.optim.Optimizer:
        base = torch.optim.SGD(groups, lr=lr, momentum=0.9, weight_decay=config.decay)
        match arm:
            case "sam":
                return SAM(base, config.rho)
            case "random_ball":
                return RandomBall(base, config.rho, source)
        return base

    history = tasks.trained(
        model,
        (x, y),
        "sam batches",
        seed,
        config,
        optimizer=optimizer,
        schedule=cosine(),
        evaluate=lambda model: {"accuracy": evaluate_classifier(model, *test)["accuracy"]},
        eval_every=max(1, config.steps // 20),
    )
    model.eval()
    few = slice(0, config.scored)
    return {
        "accuracy": history.final["accuracy"],
        "best_accuracy": max(history.curves["accuracy"]),
        "accuracy_curve": history.curves["accuracy"],
        "curve_steps": history.eval_steps,
        "sharpness": sharpness(model, x[few], y[few], generator("sam sharpness", seed)),
        **tasks.learning(history),
        **trivial.classes((x, y), test, config.trivial),
    }


# --- the expansion in rho (Section 2) ---------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Expansion:
    width: int
    largest: float  # rho, halved seven times


class PerLayer(SAM):
    """A wrong SAM, whose e has the length rho in each parameter."""

    def directions(self, parameters: list[Tensor]) -> list[Tensor]:
        return [self.rho * p.grad / p.grad.norm() for p in parameters]


def expansion(arm: str, seed: int, config: Expansion, device: torch.device) -> dict[str, float]:
    """Exponent in rho of the error of L(w + e) = L + rho ||g||, and of g' = g + rho H g / ||g||, in float64."""
    draw, n = draws(device, "sam expansion", seed), config.width
    parameters = [nn.Parameter(draw(n, n) / n**0.5), nn.Parameter(draw(n) / n**0.5)]
    x, y = draw(8, n), draw(8)

    def loss() -> Tensor:
        return ((x @ parameters[0]).tanh() @ parameters[1] - y).square().mean()

    first = loss()
    g = torch.autograd.grad(first, parameters, create_graph=True)
    norm = torch.stack([part.detach().norm() for part in g]).norm()
    bent = torch.autograd.grad(g, parameters, [part.detach() / norm for part in g])
    kind, values, slopes, radii = (PerLayer if arm == "per_layer" else SAM), [], [], []
    for i in range(8):
        rho = config.largest / 2**i
        optimizer = kind(torch.optim.SGD(parameters, lr=0.0), rho)
        for p, part in zip(parameters, g, strict=True):
            p.grad = part.detach().clone()
        optimizer.ascend()
        there = loss()
        after = torch.autograd.grad(there, parameters)
        optimizer.restore()
        change = [(b - a.detach()) / rho - h for a, b, h in zip(g, after, bent, strict=True)]
        values.append(abs(float((there - first).detach() / (rho * norm)) - 1))
        slopes.append(float(torch.stack([part.norm() for part in change]).norm()))
        radii.append(rho)
    return {"value_exponent": slope(radii, values), "gradient_exponent": slope(radii, slopes)}


def slope(x: list[float], y: list[float]) -> float:
    """The least-squares slope of log y over log x."""
    u, v = (torch.tensor([math.log(value) for value in each], dtype=torch.float64) for each in (x, y))
    u = u - u.mean()
    return float((u * v).sum() / u.square().sum())
