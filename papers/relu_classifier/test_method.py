import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from repro.papers.relu_classifier import experiment, relu_cross_entropy, relu_head
from repro.testing import check_signature, draw, mutation

ROWS = [
    ([0.2, -1.0, 3.0], 0),
    ([-0.2, 1.0, 3.0], 0),  # the right class is dead
    ([0.0, 1.0, 3.0], 0),  # and at 0
    ([5.0, -1.0, -2.0], 0),  # alone, a share of 1 that is clipped
    ([1e-9, 1.0, 1.0], 0),  # below the clip
    ([1e4, 1e4, 3.0], 1),
    ([-1.0, -2.0, -3.0], 2),  # all dead
]


def oracle(row, y):
    """Loss and gradient in Python floats, as Keras' categorical cross-entropy of max(0, o) has them."""
    p = [max(0.0, o) for o in row]
    total = math.fsum(p)
    share = p[y] / total if total else 0.0
    if not 1e-7 <= share <= 1 - 1e-7:
        return -math.log(min(max(share, 1e-7), 1 - 1e-7)), [0.0] * len(row)
    return -math.log(share), [(1 / total - (1 / p[y] if i == y else 0)) if v > 0 else 0.0 for i, v in enumerate(p)]


def check(loss):
    """loss(o, y, reduction) and its gradient agree with the oracle, row by row and together."""
    o = torch.tensor([row for row, _ in ROWS], dtype=torch.float64, requires_grad=True)
    y = torch.tensor([k for _, k in ROWS])
    each = loss(o, y, "none")
    grads = torch.autograd.grad(each.sum(), o)[0]
    wanted = [oracle(*row) for row in ROWS]
    for row, value, grad, (want, slope) in zip(ROWS, each.tolist(), grads.tolist(), wanted, strict=True):
        assert math.isclose(value, want, rel_tol=1e-12, abs_tol=1e-12), f"{row}: {value}, want {want}"
        for a, b in zip(grad, slope, strict=True):
            assert math.isclose(a, b, rel_tol=1e-10, abs_tol=1e-12), f"{row}: {grad}, want {slope}"
    assert math.isclose(loss(o, y, "mean").item(), sum(v for v, _ in wanted) / len(ROWS), rel_tol=1e-12)


def broken(fault):
    def loss(o, y, reduction):
        p, eps = o.relu(), 1e-7
        if fault == "softmax of the ReLU":
            return F.cross_entropy(p, y, reduction=reduction)
        if fault == "softmax":
            return F.cross_entropy(o, y, reduction=reduction)
        if fault == "eps added":
            p = p + eps
        if fault == "leaky":
            p = F.leaky_relu(o, 1e-3)
        total = p.sum(-1)
        if fault == "all dead divides by 0":
            share = (p / total[..., None]).gather(-1, y[..., None])[..., 0]
        else:
            share = p.gather(-1, y[..., None])[..., 0] / torch.where(total > 0, total, 1.0)
        if fault == "not divided":
            share = p.gather(-1, y[..., None])[..., 0]
        if fault == "sum detached":
            share = p.gather(-1, y[..., None])[..., 0] / torch.where(total > 0, total, 1.0).detach()
        if fault == "clip of 1e-12":
            eps = 1e-12
        share = share.clamp(eps, None if fault == "not clipped from above" else 1 - eps)
        each = -(share.log2() if fault == "bits" else share.log())
        if fault == "sum for mean":
            return each if reduction == "none" else each.sum()
        return each if reduction == "none" else each.mean()

    return loss


test_oracle, test_mutant_dies = mutation(check, broken, relu_cross_entropy)


def test_gradient_by_hand():
    o = torch.tensor([[0.2, -1.0, 3.0]], dtype=torch.float64, requires_grad=True)
    grad = torch.autograd.grad(relu_cross_entropy(o, torch.tensor([0])), o)[0]
    torch.testing.assert_close(grad, torch.tensor([[-4.6875, 0.0, 0.3125]], dtype=torch.float64))
    assert relu_cross_entropy(-o, torch.tensor([0])).item() == pytest.approx(16.11809565)
    inside = torch.tensor([[0.3, 1.0, 2.0], [1.0, 0.5, 4.0]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: relu_cross_entropy(x, torch.tensor([0, 2])), inside)


def test_d1_divided_and_clipped_as_in_keras():
    o, y = torch.tensor([[0.2, 5.0, 3.0]]), torch.tensor([0])
    assert relu_cross_entropy(o, y).item() == pytest.approx(-math.log(0.2 / 8.2))
    assert relu_cross_entropy(o, y, normalise=False).item() == pytest.approx(-math.log(0.2))
    leaf = (10 * o).requires_grad_()
    grad = torch.autograd.grad(relu_cross_entropy(leaf, y, normalise=False), leaf)[0]
    torch.testing.assert_close(grad, torch.tensor([[-0.5, 0.0, 0.0]]))  # nothing pushes wrong classes down


def test_d2_all_outputs_dead():
    o = torch.tensor([[-1.0, -2.0], [1.0, 2.0]], requires_grad=True)
    loss = relu_cross_entropy(o, torch.tensor([0, 0]), "none")
    assert loss[0].item() == pytest.approx(16.118, abs=1e-3)
    grad = torch.autograd.grad(loss.sum(), o)[0]
    assert not grad[0].any() and grad.isfinite().all()


def test_d3_glorot_and_zero_bias():
    torch.manual_seed(0)
    layer, bound = relu_head(400, 200)[0], (6 / 600) ** 0.5
    assert layer.weight.abs().max() <= bound and layer.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)
    assert not layer.bias.any() and relu_head(3, 2, bias=False)[0].bias is None


def test_the_head_is_a_linear_layer_and_a_relu():
    head, twin, x = relu_head(5, 3, dtype=torch.float64), nn.Linear(5, 3, dtype=torch.float64), draw(7, 5)
    twin.load_state_dict(head[0].state_dict())
    assert torch.equal(head(x), twin(x).relu()) and relu_head(5, 3, device="meta")[0].weight.is_meta
    alive = (head(x) > 0).any(1)  # argmax max(0, o) is argmax o unless all are dead, and then the first class
    assert torch.equal(head(x).argmax(1)[alive], twin(x).argmax(1)[alive]) and not head(x).argmax(1)[~alive].any()
    for public in (relu_head, relu_cross_entropy):
        check_signature(public)


def test_the_network_of_the_experiment():
    config = experiment.Heads(steps=0, batch=1, lr=0.0, examples=1, test=1, components=6, width=5)
    nets = [experiment.network(arm, config, torch.Generator().manual_seed(0)) for arm in ("relu", "softmax")]
    x = draw(4, 6, dtype=torch.float32)
    assert torch.equal(nets[0].eval()(x), nets[1].eval()(x).relu())
    dead = experiment.network("one_dead", config, torch.Generator().manual_seed(0)).eval()(x)
    assert not dead[:, 0].any() and torch.equal(dead[:, 1:], nets[0](x)[:, 1:])
    assert [type(layer.act[1]) for layer in nets[0].hidden] == [nn.Dropout] * 3
    assert all(
        layer.linear.weight.abs().max() <= (6 / sum(layer.linear.weight.shape)) ** 0.5 for layer in nets[0].hidden
    )


def test_dtypes_and_errors():
    o, y = torch.tensor([[0.2, 3.0, 1.0]]), torch.tensor([2])
    for dtype in (torch.float16, torch.bfloat16):
        assert relu_cross_entropy(o.to(dtype), y).dtype == dtype
    assert relu_cross_entropy(o.expand(4, 1, 3), y.expand(4, 1), "none").shape == (4, 1)
    with pytest.raises(ValueError, match="write mean, sum or none"):
        relu_cross_entropy(o, y, "median")
    with pytest.raises(TypeError, match="x.float()"):
        relu_cross_entropy(torch.ones(1, 3, dtype=torch.long), y)


def test_components_against_an_svd():
    x, test = 3 * draw(60, 1, 3, 4) + 1, draw(9, 1, 3, 4)
    x[:, :, 0, 0] = 2.0  # a pixel that never changes
    y = torch.zeros(60, dtype=torch.long)
    (got, _), (other, _) = experiment.components((x, y), (test, y[:9]), 5)
    flat = x.flatten(1)
    scale = flat.std(0, correction=0)
    scale[0] = 1.0
    z, w = (flat - flat.mean(0)) / scale, (test.flatten(1) - flat.mean(0)) / scale
    basis = torch.linalg.svd(z, full_matrices=False)[2][:5].T
    torch.testing.assert_close(got.abs(), (z @ basis).abs())
    torch.testing.assert_close(other.abs(), (w @ basis).abs())
