import math

import pytest
import torch
from torch import nn

from repro.papers.one_cycle import OneCycle, momentum_at, range_test, rate_at
from repro.testing import assert_near, check_signature, mutation

STEPS = 41  # the cycle ends at step 36, its top is step 18


def oracle(steps, rest=0.1, div=10.0, final=100.0):
    """Rates by interpolation between the corners of the policy."""
    last = steps - 1
    corners = [(0.0, 1 / div), ((1 - rest) * last / 2, 1.0), ((1 - rest) * last, 1 / div), (last, 1 / div / final)]
    rates = []
    for step in range(steps):
        for (a, low), (b, high) in zip(corners, corners[1:], strict=False):
            if a <= step <= b:
                rates.append(low + (high - low) * (step - a) / (b - a))
                break
    return torch.tensor(rates, dtype=torch.float64)


def check(rate):
    for steps in (STEPS, 10, 137):
        assert_near(torch.tensor([rate(s, steps) for s in range(steps)], dtype=torch.float64), oracle(steps), rel=1e-12)


def broken(fault):
    def rate(step, steps):
        match fault:
            case "no last phase":
                return rate_at(step, steps, rest=0.0)
            case "the last phase from the first rate":
                return rate_at(step, steps, final_div=1000.0)
            case "two phases, three tenths up":
                return rate_at(step, steps) if step < 3 * steps // 10 else (steps - step) / steps
            case "counted in epochs":
                return rate_at(step // 5 * 5, steps)
            case "a step early":
                return rate_at(step + 1, steps)
            case "div of torch":
                return rate_at(step, steps, div=25.0)
        return rate_at(step, steps)

    return rate


test_oracle, test_mutant_dies = mutation(check, broken, rate_at)


def sgd(**options):
    return torch.optim.SGD([nn.Parameter(torch.zeros(2))], lr=7.0, **options)


def test_scheduler_and_resumption():
    optimizer = sgd(momentum=0.9)
    scheduler, path = OneCycle(optimizer, 2.0, STEPS), []
    for step in range(STEPS):
        path.append((optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["momentum"]))
        if step == 20:
            state = scheduler.state_dict()
            scheduler = OneCycle(optimizer, 1.0, 5)
            scheduler.load_state_dict(state)
        optimizer.step()
        if step + 1 < STEPS:
            scheduler.step()
    rates, momenta = (torch.tensor(each, dtype=torch.float64) for each in zip(*path, strict=True))
    assert_near(rates, 2 * oracle(STEPS), rel=1e-12)
    assert momenta[0] == momenta[-1] == 0.95 and abs(momenta[18] - 0.85) < 1e-12 and momenta.argmin() == rates.argmax()
    with pytest.raises(ValueError, match="step 42 of a cycle of 41: write a larger total_steps"):
        scheduler.step()


def test_momentum_of_other_optimizers():
    adam = torch.optim.Adam([nn.Parameter(torch.zeros(2))], betas=(0.9, 0.99))
    OneCycle(adam, 0.1, 10)
    assert adam.param_groups[0]["betas"] == (0.95, 0.99)
    adagrad = torch.optim.Adagrad([nn.Parameter(torch.zeros(2))])
    with pytest.raises(ValueError, match="write cycle_momentum=False"):
        OneCycle(adagrad, 0.1, 10)
    OneCycle(adagrad, 0.1, 10, cycle_momentum=False)
    assert adagrad.param_groups[0]["lr"] == pytest.approx(0.01)


def test_range_test_ends_where_the_loss_is_not_finite():
    p = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([p], lr=0.1)

    def closure():
        optimizer.zero_grad()
        loss = p.square().sum()
        loss.backward()
        return loss

    rates, losses = range_test(closure, optimizer, 0.1, 0.9, 5)
    assert rates == pytest.approx([0.1, 0.3, 0.5, 0.7, 0.9]) and losses[0] == 1.0 and losses[1] == pytest.approx(0.64)
    p.data.fill_(1.0)
    rates, losses = range_test(closure, optimizer, 1e18, 1e20, 50)
    assert len(rates) == len(losses) < 50 and not math.isfinite(losses[-1])


def test_refusals():
    with pytest.raises(ValueError, match="rest=1.0"):
        rate_at(0, 10, rest=1.0)
    with pytest.raises(ValueError, match="steps=1: a cycle takes at least 2"):
        momentum_at(0, 1)
    check_signature(OneCycle)


def test_d1_the_last_phase():
    assert rate_at(STEPS - 1, STEPS) == pytest.approx(0.001) and rate_at(36, STEPS) == pytest.approx(0.1)
    assert rate_at(STEPS - 1, STEPS, rest=0.0) == pytest.approx(0.1)


def both(steps, pct_start, make=lambda: sgd(momentum=0.9), **options):
    """The paths (steps, 2) of rate and momentum, ours and those of torch's OneCycleLR."""
    optimizers, paths = (make(), make()), ([], [])
    options = {"div_factor": 10.0, "final_div_factor": 100.0, "pct_start": pct_start, **options}
    theirs = torch.optim.lr_scheduler.OneCycleLR(optimizers[1], 2.0, steps, **options)
    for optimizer, scheduler, path in zip(
        optimizers, (OneCycle(optimizers[0], 2.0, steps), theirs), paths, strict=True
    ):
        for step in range(steps):
            group = optimizer.param_groups[0]
            path.append((group["lr"], group["momentum"] if "momentum" in group else group["betas"][0]))
            optimizer.step()
            if step + 1 < steps:
                scheduler.step()
    return (torch.tensor(path, dtype=torch.float64) for path in paths)


LINES = {"three_phase": True, "anneal_strategy": "linear"}


@pytest.mark.parametrize("steps", [21, 41, 201])
def test_d2_torch_with_three_straight_phases(steps):
    """Rate and momentum are torch's where its bends are ours; at the same share of the run they are half a step apart.

    torch's first phase ends at step pct_start steps - 1, ours at 0.45 (steps - 1).  By default torch is another policy.
    """
    same = (0.45 * (steps - 1) + 1) / steps
    adam = lambda: torch.optim.Adam([nn.Parameter(torch.zeros(2))], lr=7.0)  # noqa: E731
    for make in (lambda: sgd(momentum=0.9), adam):
        assert_near(*both(steps, same, make, **LINES), "rate and momentum", rel=1e-12)
    ours, theirs = both(steps, 0.45, **LINES)
    apart = (ours - theirs).abs().amax(0)
    assert 0 < apart[0] < 5 / steps and 0 < apart[1] < 0.3 / steps
    ours, theirs = both(steps, 0.45)
    apart = (ours - theirs).abs().amax(0)
    assert apart[0] > 5 / steps and apart[1] > 0.3 / steps
