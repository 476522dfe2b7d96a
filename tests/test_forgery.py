"""Ways to a "reproduced" without honest rows, and the check that catches each; docs/trust.md says what none can catch.

One small checkout is measured once: `demo`, whose headline fails its rule, and `other`, whose headline meets it.  Every
forgery begins from a copy of it.  The forger may run the commands of the suite as well: whoever edits rows computes
their digests anew, judges them, and generates the READMEs from them.
"""

import hashlib
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import Checkout
from dev import demo
from repro.errors import ReproError
from repro.store import rows_digest, sealed

RESULTS = ("rows", "verdict", "quality", "metrics")
KEYS = "have keys of other trials"


def git(root: Path, *words: str) -> None:
    named = ["git", "-c", "user.name=a", "-c", "user.email=a@b.test", "-C", str(root)]
    subprocess.run([*named, *words], check=True, capture_output=True)


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two papers, measured, judged, generated, committed; `verify` is content."""
    root = tmp_path_factory.mktemp("honest") / "checkout"
    demo.build(root)
    checkout = Checkout(root)
    checkout.edit("max: 0.5, per: depth", "max: 0.001, per: depth")
    checkout.edit("  cpu: {seeds", "  gpu: {seeds: 3, main: {mode: plain, depth: 2}}\n  cpu: {seeds")
    checkout.edit("mode: plain, depth: 2", "mode: other")
    other = root / "papers" / "other"
    shutil.copytree(checkout.paper, other)
    for path in other.glob("*.*"):
        text = path.read_text().replace("demo", "other").replace("max: 0.001", "max: 0.5")
        path.write_text(text.replace("/ 100", "/ 200"))
    checkout.edit("fidelity: analytic", "fidelity: same")
    for words in (["run", "--all"], ["judge", "--all"], ["index"]):
        checkout.ok(*words)
    (root / ".gitignore").write_text(".repro\n__pycache__\nsrc\n")
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "honest"]):
        git(root, *words)
    words = {line.split()[0]: line for line in checkout.ok("list").splitlines()}
    assert "supported in calculation (cpu)" in words["other"]
    assert " reproduced (cpu)" not in words["demo"].replace("not reproduced", "")
    assert "all checks passed" in checkout.ok("verify")
    return root


@pytest.fixture
def forger(honest: Path, tmp_path: Path) -> "Forger":
    shutil.copytree(honest, tmp_path / "checkout", ignore=shutil.ignore_patterns("__pycache__"), symlinks=True)
    return Forger(tmp_path / "checkout")


class Forger(Checkout):
    """The checkout, and what a forger does in it."""

    def file(self, kind: str, profile: str = "cpu", paper: str = "demo") -> Path:
        return self.root / "papers" / paper / "results" / f"{profile}.{kind}.json"

    def load(self, kind: str, profile: str = "cpu", paper: str = "demo") -> dict:
        return json.loads(self.file(kind, profile, paper).read_text())

    def put(self, kind: str, document: dict, profile: str = "cpu") -> None:
        self.file(kind, profile).write_text(json.dumps(document))

    def put_rows(self, document: dict, profile: str = "cpu") -> None:
        """Rows with the digests that belong to them."""
        document["provenance"]["digest"] = rows_digest(document["rows"])
        self.put("rows", sealed(document), profile)


def earlier_registration_not_told(f: Forger) -> None:
    """Other rules, fresh seeds and new rows, all committed; of the registration before them nothing is said."""
    f.edit("max: 0.001", "max: 0.5")
    f.edit("cpu: {seeds: ", "cpu: {first_seed: 40, seeds: ")
    f.ok("run", "demo")
    derived_again(f)
    for words in (["add", "papers", "README.md"], ["commit", "-q", "-m", "another try"]):
        git(f.root, *words)


# --- verdicts and what is generated from them -------------------------------------------------------------------------


def verdict_without_rows(f: Forger) -> None:
    f.put("verdict", {**f.load("verdict", paper="other"), "paper": "demo", "profile": "gpu"}, "gpu")


def verdict_edited(f: Forger) -> None:
    verdict = f.load("verdict")
    verdict["claims"]["main"] |= {"state": "reproduced", "mark": None}
    f.put("verdict", verdict)


def verdict_of_another_paper(f: Forger) -> None:
    f.put("verdict", {**f.load("verdict", paper="other"), "paper": "demo"})


def verdict_of_another_paper_on_these_rows(f: Forger) -> None:
    verdict = {**f.load("verdict", paper="other"), "paper": "demo", "rows_digest": f.load("verdict")["rows_digest"]}
    f.put("verdict", verdict)


def verdict_under_an_odd_name(f: Forger) -> None:
    for name in ("Cpu.verdict.json", "сpu.verdict.json", "cpu.verdicts.json", "cpu.verdict.JSON"):  # one is Cyrillic
        shutil.copy(f.file("verdict", paper="other"), f.paper / "results" / name)


def results_linked_to_another_paper(f: Forger) -> None:
    for kind in RESULTS:
        f.file(kind).unlink()
        f.file(kind).symlink_to(f.file(kind, paper="other"))


def results_linked_to_a_smaller_profile(f: Forger) -> None:
    for kind in RESULTS:
        f.file(kind, "gpu").symlink_to(f.file(kind))


def error_rates_made_better(f: Forger) -> None:
    rates = f.load("quality")
    rates["claims"]["main"] |= {"false_rate": 0.0, "false_interval": [0.0, 0.001], "allowed": 0.05, "at": "edge"}
    f.put("quality", rates)


def readme_of_the_suite(f: Forger) -> None:
    f.edit("not reproduced", "reproduced", "README.md")


def readme_of_the_paper(f: Forger) -> None:
    f.edit("not reproduced", "reproduced", "papers/demo/README.md")


def table_of_verdicts(f: Forger) -> None:
    f.ok("export", "--format", "csv", "--out", "reports/verdicts.csv")
    f.edit(",not_reproduced,", ",reproduced,", "reports/verdicts.csv")


# --- rows -------------------------------------------------------------------------------------------------------------


def rows_edited(f: Forger) -> None:
    document = f.load("rows")
    for row in document["rows"]:
        row["measures"]["error"] /= 100
    f.put("rows", document)


def rows_of_another_paper(f: Forger) -> None:
    f.put_rows({**f.load("rows", paper="other"), "paper": "demo"})


def rows_of_another_paper_with_our_provenance(f: Forger) -> None:
    """Sources, settings and registration of this paper around the rows and keys of another."""
    ours, theirs = f.load("rows"), f.load("rows", paper="other")
    record = {**ours["provenance"], "trials": theirs["provenance"]["trials"]}
    f.put_rows({**ours, "rows": theirs["rows"], "provenance": record})


def rows_of_another_profile(f: Forger) -> None:
    f.put_rows({**f.load("rows"), "profile": "gpu"}, "gpu")


def rows_of_a_cpu_as_those_of_a_gpu(f: Forger) -> None:
    document = f.load("rows")
    record = {"device": "cuda", "device_model": "NVIDIA H100", "device_class": "cuda-NVIDIA H100"}
    f.put_rows({**document, "provenance": {**document["provenance"], **record}})


def rows_of_a_newer_torch(f: Forger) -> None:
    document = f.load("rows")
    document["provenance"]["versions"]["torch"] = "9.9.9"
    f.put_rows(document)


def rows_of_the_good_seeds_alone(f: Forger) -> None:
    """The others are said to be missing, as after a run that was stopped."""
    document, record = f.load("rows"), f.load("rows")["provenance"]
    kept = [i for i, row in enumerate(document["rows"]) if row["seed"] == 0]
    record |= {"trials": [record["trials"][i] for i in kept]}
    f.put_rows({**document, "rows": [document["rows"][i] for i in kept], "provenance": record})


def rows_of_the_good_seeds_alone_and_a_plan_of_them(f: Forger) -> None:
    rows_of_the_good_seeds_alone(f)
    f.edit("cpu: {seeds: 3", "cpu: {seeds: 1")


def rows_twice(f: Forger) -> None:
    document = f.load("rows")
    document["rows"] += document["rows"]
    document["provenance"]["trials"] *= 2
    f.put_rows(document)


def rows_twice_under_other_seeds(f: Forger) -> None:
    document = f.load("rows")
    document["rows"] += [{**row, "seed": row["seed"] + 3} for row in document["rows"]]
    document["provenance"]["trials"] *= 2
    f.put_rows(document)


def rows_with_arms_exchanged(f: Forger) -> None:
    document, names = f.load("rows"), {"method": "broken", "broken": "method"}
    for row in document["rows"]:
        row["arm"] = names[row["arm"]]
    f.put_rows(document)


def rows_of_a_good_seed_for_all(f: Forger) -> None:
    document = f.load("rows")
    first = {(r["arm"], r["factors"]["depth"]): i for i, r in reversed(list(enumerate(document["rows"])))}
    chosen = [first[row["arm"], row["factors"]["depth"]] for row in document["rows"]]
    record = document["provenance"]
    record["trials"] = [record["trials"][i] for i in chosen]
    rows = [{**document["rows"][i], "seed": row["seed"]} for i, row in zip(chosen, document["rows"], strict=True)]
    f.put_rows({**document, "rows": rows})


def rows_without_keys(f: Forger) -> None:
    document = f.load("rows")
    del document["provenance"]["trials"]
    for row in document["rows"]:
        row["measures"]["error"] /= 100
    f.put_rows(document)


def rows_without_sources(f: Forger) -> None:
    document = f.load("rows")
    del document["provenance"]["sources"]
    f.put_rows(document)


def rows_of_no_number(value: str) -> Callable[[Forger], None]:
    def forge(f: Forger) -> None:
        document = f.load("rows")
        document["rows"][0]["measures"]["error"] = 123454321
        f.put("rows", document)
        f.edit("123454321", value, "papers/demo/results/cpu.rows.json")

    forge.__name__ = f"rows_with_{value.strip('-')[:9]}"
    return forge


def rows_so_large_that_sums_overflow(f: Forger) -> None:
    document = f.load("rows")
    for row in document["rows"]:
        row["measures"]["error"] = -1.7e308 if row["arm"] == "method" else 1.7e308
    f.put("rows", document)


# --- rules ------------------------------------------------------------------------------------------------------------


def rule_changed(f: Forger) -> None:
    f.edit("max: 0.001", "max: 0.5")


def rule_changed_and_registered_anew(f: Forger) -> None:
    f.edit("max: 0.001", "max: 0.5")
    script = "from repro.spec import load; print(load.load('demo').registration('cpu'))"
    f.put_rows({**f.load("rows"), "registered": f.python("-c", script).stdout.strip()})


def claim_called_the_papers_own_scale(f: Forger) -> None:
    f.edit("fidelity: analytic", "fidelity: same", "papers/other/paper.yaml")


def number_of_the_paper_changed(f: Forger) -> None:
    f.edit("paper_value: {text: small}", "paper_value: {text: tiny}", "papers/other/paper.yaml")


def paper_under_another_name(f: Forger) -> None:
    (f.root / "papers" / "Demo").symlink_to(f.root / "papers" / "other")


# --- stages of DVC, which run what they say ---


def stage_edited(f: Forger) -> None:
    f.edit("cmd: exec repro judge demo", "cmd: touch PWNED; exec repro judge demo", "papers/demo/dvc.yaml")


def stages_that_nobody_generated(f: Forger) -> None:
    for place in ("src/deep/dvc.yaml", "papers/demo/results.dvc", ".repro/here/dvc.yaml"):
        path = f.root / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("stages:\n  x:\n    cmd: touch PWNED\n    outs: [papers/demo/method.py]\n")
    (f.root / ".dvcignore").write_text(".venv\n")  # so that DVC looks into .repro


# --- what is remembered -----------------------------------------------------------------------------------------------


def rows_file_of_other_rows(f: Forger) -> None:
    """The verdict of another paper says that it was made from the very file of these rows."""
    digest = "sha256:" + hashlib.sha256(f.file("rows").read_bytes()).hexdigest()
    f.put("verdict", {**f.load("verdict", paper="other"), "paper": "demo", "rows_file": digest})


def memory_of_digests(f: Forger) -> None:
    """The experiment is edited, and what is remembered says that its digest is the old one."""
    source = f.paper / "experiment.py"
    memory = f.root / ".repro" / "digests.json"
    kept = json.loads(memory.read_text())
    before = kept["files"][hashlib.sha256(source.read_bytes()).hexdigest()]
    f.edit("/ 100", "/ 100000", "papers/demo/experiment.py")
    kept["files"][hashlib.sha256(source.read_bytes()).hexdigest()] = before
    memory.write_text(json.dumps(kept))


FORGERIES = [
    (verdict_without_rows, ["gpu.verdict.json: has no rows beside it"]),
    (verdict_edited, ["the stored verdict DIFFERS in claims.main"]),
    (verdict_of_another_paper, ["is the verdict on other rows than those of papers/demo/results/cpu.rows.json"]),
    (verdict_of_another_paper_on_these_rows, ["the stored verdict DIFFERS"]),
    (verdict_under_an_odd_name, ["Cpu.verdict.json", "сpu.verdict.json", "cpu.verdicts.json", "cpu.verdict.JSON"]),
    (results_linked_to_another_paper, ["paper: is the text 'other' in the place of demo"]),
    (results_linked_to_a_smaller_profile, ["profile: is the text 'cpu' in the place of gpu"]),
    (error_rates_made_better, ["the stored error rates DIFFER"]),
    (readme_of_the_suite, ["README.md: out of date"]),
    (readme_of_the_paper, ["papers/demo/README.md: out of date"]),
    (table_of_verdicts, ["reports/verdicts.csv: out of date"]),
    (rows_edited, ["cpu.rows.json"]),
    (rows_of_another_paper, ["stale; the source of main changed"]),
    (rows_of_another_paper_with_our_provenance, [KEYS]),
    (rows_of_another_profile, ["stale"]),
    (rows_of_a_cpu_as_those_of_a_gpu, [KEYS]),
    (rows_of_a_newer_torch, [KEYS]),
    (rows_of_the_good_seeds_alone, ["8 planned trials have no row"]),
    (rows_of_the_good_seeds_alone_and_a_plan_of_them, ["stale; the settings of main changed"]),
    (rows_twice, ["stands twice"]),
    (rows_twice_under_other_seeds, [KEYS]),
    (rows_with_arms_exchanged, [KEYS]),
    (rows_of_a_good_seed_for_all, [KEYS]),
    (rows_without_keys, ["trials is missing"]),
    (rows_without_sources, ["stale"]),
    (rows_of_no_number("NaN"), ["NaN is no JSON"]),
    (rows_of_no_number("-1e999"), ["cpu.rows.json"]),
    (rows_of_no_number("9" * 5000), ["number with thousands of digits"]),
    (rows_so_large_that_sums_overflow, ["cpu.rows.json"]),
    (rule_changed, ["the stored verdict DIFFERS"]),
    (rule_changed_and_registered_anew, ["the same rows are registered under other rules in commit"]),
    (claim_called_the_papers_own_scale, ["claims.main.fidelity: is same, and was analytic in commit"]),
    (number_of_the_paper_changed, ["claims.main.paper_value: was another one in commit"]),
    (paper_under_another_name, ["Demo"]),
    (stage_edited, ["papers/demo/dvc.yaml: out of date"]),
    (stages_that_nobody_generated, ["src/deep/dvc.yaml: holds", "results.dvc: holds", ".repro/here/dvc.yaml: holds"]),
    (rows_file_of_other_rows, ["is the verdict on other rows than those of papers/demo/results/cpu.rows.json"]),
    (memory_of_digests, ["stale; the source of main changed"]),
    (earlier_registration_not_told, ["cpu.earlier.json: is not what the history says; run `repro history --write`"]),
]


@pytest.mark.parametrize("forge, caught", FORGERIES, ids=lambda one: getattr(one, "__name__", None))
def test_verify_catches(forger: Forger, forge: Callable[[Forger], None], caught: list[str]) -> None:
    forge(forger)
    done = forger.run("verify")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    for text in caught:
        assert text in done.stdout, (text, done.stdout)


def headline_in_the_readme(f: Forger) -> str:
    return next(line for line in (f.root / "README.md").read_text().splitlines() if line.startswith("| [demo]"))


def derived_again(f: Forger) -> None:
    """What a forger does last: judge the rows, and write all that is generated."""
    f.ok("judge", "demo")
    f.ok("index")


@pytest.mark.parametrize(
    "old, new",
    [
        ("max: 0.001", "max: 0.5"),
        ("{method: broken}, expect", "{method: broken}, at: {depth: 1}, expect"),
        ("error: {unit: relative error, better: lower, diverged: worst}", "error: {unit: nats, better: higher}"),
        ("max: 0.001, per: depth", "max: 0.001, at: {depth: 1}"),
    ],
    ids=["a rule", "a control", "the better side", "the level"],
)
def test_what_was_changed_after_the_rows_is_post_hoc_wherever_it_is_shown(forger: Forger, old: str, new: str) -> None:
    forger.edit(old, new)
    derived_again(forger)
    assert ", post hoc" in headline_in_the_readme(forger)
    assert "post hoc" in forger.ok("list") and "Post hoc" in forger.ok("show", "demo", "--verdict")
    assert "**Post hoc**" in (forger.paper / "README.md").read_text()


def test_seeds_that_are_said_to_be_missing_decide_nothing(forger: Forger) -> None:
    rows_of_the_good_seeds_alone(forger)
    document = forger.load("rows")
    document["provenance"]["missing"] = 8
    forger.put_rows(document)
    forger.edit("max: 0.001", "max: 0.5")
    derived_again(forger)
    assert forger.load("verdict")["claims"]["main"]["state"] == "inconclusive"


@pytest.mark.parametrize("damage", [{"words": "reproduced (`gpu`)"}, {"states": 5}, {"fault": 3}, {"year": [1]}])
def test_a_remembered_list_that_was_edited_or_damaged_is_made_again(forger: Forger, damage: dict) -> None:
    memory = forger.root / ".repro" / "list.json"
    forger.ok("list")
    lines = json.loads(memory.read_text())
    lines["demo"]["line"] |= damage
    memory.write_text(json.dumps(lines))
    (line,) = [line for line in forger.ok("list", "--verdict", "not reproduced").splitlines() if "demo" in line]
    assert "not reproduced (cpu)" in line
    assert json.loads(memory.read_text())["demo"] != lines["demo"]


def test_no_digest_tells_invented_rows_but_measuring_again_does(forger: Forger) -> None:
    """Whoever invents numbers and computes every digest anew is believed by all that is derived: docs/trust.md."""
    document = forger.load("rows")
    for row in document["rows"]:
        row["measures"]["error"] /= 100
    forger.put_rows(document)
    derived_again(forger)
    assert "not reproduced" not in headline_in_the_readme(forger)
    assert "all checks passed" in forger.ok("verify")
    done = forger.run("verify", "demo", "--rerun", "1")
    assert done.returncode == 1 and "1 trials measured again, 1 differ" in done.stdout, done.stdout
    git(forger.root, "commit", "-q", "-a", "-m", "forged")
    compared = json.loads(forger.ok("reproduce", "demo", "--no-page", "--json"))["compared"]
    assert [one["outcome"] for one in compared] == ["differs"]


def test_a_list_reads_rows_only_where_their_file_is_not_the_judged_one(
    forger: Forger, monkeypatch: pytest.MonkeyPatch
) -> None:
    from repro.files import verdict as files
    from repro.publish import evidence
    from repro.spec.load import load

    monkeypatch.setattr("repro.files.paths.paper_dirs", lambda: forger.root / "papers")
    forger.ok("judge", "demo")
    paper, read = load(forger.paper), []
    reader = files.read_rows
    monkeypatch.setattr(files, "read_rows", lambda *args, **options: read.append(args[0]) or reader(*args, **options))
    assert evidence.verdicts_of(paper)["cpu"]["rows_file"].startswith("sha256:") and not read
    document = forger.load("rows")
    forger.file("rows").write_text(json.dumps(document, indent=3))  # the same rows in another file
    assert evidence.verdicts_of(paper)["cpu"] and len(read) == 1
    document["rows"][0]["measures"]["error"] *= 2
    forger.put("rows", document)
    with pytest.raises(ReproError, match="edited by hand"):
        evidence.verdicts_of(paper)
