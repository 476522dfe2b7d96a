"""Everything marked GENERATED: the DVC stages, the papers' READMEs and package files, the table of verdicts; and
docs/paper_yaml.md, the keys of paper.yaml.

`build(root)` gives path -> text for all of it; `write` puts it on disk, `check` names what differs.
"""

import ast
import difflib
import json
import os
import re
from collections.abc import Container
from pathlib import Path

from repro.errors import ReproError
from repro.files.strict import plain, read_regular
from repro.publish import evidence, namespaces, readme, stages
from repro.publish.stages import MARK
from repro.run import provenance
from repro.spec import describe
from repro.spec import load as papers
from repro.store import write_file

BEGIN, END = f"<!-- {MARK} -->", "<!-- end of GENERATED -->"


def method_files(slug: str) -> list[str]:
    """The files that hold a paper's method, by name without .py: method, then the others that have an `__all__`."""
    folder = papers.paper_dirs() / slug
    others = sorted(path for path in folder.glob("*.py") if not path.stem.startswith(("_", "test_")))
    others = [path.stem for path in others if path.stem not in ("method", "experiment")]
    return ["method", *(name for name in others if b"__all__" in (folder / f"{name}.py").read_bytes())]


def names_of(slug: str, file: str) -> list[str]:
    """`__all__` of one file of a paper's method, read without importing it: constants, then classes, then functions."""
    path = papers.paper_dirs() / slug / f"{file}.py"
    shown, hint = papers.shown(path), "list the public names, such as __all__ = ['RMSNorm']"
    if not path.is_file():
        raise ReproError(f"{shown}: No such file; write it, `repro new` shows one")
    plain(path, shown)
    try:
        tree = provenance.parse(path)
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None)
        raise ReproError(
            f"{shown}{f':{line}' if line else ''}: {getattr(error, 'msg', error)}; correct this line"
        ) from None
    for node in tree.body:
        if isinstance(node, ast.Assign) and [t.id for t in node.targets if isinstance(t, ast.Name)] == ["__all__"]:
            try:
                names = list(ast.literal_eval(node.value))
            except (ValueError, TypeError):
                raise ReproError(f"{shown}:{node.lineno}: __all__ is computed; {hint}") from None
            for name in names:
                if not (isinstance(name, str) and name.isidentifier()):
                    raise ReproError(f"{shown}:{node.lineno}: __all__ holds {name!r}; {hint}")
            return sorted(names, key=namespaces.rank)
    raise ReproError(f"{shown}: has no __all__; {hint}")


def public_names(slug: str) -> list[str]:
    """The public names of all files of a paper's method: constants, then classes, then functions."""
    return sorted((name for file in method_files(slug) for name in names_of(slug, file)), key=namespaces.rank)


def package_file(slug: str) -> str:
    """`papers/<slug>/__init__.py`: the public names of its method, as the formatter leaves the file."""
    lines = [readme.imports(f"repro.papers.{slug}.{file}", names_of(slug, file)) for file in method_files(slug)]
    names = public_names(slug)
    public = f"__all__ = {json.dumps(names)}"
    if len(public) > 120:
        public = "__all__ = [\n" + "".join(f"    {json.dumps(name)},\n" for name in names) + "]"
    imported = "\n".join(sorted(lines, key=lambda line: line.split()[1]))
    return f"# {MARK} from method.py\n{imported}\n\n{public}\n"


def current_package(root: Path, slug: str) -> None:
    """Refuse a paper whose package file imports names that its method has not, which would fail in every worker."""
    path = root / "papers" / slug / "__init__.py"
    nodes = ast.walk(ast.parse(_current(path))) if path.is_file() else ()
    imported = {alias.name for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names}
    if missing := sorted(imported - {"*", *public_names(slug)}):
        raise ReproError(
            f"papers/{slug}/__init__.py: imports {missing[0]}, which no method file names in its __all__ "
            "now; run `repro index` first"
        )


def build(root: Path) -> tuple[dict[Path, str], dict[str, str]]:
    """Path -> text of every generated file, and paper -> why it cannot be read.

    The files of a paper that cannot be read are left as they are; the others are made all the same.
    """
    with provenance.steady(root / ".repro" / "digests.json"):
        return _build(root)


def _build(root: Path) -> tuple[dict[Path, str], dict[str, str]]:
    slugs, loaded, faults = papers.slugs(), [], {}
    files: dict[Path, str] = {}
    verdicts: dict[str, dict] = {}
    digests = _digests(root)
    for slug in slugs:
        here = root / "papers" / slug
        try:
            paper = papers.load(slug)
            names = public_names(slug)
            made = {here / "__init__.py": package_file(slug), here / "dvc.yaml": stages.paper_stages(paper)}
            digests[slug] = stages.source_digest(paper)
            loaded.append(paper)
            files |= made
            verdicts[slug] = evidence.verdicts_of(paper)
            files[here / "README.md"] = readme.paper_readme(paper, names, verdicts[slug])
        except ReproError as error:
            faults[slug] = str(error)
    if not faults:
        files |= {root / path: text for path, text in namespaces.build(loaded).items()}
    digests = {slug: digests[slug] for slug in slugs if slug in digests}
    files[root / stages.SOURCES] = json.dumps(digests, indent=1) + "\n"
    pipeline = root / "dvc.yaml"  # its first stage depends on the source of every paper: kept while one is unread
    files[pipeline] = _current(pipeline) if faults else stages.root_stages(root, slugs, loaded)
    table = readme.verdict_table([evidence.evidence(slug, verdicts.get(slug)) for slug in slugs])
    page = root / "README.md"
    files[page] = spliced(plain(page, "README.md"), table)
    keys = root / "docs" / "paper_yaml.md"
    if keys.is_file():
        files[keys] = describe.markdown()
    return files, faults


def sources(root: Path) -> Path:
    """Write `sources.json` alone, which is what DVC looks at; raise where a paper cannot be read."""
    with provenance.steady(root / ".repro" / "digests.json"):
        digests = {slug: stages.source_digest(papers.load(slug)) for slug in papers.slugs()}
    path = root / stages.SOURCES
    write_file(path, json.dumps(digests, indent=1) + "\n")
    return path


def _digests(root: Path) -> dict[str, str]:
    try:
        return json.loads(read_regular(root / stages.SOURCES))
    except (OSError, ValueError, RecursionError):
        return {}


def spliced(text: str, table: str) -> str:
    """A page of Markdown with a table between its marks."""
    if BEGIN not in text or END not in text:
        raise ReproError(f"README.md: lacks the lines {BEGIN} and {END}, between which the table of verdicts goes")
    if END not in text.split(BEGIN, 1)[1]:
        raise ReproError(f"README.md: write {BEGIN} before {END}, between which the table of verdicts goes")
    head, rest = text.split(BEGIN, 1)
    return f"{head}{BEGIN}\n{table}\n{END}{rest.split(END, 1)[1]}"


def _current(path: Path) -> str:
    return plain(path) if path.is_file() else ""


def write(root: Path) -> tuple[list[Path], dict[str, str]]:
    """Bring every generated file up to date; returns those that changed, and paper -> why it cannot be read."""
    files, faults = build(root)
    changed = [(path, text) for path, text in files.items() if _current(path) != text]
    for path, text in changed:
        write_file(path, text)
    return [path for path, _ in changed], faults


def check(root: Path, only: str | None = None) -> list[str]:
    """One line per generated file that differs from what the sources give, and per paper that cannot be read.

    only: the paper to whose own files this is restricted.
    """
    files, faults = build(root)
    if only is not None:
        files = {path: text for path, text in files.items() if path.parent == root / "papers" / only}
        faults = {slug: why for slug, why in faults.items() if slug == only}
    lines = [line for path, text in files.items() if (line := _difference(path, text, root))]
    return lines + list(faults.values()) + ([] if only else stray_stages(root, files, faults))


def stray_stages(root: Path, files: Container[Path], unread: Container[str] = ()) -> list[str]:
    """One line per file of DVC that is not generated; that of an unread paper can be compared with nothing.

    DVC reads every one in the checkout, and runs a stage of it for any other stage that depends on what it makes.
    """
    ignored = _current(root / ".dvcignore").split()
    if any(not re.fullmatch(r"[\w.]+", name) for name in ignored):  # a pattern, and nobody knows what it lets through
        ignored = []
    found = []
    for folder, inner, names in os.walk(root):
        inner[:] = [name for name in inner if name not in (".git", ".dvc", *ignored)]
        found += [Path(folder, name) for name in names if name == "dvc.yaml" or name.endswith(".dvc")]
    uncompared = "cannot be compared while its paper cannot be read; run no `dvc repro` before"
    stray = "holds stages of DVC that `repro index` did not write, and `dvc repro` may run them; delete it"

    def of_unread(path: Path) -> bool:
        return path.name == "dvc.yaml" and path.parent.parent == root / "papers" and path.parent.name in unread

    return [
        f"{path.relative_to(root)}: {uncompared if of_unread(path) else stray}"
        for path in sorted(found)
        if path not in files
    ]


def _difference(path: Path, text: str, root: Path) -> str | None:
    now = _current(path)
    if now == text:
        return None
    marked = difflib.unified_diff(now.splitlines(), text.splitlines(), lineterm="", n=0)
    lines = [line for line in marked if line[:1] in "+-" and line[:3] not in ("+++", "---")] or ["line ends"]
    return f"{path.relative_to(root)}: out of date ({len(lines)} lines, first `{lines[0][:80]}`); run `repro index`"
