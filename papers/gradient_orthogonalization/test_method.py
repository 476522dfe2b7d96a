import numpy as np
import pytest
import torch
from torch import nn

from repro.models.gpt import GPT
from repro.papers.gradient_orthogonalization import Muon, TrustRegion, muon_groups, newton_schulz, polar
from repro.testing import assert_near, check_optimizer, check_signature, draw, matrices_only, mutation, trajectory

SHAPES = {"wide": (3, 5), "tall": (5, 3), "square": (4, 4)}
STEPS, LR, MOMENTUM, DECAY = 12, 0.05, 0.8, 0.3


def gradients(shape, kind):
    noise = draw(STEPS, *shape)
    match kind:
        case "noise":
            return noise
        case "drift":
            return noise / 10 + 2.0
        case "tiny":
            return noise * 1e-9
        case "one direction":  # rank 1
            return noise[:, :, :1] * draw(*shape, seed=3)[:1]
        case "late":
            return torch.cat([torch.zeros_like(noise[:4]), noise[4:]])
    raise ValueError(kind)


def dual(m, norm):
    """The maximizer over the ball of a norm, by NumPy."""
    if norm == "max":
        return np.sign(m)
    if norm == "euclidean":
        return m / np.linalg.norm(m) if m.any() else 0 * m
    u, s, vh = np.linalg.svd(m, full_matrices=False)
    kept = s > 1e-12 * max(s.max(), 1e-300)
    return u[:, kept] @ vh[kept]


def oracle(g, start, norm):
    x, m, path = start.numpy().copy(), np.zeros(start.shape), []
    for each in g.numpy():
        m = MOMENTUM * m + (1 - MOMENTUM) * each
        x = (1 - LR * DECAY) * x - LR * dual(m, norm)
        path.append(x)
    return torch.from_numpy(np.stack(path))


def check(walk):
    for shape in SHAPES.values():
        start = draw(*shape, seed=2)
        for kind in ("noise", "drift", "tiny", "one direction", "late"):
            for norm in ("spectral", "max", "euclidean"):
                g = gradients(shape, kind)
                assert_near(walk(g, start, norm), oracle(g, start, norm), f"{shape} {kind} {norm}", rel=1e-8)


def ours(g, start, norm):
    return trajectory(TrustRegion, g, start, lr=LR, momentum=MOMENTUM, weight_decay=DECAY, norm=norm)


def broken(fault):
    def walk(g, start, norm):
        x, m, path = start.clone(), torch.zeros_like(start), []
        for each in g:
            each = each.double()
            match fault:
                case "orthogonalized before the mean":
                    m = MOMENTUM * m + (1 - MOMENTUM) * torch.from_numpy(dual(each.numpy(), norm))
                    d = m
                case "no mean":
                    d = torch.from_numpy(dual(each.numpy(), norm))
                case _:
                    m = MOMENTUM * m + (1 - MOMENTUM) * each
                    d = torch.from_numpy(dual(m.numpy(), norm))
            match fault:
                case "five steps of Newton-Schulz":
                    d = newton_schulz(m) if norm == "spectral" else d
                case "rows of length 1":
                    d = nn.functional.normalize(m, dim=1) if norm == "spectral" else d
                case "the singular values kept":
                    d = m / max(float(torch.linalg.matrix_norm(m, 2)), 1e-30) if norm == "spectral" else d
            shrunk = x if fault == "no decay" else (1 - LR * DECAY) * x
            if fault == "decay in the gradient":
                shrunk, d = x, torch.from_numpy(dual((m + DECAY * x).numpy(), norm))
            if fault == "decay without the rate":
                shrunk = (1 - DECAY) * x
            x = shrunk - LR * d
            path.append(x)
        return torch.stack(path)

    return walk


test_oracle, test_mutant_dies = mutation(check, broken, ours)


def test_contract():
    for make in (TrustRegion, matrices_only(Muon)):
        check_optimizer(make)
    for method in (TrustRegion, Muon):
        check_signature(method)
    with pytest.raises(ValueError, match="norm='nuclear' is unknown; write one of spectral, max, euclidean"):
        TrustRegion([nn.Parameter(torch.ones(2, 2))], norm="nuclear")
    with pytest.raises(ValueError, match="scale='adam' is unknown"):
        Muon([nn.Parameter(torch.ones(2, 2))], scale="adam")
    with pytest.raises(ValueError, match=r"write Muon\(muon_groups\(model\)\)"):
        Muon([nn.Parameter(torch.ones(2))])


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("scale", ["original", "match_rms_adamw"])
def test_equals_torch(shape, scale):
    """50 steps of torch.optim.Muon, which has Newton-Schulz in bfloat16 and weights in float32."""
    g, start = draw(50, *shape, dtype=torch.float32), draw(*shape, seed=2, dtype=torch.float32)
    same = {"lr": 0.02, "weight_decay": 0.1, "momentum": 0.9}
    want = trajectory(torch.optim.Muon, g, start, adjust_lr_fn=scale, **same)
    got = trajectory(Muon, g, start, scale=scale, dtype=torch.bfloat16, **same)
    assert_near(got - start, want - start, "in bfloat16", rel=2e-2)
    exact = trajectory(Muon, g, start, scale=scale, **same)
    assert_near(exact - start, want - start, "in float32", rel=5e-2)


def test_newton_schulz_leaves_singular_values_near_1():
    for shape in ((20, 30), (30, 20), (2, 16, 16)):
        values = torch.linalg.svdvals(newton_schulz(draw(*shape)))
        assert 0.6 < values.min() and values.max() < 1.3 and (values - 1).abs().max() > 0.05
    batch = draw(2, 3, 4)
    assert_near(newton_schulz(batch)[1], newton_schulz(batch[1]), "a batch", rel=1e-12)


def test_groups():
    model = GPT(11, 8, 8, 2, heads=2, generator=torch.Generator().manual_seed(0), bias=True)
    hidden, others = muon_groups(model, adam_lr=0.1)
    names = {id(p): name for name, p in model.named_parameters()}
    assert all(".attention." in names[id(p)] or ".feed_forward." in names[id(p)] for p in hidden["params"])
    assert {"embedding.weight", "head.weight", "norm.weight"} <= {names[id(p)] for p in others["params"]}
    assert len(hidden["params"]) + len(others["params"]) == len(names) and others["lr"] == 0.1
    optimizer = Muon([hidden, others])
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    model(torch.arange(8)[None]).sum().backward()
    optimizer.step()
    vector = model.norm.weight  # the first step of AdamW has the size of its rate
    assert_near((vector - before["norm.weight"]).abs(), torch.full_like(vector, 0.1), "AdamW", rel=1e-4)
    named = muon_groups(model, head="head")
    assert len(named[0]["params"]) == len(hidden["params"])


def test_d1_a_convolution_is_one_matrix():
    g, start = draw(1, 4, 2, 3, 3), torch.zeros(4, 2, 3, 3, dtype=torch.float64)
    for make in (TrustRegion, Muon):
        got = trajectory(make, g, start, lr=1.0)[0]
        flat = trajectory(make, g.flatten(2), start.flatten(1), lr=1.0)[0]
        assert_near(got.flatten(1), flat, make.__name__, rel=1e-12)
    assert_near(torch.linalg.svdvals(trajectory(TrustRegion, g, start, lr=1.0)[0].flatten(1)), torch.ones(4).double())


def test_d2_newton_schulz_is_in_float32_unless_told():
    m = draw(16, 16).bfloat16()
    assert newton_schulz(m).dtype == torch.bfloat16
    exact = newton_schulz(m.double())
    error, coarse = ((newton_schulz(m.float(), dtype=d) - exact).abs().max() for d in (None, torch.bfloat16))
    assert error < 1e-4 < 1e-3 < coarse


def test_d3_decay_keeps_the_iterate_in_a_ball():
    g, start = 3.0 + draw(300, 4, 5), 40 * draw(4, 5)
    norms = [
        torch.linalg.matrix_norm(trajectory(TrustRegion, g, start, lr=0.1, weight_decay=decay)[-1], 2)
        for decay in (0.5, 0.0)
    ]
    assert norms[0] <= 2.0 + 1e-4 < norms[1]


def test_d4_no_gradient_no_step():
    start = draw(3, 5)
    for norm in ("spectral", "max", "euclidean"):
        path = trajectory(TrustRegion, torch.zeros(2, 3, 5, dtype=torch.float64), start, norm=norm)
        assert torch.equal(path[-1], start), norm
    assert_near(polar(torch.diag(torch.tensor([2.0, 0.0]).double())), torch.diag(torch.tensor([1.0, 0.0]).double()))
