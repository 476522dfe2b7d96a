import copy
import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from torch import nn
from torch.nn import functional as F

from repro.experiments.iwslt14 import Iwslt14, translator
from repro.papers.powernorm import PowerNorm, PowerNormV
from repro.papers.unified_norm import UnifiedNorm, fuse_into_linear, iwslt14
from repro.testing import (
    assert_near,
    assert_same_outcome,
    check_copies,
    check_dtypes,
    check_factory,
    check_gradients,
    check_layouts,
    check_vmap,
    draw,
    hard_inputs,
    norm_inputs,
    outcome,
    scramble,
)

C, M, ALPHA, EPS = 3, 4, 0.7, 1e-5
# name: (batches seen before, warmup_iters, outlier_filtration)
STAGES = {
    "first": (0, 0, False),
    "warm-up": (2, 8, True),
    "smoothed": (50, 8, False),
    "filtered": (50, 8, True),
    "with r": (2000, 8, False),
    "with r, filtered": (2000, 8, True),
    "warm-up beyond 1000": (1500, 1600, False),
}


def made(kind, stage):
    seen, warmup, filtration = STAGES[stage]
    norm = scramble(
        kind(C, alpha=ALPHA, warmup_iters=warmup, outlier_filtration=filtration, window_size=M, dtype=torch.float64)
    )
    norm.num_batches_tracked.fill_(seen)
    return norm


def mean(values):
    return math.fsum(values) / len(values)


def geometric(values):
    return 0.0 if 0 in values else math.exp(mean([math.log(v) for v in values]))


def oracle(norm, x, stage):
    """The header's equations in Python floats, one feature at a time: what `outcome` gives."""
    seen, warmup, filtration = STAGES[stage]
    state, up, t = {k: v.tolist() for k, v in norm.state_dict().items()}, draw(*x.shape, seed=77), seen + 1
    columns, ups = x.flatten(0, -2).t().tolist(), up.flatten(0, -2).t().tolist()
    recorded = [math.sqrt(v) for row in state["buffer_x2"] for v in row]
    spread = math.fsum((v - mean(recorded)) ** 2 for v in recorded) / (len(recorded) - 1)
    windows = [[row[c] for row in state["buffer_x2"][1:]] + [mean([v * v for v in columns[c]])] for c in range(C)]
    skip = filtration and t > M and t >= warmup and any(mean(w) - geometric(w) > M * spread for w in windows)
    want = {key: [] for key in ("y", "d x", "d weight", "d bias", "running_psi2", "ema_gz", "buffer_x2", "buffer_gz")}
    for c, (col, dy, window) in enumerate(zip(columns, ups, windows, strict=True)):
        gamma, beta, old, ema = (state[name][c] for name in ("weight", "bias", "running_psi2", "ema_gz"))
        if not norm.training:
            root, r, var = math.sqrt(old + EPS), 1.0, None
        else:
            plain = skip or t <= max(M, warmup - 1)
            var = window[-1] if plain else geometric(window)
            root = math.sqrt(var + EPS)
            r = 1.0 if skip or t <= max(1000, warmup) else min(max(root / math.sqrt(old + EPS), 0.2), 5.0)
        z, g, pull, gzs = (
            [v / root for v in col],
            [r * gamma * d for d in dy],
            0.0,
            [row[c] for row in state["buffer_gz"]],
        )
        if norm.training:
            gz = mean([a * v for a, v in zip(g, z, strict=True)])
            gzs = [*gzs[1:], ema if skip else gz]
            mean_gz = gz if plain else mean(gzs)
            ema = ALPHA * ema + (1 - ALPHA) * mean_gz
            pull = mean_gz if skip else ema
            window = [*window[:-1], old] if skip else window
        want["y"].append([gamma * v + beta for v in z])
        want["d x"].append([(a - pull * v) / root for a, v in zip(g, z, strict=True)])
        want["d weight"].append(math.fsum(r * d * v for d, v in zip(dy, z, strict=True)))
        want["d bias"].append(math.fsum(dy))
        want["running_psi2"].append(old if var is None else ALPHA * old + (1 - ALPHA) * var)
        want["ema_gz"].append(ema)
        want["buffer_x2"].append(window if norm.training else [row[c] for row in state["buffer_x2"]])
        want["buffer_gz"].append(gzs)
    want = {key: torch.tensor(value, dtype=torch.float64) for key, value in want.items()}
    for key in ("y", "d x"):
        want[key] = want[key].t().reshape(x.shape)
    for key in ("buffer_x2", "buffer_gz"):
        want[key] = want[key].t()
    return want, skip


def check(kind):
    """The module agrees with the oracle at every stage, on every hard input: values, gradients, buffers."""
    skipped = set()
    for stage in STAGES:
        for shape in ((7, C), (2, 4, C)):
            for name, x in {**hard_inputs(*shape), "louder": 3 * draw(*shape), "quieter": 0.05 * draw(*shape)}.items():
                for training in (True, False):
                    norm = made(kind, stage).train(training)
                    want, skip = oracle(norm, x, stage)
                    before = norm.skip_counter.item()
                    got = outcome(norm, x)
                    for key in want:
                        floor = 1e-13 if name in ("constant", "spiked") else 1e-25  # cancellation in dL/dx
                        assert_near(
                            got[key], want[key], f"{stage} {shape} {name} training={training}: {key}", floor=floor
                        )
                    assert norm.skip_counter.item() - before == (skip and training), f"{stage} {name}: counter"
                    skipped.add((stage, skip))
    assert {s for stage, s in skipped if stage == "with r, filtered"} == {True, False}
    for i in range(60):  # where the threshold is, to a few per cent
        norm, x = made(kind, "filtered"), torch.full((2, C), 1.0 + 0.02 * i).double()
        skip = oracle(norm, x, "filtered")[1]
        norm(x)
        assert norm.skip_counter.item() == skip, f"threshold {i}"


class Broken(nn.Module):
    """UN again with plain statements and, if asked, one fault."""

    def __init__(self, n, *, alpha, warmup_iters, outlier_filtration, window_size, dtype, fault=None):
        super().__init__()
        self.alpha, self.warmup, self.filtration, self.m, self.fault = (
            alpha,
            warmup_iters,
            outlier_filtration,
            window_size,
            fault,
        )
        for name in ("weight", "bias"):
            self.register_parameter(name, nn.Parameter(torch.ones(n, dtype=dtype)))
        for name, shape in (
            ("running_psi2", (n,)),
            ("ema_gz", (n,)),
            ("buffer_x2", (window_size, n)),
            ("buffer_gz", (window_size, n)),
        ):
            self.register_buffer(name, torch.ones(shape, dtype=dtype))
        for name in ("num_batches_tracked", "skip_counter"):
            self.register_buffer(name, torch.tensor(0))

    def forward(self, x):
        fault, old = self.fault, self.running_psi2.clone()
        if not self.training:
            return x / (old + EPS).sqrt() * self.weight + self.bias
        self.num_batches_tracked += 1
        t, axes = self.num_batches_tracked.item(), tuple(range(x.dim() - 1))
        x2 = (x.detach() - (x.detach().mean(axes) if fault == "centred" else 0)).square().mean(axes)
        before = self.buffer_x2.clone()
        window = torch.cat([before[1:], x2[None]])
        recorded = (window if fault == "spread with the new value" else before).sqrt()
        spread = (
            recorded.var(0)
            if fault == "spread per channel"
            else recorded.var(correction=0 if fault == "biased spread" else 1)
        )
        gm = window.log().mean(0).exp()
        limit = spread if fault == "threshold without M" else self.m * spread
        above = window.mean(0) - gm > limit
        outlier = above.all() if fault == "outlier in all channels" else above.any()
        skip = bool(self.filtration and t > self.m and t >= self.warmup and outlier)
        plain = skip or t <= self.m or (t < self.warmup and fault != "no warm-up")
        smooth = {
            "arithmetic mean": window.mean(0),
            "window without this batch": before.log().mean(0).exp(),
            "mean of roots": window.sqrt().mean(0).square(),
        }.get(fault, gm)
        var = x2 if plain or fault == "not smoothed" else smooth
        self.buffer_x2.copy_(torch.cat([window[:-1], (old if skip and fault != "outlier kept" else x2)[None]]))
        if fault == "window never moves":
            self.buffer_x2.copy_(before)
        keep = 1 - self.alpha if fault == "alpha of the new value" else self.alpha
        self.running_psi2.copy_(keep * old + (1 - keep) * (x2 if fault == "running value of the batches" else var))
        root = var.sqrt() + EPS if fault == "eps outside the root" else (var + EPS).sqrt()
        r = root / ((self.running_psi2 if fault == "r by the new value" else old) + EPS).sqrt()
        r = r if fault == "r not clamped" else r.clamp(0.2, 5)
        if fault != "r from the first batch on" and (t <= max(1000, self.warmup) or skip):
            r = torch.ones_like(r)
        r = 1 / r if fault == "r upside down" else r
        self.skip_counter += skip
        return Step.apply(x, self.weight, self.bias, root, r, skip, plain, self)


class Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, root, r, skip, plain, module):
        ctx.saved = x / root, weight.detach(), root, r, skip, plain, module
        return weight * x / root + bias

    @staticmethod
    def backward(ctx, dy):
        z, weight, root, r, skip, plain, module = ctx.saved
        fault, axes = module.fault, tuple(range(dy.dim() - 1))
        g = dy * weight * (1 if fault == "gradient without r" else r)
        gz, old = (g * z).mean(axes), module.ema_gz.clone()
        entry = old if skip and fault != "gradient of an outlier kept" else gz
        module.buffer_gz.copy_(torch.cat([module.buffer_gz[1:], entry[None]]))
        mean_gz = gz if plain or fault == "gz not smoothed" else module.buffer_gz.mean(0)
        new = module.alpha * old + (1 - module.alpha) * mean_gz
        module.ema_gz.copy_(new)
        pull = mean_gz if skip and fault != "ema for an outlier" else new
        if fault == "ema before its update" and not skip:
            pull = old
        if fault == "the batch's own projection":
            pull = gz
        if fault == "no projection":
            pull = 0 * gz
        dgamma = (dy * z * (1 if fault == "gamma's gradient without r" else r)).sum(axes)
        dbeta = (dy * (r if fault == "beta's gradient with r" else 1)).sum(axes)
        return (g - pull * z) / root, dgamma, dbeta, None, None, None, None, None


FAULTS = [
    "centred",
    "spread with the new value",
    "spread per channel",
    "biased spread",
    "threshold without M",
    "outlier in all channels",
    "no warm-up",
    "arithmetic mean",
    "window without this batch",
    "mean of roots",
    "not smoothed",
    "outlier kept",
    "window never moves",
    "alpha of the new value",
    "running value of the batches",
    "eps outside the root",
    "r by the new value",
    "r not clamped",
    "r from the first batch on",
    "r upside down",
    "gradient without r",
    "gradient of an outlier kept",
    "gz not smoothed",
    "ema for an outlier",
    "ema before its update",
    "the batch's own projection",
    "no projection",
    "gamma's gradient without r",
    "beta's gradient with r",
]


@pytest.mark.parametrize("kind", [UnifiedNorm, Broken], ids=["ours", "unbroken"])
def test_oracle(kind):
    check(kind)


@pytest.mark.parametrize("fault", FAULTS)
def test_mutant_dies(fault):
    with pytest.raises(AssertionError):
        check(partial(Broken, fault=fault))


@pytest.mark.parametrize(
    "options", [{}, {"outlier_filtration": True, "warmup_iters": 2, "window_size": 2, "affine": False}]
)
def test_contract(options):
    """check_norm_contract but for the finite differences in training: the backward pass is not that of a function."""
    make, x = partial(UnifiedNorm, C, **options), draw(2, 4, C)
    check_factory(make)
    for training in (True, False):
        module = scramble(make(dtype=torch.float64)).train(training)
        module.num_batches_tracked.fill_(1500 if options else 0)
        check_dtypes(make().train(training), x)
        check_copies(module, x)
        check_layouts(module, x)
        check_vmap([scramble(make(dtype=torch.float64), seed).train(training) for seed in range(3)], x)
    check_gradients(module, x)  # at inference


def test_compiled_for_several_steps():
    """The backward pass must see var and r as the forward pass did, not by the buffers that have changed since."""
    plain = UnifiedNorm(6, warmup_iters=2, outlier_filtration=True, dtype=torch.float64)
    plain.num_batches_tracked.fill_(998)
    compiled = copy.deepcopy(plain)
    torch.compiler.reset()
    compiled.compile(backend="aot_eager", fullgraph=True)
    for i in range(6):
        x = draw(2, 4, 6, seed=i) * torch.arange(1, 7) * (30 if i == 4 else 1)
        assert_same_outcome(compiled, plain, x, f"step {i}", rel=1e-12)
    assert plain.skip_counter > 0


@pytest.mark.parametrize("shape", [(7, C), (2, 4, C)])
def test_window_of_one_is_pnv(shape):
    """Then the backward pass is that of autograd."""
    for name, x in hard_inputs(*shape).items():
        for training in (True, False):
            ours = scramble(UnifiedNorm(C, window_size=1, warmup_iters=0, dtype=torch.float64)).train(training)
            pnv = PowerNormV(C, dtype=torch.float64).train(training)
            pnv.load_state_dict(ours.state_dict(), strict=False)
            got, want = outcome(ours, x), outcome(pnv, x)
            for key in want:
                assert_near(
                    got[key],
                    want[key],
                    f"{name} {key}",
                    rel=1e-9,
                    floor=1e-13 if name in ("spiked", "constant") else 1e-25,
                )


def test_initial_values():
    norm = UnifiedNorm(4)
    want = {
        "weight": 1,
        "bias": 0,
        "running_psi2": 1,
        "buffer_x2": 0,
        "buffer_gz": 0,
        "ema_gz": 0,
        "skip_counter": 0,
        "num_batches_tracked": 0,
    }
    assert set(norm.state_dict()) == set(want) and all((norm.state_dict()[k] == v).all() for k, v in want.items())
    assert (norm.eps, norm.alpha, norm.window_size, norm.warmup_iters, norm.outlier_filtration) == (
        1e-5,
        0.9,
        4,
        4000,
        False,
    )
    assert norm.buffer_x2.shape == (4, 4) and "window_size=4" in repr(norm)


def stream(norm, values):
    """var of each batch, found from the output, for batches whose mean square is given."""
    seen = []
    for v in values:
        y = norm(torch.full((2, 1), math.sqrt(v)).double())
        seen.append(v / y[0, 0].item() ** 2)
    return seen


def test_d1_warm_up_by_the_batch():
    norm = UnifiedNorm(1, eps=0.0, warmup_iters=7, dtype=torch.float64)
    values = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0]
    assert stream(norm, values) == pytest.approx([*values[:6], 64 / 2**1.5, 128 / 2**1.5])
    early = UnifiedNorm(1, eps=0.0, warmup_iters=0, dtype=torch.float64)
    assert stream(early, values[:6]) == pytest.approx([1, 2, 4, 8, 16 / 2**1.5, 32 / 2**1.5])  # the window must be full
    for seen, want in ((999, 1.0), (1000, 2.0)):  # r = sqrt(4) / sqrt(1) from batch 1001 on
        norm = UnifiedNorm(1, eps=0.0, warmup_iters=0, dtype=torch.float64)
        norm.num_batches_tracked.fill_(seen)
        norm.buffer_x2.fill_(4.0)
        y = norm(torch.full((2, 1), 2.0).double())
        assert torch.autograd.grad(y.sum(), norm.weight)[0].item() == pytest.approx(2 * want)


def test_d2_what_stands_in_for_an_outlier():
    norm = UnifiedNorm(2, warmup_iters=0, outlier_filtration=True, dtype=torch.float64)
    norm.num_batches_tracked.fill_(10)
    with torch.no_grad():
        norm.buffer_x2.copy_(torch.tensor([[1.0, 2.0]]).repeat(4, 1))
        norm.running_psi2.copy_(torch.tensor([1.1, 2.2]))
        norm.ema_gz.fill_(0.3)
    x = (20 * draw(8, 2)).requires_grad_()
    (dx,) = torch.autograd.grad(norm(x), x, draw(8, 2, seed=1))
    assert norm.skip_counter == 1
    assert norm.buffer_x2[-1].tolist() == pytest.approx([1.1, 2.2]) and norm.buffer_gz[-1].tolist() == pytest.approx(
        [0.3, 0.3]
    )
    pnv = PowerNormV(2, dtype=torch.float64)
    assert_near(dx, torch.autograd.grad(pnv(x), x, draw(8, 2, seed=1))[0], rel=1e-9)  # the batch by itself


def test_d3_filtration_waits_for_a_full_window():
    norm = UnifiedNorm(1, warmup_iters=0, outlier_filtration=True, dtype=torch.float64)
    stream(norm, [1.0, 1.1, 0.9, 1.05])
    assert norm.skip_counter == 0
    stream(norm, [1e4])
    assert norm.skip_counter == 1


def test_d4_padding_has_no_part():
    x, pad = 2 + draw(2, 4, C), torch.tensor([[0, 0, 0, 1], [0, 1, 1, 1]]).bool()
    up, results = draw(2, 4, C, seed=1), []
    for value in (x, torch.where(pad[..., None], 1e3, x)):
        norm, leaf = made(UnifiedNorm, "with r"), value.clone().requires_grad_()
        (dx,) = torch.autograd.grad(norm(leaf, pad), leaf, up)
        results.append((dx[~pad], *norm.buffers()))
    real, leaf = made(UnifiedNorm, "with r"), x[~pad].clone().requires_grad_()
    results.append((torch.autograd.grad(real(leaf), leaf, up[~pad])[0], *real.buffers()))
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert_near(a, b, rel=1e-12)
    norm, leaf = made(UnifiedNorm, "with r"), x.clone().requires_grad_()
    (dx,) = torch.autograd.grad(norm(leaf, pad), leaf, (~pad[..., None]).double().expand_as(x))
    assert (dx[pad] == 0).all()
    with pytest.raises(ValueError, match=r"write torch.bool, \(2, 4\)"):
        norm(x, pad.float())


def test_float32_convention():
    x = torch.tensor([[100.0], [100.5], [101.0], [101.5]])
    for dtype in (torch.bfloat16, torch.float16):
        assert UnifiedNorm(1)(x.to(dtype)).dtype == dtype
        assert torch.equal(UnifiedNorm(1)(x.to(dtype)), UnifiedNorm(1)(x).to(dtype))
        half = UnifiedNorm(1, warmup_iters=0).to(dtype)  # as a whole: buffers too
        for _ in range(6):
            half(x.to(dtype) / 100).sum().backward()
        assert half.buffer_x2.dtype == dtype and half.running_psi2.isfinite()


@pytest.mark.parametrize("m", [2, 3, 4, 8])
def test_the_inequality_behind_the_threshold(m):
    for x in (draw(2000, m).exp(), (3 * draw(2000, m)).exp(), draw(2000, m).relu() + 1e-9):
        gap, spread = x.mean(1) - x.log().mean(1).exp(), x.sqrt().var(1, correction=0)
        slack = 1e-12 * x.mean(1)
        assert (gap <= m * spread + slack).all() and (gap >= m / (m - 1) * spread - slack).all()


def test_state_dict_round_trip_and_reset():
    one, other = made(UnifiedNorm, "with r"), UnifiedNorm(C, alpha=ALPHA, warmup_iters=8, dtype=torch.float64)
    other.load_state_dict(one.state_dict())
    assert_same_outcome(one, other, draw(4, C), "loaded")
    one.reset_running_stats()  # before fine-tuning; gain and bias stay
    fresh = UnifiedNorm(C)
    assert all(torch.equal(b.to(torch.float64), fresh.get_buffer(name).double()) for name, b in one.named_buffers())
    assert torch.equal(one.weight, other.weight)


def test_empty_batch_changes_nothing():
    norm = made(UnifiedNorm, "with r")
    before = copy.deepcopy(norm.state_dict())
    norm(torch.ones(0, 4, C).double()).sum().backward()
    torch.testing.assert_close(norm.state_dict(), before, rtol=0, atol=0)


def test_two_forward_passes_before_a_backward_pass():
    """A layer used twice in one graph: each gradient takes the buffers as they are when its turn comes."""
    norm = scramble(UnifiedNorm(C, warmup_iters=0, dtype=torch.float64))
    x, up, start = draw(4, C).requires_grad_(), draw(4, C, seed=1), copy.deepcopy(norm.state_dict())
    norm(norm(x)).backward(up)
    one, two = copy.deepcopy(norm), copy.deepcopy(norm)  # the same, use by use
    one.load_state_dict(start)
    leaf = x.detach().requires_grad_()
    middle = one(leaf)
    two.load_state_dict(one.state_dict())
    between = middle.detach().requires_grad_()
    two(between).backward(up)
    one.buffer_gz.copy_(two.buffer_gz)
    one.ema_gz.copy_(two.ema_gz)
    middle.backward(between.grad)
    assert_near(x.grad, leaf.grad, rel=1e-12)
    assert_near(norm.ema_gz, one.ema_gz, rel=1e-12)


# --- folding ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "norm", [UnifiedNorm(6), UnifiedNorm(6, affine=False), PowerNormV(6, eps=0.1), PowerNorm(6, groups=None)]
)
def test_folds_exactly(norm, bias):
    torch.manual_seed(0)
    linear, norm, x = nn.Linear(6, 5, bias=bias).double(), scramble(copy.deepcopy(norm).double()).eval(), 3 + draw(9, 6)
    before = copy.deepcopy((linear.state_dict(), norm.state_dict()))
    fused = fuse_into_linear(norm, linear)
    assert_near(fused(x).detach(), F.linear(norm(x), linear.weight, linear.bias).detach(), rel=1e-14)
    torch.testing.assert_close((linear.state_dict(), norm.state_dict()), before, rtol=0, atol=0)
    assert (fused.bias is None) == (norm.bias is None and not bias) and type(fused) is nn.Linear
    for dtype, rel in ((torch.float32, 1e-6), (torch.bfloat16, 0.03)):
        a, b = copy.deepcopy(norm).to(dtype), copy.deepcopy(linear).to(dtype)
        assert fuse_into_linear(a, b).weight.dtype == dtype
        assert_near(fuse_into_linear(a, b)(x.to(dtype)).detach(), b(a(x.to(dtype))).detach(), rel=rel)


@pytest.mark.parametrize(
    "fault", ["no eps", "no shift", "scale of the rows", "variance for deviation", "statistics of the batch"]
)
def test_folding_mutant_dies(fault):
    norm, linear, x = scramble(UnifiedNorm(5).double()).eval(), nn.Linear(5, 5).double(), 3 + draw(9, 5)
    running = norm.running_psi2 if fault != "statistics of the batch" else x.square().mean(0)
    scale = norm.weight / (running + (0 if fault == "no eps" else norm.eps)).sqrt()
    scale = norm.weight / running if fault == "variance for deviation" else scale
    weight = linear.weight * (scale[:, None] if fault == "scale of the rows" else scale)
    bias = linear.bias if fault == "no shift" else linear.bias + linear.weight @ norm.bias
    with pytest.raises(AssertionError):
        assert_near(F.linear(x, weight, bias).detach(), linear(norm(x)).detach(), rel=1e-12)


def test_refuses_to_fold():
    for norm in (nn.LayerNorm(4), nn.BatchNorm1d(4), PowerNorm(4), PowerNorm(4, groups=2)):
        with pytest.raises(TypeError, match="write UnifiedNorm"):
            fuse_into_linear(norm.eval(), nn.Linear(4, 4))
    with pytest.raises(ValueError, match=r"call norm.eval\(\)"):
        fuse_into_linear(UnifiedNorm(4), nn.Linear(4, 4))
    with pytest.raises(ValueError, match="the layer that follows"):
        fuse_into_linear(UnifiedNorm(4).eval(), nn.Linear(3, 4))


@pytest.mark.parametrize(
    "options, words", [({"alpha": 1.0}, "write 0 <= alpha < 1"), ({"window_size": 0}, "write 1 or more")]
)
def test_refuses_options(options, words):
    with pytest.raises(ValueError, match=words):
        UnifiedNorm(6, **options)


def test_wrong_shape():
    for shape in ((4,), (4, 2), (4, 1), (2, C, 5, 5)):
        with pytest.raises(ValueError, match="normalized_shape"):
            UnifiedNorm(C)(torch.ones(shape))


@settings(deadline=None, max_examples=20, derandomize=True)
@given(norm_inputs(min_axes=2))
def test_any_input(x):
    if x.shape[-1]:
        norm = UnifiedNorm(x.shape[-1], warmup_iters=0, outlier_filtration=True)
        for _ in range(6):
            y = norm(x)
            assert y.shape == x.shape and y.dtype == x.dtype and torch.isfinite(y).all()
        assert torch.isfinite(norm.running_psi2).all() and (norm.running_psi2 >= 0).all()


# --- the profile paper ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arm", iwslt14.NORMS)
def test_all_norms_of_the_translator_are_those_of_the_arm(arm):
    config = Iwslt14(steps=1, batch=1, lr=1.0, warmup=1, averaged=1, width=8, depth=2, hidden=8)
    model, kind = translator(9, "test unified_norm", 0, config, iwslt14.NORMS[arm]), iwslt14.NORMS[arm]
    assert sum(type(module) is kind for module in model.modules()) == 2 * (2 + 3) + 2
    norm = kind(8)
    assert norm(torch.ones(2, 3, 8)).shape == (2, 3, 8)
    if arm == "un":
        assert (norm.window_size, norm.warmup_iters, norm.outlier_filtration) == (4, 4000, False)
