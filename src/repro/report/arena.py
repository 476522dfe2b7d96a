"""The page of one track of the arena: rankings with ties, learning-rate curves, costs; read from its stored table."""

from pathlib import Path
from typing import Any

import repro
from repro import words
from repro.arena import protocol as arena
from repro.errors import ReproError
from repro.report import figures
from repro.report.figures import Group
from repro.report.templates import Fragment, part

SLOT_NAMES = {
    "norm": "norms",
    "act": "activations",
    "placement": "placements of the norm",
    "init": "initializations",
    "weight": "parameterizations of weights",
    "optimizer": "optimizers",
}


def tables(root: Path) -> list[dict[str, Any]]:
    """Every stored table, by track and profile."""
    names = sorted(path.name.split(".")[:2] for path in (Path(root) / "arena").glob("*.table.json"))
    return [arena.read(Path(root), track, profile, "table") for track, profile in names]


def told(arm: str) -> str:
    """`rmsnorm RMSNorm` of `norm:rmsnorm.RMSNorm`."""
    if arm == "base":
        return "unchanged model"
    return arm.partition(":")[2].replace("control.", "control: ").replace(".", " ")


def ranks(line: dict[str, Any]) -> str:
    low, high = line["rank"]
    return str(low) if low == high else f"{low}–{high}"


class TrackView:
    """One table as the template shows it."""

    def __init__(self, made: dict[str, Any]):
        self.made = made
        self.methods = {m["arm"]: m for m in made["methods"]}

    def section(self) -> dict[str, Any]:
        m = self.made
        cells = [self.cell(i, cell) for i, cell in enumerate(m["cells"])]
        return {
            **{
                k: m[k]
                for k in (
                    "track",
                    "profile",
                    "what",
                    "measure",
                    "target",
                    "margin",
                    "level",
                    "seeds",
                    "steps",
                    "device",
                    "rows_digest",
                )
            },
            "cells": cells,
            "curves": self.curves(),
            "costs": self.costs(),
            "out": [(told(arm), why) for arm, why in m["out"].items()],
            "settings": words.levels(m["settings"]),
        }

    def cell(self, index: int, cell: dict[str, Any]) -> dict[str, Any]:
        slots = []
        for slot, found in cell["slots"].items():
            lines = [
                {
                    **line,
                    "told": told(line["arm"]),
                    "ranks": ranks(line),
                    "slug": _slug(line["arm"]),
                    "lr": self.methods[line["arm"]]["lr"],
                    "step_seconds": self.methods[line["arm"]]["step_seconds"],
                }
                for line in found["ranking"]
            ]
            slots.append(
                {
                    "slot": slot,
                    "name": SLOT_NAMES.get(slot, slot),
                    "lines": lines,
                    "verdict": found["discriminates"],
                    "figure": self.figure(index, slot, found["ranking"]),
                }
            )
        return {"told": words.levels(cell["changed"]) if cell["changed"] else "", "slots": slots}

    def figure(self, index: int, slot: str, ranking: list[dict]) -> dict[str, str]:
        """Difference from the best with its simultaneous interval, one row per method."""
        groups = [Group(told(line["arm"]), _role(line["arm"]), {}, (), _triple(line["gap"])) for line in ranking]
        groups = [g for g in groups if g.interval]
        if len(groups) < 2:
            return {"svg": "", "caption": ""}
        text = " ".join(
            f"{g.label}: {words.number(g.interval[1])}, {words.number(g.interval[0])} to {words.number(g.interval[2])}."
            for g in groups
        )
        drawing = figures.dots(
            groups,
            name=f"{self.made['track']}-{self.made['profile']}-{index}-{slot}",
            limits=[0.0],
            axis=f"{self.made['measure']} less that of the best",
            title=f"Difference from the best, {slot}",
            description=text,
        )
        return {
            "svg": drawing,
            "caption": f"Mean difference from the best and its simultaneous {self.made['level']:.0%} interval; the line is the best itself.",
        }

    def curves(self) -> list[dict[str, str]]:
        """Loss on the tuning seeds over the learning rate, per slot."""
        found = []
        for slot in dict.fromkeys(m["slot"] for m in self.made["methods"] if m["arm"] != "base"):
            groups = []
            for m in self.made["methods"]:
                points = [(s["lr"], s["mean"]) for s in m["sensitivity"] if s["mean"] is not None]
                if points and (m["slot"] == slot or m["arm"] == "base"):
                    groups.append(Group(told(m["arm"]), _role(m["arm"]), lines={0: points}))
            if not groups:
                continue
            text = " ".join(
                f"{g.label}: best {words.number(min(y for _, y in g.lines[0]))} at {min(g.lines[0], key=lambda p: p[1])[0]:g}."
                for g in groups
            )
            drawing = figures.lines(
                groups,
                name=f"{self.made['track']}-{self.made['profile']}-lr-{slot}",
                axis=self.made["measure"],
                across="learning rate",
                title=f"Learning-rate sensitivity, {slot}",
                description=text,
                marks=True,
                log_x=True,
            )
            caption = f"{SLOT_NAMES.get(slot, slot)}: mean over the tuning seeds after the first rung. Rates at which a seed diverged have no point."
            found.append({"svg": drawing, "caption": caption})
        return found

    def costs(self) -> list[dict[str, Any]]:
        return [{**m, "told": told(m["arm"]), "slug": _slug(m["arm"])} for m in self.made["methods"]]


def _slug(arm: str) -> str | None:
    place = arm.partition(":")[2].partition(".")[0]
    return place if place and place != "control" else None


def _role(arm: str) -> str:
    return "control" if ":control." in arm else "against" if arm == "base" else "method"


def _triple(gap: list[float | None]) -> tuple[float, float, float] | None:
    mean, low, high = gap
    return None if low is None or high is None else (low, mean, high)


class ArenaPage:
    """What the notebook's cells call for one track."""

    def __init__(self, track: str, root: str | Path = "."):
        self.track = track
        self.views = [TrackView(made) for made in tables(Path(root)) if made["track"] == track]
        if not self.views:
            raise ReproError(f"arena: track {track} has not been run; `repro arena --track {track}` measures it")

    def page(self) -> Fragment:
        """The whole page."""
        return part(
            "arena.html.j2",
            "page",
            {"track": self.track, "version": repro.__version__, "views": [v.section() for v in self.views]},
        )


def summary(root: Path) -> list[dict[str, Any]]:
    """Per track, profile and slot the methods that share the first rank: what the comparison page shows."""
    lines = []
    for made in tables(root):
        for slot, found in made["cells"][0]["slots"].items():
            first = [line for line in found["ranking"] if line["rank"][0] == 1 and ":control." not in line["arm"]]
            judged = found["discriminates"]
            lines.append(
                {
                    "track": made["track"],
                    "profile": made["profile"],
                    "what": made["what"],
                    "slot": slot,
                    "name": SLOT_NAMES.get(slot, slot),
                    "first": [told(line["arm"]) for line in first],
                    "of": len(found["ranking"]),
                    "seeds": made["seeds"],
                    "device": made["device"],
                    "discriminates": judged is None or judged["ok"],
                }
            )
    return lines
