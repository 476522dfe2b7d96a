import copy
import math

import pytest
import torch
from torch import nn

from repro.models.gpt import GPT
from repro.models.mlp import ResidualMLP
from repro.models.slots import Pre
from repro.models.vit import vit
from repro.papers.curse_of_depth import LayerNormScaling
from repro.papers.layernorm import LayerNorm
from repro.papers.rmsnorm import RMSNorm
from repro.testing import assert_near, assert_same_outcome, draw, mutation, residual_mlp_in_numpy, scramble

D, HEADS, FF, DEPTH = 8, 2, 12, 4


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


# --- against Eq. 12 in NumPy -----------------------------------------------------------------------------------------


def oracle(model, x):
    """Each block's norm output times 1 / sqrt(l), the final norm unscaled."""
    return residual_mlp_in_numpy(model, x, lambda i, x, f, norm: x + f(norm(x) / (i + 1) ** 0.5))


def check_oracle(placement):
    model = ResidualMLP(5, D, DEPTH, 3, generator=seeded(), norm=LayerNorm, placement=placement).double()
    scramble(model)
    x = 3 + draw(4, 5)
    assert_near(model.rows(x).detach(), oracle(model, x), rel=1e-12)


# --- against torch's Pre-LN encoder whose gains and biases hold the factor --------------------------------------------


class SelfAttention(nn.Module):
    """torch's attention as a sub-layer of one argument."""

    def __init__(self, layer):
        super().__init__()
        self.inner = layer.self_attn

    def forward(self, x):
        return self.inner(x, x, x, need_weights=False)[0]


def check_torch(placement):
    """Values and gradients are those of norm_first=True after gain and bias of block l are divided by sqrt(l).

    The function is the same; the gradients of gain and bias are 1 / sqrt(l) of those of the divided ones.
    """
    torch.manual_seed(0)
    layers = [
        nn.TransformerEncoderLayer(D, HEADS, FF, dropout=0.0, batch_first=True, norm_first=True) for _ in range(DEPTH)
    ]
    theirs = nn.Sequential(*layers, nn.LayerNorm(D)).double()
    scramble(theirs)
    ours = copy.deepcopy(theirs)
    blocks = []
    for i, layer in enumerate(list(ours)[:-1]):
        feed_forward = nn.Sequential(layer.linear1, nn.ReLU(), layer.linear2)
        blocks += [
            placement(SelfAttention(layer), lambda n, layer=layer: layer.norm1, D, i, DEPTH),
            placement(feed_forward, lambda n, layer=layer: layer.norm2, D, i, DEPTH),
        ]
    divisor = {}
    with torch.no_grad():
        for i, layer in enumerate(layers):
            for norm in (layer.norm1, layer.norm2):
                for p in norm.parameters():
                    p.div_(math.sqrt(i + 1))
                    divisor[p] = math.sqrt(i + 1)
    x, upstream = 1 + draw(2, 3, D), draw(2, 3, D, seed=3)
    found = []
    for model, forward in ((theirs, theirs), (ours, nn.Sequential(*blocks, ours[-1]))):
        leaves = [x.clone().requires_grad_(), *model.parameters()]
        y = forward(leaves[0])
        found.append([y.detach(), *torch.autograd.grad(y, leaves, upstream)])
    ratios = [1.0, 1.0, *(divisor.get(p, 1.0) for p in theirs.parameters())]
    for i, (want, got, ratio) in enumerate(zip(*found, ratios, strict=True)):
        assert_near(got, want / ratio, f"tensor {i}", rel=1e-9, floor=1e-12)


# --- wrong versions --------------------------------------------------------------------------------------------------


class Broken(Pre):
    """y = a x + c f(b Norm(s x)): the factor in other places, or another one."""

    def __init__(self, fault, sublayer, norm, dim, index, depth):
        super().__init__(sublayer, norm, dim, index, depth)
        self.fault = fault
        self.scale = {
            "from block 0": (index + 1e-9) ** -0.5 if index else 1.0,
            "1 / l": 1 / (index + 1),
            "1 / sqrt(2 l)": (2 * index + 2) ** -0.5,
            "1 / sqrt(L)": depth**-0.5,
            "counted from the end": abs(depth - index - 1e-9) ** -0.5,
            "scaled up": (index + 1) ** 0.5,
            "l + 1": (index + 2) ** -0.5,
        }.get(fault, (index + 1) ** -0.5)

    def forward(self, x):
        if self.fault == "branch output":
            return x + self.sublayer(self.norm(x)) * self.scale
        if self.fault == "norm input":  # the norm undoes it
            return x + self.sublayer(self.norm(x * self.scale))
        if self.fault == "after the residual":
            return (x + self.sublayer(self.norm(x))) * self.scale
        if self.fault == "not scaled":
            return x + self.sublayer(self.norm(x))
        if self.fault == "gain left out":  # only the normalised value is scaled, not the bias
            return x + self.sublayer((self.norm(x) - self.norm.bias) * self.scale + self.norm.bias)
        return x + self.sublayer(self.norm(x) * self.scale)


def broken(fault):
    calls = []

    def placement(sublayer, norm, dim, index, depth):
        calls.append(index)
        counted = len(calls) - 1 if fault == "sub-layers counted" else index
        module = Broken(fault, sublayer, norm, dim, counted, depth)
        if fault == "feed-forward alone" and len(calls) % 2:
            module.scale = 1.0
        return module

    return placement


BY_SUBLAYER = ["sub-layers counted", "feed-forward alone"]  # an MLP has one sub-layer in a block
test_oracle, test_mutant_dies = mutation(check_oracle, broken, LayerNormScaling, BY_SUBLAYER, source=[Broken, broken])
test_torch_agrees, test_mutant_dies_in_a_transformer = mutation(
    check_torch, broken, LayerNormScaling, source=[Broken, broken]
)


# --- departures ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_d1_dtype_of_the_norm(dtype):
    seen = []

    class See(nn.Module):
        def forward(self, x):
            seen.append(x)
            return x

    block = LayerNormScaling(See(), lambda n: RMSNorm(n, dtype=dtype), D, 2, 4)
    x = draw(3, D).to(dtype)
    assert block(x).dtype == seen[0].dtype == dtype
    assert torch.equal(seen[0], block.norm(x) * (1 / math.sqrt(3)))  # one rounding, in the dtype of the norm


def test_d2_single_branches_count_as_blocks():
    mlp = ResidualMLP(5, D, 4, 3, generator=seeded(), norm=LayerNorm, placement=LayerNormScaling)
    assert [block.scale for block in mlp.blocks] == [1.0, 1 / math.sqrt(2), 1 / math.sqrt(3), 0.5]


# --- in models -------------------------------------------------------------------------------------------------------


def gpt(placement, seed=0, **options):
    return GPT(
        11, 6, D, DEPTH, heads=2, generator=seeded(seed), norm=nn.RMSNorm, placement=placement, gated=True, **options
    )


TOKENS = torch.randint(11, (2, 6), generator=seeded(1))


def scales_of(blocks):
    return [(b.attention.scale, b.feed_forward.scale) for b in blocks]


def test_both_sublayers_have_one_factor_and_the_final_norm_none():
    model = gpt(LayerNormScaling)
    assert scales_of(model.blocks) == [(1 / math.sqrt(l),) * 2 for l in range(1, DEPTH + 1)]  # noqa: E741
    out = {}
    model.norm.register_forward_hook(lambda module, args, y: out.update(y=y))
    model(TOKENS)
    assert_near(out["y"].square().mean(-1).detach(), torch.ones(2, 6), rel=1e-2)


def test_one_block_is_pre_ln():
    pair = [GPT(11, 6, D, 1, heads=2, generator=seeded(), placement=p)(TOKENS) for p in (LayerNormScaling, "pre")]
    assert torch.equal(*pair)


def test_pre_ln_with_smaller_initial_gains_is_the_same_function():
    ours, folded = gpt(LayerNormScaling).double(), gpt("pre").double()
    for index, block in enumerate(folded.blocks):
        for part in (block.attention, block.feed_forward):
            part.norm.weight.data.fill_(1 / math.sqrt(index + 1))
    assert_near(ours(TOKENS).detach(), folded(TOKENS).detach(), rel=1e-13)
    for index, block in enumerate(folded.blocks):
        for part in (block.attention, block.feed_forward):
            part.norm.weight.data.fill_(1 / (index + 1))
    with pytest.raises(AssertionError):
        assert_near(ours(TOKENS).detach(), folded(TOKENS).detach(), rel=1e-6)


def test_nothing_is_added():
    ours, pre = gpt(LayerNormScaling), gpt("pre")
    assert list(ours.state_dict()) == list(pre.state_dict())
    ours.load_state_dict(pre.state_dict())
    assert [name for name, _ in ours.named_buffers()] == [name for name, _ in pre.named_buffers()]


def test_vision_transformer():
    model = vit(8, 4, D, DEPTH, heads=2, classes=3, generator=seeded(), placement=LayerNormScaling)
    assert scales_of(model.blocks) == [(1 / math.sqrt(l),) * 2 for l in range(1, DEPTH + 1)]  # noqa: E741
    assert model(torch.zeros(2, 3, 8, 8)).shape == (2, 3)


def test_deepcopy_and_state_dict():
    model = ResidualMLP(5, D, 4, 3, generator=seeded(), norm=LayerNorm, placement=LayerNormScaling).double()
    scramble(model)
    assert_same_outcome(copy.deepcopy(model), model, draw(2, 5), "deepcopy")
    other = ResidualMLP(5, D, 4, 3, generator=seeded(9), norm=LayerNorm, placement=LayerNormScaling).double()
    other.load_state_dict(model.state_dict())
    assert_same_outcome(other, model, draw(2, 5), "state dict")


def test_gradcheck():
    model = ResidualMLP(3, 4, 3, 2, generator=seeded(), norm=LayerNorm, placement=LayerNormScaling, bias=False).double()
    torch.autograd.gradcheck(model.rows, draw(2, 3).requires_grad_())


def test_autocast_and_compile():
    model = gpt(LayerNormScaling)
    want = model(TOKENS).detach()
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(model(TOKENS).detach().float(), want, rtol=0.1, atol=0.05)
    torch.compiler.reset()
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True, backend="aot_eager")
    assert_near(compiled(TOKENS).detach(), want, rel=1e-6)


@pytest.mark.parametrize("index", [-1, 4])
def test_refuses_blocks_that_are_not_there(index):
    with pytest.raises(ValueError, match="write 0 <= index < depth"):
        LayerNormScaling(nn.Identity(), nn.LayerNorm, 4, index, 4)


def test_repr_shows_the_factor():
    assert "scale=0.5" in repr(LayerNormScaling(nn.Identity(), nn.LayerNorm, 4, 3, 4))
