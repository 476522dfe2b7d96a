"""Optical digits: 1,797 grey 8x8 images, pixel values 0 to 16 (UCI, Alpaydin and Kaynak 1998, as in scikit-learn).

Meant for tests and the smallest experiments. The first 1,297 images train, the next 250 validate, the last 250 test.
"""

from pathlib import Path

import numpy as np
import torch

from repro.data.archives import gunzip
from repro.data.kinds import Images
from repro.data.sources import Dataset, File, Source, resident

MEMBER = "sklearn/datasets/data/digits.csv.gz"
SHA256 = "6ebb3d2fee246a4e99363262ddf8a00a3c41bee6014c373ed9d9216ba7f651b8"

DATASET = Dataset(
    name="digits",
    what="grey 8x8 pictures of digits, 10 classes",
    items="1,297 train, 250 validation, 250 test",
    licence="CC-BY-4.0 (UCI)",
    files=(File("digits.csv", 264_712, SHA256),),
    sources=(
        Source("installed", ("scikit-learn",), ("digits.csv",), lambda d: {"digits.csv": gunzip(d.read(MEMBER))}),
        Source(
            "debian",
            ("python3-sklearn",),
            ("digits.csv",),
            lambda a: {"digits.csv": gunzip(a.read(f"usr/lib/python3/dist-packages/{MEMBER}"))},
        ),
        Source("pypi", ("scikit-learn==1.9.1",), ("digits.csv",), lambda a: {"digits.csv": gunzip(a.read(MEMBER))}),
    ),
)


@resident
def load(device: torch.device | str = "cpu", cache: str | Path | None = None) -> Images:
    """The set on `device`, fetched if it is not in the cache; the same object at every call of a process."""
    text = bytes(DATASET.read(cache)["digits.csv"].numpy()).decode()
    rows = np.array([line.split(",") for line in text.split()], dtype=np.float64).astype(np.uint8)
    x = torch.from_numpy(rows[:, :64].reshape(-1, 1, 8, 8).copy()).to(device)
    y = torch.from_numpy(rows[:, 64].astype(np.int64)).to(device)
    a, b = 1_297, 1_547
    # Pixels over 16: mean 0.3053, deviation 0.3760.
    return Images(x[:a], y[:a], x[a:b], y[a:b], x[b:], y[b:], classes=10, mean=(0.3053,), std=(0.3760,), top=16.0)
