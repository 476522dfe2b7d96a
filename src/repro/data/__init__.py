"""Data sets: one module each, found by name, checked by sha256, held on the device as plain tensors.

    from repro.data import fashion_mnist
    data = fashion_mnist.load(device="cuda")

A name of this registry is imported only when asked for, so that listing the sets costs nothing.
"""

from importlib import import_module
from pathlib import Path

from repro.errors import ReproError

REGISTRY = {
    "fashion_mnist": "repro.data.fashion_mnist",
    "fashion_mnist_m": "repro.data.fashion_mnist_m",
    "mnist": "repro.data.mnist",
    "mnist1d": "repro.data.mnist1d",
    "digits": "repro.data.digits",
    "keel": "repro.data.keel",
    "shakespeare": "repro.data.shakespeare",
    "prose": "repro.data.prose",
    "translation": "repro.data.translation",
    "smollm2": "repro.data.smollm2",
    "minilm": "repro.data.minilm",
}


def names() -> list[str]:
    """The data sets that can be fetched and checked (not those of `original`)."""
    return list(REGISTRY)


def _dataset(name: str):
    if name not in REGISTRY:
        raise ReproError(f"no data set {name!r}: write one of {', '.join(REGISTRY)}")
    return import_module(REGISTRY[name]).DATASET


def info(name: str, cache: str | Path | None = None) -> dict:
    """What the set is: name, what, items, bytes, licence, folder, cached, files with checksums, sources in order."""
    return _dataset(name).info(cache)


def digest(name: str) -> str:
    """`sha256:...` over the checksums that the set is held to."""
    import hashlib

    pins = "".join(f"{f.name} {f.sha256}\n" for f in _dataset(name).files)
    return "sha256:" + hashlib.sha256(pins.encode()).hexdigest()


def fetch(name: str, cache: str | Path | None = None) -> Path:
    """Bring the set into the cache and return its folder; files that are there and whole are kept.

    Raises `ReproError`, one line with all that was tried, when a file cannot be had.
    """
    from repro.data.sources import fetch as bring

    return bring(_dataset(name), cache)
