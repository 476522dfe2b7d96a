import copy
import math
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from repro.papers.mish import Mish, experiment, mish
from repro.testing import check_drop_in, check_extremes, check_float32, check_signature, draw, mutation

POINTS = [-1e300, -800.0, -90.0, -20.0, -4.0, -1.192431, -0.3, -1e-9, 0.0, 1e-9, 0.3, 1.491, 4.0, 8.0, 19.9, 20.1, 90.0]
POINTS += [800.0, 1e300]
CPU = torch.device("cpu")


def oracle(x):
    """(f, f') in Python floats, from w = e^x or its inverse: tanh(softplus) = w (w + 2) / (w^2 + 2 w + 2)."""
    if x > 300:
        return x, 1.0
    if x > 0:  # divided by w^2, v = e^-x
        v = math.exp(-x)
        top, below = 1 + 2 * v, 1 + 2 * v + 2 * v * v
        gate, slope = top / below, 4 * v * v * (1 + v) / below**2
    else:
        w = math.exp(x)
        below = w * w + 2 * w + 2
        gate, slope = w * (w + 2) / below, 4 * w * (w + 1) / below**2
    return x * gate, gate + (x * slope if slope else 0.0)


def check(f):
    x = torch.tensor(POINTS, dtype=torch.float64, requires_grad=True)
    y = f(x)
    (grad,) = torch.autograd.grad(y.sum(), x)
    for point, *got in zip(POINTS, y.tolist(), grad.tolist(), strict=True):
        for name, a, want in zip(("f", "f'"), got, oracle(point), strict=True):
            slack = 1e-290 if name == "f" else 1e-14
            assert math.isclose(a, want, rel_tol=1e-12, abs_tol=slack), f"{name} at {point}: {a}, want {want}"


def broken(fault):
    def f(x):
        match fault:
            case "e^x before the logarithm":
                return x * torch.tanh(torch.log(1 + torch.exp(x)))
            case "log1p without the linear branch":
                return x * torch.tanh(torch.log1p(torch.exp(x)))
            case "threshold of 5":
                return x * torch.tanh(F.softplus(x, threshold=5.0))
            case "half gate":
                return x * torch.tanh(F.softplus(x) / 2)
            case "sigmoid for tanh":
                return x * torch.sigmoid(F.softplus(x))
            case "swish":
                return F.silu(x)
            case "gate without x":
                return torch.tanh(F.softplus(x))
            case "softplus to the base 2":
                return x * torch.tanh(F.softplus(x, beta=math.log(2)))
            case "gate detached":
                return x * torch.tanh(F.softplus(x)).detach()
            case "hard":
                return x / 2 * (x + 2).clamp(0, 2)
        return x * torch.tanh(F.softplus(x))

    return f


test_oracle, test_mutant_dies = mutation(check, broken, {"mish": mish, "Mish": Mish(), "torch": F.mish})


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_against_torch_at_extremes(dtype):
    """Values and gradients of torch.nn.Mish, and finite ones, on [-1e4, 1e4]."""
    check_extremes(Mish(), nn.Mish(), dtype)


def test_contract():
    check_drop_in(Mish, "act", but=("compilation", "export", "onnx"))  # these in tests/test_drop_in.py alone
    check_float32(mish, torch.linspace(-90, 90, 301))
    for public in (mish, Mish):
        check_signature(public)
    with pytest.raises(TypeError, match="x.float()"):
        mish(torch.ones(3, dtype=torch.long))
    x = draw(5)
    y = x.clone()
    assert Mish(inplace=True)(y) is y and torch.equal(y, mish(x)) and not Mish().state_dict()
    assert repr(Mish()) == "Mish()" and repr(Mish(True)) == "Mish(inplace=True)"
    assert torch.equal(copy.deepcopy(Mish())(x), mish(x))


@pytest.mark.parametrize("x", [20.0, 20.5, 60.0, 100.0, 709.0, 1e4])
def test_d1_softplus_is_x_itself_above_20(x):
    assert mish(torch.tensor(x)).item() == x  # float32
    point = torch.tensor(x, dtype=torch.float64)
    assert mish(point).item() == x and math.tanh(math.log1p(math.exp(min(x, 700.0)))) == 1.0


def test_d2_autograd_goes_through_twice():
    x = torch.cat([draw(4), torch.tensor([-30.0, 25.0], dtype=torch.float64)]).requires_grad_()
    assert torch.autograd.gradcheck(mish, x) and torch.autograd.gradgradcheck(mish, x)


def test_facts():
    facts = partial(experiment.function, seed=0, config=experiment.Function(points=200), device=CPU)
    ours = facts("mish")
    assert ours["least"] == pytest.approx(-0.3088, abs=5e-5) and ours["least_at"] == pytest.approx(-1.1924, abs=5e-5)
    assert ours["slope_at_0"] == pytest.approx(0.6, abs=1e-15) and ours["slope_error"] < 1e-12 and ours["digits"] < 16
    assert facts("exponential")["digits"] == 1e9 and facts("half_gate")["slope_at_0"] == pytest.approx(1 / 3)


def test_half_gate_is_a_shifted_swish():
    x = draw(50)
    torch.testing.assert_close(experiment.of("half_gate")(x), x * torch.sigmoid(x - math.log(2)))
