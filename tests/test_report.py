"""Reports from hand-made results: one paper with every kind of claim and outcome, one that has not run."""

import base64
import hashlib
import json
import math
import random
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from repro import report, words
from repro.errors import Failed, ReproError
from repro.files.paths import SCHEMA
from repro.report import figures, pages, text
from repro.report.asides import FigureView, RankingView, rank_table
from repro.report.records import Record, Result, record
from repro.store import rows_digest, sealed

ROOT = Path(__file__).resolve().parents[1]
EVIL = "<script>alert('x')</script> & \"<b>\""
EVIL_ARM = "<img src=http://x.test/y onerror=alert(1)>"

PAPER = """\
slug: demo
title: Root Mean Square Layer Normalization
authors: [Biao Zhang, Rico Sennrich]
year: 2019
venue: NeurIPS 2019
arxiv: "1910.07467"
code: bzhangGo/rmsnorm@2e726f1
family: normalization
summary: Dividing by the root mean square alone, without centring, trains as well as LayerNorm and costs less.
equation: \\mathrm{RMS}(x) = \\sqrt{\\tfrac1n \\sum_{i=1}^{n} x_i^2}, \\qquad y_i = g_i\\,\\frac{x_i}{\\mathrm{RMS}(x)}
provides: [{slot: norm, name: RMSNorm}]
headline: running-time
measures:
  error: {unit: relative error, better: lower}
  val_nats: {unit: nats per byte, better: lower}
  train_nats: {unit: nats per byte, better: lower}
  step: {unit: training steps, better: lower}
  ms: {unit: milliseconds, better: lower, positive: true}
  norm: {unit: gradient norm, better: higher, positive: true}
experiments:
  identities: {arms: [rmsnorm, sum], about: "relative errors in float64"}
  quality:
    arms: [rmsnorm, layernorm, identity]
    factors: {depth: [4, 12]}
    about: a byte-level language model with each norm
  timing: {arms: [rmsnorm, layernorm, layernorm_renamed], exclusive: true, about: a training step}
  signal: {arms: [rmsnorm, identity], factors: {depth: [4, 8, 16, 32]}, about: gradient norm at the first layer}
identities:
  zero-mean:
    statement: If the summed inputs have zero mean, RMSNorm equals LayerNorm.
    where: Sec. 4, after Eq. 4
    experiment: identities
    rule: {kind: identity, measure: error, arm: rmsnorm, bound: 1.0e-10}
    controls: [{replace: {rmsnorm: sum}, expect: violated, why: the sum in place of the mean is off by √n}]
elsewhere:
  - {claim: parity, who: Another Author, where: "arXiv:2001.00001", setting: 1 B parameters, says: equal, agrees: yes}
claims:
  running-time:
    statement: Replacing LayerNorm by RMSNorm shortens the training step by 7 % to 64 %.
    paper_value: {low: 0.36, high: 0.93, value: 0.753, text: "24.7 % less (RNNSearch, Table 2); 7 %–64 % overall"}
    where: Abstract; Table 2
    fidelity: scaled
    experiment: timing
    rule: {kind: ratio, measure: ms, arm: rmsnorm, against: layernorm, max: 0.93}
    controls: [{replace: {rmsnorm: layernorm_renamed}, expect: not_reproduced}]
    note: Elementary operations, as in 2019; today's fused kernels reverse the order.
  parity:
    statement: Model quality with RMSNorm is comparable to LayerNorm.
    paper_value: {text: "22.4 against 22.6 BLEU"}
    where: Table 2
    fidelity: proxy
    experiment: quality
    rule: {kind: noninferiority, measure: val_nats, arm: rmsnorm, against: layernorm, margin: 0.02, per: depth}
    controls: [{replace: {rmsnorm: identity}, expect: not_reproduced}]
  convergence:
    statement: RMSNorm needs no more steps than LayerNorm to the same training loss.
    paper_value: {text: curves coincide}
    where: Fig. 2
    fidelity: proxy
    experiment: quality
    rule:
      kind: noninferiority
      measure: train_nats
      arm: rmsnorm
      against: layernorm
      margin: 20
      at: {depth: 4}
      steps_to: {target: 2.2, axis: step}
    controls: [{replace: {rmsnorm: identity}, at: {depth: 12}, expect: not_reproduced}]
  gradients:
    statement: The gradient of the first layer does not shrink with depth.
    paper_value: {text: independent of depth}
    where: Sec. 4.2
    fidelity: scaled
    experiment: signal
    rule: {cpu: {kind: slope, measure: norm, arm: rmsnorm, x: depth, scale: loglog, between: [-0.1, 0.1]}}
    controls: [{replace: {rmsnorm: identity}, expect: not_reproduced}]
  translation:
    statement: RMSNorm reaches 22.4 BLEU on WMT14 En-De.
    paper_value: {value: 22.4, unit: BLEU}
    where: Table 2
    fidelity: same
    untested: A week of training on a translation corpus lies outside the budget.
figures:
  - {title: Training loss, experiment: quality, measure: train_nats, x: step, at: {depth: 4}, where: Fig. 2,
     about: "Lower is better."}
  - {title: Gradient norm, experiment: signal, measure: norm, x: depth, arms: [identity, rmsnorm]}
  - {title: Errors, experiment: identities, measure: error}
rankings:
  - {title: Ranks of the norms, experiment: signal, measure: norm, over: depth, arm: rmsnorm, where: Table 9}
profiles:
  cpu: {seeds: 5, identities: {}, quality: {steps: 300}, timing: {}, signal: {}}
  gpu: {seeds: 5, quality: {steps: 3000}, timing: {}}
"""

METHOD = '''"""RMSNorm (Zhang & Sennrich, NeurIPS 2019, arXiv:1910.07467).

    RMS(x) = sqrt(mean_i x_i^2)          y = g * x / RMS(x)

  D1  eps = 1e-8 is added to RMS(x), outside the root; torch.nn.RMSNorm puts it inside.
      test_d1_epsilon_placement bounds the gap.
And one choice of our own:
  D2  statistics are computed in float32 at least.
"""
'''

NOTES = """\
# RMSNorm: notes

The speed claim holds for *composed* operations. With fused kernels the order reverses:

| kernel | ms |
|---|---|
| `F.layer_norm` | 23.5 |
| `F.rms_norm` | 38.6 |

- `int(d * p)` is 0 for $d < 16$ at $p = 6.25\\,\\%$.
- See [LayerNorm](../layernorm/NOTES.md) and [the paper](https://arxiv.org/abs/1910.07467). ![plot](https://example.org/x.png)
"""

OTHER = """\
slug: other
title: A Method That Has Not Run
authors: [Ada Author]
year: 2021
venue: ICML 2021
doi: 10.1000/xyz
family: activation
summary: It adds one.
equation: y = x + 1
headline: main
measures: {error: {unit: relative error, better: lower}}
experiments: {main: {arms: [method, broken]}}
claims:
  main:
    statement: The error is small.
    paper_value: {value: 0.01, unit: relative error}
    where: Table 1
    fidelity: same
    experiment: main
    rule: {kind: bound, measure: error, arm: method, max: 0.5}
    controls: [{replace: {method: broken}, expect: not_reproduced}]
profiles: {cpu: {seeds: 3, main: {}}}
"""


def demo_rows(profile: str) -> list[dict]:
    rng = random.Random(profile)
    scale = 1.0 if profile == "cpu" else 0.1
    rows = []

    def add(experiment, arm, seed, measures, seconds, factors=None, **more):
        rows.append(
            {
                "experiment": experiment,
                "arm": arm,
                "seed": seed,
                "factors": factors or {},
                "status": "ok",
                "seconds": round(seconds, 3),
                "measures": measures,
                **more,
            }
        )

    for seed in range(5):
        if profile == "cpu":
            add("identities", "rmsnorm", seed, {"error": [0.0, 2.2e-16, 0.0, 4.4e-16, 3.1e-16][seed]}, 0.01)
            add("identities", "sum", seed, {"error": 30.6 + rng.gauss(0, 1)}, 0.01)
            for depth in (4, 8, 16, 32):
                add(
                    "signal",
                    "rmsnorm",
                    seed,
                    {"norm": 1.1 * depth**0.02 * math.exp(rng.gauss(0, 0.04))},
                    0.2,
                    {"depth": depth},
                )
                if depth == 32 and seed == 1:
                    add("signal", "identity", seed, {}, 0.2, {"depth": depth}, status="diverged", step=None)
                else:
                    add(
                        "signal",
                        "identity",
                        seed,
                        {"norm": depth**-1.3 * math.exp(rng.gauss(0, 0.2))},
                        0.2,
                        {"depth": depth},
                    )
        for depth in (4, 12):
            noise = rng.gauss(0, 0.012)
            for arm, shift in (("rmsnorm", -0.004), ("layernorm", 0.0), ("identity", None)):
                if shift is None:
                    add("quality", arm, seed, {}, 1.5 * depth, {"depth": depth}, status="diverged", step=12 + seed)
                    continue
                end = 1.62 - 0.01 * depth + shift + noise + rng.gauss(0, 0.004)
                curve = [
                    round(end + 3.6 * math.exp(-k / (34 + shift * 300)) + rng.gauss(0, 0.02), 4)
                    for k in range(0, 301, 5)
                ]
                add(
                    "quality",
                    arm,
                    seed,
                    {"val_nats": end, "train_nats": curve, "step": list(range(0, 301, 5))},
                    4.1 * depth,
                    {"depth": depth},
                )
        base = 28 * scale * math.exp(rng.gauss(0, 0.03))
        add(
            "timing",
            "rmsnorm",
            seed,
            {"ms": base * (0.99 if profile == "cpu" else 0.81) * math.exp(rng.gauss(0, 0.03))},
            8.0,
        )
        add("timing", "layernorm", seed, {"ms": base}, 8.0)
        add("timing", "layernorm_renamed", seed, {"ms": base * math.exp(rng.gauss(0, 0.02))}, 8.0)
    return rows


def build(root: Path) -> Path:
    """A tree with `papers/demo` (measured on cpu and gpu) and `papers/other` (not run)."""
    from repro.judge import judge, quality
    from repro.spec.load import load

    for slug, source in (("demo", PAPER), ("other", OTHER)):
        (root / "papers" / slug / "results").mkdir(parents=True)
        (root / "papers" / slug / "paper.yaml").write_text(source, encoding="utf-8")
    (root / "papers" / "demo" / "method.py").write_text(METHOD, encoding="utf-8")
    (root / "papers" / "demo" / "NOTES.md").write_text(NOTES, encoding="utf-8")
    shutil.copytree(ROOT / "notebooks", root / "notebooks", ignore=shutil.ignore_patterns(".*"))
    paper = load(root / "papers" / "demo")
    for profile in ("cpu", "gpu"):
        rows = demo_rows(profile)
        document = {
            "schema": SCHEMA,
            "paper": "demo",
            "profile": profile,
            "provenance": {
                "digest": rows_digest(rows),
                "commit": "4f2a" * 10,
                "dirty": False,
                "device": "cpu" if profile == "cpu" else "cuda",
                "device_model": "AMD EPYC 9B14" if profile == "cpu" else "NVIDIA H100 80GB HBM3",
                "threads": 1,
                "platform": "Linux x86_64",
                "versions": {"python": "3.11.7", "torch": "2.15.0", "numpy": "2.4.6", "repro": "0.1.0"},
                "started": "2026-11-20",
                "seconds": round(sum(r["seconds"] for r in rows), 3),
                "sources": {n: "sha256:" + "ab" * 32 for n in paper.experiments_in(profile)},
                "config": {n: "sha256:" + "cd" * 32 for n in paper.experiments_in(profile)},
                "trials": [f"sha256:{i:064x}" for i in range(1, len(rows) + 1)],
                "notes": [],
            },
            "registered": paper.registration(profile) if profile == "cpu" else "sha256:" + "ef" * 32,
            "rows": rows,
        }
        folder = root / "papers" / "demo" / "results"
        document = sealed(document)
        (folder / f"{profile}.rows.json").write_text(json.dumps(document), encoding="utf-8")
        (folder / f"{profile}.verdict.json").write_text(json.dumps(judge(paper, profile, document)), encoding="utf-8")
        (folder / f"{profile}.quality.json").write_text(
            quality.text(quality.assess(paper, profile, document)), encoding="utf-8"
        )
    return root


def fresh_on_cpu(paper, profile: str) -> dict:
    """Digests as of now: those of the fixture, but for the source of `quality` on the GPU."""
    names = paper.experiments_in(profile)
    sources = {n: "sha256:" + ("ab" if profile == "cpu" or n != "quality" else "00") * 32 for n in names}
    return {"sources": sources, "config": {n: "sha256:" + "cd" * 32 for n in names}}


# --- reading pages ----------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """Every element with its attributes, every <data> with its text, and the text of the page."""

    def __init__(self, source: str):
        super().__init__()
        self.source = source
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.numbers: list[tuple[float, str]] = []
        self.words: list[str] = []
        self._number: str | None = None
        self.feed(source)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "data":
            self._number = dict(attrs)["value"]

    def handle_data(self, data: str) -> None:
        if self.elements and self.elements[-1][0] == "script":
            return
        self.words.append(data)
        if self._number is not None:
            self.numbers.append((json.loads(self._number), data))
            self._number = None

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def numbers_in(value: Any) -> Iterator[float]:
    if isinstance(value, dict):
        for item in value.values():
            yield from numbers_in(item)
    elif isinstance(value, list):
        for item in value:
            yield from numbers_in(item)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield value


def in_process(root: Path, slug: str, current=fresh_on_cpu) -> str:
    """The page of a paper without a kernel: the same parts, exported through the same template."""
    from nbformat.v4 import new_code_cell, new_notebook, new_output

    from repro.report.render import _export

    page = report.PaperPage(slug, root, {p: r.stale for p, r in record(slug, root, current=current).results.items()})
    parts = [page.head(), page.claims(), page.figures(), page.method(), page.provenance(), page.cite()]
    cells = [new_code_cell("", outputs=[new_output("execute_result", data={"text/html": str(p)})]) for p in parts]
    return _export(new_notebook(cells=cells), f"{page.paper['title']} · repro")


def refuse_requests(page: Page) -> None:
    """Nothing on the page may ask a host for anything, nor run."""
    for tag, attributes in page.elements:
        assert tag != "script" or not attributes, "the one script is inline"
        assert tag not in {
            "link",
            "iframe",
            "object",
            "embed",
            "img",
            "image",
            "video",
            "audio",
            "base",
            "use",
            "form",
        }, tag
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name in {"src", "srcset", "poster", "background", "action", "xlink:href"}:
                raise AssertionError(f"{tag} {name}={value}")
            if name == "href":
                assert tag == "a" and re.match(
                    r"https://(arxiv|doi)\.org/|https://github\.com/[\w./-]+$|#|(\.\./)?[\w/]+\.html"
                    r"|rows\.(csv\.gz|parquet)$|verdicts\.csv$",
                    value,
                ), value
            if name == "style" or name == "fill":
                assert "url(" not in (value or "") and "http" not in (value or "")
    assert "@import" not in page.source and not re.search(r"url\((?!#)", page.source)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("suite"))


@pytest.fixture(scope="module")
def paper_page(tree: Path) -> Page:
    path = report.render_paper("demo", tree, current=fresh_on_cpu)
    assert path == tree / "reports" / "papers" / "demo.html"
    return Page(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def index_page(tree: Path) -> Page:
    path = report.render_index(tree, current=fresh_on_cpu)
    assert path == tree / "reports" / "index.html"
    return Page(path.read_text(encoding="utf-8"))


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """The tree with hostile text wherever a record may hold text."""
    build(tmp_path)
    paper = tmp_path / "papers" / "demo"
    source = (paper / "paper.yaml").read_text(encoding="utf-8")
    for old in (
        "title: Root Mean Square Layer Normalization",
        "summary: Dividing by the root mean square alone, without centring, trains "
        "as well as LayerNorm and costs less.",
        "    statement: Model quality with RMSNorm is comparable to LayerNorm.",
        "    where: Sec. 4.2",
        "    note: Elementary operations, as in 2019; today's fused kernels reverse the order.",
    ):
        assert old in source
        source = source.replace(old, f"{old.split(':')[0]}: {json.dumps(EVIL)}")
    source = source.replace("equation: \\mathrm", "equation: \\text{<script>alert(1)</script>} \\mathrm")
    source = source.replace("layernorm_renamed", json.dumps(EVIL_ARM))
    (paper / "paper.yaml").write_text(source, encoding="utf-8")
    for profile in ("cpu", "gpu"):
        digest = None
        for kind in ("rows", "verdict", "quality"):
            path = paper / "results" / f"{profile}.{kind}.json"
            text_ = path.read_text(encoding="utf-8").replace("layernorm_renamed", json.dumps(EVIL_ARM)[1:-1])
            document = json.loads(text_)
            if kind == "rows":
                digest = rows_digest(document["rows"])
                document["provenance"] |= {"device_model": EVIL, "commit": EVIL, "notes": [EVIL], "digest": digest}
                document = sealed(document)  # a stranger can
            else:
                document["rows_digest"] = digest
            if kind == "verdict":
                for judged in [*document["claims"].values(), *document["identities"].values()]:
                    judged["why"] = EVIL
            path.write_text(json.dumps(document), encoding="utf-8")
    (paper / "NOTES.md").write_text(
        f"# {EVIL}\n\n{EVIL}\n\n[l](javascript:alert(1)) ![p](https://x.test/p.png)\n", encoding="utf-8"
    )
    (paper / "method.py").write_text(f'"""Header.\n\n  D1  {EVIL_ARM}\n"""\n', encoding="utf-8")
    return tmp_path


# --- the page of a paper ----------------------------------------------------------------------------------------------


def test_pages_ask_nobody_for_anything(paper_page, index_page):
    refuse_requests(paper_page)
    refuse_requests(index_page)
    for page in (paper_page, index_page):
        policy = page.all("meta")[2]["content"]
        (script,) = re.findall(r"<script>(.*?)</script>", page.source, re.DOTALL)
        allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert policy == f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{allowed}'"
        assert not re.search(r"fetch|XMLHttp|import\s*\(|https?:|innerHTML|eval", script)


def test_all_rows_can_be_downloaded(tree, index_page):
    import pandas

    want = report.frame(tree)
    for found in (
        pandas.read_csv(tree / "reports" / "rows.csv.gz"),
        pandas.read_parquet(tree / "reports" / "rows.parquet"),
    ):
        assert list(found.columns) == list(want.columns) and len(found) == len(want)
        assert found.value.dropna().tolist() == pytest.approx(want.value.dropna().tolist(), rel=1e-15)
        curves = [json.loads(c) for c in found.curve.dropna()]
        assert curves == [c for c in want.curve if c is not None]
    assert {"rows.csv.gz", "rows.parquet"} <= {a.get("href") for a in index_page.all("a")}


def test_equal_inputs_give_equal_bytes(tree, paper_page):
    assert in_process(tree, "demo") == paper_page.source  # another process, and no papermill at all
    assert in_process(tree, "demo") == paper_page.source
    for trace in ("papermill", "ipykernel", str(tree), "execution_count", "metadata"):
        assert trace not in paper_page.source


def test_every_figure_has_a_text_alternative(paper_page):
    drawings = paper_page.all("svg")
    ids = [a["id"] for _, a in paper_page.elements if "id" in a]
    assert len(drawings) >= 14 and len(ids) == len(set(ids))
    for drawing in drawings:
        assert drawing["role"] == "img"
        assert set(drawing["aria-labelledby"].split()) <= set(ids)
    assert "identity, depth 4: 5 diverged." in paper_page.text
    assert len(paper_page.all("desc")) == len(paper_page.all("title")) - 1 == len(drawings)


def test_a_figure_without_a_text_alternative_is_refused():
    group = [figures.Group("a", "method", {0: 1.0, 1: 2.0})]
    for title, description in (("", "words"), ("words", " ")):
        with pytest.raises(ReproError, match="text alternative"):
            figures.dots(group, name="f", axis="x", title=title, description=description)


def test_tables_have_captions_and_scopes(paper_page, index_page):
    for page in (paper_page, index_page):
        own = page.source.split('<div class="notes">')[0]
        assert own.count("<table") == own.count("<caption>") > 0
        assert all(a.get("scope") in ("col", "row", "rowgroup") for a in page.all("th"))


@pytest.mark.parametrize("profile", ["cpu", "gpu"])
def test_numbers_equal_those_of_the_verdict(tree, paper_page, profile):
    verdict = json.loads((tree / f"papers/demo/results/{profile}.verdict.json").read_text())
    shown = {value for value, _ in paper_page.numbers}
    for claim in verdict["claims"].values():
        told = [claim["estimate"], *claim["interval"], claim["n"], claim["needed_seeds"]]
        told += numbers_in(claim["magnitude"])
        for part in [*claim["controls"], *(claim["parts"] if len(claim["parts"]) > 1 else [])]:
            told += [part["estimate"], *part["interval"]]
        assert {v for v in told if v is not None} <= shown


def test_every_number_on_the_page_is_a_stored_one(tree, paper_page):
    stored = {
        v for path in (tree / "papers/demo/results").glob("*.json") for v in numbers_in(json.loads(path.read_text()))
    }
    page = report.PaperPage("demo", tree, {})
    for i in range(3):  # means over seeds, which a test of their own compares with the rows
        stored |= set(numbers_in([p["table"] for p in FigureView(page.record, i).section()["profiles"]]))
    stored |= set(numbers_in(RankingView(page.record, 0).section()["profiles"])) | {5, 4}  # seeds and levels, counted
    assert len(paper_page.numbers) > 300
    for value, told in paper_page.numbers:
        assert value in stored
        assert told in (words.number(value), words.number(value, 5), words.rate(value))


def test_error_rates_are_told_with_the_claims(tree, paper_page):
    stored = [json.loads((tree / f"papers/demo/results/{p}.quality.json").read_text()) for p in ("cpu", "gpu")]
    for one in stored:
        for claim in one["claims"].values():
            pairs = [(claim["false_rate"], claim["false_interval"])]
            pairs += [(claim["power"], claim["power_interval"])] if claim["power_at"] == "paper" else []
            for value, ends in pairs:
                assert value is None or {(v, words.rate(v)) for v in [value, *ends]} <= set(paper_page.numbers)
    parity = stored[0]["claims"]["parity"]
    assert f"wrongly say reproduced in {words.rate(parity['false_rate'])} % [" in paper_page.text
    assert "effect seen here" not in paper_page.text, "power at the effect that was seen is a function of p alone"


def test_without_error_rates_of_the_same_rows_nothing_is_said(tree, tmp_path):
    shutil.copytree(tree / "papers", tmp_path / "papers")
    results = tmp_path / "papers" / "demo" / "results"
    other = json.loads((results / "cpu.quality.json").read_text()) | {"rows_digest": "sha256:of other rows"}
    (results / "cpu.quality.json").write_text(json.dumps(other), encoding="utf-8")
    (results / "gpu.quality.json").unlink()
    shown = str(report.PaperPage("demo", tmp_path, {}).claims()) + str(report.ComparisonPage(tmp_path, {}).head())
    assert "of repeats" not in shown and "error rate" not in shown and "simulation" not in shown


def test_figures_beside_the_claims_show_the_rows(tree, paper_page):
    page = report.PaperPage("demo", tree, {})
    assert "Also measured" in paper_page.text and "Ranks of the norms (Table 9)" in paper_page.text
    rows = json.loads((tree / "papers/demo/results/cpu.rows.json").read_text())["rows"]
    section = FigureView(page.record, 1).section()
    assert [p["profile"] for p in section["profiles"]] == ["cpu"] and section["absent"] == []
    table = section["profiles"][0]["table"]
    for line in table["lines"]:
        values = [
            r["measures"]["norm"]
            for r in rows
            if r["experiment"] == "signal"
            and r["arm"] == line["arm"]
            and r["factors"]["depth"] == line["x"]
            and r["status"] == "ok"
        ]
        assert line["n"] == len(values) and line["mean"] == pytest.approx(math.fsum(values) / len(values))
        assert (line["low"], line["high"]) == (min(values), max(values))
    assert {(line["arm"], line["x"]) for line in table["lines"]} == {
        (a, d) for a in ("identity", "rmsnorm") for d in (4, 8, 16, 32)
    }
    curve = FigureView(page.record, 0).section()
    assert {p["profile"] for p in curve["profiles"]} == {"cpu", "gpu"}
    assert curve["profiles"][0]["table"]["x"] == "step" and curve["profiles"][0]["table"]["lines"][0]["x"] == 0
    assert {line["arm"] for line in curve["profiles"][0]["table"]["lines"]} == {"rmsnorm", "layernorm"}, (
        "identity diverged"
    )


def test_ranks_and_their_tests_are_scipys():
    arms = ["snn", "bn", "ln"]
    scores = [
        [0.1, 0.3, 0.2],
        [0.1, 0.2, 0.2],
        [0.3, 0.1, 0.2],
        [0.1, 0.35, math.inf],
        [0.1, 0.4, 0.3],
        [0.2, 0.5, 0.45],
    ]
    found = rank_table(arms, scores, "snn")
    ranks = {line["arm"]: line["rank"] for line in found["lines"]}
    assert [line["arm"] for line in found["lines"]] == sorted(arms, key=ranks.get), "best first"
    assert ranks == pytest.approx(
        {"snn": (5 + 3) / 6, "bn": (3 + 2.5 + 1 + 2 + 3 + 3) / 6, "ln": (2 + 2.5 + 2 + 3 + 2 + 2) / 6}
    )
    # Friedman by hand, with the correction for the one tie: 12 n / (k (k + 1)) sum (mean rank - 2)^2 / (1 - ties)
    n, k, ties = 6, 3, (2**3 - 2) / (6 * (3**3 - 3))
    by_hand = 12 * n / (k * (k + 1)) * sum((r - 2) ** 2 for r in ranks.values()) / (1 - ties)
    assert found["friedman"]["statistic"] == pytest.approx(by_hand) and found["friedman"]["freedom"] == 2
    p = {line["arm"]: line["p"] for line in found["lines"]}
    assert p["snn"] is None
    # six differences, only the third (0.2, of rank 3 or 4 among .1 .2 .2 .25 .3 .3) against: 2 P(W <= 2.5) is near
    assert 0.05 < p["bn"] < 0.4 and 0.03 < p["ln"] < 0.4
    assert [line for line in found["lines"] if line["arm"] == "ln"][0]["scores"][3] is None, "diverged"
    worse = rank_table(arms, [[-v for v in case] for case in scores], "snn", higher=True)
    assert worse["lines"][0]["arm"] != "snn" and worse["lines"][-1]["scores"][0] == 0.1
    alike = rank_table(["a", "b"], [[1.0, 1.0]] * 4, "a")
    assert alike["friedman"] is None and alike["lines"][1]["p"] is None and alike["lines"][0]["rank"] == 1.5


@pytest.mark.parametrize(
    "old, new, told",
    [
        ("measure: norm, x: depth", "measure: nrm, x: depth", "figures.1.measure: no measure 'nrm'"),
        ("measure: norm, x: depth", "measure: norm, x: dpth", "figures.1.x: no factor of 'signal'"),
        ("at: {depth: 4}, where", "at: {deep: 4}, where", "figures.0.at.deep: no factor 'deep'"),
        ("arms: [identity, rmsnorm]}", "arms: [identity, rms]}", "figures.1.arms.1: no arm 'rms'"),
        ("over: depth", "over: width", "rankings.0.over: no factor 'width'"),
        ("over: depth, arm: rmsnorm", "over: depth, arm: layernorm", "rankings.0.arm: no arm 'layernorm'"),
        (
            "experiment: identities, measure: error}",
            "experiment: identity, measure: error}",
            "no experiment 'identity'",
        ),
    ],
)
def test_a_wrong_figure_is_refused_with_its_place(tmp_path, old, new, told):
    from repro.spec.load import load

    folder = tmp_path / "papers" / "demo"
    folder.mkdir(parents=True)
    assert PAPER.count(old) == 1
    (folder / "paper.yaml").write_text(PAPER.replace(old, new), encoding="utf-8")
    with pytest.raises(ReproError) as error:
        load(folder)
    place, _, text_ = told.partition(": ")
    assert text_ in str(error.value) or told in str(error.value)
    assert "paper.yaml" in str(error.value) and "\n" not in str(error.value)


def test_every_row_is_listed(tree, paper_page):
    rows = json.loads((tree / "papers/demo/results/cpu.rows.json").read_text())["rows"]
    shown = [v for v, _ in paper_page.numbers]
    for row in (row for row in rows if row["experiment"] != "identities"):  # exact statements show their worst value
        for value in row["measures"].values():
            assert (value[-1] if isinstance(value, list) else value) in shown
    assert "diverged at step 12" in paper_page.text and "10 rows diverged (identity)" in paper_page.text


def test_states_are_told_in_words(paper_page):
    for words_ in ("supported at small scale", "contradicted at small scale", "verified", "stale", "post hoc"):
        assert re.search(
            rf'<span class="badge [a-z_]+"[^>]*><span aria-hidden="true">[^<]+</span>{words_}</span>', paper_page.source
        ), words_
    assert "Not part of this profile." in paper_page.text
    assert "gpu: the source of quality changed after the rows were measured." in paper_page.text
    assert "On gpu, claims, headline or planned seeds were changed" in paper_page.text


def test_only_claims_on_changed_source_are_stale(tree):
    views = report.PaperPage("demo", tree, {"gpu": {"quality": "it changed"}}).views
    stale = {name: [r["stale"] for r in view.summary()["results"]] for name, view in views.items()}
    assert stale["parity"] == ["it changed", None] and stale["convergence"] == ["it changed", None]
    assert stale["running-time"] == stale["gradients"] == [None, None]


def test_what_surrounds_the_numbers(paper_page):
    for told in (
        "val_nats of rmsnorm is not worse (higher) than that of layernorm by 0.02 nats per byte or more; "
        "at every depth; at level 95 %, paired by seed.",
        "The step at which rmsnorm reaches train_nats 2.2 is not worse (higher) than that of layernorm by 20 training "
        "steps or more at depth 4; at level 95 %, paired by seed.",
        "identity in place of rmsnorm, at depth 12",
        "eps = 1e-8 is added to RMS(x), outside the root",
        "test_d1_epsilon_placement",
        "A week of training on a translation corpus lies outside the budget.",
        "authors’ code: bzhangGo/rmsnorm@2e726f1",
        "@inproceedings{zhang2019root,",
        "@software{repro_demo,",
        "claim running-time on profile gpu: supported at small scale, n = 5",
        "NVIDIA H100 80GB HBM3",
        "ours 0.805 , the paper’s 0.753 , ratio 1.07",
        "from repro.papers.demo import RMSNorm",
        "proxy: another task that shows the same effect",
        "sha256:" + "ab" * 32,
        "Keys of all 95 trials",
        "[picture: plot]",
    ):
        assert told in paper_page.text, told
    assert paper_page.all("math")[0]["display"] == "block"


KINDS = """\
slug: kinds
title: Every kind of rule
authors: [Ada Author]
year: 2021
venue: ICML 2021
url: https://doi.org/10.1000/xyz
family: residual
summary: It tries everything.
equation: y = x
headline: ordering
measures: {m: {unit: units, better: higher, positive: true}, c: {unit: nats, better: lower}, step: {unit: steps}}
experiments: {e: {arms: [a, b, broken], factors: {d: [1, 2, 4], lr: [0.1, 0.2]}}}
claims:
"""
RULES = {
    "bound": "{kind: bound, measure: m, arm: a, between: [1, 3], at: {lr: 0.1}, per: d}",
    "ratio": "{kind: ratio, measure: m, arm: a, against: b, min: 1.1, at: {d: 1, lr: 0.1}, pair: false}",
    "ordering": "{kind: ordering, measure: m, arm: a, against: b, margin: 0.2, at: {d: 2, lr: 0.1}}",
    "equivalence": "{kind: equivalence, measure: m, arm: a, against: b, ratio: [0.5, 2], per: d, at: {lr: 0.2}, "
    "at_least: 2}",
    "slope": "{kind: slope, measure: m, arm: a, against: b, x: d, scale: logx, max: 0.5, at: {lr: 0.1}}",
    "count": "{kind: count, measure: m, arm: a, against: b, margin: 0.1, cells: [d, lr], at_least: 3}",
    "counted": "{kind: count, measure: m, arm: a, against: b, min: 1.2, cells: d, at_least: 2, at: {lr: 0.1}}",
    "contrast": "{kind: bound, measure: m, arm: a, min: 0.5, contrast: {factor: d, levels: [4, 1], as: ratio}, "
    "at: {lr: 0.1}}",
    "steps": "{kind: ordering, measure: c, arm: a, against: b, steps_to: {target: best, axis: step}, "
    "at: {d: 1, lr: 0.1}}",
    "both": "[{kind: bound, measure: m, arm: a, min: 1, at: {d: 1, lr: 0.1}}, "
    "{kind: ordering, measure: m, arm: a, against: b, name: second, at: {d: 4, lr: 0.2}}]",
}


@pytest.mark.parametrize("spoilt", [False, True])
def test_every_kind_of_rule_makes_a_page(tmp_path, spoilt):
    from repro.judge import judge
    from repro.spec.load import load

    folder = tmp_path / "papers" / "kinds"
    (folder / "results").mkdir(parents=True)
    claims = "".join(
        f"  {name}: {{statement: It is {name}., paper_value: {{low: 1, high: 2}}, where: Sec. 1, fidelity: scaled, "
        f"experiment: e, rule: {rule}, controls: [{{replace: {{a: broken}}, expect: not_reproduced}}], "
        f"{'positive: b' if name in ('bound', 'contrast') else 'note: none'}}}\n"
        for name, rule in RULES.items()
    )
    profiles = "profiles: {cpu: {seeds: 4, e: {tuning_seeds: [1000]}}}\n"
    (folder / "paper.yaml").write_text(KINDS + claims + profiles)
    paper, rng, rows = load(folder), random.Random(0), []
    for seed in (0, 1, 2, 3, 1000):
        for d, lr in ((d, lr) for d in (1, 2, 4) for lr in (0.1, 0.2)):
            for arm, level in (("a", 2.0), ("b", 1.5), ("broken", 0.1)):
                value = level * math.exp(rng.gauss(0, 0.1))
                measures = {"m": value, "c": [3.0, 2.0, 1 / value], "step": [0, 10, 20]}
                row = {
                    "experiment": "e",
                    "arm": arm,
                    "seed": seed,
                    "factors": {"d": d, "lr": lr},
                    "status": "ok",
                    "seconds": 1.0,
                    "measures": measures,
                }
                if spoilt and (arm == "broken" or (arm == "b" and seed == 1)):
                    row |= {"status": "diverged", "step": None, "measures": {}}
                if not (spoilt and seed > 1 and d == 4 and lr == 0.2):
                    rows.append(row)
    if spoilt:
        rows[0] |= {"status": "invalid", "why": "the A/A arms differ", "measures": {}}
    document = {
        "schema": SCHEMA,
        "paper": "kinds",
        "profile": "cpu",
        "provenance": {"digest": rows_digest(rows)},
        "registered": "sha256:0",
        "rows": rows,
    }
    (folder / "results" / "cpu.rows.json").write_text(json.dumps(document))
    (folder / "results" / "cpu.verdict.json").write_text(json.dumps(judge(paper, "cpu", document)))
    page = Page(in_process(tmp_path, "kinds", current=lambda paper, profile: {"sources": {}, "config": {}}))
    refuse_requests(page)
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids)) and len(page.all("svg")) >= len(RULES)
    assert "Seeds from 1000 up served tuning or an A/A control." in page.text
    assert ("invalid: the A/A arms differ" in page.text) is spoilt
    assert not re.search("NaN|undefined", page.source.partition("<script>")[0]) and "null" not in page.text


def test_hostile_text_stays_text(hostile):
    page = Page(in_process(hostile, "demo"))
    refuse_requests(page)
    assert page.text.count("<script>alert('x')</script>") > 10
    assert EVIL_ARM in page.text
    lines = report.verdicts(hostile, current=fresh_on_cpu)
    assert (lines["title"] == EVIL).sum() == 10
    comparison = report.ComparisonPage(hostile, {})
    parts = (comparison.head(), comparison.map(), comparison.headlines_table(), comparison.magnitude())
    for part in (*parts, comparison.claims()):
        refuse_requests(Page(part))


def test_a_paper_without_results_says_so(tree):
    page = Page(in_process(tree, "other"))
    refuse_requests(page)
    assert (
        "Not run here yet: repro run other --profile cpu" in page.text and "Nothing has been measured yet" in page.text
    )
    assert not page.all("svg") and "reproduced" not in {a.get("class") for _, a in page.elements}


# --- the comparison ---------------------------------------------------------------------------------------------------


def test_the_index_shows_every_paper(tree, index_page):
    links = {a["href"] for a in index_page.all("a")}
    assert {"papers/demo.html", "papers/other.html", "papers/demo.html#claim-parity", "verdicts.csv"} <= links
    verdict = json.loads((tree / "papers/demo/results/gpu.verdict.json").read_text())["claims"]["running-time"]
    for value in (verdict["estimate"], *verdict["interval"], verdict["n"]):
        assert value is None or (value, words.number(value)) in index_page.numbers
    for told in ("How to read this page", "normalization", "activation", "not run", "post hoc", "at small scale"):
        assert told in index_page.text
    assert "Implementation checks: 1 of 1 exact statements hold" in index_page.text
    assert "are expected to be chance" in index_page.text and "cannot be shown" not in index_page.text
    assert index_page.text.count("demo (gpu): 1.07, supported at small scale.") == 1, "the strongest evidence alone"


def test_one_bad_paper_stops_no_other(tree, tmp_path):
    shutil.copytree(tree / "papers", tmp_path / "papers")
    (tmp_path / "papers" / "demo" / "results" / "cpu.rows.json").unlink()
    page = report.ComparisonPage(tmp_path)
    assert [one.slug for one in page.records] == ["other"]
    assert "1 paper cannot be shown" in Page(str(page.head())).text
    assert "has no rows beside it" in str(page.head())
    with pytest.warns(UserWarning, match="has no rows beside it"):
        assert set(report.verdicts(tmp_path).paper) == {"other"}


def test_a_verdict_without_its_rows_has_no_page(tree, tmp_path):
    shutil.copytree(tree / "papers", tmp_path / "papers")
    results = tmp_path / "papers" / "demo" / "results"
    (results / "gpu.rows.json").unlink()
    with pytest.raises(ReproError, match="gpu.verdict.json: has no rows beside it"):
        report.PaperPage("demo", tmp_path, {})


def test_the_first_screen_says_what_to_believe(paper_page):
    text_ = paper_page.text
    assert (
        text_.index("Headline: what the paper is known for") < text_.index("What to believe") < text_.index("Verdicts")
    )
    assert "The claim that the paper is known for is supported at small scale, at profile gpu" in text_
    assert "The negative control comes out as expected." in text_
    assert (
        "The exact statement about the method is verified" in text_ and "of 1 measurement elsewhere 1 agrees" in text_
    )
    assert "below 1, rmsnorm has the lower" in text_ and "where it is negative, rmsnorm has the lower" in text_
    assert "Another Author" in text_ and "1 B parameters" in text_


def test_exact_statements_stand_apart(paper_page):
    section = paper_page.source.partition('<h2 id="identities">')[2].partition("</section>")[0]
    assert "verified" in section and "The largest error is 4.4e-16" in section
    assert "seeds =" not in section and 'interval">' not in section and "n =" not in section


def test_pages_can_be_walked_without_eyes_or_mouse(paper_page, index_page):
    for page in (paper_page, index_page):
        assert page.all("a")[0]["href"] == "#main" and page.all("main")[0]["id"] == "main"
        assert any(a.get("aria-live") == "polite" for a in page.all("p"))
        assert "URLSearchParams" in page.source and "replaceState" in page.source
    ids = {a["id"] for _, a in paper_page.elements if "id" in a}
    anchors = {a["href"][1:] for a in paper_page.all("a") if a["href"].startswith("#")}
    assert anchors <= ids and len(anchors) > 10, anchors - ids


def test_learning_curves_are_drawn_where_rows_hold_them(tree):
    figures_ = report.PaperPage("demo", tree, {}).views["parity"].figures()
    captions = [f.caption for row in figures_ for f in row]
    assert sum("learning curves at depth 12; mean over the seeds" in caption for caption in captions) == 2


def test_a_large_suite_has_a_small_index(tree):
    page = report.ComparisonPage(tree)
    page.records, page.headlines, page.lines = page.records * 173, page.headlines * 173, page.lines * 287
    parts = (page.head(), page.map(), page.headlines_table(), page.magnitude(), page.claims())
    assert sum(len(str(part).encode()) for part in parts) < 1_000_000 - 30_000, "style and script take 25 kB"


# --- data frames and staleness ----------------------------------------------------------------------------------------


def test_frame_has_every_row_and_measure(tree):
    frame = report.frame(tree)
    quality = frame[(frame.paper == "demo") & (frame.profile == "cpu") & (frame.experiment == "quality")]
    assert len(quality) == 5 * 2 * (2 * 3 + 1)
    lost = quality[quality.status == "diverged"]
    assert list(lost.step) == [12, 12, 13, 13, 14, 14, 15, 15, 16, 16] and lost.measure.isna().all()
    assert len(quality[quality.measure == "train_nats"].curve.iloc[0]) == 61
    assert quality[quality.measure == "val_nats"].value.notna().all()
    assert set(frame.paper) == {"demo"}


def test_verdicts_have_every_claim_and_profile(tree):
    lines = report.verdicts(tree, current=fresh_on_cpu).set_index(["paper", "profile", "claim"])
    assert len(lines) == 2 * 5 + 1
    assert lines.loc[("demo", "gpu", "running-time"), "verdict"] == "supported at small scale"
    assert (
        lines.loc[("demo", "cpu", "running-time"), "headline"] and not lines.loc[("demo", "cpu", "parity"), "headline"]
    )
    assert lines.loc[("demo", "gpu", "gradients"), "state"] == "not_run"
    assert lines.loc[("demo", "gpu", "translation"), "state"] == "untested"
    assert lines.loc[("other", "cpu", "main"), "state"] == "not_run"
    assert lines.loc[("demo", "gpu", "parity"), "stale"] == "the source of quality changed after the rows were measured"
    assert lines.post_hoc.sum() == 3


def test_staleness(tree):
    from repro.spec.load import load

    paper, document = (
        load(tree / "papers" / "demo"),
        json.loads((tree / "papers/demo/results/cpu.rows.json").read_text()),
    )
    assert report.staleness(paper, "cpu", document, fresh_on_cpu) is None

    def moved(paper, profile):
        now = fresh_on_cpu(paper, profile)
        now["config"]["timing"] = "sha256:other"
        now["sources"]["signal"] = now["config"]["signal"] = "sha256:other"
        return now

    told = report.staleness(paper, "cpu", document, moved)
    assert told == (
        "the source and settings of signal changed after the rows were measured; "
        "the settings of timing changed after the rows were measured"
    )
    assert "cannot be compared" in report.staleness(paper, "cpu", document)  # this checkout has no papers/demo


# --- parts ------------------------------------------------------------------------------------------------------------


def test_regions_are_those_of_the_verdict(tree, tmp_path):
    shutil.copytree(tree / "papers", tmp_path / "papers")
    path = tmp_path / "papers" / "demo" / "results" / "gpu.verdict.json"
    verdict = json.loads(path.read_text())
    (region,) = verdict["claims"]["running-time"]["regions"]
    assert region["high"] == pytest.approx(0.93) and region["low"] is None or region["low"] == 0
    region["high"] = 0.77
    path.write_text(json.dumps(verdict))
    drawn = report.PaperPage("demo", tmp_path, {}).views["running-time"].figures()[0][0]
    assert "0.77." in drawn.svg and "The rule asks for" in drawn.svg


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (0.0, "0"),
        (5, "5"),
        (12345, "12\u202f345"),
        (-0.011349, "−0.0113"),
        (1.3e-7, "1.30 × 10⁻⁷"),
        (0.9996, "1.00"),
        (999.6, "1000"),
        (2.5e9, "2.50 × 10⁹"),
        (math.inf, "∞"),
        (None, "–"),
        (150.0, "150"),
        (23.456, "23.5"),
    ],
)
def test_numbers_are_told_to_three_digits(value, told):
    assert words.number(value) == told


@pytest.mark.parametrize(
    ("numbers", "told"),
    [
        ((1.0266, 1.0249, 1.0284), ("1.0266", "1.0249", "1.0284")),
        ((0.222, 0.161, 0.282), ("0.222", "0.161", "0.282")),
        ((-0.0003, -0.000987, 0.000387), ("−0.000300", "−0.000987", "0.000387")),
        ((5.0, None, 7.0), ("5.00", "−∞", "7.00")),
        ((2.0, 2.0, 2.0), ("2.00", "2.00", "2.00")),
    ],
)
def test_an_interval_is_printed_so_that_its_width_can_be_read(numbers: tuple, told: tuple) -> None:
    """A ratio of 1.0266 from 1.0249 on is above a bound of 1.022, which three digits would hide."""
    assert words.with_ends(*numbers) == told


@pytest.mark.parametrize(
    ("value", "told"),
    [(0.02, "0.02"), (1e-10, "10⁻¹⁰"), (2.5e-6, "2.5 × 10⁻⁶"), (20.0, "20"), (-0.1, "−0.1"), (0.00012, "0.00012")],
)
def test_written_numbers_keep_their_digits(value, told):
    assert words.exactly(value) == told


@pytest.mark.parametrize(
    ("rule", "told"),
    [
        (
            {"kind": "ordering", "against": "b", "margin": 0.5, "at": {"d": 4}, "pair": False},
            "m of a is lower than that of b by more than 0.5 u at d 4; at level 95 %, not paired.",
        ),
        (
            {"kind": "equivalence", "against": "b", "ratio": [0.5, 2.0], "level": 0.99},
            "m of a divided by that of b is between 0.5 and 2; at level 99 %, paired by seed.",
        ),
        (
            {"kind": "slope", "x": "d", "scale": "loglog", "max": -0.5},
            "The slope of m of a over d, on log-log axes, is below −0.5; at level 95 %.",
        ),
        (
            {"kind": "count", "cells": ["d", "e"], "at_least": 3, "against": "b", "margin": 0.1},
            "In at least 3 cells of d and e, m of a is lower than that of b by more than 0.1 u; "
            "at level 95 %, paired by seed.",
        ),
        (
            {"kind": "count", "cells": "d", "at_least": 2, "max": 1.0},
            "In at least 2 cells of d, m of a is below 1 u; at level 95 %.",
        ),
        (
            {"kind": "bound", "min": 2.0, "contrast": {"factor": "d", "levels": [8, 2], "as": "ratio"}},
            "The mean of m of a at d 8 divided by that at 2 is above 2; at level 95 %.",
        ),
        (
            {
                "kind": "ordering",
                "against": "b",
                "steps_to": {"target": "best", "axis": "step"},
                "per": "d",
                "at_least": 2,
            },
            "The step at which a reaches the best m of b is lower than that of b; at 2 or more levels of d; "
            "at level 95 %, paired by seed.",
        ),
        ({"kind": "identity", "bound": 1e-6}, "|m| of a stays below 10⁻⁶ on every row."),
    ],
)
def test_rules_in_words(rule, told):
    assert words.rule_text({"measure": "m", "arm": "a", **rule}, {"m": {"unit": "u", "better": "lower"}}) == told


def test_tex_becomes_mathml_or_stays_text():
    assert "<mi>RMS</mi>" in text.mathml(r"\mathrm{RMS}(x)") and "<munderover>" in text.mathml(r"\sum_{i=1}^n x_i")
    assert "<mtable" in text.mathml(r"\begin{aligned}a &= b\\ c &= d\end{aligned}") and "𝐱" in text.mathml(
        r"\mathbf{x}"
    )
    assert text.mathml(r"\notacommand{<b>}") == '<pre class="tex">\\notacommand{&lt;b&gt;}</pre>'
    assert "&lt;b&gt;" in text.mathml(r"\text{<b>}") and "<b>" not in text.mathml(r"\text{<b>}")
    assert text.mathml("", display=False) == '<code class="tex"></code>'


def test_markdown_is_tamed():
    html = text.markdown(
        "# A <i>\n\n<script>x</script>\n\n[a](javascript:x) [b](https://arxiv.org/abs/1) [c](../x.md) [d](//x.test)\n\n"
        "## B\n\n$x^2$"
    )
    assert "<h3>A &lt;i&gt;</h3>" in html and "<h4>B</h4>" in html and "<msup>" in html
    assert "<script" not in html and html.count("<a ") == 1 and "x.test" not in html


def test_departures_are_read_from_the_header():
    found = text.departures(text.header(ROOT / "tests" / "nowhere.py"))
    assert found == []
    found = text.departures("Head.\n\n  D1  one thing\n      and more.\nText.\n  D2. another\n\n  not this\n")
    assert found == [("D1", "one thing and more."), ("D2", "another")]


def test_log_ticks_are_few_and_round():
    assert figures.log_ticks(0.7, 1.4) == [0.8, 1.0, 1.2, 1.4] and figures.log_ticks(3e-17, 50.0)[0] == 1e-16
    for low, high in ((0.9, 1.1), (1e-3, 2e-2), (1e-9, 1e9), (4.0, 19.0), (0.999, 1.001)):
        ticks = figures.log_ticks(low, high)
        assert 2 <= len(ticks) <= 7 and low <= ticks[0] and ticks[-1] <= high


def test_clip_paths_of_two_figures_differ():
    group = [
        figures.Group("a", "method", lines={0: [(0, 1.0), (1, 2.0)]}),
        figures.Group("b", "against", lines={0: [(0, 1.0), (1, 3.0)]}),
    ]
    one, two = (
        figures.lines(group, name=n, axis="y", across="x", title="t", description="d") for n in ("fig-1", "fig-2")
    )
    assert one.replace("fig-1", "fig-2") == two and 'stroke="var(--method' in one


def test_importing_reports_is_light():
    heavy = "torch pandas altair nbconvert papermill vl_convert jinja2 scipy pydantic".split()
    code = f"import sys, repro.report; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600, check=True)
    assert done.stdout.strip() == "[]"


def test_failures_take_one_line(tree, tmp_path, monkeypatch):
    import papermill
    from papermill.exceptions import PapermillExecutionError

    with pytest.raises(ReproError, match="no paper 'nothing'|nothing"):
        report.render_paper("nothing", tree)
    shutil.copytree(tree / "papers", tmp_path / "papers")
    with pytest.raises(ReproError, match="no such notebook"):
        report.render_paper("demo", tmp_path, current=fresh_on_cpu)

    def broken(*words_, **options):
        raise PapermillExecutionError(3, 1, "page.claims()", "ValueError", "first line\nsecond", ["traceback"])

    monkeypatch.setattr(papermill, "execute_notebook", broken)
    with pytest.raises(Failed, match="paper.ipynb: ValueError: first line$"):
        report.render_paper("demo", tree, current=fresh_on_cpu)
    (tmp_path / "papers/demo/results/cpu.rows.json").write_text("{")
    with pytest.raises(ReproError, match="cpu.rows.json:1: not JSON"):
        report.frame(tmp_path)


def test_notebooks_carry_no_outputs():
    for name in ("paper", "comparison", "arena", "layers", "rows"):
        book = json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8"))
        code = [cell for cell in book["cells"] if cell["cell_type"] == "code"]
        assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
        assert [cell["metadata"].get("tags") for cell in code].count(["parameters"]) == 1


@pytest.mark.parametrize("name", ["layers", "rows"])
def test_the_notebooks_for_readers_run(name, tree):
    book = json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8"))
    space: dict[str, Any] = {}
    for cell in (cell for cell in book["cells"] if cell["cell_type"] == "code"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            exec("".join(cell["source"]), space)
        if "parameters" in cell["metadata"].get("tags", []) and name == "rows":
            space |= {"root": str(tree), "slug": "demo", "measure": "val_nats"}
    if name == "rows":
        assert set(space["judged"].paper) == {"demo"} and len(space["mean"]) >= 1
    else:
        assert space["losses"][-1] < space["losses"][0]


def test_a_long_temporary_folder_and_a_dead_kernel_take_one_line(tree, tmp_path, monkeypatch):
    import papermill
    from nbclient.exceptions import DeadKernelError

    from repro.report import render

    deep = tmp_path / ("d" * 74)
    deep.mkdir()
    monkeypatch.setattr(render.tempfile, "tempdir", str(deep))
    with render._folder() as folder:
        path = f"{folder}/kernel.json-ipc-9"
        assert len(path) <= render.SOCKET or "transport" not in render._kernel(folder).KernelManager
    assert not folder.exists() and not list(deep.iterdir())

    def died(*words_, **options):
        raise DeadKernelError("Kernel died")

    monkeypatch.setattr(papermill, "execute_notebook", died)
    with pytest.raises(
        Failed, match="paper.ipynb: the kernel died: Kernel died; it may have run out of memory"
    ) as error:
        report.render_paper("demo", tree, current=fresh_on_cpu)
    assert "\n" not in str(error.value)


def test_the_index_says_what_was_measured_and_counts_a_shared_trial_once() -> None:
    def paper(slug: str, *trials: tuple[str, float]) -> Record:
        rows = {"rows": [{"seconds": s} for _, s in trials], "provenance": {"trials": [key for key, _ in trials]}}
        return Record(slug, Path(slug), {}, {"long": Result("long", rows), "cpu": Result("cpu")})

    records = [paper("a", ("k1", 1800.0), ("k2", 900.0)), paper("b", ("k2", 900.0), ("k3", 900.0))]
    assert pages.times(records) == [{"profile": "long", "papers": 2, "trials": 3, "hours": 1.0}]
    assert pages.times([]) == []


def test_a_control_that_is_the_comparator_itself_is_said_to_count_for_nothing() -> None:
    """On the page, and in the sentence that counts controls; of a list of rules only where it is."""
    from types import SimpleNamespace

    from repro import words
    from repro.report import belief
    from repro.report.claims import _positive, counts

    first, second = ({"kind": "ordering", "name": f"than {b}", "arm": "a", "against": b} for b in "bc")
    itself, other = {"replace": {"a": "b"}, "ok": True}, {"replace": {"a": "d"}, "ok": False}
    told = "the comparator against itself, which shows nothing"
    assert words.alone_text(itself, [first]) == told and not counts(itself, [first])
    assert words.alone_text(itself, [first, second]) == f"in than b {told}" and counts(itself, [first, second])
    assert (
        words.alone_text({**itself, "seed_offset": 1000}, [first]) is None and words.alone_text(other, [first]) is None
    )
    trivial = {"predictor": "linear", "state": "reproduced", "arm": "a"}
    judged = {"rule": first, "controls": [itself, other], "trivial": trivial, "state": "inconclusive"}
    record = SimpleNamespace(headline="h", strongest=lambda name: (None, judged))
    assert belief._guards(record).startswith("The negative control does not come out as expected; the arm a beats the")
    judged |= {"state": "not_reproduced", "positive": {"arm": "e", "state": "reproduced"}}
    told = belief._guards(record)  # controls guard a positive verdict, and say nothing of this one
    assert told.startswith("The known-good arm (e) shows the effect in the same setting; the arm a beats the")
    ((_, text),) = _positive({"arm": "b", "state": "reproduced"}, [first], "b")
    assert text == "none: b is the comparator against itself."
    ((_, text),) = _positive({"arm": "b", "state": "reproduced"}, [first, second], "b")
    assert text == "b shows the effect here; in than b the comparator against itself, which shows nothing."
    assert words.expected({"expect": "not_met", "without": "idea"}) == "not reproduced"
