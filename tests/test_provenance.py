"""Source digests: what changes them, what does not."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from conftest import Checkout
from repro.errors import ReproError
from repro.run import provenance


def digest_in(checkout: Checkout) -> str:
    code = "from repro.run import provenance; print(provenance.source_digest('repro.papers.demo.experiment'))"
    return subprocess.run(
        [sys.executable, "-c", code],
        env=checkout.environment(),
        cwd=checkout.root,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()


def test_comments_docstrings_and_layout_change_nothing_and_code_does(checkout: Checkout) -> None:
    first = digest_in(checkout)
    checkout.edit(
        '"""Rows of known values; `mode` makes one trial misbehave."""',
        '"""Other words."""',
        "papers/demo/experiment.py",
    )
    checkout.edit("import signal\n", "import signal  # why\n\n\n", "papers/demo/experiment.py")
    assert digest_in(checkout) == first
    checkout.edit("raise Diverged(17)", "raise Diverged(18)", "papers/demo/experiment.py")
    second = digest_in(checkout)
    assert second != first
    (checkout.paper / "experiment.py").write_text(
        "from repro.papers.demo import method\n" + (checkout.paper / "experiment.py").read_text()
    )
    third = digest_in(checkout)
    assert third != second
    checkout.edit("x + 1", "x + 2", "papers/demo/method.py")
    assert digest_in(checkout) != third, "an imported method counts"


def test_the_closure_holds_what_may_change_a_number_and_not_the_judge() -> None:
    modules = set()
    for path in sorted((provenance.root() / "papers").glob("*/experiment.py")):
        modules |= set(provenance.closure(f"repro.papers.{path.parent.name}.experiment"))
    assert "repro.train" in modules
    assert {
        m
        for m in modules
        if m.split(".")[1] in ("cli", "commands", "files", "judge", "publish", "report", "run", "spec")
    } == set()
    assert not modules & {"repro.store", "repro.live", "repro.words"}


def test_an_unknown_module_is_refused() -> None:
    with pytest.raises(ReproError, match="repro.papers.nothing.experiment"):
        provenance.source_digest("repro.papers.nothing.experiment")


def test_arms_may_name_their_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = tmp_path / "shared.py"
    module.write_text('ARMS = {"a": "repro.store:Store", "b": None, "c": ("repro.run.plan:entry", 3)}\n')
    monkeypatch.setattr(provenance, "module_file", lambda name: module)
    assert provenance.arm_modules("repro.experiments.shared", "a") == {"repro.store"}
    assert provenance.arm_modules("repro.experiments.shared", "b") == set()
    assert provenance.arm_modules("repro.experiments.shared", "c") == {"repro.run.plan"}


CORE = ["errors", "live", "store", "train", "batched", "probes", "timing", "data.sources", "models.gpt"]
CORE += [f"run.{name}" for name in ("provenance", "execute", "measure", "tuning", "__main__")]
CORE += [f"run.engines.{name}" for name in ("local", "ranks", "ray", "worker")]


@pytest.mark.parametrize("name", CORE)
def test_the_core_imports_nothing_of_the_judge(name: str) -> None:
    path = provenance.module_file(f"repro.{name}")
    assert path is not None
    imported = provenance._imports(path, provenance.stamp_of(path), f"repro.{name}")
    assert {m for m in imported if re.match(r"repro\.(judge|publish|report|commands|cli|arena)\b", m)} == set()


def test_the_core_needs_torch_and_numpy_alone() -> None:
    """Imported in a process of its own, in which everything else of the suite's dependencies is counted."""
    names = ", ".join(f"repro.{name}" for name in CORE)
    absent = "typer pydantic rich ruamel scipy pandas dvc safetensors timm datasets jinja2 papermill ray"
    code = f"import sys, {names}; print(*[m for m in {absent.split()} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_running_imports_in_no_circle() -> None:
    """`execute` knows no engine, engines know `execute` alone, `measure` knows both; lazy imports count too."""
    arrows = {}
    for path in sorted((provenance.root() / "src" / "repro" / "run").rglob("*.py")):
        name = ".".join(["repro", "run", *path.relative_to(provenance.root() / "src/repro/run").with_suffix("").parts])
        found = provenance._imports(path, provenance.stamp_of(path), name)
        arrows[name] = {m for m in found if m.startswith("repro.run.") and provenance.module_file(m) and m != name}
    arrows = {name: {m for m in found if m in arrows} for name, found in arrows.items()}
    while leaves := [name for name, found in arrows.items() if not found]:
        arrows = {name: found - set(leaves) for name, found in arrows.items() if name not in leaves}
    assert arrows == {}, "these import each other"


def test_lowered_vector_instructions_are_another_device_class(monkeypatch: pytest.MonkeyPatch) -> None:
    """ATEN_CPU_CAPABILITY changes bits; where torch takes what the processor has, the class is that of
    the processor.
    """
    monkeypatch.setattr(provenance, "cpu", lambda: {"class": "cpu-x86_64-GenuineIntel-avx512f", "model": "a processor"})
    classes = {}
    for vector in ("AVX512", "AVX2", "DEFAULT"):
        monkeypatch.setattr(provenance, "vector_capability", lambda vector=vector: vector)
        classes[vector] = provenance.device_class("cpu")
    assert classes == {
        "AVX512": "cpu-x86_64-GenuineIntel-avx512f",
        "AVX2": "cpu-x86_64-GenuineIntel-avx512f-with-avx2",
        "DEFAULT": "cpu-x86_64-GenuineIntel-avx512f-with-default",
    }


def test_torch_is_asked_for_the_vector_instructions_that_it_uses() -> None:
    code = "from repro.run import provenance; print(provenance.device_class('cpu'))"
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": "default"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.strip().endswith("-with-default") and provenance.device_class("cpu") != done.stdout.strip()


@pytest.mark.parametrize(
    "device, name", [("cpu", "MKL_CBWR"), ("cpu", "ONEDNN_MAX_CPU_ISA"), ("cpu", "DNNL_MAX_CPU_ISA")]
)
def test_variables_that_lower_other_kernels_are_another_device_class(
    monkeypatch: pytest.MonkeyPatch, device: str, name: str
) -> None:
    """MKL_CBWR=COMPATIBLE changes matrix products and DNNL_MAX_CPU_ISA=SSE41 convolutions, of which torch says
    nothing.
    """
    plain = provenance.device_class(device)
    monkeypatch.setenv(name, "COMPATIBLE /x")
    assert provenance.device_class(device) == f"{plain}-with-{name.lower()}-compatible-x"


# --- one function of a module -----------------------------------------------------------------------------------------

MODULE = '''"""Two experiments."""

from functools import partial

from repro.data import digits, shakespeare
from repro.models.mlp import MLP as Network

RATE = 0.1
ARMS = {"one": "repro.timing:compare", "two": None}
LATER = []
LATER.append(1)


class Config:
    width: int


def helper(x):
    return RATE * x


def first(arm: str, seed: int, config: Config, device):
    """It trains."""
    return helper(Network(config.width))


def second(arm, seed, config: "Other", device):
    return shakespeare.load(ARMS[arm])


class Other:
    pass


third = partial(second)


def fourth(arm, seed, config, device):
    return globals()[arm]
'''


@pytest.fixture
def experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path, real = tmp_path / "experiment.py", provenance.module_file
    path.write_text(MODULE)
    monkeypatch.setattr(provenance, "module_file", lambda name: path if name == NAME else real(name))
    return path


NAME = "repro.papers.demo.experiment"


def digests(path: Path, old: str = "", new: str = "") -> list[str]:
    """Of the four functions, after an edit."""
    assert old in MODULE
    path.write_text(MODULE.replace(old, new, 1) if old else MODULE)
    return [provenance.function_digest(NAME, name) for name in ("first", "second", "third", "fourth")]


@pytest.mark.parametrize(
    "old, new, changed",
    [
        ("It trains.", "It learns.", []),
        ("return RATE * x", "return RATE + x", ["first", "fourth"]),
        ("RATE = 0.1", "RATE = 0.2", ["first", "fourth"]),
        ("width: int", "width: float", ["first", "fourth"]),
        ("shakespeare.load(ARMS[arm])", "shakespeare.load()", ["second", "third", "fourth"]),
        ('"two": None', '"two": 2', ["second", "third", "fourth"]),
        ("    pass", "    width = 1", ["second", "third", "fourth"]),
        ("partial(second)", "partial(second, 1)", ["third", "fourth"]),
        ("LATER.append(1)", "LATER.append(2)", ["first", "second", "third", "fourth"]),
    ],
)
def test_an_edit_changes_the_digests_of_the_experiments_that_use_it(
    experiment: Path, old: str, new: str, changed: list[str]
) -> None:
    names = ["first", "second", "third", "fourth"]
    before, after = digests(experiment), digests(experiment, old, new)
    assert [name for name, a, b in zip(names, before, after, strict=True) if a != b] == changed


def test_a_function_runs_the_modules_that_it_uses_alone(experiment: Path) -> None:
    first, second = (set(provenance.function_closure(NAME, name)) for name in ("first", "second"))
    assert "repro.models.mlp" in first and "repro.data.shakespeare" not in first
    assert "repro.data.shakespeare" in second and "repro.models.mlp" not in second
    assert not {"repro.data.digits", "repro.timing"} & (first | second)
    assert "repro.timing" in provenance.function_closure(NAME, "first", ["one"]), "an arm names its module"
    whole = set(provenance.closure(NAME))
    assert set(provenance.function_closure(NAME, "fourth")) == whole, "globals() may mean anything"
    assert set(provenance.function_closure(NAME, "absent")) == whole


# --- git and other checkouts ------------------------------------------------------------------------------------------


def commit_in(folder: Path, message: str) -> None:
    name = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    for words in (["add", "-A"], [*name, "commit", "-q", "--allow-empty", "-m", message]):
        subprocess.run(["git", "-C", str(folder), *words], check=True)


def test_git_s_refusals_are_said_in_its_own_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "root", lambda: tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    told = provenance.commit()
    assert told["commit"] is None and "not a git repository" in told["git"] and "dirty" not in told
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    commit_in(tmp_path, "one")
    assert provenance.commit() == {"commit": provenance.git("rev-parse", "HEAD").strip(), "dirty": False}
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    assert re.search("dubious ownership.*git config --global --add safe.directory", str(provenance.commit()["git"]))
    monkeypatch.setenv("PATH", "")
    assert "git is not installed" in provenance.commit()["git"]


def test_a_history_that_is_cut_is_known(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q", str(tmp_path / "whole")], check=True)
    for message in ("one", "two"):
        commit_in(tmp_path / "whole", message)
    source = (tmp_path / "whole").as_uri()
    subprocess.run(["git", "clone", "-q", "--depth", "1", source, str(tmp_path / "cut")], check=True)
    assert (provenance.shallow(tmp_path / "whole"), provenance.shallow(tmp_path / "cut")) == (False, True)


def test_a_command_works_on_the_checkout_in_which_it_stands(checkout: Checkout) -> None:
    """With the environment of this suite, inside another checkout: the other one's source runs."""
    environment = {k: v for k, v in checkout.environment().items() if k != "PYTHONPATH"}
    code = """
from repro.run import processes, provenance
print(provenance.another_checkout() is not None)
processes.enter_checkout("repro.run.provenance", [])
"""
    inside = checkout.paper / "results"
    inside.mkdir()
    done = subprocess.run([sys.executable, "-c", code], cwd=inside, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "True", "")
    listed = subprocess.run(
        [sys.executable, "-m", "repro.cli", "list", "--json"],
        cwd=inside,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert '"demo"' in listed.stdout and "rmsnorm" not in listed.stdout, listed.stderr
    assert provenance.another_checkout(provenance.root()) is None
    assert provenance.another_checkout(Path("/")) is None
    refused = {**environment, "REPRO_CHECKOUT": str(checkout.root.resolve())}
    done = subprocess.run([sys.executable, "-c", code], cwd=inside, env=refused, capture_output=True, text=True)
    assert "this environment belongs to" in done.stderr


def test_plans_and_tests_run_the_source_of_the_checkout_in_which_they_stand(checkout: Checkout) -> None:
    """`python -m repro.run` and pytest, with the environment of this suite inside another checkout."""
    environment = {k: v for k, v in checkout.environment().items() if k != "PYTHONPATH"}
    (checkout.root / "src" / "repro" / "run" / "measure.py").write_text("def main():\n    print('the other source')\n")
    command = [sys.executable, "-m", "repro.run", "plan.json", "--out", "here"]
    done = subprocess.run(command, cwd=checkout.root, env=environment, capture_output=True, text=True)
    assert done.stdout == "the other source\n", done.stderr
    refused = {**environment, "REPRO_CHECKOUT": str(checkout.root.resolve())}
    done = subprocess.run(command, cwd=checkout.root, env=refused, capture_output=True, text=True)
    assert done.returncode == 2 and "this environment belongs to" in done.stderr and "Traceback" not in done.stderr
    settings = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["tool"]["pytest"]
    paths = settings["ini_options"]["pythonpath"]
    (checkout.root / "pytest.ini").write_text(f"[pytest]\npythonpath = {' '.join(paths)}\n")
    text = f"import repro\n\ndef test_it():\n    assert repro.__file__.startswith({str(checkout.root / 'src')!r})\n"
    (checkout.root / "test_it.py").write_text(text)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_it.py"]
    done = subprocess.run(command, cwd=checkout.root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
