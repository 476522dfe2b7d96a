"""The tokenizer of a published model or data set, from a file or the Hub, by the package `tokenizers`."""

from pathlib import Path
from typing import Any

from repro.errors import ReproError


def load(name: str, file: Path) -> Any:
    """Return the tokenizer in `file`, or where there is none the one that the Hub has under `name`.

    Raises ReproError where the package is missing, and where neither the file nor the Hub can be read.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise ReproError(f"{name} is a tokenizer of the package tokenizers; run `pip install tokenizers`") from error
    try:
        return Tokenizer.from_file(str(file)) if file.is_file() else Tokenizer.from_pretrained(name)
    except Exception as error:  # those of the library share no base
        raise ReproError(f"no tokenizer {name} ({error}). Connect, or put its tokenizer.json at {file}") from error
