"""Exports: every form holds the stored verdicts, hostile text stays text, figures and badges stand alone."""

import csv
import io
import json
import re
from xml.etree import ElementTree

import pytest
from test_report import EVIL, EVIL_ARM, hostile, tree  # noqa: F401

from repro.errors import ReproError
from repro.publish import export

HOSTILE = "".join(map(chr, range(32, 127))) + "−∞×–√ 7\u202f% ’“”"


def test_every_form_has_the_same_verdicts(tree):  # noqa: F811
    lines = export.verdict_lines(tree, "demo")
    verdict = json.loads((tree / "papers/demo/results/gpu.verdict.json").read_text())
    own = next(line for line in lines if line["profile"] == "gpu" and line["claim"] == "running-time")
    judged = verdict["claims"]["running-time"]
    assert own["estimate"] == judged["estimate"] and [own["low"], own["high"]] == judged["interval"]
    assert own["rows_digest"] == verdict["rows_digest"] and own["verdict"] == "supported at small scale"
    assert own["controls_failed"] == own["controls"] == 1 and "divided by that of layernorm" in own["rule"]
    read = list(csv.DictReader(io.StringIO(export.exported(tree, "csv", "demo").decode())))
    assert [float(r["estimate"]) if r["estimate"] else None for r in read] == [line["estimate"] for line in lines]
    assert [json.loads(x) for x in export.exported(tree, "json", "demo").decode().splitlines()] == lines
    import pandas

    frame = pandas.read_parquet(io.BytesIO(export.exported(tree, "parquet", "demo")))
    assert frame.claim.tolist() == [line["claim"] for line in lines]
    one = export.verdict_lines(tree, "demo", "parity")
    assert {line["claim"] for line in one} == {"parity"} and len(one) == 2
    assert len(export.verdict_lines(tree)) == len(lines) + 1
    with pytest.raises(ReproError, match="no claim 'paritty' in demo; did you mean 'parity'"):
        export.verdict_lines(tree, "demo", "paritty")
    with pytest.raises(ReproError, match="--format xls"):
        export.exported(tree, "xls")


def test_tables_render(tree):  # noqa: F811
    import mistune

    text = export.exported(tree, "md", "demo").decode()
    html = mistune.create_markdown(plugins=["table"])(text)
    judged = [line for line in export.verdict_lines(tree, "demo") if line["state"] not in ("not_run", "untested")]
    assert html.count("<tr>") == len(judged) + 1 and "supported at small scale" in html
    latex = export.exported(tree, "latex", "demo").decode()
    rows = [row for row in latex.splitlines() if row.endswith(r"\\")]
    assert len(rows) == len(judged) + 1 and all(len(re.findall(r"(?<!\\)&", row)) == 6 for row in rows)
    assert r"\toprule" in latex and latex.count("{tabular}") == 2


def test_hostile_text_is_escaped(hostile):  # noqa: F811
    text = export.exported(hostile, "md", "demo").decode()
    assert "<script" not in text and "<img" not in text
    table = export.as_csv([{"a": "=cmd()", "b": "−1", "c": EVIL}])
    assert list(csv.DictReader(io.StringIO(table))) == [{"a": "'=cmd()", "b": "−1", "c": EVIL}]
    latex = export._latex(HOSTILE + EVIL_ARM)
    plain = re.sub(r"\\text[a-z]+\{\}|\$[^$]*\$|\\[&%$#_{},]", "", latex)
    assert not re.search(r"[&%$#_{}\\^]", plain), plain
    for picture in (
        export.badge(hostile, "demo"),
        *(svg.decode() for _, svg, _ in export.figure(hostile, "demo", "running-time")),
    ):
        ElementTree.fromstring(picture)
        assert "<script" not in picture and "<img" not in picture


def test_figures_stand_alone(tree):  # noqa: F811
    drawn = export.figure(tree, "demo", "running-time")
    digest = json.loads((tree / "papers/demo/results/gpu.verdict.json").read_text())["rows_digest"]
    assert len(drawn) >= 2
    for name, svg, caption in drawn:
        root = ElementTree.fromstring(svg)
        assert root.tag.endswith("svg") and b"var(--" not in svg and digest.encode() in svg and digest in caption
        assert name.startswith("demo-running-time-") and caption.startswith("demo, running-time:")
    picture = export.png(drawn[0][1], drawn[0][2])
    assert picture.startswith(b"\x89PNG") and digest.encode() in picture
    with pytest.raises(ReproError, match="has no verdict at profile long"):
        export.figure(tree, "demo", "running-time", "long")
    with pytest.raises(ReproError, match="no claim 'zero'"):
        export.figure(tree, "demo", "zero")


def test_a_badge_says_the_scale(tree):  # noqa: F811
    badge = export.badge(tree, "demo")
    assert ElementTree.fromstring(badge).get("aria-label") == "demo: supported at small scale, n = 5, post hoc"
    assert "demo: parity" in export.badge(tree, "demo", "parity") and "not run" in export.badge(tree, "other")
