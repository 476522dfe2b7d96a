import copy
import math
from functools import partial

import pytest
import torch
from torch import nn

from repro.experiments.byte_decoder import ARMS, ByteDecoder, build, decayed
from repro.models.gpt import GPT
from repro.models.mlp import ResidualMLP
from repro.papers.laurel import LaurelLR, LaurelPA, LaurelRW, LaurelRWLR, ReadHistory, StartHistory
from repro.papers.rmsnorm import RMSNorm
from repro.testing import assert_near, check_drop_in, draw, mutation, scramble

D, K, RANK = 6, 3, 2
LR, RWLR = partial(LaurelLR, rank=RANK), partial(LaurelRWLR, rank=RANK)
PA, PALR = partial(LaurelPA, k=K), partial(LaurelPA, k=K, rank=RANK)


class Halve(nn.Module):
    """A norm and a sub-layer at once: easy to write out."""

    def forward(self, x):
        return x.tanh() / 2


def made(placement):
    layer = scramble(placement(Halve(), lambda n: nn.Identity(), D, 0, 4), seed=3).double()
    for name, p in layer.named_parameters():
        p.data = p.data * (draw(*p.shape, seed=len(name)).sign() if p.dim() else 1)
    return layer


# --- against the equations in Python floats --------------------------------------------------------------------------


def product(matrix, x):
    return [math.fsum(a * b for a, b in zip(row, x, strict=True)) for row in matrix]


def oracle(layer, kind, history):
    """One token; history: its activations, the newest first."""
    x, p = history[0], {name: t.tolist() for name, t in layer.named_parameters()}
    f = [math.tanh(v) / 2 for v in x]
    low = [0.0] * D
    if "low_rank.A" in p:
        low = product(p["low_rank.B"], product(p["low_rank.A"], x))
    alpha = beta = 1.0
    if "weights" in p:
        a, b = (math.exp(w) for w in p["weights"])
        alpha, beta = 2 * a / (a + b), 2 * b / (a + b)
    if kind in ("rw", "rw_lr", "lr"):
        return [alpha * u + beta * (v + w) for u, v, w in zip(f, x, low, strict=True)]
    y = [u + v for u, v in zip(f, x, strict=True)]
    for gamma, old in zip(p["gamma"], history, strict=True):
        if kind == "pa_lr":
            old = product(p["low_rank.B"], product(p["low_rank.A"], old))
        y = [u + gamma * v for u, v in zip(y, old, strict=True)]
    return y


KINDS = {"rw": LaurelRW, "lr": LR, "rw_lr": RWLR, "pa": PA, "pa_lr": PALR}


def check(run):
    """`run(kind, layer, x)` for every kind: x (4, K, D) the activations of four tokens, or their newest, (4, D)."""
    for kind, placement in KINDS.items():
        layer, history = made(placement), 1 + draw(4, K, D, seed=1)
        past = kind.startswith("pa")
        y = run(kind, layer, history if past else history[:, 0]).detach()
        want = torch.tensor([oracle(layer, kind, token) for token in history.tolist()], dtype=torch.float64)
        assert_near(y[:, 0] if past else y, want, kind, rel=1e-10)
        if past:
            assert torch.equal(y[:, 1:], history[:, :-1]), "the history is not moved on"


def ours(kind, layer, x):
    return layer(x)


def broken(fault):
    def run(kind, layer, x):
        f = Halve()
        if kind in ("rw", "rw_lr"):
            alpha, beta = 2 * layer.weights.softmax(0)
            match fault:
                case "softmax":
                    alpha, beta = layer.weights.softmax(0)
                case "sigmoids":
                    alpha, beta = 2 * layer.weights.sigmoid()
                case "exchanged":
                    alpha, beta = beta, alpha
                case "beta left out":
                    beta = 1.0
                case "alpha left out":
                    alpha = 1.0
            skip = x
            if kind == "rw_lr":
                skip = layer.low_rank(x) + (0 if fault == "no identity" else x)
                if fault == "low rank not weighted":
                    return alpha * f(x) + beta * x + layer.low_rank(x)
            return alpha * f(x) + beta * skip
        if kind == "lr":
            if fault == "low rank of the branch":
                return f(x) + x + layer.low_rank(f(x))
            if fault == "A and B exchanged":
                return f(x) + x + x @ layer.low_rank.B @ layer.low_rank.A
            return f(x) + x + layer.low_rank(x)
        gamma = layer.gamma.roll(1) if fault == "index shifted by one" else layer.gamma
        past = layer.low_rank((gamma[:, None] * x).sum(1))
        if fault == "past alone":
            past = layer.low_rank((gamma[1:, None] * x[:, 1:]).sum(1))
        y = f(x[:, 0]) + x[:, 0] + past
        if fault == "oldest kept":
            return torch.cat([y[:, None], x[:, :1], x[:, 2:]], 1)
        return torch.cat([y[:, None], x[:, :-1]], 1)

    return run


test_oracle, test_mutant_dies = mutation(check, broken, ours)


@pytest.mark.parametrize("kind", [LaurelRW, LaurelLR, LaurelRWLR])
def test_drop_in(kind):
    check_drop_in(kind, "placement", but=("compilation", "export", "onnx"))  # tests/test_drop_in.py walks these too


# --- the start -------------------------------------------------------------------------------------------------------


def gpt(placement="pre", history=False):
    return GPT(
        11, 5, D, 3, heads=3, placement=placement, norm={"attention": RMSNorm, "feed_forward": RMSNorm,
        "final": (lambda n: ReadHistory(RMSNorm(n))) if history else RMSNorm},
        after_embedding=partial(StartHistory, k=K) if history else lambda n: nn.Identity(),
        std=0.3, generator=torch.Generator().manual_seed(0),
    ).double()  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
def test_starts_as_the_plain_network(name):
    tokens = torch.arange(10).view(2, 5)
    model = gpt(KINDS[name], name.startswith("pa"))
    assert torch.equal(model(tokens), gpt()(tokens))
    extra = sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in gpt().parameters())
    assert (
        extra == 6 * {"rw": 2, "lr": 2 * RANK * D, "rw_lr": 2 + 2 * RANK * D, "pa": K, "pa_lr": K + 2 * RANK * D}[name]
    )
    model(tokens).square().sum().backward()
    for key, p in model.named_parameters():  # what is not 0 by symmetry can leave the start
        assert p.grad is not None and (p.grad.any() or "low_rank.A" in key or "gamma" in key or "weights" in key), key


def test_column_orthogonal():
    layer = LaurelLR(Halve(), nn.Identity, 8, 0, 1, rank=3)
    want = [[(i % 3 == j) / math.sqrt(24) for i in range(8)] for j in range(3)]
    assert_near(layer.low_rank.A.detach(), torch.tensor(want), rel=1e-6)
    assert not layer.low_rank.B.any()


# --- departures ------------------------------------------------------------------------------------------------------


def test_d1_weights_are_bounded():
    layer = LaurelRW(Halve(), lambda n: nn.Identity(), D, 0, 1).double()
    x = draw(3, D)
    assert torch.equal(layer(x), x.tanh() / 2 + x)
    for w, (alpha, beta) in {(50.0, -50.0): (2.0, 0.0), (-50.0, 50.0): (0.0, 2.0)}.items():
        layer.weights.data = torch.tensor(w, dtype=torch.float64)
        assert_near(layer(x).detach(), alpha * x.tanh() / 2 + beta * x, rel=1e-12)


def test_d2_one_for_each_residual_connection():
    model = gpt(LaurelRW)
    weights = [name for name, _ in model.named_parameters() if name.endswith(".weights")]
    assert len(weights) == 6 and {name.split(".")[2] for name in weights} == {"attention", "feed_forward"}


def test_d3_gamma():
    assert not made_fresh(PA).gamma.any() and (made_fresh(PALR).gamma == 1).all()
    layer = made_fresh(PALR).double()
    layer(draw(2, K, D)).sum().backward()
    assert layer.low_rank.B.grad.any()


def made_fresh(placement):
    return placement(Halve(), lambda n: nn.Identity(), D, 0, 1)


def test_d4_history_starts_at_zero():
    x = draw(2, D)
    history = StartHistory(D, k=K)(x)
    assert history.shape == (2, K, D) and torch.equal(history[:, 0], x) and not history[:, 1:].any()
    assert torch.equal(ReadHistory(nn.Identity())(history), x)
    assert torch.equal(StartHistory(D, k=1)(x)[:, 0], x)


# --- as modules ------------------------------------------------------------------------------------------------------


def test_history_through_a_network():
    """Three blocks written out: each sees the outputs of those before."""
    blocks = [made(PA) for _ in range(3)]
    x = draw(2, D)
    state, seen = StartHistory(D, k=K)(x), [torch.zeros_like(x)] * K + [x]
    for block in blocks:
        state = block(state)
        past = sum(g * old for g, old in zip(block.gamma, reversed(seen), strict=False))
        seen.append(seen[-1].tanh() / 2 + seen[-1] + past)
    assert_near(state[:, 0].detach(), seen[-1].detach(), rel=1e-12)


@pytest.mark.parametrize("placement", [LaurelRW, RWLR])
def test_in_an_mlp(placement):
    model = ResidualMLP(5, D, 3, 4, generator=torch.Generator().manual_seed(0), placement=placement).double()
    plain = ResidualMLP(5, D, 3, 4, generator=torch.Generator().manual_seed(0), placement="pre").double()
    x = draw(3, 5)
    assert torch.equal(model.rows(x), plain.rows(x))
    assert torch.equal(copy.deepcopy(model).eval().rows(x), model.rows(x))


def test_weights_do_not_decay():
    config = ByteDecoder(width=16, depth=2, heads=2, context=8, batch=2, steps=1, lr=0.1, windows=2, eval_every=1)
    for arm in ("laurel_rw", "laurel_pa", "laurel_rw_half"):
        matrices, vectors = decayed(build(ARMS[arm], 0, config, 256, torch.device("cpu")), 0.1)
        assert matrices["weight_decay"] == 0.1 and vectors["weight_decay"] == 0
        assert all(p.dim() == 1 for p in vectors["params"]) and len(vectors["params"]) == 4 + 4 + 1


def test_errors():
    with pytest.raises(ValueError, match="write 1 to 6"):
        made_fresh(partial(LaurelLR, rank=7))
    with pytest.raises(ValueError, match="write StartHistory first"):
        made_fresh(PA)(draw(2, D, D))
