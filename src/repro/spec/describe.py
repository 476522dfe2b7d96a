"""docs/paper_yaml.md: every key of `paper.yaml`, from the classes of `spec.model` and the texts below their fields."""

import ast
import inspect
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any, Literal, get_args, get_origin

from repro.files.schema import hints, members_of, plain_kind
from repro.spec import model

HEAD = """# The keys of paper.yaml

This page is made by `repro index` from the classes in `src/repro/spec/model.py`. A key without a default must be written.
Every text, number and name is checked when a paper is loaded; a mistake is one line with the file, the line and what to
write instead.

The file begins with the keys of [Paper](#paper); the classes that they name follow. YAML 1.2 holds: `1e-3` is a number,
`on` and `yes` are texts, and tags, anchors, dates and keys that stand twice are refused.
"""

PROFILES = """
## Profiles

`profiles` says how large each experiment is at `smoke` (seconds, never judged), `cpu`, `long`, `gpu` and `paper`. Each
profile holds:

| key | type | meaning | default |
|---|---|---|---|
| `seeds` | whole number, at most 1000 | Number of seeds of every experiment; `tune` takes its own, from 1000 on. | |
| `first_seed` | whole number | First of these seeds; after an extension, one beyond those seen. | `0` |
| `like` | name of a profile | Another profile, of which this one says what differs: experiments, their settings and their factors are merged one by one, and an experiment that is `null` here does not run here. | |
| `about` | text | Remark for readers. | |
| name of an experiment | mapping | Settings of an experiment that runs at this profile; `{}` for none. | |

The settings of an experiment are the fields of its Config dataclass, and these:

| key | type | meaning | default |
|---|---|---|---|
| `seeds`, `first_seed` | whole number | In place of the profile's. | |
| `arms` | list of arms | The arms that run at this profile. | all |
| `factors` | mapping of factor: levels | Levels in place of the experiment's. | |
| `tuning_seeds` | list of whole numbers from 1000 on | Seeds that are measured and not judged. | `[]` |
| `batched` | true or false | All seeds of an arm run as one call, `<experiment>_batch`. | `false` |
| `ranks` | whole number, at most 1024 | Processes that share one trial. | |

## Identities and claims

An identity holds on every row or not at all: it is verified or violated, has no number of seeds and no interval, and is
never the headline. Its rules are of kind `identity`. A claim is reproduced, not reproduced or inconclusive.

## What a name of a trivial predictor means

`unigram`, `bigram` and `trigram` are fitted on the arm's own training text, `linear` and `nearest_neighbour` on its
images or table, `mean` on any target. The rows hold the score as the measure `trivial_<name>`.
"""


TITLES = {model._Rule: "Every rule"}


def markdown() -> str:
    """The whole page."""
    seen = _reached()
    seen.insert(seen.index(model.Identity), model._Rule)
    parts = [HEAD, *map(_section, seen), PROFILES]
    return "\n".join(part.strip("\n") + "\n" for part in parts)


def _classes(kind: Any) -> list[type]:
    bare = plain_kind(kind)
    if is_dataclass(bare):
        return [bare]
    inner = list(members_of(kind).values()) or list(get_args(bare))
    return [cls for one in inner for cls in _classes(one)]


def _section(cls: type) -> str:
    texts, shared = _texts(cls), set()
    about = inspect.getdoc(cls) or ""
    if cls in model.KINDS.values():
        shared = {field.name for field in fields(model._Rule)}
        about += "\n\nIt has the keys of [every rule](#every-rule), and:"
    lines = [f"## {TITLES.get(cls, cls.__name__)}", "", about, "", "| key | type | meaning | default | example |"]
    lines += ["|---|---|---|---|---|"]
    for field in (field for field in fields(cls) if field.name not in shared):
        meaning, _, example = texts.get(field.name, "").partition(" Example: ")
        name, kind = field.name.rstrip("_"), hints(cls)[field.name.rstrip("_")]
        cells = [f"`{name}`", _kind(kind), meaning, _default(field), example]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _texts(cls: type) -> dict[str, str]:
    """The text below each field, of the class and of those that it inherits from."""
    texts: dict[str, str] = {}
    for base in reversed([one for one in cls.__mro__ if is_dataclass(one)]):
        body = ast.parse(inspect.getsource(base)).body[0].body
        for one, after in zip(body, body[1:], strict=False):
            if isinstance(one, ast.AnnAssign) and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
                texts[one.target.id] = " ".join(str(after.value.value).split())
    return texts


def _default(field: Field) -> str:
    value = field.default_factory() if field.default_factory is not MISSING else field.default
    if value is MISSING or value is None:
        return ""
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _kind(kind: Any) -> str:
    """A type in words."""
    members, bare = members_of(kind), plain_kind(kind)
    if _is_rule(kind):
        return "[rule](#every-rule)"
    if members:
        return ", or ".join(dict.fromkeys(map(_kind, members.values())))
    if is_dataclass(bare):
        return f"[{bare.__name__}](#{bare.__name__.lower()})"
    if get_origin(bare) is Literal:
        return ", ".join(f"`{one}`" for one in get_args(bare))
    if get_origin(bare) is list:
        return f"list of {_kind(get_args(bare)[0])}"
    if get_origin(bare) is dict:
        key, value = get_args(bare)
        return f"mapping of {'profile' if get_origin(key) is Literal else 'name'}: {_kind(value)}"
    names = {str: "text", int: "whole number", float: "number", bool: "true or false", Any: "anything"}
    if bare in names:
        return names[bare]
    return "text, number, true or false" if bool in get_args(bare) else "number"


def _is_rule(kind: Any) -> bool:
    return set(members_of(kind)) == {f"<{name}>" for name in model.KINDS}


def unmentioned() -> list[str]:
    """Keys whose meaning no text says."""
    return [
        f"{cls.__name__}.{field.name}" for cls in _reached() for field in fields(cls) if not _texts(cls).get(field.name)
    ]


def _reached() -> list[type]:
    """The classes of a paper, in the order in which they are named."""
    seen: list[type] = [model.Paper]
    for cls in seen:  # grows while it is read
        for kind in hints(cls).values():
            seen += [inner for inner in dict.fromkeys(_classes(kind)) if inner not in seen]
    return seen
