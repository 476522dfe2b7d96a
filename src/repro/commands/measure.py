"""`repro run`, `plan` and `reproduce`: from a paper to its rows."""

import sys
import time
from typing import Annotated

import typer

from repro.commands import common
from repro.commands.common import All, AsJson, Device, Force, Profile, Slug, Slugs, WithParent, dump, say, table
from repro.errors import ReproError, one_line


def run(
    slugs: Slugs = None,
    every: All = False,
    profile: Profile = None,
    device: Device = None,
    seeds: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=1000,
            help="Take this number of seeds in place of the planned one. With fewer, verdicts are inconclusive; seeds "
            "beyond the plan are not judged.",
        ),
    ] = None,
    engine: Annotated[str, typer.Option(help="Measure with local (this machine) or ray (a cluster).")] = "local",
    address: Annotated[
        str | None,
        typer.Option(help="Join the Ray cluster at host:port, or at auto, in place of one on this machine."),
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(
            min=1, max=999, help="Use this many worker processes; with ray, this many trials at once on a GPU."
        ),
    ] = None,
    force: Force = False,
    minutes: Annotated[
        float | None,
        typer.Option(
            min=0.01,
            max=1e6,
            help="Stop after this many minutes with the trials that are finished; the same command goes on later.",
        ),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line, as units end.")] = False,
    with_parent: WithParent = False,
) -> None:
    """Measure the trials that are missing, and write the rows."""
    from repro.run import engines, measure, plan, progress
    from repro.spec.load import load_params
    from repro.store import Store

    deadline = None if minutes is None else time.monotonic() + 60 * minutes
    root, profile = common.root(), common.profile_of(profile)
    params = load_params(root)
    chosen = common.papers(slugs, every)
    if not every:
        for one in chosen:
            common.needs(one, profile)
    device = measure.resolve_device(device or params.device, profile, here=engine != "ray")
    code, state, jobs = None, root / ".repro", jobs or measure.default_jobs(device)
    with engines.chosen(engine, device, jobs, address) as where:
        for one in chosen:
            if profile not in one.profiles:
                continue
            if deadline is not None and time.monotonic() > deadline:
                say(f"stopped after {minutes:g} minutes before {one.slug}; the same command goes on")
                break
            entry, rows = plan.entry(one, profile, seeds or params.seeds), common.results(one.slug, profile, "rows")
            try:
                document = measure.measure(
                    entry,
                    store=Store(state / "trials"),
                    state=state,
                    device=device,
                    jobs=jobs,
                    force=force,
                    progress=progress.choose(quiet, as_json),
                    results=rows,
                    deadline=deadline,
                    **where,
                )
                measure.write_rows(rows, document)
            except ReproError as error:
                if len(chosen) == 1:
                    raise
                print(one_line(error), file=sys.stderr)
                code = max(code or 0, error.exit_code)
                continue
            if (missing := document["provenance"].get("missing")) and not (quiet or as_json):
                say(f"{one.slug} {profile}: {missing} trials are missing; the same command goes on")
            if (told := document["provenance"].get("git")) and not (quiet or as_json):
                say(f"note: the rows name no commit; {told}")
            seconds, limit = document["provenance"]["seconds"], params.time_limit.get(profile)
            if not (quiet or as_json) and limit and seconds > limit * jobs:
                say(f"note: {one.slug} took {seconds:.0f} s of work; the {profile} profile promises {limit} s")
    if code:
        raise typer.Exit(code)


def plan_trials(slugs: Slugs = None, every: All = False, profile: Profile = None, as_json: AsJson = False) -> None:
    """List the trials of a run, with their cost."""
    from repro.run import plan
    from repro.spec.load import load_params

    profile = common.profile_of(profile)
    chosen = common.papers(slugs, every)
    if not every:
        for one in chosen:
            common.needs(one, profile)
    chosen = [one for one in chosen if profile in one.profiles]
    seeds = load_params(common.root()).seeds
    if as_json:
        return dump(plan.make(chosen, profile, seeds))
    lines, costs = [], []
    for one in chosen:
        for cost in _costs(one, profile, seeds):
            costs.append(cost)
            work = "unknown" if cost.seconds is None else common.duration(cost.seconds)
            path = _path(one.settings(profile, cost.experiment))
            lines.append([one.slug, cost.experiment, str(cost.trials), path, work, cost.basis])
    if not lines:
        return say(f"no paper has a profile {profile}")
    table(["paper", "experiment", "trials", "path", "work", "rate"], lines)
    work = common.duration(sum(cost.seconds or 0.0 for cost in costs))
    unknown = sum(cost.seconds is None for cost in costs)
    say(
        f"{sum(cost.trials for cost in costs)} trials, {work} of work for one process"
        + (f"; {unknown} experiments have no rate yet" if unknown else "")
    )


def _costs(one, profile: str, seeds: int | None) -> list:
    """What each experiment of a paper costs at a profile, from the rows that are stored."""
    from repro.judge import load_rows
    from repro.run import plan

    paths = {p: common.results(one.slug, p, "rows") for p in dict.fromkeys((profile, "cpu", "gpu"))}
    rows = {p: load_rows(path)["rows"] if path.is_file() else [] for p, path in paths.items()}
    return plan.costs(one, profile, rows.__getitem__, seeds)


def _path(setting) -> str:
    """How the trials of an experiment are executed."""
    if setting.exclusive:
        return "exclusive"
    if setting.batched:
        return "batched"
    return f"{setting.ranks} ranks" if setting.ranks else "single"


def reproduce(slug: Slug, profile: Profile = None) -> None:
    """Measure a paper on this machine, and compare with its verdict."""
    from repro.commands import reproduce as steps
    from repro.spec.load import load

    fresh, committed, page = steps.reproduce(slug, common.profile_of(profile), common.root(), say)
    say()
    common.verdict_table(load(slug), fresh, committed, compare=True)
    states = {name: claim["state"] for name, claim in fresh["claims"].items()}
    before = {name: claim["state"] for name, claim in (committed or {"claims": {}})["claims"].items()}
    if committed is None:
        say("\nno verdict of this profile is committed")
    else:
        say(f"\nthis machine and the committed verdict {'agree' if states == before else 'DIFFER'}")
    say(f"report: {page}")
