"""What papers/batchnorm measures: an identity, and sigmoid networks with and without BatchNorm.

`training` is the network of Section 4.1, 784-100-100-100-10 with sigmoids, weights N(0, 0.1^2), plain SGD and batches of
60, on Fashion-MNIST binarized at 1/2 in place of binary MNIST.  `deep` and `shallow` vary its depth and learning rate.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from repro.batched import fit_batched
from repro.data import fashion_mnist
from repro.models.mlp import MLP
from repro.models.slots import gaussian, identity
from repro.papers.batchnorm.method import BatchNorm, population_statistics
from repro.train import Diverged, evaluate_classifier, generator, seed_of

BATCH, WIDTH, WATCHED = 60, 100, 2000  # WATCHED: test images of which percentiles are taken


# --- scale: BN((aW)u) = BN(Wu), Section 3.3 ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Scale:
    cases: int
    inputs: int
    outputs: int
    eps: float


def detached(z: Tensor, eps: float) -> Tensor:
    """BatchNorm whose statistics take no part in the gradient, a known mistake."""
    return (z - z.mean(0).detach()) / (z.var(0, correction=0).detach() + eps).sqrt()


def scale(arm: str, seed: int, config: Scale, device: torch.device) -> dict[str, float]:
    source = generator("batchnorm scale", seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=source, dtype=torch.float64).to(device)

    bn = BatchNorm(config.outputs, eps=config.eps, device=device, dtype=torch.float64)
    norm = {"batchnorm": bn, "identity": lambda z: z, "detached": lambda z: detached(z, config.eps)}[arm]
    w, u = draw(config.outputs, config.inputs), draw(config.cases, config.inputs)
    direction = draw(config.cases, config.outputs)

    def run(w: Tensor, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        w, u = w.requires_grad_(), u.requires_grad_()
        y = norm(u @ w.T)
        return y.detach(), *torch.autograd.grad((y * direction).sum(), (u, w))

    def error(found: Tensor, wanted: Tensor) -> float:
        return float((found - wanted).abs().max() / wanted.abs().max())

    y, grad_u, grad_w = run(w.clone(), u.clone())
    errors = []
    for a in (2.0, 10.0, 100.0, *([0.1] if config.eps == 0 else [])):
        scaled_y, scaled_grad_u, scaled_grad_w = run(a * w, u.clone())
        errors += [error(scaled_y, y), error(scaled_grad_u, grad_u), error(a * scaled_grad_w, grad_w)]
    with torch.no_grad():  # slope along a random direction by central differences, against the gradient
        dw, du, h = draw(*w.shape), draw(*u.shape), 1e-6
        ends = [(norm((u + s * h * du) @ (w + s * h * dw).T) * direction).sum() for s in (1, -1)]
        slope, gradient = (ends[0] - ends[1]) / (2 * h), (grad_w * dw).sum() + (grad_u * du).sum()
    return {"scale_error": max(errors), "gradcheck_error": error(gradient, slope)}


# --- training ---------------------------------------------------------------------------------------------------------


class Frozen(BatchNorm):
    """A fixed affine map: BatchNorm that stays at the statistics it was given."""

    def train(self, mode: bool = True) -> "Frozen":
        return super().train(False)


def sigmoid_net(arm: str, depth: int, seed: int, device: torch.device) -> MLP:
    """depth x 100 sigmoids; arms share their weights, BatchNorm takes the place of the bias."""
    norm = {"baseline": identity, "frozen": lambda n: BatchNorm(n, affine=False)}.get(arm, BatchNorm)
    widths, weights = [784, *[WIDTH] * depth, 10], generator("batchnorm weights", seed)
    model = MLP(widths, norm=norm, act=nn.Sigmoid, init=gaussian(0.1), generator=weights).to(device)
    if arm == "frozen":
        population_statistics(model, [images(device)[0][:WATCHED]])
        for layer in model.hidden:
            norm, layer.norm = layer.norm, Frozen(WIDTH, affine=False, device=device)
            layer.norm.load_state_dict(norm.state_dict())
    return model


def images(device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    data = fashion_mnist.load(device)
    return data.binarised(data.train_x).flatten(1), data.train_y, data.binarised(data.test_x).flatten(1), data.test_y


@dataclass(frozen=True)
class Training:
    steps: int
    eval_every: int
    lr: float
    test: int


def training_batch(arm: str, seeds: list[int], config: Training, device: torch.device) -> list[dict | Diverged]:
    train_x, train_y, test_x, test_y = images(device)
    test_x, test_y = test_x[: config.test], test_y[: config.test]
    shares = torch.tensor([0.15, 0.5, 0.85], device=device)
    models = [sigmoid_net(arm, 3, seed, device) for seed in seeds]
    seen: dict[int, list[Tensor]] = {id(model): [] for model in models}

    def evaluate(model: MLP) -> dict[str, float]:
        x = test_x
        for layer in model.hidden:
            inputs = layer.norm(layer.linear(x))  # to the sigmoids
            x = layer.act(inputs)
        seen[id(model)].append(inputs[:WATCHED].quantile(shares, dim=0))
        return {"accuracy": (model.head(x).argmax(1) == test_y).float().mean().item()}

    histories = fit_batched(
        models,
        (train_x, train_y),
        seeds=[seed_of("batchnorm training", seed) for seed in seeds],
        steps=config.steps,
        batch=BATCH,
        lr=config.lr * (5 if arm == "batchnorm_x5" else 1),
        optimizer="sgd",
        evaluate=evaluate,
        eval_every=config.eval_every,
    )
    return [
        history
        if isinstance(history, Diverged)
        else {
            "accuracy": history.curves["accuracy"],
            "steps": history.eval_steps,
            "best_accuracy": max(history.curves["accuracy"]),
            "drift": drift(torch.stack(seen[id(model)])),
        }
        for model, history in zip(models, histories, strict=True)
    ]


def drift(percentiles: Tensor) -> float:
    """How far the median of a unit's input moves over training, in widths of its distribution; mean over units.

    percentiles: (times, 3, units), the 15th, 50th and 85th.
    """
    low, mid, high = percentiles.unbind(1)
    return (mid.std(0) / (high - low).mean(0)).mean().item()


@dataclass(frozen=True)
class Deep:
    steps: int
    test: int
    depth: int
    lr: float


def deep_batch(arm: str, seeds: list[int], config: Deep, device: torch.device) -> list[dict | Diverged]:
    train_x, train_y, test_x, test_y = images(device)
    models = [sigmoid_net(arm, config.depth, seed, device) for seed in seeds]
    histories = fit_batched(
        models,
        (train_x, train_y),
        seeds=[seed_of("batchnorm deep", seed) for seed in seeds],
        steps=config.steps,
        batch=BATCH,
        lr=config.lr,
        optimizer="sgd",
    )
    return [
        history
        if isinstance(history, Diverged)
        else {"accuracy": evaluate_classifier(model, test_x[: config.test], test_y[: config.test])["accuracy"]}
        for model, history in zip(models, histories, strict=True)
    ]


shallow_batch = deep_batch
