"""docs/optimizers.md says what the code does."""

import ast
import inspect
import re

import pytest
import torch

import repro.optim
from conftest import ROOT

NAME = re.compile(r"\[(\w+)\]\(\.\./papers/\w+/README\.md\)")
BESIDE = {"params", "optimizer", "maximize", "foreach", "norms"}  # said below the table


def rows() -> dict[str, list[str]]:
    """Name -> the cells of its line: update, state, hyperparameters, defaults of the paper and of the authors' code."""
    table = [line for line in (ROOT / "docs/optimizers.md").read_text().splitlines() if line.startswith("| [")]
    cells = [line[2:-2].split(" | ") for line in table]
    assert {len(each) for each in cells} == {6}
    return {NAME.fullmatch(each[0])[1]: each[1:] for each in cells}


def values(text: str) -> dict[str, object]:
    """`lr=0.1, eps=1e-8` as a dictionary; nothing of a dash."""
    call = ast.parse(f"f({'' if text == '–' else text})", mode="eval").body
    return {one.arg: ast.literal_eval(one.value) for one in call.keywords}


ROWS = rows()


def test_the_table_names_every_optimizer() -> None:
    public = {name for name in repro.optim.__all__ if inspect.isclass(getattr(repro.optim, name))}
    kinds = {name for name in public if issubclass(getattr(repro.optim, name), torch.optim.Optimizer)}
    assert set(ROWS) == kinds
    schedulers = public - kinds
    assert all(f"[{name}]" in (ROOT / "docs/optimizers.md").read_text() for name in schedulers)


def test_those_that_take_foreach_are_named() -> None:
    """`foreach` is an argument of the rules that treat every element alone, and the text below the table names them."""
    text = (ROOT / "docs/optimizers.md").read_text()
    told = re.search(r"^(.*) treat every element alone and take `foreach=True`", text, re.M).group(1)
    kinds = {name: getattr(repro.optim, name) for name in ROWS}
    takes = {name for name, kind in kinds.items() if "foreach" in inspect.signature(kind).parameters}
    assert takes == {name for name, kind in kinds.items() if getattr(kind, "elementwise", False)}
    assert takes == set(re.findall(r"\w+", told)) - {"and"}


@pytest.mark.parametrize("name", sorted(ROWS))
def test_the_table_has_the_defaults_and_the_state(name: str) -> None:
    _, tensors, here, *published = ROWS[name]
    kind = getattr(repro.optim, name)
    signature = inspect.signature(kind)
    defaults = {one: given.default for one, given in signature.parameters.items() if one not in BESIDE}
    assert values(here) == defaults
    for text in published:
        assert text == "–" or values(text) and set(values(text)) <= set(defaults), text
    p = torch.nn.Parameter(torch.ones(3, 2))
    p.grad = torch.ones_like(p)
    wraps = next(iter(signature.parameters)) == "optimizer"
    optimizer = kind(torch.optim.SGD([{"params": [p], "norm": True}], lr=0.1) if wraps else [p])
    optimizer.step(*([lambda: p.sum()] if getattr(optimizer, "needs_closure", False) else []))
    kept = [value for value in optimizer.state[p].values() if torch.is_tensor(value) and value.shape == p.shape]
    assert len(kept) == int(tensors)
