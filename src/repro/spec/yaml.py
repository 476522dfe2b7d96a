"""YAML 1.2 as plain data that knows its lines.

PyYAML's parser in C makes the nodes, with the tags that YAML 1.2 gives them (`1e-3` is a number, `on` a text); what it
cannot read, and what holds an anchor, is read again by ruamel.yaml, which says what is wrong.
"""

import math
import re
import warnings
from pathlib import Path
from typing import Any, NoReturn

import yaml

try:
    from yaml.cyaml import CParser
except ImportError:  # PyYAML without libyaml: everything is read by ruamel.yaml, which is slower
    CParser = None

from repro.errors import ReproError
from repro.files.strict import NOT_TEXT, PRINTABLE, dotted

Where = tuple[str | int, ...]
ANCHOR = re.compile(r"(?:^|[\s\[{,:-])[&*][^\s,\[\]{}]", re.M)
NESTED = re.compile(r"(?:[-?:][ \t]+){20}|^[ \t]{500}", re.M)
PLAIN = [  # (tag, first characters, what matches) of the plain scalars of YAML 1.2 that are no texts
    ("null", "~nN", re.compile(r"~|null|Null|NULL")),
    ("bool", "tTfF", re.compile(r"true|True|TRUE|false|False|FALSE")),
    ("int", "-+0123456789", re.compile(r"[-+]?(?:0b[01_]+|0o?[0-7_]+|[0-9_]+|0x[0-9a-fA-F_]+)")),
    (
        "float",
        "-+0123456789.",
        re.compile(
            r"[-+]?[0-9][0-9_]*(?:\.[0-9_]*)?(?:[eE][-+]?[0-9]+)?"
            r"|[-+]?\.[0-9_]+(?:[eE][-+][0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
        ),
    ),
    (
        "timestamp",
        "0123456789",
        re.compile(
            r"\d{4}-\d\d-\d\d"
            r"|\d{4}-\d\d?-\d\d?(?:[Tt]|[ \t]+)\d\d?:\d\d:\d\d(?:\.\d*)?(?:[ \t]*(?:Z|[-+]\d\d?(?::\d\d)?))?"
        ),
    ),
    ("merge", "<", re.compile("<<")),
    ("value", "=", re.compile("=")),
]
BY_FIRST = {
    first: [(tag, match) for tag, firsts, match in PLAIN if first in firsts] for first in "~nNtTfF-+0123456789.<="
}


class _Loader(CParser or object):
    """libyaml's parser with the tags of YAML 1.2."""

    def descend_resolver(self, parent: Any, index: Any) -> None:
        """Tags do not depend on where a value stands."""

    def ascend_resolver(self) -> None:
        """Nothing to leave."""

    def resolve(self, kind: type, value: Any, implicit: Any) -> str:
        """The tag of a node that names none."""
        if kind is yaml.ScalarNode:
            if implicit[0]:
                if value == "":
                    return "tag:yaml.org,2002:null"
                for tag, match in BY_FIRST.get(value[0], ()):
                    if match.fullmatch(value):
                        return f"tag:yaml.org,2002:{tag}"
            return "tag:yaml.org,2002:str"
        return "tag:yaml.org,2002:" + ("seq" if kind is yaml.SequenceNode else "map")


def _simple(text: str) -> bool:
    """Whether the parser in C may read a text: no anchors, and it cannot nest so deep that C's stack ends."""
    deep = text.count("[") + text.count("{") > 1000 or NESTED.search(text)
    return not deep and not ANCHOR.search(text) and "%YAML" not in text


def compose(text: str) -> Any:
    """The node tree of a YAML 1.2 text."""
    if CParser and _simple(text):
        loader = _Loader(text)
        try:
            return loader.get_single_node()
        except yaml.YAMLError:
            pass  # said below, in better words
        finally:
            loader.dispose()
    from ruamel.yaml import YAML

    with warnings.catch_warnings(action="ignore"):  # of an anchor that stands twice, which is refused later
        return YAML(typ="safe", pure=True).compose(text)


HINTS = {  # what the parser says: what to write
    "mapping values are not allowed": "a text that holds ': ' needs quotes",
    "'\\t' that cannot start": "indent with blanks, not with tabs",
    "that cannot start any token": "a text that begins with this character needs quotes",
    "expected alphabetic or numeric": "a text that begins with this character needs quotes",
    "expected <block end>": "indent it like the lines above",
    "expected ',' or": "close the bracket, or put the text into quotes",
    "unexpected end of stream": "close the quote",
    "undefined alias": "a text that begins with * needs quotes",
    "another document": "leave out what follows ---",
}


class YamlFile:
    """`data` of a YAML 1.2 file and the line of every key and item; `shown` is how messages name the file.

    Read from the node tree: one pass gives values and lines, and tags, anchors and duplicate keys can be refused.
    """

    YAML = True

    def __init__(self, path: Path, shown: str, text: bytes):
        self.path, self.shown = path, shown
        self.lines: dict[Where, int] = {(): 1}
        self.origins: dict[Where, Where] = {}  # of what a profile inherits: where it stands
        try:
            decoded = text.decode("utf-8").removeprefix("\ufeff")
            self._plain(decoded)
            root = compose(decoded)
            self.escapes = "\\" in decoded
            self.data = None if root is None else self._value(root, ())
        except UnicodeDecodeError as error:
            line = text[: error.start].count(b"\n") + 1
            raise ReproError(f"{shown}:{line}: not UTF-8; save the file as UTF-8") from None
        except RecursionError:
            raise ReproError(f"{shown}:1: not YAML 1.2: nested too deep") from None
        except Exception as error:
            if type(error).__module__.split(".")[0] not in ("ruamel", "yaml"):
                raise
            raise ReproError(self._mistake(error)) from None

    def _mistake(self, error: Exception) -> str:
        """What the parser says, as one line with a hint."""
        context, problem = getattr(error, "context", None), getattr(error, "problem", None)
        mark, opened = getattr(error, "problem_mark", None), getattr(error, "context_mark", None)
        if context is None and problem is None and mark is None:
            return f"{self.shown}:1: not YAML 1.2: {' '.join(str(error).split())}"
        if context and ("flow" in context or "quoted" in context):  # where the bracket or quote is
            mark = opened
        mark, said = mark or opened, " ".join((problem or context or "not YAML").split())
        hint = next((f"; {hint}" for part, hint in HINTS.items() if part in said), "")
        return f"{self.shown}:{mark.line + 1 if mark else 1}: not YAML 1.2: {said}{hint}"

    def _plain(self, text: str) -> None:
        """Refuse characters that no text holds, and the directive that asks for another YAML."""
        if text.isascii() and not text.encode().translate(None, PRINTABLE):
            match = None
        else:
            match = NOT_TEXT.search(text.replace("\x85", "\n"))
        if match:
            line = text.count("\n", 0, match.start()) + 1
            raise ReproError(f"{self.shown}:{line}: holds the control character {match[0]!r}; leave it out")
        if match := re.search(r"^%YAML\s+(?!1\.2\s)(\S*)", text, re.M):
            line = text.count("\n", 0, match.start()) + 1
            raise ReproError(
                f"{self.shown}:{line}: asks for YAML {match[1]}, this is read as YAML 1.2; leave the directive out"
            )

    def fail(self, where: Where, message: str) -> NoReturn:
        """Raise the one-line error of a place."""
        named = where[:-1] if where[-1:] == ("?",) else where  # what is wrong with a key names the mapping around it
        place = f"{dotted(named)}: " if named else ""
        raise ReproError(" ".join(f"{self.shown}:{self.line(where)}: {place}{message}".split()))

    def line(self, where: Where) -> int:
        """The line of a place, or of the nearest one around it that the file has."""
        for n in range(len(where), -1, -1):
            if where[:n] in self.lines:
                return self.lines[where[:n]]
            if where[:n] in self.origins:
                return self.line((*self.origins[where[:n]], *where[n:]))
        return 1

    def _value(self, node: Any, where: Where) -> Any:
        self.lines.setdefault(where, node.start_mark.line + 1)
        if getattr(node, "anchor", None):
            self.fail(where, f"anchor &{node.anchor} and its aliases are not allowed; write the value out")
        tag = str(node.tag).removeprefix("tag:yaml.org,2002:")
        if tag == "map":
            out: dict[str, Any] = {}
            for key_node, value_node in node.value:
                line, key = key_node.start_mark.line + 1, key_node.value
                self.lines[(*where, "?")] = line
                if str(key_node.tag) != "tag:yaml.org,2002:str":
                    hint = f"write '{key}' in quotes" if isinstance(key, str) else "this is a list or mapping"
                    self.fail((*where, "?"), f"a key must be a text; {hint}")
                if self.escapes and (match := NOT_TEXT.search(key)):
                    self.fail((*where, "?"), f"holds the control character {match[0]!r}; leave it out")
                if key in out:
                    self.fail(
                        (*where, "?"),
                        f"key '{key}' stands twice, first on line {self.lines[(*where, key)]}; leave one out",
                    )
                self.lines[(*where, key)] = line
                out[key] = self._value(value_node, (*where, key))
            self.lines.pop((*where, "?"), None)
            return out
        if tag == "seq":
            return [self._value(item, (*where, i)) for i, item in enumerate(node.value)]
        if not isinstance(node.value, str):
            self.fail(where, f"'{node.tag}' is not allowed; write a plain text, number, list or mapping")
        if tag == "str":
            if self.escapes and (match := NOT_TEXT.search(node.value)):
                self.fail(where, f"holds the control character {match[0]!r}; leave it out")
            return node.value
        if tag == "null":
            return None
        if tag == "bool":
            return node.value.lower() == "true"
        text = node.value.replace("_", "").lower()
        try:
            if tag == "int":
                return int(text, 0 if text.lstrip("+-")[:2] in ("0x", "0o", "0b") else 10)
            if tag == "float":
                number = float(text.replace(".inf", "inf").replace(".nan", "nan"))
                return number if math.isfinite(number) else self.fail(where, f"is {node.value}; write a finite number")
        except ValueError:
            self.fail(where, f"is '{node.value[:40]}'; write a number")
        if tag == "timestamp":
            self.fail(where, f"is the date {node.value}; write it in quotes")
        self.fail(where, f"'{node.tag}' is not allowed; write a plain text, number, list or mapping")
