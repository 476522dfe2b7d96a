import numpy as np
import pytest
import torch
from torch import nn

from repro.models.gpt import GPT
from repro.papers.sinkgd import SinkGD, sinkgd_groups, sr_sinkhorn
from repro.testing import assert_near, check_optimizer, check_signature, draw, matrices_only, mutation, trajectory

SHAPES = {"wide": (3, 7), "tall": (6, 2), "square": (4, 4), "one row": (1, 5)}
SWEEPS = (1, 2, 5)


def matrices(shape):
    g = draw(*shape)
    scaled = g * draw(shape[0], 1, seed=1).mul(3).exp() * draw(shape[1], seed=2).exp()
    return {"noise": g, "scaled": scaled, "tiny": g * 1e-12, "drift": g / 10 + 1}


def oracle(g, sweeps):
    """Algorithm 3 in NumPy, one row and one column at a time."""
    x = g.numpy().copy()
    m, n = x.shape
    for _ in range(sweeps):
        for i in range(m):
            x[i] *= np.sqrt(n) / np.sqrt((x[i] ** 2).sum())
        for j in range(n):
            x[:, j] *= np.sqrt(m) / np.sqrt((x[:, j] ** 2).sum())
    return torch.from_numpy(x)


def check(normalize):
    for shape in SHAPES.values():
        for name, g in matrices(shape).items():
            for sweeps in SWEEPS:
                assert_near(normalize(g, sweeps), oracle(g, sweeps), f"{name} {shape} {sweeps}", rel=1e-10)


def broken(fault):
    def normalize(g, sweeps):
        m, n = g.shape
        power = 1 if fault == "sums of sizes in place of norms" else 2
        tall, wide = (m, n) if fault == "the roots exchanged" else (n, m)
        if fault == "entries of 1 over the root":
            tall = wide = 1
        x = g
        for _ in range(sweeps + (fault == "a sweep more")):
            rows = x.norm(power, dim=1, keepdim=True)
            if fault == "both norms at once":
                x = x / rows.sqrt() / x.norm(power, dim=0).sqrt() * (m * n) ** 0.25
                continue
            if fault == "columns first":
                x = x / x.norm(dim=0) * wide**0.5
                x = x / x.norm(dim=1, keepdim=True) * tall**0.5
                continue
            if fault == "an eps beside the norm":
                rows = rows + 1e-8
            x = x / rows * tall**0.5
            if fault != "rows alone":
                x = x / x.norm(power, dim=0) * wide**0.5
        return x

    return normalize


test_oracle, test_mutant_dies = mutation(check, broken, sr_sinkhorn)


def test_contract():
    check_optimizer(matrices_only(SinkGD))
    check_signature(SinkGD)
    p = [nn.Parameter(torch.ones(2, 2))]
    assert SinkGD(p).defaults["sweeps"] == 5 and SinkGD(p).defaults["weight_decay"] == 0
    with pytest.raises(ValueError, match=r"write SinkGD\(sinkgd_groups\(model\)\)"):
        SinkGD([nn.Parameter(torch.ones(2))])
    with pytest.raises(ValueError, match="sweeps=0: write 1 or more"):
        SinkGD(p, sweeps=0)


def test_a_step_and_no_state():
    start, g = draw(4, 3, seed=2), draw(6, 4, 3)
    path = trajectory(SinkGD, g, start, lr=0.1)
    assert_near(path[-1], start - 0.1 * sum(oracle(each, 5) for each in g), rel=1e-10)
    p = nn.Parameter(start.clone())
    optimizer = SinkGD([p])
    p.grad = g[0]
    optimizer.step()
    assert not any(torch.is_tensor(value) for value in optimizer.state[p].values())


def test_groups_and_adamw():
    model = GPT(11, 8, 8, 1, heads=2, generator=torch.Generator().manual_seed(0))
    hidden, others = sinkgd_groups(model, adam_lr=0.1)
    names = {id(p): name for name, p in model.named_parameters()}
    assert all(".attention." in names[id(p)] or ".feed_forward." in names[id(p)] for p in hidden["params"])
    assert {"embedding.weight", "head.weight"} <= {names[id(p)] for p in others["params"]}
    g, start = draw(5, 6), draw(6, seed=2)
    p = nn.Parameter(start.clone())
    optimizer, path = SinkGD([{"params": [p], "adam": True}], lr=0.01, weight_decay=0.1), []
    for each in g:
        p.grad = each.clone()
        optimizer.step()
        path.append(p.detach().clone())
    want = trajectory(torch.optim.AdamW, g, start, lr=0.01, weight_decay=0.1)
    assert_near(torch.stack(path), want, "AdamW", rel=1e-12)


def test_d1_zeros_stay():
    g = draw(4, 5)
    g[1], g[:, 2] = 0, 0
    x = sr_sinkhorn(g)
    rest = [0, 2, 3], [0, 1, 3, 4]
    want = oracle(g[rest[0]][:, rest[1]], 5) * x[0, 0] / oracle(g[rest[0]][:, rest[1]], 5)[0, 0]
    assert not x[1].any() and not x[:, 2].any() and torch.isfinite(x).all()
    assert_near(x[rest[0]][:, rest[1]], want, "the rest", rel=1e-10)
    assert not sr_sinkhorn(torch.zeros(3, 3)).any()


def test_d2_no_overflow():
    g = draw(4, 5)
    for scale in (1e-30, 1e30):
        assert_near(sr_sinkhorn((g * scale).float()).double(), oracle(g, 5), f"{scale}", rel=1e-5)


def test_d3_a_convolution_is_one_matrix():
    g = draw(1, 4, 2, 3, 3)
    got = trajectory(SinkGD, g, torch.zeros(4, 2, 3, 3).double(), lr=1.0)[0]
    assert_near(got.flatten(1), -oracle(g[0].flatten(1), 5), rel=1e-10)


def test_d4_decay():
    start, g = draw(4, 3, seed=2), draw(1, 4, 3)
    got = trajectory(SinkGD, g, start, lr=0.1, weight_decay=0.5)[0]
    assert_near(got, 0.95 * start - 0.1 * oracle(g[0], 5), rel=1e-10)


def test_d5_rounded_once():
    start, g = draw(8, 6, seed=2).bfloat16(), draw(1, 8, 6).bfloat16()
    got = trajectory(SinkGD, g, start, lr=0.1, weight_decay=0.3)[0]
    want = trajectory(SinkGD, g.float(), start.float(), lr=0.1, weight_decay=0.3)[0]
    assert torch.equal(got, want.bfloat16())
