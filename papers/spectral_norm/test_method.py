import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize
from torch.utils.checkpoint import checkpoint

from repro.papers.spectral_norm import SpectralNorm, spectral_norm
from repro.testing import assert_near, draw, mutation


def settled(weight, **options):
    """The parametrization after so many steps that sigma is exact, at evaluation."""
    torch.manual_seed(0)
    norm = SpectralNorm(weight, **options)
    norm.iterate(norm.matrix(weight), 2000)
    return norm.eval()


def oracle(matrix, upstream):
    """W / sigma_1 and the gradient of sum(upstream * W / sigma_1), by an SVD in float64."""
    u, s, vh = torch.linalg.svd(matrix)
    w = matrix / s[0]
    return w, (upstream - (upstream * w).sum() * torch.outer(u[:, 0], vh[0])) / s[0]


def check(norm):
    """`norm(weight)` of matrices and kernels, at several sizes, with its gradient."""
    for shape in ((4, 3), (3, 7), (4, 2, 3, 3)):
        for size in (1.0, 1e-5, 1e5):
            weight, upstream = (size * draw(*shape)).requires_grad_(), draw(*shape, seed=1)
            got = norm(weight)
            (slope,) = torch.autograd.grad(got, weight, upstream)
            want, want_slope = oracle(weight.detach().flatten(1), upstream.flatten(1))
            assert_near(got.detach().flatten(1), want, f"weight {shape} {size}", rel=1e-8)
            assert_near(slope.flatten(1), want_slope, f"gradient {shape} {size}", rel=1e-7)


def broken(fault):
    def norm(weight):
        matrix = weight.flatten(1)
        match fault:
            case "Frobenius norm":
                return weight / weight.norm()
            case "per output":
                return (matrix / matrix.norm(dim=1, keepdim=True)).view_as(weight)
            case "smallest singular value":
                return weight / torch.linalg.svdvals(matrix)[-1]
            case "squared":
                return weight / torch.linalg.svdvals(matrix)[0].square()
            case "only above 1":
                return weight / torch.linalg.svdvals(matrix)[0].clamp_min(1.0)
            case "detached":
                return weight / torch.linalg.svdvals(matrix.detach())[0]
            case "axes swapped":
                return weight / torch.linalg.svdvals(weight.transpose(0, 1).flatten(1))[0] * (1 + 1e-6)
            case "inputs only":
                return weight / torch.linalg.svdvals(weight.flatten(2).sum(-1) if weight.dim() > 2 else weight)[0]
            case "eps added":
                return weight / (torch.linalg.svdvals(matrix)[0] + 1e-4)
        return weight / torch.linalg.svdvals(matrix)[0]

    return norm


test_oracle, test_mutant_dies = mutation(check, broken, lambda weight: settled(weight)(weight))


@pytest.mark.parametrize(
    "build, x",
    [
        (lambda: nn.Linear(5, 3), draw(2, 5)),
        (lambda: nn.Conv2d(2, 3, 3), draw(2, 2, 5, 5)),
        (lambda: nn.ConvTranspose2d(2, 3, 3), draw(2, 2, 4, 4)),
        (lambda: nn.Linear(1, 3), draw(2, 1)),
    ],
)
def test_equal_to_torch(build, x):
    torch.manual_seed(0)
    ours = build().double()
    theirs = copy.deepcopy(ours)
    for layer, function in ((ours, spectral_norm), (theirs, parametrizations.spectral_norm)):
        torch.manual_seed(1)
        function(layer)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    steps = [torch.optim.SGD(layer.parameters(), 0.1) for layer in (ours, theirs)]
    for training in (True, True, False, True):
        for layer, step in zip((ours, theirs), steps, strict=True):
            layer.train(training)
            step.zero_grad()
            layer(x).square().mean().backward()
            step.step()
        for name, value in theirs.state_dict().items():
            assert_near(ours.state_dict()[name], value, name, rel=1e-9)
    fresh = parametrizations.spectral_norm(build().double())
    fresh.load_state_dict(ours.state_dict())
    ours.eval(), fresh.eval()
    assert_near(ours(x).detach(), fresh(x).detach())
    want = ours(x).detach()
    parametrize.remove_parametrizations(ours, "weight")
    assert_near(ours(x).detach(), want)


def test_one_step_follows_a_moving_weight():
    torch.manual_seed(0)
    layer = spectral_norm(nn.Linear(12, 8).double())
    original = layer.parametrizations.weight.original
    for step in range(300):
        with torch.no_grad():
            original.add_(1e-3 * draw(8, 12, seed=step))
        size = torch.linalg.matrix_norm(layer.weight.detach(), ord=2)
        assert step < 100 or 1 - 1e-12 < size < 1.02


def test_copies_compiles_and_its_gradient():
    layer, x = spectral_norm(nn.Linear(4, 3).double()).eval(), draw(5, 4)
    want = layer(x).detach()
    torch.compiler.reset()
    compiled = torch.compile(copy.deepcopy(layer), backend="aot_eager", fullgraph=True)
    assert_near(compiled(x).detach(), want)
    norm = settled(draw(3, 4))
    assert torch.autograd.gradcheck(norm, draw(3, 4).requires_grad_())
    assert torch.autograd.gradgradcheck(norm, draw(3, 4).requires_grad_())


def test_shared_by_two_passes():
    """Real and generated points in two passes before one backward pass, as in the authors' code."""
    layer = spectral_norm(nn.Linear(4, 3).double())
    (layer(draw(5, 4)).mean() - layer(draw(5, 4, seed=1)).mean()).backward()
    assert layer.parametrizations.weight.original.grad.isfinite().all()


# --- departures ------------------------------------------------------------------------------------------------------


def test_d1_fifteen_steps_at_the_start():
    weight = draw(6, 9)
    torch.manual_seed(0)
    norm = SpectralNorm(weight)
    torch.manual_seed(0)
    u, v = (nn.functional.normalize(torch.randn(n, dtype=torch.float64), dim=0) for n in (6, 9))
    for _ in range(15):
        u = nn.functional.normalize(weight @ v, dim=0)
        v = nn.functional.normalize(weight.T @ u, dim=0)
    assert_near(norm._u, u)
    assert_near(norm._v, v)


def test_d2_evaluation_takes_no_step():
    norm, weight = SpectralNorm(draw(6, 9)).eval(), draw(6, 9, seed=1)
    u, v = norm._u.clone(), norm._v.clone()
    assert_near(norm(weight), weight / (u @ weight @ v))
    assert torch.equal(norm._u, u) and torch.equal(norm._v, v)
    norm.train()(weight)
    assert not torch.equal(norm._u, u)


def test_d3_u_first_and_never_above_sigma():
    norm, weight = SpectralNorm(draw(6, 9), n_power_iterations=1), draw(6, 9, seed=1)
    v = norm._v.clone()
    norm(weight)
    assert_near(norm._u, nn.functional.normalize(weight @ v, dim=0))
    assert norm.sigma(weight) <= torch.linalg.matrix_norm(weight, ord=2) * (1 + 1e-12)


def test_d4_vectors_are_refused():
    with pytest.raises(ValueError, match="a vector has no spectral norm"):
        spectral_norm(nn.Linear(2, 2), "bias")
    with pytest.raises(ValueError, match="write 1 or more"):
        spectral_norm(nn.Linear(2, 2), n_power_iterations=0)


@pytest.mark.parametrize("reentrant", [True, False])
def test_d5_checkpointing_repeats_the_pass(reentrant):
    layer = spectral_norm(nn.Linear(4, 3).double())
    plain, x = copy.deepcopy(layer), draw(5, 4).requires_grad_()
    checkpoint(layer, x, use_reentrant=reentrant).square().sum().backward()
    plain(x).square().sum().backward()
    for (name, a), (_, b) in zip(layer.named_parameters(), plain.named_parameters(), strict=True):
        assert_near(a.grad, b.grad, name)
    for name, value in plain.state_dict().items():
        assert torch.equal(layer.state_dict()[name], value)


@pytest.mark.parametrize("reentrant", [True, False])
def test_d5_two_checkpointed_passes_before_one_backward_pass(reentrant):
    """As in a discriminator, which sees a real and a made batch."""
    layer, x = spectral_norm(nn.Linear(4, 3).double()), draw(5, 4).requires_grad_()
    plain = copy.deepcopy(layer)
    for one, call in ((layer, lambda y: checkpoint(layer, y, use_reentrant=reentrant)), (plain, plain)):
        one.parametrizations.weight.original.data.copy_(draw(3, 4, seed=1))  # u and v have yet to follow it
        (call(x).square().sum() - call(2 * x).square().sum()).backward()
    for (name, a), (_, b) in zip(layer.named_parameters(), plain.named_parameters(), strict=True):
        assert_near(a.grad, b.grad, name)


def test_kernel_norm_is_not_that_of_the_convolution():
    layer = nn.Conv2d(1, 1, 3, padding=1, bias=False).double()
    layer.weight.data.fill_(1.0)
    kernel = torch.linalg.matrix_norm(layer.weight.detach().flatten(1), ord=2)
    columns = layer(torch.eye(36, dtype=torch.float64).view(36, 1, 6, 6)).detach().flatten(1)
    assert 2 < torch.linalg.matrix_norm(columns, ord=2) / kernel < 3
