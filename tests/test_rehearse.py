"""A rehearsal takes two steps at full size, counts what the whole would cost, and stores no row."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from repro import train
from repro.run import plan, pretend, rehearse
from repro.run.rehearse import Count, Rehearsed, _fill, _short_compare, _short_evaluation, _short_fit
from repro.spec.load import load


def data(n: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(n, 8, generator=train.generator("rehearse", 0))
    return x, (x[:, 0] > 0).long()


def test_a_loop_takes_its_first_and_last_step_with_few_examples() -> None:
    count, seen, sizes = Count(), [], []
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
    model.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    history = _short_fit(train.fit, count)(
        model,
        data(),
        steps=100,
        batch=32,
        lr=0.1,
        seed=0,
        eval_every=25,
        evaluate=lambda m: {"loss": 1.5},
        hook=lambda step, *_: seen.append(step),
    )
    assert seen == [0, 99] and sizes == [4, 4]
    assert (len(history.train_loss), history.eval_steps) == (100, [25, 50, 75, 100])
    assert history.curves == {"loss": [1.5] * 4}
    assert (count.parameters, count.steps, count.fits) == (8 * 16 + 16 + 16 * 2 + 2, 100, 1)
    # Forward and weight gradients of both layers, input gradients of the second: 2 FLOP a multiply-add.
    assert count.flop == 100 * 32 * 2 * (2 * 8 * 16 + 3 * 16 * 2)


def test_a_history_without_evaluations_is_filled_up_too() -> None:
    history = train.History(train_loss=[2.0, 1.0])
    _fill([history], 5, None)
    assert (history.train_loss, history.eval_steps) == ([2.0, 1.0, 1.0, 1.0, 1.0], [])


def test_evaluations_and_timings_are_short() -> None:
    x, y = data()
    asked = []
    _short_evaluation(lambda model, x, y, **options: asked.append(len(x)), lm=False)(None, x, y)
    _short_evaluation(lambda model, x, y, **options: asked.append(options["windows"]), lm=True)(None, x, y, windows=99)
    assert asked == [4, 2]
    count, calls = Count(scale=16.0), []
    found = _short_compare(lambda arms, **options: (calls.append(options), list(arms))[1], count)(
        {"one": lambda: torch.ones(2, 3) @ torch.ones(3, 4)}, reference="one", blocks=10, calls=2, warmup=5
    )
    assert found == ["one"] and calls[0]["blocks"] == calls[0]["calls"] == calls[0]["max_rounds"] == 1
    assert (count.flop, count.steps) == (2 * 2 * 3 * 4 * 25 * 16.0, 25)


@pytest.fixture
def few() -> dict:
    """One arm of a language model at the size of the profile gpu, and an arm that there is not."""
    entry = plan.entry(load("rmsnorm"), "gpu")
    setting = {**entry["experiments"]["quality"], "arms": ["rmsnorm", "nothing"]}
    trials = [t for t in entry["trials"] if t["experiment"] == "quality" and t["arm"] == "rmsnorm"]
    trials += [{**trials[0], "arm": "nothing"}]
    return {**entry, "experiments": {"quality": setting}, "trials": trials}


def test_every_arm_is_built_at_full_size_and_its_cost_is_known_afterwards(few: dict, tmp_path: Path) -> None:
    good, bad = rehearse.each(few, device="cpu", state=tmp_path)
    assert (good.status, bad.status) == ("ok", "failed") and "nothing" in bad.why
    config = few["experiments"]["quality"]["config"]
    assert good.count.parameters > 12 * config["depth"] * config["width"] ** 2
    assert good.count.steps == config["steps"] and good.count.flop > 1e12 and good.peak_bytes > 1e8
    assert not (tmp_path / "trials").exists(), "no row comes of it"
    counted = rehearse.read(tmp_path, "rmsnorm", "gpu")
    assert counted == {
        "quality": {"rmsnorm": {"flop": good.count.flop, "steps": float(config["steps"]), "seconds": 0.0}}
    }
    assert rehearse.read(tmp_path, "rmsnorm", "paper") == {}
    (tmp_path / "rehearsed" / "rmsnorm" / "gpu.json").write_text("[[]]")
    assert rehearse.read(tmp_path, "rmsnorm", "gpu") == {}


def test_a_gpu_s_cost_comes_of_operations_and_a_stated_rate() -> None:
    paper = load("rmsnorm")
    arms = paper.settings("gpu", "quality").arms
    rehearsed = {"quality": {arm: {"flop": 40e12, "steps": 100.0, "seconds": 0.0} for arm in arms}}
    costs = {cost.experiment: cost for cost in plan.costs(paper, "gpu", lambda profile: [], None, rehearsed)}
    quality = costs["quality"]
    assert (quality.of, quality.seconds) == ("gpu", 2.0 * quality.trials) and "20 TFLOP/s" in quality.basis
    assert costs["equivalence"].seconds is None and "repro rehearse rmsnorm --profile gpu" in costs["equivalence"].basis
    launched = {"quality": {arm: {"flop": 1.0, "steps": 1000.0, "seconds": 0.0} for arm in arms}}
    [cost] = [c for c in plan.costs(paper, "gpu", lambda profile: [], None, launched) if c.experiment == "quality"]
    assert cost.seconds == pytest.approx(5.0 * cost.trials), "a step is not shorter than the launch of its kernels"


def test_the_largest_level_of_every_factor_is_rehearsed_and_each_other_once() -> None:
    setting = {"module": "repro.experiments.noop", "exclusive": False, "batched": False, "config": {}}
    trials = [
        {"experiment": "noop", "arm": arm, "seed": 0, "factors": {"depth": depth, "width": width}}
        for depth in (1, 2, 9)
        for width in (8, 64)
        for arm in ("a", "b")
    ]
    tune = {"noop": {"factor": "lr", "levels": [0.1, 0.2]}}
    entry = {"paper": "demo", "profile": "gpu", "experiments": {"noop": setting}, "trials": trials, "tune": tune}
    cells = [unit["factors"] for unit in rehearse.units_of(entry, "cpu") if unit["trials"][0]["arm"] == "a"]
    assert [(c["depth"], c["width"], c["lr"]) for c in cells] == [(9, 64, 0.1), (1, 64, 0.1), (2, 64, 0.1), (9, 8, 0.1)]


def test_a_line_of_a_rehearsal() -> None:
    one = Rehearsed("quality", "rmsnorm", {"depth": 6}, "ok", count=Count(parameters=4852992, flop=3.9e14, steps=1500))
    cells = rehearse.line({"paper": "rmsnorm", **vars(one), "count": vars(one.count)})
    assert cells == ["rmsnorm", "quality", "rmsnorm", "depth 6", "ok", "4,852,992", "", "3.9e+14", "1,500", ""]


# --- the meta device in the place of a GPU ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "mix",
    [
        lambda there, here: there * here,
        lambda there, here: there @ here,  # torch itself lets this one pass
        lambda there, here: torch.nn.functional.linear(there, here),
        lambda there, here: torch.cat([there, here]),
        lambda there, here: here.add_(there),
        lambda there, here: here[there.long()],
    ],
)
def test_an_operation_on_two_devices_is_an_error(mix):
    with pretend.watched(), pytest.raises(pretend.Mixed, match="of the CPU"):
        mix(torch.ones(3, 3, device="meta"), torch.ones(3, 3))


@pytest.mark.parametrize(
    "fine",
    [
        lambda there, here: there * 2 + torch.tensor(1.0),
        lambda there, here: there[torch.tensor([0, 2])],
        lambda there, here: here.to("meta") @ there,
        lambda there, here: there.copy_(here),
        lambda there, here: here * here,
    ],
)
def test_what_a_gpu_allows_is_none(fine):
    with pretend.watched():
        fine(torch.ones(3, 3, device="meta"), torch.ones(3, 3))


PRETENDING = """
from repro.run import pretend
pretend.install()
import torch
from torch import nn
from repro.data import digits
from repro.tasks import PICTURES

x = torch.ones(2, 3, device="meta")
assert x.cpu().shape == (2, 3) and x.cpu().device.type == "cpu" and x.numpy().shape == (2, 3)
assert 0.4 <= float(x[0, 0]) <= 0.6 and len(x.tolist()) == 2 and x[0, 0].item() != x[0, 0].item()
assert x.sum() > 0 and int(x.argmax()) == 1
assert torch.ones(2).tolist() == [1.0, 1.0] and torch.tensor(3.0).item() == 3.0, "the CPU's numbers are its own"
layer, seen = nn.Linear(3, 2), []
layer.weight.register_hook(lambda g: seen.append(g.device.type))
layer.to("meta")(x).sum().backward()
assert seen == ["meta"], "hooks go with the module"
torch.optim.AdamW(layer.parameters(), fused=True).step()
with torch.autocast("meta", torch.bfloat16):
    layer(x)
for load in (digits.load, PICTURES["digits"]):
    there, here = load("meta"), load("cpu")
    assert there.train_x.is_meta and there.train_x.shape == here.train_x.shape and not here.train_x.is_meta
"""


def test_reads_hooks_and_data_on_the_pretended_device():
    done = subprocess.run([sys.executable, "-c", PRETENDING], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_mixed_tensors_fail_an_arm_even_after_its_steps(monkeypatch) -> None:
    def execute(unit: dict) -> None:
        counted.fits += 1
        raise {"mixed": pretend.Mixed("aten.mul: a tensor of the CPU"), "other": ValueError("no numbers")}[
            unit["raises"]
        ]

    monkeypatch.setattr("repro.run.execute.execute", execute)
    unit = {"trials": [{"arm": "a"}], "scale": 1.0, "experiment": "e", "factors": {}}
    for device, raises, status in (
        ("meta", "mixed", "failed"),
        ("meta", "other", "warned"),
        ("cpu", "other", "warned"),
    ):
        counted = Count(pretended=device == "meta")
        assert rehearse.rehearse_unit({**unit, "device": device, "raises": raises}, counted).status == status


def test_an_arm_runs_on_the_pretended_device(few: dict, tmp_path: Path) -> None:
    good, bad = rehearse.each(few, device="meta", state=tmp_path)
    assert (good.status, bad.status) == ("ok", "warned") and "nothing" in bad.why
    assert good.count.steps and not good.count.flop, "nothing is counted"
    assert rehearse.read(tmp_path, "rmsnorm", "gpu") == {}, "and nothing kept"
