"""What an experiment may do to its worker, and what it may read: every misdeed is a failed trial, none a hang."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from conftest import Checkout
from repro.run import processes
from repro.run.engines import local

MISDEEDS = '''"""Each arm misbehaves in its own way."""

import importlib
import json
import os
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from repro.papers.demo.method import method

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Main:
    depth: int
    mode: str


def exits():
    sys.exit(0)


def leaves():
    os._exit(0)


def interrupts():
    raise KeyboardInterrupt


def spoils():
    for number in range(3, 64):
        try:
            os.write(number, b"garbage\\n" * 100)
        except OSError:
            pass
    return 1.0


def forges():
    line = json.dumps({"ticket": "", "results": [{"status": "ok", "measures": {"error": 0.0}}], "seconds": 0.0})
    for number in range(3, 64):
        try:
            os.write(number, line.encode() + b"\\n")
        except OSError:
            pass
    return 1.0


def closes():
    os.closerange(3, 64)
    while True:
        time.sleep(1)


def listens():
    return float(len(sys.stdin.read()))


def opens():
    return float((HERE / "secret.json").read_text())


def opens_quietly():
    try:
        return opens()
    except Exception:
        return 0.5


def queries():
    return float(len(list(sqlite3.connect(HERE / "secret.json").execute("select 1"))))


def connects():
    return float(socket.create_connection(("127.0.0.1", 9))[0])


def asks():
    return float(subprocess.run(["cat", HERE / "secret.json"], capture_output=True).stdout)


def asks_a_shell():
    return float(os.system("exit 1"))


def remembers():
    return float(sqlite3.connect(":memory:").execute("select 4").fetchone()[0])


def imports():
    name = "repro.papers.demo." + "hidden"
    return importlib.import_module(name).VALUE


def scratch():
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "note"
        path.write_text("0.25")
        return float(path.read_text())


def deletes():
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "outer" / "inner").mkdir(parents=True)
    return 0.75


def reads_a_package():
    return float(len(Path(torch.__file__).read_text()) > 0)


def fine():
    return float(method(1))


def main(arm: str, seed: int, config: Main, device: torch.device) -> dict:
    return {"error": globals()[arm]()}
'''

RUN = """
import json, sys
from pathlib import Path
from repro.run.engines import local
arms = sys.argv[1].split()
units = [{"experiment": "main", "module": "repro.papers.demo.experiment", "function": "main", "config": {"mode": "x"},
          "where": "x: y", "path": "single", "exclusive": False, "ranks": None, "device": "cpu",
          "trials": [{"experiment": "main", "arm": arm, "seed": 0, "factors": {"depth": 1}, "key": arm}]}
         for arm in arms]
def done(unit, answer):
    print(json.dumps([unit["trials"][0]["arm"], answer.get("error") or answer["results"]]), flush=True)
local.run_units(units, jobs=1, state=Path(".repro"), done=done)
"""


@pytest.fixture
def misdeeds(checkout: Checkout) -> Checkout:
    (checkout.paper / "experiment.py").write_text(MISDEEDS)
    (checkout.paper / "secret.json").write_text("0.125")
    (checkout.paper / "hidden.py").write_text("VALUE = 0.5\n")
    return checkout


def outcomes(checkout: Checkout, *arms: str) -> dict[str, object]:
    done = checkout.python("-c", RUN, " ".join(arms))
    assert done.returncode == 0, done.stderr
    return dict(map(json.loads, done.stdout.splitlines()))


def ok(error: float) -> list[dict]:
    return [{"status": "ok", "measures": {"error": error}}]


def test_an_experiment_that_leaves_or_spoils_its_worker_is_a_failed_trial(misdeeds: Checkout) -> None:
    found = outcomes(misdeeds, "exits", "interrupts", "leaves", "spoils", "forges", "listens", "fine")
    assert found["exits"] == "the experiment tried to end its process (SystemExit: 0)"
    assert found["interrupts"] == "the experiment tried to end its process (KeyboardInterrupt)"
    assert found["leaves"] == "the experiment ended its process: exit code 0"
    assert "where answers go" in found["spoils"] and "where answers go" in found["forges"]
    assert found["listens"] == ok(0.0), "standard input is empty"
    assert found["fine"] == ok(2.0), "the worker after it is a new one"


@pytest.mark.slow
def test_an_experiment_that_closes_every_descriptor_is_given_up(misdeeds: Checkout) -> None:
    assert "closed the pipe of its answers" in outcomes(misdeeds, "closes")["closes"]


def test_inputs_that_the_key_does_not_cover_are_refused(misdeeds: Checkout) -> None:
    found = outcomes(misdeeds, "opens", "opens_quietly", "imports", "scratch", "deletes", "reads_a_package", "fine")
    secret = misdeeds.paper / "secret.json"
    for arm in ("opens", "opens_quietly"):
        assert found[arm].startswith(f"UncoveredInput: it opens {secret}, which its key does not cover"), found[arm]
    assert "it imports repro.papers.demo.hidden" in found["imports"]
    kept = [found[arm] for arm in ("scratch", "deletes", "reads_a_package", "fine")]
    assert kept == [ok(0.25), ok(0.75), ok(1.0), ok(2.0)]


def test_inputs_from_other_processes_and_machines_are_refused(misdeeds: Checkout) -> None:
    found = outcomes(misdeeds, "queries", "connects", "asks", "asks_a_shell", "remembers")
    assert f"it opens {misdeeds.paper / 'secret.json'}, which its key does not cover" in found["queries"]
    assert "it connects to 127.0.0.1, and its key does not cover what comes from there" in found["connects"]
    assert "it starts the program 'cat'" in found["asks"] and "it starts the program" in found["asks_a_shell"]
    assert found["remembers"] == ok(4.0)


def test_a_deadline_ends_what_runs_and_starts_nothing_more(tmp_path: Path) -> None:
    """Workers that would never answer: their processes are killed at the deadline."""
    began, workers, answers = time.monotonic(), [], []
    real = local.Worker.__init__

    def sleeper(self: local.Worker, log: Path) -> None:
        self.ready = False
        self.process = subprocess.Popen(
            [sys.executable, "-c", "import time; time.sleep(3600)"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        workers.append(self.process)

    local.Worker.__init__ = sleeper
    try:
        units = [{"exclusive": False, "trials": []}] * 5
        local.run_units(
            units, jobs=2, state=tmp_path, done=lambda unit, answer: answers.append(answer), deadline=began + 0.5
        )
    finally:
        local.Worker.__init__ = real
    assert answers == [] and len(workers) == 2 and all(process.poll() is not None for process in workers)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="PR_SET_PDEATHSIG is Linux's")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_what_a_command_calls_ends_with_it(tmp_path: Path, number: signal.Signals) -> None:
    script = """
import sys
from repro.run import processes
with processes.orderly():
    try:
        processes.call([sys.executable, "-c", "import os, time; print(os.getpid(), flush=True); time.sleep(3600)"])
    finally:
        print("closed", flush=True)
"""
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    child = int(process.stdout.readline())
    process.send_signal(number)
    rest = process.communicate(timeout=600)[0]
    code = process.returncode
    assert (code, rest.strip()) == ((143, "closed") if number == signal.SIGTERM else (-9, ""))
    deadline = time.monotonic() + 600
    while alive(child) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not alive(child)


def test_bytecode_cut_short_is_deleted_and_said(tmp_path: Path) -> None:
    (tmp_path / "mod.py").write_text("VALUE = [1, 2, 3]\n")
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"} | {
        "PYTHONPATH": str(tmp_path)
    }
    subprocess.run([sys.executable, "-c", "import mod"], env=environment, check=True)
    [bytecode] = (tmp_path / "__pycache__").glob("mod.*.pyc")
    bytecode.write_bytes(bytecode.read_bytes()[:-9])
    code = """
import sys
sys.path.insert(0, sys.argv[1])
from repro.run.processes import mended_bytecode
try:
    import mod
except Exception as error:
    print(mended_bytecode(error))
import mod
print(mod.VALUE)
"""
    done = subprocess.run([sys.executable, "-B", "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        f"{bytecode}: Python's bytecode was cut short (a full disk?) and is deleted; run the same command again",
        "[1, 2, 3]",
    ]
    assert processes.mended_bytecode(EOFError("something else")) is None
    assert processes.quiet_bytecode()["PYTHONDONTWRITEBYTECODE"] == "1"


def test_a_command_starts_again_after_bytecode_of_its_own_was_cut_short(checkout: Checkout) -> None:
    """What the command imports before it can catch anything: the next one says what was wrong, the one after runs."""
    environment = {k: v for k, v in checkout.environment().items() if k != "PYTHONDONTWRITEBYTECODE"}
    ask = [sys.executable, "-m", "repro", "--version"]
    first = subprocess.run(ask, cwd=checkout.root, env=environment, capture_output=True, text=True)
    assert first.returncode == 0, first.stderr
    [bytecode] = (checkout.root / "src" / "repro" / "commands" / "__pycache__").glob("judging.*.pyc")
    bytecode.write_bytes(bytecode.read_bytes()[:-99])
    second = subprocess.run(ask, cwd=checkout.root, env=environment, capture_output=True, text=True)
    assert second.returncode == 1 and second.stderr.startswith("error: ") and "is deleted; run" in second.stderr
    assert len(second.stderr.splitlines()) == 1 and not bytecode.exists()
    third = subprocess.run(ask, cwd=checkout.root, env=environment, capture_output=True, text=True)
    assert (third.returncode, third.stdout) == (0, first.stdout)
