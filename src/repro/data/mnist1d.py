"""MNIST-1D (Greydanus & Kobak 2020, arXiv:2011.14439): 5,000 signals of 40 values, one of ten shapes in each.

A shape of 12 points is padded, stretched, scaled, shifted, put into noise, sheared and sampled at 40 points.  Published
accuracies: logistic regression 32 %, MLP 68 %, GRU 91 %, CNN 94 %, people 96 %.  The set is computed here from the
authors' seed, 42, with the draws of their code in their order; a test holds it against that code.  4,000 signals train,
of which the last 400 validate; 1,000 test.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from repro.data.kinds import Signals
from repro.data.sources import Dataset, File, Source, resident

TEMPLATES = np.array(
    [
        [5, 6, 6.5, 6.75, 7, 7, 7, 7, 6.75, 6.5, 6, 5],
        [5, 3, 3, 3.4, 3.8, 4.2, 4.6, 5, 5.4, 5.8, 5, 5],
        [5, 6, 6.5, 6.5, 6, 5.25, 4.75, 4, 3.5, 3.5, 4, 5],
        [5, 6, 6.5, 6.5, 6, 5, 5, 6, 6.5, 6.5, 6, 5],
        [5, 4.4, 3.8, 3.2, 2.6, 2.6, 5, 5, 5, 5, 5, 5],
        [5, 3, 3, 3, 3, 5, 6, 6.5, 6.5, 6, 4.5, 5],
        [5, 4, 3.5, 3.25, 3, 3, 3, 3, 3.25, 3.5, 4, 5],
        [5, 7, 7, 6.6, 6.2, 5.8, 5.4, 5, 4.6, 4.2, 5, 5],
        [5, 4, 3.5, 3.5, 4, 5, 5, 4, 3.5, 3.5, 4, 5],
        [5, 4, 3.5, 3.5, 4, 5, 5, 5, 5, 4.7, 4.3, 5],
    ]
)
SIGNALS, TRAIN, VALID, LENGTH = 5_000, 4_000, 400, 40
PAD, SHIFT, LONG = (36, 60), 48, 72  # zeros appended; largest shift; points before the last sampling
X, Y = "x.f32", "y.u8"


def _sampled(x: np.ndarray, count: int) -> np.ndarray:
    """`count` equally spaced points of the broken line through x."""
    return np.interp(np.linspace(0, 1, count), np.linspace(0, 1, len(x)), x)


def _smooth(x: np.ndarray, sigma: float = 2.0, reach: int = 8) -> np.ndarray:
    """x after a Gaussian filter that mirrors the ends."""
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    return np.convolve(np.pad(x, reach, mode="symmetric"), weights / weights.sum(), mode="valid")


def _signal(shape: np.ndarray, draw: np.random.RandomState) -> np.ndarray:
    low, high = PAD
    x = np.concatenate([shape + 1e-8, np.zeros(low + int(draw.rand() * (high - low + 1)))])
    x = _sampled(x, LONG) * (1 + 0.4 * (draw.rand() - 0.5))
    k = draw.choice(SHIFT)
    x = np.concatenate([x[-k:], x[:-k]])
    noise = _smooth(0.25 * draw.randn(LONG))
    x = np.where(x != 0, x, noise) + 2e-2 * draw.randn(LONG)
    x = x - 0.75 * (draw.rand() - 0.5) * np.linspace(-0.5, 0.5, LONG)
    return _sampled(x, LENGTH)


def generate() -> tuple[np.ndarray, np.ndarray]:
    """x float64 `[5000, 40]`, of mean 0 and deviation 1 over all, and y `[5000]`; the first 4,000 train."""
    shapes = TEMPLATES - TEMPLATES.mean(1, keepdims=True)
    shapes = shapes / shapes.std(1, keepdims=True)
    shapes = (shapes - shapes[:, :1]) / 6
    draw = np.random.RandomState(42)
    x = np.stack([_signal(shape, draw) for shape in shapes for _ in range(SIGNALS // 10)])
    order = draw.permutation(SIGNALS)
    x, y = x[order], np.repeat(np.arange(10), SIGNALS // 10)[order]
    return (x - x.mean()) / x.std(), y


def _make() -> dict[str, bytes]:
    x, y = generate()
    return {X: x.astype("<f4").tobytes(), Y: y.astype(np.uint8).tobytes()}


DATASET = Dataset(
    name="mnist1d",
    what="signals of 40 values, 10 shapes",
    items="3,600 train, 400 validation, 1,000 test",
    licence="Apache-2.0",
    files=(
        File(X, 800_000, "0b2b548d14a498bf71ce4d5e7df61d47851b3e5dd7e7f581a1011383cb03467c"),
        File(Y, 5_000, "4f5f4160c519e3c47f9d3e196c161336fcd32126a9efffe4153d6e7c8b73f963"),
    ),
    sources=(Source("computed", (), (X, Y), _make),),
)


@resident
def load(device: torch.device | str = "cpu", cache: str | Path | None = None) -> Signals:
    """The set on `device`, computed if it is not in the cache; the same object at every call of a process."""
    raw = DATASET.read(cache)
    x: Tensor = raw[X].view(torch.float32).view(SIGNALS, 1, LENGTH).to(device)
    y = raw[Y].long().to(device)
    cut = TRAIN - VALID
    return Signals(x[:cut], y[:cut], x[cut:TRAIN], y[cut:TRAIN], x[TRAIN:], y[TRAIN:], classes=10)
