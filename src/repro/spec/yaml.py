"""YAML 1.2 as plain data that knows its lines."""

import math
import re
import warnings
from pathlib import Path
from typing import Any, NoReturn

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import ScalarNode

from repro.errors import ReproError
from repro.files.strict import NOT_TEXT

Where = tuple[str | int, ...]
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

    def __init__(self, path: Path, shown: str, text: bytes):
        self.path, self.shown = path, shown
        self.lines: dict[Where, int] = {(): 1}
        try:
            decoded = text.decode("utf-8").removeprefix("\ufeff")
            self._plain(decoded)
            with warnings.catch_warnings(action="ignore"):  # of an anchor that stands twice, which is refused below
                root = YAML(typ="safe", pure=True).compose(decoded)
            self.data = None if root is None else self._value(root, ())
        except UnicodeDecodeError as error:
            line = text[: error.start].count(b"\n") + 1
            raise ReproError(f"{shown}:{line}: not UTF-8; save the file as UTF-8") from None
        except MarkedYAMLError as error:
            opened = error.context and (
                "flow" in error.context or "quoted" in error.context
            )  # where the bracket or quote is
            mark = error.context_mark if opened else error.problem_mark or error.context_mark
            problem = " ".join((error.problem or error.context or "not YAML").split())
            hint = next((f"; {hint}" for said, hint in HINTS.items() if said in problem), "")
            raise ReproError(f"{shown}:{mark.line + 1 if mark else 1}: not YAML 1.2: {problem}{hint}") from None
        except (YAMLError, RecursionError) as error:
            what = "nested too deep" if isinstance(error, RecursionError) else " ".join(str(error).split())
            raise ReproError(f"{shown}:1: not YAML 1.2: {what}") from None

    def _plain(self, text: str) -> None:
        """Refuse characters that no text holds, and the directive that asks for another YAML."""
        if match := NOT_TEXT.search(text.replace("\x85", "\n")):
            line = text.count("\n", 0, match.start()) + 1
            raise ReproError(f"{self.shown}:{line}: holds the control character {match[0]!r}; leave it out")
        if match := re.search(r"^%YAML\s+(?!1\.2\s)(\S*)", text, re.M):
            line = text.count("\n", 0, match.start()) + 1
            raise ReproError(
                f"{self.shown}:{line}: asks for YAML {match[1]}, this is read as YAML 1.2; leave the directive out"
            )

    def fail(self, where: Where, message: str) -> NoReturn:
        """Raise the one-line error of a place."""
        line = next(self.lines[where[:n]] for n in range(len(where), -1, -1) if where[:n] in self.lines)
        dotted = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in where).removeprefix(".")
        raise ReproError(" ".join(f"{self.shown}:{line}: {dotted + ': ' if dotted else ''}{message}".split()))

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
                if match := NOT_TEXT.search(key):
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
        if not isinstance(node, ScalarNode):
            self.fail(where, f"'{node.tag}' is not allowed; write a plain text, number, list or mapping")
        if tag == "str":
            if match := NOT_TEXT.search(node.value):
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
