import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from repro.models.convnet import Bottleneck, ConvNet, cifar_resnet
from repro.models.slots import WEIGHTED, draw_
from repro.papers.nf_resnet import (
    NFBlock,
    ScaledActivation,
    ScaledWSConv2d,
    ScaledWSLinear,
    activation_gamma,
    nf_resnet,
    scaled_ws,
    signal_propagation_plot,
)
from repro.papers.nf_resnet.experiment import AUTHORS
from repro.testing import assert_near, check_float32, check_vmap, draw, hard_inputs, mutation, quiet_import


def source(seed=0):
    return torch.Generator().manual_seed(seed)


# --- Scaled Weight Standardization -----------------------------------------------------------------------------------


def oracle(weight, gain, upstream, eps=1e-4):
    """The equation in Python floats, one output at a time: W_hat, and the gradients of sum(upstream * W_hat)."""
    rows, drows, dgain = [], [], []
    for row, g, up in zip(weight.flatten(1).tolist(), gain.tolist(), upstream.flatten(1).tolist(), strict=True):
        n = len(row)
        mu = math.fsum(row) / n
        total = math.fsum((v - mu) ** 2 for v in row)  # N sigma^2
        scale = 1 / math.sqrt(max(total, eps))
        normal = [(v - mu) * scale for v in row]
        mean, along = math.fsum(up) / n, math.fsum(u * v for u, v in zip(up, normal, strict=True))
        rows.append([g * v for v in normal])
        drows.append(
            [g * scale * (u - mean - (along * v if total > eps else 0)) for u, v in zip(up, normal, strict=True)]
        )
        dgain.append(along)
    y, dw, dg = (torch.tensor(part, dtype=torch.float64) for part in (rows, drows, dgain))
    return {"W_hat": y.view_as(weight), "dW": dw.view_as(weight), "dg": dg}


def check(standardise):
    """`standardise(weight, gain)` and its gradients agree with the oracle; outputs, inputs and kernel differ in
    number.
    """
    for name, weight in hard_inputs(4, 3, 2, 3).items():
        gain, upstream = 1 + 0.3 * draw(4, seed=1), draw(*weight.shape, seed=2)
        leaves = [t.clone().requires_grad_() for t in (weight, gain)]
        got = standardise(*leaves)
        grads = torch.autograd.grad(got, leaves, upstream)
        floor = {"constant": 1e-12, "zero": 1e-12}.get(name, 1e-25)  # rounding of the mean over sqrt(eps)
        for key, value in zip(("W_hat", "dW", "dg"), (got.detach(), *grads), strict=True):
            assert_near(value, oracle(weight, gain, upstream)[key], f"{name}: {key}", floor=floor)


def broken(fault):
    def standardise(weight, gain):
        axes = {
            "over inputs alone": (1,),
            "over the kernel alone": (2, 3),
            "over outputs": (0, 2, 3),
            "over all weights": (0, 1, 2, 3),
        }.get(fault, (1, 2, 3))
        mean, var = weight.mean(axes, keepdim=True), weight.var(axes, keepdim=True, correction=fault == "unbiased")
        if fault == "detached statistics":
            mean, var = mean.detach(), var.detach()
        if fault == "not centred":
            mean = 0 * mean
        n = weight.shape[0] * 6 if fault == "fan-out" else 1 if fault == "no fan-in" else 18
        scale = (n * var).clamp_min(1e-4).rsqrt()
        if fault == "eps added":
            scale = (n * var + 1e-4).rsqrt()
        if fault == "eps below sigma^2":
            scale = (n * var.clamp_min(1e-4)).rsqrt()
        if fault == "gamma too":  # the activation has it already
            scale = scale * 1.7128585504
        if fault == "half-precision statistics":
            mean = mean.bfloat16().double()
        if fault == "gain + 1":
            gain = 1 + gain
        return (
            (weight - mean) * scale * (gain.view(-1, 1, 1, 1) if fault != "no gain" else 1 + 0 * gain.view(-1, 1, 1, 1))
        )

    return standardise


test_oracle, test_mutant_dies = mutation(check, broken, scaled_ws)


def test_gradcheck():
    leaves = [t.requires_grad_() for t in (draw(3, 2, 2, 2), 1 + draw(3, seed=1))]
    assert torch.autograd.gradcheck(scaled_ws, leaves) and torch.autograd.gradgradcheck(scaled_ws, leaves)


@pytest.mark.parametrize("groups, kernel", [(1, 3), (2, 1), (4, 3)])
def test_timm_agrees(groups, kernel):
    theirs = quiet_import("timm.layers").ScaledStdConv2d(4, 8, kernel, padding=kernel // 2, groups=groups).double()
    ours = ScaledWSConv2d(4, 8, kernel, padding=kernel // 2, groups=groups, dtype=torch.float64)
    with torch.no_grad():
        ours.weight.copy_(5 + draw(*ours.weight.shape))
        ours.gain.copy_(draw(8, seed=1))
        theirs.weight.copy_(ours.weight)
        theirs.gain.copy_(ours.gain.view(-1, 1, 1, 1))
        theirs.bias.copy_(ours.bias.copy_(draw(8, seed=2)))
    x = draw(2, 4, 5, 5, seed=3)
    assert_near(ours(x), theirs(x), rel=1e-4)  # their eps


def test_d1_floor_below_the_variance():
    weight = torch.tensor([[-1e-3, 1e-3]], dtype=torch.float64)  # N sigma^2 = 2e-6 against 1e-4
    assert_near(scaled_ws(weight, torch.ones(1)), 100 * weight, rel=1e-12)
    assert_near(scaled_ws(10 * weight, torch.ones(1)), 1e3 * weight / 2**0.5, rel=1e-12)  # no eps at all
    assert torch.equal(scaled_ws(torch.full((1, 4), 3.0), torch.ones(1)), torch.zeros(1, 4))


def test_d3_gain_bias_and_first_weights():
    for layer in (ScaledWSConv2d(32, 200, 3), ScaledWSLinear(288, 200)):
        assert list(layer.state_dict()) == ["weight", "bias", "gain"]
        assert torch.equal(layer.gain, torch.ones(200)) and torch.equal(layer.bias, torch.zeros(200))
        assert abs(layer.weight.detach().var().item() * 288 - 1) < 0.02
    assert NFBlock(nn.ReLU(), nn.Identity()).skip_gain.item() == 0
    x = draw(2, 3, 8, 8, dtype=torch.float32)
    flat, grown = (
        signal_propagation_plot(nf_resnet(8, skip_gain=s, generator=source()), x)["variance"] for s in (0.0, 1.0)
    )
    assert flat[0] < grown[0]


def test_reset_keeps_the_parameters_and_scalars_of_before_load():
    layer = ScaledWSConv2d(3, 4, 3)
    kept = {name: id(p) for name, p in layer.named_parameters()}
    layer.gain.data.fill_(3.0)
    layer.reset_parameters()
    assert {name: id(p) for name, p in layer.named_parameters()} == kept and (layer.gain == 1).all()
    block = NFBlock(nn.Identity(), nn.Identity())
    block.load_state_dict({"skip_gain": torch.tensor(0.5)})  # a scalar once, which fully_shard refuses
    assert block.skip_gain.shape == (1,) and block.skip_gain == 0.5


def test_float32():
    check_float32(lambda weight: scaled_ws(weight, torch.ones(4, dtype=weight.dtype)), 3 + draw(4, 64))
    with torch.autocast("cpu", torch.bfloat16):
        assert ScaledWSLinear(64, 4)(draw(2, 64, dtype=torch.float32)).dtype == torch.bfloat16


# --- the layers ------------------------------------------------------------------------------------------------------

CASES = [
    (ScaledWSConv2d, nn.Conv2d, (3, 4, 3), {"stride": 2, "padding": 1}, (2, 3, 5, 5)),
    (
        ScaledWSConv2d,
        nn.Conv2d,
        (4, 4, 3),
        {"groups": 4, "padding": "same", "dilation": 2, "bias": False},
        (2, 4, 6, 6),
    ),
    (ScaledWSConv2d, nn.Conv2d, (2, 3, (1, 3)), {"padding": (0, 1), "padding_mode": "circular"}, (2, 2, 4, 5)),
    (ScaledWSLinear, nn.Linear, (5, 4), {}, (2, 5)),
    (ScaledWSLinear, nn.Linear, (5, 4), {"bias": False}, (2, 3, 5)),
]


@pytest.mark.parametrize("ours, twin, args, options, shape", CASES)
def test_layer(ours, twin, args, options, shape):
    layer, plain = ours(*args, **options, dtype=torch.float64), twin(*args, **options, dtype=torch.float64)
    assert isinstance(layer, twin) and isinstance(layer, WEIGHTED)
    with torch.no_grad():
        for seed, parameter in enumerate(layer.parameters()):
            parameter.copy_(1 + draw(*parameter.shape, seed=seed))
        plain.load_state_dict(layer.state_dict(), strict=False)
        plain.weight.copy_(oracle(layer.weight, layer.gain, layer.weight)["W_hat"])
    x = draw(*shape, seed=9)
    assert_near(layer(x), plain(x), rel=1e-12)
    assert_near(copy.deepcopy(layer)(x), layer(x), rel=0)
    again = ours(*args, **options, dtype=torch.float64)
    again.load_state_dict(layer.state_dict())
    assert torch.equal(again(x), layer(x))
    moved = copy.deepcopy(layer)
    with torch.no_grad():
        moved.weight.mul_(7).add_(3)  # W -> a W + b
    assert_near(moved(x), layer(x), rel=1e-10)
    torch.compiler.reset()
    assert_near(torch.compile(layer, fullgraph=True, backend="aot_eager")(x), layer(x), rel=1e-12)
    assert ours(*args, **options, device="meta").gain.is_meta


def test_layers_under_vmap():
    check_vmap([ScaledWSLinear(5, 5, dtype=torch.float64) for _ in range(3)], draw(2, 5))


def test_standardised_throughout_training():
    layer = ScaledWSConv2d(3, 4, 3)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.5)
    for step in range(3):
        optimizer.zero_grad()
        (layer(draw(2, 3, 6, 6, seed=step, dtype=torch.float32)) - 1).square().mean().backward()
        optimizer.step()
    rows = scaled_ws(layer.weight, torch.ones(4)).flatten(1)
    assert layer.weight.flatten(1).norm(dim=1).sub(1).abs().max() > 0.01
    assert_near(rows.norm(dim=1), torch.ones(4), rel=1e-5)
    assert rows.sum(1).abs().max() < 1e-5


@pytest.mark.parametrize("layer", [ScaledWSLinear(1, 3), ScaledWSConv2d(4, 4, 1, groups=4)])
def test_fan_in_of_one(layer):
    with pytest.raises(ValueError, match="fan-in of 1"):
        layer(torch.ones(2, *([1] if isinstance(layer, nn.Linear) else [4, 2, 2])))


def test_conv_slot_of_the_shared_networks():
    one, two = (cifar_resnet(8, conv=ScaledWSConv2d, generator=source()) for _ in range(2))
    plain = cifar_resnet(8, generator=source())
    x = draw(2, 3, 8, 8, dtype=torch.float32)
    assert torch.equal(one(x), two(x)) and one(x).shape == (2, 10)
    assert torch.equal(one.stem.weight, plain.stem.weight)  # equal seeds, equal weights
    draw_(one.stem, 0.1, source())
    assert torch.equal(one.stem.gain, torch.ones(16))


# --- gamma -----------------------------------------------------------------------------------------------------------

EXACT = {  # Var g(z) in closed form
    "relu": (F.relu, (1 - 1 / math.pi) / 2),
    "identity": (lambda z: z, 1.0),
    "absolute": (torch.abs, 1 - 2 / math.pi),
    "square": (torch.square, 2.0),
    "step": (lambda z: (z > 0).double(), 0.25),
    "exponential": (torch.exp, math.exp(2) - math.e),
    "selu": (F.selu, 1.0),
    "leaky": (lambda z: F.leaky_relu(z, 0.2), (1 + 0.04) / 2 - 0.64 / (2 * math.pi)),
}


def check_gamma(gamma):
    for name, (g, variance) in EXACT.items():
        tolerance = {"selu": 1e-7, "step": 1e-4}.get(name, 1e-8)
        assert abs(gamma(g) * math.sqrt(variance) - 1) < tolerance, name
    for name, g in {"tanh": math.tanh, "silu": lambda v: v / (1 + math.exp(-v))}.items():  # a sum in Python floats
        nodes = [i / 100 for i in range(-1000, 1001)]
        weights = [math.exp(-v * v / 2) / 100 / math.sqrt(2 * math.pi) for v in nodes]
        first, second = (math.fsum(w * g(v) ** k for v, w in zip(nodes, weights, strict=True)) for k in (1, 2))
        assert abs(gamma(name) - 1 / math.sqrt(second - first**2)) < 1e-9, name


def wrong_gamma(fault):
    def gamma(activation):
        g = getattr(F, activation) if isinstance(activation, str) else activation
        z = torch.linspace(-10, 10, 200_001, dtype=torch.float64)
        p = torch.exp(-z.square() / (4 if fault == "variance 2" else 2))
        p = torch.ones_like(p) if fault == "uniform" else p
        mean, square = (p * g(z)).sum() / p.sum(), (p * g(z).square()).sum() / p.sum()
        variance = square if fault == "uncentred" else square - mean.square()
        return float({"variance": 1 / variance, "reciprocal": variance.sqrt()}.get(fault, variance.rsqrt()))

    return gamma


@pytest.mark.parametrize("gamma", [activation_gamma, wrong_gamma(None)], ids=["ours", "unbroken"])
def test_gamma(gamma):
    check_gamma(gamma)


@pytest.mark.parametrize("fault", ["uncentred", "uniform", "variance 2", "variance", "reciprocal"])
def test_gamma_mutant_dies(fault):
    with pytest.raises(AssertionError):
        check_gamma(wrong_gamma(fault))


def test_gamma_against_the_tables():
    timm = quiet_import("timm.models.nfnet")._nonlin_gamma
    for name, value in AUTHORS.items():
        assert timm[{"logsigmoid": "log_sigmoid"}.get(name, name)] == value
        assert abs(value / activation_gamma(name) - 1) < 2e-3
    assert abs(activation_gamma("relu") - math.sqrt(2 / (1 - 1 / math.pi))) < 1e-12
    assert activation_gamma(nn.GELU()) == activation_gamma("gelu")


@pytest.mark.parametrize(
    "activation, message",
    [
        ("swoosh", "name of torch.nn.functional"),
        (7, "name of torch.nn.functional"),
        (torch.zeros_like, "one that varies"),
        (torch.log, "one that varies"),
    ],
)
def test_gamma_refuses(activation, message):
    with pytest.raises(ValueError, match=message):
        activation_gamma(activation)


def test_d2_gamma_in_the_activation():
    x = draw(200_000)
    for name in ("relu", "silu", "gelu"):
        assert abs(ScaledActivation(name)(x).var().item() - 1) < 0.02
    weight, gain = draw(4, 50), torch.ones(4)
    assert_near(scaled_ws(weight, gain).norm(dim=1), gain, rel=1e-12)  # no gamma here
    model = nf_resnet(8, generator=source())
    assert abs(signal_propagation_plot(model, draw(8, 3, 64, 64, dtype=torch.float32))["variance"][0] - 1) < 0.1


# --- the block and the network ---------------------------------------------------------------------------------------


def check_block(build):
    """build(act, branch, projection, alpha, beta, skip_gain) -> function of x, against the equation written out."""
    w1, w2, x = draw(5, 5, seed=1), draw(5, 5, seed=2), 2 + draw(7, 5)

    def act(z):
        return z * torch.sigmoid(z) * 1.787187

    for transition in (False, True):
        z = act(x / 1.7)
        want = (z @ w2.T if transition else x) + 0.3 * 0.7 * (z @ w1.T)
        projection = (lambda z: z @ w2.T) if transition else None
        assert_near(build(act, lambda z: z @ w1.T, projection, 0.3, 1.7, 0.7)(x), want, rel=1e-12)


class Call(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def our_block(act, branch, projection, alpha, beta, skip_gain):
    wrapped = (Call(f) if f else None for f in (act, branch, projection))
    return NFBlock(*wrapped, alpha=alpha, beta=beta, skip_gain=skip_gain, dtype=torch.float64)


def wrong_block(fault):
    def build(act, branch, projection, alpha, beta, skip_gain):
        def forward(x):
            z = act(x) / beta if fault == "divided after the activation" else act(x / beta)
            if fault == "not divided":
                z = act(x)
            if fault == "multiplied":
                z = act(x * beta)
            shortcut = x if projection is None else projection(x if fault == "projection of x" else z)
            if fault == "shortcut divided" and projection is None:
                shortcut = x / beta
            return shortcut + (alpha**2 if fault == "alpha squared" else alpha) * (
                1 if fault == "no skip gain" else skip_gain
            ) * branch(z)

        return forward

    return build


@pytest.mark.parametrize("build", [our_block, wrong_block(None)], ids=["ours", "unbroken"])
def test_block(build):
    check_block(build)


@pytest.mark.parametrize(
    "fault",
    [
        "divided after the activation",
        "not divided",
        "multiplied",
        "projection of x",
        "shortcut divided",
        "alpha squared",
        "no skip gain",
    ],
)
def test_block_mutant_dies(fault):
    with pytest.raises(AssertionError):
        check_block(wrong_block(fault))


def test_d4_division_before_the_activation():
    x, beta = 3 * draw(200_000), 3.0
    for name, same in (("relu", True), ("silu", False), ("gelu", False)):
        act = ScaledActivation(name)
        ours = NFBlock(act, nn.Identity(), nn.Identity(), alpha=0.0, beta=beta)(x).detach()
        assert abs(ours.var().item() - 1) < 0.02
        assert ((ours - act(x) / beta).abs().max() < 1e-12) == same


def betas_by_hand(blocks, alpha, fault=None):
    """beta of every block: 1, then the root of 1 + k alpha^2 behind the k-th block of a stage."""
    found, total = [], 0
    for number, count in enumerate(blocks):
        for k in range(count):
            behind = total + k if fault == "no reset" else k if k or not number else blocks[number - 1]
            if fault == "reset to 1" and number and k:
                behind = k - 1
            if fault == "of the output":
                behind = k + 1
            found.append(1 + behind * alpha if fault == "deviations added" else math.sqrt(1 + behind * alpha**2))
        total += count
    return found


BETAS = ["no reset", "reset to 1", "of the output", "deviations added"]


@pytest.mark.parametrize("fault", [None, *BETAS])
def test_betas_and_their_mutants(fault):
    for blocks, alpha in (([3, 4, 6, 3], 0.2), ([2, 2, 2], 1.0)):
        model = nf_resnet(blocks=blocks, widths=[4] * len(blocks), alpha=alpha, generator=source())
        got, want = [block.beta for block in model.blocks], betas_by_hand(blocks, alpha, fault)
        assert (got == pytest.approx(want, rel=1e-12)) == (fault is None)
        assert [b.variance for b in model.blocks[:-1]] == pytest.approx([b.beta**2 for b in model.blocks[1:]])


def test_timm_has_the_same_betas():
    timm = quiet_import("timm")
    with torch.device("meta"):
        theirs = timm.create_model("nf_resnet50")
    ours = nf_resnet(blocks=[3, 4, 6, 3], widths=[4, 8, 16, 32], generator=source())
    found = [1 / block.beta if block.beta < 1 else block.beta for stage in theirs.stages for block in stage]
    assert found == pytest.approx([block.beta for block in ours.blocks])
    assert {block.alpha for stage in theirs.stages for block in stage} == {0.2}


def test_network():
    model, x = nf_resnet(8, classes=7, channels=1, generator=source()), draw(2, 1, 12, 12, dtype=torch.float32)
    convs = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert len(convs) == 9 and all(isinstance(m, ScaledWSConv2d) and m.bias is not None for m in convs)
    assert model(x).shape == (2, 7)
    y = model.stem(x)
    for block in model.blocks:
        y = block(y)
    pooled = (1.7128585504496627 * F.relu(y)).mean((2, 3))
    assert_near(model(x), model.head(pooled), rel=1e-5)
    clone = copy.deepcopy(model)
    clone.load_state_dict(model.state_dict())
    assert torch.equal(clone(x), model(x)) and torch.equal(
        nf_resnet(8, classes=7, channels=1, generator=source())(x), model(x)
    )
    assert_near(torch.cat([model(x[:1]), model(x[1:])]), model(x), rel=1e-4)  # images stand alone
    torch.compiler.reset()
    compiled = torch.compile(model.blocks[1], fullgraph=True, backend="aot_eager")  # a transition
    y = model.blocks[0](model.stem(x)).detach()
    assert_near(compiled(y), model.blocks[1](y), rel=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert model(x).isfinite().all()
    model(x).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"depth": 9},
        {"depth": 2},
        {"depth": 8, "blocks": [1], "widths": [4]},
        {"blocks": [1]},
        {"depth": 8, "widths": [4]},
    ],
)
def test_network_refuses(wrong):
    with pytest.raises(ValueError, match="write depth=6n"):
        nf_resnet(**wrong, generator=source())


def test_block_refuses():
    for beta in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="above 0"):
            NFBlock(nn.ReLU(), nn.Identity(), beta=beta)


# --- signal propagation plots ----------------------------------------------------------------------------------------


def check_plot(plot):
    """plot(block outputs, branch ends) -> the three curves, against sums over the channels one by one."""
    model, x = (
        nf_resnet(blocks=[2, 1], widths=[8, 16], skip_gain=1.0, alpha=0.5, generator=source()),
        draw(4, 3, 8, 8) + 1,
    )
    model.double()
    outputs, ends, y = [], [], model.stem(x).detach()
    for block in model.blocks:
        ends.append(block.branch(block.act(y / block.beta)).detach())
        y = block(y).detach()
        outputs.append(y)
    got = plot(model, x, outputs, ends)
    for i, (y, end) in enumerate(zip(outputs, ends, strict=True)):
        channels, within = ([t[:, c].flatten().tolist() for c in range(t.shape[1])] for t in (y, end))
        means = [math.fsum(c) / len(c) for c in channels]
        squared_mean = math.fsum(m * m for m in means) / len(means)
        variances = [
            [math.fsum((v - math.fsum(c) / len(c)) ** 2 for v in c) / len(c) for c in t] for t in (channels, within)
        ]
        want = (squared_mean, *(math.fsum(v) / len(v) for v in variances))
        for name, value in zip(("squared_mean", "variance", "branch_variance"), want, strict=True):
            assert got[name][i] == pytest.approx(value, rel=1e-9), name


def by_hand(fault):
    def plot(model, x, outputs, ends):
        axes, correction = (
            (0, 1, 2, 3) if fault == "overall" else (2, 3) if fault == "per image" else (0, 2, 3),
            int(fault == "unbiased"),
        )
        ends = [0.5 * e for e in ends] if fault == "behind alpha" else ends
        return {
            "squared_mean": [
                float(y.mean() ** 2 if fault == "square of the overall mean" else y.mean(axes).square().mean())
                for y in outputs
            ],
            "variance": [float(y.var(axes, correction=correction).mean()) for y in outputs],
            "branch_variance": [float(e.var(axes, correction=correction).mean()) for e in ends],
        }

    return plot


@pytest.mark.parametrize(
    "plot", [lambda m, x, o, e: signal_propagation_plot(m, x), by_hand(None)], ids=["ours", "unbroken"]
)
def test_plot(plot):
    check_plot(plot)


@pytest.mark.parametrize("fault", ["overall", "per image", "unbiased", "behind alpha", "square of the overall mean"])
def test_plot_mutant_dies(fault):
    with pytest.raises(AssertionError):
        check_plot(by_hand(fault))


@pytest.mark.parametrize(
    "model, blocks",
    [
        (nf_resnet(8, generator=source()), 3),
        (cifar_resnet(14, generator=source()), 6),
        (ConvNet([2, 1], [16, 32], classes=5, channels=1, block=Bottleneck, generator=source()), 3),
    ],
)
def test_plot_of_every_block(model, blocks):
    before = copy.deepcopy(model.state_dict())
    curves = signal_propagation_plot(model)
    assert list(curves) == ["block", "squared_mean", "variance", "branch_variance"]
    assert curves["block"] == list(range(1, blocks + 1))
    for curve in curves.values():
        assert type(curve) is list and len(curve) == blocks and {type(v) for v in curve} <= {int, float}
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())  # running statistics too
    assert not any(m._forward_hooks for m in model.modules())
    if not isinstance(model.blocks[0], NFBlock):  # the branch ends in a BatchNorm
        assert curves["branch_variance"] == pytest.approx([1.0] * blocks, abs=1e-2)


def test_plot_of_a_residual_mlp():
    torch.manual_seed(0)
    act = ScaledActivation("relu")
    blocks = [
        NFBlock(
            act,
            nn.Sequential(ScaledWSLinear(256, 256), act, ScaledWSLinear(256, 256)),
            alpha=0.2,
            beta=math.sqrt(1 + 0.04 * i),
            skip_gain=1.0,
        )
        for i in range(10)
    ]
    curves = signal_propagation_plot(nn.Sequential(*blocks), draw(1024, 256, dtype=torch.float32))
    assert curves["variance"] == pytest.approx([block.variance for block in blocks], rel=0.05)
    assert max(curves["squared_mean"]) < 0.02


def test_plot_refuses_other_models():
    with pytest.raises(ValueError, match="no residual block"):
        signal_propagation_plot(nn.Sequential(nn.Conv2d(3, 4, 3)))
