"""What most experiments do: train a model and score it, time arms turn by turn, keep the worst of many errors.

A Config that inherits from `Pictures` or `Text` has the settings that these functions read; a paper adds its own
fields. Every keyword of `train.fit` passes through `**options` and wins over the Config.  A trained arm returns beside
its score

    learning_curve, learning_steps    the mean training loss of about 20 stretches of the run, and the step at each end
    trivial_linear, trivial_bigram    what a predictor without a network scores on the same data, in the score's unit
"""

import math
import typing
from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from repro import trivial
from repro.batched import fit_batched
from repro.data import digits, fashion_mnist, fashion_mnist_m, mnist, prose, shakespeare
from repro.data.kinds import Corpus
from repro.errors import Diverged
from repro.timing import compare
from repro.train import History, evaluate_classifier, evaluate_lm, fit, seed_of

Measures = dict[str, float | list[float]]
Examples = tuple[Tensor, Tensor]

PICTURES = {
    "fashion_mnist": fashion_mnist.load,
    "fashion_mnist_m": fashion_mnist_m.load,
    "mnist": mnist.load,
    "digits": digits.load,
}
TEXTS = {"prose": prose.load, "shakespeare": shakespeare.load}


# --- settings --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Training:
    """How long and how fast a model is trained, in which arithmetic, and what it is compared with."""

    steps: int
    batch: int
    lr: float
    amp: str = "none"  # the dtype of autocast, or none
    channels_last: bool = False
    trivial: tuple[str, ...] = ()  # names of predictors of `repro.trivial`


@dataclass(frozen=True, kw_only=True)
class Pictures(Training):
    """The first `examples` training images and the first `test` test images, averaged over pool x pool pixels."""

    examples: int
    test: int
    data: str = "fashion_mnist"
    pool: int = 1
    trivial: tuple[str, ...] = ("linear",)

    def load(self, device: torch.device) -> tuple[Examples, Examples]:
        """Normalised training and test images with their labels."""
        images = PICTURES[self.data](device)
        train, test = (
            (images.normalised(x[:n]), y[:n])
            for n, (x, y) in ((self.examples, images.split("train")), (self.test, images.split("test")))
        )
        if self.pool > 1:
            train, test = ((F.avg_pool2d(x, self.pool), y) for x, y in (train, test))
        return train, test

    @property
    def channels(self) -> int:
        return 3 if self.data == "fashion_mnist_m" else 1

    @property
    def side(self) -> int:
        """Pixels along an edge."""
        return {"fashion_mnist": 28, "fashion_mnist_m": 32, "mnist": 28, "digits": 8}[self.data] // self.pool


@dataclass(frozen=True, kw_only=True)
class Text(Training):
    """Windows of `context` tokens, drawn from the training text; the held-out text is scored over `windows` windows."""

    context: int
    windows: int
    text: str = "shakespeare"
    trivial: tuple[str, ...] = ("bigram",)

    def load(self, device: torch.device) -> Corpus:
        """The bytes of the text."""
        return TEXTS[self.text](device)


@dataclass(frozen=True, kw_only=True)
class Timed:
    """How often every arm is timed, and how far apart the two copies of the reference arm may lie."""

    blocks: int
    aa_limit: float
    calls: int = 1


# --- training --------------------------------------------------------------------------------------------------------


def settings(config: Training) -> dict:
    """The keywords of `train.fit` that a Config decides."""
    amp = None if config.amp == "none" else getattr(torch, config.amp)
    chosen = {"steps": config.steps, "batch": config.batch, "lr": config.lr, "amp": amp}
    if isinstance(config, Text):
        chosen["context"] = config.context
    return chosen


def trained(
    model: nn.Module, data: Examples | Tensor, name: str, seed: int, config: Training, **options: object
) -> History:
    """Train `model` in place; `name` and `seed` determine the order of the examples."""
    chosen = {**settings(config), "channels_last": config.channels_last, **options}
    return fit(model, data, seed=seed_of(name, seed), **chosen)


def learning(history: History, points: int = 20) -> Measures:
    """Return the learning curve of a run: the training loss, averaged over `points` stretches of equal length."""
    losses = history.train_loss
    ends = sorted({round(len(losses) * i / points) for i in range(1, points + 1)} - {0})
    means = [fmean(losses[start:end]) for start, end in zip([0, *ends], ends, strict=False)]
    return {"learning_curve": means, "learning_steps": ends} if ends else {}


def classify(
    model: nn.Module,
    name: str,
    seed: int,
    config: Pictures,
    device: torch.device,
    *,
    data: tuple[Examples, Examples] | None = None,
    score: str = "accuracy",
    finish: Callable[[nn.Module], nn.Module] = lambda model: model,
    **options: object,
) -> Measures:
    """Train a classifier on the Config's images, or on `data`, and return its test accuracy (or `error`).

    finish(model) returns the network that is scored: one whose norms have been folded away, for instance.
    """
    train, test = data or config.load(device)
    history = trained(model.to(device), train, name, seed, config, **options)
    beside = trivial.classes(train, test, config.trivial, measure=score)
    return {score: evaluate_classifier(finish(model), *test)[score], **learning(history), **beside}


def classify_batch(
    models: list[nn.Module],
    name: str,
    seeds: list[int],
    config: Pictures,
    device: torch.device,
    *,
    data: tuple[Examples, Examples] | None = None,
    score: str = "accuracy",
    measure: Callable[[nn.Module, History], Measures] | None = None,
    **options: object,
) -> list[Measures | Diverged]:
    """Train a model per seed in one pass; measure(model, history) takes the place of the test accuracy (or `error`)."""
    train, test = data or config.load(device)
    models = [model.to(device) for model in models]
    seeds = [seed_of(name, seed) for seed in seeds]
    histories = fit_batched(models, train, seeds=seeds, **{**settings(config), **options})

    def scored(model: nn.Module, history: History) -> Measures:
        return {score: evaluate_classifier(model, *test)[score]}

    beside = trivial.classes(train, test, config.trivial, measure=score)
    return each(models, histories, lambda *run: {**(measure or scored)(*run), **beside})


def each(
    models: list[nn.Module], histories: list[History | Diverged], measure: Callable[[nn.Module, History], Measures]
) -> list[Measures | Diverged]:
    """Return measure(model, history) and the learning curve of every run that did not diverge."""
    return [
        history if isinstance(history, Diverged) else {**measure(model, history), **learning(history)}
        for model, history in zip(models, histories, strict=True)
    ]


def language_model(
    model: nn.Module,
    name: str,
    seed: int,
    config: Text,
    device: torch.device,
    *,
    corpus: Corpus | None = None,
    **options: object,
) -> Measures:
    """Train a language model on the Config's text, or on `corpus`, and return its held-out loss in nats per token."""
    corpus = corpus or config.load(device)
    history = trained(model.to(device), corpus.train, name, seed, config, **options)
    loss = evaluate_lm(model, corpus.valid, config.context, windows=config.windows)["loss"]
    return {
        "val_nats": loss,
        **learning(history),
        **trivial.text(corpus.train, corpus.valid, config.trivial, vocab=corpus.vocab),
    }


def perplexities(measures: Measures, most: float = 50.0) -> Measures:
    """Return a language model's measures with perplexities in place of nats; a loss counts up to `most` nats."""
    named = {"perplexity" if name == "val_nats" else name: value for name, value in measures.items()}
    return {
        name: math.exp(min(value, most)) if name == "perplexity" or name.startswith("trivial_") else value
        for name, value in named.items()
    }


# --- timing ----------------------------------------------------------------------------------------------------------


def timed(passes: Callable[..., Callable[[], object]], *, reference: str, **options: object) -> Callable[..., dict]:
    """Return the `_group` function of an exclusive experiment whose arms are the calls passes(arm, seed, config,
    device).

    The Config has the fields of `Timed`.  Options are those of `timing.compare`; a function is called with the Config.
    """

    def group(arms: list[str], seed: int, config: Timed, device: torch.device) -> dict[str, Measures]:
        chosen = {"blocks": config.blocks, "calls": config.calls, "aa_limit": config.aa_limit, **options}
        chosen = {name: value(config) if callable(value) else value for name, value in chosen.items()}
        if "bytes_moved" in chosen:
            chosen["bytes_moved"] = {arm: size for arm, size in chosen["bytes_moved"].items() if arm in arms}
        calls = {arm: passes(arm, seed, config, device) for arm in arms}
        timings = compare(calls, reference=reference, device=device, seed=seed, **chosen)
        return {arm: {"seconds": timing.percentile(50), **timing.measures()} for arm, timing in timings.items()}

    group.__annotations__["config"] = typing.get_type_hints(passes)["config"]
    return group


# --- errors ----------------------------------------------------------------------------------------------------------


class Worst(dict[str, float]):
    """The largest of the values that were recorded under each name; NaN is larger than any number.

    worst = Worst()
    worst.relative("output_error", got, want)
    return worst
    """

    def __init__(self, *names: str):
        super().__init__(dict.fromkeys(names, 0.0))

    def record(self, name: str, value: Tensor | float) -> None:
        """Record a number, or the largest entry of a tensor."""
        value = float(value.detach().max()) if isinstance(value, Tensor) else float(value)
        known = self.get(name, value)
        self[name] = value if math.isnan(value) or value > known else known

    def absolute(self, name: str, got: Tensor, want: Tensor | float) -> None:
        """Record max |got - want|."""
        self.record(name, (got - want).abs())

    def relative(self, name: str, got: Tensor, want: Tensor) -> None:
        """Record max |got - want| / max |want|."""
        self.record(name, relative(got, want))


def relative(got: Tensor, want: Tensor) -> float:
    """Return max |got - want| / max |want|."""
    return float(((got - want).abs().max() / want.abs().max()).detach())
