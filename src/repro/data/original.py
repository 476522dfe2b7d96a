"""The data of the original papers: MNIST, CIFAR-10, ImageNet-1k, WikiText-103 and C4.

They are read through Hugging Face `datasets`: from a folder of parquet files (`path=`, or `.repro/data/<name>` where
that holds some, as `train-00000-of-00001.parquet`), else from the Hub or its cache. No checksum is pinned here; the
official image sets are held to their item counts instead.
"""

import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from repro.data.archives import Unusable
from repro.data.hub import from_folder, from_hub, parquet_files
from repro.data.kinds import Corpus, Images, Part
from repro.data.sources import cache_root
from repro.errors import ReproError


@dataclass(frozen=True)
class Origin:
    """Where a set is on the Hub, and how its columns and splits are called."""

    repository: str
    configuration: str | None
    column: str
    label: str | None
    splits: dict[str, str]
    counts: dict[str, int]
    classes: int = 0
    size: int = 0
    channels: int = 3
    valid: int = 0  # validation images, cut from the end of the training split
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()


_TRAIN_TEST = {"train": "train", "test": "test"}
_THREE = {"train": "train", "valid": "validation", "test": "test"}
ORIGINS = {
    "mnist": Origin(
        "ylecun/mnist",
        None,
        "image",
        "label",
        _TRAIN_TEST,
        {"train": 60_000, "test": 10_000},
        classes=10,
        size=28,
        channels=1,
        valid=5_000,
        mean=(0.1307,),
        std=(0.3081,),
    ),
    "cifar10": Origin(
        "uoft-cs/cifar10",
        None,
        "img",
        "label",
        _TRAIN_TEST,
        {"train": 50_000, "test": 10_000},
        classes=10,
        size=32,
        valid=5_000,
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
    ),
    # Its test labels are not public: the official validation images are the test set.
    "imagenet-1k": Origin(
        "ILSVRC/imagenet-1k",
        None,
        "image",
        "label",
        {"train": "train", "test": "validation"},
        {"train": 1_281_167, "test": 50_000},
        classes=1_000,
        size=224,
        valid=10_000,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
    ),
    "wikitext-103": Origin("Salesforce/wikitext", "wikitext-103-raw-v1", "text", None, _THREE, {}),
    # C4 has no test split: the first half of its validation text validates, the second half tests.
    "c4": Origin("allenai/c4", "en", "text", None, {"train": "train", "valid": "validation"}, {}),
}


def _origin(name: str) -> Origin:
    if name not in ORIGINS:
        raise ReproError(f"no original data set {name!r}: write one of {', '.join(ORIGINS)}")
    return ORIGINS[name]


def rows(
    name: str, split: str, path: str | Path | None = None, cache: str | Path | None = None, stream: bool = False
) -> Iterable[dict[str, Any]]:
    """The raw rows of "train", "valid" or "test": a local folder if there is one, else the Hub (`stream`: not stored).

    Raises `ReproError` if neither can be had.
    """
    origin = _origin(name)
    if split not in origin.splits:
        raise ReproError(f"{name} has no split {split!r} of its own: write one of {', '.join(origin.splits)}")
    official = origin.splits[split]
    folder = Path(path) if path is not None else cache_root(cache) / name
    if path is not None or (folder.is_dir() and parquet_files(folder, official)):
        return from_folder(folder, official)
    try:
        return from_hub(origin.repository, origin.configuration, official, stream)
    except Unusable as error:
        raise ReproError(
            f"data set {name} is not here; tried Hugging Face {origin.repository} ({error}). Connect, or put its "
            f"parquet files ({official}-00000-of-00001.parquet, ...) into {folder}"
        ) from error


def images(
    name: str,
    device: torch.device | str = "cpu",
    path: str | Path | None = None,
    cache: str | Path | None = None,
    size: int | None = None,
    limit: int | None = None,
) -> Images:
    """An image set, resident: validation is the last 5,000 training images (ImageNet: 10,000; of fewer rows, a tenth).

    `size`: pixels a side (the shorter side is resized, then the centre is cropped); `limit`: at most so many rows a
    split. All of ImageNet takes 16 GB at size 64 and 193 GB at 224: use `rows` there, to train from a stream.
    """
    origin = _origin(name)
    if not origin.classes:
        raise ReproError(f"{name} is text: call original.text({name!r})")
    side = size or origin.size
    got = {}
    for split in ("train", "test"):
        pixels, labels = [], []
        for n, row in enumerate(islice(rows(name, split, path, cache, stream=limit is not None), limit)):
            try:
                pixels.append(_picture(row[origin.column], side, origin.channels))
                labels.append(int(row[origin.label]))
            except (KeyError, TypeError, ValueError, OSError, AttributeError) as error:
                wanted = f"a picture in '{origin.column}' and a number in '{origin.label}'"
                raise ReproError(
                    f"{name}: row {n} of {split} is not {wanted} ({type(error).__name__}: {error})"
                ) from error
        want = origin.counts[split]
        if path is None and limit is None and len(labels) != want:
            raise ReproError(f"{name}: {len(labels)} {split} rows, expected {want}; fetch the set again, or pass path=")
        if not labels:
            raise ReproError(f"{name}: no {split} rows")
        got[split] = torch.from_numpy(np.stack(pixels)).to(device), torch.tensor(labels, device=device)
    (x, y), (test_x, test_y) = got["train"], got["test"]
    cut = len(y) - min(origin.valid, len(y) // 10)
    return Images(
        x[:cut], y[:cut], x[cut:], y[cut:], test_x, test_y, classes=origin.classes, mean=origin.mean, std=origin.std
    )


def text(
    name: str,
    device: torch.device | str = "cpu",
    path: str | Path | None = None,
    cache: str | Path | None = None,
    limit: int | None = None,
) -> Corpus:
    """A text set as bytes, in its official splits; documents end in a newline, each split is cut at `limit` bytes.

    C4 is 800 GB: always give it a `limit`; only so much of it is then streamed.
    """
    origin = _origin(name)
    if origin.classes:
        raise ReproError(f"{name} holds images: call original.images({name!r})")
    if name == "c4" and limit is None:
        raise ReproError("c4 is 800 GB: pass limit= (bytes a split), such as 1_000_000_000")
    raw = {s: _text(rows(name, s, path, cache, stream=limit is not None), origin.column, limit) for s in origin.splits}
    if "test" not in raw:
        half = len(raw["valid"]) // 2
        raw["valid"], raw["test"] = raw["valid"][:half], raw["valid"][half:]
    empty = [s for s, t in raw.items() if not len(t)]
    if empty:
        raise ReproError(f"{name}: no text in the split {empty[0]!r}")
    whole = Part(name, *((0, len(raw[s])) for s in ("train", "valid", "test")))
    return Corpus(*(raw[s].to(device) for s in ("train", "valid", "test")), parts=(whole,))


def load(name: str, device: torch.device | str = "cpu", **options: Any) -> Images | Corpus:
    """`images` or `text`, whichever the set is."""
    return (images if _origin(name).classes else text)(name, device, **options)


def _text(found: Iterator[dict[str, Any]] | Iterable[dict[str, Any]], column: str, limit: int | None) -> Tensor:
    out = bytearray()
    for n, row in enumerate(found):
        if not isinstance(row.get(column), str):
            raise ReproError(f"row {n} has no text in '{column}'; it has {', '.join(row)}")
        line = row[column].encode()
        out += line if line.endswith(b"\n") else line + b"\n"
        if limit is not None and len(out) >= limit:
            del out[limit:]
            break
    return torch.frombuffer(out, dtype=torch.uint8) if out else torch.empty(0, dtype=torch.uint8)


def _picture(value: Any, side: int, channels: int) -> np.ndarray:
    """uint8 `[C, side, side]` of a decoded picture, of its encoded bytes, or of `{"bytes": ...}`."""
    from PIL import Image

    if isinstance(value, dict):
        value = value["bytes"]
    if isinstance(value, bytes):
        value = Image.open(io.BytesIO(value))
    picture = value.convert("L" if channels == 1 else "RGB")
    width, height = picture.size
    if (width, height) != (side, side):
        scale = side / min(width, height)
        width, height = max(side, round(width * scale)), max(side, round(height * scale))
        left, top = (width - side) // 2, (height - side) // 2
        picture = picture.resize((width, height), Image.Resampling.BICUBIC)
        picture = picture.crop((left, top, left + side, top + side))
    return np.asarray(picture).reshape(side, side, channels).transpose(2, 0, 1)
