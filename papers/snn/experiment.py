"""What papers/snn measures: the moment map at its fixed point and over the paper's ranges, and trained networks."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from repro import trivial
from repro.batched import fit_batched
from repro.data import fashion_mnist, keel
from repro.models.mlp import MLP, ResidualMLP
from repro.models.slots import identity, linear, scaled_gaussian
from repro.papers.batchnorm import BatchNorm
from repro.papers.layernorm import LayerNorm
from repro.papers.snn.method import ALPHA, SELU, lecun_normal_, moment_map
from repro.probes import Probe
from repro.tasks import Measures, each, learning
from repro.train import Diverged, History, cross_entropy, evaluate_classifier, generator, seed_of

JACOBIAN, NORM = [[0.0, 0.088834], [0.0, 0.782648]], 0.7877  # as printed with Eq. 6
LOW, HIGH = (-0.03106, 0.80009), (0.06773, 1.48617)  # of mean and variance, as printed in Theorem 1
# act and init; the other arms have ReLUs and the weights that MLP draws, N(0, 2 / fan-in) as in He et al. 2015 ("MSRA")
SELUS = {"snn": (SELU, lecun_normal_), "selu_he": (SELU, None), "selu_gain_3_4": (SELU, scaled_gaussian(0.75))}


def network(arm: str, widths: list[int], seed: int) -> MLP:
    act, init = SELUS.get(arm, (nn.ReLU, None))
    norm, source = {"batchnorm": BatchNorm, "layernorm": LayerNorm}.get(arm, identity), generator("snn weights", seed)
    return MLP(widths, norm=norm, act=act, init=init, generator=source)


def map_and_slopes(arm: str, *at: Tensor) -> tuple[Tensor, Tensor]:
    """The moment map at (mu, nu, omega, tau), (2, ...), and its Jacobian with respect to mu and nu, (..., 2, 2)."""
    at = [t.clone().requires_grad_() for t in at]
    image = moment_map(*at, alpha=1.0 if arm == "alpha_one" else ALPHA)
    rows = [torch.stack(torch.autograd.grad(out.sum(), at[:2], retain_graph=True), -1) for out in image]
    return torch.stack(image).detach(), torch.stack(rows, -2)


# --- fixed point: the map at (0, 1), and a network of 100 layers ------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class FixedPoint:
    depth: int
    width: int  # and twice as many cases
    start: float  # variance of the inputs


def fixed_point(arm: str, seed: int, config: FixedPoint, device: torch.device) -> dict[str, float | list[float]]:
    at = torch.tensor([0.0, 1.0, 0.0, 2.0 if arm == "selu_he" else 1.0], dtype=torch.float64)
    image, slopes = map_and_slopes(arm, *at)
    net = network(arm, [config.width] * (config.depth + 1) + [1], seed).to(device)
    with torch.no_grad(), Probe(net, of=SELU) as probe:
        net(
            config.start**0.5
            * torch.randn(2 * config.width, config.width, generator=generator("snn inputs", seed)).to(device)
        )
    layers = probe.rows()
    return {
        "fixed_point_error": float((image - at[:2]).abs().max()),
        "jacobian_error": float((slopes - torch.tensor(JACOBIAN).double()).abs().max()),
        "norm_error": abs(float(torch.linalg.matrix_norm(slopes, 2)) - NORM),
        "layer": list(range(1, config.depth + 1)),
        "mean": layers[-1]["mean"],
        "variance": layers[-1]["variance"],
        "variances": [layer["variance"] for layer in layers],
    }


# --- Theorems 1 to 3 --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Domain:
    grid: int  # points per axis of a grid over the four-dimensional domain, edges included
    points: int  # random points


def domain(arm: str, seed: int, config: Domain, device: torch.device) -> dict[str, float]:
    source, near = generator("snn domain", seed), (-0.1, 0.1)

    def draw(*ranges: tuple[float, float]) -> list[Tensor]:  # of mu, nu, omega, tau
        points = torch.rand(4, config.points, generator=source, dtype=torch.float64).to(device)
        return [a + (b - a) * t for (a, b), t in zip(ranges, points, strict=True)]

    def wrong(
        sign: float, *ranges: tuple[float, float]
    ) -> int:  # how often the variance does not move in the direction of `sign`
        return int((sign * (map_and_slopes(arm, *(at := draw(*ranges)))[0][1] - at[1]) <= 0).sum())

    ranges = near, (0.8, 1.5), near, (0.95, 1.1)  # Theorem 1
    mesh = torch.meshgrid(*(torch.linspace(a, b, config.grid, dtype=torch.float64) for a, b in ranges), indexing="ij")
    at = [torch.cat([t.flatten().to(device), u]) for t, u in zip(mesh, draw(*ranges), strict=True)]
    image, slopes = map_and_slopes(arm, *at)
    below, above = torch.tensor(LOW) - image.amin(1).cpu(), image.amax(1).cpu() - torch.tensor(HIGH)
    low_tau, high_tau = [(0.4, 0.6)] * 2 if arm == "low_tau" else [(0.8, 1.25), (0.9, 1.25)]
    return {
        "beyond": float(torch.cat([below, above]).max().clamp(min=0)),
        "mean_ends_error": float(max(below[0].abs(), above[0].abs())),
        "gain": float(torch.linalg.matrix_norm(slopes.cpu(), 2).max()),
        "shrinks_not": wrong(-1, (-1.0, 1.0), (3.0, 16.0), near, (0.8, 1.25)),
        "grows_not": wrong(1, near, (0.02, 0.16), near, low_tau) + wrong(1, near, (0.02, 0.24), near, high_tau),
    }


# --- seven networks on UCI tables -------------------------------------------------------------------------------------


class WeightNorm(nn.Module):
    """y = g v x / |v| + b (Salimans & Kingma 2016); g starts at |v|, so that the layer does as it did without."""

    def __init__(self, layer: nn.Linear):
        super().__init__()
        self.v, self.g, self.bias = layer.weight, nn.Parameter(layer.weight.detach().norm(dim=1)), layer.bias

    def forward(self, x: Tensor) -> Tensor:
        return x @ (self.v * (self.g / self.v.norm(dim=1))[:, None]).T + self.bias


class Highway(nn.Module):
    """y = t relu(W x + b) + (1 - t) x, t = sigmoid(W' x + b'), b' = -1 at first (Srivastava et al. 2015)."""

    def __init__(self, n: int, source: torch.Generator):
        super().__init__()
        self.up, self.gate = (linear(n, n, bias=True, std=(gain / n) ** 0.5, generator=source) for gain in (2, 1))
        nn.init.constant_(self.gate.bias, -1.0)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.sigmoid(self.gate(x)) * (torch.relu(self.up(x)) - x)


def method(arm: str, inputs: int, width: int, layers: int, classes: int, seed: int) -> nn.Module:
    """`layers` hidden layers: a residual block has two, and the first highway layer is a plain one."""
    if arm == "resnet":
        return ResidualMLP(
            inputs, width, layers // 2, classes, norm=BatchNorm, generator=generator("snn weights", seed)
        )
    model, source = network(arm, [inputs, *[width] * layers, classes], seed), generator("snn highway", seed)
    for i, layer in enumerate(model.hidden):
        if arm == "weightnorm":
            layer.linear = WeightNorm(layer.linear)
        elif arm == "highway" and i > 0:
            model.hidden[i] = Highway(width, source)
    return model


def weighted(logits: Tensor, target: Tensor) -> Tensor:
    """r times the cross-entropy; target: (B, 2), labels and 1000 r.  SGD on it at rate 1 is SGD at rate r."""
    return target[0, 1] / 1000 * cross_entropy(logits, target[:, 0])


def halved(x: Tensor, source: torch.Generator) -> Tensor:
    """Ordinary dropout of half of the inputs."""
    return 2 * x * (torch.rand(x.shape, generator=source) < 0.5).to(x)


@dataclass(frozen=True, kw_only=True)
class Tabular:
    layers: tuple[int, ...]
    rates: tuple[float, ...]
    width: int
    steps: int
    batch: int
    dataset: str
    trivial: tuple[str, ...] = ("linear",)


def guessed(y: Tensor, test_y: Tensor) -> float:
    """The error of the commonest class of the training rows."""
    return float((test_y != y.mode().values).double().mean())


def tabular_batch(arm: str, seeds: list[int], config: Tabular, device: torch.device) -> list[dict | Diverged]:
    """Seed s: fold s mod 5 is the test set; layers and rate are chosen on a fifth of the other rows, for each seed."""
    table, runs, scores = keel.load(config.dataset, device), [], [[] for _ in seeds]
    n, splits = (
        len(table.y) * 4 // 5 * 4 // 5,
        [table.split(seed % keel.FOLDS) for seed in seeds],
    )  # n rows to fit in every fold
    if arm == "commonest":
        return [
            {"error": guessed(y, test_y), "layers": 0, "majority": guessed(y, test_y)} for _, y, _, test_y in splits
        ]
    for i, seed in enumerate(seeds):
        order = torch.randperm(len(splits[i][1]), generator=generator("snn split", seed)).to(device)
        (x, y), valid = (part[order[:n]] for part in splits[i][:2]), [part[order[n:]] for part in splits[i][:2]]
        runs += [
            (i, seed, (x, torch.stack([y, torch.full_like(y, round(1000 * rate))], 1)), valid)
            for rate in sorted(config.rates)
        ]
    for layers in sorted(config.layers, reverse=True):
        models = [method(arm, table.x.shape[1], config.width, layers, table.classes, run[1]).to(device) for run in runs]
        histories = fit_batched(
            models,
            [run[2] for run in runs],
            seeds=[seed_of("snn batches", run[1]) for run in runs],
            steps=config.steps,
            batch=config.batch,
            lr=1.0,
            optimizer="sgd",
            loss=weighted,
            augment=halved if arm == "selu_he" else None,
        )
        for (i, _, _, valid), model, history in zip(runs, models, histories, strict=True):
            if not isinstance(history, Diverged):
                scores[i].append((evaluate_classifier(model, *valid)["error"], layers, model, history))
    best = [
        min(tried, key=lambda t: t[0], default=None) for tried in scores
    ]  # of equals the deeper and slower, as in the paper

    def row(chosen: tuple, x: Tensor, y: Tensor, test_x: Tensor, test_y: Tensor) -> Measures:
        error, beside = evaluate_classifier(chosen[2], test_x, test_y)["error"], learning(chosen[3])
        beside |= trivial.classes((x, y), (test_x, test_y), config.trivial, measure="error")
        return {"error": error, "layers": chosen[1], "majority": guessed(y, test_y), **beside}

    return [Diverged(0) if b is None else row(b, *split) for b, split in zip(best, splits, strict=True)]


# --- Figure 1: deep networks at a very small learning rate ------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Deep:
    width: int
    steps: int
    depth: int
    lr: float = 1e-5  # the paper's
    examples: int = 55_000
    trivial: tuple[str, ...] = ("linear",)


def deep_batch(arm: str, seeds: list[int], config: Deep, device: torch.device) -> list[Measures | Diverged]:
    """Plain SGD on Fashion-MNIST: the loss and its step-to-step deviation over the last fifth of the steps."""
    data = fashion_mnist.load(device)
    models = [network(arm, [784, *[config.width] * config.depth, 10], seed).to(device) for seed in seeds]
    train = data.flat(data.train_x[: config.examples]), data.train_y[: config.examples]
    histories = fit_batched(
        models,
        train,
        seeds=[seed_of("snn deep", seed) for seed in seeds],
        steps=config.steps,
        batch=min(128, len(train[0])),
        lr=config.lr,
        optimizer="sgd",
    )
    beside = trivial.classes(train, train, config.trivial, measure="loss")

    def row(model: nn.Module, history: History) -> Measures:
        losses = torch.tensor(history.train_loss[-(config.steps // 5) :]).double()
        deviation = losses.diff().square().mean().sqrt()
        return {"train_nats": float(losses.mean()), "deviation": float(deviation), **beside}

    return each(models, histories, row)
