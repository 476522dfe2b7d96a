import copy

import numpy as np
import pytest
import torch
from torch import nn

from repro.papers.sam import SAM
from repro.papers.sam_on import NORMS, SAMON
from repro.testing import assert_near, draw, mutation, quiet_import

LR, RHO, DECAY, MOMENTUM, ETA = 0.1, 0.3, 0.05, 0.9, 0.02
X, T = draw(6, 4, seed=1), draw(6, 3, seed=2)


def network():
    """LayerNorm between two linear layers, in float64; its gains, shifts and all else are random."""
    model = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3), nn.Tanh(), nn.Linear(3, 3, bias=False)).double()
    with torch.no_grad():
        for i, p in enumerate(model.parameters()):
            p.copy_(draw(*p.shape, seed=10 + i))
    return model


def gradient(values):
    """By NumPy: the gradients of mean((V tanh(gain norm(W x + b) + shift) - T)^2)."""
    w, b, gain, shift, v = values
    x, t = X.numpy(), T.numpy()
    h = x @ w.T + b
    deviation = np.sqrt(h.var(1, keepdims=True) + 1e-5)
    z = (h - h.mean(1, keepdims=True)) / deviation
    a = np.tanh(gain * z + shift)
    d_out = 2 * (a @ v.T - t) / t.size
    d_a = (d_out @ v) * (1 - a**2)
    d_z = d_a * gain
    d_h = (d_z - d_z.mean(1, keepdims=True) - z * (d_z * z).mean(1, keepdims=True)) / deviation
    return [d_h.T @ x, d_h.sum(0), (d_a * z).sum(0), d_a.sum(0), d_out.T @ a]


def oracle(steps, adaptive):
    """SAM-ON around SGD with momentum and weight decay, by NumPy."""
    values, momentum = [p.detach().numpy().copy() for p in network().parameters()], [0.0] * 5
    for _ in range(steps):
        g = gradient(values)
        size = [np.abs(values[i]) + ETA if adaptive else np.ones(3) for i in (2, 3)]
        length = np.sqrt(sum(((s * g[i]) ** 2).sum() for s, i in zip(size, (2, 3), strict=True)))
        there = list(values)
        for s, i in zip(size, (2, 3), strict=True):
            there[i] = values[i] + RHO * s**2 * g[i] / length
        momentum = [
            MOMENTUM * m + part + DECAY * w for m, part, w in zip(momentum, gradient(there), values, strict=True)
        ]
        values = [w - LR * m for w, m in zip(values, momentum, strict=True)]
    return [torch.from_numpy(v) for v in values]


def closure_of(model, optimizer):
    def closure():
        optimizer.zero_grad()
        value = (model(X) - T).square().mean()
        value.backward()
        return value

    return closure


def walk(kind, steps, **options):
    model = network()
    base = torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM, weight_decay=DECAY)
    optimizer = kind(base, RHO, model=model, **options)
    closure = closure_of(model, optimizer)
    for _ in range(steps):
        closure()
        optimizer.step(closure)
    return [p.detach() for p in model.parameters()]


def check(kind):
    for steps in (1, 2, 7):
        for adaptive in (False, True):
            got = walk(kind, steps, adaptive=adaptive, eta=ETA)
            for a, b in zip(got, oracle(steps, adaptive), strict=True):
                assert_near(a, b, f"{steps} steps, adaptive={adaptive}", rel=1e-9)


def broken(fault):
    class Broken(SAMON):
        def perturbed(self):
            chosen = super().perturbed()
            match fault:
                case "everything perturbed":
                    return [p for group in self.param_groups for p in group["params"]]
                case "gains alone":
                    return chosen[:1]
                case "all but the norms":
                    return [
                        p for group in self.param_groups for p in group["params"] if all(p is not q for q in chosen)
                    ]
            return chosen

        def directions(self, parameters):
            e = super().directions(parameters)
            match fault:
                case "the norm of all gradients":
                    every = [p.grad.norm() for group in self.param_groups for p in group["params"]]
                    inside = torch.stack([p.grad.norm() for p in parameters]).norm()
                    return [part * inside / torch.stack(every).norm() for part in e]
                case "a norm for each parameter":
                    return [self.rho * p.grad / p.grad.norm() for p in parameters]
                case "one factor of T" if self.adaptive:
                    return [part / (p.abs() + self.eta) for part, p in zip(e, parameters, strict=True)]
                case "shifts without T" if self.adaptive:
                    return [e[0], e[1] / (parameters[1].abs() + self.eta) ** 2]
            return e

        def descend_only_norms(self):
            for group in self.param_groups:
                for p in group["params"]:
                    if all(p is not q for q in super().perturbed()):
                        p.grad = None

        def step(self, closure):
            if fault != "norms alone step":
                return super().step(closure)
            self.ascend()
            loss = closure()
            self.descend_only_norms()
            self.descend()
            return loss

    return Broken


test_oracle, test_mutant_dies = mutation(check, broken, SAMON)


@pytest.mark.parametrize("adaptive", [False, True])
def test_equals_sam_of_an_independent_library(adaptive):
    """200 steps: pytorch_optimizer's SAM of the norms' parameters, and SGD of all others with the same gradients."""
    theirs, same = quiet_import("pytorch_optimizer").SAM, {"lr": 0.02, "momentum": MOMENTUM, "weight_decay": DECAY}
    mine, other = network(), network()
    optimizer = SAMON(torch.optim.SGD(mine.parameters(), **same), RHO, model=mine, adaptive=adaptive, eta=0.0)
    norms = list(other[1].parameters())
    perturbing = theirs(norms, torch.optim.SGD, rho=RHO, adaptive=adaptive, **same)
    others = torch.optim.SGD([*other[0].parameters(), *other[3].parameters()], **same)
    closures = closure_of(mine, optimizer), closure_of(other, other)
    for step in range(200):
        closures[0]()
        optimizer.step(closures[0])
        closures[1]()
        perturbing.first_step()
        closures[1]()
        perturbing.second_step()
        others.step()
        for a, b in zip(mine.parameters(), other.parameters(), strict=True):
            assert_near(a.detach(), b.detach(), f"step {step}", rel=1e-6)


def test_it_is_sam_where_all_layers_are_norms():
    """An independent way: SAM over a model that has norms alone."""
    models = [nn.Sequential(nn.BatchNorm1d(4), nn.Tanh(), nn.LayerNorm(4)).double() for _ in range(2)]
    for model, kind in zip(models, (SAM, SAMON), strict=True):
        optimizer = kind(torch.optim.SGD(model.parameters(), lr=LR), RHO, model=model)

        def closure(model=model, optimizer=optimizer):
            optimizer.zero_grad()
            value = (model(X) - X[:, :1]).pow(4).mean()
            value.backward()
            return value

        for _ in range(3):
            closure()
            optimizer.step(closure)
    assert all(torch.equal(a, b) for a, b in zip(*(m.parameters() for m in models), strict=True))


def test_without_norms_it_says_what_to_write():
    model = network()
    with pytest.raises(ValueError, match=r"write model=model, or groups"):
        SAMON(torch.optim.SGD(model.parameters(), lr=LR), RHO)


def test_groups_may_name_the_norms():
    model = network()
    groups = [{"params": model[1].parameters(), "norm": True}, {"params": [*model[0].parameters(), model[3].weight]}]
    optimizer = SAMON(torch.optim.SGD(groups, lr=LR, momentum=MOMENTUM, weight_decay=DECAY), RHO)
    closure = closure_of(model, optimizer)
    for _ in range(2):
        closure()
        optimizer.step(closure)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), walk(SAMON, 2), strict=True))


def test_copies_and_refusals():
    model = network()
    optimizer = SAMON(torch.optim.AdamW(model.parameters(), lr=0.1), 0.2, model=model, adaptive=True, eta=0.5)
    copied, twin = copy.deepcopy((optimizer, model))
    assert (copied.rho, copied.adaptive, copied.eta, copied.norms) == (0.2, True, 0.5, NORMS)
    assert [id(p) for p in copied.perturbed()] == [id(p) for p in twin[1].parameters()]
    assert optimizer.needs_closure and optimizer.param_groups is optimizer.optimizer.param_groups
    with pytest.raises(RuntimeError, match=r"write closure\(\), then optimizer.step\(closure\)"):
        optimizer.step()
    with pytest.raises(ValueError, match="Linear has no"):
        SAMON(torch.optim.SGD(model[0].parameters(), lr=0.1), model=model[0])
    with pytest.raises(ValueError, match="eta=-1"):
        SAMON(optimizer.optimizer, model=model, eta=-1.0)
    with pytest.raises(TypeError, match="is no optimizer"):
        SAMON(model)


def test_d1_norms_are_found_by_type():
    class NormalHead(nn.Linear):
        pass

    model = nn.ModuleDict({"skip": nn.BatchNorm2d(2), "normal": NormalHead(2, 2), "last": nn.GroupNorm(1, 2)})
    optimizer = SAMON(torch.optim.SGD(model.parameters(), lr=0.1), model=model)
    assert [id(p) for p in optimizer.perturbed()] == [
        id(p) for name in ("skip", "last") for p in model[name].parameters()
    ]
    assert len(SAMON(optimizer.optimizer, model=model, norms=(nn.GroupNorm,)).perturbed()) == 2


def test_d2_the_second_pass_leaves_running_statistics_alone():
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 3)).double()
    optimizer = SAMON(torch.optim.SGD(model.parameters(), lr=LR), RHO, model=model)
    closure = closure_of(model, optimizer)
    closure()
    optimizer.step(closure)
    assert int(model[0].num_batches_tracked) == 1


def test_d3_the_adaptive_form_scales_shifts():
    """Shifts of 0 have T = eta, so that at eta = 0 gains alone move."""
    model = network()
    model[1].bias.data.zero_()
    optimizer = SAMON(torch.optim.SGD(model.parameters(), lr=LR), RHO, model=model, adaptive=True, eta=0.0)
    closure_of(model, optimizer)()
    gain, shift = optimizer.directions(optimizer.perturbed())
    assert not shift.any() and gain.all()


def test_d4_a_gradient_of_zero_and_the_way_back():
    model = network()
    optimizer = SAMON(torch.optim.SGD(model.parameters(), lr=LR), 30.0, model=model)
    before = [p.detach().clone() for p in model.parameters()]
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.ascend()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    model[1].weight.grad = draw(3)
    optimizer.ascend()
    assert not torch.equal(before[2], model[1].weight)
    optimizer.restore()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
