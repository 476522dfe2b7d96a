"""`make reproduce PAPER=...`: measure a paper here, apart from what is committed, and compare claim by claim.

Everything lies in a small checkout of its own, `.repro/here/<profile>`: the paper's files, its rows, its verdict, its
page, and a store that holds nothing but what was measured here.  Git sees none of it.
"""

import dataclasses
import importlib
import json
import shutil
import typing
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from repro import data, judge
from repro.errors import ReproError
from repro.files.paths import results, results_name
from repro.files.verdict import read_verdict, stored
from repro.judge import quality
from repro.run import measure, plan, progress, provenance
from repro.spec import load as spec
from repro.spec.model import Paper
from repro.store import Store, rows_digest, write_file
from repro.words import verdict_words

Say = Callable[[str], None]


@dataclass(frozen=True)
class Compared:
    """One claim or identity: its state here and the committed one."""

    name: str
    headline: bool
    here: str
    committed: str | None
    outcome: str  # agrees, differs, could not be measured here, not committed
    why: str = ""

    def cells(self) -> list[str]:
        return [self.name + "*" * self.headline, self.here, self.committed or "none", self.outcome]


@dataclass(frozen=True)
class Reproduced:
    """What was made here, and how it compares."""

    paper: str
    profile: str
    rows: Path
    verdict: Path
    page: Path | None
    compared: list[Compared]

    def plain(self) -> dict[str, Any]:
        return {**asdict(self), "rows": str(self.rows), "verdict": str(self.verdict), "page": str(self.page or "")}

    def summary(self) -> str:
        """One sentence on all claims."""
        outcomes = [one.outcome for one in self.compared]
        parts = [f"{outcomes.count(kind)} {kind}" for kind in dict.fromkeys(outcomes)]
        return f"{self.paper} {self.profile}, {len(outcomes)} statements: {', '.join(parts)}."


def reproduce(
    slug: str, profile: str, root: Path, say: Say, device: str | None = None, jobs: int | None = None, page: bool = True
) -> Reproduced:
    """Measure and judge one paper at one profile apart from the committed results, and compare with them."""
    paper = spec.load(slug)
    if profile not in paper.profiles or profile == "smoke":
        judged = [p for p in paper.profiles if p != "smoke"]
        raise ReproError(f"--profile {profile}: {slug} has no verdict at it; write one of {', '.join(judged)}")
    for name in data_sets(paper, profile):
        say(f"data {name}: {data.fetch(name)}")
    here = prepare(slug, profile, root)
    rows, verdict = (results(slug, profile, kind, here) for kind in ("rows", "verdict"))
    params = spec.load_params(root)
    where = measure.resolve_device(device or params.device, profile)
    document = measure.measure(
        plan.entry(paper, profile, params.seeds),
        store=Store(root / ".repro" / "here" / "trials"),
        state=root / ".repro",
        device=where,
        jobs=jobs or measure.default_jobs(where),
        progress=progress.choose() if say.__module__ == "repro.commands.common" else measure.Progress(say=say),
    )
    measure.write_rows(rows, document)
    fresh = judge.judge(paper, profile, document)
    write_file(verdict, json.dumps(fresh, indent=1, allow_nan=False, ensure_ascii=False) + "\n")
    write_file(results(slug, profile, "quality", here), quality.text(quality.assess(paper, profile, document)))
    made = None
    if page:
        from repro.report import render_paper

        made = render_paper(slug, here)
    try:
        provenance.git("rev-parse", "HEAD", folder=root)
    except ReproError as error:
        say(f"note: compared with the verdict that lies in papers/{slug}/results, which may be no commit's: {error}")
    return Reproduced(
        slug, profile, rows, verdict, made, compare(paper, fresh, document, committed(slug, profile, root))
    )


def prepare(slug: str, profile: str, root: Path) -> Path:
    """The small checkout in which the results of this machine lie, with the paper's files as they are now."""
    here = root / ".repro" / "here" / profile
    folder = here / "papers" / slug
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted((root / "papers" / slug).iterdir()):
        if path.is_file():
            shutil.copyfile(path, folder / path.name)
    (here / "notebooks").mkdir(exist_ok=True)
    for path in (root / "notebooks").glob("*.ipynb"):
        shutil.copyfile(path, here / "notebooks" / path.name)
    return here


def data_sets(paper: Paper, profile: str) -> list[str]:
    """The data sets that the experiments of one paper read: those that they import, and those that their settings name.

    `repro.tasks` imports every set of pictures and texts; of these the settings `data` and `text` choose one.
    """
    known, found = set(data.names()), set()
    for name in paper.experiments_in(profile):
        setting = paper.settings(profile, name)
        modules = provenance.experiment_modules(paper.slug, {"module": setting.module, "arms": setting.arms})
        for module, path in provenance.closure(*modules).items():
            if module != "repro.tasks" and not module.startswith("repro.data."):
                found |= {part.rpartition(".")[2] for part in provenance.imports(path, module) if "repro.data." in part}
        chosen = {**_defaults(modules[0], setting.function or name), **setting.config}
        found |= {chosen[key] for key in ("data", "text") if isinstance(chosen.get(key), str)}
    return sorted(found & known)


def _defaults(module: str, function: str) -> dict[str, object]:
    """What the Config of an experiment says of its data where paper.yaml is silent."""
    experiment = importlib.import_module(module)
    for name in (function, f"{function}_group", f"{function}_batch"):
        if callable(one := getattr(experiment, name, None)):
            kind = typing.get_type_hints(one).get("config")
            return {f.name: f.default for f in dataclasses.fields(kind)} if dataclasses.is_dataclass(kind) else {}
    return {}


def committed(slug: str, profile: str, root: Path) -> dict | None:
    """The verdict of git's HEAD, or where there is no git that of the paper's folder; None where there is none.

    A verdict whose rows are not beside it counts as none.
    """
    path, name = results(slug, profile, "verdict", root), results_name(slug, profile, "verdict")
    try:
        raw, rows = (
            provenance.git("show", f"HEAD:./{results_name(slug, profile, kind)}", folder=root)
            for kind in ("verdict", "rows")
        )
    except ReproError:
        pass
    else:
        try:
            verdict = read_verdict(path, "", name, raw=raw.encode())
            return verdict if rows_digest(json.loads(rows)["rows"]) == verdict["rows_digest"] else None
        except (ReproError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None
    try:
        found = stored(slug, profile, root)
    except ReproError:
        return None
    return found[0] if found else None


def compare(paper: Paper, fresh: dict, document: dict, before: dict | None) -> list[Compared]:
    """Every claim and identity beside the committed verdict."""
    found = []
    for kind in ("claims", "identities"):
        known = (before or {}).get(kind) or {}
        for name, judged in (fresh.get(kind) or {}).items():
            claim = paper.claims.get(name)
            fidelity = claim.fidelity if claim else None
            there = known.get(name) or {}
            outcome, why = _outcome(judged, there, _invalid(paper, name, document))
            found.append(
                Compared(
                    name,
                    name == fresh["headline"],
                    verdict_words(judged["state"], judged.get("mark"), fidelity),
                    verdict_words(there["state"], there.get("mark"), fidelity) if there.get("state") else None,
                    outcome,
                    why,
                )
            )
    return found


def _outcome(judged: dict, there: dict, invalid: str | None) -> tuple[str, str]:
    if invalid and judged["state"] != there.get("state"):
        return "could not be measured here", invalid
    if not there.get("state"):
        return "not committed", ""
    if judged["state"] == there["state"]:
        return "agrees", ""
    return "differs", str(judged.get("why", ""))


def _invalid(paper: Paper, name: str, document: dict) -> str | None:
    """Why rows of a claim, or of its controls, are no measurements on this machine, and what would help."""
    claim = paper.claims.get(name) or paper.identities.get(name)
    places = {claim.experiment, *(getattr(c, "experiment", None) for c in claim.controls)}
    bad = [row for row in document["rows"] if row["experiment"] in places and row["status"] == "invalid"]
    if not bad:
        return None
    help_ = (
        "End what else runs on this machine, or raise the number of blocks in paper.yaml, and run the command again."
    )
    return f"{len(bad)} measurements failed their own check ({bad[0].get('why', 'no reason given')}). {help_}"
