import numpy as np
import pytest
import torch
from torch import nn

from repro.papers.gdn import GDN, Gaussianization, gdn, inverse_gdn, lower_bound
from repro.testing import assert_near, check_float32, draw, mutation

D = 4
Z = 2 * draw(6, D)
BETA, GAMMA = 0.5 + draw(D, seed=1).abs(), 0.2 * draw(D, D, seed=2).abs()
ALPHA, EPSILON = 1.5 + 0.5 * draw(D, D, seed=3).tanh(), 0.3 + 0.1 * draw(D, seed=4).tanh()


def oracle(z, beta, gamma, alpha, epsilon):
    """By NumPy, number by number: y, and log |det dy/dz| from differences of y."""

    def outputs(row):
        pooled = [beta[i] + sum(gamma[i, j] * abs(row[j]) ** alpha[i, j] for j in range(D)) for i in range(D)]
        return np.array([row[i] / pooled[i] ** epsilon[i] for i in range(D)])

    y, log_det = [], []
    for row in z:
        steps = 1e-6 * np.eye(D)
        jacobian = np.stack([(outputs(row + e) - outputs(row - e)) / 2e-6 for e in steps], 1)
        y.append(outputs(row))
        log_det.append(np.log(abs(np.linalg.det(jacobian))))
    return torch.tensor(np.stack(y)), torch.tensor(log_det)


CASES = {
    "all learnt": (ALPHA, EPSILON),
    "of the layer": (torch.full_like(ALPHA, 2.0), torch.full_like(EPSILON, 0.5)),
}


def check(method):
    for name, (alpha, epsilon) in CASES.items():
        want = oracle(*(t.numpy() for t in (Z, BETA, GAMMA, alpha, epsilon)))
        for got, right, rel in zip(method(Z, BETA, GAMMA, alpha, epsilon), want, (1e-12, 1e-7), strict=True):
            assert_near(got, right, name, rel=rel)


def broken(fault):
    def method(z, beta, gamma, alpha, epsilon):
        y, log_det = gdn(z, beta, gamma, alpha, epsilon)
        match fault:
            case "gamma transposed":
                return gdn(z, beta, gamma.T, alpha, epsilon)
            case "alpha transposed":
                return gdn(z, beta, gamma, alpha.T, epsilon)
            case "no absolute value":
                return z / (beta + (gamma * z[:, None, :]).sum(2).abs()) ** epsilon, log_det
            case "multiplied":
                return z * (z / y), log_det
            case "diagonal of the Jacobian":
                one = torch.autograd.functional.jacobian(lambda v: gdn(v, beta, gamma, alpha, epsilon)[0].sum(0), z)
                return y, torch.stack([one[i, :, i] for i in range(D)], 1).abs().log().sum(1)
            case "denominators held fixed":
                return y, (y / z).log().sum(1)
            case "the inverse's sign":
                return y, -log_det
        return y, log_det

    return method


test_oracle, test_mutant_dies = mutation(check, broken, gdn)


def test_numbers_in_place_of_matrices():
    one, other = gdn(Z, BETA, GAMMA), gdn(Z, BETA, GAMMA, *CASES["of the layer"])
    for a, b in zip(one, other, strict=True):
        assert_near(a, b, rel=1e-12)


def test_the_fixed_point_leads_back():
    y, _ = gdn(Z, BETA, GAMMA, ALPHA, EPSILON)
    errors = [float((inverse_gdn(y, BETA, GAMMA, ALPHA, EPSILON, steps=n) - Z).abs().max()) for n in (1, 10, 40, 120)]
    assert errors[0] > 1e-2 and errors == sorted(errors, reverse=True) and errors[-1] < 1e-9


def test_torch_local_response_norm_is_a_case_of_it():
    """A band of gamma, alpha = 2 and epsilon = 3/4: nn.LocalResponseNorm."""
    x, near = draw(2, 5, 3, 3), (torch.arange(5)[:, None] - torch.arange(5)).abs() <= 1
    want = nn.LocalResponseNorm(3, alpha=0.6, beta=0.75, k=1.5)(x)
    pixels = x.movedim(1, -1).flatten(0, 2)
    got, _ = gdn(pixels, torch.full((5,), 1.5).double(), 0.2 * near.double(), 2.0, 0.75)
    assert_near(got.view(2, 3, 3, 5).movedim(-1, 1), want, rel=1e-12)


def test_the_layer():
    layer = GDN(5, dtype=torch.float64)
    with torch.no_grad():
        layer.gamma.add_(0.1 * draw(5, 5).abs())
    beta, gamma = (p.detach() for p in layer.parts())
    x = draw(2, 5, 3, 4)
    pixels = x.movedim(1, -1).flatten(0, 2)
    want = gdn(pixels, beta, gamma)[0].view(2, 3, 4, 5).movedim(-1, 1)
    assert_near(layer(x).detach(), want, rel=1e-12)
    inverse = GDN(5, True, dtype=torch.float64)
    inverse.load_state_dict(layer.state_dict())
    assert_near(inverse(x).detach() * layer(x).detach(), x.square(), rel=1e-12)
    assert_near(layer(x[:, :, 0, 0]).detach(), layer(x)[:, :, 0, 0].detach(), rel=1e-12)
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    assert_near(compiled(x).detach(), layer(x).detach(), rel=1e-12)
    check_float32(lambda x: GDN(5, dtype=torch.promote_types(x.dtype, torch.float32))(x).detach(), x)
    with pytest.raises(ValueError, match=r"is not \(B, 5, \*\)"):
        layer(draw(2, 4, 3))


@pytest.mark.parametrize("shared", ["none", "radial", "marginal"])
def test_the_transform_of_data(shared):
    data = draw(500, D) @ draw(D, D, seed=1)
    model = Gaussianization(data, shared)
    with torch.no_grad():
        for i, p in enumerate(model.parameters()):
            p.add_(0.1 * draw(*p.shape, seed=i))
    x = data[:5]
    y, log_det = model(x)
    for row, value in zip(x, log_det, strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda v: model(v[None])[0][0], row)
        assert_near(value.detach(), torch.linalg.slogdet(jacobian)[1], shared, rel=1e-9)
    assert_near(model.inverse(y.detach(), steps=200), x, shared, rel=1e-6)
    gamma = model.parts()[1]
    assert bool((gamma[~torch.eye(D, dtype=torch.bool)] > 0).all()) == (shared != "marginal")
    if shared == "radial":
        assert_near(y / (x @ model.H.T), (y / (x @ model.H.T))[:, :1].expand(-1, D), rel=1e-9)
    with pytest.raises(ValueError, match="shared='all' is unknown"):
        Gaussianization(data, "all")


def test_d1_the_layer_starts_as_the_later_ones():
    layer = GDN(3)
    beta, gamma = layer.parts()
    assert_near(beta.detach(), torch.ones(3), rel=1e-6)
    assert_near(gamma.detach(), 0.1 * torch.eye(3), rel=1e-6)
    assert_near(layer.gamma.detach()[0, 1], torch.tensor(2.0**-18), rel=1e-6)


def test_d2_a_root_below_its_bound_can_be_lifted():
    x = torch.tensor([0.5, 2.0, 0.5, 2.0], requires_grad=True)
    y = lower_bound(x, 1.0)
    y.backward(torch.tensor([1.0, 1.0, -1.0, -1.0]))
    assert torch.equal(y.detach(), torch.tensor([1.0, 2.0, 1.0, 2.0]))
    assert torch.equal(x.grad, torch.tensor([0.0, 1.0, -1.0, -1.0]))


def test_d3_there_is_always_an_inverse():
    model = Gaussianization(draw(50, D))
    with torch.no_grad():
        model.log_alpha.add_(draw(D, D))
        model.odds.fill_(30.0)
    _, _, alpha, epsilon = model.parts()
    assert bool((alpha * epsilon[:, None] <= 1 + 1e-12).all())


def test_d4_a_component_of_zero_has_finite_slopes():
    model = Gaussianization(draw(100, 3))
    with torch.no_grad():
        model.H.copy_(torch.eye(3))
        model.log_alpha.fill_(0.3)  # alpha = 1.35
    x = draw(5, 3)
    x[0, 0] = 0.0
    x.requires_grad_()
    y, log_det = model(x)
    (y.square().sum() - log_det.sum()).backward()
    assert all(p.grad.isfinite().all() for p in [x, *model.parameters()])


def test_d5_the_start():
    data = draw(400, D) @ draw(D, D, seed=1)
    model = Gaussianization(data)
    beta, gamma, alpha, epsilon = (p.detach() for p in model.parts())
    assert_near((data @ model.H.detach().T).T.cov(), torch.eye(D).double(), rel=1e-9)
    assert_near(gamma, 0.1 * torch.eye(D).double() + 0.01, rel=1e-6)
    assert_near(alpha, torch.full((D, D), 2.0).double(), rel=1e-6)
    assert_near(epsilon, torch.full((D,), 0.4).double(), rel=1e-6)
    assert_near(beta, torch.ones(D).double(), rel=1e-5)
