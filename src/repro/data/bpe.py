"""Byte pair encoding of characters (Sennrich et al. 2016, arXiv:1508.07909), learnt and applied in plain Python.

Text is cut into words and runs of marks, each with the blank before it, written as "▁"; no merge crosses a cut.  Of two
pairs that are equally frequent the one that comes first in the order of its characters is merged, so that the same text
always gives the same vocabulary.
"""

import heapq
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from repro.data.kinds import END, UNKNOWN

BLANK = "\u2581"
SPECIAL = ("<pad>", "<start>", "<end>", "<unknown>")
_WORD = re.compile(rf"{BLANK}?\w+|{BLANK}?[^\w{BLANK}]+|{BLANK}")


def cut(line: str) -> list[str]:
    """The words of a line, each with the mark of the blank before it."""
    return _WORD.findall(BLANK + BLANK.join(line.split()))


def learn(lines: Iterable[str], merges: int) -> list[tuple[str, str]]:
    """The `merges` most frequent pairs, in the order in which they are merged."""
    counts = Counter(word for line in lines for word in cut(line))
    words = [list(word) for word in counts]
    frequency = list(counts.values())
    pairs: Counter[tuple[str, str]] = Counter()
    where: defaultdict[tuple[str, str], set[int]] = defaultdict(set)
    for number, word in enumerate(words):
        for pair in zip(word, word[1:], strict=False):
            pairs[pair] += frequency[number]
            where[pair].add(number)
    heap = [(-count, pair) for pair, count in pairs.items()]
    heapq.heapify(heap)
    out: list[tuple[str, str]] = []
    while heap and len(out) < merges:
        count, best = heapq.heappop(heap)
        if pairs[best] != -count:  # an old entry; the new count has one of its own
            continue
        if count >= -1:
            break
        out.append(best)
        changed = set()
        for number in where.pop(best):
            before = words[number]
            after = _merged(before, best)
            if len(after) == len(before):
                continue
            for pair in zip(before, before[1:], strict=False):
                pairs[pair] -= frequency[number]
                changed.add(pair)
            for pair in zip(after, after[1:], strict=False):
                pairs[pair] += frequency[number]
                where[pair].add(number)
                changed.add(pair)
            words[number] = after
        for pair in changed:
            if pairs[pair] > 0:
                heapq.heappush(heap, (-pairs[pair], pair))
    return out


def _merged(parts: list[str], pair: tuple[str, str]) -> list[str]:
    out, i = [], 0
    while i < len(parts):
        if i + 1 < len(parts) and parts[i] == pair[0] and parts[i + 1] == pair[1]:
            out.append(parts[i] + parts[i + 1])
            i += 2
        else:
            out.append(parts[i])
            i += 1
    return out


class Pieces:
    """A vocabulary: PAD, START, END, UNKNOWN, the characters, and what each merge makes."""

    def __init__(self, characters: str, merges: list[tuple[str, str]]):
        self.characters, self.merges = characters, merges
        made = dict.fromkeys(a + b for a, b in merges)
        self.pieces = [*SPECIAL, *characters, *made]
        self.ids = {piece: i for i, piece in enumerate(self.pieces)}
        self.ranks = {pair: i for i, pair in enumerate(merges)}
        self._ids_of = lru_cache(maxsize=1 << 17)(self._encoded)

    @classmethod
    def learnt(cls, lines: list[str], merges: int) -> "Pieces":
        """The vocabulary of a text: every character that it has, and at most so many merges."""
        characters = "".join(sorted({BLANK, *(c for line in lines for c in line if not c.isspace())}))
        return cls(characters, learn(lines, merges))

    def __len__(self) -> int:
        return len(self.pieces)

    def _encoded(self, word: str) -> tuple[int, ...]:
        parts = list(word)
        while len(parts) > 1:
            pairs = zip(parts, parts[1:], strict=False)
            best = min(pairs, key=lambda pair: self.ranks.get(pair, len(self.ranks)))
            if best not in self.ranks:
                break
            parts = _merged(parts, best)
        return tuple(self.ids.get(part, UNKNOWN) for part in parts)

    def encode(self, line: str) -> list[int]:
        """The ids of a line, without START and END."""
        return [i for word in cut(line) for i in self._ids_of(word)]

    def decode(self, ids: Iterable[int]) -> str:
        """The line of ids up to the first END; special ids are left out."""
        kept = []
        for i in ids:
            if i == END:
                break
            if i > UNKNOWN:
                kept.append(self.pieces[i])
        return "".join(kept).replace(BLANK, " ").strip()

    def save(self) -> str:
        """A text from which `load` makes the same vocabulary."""
        return "\n".join([self.characters, *(f"{a} {b}" for a, b in self.merges)]) + "\n"

    @classmethod
    def load(cls, text: str) -> "Pieces":
        characters, *merges = text.removesuffix("\n").split("\n")
        return cls(characters, [tuple(line.split(" ")) for line in merges])


def kept(lines: list[str], merges: int, folder: Path) -> Pieces:
    """`Pieces.learnt`, from a file of `folder`, named after the text and the number of merges, if there is one."""
    import hashlib

    from repro.store import write_file

    key = hashlib.sha256("\n".join([__doc__, str(merges), *lines]).encode()).hexdigest()
    path = folder / f"bpe-{merges}-{key[:16]}.txt"
    if path.is_file():
        head, _, body = path.read_text(encoding="utf-8").partition("\n")
        if head == hashlib.sha256(body.encode()).hexdigest():
            return Pieces.load(body)
    pieces = Pieces.learnt(lines, merges)
    body = pieces.save()
    write_file(path, (hashlib.sha256(body.encode()).hexdigest() + "\n" + body).encode())
    return pieces
