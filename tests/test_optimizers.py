"""docs/optimizers.md says what the code does."""

import ast
import inspect
import re

import pytest
import torch

import repro.optim
from conftest import ROOT

ROWS = {
    match[1]: (int(match[2]), match[3])
    for match in re.finditer(
        r"^\| \[(\w+)\]\([^)]*\) \|.*\| (\d+) \| ([^|]*) \|$", (ROOT / "docs/optimizers.md").read_text(), re.MULTILINE
    )
}


def test_the_table_names_every_optimizer() -> None:
    public = {name for name in repro.optim.__all__ if inspect.isclass(getattr(repro.optim, name))}
    kinds = {name for name in public if issubclass(getattr(repro.optim, name), torch.optim.Optimizer)}
    assert set(ROWS) == kinds
    schedulers = public - kinds
    assert all(f"[{name}]" in (ROOT / "docs/optimizers.md").read_text() for name in schedulers)


@pytest.mark.parametrize("name", sorted(ROWS))
def test_the_table_has_the_defaults_and_the_state(name: str) -> None:
    tensors, defaults = ROWS[name]
    kind = getattr(repro.optim, name)
    signature = inspect.signature(kind)
    for keyword in ast.parse(f"f({defaults})", mode="eval").body.keywords:
        assert signature.parameters[keyword.arg].default == ast.literal_eval(keyword.value), (name, keyword.arg)
    p = torch.nn.Parameter(torch.ones(3, 2))
    p.grad = torch.ones_like(p)
    wraps = next(iter(signature.parameters)) == "optimizer"
    optimizer = kind(torch.optim.SGD([p], lr=0.1) if wraps else [p])
    optimizer.step(*([lambda: p.sum()] if getattr(optimizer, "needs_closure", False) else []))
    kept = [value for value in optimizer.state[p].values() if torch.is_tensor(value) and value.shape == p.shape]
    assert len(kept) == tensors
