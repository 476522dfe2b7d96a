import copy
import math
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from repro.papers.weight_norm import (
    MeanOnlyBatchNorm,
    WeightNorm,
    data_dependent_init,
    mean_only_batch_norm,
    weight_norm,
)
from repro.papers.weight_norm.cifar import convpool_cnn_c, whitened
from repro.testing import assert_near, check_float32, check_norm_contract, draw, mutation

# --- Equations 2 and 3 -----------------------------------------------------------------------------------------------


def oracle(g, v, upstream):
    """w and the gradients of sum(upstream * w), unit by unit in Python floats; v: (units, n), g: (units,)."""
    w, dv, dg = [], [], []
    for gain, row, up in zip(g.tolist(), v.tolist(), upstream.tolist(), strict=True):
        length = math.sqrt(math.fsum(x * x for x in row))
        slope = math.fsum(u * x for u, x in zip(up, row, strict=True)) / length
        w.append([gain * x / length for x in row])
        dg.append(slope)
        dv.append([gain / length * u - gain * slope / length**2 * x for u, x in zip(up, row, strict=True)])
    return [torch.tensor(t, dtype=torch.float64) for t in (w, dg, dv)]


def check(weight):
    """`weight(g, v)` with g: (units, 1, 1) and v: (units, 3, 2), and its gradients, at several sizes of v."""
    for size in (1.0, 1e-6, 1e6):
        g, v, upstream = 0.5 + draw(4, 1, 1).abs(), size * (0.3 + draw(4, 3, 2, seed=1)), draw(4, 3, 2, seed=2)
        leaves = [g.requires_grad_(), v.requires_grad_()]
        w = weight(*leaves)
        got = [w.detach(), *torch.autograd.grad(w, leaves, upstream)]
        want = oracle(g.detach().flatten(), v.detach().flatten(1), upstream.flatten(1))
        for name, a, b in zip(("w", "dg", "dv"), got, want, strict=True):
            assert_near(a.reshape(b.shape), b, f"{name} at {size}", rel=1e-9)


def broken(fault):
    def weight(g, v):
        length = torch.linalg.vector_norm(v, dim=(1, 2), keepdim=True)
        match fault:
            case "no norm":
                length = 1.0
            case "one norm":
                length = torch.linalg.vector_norm(v)
            case "norm over the outputs":
                length = torch.linalg.vector_norm(v, dim=0, keepdim=True)
            case "norm of a row of the kernel":
                length = torch.linalg.vector_norm(v, dim=2, keepdim=True)
            case "squared norm":
                length = length.square()
            case "root mean square":
                length = length / 6**0.5
            case "detached norm":
                length = length.detach()
            case "eps":
                length = length + 1e-5
            case "centred":
                v = v - v.mean((1, 2), keepdim=True)
            case "exp(g)":
                g = g.exp()
        return g * v / length

    return weight


test_oracle, test_mutant_dies = mutation(check, broken, WeightNorm())


@pytest.mark.parametrize(
    "build, x, dim",
    [
        (lambda: nn.Linear(5, 3), draw(2, 5), 0),
        (lambda: nn.Conv1d(4, 6, 3, groups=2), draw(2, 4, 5), 0),
        (lambda: nn.Conv2d(2, 3, 3, bias=False), draw(2, 2, 5, 5), 0),
        (lambda: nn.Linear(5, 3), draw(2, 5), None),
        (lambda: nn.ConvTranspose2d(2, 3, 3), draw(2, 2, 4, 4), 1),
    ],
)
def test_equal_to_torch(build, x, dim):
    torch.manual_seed(0)
    ours = build().double()
    theirs, plain = copy.deepcopy(ours), copy.deepcopy(ours)
    weight_norm(ours, dim=dim)
    parametrizations.weight_norm(theirs, dim=dim)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    with torch.no_grad():
        for p in theirs.parameters():
            p.add_(0.1 * draw(*p.shape, seed=5))
    assert not torch.equal(ours(x), theirs(x))
    ours.load_state_dict(theirs.state_dict())
    for layer in (ours, theirs):
        layer(x).square().sum().backward()
    for (name, a), (_, b) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        assert_near(a.grad, b.grad.view_as(a), name, rel=1e-9)
    want = ours(x)
    assert_near(want.detach(), theirs(x).detach())
    parametrize.remove_parametrizations(ours, "weight")
    assert_near(ours(x).detach(), want.detach())
    assert ours.state_dict().keys() == plain.state_dict().keys()


def test_layer_copies_compiles_and_keeps_float32():
    layer = weight_norm(nn.Linear(4, 3).double())
    x = draw(5, 4)
    want = layer(x).detach()
    torch.compiler.reset()
    compiled = torch.compile(copy.deepcopy(layer), backend="aot_eager", fullgraph=True)
    assert_near(compiled(x).detach(), want)
    assert torch.autograd.gradcheck(WeightNorm(), (draw(3, 1).requires_grad_(), draw(3, 4, seed=1).requires_grad_()))
    check_float32(lambda v: WeightNorm()(torch.ones(3, 1), v), draw(3, 4))


# --- departures ------------------------------------------------------------------------------------------------------


def test_d1_weight_norm_keeps_the_function():
    layer = nn.Conv2d(2, 3, 3).double()
    x, weight = draw(2, 2, 5, 5), layer.weight.detach().clone()
    want = layer(x).detach()
    assert weight_norm(layer) is layer
    assert_near(layer(x).detach(), want)
    parts = layer.parametrizations.weight
    assert torch.equal(parts.original1, weight) and parts.original0.shape == (3, 1, 1, 1)


def test_d2_units_of_a_transposed_convolution():
    layer = weight_norm(nn.ConvTranspose2d(2, 5, 3))
    assert layer.parametrizations.weight.original0.shape == (1, 5, 1, 1)
    assert "dim=1" in repr(layer)
    with pytest.raises(ValueError, match="write dim="):
        weight_norm(nn.ConvTranspose2d(4, 4, 3, groups=2))


def network():
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 9, 3)]
    net = nn.Sequential(*layers).double()
    for layer in (net[0], net[2], net[5]):
        weight_norm(layer)
    return net


def moments(t):
    rows = t.detach().transpose(0, 1).flatten(1)
    return rows.mean(1), rows.var(1, correction=0)


@pytest.mark.parametrize("std", [0.05, None])
def test_initialization(std):
    net, x = network().eval(), 2 + 3 * draw(32, 2, 5, 5)
    v = net[0].parametrizations.weight.original1.clone()
    data_dependent_init(net, x, std=std, generator=torch.Generator().manual_seed(0))
    assert not net.training and not any(module._forward_hooks for module in net.modules())
    for depth in (1, 3, 6):
        mean, variance = moments(net[:depth](x))
        assert_near(mean, torch.zeros_like(mean), floor=1e-9)
        assert_near(variance, torch.ones_like(variance), rel=1e-9)
    now = net[0].parametrizations.weight.original1
    assert torch.equal(now, v) if std is None else abs(now.std() / std - 1) < 0.3
    data_dependent_init(net, x, std=None)  # again: nothing is left to be done
    assert_near(moments(net(x))[1], torch.ones(3, dtype=torch.float64), rel=1e-9)


def test_initialization_draws_from_its_generator():
    nets = [network() for _ in range(3)]
    for net, seed in zip(nets, (0, 0, 1), strict=True):
        data_dependent_init(net, draw(8, 2, 5, 5), generator=torch.Generator().manual_seed(seed))
    a, b, c = (net[0].parametrizations.weight.original1 for net in nets)
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_d3_a_constant_unit_keeps_its_gain():
    layer = weight_norm(nn.Linear(3, 2).double())
    data_dependent_init(layer, torch.ones(4, 3, dtype=torch.float64))
    assert torch.equal(layer.parametrizations.weight.original0, torch.ones(2, 1, dtype=torch.float64))
    assert layer(torch.ones(4, 3, dtype=torch.float64)).abs().max() < 1e-12


def test_d4_no_eps():
    assert WeightNorm()(torch.ones(2, 1), torch.zeros(2, 3)).isnan().all()
    tiny = 1e-18 * draw(2, 3, dtype=torch.float32)
    assert_near(WeightNorm()(torch.ones(2, 1), tiny).norm(dim=1), torch.ones(2), rel=1e-5)


def test_d5_without_a_bias_only_the_scale():
    net = nn.Sequential(weight_norm(nn.Linear(4, 3, bias=False).double()), MeanOnlyBatchNorm(3).double())
    x = 2 + draw(64, 4)
    data_dependent_init(net, x)
    mean, variance = moments(net[0](x))
    assert mean.abs().max() > 0.1
    assert_near(variance, torch.ones_like(variance), rel=1e-9)
    assert_near(moments(net(x))[0], torch.zeros(3, dtype=torch.float64), floor=1e-9)
    assert_near(net[1].running_mean, 0.19 * mean, rel=1e-6)  # the pass of the initialization and this one


def test_errors():
    with pytest.raises(ValueError, match=r"write weight_norm\(layer\)"):
        data_dependent_init(nn.Linear(2, 2), torch.ones(3, 2))
    with pytest.raises(ValueError, match="a norm for every unit"):
        data_dependent_init(weight_norm(nn.Linear(2, 2), dim=None), torch.ones(3, 2))
    layer = weight_norm(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="used twice"):
        data_dependent_init(nn.Sequential(layer, layer), torch.randn(3, 2))
    with pytest.raises(ValueError, match=r"is not \(N, 3, \*\)"):
        MeanOnlyBatchNorm(3)(torch.ones(2, 4))


# --- mean-only batch normalization -----------------------------------------------------------------------------------


def check_mean_only(norm):
    """Two training passes, whose gradients are centred, and one of evaluation."""
    running, bias = torch.tensor([0.5, -1.0], dtype=torch.float64), draw(2, seed=9)
    want = running.clone()
    for i in range(2):
        x, upstream = (1 + draw(3, 2, 4, seed=i)).requires_grad_(), draw(3, 2, 4, seed=7)
        b = bias.clone().requires_grad_()
        y = norm(x, running, b, True, 0.1)
        mean = x.detach().mean((0, 2))
        want = 0.9 * want + 0.1 * mean
        dx, db = torch.autograd.grad(y, (x, b), upstream)
        assert_near(y.detach(), x.detach() - mean.view(1, 2, 1) + bias.view(1, 2, 1), "y")
        assert_near(dx, upstream - upstream.mean((0, 2), keepdim=True), "dx")
        assert_near(db, upstream.sum((0, 2)), "db")
        assert_near(running, want, "running mean")
    x = draw(1, 2, 4, seed=3)
    assert_near(norm(x, running, bias, False, 0.1), x - (want - bias).view(1, 2, 1), "evaluation")
    assert_near(running, want, "running mean after evaluation")


def broken_mean_only(fault):
    def norm(x, running, bias, training, momentum):
        axes = (0,) if fault == "mean of a place" else (1,) if fault == "mean over channels" else (0, 2)
        mean = x.mean(axes, keepdim=True) if training or fault == "batch mean in evaluation" else running.view(1, -1, 1)
        if training or fault == "updated in evaluation":
            share = 1 - momentum if fault == "momentum of the old value" else momentum
            running.copy_((1 - share) * running + share * x.detach().mean((0, 2)))
        if fault == "detached mean":
            mean = mean.detach()
        if fault == "running mean in training":
            mean = running.view(1, -1, 1)
        y = x - mean
        if fault == "deviation too":
            y = y / x.std((0, 2), keepdim=True)
        return y - bias.view(1, -1, 1) if fault == "bias subtracted" else y + bias.view(1, -1, 1)

    return norm


test_mean_only, test_mean_only_mutant_dies = mutation(check_mean_only, broken_mean_only, mean_only_batch_norm)


@pytest.mark.parametrize("bias", [True, False])
def test_contract(bias):
    check_norm_contract(partial(MeanOnlyBatchNorm, 3, bias=bias), None, 1 + draw(4, 3, 2))


# --- the network of Table 2 -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arm", ["wn_mobn", "wn", "plain", "plain_mobn", "bn"])
def test_convpool_cnn_c(arm):
    """Maps of 32, 16, 8 and 6 pixels; a bias for every unit and, with a norm of lengths, a gain for every unit."""
    units, weights = [96] * 3 + [192] * 6 + [10], 0
    for a, b, kernel in zip([3, *units], units, [3] * 7 + [1] * 3, strict=False):
        weights += a * b * kernel**2
    net = convpool_cnn_c(arm, 96, 0.15, 10, torch.Generator().manual_seed(0))
    trained = sum(p.numel() for p in net.parameters() if p.requires_grad)
    assert weights == 1_405_344 and trained == weights + sum(units) * (1 if arm.startswith("plain") else 2)
    norms = [len(layer.running_mean) for layer in net if hasattr(layer, "running_mean")]
    assert norms == (units if arm == "bn" or "mobn" in arm else [])
    kept = [layer.weight.std() for layer in net if isinstance(layer, nn.Conv2d | nn.Linear)]
    assert len(kept) == 10 and all(abs(std / 0.05 - 1) < 0.1 for std in kept)
    sides = []
    for layer in net:
        layer.register_forward_hook(lambda layer, args, y: sides.append(y.shape[-1]) if y.dim() == 4 else None)
    assert net(torch.randn(2, 3, 32, 32)).shape == (2, 10)
    assert sorted(set(sides)) == [6, 8, 16, 32]


def test_ordinary_weights_keep_the_scale_of_the_first_batch():
    """The authors' no_norm: unit variance after the initialization, w = g v with a g that is not trained."""
    net = convpool_cnn_c("plain", 2, 0.0, 10, torch.Generator().manual_seed(0))
    for layer in net:
        layer.p = 0.0  # no dropout
    x = draw(32, 3, 32, 32).float()
    data_dependent_init(net, x, std=None)
    assert_near(moments(net(x))[1], torch.ones(10), rel=1e-3)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    net(x).square().sum().backward()
    torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1).step()
    same = {name for name, p in net.named_parameters() if torch.equal(p, before[name])}
    assert same == {name for name in before if name.endswith("original0")} and len(same) == 10


def test_whitening():
    """Covariance 1 where it is large against the ridge; the test images are turned by the training images' matrix."""
    x = (draw(400, 2, 3, 3).flatten(1) @ draw(18, 18, seed=1)).view(400, 2, 3, 3) + 5
    white, other = whitened(x, x[:7], 1e-9)
    covariance = white.flatten(1).double().T.cov(correction=0)
    assert_near(covariance, torch.eye(18).double(), floor=1e-3)
    assert_near(other, white[:7], rel=1e-5)
    values, vectors = torch.linalg.eigh(x.flatten(1).T.cov(correction=0))
    root = vectors @ values.sqrt().diag() @ vectors.T  # its symmetric root turns them back
    assert_near(white.flatten(1).double() @ root + x.flatten(1).mean(0), x.flatten(1), rel=1e-4)
