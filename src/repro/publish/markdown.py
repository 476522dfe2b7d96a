"""Texts of strangers in generated Markdown: escaped, so that they read as they were written."""

import re

_SPECIAL = re.compile(r"([\\`*_\[\]|~$])")
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
_URL = re.compile(r"https?://[^\s<>()\[\]\"'`\\|]+")


def escape(text: object) -> str:
    """A text on one line that Markdown shows as it stands: no tag, no link, no column, no heading, no list."""
    line = " ".join(str(text).split())
    line = "".join(_ENTITIES.get(c, c) for c in line)
    line = _SPECIAL.sub(r"\\\1", line)
    line = re.sub(r"^(?=[-+#=])", r"\\", line)
    return re.sub(r"^(\d+)([.)])(?=\s|$)", r"\1\\\2", line)


def code(text: object) -> str:
    """A name between backticks; what would end them is left out."""
    return f"`{' '.join(str(text).replace('`', '').replace('|', '').split())}`"


def link(address: str | None) -> str:
    """An address as a link, where it is one; else as text."""
    if not address:
        return ""
    return f"<{address}>" if _URL.fullmatch(address) else escape(address)


def short(text: object, most: int) -> str:
    """The beginning of a text, cut between words."""
    line = " ".join(str(text).split())
    return line if len(line) <= most else line[: most - 1].rsplit(" ", 1)[0].rstrip(",;:") + " …"
