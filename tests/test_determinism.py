"""The same trial gives the same bits: again, elsewhere, resumed, under the other engine; another seed does not."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from repro import train
from repro.run import execute, plan, provenance
from repro.run import measure as run
from repro.run.engines import local
from repro.spec import load as paper

# Single, batched and shared experiments, trained networks among them.
TRIALS = [("rmsnorm", "quality"), ("batchnorm", "training"), ("nfnet", "large_lr"), ("mix_ln", "language_model")]


def unit_of(slug: str, experiment: str) -> dict:
    """The first unit of an experiment at smoke size."""
    units = run.units_of(plan.entry(paper.load(slug), "smoke"), "cpu")
    return next(u for u in units if u["experiment"] == experiment)


def other_seed(unit: dict) -> dict:
    return {**unit, "trials": [{**trial, "seed": trial["seed"] + 1} for trial in unit["trials"]]}


@pytest.mark.parametrize("slug, experiment", TRIALS)
def test_again_in_another_process_and_with_another_seed(tmp_path: Path, slug: str, experiment: str) -> None:
    unit, answers = unit_of(slug, experiment), []
    first, again, other = execute.execute(unit), execute.execute(unit), execute.execute(other_seed(unit))
    local.run_units(
        [unit, unit], jobs=2, state=tmp_path, done=lambda unit, answer: answers.append(answer.get("results", answer))
    )
    assert first == again
    assert answers == [first, first], "two worker processes"
    assert first != other, "the seed matters"


def test_resumed(tmp_path: Path) -> None:
    """Killed after a checkpoint, in another process: `tests/test_train.py` has every optimizer and schedule."""
    script = """
import sys, torch
from pathlib import Path
from torch import nn
from repro import train
torch.set_num_threads(1)
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.2), nn.Linear(8, 2))
x = torch.randn(64, 4, generator=train.generator("x", 0))
def hook(step, *_):
    if step == int(sys.argv[2]): raise SystemExit(0)
told = train.fit(model, (x, (x[:, 0] > 0).long()), steps=12, batch=16, lr=0.1, seed=0, hook=hook,
                 checkpoint=Path(sys.argv[1]) if sys.argv[1] else None, checkpoint_every=5)
print(told.train_loss, model[0].weight.tolist())
"""

    def out(path: str, kill: int) -> str:
        return subprocess.run(
            [sys.executable, "-c", script, path, str(kill)], capture_output=True, text=True, check=True
        ).stdout

    path = tmp_path / "half.safetensors"
    assert out(str(path), 8) == "" and path.exists()
    assert out(str(path), -1) == out("", -1) != ""


@pytest.mark.slow
def test_under_ray(tmp_path: Path) -> None:
    """A trained trial as a Ray task; `tests/test_ray.py` compares all rows of a small paper."""
    unit = unit_of(*TRIALS[0])
    (tmp_path / "unit.json").write_text(json.dumps(unit))
    script = """
import json, sys
from pathlib import Path
from repro.run import engines
if __name__ == "__main__":
    with engines.chosen("ray", "cpu", 1) as where:
        units = [json.loads(Path(sys.argv[1]).read_text())]
        done = lambda unit, answer: print("ANSWER", json.dumps(answer.get("results", answer)))
        where["engine"](units, jobs=1, state=Path(sys.argv[2]), done=done)
"""
    told = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "unit.json"), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=600,
    )
    [line] = [line for line in told.stdout.splitlines() if line.startswith("ANSWER")]
    assert json.loads(line.removeprefix("ANSWER ")) == json.loads(json.dumps(execute.execute(unit)))


def test_rows_of_one_class_name_it() -> None:
    """Bitwise equality is promised per device class, thread count and torch version; each is part of a trial's key."""
    unit = unit_of(*TRIALS[0])
    place = provenance.place("cpu")
    entry = plan.entry(paper.load(TRIALS[0][0]), "smoke")
    elsewhere = run.units_of(entry, "cpu", {**place, "class": "cpu-other"})
    keys = {t["key"] for u in elsewhere for t in u["trials"] if not u["exclusive"]}
    assert unit["trials"][0]["key"] not in keys
    assert train.ranks() == (0, 1) and torch.get_num_threads() == 1
