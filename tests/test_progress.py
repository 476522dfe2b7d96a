"""What a run shows on a terminal."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console
from synthetic import GOOD, document, maker, row, rows_of

from repro import judge, words
from repro.run import progress
from repro.spec import load as paper

IDENTITY = ("experiment", "arm", "seed", "factors")
ENTRY = {"paper": "demo", "profile": "cpu", "trials": []}
UNIT = {
    "experiment": "main",
    "trials": [{"experiment": "main", "arm": "method", "seed": 0, "factors": {"depth": 2}, "key": "k"}],
}
OK = {"results": [{"status": "ok", "measures": {"curve": [1.0], "error": 0.25}}], "seconds": 1.0}


def test_the_bar_counts_trials_and_prints_what_went_wrong(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    out = io.StringIO()
    monkeypatch.setattr(progress, "Console", lambda: Console(file=out, force_terminal=True, width=120))
    bar = progress.Bar()
    bar.start(ENTRY, 3, 3)
    bar.unit(UNIT, OK, 1, 3)
    assert bar.bar.tasks[0].description == "main method error 0.25"
    bar.unit(UNIT, {"results": [{"status": "diverged", "step": 7, "measures": {}}], "seconds": 1.0}, 2, 3)
    bar.unit(UNIT, {"error": "ValueError: [bold]no[/bold]", "traceback": ""}, 3, 3)
    assert bar.bar.tasks[0].completed == 3
    bar.close()
    assert "3 to measure" in capsys.readouterr().out
    assert "1 diverged" in out.getvalue() and "FAILED: ValueError: [bold]no[/bold]" in out.getvalue()


def test_plain_lines_where_nobody_watches() -> None:
    assert type(progress.choose()) is progress.run.Progress


def test_json_lines_and_silence(capsys: pytest.CaptureFixture) -> None:
    lines = progress.choose(as_json=True)
    lines.start(ENTRY, 3, 1)
    lines.unit(UNIT, OK, 1, 1)
    lines.end(ENTRY, 2.0)
    start, unit, end = map(json.loads, capsys.readouterr().out.splitlines())
    assert (start["event"], start["missing"], end["event"]) == ("start", 1, "end")
    assert unit["trials"][0]["arm"] == "method" and unit["results"][0]["measures"]["error"] == 0.25
    silent = progress.choose(quiet=True)
    silent.start(ENTRY, 3, 1)
    silent.unit(UNIT, OK, 1, 1)
    silent.end(ENTRY, 2.0)
    assert capsys.readouterr().out == ""


def test_the_verdict_forms_from_complete_seeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The verdict that forms at the end is the one that is judged, and none is told below three seeds."""
    one = maker(tmp_path)()
    monkeypatch.setattr(paper, "load", lambda slug: one)
    rows = [*rows_of(**GOOD), row("b", 1000, 1.0)]  # the last one as an A/A control has them
    entry = {"paper": "p", "profile": "cpu", "trials": [{k: r[k] for k in IDENTITY} for r in rows]}
    head = judge.judge(one, "cpu", document(one, rows))["claims"]["main"]
    forming = progress.Forming(entry)
    told = []
    for seed in (1000, 4, 3, 2, 1, 0):
        forming.add([row for row in rows if row["seed"] == seed])
        told.append(forming.told())
    assert told[-1].startswith(f"main: {words.number(head['estimate'])} [")
    assert told[-1].endswith(f"{head['state'].replace('_', ' ')} at 5 seeds") and head["state"] == "reproduced"
    assert not any(told[:-1]), "seeds count from 0 on, without a gap"
    early = progress.Forming(entry)
    early.add([row for row in rows if row["seed"] < 3])
    assert early.told() == "", "seeds from 1000 on are needed first"
    early.add([row for row in rows if row["seed"] >= 1000])
    assert "at 3 seeds" in early.told()
    early.add([])
    two = progress.Forming(entry)
    two.add([row for row in rows if row["seed"] < 2 or row["seed"] >= 1000])
    assert two.told() == ""


def test_no_verdict_forms_without_a_headline_or_before_the_tuned_level_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert progress.Forming({"paper": "arena-mlp", "profile": "cpu", "trials": []}).told() == ""
    one = maker(tmp_path)()
    monkeypatch.setattr(paper, "load", lambda slug: one)
    rows = rows_of(**GOOD)
    tune = {"e": {"factor": "lr", "levels": [0.1, 0.2], "seeds": [1000], "measure": "loss", "better": "lower"}}
    entry = {"paper": "p", "profile": "cpu", "trials": [{k: r[k] for k in IDENTITY} for r in rows], "tune": tune}
    forming = progress.Forming(entry)
    forming.add(rows)
    assert forming.told() == ""
