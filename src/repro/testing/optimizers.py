"""What every optimizer of the suite owes, whichever rule it has."""

import copy
import io
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

Make = Callable[..., torch.optim.Optimizer]  # make(params, lr=..., **options)


def loss_of(model: nn.Module, t: int) -> Tensor:
    """The loss of step t, which is noisy."""
    draw, dtype = torch.Generator().manual_seed(1000 + t), next(model.parameters()).dtype
    x = torch.randn(4, 2, 4, generator=draw, dtype=torch.float64).to(dtype)
    return (model(x) - x.sum((1, 2))[:, None]).square().mean()


def network(dtype: torch.dtype = torch.float64) -> nn.Module:
    """A small network with matrices, a convolution and vectors."""
    source = torch.Generator().manual_seed(0)
    model = nn.Sequential(
        nn.Conv1d(2, 3, 2), nn.Flatten(), nn.Linear(9, 5), nn.Tanh(), nn.LayerNorm(5), nn.Linear(5, 3)
    ).to(dtype)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=source, dtype=torch.float64) / 2)
    return model


def run(make: Make, steps: int = 4, *, lr: float = 0.01, dtype: torch.dtype = torch.float64, **options) -> list[Tensor]:
    """Return the parameters after `steps` steps."""
    model = network(dtype)
    optimizer = make(model.parameters(), lr=lr, **options)
    for t in range(steps):
        optimizer.zero_grad()
        loss_of(model, t).backward()
        optimizer.step()
    return [p.detach().clone() for p in model.parameters()]


def assert_equal(one: list[Tensor], other: list[Tensor], what: str) -> None:
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True)), what


def check_optimizer(make: Make, *, maximize: bool = True) -> None:
    """`make(params, lr=...)` is an optimizer as torch has them.

    Resumes bitwise from a state dict and from a copy; takes closures, groups with rates of their own, schedulers,
    parameters without gradients and named ones; keeps dtypes; refuses sparse gradients, complex numbers, rates below 0
    and no parameters; `maximize` is a step along the other sign.
    """
    whole = run(make, 4)
    assert all(torch.isfinite(p).all() for p in whole)
    half = run(make, 4, dtype=torch.bfloat16)
    for how in ("state dict", "copy", "file", "bfloat16"):
        model = network(torch.bfloat16 if how == "bfloat16" else torch.float64)
        optimizer = make(model.parameters(), lr=0.01)
        for t in range(4):
            if t == 2 and how == "copy":
                model, optimizer = copy.deepcopy((model, optimizer))
            elif t == 2:
                state = optimizer.state_dict()
                if how == "file":
                    torch.save(state, stored := io.BytesIO())
                    state = torch.load(io.BytesIO(stored.getvalue()), weights_only=True)
                optimizer = make(model.parameters(), lr=0.5)
                optimizer.load_state_dict(state)
            optimizer.zero_grad()
            loss_of(model, t).backward()
            optimizer.step()
        assert_equal(list(model.parameters()), half if how == "bfloat16" else whole, f"resumed from a {how}")

    model = network()
    optimizer = make(model.parameters(), lr=0.01)

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss_of(model, 0)
        value.backward()
        return value

    assert torch.is_tensor(optimizer.step(closure)), "step(closure) returns the loss"
    assert_equal(list(model.parameters()), run(make, 1), "a closure")

    model = network()
    first, *rest = model.parameters()
    optimizer = make([{"params": [first], "lr": 0.0}, {"params": rest}], lr=0.01)
    before = first.detach().clone()
    loss_of(model, 0).backward()
    rest[-1].grad = None
    kept = rest[-1].detach().clone()
    optimizer.step()
    assert torch.equal(first, before), "a group with lr=0 stays where it is"
    assert torch.equal(rest[-1], kept), "a parameter without a gradient stays where it is"
    assert_equal(rest[:-1], run(make, 1)[1:-1], "groups")

    model = network()
    optimizer = make(model.named_parameters(), lr=0.01)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no step before the scheduler's first
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 0.0)
    loss_of(model, 0).backward()
    before = [p.detach().clone() for p in model.parameters()]
    optimizer.step()
    scheduler.step()
    assert_equal(list(model.parameters()), before, "a scheduler sets the rate")

    for dtype in (torch.float32, torch.bfloat16):
        assert all(p.dtype == dtype for p in run(make, 2, dtype=dtype)), dtype
    if maximize:
        up, start = run(make, 1, maximize=True), [p.detach() for p in network().parameters()]
        moved = [(a - c).sign() + (b - c).sign() for a, b, c in zip(up, run(make, 1), start, strict=True)]
        assert all(not m.any() for m in moved), "maximize goes the other way"

    table = nn.Embedding(3, 2, sparse=True)
    optimizer = make(table.parameters(), lr=0.1)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="sparse"):
        optimizer.step()
    number = nn.Parameter(torch.ones(2, 2, dtype=torch.complex64))
    optimizer = make([number], lr=0.1)
    number.grad = torch.ones_like(number)
    with pytest.raises(RuntimeError, match="complex"):
        optimizer.step()
    with pytest.raises(ValueError, match="lr=-1"):
        make([nn.Parameter(torch.ones(2))], lr=-1.0)
    with pytest.raises(ValueError, match="empty parameter list"):
        make([], lr=0.1)


def check_foreach(make: Make) -> None:
    """foreach=True computes what the loop does: with parameters of two dtypes and orders of memory, without some
    gradients at some steps, under `maximize`, and where a state dict of the loop is resumed with it.
    """

    def ends(*ways: bool, **options: Any) -> list[Tensor]:
        """Return parameters and state after steps of which each is taken in its way."""
        source = torch.Generator().manual_seed(0)
        shapes = [(3, 2, 5, 5), (17,), (), (4, 3)]
        drawn = [
            torch.randn(shape, generator=source).to(d) for shape in shapes for d in (torch.float32, torch.bfloat16)
        ]
        drawn[0] = drawn[0].to(memory_format=torch.channels_last)
        params, optimizer = [nn.Parameter(x) for x in drawn], None
        for t, way in enumerate(ways):
            state = optimizer.state_dict() if optimizer else None
            optimizer = make(params, lr=0.01, foreach=way, **options)
            if state:
                for group in state["param_groups"]:
                    group["foreach"] = way
                optimizer.load_state_dict(state)
            for i, p in enumerate(params):
                g = torch.randn(p.shape, generator=source).to(p.dtype)
                p.grad = None if (i + t) % 5 == 0 else g
            optimizer.step()
        kept = [x for p in params for x in optimizer.state[p].values() if torch.is_tensor(x)]
        return [p.detach() for p in params] + kept

    for options in ({}, {"maximize": True}):
        loop = ends(False, False, False, False, **options)
        assert len(loop) > 8, "no state is kept"
        for ways in ((True,) * 4, (False, False, True, True), (True, False, True, False)):
            for ours, theirs in zip(ends(*ways, **options), loop, strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-6 if ours.dtype == torch.float32 else 1e-2, atol=1e-7)


def trajectory(make: Make, gradients: Tensor, start: Tensor, **options) -> Tensor:
    """Return where one parameter stands after each of the given gradients: (steps, *shape)."""
    p = nn.Parameter(start.clone())
    optimizer, path = make([p], **options), []
    for g in gradients:
        p.grad = g.clone()
        optimizer.step()
        path.append(p.detach().clone())
    return torch.stack(path)


def matrices_only(kind: Make) -> Make:
    """An optimizer of matrices as `check_optimizer` calls it: vectors go to its groups of AdamW."""

    def make(params: Any, **options: Any) -> torch.optim.Optimizer:
        groups = [p if isinstance(p, dict) else {"params": p[1] if isinstance(p, tuple) else p} for p in params]
        flat = [
            {**g, "params": [p], "adam": p.dim() < 2}
            for g in groups
            for p in (g["params"] if isinstance(g["params"], list) else [g["params"]])
        ]
        return kind(flat, **options)

    return make
