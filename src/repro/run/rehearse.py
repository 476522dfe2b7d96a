"""A rehearsal: every arm of a profile at full size takes two steps on few examples, before a GPU is paid for.

What it shows: names and settings fit, models can be built, shapes agree, losses are finite.  What it counts:
parameters, memory, and the floating-point operations of one trial, from which `repro plan` estimates GPU-hours.  No row
comes of it.

It runs in a process of its own, in which `train.fit`, `batched.fit_batched`, the evaluations of `train` and
`timing.compare` are replaced before any experiment is imported.  A training loop takes its first and its last step,
with few examples a batch; its history is then filled up to the planned length, so that what reads it goes on.  Loops
that an experiment writes itself run as they are.

On the device `meta`, which passes for a GPU that is not there (`pretend`), it finds operations that mix tensors of the
CPU and of the GPU; nothing is counted then.
"""

import contextlib
import functools
import importlib
import json
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from repro.errors import Diverged, InvalidMeasurement, ReproError
from repro.files.strict import read_regular
from repro.run import provenance
from repro.run.processes import die_with_parent, quiet_bytecode
from repro.store import write_file

if TYPE_CHECKING:
    from repro.spec.model import Paper

BATCH = 4  # examples of a step
PATIENCE = 300.0  # seconds for an arm, before it counts as too large for this machine
PRETENDED = "meta"  # the device that passes for a GPU
SEED = 999  # of a rehearsal; neither a judged nor a tuning seed


@dataclass
class Count:
    """What the training loops of one trial came to: counted on few examples, multiplied to the planned number."""

    parameters: int = 0
    flop: float = 0.0
    steps: int = 0
    fits: int = 0
    bytes_of_parameters: int = 0
    scale: float = 1.0  # planned examples of a timing's batch over those of the rehearsal
    pretended: bool = False  # on the meta device nothing is counted or timed


@dataclass
class Rehearsed:
    """What became of one arm."""

    experiment: str
    arm: str
    factors: dict[str, Any]
    status: str  # ok; warned: it failed after its two steps, perhaps because they were two; failed; skipped
    why: str = ""
    seconds: float = 0.0
    peak_bytes: int = 0  # of the process, or of the GPU
    count: Count = field(default_factory=Count)


# --- inside the process -----------------------------------------------------------------------------------------------


def _counted(step: Callable[[], Any], pretended: bool = False) -> tuple[Any, float]:
    """What a call returns, and its floating-point operations (0 where they cannot be counted)."""
    from torch.utils.flop_counter import FlopCounterMode

    if pretended:
        return step(), 0.0
    try:
        counter = FlopCounterMode(display=False)
        with counter:
            result = step()
        return result, float(counter.get_total_flops())
    except (NotImplementedError, AssertionError, TypeError):
        return step(), 0.0


def _short_fit(fit: Callable, count: Count) -> Callable:
    """`train.fit` or `batched.fit_batched` that takes two steps."""

    inside = [False]  # one training loop may call the other

    @functools.wraps(fit)
    def short(model: Any, data: Any, *args: Any, steps: int, batch: int, **options: Any) -> Any:
        if inside[0]:
            return fit(model, data, *args, steps=steps, batch=batch, **options)
        models = model if isinstance(model, list | tuple) else [model]
        parameters = [p for one in models for p in getattr(one, "parameters", list)()]
        count.parameters = max(count.parameters, sum(p.numel() for p in parameters))
        count.bytes_of_parameters = max(count.bytes_of_parameters, sum(p.nbytes for p in parameters))
        few, taken = min(batch, BATCH), min(steps, 2)
        every, evaluate = options.get("eval_every"), options.get("evaluate")
        if every:
            options["eval_every"] = None
        options.pop("checkpoint", None)
        if (hook := options.get("hook")) is not None:  # the second step passes for the last one
            options["hook"] = lambda step, *rest: hook(step if step == 0 else steps - 1, *rest)
        inside[0] = True
        try:
            call = functools.partial(fit, model, data, *args, steps=taken, batch=few, **options)
            history, flop = _counted(call, count.pretended)
        finally:
            inside[0] = False
        count.flop += flop / max(taken, 1) * steps * batch / few
        count.steps += steps
        count.fits += 1
        _fill(history, steps, every if evaluate is not None else None)
        return history

    return short


def _fill(history: Any, steps: int, every: int | None) -> None:
    """Give the histories of a short run the length of the planned one; the last values stand for all later ones."""
    for one in history if isinstance(history, list | tuple) else [history]:
        losses = getattr(one, "train_loss", None)
        if isinstance(losses, list) and losses and not isinstance(losses[-1], list):
            losses += [losses[-1]] * (steps - len(losses))
        marks = getattr(one, "eval_steps", None)
        if isinstance(marks, list) and marks:
            planned = [done for done in range(1, steps + 1) if done == steps or every and done % every == 0]
            marks[:] = planned
            for curve in one.curves.values():
                curve[:] = [curve[-1]] * len(planned)


def _short_evaluation(evaluate: Callable, lm: bool) -> Callable:
    @functools.wraps(evaluate)
    def short_lm(model: Any, tokens: Any, context: int, **options: Any) -> Any:
        return evaluate(model, tokens, context, **{**options, "windows": 2})

    @functools.wraps(evaluate)
    def short(model: Any, x: Any, y: Any, **options: Any) -> Any:
        return evaluate(model, x[:BATCH], y[:BATCH], **options)

    return short_lm if lm else short


def _short_compare(compare: Callable, count: Count) -> Callable:
    @functools.wraps(compare)
    def short(arms: dict, **options: Any) -> Any:
        if count.pretended:
            for call in arms.values():
                call()
            raise InvalidMeasurement("nothing is timed on the meta device")
        kept = {**options, "blocks": 1, "calls": 1, "warmup": 1, "max_rounds": 1, "aa_limit": 1e9, "memory": False}
        for call in arms.values():
            _, flop = _counted(call)
            times = options.get("blocks", 20) * options.get("calls", 1) + options.get("warmup", 3)
            count.flop += flop * times * count.scale
            count.steps += times
        count.fits += 1
        return compare(arms, **{**kept, "copy_bytes": 1 << 20})

    return short


def _drawn_images(name: str, device: Any = "cpu", *place: Any, size: int | None = None, **options: Any) -> Any:
    """A few random pictures of the shape of a set of `original.images`, which may still have to be downloaded."""
    import torch

    from repro.data.kinds import Images
    from repro.data.original import ORIGINS

    origin, source, count = ORIGINS[name], torch.Generator().manual_seed(SEED), 64
    shape = (count, origin.channels, size or origin.size, size or origin.size)
    x = torch.randint(256, shape, generator=source, dtype=torch.uint8).to(device)
    y = torch.randint(origin.classes, (count,), generator=source).to(device)
    return Images(x, y, x, y, x, y, classes=origin.classes, mean=origin.mean, std=origin.std)


def _replace(count: Count) -> None:
    """Put the short versions in place, before any experiment imports the long ones."""
    from repro import batched, timing, train
    from repro.data import original

    original.images = _drawn_images
    fit = train.fit
    train.fit = _short_fit(fit, count)
    batched.fit_batched = _short_fit(batched.fit_batched, count)
    train.evaluate_lm = _short_evaluation(train.evaluate_lm, lm=True)
    train.evaluate_classifier = _short_evaluation(train.evaluate_classifier, lm=False)
    timing.compare = _short_compare(timing.compare, count)


def _peak_bytes(device: str) -> int:
    import torch

    if device not in ("cpu", PRETENDED):
        return torch.cuda.max_memory_allocated(device)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def rehearse_unit(unit: dict, count: Count) -> Rehearsed:
    """Two steps of one arm, in this process, whose training loops `_replace` has shortened."""
    from repro.run import execute, pretend

    arm = "+".join(trial["arm"] for trial in unit["trials"])
    before, count.scale = asdict(count), unit["scale"]
    began, status, why = time.perf_counter(), "ok", ""
    pretended = unit["device"] == PRETENDED
    try:
        with pretend.watched() if pretended else contextlib.nullcontext():
            execute.execute(unit)
    except (Diverged, InvalidMeasurement):
        pass  # two steps of a rehearsal prove neither
    except Exception as error:  # on a pretended device all but mixed tensors may be for want of numbers
        stepped = not isinstance(error, pretend.Mixed) if pretended else count.fits > before["fits"]
        status, why = "warned" if stepped else "failed", f"{type(error).__name__}: {error}"
        if isinstance(error, ReproError) and not stepped and "repro data fetch" in str(error):
            status = "skipped"
    steps = Count(
        parameters=count.parameters,
        flop=count.flop - before["flop"],
        steps=count.steps - before["steps"],
        fits=count.fits - before["fits"],
        bytes_of_parameters=count.bytes_of_parameters,
    )
    count.parameters = count.bytes_of_parameters = 0
    return Rehearsed(
        unit["experiment"],
        arm,
        unit["factors"],
        status,
        why,
        time.perf_counter() - began,
        _peak_bytes(unit["device"]),
        steps,
    )


def main() -> None:
    """Rehearse the units that stand on standard input, one a line; answer each with a line."""
    die_with_parent()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    from repro.run import pretend
    from repro.run.engines import worker

    worker.prepare()
    count = Count(pretended=sys.argv[1:] == [PRETENDED])
    if count.pretended:
        pretend.install()
    _replace(count)
    for line in sys.stdin:
        found = asdict(rehearse_unit(json.loads(line), count))
        found["count"] = {k: v if math.isfinite(v) else 0.0 for k, v in found["count"].items()}
        answers.write(json.dumps(found) + "\n")
        answers.flush()


# --- outside ----------------------------------------------------------------------------------------------------------


def units_of(entry: dict, device: str) -> list[dict]:
    """The units that rehearse one planned paper: every arm (of a timing all of them), and every level of every factor.

    The other factors are at their last level meanwhile, which tends to be the largest; a tuned one is at its first.
    """
    units = []
    tuned = entry.get("tune") or {}
    for name, setting in entry["experiments"].items():
        path = "exclusive" if setting["exclusive"] else "batched" if setting["batched"] else "single"
        config, scale = dict(setting["config"]), 1.0
        if path == "exclusive" and type(config.get("batch")) is int:  # a timing does not pass through `fit`
            scale = config["batch"] / min(config["batch"], BATCH)
            config["batch"] = min(config["batch"], BATCH)
        trials = [t for t in entry["trials"] if t["experiment"] == name]
        levels: dict[str, list] = {}
        for trial in trials:
            for factor, level in trial["factors"].items():
                if level not in levels.setdefault(factor, []):
                    levels[factor].append(level)
        last = {factor: found[-1] for factor, found in levels.items()}
        if name in tuned:
            last[tuned[name]["factor"]] = tuned[name]["levels"][0]
        cells = [last]
        for factor, found in levels.items():
            if name not in tuned or factor != tuned[name]["factor"]:
                cells += [{**last, factor: level} for level in found[:-1]]
        arms = list(dict.fromkeys(t["arm"] for t in trials))
        for cell in cells:
            for together in [arms] if path == "exclusive" else [[arm] for arm in arms]:
                units.append(
                    {
                        "experiment": name,
                        "module": setting["module"],
                        "function": setting.get("function") or name,
                        "config": config,
                        "where": f"papers/{entry['paper']}/paper.yaml: profiles.{entry['profile']}.{name}",
                        "path": path,
                        "exclusive": path == "exclusive",
                        "ranks": None,
                        "device": device,
                        "trials": [{"experiment": name, "arm": arm, "seed": SEED, "factors": cell} for arm in together],
                        "factors": cell,
                        "scale": scale,
                    }
                )
    return units


class _Process:
    """The process that rehearses; a new one takes the place of one that was given up."""

    def __init__(self, log: Path, device: str):
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "ab") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "repro.run.rehearse", device],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env={**quiet_bytecode(), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )

    def ask(self, unit: dict, patience: float) -> dict | None:
        alarm = threading.Timer(patience, self.process.kill)
        alarm.start()
        try:
            self.process.stdin.write(json.dumps(unit).encode() + b"\n")
            self.process.stdin.flush()
            return json.loads(self.process.stdout.readline())
        except (BrokenPipeError, ValueError):
            return None
        finally:
            alarm.cancel()

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


def each(entry: dict, *, device: str, state: Path, patience: float = PATIENCE) -> Iterator[Rehearsed]:
    """Rehearse every arm of one planned paper, one after the other; what was counted is kept for `repro plan`."""
    found, process = [], None
    log = state / "logs" / "rehearse.log"
    try:
        for unit in units_of(entry, device):
            process = process or _Process(log, device)
            began = time.monotonic()
            answer = process.ask(unit, patience)
            if answer is None:
                process.close()
                process, late = None, time.monotonic() - began >= patience
                why = f"not done after {patience:.0f} s" if late else f"its process ended (no memory left?); see {log}"
                arm = "+".join(trial["arm"] for trial in unit["trials"])
                one = Rehearsed(unit["experiment"], arm, unit["factors"], "skipped" if late else "failed", why)
            else:
                one = Rehearsed(**{**answer, "count": Count(**answer["count"])})
            found.append(one)
            yield one
    finally:
        if process is not None:
            process.close()
        if found and device != PRETENDED:
            _keep(state, entry, found)


def rehearse(paper: "Paper", profile: str, device: str = "cpu", state: Path | None = None) -> list[dict[str, Any]]:
    """Rehearse a paper at a profile; one line of plain data for each arm and level, in the order of the plan."""
    from repro.run import plan

    entry, state = plan.entry(paper, profile), state or provenance.root() / ".repro"
    return [{"paper": paper.slug, **asdict(one)} for one in each(entry, device=device, state=state)]


HEAD = ["paper", "experiment", "arm", "at", "status", "parameters", "memory", "FLOP a trial", "steps", "why"]


def line(one: dict[str, Any]) -> list[str]:
    """A line as people read it."""
    count = one["count"]
    return [
        one["paper"],
        one["experiment"],
        one["arm"],
        ", ".join(f"{name} {level}" for name, level in one["factors"].items()),
        one["status"],
        f"{count['parameters']:,}" if count["parameters"] else "",
        f"{one['peak_bytes'] / 2**20:,.0f} MiB" if one["peak_bytes"] else "",
        f"{count['flop']:.1e}" if count["flop"] else "",
        f"{count['steps']:,}" if count["steps"] else "",
        one["why"],
    ]


def _path(state: Path, slug: str, profile: str) -> Path:
    return state / "rehearsed" / slug / f"{profile}.json"


def _keep(state: Path, entry: dict, found: list[Rehearsed]) -> None:
    write_file(
        _path(state, entry["paper"], entry["profile"]), json.dumps([asdict(one) for one in found], indent=1) + "\n"
    )


def read(state: Path, slug: str, profile: str) -> dict[str, dict[str, dict[str, float]]]:
    """What the last rehearsal counted: experiment -> arm -> {"flop", "steps", "seconds"} of one trial, or nothing.

    Of a trial without a training loop, which the rehearsal ran as it is, the seconds that it took here.
    """
    counted: dict[str, dict[str, list[dict[str, float]]]] = {}
    try:
        for one in json.loads(read_regular(_path(state, slug, profile))):
            arms, count = one["arm"].split("+"), one["count"]
            if one["status"] not in ("ok", "warned"):
                continue
            for arm in arms:
                counted.setdefault(one["experiment"], {}).setdefault(arm, []).append(
                    {
                        "flop": float(count["flop"]) / len(arms),
                        "steps": float(count["steps"]) / len(arms),
                        "seconds": 0.0 if count["fits"] else float(one["seconds"]) / len(arms),
                    }
                )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}
    return {
        name: {arm: {k: sum(c[k] for c in cells) / len(cells) for k in cells[0]} for arm, cells in arms.items()}
        for name, arms in counted.items()
    }


if __name__ == "__main__":
    importlib.import_module("repro.run.rehearse").main()
