"""What commands cost with hundreds of papers: copies of the papers that there are, in a checkout of their own.

    python -m dev.scale [--papers 345] [--keep FOLDER]

Prints user CPU seconds (of the command and its children) as a table of Markdown, for docs/scale.md.
"""

import argparse
import datetime
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from ruamel.yaml import YAML

from repro.run import provenance
from repro.store import file_digest, rows_digest, sealed

COMMANDS = {  # as docs/scale.md names them -> (words, seconds allowed with 345 papers)
    "`repro list`, first call": (["repro", "list"], 3.0),
    "`repro list`, again": (["repro", "list"], 0.3),
    "`repro index --check`, first call": (["repro", "index", "--check"], 5.0),
    "`repro index --check`, again": (["repro", "index", "--check"], 5.0),
    "`dvc status papers/rmsnorm`": (["dvc", "status", "papers/rmsnorm"], 8.0),
    "`dvc repro papers/rmsnorm`, nothing to do": (["dvc", "repro", "papers/rmsnorm"], 10.0),
}
NOT_COPIED = (
    "*.egg-info",
    ".venv",
    ".git",
    ".repro",
    "reports",
    "build",
    "__pycache__",
    ".pytest_cache",
    ".ruff_cache",
    ".hypothesis",
)


def build(source: Path, target: Path, count: int) -> None:
    """A checkout like `source` in which the papers stand until there are `count`, each under a name of its own."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns(*NOT_COPIED), symlinks=True)
    slugs = sorted(path.parent.name for path in (target / "papers").glob("*/paper.yaml"))
    for i in range(len(slugs), count):
        slug = slugs[i % len(slugs)]
        copy_paper(target / "papers" / slug, target / "papers" / f"{slug}_{i // len(slugs)}", slug)


def copy_paper(one: Path, other: Path, slug: str) -> None:
    """A paper under another name, and its public names with it; what it imports of other papers stays theirs."""
    shutil.copytree(one, other)
    number = other.name.removeprefix(slug)
    listed = (re.search(r"^__all__ = (\[[^]]*\])", p.read_text(encoding="utf-8"), re.M) for p in one.glob("*.py"))
    names = {name for found in listed if found for name in re.findall(r"\w+", found[1])}
    public = re.compile(rf"\b({'|'.join(map(re.escape, sorted(names, key=len, reverse=True)))})\b")
    for path in [other / "paper.yaml", *other.glob("*.py")]:
        text = re.sub(rf"^slug: {slug}$", f"slug: {other.name}", path.read_text(encoding="utf-8"), flags=re.M)
        text = re.sub(rf"repro\.papers\.{slug}\b", f"repro.papers.{other.name}", text)
        if path.suffix == ".py":
            text = public.sub(rf"\1{number}", text)
        else:
            text = re.sub(r"(\{slot: \w+, name: \w+)\}", rf"\1{number}}}", text)
        path.write_text(text, encoding="utf-8")
    for path in sorted((other / "results").glob("*.json"), key=lambda path: ".rows." not in path.name):  # rows first
        document = json.loads(path.read_text(encoding="utf-8"))
        if "paper" in document:
            document["paper"] = other.name
        if ".rows." in path.name:
            assert document["provenance"]["digest"] == rows_digest(document["rows"])
            document = sealed(document)
        if "rows_file" in document:
            document["rows_file"] = file_digest(path.with_name(path.name.replace(".verdict.", ".rows.")))
        path.write_text(json.dumps(document, ensure_ascii=False) + "\n", encoding="utf-8")


def environment(root: Path) -> dict[str, str]:
    """Commands of this environment, on the source of the copy."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return {**os.environ, "PATH": path, "PYTHONPATH": str(root / "src")}


def run(words: Sequence[str], root: Path) -> tuple[float, int]:
    """User CPU seconds of a command with its children, and its exit code."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    module = {"repro": "repro", "dvc": "dvc"}[words[0]]
    command = [sys.executable, "-m", module, *words[1:]]
    done = subprocess.run(command, cwd=root, env=environment(root), capture_output=True, text=True)
    if done.returncode:
        print(f"{' '.join(words)}: code {done.returncode}: {(done.stderr or done.stdout)[-300:]}", file=sys.stderr)
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before, done.returncode


def prepare(root: Path) -> None:
    """A repository in which every stage is up to date, whatever its results."""
    subprocess.run(["git", "init", "-q", "."], cwd=root, check=True)
    run(["repro", "index"], root)
    for slug in sorted(path.parent.name for path in (root / "papers").glob("*/paper.yaml")):
        for kind in ("rows", "verdict", "quality", "metrics"):
            empty(root / "papers" / slug / "results" / f"cpu.{kind}.json", "{}\n")
    for stage in YAML(typ="safe").load(root / "dvc.yaml")["stages"].values():
        for one in [*stage.get("deps", ()), *stage.get("outs", ())]:
            name = one if isinstance(one, str) else next(iter(one))
            empty(root / name.replace("${profile}", "cpu"), "<p>a page</p>\n")
    run(["repro", "index"], root)  # which lists the metrics that there are
    subprocess.run(["git", "add", "-A"], cwd=root, check=True, capture_output=True)
    run(["dvc", "commit", "-q", "-f"], root)


def empty(path: Path, text: str) -> None:
    """Write a file that stands for what nobody measured or rendered here, where there is none."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def measure(count: int, root: Path) -> dict[str, float]:
    """User CPU seconds of each command in a checkout of so many papers."""
    build(provenance.root(), root, count)
    prepare(root)
    shutil.rmtree(root / ".repro", ignore_errors=True)
    (root / ".repro").mkdir()
    (root / ".repro" / "data").symlink_to(provenance.root() / ".repro" / "data")
    return {name: run(words, root)[0] for name, (words, _) in COMMANDS.items()}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m dev.scale", description=__doc__.partition("\n")[0])
    parser.add_argument("--papers", type=int, default=345, help="how many papers the large checkout has")
    parser.add_argument("--keep", type=Path, help="leave the large checkout in this folder")
    options = parser.parse_args()
    here = len(list((provenance.root() / "papers").glob("*/paper.yaml")))
    with tempfile.TemporaryDirectory(prefix="repro-scale-") as folder:
        small = measure(here, Path(folder) / "small")
        large = measure(options.papers, options.keep or Path(folder) / "large")
    print(f"{datetime.date.today()}, {provenance.cpu()['model']}, user CPU seconds:\n")
    print(f"| command | {here} papers | {options.papers} papers | goal |\n|---|---|---|---|")
    for name, (_, goal) in COMMANDS.items():
        print(f"| {name} | {small[name]:.1f} | {large[name]:.1f} | {goal:g} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
