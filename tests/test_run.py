"""`repro run`: rows in seed-major order, the store, divergence, failures, death of workers and of the parent."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from conftest import ROOT, Checkout
from repro.store import Store, rows_digest


def rows_of(checkout: Checkout, profile: str = "cpu") -> dict:
    return json.loads((checkout.paper / "results" / f"{profile}.rows.json").read_text())


def test_rows_are_seed_major_with_digest_and_provenance(checkout: Checkout) -> None:
    out = checkout.ok("run", "demo")
    assert "12 trials, 0 in the store, 12 to measure" in out and "noise" not in out
    document = rows_of(checkout)
    order = [(row["seed"], row["factors"]["depth"], row["arm"]) for row in document["rows"]]
    assert order == [(s, d, a) for s in range(3) for d in (1, 2) for a in ("method", "broken")]
    assert set(document) == {"schema", "paper", "profile", "provenance", "registered", "rows"}
    assert all(
        set(row) == {"experiment", "arm", "seed", "factors", "status", "seconds", "measures"}
        for row in document["rows"]
    )
    assert document["provenance"]["digest"] == rows_digest(document["rows"])
    assert len(document["provenance"]["trials"]) == 12 and document["provenance"]["threads"] == 1
    again = checkout.ok("run", "demo")
    assert "12 in the store, 0 to measure" in again
    assert rows_of(checkout)["rows"] == document["rows"]


def test_the_seed_matters_and_force_gives_the_same_rows(checkout: Checkout) -> None:
    checkout.ok("run", "demo")
    first = rows_of(checkout)
    errors = [row["measures"]["error"] for row in first["rows"] if row["arm"] == "method"]
    assert len(set(errors)) == len(errors)
    assert "12 to measure" in checkout.ok("run", "demo", "--force")
    assert rows_of(checkout)["provenance"]["digest"] == first["provenance"]["digest"]


@pytest.mark.parametrize("path", ["batched: true", "exclusive"])
def test_batched_and_exclusive_units_give_the_same_rows(checkout: Checkout, path: str) -> None:
    checkout.ok("run", "demo")
    single = rows_of(checkout)
    if path == "exclusive":
        checkout.edit("about: errors", "exclusive: true, about: errors")
    else:
        checkout.edit("cpu: {seeds: 3, main: {mode: plain}}", "cpu: {seeds: 3, main: {batched: true, mode: plain}}")
    assert "12 to measure" in checkout.ok("run", "demo"), "another execution path is another trial"
    assert rows_of(checkout)["provenance"]["digest"] == single["provenance"]["digest"]


def test_an_edited_experiment_is_measured_again_and_a_comment_is_not(checkout: Checkout) -> None:
    checkout.ok("run", "demo")
    checkout.edit("import os\n", "import os  # a comment\n", "papers/demo/experiment.py")
    assert "0 to measure" in checkout.ok("run", "demo")
    checkout.edit("/ 100", "/ 200", "papers/demo/experiment.py")
    assert "12 to measure" in checkout.ok("run", "demo")


@pytest.mark.parametrize(
    "mode, status, step", [("diverge", "diverged", 17), ("nan", "diverged", None), ("invalid", "invalid", None)]
)
def test_divergence_is_a_row(checkout: Checkout, mode: str, status: str, step: int | None) -> None:
    checkout.edit("cpu: {seeds: 3, main: {mode: plain}}", f"cpu: {{seeds: 3, main: {{mode: {mode}}}}}")
    checkout.ok("run", "demo")
    document = rows_of(checkout)
    bad = [row for row in document["rows"] if row["status"] != "ok"]
    assert [(row["arm"], row["seed"], row["factors"]["depth"]) for row in bad] == [("method", 1, 2)]
    assert bad[0]["status"] == status and bad[0].get("step") == step
    assert bad[0]["measures"] == ({"curve": [1.0, 2.0]} if mode == "nan" else {})
    checkout.ok("judge", "demo")
    verdict = json.loads((checkout.paper / "results" / "cpu.verdict.json").read_text())
    assert verdict["claims"]["main"]["state"] in ("inconclusive", "not_reproduced")


def test_an_invalid_measurement_is_tried_again(checkout: Checkout) -> None:
    checkout.edit("cpu: {seeds: 3, main: {mode: plain}}", "cpu: {seeds: 3, main: {mode: invalid}}")
    assert "12 to measure" in checkout.ok("run", "demo")
    assert "11 in the store, 1 to measure" in checkout.ok("run", "demo")
    assert [row["why"] for row in rows_of(checkout)["rows"] if row["status"] == "invalid"] == ["A/A arms 3.1 % apart"]


def test_an_exception_leaves_the_other_trials_and_the_old_rows(checkout: Checkout) -> None:
    checkout.ok("run", "demo")
    before = (checkout.paper / "results" / "cpu.rows.json").read_bytes()
    checkout.edit("cpu: {seeds: 3, main: {mode: plain}}", "cpu: {seeds: 3, main: {mode: raise}}")
    line = checkout.refused("run", "demo", code=1)
    assert "RuntimeError: the experiment is broken" in line and "main method seed 1" in line
    log = checkout.root / ".repro" / "logs" / "demo-cpu.log"
    assert str(log) in line and "Traceback" in log.read_text()
    assert (checkout.paper / "results" / "cpu.rows.json").read_bytes() == before
    checkout.edit('config.mode == "raise" and chosen', 'config.mode == "never" and chosen', "papers/demo/experiment.py")
    checkout.ok("run", "demo")
    assert all(row["status"] == "ok" for row in rows_of(checkout)["rows"])


def test_a_worker_that_dies_is_replaced(checkout: Checkout) -> None:
    checkout.edit("cpu: {seeds: 3, main: {mode: plain}}", "cpu: {seeds: 3, main: {mode: die_once}}")
    checkout.ok("run", "demo")
    assert (checkout.paper / "died").exists()
    assert all(row["status"] == "ok" for row in rows_of(checkout)["rows"])


def test_a_worker_that_always_dies_is_a_failure_not_a_hang(checkout: Checkout) -> None:
    checkout.edit("cpu: {seeds: 3, main: {mode: plain}}", "cpu: {seeds: 3, main: {mode: die}}")
    line = checkout.refused("run", "demo", code=1)
    assert "ended with code -9 (3 of 3 tries)" in line


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="PR_SET_PDEATHSIG is Linux's")
def test_kill_minus_nine_leaves_no_orphan_and_the_next_run_goes_on(checkout: Checkout) -> None:
    checkout.ok("run", "demo")
    undisturbed = rows_of(checkout)["provenance"]["digest"]
    checkout.edit("cpu: {seeds: 3, main: {mode: plain}}", "cpu: {seeds: 3, main: {mode: slow}}")
    (checkout.paper / "results" / "cpu.rows.json").unlink()
    calls = checkout.paper / "calls"
    for wanted in (1, 5):  # killed at two moments of the run
        process = checkout.start("run", "demo")
        deadline = time.monotonic() + 600
        while time.monotonic() < deadline and len(calls.read_text().splitlines() if calls.exists() else []) < wanted:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        pids = {int(line.split()[-1]) for line in calls.read_text().splitlines()}
        deadline = time.monotonic() + 600
        while time.monotonic() < deadline and any(alive(pid) for pid in pids):
            time.sleep(0.05)
        assert not any(alive(pid) for pid in pids), "workers end with their parent"
        assert not (checkout.paper / "results" / "cpu.rows.json").exists()
    out = checkout.ok("run", "demo")
    assert " 0 in the store" not in out, "finished trials are kept"
    assert rows_of(checkout)["provenance"]["digest"] == undisturbed


def session(leader: int) -> set[int]:
    """The processes that live in the session which one process began."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[3]) == leader and fields[0] != "Z":
            found.add(int(folder.name))
    return found


def wait_until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 600  # against hanging alone
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("way", ["repro", pytest.param("make", marks=pytest.mark.slow)])
def test_sigterm_ends_reproduce_with_all_that_it_started(checkout: Checkout, way: str) -> None:
    """Its workers hold in the middle of a trial, and would for ever: none of them may go on and write."""
    held = """
    with open(here / "calls", "a") as calls:
        calls.write(f"{arm} {seed} {config.depth}\\n")
    while seed == 1 and (here / "hold").exists():
        time.sleep(0.05)
    print("noise"""
    checkout.edit('\n    print("noise', held, "papers/demo/experiment.py")
    for path in (checkout.paper / "hold", checkout.paper / "calls"):
        path.touch()
    bin_, state = checkout.root / ".venv" / "bin", checkout.root / ".repro"
    bin_.mkdir(parents=True)
    (bin_ / "repro").write_text(f'#!/bin/sh\nexec {sys.executable} -m repro.cli "$@"\n')
    (bin_ / "repro").chmod(0o755)
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, checkout.root)
    (bin_.parent / "ready").touch()  # newer than what it is made from
    words = ["make", "reproduce", "PAPER=demo"] if way == "make" else [bin_ / "repro", "reproduce", "demo", "--no-page"]
    process = subprocess.Popen(
        words,
        cwd=checkout.root,
        env=checkout.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    calls = checkout.paper / "calls"
    wait_until(lambda: "method 1" in calls.read_text() and "broken 1" in calls.read_text())
    assert len(session(process.pid)) >= 3, "the command and two workers"
    os.kill(process.pid, signal.SIGTERM)
    out = process.communicate(timeout=600)[0].decode()
    assert process.returncode in ((2, -signal.SIGTERM) if way == "make" else (128 + signal.SIGTERM,)), out
    assert "Traceback" not in out
    wait_until(lambda: not session(process.pid))
    assert not list(state.rglob("*.rows.json")) and not list(state.rglob("*.tmp"))
    with open(state / "machine.lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    store = Store(state / "here" / "trials")
    kept = list(store.root.glob("*/*.json"))
    assert kept and all(store.get("sha256:" + path.stem) for path in kept)
    (checkout.paper / "hold").unlink()
    done = json.loads(checkout.ok("reproduce", "demo", "--no-page", "--json"))
    here = json.loads(Path(done["rows"]).read_text())
    checkout.ok("run", "demo", "--quiet")
    assert here["provenance"]["digest"] == rows_of(checkout)["provenance"]["digest"]
    assert len(calls.read_text().splitlines()) <= 12 + 2 + 12, "what was finished is not measured again"


@pytest.mark.parametrize("edit", ["rewritten", "half written"])
def test_rows_of_source_that_was_edited_meanwhile_are_refused(checkout: Checkout, edit: str) -> None:
    """Their keys name the source as the run found it, and nobody knows which one a worker has read."""
    checkout.edit("mode: plain}}", "mode: slow}}\n  long: {seeds: 3, main: {mode: slow}}")
    calls, source = checkout.paper / "calls", checkout.paper / "experiment.py"
    with ThreadPoolExecutor() as threads:
        running = threads.submit(checkout.run, "run", "demo", "--profile", "long")
        wait_until(lambda: calls.exists() and len(calls.read_text().splitlines()) >= 2)
        before = source.read_text()
        source.write_text(before.replace("/ 100", "/ 200") if edit == "rewritten" else before + "\n(")
        done = running.result()
    out, err = done.stdout, done.stderr
    assert done.returncode == 1 and "trials failed" in err, out
    told = "its source was edited while it was measured; run the same command again"
    assert told in (err if edit == "rewritten" else out), out  # of what is half written the workers tell themselves
    assert not (checkout.paper / "results" / "long.rows.json").exists()
    source.write_text(before)
    checkout.ok("run", "demo", "--profile", "long", "--quiet")
    kept = rows_of(checkout, "long")["provenance"]["digest"]
    checkout.ok("run", "demo", "--quiet")
    assert kept == rows_of(checkout)["provenance"]["digest"], "no record is of the edited source"


def test_two_runs_at_once_do_no_harm(checkout: Checkout) -> None:
    with ThreadPoolExecutor() as threads:
        both = [threads.submit(checkout.run, "run", "demo", *options) for options in ((), ("--force",))]
    said = [run.result() for run in both]
    assert [done.returncode for done in said] == [0, 0], said
    checkout.ok("judge", "demo")
    assert len(rows_of(checkout)["rows"]) == 12


def test_more_and_fewer_seeds_than_planned(checkout: Checkout) -> None:
    checkout.ok("run", "demo", "--seeds", "4")
    checkout.ok("judge", "demo")
    verdict = checkout.paper / "results" / "cpu.verdict.json"
    assert json.loads(verdict.read_text())["claims"]["main"]["n"] == 3, "seeds beyond the plan are not judged"
    checkout.ok("run", "demo", "--seeds", "2")
    checkout.ok("judge", "demo")
    assert json.loads(verdict.read_text())["claims"]["main"]["state"] == "inconclusive"


def test_rows_measured_under_other_rules_stay_post_hoc(checkout: Checkout) -> None:
    checkout.ok("run", "demo")
    checkout.ok("judge", "demo")
    verdict = checkout.paper / "results" / "cpu.verdict.json"
    assert json.loads(verdict.read_text())["post_hoc"] is False
    checkout.edit("max: 0.5", "max: 0.6")
    for step in ("judge", "run", "judge"):  # neither judging nor gathering the same trials again launders a rule
        checkout.ok(step, "demo")
    assert json.loads(verdict.read_text())["post_hoc"] is True


def test_a_plan_runs_where_only_torch_and_numpy_are(checkout: Checkout, tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    plan.write_text(checkout.ok("plan", "demo", "--json"))
    environment = checkout.bare_environment(tmp_path / "bare")
    words = [sys.executable, "-m", "repro.run", str(plan), "--out", str(tmp_path / "out")]
    done = subprocess.run(words, env=environment, cwd=checkout.root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    brought = json.loads((tmp_path / "out" / "demo" / "cpu.rows.json").read_text())
    checkout.ok("run", "demo")
    assert brought["rows"] == rows_of(checkout)["rows"]


@pytest.mark.parametrize(
    "words, told",
    [
        (["run", "dmeo"], "demo"),
        (["run"], "--all"),
        (["run", "demo", "--profile", "cqu"], "did you mean cpu?"),
        (["run", "demo", "--profile", "gpu"], "has no profile gpu; it has smoke, cpu"),
        (["run", "demo", "--device", "tpu"], "write cpu, cuda"),
        (["run", "demo", "--device", "cuda:99"], "no GPU here"),
        (["run", "demo", "--engine", "slurm"], "write local"),
        (["judge", "demo"], "run `repro run demo --profile cpu` first"),
        (["show", "demo", "--verdict"], "run `repro run demo --profile cpu`"),
        (["list", "--family", "norm"], "unknown family"),
        (["cite", "nothing"], "no such paper"),
        (["new", "mix-ln"], "mix_ln"),
        (["new", "demo"], "exists already"),
    ],
)
def test_bad_words_get_one_line(checkout: Checkout, words: list[str], told: str) -> None:
    if "cuda:99" in words:
        import torch

        told = told if torch.cuda.device_count() == 0 else "here"
    assert told in checkout.refused(*words)
    assert not (checkout.paper / "results").exists()


@pytest.mark.parametrize(
    "words", [["run", "demo", "--seeds", "-3"], ["run", "demo", "--jobs", "0"], ["run", "demo", "--sedes", "3"]]
)
def test_bad_options_exit_with_usage(checkout: Checkout, words: list[str]) -> None:
    done = checkout.run(*words)
    assert done.returncode == 2 and words[2] in done.stderr and "Traceback" not in done.stderr


def test_unknown_and_missing_settings_name_the_config(checkout: Checkout) -> None:
    checkout.edit("cpu: {seeds: 3, main: {mode: plain}}", "cpu: {seeds: 3, main: {mode: plain, lrr: 3}}")
    line = checkout.refused("run", "demo", code=1)
    assert (
        "paper.yaml:" in line and "profiles.cpu.main" in line and "unknown setting 'lrr'; Main has depth, mode" in line
    )
    checkout.edit("mode: plain, lrr: 3", "{}".strip("{}"))
    assert "mode" in checkout.refused("run", "demo", code=1)


@pytest.mark.skipif(os.geteuid() == 0 if hasattr(os, "geteuid") else True, reason="root may write anywhere")
def test_a_read_only_results_folder(checkout: Checkout) -> None:
    folder = checkout.paper / "results"
    folder.mkdir()
    folder.chmod(0o500)
    try:
        assert "may not be written" in checkout.refused("run", "demo")
        assert "12 in the store" in checkout.run("run", "demo").stdout, "the trials are kept"
    finally:
        folder.chmod(0o700)


def test_rows_edited_by_hand_are_refused(checkout: Checkout) -> None:
    checkout.ok("run", "demo")
    path = checkout.paper / "results" / "cpu.rows.json"
    text = path.read_text()
    value = str(json.loads(text)["rows"][0]["measures"]["error"])
    for new, told in [
        (text.replace(value, "0.001", 1), "not as it was written"),
        (text.replace(value, "NaN", 1), "NaN"),
        (text.replace('"schema": 2', '"schema": 0', 1), "schema"),
        (text[: len(text) // 2], "JSON"),
    ]:
        assert new != text
        path.write_text(new)
        line = checkout.refused("judge", "demo")
        assert "cpu.rows.json" in line and told in line
        assert not (checkout.paper / "results" / "cpu.verdict.json").exists()
