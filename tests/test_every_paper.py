"""The contract that every paper's code keeps; one test walks them all.

Whether stored results and generated files are current is no question of the code: `.ci/run` asks it.
"""

import ast
import dataclasses
import importlib
import json
import re
import typing

import pytest

from repro.publish import index
from repro.report.text import mathml
from repro.run import execute, plan, provenance
from repro.run import measure as run
from repro.spec import load as paper
from repro.spec.model import Paper

ROOT = provenance.root()
SLUGS = paper.slugs()


@pytest.fixture(params=SLUGS)
def one(request: pytest.FixtureRequest) -> Paper:
    return paper.load(request.param)


def code_lines(text: str) -> int:
    """Lines that hold code: no blank line, comment or docstring."""
    tree, taken = ast.parse(text), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            taken |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    lines = text.splitlines()
    return sum(
        bool(line.strip()) and not line.strip().startswith("#") and i not in taken for i, line in enumerate(lines, 1)
    )


def test_there_are_papers() -> None:
    assert {"batchnorm", "layernorm", "rmsnorm"} <= set(SLUGS)


def test_its_equation_is_drawn(one: Paper) -> None:
    """As MathML, and not as the TeX that stands where the converter lacks a command."""
    assert 'class="tex"' not in mathml(one.equation)


def test_files_and_their_length(one: Paper) -> None:
    here = ROOT / "papers" / one.slug
    for name in (
        "paper.yaml",
        "method.py",
        "experiment.py",
        "test_method.py",
        "NOTES.md",
        "README.md",
        "dvc.yaml",
        "__init__.py",
    ):
        assert (here / name).read_text().strip(), name
    assert code_lines((here / "method.py").read_text()) <= 146
    assert code_lines((here / "experiment.py").read_text()) <= 186


def test_public_names_and_what_it_provides(one: Paper) -> None:
    package = importlib.import_module(f"repro.papers.{one.slug}")
    assert package.__all__ == index.public_names(one.slug)
    for name in package.__all__:
        assert getattr(package, name).__doc__, f"{name} has no docstring"
    for drop_in in one.provides:
        assert drop_in.name in package.__all__


def test_every_departure_has_a_test(one: Paper) -> None:
    here = ROOT / "papers" / one.slug
    header = ast.get_docstring(ast.parse((here / "method.py").read_text()))
    numbers = [int(n) for n in re.findall(r"^ *D(\d+) ", header, re.M)]
    assert numbers, "the header of method.py has no numbered line D1: say what departs from the paper"
    assert numbers == list(range(1, len(numbers) + 1)), f"the departures are numbered {numbers}, not 1, 2, ..."
    tests = (here / "test_method.py").read_text()
    for number in numbers:
        assert re.search(rf"def test_d{number}_", tests), f"no test of departure D{number}"
    wanted = "test_method.py has no test of mutants: wrong versions that the tests must catch (repro.testing.mutation)"
    assert "mutant" in tests.lower(), wanted


def test_claims_have_rules_controls_and_places(one: Paper) -> None:
    assert 1 <= len(one.claims) <= 5
    assert one.headline in one.claims and one.headline not in one.identities
    for name, claim in one.claims.items():
        assert claim.paper_value.text or claim.paper_value.value is not None or claim.paper_value.low is not None
        assert claim.where.strip() and "the paper" not in claim.where and claim.read, name
        assert claim.untested is None or len(claim.untested) > 20
        if claim.untested:
            continue
        assert any(c.expect == "not_reproduced" and not c.seed_offset for c in claim.controls), f"{name}: no control"
        assert claim.fidelity == "analytic" or claim.trivial, f"{name}: say what must have learnt, or why nothing must"
        assert claim.predictor is None or claim.tune, f"{name}: is trained, and says nothing of tuning"
    for name, statement in one.identities.items():
        assert statement.where.strip() and statement.controls, f"{name} has no control"


def test_trained_claims_have_five_seeds_and_others_three(one: Paper) -> None:
    for profile in one.profiles:
        for name in one.judged_in(profile):
            seeds = len(one.settings(profile, one.claims[name].experiment).seeds)
            assert seeds >= (5 if one.claims[name].trained else 3), f"{name} at {profile}: {seeds} seeds"


def test_dvc_can_read_the_parameters(one: Paper) -> None:
    """DVC reads paper.yaml by libyaml, which takes no colon in a plain text within braces."""
    from ruamel.yaml import YAML

    read = YAML(typ="safe", pure=False).load(ROOT / "papers" / one.slug / "paper.yaml")
    assert list(read["claims"]) == list(one.claims)


def test_every_profile_fills_its_configs(one: Paper) -> None:
    for profile in one.profiles:
        for name, setting in plan.entry(one, profile)["experiments"].items():
            module = importlib.import_module(setting["module"])
            suffix = "_group" if setting["exclusive"] else "_batch" if setting["batched"] else ""
            function = getattr(module, setting.get("function", name) + suffix)
            kind = typing.get_type_hints(function)["config"]
            assert dataclasses.is_dataclass(kind) and kind.__dataclass_params__.frozen
            factors = {k: v[0] for k, v in one.settings(profile, name).factors.items()}
            config = execute.make_config(function, {**setting["config"], **factors}, f"{one.slug} {profile}")
            assert isinstance(config, kind)


def test_the_smoke_profile_returns_every_measure_that_a_rule_reads(one: Paper) -> None:
    returned: dict[str, set[str]] = {}
    for unit in run.units_of(plan.entry(one, "smoke"), "cpu"):
        for outcome in execute.execute(unit):
            assert outcome["status"] in ("ok", "diverged")
            returned.setdefault(unit["experiment"], set()).update(outcome["measures"])
            json.dumps(outcome, allow_nan=False)
    for name, claim in one.claims.items():
        for profile in one.profiles:
            for rule in [] if claim.untested else one.rules(name, profile):
                read = {rule.measure} | ({rule.steps_to.axis} if rule.steps_to else set())
                # A measure may carry a size of the profile in its name (accuracy_512), which is another one in smoke.
                missing = {re.sub(r"_\d+$", "_N", m) for m in read} - {
                    re.sub(r"_\d+$", "_N", m) for m in returned[claim.experiment]
                }
                assert not missing, f"{name} reads {missing}"


# Biases before a BatchNorm have no gradient but rounding, which Adam divides by its own size, so that it takes whole
# steps; on batches of four images the running statistics then differ from machine to machine.
ROUGH = {"layernorm": 3e-2}


def test_seeds_in_one_batch_give_what_they_give_alone(one: Paper) -> None:
    """The stated tolerance of the batched path: 1e-3 relative after a smoke run in float32."""
    near = ROUGH.get(one.slug, 1e-3)
    for unit in run.units_of(plan.entry(one, "smoke"), "cpu"):
        if unit["path"] != "batched":
            continue
        trials = [{**unit["trials"][0], "seed": seed} for seed in (0, 1)]
        together = execute.execute({**unit, "trials": trials})
        alone = [execute.execute({**unit, "trials": [trial]})[0] for trial in trials]
        for a, b in zip(together, alone, strict=True):
            assert a["status"] == b["status"]
            for name, value in a["measures"].items():
                assert value == pytest.approx(b["measures"][name], rel=near), (
                    unit["experiment"],
                    trials[0]["arm"],
                    name,
                )
