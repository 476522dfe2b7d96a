"""What the values of a file may be: types of pydantic, and its refusals in the suite's own sentences.

Every stored document and every YAML file is checked here.  A leaf names in `Wanted` what to write instead.
"""

import functools
import json
from collections.abc import Callable
from dataclasses import is_dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import Discriminator, Field, Tag, TypeAdapter, ValidationError
from pydantic_core import core_schema
from typing_extensions import get_type_hints, is_typeddict

from repro.errors import choices, did_you_mean
from repro.files.paths import PROFILES
from repro.files.strict import LARGEST, Where, told

OPEN = {"extra": "allow", "strict": True, "allow_inf_nan": False}  # keys that are not known are left alone
CLOSED = {"extra": "forbid", "strict": True, "allow_inf_nan": False}
FIELDS = {**CLOSED, "alias_generator": lambda name: name.rstrip("_")}  # of dataclasses: `as_` is written `as`


class Wanted:
    """What to write in place of a value that does not fit, such as "a whole number from 0 on"."""

    def __init__(self, text: str):
        self.text = text

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        return core_schema.custom_error_schema(
            handler(source), custom_error_type="wanted", custom_error_message=self.text.replace("{", "{{")
        )

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> Any:
        return handler(schema["schema"])


def matching(pattern: str, wanted: str) -> Any:
    """A text that a regular expression matches in full."""
    return Annotated[str, Field(pattern=rf"\A(?:{pattern})\z"), Wanted(wanted)]


def one_of(*names: str) -> Any:
    """One of some texts."""
    return Annotated[Literal[names], Wanted("one of " + ", ".join(names))]


Text = Annotated[str, Wanted("a text")]
Words = Annotated[str, Field(pattern=r"\S"), Wanted("a text that is not empty")]
Truth = Annotated[bool, Wanted("true or false")]
Whole = Annotated[int, Field(ge=0, le=LARGEST), Wanted("a whole number from 0 on")]
Positive = Annotated[int, Field(ge=1, le=LARGEST), Wanted("a whole number from 1 on")]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Number = Annotated[Finite, Wanted("a finite number")]
AboveZero = Annotated[Finite, Field(gt=0), Wanted("a number above 0")]
Cost = Annotated[Finite, Field(ge=0), Wanted("a number of at least 0")]
Share = Annotated[Finite, Field(ge=0, le=1), Wanted("a number from 0 to 1")]
Ends = Annotated[list[Finite | None], Field(min_length=2, max_length=2), Wanted("[low, high]")]
Measured = Annotated[
    Finite | Annotated[list[Finite], Field(min_length=1)], Wanted("a number or a list of finite numbers")
]
Level = Annotated[bool | int | Finite | str, Wanted("a text, a number, true or false")]
Digest = Annotated[str, Field(pattern=r"\Asha256:"), Wanted("a digest, sha256:...")]
ProfileName = one_of(*PROFILES)


def _shape(value: Any) -> str | None:
    names = {str: "<text>", int: "<number>", float: "<number>", list: "<list>", dict: "<mapping>"}
    return names.get(type(value))


def by_shape(wanted: str, **members: Any) -> Any:
    """A union whose member is chosen by what was written: `text`, `number`, `list` or `mapping`."""
    return picked(_shape, wanted, {f"<{name}>": member for name, member in members.items()})


def picked(pick: Callable[[Any], str | None], wanted: str | None, members: dict[str, Any]) -> Any:
    """A union whose member a function picks by name, such as `<list>`; without `wanted` it goes by the key `kind`."""
    union = Union[tuple(Annotated[member, Tag(name)] for name, member in members.items())]  # noqa: UP007
    if wanted is None:
        return Annotated[union, Discriminator(pick)]
    return Annotated[union, Discriminator(pick, custom_error_type="wanted", custom_error_message=wanted)]


@functools.cache
def adapter(kind: Any) -> TypeAdapter:
    """The validator of a kind; it takes a moment to make, so it is kept."""
    return TypeAdapter(kind)


def checked(file: Any, kind: Any, value: Any, where: Where = ()) -> Any:
    """A value that stands in a file at `where`, as a kind; what does not fit is refused in one line with its place."""
    try:
        return adapter(kind).validate_json(json.dumps(value))
    except ValidationError as error:
        refuse(file, kind, error, where)


def whole_file(file: Any, kind: Any) -> None:
    """Check a whole JsonFile."""
    try:
        adapter(kind).validate_json(file.text)
    except ValidationError as error:
        refuse(file, kind, error, ())


def refuse(file: Any, kind: Any, error: ValidationError, where: Where) -> None:
    """Say the first fault of a file in one line: a misspelt key before the missing one."""
    faults = error.errors(include_url=False)
    fault = min(faults, key=lambda one: one["type"].startswith("missing"))
    loc, value, what = fault["loc"], fault["input"], fault["type"]
    place = (*where, *(part for part in loc if not str(part).startswith(("<", "["))))
    mapping, yaml = ("a mapping" if file.YAML else "keys with values"), file.YAML
    if what.startswith("missing"):
        file.fail(place[:-1], f"'{place[-1]}' is missing")
    if what in ("unexpected_keyword_argument", "extra_forbidden"):
        comma = " (a text that holds a comma needs quotes inside { })" if value is None and yaml else ""
        file.fail(place, f"unknown key{did_you_mean(place[-1], keys_of(class_at(kind, loc[:-1])))}{comma}")
    if what.startswith("union_tag") and isinstance(value, dict):
        kinds = [name.strip("<>") for name in members_of(class_at(kind, loc))]
        if "kind" not in value:
            file.fail(place, f"'kind' is missing; write one of {', '.join(kinds)}")
        file.fail((*place, "kind"), f"{told(value['kind'], yaml)}{did_you_mean(value['kind'], kinds)}")
    near = value if isinstance(value, str) else ""
    if what in ("literal_error", "wanted") and loc[-1:] == ("[key]",):
        known = choices(fault["ctx"]["expected"] if "ctx" in fault else fault["msg"].removeprefix("one of "))
        file.fail(place, f"unknown key{did_you_mean(near, known, every=True)}")
    if what == "literal_error" or what == "wanted" and fault["msg"].startswith("one of "):
        known = choices(fault["ctx"]["expected"] if "ctx" in fault else fault["msg"].removeprefix("one of "))
        file.fail(place, f"{told(value, yaml)}{did_you_mean(near, known, every=True)}")
    wanted = {
        "float": "a number",
        "int": "a whole number",
        "bool": "true or false",
        "string": "a text",
        "list": "a list",
        "dict": mapping,
        "dataclass": mapping,
        "model": mapping,
    }.get(what.split("_")[0], fault["msg"] if what == "wanted" else "")
    if wanted == "a text" and isinstance(value, int | float):
        wanted = "it in quotes"
    if not wanted:
        file.fail(place, fault["msg"][0].lower() + fault["msg"][1:])
    file.fail(place, f"{told(value, yaml)}; write {wanted}")


def plain_kind(kind: Any) -> Any:
    """A kind without its annotations, and without "or nothing"."""
    if get_origin(kind) is Annotated or str(get_origin(kind)).endswith("NotRequired"):
        return plain_kind(get_args(kind)[0])
    if get_origin(kind) in (Union, UnionType):
        rest = [one for one in get_args(kind) if one is not NoneType]
        return plain_kind(rest[0]) if len(rest) == 1 else kind
    return kind


def members_of(kind: Any) -> dict[str, Any]:
    """The members of a union by their names, `<text>`; none where a kind is no such union."""
    kind = plain_kind(kind)
    if get_origin(kind) not in (Union, UnionType):
        return {}
    marks = ((mark, one) for one in get_args(kind) for mark in getattr(one, "__metadata__", ()))
    return {mark.tag: one for mark, one in marks if isinstance(mark, Tag)}


@functools.cache
def hints(cls: type) -> dict[str, Any]:
    """The kinds of a class's keys, as they are written."""
    return {name.rstrip("_"): kind for name, kind in get_type_hints(cls, include_extras=True).items()}


def class_at(kind: Any, loc: tuple[str | int, ...]) -> Any:
    """The kind at a place as pydantic names it, with the members of unions among its parts."""
    for part in loc:
        members, bare = members_of(kind), plain_kind(kind)
        if members:
            kind = members[part]
        elif is_dataclass(bare) or is_typeddict(bare):
            kind = hints(bare)[part]
        else:
            kind = get_args(bare)[-1]
    return plain_kind(kind)


def keys_of(kind: Any) -> list[str]:
    """The keys that a class knows."""
    return [name for name in hints(kind) if not name.startswith("__")]
