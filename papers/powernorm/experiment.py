"""What papers/powernorm measures: the gradient of PN-V, how large PN's can grow, batch statistics of text,
perplexities.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Tensor

from repro import tasks, trivial
from repro.data import fashion_mnist, shakespeare
from repro.data.kinds import Corpus, Vocabulary
from repro.models.convnet import cifar_resnet
from repro.models.gpt import GPT
from repro.papers.batchnorm import BatchNorm
from repro.papers.layernorm import LayerNorm
from repro.papers.powernorm.method import PowerNorm, PowerNormV
from repro.train import draws, fit, generator, seed_of

# --- the theorem on PN-V ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Smoothness:
    rows: tuple[int, ...]
    features: int
    mean: float  # of the inputs, whose deviation is 1


def smoothness(arm: str, seed: int, config: Smoothness, device: torch.device) -> dict:
    """The size of dL/dx against both formulas, and the largest singular value of dy/dx, in float64 without eps.

    gain_error: against gamma / psi; gain_over_bn: against BatchNorm's on the same inputs, the largest of all features.
    """
    draw, worst = draws(device, "powernorm smoothness", seed), tasks.Worst()

    def layer(kind: str, n: int) -> Callable[[Tensor], Tensor]:
        if kind == "detached":  # PN-V whose statistic takes no part in the gradient
            return lambda x: x / x.detach().square().mean(0).sqrt()
        return {"pnv": PowerNormV, "batchnorm": BatchNorm}[kind](
            n, eps=0.0, affine=False, device=device, dtype=torch.float64
        )

    for rows in config.rows:
        x = config.mean + draw(rows, config.features)
        g = (0.5 + draw(config.features).abs()) * draw(rows, config.features)  # gamma dL/dy
        _, dx = torch.autograd.functional.vjp(layer(arm, config.features), x, g)
        for name, centre, lost in (("pnv_error", 0.0, 0.0), ("bn_error", x.mean(0), g.mean(0).square())):
            size = (x - centre).square().mean(0).sqrt()
            projection = (g * (x - centre) / size).mean(0)
            want = rows / size**2 * (g.square().mean(0) - projection.square() - lost)
            worst.record(name, ((dx.square().sum(0) - want) / want).abs())
    x, gains = config.mean + draw(config.features, config.rows[0]), []
    for kind in (arm, "batchnorm"):  # one feature at a time, with gamma = 1
        jacobians = [torch.autograd.functional.jacobian(layer(kind, 1), row[:, None]).squeeze() for row in x]
        gains.append(torch.linalg.matrix_norm(torch.stack(jacobians), 2))
    worst.absolute("gain_error", gains[0] * x.square().mean(1).sqrt(), 1.0)
    worst.record("gain_over_bn", gains[0] / gains[1])
    return worst


# --- the theorem on PN -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Bounded:
    steps: int
    rows: int
    features: int


def bounded(arm: str, seed: int, config: Bounded, device: torch.device) -> dict:
    """PN under an upstream gradient that is the same at every step, inputs whose scale drifts; float64.

    While (1 - alpha) Gamma <= 1, nu is an average of the earlier Lambda / Gamma, so |dL/dx| psi <= |g| + |xh| max
    |Lambda / Gamma|; bound_share is the left side over the right, the largest of all.  growth: the largest |dL/dx| over
    that of step 100.
    """
    layer = PowerNorm(config.features, eps=0.0, groups=None, device=device, dtype=torch.float64)
    source, shape = generator("powernorm bounded", seed), (config.steps + 1, config.rows, config.features)
    noise = torch.randn(shape, generator=source, dtype=torch.float64).to(device)
    g, worst, seen = 1 + noise[-1], torch.zeros(config.features, device=device), []
    for step in range(config.steps):
        x = (math.exp(0.3 * math.sin(step / 50)) * (1 + noise[step])).requires_grad_()
        psi, nu = layer.running_psi2.sqrt(), layer.nu.clone()
        (dx,) = torch.autograd.grad(layer(x), x, g)
        xhat = x.detach() / psi
        gamma = xhat.square().mean(0)
        if arm == "undamped":
            layer.nu.add_((1 - layer.alpha) * gamma * nu)
        share = dx.abs() * psi / (g.abs() + worst * xhat.abs())
        seen.append(torch.stack([share.max(), dx.norm(), (1 - layer.alpha) * gamma.max()]))
        worst = torch.maximum(worst, ((g * xhat).mean(0) / gamma).abs())
    share, size, damping = torch.stack(seen).unbind(1)
    curve = {"gradient": size[::20].tolist(), "step": list(range(0, config.steps, 20))}
    worst = {
        "bound_share": share.max(),
        "growth": size.max() / size[min(100, config.steps // 2)],
        "damping": damping.max(),
    }
    return {name: float(value) for name, value in worst.items()} | curve


# --- batch statistics of text and of images --------------------------------------------------------------------------


@cache
def text(device: torch.device, size: int, vocab: int) -> Corpus:
    """The first `size` bytes of Shakespeare's training text, and of the held-out text, as words."""
    corpus = shakespeare.load()
    parts = [bytes(part[:size].tolist()).decode("ascii", "ignore") for part in (corpus.train, corpus.valid)]
    vocabulary = Vocabulary(parts[:1], vocab)
    train, valid = (torch.tensor(vocabulary.encode(part), device=device) for part in parts)
    return Corpus(train, valid, valid[:0], vocab=vocab)


class Watched(BatchNorm):
    """BatchNorm of (B, T, D) over tokens, or of images; with `sample` it notes how far each batch is from the running
    variance.
    """

    def __init__(self, n: int, sample: int = 0):
        super().__init__(n)
        self.sample, self.seen = sample, []

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, 1) if x.dim() == 3 else x
        if self.training and self.sample:
            each = rows.detach().movedim(1, -1).flatten(0, -2)
            if len(each) > self.sample:  # as many numbers for an image's statistics as for a text's
                each = each[
                    torch.randint(len(each), (self.sample,), generator=generator("rows", len(self.seen))).to(x.device)
                ]
            gap = each.var(0) - self.running_var
            self.seen.append(
                torch.stack([(gap.abs() / self.running_var).mean(), gap.norm() / len(gap)])
            )  # Fig. 2 has the second
        return super().forward(rows).view_as(x)


@dataclass(frozen=True, kw_only=True)
class LanguageModel(tasks.Text):
    """lr: of the text; the held-out windows are all there are."""

    text: int  # bytes
    vocab: int
    width: int
    depth: int
    heads: int = 4
    windows: int = 10**9

    def load(self, device: torch.device) -> Corpus:
        return text(device, self.text, self.vocab)


@dataclass(frozen=True, kw_only=True)
class Fluctuation(LanguageModel):
    net: tuple[int, ...]  # the ResNet's depth, width, batch
    frozen: int  # batches after training, at fixed weights
    images: int = 0  # 0: a hundred batches


def fluctuation(arm: str, seed: int, config: Fluctuation, device: torch.device) -> tasks.Measures:
    """A post-norm Transformer on words (or words drawn evenly and independently), a ResNet on images: deviations
    of the first norm's variances, medians over steps; `frozen_...` at the weights that training has left."""
    source, order = generator("powernorm fluctuation", seed), seed_of("powernorm fluctuation batches", seed)
    norm = partial(Watched, sample=config.batch * config.context)
    if arm == "images":
        data, (depth, width, batch) = fashion_mnist.load(device), config.net
        n = config.images or 100 * batch
        train = data.normalised(data.train_x[:n]), data.train_y[:n]
        beside = trivial.classes(train, train, ["linear"], measure="loss")
        model = cifar_resnet(depth, width=width, channels=1, norm=norm, generator=source)
        how = {"batch": batch, "lr": 0.1, "optimizer": "momentum"}
    else:
        corpus = config.load(device)
        train, uniform = corpus.train, arm == "uniform"
        train = torch.randint(config.vocab, train.shape, generator=source).to(device) if uniform else train
        beside = trivial.text(train, train if uniform else corpus.valid, config.trivial, vocab=config.vocab)
        model = GPT(
            config.vocab,
            config.context,
            config.width,
            config.depth,
            heads=config.heads,
            norm=norm,
            placement="post",
            final_norm=False,
            embedding_std=1.0,
            generator=source,
        )
        how = {"batch": config.batch, "lr": config.lr, "optimizer": "adam", "context": config.context}
    history = fit(model.to(device), train, steps=config.steps, seed=order, **how)
    fit(model, train, steps=config.frozen, seed=order + 1, **{**how, "lr": 0.0})
    watched = next(layer for layer in model.modules() if isinstance(layer, Watched))
    seen = torch.stack(watched.seen)  # (steps + frozen, 2)
    training, frozen = seen[config.steps // 5 : config.steps], seen[config.steps + config.frozen // 2 :]
    late = history.train_loss[-max(1, config.steps // 20) :]
    names = ("deviation", "raw_deviation")
    return {
        **dict(zip(names, training.median(0).values.tolist(), strict=True)),
        **dict(zip((f"frozen_{name}" for name in names), frozen.median(0).values.tolist(), strict=True)),
        "curve": seen[: config.steps, 0].tolist(),
        "train_nats": sum(late) / len(late),
        **tasks.learning(history),
        **beside,
    }


def language_model(arm: str, seed: int, config: LanguageModel, device: torch.device) -> tasks.Measures:
    """A decoder on words; perplexity of held-out text in eval mode, so by the running statistics."""
    power = partial(PowerNorm, groups=config.heads, warmup_iters=config.steps // 10)
    norm = {"layernorm": LayerNorm, "batchnorm": Watched, "pnv": PowerNormV, "pn": power}[arm]
    source = generator("powernorm language model", seed)
    shape = config.vocab, config.context, config.width, config.depth
    model, name = GPT(*shape, heads=config.heads, norm=norm, generator=source), "powernorm language model batches"
    scores = tasks.language_model(model, name, seed, config, device, schedule="one_cycle", clip=1.0)
    return tasks.perplexities(scores)
