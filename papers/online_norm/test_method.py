import copy
import math
from functools import partial

import pandas
import pytest
import torch
from hypothesis import given, settings
from torch import nn
from torch.nn import functional as F

from repro.batched import stack
from repro.papers.online_norm import OnlineNorm, experiment
from repro.testing import (
    assert_near,
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

C, A_F, A_B, EPS = 3, 0.9, 0.8, 1e-5
STATE = ("running_mean", "running_var", "u", "v")


class Oracle:
    """Section 3 in Python floats, one sample and one channel at a time; `fault` breaks it as people might."""

    def __init__(self, guard, fault=None):
        self.guard, self.fault = guard, fault
        self.state = {"running_mean": [0.0] * C, "running_var": [1.0] * C, "u": [0.0] * C, "v": [0.0] * C}

    def __call__(self, x, gamma, beta, upstream):
        """x: (N, C, M).  z, the gradients, and the state afterwards."""
        fault, mu, s2, u, v = self.fault, *(self.state[name] for name in STATE)
        xs, gains, biases = x.tolist(), gamma.tolist(), beta.tolist()
        ys, scales, zs, fs, roots = [], [], [], [], []
        if fault == "statistics of the batch at once":
            xs_for_state = [
                [[math.fsum(row[c][m] for row in xs) / len(xs) for m in range(x.shape[2])] for c in range(C)]
            ]
        for row in xs:
            scale = [0.0] * C

            def move(row=row):
                for c in range(C):
                    m = math.fsum(row[c]) / len(row[c])
                    var = math.fsum((p - m) ** 2 for p in row[c]) / len(row[c])
                    if fault == "unbiased variance over the map":
                        var *= len(row[c]) / max(len(row[c]) - 1, 1)
                    if fault == "no variance over the map":
                        var = 0.0
                    old, factor = mu[c], 1 - A_F if fault == "coefficient 1 - a" else A_F * (1 - A_F)
                    mu[c] = A_F * old + (1 - A_F) * m
                    s2[c] = (
                        A_F * s2[c]
                        + factor * (m - (mu[c] if fault == "variance around the new mean" else old)) ** 2
                        + (1 - A_F) * var
                    )

            if fault == "updated before normalizing":
                move()
            y = []
            for c in range(C):
                scale[c] = math.sqrt(s2[c]) + EPS if fault == "eps outside the root" else math.sqrt(s2[c] + EPS)
                y.append([(p - mu[c]) / scale[c] for p in row[c]])
            if fault not in ("updated before normalizing", "statistics of the batch at once"):
                move()
            ys.append(y)
            scales.append(scale)
        if fault == "statistics of the batch at once":
            for row in xs_for_state:
                move(row)
        for y in ys:
            f = [[g * p + b for p in line] for g, b, line in zip(gains, biases, y, strict=True)]
            flat = [p for line in (y if fault == "guard before the affine map" else f) for p in line]
            root = math.sqrt(math.fsum(p * p for p in flat) / len(flat) + EPS) if self.guard == "scale" else 1.0
            if fault == "scaling by the norm":
                root *= math.sqrt(len(flat))
            if fault == "no guard":
                root = 1.0
            z = [[p / root for p in line] for line in f]
            if fault == "guard before the affine map":
                z = [[g * p / root + b for p in line] for g, b, line in zip(gains, biases, y, strict=True)]
            if self.guard == "clamp":
                z = [[min(max(p, -5.0), 5.0) for p in line] for line in z]
            zs.append(z)
            fs.append(f)
            roots.append(root)
        if fault == "errors forgotten":
            u, v = [0.0] * C, [0.0] * C
        rate, dx, dgamma, dbeta = 1 - A_B, [], [0.0] * C, [0.0] * C
        order = range(len(xs))
        for i in reversed(order) if fault == "backward in reverse order" else order:
            h, z, n = upstream[i].tolist(), zs[i], C * x.shape[2]
            along = math.fsum(a * b for p, q in zip(h, z, strict=True) for a, b in zip(p, q, strict=True)) / n
            dx.append([])
            for c in range(C):
                df = h[c]
                if self.guard == "scale":
                    df = [
                        (a - (0 if fault == "root left out of the gradient" else b * along)) / roots[i]
                        for a, b in zip(h[c], z[c], strict=True)
                    ]
                elif self.guard == "clamp":
                    df = [a if abs(p) <= 5 else 0.0 for a, p in zip(h[c], fs[i][c], strict=True)]
                y, scale = ys[i][c], scales[i][c]
                dgamma[c] += math.fsum(a * b for a, b in zip(df, y, strict=True))
                dbeta[c] += math.fsum(df)
                g, mean = [gains[c] * a for a in df], lambda values: math.fsum(values) / len(values)
                held_u, held_v = (0.0, 0.0) if fault == "no control" else (u[c], v[c])
                if fault == "u before v":
                    g = [a - rate * held_u for a in g]
                    u[c] += mean(g)
                q = [a - rate * held_v * b for a, b in zip(g, y, strict=True)]
                v[c] += mean([a * b for a, b in zip(g if fault == "v of the raw gradient" else q, y, strict=True)])
                d = [a / scale for a in q]
                if fault != "u before v":
                    before, d = d, [a - rate * held_u for a in d]
                    u[c] += mean(before if fault == "u of the raw gradient" else d)
                if fault == "errors leak":
                    u[c], v[c] = A_B * u[c], A_B * v[c]
                dx[-1].append(d)
        if fault == "backward in reverse order":
            dx.reverse()
        if fault != "errors forgotten":
            self.state["u"], self.state["v"] = u, v
        want = {"z": zs, "dx": dx, "dgamma": dgamma, "dbeta": dbeta, **self.state}
        return {name: torch.tensor(value, dtype=torch.float64) for name, value in want.items()}


def ours(guard):
    layer = OnlineNorm(C, EPS, alpha_forward=A_F, alpha_backward=A_B, guard=guard, dtype=torch.float64)

    def run(x, gamma, beta, upstream):
        with torch.no_grad():
            layer.weight.copy_(gamma)
            layer.bias.copy_(beta)
        x, upstream = (t.squeeze(-1) if t.shape[-1] == 1 else t for t in (x.clone(), upstream))
        x.requires_grad_()
        z = layer(x)
        got = torch.autograd.grad(z, (x, layer.weight, layer.bias), upstream)
        z, dx = (t.detach().view(len(x), C, -1) for t in (z, got[0]))
        return {
            "z": z,
            "dx": dx,
            "dgamma": got[1],
            "dbeta": got[2],
            **{name: getattr(layer, name).clone() for name in STATE},
        }

    return run


def check(make, guard="scale"):
    """`make(guard)` agrees with the oracle over three batches, on hard inputs: vectors, and maps of 4 positions."""
    for shape in ((5, C, 1), (5, C, 4)):
        for name, x in hard_inputs(*shape).items():
            run, wanted = make(guard), Oracle(guard)
            gamma, beta = 1 + draw(C, seed=1), draw(C, seed=2)
            for i in range(3):
                x, upstream = x.roll(i, 0), draw(*shape, seed=3 + i)
                got, want = run(x, gamma, beta, upstream), wanted(x, gamma, beta, upstream)
                for key in want:
                    assert_near(got[key], want[key], f"{shape} {name} batch {i}: {key}", floor=1e-12)


@pytest.mark.parametrize("guard", ["scale", "clamp", None])
@pytest.mark.parametrize("make", [ours, Oracle], ids=["ours", "unbroken"])
def test_oracle(make, guard):
    check(make, guard)


_, test_mutant_dies = mutation(check, lambda fault: partial(Oracle, fault=fault), ours, source=[Oracle])


def stream(layer, x, upstream, size):
    """z and dL/dx of a stream cut into batches of `size`."""
    found = []
    for part, up in zip(x.split(size), upstream.split(size), strict=True):
        part = part.clone().requires_grad_()
        z = layer(part)
        found.append((z.detach(), *torch.autograd.grad(z, part, up)))
    return [torch.cat(parts) for parts in zip(*found, strict=True)]


def test_pandas_agrees():
    """Exponentially weighted moments of pandas; the start is a sample of mean 0, of weight a^t, that adds a^t to s2."""
    layer, x = OnlineNorm(2, alpha_forward=0.95, dtype=torch.float64), 3 + 2 * draw(60, 2)
    layer(x)
    ewm = pandas.DataFrame(torch.cat([torch.zeros(1, 2).double(), x]).numpy()).ewm(alpha=0.05, adjust=False)
    assert_near(layer.running_mean, torch.tensor(ewm.mean().iloc[-1].to_numpy()), rel=1e-12)
    assert_near(layer.running_var - 0.95**60, torch.tensor(ewm.var(bias=True).iloc[-1].to_numpy()), rel=1e-12)


@pytest.mark.parametrize("shape", [(6, C), (4, C, 2, 3)])
def test_evaluation_is_batch_norm_and_rms_norm_of_torch(shape):
    layer = scramble(OnlineNorm(C, dtype=torch.float64)).eval()
    before = copy.deepcopy(layer.state_dict())
    for name, x in hard_inputs(*shape).items():
        leaves = [t.clone().requires_grad_() for t in (x, layer.weight, layer.bias)]
        y = F.batch_norm(leaves[0], layer.running_mean, layer.running_var, leaves[1], leaves[2], eps=layer.eps)
        want = F.rms_norm(y, shape[1:], eps=layer.eps)
        x = x.clone().requires_grad_()
        got = layer(x)
        assert_near(got.detach(), want.detach(), name)
        grads = torch.autograd.grad(got, (x, layer.weight, layer.bias), draw(*shape, seed=5))
        for one, other in zip(grads, torch.autograd.grad(want, leaves, draw(*shape, seed=5)), strict=True):
            assert_near(one, other, name, rel=1e-6)
    assert all(torch.equal(t, before[name]) for name, t in layer.state_dict().items())


@pytest.mark.parametrize(
    "shape, options", [((4, 3), {}), ((2, 3, 2, 2), {"guard": "clamp"}), ((4, 3), {"guard": None, "affine": False})]
)
def test_contract(shape, options):
    """All of `repro.testing.check_norm_contract` but gradcheck in training mode, where dL/dx is no derivative (D5)."""
    make, x = partial(OnlineNorm, 3, **options), draw(*shape)
    check_factory(make)
    for training in (True, False):
        layer = scramble(make(dtype=torch.float64)).train(training)
        check_dtypes(make().train(training), x)
        check_copies(layer, x)
        check_layouts(layer, x)
        check_vmap([scramble(make(dtype=torch.float64), seed).train(training) for seed in range(3)], x)
    check_gradients(layer, x)


def test_initial_values_and_state():
    layer = OnlineNorm(4)
    want = {"weight": 1.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0, "u": 0.0, "v": 0.0}
    assert {name: t.unique().item() for name, t in layer.state_dict().items()} == want
    assert (layer.alpha_forward, layer.alpha_backward, layer.eps, layer.guard) == (0.999, 0.99, 1e-5, "scale")
    other, x, up = OnlineNorm(4), draw(6, 4, dtype=torch.float32), draw(6, 4, seed=1, dtype=torch.float32)
    stream(layer, x, up, 3)
    other.load_state_dict(layer.state_dict())
    for one, two in zip(stream(layer, x, up, 3), stream(other, x, up, 3), strict=True):
        assert torch.equal(one, two)


def test_d1_epsilon_under_both_roots():
    x, layer = torch.full((1, 2), 1e-3, dtype=torch.float64), OnlineNorm(2, dtype=torch.float64)
    y = 1e-3 / math.sqrt(1 + 1e-5)
    assert_near(layer(x).detach(), torch.full((1, 2), y / math.sqrt(y**2 + 1e-5), dtype=torch.float64), rel=1e-12)
    assert OnlineNorm(2, 0.0, guard=None, dtype=torch.float64)(x).unique().item() == 1e-3


def test_d2_guards():
    x = torch.tensor([[0.5, 7.0, -9.0]], dtype=torch.float64)
    bare, clamped, scaled = (
        OnlineNorm(3, 0.0, guard=guard, dtype=torch.float64)(x).detach() for guard in (None, "clamp", "scale")
    )
    assert torch.equal(bare, x) and clamped.tolist() == [[0.5, 5.0, -5.0]]
    assert_near(scaled, x / x.square().mean().sqrt(), rel=1e-12)
    image = OnlineNorm(3, guard="scale")(draw(2, 3, 4, 4, dtype=torch.float32)).detach()
    assert_near(image.square().mean((1, 2, 3)), torch.ones(2), rel=1e-4)  # over all features of a sample


def test_float32():
    x, up = (100 + draw(40, 3)).bfloat16(), draw(40, 3, seed=1).bfloat16()
    narrow, wide = OnlineNorm(3, guard=None), OnlineNorm(3, guard=None)
    with torch.autocast("cpu", torch.bfloat16):  # the triangular product would round its operands
        got = stream(narrow, x, up, 8)
    want = stream(wide, x.float(), up.float(), 8)
    assert got[0].dtype == torch.bfloat16 and torch.equal(got[0], want[0].bfloat16())
    assert torch.equal(narrow.running_var, wide.running_var)


@pytest.mark.parametrize("shape", [(64, C), (24, C, 2, 2)])
def test_d3_a_batch_is_a_stream(shape):
    x, up = 3 + draw(*shape), draw(*shape, seed=1)
    whole = OnlineNorm(C, dtype=torch.float64)
    want = stream(whole, x, up, len(x))
    for size in (1, 5):
        layer = OnlineNorm(C, dtype=torch.float64)
        for got, wanted in zip(stream(layer, x, up, size), want, strict=True):
            assert_near(got, wanted, rel=1e-10)
        for name in STATE:
            assert_near(getattr(layer, name), getattr(whole, name), name, rel=1e-10)
    turned = stream(OnlineNorm(C, dtype=torch.float64), x.flip(0), up.flip(0), len(x))
    with pytest.raises(AssertionError):  # so the order of the samples matters
        assert_near(turned[0].flip(0), want[0], rel=1e-3)


@pytest.mark.parametrize("shape", [(6, C), (6, C, 4)])
@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_earlier_samples_know_nothing_of_an_infinity(shape, bad):
    """A product with a triangular matrix would spread it, since 0 times infinity is NaN."""
    x = draw(*shape)
    want = OnlineNorm(C, dtype=torch.float64)(x).detach()
    x[3] = bad
    y = OnlineNorm(C, dtype=torch.float64)(x).detach()
    assert torch.equal(y[:3], want[:3]) and not torch.isfinite(y[4:]).any()


def test_d4_no_second_derivative():
    x = draw(4, 3).requires_grad_()
    (slope,) = torch.autograd.grad(OnlineNorm(3, dtype=torch.float64)(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


def test_control_keeps_the_mean_gradient_at_zero():
    """A constant upstream gradient moves nothing in the end, as a shift of x moves no normalized output (Section 3)."""
    layer, total = OnlineNorm(1, affine=False, guard=None, dtype=torch.float64), 0.0
    for i in range(20):
        x = (3 + draw(100, 1, seed=i)).requires_grad_()
        total += torch.autograd.grad(layer(x), x, torch.ones(100, 1).double())[0].sum()
    assert_near(layer.u, total.view(1), rel=1e-9)
    assert total.abs() / 2000 < 0.1  # without control: about 1


def test_alpha_one_freezes():
    layer, x = OnlineNorm(3, alpha_forward=1.0, alpha_backward=1.0, guard=None), draw(9, 3, dtype=torch.float32)
    z, dx = stream(layer, x, torch.ones(9, 3), 4)
    assert_near(z, x / math.sqrt(1 + 1e-5), rel=1e-6)
    assert_near(dx, torch.ones(9, 3) / math.sqrt(1 + 1e-5), rel=1e-6)
    assert torch.equal(layer.running_mean, torch.zeros(3)) and torch.equal(layer.running_var, torch.ones(3))


def test_seeds_in_one_pass_train_as_alone():
    """Of the profiles, cpu trains seed by seed and gpu all seeds stacked."""
    config, cpu = experiment.Fmnist(examples=96, test=1000, epochs=1, every=1), torch.device("cpu")
    together = experiment.fmnist_batch("online", [0, 1], config, cpu)
    for seed, row in enumerate(together):
        alone = experiment.fmnist("online", seed, config, cpu)
        assert row["accuracy"] == pytest.approx(alone["accuracy"], abs=0.5) and row["epoch"] == alone["epoch"] == [1]


def test_states_move_on_when_stacked():
    layers = [scramble(OnlineNorm(3), seed) for seed in range(2)]
    alone, x, up = copy.deepcopy(layers), draw(2, 5, 3, dtype=torch.float32), draw(2, 5, 3, seed=1, dtype=torch.float32)
    stack(layers)(x.requires_grad_()).backward(up)
    for k, (layer, other) in enumerate(zip(layers, alone, strict=True)):
        other(x[k]).backward(up[k])
        for name, want in other.named_buffers():
            assert_near(layer.get_buffer(name), want, name, rel=1e-5)


@pytest.mark.parametrize("options", [{"alpha_forward": 0.0}, {"alpha_backward": 1.5}, {"alpha_forward": float("nan")}])
def test_refuses_alphas(options):
    with pytest.raises(ValueError, match="write 0 < alpha <= 1"):
        OnlineNorm(3, **options)


def test_refuses_guards_and_shapes():
    with pytest.raises(ValueError, match="write 'scale', 'clamp' or None"):
        OnlineNorm(3, guard="ls")
    for shape in ((3,), (2, 4), (2, 1), (3, 4, 3)):
        with pytest.raises(ValueError, match=r"is not \(N, 3, \*\)"):
            OnlineNorm(3)(torch.zeros(shape))


@pytest.mark.parametrize("scale", [1e-18, 1e-3, 1e15])
def test_range_of_float32(scale):
    x, up = (scale * (1 + draw(50, 4))).float(), draw(50, 4, seed=1, dtype=torch.float32)
    narrow, wide = OnlineNorm(4, alpha_forward=0.9), OnlineNorm(4, alpha_forward=0.9).double()
    got, want = stream(narrow, x, up, 10), stream(wide, x.double(), up.double(), 10)
    assert_near(got[0], want[0], rel=1e-4)
    assert_near(narrow.running_var, wide.running_var, rel=1e-4)


@settings(deadline=None, max_examples=30, derandomize=True)
@given(norm_inputs(2))
def test_any_input(x):
    layer = OnlineNorm(x.shape[1])
    z = layer(x)
    assert z.shape == x.shape and z.dtype == x.dtype and torch.isfinite(z).all()
    assert (z.double().square().flatten(1).sum(1) <= 1.02 * x.shape[1:].numel()).all()
    assert all(torch.isfinite(t).all() for t in layer.state_dict().values())


def test_in_place_of_batch_norm():
    act = nn.ReLU(inplace=True)  # as convolution networks have it
    model = nn.Sequential(nn.Conv2d(1, 4, 3), OnlineNorm(4), act, nn.Flatten(), nn.Linear(64, 8), OnlineNorm(8), act)
    model(draw(5, 1, 6, 6, dtype=torch.float32)).sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    assert model[1].u.abs().sum() > 0 and model[5].v.abs().sum() > 0
