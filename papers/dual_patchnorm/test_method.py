import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers import PatchEmbed
from torch import nn
from torch.nn import functional as F

from repro.models.vit import vit
from repro.papers.dual_patchnorm import DualPatchEmbed
from repro.papers.layernorm import LayerNorm
from repro.testing import (
    assert_near,
    assert_same_outcome,
    check_gradients,
    draw,
    hard_inputs,
    outcome,
    quiet_import,
    scramble,
)

SIZE, PATCH, CHANNELS, DIM = (4, 9), (2, 3), 2, 5  # 2 x 3 patches of 12 numbers: no two sizes are alike


def made(**options):
    return scramble(DualPatchEmbed(SIZE, PATCH, CHANNELS, DIM, dtype=torch.float64, **options))


def norm_in_numpy(v, gain, bias, eps):
    centred = v - v.mean()
    return gain * centred / np.sqrt((centred**2).mean() + eps) + bias


def oracle(x, p, pre=True, post=True, eps=1e-6):
    """One patch at a time, its pixels picked one by one in the order (row, column, channel)."""
    images = []
    for image in x.numpy():
        tokens = []
        for top in range(0, SIZE[0], PATCH[0]):
            for left in range(0, SIZE[1], PATCH[1]):
                v = np.array(
                    [
                        image[c, top + i, left + j]
                        for i in range(PATCH[0])
                        for j in range(PATCH[1])
                        for c in range(CHANNELS)
                    ]
                )
                if pre:
                    v = norm_in_numpy(v, p["ln0.weight"], p["ln0.bias"], eps)
                v = p["dense.weight"] @ v + p.get("dense.bias", 0.0)
                tokens.append(norm_in_numpy(v, p["ln1.weight"], p["ln1.bias"], eps) if post else v)
        images.append(tokens)
    return torch.from_numpy(np.array(images))


def check(layer, **options):
    p = {name: t.detach().numpy() for name, t in layer.named_parameters()}
    for name, x in hard_inputs(3, CHANNELS, *SIZE).items():
        for mode in (True, False):
            got = layer.train(mode)(x).detach()
            floor = 1e-7 if name == "constant" else 1e-25  # the rounding of a mean over sqrt(eps), twice
            assert_near(
                got, oracle(x, p, **options), name, rel=1e-6 if name in ("far", "minute") else 1e-8, floor=floor
            )


@pytest.mark.parametrize(
    "options", [{}, {"pre": False}, {"post": False}, {"pre": False, "post": False}, {"eps": 1e-2}, {"bias": False}]
)
def test_oracle(options):
    check(made(**options), **{k: v for k, v in options.items() if k != "bias"})


class Broken(DualPatchEmbed):
    fault = ""

    def patches(self, x):
        (h, w), (rows, columns) = self.patch_size, self.grid_size
        p = x.view(len(x), self.in_chans, rows, h, columns, w)
        if self.fault == "channels before pixels":  # einops (c p1 p2), as open_clip has it
            return p.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
        if self.fault == "columns before rows in a patch":
            return p.permute(0, 2, 4, 5, 3, 1).flatten(3).flatten(1, 2)
        if self.fault == "columns of patches first":
            return p.permute(0, 4, 2, 3, 5, 1).flatten(3).flatten(1, 2)
        if self.fault == "no rearrangement":
            return x.reshape(len(x), rows * columns, -1)
        return super().patches(x)

    def forward(self, x):
        fault = self.fault
        if fault == "LN0 over the image":
            p = self.patches(F.layer_norm(x, x.shape[1:], eps=1e-6))
            return self.ln1(self.dense(p * self.ln0.weight + self.ln0.bias))
        if fault == "LN0 per channel":
            p = self.patches(x).unflatten(-1, (-1, CHANNELS))
            p = F.layer_norm(p.transpose(-2, -1), p.shape[-2:-1], eps=1e-6).transpose(-2, -1).flatten(-2)
            return self.ln1(self.dense(p * self.ln0.weight + self.ln0.bias))
        if fault == "LN0 over the patches":
            p = self.patches(x)
            p = (p - p.mean(1, keepdim=True)) / (p.var(1, keepdim=True, correction=0) + 1e-6).sqrt()
            return self.ln1(self.dense(p * self.ln0.weight + self.ln0.bias))
        p = self.patches(x)
        if fault == "unbiased variance":
            p = (p - p.mean(-1, keepdim=True)) / (p.var(-1, keepdim=True) + 1e-6).sqrt()
            return self.ln1(self.dense(p * self.ln0.weight + self.ln0.bias))
        if fault == "no LN0":
            return self.ln1(self.dense(p))
        if fault == "no LN1":
            return self.dense(self.ln0(p))
        if fault == "no gains":
            return F.layer_norm(self.dense(F.layer_norm(p, p.shape[-1:], eps=1e-6)), (DIM,), eps=1e-6)
        if fault == "eps of torch":
            self.ln0.eps = self.ln1.eps = 1e-5
        if fault == "RMS":
            return F.rms_norm(self.dense(self.ln0(p)), (DIM,), self.ln1.weight, 1e-6) + self.ln1.bias
        return self.ln1(self.dense(self.ln0(p)))


FAULTS = [
    "channels before pixels",
    "columns before rows in a patch",
    "columns of patches first",
    "no rearrangement",
    "LN0 over the image",
    "LN0 per channel",
    "LN0 over the patches",
    "unbiased variance",
    "no LN0",
    "no LN1",
    "no gains",
    "eps of torch",
    "RMS",
]


@pytest.mark.parametrize("fault", FAULTS)
def test_mutant_dies(fault):
    layer = scramble(Broken(SIZE, PATCH, CHANNELS, DIM, dtype=torch.float64))
    check(layer)
    layer.fault = fault
    with pytest.raises(AssertionError):
        check(layer)


# --- peers -----------------------------------------------------------------------------------------------------------


class Composed(nn.Module):
    """torch's own unfold, layer norms and linear layer; unfold has the channels before the pixels."""

    def __init__(self, layer):
        super().__init__()
        pixels = PATCH[0] * PATCH[1] * CHANNELS
        like = {"dtype": torch.float64}
        self.ln0, self.dense, self.ln1 = (
            nn.LayerNorm(pixels, 1e-6, **like),
            nn.Linear(pixels, DIM, **like),
            nn.LayerNorm(DIM, 1e-6, **like),
        )
        self.load_state_dict(layer.state_dict())

    def forward(self, x):
        p = F.unfold(x, PATCH, stride=PATCH).transpose(1, 2)
        p = p.unflatten(-1, (CHANNELS, -1)).transpose(-2, -1).flatten(-2)
        return self.ln1(self.dense(self.ln0(p)))


def theirs_of_x_transformers(layer):
    library = quiet_import("x_transformers")
    encoder = quiet_import("x_transformers.x_transformers").Encoder(dim=DIM, depth=1, heads=1)
    stem = (
        library.ViTransformerWrapper(image_size=6, patch_size=3, channels=CHANNELS, attn_layers=encoder)
        .double()
        .patch_to_embedding
    )
    own = dict(layer.named_parameters())
    with torch.no_grad():
        for ours, part in zip(("ln0", "dense", "ln1"), stem, strict=True):
            for name, p in part.named_parameters():
                shift = 1.0 if getattr(part, "unit_offset", False) else 0.0
                p.copy_(own[f"{ours}.{'weight' if name in ('gamma', 'weight', 'g') else 'bias'}"] - shift)
    return stem


@pytest.mark.parametrize("mode", [True, False])
def test_torch_agrees(mode):
    layer = made().train(mode)
    other = Composed(layer).train(mode)
    for name, x in hard_inputs(3, CHANNELS, *SIZE).items():
        got, want = outcome(layer, x), outcome(other, x)
        assert got.keys() == want.keys()
        for key in want:
            floor = 1e-6 if name == "constant" else 1e-20
            assert_near(got[key], want[key], f"{name}: {key}", rel=1e-6, floor=floor)


def test_x_transformers_agrees():
    """Its ViT has both norms in the stem, without a bias in them and with torch's eps."""
    layer = scramble(DualPatchEmbed(6, 3, CHANNELS, DIM, eps=1e-5, dtype=torch.float64))
    stem = theirs_of_x_transformers(layer)
    rearrange = quiet_import("einops").rearrange
    with torch.no_grad():
        for norm in (layer.ln0, layer.ln1):
            norm.bias.zero_()
        for name, x in {k: v for k, v in hard_inputs(3, CHANNELS, 6, 6).items() if k != "constant"}.items():
            p = rearrange(x, "b c (h p1) (w p2) -> b (h w) (p1 p2 c)", p1=3, p2=3)
            assert_near(layer(x), stem(p), name, rel=1e-6)


def test_a_stem_without_norms_is_timms():
    ours, theirs = made(pre=False, post=False), PatchEmbed(SIZE, PATCH, CHANNELS, DIM).double()
    weight = ours.dense.weight.detach().unflatten(-1, (*PATCH, CHANNELS)).movedim(-1, 1)
    theirs.proj.load_state_dict({"weight": weight, "bias": ours.dense.bias.detach()})
    assert theirs.num_patches == ours.num_patches == 6 and theirs.grid_size == ours.grid_size
    for name, x in hard_inputs(3, CHANNELS, *SIZE).items():
        assert_near(ours(x).detach(), theirs(x).detach(), name, rel=1e-9)


# --- in a ViT --------------------------------------------------------------------------------------------------------


def small_vit(**options):
    source = torch.Generator().manual_seed(0)
    return vit(
        8,
        4,
        16,
        2,
        heads=2,
        classes=3,
        channels=3,
        generator=source,
        options={"embed_layer": DualPatchEmbed},
        **options,
    )


@pytest.mark.parametrize("class_token", [False, True])
def test_vit(class_token):
    model, x = small_vit(class_token=class_token), draw(2, 3, 8, 8, dtype=torch.float32)
    assert isinstance(model.patch_embed, DualPatchEmbed) and model(x).shape == (2, 3)
    seen = []
    model.blocks[0].register_forward_pre_hook(lambda block, args: seen.append(args[0]))
    model(x).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    tokens = model.patch_embed(x)  # positions and class token come after LN1
    assert_near(tokens.square().mean(-1).detach(), torch.ones(2, 4), rel=1e-3)
    assert torch.equal(seen[0][:, class_token:], tokens + model.pos_embed[:, class_token:])
    assert torch.equal(copy.deepcopy(model)(x), model(x))


def test_vit_does_not_see_contrast_and_brightness():
    model, x = small_vit().double(), draw(2, 3, 8, 8)
    a, b = (
        t.repeat_interleave(4, 2).repeat_interleave(4, 3) for t in (draw(2, 1, 2, 2).exp(), draw(2, 1, 2, 2, seed=1))
    )
    assert_near(model(a * x + b).detach(), model(x).detach(), rel=1e-4)
    with pytest.raises(AssertionError):  # but colours, which change the channels of a patch against each other, it sees
        assert_near(model(x * draw(1, 3, 1, 1).exp()).detach(), model(x).detach(), rel=1e-2)


def test_d1_images_have_channels_first():
    x = torch.arange(72.0).view(1, CHANNELS, *SIZE)
    first = DualPatchEmbed(SIZE, PATCH, CHANNELS, DIM).patches(x)[0, 0].tolist()
    assert first == [0, 36, 1, 37, 2, 38, 9, 45, 10, 46, 11, 47]
    assert torch.equal(
        made()(x.double().movedim(1, -1).contiguous().movedim(-1, 1)), made()(x.double())
    )  # channels_last


def test_d2_timm_keeps_the_initial_values():
    source = torch.Generator().manual_seed(0)
    model = vit(
        32, 16, 256, 1, heads=2, classes=3, channels=1, generator=source, options={"embed_layer": DualPatchEmbed}
    )
    weight = model.patch_embed.dense.weight.detach()
    assert_near(weight.std(), torch.tensor(1 / 16), rel=0.02)  # 256 pixels; timm's own would be 0.02
    assert weight.abs().max() <= 2 / 16 / 0.8796256 + 1e-6 and (model.patch_embed.dense.bias == 0).all()
    assert_near(model.blocks[0].attn.qkv.weight.detach().std(), torch.tensor(0.02), rel=0.02)
    plain = DualPatchEmbed(8, 4, 1, 6)
    for norm in (plain.ln0, plain.ln1):
        assert isinstance(norm, LayerNorm) and norm.eps == 1e-6 and (norm.weight == 1).all() and (norm.bias == 0).all()


def test_float32():
    layer, x = scramble(DualPatchEmbed(4, 2, 1, 6)), 30 + draw(2, 1, 4, 4, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        seen = {}
        layer.ln1.register_forward_hook(lambda norm, args, y: seen.update(x=args[0], y=y))
        layer(x)
    assert seen["x"].dtype == seen["y"].dtype == torch.bfloat16  # the product is in half precision, as autocast has it
    assert torch.equal(seen["y"], layer.ln1(seen["x"].float()).bfloat16())  # the statistics are not
    assert torch.equal(
        layer.ln0(layer.patches(x).bfloat16()), layer.ln0(layer.patches(x.bfloat16()).float()).bfloat16()
    )
    half = copy.deepcopy(layer).bfloat16()
    assert half(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("options", [{}, {"pre": False}, {"post": False}, {"bias": False}])
def test_gradients_copies_and_compile(options):
    layer, x = made(**options), draw(2, CHANNELS, *SIZE)
    check_gradients(layer, x, second_order=False)
    assert_same_outcome(copy.deepcopy(layer), layer, x, "deepcopy")
    other = DualPatchEmbed(SIZE, PATCH, CHANNELS, DIM, dtype=torch.float64, **options)
    other.load_state_dict(layer.state_dict())
    torch.compiler.reset()
    other.compile(backend="aot_eager", fullgraph=True)
    assert_same_outcome(other, layer, x, "compiled, from a state dict")


def test_factory():
    layer = DualPatchEmbed(SIZE, PATCH, CHANNELS, DIM, device="meta")
    assert all(p.is_meta for p in layer.parameters())
    rebuilt = scramble(layer.to_empty(device="cpu"))
    rebuilt.reset_parameters()
    assert (rebuilt.ln1.weight == 1).all() and (rebuilt.dense.bias == 0).all() and rebuilt.dense.weight.abs().max() < 1
    assert list(rebuilt.state_dict()) == [
        "ln0.weight",
        "ln0.bias",
        "dense.weight",
        "dense.bias",
        "ln1.weight",
        "ln1.bias",
    ]
    assert "img_size=(4, 9), patch_size=(2, 3)" in repr(rebuilt)


def test_refuses():
    with pytest.raises(ValueError, match="patch_size=5 must divide img_size=28"):
        DualPatchEmbed(28, 5, 1, 8)
    with pytest.raises(ValueError, match="nothing is padded"):
        DualPatchEmbed(28, 7, 1, 8, dynamic_img_pad=True)
    layer = DualPatchEmbed(28, 7, 1, 8)
    for shape in ((2, 3, 28, 28), (2, 1, 28, 14), (2, 28, 28), (1, 28, 28)):
        with pytest.raises(ValueError, match=r"\(B, 1, 28, 28\): resize them"):
            layer(torch.zeros(shape))
    for stem in (layer, DualPatchEmbed(28, 7, 1, 8, pre=False)):
        with pytest.raises(TypeError, match="write x.float"):
            stem(torch.zeros(2, 1, 28, 28, dtype=torch.uint8))


def test_constant_patches_are_alike():
    """All that LN0 leaves of a patch without detail is its bias: what its brightness was is lost."""
    layer, x = made().eval(), draw(1, CHANNELS, *SIZE)
    x[..., :2, :3], x[..., 2:, :3] = 0.2, 0.9
    tokens = layer(x)[0].detach()
    assert_near(tokens[0], tokens[3], rel=1e-9)
    assert (layer(torch.zeros(0, CHANNELS, *SIZE, dtype=torch.float64))).shape == (0, 6, DIM)


@settings(deadline=None, max_examples=25, derandomize=True)
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.sampled_from([1e-15, 1.0, 1e15]))
def test_any_size(rows, columns, height, width, scale):
    layer = DualPatchEmbed((rows * height, columns * width), (height, width), 3, 4)
    x = scale * (1 + draw(2, 3, rows * height, columns * width, dtype=torch.float32))
    y = layer(x)
    assert y.shape == (2, rows * columns, 4) and torch.isfinite(y).all()
    kept = layer.patches(x)
    assert torch.equal(kept.flatten(1).sort().values, x.flatten(1).sort().values)
    last = x[:, :, -height:, -width:].movedim(1, -1).flatten(1)
    assert torch.equal(kept[:, -1], last)
