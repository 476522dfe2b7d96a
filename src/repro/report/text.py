"""Text that others wrote, made safe for a page: TeX, Markdown, links and the header of `method.py`."""

import ast
import html
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

_BOLD = {"A": 0x1D400, "a": 0x1D41A, "0": 0x1D7CE, "Α": 0x1D6A8, "α": 0x1D6C2}
_BOLD_ITALIC = {"A": 0x1D468, "a": 0x1D482, "0": 0x1D7CE, "Α": 0x1D71C, "α": 0x1D736}

_BIG = {"∑", "∏", "⋃", "⋂", "max", "min", "sup", "inf", "lim", "argmax", "argmin", "arg max", "arg min"}
_LIMITS = {"msub": "munder", "msup": "mover", "msubsup": "munderover"}


def _letters(text: str, table: dict[str, int]) -> str:
    """Letters of a mathematical alphabet: browsers honour no `mathvariant` but `normal`."""

    def one(char: str) -> str:
        for first in ("A", "a", "0", "Α", "α"):
            span = 10 if first == "0" else 25 if first in "Αα" else 26
            if 0 <= ord(char) - ord(first) < span:
                return chr(table[first] + ord(char) - ord(first))
        return char

    return "".join(map(one, text))


def mathml(tex: str, *, display: bool = True) -> str:
    """TeX as MathML, which browsers draw without a script; where that fails, the TeX itself, escaped."""
    from latex2mathml.converter import convert_to_element

    source = re.sub(r"\b(aligned|gathered)\b", "split", tex.strip())
    source = re.sub(r"\\arg\b", r"\\operatorname{arg}", source)  # which the converter does not know
    source = re.sub(
        r"\\operatorname\*?\{([^{}]*)\}", lambda m: r"\operatorname{" + m[1].replace(r"\,", " ") + "}", source
    )
    try:
        root = convert_to_element(source, display="block" if display else "inline")
    except Exception:  # the converter raises a dozen kinds of its own, and bare KeyError and IndexError
        root = None
    if root is None or any((node.text or "").startswith("\\") for node in root.iter()):
        tag = "pre" if display else "code"
        return f'<{tag} class="tex">{html.escape(tex.strip())}</{tag}>'
    for node in root.iter():
        if node.text:  # the converter leaves entities for a browser to read; the serialiser escapes what they stand for
            node.text = html.unescape(node.text)
    for node in root.iter():
        for name, value in list(node.attrib.items()):  # \href, \style and \color write what their author likes
            if name != "xmlns" and (name in ("href", "style", "class", "id") or re.search(r"[:;()<>\"']", value)):
                del node.attrib[name]
        kind = node.attrib.get("mathvariant")
        if kind in ("bold", "bold-italic"):
            del node.attrib["mathvariant"]
            node.text = _letters(node.text or "", _BOLD if kind == "bold" else _BOLD_ITALIC)
        first = node[0] if len(node) else None
        if node.tag in _LIMITS and first is not None and first.tag == "mo" and (first.text or "").strip() in _BIG:
            node.tag = _LIMITS[node.tag]  # browsers set these beside the sign again where a formula runs in a line
        letters = list(node)
        if len(letters) > 1 and all(n.tag == "mi" and n.get("mathvariant") == "normal" for n in letters):
            word = ElementTree.Element("mi")  # \mathrm{RMS} is one upright name, not three letters
            word.text = "".join(n.text or "" for n in letters)
            node[:] = [word]
    root.set("alttext", tex.strip())
    return ElementTree.tostring(root, encoding="unicode")


def safe_url(url: str) -> str | None:
    """`url` where a reader may be sent: https, http, mailto, or a place on this site; else None."""
    url = url.strip()
    scheme = re.match(r"([a-zA-Z][a-zA-Z0-9+.-]*):", url)
    if scheme:
        return url if scheme[1].lower() in ("http", "https", "mailto") else None
    return None if url.startswith(("//", "\\")) or any(ord(c) < 32 for c in url) else url


def markdown(source: str, *, top: int = 3) -> str:
    """Markdown as HTML: raw HTML shown as text, pictures as their text, headings from h<top> down, $TeX$ as MathML."""
    import mistune

    class Renderer(mistune.HTMLRenderer):
        shift = 0

        def heading(self, text: str, level: int, **attrs: Any) -> str:
            level = min(6, level + self.shift)
            return f"<h{level}>{text}</h{level}>\n"

        def image(self, text: str, url: str, title: str | None = None) -> str:
            return f"[picture: {text}]"

        def link(self, text: str, url: str, title: str | None = None) -> str:
            target = safe_url(url)
            # A note's link into the repository would lead nowhere from a page that travels alone.
            return f'<a href="{html.escape(target)}">{text}</a>' if target and ":" in target else text

        def table(self, text: str) -> str:
            label = 'tabindex="0" role="region" aria-label="Table from the notes"'
            return f'<div class="scroll" {label}><table>\n{text}</table></div>\n'

        def table_cell(self, text: str, align: str | None = None, head: bool = False) -> str:
            return f'<th scope="col">{text}</th>\n' if head else f"<td>{text}</td>\n"

        def inline_math(self, text: str) -> str:
            return mathml(text, display=False)

        def block_math(self, text: str) -> str:
            return f'<div class="equation">{mathml(text)}</div>\n'

    levels = [len(m) for m in re.findall(r"^(#{1,6}) ", source, re.M)]
    renderer = Renderer(escape=True)
    renderer.shift = top - min(levels, default=1)
    convert: Callable = mistune.create_markdown(renderer=renderer, plugins=["table", "strikethrough", "math"])
    return str(convert(source)).strip()


def coded(line: str) -> str:
    """One line of prose as HTML: names between backticks as code, a true minus sign before numbers."""
    escaped = re.sub(r"(?<![\w.])-(?=\d)", "−", html.escape(line, quote=False))
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escaped)


def linked(line: str) -> str:
    """One line of prose as HTML, its arXiv numbers and issues of GitHub (owner/name#7) as links."""
    line = re.sub(r"arXiv:(\d{4}\.\d{4,5})", r'<a href="https://arxiv.org/abs/\1">arXiv:\1</a>', coded(line))
    issue = r"(?<![\w/.-])([\w.-]+/[\w.-]+)#(\d+)\b"
    return re.sub(issue, r'<a href="https://github.com/\1/issues/\2">\1#\2</a>', line)


def header(method: Path) -> str:
    """The docstring of `method.py`, read without importing it; empty where there is none."""
    try:
        return ast.get_docstring(ast.parse(method.read_text(encoding="utf-8"))) or ""
    except (OSError, SyntaxError):
        return ""


def departures(docstring: str) -> list[tuple[str, str]]:
    """The numbered departures of a header: lines `  D1  text`, each with what is indented below it."""
    found: list[tuple[str, list[str]]] = []
    inside, column = False, 0
    for line in docstring.splitlines():
        if match := re.match(r"(\s*)(D\d+)[.:]?\s+(\S.*)", line):
            found.append((match[2], [match[3].strip()]))
            inside, column = True, len(match[1])
        elif inside and line.strip() and len(line) - len(line.lstrip()) > column:
            found[-1][1].append(line.strip())
        else:
            inside = False
    return [(name, " ".join(lines)) for name, lines in found]
