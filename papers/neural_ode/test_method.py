import copy
import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import nn

from repro.papers.neural_ode import ODEBlock, odeint, odeint_adjoint
from repro.papers.neural_ode.experiment import kept
from repro.papers.neural_ode.networks import EveryState, Flipped, network
from repro.papers.neural_ode.solvers import ERROR, TABLEAUX
from repro.testing import assert_near, draw, mutation

FIXED = {"euler": 1, "midpoint": 2, "rk4": 4}


class Field(nn.Module):
    """f(t, z) = W2 tanh(W1 z + t u); z: (B, 3)."""

    def __init__(self):
        super().__init__()
        self.up, self.down, self.time = (
            nn.Parameter(0.6 * draw(*shape, seed=i)) for i, shape in enumerate([(5, 3), (3, 5), (5,)])
        )
        self.idle = nn.Parameter(draw(2, seed=9))  # takes no part

    def forward(self, t, z):
        return torch.tanh(z @ self.up.T + t * self.time) @ self.down.T


def times(*t):
    return torch.tensor(t, dtype=torch.float64)


def grads(end, wanted, upstream):
    found = torch.autograd.grad((end * upstream).sum(), wanted, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for x, g in zip(wanted, found, strict=True)]


# --- forward: against closed forms in Python floats, and scipy --------------------------------------------------------


@pytest.mark.parametrize("method", FIXED)
def test_steps_against_hand_arithmetic(method):
    """dz/dt = t z, two steps of a half, each slope by hand."""
    z, h = 1.5, 0.5
    for t in (0.0, 0.5):
        k1 = t * z
        k2 = (t + h / 2) * (z + h / 2 * k1)
        k3 = (t + h / 2) * (z + h / 2 * k2)
        k4 = (t + h) * (z + h * k3)
        z += h * {"euler": k1, "midpoint": k2, "rk4": (k1 + 2 * k2 + 2 * k3 + k4) / 6}[method]
    got = odeint(lambda t, z: t * z, times(1.5), times(0.0, 1.0), method=method, steps=2)
    assert got.shape == (2, 1) and got[1].item() == pytest.approx(z, rel=1e-14)


@pytest.mark.parametrize("method", FIXED)
def test_orders(method):
    errors = [
        abs(
            odeint(lambda t, z: z * t.cos(), times(1.0), times(0, 2), method=method, steps=n)[-1].item()
            - math.exp(math.sin(2))
        )
        for n in (32, 64)
    ]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(FIXED[method], abs=0.15)


def test_tableaux_are_consistent():
    for rows, b in TABLEAUX.values():
        assert sum(b) == pytest.approx(1.0) and len(b) == len(rows) + 1
    rows, b = TABLEAUX["dopri5"]
    assert [sum(row) for row in rows] == pytest.approx([1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0])
    nodes = [0.0, *(sum(row) for row in rows)]
    for power in range(1, 5):  # quadrature of order 5; of the embedded method of order 4
        assert sum(w * c**power for w, c in zip(b, nodes, strict=True)) == pytest.approx(1 / (power + 1))
        low = [w + e for w, e in zip([*b, 0.0], ERROR, strict=True)]
        exact = sum(w * c**power for w, c in zip(low, [*nodes, 1.0], strict=True)) == pytest.approx(1 / (power + 1))
        assert exact or power == 4
    assert sum(ERROR) == pytest.approx(0.0, abs=1e-15)


@pytest.mark.parametrize("tolerance", [1e-3, 1e-6, 1e-9])
@pytest.mark.parametrize("span", [(0.0, 1.0), (2.0, -1.0), (0.0, 7.5)])
def test_d1_dopri5_is_scipys(span, tolerance):
    """The same steps: end values to rounding, and as many evaluations."""
    f, z = Field().requires_grad_(False), draw(2, 3, seed=4)
    theirs = solve_ivp(
        lambda t, y: f(t, torch.from_numpy(y.reshape(2, 3))).numpy().ravel(),
        span,
        z.numpy().ravel(),
        rtol=tolerance,
        atol=tolerance,
    )
    block = ODEBlock(f, span, rtol=tolerance, atol=tolerance, adjoint=False)
    assert_near(block(z), torch.from_numpy(theirs.y[:, -1].reshape(2, 3)), rel=1e-11)
    assert block.nfe == theirs.nfev
    between = odeint(f, z, times(span[0], sum(span) / 3, span[1]), rtol=1e-8, atol=1e-8)[-1]
    assert_near(between, odeint(f, z, times(*span), rtol=1e-8, atol=1e-8)[-1], rel=1e-5)


def test_d2_rk4_is_the_classical_one():
    three_eighths = lambda t, z: z  # noqa: E731 - both agree on a linear equation, and differ on another
    assert odeint(three_eighths, times(1.0), times(0, 1), method="rk4")[-1].item() == pytest.approx(65 / 24)
    z = k1 = 1.0  # dz/dt = z^2: the 3/8 rule by hand
    h = 0.2
    k2 = (z + h * k1 / 3) ** 2
    k3 = (z + h * (k2 - k1 / 3)) ** 2
    k4 = (z + h * (k1 - k2 + k3)) ** 2
    other = z + h * (k1 + 3 * k2 + 3 * k3 + k4) / 8
    got = odeint(lambda t, z: z**2, times(1.0), times(0, h), method="rk4")[-1].item()
    assert abs(got - other) > 1e-8 and abs(got - 1.25) < 1e-4


@pytest.mark.parametrize("name", ["odeint", "odeint_adjoint"])
def test_torchdiffeq(name):
    """The authors' library, where it is installed: values and gradients."""
    theirs = pytest.importorskip("torchdiffeq")
    f, z, t, upstream = Field(), draw(2, 3, seed=4).requires_grad_(), times(0.0, 0.7, 2.0), draw(3, 2, 3, seed=5)
    t.requires_grad_()
    wanted = (z, t, *f.parameters())
    ours = {"odeint": odeint, "odeint_adjoint": odeint_adjoint}[name]
    got = grads(ours(f, z, t, rtol=1e-9, atol=1e-9), wanted, upstream)
    want = grads(getattr(theirs, name)(f, z, t, rtol=1e-9, atol=1e-9), wanted, upstream)
    for a, b in zip(got, want, strict=True):
        assert_near(a, b, rel=1e-6)


# --- backward: the adjoint against backpropagation -------------------------------------------------------------------


def check(adjoint):
    """Gradients with respect to z(t_0), all times and the parameters, for one and for several output times."""
    for t in (times(0.0, 1.0), times(0.3, 0.9, 2.0), times(1.0, 0.2, -0.5)):
        f, z, t = Field(), draw(2, 3, seed=4).requires_grad_(), t.requires_grad_()
        upstream, wanted = draw(len(t), 2, 3, seed=5), (z, t, *f.parameters())
        want = grads(odeint(f, z, t, rtol=1e-8, atol=1e-8), wanted, upstream)
        for i, (a, b) in enumerate(zip(grads(adjoint(f, z, t), wanted, upstream), want, strict=True)):
            assert_near(a, b, f"gradient {i}", rel=1e-4, floor=1e-6)


def broken(fault):
    def adjoint(f, z, t):
        tight = {"rtol": 1e-7, "atol": 1e-7}
        match fault:
            case "sign of da/dt":
                return odeint_adjoint(Flipped(f), z, t, **tight, adjoint_params=tuple(f.parameters()))
            case "parameters left out":
                return odeint_adjoint(f, z, t, **tight, adjoint_params=())
            case "times left out":
                return odeint_adjoint(f, z, t.detach(), **tight) + 0 * t.sum()
            case "last time alone":
                found = odeint_adjoint(f, z, t, **tight)
                return torch.cat([found[:-1].detach(), found[-1:]])
            case "loose tolerances":
                return odeint_adjoint(f, z, t, rtol=1e-2, atol=1e-2)
            case "half of the field":
                return odeint_adjoint(lambda s, y: f(s, y) / 2, z, t, **tight, adjoint_params=tuple(f.parameters()))
            case "dL/dz(t_1) handed through":
                return z + (odeint(f, z, t, **tight) - z).detach()
        return odeint_adjoint(f, z, t, **tight)

    return adjoint


test_oracle, test_mutant_dies = mutation(check, broken, lambda f, z, t: odeint_adjoint(f, z, t, rtol=1e-7, atol=1e-7))


def test_linear_equation():
    """dz/dt = A z: z(1) = e^A z, dL/dz(0) = e^(A^T) dL/dz(1)."""
    a, z, upstream = nn.Linear(4, 4, bias=False, dtype=torch.float64), draw(4).requires_grad_(), draw(4, seed=1)
    f = lambda t, z: a(z)  # noqa: E731
    end = odeint_adjoint(f, z, times(0, 1), adjoint_params=tuple(a.parameters()))[-1]
    power = torch.linalg.matrix_exp(a.weight.detach())
    assert_near(end.detach(), power @ z.detach(), rel=1e-7)
    assert_near(torch.autograd.grad(end, z, upstream)[0], power.T @ upstream, rel=1e-7)


def test_d3_fixed_steps_backwards():
    """Euler backwards: three steps by hand, which are not the gradient of three Euler steps forwards."""
    w = torch.tensor([0.7], dtype=torch.float64, requires_grad=True)
    z = torch.tensor([1.2], dtype=torch.float64, requires_grad=True)
    f = lambda t, z: torch.sin(w * z)  # noqa: E731
    end = odeint_adjoint(f, z, times(0, 1), method="euler", steps=3, adjoint_params=(w,))[-1]
    dz, dw = torch.autograd.grad(end, (z, w))
    state, a, g = end.item(), 1.0, 0.0
    for _ in range(3):
        slope, k = math.sin(0.7 * state), math.cos(0.7 * state)
        state, a, g = state - slope / 3, a + a * 0.7 * k / 3, g + a * state * k / 3
    assert dz.item() == pytest.approx(a, rel=1e-12) and dw.item() == pytest.approx(g, rel=1e-12)
    direct = torch.autograd.grad(odeint(f, z, times(0, 1), method="euler", steps=3)[-1], (z, w))
    assert abs(direct[0].item() - dz.item()) > 1e-3


def test_d4_order_of_arguments():
    assert odeint(lambda t, z: t + 0 * z, times(0.0), times(0, 2))[-1].item() == pytest.approx(2.0)


def test_what_is_kept():
    """The adjoint keeps as much for 16 steps as for 2; backpropagation eight times as much."""
    counts = {}
    for kind, adjoint in ((ODEBlock, True), (ODEBlock, False), (EveryState, True)):
        for steps in (2, 16):
            block = kind(Field(), method="rk4", steps=steps, adjoint=adjoint)
            counts[kind, adjoint, steps] = kept(block, draw(7, 3).requires_grad_())
    assert counts[ODEBlock, True, 2] == counts[ODEBlock, True, 16]
    assert counts[ODEBlock, False, 16] > 7 * counts[ODEBlock, False, 2]
    assert counts[EveryState, True, 16] > 2 * counts[EveryState, True, 2]


# --- as a module -----------------------------------------------------------------------------------------------------


def test_block():
    f, x = Field(), draw(2, 3).requires_grad_()
    block = ODEBlock(f, rtol=1e-8, atol=1e-8)
    assert list(block.state_dict()) == [f"func.{name}" for name in f.state_dict()]
    y = block(x)
    forward, block.nfe = block.nfe, 0
    y.sum().backward()
    assert forward % 6 == 2 and block.nfe > 6 and f.up.grad.any() and not f.idle.grad.any()
    assert_near(ODEBlock(f, rtol=1e-8, atol=1e-8, adjoint=False)(x).detach(), y.detach(), rel=1e-12)
    back = ODEBlock(f, (1.0, 0.0), rtol=1e-8, atol=1e-8)(y)
    assert_near(back.detach(), x.detach(), rel=1e-6)  # a flow can be undone
    clone, single = copy.deepcopy(block), copy.deepcopy(block).float()
    assert torch.equal(clone(x), y) and single(x.float()).dtype == torch.float32
    with torch.no_grad():
        assert torch.equal(block(x), y) and not block(x).requires_grad
    assert "method='dopri5'" in repr(block)
    second = torch.autograd.grad(block(x).sum(), x, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="once_differentiable|does not require grad"):
        second.sum().backward()


def test_residual_net_is_euler():
    f, z = Field(), draw(2, 3)
    want = z
    for k in range(5):
        want = want + 0.2 * f(torch.tensor(0.2 * k, dtype=torch.float64), want)
    assert_near(ODEBlock(f, method="euler", steps=5)(z).detach(), want.detach(), rel=1e-12)


def test_networks():
    """About a third of the parameters of six residual blocks, the block alone; the same stem and head in all arms."""
    nets = {arm: network(arm, 32, 2, 0) for arm in ("resnet6", "ode", "none")}
    sizes = {arm: sum(p.numel() for p in net.parameters()) for arm, net in nets.items()}
    assert sizes["ode"] < 0.45 * sizes["resnet6"]
    for name in ("0.weight", "3.weight", "9.weight"):
        assert torch.equal(nets["ode"].get_parameter(name), nets["none"].get_parameter(name))
    for net in nets.values():
        assert net(torch.zeros(2, 1, 14, 14)).shape == (2, 10)


def test_errors():
    f, z = Field(), draw(2, 3)
    for t in (times(0.0), times(0, 1, 1), times(0, 1, 0.5), times(0, float("nan"))):
        with pytest.raises(ValueError, match="times"):
            odeint(f, z, t)
    with pytest.raises(ValueError, match="write one of euler, midpoint, rk4, dopri5"):
        odeint(f, z, times(0, 1), method="rk45")
    with pytest.raises(ValueError, match="at least one step"):
        odeint(f, z, times(0, 1), method="euler", steps=0)
    with pytest.raises(ValueError, match="write adjoint_params="):
        odeint_adjoint(lambda t, z: z, z, times(0, 1))
    with pytest.raises(RuntimeError, match="underflows"):
        odeint(lambda t, z: z**2, times(1.0), times(0.0, 2.0))  # infinite at t = 1
    assert np.isfinite(odeint(f, torch.zeros(2, 3).double(), times(0, 1)).detach().numpy()).all()
