"""The arena: methods appear by existing, the same trials are never run twice, ranks tell ties from differences."""

import json
import math
import random
import subprocess
import sys
from pathlib import Path

import pytest
from scipy import stats
from test_report import EVIL, Page, numbers_in, refuse_requests

from conftest import ROOT, Checkout
from repro import report
from repro.arena import advice
from repro.arena import protocol as arena
from repro.arena import table as arena_table
from repro.errors import ReproError
from repro.report.arena import summary

SETTINGS = {
    "what": "a small network",
    "measure": "valid_nats",
    "target": 1.0,
    "margin": 0.05,
    "tuning": {"seeds": 2, "lr": [0.1, 1.0], "rungs": [[10, 1]]},
    "final": {"seeds": 8, "steps": 40},
    "settings": {"depth": 4, "width": 8, "batch": 16},
    "cells": [{"depth": 16}],
    "cost": {"seeds": 1},
}
LEVELS = {
    "base": 0.50,
    "norm:a.A": 0.50,
    "norm:b.B": 0.502,
    "norm:c.C": 0.90,
    "norm:control.identity": 1.6,
    "norm:control.broken": None,
    "act:d.D": 0.30,
}


def document(levels=LEVELS, noise=0.01, seeds=8) -> dict:
    """Rows of known means; None: every seed diverges."""
    rng, rows = random.Random(1), []

    def add(arm, seed, factors, level, experiment="mlp"):
        value = None if level is None else level + rng.gauss(0, noise)
        measures = (
            {}
            if value is None
            else {"valid_nats": value, "valid_error": value / 10, "steps": [20, 40], "curve": [2.0, value]}
        )
        rows.append(
            {
                "experiment": experiment,
                "arm": arm,
                "seed": seed,
                "factors": factors,
                "seconds": 1.0,
                "status": "diverged" if value is None else "ok",
                "measures": measures,
            }
        )

    for arm, level in levels.items():
        for seed in (1000, 1001):
            add(arm, seed, {"depth": 4, "batch": 16, "lr": 0.1, "steps": 10}, level)
            add(arm, seed, {"depth": 4, "batch": 16, "lr": 1.0, "steps": 10}, None if arm == "norm:b.B" else 3.0)
        for seed in range(seeds):
            add(arm, seed, {"depth": 4, "batch": 16, "lr": 0.1, "steps": 40}, level)
            add(arm, seed, {"depth": 16, "batch": 16, "lr": 0.1, "steps": 40}, 2.3 if arm == "norm:c.C" else level)
        rows.append(
            {
                "experiment": "cost",
                "arm": arm,
                "seed": 0,
                "factors": {},
                "status": "ok",
                "seconds": 1.0,
                "measures": {"seconds": 0.01, "peak_bytes": 1000},
            }
        )
    return {
        "paper": "arena-mlp",
        "profile": "cpu",
        "rows": rows,
        "out": {"norm:e.E": "ValueError: no"},
        "provenance": {
            "digest": "sha256:0",
            "device_model": "a CPU",
            "trials": [f"sha256:{i:064x}" for i in range(len(rows))],
        },
    }


def test_ranks_tell_ties_from_differences() -> None:
    made = arena_table.table(document(), SETTINGS)
    ranking = {line["arm"]: line for line in made["cells"][0]["slots"]["norm"]["ranking"]}
    assert set(ranking) == set(LEVELS) - {"act:d.D"}, "each slot is ranked by itself, with the unchanged model"
    for tied in ("base", "norm:a.A", "norm:b.B"):
        assert ranking[tied]["rank"] == [1, 3], "a tie is shown as one"
    assert ranking["norm:c.C"]["rank"] == [4, 4]
    assert ranking["norm:control.identity"]["rank"] == [5, 5] and ranking["norm:control.broken"]["rank"] == [6, 6]
    assert ranking["norm:control.broken"]["mean"] == math.log(10) and ranking["norm:control.broken"]["diverged"] == 8
    act = made["cells"][0]["slots"]["act"]
    assert [line["arm"] for line in act["ranking"]] == ["act:d.D", "base"] and act["discriminates"] is None
    assert [line["rank"] for line in act["ranking"]] == [[1, 1], [2, 2]]


def test_a_run_worse_than_chance_counts_as_chance() -> None:
    made = arena_table.table(document({**LEVELS, "norm:c.C": 9.0}), SETTINGS)
    line = next(x for x in made["cells"][0]["slots"]["norm"]["ranking"] if x["arm"] == "norm:c.C")
    assert line["mean"] == math.log(10) and line["diverged"] == 0


def test_the_table_follows_from_the_rows() -> None:
    rows = document()["rows"]
    made = arena_table.table(document(), SETTINGS)
    one = next(m for m in made["methods"] if m["arm"] == "norm:b.B")
    assert one["lr"] == 0.1 and one["largest_stable_lr"] == 0.1 and one["fails_at_depth"] is None
    assert [s["lr"] for s in one["sensitivity"]] == [0.1, 1.0] and one["sensitivity"][1]["diverged"] == 1.0
    assert one["steps_to_target"] == 40 and one["seconds_to_target"] == pytest.approx(0.4) and one["peak_bytes"] == 1000
    assert next(m for m in made["methods"] if m["arm"] == "norm:c.C")["fails_at_depth"] == 16
    assert next(m for m in made["methods"] if m["arm"] == "norm:control.identity")["steps_to_target"] is None, (
        "a miss is infinite"
    )
    own = [
        r["measures"]["valid_nats"]
        for r in rows
        if r["arm"] == "norm:b.B" and r["seed"] < 1000 and r["factors"].get("depth") == 4
    ]
    line = next(x for x in made["cells"][0]["slots"]["norm"]["ranking"] if x["arm"] == "norm:b.B")
    assert line["mean"] == pytest.approx(sum(own) / 8) and line["n"] == 8
    assert len(one["trials"]) == sum(r["arm"] == "norm:b.B" for r in rows)
    assert made["out"] == {"norm:e.E": "ValueError: no"}
    json.dumps(made, allow_nan=False)


def test_a_track_that_cannot_tell_its_controls_says_so() -> None:
    good = arena_table.table(document(), SETTINGS)["cells"][0]["slots"]["norm"]["discriminates"]
    assert good["ok"] and good["worse"] == {"norm:control.identity": True, "norm:control.broken": True}
    weak = arena_table.table(document({**LEVELS, "norm:control.identity": 0.505}), SETTINGS)["cells"][0]["slots"][
        "norm"
    ]["discriminates"]
    assert not weak["ok"] and weak["worse"]["norm:control.identity"] is False
    good_norm = {
        **LEVELS,
        "norm:a.A": 0.3,
        "norm:control.identity": 0.49,
    }  # worse than the best, no worse than the base
    base = arena_table.table(document(good_norm), SETTINGS)["cells"][0]["slots"]["norm"]["discriminates"]
    assert base["best"] == "norm:a.A" and base["worse"] == {"norm:control.identity": False, "norm:control.broken": True}


def test_a_wide_interval_is_no_recommendation() -> None:
    sharp = arena_table.table(document(), SETTINGS)["cells"][0]["slots"]["norm"]["ranking"]
    assert {line["arm"] for line in advice.recommended(sharp, 0.05)} == {"base", "norm:a.A", "norm:b.B"}
    wide = arena_table.table(document(noise=0.2), SETTINGS)["cells"][0]["slots"]["norm"]["ranking"]
    assert [line["arm"] for line in advice.recommended(wide, 0.05)] == [wide[0]["arm"]], "only the best itself"
    all_bad = arena_table.table(document({"base": 0.5, "norm:control.identity": 0.1}), SETTINGS)["cells"][0]["slots"][
        "norm"
    ]["ranking"]
    assert all(line["arm"] not in arena.CONTROLS for line in advice.recommended(all_bad, 10.0))


def test_no_evidence_far_from_what_was_measured() -> None:
    made = arena_table.table(document(), SETTINGS)
    assert advice.nearest_cell(made, 20, None) == (made["cells"][1], {"depth": 16, "batch": 16})
    assert advice.nearest_cell(made, 3, 16)[0] is made["cells"][0]
    assert advice.nearest_cell(made, None, None)[0] is made["cells"][0]
    cell, told = advice.nearest_cell(made, 65, None)
    assert cell is None and "depth 16 at batch 16" in told
    assert advice.nearest_cell(made, 64, None)[0] is made["cells"][1], "a factor of four is as far as evidence reaches"


def test_paired_p_is_students() -> None:
    rng = random.Random(0)
    a = {s: rng.gauss(0, 1) for s in range(7)}
    b = {s: rng.gauss(0.5, 1) for s in range(7)}
    assert arena_table.paired_p(a, b) == pytest.approx(stats.ttest_rel(list(a.values()), list(b.values())).pvalue)
    assert arena_table.paired_p(a, a) == 1.0
    assert arena_table.paired_p(a, {s: v + 1 for s, v in a.items()}) < 1e-9
    assert arena_table.paired_p({0: 1.0, 1: 2.0}, {0: 5.0, 1: 6.5}) == 1.0, "two seeds decide nothing"


def test_holm_steps_down() -> None:
    assert arena_table.holm({"a": 0.01, "b": 0.02, "c": 0.04}) == {"a", "b", "c"}
    assert arena_table.holm({"a": 0.01, "b": 0.03, "c": 0.04}) == {"a"}
    assert arena_table.holm({"a": 0.02, "b": 0.001, "c": 0.9}) == {"a", "b"}


def test_rank_intervals_cover_under_equality() -> None:
    """All methods alike: some rank interval is too narrow in at most 5 % of the runs, plus Monte-Carlo error."""
    rng, wrong, runs = random.Random(5), 0, 300
    for _ in range(runs):
        shared = [rng.gauss(0, 1) for _ in range(6)]
        scores = {f"m{i}": {s: shared[s] + rng.gauss(0, 0.3) for s in range(6)} for i in range(4)}
        wrong += any(rank != [1, 4] for rank in arena_table.rank_intervals(scores).values())
    assert wrong / runs <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / runs)


def test_survivors_are_the_best_and_of_equals_the_smaller() -> None:
    rows = [
        {"arm": "x", "factors": {"lr": lr}, "status": status, "measures": {"loss": value} if status == "ok" else {}}
        for lr, status, value in [
            (0.1, "ok", 1.0),
            (0.1, "ok", 3.0),
            (1.0, "ok", 2.0),
            (1.0, "ok", 2.0),
            (10.0, "diverged", 0),
        ]
    ]
    assert arena.survivors(rows, "loss", 1) == [("x", 0.1)]
    assert arena.survivors(rows, "loss", 2) == [("x", 0.1), ("x", 1.0)]


# --- the pages --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("arena")
    (root / "arena").mkdir()
    made = arena_table.table({**document(), "out": {"norm:e.E": EVIL}}, {**SETTINGS, "what": EVIL})
    (root / "arena" / "mlp.cpu.table.json").write_text(json.dumps(made))
    return root


def test_every_number_on_the_page_is_one_of_the_table(shown: Path) -> None:
    page = Page(str(report.ArenaPage("mlp", shown).page()))
    made = json.loads((shown / "arena" / "mlp.cpu.table.json").read_text())
    stored = set(numbers_in(made)) | {1000 * v for v in numbers_in([m["step_seconds"] for m in made["methods"]])}
    stored |= {v / 1e6 for v in numbers_in([m["peak_bytes"] for m in made["methods"]])}
    assert len(page.numbers) > 60
    for value, told in page.numbers:
        assert value in stored, told
    refuse_requests(page)
    assert EVIL in page.text and "<script>" not in page.source
    assert "unchanged model" in page.text and "control: broken" in page.text and "∞" in page.text
    for title in page.all("svg"):
        assert title["role"] == "img"


def test_ties_and_tracks_without_discrimination_are_marked(shown: Path, tmp_path: Path) -> None:
    page = Page(str(report.ArenaPage("mlp", shown).page()))
    assert "1–3" in page.text and "not discriminating" not in page.text
    (tmp_path / "arena").mkdir()
    weak = arena_table.table(document({**LEVELS, "norm:control.identity": 0.505}), SETTINGS)
    (tmp_path / "arena" / "mlp.cpu.table.json").write_text(json.dumps(weak))
    assert "not discriminating" in Page(str(report.ArenaPage("mlp", tmp_path).page())).text
    lines = summary(tmp_path)
    assert [(line["slot"], line["discriminates"]) for line in lines] == [("norm", False), ("act", True)]
    assert lines[1]["first"] == ["d D"]
    with pytest.raises(ReproError, match="track gpt has not been run"):
        report.ArenaPage("gpt", tmp_path)


# --- the command ------------------------------------------------------------------------------------------------------

ARENA = """\
mlp:
  what: a small network
  measure: valid_nats
  target: 2.0
  margin: 0.5
  cpu:
    tuning: {seeds: 1, lr: [0.003, 0.01], rungs: [[2, 1]]}
    final: {seeds: 3, steps: 4}
    settings: {depth: 2, width: 8, batch: 8, examples: 64}
    cells: [{depth: 3}]
    cost: {seeds: 1, blocks: 2, calls: 1, aa_limit: 100.0}
"""


@pytest.fixture
def arena_checkout(checkout: Checkout) -> Checkout:
    (checkout.root / "arena.yaml").write_text(ARENA, encoding="utf-8")
    norm = '''"""Demo (Author, Nowhere 2020)."""

from torch import nn

__all__ = ["Halved", "Whole"]


class Halved(nn.LayerNorm):
    """y = LayerNorm(x) / 2."""

    def forward(self, x):
        return super().forward(x) / 2


class Whole(nn.Module):
    """Needs an argument that no slot gives."""

    def __init__(self, n, other):
        super().__init__()
'''
    (checkout.paper / "method.py").write_text(norm, encoding="utf-8")
    (checkout.paper / "__init__.py").write_text(
        "from repro.papers.demo.method import Halved, Whole\n", encoding="utf-8"
    )
    checkout.edit(
        "family: normalization",
        "family: normalization\nprovides: [{slot: norm, name: Halved}, {slot: norm, name: Whole}]",
    )
    return checkout


def test_a_new_method_appears_by_existing_and_no_trial_is_run_twice(arena_checkout: Checkout) -> None:
    out = arena_checkout.ok("arena", "--track", "mlp")
    assert "norm:demo.Halved" in out and "does not fit: norm:demo.Whole: TypeError" in out
    made = json.loads((arena_checkout.root / "arena" / "mlp.cpu.table.json").read_text())
    assert {m["arm"] for m in made["methods"]} == {"base", "norm:demo.Halved", *arena.CONTROLS}
    assert "norm:demo.Whole" in made["out"]
    assert "demo Halved" in Page(str(report.ArenaPage("mlp", arena_checkout.root).page())).text
    assert {line["track"] for line in summary(arena_checkout.root)} == {"mlp"}
    again = arena_checkout.ok("arena", "--track", "mlp", "--json")
    assert json.loads(again) == [made]
    assert "the stored table holds" in arena_checkout.ok("arena", "--check")
    path = arena_checkout.root / "arena" / "mlp.cpu.rows.json"
    rows = json.loads(path.read_text())
    rows["rows"][-8]["measures"] = {k: 0.0 if k == "valid_nats" else v for k, v in rows["rows"][-8]["measures"].items()}
    path.write_text(json.dumps(rows))
    assert "not as it was written" in arena_checkout.refused("arena", "--check", code=2)


def test_a_plan_runs_on_a_bare_machine_and_its_rows_are_judged_here(arena_checkout: Checkout, tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    plan.write_text(arena_checkout.ok("arena", "--plan"))
    words = [sys.executable, "-m", "repro.arena", str(plan), "--out", str(arena_checkout.root / "arena")]
    environment = arena_checkout.bare_environment(tmp_path / "bare")
    done = subprocess.run(words, env=environment, cwd=arena_checkout.root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "norm:demo.Halved" in arena_checkout.ok("arena", "--judge")
    brought = (arena_checkout.root / "arena" / "mlp.cpu.table.json").read_text()
    arena_checkout.ok("arena")
    assert (arena_checkout.root / "arena" / "mlp.cpu.table.json").read_text() == brought
    plan.write_text("{}")
    done = subprocess.run(words, env=environment, cwd=arena_checkout.root, capture_output=True, text=True)
    assert done.returncode == 2 and "plan.json:1: 'tracks' is missing" in done.stderr and "Traceback" not in done.stderr


def test_recommend_needs_evidence(arena_checkout: Checkout) -> None:
    assert "has not been run" in arena_checkout.refused("recommend", "--model", "mlp", code=1)
    assert "no such track" in arena_checkout.refused("recommend", "--model", "mlq", code=2)
    arena_checkout.ok("arena")
    assert "no evidence at depth 100" in arena_checkout.refused("recommend", "--model", "mlp", "--depth", "100", code=1)
    told = arena_checkout.ok("recommend", "--model", "mlp", "--depth", "3", "--margin", "100")
    assert "depth 3, batch 8" in told
    assert "no advice" in told or "from the best" in told


def test_the_suites_own_arena_file_is_sound() -> None:
    for name, one in arena.tracks(ROOT).items():
        for profile in set(one) & {"cpu", "gpu"}:
            settings = arena.track_of(ROOT, name, profile)
            assert settings["tuning"]["rungs"][-1][1] == 1 and settings["final"]["seeds"] >= 5
            assert all(set(cell) <= {"depth", "batch", "steps"} for cell in settings["cells"])


def test_an_unknown_track_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ReproError, match="no such file"):
        arena.tracks(tmp_path)
    with pytest.raises(ReproError, match="--track nope: no such track; write one of mlp"):
        arena.track_of(ROOT, "nope", "cpu")
