"""The oracle of a method, and the wrong versions of it that the oracle must tell from the right one."""

import ast
import inspect
import textwrap
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor


def _is_fault(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and node.id == "fault" or isinstance(node, ast.Attribute) and node.attr == "fault"


def faults_of(*sources: Callable[..., Any]) -> list[str]:
    """Return the faults that wrong versions know: every text that their source compares with `fault`, in order.

    A comparison is ==, !=, in, match, or the key of a dictionary that is read with `fault`.
    """
    faults: dict[str, None] = {}
    for source in sources:
        tree = ast.parse(textwrap.dedent(inspect.getsource(source)))
        nodes = sorted(ast.walk(tree), key=lambda node: (getattr(node, "lineno", 0), getattr(node, "col_offset", 0)))
        tables = {
            target.id: node.value
            for node in nodes
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict)
            for target in node.targets
            if isinstance(target, ast.Name)
        }

        def keys(value: ast.AST, tables: dict = tables) -> list[ast.AST]:
            value = tables.get(value.id, value) if isinstance(value, ast.Name) else value
            return list(value.keys) if isinstance(value, ast.Dict) else []

        for node in nodes:
            parts: list[ast.AST] = []
            if isinstance(node, ast.Compare) and any(map(_is_fault, [node.left, *node.comparators])):
                parts = [node.left, *node.comparators]
            elif isinstance(node, ast.Match) and _is_fault(node.subject):
                parts = [case.pattern for case in node.cases]
            elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "get" and _is_fault(node.args[0]):
                parts = keys(node.func.value)
            elif isinstance(node, ast.Subscript) and _is_fault(node.slice):
                parts = keys(node.value)
            for part in parts:
                texts = (n.value for n in ast.walk(part) if isinstance(n, ast.Constant) and isinstance(n.value, str))
                faults |= dict.fromkeys(texts)
    return list(faults)


def mutation(
    check: Callable[[Any], None],
    broken: Callable[[str | None], Any],
    ours: Any,
    but: Iterable[str] = (),
    only: Iterable[str] | None = None,
    source: Iterable[Callable[..., Any]] | None = None,
) -> tuple[Callable[..., None], Callable[..., None]]:
    """Return two tests: that `check` accepts `ours` and `broken(None)`, and that it rejects `broken(fault)` of each
    fault.

    test_oracle, test_mutant_dies = mutation(check, broken, rms_norm)

    The faults are read off the source of `broken` (or of what is given as `source`), so that none can be written and
    left out here.  but: those that this check cannot tell, which another one must.  only: those that this check is
    for.  ours: the method, or a dictionary of several by name.  A check rejects by AssertionError; another exception
    is an error.
    """
    faults, but = faults_of(*(source or (broken,))), list(but)
    wrong = [fault for fault in [*but, *(only or ())] if fault not in faults]
    if wrong or not faults:
        raise ValueError(f"the source compares `fault` with {faults or 'nothing'}, not with {wrong}")
    kept = [fault for fault in (faults if only is None else only) if fault not in but]
    subjects = {**(ours if isinstance(ours, dict) else {"ours": ours}), "unbroken": broken(None)}

    @pytest.mark.parametrize("subject", list(subjects.values()), ids=list(subjects))
    def test_oracle(subject: Any) -> None:
        check(subject)

    @pytest.mark.parametrize("fault", kept)
    def test_mutant_dies(fault: str) -> None:
        with pytest.raises(AssertionError):
            check(broken(fault))

    return test_oracle, test_mutant_dies


def check_float32(call: Callable[..., Tensor], *inputs: Tensor) -> None:
    """Check the convention of the suite: `call` computes in float32 at least, and its output has the dtype of
    inputs[0].

    The floating tensors among `inputs` are given to `call` in every dtype, with and without autocast.  In half
    precision the output must be bit for bit the float32 output, rounded once.
    """

    def given(dtype: torch.dtype) -> list[Any]:
        return [x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x for x in inputs]

    assert call(*given(torch.float64)).dtype == torch.float64, "a float64 input is not answered in float64"
    full = call(*given(torch.float32))
    assert full.dtype == torch.float32, f"a float32 input is answered in {full.dtype}"
    for half in (torch.bfloat16, torch.float16):
        narrow = given(half)
        want = call(*[x.float() if isinstance(x, Tensor) and x.is_floating_point() else x for x in narrow]).to(half)
        got = call(*narrow)
        assert got.dtype == half, f"a {half} input is answered in {got.dtype}"
        assert torch.equal(got, want), f"{half}: off by {(got - want).abs().max():.3g} from the rounded float32 result"
        with torch.autocast(inputs[0].device.type, half):
            assert torch.equal(call(*given(torch.float32)), full), f"autocast({half}) changes a float32 result"
            assert torch.equal(call(*narrow), want), f"autocast({half}) changes a {half} result"
