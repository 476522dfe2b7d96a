import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from repro.models.mlp import MLP
from repro.models.slots import linear
from repro.papers.snn import ALPHA, SCALE, SELU, AlphaDropout, lecun_normal_, moment_map, selu, selu_constants
from repro.papers.snn.experiment import WeightNorm, weighted
from repro.testing import assert_near, draw, outcome
from repro.train import fit

POINTS = [-1e300, -800.0, -40.0, -1.5, -1e-3, -1e-9, -1e-18, -0.0, 0.0, 1e-18, 1e-9, 0.3, 2.0, 90.0, 800.0, 1e300]


def reference_selu(x, alpha=ALPHA, scale=SCALE):
    """Eq. 2 in Python floats: (value, slope); the slope at 0 is that of the branch x <= 0, to which 0 belongs."""
    if x > 0:
        return scale * x, scale
    return scale * alpha * math.expm1(x), scale * alpha * math.exp(x)


def check_selu(f):
    x = torch.tensor(POINTS, dtype=torch.float64, requires_grad=True)
    y = f(x)
    (slope,) = torch.autograd.grad(y.sum(), x)
    for point, *got in zip(POINTS, y.tolist(), slope.tolist(), strict=True):
        for a, b in zip(got, reference_selu(point), strict=True):
            assert math.isclose(a, b, rel_tol=1e-12, abs_tol=1e-300), f"at {point}: {a}, want {b}"


def gaussian_moments(mean, variance, alpha=ALPHA, scale=SCALE, panels=4000):
    """Mean and variance of selu(z), z ~ N(mean, variance), by Simpson's rule on either side of the kink."""
    s, total = math.sqrt(variance), [0.0, 0.0]
    for a, b in ((min(mean - 12 * s, -1e-9), 0.0), (0.0, max(mean + 12 * s, 1e-9))):
        h = (b - a) / panels
        for i in range(panels + 1):
            z = a + i * h
            weight = h / 3 * (1 if i in (0, panels) else 4 if i % 2 else 2)
            weight *= math.exp(-((z - mean) ** 2) / (2 * variance)) / (s * math.sqrt(2 * math.pi))
            y = reference_selu(z, alpha, scale)[0]
            total[0] += weight * y
            total[1] += weight * y * y
    return total[0], total[1] - total[0] ** 2


CASES = [  # mu, nu, omega, tau: the fixed point, the ranges of Theorems 1 to 3, and beyond
    (0.0, 1.0, 0.0, 1.0),
    (0.1, 1.5, 0.1, 1.1),
    (-0.1, 0.8, 0.1, 0.95),
    (-1.0, 16.0, 0.1, 1.25),
    (0.1, 0.02, -0.1, 0.8),
    (3.0, 0.5, 1.0, 1.0),
    (-3.0, 0.5, 1.0, 2.0),
]


def check_map(g):
    for case in CASES:
        got, want = [float(v) for v in g(*case)], gaussian_moments(case[0] * case[2], case[1] * case[3])
        assert got == pytest.approx(want, rel=1e-9, abs=1e-11), f"{case}: {got}, want {want}"


def exact_moments(p, x):
    """Mean and variance over x and the masks of alpha dropout with probability p of dropping, as the paper has it."""
    q, dropped = 1 - p, -SCALE * ALPHA
    a = (q + dropped**2 * q * (1 - q)) ** -0.5
    b = -a * (1 - q) * dropped
    values, weights = [], []
    for v in x.tolist():
        values += [a * v + b, a * dropped + b]
        weights += [q / len(x), (1 - q) / len(x)]
    mean = math.fsum(w * v for v, w in zip(values, weights, strict=True))
    return values, mean, math.fsum(w * (v - mean) ** 2 for v, w in zip(values, weights, strict=True))


def check_dropout(make, p=0.2):
    """Kept and dropped units have the values of the paper, and a unit is dropped with probability p."""
    x = torch.tensor([-1.0, 1.0], dtype=torch.float64).repeat(50_000)  # mean 0, variance 1
    values, mean, variance = exact_moments(p, x[:2])
    assert abs(mean) < 1e-12 and abs(variance - 1) < 1e-12
    torch.manual_seed(0)
    y = make(p).train()(x)
    dropped = (y - values[1]).abs() < 1e-9
    assert abs(dropped.double().mean() - p) < 0.01, f"{float(dropped.double().mean())} dropped"
    for start, value in ((0, values[0]), (1, values[2])):
        part = y[start::2][~dropped[start::2]]
        assert_near(part, torch.full_like(part, value), rel=1e-9)
    assert abs(y.mean()) < 0.02 and abs(y.var() - 1) < 0.02
    assert torch.equal(make(p).eval()(x), x)


def check_init(f):
    """Weights of variance 1 / fan_in that do not stop at a bound, biases of 0."""
    model = nn.Sequential(nn.Linear(400, 300), nn.Conv2d(8, 512, 5))
    f(model, torch.Generator().manual_seed(0))
    for layer, fan_in in zip(model, (400, 200), strict=True):
        z = layer.weight.detach().double().flatten() * fan_in**0.5
        assert abs(z.mean()) < 0.01 and abs(z.var() - 1) < 0.02 and abs((z**4).mean() - 3) < 0.1
        assert not layer.bias.any()


@pytest.mark.parametrize("f", [selu, SELU(), F.selu, nn.SELU()], ids=["selu", "SELU", "torch", "torch module"])
def test_selu_against_the_reference(f):
    check_selu(f)


MUTANTS = {
    "alpha alone": lambda x: F.elu(x, ALPHA),
    "scale alone": lambda x: SCALE * F.elu(x),
    "scaled on one side": lambda x: torch.where(x > 0, SCALE * x, ALPHA * torch.expm1(x.clamp(max=0))),
    "exponential of large x": lambda x: SCALE * torch.where(x > 0, x, ALPHA * torch.expm1(x)),
    "e^x - 1 rounded": lambda x: SCALE * torch.where(x > 0, x, ALPHA * (x.clamp(max=0).exp() - 1)),
    "printed digits": lambda x: selu(x, alpha=1.6733, scale=1.0507),
    "names exchanged": lambda x: selu(x, alpha=SCALE, scale=ALPHA),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_mutant_selu_dies(name):
    with pytest.raises(AssertionError):
        check_selu(MUTANTS[name])


def test_map_against_quadrature():
    check_map(moment_map)


MAPS = {
    "second moment for variance": lambda *at: (moment_map(*at)[0], moment_map(*at)[1] + moment_map(*at)[0] ** 2),
    "omega forgotten": lambda mu, nu, omega, tau: moment_map(mu, nu, 1.0, tau),
    "tau squared": lambda mu, nu, omega, tau: moment_map(mu, nu, omega, tau**2),
    "omega and tau exchanged": lambda mu, nu, omega, tau: moment_map(mu, nu, tau, abs(omega) or 1.0),
    "alpha of 1": lambda *at: moment_map(*at, alpha=1.0),
}


@pytest.mark.parametrize("name", MAPS)
def test_mutant_map_dies(name):
    with pytest.raises(AssertionError):
        check_map(MAPS[name])


@pytest.mark.parametrize("make", [AlphaDropout, nn.AlphaDropout], ids=["ours", "torch"])
@pytest.mark.parametrize("p", [0.05, 0.1, 0.5])
def test_dropout_keeps_mean_and_variance(make, p):
    check_dropout(make, p)


class Dropout(nn.Module):
    def __init__(self, fault, p):
        super().__init__()
        self.fault, self.p = fault, p

    def forward(self, x):
        if not self.training and self.fault != "active in eval":
            return x
        q = self.p if self.fault == "p is kept" else 1 - self.p
        dropped = {"dropped to 0": 0.0, "dropped to -alpha": -ALPHA}.get(self.fault, -SCALE * ALPHA)
        a = (q + dropped**2 * q * (1 - q)) ** (-1.0 if self.fault == "no root" else -0.5)
        b = 0.0 if self.fault == "no shift" else -a * (1 - q) * dropped
        return a * torch.where(torch.rand_like(x) < q, x, dropped) + b


FAULTS = ["p is kept", "dropped to 0", "dropped to -alpha", "no root", "no shift", "active in eval"]


def test_unbroken_dropout_passes():
    check_dropout(lambda p: Dropout(None, p))


@pytest.mark.parametrize("fault", [*FAULTS, "ordinary"])
def test_mutant_dropout_dies(fault):
    with pytest.raises(AssertionError):
        check_dropout(nn.Dropout if fault == "ordinary" else lambda p: Dropout(fault, p))


def test_dropout_gradient():
    """a where a unit was kept, 0 where it was dropped; the mask of torch's layer has the same law, not the same
    draws.
    """
    x = draw(1000).requires_grad_()
    torch.manual_seed(1)
    y = AlphaDropout(0.3)(x)
    (slope,) = torch.autograd.grad(y.sum(), x)
    a = (0.7 + (SCALE * ALPHA) ** 2 * 0.7 * 0.3) ** -0.5
    assert sorted(slope.unique().tolist()) == pytest.approx([0.0, a])
    assert 0.25 < float((slope == 0).double().mean()) < 0.35
    assert_near(y[slope == 0].detach(), y[slope == 0][:1].detach().expand(int((slope == 0).sum())))
    assert AlphaDropout(0.0)(x) is x


def kaiming(model, generator):
    for layer in model:
        nn.init.kaiming_normal_(layer.weight, mode="fan_in", nonlinearity="linear", generator=generator)
        nn.init.zeros_(layer.bias)


@pytest.mark.parametrize("f", [lecun_normal_, kaiming], ids=["ours", "torch"])
def test_init_distribution(f):
    check_init(f)


def gain(value):
    def init(model, generator):
        for layer in model:
            nn.init.normal_(layer.weight, 0, value / layer.weight[0].numel() ** 0.5, generator)
            nn.init.zeros_(layer.bias)

    return init


INITS = {
    "He": gain(math.sqrt(2)),
    "gain 3/4 of torch": gain(nn.init.calculate_gain("selu")),
    "uniform": lambda m, g: [nn.init.kaiming_uniform_(x.weight, nonlinearity="linear", generator=g) for x in m],
    "fan-out": lambda m, g: [nn.init.normal_(x.weight, 0, x.weight.shape[0] ** -0.5, g) for x in m],
    "bias left": lambda m, g: [lecun_normal_(x.weight, g) for x in m],
}


@pytest.mark.parametrize("name", INITS)
def test_mutant_init_dies(name):
    with pytest.raises(AssertionError):
        check_init(INITS[name])


def test_init_fits_the_slot_and_draws_from_its_generator():
    one, two = (
        MLP([6, 5, 3], act=SELU, init=lecun_normal_, generator=torch.Generator().manual_seed(3)) for _ in range(2)
    )
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(a, b)
    weight = torch.empty(4, 3, requires_grad=True)
    assert lecun_normal_(weight) is weight and weight.requires_grad
    with pytest.raises(ValueError, match="fan-in"):
        lecun_normal_(torch.zeros(3))


def test_d1_constants_to_the_last_digit():
    """The closed forms in Python floats, and the digits that the paper prints."""
    c = math.erfc(1 / math.sqrt(2))
    alpha = -math.sqrt(2 / math.pi) / (c * math.exp(0.5) - 1)
    under = (
        2 * math.erfc(math.sqrt(2)) * math.e**2 + math.pi * c**2 * math.e - 2 * (2 + math.pi) * c * math.sqrt(math.e)
    )
    scale = (1 - c * math.sqrt(math.e)) * math.sqrt(2 * math.pi) * (under + math.pi + 2) ** -0.5
    assert abs(ALPHA - alpha) < 1e-14 and abs(SCALE - scale) < 1e-14
    assert (round(ALPHA, 4), round(SCALE, 4)) == (1.6733, 1.0507)
    assert selu_constants() == pytest.approx((ALPHA, SCALE), abs=1e-14)
    assert -SCALE * ALPHA == pytest.approx(-1.7580993408473766, abs=1e-15)  # selu.py of the authors' code


def test_float32_convention():
    x = draw(200, dtype=torch.float32)
    for dtype in (torch.bfloat16, torch.float16):
        narrow = x.to(dtype)
        assert torch.equal(selu(narrow), selu(narrow.float()).to(dtype))
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(selu(narrow), selu(narrow.float()).to(dtype))
        torch.manual_seed(0)
        y = AlphaDropout(0.1)(narrow)
        torch.manual_seed(0)
        assert y.dtype == dtype and torch.equal(y, AlphaDropout(0.1)(narrow.float()).to(dtype))
    for layer in (selu, SELU(), AlphaDropout(0.1)):
        with pytest.raises(TypeError, match="x.float()"):
            layer(torch.ones(3, dtype=torch.long))


def test_d2_other_fixed_points():
    assert selu_constants(-0.1, 2.0, omega=1.0) == pytest.approx((1.9769021954241999, 1.073851239616047), rel=1e-12)
    for mu, nu, omega, tau in [
        (-0.1, 2.0, 0.0, 1.0),
        (0.2, 0.7, 0.3, 1.1),
        (-0.5, 1.0, 0.0, 1.0),
        (0.0, 4.0, 0.5, 0.9),
    ]:
        alpha, scale = selu_constants(mu, nu, omega=omega, tau=tau)
        assert gaussian_moments(mu * omega, nu * tau, alpha, scale) == pytest.approx((mu, nu), abs=1e-9)
    assert selu_constants(-0.1, 2.0) != pytest.approx(selu_constants(-0.1, 2.0, omega=1.0), rel=0.01)
    assert selu_constants(0.0, 2.0) == pytest.approx(selu_constants(0.0, 2.0, omega=1.0), rel=1e-12)


def test_d3_dropping_everything_is_refused():
    for p in (1.0, -0.1, 1.5, float("nan")):
        with pytest.raises(ValueError, match="0 <= p < 1"):
            AlphaDropout(p)
    assert not nn.AlphaDropout(1.0)(torch.ones(3)).any()


@pytest.mark.parametrize("mu, nu", [(5.0, 1.0), (-5.0, 1.0), (0.0, 0.0), (0.0, -1.0)])
def test_no_such_fixed_point(mu, nu):
    with pytest.raises(ValueError, match="no SELU|above 0"):
        selu_constants(mu, nu)


def test_map_is_vectorised_and_differentiable():
    mu, nu = torch.tensor([[0.1], [-0.2]], dtype=torch.float64), torch.tensor([0.5, 1.0, 3.0], dtype=torch.float64)
    mean, variance = moment_map(mu, nu, 0.1, 1.1)
    assert mean.shape == variance.shape == (2, 3) and mean.dtype == torch.float64
    one = moment_map(-0.2, 3.0, 0.1, 1.1)
    assert (float(mean[1, 2]), float(variance[1, 2])) == pytest.approx([float(v) for v in one], rel=1e-15)
    leaves = [t.clone().requires_grad_() for t in (mu, nu)]
    assert torch.autograd.gradcheck(lambda a, b: moment_map(a, b, 0.1, 1.1), leaves)
    with pytest.raises(ValueError, match="above 0"):
        moment_map(0.0, torch.tensor([1.0, 0.0]))


@pytest.mark.parametrize("mean, variance", [(-50.0, 100.0), (-1.0, 1e-6), (3.0, 2000.0), (1.0, 1e-4)])
def test_map_and_its_gradient_far_out(mean, variance):
    at = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (mean, variance)]
    got = moment_map(*at, 1.0, 1.0)
    assert [v.item() for v in got] == pytest.approx(gaussian_moments(mean, variance), rel=1e-6, abs=1e-13)
    assert all(torch.isfinite(g) for g in torch.autograd.grad(got[0] + got[1], at))


def test_fixed_point_and_its_jacobian():
    """Eq. 6: the fixed point (0, 1), the printed Jacobian and its norm."""
    assert [float(v) for v in moment_map(0.0, 1.0)] == pytest.approx([0.0, 1.0], abs=1e-12)
    at = torch.tensor([0.0, 1.0], dtype=torch.float64)
    slopes = torch.autograd.functional.jacobian(lambda t: torch.stack(moment_map(t[0], t[1])), at)
    assert_near(slopes, torch.tensor([[0.0, 0.088834], [0.0, 0.782648]]), rel=1e-5)
    assert abs(float(torch.linalg.matrix_norm(slopes, 2)) - 0.7877) < 5e-5


@pytest.mark.parametrize("module", [SELU(), SELU(alpha=1.2, scale=0.9), AlphaDropout(0.1).eval()], ids=repr)
def test_modules_copy_compile_and_save(module):
    x = draw(3, 5)
    want = outcome(nn.Sequential(nn.Linear(5, 5).double(), module), x)["y"].shape
    assert want == x.shape and not module.state_dict()
    copied, rebuilt = copy.deepcopy(module), copy.deepcopy(module)
    rebuilt.load_state_dict(module.state_dict())
    torch.compiler.reset()
    compiled = torch.compile(copy.deepcopy(module), fullgraph=True, backend="aot_eager")
    for other in (copied, rebuilt, compiled):
        assert torch.equal(other(x), module(x))
    assert torch.equal(torch.func.vmap(module)(x), module(x))


def test_dropout_compiles_in_training():
    torch.compiler.reset()
    layer = torch.compile(AlphaDropout(0.4), fullgraph=True, backend="aot_eager")
    y = layer(torch.zeros(10_000, dtype=torch.float64))
    assert y.unique().numel() == 2 and abs(float((y == y.min()).double().mean()) - 0.4) < 0.03


def test_gradcheck_of_selu():
    x = draw(4, 3).requires_grad_()
    assert torch.autograd.gradcheck(selu, x) and torch.autograd.gradgradcheck(selu, x)


def test_weight_norm_of_the_comparison_starts_as_the_plain_layer():
    layer = linear(5, 4, bias=True, std=0.5, generator=torch.Generator().manual_seed(0))
    x, twin = draw(3, 5, dtype=torch.float32), nn.utils.parametrizations.weight_norm(copy.deepcopy(layer))
    ours = WeightNorm(layer)
    assert_near(ours(x).detach(), twin(x).detach(), rel=1e-6)
    with torch.no_grad():
        ours.v.mul_(3.0)  # only the direction of v counts
        ours.g.mul_(2.0)
        twin.parametrizations.weight.original0.mul_(2.0)
    assert_near(ours(x).detach(), twin(x).detach(), rel=1e-6)


def test_a_weighted_loss_is_a_learning_rate():
    x, y = draw(40, 6, dtype=torch.float32), torch.arange(40) % 3
    one, two = (MLP([6, 5, 3], generator=torch.Generator().manual_seed(1)) for _ in range(2))
    fit(one, (x, y), steps=20, batch=8, lr=0.3, seed=0, optimizer="sgd")
    target = torch.stack([y, torch.full_like(y, 300)], 1)
    fit(two, (x, target), steps=20, batch=8, lr=1.0, seed=0, optimizer="sgd", loss=weighted)
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        assert_near(b.detach(), a.detach(), rel=1e-5)
