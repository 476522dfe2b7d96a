"""A student of smoothed and of hard teachers, for papers/label_smoothing, and the perceptrons of both experiments."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial

import torch
from torch import Tensor
from torch.nn import functional as F

from repro import trivial
from repro.batched import fit_batched
from repro.models.mlp import MLP
from repro.papers.label_smoothing.method import distillation_loss, label_smoothing_loss
from repro.tasks import Examples, Measures, Pictures, learning
from repro.train import Diverged, cosine, generator, seed_of

CLASSES = 10
ALPHA = {
    "hard": 0.0,
    "scaled": 0.0,
    "shuffled": 0.0,
    "weak": 0.0,
    "noisy": 0.0,
    "light": 0.05,
    "smoothed": 0.1,
    "heavy": 0.4,
}


@dataclass(frozen=True, kw_only=True)
class Classifier(Pictures):
    """The last `validation` of the examples are held out;  widths  of the hidden layers."""

    validation: int
    widths: tuple[int, ...]

    def split(self, device: torch.device) -> tuple[Examples, Examples, Examples]:
        """Training, validation and test images, as rows."""
        train, test = self.load(device)
        cut = self.examples - self.validation
        parts = ((train[0][:cut], train[1][:cut]), (train[0][cut:], train[1][cut:]), test)
        return tuple((x.flatten(1), y) for x, y in parts)


def perceptrons(
    name: str, seeds: Sequence[int], widths: tuple[int, ...], inputs: int, device: torch.device
) -> list[MLP]:
    return [MLP([inputs, *widths, CLASSES], generator=generator(name, seed)).to(device) for seed in seeds]


@torch.no_grad()
def error_of(model: MLP, examples: Examples) -> float:
    return float((model(examples[0]).argmax(-1) != examples[1]).double().mean())


# --- distillation -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Distillation(Classifier):
    """A teacher of `widths`, trained for `teacher_steps` at `teacher_lr`, and a student of `student`, at `lr`.

    transfer: the student sees so many of the teacher's training images.
    temperatures: of each a student is trained; the one with the least error on the validation images counts.
    """

    transfer: int
    student: tuple[int, ...]
    teacher_steps: int
    teacher_lr: float
    temperatures: tuple[float, ...]


@lru_cache(maxsize=8)
def teachers(
    arm: str, seeds: tuple[int, ...], config: Distillation, device: torch.device
) -> list[tuple[Tensor, float]]:
    """Logits on the transfer images, and test error, of a teacher of each seed.

    `weak` is trained for a thirtieth of the steps; `shuffled` gives the logits of the wrong classes to each other.
    """
    train, _, test = config.split(device)
    models = perceptrons("label_smoothing teacher", seeds, config.widths, train[0].shape[1], device)
    fit_batched(
        models,
        train,
        seeds=[seed_of("label_smoothing teacher", seed) for seed in seeds],
        steps=max(config.teacher_steps // (30 if arm == "weak" else 1), 1),
        batch=config.batch,
        lr=config.teacher_lr,
        schedule=cosine(),
        loss=partial(label_smoothing_loss, label_smoothing=ALPHA[arm]),
    )
    x, y = (part[: config.transfer] for part in train)
    with torch.no_grad():
        logits = [model(x) for model in models]
    if arm == "shuffled":
        logits = [shuffled(z, y, seed) for z, seed in zip(logits, seeds, strict=True)]
    return [(z, error_of(model, test)) for z, model in zip(logits, models, strict=True)]


def shuffled(z: Tensor, y: Tensor, seed: int) -> Tensor:
    """The logits of the wrong classes in another order for each example.  z: (n, K), y: (n,)."""
    n, k = z.shape
    wrong = torch.arange(k, device=z.device).expand(n, k)[F.one_hot(y, k) == 0].view(n, k - 1)
    order = torch.rand(n, k - 1, generator=generator("label_smoothing shuffle", seed)).argsort(1).to(z.device)
    return z.scatter(1, wrong, z.gather(1, wrong.gather(1, order)))


def distillation_batch(
    arm: str, seeds: list[int], config: Distillation, device: torch.device
) -> list[Measures | Diverged]:
    """Test error of the student whose temperature is best on the validation images; of each seed all in one pass.

    One more student of each seed learns the labels, as a teacher of certain logits at temperature 1.
    """
    train, valid, test = config.split(device)
    train = (train[0][: config.transfer], train[1][: config.transfer])
    taught = teachers(arm, tuple(seeds), replace(config, lr=0.0, steps=0), device)
    certain = 1e3 * F.one_hot(train[1], CLASSES).float()
    temperatures = [*config.temperatures, 1.0]
    runs = [
        (seed, logits if i < len(config.temperatures) else certain, t)
        for seed, (logits, _) in zip(seeds, taught, strict=True)
        for i, t in enumerate(temperatures)
    ]
    models = perceptrons("label_smoothing student", [r[0] for r in runs], config.student, train[0].shape[1], device)
    targets = [torch.cat([z, torch.full_like(z[:, :1], t)], 1) for _, z, t in runs]  # the temperature beside the logits
    histories = fit_batched(
        models,
        [(train[0], target) for target in targets],
        seeds=[seed_of("label_smoothing student", run[0]) for run in runs],
        steps=config.steps,
        batch=config.batch,
        lr=config.lr,
        schedule=cosine(),
        loss=lambda z, y: distillation_loss(z, y[:, :-1], y[:, -1]),
    )
    beside, results = trivial.classes(train, test, config.trivial, measure="error"), []
    for k, (_, teacher_error) in enumerate(taught):
        own = slice(k * len(temperatures), (k + 1) * len(temperatures))
        broken = [history for history in histories[own] if isinstance(history, Diverged)]
        *errors, labels_error = (error_of(model, test) for model in models[own])
        held_out = [error_of(model, valid) for model in models[own]][:-1]
        best = min(range(len(errors)), key=held_out.__getitem__)
        results.append(
            broken[0]
            if broken
            else {
                "error": errors[best],
                "temperature": config.temperatures[best],
                "errors": errors,
                "temperatures": list(config.temperatures),
                "teacher_error": teacher_error,
                "labels_error": labels_error,
                **learning(histories[own][best]),
                **beside,
            }
        )
    return results
