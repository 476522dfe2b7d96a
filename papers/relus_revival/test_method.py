import copy
import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from repro.errors import ReproError
from repro.models.gpt import GPT, causal
from repro.models.vit import vit
from repro.papers.relus_revival import (
    LearnableLeakyReLU,
    attention_entropy,
    attention_weights,
    entropy_bands,
    norm_free_gpt,
    watch_attention,
)
from repro.papers.relus_revival.code_models import (
    POSITIONS,
    Code,
    QueryKeyBias,
    cross_entropy,
    encoder,
    load,
    network,
    read,
    windows,
)
from repro.testing import assert_near, assert_same_outcome, draw, hard_inputs

V, T, D, L, H = 11, 6, 8, 2, 2


@pytest.fixture(autouse=True)
def one_thread():
    """Small tensors: threads only wait for one another."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def tokens(batch=3, seed=1):
    return torch.randint(V, (batch, T), generator=seeded(seed))


def lively(model, seed=5):
    """Weights of usual size, so that attention is far from uniform; gains and biases that are not 1 and 0."""
    with torch.no_grad():
        for i, p in enumerate(model.double().parameters()):
            p.copy_((p.dim() == 1) + draw(*p.shape, seed=seed + i) / (p.shape[-1] ** 0.5 if p.dim() == 2 else 2))
    return model


make = partial(norm_free_gpt, V, T, D, L, heads=H)


# --- against the equations in NumPy and plain Python -----------------------------------------------------------------


def rotated(x):
    """Each pair (x_i, x_{i + n/2}) of position t by the angle t 10000^(-2i/n).  x: (T, n)."""
    t, n = x.shape
    out = x.copy()
    for pos in range(t):
        for i in range(n // 2):
            a, b, angle = x[pos, i], x[pos, i + n // 2], pos * 10_000.0 ** (-2 * i / n)
            out[pos, i] = a * math.cos(angle) - b * math.sin(angle)
            out[pos, i + n // 2] = a * math.sin(angle) + b * math.cos(angle)
    return out


def oracle(model, text, rotary):
    """Logits (B, T, V) and entropies E(l, h) of a decoder with ReLU and no norms in its blocks."""
    p = {name: t.detach().numpy() for name, t in model.state_dict().items()}
    logits, entropies = [], np.zeros((L, H))
    for row in text.tolist():
        x = p["embedding.weight"][row]
        x = x if rotary else x + p["positions.weight"][: len(row)]
        for layer in range(L):
            own, n = f"blocks.{layer}.", D // H
            q, k, v = np.split(x @ p[own + "attention.sublayer.qkv.weight"].T, 3, axis=1)
            heads = []
            for h in range(H):
                cut = slice(h * n, (h + 1) * n)
                qh, kh = (rotated(z[:, cut]) if rotary else z[:, cut] for z in (q, k))
                out = np.zeros((len(row), n))
                for i in range(len(row)):
                    scores = [float(qh[i] @ kh[j]) / math.sqrt(n) for j in range(i + 1)]
                    parts = [math.exp(s - max(scores)) for s in scores]
                    a = [part / math.fsum(parts) for part in parts]
                    out[i] = sum(w * v[j, cut] for j, w in enumerate(a))
                    entropies[layer, h] -= math.fsum(w * math.log(w) for w in a if w) / len(row) / len(text)
                heads.append(out)
            x = x + np.concatenate(heads, 1) @ p[own + "attention.sublayer.out.weight"].T
            hidden = np.maximum(x @ p[own + "feed_forward.sublayer.up.weight"].T, 0)
            x = x + hidden @ p[own + "feed_forward.sublayer.down.weight"].T
        centred = x - x.mean(1, keepdims=True)
        x = centred / np.sqrt((centred**2).mean(1, keepdims=True) + 1e-5) * p["norm.weight"] + p["norm.bias"]
        logits.append(x @ p["head.weight"].T)
    return torch.tensor(np.array(logits)), torch.tensor(entropies)


def check(build=make, probe=attention_entropy):
    for positions in ("rotary", "learned"):
        want = lively(make(generator=seeded(), positions=positions))
        model = build(generator=seeded(), positions=positions).double()
        model.load_state_dict(want.state_dict(), strict=False)
        logits, entropies = oracle(want, tokens(), positions == "rotary")
        rel = 1e-6 if positions == "rotary" else 1e-10  # the model keeps its cosines in float32
        assert_near(model(tokens()).detach(), logits, f"logits, {positions}", rel=rel)
        assert_near(probe(model, tokens()), entropies, f"entropies, {positions}", rel=rel)


def test_oracle():
    check()


class Parallel(nn.Module):
    """A block whose two sub-layers read the same stream."""

    def __init__(self, block):
        super().__init__()
        self.attention, self.feed_forward = block.attention, block.feed_forward

    def forward(self, x):
        return self.attention(x) + self.feed_forward(x) - x


def broken_model(fault):
    def build(**options):
        base = partial(GPT, V, T, D, L, heads=H, **options)
        model = {
            "norms in the blocks": lambda: base(placement="pre", act=nn.ReLU),
            "norms after the blocks' sums": lambda: base(placement="post", act=nn.ReLU),
            "no norm before the head": lambda: base(placement="none", act=nn.ReLU, final_norm=False),
            "root mean square before the head": lambda: base(placement="none", act=nn.ReLU, norm=nn.RMSNorm),
            "GELU": lambda: base(placement="none", act=nn.GELU),
            "squared ReLU": lambda: base(placement="none", act=lambda: Squared()),
            "norm of the embedding": lambda: base(placement="none", act=nn.ReLU, after_embedding=nn.LayerNorm),
            "norm of queries and keys": lambda: base(placement="none", act=nn.ReLU, qk_norm=nn.LayerNorm),
        }.get(fault, lambda: make(**options))()
        if fault == "sub-layers side by side":
            model.blocks = nn.ModuleList(map(Parallel, model.blocks))
        return model

    return build


class Squared(nn.Module):
    def forward(self, x):
        return x.relu().square()


@pytest.mark.parametrize(
    "fault",
    [
        "norms in the blocks",
        "norms after the blocks' sums",
        "no norm before the head",
        "root mean square before the head",
        "GELU",
        "squared ReLU",
        "norm of the embedding",
        "norm of queries and keys",
        "sub-layers side by side",
    ],
)
def test_mutant_model_dies(fault):
    with pytest.raises(AssertionError):
        check(build=broken_model(fault))


def broken_probe(fault):
    def rows(q, k):
        n = q.shape[-1]
        scores = q @ k.mT / (1 if fault == "scores not scaled" else n if fault == "scaled by K" else n**0.5)
        later = torch.ones(T, T, dtype=torch.bool).triu(0 if fault == "own key masked" else 1)
        if fault == "mask of -1":
            scores = scores - later.double()
        elif fault != "no mask":
            scores = scores.masked_fill(later, -1e300)
        a = scores.softmax(-2 if fault == "softmax over queries" else -1)
        if fault == "mean over heads":
            a = a.mean(1, keepdim=True).expand_as(a)
        if fault == "mean over sequences first":
            a = a.mean(0, keepdim=True)
        if fault == "large eps":
            return -(a * (a + 1e-3).log()).sum(-1)
        if fault == "bits":
            return -(a * a.clamp_min(1e-300).log2()).sum(-1)
        if fault == "Gini":
            return 1 - a.square().sum(-1)
        entropy = -(a * a.clamp_min(1e-300).log()).sum(-1)
        if fault == "mean over keys":
            return entropy / T
        if fault == "last query":
            return entropy[..., -1:]
        if fault == "without the first query":
            return entropy[..., 1:]
        return entropy / math.log(T) if fault == "over log T" else entropy

    def probe(model, text):
        found = {}
        with watch_attention(model, lambda layer, q, k: found.update({layer: rows(q, k).mean((0, -1))})):
            model(text)
        if fault == "layers reversed":
            found = {L - 1 - layer: row for layer, row in found.items()}
        return torch.stack([found[layer].detach() for layer in range(L)])

    return probe


def test_probe_by_hand():
    check(probe=broken_probe(None))


@pytest.mark.parametrize(
    "fault",
    [
        "scores not scaled",
        "scaled by K",
        "own key masked",
        "mask of -1",
        "no mask",
        "softmax over queries",
        "mean over heads",
        "mean over sequences first",
        "large eps",
        "bits",
        "Gini",
        "mean over keys",
        "last query",
        "without the first query",
        "over log T",
        "layers reversed",
    ],
)
def test_mutant_probe_dies(fault):
    with pytest.raises(AssertionError):
        check(probe=broken_probe(fault))


# --- against torch.nn ------------------------------------------------------------------------------------------------


def twin(block):
    """torch's encoder layer with the weights of a block, its norms taken out."""
    layer = nn.TransformerEncoderLayer(
        D, H, 4 * D, 0.0, F.relu, batch_first=True, norm_first=True, bias=False, dtype=torch.float64
    )
    layer.norm1 = layer.norm2 = nn.Identity()
    attention, feed_forward = block.attention.sublayer, block.feed_forward.sublayer
    with torch.no_grad():
        layer.self_attn.in_proj_weight.copy_(attention.qkv.weight)
        layer.self_attn.out_proj.weight.copy_(attention.out.weight)
        layer.linear1.weight.copy_(feed_forward.up.weight)
        layer.linear2.weight.copy_(feed_forward.down.weight)
    return layer


@pytest.mark.parametrize("training", [True, False])
def test_block_is_torchs_without_norms(training):
    block = lively(make(generator=seeded(), positions="learned")).blocks[0].train(training)
    layer = twin(block).train(training)
    mask = torch.ones(T, T, dtype=torch.bool).triu(1)
    for what, x in hard_inputs(2, T, D).items():
        if what in ("huge", "far", "spiked"):
            x = x.clamp(-1e3, 1e3)  # of scores far beyond float64's digits nothing is left to compare
        results = []
        for run, parameters in ((block, block.parameters()), (lambda x: layer(x, src_mask=mask), layer.parameters())):
            leaves = [x.clone().requires_grad_(), *parameters]
            y = run(leaves[0])
            results.append([y.detach(), *torch.autograd.grad(y, leaves, draw(*y.shape, seed=3))])
        for got, want in zip(*results, strict=True):
            assert_near(got, want, what, rel=1e-9, floor=1e-40)


def test_weights_are_torchs():
    block = lively(make(generator=seeded(), positions="learned")).blocks[0]
    x, found = draw(2, T, D), []
    with watch_attention(block, lambda layer, q, k: found.append(attention_weights(q, k))):
        block(x)
    mask = torch.ones(T, T, dtype=torch.bool).triu(1)
    _, want = twin(block).self_attn(x, x, x, attn_mask=mask, average_attn_weights=False)
    assert_near(found[0].detach(), want.detach(), rel=1e-12)
    entropy = torch.distributions.Categorical(probs=want.detach()).entropy().mean((0, -1))
    assert_near(torch.special.entr(found[0].detach()).sum(-1).mean((0, -1)), entropy, rel=1e-9)


@pytest.mark.parametrize("slope", [0.01, 0.25, -0.5, 0.0])
def test_leaky_relu_is_torchs(slope):
    ours, theirs = LearnableLeakyReLU(slope, dtype=torch.float64), nn.PReLU(1, slope, dtype=torch.float64)
    for what, x in hard_inputs(3, 4).items():
        assert_near(ours(x).detach(), F.leaky_relu(x, slope), what, rel=1e-12)
        leaves = x.clone().requires_grad_(), x.clone().requires_grad_()
        for module, leaf in zip((ours, theirs), leaves, strict=True):
            module(leaf).backward(draw(3, 4, seed=2))
        if what != "zero":  # at 0 the slope from the right is ours, from the left theirs
            assert_near(leaves[0].grad, leaves[1].grad, what, rel=1e-12)
        assert_near(ours.slope.grad, theirs.weight.grad, what, rel=1e-12)
        ours.zero_grad(), theirs.zero_grad()


# --- departures ------------------------------------------------------------------------------------------------------


def test_d1_no_biases():
    model = make(generator=seeded())
    assert [name for name, _ in model.named_parameters() if "bias" in name] == ["norm.bias"]
    q, k = draw(2, H, T, 4), draw(2, H, T, 4, seed=1)
    shift = draw(1, H, 1, 4, seed=2)  # that of the keys adds the same to every score of a row
    assert_near(attention_weights(q, k + shift), attention_weights(q, k), rel=1e-12)
    with pytest.raises(AssertionError):
        assert_near(attention_weights(q + shift, k), attention_weights(q, k), rel=1e-2)


def test_d2_positions_and_head():
    plain, gpt2 = make(generator=seeded()), make(generator=seeded(), positions="learned", tied=True)
    assert plain.positions is None and plain.blocks[0].attention.sublayer.cos is not None
    assert plain.head.weight is not plain.embedding.weight
    assert gpt2.positions.weight.shape == (T, D) and gpt2.head.weight is gpt2.embedding.weight


def test_d3_a_zero_weight_adds_nothing_and_a_nan_stays():
    model = lively(make(generator=seeded()))
    for block in model.blocks:
        block.attention.sublayer.qkv.weight.data[: 2 * D] *= 1e8
    assert torch.equal(attention_entropy(model, tokens()), torch.zeros(L, H, dtype=torch.float64))
    model.blocks[1].attention.sublayer.qkv.weight.data[0, 0] = math.nan
    assert attention_entropy(model, tokens())[1, 0].isnan()
    assert not attention_entropy(model, tokens())[0].isnan().any()


def test_d4_normalized_entropy():
    model = lively(make(generator=seeded()))
    found = []
    with watch_attention(model, lambda layer, q, k: found.append(torch.special.entr(attention_weights(q, k)).sum(-1))):
        model(tokens())
    want = torch.stack([(rows[..., 1:] / torch.arange(2, T + 1).double().log()).mean((0, -1)) for rows in found])
    assert_near(attention_entropy(model, tokens(), normalized=True), want.detach(), rel=1e-12)
    for block in model.blocks:
        block.attention.sublayer.qkv.weight.data[:D] = 0
    assert_near(attention_entropy(model, tokens(), normalized=True), torch.ones(L, H).double(), rel=1e-12)
    uniform = sum(math.log(i) for i in range(1, T + 1)) / T
    assert_near(attention_entropy(model, tokens()), torch.full((L, H), uniform, dtype=torch.float64), rel=1e-12)
    with pytest.raises(ValueError, match="at least 2 tokens"):
        attention_entropy(model, tokens()[:, :1], normalized=True)


# --- what follows from the equations ---------------------------------------------------------------------------------


@settings(deadline=None, max_examples=40, derandomize=True)
@given(st.integers(0, 10**6), st.floats(-12, 12), st.integers(1, 9))
def test_entropy_lies_between_one_key_and_all(seed, scale, t):
    q, k = 10**scale * draw(2, H, t, 4, seed=seed), draw(2, H, t, 4, seed=seed + 1)
    weights = attention_weights(q, k)
    assert_near(weights.sum(-1), torch.ones(2, H, t).double(), rel=1e-12)
    assert (weights.triu(1) == 0).all()
    entropy = torch.special.entr(weights).sum(-1)
    assert (entropy >= 0).all() and (entropy <= torch.arange(1, t + 1).double().log() + 1e-12).all()


@pytest.mark.parametrize(
    "act, equivariant", [(nn.ReLU, True), (LearnableLeakyReLU, True), (nn.GELU, False), (nn.SiLU, False)]
)
def test_feed_forward_scales_with_the_stream(act, equivariant):
    layer, x = lively(make(generator=seeded(), act=act)).blocks[0].feed_forward, draw(4, D)
    with torch.no_grad():
        error = max((layer(c * x) / c - layer(x)).abs().max() / layer(x).abs().max() for c in (1e-3, 1e3))
    assert error < 1e-12 if equivariant else error > 1e-2


def test_initial_values_do_not_depend_on_depth():
    for depth in (1, 12):
        model = norm_free_gpt(64, 8, 64, depth, heads=4, generator=seeded())
        for name, p in model.named_parameters():
            if p.dim() == 1:
                assert torch.equal(p, torch.full_like(p, float(name.endswith("weight")))), name
            else:
                assert float(p.detach().std()) == pytest.approx(0.02, rel=0.06), name
    assert float(make(generator=seeded(), embedding_std=1.0).embedding.weight.detach().std()) == pytest.approx(
        1, rel=0.2
    )


@pytest.mark.parametrize("shape", [(2, 3), (12,), (1, 1)])
def test_bands(shape):
    entropy = torch.arange(1, math.prod(shape) + 1).double().view(shape)
    want = [0.0] * 4
    for e in entropy.flatten().tolist():
        want[min(int(4 * e / entropy.numel()), 3)] += 1 / entropy.numel()
    assert_near(entropy_bands(entropy), torch.tensor(want, dtype=torch.float64), rel=1e-12)


def test_bands_by_hand():
    edges = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0])  # each band holds its lower end, the last both
    assert entropy_bands(edges).tolist() == [0.2, 0.2, 0.2, 0.4]
    assert entropy_bands(edges, maximum=8.0).tolist() == [0.4, 0.4, 0.2, 0.0]
    assert entropy_bands(torch.full((3,), 2.5)).tolist() == [0, 0, 0, 1]


def broken_bands(fault, entropy, maximum=None):
    top = math.log(T) if fault == "max is log T" else float(entropy.max()) if maximum is None else maximum
    edges = [-1e-9, top / 4, top / 2, 3 * top / 4, top]
    if fault == "thirds":
        edges = [-1e-9, top / 3, 2 * top / 3, 2 * top / 3, top]
    if fault == "quantiles":
        edges = [-1e-9, *torch.quantile(entropy.double(), torch.tensor([0.25, 0.5, 0.75]).double()).tolist(), top]
    if fault == "upper ends":
        inside = [(entropy > a) & (entropy <= b) for a, b in zip(edges, edges[1:], strict=False)]
    else:
        inside = [(entropy >= a) & (entropy < b) for a, b in zip(edges[:4], [*edges[1:4], top + 1], strict=True)]
    return torch.stack([i.double().mean() for i in (reversed(inside) if fault == "reversed" else inside)])


@pytest.mark.parametrize("fault", [None, "max is log T", "thirds", "quantiles", "upper ends", "reversed"])
def test_mutant_bands_die(fault):
    entropy = torch.tensor([0.0, 0.1, 1.0, 1.2, 3.0, 4.0, 3.5, 2.0])
    if fault is None:
        assert_near(broken_bands(fault, entropy), entropy_bands(entropy))
    else:
        with pytest.raises(AssertionError):
            assert_near(broken_bands(fault, entropy), entropy_bands(entropy))


# --- the probe leaves the model alone --------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
def test_probe_changes_nothing(training):
    model = lively(make(generator=seeded())).train(training)
    before, state = model(tokens()), copy.deepcopy(model.state_dict())
    seen = []
    with watch_attention(model, lambda layer, q, k: seen.append((layer, q.shape, k.shape))):
        assert torch.equal(model(tokens()), before)
    assert seen == [(layer, (3, H, T, D // H), (3, H, T, D // H)) for layer in range(L)]
    attention_entropy(model, tokens())
    assert model.training is training and torch.equal(model(tokens()), before)
    assert all(torch.equal(a, b) for a, b in zip(state.values(), model.state_dict().values(), strict=True))
    with pytest.raises(RuntimeError, match="stop"), watch_attention(model, lambda layer, q, k: 1 / 0):
        raise RuntimeError("stop")
    assert all(block.attention.sublayer.attend is causal for block in model.blocks)


def test_probe_in_batches():
    model, text = lively(make(generator=seeded())), tokens(7)
    assert_near(attention_entropy(model, text, batch=3), attention_entropy(model, text), rel=1e-12)
    assert_near(attention_entropy(model, text[:, :4]), attention_entropy(model, text[:, :4], batch=1), rel=1e-12)


def test_probe_reads_dropout_free_and_half_precision():
    model = GPT(V, T, D, L, heads=H, generator=seeded(), dropout=0.5)
    assert torch.equal(attention_entropy(model, tokens()), attention_entropy(model, tokens()))
    exact = attention_entropy(lively(model), tokens())
    with torch.autocast("cpu", torch.bfloat16):
        assert_near(attention_entropy(model.float(), tokens()), exact, rel=0.05)
    q, k = draw(1, 1, T, 4), draw(1, 1, T, 4, seed=1)
    assert attention_weights(q.bfloat16(), k.bfloat16()).dtype == torch.float32


def test_probe_refuses_what_it_cannot_read():
    with pytest.raises(ValueError, match="attend=causal"):
        attention_entropy(GPT(V, T, D, L, heads=H, generator=seeded(), attend=lambda q, k, v: v), tokens())
    with pytest.raises(ValueError, match="write a GPT"):
        attention_entropy(nn.Linear(2, 2), tokens())
    image = vit(8, 4, 8, 1, heads=2, classes=3, generator=seeded())  # its attention is bidirectional
    with pytest.raises(ValueError, match="causal"), watch_attention(image, print):
        pass


@pytest.mark.parametrize(
    "entropy, maximum", [([1.0, 2.0], 1.5), ([0.0, 0.0], None), ([-1.0, 1.0], None), ([math.nan, 1.0], None)]
)
def test_bands_refuse(entropy, maximum):
    with pytest.raises(ValueError, match="from 0 to maximum"):
        entropy_bands(torch.tensor(entropy), maximum)


@pytest.mark.parametrize("options, message", [({"heads": 3}, "heads=3"), ({"positions": "alibi"}, "alibi")])
def test_model_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        norm_free_gpt(V, T, D, L, generator=seeded(), **{"heads": H, **options})


@pytest.mark.parametrize("slope", [math.inf, math.nan])
def test_slope_must_be_finite(slope):
    with pytest.raises(ValueError, match="finite number"):
        LearnableLeakyReLU(slope)


# --- as modules ------------------------------------------------------------------------------------------------------


def test_gradcheck():
    torch.autograd.gradcheck(attention_weights, [draw(1, 2, 3, 4, seed=s).requires_grad_() for s in (0, 1)])
    layer, x = LearnableLeakyReLU(0.3, dtype=torch.float64), draw(3, 4).requires_grad_()
    torch.autograd.gradcheck(
        lambda x, slope: torch.func.functional_call(layer, {"slope": slope}, (x,)), (x, layer.slope)
    )


def test_slopes_of_their_own_and_shared():
    own = make(generator=seeded(), act=partial(LearnableLeakyReLU, 0.25))
    one = LearnableLeakyReLU(0.25)
    shared = make(generator=seeded(), act=lambda: one)
    assert [sum("slope" in name for name, _ in m.named_parameters()) for m in (own, shared)] == [L, 1]
    assert torch.equal(own(tokens()), shared(tokens()))
    own(tokens()).sum().backward()
    assert all(block.feed_forward.sublayer.act.slope.grad is not None for block in own.blocks)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_leaky_relu_dtypes_copies_and_compile(dtype):
    layer, x = LearnableLeakyReLU(0.25), draw(3, 4)
    assert layer(x.to(dtype)).dtype == dtype
    with torch.autocast("cpu", dtype):
        assert torch.equal(layer(x.to(dtype)), layer(x.to(dtype)))
    assert "slope=0.25" in repr(layer) and LearnableLeakyReLU(device="meta").slope.is_meta
    exact = LearnableLeakyReLU(0.25, dtype=torch.float64)
    clone, loaded, compiled = copy.deepcopy(exact), LearnableLeakyReLU(dtype=torch.float64), copy.deepcopy(exact)
    loaded.load_state_dict(exact.state_dict())
    torch.compiler.reset()
    compiled.compile(backend="aot_eager", fullgraph=True)
    for what, same in (("deepcopy", clone), ("state dict", loaded), ("torch.compile", compiled)):
        assert_same_outcome(same, exact, x, what)


def test_model_copies_compiles_and_autocasts():
    model = lively(make(generator=seeded()))
    want = model(tokens()).detach()
    loaded = make(generator=seeded(9)).double()
    loaded.load_state_dict(model.state_dict())
    compiled = copy.deepcopy(model)
    torch.compiler.reset()
    compiled.compile(backend="aot_eager", fullgraph=True)
    for same in (copy.deepcopy(model), loaded, compiled):
        assert_near(same(tokens()).detach(), want, rel=1e-10)
    with torch.autocast("cpu", torch.bfloat16):
        assert_near(model.float()(tokens()).detach().double(), want, rel=0.1)


# --- the profile paper -----------------------------------------------------------------------------------------------


def code(**options):
    sizes = {"every": 2, "held_out": 3, "width": D, "depth": L, "heads": H, "context": T, "batch": 4, "steps": 1}
    recipe = {"lr": 0.001, "warmup": 0.05, "clip": 1.0, "weight_decay": 0.1, "dropout": 0.1}
    return Code(**{**sizes, **recipe, **options})


@pytest.mark.parametrize("arm, size", [("relu", 124_141_056), ("ln_gelu", 124_177_920)])
def test_code_model_has_the_authors_size(arm, size):
    """Embeddings of 50,000 tokens and 1,024 positions, tied head, 12 blocks, biases of queries and keys, last norm."""
    with torch.device("meta"):
        model = network(arm, 0, code(width=768, depth=12, heads=12, context=128))
    assert sum(p.numel() for p in model.parameters()) == size
    assert 50_000 * 768 + POSITIONS * 768 + 12 * (12 * 768**2 + 2 * 768) + 2 * 768 == 124_141_056


def test_code_model_drops_embedded_tokens_alone():
    model = network("ln_relu", 0, code(data="shakespeare"))
    assert {name: m.p for name, m in model.named_modules() if isinstance(m, nn.Dropout) and m.p} == {"dropout": 0.1}
    assert model.head.weight is model.embedding.weight and isinstance(
        model.blocks[0].feed_forward.sublayer.act, nn.ReLU
    )
    assert isinstance(model.blocks[0].attention.norm, nn.LayerNorm)
    assert not hasattr(network("relu", 0, code(data="shakespeare")).blocks[0].attention, "norm")


def test_queries_and_keys_have_a_bias_and_values_none():
    layer = QueryKeyBias(nn.Linear(D, 3 * D, bias=False, dtype=torch.float64))
    nn.init.normal_(layer.bias, generator=seeded())
    x, (q, k, v) = draw(2, T, D), layer.qkv.weight.detach().split(D)
    want = [x @ q.T + layer.bias[:D].detach(), x @ k.T + layer.bias[D:].detach(), x @ v.T]
    assert_near(layer(x).detach(), torch.cat(want, -1), rel=1e-12)
    layer(x).sum().backward()
    assert (layer.bias.grad == 2 * T).all()


def test_loss_in_parts_is_the_loss():
    logits, target = draw(5, 7, V), torch.randint(V, (5, 7), generator=seeded(), dtype=torch.int32)
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    a, b = cross_entropy(ours, target), F.cross_entropy(theirs.flatten(0, 1), target.flatten().long())
    a.backward(), b.backward()
    assert_near(a.detach(), b.detach().float(), rel=1e-6)
    assert_near(ours.grad, theirs.grad, rel=1e-5)


def test_windows_stay_within_a_file():
    texts = ["abcdefg", "hi", "", "jklmno"]
    found = windows(iter(texts), lambda some: [[ord(c) for c in text] for text in some], 3)
    assert ["".join(map(chr, row)) for row in found.tolist()] == ["abc", "def", "jkl", "mno"]
    assert found.dtype == torch.int32 and windows([], list, 3).shape == (0, 3)


def test_every_second_file_trains_and_the_first_held_out_ones_are_scored(monkeypatch):
    where = "repro.papers.relus_revival.code_models."
    sets = {"train": "abcdef", "valid": "uvwxyz"}
    monkeypatch.setattr(where + "files", lambda split: (c * T for c in sets[split]))
    monkeypatch.setattr(where + "encoder", lambda: lambda texts: [[ord(c) for c in text] for text in texts])
    read.cache_clear()
    train, valid = load(code(), torch.device("cpu"))
    read.cache_clear()
    assert ["".join(map(chr, part[:, 0].tolist())) for part in (train, valid)] == ["ace", "uvw"]
    assert train.shape == (3, T) and load(code(), torch.device("meta"))[0].is_meta


def test_tokenizer_from_a_file(monkeypatch, tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    monkeypatch.setattr("repro.papers.relus_revival.code_models.cache_root", lambda: tmp_path)
    (tmp_path / "codeparrot-ds").mkdir()
    file = tmp_path / "codeparrot-ds" / "tokenizer.json"
    file.write_text("{}")
    with pytest.raises(ReproError, match=r"put its tokenizer.json at"):
        encoder()
    words = {"def": 0, "return": 1, "?": 2, "<s>": 3}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="?"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 3)])
    made.save(str(file))
    assert encoder()(["def f", "return"]) == [[0, 2], [1]]  # no special token is added
