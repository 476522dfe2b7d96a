"""What papers/batchnorm measures: an identity, and sigmoid networks with and without BatchNorm.

`training` is the network of Section 4.1, 784-100-100-100-10 with sigmoids, weights N(0, 0.1^2), plain SGD and batches
of 60, on Fashion-MNIST binarized at 1/2 in place of binary MNIST.  `deep` and `shallow` vary its depth and learning
rate.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from repro import trivial
from repro.batched import fit_batched
from repro.data import fashion_mnist
from repro.models.mlp import MLP
from repro.models.slots import fan_in, fan_out, gaussian, identity, scaled_gaussian
from repro.papers.batchnorm.method import BatchNorm, population_statistics
from repro.tasks import Worst, each
from repro.train import Diverged, History, draws, evaluate_classifier, generator, seed_of

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
    draw, worst = draws(device, "batchnorm scale", seed), Worst()
    bn = BatchNorm(config.outputs, eps=config.eps, device=device, dtype=torch.float64)
    norm = {"batchnorm": bn, "identity": lambda z: z, "detached": lambda z: detached(z, config.eps)}[arm]
    w, u = draw(config.outputs, config.inputs), draw(config.cases, config.inputs)
    direction = draw(config.cases, config.outputs)

    def run(w: Tensor, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        w, u = w.requires_grad_(), u.requires_grad_()
        y = norm(u @ w.T)
        return y.detach(), *torch.autograd.grad((y * direction).sum(), (u, w))

    y, grad_u, grad_w = run(w.clone(), u.clone())
    for a in (2.0, 10.0, 100.0, *([0.1] if config.eps == 0 else [])):
        scaled_y, scaled_grad_u, scaled_grad_w = run(a * w, u.clone())
        for got, want in ((scaled_y, y), (scaled_grad_u, grad_u), (a * scaled_grad_w, grad_w)):
            worst.relative("scale_error", got, want)
    with torch.no_grad():  # slope along a random direction by central differences, against the gradient
        dw, du, h = draw(*w.shape), draw(*u.shape), 1e-6
        ends = [(norm((u + s * h * du) @ (w + s * h * dw).T) * direction).sum() for s in (1, -1)]
    worst.relative("gradcheck_error", (grad_w * dw).sum() + (grad_u * du).sum(), (ends[0] - ends[1]) / (2 * h))
    return worst


# --- training ---------------------------------------------------------------------------------------------------------


class Frozen(BatchNorm):
    """A fixed affine map: BatchNorm that stays at the statistics it was given."""

    def train(self, mode: bool = True) -> "Frozen":
        return super().train(False)


def sigmoid_net(arm: str, depth: int, seed: int, device: torch.device) -> MLP:
    """depth x 100 sigmoids; arms share their draws, BatchNorm takes the place of the bias.  `xavier` has Glorot's
    weights.
    """
    norm = {"baseline": identity, "frozen": lambda n: BatchNorm(n, affine=False)}.get(arm, BatchNorm)
    widths, weights = [784, *[WIDTH] * depth, 10], generator("batchnorm weights", seed)
    init = (
        scaled_gaussian(1.0, lambda layer: (fan_in(layer) + fan_out(layer)) / 2) if arm == "xavier" else gaussian(0.1)
    )
    model = MLP(widths, norm=norm, act=nn.Sigmoid, init=init, generator=weights).to(device)
    if arm == "frozen":
        population_statistics(model, [images(device)[0][:WATCHED]])
        for layer in model.hidden:
            norm, layer.norm = layer.norm, Frozen(WIDTH, affine=False, device=device)
            layer.norm.load_state_dict(norm.state_dict())
    return model


def images(device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    data = fashion_mnist.load(device)
    return data.binarised(data.train_x).flatten(1), data.train_y, data.binarised(data.test_x).flatten(1), data.test_y


@dataclass(frozen=True, kw_only=True)
class Deep:
    """Plain SGD; the learning rate falls exponentially to `final` of its first value."""

    steps: int
    test: int
    lr: float
    examples: int = 55_000
    depth: int = 3
    final: float = 1.0
    trivial: tuple[str, ...] = ("linear",)


@dataclass(frozen=True, kw_only=True)
class Training(Deep):
    eval_every: int


def fitted(name: str, models: list[MLP], seeds: list[int], config: Deep, device: torch.device, **options) -> list:
    """Train a network per seed; and what trivial predictors score."""
    train_x, train_y, test_x, test_y = images(device)
    train = train_x[: config.examples], train_y[: config.examples]
    histories = fit_batched(
        models,
        train,
        seeds=[seed_of(name, seed) for seed in seeds],
        steps=config.steps,
        batch=BATCH,
        optimizer="sgd",
        schedule=lambda step, steps: config.final ** (step / steps),
        **options,
    )
    test = test_x[: config.test], test_y[: config.test]
    return [histories, test, trivial.classes(train, test, config.trivial)]


def training_batch(arm: str, seeds: list[int], config: Training, device: torch.device) -> list[dict | Diverged]:
    """Accuracy along the run, its mean over the last five evaluations, and how far the inputs of the sigmoids drift."""
    _, _, test_x, test_y = images(device)
    test_x, test_y = test_x[: config.test], test_y[: config.test]
    shares = torch.tensor([0.15, 0.5, 0.85], device=device)
    models = [sigmoid_net(arm, config.depth, seed, device) for seed in seeds]
    seen: dict[int, list[Tensor]] = {id(model): [] for model in models}

    def evaluate(model: MLP) -> dict[str, float]:
        x = test_x
        for layer in model.hidden:
            inputs = layer.norm(layer.linear(x))  # to the sigmoids
            x = layer.act(inputs)
        seen[id(model)].append(inputs[:WATCHED].quantile(shares, dim=0))
        return {"accuracy": (model.head(x).argmax(1) == test_y).float().mean().item()}

    lr = config.lr * {"batchnorm_x5": 5, "batchnorm_x30": 30}.get(arm, 1)
    watch = {"evaluate": evaluate, "eval_every": config.eval_every}
    histories, _, beside = fitted("batchnorm training", models, seeds, config, device, lr=lr, **watch)

    def measures(model: MLP, history: History) -> dict:
        accuracy, last = history.curves["accuracy"], history.curves["accuracy"][-5:]
        smooth = [sum(part) / len(part) for part in (accuracy[max(0, i - 4) : i + 1] for i in range(len(accuracy)))]
        return {
            "accuracy": accuracy,
            "smooth_accuracy": smooth,
            "steps": history.eval_steps,
            "best_accuracy": max(accuracy),
            "last_accuracy": sum(last) / len(last),
            "drift": drift(torch.stack(seen[id(model)])),
            **beside,
        }

    return each(models, histories, measures)


def drift(percentiles: Tensor) -> float:
    """How far the median of a unit's input moves over training, in widths of its distribution; mean over units.

    percentiles: (times, 3, units), the 15th, 50th and 85th.
    """
    low, mid, high = percentiles.unbind(1)
    return (mid.std(0) / (high - low).mean(0)).mean().item()


def deep_batch(arm: str, seeds: list[int], config: Deep, device: torch.device) -> list[dict | Diverged]:
    """Accuracy at the end, at a depth and a learning rate."""
    models = [sigmoid_net(arm, config.depth, seed, device) for seed in seeds]
    histories, test, beside = fitted("batchnorm deep", models, seeds, config, device, lr=config.lr)
    return each(
        models, histories, lambda model, _: {"accuracy": evaluate_classifier(model, *test)["accuracy"], **beside}
    )


shallow_batch = deep_batch
