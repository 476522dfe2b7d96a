"""GPT-2 Small (Radford et al. 2019): trained weights, byte pair vocabulary, and texts in its tokens.

The files are those of `openai-community/gpt2` on the Hub at one revision, each checked by sha256: from the folder
`gpt2` of the cache, where a person may put them, else from the Hub.  `repro.models.gpt2` makes a model and a tokenizer
of them.
"""

import hashlib
import json
from array import array
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from repro.data import original
from repro.data.kinds import Corpus
from repro.data.sources import cache_root
from repro.errors import ReproError
from repro.store import write_file

REPOSITORY, REVISION = "openai-community/gpt2", "607a30d783dfa663caf39e06633721c8d4cfcd7e"
FILES = {
    "model.safetensors": "248dfc3911869ec493c76e65bf2fcf7f615828b0254c12b473182f0f81d3a707",
    "vocab.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
    "merges.txt": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
}
VOCAB = 50_257
END = VOCAB - 1  # the token <|endoftext|>
DRAFT = 1 << 15  # tokens of a text on the meta device, which has no numbers


def weights(cache: str | Path | None = None) -> dict[str, Tensor]:
    """The model's tensors by their names on the Hub, float32, on the CPU."""
    from safetensors.torch import load

    return load(_content("model.safetensors", cache))


def vocabulary(cache: str | Path | None = None) -> tuple[list[str], list[str]]:
    """The tokens in the order of their ids, and the merges in the order of their rank."""
    ids = json.loads(_content("vocab.json", cache))
    _, *merges = _content("merges.txt", cache).decode().split("\n")  # the first line names the format
    return sorted(ids, key=ids.get), [merge for merge in merges if merge]


def corpus(
    name: str,
    encode: Callable[[str], list[int]],
    *,
    train: int,
    held_out: int,
    device: torch.device | str = "cpu",
    cache: str | Path | None = None,
) -> Corpus:
    """A text of `repro.data.original` as tokens (int32), each document followed by END.

    Its first `held_out` documents validate, and the next ones, `train` tokens of them, are for training; no part tests.
    The tokens are kept in the cache.  On the meta device nothing is read.
    """
    if torch.device(device).type == "meta":
        parts = [torch.empty(DRAFT, dtype=torch.int32, device=device)] * 2
    else:
        path = cache_root(cache) / "gpt2" / f"{name}-{held_out}-{train}.tokens"
        valid, rest = _kept(path) or _keep(path, *_read(name, encode, train, held_out, cache))
        short = (torch.frombuffer(bytearray(part), dtype=torch.uint16) for part in (rest, valid))
        parts = [part.to(torch.int32).to(device) for part in short]
    return Corpus(*parts, parts[0][:0], vocab=VOCAB)


def _read(
    name: str, encode: Callable[[str], list[int]], train: int, held_out: int, cache: str | Path | None
) -> tuple[bytes, bytes]:
    """The held-out and the training tokens, 16 bits each."""
    rows = original.rows(name, "train", cache=cache, stream=True)
    column, valid, rest = original.ORIGINS[name].column, array("H"), array("H")
    for n, row in enumerate(rows):
        part = valid if n < held_out else rest
        part.extend(encode(row[column]))
        part.append(END)
        if len(rest) >= train:
            return valid.tobytes(), rest[:train].tobytes()
    raise ReproError(f"{name} has {len(rest)} tokens after {held_out} documents: write at most so many, not {train}")


def _keep(path: Path, valid: bytes, rest: bytes) -> tuple[bytes, bytes]:
    """Write both parts behind a line with the length of the first and the digest of all."""
    head = f"{len(valid)} {hashlib.sha256(valid + rest).hexdigest()}\n"
    write_file(path, head.encode() + valid + rest)
    return valid, rest


def _kept(path: Path) -> tuple[bytes, bytes] | None:
    """What `_keep` wrote, or nothing where that is not here or damaged."""
    if not path.is_file():
        return None
    head, _, body = path.read_bytes().partition(b"\n")
    length, _, digest = head.decode("ascii", "replace").partition(" ")
    whole = length.isdecimal() and hashlib.sha256(body).hexdigest() == digest
    return (body[: int(length)], body[int(length) :]) if whole else None


def _content(name: str, cache: str | Path | None) -> bytes:
    """A file of the model that is what it should be."""
    path = cache_root(cache) / "gpt2" / name
    content = (path if path.is_file() else _from_hub(name, path.parent)).read_bytes()
    if (found := hashlib.sha256(content).hexdigest()) != FILES[name]:
        raise ReproError(f"{name} of {REPOSITORY} has sha256 {found}, expected {FILES[name]}; fetch it again")
    return content


def _from_hub(name: str, folder: Path) -> Path:
    """The file's path in the Hub's own cache."""
    try:
        from huggingface_hub import hf_hub_download
    except ImportError as error:
        raise ReproError(
            "GPT-2's weights need the package `huggingface_hub`: run `pip install huggingface_hub`"
        ) from error
    try:
        return Path(hf_hub_download(REPOSITORY, name, revision=REVISION))
    except Exception as error:  # the Hub's errors share no base
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:160]
        raise ReproError(
            f"{name} of {REPOSITORY} cannot be had ({reason}); connect, or put it into {folder}"
        ) from error
