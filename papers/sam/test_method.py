import copy

import numpy as np
import pytest
import torch
from torch import nn

from repro.papers.sam import SAM, keep_running_statistics
from repro.papers.sam.cifar import AnyDirection, mislabelled
from repro.testing import assert_near, draw, mutation, quiet_import

LR, RHO, DECAY, MOMENTUM = 0.1, 0.3, 0.05, 0.9
A, B = draw(5, 5), draw(5, 5, seed=1)


def start():
    return [nn.Parameter(draw(5, seed=2)), nn.Parameter(draw(5, seed=3))]


def loss_of(parameters, t):
    """Not quadratic, other for each t, and of very different gradients in its two parameters."""
    u, v = parameters
    return ((A @ u).tanh().sum() + 0.01 * ((B @ v - t).square()).sum()) + (u * v).sum().cos()


def gradient(values, t):
    """By NumPy: the gradient of `loss_of`."""
    u, v = values
    a, b = A.numpy(), B.numpy()
    sine = np.sin((u * v).sum())
    return [a.T @ (1 - np.tanh(a @ u) ** 2) - sine * v, 0.02 * b.T @ (b @ v - t) - sine * u]


def oracle(steps):
    """SAM around SGD with momentum and weight decay."""
    values, momentum = [p.detach().numpy().copy() for p in start()], [np.zeros(5)] * 2
    for t in range(steps):
        g = gradient(values, t)
        norm = np.sqrt(sum((part**2).sum() for part in g))
        worst = gradient([w + RHO * part / norm for w, part in zip(values, g, strict=True)], t)
        momentum = [MOMENTUM * m + part + DECAY * w for m, part, w in zip(momentum, worst, values, strict=True)]
        values = [w - LR * m for w, m in zip(values, momentum, strict=True)]
    return [torch.from_numpy(v) for v in values]


def walk(kind, steps):
    parameters = start()
    optimizer = kind(torch.optim.SGD(parameters, lr=LR, momentum=MOMENTUM, weight_decay=DECAY), RHO)
    for t in range(steps):

        def closure(t=t):
            optimizer.zero_grad()
            value = loss_of(parameters, t)
            value.backward()
            return value

        closure()
        optimizer.step(closure)
    return [p.detach() for p in parameters]


def check(kind):
    for steps in (1, 2, 7):
        for got, want in zip(walk(kind, steps), oracle(steps), strict=True):
            assert_near(got, want, f"{steps} steps", rel=1e-9)


def broken(fault):
    class Broken(SAM):
        def directions(self, parameters):
            match fault:
                case "a norm for each parameter":
                    return [self.rho * p.grad / p.grad.norm() for p in parameters]
                case "no norm":
                    return [self.rho * p.grad for p in parameters]
                case "downhill":
                    return [-e for e in super().directions(parameters)]
                case "the sign":
                    return [self.rho * p.grad.sign() / 10**0.5 for p in parameters]
                case "decay in the direction":
                    with torch.no_grad():
                        for p in parameters:
                            p.grad.add_(p, alpha=DECAY)
            return super().directions(parameters)

        def step(self, closure):
            if fault == "stepping from w + e":
                self.ascend()
                loss = closure()
                self.before = []
                self.optimizer.step()
                return loss
            if fault == "the gradient at w":
                self.ascend()
                self.descend()
                return None
            return super().step(closure)

    return Broken


test_oracle, test_mutant_dies = mutation(check, broken, SAM)


@pytest.mark.parametrize("base", [torch.optim.SGD, torch.optim.AdamW], ids=["SGD", "AdamW"])
def test_equals_an_independent_library(base):
    """200 steps of pytorch_optimizer's SAM around the same optimizer, on two parameters in two groups."""
    theirs, paths = quiet_import("pytorch_optimizer").SAM, []
    more = {"momentum": MOMENTUM} if base is torch.optim.SGD else {}
    for mine in (True, False):
        parameters, path = start(), []
        groups = [{"params": [parameters[0]]}, {"params": [parameters[1]], "lr": 0.003}]
        options = {"lr": 0.01, "weight_decay": DECAY, **more}
        optimizer = SAM(base(groups, **options), RHO) if mine else theirs(groups, base, rho=RHO, **options)
        for t in range(200):

            def closure(parameters=parameters, optimizer=optimizer, t=t):
                optimizer.zero_grad()
                value = loss_of(parameters, t % 3)
                value.backward()
                return value

            closure()
            optimizer.step(closure)
            path.append(torch.cat([p.detach() for p in parameters]))
        paths.append(torch.stack(path))
    assert_near(*paths, base.__name__, rel=1e-6)


def test_without_a_radius_it_is_the_wrapped_optimizer():
    parameters, plain = start(), start()
    sam, sgd = SAM(torch.optim.SGD(parameters, lr=LR), 0.0), torch.optim.SGD(plain, lr=LR)
    for t in range(3):
        for group, optimizer in ((parameters, sam), (plain, sgd)):

            def closure(group=group, optimizer=optimizer, t=t):
                optimizer.zero_grad()
                value = loss_of(group, t)
                value.backward()
                return value

            closure()
            optimizer.step(*((closure,) if optimizer is sam else ()))
    assert all(torch.equal(a, b) for a, b in zip(parameters, plain, strict=True))


def test_it_wraps():
    model = nn.Linear(3, 2)
    base = torch.optim.AdamW([{"params": [model.weight]}, {"params": [model.bias], "lr": 0.5}], lr=0.1)
    optimizer = SAM(base, 0.1)
    assert isinstance(optimizer, torch.optim.Optimizer) and optimizer.param_groups is base.param_groups
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 0.5)
    assert [group["lr"] for group in base.param_groups] == [0.05, 0.25] and scheduler.get_last_lr() == [0.05, 0.25]

    def closure():
        optimizer.zero_grad()
        value = model(torch.ones(4, 3)).square().sum()
        value.backward()
        return value

    first = closure()
    assert optimizer.step(closure) > first  # the loss at w + e
    other = SAM(torch.optim.AdamW(model.parameters(), lr=1.0), 0.1)
    other.load_state_dict({**optimizer.state_dict(), "param_groups": other.state_dict()["param_groups"]})
    assert len(other.state) == 2
    copied, twin = copy.deepcopy((optimizer, model))
    assert copied.rho == 0.1 and copied.param_groups[0]["params"][0] is twin.weight
    with pytest.raises(RuntimeError, match=r"write closure\(\), then optimizer.step\(closure\)"):
        optimizer.step()
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(RuntimeError, match="no new gradients at w"):
        optimizer.step(closure)  # those that are there are at w + e of the step before
    optimizer.zero_grad()
    with pytest.raises(RuntimeError, match="no new gradients at w"):
        optimizer.step(closure)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))
    for to_none in (True, False):
        optimizer.zero_grad(set_to_none=to_none)
        closure()
        optimizer.step(closure)
    with pytest.raises(TypeError, match="Linear is no optimizer"):
        SAM(model)
    with pytest.raises(ValueError, match="rho=-1"):
        SAM(base, -1.0)


def test_a_closure_that_fails_leaves_the_weights_where_they_were():
    model = nn.Linear(3, 2)
    optimizer, before = SAM(torch.optim.SGD(model.parameters(), lr=0.1), 1.0), model.weight.detach().clone()
    model(torch.ones(1, 3)).sum().backward()

    def closure():
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        optimizer.step(closure)
    assert torch.equal(model.weight, before)


def test_halves_under_accumulated_gradients():
    """`ascend` and `descend` with two batches each equal a step over both together."""
    models = [nn.Linear(3, 1), nn.Linear(3, 1)]
    models[1].load_state_dict(models[0].state_dict())
    x = draw(8, 3).float()
    one, other = (SAM(torch.optim.SGD(m.parameters(), lr=0.1), 0.5) for m in models)

    def closure():
        one.zero_grad()
        value = models[0](x).square().mean()
        value.backward()
        return value

    closure()
    one.step(closure)
    for half in ("ascend", "descend"):
        other.zero_grad()
        for part in x.chunk(2):
            (models[1](part).square().mean() / 2).backward()
        getattr(other, half)()
    assert_near(models[1].weight.detach(), models[0].weight.detach(), rel=1e-5)


def scaled_steps(scale, steps=3):
    """A linear model after steps of SAM, under a GradScaler if there is a scale."""
    model = nn.Linear(3, 1)
    nn.init.ones_(model.weight), nn.init.zeros_(model.bias)
    optimizer = SAM(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), 0.5)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale or 1.0, enabled=scale is not None)

    def closure():
        optimizer.zero_grad()
        loss = model(draw(8, 3).float()).square().mean()
        scaler.scale(loss).backward()
        return loss

    for _ in range(steps):
        closure()
        scaler.step(optimizer, closure)
        scaler.update()
    return model, optimizer, scaler, closure


def test_under_a_gradient_scaler_it_steps_as_without():
    plain, scaled = scaled_steps(None)[0], scaled_steps(1024.0)[0]
    assert not torch.equal(plain.weight.detach(), torch.ones(1, 3))
    assert_near(scaled.weight.detach(), plain.weight.detach(), rel=1e-5)


def test_a_step_whose_gradients_overflow_is_left_out():
    model, optimizer, scaler, closure = scaled_steps(1024.0, steps=1)
    before = model.weight.detach().clone()
    closure()
    model.weight.grad[0, 0] = float("inf")
    scaler.step(optimizer, closure)
    scaler.update()
    assert torch.equal(model.weight, before) and scaler.get_scale() == 512

    def overflows():
        loss = closure()
        model.weight.grad[0, 0] = float("inf")
        return loss

    closure()
    scaler.step(optimizer, overflows)
    assert torch.equal(model.weight, before), "that at w + e counts too"
    scaler.update()
    closure()
    scaler.unscale_(optimizer)
    with pytest.raises(RuntimeError, match="leave out scaler.unscale_"):
        scaler.step(optimizer, closure)


def test_where_the_optimizer_maximizes_the_worst_point_lies_downhill():
    p = nn.Parameter(torch.ones(1))
    optimizer = SAM(torch.optim.SGD([p], lr=0.1, maximize=True), 0.5)

    def closure():
        optimizer.zero_grad()
        value = -(p**4).sum()
        value.backward()
        return value

    closure()
    assert optimizer.step(closure).item() == -(1.5**4)  # at 1.5 the value is the least within 0.5


def test_sparse_gradients_and_complex_parameters_are_refused():
    table, z = nn.Embedding(4, 2, sparse=True), nn.Parameter(torch.ones(2, dtype=torch.complex64))
    table(torch.tensor([1])).sum().backward()
    z.abs().sum().backward()
    for p, told in ((table.weight, "sparse=False"), (z, "view_as_real")):
        with pytest.raises(RuntimeError, match=f"SAM takes no .*{told}"):
            SAM(torch.optim.SGD([p], lr=0.1)).ascend()


def test_d1_a_gradient_of_zero():
    p = nn.Parameter(torch.ones(3))
    optimizer = SAM(torch.optim.SGD([p], lr=0.1), 0.5)
    p.grad = torch.zeros(3)
    optimizer.ascend()
    assert torch.equal(p.detach(), torch.ones(3))


def test_d2_the_second_pass_leaves_running_statistics_alone():
    x = 3 + draw(16, 4).float()
    models = [nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 1)) for _ in range(2)]
    for model, given in zip(models, (models[0], None), strict=True):
        optimizer = SAM(torch.optim.SGD(model.parameters(), lr=0.1), 0.5, model=given)

        def closure(model=model, optimizer=optimizer):
            optimizer.zero_grad()
            value = model(x).square().mean()
            value.backward()
            return value

        closure()
        optimizer.step(closure)
    assert [int(model[0].num_batches_tracked) for model in models] == [1, 2]
    assert_near(models[0][0].running_mean, 0.1 * x.mean(0), rel=1e-5)
    with keep_running_statistics(models[0]):
        models[0](x)
    assert int(models[0][0].num_batches_tracked) == 1


def test_d3_weights_come_back_bit_for_bit():
    p = nn.Parameter(1e-3 * draw(100).float())
    optimizer, before = SAM(torch.optim.SGD([p], lr=0.0), 30.0), p.detach().clone()
    p.grad = draw(100, seed=1).float()
    with torch.no_grad():
        e = optimizer.directions([p])[0]
        assert not torch.equal((p + e) - e, before)  # what subtracting would leave
    optimizer.ascend()
    assert not torch.equal(p.detach(), before)
    optimizer.restore()
    assert torch.equal(p.detach(), before)


# --- the experiments --------------------------------------------------------------------------------------------------


def test_wrong_labels_are_as_many_as_asked_and_of_every_other_class():
    y = torch.arange(20_000) % 10
    noisy = mislabelled(y, 0.6, 10, torch.Generator().manual_seed(0))
    wrong = noisy != y
    assert abs(wrong.double().mean().item() - 0.6) < 0.015
    shifts = ((noisy - y) % 10)[wrong].bincount(minlength=10)
    assert shifts[0] == 0 and shifts[1:].min() > 0.9 * 12_000 / 9 and noisy.min() >= 0 and noisy.max() <= 9
    assert torch.equal(mislabelled(y, 0.0, 10, torch.Generator().manual_seed(0)), y)


def test_a_random_direction_has_the_length_of_sam_over_all_parameters_together():
    parameters = [nn.Parameter(draw(30)), nn.Parameter(100 * draw(40, seed=1))]
    optimizer = AnyDirection(torch.optim.SGD(parameters, lr=0.1), RHO)
    steps = []
    for _ in range(2):
        torch.manual_seed(0)
        steps.append(torch.cat(optimizer.directions(parameters)))
    assert_near(steps[0].detach().norm(), torch.tensor(RHO, dtype=torch.float64), rel=1e-9)
    assert torch.equal(*steps), "drawn by PyTorch's own generator"
