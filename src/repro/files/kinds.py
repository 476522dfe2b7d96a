"""What rows and plans hold, checked where pydantic is installed."""

from typing import Annotated, Any, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

from repro.files.schema import (
    OPEN,
    Cost,
    Digest,
    Level,
    Measured,
    ProfileName,
    Text,
    Truth,
    Wanted,
    Whole,
    Words,
    matching,
    one_of,
)

Ranks = Annotated[int, Field(ge=1, le=1024), Wanted("a whole number from 1 to 1024")]


class Trial(TypedDict):
    """One call of an experiment."""

    __pydantic_config__ = OPEN
    experiment: Words
    arm: Words
    seed: Whole
    factors: dict[str, Level]


class Setting(TypedDict):
    """One experiment of an entry."""

    __pydantic_config__ = OPEN
    module: matching(r"repro(\.\w+)+", "a module of this suite, such as repro.papers.rmsnorm.experiment")
    exclusive: Truth
    batched: Truth
    ranks: NotRequired[Ranks | None]
    arms: list[Words]
    config: dict[str, Any]
    function: NotRequired[Words]


class Tuned(TypedDict):
    """What is tuned in an experiment."""

    __pydantic_config__ = OPEN
    factor: Words
    seeds: list[Whole]
    levels: list[Level]
    start: NotRequired[list[Level]]
    measure: Words
    better: one_of("lower", "higher")


class Entry(TypedDict):
    """A paper at a profile."""

    __pydantic_config__ = OPEN
    paper: matching(r"[a-z][a-z0-9_]{0,59}", "a paper's name of a-z, 0-9 and _, such as rmsnorm")
    profile: ProfileName
    registered: Text
    judged: NotRequired[list[Words]]
    experiments: dict[str, Setting]
    trials: list[Trial]
    tune: NotRequired[dict[str, Tuned]]


class Plan(TypedDict):
    """A plan."""

    __pydantic_config__ = OPEN
    entries: list[Entry]


class Row(TypedDict):
    """What one trial gave."""

    __pydantic_config__ = OPEN
    experiment: Words
    arm: Words
    seed: Whole
    factors: dict[str, Level]
    status: one_of("ok", "diverged", "invalid")
    seconds: Cost
    measures: dict[str, Measured]
    step: NotRequired[Whole | None]
    why: NotRequired[Text]


class Provenance(TypedDict):
    """Where and from what the rows were measured."""

    __pydantic_config__ = OPEN
    digest: Digest
    commit: NotRequired[Text | None]
    dirty: NotRequired[Truth]
    device: NotRequired[Text]
    device_model: NotRequired[Text]
    device_class: NotRequired[Text]
    threads: NotRequired[Whole]
    versions: NotRequired[dict[str, Text]]
    platform: NotRequired[Text]
    started: NotRequired[Text]
    seconds: NotRequired[Cost]
    sources: NotRequired[dict[str, Text]]
    config: NotRequired[dict[str, Text]]
    trials: NotRequired[list[Text]]
    notes: NotRequired[list[Text]]
    missing: NotRequired[Whole]
    git: NotRequired[Text]
    checksum: NotRequired[Digest]


class Rows(TypedDict):
    """All rows of a paper at a profile."""

    __pydantic_config__ = OPEN
    paper: Words
    profile: ProfileName
    provenance: Provenance
    registered: Text
    rows: list[Row]
    out: NotRequired[dict[str, Text]]
