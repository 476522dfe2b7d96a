import math
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from repro.experiments import activations
from repro.models.convnet import ConvNet
from repro.models.mlp import MLP
from repro.papers.swish import Swish, experiment, swish
from repro.testing import assert_near, check_drop_in, check_extremes, check_float32, check_signature, draw, mutation

POINTS = [-1e300, -800.0, -90.0, -4.0, -1.2784645, -1e-3, -1e-300, 0.0, 1e-18, 0.3, 1.2784645, 2.4, 40.0, 800.0, 1e300]
BETAS = [1.0, 0.0, 0.3, 1.702, 10.0, -1.0]
CPU = torch.device("cpu")


def sigmoid(z):
    return 1 / (1 + math.exp(-z)) if z > 0 else math.exp(z) / (1 + math.exp(z))


def oracle(x, beta):
    """(f, df/dx, df/dbeta) in Python floats; the two slopes as the paper writes them, where no power overflows."""
    z = beta * x
    if abs(z) > 745:  # where the smaller of the two sigmoids is 0
        return (x if z > 0 else 0.0), float(z > 0), 0.0
    bump = sigmoid(z) * sigmoid(-z)
    return x * sigmoid(z), sigmoid(z) + z * bump, x * x * bump


def check(f):
    """f(x, beta) and both gradients agree with the oracle at every point, for every beta."""
    for beta in BETAS:
        x = torch.tensor(POINTS, dtype=torch.float64, requires_grad=True)
        b = torch.full((len(POINTS),), beta, dtype=torch.float64, requires_grad=True)
        y = f(x, b)
        grads = torch.autograd.grad(y.sum(), (x, b))
        for point, *got in zip(POINTS, y.tolist(), *(g.tolist() for g in grads), strict=True):
            for name, a, want in zip(("f", "df/dx", "df/dbeta"), got, oracle(point, beta), strict=True):
                if name == "df/dbeta" and abs(point) > 1e150:
                    continue  # the square overflows
                slack = 1e-290 if name == "f" else 1e-12  # slopes are differences of numbers near 1
                assert math.isclose(a, want, rel_tol=1e-11, abs_tol=slack), f"{name} at {point}, {beta}: {a} {want}"


def broken(fault):
    def f(x, beta):
        match fault:
            case "beta ignored":
                return x * torch.sigmoid(x) + 0 * beta
            case "beta outside":
                return beta * x * torch.sigmoid(x)
            case "beta both inside and out":
                return beta * x * torch.sigmoid(beta * x)
            case "gate of -x":
                return x * torch.sigmoid(-beta * x)
            case "gate detached":
                return x * torch.sigmoid(beta * x).detach() + 0 * beta
            case "beta detached":
                return x * torch.sigmoid(beta.detach() * x) + 0 * beta
            case "exponential of -x":
                return x / (1 + torch.exp(-beta * x))
            case "hard gate":
                return x * F.relu6(beta * x + 3) / 6
            case "tanh for sigmoid":
                return x * torch.tanh(beta * x)
            case "1.702 by default":
                return x * torch.sigmoid(1.702 * beta * x)
        return x * torch.sigmoid(beta * x)

    return f


test_oracle, test_mutant_dies = mutation(check, broken, swish)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_against_torch_at_extremes(dtype):
    """Values and gradients of torch.nn.SiLU, and finite ones, on [-1e4, 1e4]."""
    check_extremes(Swish(), nn.SiLU(), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("beta", [0.0, 1.0, 10.0, 1e3, -2.0])
def test_gradients_are_finite(dtype, beta):
    act = Swish(beta, learnable=True, dtype=dtype)
    x = torch.linspace(-1e4, 1e4, 2001).to(dtype).requires_grad_()
    grads = torch.autograd.grad(act(x).float().sum() / len(x), [x, act.beta])
    assert grads[0].isfinite().all() and (beta == 0 or grads[1].isfinite().all())


def test_contract():
    slow = ("compilation", "export", "onnx")  # which tests/test_drop_in.py walks too
    for learnable in (False, True):
        check_drop_in(partial(Swish, 0.7, learnable), "act", but=slow)
    check_float32(swish, torch.linspace(-90, 90, 301))
    check_float32(Swish(1.7, learnable=True), torch.linspace(-90, 90, 301))
    check_signature(swish)
    with pytest.raises(TypeError, match="x.float()"):
        swish(torch.ones(3, dtype=torch.long))
    assert repr(Swish(2.0)) == "Swish(beta=2.0, learnable=False)" and not Swish().state_dict()
    x = draw(3, 4).requires_grad_()
    assert torch.autograd.gradcheck(swish, x) and torch.autograd.gradgradcheck(swish, x)


def test_d1_a_learned_beta_is_one_number_of_a_layer():
    act = Swish(1.0, learnable=True)
    assert act.beta.shape == (1,) and act.beta.item() == 1.0 and list(act.state_dict()) == ["beta"]
    net = MLP([4, 5, 5, 2], act=lambda: Swish(learnable=True), generator=torch.Generator().manual_seed(0))
    net(draw(8, 4, dtype=torch.float32)).square().sum().backward()
    learned = [p for name, p in net.named_parameters() if name.endswith("beta")]
    assert len(learned) == 2 and all(p.grad.abs() > 0 for p in learned)
    with torch.no_grad():
        act.beta.fill_(3.0)
    act.reset_parameters()
    assert act.beta.item() == 1.0 and Swish(learnable=True, device="meta").beta.is_meta


def test_d2_beta_takes_any_sign():
    x = draw(50)
    assert_near(swish(x, -2.0), -swish(-x, 2.0), rel=1e-14)
    act = Swish(-0.5, learnable=True, dtype=torch.float64)
    assert_near(act(x).detach(), x * torch.sigmoid(-0.5 * x), rel=1e-14)


def test_what_the_paper_says_of_beta():
    x = torch.linspace(-6, 6, 1001, dtype=torch.float64)
    assert torch.equal(swish(x, 0.0), x / 2)
    assert (swish(x, 1e6) - F.relu(x)).abs().max() < 3e-7
    facts = experiment.function("swish", 0, experiment.Function(points=100), CPU)
    assert facts["crossing"] == pytest.approx(1.2784645427610738, abs=1e-9)  # 1 + W(1 / e), by hand
    assert facts["least"] == pytest.approx(-0.2784645427610738, abs=1e-12) and facts["least_at"] == pytest.approx(
        -facts["crossing"]
    )
    assert experiment.nearest("swish_1_4", 0, experiment.Function(points=500), CPU)["beta"] == pytest.approx(1.4)


def test_networks_of_the_experiments():
    """Linear, BatchNorm, activation, dropout; a shortcut over every second layer; the same weights in both."""
    source = torch.Generator().manual_seed
    plain, skip = (
        activations.perceptron(Swish, [6, 7, 7, 7, 7, 7, 10], source(0), dropout=0.25, shape=shape)
        for shape in ("plain", "skip")
    )
    assert [type(layer.act[1]) for layer in plain.hidden] == [nn.Dropout] * 5 and plain.hidden[0].act[1].p == 0.25
    x = draw(9, 6, dtype=torch.float32)
    for model in (plain, skip):
        model.eval()
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), skip.parameters(), strict=True))
    h = plain.hidden[0](x)
    for a, b in ((1, 2), (3, 4)):
        h = h + plain.hidden[b](plain.hidden[a](h))
    assert_near(skip(x).detach(), plain.head(h).detach(), rel=1e-6)
    net = activations.convolutions(nn.ReLU, 1, 4, 1, source(0))
    assert isinstance(net, ConvNet) and all(block.skip is None for block in net.blocks)
    variances = activations.output_variances(net, draw(5, 1, 8, 8, dtype=torch.float32))
    assert len(variances) == 7 and min(variances) > 0


def test_statistics_without_dropout():
    model = activations.perceptron(nn.ReLU, [6, 7, 7, 7, 10], torch.Generator().manual_seed(0), dropout=0.5)
    x = draw(1000, 6, dtype=torch.float32)
    activations.renormalised(model, x)
    assert not model.training
    seen = []
    hook = model.hidden[1].norm.register_forward_hook(lambda module, inputs, y: seen.append(inputs[0]))
    model(x)
    hook.remove()
    assert_near(model.hidden[1].norm.running_mean, seen[0].mean(0).detach(), rel=1e-3)
