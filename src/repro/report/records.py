"""What has been measured and judged, read from `papers/*/results` without judging anything again."""

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from repro.errors import ReproError
from repro.files.paths import JUDGED, results

if TYPE_CHECKING:
    import pandas

    from repro.spec.model import Paper

Current = Callable[["Paper", str], Mapping[str, Mapping[str, str]]]
Stale = Mapping[str, Mapping[str, str]]


@dataclass(frozen=True)
class Result:
    """One paper at one profile: its rows, its verdict, and which of them no longer describe the source."""

    profile: str
    rows: dict[str, Any] | None = None
    verdict: dict[str, Any] | None = None
    stale: dict[str, str] = field(default_factory=dict)  # experiment -> why
    quality: dict[str, Any] | None = None  # the error rates of this very verdict
    earlier: list[dict[str, Any]] = field(default_factory=list)  # registrations whose rows were read before these

    @property
    def provenance(self) -> dict[str, Any]:
        return (self.rows or {}).get("provenance") or {}

    def claim(self, name: str) -> dict[str, Any] | None:
        return ((self.verdict or {}).get("claims") or {}).get(name)

    def identity(self, name: str) -> dict[str, Any] | None:
        return ((self.verdict or {}).get("identities") or {}).get(name)

    def rates(self, name: str) -> dict[str, Any] | None:
        """The error rates of a claim; None where they were never computed."""
        return ((self.quality or {}).get("claims") or {}).get(name)

    def stale_for(self, claim: Mapping[str, Any]) -> str | None:
        """Why a claim's rows, those of its controls included, are stale."""
        places = [claim.get("experiment"), *(c.get("experiment") for c in claim.get("controls") or [])]
        return "; ".join(self.stale[p] for p in dict.fromkeys(places) if p in self.stale) or None

    def of(self, experiment: str | None) -> list[dict[str, Any]]:
        """The rows of an experiment, each with the key of its trial."""
        rows = (self.rows or {}).get("rows") or []
        keys = self.provenance.get("trials") or []
        keys = keys if len(keys) == len(rows) else [None] * len(rows)
        return [{**row, "key": key} for row, key in zip(rows, keys, strict=True) if row["experiment"] == experiment]


@dataclass(frozen=True)
class Record:
    """One paper: `paper` is its paper.yaml as plain data, `results` one entry per profile, the strongest first."""

    slug: str
    folder: Path
    paper: dict[str, Any]
    results: dict[str, Result] = field(default_factory=dict)

    @property
    def headline(self) -> str:
        """The claim that the paper is known for."""
        return self.paper["headline"]

    def strongest(self, name: str) -> tuple[Result, dict[str, Any]] | None:
        """The verdict of a claim at the largest profile that has one, and the results there."""
        return next(((r, judged) for r in self.results.values() if (judged := r.claim(name)) is not None), None)


def _rows(slug: str, profile: str, root: Path) -> dict[str, Any] | None:
    from repro.files.rows import read_rows

    path = results(slug, profile, "rows", root)
    return read_rows(path, f"run `repro run {slug}` again") if path.exists() else None


def _check_rules(path: Path, paper: "Paper", profile: str, verdict: Mapping[str, Any]) -> None:
    """Refuse a verdict under other rules than those of paper.yaml: the page would tell one and draw the other."""
    from repro import words
    from repro.spec.model import as_dict

    for name, claim in verdict["claims"].items():
        if name in paper.claims and words.rules(claim["rule"]) != [
            as_dict(rule) for rule in paper.rules(name, profile)
        ]:
            again = f"run `repro judge {paper.slug} --profile {profile}`"
            raise ReproError(f"{path}: claims.{name}.rule: is not the rule of paper.yaml; {again}")


def current(paper: "Paper", profile: str) -> dict[str, dict[str, str]]:
    """Digests of source and settings of each experiment as they are now."""
    from repro.run import measure as run
    from repro.run import plan

    entry = plan.entry(paper, profile)
    return {"sources": run.entry_sources(entry), "config": run.entry_configs(entry)}


def changes(paper: "Paper", profile: str, document: Mapping[str, Any], current: Current = current) -> dict[str, str]:
    """Experiment -> why its rows no longer describe the source; empty while all do."""
    then = document.get("provenance") or {}
    names = {row["experiment"] for row in document.get("rows") or []}
    try:
        now = current(paper, profile)
    except ReproError as error:
        return dict.fromkeys(sorted(names), f"its source cannot be compared ({error})")
    found = {}
    for name in sorted(names | set(now["sources"])):
        parts = [
            label
            for what, label in (("sources", "source"), ("config", "settings"))
            if (then.get(what) or {}).get(name) != now[what].get(name)
        ]
        if parts:
            found[name] = f"the {' and '.join(parts)} of {name} changed after the rows were measured"
    return found


def staleness(paper: "Paper", profile: str, document: Mapping[str, Any], current: Current = current) -> str | None:
    """Why rows no longer describe the source they came from, or None while they do.

    `document` is a rows.json; `current(paper, profile)` gives {"sources": {experiment: digest}, "config": ...} now.
    """
    return "; ".join(changes(paper, profile, document, current).values()) or None


def load_paper(slug: str, root: Path) -> "Paper":
    from repro.spec import load as paper

    return paper.load(Path(root) / "papers" / slug)


def record(slug: str, root: Path, *, current: Current = current, stale: Stale | None = None) -> Record:
    """One paper with its results; `stale` (profile -> experiment -> why) replaces the comparison of digests."""
    from repro.files.earlier import read_earlier
    from repro.files.verdict import read_quality, stored
    from repro.spec.model import as_dict

    loaded = load_paper(slug, root)
    folder, found = Path(root) / "papers" / slug, {}
    for profile in reversed(JUDGED):
        pair = stored(slug, profile, Path(root), loaded.claims, identities=loaded.identities)
        verdict, rows = pair or (None, _rows(slug, profile, Path(root)))
        if rows is None and profile not in loaded.profiles:
            continue
        if verdict is not None:
            _check_rules(results(slug, profile, "verdict", root), loaded, profile, verdict)
        why: Mapping[str, str] = {}
        if rows is not None:
            why = stale.get(profile) or {} if stale is not None else changes(loaded, profile, rows, current)
        path = results(slug, profile, "quality", root)
        quality = read_quality(path, f"run `repro judge {slug}` again") if verdict and path.exists() else None
        if quality and quality["rows_digest"] != verdict["rows_digest"]:
            quality = None  # of other rows
        earlier = read_earlier(results(slug, profile, "earlier", root))
        found[profile] = Result(profile, rows, verdict, dict(why), quality, earlier)
    return Record(slug, folder, as_dict(loaded), found)


def slugs(root: Path) -> list[str]:
    return sorted(p.parent.name for p in (Path(root) / "papers").glob("*/paper.yaml"))


def records(root: Path, *, current: Current = current, stale: Mapping[str, Stale] | None = None) -> list[Record]:
    """Every paper; ReproError at the first that cannot be read."""
    return [record(s, root, current=current, stale=None if stale is None else stale.get(s, {})) for s in slugs(root)]


def readable(
    root: Path,
    *,
    only: Iterable[str] | None = None,
    current: Current = current,
    stale: Mapping[str, Stale] | None = None,
) -> tuple[list[Record], dict[str, str]]:
    """The papers (or `only` some) that can be read, and why the others cannot: one bad paper stops no other."""
    good, bad = [], {}
    for slug in slugs(root) if only is None else only:
        try:
            good.append(record(slug, root, current=current, stale=None if stale is None else stale.get(slug, {})))
        except ReproError as error:
            bad[slug] = str(error)
    return good, bad


def frame(root: Path | str) -> "pandas.DataFrame":
    """Every row of every paper and profile, one line per measure.

    Columns: paper, profile, device, experiment, arm, seed, factors, status, step, why, seconds, measure, value (a
    number) or curve (a list).  A diverged or invalid row without measures is one line whose measure is None.
    """
    import pandas

    columns = [
        "paper",
        "profile",
        "device",
        "experiment",
        "arm",
        "seed",
        "factors",
        "status",
        "step",
        "why",
        "seconds",
        "measure",
        "value",
        "curve",
    ]
    lines = []
    for slug in slugs(Path(root)):
        for profile in JUDGED:
            document = _rows(slug, profile, Path(root))
            for row in (document or {}).get("rows") or []:
                head = {
                    "paper": slug,
                    "profile": profile,
                    "device": document["provenance"].get("device_model"),
                    **{k: row.get(k) for k in columns[3:11]},
                }
                for name, value in (row.get("measures") or {None: None}).items():
                    curve = value if isinstance(value, list) else None
                    lines.append({**head, "measure": name, "value": None if curve else value, "curve": curve})
    return pandas.DataFrame(lines, columns=columns)


def verdicts(root: Path | str, *, current: Current = current) -> "pandas.DataFrame":
    """Every claim of every paper at each of its profiles, one line each, `not_run` included.

    A paper that cannot be read is left out with a warning.
    """
    import pandas

    good, bad = readable(Path(root), current=current)
    for why in bad.values():
        warnings.warn(why, stacklevel=2)
    lines = [line for one in good for line in claim_lines(one)]
    return pandas.DataFrame(lines, columns=list(_LINE))


_LINE = (
    "paper",
    "title",
    "family",
    "year",
    "profile",
    "claim",
    "headline",
    "statement",
    "where",
    "fidelity",
    "paper_value",
    "state",
    "mark",
    "verdict",
    "why",
    "estimate",
    "low",
    "high",
    "level",
    "n",
    "unit",
    "rule",
    "ratio",
    "controls_failed",
    "controls",
    "trivial",
    "mutants_not_told",
    "needed_seeds",
    "p",
    "post_hoc",
    "registrations",
    "stale",
    "device",
    "seconds",
    "rows_digest",
)


def claim_lines(one: Record) -> list[dict[str, Any]]:
    """The lines of `verdicts` for one paper."""
    from repro.words import rule_text, rules, told, verdict_words

    lines = []
    for profile, result in one.results.items():
        for name, claim in one.paper["claims"].items():
            judged = result.claim(name) or {}
            low, high = judged.get("interval") or (None, None)
            state = "untested" if claim.get("untested") else judged.get("state", "not_run")
            controls, measures = judged.get("controls") or [], one.paper.get("measures") or {}
            lines.append(
                {
                    "paper": one.slug,
                    "title": one.paper["title"],
                    "family": one.paper["family"],
                    "year": one.paper["year"],
                    "profile": profile,
                    "claim": name,
                    "headline": one.headline == name,
                    "statement": claim["statement"],
                    "where": claim["where"],
                    "fidelity": claim.get("fidelity"),
                    "paper_value": told(claim["paper_value"]),
                    "state": state,
                    "mark": judged.get("mark"),
                    "verdict": verdict_words(state, judged.get("mark"), claim.get("fidelity")),
                    "why": judged.get("why"),
                    "estimate": judged.get("estimate"),
                    "low": low,
                    "high": high,
                    "level": judged.get("level"),
                    "n": judged.get("n"),
                    "unit": judged.get("unit"),
                    "rule": " ".join(rule_text(rule, measures) for rule in rules(judged.get("rule"))) or None,
                    "ratio": (judged.get("magnitude") or {}).get("ratio"),
                    "controls_failed": sum(bool(c["ok"]) for c in controls) if judged else None,
                    "controls": len(controls) if judged else None,
                    "trivial": (judged.get("trivial") or {}).get("state"),
                    "mutants_not_told": sum(not m["told"] for m in judged.get("mutants") or []) if judged else None,
                    "needed_seeds": judged.get("needed_seeds"),
                    "p": judged.get("p"),
                    "post_hoc": bool(judged and (result.verdict or {}).get("post_hoc")),
                    "registrations": len(result.earlier) + 1 if judged else None,
                    "stale": result.stale_for(claim) if judged else None,
                    "device": result.provenance.get("device_model") if judged else None,
                    "seconds": sum(r["seconds"] for r in result.of(claim.get("experiment"))) if judged else None,
                    "rows_digest": (result.verdict or {}).get("rows_digest") if judged else None,
                }
            )
    return lines


def strongest(lines: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """One line per claim: that of the largest profile with a verdict, the first one where none has."""
    found: dict[tuple[str, str], Mapping[str, Any]] = {}
    for line in lines:  # the largest profile comes first
        key = line["paper"], line["claim"]
        if key not in found or (found[key]["state"] == "not_run" and line["state"] != "not_run"):
            found[key] = line
    return list(found.values())
