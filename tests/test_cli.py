"""The `repro` command: what programs read, what people see, and how little it loads."""

import json
import os
import re
import subprocess
import sys

import pytest

from conftest import ROOT, Checkout
from dev import demo
from repro.commands import common, doctor

QUIET = """
import sys
from repro import cli
sys.argv = ["repro", *{words!r}]
try:
    cli.main()
except SystemExit as end:
    assert not end.code, end.code
heavy = {{"torch", "pandas", "scipy", "altair", "timm", "datasets", "nbconvert", "papermill"}} & set(sys.modules)
assert not heavy, heavy
"""


@pytest.mark.parametrize(
    "words", [["list"], ["list", "--json"], ["show", "rmsnorm"], ["cite", "rmsnorm"], ["plan", "rmsnorm"]]
)
def test_looking_things_up_loads_nothing_heavy(words: list[str]) -> None:
    done = subprocess.run([sys.executable, "-c", QUIET.format(words=words)], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "rmsnorm" in done.stdout.lower()


def test_list_and_show_as_json(checkout: Checkout) -> None:
    (listed,) = json.loads(checkout.ok("list", "--json"))
    known = {"slug": "demo", "title": "A paper for tests", "year": 2020, "family": "normalization", "headline": "main"}
    assert known.items() <= listed.items() and listed["states"] == {"cpu": "not_run"} and listed["fault"] is None
    assert json.loads(checkout.ok("list", "--json", "--verdict", "reproduced")) == []
    shown = json.loads(checkout.ok("show", "demo", "--json"))
    assert shown["paper"]["claims"]["main"]["where"] == "Table 1" and shown["verdicts"] == {"cpu": None}


def test_the_verdicts_alone_are_the_verdicts_alone_as_json_too(checkout: Checkout) -> None:
    assert json.loads(checkout.ok("show", "demo", "--verdict", "--json", "--profile", "cpu")) == {"cpu": None}


def test_plan_counts_trials_and_knows_costs_only_from_rows(checkout: Checkout) -> None:
    assert "of which no cost is known" in checkout.ok("plan", "demo")
    planned = json.loads(checkout.ok("plan", "demo", "--json"))
    assert len(planned["entries"][0]["trials"]) == 12
    checkout.ok("run", "demo")
    assert "unknown" not in checkout.ok("plan", "demo")


def test_the_whole_way_of_a_paper(checkout: Checkout) -> None:
    checkout.ok("run", "demo")
    out = checkout.ok("judge", "demo")
    assert "main*" in out and "supported" in out
    shown = checkout.ok("show", "demo")
    assert "as expected" in shown and max(map(len, shown.splitlines())) <= 100
    checkout.ok("judge", "--all", "--check")
    assert "wrote" in checkout.ok("index")
    assert "up to date" in checkout.ok("index", "--check")
    assert "supported in calculation" in (checkout.root / "README.md").read_text()
    readme = checkout.paper / "README.md"
    readme.write_text(readme.read_text().replace("supported", "contradicted"))
    assert "out of date" in checkout.refused("index", "--check", code=1)
    checkout.ok("index")
    assert "all checks passed" in checkout.ok("verify", "demo", "--rerun", "3")
    path = checkout.paper / "results" / "cpu.verdict.json"
    path.write_text(path.read_text().replace('"reproduced"', '"not_reproduced"', 1))
    assert "differ" in checkout.refused("judge", "--all", "--check", code=1)
    assert "DIFFERS in claims" in checkout.run("verify", "demo").stdout


def test_source_files_are_read_in_the_encoding_that_python_sees(checkout: Checkout) -> None:
    checkout.ok("index")
    files = [checkout.paper / name for name in ("method.py", "experiment.py")]
    texts = [path.read_text("utf-8") for path in files]
    for path, text in zip(files, texts, strict=True):
        path.write_bytes(f"\ufeff{text}".encode())
    checkout.ok("index", "--check")  # the same syntax, so the same digest
    checkout.ok("run", "demo")
    key = json.loads((checkout.paper / "results" / "cpu.rows.json").read_text())["provenance"]["trials"][0]
    program = checkout.root / "one.py"
    checkout.ok("trial", key, "--script", str(program))
    assert "\ufeff" not in program.read_text("utf-8")
    files[1].write_bytes(f"# -*- coding: latin-1 -*-\n# \xe9\n{texts[1]}".encode("latin-1"))
    checkout.ok("trial", key, "--script", str(program))
    assert "# \xe9" in program.read_text("utf-8")
    files[1].write_bytes(f"# \xe9\n{texts[1]}".encode("latin-1"))
    assert "experiment.py" in checkout.refused("trial", key, "--script", str(program))


EXPERIMENT = "papers/demo/experiment.py"


def test_refresh_keeps_rows_only_if_they_are_bitwise_equal(checkout: Checkout) -> None:
    checkout.ok("run", "demo")
    checkout.ok("judge", "demo")
    checkout.ok("index")
    assert "fresh already" in checkout.ok("refresh", "demo")
    checkout.edit("1000 * seed", "seed * 1000", "papers/demo/experiment.py")
    assert "stale" in checkout.run("verify", "demo").stdout
    assert "cpu is stale: the source of main changed" in checkout.ok("show", "demo")
    assert "main changed" in json.loads(checkout.ok("show", "demo", "--json"))["stale"]["cpu"]
    assert "Stale: the source of main changed" in checkout.ok("judge", "demo")
    assert "stale" in checkout.ok("list", "--stale") and "stale" not in checkout.ok("list")
    (listed,) = json.loads(checkout.ok("list", "--stale", "--json"))
    assert "the source of main changed" in listed["stale"]
    assert "bitwise equal" in checkout.ok("refresh", "demo")
    path = checkout.paper / "results" / "cpu.rows.json"
    before = path.read_bytes()
    assert "0 to measure" in checkout.ok("run", "demo"), "the store knows the rows under their new keys"
    assert path.read_bytes() == before and b"bitwise equal" in before, "and their notes"
    checkout.ok("index")
    assert "all checks passed" in checkout.ok("verify", "demo")
    checkout.edit("/ 100", "/ 101", "papers/demo/experiment.py")
    assert "not what they were" in checkout.refused("refresh", "demo", code=1)


def test_refresh_leaves_timings_stale(checkout: Checkout) -> None:
    checkout.edit("about: errors}", "about: errors}\n  clock: {arms: [method], factors: {depth: [1]}, exclusive: true}")
    checkout.edit("cpu: {seeds: 3, main: {mode: plain}}", "cpu: {seeds: 3, main: {mode: plain}, clock: {mode: plain}}")
    with open(checkout.paper / "experiment.py", "a") as file:
        file.write("\n\nclock_group = main_group\n")
    checkout.ok("run", "demo")
    checkout.edit("1000 * seed", "seed * 1000", "papers/demo/experiment.py")
    assert "the source of clock changed" in checkout.refused("refresh", "demo", code=1)
    assert "12 in the store, 3 to measure" in checkout.ok("run", "demo")
    assert "fresh already" in checkout.ok("refresh", "demo")


def test_an_edit_of_a_module_is_proved_for_all_papers(checkout: Checkout) -> None:
    method, record = checkout.paper / "method.py", checkout.root / "equal_edits.json"
    checkout.edit("import torch\n", "import torch\n\nfrom repro.papers.demo.method import method\n", EXPERIMENT)
    checkout.edit('(arm == "broken")', '(arm == "broken") + method(-1)', EXPERIMENT)
    checkout.ok("index")
    checkout.ok("run", "demo")
    checkout.ok("judge", "demo")
    commit(checkout)
    shown = str(method.relative_to(checkout.root))
    assert "no row is stale" in checkout.refused("refresh", "--module", shown)
    checkout.edit("x + 1", "1 + x", shown)
    assert "stale" in checkout.run("verify", "demo").stdout
    assert "not the file" in checkout.refused("refresh", "--module", EXPERIMENT)
    assert "either a paper or --module" in checkout.refused("refresh")
    said = checkout.ok("refresh", "--module", shown, "--rerun", "3")
    assert "4 trials of 1 plan before and after, and 3 committed trials, bitwise equal" in said.replace("\n", " ")
    checkout.ok("index")
    said = checkout.ok("verify")
    assert "all checks passed" in said and "as edited" in said, "verify names what is taken on trust"
    assert "0 to measure" in checkout.ok("run", "demo"), "rows keep their keys"
    commit(checkout)
    before = record.read_bytes()
    checkout.edit("1 + x", "x + 1.5", shown)
    assert "4 of 4 trials differ" in checkout.refused("refresh", "--module", shown, code=1)
    assert record.read_bytes() == before and "stale" in checkout.run("verify", "demo").stdout
    checkout.edit("x + 1.5", "(1 + x)", shown)
    for field in ({"equal_to": "0" * 64}, {"timings": {"equal_to": "0" * 64, "why": "no other operation"}}):
        forged = json.loads(before)
        forged["edits"][0] |= field
        record.write_text(json.dumps(forged))
        assert "the file was another one" in checkout.run("verify").stdout, field
    record.write_text('{"edits": [{"module": "repro.papers.demo.method"}]}')
    assert "equal_edits.json:1: edits[0]" in checkout.refused("verify")
    record.write_bytes(before)
    checkout.edit("(1 + x)", "x - (-1)", shown)
    checkout.edit("cpu: {seeds: 3", "cpu: {first_seed: 50, seeds: 3")
    said = checkout.ok("refresh", "--module", shown, "--rerun", "3")
    assert "and 0 committed trials" in said.replace("\n", " "), "rows of an earlier registration are not planned"


def commit(checkout: Checkout) -> None:
    for words in (["init", "-q"], ["add", "-A"], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "all"]):
        subprocess.run(["git", *words], cwd=checkout.root, check=True)


def test_stubs_fail_until_they_are_filled(checkout: Checkout) -> None:
    assert checkout.ok("new", "mix_ln").count("wrote") == 6
    assert "mix_ln" in checkout.ok("list")
    assert "uv pip" not in checkout.ok("show", "mix_ln")
    assert "NotImplementedError" in checkout.refused("run", "mix_ln", "--profile", "smoke", code=1)
    tests = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "papers/mix_ln"],
        cwd=checkout.root,
        env=checkout.environment(),
        capture_output=True,
        text=True,
    )
    assert tests.returncode == 1 and "3 failed" in tests.stdout


@pytest.mark.parametrize(
    "old, new, told",
    [
        ("profile: cpu", "profile: cqu", "params.yaml:1"),
        ("seeds: null", "seeds: -3", "params.yaml:3"),
        ("device: auto", "devise: auto", "params.yaml:2"),
        ("cpu: 180", "cpu: 18e1x", "params.yaml:4"),
    ],
)
def test_bad_params_name_the_line(checkout: Checkout, old: str, new: str, told: str) -> None:
    checkout.edit(old, new, "params.yaml")
    assert told in checkout.refused("run", "demo")


def test_doctor_says_what_is_missing(checkout: Checkout) -> None:
    done = checkout.run("doctor")
    assert done.returncode == 1 and "FAIL  this is no DVC repository; run `dvc init`" in done.stdout
    assert "ok    params.yaml" in done.stdout


def test_doctor_knows_the_stranger_of_the_same_import_name(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(doctor.stranger()) == [], "what the suite installs is not called repro"
    record = tmp_path / "repro-0.3.8.dist-info"
    record.mkdir()
    (record / "METADATA").write_text("Metadata-Version: 2.1\nName: repro\nVersion: 0.3.8\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    (told,) = doctor.stranger()
    assert told.ok is False and "`repro` 0.3.8 of a registry" in told.what and "pip uninstall repro" in told.hint


def test_no_hint_names_the_stranger() -> None:
    """Nothing tells a reader to install a package called repro: that is another project."""
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *(ROOT / "src").rglob("*.py"), *(ROOT / "src").rglob("*.j2")]
    named = [
        path for path in pages if re.search(r"\binstall [^`\n]*['\" ]repro(\[|['\"`\s]|$)", path.read_text("utf-8"))
    ]
    assert [path.name for path in named if "uninstall repro" not in path.read_text("utf-8")] == []


@pytest.mark.parametrize(
    "code, out, said, words",
    [
        (0, "{}", "", "everything is up to date"),
        (0, '{"papers/demo": []}', "", "some stages are out of date"),
        (1, "", "ERROR: unexpected error - no", "dvc status failed: ERROR: unexpected error - no"),
        (255, "", "ERROR: you are not inside of a git repository", "dvc config core.no_scm true"),
    ],
)
def test_doctor_says_what_dvc_said(
    tmp_path, monkeypatch: pytest.MonkeyPatch, code: int, out: str, said: str, words: str
) -> None:
    """In a folder without git: stages out of date, and an error of DVC's own, are two things."""
    done = subprocess.CompletedProcess([], code, out, said)
    monkeypatch.setattr(doctor.subprocess, "run", lambda *a, **k: done)
    check = doctor.dvc_status(tmp_path)
    assert words in str(check) and (check.ok is True) == (out == "{}")


def test_doctor_tells_a_broken_pipeline_from_one_that_is_out_of_date(tmp_path) -> None:
    subprocess.run([sys.executable, "-m", "dvc", "init", "-q", "--no-scm"], cwd=tmp_path, check=True)
    assert doctor.dvc_status(tmp_path).ok is True
    (tmp_path / "dvc.yaml").write_text("stages: [1]\n")
    check = doctor.dvc_status(tmp_path)
    assert "dvc status failed" in str(check) and "dvc.yaml" in str(check)


def test_a_table_keeps_its_first_column_on_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    slug, words = "gradient_orthogonalization", "several words of a title that goes on and on beyond the width"
    common.table(["paper", "verdict", "headline", "ours", "title"], [[slug, words, slug, words, words]])
    lines = re.sub(r"\x1b\[\d*m", "", capsys.readouterr().out).splitlines()
    assert any(line.startswith(slug) for line in lines) and max(map(len, lines)) <= 80
    told = " ".join(" ".join(lines).split())
    assert f"verdict: {words}" in told and f"headline: {slug}" in told, "no word is broken"
    monkeypatch.setenv("COLUMNS", "200")
    common.table(["paper", "title"], [[slug, words]])
    assert re.search(rf"{slug} +{words}", re.sub(r"\x1b\[\d*m", "", capsys.readouterr().out))


def test_outside_a_checkout_it_says_so(tmp_path) -> None:
    code = "import repro; repro.__path__[:] = repro.__path__[:1]\nfrom repro import cli\nimport sys; sys.argv = ['repro', 'run', '--all']\ncli.main()"  # noqa: E501
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, env=dict(os.environ)
    )
    assert done.returncode == 2 and "no checkout of this suite" in done.stderr and "Traceback" not in done.stderr


def test_help_is_whole_at_80_columns() -> None:
    environment = {**os.environ, "COLUMNS": "80", "TERM": "dumb", "NO_COLOR": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "repro", "--help"], capture_output=True, text=True, cwd=ROOT, env=environment
    )
    assert done.returncode == 0 and "…" not in done.stdout
    assert all(panel in done.stdout for panel in ("Read", "Measure", "Keep", "Write"))
    version = subprocess.run([sys.executable, "-m", "repro", "--version"], capture_output=True, text=True, cwd=ROOT)
    assert version.stdout.startswith("repro ")


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_every_terminal_shows_every_paper(encoding: str) -> None:
    for slug in ("rmsnorm", "snn"):
        done = subprocess.run(
            [sys.executable, "-m", "repro", "show", slug, "--profile", "gpu"],
            capture_output=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"},
        )
        assert done.returncode == 0 and not done.stderr, done.stderr
        done.stdout.decode(encoding)


@pytest.mark.parametrize("redirect", [">&-", ">/dev/full"])
def test_an_output_that_takes_nothing_ends_in_one_line(redirect: str) -> None:
    command = f"{sys.executable} -m repro data list {redirect}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=ROOT)
    assert "Traceback" not in done.stderr and len(done.stderr.strip().splitlines()) <= 1
    assert done.returncode in ((0, 2) if redirect == ">&-" else (2,))


@pytest.mark.parametrize(
    "words",
    [
        ["run", "demo", "--quiet", "--json"],
        ["run", "demo", "--all"],
        ["run", "demo", "--address", "auto"],
        ["index", "--check", "--sources"],
        ["report", "demo", "--index"],
        ["cite", "--all", "--cff", "demo"],
        ["arena", "--check", "--judge"],
        ["arena", "--plan", "--jobs", "2"],
        ["arena", "--judge", "--no-timings"],
        ["rehearse", "--all", "--profile", "gpuu"],
        ["run", "demo", "--engine", "ray", "--minutes", "3"],
    ],
)
def test_options_that_contradict_each_other_are_refused(checkout: Checkout, words: list[str]) -> None:
    assert checkout.refused(*words)


def test_a_trial_can_be_looked_up(checkout: Checkout) -> None:
    checkout.ok("run", "demo")
    document = json.loads((checkout.paper / "results" / "cpu.rows.json").read_text())
    key = document["provenance"]["trials"][0].removeprefix("sha256:")[:12]
    (found,) = json.loads(checkout.ok("trial", key))
    assert found["row"]["arm"] == document["rows"][0]["arm"] and found["in"] == "papers/demo/results/cpu.rows.json"
    assert "no trial" in checkout.refused("trial", "0" * 12, code=1)
    assert "no key" in checkout.refused("trial", "xyz")


def test_without_the_suite_it_says_what_to_install(checkout: Checkout, tmp_path) -> None:
    environment = checkout.bare_environment(tmp_path / "bare")
    done = subprocess.run(
        [sys.executable, "-m", "repro", "list"], capture_output=True, text=True, cwd=tmp_path, env=environment
    )
    assert done.returncode == 1 and len(done.stderr.strip().splitlines()) == 1
    assert "the package typer is not installed" in done.stderr and "make setup" in done.stderr


def test_only_the_data_that_an_experiment_reads_are_fetched() -> None:
    from repro.commands.reproduce import data_sets
    from repro.spec.load import load

    assert data_sets(load("rmsnorm"), "cpu") == []
    assert data_sets(load("rmsnorm"), "long") == ["prose"]
    assert data_sets(load("online_norm"), "cpu") == ["fashion_mnist"]


def test_a_checkout_in_a_folder_whose_name_is_no_utf8(tmp_path) -> None:
    root = tmp_path / os.fsdecode(b"d\xe9mo\a")  # and a control character
    demo.build(root)
    checkout = Checkout(root)
    for words in (["run", "demo"], ["judge", "demo"], ["show", "demo"], ["index"], ["verify"]):
        done = checkout.run(*words)
        assert "Traceback" not in done.stderr and len(done.stderr.splitlines()) <= 1, (words, done.stderr)
        assert done.returncode == 0 or done.stderr.startswith("error: "), (words, done.stdout)
