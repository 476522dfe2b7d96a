import copy
import math
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from repro.experiments.arena import misfit
from repro.models.convnet import cifar_resnet
from repro.models.norms import GhostBatchNorm
from repro.models.slots import WEIGHTED
from repro.papers.weight_standardization import BatchChannelNorm, EstBN, WSConv2d, standardize
from repro.testing import (
    assert_near,
    check_copies,
    check_dtypes,
    check_factory,
    check_gradients,
    check_layouts,
    check_norm_contract,
    check_vmap,
    draw,
    hard_inputs,
    mutation,
    outcome,
    quiet_import,
    scramble,
)

# --- Weight Standardization ------------------------------------------------------------------------------------------


def oracle(weight, eps, upstream):
    """The equation in Python floats, one filter at a time: W_hat, and dL/dW of L = sum(upstream * W_hat)."""
    rows, drows = [], []
    for row, up in zip(weight.flatten(1).tolist(), upstream.flatten(1).tolist(), strict=True):
        n = len(row)
        mu = math.fsum(row) / n
        root = math.sqrt(math.fsum((v - mu) ** 2 for v in row) / n + eps)
        normal = [(v - mu) / root for v in row]
        mean, along = math.fsum(up) / n, math.fsum(u * v for u, v in zip(up, normal, strict=True)) / n
        rows.append(normal)
        drows.append([(u - mean - along * v) / root for u, v in zip(up, normal, strict=True)])
    return [torch.tensor(part, dtype=torch.float64).view_as(weight) for part in (rows, drows)]


def check(function):
    """`function(weight, eps)` and its gradient agree with the oracle; outputs, inputs and kernel differ in number."""
    for name, weight in hard_inputs(4, 3, 2, 3).items():
        upstream, leaf = draw(*weight.shape, seed=2), weight.clone().requires_grad_()
        got = function(leaf, 1e-5)
        (slope,) = torch.autograd.grad(got, leaf, upstream)
        floor = {"constant": 1e-12, "zero": 1e-12}.get(name, 1e-25)  # rounding of the mean over sqrt(eps)
        for what, value, want in zip(
            ("W_hat", "dW"), (got.detach(), slope), oracle(weight, 1e-5, upstream), strict=True
        ):
            assert_near(value, want, f"{name}: {what}", floor=floor)


def broken(fault):
    def function(weight, eps):
        axes = {
            "over inputs alone": (1,),
            "over the kernel alone": (2, 3),
            "over outputs": (0, 2, 3),
            "over all weights": (0, 1, 2, 3),
        }.get(fault, (1, 2, 3))
        mean, var = weight.mean(axes, keepdim=True), weight.var(axes, keepdim=True, correction=fault == "unbiased")
        if fault == "detached statistics":
            mean, var = mean.detach(), var.detach()
        if fault == "detached deviation":
            var = var.detach()
        if fault == "not centred":
            mean = 0 * mean
        if fault == "half-precision statistics":
            mean = mean.bfloat16().double()
        root = (var + eps).sqrt()
        if fault == "eps outside the root":
            root = var.clamp_min(1e-300).sqrt() + eps
        if fault == "eps of timm":
            root = (var + 1e-6).sqrt()
        if fault == "variance for deviation":
            root = var + eps
        if fault == "times the root":  # (..).rsqrt() as divisor, huggingface/blog#2484
            return (weight - mean) * root
        if fault == "over the fan-in":  # Scaled WS, arXiv:2101.08692
            root = root * weight[0].numel() ** 0.5
        return (weight - mean) / root

    return function


test_oracle, test_mutant_dies = mutation(check, broken, standardize)


def test_gradcheck():
    leaf = draw(3, 2, 2, 2).requires_grad_()
    assert torch.autograd.gradcheck(standardize, leaf) and torch.autograd.gradgradcheck(standardize, leaf)
    check_gradients(WSConv2d(2, 2, 2, dtype=torch.float64), draw(1, 2, 3, 3), second_order=False)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("groups, kernel", [(1, 3), (2, 1), (4, 3)])
def test_timm_agrees(groups, kernel, training):
    theirs = quiet_import("timm.layers").StdConv2d(
        4, 8, kernel, padding=kernel // 2, groups=groups, bias=True, eps=1e-5
    )
    ours = WSConv2d(4, 8, kernel, padding=kernel // 2, groups=groups, dtype=torch.float64)
    theirs = theirs.double().train(training)
    ours.train(training).load_state_dict(theirs.state_dict())
    for name, weight in hard_inputs(*ours.weight.shape).items():
        x = {"tiny": 1e-18, "huge": 1e18}.get(name, 1.0) * draw(2, 4, 5, 5, seed=3) + 3 * (name == "shifted")
        with torch.no_grad():
            ours.weight.copy_(weight)
            theirs.weight.copy_(weight)
        got, want = outcome(ours, x), outcome(theirs, x)
        rounding = {"constant": 1e-9, "far": 1e-7, "tiny": 1e-30}.get(name, 1e-12)
        for key in want:
            assert_near(got[key], want[key], f"{name}: {key}", rel=1e-9, floor=rounding)


def test_d1_eps_inside_the_root_of_the_biased_variance():
    weight = torch.tensor([[-1e-3, 1e-3]], dtype=torch.float64)  # variance 1e-6 against 1e-5
    assert_near(standardize(weight), weight / math.sqrt(1.1e-5), rel=1e-12)
    assert WSConv2d(2, 2, 1).eps == 1e-5
    usual, x = draw(8, 4, 3, 3), draw(2, 4, 6, 6, seed=1)
    std, mean = torch.std_mean(usual, (1, 2, 3), keepdim=True)  # WeightStandardization/README.md
    first = (usual - mean) / (std + 1e-5)
    second = (usual - mean) / (std.square() + 1e-5).sqrt()  # Batch-Channel-Normalization/imagenet/models/layers.py
    for theirs in (first, second):
        assert_near(theirs, standardize(usual) * math.sqrt(35 / 36), rel=1e-4)
        behind = [F.group_norm(F.conv2d(x, w), 4) for w in (standardize(usual), theirs)]
        assert_near(behind[0], behind[1], rel=1e-4)
    flat = torch.full((1, 4), 3.0, dtype=torch.float64, requires_grad=True)
    assert torch.isfinite(torch.autograd.grad(standardize(flat).sum(), flat)[0]).all()  # theirs, the first: NaN


def test_float32_convention():
    weight = 3 + draw(4, 64)
    for dtype in (torch.bfloat16, torch.float16):
        narrow = weight.to(dtype)
        assert torch.equal(standardize(narrow), standardize(narrow.float()).to(dtype))
    layer, x = WSConv2d(4, 8, 3), draw(2, 4, 5, 5, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    for estimate in (False, True):
        norm = BatchChannelNorm(4, 2, estimate=estimate)
        y = copy.deepcopy(norm)((100 + x).bfloat16())
        assert y.dtype == torch.bfloat16 and torch.equal(y, norm((100 + x).bfloat16().float()).bfloat16())


def test_d2_filters_of_one_weight():
    for layer in (WSConv2d(4, 4, 1, groups=4), WSConv2d(1, 3, 1)):
        with pytest.raises(ValueError, match=r"fewer groups, or nn\.Conv2d"):
            layer(torch.ones(2, layer.in_channels, 2, 2))
    assert WSConv2d(4, 4, 3, groups=4)(torch.ones(2, 4, 3, 3)).shape == (2, 4, 1, 1)


CASES = [
    ((3, 4, 3), {"stride": 2, "padding": 1}, (2, 3, 5, 5)),
    ((4, 4, 3), {"groups": 4, "padding": "same", "dilation": 2, "bias": False}, (2, 4, 6, 6)),
    ((2, 3, (1, 3)), {"padding": (0, 1), "padding_mode": "circular", "eps": 1e-3}, (2, 2, 4, 5)),
]


@pytest.mark.parametrize("args, options, shape", CASES)
def test_layer(args, options, shape):
    layer = scramble(WSConv2d(*args, **options, dtype=torch.float64))
    eps = options.get("eps", 1e-5)
    plain = nn.Conv2d(*args, **{k: v for k, v in options.items() if k != "eps"}, dtype=torch.float64)
    assert isinstance(layer, WEIGHTED) and list(layer.state_dict()) == list(plain.state_dict())
    plain.load_state_dict(layer.state_dict())
    with torch.no_grad():
        plain.weight.copy_(oracle(layer.weight, eps, layer.weight)[0])
    x = draw(*shape, seed=9)
    assert_near(layer(x), plain(x), rel=1e-12)
    again = WSConv2d(*args, **options, dtype=torch.float64)
    again.load_state_dict(layer.state_dict())
    assert torch.equal(again(x), layer(x)) and f"eps={eps}" in repr(layer)
    check_copies(layer, x)
    moved = copy.deepcopy(layer)
    with torch.no_grad():
        moved.weight.mul_(7).add_(3)  # W -> a W + b
    assert_near(moved(x), layer(x), rel=20 * eps + 1e-3)  # up to eps
    assert WSConv2d(*args, **options, device="meta").weight.is_meta


def test_in_a_network():
    one, two, plain = (
        cifar_resnet(8, conv=conv, generator=torch.Generator().manual_seed(0))
        for conv in (WSConv2d, WSConv2d, nn.Conv2d)
    )
    x = draw(2, 3, 8, 8, dtype=torch.float32)
    assert torch.equal(one(x), two(x)) and torch.equal(one.stem.weight, plain.stem.weight)
    optimizer, before = torch.optim.SGD(one.parameters(), lr=0.5), one.stem.weight.detach().clone()
    for _ in range(3):
        optimizer.zero_grad()
        (one(x) - 1).square().mean().backward()
        optimizer.step()
    assert_near(one.stem.weight.flatten(1).mean(1), before.flatten(1).mean(1), rel=1e-4)  # the gradient has no mean
    assert not torch.allclose(one.stem.weight, before)


@pytest.mark.parametrize(
    "arm", ["weight:weight_standardization.WSConv2d", "norm:weight_standardization.BatchChannelNorm"]
)
def test_fits_the_convnets_of_the_arena(arm):
    assert misfit("convnet", arm) is None


# --- Batch-Channel Normalization -------------------------------------------------------------------------------------


def in_floats(x, module, training, mean, var, speed):
    """CN(BN(x)) in Python floats, BN from `mean` and `var` if not training; also the running statistics afterwards."""
    p = {name: t.detach().flatten().tolist() for name, t in module.named_parameters()}
    groups, (b, c), rest = len(p["weight"]), x.shape[:2], x.shape[2:].numel()
    values, means, variances = x.flatten(2).tolist(), [], []
    estimate = isinstance(module.bn, EstBN)
    normal = [[None] * c for _ in range(b)]
    for k in range(c):
        column, mu, v = [t for image in values for t in image[k]], mean[k], var[k]
        if training:
            m = len(column)
            batch_mean = math.fsum(column) / m
            about = math.fsum((t - (mu if estimate else batch_mean)) ** 2 for t in column)
            unbiased = about / (m if estimate else m - 1)
            kept = (1 - speed) * mu + speed * batch_mean, (1 - speed) * v + speed * unbiased
            mu, v = kept if estimate else (batch_mean, about / m)
        else:
            kept = mu, v
        means.append(kept[0])
        variances.append(kept[1])
        for i in range(b):
            normal[i][k] = [p["bn.weight"][k] * (t - mu) / math.sqrt(v + 1e-5) + p["bn.bias"][k] for t in values[i][k]]
    y = [[None] * c for _ in range(b)]
    for i in range(b):
        for g in range(groups):
            inside = range(g * c // groups, (g + 1) * c // groups)
            together = [t for k in inside for t in normal[i][k]]
            mu = math.fsum(together) / len(together)
            root = math.sqrt(math.fsum((t - mu) ** 2 for t in together) / len(together) + 1e-5)
            for k in inside:
                y[i][k] = [p["weight"][g] * (t - mu) / root + p["bias"][g] for t in normal[i][k]]
    assert rest * b * c == sum(len(t) for image in y for t in image)
    return [torch.tensor(t, dtype=torch.float64) for t in (y, means, variances)]


def composed(module, x, training, running, fault=None):
    """The same of torch's own norms, for its gradients; `running`: [mean, var], changed in place as EstBN or BN do."""
    mean, var = running
    bn, estimate, speed, groups = module.bn, isinstance(module.bn, EstBN), 0.3, module.num_groups

    def batch(x):
        if not estimate:
            return F.batch_norm(x, mean, var, bn.weight, bn.bias, training, speed, 1e-5)
        used = [mean.clone(), var.clone()]
        if training:
            columns = (x if fault == "gradient through the estimates" else x.detach()).transpose(0, 1).flatten(1)
            about = columns.mean(1) if fault == "variance about the batch's mean" else mean
            new = [
                (1 - speed) * mean + speed * columns.mean(1),
                (1 - speed) * var + speed * (columns - about[:, None]).square().mean(1),
            ]
            if fault == "variance about the new mean":
                new[1] = (1 - speed) * var + speed * (columns - new[0][:, None]).square().mean(1)
            if fault == "speed of the old value":
                new = [
                    speed * mean + (1 - speed) * columns.mean(1),
                    speed * var + (1 - speed) * (columns - about[:, None]).square().mean(1),
                ]
            mean.copy_(new[0].detach())
            var.copy_(new[1].detach())
            used = used if fault == "updated after use" else new
            if fault == "batch statistics in training":
                used = [columns.mean(1), columns.var(1, correction=0)]
        return (
            F.batch_norm(x, *[t.detach() for t in used], bn.weight, bn.bias, False, 0.0, 1e-5)
            if fault != "gradient through the estimates"
            else (x - used[0][:, None, None]) / (used[1][:, None, None] + 1e-5).sqrt() * bn.weight[:, None, None]
            + bn.bias[:, None, None]
        )

    def channel(x):
        x = F.group_norm(x, {"one group": 1, "instance norm": x.shape[1]}.get(fault, groups), eps=1e-5)
        per = x.shape[1] if fault == "gain per channel" else groups
        weight, bias = (t.flatten().repeat(per // groups) for t in (module.weight, module.bias))
        weight, bias = (t.repeat_interleave(x.shape[1] // per)[:, None, None] for t in (weight, bias))
        return x * weight + (0 if fault == "no bias" else bias)

    return batch(channel(x)) if fault == "channel norm first" else channel(batch(x))


def check_bcn(function, estimate):
    """`function(module, x, training, running)` against the loops above, and its gradients against torch's norms."""
    for training in (True, False):
        for name, x in hard_inputs(3, 6, 2, 2).items():
            module = scramble(BatchChannelNorm(6, 2, momentum=0.3, estimate=estimate, dtype=torch.float64))
            start = [draw(6, seed=3), draw(6, seed=4).exp()]
            wanted = in_floats(x, module, training, *[t.tolist() for t in start], 0.3)
            results, floor = [], {"constant": 1e-9, "far": 1e-7}.get(name, 1e-25)
            for f in (function, composed):
                running, leaf = [t.clone() for t in start], x.clone().requires_grad_()
                leaves = [leaf, *module.parameters()]
                y = f(module, leaf, training, running)
                results.append(
                    (y.detach(), *running, *torch.autograd.grad(y, leaves, draw(*x.shape, seed=5), allow_unused=True))
                )
            (y, mean, var, *slopes), (*_, dx, dweight, dbias, dgain, dshift) = results
            for got, want in zip((y.flatten(2), mean, var), wanted, strict=True):
                assert_near(got, want, f"{name}, training={training}", rel=1e-6, floor=floor)
            if name in ("tiny", "huge", "minute", "spiked", "constant", "zero", "far"):
                continue  # gradients of ill-conditioned inputs: both are right to few digits only
            for got, want in zip(slopes, (dx, dweight, dbias, dgain, dshift), strict=True):
                assert_near(got, want, f"{name}, training={training}: gradient", rel=1e-7)


def ours(module, x, training, running):
    module = module.train(training)
    module.bn.running_mean.copy_(running[0])
    module.bn.running_var.copy_(running[1])
    if isinstance(module.bn, EstBN):
        module.bn.estbn_moving_speed.fill_(0.3)
    y = module(x)
    running[0].copy_(module.bn.running_mean)
    running[1].copy_(module.bn.running_var)
    return y


@pytest.mark.parametrize("estimate", [False, True])
@pytest.mark.parametrize("function", [ours, composed], ids=["ours", "unbroken"])
def test_bcn_oracle(function, estimate):
    check_bcn(function, estimate)


@pytest.mark.parametrize(
    "estimate, fault",
    [
        *(
            (e, fault)
            for e in (False, True)
            for fault in ("one group", "instance norm", "gain per channel", "no bias", "channel norm first")
        ),
        *(
            (True, fault)
            for fault in (
                "gradient through the estimates",
                "variance about the batch's mean",
                "variance about the new mean",
                "updated after use",
                "batch statistics in training",
                "speed of the old value",
            )
        ),
    ],
)
def test_bcn_mutant_dies(estimate, fault):
    with pytest.raises(AssertionError):
        check_bcn(partial(composed, fault=fault), estimate)


@pytest.mark.parametrize("shape, groups", [((2, 4, 2, 1), 2), ((2, 6, 2), None)])
def test_contract_in_large_batches(shape, groups):
    check_norm_contract(partial(BatchChannelNorm, shape[1], groups), None, draw(*shape))


@pytest.mark.parametrize("training", [True, False])
def test_contract_in_micro_batches(training):
    """The same checks, but for gradients in training, where x also moves the estimates and no gradient shows it."""
    make, x = partial(BatchChannelNorm, 4, 2, estimate=True), draw(2, 4, 3, 2)
    check_factory(make)
    check_dtypes(make().train(training), x)
    module = scramble(make(dtype=torch.float64)).train(training)
    check_copies(module, x)
    check_layouts(module, x)
    check_vmap([scramble(make(dtype=torch.float64), seed).train(training) for seed in range(3)], x)
    module.bn.estbn_moving_speed.zero_()
    check_gradients(module, x)


def test_state_dict_is_the_authors():
    names = ["weight", "bias", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var", "bn.num_batches_tracked"]
    one = scramble(BatchChannelNorm(64, estimate=True))
    assert list(BatchChannelNorm(64).state_dict()) == names
    assert list(one.state_dict()) == [*names, "bn.estbn_moving_speed"]
    assert one.weight.shape == one.bias.shape == (32,) and one.bn.estbn_moving_speed.shape == (1,)
    two = BatchChannelNorm(64, estimate=True)
    theirs = {name: t.view(1, -1, 1) if name in ("weight", "bias") else t for name, t in one.state_dict().items()}
    two.load_state_dict(theirs)
    x = draw(2, 64, 3, 3, dtype=torch.float32)
    assert torch.equal(two(x), one(x)) and two.bn.num_batches_tracked == 1


def test_d3_variance_about_the_old_mean_and_used_at_once():
    norm, x = EstBN(1, dtype=torch.float64), torch.tensor([[4.0], [6.0]], dtype=torch.float64)
    y = norm(x)  # mean 5 and, about 0, mean square 26, each with weight 0.1
    assert_near(norm.running_mean, torch.tensor([0.5]), rel=1e-6)
    assert_near(norm.running_var, torch.tensor([0.9 + 2.6]), rel=1e-6)
    assert_near(y.detach(), (x - 0.5) / math.sqrt(3.5 + 1e-5), rel=1e-6)
    assert_near(norm.eval()(x).detach(), y.detach(), rel=0)  # evaluation has what training had


def test_d4_first_speed():
    assert (
        EstBN(3).estbn_moving_speed.item()
        == BatchChannelNorm(4, estimate=True).bn.estbn_moving_speed.item()
        == pytest.approx(0.1)
    )
    norm = EstBN(3)
    norm.estbn_moving_speed.zero_()  # the authors' first value
    norm(5 + draw(7, 3, dtype=torch.float32))
    assert torch.equal(norm.running_mean, torch.zeros(3)) and torch.equal(norm.running_var, torch.ones(3))


@pytest.mark.parametrize(
    "channels, groups", [(64, 32), (512, 32), (16, 8), (8, 4), (48, 24), (7, 1), (2, 1), (1, 1), (96, 32)]
)
def test_d5_number_of_groups(channels, groups):
    assert BatchChannelNorm(channels).num_groups == groups


def test_d6_places_are_needed():
    for estimate in (False, True):
        norm = BatchChannelNorm(4, estimate=estimate)
        for x in (torch.ones(3, 4), torch.ones(4), torch.ones(3, 5, 2, 2), torch.ones(3, 1, 2, 2)):
            with pytest.raises(ValueError, match=r"is not \(N, 4, \*\) of at least 3 axes"):
                norm(x)
        assert norm.bn.num_batches_tracked == 0
    assert "ValueError" in misfit("mlp", "norm:weight_standardization.BatchChannelNorm")


def test_refuses():
    for groups in (4, 0, -2):
        with pytest.raises(ValueError, match="write a divisor"):
            BatchChannelNorm(6, groups)
    norm = EstBN(3)
    for x, error in (
        (torch.ones(2, 3, dtype=torch.long), TypeError),
        (torch.ones(3), ValueError),
        (torch.ones(2, 4), ValueError),
    ):
        with pytest.raises(error, match="float|of at least 2 axes"):
            norm(x)
    assert torch.equal(norm.running_var, torch.ones(3))


def test_estimates_settle_and_images_stand_alone():
    """With settled estimates EstBN is BN of the population, and an image does not see the others of its micro-batch."""
    norm = BatchChannelNorm(4, 2, momentum=0.01, estimate=True, dtype=torch.float64)
    for step in range(1500):
        norm(2 + 3 * draw(1, 4, 4, 4, seed=step))
    assert_near(norm.bn.running_mean, torch.full((4,), 2.0), rel=0.1)
    assert_near(norm.bn.running_var, torch.full((4,), 9.0), rel=0.15)
    x = draw(5, 4, 4, 4)
    norm.bn.estbn_moving_speed.zero_()
    assert_near(norm(x)[2:3], norm(x[2:3]), rel=1e-12)


def test_batch_norm_of_single_workers():
    """The baseline of the experiment: k workers with `size` images each, and the mean of their running statistics."""
    x, norm = 3 + draw(6, 4, 2, 3, dtype=torch.float32), GhostBatchNorm(4, 2)
    y, workers = norm(x), [nn.BatchNorm2d(4) for _ in range(3)]
    for j, worker in enumerate(workers):
        assert_near(y[j::3], worker(x[j::3]), rel=1e-6)
    for name in ("running_mean", "running_var"):
        assert_near(getattr(norm, name), torch.stack([getattr(worker, name) for worker in workers]).mean(0), rel=1e-6)
