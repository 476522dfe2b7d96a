"""Plain perceptrons on images, without normalization: an initialization, an activation, a depth and a rate.

he_init trains rectifiers by SGD with momentum, weight_init sigmoids and tanh by RMSprop.  All arms of a seed start from
the same normal numbers, scaled as their initialization has it, and see the same batches.
"""

from dataclasses import dataclass

import torch
from torch import nn

from repro.models.mlp import MLP
from repro.models.slots import Act, Init
from repro.tasks import Examples, Measures, Pictures, classify_batch
from repro.train import Diverged, History, OptimizerFactory, Schedule, evaluate_classifier, generator


def rmsprop(groups: list[dict], lr: float) -> torch.optim.Optimizer:
    """RMSprop with the constants of Keras, where the accumulator keeps 0.9 and 1e-7 is added to its root."""
    return torch.optim.RMSprop(groups, lr=lr, alpha=0.9, eps=1e-7, foreach=True)


rmsprop.elementwise = True  # `repro.batched` may stack the seeds
OPTIMIZERS: dict[str, str | OptimizerFactory] = {"momentum": "momentum", "rmsprop": rmsprop}


def drop(step: int, steps: int) -> float:
    """The whole rate, and a tenth of it in the last fifth of the steps."""
    return 0.1 if 5 * step >= 4 * steps else 1.0


SCHEDULES: dict[str, str | Schedule] = {"constant": "constant", "drop": drop}


@dataclass(frozen=True, kw_only=True)
class Plain(Pictures):
    """`depth` hidden layers of `width` units; the curve is of the first `scored` test images."""

    width: int
    depth: int
    eval_every: int
    data: str = "mnist"
    optimizer: str = "momentum"
    schedule: str = "constant"
    scored: int = 1000

    def load(self, device: torch.device) -> tuple[Examples, Examples]:
        """Flat training and test images with their labels."""
        (x, y), (test_x, test_y) = super().load(device)
        return (x.flatten(1), y), (test_x.flatten(1), test_y)


def train_plain(
    act: Act, init: Init, seeds: list[int], config: Plain, device: torch.device
) -> list[Measures | Diverged]:
    """Train a network per seed: final and best test accuracy, and its curve every `eval_every` steps."""
    train, test = config.load(device)
    scored = [part[: config.scored] for part in test]
    widths = [train[0].shape[1], *[config.width] * config.depth, 10]

    def measure(model: nn.Module, history: History) -> Measures:
        curve = history.curves["accuracy"]
        return {
            "accuracy": evaluate_classifier(model, *test)["accuracy"],
            "best_accuracy": max(curve),
            "accuracy_curve": curve,
            "curve_steps": [float(step) for step in history.eval_steps],
        }

    return classify_batch(
        [MLP(widths, act=act, init=init, generator=generator("plain init", seed)) for seed in seeds],
        "plain init",
        seeds,
        config,
        device,
        data=(train, test),
        measure=measure,
        optimizer=OPTIMIZERS[config.optimizer],
        schedule=SCHEDULES[config.schedule],
        evaluate=lambda model: evaluate_classifier(model, *scored),
        eval_every=config.eval_every,
    )
