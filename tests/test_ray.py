"""The same trials over a Ray cluster: rows equal to the local engine's bit for bit, nothing lost or counted twice."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import Checkout

RAY = Path(sys.executable).with_name("ray")


def rows(checkout: Checkout) -> dict:
    return json.loads((checkout.paper / "results" / "cpu.rows.json").read_text())


def calls(checkout: Checkout) -> list[str]:
    return (checkout.paper / "calls").read_text().splitlines()


def fresh(checkout: Checkout) -> None:
    subprocess.run(["rm", "-rf", str(checkout.root / ".repro" / "trials"), str(checkout.paper / "calls")], check=True)


@pytest.mark.slow
def test_rows_equal_the_local_engine_s(checkout: Checkout) -> None:
    checkout.ok("run", "demo")
    local = rows(checkout)
    fresh(checkout)
    assert "0 in the store" in checkout.ok("run", "demo", "--engine", "ray")
    assert rows(checkout)["rows"] and [{**r, "seconds": 0} for r in rows(checkout)["rows"]] == [
        {**r, "seconds": 0} for r in local["rows"]
    ]
    assert rows(checkout)["provenance"]["trials"] == local["provenance"]["trials"], (
        "the same keys: either engine takes up the other's trials"
    )
    assert "0 to measure" in checkout.ok("run", "demo")


@pytest.mark.slow
@pytest.mark.parametrize(
    "mode, expected", [("die_once", None), ("raise", "RuntimeError: the experiment is broken"), ("die", "lost 3 times")]
)
def test_workers_that_die_are_retried_and_exceptions_are_not(
    checkout: Checkout, mode: str, expected: str | None
) -> None:
    checkout.edit("cpu: {seeds: 3, main: {mode: plain}}", f"cpu: {{seeds: 3, main: {{mode: {mode}}}}}")
    if expected is None:
        checkout.ok("run", "demo", "--engine", "ray")
        assert (checkout.paper / "died").exists() and len(rows(checkout)["rows"]) == 12
        return
    assert expected in checkout.refused("run", "demo", "--engine", "ray", code=1)
    assert not (checkout.paper / "results" / "cpu.rows.json").exists()
    checkout.edit(f"mode: {mode}", "mode: plain")


@pytest.mark.slow
def test_exclusive_units_run_alone_and_after_the_others(checkout: Checkout) -> None:
    checkout.edit("about: errors}", "about: errors, exclusive: true}")
    checkout.edit("cpu: {seeds: 3, main: {mode: plain}}", "cpu: {seeds: 2, main: {mode: slow}}")
    checkout.ok("run", "demo", "--engine", "ray")
    assert len(calls(checkout)) == 8 and len(rows(checkout)["rows"]) == 8


@pytest.mark.parametrize(
    "words, told",
    [
        (["--engine", "rays"], "write local or ray"),
        (["--address", "auto"], "write --engine ray as well"),
        (["--engine", "ray", "--address", "127.0.0.1:1"], "no Ray cluster there"),
        pytest.param(["--engine", "ray", "--device", "cuda"], "the cluster has no GPU", marks=pytest.mark.slow),
    ],
)
def test_what_cannot_be_is_told_in_a_line(checkout: Checkout, words: list[str], told: str) -> None:
    assert told in checkout.refused("run", "demo", *words)


@pytest.fixture
def two_nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, list[subprocess.Popen]]]:
    """A head without cores and two machines of one core each, all here; the address and the machines' processes."""
    for name, value in (("RAY_USAGE_STATS_ENABLED", "0"), ("RAY_AUTH_MODE", "token"), ("RAY_AUTH_TOKEN", "ab" * 32)):
        monkeypatch.setenv(name, value)
    folder, port, started = f"/tmp/ray-{os.getpid()}", 20000 + os.getpid() % 20000, []
    common = ["--object-store-memory", "80000000", "--disable-usage-stats", "--block"]

    def start(*words: str) -> None:
        started.append(
            subprocess.Popen([str(RAY), "start", *words, *common], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        )

    def wait(nodes: int) -> None:
        deadline = time.monotonic() + 600
        while True:
            told = subprocess.run(
                [str(RAY), "status", "--address", f"127.0.0.1:{port}"], capture_output=True, text=True
            )
            if told.stdout.count(" 1 node_") == nodes:
                return
            assert started[0].poll() is None and time.monotonic() < deadline, told.stdout + told.stderr
            time.sleep(0.5)

    try:
        start("--head", "--port", str(port), "--include-dashboard", "false", "--num-cpus", "0", "--temp-dir", folder)
        wait(1)
        for nodes in (2, 3):  # one after the other: two that start at once may choose the same ports, and one then ends
            start("--address", f"127.0.0.1:{port}", "--num-cpus", "1")
            wait(nodes)
        yield f"127.0.0.1:{port}", started[1:]
    finally:
        for process in reversed(started):
            process.terminate()
        for process in started:
            process.wait(timeout=600)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
def test_a_killed_node_s_trials_move(checkout: Checkout, two_nodes: tuple[str, list[subprocess.Popen]]) -> None:
    address, nodes = two_nodes
    checkout.edit("cpu: {seeds: 3, main: {mode: plain}}", "cpu: {seeds: 3, main: {mode: slow}}")
    checkout.ok("run", "demo")
    local = rows(checkout)
    fresh(checkout)
    process = checkout.start("run", "demo", "--engine", "ray", "--address", address)
    deadline = time.monotonic() + 600
    while not (checkout.paper / "calls").exists() or len(calls(checkout)) < 3:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.05)
    subprocess.run(["pkill", "-9", "-P", str(nodes[1].pid)], check=True)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, out + err
    found = rows(checkout)
    assert [{**r, "seconds": 0} for r in found["rows"]] == [{**r, "seconds": 0} for r in local["rows"]]
    assert len(list((checkout.root / ".repro" / "trials").glob("*/*.json"))) == 12, "one record a trial"
