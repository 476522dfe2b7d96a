"""Tracks (`arena.yaml`), rows and tables (`arena/<track>.<profile>.*.json`) of the arena as files."""

from pathlib import Path
from typing import Annotated, Any, NotRequired

from pydantic import AfterValidator, Field
from typing_extensions import TypedDict

from repro.files import rows as rows_file
from repro.files.paths import PROFILES
from repro.files.schema import (
    CLOSED,
    OPEN,
    AboveZero,
    Cost,
    Digest,
    Finite,
    Level,
    Number,
    Positive,
    ProfileName,
    Text,
    Truth,
    Wanted,
    Whole,
    Words,
    checked,
    matching,
    one_of,
    whole_file,
)
from repro.files.strict import JsonFile, Where, head, told

Name = matching("[a-z][a-z0-9_]{0,59}", "a name of a-z, 0-9 and _, such as mlp")
Arm = matching(r"base|[a-z]+:\w+\.\w+", "base, or an arm such as norm:rmsnorm.RMSNorm")
Seeds = Annotated[int, Field(ge=1, le=1000), Wanted("a whole number from 1 to 1000")]
Count = Annotated[int, Field(ge=1)]
Rung = Annotated[list[Count], Field(min_length=2, max_length=2), Wanted("[steps, how many learning rates go on]")]


def _rising(pair: list[int]) -> list[int]:
    if pair[0] > pair[1]:
        raise ValueError
    return pair


def _both_ends(gap: list[float | None]) -> list[float | None]:
    if (gap[1] is None) != (gap[2] is None):
        raise ValueError
    return gap


Rank = Annotated[
    list[Count], Field(min_length=2, max_length=2), AfterValidator(_rising), Wanted("[best rank, worst rank]")
]
Gap = Annotated[
    list[Finite | None],
    Field(min_length=3, max_length=3),
    AfterValidator(_both_ends),
    Wanted("[difference, low, high] or nulls"),
]


class Tuning(TypedDict):
    """How every arm finds its learning rate: by successive halving on the tuning seeds."""

    __pydantic_config__ = CLOSED
    seeds: Seeds
    lr: list[AboveZero]
    rungs: list[Rung]


class Final(TypedDict):
    """What is judged."""

    __pydantic_config__ = CLOSED
    seeds: Seeds
    steps: Positive


class Model(TypedDict):
    """The model and its data; other settings are those of `experiments/arena.py`."""

    __pydantic_config__ = OPEN
    depth: Positive
    batch: Positive


class Cell(TypedDict):
    """What one further cell of the table changes."""

    __pydantic_config__ = CLOSED
    depth: NotRequired[Positive]
    batch: NotRequired[Positive]
    steps: NotRequired[Positive]


class Timing(TypedDict):
    """How the seconds of a step are measured."""

    __pydantic_config__ = CLOSED
    seeds: Seeds
    blocks: Positive
    calls: Positive
    aa_limit: AboveZero


class Budget(TypedDict):
    """What a track costs at a profile."""

    __pydantic_config__ = CLOSED
    tuning: Tuning
    final: Final
    settings: Model
    cells: NotRequired[list[Cell]]
    cost: Timing


class Basics(TypedDict):
    """What a track measures."""

    __pydantic_config__ = CLOSED
    what: Words
    measure: one_of("valid_nats", "valid_error")
    target: Number
    margin: Cost


class Track(Basics):
    """A track with its budget at each profile."""

    __pydantic_config__ = CLOSED
    smoke: NotRequired[Budget]
    cpu: NotRequired[Budget]
    long: NotRequired[Budget]
    gpu: NotRequired[Budget]
    paper: NotRequired[Budget]


class Resolved(Basics, Budget):
    """A track at one profile."""

    __pydantic_config__ = CLOSED


class PlannedTrack(TypedDict):
    """One track of a plan."""

    __pydantic_config__ = OPEN
    track: Name
    profile: ProfileName
    settings: Resolved
    arms: list[Arm]
    out: NotRequired[dict[str, Text]]


class Plan(TypedDict):
    """A plan of the arena."""

    __pydantic_config__ = OPEN
    tracks: list[PlannedTrack]


def read_tracks(file: Any) -> dict[str, Any]:
    """`arena.yaml` (a YamlFile) as plain data; here a key that is not known is a mistake."""
    checked(file, dict[str, Track], file.data)
    for name, track in file.data.items():
        checked(file, Name, name, (name,))
        if not set(track) & set(PROFILES):
            file.fail((name,), f"has no profile; write its budget under one of {', '.join(PROFILES)}")
        for profile in set(track) & set(PROFILES):
            _budget(file, (name, profile), track[profile])
    return file.data


def check_plan(file: JsonFile) -> None:
    """Refuse a plan of the arena that is incomplete."""
    whole_file(file, Plan)
    for i, track in enumerate(file.data["tracks"]):
        _budget(file, ("tracks", i, "settings"), track["settings"])
        if "base" not in track["arms"]:
            file.fail(("tracks", i, "arms"), "lacks base, the unchanged model")


def _budget(file: Any, where: Where, settings: dict[str, Any]) -> None:
    """What the parts of a budget ask of each other."""
    tuning = settings["tuning"]
    for name, level in settings["settings"].items():
        checked(file, Level, level, (*where, "settings", name))
    for i, cell in enumerate(settings.get("cells", ())):
        if not cell:
            file.fail((*where, "cells", i), "changes nothing; write depth, batch or steps")
    for key in ("lr", "rungs"):
        if not tuning[key]:
            file.fail((*where, "tuning", key), "is empty; write at least one")
    if len(set(tuning["lr"])) < len(tuning["lr"]):
        file.fail((*where, "tuning", "lr"), "holds a learning rate twice; write each once")
    left = len(tuning["lr"])
    for i, (_, keep) in enumerate(tuning["rungs"]):
        if keep > left:
            file.fail((*where, "tuning", "rungs", i), f"keeps {keep} of {left} learning rates; write at most {left}")
        left = keep
    if left != 1:
        file.fail(
            (*where, "tuning", "rungs", len(tuning["rungs"]) - 1), f"keeps {left} learning rates; the last rung keeps 1"
        )


class TrainedFactors(TypedDict):
    """The factors of a trained arm."""

    __pydantic_config__ = OPEN
    depth: Number
    batch: Number
    lr: AboveZero
    steps: Positive


class CostMeasures(TypedDict):
    """What a timing measures."""

    __pydantic_config__ = OPEN
    seconds: Cost
    peak_bytes: Cost


class Origin(TypedDict):
    """What the table takes from the provenance of rows."""

    __pydantic_config__ = OPEN
    device_model: Text
    trials: list[Text]


def read_arena_rows(
    path: Path, again: str, shown: str, track: str, profile: str, settings: dict[str, Any]
) -> dict[str, Any]:
    """The rows of a track, complete enough for its table."""
    file, base = JsonFile(path, again, shown), {k: settings["settings"][k] for k in ("depth", "batch")}
    document = rows_file.checked(file, (f"arena-{track}", profile))
    checked(file, Origin, document["provenance"], ("provenance",))
    experiment = one_of(track, "cost")
    at_base: dict[str, bool] = {}
    for i, row in enumerate(document["rows"]):
        where = ("rows", i)
        checked(file, Arm, row["arm"], (*where, "arm"))
        checked(file, experiment, row["experiment"], (*where, "experiment"))
        if row["experiment"] == "cost":
            if row["status"] == "ok":
                checked(file, CostMeasures, row["measures"], (*where, "measures"))
            continue
        checked(file, TrainedFactors, row["factors"], (*where, "factors"))
        judged = row["seed"] < 1000 and all(
            row["factors"][k] == v for k, v in {**base, "steps": settings["final"]["steps"]}.items()
        )
        at_base[row["arm"]] = at_base.get(row["arm"], False) or judged
        if row["status"] == "ok":
            for name, kind in ((settings["measure"], Number), ("steps", list[Number]), ("curve", list[Number])):
                if name not in row["measures"]:
                    file.fail((*where, "measures"), f"'{name}' is missing")
                checked(file, kind, row["measures"][name], (*where, "measures", name))
            if len(row["measures"]["steps"]) != len(row["measures"]["curve"]):
                file.fail((*where, "measures", "curve"), "has another length than steps")
    missing = next((arm for arm in ("base", *at_base) if not at_base.get(arm)), None)
    if missing:
        told_base = ", ".join(f"{k} {v}" for k, v in base.items())
        file.fail(("rows",), f"no row of arm {missing} at {told_base} and {settings['final']['steps']} steps")
    return document


class Line(TypedDict):
    """An arm's place in a ranking."""

    __pydantic_config__ = OPEN
    arm: Arm
    mean: Number
    spread: NotRequired[Number | None]
    error: Number | None
    n: Whole
    diverged: Whole
    rank: Rank
    gap: Gap


class AtRate(TypedDict):
    """An arm at one learning rate."""

    __pydantic_config__ = OPEN
    lr: AboveZero
    mean: Number | None
    diverged: Cost


class Method(TypedDict):
    """What an arm reached and cost."""

    __pydantic_config__ = OPEN
    arm: Arm
    slot: Text
    control: Truth
    lr: AboveZero
    trials: list[Text]
    depths: list[Positive]
    sensitivity: list[AtRate]
    largest_stable_lr: AboveZero | None
    steps_to_target: Cost | None
    seconds_to_target: Cost | None
    step_seconds: Cost | None
    peak_bytes: Cost | None
    fails_at_depth: Positive | None


class Discriminates(TypedDict):
    """Whether the slot tells its controls from its best arm."""

    __pydantic_config__ = OPEN
    ok: Truth
    best: Text
    worse: dict[str, Truth]


class SlotRanking(TypedDict):
    """The arms of one slot."""

    __pydantic_config__ = OPEN
    discriminates: Discriminates | None
    ranking: list[Line]


class TableCell(TypedDict):
    """The rankings where some settings are changed."""

    __pydantic_config__ = OPEN
    changed: dict[str, Positive]
    slots: dict[str, SlotRanking]


class Table(TypedDict):
    """The table of a track at a profile."""

    __pydantic_config__ = OPEN
    track: Name
    profile: ProfileName
    what: Text
    measure: Words
    target: Number
    margin: Cost
    settings: Model
    level: AboveZero
    seeds: Positive
    steps: Positive
    rows_digest: Digest
    device: Text
    methods: list[Method]
    out: dict[str, Text]
    cells: list[TableCell]


def read_table(path: Path, again: str, shown: str, track: str, profile: str) -> dict[str, Any]:
    """The table of a track."""
    file = JsonFile(path, again, shown)
    document = head(file)
    whole_file(file, Table)
    for key, own in (("track", track), ("profile", profile)):
        if document[key] != own:
            file.fail((key,), f"{told(document[key])} in the place of {own}; bring the table of {track} at {profile}")
    if not document["cells"]:
        file.fail(("cells",), "is empty; write at least one")
    known = {method["arm"] for method in document["methods"]}
    for i, cell in enumerate(document["cells"]):
        for slot, found in cell["slots"].items():
            if not found["ranking"]:
                file.fail(("cells", i, "slots", slot, "ranking"), "is empty; write at least one")
            for k, line in enumerate(found["ranking"]):
                if line["arm"] not in known:
                    file.fail(
                        ("cells", i, "slots", slot, "ranking", k, "arm"),
                        f"{told(line['arm'])}, which is not among methods",
                    )
    return document
