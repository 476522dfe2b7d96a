"""What papers/adam measures: the training cost of a network with dropout, the bias correction, and sizes of steps."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from repro import tasks, trivial
from repro.experiments.walks import walk
from repro.models.slots import linear
from repro.papers.adam import Adam
from repro.train import draws, evaluate_classifier, generator

# --- arms -------------------------------------------------------------------------------------------------------------


class FrozenAdam(Adam):
    """A wrong Adam, whose second moment stays as it is after ten steps."""

    def update(self, p: Tensor, g: Tensor, state: dict, group: dict) -> None:
        (b1, b2), t, m, v = group["betas"], state["step"], state["exp_avg"], state["exp_avg_sq"]
        m.lerp_(g, 1 - b1)
        if t <= 10:
            v.mul_(b2).addcmul_(g, g, value=1 - b2)
        below = (v / (1 - b2 ** min(t, 10))).sqrt().add_(group["eps"])
        p.addcdiv_(m, below, value=-group["lr"] / (1 - b1**t))


class OneMoment(Adam):
    """A wrong Adam with one second moment for each tensor, in place of one for each number."""

    def update(self, p: Tensor, g: Tensor, state: dict, group: dict) -> None:
        (b1, b2), t, m, v = group["betas"], state["step"], state["exp_avg"], state["exp_avg_sq"]
        m.lerp_(g, 1 - b1)
        v.lerp_(g.square().mean().expand_as(v), 1 - b2)
        p.addcdiv_(m, (v / (1 - b2**t)).sqrt().add_(group["eps"]), value=-group["lr"] / (1 - b1**t))


class MeanOnly(Adam):
    """A wrong Adam that corrects the mean and not the second moment."""

    def update(self, p: Tensor, g: Tensor, state: dict, group: dict) -> None:
        t, rate = state["step"], group["lr"]
        super().update(p, g, state, {**group, "bias_correction": False, "lr": rate / (1 - group["betas"][0] ** t)})


USUAL = {"adam": 1e-3, "frozen": 1e-3, "one_moment": 1e-3, "nesterov": 1e-2, "adagrad": 1e-2}  # rates


def optimizer_of(arm: str) -> Callable[[list[dict], float], torch.optim.Optimizer]:
    """optimizer(groups, lr) of an arm of `network`."""
    match arm:
        case "nesterov":
            return lambda groups, lr: torch.optim.SGD(groups, lr=lr, momentum=0.9, nesterov=True)
        case "adagrad":
            return lambda groups, lr: torch.optim.Adagrad(groups, lr=lr)
    kind = {"adam": Adam, "frozen": FrozenAdam, "one_moment": OneMoment}[arm]
    return lambda groups, lr: kind(groups, lr=lr)


# --- a network with dropout (Section 6.2) -----------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Network(tasks.Pictures):
    """rate: multiple of the arm's usual rate (`USUAL`), which takes the place of lr."""

    width: int
    rate: float
    dropout: float = 0.5
    data: str = "mnist"
    batch: int = 128
    lr: float = 1.0


def network(arm: str, seed: int, config: Network, device: torch.device) -> tasks.Measures:
    """Training cost with dropout on, over the last tenth of the steps, and test error."""
    train, test = config.load(device)
    source = generator("adam network", seed)
    sizes, layers = [config.channels * config.side**2, config.width, config.width], [nn.Flatten()]
    for n, m in zip(sizes, sizes[1:], strict=False):
        hidden = linear(n, m, bias=True, std=math.sqrt(2 / n), generator=source)
        layers += [hidden, nn.ReLU(), nn.Dropout(config.dropout)]
    head = linear(sizes[-1], 10, bias=True, std=math.sqrt(1 / sizes[-1]), generator=source)
    model = nn.Sequential(*layers, head).to(device)
    history = tasks.trained(
        model,
        train,
        "adam network batches",
        seed,
        config,
        lr=USUAL[arm] * config.rate,
        optimizer=optimizer_of(arm),
    )
    return {
        "cost": fmean(history.train_loss[-max(1, config.steps // 10) :]),
        "error": evaluate_classifier(model, *test)["error"],
        **tasks.learning(history),
        **trivial.classes(train, test, config.trivial, measure="error"),
    }


# --- a variational autoencoder (Section 6.4) --------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Autoencoder(tasks.Pictures):
    """hidden softplus units on either side of `latent` Gaussian ones; beta2: of the optimizer."""

    hidden: int
    latent: int
    beta2: float
    data: str = "mnist"
    batch: int = 100
    trivial: tuple[str, ...] = ()


class VAE(nn.Module):
    """Auto-Encoding Variational Bayes (Kingma & Welling 2014): images (B, 784) -> logits, mean and log variance."""

    def __init__(self, pixels: int, hidden: int, latent: int, source: torch.Generator):
        super().__init__()

        def layer(n: int, m: int) -> nn.Linear:
            return linear(n, m, bias=True, std=math.sqrt(1 / n), generator=source)

        self.encoder = nn.Sequential(layer(pixels, hidden), nn.Softplus(), layer(hidden, 2 * latent))
        self.decoder = nn.Sequential(layer(latent, hidden), nn.Softplus(), layer(hidden, pixels))

    def forward(self, x: Tensor) -> Tensor:
        mean, log_variance = self.encoder(x).chunk(2, -1)
        z = mean + (log_variance / 2).exp() * torch.randn_like(mean)
        return torch.cat([self.decoder(z), mean, log_variance], -1)


def bound(output: Tensor, x: Tensor) -> Tensor:
    """The negative evidence lower bound in nats per image."""
    pixels = x.shape[-1]
    mean, log_variance = output[:, pixels:].chunk(2, -1)
    likelihood = F.binary_cross_entropy_with_logits(output[:, :pixels], x, reduction="sum")
    divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum()
    return (likelihood + divergence) / len(x)


def autoencoder(arm: str, seed: int, config: Autoencoder, device: torch.device) -> tasks.Measures:
    """Training loss over the last tenth of the steps, and what the mean image alone would give."""
    images = tasks.PICTURES[config.data](device)
    x = images.split("train")[0][: config.examples].flatten(1).float() / 255
    kind, options = {
        "corrected": (Adam, {}),
        "uncorrected": (Adam, {"bias_correction": False}),
        "mean_only": (MeanOnly, {}),
    }[arm]
    model = VAE(x.shape[1], config.hidden, config.latent, generator("adam autoencoder", seed)).to(device)
    history = tasks.trained(
        model,
        (x, x),
        "adam autoencoder batches",
        seed,
        config,
        loss=bound,
        optimizer=lambda groups, lr: kind(groups, lr=lr, betas=(0.9, config.beta2), **options),
    )
    p = x.mean(0).clamp(1e-6, 1 - 1e-6)
    return {
        "nats": fmean(history.train_loss[-max(1, config.steps // 10) :]),
        "trivial_mean": float(F.binary_cross_entropy(p.expand_as(x), x, reduction="sum") / len(x)),
        **tasks.learning(history),
    }


# --- sizes of steps (Section 2.1) -------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Steps:
    width: int
    steps: int
    decades: float  # over which the scales of the coordinates spread
    growing: int  # steps along growing gradients


def steps(arm: str, seed: int, config: Steps, device: torch.device) -> tasks.Measures:
    """By how much scales of the gradients change the path, the first step, and the largest step known, in float64."""
    draw = draws(device, "adam steps", seed)
    kind = OneMoment if arm == "one_moment" else Adam
    eps, corrected = (1e-8 if arm == "default_eps" else 0.0), arm != "uncorrected"

    def make(p: list[Tensor]) -> torch.optim.Optimizer:
        return kind(p, lr=1.0, eps=eps, bias_correction=corrected)

    g = 0.3 + draw(config.steps, config.width)
    reach = config.decades / 2
    scales = torch.logspace(-reach, reach, config.width, dtype=torch.float64, device=device)
    path = walk(make, g)
    b1, b2 = 0.9, 0.999
    ages = torch.arange(config.growing, dtype=torch.float64, device=device).flip(0)
    worst = torch.ones_like(ages) if arm == "constant" else (b1 / b2) ** ages.clamp(max=600)
    sizes = walk(make, worst[:, None]).diff(dim=0).abs()
    return {
        "path_change": tasks.relative(walk(make, g * scales), path),
        "first_step": float(path[0].abs().max()),
        "last_step": float(sizes[-1]),
        "printed_bound": (1 - b1) / math.sqrt(1 - b2),
    }
