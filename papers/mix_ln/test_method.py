import copy
import math

import pytest
import torch
from torch import nn

from repro.models.gpt import GPT
from repro.models.mlp import ResidualMLP
from repro.models.slots import Post, Pre
from repro.models.vit import vit
from repro.papers.layernorm import LayerNorm
from repro.papers.mix_ln import MixLN
from repro.testing import (
    assert_near,
    assert_same_outcome,
    draw,
    mutation,
    quiet_import,
    residual_mlp_in_numpy,
    scramble,
)

D, HEADS, FF, DEPTH = 8, 2, 12, 7  # floor(0.25 * 7) = 1: other roundings show


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


# --- against the equations in NumPy ----------------------------------------------------------------------------------


def oracle(model, x, post):
    """The first `post` blocks Post-LN and the rest Pre-LN."""
    return residual_mlp_in_numpy(model, x, lambda i, x, f, norm: norm(x + f(x)) if i < post else x + f(norm(x)))


def check_oracle(placement, alpha=0.25, depth=DEPTH, post=1):
    """A residual MLP under `placement` computes what the oracle does with `post` Post-LN blocks."""
    model = ResidualMLP(5, D, depth, 3, generator=seeded(), norm=LayerNorm, placement=placement).double()
    scramble(model)
    x = 3 + draw(4, 5)
    assert_near(model.rows(x).detach(), oracle(model, x, post), f"alpha {alpha}, depth {depth}", rel=1e-12)


@pytest.mark.parametrize(
    "alpha, depth, post", [(0.25, 7, 1), (0.25, 12, 3), (0.25, 3, 0), (0, 4, 0), (1, 4, 4), (0.5, 5, 2)]
)
def test_oracle(alpha, depth, post):
    check_oracle(MixLN(alpha), alpha, depth, post)


# --- against torch.nn.TransformerEncoderLayer ------------------------------------------------------------------------


class SelfAttention(nn.Module):
    """torch's attention as a sub-layer of one argument."""

    def __init__(self, layer):
        super().__init__()
        self.inner = layer.self_attn

    def forward(self, x):
        return self.inner(x, x, x, need_weights=False)[0]


def stacks(placement, depth=DEPTH, post=1):
    """torch's encoder, its first `post` layers norm_first=False, and ours of the same parameters under `placement`."""
    torch.manual_seed(0)
    layers = [
        nn.TransformerEncoderLayer(
            D, HEADS, FF, dropout=0.0, batch_first=True, norm_first=i >= post, dtype=torch.float64
        )
        for i in range(depth)
    ]
    for i, layer in enumerate(layers):
        scramble(layer.norm1, i), scramble(layer.norm2, i + 99)
    blocks = []
    for i, layer in enumerate(layers):
        feed_forward = nn.Sequential(layer.linear1, nn.ReLU(), layer.linear2)
        blocks += [
            placement(SelfAttention(layer), lambda n, layer=layer: layer.norm1, D, i, depth),
            placement(feed_forward, lambda n, layer=layer: layer.norm2, D, i, depth),
        ]
    final = scramble(nn.LayerNorm(D, dtype=torch.float64), 5)
    return nn.Sequential(*layers, final), nn.Sequential(*blocks, final)


def check_torch(placement, depth=DEPTH, post=1):
    """Values and the gradients of the input and of every parameter, in training mode (torch's fast path is off)."""
    theirs, ours = stacks(placement, depth, post)
    x, upstream = 1 + draw(2, 3, D), draw(2, 3, D, seed=3)
    results = []
    for model in (theirs, ours):
        leaves = [x.clone().requires_grad_(), *theirs.parameters()]
        y = model(leaves[0])
        results.append((y.detach(), *torch.autograd.grad(y, leaves, upstream)))
    for i, (want, got) in enumerate(zip(*results, strict=True)):
        assert_near(got, want, f"tensor {i}", rel=1e-9, floor=1e-12)


@pytest.mark.parametrize("alpha, depth, post", [(0.25, 7, 1), (0.25, 8, 2), (0.0, 3, 0), (1.0, 3, 3)])
def test_torch_agrees(alpha, depth, post):
    check_torch(MixLN(alpha), depth, post)


def test_x_transformers_agrees():
    attend = quiet_import("x_transformers.x_transformers").Attention(dim=D, heads=2, dim_head=4, causal=True).double()

    class Attend(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = attend

        def forward(self, x):
            return self.inner(x)[0]

    decoder = quiet_import("x_transformers").Decoder
    x = draw(2, 3, D)
    for pre_norm, alpha in ((True, 0.0), (False, 1.0)):
        theirs = decoder(dim=D, depth=1, heads=2, attn_dim_head=4, pre_norm=pre_norm).double()
        norms = theirs.layers[0][0]
        pre, _, post = norms
        theirs_norm = scramble(pre if pre_norm else post)
        attend.load_state_dict(theirs.layers[0][1].state_dict())
        ours = MixLN(alpha)(Attend(), lambda n, norm=theirs_norm: norm, D, 0, 1)
        branch = theirs.layers[0][1](theirs_norm(x) if pre_norm else x)[0]
        want = x + branch if pre_norm else theirs_norm(x + branch)
        assert_near(ours(x).detach(), want.detach(), rel=1e-12)


# --- wrong versions --------------------------------------------------------------------------------------------------


class ExtraInputNorm(Post):
    """Norm(x + f(Norm(x))): the input norm of Pre-LN left in the Post-LN blocks."""

    def forward(self, x):
        return self.norm(x + self.sublayer(self.norm(x)))


class InnerNorm(Post):
    """x + Norm(f(x)): the norm on the branch, before the addition."""

    def forward(self, x):
        return x + self.norm(self.sublayer(x))


class DeepNorm(Post):
    """Norm((2 L)^(1/4) x + f(x)): DeepNorm's residual in the Post-LN blocks."""

    def forward(self, x):
        return self.norm((2 * DEPTH) ** 0.25 * x + self.sublayer(x))


def broken(fault, alpha=0.25):
    calls = []

    def placement(sublayer, norm, dim, index, depth):
        calls.append(index)
        post = math.floor(alpha * depth)
        if fault == "Post-LN in the deep blocks":
            index = depth - 1 - index
        if fault == "the share of Pre-LN blocks":
            post = depth - post
        if fault == "rounded to the nearest":
            post = round(alpha * depth)
        if fault == "rounded up":
            post = math.ceil(alpha * depth)
        if fault == "one block more":
            post += 1
        if fault == "blocks counted from 1":
            index += 1
        if fault == "share of the sub-layers":
            index, post = len(calls) - 1, math.floor(alpha * 2 * depth)
        if fault == "alternating":
            index = 0 if index % round(1 / alpha) == 0 else depth
        first = {"extra input norm": ExtraInputNorm, "norm on the branch": InnerNorm, "DeepNorm": DeepNorm}
        return (first.get(fault, Post) if index < post else Pre)(sublayer, norm, dim, index, depth)

    return placement


test_torch_agrees_with, test_mutant_dies = mutation(check_torch, broken, MixLN(0.25))
test_mlp_agrees, test_mutant_dies_in_an_mlp = mutation(check_oracle, broken, MixLN(0.25), ["share of the sub-layers"])


# --- departures ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "alpha, depth, post",
    [
        (0.29, 100, 29),
        (0.57, 100, 57),
        (0.7, 10, 7),
        (0.1, 30, 3),
        (0.25, 12, 3),
        (0.25, 24, 6),
        (0.0625, 32, 2),
        (0.167, 24, 4),
        (0.417, 24, 10),
        (0.33, 24, 7),
        (0.333, 24, 8),
        (1 / 3, 24, 8),
        (1 / 3, 12, 4),
        (1 / 6, 24, 4),
        (1e-5, 100, 0),
        (1, 5, 5),
    ],
)
def test_d1_shares_of_table_5(alpha, depth, post):
    assert MixLN(alpha).post_blocks(depth) == post
    kinds = [type(MixLN(alpha)(nn.Identity(), nn.LayerNorm, 4, i, depth)) for i in range(depth)]
    assert kinds == [Post] * post + [Pre] * (depth - post)


def test_d1_differs_from_floating_point():
    assert math.floor(0.29 * 100) == 28


def test_d2_single_branches_count_as_blocks():
    mlp = ResidualMLP(5, D, 8, 3, generator=seeded(), norm=LayerNorm, placement=MixLN())
    assert [type(block) for block in mlp.blocks] == [Post] * 2 + [Pre] * 6


# --- in models -------------------------------------------------------------------------------------------------------


def gpt(placement, depth=4, **options):
    return GPT(
        11, 6, D, depth, heads=2, generator=seeded(), norm=nn.RMSNorm, placement=placement, gated=True, **options
    )


def kinds_of(blocks):
    return [(type(b.attention), type(b.feed_forward)) for b in blocks]


def test_both_sublayers_of_a_block_are_alike_and_the_final_norm_stays():
    model = gpt(MixLN())
    assert kinds_of(model.blocks) == [(Post, Post)] + [(Pre, Pre)] * 3
    assert isinstance(gpt(MixLN(1.0)).norm, nn.RMSNorm) and isinstance(model.norm, nn.RMSNorm)


def test_alpha_0_and_1_are_pre_ln_and_post_ln():
    tokens = torch.randint(11, (2, 6), generator=seeded(1))
    for alpha, name in ((0, "pre"), (1, "post")):
        assert torch.equal(gpt(MixLN(alpha))(tokens), gpt(name)(tokens))
    assert not torch.equal(gpt(MixLN())(tokens), gpt("pre")(tokens))


def test_nothing_is_added():
    names = [set(gpt(p).state_dict()) for p in (MixLN(), "pre", "post")]
    assert names[0] == names[1] == names[2]
    parameters = [sum(p.numel() for p in gpt(p).parameters()) for p in (MixLN(), "pre")]
    assert parameters[0] == parameters[1]


def test_vision_transformer():
    model = vit(8, 4, D, 4, heads=2, classes=3, generator=seeded(), placement=MixLN())
    assert kinds_of(model.blocks) == [(Post, Post)] + [(Pre, Pre)] * 3
    assert model(torch.zeros(2, 3, 8, 8)).shape == (2, 3)


def test_deepcopy_and_state_dict():
    model, x = (
        scramble(ResidualMLP(5, D, 4, 3, generator=seeded(), norm=LayerNorm, placement=MixLN()).double()),
        draw(2, 5),
    )
    assert_same_outcome(copy.deepcopy(model), model, x, "deepcopy")
    other = ResidualMLP(5, D, 4, 3, generator=seeded(9), norm=LayerNorm, placement=copy.deepcopy(MixLN())).double()
    other.load_state_dict(model.state_dict())
    assert_same_outcome(other, model, x, "state dict")


def test_gradcheck():
    model = ResidualMLP(3, 4, 4, 2, generator=seeded(), norm=LayerNorm, placement=MixLN(0.5), bias=False).double()
    torch.autograd.gradcheck(model.rows, draw(2, 3).requires_grad_())


def test_autocast_and_compile():
    model = gpt(MixLN())
    tokens = torch.randint(11, (2, 6), generator=seeded(1))
    want = model(tokens).detach()
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(model(tokens).detach().float(), want, rtol=0.1, atol=0.05)
    torch.compiler.reset()
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True, backend="aot_eager")
    assert_near(compiled(tokens).detach(), want, rel=1e-6)


@pytest.mark.parametrize("alpha", [-0.1, 1.1, 25, float("nan")])
def test_refuses_other_shares(alpha):
    with pytest.raises(ValueError, match="write 0 <= alpha <= 1"):
        MixLN(alpha)


@pytest.mark.parametrize("index", [-1, 4])
def test_refuses_blocks_that_are_not_there(index):
    with pytest.raises(ValueError, match="write 0 <= index < depth"):
        MixLN()(nn.Identity(), nn.LayerNorm, 4, index, 4)


def test_repr():
    assert repr(MixLN()) == "MixLN(alpha=0.25)"
