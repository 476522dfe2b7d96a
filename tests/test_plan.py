"""What a plan refuses before it spells anything out, and how tuned experiments stand in it."""

import re
import time
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest

from repro.errors import ReproError
from repro.run import measure, plan
from repro.spec.load import load
from repro.spec.model import Paper


def with_quality(**settings: object) -> Paper:
    """rmsnorm, whose experiment `quality` has other settings at the profile gpu."""
    paper = load("rmsnorm")
    here = paper.profiles["gpu"]
    return replace(paper, profiles={**paper.profiles, "gpu": {**here, "quality": {**here["quality"], **settings}}})


def test_a_plan_of_a_hundred_million_combinations_is_refused_at_once_with_the_count() -> None:
    factors = {name: list(range(100)) for name in ("a", "b", "c", "d")}
    began = time.process_time()
    with pytest.raises(ReproError, match=r"profiles\.gpu\.quality: [0-9]{11} trials") as error:
        plan.entry(with_quality(arms=["layernorm", "rmsnorm", "none", "one_input_rmsnorm"], factors=factors), "gpu")
    assert re.search(r"\([0-9]{10} combinations of arms and levels, [0-9]+ seeds\)", str(error.value))
    assert time.process_time() - began < 60


@pytest.mark.parametrize("ranks", [1025, 1_000_000_000])
def test_more_processes_than_a_machine_has_are_refused(ranks: int) -> None:
    with pytest.raises(ReproError, match=f"{ranks} processes for one trial; write at most 1024"):
        plan.entry(with_quality(ranks=ranks), "gpu")
    made = plan.entry(with_quality(), "gpu")
    made["experiments"]["quality"]["ranks"] = ranks
    with pytest.raises(ReproError, match=f"{ranks} ranks; write at most 1024"):
        measure.units_of(made, "cpu", {"class": "c", "model": "m"})


@dataclass(frozen=True)
class Tune:
    factor: str
    seeds: int
    by: str | None = None
    start: list[float] | None = None


def tuned(*claims: tuple[str, Tune | str | None]) -> Paper:
    """rmsnorm with tuned claims on its experiment `quality`, whose rate has three levels."""
    paper = with_quality(factors={"lr": [0.003, 0.01, 0.03]})
    judged = SimpleNamespace(experiment="quality", controls=[], tune=None)
    rule = SimpleNamespace(measure="val_nats")
    found = {name: SimpleNamespace(**{**vars(judged), "tune": tune}) for name, tune in claims}

    class Tuned(Paper):
        def judged_in(self, profile: str) -> list[str]:
            return list(found)

        def rules(self, claim_id: str, profile: str) -> list:
            return [rule]

        def registration(self, profile: str) -> str:
            return "sha256:"

    return Tuned(**{**vars(paper), "claims": found})


def test_every_arm_is_tuned_at_every_level_and_the_judged_trials_wait() -> None:
    made = plan.entry(tuned(("parity", Tune("lr", 2))), "gpu")
    assert made["tune"] == {
        "quality": {
            "factor": "lr",
            "seeds": [1000, 1001],
            "levels": [0.003, 0.01, 0.03],
            "measure": "val_nats",
            "better": "lower",
        }
    }
    trials = [t for t in made["trials"] if t["experiment"] == "quality"]
    arms = made["experiments"]["quality"]["arms"]
    tuning = [t for t in trials if t["seed"] >= 1000]
    assert {(t["arm"], t["seed"], t["factors"]["lr"]) for t in tuning} == {
        (arm, seed, lr) for arm in arms for seed in (1000, 1001) for lr in (0.003, 0.01, 0.03)
    }
    judged = [t for t in trials if t["seed"] < 1000]
    assert len(judged) == 5 * len(arms) and all(measure.is_open(made, t) for t in judged)
    assert measure.settled(made, []) == [t for t in made["trials"] if not measure.is_open(made, t)]


def test_where_one_recipe_is_the_point_nothing_is_tuned() -> None:
    made = plan.entry(tuned(("parity", "shared"), ("other", None)), "gpu")
    assert "tune" not in made and not any(t["seed"] >= 1000 for t in made["trials"] if t["experiment"] == "quality")


def test_two_claims_may_not_tune_one_experiment_in_two_ways() -> None:
    assert "quality" in plan.entry(tuned(("one", Tune("lr", 2)), ("two", Tune("lr", 2))), "gpu")["tune"]
    with pytest.raises(ReproError, match=r"claims\.two\.tune: experiment 'quality' is tuned otherwise"):
        plan.entry(tuned(("one", Tune("lr", 2)), ("two", Tune("lr", 3))), "gpu")


def test_a_plan_says_by_which_function_each_experiment_is_measured() -> None:
    settings = plan.entry(load("rmsnorm"), "gpu")["experiments"]
    assert {name: one["function"] for name, one in settings.items()} == {name: name for name in settings}
    assert measure.called("running_time", settings["running_time"]) == "running_time_group"
