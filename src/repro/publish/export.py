"""Results to paste: verdicts as CSV, parquet, JSON lines, Markdown and LaTeX; figures as SVG and PNG; badges.

    verdict_lines(root, slug)        one dictionary per claim and profile
    exported(root, form, slug)       the same as one file: csv, parquet, json (lines), md, latex
    figure(root, slug, claim, png)   the figure of a claim with its caption and the digest of its rows
    badge(root, slug, claim)         a small picture of one verdict

Nothing is computed here: every field is that of a stored verdict, which has its rows beside it.
"""

import csv
import html
import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from repro import words
from repro.errors import ReproError, did_you_mean

FORMS = ("csv", "parquet", "json", "md", "latex")
COLOURS = {"reproduced": "#1b6b45", "not_reproduced": "#a8321f", "inconclusive": "#85600a"}


# ---- verdicts -----------------------------------------------------------------------------------------------------


def verdict_lines(
    root: Path | str, slug: str | None = None, claim: str | None = None, unread: list[str] | None = None
) -> list[dict[str, Any]]:
    """One line per claim and profile of all papers, or of one; `claim` keeps that claim alone.

    unread: gets a line for each paper that cannot be read, whose verdicts are left out.
    """
    from repro.report.records import claim_lines, readable, record

    root = Path(root)
    papers, bad = ([record(slug, root)], {}) if slug else readable(root)
    if unread is not None:
        unread += bad.values()
    lines = [line for one in papers for line in claim_lines(one)]
    if claim is None:
        return lines
    known = [line["claim"] for line in lines]
    if claim not in known:
        raise ReproError(f"no claim '{claim}' in {slug or 'any paper'}{did_you_mean(claim, known)}")
    return [line for line in lines if line["claim"] == claim]


def exported(
    root: Path | str, form: str, slug: str | None = None, claim: str | None = None, unread: list[str] | None = None
) -> bytes:
    """The verdicts as one file of a form; `unread` as in `verdict_lines`."""
    if form not in FORMS:
        raise ReproError(f"--format {form}{did_you_mean(form, FORMS, every=True)}")
    lines = verdict_lines(root, slug, claim, unread)
    if form == "parquet":
        return parquet(lines)
    return {"csv": as_csv, "json": as_json_lines, "md": as_markdown, "latex": as_latex}[form](lines).encode()


def as_csv(lines: Sequence[Mapping[str, Any]]) -> str:
    """A table for data frames and spreadsheets; a text that a spreadsheet would run as a formula is set in quotes."""
    out = io.StringIO()
    if lines:
        writer = csv.DictWriter(out, list(lines[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: _cell(value) for key, value in line.items()} for line in lines)
    return out.getvalue()


def _cell(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "@", "\t") else value


def as_json_lines(lines: Sequence[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n" for line in lines)


def parquet(lines: Sequence[Mapping[str, Any]]) -> bytes:
    import pandas

    packed = io.BytesIO()
    pandas.DataFrame(lines).to_parquet(packed, index=False)
    return packed.getvalue()


HEADS = ("paper", "claim", "the paper", "ours", "n", "profile", "verdict")


def shown(line: Mapping[str, Any]) -> tuple[str, ...]:
    """The cells of a table that people read."""
    marks = ", stale" * bool(line["stale"]) + ", post hoc" * bool(line["post_hoc"])
    n = "–" if line["n"] is None else str(line["n"])
    return (
        *(line["paper"], line["claim"], line["paper_value"], ours(line), n, line["profile"]),
        line["verdict"] + marks,
    )


def ours(line: Mapping[str, Any]) -> str:
    """Our estimate with its interval and unit."""
    odd = words.without_interval(line["estimate"], line["low"], line["high"], line["unit"])
    if odd is not None:
        return odd
    unit = f" {line['unit']}" if line["unit"] else ""
    shown, low, high = words.with_ends(line["estimate"], line["low"], line["high"])
    ends = "" if line["low"] is None and line["high"] is None else f" [{low}, {high}]"
    return f"{shown}{ends}{unit}"


def _judged(lines: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [line for line in lines if line["state"] not in ("not_run", "untested")]


def _digests(lines: Sequence[Mapping[str, Any]]) -> str:
    """The digests of the rows behind a table, short."""
    found = {line["rows_digest"].removeprefix("sha256:")[:12]: line for line in _judged(lines)}
    return ", ".join(f"{line['paper']} {line['profile']} {digest}" for digest, line in found.items())


def as_markdown(lines: Sequence[Mapping[str, Any]]) -> str:
    """A table of judged claims."""
    table = [HEADS, tuple("---" for _ in HEADS), *(tuple(map(_markdown, shown(line))) for line in _judged(lines))]
    text = "\n".join(f"| {' | '.join(row)} |" for row in table)
    return (
        f"{text}\n\nEach end of an interval is one-sided at 95 %. Digests of the rows: {_digests(lines) or 'none'}.\n"
    )


def _markdown(text: str) -> str:
    text = html.escape(" ".join(str(text).split()), quote=False)
    return re.sub(r"([\\|`*_\[\]$~#!])", r"\\\1", text)


def as_latex(lines: Sequence[Mapping[str, Any]]) -> str:
    """A booktabs table of judged claims; the document needs `\\\\usepackage{booktabs}`."""
    rows = [" & ".join(map(_latex, shown(line))) + r" \\" for line in _judged(lines)]
    body = "\n".join(rows)
    head = " & ".join(map(_latex, HEADS)) + r" \\"
    digests = _latex(_digests(lines) or "none")
    return (
        f"% \\usepackage{{booktabs}}; digests of the rows: {digests}\n"
        f"\\begin{{tabular}}{{llllrll}}\n\\toprule\n{head}\n"
        f"\\midrule\n{body}\n\\bottomrule\n\\end{{tabular}}\n"
    )


_SIGNS = {
    **{"\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    **{c: f"\\{c}" for c in "&%$#_"},
    **{"−": "$-$", "∞": r"$\infty$", "×": r"$\times$", "–": "--", "—": "---", "≤": r"$\le$", "≥": r"$\ge$"},
    **{
        "≈": r"$\approx$",
        "±": r"$\pm$",
        "√": r"$\surd$",
        "→": r"$\to$",
        "\u202f": r"\,",
        "\u00a0": "~",
        "·": r"$\cdot$",
    },
    **{"’": "'", "‘": "`", "“": "``", "”": "''", "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"},
    **{"⁻": "$^{-}$", "α": r"$\alpha$", "β": r"$\beta$", "γ": r"$\gamma$", "λ": r"$\lambda$", "σ": r"$\sigma$"},
    **{digit: f"$^{{{i}}}$" for i, digit in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")},
}


def _latex(text: str) -> str:
    """Text that LaTeX sets as it stands; a sign that is unknown here and no Latin letter becomes a question mark."""
    text = " ".join(str(text).split()) if "\u202f" not in str(text) and "\u00a0" not in str(text) else str(text)
    return "".join(_SIGNS.get(c, c if ord(c) < 0x250 and c.isprintable() else "?") for c in text)


# ---- figures ------------------------------------------------------------------------------------------------------


def figure(root: Path | str, slug: str, claim: str, profile: str | None = None) -> list[tuple[str, bytes, str]]:
    """(name, SVG, caption) of every figure of a claim at the largest profile that has run, or at `profile`."""
    from repro.report.claims import ClaimView
    from repro.report.records import record

    one = record(slug, Path(root))
    tested = [name for name, told in one.paper["claims"].items() if not told.get("untested")]
    if claim not in tested:
        raise ReproError(f"{slug}: no claim '{claim}' that is measured{did_you_mean(claim, tested)}")
    view = ClaimView(one, claim)
    profiles = [p for p, _, _ in view.judged()]
    if not profiles or profile not in (None, *profiles):
        at = f" at profile {profile}" if profile else ""
        raise ReproError(f"{slug}: claim {claim} has no verdict{at}; run `repro run {slug}` and `repro judge {slug}`")
    chosen = profile or profiles[0]
    digest = one.results[chosen].verdict["rows_digest"]
    drawn = [f for row in view.figures() for f in row if f.svg and f.caption.startswith(f"{chosen}:")]
    title = f"{slug}, {claim}: {one.paper['claims'][claim]['statement']}"
    figures = []
    for i, one_figure in enumerate(drawn):
        caption = f"{title} {one_figure.caption} Rows: {digest}."
        figures.append((f"{slug}-{claim}-{i + 1}", standalone(one_figure.svg, caption), caption))
    return figures


def standalone(svg: str, caption: str) -> bytes:
    """An inlined figure as a file of its own: the page's colours on white, the caption and the digest as metadata."""
    plain = re.sub(r"var\(--\w+,(#\w+)\)", r"\1", svg).replace(' class="figure"', "")
    size = re.search(r'viewBox="0 0 (\d+) (\d+)"', plain)
    ground = f'<rect width="{size[1]}" height="{size[2]}" fill="#ffffff"/>' if size else ""
    meta = f"<metadata>{html.escape(caption)}</metadata>"
    return re.sub(r"(</desc>)", lambda m: m[1] + meta + ground, plain, count=1).encode()


def png(svg: bytes, caption: str, scale: float = 3.0) -> bytes:
    """The figure as PNG, with the caption as its description."""
    import struct
    import zlib

    import vl_convert

    data = bytes(vl_convert.svg_to_png(svg.decode(), scale=scale))
    text = b"Description\x00\x00\x00\x00\x00" + caption.encode()
    chunk = struct.pack(">I", len(text)) + b"iTXt" + text + struct.pack(">I", zlib.crc32(b"iTXt" + text))
    return data[:33] + chunk + data[33:]  # behind the header, which is 8 + 25 bytes long


# ---- badges -------------------------------------------------------------------------------------------------------


def badge(root: Path | str, slug: str, claim: str | None = None) -> str:
    """One verdict as SVG: the paper, and the words of the verdict with scale and number of seeds."""
    from repro.report.records import record

    one = record(slug, Path(root))
    name = claim or one.headline
    if name not in one.paper["claims"]:
        raise ReproError(f"{slug}: no claim '{name}'{did_you_mean(name, one.paper['claims'])}")
    found = one.strongest(name)
    told, state = "not run", ""
    if found:
        judged, state = found[1], found[1]["state"]
        told = words.verdict_words(state, judged.get("mark"), one.paper["claims"][name].get("fidelity"))
        told += f", n = {judged['n']}" if judged.get("n") else ""
        told += ", post hoc" if found[0].verdict["post_hoc"] else ""
    left = f"{slug}: {name}" if claim else slug
    widths = [round(6.6 * len(text) + 14) for text in (left, told)]
    left, told = html.escape(left), html.escape(told)
    colour, total = COLOURS.get(state, "#5a564f"), sum(widths)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{total}" height="20" role="img" aria-label="{left}: {told}">'
        f"<title>{left}: {told}</title>"
        f'<rect width="{total}" height="20" rx="3" fill="#444"/>'
        f'<path d="M{widths[0]} 0h{widths[1] - 3}a3 3 0 0 1 3 3v14a3 3 0 0 1 -3 3h-{widths[1] - 3}z" fill="{colour}"/>'
        f'<g fill="#fff" font-family="Verdana,DejaVu Sans,sans-serif" font-size="11">'
        f'<text x="7" y="14">{left}</text><text x="{widths[0] + 7}" y="14">{told}</text></g></svg>\n'
    )
