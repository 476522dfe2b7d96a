"""`python -m dev`: faults put into small checkouts, one by one, and counted: injected, detected, recovered, lost.

    detected    the faulty command failed with one line, tried again, or refused what was damaged
    recovered   the next undisturbed command ends with the rows (or file) of a checkout that nothing befell
    lost        whole records that were not there afterwards or were measured again, and results that came out different

Every fault starts from a copy of the same small checkout (`dev.demo`); kills come at times drawn under a fixed seed.
"""

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from dev.demo import PATIENCE, Checkout, build
from repro.errors import ReproError
from repro.run import provenance
from repro.store import Store, write_file

# Put before every module of a process by its name `sitecustomize`: kills at the n-th step of writing files.
KILL_AT_STEP = """
import os, signal, sys
point, log, count = int(os.environ["CHAOS_STEP"]), os.environ["CHAOS_LOG"], 0
def trap(name):
    real = getattr(os, name)
    def step(*a, **k):
        global count
        count += 1
        if count == point: os.kill(os.getpid(), signal.SIGKILL)
        if point == 0:
            with open(log, "w") as file: file.write(str(count))
        return real(*a, **k)
    setattr(os, name, step)
if "repro.cli" in " ".join(sys.orig_argv): [trap(name) for name in ("fsync", "link", "replace", "unlink")]
"""
JUMPING_CLOCK = """
import random, time
real, draw = time.time, random.Random(0)
time.time = lambda: real() + draw.choice([-1, 1]) * draw.choice([1, 3600, 315360000])
"""


@dataclass
class Fault:
    """One kind of fault, counted."""

    name: str
    injected: int = 0
    detected: int = 0
    recovered: int = 0
    lost: int = 0

    def count(self, detected: bool, recovered: bool, lost: int = 0) -> None:
        self.injected += 1
        self.detected += bool(detected)
        self.recovered += bool(recovered)
        self.lost += lost

    @property
    def ok(self) -> bool:
        return self.injected == self.detected == self.recovered and self.lost == 0


class Place(Checkout):
    """A small checkout with slow trials, what an undisturbed run of it gives, and what is left after a fault."""

    @property
    def rows_path(self) -> Path:
        return self.paper / "results" / "cpu.rows.json"

    def rows(self) -> object:
        """The rows but for their seconds; None where there is no whole file."""
        try:
            return [{**row, "seconds": 0} for row in json.loads(self.rows_path.read_text())["rows"]]
        except (OSError, ValueError):
            return None

    def calls(self) -> list[str]:
        """One line for each trial that ended: arm, seed and depth."""
        path = self.paper / "calls"
        return [" ".join(line.split()[:3]) for line in path.read_text().splitlines()] if path.exists() else []

    def records(self) -> dict[str, bytes]:
        """The whole records of the store by key."""
        store = Store(self.root / ".repro" / "trials")
        paths = sorted(store.root.glob("*/*.json"))
        return {path.stem: path.read_bytes() for path in paths if store.get("sha256:" + path.stem) is not None}

    def leftovers(self) -> int:
        """Temporary files in the store."""
        return len(list((self.root / ".repro" / "trials").glob("*/.*.tmp")))

    def alive(self) -> list[int]:
        """Processes that work in this checkout."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                if Path(os.readlink(entry / "cwd")).is_relative_to(self.root) and entry.name != str(os.getpid()):
                    found.append(int(entry.name))
            except OSError:
                continue
        return found

    def deserted(self) -> bool:
        """Whether every process of this checkout has ended, within a few seconds."""
        deadline = time.monotonic() + 10
        while self.alive() and time.monotonic() < deadline:
            time.sleep(0.1)
        return not self.alive()

    def shim(self, code: str, **environment: str) -> dict[str, str]:
        folder = self.root / "shim"
        folder.mkdir(exist_ok=True)
        (folder / "sitecustomize.py").write_text(code)
        paths = f"{folder}{os.pathsep}{self.environment()['PYTHONPATH']}"
        return {**self.environment(), "PYTHONPATH": paths, **environment}


class Chaos:
    """The faults, each with `runs` repeats where times or places are drawn."""

    def __init__(self, folder: Path, runs: int, say: Callable[[str], None]):
        self.folder, self.runs, self.say, self.draw = folder, runs, say, random.Random(0)
        self.number, self.faults = 0, []
        self.seed = Place(folder / "seed")
        build(self.seed.root)
        self.seed.edit("cpu: {seeds: 3, main: {mode: plain}}", "cpu: {seeds: 3, main: {mode: slow}}")
        whole = self.place()
        began = time.monotonic()
        whole.ok("run", "demo")
        self.span = time.monotonic() - began
        whole.ok("judge", "demo")
        self.whole, self.reference = whole, whole.rows()
        self.keys = set(whole.records())

    @contextmanager
    def fault(self, name: str) -> Iterator[Fault]:
        found = Fault(name)
        self.faults.append(found)
        yield found
        self.say(
            f"{name}: {found.injected} injected, {found.detected} detected, "
            f"{found.recovered} recovered, {found.lost} lost"
        )

    def place(self, source: Place | None = None) -> Place:
        """A fresh copy of the checkout (or of another one)."""
        self.number += 1
        made = Place(self.folder / str(self.number))
        shutil.copytree(
            (source or self.seed).root, made.root, symlinks=True, ignore=shutil.ignore_patterns("__pycache__")
        )
        return made

    def settle(self, place: Place, fault: Fault, detected: bool) -> None:
        """Run undisturbed to the end and compare with what nothing befell."""
        kept, before = place.records(), len(place.calls())
        orphaned = not place.deserted()
        done = place.run("run", "demo", timeout=PATIENCE)
        after = place.records()
        again = len(place.calls()) - before - (len(self.keys) - len(kept))
        lost = sum(after.get(key) != record for key, record in kept.items()) + max(again, 0)
        recovered = done.returncode == 0 and place.rows() == self.reference and set(after) == self.keys
        fault.count(detected and not orphaned, recovered and place.leftovers() == 0, lost)
        shutil.rmtree(place.root)

    # --- kills ---------------------------------------------------------------------------------------------------

    def parent(self) -> None:
        with self.fault("run killed (SIGKILL) at a random time") as fault:
            for _ in range(self.runs):
                place = self.place()
                process = place.start("run", "demo")
                time.sleep(self.draw.uniform(0.1, 0.95) * self.span)
                process.kill()
                process.communicate()
                self.settle(place, fault, process.returncode != 0 or place.rows() == self.reference)

    def writer(self) -> None:
        place = self.place()
        log = self.folder / "steps"
        counting = place.shim(KILL_AT_STEP, CHAOS_STEP="0", CHAOS_LOG=str(log))
        place.run("run", "demo", env=counting, timeout=PATIENCE)
        steps = int(log.read_text())
        with self.fault(f"writer killed at one of its {steps} steps (fsync, link, replace, unlink)") as fault:
            for n in range(self.runs):
                place = self.place()
                step = 1 + (n * (steps - 1)) // max(self.runs - 1, 1)
                done = place.run(
                    "run",
                    "demo",
                    env=place.shim(KILL_AT_STEP, CHAOS_STEP=str(step), CHAOS_LOG=str(log)),
                    timeout=PATIENCE,
                )
                self.settle(place, fault, done.returncode == -signal.SIGKILL)

    def worker(self) -> None:
        with self.fault("worker killed at a random time; the run goes on") as fault:
            for _ in range(self.runs):
                place = self.place()
                process = place.start("run", "demo")
                worker = _child(process, "repro.run.engines.worker")
                time.sleep(self.draw.uniform(0.0, 0.6) * self.span)
                os.kill(worker, signal.SIGKILL)
                process.communicate(timeout=PATIENCE)
                self.settle(place, fault, process.returncode == 0 and place.rows() == self.reference)

    def two_runs(self) -> None:
        with self.fault("two runs at once") as fault:
            for _ in range(max(self.runs // 4, 1)):
                place = self.place()
                both = [place.start("run", "demo") for _ in range(2)]
                for process in both:
                    process.communicate(timeout=PATIENCE)
                self.settle(place, fault, [p.returncode for p in both] == [0, 0] and place.rows() == self.reference)

    # --- files ---------------------------------------------------------------------------------------------------

    def full_disk(self) -> None:
        with self.fault("disk full (RLIMIT_FSIZE) at different sizes") as fault:
            record = max(len(data) for data in self.whole.records().values())
            rows = self.whole.rows_path.stat().st_size
            for limit in (
                64,
                record - 1,
                record + 1,
                rows // 2,
                rows * 9 // 10,
            ):  # seconds have more or fewer digits from run to run
                place = self.place()
                done = place.run(
                    "run",
                    "demo",
                    timeout=PATIENCE,
                    preexec_fn=lambda limit=limit: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
                )
                lines = done.stderr.strip().splitlines()
                self.settle(place, fault, done.returncode != 0 and len(lines) == 1 and place.rows() is None)

    def damage(self, data: bytes) -> bytes:
        """Cut short, or with one bit flipped, or with something behind it."""
        kind, at = self.draw.randrange(4), self.draw.randrange(len(data))
        if kind == 0:
            return data[:at]
        if kind == 1:
            return data + b"\0" * 16
        return data[:at] + bytes([data[at] ^ (1 << self.draw.randrange(8))]) + data[at + 1 :]

    def store(self) -> None:
        with self.fault("trial record truncated, bit-flipped or lengthened") as fault:
            for _ in range(self.runs):
                place = self.place(self.whole)
                path = self.draw.choice(sorted((place.root / ".repro" / "trials").glob("*/*.json")))
                data = path.read_bytes()
                while _means(new := self.damage(data)) == _means(data):  # else nothing was damaged
                    pass
                path.write_bytes(new)
                refused = path.stem not in place.records()
                self.settle(place, fault, refused)

    def results(self) -> None:
        for kind in ("rows", "verdict"):
            with self.fault(f"{kind}.json truncated, bit-flipped or lengthened") as fault:
                for _ in range(self.runs):
                    place = self.place(self.whole)
                    path = place.rows_path.with_name(f"cpu.{kind}.json")
                    data = path.read_bytes()
                    while _means(new := self.damage(data)) == _means(data):
                        pass
                    path.write_bytes(new)
                    refused = place.run("judge", "demo", "--check").returncode != 0
                    repaired = place.run("run", "demo").returncode == 0 and place.run("judge", "demo").returncode == 0
                    same = place.run("judge", "demo", "--check").returncode == 0
                    verdict = self.whole.rows_path.with_name("cpu.verdict.json").read_bytes()
                    same = same and place.rows_path.with_name("cpu.verdict.json").read_bytes() == verdict
                    fault.count(refused, repaired and same and place.rows() == self.reference)
                    shutil.rmtree(place.root)

    def data(self) -> None:
        import gzip
        import hashlib

        from repro.data.sources import Dataset, File, fetch

        content = random.Random(1).randbytes(50_000)
        whole = Dataset("chaos", "", "", "", (File("bytes.u8", len(content), hashlib.sha256(content).hexdigest()),), ())
        with self.fault("data file truncated, bit-flipped or lengthened") as fault:
            for n in range(self.runs):
                folder = self.folder / f"data-{n}" / "chaos"
                folder.mkdir(parents=True)
                (folder / "bytes.u8.gz").write_bytes(gzip.compress(content))
                (folder / "bytes.u8").write_bytes(self.damage(content))
                refused = _refused(lambda folder=folder: whole.read(folder.parent))
                fetch(whole, folder.parent)
                fault.count(refused, bytes(whole.read(folder.parent)["bytes.u8"].numpy()) == content)

    def checkpoint(self) -> None:
        import torch

        from repro import train

        x = torch.randn(64, 4, generator=train.generator("chaos", 0))

        def fit(path: Path | None, steps: int = 8) -> list[float]:
            torch.manual_seed(0)
            model = torch.nn.Linear(4, 2)
            told = train.fit(
                model,
                (x, (x[:, 0] > 0).long()),
                steps=8,
                batch=16,
                lr=0.1,
                seed=0,
                checkpoint=path,
                checkpoint_every=4,
                hook=lambda step, *_: (_ for _ in ()).throw(KeyboardInterrupt) if step == steps else None,
            )
            return [*told.train_loss, *model.weight.flatten().tolist()]

        undisturbed = fit(None)
        with self.fault("checkpoint truncated, bit-flipped or lengthened") as fault:
            for n in range(self.runs):
                path = self.folder / f"{n}.safetensors"
                try:
                    fit(path, 6)
                except KeyboardInterrupt:
                    pass
                data = path.read_bytes()
                path.write_bytes(self.damage(data))
                refused = _refused(lambda path=path: fit(path))
                path.write_bytes(data)
                fault.count(refused, fit(path) == undisturbed)

    # --- time, locks, other programs -----------------------------------------------------------------------------

    def clock(self) -> None:
        with self.fault("clock and file times jump by up to ten years") as fault:
            for _ in range(max(self.runs // 4, 1)):
                place = self.place()
                process = place.start("run", "demo", env=place.shim(JUMPING_CLOCK))
                time.sleep(0.7 * self.span)
                process.kill()
                process.communicate()
                for path in (place.root / ".repro").rglob("*.json"):
                    os.utime(path, times=(time.time() + self.draw.choice([-1, 1]) * 3e8,) * 2)
                self.settle(place, fault, process.returncode != 0 or place.rows() == self.reference)

    def locks(self) -> None:
        with self.fault("stale locks and temporary files of dead processes") as fault:
            for _ in range(max(self.runs // 4, 1)):
                place = self.place()
                state = place.root / ".repro"
                holder = subprocess.Popen(
                    [
                        sys.executable,
                        "-c",
                        "import fcntl, sys, time; f = open(sys.argv[1], 'a'); fcntl.flock(f, 2); "
                        "print(1, flush=True); time.sleep(600)",
                        str(state / "machine.lock"),
                    ],
                    stdout=subprocess.PIPE,
                    preexec_fn=lambda state=state: state.mkdir(exist_ok=True),
                )
                holder.stdout.readline()
                holder.kill()
                holder.communicate()
                (state / "trials" / "ab").mkdir(parents=True)
                (state / "trials" / "ab" / f".x.json.{holder.pid}.0011.tmp").write_text("half")
                self.settle(place, fault, (state / "machine.lock").exists())

    def dvc(self) -> None:
        with self.fault("DVC killed (SIGKILL) while its stage runs") as fault:
            for _ in range(max(self.runs // 5, 1)):
                place = self.place()
                place.ok("index")
                _dvc(place, "init", "--no-scm", "-q").communicate(timeout=PATIENCE)
                process = _dvc(place, "repro", "papers/demo")
                deadline = time.monotonic() + PATIENCE
                while len(place.calls()) < 3 and process.poll() is None and time.monotonic() < deadline:
                    time.sleep(0.05)
                process.kill()
                process.communicate()
                deserted, before = place.deserted(), place.records()
                again = _dvc(place, "repro", "papers/demo")
                again.communicate(timeout=PATIENCE)
                after = place.records()
                lost = sum(after.get(key) != record for key, record in before.items())
                fault.count(
                    deserted and process.returncode != 0, again.returncode == 0 and place.rows() == self.reference, lost
                )
                shutil.rmtree(place.root)

    def kernel(self) -> None:
        notebooks = provenance.root() / "notebooks"
        if not notebooks.is_dir():
            raise ReproError(f"{notebooks}: no notebooks; run this in a checkout of the suite")
        with self.fault("papermill's kernel killed while a page renders") as fault:
            shutil.copytree(notebooks, self.whole.root / "notebooks")
            self.whole.ok("report", "demo")
            page = Path("reports") / "papers" / "demo.html"
            reference = (self.whole.root / page).read_bytes()
            for n in range(max(self.runs // 5, 1)):
                place = self.place(self.whole)
                if n % 2:
                    (place.root / page).unlink()
                process = place.start("report", "demo")
                kernel = _child(process, "ipykernel_launcher")
                if kernel:
                    os.kill(kernel, signal.SIGKILL)
                process.communicate(timeout=PATIENCE)
                left = (place.root / page).read_bytes() if (place.root / page).exists() else None
                again = place.run("report", "demo", timeout=PATIENCE)
                # The page names no folder, so the same bytes are due in every checkout.
                fault.count(
                    kernel is not None and process.returncode != 0 and left == (None if n % 2 else reference),
                    again.returncode == 0 and (place.root / page).read_bytes() == reference,
                )
                shutil.rmtree(place.root)


def _means(data: bytes) -> object:
    """What a JSON file says; None where it is not JSON."""
    try:
        return json.loads(data)
    except ValueError:
        return None


def _refused(read: Callable[[], object]) -> bool:
    try:
        read()
    except ReproError:
        return True
    return False


def _dvc(place: Place, *words: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "dvc", *words],
        cwd=place.root,
        env=place.environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def _child(process: subprocess.Popen, words: str) -> int | None:
    """The first descendant of a process whose command line holds these words, as soon as there is one."""
    deadline = time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < deadline:
        parents = {}
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                parents[int(entry.name)] = (
                    int((entry / "stat").read_text().rpartition(")")[2].split()[1]),
                    (entry / "cmdline").read_text(),
                )
            except (OSError, ValueError):
                continue
        for pid, (parent, command) in parents.items():
            while parent in parents and parent != process.pid:
                parent = parents[parent][0]
            if parent == process.pid and words in command:
                return pid
        time.sleep(0.05)
    return None


FAULTS = (
    "parent",
    "writer",
    "worker",
    "two_runs",
    "full_disk",
    "store",
    "results",
    "data",
    "checkpoint",
    "clock",
    "locks",
    "dvc",
    "kernel",
)


def run(runs: int = 20, only: list[str] | None = None, say: Callable[[str], None] = print) -> list[Fault]:
    """Inject every kind of fault (or `only` these of FAULTS) and count."""
    if unknown := sorted(set(only or ()) - set(FAULTS)):
        raise ReproError(f"--only {unknown[0]}: unknown fault; write one of {', '.join(FAULTS)}")
    with tempfile.TemporaryDirectory(prefix="repro-chaos-") as folder:
        chaos = Chaos(Path(folder), runs, say)
        for name in only or FAULTS:
            getattr(chaos, name)()
        return chaos.faults


def table(faults: list[Fault]) -> list[list[str]]:
    """What happened, one line a fault and one in all."""
    total = Fault("all")
    for fault in faults:
        for name in ("injected", "detected", "recovered", "lost"):
            setattr(total, name, getattr(total, name) + getattr(fault, name))
    return [[f.name, str(f.injected), str(f.detected), str(f.recovered), str(f.lost)] for f in [*faults, total]]


HEAD = ["fault", "injected", "detected", "recovered", "lost"]
BEGIN, END = "<!-- GENERATED by `python -m dev --write` -->", "<!-- end of GENERATED -->"


def write(path: Path, head: list[str], lines: list[list[str]], command: str) -> None:
    """Put a table between the marks of a Markdown file, with the date and the command that made it."""
    text = path.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or END not in text.split(BEGIN)[1]:
        raise ReproError(f"{path}: no place for the table; write a line {BEGIN} and after it a line {END}")
    rows = ["| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *lines]]
    made = [BEGIN, f"`{command}`, {datetime.now(UTC).date().isoformat()}, {provenance.cpu()['model']}:", "", *rows]
    before, _, rest = text.partition(BEGIN)
    write_file(path, before + "\n".join(made) + "\n" + END + rest.partition(END)[2])
