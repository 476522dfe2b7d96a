import copy
import math
import pickle
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from repro.papers.nf_resnet import ScaledWSConv2d, activation_gamma, scaled_ws
from repro.papers.nfnet import AGC, NFNetBlock, adaptive_clip_grad_, nfnet, unitwise_norm
from repro.papers.nfnet.networks import GELU, VARIANTS
from repro.testing import assert_near, draw, mutation, quiet_import, scramble
from repro.train import fit

SHAPES = [(6, 4, 3, 3), (6, 1, 3, 3), (5, 7), (1, 7), (5, 3, 4), (8,), (8, 1, 1, 1), ()]


def unit_rows(t):
    """The units of a tensor as lists of Python floats: Eq. 3's rows, or all of it where one axis at most is long."""
    if sum(n > 1 for n in t.shape) <= 1:
        return [t.flatten().tolist()]
    return t.flatten(1).tolist()


def oracle(w, g, clipping, eps):
    """Eq. 3 in Python floats."""
    rows = []
    for weights, slopes in zip(unit_rows(w), unit_rows(g), strict=True):
        norm, bound = (math.sqrt(math.fsum(v * v for v in row)) for row in (slopes, weights))
        bound = clipping * max(bound, eps)
        rows.append([v * bound / norm for v in slopes] if norm > bound else slopes)
    return torch.tensor(rows, dtype=torch.float64).reshape(w.shape)


def cases():
    """(name, w, g) of every shape: gradients of 13 decades, tiny and zero weights and gradients."""
    for i, shape in enumerate(SHAPES):
        per_unit = (*shape[:1], *[1] * (len(shape) - 1))
        for name, low, high, size in (
            ("wide", -9, 4, 1.0),
            ("small", -6, -4, 1.0),
            ("tiny weights", -9, 1, 1e-4),
            ("no weights", -6, 0, 0.0),
        ):
            scale = 10 ** (
                low
                + (high - low) * torch.rand(per_unit, generator=torch.Generator().manual_seed(i), dtype=torch.float64)
            )
            w, g = size * (0.5 + draw(*shape, seed=i)), draw(*shape, seed=i + 50) * scale
            yield f"{name} {shape}", w, g
        yield f"no gradient {shape}", draw(*shape, seed=i), torch.zeros(shape, dtype=torch.float64)


def check(clip, clipping=0.02, eps=1e-3):
    """`clip([p], clipping, eps)` does as the oracle on every case, and leaves what is below the bound bitwise alone."""
    for name, w, g in cases():
        p = nn.Parameter(w.clone())
        p.grad = g.clone()
        clip([p], clipping, eps)
        want = oracle(w, g, clipping, eps)
        for got, wanted, raw in zip(*map(unit_rows, (p.grad, want, g)), strict=True):
            assert_near(torch.tensor(got).double(), torch.tensor(wanted).double(), name, rel=1e-6)
            assert wanted != raw or got == raw, f"{name}: an unclipped unit moved"
        assert_near(p.grad, want, name, rel=1e-12)
        assert torch.equal(p.detach(), w), f"{name}: the weights moved"


def broken(fault):
    def clip(parameters, clipping, eps):
        for p in parameters:
            w, g = p.detach(), p.grad
            axes = tuple(range(1, w.dim())) if w.squeeze().dim() > 1 else tuple(range(w.dim()))
            if fault == "one norm for the layer":
                axes = tuple(range(w.dim()))
            if fault == "norm over the outputs" and w.dim() > 1:
                axes = (0,)
            if fault == "norm over channels alone" and w.dim() == 4:  # the kernel's places are left apart
                axes = (1,)
            if fault == "gains one by one":  # timm
                axes = tuple(range(1, w.dim()))
            if fault == "vectors one by one" and w.dim() == 1:
                norm_g, norm_w = g.abs(), w.abs()
            else:
                norm_g, norm_w = (torch.linalg.vector_norm(t, dim=axes or None, keepdim=True) for t in (g, w))
            if fault == "squared norms":
                norm_g, norm_w = norm_g.square(), norm_w.square()
            if fault == "mean of squares":
                norm_w = norm_w / (w.numel() / norm_w.numel()) ** 0.5
            floor = {
                "eps added": norm_w + eps,
                "no eps": norm_w,
                "eps times lambda twice": norm_w.clamp(min=clipping * eps),
            }
            bound = clipping * floor.get(fault, norm_w.clamp(min=eps))
            if fault == "eps under the gradient":
                norm_g = norm_g.clamp(min=eps)
            if fault == "floor of 1e-2 under the gradient":
                norm_g = norm_g.clamp(min=1e-2)
            scale = (bound / norm_g).clamp(max=1.0).nan_to_num(1.0)
            if fault == "always scaled":
                scale = (bound / norm_g).nan_to_num(1.0, posinf=1.0)
            if fault == "set to zero":
                scale = (norm_g <= bound).double()
            if fault == "lambda forgotten":
                scale = (bound / clipping / norm_g).clamp(max=1.0).nan_to_num(1.0)
            if fault == "weights clipped":
                p.data.mul_(scale)
                continue
            p.grad = g * scale

    return clip


test_oracle, test_mutant_dies = mutation(check, broken, adaptive_clip_grad_)


def clipped(w, g, **options):
    p = nn.Parameter(w.clone())
    p.grad = g.clone()
    adaptive_clip_grad_(p, **options)
    return p.grad


@pytest.mark.parametrize("shape", [(6, 4, 3, 3), (5, 7), (8,)])
def test_timm_agrees(shape):
    theirs = quiet_import("timm.utils.agc").adaptive_clip_grad
    for name, w, g in cases():
        if w.shape == shape and name.startswith(("wide", "small", "tiny")):
            p = nn.Parameter(w.clone())
            p.grad = g.clone()
            theirs([p], clip_factor=0.02, eps=1e-3)
            assert_near(clipped(w, g, clipping=0.02), p.grad, name, rel=1e-12)


@pytest.mark.parametrize("shape", [(6, 4, 3, 3), (5, 7)])
def test_pytorch_optimizer_agrees(shape):
    pytest.importorskip("pytorch_optimizer", reason="pip install pytorch-optimizer to compare with it")
    theirs = quiet_import("pytorch_optimizer.optimizer.agc").agc
    for name, w, g in cases():
        if w.shape == shape:
            assert_near(clipped(w, g), theirs(w, g), name, rel=1e-12)


def test_d1_vectors_and_gains_are_one_unit():
    for shape in [(3,), (3, 1, 1, 1), (1, 3), (3, 1)]:
        w, g = (torch.tensor(v, dtype=torch.float64).view(shape) for v in ([2.0, 1.0, 2.0], [0.0, 3.0, 4.0]))
        assert unitwise_norm(w).shape == () and float(unitwise_norm(w)) == 3.0
        assert_near(clipped(w, g), 0.03 / 5.0 * g, rel=1e-15)
    assert unitwise_norm(draw(3, 4, 2, 2)).shape == (3, 1, 1, 1) and unitwise_norm(draw(3, 4)).shape == (3, 1)
    assert float(clipped(torch.tensor(0.0).double(), torch.tensor(-5.0).double())) == pytest.approx(
        -1e-5
    )  # a skip gain at 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_float32(dtype):
    w, g = (300 * draw(4, 256, seed=i).to(dtype) for i in (0, 1))  # squares overflow float16
    assert unitwise_norm(w).dtype == torch.float32
    want = oracle(w.double(), g.double(), 0.01, 1e-3)
    torch.testing.assert_close(clipped(w, g).double(), want, rtol=torch.finfo(dtype).eps, atol=0)
    assert clipped(w, g).dtype == dtype


def test_d2_the_bound_holds_below_1e_6():
    w, g = torch.zeros(2, 3, dtype=torch.float64), torch.full((2, 3), 3e-7, dtype=torch.float64)
    assert_near(unitwise_norm(clipped(w, g, clipping=1e-4)), torch.full((2, 1), 1e-7).double(), rel=1e-6)


@pytest.mark.parametrize("arguments", [{"clipping": 0.0}, {"clipping": -1.0}, {"eps": 0.0}, {"clipping": math.nan}])
def test_bad_numbers(arguments):
    with pytest.raises(ValueError, match="above 0"):
        adaptive_clip_grad_([], **arguments)
    with pytest.raises(ValueError, match="above 0"):
        AGC(torch.optim.SGD([nn.Parameter(draw(2))], lr=1.0), **arguments)


def test_other_parameters_and_bad_gradients():
    still, frozen = nn.Parameter(draw(3)), draw(3)
    adaptive_clip_grad_(iter([still, frozen]))  # no gradient: nothing happens
    assert still.grad is None
    for bad in (math.nan, math.inf):  # what is broken must not look sound
        assert not torch.isfinite(clipped(draw(2, 2), torch.tensor([[bad, 1.0], [1.0, 1.0]]).double())[0, 0])
    with pytest.raises(TypeError, match="float"):
        unitwise_norm(torch.ones(3, dtype=torch.long))


# --- the wrapper -----------------------------------------------------------------------------------------------------


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()


def slopes(model, scale=100.0, seed=7):
    model.zero_grad()
    (scale * F.cross_entropy(model(draw(5, 6, seed=seed)), torch.tensor([0, 1, 2, 0, 1]))).backward()


def test_agc_clips_then_decays_then_steps():
    model, twin = net(), net()
    options = {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1}
    ours, theirs = (
        AGC(torch.optim.SGD(model.parameters(), **options), 0.02),
        torch.optim.SGD(twin.parameters(), **options),
    )
    for _ in range(4):
        slopes(model), slopes(twin)
        ours.step()
        for p in twin.parameters():
            p.grad = oracle(p.detach(), p.grad, 0.02, 1e-3)
        theirs.step()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        assert_near(p.detach(), q.detach(), rel=1e-12)
    assert (model[0].weight - net()[0].weight).abs().max() > 1e-3


def test_agc_excludes_what_it_is_told():
    model = net()
    optimizer = AGC(torch.optim.SGD(model.parameters(), lr=0.1), exclude=[model[2].weight])
    slopes(model)
    raw = {name: p.grad.clone() for name, p in model.named_parameters()}
    optimizer.step()
    for name, p in model.named_parameters():
        assert torch.equal(p.grad, raw[name]) == (name == "2.weight"), name


def test_agc_refuses_nonsense():
    model = net()
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(TypeError, match="write AGC"):
        AGC(model.parameters())
    for wrong in (model[2].weight, ["2.weight"], [nn.Parameter(draw(3, 8))]):
        with pytest.raises(ValueError, match="write exclude="):
            AGC(sgd, exclude=wrong)


def test_agc_passes_everything_through():
    model = net()
    sgd = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    optimizer = AGC(sgd)
    assert isinstance(optimizer, torch.optim.Optimizer)
    assert (
        optimizer.param_groups is sgd.param_groups
        and optimizer.state is sgd.state
        and optimizer.defaults is sgd.defaults
    )
    slopes(model)
    optimizer.step()
    assert optimizer.state_dict() == sgd.state_dict() and len(optimizer.state) == 4
    other = AGC(torch.optim.SGD(net().parameters(), lr=0.7, momentum=0.9))
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert other.param_groups[0]["lr"] == 0.1 and len(other.state) == 4
    optimizer.zero_grad()
    assert all(p.grad is None for p in model.parameters())
    extra = nn.Parameter(draw(2, 2))
    optimizer.add_param_group({"params": [extra], "lr": 1.0})
    extra.grad = draw(2, 2, seed=1)
    optimizer.step()
    assert float(unitwise_norm(extra.grad).max()) < 0.1
    calls = []
    optimizer.register_step_post_hook(lambda *_: calls.append(1))
    optimizer.step()
    assert calls == [1]


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))], ids=["deepcopy", "pickle"]
)
def test_agc_copies(duplicate):
    model = net()
    optimizer = AGC(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), 0.03, exclude=[model[2].weight])
    slopes(model)
    optimizer.step()
    twin, double = duplicate((model, optimizer))
    assert (
        double.clipping == 0.03
        and double.exclude[0] is twin[2].weight
        and double.param_groups[0]["params"][0] is twin[0].weight
    )
    for m, o in ((model, optimizer), (twin, double)):
        slopes(m)
        o.step()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(p, q) and p.data_ptr() != q.data_ptr()


def test_agc_under_a_scheduler():  # warnings are errors here
    model = net()
    optimizer = AGC(torch.optim.SGD(model.parameters(), lr=1.0))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 4)
    rates = []
    for _ in range(4):
        slopes(model)
        optimizer.step()
        rates.append(optimizer.optimizer.param_groups[0]["lr"])
        schedule.step()
    assert rates == pytest.approx([(1 + math.cos(math.pi * t / 4)) / 2 for t in range(4)])


def test_agc_clips_the_gradients_of_a_closure():
    model, twin = net(), net()
    optimizer, plain = (torch.optim.SGD(m.parameters(), lr=0.1) for m in (model, twin))

    def closure():
        slopes(model)
        return torch.tensor(1.5)

    assert AGC(optimizer, 0.02).step(closure) == 1.5
    slopes(twin)
    AGC(plain, 0.02).step()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("fused", [False, True])
def test_agc_sees_unscaled_gradients(fused):
    """GradScaler divides before the clip; a fused optimizer would otherwise divide after it."""
    model, twin = net().float(), net().float()
    optimizer = AGC(torch.optim.SGD(model.parameters(), lr=0.1, fused=fused), 0.02)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    x, y = draw(5, 6).float(), torch.tensor([0, 1, 2, 0, 1])
    scaler.scale(F.cross_entropy(model(x), y)).backward()
    scaler.step(optimizer)
    scaler.update()
    F.cross_entropy(twin(x), y).backward()
    AGC(torch.optim.SGD(twin.parameters(), lr=0.1), 0.02).step()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q)


def test_agc_in_the_training_loop(tmp_path):
    data = draw(40, 6), torch.arange(40) % 3

    def run(clipping, steps=6, checkpoint=None, hook=None):
        model = net()

        def optimizer(groups, lr):
            sgd = torch.optim.SGD(groups, lr=lr, momentum=0.9, nesterov=True)
            return sgd if clipping is None else AGC(sgd, clipping, exclude=[model[2].weight])

        history = fit(
            model,
            data,
            steps=steps,
            batch=8,
            lr=0.5,
            seed=3,
            optimizer=optimizer,
            schedule=lambda step, steps: 1.0,
            checkpoint=checkpoint,
            checkpoint_every=3,
            hook=hook,
        )
        return history.train_loss

    def stop(step, model, loss):
        if step == 4:
            raise KeyboardInterrupt

    assert run(None) == run(1e9) != run(0.01)
    with pytest.raises(KeyboardInterrupt):
        run(0.01, checkpoint=tmp_path / "c", hook=stop)
    assert run(0.01, checkpoint=tmp_path / "c") == run(0.01)


# --- the network -----------------------------------------------------------------------------------------------------

ACT = partial(F.gelu, approximate="tanh")
PARTS = [
    "skip gain",
    "alpha",
    "beta",
    "two",
    "se",
    "pool",
    "shortcut of z",
    "two convs",
    "groups",
    "gamma",
    "scaled ws",
]


def block_oracle(block, x, stride, transition, without=None):
    """The block from its state dict, written out; `without` leaves one part away."""
    s = block.state_dict()
    gamma = 1.0 if without == "gamma" else activation_gamma(ACT)

    def conv(name, z, padding=0, stride=1, groups=1):
        weight = s[f"{name}.weight"] if without == "scaled ws" else scaled_ws(s[f"{name}.weight"], s[f"{name}.gain"])
        if without == "groups" and groups > 1:  # a wrong grouping: channels shuffled
            z = z.roll(1, dims=1)
        return F.conv2d(z, weight, s[f"{name}.bias"], stride, padding, groups=groups)

    z = gamma * ACT(x if without == "beta" else x / block.beta)
    h = conv("branch.0", z)
    h = conv("branch.2", gamma * ACT(h), 1, stride, groups=2)
    if without != "two convs":
        h = conv("branch.4", gamma * ACT(h), 1, groups=2)
    h = conv("branch.6", gamma * ACT(h))
    mean = h.mean((2, 3))
    hidden = (mean @ s["branch.7.fc0.weight"].T + s["branch.7.fc0.bias"]).clamp(min=0)
    gate = 1 / (1 + (-(hidden @ s["branch.7.fc1.weight"].T + s["branch.7.fc1.bias"])).exp())
    h = h if without == "se" else gate[:, :, None, None] * h * (1 if without == "two" else 2)
    shortcut = x
    if transition:
        shortcut = x if without == "shortcut of z" else z
        if stride == 2:
            shortcut = (
                shortcut[..., ::2, ::2]
                if without == "pool"
                else F.avg_pool2d(shortcut, 2, ceil_mode=True, count_include_pad=False)
            )
        shortcut = conv("projection.1", shortcut)
    return shortcut + (1 if without == "alpha" else 0.2) * (1 if without == "skip gain" else s["skip_gain"]) * h


def check_block(without=None):
    for c_in, stride in ((8, 1), (6, 1), (8, 2), (6, 2)):
        block = scramble(NFNetBlock(c_in, 8, stride, beta=1.3, group_width=2, dtype=torch.float64), seed=stride)
        with torch.no_grad():
            for name, p in block.named_parameters():
                if name.endswith("weight"):
                    p.copy_(draw(*p.shape, seed=len(name)))
        x = 1 + draw(2, c_in, 7, 6, seed=3)
        assert_near(
            block(x).detach(), block_oracle(block, x, stride, c_in != 8 or stride > 1, without).detach(), rel=1e-10
        )


def test_block_oracle():
    check_block()


@pytest.mark.parametrize("without", PARTS)
def test_block_mutant_dies(without):
    with pytest.raises(AssertionError):
        check_block(without)


@pytest.mark.parametrize("variant", VARIANTS)
def test_betas_of_the_authors_loop(variant):
    n, want, std = VARIANTS[variant][0], [], 1.0
    for depth in (n, 2 * n, 6 * n, 3 * n):
        for number in range(depth):
            want.append(std)
            std = math.sqrt((1.0 if number == 0 else std**2) + 0.04)
    model = nfnet(variant, device="meta")
    assert [block.beta for block in model.blocks] == pytest.approx(want, rel=1e-12)
    assert [block.projection is not None for block in model.blocks].count(True) == 4
    assert all(p.is_meta for p in model.parameters()) and model.dropout.p == VARIANTS[variant][1]


@pytest.mark.parametrize("variant", ["F0", "F1"])
def test_timm_has_as_many_parameters(variant):
    theirs = quiet_import("timm").create_model(f"dm_nfnet_{variant.lower()}", device="meta")
    ours = nfnet(variant, device="meta")
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())


SMALL = {
    "depths": (1, 2),
    "widths": (16, 32),
    "classes": 5,
    "block": partial(NFNetBlock, group_width=4),
    "dropout": 0.0,
}


def small(**options):
    torch.manual_seed(0)
    return nfnet(**{**SMALL, **options})


def test_initial_values():
    model = small(classes=4000, dtype=torch.float64)
    assert float(model.head.weight.detach().std()) == pytest.approx(0.01, rel=0.02) and not model.head.bias.any()
    assert all(block.skip_gain.item() == 0.0 for block in model.blocks)
    assert [type(layer) is ScaledWSConv2d for layer in model.stem] == [True, False] * 3 + [True]
    assert [layer.stride[0] for layer in model.stem[::2]] == [2, 1, 1, 2]
    assert not any(p.dtype != torch.float64 for p in model.parameters())


def test_variance_of_the_blocks():
    """Sec. 2: with the branch switched on the variance of a block's output is alpha^2 + beta^2, or alpha^2 + 1."""
    torch.manual_seed(0)
    for c_in, beta in ((256, 1.2), (128, 1.2)):
        block = NFNetBlock(c_in, 256, beta=beta, group_width=32)
        with torch.no_grad():
            block.skip_gain.fill_(1.0)
            y = block(beta * torch.randn(8, c_in, 8, 8))
        assert block.variance == pytest.approx(0.04 + (beta**2 if c_in == 256 else 1.0))
        assert float(y.var((0, 2, 3)).mean()) == pytest.approx(block.variance, rel=0.1)


def test_d3_padding_is_symmetric():
    model, x = small(dtype=torch.float64), draw(1, 3, 8, 8)
    first = model.stem[0]
    kernel = scaled_ws(first.weight, first.gain)
    assert_near(first(x).detach(), F.conv2d(F.pad(x, (1, 1, 1, 1)), kernel, first.bias, 2).detach(), rel=1e-12)
    same = F.conv2d(F.pad(x, (0, 1, 0, 1)), kernel, first.bias, 2)  # "SAME": one side alone
    assert same.shape == first(x).shape and (same - first(x)).abs().max() > 0.1


def test_d4_the_activation_reads_x_over_beta_with_exact_gamma():
    block, x = NFNetBlock(8, 8, beta=2.0, group_width=2, dtype=torch.float64), draw(2, 8, 4, 4)
    seen = []
    block.branch.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    block(x)
    assert_near(seen[0], activation_gamma(ACT) * ACT(x / 2), rel=1e-12)
    assert (seen[0] - activation_gamma(ACT) * ACT(x) / 2).abs().max() > 0.1
    assert GELU.gamma == pytest.approx(1.7015043497085571, rel=1e-3) and GELU.gamma != pytest.approx(
        1.7015043497085571, rel=1e-4
    )


def test_d5_training_mode_draws_nothing_but_dropout():
    model, x = small(dtype=torch.float64), draw(2, 3, 16, 16)
    for block in model.blocks:
        nn.init.ones_(block.skip_gain)
    assert torch.equal(model.train()(x), model.eval()(x))
    model.dropout.p = 0.5
    assert not torch.equal(model.train()(x), model.train()(x)) and torch.equal(model.eval()(x), model(x))


@pytest.mark.parametrize("size, channels", [(16, 3), (17, 3), (31, 1)])
def test_any_size_and_gradients_for_all(size, channels):
    model = small(channels=channels)
    for block in model.blocks:
        nn.init.ones_(block.skip_gain)
    y = model(torch.randn(2, channels, size, size + 3))
    y.square().sum().backward()
    assert y.shape == (2, 5) and all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_gradcheck():
    block = scramble(NFNetBlock(2, 4, 2, beta=1.1, group_width=1, dtype=torch.float64))
    torch.autograd.gradcheck(block, draw(1, 2, 3, 3).requires_grad_())


def test_copies_compile_and_autocast():
    one = {"depths": (1,), "widths": (16,)}
    model, twin, x = scramble(small(**one)).eval(), small(**one), torch.randn(2, 3, 16, 16)
    twin.load_state_dict(copy.deepcopy(model).state_dict())
    y = model(x)
    assert torch.equal(twin.eval()(x), y) and torch.equal(copy.deepcopy(model)(x), y)
    torch.compiler.reset()
    torch.testing.assert_close(torch.compile(model, backend="aot_eager", fullgraph=True)(x), y)
    with torch.autocast("cpu", torch.bfloat16):
        assert model(x).dtype == torch.bfloat16


def test_wrong_arguments():
    with pytest.raises(ValueError, match="write one of F0, F1"):
        nfnet("f0")
    with pytest.raises(ValueError, match="group_width=128"):
        NFNetBlock(16, 64)
