import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from torch import nn
from torch.nn import functional as F

from repro.papers.layernorm import LayerNorm, layer_norm
from repro.testing import (
    assert_near,
    check_float32,
    check_norm_contract,
    draw,
    hard_inputs,
    mutation,
    norm_inputs,
    quiet_import,
)


def oracle(a, gain, bias, eps, upstream):
    """Eq. 3 in Python floats, one case at a time: y, and the gradients of sum(upstream * y)."""
    y, da, dgain, dbias = [], [], [0.0] * a.shape[-1], [0.0] * a.shape[-1]
    for row, up in zip(a.flatten(0, -2).tolist(), upstream.flatten(0, -2).tolist(), strict=True):
        h = len(row)
        mu = math.fsum(row) / h
        sigma = math.sqrt(math.fsum((v - mu) ** 2 for v in row) / h + eps)
        normal = [(v - mu) / sigma for v in row]
        y.append([g * v + b for g, v, b in zip(gain.tolist(), normal, bias.tolist(), strict=True)])
        inner = [g * u for g, u in zip(gain.tolist(), up, strict=True)]
        mean, along = math.fsum(inner) / h, math.fsum(i * v for i, v in zip(inner, normal, strict=True)) / h
        da.append([(i - mean - v * along) / sigma for i, v in zip(inner, normal, strict=True)])
        for j in range(h):
            dgain[j] += up[j] * normal[j]
            dbias[j] += up[j]
    y, da, dgain, dbias = (torch.tensor(rows, dtype=torch.float64) for rows in (y, da, dgain, dbias))
    return {"y": y.view(a.shape), "da": da.view(a.shape), "dg": dgain, "db": dbias}


def check(norm):
    """`norm(a, normalized_shape, weight, bias, eps)` and its gradients agree with the oracle on every hard input."""
    for name, a in hard_inputs(3, 4, 6).items():
        for gain, bias in ((1 + draw(6, seed=1), draw(6, seed=2)), (torch.ones(6).double(), torch.zeros(6).double())):
            upstream = draw(*a.shape, seed=3)
            want = oracle(a, gain, bias, 1e-5, upstream)
            leaves = [t.clone().requires_grad_() for t in (a, gain, bias)]
            got = norm(leaves[0], (6,), leaves[1], leaves[2], 1e-5)
            grads = torch.autograd.grad(got, leaves, upstream)
            floor = 1e-11 if name == "constant" else 1e-25  # rounding of the mean over sqrt(eps)
            for key, value in zip(("y", "da", "dg", "db"), (got.detach(), *grads), strict=True):
                assert_near(value, want[key], f"{name}: {key}", floor=floor)


def broken(fault):
    def norm(a, normalized_shape, gain, bias, eps):
        axis = {"over the batch": 0, "over the sequence too": (-2, -1)}.get(fault, -1)
        mean, var = a.mean(axis, keepdim=True), a.var(axis, keepdim=True, correction=0)
        if fault == "unbiased variance":
            var = a.var(axis, keepdim=True)
        if fault == "variance as E[a^2] - E[a]^2":
            var = a.square().mean(axis, keepdim=True) - mean.square()
        if fault == "detached statistics":
            mean, var = mean.detach(), var.detach()
        if fault == "not centred":
            mean = torch.zeros_like(mean)
        sigma = (var + eps).sqrt()
        if fault == "eps outside the root":
            sigma = var.clamp_min(1e-300).sqrt() + eps
        if fault == "no eps":
            sigma = var.clamp_min(1e-300).sqrt()
        if fault == "divides by the variance":
            sigma = var + eps
        if fault == "gain + 1":
            gain = 1 + gain
        if fault == "labels swapped":  # as the supplement prints them
            gain, bias = bias, gain
        if fault == "bias scaled too":
            return ((a - mean) / sigma + bias) * gain
        if fault == "half-precision statistics":
            mean, sigma = mean.bfloat16().double(), sigma.bfloat16().double()
        return (a - mean) / sigma * gain + bias

    return norm


test_oracle, test_mutant_dies = mutation(check, broken, {"ours": layer_norm, "torch": F.layer_norm})


@pytest.mark.parametrize(
    "shape, options",
    [(5, {}), ((3, 5), {}), (5, {"elementwise_affine": False}), (5, {"bias": False}), ([5], {"eps": 0.1})],
)
def test_contract(shape, options):
    check_norm_contract(partial(LayerNorm, shape, **options), partial(nn.LayerNorm, shape, **options), draw(2, 3, 5))


def test_x_transformers_agrees():
    theirs = quiet_import("x_transformers.x_transformers").LayerNorm(8).double()
    ours, a = LayerNorm(8, bias=False, dtype=torch.float64), 3 + draw(4, 8)
    with torch.no_grad():
        theirs.gamma.copy_(draw(8, seed=1))
        ours.weight.copy_(theirs.gamma)
    assert_near(ours(a).detach(), theirs(a).detach())


def test_d1_epsilon_inside_the_root():
    a = torch.tensor([[-1e-3, 1e-3]], dtype=torch.float64)  # variance 1e-6 against eps 1e-5
    assert_near(layer_norm(a, 2), a / math.sqrt(1.1e-5), rel=1e-12)
    assert LayerNorm(2).eps == 1e-5
    assert_near(layer_norm(a, 2, eps=0.0), torch.tensor([[-1.0, 1.0]]), rel=1e-12)  # the paper's equation


def test_float32():
    check_float32(lambda a: layer_norm(a, 6), 100 + draw(4, 6))
    assert torch.isfinite(layer_norm(torch.full((1, 4), 6e4, dtype=torch.float16), 4)).all()


def test_case_stands_alone():
    """Sec. 3: a case is treated alike alone, in company, in training and in eval."""
    net, a = LayerNorm(6, dtype=torch.float64), draw(5, 6)
    together = net(a)
    for i in range(5):
        assert torch.equal(net(a[i : i + 1])[0], together[i])
    assert torch.equal(net.eval()(a), together)


@pytest.mark.parametrize("scale", [1e-18, 1e-3, 1e15, 1e18])
def test_range_of_float32(scale):
    a = (scale * (1 + draw(3, 16))).float()
    slopes = []
    for x in (a, a.double()):
        x.requires_grad_()
        y = layer_norm(x, 16)
        slopes.append((y.detach(), *torch.autograd.grad(y, x, draw(3, 16, seed=4).to(y))))
    for got, want in zip(*slopes, strict=True):
        assert_near(got, want, rel=1e-5)


def test_overflow_of_squares_gives_zero():
    a = 1e20 * draw(2, 8, dtype=torch.float32)  # the squares are beyond float32
    assert torch.equal(layer_norm(a, 8), torch.zeros(2, 8))


@pytest.mark.parametrize("shape", [(2, 7), (2, 1), (8,), ()])
def test_wrong_shape(shape):
    with pytest.raises(ValueError, match="normalized_shape"):
        LayerNorm((3, 8), elementwise_affine=False)(torch.zeros(shape))
    with pytest.raises(ValueError, match="normalized_shape"):
        layer_norm(torch.zeros(2, 1), 8, torch.ones(8))


@settings(deadline=None, max_examples=30, derandomize=True)
@given(norm_inputs())
def test_any_input(a):
    h = a.shape[-1]
    y = layer_norm(a, h)
    assert y.shape == a.shape and y.dtype == a.dtype and torch.isfinite(y).all()
    slack = 4 * torch.finfo(a.dtype).eps
    assert (y.double().abs() <= math.sqrt(max(h - 1, 0)) * (1 + slack) + 1e-2).all()  # the paper's y is on a sphere
    torch.testing.assert_close(y, layer_norm(a.contiguous(), h), rtol=slack, atol=slack)
