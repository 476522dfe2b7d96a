"""`paper.yaml` and `params.yaml` from their files: always read, always checked, nothing taken from a cache on disk."""

import functools
import os
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from repro.errors import ReproError
from repro.files.paths import paper_dirs
from repro.files.strict import MEBIBYTE, read_regular

if TYPE_CHECKING:
    from repro.spec.model import Paper, Params
    from repro.spec.yaml import YamlFile


def _load(path: Path, cls: type) -> Any:
    """`path` as `cls`."""
    return _checked(path, shown(path), cls, _read(path))


@functools.lru_cache(maxsize=1000)
def _checked(path: Path, name: str, cls: type, text: bytes) -> Any:
    """The content of a file as `cls`; the same content is checked once in a process."""
    from repro.spec import checks
    from repro.spec.yaml import YamlFile

    return checks.made(YamlFile(path, name, text), cls)


def _read(path: Path) -> bytes:
    try:
        return read_regular(path, MEBIBYTE)
    except OSError as error:
        raise ReproError(f"{shown(path)}: {error.strerror or error}") from None


# ---- the suite ----------------------------------------------------------------------------------------------------


def slugs() -> list[str]:
    """Every paper of the suite: the folders that hold a `paper.yaml`, sorted; hidden ones are drafts of `repro new`."""
    return sorted(path.parent.name for path in paper_dirs().glob("[!.]*/paper.yaml"))


def load(paper: str | Path, root: str | Path | None = None) -> "Paper":
    """The paper of a slug (in `root/papers` if given), of a folder or a `paper.yaml` (a Path); a one-line ReproError
    if wrong.
    """
    folder = paper_dirs() if root is None else Path(root) / "papers"
    path = folder / paper if isinstance(paper, str) else Path(paper)
    path = path if path.name == "paper.yaml" else path / "paper.yaml"
    if isinstance(paper, str) and (paper in ("", ".", "..") or len(paper) > 100 or {os.sep, "\\", "\0"} & set(paper)):
        near = (
            Path(paper).name
            if (folder / Path(paper).name[:100].replace("\0", "") / "paper.yaml").is_file()
            else "rmsnorm"
        )
        raise ReproError(f"{paper[:100]}: no such paper; write its name alone, such as {near}")
    if path.is_dir():
        raise ReproError(f"{shown(path)}: is a folder; write a file, `repro new` shows one")
    if not path.exists():
        known = sorted(found.parent.name for found in folder.glob("*/paper.yaml"))
        near = get_close_matches(path.parent.name, known, 3, 0.5)
        hint = f"did you mean {', '.join(near)}?" if near else "`repro list` shows all"
        raise ReproError(f"{paper}: no such paper; {hint}")
    from repro.spec.model import Paper

    return _load(path, Paper)


def load_yaml(path: str | Path) -> Any:
    """Plain data of a YAML 1.2 file (`1e-3` is a number, `on` a text); ReproError with the line of what is wrong.

    Duplicate keys, tags, anchors, dates, NaN and keys that are no text are refused.
    """
    return yaml_file(Path(path), shown(Path(path))).data


def yaml_file(path: Path, name: str) -> "YamlFile":
    """A YAML file with its lines; `name` is how messages name it."""
    from repro.spec.yaml import YamlFile

    return YamlFile(path, name, _read(path))


def load_params(root: str | Path) -> "Params":
    """`params.yaml` of a checkout."""
    from repro.spec.model import Params

    return _load(Path(root) / "params.yaml", Params)


def shown(path: Path) -> str:
    """A path as messages name it: from the checkout on where it lies in it."""
    base, full = paper_dirs().parent, Path(os.path.realpath(path.parent), path.name)  # a link is named, not followed
    return str(full.relative_to(base)) if full.is_relative_to(base) else str(path)
