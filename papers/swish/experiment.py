"""What papers/swish measures: Swish and ReLU in the same networks on several tasks, and facts about the function.

Of the trained arms `swish_0` is Swish with beta = 0, x / 2.  Of the others `gelu` is x Phi(beta x), `shifted` has 0.1
added inside the gate, and `swish_1_4` has 1.4 beta in place of beta.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from repro.data import mnist1d
from repro.experiments.activations import Arm, activation, convolutions, perceptron
from repro.papers.swish.method import swish
from repro.tasks import Examples, Measures, Pictures, Worst, classify
from repro.train import draws, generator

# --- tasks: Table 3 ---------------------------------------------------------------------------------------------------


ARMS = {
    "relu": Arm("torch.nn:ReLU"),
    "swish": Arm("repro.papers.swish:Swish"),
    "swish_0": Arm("repro.papers.swish:Swish", (("beta", 0.0),)),
}


@dataclass(frozen=True, kw_only=True)
class Tasks(Pictures):
    """task: <data>-<network>, the network being conv or a number of hidden layers; width and filters: of the two."""

    task: str
    width: int
    filters: int

    def examples_of(self, data: str, device: torch.device) -> tuple[Examples, Examples]:
        """Training and test examples of one data set; those of mnist1d are vectors of 40 values."""
        if data != "mnist1d":
            return replace(self, data=data).load(device)
        it = mnist1d.load(device)
        return (it.train_x[: self.examples, 0], it.train_y[: self.examples]), (it.test_x[:, 0], it.test_y)


def tasks(arm: str, seed: int, config: Tasks, device: torch.device) -> Measures:
    """Test accuracy of one network on one data set, after one cosine of Nesterov's momentum."""
    data, kind = config.task.rsplit("-", 1)
    (x, y), (test_x, test_y) = config.examples_of(data, device)
    source = generator("swish tasks", seed)
    if kind == "conv":
        model = convolutions(activation(ARMS[arm]), 1, config.filters, x.shape[1], source)
    else:
        x, test_x = x.flatten(1), test_x.flatten(1)
        model = perceptron(activation(ARMS[arm]), [x.shape[1], *[config.width] * int(kind), 10], source)
    return classify(
        model,
        "swish tasks",
        seed,
        config,
        device,
        data=((x, y), (test_x, test_y)),
        optimizer="nesterov",
        schedule="cosine",
    )


# --- the function: Section 4 ------------------------------------------------------------------------------------------


def gated(arm: str) -> Callable[[Tensor, float], Tensor]:
    """f(x, beta) of an arm."""
    return {
        "swish": swish,
        "gelu": lambda x, beta=1.0: x * torch.special.ndtr(beta * x),
        "shifted": lambda x, beta=1.0: x * torch.sigmoid(beta * x + 0.1),
        "swish_1_4": lambda x, beta=1.0: swish(x, 1.4 * beta),
        "relu": lambda x, beta=1.0: x.relu(),
    }[arm]


def slope(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """f'(x) by autograd."""
    x = x.detach().requires_grad_()
    return torch.autograd.grad(f(x).sum(), x)[0]


def root(f: Callable[[Tensor], Tensor], low: float, high: float, device: torch.device) -> float:
    """Where a function that rises through 0 between low and high is 0."""
    ends = torch.tensor([low, high], dtype=torch.float64, device=device)
    for _ in range(60):
        middle = ends.mean()
        ends[int(f(middle) > 0)] = middle
    return float(ends.mean())


@dataclass(frozen=True)
class Function:
    points: int


def function(arm: str, seed: int, config: Function, device: torch.device) -> Measures:
    """The limits of beta, the slope and the minimum of beta = 1, in float64 at random points and on a grid."""
    f, x = gated(arm), 4 * draws(device, "swish function", seed)(config.points)
    grid = torch.linspace(-8, 8, 200_001, dtype=torch.float64, device=device)
    worst = Worst()
    worst.absolute("half_error", f(x, 0.0), x / 2)
    worst.absolute("symmetry_error", slope(f, x) + slope(f, -x), 1.0)
    for k in range(9):
        z = grid / 2**k
        worst.record("limit_error", (2**k * (f(z, 2.0**k) - z.relu()).abs().max() - 0.2784645427610738).abs())
    least = root(lambda z: slope(f, z), -4.0, -0.3, device)
    return {
        **worst,
        "crossing": root(lambda z: slope(f, z) - 1, 0.1, 2.0, device),
        "least_at": least,
        "least": float(f(torch.tensor(least, dtype=torch.float64))),
    }


# --- GELU as a Swish: Section 5.1 -------------------------------------------------------------------------------------


def nearest(arm: str, seed: int, config: Function, device: torch.device) -> Measures:
    """The beta of the Swish nearest to a function by three criteria, and that of the three which is nearest to 1.4."""
    draw = draws(device, "swish nearest", seed)
    betas = torch.arange(0.5, 4.0, 0.005, dtype=torch.float64, device=device)[:, None]
    normal, even = draw(config.points), 10 * torch.special.ndtr(draw(config.points)) - 5
    gaps = [(swish(x, betas) - gated(arm)(x, 1.0)).abs() for x in (normal, even)]
    found = [gaps[0].square().mean(1), gaps[1].square().mean(1), gaps[1].amax(1)]
    best = [float(betas[gap.argmin(), 0]) for gap in found]
    named = dict(zip(("beta_gaussian", "beta_uniform", "beta_largest_gap"), best, strict=True))
    return {**named, "beta": min(best, key=lambda beta: abs(beta - 1.4))}
