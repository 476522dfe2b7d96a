import copy
import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from torch import nn

from repro.models.gpt import GPT
from repro.papers.dyt import DyT, convert_ln_to_dyt
from repro.papers.layernorm import LayerNorm
from repro.papers.rmsnorm import PartialRMSNorm, RMSNorm
from repro.testing import (
    assert_near,
    assert_same_outcome,
    check_norm_contract,
    draw,
    hard_inputs,
    mutation,
    norm_inputs,
    quiet_import,
    scramble,
)
from repro.testing.decoders import needs_transformers

C = 6


def oracle(x, alpha, gain, bias, upstream):
    """Sec. 4 in Python floats, one number at a time: y, and the gradients of sum(upstream * y)."""
    y, dx, dalpha, dgain, dbias = [], [], [], [[] for _ in range(C)], [[] for _ in range(C)]
    for row, up in zip(x.flatten(0, -2).tolist(), upstream.flatten(0, -2).tolist(), strict=True):
        for i, (v, u, g, b) in enumerate(zip(row, up, gain.tolist(), bias.tolist(), strict=True)):
            t = math.tanh(alpha.item() * v)
            slope = (1 - t) * (1 + t)
            y.append(g * t + b)
            dx.append(u * g * slope * alpha.item())
            dalpha.append(u * g * slope * v)
            dgain[i].append(u * t)
            dbias[i].append(u)
    y, dx = (torch.tensor(flat, dtype=torch.float64).view(x.shape) for flat in (y, dx))
    dgain, dbias = (torch.tensor([math.fsum(v) for v in each], dtype=torch.float64) for each in (dgain, dbias))
    return {"y": y, "dx": dx, "da": torch.tensor([math.fsum(dalpha)], dtype=torch.float64), "dg": dgain, "db": dbias}


def check(layer):
    """`layer(x, alpha, gain, bias)` and its gradients agree with the oracle on every hard input."""
    for name, x in hard_inputs(3, 4, C).items():
        for alpha, shift in ((0.5, 0.0), (0.05, 1.0), (-1.3, -2.0)):
            alpha, gain, bias, upstream = (
                torch.full((1,), alpha).double(),
                1 + draw(C, seed=1),
                shift * draw(C, seed=2),
                draw(*x.shape, seed=3),
            )
            want = oracle(x, alpha, gain, bias, upstream)
            leaves = [t.clone().requires_grad_() for t in (x, alpha, gain, bias)]
            got = layer(*leaves)
            grads = torch.autograd.grad(got, leaves, upstream)
            for key, value in zip(("y", "dx", "da", "dg", "db"), (got.detach(), *grads), strict=True):
                rounds = key in ("dx", "da") and name in (
                    "plain",
                    "shifted",
                    "spiked",
                    "constant",
                )  # 1 - tanh^2 near tanh = 1
                assert_near(value, want[key], f"{name}: {key}", floor=1e-11 if rounds else 1e-25)


def ours(x, alpha, gain, bias):
    layer = DyT(C, dtype=torch.float64)
    return torch.func.functional_call(layer, {"alpha": alpha, "weight": gain, "bias": bias}, (x,))


def broken(fault):
    def layer(x, alpha, gain, bias):
        t = torch.tanh(alpha * x)
        match fault:
            case "alpha outside the tanh":
                t = alpha * torch.tanh(x)
            case "alpha divides":
                t = torch.tanh(x / alpha)
            case "no alpha":
                t = torch.tanh(x) + 0 * alpha
            case "alpha is not trained":
                t = torch.tanh(alpha.detach() * x) + 0 * alpha
            case "gain inside the tanh":
                return torch.tanh(alpha * gain * x) + bias
            case "bias inside the tanh":
                return gain * torch.tanh(alpha * x + bias)
            case "bias scaled too":
                return gain * (t + bias)
            case "gain + 1":
                return (1 + gain) * t + bias
            case "no bias":
                return gain * t + 0 * bias
            case "hardtanh":
                t = nn.functional.hardtanh(alpha * x)
            case "sigmoid":
                t = torch.sigmoid(alpha * x)
            case "softsign":
                t = nn.functional.softsign(alpha * x)
            case "centred first":
                t = torch.tanh(alpha * (x - x.mean(-1, keepdim=True)))
            case "divided by the deviation first":
                t = torch.tanh(alpha * x / (x.std(-1, keepdim=True) + 1e-5))
            case "half-precision tanh":
                t = torch.tanh((alpha * x).bfloat16()).double()
        return gain * t + bias

    return layer


test_oracle, test_mutant_dies = mutation(check, broken, ours)


def test_one_alpha_per_layer():
    """Known mistakes: one alpha per channel, or one for all layers."""
    assert DyT((3, 5)).alpha.shape == (1,)
    model = convert_ln_to_dyt(nn.Sequential(nn.LayerNorm(4), nn.LayerNorm(4)))
    assert model[0].alpha is not model[1].alpha
    assert sum(p.numel() for p in model.parameters()) == 2 * 9


@pytest.mark.parametrize(
    "shape, options",
    [(5, {}), ((3, 5), {}), (5, {"elementwise_affine": False}), (5, {"bias": False}), ([5], {"alpha_init": 0.05})],
)
def test_contract(shape, options):
    check_norm_contract(partial(DyT, shape, **options), None, draw(2, 3, 5))


def test_factory_and_initial_values():
    fresh = DyT(5, 0.2, dtype=torch.float64)
    want = {"alpha": torch.full((1,), 0.2), "weight": torch.ones(5), "bias": torch.zeros(5)}
    assert set(fresh.state_dict()) == set(want)
    assert all(torch.equal(fresh.state_dict()[name], t.double()) or name == "alpha" for name, t in want.items())
    assert fresh.alpha.item() == 0.2 and DyT(5).alpha.item() == 0.5
    assert all(t.is_meta for t in DyT(5, device="meta").state_dict().values())
    scramble(fresh).reset_parameters()
    assert fresh.alpha.item() == 0.2 and torch.equal(fresh.bias, torch.zeros(5).double())
    assert set(DyT(5, bias=False).state_dict()) == {"alpha", "weight"}
    assert list(DyT(5, elementwise_affine=False).state_dict()) == ["alpha"]
    assert "alpha_init=0.2" in repr(fresh)


def test_state_dict_round_trip():
    one, other = scramble(DyT(5)), DyT(5)
    other.load_state_dict(one.state_dict())
    assert_same_outcome(one, other, draw(2, 5, dtype=torch.float32), "loaded")


def test_x_transformers_agrees():
    theirs = quiet_import("x_transformers.x_transformers").DynamicTanh(8, init_alpha=0.5).double()  # its default is 1
    layer, x = scramble(DyT(8, dtype=torch.float64)), 3 * draw(4, 8)
    names = {"alpha": "pre_tanh_scale", "weight": "gamma", "bias": "beta"}
    with torch.no_grad():
        for name, their in names.items():
            getattr(theirs, their).copy_(getattr(layer, name).squeeze())
    got, want = layer(x), theirs(x)
    assert_near(got.detach(), want.detach(), rel=1e-14)
    got.sum().backward()
    want.sum().backward()
    for name, their in names.items():
        assert_near(getattr(layer, name).grad.squeeze(), getattr(theirs, their).grad, rel=1e-12)


@pytest.mark.parametrize("alpha", [0, 0.0, float("nan"), float("inf")])
def test_refuses_useless_alpha(alpha):
    with pytest.raises(ValueError, match=r"write a number such as 0\.5"):
        DyT(4, alpha)


@pytest.mark.parametrize("shape", [(2, 7), (2, 1), (8,), ()])
def test_wrong_shape(shape):
    with pytest.raises(ValueError, match="normalized_shape"):
        DyT((3, 8))(torch.zeros(shape))


def test_d1_output_has_the_dtype_of_the_input():
    layer, x = scramble(DyT(4)), draw(3, 4, dtype=torch.bfloat16)
    assert layer(x).dtype == torch.bfloat16  # the authors' line gives float32 here
    assert torch.equal(layer(x), layer(x.float()).bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16 and layer(x.float()).dtype == torch.float32
    half = copy.deepcopy(
        layer
    ).bfloat16()  # and in half precision throughout every operator works in it, as theirs does
    want = torch.tanh(half.alpha * x) * half.weight + half.bias
    assert torch.equal(half(x), want)


def test_works_on_each_element_alone():
    """Sec. 4, Remarks: no statistics, so elements may be dropped, reordered and changed freely."""
    layer, x = scramble(DyT(6, dtype=torch.float64)), draw(4, 5, 6)
    changed = x.clone()
    changed[1, 2, 3] += 7
    moved = (layer(changed) != layer(x)).nonzero().tolist()
    assert moved == [[1, 2, 3]]
    assert torch.equal(layer(x.flip(0, 1)), layer(x).flip(0, 1))
    assert torch.equal(layer.eval()(x), layer.train()(x))


@pytest.mark.parametrize("scale", [1e-18, 1e-3, 1.0, 1e18, 1e38])
def test_range_of_float32(scale):
    x = (scale * draw(3, 16)).float()
    for alpha in (0.05, 2.0):
        layer = DyT(16, alpha)
        assert_near(layer(x).detach(), layer.double()(x.double()).detach(), rel=1e-6)
    assert torch.isfinite(DyT(16)(x)).all()


@settings(deadline=None, max_examples=30, derandomize=True)
@given(norm_inputs())
def test_any_input(x):
    layer = DyT(x.shape[-1])
    y = layer(x).detach()
    assert y.shape == x.shape and y.dtype == x.dtype and torch.isfinite(y).all()
    assert (y.abs() <= 1).all() and (y * x >= 0).all() and (y.double().abs() <= 0.501 * x.double().abs() + 1e-7).all()


# --- convert_ln_to_dyt -----------------------------------------------------------------------------------------------


def norms_of(model):
    return {name: module for name, module in model.named_modules() if isinstance(module, DyT)}


def small_gpt(**options):
    return GPT(11, 8, 16, 2, heads=2, generator=torch.Generator().manual_seed(0), **options)


@pytest.mark.parametrize("norm", [nn.LayerNorm, LayerNorm, RMSNorm, nn.RMSNorm, PartialRMSNorm])
def test_converts_every_norm_in_place(norm):
    model = small_gpt(norm=norm)
    before = {name: p for name, p in model.named_parameters() if "norm" not in name}
    assert convert_ln_to_dyt(model) is model
    assert len(norms_of(model)) == 5  # two per block and the final one, which is easily forgotten
    assert not any(isinstance(m, norm) for m in model.modules())
    assert all(p is before[name] for name, p in model.named_parameters() if name in before)
    model(torch.zeros(1, 8, dtype=torch.long)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_places_have_their_own_alpha():
    model = convert_ln_to_dyt(small_gpt(), attention=0.8, feed_forward=0.2, final=0.1)
    found = {name: module.alpha_init for name, module in norms_of(model).items()}
    assert found == {
        "blocks.0.attention.norm": 0.8,
        "blocks.0.feed_forward.norm": 0.2,
        "blocks.1.attention.norm": 0.8,
        "blocks.1.feed_forward.norm": 0.2,
        "norm": 0.1,
    }
    some = convert_ln_to_dyt(small_gpt(), 0.6, attention=0.8)
    assert {module.alpha_init for module in norms_of(some).values()} == {0.6, 0.8}


@pytest.mark.parametrize(
    "name, place",
    [
        ("model.layers.3.input_layernorm", "attention"),
        ("model.layers.3.post_attention_layernorm", "feed_forward"),
        ("model.norm", "final"),
        ("blocks.0.norm1", "attention"),
        ("blocks.0.attn.q_norm", "attention"),
        ("blocks.0.norm2", "feed_forward"),
        ("fc_norm", "final"),
        ("transformer.h.1.ln_1", "attention"),
        ("transformer.h.1.ln_2", "feed_forward"),
        ("transformer.ln_f", "final"),
        ("embeddings.norm", "alpha_init"),
        ("embeddings.LayerNorm", "alpha_init"),
        ("backbone.layers.0.mixer.norm", "attention"),
        ("encoder.layer.0.output.LayerNorm", None),
        ("layers.1.norm3", None),
    ],
)
def test_place_by_name(name, place):
    model = nn.Module()
    *path, last = name.split(".")
    parent = model
    for part in path:
        parent.add_module(part, nn.Module())
        parent = getattr(parent, part)
    parent.add_module(last, nn.LayerNorm(4))
    if place is None:
        with pytest.raises(ValueError, match=f"cannot tell the place of '{name}'"):
            convert_ln_to_dyt(copy.deepcopy(model), final=0.1)
        place = "alpha_init"
    converted = convert_ln_to_dyt(model, **{place: 0.3})
    assert converted.get_submodule(name).alpha_init == 0.3


def test_d2_keeps_parameters_device_and_dtype():
    model = (
        nn.ModuleDict(
            {
                "full": nn.LayerNorm(4),
                "plain": nn.LayerNorm((2, 4), elementwise_affine=False),
                "no_bias": nn.LayerNorm(4, bias=False),
                "rms": nn.RMSNorm(4),
                "linear": nn.Linear(4, 4),
            }
        )
        .to(torch.bfloat16)
        .eval()
    )
    found = norms_of(convert_ln_to_dyt(model))
    keys = {name: sorted(layer.state_dict()) for name, layer in found.items()}
    assert keys == {
        "full": ["alpha", "bias", "weight"],
        "plain": ["alpha"],
        "no_bias": ["alpha", "weight"],
        "rms": ["alpha", "weight"],
    }
    assert found["plain"].normalized_shape == (2, 4)
    assert all(p.dtype == torch.bfloat16 for p in model.parameters())
    assert not any(layer.training for layer in found.values())
    assert norms_of(convert_ln_to_dyt(nn.Sequential(nn.LayerNorm(4, device="meta"))))["0"].alpha.is_meta


def test_d3_refuses_a_model_without_norms():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.GroupNorm(2, 4))
    with pytest.raises(ValueError, match="Sequential has no LayerNorm and no RMSNorm"):
        convert_ln_to_dyt(model)
    assert isinstance(model[1], nn.BatchNorm2d)
    with pytest.raises(ValueError, match="no LayerNorm"):
        convert_ln_to_dyt(convert_ln_to_dyt(nn.Sequential(nn.LayerNorm(4))))  # done already


def test_a_norm_alone_and_a_shared_norm():
    norm = nn.LayerNorm(4)
    assert isinstance(convert_ln_to_dyt(norm, 0.3), DyT) and isinstance(norm, nn.LayerNorm)
    model = nn.ModuleDict({"a": norm, "b": nn.Sequential(norm)})
    convert_ln_to_dyt(model)
    assert model["a"] is model["b"][0] and isinstance(model["a"], DyT)


def test_timm_models():
    from timm.models.convnext import ConvNeXt
    from timm.models.vision_transformer import VisionTransformer

    vit = VisionTransformer(img_size=8, patch_size=4, embed_dim=16, depth=2, num_heads=2, num_classes=3)
    convert_ln_to_dyt(vit, attention=1.0, feed_forward=0.5, final=0.25)
    assert [layer.alpha_init for layer in norms_of(vit).values()] == [1.0, 0.5, 1.0, 0.5, 0.25]
    assert vit(draw(2, 3, 8, 8, dtype=torch.float32)).shape == (2, 3)
    convnext = convert_ln_to_dyt(ConvNeXt(depths=(1, 1, 1, 1), dims=(4, 8, 8, 8), num_classes=3))
    assert not any(isinstance(m, nn.LayerNorm) for m in convnext.modules())
    assert convnext(draw(2, 3, 64, 64, dtype=torch.float32)).shape == (2, 3)


def test_channels_first():
    from timm.layers import LayerNorm2d, LayerNormAct, RmsNorm, RmsNorm2d

    x = draw(2, 4, 5, 4, dtype=torch.float32)  # as many columns as channels: a wrong axis would pass unseen
    for make in (LayerNorm2d, RmsNorm2d):
        layer = scramble(convert_ln_to_dyt(make(4)))
        bias = 0 if layer.bias is None else layer.bias[:, None, None]
        assert_near(
            layer(x).detach(), (layer.weight[:, None, None] * torch.tanh(layer.alpha * x) + bias).detach(), rel=1e-6
        )
    assert type(convert_ln_to_dyt(RmsNorm(4))) is DyT
    with pytest.raises(ValueError, match="holds an activation"):
        convert_ln_to_dyt(nn.Sequential(LayerNormAct(4)))


def test_torch_encoder_does_not_take_its_fused_path():
    """In evaluation nn.TransformerEncoder hands the norms' weights to one kernel that would compute a LayerNorm."""
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True), 2)
    convert_ln_to_dyt(encoder)
    x, padding = draw(3, 4, 8, dtype=torch.float32), torch.arange(4) >= torch.tensor([[4], [3], [2]])
    for mask in (None, padding):
        want = encoder.train()(x, src_key_padding_mask=mask).detach()
        with torch.no_grad():
            assert_near(encoder.eval()(x, src_key_padding_mask=mask), want, rel=1e-5)


CONFIG = {
    "vocab_size": 17,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
}
PLACED = {  # of transformers: the place of each norm of a block
    "Llama": {"input_layernorm": "attention", "post_attention_layernorm": "feed_forward"},
    "Gemma2": {
        "input_layernorm": "attention",
        "post_attention_layernorm": "attention",
        "pre_feedforward_layernorm": "feed_forward",
        "post_feedforward_layernorm": "feed_forward",
    },
    "Olmo2": {"post_attention_layernorm": "attention", "post_feedforward_layernorm": "feed_forward"},
    "ModernBert": {"embeddings.norm": "other", "attn_norm": "attention", "mlp_norm": "feed_forward"},
    "Mamba2": {"mixer.norm": "attention", "0.norm": "attention"},
}


@needs_transformers
@pytest.mark.parametrize("name", PLACED)
def test_places_in_models_of_transformers(name):
    transformers = quiet_import("transformers")
    size = {"num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0}
    size = (
        {"num_heads": 4, "head_dim": 8, "state_size": 4, "n_groups": 1, "chunk_size": 4} if name == "Mamba2" else size
    )
    size = {"pad_token_id": 0, "cls_token_id": 1, "sep_token_id": 2} if name == "ModernBert" else size
    model = getattr(transformers, f"{name}Model")(getattr(transformers, f"{name}Config")(**CONFIG, **size)).eval()
    convert_ln_to_dyt(model, 0.9, attention=0.8, feed_forward=0.2, final=0.1)
    alphas = {"attention": 0.8, "feed_forward": 0.2, "final": 0.1, "other": 0.9}
    norms = norms_of(model)
    for suffix, place in PLACED[name].items():
        found = {layer.alpha_init for path, layer in norms.items() if path.endswith(suffix)}
        assert found == {alphas[place]}, f"{suffix}: {found}"
    assert alphas["final"] in {layer.alpha_init for layer in norms.values()}
    assert not any("Norm" in type(m).__name__ for m in model.modules()), "a norm is left"
    assert torch.isfinite(model(torch.arange(8).view(2, 4))[0]).all()


def test_foreign_rms_norms():
    """transformers' LLaMA has a class of its own, told by its name."""

    class LlamaRMSNorm(nn.Module):
        def __init__(self, n):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(n))

    class LayerNormMLP(nn.Sequential):  # a whole block that has LayerNorm in its name
        pass

    layer = convert_ln_to_dyt(nn.Sequential(LlamaRMSNorm(4)))[0]
    assert isinstance(layer, DyT) and layer.normalized_shape == (4,) and layer.bias is None
    block = convert_ln_to_dyt(LayerNormMLP(nn.LayerNorm(4), nn.Linear(4, 4)))
    assert isinstance(block, LayerNormMLP) and isinstance(block[0], DyT)
    theirs = quiet_import("x_transformers.x_transformers").LayerNorm(4)  # its gain is called gamma
    assert convert_ln_to_dyt(theirs).weight.shape == (4,)
