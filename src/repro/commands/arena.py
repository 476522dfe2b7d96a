"""`repro arena` and `recommend`: every drop-in method in the same models, and advice from those rows."""

import json
import math
import sys
from typing import Annotated

import typer

from repro.commands import common
from repro.commands.common import AsJson, Device, Force, Profile, WithParent, dump, say, table
from repro.errors import Failed, ReproError
from repro.files.paths import JUDGED
from repro.files.plan import written


def arena(
    track: Annotated[
        str | None, typer.Option(help="Take one track of arena.yaml, in place of all that have the profile.")
    ] = None,
    slot: Annotated[
        list[str] | None, typer.Option(help="Measure this slot of a model alone; write it again for another.")
    ] = None,
    cell: Annotated[
        list[int] | None, typer.Option(help="Measure this cell of the track alone: 1, 2, ... as in arena.yaml.")
    ] = None,
    timings: Annotated[
        bool, typer.Option("--timings/--no-timings", help="Time the steps, for which nothing else may run.")
    ] = True,
    profile: Profile = None,
    device: Device = None,
    jobs: Annotated[int | None, typer.Option(min=1, max=999, help="Use this many worker processes.")] = None,
    force: Force = False,
    check: Annotated[
        bool, typer.Option("--check", help="Fail if a stored table differs from one made of its rows.")
    ] = False,
    judge: Annotated[
        bool, typer.Option("--judge", help="Measure nothing: make the tables from the rows that are there.")
    ] = False,
    refresh: Annotated[
        bool,
        typer.Option(
            "--refresh", help="After an edit, keep the rows of each arm that is proved to compute what it did."
        ),
    ] = False,
    plan: Annotated[
        bool, typer.Option("--plan", help="Print the plan for `python -m repro.arena` on a bare machine.")
    ] = False,
    as_json: AsJson = False,
    with_parent: WithParent = False,
) -> None:
    """Measure every drop-in method in the same models, each tuned, against the tuned base."""
    from repro.arena import protocol
    from repro.arena import table as arena_table
    from repro.run.processes import orderly

    root, profile = common.root(), common.profile_of(profile)
    if sum((check, judge, plan, refresh, force)) > 1:
        raise ReproError("--check, --judge, --refresh, --plan and --force contradict each other; write one of them")
    if refresh and (slot or cell or device or jobs or not timings):
        raise ReproError("--refresh: it looks at all rows of a track; write --track and --profile alone beside it")
    if (check or judge or plan) and (device or jobs or not timings):
        raise ReproError(
            "--device, --jobs and --no-timings: --check, --judge and --plan measure nothing; leave them out"
        )
    if (slot or cell) and (check or judge or not track):
        raise ReproError("--slot and --cell: they say what to measure of one track; write --track too, and no --check")
    names = [track] if track else [name for name, one in protocol.tracks(root).items() if profile in one]
    if not names:
        have = sorted({p for one in protocol.tracks(root).values() for p in one if p in JUDGED}, key=JUDGED.index)
        raise ReproError(f"--profile {profile}: no track of arena.yaml has it; write one of {', '.join(have)}")
    if plan:
        return dump(written({"tracks": [protocol.plan(root, name, profile, slot or (), cell or ()) for name in names]}))
    if check:
        return _check(root, names, profile, as_json)
    tables = []
    for name in names:
        settings = protocol.track_of(root, name, profile)
        if judge:
            rows = protocol.read(root, name, profile, "rows")
            if rows is None:
                path = protocol.path_of(root, name, profile, "rows")
                raise ReproError(f"{path}: no rows yet; run `repro arena --track {name}` first")
            tables.append(arena_table.write_table(root, rows, settings))
        elif refresh:
            with orderly():
                kept = protocol.refreshed(root, name, profile, say if not as_json else lambda text: None)
            tables.append(arena_table.write(root, kept, settings))
        else:
            with orderly():
                parts = protocol.plan(root, name, profile, slot or (), cell or ())
                document = _measure(root, parts, device, jobs, force, timings, as_json)
            tables.append(arena_table.write(root, document, settings))
        if not as_json:
            _arena_table(tables[-1])
    if as_json:
        dump(tables)


def _measure(
    root, parts: dict, device: str | None, jobs: int | None, force: bool, timings: bool, as_json: bool
) -> dict:
    """The rows of a track."""
    from repro.arena import protocol
    from repro.run import measure as running
    from repro.run import progress
    from repro.spec.load import load_params

    where = running.resolve_device(device or load_params(root).device, parts["profile"])
    return protocol.measure(
        parts,
        root,
        device=where,
        jobs=jobs or running.default_jobs(where),
        force=force,
        timings=timings,
        progress=running.Progress(say=lambda text: print(text, file=sys.stderr)) if as_json else progress.choose(),
    )


def _check(root, names: list[str], profile: str, as_json: bool) -> None:
    """Fail if a stored table differs from one made of its rows."""
    from repro.arena import protocol
    from repro.arena import table as arena_table
    from repro.judge import difference

    differing, made = [], []
    for name in names:
        settings, rows = protocol.track_of(root, name, profile), protocol.read(root, name, profile, "rows")
        if rows is None:
            made.append({"track": name, "profile": profile, "holds": None, "why": "not run"})
            continue
        fresh = json.loads(json.dumps(arena_table.table(rows, settings)))
        place = difference(protocol.read(root, name, profile, "table"), fresh)
        differing += [name] if place else []
        why = f"the stored table {f'DIFFERS ({place})' if place else 'holds'}"
        made.append({"track": name, "profile": profile, "holds": not place, "why": why})
    if as_json:
        dump(made)
    for one in () if as_json else made:
        say(f"arena {one['track']} {one['profile']}: {one['why']}")
    if differing:
        raise Failed(
            f"stored tables differ from their rows: {', '.join(differing)}; run `repro arena` and look at the change"
        )


def _arena_table(made: dict) -> None:
    """The comparisons of a track as people read them."""
    from repro.words import levels, number

    say(f"\narena {made['track']} {made['profile']}: {made['what']}; {made['seeds']} seeds, on {made['device']}")
    methods = {one["arm"]: one for one in made["methods"]}
    for cell in made["cells"]:
        say(f"\n{levels(cell['at'])}: the tuned base ends at {number(cell['target'])} ({made['measure']})")
        for slot, one in cell["slots"].items():
            say(f"\n{slot}" + ("" if one["usable"] else f": not usable, because {one['why']}"))
            lines = [_compared(line, methods[line["arm"]]) for line in one["lines"]]
            table(["method", "standing", "to the base", "failed", "rate", "steps", "step"], lines)
        for one in cell["interactions"]:
            gap, low, high = (number(x) for x in one["interaction"])
            say(
                f"{one['norm']} under {one['optimizer']}: {one['standing']} than under the base's optimizer; "
                f"{gap} [{low}, {high}]"
                if one["standing"] != "not told apart"
                else f"{one['norm']} under {one['optimizer']}: not told apart from what it loses under the base's "
                f"optimizer; {gap} [{low}, {high}]"
            )
        for arm, why in cell["same"].items():
            say(f"left out: {arm}: {why}")
    for one in made["absent"]:
        say(f"not measured at {levels(one['at'])}: {', '.join(one['slots'])}")
    for arm, why in made["out"].items():
        say(f"does not fit: {arm}: {why}")


def _compared(line: dict, method: dict) -> list[str]:
    """One line of a comparison."""
    from repro.words import number

    gap, low, high = line["gap"]
    seconds, steps = method["step_seconds"], line["steps_to_target"]
    return [
        line["arm"],
        line["standing"],
        number(gap) if low is None else f"{number(gap)} [{number(low)}, {number(high)}]",
        f"{line['failed']} of {line['n']}",
        f"{line['lr']:g}{' (edge)' if line['edge'] else ''}"
        + (f", decay {line['decay']:.3g}{' (edge)' if line['decay_edge'] else ''}" if len(line["decays"]) > 1 else ""),
        "not reached" if steps is None else f"{steps:g}",
        "" if seconds is None else f"{1000 * seconds:.1f} ms",
    ]


def recommend(
    model: Annotated[str, typer.Option(help="Take a track of the arena: mlp, convnet, vit or gpt.")],
    depth: Annotated[int | None, typer.Option(min=1, help="Give the depth of your model.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Give your batch size.")] = None,
    optimizer: Annotated[
        str | None, typer.Option(help="Give your optimizer, to be told whether the advice holds under it.")
    ] = None,
    margin: Annotated[
        float | None,
        typer.Option(min=0.0, help="Say how much worse than the base is still good, in place of the track's margin."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Name the methods that the arena shows to be as good as the tuned base."""
    from repro.arena import advice, protocol
    from repro.words import levels

    root = common.root()
    if margin is not None and not math.isfinite(margin):
        raise ReproError(f"--margin {margin}: write a finite number from 0 on")
    if model not in protocol.tracks(root):
        raise ReproError(f"--model {model}: no such track; write one of {', '.join(protocol.tracks(root))}")
    made = next((t for p in reversed(JUDGED) if (t := protocol.read(root, model, p, "table"))), None)
    if made is None:
        profile = next(p for p in JUDGED if p in protocol.tracks(root)[model])
        raise Failed(
            f"no evidence: the track {model} has not been run; `repro arena --track {model} --profile {profile}` "
            "measures it in some hours (docs/arena.md)"
        )
    margin = made["margin"] if margin is None else margin
    cell, place = advice.nearest_cell(made, depth, batch)
    if cell is None:
        asked = levels({k: v for k, v in (("depth", depth), ("batch", batch)) if v is not None})
        raise Failed(f"no evidence at {asked}: nothing within a factor of {advice.REACH} of it was measured; {place}")
    if optimizer is not None:
        place = f"{place} {advice.under(cell, optimizer)}"
    chosen = {slot: advice.recommended(one, margin) for slot, one in cell["slots"].items()}
    trials = {m["arm"]: m["trials"] for m in made["methods"]}
    here = {**made["settings"], **cell["at"]}
    absent = [slot for one in made["absent"] if {**made["settings"], **one["at"]} == here for slot in one["slots"]]
    if as_json:
        answer = {"track": model, "profile": made["profile"], "measured_at": here, "about": place}
        why = {slot: one["why"] for slot, one in cell["slots"].items()}
        return dump(
            {
                **answer,
                "margin": margin,
                "measure": made["measure"],
                "methods": chosen,
                "why_not": why,
                "not_measured": absent,
                "trials": trials,
            }
        )
    say(f"Measured: {made['what']}, {levels(here)}, {made['seeds']} seeds, on {made['device']} ({made['profile']}).")
    say(place)
    say(
        f"As good as the tuned base: the {made['level']:.0%} interval of the difference in {made['measure']}, holding "
        f"for all methods of a slot at once, ends below {margin:g}."
    )
    for slot, lines in chosen.items():
        _advice(slot, lines, cell["slots"][slot], trials)
    if absent:
        say(f"\nNot measured here, and so no advice: {', '.join(absent)}.")


def _advice(slot: str, lines: list[dict], compared: dict, trials: dict[str, list[str]]) -> None:
    """Print what is advised for one slot of a model."""
    from repro.words import number

    if not compared["usable"]:
        say(f"\n{slot}: no advice: {compared['why']}")
        return
    say(f"\n{slot}:")
    if [line["arm"] for line in lines] in ([], ["base"]):
        say("  Nothing here is shown to be as good as the base.")
    for line in lines:
        if line["arm"] == "base":
            say(f"  base: {number(line['mean'])}, the reference, tuned like the others")
            continue
        gap, low, high = map(number, line["gap"])
        rate = f"rate {line['lr']:g}" + (", the edge of the grid" if line["edge"] else "")
        decay = f", decay {line['decay']:.3g}" if line.get("decay") is not None else ""
        say(
            f"  {line['arm']}: {line['standing']}; {number(line['mean'])}, {gap} from the base [{low}, {high}], "
            f"n = {line['n']}; at {rate}{decay}; {len(trials[line['arm']])} trials"
        )
    tied = [line["arm"] for line in compared["lines"] if line["standing"] == "not told apart"]
    if tied:
        say(f"  Nothing here tells these apart from the base: {', '.join(tied)}.")
    if empty := [line["arm"] for line in compared["lines"] if line["standing"] == "no better than a control"]:
        say(f"  Not told apart from a method that is wrong on purpose: {', '.join(empty)}.")
