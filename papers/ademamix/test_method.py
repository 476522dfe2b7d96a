import math

import pytest
import torch

from repro.papers.ademamix import AdEMAMix, beta3_at
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

STEPS, N = 30, 5
HYPER = {"lr": 0.02, "betas": (0.8, 0.97, 0.995), "alpha": 3.0, "eps": 1e-3, "weight_decay": 0.4}
WARM = {"alpha_warmup": 20, "beta3_warmup": 25}


def gradients() -> dict[str, torch.Tensor]:
    noise = draw(STEPS, N)
    return {"noise": noise, "drift": noise + 2.0, "tiny": noise * 1e-6, "huge": noise * 1e6, "zero": 0 * noise}


def oracle(g, start):
    """Algorithm 1 in Python floats, one coordinate at a time."""
    lr, (b1, b2, end), alpha, eps, decay = HYPER.values()
    path = torch.empty_like(g)
    for i in range(g.shape[1]):
        theta, m1, m2, v = float(start[i]), 0.0, 0.0, 0.0
        for t, each in enumerate(g[:, i].tolist(), 1):
            share = min(t / 25, 1)
            lives = [math.log(0.5) / math.log(b) for b in (b1, end)]
            b3 = 0.5 ** (1 / ((1 - share) * lives[0] + share * lives[1]))
            m1 = b1 * m1 + (1 - b1) * each
            m2 = b3 * m2 + (1 - b3) * each
            v = b2 * v + (1 - b2) * each**2
            above = m1 / (1 - b1**t) + alpha * min(t / 20, 1) * m2
            theta -= lr * (above / (math.sqrt(v / (1 - b2**t)) + eps) + decay * theta)
            path[t - 1, i] = theta
    return path


def check(walk):
    start = draw(N, seed=2)
    for name, g in gradients().items():
        want = oracle(g, start)
        assert_near(walk(g, start) - start, want - start, name, rel=1e-9, floor=1e-13)


def ours(g, start):
    return trajectory(AdEMAMix, g, start, **HYPER, **WARM)


def broken(fault):
    def walk(g, start):
        lr, (b1, b2, end), alpha, eps, decay = HYPER.values()
        theta, m1, m2, v = start.clone(), *(torch.zeros(3, N, dtype=torch.float64).unbind())
        path = []
        for t, each in enumerate(g, 1):
            b3 = beta3_at(min(t / 25, 1), b1, end)
            if fault == "b3 in a straight line":
                b3 = b1 + min(t / 25, 1) * (end - b1)
            if fault == "no warm-up of b3":
                b3 = end
            if fault == "decay in the gradient":
                each = each + decay * theta
            m1, m2, v = b1 * m1 + (1 - b1) * each, b3 * m2 + (1 - b3) * each, b2 * v + (1 - b2) * each**2
            weight, fast, slow = alpha * min(t / 20, 1), m1 / (1 - b1**t), m2
            match fault:
                case "no warm-up of alpha":
                    weight = alpha
                case "the slow mean corrected":
                    slow = m2 / (1 - b3**t)
                case "the fast mean not corrected":
                    fast = m1
            above = fast + weight * slow
            if fault == "a mean of both":
                above = above / (1 + weight)
            step = above / ((v / (1 - b2**t)).sqrt() + eps)
            old = theta
            theta = theta - lr * step
            if fault == "decay without the rate":
                theta = theta - decay * old
            elif fault == "decay of the new value":
                theta = theta * (1 - lr * decay)
            elif fault != "decay in the gradient":
                theta = theta - lr * decay * old
            path.append(theta)
        return torch.stack(path)

    return walk


test_oracle, test_mutant_dies = mutation(check, broken, ours)


def test_contract():
    check_optimizer(AdEMAMix)
    check_foreach(AdEMAMix)
    check_signature(AdEMAMix)
    p = [torch.nn.Parameter(torch.ones(1))]
    assert AdEMAMix(p).defaults["betas"] == (0.9, 0.999, 0.9999) and AdEMAMix(p).defaults["alpha"] == 2.0
    with pytest.raises(ValueError, match="beta3=1.0: write a number from 0 to below 1"):
        AdEMAMix(p, betas=(0.9, 0.999, 1.0))
    with pytest.raises(ValueError, match="alpha=-1"):
        AdEMAMix(p, alpha=-1)
    with pytest.raises(ValueError, match="write beta3_warmup=0"):
        beta3_at(0.5, 0.0, 0.9)


def test_without_the_slow_mean_it_is_adamw():
    start, same = draw(N, seed=2), {"lr": 0.01, "weight_decay": 0.1}
    for name, g in gradients().items():
        got = trajectory(AdEMAMix, g, start, alpha=0.0, **same)
        assert_near(got, trajectory(torch.optim.AdamW, g, start, **same), name, rel=1e-12)


@pytest.mark.parametrize("warm", [None, 150])
def test_equals_an_independent_library(warm):
    """pytorch_optimizer over 200 steps, told to decouple the decay; eps is tiny: it corrects v and eps together."""
    theirs = quiet_import("pytorch_optimizer").AdEMAMix
    start, same = draw(N, seed=2), {"lr": 0.01, "betas": (0.9, 0.999, 0.9999), "alpha": 4.0, "weight_decay": 0.1}
    mine = {"alpha_warmup": warm, "beta3_warmup": warm} if warm else {}
    for shift in (0.0, 2.0):
        g = shift + draw(200, N)
        want = trajectory(theirs, g, start, weight_decouple=True, t_alpha_beta3=warm, eps=1e-12, **same)
        assert_near(trajectory(AdEMAMix, g, start, eps=1e-12, **same, **mine), want, f"{shift}", rel=1e-6)


def test_d1_the_half_life_of_the_code():
    """With 1e-8 under the logarithm, as in the authors' code, b3 differs by less than 1e-7."""

    def life(beta):
        return math.log(0.5) / math.log(beta + 1e-8) - 1

    for share in (0.0, 0.3, 0.99):
        theirs = 0.5 ** (1 / ((1 - share) * life(0.9) + share * life(0.9999) + 1))
        assert abs(beta3_at(share, 0.9, 0.9999) - theirs) < 1e-7


def test_d2_means_are_kept_in_float32():
    p = torch.nn.Parameter(torch.zeros(N, dtype=torch.bfloat16))
    optimizer = AdEMAMix([p], lr=1e-2)
    for g in (1 + draw(50, N) / 10).bfloat16():
        p.grad = g.clone()
        optimizer.step()
    state = optimizer.state[p]
    assert {v.dtype for v in state.values() if torch.is_tensor(v)} == {torch.float32} and p.dtype == torch.bfloat16
    assert 0.004 < state["exp_avg_slow"].mean() < 0.006  # 50 steps of b3 = 0.9999 at 1
