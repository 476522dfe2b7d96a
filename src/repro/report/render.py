"""Papermill runs a notebook, nbconvert's exporter with the template beside this file makes it one HTML file."""

import base64
import contextlib
import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from repro.errors import Failed, ReproError
from repro.publish.export import as_csv
from repro.report.records import Current, claim_lines, current, frame, load_paper, readable, record
from repro.store import write_file

HERE = Path(__file__).parent
TIMEOUT = 300  # seconds per cell; a page takes a few


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    names = ("papermill", "papermill.translators", "traitlets", "nbclient")
    before = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)


SOCKET = 100  # bytes that the path of a socket may have; Linux takes 107, macOS 103


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    """A temporary folder whose path is short enough for the kernel's sockets, however long TMPDIR is."""
    wanted = [None, *(place for place in ("/tmp", "/var/tmp", "/dev/shm") if os.access(place, os.W_OK))]
    for place in wanted:
        try:
            folder = tempfile.mkdtemp(prefix="repro-report-", dir=place)
        except OSError as error:
            if place == wanted[-1]:
                raise ReproError(f"no temporary folder can be made: {error.strerror or error}") from None
            continue
        if len(f"{folder}/kernel.json-ipc-9") <= SOCKET or place == wanted[-1]:
            break
        os.rmdir(folder)
    try:
        yield Path(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _kernel(folder: Path) -> Any:
    """A kernel that talks through sockets in `folder` (no port is opened) and reads nobody's own IPython settings.

    Where even the shortest folder has too long a path for a socket, it talks through ports of this machine.
    """
    from traitlets.config import Config

    short = os.name == "posix" and len(f"{folder}/kernel.json-ipc-9") <= SOCKET
    transport = {"transport": "ipc"} if short else {}
    return Config(KernelManager={"connection_file": str(folder / "kernel.json"), **transport})


def _run(notebook: Path, parameters: dict[str, Any], timeout: int) -> Any:
    """The notebook's cells with their outputs; it never lies half-done anywhere but in a temporary folder."""
    if not notebook.is_file():
        raise ReproError(f"{notebook}: no such notebook; run from a checkout of the suite")
    try:
        import papermill
        from papermill.exceptions import PapermillExecutionError
    except ImportError as error:
        raise ReproError(
            "reports need papermill and nbconvert: run `make setup`, or `uv pip install -e '.[suite]'`"
        ) from error

    with _folder() as folder, _quiet():
        try:
            return papermill.execute_notebook(
                str(notebook),
                str(folder / notebook.name),
                parameters=parameters,
                kernel_name="python3",
                cwd=str(folder),
                progress_bar=False,
                log_output=False,
                start_timeout=60,
                execution_timeout=timeout,
                extra_arguments=[f"--ipython-dir={folder}"],
                config=_kernel(folder),
            )
        except PapermillExecutionError as error:
            why = str(error.evalue).strip().splitlines() or ["no message"]
            raise Failed(f"{notebook}: {error.ename}: {why[0]}") from error
        except RuntimeError as error:  # nbclient's DeadKernelError, and a kernel that never answers
            why = str(error).strip().splitlines() or ["no message"]
            hint = "it may have run out of memory; close other programs, or render one paper at a time"
            raise Failed(f"{notebook}: the kernel died: {why[0].rstrip('.')}; {hint}") from error
        except OSError as error:
            raise Failed(f"{notebook}: the kernel cannot be started: {error.strerror or error}") from error


def _export(executed: Any, title: str) -> str:
    """One self-contained HTML document; nothing of papermill's metadata gets into it."""
    from nbconvert.exporters import HTMLExporter

    exporter = HTMLExporter(template_file=str(HERE / "page.html.j2"), preprocessors=[])
    style, script = ((HERE / name).read_text(encoding="utf-8") for name in ("style.css", "page.js"))
    sha256 = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()  # the one script that the page may run
    resources = {"metadata": {"name": title}, "style": style, "script": script, "script_sha256": sha256}
    body, _ = exporter.from_notebook_node(executed, resources=resources)
    return body.rstrip() + "\n"


def render_paper(slug: str, root: Path | str, *, current: Current = current, timeout: int = TIMEOUT) -> Path:
    """Render `reports/papers/<slug>.html` and return its path.

    Equal inputs give equal bytes.  `current(paper, profile)` tells the digests as of now, against which rows are found
    stale (default: of this checkout).  Raises `Failed` where a cell fails, `ReproError` where something is missing.
    """
    root = Path(root).resolve()
    paper = load_paper(slug, root)
    one = record(slug, root, current=current)
    stale = {profile: result.stale for profile, result in one.results.items()}
    done = _run(root / "notebooks" / "paper.ipynb", {"slug": slug, "root": str(root), "stale": stale}, timeout)
    path = root / "reports" / "papers" / f"{slug}.html"
    write_file(path, _export(done, f"{paper.title} · repro"))
    return path


def render_index(root: Path | str, *, current: Current = current, timeout: int = TIMEOUT) -> Path:
    """Render `reports/index.html`, all papers side by side, and return its path."""
    root = Path(root).resolve()
    good, _ = readable(root, current=current)
    stale = {one.slug: {p: r.stale for p, r in one.results.items()} for one in good}
    done = _run(root / "notebooks" / "comparison.ipynb", {"root": str(root), "stale": stale}, timeout)
    _write_rows(root)
    lines = [line for one in good for line in claim_lines(one)]
    write_file(root / "reports" / "verdicts.csv", as_csv(lines))
    path = root / "reports" / "index.html"
    write_file(path, _export(done, "What reproduces, and what does not · repro"))
    return path


def _write_rows(root: Path) -> None:
    """Every row of every paper as `reports/rows.csv.gz` and `rows.parquet`, one line per measure; curves as JSON."""
    import gzip
    import io
    import json

    table = frame(root)
    for column in ("factors", "curve"):
        table[column] = [None if value is None else json.dumps(value) for value in table[column]]
    text = table.to_csv(index=False, lineterminator="\n")
    write_file(root / "reports" / "rows.csv.gz", gzip.compress(text.encode(), mtime=0))  # equal rows, equal bytes
    packed = io.BytesIO()
    table.to_parquet(packed, index=False)
    write_file(root / "reports" / "rows.parquet", packed.getvalue())


def render_arena(track: str, root: Path | str, *, timeout: int = TIMEOUT) -> Path:
    """Render `reports/arena/<track>.html`, one track of the arena at every profile, and return its path."""
    root = Path(root).resolve()
    done = _run(root / "notebooks" / "arena.ipynb", {"track": track, "root": str(root)}, timeout)
    path = root / "reports" / "arena" / f"{track}.html"
    write_file(path, _export(done, f"Arena: {track} · repro"))
    return path


def render_question(name: str, root: Path | str, *, current: Current = current, timeout: int = TIMEOUT) -> Path:
    """Render `reports/questions/<name>.html`, one question that people dispute, and return its path."""
    from repro.files.questions import read_question

    root = Path(root).resolve()
    question = read_question(root, name)
    slugs = sorted({one["claim"].partition("/")[0] for one in question["claims"]})
    found = [record(slug, root, current=current) for slug in slugs]
    stale = {one.slug: {profile: result.stale for profile, result in one.results.items()} for one in found}
    done = _run(root / "notebooks" / "question.ipynb", {"name": name, "root": str(root), "stale": stale}, timeout)
    path = root / "reports" / "questions" / f"{name}.html"
    write_file(path, _export(done, f"{question['question']} · repro"))
    return path
