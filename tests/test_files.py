"""Stored files are read strictly, whoever wrote them; a verdict is shown with its rows or not at all."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT
from repro.errors import ReproError, did_you_mean, known
from repro.files import plan as plan_file
from repro.files import verdict as verdict_file
from repro.files.paths import JUDGED, PROFILES, SCHEMA, place, results, row_key
from repro.files.rows import read_rows
from repro.files.strict import JsonFile, plain, read_regular
from repro.spec import load as papers
from repro.store import rows_digest, sealed

ROW = {
    "experiment": "main",
    "arm": "a",
    "seed": 0,
    "factors": {},
    "status": "ok",
    "seconds": 1.0,
    "measures": {"x": 1.0},
}
CLAIM = {
    "state": "reproduced",
    "why": "it is",
    "estimate": 1.0,
    "interval": [0.5, 1.5],
    "n": 5,
    "unit": "s",
    "paper_value": {"value": 1.0},
    "controls": [],
    "parts": [],
    "rule": {"kind": "bound"},
}


def rows_of(rows: list[dict]) -> dict:
    return sealed(
        {
            "schema": SCHEMA,
            "paper": "demo",
            "profile": "cpu",
            "provenance": {"digest": rows_digest(rows), "trials": ["key"] * len(rows)},
            "registered": "sha256:0",
            "rows": rows,
        }
    )


def verdict_of(digest: str) -> dict:
    return {
        "schema": SCHEMA,
        "paper": "demo",
        "profile": "cpu",
        "rows_digest": digest,
        "post_hoc": False,
        "headline": "it",
        "claims": {"it": CLAIM},
    }


@pytest.fixture
def put(tmp_path: Path):
    def put(kind: str, document: dict | bytes) -> Path:
        path = results("demo", "cpu", kind, tmp_path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(document if isinstance(document, bytes) else json.dumps(document).encode())
        return path

    return put


def refused(call, *words: str) -> str:
    """The one line with which a call refuses."""
    with pytest.raises(ReproError) as caught:
        call()
    told = str(caught.value)
    assert "\n" not in told and len(told) < 1000
    for word in words:
        assert word in told, told
    return told


# --- names ------------------------------------------------------------------------------------------------------------


def test_paths_and_rows_have_one_name(tmp_path: Path) -> None:
    assert set(JUDGED) == set(PROFILES) - {"smoke"}
    assert [p for p in PROFILES if p in JUDGED] == list(JUDGED)
    path = results("demo", "long", "rows", tmp_path)
    assert path == tmp_path / "papers" / "demo" / "results" / "long.rows.json" and place(path) == ("demo", "long")
    assert row_key({**ROW, "factors": {"a": 1, "b": 2}}) == row_key({**ROW, "factors": {"b": 2, "a": 1}, "seconds": 9})


def test_one_hint_for_every_name_that_is_almost_right() -> None:
    assert did_you_mean("rmsnrm", ["rmsnorm", "layernorm"]) == "; did you mean 'rmsnorm'?"
    assert did_you_mean("x", ["rmsnorm"]) == "; write one of rmsnorm" and did_you_mean("x", []) == "; there is none"
    assert known("arm", "a", ["a"]) is None and known("arm", "b", ["a"]) == "no arm 'b'; write one of a"


# --- what may be read -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hostile", ["pipe", "device", "gigabytes", "folder"])
@pytest.mark.parametrize("kind", ["rows", "verdict", "quality", "plan", "text", "paper.yaml", "params.yaml"])
def test_only_regular_files_of_a_plausible_size_are_read(tmp_path: Path, kind: str, hostile: str) -> None:
    if kind in ("paper.yaml", "params.yaml"):
        path = tmp_path / "papers" / "demo" / kind if kind == "paper.yaml" else tmp_path / kind
    else:
        path = results("demo", "cpu", kind, tmp_path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if hostile == "pipe":
        os.mkfifo(path)
    elif hostile == "device":
        path.symlink_to("/dev/zero")
    elif hostile == "folder":
        path.mkdir()
    else:
        with open(path, "wb") as file:
            file.truncate(8 * 2**30)
    read = {
        "rows": lambda: read_rows(path, "again"),
        "verdict": lambda: verdict_file.read_verdict(path, "again"),
        "quality": lambda: verdict_file.read_quality(path, "again"),
        "plan": lambda: plan_file.read_plan(path, "again"),
        "text": lambda: plain(path),
        "paper.yaml": lambda: papers.load(path),
        "params.yaml": lambda: papers.load_params(tmp_path),
    }[kind]
    refused(read, str(path))


def test_a_regular_file_is_read_up_to_its_limit(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"x" * 2**20)
    assert len(read_regular(path, 2**20)) == 2**20
    path.write_bytes(b"x" * (2**20 + 1))
    with pytest.raises(OSError, match="holds more than 1 MiB"):
        read_regular(path, 2**20)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a":' * 100_000, '{"schema": 2, "x": ' + "[" * 5000 + "]" * 5000 + "}"]
)
def test_json_that_nests_without_end_is_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    refused(lambda: JsonFile(path, "write it again"), "x.json:1: ", "write it again")
    refused(lambda: JsonFile(path, "write it again", "HEAD:x.json", text.encode()), "HEAD:x.json:1: ")


def test_yaml_that_nests_without_end_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("[" * 100_000)
    refused(lambda: papers.load_params(tmp_path), "params.yaml:")


# --- a verdict and its rows -------------------------------------------------------------------------------------------


def stored(root: Path) -> tuple[dict, dict] | None:
    return verdict_file.stored("demo", "cpu", root)


def test_a_verdict_comes_with_its_rows(put, tmp_path: Path) -> None:
    assert stored(tmp_path) is None
    rows = rows_of([ROW])
    put("rows", rows)
    assert stored(tmp_path) is None, "rows that are not judged yet are no verdict"
    put("verdict", verdict_of(rows["provenance"]["digest"]))
    verdict, found = stored(tmp_path)
    assert verdict["claims"]["it"]["state"] == "reproduced" and found == rows


def forge_nothing_beside(put, tmp_path):
    put("verdict", verdict_of("sha256:0"))


def forge_rows_of_another_digest(put, tmp_path):
    put("rows", rows_of([ROW]))
    put("verdict", verdict_of(rows_digest([{**ROW, "seed": 1}])))


def forge_a_row_changed_and_sealed(put, tmp_path):
    rows = rows_of([ROW])
    put("verdict", verdict_of(rows["provenance"]["digest"]))
    put("rows", sealed({**rows, "rows": [{**ROW, "measures": {"x": 0.0}}]}))


def forge_no_rows_in_the_document(put, tmp_path):
    put("verdict", verdict_of(rows_digest([ROW])))
    put("rows", rows_of([]))


def forge_rows_of_another_paper(put, tmp_path):
    rows = rows_of([ROW])
    put("verdict", verdict_of(rows["provenance"]["digest"]))
    put("rows", sealed({**rows, "paper": "other"}))


def forge_rows_of_another_profile(put, tmp_path):
    rows = rows_of([ROW])
    put("verdict", verdict_of(rows["provenance"]["digest"]))
    put("rows", sealed({**rows, "profile": "gpu"}))


def forge_a_verdict_of_another_paper(put, tmp_path):
    rows = rows_of([ROW])
    put("rows", rows)
    put("verdict", {**verdict_of(rows["provenance"]["digest"]), "paper": "other"})


def forge_a_link_to_rows_that_are_gone(put, tmp_path):
    put("verdict", verdict_of("sha256:0"))
    results("demo", "cpu", "rows", tmp_path).symlink_to("nowhere")


def forge_an_unsealed_document(put, tmp_path):
    rows = rows_of([ROW])
    rows["provenance"]["checksum"] = "sha256:0"
    put("verdict", verdict_of(rows["provenance"]["digest"]))
    put("rows", rows)


def forge_rows_of_an_older_schema(put, tmp_path):
    rows = rows_of([ROW])
    put("verdict", verdict_of(rows["provenance"]["digest"]))
    put("rows", sealed({**rows, "schema": 1}))


def forge_a_folder_of_rows(put, tmp_path):
    put("verdict", verdict_of("sha256:0"))
    results("demo", "cpu", "rows", tmp_path).mkdir()


FORGED = [value for name, value in sorted(globals().items()) if name.startswith("forge_")]


@pytest.mark.parametrize("forge", FORGED, ids=lambda f: f.__name__.removeprefix("forge_"))
def test_a_forged_verdict_is_refused(put, tmp_path: Path, forge) -> None:
    forge(put, tmp_path)
    refused(lambda: stored(tmp_path), "papers/demo/results/cpu.")


# --- plans on a machine with nothing but torch and numpy --------------------------------------------------------------

ENTRY = {
    "paper": "demo",
    "profile": "gpu",
    "registered": "sha256:0",
    "experiments": {
        "main": {
            "module": "repro.papers.demo.experiment",
            "exclusive": False,
            "batched": False,
            "arms": ["a"],
            "config": {},
        }
    },
    "trials": [{"experiment": "main", "arm": "a", "seed": 0, "factors": {}}],
}
PLAN = plan_file.written({"entries": [ENTRY]})
EDITED = {
    "as written": (PLAN, ""),
    "another schema": ({**PLAN, "schema": 1}, "schema 1, this version reads 2"),
    "a seed more": ({**PLAN, "entries": [{**ENTRY, "trials": [{**ENTRY["trials"][0], "seed": 5}]}]}, "not as it was"),
    "no digest": ({k: v for k, v in PLAN.items() if k != "digest"}, "the plan is not as it was written"),
    "a way out": (plan_file.written({"entries": [{**ENTRY, "paper": "../../x"}]}), "write a paper's name"),
    "a module of the system": (
        plan_file.written(
            {"entries": [{**ENTRY, "experiments": {"main": {**ENTRY["experiments"]["main"], "module": "os"}}}]}
        ),
        "write a module of this suite",
    ),
}


@pytest.mark.parametrize("edit", EDITED)
@pytest.mark.parametrize("bare", [False, True], ids=["with pydantic", "bare"])
def test_plans_are_checked_with_and_without_pydantic(tmp_path: Path, edit: str, bare: bool) -> None:
    document, message = EDITED[edit]
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(document))
    script = """
import importlib.util, sys
from pathlib import Path
if sys.argv[2] == "True":
    find = importlib.util.find_spec
    importlib.util.find_spec = lambda name, *rest: None if name == "pydantic" else find(name, *rest)
    sys.modules["pydantic"] = None
from repro.errors import ReproError
from repro.files.plan import read_plan
try:
    read_plan(Path(sys.argv[1]), "again")
except ReproError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(path), str(bare)], capture_output=True, text=True, check=True
    )
    assert (message in done.stdout) if message else done.stdout == "", done.stdout


def test_the_measuring_core_needs_no_pydantic_and_no_yaml() -> None:
    script = """
import sys
for name in ("pydantic", "ruamel", "yaml", "typer", "scipy"):
    sys.modules[name] = None
import repro.run.measure, repro.run.execute, repro.arena.__main__, repro.store, repro.files.plan
print("fine")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "fine\n", done.stderr[-2000:]


# --- caches -----------------------------------------------------------------------------------------------------------


def test_a_poisoned_cache_changes_nothing_that_is_judged(tmp_path: Path) -> None:
    folder = tmp_path / "papers" / "rmsnorm"
    folder.mkdir(parents=True)
    shutil.copy(ROOT / "papers" / "rmsnorm" / "paper.yaml", folder)
    first = papers.load("rmsnorm", tmp_path)
    for path in (tmp_path / ".repro" / "yaml" / "x.json", tmp_path / ".repro" / "list.json"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"rmsnorm": {"headline": "forged", "claims": {}}}))
    papers._checked.cache_clear()
    assert papers.load("rmsnorm", tmp_path) == first
    assert papers.load("rmsnorm", tmp_path).registration("cpu") == first.registration("cpu")
