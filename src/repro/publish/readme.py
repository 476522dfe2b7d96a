"""The README of each paper and the table in the README of the suite, from paper.yaml and what is stored."""

import re
import textwrap

from repro.files.paths import JUDGED
from repro.publish.evidence import Evidence, ours
from repro.publish.markdown import code, escape, link, short
from repro.publish.stages import MARK
from repro.spec.model import Paper
from repro.words import control_text, number, verdict_words


def paper_value(claim) -> str:
    """The paper's own number, as a text."""
    return claim.paper_value.text or number(claim.paper_value.value)


def imports(module: str, names: list[str]) -> str:
    """An import of these names, as the formatter leaves it."""
    line = f"from {module} import {', '.join(names)}"
    return line if len(line) <= 120 else f"from {module} import (\n" + "".join(f"    {n},\n" for n in names) + ")"


def paper_readme(paper: Paper, names: list[str], verdicts: dict[str, dict | None]) -> str:
    """`papers/<slug>/README.md`."""
    slug = paper.slug
    source = f"[arXiv:{escape(paper.arxiv)}](https://arxiv.org/abs/{paper.arxiv})" if paper.arxiv else ""
    source = source or link(f"https://doi.org/{paper.doi}" if paper.doi else paper.url)
    lines = [f"<!-- {MARK} from paper.yaml and results/ -->", f"# {escape(paper.title)}", ""]
    lines += [f"{escape(', '.join(paper.authors))}. {escape(paper.venue)}. {source}".strip(), ""]
    lines += [f"**Withdrawn**: {escape(paper.withdrawn)}", ""] if paper.withdrawn else []
    lines += [escape(paper.summary), ""]
    lines += ["```python", imports(f"repro.papers.{slug}", names), "```", ""]
    lines += [
        "The method is [method.py](method.py). What is measured is [experiment.py](experiment.py), and the rules are "
        "in [paper.yaml](paper.yaml). Pitfalls are in [NOTES.md](NOTES.md), and the rendered page is "
        f"[reports/papers/{slug}.html](../../reports/papers/{slug}.html).",
        "",
    ]
    for profile in [p for p in JUDGED if p in paper.profiles]:
        lines += _profile(paper, profile, verdicts.get(profile))
    if untested := {name: claim for name, claim in paper.claims.items() if claim.untested}:
        lines += ["## Not tested here", ""]
        lines += [
            f"- {code(name)} ({escape(c.where)}): {escape(c.statement)} {escape(c.untested)}"
            for name, c in untested.items()
        ]
        lines.append("")
    return "\n".join(lines)


def _profile(paper: Paper, profile: str, verdict: dict | None) -> list[str]:
    lines = [f"## Profile `{profile}`", ""]
    if verdict is None:
        return [*lines, f"Not run. `repro run {paper.slug} --profile {profile}` measures it.", ""]
    if verdict["claims"]:
        lines += ["| claim | where | the paper | ours | control | verdict |", "|---|---|---|---|---|---|"]
    for name, judged in verdict["claims"].items():
        claim = paper.claims[name]
        controls = "; ".join(f"{escape(control_text(c))}: {verdict_words(c['state'])}" for c in judged["controls"])
        headline = " (headline)" if verdict["headline"] == name else ""
        state = verdict_words(judged["state"], judged.get("mark"), claim.fidelity)
        lines.append(
            f"| {code(name)}{headline}: {escape(claim.statement)} | {escape(claim.where)} "
            f"| {escape(paper_value(claim))} | {escape(ours(judged))} | {controls} | {state} |"
        )
    lines += [""] * bool(verdict["claims"])
    if verdict["post_hoc"]:
        lines += ["**Post hoc**: rules or seeds were changed after these rows were measured.", ""]
    if identities := verdict.get("identities"):
        lines += ["| identity | where | |", "|---|---|---|"]
        for name, one in identities.items():
            stated = paper.identities[name]
            lines.append(f"| {code(name)}: {escape(stated.statement)} | {escape(stated.where)} | {one['state']} |")
        lines.append("")
    return lines


DECIDED = ("reproduced", "not reproduced", "supported", "contradicted")


def verdict_table(evidence: list[Evidence]) -> str:
    """The table of the README: one line for each paper whose headline is decided; the others by name, a line a word."""
    lines = ["| paper | what it is known for | the paper | ours | verdict |", "|---|---|---|---|---|"]
    others: dict[str, list[str]] = {}
    for one in evidence:
        name = f"[{one.slug}](papers/{one.slug}/README.md){' (withdrawn)' if one.withdrawn else ''}"
        if one.fault:
            lines.append(f"| {name} | | | | cannot be read |")
        elif one.judged and one.words.startswith(DECIDED):
            lines.append(
                f"| {name} | {escape(short(one.statement, 110))} | {escape(short(one.paper_value, 60))} "
                f"| {escape(one.ours or '–')} | {one.words} |"
            )
        else:  # "undecided on another task (`long`)" and "not shown here, at small scale" without where and the scale
            waits = "waiting for a run on two cores" if one.cpu_decides else "waiting for a GPU"
            word = re.split(r",| at | on | in | \(", one.words)[0] if one.judged else waits
            others.setdefault(word, []).append(name)
    for word in sorted(others, key=lambda word: (word.startswith("waiting"), word)):
        names = f"{word[:1].upper()}{word[1:]} ({len(others[word])}): {', '.join(others[word])}."
        lines += ["", *textwrap.wrap(names, 120, break_long_words=False, break_on_hyphens=False)]
    return "\n".join(lines)
