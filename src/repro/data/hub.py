"""The one door to Hugging Face: local parquet files or the Hub, through `datasets`, with short failures."""

import logging
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from repro.data.archives import Unusable
from repro.errors import ReproError


def _library():
    try:
        import datasets
    except ImportError as error:
        raise Unusable("the package `datasets` is not installed") from error
    return datasets


def _connected() -> bool:
    """One short request, as `datasets` itself retries for half a minute; any answer will do."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=5)
    except Exception:
        return False
    return True


def from_hub(
    repository: str, configuration: str | None, split: str, stream: bool = False, revision: str | None = None
) -> Iterable[dict[str, Any]]:
    """The rows of one split, from the Hub or from what `datasets` has cached; `Unusable` in seconds if neither.

    A `revision` of parquet files that the Hub made from a script has one folder for each configuration.
    """
    datasets = _library()
    online = _connected()
    before = datasets.config.HF_HUB_OFFLINE
    try:
        if not online:
            _offline(True)
            stream = False
        where = {"name": configuration} if revision is None else {"data_dir": configuration, "revision": revision}
        return datasets.load_dataset(repository, split=split, streaming=stream, **where)
    except Exception as error:  # the Hub's errors share no base: connection, gated, missing, damaged
        reason = "no connection and not in its cache" if not online else f"{type(error).__name__}: {error}"
        raise Unusable(" ".join(reason.split())[:160]) from error
    finally:
        _offline(before)


def _offline(value: bool) -> None:
    import datasets
    from huggingface_hub import constants

    constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = value


def opener(repository: str, configuration: str | None = None) -> Callable[[str], Iterable[dict[str, Any]]]:
    """`load(split) -> rows` of one Hub repository."""
    return lambda split: from_hub(repository, configuration, split)


def parquet_files(folder: Path, split: str) -> list[Path]:
    """The files of one split: `split-00000-of-00002.parquet`, `split.parquet`, or any in a folder named `split`."""
    every = sorted(folder.rglob("*.parquet"))
    return [p for p in every if p.stem == split or p.name.startswith(f"{split}-") or p.parent.name == split]


def from_folder(folder: Path, split: str) -> Iterator[dict[str, Any]]:
    """The rows of one split of a local folder, read as a stream, so that no second copy is made on disk."""
    files = parquet_files(folder, split)
    if not files:
        raise ReproError(f"{folder}: no parquet file for the split {split!r}; name it {split}-00000-of-00001.parquet")
    try:
        datasets = _library()
    except Unusable as error:
        raise ReproError(f"{folder}: {error}; run `pip install datasets`") from error
    log = logging.getLogger("datasets")
    before = log.level
    log.setLevel(logging.CRITICAL)  # what it would log is in its error
    try:
        yield from datasets.load_dataset(
            "parquet", data_files={split: [str(p) for p in files]}, split=split, streaming=True
        )
    except Exception as error:  # pyarrow's errors and those of `datasets` share no base
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:160]
        raise ReproError(
            f"{folder}: the split {split!r} cannot be read ({reason}); fetch its parquet files again"
        ) from error
    finally:
        log.setLevel(before)
