"""Whether verdicts are the same over versions of libraries, what many of them say, and the words for them."""

import copy

import pytest

from repro.judge import difference, multiplicity, same
from repro.judge.multiplicity import q_values
from repro.words import sentence, verdict_words

VERDICT = {
    "claims": {
        "parity": {
            "state": "reproduced",
            "why": "The 90 % interval [-0.03357, 0.01] lies inside the margin 0.03.",
            "estimate": 0.0123456789012345,
            "interval": [None, 0.01],
            "n": 5,
            "needed_seeds": 764,
        }
    }
}


def changed(**values):
    other = copy.deepcopy(VERDICT)
    other["claims"]["parity"].update(values)
    return other


@pytest.mark.parametrize(
    "values",
    [
        {"estimate": 0.0123456789012345 * (1 + 1e-12)},
        {"why": "The 90 % interval [-0.03358, 0.01] lies inside the margin 0.03."},
        {"needed_seeds": 765},
    ],
)
def test_numbers_may_differ_within_the_tolerance(values):
    assert same(VERDICT, changed(**values)) and same(changed(**values), VERDICT)


@pytest.mark.parametrize(
    "values",
    [
        {"state": "inconclusive"},
        {"estimate": 0.01235},
        {"estimate": None},
        {"n": 6},
        {"interval": [0.0, 0.01]},
        {"interval": [None]},
        {"why": "The 90 % interval [-0.03357, 0.01] lies outside the margin 0.03."},
        {"why": "The 90 % interval [-0.034, 0.01] lies inside the margin 0.03."},
        {"needed_seeds": 900},
        {"mark": None},
    ],
)
def test_states_names_and_counts_may_not(values):
    assert not same(VERDICT, changed(**values))
    assert difference(VERDICT, changed(**values)).startswith("claims.parity")


def test_true_is_not_one():
    assert not same({"post_hoc": True}, {"post_hoc": 1}) and same([1.0, "a"], [1.0, "a"])


def test_q_values_are_those_of_benjamini_and_hochberg():
    p = [0.01, 0.02, 0.03, 0.9]
    assert q_values(p) == pytest.approx([0.04, 0.04, 0.04, 0.9])
    assert q_values([]) == []


def test_expected_false_and_weak_claims():
    def claims(*values):
        return {f"c{i}": {"p": p, "state": state} for i, (p, state) in enumerate(values)}

    yes, no = "reproduced", "not_reproduced"
    first = {"paper": "a", "profile": "cpu", "claims": claims((1e-6, yes), (0.049, yes), (0.99, no), (0.999, no))}
    second = {"paper": "b", "profile": "cpu", "claims": claims((0.7, "inconclusive"), (0.8, no))}
    found = multiplicity([first, second])
    assert (found["claims"], found["reproduced"]) == (6, 2)
    assert found["expected_false"] == pytest.approx(0.05 * 6)  # four of six lie above one half: at most all are untrue
    assert found["weak"] == [("a", "cpu", "c1")] and found["q"][("a", "cpu", "c0")] == pytest.approx(6e-6)
    assert multiplicity([])["expected_false"] == 0


@pytest.mark.parametrize(
    "state, mark, fidelity, words",
    [
        ("reproduced", None, "same", "reproduced"),
        ("not_reproduced", None, "same", "not reproduced"),
        ("inconclusive", None, "same", "inconclusive"),
        ("reproduced", None, "scaled", "supported at small scale"),
        ("not_reproduced", None, "proxy", "contradicted on another task"),
        ("inconclusive", "not_learnt", "scaled", "undecided at small scale"),
        ("reproduced", None, "analytic", "supported in calculation"),
        ("inconclusive", "not_shown", "scaled", "not shown here, at small scale"),
        ("inconclusive", "phenomenon_only", "same", "phenomenon only"),
        ("untested", None, "same", "not tested"),
        ("verified", None, None, "verified"),
    ],
)
def test_verdict_words(state, mark, fidelity, words):
    assert verdict_words(state, mark, fidelity) == words


def test_sentences():
    assert sentence("at depth 4, it holds.") == "At depth 4, it holds." and sentence("no") == "No."
