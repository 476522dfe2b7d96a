import copy
import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from torch import nn
from torch.nn import functional as F

from repro.models.gpt import GPT
from repro.models.vit import vit
from repro.papers.layernorm import LayerNorm
from repro.papers.rmsnorm import RMSNorm
from repro.papers.scalenorm import FixNormEmbedding, ScaleNorm, small_init
from repro.testing import (
    assert_near,
    check_float32,
    check_norm_contract,
    draw,
    hard_inputs,
    mutation,
    norm_inputs,
    quiet_import,
    scramble,
)

N = 6


# --- ScaleNorm -------------------------------------------------------------------------------------------------------


def oracle(x, g, eps, upstream):
    """Eq. 5 with the clamp, in Python floats, one case at a time: y and the gradients of sum(upstream * y)."""
    y, dx, dg = [], [], 0.0
    for row, up in zip(x.flatten(0, -2).tolist(), upstream.flatten(0, -2).tolist(), strict=True):
        length = math.sqrt(math.fsum(v * v for v in row))
        below = max(length, eps)
        y.append([g * v / below for v in row])
        along = math.fsum(u * v / below for u, v in zip(up, row, strict=True))
        dg += along
        # the length counts only where it is not clamped
        dx.append(
            [g * (u - (along * v / below if length > eps else 0.0)) / below for u, v in zip(up, row, strict=True)]
        )
    y, dx, dg = (torch.tensor(t, dtype=torch.float64) for t in (y, dx, dg))
    return {"y": y.view(x.shape), "dx": dx.view(x.shape), "dg": dg}


def check(norm):
    """`norm(x, g, eps)` and its gradients agree with the oracle on every hard input."""
    for name, x in hard_inputs(3, 4, N).items():
        for g in (math.sqrt(N), 0.3, -2.0):
            leaves, upstream = (
                [x.clone().requires_grad_(), torch.tensor(g, dtype=torch.float64, requires_grad=True)],
                draw(*x.shape, seed=3),
            )
            got = norm(*leaves, 1e-5)
            grads = torch.autograd.grad(got, leaves, upstream)
            want = oracle(x, g, 1e-5, upstream)
            rounding = 1e-15 * float(abs(g) * upstream.abs().max() / x.norm(dim=-1).clamp_min(1e-5).min())
            for key, value in zip(("y", "dx", "dg"), (got.detach(), *grads), strict=True):
                assert_near(value, want[key], f"{name}: {key}", floor=10 * rounding if key == "dx" else 1e-25)


def ours(x, g, eps):
    return torch.func.functional_call(ScaleNorm(N, eps, dtype=torch.float64), {"scale": g}, (x,))


def broken(fault):
    def norm(x, g, eps):
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        match fault:
            case "l1 norm":
                length = x.abs().sum(-1, keepdim=True)
            case "largest element":
                length = x.abs().amax(-1, keepdim=True)
            case "root mean square":
                length = length / N**0.5
            case "centred":
                length = torch.linalg.vector_norm(x - x.mean(-1, keepdim=True), dim=-1, keepdim=True)
            case "over the batch":
                length = torch.linalg.vector_norm(x, dim=0, keepdim=True)
            case "detached norm":
                length = length.detach()
            case "half-precision norm":
                length = length.bfloat16().double()
            case "eps added":
                return g * x / (length + eps)
            case "eps under the root":
                return g * x / (length.square() + eps).sqrt()
            case "eps clamps the square":
                return g * x / length.square().clamp_min(eps).sqrt()
            case "no clamp":
                return g * x / length.clamp_min(1e-300)
            case "g squared":
                g = g * g
            case "g not learned":
                g = g.detach() + 0 * g
            case "1 + g":
                g = 1 + g
            case "times the norm":
                return g * x * length.clamp_min(eps)
        return g * x / length.clamp_min(eps)

    return norm


test_oracle, test_mutant_dies = mutation(check, broken, ours)


@pytest.mark.parametrize("scale", [5, (3, 5), [5], 5**0.5])
def test_contract(scale):
    check_norm_contract(partial(ScaleNorm, scale), None, 1 + draw(2, 3, 5))


@pytest.mark.parametrize("name", list(hard_inputs(1, 1)))
def test_peers(name):
    """x-transformers, whose g is ours over sqrt(d), torch's RMSNorm and F.normalize: outputs and gradients, in both
    modes.
    """
    x, upstream = hard_inputs(3, N)[name], draw(3, N, seed=1)
    theirs = quiet_import("x_transformers.x_transformers").ScaleNorm(N).double()
    peers = {"normalize": lambda x: math.sqrt(N) * F.normalize(x, dim=-1, eps=1e-5)}
    if name not in ("zero", "tiny", "minute"):  # shorter than our clamp
        peers |= {
            "x-transformers": theirs,
            "RMSNorm": nn.RMSNorm(N, eps=0.0, dtype=torch.float64),
            "its paper's": RMSNorm(N, eps=0.0),
        }
    for training in (True, False):
        for peer, norm in peers.items():
            results = []
            for each in (ScaleNorm(N, dtype=torch.float64).train(training), norm):
                leaf = x.clone().requires_grad_()
                y = each(leaf)
                results.append((y.detach(), torch.autograd.grad(y, leaf, upstream)[0]))
            floor = 1e-13 * float(1 / x.norm(dim=-1).clamp_min(1e-5).min())
            for got, want in zip(*results, strict=True):
                assert_near(got, want, f"{name}: {peer}", rel=1e-9, floor=floor)
    assert sum(p.numel() for p in ScaleNorm(N).parameters()) == 1


def test_gradient_of_g_against_x_transformers():
    theirs, mine, x = (
        quiet_import("x_transformers.x_transformers").ScaleNorm(N).double(),
        ScaleNorm(N, dtype=torch.float64),
        1 + draw(4, N),
    )
    slopes = [
        torch.autograd.grad((norm(x) * draw(4, N, seed=2)).sum(), list(norm.parameters()))[0] for norm in (mine, theirs)
    ]
    assert_near(slopes[0].squeeze() * math.sqrt(N), slopes[1].squeeze(), rel=1e-12)


def test_d1_width_or_first_g():
    x = draw(3, 16)
    wide, as_theirs = ScaleNorm(16, dtype=torch.float64), ScaleNorm(scale=16**0.5, dtype=torch.float64)
    assert wide.scale.item() == as_theirs.scale.item() == 4.0 and wide.scale.shape == (1,)
    assert torch.equal(wide(x), as_theirs(x)) and wide.eps == 1e-5
    assert ScaleNorm(22.5).scale.item() == 22.5 and ScaleNorm(22.5)(x[:, :5]).shape == (3, 5)
    assert ScaleNorm((3, 16)).scale.item() == pytest.approx(48**0.5)
    with pytest.raises(ValueError, match=r"normalized_shape \(16,\)"):
        wide(x[:, :5])
    as_theirs.load_state_dict({"scale": torch.tensor(3.0)})  # a checkpoint of the authors
    assert as_theirs(x).norm(dim=-1).allclose(torch.tensor(3.0).double())


@pytest.mark.parametrize("scale", [0, -4, (3, 0), (), [], 0.0, -1.0, math.nan, math.inf])
def test_useless_scale(scale):
    with pytest.raises(ValueError, match=r"write the width, such as 512, or the first g as a float"):
        ScaleNorm(scale)


def test_d2_the_norm_is_clamped():
    x = torch.tensor([[3e-6, 4e-6], [3.0, 4.0]], dtype=torch.float64)
    for eps, first in ((1e-5, [0.3, 0.4]), (1e-9, [0.6, 0.8])):
        want = torch.tensor([first, [0.6, 0.8]], dtype=torch.float64)
        assert_near(ScaleNorm(1.0, eps, dtype=torch.float64)(x).detach(), want, rel=1e-12)
    zero = FixNormEmbedding(2, 3, padding_idx=0)
    assert torch.equal(zero(torch.tensor([0])), torch.zeros(1, 3)) and zero.logits(torch.ones(3))[0] == 0


def test_float32_convention():
    x = torch.tensor([[100.0, 100.5, 101.0, 101.5]])
    check_float32(ScaleNorm(4), x)
    for dtype in (torch.bfloat16, torch.float16):
        table = FixNormEmbedding(5, 4, dtype=dtype)
        assert table(torch.tensor([1])).dtype == table.logits(x.to(dtype)).dtype == dtype
        assert_near(table(torch.arange(5)).float().norm(dim=-1).detach(), torch.full((5,), 2.0), rel=0.01)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_gradient_at_zero_is_finite(dtype):
    x = torch.zeros(2, 4, dtype=dtype, requires_grad=True)
    assert_near(torch.autograd.grad(ScaleNorm(4)(x).sum(), x)[0], torch.full((2, 4), 2e5), rel=0.01)  # g / eps


def test_overflow_of_squares_gives_zero():
    assert torch.equal(ScaleNorm(8)(1e20 * draw(2, 8, dtype=torch.float32)), torch.zeros(2, 8))


@settings(deadline=None, max_examples=30, derandomize=True)
@given(norm_inputs())
def test_any_input(x):
    y = ScaleNorm(2.0)(x).detach()
    assert y.shape == x.shape and y.dtype == x.dtype and torch.isfinite(y).all()
    assert (y.double().norm(dim=-1) <= 2 + 8 * torch.finfo(x.dtype).eps).all() and (y * x.sign() >= 0).all()


def test_held_g():
    norm = ScaleNorm(4).requires_grad_(False)  # Table 7
    assert not list(p for p in norm.parameters() if p.requires_grad) and norm(torch.ones(4)).norm() == 2


# --- FixNorm ---------------------------------------------------------------------------------------------------------

TOKENS = torch.tensor([[3, 0, 3], [1, 2, 4]])


def table(**options):
    made = FixNormEmbedding(5, 4, dtype=torch.float64, **options)
    made.weight.data = draw(5, 4, seed=7) * torch.tensor([1e-3, 1.0, 1e3, 0.5, 2.0]).double()[:, None]
    return made


def check_fixnorm(embed, logits):
    """embed(w, tokens) and logits(w, x) against Eq. 6 in Python floats."""
    w, x = table().weight.detach(), 1 + draw(2, 4)
    rows = [[v / math.sqrt(math.fsum(u * u for u in row)) for v in row] for row in w.tolist()]
    want = torch.tensor([[[2 * v for v in rows[t]] for t in line] for line in TOKENS.tolist()], dtype=torch.float64)
    assert_near(embed(w, TOKENS), want, "input", rel=1e-12)
    want = torch.tensor(
        [[math.fsum(a * b for a, b in zip(row, h, strict=True)) for row in rows] for h in x.tolist()],
        dtype=torch.float64,
    )
    assert_near(logits(w, x), want, "softmax", rel=1e-12)


def with_weight(method):
    def run(w, x):
        made = table()
        made.weight.data = w
        return getattr(made, method)(x).detach()

    return run


def unit(w, axis=-1):
    return F.normalize(w, dim=axis)


def test_fixnorm_oracle():
    check_fixnorm(with_weight("forward"), with_weight("logits"))


FIXNORM_MUTANTS = {
    "softmax of free length": (lambda w, t: 2 * unit(w)[t], lambda w, x: x @ w.T),
    "no sqrt(d) at the input": (lambda w, t: unit(w)[t], lambda w, x: x @ unit(w).T),
    "sqrt(d) in the softmax": (lambda w, t: 2 * unit(w)[t], lambda w, x: x @ (2 * unit(w)).T),
    "input of free length": (lambda w, t: 2 * w[t], lambda w, x: x @ unit(w).T),
    "features for words": (lambda w, t: 2 * unit(w, 0)[t], lambda w, x: x @ unit(w, 0).T),
    "hidden vector normalised too": (lambda w, t: 2 * unit(w)[t], lambda w, x: unit(x) @ unit(w).T),
}


@pytest.mark.parametrize("mutant", FIXNORM_MUTANTS)
def test_fixnorm_mutant_dies(mutant):
    with pytest.raises(AssertionError):
        check_fixnorm(*FIXNORM_MUTANTS[mutant])


def test_d3_rows_have_the_gradients_of_the_whole_table():
    ours, upstream = table(padding_idx=2), draw(2, 3, 4, seed=1)
    got = torch.autograd.grad(ours(TOKENS), ours.weight, upstream)[0]
    leaf = ours.weight.detach().clone().requires_grad_()
    want = torch.autograd.grad(F.embedding(TOKENS, 2 * F.normalize(leaf, dim=-1), padding_idx=2), leaf, upstream)[0]
    assert_near(got, want, rel=1e-12)
    assert not got[2].any() and got[3].any()


def test_cosine_logits():
    """Eq. 6: behind a ScaleNorm the logits are g cos(w, x)."""
    embedding, norm, x = table(), ScaleNorm(3.5, dtype=torch.float64), 5 + draw(7, 4)
    got = embedding.logits(norm(x)).detach()
    assert_near(got, 3.5 * F.cosine_similarity(x[:, None], embedding.weight.detach(), dim=-1), rel=1e-12)
    assert (got.abs() <= 3.5).all()


def test_fixnorm_as_a_module():
    torch.manual_seed(0)
    fresh = FixNormEmbedding(100, 4, padding_idx=3)
    assert fresh.weight.abs().max() <= 0.01 and fresh.weight.std() > 0.005 and not fresh.weight[3].any()
    plain = nn.Embedding(5, 4, dtype=torch.float64)
    plain.load_state_dict(table().state_dict())
    again = FixNormEmbedding(5, 4, dtype=torch.float64)
    again.load_state_dict(copy.deepcopy(plain).state_dict())
    assert torch.equal(again(TOKENS), table()(TOKENS))
    compiled = copy.deepcopy(again)
    compiled.compile(backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(TOKENS), again(TOKENS))
    assert FixNormEmbedding(5, 4, device="meta").weight.is_meta
    weight = again.weight.detach().clone()
    for f in (
        lambda w: torch.func.functional_call(again, {"weight": w}, (TOKENS,)),
        lambda w: F.linear(draw(2, 4), again.unit(w)),
    ):
        torch.autograd.gradcheck(f, weight[1:].repeat(2, 1)[:5].requires_grad_())
    with pytest.raises(IndexError):
        again(torch.tensor([5]))


# --- SmallInit -------------------------------------------------------------------------------------------------------


def models():
    source = torch.Generator().manual_seed(0)
    yield GPT(50, 8, 64, 2, heads=4, bias=True, gated=True, generator=source), 64
    yield GPT(50, 8, 64, 2, heads=4, bias=True, generator=source), 64
    yield vit(8, 4, 64, 2, heads=4, classes=5, generator=source), 64


def test_d4_small_init():
    for model, d in models():
        before = {name: p.detach().clone() for name, p in scramble(model).named_parameters()}
        again = copy.deepcopy(model)
        for each in (model, again):
            small_init(each, torch.Generator().manual_seed(1))
        for name, p in model.named_parameters():
            assert torch.equal(p, again.get_parameter(name))
            if name.startswith("blocks.") and "norm" not in name:
                if p.ndim == 2:
                    assert p.std().item() == pytest.approx(math.sqrt(2 / (d + 4 * d)), rel=0.05), name
                    assert abs(p.mean().item()) < 0.01
                else:
                    assert not p.any(), name
            else:
                assert p.equal(before[name]), f"{name} was changed"


def test_d5_no_bias_in_the_softmax():
    table = FixNormEmbedding(7, 4, dtype=torch.float64)
    assert list(table.state_dict()) == ["weight"] and (table.logits(torch.zeros(2, 4, dtype=torch.float64)) == 0).all()


def test_a_g_without_axes_loads():
    norm = ScaleNorm(4)
    norm.load_state_dict({"scale": torch.tensor(3.0)})  # the authors', and ours of before
    assert norm.scale.shape == (1,) and norm.scale.item() == 3


def test_gradient_at_zero_in_float16():
    x = torch.zeros(1, 8, dtype=torch.float16, requires_grad=True)  # g / eps is beyond 65504
    assert_near(torch.autograd.grad(ScaleNorm(8)(x).sum(), x)[0], torch.full((1, 8), 8**0.5), rel=1e-3)


@pytest.mark.parametrize("model", [nn.Linear(4, 4), nn.ModuleDict({"blocks": nn.ModuleList([nn.Conv2d(3, 4, 1)])})])
def test_small_init_needs_blocks(model):
    with pytest.raises(ValueError, match="no linear layers in blocks: write a GPT or a ViT"):
        small_init(model, torch.Generator())


@pytest.mark.parametrize("std", ["xavier", "0.02", "per fan-in"])
def test_small_init_mutant_dies(std):
    model = next(models())[0]
    for layer in model.blocks.modules():
        if isinstance(layer, nn.Linear):
            n_out, n_in = layer.weight.shape
            nn.init.normal_(
                layer.weight, std={"xavier": math.sqrt(2 / (n_in + n_out)), "0.02": 0.02, "per fan-in": n_in**-0.5}[std]
            )
    with pytest.raises(AssertionError):
        for p in model.blocks.parameters():
            assert p.ndim < 2 or p.std().item() == pytest.approx(math.sqrt(2 / 320), rel=0.05)


def test_in_a_model():
    counts = {}
    for norm in (ScaleNorm, LayerNorm):
        model = GPT(50, 8, 16, 3, heads=2, norm=norm, init=small_init, generator=torch.Generator().manual_seed(0))
        counts[norm] = sum(p.numel() for name, p in model.named_parameters() if "norm" in name)
        model(torch.zeros(1, 8, dtype=torch.long)).sum().backward()
        assert all(p.grad is not None for p in model.parameters())
    assert counts == {
        ScaleNorm: 2 * 3 + 1,
        LayerNorm: (2 * 3 + 1) * 2 * 16,
    }  # a norm before each sub-layer, and one at the end
