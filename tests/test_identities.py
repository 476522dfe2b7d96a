"""Exact statements: verified, violated or incomplete, on every row, and counted apart from claims."""

import pytest
from synthetic import GOOD, document, maker, row, rows_of

from repro.errors import ReproError
from repro.judge import judge

EXACT = "{kind: identity, measure: loss, arm: a, bound: 1.0e-9}"


@pytest.fixture
def paper(tmp_path):
    def make(rule=EXACT, controls="[{replace: {a: d}, expect: violated}]", factors=""):
        more = f"""identities:
  exact:
    statement: It is.
    where: Eq. 1
    experiment: x
    rule: {rule}
    controls: {controls}
profiles: """
        arms = f"experiments: {{x: {{arms: [a, b, d]{factors}}}, "
        change = ("profiles: {smoke: {seeds: 1, e: {}}, cpu: {seeds: 5, ", "profiles: {cpu: {seeds: 5, x: {}, ")
        return maker(tmp_path)(replace=[("experiments: {", arms), change, ("profiles: ", more)])

    return make


def exact(p, rows):
    document_ = document(p, rows_of(**GOOD) + [{**x, "experiment": "x"} for x in rows])
    verdict = judge(p, "cpu", document_)
    assert list(verdict["claims"]) == ["main"]  # counted apart
    found = verdict["identities"]["exact"]
    assert not {"n", "interval", "level", "p", "needed_seeds"} & found.keys()
    return found


SMALL = [1e-12, -1e-10, 0.0, 5e-10, 1e-13]


def test_it_holds_on_every_row_or_is_violated(paper):
    p = paper()
    found = exact(p, rows_of(a=SMALL, d=[1.0] * 5))
    assert found["state"] == "verified" and found["parts"][0]["estimate"] == 5e-10
    assert found["why"] == "The largest error is 5e-10, below the bound 1e-09."
    bad = exact(p, rows_of(a=[*SMALL[:3], -1e-8, 0.0], d=[1.0] * 5))
    assert bad["state"] == "violated" and "1e-08 (seed 3)" in bad["why"]
    assert exact(p, rows_of(a=[*SMALL[:4], 1e-9], d=[1.0] * 5))["state"] == "violated"  # below, not at
    diverged = exact(p, rows_of(a=[*SMALL[:4], None], d=[1.0] * 5))
    assert diverged["state"] == "violated" and "diverged (seed 4)" in diverged["why"]


def test_every_element_of_a_list_and_every_level(paper):
    p = paper(factors=", factors: {depth: [1, 2]}")
    flat = rows_of({"depth": 1}, a=[[x, x] for x in SMALL]) + rows_of({"depth": 1}, d=[1.0] * 5)
    good = rows_of({"depth": 2}, a=[[x, x] for x in SMALL], d=[1.0] * 5)
    bad = rows_of({"depth": 2}, a=[[x, 1e-8] for x in SMALL], d=[1.0] * 5)
    assert exact(p, flat + good)["state"] == "verified"
    assert "seed 0, depth 2" in exact(p, flat + bad)["why"]


def test_missing_rows_are_incomplete(paper):
    found = exact(paper(), rows_of(a=SMALL[:4], d=[1.0] * 5))
    assert found["state"] == "incomplete" and "seed 4 is missing" in found["why"]


def test_a_control_must_violate_it(paper):
    p = paper()
    found = exact(p, rows_of(a=SMALL, d=SMALL))
    assert found["state"] == "incomplete" and not found["controls"][0]["ok"]
    assert found["why"].startswith("The control d in place of a came out verified")
    assert exact(p, rows_of(a=[1.0] * 5, d=SMALL))["state"] == "violated"  # a control gates verified alone
    assert exact(paper(controls="[]"), rows_of(a=SMALL))["state"] == "verified"


@pytest.mark.parametrize(
    "region, values, state",
    [
        ("min: 0.5", [0.6, 0.7, 0.8, 0.9, 1.0], "verified"),
        ("min: 0.5", [0.6, 0.7, 0.8, 0.9, 0.5], "violated"),
        ("max: 2", [1.0, 1.1, 1.2, 1.3, 1.9], "verified"),
        ("max: 2", [1.0, 1.1, 1.2, 1.3, 2.1], "violated"),
        ("between: [0, 1]", [0.1, 0.2, 0.3, 0.4, 0.9], "verified"),
        ("between: [0, 1]", [0.1, 0.2, 0.3, 0.4, -0.1], "violated"),
    ],
)
def test_a_region_holds_on_every_row(paper, region, values, state):
    rule = EXACT.replace("bound: 1.0e-9", region)
    assert exact(paper(rule, controls="[]"), rows_of(a=values))["state"] == state


def test_a_ratio_and_a_slope_hold_at_every_seed(paper):
    ratio = "{kind: ratio, measure: loss, arm: a, against: b, max: 0.5}"
    p = paper(ratio, controls="[]")
    assert exact(p, rows_of(a=[1.0] * 5, b=[3.0] * 5))["state"] == "verified"
    found = exact(p, rows_of(a=[1.0] * 5, b=[3.0] * 4 + [1.0]))
    assert (
        found["state"] == "violated" and found["parts"][0]["estimate"] == pytest.approx(1) and "seed 4" in found["why"]
    )
    slope = paper(
        "{kind: slope, measure: loss, arm: a, x: depth, between: [0.9, 1.1]}", "[]", ", factors: {depth: [1, 2]}"
    )
    rows = [row("a", s, float(d), factors={"depth": d}) for d in (1, 2) for s in range(5)]
    assert exact(slope, rows)["state"] == "verified"


def test_a_list_names_the_rule_that_fails(paper):
    rules = f"[{EXACT}, {{kind: identity, measure: loss, arm: b, min: 0.5, name: large}}]"
    rows = rows_of(a=SMALL, d=[1.0] * 5)
    assert exact(paper(rules), rows + rows_of(b=[1.0] * 5))["why"] == "Both rules hold."
    assert exact(paper(rules), rows + rows_of(b=[0.1] * 5))["why"].startswith(
        "Large: the value farthest outside is 0.1"
    )


@pytest.mark.parametrize(
    "rule, controls, message",
    [
        (EXACT.replace("bound: 1.0e-9", "bound: 1, min: 0"), "[]", "write one of bound, min, max, between"),
        ("{kind: count, measure: loss, arm: a, cells: d, at_least: 1, max: 1}", "[]", "an identity holds on every row"),
        (EXACT, "[{replace: {a: d}, expect: not_reproduced}]", "write expect: violated"),
    ],
)
def test_what_an_identity_must_say(paper, rule, controls, message):
    with pytest.raises(ReproError, match=message):
        paper(rule, controls)


def test_an_identity_is_no_claim_and_no_headline(tmp_path):
    make = maker(tmp_path)
    with pytest.raises(ReproError, match="is an identity, which is no claim; write it under identities:"):
        make(EXACT, "[{replace: {a: d}, expect: not_reproduced}]")


def test_identities_are_not_part_of_the_registration(paper):
    assert paper().registration("cpu") == paper(EXACT.replace("1.0e-9", "1.0e-6")).registration("cpu")


def test_an_empty_list_shows_nothing(paper):
    found = exact(paper(), rows_of(a=[*SMALL[:4], []], d=[1.0] * 5))
    assert (
        found["state"] == "incomplete" and found["why"] == "'loss' of a, seed 4, is an empty list, which shows nothing."
    )
