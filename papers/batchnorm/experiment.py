"""What papers/batchnorm measures: an identity, and sigmoid networks with and without BatchNorm.

`training` is the run of Section 4.1: binary MNIST (pixels above 1/2), 784-100-100-100-10 with sigmoids, weights
N(0, 0.1^2), plain SGD and batches of 60.  `deep` and `shallow` vary its depth and learning rate.
"""

from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor, nn

from repro import trivial
from repro.batched import fit_batched
from repro.data import mnist
from repro.models.mlp import MLP
from repro.models.slots import gaussian, identity
from repro.papers.batchnorm.method import BatchNorm, population_statistics
from repro.tasks import Worst, each
from repro.train import Diverged, History, draws, evaluate_classifier, generator, seed_of

BATCH, WIDTH = 60, 100
FIRST = 2_000  # training images from which the arm `frozen` has its statistics
LAST = 10  # evaluations at the end over which an accuracy is averaged


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


class Detached(BatchNorm):
    """BatchNorm whose statistics take no part in the gradient; Section 2 says what becomes of it."""

    def forward(self, input: Tensor) -> Tensor:
        y = super().forward(input.detach())  # updates the running statistics
        if not self.training:
            return y
        return detached(input, self.eps) * self.weight + self.bias


NORMS = {
    "baseline": identity,
    "relu": identity,
    "batchnorm": BatchNorm,
    "detached": Detached,
    "frozen": lambda n: BatchNorm(n, affine=False),
}


def sigmoid_net(arm: str, depth: int, seed: int, device: torch.device) -> MLP:
    """depth x 100 sigmoids; arms share their draws, BatchNorm takes the place of the bias.  `relu` has ReLUs instead,
    and He's weights.
    """
    relu = arm == "relu"
    model = MLP(
        [784, *[WIDTH] * depth, 10],
        norm=NORMS[arm],
        act=nn.ReLU if relu else nn.Sigmoid,
        init=None if relu else gaussian(0.1),
        generator=generator("batchnorm weights", seed),
    ).to(device)
    if arm == "frozen":
        population_statistics(model, [images(device)["train"][0][:FIRST]])
        for layer in model.hidden:
            norm, layer.norm = layer.norm, Frozen(WIDTH, affine=False, device=device)
            layer.norm.load_state_dict(norm.state_dict())
    return model


def images(device: torch.device) -> dict[str, tuple[Tensor, Tensor]]:
    """The splits of binary MNIST: 55,000 images to train on, 5,000 to choose the rate by, 10,000 to test."""
    data = mnist.load(device)
    splits = ((name, data.split(name)) for name in ("train", "valid", "test"))
    return {name: (data.binarised(x).flatten(1), y) for name, (x, y) in splits}


@dataclass(frozen=True, kw_only=True)
class Deep:
    """Plain SGD at a constant rate."""

    steps: int
    test: int
    lr: float
    examples: int = 55_000
    depth: int = 3
    trivial: tuple[str, ...] = ("linear",)


@dataclass(frozen=True, kw_only=True)
class Training(Deep):
    eval_every: int


def fitted(name: str, arm: str, seeds: list[int], config: Deep, device: torch.device, **options) -> tuple:
    """Train a network per seed: the networks, their histories, the test images, and what trivial predictors score."""
    splits = images(device)
    train, test = (tuple(t[:n] for t in splits[k]) for k, n in (("train", config.examples), ("test", config.test)))
    models = [sigmoid_net(arm, config.depth, seed, device) for seed in seeds]
    histories = fit_batched(
        models,
        train,
        seeds=[seed_of(name, seed) for seed in seeds],
        steps=config.steps,
        batch=BATCH,
        lr=config.lr,
        optimizer="sgd",
        **options,
    )
    return models, histories, test, trivial.classes(train, test, config.trivial)


def training_batch(arm: str, seeds: list[int], config: Training, device: torch.device) -> list[dict | Diverged]:
    """Test accuracy along the run and at its end, and the mean of that on the validation images.

    `smooth_accuracy` is the mean of three evaluations.
    """
    splits = images(device)
    test = tuple(t[: config.test] for t in splits["test"])

    def evaluate(model: MLP) -> dict[str, float]:
        on = {"accuracy": test, "valid_accuracy": splits["valid"]}
        return {name: evaluate_classifier(model, *data)["accuracy"] for name, data in on.items()}

    watch = {"evaluate": evaluate, "eval_every": config.eval_every}
    models, histories, _, beside = fitted("batchnorm training", arm, seeds, config, device, **watch)

    def measures(model: MLP, history: History) -> dict:
        accuracy = history.curves["accuracy"]
        return {
            "accuracy": accuracy,
            "smooth_accuracy": [fmean(accuracy[max(0, i - 2) : i + 1]) for i in range(len(accuracy))],
            "steps": history.eval_steps,
            "last_accuracy": fmean(accuracy[-LAST:]),
            "valid_mean": fmean(history.curves["valid_accuracy"]),
            **beside,
        }

    return each(models, histories, measures)


def deep_batch(arm: str, seeds: list[int], config: Deep, device: torch.device) -> list[dict | Diverged]:
    """Accuracy at the end, at a depth and a learning rate."""
    models, histories, test, beside = fitted("batchnorm deep", arm, seeds, config, device)
    return each(
        models, histories, lambda model, _: {"accuracy": evaluate_classifier(model, *test)["accuracy"], **beside}
    )


shallow_batch = deep_batch
