import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from repro.papers.label_smoothing import (
    distillation_loss,
    expected_calibration_error,
    experiment,
    label_smoothing_loss,
    logit_gap,
    smoothed_targets,
    temperature_scaling,
)
from repro.papers.label_smoothing.distillation import shuffled
from repro.papers.label_smoothing.experiment import clusters
from repro.testing import assert_near, draw, mutation
from repro.testing.norms import quiet_import

N, K = 7, 5
Y = torch.randint(K, (N,), generator=torch.Generator().manual_seed(1))


def inputs():
    z = draw(N, K)
    return {"plain": z, "shifted": 100 + z, "large": 30 * z, "equal": torch.zeros(N, K, dtype=torch.float64)}


# --- the loss ---------------------------------------------------------------------------------------------------------


def oracle_loss(z, y, a):
    """- sum q log p in Python floats."""
    total = 0.0
    for row, right in zip(z.tolist(), y.tolist(), strict=True):
        most = max(row)
        log_sum = most + math.log(math.fsum(math.exp(v - most) for v in row))
        total -= math.fsum(((1 - a) * (k == right) + a / len(row)) * (v - log_sum) for k, v in enumerate(row))
    return torch.tensor(total / len(y), dtype=torch.float64)


def check_loss(loss):
    for name, z in inputs().items():
        for a in (0.0, 0.1, 0.5, 1.0):
            leaf = z.clone().requires_grad_()
            value = loss(leaf, Y, a)
            assert_near(value.detach(), oracle_loss(z, Y, a), f"{name} {a}", rel=1e-12)
            want = (z.softmax(-1) - (1 - a) * F.one_hot(Y, K).double() - a / K) / N
            assert_near(torch.autograd.grad(value, leaf)[0], want, f"slope {name} {a}", rel=1e-9, floor=1e-14)


def broken_loss(fault):
    def loss(z, y, a):
        log_p = z.log_softmax(-1)
        right, others = log_p.gather(-1, y[:, None]).squeeze(-1), log_p.mean(-1)
        match fault:
            case "wrong classes alone":
                others = (log_p.sum(-1) - right) / (K - 1)
            case "sum over the classes":
                others = log_p.sum(-1)
            case "true class whole":
                return -(right + a * others).mean()
            case "mean of probabilities":
                others = log_p.exp().mean(-1).log()
            case "summed over examples":
                return -((1 - a) * right + a * others).sum()
            case "logits in place of log p":
                others = z.mean(-1)
            case "shares exchanged":
                return -(a * right + (1 - a) * others).mean()
        return -((1 - a) * right + a * others).mean()

    return loss


test_loss, test_loss_mutant_dies = mutation(check_loss, broken_loss, label_smoothing_loss)


def test_against_torch_and_timm():
    timm = quiet_import("timm.loss").LabelSmoothingCrossEntropy(0.1)
    for name, z in inputs().items():
        got = label_smoothing_loss(z, Y)
        assert_near(got, nn.CrossEntropyLoss(label_smoothing=0.1)(z, Y), name, rel=1e-12)
        assert_near(got, timm(z, Y), name, rel=1e-12)
        assert_near(got, F.cross_entropy(z, smoothed_targets(Y, K).double()), name, rel=1e-6)


def test_d1_the_true_class_has_its_share():
    q = smoothed_targets(Y, K, 0.1)
    assert_near(q.sum(-1), torch.ones(N), rel=1e-6)
    assert_near(q[torch.arange(N), Y], torch.full((N,), 0.92), rel=1e-6)
    assert logit_gap(10, 0.1) == pytest.approx(math.log(91)) and logit_gap(10, 0.0) == math.inf
    z = torch.zeros(10, dtype=torch.float64)
    z[3] = logit_gap(10, 0.1)
    leaf = z.requires_grad_()
    slope = torch.autograd.grad(label_smoothing_loss(leaf[None], torch.tensor([3])), leaf)[0]
    assert slope.abs().max() < 1e-15  # the minimum
    assert leaf.softmax(0)[3].item() == pytest.approx(0.91)


@pytest.mark.parametrize("a", [-0.1, 1.1, math.nan])
def test_refuses_no_share(a):
    for call in (
        lambda: smoothed_targets(Y, K, a),
        lambda: label_smoothing_loss(draw(N, K), Y, a),
        lambda: logit_gap(K, a),
    ):
        with pytest.raises(ValueError, match="write a share from 0 to 1"):
            call()


def test_half_precision_is_computed_in_float32():
    z = (30 * draw(N, K)).bfloat16()
    assert label_smoothing_loss(z, Y).dtype == torch.float32
    assert_near(label_smoothing_loss(z, Y), label_smoothing_loss(z.double(), Y), rel=1e-5)


# --- calibration ------------------------------------------------------------------------------------------------------


def oracle_ece(p, y, bins):
    confidence, right = p.max(1), p.argmax(1) == y
    total = 0.0
    for b in range(bins):
        inside = (confidence > b / bins) & (confidence <= (b + 1) / bins)
        if inside.any():
            total += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    return total


def check_ece(ece):
    for seed, bins in ((0, 15), (1, 10), (2, 1)):
        p = (3 * draw(400, K, seed=seed)).softmax(-1)
        y = torch.randint(K, (400,), generator=torch.Generator().manual_seed(seed))
        assert ece(p, y, bins) == pytest.approx(oracle_ece(p.numpy(), y.numpy(), bins), abs=1e-12)


def broken_ece(fault):
    def ece(p, y, bins):
        confidence, guess = p.max(-1)
        if fault == "of the true class":
            confidence = p.gather(-1, y[:, None]).squeeze(-1)
        gap, total = (guess == y).double() - confidence, 0.0
        index = (confidence * bins).ceil().long().clamp(1, bins) - 1
        if fault == "equal counts":
            index = confidence.argsort().argsort() * bins // len(y)
        for b in range(bins):
            inside = gap[index == b]
            if fault == "single gaps":
                total += float(inside.abs().sum()) / len(y)
            elif fault == "signed":
                total += float(inside.sum()) / len(y)
            elif fault == "bins alike" and len(inside):
                total += float(inside.mean().abs()) / bins
            elif fault == "squared" and len(inside):
                total += float(inside.mean().square()) * len(inside) / len(y)
            elif fault not in ("bins alike", "squared"):
                total += float(inside.sum().abs()) / len(y)
        return total

    return ece


test_ece, test_ece_mutant_dies = mutation(check_ece, broken_ece, expected_calibration_error, but=["signed"])


def test_signed_sums_would_cancel():
    p = torch.tensor([[0.6, 0.4], [0.9, 0.1]])
    y = torch.tensor([0, 1])
    assert expected_calibration_error(p, y) == pytest.approx((0.4 + 0.9) / 2)
    assert broken_ece("signed")(p, y, 15) != pytest.approx((0.4 + 0.9) / 2)


def test_d2_the_edges_of_the_bins():
    p = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.5, 0.5]], dtype=torch.float64)
    assert expected_calibration_error(p, torch.zeros(3, dtype=torch.long), bins=2) == pytest.approx((1 + 0.5) / 3)


def test_d3_temperature_scaling():
    z = 4 * draw(4000, 3)
    y = torch.multinomial((z / 2.5).softmax(-1), 1, generator=torch.Generator().manual_seed(0)).squeeze(-1)
    t = temperature_scaling(z, y)
    assert t == pytest.approx(2.5, rel=0.1)
    loss = [float(F.cross_entropy(z / s, y)) for s in (0.99 * t, t, 1.01 * t)]
    assert loss[1] < min(loss[0], loss[2])
    assert temperature_scaling(10 * z, y) == pytest.approx(10 * t, rel=1e-6) or 10 * t > 20
    assert temperature_scaling(-z, y) == pytest.approx(20, rel=1e-3)  # the end of the range


# --- distillation -----------------------------------------------------------------------------------------------------


def check_distillation(loss):
    z, teacher = draw(N, K), 3 * draw(N, K, seed=1)
    for t in (1.0, 4.0, 0.5):
        p, q = (np.exp(v.numpy() / t) for v in (z, teacher))
        p, q = (v / v.sum(1, keepdims=True) for v in (p, q))
        assert_near(loss(z, teacher, t), torch.tensor(-(t**2) * (q * np.log(p)).sum(1).mean()), f"T = {t}", rel=1e-12)


def broken_distillation(fault):
    def loss(z, teacher, t):
        target, log_p = (teacher / t).softmax(-1), (z / t).log_softmax(-1)
        match fault:
            case "no square":
                return -(target * log_p).sum(-1).mean()
            case "student without temperature":
                log_p = z.log_softmax(-1)
            case "teacher without temperature":
                target = teacher.softmax(-1)
            case "divergence":
                return t**2 * F.kl_div(log_p, target, reduction="batchmean")
            case "mean over the classes":
                return -(t**2) * (target * log_p).mean()
            case "exchanged":
                return distillation_loss(teacher, z, t)
        return -(t**2) * (target * log_p).sum(-1).mean()

    return loss


test_distillation, test_distillation_mutant_dies = mutation(check_distillation, broken_distillation, distillation_loss)


def test_d4_a_temperature_for_each_example():
    z, teacher, t = draw(4, K), draw(4, K, seed=1), torch.tensor([0.5, 1.0, 2.0, 8.0], dtype=torch.float64)
    alone = torch.stack([distillation_loss(z[i : i + 1], teacher[i : i + 1], float(t[i])) for i in range(4)])
    assert_near(distillation_loss(z, teacher, t), alone.mean(), rel=1e-12)
    slopes = []
    for high in (100.0, 200.0):  # with the square the slope has a limit: that of matching logits
        leaf = z.clone().requires_grad_()
        slopes.append(torch.autograd.grad(distillation_loss(leaf, teacher, high), leaf)[0])
    assert_near(slopes[0], slopes[1], rel=0.05)


# --- what the experiment builds on ------------------------------------------------------------------------------------


def test_shuffled_keeps_the_labelled_class_and_all_values():
    z = draw(N, K)
    other = shuffled(z, Y, 0)
    rows = torch.arange(N)
    assert torch.equal(other[rows, Y], z[rows, Y]) and torch.equal(other.sort(1)[0], z.sort(1)[0])
    assert not torch.equal(other, z) and torch.equal(other, shuffled(z, Y, 0))


def test_clusters_are_free_of_scale_and_of_what_no_template_sees():
    y = torch.arange(60) % 10
    templates, h = draw(10, 16), draw(60, 16, seed=2) + 5 * draw(10, 16, seed=1)[y]
    want = clusters(h, y, templates)
    assert clusters(7 - 3 * h, y, 2 + templates) == pytest.approx(want)
    unseen = torch.linalg.svd(templates - templates.mean(0))[2][9:]
    assert clusters(h + 100 * draw(60, 7, seed=3) @ unseen, y, templates) == pytest.approx(want)
    centres = torch.stack([h[y == k].mean(0) for k in range(10)])
    assert clusters(centres[y], y, templates) == pytest.approx(0, abs=1e-12)


def test_residual_network_holds_images_out_for_the_temperature_alone(monkeypatch):
    """A network that is sure and right in 3 of 4 cases: the temperature makes it sure by 3 in 4, its error stays."""
    y = torch.arange(40) % 10
    x = 20 * F.one_hot(torch.where(torch.arange(40) % 4 == 0, y + 1, y) % 10, 10).double()
    seen = {}

    def classified(model, name, seed, config, device, *, data, loss):
        seen.update(data=data, floor=float(loss(torch.zeros(1, 10), torch.zeros(1, dtype=torch.long))))
        seen["sure"] = float(loss(20 * torch.eye(10)[:1], torch.zeros(1, dtype=torch.long)))
        return {"error": 0.25}

    monkeypatch.setattr(experiment, "classified", classified)
    monkeypatch.setattr(experiment, "resnet56", lambda classes, **options: nn.Identity())
    monkeypatch.setattr(experiment.Networks, "load", lambda self, device: ((x, y), (x, y)))
    config = experiment.Networks(width=1, validation=16, steps=1, batch=1, lr=0.1)
    found = {arm: experiment.cifar(arm, 0, config, torch.device("cpu")) for arm in ("hard", "scaled")}
    assert len(seen["data"][0][0]) == 24 and len(seen["data"][1][0]) == 40 and config.data == "cifar100"
    assert found["hard"] == {"error": 0.25, "ece": pytest.approx(0.25, abs=1e-6)}
    assert found["scaled"]["ece"] < 0.01 and found["scaled"]["error"] == 0.25 and seen["sure"] < 1e-6
    experiment.cifar("light", 0, config, torch.device("cpu"))
    assert seen["sure"] == pytest.approx(0.05 * 0.9 * 20, rel=1e-4) and seen["floor"] == pytest.approx(math.log(10))
