"""The templates beside this file: each macro gives one part of a page."""

import functools
import json
from pathlib import Path
from typing import Any

from repro import words
from repro.report import text

HERE = Path(__file__).parent
ROLES = {
    "method": "the method",
    "against": "compared with",
    "control": "negative control",
    "positive": "known-good arm",
}


class Fragment(str):
    """A piece of HTML that a notebook shows as such."""

    def _repr_html_(self) -> str:
        return str(self)


@functools.cache
def _environment() -> Any:
    import jinja2
    from markupsafe import Markup

    env = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.filters |= {
        "number": words.number,
        "percent": words.percent,
        "seconds": words.seconds,
        "exact": json.dumps,
        "whole": lambda value: int(value) if value == int(value) else value,
        "rate": words.rate,
        "is_count": words.is_count,
        "sign": lambda state: words.SIGNS.get(state, "–"),
        "state": lambda state: words.STATES.get(state, state),
        "role": ROLES.__getitem__,
        "mathml": lambda tex: Markup(text.mathml(tex)),
        "linked": lambda text_: Markup(text.linked(text_)),
        "coded": lambda text_: Markup(text.coded(text_)),
        "markdown": lambda source: Markup(text.markdown(source)),
        "drawn": Markup,  # of figures alone: they escape what they write
    }
    return env


def part(template: str, name: str, values: Any) -> Fragment:
    """One macro of a template beside this file."""
    macro = getattr(_environment().get_template(template).module, name)
    return Fragment("\n".join(line for line in str(macro(values)).splitlines() if line.strip()))
