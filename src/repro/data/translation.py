"""English to German: aligned paragraphs of the LibreOffice 7.4 help, matched exactly by page and paragraph identifier.

A page belongs to the test set if CRC32(its path) mod 20 is 0, to validation if 1, else to training. Kept are pairs of
3 to 80 words a side with a length ratio of 0.4 to 2.5 that differ between the languages; a pair that occurs twice stays
once, in the test set first, and no held-out sentence of either language occurs in training.
"""

import html
import re
import zlib
from pathlib import Path

import torch

from repro.data.archives import Archive
from repro.data.kinds import Pairs, sentences
from repro.data.sources import Dataset, File, Source, resident

FILE = "en-de.tsv"  # split, English, German
HELP = "usr/share/libreoffice/help/"
SPLITS = ("test", "valid", "train")
_PARAGRAPH = re.compile(r"<(p|h[1-6])\b[^>]*?\bid=\"((?:par|hd)_[^\"]*)\"[^>]*>(.*?)</\1>", re.S)


def _paragraphs(archive: Archive, language: str) -> dict[tuple[str, str], str]:
    root = f"{HELP}{language}/text/"
    out: dict[tuple[str, str], str] = {}
    for name in archive.names(root):
        if name.endswith(".html"):
            for match in _PARAGRAPH.finditer(archive.read(name).decode()):
                words = html.unescape(re.sub(r"<[^>]*>", "", match[3])).split()
                if words:
                    out.setdefault((name.removeprefix(root), match[2]), " ".join(words))
    return out


def _split(page: str) -> str:
    return {0: "test", 1: "valid"}.get(zlib.crc32(page.encode()) % 20, "train")


def _fits(english: str, german: str) -> bool:
    a, b = len(english.split()), len(german.split())
    return 3 <= a <= 80 and 3 <= b <= 80 and 0.4 <= a / b <= 2.5 and english != german


def _pairs(english: Archive, german: Archive) -> dict[str, bytes]:
    ours, theirs = _paragraphs(english, "en-US"), _paragraphs(german, "de")
    keys = sorted(ours.keys() & theirs.keys())
    rows, pairs, held = [], set(), set()
    for split in SPLITS:
        fresh = set()
        for key in keys:
            pair = ours[key], theirs[key]
            if _split(key[0]) == split and _fits(*pair) and pair not in pairs and not held.intersection(pair):
                rows.append("\t".join((split, *pair)))
                pairs.add(pair)
                fresh.update(pair)
        held |= fresh
    return {FILE: ("\n".join(rows) + "\n").encode()}


DATASET = Dataset(
    name="translation",
    what="English-German paragraph pairs of the LibreOffice help",
    items="24,084 train, 1,408 validation, 2,317 test",
    licence="MPL-2.0",
    files=(File(FILE, 6_130_496, "c436533c0bfbfdc0a85e78d0cd57dc1eb6ff92f7ed7055d4e08ee75c3c53eaaa"),),
    sources=(Source("debian", ("libreoffice-help-en-us", "libreoffice-help-de"), (FILE,), _pairs),),
)


@resident
def load(device: torch.device | str = "cpu", cache: str | Path | None = None) -> Pairs:
    """The pairs on `device`, fetched if they are not in the cache; the same object at every call of a process."""
    rows = [line.split(b"\t") for line in bytes(DATASET.read(cache)[FILE].numpy()).splitlines()]
    sides = [{s: sentences([r[i] for r in rows if r[0] == s.encode()], device) for s in SPLITS} for i in (1, 2)]
    return Pairs(source=sides[0], target=sides[1])
