"""Nothing that is read can run code; rows of another device class are compared by what their seeds let one expect."""

import ast
import json
import subprocess
from pathlib import Path

import pytest

from conftest import ROOT, Checkout
from repro.run import again, provenance
from repro.store import rows_digest, sealed

FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "yaml"}
FORBIDDEN_CALLS = {
    "eval",
    "exec",
    "torch.load",
    "np.load",
    "numpy.load",
    "pd.read_pickle",
    "torch.jit.load",
    "os.system",
}
SOURCES = [
    p
    for folder in ("src", "papers", "notebooks", "benchmarks")
    for p in (ROOT / folder).rglob("*.py")
    if not p.name.startswith("test_")
]


def offences(source: str) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [a.name for a in node.names if a.name.split(".")[0] in FORBIDDEN_MODULES]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in FORBIDDEN_MODULES:
            found.append(node.module)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in FORBIDDEN_CALLS:
            found.append(ast.unparse(node.func))
        elif (
            isinstance(node, ast.keyword)
            and node.arg in ("allow_pickle", "shell")
            and ast.unparse(node.value) != "False"
        ):
            found.append(node.arg)
    return found


def test_no_pickle_is_loaded_and_no_text_is_run() -> None:
    assert len(SOURCES) > 100
    offending = {p.name: found for p in SOURCES if (found := offences(p.read_text(encoding="utf-8")))}
    # One unpickler that admits the arrays of one file of known digest, the parser under our own YAML 1.2 loader, and in
    # repro.testing, which tests alone import, a state dict that was saved a line before, with weights_only=True.
    assert offending == {"mnist.py": ["pickle"], "optimizers.py": ["torch.load"], "yaml.py": ["yaml", "yaml.cyaml"]}


def test_no_measured_number_depends_on_the_environment() -> None:
    """Variables of the environment, which no audit hook sees: only where data lie may depend on them."""
    names = {"environ", "getenv", "environb"}
    papers = [f"repro.papers.{path.parent.name}.experiment" for path in (ROOT / "papers").glob("*/experiment.py")]
    found = {
        path.name
        for path in provenance.closure(*papers).values()
        for node in ast.walk(provenance.parse(path))
        if names & {getattr(node, "attr", None), getattr(node, "id", None), getattr(node, "name", None)}
    }
    assert len(papers) > 50 and found == set()


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "import torch\ntorch.load('x')",
        "eval('1')",
        "import yaml",
        "np.load(f, allow_pickle=True)",
        "subprocess.run('ls', shell=True)",
    ],
)
def test_the_reader_of_the_source_sees(source: str) -> None:
    assert offences(source)


def cell(arm: str, *losses: float) -> list[dict]:
    return [
        {
            "experiment": "main",
            "arm": arm,
            "seed": seed,
            "factors": {"depth": 2},
            "status": "ok",
            "measures": {"loss": loss, "bound": 0.5, "curve": [1.0]},
        }
        for seed, loss in enumerate(losses)
    ]


ROWS = [*cell("method", 1.0, 1.1, 0.9, 1.05, 0.95), *cell("baseline", 2.0, 2.1, 1.9), *cell("even", 3.0, 3.001, 3.0)]


@pytest.mark.parametrize(
    "arm, status, measures, apart",
    [
        ("method", "ok", {"loss": 1.2, "bound": 0.5001}, []),
        ("method", "ok", {"loss": 1.4, "bound": 0.5}, ["loss by 5.1 standard deviations of its seeds"]),
        ("method", "ok", {"loss": 1.0, "bound": 0.6}, ["bound"]),
        ("method", "diverged", {}, ["status"]),
        ("method", "ok", {"curve": [9.0]}, []),
        ("even", "ok", {"loss": 3.3}, []),
        ("even", "ok", {"loss": 3.5}, ["loss by 6.3 standard deviations of its seeds"]),
        ("nobody", "ok", {}, ["status"]),
    ],
)
def test_a_trial_measured_elsewhere_lies_within_four_spreads(
    arm: str, status: str, measures: dict, apart: list[str]
) -> None:
    """Not within the 14 spreads (at three seeds: 780) that a prediction interval of one cell would admit."""
    trial = {"experiment": "main", "arm": arm, "factors": {"depth": 2}}
    assert again.unexpected({"status": status, "measures": measures}, trial, ROWS) == apart


def test_a_trace_runs_every_arm_at_every_level_once() -> None:
    """Also an arm that has no first seed, and all seeds of a batched unit, in as few units as there can be."""

    def unit(experiment: str, arm: str, depth: int, *seeds: int) -> dict:
        trials = [{"experiment": experiment, "arm": arm, "seed": s, "factors": {"depth": depth}} for s in seeds]
        return {"experiment": experiment, "trials": trials}

    units = [unit("main", arm, depth, seed) for seed in (1, 0) for arm in ("a", "b") for depth in (1, 2)]
    units += [unit("main", "late", 1, 1001), unit("main", "late", 1, 1000), unit("other", "a", 1, 0)]
    units += [unit("main", "batched", 1, 0, 1, 2)]
    found = again.trace(units, ["main"])
    ran = [(t["arm"], t["factors"]["depth"], t["seed"]) for one in found for t in one["trials"]]
    assert sorted(ran) == sorted(
        [(arm, depth, 0) for arm in ("a", "b") for depth in (1, 2)]
        + [("late", 1, 1000)]
        + [("batched", 1, seed) for seed in (0, 1, 2)]
    )


def test_rows_of_another_class_are_measured_again_and_compared(checkout: Checkout) -> None:
    checkout.ok("run", "demo")
    path = checkout.paper / "results" / "cpu.rows.json"
    document = json.loads(path.read_text())
    document["provenance"]["device_class"] = "cpu-elsewhere"
    path.write_text(json.dumps(sealed(document)))
    checkout.ok("judge", "demo")
    checkout.ok("index")
    done = checkout.run("verify", "demo", "--rerun", "2")
    assert "compared by the spread of its seeds" in done.stdout and "2 trials measured again, 0 differ" in done.stdout
    for row in document["rows"]:
        row["measures"]["error"] += 5.0
    document["provenance"]["digest"] = rows_digest(document["rows"])
    path.write_text(json.dumps(sealed(document)))
    checkout.ok("judge", "demo")
    assert "differs in error" in checkout.run("verify", "demo", "--rerun", "2").stdout


def test_the_source_list_is_what_a_release_holds() -> None:
    assert Path(ROOT / "src/repro/store.py") in SOURCES and Path(ROOT / "papers/rmsnorm/method.py") in SOURCES


def test_a_clone_has_the_same_bytes_where_git_would_change_line_ends(tmp_path: Path) -> None:
    """core.autocrlf=true, as git for Windows is installed: digests, DVC and scripts depend on the bytes."""
    source, clone = tmp_path / "source", tmp_path / "clone"
    source.mkdir()
    (source / ".gitattributes").write_bytes((ROOT / ".gitattributes").read_bytes())
    for name in ("script.sh", "paper.yaml", "dvc.lock", "rows.json"):
        (source / name).write_bytes(b"one\ntwo\n")
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b.test", "-c", "core.autocrlf=true"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "files"]):
        subprocess.run([*git, "-C", str(source), *words], check=True, capture_output=True)
    subprocess.run([*git, "clone", "-q", str(source), str(clone)], check=True)
    assert {path.read_bytes() for path in clone.glob("*.*") if path.suffix} == {b"one\ntwo\n"}
