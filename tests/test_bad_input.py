"""Bad input is refused in one line: the corpus of hand-made cases, and random damage to everything that is read."""

import contextlib
import io
import json
import math
import random
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_arena import SETTINGS, document
from test_arena import stored as stored_arena
from test_paper import TEXT
from test_store import BODY, ROW

from conftest import ROOT
from dev import badinput, demo
from repro import judge, report
from repro.arena import advice
from repro.arena import protocol as arena
from repro.arena import table as arena_table
from repro.data import archives, sources
from repro.errors import ReproError, one_line
from repro.files import paths
from repro.files import verdict as verdict_file
from repro.files.arena import read_arena_rows, read_table
from repro.files.paths import PROFILES, SCHEMA, SLUG
from repro.publish import index, stages
from repro.run import measure as run
from repro.run import plan
from repro.spec import load as papers
from repro.spec.load import load
from repro.spec.model import Paper, as_dict
from repro.store import Store, rows_digest, sealed

CASES = badinput.load(ROOT / "tests" / "bad_input")
SUBJECTS = list(dict.fromkeys(case.subject for case in CASES))


# --- the corpus -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def tables() -> Iterator[list[badinput.Bench]]:
    with badinput.benches() as made:
        yield made


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("subject", SUBJECTS)
def test_every_case_comes_out_as_it_must(tables: list[badinput.Bench], subject: str) -> None:
    results = badinput.tried([case for case in CASES if case.subject == subject], tables)
    wrong = [f"{r.name}: {r.why}" for r in results if r.outcome == "wrong"]
    assert not wrong, "\n".join([f"{len(wrong)} of {len(results)} cases of {subject}:", *wrong])


def test_the_corpus_is_what_it_says() -> None:
    assert len(CASES) >= 900 and len(SUBJECTS) == 11
    assert sum(case.kind == "refused" for case in CASES) >= 650
    for case in CASES:
        if case.kind == "refused":
            assert case.words and all(word.strip() for word in case.words), case.name


def test_the_runner_sees_what_is_wrong() -> None:
    """Each way in which a command can fail the corpus is told."""
    fine = {"code": 2, "out": "", "err": "error: a.yaml:3: write b\n", "changed": []}
    case = badinput.Case("s", "n", ["repro"], "refused", ["a.yaml:3", "write b"])
    assert badinput.judge(case, fine, "").outcome == "refused"
    for spoilt, why in (
        ({"err": "Traceback (most recent call last)\nerror: a.yaml:3: write b\n"}, "a traceback"),
        ({"err": "error: a.yaml:3: write b\nand more\n"}, "2 lines"),
        ({"err": "a.yaml:3: write b\n"}, "1 lines"),
        ({"code": 0}, "accepted"),
        ({"code": -14}, "took longer"),
        ({"code": -11}, "signal 11"),
        ({"err": "error: a.yaml: write b\n"}, "lacks"),
        ({"changed": ["b.json"]}, "changed b.json"),
    ):
        result = badinput.judge(case, {**fine, **spoilt}, "")
        assert result.outcome == "wrong" and why in result.why, why
    page = badinput.Case("s", "n", ["page", "demo"], "accepted", [], shape=True)
    sound = "<p>a</p>"
    assert (
        badinput.judge(page, {"code": 0, "out": "<p>b &lt;i&gt;</p>", "err": "", "changed": []}, sound).outcome
        == "accepted"
    )
    for html in (
        "<p>a<i></i></p>",
        '<p title="x">a</p>',
        "<p>a</p><script>x</script>",
        '<p onclick="x">a</p>',
        "<a href='//x'>a</a>",
    ):
        assert badinput.judge(page, {"code": 0, "out": html, "err": "", "changed": []}, sound).outcome == "wrong", html


# --- random damage ----------------------------------------------------------------------------------------------------

FUZZ = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]}
# Values that a hand, another program or an attacker may leave in a file.
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=12),
    st.sampled_from(
        [
            "",
            " ",
            "../../x",
            "<script>",
            "1e-3",
            "nan",
            "\x1b[2J",
            "\ud800",
            "{{7*7}}",
            "sha256:",
            2**63,
            -1,
            0,
            1e308,
            5e-324,
        ]
    ),
)
VALUES = st.one_of(SCALARS, st.lists(SCALARS, max_size=3), st.dictionaries(st.text(max_size=6), SCALARS, max_size=3))


@contextlib.contextmanager
def refusal() -> Iterator[list[str]]:
    """Lets a ReproError pass that is one line, nothing else."""
    told: list[str] = []
    try:
        yield told
    except ReproError as error:
        told.append(str(error))
        assert "\n" not in told[0] and 5 < len(told[0]) < 5000, told[0]


def places(value: Any, where: tuple = ()) -> Iterator[tuple]:
    yield where
    for key, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(item, (*where, key))


@st.composite
def damaged(draw: st.DrawFn, sound: Any) -> Any:
    """A copy of plain data with one to three places changed, dropped, doubled or exchanged."""
    made = json.loads(json.dumps(sound))
    for _ in range(draw(st.integers(1, 3))):
        every = [where for where in places(made) if where]
        if not every:
            break
        *way, last = draw(st.sampled_from(every))
        inside = made
        for part in way:
            inside = inside[part]
        match draw(st.sampled_from(["set", "set", "drop", "double", "rename"])):
            case "drop":
                del inside[last]
            case "double" if isinstance(inside, list):
                inside.append(inside[last])
            case "rename" if isinstance(inside, dict):
                inside[draw(st.text(max_size=8))] = inside.pop(last)
            case _:
                inside[last] = draw(VALUES)
    return made


@st.composite
def damaged_lines(draw: st.DrawFn, text: str) -> str:
    """A text with lines dropped, doubled, moved, retagged or spoilt by a character."""
    lines = text.splitlines()
    for _ in range(draw(st.integers(1, 3))):
        i = draw(st.integers(0, len(lines) - 1))
        match draw(st.sampled_from(["drop", "double", "move", "tag", "indent", "character"])):
            case "drop":
                del lines[i : i + draw(st.integers(1, 3))]
            case "double":
                lines.insert(draw(st.integers(0, len(lines))), lines[i])
            case "move":
                lines.insert(draw(st.integers(0, len(lines) - 1)), lines.pop(i))
            case "tag":
                tag = draw(
                    st.sampled_from(
                        ["!!python/name:os.system", "!x", "&a", "*a", "|", ">", "- ", "? ", "!!binary", "<<:"]
                    )
                )
                lines[i] = lines[i].replace(": ", f": {tag} ", 1)
            case "indent":
                lines[i] = " " * draw(st.integers(0, 3)) + lines[i]
            case _:
                at = draw(st.integers(0, len(lines[i])))
                lines[i] = (
                    lines[i][:at] + draw(st.sampled_from(list("{}[]:,#&*!|>'\"%@`-?\t\\0x\x00\u2028é"))) + lines[i][at:]
                )
        if not lines:
            break
    return "\n".join(lines) + "\n"


def write(path: Path, data: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(
        data
        if isinstance(data, bytes)
        else (data if isinstance(data, str) else json.dumps(data)).encode("utf-8", "surrogatepass")
    )
    return path


def use(paper: Paper) -> None:
    """What commands do with a paper that was accepted."""
    json.dumps(as_dict(paper), allow_nan=False).encode()
    for profile in paper.profiles:
        assert paper.registration(profile).startswith("sha256:")
        json.dumps(plan.entry(paper, profile), allow_nan=False).encode()


@settings(max_examples=120, **FUZZ)
@given(text=damaged_lines(TEXT))
def test_damaged_lines_of_a_paper(tmp_path: Path, text: str) -> None:
    path = write(tmp_path / "papers" / "rmsnorm" / "paper.yaml", text)
    with refusal() as told:
        use(load(path))
    assert not told or told[0].startswith(str(path)), told


PLAIN = {}  # TEXT as plain data, read once


@settings(max_examples=120, **FUZZ)
@given(data=st.data())
def test_random_values_in_a_paper(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "papers" / "rmsnorm" / "paper.yaml"
    if not PLAIN:
        PLAIN.update(papers.load_yaml(write(path, TEXT)))
    write(path, data.draw(damaged(PLAIN)))  # JSON is YAML
    with refusal() as told:
        use(load(path))
    assert not told or told[0].startswith(str(path)), told


@settings(max_examples=80, **FUZZ)
@given(data=st.data())
def test_random_values_in_the_settings_of_the_suite_and_of_the_arena(tmp_path: Path, data: st.DataObject) -> None:
    from repro.spec.yaml import YamlFile

    sound = YamlFile(tmp_path, "params.yaml", demo.PARAMS.encode()).data
    write(tmp_path / "params.yaml", data.draw(damaged(sound)))
    with refusal():
        papers.load_params(tmp_path)
    sound = YamlFile(tmp_path, "arena.yaml", badinput.ARENA.encode()).data
    write(tmp_path / "arena.yaml", data.draw(damaged(sound)))
    with refusal():
        for name, track in arena.tracks(tmp_path).items():
            for profile in set(track) & set(PROFILES):
                json.dumps(arena.track_of(tmp_path, name, profile), allow_nan=False)


def sound_rows(paper: Paper) -> dict[str, Any]:
    """Rows of the demo as a run writes them."""
    rng = random.Random(0)
    rows = [
        {
            "arm": t["arm"],
            "experiment": t["experiment"],
            "factors": t["factors"],
            "measures": {"error": rng.random() / 100 + (t["arm"] == "broken"), "curve": [1.0, 0.5]},
            "seconds": 0.01,
            "seed": t["seed"],
            "status": "ok",
        }
        for t in plan.entry(paper, "cpu")["trials"]
    ]
    provenance = {
        "digest": rows_digest(rows),
        "commit": None,
        "dirty": False,
        "device": "cpu",
        "device_model": "a CPU",
        "device_class": "cpu",
        "threads": 1,
        "versions": {"torch": "2"},
        "platform": "Linux",
        "started": "2026-01-01",
        "seconds": 0.1,
        "sources": {"main": "sha256:0"},
        "config": {"main": "sha256:0"},
        "trials": ["sha256:0"] * len(rows),
        "notes": [],
    }
    return sealed(
        {
            "schema": SCHEMA,
            "paper": "demo",
            "profile": "cpu",
            "provenance": provenance,
            "registered": paper.registration("cpu"),
            "rows": rows,
        }
    )


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout with the demo, its rows and its verdict."""
    root = tmp_path_factory.mktemp("suite") / "checkout"
    demo.build(root)
    paper = load(root / "papers" / "demo")
    rows = sound_rows(paper)
    results = root / "papers" / "demo" / "results"
    run.write_rows(results / "cpu.rows.json", rows)
    write(results / "cpu.verdict.json", json.dumps(judge.judge(paper, "cpu", rows), indent=1))
    write(root / "plan.json", json.dumps(plan.make([paper], "cpu"), indent=1))
    write(root / "arena.yaml", badinput.ARENA)
    return root


# What a command reads first, for the cases whose command is this one; the commands themselves are slow tests.
READS = {
    "repro show demo": lambda root: stored_verdict(load(root / "papers" / "demo"), root),
    "repro judge demo": lambda root: judge.judge(
        load(root / "papers" / "demo"),
        "cpu",
        judge.load_rows(root / "papers" / "demo" / "results" / "cpu.rows.json"),
    ),
    "repro run demo": papers.load_params,
    "repro arena --check": arena.tracks,
    "python -m repro.run plan.json --out rows": lambda root: run.read_plan(root / "plan.json"),
}
SOUND = ("params.yaml", "arena.yaml", "plan.json", "papers/demo/paper.yaml", "papers/demo/results/")
READ = [
    case
    for case in CASES
    if " ".join(case.run) in READS
    and case.kind == "refused"
    and case.subject != "cli"
    and all(edit["file"].startswith(SOUND) and "copy" not in edit for edit in case.edits)
    and case.edits
]


def stored_verdict(paper: Paper, root: Path) -> Any:
    return verdict_file.stored("demo", "cpu", root, paper.claims, identities=paper.identities)


@pytest.mark.parametrize("subject", list(dict.fromkeys(case.subject for case in READ)))
def test_every_reader_says_what_the_corpus_asks(suite: Path, monkeypatch: pytest.MonkeyPatch, subject: str) -> None:
    """The same cases without a process: what is refused here is refused in these words, in one line."""
    monkeypatch.chdir(suite)
    before, wrong, passed = badinput.files_of(suite), [], []
    cases = [case for case in READ if case.subject == subject]
    for case in cases:
        bench = SimpleNamespace(root=suite)
        case = badinput.Bench.placed(bench, case)
        try:
            badinput.spoil(case.edits)
            READS[" ".join(case.run)](suite)
            passed.append(case.name)
        except ReproError as error:
            message = one_line(error)
            missing = [word for word in case.words if word not in message]
            if missing or "\n" in message:
                wrong.append(f"{case.name}: lacks {missing}: {message}")
        finally:
            badinput.restore(suite, before)
    assert not wrong, "\n".join(wrong)
    assert len(passed) <= 2 + len(cases) // 10, f"refused by what comes after the readers alone? {passed}"


@settings(max_examples=150, **FUZZ)
@given(data=st.data())
def test_random_values_in_rows(suite: Path, tmp_path: Path, data: st.DataObject) -> None:
    paper = load(suite / "papers" / "demo")
    made = data.draw(damaged(sound_rows(paper)))
    if data.draw(st.booleans()):
        with contextlib.suppress(Exception):  # whoever changes rows can seal them, where they are rows at all
            made["provenance"]["digest"] = rows_digest(made["rows"])
            made = sealed(made)
    path = write(tmp_path / "papers" / "demo" / "results" / "cpu.rows.json", made)
    with refusal():
        rows = judge.load_rows(path)
        json.dumps(judge.judge(paper, "cpu", rows), allow_nan=False).encode()
        cost = plan.seconds_of(plan.entry(paper, "cpu")["trials"], rows["rows"])
        assert cost is None or math.isfinite(cost)


@settings(max_examples=100, **FUZZ)
@given(data=st.data())
def test_random_values_in_verdicts(suite: Path, tmp_path: Path, data: st.DataObject) -> None:
    from repro.commands import common
    from repro.commands import papers as shows
    from repro.publish import cite, readme
    from repro.publish.evidence import evidence, read_verdict

    paper = load(suite / "papers" / "demo")
    sound = json.loads((suite / "papers" / "demo" / "results" / "cpu.verdict.json").read_text())
    path = write(tmp_path / "papers" / "demo" / "results" / "cpu.verdict.json", data.draw(damaged(sound)))
    for name in ("paper.yaml", "method.py", "results/cpu.rows.json"):
        write(path.parents[1] / name, (suite / "papers" / "demo" / name).read_text())
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()), refusal():
        patch.setattr(paths, "paper_dirs", lambda: tmp_path / "papers")
        patch.setattr(papers, "paper_dirs", lambda: tmp_path / "papers")
        patch.setattr(common, "say", lambda text="": str(text).encode())
        patch.setattr(shows, "say", lambda text="": str(text).encode())
        stored = read_verdict(load(path.parents[1]), "cpu")
        json.dumps(stored, allow_nan=False).encode()
        page = readme.paper_readme(paper, ["method"], {"cpu": stored}) + readme.verdict_table([evidence("demo")])
        (page + cite.bibtex(paper, stored)).encode()
        common.verdict_table(paper, stored)
        shows.show("demo")


def test_a_kind_that_is_no_word_names_the_measure_alone() -> None:
    from repro.publish.evidence import measured

    assert measured({"rule": {"kind": [], "measure": "val_nats"}}) == "val nats"
    assert measured({"rule": {"kind": "ratio", "measure": "val_nats"}}) == "ratio of val nats"


@settings(max_examples=100, **FUZZ)
@given(data=st.data())
def test_random_values_in_plans(suite: Path, tmp_path: Path, data: st.DataObject) -> None:
    paper = load(suite / "papers" / "demo")
    path = write(tmp_path / "plan.json", data.draw(damaged(plan.make([paper], "cpu"))))
    with refusal():
        for entry in run.read_plan(path)["entries"]:
            assert SLUG.fullmatch(entry["paper"]) and entry["profile"] in PROFILES
            run.units_of(entry, "cpu")


ARENA_ROWS = document(seeds=3)


@settings(max_examples=100, **FUZZ)
@given(data=st.data())
def test_random_values_in_rows_and_tables_of_the_arena(tmp_path: Path, data: st.DataObject) -> None:
    sound = {"schema": SCHEMA, "registered": "sha256:0", **ARENA_ROWS}
    made = data.draw(damaged(sound))
    with contextlib.suppress(Exception):
        made["provenance"]["digest"] = rows_digest(made["rows"])
        made = sealed(made)
    path = write(tmp_path / "arena" / "mlp.cpu.rows.json", made)
    budget = {**SETTINGS, "final": {"seeds": 3}}
    with refusal():
        rows = read_arena_rows(path, "again", "rows.json", "mlp", "cpu", budget)
        json.dumps(arena_table.table(rows, budget), allow_nan=False).encode()
    path = write(tmp_path / "arena" / "mlp.cpu.table.json", data.draw(damaged(arena_table.table(sound, budget))))
    with refusal():
        made = read_table(path, "again", "table.json", "mlp", "cpu")
        advice.nearest_cell(made, 4, 16)
        for cell in made["cells"]:
            for slot in cell["slots"].values():
                advice.recommended(slot, 0.1)
        report.arena.summary(tmp_path)


@settings(max_examples=150, **FUZZ)
@given(raw=st.binary(max_size=200), data=st.data())
def test_random_bytes_in_trial_records(tmp_path: Path, raw: bytes, data: st.DataObject) -> None:
    store, key = Store(tmp_path), "sha256:" + "ab" * 32
    body = store.put(key, {**BODY, "row": {**ROW, "seed": 0}}, replace=True)
    sound = store.path(key).read_bytes()
    at = data.draw(st.integers(0, len(sound)))
    for spoilt in (
        raw,
        sound[:at],
        sound[:at] + raw[:1] + sound[at + 1 :],
        sound[:at] + raw + sound[at:],
        json.dumps(data.draw(damaged(json.loads(sound)))).encode(),
    ):
        store.path(key).write_bytes(spoilt)
        found = store.get(key)
        assert found is None or found == body, "a damaged record counts as absent"
    assert store.put(key, body) == body and store.get(key) == body, "and is written anew"


SOUND_DATA = [
    edit
    for case in CASES
    if case.subject == "data" and case.kind == "accepted"
    for edit in case.edits
    if ".repro" in edit["file"]
]


@settings(max_examples=150, **FUZZ)
@given(raw=st.binary(max_size=300), data=st.data())
def test_random_bytes_in_data_files(tmp_path: Path, raw: bytes, data: st.DataObject) -> None:
    def offline(*_: Any, **__: Any) -> None:
        raise archives.Unusable("no network")

    edit = data.draw(st.sampled_from(SOUND_DATA))
    content, name = edit["bytes"], Path(edit["file"]).name
    at = data.draw(st.integers(0, len(content)))
    spoilt = data.draw(
        st.sampled_from(
            [raw, content[:at], content[:at] + raw + content[at:], content[:at] + raw + content[at + len(raw) :]]
        )
    )
    toy = badinput._toy().DATASET
    folder = tmp_path / str(len(list(tmp_path.iterdir()))) / "toy"
    write(folder / name, spoilt)
    with pytest.MonkeyPatch.context() as patch, refusal() as told:
        patch.setattr(sources, "command", offline)
        patch.setattr(archives, "LIMIT", 1 << 20)
        if name == "toy.bin":
            assert bytes(toy.read(folder.parent)["toy.bin"].numpy()) == badinput.TOY
        else:
            assert (sources.fetch(toy, folder.parent) / "toy.bin").read_bytes() == badinput.TOY
    if told:
        assert not (folder / "toy.bin").is_file() or name == "toy.bin", "what was refused is not kept"


WORDS = [
    "list",
    "show",
    "run",
    "judge",
    "plan",
    "verify",
    "refresh",
    "history",
    "new",
    "index",
    "arena",
    "recommend",
    "cite",
    "data",
    "fetch",
    "demo",
    "toy",
    "mlp",
    "--profile",
    "--device",
    "--seeds",
    "--json",
    "--all",
    "--check",
    "--track",
    "--model",
    "--depth",
    "--margin",
    "--family",
    "--verdict",
    "--force",
    "--jobs",
    "--cff",
    "--",
    "cpu",
    "gpu",
    "smoke",
    "0",
    "-1",
    "1e3",
    "nan",
    "..",
    "../x",
    "",
    "*",
]


@pytest.mark.slow
@pytest.mark.timeout(3600)
@settings(max_examples=60, **FUZZ)
@given(
    words=st.lists(
        st.one_of(
            st.sampled_from(WORDS),
            st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8),
        ),
        min_size=1,
        max_size=6,
    )
)
def test_random_words_on_the_command_line(tables: list[badinput.Bench], words: list[str]) -> None:
    answer = tables[0].ask(["repro", *words])
    assert "Traceback" not in answer["out"] + answer["err"], answer["err"]
    assert answer["code"] >= 0, f"{words}: signal {-answer['code']}"
    if answer["code"]:
        lines = answer["err"].strip("\n").split("\n")
        help_shown = answer["code"] == 2 and "Usage:" in answer["err"] + answer["out"]
        assert help_shown or len(lines) == 1 and lines[0].startswith("error: "), (words, answer["err"])


# --- hostile texts on the pages ---------------------------------------------------------------------------------------

HOSTILE = "<script>alert(1)</script>\"><img src=//x.test onerror=alert(1)>'{{7*7}}</style></svg><!--javascript:alert(1)\u2028]]>&lt;"  # noqa: E501
HARMLESS = "a text without any markup in it, though as long as the other one, with commas, digits 1 2 3 and a full stop at its very end."  # noqa: E501
TEXTS = {
    "title",
    "venue",
    "summary",
    "statement",
    "where",
    "text",
    "unit",
    "note",
    "about",
    "why",
    "untested",
    "erratum",
    "name",
    "authors",
    "started",
    "device_model",
    "platform",
    "commit",
    "notes",
    "trials",
}
NAMES = {"arm", "against", "positive", "arms", "measure", "axis", "per", "over", "factor", "cells", "x"}


def spoken(value: Any, text: str, key: str = "", inside: str = "") -> Any:
    """Plain data with `text` in every text field and in every name that a person chooses: arms, measures, factors."""

    def named(name: str) -> str:
        return f"{name}{text}"

    if isinstance(value, dict) and key in ("replace", "versions", "sources"):
        return {k if key == "sources" else named(k): named(v) for k, v in value.items()}
    if isinstance(value, dict) and key in ("measures", "factors", "at"):
        return {named(k): spoken(v, text) for k, v in value.items()}
    if isinstance(value, dict):
        return {k: spoken(v, text, k, key) for k, v in value.items()}
    if isinstance(value, list):
        return [spoken(item, text, key, inside) for item in value]
    if not isinstance(value, str):
        return value
    if key in NAMES:
        return named(value)
    if key == "equation":
        return f"\\text{{{text}}} {value}"
    return named(value) if key in TEXTS and inside != "provides" else value


def pages(root: Path, text: str) -> dict[str, str]:
    """The page of a paper, that of all papers and that of a track, with `text` wherever a record may hold some."""
    from nbformat.v4 import new_code_cell, new_notebook, new_output
    from test_report import METHOD, OTHER, PAPER, demo_rows, in_process

    from repro.report.render import _export
    from repro.spec.yaml import YamlFile

    (root / "arena").mkdir(parents=True)
    for slug, source in (("demo", PAPER), ("other", OTHER)):
        plain = YamlFile(root, "paper.yaml", source.encode()).data
        write(root / "papers" / slug / "paper.yaml", json.dumps(spoken(plain, text)))
    write(
        root / "papers" / "demo" / "method.py",
        METHOD.replace("eps = 1e-8", json.dumps(text)[1:-1].replace('\\"', '"') + " eps = 1e-8"),
    )
    write(
        root / "papers" / "demo" / "NOTES.md",
        f"# Notes {text}\n\n{text}\n\n| a | {text.replace('|', '')} |\n|---|---|\n| b | c |\n",
    )
    paper = load(root / "papers" / "demo")
    for profile in ("cpu", "gpu"):
        rows = spoken(demo_rows(profile), text)
        rows[0] |= {"status": "invalid", "why": text, "measures": {}}
        provenance = spoken(
            {
                "digest": rows_digest(rows),
                "commit": "4f2a",
                "dirty": True,
                "device_model": "a CPU",
                "platform": "Linux",
                "started": "2026",
                "versions": {"torch": "2"},
                "notes": ["one"],
                "trials": [f"sha256:{i}" for i in range(len(rows))],
                "sources": dict.fromkeys(paper.experiments_in(profile), "sha256:"),
                "config": {},
            },
            text,
        )
        document_ = sealed(
            {
                "schema": SCHEMA,
                "paper": "demo",
                "profile": profile,
                "provenance": provenance,
                "registered": f"x{text}",
                "rows": rows,
            }
        )
        judged = judge.judge(paper, profile, document_)
        for claim in judged["claims"].values():
            for part in (claim, *claim["controls"], *claim["parts"]):
                part["why"] = part["unit"] = text
            claim["paper_value"] = {"text": text}
        write(root / "papers" / "demo" / "results" / f"{profile}.rows.json", document_)
        write(root / "papers" / "demo" / "results" / f"{profile}.verdict.json", judged)
    stored_arena(root, {**ARENA_ROWS, "out": {text: text}}, {**SETTINGS, "final": {"seeds": 3}})
    table = json.loads((root / "arena" / "mlp.cpu.table.json").read_text(encoding="utf-8"))
    table |= {"what": text, "device": text, "measure": text, "settings": {**table["settings"], text: text}}
    for cell in table["cells"]:
        cell["slots"] = {f"{slot}{text}": {**found, "why": text} for slot, found in cell["slots"].items()}
        cell["same"] = {text: text}
    for method in table["methods"]:
        method |= {"slot": f"{method['slot']}{text}", "trials": [text]}
    write(root / "arena" / "mlp.cpu.table.json", table)

    def now(paper: Paper, profile: str) -> dict[str, dict[str, str]]:
        return {"sources": dict.fromkeys(paper.experiments_in(profile), text), "config": {}}

    index_page = report.ComparisonPage(
        root, {slug: {p: {"quality": text} for p in ("cpu", "gpu")} for slug in ("demo", "other")}
    )
    parts = {
        "index": [
            index_page.head(),
            index_page.map(),
            index_page.headlines_table(),
            index_page.arena(),
            index_page.magnitude(),
            index_page.claims(),
        ],
        "arena": [report.ArenaPage("mlp", root).page()],
    }
    made = {"demo": in_process(root, "demo", now)}
    for name, own in parts.items():
        cells = [new_code_cell("", outputs=[new_output("execute_result", data={"text/html": str(p)})]) for p in own]
        made[name] = _export(new_notebook(cells=cells), f"{text} · repro")
    return made


def test_hostile_texts_do_not_break_the_generated_readmes(suite: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A statement that ends the generated part, or the table's column, must not: writing twice gives the same."""
    text = "It | adds <!-- end of GENERATED --> <script>alert(1)</script> | one."
    path = suite / "papers" / "demo" / "paper.yaml"
    sound = path.read_text()
    monkeypatch.setattr(paths, "paper_dirs", lambda: suite / "papers")
    monkeypatch.setattr(papers, "paper_dirs", lambda: suite / "papers")
    monkeypatch.setattr(stages, "functions", lambda paper: [])
    monkeypatch.setattr(stages.provenance, "closure", lambda *modules: {})
    try:
        path.write_text(sound.replace("The error is small.", json.dumps(text)))
        index.write(suite)
        first = (suite / "README.md").read_text()
        assert index.write(suite) == ([], {}) and index.check(suite) == []
    finally:
        path.write_text(sound)
    assert first.count(index.END) == 1 and "<script>" not in first
    line = next(line for line in first.splitlines() if "alert" in line)
    assert line.count("|") - line.count("\\|") == 6, "no column more"


def test_hostile_texts_stay_texts_on_every_page(tmp_path: Path) -> None:
    hostile, harmless = pages(tmp_path / "hostile", HOSTILE), pages(tmp_path / "harmless", HARMLESS)
    for name, source in hostile.items():
        head, _, body = source.partition('<main id="main">')
        body, _, tail = body.rpartition("</main>")
        plain_head, _, plain_body = harmless[name].partition('<main id="main">')
        plain_body, _, plain_tail = plain_body.rpartition("</main>")
        shape = badinput.Shape(body)
        assert not shape.faults, (name, shape.faults[:5])
        assert body.count("&lt;script&gt;") > 10, name
        assert badinput.Shape(head).found == badinput.Shape(plain_head).found, name
        assert tail == plain_tail, name
        assert shape.found == badinput.Shape(plain_body).found, name
        assert "{{7*7}}" in body and "49" not in body.partition("{{7*7}}")[2][:5], name
