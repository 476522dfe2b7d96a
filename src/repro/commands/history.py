"""`repro history`: the verdicts of every commit and the registrations before the present one, as git has them."""

import functools
import itertools
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from repro.errors import ReproError
from repro.files.earlier import read_earlier, write_earlier
from repro.files.paths import JUDGED, results, results_name
from repro.run import provenance
from repro.run.tuning import TUNING_SEEDS
from repro.store import rows_digest

CHANGE = ["date", "commit", "claim", "was", "is", "estimate", "why"]
LOOK = ["paper", "profile", "since", "commit", "seeds", "headline", "verdict then"]


def changes(slug: str, profile: str, root: Path) -> tuple[list[list[str]], str | None]:
    """A line (CHANGE) for every change of a claim's state, oldest first, and what must be said of the history.

    The headline has a star.  A claim that is there no more is `gone`; rules that changed after the rows were measured
    add `post hoc`.  A commit whose verdict cannot be read says nothing.
    """
    name = results_name(slug, profile, "verdict")
    log = provenance.git("log", "--reverse", "--format=%H %as", "--", name, folder=root)
    lines: list[list[str]] = []
    states: dict[str, str] = {}
    for commit, date in (line.split() for line in log.splitlines()):
        stored = _read(commit, name, root)
        if stored is None:
            continue
        now = {claim: _state(one, stored) for claim, one in _claims(stored).items()}
        for claim in [*now, *(states.keys() - now.keys())]:
            was, state = states.get(claim, "–"), now.get(claim, "gone")
            if state != was:
                one = _claims(stored).get(claim) or {}
                star = "*" * (claim == stored.get("headline"))
                lines.append([date, commit[:10], claim + star, was, state, _estimate(one), str(one.get("why", ""))])
        states = {**{claim: "gone" for claim in states}, **now}
    cut = "The history of this clone is cut (git clone --depth): the first line is not the first verdict."
    return lines, f"{cut} `git fetch --unshallow` brings the rest." if provenance.shallow(root) else None


@dataclass(frozen=True)
class Version:
    """The rows of a paper at a profile in one commit; `registered` is None where no rows can be read there."""

    commit: str
    day: str
    registered: str | None = None
    schema: Any = None
    digest: str | None = None
    seeds: tuple[int, int] | None = None  # first and last judged seed


def versions(path: Path) -> list[Version]:
    """Every commit that changed a file of rows, the newest first; none without git or without a history."""
    try:
        head = provenance.git("rev-parse", "HEAD", folder=path.parent).strip()
        return list(_versions(path, head))
    except ReproError:
        return []


@functools.lru_cache(maxsize=512)
def _versions(path: Path, head: str) -> tuple[Version, ...]:
    log = provenance.git("log", "--format=%H %as", head, "--", path.name, folder=path.parent)
    return tuple(_version(path, *line.split()) for line in log.splitlines())


def _version(path: Path, commit: str, day: str) -> Version:
    try:
        stored = json.loads(provenance.git("show", f"{commit}:./{path.name}", folder=path.parent))
        seeds = [row["seed"] for row in stored["rows"] if row["seed"] < TUNING_SEEDS]
        ends = (min(seeds), max(seeds)) if seeds else None
        return Version(commit, day, stored["registered"], stored["schema"], rows_digest(stored["rows"]), ends)
    except (ReproError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return Version(commit, day)


def registrations(slug: str, profile: str, root: Path) -> list[dict[str, Any]]:
    """The registrations with rows before the present one, oldest first, as `files.earlier` stores them."""
    path = results(slug, profile, "rows", root)
    present = _present(path)
    found: dict[str, dict[str, Any]] = {}
    for version, after in itertools.pairwise([*reversed(versions(path)), None]):
        if version.registered in (None, present) or version.seeds is None:
            continue
        last = "HEAD" if after is None else f"{after.commit}^"  # the last commit that has these rows
        commit = provenance.git("rev-parse", last, folder=path.parent).strip()
        verdict = _registered_verdict(version, commit, results_name(slug, profile, "verdict"), root)
        headline = verdict.get("headline")
        judged = _claims(verdict).get(headline) or {}
        found[version.registered] = {
            "registered": version.registered,
            "since": found.get(version.registered, {}).get("since", version.day),
            "commit": commit,
            "seeds": list(version.seeds),
            "headline": headline if judged else None,
            "state": judged.get("state"),
        }
    return list(found.values())


def _registered_verdict(version: Version, last: str, name: str, root: Path) -> dict[str, Any]:
    """The verdict of a version's rows by the rules that were registered with them, the latest of these; else the latest
    of any rules, which is post hoc; empty where no commit up to `last` judges these rows.
    """
    log = provenance.git("log", "--format=%H", last, "--not", f"{version.commit}^@", "--", name, folder=root)
    stored = [verdict for commit in [last, *log.split()] if (verdict := _read(commit, name, root))]
    of_these = [verdict for verdict in stored if verdict.get("rows_digest") == version.digest]
    return next((one for one in of_these if not one.get("post_hoc")), of_these[0] if of_these else {})


def _present(path: Path) -> str | None:
    """The registration of the rows as they are now; a ReproError where they cannot be read."""
    try:
        return json.loads(path.read_bytes())["registered"] if path.is_file() else None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ReproError(f"{path}: its registration cannot be read ({error})") from error


def faults(slugs: Iterable[str], root: Path) -> list[str]:
    """Files of earlier registrations that do not say what git says; none where the history is cut or not there.

    Which commits have them is not compared: a rebase changes that, and nothing else.
    """

    def known(registrations: list[dict[str, Any]]) -> list[tuple]:
        return [tuple(one[key] for key in ("registered", "seeds", "headline", "state")) for one in registrations]

    try:
        if provenance.shallow(root):
            return []
    except ReproError:
        return []
    found = []
    for slug, profile in itertools.product(slugs, JUDGED):
        try:
            said, true = read_earlier(results(slug, profile, "earlier", root)), registrations(slug, profile, root)
        except ReproError as error:
            found.append(str(error))
            continue
        if known(said) != known(true):
            name = results_name(slug, profile, "earlier")
            found.append(f"{name}: is not what the history says; run `repro history --write`")
    return found


def write(slugs: Iterable[str], root: Path) -> None:
    """Write the earlier registrations of papers; a ReproError where git does not have the whole history."""
    if provenance.shallow(root):
        raise ReproError("the history of this clone is cut; run `git fetch --unshallow`, and then this again")
    for slug, profile in itertools.product(slugs, JUDGED):
        write_earlier(results(slug, profile, "earlier", root), registrations(slug, profile, root))


def looks(slugs: Iterable[str], root: Path) -> list[list[str]]:
    """A line (LOOK) for every stored earlier registration."""
    return [
        [slug, profile, one["since"], one["commit"][:10], "{} to {}".format(*one["seeds"]), one["headline"] or "–"]
        + [(one["state"] or "–").replace("_", " ")]
        for slug, profile in itertools.product(slugs, JUDGED)
        for one in read_earlier(results(slug, profile, "earlier", root))
    ]


def _read(commit: str, name: str, root: Path) -> dict[str, Any] | None:
    """The verdict at a commit, whatever its schema; None where it is damaged; without claims where it was removed."""
    try:
        stored = json.loads(provenance.git("show", f"{commit}:./{name}", folder=root))
    except ReproError:
        return {"claims": {}}
    except (ValueError, RecursionError):
        return None
    return stored if isinstance(stored, dict) else None


def _claims(stored: dict[str, Any]) -> dict[str, dict]:
    """Claims and identities that have a state."""
    found = {}
    for kind in ("claims", "identities"):
        entries = stored.get(kind)
        for claim, one in entries.items() if isinstance(entries, dict) else ():
            if isinstance(one, dict) and isinstance(one.get("state"), str):
                found[claim] = one
    return found


def _state(one: dict, stored: dict) -> str:
    return one["state"].replace("_", " ") + ", post hoc" * bool(stored.get("post_hoc"))


def _estimate(one: dict) -> str:
    """The estimate of a verdict of any schema."""
    from repro.publish.evidence import estimate

    try:
        return estimate(one)
    except (TypeError, ValueError, KeyError, AttributeError):
        return "–"
