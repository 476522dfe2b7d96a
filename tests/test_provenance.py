"""Source digests: what changes them, what does not."""

from pathlib import Path

import pytest

from conftest import Checkout
from repro.errors import ReproError
from repro.run import provenance


def digest_in(checkout: Checkout) -> str:
    import subprocess
    import sys

    code = "from repro import provenance; print(provenance.source_digest('repro.papers.demo.experiment'))"
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
    for judge in ("verdict", "index", "report", "cli", "paper", "cite", "plan", "run", "store"):
        assert f"repro.{judge}" not in modules


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


def test_the_core_imports_nothing_of_the_judge() -> None:
    judge = {f"repro.{name}" for name in ("paper", "verdict", "index", "report", "cite", "cli", "plan")}
    for name in (
        "errors",
        "store",
        "provenance",
        "run",
        "train",
        "probes",
        "timing",
        "engines.local",
        "engines.worker",
    ):
        path = provenance.module_file(f"repro.{name}")
        assert path is not None
        assert not provenance._imports(path, provenance._stamp(path), f"repro.{name}") & judge, name
