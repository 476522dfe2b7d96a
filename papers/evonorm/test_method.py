import copy
import math
from functools import partial

import pytest
import torch
from torch import nn

from repro.experiments.arena import misfit
from repro.papers.evonorm import EvoNormB0, EvoNormS0
from repro.papers.evonorm.experiment import Network, network
from repro.testing import (
    assert_near,
    check_drop_in,
    check_float32,
    check_norm_contract,
    draw,
    hard_inputs,
    mutation,
    outcome,
    quiet_import,
    scramble,
)

SHAPE, GROUPS = (3, 4, 2, 3), 2


def variance(values):
    """About the mean, biased."""
    values = list(values)
    mu = math.fsum(values) / len(values)
    return math.fsum((v - mu) ** 2 for v in values) / len(values)


def sigmoid(z):
    return 1 / (1 + math.exp(-z)) if z > 0 else math.exp(z) / (1 + math.exp(z))


def in_floats(kind, x, p, running, training):
    """Both formulas in Python floats, one channel of one image at a time: y, and the moving variance afterwards."""
    values, gain, bias, v = x.flatten(2).tolist(), *(p[name].tolist() for name in ("weight", "bias", "v"))
    b, c = len(values), len(values[0])
    y, moved = [[None] * c for _ in range(b)], list(running)
    for k in range(c):
        batch = variance(t for image in values for t in image[k])
        moved[k] = 0.9 * running[k] + 0.1 * batch if training else running[k]
        inside = range(k // (c // GROUPS) * (c // GROUPS), (k // (c // GROUPS) + 1) * (c // GROUPS))
        for i in range(b):
            if kind == "b0":
                left, within = (
                    math.sqrt((batch if training else running[k]) + 1e-5),
                    math.sqrt(variance(values[i][k]) + 1e-5),
                )
                y[i][k] = [gain[k] * t / max(left, v[k] * t + within) + bias[k] for t in values[i][k]]
            else:
                root = math.sqrt(variance(t for j in inside for t in values[i][j]) + 1e-5)
                y[i][k] = [gain[k] * t * sigmoid(v[k] * t) / root + bias[k] for t in values[i][k]]
    return torch.tensor(y, dtype=torch.float64).view(x.shape), torch.tensor(moved, dtype=torch.float64)


def composed(kind, fault=None):
    """The same of torch's var and where, for its gradients: f(x, parameters, running, training) -> y."""

    def column(t):
        return t[:, None, None]

    def f(x, p, running, training):
        correction = fault == "unbiased"
        eps = {"no eps": 1e-200, "eps 1e-3": 1e-3}.get(fault, 1e-5)
        source = x - x.mean((0, 2, 3), keepdim=True) if fault == "centred" else x
        gain, bias, v = (column(p[name]) for name in ("weight", "bias", "v"))
        if fault == "v is one number":
            v = v * 0 + v.mean()
        if fault == "no v":
            v = 1 + 0 * v
        if fault == "gain before":
            source, gain = source * gain, 1 + 0 * gain
        if fault == "half-precision statistics":
            x = x.bfloat16().double() + 0 * x

        def root(var):
            if fault == "eps outside the root":
                return (var + 1e-200).sqrt() + eps
            return var + eps if fault == "variance for deviation" else (var + eps).sqrt()

        if kind == "s0":
            axes = {"over the batch too": (0, 2, 3, 4), "over places alone": (3, 4), "over channels alone": (2,)}.get(
                fault, (2, 3, 4)
            )
            grouped = x.unflatten(1, (GROUPS, -1))
            if fault == "interleaved groups":
                grouped = x.unflatten(1, (-1, GROUPS)).transpose(1, 2)
            var = grouped.var(axes, keepdim=True, correction=correction)
            if fault == "second moment":
                var = grouped.square().mean(axes, keepdim=True)
            var = var.expand(grouped.shape)
            var = (var.transpose(1, 2) if fault == "interleaved groups" else var).flatten(1, 2)
            std = root(var.detach() if fault == "detached" else var)
            gate = {"gate of the normalised input": v * source / std, "tanh gate": 2 * v * source}.get(
                fault, v * source
            )
            y = source * (torch.tanh(gate) if fault == "tanh gate" else torch.sigmoid(gate)) / std
            return y * gain + (0 if fault == "no bias" else 1) * bias

        batch, within = (x.var(axes, keepdim=True, correction=correction) for axes in ((0, 2, 3), (2, 3)))
        if fault == "second moment":
            within = x.square().mean((2, 3), keepdim=True)
        if fault == "detached":
            batch, within = batch.detach(), within.detach()
        if training:
            seen = {"unbiased moving variance": x.var((0, 2, 3)), "moving deviation": batch.flatten().sqrt()}.get(
                fault, batch.flatten()
            )
            keep = 0.1 if fault == "momentum of the old value" else 0.9
            running.copy_((keep * running + (1 - keep) * seen).detach())
        if fault == "moving variance in training" or not training and fault != "batch variance in evaluation":
            batch = running.view(1, -1, 1, 1).clone()
        if fault == "moving average of the instance variance" and not training:
            within = 0 * within + batch
        left, right = root(batch), v * source + root(within)
        if fault == "v on the deviation":
            right = source + v * root(within)
        pick = {"min": left < right, "sum": None}.get(fault, left > right)
        y = source / (left + right if pick is None else torch.where(pick, left, right))
        return y * gain + (0 if fault == "no bias" else 1) * bias

    return f


def ours(kind):
    def f(x, p, running, training):
        layer = (
            EvoNormB0(4, dtype=torch.float64) if kind == "b0" else EvoNormS0(4, GROUPS, dtype=torch.float64)
        ).train(training)
        if kind == "b0":
            layer.running_var.copy_(running)
        y = torch.func.functional_call(layer, p, (x,))
        if kind == "b0":
            running.copy_(layer.running_var)
        return y

    return f


def check(f, kind):
    """Values and moving variance against the loops, gradients against torch's operators; shifted, tiny, huge, ..."""
    for training in (True, False):
        for name, x in hard_inputs(*SHAPE).items():
            p = {n: 0.5 + draw(4, seed=s).abs() for s, n in enumerate(("weight", "bias", "v"))}
            start, results = 0.5 + draw(4, seed=9).abs(), []
            for function in (f, composed(kind)):
                leaf, running = x.clone().requires_grad_(), start.clone()
                leaves = {n: t.clone().requires_grad_() for n, t in p.items()}
                y = function(leaf, leaves, running, training)
                slopes = torch.autograd.grad(y, [leaf, *leaves.values()], draw(*SHAPE, seed=5), allow_unused=True)
                results.append((y.detach(), running, slopes))
            want, moved = in_floats(kind, x, p, start.tolist(), training)
            far = name in ("far", "constant", "spiked")  # the variance of these has few digits
            for what, got, value in (
                ("y", results[0][0], want),
                ("moving variance", results[0][1], moved if kind == "b0" else start),
            ):
                assert_near(got, value, f"{kind} {name}, training={training}: {what}", rel=1e-6 if far else 1e-10)
            for got, value in zip(results[0][2], results[1][2], strict=True):
                got = torch.zeros_like(value) if got is None else got
                assert_near(
                    got, value, f"{kind} {name}, training={training}: gradient", rel=1e-5 if far else 1e-8, floor=1e-12
                )


B0 = ["min", "sum", "v on the deviation", "unbiased moving variance", "moving deviation", "momentum of the old value"]
B0 += ["moving variance in training", "batch variance in evaluation", "moving average of the instance variance"]
S0 = ["over the batch too", "over places alone", "over channels alone", "interleaved groups"]
S0 += ["gate of the normalised input", "tanh gate"]
test_b0_oracle, test_b0_mutant_dies = mutation(
    partial(check, kind="b0"), partial(composed, "b0"), ours("b0"), S0, source=[composed]
)
test_s0_oracle, test_s0_mutant_dies = mutation(
    partial(check, kind="s0"), partial(composed, "s0"), ours("s0"), B0, source=[composed]
)


@pytest.mark.parametrize(
    "make, shape",
    [
        (partial(EvoNormB0, 4), (2, 4, 2, 2)),
        (partial(EvoNormB0, 3, nonlinearity=False), (2, 3, 2)),
        (partial(EvoNormS0, 4, 2), (2, 4, 2, 2)),
        (partial(EvoNormS0, 3, eps=0.1), (2, 3, 3)),
        (partial(EvoNormS0, 4, nonlinearity=False), (2, 4, 2)),
    ],
)
def test_contract(make, shape):
    check_norm_contract(make, None, draw(*shape))


@pytest.mark.parametrize("kind", [EvoNormB0, EvoNormS0])
def test_drops_in(kind):
    check_drop_in(kind)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", ["b0", "s0"])
def test_timm_agrees(kind, training):
    """Outputs, gradients and the moving variance; timm takes variances in float32, and the unbiased one as B0's
    moving one.
    """
    layers = quiet_import("timm.layers")
    theirs = layers.EvoNorm2dB0(6, eps=1e-5) if kind == "b0" else layers.EvoNorm2dS0(6, groups=2, eps=1e-5)
    layer = EvoNormB0(6) if kind == "b0" else EvoNormS0(6, 2)
    assert sorted(layer.state_dict()) == sorted(theirs.state_dict())
    for name, x in hard_inputs(3, 6, 4, 4).items():
        if name == "far":  # deviations below the rounding of the mean
            continue
        theirs = scramble(theirs).train(training)
        layer.train(training).load_state_dict(theirs.state_dict())
        before = theirs.running_var.clone() if kind == "b0" else None
        got, want = outcome(layer, x.float()), outcome(theirs, x.float())
        if kind == "b0" and training:
            n = x.numel() / 6
            want["running_var"] = 0.9 * before + (want["running_var"] - 0.9 * before) * (n - 1) / n
        for key in want:
            rounded = name == "constant" and key != "y"  # gradients of a deviation that is all rounding
            assert_near(
                got[key], want[key], f"{name}: {key}", rel=0.05 if rounded else 2e-5, floor=1e-6 if rounded else 1e-25
            )


def test_timm_agrees_without_nonlinearity():
    layers, x = quiet_import("timm.layers"), draw(2, 4, 3, 3, dtype=torch.float32)
    for theirs, one in (
        (layers.EvoNorm2dB0(4, apply_act=False), EvoNormB0(4, nonlinearity=False)),
        (layers.EvoNorm2dS0(4, 4, apply_act=False), EvoNormS0(4, nonlinearity=False)),
    ):
        one.load_state_dict(scramble(theirs).state_dict(), strict=False)
        assert_near(one(x), theirs(x), rel=1e-6)


def test_d1_eps_in_every_root():
    x = torch.tensor([-1e-3, 1e-3], dtype=torch.float64).view(1, 1, 2)  # variance 1e-6 against 1e-5, biased
    root = math.sqrt(1.1e-5)
    assert EvoNormB0(1).eps == EvoNormS0(1).eps == 1e-5
    assert_near(EvoNormB0(1)(x).flatten().detach(), torch.tensor([-1e-3 / root, 1e-3 / (1e-3 + root)]), rel=1e-6)
    assert_near(EvoNormS0(1)(x).detach(), x * torch.sigmoid(x) / root, rel=1e-6)
    for layer in (
        EvoNormB0(2),
        EvoNormS0(2, 2),
    ):  # images of one place: torch.var would be NaN there (digantamisra98/EvoNorm, issue 4)
        x = draw(1, 2, 1, 1).requires_grad_()
        y = layer(x)
        assert torch.isfinite(y).all() and torch.isfinite(torch.autograd.grad(y.sum(), x)[0]).all()


def test_d2_moving_variance():
    layer, x = (
        EvoNormB0(1, dtype=torch.float64),
        torch.tensor([1.0, 3.0], dtype=torch.float64).view(1, 1, 2),
    )  # variance 1
    assert torch.equal(layer.running_var, torch.ones(1)) and layer.momentum == 0.1
    layer(3 * x)
    assert_near(layer.running_var, torch.tensor([0.9 + 0.9]), rel=1e-6)
    y = layer.eval()(x).flatten().detach()  # max(sqrt(1.8), x + 1) is x + 1
    assert_near(y, torch.tensor([1 / 2, 3 / 4]), rel=1e-4)
    assert_near(layer(-x).flatten().detach(), -x.flatten() / math.sqrt(1.8 + 1e-5), rel=1e-6)
    assert_near(layer.running_var, torch.tensor([1.8]), rel=1e-6)


@pytest.mark.parametrize(
    "channels, groups", [(64, 32), (32, 32), (48, 24), (16, 16), (7, 7), (96, 32), (74, 2), (1, 1)]
)
def test_d3_number_of_groups(channels, groups):
    assert EvoNormS0(channels).num_groups == groups
    for wrong in (channels + 1, 0, -1):
        with pytest.raises(ValueError, match="write a divisor"):
            EvoNormS0(channels, wrong)


def test_d4_without_nonlinearity():
    x = 3 + draw(2, 4, 3, 3)
    for make in (EvoNormB0, EvoNormS0):
        layer = scramble(make(4, nonlinearity=False, dtype=torch.float64))
        assert list(layer.state_dict()) == ["weight", "bias"]
        for mode in (True, False):
            assert_near(layer.train(mode)(x), x * layer.weight[:, None, None] + layer.bias[:, None, None], rel=1e-14)


@pytest.mark.parametrize("make", [EvoNormB0, EvoNormS0])
def test_float32(make):
    check_float32(make(4), 100 + draw(2, 4, 3, 3))  # no half precision holds the mean of such inputs


@pytest.mark.parametrize("make", [EvoNormB0, EvoNormS0])
def test_d5_places_are_needed(make):
    layer = make(4)
    for x in (torch.ones(3, 4), torch.ones(4), torch.ones(3, 5, 2, 2), torch.ones(3, 1, 2, 2)):
        with pytest.raises(ValueError, match=r"is not \(N, 4, \*\) of at least 3 axes"):
            layer(x)
    assert make is EvoNormS0 or torch.equal(layer.running_var, torch.ones(4))
    assert "ValueError" in misfit("mlp", f"norm:evonorm.{make.__name__}")


@pytest.mark.parametrize("scale", [1e-18, 1e-3, 1.0, 1e15, 1e18])
@pytest.mark.parametrize("make", [EvoNormB0, EvoNormS0])
def test_range_of_float32(make, scale):
    x, results = (scale * (1 + draw(3, 4, 4, 4))).float(), []
    for t in (x, x.double()):
        results.append(outcome(scramble(make(4, dtype=t.dtype)), t))
    for key in results[1]:
        assert_near(results[0][key], results[1][key], key, rel=1e-4)


@pytest.mark.parametrize("axes", [3, 4, 5])
def test_axes_of_places(axes):
    """Places are alike, whether in one axis, two or three."""
    x = draw(3, 4, 2, 3, 2)
    for make in (partial(EvoNormB0, 4), partial(EvoNormS0, 4, 2)):
        whole, flat = scramble(make(dtype=torch.float64)), x.flatten(axes - 1)
        assert_near(copy.deepcopy(whole)(flat).flatten(2), copy.deepcopy(whole)(x).flatten(2), rel=1e-14)


def test_in_a_residual_network():
    """EvoNorm where a norm and a ReLU stood, gamma x + beta where a norm stood alone, the ReLU after the addition
    stays.
    """
    config, x = Network(depth=8, width=4, groups=2), draw(2, 1, 8, 8, dtype=torch.float32)
    for arm, kind in (("b0", EvoNormB0), ("s0", EvoNormS0)):
        model = network(arm, config, torch.Generator().manual_seed(0))
        full = [name for name, m in model.named_modules() if isinstance(m, kind) and m.nonlinearity]
        bare = [name for name, m in model.named_modules() if isinstance(m, kind) and not m.nonlinearity]
        assert full == ["norm", *(f"blocks.{i}.norm1" for i in range(3))]
        assert sorted(bare) == sorted([*(f"blocks.{i}.norm2" for i in range(3)), "blocks.1.skip.1", "blocks.2.skip.1"])
        assert [name for name, m in model.named_modules() if isinstance(m, nn.ReLU)] == [
            f"blocks.{i}.act2" for i in range(3)
        ]
        assert isinstance(model.blocks[0].act1, nn.Identity) and isinstance(model.act, nn.Identity)
        model(x).sum().backward()
        assert all(p.grad is not None for p in model.parameters())
    same = [network(arm, config, torch.Generator().manual_seed(0)).stem.weight for arm in ("bn", "s0", "bn_silu")]
    assert torch.equal(same[0], same[1]) and torch.equal(same[0], same[2])  # equal seeds, equal weights
