import math

import pytest
import torch

from repro.papers.novograd import NovoGrad
from repro.testing import assert_near, check_optimizer, check_signature, draw, mutation, quiet_import, trajectory

STEPS, SHAPE = 25, (3, 4)
LR, BETAS, EPS, DECAY = 0.02, (0.8, 0.9), 1e-3, 0.3


def gradients() -> dict[str, torch.Tensor]:
    noise = draw(STEPS, *SHAPE)
    late = torch.cat([0 * noise[:3], noise[3:]])
    return {"noise": noise, "drift": noise + 2.0, "tiny": noise * 1e-6, "huge": noise * 1e6, "late": late}


def oracle(g, start, averaging):
    """Algorithm 1 in Python floats."""
    w, path = start.flatten().tolist(), []
    m, v = [0.0] * len(w), 0.0
    for each in g:
        each = each.flatten().tolist()
        square = math.fsum(x * x for x in each)
        v = BETAS[1] * v + (1 - BETAS[1]) * square if v else square
        for i, x in enumerate(each):
            joins = x / (math.sqrt(v) + EPS) + DECAY * w[i]
            m[i] = BETAS[0] * m[i] + (1 - BETAS[0] if averaging else 1.0) * joins
            w[i] -= LR * m[i]
        path.append(torch.tensor(w, dtype=torch.float64).view(SHAPE))
    return torch.stack(path)


def check(walk):
    start = draw(*SHAPE, seed=2)
    for name, g in gradients().items():
        for averaging in (False, True):
            want = oracle(g, start, averaging)
            assert_near(walk(g, start, averaging) - start, want - start, f"{name} {averaging}", rel=1e-9, floor=1e-13)


def ours(g, start, averaging):
    same = {"lr": LR, "betas": BETAS, "eps": EPS, "weight_decay": DECAY}
    return trajectory(NovoGrad, g, start, grad_averaging=averaging, **same)


def broken(fault):
    def walk(g, start, averaging):
        w, m, v, path = start.clone(), torch.zeros_like(start), torch.zeros(()).double(), []
        for each in g:
            if fault == "decay before the normalization":
                each = each + DECAY * w
            square = each.square().sum()
            match fault:
                case "the mean of the squares":
                    square = each.square().mean()
                case "one number for each row":
                    square = each.square().sum(1, keepdim=True)
                case "one number for each entry":
                    square = each.square()
            if fault == "v starts at 0":
                v = BETAS[1] * v + (1 - BETAS[1]) * square
            else:
                v = torch.where(v == 0, square, BETAS[1] * v + (1 - BETAS[1]) * square)
            if fault == "the norm of this step alone":
                v = square
            below = v.sqrt() + EPS if fault != "eps under the root" else (v + EPS).sqrt()
            decay = 0.0 if fault in ("decay before the normalization", "decay past the momentum") else DECAY
            joins = each / below + decay * w
            share = 1 - BETAS[0] if averaging else 1.0
            if fault == "never averaged":
                share = 1.0
            if fault == "the first step not averaged" and not path:
                share = 1.0
            if fault == "normalized after the momentum":
                joins = each
            m = BETAS[0] * m + share * joins
            step = m / below + decay * w if fault == "normalized after the momentum" else m
            old, w = w, w - LR * step
            if fault == "decay past the momentum":
                w = w - LR * DECAY * old
            path.append(w)
        return torch.stack(path)

    return walk


test_oracle, test_mutant_dies = mutation(check, broken, ours)


def test_contract():
    check_optimizer(NovoGrad)
    check_optimizer(lambda params, lr, **options: NovoGrad(params, lr, grad_averaging=True, **options))
    check_signature(NovoGrad)
    p = [torch.nn.Parameter(torch.ones(1))]
    assert NovoGrad(p).defaults["betas"] == (0.95, 0.98)
    with pytest.raises(ValueError, match="beta2=1.0: write a number from 0 to below 1"):
        NovoGrad(p, betas=(0.9, 1.0))
    with pytest.raises(ValueError, match="weight_decay=-1"):
        NovoGrad(p, weight_decay=-1)


def test_equals_independent_libraries():
    """200 steps of pytorch_optimizer, which does not average the first one, and of timm, which does."""
    theirs, timm = quiet_import("pytorch_optimizer").NovoGrad, quiet_import("timm.optim").NvNovoGrad
    start, same = draw(*SHAPE, seed=2), {"lr": LR, "betas": BETAS, "weight_decay": DECAY}
    for name, g in gradients().items():
        g = torch.cat([g, draw(200 - STEPS, *SHAPE, seed=3) * g[-1].abs().mean()])
        if name != "late":
            want = trajectory(theirs, g, start, **same)
            assert_near(trajectory(NovoGrad, g, start, **same), want, f"pytorch_optimizer, {name}", rel=1e-9)
        for averaging in (False, True):
            want = trajectory(timm, g, start, grad_averaging=averaging, **same)
            got = trajectory(NovoGrad, g, start, grad_averaging=averaging, **same)
            assert_near(got, want, f"timm, {name}", rel=1e-6)  # its v is in float32


def test_the_scale_of_a_gradient_does_not_matter():
    start, g = draw(*SHAPE, seed=2), draw(STEPS, *SHAPE)
    paths = [trajectory(NovoGrad, scale * g, start, lr=0.1, eps=0.0) for scale in (1.0, 1e-5, 1e5)]
    for path in paths[1:]:
        assert_near(path, paths[0], rel=1e-10)
    steps = trajectory(NovoGrad, g[:1].expand(300, *SHAPE), 0 * start, lr=0.1).diff(dim=0)
    assert abs(torch.linalg.vector_norm(steps[-1]) - 2.0) < 1e-4  # lr / (1 - 0.95)


def test_one_number_for_a_tensor():
    p = torch.nn.Parameter(torch.ones(5, 4))
    optimizer = NovoGrad([p])
    p.grad = torch.ones_like(p)
    optimizer.step()
    assert optimizer.state[p]["exp_avg_sq"].shape == () and float(optimizer.state[p]["exp_avg_sq"]) == 20.0


def test_d1_v_starts_at_the_first_gradient_that_is_not_0():
    g = torch.cat([torch.zeros(3, 4).double(), draw(1, 4)])
    path = trajectory(NovoGrad, g, torch.zeros(4).double(), lr=1.0, eps=1e-12)
    assert not path[2].any() and abs(torch.linalg.vector_norm(path[3]) - 1) < 1e-9


def test_d2_rounded_once():
    start, g = draw(*SHAPE, seed=2).bfloat16(), draw(*SHAPE).bfloat16()
    got = trajectory(NovoGrad, g[None], start, lr=0.1, weight_decay=0.3)[0]
    want = trajectory(NovoGrad, g[None].float(), start.float(), lr=0.1, weight_decay=0.3)[0]
    assert torch.equal(got, want.bfloat16())
    p = torch.nn.Parameter(start)
    optimizer = NovoGrad([p])
    p.grad = g
    optimizer.step()
    assert {s.dtype for s in optimizer.state[p].values() if torch.is_tensor(s)} == {torch.float32}
