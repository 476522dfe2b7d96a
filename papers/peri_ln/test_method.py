import copy
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from repro.batched import fit_batched
from repro.experiments import decoder
from repro.models.gpt import GPT
from repro.models.mlp import ResidualMLP
from repro.models.slots import Post, Pre
from repro.models.vit import vit
from repro.papers.layernorm import LayerNorm
from repro.papers.peri_ln import PeriLN, PostLN, PreLN
from repro.papers.rmsnorm import RMSNorm
from repro.testing import assert_near, assert_same_outcome, draw, hard_inputs, quiet_import, scramble
from repro.train import fit

D, DEPTH = 6, 3


@pytest.fixture(autouse=True)
def one_thread():
    """Small tensors: threads only wait for one another."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def branch(dim=D, hidden=9, seed=0):
    """A sub-layer in float64."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(dim, hidden), nn.Tanh(), nn.Linear(hidden, dim)).double()


# --- against the equation in NumPy -----------------------------------------------------------------------------------


def layer_norm(x, gain, bias):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * gain + bias


def rms_norm(x, gain, bias=None):
    return x / (np.sqrt((x**2).mean(-1, keepdims=True)) + 1e-8) * gain


def oracle(p, norm, x):
    """y = x + Norm_out(f(Norm_in(x))) for f = `branch`; p: names of parameters -> arrays."""

    def normed(x, name):
        return norm(x, p[f"{name}.weight"], p.get(f"{name}.bias"))

    h = np.tanh(normed(x, "input_norm") @ p["sublayer.0.weight"].T + p["sublayer.0.bias"])
    return x + normed(h @ p["sublayer.2.weight"].T + p["sublayer.2.bias"], "output_norm")


def check(placement):
    """A block of two norms with gains of their own agrees with the oracle on every hard input, both norms."""
    for make, norm in ((LayerNorm, layer_norm), (RMSNorm, rms_norm)):
        block = placement(branch(), partial(make, dtype=torch.float64), D, 0, 1)
        names = dict(block.named_parameters())
        with torch.no_grad():
            for i, (name, p) in enumerate(names.items()):
                p.copy_((1 if name.endswith("norm.weight") else 0) + 0.5 * draw(*p.shape, seed=i))
        p = {name: t.detach().numpy() for name, t in names.items()}
        for what, x in hard_inputs(2, 3, D).items():
            assert_near(block(x).detach(), torch.from_numpy(oracle(p, norm, x.numpy())), what, rel=1e-9, floor=1e-12)
        x = 1 + draw(2, D)  # a large stream hides the branch; here it counts
        assert_near(block(x).detach() - x, torch.from_numpy(oracle(p, norm, x.numpy())) - x, "branch", rel=1e-10)


def broken(fault):
    """Versions that people ship under the name of Peri-LN, or could."""

    class Broken(PeriLN):
        def forward(self, x):
            f, n_in, n_out = self.sublayer, self.input_norm, self.output_norm
            if fault == "output norm after the addition":  # as at least one summary of the paper draws it
                return n_out(x + f(n_in(x)))
            if fault == "no input norm":  # OLMo 2
                return x + n_out(f(x))
            if fault == "no output norm":
                return x + f(n_in(x))
            if fault == "norms swapped":
                return x + n_in(f(n_out(x)))
            if fault == "one norm for both":
                return x + n_in(f(n_in(x)))
            if fault == "normed residual":
                return n_in(x) + n_out(f(n_in(x)))
            if fault == "no residual":
                return n_out(f(n_in(x)))
            if fault == "both at the input":
                return x + f(n_out(n_in(x)))
            if fault == "gain + 1":  # Gemma's weights are gains less 1
                n_out = copy.deepcopy(n_out)
                n_out.weight.data += 1
            if fault == "halved":
                return x + n_out(f(n_in(x))) / 2**0.5
            return x + n_out(f(n_in(x)))

    return Broken


FAULTS = [
    "output norm after the addition",
    "no input norm",
    "no output norm",
    "norms swapped",
    "one norm for both",
    "normed residual",
    "no residual",
    "both at the input",
    "gain + 1",
    "halved",
]


@pytest.mark.parametrize("placement", [PeriLN, broken(None)], ids=["ours", "unbroken"])
def test_oracle(placement):
    check(placement)


@pytest.mark.parametrize("fault", FAULTS)
def test_mutant_dies(fault):
    with pytest.raises(AssertionError):
        check(broken(fault))


# --- against x_transformers ------------------------------------------------------------------------------------------


class First(nn.Module):
    """A module of theirs that returns more than its output."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        y = self.inner(x)
        return y[0] if isinstance(y, tuple) else y


def sandwich(placement):
    """x_transformers' decoder with sandwich_norm, and ours of the same sub-layers and norms."""
    torch.manual_seed(0)
    theirs = quiet_import("x_transformers").Decoder(
        dim=8, depth=2, heads=2, attn_dim_head=4, sandwich_norm=True, use_rmsnorm=True
    )
    scramble(theirs.double())
    blocks = []
    for i, (norms, layer, _) in enumerate(theirs.layers):
        given = iter(norms[:2])
        blocks.append(placement(First(layer), lambda n, given=given: next(given), 8, i // 2, 2))
    return theirs, nn.Sequential(*blocks, theirs.final_norm)


@pytest.mark.parametrize(
    "placement, agrees", [(PeriLN, True), (broken("norms swapped"), False), (broken("no input norm"), False)]
)
def test_x_transformers_sandwich_norm(placement, agrees):
    theirs, ours = sandwich(placement)
    x, upstream = draw(2, 5, 8), draw(2, 5, 8, seed=1)
    results = []
    for model in (theirs, ours):
        leaves = [x.clone().requires_grad_(), *(p for p in theirs.parameters() if p.requires_grad)]
        y = model(leaves[0])
        results.append((y.detach(), *torch.autograd.grad(y, leaves, upstream, allow_unused=True)))
    pairs = [(a, b) for a, b in zip(*results, strict=True) if a is not None]
    assert len(pairs) > 10
    if agrees:
        for want, got in pairs:
            assert_near(got, want, rel=1e-9)
    else:
        with pytest.raises(AssertionError):
            assert_near(pairs[0][1], pairs[0][0], rel=1e-3)


# --- departures ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", [LayerNorm, RMSNorm, nn.LayerNorm, partial(RMSNorm, eps=0.1), nn.Identity])
def test_d1_norm_is_the_callers(norm):
    built = []

    def recorded(dim):
        built.append(norm(dim))
        return built[-1]

    block = PeriLN(nn.Identity(), recorded, D, 0, 1)
    assert [block.input_norm, block.output_norm] == built and built[0] is not built[1]
    x = draw(2, D, dtype=torch.float32)
    assert_near(block(x).detach(), (x + norm(D)(norm(D)(x))).detach(), rel=1e-6)


def test_d2_embedding_norm_belongs_to_the_model():
    tokens = torch.randint(11, (2, 5), generator=seeded())
    make = partial(GPT, 11, 5, 8, 1, heads=2, norm=RMSNorm, placement=PeriLN)
    plain, normed = make(generator=seeded()), make(generator=seeded(), after_embedding=RMSNorm)
    assert set(normed.state_dict()) - set(plain.state_dict()) == {"after_embedding.weight"}
    for model, size in ((plain, 0.02), (normed, 1.0)):
        assert decoder.stream(model, tokens)[0].square().mean().sqrt().item() == pytest.approx(size, rel=0.2)


def test_d3_gains_start_at_one():
    model = GPT(11, 5, 8, 2, heads=2, generator=seeded(), norm=nn.LayerNorm, placement=PeriLN)
    gains = {name: p for name, p in model.named_parameters() if "norm" in name and p.dim() == 1}
    assert len(gains) == 2 * (4 * 2 + 1)  # four norms a block and the last one, each with a gain and a bias
    for name, p in gains.items():
        assert torch.equal(p, torch.ones_like(p) if name.endswith("weight") else torch.zeros_like(p)), name
        assert p.requires_grad


# --- what follows from the equation ----------------------------------------------------------------------------------


@settings(deadline=None, max_examples=30, derandomize=True)
@given(st.integers(0, 10**6), st.floats(-8, 8), st.floats(-8, 8))
def test_stream_is_bounded_by_the_gains(seed, weights, inputs):
    model = ResidualMLP(
        4, D, DEPTH, 2, generator=seeded(seed), norm=partial(RMSNorm, eps=0.0), placement=PeriLN
    ).double()
    x = 10**inputs * draw(3, D, seed=seed)
    limit = x.square().mean(-1).sqrt()
    for block in scramble(model, seed).blocks:
        block.sublayer.down.weight.data.mul_(10**weights)
        x = block(x)
        limit = limit + block.output_norm.weight.max()
    assert (x.square().mean(-1).sqrt() <= limit * (1 + 1e-12)).all()


@pytest.mark.parametrize("placement, change", [(PeriLN, 1.0), (PreLN, 1e3)])
def test_proposition_gradient_of_the_second_matrix(placement, change):
    """Without eps the gradient is that of W2 -> W2 with h 1000 times as large: the same under Peri-LN."""
    norms = []
    for c in (1.0, 1e3):
        block = placement(branch(), partial(RMSNorm, eps=0.0, dtype=torch.float64), D, 0, 1)
        second = block.sublayer[2]
        second.bias = None
        block.sublayer.insert(2, decoder.Scale(c))
        (gradient,) = torch.autograd.grad((block(draw(4, D)) * draw(4, D, seed=1)).sum(), second.weight)
        norms.append(gradient)
    assert_near(norms[1], change * norms[0], rel=1e-10)


def test_gradient_of_the_second_matrix_in_closed_form():
    """RMSNorm's Jacobian at a is (I - a a^T / |a|^2) sqrt(D) / |a|, before the gain."""
    block = scramble(PeriLN(branch(), partial(RMSNorm, eps=0.0, dtype=torch.float64), D, 0, 1))
    x, g = draw(D), draw(D, seed=1)
    h = block.sublayer[:2](block.input_norm(x)).detach()
    a = block.sublayer[2](h).detach()
    v = block.output_norm.weight.detach() * g
    want = torch.outer((v - a * (a @ v) / (a @ a)) * D**0.5 / a.norm(), h)
    (gradient,) = torch.autograd.grad((block(x) * g).sum(), block.sublayer[2].weight)
    assert_near(gradient, want, rel=1e-11)


def test_gradcheck():
    block = scramble(PeriLN(branch(), partial(LayerNorm, dtype=torch.float64), D, 0, 1))
    leaves = [t.detach().clone().requires_grad_() for t in (draw(2, D), *block.parameters())]
    names = [name for name, _ in block.named_parameters()]

    def f(x, *values):
        return torch.func.functional_call(block, dict(zip(names, values, strict=True)), (x,))

    torch.autograd.gradcheck(f, leaves)


# --- as a module -----------------------------------------------------------------------------------------------------


def test_copies_compile_and_state_dict():
    make = partial(PeriLN, norm=partial(LayerNorm, dtype=torch.float64), dim=D, index=0, depth=1)
    block, x = scramble(make(branch())), draw(2, 3, D)
    other = make(branch(seed=1))
    other.load_state_dict(block.state_dict())
    clone, compiled = copy.deepcopy(block), copy.deepcopy(block)
    torch.compiler.reset()
    compiled.compile(backend="aot_eager", fullgraph=True)
    for what, same in (("state dict", other), ("deepcopy", clone), ("torch.compile", compiled)):
        assert_same_outcome(same, block, x, what)


def test_autocast_leaves_the_stream_in_float32():
    model = GPT(11, 8, 16, 2, heads=2, generator=seeded(), norm=RMSNorm, placement=PeriLN, after_embedding=RMSNorm)
    tokens = torch.randint(11, (2, 8), generator=seeded())
    exact = decoder.stream(model, tokens)
    with torch.autocast("cpu", torch.bfloat16):
        reduced = decoder.stream(model, tokens)
    for a, b in zip(reduced, exact, strict=True):
        assert a.dtype == torch.float32
        assert_near(a.detach(), b.detach(), rel=0.1)


def test_other_placements_are_the_kernels():
    assert PreLN is Pre and PostLN is Post


def test_in_a_vision_transformer():
    model = vit(8, 4, 8, 2, heads=2, classes=3, generator=seeded(), norm=LayerNorm, placement=PeriLN)
    assert sum(isinstance(m, PeriLN) for m in model.modules()) == 4
    assert model(draw(2, 3, 8, 8, dtype=torch.float32)).shape == (2, 3)


def test_seeds_in_one_batch():
    x, y = draw(32, 5, dtype=torch.float32), torch.arange(32) % 3
    models = [ResidualMLP(5, D, 2, 3, generator=seeded(s), norm=RMSNorm, placement=PeriLN) for s in (0, 1)]
    alone, settings = copy.deepcopy(models), {"steps": 5, "batch": 8, "lr": 0.01}
    together = fit_batched(models, (x, y), seeds=[0, 1], **settings)
    for seed, (model, history) in enumerate(zip(alone, together, strict=True)):
        want = fit(model, (x, y), seed=seed, **settings).train_loss
        assert history.train_loss == pytest.approx(want, rel=1e-4)


@pytest.mark.parametrize("norm", [nn.LayerNorm(D), "rmsnorm", None])
def test_norm_must_build_a_norm(norm):
    with pytest.raises(TypeError, match="write nn.LayerNorm"):
        PeriLN(nn.Identity(), norm, D, 0, 1)


@pytest.mark.parametrize("index, depth", [(-1, 2), (2, 2), (0, 0)])
def test_index_must_be_a_block(index, depth):
    with pytest.raises(ValueError, match="0 <= index < depth"):
        PeriLN(nn.Identity(), nn.LayerNorm, D, index, depth)
