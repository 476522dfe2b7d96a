"""How long weights in front of a norm become: perceptrons without a scale of their own, under SGD, Adam and AdamW.

Every layer is normalised over the batch, the last one too, without gain and shift, so that no weight has a scale that
the function sees.  All combinations of rates and decays train side by side, as a leading axis of one tensor.  Labels
are drawn anew at each step with the probability `noise`, so that nobody learns them by heart and weights come to rest.

    sgd      w - lr (g + 2 lambda w)
    early    the same, looked at before it comes to rest
    adam     Adam with g + 2 lambda w for the gradient
    adamw    w - lr (u + 2 lambda w), u Adam's step from g

Where |w| ~ lr^a / lambda^b at rest, rescaling weights asks for a + b = 1/2 under SGD, a + 2 b = 1 under Adam and
a + b = 1 under AdamW, so that lr / |w|^2, or lr / |w| under Adam and AdamW, depends on lr and lambda by one number.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from repro.errors import Diverged
from repro.tasks import Measures, Pictures
from repro.train import draws, generator


@dataclass(frozen=True, kw_only=True)
class Norms(Pictures):
    """lrs, decays: those of SGD, decays in the paper's unit; `lr` multiplies them all.  adam_lrs: those of Adam."""

    width: int
    noise: float
    lrs: tuple[float, ...]
    decays: tuple[float, ...]
    adam_lrs: tuple[float, ...]
    adamw_decays: tuple[float, ...]
    trivial: tuple[str, ...] = ()


def forward(weights: list[Tensor], x: Tensor) -> Tensor:
    """x: (cells, B, inputs), weights: (cells, n, m) -> logits (cells, B, 10), normalised over the batch."""
    for i, w in enumerate(weights):
        h = torch.bmm(x, w)
        h = h - h.mean(1, keepdim=True)
        h = h * (h.square().mean(1, keepdim=True) + 1e-12).rsqrt()
        x = h if i == len(weights) - 1 else h.relu()
    return x


def exponent(x: Tensor, y: Tensor) -> float:
    """The least-squares slope of log y over log x."""
    u, v = x.log() - x.log().mean(), y.log()
    return float((u * v).sum() / u.square().sum())


def norms(arm: str, seed: int, config: Norms, device: torch.device) -> Measures:
    """Exponents of lr and 1 / lambda in the weights' norm, the mean over layers, units and the last half of the run."""
    (x, y), _ = config.load(device)
    x, draw = x.flatten(1), draws(device, "scale_invariant", seed, dtype=torch.float32)
    decays = config.adamw_decays if arm == "adamw" else config.decays
    rates = [lr * config.lr for lr in (config.adam_lrs if arm.startswith("adam") else config.lrs)]
    lr, decay = (t.flatten().to(device) for t in torch.meshgrid(*map(torch.tensor, (rates, decays)), indexing="ij"))
    cells, widths = len(lr), [x.shape[1], config.width, config.width, 10]
    weights = [
        (draw(a, b) / a**0.5).repeat(cells, 1, 1).requires_grad_() for a, b in zip(widths, widths[1:], strict=False)
    ]
    moments = [(torch.zeros_like(w), torch.zeros_like(w)) for w in weights]
    rate, shrink = lr.view(-1, 1, 1), 2 * decay.view(-1, 1, 1)
    source, total, count = generator("scale_invariant batches", seed), torch.zeros(cells, device=device), 0
    for step in range(config.steps):
        index = torch.randint(len(x), (config.batch,), generator=source)
        wrong, other = torch.rand(config.batch, generator=source), torch.randint(10, (config.batch,), generator=source)
        target = y[index.to(device)]
        target = torch.where((wrong < config.noise).to(device), other.to(device), target)
        out = forward(weights, x[index.to(device)].expand(cells, -1, -1))
        loss = F.cross_entropy(out.flatten(0, 1), target.repeat(cells), reduction="none").view(cells, -1).mean(1)
        slopes = torch.autograd.grad(loss.sum(), weights)
        with torch.no_grad():
            for w, g, (first, second) in zip(weights, slopes, moments, strict=True):
                if arm.startswith("adam"):
                    g = g if arm == "adamw" else g + shrink * w
                    first.lerp_(g, 0.1)
                    second.lerp_(g.square(), 0.001)
                    scale = math.sqrt(1 - 0.999 ** (step + 1)) / (1 - 0.9 ** (step + 1))
                    u = scale * first / second.sqrt().clamp_min(1e-20)
                    w.sub_(rate * (u + shrink * w if arm == "adamw" else u))
                else:
                    w.sub_(rate * (g + shrink * w))
            looked_at = step <= config.steps // 40 if arm == "early" else step >= config.steps // 2
            if looked_at and step % max(1, config.steps // 400) == 0:
                total, count = total + sum(w.norm(dim=1).log().mean(1) for w in weights) / len(weights), count + 1
    if not torch.isfinite(total).all():
        raise Diverged(config.steps)
    size = (total / count).exp().view(len(rates), len(decays))
    held = [torch.tensor(values, device=device).expand_as(t) for values, t in ((decays, size), (rates, size.T))]
    by_decay = [exponent(u, v) for u, v in zip(held[0], size, strict=True)]
    by_rate = [exponent(u, v) for u, v in zip(held[1], size.T, strict=True)]
    a, b = sum(by_rate) / len(by_rate), -sum(by_decay) / len(by_decay)
    accuracy = (out.detach().argmax(2) == y[index.to(device)]).double().mean()
    return {
        "rate_exponent": a,
        "decay_exponent": b,
        "exponents": a + (2 * b if arm == "adam" else b),
        "norms": size.flatten().tolist(),
        "batch_accuracy": float(accuracy),
    }
