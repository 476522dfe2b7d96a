"""Claims that tune: every arm has its own level of the factor, and one at the edge of the grid decides nothing."""

import pytest
from synthetic import BROKEN, NOISE, ORDER, claim, maker, row

from repro.errors import ReproError

RATES = [0.1, 0.2, 0.4]
TUNE = "{factor: lr, seeds: 2}"
FACTOR = ("{e: {arms: [a, b, c, d, p]}", f"{{e: {{arms: [a, b, c, d, p], factors: {{lr: {RATES}}}}}")


@pytest.fixture
def paper(tmp_path):
    def make(rule_text=ORDER, **keys):
        return maker(tmp_path)(rule_text, **{"change": FACTOR, "tune": TUNE, **keys})

    return make


def sweep(tuned, judged, levels=None, factors=None):
    """Rows of arms: {arm: its value at each rate} on the tuning seeds, {arm: value} on seeds 0 to 4 at
    its best rate.
    """
    rows = []
    for arm, values in tuned.items():
        for lr, value in zip(RATES, values, strict=True):
            for seed in (1000, 1001):
                status = "diverged" if value is None else "ok"
                rows.append(row(arm, seed, value, status=status, factors={"lr": lr, **(factors or {})}))
    for arm, value in judged.items():
        best = (levels or {}).get(arm, 0.2)
        for seed, noise in enumerate(NOISE):
            x = value + noise * (1 if arm == "a" else -1)
            rows.append(row(arm, seed, x, factors={"lr": best, **(factors or {})}))
    return rows


INSIDE = {"a": [3, 1, 2], "b": [3, 1, 2], "c": [9, 7, 8]}
VALUES = {"a": 0.5, "b": 1.0, "c": 2.0, "p": 0.4}


def test_every_arm_is_judged_at_its_own_level(paper):
    p = paper()
    assert p.settings("cpu", "e").tuning_seeds == [1000, 1001] and p.settings("cpu", "e").tune.measure == "loss"
    found = claim(p, sweep(INSIDE, VALUES))
    assert found["state"] == "reproduced" and found["estimate"] == pytest.approx(-0.5)
    assert [(t["arm"], t["level"], t["edge"]) for t in found["tuned"]] == [
        ("a", 0.2, False),
        ("b", 0.2, False),
        ("c", 0.2, False),
    ]
    assert found["tuned"][0]["scores"] == [[0.1, 3.0], [0.2, 1.0], [0.4, 2.0]]


def test_judged_seeds_do_not_choose(paper):
    rows = sweep(INSIDE, VALUES) + [row("a", s, -9.0, factors={"lr": 0.4}) for s in range(5)]
    assert claim(paper(), rows) == claim(paper(), sweep(INSIDE, VALUES))


@pytest.mark.parametrize("arm", ["a", "b"])
@pytest.mark.parametrize("values, best", [([1, 2, 3], 0.1), ([3, 2, 1], 0.4)])
@pytest.mark.parametrize("value", [0.5, 2.0])
def test_a_best_level_at_the_edge_decides_nothing(paper, arm, values, best, value):
    rows = sweep({**INSIDE, arm: values}, {**VALUES, "a": value}, {arm: best})
    found = claim(paper(), rows)
    assert (found["state"], found["mark"]) == ("inconclusive", "edge_of_grid")
    assert f"the best lr of {arm}, {best}, lies at the edge" in found["why"].lower()


def test_an_arm_that_climbs_is_judged_where_the_climb_ends(paper):
    """Levels beyond the climb are not read, even where rows of them are at hand."""
    wide = (FACTOR[0], FACTOR[1].replace(str(RATES), str([*RATES, 0.8, 1.6])))
    p = paper(change=wide, tune="{factor: lr, seeds: 2, start: [0.1, 0.2, 0.4]}")
    rows = sweep({**INSIDE, "b": [4, 3, 2]}, VALUES, {"b": 0.8})
    missing = claim(p, rows)
    assert missing["state"] == "inconclusive" and "Rows of b at the tuning seeds are missing" in missing["why"]
    beyond = {0.8: {"b": 1, "c": -9}, 1.6: {"b": 2}}
    rows += [
        row(arm, s, x, factors={"lr": lr})
        for lr, arms in beyond.items()
        for arm, x in arms.items()
        for s in (1000, 1001)
    ]
    found = claim(p, rows)
    assert found["state"] == "reproduced"
    assert [(t["arm"], t["level"], len(t["scores"])) for t in found["tuned"]] == [
        ("a", 0.2, 3),
        ("b", 0.8, 5),
        ("c", 0.2, 3),
    ]


def test_a_level_beside_one_that_diverged_is_inside(paper):
    found = claim(paper(), sweep({**INSIDE, "a": [3, 1, None]}, VALUES))
    assert found["state"] == "reproduced" and found["tuned"][0]["scores"][2] == [0.4, None]


def test_a_control_at_the_edge_bars_reproduced_alone(paper):
    edge = {**INSIDE, "c": [9, 8, 7]}
    found = claim(paper(), sweep(edge, VALUES, {"c": 0.4}))
    assert (found["state"], found["mark"]) == ("inconclusive", "edge_of_grid") and "the control" in found["why"]
    failed = claim(paper(positive="p"), sweep({**edge, "p": [3, 1, 2]}, {**VALUES, "a": 2.0}, {"c": 0.4}))
    assert failed["state"] == "not_reproduced"


def test_a_known_good_arm_at_the_edge_bars_not_reproduced(paper):
    rows = sweep({**INSIDE, "p": [1, 2, 3]}, {**VALUES, "a": 2.0}, {"p": 0.1})
    assert claim(paper(positive="p"), rows)["mark"] == "edge_of_grid"


def test_an_arm_that_diverges_at_every_level_has_failed(paper):
    dead = {**INSIDE, "c": [None] * 3}
    values = {k: v for k, v in VALUES.items() if k != "c"}  # nothing to judge: no level was chosen
    found = claim(paper(), sweep(dead, values))
    assert found["state"] == "reproduced" and found["controls"][0]["state"] == "not_reproduced"
    method = claim(paper(), sweep({**INSIDE, "a": [None] * 3}, {"b": 1.0, "c": 2.0}))
    assert method["mark"] == "edge_of_grid" and "diverged at every level of lr" in method["why"]


def test_an_invalid_tuning_row_is_no_divergence(paper):
    rows = sweep(INSIDE, VALUES)
    lost = next(i for i, x in enumerate(rows) if x["arm"] == "a" and x["seed"] == 1001)
    rows[lost] = row("a", 1001, status="invalid", why="its A/A arms disagree", factors=rows[lost]["factors"])
    found = claim(paper(), rows)
    assert found["state"] == "inconclusive"
    assert found["why"] == "The tuning row of a, seed 1001, is invalid: its A/A arms disagree."


@pytest.mark.parametrize("levels", [[0.1, 0.2], [0.2, 0.1, 0.4], ["slow", "fast", "faster"]])
def test_a_grid_has_an_inside(paper, levels):
    change = (FACTOR[0], FACTOR[1].replace(str(RATES), str(levels)))
    with pytest.raises(ReproError, match="write at least three numbers in rising order"):
        paper(change=change)
    maker_ = [change, ("smoke: {seeds: 1, e: {}}", "smoke: {seeds: 1, e: {factors: {lr: [0.1]}}}")]
    good = [(FACTOR[0], FACTOR[1]), maker_[1]]
    assert paper(change=None, replace=good).settings("smoke", "e").factors == {"lr": [0.1]}  # never judged


def test_missing_tuning_rows_are_said(paper):
    rows = [x for x in sweep(INSIDE, VALUES) if x["seed"] != 1001]
    found = claim(paper(), rows)
    assert found["state"] == "inconclusive" and "at the tuning seeds are missing" in found["why"]


def test_each_cell_of_the_other_factors_has_its_own_level(paper):
    change = (FACTOR[0], f"{{e: {{arms: [a, b, c, d, p], factors: {{lr: {[*RATES, 0.8]}, depth: [2, 12]}}}}")
    p = paper(ORDER.replace("}", ", per: depth}"), change=change)
    rows = []
    for depth, best in ((2, 0.2), (12, 0.4)):
        for arm, value in (("a", 0.5), ("b", 1.0), ("c", 2.0)):
            for lr in (*RATES, 0.8):
                rows += [row(arm, s, abs(lr - best) + 1, factors={"lr": lr, "depth": depth}) for s in (1000, 1001)]
            rows += [row(arm, s, value + x, factors={"lr": best, "depth": depth}) for s, x in enumerate(NOISE)]
            value += 0.01
    rows = [
        {**x, "measures": {"loss": x["measures"]["loss"] + 0.003 * x["seed"]}}
        if x["arm"] == "a" and x["seed"] < 9
        else x
        for x in rows
    ]
    found = claim(p, rows)
    assert found["state"] == "reproduced"
    assert {(t["arm"], t["at"]["depth"], t["level"]) for t in found["tuned"]} == {
        (arm, depth, best) for arm in "abc" for depth, best in ((2, 0.2), (12, 0.4))
    }


def test_the_trivial_predictor_is_beaten_at_the_comparators_own_level(paper):
    p = paper(trivial="linear", positive="p")
    rows = [
        {**x, "measures": {**x["measures"], "trivial_linear": 1.5}} for x in sweep({**INSIDE, "p": [3, 1, 2]}, VALUES)
    ]
    assert claim(p, rows)["trivial"]["state"] == "reproduced" and claim(p, rows)["state"] == "reproduced"


def test_one_recipe_for_all_is_said_and_plans_no_tuning(paper):
    p = paper(ORDER.replace("}", ", at: {lr: 0.2}}"), tune="shared")
    assert p.settings("cpu", "e").tune is None
    found = claim(p, sweep({}, VALUES))
    assert found["state"] == "reproduced" and "tuned" not in found


@pytest.mark.parametrize(
    "keys, message",
    [
        ({"tune": "{factor: rate, seeds: 2}"}, "no factor 'rate'"),
        ({"tune": "{factor: lr, seeds: 1}"}, "is 1; write at least 2"),
        ({"tune": "{factor: lr, by: los}"}, "no measure 'los'"),
        ({"tune": "{factor: lr, by: trivial_linear}"}, "tunes by it"),
        ({"tune": "shared"}, "leaves factor 'lr' open"),
        ({"tune": "{factor: lr, start: [0.1, 0.4]}"}, "at least three neighbours of the levels at 'cpu'"),
        ({"tune": "{factor: lr, start: [0.1, 0.2, 0.3]}"}, "at least three neighbours of the levels at 'cpu'"),
    ],
)
def test_what_a_tuned_claim_must_say(paper, keys, message):
    with pytest.raises(ReproError, match=message):
        paper(**keys)


def test_tuning_is_part_of_the_registration(paper):
    base = paper()
    changed = [
        paper(tune="{factor: lr, seeds: 3}"),
        paper(trivial="linear"),
        paper(positive="p"),
        paper(mutants="[d]"),
        paper(fails="{measure: loss, above: 2}"),
        paper(controls=BROKEN.replace("}, expect", "}, without: idea, expect")),
    ]
    digests = {p.registration("cpu") for p in (base, *changed)}
    assert len(digests) == 1 + len(changed)
