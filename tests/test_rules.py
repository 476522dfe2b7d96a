"""How a rule is judged: the sentences of that page, each a test, on synthetic rows whose answer is known."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from synthetic import DEPTHS, MEASURES, around, judged, row, rows_of, rule, settings, state

from repro.judge.rules import judge_rule, unit_of
from repro.spec.model import Contrast, Measure, StepsTo

# ---- "a parameter and a region R for it" ---------------------------------------------------------------------------


PAIRED = {  # kind -> options, arm's mean where R holds, where it does not (b is 1 with other noise); unit
    "ratio below": ("ratio", {"max": 0.9}, 0.5, 1.5, "ratio"),
    "ratio above": ("ratio", {"min": 1.1}, 1.5, 1.0, "ratio"),
    "ratio between": ("ratio", {"between": [0.4, 0.6]}, 0.5, 0.8, "ratio"),
    "ordering": ("ordering", {}, 0.5, 1.5, "nats"),
    "ordering by a margin": ("ordering", {"margin": 0.3}, 0.5, 0.9, "nats"),
    "noninferiority": ("noninferiority", {"margin": 0.2}, 1.05, 1.5, "nats"),
    "equivalence": ("equivalence", {"margin": 0.2}, 1.05, 0.5, "nats"),
    "equivalence of a ratio": ("equivalence", {"ratio": [0.8, 1.25]}, 1.05, 0.5, "ratio"),
}


@pytest.mark.parametrize("name", PAIRED)
def test_interval_inside_outside_or_across(name):
    kind, options, good, bad, unit = PAIRED[name]
    r, b = rule(kind, against="b", **options), around(1.0, -0.3)
    assert state(r, rows_of(a=around(good), b=b)) == "reproduced"
    assert state(r, rows_of(a=around(bad), b=b)) == "not_reproduced"
    assert state(r, rows_of(a=around((good + bad) / 2, 60), b=b)) == "inconclusive"
    assert unit_of(r, MEASURES) == unit


@pytest.mark.parametrize("region, good, bad", [({"max": 2}, 1, 3), ({"min": 2}, 3, 1), ({"between": [1, 3]}, 2, 4)])
def test_bound(region, good, bad):
    for centre, expected in ((good, "reproduced"), (bad, "not_reproduced")):
        assert state(rule("bound", **region), rows_of(a=around(centre))) == expected
    assert state(rule("bound", **region), rows_of(a=around(2, 200))) == "inconclusive"


def test_higher_is_better_turns_the_region():
    better = rows_of(measure="score", a=around(2), b=around(1, -1))
    for kind, options in (("ordering", {}), ("noninferiority", {"margin": 0.1})):
        r = rule(kind, measure="score", against="b", **options)
        assert state(r, better) == "reproduced"
        assert state(replace(r, arm="b", against="a"), better) == "not_reproduced"


def test_the_interval_is_students_t_on_paired_differences():
    a, b = [1.0, 2.0, 4.0, 3.0, 6.0], [1.5, 1.0, 3.0, 3.5, 4.0]
    found = judged(rule("noninferiority", against="b", margin=0.1), rows_of(a=a, b=b))
    low, high = stats.ttest_rel(a, b).confidence_interval(0.9)  # each end one-sided at 0.95
    assert found["interval"] == pytest.approx([low, high]) and found["estimate"] == pytest.approx(
        np.mean(a) - np.mean(b)
    )
    assert (found["n"], found["level"], found["unit"]) == (5, 0.95, "nats")
    assert "the 90 % interval" in found["why"] and "the margin 0.1" in found["why"]
    wider = judged(rule("noninferiority", against="b", margin=0.1, level=0.99), rows_of(a=a, b=b))
    assert wider["interval"] == pytest.approx(list(stats.ttest_rel(a, b).confidence_interval(0.98)))


def test_unpaired_seeds_are_welchs():
    a, b = [1.0, 2.0, 4.0, 3.0, 6.0], [1.5, 1.4, 1.6, 1.5, 1.7]
    found = judged(rule("ordering", against="b", pair=False), rows_of(a=a, b=b))
    low, high = stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.9)
    assert found["interval"] == pytest.approx([low, high])
    shuffled = judged(rule("ordering", against="b", pair=False), rows_of(a=a[::-1], b=b))
    assert shuffled["interval"] == pytest.approx(found["interval"])


def test_ratios_are_on_the_log_scale():
    a, b = [1.0, 2.0, 4.0, 3.0, 6.0], [2.0, 5.0, 7.0, 7.5, 11.0]
    found = judged(rule("ratio", against="b", max=0.9), rows_of(a=a, b=b))
    low, high = stats.ttest_1samp(np.log(np.divide(a, b)), 0).confidence_interval(0.9)
    assert found["interval"] == pytest.approx([math.exp(low), math.exp(high)])
    assert found["estimate"] == pytest.approx(stats.gmean(np.divide(a, b)))
    back = judged(rule("ratio", arm="b", against="a", min=1 / 0.9), rows_of(a=a, b=b))
    assert back["interval"] == pytest.approx([1 / found["interval"][1], 1 / found["interval"][0]])
    assert back["state"] == found["state"]


@pytest.mark.parametrize("value", [0.0, -1.0])
def test_a_ratio_of_what_is_not_positive_is_inconclusive(value):
    found = judged(rule("ratio", against="b", max=0.9), rows_of(a=[0.1] * 4 + [value], b=[1.0] * 5))
    assert found["state"] == "inconclusive" and "no logarithm" in found["why"] and found["estimate"] is None


@pytest.mark.parametrize("n, expected", [(1, "inconclusive"), (2, "inconclusive"), (3, "reproduced")])
def test_fewer_than_three_seeds(n, expected):
    rows = rows_of(a=[1.0, 1.01, 1.02], b=[2.0, 2.02, 2.01])
    found = judged(rule("ordering", against="b"), rows, n)
    assert found["state"] == expected and found["needed_seeds"] == (3 if n < 3 else None)


def test_zero_spread_is_an_interval_of_no_width():
    for value, expected in ((0.019, "reproduced"), (0.021, "not_reproduced"), (0.02, "inconclusive")):
        found = judged(rule("bound", max=0.02), rows_of(a=[value] * 5))
        assert found["state"] == expected and found["interval"] == [value, value]
        assert found["needed_seeds"] is None


def test_an_arm_against_itself_is_not_better_but_equal_arms_are_undecided():
    """A control may put the comparator into the method's place; two arms that tie, at a ceiling say, decide nothing."""
    values = around(1.0, 0.1)
    rows = rows_of(a=values, b=list(values))
    assert judged(rule("ordering", against="b"), rows)["state"] == "inconclusive"
    found = judged(rule("ordering", against="a"), rows)
    assert found["state"] == "not_reproduced" and "against itself" in found["why"] and found["needed_seeds"] is None
    assert judged(rule("noninferiority", against="a", margin=0.1), rows)["state"] == "reproduced"


# ---- options -------------------------------------------------------------------------------------------------------


def two_depths(a4, a12, b4=1.0, b12=1.0, scale=0.1, measure="loss"):
    return rows_of({"depth": 4}, measure, a=around(a4, scale), b=around(b4, -scale)) + rows_of(
        {"depth": 12}, measure, a=around(a12, scale), b=around(b12, -scale)
    )


def test_at_fixes_levels():
    rows, r = two_depths(0.5, 1.5), rule("ordering", against="b")
    assert state(replace(r, at={"depth": 4}), rows, factors=DEPTHS) == "reproduced"
    assert state(replace(r, at={"depth": 12}), rows, factors=DEPTHS) == "not_reproduced"


def test_per_needs_every_level_or_k_of_them():
    r = rule("ordering", against="b", per="depth")
    assert state(r, two_depths(0.5, 0.5), factors=DEPTHS) == "reproduced"
    assert state(r, two_depths(0.5, 1.5), factors=DEPTHS) == "not_reproduced"
    assert state(replace(r, at_least=1), two_depths(0.5, 1.5), factors=DEPTHS) == "reproduced"
    assert state(replace(r, at_least=2), two_depths(0.5, 1.5), factors=DEPTHS) == "not_reproduced"
    assert state(replace(r, at_least=1), two_depths(1.5, 1.5), factors=DEPTHS) == "not_reproduced"
    found = judged(r, two_depths(0.5, 1.5), factors=DEPTHS)
    assert [p["at"] for p in found["parts"]] == [{"depth": 4}, {"depth": 12}]
    assert [p["state"] for p in found["parts"]] == ["reproduced", "not_reproduced"]
    assert found["why"].startswith("at depth 12, ") and found["interval"] == found["parts"][1]["interval"]
    held = judged(r, two_depths(0.5, 0.9), factors=DEPTHS)
    assert held["interval"] == held["parts"][1]["interval"]  # the level that held most narrowly is the one shown


def test_a_level_without_rows_is_inconclusive():
    rows = [x for x in two_depths(0.5, 0.5) if x["factors"]["depth"] == 4 or x["seed"] != 3]
    found = judged(rule("ordering", against="b", per="depth"), rows, factors=DEPTHS)
    assert found["state"] == "inconclusive" and "seed 3, depth 12 is missing" in found["why"]


def test_partial_conjunction_levels():
    """Of n cells at least k: each at 1 - alpha / (n - k + 1) to hold, at 1 - alpha / k not to."""
    factors = {"cell": [1, 2, 3, 4]}
    rows = [x for cell in factors["cell"] for x in rows_of({"cell": cell}, a=around(0.5 if cell < 4 else 9))]
    found = judged(rule("bound", max=1, per="cell", at_least=3), rows, factors=factors)
    assert [p["level"] for p in found["parts"]] == pytest.approx([0.975] * 3 + [1 - 0.05 / 3])
    assert (found["estimate"], found["interval"], found["unit"]) == (3, [3, 3], "of 4 cells")
    assert found["state"] == "reproduced"


@pytest.mark.parametrize(
    "options, values, expected",
    [
        ({"max": 1}, (0.5, 0.5, 5), "reproduced"),
        ({"max": 1}, (0.5, 5, 5), "not_reproduced"),
        ({"between": [0.4, 0.6], "against": "b"}, (0.5, 0.5, 5), "reproduced"),
        ({"between": [0.4, 0.6], "against": "b"}, (0.5, 0.1, 5), "not_reproduced"),
        ({"against": "b"}, (0.9, 0.9, 5), "reproduced"),
        ({"against": "b"}, (0.9, 5, 5), "not_reproduced"),
        ({"against": "b", "margin": 0.3}, (0.5, 0.5, 0.9), "reproduced"),
        ({"against": "b", "margin": 0.3}, (0.5, 0.9, 0.9), "not_reproduced"),
    ],
)
def test_count_asks_each_cell_its_own_rule(options, values, expected):
    factors = {"model": ["rnn", "conv", "gpt"]}
    rows = [
        x
        for model, value in zip(factors["model"], values, strict=True)
        for x in rows_of({"model": model}, a=around(value, 0.1), b=around(1, -0.1))
    ]
    found = judged(rule("count", cells="model", at_least=2, **options), rows, factors=factors)
    assert found["state"] == expected and len(found["parts"]) == 3


def test_count_over_several_factors():
    factors = {"x": [1, 2], "y": [1, 2]}
    rows = [z for x in (1, 2) for y in (1, 2) for z in rows_of({"x": x, "y": y}, a=around(x * y))]
    r = rule("count", cells=["x", "y"], at_least=3, max=3)
    assert state(r, rows, factors=factors) == "reproduced"
    assert state(replace(r, at_least=4), rows, factors=factors) == "not_reproduced"


def test_contrast_is_first_minus_second_within_arm_and_seed():
    contrast = Contrast(factor="depth", levels=[12, 4], as_="difference")
    rows = two_depths(a4=1.0, a12=1.5, b4=1.0, b12=3.0)
    found = judged(rule("bound", min=0.4, contrast=contrast), rows, factors=DEPTHS)
    assert found["estimate"] == pytest.approx(0.5) and found["state"] == "reproduced"
    r = rule("ordering", against="b", margin=1, contrast=contrast)  # a difference of differences: 0.5 - 2
    found = judged(r, rows, factors=DEPTHS)
    assert found["estimate"] == pytest.approx(-1.5) and found["state"] == "reproduced"


def test_contrast_as_ratio():
    contrast = Contrast(factor="depth", levels=[12, 4], as_="ratio")
    rows = two_depths(a4=1.0, a12=1.5, b4=1.0, b12=3.0)
    found = judged(rule("bound", between=[1.4, 1.6], contrast=contrast), rows, factors=DEPTHS)
    assert (
        found["state"] == "reproduced"
        and found["estimate"] == pytest.approx(1.5, rel=1e-3)
        and found["unit"] == "ratio"
    )
    found = judged(rule("ratio", against="b", max=0.6, contrast=contrast), rows, factors=DEPTHS)
    assert found["state"] == "reproduced" and found["estimate"] == pytest.approx(0.5, rel=1e-3)
    r = rule("ordering", against="b", margin=1, contrast=contrast)  # margins are in the ratio itself
    assert judged(r, rows, factors=DEPTHS)["estimate"] == pytest.approx(-1.5, rel=1e-2)
    zero = rows_of({"depth": 4}, a=[0.0] * 5, b=[1.0] * 5) + rows_of({"depth": 12}, a=[1.0] * 5, b=[1.0] * 5)
    found = judged(r, zero, factors=DEPTHS)
    assert found["state"] == "inconclusive" and "no ratio" in found["why"]


@pytest.mark.parametrize(
    "scale, y, expected",
    [
        ("linear", lambda x: 3 * x + 1, 3),
        ("logx", lambda x: 2 * math.log(x), 2),
        ("logy", lambda x: math.exp(0.5 * x), 0.5),
        ("loglog", lambda x: 7 * x**-1.5, -1.5),
    ],
)
def test_slopes(scale, y, expected):
    factors = {"width": [1, 2, 4, 8]}
    rows = [
        row("a", seed, y(w) * (1 + 1e-3 * (-1) ** (seed + w)), factors={"width": w})
        for seed in range(5)
        for w in factors["width"]
    ]
    r = rule("slope", x="width", scale=scale, between=[expected - 0.1, expected + 0.1])
    found = judged(r, rows, factors=factors)
    assert found["state"] == "reproduced" and found["estimate"] == pytest.approx(expected, abs=0.01)
    assert state(replace(r, between=[expected + 0.1, expected + 0.2]), rows, factors=factors) == "not_reproduced"
    seed = [x for x in rows if x["seed"] == 0]
    fx, fy = (math.log if scale in s else float for s in (("logx", "loglog"), ("logy", "loglog")))
    per_seed = np.polyfit([fx(x["factors"]["width"]) for x in seed], [fy(x["measures"]["loss"]) for x in seed], 1)[0]
    assert per_seed == pytest.approx(expected, abs=0.01)


def test_slope_against_another_arm_is_a_difference_of_slopes():
    factors = {"width": [1, 2, 4]}
    rows = [
        row(arm, seed, s * w + 0.01 * seed * w, factors={"width": w})
        for arm, s in (("a", 2.0), ("b", 5.0))
        for seed in range(5)
        for w in (1, 2, 4)
    ]
    found = judged(rule("slope", x="width", against="b", max=-2.5), rows, factors=factors)
    assert found["state"] == "reproduced" and found["estimate"] == pytest.approx(-3)


def test_slope_of_a_diverged_seed_lies_outside():
    factors = {"width": [1, 2]}
    rows = [row("a", seed, float(w), factors={"width": w}) for seed in range(5) for w in (1, 2)]
    rows[3] = row("a", 1, status="diverged", factors={"width": 2})
    found = judged(rule("slope", x="width", max=2), rows, factors=factors)
    assert found["state"] == "inconclusive" and "4 of 5" in found["why"] and found["diverged"] == [1]


def test_slope_of_a_diverged_comparator_counts_for_neither_side():
    factors = {"width": [1, 2]}
    rows = [row("a", seed, float(w), factors={"width": w}) for seed in range(5) for w in (1, 2)]
    rows += [row("b", seed, status="diverged", factors={"width": w}) for seed in range(5) for w in (1, 2)]
    found = judged(rule("slope", x="width", against="b", max=2), rows, factors=factors)
    assert found["state"] == "inconclusive" and found["diverged"] == []


def curves(**arms):
    """Curves over the axis 0, 10, 20, ...; None is a diverged row."""
    return [
        row(
            arm,
            seed,
            status="diverged" if c is None else "ok",
            measures={} if c is None else {"curve": c, "steps": [10.0 * i for i in range(len(c))]},
        )
        for arm, each in arms.items()
        for seed, c in enumerate(each)
    ]


def falling(k, n=8):
    """A curve that first reaches 1 or less at its k-th entry, exactly 1."""
    return [2.0] * k + [1.0] * (n - k)


def test_steps_to_a_number_compares_as_at_least_as_good():
    steps = StepsTo(target=1.0, axis="steps")
    rows = curves(a=[falling(2), falling(2), falling(3), falling(2), falling(3)], b=[falling(6, 9)] * 5)
    r = rule("ratio", measure="curve", against="b", max=0.6, steps_to=steps)
    found = judged(r, rows)
    assert found["state"] == "reproduced"
    assert found["estimate"] == pytest.approx(stats.gmean([20 / 60, 20 / 60, 0.5, 20 / 60, 0.5]))
    assert unit_of(rule("bound", measure="curve", max=1, steps_to=steps), MEASURES) == "steps"


def test_steps_to_best_is_the_best_of_the_comparator_in_that_seed():
    best = StepsTo(target="best", axis="steps")
    b = [[3.0, 2.0, 1.5 + 0.1 * s, 1.4 + 0.1 * s] for s in range(5)]  # best at 30
    a = [[3.0, 1.4 + 0.1 * s, 9.0] for s in range(5)]  # exactly as good at 10; curves of unequal length
    r = rule("ratio", measure="curve", against="b", max=0.5, steps_to=best)
    found = judged(r, curves(a=a, b=b))
    assert found["state"] == "reproduced" and found["estimate"] == pytest.approx(1 / 3)
    never = [[3.0, 1.41 + 0.1 * s, 9.0] for s in range(5)]
    assert judged(r, curves(a=never, b=b))["state"] == "not_reproduced"
    up = {**MEASURES, "curve": Measure(unit="points", better="higher")}
    turned = curves(a=[[-v for v in c] for c in a], b=[[-v for v in c] for c in b])
    assert judge_rule(r, turned, up, settings())["estimate"] == pytest.approx(1 / 3)


def test_never_reached_is_infinite_and_a_sign_test_decides():
    steps = StepsTo(target=1.0, axis="steps")
    r = rule("ordering", measure="curve", against="b", steps_to=steps)
    found = judged(r, curves(a=[falling(2)] * 5, b=[falling(9)] * 5))
    assert found["state"] == "reproduced" and "5 of 5" in found["why"] and "sign test" in found["why"]
    assert found["interval"] == [None, None] and found["diverged"] == []
    assert state(r, curves(a=[falling(9)] * 5, b=[falling(2)] * 5)) == "not_reproduced"
    both = judged(r, curves(a=[falling(9)] * 5, b=[falling(9)] * 5))
    assert both["state"] == "inconclusive"  # infinity minus infinity counts for neither
    some = judged(r, curves(a=[falling(2)] * 5, b=[falling(9), *[falling(5)] * 4]))
    assert some["state"] == "reproduced" and some["estimate"] == -30


def test_a_diverged_comparator_has_no_best_that_could_be_missed():
    r = rule("ordering", measure="curve", against="b", steps_to=StepsTo(target="best", axis="steps"))
    found = judged(r, curves(a=[falling(7)] * 5, b=[None, *[falling(7)] * 4]))
    assert "1 of 5" in found["why"]  # in the other seeds the arm is exactly as late
    assert state(r, curves(a=[falling(7)] * 5, b=[None] * 5)) == "reproduced"


def test_fewer_steps_are_better_whatever_the_direction_of_the_measure():
    measures = {**MEASURES, "curve": Measure(unit="points", better="higher")}
    r = rule("ordering", measure="curve", against="b", steps_to=StepsTo(target=-1.0, axis="steps"))
    early, late = [[-v for v in falling(2)]] * 5, [[-v for v in falling(6)]] * 5
    assert judged(r, curves(a=early, b=late), measures=measures)["state"] == "reproduced"
    assert judged(r, curves(a=late, b=early), measures=measures)["state"] == "not_reproduced"
    assert judged(r, curves(a=late, b=[None] * 5), measures=measures)["state"] == "reproduced"


def test_a_curve_and_an_axis_of_other_length_cannot_be_judged():
    rows = curves(a=[falling(2)] * 5)
    rows[2]["measures"]["steps"] = [0.0]
    found = judged(rule("bound", measure="curve", max=30, steps_to=StepsTo(target=1.0, axis="steps")), rows)
    assert found["state"] == "inconclusive" and "differ in length" in found["why"]
    assert "needs steps_to" in judged(rule("bound", measure="curve", max=30), rows)["why"]


# ---- divergence ----------------------------------------------------------------------------------------------------


def test_a_diverged_comparator_counts_as_worst():
    r = rule("ordering", against="b")
    found = judged(r, rows_of(a=[1.0] * 5, b=[2.0, None, 2.1, 2.2, 2.3]))
    assert found["state"] == "reproduced" and "5 of 5" in found["why"] and found["estimate"] == pytest.approx(-1.2)
    assert (
        state(
            rule("ordering", measure="score", against="b"), rows_of(measure="score", a=[2.0] * 5, b=[1, None, 1, 1, 1])
        )
        == "reproduced"
    )
    assert state(r, rows_of(a=[3.0] * 5, b=[2.0, None, 2.1, 2.2, 2.3])) == "inconclusive"  # 4 of 5 against
    assert (
        state(rule("ratio", against="b", max=0.9), rows_of(a=[1.0] * 5, b=[2.0, None, 2.0, 2.1, 2.2])) == "reproduced"
    )
    equal = rule("equivalence", against="b", margin=0.1)
    assert state(equal, rows_of(a=[1.0] * 6, b=[None] * 6), 6) == "not_reproduced"
    assert state(equal, rows_of(a=[1.0] * 5, b=[None] * 5)) == "inconclusive"  # past either end by chance: 2 / 32


def test_a_diverged_arm_counts_against():
    r = rule("noninferiority", against="b", margin=0.1)
    assert state(r, rows_of(a=[None] * 5, b=[1.0] * 5)) == "not_reproduced"
    assert state(r, rows_of(a=[None] * 5, b=[None] * 5)) == "not_reproduced"
    assert state(r, rows_of(a=[None, 1, 1, 1, 1], b=[1.0] * 5)) == "inconclusive"
    for kind, options in (("bound", {"min": 0}), ("bound", {"max": 9}), ("bound", {"between": [0, 9]})):
        assert state(rule(kind, measure="plain", **options), rows_of(measure="plain", a=[None] * 5)) == "not_reproduced"


def test_what_a_comparator_without_direction_diverges_to_is_not_known():
    r = rule("ratio", measure="plain", against="b", max=0.9)
    assert state(r, rows_of(measure="plain", a=[1.0] * 5, b=[None] * 5)) == "inconclusive"


def test_a_diverged_level_that_is_subtracted_speaks_neither_way():
    contrast = Contrast(factor="depth", levels=[12, 4], as_="difference")
    rows = rows_of({"depth": 12}, a=around(1), b=around(2)) + rows_of({"depth": 4}, a=around(1), b=[None] * 5)
    assert state(rule("ordering", against="b", contrast=contrast), rows, factors=DEPTHS) == "inconclusive"
