import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from repro.papers.golu import GoLU, experiment, golu
from repro.testing import check_drop_in, check_float32, draw, mutation

POINTS = [-1e300, -800.0, -90.0, -7.0, -4.0, -0.567143, -1e-9, 0.0, 1e-9, 0.3, 2.239, 9.0, 40.0, 800.0, 1e300]
CASES = [(1.0, 1.0, 1.0), (0.8, 1.2, 0.9), (2.0, 1e-3, 3.0), (1.0, 50.0, 0.1)]
CPU = torch.device("cpu")


def oracle(x, alpha, beta, gamma):
    """(f, f') in Python floats."""
    z = -gamma * x
    inner = beta * math.exp(z) if z < 700 else math.inf
    gate = alpha * math.exp(-inner)
    return x * gate, gate + (gate * gamma * x * inner if gate else 0.0)


def check(f):
    for case in CASES:
        x = torch.tensor(POINTS, dtype=torch.float64, requires_grad=True)
        y = f(x, *case)
        (grad,) = torch.autograd.grad(y.sum(), x)
        for point, *got in zip(POINTS, y.tolist(), grad.tolist(), strict=True):
            for name, a, want in zip(("f", "f'"), got, oracle(point, *case), strict=True):
                slack = 1e-290 if name == "f" else 1e-13
                assert math.isclose(a, want, rel_tol=1e-10, abs_tol=slack), f"{name} at {point}, {case}: {a} {want}"


def broken(fault):
    def f(x, alpha, beta, gamma):
        z = math.log(beta) - gamma * x
        match fault:
            case "no bound: NaN far below 0":
                return x * alpha * torch.exp(-beta * torch.exp(-gamma * x))
            case "input clamped":
                return x.clamp(min=-3.0) * alpha * torch.exp(-torch.exp(z.clamp(max=10)))
            case "bound of 3":
                return x * alpha * torch.exp(-torch.exp(z.clamp(max=3)))
            case "mirrored":
                return x * (1 - alpha * torch.exp(-torch.exp((math.log(beta) + gamma * x).clamp(max=10))))
            case "beta and gamma exchanged":
                return x * alpha * torch.exp(-torch.exp((math.log(gamma) - beta * x).clamp(max=10)))
            case "alpha inside":
                return x * torch.exp(-alpha * torch.exp(z.clamp(max=10)))
            case "density for the law":
                return x * alpha * torch.exp(-z.neg() - torch.exp(z.clamp(max=10)))
            case "sigmoid":
                return x * alpha * torch.sigmoid(-z)
            case "gate detached":
                return x * (alpha * torch.exp(-torch.exp(z.clamp(max=10)))).detach()
            case "gate alone":
                return alpha * torch.exp(-torch.exp(z.clamp(max=10))) + 0 * x
        return x * alpha * torch.exp(-torch.exp(z.clamp(max=10)))

    return f


test_oracle, test_mutant_dies = mutation(check, broken, golu)


def test_gate_is_the_gumbel_law():
    from scipy import stats

    x = torch.linspace(-6, 20, 200, dtype=torch.float64)
    torch.testing.assert_close(golu(x), x * torch.from_numpy(stats.gumbel_r.cdf(x.numpy())), rtol=1e-12, atol=1e-300)
    mirrored = x * torch.from_numpy(stats.gumbel_l.cdf(x.numpy()))
    torch.testing.assert_close(experiment.Mirrored()(x), mirrored, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_against_float64_at_extremes(dtype):
    """Values and gradients on [-1e4, 1e4] are finite, and those of float64 but for rounding."""
    x = torch.cat([torch.linspace(-1e4, 1e4, 4001), torch.linspace(-120, 120, 4801), torch.tensor([1e-30, -1e-30])])
    leaf = x.to(dtype).requires_grad_()
    exact = leaf.detach().double().requires_grad_()
    for act in (GoLU(), GoLU(0.8, 1.2, 0.9)):
        y, want = act(leaf), act(exact)
        got = torch.autograd.grad(y, leaf, torch.ones_like(y))[0]
        slope = torch.autograd.grad(want.sum(), exact)[0]
        assert y.dtype == dtype and y.isfinite().all() and got.isfinite().all()
        rounding = 4 * torch.finfo(dtype).eps
        torch.testing.assert_close(y.double(), want, rtol=rounding, atol=rounding)
        torch.testing.assert_close(got.double(), slope, rtol=rounding, atol=rounding)


def test_contract():
    check_drop_in(GoLU, "act", but=("compilation", "export", "onnx"))  # these in tests/test_drop_in.py alone
    check_float32(golu, torch.linspace(-90, 90, 301))
    with pytest.raises(TypeError, match="x.float()"):
        golu(torch.ones(3, dtype=torch.long))
    assert repr(GoLU()) == "GoLU(alpha=1.0, beta=1.0, gamma=1.0)" and not GoLU().state_dict()
    assert torch.equal(copy.deepcopy(GoLU(0.8))(draw(5)), golu(draw(5), 0.8))


def test_d1_no_infinity_far_below_0():
    x = torch.tensor([-1e4, -745.0, -100.0, -11.0], dtype=torch.float64, requires_grad=True)
    y = golu(x)
    assert not y.any() and not torch.autograd.grad(y.sum(), x)[0].any() and math.exp(-math.exp(10)) == 0
    near = torch.tensor([-6.5, -3.0, 5.0], dtype=torch.float64, requires_grad=True)
    assert golu(near)[0] != 0 and torch.autograd.gradgradcheck(golu, near)
    naive = experiment.slope(experiment.of("plain_autograd"), torch.tensor([-100.0]))
    assert naive.isnan().all()  # what the authors' kernel replaces by 0


@pytest.mark.parametrize("case", [(0.0, 1.0, 1.0), (1.0, -1.0, 1.0), (1.0, 1.0, 0.0), (1.0, math.nan, 1.0)])
def test_d2_constants_are_above_0(case):
    for call in (GoLU, lambda *constants: golu(torch.ones(1), *constants)):
        with pytest.raises(ValueError, match="above 0"):
            call(*case)


def test_facts():
    ours = experiment.function("golu", 0, experiment.Function(points=200), CPU)
    omega = 0.5671432904097838  # W(1), by hand
    assert ours["slope_at_0"] == pytest.approx(1 / math.e, abs=1e-15) and ours["not_finite"] == 0
    assert ours["least_at"] == pytest.approx(-omega, abs=1e-4) and ours["gate_error"] < 1e-12
    assert ours["least"] == pytest.approx(-omega * math.exp(-1 / omega), abs=1e-9)
    for f, want in ((F.relu, 0.5 - 0.5 / math.pi), (nn.Identity(), 1.0)):
        assert experiment.gaussian_variance(f, CPU) == pytest.approx(want, abs=1e-7)


def test_one_random_layer():
    config = experiment.Latent(images=8, filters=4)
    found = {arm: experiment.latent(arm, 3, config, CPU)["variance"] for arm in ("golu", "relu", "golu_mirrored")}
    assert found["golu"] < found["golu_mirrored"] and 0.2 < found["relu"] < 0.6
