import copy
import math
from functools import partial
from itertools import permutations

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import nn

from repro.experiments.byte_decoder import ARMS, ByteDecoder, build
from repro.papers.mhc_lite import MHC, ExpandStreams, MHCLite, SumStreams, mix_permutations, sinkhorn
from repro.papers.mhc_lite.experiment import Uniform
from repro.papers.rmsnorm import RMSNorm
from repro.testing import assert_near, draw, mutation, scramble

D, N = 3, 3
PERMUTATIONS = list(permutations(range(N)))


class Branch(nn.Module):
    def forward(self, x, mask=None, *, shift=0.0):
        return (x.tanh() if mask is None else x.tanh() * mask) + shift


def made(kind, index=1, **options):
    layer = kind(Branch(), lambda n: nn.Identity(), D, index, 4, streams=N, **options).double()
    scramble(layer)
    for i, p in enumerate(layer.parameters()):
        p.data = p.data * draw(*p.shape, seed=i).sign()
    layer.a_res.data = layer.a_res.data * 3
    if isinstance(layer, MHCLite):
        layer.table = torch.eye(N, dtype=torch.float64)[torch.tensor(PERMUTATIONS)]  # scrambled, a buffer
    return layer


# --- against the equations in Python floats --------------------------------------------------------------------------


def sigmoid(a):
    return 1 / (1 + math.exp(-a))


def sinkhorn_in_floats(h, rounds):
    h = [[math.exp(v) for v in row] for row in h]
    for _ in range(rounds):
        columns = [math.fsum(row[j] for row in h) for j in range(N)]
        h = [[v / c for v, c in zip(row, columns, strict=True)] for row in h]
        h = [[v / math.fsum(row) for v in row] for row in h]
    return h


def oracle(layer, kind, x):
    """One token, x: n lists of dim."""
    p = {name: t.tolist() for name, t in layer.named_parameters()}
    flat = [v for stream in x for v in stream]
    size = math.sqrt(math.fsum(v * v for v in flat))
    v = [a / size * math.sqrt(len(flat)) * (1 + g) for a, g in zip(flat, p["gamma"], strict=True)]

    def logits(name):
        s, a, bias = p[f"s_{name}"][0], p[f"A_{name}"], p[f"a_{name}"]
        return [s * math.fsum(u * row[j] for u, row in zip(v, a, strict=True)) + bias[j] for j in range(len(bias))]

    pre, post = [sigmoid(a) for a in logits("pre")], [2 * sigmoid(a) for a in logits("post")]
    if kind == "mhc":
        flat_h = logits("res")
        h = sinkhorn_in_floats([flat_h[i * N : i * N + N] for i in range(N)], 20)
    else:
        weights = [math.exp(a) for a in logits("res")]
        h = [[0.0] * N for _ in range(N)]
        for weight, order in zip(weights, PERMUTATIONS, strict=True):
            for s, t in enumerate(order):
                h[s][t] += weight / math.fsum(weights)
    y = [math.tanh(math.fsum(w * stream[c] for w, stream in zip(pre, x, strict=True))) for c in range(D)]
    return [[math.fsum(h[s][t] * x[s][c] for s in range(N)) + post[t] * y[c] for c in range(D)] for t in range(N)]


def check(run):
    """`run(kind, layer, x)` for both kinds, on tokens of several sizes."""
    for kind, place in (("mhc", MHC), ("lite", MHCLite)):
        layer = made(place)
        for size in (1.0, 1e-3, 1e3):
            x = size * (0.5 + draw(4, N, D))
            want = torch.tensor([oracle(layer, kind, token) for token in x.tolist()], dtype=torch.float64)
            assert_near(run(kind, layer, x).detach(), want, f"{kind}, {size}", rel=1e-9)


def ours(kind, layer, x):
    return layer(x)


def broken(fault):
    def run(kind, layer, x):
        v = x.flatten(-2)
        if fault == "normalised per stream":
            v = (nn.functional.normalize(x, dim=-1) * math.sqrt(D)).flatten(-2) * (1 + layer.gamma)
        else:
            v = nn.functional.normalize(v, dim=-1) * math.sqrt(N * D)
            v = v * (layer.gamma if fault == "gain without 1" else 1 + layer.gamma)
        pre = (layer.s_pre * (v @ layer.A_pre) + layer.a_pre).sigmoid()
        post = 2 * (layer.s_post * (v @ layer.A_post) + layer.a_post).sigmoid()
        logits = layer.s_res * (v @ layer.A_res) + layer.a_res
        match fault:
            case "softmax over the streams":
                pre = pre / pre.sum(-1, keepdim=True)
            case "post not doubled":
                post = post / 2
            case "scale left out":
                logits = v @ layer.A_res + layer.a_res
        if kind == "lite":
            table = layer.table
            if fault == "transpositions only":
                keep = [sum(i != j for i, j in enumerate(order)) < 3 for order in PERMUTATIONS]
                table, logits = table[keep], logits[..., keep]
            h = (logits.softmax(-1) @ table.flatten(1)).unflatten(-1, (N, N))
        else:
            h = logits.unflatten(-1, (N, N))
            if fault == "rows alone":
                h = h.softmax(-1)
            elif fault == "rows first":
                h = sinkhorn(h.mT).mT
            else:
                h = sinkhorn(h, 1 if fault == "one round" else 20)
        mixed = (h if fault == "streams transposed" else h.mT) @ x
        y = layer.sublayer((pre[..., None] * x).sum(-2))
        return mixed + (1 if fault == "post left out" else post[..., None]) * y[..., None, :]

    return run


test_oracle, test_mutant_dies = mutation(check, broken, ours)


# --- doubly stochastic -----------------------------------------------------------------------------------------------


def test_lite_is_doubly_stochastic_and_sinkhorn_nearly():
    layer = MHCLite(nn.Identity(), RMSNorm, 1, 0, 1)
    for deviation in (1.0, 16.0):
        h = mix_permutations(deviation * draw(1000, 24), layer.table.double())
        assert_near(h.sum(-2), torch.ones(1000, 4).double(), rel=1e-13)
        assert_near(h.sum(-1), torch.ones(1000, 4).double(), rel=1e-13)
        assert (h >= 0).all()
    h = sinkhorn(16 * draw(1000, 4, 4, seed=1))
    assert_near(h.sum(-1), torch.ones(1000, 4).double(), rel=1e-12)
    assert (h.sum(-2) - 1).abs().max() > 0.1


def test_every_vertex_is_reached():
    """Birkhoff: each permutation matrix is a mixture, and the best assignment under a mixture is one of them."""
    layer = MHCLite(nn.Identity(), RMSNorm, 1, 0, 1)
    assert len({tuple(p.flatten().tolist()) for p in layer.table}) == 24 and torch.equal(layer.table[0], torch.eye(4))
    h = mix_permutations(40.0 * torch.eye(24, dtype=torch.float64), layer.table.double())
    for one, want in zip(h, layer.table, strict=True):
        rows, columns = linear_sum_assignment(-one.numpy())
        assert want[rows, columns].all() and (one - want).abs().max() < 1e-14


def test_sinkhorn_of_a_degenerate_matrix():
    a = math.log(1e-13)
    sums = sinkhorn(torch.tensor([[0, a, a], [0, a, a], [a, 0, 0]], dtype=torch.float64)).sum(0)
    assert_near(sums, torch.tensor([1.82, 0.59, 0.59], dtype=torch.float64), rel=1e-3)
    assert sinkhorn(1e4 * draw(3, 4, 4)).isfinite().all()  # in logarithms nothing overflows


# --- departures and the start ----------------------------------------------------------------------------------------


def test_d1_first_stream():
    for index in range(6):
        layer = MHCLite(nn.Identity(), RMSNorm, D, index, 6)
        for bias in (layer.a_pre, layer.a_post):
            assert bias.argmax() == index % 4 and sorted(bias.tolist()) == [-1, -1, -1, 1]


def test_d2_scales_have_an_axis():
    layer = MHC(nn.Identity(), RMSNorm, D, 0, 1)
    for name in ("s_pre", "s_post", "s_res"):
        assert layer.get_parameter(name).shape == (1,) and layer.get_parameter(name).item() == pytest.approx(0.01)


def test_start():
    x = draw(5, 4, D)
    for kind, size in ((MHC, 16), (MHCLite, 24)):
        layer = kind(nn.Identity(), RMSNorm, D, 2, 4).double()
        assert not any(layer.get_parameter(f"A_{name}").any() for name in ("pre", "post", "res"))
        assert layer.A_res.shape == (4 * D, size) and not layer.gamma.any()
        pre, post, res = layer.mixing(x)
        assert_near(pre[0].detach(), torch.tensor([sigmoid(2 * (i == 2) - 1.0) for i in range(4)]).double(), rel=1e-6)
        assert_near(post.detach(), 2 * pre.detach(), rel=1e-12)
        assert (res.diagonal(dim1=-2, dim2=-1) > 0.99).all()
    p = 1 / (1 + 23 * math.exp(-8))
    assert p == pytest.approx(0.9923, abs=1e-4) and layer.a_res.softmax(0)[0].item() == pytest.approx(p)


# --- as modules ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [MHC, MHCLite])
def test_as_a_module(kind):
    layer, x = made(kind), draw(2, 4, N, D)
    want = layer(x).detach()
    fresh = kind(Branch(), lambda n: nn.Identity(), D, 1, 4, streams=N).double()
    fresh.load_state_dict(layer.state_dict())
    assert_near(fresh.eval()(x).detach(), want, rel=1e-12)
    assert torch.equal(copy.deepcopy(layer)(x), layer(x))
    assert not torch.equal(layer(x, torch.zeros(D).double()), layer(x)) and not torch.equal(
        layer(x, shift=1.0), layer(x)
    )
    assert layer.bfloat16()(x.bfloat16()).dtype == torch.bfloat16
    if kind is MHCLite:
        compiled = copy.deepcopy(fresh)
        torch.compiler.reset()
        compiled.compile(backend="eager", fullgraph=True)
        assert_near(compiled(x).detach(), want, rel=1e-9)
    with torch.autocast("cpu", torch.bfloat16):
        assert fresh.float()(x.float()).isfinite().all()
    with pytest.raises(ValueError, match="write ExpandStreams first"):
        layer(x[..., 0, :])


def test_streams():
    x = draw(2, 5, D)
    streams = ExpandStreams(D, streams=N)(x)
    assert streams.shape == (2, 5, N, D) and all(torch.equal(streams[..., i, :], x) for i in range(N))
    norm = RMSNorm(D).double()
    assert_near(SumStreams(norm)(streams).detach(), N * norm(x).detach(), rel=1e-12)


def test_one_stream_is_a_residual_connection():
    """n = 1: H_res = 1, and what is left is x + H_post f(H_pre x)."""
    for kind in (MHC, MHCLite):
        layer, x = kind(Branch(), lambda n: nn.Identity(), D, 0, 1, streams=1).double(), draw(4, 1, D)
        layer.a_pre.data[:], layer.a_post.data[:] = 40.0, 0.0
        assert_near(layer(x).detach(), x + x.tanh(), rel=1e-12)


def test_in_the_decoder():
    config = ByteDecoder(width=16, depth=2, heads=2, context=8, batch=2, steps=1, lr=0.1, windows=2, eval_every=1)
    tokens = torch.arange(16).view(2, 8)
    for arm in ("mhc", "mhc_lite", "mhc_uniform", "mhc_cold"):
        model = build(ARMS[arm], 0, config, 256, torch.device("cpu"))
        changed = tokens.clone()
        changed[0, -1] = 200
        assert torch.equal(model(tokens)[0, :-1], model(changed)[0, :-1])  # causal
        model(tokens).sum().backward()
        unused = {"A_res", "a_res", "s_res"} if arm == "mhc_uniform" else set()
        assert all(p.grad is not None for n, p in model.named_parameters() if n.rpartition(".")[2] not in unused)
    x = draw(3, 4, 16, dtype=torch.float32)
    _, _, h = Uniform(nn.Identity(), RMSNorm, 16, 0, 1).mixing(x)
    assert_near(h, torch.full((3, 4, 4), 0.25))


def test_sinkhorn_rounds_are_an_option():
    logits = 3 * draw(4, N * N)
    few, many = (made(partial(MHC, iterations=rounds)).residual(logits) for rounds in (1, 500))
    assert (few.sum(-2) - 1).abs().max() > 1e-2 and (many.sum(-2) - 1).abs().max() < 1e-9
