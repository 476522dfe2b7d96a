"""What papers/label_smoothing measures: students of smoothed teachers, calibration and clusters, a fixed point."""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from repro import trivial
from repro.batched import fit_batched
from repro.experiments.cifar import Cifar, classified
from repro.models.mlp import MLP
from repro.models.modes import measured
from repro.papers.label_smoothing.distillation import ALPHA, CLASSES, Classifier, error_of, perceptrons
from repro.papers.label_smoothing.distillation import distillation_batch as distillation_batch
from repro.papers.label_smoothing.method import (
    expected_calibration_error,
    label_smoothing_loss,
    logit_gap,
    temperature_scaling,
)
from repro.papers.resnet import resnet56
from repro.tasks import Measures, each
from repro.train import Diverged, History, cosine, generator, seed_of

# --- calibration and clusters -----------------------------------------------------------------------------------------


def clusters(h: Tensor, y: Tensor, templates: Tensor) -> float:
    """Mean squared distance of features to the centre of their class over that of the centres to their mean.

    Both in the space that the templates (K, n), the rows of the last weight, span about their mean, as in Figure 1.
    """
    basis = torch.linalg.svd(templates - templates.mean(0), full_matrices=False)[2][: len(templates) - 1]
    h = h @ basis.T
    centres = torch.stack([h[y == k].mean(0) for k in range(len(templates))])
    return float((h - centres[y]).square().sum(1).mean() / (centres - centres.mean(0)).square().sum(1).mean())


def smoothing_batch(arm: str, seeds: list[int], config: Classifier, device: torch.device) -> list[Measures | Diverged]:
    """ECE and error on test images, and how tight classes are on training images.

    `scaled` is `hard` with a temperature from the validation images; `noisy` has a tenth of its labels drawn anew.
    """
    train, valid, test = config.split(device)
    models = perceptrons("label_smoothing", seeds, config.widths, train[0].shape[1], device)
    data = []
    for seed in seeds:
        source = generator("label_smoothing noise", seed)
        drawn = torch.randint(CLASSES, train[1].shape, generator=source).to(device)
        noisy = (torch.rand(train[1].shape, generator=source) < 0.1).to(device) & (arm == "noisy")
        data.append((train[0], torch.where(noisy, drawn, train[1])))
    histories = fit_batched(
        models,
        data,
        seeds=[seed_of("label_smoothing", seed) for seed in seeds],
        steps=config.steps,
        batch=config.batch,
        lr=config.lr,
        schedule=cosine(),
        loss=partial(label_smoothing_loss, label_smoothing=ALPHA[arm]),
    )
    beside = trivial.classes(train, test, config.trivial, measure="error")

    @torch.no_grad()
    def scored(model: MLP, history: History) -> Measures:
        t = temperature_scaling(model(valid[0]), valid[1]) if arm == "scaled" else 1.0
        h = train[0]
        for layer in model.hidden:
            h = layer(h)
        return {
            "ece": expected_calibration_error((model(test[0]) / t).softmax(-1), test[1]),
            "error": error_of(model, test),
            "train_error": error_of(model, train),
            "scatter": clusters(h, train[1], model.head.weight),
            **beside,
        }

    return each(models, histories, scored)


# --- calibration of a residual network --------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Networks(Cifar):
    """The last `validation` training images are held out for the temperature."""

    validation: int
    data: str = "cifar100"


def cifar(arm: str, seed: int, config: Networks, device: torch.device) -> Measures:
    """ECE and error of a ResNet-56 on test images; `scaled` is `hard` with a temperature from the held-out images."""
    (x, y), test = config.load(device)
    cut = max(len(x) - config.validation, len(x) // 2)
    model = resnet56(config.classes, width=config.width, generator=generator("label_smoothing cifar", seed))
    loss = partial(label_smoothing_loss, label_smoothing=ALPHA[arm])
    data = (x[:cut], y[:cut]), test
    found = classified(model, "label_smoothing cifar", seed, config, device, data=data, loss=loss)

    def logits(x: Tensor) -> Tensor:
        return measured(lambda model: torch.cat([model(part) for part in x.split(2000)]), model)

    t = temperature_scaling(logits(x[cut:]), y[cut:]) if arm == "scaled" else 1.0
    return {**found, "ece": expected_calibration_error((logits(test[0]) / t).softmax(-1), test[1])}


# --- identities -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class FixedPoint:
    examples: int


def fixed_point(arm: str, seed: int, config: FixedPoint, device: torch.device) -> Measures:
    """Slope of the loss where the formula has its minimum, in float64, at random K and a; error of the ECE.

    `wrong_classes` spreads the mass over the K - 1 wrong classes; `signed` lets bins cancel in the ECE.
    """
    source = generator("label_smoothing fixed point", seed)
    k, a = int(torch.randint(3, 100, (), generator=source)), 0.05 + 0.5 * float(torch.rand((), generator=source))
    z = torch.zeros(k, dtype=torch.float64, device=device)
    z[0] = logit_gap(k, a)
    z.requires_grad_()
    loss = label_smoothing_loss(z, torch.zeros((), dtype=torch.long, device=device), a)
    if arm == "wrong_classes":
        loss = -(1 - a) * z.log_softmax(-1)[0] - a * z.log_softmax(-1)[1:].mean()
    (slope,) = torch.autograd.grad(loss, z)
    confidence, right = torch.rand(2, config.examples, generator=source, dtype=torch.float64).to(device)
    confidence = 0.5 + 0.4 * confidence
    shift = torch.where(confidence > 0.7, 0.1, -0.1)  # over-confident above, under-confident below
    wrong = (right > confidence - shift).long()
    probabilities = torch.stack([confidence, 1 - confidence], 1)
    ece = expected_calibration_error(probabilities, wrong, bins=1 if arm == "signed" else 10)
    return {"slope": float(slope.abs().max()), "ece_error": abs(ece - 0.1)}
