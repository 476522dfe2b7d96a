"""What the tests of papers rely on: mutants are found in the source, and the checks reject what they are for."""

import pytest
import torch
from torch import nn

from repro.models.recompute import recomputing
from repro.testing import CLAUSES, check_drop_in, check_float32, faults_of, mutation


def broken(fault):
    table = {"two": 2.0}

    def method(x):
        if fault == "three":
            return 3 * x
        if fault in ("four", "five"):
            return 4 * x
        match fault:
            case "six":
                return 6 * x
        return table.get(fault, 1.0) * x

    return method


def test_faults_are_read_from_the_source():
    assert faults_of(broken) == ["three", "four", "five", "six", "two"]


def test_mutation_makes_two_tests():
    def check(method):
        assert method(1) == 1

    oracle, mutant = mutation(check, broken, lambda x: x, but=["five"])
    assert mutant.pytestmark[0].args == ("fault", ["three", "four", "six", "two"])
    oracle(lambda x: x)
    mutant("three")
    with pytest.raises(pytest.fail.Exception):
        mutation(lambda method: None, broken, lambda x: x)[1]("three")
    with pytest.raises(ValueError, match="not with \\['seven'\\]"):
        mutation(check, broken, lambda x: x, but=["seven"])


def test_float32_rejects_half_precision():
    x = 100 + torch.arange(8.0)
    check_float32(lambda x: (x.float() if x.dtype != torch.float64 else x).softmax(-1).to(x.dtype), x)
    for wrong in (lambda x: x * x.square().mean().sqrt(), lambda x: x.float()):
        with pytest.raises(AssertionError):
            check_float32(wrong, x)


class Counting(nn.Module):
    """A layer with a running mean, wrong in the way that its options name."""

    twice = scalar = fused = double = False

    def __init__(self, n, device=None, dtype=None):
        super().__init__()
        self.eps, like = 1e-5, {"device": device, "dtype": dtype}
        self.weight = nn.Parameter(torch.ones(() if self.scalar else (int(n),), **like))
        self.bias = nn.Parameter(torch.zeros(int(n), **like))
        self.register_buffer("size", torch.zeros(1, **like))

    def reset_parameters(self):
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)
        self.size.zero_()

    def forward(self, input):
        if self.training and (self.twice or not recomputing()):
            with torch.no_grad():
                self.size.add_(input.detach().square().mean())
        gain = self.weight.double().to(input.dtype) if self.double else self.weight
        return input * gain.to(input.dtype) + self.bias.to(input.dtype)


WRONG = {"twice": "recomputation", "scalar": "parameters", "double": "precision", "": "encoder"}


@pytest.mark.parametrize("fault, clause", WRONG.items())
def test_the_contract_rejects(fault, clause):
    kind = type("Broken", (Counting,), {fault: True} if fault else {})
    with pytest.raises((AssertionError, ValueError)) as caught:
        check_drop_in(kind, but=tuple({*CLAUSES} - {clause}))
    assert f"in the clause '{clause}'" in "".join(caught.value.__notes__)


def test_unknown_clauses_are_refused():
    with pytest.raises(ValueError, match="there is no clause"):
        check_drop_in(Counting, but=("nothing",))
