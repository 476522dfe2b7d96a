"""The store: whole records or none, the first valid one wins, whatever happens while writing."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from repro import store
from repro.errors import ReproError
from repro.files.paths import SCHEMA
from repro.store import Store, digest, rows_digest, write_file

KEY = digest("a trial")
ROW = {
    "experiment": "main",
    "arm": "a",
    "factors": {"depth": 4},
    "status": "ok",
    "seconds": 1.5,
    "measures": {"x": 1.0},
}
BODY = {
    "config": {"steps": 3},
    "registered": {"demo": "sha256:0"},
    "device": "a CPU",
    "versions": {"torch": "2"},
    "measured": "2025-01-31",
}


def body(seed: int = 0) -> dict:
    """The body of a complete record."""
    return {**BODY, "row": {**ROW, "seed": seed}}


def test_digest_is_canonical() -> None:
    assert digest({"b": 1, "a": [1.5, "ü"]}) == digest({"a": [1.5, "ü"], "b": 1})
    assert digest({"a": 1}) != digest({"a": 2})
    assert digest({"a": 1}) != digest({"a": 1.5})
    with pytest.raises(ValueError):
        digest({"a": float("nan")})


def test_rows_digest_leaves_out_seconds_alone() -> None:
    row = {"arm": "a", "seed": 0, "measures": {"x": 1.0}, "seconds": 3.0}
    assert rows_digest([row]) == rows_digest([{**row, "seconds": 9.0}])
    assert rows_digest([row]) != rows_digest([{**row, "measures": {"x": 1.0000001}}])
    assert rows_digest([row]) != rows_digest([{**row, "seed": 1}])


def test_round_trip_and_first_wins(tmp_path: Path) -> None:
    trials = Store(tmp_path)
    assert trials.get(KEY) is None
    assert trials.put(KEY, body(1))["row"]["seed"] == 1
    assert trials.put(KEY, body(2))["row"]["seed"] == 1, "an earlier valid record wins"
    assert trials.get(KEY)["row"]["seed"] == 1
    assert trials.put(KEY, body(3), replace=True)["row"]["seed"] == 3
    assert trials.get(KEY)["row"]["seed"] == 3


def test_a_record_that_is_replaced_is_never_missing(tmp_path: Path) -> None:
    trials, missed, ended = Store(tmp_path), [], threading.Event()
    trials.put(KEY, body(0))

    def read() -> None:
        while not ended.is_set():
            missed.append(trials.get(KEY) is None)

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(200):
        trials.put(KEY, body(number), replace=True)
    ended.set()
    reader.join()
    assert len(missed) > 10 and not any(missed)


@pytest.mark.parametrize("damage", ["empty", "truncated", "flipped", "edited", "other schema", "moved", "list"])
def test_a_damaged_record_counts_as_absent_and_is_replaced(tmp_path: Path, damage: str) -> None:
    trials = Store(tmp_path)
    trials.put(KEY, body(1))
    path = trials.path(KEY)
    data, key = path.read_bytes(), KEY
    if damage == "moved":
        key = digest("another trial")
        trials.path(key).parent.mkdir(parents=True, exist_ok=True)
        trials.path(key).write_bytes(data)
    else:
        new = {
            "empty": b"",
            "truncated": data[:-7],
            "flipped": data.replace(b'"seed":1', b'"seed":2'),
            "list": b"[]",
            "edited": data.replace(b"sha256:", b"sha256:0", 1),
            "other schema": data.replace(b'"schema":2', b'"schema":0'),
        }[damage]
        assert new != data
        path.write_bytes(new)
    assert trials.get(key) is None
    assert trials.put(key, body(2))["row"]["seed"] == 2
    assert trials.get(key)["row"]["seed"] == 2


WRONG = {
    "row null": {"row": None},
    "row empty": {"row": {}},
    "row a list": {"row": [1]},
    "no date": {"measured": None},
    "a date that is none": {"measured": "yesterday"},
    "a number for a text": {"device": 5},
    "a number for an arm": {"row": {**ROW, "seed": 0, "arm": 3}},
    "an arm that is empty": {"row": {**ROW, "seed": 0, "arm": ""}},
    "a seed below 0": {"row": {**ROW, "seed": -1}},
    "a seed that is true": {"row": {**ROW, "seed": True}},
    "no seconds": {"row": {k: v for k, v in {**ROW, "seed": 0}.items() if k != "seconds"}},
    "seconds below 0": {"row": {**ROW, "seed": 0, "seconds": -1}},
    "a text for a measure": {"row": {**ROW, "seed": 0, "measures": {"x": "1"}}},
    "a curve of texts": {"row": {**ROW, "seed": 0, "measures": {"x": [1, "1"]}}},
    "a curve of nothing": {"row": {**ROW, "seed": 0, "measures": {"x": []}}},
    "measures as a list": {"row": {**ROW, "seed": 0, "measures": [1.0]}},
    "a level that is a list": {"row": {**ROW, "seed": 0, "factors": {"depth": [4]}}},
    "a measure of 400 digits": {"row": {**ROW, "seed": 0, "measures": {"x": 10**400}}},
    "a curve with 400 digits": {"row": {**ROW, "seed": 0, "measures": {"x": [1.0, -(10**400)]}}},
    "seconds of 400 digits": {"row": {**ROW, "seed": 0, "seconds": 10**400}},
    "a seed of 400 digits": {"row": {**ROW, "seed": 10**400}},
    "a level of 400 digits": {"row": {**ROW, "seed": 0, "factors": {"depth": 10**400}}},
    "a step of 400 digits": {"row": {**ROW, "seed": 0, "status": "diverged", "step": 10**400}},
    "a status of another kind": {"row": {**ROW, "seed": 0, "status": "fine"}},
    "a status that is a list": {"row": {**ROW, "seed": 0, "status": ["ok"]}},
    "a step that is a text": {"row": {**ROW, "seed": 0, "status": "diverged", "step": "7"}},
    "a reason that is a number": {"row": {**ROW, "seed": 0, "why": 7}},
    "settings as a text": {"config": "steps: 3"},
    "registrations as a list": {"registered": ["demo"]},
    "a registration that is a number": {"registered": {"demo": 1}},
    "versions as a text": {"versions": "torch 2"},
    "notes as a text": {"notes": "measured again"},
    "notes of numbers": {"notes": [1]},
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_sealed_record_of_wrong_content_counts_as_absent(tmp_path: Path, wrong: str) -> None:
    trials = Store(tmp_path)
    trials.put(KEY, body(1))
    made = {**body(0), **WRONG[wrong], "key": KEY}
    trials.path(KEY).write_bytes(store.canonical({"schema": SCHEMA, "digest": digest(made), "body": made}))
    assert trials.get(KEY) is None, wrong
    assert trials.put(KEY, body(2))["row"]["seed"] == 2 and trials.get(KEY)["row"]["seed"] == 2


def test_a_record_that_could_not_be_read_again_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ReproError, match="^main a: gave what no row can hold; return numbers"):
        Store(tmp_path).put(KEY, {**BODY, "row": {**ROW, "seed": 0, "measures": {"x": []}}})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "hostile", ["nested", "nested objects", "pipe", "device", "gigabytes", "folder", "link to itself"]
)
def test_what_is_no_record_counts_as_absent_and_stops_nobody(tmp_path: Path, hostile: str) -> None:
    trials = Store(tmp_path)
    path = trials.path(KEY)
    path.parent.mkdir(parents=True)
    if hostile.startswith("nested"):
        path.write_bytes((b"[" if hostile == "nested" else b'{"a":') * 100_000)
    elif hostile == "pipe":
        os.mkfifo(path)
    elif hostile == "device":
        path.symlink_to("/dev/zero")
    elif hostile == "gigabytes":
        with open(path, "wb") as file:
            file.truncate(8 * 2**30)
    elif hostile == "folder":
        path.mkdir()
    else:
        path.symlink_to(path.name)
    assert trials.get(KEY) is None
    if hostile != "folder":
        assert trials.put(KEY, body(2))["row"]["seed"] == 2 and trials.get(KEY)["row"]["seed"] == 2


def test_kill_between_any_two_steps_leaves_a_whole_record_or_none(tmp_path: Path) -> None:
    script = """
import json, os, signal, sys
from repro import store
point, root = int(sys.argv[1]), sys.argv[2]
count = 0
def trap(name):
    real = getattr(os, name)
    def step(*a, **k):
        global count
        count += 1
        if count == point: os.kill(os.getpid(), signal.SIGKILL)
        return real(*a, **k)
    setattr(os, name, step)
for name in ("fsync", "link", "replace", "unlink"): trap(name)
store.Store(root).put(store.digest("a trial"), json.loads(sys.argv[3]))
"""
    codes = []
    for point in range(1, 7):
        root = tmp_path / str(point)
        done = subprocess.run([sys.executable, "-c", script, str(point), str(root), json.dumps(body(1))])
        codes.append(done.returncode)
        assert Store(root).get(KEY) in (None, {**body(1), "key": KEY})
        Store(root).sweep()
        assert not list(root.glob("*/.*.tmp")), "temporary files of dead processes are swept"
        assert Store(root).put(KEY, body(1))["row"]["seed"] == 1
    assert codes[:3] == [-signal.SIGKILL] * 3 and 0 in codes


def test_sweep_keeps_the_temporary_files_of_the_living(tmp_path: Path) -> None:
    folder = tmp_path / "ab"
    folder.mkdir()
    mine = folder / f".x.json.{os.getpid()}.0011.tmp"
    mine.touch()
    assert Store(tmp_path).sweep() == 0 and mine.exists()


@pytest.mark.parametrize(
    "number, words",
    [(errno.ENOSPC, "disk is full"), (errno.EACCES, "may not be written"), (errno.EROFS, "may not be written")],
)
def test_a_failed_write_says_what_to_do_and_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, words: str
) -> None:
    path = tmp_path / "cpu.rows.json"
    write_file(path, "old")

    def full(fd: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(store.os, "fsync", full)
    with pytest.raises(ReproError, match=words):
        write_file(path, "new")
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["cpu.rows.json"]


def test_a_real_full_disk(tmp_path: Path) -> None:
    script = """
import resource, sys
from pathlib import Path
from repro.store import write_file
import signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
write_file(Path(sys.argv[1]), "x" * 100_000)
"""
    path = tmp_path / "cpu.rows.json"
    path.write_text("old")
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True)
    assert done.returncode == 1 and "the disk is full" in done.stderr
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["cpu.rows.json"]


def test_two_writers_at_once(tmp_path: Path) -> None:
    script = "import sys, json; from repro.store import *; Store(sys.argv[1]).put(digest('a trial'), json.loads(sys.argv[2]))"  # noqa: E501
    writers = [subprocess.Popen([sys.executable, "-c", script, str(tmp_path), json.dumps(body(n))]) for n in range(6)]
    assert [writer.wait() for writer in writers] == [0] * 6
    record = Store(tmp_path).get(KEY)
    assert record["row"]["seed"] in range(6)
    assert json.loads(Store(tmp_path).path(KEY).read_text())["digest"] == digest(record)
