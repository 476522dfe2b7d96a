"""How a claim is judged: its rules and the gates of what they say, on synthetic rows whose answer is known."""

import json
import math
import re

import numpy as np
import pytest
from scipy import stats
from synthetic import BROKEN, GOOD, ORDER, around, claim, document, maker, row, rows_of

from repro.errors import ReproError
from repro.files.paths import SCHEMA
from repro.judge import judge, load_rows
from repro.judge.claims import _most_open
from repro.store import rows_digest


@pytest.fixture
def paper(tmp_path):
    return maker(tmp_path)


def test_a_reproduced_claim_says_everything(paper):
    p = paper()
    verdict = judge(p, "cpu", document(p, rows_of(**GOOD)))
    assert {k: verdict[k] for k in ("schema", "paper", "profile", "post_hoc", "headline", "identities")} == {
        "schema": SCHEMA,
        "paper": "p",
        "profile": "cpu",
        "post_hoc": False,
        "headline": "main",
        "identities": {},
    }
    assert verdict["rows_digest"] == rows_digest(rows_of(**GOOD))
    found = verdict["claims"]["main"]
    assert found["state"] == "reproduced" and found["estimate"] == pytest.approx(-0.5) and found["n"] == 5
    assert found["mark"] is None and found["p"] < 1e-5
    assert found["paper_value"] == {"value": -0.5, "unit": "nats"}
    assert found["magnitude"] == {"ours": found["estimate"], "paper": -0.5, "ratio": pytest.approx(1.0)}
    assert found["rule"] == {**found["rule"], "kind": "ordering", "arm": "a", "against": "b", "level": 0.95}
    assert found["regions"] == [
        {"low": None, "high": 0.0, "log": False, "unit": "nats", "text": "the range of 'better'"}
    ]
    control = found["controls"][0]
    assert control["replace"] == {"a": "c"} and control["ok"] and control["state"] == "not_reproduced"
    assert control["estimate"] == pytest.approx(0.5) and len(control["interval"]) == 2
    assert len(found["parts"]) == 1 and found["parts"][0]["interval"] == found["interval"]
    assert re.fullmatch(r"The 90 % interval \[-?[\d.]+, -?[\d.]+\] lies inside the range of 'better'\.", found["why"])
    assert not {"positive", "trivial", "tuned", "mutants", "failures"} & found.keys()


# ---- the gate of "reproduced" --------------------------------------------------------------------------------------

MISSING = [around(0.5), around(1, 80), around(1.0, -1.2)]  # what a control must not come out as


@pytest.mark.parametrize("c", MISSING)
def test_a_control_that_is_not_rejected_bars_reproduced(paper, c):
    found = claim(paper(), rows_of(a=GOOD["a"], b=GOOD["b"], c=c))
    assert found["state"] == "inconclusive" and not found["controls"][0]["ok"] and found["mark"] is None
    assert found["why"].startswith("The control c in place of a came out ")
    assert "not reproduced is expected of it" in found["why"]


@pytest.mark.parametrize("c", MISSING)
def test_a_control_never_turns_not_reproduced_into_inconclusive(paper, c):
    found = claim(paper(), rows_of(a=around(1.5), b=GOOD["b"], c=c))
    assert found["state"] == "not_reproduced" and not found["controls"][0]["ok"]
    open_ = claim(paper(), rows_of(a=around(1, 80), b=GOOD["b"], c=c))
    assert open_["state"] == "inconclusive" and open_["why"].startswith("The 90 % interval")


def test_several_controls_must_all_hold(paper):
    both = "[{replace: {a: c}, expect: not_reproduced}, {replace: {b: a, a: b}, expect: not_reproduced}]"
    assert claim(paper(controls=both), rows_of(**GOOD))["state"] == "reproduced"
    second = "[{replace: {a: c}, expect: not_reproduced}, {replace: {b: c}, expect: not_reproduced}]"
    found = claim(paper(controls=second), rows_of(**GOOD))
    assert found["state"] == "inconclusive" and [c["ok"] for c in found["controls"]] == [True, False]


AA = "{replace: {a: b}, expect: not_met, seed_offset: 1000}"
WITH_AA = f"[{{replace: {{a: c}}, expect: not_reproduced}}, {AA}]"


def test_an_aa_control_expects_anything_but_reproduced(paper):
    p = paper(controls=WITH_AA)
    assert p.settings("cpu", "e").offset_seeds == {"b": [1000, 1001, 1002, 1003, 1004]}
    moved = [row("b", 1000 + s, v) for s, v in enumerate(around(1, 0.7))]
    found = claim(p, rows_of(**GOOD) + moved)
    assert found["state"] == "reproduced" and found["controls"][1]["state"] == "inconclusive"
    lucky = [row("b", 1000 + s, v) for s, v in enumerate(around(0.5, 0.7))]
    assert claim(p, rows_of(**GOOD) + lucky)["state"] == "inconclusive"
    missing = claim(p, rows_of(**GOOD))
    assert missing["controls"][1]["state"] == "inconclusive" and "missing" in missing["controls"][1]["why"]


def test_an_aa_control_is_no_control_of_a_part(paper):
    moved = [row("b", 1000 + s, v) for s, v in enumerate(around(2, 0.7))]  # rejected, and yet it shows nothing
    found = claim(paper(controls=f"[{AA}]"), rows_of(**GOOD) + moved)
    assert found["controls"][0]["ok"] and found["state"] == "inconclusive" and "No control is there" in found["why"]


def test_an_aa_control_passes_by_chance_at_most_one_time_in_twenty(paper):
    p, rng, runs, missed = paper(controls=WITH_AA), np.random.default_rng(3), 300, 0
    for _ in range(runs):
        moved = [row("b", 1000 + s, v) for s, v in enumerate(rng.normal(1, 0.1, 5))]
        rows = rows_of(a=list(rng.normal(0, 0.1, 5)), b=list(rng.normal(1, 0.1, 5)), c=list(rng.normal(3, 0.1, 5)))
        missed += claim(p, rows + moved)["state"] != "reproduced"
    assert missed / runs <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / runs)


def test_a_claim_without_a_control_is_never_reproduced(paper):
    found = claim(paper(controls="[]"), rows_of(**GOOD))
    assert found["state"] == "inconclusive" and found["why"] == "No control is there that could fail."


LOWER, BOUND = (
    "{kind: bound, measure: loss, arm: a, max: 1}",
    "{kind: bound, measure: loss, arm: a, min: 0.7, name: floor}",
)


def test_every_part_must_be_failed_by_a_control_and_the_others_are_named(paper):
    rows = rows_of(a=around(0.8), c=around(1.5), d=around(0.2))
    both = "[{replace: {a: c}, expect: not_reproduced}, {replace: {a: d}, expect: not_reproduced}]"
    assert claim(paper(f"[{LOWER}, {BOUND}]", both), rows)["state"] == "reproduced"
    found = claim(paper(f"[{LOWER}, {BOUND}]"), rows)  # c is above 1, and never below the floor
    assert found["state"] == "inconclusive" and found["controls"][0]["ok"]
    assert found["why"] == "No control fails floor, so that this part was never shown able to fail."


FACTOR = ("{e: {arms: [a, b, c, d, p]}", "{e: {arms: [a, b, c, d, p], factors: {depth: [2, 12]}}")


def test_every_level_of_per_is_a_part(paper):
    p = paper(ORDER.replace("}", ", per: depth}"), change=FACTOR)
    good = rows_of({"depth": 2}, a=GOOD["a"], b=GOOD["b"]) + rows_of({"depth": 12}, a=GOOD["a"], b=GOOD["b"])
    assert (
        claim(p, good + rows_of({"depth": 2}, c=around(1.5)) + rows_of({"depth": 12}, c=around(1.5)))["state"]
        == "reproduced"
    )
    deep = claim(p, good + rows_of({"depth": 2}, c=around(0.5)) + rows_of({"depth": 12}, c=around(1.5)))
    assert deep["controls"][0]["ok"] and deep["state"] == "inconclusive" and "depth 2" in deep["why"]


def test_of_a_rule_that_asks_for_some_cells_the_whole_is_a_part(paper):
    p = paper(ORDER.replace("}", ", per: depth, at_least: 1}"), change=FACTOR)
    good = rows_of({"depth": 2}, a=GOOD["a"], b=GOOD["b"]) + rows_of({"depth": 12}, a=GOOD["a"], b=GOOD["b"])
    broken = rows_of({"depth": 2}, c=around(1.5)) + rows_of({"depth": 12}, c=around(1.5))
    assert claim(p, good + broken)["state"] == "reproduced"


def test_a_control_on_another_experiment_or_level(paper):
    p = paper(controls="[{experiment: f, expect: not_reproduced}]")
    other = [{**x, "experiment": "f"} for x in rows_of(a=GOOD["c"], b=GOOD["b"])]
    assert claim(p, rows_of(**GOOD) + other)["state"] == "reproduced"
    assert claim(p, rows_of(**GOOD) + [{**x, "experiment": "f"} for x in rows_of(**GOOD)])["state"] == "inconclusive"
    p = paper(ORDER.replace("}", ", at: {depth: 12}}"), "[{at: {depth: 2}, expect: not_reproduced}]", change=FACTOR)
    deep, flat = rows_of({"depth": 12}, **GOOD), rows_of({"depth": 2}, a=GOOD["c"], b=GOOD["b"])
    assert claim(p, deep + flat)["state"] == "reproduced"
    assert claim(p, deep + rows_of({"depth": 2}, **GOOD))["state"] == "inconclusive"


def test_the_method_without_its_idea_must_not_meet_the_rules(paper):
    idea = BROKEN.replace("]", ", {replace: {a: d}, expect: not_reproduced, without: idea}]")
    assert claim(paper(controls=idea), rows_of(**GOOD, d=around(1.2)))["state"] == "reproduced"
    found = claim(paper(controls=idea), rows_of(**GOOD, d=around(0.4)))
    assert (found["state"], found["mark"]) == ("inconclusive", "phenomenon_only")
    assert "the effect is not the method's" in found["why"]
    open_ = claim(paper(controls=idea), rows_of(**GOOD, d=around(1, 80)))  # not shown to meet them: any other control
    assert (open_["state"], open_["mark"]) == ("inconclusive", None)
    failed = claim(paper(controls=idea), rows_of(a=around(1.5), b=GOOD["b"], c=GOOD["c"], d=around(0.4)))
    assert (failed["state"], failed["mark"]) == ("not_reproduced", None)


# ---- the gate of "not reproduced" ----------------------------------------------------------------------------------

BAD = {"a": GOOD["c"], "b": GOOD["b"], "c": GOOD["c"]}
LEARNT = {"trivial": "linear", "positive": "p"}


def learnt(rows, trivial=9.0):
    """The rows with the score of a trivial predictor."""
    return [{**x, "measures": {**x["measures"], "trivial_linear": trivial}} if x["measures"] else x for x in rows]


def test_a_known_good_arm_must_be_reproduced_before_a_trained_method_is_not(paper):
    assert claim(paper(**LEARNT), learnt(rows_of(**BAD, p=GOOD["a"])))["state"] == "not_reproduced"
    found = claim(paper(**LEARNT), learnt(rows_of(**BAD, p=GOOD["c"])))
    assert (found["state"], found["mark"]) == ("inconclusive", "not_shown")
    assert "the known-good arm p is not reproduced either" in found["why"] and found["positive"]["arm"] == "p"
    good = claim(paper(**LEARNT), learnt(rows_of(**GOOD, p=GOOD["c"])))
    assert good["state"] == "reproduced"  # only asked for otherwise


def test_a_trained_claim_without_a_known_good_arm_is_not_shown(paper):
    found = claim(paper(trivial="linear"), learnt(rows_of(**BAD)))
    assert (found["state"], found["mark"]) == ("inconclusive", "not_shown") and "no arm is named" in found["why"]
    assert claim(paper(trivial="{none: a stopwatch}"), rows_of(**BAD))["state"] == "not_reproduced"
    assert claim(paper(), rows_of(**BAD))["state"] == "not_reproduced"


def test_the_known_good_arm_may_be_a_baseline_that_loses(paper):
    swaps = paper(trivial="linear", positive="{a: b, b: d}")
    assert claim(swaps, learnt(rows_of(**BAD, d=around(2))))["state"] == "not_reproduced"
    assert claim(swaps, learnt(rows_of(**BAD, d=around(0.5))))["mark"] == "not_shown"


def test_the_comparator_is_no_known_good_arm(paper):
    """An arm is never worse than itself by more than a margin, in whatever setting."""
    alike = {"rule_text": "{kind: noninferiority, measure: loss, arm: a, against: b, margin: 0.1}", "positive": "b"}
    found = claim(paper(trivial="linear", **alike), learnt(rows_of(**BAD)))
    assert found["mark"] == "not_shown" and "the known-good arm b is the comparator itself" in found["why"]
    timed = claim(paper(trivial="{none: a stopwatch}", **alike), rows_of(**BAD))
    assert timed["state"] == "not_reproduced"


# ---- has it learnt? ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "measure, unit, passed", [("other", "nats", False), ("other", "share", True), ("loss", "nats", True)]
)
def test_a_method_that_is_worse_than_the_trivial_predictor_is_not_reproduced(paper, measure, unit, passed):
    """Where the gate looks at a measure that is easier than the judged one, in the same unit."""
    measures = ("measures:\n", f"measures:\n  other: {{unit: {unit}, better: lower}}\n")
    p = paper(trivial=f"{{predictor: linear, measure: {measure}}}", change=measures)
    assert p.measures["loss"].unit == "nats"
    rows = learnt(rows_of(**GOOD), 0.2 if measure == "other" else 9.0)
    rows = [{**x, "measures": {**x["measures"], "other": 0.1 + 0.001 * x["seed"]}} for x in rows]
    found = claim(p, rows)
    assert found["trivial"]["state"] == "reproduced"
    assert found["state"] == ("reproduced" if passed else "inconclusive")
    assert passed or (found["mark"] == "not_learnt" and "loss of a is worse than" in found["why"])


@pytest.mark.parametrize("values", [GOOD, BAD])
@pytest.mark.parametrize("trivial, passed", [(2.0, True), (0.9, False), (1.0, False)])
def test_the_comparator_must_beat_the_trivial_predictor_whatever_the_arms_do(paper, values, trivial, passed):
    found = claim(paper(**LEARNT), learnt(rows_of(**values, p=GOOD["a"]), trivial))
    assert found["trivial"] == {**found["trivial"], "predictor": "linear", "measure": "loss", "arm": "b"}
    assert (found["trivial"]["state"] == "reproduced") is passed
    if passed:
        assert found["state"] in ("reproduced", "not_reproduced")
    else:
        assert (found["state"], found["mark"]) == ("inconclusive", "not_learnt")
        assert found["why"].startswith("The baseline has not learnt: loss of b is not shown to be better")


def test_a_curve_has_learnt_by_its_end_and_higher_may_be_better(paper):
    change = ("loss: {unit: nats, better: lower, positive: true}", "loss: {unit: points, better: higher}")
    p = paper(trivial="linear", change=change)
    up = {"a": around(2), "b": around(1, -1), "c": around(0.5)}
    assert claim(p, learnt(rows_of(**up), 0.5))["state"] == "reproduced"
    assert claim(p, learnt(rows_of(**up), 1.5))["mark"] == "not_learnt"
    steps = ORDER.replace("}", ", steps_to: {target: 1.0, axis: trivial_linear}}")
    curve = paper(steps, trivial="{predictor: worst}")
    rows = [
        row(arm, s, measures={"loss": [3.0, at, 0.5 + 0.01 * s], "trivial_linear": [0.0, 1.0, 2.0], "worst": 0.7})
        for arm, at in (("a", 1.0), ("b", 1.5), ("c", 9.0))
        for s in range(5)
    ]
    assert claim(curve, rows)["trivial"]["state"] == "reproduced"  # the end, 0.5, not the 3.0 or 1.5 before it


def test_a_claim_may_name_the_arm_that_must_have_learnt(paper):
    """Where the claim is that the baseline does not train, it is the method that must have learnt."""
    rules = "[{kind: bound, measure: loss, arm: b, min: 0.9}, {kind: bound, measure: loss, arm: a, max: 0.7}]"
    controls = "[{replace: {a: c}, expect: not_reproduced}, {replace: {b: a}, expect: not_reproduced}]"
    named = paper(rules, controls, trivial="{predictor: linear, arm: a}")
    assert claim(named, learnt(rows_of(**GOOD), 0.8))["state"] == "reproduced"
    assert claim(named, learnt(rows_of(**GOOD), 0.4))["mark"] == "not_learnt"
    assert claim(paper(rules, controls, trivial="linear"), learnt(rows_of(**GOOD), 0.8))["mark"] == "not_learnt"
    with pytest.raises(ReproError, match="no arm 'x' in experiment 'e'"):
        paper(trivial="{predictor: linear, arm: x}")


def test_without_a_score_of_the_trivial_predictor_nothing_is_learnt(paper):
    found = claim(paper(**LEARNT), rows_of(**GOOD, p=GOOD["a"]))
    assert (found["state"], found["mark"]) == ("inconclusive", "not_learnt")
    assert "no measure 'trivial_linear'" in found["why"]


def test_trained_claims_need_five_seeds_others_three(paper):
    four, three = ("cpu: {seeds: 5", "cpu: {seeds: 4"), ("cpu: {seeds: 5", "cpu: {seeds: 3")
    rows = learnt(rows_of(**GOOD))
    found = claim(paper(trivial="linear", change=four), rows)
    assert found["state"] == "inconclusive" and found["needed_seeds"] == 5 and "at least 5 are needed" in found["why"]
    assert claim(paper(change=three), rows)["state"] == "reproduced"


# ---- an experiment that ignores its seed ---------------------------------------------------------------------------


def test_rows_that_are_equal_in_all_seeds_are_an_error_of_the_experiment(paper):
    found = claim(paper(), rows_of(a=[0.489] * 5, b=[1.0] * 5, c=[2.0] * 5))
    assert found["state"] == "inconclusive" and "the experiment ignores its seed" in found["why"]
    one = claim(paper(), rows_of(a=[0.489] * 5, b=GOOD["b"], c=GOOD["c"]))  # a dead network, a computed reference
    assert one["state"] == "reproduced"


def test_a_measure_that_is_equal_in_all_seeds_is_not_hidden_by_one_that_varies(paper):
    rows = rows_of(a=[0.489] * 5, b=[1.0] * 5, c=[2.0] * 5)
    for i, one in enumerate(rows):
        one["measures"]["seconds_to_load"] = float(i)
    found = claim(paper(), rows)
    assert found["state"] == "inconclusive" and "The measure loss of every arm is the same" in found["why"]
    rows[-1]["measures"]["loss"] += 1e-9  # the last seed of the control
    assert claim(paper(), rows)["state"] == "reproduced"


# ---- lists of rules, levels, error rates ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "a, expected",
    [
        (around(0.8), "reproduced"),
        (around(1.5), "not_reproduced"),
        (around(0.2), "not_reproduced"),
        (around(0.72, 3), "inconclusive"),
        (around(1.5, 20), "not_reproduced"),
    ],
)
def test_a_list_of_rules(paper, a, expected):
    controls = "[{replace: {a: c}, expect: not_reproduced}, {replace: {a: d}, expect: not_reproduced}]"
    found = claim(paper(f"[{LOWER}, {BOUND}]", controls), rows_of(a=a, c=around(1.5), d=around(0.2)))
    assert found["state"] == expected and [p["name"] for p in found["parts"]] == ["bound of loss", "floor"]
    assert len(found["rule"]) == len(found["regions"]) == 2


def test_in_a_list_what_is_not_reproduced_wins_over_what_is_inconclusive(paper):
    found = claim(paper(f"[{ORDER}, {BOUND}]"), rows_of(a=around(0.2), b=around(0.2, 60)))
    assert [part["state"] for part in found["parts"]] == ["inconclusive", "not_reproduced"]
    assert found["state"] == "not_reproduced" and found["why"].startswith("Floor: ")


def test_per_a_list_and_at_least_all_fail_at_one_level(paper):
    """Of m parts that must all hold, one that fails decides at 1 - 0.05 / m, however they are written."""
    change = (FACTOR[0], FACTOR[1])
    per = paper("{kind: bound, measure: loss, arm: a, max: 1, per: depth}", change=change)
    all_ = paper("{kind: bound, measure: loss, arm: a, max: 1, per: depth, at_least: 2}", change=change)
    listed = paper(
        "[{kind: bound, measure: loss, arm: a, max: 1, at: {depth: 2}}, "
        "{kind: bound, measure: loss, arm: a, max: 1, at: {depth: 12}}]",
        change=change,
    )
    rows = rows_of({"depth": 2}, a=around(0.5)) + rows_of({"depth": 12}, a=around(1.5))
    found = [claim(p, rows) for p in (per, all_, listed)]
    assert {f["state"] for f in found} == {"not_reproduced"}
    assert [f["parts"][1]["level"] for f in found] == pytest.approx([0.975] * 3)
    alone = paper("{kind: bound, measure: loss, arm: a, max: 1, at: {depth: 12}}", change=change)
    assert claim(alone, rows)["level"] == 0.95


def test_a_claim_that_is_true_by_a_hair_in_every_part_is_seldom_called_false(paper):
    """At 5 % a part, four parts would come to 18.6 %."""
    rules = ", ".join(f"{{kind: bound, measure: loss, arm: {arm}, max: 1}}" for arm in "abcd")
    p, rng, runs, seen = (
        paper(f"[{rules}]", "[{replace: {a: p}, expect: not_reproduced}]"),
        np.random.default_rng(1),
        400,
        0,
    )
    for _ in range(runs):
        rows = rows_of(**{arm: list(rng.normal(1, 0.1, 5)) for arm in "abcd"}, p=around(9))
        seen += claim(p, rows)["state"] == "not_reproduced"
    assert seen / runs <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / runs)


# ---- divergence and failure ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [5, 12])
@pytest.mark.parametrize(
    "rule_text",
    [
        ORDER,
        LOWER,
        "{kind: ratio, measure: loss, arm: a, against: b, max: 0.9}",
        "{kind: noninferiority, measure: loss, arm: a, against: b, margin: 0.2}",
        "{kind: equivalence, measure: loss, arm: a, against: b, margin: 0.6}",
    ],
)
def test_a_diverged_row_of_the_method_is_never_reproduced(paper, rule_text, n):
    p = paper(rule_text, change=("cpu: {seeds: 5", f"cpu: {{seeds: {n}"))
    values = {"a": [0.5 + 0.001 * s for s in range(n)], "b": [1 - 0.001 * s for s in range(n)]}
    values["c"] = [3 + 0.001 * s for s in range(n)]
    assert claim(p, rows_of(**values))["state"] == "reproduced"
    found = claim(p, rows_of(**{**values, "a": [None, *values["a"][1:]]}))
    assert found["state"] == "inconclusive"
    if n == 12:
        assert "The arm a diverged at seed 0" in found["why"] and found["needed_seeds"] is None


def test_an_arm_of_which_every_run_diverged_fails_also_with_three_seeds_and_many_parts(paper):
    p = paper(f"[{LOWER}, {BOUND}]", change=("cpu: {seeds: 5", "cpu: {seeds: 3"))
    found = claim(p, rows_of(a=[None] * 3, c=around(1.5)))
    assert found["state"] == "not_reproduced" and "all 3 runs diverged" in found["why"]


STABLE = "{kind: failures, measure: loss, arm: a, above: 0.9, max: 0.5}"


def runs_of(failed, n, arm="a", how=2.0):
    return rows_of(**{arm: [how if s < failed else 0.5 + 0.001 * s for s in range(n)]})


def test_a_claim_of_stability_is_about_the_failure_rate(paper):
    n = ("cpu: {seeds: 5", "cpu: {seeds: 12")
    broken = runs_of(12, 12, "c")
    for how in (2.0, None):  # collapsed, or diverged
        found = claim(paper(STABLE, change=n), runs_of(1, 12, how=how) + broken)
        assert found["state"] == "reproduced" and found["unit"] == "failure rate"
        low, high = stats.binomtest(1, 12).proportion_ci(0.9, method="exact")
        assert found["interval"] == pytest.approx([low, high]) and found["estimate"] == pytest.approx(1 / 12)
        assert found["failures"] == {"a": {"k": 1, "n": 12, "upper95": pytest.approx(high)}}
        assert claim(paper(STABLE, change=n), runs_of(11, 12, how=how) + broken)["state"] == "not_reproduced"
        assert claim(paper(STABLE, change=n), runs_of(5, 12, how=how) + broken)["state"] == "inconclusive"


def test_more_seeds_do_not_bar_a_method_whose_failure_rate_is_the_claim(paper):
    """A method that fails in 5 % of runs: never barred by one failed run, and shown below 30 % the better the more
    seeds.
    """
    for n, failed in ((10, 0), (20, 1), (100, 5)):
        rules = f"[{STABLE.replace('0.5', '0.3')}, {ORDER}]"
        p = paper(rules, change=("cpu: {seeds: 5", f"cpu: {{seeds: {n}"))
        rows = runs_of(failed, n, how=None) + rows_of(b=[1 + 0.001 * s for s in range(n)]) + runs_of(n, n, "c", 3.0)
        assert claim(p, rows)["state"] == "reproduced", n


def test_one_arm_fails_less_often_than_another(paper):
    rule_text = "{kind: failures, measure: loss, arm: a, against: b, above: 0.9}"
    p = paper(rule_text, change=("cpu: {seeds: 5", "cpu: {seeds: 12"))
    rows = runs_of(0, 12) + runs_of(8, 12, "b") + runs_of(12, 12, "c")
    found = claim(p, rows)
    assert found["estimate"] == pytest.approx(-8 / 12) and found["p"] == pytest.approx(0.5**8)
    alike = claim(p, runs_of(8, 12) + runs_of(8, 12, "b") + runs_of(12, 12, "c"))
    assert alike["state"] == "inconclusive" and "at the same seeds" in alike["why"]


@pytest.mark.parametrize("n, share", [(10, 0.3), (20, 0.2)])
def test_a_failure_rate_on_the_boundary_is_called_below_it_at_most_one_time_in_twenty(paper, n, share):
    p, rng, runs, said = (
        paper(STABLE.replace("0.5", str(share)), change=("cpu: {seeds: 5", f"cpu: {{seeds: {n}")),
        np.random.default_rng(n),
        200,
        0,
    )
    for _ in range(runs):
        fails = rng.random(n) < share
        rows = rows_of(a=[2.0 if f else 0.5 + 0.001 * s for s, f in enumerate(fails)]) + runs_of(n, n, "c")
        said += claim(p, rows)["state"] == "reproduced"
    assert said / runs <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / runs)


def test_elsewhere_the_bound_on_the_failure_rate_is_stored(paper):
    fails = "{measure: loss, above: 0.9}"
    found = claim(paper(**LEARNT, fails=fails), learnt(rows_of(**GOOD, p=GOOD["a"])))
    assert found["failures"]["a"] == {"k": 0, "n": 5, "upper95": pytest.approx(1 - 0.05**0.2)}
    assert found["failures"]["b"]["k"] == 5


# ---- mutants, the sign statement, ranks ----------------------------------------------------------------------------


def test_the_verdict_says_which_mutants_it_cannot_tell_from_the_method(paper):
    p = paper(mutants="[c, d, p]")
    found = claim(p, rows_of(**GOOD, d=around(0.6), p=around(1, 80)))
    assert found["state"] == "reproduced"
    assert [(m["arm"], m["state"], m["told"]) for m in found["mutants"]] == [
        ("c", "not_reproduced", True),
        ("d", "reproduced", False),
        ("p", "inconclusive", False),
    ]


def test_a_skewed_measure_needs_the_sign_test_or_ten_seeds(paper):
    worst = "{kind: bound, measure: worst, arm: a, max: 1}"
    with pytest.raises(ReproError, match="'worst' is skewed, and 'cpu' has 5 seeds; write statistic: sign"):
        paper(worst)
    paper(worst, change=("cpu: {seeds: 5", "cpu: {seeds: 10"))
    p = paper(worst.replace("}", ", statistic: sign}"))
    rows = rows_of(measure="worst", a=[0.5, 0.6, 0.7, 0.8, 0.2], c=around(2))
    found = claim(p, rows)
    assert found["state"] == "reproduced" and "5 of 5 seeds lie inside" in found["why"]
    assert found["p"] == pytest.approx(1 / 32)
    tail = rows_of(measure="worst", a=[0.5, 0.6, 0.7, 0.8, 5.0], c=around(2))
    assert claim(p, tail)["state"] == "inconclusive"


def test_the_sign_test_holds_its_level_where_t_does_not(paper):
    """Median on the boundary, lognormal noise below it: t errs far more often than one time in twenty."""
    sign = paper("{kind: bound, measure: loss, arm: a, max: 1, statistic: sign}")
    rng, runs, said = np.random.default_rng(2), 400, 0
    for _ in range(runs):
        said += claim(sign, rows_of(a=list(np.exp(rng.normal(0, 1, 5))), c=around(9)))["state"] == "reproduced"
    assert said / runs <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / runs)


RANKS = "{kind: ranks, measure: loss, arm: a, others: [b, c], over: table}"
TABLES = list(range(12))
TABLE = ("{e: {arms: [a, b, c, d, p]}", f"{{e: {{arms: [a, b, c, d, p], factors: {{table: {TABLES}}}}}")


def tables(**arms):
    """Rows over tables: the value of an arm at a table, alike in all seeds but for a little noise."""
    return [
        row(arm, s, value(t) + 0.001 * s, factors={"table": t})
        for arm, value in arms.items()
        for t in TABLES
        for s in range(5)
    ]


def test_ranks_over_tables_are_friedmans_and_wilcoxons(paper):
    p = paper(RANKS, "[{replace: {a: d}, expect: not_reproduced}]", change=TABLE)
    rng = np.random.default_rng(4)
    noise = {arm: rng.normal(0, 1, len(TABLES)) for arm in "abcd"}
    rows = tables(
        a=lambda t: 10 * t + noise["a"][t] - 3,
        b=lambda t: 10 * t + noise["b"][t],
        c=lambda t: 10 * t + noise["c"][t],
        d=lambda t: 10 * t + noise["d"][t] + 3,
    )
    found = claim(p, rows)
    assert found["state"] == "reproduced" and found["unit"] == "difference of mean ranks" and found["n"] == len(TABLES)
    assert [part["at"] for part in found["parts"]] == [{"against": "b"}, {"against": "c"}]
    scores = {arm: [10 * t + noise[arm][t] - (3 if arm == "a" else 0) for t in TABLES] for arm in "abc"}
    wilcoxon = stats.wilcoxon(np.subtract(scores["a"], scores["b"]), alternative="less").pvalue
    friedman = stats.friedmanchisquare(*scores.values()).pvalue
    assert f"Wilcoxon p = {wilcoxon:.2g}; Friedman over 3 arms p = {friedman:.2g}" in found["parts"][0]["why"]
    swapped = [{**x, "arm": {"a": "d", "d": "a"}.get(x["arm"], x["arm"])} for x in rows]
    assert claim(p, swapped)["state"] == "not_reproduced"


def test_equal_methods_are_ranked_first_at_most_one_time_in_twenty(paper):
    p = paper(RANKS, "[{replace: {a: d}, expect: not_reproduced}]", change=TABLE)
    rng, runs, said = np.random.default_rng(5), 150, 0
    for _ in range(runs):
        noise = {arm: rng.normal(0, 1, len(TABLES)) for arm in "abc"}
        rows = tables(**{arm: (lambda t, arm=arm: noise[arm][t]) for arm in "abc"}, d=lambda t: 99.0 + t)  # noqa: B023
        said += claim(p, rows)["state"] == "reproduced"
    assert said / runs <= 0.05


# ---- rows that are missing, seeds beyond the plan ------------------------------------------------------------------


@pytest.mark.parametrize("status", ["missing", "invalid", "failed"])
def test_rows_that_are_missing_or_invalid(paper, status):
    rows = rows_of(**GOOD)
    lost = next(i for i, x in enumerate(rows) if x["arm"] == "b" and x["seed"] == 3)
    if status == "missing":
        del rows[lost]
    else:
        rows[lost] = row("b", 3, status=status, why="its A/A arms disagree")
    found = claim(paper(), rows)
    assert found["state"] == "inconclusive" and "b, seed 3" in found["why"] and found["magnitude"] is None
    assert status == "missing" or "A/A arms disagree" in found["why"]


def test_a_row_without_the_measure(paper):
    rows = rows_of(**GOOD)
    rows[0]["measures"] = {"other": 1.0}
    assert "has no measure 'loss'" in claim(paper(), rows)["why"]


def test_seeds_beyond_the_plan_are_not_judged(paper):
    more = rows_of(**GOOD) + [row("a", s, 99.0) for s in (5, 6, 1000)] + [row("b", s, -99.0) for s in (5, 6, 1000)]
    assert claim(paper(), more) == claim(paper(), rows_of(**GOOD))


def test_other_profiles_and_untested_claims_are_left_out(paper):
    p = paper()
    with pytest.raises(ReproError, match="smoke is never judged"):
        judge(p, "smoke", {**document(p, []), "profile": "smoke"})
    with pytest.raises(ReproError, match="not one of smoke, cpu"):
        judge(p, "gpu", {**document(p, []), "profile": "gpu"})
    with pytest.raises(ReproError, match="holds rows of q at profile cpu, not of p at cpu"):
        judge(p, "cpu", {**document(p, []), "paper": "q"})


def test_a_rule_changed_after_the_run_is_post_hoc(paper):
    first = paper(ORDER.replace("}", ", margin: 0.1}"))
    stored = document(first, rows_of(**GOOD))
    assert not judge(first, "cpu", stored)["post_hoc"]
    later = paper(ORDER.replace("}", ", margin: 0.2}"))
    assert judge(later, "cpu", stored)["post_hoc"]
    assert judge(later, "cpu", stored)["claims"]["main"]["state"] == "reproduced"  # judged, and marked


@pytest.mark.parametrize(
    "value, expected",
    [
        ("{value: -1.0, unit: nats}", (-1.0, 0.5)),
        ("{low: -0.6, high: -0.4, unit: nats}", ([-0.6, -0.4], 1.0)),
        ("{value: 0, unit: nats}", (0, None)),
        ("{low: 1, high: 2, unit: nats}", ([1, 2], -0.5)),
        ("{value: -1.0}", (-1.0, None)),  # of no unit, which is not ours
        ("{value: 22.4, unit: BLEU}", (22.4, None)),
        ("{text: much}", None),
    ],
)
@pytest.mark.parametrize("a", [GOOD["a"]])
def test_magnitude(paper, value, expected, a):
    p = paper(change=("{value: -0.5, unit: nats}", value))
    found = claim(p, rows_of(**GOOD))["magnitude"]
    assert found == (
        expected
        and {"ours": pytest.approx(-0.5), "paper": expected[0], "ratio": expected[1] and pytest.approx(expected[1])}
    )


# ---- documents -----------------------------------------------------------------------------------------------------


def test_load_rows_takes_what_a_run_wrote(paper, tmp_path):
    path = tmp_path / "cpu.rows.json"
    path.write_text(json.dumps(document(paper(), rows_of(**GOOD)), indent=1))
    assert load_rows(path)["rows"] == rows_of(**GOOD)


def test_rows_edited_by_hand_are_refused(paper, tmp_path):
    p, path = paper(), tmp_path / "cpu.rows.json"
    stored = document(p, rows_of(**GOOD))
    stored["rows"][0]["seconds"] = 99.0  # seconds are not part of the digest
    path.write_text(json.dumps(stored))
    load_rows(path)
    stored["rows"][0]["measures"]["loss"] += 1e-9
    path.write_text(json.dumps(stored))
    with pytest.raises(ReproError, match=r"cpu.rows.json: .*edited by hand.*repro run p --profile cpu --force$"):
        load_rows(path)
    with pytest.raises(ReproError, match="edited by hand"):
        judge(p, "cpu", stored)
    assert judge(p, "cpu", stored, check_digest=False)["claims"]["main"]["state"] == "reproduced"


@pytest.mark.parametrize(
    "edit, message",
    [
        (lambda t: t.replace("0.5", "NaN", 1), r":\d+: rows\[0\].measures.loss: NaN is no JSON"),
        (lambda t: t.replace("0.5", "-Infinity", 1), ":.*Infinity"),
        (lambda t: t[:-5], r":\d+: not JSON"),
        (lambda t: t.replace('"schema": 2', '"schema": 0'), "schema 0, this version reads 2"),
        (lambda t: "[]", "schema null"),
        (lambda t: t.replace('"rows"', '"row"'), "'rows' is missing"),
        (lambda t: t.replace('"status"', '"state"', 1), r"rows\[0\]: 'status' is missing"),
        (lambda t: t.replace('"seed": 1,', '"seed": 0,', 1), "twice"),
    ],
)
def test_documents_that_are_no_rows(paper, tmp_path, edit, message):
    path = tmp_path / "cpu.rows.json"
    rows = rows_of(a=[0.5, 0.25], b=[1.0, 2.0])
    path.write_text(edit(json.dumps(document(paper(), rows), indent=1)))
    with pytest.raises(ReproError, match=message) as caught:
        load_rows(path)
    assert str(caught.value).startswith(f"{path}:") and "\n" not in str(caught.value)
    with pytest.raises(ReproError, match="No such file"):
        load_rows(tmp_path / "gpu.rows.json")


def test_of_open_rules_the_one_that_would_fail_first_tells() -> None:
    def result(state: str, inside: bool, needed: int | None) -> dict:
        return {"state": state, "inside": inside, "needed_seeds": needed}

    holds, near, far = (
        result("reproduced", True, None),
        result("inconclusive", True, 9),
        result("inconclusive", True, 40),
    )
    assert _most_open([holds, near, far]) == (2, 40), "all must hold, so that the furthest one tells"
    failing, soon = result("inconclusive", False, 300), result("inconclusive", False, 12)
    assert _most_open([far, failing, soon]) == (2, 12), "one that fails decides"
    unknown = result("inconclusive", True, None)
    assert _most_open([near, unknown]) == (1, None)
    assert _most_open([unknown, failing]) == (1, 300)


# ---- an arm against itself, an ablation that is open, ranks of runs that fail ----------------------------------------


@pytest.mark.parametrize("idea", ["", ", without: idea"])
def test_one_control_must_fail_by_its_rows(paper, idea):
    """An arm against itself fails every rule of superiority, whatever the rows say."""
    itself = f"{{replace: {{a: b}}, expect: not_reproduced{idea}}}"
    found = claim(paper(controls=f"[{itself}]"), rows_of(**GOOD))
    assert found["state"] == "inconclusive" and found["controls"][0]["state"] == "not_reproduced"
    assert found["why"].startswith("The only control that fails compares an arm with itself")
    near = f"[{itself}, {{replace: {{a: c}}, expect: not_reproduced}}]"
    assert claim(paper(controls=near), rows_of(**GOOD))["state"] == "reproduced"


def test_a_part_is_failed_by_an_arm_against_itself_where_another_part_fails_by_its_rows(paper):
    rules = f"[{ORDER}, {{kind: ordering, measure: loss, arm: a, against: d, name: than d}}]"
    rows = rows_of(**GOOD, d=around(0.9))
    found = claim(paper(rules, "[{replace: {a: b}, expect: not_reproduced}]"), rows)
    assert found["state"] == "reproduced"
    ranks = "{kind: ranks, measure: loss, arm: a, others: [b, c], over: table}"
    p = paper(ranks, "[{replace: {a: c}, expect: not_reproduced}]", change=TABLE)
    found = claim(p, tables(a=lambda t: t, b=lambda t: t + 3.0, c=lambda t: t + 7.0))
    assert found["state"] == "inconclusive" and "no control fails against c" in found["why"].lower()  # equal ranks


def test_the_method_without_its_idea_must_be_shown_to_fail_whatever_is_expected(paper):
    open_ = BROKEN.replace("]", ", {replace: {a: d}, expect: not_met, without: idea}]")
    found = claim(paper(controls=open_), rows_of(**GOOD, d=around(1, 80)))
    assert found["state"] == "inconclusive" and not found["controls"][1]["ok"]
    assert "d in place of a came out inconclusive, and not reproduced is expected of it" in found["why"]
    assert claim(paper(controls=open_), rows_of(**GOOD, d=around(1.2)))["state"] == "reproduced"


def test_the_known_good_arm_must_show_a_part_that_fails_against_another_arm(paper):
    """It is as good as itself in whatever setting; only that part fails here."""
    rules = (
        f"[{ORDER}, {{kind: noninferiority, measure: loss, arm: a, against: p, margin: 0.1, name: as good as p}}, "
        "{kind: bound, measure: loss, arm: a, max: 3, name: low}]"
    )
    rows = {"a": around(0.8), "b": GOOD["b"], "c": GOOD["c"], "p": around(0.5, -1)}
    found = claim(paper(rules, **LEARNT), learnt(rows_of(**rows)))
    assert [part["state"] for part in found["parts"]] == ["reproduced", "not_reproduced", "reproduced"]
    assert (found["state"], found["mark"]) == ("inconclusive", "not_shown")
    assert "the known-good arm p is the comparator itself" in found["why"]
    worse = claim(paper(rules, **LEARNT), learnt(rows_of(**{**rows, "a": around(1.5)})))
    assert worse["state"] == "not_reproduced"  # it is not better than b, which p is


def test_ranks_bar_an_arm_that_diverged_and_few_seeds(paper):
    p = paper(RANKS, "[{replace: {a: d}, expect: not_reproduced}]", change=TABLE)
    rows = tables(a=lambda t: t, b=lambda t: t + 3.0, c=lambda t: t + 7.0, d=lambda t: t + 9.0)
    assert claim(p, rows)["state"] == "reproduced"
    lost = next(i for i, x in enumerate(rows) if (x["arm"], x["seed"], x["factors"]["table"]) == ("a", 2, 5))
    found = claim(p, [*rows[:lost], row("a", 2, status="diverged", factors={"table": 5}), *rows[lost + 1 :]])
    assert found["state"] == "inconclusive" and "The arm a diverged at seed 2" in found["why"]
    few = paper(
        RANKS, "[{replace: {a: d}, expect: not_reproduced}]", replace=[TABLE, ("cpu: {seeds: 5", "cpu: {seeds: 2")]
    )
    found = claim(few, rows)
    assert found["state"] == "inconclusive" and "only 2 seeds" in found["why"] and found["needed_seeds"] == 3
