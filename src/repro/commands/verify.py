"""Checks of what is stored: digests, verdicts and generated files re-derived; trials measured again."""

import json
import random
from collections.abc import Callable
from pathlib import Path

from repro import judge
from repro.commands import history, judging
from repro.errors import Failed, ReproError
from repro.files.paths import JUDGED, KINDS, results, row_key
from repro.files.strict import plain
from repro.judge import quality
from repro.publish import index
from repro.publish.export import as_csv
from repro.report import staleness
from repro.report.records import changes, claim_lines, readable
from repro.run import again, equal, plan, provenance
from repro.run import measure as run
from repro.spec.model import Paper, as_dict
from repro.spec.yaml import YamlFile
from repro.store import rows_digest

Say = Callable[[str], None]


def verify(papers: list[Paper], root: Path, rerun: int, say: Say, only: str | None = None) -> list[str]:
    """Everything that does not hold, one line each; `rerun` random trials are measured again.

    only: the paper to which generated files are restricted.
    """
    with provenance.steady():  # without a memory on disk: every source is read anew, once
        wrong, measured = index.check(root, only), []
        for paper in papers:
            for profile in [p for p in JUDGED if p in paper.profiles]:
                path = results(paper.slug, profile, "rows", root)
                if not path.is_file():
                    continue
                try:
                    document = judge.load_rows(path)
                    wrong += [f"{paper.slug} {profile}: {why}" for why in _faults(paper, profile, path, document)]
                    measured.append((paper, profile, document))
                except ReproError as error:
                    wrong.append(str(error))
                say(f"{paper.slug} {profile}: checked")
            wrong += orphans(paper, root)
        wrong += history.faults([paper.slug for paper in papers], root)
        wrong += [] if only else [*outdated_table(root), *arena_faults(root), *equal.faults(root)]
    if rerun:
        wrong += _rerun(measured, rerun, root, say)
    for line in wrong:
        say(line)
    return wrong


def _faults(paper: Paper, profile: str, path: Path, document: dict) -> list[str]:
    """What is wrong with the rows of a paper at a profile, and with what was derived from them."""
    fresh, rates = judge.judge(paper, profile, document), quality.assess(paper, profile, document)
    # Rows that no claim reads, those of identities alone, are not registered.
    registered = bool(paper.registered_experiments(profile))
    stale = staleness(paper, profile, document)
    found = [
        f"stale; {stale}" if stale else None,
        judging.stored_differs(paper, profile, fresh, rates),
        moved_registration(path, document) if registered else None,
        moved_words(paper, path, document),
        foreign_rows(paper, profile, document),
    ]
    return [why for why in found if why]


def outdated_table(root: Path) -> list[str]:
    """Whether `reports/verdicts.csv`, where it was written, is what the stored verdicts give."""
    path = root / "reports" / "verdicts.csv"
    if not path.exists():
        return []
    lines = [line for one in readable(root)[0] for line in claim_lines(one)]
    if plain(path) == as_csv(lines):
        return []
    return [f"{path.relative_to(root)}: out of date; run `repro report --index`"]


def arena_faults(root: Path) -> list[str]:
    """Tables of the arena that are not what their rows give, or that have no rows."""
    from repro.arena import protocol, table

    lines = []
    for name, track in protocol.tracks(root).items() if (root / "arena.yaml").is_file() else ():
        for profile in [p for p in JUDGED if p in track]:
            try:
                made = protocol.read(root, name, profile, "table")
                rows = protocol.read(root, name, profile, "rows") if made else None
                if rows is None:
                    continue
                fresh = json.loads(json.dumps(table.table(rows, protocol.track_of(root, name, profile))))
                if place := judge.difference(made, fresh):
                    lines.append(f"arena {name} {profile}: the stored table DIFFERS in {place}")
            except ReproError as error:
                lines.append(str(error))
    return lines


def foreign_rows(paper: Paper, profile: str, document: dict) -> str | None:
    """Which row is not the trial that it says it is: its key is that of another source, seed, setting or device.

    Planned trials that have no row must be said to be missing.  Rows of experiments whose source or settings changed
    since are stale, and their keys cannot be made again.
    """
    record, again = document["provenance"], f"run `repro run {paper.slug} --profile {profile}`"
    if missing := {"trials", "device", "device_class", "device_model", "versions"} - record.keys():
        return f"provenance: {min(missing)} is missing; {again}"
    stale, entry = changes(paper, profile, document), plan.entry(paper, profile)
    place = {"class": record["device_class"], "model": record["device_model"], "torch": record["versions"].get("torch")}
    trials = run.settled(entry, document["rows"])
    units = run.units_of(entry, record["device"], place, trials)
    keys = {row_key(trial): trial["key"] for unit in units for trial in unit["trials"]}
    foreign = [
        f"rows[{i}] ({row['experiment']} {row['arm']}, seed {row['seed']})"
        for i, (row, key) in enumerate(zip(document["rows"], record["trials"], strict=True))
        if row["experiment"] not in stale and keys.get(row_key(row)) != key
    ]
    if foreign:
        return (
            f"{len(foreign)} rows have keys of other trials (another source, setting, seed or device), first "
            f"{foreign[0]}; {again}"
        )
    absent = run.missing_trials(entry, trials, document["rows"])
    if not stale and absent != record.get("missing", 0):
        return f"{absent} planned trials have no row, and the rows say {record.get('missing', 0)}; {again}"
    return None


def on_trust(root: Path) -> list[str]:
    """What is taken on trust: edits proved equal, and what git does not show of the history, in git's words."""
    edits = provenance.equal_edits(root)
    taken = [
        f"{edit['module']} as edited {edit['date']} counts as it was at commit {edit['commit']}: {edit['proof']}"
        for edit in edits
    ]
    return [*taken, *_unseen_history(root)]


def _unseen_history(root: Path) -> list[str]:
    """What no check here can see because git does not show the history, in git's words."""
    what = "whether rules, fidelity or numbers of a paper were changed after its rows were committed"
    try:
        provenance.git("rev-parse", "HEAD", folder=root)
        cut = provenance.shallow(root)
    except ReproError as error:
        return [f"{what} is not checked: {error}"]
    if not cut:
        return []
    return [f"{what} is checked for the commits of this cut clone alone; `git fetch --unshallow` brings the others"]


def earlier_rows(path: Path, document: dict) -> list[tuple[str, str]]:
    """(commit, registration) of every commit that has these very rows, the newest first."""
    digest = rows_digest(document["rows"])
    return [
        (version.commit[:10], version.registered)
        for version in history.versions(path)
        if (version.schema, version.digest) == (document["schema"], digest)
    ]


def moved_registration(path: Path, document: dict) -> str | None:
    """Whether a commit has the same rows under other rules: rows keep the registration under which they were measured.

    To write today's registration into them would hide that the rules were changed afterwards.
    """
    for commit, registered in earlier_rows(path, document):
        if registered != document["registered"]:
            return (
                f"the same rows are registered under other rules in commit {commit}; run `git checkout {commit} -- "
                f"{path.name}` in {path.parent.name}, and judge again: the verdict is post hoc"
            )
    return None


def moved_words(paper: Paper, path: Path, document: dict) -> str | None:
    """Whether a claim was called `same`, or got another number of the paper, after these rows were committed.

    Neither decides a verdict, and so neither is registered; but `same` turns "supported" into "reproduced".
    """
    commits = earlier_rows(path, document)
    try:
        text = provenance.git("show", f"{commits[-1][0]}:../paper.yaml", folder=path.parent) if commits else ""
        claims = YamlFile(Path("paper.yaml"), "paper.yaml", text.encode()).data["claims"] if text else {}
    except (ReproError, KeyError, TypeError):  # it was no paper of this form then
        return None
    for name, claim in paper.claims.items():
        before = claims.get(name) if isinstance(claims, dict) else None
        if not isinstance(before, dict):
            continue
        where = f"papers/{paper.slug}/paper.yaml: claims.{name}"
        since = f"in commit {commits[-1][0]}, which has these rows first; write that back, or measure anew"
        if claim.fidelity == "same" != before.get("fidelity"):
            return f"{where}.fidelity: is same, and was {before.get('fidelity')} {since}"
        if not claim.erratum and as_dict(claim.paper_value) != before.get("paper_value"):
            return f"{where}.paper_value: was another one {since}; a misread number needs an erratum"
    return None


def orphans(paper: Paper, root: Path) -> list[str]:
    """Verdicts, error rates and metrics without the rows of which they were made, or of no profile of the paper."""
    lines = []
    for path in sorted((root / "papers" / paper.slug / "results").glob("[!.]*")):
        profile, _, kind = path.name.removesuffix(".json").partition(".")
        shown = path.relative_to(root)
        if profile not in paper.profiles or profile not in JUDGED:
            lines.append(f"{shown}: {paper.slug} has no profile {profile}; delete the file")
        elif path.name != f"{profile}.{kind}.json" or kind not in (*KINDS, "metrics", "earlier"):
            lines.append(f"{shown}: no command reads a file of this name; delete it")
        elif kind not in ("rows", "earlier") and not results(paper.slug, profile, "rows", root).is_file():
            lines.append(f"{shown}: has no rows beside it; run `repro run {paper.slug} --profile {profile}`")
    return lines


def _rerun(measured: list[tuple], count: int, root: Path, say: Say) -> list[str]:
    pool = []
    for paper, profile, document in measured:
        device, exact = document["provenance"]["device"], again.same_machine(document) is not None
        try:
            run.resolve_device(device, profile)
        except ReproError:
            say(f"{paper.slug} {profile}: measured on {device}, which is not here; not measured again")
            continue
        if not exact:
            say(
                f"{paper.slug} {profile}: measured on another device class or torch version, "
                "compared by the spread of its seeds"
            )
        units = again.units_of(plan.entry(paper, profile), document, device)
        pool += [(unit, document, exact) for unit in units]
    found, done = [], 0
    for unit, document, exact in random.sample(pool, len(pool)):
        if done >= count:
            break
        found += again.compare([unit], document, root / ".repro", exact)
        done += len(unit["trials"])
    say(f"{done} trials measured again, {len(found)} differ")
    return found


def refresh(paper: Paper, profile: str, root: Path, say: Say) -> None:
    """Mark stale rows fresh when a trace of every arm, measured again, is bitwise equal to its rows."""
    path = results(paper.slug, profile, "rows", root)
    again_command = f"run `repro run {paper.slug} --profile {profile}`"
    if not path.is_file():
        raise ReproError(f"{path}: no rows to refresh; {again_command}")
    document = judge.load_rows(path)
    why = staleness(paper, profile, document)
    if why is None:
        return say(f"{paper.slug} {profile}: the rows are fresh already")
    say(f"{paper.slug} {profile}: {why}")
    try:
        document = again.refresh(
            plan.entry(paper, profile), document, state=root / ".repro", again=again_command, say=say
        )
    except ReproError as error:
        raise type(error)(f"{path}: {error}") from error
    run.write_rows(path, document)
    judging.write(paper, profile, judge.judge(paper, profile, document), quality.assess(paper, profile, document))
    note = document["provenance"]["notes"][-1]
    if why := staleness(paper, profile, document):
        raise Failed(f"{paper.slug} {profile}: {note}, but {why}; timings must be measured: {again_command}")
    say(f"{paper.slug} {profile}: fresh; {note}")
