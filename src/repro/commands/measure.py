"""`repro run`, `tune`, `rehearse`, `plan` and `reproduce`: from a paper to its rows."""

import sys
import time
from typing import Annotated

import typer

from repro.commands import common
from repro.commands.common import All, AsJson, Device, Force, Profile, Slug, Slugs, WithParent, dump, say, table
from repro.errors import Failed, ReproError


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
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line, as units end.")] = False,
    minutes: Annotated[
        float | None,
        typer.Option(min=0.01, max=1e6, help="Stop after so many minutes with what is finished; run again to go on."),
    ] = None,
    with_parent: WithParent = False,
) -> None:
    """Measure the trials that are missing, and write the rows."""
    from repro.publish import index
    from repro.run import engines, measure, plan, progress
    from repro.run.processes import orderly
    from repro.spec.load import load_params
    from repro.store import Store

    root, profile, faults = common.root(), common.profile_of(profile), common.Faults()
    if quiet and as_json:
        raise ReproError("--quiet and --json contradict each other; write one of the two")
    if engine == "local" and address:
        raise ReproError("--address is of a Ray cluster; write --engine ray as well")
    if engine == "ray" and minutes:
        raise ReproError("--minutes is not offered with --engine ray; submit the job with a time limit instead")
    params = load_params(root)
    chosen = common.papers(slugs, every, faults)
    if not every:
        for one in chosen:
            common.needs(one, profile)
    elif not (quiet or as_json or any(profile in one.profiles for one in chosen)):
        say(f"no paper has a profile {profile}")
    device = measure.resolve_device(device or params.device, profile, here=engine != "ray")
    state, jobs = root / ".repro", jobs or measure.default_jobs(device)
    deadline = None if minutes is None else time.monotonic() + 60 * minutes
    with orderly(), engines.chosen(engine, device, jobs, address) as where:
        for one in chosen:
            if profile not in one.profiles:
                continue
            if deadline is not None and time.monotonic() > deadline:
                say(f"stopped after {minutes:g} minutes, before {one.slug}; the same command goes on")
                break
            entry = plan.entry(one, profile, seeds or params.seeds)
            path = common.results(one.slug, profile, "rows")
            try:
                index.current_package(root, one.slug)
                document = measure.measure(
                    entry,
                    store=Store(state / "trials"),
                    state=state,
                    device=device,
                    jobs=jobs,
                    force=force,
                    progress=progress.choose(quiet, as_json),
                    results=path,
                    deadline=deadline,
                    **where,
                )
                measure.write_rows(path, document)
            except ReproError as error:
                if len(chosen) == 1:
                    raise
                faults.add(error)
                continue
            seconds, limit = document["provenance"]["seconds"], params.time_limit.get(profile)
            if quiet or as_json:
                continue
            if missing := document["provenance"].get("missing"):
                say(f"{one.slug} {profile}: {missing} trials are still to be measured; run the same command again")
            if refusal := document["provenance"].get("git"):
                say(f"note: the rows name no commit; {refusal}")
            if limit and seconds > limit * jobs:
                say(f"note: {one.slug} took {seconds:.0f} s of work; the {profile} profile promises {limit} s")
    faults.end()


def tune(
    slugs: Slugs = None,
    every: All = False,
    profile: Profile = None,
    device: Device = None,
    jobs: Annotated[int | None, typer.Option(min=1, max=999, help="Use this many worker processes.")] = None,
    as_json: AsJson = False,
) -> None:
    """Measure the tuning seeds alone, and show the level that each arm gets."""
    from repro.commands import tuning
    from repro.run.processes import orderly

    faults, lines = common.Faults(), []
    profile = common.profile_of(profile)
    with orderly():
        for one in common.papers(slugs, every, faults):
            if every and profile not in one.profiles:
                continue
            common.needs(one, profile)
            lines += tuning.tune(one, profile, common.root(), device, jobs, quiet=as_json)
    if as_json:
        dump(lines)
    elif lines:
        table(tuning.HEAD, [tuning.line(one) for one in lines])
    else:
        say("no experiment of these papers is tuned at this profile")
    faults.end()


def rehearse(
    slugs: Slugs = None,
    every: All = False,
    profile: Annotated[str, typer.Option(help="Rehearse the profile gpu or paper.")] = "gpu",
    device: Annotated[
        str, typer.Option(help="Take cpu, or meta, which passes for a GPU and finds tensors left on the CPU.")
    ] = "cpu",
    as_json: AsJson = False,
) -> None:
    """Build every arm of a large profile and take two steps on this machine.

    Shapes, names, settings, parameter counts, memory and cost are right before a GPU is paid for.
    """
    if device not in ("cpu", "meta"):
        raise ReproError(f"--device {device}: write cpu or meta")
    try:
        from repro.run import rehearse as rehearsal
    except ImportError:
        raise Failed("this checkout has no rehearsal (src/repro/run/rehearse.py)") from None
    faults, lines, profile = common.Faults(), [], common.profile_of(profile)
    chosen = [one for one in common.papers(slugs, every, faults) if not every or profile in one.profiles]
    for i, one in enumerate(chosen, 1):
        common.needs(one, profile)
        if len(chosen) > 1:
            print(f"[{i}/{len(chosen)}] {one.slug}", file=sys.stderr, flush=True)
        try:
            lines += rehearsal.rehearse(one, profile, device)
        except ReproError as error:
            faults.add(error)
    if as_json:
        dump(lines)
    else:
        table(rehearsal.HEAD, [rehearsal.line(one) for one in lines])
    faults.end()
    if failed := [f"{one['paper']} {one['arm']}" for one in lines if one["status"] == "failed"]:
        raise Failed(f"{len(failed)} of {len(lines)} arms failed, first {failed[0]}")


def plan_trials(slugs: Slugs = None, every: All = False, profile: Profile = None, as_json: AsJson = False) -> None:
    """List the trials of a run, with their cost."""
    from repro.run import plan
    from repro.spec.load import load_params

    profile, faults = common.profile_of(profile), common.Faults()
    chosen = common.papers(slugs, every, faults)
    if not every:
        for one in chosen:
            common.needs(one, profile)
    chosen = [one for one in chosen if profile in one.profiles]
    seeds = load_params(common.root()).seeds
    if as_json:
        dump(plan.make(chosen, profile, seeds))
        return faults.end()
    lines, costs = [], []
    for one in chosen:
        try:
            own = _costs(one, profile, seeds)
        except ReproError as error:
            if len(chosen) == 1:
                raise
            faults.add(error)
            continue
        for cost in own:
            costs.append(cost)
            work = "unknown" if cost.seconds is None else common.duration(cost.seconds)
            work += " of a GPU" if cost.of == "gpu" and cost.seconds is not None else ""
            path = _path(one.settings(profile, cost.experiment))
            lines.append([one.slug, cost.experiment, str(cost.trials), path, work, cost.basis])
    if not lines:
        say(f"no paper has a profile {profile}" if not chosen else f"no paper's cost at profile {profile} can be read")
        return faults.end()
    table(["paper", "experiment", "trials", "path", "work", "rate"], lines)
    say(_total(costs))
    faults.end()


def _total(costs: list) -> str:
    """The sum of the costs in one line; what is unknown is not counted as nothing."""
    trials, unknown = sum(cost.trials for cost in costs), sum(cost.seconds is None for cost in costs)
    if unknown == len(costs):
        return f"{trials} trials, of which no cost is known"
    work = common.duration(sum(cost.seconds or 0.0 for cost in costs))
    told = f"{trials} trials, {work} of work for one {'GPU' if costs[0].of == 'gpu' else 'process'}"
    return told + (f", and {unknown} of {len(costs)} experiments whose cost is unknown" if unknown else "")


def _costs(one, profile: str, seeds: int | None) -> list:
    """What each experiment of a paper costs at a profile, from the rows that are stored."""
    from repro.judge import load_rows
    from repro.run import plan, rehearse

    paths = {p: common.results(one.slug, p, "rows") for p in dict.fromkeys((profile, "long", "cpu"))}
    rows = {p: load_rows(path)["rows"] if path.is_file() else [] for p, path in paths.items()}
    rehearsed = rehearse.read(common.root() / ".repro", one.slug, profile)
    return plan.costs(one, profile, lambda p: rows.get(p, []), seeds, rehearsed)


def _path(setting) -> str:
    """How the trials of an experiment are executed."""
    if setting.exclusive:
        return "exclusive"
    if setting.batched:
        return "batched"
    return f"{setting.ranks} ranks" if setting.ranks else "single"


def reproduce(
    slug: Slug,
    profile: Profile = None,
    device: Device = None,
    jobs: Annotated[int | None, typer.Option(min=1, max=999, help="Use this many worker processes.")] = None,
    page: Annotated[bool, typer.Option("--page/--no-page", help="Render the page of these results.")] = True,
    as_json: AsJson = False,
) -> None:
    """Measure a paper on this machine, and compare with its verdict.

    Everything is kept apart, under .repro/here: what is committed stays as it is.
    """
    from repro.commands import reproduce as steps
    from repro.run.processes import orderly

    print_line = (lambda text="": print(text, file=sys.stderr, flush=True)) if as_json else say
    with orderly():
        done = steps.reproduce(slug, common.profile_of(profile), common.root(), print_line, device, jobs, page)
    if as_json:
        return dump(done.plain())
    say()
    table(["claim (* headline)", "here", "committed", ""], [one.cells() for one in done.compared])
    for one in done.compared:
        if one.why:
            common.paragraph(f"{one.name}: {one.why}", "  ", "    ")
    say()
    say(done.summary())
    say(f"rows: {done.rows}")
    say(f"verdict: {done.verdict}")
    if done.page:
        say(f"page: {done.page}")
