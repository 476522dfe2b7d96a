"""What papers/spectral_norm measures: exact statements, how sigma is followed, and small GANs on a plane.

`identities` and `gan` both build critics of linear layers and leaky ReLUs.  Arms of a seed start from the same weights.
`none` has ordinary weights; `frozen` is a spectrally normalised critic that is never trained.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from repro.errors import Diverged
from repro.papers.spectral_norm.method import SpectralNorm, spectral_norm
from repro.papers.weight_norm import weight_norm
from repro.tasks import Measures, Worst
from repro.train import draws, forked_rng, seed_of

# --- identities ------------------------------------------------------------------------------------------------------


class Detached(SpectralNorm):
    """W / sigma with a sigma that carries no gradient."""

    def sigma(self, weight: Tensor) -> Tensor:
        return super().sigma(weight).detach()


def perceptron(*widths: int, slope: float = 0.1) -> nn.Sequential:
    """Linear layers with leaky ReLUs between them."""
    layers = [
        module for a, b in zip(widths, widths[1:], strict=False) for module in (nn.Linear(a, b), nn.LeakyReLU(slope))
    ]
    return nn.Sequential(*layers[:-1])


def linears(model: nn.Module) -> list[nn.Linear]:
    return [module for module in model if isinstance(module, nn.Linear)]


@dataclass(frozen=True, kw_only=True)
class Identities:
    width: int
    iterations: int


def identities(arm: str, seed: int, config: Identities, device: torch.device) -> Measures:
    """The gradient in closed form at fixed u and v, and the largest gradient of a critic by its input."""
    draw, worst = draws(device, "spectral_norm identities", seed), Worst()
    with forked_rng(torch.device("cpu")):
        torch.manual_seed(seed_of("spectral_norm identities", seed))
        critic = perceptron(config.width, config.width, config.width, 1).double()
        with torch.no_grad():
            for layer in linears(critic):
                layer.weight.mul_(25)
        for i, layer in enumerate(linears(critic)):
            kind = Detached if arm == "detached" else SpectralNorm
            if not (arm == "one_left_out" and i == 1):
                parametrize.register_parametrization(layer, "weight", kind(layer.weight, config.iterations))
    critic.to(device)
    critic(draw(1, config.width))  # a training pass: sigma becomes exact
    critic.eval()
    first = critic[0].parametrizations.weight
    upstream, normalised = draw(config.width, config.width), critic[0].weight
    (got,) = torch.autograd.grad((normalised * upstream).sum(), first.original)
    u, v, w = first[0]._u, first[0]._v, first.original.detach()
    sigma = u @ w @ v
    want = (upstream - (upstream * w / sigma).sum() * torch.outer(u, v)) / sigma
    worst.relative("gradient_error", got, want)
    x = draw(512, config.width).requires_grad_()
    (slope,) = torch.autograd.grad(critic(x).sum(), x)
    worst.record("lipschitz", slope.norm(dim=1))
    return worst


# --- GANs on a plane -------------------------------------------------------------------------------------------------

SETTINGS = ((2e-4, 0.5, 0.999), (1e-3, 0.5, 0.999), (1e-3, 0.9, 0.999), (1e-2, 0.9, 0.999))  # Adam: lr, beta1, beta2


@dataclass(frozen=True, kw_only=True)
class Gan:
    width: int
    steps: int
    batch: int
    samples: int
    radius: float  # of the ring of eight Gaussians of deviation 0.1


def ring(config: Gan, count: int, draw, source: torch.Generator) -> Tensor:
    """Points of eight Gaussians on a ring."""
    angle = torch.randint(8, (count,), generator=source) * (math.pi / 4)
    return config.radius * torch.stack([angle.cos(), angle.sin()], 1) + 0.1 * draw(count, 2)


def energy_distance(x: Tensor, y: Tensor) -> float:
    """2 E|X - Y| - E|X - X'| - E|Y - Y'|, without bias; 0 for equal distributions."""
    n, m = len(x), len(y)
    cross = 2 * torch.cdist(x, y).mean()
    return float(cross - torch.cdist(x, x).sum() / (n * (n - 1)) - torch.cdist(y, y).sum() / (m * (m - 1)))


def batches(config: Gan, name: str, seed: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Real points and noise, without end."""
    source = torch.Generator().manual_seed(seed_of(name, seed))

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=source)

    while True:
        yield ring(config, config.batch, draw, source).to(device), draw(config.batch, 2).to(device)


def penalty(critic: nn.Module, real: Tensor, fake: Tensor) -> Tensor:
    """10 (|gradient| - 1)^2 between real and generated points, as in WGAN-GP."""
    share = torch.linspace(0, 1, len(real), device=real.device)[:, None]
    between = (share * real + (1 - share) * fake).requires_grad_()
    (slope,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
    return 10 * (slope.norm(dim=1) - 1).square().mean()


def play(arm: str, seed: int, config: Gan, device: torch.device, setting: tuple[float, float, float]) -> nn.Module:
    """Train a generator against a critic, one step of each in turn, and return it.  Diverged if a loss is not
    finite.
    """
    with forked_rng(torch.device("cpu")):
        torch.manual_seed(seed_of("spectral_norm gan", seed))
        generator = perceptron(2, config.width, config.width, 2).to(device)
        critic = perceptron(2, config.width, config.width, config.width, 1).to(device)
        for layer in linears(critic):
            if arm in ("sn", "frozen"):
                spectral_norm(layer)
            elif arm == "wn":
                weight_norm(layer).parametrizations.weight.original0.data.fill_(1.0).requires_grad_(False)
    lr, *betas = setting
    ours, theirs = (torch.optim.Adam(model.parameters(), lr, tuple(betas)) for model in (generator, critic))
    for step, (real, noise) in zip(range(config.steps), batches(config, "gan", seed, device), strict=False):
        if arm != "frozen":
            fake = generator(noise).detach()
            good, bad = critic(torch.cat([real, fake])).chunk(2)
            if arm == "gp":
                loss = bad.mean() - good.mean() + penalty(critic, real, fake)
            else:
                loss = (1 - good).relu().mean() + (1 + bad).relu().mean()
            theirs.zero_grad()
            loss.backward()
            theirs.step()
        score = -critic(generator(noise)).mean()
        ours.zero_grad()
        score.backward()
        ours.step()
        if step % 100 == 99 and not math.isfinite(float(score.detach())):
            raise Diverged(step)
    return generator


def gan(arm: str, seed: int, config: Gan, device: torch.device) -> Measures:
    """Energy distance of the generated points from the ring, setting by setting, and the worst of them."""
    source = torch.Generator().manual_seed(seed_of("spectral_norm test", seed))

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=source)

    real, noise = ring(config, config.samples, draw, source).to(device), draw(config.samples, 2).to(device)
    distances = []
    for setting in SETTINGS:
        with torch.enable_grad():
            made = play(arm, seed, config, device, setting)
        with torch.no_grad():
            distances.append(max(energy_distance(made(noise), real), 1e-4))
    gaussian = noise * (real.square().mean()).sqrt()
    trivial = {"trivial_gaussian": energy_distance(gaussian, real)}
    return {"worst": max(distances), "best": min(distances), "distances": distances, **trivial}
