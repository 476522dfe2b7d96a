import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from torch import nn
from torch.nn import functional as F

from repro.papers.region_norm import RegionNormB, RegionNormL, region_norm
from repro.testing import (
    assert_near,
    assert_same_outcome,
    check_copies,
    check_dtypes,
    check_factory,
    check_gradients,
    check_layouts,
    check_vmap,
    draw,
    hard_inputs,
    mutation,
    norm_inputs,
    scramble,
)

SHAPE, EPS = (3, 2, 3, 4), 1e-5
MASK = (draw(3, 1, 3, 4, seed=9) > 0.3).double()
MASK[2] = 0  # one sample without a hole


def oracle(x, mask, eps, upstream, batchwise):
    """Section 3 in Python floats, one region at a time: x^, and the gradient of sum(upstream * x^)."""
    y, dx = torch.zeros_like(x), torch.zeros_like(x)
    samples = [range(len(x))] if batchwise else [[b] for b in range(len(x))]
    for group in samples:
        for c in range(x.shape[1]):
            for inside in (0.0, 1.0):
                at = [
                    (b, c, i, j)
                    for b in group
                    for i in range(x.shape[2])
                    for j in range(x.shape[3])
                    if mask[b, 0, i, j] == inside
                ]
                if not at:
                    continue
                values, ups, n = [x[p].item() for p in at], [upstream[p].item() for p in at], len(at)
                mu = math.fsum(values) / n
                below = math.sqrt(
                    math.fsum((v - mu) ** 2 for v in values) / n + eps * (mask.numel() / n if batchwise else 1)
                )
                normal = [(v - mu) / below for v in values]
                mean, along = math.fsum(ups) / n, math.fsum(u * v for u, v in zip(ups, normal, strict=True)) / n
                for p, v, u in zip(at, normal, ups, strict=True):
                    y[p], dx[p] = v, (u - mean - v * along) / below
    return {"y": y, "dx": dx}


def check(norm, batchwise=False):
    """`norm(x, mask, eps)` and its gradient agree with the oracle on every hard input."""
    for mask in (MASK, 1 - MASK, MASK.roll(1, 0).flip(3)):
        for name, x in hard_inputs(*SHAPE).items():
            leaf, upstream = x.clone().requires_grad_(), draw(*SHAPE, seed=3)
            y = norm(leaf, mask, EPS)
            (dx,) = torch.autograd.grad(y, leaf, upstream)
            want = oracle(x, mask, EPS, upstream, batchwise)
            floor = 1e-9 if name in ("constant", "far") else 1e-25  # rounding of the mean over sqrt(eps)
            assert_near(y.detach(), want["y"], f"{name}: y", floor=floor)
            assert_near(dx, want["dx"], f"{name}: dx", floor=floor, rel=1e-6)


def broken(fault, batchwise=False):
    def norm(x, mask, eps):
        axes = (0, 2, 3) if batchwise != (fault == "other axes") else (2, 3)
        if fault == "channels together":
            axes = (1, 2, 3)
        y = torch.zeros_like(x)
        for number, region in enumerate((mask, 1 - mask)):
            size = region.sum(axes, keepdim=True).clamp(min=1)
            if fault == "channels together":
                size = size * x.shape[1]
            if fault == "divided by all pixels":  # the mean of x * mask
                size = torch.full_like(size, region[0].numel() * (len(x) if batchwise else 1))
            mean = (x * region).sum(axes, keepdim=True) / size
            if fault == "mean of the whole image":
                mean = x.mean(axes, keepdim=True)
            centred = (x - mean) * region
            variance = centred.square().sum(axes, keepdim=True) / (size - float(fault == "unbiased variance")).clamp(
                min=1
            )
            if fault == "pixels of the hole count as zeros":  # the complement left in the square
                variance = (x * region - mean).square().mean(axes, keepdim=True)
            if fault == "variance of the whole image":
                variance = x.var(axes, correction=0, keepdim=True)
            if fault == "detached statistics":
                centred, variance = (x - mean.detach()) * region, variance.detach()
            if fault == "only the valid region" and number == 0:
                y = y + x * region
                continue
            dilution = mask.numel() / size if batchwise and fault != "eps not diluted" else 1
            if fault == "eps diluted":
                dilution = mask[0].numel() / size
            root = (variance + eps * dilution).sqrt()
            if fault == "eps outside the root":
                root = variance.clamp_min(1e-300).sqrt() + eps
            y = y + centred / root
        return y

    return norm


def their_region(x, mask, eps):
    """The detour of rn.py: the complement filled with the mean, torch's batch norm, times the root of the region's
    share.
    """
    size = mask.sum((0, 2, 3)).clamp(min=1)
    filled = x * mask + (1 - mask) * ((x * mask).sum((0, 2, 3)) / size)[None, :, None, None]
    return F.batch_norm(filled, None, None, training=True, eps=eps) * (size / mask.numel()).sqrt()[None, :, None, None]


def theirs(x, mask, eps):
    return their_region(x * mask, mask, eps) + their_region(x * (1 - mask), 1 - mask, eps)


@pytest.mark.parametrize("norm", [partial(region_norm, batchwise=True), broken(None, True)], ids=["ours", "unbroken"])
def test_batchwise_oracle(norm):
    check(norm, batchwise=True)


test_oracle, test_mutant_dies = mutation(check, broken, region_norm, but=["eps not diluted"])


@pytest.mark.parametrize("fault", ["other axes", "unbiased variance", "eps not diluted", "detached statistics"])
def test_batchwise_mutant_dies(fault):
    with pytest.raises(AssertionError):
        check(broken(fault, True), batchwise=True)


def test_two_instance_norms_of_torch():
    """The left half as hole: each half is an instance norm of its own, outputs and gradients."""
    for name, x in hard_inputs(2, 3, 4, 6).items():
        mask, (a, b) = torch.zeros(2, 1, 4, 6), (x.clone().requires_grad_() for _ in range(2))
        mask[..., :2] = 1
        want = torch.cat([F.instance_norm(b[..., :2], eps=EPS), F.instance_norm(b[..., 2:], eps=EPS)], -1)
        got, upstream = region_norm(a, mask, EPS), draw(*x.shape, seed=4)
        floor = 1e-8 if name in ("constant", "far") else 1e-25
        assert_near(got.detach(), want.detach(), name, floor=floor)
        assert_near(
            torch.autograd.grad(got, a, upstream)[0],
            torch.autograd.grad(want, b, upstream)[0],
            name,
            rel=1e-6,
            floor=1e-9,
        )


# --- departures ------------------------------------------------------------------------------------------------------


def test_d1_a_sample_does_not_see_the_others():
    x, changed = draw(*SHAPE), draw(*SHAPE)
    changed[1] += 7
    for layer in (
        partial(region_norm, mask=MASK),
        RegionNormL(2, dtype=torch.float64),
        partial(RegionNormB(2, dtype=torch.float64), mask=MASK),
    ):
        assert torch.equal(layer(x)[[0, 2]], layer(changed)[[0, 2]])
    for layer in (partial(region_norm, mask=MASK, batchwise=True), RegionNormL(2, batchwise=True, dtype=torch.float64)):
        assert not torch.equal(layer(x)[[0, 2]], layer(changed)[[0, 2]])


@pytest.mark.parametrize("eps", [1e-5, 0.1])
def test_d2_batchwise_is_the_detour_of_the_authors(eps):
    x = 3 + draw(*SHAPE)
    assert_near(region_norm(x, MASK, eps, batchwise=True), theirs(x, MASK, eps), rel=1e-10)
    one = x[:1]  # of a single sample the axes are the same: what is left is the place of eps
    gap = (region_norm(one, MASK[:1], eps) - theirs(one, MASK[:1], eps)).abs().max()
    assert gap < 1e-4 if eps == 1e-5 else gap > 1e-2


def test_d3_biases_act_on_their_region():
    layer = scramble(RegionNormB(2, dtype=torch.float64))
    x, hole = draw(*SHAPE), MASK.expand(SHAPE) == 1
    y = layer(x, MASK)
    plain = region_norm(x, MASK)
    for region, gamma, beta in (
        (hole, layer.foreground_gamma, layer.foreground_beta),
        (~hole, layer.background_gamma, layer.background_beta),
    ):
        want = plain * (1 + gamma.view(-1, 1, 1)) + beta.view(-1, 1, 1)
        assert_near(y[region].detach(), want[region].detach(), rel=1e-12)
    both = (layer.foreground_beta + layer.background_beta).view(-1, 1, 1)  # theirs adds both everywhere
    assert ((y - plain * (1 + gamma.view(-1, 1, 1)))[~hole] - both.expand(SHAPE)[~hole]).abs().min() > 0.4


def test_d4_empty_and_flat_regions():
    x = draw(2, 3, 4, 4).requires_grad_()
    assert_near(region_norm(x, torch.zeros(2, 1, 4, 4)).detach(), F.instance_norm(x, eps=EPS).detach(), rel=1e-10)
    assert_near(
        region_norm(x, torch.ones(2, 1, 4, 4), batchwise=True).detach(),
        F.batch_norm(x, None, None, training=True).detach(),
        rel=1e-10,
    )
    dot = torch.zeros(2, 1, 4, 4)
    dot[..., 1, 2] = 1
    y = region_norm(x, dot)
    assert (y[..., 1, 2] == 0).all()
    assert torch.isfinite(torch.autograd.grad(y.square().sum(), x)[0]).all()
    white = torch.where(MASK == 1, 1.0, draw(*SHAPE))
    assert_near(region_norm(white, MASK) * MASK, torch.zeros(SHAPE).double(), floor=1e-12)


def test_d5_works_in_float32():
    x, layer = (100 + draw(2, 3, 6, 6)).bfloat16(), RegionNormL(3)
    mask = (draw(2, 1, 6, 6, seed=1) > 0).bfloat16()
    assert torch.equal(region_norm(x, mask), region_norm(x.float(), mask.float()).bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(x), layer(x.float()).bfloat16()) and layer(x).dtype == torch.bfloat16
    half = RegionNormL(3).bfloat16()
    assert half(x).dtype == torch.bfloat16 and torch.isfinite(half(x)).all()


# --- the layers ------------------------------------------------------------------------------------------------------


class Masked(nn.Module):
    """RN-B with a mask of its own, so that it takes x alone; it may be stacked and copied like any norm."""

    def __init__(self, **options):
        super().__init__()
        self.norm, self.eps = RegionNormB(3, **options), EPS

    def reset_parameters(self):
        self.norm.reset_parameters()

    def forward(self, x):
        mask = torch.zeros(1, 1, 4, 4)
        mask[..., 1:3, :2] = 1
        return self.norm(x, mask.expand(len(x), -1, -1, -1))


@pytest.mark.parametrize("batchwise", [False, True])
def test_contract_of_rn_b(batchwise):
    """What `repro.testing.check_norm_contract` asks for; the mask is larger than the maps."""
    make, x = partial(Masked, batchwise=batchwise), draw(2, 3, 2, 2)
    check_factory(make)
    module = scramble(make(dtype=torch.float64))
    check_dtypes(make(), x)
    check_copies(module, x)
    check_layouts(module, x)
    check_vmap([scramble(make(dtype=torch.float64), seed) for seed in range(3)], x)
    check_gradients(module, x, second_order=not batchwise)


@pytest.mark.parametrize("batchwise", [False, True])
def test_contract_of_rn_l(batchwise):
    make, x = partial(RegionNormL, 3, kernel_size=3, batchwise=batchwise), draw(2, 3, 4, 4)
    module = spread(make(dtype=torch.float64))
    assert 0 < (module.sa(x)[0] >= module.threshold).double().mean() < 1
    check_dtypes(make(), x)
    check_copies(module, x)
    check_layouts(module, x)
    check_vmap([spread(make(dtype=torch.float64), seed) for seed in range(3)], x)
    check_gradients(module, x, second_order=not batchwise)
    assert all(t.is_meta for t in make(device="meta").state_dict().values())


def spread(layer, seed=0):
    """Weights with which s is on both sides of the threshold."""
    with torch.no_grad():
        for i, p in enumerate(layer.parameters()):
            p.copy_(draw(*p.shape, seed=seed + i))
    return layer


def test_rn_l_in_steps():
    layer, x = spread(RegionNormL(3, dtype=torch.float64)), draw(2, 3, 9, 9)
    pooled = torch.stack([x.sum(1) / 3, torch.maximum(torch.maximum(x[:, 0], x[:, 1]), x[:, 2])], 1)
    weights = {name: p.detach() for name, p in layer.named_parameters()}
    s = 1 / (1 + (-F.conv2d(F.pad(pooled, [3] * 4), weights["sa.conv1.weight"])).exp())
    gamma, beta = (
        F.conv2d(F.pad(s, [3] * 4), weights[f"sa.{name}_conv.weight"], weights[f"sa.{name}_conv.bias"])
        for name in ("gamma", "beta")
    )
    want = oracle(x, (s >= 0.8).double(), EPS, x, False)["y"] * (1 + gamma) + beta
    assert_near(layer(x).detach(), want, rel=1e-9)
    assert 0.05 < (s >= 0.8).double().mean() < 0.95


def test_the_threshold_passes_no_gradient():
    """Where gamma and beta do not depend on s, nothing reaches the convolution that makes it."""
    layer = spread(RegionNormL(3, dtype=torch.float64))
    with torch.no_grad():
        layer.sa.gamma_conv.weight.zero_()
        layer.sa.beta_conv.weight.zero_()
    layer(draw(2, 3, 5, 5)).square().sum().backward()
    assert torch.equal(layer.sa.conv1.weight.grad, torch.zeros_like(layer.sa.conv1.weight))


def test_checkpoints_of_the_authors_fit():
    names = {"foreground_gamma", "foreground_beta", "background_gamma", "background_beta"}
    assert set(RegionNormB(4).state_dict()) == names and all(
        (t == 0).all() for t in RegionNormB(4).state_dict().values()
    )
    convs = {
        "sa.conv1.weight": (1, 2, 7, 7),
        **{f"sa.{n}_conv.{p}": s for n in ("gamma", "beta") for p, s in (("weight", (1, 1, 7, 7)), ("bias", (1,)))},
    }
    assert {name: tuple(t.shape) for name, t in RegionNormL(4).state_dict().items()} == convs
    one, other = scramble(RegionNormL(3)), RegionNormL(3)
    other.load_state_dict(one.state_dict())
    assert_same_outcome(one, other, draw(2, 3, 5, 5, dtype=torch.float32), "loaded")
    layer = scramble(RegionNormL(3))
    layer.reset_parameters()
    assert layer.sa.conv1.weight.abs().max() < 0.2 and layer.threshold == 0.8


def test_masks_are_resized_to_the_nearest_pixel():
    layer, x = scramble(RegionNormB(3)), draw(2, 3, 4, 4, dtype=torch.float32)
    coarse = (draw(2, 1, 2, 2, seed=1) > 0).float()
    fine = coarse.repeat_interleave(4, 2).repeat_interleave(4, 3)
    want = layer(x, coarse.repeat_interleave(2, 2).repeat_interleave(2, 3))
    for mask in (coarse, fine, fine.bool(), fine.double()):
        assert torch.equal(layer(x, mask), want)


def test_wrong_arguments():
    x = torch.zeros(2, 3, 4, 4)
    with pytest.raises(ValueError, match=r"are not \(B, C, H, W\) and \(B, 1, H, W\)"):
        region_norm(x, torch.zeros(2, 3, 4, 4))
    with pytest.raises(ValueError, match="not"):
        region_norm(x, torch.zeros(2, 1, 2, 2))
    with pytest.raises(TypeError, match=r"write x\.float\(\)"):
        region_norm(x.long(), torch.zeros(2, 1, 4, 4))
    with pytest.raises(ValueError, match=r"is not \(B, 5, H, W\)"):
        RegionNormB(5)(x, torch.zeros(2, 1, 4, 4))
    with pytest.raises(ValueError, match="or mask"):
        RegionNormB(3)(x, torch.zeros(1, 1, 4, 4))
    with pytest.raises(ValueError, match=r"is not \(B, 5, H, W\)"):
        RegionNormL(5)(x)
    with pytest.raises(ValueError, match="odd"):
        RegionNormL(3, kernel_size=4)


@settings(deadline=None, max_examples=30, derandomize=True)
@given(norm_inputs(4))
def test_any_input(x):
    mask = (draw(len(x), 1, *x.shape[2:], seed=2) > 0).to(x.dtype)
    y = region_norm(x, mask)
    assert y.shape == x.shape and y.dtype == x.dtype and torch.isfinite(y).all()
    assert (y.double().square().sum((2, 3)) <= 1.02 * x.shape[2:].numel()).all()
