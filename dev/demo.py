"""A small checkout: this package and one paper, `demo`, of known values; for tests, `dev.badinput` and `dev.chaos`."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

PATIENCE = 600.0  # seconds after which a command counts as hanging; no test measures how fast a machine is

PARAMS = """\
profile: cpu
device: auto
seeds: null
time_limit: {smoke: 5, cpu: 180, gpu: 300}
"""

YAML = """\
slug: demo
title: A paper for tests
authors: [A. Author]
year: 2020
venue: Nowhere 2020
arxiv: "2001.00001"
code: null
family: normalization
summary: It adds one.
equation: y = x + 1
headline: main
measures:
  error: {unit: relative error, better: lower, diverged: worst}
  curve: {unit: nats, better: lower, diverged: worst}
experiments:
  main: {arms: [method, broken], factors: {depth: [1, 2]}, about: errors}
claims:
  main:
    statement: The error is small.
    paper_value: {text: small}
    where: Table 1
    fidelity: analytic
    experiment: main
    rule: {kind: bound, measure: error, arm: method, max: 0.5, per: depth}
    controls: [{replace: {method: broken}, expect: not_reproduced}]
profiles:
  smoke: {seeds: 1, main: {mode: plain}}
  cpu: {seeds: 3, main: {mode: plain}}
"""

METHOD = '''"""Demo (Author, Nowhere 2020).

  D1  it adds one and not two.
"""

__all__ = ["method"]


def method(x):
    return x + 1
'''

EXPERIMENT = '''"""Rows of known values; `mode` makes one trial misbehave."""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from repro.errors import Diverged, InvalidMeasurement

ARMS = {"method": None, "broken": None}


@dataclass(frozen=True)
class Main:
    depth: int
    mode: str


def value(arm, seed, config):
    generator = torch.Generator().manual_seed(1000 * seed + config.depth)
    return float(torch.rand(1, generator=generator)) / 100 + (arm == "broken")


def main(arm: str, seed: int, config: Main, device: torch.device) -> dict:
    here = Path(__file__).parent
    chosen = arm == "method" and seed == 1 and config.depth == 2
    if config.mode == "raise" and chosen:
        raise RuntimeError("the experiment is broken <b>")
    if config.mode == "diverge" and chosen:
        raise Diverged(17)
    if config.mode == "nan" and chosen:
        return {"error": float("nan"), "curve": [1.0, 2.0]}
    if config.mode == "invalid" and chosen:
        raise InvalidMeasurement("A/A arms 3.1 % apart")
    if config.mode == "die_once" and chosen and not (here / "died").exists():
        (here / "died").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if config.mode == "die" and chosen:
        os.kill(os.getpid(), signal.SIGKILL)
    if config.mode == "slow":
        time.sleep(0.4)
        with open(here / "calls", "a") as calls:
            calls.write(f"{arm} {seed} {config.depth} {os.getpid()}\\n")
    print("noise on standard output")
    return {"error": value(arm, seed, config), "curve": [1.0, 0.5]}


def main_batch(arm, seeds, config: Main, device):
    return [main(arm, seed, config, device) for seed in seeds]


def main_group(arms, seed, config: Main, device):
    return {arm: main(arm, seed, config, device) for arm in arms}
'''


@dataclass
class Checkout:
    """The folder that `build` wrote, and the command run inside it."""

    root: Path

    @property
    def paper(self) -> Path:
        return self.root / "papers" / "demo"

    def edit(self, old: str, new: str, file: str = "papers/demo/paper.yaml") -> None:
        path = self.root / file
        text = path.read_text()
        if old not in text:
            raise ValueError(f"{old!r} is not in {file}")
        path.write_text(text.replace(old, new, 1))

    def environment(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST")}
        return {
            **kept,
            "PYTHONPATH": str(self.root / "src"),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}",
        }

    def start(self, *words: str, env: dict[str, str] | None = None, **options) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, "-m", "repro.cli", *words],
            cwd=self.root,
            env=env or self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **options,
        )

    def run(self, *words: str, timeout: float = PATIENCE, **options) -> subprocess.CompletedProcess:
        process = self.start(*words, **options)
        out, err = process.communicate(timeout=timeout)
        return subprocess.CompletedProcess(words, process.returncode, out, err)

    def python(self, *words: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess:
        """Run Python itself inside the checkout."""
        return subprocess.run(
            [sys.executable, *words],
            cwd=self.root,
            env=env or self.environment(),
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )

    def ok(self, *words: str) -> str:
        done = self.run(*words)
        if done.returncode:
            raise AssertionError(done.stdout + done.stderr)
        return done.stdout


def package(*names: str) -> str:
    """The text of `papers/demo/__init__.py`, as `repro index` writes it for these public names."""
    public = ", ".join(f'"{name}"' for name in names)
    return (
        "# GENERATED by `repro index` from method.py\n"
        f"from repro.papers.demo.method import {', '.join(names)}\n\n__all__ = [{public}]\n"
    )


def build(root: Path) -> None:
    """Write the checkout: `src/repro` as it stands here, `papers/demo`, `params.yaml` and a README."""
    ignored = shutil.ignore_patterns("__pycache__", "papers")
    shutil.copytree(Path(__file__).parents[1] / "src" / "repro", root / "src" / "repro", ignore=ignored)
    paper = root / "papers" / "demo"
    paper.mkdir(parents=True)
    (root / "papers" / "__init__.py").touch()
    (root / "params.yaml").write_text(PARAMS)
    (root / "README.md").write_text("# demo\n<!-- GENERATED by `repro index` -->\n<!-- end of GENERATED -->\n")
    (paper / "paper.yaml").write_text(YAML)
    (paper / "method.py").write_text(METHOD)
    (paper / "experiment.py").write_text(EXPERIMENT)
    (paper / "NOTES.md").write_text("# Notes\n")
    (paper / "__init__.py").write_text(package("method"))
