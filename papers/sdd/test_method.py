import copy
import math
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from repro.models.gpt import GPT, Attention, FeedForward
from repro.models.mlp import ResidualMLP
from repro.models.slots import Post, Pre, scaled_gaussian
from repro.models.vit import vit
from repro.papers.rmsnorm import RMSNorm
from repro.papers.sdd import PostSDD, PreSDD, SDDLinear, convert_to_sdd
from repro.testing import (
    assert_near,
    assert_same_outcome,
    check_gradients,
    draw,
    hard_inputs,
    mutation,
    outcome,
    scramble,
)

N, M, EPS = 5, 6, 1e-6
TOKENS = torch.randint(11, (2, 6), generator=torch.Generator().manual_seed(1))


def oracle(x, weight, alpha, upstream, groups):
    """Eq. 1 in Python floats, one case at a time: y, and the gradients of sum(upstream * y) by hand (Eqs. 3, 8 and
    12).
    """
    rows, gains, n = weight.tolist(), alpha.tolist(), M // groups
    y, dx, dweight, dalpha = [], [], [[[] for _ in range(N)] for _ in range(M)], [[] for _ in range(M)]
    for case, up in zip(x.flatten(0, -2).tolist(), upstream.flatten(0, -2).tolist(), strict=True):
        z = [math.fsum(w * v for w, v in zip(row, case, strict=True)) for row in rows]
        size = [math.sqrt(math.fsum(v * v for v in z[i - i % n : i - i % n + n]) / n + EPS) for i in range(M)]
        y.append([gains[i] * z[i] / size[i] for i in range(M)])
        pull = [math.fsum(gains[j] * up[j] * z[j] for j in range(i - i % n, i - i % n + n)) / n for i in range(M)]
        dz = [gains[i] * up[i] / size[i] - z[i] * pull[i] / size[i] ** 3 for i in range(M)]
        dx.append([math.fsum(dz[i] * rows[i][j] for i in range(M)) for j in range(N)])
        for i in range(M):
            dalpha[i].append(up[i] * z[i] / size[i])
            for j in range(N):
                dweight[i][j].append(dz[i] * case[j])
    found = {
        "y": torch.tensor(y, dtype=torch.float64).view(*x.shape[:-1], M),
        "d x": torch.tensor(dx, dtype=torch.float64).view(x.shape),
    }
    found["d weight"] = torch.tensor([[math.fsum(v) for v in row] for row in dweight], dtype=torch.float64)
    return found | {"d alpha": torch.tensor([math.fsum(v) for v in dalpha], dtype=torch.float64)}


def check(layer, groups):
    """`layer(x, weight, alpha, groups)` and its gradients agree with the oracle on every hard input."""
    for name, x in hard_inputs(2, 3, N).items():
        weight, alpha, upstream = 0.3 + draw(M, N, seed=1), draw(M, seed=2), draw(2, 3, M, seed=3)
        want = oracle(x, weight, alpha, upstream, groups)
        leaves = [t.clone().requires_grad_() for t in (x, weight, alpha)]
        got = layer(*leaves, groups)
        grads = torch.autograd.grad(got, leaves, upstream)
        for key, value in zip(("y", "d x", "d weight", "d alpha"), (got.detach(), *grads), strict=True):
            assert_near(value, want[key], f"{name}: {key}")


def ours(x, weight, alpha, groups):
    layer = SDDLinear(N, M, groups=groups, dtype=torch.float64)
    return torch.func.functional_call(layer, {"weight": weight, "alpha": alpha}, (x,))


def broken(fault):
    """The layer written out again, with one fault."""

    def layer(x, weight, alpha, groups):
        groups = 1 if fault == "groups ignored" else groups
        if fault == "input normalised":
            return alpha * F.linear(F.rms_norm(x, (N,), None, EPS), weight)
        if fault == "rows of V normalised":
            return alpha * F.linear(x, F.normalize(weight, dim=1))
        if fault == "V normalised as a whole":
            return alpha * F.linear(x, weight / weight.norm())
        z = F.linear(x, weight)
        if fault == "alpha before the norm":
            z = z * alpha
        if fault == "no norm":
            return alpha * z
        cut = z.unflatten(-1, (groups, -1))
        if fault == "groups interleaved":
            cut = z.unflatten(-1, (-1, groups)).transpose(-1, -2)
        mean = cut.square().mean(-1, keepdim=True)
        match fault:
            case "centred":
                cut = cut - cut.mean(-1, keepdim=True)
                mean = cut.square().mean(-1, keepdim=True)
            case "sum for mean":  # the Euclidean norm
                mean = cut.square().sum(-1, keepdim=True)
            case "over the batch":
                mean = cut.square().mean((0, -1), keepdim=True)
            case "mean absolute value":
                mean = cut.abs().mean(-1, keepdim=True).square()
            case "detached norm":
                mean = mean.detach()
            case "half-precision norm":
                mean = mean.bfloat16().double()
        size = (mean + EPS).sqrt()
        if fault == "no eps":
            size = (mean + 1e-300).sqrt()
        if fault == "eps outside the root":
            size = (mean + 1e-300).sqrt() + EPS
        y = cut / size
        y = (y.transpose(-1, -2) if fault == "groups interleaved" else y).flatten(-2)
        match fault:
            case "alpha before the norm":
                return y
            case "one alpha":
                return alpha.mean() * y
            case "alpha + 1":
                return (1 + alpha) * y
            case "no alpha":
                return y + 0 * alpha
            case "alpha is not trained":
                return alpha.detach() * y + 0 * alpha
        return alpha * y

    return layer


@pytest.mark.parametrize("groups", [2, 3])
@pytest.mark.parametrize("layer", [ours, broken(None)], ids=["ours", "unbroken"])
def test_oracle_with_groups(layer, groups):
    check(layer, groups)


test_oracle, test_mutant_dies = mutation(
    partial(check, groups=1), broken, ours, but=["groups ignored", "groups interleaved"]
)


@pytest.mark.parametrize("fault", ["groups ignored", "groups interleaved"])
def test_mutant_with_groups_dies(fault):
    with pytest.raises(AssertionError):
        check(broken(fault), 2)


class Theirs(nn.Module):
    """What the README of the authors' repository writes with torch's modules."""

    def __init__(self, layer):
        super().__init__()
        self.linear = nn.Linear(layer.in_features, layer.out_features, bias=False, dtype=layer.weight.dtype)
        self.norm = nn.RMSNorm(layer.out_features, eps=1e-6, dtype=layer.weight.dtype)
        self.linear.weight.data, self.norm.weight.data = layer.weight.data.clone(), layer.alpha.data.clone()

    def forward(self, x):
        return self.norm(self.linear(x))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", list(hard_inputs(1)))
def test_torch_agrees(name, training):
    ours = SDDLinear(8, 12, dtype=torch.float64)
    ours.weight.data, ours.alpha.data, x = draw(12, 8, seed=1), draw(12, seed=2), hard_inputs(3, 8)[name]
    got, want = outcome(ours.train(training), x), outcome(Theirs(ours).train(training), x)
    for key, other in (("y", "y"), ("d x", "d x"), ("d weight", "d linear.weight"), ("d alpha", "d norm.weight")):
        assert_near(got[key], want[other], key, rel=1e-9, floor=1e-12 * float(x.abs().max() + 1))


def test_scale_of_v():
    """f(c V) = f(V), dL/dV goes as 1 / c and has no component along V or, row space by row space, along
    z (Sec. 3.2).
    """
    layer, x, up = SDDLinear(7, 6, eps=0.0, dtype=torch.float64), draw(4, 7), draw(4, 6, seed=1)
    layer.alpha.data = draw(6, seed=2)
    first = outcome(layer, x)
    for c in (1e-3, 1e3):
        other = copy.deepcopy(layer)
        other.weight.data *= c
        found = outcome(other, x)
        assert_near(found["y"], first["y"], rel=1e-13)
        assert_near(c * found["d weight"], first["d weight"], rel=1e-12)
        assert_near(found["d x"], first["d x"], rel=1e-12)
    assert abs((layer.weight * first["d weight"]).sum()) < 1e-13 * layer.weight.norm() * first["d weight"].norm()
    assert_near(layer(5 * x).detach(), layer(x).detach(), rel=1e-13)
    z = F.linear(x, layer.weight).detach().requires_grad_()
    (slope,) = torch.autograd.grad(layer.alpha * F.rms_norm(z, (6,), None, 0.0), z, up)
    assert_near((z * slope).sum(-1).detach(), torch.zeros(4), floor=1e-13)


@pytest.mark.parametrize("groups", [1, 2])
def test_gradcheck(groups):
    check_gradients(scramble(SDDLinear(3, 4, groups=groups, dtype=torch.float64)), draw(2, 3))


def test_factory_and_initial_values():
    layer = SDDLinear(400, 6, alpha_init=0.5, dtype=torch.float64)
    assert layer.alpha.tolist() == [0.5] * 6 and layer.bias is None and layer.weight.shape == (6, 400)
    assert 0.9 < layer.weight.std() * math.sqrt(2.5 * 6) < 1.1  # d is the smaller side, as of a `down` of 400 to 6
    assert {name: t.dtype for name, t in layer.state_dict().items()} == dict.fromkeys(
        ("weight", "alpha"), torch.float64
    )
    assert all(t.is_meta for t in SDDLinear(4, 6, device="meta").state_dict().values())
    scramble(layer).reset_parameters()
    assert layer.alpha.tolist() == [0.5] * 6 and layer.weight.abs().max() < 2
    assert "groups=1, alpha_init=0.5, eps=1e-06" in repr(layer)
    biased, x = SDDLinear(4, 6, True), draw(3, 4, dtype=torch.float32)  # where nn.Linear has its bias
    assert (biased.bias == 0).all() and list(biased.state_dict()) == ["weight", "bias", "alpha"]
    biased.bias.data += 2
    assert_near(biased(x).detach() - 2, SDDLinear.forward(biased, x).detach() - biased.bias.detach(), rel=1e-6)
    for groups in (0, 4):
        with pytest.raises(ValueError, match="write a divisor"):
            SDDLinear(4, 6, groups=groups)


def test_copies():
    layer, x = scramble(SDDLinear(5, 6, groups=3)), draw(2, 5, dtype=torch.float32)
    assert_same_outcome(copy.deepcopy(layer), layer, x, "deepcopy")
    other = SDDLinear(5, 6, groups=3)
    other.load_state_dict(layer.state_dict())
    assert_same_outcome(other, layer, x, "state dict")
    torch.compiler.reset()
    compiled = copy.deepcopy(layer)
    compiled.compile(backend="aot_eager", fullgraph=True)
    assert_same_outcome(compiled, layer, x, "torch.compile")
    assert layer(x[:0]).shape == (0, 6) and layer(draw(2, 3, 5).float()).shape == (2, 3, 6)


def test_an_init_slot_draws_v():
    """It is an nn.Linear to whoever looks for layers with weights, and keeps its alpha."""
    model = nn.Sequential(SDDLinear(100, 100, alpha_init=0.5))
    scaled_gaussian(3.0)(model, torch.Generator().manual_seed(0))
    assert 0.28 < model[0].weight.std() < 0.32 and model[0].alpha.tolist() == [0.5] * 100


# --- departures ------------------------------------------------------------------------------------------------------


def test_d1_epsilon_inside_the_root():
    x = torch.tensor([[3e-3, 4e-3]], dtype=torch.float64)
    layer = SDDLinear(2, 2, dtype=torch.float64)
    layer.weight.data = torch.eye(2, dtype=torch.float64)
    assert_near(layer(x).detach(), x / math.sqrt(12.5e-6 + 1e-6), rel=1e-12)
    assert (layer(0 * x) == 0).all()


def test_d2_a_fused_layer_is_three():
    fused, x = scramble(SDDLinear(5, 6, groups=3)), draw(4, 5, dtype=torch.float32)
    for part in range(3):
        own = SDDLinear(5, 2)
        own.weight.data, own.alpha.data = (
            fused.weight.data[2 * part : 2 * part + 2],
            fused.alpha.data[2 * part : 2 * part + 2],
        )
        assert_near(fused(x).detach()[:, 2 * part : 2 * part + 2], own(x).detach(), rel=1e-6)


def test_float32_convention():
    layer, x = scramble(SDDLinear(64, 8)), 1 + draw(3, 64, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y, z = layer(x), F.linear(x, layer.weight)
    assert y.dtype == z.dtype == torch.bfloat16
    assert torch.equal(y, (layer.alpha * F.rms_norm(z.float(), (8,), None, EPS)).bfloat16())
    half = copy.deepcopy(layer).bfloat16()
    assert half(x.bfloat16()).dtype == torch.bfloat16


def gpt(placement, **options):
    return GPT(
        11,
        6,
        8,
        3,
        heads=2,
        generator=torch.Generator().manual_seed(0),
        norm=RMSNorm,
        gated=True,
        **{"placement": placement, **options},
    )


def test_d3_alpha_of_the_outputs():
    for block in gpt(PostSDD).blocks:
        alphas = {
            name: layer.alpha.detach().unique() for name, layer in block.named_modules() if isinstance(layer, SDDLinear)
        }
        for name, alpha in alphas.items():
            want = 3**-0.5 if name.endswith(("out", "down")) else 1.0  # 3 blocks, not 6 sub-layers
            assert len(alpha) == 1 and alpha.item() == pytest.approx(want), name
        assert len(alphas) == 5


def test_d4_keeps_v_and_refuses_what_it_does_not_know():
    sublayer = nn.Sequential()
    sublayer.up, sublayer.down = nn.Linear(4, 6, dtype=torch.float64), nn.Linear(6, 4, dtype=torch.float64)
    before = sublayer.up.weight
    assert convert_to_sdd(sublayer.eval(), 4) is sublayer
    assert sublayer.up.weight is before and sublayer.up.alpha.dtype == torch.float64 and not sublayer.up.training
    assert sorted(dict(sublayer.named_parameters())) == ["down.alpha", "down.weight", "up.alpha", "up.weight"]
    for unknown in (nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4)), nn.Identity()):
        with pytest.raises(ValueError, match="rename its last one"):
            convert_to_sdd(unknown, 4)
    with pytest.raises(ValueError, match="write 1 or more"):
        convert_to_sdd(sublayer, 0)


# --- in models -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("placement, kind", [(PostSDD, Post), (PreSDD, Pre)])
def test_placements_of_a_decoder(placement, kind):
    ours, theirs = gpt(placement), gpt(kind)
    layers = [m for m in ours.modules() if isinstance(m, SDDLinear)]
    assert len(layers) == 3 * 5 and type(ours.head) is nn.Linear and type(ours.embedding) is nn.Embedding
    assert [layer.groups for layer in layers[:5]] == [3, 1, 1, 1, 1]
    same = {name: torch.equal(p, dict(ours.named_parameters())[name]) for name, p in theirs.named_parameters()}
    assert all(same.values()), "arms of one seed start from the same weights"
    assert all(isinstance(part, kind) for block in ours.blocks for part in (block.attention, block.feed_forward))
    assert (
        type(ours.blocks[0].attention.sublayer) is Attention
        and type(ours.blocks[0].feed_forward.sublayer) is FeedForward
    )
    ours(TOKENS).sum().backward()
    assert all(p.grad is not None for p in ours.parameters())


def test_decoder_does_not_depend_on_the_size_of_v():
    model = gpt(PostSDD, after_embedding=RMSNorm).double()
    for layer in model.modules():
        if isinstance(layer, SDDLinear):
            layer.eps = 0.0
    before = model(TOKENS).detach()
    for i, layer in enumerate(m for m in model.modules() if isinstance(m, SDDLinear)):
        layer.weight.data *= 10.0 ** (i % 5 - 2)
    assert_near(model(TOKENS).detach(), before, rel=1e-11)


def test_the_order_of_the_authors_block():
    """Theirs is x <- Norm(x), x <- x + f(x), one norm at the end: Post-Norm with a norm on the embedding and none after
    it.
    """
    model = gpt(PostSDD, after_embedding=RMSNorm, final_norm=False)
    x, norm = model.embedding(TOKENS), model.after_embedding
    for part in [part for block in model.blocks for part in (block.attention, block.feed_forward)]:
        x = norm(x)
        x, norm = x + part.sublayer(x), part.norm
    assert_near(model(TOKENS).detach(), model.head(norm(x)).detach(), rel=1e-6)


def test_vit_and_mlp():
    model = vit(8, 4, 8, 2, heads=2, classes=3, generator=torch.Generator().manual_seed(0), placement=PostSDD)
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, SDDLinear)}
    assert len(layers) == 8 and {name.rpartition(".")[2] for name in layers} == {"qkv", "proj", "fc1", "fc2"}
    assert [layers[f"blocks.0.attention.sublayer.{name}"].alpha[0].item() for name in ("qkv", "proj")] == pytest.approx(
        [1.0, 2**-0.5]
    )
    assert model(torch.zeros(2, 3, 8, 8)).isfinite().all()
    mlp = ResidualMLP(5, 8, 4, 3, generator=torch.Generator().manual_seed(0), norm=RMSNorm, placement=PostSDD)
    assert sum(isinstance(m, SDDLinear) for m in mlp.modules()) == 8 and mlp(draw(2, 5).float()).shape == (2, 3)


def test_compiled_decoder_with_autocast():
    model = gpt(PostSDD)
    want = model(TOKENS).detach()
    torch.compiler.reset()
    assert_near(torch.compile(model, fullgraph=True, backend="aot_eager")(TOKENS).detach(), want, rel=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(model(TOKENS).detach().float(), want, rtol=0.1, atol=0.05)
