import math
from functools import partial

import pytest
import sympy
import torch
from hypothesis import given, settings
from scipy.integrate import solve_ivp
from torch import nn
from torch.nn import functional as F

from repro.papers.eln import ELN, dyisru, layernorm_slice, rmsnorm_slice, tanh_slice
from repro.papers.eln.experiment import runge_kutta
from repro.testing import (
    assert_near,
    check_float32,
    check_norm_contract,
    draw,
    hard_inputs,
    mutation,
    norm_inputs,
    quiet_import,
    scramble,
)


def oracle(x, gain, bias, log_b, upstream):
    """gamma sqrt(C) x / sqrt(x^2 + b) + beta in Python floats, and the gradients of sum(upstream * y)."""
    c, b = x.shape[-1], math.exp(log_b)
    y, dx, dgain, dbias, dlog_b = [], [], [0.0] * c, [0.0] * c, 0.0
    for row, up in zip(x.flatten(0, -2).tolist(), upstream.flatten(0, -2).tolist(), strict=True):
        for j, (v, u) in enumerate(zip(row, up, strict=True)):
            below = math.hypot(v, math.sqrt(b))
            unit, slope = math.sqrt(c) * v / below, math.sqrt(c) * (b / below / below) / below
            y.append(gain[j].item() * unit + bias[j].item())
            dx.append(u * gain[j].item() * slope)
            dgain[j] += u * unit
            dbias[j] += u
            dlog_b -= u * gain[j].item() * slope * v / 2
    y, dx, dgain, dbias, dlog_b = (torch.tensor(t, dtype=torch.float64) for t in (y, dx, dgain, dbias, [dlog_b]))
    return {"y": y.view(x.shape), "dx": dx.view(x.shape), "dg": dgain, "db": dbias, "dlog_b": dlog_b}


def check(layer):
    """`layer(x, gain, bias, log_b)` and its gradients agree with the oracle on every hard input."""
    for name, x in hard_inputs(3, 4, 6).items():
        for start in (-3.0, math.log(6.0), 4.0):
            upstream = draw(*x.shape, seed=3)
            leaves = [x, 1 + draw(6, seed=1), draw(6, seed=2), torch.tensor([start], dtype=torch.float64)]
            want = oracle(*leaves[:3], start, upstream)
            leaves = [t.clone().requires_grad_() for t in leaves]
            got = layer(*leaves)
            grads = torch.autograd.grad(got, leaves, upstream)
            for key, value in zip(("y", "dx", "dg", "db", "dlog_b"), (got.detach(), *grads), strict=True):
                floor = 1e-20 if name == "far" else 1e-25  # of 1/h - x^2/h^3 little is left, 12 digits below 1/h
                assert_near(value, want[key], f"{name}: {key}", rel=1e-9, floor=floor)


def ours(x, gain, bias, log_b):
    module = ELN(x.shape[-1], dtype=torch.float64)
    return torch.func.functional_call(module, {"weight": gain, "bias": bias, "log_b": log_b}, (x,))


def broken(fault):
    def layer(x, gain, bias, log_b):
        c, b = x.shape[-1], log_b.exp()
        if fault == "b itself for its logarithm":
            b = log_b.abs()
        if fault == "alpha for b":  # x / sqrt(1 + (alpha x)^2), another parameter
            return gain * math.sqrt(c) * x / torch.hypot(b * x, torch.ones(1).double()) + bias
        if fault == "b squared":
            b = b * b
        if fault == "no amplitude":
            c = 1
        if fault == "amplitude of LayerNorm":
            c = c - 1
        if fault == "own channel in b":  # the sum over all channels: RMSNorm's sigma, not elementwise
            b = b + x.square().sum(-1, keepdim=True)
        if fault == "detached b":
            b = b.detach() + 0 * log_b
        if fault == "eps added":
            b = b + 1e-5
        if fault == "even":  # sign(x) sqrt(x^2 / ..) without the sign
            return gain * math.sqrt(c) * x.abs() / torch.hypot(x, b.sqrt()) + bias
        if fault == "squares overflow":
            x32 = x.float()
            return gain * math.sqrt(c) * (x32 / (x32 * x32 + b.float()).sqrt()).double() + bias
        if fault == "tanh":
            return gain * math.sqrt(c) * torch.tanh(x / b.sqrt()) + bias
        if fault == "bias scaled too":
            return gain * (math.sqrt(c) * x / torch.hypot(x, b.sqrt()) + bias)
        if fault == "no gain":
            gain = 1 + 0 * gain
        return gain * math.sqrt(c) * x / torch.hypot(x, b.sqrt()) + bias

    return layer


test_oracle, test_mutant_dies = mutation(check, broken, ours)


# --- the slices and the derivation -----------------------------------------------------------------------------------


def through_torch(norm, x, others):
    """The first channel of torch's own norm of (x, *others), for every x."""
    return norm(torch.cat([x[:, None], others.expand(len(x), -1)], 1), (len(others) + 1,), eps=0.0)[:, 0]


def check_slices(rmsnorm, layernorm):
    for c in (2, 3, 8, 50, 1024):
        others = 3 + 2 * draw(c - 1, seed=c)
        x = torch.cat([1e3 * draw(50), 3 + draw(50), torch.tensor([-1e12, 0.0, 1e12]).double()])
        assert_near(rmsnorm(x, others), through_torch(F.rms_norm, x, others), f"RMSNorm, C = {c}", rel=1e-12)
        if c > 2:
            assert_near(layernorm(x, others), through_torch(F.layer_norm, x, others), f"LayerNorm, C = {c}", rel=1e-11)


def test_slices_are_exact():
    check_slices(rmsnorm_slice, layernorm_slice)


WRONG_SLICES = {
    "amplitudes swapped": (
        lambda x, o: dyisru(x, o.square().sum(), len(o)),
        lambda x, o: dyisru(x - o.mean(), (len(o) + 1) * o.var(correction=0), len(o) + 1),
    ),
    "mean for sum": (lambda x, o: dyisru(x, o.square().mean(), len(o) + 1), layernorm_slice),
    "own channel in b": (lambda x, o: dyisru(x, o.square().sum() + x.square(), len(o) + 1), layernorm_slice),
    "unbiased variance": (rmsnorm_slice, lambda x, o: dyisru(x - o.mean(), (len(o) + 1) * o.var(), len(o))),
    "C - 1 variances": (rmsnorm_slice, lambda x, o: dyisru(x - o.mean(), len(o) * o.var(correction=0), len(o))),
    "not centred": (rmsnorm_slice, lambda x, o: dyisru(x, (len(o) + 1) * o.var(correction=0), len(o))),
    "DyT": (lambda x, o: tanh_slice(x, (o.square().sum() / (len(o) + 1)).sqrt(), len(o) + 1), layernorm_slice),
}


@pytest.mark.parametrize("name", WRONG_SLICES)
def test_slice_mutant_dies(name):
    with pytest.raises(AssertionError):
        check_slices(*WRONG_SLICES[name])


def test_bounds():
    others = draw(49)
    far = 1e9 * torch.tensor([-1.0, 1.0]).double()
    assert_near(layernorm_slice(far, others), torch.tensor([-7.0, 7.0]), rel=1e-9)  # the figure of v1
    assert_near(rmsnorm_slice(far, others), 50**0.5 * far.sign(), rel=1e-9)


def test_derivation_symbolically():
    x, sigma, c, b = sympy.symbols("x sigma C b", positive=True)
    dyt = sympy.sqrt(c) * sympy.tanh(x / (sympy.sqrt(c) * sigma))
    isru = sympy.sqrt(c) * x / sympy.sqrt(x**2 + b)
    assert sympy.simplify(dyt.diff(x) - (1 - dyt**2 / c) / sigma) == 0  # sigma held
    assert sympy.simplify(isru.diff(x) - (1 - isru**2 / c) * isru / x) == 0  # 1 / sigma = y / x
    assert sympy.simplify(isru.diff(x) - (1 - isru**2 / c) / sigma) != 0
    p, q = sympy.symbols("p q", real=True)  # LayerNorm of (x, p, q), against its slice
    mean, others = (x + p + q) / 3, (p + q) / 2
    variance = sum((v - mean) ** 2 for v in (x, p, q)) / 3
    spread = ((p - others) ** 2 + (q - others) ** 2) / 2
    assert sympy.simplify((x - mean) ** 2 / variance - 2 * (x - others) ** 2 / ((x - others) ** 2 + 3 * spread)) == 0


def test_derivation_numerically():
    c, sigma = 50, 0.7
    b, xs = c * sigma**2, torch.logspace(-2, 1, 200, dtype=torch.float64) * 5
    fixed, coupled = lambda x, y: (1 - y * y / c) / sigma, lambda x, y: (1 - y * y / c) * y / x
    for rate, want in ((fixed, tanh_slice(xs, sigma, c)), (coupled, dyisru(xs, b, c))):
        options = {"t_eval": xs.tolist(), "rtol": 1e-11, "atol": 1e-12}
        found = solve_ivp(rate, (float(xs[0]), float(xs[-1])), [float(want[0])], **options)
        assert_near(torch.tensor(found.y[0]), want, rel=1e-8)
        own = runge_kutta(rate, xs.tolist(), float(want[0]))
        assert_near(torch.tensor(own, dtype=torch.float64), want, rel=1e-5)


def test_slope_of_rmsnorm():
    v = draw(7)
    sigma = v.square().mean().sqrt()
    jacobian = torch.autograd.functional.jacobian(lambda t: F.rms_norm(t, (7,), eps=0.0), v)
    assert_near(jacobian.diagonal(), (1 - (v / sigma) ** 2 / 7) / sigma, rel=1e-12)


def test_x_transformers_agrees_with_the_tanh():
    theirs = quiet_import("x_transformers.x_transformers").DynamicTanh(9, init_alpha=1 / (3 * 0.5)).double()
    assert_near(tanh_slice(draw(4, 9), 0.5, 9), 3 * theirs(draw(4, 9)).detach(), rel=1e-7)  # their alpha is a float32


def test_one_shared_b_is_no_rmsnorm():
    x = draw(64, 50) * (1 + draw(64, 1).exp())
    assert (ELN(50, dtype=torch.float64)(x) - F.rms_norm(x, (50,))).abs().max() > 0.5


# --- the layer --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shape, options", [(5, {}), ((3, 5), {}), (5, {"elementwise_affine": False}), ([5], {"bias": False})]
)
def test_contract(shape, options):
    check_norm_contract(partial(ELN, shape, **options), None, draw(2, 3, 5))


@pytest.mark.parametrize("options", [{}, {"elementwise_affine": False}, {"bias": False}, {"b_init": 2.0}])
def test_factory(options):
    fresh, abstract = ELN(8, dtype=torch.float64, **options), ELN(8, device="meta", **options)
    twin = nn.LayerNorm(8, **{k: v for k, v in options.items() if k != "b_init"})
    assert list(fresh.state_dict()) == [*twin.state_dict(), "log_b"]
    assert all(t.dtype == torch.float64 for t in fresh.parameters()) and all(t.is_meta for t in abstract.parameters())
    rebuilt = scramble(abstract.to_empty(device="cpu").double())
    rebuilt.reset_parameters()
    assert all(torch.equal(t, fresh.state_dict()[name]) for name, t in rebuilt.state_dict().items())
    loaded = ELN(8, dtype=torch.float64, **options)
    loaded.load_state_dict(scramble(fresh).state_dict())
    assert torch.equal(loaded(draw(3, 8)), fresh(draw(3, 8)))
    assert "b_init=" in repr(fresh)


@pytest.mark.parametrize("shape", [4, 64, (3, 5)])
def test_d1_initial_b_is_c(shape):
    layer = ELN(shape, dtype=torch.float64)
    c = math.prod(layer.normalized_shape)
    assert layer.log_b.item() == pytest.approx(math.log(c))
    x = 1e-4 * draw(2, *layer.normalized_shape)
    assert_near(layer(x).detach(), x, rel=1e-6)  # slope 1 at 0
    assert ELN(shape, b_init=0.5).log_b.item() == pytest.approx(math.log(0.5))


def test_d2_b_stays_positive():
    layer = ELN(8, b_init=0.1)
    optimizer = torch.optim.SGD(layer.parameters(), lr=100.0)
    for seed in range(5):
        optimizer.zero_grad()
        (layer(draw(4, 8, seed=seed, dtype=torch.float32)) - 1e3).square().mean().backward()
        nn.utils.clip_grad_norm_(layer.parameters(), 0.1)
        optimizer.step()
        assert layer.log_b.exp() > 0 and torch.isfinite(layer(torch.ones(8))).all()
    assert list(dict(layer.named_parameters())) == ["weight", "bias", "log_b"]


def test_d3_amplitude_and_no_centring():
    far = torch.tensor([[1e9, -1e9, 0.0, 1e9]])
    assert_near(ELN(4)(far).detach(), 2 * far.sign(), rel=1e-6)  # sqrt(C), not sqrt(C - 1)
    x = draw(3, 4, dtype=torch.float32)
    layer = ELN(4)
    assert_near(layer(x)[:, :1].detach(), layer(torch.cat([x[:, :1], x[:, 1:] + 9], 1))[:, :1].detach())  # elementwise


def test_d4_no_square_overflows():
    layer = ELN(4)
    check_float32(layer, torch.tensor([[0.1, 300.0, -2.5, 6e4]]))  # 300 squared overflows float16
    big = torch.tensor([[1e30, -1e30, 0.0, 1e-30]], requires_grad=True)  # squares beyond float32, both ways
    y = layer(big)
    assert_near(y.detach(), torch.tensor([[2.0, -2.0, 0.0, 1e-30]]), rel=1e-6)
    assert torch.isfinite(torch.autograd.grad(y.sum(), big)[0]).all()


@pytest.mark.parametrize("b_init", [0.0, -1.0, math.inf, math.nan])
def test_bad_b_init(b_init):
    with pytest.raises(ValueError, match="b_init > 0"):
        ELN(8, b_init=b_init)


def test_bad_arguments():
    with pytest.raises(ValueError, match="normalized_shape"):
        ELN(8)(torch.zeros(2, 1))
    with pytest.raises(TypeError, match="x.float"):
        ELN(8)(torch.ones(2, 8, dtype=torch.long))
    with pytest.raises(ValueError, match="c > 0"):
        dyisru(torch.ones(3), 1.0, 0)
    with pytest.raises(TypeError):
        ELN(8, eps=1e-5)


@settings(deadline=None, max_examples=30, derandomize=True)
@given(norm_inputs())
def test_any_input(x):
    y = ELN(x.shape[-1], b_init=1.0, elementwise_affine=False)(x)
    assert y.shape == x.shape and y.dtype == x.dtype and torch.isfinite(y).all()
    slack = 4 * torch.finfo(x.dtype).eps
    assert (y.double().abs() <= math.sqrt(x.shape[-1]) * (1 + slack)).all() and (y * x.sign() >= 0).all()
