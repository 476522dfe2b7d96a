import copy
import math

import pytest
import torch
from torch import nn

from repro.experiments.byte_decoder import ARMS, ByteDecoder, build
from repro.models.gpt import FeedForward
from repro.papers.glu_variants import (
    FFNGEGLU,
    FFNGLU,
    GEGLU,
    FFNBilinear,
    FFNReGLU,
    FFNSwiGLU,
    ReGLU,
    SwiGLU,
    geglu,
    matched_width,
    reglu,
    swiglu,
)
from repro.testing import assert_near, check_signature, draw, mutation, quiet_import

D, H = 3, 5
GATES = {  # in Python floats
    FFNGLU: lambda a: 1 / (1 + math.exp(-a)),
    FFNBilinear: lambda a: a,
    FFNReGLU: lambda a: max(a, 0.0),
    FFNGEGLU: lambda a: a * 0.5 * math.erfc(-a / math.sqrt(2)),
    FFNSwiGLU: lambda a: a / (1 + math.exp(-a)),
}
SIZES = {"usual": 1.0, "minute": 1e-8, "large": 30.0}


def weights():
    return draw(D, H, seed=1), draw(D, H, seed=2), draw(H, D, seed=3)


def layer(kind, w, v, w2):
    made = kind(D, H, dtype=torch.float64)
    made.load_state_dict({"gate.weight": w.T, "up.weight": v.T, "down.weight": w2.T})
    return made


def oracle(kind, x, w, v, w2):
    """Eq. 6 in Python floats, token by token."""

    def times(row, matrix):
        return [math.fsum(a * b for a, b in zip(row, column, strict=True)) for column in zip(*matrix, strict=True)]

    rows = []
    for row in x.tolist():
        hidden = [GATES[kind](a) * b for a, b in zip(times(row, w.tolist()), times(row, v.tolist()), strict=True)]
        rows.append(times(hidden, w2.tolist()))
    return torch.tensor(rows, dtype=torch.float64)


def check(run):
    """`run(kind, x, w, v, w2)` of every kind, on inputs of several sizes, positive and negative."""
    for kind in GATES:
        for name, size in SIZES.items():
            x = size * torch.cat([draw(4, D), 1 + draw(4, D, seed=5)])
            w, v, w2 = weights()
            assert_near(
                run(kind, x, w, v, w2).detach(), oracle(kind, x, w, v, w2), f"{kind.__name__}, {name}", rel=1e-9
            )


def ours(kind, x, w, v, w2):
    return layer(kind, w, v, w2)(x)


def broken(fault):
    gates = {
        FFNGLU: torch.sigmoid,
        FFNBilinear: lambda a: a,
        FFNReGLU: torch.relu,
        FFNGEGLU: nn.functional.gelu,
        FFNSwiGLU: nn.functional.silu,
    }

    def run(kind, x, w, v, w2):
        a, b, g = x @ w, x @ v, gates[kind]
        if fault == "gate on the other half":
            return (a * g(b)) @ w2
        if fault == "both through the gate":
            return (g(a) * g(b)) @ w2
        if fault == "sum in place of product":
            return (g(a) + b) @ w2
        if fault == "gates itself":
            return (g(a) * a) @ w2
        if fault == "gelu by tanh" and kind is FFNGEGLU:
            return (nn.functional.gelu(a, approximate="tanh") * b) @ w2
        if fault == "swish of 1.702" and kind is FFNSwiGLU:
            return (a * torch.sigmoid(1.702 * a) * b) @ w2
        if fault == "gate after the product":
            return g(a * b) @ w2
        if fault == "gate from the output":
            return (g(a) * b) @ w2 * torch.sigmoid(x)
        return (g(a) * b) @ w2

    return run


test_oracle, test_mutant_dies = mutation(check, broken, ours)


def test_timm_and_x_transformers():
    w, v, w2 = weights()
    x = 1 + draw(4, D)
    timm = quiet_import("timm.layers").SwiGLU(D, H, bias=False).double()
    timm.load_state_dict({"fc1_g.weight": w.T, "fc1_x.weight": v.T, "fc2.weight": w2.T})
    assert_near(layer(FFNSwiGLU, w, v, w2)(x).detach(), timm(x).detach(), rel=1e-12)
    module = quiet_import("x_transformers.x_transformers")
    for kind, act in ((FFNSwiGLU, nn.SiLU()), (FFNGEGLU, nn.GELU()), (FFNGLU, nn.Sigmoid())):
        theirs = module.GLU(D, H, act).double()
        theirs.proj.weight.data, theirs.proj.bias.data = torch.cat([v.T, w.T]), torch.zeros(2 * H, dtype=torch.float64)
        assert_near(layer(kind, w, v, w2)(x).detach(), (theirs(x) @ w2).detach(), rel=1e-12)


def test_torch_glu_gates_with_its_second_half():
    w, v, w2 = weights()
    x = draw(4, D)
    want = nn.functional.glu(torch.cat([x @ v, x @ w], -1)) @ w2
    assert_near(layer(FFNGLU, w, v, w2)(x).detach(), want, rel=1e-12)


def test_state_dict_of_the_decoder():
    for kind, act in ((FFNSwiGLU, nn.SiLU), (FFNGEGLU, nn.GELU), (FFNReGLU, nn.ReLU)):
        theirs = FeedForward(
            D, H, generator=torch.Generator().manual_seed(0), act=act, gated=True, bias=False, std=1.0
        ).double()
        ours = kind(D, H, dtype=torch.float64)
        ours.load_state_dict(theirs.state_dict())
        x = draw(2, 4, D)
        assert torch.equal(ours(x), theirs(x))


def test_functions():
    a, b = draw(4, 6), draw(4, 6, seed=1)
    for function, gate in ((reglu, torch.relu), (geglu, nn.functional.gelu), (swiglu, nn.functional.silu)):
        assert torch.equal(function(a, b), gate(a) * b)
        check_signature(function)


def test_d1_exact_gelu():
    a = torch.linspace(-4, 4, 33, dtype=torch.float64)
    want = torch.tensor([GATES[FFNGEGLU](v) for v in a.tolist()], dtype=torch.float64)
    assert_near(geglu(a, torch.ones_like(a)), want, rel=1e-12)


def test_d2_weights_start_as_those_of_linear():
    torch.manual_seed(0)
    made = FFNSwiGLU(64, 96)
    for one in (made.gate, made.up, made.down):
        assert one.bias is None and one.weight.abs().max() <= one.in_features**-0.5
        assert one.weight.std().item() == pytest.approx((3 * one.in_features) ** -0.5, rel=0.05)
    torch.manual_seed(1)
    made.reset_parameters()
    torch.manual_seed(1)
    assert torch.equal(made.gate.weight, nn.Linear(64, 96, bias=False).weight)


def test_d3_matched_width():
    assert matched_width(3072) == 2048 and matched_width(256) == 170 and FFNSwiGLU(64).gate.out_features == 170
    for d in range(2, 40):
        assert 3 * d * matched_width(4 * d) <= 2 * d * 4 * d < 3 * d * (matched_width(4 * d) + 1)
    assert sum(p.numel() for p in FFNSwiGLU(768, device="meta").parameters()) == 4_718_592
    with pytest.raises(ValueError, match="write 2 or more"):
        matched_width(1)


@pytest.mark.parametrize("kind", GATES)
def test_as_a_module(kind):
    torch.manual_seed(0)
    made, x = kind(D, H, dtype=torch.float64), draw(2, 4, D)
    assert list(made.state_dict()) == ["gate.weight", "up.weight", "down.weight"]
    assert kind(D, H, device="meta").up.weight.is_meta and len(kind(D, H, bias=True).state_dict()) == 6
    if kind is FFNSwiGLU:
        compiled = copy.deepcopy(made)
        torch.compiler.reset()
        compiled.compile(backend="aot_eager", fullgraph=True)
        assert_near(compiled(x).detach(), made(x).detach(), rel=1e-12)
    assert torch.equal(copy.deepcopy(made).eval()(x), made(x))
    with torch.autocast("cpu", torch.bfloat16):
        assert copy.deepcopy(made).float()(x.float()).isfinite().all()
    torch.autograd.gradcheck(made, x.requires_grad_())


def test_arms_of_the_decoder():
    """Only the feed-forward layers differ, and no gated one has more parameters."""
    config = ByteDecoder(width=16, depth=2, heads=2, context=8, batch=2, steps=1, lr=0.1, windows=2, eval_every=1)
    models = {
        arm: build(ARMS[arm], 0, config, 256, torch.device("cpu"))
        for arm in ("base", "swiglu", "bilinear", "swiglu_added", "swiglu_open")
    }
    count = {arm: sum(p.numel() for p in model.parameters()) for arm, model in models.items()}
    assert len({count[arm] for arm in count if arm != "base"}) == 1 and 0.98 < count["swiglu"] / count["base"] <= 1
    for name, p in models["base"].named_parameters():
        if "feed_forward.sublayer" not in name:
            assert all(torch.equal(p, model.get_parameter(name)) for model in models.values()), name
    up = models["swiglu"].blocks[1].feed_forward.sublayer.up.weight
    assert up.std().item() == pytest.approx(0.02 * math.sqrt(768 / 16), rel=0.15)
    layer = models["swiglu_open"].blocks[0].feed_forward.sublayer.double()
    x, y = draw(3, 16), draw(3, 16, seed=1)
    assert_near(layer(x + y).detach(), (layer(x) + layer(y)).detach(), rel=1e-9)  # linear


HALVES = {ReGLU: (reglu, nn.ReLU), GEGLU: (geglu, nn.GELU), SwiGLU: (swiglu, nn.SiLU)}


@pytest.mark.parametrize("kind", HALVES)
def test_gates_without_weights(kind):
    """timm's GluMlp with both of its layers left out; another axis; a traced graph; an axis that cannot be halved."""
    function, act = HALVES[kind]
    x = draw(4, 2, 6).float()
    theirs = quiet_import("timm.layers").GluMlp(6, 6, 3, act_layer=act, gate_last=False)
    theirs.fc1, theirs.fc2 = nn.Identity(), nn.Identity()
    assert torch.equal(kind()(x), theirs(x)) and torch.equal(kind()(x), function(x[..., :3], x[..., 3:]))
    assert torch.equal(kind(1)(x), function(x[:, :1], x[:, 1:]))
    assert torch.equal(torch.fx.symbolic_trace(nn.Sequential(kind()))(x), kind()(x))
    with pytest.raises(ValueError, match=r"\(4, 2, 5\) has no two halves along axis -1"):
        kind()(x[..., :5])


@pytest.mark.parametrize("kind", HALVES)
def test_gates_at_extremes_of_float32(kind):
    """Values and gradients against float64: huge, tiny, subnormal and zero gates; no product of them is NaN."""
    a = torch.tensor([-1e4, -88.0, -1.0, -1e-20, -1e-40, 0.0, 1e-40, 1e-20, 1.0, 88.0, 1e4])
    wide, narrow = (torch.cat([a, a.flip(0)]).to(dtype).requires_grad_() for dtype in (torch.float64, torch.float32))
    outputs = [kind()(x) for x in (wide, narrow)]
    gradients = [torch.autograd.grad(y.sum(), x)[0] for y, x in zip(outputs, (wide, narrow), strict=True)]
    for want, got in (outputs, gradients):
        assert torch.allclose(got.double(), want, rtol=1e-5, atol=1e-30)
