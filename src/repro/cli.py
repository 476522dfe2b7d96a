"""The `repro` command.  Every command imports what it needs when it is called: `repro list` starts no torch."""

import json
import math
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from repro.errors import Failed, ReproError, one_line

PROFILES = ("smoke", "cpu", "gpu", "paper")
app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Reference implementations of deep-network methods, each with a verdict.",
)
data_app = typer.Typer(no_args_is_help=True, help="Data sets: what there is, where it comes from, checksums.")
app.add_typer(data_app, name="data")

Slugs = Annotated[list[str] | None, typer.Argument(metavar="SLUG...", help="papers, such as rmsnorm")]
Slug = Annotated[str, typer.Argument(metavar="SLUG", help="a paper, such as rmsnorm")]
All = Annotated[bool, typer.Option("--all", help="every paper")]
Profile = Annotated[str | None, typer.Option(help="smoke, cpu, gpu or paper (default: params.yaml)")]
AsJson = Annotated[bool, typer.Option("--json", help="for programs")]


def _end_with_parent(wanted: bool) -> None:
    if wanted:
        from repro.run.engines.worker import die_with_parent

        die_with_parent()


# Stages of DVC ask for it: a stage that outlives a killed DVC would write beside the next one.
WithParent = Annotated[
    bool,
    typer.Option(
        "--with-parent", help="end when the process that started this one ends", hidden=True, callback=_end_with_parent
    ),
]


def _say(text: str = "") -> None:
    print(text, flush=True)


def _dump(value: object) -> None:
    _say(json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False))


def _root() -> Path:
    from repro.run import provenance

    root = provenance.root()
    if not (root / "params.yaml").is_file():
        raise ReproError(
            f"{root}: no checkout of this suite (no params.yaml); clone the repository and run this inside it"
        )
    return root


def _profile(given: str | None) -> str:
    from repro.spec import paper

    profile = paper.load_params(_root()).profile if given is None else given
    if profile not in PROFILES:
        import difflib

        near = difflib.get_close_matches(profile, PROFILES, 1)
        hint = f"did you mean {near[0]}?" if near else f"write one of {', '.join(PROFILES)}"
        raise ReproError(f"--profile {profile}: unknown profile; {hint}")
    return profile


def _papers(slugs: list[str] | None, every: bool) -> list:
    from repro.spec import paper

    if not slugs and not every:
        raise ReproError("which papers? name them, such as `rmsnorm`, or write --all")
    return [paper.load(slug) for slug in (paper.slugs() if every else dict.fromkeys(slugs or ()))]


def _needs(paper, profile: str) -> None:
    if profile not in paper.profiles:
        raise ReproError(
            f"papers/{paper.slug}/paper.yaml: has no profile {profile}; it has {', '.join(paper.profiles)}"
        )


def _results(slug: str, profile: str, kind: str) -> Path:
    if profile == "smoke":  # seconds, for tests, never judged: kept apart from what is committed
        return _root() / ".repro" / "smoke" / slug / f"{kind}.json"
    return _root() / "papers" / slug / "results" / f"{profile}.{kind}.json"


@app.command("list")
def list_papers(
    family: Annotated[str | None, typer.Option(help="only this family")] = None,
    verdict: Annotated[str | None, typer.Option(help="only with this headline verdict in some profile")] = None,
    as_json: AsJson = False,
) -> None:
    """Every paper: title, family, headline, verdict per profile."""
    from repro.publish import index
    from repro.spec import paper

    allowed = ("reproduced", "not_reproduced", "inconclusive", "not_run")
    if verdict is not None and verdict.replace(" ", "_") not in allowed:
        raise ReproError(f"--verdict {verdict}: unknown verdict; write one of {', '.join(allowed)}")
    found = []
    for slug in paper.slugs():
        one = paper.load(slug)
        states = {}
        for profile in ("cpu", "gpu", "paper"):
            if profile in one.profiles:
                stored = index.read_verdict(slug, profile)
                head = stored["claims"].get(stored["headline"]) if stored else None
                states[profile] = head["state"] if head else "not_run"
        row = {
            "slug": slug,
            "title": one.title,
            "year": one.year,
            "family": one.family,
            "withdrawn": one.withdrawn,
            "headline": {p: one.headline_for(p) for p in states},
            "verdicts": states,
        }
        if (family is None or one.family == family) and (
            verdict is None or verdict.replace(" ", "_") in states.values()
        ):
            found.append(row)
    if family is not None and family not in paper.FAMILIES:
        raise ReproError(f"--family {family}: unknown family; write one of {', '.join(paper.FAMILIES)}")
    if as_json:
        return _dump(found)
    _table(
        ["paper", "title", "family", "headline", "cpu", "gpu"],
        [
            [
                r["slug"] + " (withdrawn)" * bool(r["withdrawn"]),
                r["title"],
                r["family"],
                r["headline"].get("cpu") or r["headline"].get("gpu") or "",
                *(r["verdicts"].get(p, "–").replace("_", " ") for p in ("cpu", "gpu")),
            ]
            for r in found
        ],
    )


def _table(head: list[str], rows: list[list[str]]) -> None:
    """A table for people: rich on a terminal, aligned plain lines elsewhere."""
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(*head, box=None, pad_edge=False, header_style="bold")
        for row in rows:
            table.add_row(*(Text(str(cell)) for cell in row))
        Console().print(table)
        return
    rows = [[" ".join(str(cell).split()) for cell in row] for row in rows]  # a title over two lines would look like two
    widths = [max(len(str(row[i])) for row in [head, *rows]) for i in range(len(head))]
    for row in [head, *rows]:
        _say("  ".join(str(cell).ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


@app.command()
def show(
    slug: Slug,
    profile: Profile = None,
    verdict: Annotated[bool, typer.Option("--verdict", help="the table of verdicts alone")] = False,
    as_json: AsJson = False,
) -> None:
    """Equation, claims, the paper's number, ours, rule, control."""
    from repro import words
    from repro.publish import index
    from repro.spec import paper

    one = paper.load(slug)
    profiles = [_profile(profile)] if profile or verdict else [p for p in ("cpu", "gpu", "paper") if p in one.profiles]
    verdicts = {p: index.read_verdict(slug, p) for p in profiles}
    plain = one.model_dump()
    if as_json:
        return _dump({"paper": plain, "verdicts": verdicts})
    if not verdict:
        _say(f"{one.title}\n{', '.join(one.authors)}. {one.venue}." + (f" arXiv:{one.arxiv}" if one.arxiv else ""))
        _say(f"\n{one.summary}\n\n  {' '.join(one.equation.split())}\n")
        for name, claim in one.claims.items():
            told = claim.paper_value.text or index.number(claim.paper_value.value)
            _say(f"{name} ({claim.fidelity}; {claim.where})\n  claim    {claim.statement}\n  paper    {told}")
            if claim.untested:
                _say(f"  untested {claim.untested}")
            told_rules: set[str] = set()
            for p in profiles:
                judged = (verdicts[p] or {"claims": {}})["claims"].get(name)
                if judged:
                    _say(f"  {p:<8} {index.estimate(judged)}: {judged['state'].replace('_', ' ')}; {judged['why']}")
                elif one.rules(name, p):
                    _say(f"  {p:<8} not run")
                for text in [words.rule_text(paper.as_dict(rule), plain["measures"]) for rule in one.rules(name, p)]:
                    if text not in told_rules:
                        _say(f"  rule     {text}")
                    told_rules.add(text)
                for control in judged["controls"] if judged else ():
                    state = f"{control['state'].replace('_', ' ')} ({'as' if control['ok'] else 'NOT as'} expected)"
                    _say(f"  control  {words.control_text(control)}: {state}")
            _say()
        return
    for p, stored in verdicts.items():
        if stored is None:
            raise ReproError(
                f"{slug} has no verdict at profile {p}; run `repro run {slug} --profile {p}` and `repro judge {slug}`"
            )
        _verdict_table(one, stored)


def _verdict_table(paper, verdict: dict, committed: dict | None = None, compare: bool = False) -> None:
    from repro.publish import index

    rows = []
    for name, claim in verdict["claims"].items():
        told = paper.claims[name].paper_value
        star = "*" if verdict["headline"] == name else " "
        row = [
            star + name,
            told.text or index.number(told.value),
            index.estimate(claim),
            claim["state"].replace("_", " "),
        ]
        if compare:
            before = (committed or {"claims": {}})["claims"].get(name)
            state = before["state"] if before else "none"
            row += [state.replace("_", " "), "agree" if state == claim["state"] else "DIFFER"]
        rows.append([cell if len(cell) <= 60 else cell[:59] + "…" for cell in row])
    head = ["claim (* headline)", "the paper", "here", "verdict"] + (["committed", ""] if compare else [])
    _table(head, rows)
    if verdict["post_hoc"]:
        _say("post hoc: rules, headline or seeds were changed after these rows were measured")


@app.command()
def run(
    slugs: Slugs = None,
    every: All = False,
    profile: Profile = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:N or auto (default: params.yaml)")] = None,
    seeds: Annotated[
        int | None, typer.Option(min=1, max=1000, help="other than planned: fewer is inconclusive, more is not judged")
    ] = None,
    engine: Annotated[str, typer.Option(help="local (this machine) or ray (a cluster)")] = "local",
    address: Annotated[
        str | None, typer.Option(help="the Ray cluster, host:port or auto (default: one of this machine)")
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, max=999, help="worker processes; with --engine ray trials at once on a GPU")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="measure again what the store holds")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="say nothing but errors")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object a line, as units end")] = False,
    with_parent: WithParent = False,
) -> None:
    """Measure the missing trials and write the rows."""
    from repro.run import core, engines, plan, progress
    from repro.spec import paper

    root, profile = _root(), _profile(profile)
    params = paper.load_params(root)
    chosen = _papers(slugs, every)
    if not every:
        for one in chosen:
            _needs(one, profile)
    device = core.resolve_device(device or params.device, profile, here=engine != "ray")
    from repro.store import Store

    code, state, jobs = None, root / ".repro", jobs or core.default_jobs(device)
    with engines.chosen(engine, device, jobs, address) as where:
        for one in chosen:
            if profile not in one.profiles:
                continue
            entry = plan.entry(one, profile, seeds or params.seeds)
            try:
                document = core.measure(
                    entry,
                    store=Store(state / "trials"),
                    state=state,
                    device=device,
                    jobs=jobs,
                    force=force,
                    progress=progress.choose(quiet, as_json),
                    **where,
                )
                core.write_rows(_results(one.slug, profile, "rows"), document)
            except ReproError as error:
                if len(chosen) == 1:
                    raise
                print(one_line(error), file=sys.stderr)
                code = max(code or 0, error.exit_code)
                continue
            limit = params.time_limit.get(profile)
            if not (quiet or as_json) and limit and document["provenance"]["seconds"] > limit * jobs:
                _say(
                    f"note: {one.slug} took {document['provenance']['seconds']:.0f} s of work; the {profile} profile promises {limit} s"
                )
    if code:
        raise typer.Exit(code)


@app.command()
def judge(
    slugs: Slugs = None,
    every: All = False,
    profile: Profile = None,
    check: Annotated[bool, typer.Option("--check", help="fail if a stored verdict differs from a fresh one")] = False,
) -> None:
    """Rows -> verdict, and how often such a verdict errs."""
    from repro.judge import quality, verdict
    from repro.publish import index
    from repro.store import write_file

    differing = []
    for one in _papers(slugs, every):
        profiles = (
            [_profile(profile)] if profile or not every else [p for p in ("cpu", "gpu", "paper") if p in one.profiles]
        )
        for p in profiles:
            _needs(one, p)
            if p == "smoke":
                raise ReproError("--profile smoke: smoke rows are never judged; write cpu or gpu")
            rows = _results(one.slug, p, "rows")
            if not rows.exists():
                if every:
                    continue
                raise ReproError(f"{rows}: no rows yet; run `repro run {one.slug} --profile {p}` first")
            document = verdict.load_rows(rows)
            fresh, rates = verdict.judge(one, p, document), quality.assess(one, p, document)
            if check:
                same = index.read_verdict(one.slug, p) == json.loads(json.dumps(fresh))
                known = quality.read(one.slug, p) in (None, rates)  # None: judged before there were any
                _say(
                    f"{one.slug} {p}: {'the stored verdict holds' if same else 'the stored verdict DIFFERS'}"
                    + ("" if known else ", its stored error rates DIFFER")
                )
                differing += [] if same and known else [f"{one.slug} {p}"]
                continue
            write_file(_results(one.slug, p, "quality"), quality.text(rates))
            write_file(
                _results(one.slug, p, "verdict"),
                json.dumps(fresh, indent=1, allow_nan=False, ensure_ascii=False) + "\n",
            )
            _say(f"{one.slug} {p}")
            _verdict_table(one, fresh)
    if differing:
        raise Failed(
            f"stored verdicts differ from the rows: {', '.join(differing)}; run `repro judge` on them and look at the change"
        )


@app.command("quality")
def show_quality(
    slugs: Slugs = None,
    every: All = False,
    profile: Profile = None,
    write: Annotated[
        Path | None, typer.Option(metavar="PAGE", help="put the table between its marks in a page of Markdown")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """How often verdicts err, by simulation from the rows: false 'reproduced' at the edge of each rule, and power."""
    from repro.files import documents
    from repro.judge import quality, verdict
    from repro.store import write_file

    found, days = [], []
    for one in _papers(slugs, every):
        for p in (
            [_profile(profile)] if profile or not every else [p for p in ("cpu", "gpu", "paper") if p in one.profiles]
        ):
            if every and p not in one.profiles:
                continue
            _needs(one, p)
            if p == "smoke":
                raise ReproError("--profile smoke: smoke rows are never judged; write cpu or gpu")
            rows = _results(one.slug, p, "rows")
            if not rows.exists():
                if every:
                    continue
                raise ReproError(f"{rows}: no rows yet; run `repro run {one.slug} --profile {p}` first")
            document = verdict.load_rows(rows)
            verdict.judge(one, p, document)  # refuses what is not judged, with the reason
            found.append(quality.assess(one, p, document))
            days.append(document["provenance"].get("started"))
    if write:
        if not write.is_file():
            raise ReproError(f"--write {write}: no such file; docs/quality.md has the marks")
        write_file(write, quality.with_table(documents.plain(write), found, days, str(write)))
    if as_json:
        _dump(found)
    else:
        _table(quality.HEAD, quality.lines(found))
        _say(quality.summary_text(found))
    if wrong := quality.summary(found)["above"]:
        raise Failed(
            f"{wrong} claims would be called reproduced too often where they are false; see ABOVE in the table"
        )


@app.command("plan")
def plan_trials(slugs: Slugs = None, every: All = False, profile: Profile = None, as_json: AsJson = False) -> None:
    """The trials that a run would make, with cost; the JSON runs on a bare machine."""
    from repro.judge import verdict
    from repro.run import plan
    from repro.spec import paper

    profile = _profile(profile)
    chosen = _papers(slugs, every)
    if not every:
        for one in chosen:
            _needs(one, profile)
    chosen = [one for one in chosen if profile in one.profiles]
    seeds = paper.load_params(_root()).seeds
    if as_json:
        return _dump(plan.make(chosen, profile, seeds))
    table, total, trials, unknown = [], 0.0, 0, 0
    for one in chosen:
        paths = {p: _results(one.slug, p, "rows") for p in dict.fromkeys((profile, "cpu", "gpu"))}
        known = {p: verdict.load_rows(path)["rows"] if path.is_file() else [] for p, path in paths.items()}
        for cost in plan.costs(one, profile, known.__getitem__, seeds):
            setting = one.settings(profile, cost.experiment)
            path = (
                "exclusive"
                if setting.exclusive
                else "batched"
                if setting.batched
                else f"{setting.ranks} ranks"
                if setting.ranks
                else "single"
            )
            table.append(
                [
                    one.slug,
                    cost.experiment,
                    str(cost.trials),
                    path,
                    "unknown" if cost.seconds is None else _duration(cost.seconds),
                    cost.basis,
                ]
            )
            total, trials, unknown = (
                total + (cost.seconds or 0.0),
                trials + cost.trials,
                unknown + (cost.seconds is None),
            )
    if not table:
        return _say(f"no paper has a profile {profile}")
    _table(["paper", "experiment", "trials", "path", "work", "rate"], table)
    _say(
        f"{trials} trials, {_duration(total)} of work for one process"
        + (f"; {unknown} experiments have no rate yet" if unknown else "")
    )


def _duration(seconds: float) -> str:
    return (
        f"{seconds:.1f} s"
        if seconds < 600
        else f"{seconds / 60:.0f} min"
        if seconds < 36_000
        else f"{seconds / 3600:.1f} h"
    )


@app.command()
def reproduce(slug: Slug, profile: Profile = None) -> None:
    """What `make reproduce` does: data, forced `dvc repro`, report, the verdict beside the committed one."""
    from repro.commands import reproduce as steps

    fresh, committed, page = steps.reproduce(slug, _profile(profile), _root(), _say)
    from repro.spec import paper

    _say()
    _verdict_table(paper.load(slug), fresh, committed, compare=True)
    states = {name: claim["state"] for name, claim in fresh["claims"].items()}
    before = {name: claim["state"] for name, claim in (committed or {"claims": {}})["claims"].items()}
    if committed is None:
        _say("\nno verdict of this profile is committed")
    else:
        _say(f"\nthis machine and the committed verdict {'agree' if states == before else 'DIFFER'}")
    _say(f"report: {page}")


@app.command()
def verify(
    slug: Annotated[str | None, typer.Argument(metavar="[SLUG]")] = None,
    rerun: Annotated[int, typer.Option(min=0, help="measure this many random trials again")] = 0,
) -> None:
    """Every digest, verdict and generated file re-derived offline."""
    from repro.commands import verify as checks

    found = checks.verify([one for one in _papers([slug] if slug else None, slug is None)], _root(), rerun, _say)
    if found:
        raise Failed(f"{len(found)} of the checks failed, first: {found[0]}")
    _say("all checks passed")


@app.command()
def refresh(slug: Slug, profile: Profile = None) -> None:
    """Keep rows fresh after an edit that changes nothing, proved by measuring the first seed again, bit for bit."""
    from repro.commands import verify as checks
    from repro.spec import paper

    checks.refresh(paper.load(slug), _profile(profile), _root(), _say)


@app.command()
def history(slug: Slug, profile: Profile = None, as_json: AsJson = False) -> None:
    """How the verdicts changed, claim by claim, from git."""
    from repro.commands import verify as checks
    from repro.spec import paper

    one = paper.load(slug)
    found = checks.history(slug, _profile(profile), _root())
    if as_json:
        return _dump([dict(zip(checks.CHANGE, line, strict=True)) for line in found])
    _table(checks.CHANGE, found)
    if one.withdrawn:
        _say(f"withdrawn: {one.withdrawn}")


@app.command()
def new(slug: Slug) -> None:
    """The six stubs of a new paper; they fail until they are filled."""
    from repro.commands import new as scaffold

    for path in scaffold.write(slug, _root()):
        _say(f"wrote {path.relative_to(_root())}")
    _say(f"fill them, then: repro run {slug} --profile smoke && repro index")


@app.command("index")
def generate(
    check: Annotated[bool, typer.Option("--check", help="fail if something generated is out of date")] = False,
) -> None:
    """Write (or check) everything that is generated: DVC stages, READMEs, package files."""
    from repro.publish import index

    root = _root()
    if not check:
        for path in index.write(root):
            _say(f"wrote {path.relative_to(root)}")
        return
    found = index.check(root)
    for line in found:
        _say(line)
    if found:
        raise Failed(f"{len(found)} generated files are out of date; run `repro index` and commit them")
    _say("everything generated is up to date")


@app.command()
def report(
    slug: Annotated[
        str | None, typer.Argument(metavar="[SLUG]", help="one paper (default: all, and the index)")
    ] = None,
    index_only: Annotated[bool, typer.Option("--index", help="the comparison page alone")] = False,
    track: Annotated[
        str | None, typer.Option("--arena", metavar="TRACK", help="the page of one track of the arena alone")
    ] = None,
    with_parent: WithParent = False,
) -> None:
    """Render pages through papermill."""
    from repro import report as pages
    from repro.spec import paper

    root = _root()
    if track:
        from repro.arena import protocol as core

        if track not in core.tracks(root):
            raise ReproError(f"--arena {track}: no such track; write one of {', '.join(core.tracks(root))}")
        return _say(f"rendered {pages.render_arena(track, root)}")
    if slug:
        paper.load(slug)
    if not index_only:
        for one in [slug] if slug else paper.slugs():
            _say(f"rendered {pages.render_paper(one, root)}")
    if not index_only and not slug:
        for name in sorted({path.name.partition(".")[0] for path in (root / "arena").glob("*.table.json")}):
            _say(f"rendered {pages.render_arena(name, root)}")
    if index_only or not slug:
        _say(f"rendered {pages.render_index(root)}")


@app.command()
def arena(
    track: Annotated[
        str | None, typer.Option(help="one track of arena.yaml (default: all that have the profile)")
    ] = None,
    profile: Profile = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:N or auto (default: params.yaml)")] = None,
    jobs: Annotated[int | None, typer.Option(min=1, max=999, help="worker processes")] = None,
    force: Annotated[bool, typer.Option("--force", help="measure again what the store holds")] = False,
    check: Annotated[
        bool, typer.Option("--check", help="fail if a stored table differs from one made of its rows")
    ] = False,
    judge: Annotated[
        bool, typer.Option("--judge", help="make the tables from rows that lie there, measuring nothing")
    ] = False,
    plan: Annotated[
        bool, typer.Option("--plan", help="print the plan for `python -m repro.arena` on a bare machine")
    ] = False,
    as_json: AsJson = False,
    with_parent: WithParent = False,
) -> None:
    """Every drop-in method in the same models with the same budget: measure, rank, print."""
    from repro.arena import protocol as core
    from repro.arena import table
    from repro.run import core as runner
    from repro.run import progress
    from repro.spec import paper

    root, profile = _root(), _profile(profile)
    names = [track] if track else [name for name, one in core.tracks(root).items() if profile in one]
    if plan:
        return _dump({"tracks": [core.plan(root, name, profile) for name in names]})
    tables, differing = [], []
    for name in names:
        settings = core.track_of(root, name, profile)
        if check:
            rows = core.read(root, name, profile, "rows")
            same = rows is None or core.read(root, name, profile, "table") == json.loads(
                json.dumps(table.table(rows, settings))
            )
            differing += [] if same else [name]
            _say(
                f"arena {name} {profile}: {'not run' if rows is None else 'the stored table holds' if same else 'the stored table DIFFERS'}"
            )
            continue
        if judge:
            rows = core.read(root, name, profile, "rows")
            if rows is None:
                raise ReproError(
                    f"{core.path_of(root, name, profile, 'rows')}: no rows yet; run `repro arena --track {name}` first"
                )
            tables.append(table.write_table(root, rows, settings))
            if not as_json:
                _arena_table(tables[-1])
            continue
        where = runner.resolve_device(device or paper.load_params(root).device, profile)
        document = core.measure(
            core.plan(root, name, profile),
            root,
            device=where,
            jobs=jobs or runner.default_jobs(where),
            force=force,
            progress=runner.Progress(say=lambda text: print(text, file=sys.stderr)) if as_json else progress.choose(),
        )
        tables.append(table.write(root, document, settings))
        if not as_json:
            _arena_table(tables[-1])
    if differing:
        raise Failed(
            f"stored tables differ from their rows: {', '.join(differing)}; run `repro arena` and look at the change"
        )
    if as_json and not check:
        _dump(tables)


def _arena_table(made: dict) -> None:
    """The rankings of a track as people read them."""
    from repro.words import levels, number

    _say(
        f"\narena {made['track']} {made['profile']}: {made['what']}; {made['measure']} after {made['steps']} steps, {made['seeds']} seeds"
    )
    known = {one["arm"]: one for one in made["methods"]}
    for cell in made["cells"]:
        for slot, found in cell["slots"].items():
            told = f"{slot}{', ' + levels(cell['changed']) if cell['changed'] else ''}"
            judged = found["discriminates"]
            _say(
                f"\n{told}"
                + (
                    ""
                    if judged is None or judged["ok"]
                    else ": does NOT discriminate, a control is not significantly worse than the best or the unchanged model"
                )
            )
            _table(
                ["rank", "method", "mean", "to the best", "lr", "step"],
                [
                    [
                        "–".join(map(str, dict.fromkeys(line["rank"]))),
                        line["arm"],
                        number(line["mean"]),
                        ""
                        if line["gap"][0] is None
                        else f"{number(line['gap'][0])} [{number(line['gap'][1])}, {number(line['gap'][2])}]",
                        f"{known[line['arm']]['lr']:g}",
                        ""
                        if known[line["arm"]]["step_seconds"] is None
                        else f"{1000 * known[line['arm']]['step_seconds']:.1f} ms",
                    ]
                    for line in found["ranking"]
                ],
            )
    for arm, why in made["out"].items():
        _say(f"does not fit: {arm}: {why}")


@app.command()
def recommend(
    model: Annotated[str, typer.Option(help="a track of the arena: mlp, convnet, vit or gpt")],
    depth: Annotated[int | None, typer.Option(min=1, help="depth of your model")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="your batch size")] = None,
    margin: Annotated[
        float | None, typer.Option(min=0.0, help="how much worse than the best is still good (default: the track's)")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Methods that the arena's rows show to be as good as the best, with the evidence."""
    from repro.arena import advice
    from repro.arena import protocol as core
    from repro.words import levels, number

    root = _root()
    if margin is not None and not math.isfinite(margin):
        raise ReproError(f"--margin {margin}: write a finite number from 0 on")
    if model not in core.tracks(root):
        raise ReproError(f"--model {model}: no such track; write one of {', '.join(core.tracks(root))}")
    found = next((t for p in ("gpu", "cpu") if (t := core.read(root, model, p, "table"))), None)
    if found is None:
        raise Failed(f"no evidence: the track {model} has not been run; `repro arena --track {model}` measures it")
    margin = found["margin"] if margin is None else margin
    cell, place = advice.nearest_cell(found, depth, batch)
    if cell is None:
        asked = levels({k: v for k, v in (("depth", depth), ("batch", batch)) if v is not None})
        raise Failed(f"no evidence at {asked}: nothing within a factor of {advice.REACH} of it was measured; {place}")
    chosen = {slot: advice.recommended(one["ranking"], margin) for slot, one in cell["slots"].items()}
    if as_json:
        return _dump(
            {
                "track": model,
                "profile": found["profile"],
                "measured_at": place,
                "margin": margin,
                "measure": found["measure"],
                "methods": chosen,
                "trials": {m["arm"]: m["trials"] for m in found["methods"]},
            }
        )
    _say(
        f"measured: {found['what']}, {levels(place)}, {found['seeds']} seeds, {found['steps']} steps, on {found['device']} ({found['profile']})"
    )
    _say(
        f"as good as the best: the simultaneous {found['level']:.0%} interval of the difference in {found['measure']} ends below {margin:g}"
    )
    trials = {m["arm"]: m["trials"] for m in found["methods"]}
    for slot, lines in chosen.items():
        judged = cell["slots"][slot]["discriminates"]
        _say(
            f"\n{slot}:"
            + (
                ""
                if judged is None or judged["ok"]
                else " no advice: a control is not significantly worse than the best or the unchanged model here"
            )
        )
        if judged is not None and not judged["ok"]:
            continue
        if not lines:
            _say("  none: every interval is wider than the margin")
        for line in lines:
            low, high = line["gap"][1:]
            ids = ", ".join(key.removeprefix("sha256:")[:12] for key in trials[line["arm"]][:3])
            _say(
                f"  {line['arm']}: {number(line['mean'])}, {number(line['gap'][0])} from the best [{number(low)}, {number(high)}], "
                f"n = {line['n']}; {len(trials[line['arm']])} trials: {ids}, ..."
            )
        tied = [line["arm"] for line in cell["slots"][slot]["ranking"] if line["rank"][0] == 1 and line not in lines]
        tied = [arm for arm in tied if arm not in core.CONTROLS]
        if tied:
            _say(f"  not told apart from the best, nor shown to be as good: {', '.join(tied)}")


@app.command("cite")
def cite_paper(slug: Slug, cff: Annotated[bool, typer.Option("--cff", help="Citation File Format")] = False) -> None:
    """BibTeX of the paper and of this implementation, with the digest of the verdict."""
    from repro.publish import cite, index
    from repro.spec import paper

    one = paper.load(slug)
    verdict = next((v for p in ("gpu", "cpu") if (v := index.read_verdict(slug, p))), None)
    _say(cite.cff(one) if cff else cite.bibtex(one, verdict))


@data_app.command("list")
def data_list(as_json: AsJson = False) -> None:
    """The data sets: contents, licence, sources in the order in which they are tried."""
    from repro import data

    found = [{"name": name, **data.info(name)} for name in data.names()]
    if as_json:
        return _dump(found)
    _table(
        ["name", "what", "items", "licence", "sources"],
        [[d["name"], d["what"], d["items"], d["licence"], ", ".join(d["sources"])] for d in found],
    )


@data_app.command("fetch")
def data_fetch(names: Annotated[list[str], typer.Argument(metavar="NAME...")]) -> None:
    """Fetch data sets into the cache and check every file's sha256."""
    from repro import data

    for name in names:
        data.info(name)  # a name that is none is refused before anything is fetched
    for name in names:
        _say(f"{name}: {data.fetch(name)}")


@app.command()
def doctor() -> None:
    """Environment, devices, data, DVC: what works, what does not, what to do."""
    from repro.commands import doctor as checks

    if not checks.report(_root(), _say):
        raise typer.Exit(1)


USAGE_ERROR = typer.BadParameter.__base__  # click's, or that of the copy of click that typer carries


def main() -> None:
    """Entry point: whatever is wrong with what was given is one line on standard error and a non-zero exit code."""
    try:
        code = app(standalone_mode=False, prog_name="repro")
        sys.stdout.flush()
    except ReproError as error:
        code = error.exit_code
        print(one_line(error), file=sys.stderr)
    except USAGE_ERROR as error:
        code = error.exit_code
        if type(error).__name__ == "NoArgsIsHelpError":
            error.show()
        else:
            path = error.ctx.command_path if error.ctx else "repro"
            print(one_line(f"{error.format_message()} (`{path} --help` tells more)"), file=sys.stderr)
    except SyntaxError as error:  # of a method.py or experiment.py, which are read as they stand
        code = 2
        print(
            one_line(f"{error.filename or 'a Python file'}:{error.lineno}: {error.msg}; correct this line"),
            file=sys.stderr,
        )
    except BrokenPipeError:  # `repro list | head`: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except OSError as error:
        code = 2
        print(one_line(f"{error.filename or 'a file'}: {error.strerror or error}"), file=sys.stderr)
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
