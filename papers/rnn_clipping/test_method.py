import copy

import numpy as np
import pytest
import torch
from torch import nn

from repro.papers.rnn_clipping import clip_grad_norm, clip_norm_, omega, regularised_backward, smart_tanh_
from repro.papers.rnn_clipping.experiment import sequences, stacked
from repro.papers.rnn_clipping.method import TemporalRNN
from repro.testing import assert_near, draw, mutation

T, B, H, INPUTS, CLASSES = 6, 3, 5, 4, 2


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def network(seed=0):
    """With weights large enough that every term shows."""
    model = TemporalRNN(INPUTS, H, CLASSES, generator=seeded(seed)).double()
    for i, p in enumerate(model.parameters()):
        p.data = draw(*p.shape, seed=10 * seed + i) / 2
    return model


U, Y = draw(T, B, INPUTS, seed=50), torch.tensor([0, 1, 1])


def regularised(model, u, y, weight):
    """E and Omega of one network, or of a stack, whose gradients are then in the parameters."""
    states = model.states(u)
    z = model.read(states[-1])
    loss = nn.functional.cross_entropy(z.mT if z.dim() > 2 else z, y, reduction="none").mean(-1)
    return loss.detach(), regularised_backward(loss, states, model.recurrent, weight)


# --- clipping ---------------------------------------------------------------------------------------------------------


def check_clip(clip):
    for size in (0.1, 1.0, 30.0):
        gradients = [size * draw(4, 3), size * draw(5, seed=1), size * draw(2, seed=2)]
        parameters = [nn.Parameter(torch.zeros_like(g)) for g in gradients]
        for p, g in zip(parameters, gradients, strict=True):
            p.grad = g.clone()
        parameters.append(nn.Parameter(torch.zeros(3)))  # has no gradient
        norm = np.sqrt(sum(float((g.numpy() ** 2).sum()) for g in gradients))
        assert float(clip(parameters, 1.5)) == pytest.approx(norm, rel=1e-12)
        for p, g in zip(parameters, gradients, strict=False):
            assert_near(p.grad, g * min(1, 1.5 / norm), f"size {size}", rel=1e-12)


def broken_clip(fault):
    def clip(parameters, threshold):
        parameters = [p for p in parameters if p.grad is not None]
        norm = torch.cat([p.grad.flatten() for p in parameters]).norm()
        for p in parameters:
            match fault:
                case "elementwise":
                    p.grad.clamp_(-threshold, threshold)
                    continue
                case "each tensor alone":
                    p.grad.mul_((threshold / p.grad.norm()).clamp(max=1))
                    continue
                case "always":
                    p.grad.mul_(threshold / norm)
                    continue
                case "largest entry":
                    largest = torch.cat([q.grad.flatten() for q in parameters]).abs().max()
                    p.grad.mul_((threshold / largest).clamp(max=1))
                    break
                case "root mean square":
                    count = sum(q.grad.numel() for q in parameters)
                    p.grad.mul_((threshold * count**0.5 / norm).clamp(max=1))
                    continue
                case "eps added":
                    p.grad.mul_((threshold / (norm + 1e-6)).clamp(max=1))
                    continue
            p.grad.mul_((threshold / norm).clamp(max=1))
        return norm

    return clip


test_clip, test_clip_mutant_dies = mutation(check_clip, broken_clip, clip_grad_norm)


def test_against_torch():
    ours, theirs = nn.Linear(5, 4).double(), nn.Linear(5, 4).double()
    for model in (ours, theirs):
        for i, p in enumerate(model.parameters()):
            p.grad = 5 * draw(*p.shape, seed=i)
    assert_near(clip_grad_norm(ours.parameters(), 1.0), nn.utils.clip_grad_norm_(theirs.parameters(), 1.0), rel=1e-12)
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert_near(p.grad, q.grad, rel=1e-6)  # torch adds 1e-6 to the norm
    assert clip_grad_norm([nn.Parameter(torch.zeros(2))], 1.0) == 0


def test_d4_a_norm_that_is_not_finite_changes_nothing():
    for value in (torch.inf, torch.nan):
        p = nn.Parameter(torch.zeros(2))
        p.grad = torch.tensor([1.0, value])
        assert not clip_grad_norm([p], 0.1).isfinite() and p.grad[0] == 1.0


@pytest.mark.parametrize("threshold", [0.0, -1.0, float("nan")])
def test_refuses_a_threshold_that_is_none(threshold):
    with pytest.raises(ValueError, match="write a norm above 0"):
        clip_norm_([torch.ones(2)], threshold)


# --- the regulariser --------------------------------------------------------------------------------------------------


def oracle(model, squared=False):
    """States, gradients dE/dx_t by the chain rule, Omega, and its slope in W alone, in NumPy."""
    p = {name: value.detach().numpy() for name, value in model.named_parameters()}
    x, states = np.zeros((B, H)), []
    for u in U.numpy():
        x = np.tanh(x @ p["recurrent"].T + u @ p["input"].T + p["bias"])
        states.append(x)
    z = x @ p["output"].T + p["output_bias"]
    q = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    d = [(q - np.eye(CLASSES)[Y]) / B @ p["output"]]
    for x in states[:0:-1]:
        d.insert(0, (d[0] * (1 - x**2)) @ p["recurrent"])
    total, slope = 0.0, np.zeros((H, H))
    for t in range(T - 1):
        for b in range(B):
            size, scaled = np.linalg.norm(d[t + 1][b]), d[t + 1][b] * (1 - states[t + 1][b] ** 2)
            back = scaled @ p["recurrent"]
            length = np.linalg.norm(back)
            ratio = (length / size) ** 2 if squared else length / size
            total += (ratio - 1) ** 2
            of_ratio = 2 * np.outer(scaled, back) / size**2 if squared else np.outer(scaled, back) / length / size
            slope += 2 * (ratio - 1) * of_ratio
    return np.stack(states), np.stack(d), total / (T - 1) / B, slope / (T - 1) / B


def check_omega(measure):
    for seed in (0, 1):
        model = network(seed)
        x, d, want, slope = oracle(model)
        got = measure(model.recurrent, torch.tensor(x), torch.tensor(d))
        assert_near(got.detach(), torch.tensor(want), "value", rel=1e-10)
        assert_near(torch.autograd.grad(got, model.recurrent)[0], torch.tensor(slope), "slope", rel=1e-9)


def broken_omega(fault):
    def measure(weight, x, d):
        slopes = 1 - x[1:] ** 2
        if fault == "transposed":
            back = (d[1:] * slopes) @ weight.T
        elif fault == "no slopes":
            back = d[1:] @ weight
        elif fault == "slopes after the weight":
            back = (d[1:] @ weight) * slopes
        elif fault == "a step early":
            back = (d[1:] * (1 - x[:-1] ** 2)) @ weight
        else:
            back = (d[1:] * slopes) @ weight
        ratio = back.norm(dim=-1) / d[1:].norm(dim=-1)
        match fault:
            case "squared":
                ratio = ratio**2
            case "against the last":
                ratio = back.norm(dim=-1) / d[-1].norm(dim=-1)
            case "absolute":
                return (ratio - 1).abs().mean()
            case "over the batch":  # one norm for all sequences
                ratio = back.norm(dim=(1, 2)) / d[1:].norm(dim=(1, 2))
            case "sum":
                return (ratio - 1).square().sum()
            case "logarithm":
                return ratio.log().square().mean()
        return (ratio - 1).square().mean()

    return measure


test_omega, test_omega_mutant_dies = mutation(check_omega, broken_omega, omega)


def test_the_regulariser_adds_its_slope_to_the_recurrent_weight_alone():
    plain, both = network(), network()
    loss, nothing = regularised(plain, U, Y, weight=0.0)
    again, penalty = regularised(both, U, Y, weight=3.0)
    _, _, want, slope = oracle(network())
    assert_near(loss, nn.functional.cross_entropy(network()(U), Y).detach(), rel=1e-12)
    assert loss == again and nothing == 0
    assert_near(penalty, torch.tensor(want), rel=1e-10)
    for (name, p), q in zip(plain.named_parameters(), both.parameters(), strict=True):
        extra = q.grad - p.grad
        assert_near(
            extra, 3 * torch.tensor(slope) if name == "recurrent" else torch.zeros_like(extra), name, floor=1e-14
        )


def test_gradients_with_respect_to_states():
    model = network()
    states = model.states(U)
    loss = nn.functional.cross_entropy(model.read(states[-1]), Y)
    got = torch.stack(torch.autograd.grad(loss, states))
    x, d, *_ = oracle(model)
    assert_near(torch.stack(states).detach(), torch.tensor(x), rel=1e-12)
    assert_near(got, torch.tensor(d), rel=1e-10)


# --- departures -------------------------------------------------------------------------------------------------------


def test_d1_a_mean_over_batch_and_time():
    weight, x, d = draw(H, H), draw(T, B, H) / 3, draw(T, B, H, seed=1)
    one = omega(weight, x, d)
    assert_near(omega(weight, x.repeat(1, 4, 1), d.repeat(1, 4, 1)), one, rel=1e-12)
    single = torch.stack([omega(weight, x[:, b : b + 1], d[:, b : b + 1]) for b in range(B)])
    assert_near(one, single.mean(), rel=1e-12)


def test_d2_the_square_of_the_code():
    model = network()
    x, d, want, slope = oracle(model, squared=True)
    got = omega(model.recurrent, torch.tensor(x), torch.tensor(d), squared=True)
    assert_near(got.detach(), torch.tensor(want), rel=1e-10)
    assert_near(torch.autograd.grad(got, model.recurrent)[0], torch.tensor(slope), rel=1e-9)


def test_d3_vanished_gradients_are_left_out():
    weight, x, d = draw(H, H).requires_grad_(), draw(T, B, H) / 3, draw(T, B, H, seed=1)
    want = omega(weight, x[2:], d[2:])
    d[1:3] = 1e-11 * d[1:3]
    got = omega(weight, x, d)
    assert_near(got.detach(), want.detach(), rel=1e-12)
    assert torch.autograd.grad(got, weight)[0].isfinite().all()
    gone = omega(weight, x, 0 * d)
    assert gone == 0 and torch.autograd.grad(gone, weight)[0].isfinite().all()


def test_d5_the_form_of_torch():
    ours, theirs = network(), nn.RNN(INPUTS, H, nonlinearity="tanh").double()
    with torch.no_grad():
        theirs.weight_hh_l0.copy_(ours.recurrent), theirs.weight_ih_l0.copy_(ours.input)
        theirs.bias_ih_l0.copy_(ours.bias), theirs.bias_hh_l0.zero_()
    assert_near(torch.stack(ours.states(U)).detach(), theirs(U)[0].detach(), rel=1e-12)


# --- the network and the task -----------------------------------------------------------------------------------------


def test_smart_tanh():
    weight = smart_tanh_(torch.empty(50, 50), seeded())
    assert torch.linalg.eigvals(weight.double()).abs().max().item() == pytest.approx(0.95, rel=1e-5)
    assert ((weight != 0).sum(1) == 15).all()
    assert torch.equal(weight, smart_tanh_(torch.empty(50, 50), seeded()))


def test_a_stack_does_as_its_networks():
    models = [network(seed) for seed in (0, 1)]
    whole = stacked(models)
    u, y = torch.stack([U, 2 * U], 1), torch.stack([Y, 1 - Y])
    losses, penalties = regularised(whole, u, y, weight=2.0)
    for k, model in enumerate(copy.deepcopy(models)):
        loss, penalty = regularised(model, u[:, k], y[k], weight=2.0)
        assert_near(losses[k], loss, rel=1e-12), assert_near(penalties[k], penalty, rel=1e-12)
        for p, q in zip(whole.parameters(), model.parameters(), strict=True):
            assert_near(p.grad[k], q.grad, rel=1e-10)


def test_sequences():
    u, y = sequences(40, 500, seeded())
    assert u.shape == (40, 500, 6) and torch.equal(u.sum(-1), torch.ones(40, 500))
    signals = u[..., :2].sum(-1)
    assert torch.equal(signals.sum(0), torch.full((500,), 2.0))
    assert (signals[4:8].sum(0) == 1).all() and (signals[20:24].sum(0) == 1).all()
    first, second = u[4:8, :, 1].sum(0), u[20:24, :, 1].sum(0)
    assert torch.equal(y, (first + 2 * second).long()) and set(y.tolist()) == {0, 1, 2, 3}
