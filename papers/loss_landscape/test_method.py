import pytest
import torch
from torch import nn

from repro.papers.loss_landscape import filter_normalized, loss_line, loss_plane, nonconvexity, random_direction
from repro.testing import assert_near, draw, mutation


def network():
    """A convolution, a BatchNorm and a linear layer, in float64."""
    net = nn.Sequential(nn.Conv2d(2, 3, 2), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 4)).double()
    with torch.no_grad():
        for i, p in enumerate(net.parameters()):
            p.copy_(draw(*p.shape, seed=i))
        net[1].running_mean.copy_(draw(3, seed=9)), net[1].running_var.copy_(draw(3, seed=8).exp())
    return net


def directions(net, seed=20):
    return {name: draw(*p.shape, seed=seed + i) for i, (name, p) in enumerate(net.named_parameters())}


def size(numbers):
    """The norm of nested lists, number by number."""
    return sum(size(n) ** 2 if isinstance(n, list) else n * n for n in numbers) ** 0.5


def oracle(direction, net):
    """Filter by filter, norms in Python floats."""
    found = {}
    for name, p in net.named_parameters():
        found[name] = torch.zeros(p.shape, dtype=torch.float64)
        if p.dim() > 1:
            for i, (d, w) in enumerate(zip(direction[name].tolist(), p.tolist(), strict=True)):
                found[name][i] = torch.tensor(d, dtype=torch.float64) * (size(w) / size(d))
    return found


def check(normalize):
    net = network()
    direction = directions(net)
    got, want = normalize(direction, net), oracle(direction, net)
    assert got.keys() == want.keys()
    for name in want:
        assert_near(got[name], want[name], name, rel=1e-12, floor=1e-15)


def broken(fault):
    def normalize(direction, net):
        found = filter_normalized(direction, net)
        for name, p in net.named_parameters():
            d, w = direction[name], p.detach()
            if w.dim() == 1:
                if fault == "BatchNorm and biases perturbed":
                    found[name] = d / d.norm() * w.norm()
                continue
            match fault:
                case "one norm for each layer":
                    found[name] = d / d.norm() * w.norm()
                case "input filters":
                    axes = tuple(i for i in range(w.dim()) if i != 1)
                    found[name] = d * (w.square().sum(axes, keepdim=True) / d.square().sum(axes, keepdim=True)).sqrt()
                case "unit filters":
                    found[name] = found[name] / w.norm()
                case "element by element":
                    found[name] = d * w
                case "as drawn":
                    found[name] = d
        return found

    return normalize


test_oracle, test_mutant_dies = mutation(check, broken, filter_normalized)


def loss_of(x):
    return lambda net: net(x).square().mean()


def test_curves_are_the_losses_there_and_all_comes_back():
    net, x = network(), draw(6, 2, 3, 3)
    d, e = directions(net), directions(net, seed=40)
    before = {name: t.clone() for name, t in net.state_dict().items()}
    net.train()
    net[1].eval()
    a, b = torch.tensor([-1.0, 0.0, 0.3]), torch.tensor([0.0, 2.0])
    line, plane = loss_line(net, loss_of(x), d, a), loss_plane(net, loss_of(x), d, e, a, b)
    assert plane.shape == (3, 2) and torch.equal(plane[:, 0], line)
    assert net.training and not net[1].training
    assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items())
    moved = network().eval()
    with torch.no_grad():
        for name, p in moved.named_parameters():
            p.add_(float(a[2]) * d[name] + 2 * e[name])
        assert_near(plane[2, 1], loss_of(x)(moved), rel=1e-12)


def test_weights_come_back_after_an_error():
    net = network()
    before = net[0].weight.detach().clone()

    def fails(net):
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        loss_line(net, fails, directions(net), torch.ones(2))
    assert torch.equal(net[0].weight, before)


def test_random_directions():
    net = network()
    one, same = (random_direction(net, torch.Generator().manual_seed(3)) for _ in range(2))
    raw = random_direction(net, torch.Generator().manual_seed(3), normalized=False)
    assert all(torch.equal(one[name], same[name]) for name in one)
    for name, p in net.named_parameters():
        assert one[name].dtype == p.dtype and not one[name].requires_grad
        if p.dim() == 1:
            assert not one[name].any() and not raw[name].any()
        else:
            assert_near(one[name].flatten(1).norm(dim=1), p.detach().flatten(1).norm(dim=1), name, rel=1e-12)
    with pytest.raises(ValueError, match="0.weight has the shape"):
        filter_normalized({**raw, "0.weight": raw["0.weight"][:1]}, net)


def test_d1_filters_of_zeros():
    net = network()
    direction = directions(net)
    with torch.no_grad():
        net[0].weight[0] = 0
    direction["4.weight"][1] = 0
    got = filter_normalized(direction, net)
    assert not got["0.weight"][0].any() and not got["4.weight"][1].any()
    assert all(torch.isfinite(d).all() for d in got.values())


def test_d2_nonconvexity():
    x = torch.linspace(-1, 1, 21, dtype=torch.float64)
    assert nonconvexity(x.square()) == 0 and nonconvexity(-x.square()) == 1
    assert nonconvexity(torch.zeros(5)) == 0
    assert abs(nonconvexity(torch.tensor([0.0, 1.0, 0.0, 1.0, 0.0])) - 2 / 3) < 1e-6
    steep = torch.cat([torch.tensor([torch.nan, 1e9, 30.0, 40.0]), x.square()])  # it bends down before it is low
    assert nonconvexity(steep, below=9.0) == 0 < nonconvexity(steep[1:])
    with pytest.raises(ValueError, match="2 bends lie below 1"):
        nonconvexity(torch.tensor([9.0, 1.0, 0.5, 0.2, 0.5, 9.0]), below=1.0)
