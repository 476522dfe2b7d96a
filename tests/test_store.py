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
from repro.store import Store, digest, rows_digest, write_file

KEY = digest("a trial")


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
    assert trials.put(KEY, {"row": 1})["row"] == 1
    assert trials.put(KEY, {"row": 2})["row"] == 1, "an earlier valid record wins"
    assert trials.get(KEY)["row"] == 1
    assert trials.put(KEY, {"row": 3}, replace=True)["row"] == 3
    assert trials.get(KEY)["row"] == 3


def test_a_record_that_is_replaced_is_never_missing(tmp_path: Path) -> None:
    trials, missed, ended = Store(tmp_path), [], threading.Event()
    trials.put(KEY, {"row": 0})

    def read() -> None:
        while not ended.is_set():
            missed.append(trials.get(KEY) is None)

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(200):
        trials.put(KEY, {"row": number}, replace=True)
    ended.set()
    reader.join()
    assert len(missed) > 10 and not any(missed)


@pytest.mark.parametrize("damage", ["empty", "truncated", "flipped", "edited", "other schema", "moved", "list"])
def test_a_damaged_record_counts_as_absent_and_is_replaced(tmp_path: Path, damage: str) -> None:
    trials = Store(tmp_path)
    trials.put(KEY, {"row": 1.25})
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
            "flipped": data.replace(b"1.25", b"1.35"),
            "list": b"[]",
            "edited": data.replace(b"sha256:", b"sha256:0", 1),
            "other schema": data.replace(b'"schema":2', b'"schema":0'),
        }[damage]
        assert new != data
        path.write_bytes(new)
    assert trials.get(key) is None
    assert trials.put(key, {"row": 2})["row"] == 2
    assert trials.get(key)["row"] == 2


def test_kill_between_any_two_steps_leaves_a_whole_record_or_none(tmp_path: Path) -> None:
    script = """
import os, signal, sys
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
store.Store(root).put(store.digest("a trial"), {"row": 1})
"""
    codes = []
    for point in range(1, 7):
        root = tmp_path / str(point)
        done = subprocess.run([sys.executable, "-c", script, str(point), str(root)])
        codes.append(done.returncode)
        assert Store(root).get(KEY) in (None, {"row": 1, "key": KEY})
        Store(root).sweep()
        assert not list(root.glob("*/.*.tmp")), "temporary files of dead processes are swept"
        assert Store(root).put(KEY, {"row": 1})["row"] == 1
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
    script = (
        "import sys; from repro.store import *; Store(sys.argv[1]).put(digest('a trial'), {'row': int(sys.argv[2])})"
    )
    writers = [subprocess.Popen([sys.executable, "-c", script, str(tmp_path), str(n)]) for n in range(6)]
    assert [writer.wait() for writer in writers] == [0] * 6
    record = Store(tmp_path).get(KEY)
    assert record["row"] in range(6)
    assert json.loads(Store(tmp_path).path(KEY).read_text())["digest"] == digest(record)
