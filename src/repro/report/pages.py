"""What the notebooks' cells call: the parts of a paper's page and of the comparison page, as HTML."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import repro
from repro import words
from repro.files.paths import JUDGED
from repro.files.strict import plain
from repro.publish import cite
from repro.report import arena, figures, text
from repro.report.asides import FigureView, RankingView
from repro.report.claims import ClaimView
from repro.report.records import Result, Stale, claim_lines, record, records
from repro.report.templates import Fragment, part

FAMILIES = ("normalization", "activation", "initialization", "residual", "training")


class PaperPage:
    """The page of `papers/<slug>`; `stale` (profile -> experiment -> why) replaces the comparison of digests."""

    def __init__(self, slug: str, root: str | Path = ".", stale: Stale | None = None):
        self.record = record(slug, Path(root), stale=stale)
        self.paper = self.record.paper
        tested = [name for name, claim in self.paper["claims"].items() if not claim.get("untested")]
        self.views = {name: ClaimView(self.record, name) for name in tested}

    def head(self) -> Fragment:
        """Title, equation, and the table of verdicts."""
        p, results = self.paper, self.record.results.values()
        links = [
            (f"{name}:{p[key]}", f"https://{host}/{p[key]}")
            for name, key, host in (("arXiv", "arxiv", "arxiv.org/abs"), ("doi", "doi", "doi.org"))
            if p.get(key)
        ]
        if p.get("url") and (target := text.safe_url(p["url"])):
            links.append(("paper", target))
        return part(
            "paper.html.j2",
            "head",
            {
                **{key: p.get(key) for key in ("slug", "family", "title", "code", "summary", "equation", "withdrawn")},
                "links": links,
                "byline": f"{words.listed(p['authors'])}. {_with_year(p)}.",
                "provides": p.get("provides") or [],
                "profiles": list(self.record.results),
                "claims": [view.summary() for view in self.views.values()],
                "stale": [f"{r.profile}: {'; '.join(r.stale.values())}." for r in results if r.stale],
                "post_hoc": [r.profile for r in results if (r.verdict or {}).get("post_hoc")],
            },
        )

    def claims(self) -> Fragment:
        """One section per claim, then the claims that are not tested."""
        parts = [part("paper.html.j2", "claim", view.section()) for view in self.views.values()]
        untested = [
            {"id": name, **claim, "told": words.told(claim["paper_value"])}
            for name, claim in self.paper["claims"].items()
            if claim.get("untested")
        ]
        return Fragment("\n".join([*parts, part("paper.html.j2", "untested", untested)]))

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
        shown = [_provenance(r) for r in self.record.results.values() if r.rows]
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


def _provenance(result: Result) -> dict[str, Any]:
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
    ]
    return {
        "profile": result.profile,
        "device": device,
        "started": p.get("started"),
        "trials": p.get("trials") or [],
        "facts": [(name, value) for name, value in facts if value is not None],
    }


class ComparisonPage:
    """The page of all papers; `stale` (slug -> profile -> experiment -> why) replaces the comparison of digests."""

    def __init__(self, root: str | Path = ".", stale: Mapping[str, Stale] | None = None):
        self.root, self.records = Path(root), records(Path(root), stale=stale)
        planned = {one.slug: set(one.paper.get("profiles") or {}) for one in self.records}
        lines = [line for one in self.records for line in claim_lines(one)]
        self.lines = [x for x in lines if x["profile"] in planned[x["paper"]] or x["state"] != "not_run"]
        self.headlines = [x for x in self.lines if x["headline"] and x["state"] != "untested"]

    def head(self) -> Fragment:
        """Counts, and how to read the page."""
        from repro.judge import quality

        tallies = []
        for profile in dict.fromkeys(x["profile"] for x in self.headlines):
            own = [x for x in self.headlines if x["profile"] == profile]
            counts = [(state, sum(x["state"] == state for x in own)) for state in words.STATES]
            tallies.append(
                {
                    "profile": profile,
                    "counts": [c for c in counts if c[1]],
                    "stale": sum(bool(x["stale"]) for x in own),
                    "post_hoc": sum(x["post_hoc"] for x in own),
                }
            )
        rates = quality.summary(r.quality for one in self.records for r in one.results.values() if r.quality)
        values = {"papers": len(self.records), "version": repro.__version__, "tallies": tallies, "quality": rates}
        return part("comparison.html.j2", "head", values)

    def headlines_table(self) -> Fragment:
        """One line per paper and headline claim, its profiles side by side."""
        merged: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for x in self.headlines:
            merged.setdefault((x["paper"], x["claim"]), []).append(x)
        withdrawn = {one.slug: one.paper.get("withdrawn") for one in self.records}
        lines = [{**of[0], "results": of, "withdrawn": withdrawn[of[0]["paper"]]} for of in merged.values()]
        names = sorted({x["family"] for x in lines}, key=FAMILIES.index)
        families = [(family, [x for x in lines if x["family"] == family]) for family in names]
        return part("comparison.html.j2", "headlines", {"families": families})

    def arena(self) -> Fragment:
        """Which methods share the first rank, track by track."""
        return part("comparison.html.j2", "arena", {"lines": arena.summary(self.root)})

    def magnitude(self) -> Fragment:
        """Ours divided by the paper's number, of headline claims that give one."""
        items = [
            (f"{x['paper']} ({x['profile']})", x["ratio"], words.STATES[x["state"]])
            for x in self.headlines
            if x["ratio"] and x["ratio"] > 0
        ]
        if not items:
            return part("comparison.html.j2", "magnitude", None)
        told = " ".join(f"{label}: {words.number(ratio)}, {state}." for label, ratio, state in items)
        title = "Ours divided by the paper's number"
        drawing = figures.magnitudes(items, name="magnitude", title=title, description=told)
        return part("comparison.html.j2", "magnitude", drawing)

    def claims(self) -> Fragment:
        """Every claim at every profile."""
        return part("comparison.html.j2", "claims", {"lines": self.lines, "version": repro.__version__})
