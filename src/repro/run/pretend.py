"""A GPU that is not there: torch's meta device stands in for it, for `repro rehearse --device meta`.

A tensor on the meta device has a shape and no numbers.  Under `watched` an operation that mixes it with a tensor of the
CPU is an error, as it would be on a GPU; where a program reads a number (`item`, `tolist`, an `if`), it gets one that
is drawn.  So every line of an experiment runs that does not hang on what the numbers are.  What it cannot show: kernels
that a GPU lacks, memory, and anything that depends on values.
"""

import contextlib
import dataclasses
import functools
import importlib
import pkgutil
import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

MAY_MIX = ("copy", "index", "lift", "detach", "alias")  # operations that take tensors of two devices, or move one
LARGE = ("gguf", "minilm", "smollm2")  # data that are whole models: they are read as they are


class Mixed(RuntimeError):
    """An operation on tensors of two devices."""


class _Watch(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        tensors = [one for one in tree_leaves((args, kwargs or {})) if isinstance(one, Tensor)]
        there = [one for one in tensors if one.is_meta]
        here = [tuple(one.shape) for one in tensors if not one.is_meta and one.ndim > 0]
        if there and here and not any(part in func.__name__ for part in MAY_MIX):
            raise Mixed(f"{func}: a tensor of the CPU, {here[0]}, beside one of the GPU, {tuple(there[0].shape)}")
        if there and func.__name__.startswith("index") and not args[0].is_meta:
            raise Mixed(f"{func}: a tensor of the CPU, {tuple(args[0].shape)}, is indexed by one of the GPU")
        return func(*args, **(kwargs or {}))


def watched() -> contextlib.AbstractContextManager:
    """Make an operation on tensors of two devices an error."""
    return _Watch()


def install() -> None:
    """Let the meta device pass for a GPU, in this process and for good; before any experiment is imported."""
    _answer_reads()
    _keep_hooks()
    _without_fused()
    _load_on_the_cpu()
    torch.autocast = lambda *arguments, **options: contextlib.nullcontext()  # it knows no meta device


def _answer_reads() -> None:
    """Give a number that is drawn wherever a program reads one from the meta device."""
    source = random.Random(0)

    def one(x: Tensor) -> Any:
        return source.uniform(0.4, 0.6) if x.is_floating_point() else 1

    def filled(x: Tensor) -> Tensor:
        drawn = torch.rand(x.shape, dtype=torch.float64) if x.is_floating_point() else torch.ones(x.shape)
        return drawn.to(x.dtype)

    answers: dict[str, Callable[[Tensor], Any]] = {
        "item": one,
        "tolist": lambda x: filled(x).tolist(),
        "cpu": filled,
        "numpy": lambda x: filled(x).numpy(),
        "__float__": lambda x: float(one(x)),
        "__int__": lambda x: 1,
        "__index__": lambda x: 1,
        "__bool__": lambda x: True,
    }
    for name, answer in answers.items():
        _patched(torch.Tensor, name, answer)


def _patched(kind: type, name: str, answer: Callable[[Tensor], Any]) -> None:
    real = getattr(kind, name)

    @functools.wraps(real)
    def read(self: Tensor, *arguments: Any, **options: Any) -> Any:
        return answer(self) if self.is_meta else real(self, *arguments, **options)

    setattr(kind, name, read)


def _keep_hooks() -> None:
    """Let hooks of parameters stay where a module moves, as they do where it moves to a GPU."""
    real = nn.Module._apply

    @functools.wraps(real)
    def apply(self: nn.Module, fn: Callable, recurse: bool = True) -> nn.Module:
        before = dict(self._parameters)
        real(self, fn, recurse)
        for name, p in self._parameters.items():
            if p is not None and p is not before[name] and before[name]._backward_hooks:
                p._backward_hooks = before[name]._backward_hooks
        return self

    nn.Module._apply = apply


def _without_fused() -> None:
    """Take `fused`, which the meta device has not, from torch's optimizers."""
    for kind in (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.Adagrad):
        real = kind.__init__

        @functools.wraps(real)
        def made(self: Any, *arguments: Any, real: Callable = real, **options: Any) -> None:
            real(self, *arguments, **{name: value for name, value in options.items() if name != "fused"})

        kind.__init__ = made


def _load_on_the_cpu() -> None:
    """Let every data set be read on the CPU, where its numbers are, and moved then."""
    data = importlib.import_module("repro.data")
    for found in pkgutil.iter_modules(data.__path__):
        module = importlib.import_module(f"repro.data.{found.name}")
        if hasattr(module, "load") and found.name not in LARGE:
            module.load = _moving(module.load)


def _moving(load: Callable) -> Callable:
    @functools.wraps(load)
    def moving(device: Any = "cpu", *arguments: Any, **options: Any) -> Any:
        if str(device) != "meta":
            return load(device, *arguments, **options)
        return _on_meta(load("cpu", *arguments, **options))

    return moving


def _on_meta(data: Any) -> Any:
    if isinstance(data, Tensor):
        return data.to("meta")
    if dataclasses.is_dataclass(data):
        inside = {f.name: _on_meta(getattr(data, f.name)) for f in dataclasses.fields(data) if f.init}
        return dataclasses.replace(data, **inside)
    if isinstance(data, dict):
        return {name: _on_meta(value) for name, value in data.items()}
    return type(data)(map(_on_meta, data)) if type(data) in (list, tuple) else data
