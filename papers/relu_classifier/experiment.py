"""What papers/relu_classifier measures: a ReLU head and a softmax head on Fashion-MNIST, and what the head's loss does.

The paper's preprocessing: every pixel standardised, then 256 principal components.  `printed` has the loss of Eq. 7 as
it stands, undivided; `added` adds 1e-7 where Keras clips; `softmax_of_relu` is that of softmax(max(0, o)).
Of the heads `one_dead` is the ReLU's with one class whose score starts at -1000.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from repro.models.mlp import MLP
from repro.papers.relu_classifier.method import EPS, relu_cross_entropy
from repro.tasks import Examples, Measures, Pictures, Worst, classify
from repro.train import draws, generator

CLASSES, DROPOUT = 10, 0.1


def added_loss(o: Tensor, y: Tensor) -> Tensor:
    """1e-7 added to every output, not clipped."""
    p = o.relu() + EPS
    return -(p.gather(-1, y[..., None]).squeeze(-1) / p.sum(-1)).log().mean()


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "relu": relu_cross_entropy,
    "one_dead": relu_cross_entropy,
    "softmax": F.cross_entropy,
    "printed": functools.partial(relu_cross_entropy, normalise=False),
    "added": added_loss,
    "softmax_of_relu": lambda o, y: F.cross_entropy(o.relu(), y),
}


# --- heads: Fashion-MNIST, Table 6 ------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Heads(Pictures):
    """components: of the principal component analysis; width: of three hidden layers, 512 in the author's notebook."""

    components: int
    width: int


def components(train: Examples, test: Examples, count: int) -> tuple[Examples, Examples]:
    """Pixels standardised and projected on the first principal components, both fitted on the training images."""
    (x, y), (test_x, test_y) = ((x.flatten(1), y) for x, y in (train, test))
    mean, deviation = x.mean(0), x.std(0, correction=0)
    deviation = torch.where(deviation > 0, deviation, 1.0)
    x, test_x = (x - mean) / deviation, (test_x - mean) / deviation
    basis = torch.linalg.eigh(x.T @ x / len(x)).eigenvectors[:, -count:].flip(1)
    return (x @ basis, y), (test_x @ basis, test_y)


@functools.lru_cache(maxsize=1)
def _kept(images: Pictures, count: int, device: torch.device) -> tuple[Examples, Examples]:
    return components(*images.load(device), count)


def loaded(config: Heads, device: torch.device) -> tuple[Examples, Examples]:
    """`components` of the Config's images, kept for the other trials of the process."""
    images = {name: getattr(config, name) for name in ("examples", "test", "data", "pool")}
    return _kept(Pictures(steps=0, batch=0, lr=0.0, **images), config.components, device)


def network(arm: str, config: Heads, source: torch.Generator) -> MLP:
    """components-width-width-width-10 of ReLUs, dropout, Glorot's uniform weights; the head is a ReLU's or linear."""

    def glorot(model: nn.Module, source: torch.Generator) -> None:
        for layer in (module for module in model.modules() if isinstance(module, nn.Linear)):
            nn.init.xavier_uniform_(layer.weight, generator=source)

    widths = [config.components, *[config.width] * 3, CLASSES]
    model = MLP(widths, act=lambda: nn.Sequential(nn.ReLU(), nn.Dropout(DROPOUT)), init=glorot, generator=source)
    if arm == "one_dead":
        nn.init.constant_(model.head.bias[:1], -1e3)
    if arm != "softmax":
        model.head = nn.Sequential(model.head, nn.ReLU())
    return model


def heads(arm: str, seed: int, config: Heads, device: torch.device) -> Measures:
    """Test accuracy; classes that are never predicted; training images whose right class has the score 0."""
    train, test = loaded(config, device)
    model = network(arm, config, generator("relu_classifier heads", seed))
    measures = classify(
        model, "relu_classifier heads", seed, config, device, data=(train, test), optimizer="adam", loss=LOSSES[arm]
    )
    with torch.no_grad():
        seen, fitted = model.eval()(test[0]), model(train[0])
    return {
        **measures,
        "lost_classes": float(CLASSES - seen.argmax(1).unique().numel()),
        "silent": float((fitted.gather(1, train[1][:, None]) == 0).double().mean()),
    }


# --- start: Equation 8 ------------------------------------------------------------------------------------------------


def start(arm: str, seed: int, config: Heads, device: torch.device) -> Measures:
    """Before training: the share of images of which the loss has no gradient at all."""
    (x, y), _ = loaded(config, device)
    model = network("softmax", config, generator("relu_classifier start", seed)).to(device).eval()
    o = model(x).detach().requires_grad_()
    gradient = torch.autograd.grad(LOSSES[arm](o, y), o)[0]
    return {"silent": float((gradient == 0).all(1).double().mean())}


# --- the loss: Equations 7 and 8 --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Loss:
    examples: int


def loss(arm: str, seed: int, config: Loss, device: torch.device) -> Measures:
    """The gradient in closed form, the loss and the gradient of an example whose class is at 0, in float64."""
    draw, worst = draws(device, "relu_classifier loss", seed), Worst("dead_error", "dead_gradient")
    o = draw(config.examples, CLASSES).requires_grad_()
    y = torch.arange(config.examples, device=device) % CLASSES
    right = F.one_hot(y, CLASSES).bool()
    alive = (o.detach()[right] > 1e-3)[:, None]
    p = o.detach().relu()
    want = torch.where(p > 0, 1 / p.sum(1, keepdim=True), 0.0) - torch.where(right & (p > 0), 1 / p, 0.0)
    got = torch.autograd.grad(LOSSES[arm](o, y) * config.examples, o)[0]
    worst.record("gradient_error", ((got - want) * alive).abs())
    for row, gradient, k, dead in zip(o, got, y, o.detach()[right] <= 0, strict=True):
        if dead:
            worst.absolute("dead_error", LOSSES[arm](row[None], k[None]), 16.11809565095832)
            worst.record("dead_gradient", gradient.abs())
    return worst
