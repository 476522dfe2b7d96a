"""The arena: methods appear by existing, the same trials are never run twice, ranks tell ties from differences."""

import json
import math
import random
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import warm
from scipy import stats
from test_report import EVIL, Page, numbers_in, refuse_requests

from conftest import ROOT, Checkout
from dev import demo
from repro import report
from repro.arena import advice
from repro.arena import protocol as arena
from repro.arena import table as arena_table
from repro.errors import ReproError
from repro.experiments import arena as experiment
from repro.files.paths import SCHEMA
from repro.report.arena import summary
from repro.run import tuning
from repro.store import rows_digest, sealed

CELLS = [{"depth": 4, "batch": 16, "steps": 40}, {"depth": 16, "batch": 16, "steps": 40}]
SETTINGS = {
    "what": "a small network",
    "measure": "valid_nats",
    "margin": 0.05,
    "calibration": [{"better": "base", "worse": "norm:control.broken"}],
    "tuning": {"seeds": 3, "lr": [0.1, 1.0], "extend": 1},
    "final": {"seeds": 12},
    "settings": {"width": 8},
    "cells": CELLS,
    "cost": {"seeds": 1, "blocks": 2, "calls": 1, "aa_limit": 1.0},
}
LEVELS = {
    "base": 0.50,
    "norm:a.A": 0.40,
    "norm:b.B": 0.502,
    "norm:c.C": 0.90,
    "norm:control.identity": 1.6,
    "norm:control.broken": None,
    "act:d.D": 0.30,
    "optimizer:torch.SGD": 0.51,
    "optimizer:control.sgd": 0.90,
}
LIMITS = {"fails_above": 2.07, "learns_below": 2.07}


def document(levels=LEVELS, noise=0.01, seeds=12, limits=LIMITS) -> dict:
    """Rows of known means; None: every seed diverges.  At depth 16 c.C fails; 0.01 was tried too."""
    rng, rows = random.Random(1), []

    def add(arm, seed, factors, level):
        value = None if level is None else level + rng.gauss(0, noise)
        measures = {} if value is None else {"valid_nats": value, "valid_error": value / 10, "best_nats": value}
        if value is not None:
            measures |= {"steps": [20, 40], "curve": [2.0, value], **limits}
        status = "diverged" if value is None else "ok"
        fixed = {"experiment": "mlp", "arm": arm, "seed": seed, "factors": factors, "seconds": 1.0, "status": status}
        rows.append({**fixed, "measures": measures})

    for arm, level in levels.items():
        for cell in CELLS:
            for seed in (1000, 1001, 1002):
                add(arm, seed, {**cell, "lr": 0.01}, 3.0)
                add(arm, seed, {**cell, "lr": 0.1}, level)
                add(arm, seed, {**cell, "lr": 1.0}, None if arm != "norm:b.B" else 0.4)
            for seed in range(seeds):
                add(arm, seed, {**cell, "lr": 0.1}, 2.3 if arm == "norm:c.C" and cell["depth"] == 16 else level)
        fixed = {"experiment": "cost", "arm": arm, "seed": 0, "factors": {}, "status": "ok", "seconds": 1.0}
        rows.append({**fixed, "measures": {"seconds": 0.01, "peak_bytes": 1000}})
    keys = [f"sha256:{i:064x}" for i in range(len(rows))]
    return {
        "paper": "arena-mlp",
        "profile": "cpu",
        "rows": rows,
        "out": {"norm:e.E": "ValueError: no"},
        "same": [{"norm:f.F": "the same model here"}, {}],
        "provenance": {"digest": "sha256:0", "device_model": "a CPU", "trials": keys},
    }


def lines_of(made: dict, slot: str, cell: int = 0) -> dict[str, dict]:
    return {line["arm"]: line for line in made["cells"][cell]["slots"][slot]["lines"]}


def test_every_method_is_compared_with_the_tuned_base() -> None:
    made = arena_table.table(document(), SETTINGS)
    norms = lines_of(made, "norm")
    assert set(norms) == {arm for arm in LEVELS if arm == "base" or arm.startswith("norm:")}
    told = {arm: line["standing"] for arm, line in norms.items()}
    assert told == {
        "base": "the base",
        "norm:a.A": "better",
        "norm:b.B": "as good",
        "norm:c.C": "worse",
        "norm:control.identity": "worse",
        "norm:control.broken": "fails",
    }
    rows = [
        r for r in document()["rows"] if r["experiment"] == "mlp" and r["seed"] < 1000 and r["factors"]["depth"] == 4
    ]
    own, base = ([r["measures"]["valid_nats"] for r in rows if r["arm"] == arm] for arm in ("norm:a.A", "base"))
    gaps = [a - b for a, b in zip(own, base, strict=True)]
    family = 3  # methods of the slot, without base and controls
    ends = stats.ttest_1samp(gaps, 0.0).confidence_interval(1 - 0.05 / family)
    assert norms["norm:a.A"]["gap"] == pytest.approx([sum(gaps) / 12, ends.low, ends.high])
    assert norms["norm:a.A"]["rank"] == [1, 1] and norms["norm:b.B"]["rank"] == [2, 3]
    json.dumps(made, allow_nan=False)


def test_optimizers_that_tune_their_decay_are_compared_with_adamw_that_does() -> None:
    rows = document({**LEVELS, experiment.ADAMW: 0.45, "optimizer:a.A": 0.56})
    for arm, level in ((experiment.ADAMW, 0.30), ("optimizer:a.A", 0.60)):
        for row in [r for r in rows["rows"] if r["arm"] == arm and r["factors"].get("lr") == 0.1]:
            if row["seed"] >= 1000:
                mean = {"measures": {**row["measures"], "valid_nats": level}}
                rows["rows"].append({**row, "factors": {**row["factors"], "decay": 0.25}, **mean})
                rows["provenance"]["trials"].append(f"sha256:{len(rows['rows']):064x}")
            elif arm == experiment.ADAMW:
                row["factors"]["decay"] = 0.25
    made = arena_table.table(rows, SETTINGS)
    slot = made["cells"][0]["slots"]["optimizer"]
    lines = lines_of(made, "optimizer")
    assert slot["reference"] == experiment.ADAMW and "base" not in lines
    assert slot["target"] == pytest.approx(0.45, abs=0.02)
    assert lines[experiment.ADAMW]["standing"] == "the base" and lines[experiment.ADAMW]["decay"] == 0.25
    assert lines["optimizer:a.A"]["standing"] == "worse" and lines["optimizer:a.A"]["decay"] == 0.0
    assert lines["optimizer:torch.SGD"]["gap"][0] == pytest.approx(0.06, abs=0.02)
    assert [one["decay"] for one in lines[experiment.ADAMW]["decays"]] == [0.0, 0.25]
    assert lines[experiment.ADAMW]["decay_edge"] and not lines["optimizer:a.A"]["decay_edge"], "0 is no edge"
    assert lines[experiment.ADAMW]["tuning_runs"] == 12 and lines[experiment.ADAMW]["n"] == 12
    assert made["cells"][0]["slots"]["norm"]["reference"] == "base" and "base" in lines_of(made, "norm")
    without = arena_table.table(document(), SETTINGS)["cells"][0]["slots"]["optimizer"]
    assert without["reference"] == "base" and [line["decay"] for line in without["lines"]] == [0.0] * 3


def test_failures_are_a_share_with_an_exact_interval() -> None:
    made = arena_table.table(document(), SETTINGS)
    line = lines_of(made, "norm", 1)["norm:c.C"]
    assert line["failed"] == 12 and line["standing"] == "fails" and line["mean"] == LIMITS["fails_above"]
    assert line["failures"][0] == pytest.approx(0.025 ** (1 / 12)) and line["failures"][1] == 1.0
    never = lines_of(made, "norm")["norm:a.A"]["failures"]
    assert never == pytest.approx([0.0, 1 - 0.025 ** (1 / 12)]), "none of 12 failed: below 26 %"


def test_the_best_rate_and_edges_are_told() -> None:
    made = arena_table.table(document(), SETTINGS)
    norms = lines_of(made, "norm")
    assert norms["norm:a.A"]["lr"] == 0.1 and not norms["norm:a.A"]["edge"]
    assert norms["norm:b.B"]["lr"] == 1.0 and norms["norm:b.B"]["edge"]
    assert [t["lr"] for t in norms["base"]["tuning"]] == [0.01, 0.1, 1.0] and norms["base"]["tuning_runs"] == 9
    assert norms["base"]["tuning"][2]["mean"] is None, "a rate at which a run diverged has no mean"
    assert norms["norm:a.A"]["steps_to_target"] == 40 and norms["norm:c.C"]["steps_to_target"] is None
    assert norms["norm:a.A"]["reached"].count(40) > 6 and norms["norm:c.C"]["reached"].count(None) > 6


def test_a_slot_that_cannot_tell_its_controls_gives_no_advice() -> None:
    good = arena_table.table(document(), SETTINGS)["cells"][0]["slots"]
    assert good["norm"]["usable"] and good["norm"]["controls"] == {
        "norm:control.identity": True,
        "norm:control.broken": True,
    }
    assert not good["act"]["usable"] and "no control took part" in good["act"]["why"]
    assert advice.recommended(good["act"], 10.0) == []
    weak = arena_table.table(document({**LEVELS, "norm:control.identity": 0.499}), SETTINGS)["cells"][0]["slots"][
        "norm"
    ]
    assert not weak["usable"] and "norm:control.identity" in weak["why"] and advice.recommended(weak, 10.0) == []


def test_what_equals_a_control_is_not_praised() -> None:
    levels = {**LEVELS, "norm:control.identity": 0.53, "norm:b.B": 0.53}
    line = lines_of(arena_table.table(document(levels, noise=0.001), SETTINGS), "norm")["norm:b.B"]
    assert line["no_better_than"] == ["norm:control.identity"] and line["standing"] == "no better than a control"
    slot = arena_table.table(document(levels, noise=0.001), SETTINGS)["cells"][0]["slots"]["norm"]
    assert slot["usable"] and {one["arm"] for one in advice.recommended(slot, 0.1)} == {"base", "norm:a.A"}


def test_nothing_is_ranked_that_has_not_learnt() -> None:
    limits = {"fails_above": 0.6, "learns_below": 0.45}
    cell = arena_table.table(document(limits=limits), SETTINGS)["cells"][0]
    assert not cell["learnt"] and not cell["ranks"]
    for slot in cell["slots"].values():
        assert not slot["usable"] and "has not learnt" in slot["why"] and advice.recommended(slot, 10.0) == []


def test_a_track_ranks_only_where_its_known_contrasts_come_out() -> None:
    calibration = [*SETTINGS["calibration"], {"better": "norm:c.C", "worse": "base", "at": {"depth": 16}}]
    made = arena_table.table(document(), {**SETTINGS, "calibration": calibration})
    assert made["cells"][0]["ranks"] and not made["cells"][1]["ranks"]
    slot = made["cells"][1]["slots"]["norm"]
    assert not slot["usable"] and "base is not shown to be worse than norm:c.C" in slot["why"]


def test_a_track_that_ignores_its_seed_ranks_nothing() -> None:
    made = arena_table.table(document(noise=0.0), SETTINGS)
    slot = made["cells"][0]["slots"]["norm"]
    assert not slot["usable"] and "ignores its seed" in slot["why"]


def test_a_wide_interval_is_no_recommendation() -> None:
    sharp = arena_table.table(document(), SETTINGS)["cells"][0]["slots"]["norm"]
    assert {line["arm"] for line in advice.recommended(sharp, 0.05)} == {"base", "norm:a.A", "norm:b.B"}
    wide = arena_table.table(document({**LEVELS, "norm:a.A": 0.5}, noise=0.2), SETTINGS)["cells"][0]["slots"]["norm"]
    assert {line["arm"] for line in advice.recommended(wide, 0.05)} <= {"base"}
    assert (
        lines_of(arena_table.table(document(noise=0.2), SETTINGS), "norm")["norm:b.B"]["standing"] == "not told apart"
    )


def test_the_answer_says_where_it_was_measured() -> None:
    made = arena_table.table(document(), SETTINGS)
    cell, told = advice.nearest_cell(made, 20, None)
    assert cell is made["cells"][1] and cell["at"]["steps"] == 40 and "depth 16, not 20" in told
    cell, told = advice.nearest_cell(made, 4, 16)
    assert cell is made["cells"][0] and told == "This was measured at what you asked."
    cell, told = advice.nearest_cell(made, 65, None)
    assert cell is None and "depth 16 at batch 16" in told
    assert advice.nearest_cell(made, 64, None)[0] is made["cells"][1], "a factor of four is as far as evidence reaches"
    assert advice.nearest_cell(made, 10**400, 1)[0] is None, "a number beyond all floats is far away"


def test_with_all_methods_alike_few_tables_tell_one_apart() -> None:
    """All arms equal, of unequal spreads: some method of a slot is called better or worse in at most 5 % of tables."""
    rng, wrong, runs = random.Random(3), 0, 400
    spreads = {"base": 0.3, "norm:a.A": 0.3, "norm:b.B": 0.05, "norm:c.C": 1.0, "norm:d.D": 0.3, "norm:e.E": 0.3}
    for _ in range(runs):
        shared = [rng.gauss(0, 1) for _ in range(12)]
        scores = {a: {s: shared[s] + rng.gauss(0, spread) for s in range(12)} for a, spread in spreads.items()}
        gaps = [arena_table.difference(scores[a], scores["base"], 5) for a in scores if a != "base"]
        wrong += any(low > 0 or high < 0 for _, low, high in gaps)
    assert wrong / runs <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / runs)


def test_the_limit_is_no_narrower_than_dunnetts() -> None:
    rng = random.Random(8)
    samples = [[rng.gauss(0, 1) for _ in range(12)] for _ in range(5)]
    theirs = stats.dunnett(*samples[1:], control=samples[0]).confidence_interval()
    pooled = math.sqrt(sum(stats.tvar(s) for s in samples) / 5)
    assert stats.t.ppf(1 - 0.05 / 8, 11) > float(theirs.high[0] - theirs.low[0]) / 2 / pooled / math.sqrt(2 / 12)


def test_the_grid_grows_beyond_an_edge() -> None:
    def chosen(level, levels=(0.1, 0.2, 0.4)):
        return tuning.Chosen(level, dict.fromkeys(levels, 1.0), level in (levels[0], levels[-1]))

    assert arena.extended([0.1, 0.2, 0.4], chosen(0.2)) == [0.1, 0.2, 0.4]
    assert arena.extended([0.1, 0.2, 0.4], chosen(0.4)) == [0.1, 0.2, 0.4, 0.8]
    assert arena.extended([0.1, 0.2, 0.4], chosen(0.1)) == [0.05, 0.1, 0.2, 0.4]
    assert arena.extended([0.1, 0.2, 0.4], chosen(None)) == [0.05, 0.1, 0.2, 0.4], "smaller ones where all diverge"
    assert arena.rate_of(chosen(None)) == 0.1


def test_decays_are_shares_of_a_run_and_grow_upwards() -> None:
    settings = {"tuning": {"decay": [1, 0.25]}}
    assert arena.decays(settings, 0.01, 100) == [0.0, 0.25, 1.0]
    assert arena.decays(settings, 0.5, 100) == [0.0, 0.005, 0.02]
    assert arena.decays({"tuning": {}}, 0.01, 100) == [0.0]

    def chosen(level):
        return tuning.Chosen(level, {}, False)

    assert arena.risen([0.0, 0.25, 1.0], chosen(1.0)) == [0.0, 0.25, 1.0, 4.0]
    for level in (0.0, 0.25, None):
        assert arena.risen([0.0, 0.25, 1.0], chosen(level)) == [0.0, 0.25, 1.0]
    assert arena.risen([0.0], chosen(0.0)) == [0.0]


def test_an_arm_climbs_to_its_rate_and_an_optimizer_then_to_its_decay(monkeypatch: pytest.MonkeyPatch) -> None:
    cell, (optimizer, norm) = {"depth": 2, "batch": 8, "steps": 100}, ("optimizer:a.A", "norm:b.B")
    tuned = {"seeds": 2, "lr": [0.001, 0.002, 0.004], "decay": [0.25, 1], "extend": 8}
    settings = {**SETTINGS, "tuning": tuned, "cells": [cell], "final": {"seeds": 3}}
    asked: list[list[dict]] = []

    def loss(factors: dict) -> float:
        """Least at a rate of 0.016 and a decay of 4 / (0.016 x 100)."""
        return abs(math.log2(factors["lr"] / 0.016)) + 0.1 * abs(factors.get("decay", 0.0) - 2.5)

    def measure(entry: dict, **_: object) -> dict:
        assert entry["trials"], "nothing is asked for where nothing is left to try"
        asked.append(entry["trials"])
        rows = [{**one, "status": "ok", "measures": {"valid_nats": loss(one["factors"])}} for one in entry["trials"]]
        return {"rows": rows}

    def judged(arm: str, **levels: float) -> list[dict]:
        place = {"experiment": "mlp", "arm": arm}
        return [{**place, "seed": seed, "factors": {**cell, **levels}} for seed in range(3)]

    before = judged(optimizer, lr=0.016) + judged("act:d.D", lr=0.1)
    found = {"trials": before, "slots": [["act"]], "same": [{}]}
    monkeypatch.setattr(arena.run, "measure", measure)
    monkeypatch.setattr(arena, "_earlier", lambda *_: found)
    planned = {"track": "mlp", "profile": "cpu", "settings": settings, "arms": ["base", norm, optimizer], "out": {}}
    planned |= {"same": [{}], "slots": [["norm", "optimizer"]]}
    options = {"device": "cpu", "jobs": 1, "force": False, "progress": None, "timings": False}
    rows = arena.measure(planned, Path("nowhere"), **options)["rows"]
    assert len(asked) == 1 + 3 + 1 + 1 + 1 + 1 + 1, "rates and three more, decays and two more, judged seeds, all"
    ends = {arm: [r["factors"] for r in rows if r["arm"] == arm and r["seed"] < 1000] for arm in planned["arms"]}
    assert ends[norm] == ends["base"] == [{**cell, "lr": 0.016}] * 3
    assert ends[optimizer] == [{**cell, "lr": 0.016, "decay": 2.5}] * 3, "and not the earlier ones without decay"
    tried = {r["factors"].get("decay", 0.0) for r in rows if r["arm"] == optimizer and r["factors"]["lr"] == 0.016}
    assert tried == {0.0, 0.15625, 0.625, 2.5, 10.0}
    assert not any("decay" in r["factors"] for r in rows if r["arm"] != optimizer)
    assert [r["seed"] for r in rows if r["arm"] == "act:d.D"] == [0, 1, 2], "what was measured before stays"


def test_a_norm_whose_backward_pass_changes_buffers_cannot_be_trained_with_several_seeds_in_one_pass() -> None:
    assert "under vmap" in arena.unstacked("norm:unified_norm.UnifiedNorm")
    assert arena.unstacked("norm:rmsnorm.RMSNorm") is None
    assert arena.unstacked("optimizer:torch.Muon") is None  # trained seed by seed


def test_every_optimizer_takes_the_decay_after_its_step() -> None:
    """After one step from the same weights matrices are 1 - lr * decay as long, all else is the same."""
    config = experiment.tiny("mlp")
    arms, out = arena.entrants("mlp")
    assert "in one pass" in out["norm:unified_norm.UnifiedNorm"], "such a norm is left out by name, and stops no run"
    for arm in [arm for arm in arms if arm.startswith("optimizer:")]:
        ends = []
        for decay in (0.0, 0.5):
            slots, source = experiment.slots_of("mlp", arm), experiment.generator("decay", arm)
            model = experiment.build("mlp", slots, config, source)
            x, y = experiment.inputs(config, source, torch.device("cpu"))
            settings = experiment._settings("mlp", replace(config, lr=0.01, decay=decay), slots, {})
            update = settings["optimizer"](experiment.hidden_matrices(model), 0.01)

            def closure(update=update, model=model, x=x, y=y) -> torch.Tensor:
                update.zero_grad()
                loss = experiment.cross_entropy(model(x), y)
                loss.backward()
                return loss

            closure()
            update.step(*([closure] if getattr(update, "needs_closure", False) else []))
            ends.append([p.detach().clone() for p in model.parameters()])
        for bare, decayed in zip(*ends, strict=True):
            kept = 1 - 0.01 * 0.5 if bare.ndim >= 2 else 1.0
            torch.testing.assert_close(decayed, bare * kept, msg=lambda text, arm=arm: f"{arm}: {text}")


@pytest.mark.parametrize(
    ("track", "arm", "depth", "same"),
    [
        ("gpt", "placement:mix_ln.MixLN", 2, True),
        ("gpt", "placement:mix_ln.MixLN", 8, False),
        ("mlp", "norm:layernorm.LayerNorm", 4, True),
        ("mlp", "norm:rmsnorm.RMSNorm", 4, False),
        ("gpt", "norm:control.identity", 2, False),
        ("convnet", "norm:batchnorm.BatchNorm", 8, True),
        ("mlp", "optimizer:torch.AdamW", 2, True),
        ("mlp", "optimizer:torch.Muon", 2, False),
        ("convnet", "optimizer:torch.Muon", 8, True),
        ("gpt", "optimizer:pytorch_optimizer.ScheduleFreeAdamW", 2, False),
    ],
)
def test_an_arm_that_is_the_base_is_named(track: str, arm: str, depth: int, same: bool) -> None:
    assert experiment.same_model(track, arm, depth) is same


def test_every_slot_of_every_track_has_controls_and_optimizers_are_many() -> None:
    for track, slots in experiment.SLOTS.items():
        arms = experiment.arms_of(track)
        for slot in set(slots) - {"pair"}:  # a pair is compared with its parts
            assert any(arm.startswith(f"{slot}:control.") for arm in arms), (track, slot)
    optimizers = [arm for arm in experiment.arms_of("gpt") if arm.startswith("optimizer:") and "control" not in arm]
    assert len(optimizers) >= 8
    for arm in optimizers + [a for a in experiment.arms_of("mlp") if "control" in a]:
        assert experiment.misfit("mlp", arm) is None, arm


@pytest.mark.parametrize(
    "arm", [a for a in experiment.arms_of("gpt") if a.partition(":")[0] in ("feed_forward", "attention")]
)
def test_what_is_exchanged_in_a_finished_decoder_fits_and_is_another_model(arm: str) -> None:
    assert experiment.misfit("gpt", arm) is None
    assert not experiment.same_model("gpt", arm, 2)
    models = [
        experiment.build("gpt", experiment.slots_of("gpt", a), experiment.tiny("gpt"), experiment.generator("t"))
        for a in ("base", arm)
    ]
    base, other = (sum(p.numel() for p in model.parameters()) for model in models)
    if arm.startswith("feed_forward"):  # as large as the base's, up to the rounding of 2/3 of its hidden width
        assert abs(other / base - 1) < 0.05
    hidden = [m for m in models[1].modules() if isinstance(m, torch.nn.Linear) and m.in_features == 8]
    assert all(0.2 < m.weight.std().item() * 8**0.5 < 2.0 for m in hidden)


@pytest.mark.parametrize("arm", ["gradient_orthogonalization.Muon", "sinkgd.SinkGD"])
def test_an_optimizer_for_matrices_gets_the_hidden_ones_and_adam_the_rest(arm: str) -> None:
    model = experiment.build("gpt", {}, experiment.tiny("gpt"), experiment.generator("t"))
    made = experiment.slots_of("gpt", f"optimizer:{arm}")["optimizer"](experiment.hidden_matrices(model), 0.01)
    adam = {id(p) for g in made.param_groups if g["adam"] for p in g["params"]}
    assert id(model.embedding.weight) in adam and id(model.blocks[0].attention.sublayer.qkv.weight) not in adam


def test_sgdp_has_the_momentum_that_sgd_has() -> None:
    weight = torch.nn.Parameter(torch.ones(2, 2))
    made = experiment.slots_of("gpt", "optimizer:adamp.SGDP")["optimizer"]([{"params": [weight]}], 0.01)
    assert [(g["momentum"], g["nesterov"]) for g in made.param_groups] == [(0.9, True)]


def test_initial_weights_fit_the_width() -> None:
    config = experiment.tiny("gpt")
    model = experiment.build("gpt", {}, config, experiment.generator("t"))
    assert model.embedding.weight.std().item() == pytest.approx(1.0, rel=0.1)
    assert model.blocks[0].feed_forward.sublayer.up.weight.std().item() == pytest.approx(config.width**-0.5, rel=0.15)
    bare = experiment.build(
        "mlp", experiment.slots_of("mlp", "init:fixup.fixup_init_"), config, experiment.generator("t")
    )
    assert not any(isinstance(m, torch.nn.LayerNorm) for m in bare.modules()), "Fixup enters without norms"


@pytest.mark.parametrize(("more", "standing"), [(0.2, "loses more"), (-0.2, "loses less"), (0.0, "not told apart")])
def test_a_norm_under_two_optimizers(more: float, standing: str) -> None:
    """What the norm loses under Muon less what it loses under AdamW, however much Muon gains by itself."""
    draw = random.Random(4)
    levels = {"base": 2.0, "norm:dyt.DyT": 2.1, "optimizer:torch.Muon": 1.7, "pair:dyt.DyT_Muon": 1.8 + more}
    scores = {arm: {seed: level + draw.gauss(0, 0.02) for seed in range(12)} for arm, level in levels.items()}
    (one,) = arena_table.interactions(scores)
    assert one["standing"] == standing and one["norm"] == "norm:dyt.DyT"
    differences = [scores["pair:dyt.DyT_Muon"][s] - scores["optimizer:torch.Muon"][s] for s in range(12)]
    differences = [d - scores["norm:dyt.DyT"][s] + scores["base"][s] for s, d in enumerate(differences)]
    interval = stats.t.interval(0.95, 11, sum(differences) / 12, stats.sem(differences))
    assert one["interaction"][1:] == pytest.approx(interval) and abs(one["interaction"][0] - more) < 0.05
    del scores["norm:dyt.DyT"]
    assert arena_table.interactions(scores) == []


def test_a_pair_holds_both_of_its_methods() -> None:
    for arm, (norm, optimizer) in experiment.PAIRS.items():
        both, first, second = (experiment.slots_of("gpt", one) for one in (arm, norm, optimizer))
        assert both.keys() == {"norm", "optimizer"} and both["norm"] is first["norm"] and second["optimizer"]
        assert experiment.misfit("gpt", arm) is None and not experiment.same_model("gpt", arm, 2)
    assert {*experiment.PAIRS} <= {*arena.plan(ROOT, "gpt", "long", ["pair"], [1])["arms"]}
    assert arena.plan(ROOT, "gpt", "long", ["pair"], [1])["slots"] == [["pair"], [], []]


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


# --- the pages --------------------------------------------------------------------------------------------------------


def stored(root: Path, made_of: dict, settings: dict = SETTINGS) -> Path:
    """A checkout with the rows and the table of a track, and the arena.yaml that belongs to them."""
    (root / "arena").mkdir(exist_ok=True)
    (root / "arena.yaml").write_text(json.dumps({"mlp": {**_of(settings, BASICS), "cpu": _of(settings, BUDGET)}}))
    provenance = {**made_of["provenance"], "digest": rows_digest(made_of["rows"])}
    whole = sealed({"schema": SCHEMA, "registered": "sha256:0", **made_of, "provenance": provenance})
    (root / "arena" / "mlp.cpu.rows.json").write_text(json.dumps(whole))
    (root / "arena" / "mlp.cpu.table.json").write_text(json.dumps(arena_table.table(whole, settings)))
    return root


BASICS, BUDGET = ("what", "measure", "margin", "calibration"), ("tuning", "final", "settings", "cells", "cost")


def _of(settings: dict, names: tuple[str, ...]) -> dict:
    return {name: settings[name] for name in names}


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    evil = {**SETTINGS, "what": EVIL}
    return stored(tmp_path_factory.mktemp("arena"), {**document(), "out": {"norm:e.E": EVIL}}, evil)


def test_every_number_on_the_page_is_one_of_the_table(shown: Path) -> None:
    page = Page(str(report.ArenaPage("mlp", shown).page()))
    made = json.loads((shown / "arena" / "mlp.cpu.table.json").read_text())
    numbers = set(numbers_in(made)) | {1000 * v for v in numbers_in([m["step_seconds"] for m in made["methods"]])}
    numbers |= {v / 1e6 for v in numbers_in([m["peak_bytes"] for m in made["methods"]])}
    assert len(page.numbers) > 60
    for value, told in page.numbers:
        assert value in numbers, told
    refuse_requests(page)
    assert EVIL in page.text and "<script>" not in page.source
    assert "unchanged model" in page.text and "control: broken" in page.text and "not reached" in page.text
    for title in page.all("svg"):
        assert title["role"] == "img"


def test_slots_without_use_and_models_that_are_the_same_are_told(shown: Path, tmp_path: Path) -> None:
    page = Page(str(report.ArenaPage("mlp", shown).page()))
    assert "better" in page.text and "no control took part in this slot" in page.text
    assert "the same model here" in page.text and "edge of the grid" in page.text
    weak = {**LEVELS, "norm:control.identity": 0.499}
    stored(tmp_path, document(weak))
    assert "is not shown to be worse than the base" in Page(str(report.ArenaPage("mlp", tmp_path).page())).text
    lines = {(line["cell"], line["slot"]): line for line in summary(tmp_path)}
    assert [line["usable"] for line in lines.values()] == [False, False, True] * 2
    with pytest.raises(ReproError, match="track gpt has not been run"):
        report.ArenaPage("gpt", tmp_path)


def test_a_table_without_its_rows_is_not_shown(tmp_path: Path) -> None:
    stored(tmp_path, document())
    path = tmp_path / "arena" / "mlp.cpu.rows.json"
    kept = path.read_text()
    path.unlink()
    with pytest.raises(ReproError, match="has no rows beside it"):
        report.ArenaPage("mlp", tmp_path)
    path.write_text(kept)
    made = json.loads((tmp_path / "arena" / "mlp.cpu.table.json").read_text())
    (tmp_path / "arena" / "mlp.cpu.table.json").write_text(json.dumps({**made, "rows_digest": "sha256:" + "0" * 64}))
    with pytest.raises(ReproError, match="made of other rows"):
        report.ArenaPage("mlp", tmp_path)


# --- the command ------------------------------------------------------------------------------------------------------

ARENA = """\
mlp:
  what: a small network
  measure: valid_nats
  margin: 0.5
  calibration: [{better: base, worse: "norm:control.broken"}]
  cpu:
    tuning: {seeds: 1, lr: [0.003, 0.01], decay: [0.25, 1], extend: 1}
    final: {seeds: 3}
    settings: {width: 8, examples: 64}
    cells: [{depth: 2, batch: 8, steps: 4}]
    cost: {seeds: 1, blocks: 2, calls: 1, aa_limit: 100.0}
"""


@pytest.fixture(scope="module")
def never_run(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A checkout with a track and a paper with two layers for it, which looks for data where this checkout does."""
    checkout = Checkout(tmp_path_factory.mktemp("arena") / "checkout")
    demo.build(checkout.root)
    data = ROOT / ".repro" / "data"
    data.mkdir(parents=True, exist_ok=True)
    (checkout.root / ".repro").mkdir()
    (checkout.root / ".repro" / "data").symlink_to(data)
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
    (checkout.paper / "__init__.py").write_text(demo.package("Halved", "Whole"), encoding="utf-8")
    checkout.edit(
        "family: normalization",
        "family: normalization\nprovides: [{slot: norm, name: Halved}, {slot: norm, name: Whole}]",
    )
    return checkout


def copied(checkout: Checkout, root: Path) -> Checkout:
    """The same in another place, where a test may change it."""
    shutil.copytree(checkout.root, root, symlinks=True)
    return Checkout(root)


@pytest.fixture(scope="module")
def measured(never_run: Checkout, tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkout, str]:
    """The checkout after `repro arena`, and what the command printed."""
    checkout = copied(never_run, tmp_path_factory.mktemp("measured") / "checkout")
    return checkout, checkout.ok("arena", "--track", "mlp")


@pytest.fixture
def arena_checkout(measured: tuple[Checkout, str], tmp_path: Path) -> Checkout:
    return copied(measured[0], tmp_path / "checkout")


def test_a_new_method_appears_by_existing_and_no_trial_is_run_twice(
    arena_checkout: Checkout, measured: tuple[Checkout, str]
) -> None:
    out = measured[1]
    assert "norm:demo.Halved" in out and "does not fit: norm:demo.Whole: TypeError" in out
    made = json.loads((arena_checkout.root / "arena" / "mlp.cpu.table.json").read_text())
    assert {m["arm"] for m in made["methods"]} >= {"base", "norm:demo.Halved", *experiment.arms_of("mlp")[-4:]}
    assert "norm:demo.Whole" in made["out"] and "optimizer:adam.Adam" not in made["cells"][0]["same"]
    slot, methods = made["cells"][0]["slots"]["optimizer"], {m["arm"]: m for m in made["methods"]}
    assert slot["reference"] == experiment.ADAMW and made["cells"][0]["slots"]["norm"]["reference"] == "base"
    assert all(len(line["decays"]) >= 3 for line in slot["lines"]), "every optimizer tries decays"
    assert all(line["n"] == 3 for line in slot["lines"]) and len(methods) == len(made["methods"])
    assert "demo Halved" in Page(str(report.ArenaPage("mlp", arena_checkout.root).page())).text
    assert {line["track"] for line in summary(arena_checkout.root)} == {"mlp"}
    again = arena_checkout.ok("arena", "--track", "mlp", "--json")
    assert json.loads(again) == [made]
    assert "the stored table holds" in arena_checkout.ok("arena", "--check")
    path = arena_checkout.root / "arena" / "mlp.cpu.rows.json"
    rows = json.loads(path.read_text())
    row = next(row for row in rows["rows"] if row["experiment"] == "mlp" and row["status"] == "ok")
    row["measures"]["valid_nats"] = 0.0
    path.write_text(json.dumps(rows))
    assert "not as it was written" in arena_checkout.refused("arena", "--check", code=2)


def test_an_edit_keeps_the_rows_of_arms_that_compute_what_they_did(arena_checkout: Checkout) -> None:
    path, words = arena_checkout.root / "arena" / "mlp.cpu.rows.json", ("arena", "--track", "mlp", "--refresh")
    assert "fresh already" in arena_checkout.ok(*words)
    before = json.loads(path.read_text())
    arena_checkout.edit("forward(x) / 2", "forward(x) * 0.5", "papers/demo/method.py")
    assert "1 of 1 arms compute what they did" in arena_checkout.ok(*words)
    after = json.loads(path.read_text())
    timed = [row for row in before["rows"] if row["experiment"] == "cost"]
    assert after["rows"] == [row for row in before["rows"] if row not in timed] and after["slots"] == before["slots"]
    assert after["provenance"]["trials"] != before["provenance"]["trials"] and timed
    arena_checkout.edit("* 0.5", "* 0.25", "papers/demo/method.py")
    assert "0 of 1 arms compute what they did; the rows of the others are gone" in arena_checkout.ok(*words)
    left = json.loads(path.read_text())
    assert {row["arm"] for row in after["rows"]} - {row["arm"] for row in left["rows"]} == {"norm:demo.Halved"}
    assert all("norm" not in slots and "optimizer" in slots for slots in left["slots"])
    assert "contradict each other" in arena_checkout.refused(*words, "--judge")


def test_a_plan_runs_on_a_bare_machine_and_its_rows_are_judged_here(never_run: Checkout, tmp_path: Path) -> None:
    arena_checkout = copied(never_run, tmp_path / "checkout")
    plan = tmp_path / "plan.json"
    plan.write_text(arena_checkout.ok("arena", "--plan"))
    words = [str(plan), "--out", str(arena_checkout.root / "arena"), "--jobs", "1"]
    environment = arena_checkout.bare_environment(tmp_path / "bare")
    # Its workers are many: all are forked from one process, in which the same packages are absent.
    bare = warm.Server(warm.BARE, environment)
    try:
        done = bare.run(words, arena_checkout.root, environment, module="repro.arena")
    finally:
        bare.close()
    assert done.returncode == 0, done.stderr
    assert "norm:demo.Halved" in arena_checkout.ok("arena", "--judge")
    brought = (arena_checkout.root / "arena" / "mlp.cpu.table.json").read_text()
    arena_checkout.ok("arena")
    assert (arena_checkout.root / "arena" / "mlp.cpu.table.json").read_text() == brought
    plan.write_text("{}")
    words = [sys.executable, "-m", "repro.arena", *words]
    done = subprocess.run(words, env=environment, cwd=arena_checkout.root, capture_output=True, text=True)
    assert done.returncode == 2 and "plan.json:1: schema null" in done.stderr and "Traceback" not in done.stderr


def test_verify_makes_the_tables_again(arena_checkout: Checkout) -> None:
    arena_checkout.ok("index")
    assert "arena" not in arena_checkout.run("verify").stdout
    rows, table = (arena_checkout.root / "arena" / f"mlp.cpu.{kind}.json" for kind in ("rows", "table"))
    made = json.loads(table.read_text())
    table.write_text(json.dumps({**made, "margin": made["margin"] / 2}))
    assert "arena mlp cpu: the stored table DIFFERS in margin" in arena_checkout.run("verify").stdout
    rows.unlink()
    assert "has no rows beside it" in arena_checkout.run("verify").stdout


def test_recommend_needs_evidence(never_run: Checkout, arena_checkout: Checkout) -> None:
    assert "has not been run" in never_run.refused("recommend", "--model", "mlp", code=1)
    assert "no such track" in never_run.refused("recommend", "--model", "mlq", code=2)
    assert "no evidence at depth 100" in arena_checkout.refused("recommend", "--model", "mlp", "--depth", "100", code=1)
    told = arena_checkout.ok("recommend", "--model", "mlp", "--depth", "3", "--margin", "100")
    assert "depth 2, batch 8, steps 4" in told and "This answers for depth 2, not 3" in told
    assert "no advice" in told or "the reference" in told
    rows = json.loads((arena_checkout.root / "arena" / "mlp.cpu.rows.json").read_text())
    assert '"arena/mlp.cpu.rows.json"' in arena_checkout.ok("trial", rows["provenance"]["trials"][0][7:19])
    told = arena_checkout.ok("recommend", "--model", "mlp", "--optimizer", "adamw")
    assert "measured under AdamW, as you asked" in told
    refused = arena_checkout.refused("recommend", "--model", "mlp", "--optimizer", "adamx")
    assert "--optimizer adamx: not measured here; write one of" in refused and "AdamW" in refused


def test_advice_under_another_optimizer_says_that_it_was_not_measured_under_it() -> None:
    line = {"arm": "optimizer:torch.Muon", "standing": "better", "control": False}
    cell = {"slots": {"optimizer": {"lines": [line, {**line, "arm": "optimizer:control.noisy", "control": True}]}}}
    assert "not under muon" in advice.under(
        cell, "muon"
    ) and "Muon itself against the tuned base: better" in advice.under(cell, "muon")
    with pytest.raises(ReproError, match="write one of AdamW, Muon$"):
        advice.under(cell, "Lion")


def test_the_suites_own_arena_file_is_sound() -> None:
    for name, one in arena.tracks(ROOT).items():
        for profile in set(one) & {"cpu", "long", "gpu"}:
            settings = arena.track_of(ROOT, name, profile)
            assert settings["final"]["seeds"] >= 12 and settings["tuning"]["seeds"] >= 3
            assert len(settings["tuning"]["lr"]) >= 3, "a middle and two edges from which to climb"
            assert len(settings["tuning"]["lr"]) + settings["tuning"]["extend"] >= 9
            assert len({cell["depth"] for cell in settings["cells"]}) >= 2, "two sizes"
            assert len({cell["steps"] for cell in settings["cells"]}) >= 2, "two budgets"
            for contrast in settings["calibration"]:
                for arm in (contrast["better"], contrast["worse"]):
                    assert arm == "base" or experiment.method_of(arm), arm


def test_an_unknown_track_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ReproError, match="no such file"):
        arena.tracks(tmp_path)
    with pytest.raises(ReproError, match="--track nope: no such track; write one of mlp"):
        arena.track_of(ROOT, "nope", "long")


def test_slots_are_measured_one_after_the_other(
    never_run: Checkout, measured: tuple[Checkout, str], tmp_path: Path
) -> None:
    """The table of all slots is the same, in whatever parts the track was measured; what is absent is said."""
    checkout = copied(never_run, tmp_path / "checkout")
    words = ("arena", "--track", "mlp", "--jobs", "1", "--no-timings", "--slot")
    out = checkout.ok(*words, "norm")
    assert "not measured at" in out and "optimizer" in out.split("not measured at")[1].splitlines()[0]
    path = checkout.root / "arena" / "mlp.cpu.table.json"
    first = json.loads(path.read_text())
    assert list(first["cells"][0]["slots"]) == ["norm"] and "optimizer" in first["absent"][0]["slots"]
    checkout.ok(*words, "act", "--slot", "placement", "--slot", "init", "--slot", "optimizer")
    parts, whole = (
        json.loads(path.read_text()),
        json.loads((measured[0].root / "arena" / "mlp.cpu.table.json").read_text()),
    )
    assert parts["absent"] == whole["absent"] == []
    assert parts["cells"][0]["slots"].keys() == whole["cells"][0]["slots"].keys()
    for slot, one in whole["cells"][0]["slots"].items():
        assert parts["cells"][0]["slots"][slot] == one
    assert "no slot of the track mlp" in checkout.refused(*words, "nose", code=2)
    assert "has the cells 1 to" in checkout.refused(*words, "norm", "--cell", "9", code=2)
    assert "write --track too" in checkout.refused("arena", "--slot", "norm", code=2)
