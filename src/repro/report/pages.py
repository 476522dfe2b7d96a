"""What the notebooks' cells call: the parts of a paper's page and of the comparison page, as HTML."""

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import repro
from repro import words
from repro.files.paths import JUDGED
from repro.files.strict import plain
from repro.publish import cite
from repro.report import arena, belief, figures, identities, questions, text
from repro.report.asides import FigureView, RankingView
from repro.report.claims import ClaimView
from repro.report.records import Record, Result, Stale, claim_lines, readable, record, strongest
from repro.report.templates import Fragment, part
from repro.run import provenance as sources

FAMILIES = ("normalization", "activation", "initialization", "residual", "training")


class PaperPage:
    """The page of `papers/<slug>`; `stale` (profile -> experiment -> why) replaces the comparison of digests."""

    def __init__(self, slug: str, root: str | Path = ".", stale: Stale | None = None):
        self.record = record(slug, Path(root), stale=stale)
        self.paper = self.record.paper
        tested = [name for name, claim in self.paper["claims"].items() if not claim.get("untested")]
        tested.sort(key=lambda name: name != self.record.headline)  # the headline first, the others in their order
        self.views = {name: ClaimView(self.record, name) for name in tested}

    def head(self) -> Fragment:
        """Title, what to believe, the headline's verdict, equation, contents, and the table of verdicts."""
        p, results = self.paper, self.record.results.values()
        links = [
            (f"{name}:{p[key]}", f"https://{host}/{p[key]}")
            for name, key, host in (("arXiv", "arxiv", "arxiv.org/abs"), ("doi", "doi", "doi.org"))
            if p.get(key)
        ]
        if p.get("url") and (target := text.safe_url(p["url"])):
            links.append(("paper", target))
        claims = [view.summary() for view in self.views.values()]
        headline = next((c for c in claims if c["headline"]), None)
        return part(
            "paper.html.j2",
            "head",
            {
                **{key: p.get(key) for key in ("slug", "family", "title", "summary", "equation", "withdrawn")},
                "links": links,
                "code": p.get("code"),
                "code_url": _repository(p.get("code")),
                "byline": f"{words.listed(p['authors'])}. {_with_year(p)}.",
                "provides": p.get("provides") or [],
                "profiles": list(self.record.results),
                "believe": belief.sentences(self.record),
                "headline": headline,
                "statement": p["claims"][self.record.headline]["statement"],
                "identities": identities.section(self.record),
                "contents": self.contents(),
                "claims": claims,
                "stale": [f"{r.profile}: {'; '.join(r.stale.values())}." for r in results if r.stale],
                "post_hoc": [r.profile for r in results if (r.verdict or {}).get("post_hoc")],
            },
        )

    def contents(self) -> list[tuple[str, str]]:
        """(anchor, title) of the sections of the page."""
        p, method = self.paper, self.record.folder / "method.py"
        notes = self.record.folder / "NOTES.md"
        parts = [("verdicts", "Verdicts"), *((f"claim-{name}", name) for name in self.views)]
        if any(claim.get("untested") for claim in p["claims"].values()):
            parts.append(("untested", "Claims not tested here"))
        if p.get("identities"):
            parts.append(("identities", "Implementation checks"))
        if p.get("figures") or p.get("rankings"):
            parts.append(("shown", "Also measured"))
        if text.departures(text.header(method)):
            parts.append(("departures", "Departures"))
        if notes.is_file() and plain(notes).strip():
            parts.append(("notes", "Notes"))
        return [*parts, ("provenance", "Provenance"), ("cite", "Cite")]

    def claims(self) -> Fragment:
        """One section per claim, the claims that are not tested, and the exact statements."""
        names = list(self.views)
        parts = []
        for i, view in enumerate(self.views.values()):
            near = {"before": names[i - 1] if i else None, "after": names[i + 1] if i + 1 < len(names) else None}
            parts.append(part("paper.html.j2", "claim", {**view.section(), **near}))
        untested = [
            {"id": name, **claim, "told": words.told(claim["paper_value"])}
            for name, claim in self.paper["claims"].items()
            if claim.get("untested")
        ]
        exact = part("paper.html.j2", "identities", identities.section(self.record))
        return Fragment("\n".join([*parts, part("paper.html.j2", "untested", untested), exact]))

    def figures(self) -> Fragment:
        """What `figures:` and `rankings:` of paper.yaml ask for beside the claims."""
        values = {
            "figures": [FigureView(self.record, i).section() for i in range(len(self.paper.get("figures") or []))],
            "rankings": [RankingView(self.record, i).section() for i in range(len(self.paper.get("rankings") or []))],
        }
        return part("paper.html.j2", "figures", values)

    def method(self) -> Fragment:
        """Departures from the paper and the notes."""
        notes, method = self.record.folder / "NOTES.md", self.record.folder / "method.py"
        return part(
            "paper.html.j2",
            "method",
            {
                "departures": text.departures(text.header(method)),
                "notes": plain(notes).strip() if notes.is_file() else "",
            },
        )

    def provenance(self) -> Fragment:
        """Commit, device, versions, digests and trial keys of each profile."""
        edits = _edits(self.record.slug, self.paper)
        shown = [_provenance(r, edits) for r in self.record.results.values() if r.rows]
        return part("paper.html.j2", "provenance", {"slug": self.record.slug, "provenance": shown})

    def cite(self) -> Fragment:
        """BibTeX of the paper and of this implementation."""
        verdicts = [self.record.results[p].verdict for p in reversed(JUDGED) if p in self.record.results]
        verdict = next((v for v in verdicts if v), None)
        return part(
            "paper.html.j2",
            "cite",
            {
                "slug": self.record.slug,
                "version": repro.__version__,
                "bibtex": [cite.paper_bibtex(self.paper), cite.implementation_bibtex(self.paper, verdict)],
            },
        )


def _with_year(paper: Mapping[str, Any]) -> str:
    venue, year = str(paper.get("venue") or ""), str(paper["year"])
    return venue if year in venue else f"{venue} {year}".strip()


def _edits(slug: str, paper: Mapping[str, Any]) -> list[str]:
    """The edits of modules that its trials run and that count as equal to what was measured."""
    edits = sources.equal_edits()
    settings = (paper.get("experiments") or {}).values() if edits else ()
    named = {module for one in settings for module in sources.experiment_modules(slug, one)}
    run = sources.closure(*sorted(name for name in named if sources.module_file(name) is not None))
    return [
        f"{edit['module']}, {edit['date']}, after commit {edit['commit']}: {edit['proof']}"
        for edit in edits
        if edit["module"] in run
    ]


def _provenance(result: Result, edits: list[str]) -> dict[str, Any]:
    p, verdict = result.provenance, result.verdict or {}
    device = p.get("device_model") or p.get("device")
    facts: list[tuple[str, Any]] = [
        ("commit", f"{p.get('commit') or 'unknown'}{' (with uncommitted changes)' if p.get('dirty') else ''}"),
        ("device", device),
        ("threads", p.get("threads")),
        ("platform", p.get("platform")),
        *((f"version of {name}", v) for name, v in sorted((p.get("versions") or {}).items())),
        ("measured from", p.get("started")),
        ("seconds of measuring", p.get("seconds")),
        ("rows digest", p.get("digest")),
        ("rows digest in the verdict", verdict.get("rows_digest")),
        ("registered claims and seeds", (result.rows or {}).get("registered")),
        *((f"source of {name}", v) for name, v in sorted((p.get("sources") or {}).items())),
        *((f"settings of {name}", v) for name, v in sorted((p.get("config") or {}).items())),
        *(("note", note) for note in p.get("notes") or []),
        *(("edit that counts as equal", edit) for edit in edits),
    ]
    return {
        "profile": result.profile,
        "device": device,
        "started": p.get("started"),
        "trials": p.get("trials") or [],
        "facts": [(name, value) for name, value in facts if value is not None],
    }


def _repository(code: str | None) -> str | None:
    """The address of the authors' code, which is written as owner/name@commit."""
    found = re.fullmatch(r"([\w.-]+/[\w.-]+)(?:@(\w+))?", code or "")
    if not found:
        return None
    return f"https://github.com/{found[1]}" + (f"/tree/{found[2]}" if found[2] else "")


SCALES = {"same": "at the paper’s own scale", "scaled": "at small scale", "proxy": "on another task"}
SCALES["analytic"] = "in calculation"
GRADES = ("supported", "contradicted", "undecided", "not shown here", "phenomenon only")


def grade(line: Mapping[str, Any]) -> str:
    """The column of the first table in which a verdict counts."""
    if line["state"] == "inconclusive" and line["mark"] in ("not_shown", "phenomenon_only"):
        return {"not_shown": "not shown here", "phenomenon_only": "phenomenon only"}[line["mark"]]
    return words.SMALLER[line["state"]]


def times(records: Iterable[Record]) -> list[dict[str, Any]]:
    """Per profile the papers that have rows, their trials and the seconds of one process that these took.

    Papers that share an experiment share its trials: each counts once.
    """
    papers: dict[str, set[str]] = {}
    seconds: dict[str, dict[str, float]] = {}
    for one in records:
        for profile, result in one.results.items():
            rows = (result.rows or {}).get("rows") or []
            if rows:
                papers.setdefault(profile, set()).add(one.slug)
            for row, key in zip(rows, result.provenance.get("trials") or (), strict=False):
                seconds.setdefault(profile, {})[key] = row["seconds"]
    return [
        {"profile": p, "papers": len(papers[p]), "trials": len(own), "hours": math.fsum(own.values()) / 3600}
        for p in JUDGED
        if (own := seconds.get(p))
    ]


def _quantity(one: Record) -> str:
    """What the number of a headline is, and which way is better: `difference in error, lower is better`."""
    from repro.publish import evidence

    found = one.strongest(one.headline)
    rule = next(iter(words.rules(found[1].get("rule"))), {}) if found else {}
    better = ((one.paper.get("measures") or {}).get(rule.get("measure")) or {}).get("better")
    if found is None or words.is_count(found[1].get("unit")) or rule.get("kind") == "ranks":
        return ""
    return evidence.measured(found[1]) + (f", {better} is better" if better and not rule.get("steps_to") else "")


class ComparisonPage:
    """The page of all papers; `stale` (slug -> profile -> experiment -> why) replaces the comparison of digests."""

    def __init__(self, root: str | Path = ".", stale: Mapping[str, Stale] | None = None):
        self.root = Path(root)
        self.records, self.faults = readable(self.root, stale=stale)
        lines = [line for one in self.records for line in claim_lines(one)]
        self.lines = strongest(lines)
        self.headlines = [x for x in self.lines if x["headline"]]

    def head(self) -> Fragment:
        """What the suite found, by grade of evidence, and how to read the page."""
        from repro.judge.multiplicity import multiplicity

        judged = [x for x in self.lines if x["state"] in words.SMALLER]
        table = []
        for fidelity in SCALES:
            own = [x for x in judged if x["fidelity"] == fidelity]
            if own:
                counts = [sum(grade(x) == name for x in own) for name in GRADES]
                heads = sum(x["headline"] for x in own)
                table.append({"scale": SCALES[fidelity], "claims": len(own), "counts": counts, "headlines": heads})
        best = [
            {"paper": x["paper"], "profile": x["profile"], "claims": {x["claim"]: {k: x[k] for k in ("p", "state")}}}
            for x in judged
        ]
        values = {
            "papers": len(self.records),
            "version": repro.__version__,
            "identities": identities.count(self.records),
            "grades": GRADES,
            "table": table,
            "judged": len(judged),
            "headlines": {g: sum(grade(x) == g for x in judged if x["headline"]) for g in GRADES},
            "waiting": sum(x["state"] == "not_run" for x in self.lines),
            "untested": sum(x["state"] == "untested" for x in self.lines),
            "stale": sum(bool(x["stale"]) for x in judged),
            "post_hoc": sum(x["post_hoc"] for x in judged),
            "chance": multiplicity(best),
            "times": times(self.records),
            "faults": self.faults,
        }
        return part("comparison.html.j2", "head", values)

    def map(self) -> Fragment:
        """The papers by family, in the order of their years."""
        state = {x["paper"]: x for x in self.headlines}
        families = []
        for family in sorted({one.paper["family"] for one in self.records}, key=FAMILIES.index):
            own = sorted((one for one in self.records if one.paper["family"] == family), key=lambda o: o.paper["year"])
            years: dict[int, list[dict[str, Any]]] = {}
            for one in own:
                x = state[one.slug]
                entry = {"slug": one.slug, "title": one.paper["title"], "state": x["state"], "words": x["verdict"]}
                years.setdefault(one.paper["year"], []).append(entry)
            families.append((family, years))
        return part("comparison.html.j2", "map", {"families": families})

    def headlines_table(self) -> Fragment:
        """One line per paper: its headline at the largest profile that has run."""
        withdrawn = {one.slug: one.paper.get("withdrawn") for one in self.records}
        names = sorted({x["family"] for x in self.headlines}, key=FAMILIES.index)
        shown = {one.slug: _quantity(one) for one in self.records}
        lines = [{**x, "withdrawn": withdrawn[x["paper"]], "quantity": shown[x["paper"]]} for x in self.headlines]
        families = [(family, [x for x in lines if x["family"] == family]) for family in names]
        return part("comparison.html.j2", "headlines", {"families": families})

    def questions(self) -> Fragment:
        """The questions that people dispute, each with the answer that the verdicts give."""
        found = questions.answers(self.root, self.lines)
        return part("comparison.html.j2", "questions", {"questions": found})

    def arena(self) -> Fragment:
        """Which methods are as good as the tuned base, track by track."""
        return part("comparison.html.j2", "arena", {"lines": arena.summary(self.root)})

    def magnitude(self) -> Fragment:
        """Ours divided by the paper's number, of headline claims that give one."""
        given = [x for x in self.headlines if x["ratio"]]
        drawn = [x for x in given if x["ratio"] > 0][:60]
        if not drawn:
            return part("comparison.html.j2", "magnitude", None)
        items = [(f"{x['paper']} ({x['profile']})", x["ratio"], words.STATES[x["state"]]) for x in drawn]
        told = " ".join(f"{x['paper']} ({x['profile']}): {words.number(x['ratio'])}, {x['verdict']}." for x in drawn)
        title = "Ours divided by the paper's number"
        drawing = figures.magnitudes(items, name="magnitude", title=title, description=told)
        opposite = [f"{x['paper']} ({words.number(x['ratio'])})" for x in given if x["ratio"] < 0]
        return part("comparison.html.j2", "magnitude", {"drawing": drawing, "opposite": words.listed(opposite)})

    def claims(self) -> Fragment:
        """Every claim, at the largest profile that has run."""
        return part("comparison.html.j2", "claims", {"lines": self.lines, "version": repro.__version__})
