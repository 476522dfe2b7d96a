import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from torch import nn
from torch.nn import functional as F

from repro.models.gpt import GPT
from repro.papers.rmsnorm import RMSNorm
from repro.papers.seednorm import SeeDNorm
from repro.testing import (
    assert_near,
    assert_same_outcome,
    check_norm_contract,
    draw,
    faults_of,
    hard_inputs,
    mutation,
    norm_inputs,
    outcome,
    scramble,
)

D, EPS = 6, 1e-6
KEYS = ("y", "dx", "dalpha", "dbeta", "dgamma")


def oracle(x, alpha, beta, gamma, upstream, heads):
    """The equation in Python floats, one token at a time: y, and the gradients of sum(upstream * y) by hand."""
    alpha, beta, gamma, n = alpha.tolist(), beta.tolist(), gamma.tolist(), D // heads
    y, dx, sums = [], [], {name: [[] for _ in range(D)] for name in ("dalpha", "dbeta", "dgamma")}
    for row, up in zip(x.flatten(0, -2).tolist(), upstream.flatten(0, -2).tolist(), strict=True):
        r = math.sqrt(math.fsum(v * v for v in row) / D + EPS)
        t = [math.tanh(math.fsum(beta[j] * row[j] for j in range(h * n, h * n + n))) for h in range(heads)]
        gain = [t[i // n] * alpha[i] + gamma[i] for i in range(D)]
        pull = math.fsum(up[i] * gain[i] * row[i] / r for i in range(D)) / (D * r * r)
        reach = [
            (1 - s) * (1 + s) * math.fsum(up[i] * alpha[i] * row[i] / r for i in range(h * n, h * n + n))
            for h, s in enumerate(t)
        ]
        y.append([gain[i] * row[i] / r for i in range(D)])
        dx.append([up[i] * gain[i] / r - row[i] * pull + beta[i] * reach[i // n] for i in range(D)])
        for i in range(D):
            sums["dalpha"][i].append(up[i] * t[i // n] * row[i] / r)
            sums["dbeta"][i].append(row[i] * reach[i // n])
            sums["dgamma"][i].append(up[i] * row[i] / r)
    found = {"y": torch.tensor(y).double().view(x.shape), "dx": torch.tensor(dx).double().view(x.shape)}
    return found | {name: torch.tensor([math.fsum(v) for v in each]).double() for name, each in sums.items()}


@pytest.fixture(autouse=True, scope="module")
def double():
    """Python floats become float64 tensors here."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def check(layer, heads):
    """`layer(x, alpha, beta, gamma, heads)` and its gradients agree with the oracle on every hard input."""
    for name, x in hard_inputs(3, 4, D).items():
        alpha, beta, gamma, upstream = (
            1 + draw(D, seed=1),
            0.4 * draw(D, seed=2),
            draw(D, seed=3),
            draw(*x.shape, seed=4),
        )
        want = oracle(x, alpha, beta, gamma, upstream, heads)
        leaves = [t.clone().requires_grad_() for t in (x, alpha, beta, gamma)]
        got = layer(*leaves, heads)
        grads = torch.autograd.grad(got, leaves, upstream)
        for key, value in zip(KEYS, (got.detach(), *grads), strict=True):
            assert_near(value, want[key], f"{name}: {key}")


def ours(x, alpha, beta, gamma, heads):
    layer = SeeDNorm(D, heads=heads)
    return torch.func.functional_call(layer, {"alpha": alpha, "beta": beta, "weight": gamma}, (x,))


def broken(fault):
    """The layer written out again, with one fault."""

    def layer(x, alpha, beta, gamma, heads):
        heads = 1 if fault == "heads ignored" else heads
        mean = x.square().mean(-1, keepdim=True)
        if fault == "centred RMS":
            mean = x.var(-1, correction=0, keepdim=True)
        if fault == "sum for mean":
            mean = x.square().sum(-1, keepdim=True)
        if fault == "RMS of each head":
            mean = x.unflatten(-1, (heads, -1)).square().mean(-1).repeat_interleave(D // heads, -1)
        r = (mean + EPS).sqrt()
        if fault == "eps outside the root":
            r = (mean + 1e-300).sqrt() + EPS
        if fault == "no eps":
            r = (mean + 1e-300).sqrt()
        r = r.detach() if fault == "detached statistics" else r
        product = (x / r if fault == "dot product of the normalised input" else x) * beta
        if fault == "half-precision dot product":
            product = product.bfloat16().double()
        if fault == "heads interleaved":
            s = product.unflatten(-1, (-1, heads)).sum(-2).repeat(*[1] * (x.ndim - 1), D // heads)
        else:
            s = product.unflatten(-1, (heads, -1)).sum(-1).repeat_interleave(D // heads, -1)
        match fault:
            case "elementwise beta":
                s = product
            case "dot product over D":
                s = s / D
            case "no gradient to beta":
                s = s.detach() + 0 * product
            case "alpha inside the tanh":
                return (torch.tanh(s * alpha) + gamma) * x / r
            case "no tanh":
                return (s * alpha + gamma) * x / r
            case "sigmoid":
                return (torch.sigmoid(s) * alpha + gamma) * x / r
            case "softsign":  # an option of a port
                return (F.softsign(s) * alpha + gamma) * x / r
            case "hardtanh":
                return (F.hardtanh(s) * alpha + gamma) * x / r
            case "gain times the whole bracket":
                return (torch.tanh(s) * alpha + 1) * gamma * x / r
            case "gain + 1":
                return (torch.tanh(s) * alpha + gamma + 1) * x / r
            case "no gain":
                return (torch.tanh(s) * alpha + 1 + 0 * gamma) * x / r
            case "one alpha":
                alpha = alpha.mean()
            case "added, not multiplied":
                return torch.tanh(s) * alpha + gamma * x / r
        return (torch.tanh(s) * alpha + gamma) * x / r

    return layer


@pytest.mark.parametrize("heads", [2, 3, 6])
@pytest.mark.parametrize("layer", [ours, broken(None)], ids=["ours", "unbroken"])
def test_oracle_with_heads(layer, heads):
    check(layer, heads)


test_oracle, test_mutant_dies = mutation(
    partial(check, heads=1), broken, ours, but=["heads ignored", "heads interleaved", "RMS of each head"]
)


@pytest.mark.parametrize("fault", faults_of(broken))
def test_mutant_with_heads_dies(fault):
    with pytest.raises(AssertionError):
        check(broken(fault), 2)


@pytest.mark.parametrize(
    "shape, options",
    [(6, {}), (6, {"heads": 3}), ([6], {"elementwise_affine": False}), ((3, 6), {"heads": 2, "alpha_init": 0.3})],
)
def test_contract(shape, options):
    torch.set_default_dtype(torch.float32)
    try:
        check_norm_contract(partial(SeeDNorm, shape, **options), None, draw(2, 3, 6))
    finally:
        torch.set_default_dtype(torch.float64)


@pytest.mark.parametrize("heads", [1, 4])
@pytest.mark.parametrize("training", [True, False])
def test_starts_as_torch_rms_norm(heads, training):
    """Outputs, gradients of inputs and gain; and once more with gains that a checkpoint brought."""
    ours, theirs = SeeDNorm(8, heads=heads).train(training), nn.RMSNorm(8, eps=EPS).train(training)
    for _ in range(2):
        for name, x in hard_inputs(3, 8).items():
            got, want = outcome(ours, x), outcome(theirs, x)
            for key in want:
                assert_near(got[key], want[key], f"{name}: {key}", rel=1e-12)
            assert (got["d alpha"] == 0).all() and (name == "zero" or (got["d beta"] != 0).any())
        missing = ours.load_state_dict(scramble(theirs).state_dict(), strict=False)
        assert set(missing.missing_keys) == {"alpha", "beta"} and not missing.unexpected_keys


def test_factory_and_initial_values():
    fresh = SeeDNorm(4, alpha_init=0.3)
    want = {"alpha": torch.full((4,), 0.3), "beta": torch.zeros(4), "weight": torch.ones(4)}
    assert {name: t.tolist() for name, t in fresh.state_dict().items()} == {
        name: t.tolist() for name, t in want.items()
    }
    assert SeeDNorm(4).alpha.tolist() == [1.0] * 4 and SeeDNorm(4).heads == 1
    scramble(fresh).reset_parameters()
    assert all(torch.equal(fresh.state_dict()[name], t) for name, t in want.items())
    assert "eps=1e-06, heads=1, alpha_init=0.3" in repr(fresh)


def test_state_dict_round_trip():
    one, other = scramble(SeeDNorm(6, heads=2)), SeeDNorm(6, heads=2)
    other.load_state_dict(one.state_dict())
    assert_same_outcome(one, other, draw(2, 6), "loaded")


def test_alpha_learns_after_beta():
    """At the first step alpha has no gradient, beta has; from the second on both have (alpha = 0 would end that)."""
    layer, x = SeeDNorm(6), draw(4, 6)
    for step in range(2):
        layer.zero_grad()
        (layer(x) * draw(4, 6, seed=1)).sum().backward()
        assert (layer.alpha.grad != 0).any() == (step > 0) and (layer.beta.grad != 0).all()
        layer.beta.data -= 0.1 * layer.beta.grad


@pytest.mark.parametrize("alpha", [0, 0.0, float("nan"), float("inf")])
def test_refuses_useless_alpha(alpha):
    with pytest.raises(ValueError, match=r"write a number such as 1\.0"):
        SeeDNorm(4, alpha_init=alpha)


@pytest.mark.parametrize("shape, heads", [(6, 4), (6, 0), (6, -1), ((3, 5), 2)])
def test_refuses_uneven_heads(shape, heads):
    with pytest.raises(ValueError, match="write a divisor"):
        SeeDNorm(shape, heads=heads)


@pytest.mark.parametrize("shape", [(2, 7), (2, 1), (8,), ()])
def test_wrong_shape(shape):
    with pytest.raises(ValueError, match="normalized_shape"):
        SeeDNorm((3, 8))(torch.zeros(shape))


def test_d1_epsilon_inside_the_root():
    x = torch.tensor([[3e-3, 4e-3]])
    assert SeeDNorm(2).eps == EPS
    assert_near(SeeDNorm(2)(x).detach(), x / math.sqrt(12.5e-6 + 1e-6), rel=1e-12)


def test_float32_convention():
    layer = scramble(SeeDNorm(512, dtype=torch.float32))
    with torch.no_grad():
        layer.beta.copy_(0.05 * draw(512))
    x = (1 + draw(3, 512)).bfloat16()
    want = layer(x.float())
    assert layer(x).dtype == torch.bfloat16 and torch.equal(layer(x), want.bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(x), want.bfloat16()) and torch.equal(layer(x.float()), want)


def test_d2_names_and_no_gain():
    assert sorted(SeeDNorm(4).state_dict()) == ["alpha", "beta", "weight"]
    layer, x = scramble(SeeDNorm(4, elementwise_affine=False)), draw(3, 4)
    assert sorted(layer.state_dict()) == ["alpha", "beta"] and layer.weight is None and layer.bias is None
    want = (torch.tanh(x @ layer.beta)[:, None] * layer.alpha + 1) * F.rms_norm(x, (4,), eps=EPS)
    assert_near(layer(x).detach(), want.detach(), rel=1e-12)


def test_d3_no_dropout_and_no_division_by_the_width():
    layer, x = scramble(SeeDNorm(8)), draw(3, 8)
    assert torch.equal(layer.train()(x), layer.eval()(x))
    assert_near(layer.rescale(layer.cut(x)).detach().flatten(), torch.tanh(x @ layer.beta).detach(), rel=1e-12)


def test_heads_flatten_several_axes():
    one, other, x = scramble(SeeDNorm((3, 4), heads=6)), SeeDNorm(12, heads=6), draw(2, 3, 4)
    other.load_state_dict({name: t.flatten() for name, t in one.state_dict().items()})
    assert_near(one(x).detach(), other(x.flatten(1)).detach().view(2, 3, 4), rel=1e-14)


def test_only_the_dynamic_term_sees_the_scale():
    """y(k x) - y(x) = (tanh(k x . beta) - tanh(x . beta)) alpha x / RMS(x), without eps; tokens stand alone."""
    layer, x = scramble(SeeDNorm(8, eps=0.0)), draw(5, 8)
    for k in (1e-3, 2.0, 1e6):
        s = x @ layer.beta
        want = (torch.tanh(k * s) - torch.tanh(s))[:, None] * layer.alpha * F.rms_norm(x, (8,))
        assert_near((layer(k * x) - layer(x)).detach(), want.detach(), rel=1e-6)
    assert torch.equal(layer(x.flip(0)), layer(x).flip(0))


def test_in_a_decoder():
    """As torch's RMSNorm at the start, in every place of a norm, queries and keys included; compiled as well."""
    tokens = torch.randint(11, (2, 8), generator=torch.Generator().manual_seed(1))

    def gpt(norm):
        return GPT(11, 8, 16, 2, heads=2, norm=norm, qk_norm=norm, generator=torch.Generator().manual_seed(0))

    model, plain = gpt(partial(SeeDNorm, heads=2)), gpt(partial(nn.RMSNorm, eps=EPS))
    assert_near(model(tokens).detach(), plain(tokens).detach(), rel=1e-6)
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert_near(compiled(tokens).detach(), model(tokens).detach(), rel=1e-6)
    model(tokens).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("scale", [1e-18, 1e-3, 1.0, 1e6])
@pytest.mark.parametrize("heads", [1, 4])
def test_range_of_float32(scale, heads):
    x, found = (scale * (1 + draw(3, 16))).float(), []
    for dtype in (torch.float32, torch.float64):
        layer = scramble(SeeDNorm(16, heads=heads, dtype=torch.float32)).to(dtype)
        found.append(outcome(layer, x.to(dtype)))
    for name in ("y", "d x", "d alpha", "d weight"):
        assert_near(found[0][name], found[1][name], name, rel=1e-4)


@settings(deadline=None, max_examples=30, derandomize=True)
@given(norm_inputs())
def test_any_input(x):
    layer = SeeDNorm(x.shape[-1], dtype=torch.float32)
    with torch.no_grad():
        layer.beta.fill_(0.3)
    y = layer(x).detach()
    assert y.shape == x.shape and y.dtype == x.dtype and torch.isfinite(y).all()
    plain = RMSNorm(x.shape[-1], dtype=torch.float32)(x).detach().double().abs()  # eps differs: an upper bound
    assert (y.double().abs() <= 2.02 * plain + 1e-4).all()
