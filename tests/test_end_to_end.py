"""The README's two commands, as a new user runs them: in a clone of the last commit, from an empty store."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from conftest import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]


def make(clone: Path, *words: str) -> tuple[str, float]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "VIRTUAL_ENV"))}
    began = time.perf_counter()
    done = subprocess.run(
        ["make", *words, f"PYTHON={sys.executable}"],
        cwd=clone,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout, time.perf_counter() - began


def dvc(clone: Path, *words: str) -> str:
    done = subprocess.run([clone / ".venv/bin/dvc", *words], cwd=clone, capture_output=True, text=True)
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("user") / "repro"
    subprocess.run(["git", "clone", "-q", str(ROOT), str(path)], check=True)
    make(path, "setup")
    return path


def git_status(clone: Path) -> str:
    return subprocess.run(["git", "status", "--porcelain"], cwd=clone, capture_output=True, text=True).stdout


def test_make_reproduce_measures_apart_and_then_remembers(clone: Path) -> None:
    """The first command of the README; `make test`, the second one, runs at the end of this file."""
    out, _ = make(clone, "reproduce", "PAPER=rmsnorm")
    assert "0 in the store" in out and "zero-mean-equivalence" in out and "statements:" in out
    page = Path(out.strip().splitlines()[-1].removeprefix("page: "))
    assert page.is_relative_to(clone / ".repro" / "here" / "cpu") and page.stat().st_size > 10_000
    assert git_status(clone) == ""
    out, _ = make(clone, "reproduce", "PAPER=rmsnorm")
    assert " 0 to measure" in out or "could not be measured here" in out
    assert git_status(clone) == ""


def test_no_text_of_params_runs(clone: Path) -> None:
    params = clone / "params.yaml"
    before = params.read_text()
    environment = {**os.environ, "PATH": f"{clone / '.venv/bin'}{os.pathsep}{os.environ['PATH']}"}
    for target in ("papers/rmsnorm", "arena/mlp", "reports/index"):
        params.write_text(before.replace("profile: cpu", 'profile: "$(touch PWNED)cpu"'))
        try:
            done = subprocess.run(
                [clone / ".venv/bin/dvc", "repro", "-f", target], cwd=clone, env=environment, capture_output=True
            )
        finally:
            params.write_text(before)
        assert done.returncode != 0 and not list(clone.rglob("PWNED")), target


def test_profile_in_params_selects_the_stages(clone: Path) -> None:
    params = clone / "params.yaml"
    before = params.read_text()
    params.write_text(before.replace("profile: cpu", "profile: gpu"))
    try:
        shown = dvc(clone, "stage", "list", "papers/rmsnorm/dvc.yaml")
        assert "run@gpu" in shown and "run@cpu" not in shown
    finally:
        params.write_text(before)


def test_an_installed_package_works_outside_the_checkout(clone: Path, tmp_path: Path) -> None:
    target = tmp_path / "site"
    subprocess.run(
        [clone / ".venv/bin/uv", "pip", "install", "-q", "--no-deps", "--target", str(target), str(clone)], check=True
    )
    code = "from repro.papers.rmsnorm import RMSNorm; import torch; print(RMSNorm(4)(torch.ones(2, 4)).tolist())"
    environment = {**os.environ, "PYTHONPATH": str(target)}
    done = subprocess.run(
        [clone / ".venv/bin/python", "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.stdout.strip().startswith("[[0.99") or done.stdout.strip() == str([[1.0] * 4] * 2), done.stderr
    listed = subprocess.run(
        [clone / ".venv/bin/python", "-m", "repro", "list"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert listed.returncode == 0 and "rmsnorm" in listed.stdout, listed.stderr


@pytest.mark.parametrize("resolution", ["lowest-direct", "highest"])
def test_bounds_of_versions_hold(clone: Path, tmp_path: Path, resolution: str) -> None:
    """The oldest and the newest packages that pyproject.toml allows read, judge, render and pass a paper's tests."""
    path = tmp_path / "repro"
    subprocess.run(["git", "clone", "-q", str(ROOT), str(path)], check=True)
    subprocess.run([sys.executable, "-m", "venv", path / ".venv"], check=True)
    python, bin = path / ".venv/bin/python", path / ".venv/bin"
    install = [clone / ".venv/bin/uv", "pip", "install", "-q", "--python", python, "--resolution", resolution]
    subprocess.run([*install, "-e", ".[suite,test]"], cwd=path, check=True)
    environment = {**os.environ, "PATH": f"{bin}{os.pathsep}{os.environ['PATH']}"}
    for words in (
        ["repro", "list"],
        ["repro", "judge", "--all", "--check"],
        ["repro", "report", "rmsnorm"],
        ["dvc", "status", "papers/rmsnorm"],
        # torch 2.11 warns of its own code when it compiles an autograd.Function
        ["python", "-m", "pytest", "-q", "-W", "ignore::DeprecationWarning", "papers/rmsnorm", "tests/test_decide.py"],
    ):
        done = subprocess.run([bin / words[0], *words[1:]], cwd=path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, (words, (done.stdout + done.stderr)[-4000:])


def test_make_test_passes(clone: Path) -> None:
    out, _ = make(clone, "test")
    assert " passed" in out and "failed" not in out.splitlines()[-1]
