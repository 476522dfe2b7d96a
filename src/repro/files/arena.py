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
ToTen = Annotated[int, Field(ge=0, le=10), Wanted("a whole number from 0 to 10")]
Shares = Annotated[
    list[Annotated[Finite, Field(ge=0, le=1)]], Field(min_length=2, max_length=2), Wanted("[low, high] of a share")
]
Point = Annotated[list[Finite], Field(min_length=4, max_length=4), Wanted("[step, mean, least, greatest]")]


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
    """How every arm finds its learning rate in a cell, and optimizers their weight decay: by grids that grow."""

    __pydantic_config__ = CLOSED
    seeds: Seeds
    lr: list[AboveZero]
    decay: NotRequired[list[AboveZero]]
    extend: ToTen


class Final(TypedDict):
    """What is judged."""

    __pydantic_config__ = CLOSED
    seeds: Seeds


class Cell(TypedDict):
    """A size and a budget, which is a ranking of its own."""

    __pydantic_config__ = CLOSED
    depth: Positive
    batch: Positive
    steps: Positive
    width: NotRequired[Positive]


class Contrast(TypedDict):
    """A difference that is known beforehand; `at` limits it to some cells."""

    __pydantic_config__ = CLOSED
    better: Arm
    worse: Arm
    at: NotRequired[dict[str, Positive]]


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
    settings: dict[str, Level]
    cells: list[Cell]
    cost: Timing


class Basics(TypedDict):
    """What a track measures."""

    __pydantic_config__ = CLOSED
    what: Words
    measure: one_of("valid_nats", "valid_error")
    margin: Cost
    calibration: list[Contrast]


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
    same: list[dict[str, Text]]
    slots: list[list[Name]]
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
        for name in ("same", "slots"):
            if len(track[name]) != len(track["settings"]["cells"]):
                file.fail(("tracks", i, name), "has another length than the cells of the settings")


def _budget(file: Any, where: Where, settings: dict[str, Any]) -> None:
    """What the parts of a budget ask of each other."""
    rates, cells = settings["tuning"]["lr"], settings["cells"]
    if not rates:
        file.fail((*where, "tuning", "lr"), "is empty; write at least one")
    if len(set(rates)) < len(rates):
        file.fail((*where, "tuning", "lr"), "holds a learning rate twice; write each once")
    if not cells:
        file.fail((*where, "cells"), "is empty; write at least one, such as {depth: 4, batch: 16, steps: 100}")
    for i, cell in enumerate(cells):
        if cell in cells[:i]:
            file.fail((*where, "cells", i), "stands twice; write each once")
        if "width" not in cell and "width" not in settings["settings"]:
            file.fail((*where, "cells", i), "has no width, nor have the settings; write one")
    for name in ("depth", "batch", "steps"):
        if name in settings["settings"]:
            file.fail((*where, "settings", name), "is a level of every cell; write it there")


class TrainedFactors(TypedDict):
    """The factors of a trained arm."""

    __pydantic_config__ = OPEN
    depth: Positive
    batch: Positive
    lr: AboveZero
    decay: NotRequired[AboveZero]
    steps: Positive


class TrainedMeasures(TypedDict):
    """What a trained arm measures, beside the measure of the track."""

    __pydantic_config__ = OPEN
    steps: list[Number]
    curve: list[Number]
    best_nats: NotRequired[Number]
    fails_above: NotRequired[Number]
    learns_below: NotRequired[Number]


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


class Left(TypedDict):
    """The arms that do not fit, and per cell those that are the base's own model and the slots that were measured."""

    __pydantic_config__ = OPEN
    out: NotRequired[dict[str, Text]]
    same: NotRequired[list[dict[str, Text]]]
    slots: NotRequired[list[list[Name]]]


def read_arena_rows(
    path: Path, again: str, shown: str, track: str, profile: str, settings: dict[str, Any]
) -> dict[str, Any]:
    """The rows of a track, complete enough for its table."""
    file = JsonFile(path, again, shown)
    document = rows_file.checked(file, (f"arena-{track}", profile))
    checked(file, Origin, document["provenance"], ("provenance",))
    checked(file, Left, {key: document[key] for key in ("out", "same", "slots") if key in document})
    experiment = one_of(track, "cost")
    for i, row in enumerate(document["rows"]):
        where = ("rows", i)
        checked(file, Arm, row["arm"], (*where, "arm"))
        checked(file, experiment, row["experiment"], (*where, "experiment"))
        if row["experiment"] == "cost":
            if row["status"] == "ok":
                checked(file, CostMeasures, row["measures"], (*where, "measures"))
            continue
        checked(file, TrainedFactors, row["factors"], (*where, "factors"))
        if row["status"] == "ok":
            checked(file, TrainedMeasures, row["measures"], (*where, "measures"))
            if settings["measure"] not in row["measures"]:
                file.fail((*where, "measures"), f"'{settings['measure']}' is missing")
            checked(file, Number, row["measures"][settings["measure"]], (*where, "measures", settings["measure"]))
            if len(row["measures"]["steps"]) != len(row["measures"]["curve"]):
                file.fail((*where, "measures", "curve"), "has another length than steps")
    _complete(file, document, settings)
    return document


def _complete(file: JsonFile, document: dict[str, Any], settings: dict[str, Any]) -> None:
    """Refuse rows in which a cell lacks the base, or an arm of a cell its tuning seeds or judged seeds."""
    for name in ("same", "slots"):
        if len(document.get(name, settings["cells"])) != len(settings["cells"]):
            file.fail((name,), "has another length than the cells of arena.yaml")
    measured = document.get("slots", settings["cells"])
    if not any(measured):
        file.fail(("slots",), "names no slot that was measured")
    for cell in (cell for cell, slots in zip(settings["cells"], measured, strict=True) if slots):
        seeds: dict[str, set[bool]] = {}
        tuned: dict[str, set[tuple]] = {}
        for row in document["rows"]:
            if row["experiment"] != "cost" and all(row["factors"].get(k) == v for k, v in cell.items()):
                seeds.setdefault(row["arm"], set()).add(row["seed"] >= 1000)
                if row["seed"] >= 1000:
                    tried = row["factors"]["lr"], row["factors"].get("decay", 0.0)
                    tuned.setdefault(row["arm"], set()).add((row["seed"], tried))
        shown = ", ".join(f"{k} {v}" for k, v in cell.items())
        for arm in dict.fromkeys(("base", *seeds)):
            if seeds.get(arm, set()) != {True, False}:
                file.fail(("rows",), f"lacks tuning seeds or judged seeds of arm {arm} at {shown}")
            known, levels = ({pair[k] for pair in tuned[arm]} for k in (0, 1))
            if len(tuned[arm]) != len(known) * len(levels):
                file.fail(("rows",), f"lacks a tuning seed of arm {arm} at {shown}")


STANDINGS = ("the base", "better", "as good", "not told apart", "worse", "fails", "no better than a control")


class AtRate(TypedDict):
    """An arm at one learning rate, on the tuning seeds."""

    __pydantic_config__ = OPEN
    lr: AboveZero
    mean: Number | None


class AtDecay(TypedDict):
    """An arm at one weight decay and its best rate, on the tuning seeds."""

    __pydantic_config__ = OPEN
    decay: Cost
    mean: Number | None


class Line(TypedDict):
    """An arm against the reference of its slot."""

    __pydantic_config__ = OPEN
    arm: Arm
    control: Truth
    mean: Number
    spread: Number | None
    n: Whole
    failed: Whole
    failures: Shares
    gap: Gap
    rank: Rank
    standing: one_of(*STANDINGS)
    no_better_than: list[Arm]
    lr: AboveZero
    edge: Truth
    tuning: list[AtRate]
    decay: Cost
    decay_edge: Truth
    decays: list[AtDecay]
    tuning_runs: Whole
    best: Number | None
    steps_to_target: Cost | None
    reached: list[Cost | None]
    curve: list[Point]


class Method(TypedDict):
    """What an arm cost, and where it comes from."""

    __pydantic_config__ = OPEN
    arm: Arm
    slot: Text
    control: Truth
    source: one_of("paper", "torch", "pytorch_optimizer", "control")
    trials: list[Text]
    step_seconds: Cost | None
    peak_bytes: Cost | None


class Outcome(TypedDict):
    """Whether a contrast that is known beforehand came out."""

    __pydantic_config__ = OPEN
    better: Arm
    worse: Arm
    ok: Truth
    gap: Number | None


class SlotTable(TypedDict):
    """The arms of one slot."""

    __pydantic_config__ = OPEN
    usable: Truth
    why: Text | None
    reference: Arm
    target: Number
    controls: dict[str, Truth]
    lines: list[Line]


class Interaction(TypedDict):
    """A norm under two optimizers."""

    __pydantic_config__ = OPEN
    arm: Arm
    norm: Arm
    optimizer: Arm
    under_base: Gap
    under_other: Gap
    interaction: Gap
    standing: one_of("loses more", "loses less", "not told apart")


class TableCell(TypedDict):
    """One size and budget."""

    __pydantic_config__ = OPEN
    at: Cell
    target: Number
    fails_above: Number | None
    learns_below: Number | None
    learnt: Truth
    ranks: Truth
    calibration: list[Outcome]
    same: dict[str, Text]
    slots: dict[str, SlotTable]
    interactions: list[Interaction]


class Absent(TypedDict):
    """Slots of a cell that have not been measured."""

    __pydantic_config__ = OPEN
    at: Cell
    slots: list[Name]


class Table(TypedDict):
    """The table of a track at a profile."""

    __pydantic_config__ = OPEN
    track: Name
    profile: ProfileName
    what: Text
    measure: Words
    margin: Cost
    settings: dict[str, Level]
    level: AboveZero
    seeds: Positive
    tuning_seeds: Positive
    rows_digest: Digest
    device: Text
    methods: list[Method]
    out: dict[str, Text]
    absent: list[Absent]
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
            if not found["lines"]:
                file.fail(("cells", i, "slots", slot, "lines"), "is empty; write at least one")
            for k, line in enumerate(found["lines"]):
                if line["arm"] not in known:
                    file.fail(
                        ("cells", i, "slots", slot, "lines", k, "arm"),
                        f"{told(line['arm'])}, which is not among methods",
                    )
    return document
