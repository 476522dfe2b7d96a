"""Stored files come from strangers too, so they are read strictly: one reader for all of them.

A file that is not what it should be is refused in one line with its place: no NaN, no key twice, no text for a number,
no missing field, nothing that belongs to another paper.  Keys that are not known here are left alone.  Only regular
files of a plausible size are read: no pipe, no device, no file of gigabytes.
"""

import json
import os
import re
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Literal, NoReturn, Union, get_args, get_origin

from repro.errors import ReproError
from repro.files.paths import SCHEMA

NOT_TEXT = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")  # halves of characters too
PRINTABLE = bytes([9, 10, 13, *range(32, 127)])
DEPTH = 20  # no document nests deeper
LARGEST = 2**53  # whole numbers beyond it are not those that were written
MEBIBYTE = 2**20
SIZE = 256 * MEBIBYTE  # rows with learning curves of a large run stay far below

Where = tuple[str | int, ...]


def read_regular(path: Path, limit: int = SIZE) -> bytes:
    """The bytes of a regular file of at most `limit` bytes; OSError says what else there is."""
    fd = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with open(fd, "rb") as file:
        found = os.fstat(fd)
        if stat.S_ISDIR(found.st_mode):
            raise IsADirectoryError(None, "Is a directory", str(path))
        if not stat.S_ISREG(found.st_mode):
            raise OSError(None, "is a pipe or a device, not a file", str(path))
        if found.st_size <= limit:
            raw = file.read(limit + 1)
            if len(raw) <= limit:
                return raw
    raise OSError(None, f"holds more than {limit // MEBIBYTE} MiB, which no such file does", str(path))


def plain(path: Path, shown: str | None = None) -> str:
    """A text file."""
    try:
        raw = read_regular(path, 16 * MEBIBYTE)
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ReproError(f"{shown or path}:{line}: not UTF-8; save the file as UTF-8") from None
    except OSError as error:
        raise ReproError(f"{shown or path}: {error.strerror or error}") from None


class _NoJson(Exception):
    """A token or a key that valid JSON has not."""


class JsonFile:
    """`data` of a JSON file (or of `raw`, which git or a store gave); `fail` refuses it in one line.

    The line names the place, with its line in the file, and what to do (`again`).
    """

    YAML = False

    def __init__(self, path: Path, again: str, shown: str | None = None, raw: bytes | None = None):
        self.path, self.again, self.shown, self.text = path, again, shown or str(path), ""
        try:
            raw = read_regular(path) if raw is None else raw
            self.text = raw.decode("utf-8")
            self.data = json.loads(self.text, parse_constant=_constant, object_pairs_hook=_pairs)
            self._depth()
            self._characters()
        except OSError as error:
            raise ReproError(f"{self.shown}: {error.strerror or error}; {again}") from None
        except UnicodeDecodeError as error:
            self._refuse(raw.count(b"\n", 0, error.start) + 1, "not UTF-8")
        except json.JSONDecodeError as error:
            self._refuse(error.lineno, f"not JSON: {error.msg}")
        except _NoJson:
            self._refuse(*self._culprit())
        except (RecursionError, ValueError) as error:  # a ValueError: a number of more than 4,300 digits
            deep = isinstance(error, RecursionError)
            self._refuse(1, "nested too deep" if deep else "holds a number with thousands of digits")

    def _refuse(self, line: int, message: str) -> NoReturn:
        raise ReproError(
            " ".join(f"{self.shown}:{line}: {message}; {self.again}".split())
        )  # a key may hold a line's end

    def fail(self, where: Where, message: str) -> NoReturn:
        """Refuse what stands at a place, such as ("rows", 3, "seed")."""
        lines = {place: line for place, line, _ in reversed(list(_places(self.text)))}
        line = next(lines[where[:n]] for n in range(len(where), -1, -1) if where[:n] in lines)
        self._refuse(line, f"{dotted(where)}{': ' if where else ''}{message}")

    def _culprit(self) -> tuple[int, str]:
        """Line and name of the first NaN or of the first key that stands twice."""
        seen: dict[Where, int] = {}
        for place, line, token in _places(self.text):
            if token is None and place in seen:
                return line, f"{dotted(place)}: stands twice, first on line {seen[place]}"
            if token is None:
                seen[place] = line
            elif token in ("NaN", "Infinity", "-Infinity"):
                instead = "a run writes such a row as diverged" if "rows" in place else "write a finite number or null"
                return line, f"{dotted(place)}: {token} is no JSON; {instead}"
        return 1, "not JSON"

    def _depth(self) -> None:
        level, inner = [self.data], {list, dict}
        for _ in range(DEPTH):
            values = [one.values() if type(one) is dict else one for one in level if type(one) in inner]
            level = [v for many in values if not inner.isdisjoint(map(type, many)) for v in many if type(v) in inner]
            if not level:
                return
        raise RecursionError

    def _characters(self) -> None:
        """Refuse what a terminal or a file cannot take: control characters and halves of characters."""
        plain = self.text.isascii() and not self.text.encode().translate(None, PRINTABLE)
        if "\\u" not in self.text and (plain or not NOT_TEXT.search(self.text)):
            return
        for place, line, token in _places(self.text):
            found = place[-1] if token is None else json.loads(token) if token[0] == '"' else ""
            if isinstance(found, str) and (match := NOT_TEXT.search(found)):
                self._refuse(
                    line,
                    f"{dotted(place) if token else 'a key'}: holds the control character {match[0]!r}; leave it out",
                )


def _constant(token: str) -> NoReturn:
    raise _NoJson


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise _NoJson
    return made


_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{},:]|[^\s\[\]{},:"]+')


def _places(text: str) -> Iterator[tuple[Where, int, str | None]]:
    """(place, line, token) of every value of a JSON text, and (place, line, None) of every key before its value."""
    path: list[str | int] = []
    line, at, key_next = 1, 0, False
    for match in _TOKEN.finditer(text):
        token = match[0]
        line, at = line + text.count("\n", at, match.start()), match.start()
        if token in "]}":
            del path[-1:]
            key_next = False
        elif token == ",":
            key_next = bool(path) and isinstance(path[-1], str)
            if path and isinstance(path[-1], int):
                path[-1] += 1
        elif token == ":":
            key_next = False
        elif key_next:
            path[-1] = json.loads(token)
            yield tuple(path), line, None
        else:
            yield tuple(path), line, token
            if token in "[{":
                path.append("" if token == "{" else 0)
                key_next = token == "{"


def dotted(where: Where) -> str:
    """`rows[3].seed`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in where).removeprefix(".")


def unlike(kind: Any, value: Any) -> str:
    """What to write in place of a setting that is not of the type which its Config annotates; types not known here
    fit.
    """
    if kind is Any or isinstance(kind, str):
        return ""
    if get_origin(kind) in (Union, UnionType):
        found = [unlike(one, value) for one in get_args(kind)]
        return "" if "" in found else " or ".join(dict.fromkeys(found))
    if get_origin(kind) is Literal:
        return "" if value in get_args(kind) else f"one of {', '.join(map(str, get_args(kind)))}"
    if kind in (tuple, list) or get_origin(kind) in (tuple, list, Sequence):
        inner = get_args(kind)[:1]
        fine = type(value) in (list, tuple) and not any(unlike(one, v) for v in value for one in inner)
        return "" if fine else f"a list of {KINDS.get(inner[0], 'values') + 's' if inner else 'values'}"
    fine = {
        int: type(value) is int,
        float: type(value) in (int, float),
        str: type(value) is str,
        bool: type(value) is bool,
        type(None): value is None,
    }.get(kind, True)
    return "" if fine else KINDS[kind]


KINDS = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", type(None): "null"}


def told(value: Any, yaml: bool = False) -> str:
    """`is the text 'x'`, cut short."""
    if value is None:
        return "is empty" if yaml else "is null"
    if isinstance(value, list):
        return "is a list"
    if isinstance(value, dict):
        return "is a mapping" if yaml else "is an object"
    name = {str: "text", bool: "truth value"}.get(type(value), "number")
    shown = repr(value) if abs(value if isinstance(value, int) else 0) < 10**40 else "of many digits"
    return f"is the {name} {shown if len(shown) <= 80 else shown[:77] + '...'}"


def head(file: JsonFile) -> dict[str, Any]:
    """The document, of the schema that this version reads."""
    found = file.data.get("schema") if isinstance(file.data, dict) else None
    if type(found) is not int or found != SCHEMA:
        file.fail((), f"schema {json.dumps(found)[:40]}, this version reads {SCHEMA}")
    return file.data


def placed(file: JsonFile, document: dict[str, Any], paper: str, profile: str) -> None:
    """Refuse a document that is not of the paper and profile whose place it has."""
    for key, own in (("paper", paper), ("profile", profile)):
        if document[key] != own:
            file.fail((key,), f"{told(document[key])} in the place of {own}; bring the file of {paper} at {profile}")
