"""The data of the original papers, by name: pictures, text and sentence pairs (`ORIGINS`).

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
from repro.data.kinds import Corpus, Images, Pairs, Part, Side, sentences
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
    revision: str | None = None  # of the Hub's repository: where a set is a script, the parquet files made from it
    held_out: int = 0  # of a set with one split: rows at its end that validate, and as many before them that test
    languages: tuple[str, str] | None = None  # source and target of sentence pairs


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
    "cifar100": Origin(
        "uoft-cs/cifar100",
        None,
        "img",
        "fine_label",
        _TRAIN_TEST,
        {"train": 50_000, "test": 10_000},
        classes=100,
        size=32,
        valid=5_000,
        mean=(0.5071, 0.4867, 0.4408),
        std=(0.2675, 0.2565, 0.2761),
    ),
    # Faces without labels, in one split, for models that complete or generate pictures: all labels are 0.
    "celeba": Origin(
        "nielsr/CelebA-faces",
        None,
        "image",
        None,
        {"train": "train"},
        {"train": 202_599},
        classes=1,
        size=64,
        held_out=10_000,
        mean=(0.5063, 0.4258, 0.3832),
        std=(0.3107, 0.2904, 0.2897),
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
    "openwebtext": Origin("Skylion007/openwebtext", None, "text", None, {"train": "train"}, {}, held_out=4_000),
    "ptb": Origin(
        "ptb-text-only/ptb_text_only", "penn_treebank", "sentence", None, _THREE, {}, revision="refs/convert/parquet"
    ),
    # Prepared as in fairseq: lower case is not forced, 160,239 training pairs.
    "iwslt14-de-en": Origin(
        "bbaaaa/iwslt14-de-en-preprocess",
        "de-en",
        "translation",
        None,
        _THREE,
        {"train": 160_239, "valid": 7_283, "test": 6_750},
        revision="refs/convert/parquet",
        languages=("de", "en"),
    ),
}
LIMITED = {"c4": "800 GB", "openwebtext": "40 GB"}  # texts too large to be held whole


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
        return from_hub(origin.repository, origin.configuration, official, stream, origin.revision)
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
    _wants(name, "images")
    side = size or origin.size
    got = {}
    for split in origin.splits:
        pixels, labels = [], []
        for n, row in enumerate(islice(rows(name, split, path, cache, stream=limit is not None), limit)):
            try:
                pixels.append(_picture(row[origin.column], side, origin.channels))
                labels.append(int(row[origin.label]) if origin.label else 0)
            except (KeyError, TypeError, ValueError, OSError, AttributeError) as error:
                wanted = f"a picture in '{origin.column}'"
                wanted += f" and a number in '{origin.label}'" if origin.label else ""
                raise ReproError(
                    f"{name}: row {n} of {split} is not {wanted} ({type(error).__name__}: {error})"
                ) from error
        want = origin.counts[split]
        if path is None and limit is None and len(labels) != want:
            raise ReproError(f"{name}: {len(labels)} {split} rows, expected {want}; fetch the set again, or pass path=")
        if not labels:
            raise ReproError(f"{name}: no {split} rows")
        got[split] = torch.from_numpy(np.stack(pixels)).to(device), torch.tensor(labels, device=device)
    if "test" not in got:
        x, y = got["train"]
        cut = len(y) - min(origin.held_out, len(y) // 10)
        got = {"train": (x[:cut], y[:cut]), "test": (x[cut:], y[cut:])}
    (x, y), (test_x, test_y) = got["train"], got["test"]
    cut = len(y) - min(origin.valid or origin.held_out, len(y) // 10)
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

    C4 and OpenWebText are large: always give them a `limit`; only so much of them is then streamed.  Of OpenWebText,
    which has one split, the last documents of what was read validate and those before them test: 4,000 each, or of
    fewer a tenth.
    """
    origin = _origin(name)
    _wants(name, "text")
    if name in LIMITED and limit is None:
        raise ReproError(f"{name} is {LIMITED[name]}: pass limit= (bytes a split), such as 1_000_000_000")
    read = {s: _text(rows(name, s, path, cache, stream=limit is not None), origin.column, limit) for s in origin.splits}
    raw = {s: _joined(lines) for s, lines in read.items()}
    if "valid" not in raw:
        lines, tenth = read["train"], min(origin.held_out, len(read["train"]) // 10)
        cuts = {"train": (0, -2 * tenth), "test": (-2 * tenth, -tenth), "valid": (-tenth, None)}
        raw = (
            {s: _joined(lines[a:b]) for s, (a, b) in cuts.items()} if tenth else raw | dict.fromkeys(cuts, _joined([]))
        )
    elif "test" not in raw:
        half = len(raw["valid"]) // 2
        raw["valid"], raw["test"] = raw["valid"][:half], raw["valid"][half:]
    empty = [s for s, t in raw.items() if not len(t)]
    if empty:
        raise ReproError(f"{name}: no text in the split {empty[0]!r}")
    whole = Part(name, *((0, len(raw[s])) for s in ("train", "valid", "test")))
    return Corpus(*(raw[s].to(device) for s in ("train", "valid", "test")), parts=(whole,))


def pairs(
    name: str,
    device: torch.device | str = "cpu",
    path: str | Path | None = None,
    cache: str | Path | None = None,
    limit: int | None = None,
) -> Pairs:
    """Sentence pairs in their official splits; each split is cut at `limit` pairs."""
    origin = _origin(name)
    _wants(name, "pairs")
    sides: tuple[dict[str, Side], dict[str, Side]] = ({}, {})
    for split in origin.splits:
        lines: tuple[list[bytes], list[bytes]] = ([], [])
        for n, row in enumerate(islice(rows(name, split, path, cache, stream=limit is not None), limit)):
            try:
                both = [row[origin.column][language].strip().encode() for language in origin.languages]
            except (KeyError, TypeError, AttributeError) as error:
                wanted = " and ".join(origin.languages)
                raise ReproError(f"{name}: row {n} of {split} has no {wanted} in '{origin.column}'") from error
            for kept, line in zip(lines, both, strict=True):
                kept.append(line)
        for side, kept in zip(sides, lines, strict=True):
            side[split] = sentences(kept, device)
    return Pairs(*sides)


def _kind(name: str) -> str:
    origin = _origin(name)
    return "images" if origin.classes else "pairs" if origin.languages else "text"


def _wants(name: str, kind: str) -> None:
    if _kind(name) != kind:
        raise ReproError(f"{name} holds {_kind(name)}: call original.{_kind(name)}({name!r})")


def load(name: str, device: torch.device | str = "cpu", **options: Any) -> Images | Corpus | Pairs:
    """`images`, `text` or `pairs`, whichever the set is."""
    return {"images": images, "text": text, "pairs": pairs}[_kind(name)](name, device, **options)


def _text(lines: Iterator[dict[str, Any]] | Iterable[dict[str, Any]], column: str, limit: int | None) -> list[bytes]:
    """The documents of one split, each ending in a newline, together at most `limit` bytes."""
    out, size = [], 0
    for n, row in enumerate(lines):
        if not isinstance(row.get(column), str):
            raise ReproError(f"row {n} has no text in '{column}'; it has {', '.join(row)}")
        line = row[column].encode()
        line = line if line.endswith(b"\n") else line + b"\n"
        out.append(line if limit is None else line[: limit - size])
        size += len(out[-1])
        if limit is not None and size >= limit:
            break
    return out


def _joined(lines: list[bytes]) -> Tensor:
    raw = bytearray(b"".join(lines))
    return torch.frombuffer(raw, dtype=torch.uint8) if raw else torch.empty(0, dtype=torch.uint8)


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
