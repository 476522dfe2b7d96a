"""`repro new SLUG`: the stubs of a paper.  They load, and their tests fail until they are filled."""

import keyword
import os
import re
import shutil
from pathlib import Path

from repro.errors import ReproError
from repro.files.paths import SLUG
from repro.publish.stages import MARK
from repro.spec import load as paper
from repro.store import write_file

PAPER = """# docs/paper_yaml.md lists every key and every kind of rule.
slug: {slug}
title: The paper's title
authors: [First Author, Second Author]
year: 2020
venue: Where it was published
arxiv: "0000.00000"
code: null                                # owner/repository@commit of the authors' code
family: normalization                     # or activation, initialization, residual, training
summary: One sentence that says what the method does.
equation: y = f(x)
headline: main                            # the one claim that the paper is known for
measures:
  error: {{unit: relative error, better: lower, diverged: worst}}
experiments:
  main: {{arms: [method, broken], about: what is measured}}
identities:                               # exact statements, which hold on every row or not at all
  exact:
    statement: An equation of the paper, in words.
    where: Equation 1
    experiment: main
    rule: {{kind: identity, measure: error, arm: method, bound: 1.0e-9}}
    controls: [{{replace: {{method: broken}}, expect: violated}}]
claims:
  main:
    statement: One sentence of the paper, with its number.
    paper_value: {{text: as the paper prints it}}
    where: Table 1
    fidelity: proxy                       # same, scaled or proxy
    experiment: main
    trivial: {{none: nothing is trained here}}
    rule: {{kind: bound, measure: error, arm: method, max: 0.5}}
    controls: [{{replace: {{method: broken}}, expect: not_reproduced}}]
profiles:
  smoke: {{seeds: 1, main: {{size: 8}}}}
  cpu: {{seeds: 5, main: {{size: 64}}}}
"""

METHOD = '''"""{slug}: Title (Authors, Venue Year, arXiv:0000.00000).

    y = f(x)

x, y: (..., n).  Initial values: say them here.

  D1  each departure from the paper is one numbered line, with a test named test_d1_...
"""

from torch import Tensor

__all__ = ["method"]


def method(x: Tensor) -> Tensor:
    """The paper's idea (Sec. 3, Eq. 1)."""
    raise NotImplementedError("write papers/{slug}/method.py")
'''

EXPERIMENT = '''"""What papers/{slug} measures.  One call = one arm, one seed, one row."""

from dataclasses import dataclass

import torch

from repro.papers.{slug}.method import method

ARMS = {{"method": method, "broken": lambda x: method(x) + 1}}


@dataclass(frozen=True)
class Main:
    size: int


def main(arm: str, seed: int, config: Main, device: torch.device) -> dict[str, float]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(config.size, generator=generator, dtype=torch.float64).to(device)
    return {{"error": float((ARMS[arm](x) - x).abs().max())}}
'''

TEST = """import torch

from repro.papers.{slug} import method


def test_against_the_equation() -> None:
    x = torch.randn(8, dtype=torch.float64)
    torch.testing.assert_close(method(x), x)


def test_d1_says_what_the_departure_changes() -> None:
    raise AssertionError("write a test for each departure of papers/{slug}/method.py")


def test_mutants_are_caught() -> None:
    raise AssertionError("write wrong versions that the tests must catch; repro.testing.mutation makes tests of them")
"""

NOTES = """# Notes on {slug}

Pitfalls, what failed, what later papers say. Replace this line.
"""


PUBLIC = '__all__ = ["method"]'


def write(slug: str, root: Path) -> list[Path]:
    """Write the stubs of papers/<slug>; refuses a name that cannot be imported or is taken."""
    if not SLUG.fullmatch(slug) or keyword.iskeyword(slug):
        guess = re.sub(r"[^a-z0-9]+", "_", slug.lower()).strip("_")[:40] or "mix_ln"
        guess = f"paper_{guess}" if guess[0].isdigit() else f"{guess}_" if keyword.iskeyword(guess) else guess
        raise ReproError(
            f"{slug[:80]!r} cannot be imported; write a name of a-z, 0-9 and _, such as {guess!r}, at most 60"
        )
    if slug in paper.slugs() or (root / "papers" / slug).exists():
        raise ReproError(f"papers/{slug} exists already; choose another name or edit what is there")
    here = root / "papers" / slug
    texts = {
        "paper.yaml": PAPER,
        "method.py": METHOD,
        "experiment.py": EXPERIMENT,
        "test_method.py": TEST,
        "NOTES.md": NOTES,
    }
    texts["__init__.py"] = f"# {MARK} from method.py\nfrom repro.papers.{slug}.method import method\n\n{PUBLIC}\n"
    # The folder appears with all its files or not at all: a full disk leaves nothing that would be refused next time.
    # A draft that a killed process left is of no use to anybody.
    for left in (root / "papers").glob(f".{slug}.*.new"):
        shutil.rmtree(left, ignore_errors=True)
    draft = root / "papers" / f".{slug}.{os.getpid()}.new"
    try:
        for name, text in texts.items():
            write_file(draft / name, text if name == "__init__.py" else text.format(slug=slug))
        os.replace(draft, here)
    except OSError as error:
        raise ReproError(f"papers/{slug}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return [here / name for name in texts]
