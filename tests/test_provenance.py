"""Source digests: what changes them, what does not."""

import re
import subprocess
import sys
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
    imported = provenance._imports(path, provenance._stamp(path), f"repro.{name}")
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
        found = provenance._imports(path, provenance._stamp(path), name)
        arrows[name] = {m for m in found if m.startswith("repro.run.") and provenance.module_file(m) and m != name}
    arrows = {name: {m for m in found if m in arrows} for name, found in arrows.items()}
    while leaves := [name for name, found in arrows.items() if not found]:
        arrows = {name: found - set(leaves) for name, found in arrows.items() if name not in leaves}
    assert arrows == {}, "these import each other"
