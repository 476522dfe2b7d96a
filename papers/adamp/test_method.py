import math

import numpy as np
import pytest
import torch
from torch import nn

from repro.papers.adamp import SGDP, AdamP, project
from repro.testing import assert_near, check_optimizer, check_signature, draw, mutation, quiet_import

STEPS, SHAPES, KINDS = 12, ((4, 6), (3, 2, 3)), ("SGDP", "AdamP")
MODES = ("rows", "layer", "free", "one row free", "tiny")
LR, MOMENTUM, BETAS, EPS, DECAY = 0.05, 0.8, (0.8, 0.95), 1e-8, 0.4


def gradient(w, t, mode):
    """The gradient of step t at w (torch): orthogonal to each row, to the whole, or to neither."""
    z = draw(STEPS, *w.shape, seed=t)[t % STEPS]
    flat, noise = w.flatten(1), z.flatten(1)
    each = noise - flat * (noise * flat).sum(1, keepdim=True) / flat.square().sum(1, keepdim=True)
    match mode:
        case "rows":
            out = each
        case "tiny":
            out = each * 1e-5
        case "layer":
            out = noise - flat * (noise * flat).sum() / flat.square().sum()
        case "one row free":
            out = torch.cat([3 * flat[:1], each[1:]])
        case _:
            out = noise
    return out.view_as(w)


def oracle(start, mode, kind, nesterov):
    """The authors' algorithm, row by row in NumPy."""
    w = start.numpy().reshape(len(start), -1).copy()
    m, v, path = np.zeros_like(w), np.zeros_like(w), []
    for t in range(STEPS):
        g = gradient(torch.from_numpy(w).view_as(start), t, mode).numpy().reshape(w.shape)
        if kind == "SGDP":
            m = MOMENTUM * m + g
            u, size, decay = (g + MOMENTUM * m if nesterov else m), LR, DECAY / (1 - MOMENTUM)
        else:
            m, v = BETAS[0] * m + (1 - BETAS[0]) * g, BETAS[1] * v + (1 - BETAS[1]) * g**2
            above = BETAS[0] * m + (1 - BETAS[0]) * g if nesterov else m
            u = above / (np.sqrt(v / (1 - BETAS[1] ** (t + 1))) + EPS)
            size, decay = LR / (1 - BETAS[0] ** (t + 1)), DECAY
        views = [list(range(len(w)))], [[i] for i in range(len(w))]
        for rows in (views[1], views[0]):
            cosines = [abs((g[r] * w[r]).sum()) / np.linalg.norm(g[r]) / np.linalg.norm(w[r]) for r in rows]
            if max(cosines) < 0.1 / math.sqrt(w[rows[0]].size):
                u = u.copy()
                for r in rows:
                    u[r] -= w[r] * (w[r] * u[r]).sum() / (w[r] * w[r]).sum()
                decay *= 0.1
                break
        w = w * (1 - LR * decay) - size * u
        path.append(w.reshape(start.shape))
    return torch.from_numpy(np.stack(path))


def check(walk):
    for shape in SHAPES:
        start = draw(*shape, seed=99)
        for mode in MODES:
            for kind in KINDS:
                for nesterov in (False, True):
                    got, want = walk(start, mode, kind, nesterov), oracle(start, mode, kind, nesterov)
                    assert_near(got, want, f"{kind} {mode} {shape}", rel=1e-6)


def follow(make, start, mode, steps=STEPS):
    p = nn.Parameter(start.clone())
    optimizer, path = make([p]), []
    for t in range(steps):
        p.grad = gradient(p.detach(), t, mode)
        optimizer.step()
        path.append(p.detach().clone())
    return torch.stack(path)


def maker(kind, nesterov, sgdp=SGDP, adamp=AdamP):
    if kind == "SGDP":
        return lambda p: sgdp(p, lr=LR, momentum=MOMENTUM, weight_decay=DECAY, nesterov=nesterov)
    return lambda p: adamp(p, lr=LR, betas=BETAS, eps=EPS, weight_decay=DECAY, nesterov=nesterov)


def ours(start, mode, kind, nesterov):
    return follow(maker(kind, nesterov), start, mode)


def broken(fault):
    def projected(w, g, u):
        tested = u if fault == "the step tested in place of the gradient" else g
        for rows in (1,) if fault == "the whole alone" else (len(w), 1):
            a, b, c = (x.reshape(rows, -1) for x in (w, tested, u))
            cosines = nn.functional.cosine_similarity(a, b).abs()
            least = cosines.min() if fault == "the least cosine" else cosines.max()
            if least < 0.1 / (1 if fault == "the threshold without the length" else math.sqrt(a.shape[1])):
                along = g.reshape(rows, -1) if fault == "along the gradient" else a
                unit = nn.functional.normalize(along)
                return (c - unit * (unit * c).sum(1, keepdim=True)).view_as(u), True
        return u, False

    def walk(start, mode, kind, nesterov):
        w, m, v, path = start.clone(), torch.zeros_like(start), torch.zeros_like(start), []
        for t in range(STEPS):
            g = gradient(w, t, mode)
            if fault == "decay in the gradient":
                g = g + DECAY * w
            if kind == "SGDP":
                m = MOMENTUM * m + g
                u, size, decay = (g + MOMENTUM * m if nesterov else m), LR, DECAY / (1 - MOMENTUM)
                if fault == "decay not divided":
                    decay = DECAY
            else:
                m, v = BETAS[0] * m + (1 - BETAS[0]) * g, BETAS[1] * v + (1 - BETAS[1]) * g**2
                above = BETAS[0] * m + (1 - BETAS[0]) * g if nesterov else m
                u = above / ((v / (1 - BETAS[1] ** (t + 1))).sqrt() + EPS)
                size, decay = LR / (1 - BETAS[0] ** (t + 1)), DECAY
                if fault == "the mean projected before the root":
                    u = projected(w, g, above)[0] / ((v / (1 - BETAS[1] ** (t + 1))).sqrt() + EPS)
            q, flagged = projected(w, g, u)
            if fault == "the mean projected before the root" and kind == "AdamP":
                q = u
            if fault == "the buffer projected" and flagged:
                m = projected(w, g, m)[0]
            if flagged and fault != "all of the decay":
                decay *= 0.1
            if fault == "decay in the gradient":
                decay = 0.0
            if fault == "decay of the new value":
                w = (w - size * q) * (1 - LR * decay)
            else:
                w = w * (1 - LR * decay) - size * q
            path.append(w)
        return torch.stack(path)

    return walk


test_oracle, test_mutant_dies = mutation(check, broken, ours)


@pytest.mark.parametrize("kind", [SGDP, AdamP])
def test_contract(kind):
    check_optimizer(kind)
    if kind is SGDP:
        check_optimizer(lambda params, lr, **options: SGDP(params, lr, 0.9, nesterov=True, **options))
    check_signature(kind)
    p = [nn.Parameter(torch.ones(1))]
    with pytest.raises(ValueError, match="delta=-1"):
        kind(p, delta=-1.0)
    with pytest.raises(ValueError, match="weight_decay=-1"):
        kind(p, weight_decay=-1.0)
    with pytest.raises(ValueError, match="momentum=1.0: write a number from 0 to below 1"):
        SGDP(p, momentum=1.0)


@pytest.mark.parametrize("kind", KINDS)
def test_equals_timm(kind):
    """200 steps of timm's copy of the authors' code, on given gradients and on a network with BatchNorm."""
    theirs = quiet_import("timm.optim")
    for nesterov in (False, True):
        for mode in MODES:
            makers = maker(kind, nesterov), maker(kind, nesterov, theirs.SGDP, theirs.AdamP)
            got, want = (follow(make, draw(4, 6, seed=99), mode, 200) for make in makers)
            assert_near(got, want, mode, rel=1e-7)
    ends = []
    for make in (maker(kind, False), maker(kind, False, theirs.SGDP, theirs.AdamP)):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).double()
        optimizer = make(model.parameters())
        for t in range(200):
            optimizer.zero_grad()
            model(draw(16, 5, seed=t)).square().mean().backward()
            optimizer.step()
        ends.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert_near(*ends, "a network", rel=1e-8)


def test_which_weights_are_found():
    """Those in front of BatchNorm, row by row; those in front of LayerNorm as a whole; no others."""
    for norm, found in ((nn.BatchNorm1d(8), True), (nn.Identity(), False)):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 8, bias=False), norm, nn.ReLU(), nn.Linear(8, 3, bias=False)).double()
        model(draw(16, 5)).square().mean().backward()
        first, last = model[0].weight, model[3].weight
        q, flag = project(first.detach(), first.grad, 1.0 + first.grad)
        assert flag == found and not project(last.detach(), last.grad, last.grad)[1]
        if found:
            assert_near((q * first.detach()).sum(1), torch.zeros(8).double(), "tangential", rel=1, floor=1e-6)
    w, u = draw(4, 6), draw(4, 6, seed=1)
    q, flag = project(w, gradient(w, 0, "layer"), u)
    assert flag and abs((q * w).sum()) < 1e-6 < (q * w).sum(1).abs().min()
    vector = draw(6)
    assert project(vector, torch.zeros(6).double(), vector) == (vector, False)


def test_delta_0_is_sgd():
    start = draw(4, 6, seed=99)
    got = follow(lambda p: SGDP(p, LR, MOMENTUM, delta=0.0, nesterov=True), start, "rows")
    assert_near(got, follow(lambda p: torch.optim.SGD(p, LR, MOMENTUM, nesterov=True), start, "rows"), rel=1e-12)


@pytest.mark.parametrize("kind", [SGDP, AdamP])
def test_d1_rounded_once(kind):
    start, g = draw(8, 6, seed=2).bfloat16(), draw(8, 6).bfloat16()
    ends = []
    for dtype in (torch.bfloat16, torch.float32):
        p = nn.Parameter(start.to(dtype, copy=True))
        optimizer = kind([p], lr=0.1, weight_decay=0.3)
        p.grad = g.to(dtype)
        optimizer.step()
        assert {s.dtype for s in optimizer.state[p].values() if torch.is_tensor(s)} == {torch.float32}
        ends.append(p.detach())
    assert torch.equal(ends[0], ends[1].bfloat16())


def test_d2_the_default_rate():
    p = [nn.Parameter(torch.ones(1))]
    assert SGDP(p).defaults["lr"] == torch.optim.SGD(p).defaults["lr"] == 1e-3
