"""repro.probes against statistics worked out by hand in float64, and against autograd; training must not notice it."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from repro.errors import ReproError
from repro.probes import Probe, percentiles, sensitivity

X = torch.tensor([[1.0, -2.0], [3.0, 0.5], [-1.0, 4.0]], dtype=torch.float64)


def drawn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def filled(model, seed=0):
    """The model with parameters from a generator of our own, scaled by 1/sqrt(fan in)."""
    with torch.no_grad():
        for i, p in enumerate(model.parameters()):
            p.copy_(drawn(*p.shape, seed=seed + i) / p.shape[-1] ** 0.5)
    return model


def mlp(dtype=torch.float64, inplace=False):
    layers = [nn.Linear(2, 3), nn.ReLU(inplace=inplace), nn.Linear(3, 3), nn.ReLU(inplace=inplace), nn.Linear(3, 1)]
    return filled(nn.Sequential(*layers).to(dtype))


def by_hand(values):
    """Mean, variance and rms in plain Python floats."""
    values = [float(v) for v in values.flatten().tolist()]
    mean = math.fsum(values) / len(values)
    variance = math.fsum((v - mean) ** 2 for v in values) / len(values)
    return mean, variance, math.sqrt(math.fsum(v * v for v in values) / len(values))


def numbers(row):
    return row["mean"], row["variance"], row["rms"]


@pytest.mark.parametrize("inplace", [False, True])
def test_statistics_and_gradients_of_a_small_network(inplace):
    model = mlp(inplace=inplace)
    with Probe(model, of=(nn.Linear,)) as probe:
        model(X).square().sum().backward()
    rows = probe.rows()
    assert [row["layer"] for row in rows] == ["0", "2", "4"]

    plain = mlp()
    a = [X]
    for layer in plain:
        a.append(layer(a[-1]))
        a[-1].retain_grad()
    a[-1].square().sum().backward()
    for row, i in zip(rows, (0, 2, 4), strict=True):
        assert numbers(row) == pytest.approx(by_hand(a[i + 1]), rel=1e-12)
        assert row["grad_norm"] == pytest.approx(a[i + 1].grad.norm().item(), rel=1e-12)
        flat = torch.cat([p.grad.flatten() for p in plain[i].parameters()])
        assert row["param_grad_norm"] == pytest.approx(flat.norm().item(), rel=1e-12)
        flat = torch.cat([p.flatten() for p in plain[i].parameters()])
        assert row["param_norm"] == pytest.approx(flat.norm().item(), rel=1e-12)
        assert all(type(row[key]) is float for key in row.keys() - {"layer", "call"})


def test_modules_are_chosen_by_type_name_or_predicate():
    model = nn.Sequential(mlp(), nn.Identity())

    def seen(of):
        with Probe(model, of) as probe:
            model(X)
        return [row["layer"] for row in probe.rows()]

    leaves = ["0.0", "0.1", "0.2", "0.3", "0.4", "1"]
    assert seen(None) == leaves
    assert seen(nn.ReLU) == ["0.1", "0.3"]
    assert seen((nn.Identity, nn.ReLU)) == ["0.1", "0.3", "1"]
    assert seen(["0.2", nn.Identity]) == ["0.2", "1"]
    assert seen("0.2") == ["0.2"]
    assert seen(lambda name, module: isinstance(module, nn.Linear) and name > "0.0") == ["0.2", "0.4"]
    assert seen(nn.Sequential) == ["0", ""]  # in the order in which they ended
    with pytest.raises(ReproError, match="matches no module"):
        Probe(model, of=nn.Conv2d)
    with pytest.raises(ReproError, match="write output or input"):
        Probe(model, at="weights")


def test_inputs_are_seen_before_the_module_positional_or_by_keyword():
    model = mlp()
    with Probe(model, of=(nn.ReLU,), at="input") as probe:
        model(X).sum().backward()
    with Probe(model, of=(nn.Linear,)) as outputs:
        model(X).sum().backward()
    for before, after in zip(probe.rows(), outputs.rows(), strict=False):
        assert numbers(before) == numbers(after)
        assert before["grad_norm"] == after["grad_norm"]
        assert before["param_norm"] is before["param_grad_norm"] is None  # a ReLU has none

    with Probe(model, of="", at="input") as probe:
        model(input=X)
    assert numbers(probe.rows()[0]) == pytest.approx(by_hand(X), rel=1e-12)


@pytest.mark.parametrize("n", [1, 2, 7, 1000])
def test_percentiles_are_numpys(n):
    q = (0, 15, 50, 85, 100)
    x = drawn(n)
    assert percentiles(x, q).tolist() == pytest.approx(np.percentile(x.numpy(), q).tolist(), rel=1e-12)


def test_percentiles_of_one_unit_before_its_activation():
    model = mlp()
    with Probe(model, of="3", at="input", percentiles=(15, 50, 85), select=lambda y: y[:, 1]) as probe:
        model(X)
    unit = model[:3](X)[:, 1].detach()
    (row,) = probe.rows()
    assert [row["p15"], row["p50"], row["p85"]] == pytest.approx(np.percentile(unit.numpy(), (15, 50, 85)).tolist())
    assert numbers(row) == pytest.approx(by_hand(unit), rel=1e-12)


def test_statistics_survive_large_means_and_half_precision():
    class Shift(nn.Module):
        def forward(self, x):
            return x + 1000

    model = Shift()
    x = drawn(4000, dtype=torch.float32) / 10
    with Probe(model) as probe:
        y = model(x)
    assert probe.rows()[0]["variance"] == pytest.approx(by_hand(y)[1], rel=1e-3)

    half = (300 + drawn(100_000)).half()  # neither the square of 300 nor the norm of all is a float16
    with Probe(model := nn.Identity()) as probe:
        model(half)
    assert numbers(probe.rows()[0]) == pytest.approx(by_hand(half), rel=1e-4)


def test_autocast():
    model = mlp(torch.float32)
    with Probe(model, of=nn.Linear) as probe, torch.autocast("cpu", torch.bfloat16):
        loss = model(X.float()).float().square().sum()
        loss.backward()
    exact = by_hand(mlp()[0](X))
    assert numbers(probe.rows()[0]) == pytest.approx(exact, rel=0.05)
    assert all(row["grad_norm"] > 0 and row["param_grad_norm"] > 0 for row in probe.rows())


@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode])
def test_without_gradients(guard):
    model = mlp()
    with guard(), Probe(model, of=nn.Linear) as probe:
        model(X)
    rows = probe.rows()
    assert len(rows) == 3
    assert all(row["grad_norm"] is None and row["param_grad_norm"] is None for row in rows)


class Unrolled(nn.Module):
    """h <- tanh(cell(h)), `steps` times."""

    def __init__(self, steps):
        super().__init__()
        self.cell, self.steps = nn.Linear(2, 2).double(), steps

    def forward(self, h):
        self.trace = []
        for _ in range(self.steps):
            self.trace.append(self.cell(h))
            h = self.trace[-1].tanh()
        return h


def test_a_module_called_several_times_gives_one_row_per_call():
    model = filled(Unrolled(4))
    with Probe(model, of=nn.Linear) as probe:
        out = model(X)
        for y in model.trace:
            y.retain_grad()
        out.sum().backward()
    rows = probe.rows()
    assert [(row["layer"], row["call"]) for row in rows] == [("cell", t) for t in range(4)]
    for row, y in zip(rows, model.trace, strict=True):
        assert numbers(row) == pytest.approx(by_hand(y), rel=1e-12)
        assert row["grad_norm"] == pytest.approx(y.grad.norm().item(), rel=1e-12)
    shared = torch.cat([p.grad.flatten() for p in model.parameters()]).norm().item()
    assert [row["param_grad_norm"] for row in rows] == pytest.approx([shared] * 4, rel=1e-12)


def test_nested_integer_and_empty_outputs():
    class Odd(nn.Module):
        def forward(self, x, kind):
            return {"nested": {"ids": x.long(), "y": [x]}, "ids": x.long(), "empty": x[:0], "none": None}[kind]

    model = nn.ModuleDict({"odd": Odd(), "lstm": filled(nn.LSTM(2, 3).double())})
    with Probe(model, of=(Odd, nn.LSTM)) as probe:
        for kind in ("nested", "ids", "empty", "none"):
            model["odd"](X, kind)
        y, _ = model["lstm"](X)
    odd, lstm = probe.rows()
    assert numbers(odd) == pytest.approx(by_hand(X), rel=1e-12)
    assert numbers(lstm) == pytest.approx(by_hand(y), rel=1e-12)


def test_update_size_between_entering_clearing_and_reading():
    model = mlp()
    start = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def step():
        optimizer.zero_grad()
        model(X).square().mean().backward()
        optimizer.step()

    def flat(module):
        return torch.cat([p.detach().flatten() for p in module.parameters()])

    with Probe(model, of=nn.Linear, updates=True) as probe:
        step()
        step()
        for row in probe.rows()[:3]:
            i = int(row["layer"])
            moved = (flat(model[i]) - flat(start[i])).norm().item()
            assert row["update"] == pytest.approx(moved, rel=1e-12) and moved > 0
            assert row["update_ratio"] == pytest.approx(moved / flat(start[i]).norm().item(), rel=1e-12)
        probe.clear()
        assert probe.rows() == []
        middle = copy.deepcopy(model)
        step()
        rows = probe.rows()
        assert [row["call"] for row in rows] == [0, 0, 0]
        for row in rows:
            i = int(row["layer"])
            # one step of plain gradient descent moves by lr times the gradient
            assert row["update"] == pytest.approx((flat(model[i]) - flat(middle[i])).norm().item(), rel=1e-12)
            assert row["update"] == pytest.approx(0.1 * row["param_grad_norm"], rel=1e-9)


def test_update_from_zero_has_no_ratio():
    model = nn.Linear(2, 1).double()
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    with Probe(model, updates=True) as probe:
        model(X)
        nn.init.ones_(model.weight)
    (row,) = probe.rows()
    assert (row["update"], row["update_ratio"]) == (pytest.approx(2**0.5), None)


def test_gradients_survive_zero_grad_and_are_those_before_clipping():
    model = mlp()
    with Probe(model, of=nn.Linear) as probe:
        model(X).square().sum().backward()
        norms = [torch.cat([p.grad.flatten() for p in model[i].parameters()]).norm().item() for i in (0, 2, 4)]
        nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
        model.zero_grad()
    assert [row["param_grad_norm"] for row in probe.rows()] == pytest.approx(norms, rel=1e-12)


def hooks(model):
    names = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    held = sum(len(getattr(module, name)) for module in model.modules() for name in names)
    return held + sum(len(p._post_accumulate_grad_hooks or ()) for p in model.parameters())


def test_hooks_are_gone_after_the_block_even_after_an_error():
    model = mlp()
    with Probe(model) as probe:
        assert hooks(model) == 5 + 6
        y = model(X)
    assert hooks(model) == 0
    y.sum().backward()  # after the block: nobody looks
    assert len(probe.rows()) == 5
    assert all(row["grad_norm"] is None and row["param_grad_norm"] is None for row in probe.rows())
    model(X)
    assert len(probe.rows()) == 5

    with pytest.raises(ZeroDivisionError), Probe(model, at="input"):
        assert hooks(model) == 5 + 6
        _ = 1 / 0
    assert hooks(model) == 0


def test_a_probe_may_be_entered_again():
    model = mlp()
    probe = Probe(model, of=nn.Linear)
    for _ in range(2):
        with probe:
            model(X)
        assert [row["call"] for row in probe.rows()] == [0, 0, 0]


def test_training_is_bitwise_the_same_with_a_probe():
    def trained(watched):
        layers = [nn.Linear(2, 8), nn.BatchNorm1d(8), nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Linear(8, 1)]
        model = filled(nn.Sequential(*layers))
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        torch.manual_seed(0)
        for _ in range(5):
            probe = Probe(model, percentiles=(50,), updates=True)
            if watched:
                probe.__enter__()
            optimizer.zero_grad()
            model(X.float()).square().mean().backward()
            optimizer.step()
            if watched:
                probe.__exit__()
                assert len(probe.rows()) == 5
        return model.state_dict()

    watched, plain = trained(True), trained(False)
    assert all(torch.equal(watched[key], plain[key]) for key in plain)


def test_sensitivity_of_linear_maps_is_the_frobenius_norm():
    orthogonal = nn.Linear(3, 3, bias=False).double()
    orthogonal.weight.data = torch.linalg.qr(drawn(3, 3)).Q
    x = drawn(10, 3)
    assert sensitivity(orthogonal, x, draws=1) == pytest.approx(1.0, rel=1e-9)

    wide = filled(nn.Linear(3, 50).double())
    exact = wide.weight.norm().item() / 3**0.5
    x = drawn(500, 3)
    assert sensitivity(wide, x, draws=20) == pytest.approx(exact, rel=0.02)


def test_sensitivity_of_a_network_against_its_whole_jacobian():
    model = nn.Sequential(mlp()[:3], nn.Tanh())
    jacobian = torch.autograd.functional.jacobian(model, X)
    exact = jacobian.norm().item() / X.numel() ** 0.5
    assert sensitivity(model, X, draws=2000) == pytest.approx(exact, rel=0.05)


def test_sensitivity_leaves_model_and_generator_alone():
    model = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)).double()
    before = copy.deepcopy(model.state_dict())
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    found = [sensitivity(model, X) for _ in range(2)]
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert found[0] == found[1]  # the same seed, the same number
    assert sensitivity(model, X, seed=1) != found[0]


def test_sensitivity_of_a_step_function_and_at_zero():
    class Sign(nn.Module):
        def forward(self, x):
            return (x.sign(), x)

    assert sensitivity(Sign(), X) == 0.0  # no jump within reach
    assert sensitivity(Sign(), torch.zeros(4, 4)) > 100  # all of them jump

    class Integers(nn.Module):
        def forward(self, x):
            return x.long()

    with pytest.raises(ReproError, match="no floating-point tensor"):
        sensitivity(Integers(), X)
