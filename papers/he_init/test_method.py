import copy
import itertools
import math
from functools import cache
from statistics import fmean

import pytest
import torch
from torch import nn

from repro.models.convnet import cifar_resnet
from repro.models.gpt import GPT
from repro.models.mlp import MLP
from repro.papers.he_init import he_gain, he_init_, he_normal_, he_uniform_
from repro.papers.he_init.method import connections, slope_of
from repro.testing import assert_near, draw, mutation


def source(seed=0):
    return torch.Generator().manual_seed(seed)


# --- the variance, against an oracle that counts connections one by one -----------------------------------------------


@cache
def rectified_second_moment(a, points=4001):
    """E[f(y)^2] of a standard normal y by the trapezoidal rule in Python floats."""
    ys = [-10 + 20 * i / (points - 1) for i in range(points)]
    return (
        sum((max(0.0, y) + a * min(0.0, y)) ** 2 * math.exp(-y * y / 2) for y in ys)
        * 20
        / (points - 1)
        / math.sqrt(2 * math.pi)
    )


def counted(shape, mode):
    """Connections of a response (fan_in) or of an input (fan_out) of an unpadded layer, by walking over its weight."""
    places = itertools.product(*(range(k) for k in shape[2:]))
    return sum(shape[1 if mode == "fan_in" else 0] for _ in places)


def check(fill):
    """fill(shape, a, mode, generator) draws zero-mean weights of the variance that keeps the second moment."""
    for shape in ((300, 200), (24, 40, 5, 5), (30, 60, 7), (8, 20, 5, 3, 4)):
        for a, mode in itertools.product((0.0, 0.25, 1.0, -0.5, 3.0), ("fan_in", "fan_out")):
            w = fill(shape, a, mode, source(1))
            want = 1 / (counted(shape, mode) * rectified_second_moment(a))
            spread = 6 * math.sqrt(2 / w.numel())
            assert abs(w.double().square().mean().item() / want - 1) < spread, (shape, a, mode)
            assert abs(w.double().mean().item()) < 6 * math.sqrt(want / w.numel())


def ours(fill):
    return lambda shape, a, mode, generator: fill(torch.empty(shape), a, mode, generator=generator)


def broken(fault):
    def fill(shape, a, mode, generator):
        w = he_normal_(torch.empty(shape), a, mode, generator=generator)
        n, gain = counted(shape, mode), math.sqrt(2 / (1 + a * a))
        match fault:
            case "xavier":
                return w / gain
            case "average of the fans":
                other = counted(shape, "fan_out" if mode == "fan_in" else "fan_in")
                return w * math.sqrt(n / ((n + other) / 2))
            case "the variance as a deviation":
                return w * gain / math.sqrt(n)
            case "slope forgotten":
                return w / gain * math.sqrt(2)
            case "slope not squared":
                return w / gain * math.sqrt(2 / (1 + abs(a)))
            case "kernel not counted":
                return w * math.sqrt(n / shape[mode == "fan_in"])
            case "fans exchanged":
                return he_normal_(w, a, "fan_out" if mode == "fan_in" else "fan_in", generator=generator)
            case "torch's default":
                return nn.init.kaiming_uniform_(w, math.sqrt(5), mode, generator=generator)
            case "uniform of that bound":
                return he_uniform_(w, a, mode, generator=generator) / math.sqrt(3)
            case "truncated and not rescaled":
                std = gain / math.sqrt(n)
                return nn.init.trunc_normal_(w, 0.0, std, -2 * std, 2 * std, generator=generator)
            case "half of them negative":
                return w.abs()
        return w

    return fill


test_oracle, test_mutant_dies = mutation(check, broken, {"normal": ours(he_normal_), "uniform": ours(he_uniform_)})


@pytest.mark.parametrize("mode", ["fan_in", "fan_out"])
@pytest.mark.parametrize("a", [0.0, 0.25, -2.0])
def test_peers(a, mode):
    """torch.nn.init draws the same numbers."""
    for ours_, theirs in ((he_normal_, nn.init.kaiming_normal_), (he_uniform_, nn.init.kaiming_uniform_)):
        for shape in ((5, 7), (4, 6, 3, 3)):
            got = ours_(torch.empty(shape), a, mode, generator=source())
            assert_near(got, theirs(torch.empty(shape), a, mode, generator=source()), rel=1e-6)
    assert he_gain(a) == pytest.approx(nn.init.calculate_gain("leaky_relu", a), rel=1e-12)


def test_gains():
    assert he_gain() == math.sqrt(2) and he_gain(1.0) == 1.0 and he_gain(0.25) == he_gain(-0.25)
    for a in (0.0, 0.25, 1.0, 2.0):
        assert he_gain(a) ** 2 * rectified_second_moment(a) == pytest.approx(1.0, rel=1e-4)  # Eq. 15


def test_in_place_and_errors():
    w = torch.zeros(4, 3, requires_grad=True)
    assert he_normal_(w, generator=source()) is w and w.requires_grad and w.grad_fn is None and w.all()
    for bad in (torch.empty(3), torch.tensor(1.0)):
        with pytest.raises(ValueError, match=r"write a weight \(d, c, \*kernel\)"):
            he_normal_(bad)
    for call in (he_normal_, he_uniform_, lambda w, mode: he_init_(nn.Linear(2, 2), mode=mode)):
        with pytest.raises(ValueError, match="write fan_in or fan_out"):
            call(torch.empty(2, 2), mode="fan_avg")
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        assert he_uniform_(torch.empty(64, 64, dtype=dtype), generator=source()).double().std() == pytest.approx(
            math.sqrt(2 / 64), rel=0.05
        )
    assert he_normal_(torch.empty(3, 2, device="meta")).is_meta


# --- departures -------------------------------------------------------------------------------------------------------


def test_d1_uniform():
    w = he_uniform_(torch.empty(300, 150), generator=source()).double()
    bound = math.sqrt(6 / 150)
    assert w.abs().max() <= bound and w.abs().max() > 0.999 * bound
    assert (w.abs() < bound / 2).double().mean().item() == pytest.approx(0.5, abs=0.01)


def test_d2_last_layer():
    net = MLP([400, 300, 200, 100], generator=source())
    he_init_(net, source())
    for layer in (net.hidden[0].linear, net.hidden[1].linear, net.head):
        assert layer.weight.std().item() == pytest.approx(math.sqrt(2 / layer.in_features), rel=0.03)


def responses(layer):
    """Mean number of weights in a response of the layer's interior, and of responses that one input feeds."""
    layer = copy.deepcopy(layer).double()
    nn.init.ones_(layer.weight)
    x = torch.ones(1, layer.in_channels, 24, 24, dtype=torch.float64, requires_grad=True)
    y = layer(x)
    (dx,) = torch.autograd.grad(y.sum(), x)
    half = y.shape[-1] // 4 // 2 * 2
    return y[..., half:-half, half:-half].mean().item(), dx[..., 8:-8, 8:-8].mean().item()


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(6, 9, 3, bias=False),
        nn.Conv2d(6, 9, 3, groups=3, bias=False),
        nn.Conv2d(8, 8, (3, 5), groups=8, bias=False),
        nn.ConvTranspose2d(6, 9, 3, bias=False),
        nn.ConvTranspose2d(6, 9, 4, 2, bias=False),
        nn.ConvTranspose2d(6, 9, 4, 2, groups=3, bias=False),
    ],
    ids=repr,
)
def test_d3_connections(layer):
    summed, fed = responses(layer)
    assert connections(layer, "fan_in") == pytest.approx(summed) and connections(layer, "fan_out") == pytest.approx(fed)
    he_init_(layer, source())
    want = he_normal_(torch.empty(400, 400), generator=source()).std().item() * math.sqrt(400 / summed)
    assert layer.weight.std().item() == pytest.approx(want, rel=0.3)


def test_d4_slopes():
    prelu = nn.PReLU(2)
    prelu.weight.data = torch.tensor([0.3, 0.4])
    assert slope_of(nn.Sequential(nn.Linear(2, 2), prelu)) == pytest.approx(math.sqrt(0.125))
    for act, a in ((nn.ReLU, 0.0), (nn.PReLU, 0.25), (nn.LeakyReLU, 0.01), (nn.Tanh, 0.0)):
        assert slope_of(MLP([2, 2, 2, 2], act=act, generator=source())) == pytest.approx(a)
    mixed = nn.Sequential(nn.Linear(200, 200), nn.ReLU(), nn.Linear(200, 5), nn.PReLU())
    with pytest.raises(ValueError, match=r"slopes \[0.0, 0.25\]; write a="):
        he_init_(mixed)
    he_init_(mixed, source(), a=1.0)
    assert mixed[0].weight.std().item() == pytest.approx(200**-0.5, rel=0.03)


# --- on models --------------------------------------------------------------------------------------------------------


def second_moments(net, x):
    seen = []
    hooks = [
        module.register_forward_hook(lambda _, args, y: seen.append(y.double().square().mean().item()))
        for module in net.modules()
        if isinstance(module, nn.Linear)
    ]
    net(x)
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize("act", [nn.ReLU, nn.PReLU, lambda: nn.LeakyReLU(0.5)], ids=["relu", "prelu", "leaky"])
def test_signals_keep_their_size(act):
    """Eq. 9, and Eq. 13 with fan_out: over ten layers, as the mean of the logarithms over draws."""
    forward, backward = [], []
    for seed in range(6):
        net = MLP([200] * 11 + [200], act=act, init=he_init_, generator=source(seed))
        moments = second_moments(net, draw(16, 200, seed=seed, dtype=torch.float32))
        forward.append(math.log2(moments[9] / moments[1]))
        he_init_(net, source(seed), mode="fan_out")
        x = draw(16, 200, seed=seed, dtype=torch.float32).requires_grad_()
        upstream = draw(16, 200, seed=seed + 50, dtype=torch.float32)
        (dx,) = torch.autograd.grad(net(x), x, upstream)
        backward.append(
            math.log2(dx.square().mean().item() / upstream.square().mean().item())
            - math.log2(he_gain(slope_of(net)) ** 2)
        )
    assert abs(fmean(forward)) < 0.6
    assert abs(fmean(backward)) < 1.0


def models():
    return {
        "mlp": MLP([6, 8, 8, 3], generator=source(), bias=True),
        "convnet": cifar_resnet(8, generator=source(), width=4),
        "gpt": GPT(16, 8, 8, 2, heads=2, bias=True, generator=source()),
        "torch": nn.Sequential(
            nn.Conv1d(3, 4, 3, padding=1), nn.BatchNorm1d(4), nn.PReLU(4), nn.ConvTranspose1d(4, 2, 2)
        ),
    }


@pytest.mark.parametrize("kind", models())
def test_init_of(kind):
    net, drawn = models()[kind], set()
    for module in net.modules():
        if isinstance(module, nn.Linear | nn.modules.conv._ConvNd):
            drawn |= {id(p) for p in module.parameters(recurse=False)}
            if module.bias is not None:
                nn.init.ones_(module.bias)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    assert he_init_(net, source(1)) is None
    for name, p in net.named_parameters():
        if id(p) not in drawn:
            assert torch.equal(p, before[name]), f"{name} is no weight of a layer"
        elif p.dim() == 1:
            assert not p.any(), name
        else:
            assert not torch.equal(p, before[name]), name
    again, other = models()[kind], models()[kind]
    he_init_(again, source(1))
    he_init_(other, source(2))
    weights = [p for p in net.parameters() if id(p) in drawn and p.dim() > 1]
    assert all(torch.equal(p, again.get_parameter(n)) for n, p in net.named_parameters() if p.dim() > 1)
    assert weights and any(not torch.equal(p, other.get_parameter(n)) for n, p in net.named_parameters())


def test_slot_and_global_generator():
    slotted, plain = MLP([6, 8, 3], init=he_init_, generator=source(3)), MLP([6, 8, 3], generator=source(3))
    assert not torch.equal(slotted.head.weight, plain.head.weight)
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        he_init_(slotted)
        torch.manual_seed(0)
        assert torch.equal(
            nn.init.kaiming_normal_(torch.empty(8, 6), nonlinearity="relu"), slotted.hidden[0].linear.weight
        )
