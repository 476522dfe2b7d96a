"""What is generated from papers: texts of strangers stay texts, stages run no text of params.yaml, verdicts need
rows.
"""

import json
import re
import shutil
import subprocess
from pathlib import Path

import mistune
import pytest
from synthetic import maker

from conftest import ROOT, Checkout
from dev import demo
from repro.commands import doctor, history, new, reproduce
from repro.commands.verify import moved_registration, on_trust
from repro.errors import ReproError
from repro.files.earlier import read_earlier
from repro.files.paths import SCHEMA
from repro.publish import evidence, export, listing, markdown, readme, stages
from repro.publish.evidence import Evidence, estimate, measured, ours
from repro.publish.index import BEGIN, END
from repro.publish.plaintext import equation
from repro.report import belief
from repro.report.records import Record, Result
from repro.spec import load as spec
from repro.store import rows_digest, sealed, write_file

JUDGED = {"estimate": 0.43, "interval": [0.41, 0.45], "level": 0.95, "n": 5, "unit": "ratio", "state": "reproduced"}
SLUGS = spec.slugs()


@pytest.mark.parametrize(
    "text, shown",
    [
        ("<script>alert(1)</script>", "&lt;script&gt;alert(1)&lt;/script&gt;"),
        ("a | b", r"a \| b"),
        ("[x](javascript:alert(1))", r"\[x\](javascript:alert(1))"),
        ("`code` *bold* _it_", r"\`code\` \*bold\* \_it\_"),
        ("# heading", r"\# heading"),
        ("- item", r"\- item"),
        ("1. item", r"1\. item"),
        ("13.3e6 of 31.0e6 steps", "13.3e6 of 31.0e6 steps"),
        ("two\nlines", "two lines"),
        ("&lt;", "&amp;lt;"),
    ],
)
def test_markdown_shows_a_text_as_it_was_written(text: str, shown: str) -> None:
    assert markdown.escape(text) == shown


@pytest.mark.parametrize("address", ["javascript:alert(1)", "https://x.test/a b", "https://x.test/<b>", "x"])
def test_only_an_address_becomes_a_link(address: str) -> None:
    assert not markdown.link(address).startswith("<")
    assert markdown.link("https://x.test/a") == "<https://x.test/a>" and markdown.link(None) == ""


@pytest.mark.parametrize(
    "latex, text",
    [
        (r"y = \gamma \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} + \beta", "y = γ ((x − μ) / √(σ² + ε)) + β"),
        (r"\mathrm{DyT}(x) = \gamma \odot \tanh(\alpha x)", "DyT(x) = γ ⊙ tanh(α x)"),
        (r"\frac{1}{n} \sum_{i=1}^{n} a_i^2", "1/n Σᵢ₌₁ⁿ aᵢ²"),
        (r"\unknown{x}", None),
        (r"\frac{1}", None),
        ("}", None),
        (r"\begin{tikzpicture}", None),
    ],
)
def test_equations_as_text(latex: str, text: str | None) -> None:
    assert equation(latex) == text


HOSTILE = (
    "<script>alert(1)</script><img src=x onerror=alert(2)> [x](javascript:alert(3)) ![i](http://e.test/x.png) `b` | c"
    " <!-- end of GENERATED --> &lt; **bold** <http://e.test>"
)


def test_every_text_of_a_paper_is_text_in_its_readme(tmp_path: Path) -> None:
    """Rendered as a reader's browser gets it: no tag, link, picture or column comes out of paper.yaml or a verdict."""
    tags, links = [], []
    for text in (HOSTILE, "harmless"):
        quoted = json.dumps(text)
        yaml = demo.YAML
        for old, new_ in {
            "title: A paper for tests": f"title: {quoted}",
            "[A. Author]": f"[{quoted}]",
            "venue: Nowhere 2020": f"venue: {quoted}",
            "summary: It adds one.": f"summary: {quoted}\nwithdrawn: {quoted}",
            "statement: The error is small.": f"statement: {quoted}",
            "{text: small}": f"{{text: {quoted}}}",
            "where: Table 1": f"where: {quoted}",
            "unit: relative error": f"unit: {quoted}",
        }.items():
            assert old in yaml
            yaml = yaml.replace(old, new_)
        path = tmp_path / "papers" / "demo" / "paper.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml)
        control = {"replace": {"method": "broken"}, "expect": "not_reproduced", "ok": True, "state": "not_reproduced"}
        judged = {
            **JUDGED,
            "unit": text,
            "why": text,
            "controls": [control],
            "rule": [{"kind": "bound", "measure": "e"}],
        }
        verdict = {"headline": "main", "post_hoc": True, "claims": {"main": judged}}
        page = mistune.html(readme.paper_readme(spec.load(path), ["method"], {"cpu": verdict}))
        tags.append(re.findall(r"<[/!]?\w*", page))
        links.append(re.findall(r'(?:href|src)="([^"]*)"', page))
        assert text.partition(">")[0].replace("<", "&lt;") in page
    assert tags[0] == tags[1] and links[0] == links[1]


def test_no_equation_of_a_paper_prints_latex() -> None:
    texts = {slug: equation(spec.load(slug).equation) for slug in SLUGS}
    assert [slug for slug, text in texts.items() if text and "\\" in text] == []
    assert sum(text is None for text in texts.values()) <= len(texts) / 5


def test_an_estimate_has_its_name_its_unit_and_its_level() -> None:
    judged = {**JUDGED, "rule": [{"kind": "ratio", "measure": "seconds"}]}
    assert measured(judged) == "ratio of seconds"
    assert ours(judged) == "ratio of seconds: 0.430 [0.410, 0.450] (95 %), n = 5"
    assert estimate({**judged, "estimate": None, "interval": [None, None]}) == "–"
    never = {**judged, "estimate": None, "interval": [None, 0.0909]}  # a run never reached its target
    assert ours(never) == "ratio of seconds: below 0.0909 (95 %), n = 5"
    counted = {**judged, "unit": "of 2 cells", "estimate": 1.0}
    assert ours({**counted, "interval": [1.0, 1.0]}) == "1 of 2 cells, n = 5"
    assert ours({**counted, "interval": [0.0, 2.0]}) == "0 to 2 of 2 cells, n = 5"
    line = {"estimate": 1.0, "low": 0.0, "high": 2.0, "unit": "of 2 cells"}
    assert export.ours(line) == "0 to 2 of 2 cells"
    assert export.ours({**line, "unit": "nats"}) == "1.00 [0, 2.00] nats"
    assert export.ours({**line, "unit": "nats", "estimate": None, "low": None}) == "below 2.00 nats"


@pytest.fixture(scope="module")
def generated() -> list[str]:
    loaded = [spec.load(slug) for slug in ("rmsnorm", "layernorm")]
    root = stages.root_stages(ROOT, [one.slug for one in loaded], loaded)
    return [root, *(stages.paper_stages(one) for one in loaded)]


def test_no_text_of_params_reaches_a_shell(generated: list[str]) -> None:
    """DVC puts values into `cmd` unquoted: profile: "$(touch PWNED)cpu" would run."""
    for text in generated:
        commands = re.findall(r"^ *cmd: *(.*)$", text, re.M)
        assert commands and not [command for command in commands if "$" in command or "`" in command]


def test_rendering_a_page_never_starts_the_arena(generated: list[str]) -> None:
    text = generated[0]
    made = {line for block in re.findall(r"^  arena/\w+:\n(?:    .*\n)+", text, re.M) for line in outs(block)}
    read = {line for block in re.findall(r"^  reports/\S+:\n(?:    .*\n)+", text, re.M) for line in deps(block)}
    assert made and not made & read


def outs(block: str) -> set[str]:
    return {line.strip(" -").partition(":")[0] for line in block.partition("    outs:\n")[2].splitlines()}


def deps(block: str) -> set[str]:
    return {line.strip(" -") for line in block.partition("    deps:\n")[2].partition("    outs:\n")[0].splitlines()}


def test_a_new_paper_on_a_full_disk_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "papers").mkdir()
    written = []

    def full(path: Path, text: str) -> None:
        assert not (tmp_path / "papers" / "shiny_norm").exists(), "no other command may see half a paper"
        if len(written) == 3:
            raise ReproError(f"{path}: the disk is full; free some space and run the same command again")
        written.append(path)
        write_file(path, text)

    monkeypatch.setattr(new, "write_file", full)
    with pytest.raises(ReproError, match="disk is full"):
        new.write("shiny_norm", tmp_path)
    assert list((tmp_path / "papers").iterdir()) == []
    monkeypatch.setattr(new, "write_file", write_file)
    made = new.write("shiny_norm", tmp_path)
    assert len(made) == 6 and all(path.read_text() for path in made)
    assert [path.name for path in (tmp_path / "papers").iterdir()] == ["shiny_norm"]


def test_a_draft_of_a_killed_process_is_no_paper_and_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draft = tmp_path / "papers" / ".shiny_norm.4194305.new"
    draft.mkdir(parents=True)
    (draft / "paper.yaml").write_text("slug: [")
    monkeypatch.setattr(spec, "paper_dirs", lambda: tmp_path / "papers")
    monkeypatch.setattr(listing, "paper_dirs", lambda: tmp_path / "papers")
    assert spec.slugs() == [] and listing.listing() == []
    new.write("shiny_norm", tmp_path)
    assert [path.name for path in (tmp_path / "papers").iterdir()] == ["shiny_norm"]


def test_one_paper_that_cannot_be_read_stops_no_other(checkout: Checkout) -> None:
    checkout.ok("new", "shiny_norm")
    path = checkout.root / "papers" / "shiny_norm" / "paper.yaml"
    checkout.ok("index")
    pipeline = (checkout.root / "dvc.yaml").read_text()
    path.write_text(path.read_text().replace("year: 2020", "year: twenty"))
    for words in (
        ["list"],
        ["index"],
        ["index", "--check"],
        ["judge", "--all", "--check"],
        ["verify"],
        ["plan", "--all"],
        ["export", "--format", "csv"],
        ["cite", "--all"],
    ):
        done = checkout.run(*words)
        assert done.returncode != 0 and "shiny_norm/paper.yaml" in done.stdout + done.stderr, words
        assert "Traceback" not in done.stderr
    assert "demo" in checkout.run("list").stdout and "cannot be read" in checkout.run("list").stdout
    assert "cannot be read" in (checkout.root / "README.md").read_text()
    assert "everything" not in checkout.run("index", "--check").stdout
    assert (checkout.root / "dvc.yaml").read_text() == pipeline and "papers/shiny_norm/method.py" in pipeline
    checkout.ok("show", "demo")


def test_rows_of_an_arm_that_is_gone_stop_no_other_paper(checkout: Checkout) -> None:
    checkout.ok("run", "demo")
    shutil.copytree(checkout.paper, checkout.root / "papers" / "another")  # before demo in the alphabet
    folder = checkout.root / "papers" / "another"
    for path in (folder / "paper.yaml", folder / "results" / "cpu.rows.json"):
        path.write_text(path.read_text().replace("repro.papers.demo", "repro.papers.another"))
    paper = folder / "paper.yaml"
    paper.write_text(paper.read_text().replace("broken", "damaged"))
    done = checkout.run("judge", "--all")
    assert done.returncode != 0 and "another" in done.stderr and "Traceback" not in done.stderr
    assert (checkout.paper / "results" / "cpu.verdict.json").exists()


def test_a_verdict_without_rows_is_shown_nowhere(checkout: Checkout) -> None:
    checkout.ok("run", "demo")
    checkout.ok("judge", "demo")
    checkout.ok("index")
    (checkout.paper / "results" / "cpu.rows.json").unlink()
    for words in (["list"], ["verify"], ["judge", "--all", "--check"], ["index", "--check"]):
        done = checkout.run(*words)
        assert done.returncode != 0, words
        assert "rows" in done.stdout + done.stderr, words
    assert "has no rows beside it" in checkout.refused("show", "demo", "--verdict")
    checkout.run("index")
    assert "reproduced" not in (checkout.root / "README.md").read_text()


def test_what_lies_beside_a_verdict_is_derived_again(checkout: Checkout) -> None:
    """State and metrics of a verdict that were edited, error rates that are gone: every check of the rows says so."""
    for words in (["run", "demo"], ["judge", "demo"], ["index"]):
        checkout.ok(*words)
    folder = checkout.paper / "results"
    for kind, forge in {
        "verdict": lambda text: text.replace('"state": "reproduced"', '"state": "not_reproduced"', 1),
        "metrics": lambda text: text.replace('"reproduced"', '"not_reproduced"'),
        "quality": None,
    }.items():
        path = folder / f"cpu.{kind}.json"
        honest = path.read_text()
        if forge is None:
            path.unlink()
        else:
            path.write_text(forge(honest))
            assert path.read_text() != honest
        done = checkout.run("judge", "--all", "--check")
        assert done.returncode == 1 and ("DIFFER" in done.stdout or "no error rates" in done.stdout), (
            kind,
            done.stdout,
        )
        path.write_text(honest)
    path = folder / "cpu.verdict.json"  # as another SciPy would have it: other digits from the tenth on
    document = json.loads(path.read_text())
    claim = document["claims"]["main"]
    ends = claim["interval"]
    claim["interval"] = [None if end is None else end * (1 + 1e-10) for end in ends]
    assert claim["interval"] != ends
    path.write_text(json.dumps(document))
    assert "holds" in checkout.ok("judge", "--all", "--check")


def test_the_mark_post_hoc_cannot_be_taken_away_from_committed_rows(checkout: Checkout) -> None:
    """Rules are changed after the rows, and the rows get the new registration and a new seal."""
    checkout.ok("run", "demo")
    path = checkout.paper / "results" / "cpu.rows.json"
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b.test", "-C", str(checkout.root)]
    for words in (["init", "-q"], ["add", str(path)], ["commit", "-q", "-m", "rows"]):
        subprocess.run([*git, *words], check=True, capture_output=True)
    document = json.loads(path.read_text())
    assert moved_registration(path, document) is None
    document["registered"] = "sha256:" + "0" * 64
    assert "other rules in commit" in moved_registration(path, sealed(document))
    document["rows"][0]["measures"]["error"] += 1
    assert moved_registration(path, sealed(document)) is None  # other rows have a registration of their own


def test_reproduce_measures_apart_and_compares(checkout: Checkout) -> None:
    checkout.ok("run", "demo")
    checkout.ok("judge", "demo")
    files = sorted(path for path in checkout.root.rglob("*") if ".repro" not in path.parts and path.is_file())
    before = {path: path.read_bytes() for path in files if path.suffix != ".pyc"}
    done = json.loads(checkout.ok("reproduce", "demo", "--no-page", "--json"))
    assert [one["outcome"] for one in done["compared"]] == ["agrees"]
    assert Path(done["rows"]).is_file() and ".repro/here/cpu" in done["rows"]
    assert "which may be no commit's: git rev-parse" in checkout.run("reproduce", "demo", "--no-page", "--json").stderr
    now = sorted(path for path in checkout.root.rglob("*") if ".repro" not in path.parts and path.is_file())
    assert {path: path.read_bytes() for path in now if path.suffix != ".pyc"} == before


def test_what_could_not_be_measured_here_is_no_difference() -> None:
    judged = {"state": "inconclusive", "why": "A timing is invalid."}
    assert (
        reproduce._outcome(judged, {"state": "reproduced"}, "2 measurements failed")[0] == "could not be measured here"
    )
    assert reproduce._outcome(judged, {"state": "reproduced"}, None) == ("differs", "A timing is invalid.")
    assert reproduce._outcome(judged, {"state": "inconclusive"}, "2 measurements failed")[0] == "agrees"
    assert reproduce._outcome(judged, {}, None)[0] == "not committed"


def test_the_registrations_before_the_present_one_are_found_in_git_and_told_on_the_page(
    checkout: Checkout, tmp_path: Path
) -> None:
    """Rows that were judged again are one registration, other seeds or rules another; the present one is left out."""
    folder, git = checkout.root / "papers/demo/results", ["git", "-c", "user.name=a", "-c", "user.email=a@b.test"]
    subprocess.run(["git", "init", "-q", str(checkout.root)], check=True)

    def commit(registered: str, first: int, state: str | None, post_hoc: bool = False) -> None:
        rows = [{"experiment": "e", "arm": "a", "seed": seed, "factors": {}} for seed in (first, first + 4, 1000)]
        document = {"schema": 2, "registered": f"sha256:{registered}", "rows": rows}
        write_file(folder / "cpu.rows.json", json.dumps(document))
        verdict = {"rows_digest": rows_digest(rows), "headline": "main", "claims": {"main": {"state": state}}}
        verdict["post_hoc"] = post_hoc
        write_file(folder / "cpu.verdict.json", json.dumps(verdict if state else {"claims": {}}))
        subprocess.run([*git, "-C", str(checkout.root), "add", "papers/demo/results"], check=True)
        subprocess.run([*git, "-C", str(checkout.root), "commit", "-q", "--allow-empty", "-m", "rows"], check=True)

    folder.mkdir(exist_ok=True)
    assert history.registrations("demo", "cpu", checkout.root) == []
    commit("a", 0, "inconclusive")
    commit("a", 0, "reproduced")  # judged again
    commit("a", 0, "not_reproduced", post_hoc=True)  # by rules that were changed afterwards: not what was registered
    commit("b", 20, None)
    commit("c", 40, "reproduced")
    first, second = history.registrations("demo", "cpu", checkout.root)
    assert (first["seeds"], first["headline"], first["state"]) == ([0, 4], "main", "reproduced")
    assert (second["seeds"], second["headline"], second["state"]) == ([20, 24], None, None)
    assert [fault.split(":")[0] for fault in history.faults(["demo"], checkout.root)] == [
        "papers/demo/results/cpu.earlier.json"
    ]
    history.write(["demo"], checkout.root)
    assert history.faults(["demo"], checkout.root) == [] and len(history.looks(["demo"], checkout.root)) == 2
    commit("c", 40, "reproduced")  # with the file, which does not count itself
    assert history.faults(["demo"], checkout.root) == []
    stored = read_earlier(folder / "cpu.earlier.json")
    claim = {"claims": {"main": {"state": "reproduced"}}}
    result = Result("cpu", {}, claim, earlier=stored)
    (told,) = belief._looks(Record("demo", folder, {"headline": "main", "claims": {}}, {"cpu": result}))
    assert "2 registrations" in told and "reproduced on seeds 0 to 4 and without a verdict on seeds 20 to 24" in told
    claim["claims"]["main"]["p"] = 0.02
    (told,) = belief._looks(Record("demo", folder, {"headline": "main", "claims": {}}, {"cpu": result}))
    assert "0.0600 if it is multiplied by 3, more than the 5 %" in told
    assert belief._looks(Record("demo", folder, {"headline": "main"}, {"cpu": Result("cpu", {}, claim)})) == []

    document = json.loads((folder / "cpu.earlier.json").read_text())
    document["registrations"][0]["state"] = "supported"
    write_file(folder / "cpu.earlier.json", json.dumps(document))
    with pytest.raises(ReproError, match="state: .*one of reproduced, not_reproduced, inconclusive"):
        read_earlier(folder / "cpu.earlier.json")
    cut = tmp_path / "cut"
    subprocess.run(["git", "clone", "-q", "--depth", "1", checkout.root.as_uri(), str(cut)], check=True)
    assert history.faults(["demo"], cut) == []  # it cannot be told
    with pytest.raises(ReproError, match="git fetch --unshallow"):
        history.write(["demo"], cut)


def test_a_cut_history_and_a_refusal_of_git_are_said(
    checkout: Checkout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By `history`, `verify` and `doctor`: the first line is not the first verdict, a check that saw less says so."""
    name, git = "papers/demo/results/cpu.verdict.json", ["git", "-c", "user.name=a", "-c", "user.email=a@b.test"]
    subprocess.run(["git", "init", "-q", str(checkout.root)], check=True)
    for state in ("inconclusive", "reproduced"):
        write_file(checkout.root / name, json.dumps({"claims": {"main": {"state": state}}, "headline": "main"}))
        subprocess.run([*git, "-C", str(checkout.root), "add", name], check=True)
        subprocess.run([*git, "-C", str(checkout.root), "commit", "-q", "-m", state], check=True)
    lines, note = history.changes("demo", "cpu", checkout.root)
    assert [line[4] for line in lines] == ["inconclusive", "reproduced"] and note is None
    assert on_trust(checkout.root) == []
    cut = tmp_path / "cut"
    subprocess.run(["git", "clone", "-q", "--depth", "1", checkout.root.as_uri(), str(cut)], check=True)
    lines, note = history.changes("demo", "cpu", cut)
    assert [line[4] for line in lines] == ["reproduced"] and "not the first verdict" in note
    assert ["of this cut clone alone" in one for one in on_trust(cut)] == [True]
    assert [check.ok for check in doctor._checkout(cut) if "history of this clone is cut" in check.what] == [None]
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    assert "is not checked: git rev-parse" in on_trust(cut)[0] and "dubious ownership" in on_trust(cut)[0]
    (told,) = [check for check in doctor._checkout(cut) if "dubious ownership" in check.what]
    assert told.ok is None and "safe.directory" in told.what
    with pytest.raises(ReproError, match="dubious ownership"):
        history.changes("demo", "cpu", cut)


@pytest.mark.parametrize(
    "stored",
    [
        {"claims": {"a": {"state": "reproduced"}}},  # no unit, no n, no headline
        {"claims": {"a": {"state": "reproduced", "estimate": "text", "n": None, "interval": 3}}},
        {"claims": [1, 2]},
        {"claims": {"a": 1}},
        {},
    ],
)
def test_history_reads_verdicts_of_any_schema(stored: dict) -> None:
    for one in history._claims(stored).values():
        assert isinstance(history._estimate(one), str) and history._state(one, stored)


def test_a_committed_verdict_without_its_rows_is_compared_with_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one that is no verdict at all; only what was committed with the rows that it names counts."""
    rows = {"rows": [{"seed": 0}]}
    verdict = {"schema": SCHEMA, "paper": "demo", "profile": "cpu", "rows_digest": rows_digest(rows["rows"])}
    verdict |= {"post_hoc": False, "headline": None, "claims": {}}
    committed: dict[str, object] = {"verdict": verdict, "rows": rows}

    def show(*words: str, folder: Path) -> str:
        kind = words[-1].split(".")[-2]
        if kind not in committed:
            raise ReproError("git show: no such path")
        return json.dumps(committed[kind])

    monkeypatch.setattr(reproduce.provenance, "git", show)
    assert reproduce.committed("demo", "cpu", tmp_path) == verdict
    for wrong in ({"rows": {"rows": []}}, {"rows": []}, {"verdict": []}, {"verdict": {**verdict, "schema": 1}}):
        committed |= {"verdict": verdict, "rows": rows, **wrong}
        assert reproduce.committed("demo", "cpu", tmp_path) is None, wrong
    del committed["rows"]
    assert reproduce.committed("demo", "cpu", tmp_path) is None


SIDE = """\
  side:
    statement: Another
    paper_value: {value: 1, unit: nats}
    where: W
    fidelity: same
    experiment: f
    rule: {kind: ordering, measure: loss, arm: a, against: b}
    controls: [{replace: {a: c}, expect: not_reproduced}]
"""


def test_a_sentence_stands_beside_its_own_verdict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One headline a paper: a larger profile that judges another claim alone lends its verdict to no other sentence."""
    paper = maker(tmp_path)(
        replace=[
            ("profiles:", SIDE + "profiles:"),
            ("cpu: {seeds: 5, e: {}, f: {}}", "cpu: {seeds: 5, e: {}}, gpu: {seeds: 5, f: {}}"),
        ]
    )
    assert paper.headline_for("cpu") == "main" and paper.headline_for("gpu") is None
    monkeypatch.setattr(evidence, "load", lambda slug: paper)

    def verdict(claim: str, state: str, headline: str | None) -> dict:
        return {"headline": headline, "post_hoc": False, "claims": {claim: {**JUDGED, "state": state}}}

    own, other = verdict("main", "not_reproduced", "main"), verdict("side", "reproduced", None)
    for forged in (other, {**other, "headline": "side"}):
        found = evidence.evidence("p", {"cpu": own, "gpu": forged})
        assert (found.statement, found.profile, found.words) == ("S", "cpu", "contradicted at small scale (`cpu`)")
        assert found.states == {"cpu": "not_reproduced", "gpu": "not_run"}
    assert evidence.evidence("p", {"cpu": None, "gpu": other}).words == "not run"


def test_the_table_of_the_readme_shows_what_is_decided() -> None:
    """A line for each decided headline and each paper that cannot be read; the others by name, under their verdict."""
    said = {
        "adam": "not shown here, at small scale (`long`)",
        "dyt": "undecided on another task (`long`)",
        "eln": "reproduced (`long`)",
        "gdn": "supported at small scale (`long`)",
        "mish": "inconclusive (`gpu`)",
        "laurel": "undecided in calculation (`cpu`)",
        "sinkgd": "contradicted at small scale (`long`)",
        "relu": "undecided at small scale (`cpu`)",
        "swish": "not reproduced (`long`)",
        "resnet": "phenomenon only, at small scale (`long`)",
    }
    judged = [Evidence(slug, statement="It holds.", judged=True, words=words) for slug, words in said.items()]
    waiting = [Evidence("slab", withdrawn="yes"), Evidence("snn", cpu_decides=True)]
    text = readme.verdict_table([*judged, *waiting, Evidence("sam", fault="no file")])
    table, *names = text.split("\n\n")
    assert [line[3 : line.index("]")] for line in table.splitlines()[2:]] == ["eln", "gdn", "sinkgd", "swish", "sam"]
    assert [re.sub(r"\(papers\S*\)", "", line) for line in names] == [
        "Inconclusive (1): [mish].",
        "Not shown here (1): [adam].",
        "Phenomenon only (1): [resnet].",
        "Undecided (3): [dyt], [laurel], [relu].",
        "Waiting for a GPU (1): [slab] (withdrawn).",
        "Waiting for a run on two cores (1): [snn].",
    ]
    shown = (ROOT / "README.md").read_text()
    assert shown.index("## Use a method") < shown.index(BEGIN) < shown.index(END)
    assert shown.split(BEGIN)[1].split(END)[0].count("\n| [") <= 40
