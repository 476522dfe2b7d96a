"""Content-addressed trial records, and the one way in which the suite writes files.

A record is one JSON file named by the digest of everything that determines it.  Writing is temp + fsync + link, so a
reader sees a whole record or none, and of two writers the first valid record wins.
"""

import errno
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from repro.errors import ReproError
from repro.files.paths import SCHEMA
from repro.files.strict import read_regular
from repro.files.trial import is_record


def canonical(value: Any) -> bytes:
    """The one byte string of a JSON value; NaN and Infinity are refused."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    return text.encode()


def digest(value: Any) -> str:
    """`sha256:<hex>` of a JSON value's canonical form."""
    return "sha256:" + hashlib.sha256(canonical(value)).hexdigest()


def file_digest(path: Path) -> str:
    """`sha256:<hex>` of a file as it is on the disk."""
    return "sha256:" + hashlib.sha256(read_regular(path)).hexdigest()


def rows_digest(rows: list[dict]) -> str:
    """Digest of rows without their seconds: what a verdict is bound to."""
    return digest([{k: v for k, v in row.items() if k != "seconds"} for row in rows])


def sealed(document: dict) -> dict:
    """A rows document with `provenance.checksum`, a digest of everything else in it: seconds and provenance too."""
    kept = {k: v for k, v in document["provenance"].items() if k != "checksum"}
    return {**document, "provenance": {**kept, "checksum": digest({**document, "provenance": kept})}}


def _explain(path: Path, error: OSError) -> ReproError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return ReproError(f"{path}: the disk is full; free some space and run the same command again (nothing is lost)")
    if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
        return ReproError(f"{path}: may not be written; make {path.parent} writable and run the same command again")
    return ReproError(f"{path}: {error.strerror or error}")


def _write_temp(path: Path, data: bytes) -> Path:
    temp = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temp, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        temp.unlink(missing_ok=True)
        raise _explain(path, error) from error
    return temp


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_file(path: Path, content: str | bytes) -> None:
    """Replace the content of `path`, entirely or not at all."""
    temp = _write_temp(path, content.encode() if isinstance(content, str) else content)
    try:
        os.replace(temp, path)
        _sync_folder(path.parent)
    except OSError as error:
        temp.unlink(missing_ok=True)
        raise _explain(path, error) from error


class Store:
    """Trial records under `root`: `get` returns a valid record or None, `put` keeps the first valid one."""

    def __init__(self, root: Path):
        self.root = Path(root)

    def path(self, key: str) -> Path:
        name = key.removeprefix("sha256:")
        return self.root / name[:2] / f"{name}.json"

    def get(self, key: str) -> dict | None:
        """The record of `key`; one that is damaged, incomplete or misplaced counts as absent, whoever wrote it."""
        try:
            record = json.loads(read_regular(self.path(key)))
            body = record["body"]
            valid = record["schema"] == SCHEMA and body["key"] == key and record["digest"] == digest(body)
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None
        return body if valid and is_record(body) else None

    def put(self, key: str, body: dict, replace: bool = False) -> dict:
        """Write the record; returns the one that counts: an earlier valid one wins, unless `replace`.

        A reader never finds the record missing in between.
        """
        body = {**body, "key": key}
        if not is_record(body):
            row = body.get("row")
            of = f"{row.get('experiment')} {row.get('arm')}" if isinstance(row, dict) else "a trial"
            raise ReproError(
                f"{of}: gave what no row can hold; return numbers, or lists of finite numbers, as measures"
            )
        path = self.path(key)
        record = {"schema": SCHEMA, "digest": digest(body), "body": body}
        temp = _write_temp(path, canonical(record))
        try:
            try:
                os.link(temp, path)
            except FileExistsError:
                if not replace and (earlier := self.get(key)) is not None:
                    return earlier
                os.replace(temp, path)  # what lay there was corrupt, or is measured anew
            _sync_folder(path.parent)
        except OSError as error:
            raise _explain(path, error) from error
        finally:
            temp.unlink(missing_ok=True)
        return body

    def sweep(self) -> int:
        """Remove temporary files of processes that are gone; returns how many."""
        swept = 0
        for temp in self.root.glob("*/.*.tmp"):
            pid = int(temp.name.split(".")[-3])
            try:
                os.kill(pid, 0)
            except ProcessLookupError:
                temp.unlink(missing_ok=True)
                swept += 1
            except PermissionError:
                pass
        return swept
