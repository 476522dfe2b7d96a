import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from torch import nn
from torch.nn import functional as F

from repro.papers.layernorm import layer_norm
from repro.papers.rmsnorm import PartialRMSNorm, RMSNorm, rms_norm
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

N, P, K = 6, 0.4, 3  # ceil(6 * 0.4) = 3


def oracle(a, gain, eps, upstream, k):
    """Eq. 4 in Python floats, one case at a time, RMS over the first k: y and the gradients of sum(upstream * y)."""
    y, da, dgain, gains = [], [], [0.0] * a.shape[-1], gain.tolist()
    for row, up in zip(a.flatten(0, -2).tolist(), upstream.flatten(0, -2).tolist(), strict=True):
        rms = math.sqrt(math.fsum(v * v for v in row[:k]) / k)
        below = rms + eps
        y.append([g * v / below for g, v in zip(gains, row, strict=True)])
        # d rms / d a_j = a_j / (k rms) for j < k; at rms = 0 the subgradient 0
        pull = math.fsum(u * g * v for u, g, v in zip(up, gains, row, strict=True)) / below**2
        share = [v / (k * rms) if j < k and rms else 0.0 for j, v in enumerate(row)]
        da.append([u * g / below - pull * s for u, g, s in zip(up, gains, share, strict=True)])
        for j, v in enumerate(row):
            dgain[j] += up[j] * v / below
    y, da, dgain = (torch.tensor(rows, dtype=torch.float64) for rows in (y, da, dgain))
    return {"y": y.view(a.shape), "da": da.view(a.shape), "dg": dgain}


def check(norm, k=N):
    """`norm(a, normalized_shape, weight, eps)` and its gradients agree with the oracle on every hard input."""
    for name, a in hard_inputs(3, 4, N).items():
        gain, upstream = 1 + draw(N, seed=1), draw(*a.shape, seed=3)
        leaves = [t.clone().requires_grad_() for t in (a, gain)]
        got = norm(leaves[0], (N,), leaves[1], 1e-8)
        grads = torch.autograd.grad(got, leaves, upstream)
        want = oracle(a, gain, 1e-8, upstream, k)
        for key, value in zip(("y", "da", "dg"), (got.detach(), *grads), strict=True):
            assert_near(value, want[key], f"{name}: {key}")


def broken(fault, k=N):
    def norm(a, normalized_shape, gain, eps):
        if fault == "gain before the norm":
            return broken(None)(a * gain, normalized_shape, torch.ones_like(gain), eps)
        part = a[..., -k:] if fault == "last k" else a[..., : k - 1] if fault == "k rounded down" else a[..., :k]
        if fault == "centred":  # huggingface/pytorch-image-models#2380
            part = part - part.mean(-1, keepdim=True)
        rms = torch.linalg.vector_norm(part, dim=-1, keepdim=True) / part.shape[-1] ** 0.5
        if fault == "sum for mean":
            rms = torch.linalg.vector_norm(part, dim=-1, keepdim=True)
        if fault == "mean over n, not k":
            rms = torch.linalg.vector_norm(part, dim=-1, keepdim=True) / a.shape[-1] ** 0.5
        if fault == "over the batch":
            rms = torch.linalg.vector_norm(a, dim=0, keepdim=True) / a.shape[0] ** 0.5
        if fault == "mean absolute value":
            rms = part.abs().mean(-1, keepdim=True)
        if fault == "root of the squares, NaN at 0":
            rms = part.square().mean(-1, keepdim=True).sqrt()
        if fault == "detached statistics":
            rms = rms.detach()
        if fault == "half-precision statistics":
            rms = rms.bfloat16().double()
        if fault == "times the root":  # x / rsqrt(..), mosaicml/llm-foundry#371
            return a * (rms + eps) * gain
        if fault == "eps inside the root":
            return a * (rms.square() + eps).rsqrt() * gain
        if fault == "no eps":
            return a / rms.clamp_min(1e-300) * gain
        if fault == "no gain":
            return a / (rms + eps) + 0 * gain
        if fault == "gain + 1":  # Gemma's dialect
            return a / (rms + eps) * (1 + gain)
        return a / (rms + eps) * gain

    return norm


@pytest.mark.parametrize("norm", [partial(rms_norm, p=P), broken(None, K)], ids=["ours", "unbroken"])
def test_partial_oracle(norm):
    check(norm, K)


test_oracle, test_mutant_dies = mutation(check, broken, rms_norm, but=["last k", "mean over n, not k"])


@pytest.mark.parametrize("fault", ["mean over n, not k", "last k", "k rounded down"])
def test_partial_mutant_dies(fault):
    with pytest.raises(AssertionError):
        check(broken(fault, K), K)


@pytest.mark.parametrize("shape, options", [(5, {}), ((3, 5), {}), ([5], {"elementwise_affine": False})])
def test_contract(shape, options):
    options |= {"eps": 0.0}  # the twin has its eps inside the root
    check_norm_contract(partial(RMSNorm, shape, **options), partial(nn.RMSNorm, shape, **options), draw(2, 3, 5))


@pytest.mark.parametrize("shape", [5, (3, 5)])
def test_partial_contract(shape):
    check_norm_contract(partial(PartialRMSNorm, shape, p=0.3), None, 2 + draw(2, 3, 5))
    assert list(PartialRMSNorm(shape).state_dict()) == list(nn.RMSNorm(shape).state_dict())


def test_x_transformers_agrees():
    theirs = quiet_import("x_transformers.x_transformers").RMSNorm(8).double()
    ours, a = RMSNorm(8, eps=0.0, dtype=torch.float64), 3 + draw(4, 8)
    with torch.no_grad():
        theirs.g.copy_(draw(8, seed=1))
        ours.weight.copy_(theirs.g)
    assert_near(ours(a).detach(), theirs(a).detach(), rel=1e-12)


def test_d1_epsilon_outside_the_root():
    a = torch.tensor([[3e-8, 4e-8]], dtype=torch.float64)
    assert_near(rms_norm(a, 2), a / (5e-8 / math.sqrt(2) + 1e-8), rel=1e-12)
    assert RMSNorm(2).eps == PartialRMSNorm(2).eps == 1e-8
    usual = draw(4, 64)
    usual *= 0.1 / usual.square().mean(-1, keepdim=True).sqrt()  # RMS = 0.1
    assert_near(rms_norm(usual, 64), F.rms_norm(usual, (64,), eps=1e-8), rel=1e-6)  # inside or outside: no matter
    with pytest.raises(AssertionError):
        assert_near(rms_norm(1e-3 * usual, 64), F.rms_norm(1e-3 * usual, (64,), eps=1e-8), rel=0.1)


@pytest.mark.parametrize("p", [1.0, 0.5])
def test_float32_convention(p):
    check_float32(lambda a: rms_norm(a, 4, p=p), torch.tensor([[100.0, 100.5, 101.0, 101.5]]))


@pytest.mark.parametrize("n, p, k", [(15, 0.0625, 1), (16, 0.0625, 1), (17, 0.0625, 2), (100, 0.07, 7), (3, 1e-12, 1)])
def test_d2_partial_rounds_up(n, p, k):
    a = draw(2, n)
    assert_near(PartialRMSNorm(n, p, 0.0)(a).detach(), a * k**0.5 / a[:, :k].norm(dim=-1, keepdim=True), rel=1e-12)


def test_partial_flattens_several_axes():
    a = draw(2, 3, 5)
    assert_near(PartialRMSNorm((3, 5), 0.4)(a).detach(), PartialRMSNorm(15, 0.4)(a.flatten(1)).detach().view(2, 3, 5))


@pytest.mark.parametrize("p", [0.0, -1.0, 1.5, float("nan")])
def test_partial_refuses_other_shares(p):
    with pytest.raises(ValueError, match="0 < p <= 1"):
        PartialRMSNorm(8, p)
    with pytest.raises(ValueError, match="0 < p <= 1"):
        rms_norm(torch.ones(8), 8, p=p)


def test_zero_mean_equals_layernorm():
    a = 3 + draw(4, 32)
    assert_near(rms_norm(a - a.mean(-1, keepdim=True), 32, eps=0.0), layer_norm(a, 32, eps=0.0), rel=1e-12)
    assert (rms_norm(a, 32) - layer_norm(a, 32)).abs().max() > 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_gradient_at_zero_is_finite(dtype):
    a = torch.zeros(2, 8, dtype=dtype, requires_grad=True)
    for p in (1.0, 0.25):
        (slope,) = torch.autograd.grad(rms_norm(a, 8, p=p).sum(), a)
        assert_near(slope, torch.full((2, 8), 1e8), rel=0.01)  # 1 / eps


def test_gradient_at_zero_in_float16():
    a = torch.zeros(1, 8, dtype=torch.float16, requires_grad=True)  # 1 / eps is beyond 65504
    assert (torch.autograd.grad(rms_norm(a, 8).sum(), a)[0] == 1).all()


def test_eps_none_is_the_papers():
    assert RMSNorm(4, None).eps == PartialRMSNorm(4, eps=None).eps == 1e-8
    assert torch.equal(rms_norm(1e-8 * draw(2, 4), 4, eps=None), rms_norm(1e-8 * draw(2, 4), 4))


@pytest.mark.parametrize("scale", [1e-18, 1e-3, 1e15, 1e18])
@pytest.mark.parametrize("p", [1.0, 0.25])
def test_range_of_float32(scale, p):
    a = (scale * (1 + draw(3, 16))).float()
    slopes = []
    for x in (a, a.double()):
        x.requires_grad_()
        y = rms_norm(x, 16, p=p)
        slopes.append((y.detach(), *torch.autograd.grad(y, x, draw(3, 16, seed=4).to(y))))
    for got, want in zip(*slopes, strict=True):
        assert_near(got, want, rel=1e-5)


def test_overflow_of_squares_gives_zero():
    assert torch.equal(rms_norm(1e20 * draw(2, 8, dtype=torch.float32), 8), torch.zeros(2, 8))


@settings(deadline=None, max_examples=30, derandomize=True)
@given(norm_inputs())
def test_any_input(a):
    n = a.shape[-1]
    y = rms_norm(a, n)
    assert y.shape == a.shape and y.dtype == a.dtype and torch.isfinite(y).all()
    slack = 4 * torch.finfo(a.dtype).eps
    assert (y.double().square().sum(-1) <= n * (1 + slack)).all() and (y * a.sign() >= 0).all()
    torch.testing.assert_close(y, rms_norm(a.contiguous(), n), rtol=slack, atol=slack)
