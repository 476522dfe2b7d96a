"""`paper.yaml` and `params.yaml` from their files.

Importing ruamel.yaml and pydantic takes longer than `repro list` may, so a file that passed the checks is
kept as JSON under `.repro/yaml/`, by the digest of its bytes and of the checks, and is not checked again.
"""

import difflib
import functools
import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import repro
from repro.errors import ReproError
from repro.spec.model import Paper, Params, build, json_schema


@functools.cache
def _checks_digest() -> bytes:
    own = Path(__file__)
    parts = [
        (own.parent / name).read_bytes()
        for name in ("model.py", "load.py", "checks.py", "yaml.py", "../files/strict.py")
    ]
    return hashlib.sha256(b"\0".join(parts)).digest()


def _load(path: Path, cls: type, root: Path) -> Any:
    """`path` as `cls`: what passed the checks once is taken from `root/.repro/yaml/`."""
    text = _read(path)
    what = f"{cls.__name__} {path.resolve().parent.name}\0".encode()
    key = hashlib.sha256(_checks_digest() + what + text).hexdigest()
    kept = root / ".repro" / "yaml" / f"{key}.json"
    try:
        return build(cls, json.loads(kept.read_bytes()))
    except (OSError, ValueError, TypeError, KeyError):
        pass
    from repro.spec import checks as paper_checks
    from repro.spec.yaml import YamlFile

    file = YamlFile(path, shown(path), text)
    paper_checks.schema(file, cls)
    made = build(cls, file.data)
    {Paper: paper_checks.paper, Params: paper_checks.params}[cls](file, made)
    if (root / "params.yaml").is_file():
        try:
            kept.parent.mkdir(parents=True, exist_ok=True)
            temp = kept.with_suffix(f".{os.getpid()}.tmp")
            temp.write_text(json.dumps(file.data))
            os.replace(temp, kept)
        except OSError:
            pass  # a checkout that may not be written is only slower
    return made


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ReproError(f"{shown(path)}: {error.strerror or error}") from None


# ---- the suite ----------------------------------------------------------------------------------------------------


@functools.cache
def paper_dirs() -> Path:
    """The folder that holds the papers: `papers/` of the checkout, or of the installed package."""
    found = [path for base in map(Path, repro.__path__) if (path := base / "papers").is_dir()]
    if not found:
        raise ReproError("no papers folder beside this package; install from a checkout: pip install -e .")
    return next((path for path in found if (path.parent / "params.yaml").is_file()), found[0]).resolve()


def slugs() -> list[str]:
    """Every paper of the suite: the folders that hold a `paper.yaml`, sorted."""
    return sorted(path.parent.name for path in paper_dirs().glob("*/paper.yaml"))


def load(paper: str | Path, root: str | Path | None = None) -> Paper:
    """The paper of a slug (in `root/papers` if given), of a folder or a `paper.yaml` (a Path); a one-line ReproError if wrong."""
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
    if path.exists() and not path.is_file():
        raise ReproError(f"{shown(path)}: is a folder; write a file, `repro new` shows one")
    if not path.is_file():
        known = sorted(found.parent.name for found in folder.glob("*/paper.yaml"))
        close = difflib.get_close_matches(path.parent.name, known, 3, 0.5)
        hint = f"did you mean {', '.join(close)}?" if close else "`repro list` shows all"
        raise ReproError(f"{paper}: no such paper; {hint}")
    return _load(path, Paper, path.resolve().parents[2])


def load_yaml(path: str | Path) -> Any:
    """Plain data of a YAML 1.2 file (`1e-3` is a number, `on` a text); ReproError with the line of what is wrong.

    Duplicate keys, tags, anchors, dates, NaN and keys that are no text are refused.
    """
    from repro.spec.yaml import YamlFile

    return YamlFile(Path(path), shown(Path(path)), _read(Path(path))).data


def load_params(root: str | Path) -> Params:
    """`params.yaml` of a checkout."""
    return _load(Path(root) / "params.yaml", Params, Path(root))


def shown(path: Path) -> str:
    """A path as messages name it: from the checkout on where it lies in it."""
    base, full = paper_dirs().parent, path.resolve()
    return str(full.relative_to(base)) if full.is_relative_to(base) else str(path)


if __name__ == "__main__":
    json.dump(json_schema(), sys.stdout, indent=1)
    print()
