import copy
import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import nn
from torch.nn.utils.fusion import fuse_linear_bn_eval

from repro.papers.batchnorm import BatchNorm, population_statistics
from repro.papers.layernorm import LayerNorm
from repro.papers.slab import SLA, PRepBN, RepBN, fuse
from repro.testing import (
    assert_near,
    assert_same_outcome,
    check_copies,
    check_dtypes,
    check_factory,
    check_gradients,
    check_layouts,
    check_norm_contract,
    check_vmap,
    draw,
    hard_inputs,
    norm_inputs,
    outcome,
    scramble,
)

B, N, C = 3, 4, 5
EPS = 1e-5


# --- oracle: float64 NumPy, gradients by hand ------------------------------------------------------------------------


def batchnorm_in_numpy(x, dy, gamma, beta, mean, var, training):
    """Tokens (M, C): y, dx, dgamma, dbeta and the running statistics afterwards."""
    m, used, new = len(x), (mean, var), (mean, var)
    if training:
        used = x.mean(0), ((x - x.mean(0)) ** 2).mean(0)
        new = 0.9 * mean + 0.1 * used[0], 0.9 * var + 0.1 * used[1] * m / (m - 1)
    sigma = np.sqrt(used[1] + EPS)
    xhat = (x - used[0]) / sigma
    dx = gamma / sigma * (dy - training * (dy.mean(0) + xhat * (dy * xhat).mean(0)))
    return {
        "y": gamma * xhat + beta,
        "dx": dx,
        "dgamma": (dy * xhat).sum(0),
        "dbeta": dy.sum(0),
        "mean": new[0],
        "var": new[1],
    }


def layernorm_in_numpy(x, dy, gamma, beta):
    sigma = np.sqrt(((x - x.mean(1, keepdims=True)) ** 2).mean(1, keepdims=True) + EPS)
    xhat, d = (x - x.mean(1, keepdims=True)) / sigma, dy * gamma
    return gamma * xhat + beta, (d - d.mean(1, keepdims=True) - xhat * (d * xhat).mean(1, keepdims=True)) / sigma


def oracle(x, dy, repbn, layernorm, lam, training):
    """lambda LN + (1 - lambda) RepBN of tokens, and all gradients of sum(dy * y)."""
    state = {name.removeprefix("bn."): t.detach().numpy() for name, t in repbn.state_dict().items()}
    x, dy = (t.flatten(0, -2).numpy() for t in (x, dy))
    share = (1 - lam) if training else 1.0
    want = batchnorm_in_numpy(
        x, share * dy, state["weight"], state["bias"], state["running_mean"], state["running_var"], training
    )
    want["y"] = share * (want["y"] + state["eta"] * x)
    want["dx"] = want["dx"] + share * state["eta"] * dy
    want["deta"] = np.array([(share * dy * x).sum()])
    if share < 1:
        y, dx = layernorm_in_numpy(x, lam * dy, layernorm.weight.detach().numpy(), layernorm.bias.detach().numpy())
        want["y"], want["dx"] = want["y"] + lam * y, want["dx"] + dx
    return {name: torch.from_numpy(value) for name, value in want.items()}


def check(norm, repbn, layernorm=None, lam=0.0):
    """`norm` (made anew by deepcopy for each input) agrees with the oracle: values, gradients, running statistics."""
    for name, x in hard_inputs(B, N, C).items():
        for training in (True, False):
            model, dy = copy.deepcopy(norm).train(training), draw(B, N, C, seed=3)
            inner = dict(zip((id(m) for m in norm.modules()), model.modules(), strict=True))[id(repbn)]
            want = oracle(x, dy, repbn, layernorm, lam, training)
            leaf = x.clone().requires_grad_()
            y = model(leaf)
            leaves = {"dx": leaf, "dgamma": inner.bn.weight, "dbeta": inner.bn.bias, "deta": inner.eta}
            slopes = torch.autograd.grad((y * dy).sum(), list(leaves.values()), allow_unused=True)
            got = {
                "y": y.detach(),
                "mean": inner.bn.running_mean,
                "var": inner.bn.running_var,
                **dict(zip(leaves, slopes, strict=True)),
            }
            for key, value in got.items():
                assert value is not None, f"{name} training={training}: {key} takes no part"
                # a constant's deviation is rounding, which 1 / sqrt(eps) blows up
                floor = 1e-9 if name in ("constant", "far") else 1e-25
                assert_near(
                    value.view(want[key].shape), want[key], f"{name} training={training}: {key}", rel=1e-7, floor=floor
                )


def made(kind=RepBN):
    return scramble(kind(C, dtype=torch.float64))


class Broken(RepBN):
    """RepBN with a fault that the tests must see."""

    fault = ""

    def forward(self, x):
        eta, fault = self.eta, self.fault
        if fault == "eta per channel":
            eta = self.eta * (1 + 0.1 * torch.arange(C))
        if fault == "no skip":
            return super().forward(x) - eta * x
        if fault == "eta inside":  # BN((1 + eta) x)
            return self.bn(((1 + eta) * x).flatten(0, -2)).view(x.shape)
        if fault == "skip of the normalised":
            y = self.bn(x.flatten(0, -2)).view(x.shape)
            return y + eta * y
        if fault == "skip divided by sigma":
            return self.bn(x.flatten(0, -2)).view(x.shape) + eta * x / (self.bn.running_var + EPS).sqrt()
        if fault == "statistics per position":
            wide = copy.deepcopy(self.bn)
            return torch.stack([wide(t) for t in x.unbind(1)], 1) + eta * x
        if fault == "statistics per case" and self.training:
            centred = x - x.mean(1, keepdim=True)
            return (
                centred / (centred.square().mean(1, keepdim=True) + EPS).sqrt() * self.bn.weight
                + self.bn.bias
                + eta * x
            )
        if fault == "eta not learned":
            eta = eta.detach()
        if fault == "batch statistics in evaluation":
            self.train()
        return self.bn(x.flatten(0, -2)).view(x.shape) + eta * x


FAULTS = [
    "eta per channel",
    "no skip",
    "eta inside",
    "skip of the normalised",
    "skip divided by sigma",
    "statistics per position",
    "statistics per case",
    "eta not learned",
    "batch statistics in evaluation",
]


@pytest.mark.parametrize("kind", [RepBN, Broken], ids=["ours", "unbroken"])
def test_oracle(kind):
    norm = made(kind)
    check(norm, norm)


@pytest.mark.parametrize("fault", FAULTS)
def test_mutant_dies(fault):
    norm = made(Broken)
    norm.fault = fault
    with pytest.raises(AssertionError):
        check(norm, norm)


def prepbn_at(step, kind=PRepBN):
    """warm 3, then 10 steps from r0 = 0.8: lambda is 1, 1, 1, 0.8, 0.72, ..."""
    norm = scramble(kind(C, 10, warm=3, r0=0.8, dtype=torch.float64))
    norm.step.fill_(step)
    return norm


LAMBDAS = {0: 1.0, 2: 1.0, 3: 0.8, 4: 0.72, 8: 0.4, 12: 0.08, 13: 0.0, 14: 0.0, 10**9: 0.0}


class BrokenSchedule(PRepBN):
    fault = ""

    def lam(self, step=None, dtype=torch.float64):
        t = (self.step if step is None else step).double()
        if self.fault == "never decays":
            return torch.ones(()).double()
        if self.fault == "falls below 0":
            return 0.8 * (1 - (t - 3) / 10)
        if self.fault == "warm steps count":
            return 0.8 * (1 - t / 10).clamp(0, 1)
        if self.fault == "one step early":
            return 0.8 * (1 - (t - 2) / 10).clamp(0, 1)
        if self.fault == "rises":
            return 1 - super().lam(step, dtype)
        return super().lam(step, dtype)

    def forward(self, x):
        if self.fault == "mixes in evaluation" and not self.training:
            return self.lam() * self.layernorm(x) + (1 - self.lam()) * self.repbn(x)
        if self.fault == "LN in evaluation" and not self.training:
            return self.layernorm(x)
        return super().forward(x)


@pytest.mark.parametrize("step", LAMBDAS)
def test_prepbn_oracle(step):
    norm = prepbn_at(step)
    assert norm.lam().item() == pytest.approx(LAMBDAS[step], abs=1e-7)
    check(norm, norm.repbn, norm.layernorm, LAMBDAS[step])


@pytest.mark.parametrize(
    "fault",
    [
        "never decays",
        "falls below 0",
        "warm steps count",
        "one step early",
        "rises",
        "mixes in evaluation",
        "LN in evaluation",
    ],
)
def test_prepbn_mutant_dies(fault):
    with pytest.raises(AssertionError):
        for step, lam in LAMBDAS.items():
            norm = prepbn_at(step, BrokenSchedule)
            norm.fault = fault
            check(norm, norm.repbn, norm.layernorm, lam)


def test_prepbn_counts_training_steps():
    norm, x = prepbn_at(0), draw(B, N, C)
    for expected in (1, 1, 1, 0.8, 0.72):
        assert norm.lam().item() == pytest.approx(expected)
        norm.eval()(x)  # no step
        norm.train()(x)
    again = scramble(PRepBN(C, 10, warm=3, r0=0.8, dtype=torch.float64), 1)
    again.load_state_dict(norm.state_dict())  # a resumed run goes on where it was
    assert again.step == 5
    assert_same_outcome(again, norm, x, "resumed")


# --- contract and peers ----------------------------------------------------------------------------------------------


def test_contract():
    check_norm_contract(partial(RepBN, 4), None, draw(2, 3, 4))


def test_prepbn_contract():
    """In training; in evaluation it is RepBN (and has parameters without a gradient).  lambda stays at 0.3
    throughout.
    """
    make, x = partial(PRepBN, 3, 10**15, r0=0.3), draw(2, 2, 3)
    check_factory(make)
    for training in (True, False):
        check_dtypes(make().train(training), x)
    norm = scramble(make(dtype=torch.float64))
    check_copies(norm, x)
    check_layouts(norm, x)
    check_vmap([scramble(make(dtype=torch.float64), seed) for seed in range(3)], x)
    check_gradients(norm, x)
    torch.compiler.reset()
    compiled = copy.deepcopy(norm).eval()
    compiled.compile(backend="aot_eager", fullgraph=True)
    assert_near(compiled(x).detach(), norm.eval().repbn(x).detach(), rel=1e-14)


class AsPublished(nn.Module):
    """torch's BatchNorm1d on (B, C, N), and one factor."""

    def __init__(self):
        super().__init__()
        self.weight_ = nn.BatchNorm1d(C, dtype=torch.float64)
        self.eta = nn.Parameter(torch.ones(1, dtype=torch.float64))

    def forward(self, x):
        return (self.weight_(x.transpose(1, 2)) + self.eta * x.transpose(1, 2)).transpose(1, 2)


@pytest.mark.parametrize("training", [True, False])
def test_torch_agrees(training):
    ours, theirs = made().train(training), AsPublished().train(training)
    theirs.weight_.load_state_dict(ours.bn.state_dict())
    theirs.eta.data.copy_(ours.eta.data)
    for name, x in hard_inputs(B, N, C).items():
        got = outcome(copy.deepcopy(ours), x)
        want = {k.replace("weight_.", "bn."): t for k, t in outcome(copy.deepcopy(theirs), x).items()}
        assert got.keys() == want.keys()
        for key in want:
            floor = 1e-9 if name in ("constant", "far") else 1e-25
            assert_near(got[key], want[key], f"{name}: {key}", rel=1e-7, floor=floor)


def test_initial_values():
    norm = RepBN(C)
    assert (
        norm.eta.shape == (1,)
        and norm.eta == 1
        and list(norm.state_dict()) == ["eta", *(f"bn.{name}" for name in BatchNorm(C).state_dict())]
    )
    assert PRepBN(C, 10).lam() == 1 and PRepBN(C, 10).r0 == 1


def test_population_statistics():
    """The statistics of a trained network can be taken afresh, as the authors do after drop path."""
    model = nn.Sequential(nn.Linear(4, C), PRepBN(C, 2), nn.Linear(C, 2)).double()
    for seed in range(3):
        model(draw(B, N, 4, seed=seed))
    batches = [2 + draw(B, N, 4, seed=seed) for seed in range(5)]
    population_statistics(model, batches)
    seen = torch.stack([model[0](x).flatten(0, 1).mean(0) for x in batches]).mean(0)
    assert_near(model[1].repbn.bn.running_mean, seen.detach(), rel=1e-12)


def test_d1_any_number_of_axes():
    norm, x = made().eval(), draw(2, 3, 4, C)
    want = norm(x).detach()
    for other in (x.flatten(0, 2), x.flatten(1, 2), x[None]):
        assert_near(norm(other).detach().view(x.shape), want, rel=1e-14)
    assert norm(x[0, 0, 0]).shape == (C,)
    norm.train()
    assert_near(norm(x).flatten(0, 2), norm(x.flatten(0, 2)), rel=1e-12)


def test_float32_convention():
    x = torch.tensor([[100.0], [100.5], [101.0], [101.5]])
    for dtype in (torch.bfloat16, torch.float16):
        for norm in (RepBN(1), PRepBN(1, 4)):
            want = copy.deepcopy(norm)(x)
            with torch.autocast("cpu", torch.bfloat16):
                got = copy.deepcopy(norm)(x.to(dtype))
            assert got.dtype == dtype and torch.equal(got, want.to(dtype))
    layer = SLA(8, 2, (4, 4))
    q, k, v = (draw(1, 2, 16, 4, seed=i, dtype=torch.float32) for i in range(3))
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(draw(1, 16, 8, dtype=torch.float32))
        assert y.dtype == torch.float32
        seen = []
        layer.attend = lambda q, k, v: seen.append((q.dtype, torch.is_autocast_enabled("cpu"))) or v
        layer(draw(1, 16, 8, dtype=torch.float32))
    assert seen == [(torch.float32, False)]
    layer = SLA(8, 2, (4, 4)).bfloat16()
    assert layer(draw(1, 16, 8, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_d2_statistics_in_the_steps_of_ln_alone():
    norm, x = PRepBN(C, 10, warm=5, dtype=torch.float64), 3 + draw(B, N, C)
    assert_near(norm(x).detach(), LayerNorm(C, dtype=torch.float64)(x).detach(), rel=1e-12)
    assert_near(norm.repbn.bn.running_mean, 0.1 * x.mean((0, 1)), rel=1e-12)


def test_d3_total_steps_must_be_given():
    with pytest.raises(TypeError, match="total_steps"):
        PRepBN(C)
    for wrong in (0, -5):
        with pytest.raises(ValueError, match="write the number of training steps"):
            PRepBN(C, wrong)


def test_d4_refuses_to_fuse_too_early():
    norm = prepbn_at(12)
    with pytest.raises(ValueError, match=r"lambda is still 0\.08: train past total_steps=10"):
        fuse(norm, nn.Linear(C, 2))
    norm(draw(B, N, C))
    x, linear = draw(B, N, C, seed=1), nn.Linear(C, 2).double()
    assert_near(fuse(norm, linear)(x).detach(), linear(norm.eval()(x)).detach(), rel=1e-12)


@pytest.mark.parametrize("make", [RepBN, partial(PRepBN, total_steps=5)])
def test_bad_inputs(make):
    for training in (True, False):
        norm = make(C).train(training)
        for shape in ((4, 3), (4, 1), (C, 2)):
            with pytest.raises(ValueError, match=r"normalized_shape \(5,\)"):
                norm(torch.zeros(shape))
        with pytest.raises(TypeError, match="write x.float"):
            norm(torch.zeros(4, C, dtype=torch.long))
    with pytest.raises(ValueError, match="larger batches"):
        make(C)(torch.zeros(1, 1, C))


@settings(deadline=None, max_examples=30, derandomize=True)
@given(norm_inputs(min_axes=2))
def test_any_input(x):
    if x.shape[-1] == 0 or x.numel() == x.shape[-1]:
        return
    for norm in (RepBN(x.shape[-1]), PRepBN(x.shape[-1], 2)):
        for y in (norm(x), norm(x), norm.eval()(x)):
            assert y.shape == x.shape and y.dtype == x.dtype and torch.isfinite(y).all()


# --- fuse ------------------------------------------------------------------------------------------------------------


def fold_in_numpy(norm, linear):
    """W (gamma (x - mu) / sigma + beta + eta x) + b, one weight at a time: the new weight and bias."""
    mu, var, gamma, beta = (
        t.tolist() for t in (norm.bn.running_mean, norm.bn.running_var, norm.bn.weight, norm.bn.bias)
    )
    scale = [g / math.sqrt(v + EPS) + norm.eta.item() for g, v in zip(gamma, var, strict=True)]
    shift = [b - g * m / math.sqrt(v + EPS) for b, g, m, v in zip(beta, gamma, mu, var, strict=True)]
    weight = [[w * s for w, s in zip(row, scale, strict=True)] for row in linear.weight.tolist()]
    old = [0.0] * linear.out_features if linear.bias is None else linear.bias.tolist()
    bias = [
        b + math.fsum(w * s for w, s in zip(row, shift, strict=True))
        for b, row in zip(old, linear.weight.tolist(), strict=True)
    ]
    return torch.tensor(weight, dtype=torch.float64), torch.tensor(bias, dtype=torch.float64)


def check_fuse(fold, *, square=True):
    for seed in range(3):
        norm = scramble(RepBN(C, dtype=torch.float64), seed).eval()
        norm.eta.data.copy_(2 * draw(1, seed=seed))
        norm.bn.running_mean.copy_(3 * draw(C, seed=seed))
        norm.bn.running_var.copy_(1e-4 * norm.bn.running_var)  # of the size where eps counts
        for bias in (True, False):
            linear = scramble(nn.Linear(C, C if square else 3, bias=bias).double(), seed + 7)
            got = fold(norm, linear)
            weight, b = fold_in_numpy(norm, linear)
            assert_near(got.weight.detach(), weight, rel=1e-12)
            assert_near(got.bias.detach(), b, rel=1e-12)
            for x in hard_inputs(B, N, C).values():
                assert_near(got(x).detach(), linear(norm(x)).detach(), rel=1e-10)


@pytest.mark.parametrize("square", [True, False])
def test_fuse(square):
    check_fuse(fuse, square=square)


def broken_fold(fault):
    def fold(norm, linear):
        norm, linear = copy.deepcopy(norm).requires_grad_(False), copy.deepcopy(linear)
        if fault == "no eps":
            norm.bn.eps = 0.0
        if fault == "eta for eta mu":
            norm.bn.bias += norm.eta * (1 - norm.bn.running_mean)
        if fault == "eta mu left out":
            norm.bn.bias -= norm.eta * norm.bn.running_mean
        if fault == "eta for eta sigma":
            norm.bn.weight += norm.eta * (1 - (norm.bn.running_var + EPS).sqrt())
        if fault == "variance for sigma":
            norm.bn.running_var.copy_(norm.bn.running_var.square())
        if fault == "old bias left out":
            linear.bias = None
        got = fuse(norm, linear).requires_grad_(False)
        if fault == "rows for columns":  # as after a Linear -> BN fold
            got.weight.copy_(linear.weight * (norm.bn.weight / (norm.bn.running_var + EPS).sqrt() + norm.eta)[:, None])
        return got

    return fold


@pytest.mark.parametrize(
    "fault",
    [
        "no eps",
        "eta for eta mu",
        "eta mu left out",
        "eta for eta sigma",
        "variance for sigma",
        "old bias left out",
        "rows for columns",
    ],
)
def test_fuse_mutant_dies(fault):
    check_fuse(broken_fold(None))
    with pytest.raises(AssertionError):
        check_fuse(broken_fold(fault))


def test_fuse_into_a_plain_batchnorm():
    norm = made().eval()
    norm.eta.data.fill_(-0.7)
    plain = fuse(norm)
    assert type(plain) is BatchNorm and not plain.training
    theirs = nn.BatchNorm1d(C, dtype=torch.float64).eval()
    theirs.load_state_dict(plain.state_dict())
    for x in hard_inputs(B, N, C).values():
        want = norm(x).detach()
        assert_near(plain(x.flatten(0, 1)).detach().view(x.shape), want, rel=1e-12)
        assert_near(theirs(x.transpose(1, 2)).transpose(1, 2).detach(), want, rel=1e-12)


def test_torch_folds_alike():
    """torch folds Linear -> BN; of an identity that is the BN as a matrix, and the next layer's product with it is
    ours.
    """
    norm, linear = made().eval(), nn.Linear(C, 3).double()
    unit, plain = nn.Linear(C, C).double().eval(), nn.BatchNorm1d(C, dtype=torch.float64).eval()
    plain.load_state_dict(fuse(norm).state_dict())
    with torch.no_grad():
        unit.weight.copy_(torch.eye(C))
        unit.bias.zero_()
        matrix, got = fuse_linear_bn_eval(unit, plain), fuse(norm, linear)
        assert_near(got.weight, linear.weight @ matrix.weight, rel=1e-12)
        assert_near(got.bias, linear.weight @ matrix.bias + linear.bias, rel=1e-12)


def test_fuse_leaves_its_arguments_and_keeps_dtype():
    norm, linear = scramble(RepBN(C)), scramble(nn.Linear(C, 2)).bfloat16().eval()
    before = copy.deepcopy((norm.state_dict(), linear.state_dict()))
    got = fuse(norm, linear)
    assert got.weight.dtype == torch.bfloat16 and not got.training and norm.training
    assert all(p.requires_grad for p in got.parameters())
    for old, module in zip(before, (norm, linear), strict=True):
        assert all(torch.equal(t, module.state_dict()[name]) for name, t in old.items())
    for wrong in (nn.LayerNorm(C), BatchNorm(C)):
        with pytest.raises(TypeError, match="write a RepBN or a PRepBN"):
            fuse(wrong, linear)


# --- SLA -------------------------------------------------------------------------------------------------------------

ROWS, COLUMNS, HEADS, DIM = 2, 3, 2, 4


def sla_in_floats(layer, x):
    """One image, all sums written out in Python floats; x: (N, DIM)."""
    p = {name: t.detach().tolist() for name, t in layer.named_parameters()}
    n, width = ROWS * COLUMNS, DIM // HEADS

    def affine(row, name):
        return [
            math.fsum(w * v for w, v in zip(line, row, strict=True)) + b
            for line, b in zip(p[f"{name}.weight"], p[f"{name}.bias"], strict=True)
        ]

    qkv = [affine(row, "qkv") for row in x.tolist()]
    q = [[max(t, 0.0) for t in row[:DIM]] for row in qkv]
    k = [
        [max(t + s, 0.0) for t, s in zip(row[DIM : 2 * DIM], place, strict=True)]
        for row, place in zip(qkv, p["positional_encoding"][0], strict=True)
    ]
    v, out = [row[2 * DIM :] for row in qkv], [[0.0] * DIM for _ in range(n)]
    for i in range(n):
        r, c = divmod(i, COLUMNS)
        for channel in range(DIM):
            head, own = divmod(channel, width)
            span = range(head * width, (head + 1) * width)
            weights = [math.fsum(q[i][s] * k[j][s] for s in span) for j in range(n)]
            mixed = math.fsum(w * v[j][channel] for j, w in enumerate(weights)) / (math.fsum(weights) + 1e-6)
            near = [(a, b) for a in range(ROWS) for b in range(COLUMNS) if abs(a - r) <= 2 and abs(b - c) <= 2]
            kernel = p["dwc.weight"][own][0]
            local = math.fsum(kernel[a - r + 2][b - c + 2] * v[a * COLUMNS + b][channel] for a, b in near)
            out[i][channel] = mixed + local + p["dwc.bias"][own]
    return torch.tensor([affine(row, "proj") for row in out], dtype=torch.float64)


def small_sla(kind=SLA):
    layer = kind(DIM, HEADS, (ROWS, COLUMNS)).double()
    with torch.no_grad():
        for i, p in enumerate(layer.parameters()):
            p.copy_(draw(*p.shape, seed=i))
    return layer


class BrokenSLA(SLA):
    fault = ""

    def attend(self, q, k, v):
        fault = self.fault
        if fault == "no relu":
            q, k = (t + t.min().abs() for t in (q, k))
        if fault == "softmax":
            return (q @ k.transpose(-2, -1)).softmax(-1) @ v
        if fault == "elu + 1":  # of Katharopoulos et al.
            q, k = nn.functional.elu(q) + 1, nn.functional.elu(k) + 1
        if fault == "no denominator":
            return q.relu() @ (k.relu().transpose(-2, -1) @ v)
        if fault == "relu after the product":
            weights = (q @ k.transpose(-2, -1)).relu()
            return weights @ v / (weights.sum(-1, keepdim=True) + self.eps)
        if fault == "relu on v":
            v = v.relu()
        if fault == "normalised over queries":
            weights = q.relu() @ k.relu().transpose(-2, -1)
            return weights @ v / (weights.sum(-2).unsqueeze(-1) + self.eps)
        return super().attend(q, k, v)


def check_sla(layer):
    for scale in (1.0, 1e-3, 30.0):
        x = scale * draw(2, ROWS * COLUMNS, DIM, seed=9)
        want = torch.stack([sla_in_floats(layer, image) for image in x])
        assert_near(layer(x).detach(), want, rel=1e-10)


@pytest.mark.parametrize("kind", [SLA, BrokenSLA], ids=["ours", "unbroken"])
def test_sla_oracle(kind):
    check_sla(small_sla(kind))


@pytest.mark.parametrize(
    "fault",
    [
        "no relu",
        "softmax",
        "elu + 1",
        "no denominator",
        "relu after the product",
        "relu on v",
        "normalised over queries",
    ],
)
def test_sla_mutant_dies(fault):
    layer = small_sla(BrokenSLA)
    layer.fault = fault
    with pytest.raises(AssertionError):
        check_sla(layer)


def test_sla_gradients_copies_and_compile():
    layer, x = small_sla(), draw(2, ROWS * COLUMNS, DIM)
    check_gradients(layer, x, second_order=False)
    assert_same_outcome(copy.deepcopy(layer), layer, x, "deepcopy")
    other = SLA(DIM, HEADS, (ROWS, COLUMNS)).double()
    other.load_state_dict(layer.state_dict())
    torch.compiler.reset()
    other.compile(backend="aot_eager", fullgraph=True)
    assert_same_outcome(other, layer, x, "compiled, from a state dict")
    assert (SLA(8, 2, (2, 2)).positional_encoding == 0).all()


def test_sla_of_dead_queries_is_the_convolution_alone():
    layer, x = small_sla(), draw(1, ROWS * COLUMNS, DIM)
    with torch.no_grad():
        layer.qkv.weight[:DIM] = 0
        layer.qkv.bias[:DIM] = -1
        y = layer(x)
        layer.attend = lambda q, k, v: torch.zeros_like(v)
        assert torch.isfinite(y).all() and torch.equal(layer(x), y)


def test_sla_refuses():
    with pytest.raises(ValueError, match="must divide dim=6"):
        SLA(6, 4, (2, 2))
    with pytest.raises(ValueError, match=r"tokens of a \(2, 2\) grid"):
        SLA(8, 2, (2, 2))(torch.zeros(1, 5, 8))
