"""Fashion-MNIST (Xiao, Rasul, Vollgraf 2017, arXiv:1708.07747): 28x28 grey pictures of ten kinds of clothing.

70,000 images, classes balanced, no exact duplicate within or across splits. Test is the official one; validation is the
last 5,000 of the official training images.
"""

from pathlib import Path

import torch
from torch import Tensor

from repro.data import idx
from repro.data.archives import Archive, gunzip
from repro.data.kinds import Images
from repro.data.sources import Dataset, File, Source, resident

VALID = 5_000
MEAN, STD = (0.2860,), (0.3530,)

FILES = (
    File("train-images-idx3-ubyte", 47_040_016, "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888"),
    File("train-labels-idx1-ubyte", 60_008, "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9"),
    File("t10k-images-idx3-ubyte", 7_840_016, "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b"),
    File("t10k-labels-idx1-ubyte", 10_008, "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34"),
)
NAMES = tuple(f.name for f in FILES)


def _from_debian(archive: Archive) -> dict[str, bytes]:
    return {name: gunzip(archive.read(f"usr/share/datasets/fashion-mnist/{name}.gz")) for name in NAMES}


DATASET = Dataset(
    name="fashion_mnist",
    what="grey 28x28 pictures of clothing, 10 balanced classes",
    items="55,000 train, 5,000 validation, 10,000 test",
    licence="MIT",
    files=FILES,
    sources=(
        Source("debian", ("dataset-fashion-mnist",), NAMES, _from_debian),
        Source("hub", ("zalando-datasets/fashion_mnist",), NAMES, idx.from_hub),
    ),
)


def official(folder: str | Path | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`(train x, train y, test x, test y)` as published, on the CPU: x uint8 `[N, 1, 28, 28]`, y int64."""
    return idx.tensors(DATASET.read(folder), NAMES)


@resident
def load(device: torch.device | str = "cpu", cache: str | Path | None = None) -> Images:
    """The set on `device`, fetched if it is not in the cache; the same object at every call of a process."""
    return idx.images([t.to(device) for t in official(cache)], VALID, MEAN, STD)
