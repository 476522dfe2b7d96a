import copy
import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from torch import nn
from torch.nn import functional as F

from repro.experiments.iwslt14 import Iwslt14
from repro.papers.powernorm import PowerNorm, PowerNormV, iwslt14, method
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

C, ALPHA, EPS = 3, 0.7, 1e-5
PLAIN = partial(PowerNorm, C, alpha=ALPHA, groups=None, dtype=torch.float64)  # Algorithm 2 as printed


def oracle(norm, x, running, pad=None):
    """Sec. 4 and Algorithm 2 in Python floats, one feature at a time: what `outcome` gives.  running: PN, else PN-V."""
    state, up = {k: v.tolist() for k, v in norm.state_dict().items()}, draw(*x.shape, seed=77)
    real = torch.ones(x.shape[:-1]).bool() if pad is None else ~pad
    keep, rows = real.flatten().tolist(), int(real.sum())
    want = {key: [] for key in ("y", "d x", "d weight", "d bias", "running_psi2", "nu")}
    for c in range(C):
        col, dy, gamma = x[..., c].flatten().tolist(), up[..., c].flatten().tolist(), state["weight"][c]
        batch = math.fsum(v * v for v, k in zip(col, keep, strict=True) if k) / rows
        old, nu = state["running_psi2"][c], state["nu"][c] if running else 0.0
        root = math.sqrt((old if running or not norm.training else batch) + EPS)
        xhat, g = [v / root for v in col], [gamma * d for d in dy]
        want["y"].append([gamma * v + state["bias"][c] for v in xhat])
        want["d weight"].append(math.fsum(d * v for d, v in zip(dy, xhat, strict=True)))
        want["d bias"].append(math.fsum(dy))
        capital_lambda = math.fsum(a * v for a, v, k in zip(g, xhat, keep, strict=True) if k) / rows
        capital_gamma = math.fsum(v * v for v, k in zip(xhat, keep, strict=True) if k) / rows
        if not norm.training:
            want["d x"].append([a / root for a in g])
            want["running_psi2"].append(old)
            want["nu"].append(nu)
            continue
        pull = nu if running else math.fsum(a * v for a, v in zip(g, xhat, strict=True)) / rows
        want["d x"].append([(a - pull * v * k) / root for a, v, k in zip(g, xhat, keep, strict=True)])
        want["running_psi2"].append(ALPHA * old + (1 - ALPHA) * batch)
        want["nu"].append(nu * (1 - (1 - ALPHA) * capital_gamma) + (1 - ALPHA) * capital_lambda)
    want = {key: torch.tensor(value, dtype=torch.float64) for key, value in want.items()}
    for key in ("y", "d x"):
        want[key] = want[key].t().reshape(x.shape)
    return want if running else {k: v for k, v in want.items() if k != "nu"}


def check(make, running):
    """The module agrees with the oracle on every hard input: values, gradients, buffers, in both modes."""
    for shape in ((7, C), (2, 4, C)):
        for name, x in hard_inputs(*shape).items():
            for training in (True, False):
                norm = scramble(make()).train(training)
                want = oracle(norm, x, running)
                got = outcome(norm, x)
                for key in want:
                    floor = 1e-13 if name in ("constant", "spiked") and key in ("d x", "nu") else 1e-25  # cancellation
                    assert_near(got[key], want[key], f"{shape} {name} training={training}: {key}", floor=floor)


def ours_v():
    return PowerNormV(C, alpha=ALPHA, dtype=torch.float64)


class Broken(nn.Module):
    """Both norms again, with plain statements and, if asked, one fault."""

    def __init__(self, fault=None, running=False):
        super().__init__()
        self.fault, self.running = fault, running
        for name in ("weight", "bias"):
            self.register_parameter(name, nn.Parameter(torch.ones(C).double()))
        self.register_buffer("running_psi2", torch.ones(C).double())
        if running:
            self.register_buffer("nu", torch.zeros(C).double())

    def forward(self, x):
        fault, axes = self.fault, tuple(range(x.dim() - 1))
        if fault == "centred":
            x = x - x.mean(axes)
        batch = x.square().mean(axes)
        if fault == "sum for mean":
            batch = x.square().sum(axes)
        if fault == "unbiased":
            batch = batch * (x[..., 0].numel() / (x[..., 0].numel() - 1))
        if fault == "per sequence" and x.dim() == 3:
            batch = x.square().mean(1, keepdim=True)
        if fault == "detached":
            batch = batch.detach()
        old, keep = self.running_psi2.clone(), 1 - ALPHA if fault == "alpha of the new value" else ALPHA
        if self.training and fault != "never updated":
            seen = batch.detach().flatten(0, -2).mean(0) if batch.dim() > 1 else batch.detach()
            mixed = (
                (keep * old.sqrt() + (1 - keep) * seen.sqrt()).square()
                if fault == "running root"
                else keep * old + (1 - keep) * seen
            )
            self.running_psi2.copy_(mixed)
        psi2 = old if self.running or not self.training else batch
        if fault == "updated before use" and self.training:
            psi2 = self.running_psi2.clone()
        if fault == "batch statistics" or (fault == "batch statistics at inference" and not self.training):
            psi2 = batch.detach()
        if fault == "gradient through the running value" and self.training:
            psi2 = old + (1 - keep) * (batch - batch.detach())
        psi = psi2.clamp_min(1e-300).sqrt() + EPS if fault == "eps outside the root" else (psi2 + EPS).sqrt()
        xhat = x / psi
        if self.running and self.training and fault != "gradient through the running value":
            xhat = Pull.apply(x, psi.detach(), self.nu, (batch + EPS).sqrt().detach(), fault, self.weight.detach())
        weight = 1 + self.weight if fault == "gain + 1" else self.weight
        return weight * xhat + (0 * self.bias if fault == "no bias" else self.bias)


class Pull(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, psi, nu, batch_psi, fault, weight):
        ctx.saved, ctx.fault = (x / psi, psi, nu, batch_psi, weight), fault
        return x / psi

    @staticmethod
    def backward(ctx, g):
        xhat, psi, nu, batch_psi, weight = ctx.saved
        axes, fault, old = tuple(range(g.dim() - 1)), ctx.fault, nu.clone()
        gamma, lam = xhat.square().mean(axes), (g * xhat).mean(axes)
        if fault == "nu without the gain":
            lam = lam / weight
        if fault == "nu as a sum":
            lam, gamma = (g * xhat).sum(axes), xhat.square().sum(axes)
        new = old * (1 - (1 - ALPHA) * gamma) + (1 - ALPHA) * lam
        if fault == "nu undamped":
            new = old + (1 - ALPHA) * lam
        if fault == "nu as a plain moving average":
            new = ALPHA * old + (1 - ALPHA) * lam
        if fault == "nu never updated":
            new = old
        nu.copy_(new)
        if fault == "nu updated before use":
            old = new
        if fault == "the batch's own projection":
            old = lam
        if fault == "no projection":
            old = 0 * old
        if fault == "e for nu":  # sIncerass/powernorm#3: the code keeps e = nu / (1 - alpha)
            old = (1 - ALPHA) * old
        return (
            (g - old * xhat) / (batch_psi if fault == "divided by the batch's psi" else psi),
            None,
            None,
            None,
            None,
            None,
        )


BOTH = [
    "centred",
    "sum for mean",
    "unbiased",
    "alpha of the new value",
    "never updated",
    "running root",
    "batch statistics at inference",
    "eps outside the root",
    "gain + 1",
    "no bias",
]
FAULTS_V = [*BOTH, "per sequence", "detached", "updated before use"]
FAULTS = [
    *BOTH,
    "updated before use",
    "batch statistics",
    "gradient through the running value",
    "nu without the gain",
    "nu as a sum",
    "nu undamped",
    "nu as a plain moving average",
    "nu never updated",
    "nu updated before use",
    "the batch's own projection",
    "no projection",
    "e for nu",
    "divided by the batch's psi",
]


@pytest.mark.parametrize("make", [ours_v, Broken], ids=["ours", "unbroken"])
def test_pnv_oracle(make):
    check(make, running=False)


@pytest.mark.parametrize("make", [PLAIN, partial(Broken, running=True)], ids=["ours", "unbroken"])
def test_pn_oracle(make):
    check(make, running=True)


@pytest.mark.parametrize("fault", FAULTS_V)
def test_pnv_mutant_dies(fault):
    with pytest.raises(AssertionError):
        check(partial(Broken, fault), running=False)


@pytest.mark.parametrize("fault", FAULTS)
def test_pn_mutant_dies(fault):
    with pytest.raises(AssertionError):
        check(partial(Broken, fault, running=True), running=True)


@pytest.mark.parametrize("options", [{}, {"affine": False, "eps": 0.1}])
def test_pnv_contract(options):
    check_norm_contract(partial(PowerNormV, C, **options), None, draw(2, 4, C))


@pytest.mark.parametrize("options", [{}, {"groups": None, "affine": False}, {"groups": 3, "warmup_iters": 2}])
def test_pn_contract(options):
    """check_norm_contract but for the finite differences in training: the backward pass is not that of a function."""
    make, x = partial(PowerNorm, 6, **options), draw(2, 4, 6)
    check_factory(make)
    for training in (True, False):
        module = scramble(make(dtype=torch.float64)).train(training)
        check_dtypes(make().train(training), x)
        check_copies(module, x)
        check_layouts(module, x)
        check_vmap([scramble(make(dtype=torch.float64), seed).train(training) for seed in range(3)], x)
    check_gradients(module, x)  # at inference


def test_compiled_for_several_steps():
    """The backward pass must see psi as the forward pass did, not the buffer that has changed since."""
    plain = PowerNorm(6, warmup_iters=2, dtype=torch.float64)
    compiled = copy.deepcopy(plain)
    torch.compiler.reset()
    compiled.compile(backend="aot_eager", fullgraph=True)
    for i in range(4):
        assert_same_outcome(compiled, plain, (1 + i) * draw(2, 4, 6, seed=i), f"step {i}", rel=1e-12)


@pytest.mark.parametrize("scale, shift", [(1.0, 0.0), (1e-3, 0.0), (1e6, 0.0)])
def test_pnv_is_batchnorm_on_symmetric_data(scale, shift):
    """With x and -x in the batch, and dL/dy of opposite signs, neither mean is there to be taken away."""
    x, up = scale * draw(8, C), draw(8, C, seed=1)
    x, up, ours = torch.cat([x, -x]), torch.cat([up, -up]), scramble(ours_v())
    mean, var, results = torch.zeros(C).double(), ours.running_psi2.clone(), []
    for training in (True, False):
        a, b = (x.clone().requires_grad_() for _ in range(2))
        y, want = ours.train(training)(a), F.batch_norm(b, mean, var, ours.weight, ours.bias, training, 1 - ALPHA, EPS)
        results += [(y, want), (torch.autograd.grad(y, a, up)[0], torch.autograd.grad(want, b, up)[0])]
        var.copy_(ours.running_psi2)  # torch's is unbiased
    for got, want in results:
        assert_near(got.detach(), want.detach(), rel=1e-9)


def test_pnv_gradient_norm():
    """Sec. 4.1: ||dL/dx||^2 = (gamma / psi)^2 (||dL/dy||^2 - B mean(dL/dy xh)^2)."""
    x, up, norm = (2 + draw(50, C)).requires_grad_(), draw(50, C, seed=1), PowerNormV(C, eps=0.0, dtype=torch.float64)
    (dx,) = torch.autograd.grad(norm(x), x, up)
    psi2, xhat = x.detach().square().mean(0), norm(x).detach()
    assert_near(dx.square().sum(0), (up.square().sum(0) - 50 * (up * xhat).mean(0).square()) / psi2, rel=1e-12)


def test_nu_is_the_recursion_of_the_code():
    """e <- e + mean((g - (1 - alpha) e xh) xh) with nu = (1 - alpha) e."""
    norm, e = PLAIN(), torch.zeros(C, dtype=torch.float64)
    for i in range(5):
        x, up = (2 + draw(6, C, seed=i)).requires_grad_(), draw(6, C, seed=9 + i)
        psi = (norm.running_psi2 + EPS).sqrt()
        torch.autograd.grad(norm(x), x, up)
        xhat = x.detach() / psi
        e = e + ((up - (1 - ALPHA) * e * xhat) * xhat).mean(0)
        assert_near(norm.nu, (1 - ALPHA) * e, rel=1e-12)


def test_d1_initial_values():
    norm = PowerNorm(4)
    state = {"weight": 1, "bias": 0, "running_psi2": 1, "nu": 0, "num_batches_tracked": 0}
    assert set(norm.state_dict()) == set(state) and norm.eps == 1e-5 and norm.alpha == 0.9
    assert all((norm.state_dict()[name] == value).all() for name, value in state.items())
    x = torch.tensor([[-1e-3], [1e-3]], dtype=torch.float64)  # psi_B^2 = 1e-6 against eps = 1e-5
    assert_near(PowerNormV(1, affine=False, dtype=torch.float64)(x), x / math.sqrt(1.1e-5), rel=1e-12)


@pytest.mark.parametrize("training", [True, False])
def test_d2_groups_of_features_are_scaled_first(training):
    x = (2 + draw(5, 6)).requires_grad_()
    for groups in (1, 2, 6):
        ours = scramble(PowerNorm(6, groups=groups, dtype=torch.float64)).train(training)
        plain = PowerNorm(6, groups=None, dtype=torch.float64).train(training)
        plain.load_state_dict(ours.state_dict())
        by_hand = torch.cat(
            [part / (part.square().mean(-1, keepdim=True) + 1e-5).sqrt() for part in x.split(6 // groups, -1)], -1
        )
        one, other = ours(x), plain(by_hand)
        assert_near(one.detach(), other.detach(), rel=1e-12)
        slopes = [torch.autograd.grad(y, x, draw(5, 6, seed=4))[0] for y in (one, other)]
        assert_near(*slopes, rel=1e-9)
    rms = nn.RMSNorm(6, eps=1e-5, elementwise_affine=False)
    assert_near(method.scaled(x, 1, 1e-5).detach(), rms(x).detach(), rel=1e-12)


def test_d3_gradient_over_the_running_psi():
    norm, x = PowerNorm(1, eps=0.0, groups=None, dtype=torch.float64), torch.full((4, 1), 3.0).double().requires_grad_()
    norm.running_psi2.fill_(4.0)
    assert (
        torch.autograd.grad(norm(x).sum(), x)[0].tolist() == [[0.5]] * 4
    )  # nu = 0 yet; by the batch's psi it were 1 / 3


def test_d4_warm_up_by_the_batch():
    norm, seen = PowerNorm(1, eps=0.0, groups=None, warmup_iters=3, dtype=torch.float64), 1.0
    for t in range(1, 6):
        x = torch.full((4, 1), float(t)).double()
        before = norm.running_psi2.item()
        y = norm(x).detach()
        assert y[0, 0].item() == pytest.approx(1.0 if t <= 3 else t / math.sqrt(before))
        seen = seen * (t - 1) / t + t * t / t if t < 3 else seen
        seen = 0.9 * seen + 0.1 * t * t
        assert norm.running_psi2.item() == pytest.approx(seen, rel=1e-12)
    assert norm.num_batches_tracked == 5 and PowerNorm(1).warmup_iters == 0


@pytest.mark.parametrize("make, running", [(ours_v, False), (PLAIN, True)])
def test_d5_padding_has_no_part(make, running):
    x, pad = 2 + draw(2, 4, C), torch.tensor([[0, 0, 0, 1], [0, 1, 1, 1]]).bool()
    wants = [oracle(scramble(make()), value, running, pad) for value in (x, torch.where(pad[..., None], 1e3, x))]
    for value, want in zip((x, torch.where(pad[..., None], 1e3, x)), wants, strict=True):
        norm, leaf = scramble(make()), value.clone().requires_grad_()
        y = norm(leaf, pad)
        (dx,) = torch.autograd.grad(y, leaf, draw(2, 4, C, seed=77))
        if running:
            assert_near(dx, want["d x"])
            assert_near(norm.nu, want["nu"])
        assert_near(y.detach(), want["y"])
        assert_near(norm.running_psi2, want["running_psi2"])
    assert torch.equal(wants[0]["running_psi2"], wants[1]["running_psi2"])
    none = torch.zeros(2, 4).bool()
    assert_near(scramble(make())(x, none).detach(), scramble(make())(x).detach(), rel=1e-12)


def test_d6_pnv_at_inference():
    norm = PowerNormV(1, eps=0.0, dtype=torch.float64)
    norm(torch.tensor([[1.0], [3.0]]).double())  # psi_B^2 = 5
    assert norm.running_psi2.item() == pytest.approx(0.9 + 0.5)
    assert norm.eval()(torch.ones(1, 1).double()).item() == pytest.approx(1 / math.sqrt(1.4))


@pytest.mark.parametrize("kind", [PowerNorm, PowerNormV])
def test_float32_convention(kind):
    x = torch.tensor([[100.0], [100.5], [101.0], [101.5]])
    for dtype in (torch.bfloat16, torch.float16):
        assert kind(1)(x.to(dtype)).dtype == dtype
        assert torch.equal(kind(1)(x.to(dtype)), kind(1)(x).to(dtype))
        norm = kind(1)
        norm(x.to(dtype)).sum().backward()
        assert norm.running_psi2.dtype == torch.float32
        half = kind(1).to(dtype)  # as a whole: buffers too
        half(x.to(dtype)).sum().backward()
        assert half.running_psi2.dtype == dtype and half.running_psi2.isfinite()


def test_bounded_under_a_constant_upstream_gradient():
    norm, sizes = PLAIN(), []
    for i in range(300):
        x = (1 + draw(16, C, seed=i)).requires_grad_()
        sizes.append(torch.autograd.grad(norm(x).sum(), x)[0].norm().item())
    assert max(sizes) < 3 * sizes[0]


def test_state_dict_round_trip():
    one, other = scramble(PowerNorm(6, groups=2)), PowerNorm(6, groups=2)
    other.load_state_dict(one.state_dict())
    assert_same_outcome(one, other, draw(4, 6, dtype=torch.float32), "loaded")
    assert "groups=2" in repr(one) and "alpha=0.9" in repr(one)


def test_empty_batch_changes_nothing():
    norm = scramble(PowerNorm(C))
    before = copy.deepcopy(norm.state_dict())
    norm(torch.ones(0, 4, C)).sum().backward()
    torch.testing.assert_close(norm.state_dict(), before, rtol=0, atol=0)


def test_two_forward_passes_before_a_backward_pass():
    """A layer used twice in one graph: each gradient takes nu as it is when its turn comes, the second use's first."""
    norm, x, up = scramble(PowerNorm(C, dtype=torch.float64)), draw(4, C).requires_grad_(), draw(4, C, seed=1)
    start = copy.deepcopy(norm.state_dict())
    norm(norm(x)).backward(up)
    one, two = copy.deepcopy(norm), copy.deepcopy(norm)  # the same, use by use
    one.load_state_dict(start)
    leaf = x.detach().requires_grad_()
    middle = one(leaf)
    two.load_state_dict(one.state_dict())
    between = middle.detach().requires_grad_()
    two(between).backward(up)
    one.nu.copy_(two.nu)
    middle.backward(between.grad)
    assert_near(x.grad, leaf.grad, rel=1e-12)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"alpha": 1.0}, "write 0 <= alpha < 1"),
        ({"alpha": -0.1}, "write 0 <= alpha < 1"),
        ({"groups": 4}, "write a divisor"),
        ({"groups": 0}, "write a divisor"),
    ],
)
def test_refuses_options(options, words):
    with pytest.raises(ValueError, match=words):
        PowerNorm(6, **options)


@pytest.mark.parametrize("kind", [PowerNorm, PowerNormV])
def test_refuses_inputs(kind):
    for shape in ((4,), (4, 2), (4, 1), (2, C, 5, 5)):
        with pytest.raises(ValueError, match="normalized_shape"):
            kind(C)(torch.ones(shape))
    for mask in (torch.ones(2, 4), torch.ones(2, 4, C).bool(), torch.ones(4).bool()):
        with pytest.raises(ValueError, match=r"write torch.bool, \(2, 4\)"):
            kind(C)(torch.ones(2, 4, C), mask)


@settings(deadline=None, max_examples=30, derandomize=True)
@given(norm_inputs(min_axes=2))
def test_any_input(x):
    for kind in (PowerNorm, PowerNormV):
        if x.shape[-1]:
            norm = kind(x.shape[-1])
            y = norm(x)
            assert y.shape == x.shape and y.dtype == x.dtype and torch.isfinite(y).all()
            assert torch.isfinite(norm.running_psi2).all() and (norm.running_psi2 >= 0).all()
            slack = 4 * torch.finfo(x.dtype).eps
            torch.testing.assert_close(y, kind(x.shape[-1])(x.contiguous()), rtol=slack, atol=slack)


# --- the profile paper ------------------------------------------------------------------------------------------------


def test_batchnorm_of_the_authors_code():
    """Tokens over their RMS; padding takes the mean of the others, and so makes the variance smaller."""
    x, pad = 2 + draw(2, 4, C), torch.tensor([[0, 0, 0, 1], [0, 1, 1, 1]]).bool()
    scale = (x.square().mean(-1, keepdim=True) + EPS).sqrt()
    rows = (x / scale)[~pad]
    want = (rows - rows.mean(0)) / (rows.var(0, correction=0) * len(rows) / 8 + EPS).sqrt()
    for value in (x, torch.where(pad[..., None], 1e3, x)):
        norm = iwslt14.PaddedBatchNorm(C).double()
        y = norm(value, pad)
        assert_near(y[~pad].detach(), want, rel=1e-9)
        assert_near(norm.running_mean, 0.05 * rows.mean(0), rel=1e-9)
        assert norm.eval()(value, pad).isfinite().all()


def test_norms_of_the_encoder():
    config = Iwslt14(steps=1, batch=1, lr=1.0, warmup=8000, averaged=1, width=12)
    assert [iwslt14.norm("pn", config, last).warmup_iters for last in (False, True)] == [8000, 1000]
    assert iwslt14.norm("pn", config, False).groups == 4
    x, pad = draw(2, 5, 12).float(), torch.zeros(2, 5).bool()
    ours, plain = iwslt14.norm("pnv", config, False), PowerNormV(12)
    assert type(ours) is PowerNormV and type(iwslt14.norm("batchnorm", config, True)) is iwslt14.PaddedBatchNorm
    assert_near(ours(x, pad).detach(), plain(method.scaled(x, 4, 1e-5), pad).detach(), rel=1e-6)
