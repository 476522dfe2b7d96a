"""What papers/gdn measures: densities of patches under several ways to Gaussianize them, and exact statements."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from repro.data import fashion_mnist_m
from repro.errors import Diverged
from repro.papers.gdn.method import GDN, Gaussianization
from repro.tasks import Measures, Worst
from repro.train import cosine, draws, generator

# --- densities --------------------------------------------------------------------------------------------------------

PHOTOGRAPHS, BLOCKS = 22, 15  # of which each gives so many 88 x 88 blocks
FREEDOM = 3.0  # of Student's t


@dataclass(frozen=True, kw_only=True)
class Density:
    """patch: pixels along an edge; tested: photographs that are held out; data: one of `vectors`."""

    data: str
    lr: float
    patch: int
    tested: int
    examples: int
    test: int
    steps: int
    batch: int


def patches(seed: int, config: Density) -> tuple[Tensor, Tensor]:
    """Grey patches less their mean, in an orthonormal basis: (n, patch^2 - 1), of photographs that differ by split."""
    bank = fashion_mnist_m.DATASET.read(only=(fashion_mnist_m.BANK,))[fashion_mnist_m.BANK]
    grey = bank.view(PHOTOGRAPHS, BLOCKS, 3, 88, 88).float().mean(2)
    source, k, found = generator("gdn patches", seed), config.patch, []
    order = torch.randperm(PHOTOGRAPHS, generator=source)
    basis = torch.linalg.qr(torch.cat([torch.ones(k * k, 1), torch.eye(k * k)[:, 1:]], 1))[0][:, 1:]
    for chosen, count in ((order[config.tested :], config.examples), (order[: config.tested], config.test)):
        photo = chosen[torch.randint(len(chosen), (count,), generator=source)]
        block = torch.randint(BLOCKS, (count,), generator=source)
        top, left = torch.randint(88 - k + 1, (2, count), generator=source)
        every = grey.unfold(2, k, 1).unfold(3, k, 1)  # (photographs, blocks, top, left, k, k)
        x = every[photo, block, top, left].flatten(1)
        found.append((x + torch.rand(x.shape, generator=source)) @ basis)  # the numbers are rounded to integers
    scale = found[0].square().mean().sqrt()
    return found[0] / scale, found[1] / scale


def vectors(seed: int, config: Density) -> tuple[Tensor, Tensor, Tensor]:
    """Vectors for training, for the test, and log p of the latter where it is known, else 0.

    photographs: `patches`.  gaussian: of the covariance that the patches for training have.  student: Student's t with
    three degrees of freedom and this covariance, up to a factor, which is elliptical and has heavy tails.
    """
    train, test = patches(seed, config)
    if config.data == "photographs":
        return train, test, torch.zeros(())
    source, factor = generator("gdn vectors", seed), torch.linalg.cholesky(train.T.cov())
    found, d = [], train.shape[1]
    for like in (train, test):
        x = torch.randn(like.shape, generator=source)
        if config.data == "student":
            squares = torch.randn(len(x), int(FREEDOM), generator=source).square().sum(1, keepdim=True)
            x = x * (FREEDOM / squares).sqrt()
        found.append(x)
    size, log_det = found[1].square().sum(1), torch.linalg.slogdet(factor)[1]
    log_p = -size / 2 - d / 2 * math.log(2 * math.pi)
    if config.data == "student":
        constant = math.lgamma((FREEDOM + d) / 2) - math.lgamma(FREEDOM / 2) - d / 2 * math.log(FREEDOM * math.pi)
        log_p = constant - (FREEDOM + d) / 2 * (1 + size / FREEDOM).log()
    return found[0] @ factor.T, found[1] @ factor.T, (log_p - log_det).mean()


def nats(y: Tensor, log_det: Tensor) -> Tensor:
    """-log p per dimension, the mean over (B, d)."""
    return ((y.square().sum(1) / 2 - log_det).mean()) / y.shape[1] + math.log(2 * math.pi) / 2


def density(arm: str, seed: int, config: Density, device: torch.device) -> Measures:
    """-log p of held-out vectors, less that of the true density where it is known, in nats per dimension."""
    train, test, log_p = (t.to(device) for t in vectors(seed, config))
    model = Gaussianization(train, {"gdn": "none"}.get(arm, arm)).to(device)
    optimizer, factor = torch.optim.Adam(model.parameters(), lr=config.lr), cosine(0.05)
    source = generator("gdn batches", seed)
    for step in range(config.steps):
        optimizer.param_groups[0]["lr"] = config.lr * factor(step, config.steps)
        loss = nats(*model(train[torch.randint(len(train), (config.batch,), generator=source).to(device)]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        got = float(nats(*model(test)))
        inverse, centred = torch.linalg.inv(train.T.cov()), test - train.mean(0)
        size, log_det = ((centred @ inverse) * centred).sum(1).mean(), torch.linalg.slogdet(inverse)[1]
    if not math.isfinite(got):
        raise Diverged(config.steps)
    d, known = test.shape[1], float(log_p)
    gaussian = float(size - log_det) / 2 / d + math.log(2 * math.pi) / 2
    return {"nats": got + known / d, "trivial_gaussian": gaussian + known / d}


# --- exact statements -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Exact:
    d: int
    examples: int


def exact(arm: str, seed: int, config: Exact, device: torch.device) -> Measures:
    """log |det|, the way back and the layer, against autograd and torch's own operators, in float64."""
    draw, worst, d = draws(device, "gdn exact", seed), Worst(), config.d
    model = Gaussianization(draw(8 * d, d) @ draw(d, d)).to(device)
    with torch.no_grad():
        model.root_gamma.copy_((0.1 / d * draw(d, d).abs()).sqrt())
        model.log_alpha.add_(0.2 * draw(d, d))
        model.odds.add_(0.3 * draw(d))
    x = torch.linalg.solve(model.H.detach(), draw(config.examples, d).T).T
    y, log_det = model(x)
    whole = torch.stack([torch.autograd.functional.jacobian(lambda v: model(v[None])[0][0], row) for row in x])
    if arm == "without_h":
        log_det = log_det - torch.linalg.slogdet(model.H)[1]
    worst.absolute("log_det_error", log_det.detach(), torch.linalg.slogdet(whole)[1])
    back = model.inverse(y, steps=1 if arm == "one_step" else 50)
    worst.absolute("inverse_error", back @ model.H.T.detach(), (x @ model.H.T).detach())
    layer = GDN(d, dtype=torch.float64).to(device)
    with torch.no_grad():
        layer.gamma.add_(0.1 * draw(d, d).abs())
    beta, gamma = (p.detach() for p in layer.parts())
    image = draw(2, d, 3, 3)
    kernel = (gamma.T if arm == "transposed" else gamma).contiguous()[:, :, None, None]
    want = image * F.conv2d(image.square(), kernel, beta).rsqrt()
    worst.absolute("layer_error", layer(image).detach(), want)
    return worst
