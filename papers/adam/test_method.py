import math

import pytest
import torch

from repro.papers.adam import Adam, AdaMax
from repro.testing import assert_near, check_foreach, check_optimizer, check_signature, draw, mutation, trajectory

STEPS, N = 30, 6
HYPER = {"lr": 0.02, "betas": (0.8, 0.97), "eps": 1e-3}


def gradients() -> dict[str, torch.Tensor]:
    """Gradients that are noisy, constant, tiny, huge, rare, and zero for a while or for good."""
    noise = draw(STEPS, N)
    rare = torch.zeros_like(noise)
    rare[7::9] = noise[7::9]
    late = noise.clone()
    late[:5] = 0.0
    return {
        "noise": noise,
        "drift": noise + 2.0,
        "constant": torch.ones_like(noise) * draw(N, seed=1),
        "tiny": noise * 1e-6,
        "huge": noise * 1e6,
        "scales": noise * torch.logspace(-6, 6, N, dtype=torch.float64),
        "rare": rare,
        "late": late,
        "zero": torch.zeros_like(noise),
    }


def oracle(g, start, lr, b1, b2, eps):
    """Algorithm 1 in Python floats, one coordinate at a time."""
    path = torch.empty_like(g)
    for i in range(g.shape[1]):
        theta, m, v = float(start[i]), 0.0, 0.0
        for t, each in enumerate(g[:, i].tolist(), 1):
            m = b1 * m + (1 - b1) * each
            v = b2 * v + (1 - b2) * each * each
            theta -= lr * (m / (1 - b1**t)) / (math.sqrt(v / (1 - b2**t)) + eps)
            path[t - 1, i] = theta
    return path


def check(walk):
    """`walk(gradients, start)` is the path of Algorithm 1 on every kind of gradients."""
    start = draw(N, seed=2)
    for name, g in gradients().items():
        want = oracle(g, start, HYPER["lr"], *HYPER["betas"], HYPER["eps"])
        assert_near(walk(g, start) - start, want - start, name, rel=1e-9, floor=1e-13)


def ours(g, start):
    return trajectory(Adam, g, start, **HYPER)


def broken(fault):
    def walk(g, start):
        (b1, b2), eps, lr = HYPER["betas"], HYPER["eps"], HYPER["lr"]
        theta, m, v, path = start.clone(), torch.zeros(N).double(), torch.zeros(N).double(), []
        for t, each in enumerate(g, 1):
            m, square = b1 * m + (1 - b1) * each, each * each
            after = t
            match fault:
                case "one second moment for the whole tensor":
                    square = square.mean().expand(N)
                case "no square":
                    square = each.abs()
                case "steps counted from 0":
                    after = t - 1 if t > 1 else t
                case "the betas exchanged":
                    b1, b2 = HYPER["betas"][::-1]
            v = b2 * v + (1 - b2) * square
            first, second = m / (1 - b1**after), v / (1 - b2**after)
            step = first / (second.sqrt() + eps)
            match fault:
                case "eps in the root":
                    step = first / (second + eps).sqrt()
                case "eps before the correction":
                    step = first / ((v.sqrt() + eps) / (1 - b2**t) ** 0.5)
                case "no correction":
                    step = m / (v.sqrt() + eps)
                case "only the mean corrected":
                    step = first / (v.sqrt() + eps)
                case "no root in the correction":
                    step = first / (v.sqrt() / (1 - b2**t) + eps)
                case "no root":
                    step = first / (second + eps)
                case "the gradient in place of the mean":
                    step = each / (second.sqrt() + eps)
            theta = theta - lr * step
            path.append(theta)
        return torch.stack(path)

    return walk


test_oracle, test_mutant_dies = mutation(check, broken, ours)


@pytest.mark.parametrize("method", [Adam, AdaMax])
def test_contract(method):
    check_optimizer(method)
    check_foreach(method)
    check_signature(method)
    with pytest.raises(ValueError, match=r"beta2=1.0: write a number from 0 to below 1"):
        method([torch.nn.Parameter(torch.ones(1))], betas=(0.9, 1.0))
    with pytest.raises(ValueError, match="eps=-1"):
        method([torch.nn.Parameter(torch.ones(1))], eps=-1)


@pytest.mark.parametrize(
    "mine, theirs", [(Adam, torch.optim.Adam), (AdaMax, torch.optim.Adamax)], ids=["Adam", "AdaMax"]
)
def test_equals_torch(mine, theirs):
    """200 steps on every kind of gradients; a checkpoint of torch's goes on here, and one of ours there."""
    start = draw(N, seed=2)
    for name, g in gradients().items():
        g = g.repeat(7, 1)[:200]
        got, want = (trajectory(each, g, start, lr=0.01) for each in (mine, theirs))
        assert_near(got - start, want - start, name, rel=1e-10, floor=1e-14)
    for first, second in ((mine, theirs), (theirs, mine)):
        p = torch.nn.Parameter(start.clone())
        optimizer = first([p], lr=0.01)
        for t, each in enumerate(gradients()["noise"]):
            if t == 10:
                state = optimizer.state_dict()
                options = {name: state["param_groups"][0][name] for name in ("lr", "betas", "eps")}
                optimizer = second([p], **options)
                optimizer.load_state_dict(
                    {"state": state["state"], "param_groups": optimizer.state_dict()["param_groups"]}
                )
            p.grad = each.clone()
            optimizer.step()
        assert_near(p.detach(), trajectory(mine, gradients()["noise"], start, lr=0.01)[-1], "a checkpoint", rel=1e-10)


def test_maxima():
    """AdaMax: the path in Python floats."""
    g, start = gradients()["noise"], draw(N, seed=2)
    want = torch.empty_like(g)
    for i in range(N):
        theta, m, u = float(start[i]), 0.0, 0.0
        for t, each in enumerate(g[:, i].tolist(), 1):
            m, u = 0.8 * m + 0.2 * each, max(0.97 * u, abs(each))
            theta -= 0.02 / (1 - 0.8**t) * m / u
            want[t - 1, i] = theta
    assert_near(trajectory(AdaMax, g, start, lr=0.02, betas=(0.8, 0.97), eps=0.0), want, "AdaMax", rel=1e-12)


def test_defaults():
    p = [torch.nn.Parameter(torch.ones(1))]
    assert Adam(p).defaults["lr"] == 1e-3 and AdaMax(p).defaults["lr"] == 2e-3
    assert Adam(p).defaults["betas"] == (0.9, 0.999) and Adam(p).defaults["eps"] == 1e-8


def test_the_first_step_is_lr_with_the_correction_and_3_16_lr_without():
    for option, size in ((True, 1.0), (False, (1 - 0.9) / math.sqrt(1 - 0.999))):
        g = torch.logspace(-3, 3, N, dtype=torch.float64)[None]
        path = trajectory(Adam, g, torch.zeros(N).double(), lr=0.5, eps=0.0, bias_correction=option)
        assert_near(path[0], torch.full((N,), -0.5 * size, dtype=torch.float64), "first step", rel=1e-12)


def test_d1_coordinates_without_a_gradient_stay_where_they_are():
    g = gradients()["noise"]
    g[:, 0] = 0.0
    path = trajectory(AdaMax, g, torch.ones(N).double())
    assert torch.isfinite(path).all() and (path[:, 0] == 1).all() and (path[:, 1] != 1).all()


@pytest.mark.parametrize("method", [Adam, AdaMax])
def test_d2_moments_are_kept_in_float32(method):
    """In bfloat16 0.999 is 0.996 and a change by a thousandth is lost: v would stand still."""
    g = (1 + draw(200, N) / 10).bfloat16()
    p = torch.nn.Parameter(torch.zeros(N, dtype=torch.bfloat16))
    optimizer = method([p], lr=1e-2)
    for each in g:
        p.grad = each.clone()
        optimizer.step()
    state = optimizer.state[p]
    assert {v.dtype for v in state.values() if torch.is_tensor(v)} == {torch.float32} and p.dtype == torch.bfloat16
    second = state["exp_avg_sq"] if method is Adam else state["exp_inf"]
    want = sum(0.001 * 0.999 ** (199 - t) * g[t].double() ** 2 for t in range(200))
    if method is Adam:
        assert_near(second.double(), want, "v", rel=1e-4)
    else:
        assert (second >= g[-1].float().abs()).all()
