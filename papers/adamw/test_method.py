import math

import pytest
import torch

from repro.papers.adamw import SGDW, AdamW, normalized_decay
from repro.testing import (
    assert_near,
    check_foreach,
    check_optimizer,
    check_signature,
    draw,
    mutation,
    quiet_import,
    trajectory,
)

STEPS, N = 40, 5
LR, DECAY, BETAS, EPS, MOMENTUM = 0.02, 0.1, (0.8, 0.97), 1e-3, 0.7


def eta(t):
    """A schedule that falls, t from 1."""
    return 1 - (t - 1) / STEPS


def gradients():
    noise = draw(STEPS, N)
    return {"noise": noise, "drift": noise + 2.0, "tiny": noise * 1e-6, "huge": noise * 1e6, "zero": 0 * noise}


def oracle(g, start):
    """Algorithms 2 and 1 in Python floats, one coordinate at a time: (2, steps, N)."""
    path = torch.empty(2, *g.shape, dtype=torch.float64)
    for i in range(g.shape[1]):
        a = s = float(start[i])
        m = v = velocity = 0.0
        for t, each in enumerate(g[:, i].tolist(), 1):
            m, v = BETAS[0] * m + (1 - BETAS[0]) * each, BETAS[1] * v + (1 - BETAS[1]) * each**2
            step = LR * (m / (1 - BETAS[0] ** t)) / (math.sqrt(v / (1 - BETAS[1] ** t)) + EPS)
            a = a - eta(t) * (step + DECAY * a)
            velocity = MOMENTUM * velocity + eta(t) * LR * each
            s = s - velocity - eta(t) * DECAY * s
            path[0, t - 1, i], path[1, t - 1, i] = a, s
    return path


def check(walk):
    start = draw(N, seed=2)
    for name, g in gradients().items():
        got, want = walk(g, start), oracle(g, start)
        for kind, a, b in zip(("AdamW", "SGDW"), got, want, strict=True):
            assert_near(a - start, b - start, f"{kind}, {name}", rel=1e-9, floor=1e-13)


def follow(make, g, start):
    """The path of one parameter under the schedule, which torch's scheduler sets."""
    p = torch.nn.Parameter(start.clone())
    optimizer, path = make([p]), []
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: eta(t + 1))
    for each in g:
        p.grad = each.clone()
        optimizer.step()
        scheduler.step()
        path.append(p.detach().clone())
    return torch.stack(path)


def ours(g, start):
    adamw = follow(lambda p: AdamW(p, LR, BETAS, EPS, DECAY), g, start)
    return torch.stack([adamw, follow(lambda p: SGDW(p, LR, MOMENTUM, DECAY), g, start)])


def broken(fault):
    def walk(g, start):
        a, s = start.clone(), start.clone()
        m, v, velocity = torch.zeros(3, N, dtype=torch.float64).unbind()
        path = []
        for t, each in enumerate(g, 1):
            h = each + DECAY * a if fault == "decay in the gradient" else each
            m, v = BETAS[0] * m + (1 - BETAS[0]) * h, BETAS[1] * v + (1 - BETAS[1]) * h**2
            step = LR * (m / (1 - BETAS[0] ** t)) / ((v / (1 - BETAS[1] ** t)).sqrt() + EPS)
            share = eta(t) * DECAY
            match fault:
                case "decay without the schedule":
                    share = DECAY
                case "decay times the rate":
                    share = eta(t) * LR * DECAY
                case "decay in the gradient":
                    share = 0.0
            old, a = a, a - eta(t) * step
            a = a - share * (a if fault == "decay of the new value" else old)
            if fault == "decay in the momentum":
                velocity = MOMENTUM * velocity + eta(t) * (LR * each + DECAY * s)
                s = s - velocity
            elif fault == "the rate outside the momentum":
                velocity = MOMENTUM * velocity + each
                s = s - eta(t) * LR * velocity - eta(t) * DECAY * s
            else:
                velocity = MOMENTUM * velocity + eta(t) * LR * each
                s = s - velocity - share * s
            path.append(torch.stack([a, s]))
        return torch.stack(path, 1)

    return walk


test_oracle, test_mutant_dies = mutation(check, broken, ours)


@pytest.mark.parametrize("kind", [AdamW, SGDW])
def test_contract(kind):
    for unit, decay in (("paper", 0.0), ("torch", 0.1)):

        def make(params, unit=unit, decay=decay, **options):
            return kind(params, weight_decay=decay, parametrization=unit, **options)

        check_optimizer(make, maximize=decay == 0)  # decay goes the same way under either sign
        check_foreach(make)
    check_signature(kind)
    p = [torch.nn.Parameter(torch.ones(1))]
    with pytest.raises(ValueError, match="parametrization='keras': write one of paper, torch"):
        kind(p, parametrization="keras")
    with pytest.raises(ValueError, match="weight_decay=-1"):
        kind(p, weight_decay=-1)
    with pytest.raises(ValueError, match="weight_decay=-1"):
        kind([{"params": p, "weight_decay": -1.0}])


@pytest.mark.parametrize("unit", ["torch", "paper"])
def test_equals_torch_over_200_steps(unit):
    """In torch's parametrization, and in the paper's with lambda = lr weight_decay; under a schedule too."""
    start, wd = draw(N, seed=2), 0.3
    decay = wd if unit == "torch" else LR * wd
    for name, g in {"noise": draw(200, N), "drift": 2 + draw(200, N), "tiny": 1e-6 * draw(200, N)}.items():
        for run, n in ((trajectory, 200), (follow, STEPS)):
            got = run(lambda p: AdamW(p, LR, weight_decay=decay, parametrization=unit), g[:n], start)
            assert_near(got, run(lambda p: torch.optim.AdamW(p, LR, weight_decay=wd), g[:n], start), name, rel=1e-12)
    defaults = [trajectory(kind, draw(9, N), start) for kind in (AdamW, torch.optim.AdamW)]
    assert_near(*defaults, "defaults", rel=1e-12)


def test_a_state_dict_of_torch():
    """A checkpoint of torch.optim.AdamW's moments goes on as torch would."""
    paths = []
    for kind in (AdamW, torch.optim.AdamW):
        p = torch.nn.Parameter(draw(N, seed=2))
        first = torch.optim.AdamW([p])
        second = kind([p])
        for t, g in enumerate(draw(10, N)):
            p.grad = g.clone()
            (first if t < 5 else second).step()
            if t == 4:
                second.load_state_dict({**second.state_dict(), "state": first.state_dict()["state"]})
        paths.append(p.detach())
    assert_near(*paths, "resumed", rel=1e-12)


def test_sgdw_equals_timm_at_a_constant_rate():
    theirs = quiet_import("timm.optim").SGDW
    start, g = draw(N, seed=2), draw(STEPS, N)
    want = trajectory(theirs, g, start, lr=LR, momentum=MOMENTUM, weight_decay=0.5)
    got = trajectory(SGDW, g, start, lr=LR, momentum=MOMENTUM, weight_decay=0.5, parametrization="torch")
    assert_near(got, want, "timm", rel=1e-12)


def test_adamw_equals_a_library_with_a_decay_that_is_not_multiplied_by_the_rate():
    """pytorch_optimizer's fixed_decay, of an optimizer that is Adam otherwise."""
    theirs = quiet_import("pytorch_optimizer").AdamP
    start, g = draw(N, seed=2), draw(STEPS, N)  # AdamP leaves vectors alone
    want = trajectory(theirs, g, start, lr=LR, weight_decay=0.01, weight_decouple=True, fixed_decay=True, eps=1e-12)
    assert_near(trajectory(AdamW, g, start, lr=LR, weight_decay=0.01, eps=1e-12), want, "fixed_decay", rel=1e-6)


def test_normalized_decay():
    assert normalized_decay(0.05, 128, 50_000, 100) == 0.05 * math.sqrt(128 / 5_000_000)


def test_d1_the_factor_of_the_schedule():
    p = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))
    optimizer = AdamW([p], lr=0.1, weight_decay=0.5)
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(1))], "lr": 0.7})
    assert [group["base_lr"] for group in optimizer.param_groups] == [0.1, 0.7]
    optimizer.param_groups[0]["lr"] = 0.02
    other = AdamW([p, torch.nn.Parameter(torch.ones(1))], lr=9.0)
    other.load_state_dict(
        {"state": {}, "param_groups": [{**optimizer.state_dict()["param_groups"][0], "params": [0, 1]}]}
    )
    p.grad = torch.zeros_like(p)
    other.step()
    assert abs(p.item() - (1 - 0.2 * 0.5)) < 1e-12
    still = AdamW([p], lr=0.0, weight_decay=0.5)
    before = p.detach().clone()
    still.step()
    assert torch.equal(p, before)


@pytest.mark.parametrize("kind", [AdamW, SGDW])
def test_d2_decay_and_step_are_rounded_together(kind):
    start, g = draw(50, seed=2).bfloat16(), draw(50).bfloat16()
    got = trajectory(kind, g[None], start, lr=1e-2, weight_decay=3e-3)[0]
    want = trajectory(kind, g[None].float(), start.float(), lr=1e-2, weight_decay=3e-3)[0]
    assert torch.equal(got, want.bfloat16())
    p = torch.nn.Parameter(start)
    optimizer = kind([p])
    p.grad = g
    optimizer.step()
    assert {v.dtype for v in optimizer.state[p].values() if torch.is_tensor(v)} == {torch.float32}
