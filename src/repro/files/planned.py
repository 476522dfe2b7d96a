"""What a plan holds, checked where pydantic is installed."""

from typing import Annotated, Any, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

from repro.files.schema import OPEN, Level, ProfileName, Text, Truth, Wanted, Whole, Words, matching, one_of

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
    function: NotRequired[Words]
    module: matching(r"repro(\.\w+)+", "a module of this suite, such as repro.papers.rmsnorm.experiment")
    exclusive: Truth
    batched: Truth
    ranks: NotRequired[Ranks | None]
    arms: list[Words]
    config: dict[str, Any]


class Tuned(TypedDict):
    """How the arms of an experiment are tuned."""

    __pydantic_config__ = OPEN
    factor: Words
    seeds: list[Whole]
    levels: list[Level]
    measure: Words
    better: one_of("lower", "higher")


class Entry(TypedDict):
    """A paper at a profile."""

    __pydantic_config__ = OPEN
    paper: matching(r"[a-z][a-z0-9_]{0,59}", "a paper's name of a-z, 0-9 and _, such as rmsnorm")
    profile: ProfileName
    registered: Text
    experiments: dict[str, Setting]
    tune: NotRequired[dict[str, Tuned]]
    trials: list[Trial]


class Plan(TypedDict):
    """A plan."""

    __pydantic_config__ = OPEN
    entries: list[Entry]
