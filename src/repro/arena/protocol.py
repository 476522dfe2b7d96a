"""One protocol for all: every drop-in method of the suite in the same model, each tuned and trained with one budget.

Methods are found in `provides:` of every paper.yaml; `repro.experiments.arena` adds optimizers and activations that no
paper of the suite brought, and the controls of every slot.  A track (arena.yaml) has cells: a size and a budget each.
In every cell every arm, controls included, tries a grid of learning rates on tuning seeds at the full number of steps;
the grid grows while the best rate lies at its edge.  An optimizer then tries weight decays at its best rate.  Then the
arm trains at its best levels on the judged seeds.  The tuned base is the reference, fixed before anything runs; that of
optimizers is the base's own, AdamW, with its decay tuned as theirs.  An arm that is the base's own model in a cell is
left out of it by name.  Trials lie in the same store as those of the papers.  `table.py` makes one table per track of
the rows, `advice.py` reads it for `repro recommend`.
"""

import functools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, get_type_hints

from repro.errors import ReproError, did_you_mean
from repro.files.paths import PROFILES, row_key
from repro.files.strict import told, unlike
from repro.run import measure as run
from repro.run import tuning
from repro.run.again import differing, keep, same_machine, trace, units_of
from repro.spec import load as paper
from repro.store import Store, digest, rows_digest

TUNING = 1000  # the first tuning seed
EXPERIMENT = "repro.experiments.arena"
BASE = "base"  # the model with torch's own layers
STACKED = "mlp"  # the track whose seeds train in one pass
DECAYED = ("optimizer", "pair")  # slots whose arms tune a weight decay
TUNED = ("lr", "decay")
Trial = dict[str, Any]


def is_control(arm: str) -> bool:
    return ":control." in arm


def slot_of(arm: str) -> str:
    return arm.partition(":")[0]


# --- what takes part -------------------------------------------------------------------------------------------------


def _file(root: Path) -> Any:
    path = root / "arena.yaml"
    if not path.exists():
        raise ReproError(f"{path}: no such file; run from a checkout of the suite")
    from repro.spec.load import yaml_file

    return yaml_file(path, "arena.yaml")


def tracks(root: Path) -> dict[str, dict]:
    """`arena.yaml`: the tracks with their settings."""
    from repro.files.arena import read_tracks

    return read_tracks(_file(root))


def track_of(root: Path, name: str, profile: str) -> dict:
    """The settings of a track, those of the profile among them."""
    known = tracks(root)
    if name not in known:
        raise ReproError(f"--track {name}: no such track; write one of {', '.join(known)}")
    if profile not in known[name]:
        have = [key for key in PROFILES if key in known[name]]
        raise ReproError(f"arena.yaml: track {name} has no profile {profile}; it has {', '.join(have) or 'none'}")
    one = known[name]
    return {**{k: v for k, v in one.items() if k not in PROFILES}, **one[profile]}


def entrants(track: str) -> tuple[list[str], dict[str, str]]:
    """The arms of a track, controls last; and the methods that do not fit it, each with the reason."""
    from repro.experiments.arena import SLOTS, arms_of, misfit

    provided = [f"{one.slot}:{slug}.{one.name}" for slug in paper.slugs() for one in paper.load(slug).provides]
    every = [arm for arm in provided if slot_of(arm) in SLOTS[track]] + arms_of(track)
    reasons = {arm: misfit(track, arm) or (unstacked(arm) if track == STACKED else None) for arm in every}
    out = {arm: reason for arm, reason in reasons.items() if reason is not None}
    return [BASE, *(arm for arm in every if arm not in out)], out


@functools.cache
def unstacked(arm: str) -> str | None:
    """Why several seeds of a norm cannot be trained in one pass, tried on tiny models; None where they can.

    Norms alone keep buffers that a backward pass may change.  Optimizers are trained seed by seed where they must be.
    """
    import torch

    from repro.batched import fit_batched
    from repro.experiments.arena import build, inputs, slots_of, tiny
    from repro.train import generator

    if slot_of(arm) != "norm":
        return None
    slots, config = slots_of(STACKED, arm), tiny(STACKED)
    models = [build(STACKED, slots, config, generator("arena stacked", seed)) for seed in (0, 1)]
    x, y = inputs(config, generator("arena stacked inputs"), torch.device("cpu"))
    try:
        fit_batched(models, (x, y), seeds=[0, 1], steps=2, batch=len(x), lr=1e-3)
    except RuntimeError as error:
        return (
            f"several seeds of it cannot be trained in one pass, as this model is: {str(error).splitlines()[0][:160]}"
        )
    return None


def same_as_base(track: str, arms: Iterable[str], cells: Iterable[dict]) -> list[dict[str, str]]:
    """Per cell the arms that are the base's own model there, each with the reason; nothing is measured of them."""
    from repro.experiments.arena import same_model

    known: dict[tuple[str, int], bool] = {}
    for cell in cells:
        for arm in arms:
            place = arm, cell["depth"]
            if place not in known and not is_control(arm):
                known[place] = same_model(track, *place)
    told_so = "the same model here: it computes what the base computes, before and after training steps"
    return [{arm: told_so for arm in arms if known.get((arm, cell["depth"]))} for cell in cells]


# --- what is run -----------------------------------------------------------------------------------------------------


def plan(root: Path, track: str, profile: str, slots: Iterable[str] = (), cells: Iterable[int] = ()) -> dict:
    """Plain data from which `measure` works, also on a machine that has torch and numpy alone.

    slots: those to measure, beside the base and the contrasts of `calibration`; all where there are none.  The parts of
    pairs are measured with them.
    cells: their places in arena.yaml, from 1 on; all where there are none.
    """
    from repro.experiments.arena import ADAMW, PAIRS, SLOTS, Track

    settings = track_of(root, track, profile)
    if track not in SLOTS:
        _file(root).fail((track,), f"is no model of the arena; write one of {', '.join(SLOTS)}")
    slots = list(slots) or list(SLOTS[track])
    cells = list(cells) or list(range(1, len(settings["cells"]) + 1))
    for slot in slots:
        if slot not in SLOTS[track]:
            raise ReproError(f"--slot {slot}: no slot of the track {track}; write one of {', '.join(SLOTS[track])}")
    for cell in cells:
        if not 1 <= cell <= len(settings["cells"]):
            raise ReproError(f"--cell {cell}: track {track} has the cells 1 to {len(settings['cells'])} at {profile}")
    kinds = get_type_hints(Track)
    for name, value in settings["settings"].items():
        where = (track, profile, "settings", name)
        if name not in kinds:
            _file(root).fail(where, f"unknown setting{did_you_mean(name, kinds)}")
        if wanted := unlike(kinds[name], value):
            _file(root).fail(where, f"{told(value)}; write {wanted}")
    arms, out = entrants(track)
    beside = {contrast[side] for contrast in settings["calibration"] for side in ("better", "worse")}
    beside |= {BASE, *(arm for pair in PAIRS.values() for arm in pair if "pair" in slots)}
    arms = [arm for arm in arms if arm in beside or slot_of(arm) in slots]
    same = same_as_base(track, arms, settings["cells"])
    if settings["tuning"].get("decay"):  # then the base's own optimizer takes part, with its decay tuned
        same = [{arm: why for arm, why in one.items() if arm != ADAMW} for one in same]
    parts = {"slots": [slots if i in cells else [] for i in range(1, len(settings["cells"]) + 1)]}
    return {"track": track, "profile": profile, "settings": settings, "arms": arms, "same": same, "out": out, **parts}


def _place(trial: Trial) -> tuple:
    """Where a trial stands among the rows, in whatever order slots are measured: by seed, base first, controls last."""
    return trial["seed"], trial["arm"] != BASE, is_control(trial["arm"]), trial["arm"]


def _tuning_seeds(settings: dict) -> range:
    return range(TUNING, TUNING + settings["tuning"]["seeds"])


def _entry(plan: dict, trials: list[Trial]) -> dict:
    track, settings, arms = plan["track"], plan["settings"], plan["arms"]
    cost = {k: v for k, v in settings["cost"].items() if k != "seeds"}
    varied = {name for cell in settings["cells"] for name in cell}
    model = {k: v for k, v in settings["settings"].items() if k not in varied}
    timed = {**settings["settings"], **settings["cells"][0], **cost, "track": track, "steps": 1, "lr": 1e-4}
    return {
        "paper": f"arena-{track}",
        "profile": plan["profile"],
        "registered": digest(settings),
        "tune": {track: {"factor": "lr", "seeds": list(_tuning_seeds(settings))}},
        "experiments": {
            track: {
                "module": EXPERIMENT,
                "exclusive": False,
                "batched": track == STACKED,
                "arms": arms,
                "config": model,
            },
            "cost": {"module": EXPERIMENT, "exclusive": True, "batched": False, "arms": arms, "config": timed},
        },
        "trials": sorted(trials, key=_place),
    }


def entry_of(root: Path, document: dict) -> dict:
    """The plan that measures the rows of a track again."""
    track, profile = document["paper"].removeprefix("arena-"), document["profile"]
    trials = [{name: row[name] for name in run.IDENTITY} for row in document["rows"]]
    arms = list(dict.fromkeys(trial["arm"] for trial in trials))
    settings = track_of(root, track, profile)
    return _entry({"track": track, "profile": profile, "settings": settings, "arms": arms}, trials)


def full(settings: dict, cell: dict) -> dict:
    """A cell's own levels, and those of the track that other cells change."""
    varied = dict.fromkeys(name for one in settings["cells"] for name in one)
    return {name: {**settings["settings"], **cell}[name] for name in varied}


def measure(
    plan: dict, root: Path, *, device: str, jobs: int, force: bool, progress: run.Progress, timings: bool = True
) -> dict:
    """The rows of a track: tuning and judged seeds of every cell and slot of the plan, and what a step costs.

    Rows of other cells and slots that lie in the track's file are kept where the present source would measure the same.
    timings: whether to time the steps, which needs a machine that does nothing else.
    """
    settings, trials = plan["settings"], []
    store, state = Store(root / ".repro" / "trials"), root / ".repro"
    quiet = run.Progress(say=lambda text: None)
    earlier = _earlier(plan, root, device)
    options = {"store": store, "state": state, "device": device, "jobs": jobs}
    options["results"] = path_of(root, plan["track"], plan["profile"], "rows")

    def measured(more: list[Trial]) -> list[dict]:
        trials.extend(trial for trial in more if trial not in trials)
        return run.measure(_entry(plan, more), force=force, progress=progress, **options)["rows"]

    def of(cell: dict, levels: Iterable[tuple[str, dict]], seeds: Iterable[int]) -> list[dict]:
        """The rows of arms at levels of what is tuned."""
        at, seeds = full(settings, cell), list(seeds)
        return measured(
            [
                {"experiment": plan["track"], "arm": arm, "seed": seed, "factors": {**at, **tried}}
                for arm, tried in levels
                for seed in seeds
            ]
        )

    def tuned_levels(cell: dict, arms: list[str]) -> list[tuple[str, dict]]:
        """What each arm trains with in a cell: its best rate, and of an optimizer its best decay."""
        at, rows = full(settings, cell), []

        def climb(grids: dict[str, list], level: Callable, wider: Callable) -> None:
            """Measure what grids hold, and what `wider` adds to them while it adds something; 0 is measured already."""
            known: dict[str, list] = {arm: [0.0] for arm in grids}
            for _ in range(settings["tuning"]["extend"] + 1):
                new = [(arm, level(arm, x)) for arm in grids for x in grids[arm] if x not in known[arm]]
                if not new:
                    return
                rows.extend(of(cell, new, _tuning_seeds(settings)))
                known, grids = grids, {arm: wider(arm, grids[arm]) for arm in grids}

        climb(
            {arm: sorted(settings["tuning"]["lr"]) for arm in arms},
            lambda arm, lr: {"lr": lr},
            lambda arm, grid: extended(grid, best_rate(rows, arm, at, settings)),
        )
        rates = {arm: rate_of(best_rate(rows, arm, at, settings)) for arm in arms}
        climb(
            {arm: decays(settings, rates[arm], at["steps"]) for arm in arms if slot_of(arm) in DECAYED},
            lambda arm, decay: {"lr": rates[arm], "decay": decay},
            lambda arm, grid: risen(grid, best_decay(rows, arm, at, settings)),
        )
        return [(arm, best_levels(rows, arm, at, settings)) for arm in arms]

    for cell, same, slots in zip(settings["cells"], plan["same"], plan["slots"], strict=True):
        if not slots:
            continue
        arms = [arm for arm in plan["arms"] if arm not in same]
        of(cell, tuned_levels(cell, arms), range(settings["final"]["seeds"]))
    anew = {_apart(trial) for trial in trials if trial["seed"] < TUNING}
    for trial in earlier["trials"]:
        timed, judged = trial["experiment"] == "cost", trial["seed"] < TUNING
        if trial not in trials and not (timings if timed else judged and _apart(trial) in anew):
            trials.append(trial)
    if timings:  # of all arms side by side, so that they can be compared
        arms, seeds = dict.fromkeys(trial["arm"] for trial in trials), range(settings["cost"]["seeds"])
        measured([{"experiment": "cost", "arm": arm, "seed": seed, "factors": {}} for arm in arms for seed in seeds])
    document = run.measure(_entry(plan, trials), progress=quiet, **options)
    slots = [list(dict.fromkeys(old + new)) for old, new in zip(earlier["slots"], plan["slots"], strict=True)]
    same = [
        {arm: why for arm, why in old.items() if arm not in plan["arms"]} | new
        for old, new in zip(earlier["same"], plan["same"], strict=True)
    ]
    return {**document, "out": plan["out"], "same": same, "slots": slots}


def _apart(trial: Trial) -> tuple:
    """The arm of a trial and its cell, whatever it was tuned to."""
    return trial["arm"], frozenset((k, v) for k, v in trial["factors"].items() if k not in TUNED)


def _earlier(plan: dict, root: Path, device: str) -> dict:
    """What the track's file holds of other runs: trials that the present source would measure alike, and their slots.

    An arm of which a row is out of date is left out, and every slot of a cell that loses an arm.
    """
    cells = [full(plan["settings"], cell) for cell in plan["settings"]["cells"]]
    found = {"trials": [], "slots": [[] for _ in cells], "same": [{} for _ in cells]}
    documents = run.earlier_documents(path_of(root, plan["track"], plan["profile"], "rows"))
    if not documents or not {"slots", "same"} <= documents[0].keys() or len(documents[0]["slots"]) != len(cells):
        return found
    keys = dict(zip(map(row_key, documents[0]["rows"]), documents[0]["provenance"]["trials"], strict=True))
    trials = [{name: row[name] for name in run.IDENTITY} for row in documents[0]["rows"]]
    units = run.units_of(_entry(plan, trials), device, trials=trials)
    stale = {trial["arm"] for unit in units for trial in unit["trials"] if keys[row_key(trial)] != trial["key"]}
    for trial in trials:
        known = not trial["factors"] or {k: v for k, v in trial["factors"].items() if k not in TUNED} in cells
        if known and trial["arm"] not in stale:
            found["trials"].append(trial)
    lost = {slot_of(arm) for arm in stale}
    found["slots"] = [[] if BASE in lost else [s for s in slots if s not in lost] for slots in documents[0]["slots"]]
    return {**found, "same": documents[0]["same"]}


def refreshed(root: Path, track: str, profile: str, say: Callable[[str], None]) -> dict:
    """The rows of a track after an edit, those of an arm kept where it is proved to compute what it did.

    Of each arm that is out of date the first judged seed of every cell is measured again.  Arms that are not equal bit
    for bit lose their rows, and so do times of steps; `measure` takes them anew.
    """
    document, again_command = read(root, track, profile, "rows"), f"run `repro arena --track {track}`"
    if document is None:
        raise ReproError(f"{path_of(root, track, profile, 'rows')}: no rows to refresh; {again_command}")
    device = same_machine(document)
    if device is None:
        raise ReproError(f"{track} {profile}: measured on another torch or device class; refresh it there")
    entry, before = entry_of(root, document), document["provenance"]["trials"]
    units = units_of(entry, document, device)
    keys = {row_key(trial): trial["key"] for unit in units for trial in unit["trials"]}
    pairs = [(row, key, keys.get(row_key(row))) for row, key in zip(document["rows"], before, strict=True)]
    stale = {row["arm"] for row, old, new in pairs if new not in (None, old)}
    if not stale:
        say(f"{track} {profile}: the rows are fresh already")
        return document
    judged = [
        unit for unit in units if {t["arm"] for t in unit["trials"]} & stale and unit["trials"][0]["seed"] < TUNING
    ]
    chosen = trace(judged, {track})
    count = sum(len(unit["trials"]) for unit in chosen)
    say(f"{track} {profile}: measuring {count} trials of {len(stale)} arms again")
    found = differing(chosen, document, root / ".repro")
    for _, line in found:
        say(line)
    lost = {trial["arm"] for trial, _ in found}
    kept = [(row, new) for row, _, new in pairs if new is not None and row["arm"] not in lost]
    same = f"{len(stale - lost)} of {len(stale)} arms compute what they did"
    say(f"{track} {profile}: {same}; the rows of the others are gone")
    out = {slot_of(arm) for arm in lost}
    slots = [[] if BASE in lost else [slot for slot in slots if slot not in out] for slots in document["slots"]]
    note = (
        f"source of the arena changed; {count} trials measured again, those of {len(stale - lost)} arms bitwise equal"
    )
    rows = [row for row, _ in kept]
    left = {**entry, "trials": [{name: row[name] for name in run.IDENTITY} for row in rows]}
    record = {
        **document["provenance"],
        "digest": rows_digest(rows),
        "sources": run.entry_sources({**entry, "experiments": {track: entry["experiments"][track]}}),
        "config": run.entry_configs(left),
        "notes": [*document["provenance"]["notes"], note],
        "trials": [key for _, key in kept],
    }
    document = {**document, "provenance": record, "rows": rows, "slots": slots}
    keep(entry, document, root / ".repro", {"cost"})
    return document


def best_rate(rows: list[dict], arm: str, cell: dict, settings: dict) -> tuning.Chosen:
    """The best learning rate of an arm in a cell on its tuning seeds, among all rates that it tried."""
    own = [
        row
        for row in rows
        if row["arm"] == arm
        and row["experiment"] != "cost"
        and row["seed"] >= TUNING
        and {k: v for k, v in row["factors"].items() if k != "lr"} == cell
    ]
    levels, seeds = sorted({row["factors"]["lr"] for row in own}), sorted({row["seed"] for row in own})
    return tuning.choose(
        own, arm=arm, cell=cell, factor="lr", levels=levels, seeds=seeds, measure=settings["measure"], better="lower"
    )


def best_decay(rows: list[dict], arm: str, cell: dict, settings: dict) -> tuning.Chosen:
    """The best weight decay of an arm at its best rate on its tuning seeds, among all that it tried and 0."""
    at = {**cell, "lr": rate_of(best_rate(rows, arm, cell, settings))}
    own = [
        {**row, "factors": {"decay": 0.0, **row["factors"]}}
        for row in rows
        if row["arm"] == arm
        and row["experiment"] != "cost"
        and row["seed"] >= TUNING
        and {k: v for k, v in row["factors"].items() if k != "decay"} == at
    ]
    levels, seeds = sorted({row["factors"]["decay"] for row in own}), sorted({row["seed"] for row in own})
    return tuning.choose(
        own, arm=arm, cell=at, factor="decay", levels=levels, seeds=seeds, measure=settings["measure"], better="lower"
    )


def best_levels(rows: list[dict], arm: str, cell: dict, settings: dict) -> dict[str, float]:
    """What an arm trains with: its rate, and its decay where that is not 0."""
    decay = best_decay(rows, arm, cell, settings).level
    return {"lr": rate_of(best_rate(rows, arm, cell, settings)), **({"decay": decay} if decay else {})}


def decays(settings: dict, lr: float, steps: int) -> list[float]:
    """0 and the decays that an optimizer tries at its rate: the units of `tuning.decay` over rate times steps.

    A cosine takes about exp(-unit / 2) of a weight that gets no gradient, so that all optimizers try alike shares.
    """
    return [0.0, *(float(f"{unit / (lr * steps):.6g}") for unit in sorted(settings["tuning"].get("decay", ())))]


def risen(grid: list[float], chosen: tuning.Chosen) -> list[float]:
    """The decays with one more beyond the largest where that is the best; as they are where it lies inside, or at 0."""
    at_the_top = len(grid) > 2 and chosen.level == grid[-1]
    return [*grid, float(f"{grid[-1] ** 2 / grid[-2]:.6g}")] if at_the_top else grid


def rate_of(chosen: tuning.Chosen) -> float:
    """The rate to train with: the best one, or the smallest where all diverged."""
    return min(chosen.scores) if chosen.level is None else chosen.level


def extended(grid: list[float], chosen: tuning.Chosen) -> list[float]:
    """The grid with one rate more beyond the edge at which the best rate lies; as it is where it lies inside."""
    if len(grid) < 2:
        return grid
    low, high = grid[0] ** 2 / grid[1], grid[-1] ** 2 / grid[-2]
    if chosen.level is None or chosen.level == grid[0]:  # where all rates diverge only smaller ones can help
        return [float(f"{low:.6g}"), *grid]
    return [*grid, float(f"{high:.6g}")] if chosen.level == grid[-1] else grid


# --- files -----------------------------------------------------------------------------------------------------------


def path_of(root: Path, track: str, profile: str, kind: str) -> Path:
    return root / "arena" / f"{track}.{profile}.{kind}.json"


def read(root: Path, track: str, profile: str, kind: str) -> dict | None:
    """Rows or table of a track; None where it has not been run.

    A table whose rows are missing, or that other rows made, is refused: it would rank on nothing.
    """
    from repro.files.arena import read_arena_rows, read_table

    path, again = path_of(root, track, profile, kind), f"run `repro arena --track {track} --profile {profile}` again"
    if not path.exists():
        return None

    if kind == "table":
        made = read_table(path, again, paper.shown(path), track, profile)
        rows = read(root, track, profile, "rows")
        if rows is None or rows["provenance"]["digest"] != made["rows_digest"]:
            why = "has no rows beside it" if rows is None else "was made of other rows than those beside it"
            raise ReproError(f"{path}: {why}; {again}")
        return made
    settings = track_of(root, track, profile)
    document = read_arena_rows(path, again, paper.shown(path), track, profile, settings)
    if rows_digest(document["rows"]) != document["provenance"]["digest"]:
        raise ReproError(f"{path}: the rows do not match their digest (edited by hand?); {again}")
    return document
