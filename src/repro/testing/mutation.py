"""The oracle of a method, and the wrong versions of it that the oracle must tell from the right one."""

import ast
import inspect
import textwrap
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor


def faults_of(broken: Callable[..., Any]) -> list[str]:
    """Return the faults that `broken(fault)` knows: every text that its source compares with `fault`, in order."""
    faults: dict[str, None] = {}
    for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(broken)))):
        parts: list[ast.AST] = []
        if isinstance(node, ast.Compare) and any(isinstance(n, ast.Name) and n.id == "fault" for n in ast.walk(node)):
            parts = [node.left, *node.comparators]
        elif isinstance(node, ast.Match) and isinstance(node.subject, ast.Name) and node.subject.id == "fault":
            parts = [case.pattern for case in node.cases]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "get":
            if isinstance(node.func.value, ast.Dict) and getattr(node.args[0], "id", "") == "fault":
                parts = list(node.func.value.keys)
        elif isinstance(node, ast.Subscript) and getattr(node.slice, "id", "") == "fault":
            parts = list(node.value.keys) if isinstance(node.value, ast.Dict) else []
        for part in parts:
            for constant in ast.walk(part):
                if isinstance(constant, ast.Constant) and isinstance(constant.value, str):
                    faults[constant.value] = None
    lines = inspect.getsource(broken)
    return sorted(faults, key=lambda fault: min(lines.find(quote + fault) % len(lines) for quote in "\"'"))


def mutation(
    check: Callable[[Any], None],
    broken: Callable[[str | None], Any],
    ours: Any,
    but: Iterable[str] = (),
    only: Iterable[str] | None = None,
) -> tuple[Callable[..., None], Callable[..., None]]:
    """Return two tests: that `check` accepts `ours` and `broken(None)`, and that it rejects `broken(fault)` of each fault.

    test_oracle, test_mutant_dies = mutation(check, broken, rms_norm)

    The faults are read off the source of `broken`, so that none can be written and left out here.  but: those that this
    check cannot tell, which another one must.  only: those that this check is for.  ours: the method, or a dictionary of
    several by name.  A check rejects by AssertionError; any other exception is an error of the mutant.
    """
    faults, but = faults_of(broken), list(but)
    wrong = [fault for fault in [*but, *(only or ())] if fault not in faults]
    if wrong or not faults:
        raise ValueError(f"{broken.__name__} compares `fault` with {faults or 'nothing'}, not with {wrong}")
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
    """Check the convention of the suite: `call` computes in float32 at least, and its output has the dtype of inputs[0].

    The floating tensors among `inputs` are given to `call` in every dtype, with and without autocast.  In half precision
    the output must be bit for bit the float32 output, rounded once.
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
