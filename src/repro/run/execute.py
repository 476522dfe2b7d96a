"""One unit of work inside a worker: a trial, all seeds of an arm, or all arms of a seed; knows no engine."""

import importlib
import math
import sys
import typing
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path

from repro.errors import Diverged, InvalidMeasurement, ReproError
from repro.files.strict import told, unlike
from repro.run import provenance

LARGEST_RANKS = 1024  # processes that may share one trial
SUFFIX = {"single": "", "batched": "_batch", "exclusive": provenance.TIMED}


def function_name(unit: dict) -> str:
    """The function that executes a unit: `quality`, `quality_batch` or `quality_group`."""
    return (unit.get("function") or unit["experiment"]) + SUFFIX[unit["path"]]


def _experiment(unit: dict) -> Callable:
    module = importlib.import_module(unit["module"])
    name = function_name(unit)
    function = getattr(module, name, None)
    if function is None:
        raise ReproError(f"{module.__file__}: no function `{name}`; experiment `{unit['experiment']}` needs one")
    return function


def make_config(function: Callable, values: dict, where: str) -> object:
    """The frozen Config that the experiment's `config` annotation names, filled from paper.yaml."""
    kind = typing.get_type_hints(function).get("config")
    if not is_dataclass(kind):
        raise ReproError(f"{where}: `{function.__name__}` must annotate `config` with its Config dataclass")
    known, kinds = {f.name: f for f in fields(kind)}, typing.get_type_hints(kind)
    if unknown := sorted(set(values) - set(known)):
        raise ReproError(
            f"{_located(where, unknown[0])}: unknown setting {unknown[0]!r}; {kind.__name__} has {', '.join(known)}"
        )
    if missing := [n for n, f in known.items() if n not in values and f.default is f.default_factory is MISSING]:
        raise ReproError(f"{_located(where)}: {missing[0]!r} is missing; {kind.__name__} has {', '.join(known)}")
    for name, value in values.items():
        if wanted := unlike(kinds[name], value):
            raise ReproError(f"{_located(where, name)}: {told(value)}; write {wanted}")
    try:
        return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
    except (TypeError, ValueError) as error:
        raise ReproError(f"{_located(where)}: {error}; correct these settings") from error


def _located(where: str, name: str | None = None) -> str:
    """`papers/demo/paper.yaml:28: profiles.cpu.main.mode` of a place without its line, which a checkout alone knows."""
    file, _, place = where.partition(": ")
    line = ""
    try:
        from repro.spec.yaml import YamlFile

        lines = YamlFile(Path(file), file, (provenance.root() / file).read_bytes()).lines
        parts = (*place.split("."), *([name] if name else []))
        found = [parts[:n] for n in range(len(parts), 0, -1) if parts[:n] in lines]
        line = f":{lines[found[0]]}" if found else ""
    except (ImportError, OSError, ReproError):
        pass  # a bare machine, which has the plan alone
    return f"{file}{line}: {place}{'.' + name if name else ''}"


def execute(unit: dict, *, watch: bool = False) -> list[dict]:
    """Run one unit: a trial, all seeds of one arm (`batched`) or all arms of one seed (`exclusive`).

    Returns one {"status", "measures"} per trial of the unit, in the order of `unit["trials"]`.
    watch: refuse files and modules that the keys of the trials do not cover (`inputs`).
    """
    import torch

    device = torch.device(unit["device"])
    if device.type == "cuda":  # the same algorithm each time, so that equal seeds give equal rows
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    trials = unit["trials"]
    watched = _watched if watch else _unwatched
    if unit["module"] not in sys.modules:
        with watched(unit, None):
            importlib.import_module(unit["module"])
    function = _experiment(unit)
    config = make_config(function, {**unit["config"], **trials[0]["factors"]}, unit["where"])
    arms, seeds = [t["arm"] for t in trials], [t["seed"] for t in trials]
    try:
        with watched(unit, function_name(unit)):
            if unit["path"] == "batched":
                results = function(arms[0], seeds, config, device)
            elif unit["path"] == "exclusive":
                by_arm = function(arms, seeds[0], config, device)
                results = [by_arm[arm] for arm in arms]
            else:
                results = [function(arms[0], seeds[0], config, device)]
    except (Diverged, InvalidMeasurement) as error:
        results = [error] * len(trials)
    if len(results) != len(trials):
        raise ReproError(
            f"{unit['module']}.{function.__name__} returned {len(results)} results for {len(trials)} trials"
        )
    return [_outcome(result) for result in results]


def _watched(unit: dict, function: str | None) -> AbstractContextManager:
    from repro.run import inputs

    return inputs.watched(unit, function)


def _unwatched(unit: dict, function: str | None) -> AbstractContextManager:
    return nullcontext()


def _number(value: object) -> float | int | list:
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_number(v) for v in value]
    if isinstance(value, bool | int | float):
        return int(value) if isinstance(value, bool) else value
    raise ReproError(f"a measure must be a number or a list of numbers, not {type(value).__name__}")


def _finite(value: float | int | list) -> bool:
    return all(map(_finite, value)) if isinstance(value, list) else math.isfinite(value)


def _outcome(result: object) -> dict:
    if isinstance(result, Diverged):
        return {"status": "diverged", "step": result.step, "measures": {}}
    if isinstance(result, InvalidMeasurement):
        return {"status": "invalid", "why": str(result), "measures": {}}
    if not isinstance(result, Mapping):
        raise ReproError(
            f"an experiment must return its measures as {{name: number or list}}, not {type(result).__name__}"
        )
    measures = {name: _number(value) for name, value in result.items()}
    finite = {name: value for name, value in measures.items() if _finite(value)}
    if len(finite) < len(measures):
        return {"status": "diverged", "step": None, "measures": finite}
    return {"status": "ok", "measures": finite}
