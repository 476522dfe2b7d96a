"""Two phases: tuning trials choose each arm's level, then the judged seeds run there; on known values."""

import json
import time
from pathlib import Path

import pytest

from conftest import Checkout
from repro.errors import Failed
from repro.files.paths import row_key
from repro.run import measure as run
from repro.run.tuning import Further, choose, level_to_run
from repro.store import Store

PLACE = {"class": "cpu-test", "model": "a test"}
BEST = {"method": 0.1, "baseline": 1.0}  # the rate at which each arm's loss is least


def entry(tune: bool = True, seeds: int = 3, **setting: object) -> dict:
    """A plan of two arms at three rates and two depths."""
    levels, arms, depths = [0.01, 0.1, 1.0], ["method", "baseline"], [2, 4]

    def trial(arm: str, seed: int, depth: int, **rate: float) -> dict:
        return {"experiment": "noop", "arm": arm, "seed": seed, "factors": {"depth": depth, **rate}}

    trials = [trial(arm, seed, depth) for seed in range(seeds) for depth in depths for arm in arms]
    for seed in (1000, 1001):
        trials += [trial(arm, seed, depth, lr=lr) for depth in depths for arm in arms for lr in levels]
    made = {
        "paper": "demo",
        "profile": "cpu",
        "registered": "sha256:rules",
        "experiments": {
            "noop": {
                "module": "repro.experiments.noop",
                "function": "noop",
                "exclusive": False,
                "batched": False,
                "ranks": None,
                "arms": arms,
                "config": {},
                **setting,
            }
        },
        "trials": trials,
    }
    how = {"factor": "lr", "seeds": [1000, 1001], "levels": levels, "measure": "loss", "better": "lower"}
    return {**made, "tune": {"noop": how}} if tune else made


class Engine:
    """Known values in place of worker processes; `asked` holds what was measured, in order."""

    def __init__(self, after: int | None = None, diverged: str | None = None):
        self.asked, self.after, self.diverged = [], after, diverged

    def __call__(self, units, *, jobs, state, done, heard, deadline=None) -> None:
        for unit in units:
            if self.after is not None and len(self.asked) >= self.after:
                return
            results = []
            for trial in unit["trials"]:
                self.asked.append(row_key(trial))
                loss = abs(trial["factors"]["lr"] - BEST[trial["arm"]]) + trial["seed"] / 1e6
                ok = {"status": "ok", "measures": {"loss": [9.0, loss]}}
                results.append({"status": "diverged", "measures": {}} if trial["arm"] == self.diverged else ok)
            done(unit, {"results": results, "seconds": 1.0})


def measured(tmp_path: Path, plan: dict, engine: Engine, **options: object) -> dict:
    quiet = run.Progress(say=lambda text: None)
    where = {"store": Store(tmp_path / "trials"), "state": tmp_path, "device": "cpu", "jobs": 1, "place": PLACE}
    return run.measure(plan, **where, progress=quiet, engine=engine, **options)


def levels_of(document: dict) -> dict[str, set[float]]:
    judged = [row for row in document["rows"] if row["seed"] < 1000]
    return {arm: {row["factors"]["lr"] for row in judged if row["arm"] == arm} for arm in BEST}


def test_tuning_trials_come_first_and_every_arm_gets_its_own_level(tmp_path: Path) -> None:
    engine = Engine()
    document = measured(tmp_path, entry(), engine)
    seeds = [key[2] for key in engine.asked]
    assert seeds[:24] == [1000] * 12 + [1001] * 12 and set(seeds[24:]) == {0, 1, 2}
    assert levels_of(document) == {"method": {0.1}, "baseline": {1.0}}
    assert len(document["rows"]) == len(entry()["trials"]) == 36
    assert [row["seed"] for row in document["rows"]] == sorted(row["seed"] for row in document["rows"])
    assert "missing" not in document["provenance"]


def test_a_second_run_measures_nothing_and_gives_the_same_rows(tmp_path: Path) -> None:
    first, again = measured(tmp_path, entry(), Engine()), Engine()
    assert measured(tmp_path, entry(), again)["rows"] == first["rows"] and again.asked == []


def test_all_units_of_a_document_are_those_that_were_measured(tmp_path: Path) -> None:
    """Also of batched ones, whose keys name the seeds that ran together: tuning and judged seeds apart."""
    plan = entry(batched=True)
    document = measured(tmp_path, plan, Engine())
    units = run.units_of(plan, "cpu", PLACE, run.settled(plan, document["rows"]))
    keys = {row_key(trial): trial["key"] for unit in units for trial in unit["trials"]}
    assert [keys[row_key(row)] for row in document["rows"]] == document["provenance"]["trials"]


def test_stopped_in_the_tuning_the_next_run_goes_on(tmp_path: Path) -> None:
    half = measured(tmp_path, entry(), Engine(after=10), deadline=time.monotonic() + 3600)
    assert half["provenance"]["missing"] == 26 and len(half["rows"]) == 10
    path = tmp_path / "results" / "cpu.rows.json"
    run.write_rows(path, half)
    engine = Engine()
    whole = measured(tmp_path, entry(), engine, results=path)
    run.write_rows(path, whole)
    assert len(engine.asked) == 26 and len(whole["rows"]) == 36
    with pytest.raises(Failed, match="holds all rows of an earlier run"):
        run.write_rows(path, half)


def test_nothing_finished_in_time_is_a_failure(tmp_path: Path) -> None:
    with pytest.raises(Failed, match="--minutes"):
        measured(tmp_path, entry(), Engine(after=0), deadline=time.monotonic())


def test_where_every_level_diverges_the_first_one_runs(tmp_path: Path) -> None:
    document = measured(tmp_path, entry(), Engine(diverged="method"))
    assert levels_of(document) == {"method": {0.01}, "baseline": {1.0}}
    rows = [row for row in document["rows"] if row["seed"] >= 1000]
    chosen = choose(
        rows,
        arm="method",
        cell={"depth": 2},
        factor="lr",
        levels=[0.01, 0.1, 1.0],
        seeds=[1000, 1001],
        measure="loss",
        better="lower",
    )
    assert (chosen.level, chosen.edge, level_to_run(chosen)) == (None, True, 0.01)


GRID, START = [0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0], [0.03, 0.1, 0.3]


def climbing(**setting: object) -> dict:
    """The plan of `entry` on a grid of seven rates, of which every arm tries three first."""
    made = entry(**setting)
    tuned = [trial for trial in made["trials"] if trial["seed"] >= 1000 and trial["factors"]["lr"] == 0.1]
    judged = [trial for trial in made["trials"] if trial["seed"] < 1000]
    first = [{**t, "factors": {**t["factors"], "lr": lr}} for t in tuned for lr in START]
    how = {**made["tune"]["noop"], "levels": GRID, "start": START}
    return {**made, "trials": judged + first, "tune": {"noop": how}}


def tried(document: dict) -> dict[str, set[float]]:
    rows = [row for row in document["rows"] if row["seed"] >= 1000]
    return {arm: {row["factors"]["lr"] for row in rows if row["arm"] == arm} for arm in BEST}


@pytest.mark.parametrize("batched", [False, True])
def test_an_arm_climbs_until_its_best_level_lies_inside(tmp_path: Path, batched: bool) -> None:
    plan, engine, path = climbing(batched=batched), Engine(), tmp_path / "results" / "cpu.rows.json"
    document = measured(tmp_path, plan, engine)
    assert tried(document) == {"method": set(START), "baseline": {*START, 1.0, 3.0}}
    assert levels_of(document) == {"method": {0.1}, "baseline": {1.0}}
    assert len(document["rows"]) == len(engine.asked) == len(set(engine.asked)) == len(plan["trials"]) + 8
    assert "missing" not in document["provenance"]
    trials = run.settled(plan, document["rows"])
    keys = {row_key(t): t["key"] for unit in run.units_of(plan, "cpu", PLACE, trials) for t in unit["trials"]}
    assert [keys[row_key(row)] for row in document["rows"]] == document["provenance"]["trials"]
    assert run.missing_trials(plan, trials, document["rows"]) == 0
    run.write_rows(path, document)
    again = Engine()
    assert measured(tmp_path / "elsewhere", plan, again, results=path)["rows"] == document["rows"] and again.asked == []


@pytest.mark.parametrize("after", [5, 24, 26, 30, 34, 43])
def test_a_climb_that_was_stopped_goes_on(tmp_path: Path, after: int) -> None:
    path = tmp_path / "results" / "cpu.rows.json"
    half = measured(tmp_path / "here", climbing(), Engine(after=after), deadline=time.monotonic() + 3600)
    assert half["provenance"]["missing"] > 0 and len(half["rows"]) == after
    run.write_rows(path, half)
    engine = Engine()
    whole = measured(tmp_path / "there", climbing(), engine, results=path)
    assert len(engine.asked) == 44 - after and whole["rows"] == measured(tmp_path / "new", climbing(), Engine())["rows"]


def test_where_all_first_levels_diverge_every_level_is_tried(tmp_path: Path) -> None:
    document = measured(tmp_path, climbing(), Engine(diverged="method"))
    assert tried(document)["method"] == set(GRID) and levels_of(document)["method"] == {GRID[0]}


@pytest.mark.parametrize(
    ("best", "tries", "edge"),
    [(0.1, START, False), (0.01, GRID[:4], True), (10.0, GRID[1:], True), (0.3, GRID[1:5], False)],
)
def test_a_climb_ends_inside_or_at_the_end_of_the_grid(best: float, tries: list[float], edge: bool) -> None:
    rows = [
        {"arm": "a", "seed": 1000, "factors": {"lr": lr}, "status": "ok", "measures": {"loss": abs(lr - best)}}
        for lr in GRID
    ]
    options = {"arm": "a", "cell": {}, "factor": "lr", "seeds": [1000], "measure": "loss", "better": "lower"}
    chosen = choose(rows, levels=GRID, start=START, **options)
    assert (chosen.level, list(chosen.scores), chosen.edge) == (best, tries, edge)
    if tries != START:
        with pytest.raises(Further) as further:
            choose([row for row in rows if row["factors"]["lr"] in START], levels=GRID, start=START, **options)
        assert set(START) < set(further.value.levels) <= set(tries)


@pytest.mark.parametrize(("levels", "edge"), [([0.0, 0.1, 1.0], False), ([0.1, 1.0, 10.0], True)])
def test_a_level_of_zero_is_no_edge(levels: list[float], edge: bool) -> None:
    """The least decay is the best: a smaller one may be better, unless there is none."""
    rows = [
        {"arm": "a", "seed": 1000, "factors": {"decay": level}, "status": "ok", "measures": {"loss": level}}
        for level in levels
    ]
    options = {"arm": "a", "cell": {}, "factor": "decay", "seeds": [1000], "measure": "loss", "better": "lower"}
    chosen = choose(rows, levels=levels, **options)
    assert (chosen.level, chosen.edge) == (levels[0], edge)
    assert choose(rows, levels=levels, **{**options, "better": "higher"}).edge  # the other end is one


def test_rows_whose_keys_hold_are_taken_up_by_an_empty_store(tmp_path: Path) -> None:
    path = tmp_path / "results" / "cpu.rows.json"
    first = measured(tmp_path / "here", entry(), Engine())
    run.write_rows(path, first)
    elsewhere, forced = Engine(), Engine()
    assert measured(tmp_path / "there", entry(), elsewhere, results=path)["rows"] == first["rows"]
    assert elsewhere.asked == []
    measured(tmp_path / "forced", entry(), forced, results=path, force=True)
    assert len(forced.asked) == 36, "--force measures what the file holds"
    other = {**PLACE, "class": "cpu-other"}
    another = Engine()
    quiet = run.Progress(say=lambda text: None)
    where = {"store": Store(tmp_path / "other"), "state": tmp_path, "device": "cpu", "jobs": 1, "place": other}
    run.measure(entry(), **where, progress=quiet, engine=another, results=path)
    assert len(another.asked) == 36, "rows of another device class are other rows"


@pytest.mark.parametrize("damage", ["checksum", "cut", "row"])
def test_rows_that_are_not_as_they_were_written_are_not_taken_up(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "results" / "cpu.rows.json"
    run.write_rows(path, measured(tmp_path / "here", entry(), Engine()))
    text = path.read_text()
    row = json.dumps(json.loads(text)["rows"][0]["measures"])
    new = {"checksum": text.replace("9.0", "8.0", 1), "cut": text[:-40], "row": text.replace(row, "null", 1)}[damage]
    assert new != text
    path.write_text(new)
    engine = Engine()
    measured(tmp_path / "there", entry(), engine, results=path)
    assert len(engine.asked) == 36


@pytest.mark.parametrize("force", [False, True])
def test_the_registration_of_rows_that_were_seen_is_kept(tmp_path: Path, force: bool) -> None:
    """Edit a rule after reading the rows, measure with an empty store: the rows keep the registration of then."""
    path = tmp_path / "results" / "cpu.rows.json"
    run.write_rows(path, measured(tmp_path / "here", entry(), Engine()))
    edited = {**entry(), "registered": "sha256:edited"}
    again = measured(tmp_path / "there", edited, Engine(), results=path, force=force)
    assert again["registered"] == "sha256:rules"
    run.write_rows(path, again)
    more = measured(tmp_path / "more", {**entry(seeds=5), "registered": "sha256:more"}, Engine(), results=path)
    assert more["registered"] == "sha256:rules", "more seeds than planned do not begin anew"


def test_fresh_seeds_begin_a_new_registration(tmp_path: Path) -> None:
    path = tmp_path / "results" / "cpu.rows.json"
    run.write_rows(path, measured(tmp_path / "here", entry(), Engine()))
    fresh = {**entry(), "registered": "sha256:fresh"}
    fresh["trials"] = [{**t, "seed": t["seed"] + 3} if t["seed"] < 1000 else t for t in fresh["trials"]]
    assert measured(tmp_path / "here", fresh, Engine(), results=path)["registered"] == "sha256:fresh"


def test_papers_that_share_an_experiment_share_its_trials(tmp_path: Path) -> None:
    measured(tmp_path, entry(), Engine())
    other = json.loads(json.dumps(entry()).replace('"noop": {"module"', '"sweep": {"module"'))
    other |= {"paper": "other", "tune": {"sweep": other["tune"]["noop"]}}
    other["trials"] = [{**t, "experiment": "sweep"} for t in other["trials"]]
    engine = Engine()
    document = measured(tmp_path, other, engine)
    assert engine.asked == [] and {row["experiment"] for row in document["rows"]} == {"sweep"}


@pytest.mark.parametrize("damaged", [False, True])
def test_trials_that_another_paper_has_committed_are_taken_up(tmp_path: Path, damaged: bool) -> None:
    """An empty store, as in a fresh clone: the rows of a paper that shares the experiment are there, if undamaged."""
    theirs, ours = (tmp_path / "papers" / name / "results" / "cpu.rows.json" for name in ("other", "demo"))
    run.write_rows(theirs, measured(tmp_path / "here", {**entry(seeds=2), "paper": "other"}, Engine()))
    if damaged:
        theirs.write_text(theirs.read_text().replace("9.0", "8.0", 1))
    engine = Engine()
    document = measured(tmp_path / "there", entry(), engine, results=ours)
    assert len(document["rows"]) == 36 and len(engine.asked) == (36 if damaged else 4), "the third seed alone"
    assert document["registered"] == "sha256:rules" and document["paper"] == "demo"


def test_the_plan_of_a_tuned_claim(checkout: Checkout) -> None:
    """From paper.yaml on, through worker processes, on a machine that has torch and numpy alone too."""
    checkout.edit("factors: {depth: [1, 2]}", "factors: {depth: [1, 2], lr: [0.1, 0.2, 0.4]}")
    checkout.edit("    experiment: main\n", "    experiment: main\n    tune: {factor: lr, seeds: 2}\n")
    checkout.edit("    depth: int\n    mode: str\n", "    depth: int\n    mode: str\n    lr: float = 0.1\n", EXPERIMENT)
    checkout.edit('+ (arm == "broken")', '+ (arm == "broken") + abs(config.lr - 0.2)', EXPERIMENT)
    plan = checkout.ok("plan", "demo", "--json")
    (checkout.root / "plan.json").write_text(plan)
    made = json.loads(plan)["entries"][0]
    assert len(made["trials"]) == 2 * 2 * 3 * 2 + 2 * 2 * 3, "two seeds at every level, three seeds at the chosen one"
    words = ["-m", "repro.run", "plan.json", "--out", "out"]
    done = checkout.python(*words, env=checkout.bare_environment(checkout.root / "bare"))
    assert done.returncode == 0, done.stderr
    brought = json.loads((checkout.root / "out" / "demo" / "cpu.rows.json").read_text())
    judged = [row for row in brought["rows"] if row["seed"] < 1000]
    assert len(judged) == 12 and {row["factors"]["lr"] for row in judged} == {0.2}
    assert "36 in the store, 0 to measure" in checkout.ok("run", "demo")


EXPERIMENT = "papers/demo/experiment.py"


def test_equal_scores_at_all_levels_have_no_edge() -> None:
    """A network that takes no step is the same at every rate."""
    rows = [
        {"arm": "a", "seed": 1000, "factors": {"lr": lr}, "measures": {"loss": 1.5}, "status": "ok"}
        for lr in (0.1, 1.0)
    ]
    options = {"arm": "a", "cell": {}, "factor": "lr", "seeds": [1000], "measure": "loss", "better": "lower"}
    assert choose(rows, levels=[0.1, 1.0], **options).edge is False
    rows[1]["measures"] = {"loss": 1.4}
    assert choose(rows, levels=[0.1, 1.0], **options).edge is True
