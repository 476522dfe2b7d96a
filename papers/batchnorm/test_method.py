import copy
import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from torch import nn
from torch.nn import functional as F

from repro.papers.batchnorm import BatchNorm, batch_norm, population_statistics
from repro.testing import (
    assert_near,
    assert_same_outcome,
    check_float32,
    check_norm_contract,
    draw,
    hard_inputs,
    mutation,
    norm_inputs,
    scramble,
)

C = 3
SHAPES = [(7, C), (2, C, 5), (2, C, 2, 3)]
TWINS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}


def oracle(x, gamma, beta, mean, var, training, momentum, eps, upstream):
    """Alg. 1 or 2 in Python floats, one feature at a time; the gradients are the six equations of Sec. 3."""
    columns, ups = (t.movedim(1, 0).flatten(1).tolist() for t in (x, upstream))
    want = {key: [] for key in ("y", "dx", "dgamma", "dbeta", "mean", "var")}
    for col, dy, g, b, old_mean, old_var in zip(columns, ups, gamma.tolist(), beta.tolist(), mean, var, strict=True):
        m, mu, v = len(col), old_mean, old_var
        if training:
            mu = math.fsum(col) / m
            v = math.fsum((c - mu) ** 2 for c in col) / m
            old_mean = (1 - momentum) * old_mean + momentum * mu
            old_var = (1 - momentum) * old_var + momentum * v * m / (m - 1)
        root = math.sqrt(v + eps)
        xhat, dxhat = [(c - mu) / root for c in col], [d * g for d in dy]
        dvar = dmu = 0.0
        if training:
            dvar = math.fsum(d * (c - mu) for d, c in zip(dxhat, col, strict=True)) * -0.5 / root**3
            dmu = -math.fsum(dxhat) / root + dvar * math.fsum(-2 * (c - mu) for c in col) / m
        want["dx"].append([d / root + dvar * 2 * (c - mu) / m + dmu / m for d, c in zip(dxhat, col, strict=True)])
        want["y"].append([g * h + b for h in xhat])
        want["dgamma"].append(math.fsum(d * h for d, h in zip(dy, xhat, strict=True)))
        want["dbeta"].append(math.fsum(dy))
        want["mean"].append(old_mean)
        want["var"].append(old_var)
    want = {key: torch.tensor(value, dtype=torch.float64) for key, value in want.items()}
    rest = x.movedim(1, 0).shape
    return want | {key: want[key].view(rest).movedim(0, 1) for key in ("y", "dx")}


def check(norm):
    """`norm`, with the arguments of F.batch_norm, agrees with the oracle: values, gradients, running statistics."""
    for shape in SHAPES:
        for name, x in hard_inputs(*shape).items():
            for training in (True, False):
                gamma, beta = 1 + draw(C, seed=1), draw(C, seed=2)
                mean, var, upstream = draw(C, seed=3), draw(C, seed=4).exp(), draw(*shape, seed=5)
                want = oracle(x, gamma, beta, mean.tolist(), var.tolist(), training, 0.1, 1e-5, upstream)
                leaves = [t.clone().requires_grad_() for t in (x, gamma, beta)]
                y = norm(leaves[0], mean, var, leaves[1], leaves[2], training, 0.1, 1e-5)
                dx, dgamma, dbeta = torch.autograd.grad(y, leaves, upstream)
                got = {"y": y.detach(), "dx": dx, "dgamma": dgamma, "dbeta": dbeta, "mean": mean, "var": var}
                floor = 1e-11 if name == "constant" else 1e-25  # rounding of the mean over sqrt(eps)
                for key in want:
                    assert_near(got[key], want[key], f"{shape} {name} training={training}: {key}", floor=floor)


def broken(fault):
    def norm(x, running_mean, running_var, gamma, beta, training, momentum, eps):
        def column(t):
            return t.view(1, -1, *[1] * (x.dim() - 2)) if t.dim() == 1 else t

        axes = [0, *range(2, x.dim())]
        if fault == "per activation in feature maps":
            axes = [0]
        if fault == "per case (instance norm)" and x.dim() > 2:
            axes = list(range(2, x.dim()))
        if fault == "over the features":
            axes = list(range(1, x.dim()))
        m = math.prod(x.shape[i] for i in axes)
        mean, var = x.mean(axes, keepdim=True), x.var(axes, keepdim=True, correction=0)
        if fault == "variance as E[x^2] - E[x]^2":
            var = x.square().mean(axes, keepdim=True) - mean.square()
        if fault == "detached statistics":
            mean, var = mean.detach(), var.detach()
        if fault == "detached variance":
            var = var.detach()
        keep = momentum if fault == "momentum of the old value" else 1 - momentum  # the Keras convention
        seen = var if fault == "biased running variance" else var * m / (m - 1)
        if fault == "running standard deviation":
            seen = seen.clamp_min(1e-300).sqrt()
        if training and fault != "running statistics never updated":
            with torch.no_grad():
                running_mean.copy_(keep * running_mean + (1 - keep) * mean.flatten()[:C])
                running_var.copy_(keep * running_var + (1 - keep) * seen.flatten()[:C])
        if fault == "unbiased variance in the forward":
            var = var * m / (m - 1)
        if fault == "running statistics in training" or not training:  # patrick-kidger/equinox#659
            if fault != "batch statistics at inference":
                mean, var = running_mean.clone(), running_var.clone()
        root = (column(var) + eps).sqrt()
        if fault == "eps outside the root":
            root = column(var).clamp_min(1e-300).sqrt() + eps
        if fault == "no eps":
            root = column(var).clamp_min(1e-300).sqrt()
        if fault == "gamma + 1":
            gamma = 1 + gamma
        return (x - column(mean)) / root * column(gamma) + (0 if fault == "no beta" else 1) * column(beta)

    return norm


test_oracle, test_mutant_dies = mutation(check, broken, {"ours": batch_norm, "torch": F.batch_norm})


@pytest.mark.parametrize(
    "shape, options",
    [
        ((4, 3), {}),
        ((2, 3, 2), {"momentum": None}),
        ((2, 2, 2, 2, 1), {"affine": False, "momentum": 0.3, "eps": 0.1}),
        ((4, 3), {"track_running_stats": False}),
    ],
)
def test_contract(shape, options):
    make, twin = partial(BatchNorm, shape[1], **options), partial(TWINS[len(shape)], shape[1], **options)
    check_norm_contract(make, twin, draw(*shape))


@pytest.mark.parametrize("momentum", [0.1, 1.0, None])
@pytest.mark.parametrize("shape", SHAPES)
def test_running_statistics_follow_torch(momentum, shape):
    """Over batches of several sizes, an empty one and eval calls between."""
    ours = BatchNorm(C, momentum=momentum, dtype=torch.float64)
    theirs = TWINS[len(shape)](C, momentum=momentum, dtype=torch.float64)
    for i, size in enumerate([4, 7, 0, 5, 2, 9]):
        x = 3 + draw(size, *shape[1:], seed=i)
        assert_same_outcome(ours.train(), theirs.train(), x, f"batch {i}", rel=1e-9)
        assert_same_outcome(ours.eval(), theirs.eval(), x, f"eval {i}", rel=1e-9)
    assert ours.num_batches_tracked == 6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_module(dtype):
    """A module converted as a whole keeps its buffers in `dtype`, as torch's does; y is the float64 one rounded.

    (On CPU torch rounds the mean to `dtype` too, so that its y is less exact.)
    """
    ours, theirs, rounding = BatchNorm(C).to(dtype), nn.BatchNorm1d(C).to(dtype), torch.finfo(dtype).eps
    for i in range(3):
        x = (5 + draw(16, C, seed=i)).to(dtype)
        want = batch_norm(x.double(), None, None, training=True)
        torch.testing.assert_close(ours(x), want.to(dtype), rtol=rounding, atol=1e-5)
        theirs(x)
    torch.testing.assert_close(dict(ours.named_buffers()), dict(theirs.named_buffers()), rtol=2 * rounding, atol=1e-5)


def test_d1_values_the_paper_does_not_give():
    norm = BatchNorm(C)
    assert norm.eps == 1e-5 and (norm.weight == 1).all() and (norm.bias == 0).all()
    x = torch.tensor([[-1e-3], [1e-3]], dtype=torch.float64)  # variance 1e-6 against eps 1e-5
    assert_near(batch_norm(x, None, None, training=True), x / math.sqrt(1.1e-5), rel=1e-12)


def test_d2_moving_averages_with_momentum_of_the_new_value():
    norm, x = BatchNorm(1, dtype=torch.float64), torch.tensor([[1.0], [3.0]], dtype=torch.float64)
    norm(x)  # mean 2, unbiased variance 2
    assert norm.momentum == 0.1
    assert_near(norm.running_mean, torch.tensor([0.2]), rel=1e-7)
    assert_near(norm.running_var, torch.tensor([0.9 + 0.2]), rel=1e-7)
    assert_near(norm.eval()(x).detach(), (x - 0.2) / math.sqrt(1.1 + 1e-5), rel=1e-12)


def test_float32():
    check_float32(lambda x: batch_norm(x, None, None, training=True), 100 + draw(8, C))


def net():
    layers = nn.Sequential(nn.Linear(4, 5, bias=False), BatchNorm(5), nn.Sigmoid(), nn.Linear(5, 3), BatchNorm(3))
    return scramble(layers.double())


def test_population_statistics_are_algorithm_2():
    model, batches = net(), [2 + draw(6, 4, seed=i) for i in range(5)]
    model[1].eval()  # a mixed state, which must come back
    before, modes = copy.deepcopy(model.state_dict()), [module.training for module in model.modules()]
    population_statistics(model, iter(batches))
    assert [module.training for module in model.modules()] == modes and model[1].momentum == 0.1
    assert all(torch.equal(before[name], t) for name, t in model.named_parameters())

    train = copy.deepcopy(model).train()  # the second layer sees the first in training mode
    first = [model[0](x).detach() for x in batches]
    second = [train[:4](x).detach() for x in batches]
    for layer, inputs in ((model[1], first), (model[4], second)):
        mean = torch.stack([u.mean(0) for u in inputs]).mean(0)
        var = 6 / 5 * torch.stack([u.var(0, correction=0) for u in inputs]).mean(0)
        assert_near(layer.running_mean, mean, rel=1e-12)
        assert_near(layer.running_var, var, rel=1e-12)
        u, scale = draw(9, mean.numel()), layer.weight / (var + layer.eps).sqrt()  # Alg. 2, line 11
        assert_near(layer.eval()(u).detach(), (scale * u + (layer.bias - scale * mean)).detach(), rel=1e-12)


def test_population_statistics_refuses():
    untouched = net()
    state = copy.deepcopy(untouched.state_dict())
    with pytest.raises(ValueError, match="at least one batch"):
        population_statistics(untouched, [])
    torch.testing.assert_close(untouched.state_dict(), state, rtol=0, atol=0)
    for model in (nn.Linear(4, 4), BatchNorm(4, track_running_stats=False)):
        with pytest.raises(ValueError, match="BatchNorm layers that track"):
            population_statistics(model, [draw(3, 4)])


def test_population_statistics_restores_after_an_error():
    model = net().eval()
    with pytest.raises(RuntimeError):
        population_statistics(model, [draw(6, 4), draw(6, 9)])
    assert model[1].momentum == model[4].momentum == 0.1 and not any(m.training for m in model.modules())


def test_folds_into_a_convolution():
    conv, norm = nn.Conv2d(2, C, 3, bias=False).double(), scramble(BatchNorm(C, dtype=torch.float64)).eval()
    x = draw(2, 2, 5, 5)
    fused = nn.utils.fusion.fuse_conv_bn_eval(conv.eval(), norm)
    assert_near(fused(x).detach(), norm(conv(x)).detach(), rel=1e-12)


def test_scale_of_the_weights_does_not_matter():
    """Sec. 3.3: BN((aW)u) = BN(Wu), and the gradient with respect to aW is 1/a of the original."""
    u, w, upstream = draw(16, 4), draw(4, 3, seed=1), draw(16, 3, seed=2)
    results = []
    for a in (1.0, 8.0):
        scaled = (a * w).requires_grad_()
        y = batch_norm(u @ scaled, None, None, training=True, eps=0.0)
        results.append((y.detach(), a * torch.autograd.grad(y, scaled, upstream)[0]))
    for one, other in zip(*results, strict=True):
        assert_near(one, other, rel=1e-9)


@pytest.mark.parametrize("shape", [(1, 3), (1, 3, 1), (1, 3, 1, 1)])
def test_one_value_per_feature(shape):
    norm = BatchNorm(3)
    with pytest.raises(ValueError, match="larger batches"):
        norm(torch.ones(shape))
    assert norm.num_batches_tracked == 0 and torch.equal(norm.running_var, torch.ones(3))  # nothing half done
    assert torch.isfinite(norm.eval()(torch.ones(shape))).all()
    assert torch.isfinite(BatchNorm(3)(torch.ones(1, 3, 2))).all()


def test_wrong_shape():
    for x in (torch.ones(4), torch.ones(4, 2), torch.ones(4, 1)):  # the last would broadcast
        for norm in (BatchNorm(3), BatchNorm(3, affine=False).eval()):
            with pytest.raises(ValueError, match=r"\(N, 3, \*\)"):
                norm(x)


def test_inference_without_statistics():
    with pytest.raises(ValueError, match="needs running_mean"):
        batch_norm(torch.ones(4, 3), None, None)


def test_tracking_can_be_switched_off():
    """After construction, as in torch: training leaves the buffers alone, eval uses them still."""
    ours, theirs, x = BatchNorm(3, dtype=torch.float64), nn.BatchNorm1d(3, dtype=torch.float64), 2 + draw(5, 3)
    for norm in (ours, theirs):
        norm.track_running_stats = False
    assert_same_outcome(ours, theirs, x, "training")
    assert_same_outcome(ours.eval(), theirs.eval(), x, "eval")


@pytest.mark.parametrize("scale", [1e-18, 1e-3, 1e15, 1e18])
def test_range_of_float32(scale):
    x = (scale * (1 + draw(16, 3))).float()
    results = []
    for t in (x, x.double()):
        t.requires_grad_()
        y = batch_norm(t, None, None, training=True)
        results.append((y.detach(), *torch.autograd.grad(y, t, draw(16, 3, seed=4).to(y))))
    for got, want in zip(*results, strict=True):
        assert_near(got, want, rel=1e-5)


def test_overflow_of_squares_gives_beta():
    beta = torch.tensor([1.0, 2.0, 3.0])
    y = batch_norm(1e20 * draw(8, 3, dtype=torch.float32), None, None, None, beta, training=True)
    assert torch.equal(y, beta.expand(8, 3))


@settings(deadline=None, max_examples=30, derandomize=True)
@given(norm_inputs(min_axes=2))
def test_any_input(x):
    m = x.numel() // x.shape[1] if x.shape[1] else 0
    if m == 1:
        with pytest.raises(ValueError, match="larger batches"):
            batch_norm(x, None, None, training=True)
        return
    norm = BatchNorm(x.shape[1])
    y = norm(x)
    assert y.shape == x.shape and y.dtype == x.dtype and torch.isfinite(y).all()
    slack = 4 * torch.finfo(x.dtype).eps
    assert (y.double().abs() <= math.sqrt(max(m - 1, 0)) * (1 + slack) + 1e-2).all()
    assert torch.isfinite(norm.running_mean).all() and (norm.running_var >= 0).all()
    torch.testing.assert_close(y, BatchNorm(x.shape[1])(x.contiguous()), rtol=slack, atol=slack)
