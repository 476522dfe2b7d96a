"""What papers/online_norm measures: the network of its Fashion-MNIST experiment, its gradient, and its variance.

`fmnist` repeats the authors' run (Cerebras/online-normalization, experiments/mlp) to the letter: 784-500-300-10 with
ReLU and without a single bias, Xavier's uniform weights, pixels in [0, 1], batches of 32 of all 60,000 images, the
incomplete last one left out, SGD at 0.04, weight decay 1e-4 but for the norms, and the test accuracy after epoch 9.
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from repro import trivial
from repro.batched import fit_batched
from repro.data import fashion_mnist
from repro.models.mlp import MLP
from repro.models.slots import identity, linear
from repro.papers.batchnorm import BatchNorm
from repro.papers.layernorm import LayerNorm
from repro.papers.online_norm.method import OnlineNorm
from repro.papers.online_norm.stream import Stream, powers, recursion
from repro.tasks import Measures, Worst, learning
from repro.train import Diverged, History, draws, evaluate_classifier, fit, generator, seed_of

BATCH = 32
NORMS = {
    "online": OnlineNorm,
    "batchnorm": BatchNorm,
    "layernorm": LayerNorm,
    "none": identity,
    "linear": identity,
    "no_control": partial(OnlineNorm, alpha_backward=1.0),  # the gradient through frozen statistics
    "frozen": partial(OnlineNorm, alpha_forward=1.0, alpha_backward=1.0),  # layer scaling alone
}


# --- fmnist -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Fmnist:
    examples: int
    test: int
    epochs: int
    every: int  # epochs between two evaluations
    lr: float = 0.04
    trivial: tuple[str, ...] = ("linear",)


def xavier(model: MLP, source: torch.Generator) -> None:
    """As in the authors' code, where no layer has a bias, whatever its norm."""
    model.head = linear(model.head.in_features, 10, bias=False, std=1.0, generator=source)
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight, generator=source)


def network(arm: str, seed: int, device: torch.device) -> MLP:
    """The arms of a seed start from the same weights; `linear` has no hidden layer."""
    widths = [784, 10] if arm == "linear" else [784, 500, 300, 10]
    return MLP(widths, norm=NORMS[arm], init=xavier, bias=False, generator=generator("online_norm fmnist", seed)).to(
        device
    )


def decayed(model: nn.Module) -> list[dict]:
    """Weight decay for matrices, none for gains and biases."""
    flat = [p for p in model.parameters() if p.ndim < 2]
    return [
        {"params": [p for p in model.parameters() if p.ndim >= 2]},
        *([{"params": flat, "weight_decay": 0.0}] if flat else []),
    ]


def recipe(config: Fmnist, device: torch.device) -> tuple[tuple[Tensor, Tensor], dict, Measures]:
    """The training data, the arguments of `fit`, and what trivial predictors score."""
    data = fashion_mnist.load(device)
    x, y = (
        torch.cat([data.train_x, data.valid_x]),
        torch.cat([data.train_y, data.valid_y]),
    )  # the official training images
    test = data.unit(data.test_x[: config.test]).flatten(1), data.test_y[: config.test]
    epoch = config.examples // BATCH
    train = data.unit(x[: config.examples]).flatten(1), y[: config.examples]
    beside = trivial.classes(train, test, config.trivial)
    settings = {
        "steps": config.epochs * epoch,
        "batch": BATCH,
        "lr": config.lr,
        "optimizer": "sgd",
        "weight_decay": 1e-4,
        "groups": decayed,
        "evaluate": lambda model: {"accuracy": 100 * evaluate_classifier(model, *test)["accuracy"]},
        "eval_every": config.every * epoch,
    }
    return train, settings, {name: 100 * share for name, share in beside.items()}


def measures(history: History | Diverged, config: Fmnist, beside: Measures) -> Measures | Diverged:
    """Percent right after the last epoch, over the last third of the epochs, and along the run."""
    if isinstance(history, Diverged):
        return history
    curve = history.curves["accuracy"]
    epochs = [steps // (config.examples // BATCH) for steps in history.eval_steps]
    late = [accuracy for accuracy, epoch in zip(curve, epochs, strict=True) if epoch > config.epochs * 2 // 3]
    mean = sum(late) / len(late)
    return {
        "accuracy": curve[-1],
        "late_accuracy": mean,
        "curve": curve,
        "epoch": epochs,
        **learning(history),
        **beside,
    }


def fmnist(arm: str, seed: int, config: Fmnist, device: torch.device) -> Measures | Diverged:
    """One seed by itself: on a CPU its weights stay in the cache."""
    data, settings, beside = recipe(config, device)
    history = fit(network(arm, seed, device), data, seed=seed_of("online_norm fmnist", seed), **settings)
    return measures(history, config, beside)


def fmnist_batch(arm: str, seeds: list[int], config: Fmnist, device: torch.device) -> list[Measures | Diverged]:
    """All seeds in one pass, for a GPU."""
    data, settings, beside = recipe(config, device)
    models = [network(arm, seed, device) for seed in seeds]
    histories = fit_batched(models, data, seeds=[seed_of("online_norm fmnist", seed) for seed in seeds], **settings)
    return [measures(history, config, beside) for history in histories]


# --- gradient: Section 3 ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Gradient:
    features: int
    batch: int
    length: int


def gradient(arm: str, seed: int, config: Gradient, device: torch.device) -> dict[str, float]:
    """Time averages of dL/dx and of q y over an autocorrelated stream whose upstream gradient is 1 + y/2 + noise.

    `no_control`: alpha_b = 1; `reset`: u and v forgotten after each batch.  q is rebuilt from dL/dx alone.
    """
    draw, shape = draws(device, "online_norm gradient", seed), (config.features,)
    a_b = 1.0 if arm == "no_control" else 0.99
    z, (mu, u, v, total, products) = draw(*shape), torch.zeros(5, *shape, dtype=torch.float64, device=device)
    s2, decays = torch.ones_like(mu), powers(config.batch, 0.9, z)
    for _ in range(config.length // config.batch):
        states = recursion(decays, z, (1 - 0.9**2) ** 0.5 * draw(config.batch, *shape))
        z, x, held = states[-1], (2 + 3 * states[1:]).requires_grad_(), u.clone()
        y, _, scale, _, mu, s2 = Stream.apply(x, None, None, mu, s2, u, v, 0.999, a_b, 1e-5, None, False)
        (d,) = torch.autograd.grad(y, x, 1 + y.detach() / 2 + draw(config.batch, *shape))
        q = scale * (d + (1 - a_b) * (held + d.cumsum(0) - d))
        total, products = total + d.sum(0), products + (q * y.detach()).sum(0)
        if arm == "reset":
            u, v = torch.zeros(2, *shape, dtype=u.dtype, device=device)
    return {
        "mean_gradient": float(total.abs().mean()) / config.length,
        "mean_product": float(products.abs().mean()) / config.length,
    }


# --- variance: Section 3 ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Variance:
    length: int
    features: int
    batch: int
    alpha: float


def variance(arm: str, seed: int, config: Variance, device: torch.device) -> dict[str, float]:
    """mu and s2 along a stream against mean and variance with weights (1 - a) a^k, a^t of it the state at the start.

    `other_coefficient`: s2 grows by (1 - a) in place of a (1 - a) times the square.
    """
    x = 2 + 3 * torch.randn(
        config.length, config.features, generator=generator("online_norm variance", seed), dtype=torch.float64
    )
    x, a, seen, worst = x.to(device), config.alpha, [], Worst()
    mu, u, v = torch.zeros(3, config.features, dtype=x.dtype, device=device)
    s2 = torch.ones_like(mu)
    for part in x.split(config.batch):
        y, _, scale, _, new_mu, new_s2 = Stream.apply(part, None, None, mu, s2, u, v, a, 1.0, 0.0, None, False)
        mus = part - y * scale
        if arm == "other_coefficient":
            s2s = recursion(powers(len(part), a, part), s2, (1 - a) * (part - mus).square())
            scale, new_s2 = s2s[:-1].sqrt(), s2s[-1]
        mu, s2 = new_mu, new_s2
        seen.append(torch.stack([mus, scale.square()], 1))
    ours = torch.cat(seen)
    for t in range(config.batch // 2, config.length, config.batch):
        weights = (1 - a) * a ** torch.arange(t - 1, -1, -1, dtype=x.dtype, device=device)
        mean = weights @ x[:t]
        wanted = torch.stack([mean, weights @ (x[:t] - mean).square() + a**t * (1 + mean.square())])
        worst.record("error", ((ours[t] - wanted) / wanted[1].sqrt()).abs())
    return worst
