"""What papers/online_norm measures: the network of its Fashion-MNIST experiment, its gradient, and its variance.

`fmnist` repeats the authors' run (Cerebras/online-normalization, experiments/mlp) to the letter: 784-500-300-10 with ReLU
and without a single bias, Xavier's uniform weights, pixels in [0, 1], batches of 32 of all 60,000 images, the incomplete
last one left out, SGD at 0.04, weight decay 1e-4 but for the norms, and the test accuracy after epoch 9.
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from repro.batched import fit_batched
from repro.data import fashion_mnist
from repro.models.mlp import MLP
from repro.models.slots import identity, linear
from repro.papers.batchnorm import BatchNorm
from repro.papers.layernorm import LayerNorm
from repro.papers.online_norm.method import OnlineNorm, Stream, powers, recursion
from repro.train import Diverged, History, evaluate_classifier, fit, generator, seed_of

BATCH = 32
NORMS = {
    "online": OnlineNorm,
    "batchnorm": BatchNorm,
    "layernorm": LayerNorm,
    "none": identity,
    "linear": identity,
    "frozen": partial(OnlineNorm, alpha_forward=1.0, alpha_backward=1.0),  # layer scaling alone
}


# --- fmnist -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fmnist:
    examples: int
    test: int
    epochs: int
    every: int  # epochs between two evaluations


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


def recipe(config: Fmnist, device: torch.device) -> tuple[tuple[Tensor, Tensor], dict]:
    """The training data, and the arguments of `fit`."""
    data = fashion_mnist.load(device)
    x, y = (
        torch.cat([data.train_x, data.valid_x]),
        torch.cat([data.train_y, data.valid_y]),
    )  # the official training images
    test = data.unit(data.test_x[: config.test]).flatten(1), data.test_y[: config.test]
    epoch = config.examples // BATCH
    return (data.unit(x[: config.examples]).flatten(1), y[: config.examples]), {
        "steps": config.epochs * epoch,
        "batch": BATCH,
        "lr": 0.04,
        "optimizer": "sgd",
        "weight_decay": 1e-4,
        "groups": decayed,
        "evaluate": lambda model: {"accuracy": 100 * evaluate_classifier(model, *test)["accuracy"]},
        "eval_every": config.every * epoch,
    }


def measures(history: History | Diverged, config: Fmnist) -> dict | Diverged:
    if isinstance(history, Diverged):
        return history
    epochs = [steps // (config.examples // BATCH) for steps in history.eval_steps]
    return {"accuracy": history.final["accuracy"], "curve": history.curves["accuracy"], "epoch": epochs}


def fmnist(arm: str, seed: int, config: Fmnist, device: torch.device) -> dict | Diverged:
    """One seed by itself: on a CPU its weights stay in the cache."""
    data, settings = recipe(config, device)
    return measures(fit(network(arm, seed, device), data, seed=seed_of("online_norm fmnist", seed), **settings), config)


def fmnist_batch(arm: str, seeds: list[int], config: Fmnist, device: torch.device) -> list[dict | Diverged]:
    """All seeds in one pass, for a GPU."""
    data, settings = recipe(config, device)
    models = [network(arm, seed, device) for seed in seeds]
    histories = fit_batched(models, data, seeds=[seed_of("online_norm fmnist", seed) for seed in seeds], **settings)
    return [measures(history, config) for history in histories]


# --- gradient: Section 3 ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Gradient:
    features: int
    batch: int
    length: int


def gradient(arm: str, seed: int, config: Gradient, device: torch.device) -> dict[str, float]:
    """Time averages of dL/dx and of q y over an autocorrelated stream whose upstream gradient is 1 + y/2 + noise.

    `no_control`: alpha_b = 1; `reset`: u and v forgotten after each batch.  q is rebuilt from dL/dx alone.
    """
    source, a_b, shape = (
        generator("online_norm gradient", seed),
        1.0 if arm == "no_control" else 0.99,
        (config.features,),
    )

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=source, dtype=torch.float64).to(device)

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


@dataclass(frozen=True)
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
    x, a, seen = x.to(device), config.alpha, []
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
    ours, error = torch.cat(seen), 0.0
    for t in range(config.batch // 2, config.length, config.batch):
        weights = (1 - a) * a ** torch.arange(t - 1, -1, -1, dtype=x.dtype, device=device)
        mean = weights @ x[:t]
        wanted = torch.stack([mean, weights @ (x[:t] - mean).square() + a**t * (1 + mean.square())])
        error = max(error, float(((ours[t] - wanted) / wanted[1].sqrt()).abs().max()))
    return {"error": error}
