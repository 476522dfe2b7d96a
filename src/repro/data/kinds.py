"""The shapes that data come in: frozen records of tensors on one device, shared in a process, never written to."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Images:
    """Images `[N, C, H, W]` (uint8, 0 to `top`) with labels `[N]` (int64), in three disjoint splits.

    `mean` and `std` are per channel, of pixels scaled to [0, 1], over the official training images.
    """

    train_x: Tensor
    train_y: Tensor
    valid_x: Tensor
    valid_y: Tensor
    test_x: Tensor
    test_y: Tensor
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    top: float = 255.0

    def split(self, name: str) -> tuple[Tensor, Tensor]:
        """`(x, y)` of "train", "valid" or "test"."""
        return getattr(self, f"{name}_x"), getattr(self, f"{name}_y")

    def take(self, train: int) -> "Images":
        """The same set with only its first `train` training images."""
        return replace(self, train_x=self.train_x[:train], train_y=self.train_y[:train])

    def unit(self, x: Tensor) -> Tensor:
        """float32 in [0, 1]: x / top."""
        return x.float() / self.top

    def normalised(self, x: Tensor) -> Tensor:
        """float32 of zero mean and unit variance per channel: (x / top - mean) / std."""
        shape = (-1, 1, 1)
        mean, std = (torch.tensor(v, device=x.device).view(shape) for v in (self.mean, self.std))
        return (self.unit(x) - mean) / std

    def pooled(self, split: str, count: int, pool: int) -> tuple[Tensor, Tensor]:
        """The first `count` of a split, normalised and averaged over pool x pool pixels; and their labels."""
        x, y = self.split(split)
        return F.avg_pool2d(self.normalised(x[:count]), pool), y[:count]

    def binarised(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """float32 in {0, 1}: x / top > 1/2 or, given a CPU generator, Bernoulli draws of probability x / top."""
        if generator is None:
            return (self.unit(x) > 0.5).float()
        draw = torch.rand(x.shape, generator=generator).to(x.device)
        return (draw < self.unit(x)).float()

    def flat(self, x: Tensor) -> Tensor:
        """Normalised vectors `[N, C*H*W]`."""
        return self.normalised(x).flatten(1)


@dataclass(frozen=True)
class Signals:
    """Signals `[N, C, L]` (float32) with labels `[N]` (int64), in three disjoint splits."""

    train_x: Tensor
    train_y: Tensor
    valid_x: Tensor
    valid_y: Tensor
    test_x: Tensor
    test_y: Tensor
    classes: int


@dataclass(frozen=True)
class Part:
    """Where one source of a corpus lies in each of its splits: half-open byte ranges."""

    name: str
    train: tuple[int, int]
    valid: tuple[int, int]
    test: tuple[int, int]


@dataclass(frozen=True)
class Corpus:
    """Text as bytes: uint8 vectors `train`, `valid`, `test`; `parts` says where each source lies in them."""

    train: Tensor
    valid: Tensor
    test: Tensor
    parts: tuple[Part, ...] = ()
    vocab: int = 256

    def part(self, name: str) -> "Corpus":
        """The corpus of one source only, for a loss per source."""
        for p in self.parts:
            if p.name == name:
                cut = {s: getattr(self, s)[slice(*getattr(p, s))] for s in ("train", "valid", "test")}
                own = Part(name, *((0, len(cut[s])) for s in ("train", "valid", "test")))
                return Corpus(**cut, parts=(own,), vocab=self.vocab)
        raise KeyError(f"no source {name!r}: {', '.join(p.name for p in self.parts)}")


def corpus(texts: dict[str, Tensor], device: torch.device | str) -> Corpus:
    """Cut each uint8 vector 90/5/5 at whole bytes, join the pieces in order, and place them on `device`."""
    pieces: dict[str, list[Tensor]] = {"train": [], "valid": [], "test": []}
    at = dict.fromkeys(pieces, 0)
    parts = []
    for name, text in texts.items():
        a, b = len(text) * 90 // 100, len(text) * 95 // 100
        span = {}
        for split, piece in zip(pieces, (text[:a], text[a:b], text[b:]), strict=True):
            pieces[split].append(piece)
            span[split] = (at[split], at[split] + len(piece))
            at[split] += len(piece)
        parts.append(Part(name, **span))
    return Corpus(**{s: torch.cat(p).to(device) for s, p in pieces.items()}, parts=tuple(parts))


@dataclass(frozen=True)
class Tabular:
    """A table: `x` float32 `[n, d]` (NaN where a value is missing), `y` int64 `[n]`, `folds` int64 `[n]` in 0..4."""

    name: str
    x: Tensor
    y: Tensor
    folds: Tensor
    classes: int

    def split(self, fold: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """`(train_x, train_y, test_x, test_y)` with this fold as the test set.

        Missing values take the column's mean and columns are standardised, both by the training rows alone; a constant
        column becomes zero.
        """
        test = self.folds == fold
        x = self.x[~test].double()
        known = ~x.isnan()
        count = known.sum(0).clamp(min=1)
        mean = x.nan_to_num(0.0).sum(0) / count
        std = ((torch.where(known, x - mean, 0.0) ** 2).sum(0) / count).sqrt()
        std = torch.where(std > 1e-12, std, 1.0)

        def scale(part: Tensor) -> Tensor:
            return torch.where(part.isnan(), 0.0, (part.double() - mean) / std).float()

        return scale(self.x[~test]), self.y[~test], scale(self.x[test]), self.y[test]


PAD, START, END, UNKNOWN = 0, 1, 2, 3


@dataclass(frozen=True)
class Side:
    """Sentences of one language: UTF-8 `text` (uint8) joined without separators; sentence i ends before `ends[i]`."""

    text: Tensor
    ends: Tensor

    def __len__(self) -> int:
        return len(self.ends)

    def lines(self) -> list[str]:
        data = bytes(self.text.cpu().numpy())
        ends = [0, *self.ends.tolist()]
        return [data[a:b].decode() for a, b in zip(ends, ends[1:], strict=False)]

    def tokens(self, vocabulary: "Vocabulary | None", length: int) -> Tensor:
        """int64 `[n, length]`: START, tokens, END, PAD, cut to `length`. Without a vocabulary tokens are bytes + 4."""
        rows = []
        for line in self.lines():
            ids = [b + 4 for b in line.encode()] if vocabulary is None else vocabulary.encode(line)
            ids = [START, *ids[: length - 2], END]
            rows.append(ids + [PAD] * (length - len(ids)))
        return torch.tensor(rows, dtype=torch.int64, device=self.text.device).view(-1, length)


def sentences(lines: list[bytes], device: torch.device | str) -> Side:
    """A `Side` of UTF-8 lines, on `device`."""
    text = torch.frombuffer(bytearray(b"".join(lines)), dtype=torch.uint8) if any(lines) else torch.empty(0).byte()
    ends = torch.tensor([len(line) for line in lines], dtype=torch.int64).cumsum(0)
    return Side(text.to(device), ends.to(device))


@dataclass(frozen=True)
class Pairs:
    """Sentence pairs: `source[split]` and `target[split]` are parallel, for the splits train, valid and test."""

    source: dict[str, Side]
    target: dict[str, Side]


class Vocabulary:
    """Words and marks by falling count, then by spelling; ids 0 to 3 are PAD, START, END and UNKNOWN."""

    def __init__(self, lines: list[str], size: int):
        counts: dict[str, int] = {}
        for line in lines:
            for word in words(line):
                counts[word] = counts.get(word, 0) + 1
        ranked = sorted(counts, key=lambda w: (-counts[w], w))[: size - 4]
        self.words = ["<pad>", "<start>", "<end>", "<unknown>", *ranked]
        self.ids = {w: i for i, w in enumerate(self.words)}

    def __len__(self) -> int:
        return len(self.words)

    def encode(self, line: str) -> list[int]:
        return [self.ids.get(w, UNKNOWN) for w in words(line)]

    def decode(self, ids: list[int]) -> str:
        return " ".join(self.words[i] for i in ids if i > END)


def words(line: str) -> list[str]:
    """Lower-case words and single marks: the split that a word-level model sees."""
    import re

    return re.findall(r"\w+|[^\w\s]", line.lower())
