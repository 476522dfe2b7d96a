"""One protocol for all: every drop-in method of the suite in the same model, tuned and trained with the same budget.

Methods are found in `provides:` of every paper.yaml; nothing lists them.  A track (arena.yaml) first tries a grid of
learning rates on tuning seeds, in rungs: the best few of each go on to more steps.  Then each method trains at its best
learning rate on the judged seeds, and again with one setting changed (depth, batch).  Trials lie in the same store as
those of the papers.  `table.py` makes one table per track of the rows, `advice.py` reads it for `repro recommend`.
"""

import difflib
import math
from collections.abc import Iterable
from pathlib import Path
from statistics import fmean
from typing import Any, get_type_hints

from repro.errors import ReproError
from repro.files.paths import PROFILES
from repro.files.strict import told, unlike
from repro.run import measure as run
from repro.spec import load as paper
from repro.store import Store, digest, rows_digest

TUNING = 1000  # the first tuning seed
EXPERIMENT = "repro.experiments.arena"
BASE = "base"  # the model with torch's own layers
CONTROLS = ("norm:control.identity", "norm:control.broken")
Trial = dict[str, Any]


# --- what takes part -------------------------------------------------------------------------------------------------


def _file(root: Path) -> Any:
    path = root / "arena.yaml"
    if not path.is_file():
        raise ReproError(f"{path}: no such file; run from a checkout of the suite")
    from repro.spec.yaml import YamlFile

    return YamlFile(path, "arena.yaml", path.read_bytes())


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
    from repro.experiments.arena import SLOTS, misfit

    arms, out = [], {}
    for slug in paper.slugs():
        for one in paper.load(slug).provides:
            if one.slot in SLOTS[track]:
                arm = f"{one.slot}:{slug}.{one.name}"
                reason = misfit(track, arm)
                if reason is None:
                    arms.append(arm)
                else:
                    out[arm] = reason
    return [BASE, *arms, *CONTROLS], out


# --- what is run -----------------------------------------------------------------------------------------------------


def plan(root: Path, track: str, profile: str) -> dict:
    """Plain data from which `measure` works, also on a machine that has torch and numpy alone."""
    from repro.experiments.arena import SLOTS, Track

    settings = track_of(root, track, profile)
    if track not in SLOTS:
        _file(root).fail((track,), f"is no model of the arena; write one of {', '.join(SLOTS)}")
    kinds = get_type_hints(Track)
    for name, value in settings["settings"].items():
        where = (track, profile, "settings", name)
        if name not in kinds:
            near = difflib.get_close_matches(name, kinds, 1)
            hint = f"did you mean '{near[0]}'?" if near else f"allowed: {', '.join(kinds)}"
            _file(root).fail(where, f"unknown setting; {hint}")
        if wanted := unlike(kinds[name], value):
            _file(root).fail(where, f"{told(value)}; write {wanted}")
    arms, out = entrants(track)
    return {"track": track, "profile": profile, "settings": settings, "arms": arms, "out": out}


def _entry(plan: dict, trials: list[Trial]) -> dict:
    track, settings, arms = plan["track"], plan["settings"], plan["arms"]
    cost = {k: v for k, v in settings["cost"].items() if k != "seeds"}
    model = {k: v for k, v in settings["settings"].items() if k not in ("batch", "depth")}
    return {
        "paper": f"arena-{track}",
        "profile": plan["profile"],
        "registered": digest(settings),
        "experiments": {
            track: {"module": EXPERIMENT, "exclusive": False, "batched": track == "mlp", "arms": arms, "config": model},
            "cost": {
                "module": EXPERIMENT,
                "exclusive": True,
                "batched": False,
                "arms": arms,
                "config": {**settings["settings"], **cost, "track": track, "steps": 1, "lr": 1e-4},
            },
        },
        "trials": sorted(trials, key=lambda trial: trial["seed"]),
    }


def _trials(plan: dict, pairs: Iterable[tuple[str, float]], seeds: Iterable[int], **changed: Any) -> list[Trial]:
    """The trials of (arm, learning rate) pairs with the track's batch and depth, or others."""
    base = {k: plan["settings"]["settings"][k] for k in ("batch", "depth")}
    return [
        {"experiment": plan["track"], "arm": arm, "seed": seed, "factors": {**base, "lr": lr, **changed}}
        for arm, lr in pairs
        for seed in seeds
    ]


def measure(plan: dict, root: Path, *, device: str, jobs: int, force: bool, progress: run.Progress) -> dict:
    """All rows of a track: tuning, judged seeds, changed settings, costs."""
    settings, trials = plan["settings"], []
    store, state = Store(root / ".repro" / "trials"), root / ".repro"

    def measured(more: list[Trial]) -> list[dict]:
        trials.extend(t for t in more if t not in trials)
        return run.measure(
            _entry(plan, more), store=store, state=state, device=device, jobs=jobs, force=force, progress=progress
        )["rows"]

    tuning, final, cost = settings["tuning"], settings["final"], settings["cost"]
    alive = [(arm, lr) for arm in plan["arms"] for lr in tuning["lr"]]
    for steps, keep in tuning["rungs"]:
        rows = measured(_trials(plan, alive, range(TUNING, TUNING + tuning["seeds"]), steps=steps))
        alive = survivors(rows, settings["measure"], keep)
    for cell in [{}, *settings.get("cells", [])]:
        measured(_trials(plan, alive, range(final["seeds"]), **{"steps": final["steps"], **cell}))
    measured(
        [
            {"experiment": "cost", "arm": arm, "seed": seed, "factors": {}}
            for arm in plan["arms"]
            for seed in range(cost["seeds"])
        ]
    )
    quiet = run.Progress(say=lambda text: None)
    document = run.measure(_entry(plan, trials), store=store, state=state, device=device, jobs=jobs, progress=quiet)
    return {**document, "out": plan["out"]}


def survivors(rows: list[dict], measure: str, keep: int) -> list[tuple[str, float]]:
    """Of each arm the `keep` learning rates with the least mean over the tuning seeds; of equals the smaller."""
    scores: dict[str, dict[float, list[float]]] = {}
    for row in rows:
        scores.setdefault(row["arm"], {}).setdefault(row["factors"]["lr"], []).append(loss_of(row, measure))
    return [
        (arm, lr)
        for arm, rates in scores.items()
        for lr in sorted(rates, key=lambda lr, rates=rates: (fmean(rates[lr]), lr))[:keep]
    ]


def loss_of(row: dict, measure: str) -> float:
    return row["measures"].get(measure, math.inf) if row["status"] == "ok" else math.inf


# --- files -----------------------------------------------------------------------------------------------------------


def path_of(root: Path, track: str, profile: str, kind: str) -> Path:
    return root / "arena" / f"{track}.{profile}.{kind}.json"


def read(root: Path, track: str, profile: str, kind: str) -> dict | None:
    """Rows or table of a track; None where it has not been run."""
    path, again = path_of(root, track, profile, kind), f"run `repro arena --track {track} --profile {profile}` again"
    if not path.exists():
        return None
    from repro.files.arena import read_arena_rows, read_table

    if kind == "table":
        return read_table(path, again, paper.shown(path), track, profile)
    found = read_arena_rows(path, again, paper.shown(path), track, profile, track_of(root, track, profile))
    if rows_digest(found["rows"]) != found["provenance"]["digest"]:
        raise ReproError(f"{path}: the rows do not match their digest (edited by hand?); {again}")
    return found
