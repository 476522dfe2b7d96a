import copy
import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from torch import nn
from torch.nn import functional as F

from repro.models.gpt import GPT
from repro.models.slots import Post, Pre
from repro.models.vit import vit
from repro.papers.layernorm import LayerNorm
from repro.papers.peri_ln import PeriLN
from repro.papers.pre_rmsnorm import CRMSNorm, ZeroMeanLinear, to_pre_crmsnorm, to_pre_rmsnorm
from repro.papers.pre_rmsnorm.method import Recenter
from repro.testing import (
    assert_near,
    assert_same_outcome,
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


# --- CRMSNorm --------------------------------------------------------------------------------------------------------


def oracle(z, gain, bias, eps, upstream):
    """Eq. 5 in Python floats, one case at a time, from the decompressed vector: y, and gradients of sum(upstream *
    y).
    """
    y, dz, dgain, dbias = [], [], [0.0] * z.shape[-1], [0.0] * z.shape[-1]
    for row, up in zip(z.flatten(0, -2).tolist(), upstream.flatten(0, -2).tolist(), strict=True):
        last = -math.fsum(row)
        below = math.sqrt(math.fsum(v * v for v in [*row, last]) / (len(row) + 1) + eps)
        y.append([g * v / below + b for g, v, b in zip(gain.tolist(), row, bias.tolist(), strict=True)])
        pull = math.fsum(u * g * v for u, g, v in zip(up, gain.tolist(), row, strict=True)) / below / below
        # d (sum of the squares) / d z_j = 2 z_j - 2 x_d, as x_d falls when z_j rises
        dz.append(
            [
                u * g / below - pull * (v - last) / ((len(row) + 1) * below)
                for u, g, v in zip(up, gain.tolist(), row, strict=True)
            ]
        )
        for j, (u, v) in enumerate(zip(up, row, strict=True)):
            dgain[j] += u * v / below
            dbias[j] += u
    y, dz, dgain, dbias = (torch.tensor(rows, dtype=torch.float64) for rows in (y, dz, dgain, dbias))
    return {"y": y.view(z.shape), "dz": dz.view(z.shape), "dg": dgain, "db": dbias}


def check(norm):
    """`norm(z, gain, bias, eps)` and its gradients agree with the oracle on every hard input."""
    for name, z in hard_inputs(3, 4, N).items():
        gain, bias, upstream = 1 + draw(N, seed=1), draw(N, seed=2), draw(*z.shape, seed=3)
        leaves = [t.clone().requires_grad_() for t in (z, gain, bias)]
        got = norm(*leaves, 1e-5)
        grads = torch.autograd.grad(got, leaves, upstream)
        want = oracle(z, gain, bias, 1e-5, upstream)
        for key, value in zip(("y", "dz", "dg", "db"), (got.detach(), *grads), strict=True):
            assert_near(value, want[key], f"{name}: {key}")


def ours(z, gain, bias, eps):
    module = CRMSNorm(N, eps, dtype=torch.float64)
    return torch.func.functional_call(module, {"weight": gain, "bias": bias}, (z,))


def broken(fault):
    def norm(z, gain, bias, eps):
        total, squares, n = z.sum(-1, keepdim=True), z.square().sum(-1, keepdim=True), N + 1
        match fault:
            case "mean over d - 1":
                n = N
            case "not decompressed":
                total = 0 * total
            case "last element not squared":
                squares, total = squares + total.abs(), 0 * total
            case "last element is minus the mean":
                total = total / N
            case "sums of the batch":
                total = total.mean(0, keepdim=True)
            case "detached sum":
                total = total.detach()
            case "centred first":
                z = z - z.mean(-1, keepdim=True)
            case "half-precision sum":
                total = total.bfloat16().double()
        inside = (squares + total.square()) / n
        if fault == "eps outside the root":
            return z / (inside.sqrt() + eps) * gain + bias
        if fault == "times the root":
            return z * (inside + eps).sqrt() * gain + bias
        return (
            z / (inside + (0 if fault == "no eps" else eps)).sqrt() * (1 if fault == "no gain" else gain)
            + bias
            + 0 * gain
        )

    return norm


test_oracle, test_mutant_dies = mutation(check, broken, ours)


@pytest.mark.parametrize(
    "shape, options", [(5, {}), ((3, 5), {}), ([5], {"elementwise_affine": False}), (5, {"bias": False})]
)
def test_contract(shape, options):
    check_norm_contract(partial(CRMSNorm, shape, **options), None, 1 + draw(2, 3, 5))
    assert list(CRMSNorm(shape, **options).state_dict()) == list(nn.LayerNorm(shape, **options).state_dict())
    assert CRMSNorm(shape, **options).eps == nn.LayerNorm(shape).eps


@pytest.mark.parametrize("name", list(hard_inputs(1, 1)))
def test_is_layernorm_of_the_decompressed_vector(name):
    """LayerNorm, torch's RMSNorm and x-transformers' agree on (z, -sum z), outputs and gradients (Eq. 5, Sec. 2.1)."""
    z, upstream, eps = hard_inputs(3, N)[name], draw(3, N, seed=1), 0.0 if name != "zero" else 1e-5
    peers = {
        "LayerNorm": nn.LayerNorm(N + 1, eps, elementwise_affine=False),
        "RMSNorm": nn.RMSNorm(N + 1, eps, elementwise_affine=False),
    }
    if name not in ("zero", "tiny"):  # its norm is clamped at 1e-12, and has no eps
        peers["x-transformers"] = quiet_import("x_transformers.x_transformers").SimpleRMSNorm(N + 1)
    results = {}
    for peer, norm in {"ours": CRMSNorm(N, eps, elementwise_affine=False), **peers}.items():
        leaf = z.clone().requires_grad_()
        whole = leaf if peer == "ours" else torch.cat([leaf, -leaf.sum(-1, keepdim=True)], -1)
        y = norm(whole)[..., :N]
        results[peer] = y.detach(), torch.autograd.grad(y, leaf, upstream)[0]
    for peer in peers:
        for got, want in zip(results["ours"], results[peer], strict=True):
            assert_near(got, want, f"{name}: {peer}", rel=1e-9)


def test_float32_convention():
    check_float32(CRMSNorm(4), torch.tensor([[100.0, 100.5, 101.0, 101.5]]))
    fine = 1 + 1e-9 * draw(2, 4)  # in float32 all ones
    assert CRMSNorm(4)(fine).unique().numel() > 4


@settings(deadline=None, max_examples=30, derandomize=True)
@given(norm_inputs())
def test_any_input(z):
    n = z.shape[-1]
    y = CRMSNorm(n)(z).detach()
    assert y.shape == z.shape and y.dtype == z.dtype and torch.isfinite(y).all()
    slack = 4 * torch.finfo(z.dtype).eps
    assert (y.double().square().sum(-1) <= (n + 1) * (1 + slack)).all() and (y * z.sign() >= 0).all()


@pytest.mark.parametrize("shape", [(2, 7), (2, 1), (8,), ()])
def test_wrong_shape(shape):
    with pytest.raises(ValueError, match="normalized_shape"):
        CRMSNorm((3, 8))(torch.zeros(shape))


# --- ZeroMeanLinear --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
def test_zero_mean_linear(bias):
    """Lemma 3.1: the output of the same nn.Linear less its mean; parameters have the gradients that they have there."""
    for name, x in hard_inputs(4, 5).items():
        ours, theirs = (scramble(kind(5, 7, bias, dtype=torch.float64)) for kind in (ZeroMeanLinear, nn.Linear))
        theirs = nn.Sequential(theirs, Recenter())
        for got, want in zip(gradients(ours, x), gradients(theirs, x), strict=True):
            assert_near(got, want, name, rel=1e-9, floor=1e-9 * float(x.abs().max()))
        assert (ours(x).mean(-1).abs() <= 1e-14 * ours(x).abs().amax() + 1e-300).all()


def gradients(model, x):
    """Output and the gradients of parameters (and of an input that is no index) for a fixed upstream gradient."""
    leaves = [*model.parameters()]
    if x.is_floating_point():
        x = x.clone().requires_grad_()
        leaves.append(x)
    y = model(x)
    return [y.detach(), *torch.autograd.grad(y, leaves, draw(*y.shape, seed=9).to(y))]


def test_zero_mean_linear_as_a_module():
    ours, theirs, x = ZeroMeanLinear(5, 7), nn.Linear(5, 7), draw(3, 5, dtype=torch.float32)
    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(copy.deepcopy(ours).state_dict())
    compiled = copy.deepcopy(ours)
    compiled.compile(backend="aot_eager", fullgraph=True)
    assert_same_outcome(compiled, ours, x, "torch.compile")
    with torch.autocast("cpu", torch.bfloat16):
        assert ours(x).dtype == torch.bfloat16
    double = scramble(ZeroMeanLinear(3, 4, dtype=torch.float64))
    torch.autograd.gradcheck(
        lambda x, w, b: torch.func.functional_call(double, {"weight": w, "bias": b}, (x,)),
        [t.detach().requires_grad_() for t in (draw(2, 3), double.weight, double.bias)],
    )
    with pytest.raises(RuntimeError, match="shapes"):
        ours(torch.zeros(3, 6))


@pytest.mark.parametrize("fault", ["over the inputs", "bias left", "weights left", "over all"])
def test_zero_mean_linear_mutant_dies(fault):
    layer, x = scramble(nn.Linear(5, 7, dtype=torch.float64)), 1 + draw(4, 5)
    weight = layer.weight - {
        "over the inputs": layer.weight.mean(1, keepdim=True),
        "over all": layer.weight.mean(),
    }.get(fault, 0 if fault == "weights left" else layer.weight.mean(0))
    bias = layer.bias if fault == "bias left" else layer.bias - layer.bias.mean()
    with pytest.raises(AssertionError):
        assert_near(F.linear(x, weight, bias).detach(), Recenter()(layer(x)).detach())


def test_d1_no_bias():
    assert list(ZeroMeanLinear(3, 4, bias=False).state_dict()) == ["weight"]
    assert ZeroMeanLinear(3, 4, bias=False)(torch.ones(2, 3)).sum(-1).abs().max() < 1e-6


# --- conversions -----------------------------------------------------------------------------------------------------

GPTS = {
    "rotary": {},
    "learned": {"positions": "learned", "bias": True},
    "gated": {"gated": True, "act": nn.SiLU},
    "tied": {"tied": True},
    "tied, no gains": {"tied": True, "norm": partial(nn.LayerNorm, elementwise_affine=False)},
    "ours": {"norm": partial(LayerNorm, eps=1e-2)},
    "no bias": {"norm": partial(nn.LayerNorm, bias=False), "bias": True},
    "query norms": {"qk_norm": nn.LayerNorm},
    "a norm each": {"norm": dict.fromkeys(("attention", "feed_forward", "final"), nn.LayerNorm)},
}
VITS = {
    "mean": {},
    "class token": {"class_token": True},
    "eps": {"norm": partial(nn.LayerNorm, eps=1e-2)},
    "registers": {"class_token": True, "options": {"reg_tokens": 2, "qk_norm": True, "no_embed_class": True}},
    "norm before the mean": {"options": {"fc_norm": False}},
    "all tokens": {"timm": {"global_pool": ""}},
    "no positions": {"options": {"pos_embed": "none"}},
    "timm's own": {"timm": {}},
    "gated": {"options": {"mlp_layer": quiet_import("timm.layers").GluMlp, "qkv_bias": False}},
}
CONVERSIONS = {"rms": to_pre_rmsnorm, "crms": to_pre_crmsnorm, "online": partial(to_pre_rmsnorm, online=True)}


def randomised(model):
    """Weights, gains, biases and embeddings in float64 that have a mean, so that whatever is left out shows."""
    source = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in model.double().parameters():
            size = p[0].numel() if p.ndim in (2, 4) else 1
            p.copy_(torch.randn(p.shape, generator=source, dtype=torch.float64) / size**0.5 + 0.3 / size)
    return model


def small_gpt(**options):
    return randomised(GPT(11, 8, 12, 2, heads=2, generator=torch.Generator().manual_seed(0), **options))


def timm_vit(**options):
    make = quiet_import("timm.models.vision_transformer").VisionTransformer
    return randomised(
        make(
            **{"img_size": 8, "patch_size": 4, "num_classes": 5, "embed_dim": 12, "depth": 2, "num_heads": 2, **options}
        )
    )


def small_vit(timm=None, **options):
    if timm is not None:
        return timm_vit(**timm)
    return randomised(vit(8, 4, 12, 2, heads=2, classes=5, generator=torch.Generator().manual_seed(0), **options))


TOKENS = torch.randint(11, (3, 8), generator=torch.Generator().manual_seed(1))
IMAGES = draw(3, 3, 8, 8)


def same(converted, model, x, what=""):
    with torch.no_grad():
        assert_near(converted(x), model(x), what, rel=1e-11)


@pytest.mark.parametrize("options", GPTS.values(), ids=GPTS)
@pytest.mark.parametrize("convert", CONVERSIONS.values(), ids=CONVERSIONS)
def test_gpt(convert, options):
    model = small_gpt(**options)
    before = copy.deepcopy(model.state_dict())
    same(convert(model), model, TOKENS)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())  # the model itself is left alone


@pytest.mark.parametrize("options", VITS.values(), ids=VITS)
@pytest.mark.parametrize("convert", CONVERSIONS.values(), ids=CONVERSIONS)
def test_vit(convert, options):
    model = small_vit(**options)
    converted = convert(model)
    for name, x in {"plain": IMAGES, "shifted": 30 + IMAGES, "huge": 1e6 * IMAGES, "tiny": 1e-9 * IMAGES}.items():
        for training in (True, False):
            same(converted.train(training), model.train(training), x, name)


@pytest.mark.parametrize(
    "model, x",
    [(small_gpt(**GPTS[n]), TOKENS) for n in ("rotary", "learned", "tied")]
    + [(small_vit(class_token=True), scale * IMAGES + shift) for scale, shift in ((1, 0), (1e-6, 0), (1e4, 3e4))],
    ids=["rotary", "learned", "tied", "vit", "vit tiny", "vit huge"],
)
def test_online_has_the_gradients_of_pre_ln(model, x):
    """Sec. 3.5: one to one, so that any optimizer does as before."""
    online = CONVERSIONS["online"](model)
    assert [name for name, _ in online.named_parameters()] == [name for name, _ in model.named_parameters()]
    names, wanted = ["y", *(name for name, _ in model.named_parameters()), "x"], gradients(model, x)
    floor = 1e-12 * max(float(g.abs().max()) for g in wanted[1:])  # some are nothing but rounding
    for name, got, want in zip(names, gradients(online, x), wanted, strict=False):
        assert_near(got, want, name, rel=1e-9, floor=floor)


@pytest.mark.parametrize(
    "model, x", [(small_gpt(positions="learned", bias=True), TOKENS), (small_vit(class_token=True), IMAGES)]
)
def test_the_main_branch_keeps_zero_mean(model, x):
    for convert in (to_pre_rmsnorm, CONVERSIONS["online"]):
        seen, converted = [], convert(model)
        for block in converted.blocks:
            block.register_forward_hook(lambda module, args, y, seen=seen: seen.extend([args[0], y]))
        converted(x)
        assert len(seen) == 4 and all((y.mean(-1).abs() < 1e-13 * y.abs().max()).all() for y in seen)


def last(model):
    return model.blocks[-1].feed_forward.sublayer.down if isinstance(model, GPT) else model.blocks[-1].mlp.fc2


def first(model):
    return model.blocks[0].attention.sublayer.qkv if isinstance(model, GPT) else model.blocks[0].attn.qkv


def restore(part, name):
    """The converted model has a parameter as it was."""

    def change(converted, model):
        getattr(part(converted), name).data = getattr(part(model), name).data.clone()

    return change


def drop_columns(converted, model):
    first(converted).weight.data = first(to_pre_rmsnorm(model)).weight.data[:, : first(converted).in_features]


def over_the_inputs(converted, model):
    weight = last(model).weight.data
    last(converted).weight.data = weight - weight.mean(1, keepdim=True)


def other_eps(converted, model):
    for module in converted.modules():
        if isinstance(module, LayerNorm):
            module.eps = 1e-3


CHANGES = {  # (conversion, models, what is wrong)
    "token embedding left": ("rms", "gpt", restore(lambda m: m.embedding, "weight")),
    "position embedding left": ("rms", "gpt", restore(lambda m: m.positions, "weight")),
    "positions left": ("rms", "vit", restore(lambda m: m, "pos_embed")),
    "class token left": ("rms", "vit", restore(lambda m: m, "cls_token")),
    "patch weights left": ("rms", "vit", restore(lambda m: m.patch_embed.proj, "weight")),
    "patch bias left": ("rms", "vit", restore(lambda m: m.patch_embed.proj, "bias")),
    "writer left": ("rms", "gpt vit", restore(last, "weight")),
    "bias of a writer left": ("rms", "gpt vit", restore(last, "bias")),
    "recentred over the inputs": ("rms", "gpt vit", over_the_inputs),
    "gain not folded": ("rms", "gpt vit", restore(first, "weight")),
    "bias not folded": ("rms", "gpt vit", restore(first, "bias")),
    "head not folded": ("rms", "gpt vit", restore(lambda m: m.head, "weight")),
    "another eps": ("rms", "gpt vit", other_eps),
    "columns dropped": ("crms", "gpt vit", drop_columns),
    "x_0 not recentred": ("online", "gpt", lambda m, _: setattr(m, "after_embedding", nn.Identity())),
    "x_0 of the ViT not recentred": ("online", "vit", lambda m, _: setattr(m, "norm_pre", nn.Identity())),
    "plain writer": ("online", "gpt vit", lambda m, _: setattr(last(m), "__class__", nn.Linear)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_wrong_conversion_dies(change):
    conversion, kinds, tamper = CHANGES[change]
    for kind in kinds.split():
        model, x = (
            (small_gpt(positions="learned", bias=True), TOKENS)
            if kind == "gpt"
            else (small_vit(class_token=True), IMAGES)
        )
        converted = CONVERSIONS[conversion](model)
        tamper(converted, model)
        with pytest.raises(AssertionError):
            same(converted, model, x)


def test_d2_gains_and_biases():
    model = small_gpt(tied=True)
    folded, online = to_pre_rmsnorm(model), CONVERSIONS["online"](model)
    assert not any("norm" in name for name, _ in folded.named_parameters())
    assert first(folded).bias is not None and folded.head.bias is not None and first(model).bias is None
    assert folded.head.weight is not folded.embedding.weight and online.head.weight is online.embedding.weight
    assert {name for name, _ in online.named_parameters()} == {name for name, _ in model.named_parameters()}
    plain = to_pre_rmsnorm(small_gpt(norm=partial(nn.LayerNorm, elementwise_affine=False)))
    assert first(plain).bias is None


def test_d3_online_recentres_the_sum():
    model = CONVERSIONS["online"](small_vit(class_token=True))
    assert isinstance(model.norm_pre, Recenter) and isinstance(
        CONVERSIONS["online"](small_gpt()).after_embedding, Recenter
    )
    assert model.pos_embed.mean(-1).abs().max() > 0.01 and type(model.patch_embed.proj) is nn.Conv2d


@pytest.mark.parametrize("make", [small_gpt, small_vit])
def test_d4_dropout(make):
    model = make(dropout=0.3)
    with pytest.raises(ValueError, match="takes the zero mean .* away.*set p to 0"):
        CONVERSIONS["online"](model)
    same(
        to_pre_rmsnorm(model).eval(), model.eval(), TOKENS if make is small_gpt else IMAGES
    )  # at inference all is well


def test_d5_layer_scale():
    model = small_vit(options={"init_values": 0.1})
    for convert in CONVERSIONS.values():
        with pytest.raises(ValueError, match="LayerScale"):
            convert(model)
    folded = copy.deepcopy(model)  # what the message asks for
    for block in folded.blocks:
        for layer, scale in ((block.attn.proj, "ls1"), (block.mlp.fc2, "ls2")):
            layer.weight.data *= getattr(block, scale).gamma[:, None]
            layer.bias.data *= getattr(block, scale).gamma
            setattr(block, scale, nn.Identity())
    same(to_pre_crmsnorm(folded), model, IMAGES)


def test_trained_online_then_converted():
    model = small_gpt(positions="learned")
    pair = [model, CONVERSIONS["online"](model)]
    for each in pair:
        optimizer = torch.optim.AdamW(each.parameters(), lr=0.01)
        for _ in range(5):
            optimizer.zero_grad()
            F.cross_entropy(each(TOKENS).flatten(0, 1), TOKENS.flatten()).backward()
            optimizer.step()
    for trained in (
        pair[1],
        to_pre_rmsnorm(pair[1]),
        to_pre_crmsnorm(pair[1]),
        to_pre_crmsnorm(to_pre_rmsnorm(pair[0])),
    ):
        with torch.no_grad():
            assert_near(trained(TOKENS), pair[0](TOKENS), rel=1e-9)
    assert not any(isinstance(m, ZeroMeanLinear | Recenter) for m in to_pre_rmsnorm(pair[1]).modules())
    pair[0].load_state_dict(pair[1].state_dict())  # the checkpoint of either loads into the other
    pair[1].load_state_dict(pair[0].state_dict())


def test_shapes_of_the_compressed_model():
    model = to_pre_crmsnorm(small_vit(class_token=True))
    assert model.pos_embed.shape == (1, 5, 11) and model.cls_token.shape == (1, 1, 11)
    assert model.head.in_features == model.blocks[0].mlp.fc2.out_features == model.patch_embed.proj.out_channels == 11
    gpt = to_pre_crmsnorm(small_gpt())
    assert gpt.embedding.embedding_dim == gpt.head.in_features == 11 and gpt.norm.normalized_shape == (11,)
    frozen = small_gpt().requires_grad_(False)
    assert not any(p.requires_grad for p in to_pre_crmsnorm(frozen).parameters())
    assert "CRMSNorm((11,), elementwise_affine=False, bias=False, eps=1e-05)" in repr(gpt)


@pytest.mark.parametrize("convert", CONVERSIONS.values(), ids=CONVERSIONS)
def test_copies_compile_and_autocast(convert):
    model = convert(small_gpt(positions="learned").float()).eval()
    again = convert(small_gpt(positions="learned", tied=False).float())
    again.load_state_dict(copy.deepcopy(model).state_dict())
    assert torch.equal(again(TOKENS), model(TOKENS))
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True, backend="aot_eager")
    assert_near(compiled(TOKENS).detach(), model(TOKENS).detach(), rel=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert_near(model(TOKENS).detach().float(), model.double()(TOKENS).detach().float(), rel=0.1)


@pytest.mark.parametrize(
    "make, message",
    [
        (partial(small_gpt, placement="post"), "no Pre-LN block"),
        (partial(small_gpt, placement=PeriLN), "no Pre-LN block"),
        (partial(small_vit, placement=Post), "no Pre-LN block"),
        (partial(small_gpt, norm=nn.RMSNorm), "RMSNorm.* is no LayerNorm"),
        (partial(small_gpt, norm=lambda n: nn.BatchNorm1d(8)), "BatchNorm1d.* is no LayerNorm"),
        (partial(small_gpt, norm=CRMSNorm), "CRMSNorm.* is no LayerNorm"),
        (partial(small_gpt, final_norm=False), "Identity.* is no LayerNorm"),
        (partial(small_gpt, after_embedding=nn.LayerNorm), "after_embedding .*leave it out"),
        (partial(small_vit, options={"pre_norm": True}), "norm_pre .*leave it out"),
        (partial(small_vit, options={"embed_norm_layer": nn.LayerNorm}), "patch_embed.norm"),
        (partial(timm_vit, global_pool="max"), "global_pool='max': write 'avg'"),
        (partial(timm_vit, global_pool="map"), "global_pool='map': write 'avg'"),
        (partial(timm_vit, num_classes=0), "write nn.Linear"),
        (lambda: nn.TransformerEncoderLayer(8, 2), "TransformerEncoderLayer.*write repro's GPT or timm's ViT"),
    ],
)
def test_refuses_what_it_cannot_convert(make, message):
    for convert in CONVERSIONS.values():
        with pytest.raises(ValueError, match=message):
            convert(make())


def test_refuses_other_layers():
    model = small_gpt()
    model.blocks[0].attention.sublayer.out = nn.Sequential(nn.Linear(12, 12))
    with pytest.raises(ValueError, match="write nn.Linear"):
        to_pre_rmsnorm(model)
    model.blocks[0].attention.sublayer = nn.Bilinear(2, 2, 2)
    with pytest.raises(ValueError, match="blocks.0: Bilinear is none of"):
        to_pre_rmsnorm(model)


def test_a_vit_under_the_suites_placement():
    model = small_vit(placement=Pre)
    same(to_pre_crmsnorm(model), model, IMAGES)
