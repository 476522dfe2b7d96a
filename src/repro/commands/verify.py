"""Checks of what is stored: digests, verdicts and generated files re-derived; trials measured again."""

import json
import random
from collections.abc import Callable
from pathlib import Path

from repro import judge
from repro.commands import judging
from repro.errors import Failed, ReproError
from repro.files.paths import JUDGED, results
from repro.judge import quality
from repro.publish import index
from repro.report import staleness
from repro.run import again, plan, provenance
from repro.run import measure as run
from repro.spec.model import Paper
from repro.store import rows_digest

Say = Callable[[str], None]


def verify(papers: list[Paper], root: Path, rerun: int, say: Say, only: str | None = None) -> list[str]:
    """Everything that does not hold, one line each; `rerun` random trials are measured again.

    only: the paper to which generated files are restricted.
    """
    wrong = index.check(root, only)
    measured = []
    for paper in papers:
        for profile in [p for p in JUDGED if p in paper.profiles]:
            path = results(paper.slug, profile, "rows", root)
            if not path.is_file():
                continue
            try:
                document = judge.load_rows(path)
                if why := staleness(paper, profile, document):
                    wrong.append(f"{paper.slug} {profile}: stale; {why}")
                fresh, rates = judge.judge(paper, profile, document), quality.assess(paper, profile, document)
                if why := judging.stored_differs(paper, profile, fresh, rates):
                    wrong.append(f"{paper.slug} {profile}: {why}")
                # Rows that no claim reads, those of identities alone, are not registered.
                if paper.registered_experiments(profile) and (why := moved_registration(path, document)):
                    wrong.append(f"{paper.slug} {profile}: {why}")
                measured.append((paper, profile, document))
            except ReproError as error:
                wrong.append(str(error))
            say(f"{paper.slug} {profile}: checked")
        wrong += orphans(paper, root)
    if rerun:
        wrong += _rerun(measured, rerun, root, say)
    for line in wrong:
        say(line)
    return wrong


def moved_registration(path: Path, document: dict) -> str | None:
    """Whether a commit has the same rows under other rules: rows keep the registration under which they were measured.

    To write today's registration into them would hide that the rules were changed afterwards.
    """
    try:
        commits = provenance.git("log", "--format=%h", "--", path.name, folder=path.parent).split()
    except ReproError:  # no git, or no history
        return None
    for commit in commits:
        try:
            earlier = json.loads(provenance.git("show", f"{commit}:./{path.name}", folder=path.parent))
            same = earlier["schema"] == document["schema"] and rows_digest(earlier["rows"]) == rows_digest(
                document["rows"]
            )
            registered = earlier["registered"]
        except (ReproError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            continue
        if same and registered != document["registered"]:
            return (
                f"the same rows are registered under other rules in commit {commit}; run `git checkout {commit} -- "
                f"{path.name}` in {path.parent.name}, and judge again: the verdict is post hoc"
            )
    return None


def orphans(paper: Paper, root: Path) -> list[str]:
    """Verdicts, error rates and metrics without the rows of which they were made, or of no profile of the paper."""
    lines = []
    for path in sorted((root / "papers" / paper.slug / "results").glob("*.json")):
        profile, _, kind = path.name.removesuffix(".json").partition(".")
        shown = path.relative_to(root)
        if profile not in paper.profiles or profile not in JUDGED:
            lines.append(f"{shown}: {paper.slug} has no profile {profile}; delete the file")
        elif kind != "rows" and not results(paper.slug, profile, "rows", root).is_file():
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
