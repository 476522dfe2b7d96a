"""How often a verdict errs: rates of known answer, on synthetic rows; and the same decisions as
`repro.judge.decide`.
"""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from conftest import Checkout
from repro.errors import ReproError
from repro.files.verdict import read_quality
from repro.judge import quality
from repro.judge.claims import Case, claim_parts
from repro.judge.decide import Region, decide
from repro.spec.load import load
from repro.spec.model import Paper
from repro.store import rows_digest

PAPER = """\
slug: p
title: T
authors: [A]
year: 2019
venue: V
arxiv: '1910.07467'
family: normalization
summary: S.
equation: y
headline: main
measures: {loss: {unit: nats, better: lower, positive: true}, score: {unit: points, better: higher}}
experiments: {e: {arms: [a, b], factors: {depth: [1, 2, 4]}}}
claims:
  main:
    statement: S
    paper_value: VALUE
    where: W
    fidelity: scaled
    experiment: e
    rule: RULE
profiles: {smoke: {seeds: 1, e: {}}, cpu: {seeds: N, e: {}}}
"""
AT = "at: {depth: 1}"


@pytest.fixture
def make(tmp_path: Path):
    def made(rule: str, n: int = 5, value: str = "{text: much}") -> Paper:
        path = tmp_path / "papers" / "p" / "paper.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(PAPER.replace("RULE", rule).replace("VALUE", value).replace("seeds: N", f"seeds: {n}"))
        return load(path)

    return made


def rows_of(value, n: int = 5, spread: float = 0.1, seed: int = 0) -> list[dict]:
    """A row per arm, seed and depth: `value(arm, depth)` and noise; None is a diverged row."""
    random, rows = np.random.default_rng(seed), []
    for arm in ("a", "b"):
        for depth in (1, 2, 4):
            for s in range(n):
                x = value(arm, depth) if callable(value) else value[arm]
                noise = spread * float(random.normal())
                status = "diverged" if x is None else "ok"
                measures = {} if x is None else {"loss": x + noise, "score": -x - noise}
                rows.append(
                    {
                        "experiment": "e",
                        "arm": arm,
                        "seed": s,
                        "factors": {"depth": depth},
                        "status": status,
                        "seconds": 1.0,
                        "measures": measures,
                    }
                )
    return rows


def rates(paper: Paper, rows: list[dict]) -> dict:
    document = {"paper": "p", "profile": "cpu", "rows": rows}
    return quality.assess(paper, "cpu", document)["claims"]["main"]


# ---- the same decisions ----------------------------------------------------------------------------------------------

KINDS = {  # rule, and what arm a has where the rule holds at n = 5; arm b has 1
    "bound": (f"{{kind: bound, measure: loss, arm: a, max: 2, {AT}}}", 0.5),
    "bound between": (f"{{kind: bound, measure: loss, arm: a, between: [0, 2], {AT}}}", 1.0),
    "ratio": (f"{{kind: ratio, measure: loss, arm: a, against: b, max: 0.9, {AT}}}", 0.5),
    "ordering": (f"{{kind: ordering, measure: loss, arm: a, against: b, {AT}}}", 0.5),
    "ordering, higher": (f"{{kind: ordering, measure: score, arm: a, against: b, margin: 0.2, {AT}}}", 0.2),
    "noninferiority": (f"{{kind: noninferiority, measure: loss, arm: a, against: b, margin: 0.5, {AT}}}", 1.0),
    "equivalence": (f"{{kind: equivalence, measure: loss, arm: a, against: b, margin: 0.5, {AT}}}", 1.0),
    "equivalence of a ratio": (f"{{kind: equivalence, measure: loss, arm: a, against: b, ratio: [0.5, 2], {AT}}}", 1.0),
    "unpaired": (f"{{kind: ordering, measure: loss, arm: a, against: b, pair: false, {AT}}}", 0.5),
    "slope": ("{kind: slope, measure: loss, arm: a, x: depth, scale: loglog, between: [-0.5, 0.5]}", 1.0),
    "level": (f"{{kind: ordering, measure: loss, arm: a, against: b, level: 0.99, {AT}}}", 0.2),
}


@pytest.mark.parametrize("name", KINDS)
def test_repeats_are_decided_as_decide_decides(make, name):
    rule, good = KINDS[name]
    papers, states = {n: make(rule, n) for n in range(3, 9)}, []
    for i in range(150):
        n, step = 3 + i % 6, i % 7  # from where the rule holds to where it does not
        far = (
            (lambda arm, depth, step=step: depth ** (0.15 * step))
            if name == "slope"
            else {"a": good + 0.3 * step, "b": 1.0}
        )
        rows = rows_of(far, n, spread=0.02 + 0.02 * (i % 5), seed=i)
        ((_, (part,)),) = claim_parts(papers[n], "cpu", "main", rows)
        other = None if part.other is None else np.array(part.other)
        held = quality.inside(*quality.intervals(np.array(part.values), part.level, other), part.region)
        assert bool(held) == (part.decision.state == "reproduced")
        states.append(bool(held))
    assert 0.1 < np.mean(states) < 0.95, "both answers are asked for"


def test_many_draws_at_once_and_at_any_truth():
    random = np.random.default_rng(1)
    for region in (
        Region(high=0.3),
        Region(low=-0.3),
        Region(-0.4, 0.3),
        Region(math.log(0.8), math.log(1.25), log=True),
    ):
        for n, level, m in ((3, 0.95, None), (5, 0.975, None), (8, 0.9, None), (5, 0.95, 5), (4, 0.95, 7)):
            values, other = random.normal(0, 0.2, (200, n)), None if m is None else random.normal(0.0, 0.1, (200, m))
            truth = float(random.normal(0, 0.2))
            held = quality.inside(*quality.intervals(values, level, other), region, truth)
            for i in range(200):
                against = None if other is None else list(other[i])
                assert held[i] == (decide(list(values[i] + truth), region, level, other=against).state == "reproduced")


def test_unpaired_samples_without_spread_have_the_degrees_of_freedom_of_decide():
    middle, half = quality.intervals(np.ones((1, 3)), 0.95, np.zeros((1, 3)))
    assert (middle, half) == (1.0, 0.0)


def test_clopper_pearson_is_scipys():
    for count, draws in ((0, 4000), (1, 4000), (200, 4000), (4000, 4000)):
        low, high = stats.binomtest(count, draws).proportion_ci(method="exact")
        assert quality.clopper_pearson(count, draws) == pytest.approx([low, high], abs=1e-5)


# ---- false rates -----------------------------------------------------------------------------------------------------

CHANCE = 4 * math.sqrt(0.05 * 0.95 / quality.DRAWS)  # of one simulated rate about the true one


@pytest.mark.parametrize("name", KINDS)
def test_the_false_rate_of_every_kind_is_the_nominal_one(make, name):
    rule, good = KINDS[name]
    found = rates(make(rule), rows_of({"a": good, "b": 1.0}, spread=0.02))
    nominal = 0.01 if name == "level" else 0.05
    if name == "unpaired":  # Welch's test is an approximation, on the safe side where spreads are alike
        assert 0.03 < found["false_rate"] < nominal + CHANCE
    else:  # an interval of no small part of R would make it less
        assert found["false_rate"] == pytest.approx(nominal, abs=CHANCE)
    assert found["allowed"] == nominal and found["n"] == 5
    assert found["false_interval"][0] < found["false_rate"] < found["false_interval"][1]
    assert not quality.above(found)


def test_an_equivalence_that_the_spread_drowns_is_hardly_ever_said(make):
    rule, good = KINDS["equivalence"]
    found = rates(make(rule, value="{value: 0, unit: nats}"), rows_of({"a": good, "b": 1.0}, spread=1.0))
    assert found["false_rate"] < 0.01 and found["power"] < 0.2


def test_the_worst_truth_is_one_part_at_its_edge_and_the_others_far_inside(make):
    both = f"[{{kind: bound, measure: loss, arm: a, max: 2, per: depth}}, {{kind: bound, measure: loss, arm: b, min: 0, {AT}, name: floor}}]"  # noqa: E501
    found = rates(make(both), rows_of({"a": 1.9, "b": 0.1}, spread=0.5))  # each part is close to its edge here
    assert found["false_rate"] == pytest.approx(0.05, abs=CHANCE)
    assert found["at"] in [f"bound of loss, depth {depth} at 2" for depth in (1, 2, 4)] + ["floor at 0"]


def test_a_part_that_can_hardly_hold_makes_a_false_verdict_rare(make):
    narrow = f"[{{kind: bound, measure: loss, arm: a, max: 2, {AT}}}, {{kind: bound, measure: loss, arm: b, between: [0.9, 1.1], {AT}}}]"  # noqa: E501
    found = rates(make(narrow), rows_of({"a": 1.0, "b": 1.0}, spread=0.2))
    assert found["false_rate"] < 0.03


@pytest.mark.parametrize(
    "rule",
    [
        "{kind: bound, measure: loss, arm: a, max: 2, per: depth, at_least: K}",
        "{kind: count, measure: loss, arm: a, cells: depth, at_least: K, max: 2}",
    ],
)
@pytest.mark.parametrize("least", [1, 2, 3])
def test_at_least_and_count_are_false_by_as_many_parts_as_are_missing(make, rule, least):
    found = rates(make(rule.replace("K", str(least))), rows_of({"a": 1.0, "b": 1.0}, n=5))
    failing = 3 - least + 1
    assert found["at"].count(" at 2") == failing
    # the union of `failing` chances of 0.05 / failing each, which share some of their seeds' residuals
    assert 0.05 / failing - CHANCE < found["false_rate"] < 0.05 + CHANCE
    assert not quality.above(found)


def test_parts_that_move_together_err_together(make):
    rows = rows_of({"a": 1.0, "b": 1.0})
    first = {row["seed"]: row["measures"] for row in rows if row["factors"]["depth"] == 1 and row["arm"] == "a"}
    for row in rows:
        row["measures"] = first[row["seed"]]
    found = rates(make("{kind: bound, measure: loss, arm: a, max: 2, per: depth, at_least: 1}"), rows)
    assert found["false_rate"] == pytest.approx(0.05 / 3, abs=CHANCE)


def test_an_excess_is_told_from_chance_and_found(make, monkeypatch):
    rule, good = KINDS["ordering"]
    rows = rows_of({"a": good, "b": 1.0})
    monkeypatch.setattr(quality, "t_quantile", lambda level, df: float(stats.norm.ppf(level)))  # as if n were large
    found = rates(make(rule), rows)
    assert quality.above(found) and found["draws"] == 10 * quality.DRAWS
    assert found["false_rate"] == pytest.approx(1 - stats.t.cdf(stats.norm.ppf(0.95), 4), abs=0.005)
    assert quality.summary([{"paper": "p", "profile": "cpu", "claims": {"main": found}}])["above"] == 1


# ---- power -----------------------------------------------------------------------------------------------------------


def test_power_rises_with_the_effect_and_is_students(make):
    rows = rows_of({"a": 0.9, "b": 1.0}, spread=0.1)
    powers = []
    for effect in (-0.01, -0.05, -0.1, -0.2, -0.4):
        found = rates(make(KINDS["ordering"][0], value=f"{{value: {effect}, unit: nats}}"), rows)
        assert found["power_at"] == "paper"
        powers.append(found["power"])
        (_, (part,)), *_ = claim_parts(make(KINDS["ordering"][0]), "cpu", "main", rows)
        shift = -effect * math.sqrt(5) / np.std(part.values, ddof=1)
        assert found["power"] == pytest.approx(
            stats.nct.sf(stats.t.ppf(0.95, 4), 4, shift), abs=4 * 0.5 / math.sqrt(quality.DRAWS)
        )
    assert powers == sorted(powers) and powers[0] < 0.2 and powers[-1] > 0.9


@pytest.mark.parametrize("least", [2, 3])
def test_the_judge_itself_says_reproduced_as_often(make, least):
    """Rows drawn anew with the spread of the first ones, through all that the rules of a claim go through."""
    rule = f"{{kind: ordering, measure: loss, arm: a, against: b, per: depth, at_least: {least}}}"
    paper = make(rule, value="{value: -0.15, unit: nats}")
    rows, random, runs = rows_of({"a": 0.85, "b": 1.0}, spread=0.1), np.random.default_rng(7), 600
    ((_, parts),) = claim_parts(paper, "cpu", "main", rows)
    real = np.array([part.values for part in parts])
    said = 0
    for _ in range(runs):
        mixed = random.multivariate_normal([-0.15] * 3, np.cov(real), size=5)  # the effect of the paper
        drawn = {(depth, s): mixed[s, i] for i, depth in enumerate((1, 2, 4)) for s in range(5)}
        for row in rows:
            row["measures"] = {"loss": float(drawn[row["factors"]["depth"], row["seed"]]) if row["arm"] == "a" else 0.0}
        said += Case.of(paper, "cpu", "main", rows).outcome().state == "reproduced"
    found = rates(paper, rows_of({"a": 0.85, "b": 1.0}, spread=0.1))
    assert 0.1 < found["power"] < 0.9, "a rate that tells"
    assert said / runs == pytest.approx(found["power"], abs=4 * 0.5 / math.sqrt(runs))


@pytest.mark.parametrize(
    "value, given",
    [
        ("{value: -0.5, unit: nats}", True),
        ("{low: -0.9, high: -0.2, unit: nats}", True),
        ("{value: -0.5}", False),  # of no unit
        ("{value: -0.5, unit: BLEU}", False),
        ("{value: 0.5, unit: nats}", False),  # at which the claim is false
        ("{text: much}", False),
    ],
)
def test_power_is_given_at_the_papers_effect_alone(make, value, given):
    found = rates(make(KINDS["ordering"][0], value=value), rows_of({"a": 0.5, "b": 1.0}))
    if given:
        assert found["power_at"] == "paper" and found["power"] > 0.9
    else:
        assert found["power"] is found["power_interval"] is found["power_at"] is None and found["why"]


def test_a_ratio_of_the_paper_is_taken_on_the_log_scale(make):
    rows = rows_of({"a": 0.5, "b": 1.0}, spread=0.05)
    near = rates(make(KINDS["ratio"][0], value="{value: 0.89, unit: ratio}"), rows)
    ends = rates(make(KINDS["ratio"][0], value="{low: 0.3, high: 0.89, unit: ratio}"), rows)
    assert near["power_at"] == ends["power_at"] == "paper" and near["power"] == ends["power"] < 0.3
    assert rates(make(KINDS["ratio"][0], value="{value: -1, unit: ratio}"), rows)["power"] is None


def test_exact_tests_are_not_simulated(make):
    rule = "{kind: failures, measure: loss, arm: a, above: 2, max: 0.5, at: {depth: 1}}"
    found = rates(make(rule), rows_of({"a": 0.5, "b": 1.0}))
    assert found["false_rate"] is None and "not simulated" in found["why"]


# ---- claims without chance -------------------------------------------------------------------------------------------


def test_what_is_not_sampled_has_no_rate(make):
    rows = rows_of({"a": 0.5, "b": 1.0}, spread=0.0)
    for rule in (KINDS["bound"][0], KINDS["ordering"][0]):
        found = rates(make(rule), rows)
        assert found["why"] == quality.EXACT and found["false_rate"] is found["power"] is None


def test_an_exact_part_beside_a_sampled_one(make):
    both = f"[{KINDS['ordering'][0]}, {{kind: bound, measure: score, arm: b, max: BOUND, {AT}}}]"
    rows = rows_of({"a": 0.5, "b": 1.0})
    for row in rows:
        row["measures"]["score"] = -1.0  # no spread: right or wrong
    effect = "{value: -0.5, unit: nats}"
    found = rates(make(both.replace("BOUND", "2"), value=effect), rows)
    assert found["false_rate"] == pytest.approx(0.05, abs=CHANCE) and found["power"] > 0.9
    found = rates(make(both.replace("BOUND", "-2"), value=effect), rows)  # the exact part does not hold
    assert found["false_rate"] == pytest.approx(0.05, abs=CHANCE) and found["power"] is None


@pytest.mark.parametrize("n, rate", [(4, 0.0), (5, 1 / 32), (7, 1 / 128), (8, 9 / 256)])
def test_a_sign_test_has_an_exact_rate(make, n, rate):
    found = rates(make(KINDS["ordering"][0], n), rows_of({"a": 0.5, "b": None}, n))
    assert found["false_rate"] == rate and found["false_interval"] == [rate, rate]
    assert found["power"] is None and "diverged" in found["why"] and found["at"] == "at even chances"


def test_a_sign_test_beside_a_sampled_part(make):
    both = f"[{KINDS['ordering'][0]}, {KINDS['bound'][0]}]"
    found = rates(make(both), rows_of({"a": 0.5, "b": None}))
    assert found["false_rate"] == pytest.approx(0.05, abs=CHANCE) and found["at"] == "bound of loss at 2"


def test_too_few_seeds_and_missing_rows_say_so(make):
    found = rates(make(KINDS["ordering"][0], 2), rows_of({"a": 0.5, "b": 1.0}, 2))
    assert found["false_rate"] is None and found["why"] == "there are only 2 seeds, and at least 3 are needed."
    found = rates(make(KINDS["ordering"][0]), rows_of({"a": 0.5, "b": 1.0}, 4))
    assert found["false_rate"] is None and "missing" in found["why"]


# ---- documents and the command ---------------------------------------------------------------------------------------


def test_equal_rows_give_equal_rates_and_other_claims_other_draws(make):
    paper, rows = make(KINDS["ordering"][0]), rows_of({"a": 0.9, "b": 1.0})
    document = {"paper": "p", "profile": "cpu", "rows": rows}
    one = quality.assess(paper, "cpu", document)
    assert one == quality.assess(paper, "cpu", document) and one["rows_digest"] == rows_digest(rows)
    other = replace(paper, claims={"other": paper.claims["main"]}, headline="other")
    assert quality.assess(other, "cpu", document)["claims"]["other"] != one["claims"]["main"]
    scaled = [{**row, "measures": {k: 8 * v for k, v in row["measures"].items()}} for row in rows]
    found = rates(paper, scaled)  # Student's rule knows no unit
    assert {k: found[k] for k in ("false_rate", "power")} == {
        k: one["claims"]["main"][k] for k in ("false_rate", "power")
    }


def test_documents_are_read_strictly(make, tmp_path):
    paper = make(f"[{KINDS['ordering'][0]}]", value="{value: -0.1, unit: nats}")
    whole = quality.assess(paper, "cpu", {"paper": "p", "profile": "cpu", "rows": rows_of({"a": 0.9, "b": 1.0})})
    path = tmp_path / "cpu.quality.json"
    path.write_text(quality.text(whole))
    assert read_quality(path, "again") == whole == json.loads(json.dumps(whole))
    for edit, told in (
        ({"false_rate": 1.5}, "a number from 0 to 1"),
        ({"power": None}, "power_interval"),
        ({"false_interval": [0.1]}, "false_interval"),
        ({"allowed": None}, "what is allowed"),
        ({"power_at": "there"}, "paper"),
        ({"n": -1}, "whole number"),
        ({"power": None, "power_interval": None, "power_at": None}, "write why"),
        ({"power_at": None}, "does not fit the power"),
    ):
        path.write_text(json.dumps({**whole, "claims": {"main": {**whole["claims"]["main"], **edit}}}))
        with pytest.raises(ReproError, match=told) as caught:
            read_quality(path, "again")
        assert "\n" not in str(caught.value)


def test_the_table_goes_between_its_marks(make):
    whole = quality.assess(
        make(KINDS["ordering"][0]), "cpu", {"paper": "p", "profile": "cpu", "rows": rows_of({"a": 0.9, "b": 1.0})}
    )
    page = f"before\n{quality.BEGIN}\nold\n{quality.END}\nafter\n"
    once = quality.with_table(page, [whole], ["2026-01-02", None, "2026-01-01"], "page")
    assert once.startswith("before\n") and once.endswith("\nafter\n") and "old" not in once
    assert "Rows measured from 2026-01-01 to 2026-01-02: 1 claims" in once and "| p cpu | main | 5 |" in once
    assert quality.with_table(once, [whole], ["2026-01-02", "2026-01-01"], "page") == once
    with pytest.raises(ReproError, match="^page: lacks the lines"):
        quality.with_table("nothing", [whole], [], "page")


def test_judge_stores_the_rates_and_the_checks_know_them(checkout: Checkout) -> None:
    checkout.ok("run", "demo")
    checkout.ok("judge", "demo")
    path = checkout.paper / "results" / "cpu.quality.json"
    stored = json.loads(path.read_text())
    assert stored["draws"] == quality.DRAWS and 0.03 < stored["claims"]["main"]["false_rate"] < 0.07
    shown = checkout.ok("quality", "demo")
    assert "main" in shown and "0 above 5 %" in shown and "depth" in shown
    assert json.loads(checkout.ok("quality", "--all", "--json")) == [stored]
    page = checkout.root / "page.md"
    page.write_text(f"{quality.BEGIN}\n{quality.END}\n")
    checkout.ok("quality", "--all", "--write", "page.md")
    assert "| demo cpu | main | 3 |" in page.read_text()
    assert "no such file" in checkout.refused("quality", "--all", "--write", "nothing.md")
    assert "never judged" in checkout.refused("quality", "demo", "--profile", "smoke")
    checkout.ok("index")
    assert f"results/{path.name.replace('cpu', '${item.profile}')}" in (checkout.paper / "dvc.yaml").read_text()
    assert "all checks passed" in checkout.ok("verify", "demo")
    whole = path.read_text()
    path.write_text(whole.replace('"allowed": 0.05', '"allowed": 0.04'))
    assert path.read_text() != whole
    assert "stored verdicts differ" in checkout.refused("judge", "--all", "--check", code=1)
    assert "the stored error rates DIFFER" in checkout.run("verify", "demo").stdout
    path.unlink()
    assert "stored verdicts differ" in checkout.refused("judge", "--all", "--check", code=1)
    assert "no error rates are stored" in checkout.run("verify", "demo").stdout
    checkout.ok("judge", "demo")
    assert "all checks passed" in checkout.ok("verify", "demo")


def test_a_rule_that_asks_for_the_sign_test_is_simulated_as_coins(make):
    """Five coins fall inside together one time in 32; Student's interval would be said to err one time in twenty."""
    rule = f"{{kind: ordering, measure: loss, arm: a, against: b, statistic: sign, {AT}}}"
    found = rates(make(rule, value="{value: -0.5, unit: nats}"), rows_of({"a": 0.5, "b": 1.0}))
    assert found["false_rate"] == pytest.approx(1 / 32) and found["at"] == "at even chances"
    assert found["power"] is None and found["why"].startswith("a sign test is asked for")
