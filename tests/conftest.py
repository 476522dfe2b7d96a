"""A checkout of its own for tests that run the command: a copy of `src/repro` and one small paper, `demo`."""

import functools
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import warm

from dev import demo

ROOT = Path(__file__).resolve().parents[1]


server = functools.cache(warm.Server)


class Checkout(demo.Checkout):
    """The small checkout, and what tests ask of it."""

    def run(self, *words: str, timeout: float = demo.PATIENCE, **options) -> subprocess.CompletedProcess:
        """Run the command in a process forked from one that has torch; with options, in one of its own."""
        if options or not hasattr(os, "pidfd_open"):
            return super().run(*words, timeout=timeout, **options)
        return server().run(words, self.root, self.environment(), timeout)

    def bare_environment(self, blocker: Path) -> dict[str, str]:
        """An environment in which nothing but torch and numpy can be imported."""
        blocker.mkdir()
        absent = ["pydantic", "typer", "dvc", "rich", "ruamel", "scipy", "pandas", "safetensors", "timm", "datasets"]
        # None in sys.modules: an import fails, and importlib.util.find_spec finds nothing, as where it is not
        # installed.
        (blocker / "sitecustomize.py").write_text(f"import sys\nsys.modules.update(dict.fromkeys({absent}))\n")
        environment = {**self.environment(), "PYTHONPATH": f"{blocker}{os.pathsep}{self.root / 'src'}"}
        probe = subprocess.run([sys.executable, "-c", "import pydantic"], env=environment, capture_output=True)
        assert probe.returncode != 0, "the bare environment must be bare"
        return environment

    def refused(self, *words: str, code: int = 2) -> str:
        """The one line with which the command refuses."""
        done = self.run(*words)
        assert done.returncode == code, f"code {done.returncode}\n{done.stdout}\n{done.stderr}"
        lines = done.stderr.strip().splitlines()
        assert len(lines) == 1 and lines[0].startswith("error: "), done.stderr
        assert "Traceback" not in done.stdout + done.stderr
        return lines[0]


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    root = tmp_path / "checkout"
    demo.build(root)
    return Checkout(root)


@pytest.fixture(autouse=True, scope="session")
def warm_server() -> Iterator[None]:
    yield
    if server.cache_info().currsize:
        server().close()


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """As in a worker; models of this size are only slowed down by more."""
    import torch

    torch.set_num_threads(1)
