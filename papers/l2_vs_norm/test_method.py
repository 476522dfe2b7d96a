import copy

import numpy as np
import pytest
import torch
from torch import nn

from repro.papers.l2_vs_norm import UnitNorm, effective_rate, equivalent, resting_norm, unit_norm_
from repro.papers.l2_vs_norm.cifar import convnet
from repro.testing import assert_near, draw, mutation

X, T = draw(12, 4, seed=1), draw(12, 3, seed=2)


def normalised(h):
    """By NumPy: h less its mean, over its deviation, unit by unit."""
    return (h - h.mean(0)) / h.std(0)


def oracle(scale, rule, steps):
    """By NumPy: outputs of one normalised layer and the loss |out - T|^2, from `scale` times the weights, in `steps`
    steps of SGD with momentum, of Adam or of AdamW at the lr and the lambda that the paper's symmetry asks for."""
    lr, decay = 0.05, 0.02
    a = scale
    rate, shrink = {"sgd": (a**2 * lr, decay / a**2), "adam": (a * lr, decay / a**2), "adamw": (a * lr, decay / a)}[
        rule
    ]
    w, x, t = a * draw(3, 4, seed=3).numpy(), X.numpy(), T.numpy()
    m = v = momentum = np.zeros((3, 4))
    outputs = []
    for step in range(1, steps + 1):
        h = x @ w.T
        z = normalised(h)
        outputs.append(z)
        d = 2 * (z - t)
        g = ((d - d.mean(0) - z * (d * z).mean(0)) / h.std(0)).T @ x
        assert np.allclose((w * g).sum(1), 0)
        g = g if rule == "adamw" else g + 2 * shrink * w
        if rule == "sgd":
            momentum = 0.9 * momentum + g
            w = w - rate * momentum
            continue
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        u = (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.999**step)) + 1e-8 / a)
        w = w - rate * (u + (2 * shrink * w if rule == "adamw" else 0))
    return np.stack(outputs)


def train(scale, rule, steps, rule_of_symmetry):
    """By torch: the same, with `rule_of_symmetry` in the place of `equivalent`."""
    w = nn.Parameter(scale * draw(3, 4, seed=3))
    lr, decay = rule_of_symmetry(scale, 0.05, 0.02, rule)
    options = {"lr": lr, "weight_decay": 2 * decay}
    match rule:
        case "sgd":
            optimizer = torch.optim.SGD([w], momentum=0.9, **options)
        case "adam":
            optimizer = torch.optim.Adam([w], eps=1e-8 / scale, **options)
        case "adamw":
            optimizer = torch.optim.AdamW([w], eps=1e-8 / scale, **options)
    outputs = []
    for _ in range(steps):
        h = X @ w.T
        z = (h - h.mean(0)) / h.std(0, correction=0)
        outputs.append(z.detach())
        optimizer.zero_grad()
        (z - T).square().sum().backward()
        optimizer.step()
    return torch.stack(outputs)


def check(symmetry):
    for rule in ("sgd", "adam", "adamw"):
        want = torch.from_numpy(oracle(1.0, rule, 15))
        assert_near(torch.from_numpy(oracle(3.7, rule, 15)), want, f"the oracle, {rule}", rel=1e-7)
        for scale in (1.0, 0.2, 3.7):
            assert_near(train(scale, rule, 15, symmetry), want, f"{rule}, {scale}", rel=1e-7)


def broken(fault):
    def symmetry(scale, lr, decay, optimizer="sgd"):
        rate, shrink = equivalent(scale, lr, decay, optimizer)
        match fault:
            case "the rate as it is":
                return lr, shrink
            case "the decay as it is":
                return rate, decay
            case "one power for SGD" if optimizer == "sgd":
                return lr * scale, shrink
            case "SGD's powers for Adam" if optimizer == "adam":
                return lr * scale**2, shrink
            case "Adam's powers for AdamW" if optimizer == "adamw":
                return rate, decay / scale**2
            case "weight_decay for lambda":
                return rate, shrink / 2
            case "the inverse":
                return equivalent(1 / scale, lr, decay, optimizer)
        return rate, shrink

    return symmetry


test_oracle, test_mutant_dies = mutation(check, broken, equivalent)


def test_the_norm_comes_to_rest_where_it_is_said():
    """w is lengthened by steps orthogonal to it, of squared gradient G / |w|^2, and shortened by lambda."""
    lr, decay, gradient = 0.3, 0.05, 7.0
    square = 1.0
    for _ in range(2000):
        square = (1 - 2 * lr * decay) ** 2 * square + lr**2 * gradient / square
    assert_near(resting_norm(lr, decay, gradient), torch.tensor(square**0.5), rel=1e-6)
    assert_near(resting_norm(*equivalent(2.0, lr, decay), gradient), 2 * resting_norm(lr, decay, gradient), rel=1e-12)


def test_effective_rates():
    w = draw(5, 3, 2, 2)
    want = 0.1 / w.numpy().reshape(5, -1).__pow__(2).sum(1)
    assert_near(effective_rate(w, 0.1), torch.from_numpy(want), rel=1e-12)
    assert_near(effective_rate(w, 0.1, power=1), torch.from_numpy(0.1**0.5 * want**0.5), rel=1e-12)


def test_unit_norm_steps_and_projects():
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Conv1d(3, 2, 1)).double()
    optimizer = UnitNorm(torch.optim.SGD(model.parameters(), lr=0.1), [model[0].weight])
    w, b = model[0].weight.detach().clone().numpy(), model[0].bias.detach().clone()
    assert np.allclose(np.linalg.norm(w, axis=1), 1)
    kernel = model[2].weight.detach().clone()
    (model[0](X) - T).pow(4).sum().backward()
    g = model[0].weight.grad.numpy().copy()
    optimizer.step()
    want = w - 0.1 * g
    want = want / np.sqrt((want**2).sum(1, keepdims=True))
    assert_near(model[0].weight.detach(), torch.from_numpy(want), rel=1e-12)
    assert not torch.equal(model[0].bias.detach(), b) and torch.equal(model[2].weight.detach(), kernel)
    every = UnitNorm(torch.optim.SGD(model.parameters(), lr=0.1))
    assert len(every.weights) == 2
    assert_near(model[2].weight.detach().flatten(1).norm(dim=1), torch.ones(2).double(), rel=1e-12)


def test_unit_norm_is_an_optimizer():
    model = nn.Linear(3, 2)
    optimizer = UnitNorm(torch.optim.AdamW(model.parameters(), lr=0.1))
    copied, twin = copy.deepcopy((optimizer, model))
    assert copied.weights[0] is twin.weight and optimizer.param_groups is optimizer.optimizer.param_groups
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 0.5)
    assert scheduler.get_last_lr() == [0.05]
    assert torch.is_tensor(optimizer.step(lambda: model(torch.ones(1, 3)).sum()))
    with pytest.raises(TypeError, match="Linear is no optimizer"):
        UnitNorm(model)
    with pytest.raises(RuntimeError, match="no complex parameters: write torch.view_as_real"):
        UnitNorm(torch.optim.SGD([nn.Parameter(torch.ones(2, 2, dtype=torch.complex64))], lr=0.1))
    for wrong in ([nn.Parameter(torch.ones(2, 2))], [model.bias]):
        with pytest.raises(ValueError, match="what the optimizer does not train, or a vector"):
            UnitNorm(optimizer.optimizer, wrong)


def test_half_precision_and_refusals():
    w = nn.Parameter((1e-3 * draw(4, 300)).half())
    unit_norm_([w])
    assert w.dtype == torch.float16
    assert_near(w.detach().double().norm(dim=1), torch.ones(4).double(), rel=1e-2)
    assert effective_rate(w, 0.5).dtype == torch.float32
    with pytest.raises(ValueError, match="optimizer='lion' is unknown; write one of sgd"):
        equivalent(2.0, 0.1, 0.1, "lion")
    with pytest.raises(ValueError, match="scale=0"):
        equivalent(0.0, 0.1, 0.1)
    with pytest.raises(ValueError, match="lr=-1"):
        equivalent(1.0, -1.0, 0.1)


def test_d1_the_rest_has_the_term_of_second_order():
    lr, decay = 0.5, 0.5
    assert_near(resting_norm(lr, decay, 1.0) ** 4, torch.tensor(lr / (4 * decay * 0.75)), rel=1e-6)
    with pytest.raises(ValueError, match="their product lies between 0 and 1"):
        resting_norm(2.0, 0.5, 1.0)


def test_d2_a_row_of_zeros_stays():
    w = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
    unit_norm_([w])
    assert_near(w, torch.tensor([[0.0, 0.0], [0.6, 0.8]]), rel=1e-6)


# --- the network of the experiment on CIFAR-10 ------------------------------------------------------------------------


def test_the_normalised_network_has_nothing_but_weights_whose_length_it_does_not_see():
    x = draw(8, 3, 16, 16).float()
    for normalised in (True, False):
        net = convnet(normalised, 4, 10, torch.Generator().manual_seed(0))
        units = [4, 4, 8, 8, 16, 16, 10]
        weights = 9 * sum(a * b for a, b in zip([3, *units], units[:-1], strict=False)) + 160
        trained = [p for p in net.parameters() if p.requires_grad]
        assert sum(p.numel() for p in trained) == weights + (0 if normalised else sum(units))
        assert len(trained) == (7 if normalised else 14)
        for norm in (layer for layer in net if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d)):
            norm.eps = 1e-12
        before = net(x).detach()
        with torch.no_grad():
            for p in trained:
                p.mul_(3.0)
        assert torch.allclose(net(x), before, atol=1e-3) == normalised
