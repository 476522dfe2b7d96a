"""`repro trial --script`: one measured trial as a program that needs torch and numpy alone."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import Checkout
from repro.errors import ReproError
from repro.publish import script

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def stranger(tmp_path: Path) -> Path:
    """A folder on the path whose `repro` must not be imported."""
    (tmp_path / "stranger" / "repro").mkdir(parents=True)
    (tmp_path / "stranger" / "repro" / "__init__.py").write_text("raise RuntimeError('a stranger')\n")
    absent = ["pydantic", "typer", "dvc", "rich", "ruamel", "scipy", "pandas", "safetensors", "timm", "datasets"]
    text = f"import sys\nsys.modules.update(dict.fromkeys({absent}))\n"  # an import of what is None fails
    (tmp_path / "stranger" / "sitecustomize.py").write_text(text)
    return tmp_path


def written(folder: Path, checkout: Checkout, *words: str) -> str:
    checkout.ok("trial", *words, "--script", str(folder / "one.py"))
    return (folder / "one.py").read_text()


def measured(folder: Path) -> tuple[dict, str]:
    environment = {"PYTHONPATH": str(folder / "stranger"), "PATH": "/usr/bin:/bin", "HOME": str(folder)}
    words = [sys.executable, "one.py"]
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    text, _, told = done.stdout[done.stdout.index("{") :].rpartition("}")  # the experiment may print too
    return json.loads(text + "}"), told.strip()


def test_a_trial_runs_as_one_file_with_torch_alone(checkout: Checkout, stranger: Path) -> None:
    checkout.ok("run", "demo")
    arm = json.loads((checkout.root / "papers/demo/results/cpu.rows.json").read_text())["rows"][0]["arm"]
    text = written(stranger, checkout, "demo", arm)
    assert "SOURCES['repro.papers.demo.experiment']" in text and str(checkout.root) not in text
    found, told = measured(stranger)
    assert found["measured here"] == found["measured before"] and told.startswith("equal")
    (stranger / "one.py").write_text(text.replace('"measures": {', '"measures": {"other": 1.0, ', 1))
    _, told = measured(stranger)
    assert told.startswith("not equal")


def test_an_unknown_arm_names_those_that_there_are(checkout: Checkout) -> None:
    checkout.ok("run", "demo")
    assert "no measured trial of arm nothing; its arms are" in checkout.refused("trial", "demo", "nothing")


@pytest.mark.parametrize("text", ["x = 1\n", "t = '''a'''\n", 'r = "\\\\d"\n', "q = 'a'", "b = 1  # \\"])
def test_a_source_comes_back_as_it_was(text: str) -> None:
    assert eval(script._quoted(text)) == text


def test_lazily_imported_modules_and_foreign_libraries_are_found() -> None:
    sources, foreign = script.everything("repro.papers.relu_attention.experiment")
    assert {"repro.train", "repro.models.vit", "repro.papers.relu_attention.method"} <= set(sources)
    assert foreign <= {"timm", "pandas", "scipy"}


def test_an_arm_without_rows_is_refused() -> None:
    with pytest.raises(ReproError, match="no measured trial of arm"):
        script.of_arm("rmsnorm", "nothing", ROOT)


def test_a_trial_of_the_arena_is_written_with_its_own_unit() -> None:
    document = json.loads((ROOT / "arena/gpt.long.rows.json").read_text())
    at = next(i for i, row in enumerate(document["rows"]) if row["arm"] != "base" and row["experiment"] == "gpt")
    key, row = document["provenance"]["trials"][at], document["rows"][at]
    text = script.script(key, "arena/gpt.long.rows.json", ROOT)
    program = {}
    exec(compile(text.partition("# --- the modules above")[0], "trial.py", "exec"), program)
    trial = program["UNIT"]["trials"][program["TRIAL"]]
    assert {name: row[name] for name in trial} == trial and program["ROW"]["measures"] == row["measures"]
    assert {"repro.experiments.arena", "repro.models.gpt"} <= set(program["SOURCES"])
