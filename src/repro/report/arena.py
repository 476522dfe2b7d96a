"""The page of one track of the arena: every method against the tuned base, read from its stored table."""

from pathlib import Path
from typing import Any

import repro
from repro import words
from repro.arena import protocol as arena
from repro.arena import table
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
    "feed_forward": "feed-forward layers",
    "attention": "attentions",
    "optimizer": "optimizers",
    "pair": "norms under another optimizer",
}
STANDINGS = {  # of a line -> the badge that it has
    "better": "reproduced",
    "as good": "reproduced",
    "worse": "not_reproduced",
    "fails": "not_reproduced",
    "no better than a control": "not_reproduced",
    "not told apart": "inconclusive",
    "the base": "not_run",
}


def tables(root: Path) -> list[dict[str, Any]]:
    """Every stored table, by track and profile."""
    names = sorted(path.name.split(".")[:2] for path in (Path(root) / "arena").glob("*.table.json"))
    return [arena.read(Path(root), track, profile, "table") for track, profile in names]


def told(arm: str) -> str:
    """`rmsnorm RMSNorm` of `norm:rmsnorm.RMSNorm`; `SOAP (pytorch_optimizer)` of what no paper of the suite holds."""
    if arm == "base":
        return "unchanged model"
    module, _, name = arm.partition(":")[2].partition(".")
    if module in table.LIBRARIES:
        return name if module == "models" else f"{name} ({module})"
    return f"control: {name}" if module == "control" else f"{module} {name}"


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
        kept = ("track", "profile", "what", "measure", "margin", "level", "seeds", "tuning_seeds", "device")
        return {
            **{k: m[k] for k in (*kept, "rows_digest")},
            "cells": [self.cell(i, cell) for i, cell in enumerate(m["cells"])],
            "map": self.map(),
            "costs": [
                {**one, "told": told(one["arm"]), "slug": self.slug(one["arm"])}
                for one in m["methods"]
                if one["step_seconds"] is not None
            ],
            "out": [(told(arm), why) for arm, why in m["out"].items()],
            "settings": words.levels(m["settings"]),
            "absent": [
                (words.levels(one["at"]), ", ".join(SLOT_NAMES.get(slot, slot) for slot in one["slots"]))
                for one in m["absent"]
            ],
        }

    def slug(self, arm: str) -> str | None:
        """The paper that an arm comes from, which has a page."""
        return arm.partition(":")[2].partition(".")[0] if self.methods[arm]["source"] == "paper" else None

    def cell(self, index: int, cell: dict[str, Any]) -> dict[str, Any]:
        slots = []
        for slot, one in cell["slots"].items():
            slots.append(
                {
                    "slot": slot,
                    "id": f"{self.made['profile']}-{index}-{slot}",
                    "name": SLOT_NAMES.get(slot, slot),
                    "lines": [self.line(line) for line in one["lines"]],
                    "reference": self.reference(one),
                    "decayed": any(len(line["decays"]) > 1 for line in one["lines"]),
                    "usable": one["usable"],
                    "why": one["why"],
                    "figures": [f for f in (self.gaps(index, slot, one), *self.curves(index, slot, one)) if f["svg"]],
                }
            )
        same = [(told(arm), why) for arm, why in cell["same"].items()]
        contrasts = [
            {**c, "told": f"{told(c['worse'])} is worse than {told(c['better'])}"} for c in cell["calibration"]
        ]
        pairs = [{**one, **{k: told(one[k]) for k in ("norm", "optimizer")}} for one in cell["interactions"]]
        return {
            **cell,
            "told": words.levels(cell["at"]),
            "slots": slots,
            "same": same,
            "calibration": contrasts,
            "interactions": pairs,
        }

    def line(self, line: dict[str, Any]) -> dict[str, Any]:
        arm = line["arm"]
        extra = {"told": told(arm), "ranks": ranks(line), "slug": self.slug(arm)}
        return {
            **line,
            **extra,
            "badge": STANDINGS[line["standing"]],
            "controls": [told(c) for c in line["no_better_than"]],
        }

    def reference(self, slot: dict[str, Any]) -> str:
        """What the methods of a slot are compared with, in words."""
        return "the tuned base" if slot["reference"] == "base" else "the base’s AdamW with its decay tuned"

    def map(self) -> dict[str, Any]:
        """Methods by cells: in one look, where each is better, as good, worse or not told apart."""
        arms = [m["arm"] for m in self.made["methods"] if not m["control"] and m["arm"] != "base"]
        lines = []
        for arm in arms:
            found = []
            for cell in self.made["cells"]:
                slot = cell["slots"].get(arm.partition(":")[0])
                one = next((x for x in slot["lines"] if x["arm"] == arm), None) if slot else None
                if arm in cell["same"]:
                    found.append(("the same model", "not_run"))
                elif one is None:
                    found.append(("not measured", "not_run"))
                elif not slot["usable"]:
                    found.append(("not usable", "not_run"))
                else:
                    found.append((one["standing"], STANDINGS[one["standing"]]))
            if any(text != "not measured" for text, _ in found):  # else a method of a known contrast alone
                lines.append({"told": told(arm), "slug": self.slug(arm), "slot": arm.partition(":")[0], "cells": found})
        return {"heads": [words.levels(cell["at"]) for cell in self.made["cells"]], "lines": lines}

    def gaps(self, index: int, slot: str, one: dict[str, Any]) -> dict[str, str]:
        """Difference from the reference with its simultaneous interval, one row per method."""
        groups, reference = [], self.reference(one)
        for line in one["lines"]:
            mean, low, high = line["gap"]
            if low is not None:
                groups.append(Group(told(line["arm"]), _role(line), interval=(low, mean, high)))
        if not groups:
            return {"svg": "", "caption": ""}
        text = " ".join(
            f"{g.label}: {words.number(g.interval[1])}, {words.number(g.interval[0])} to {words.number(g.interval[2])}."
            for g in groups
        )
        drawing = figures.dots(
            groups,
            name=f"{self.made['track']}-{self.made['profile']}-{index}-{slot}",
            limits=[0.0],
            axis=f"{self.made['measure']} less that of {reference}",
            title=f"Difference from {reference}, {slot}",
            description=text,
        )
        caption = (
            f"Mean difference from {reference}; a negative one means that the method is better. The intervals hold "
            f"for all methods of the slot at once ({words.percent(self.made['level'])}); the line is {reference}."
        )
        return {"svg": drawing, "caption": caption}

    def curves(self, index: int, slot: str, one: dict[str, Any]) -> list[dict[str, str]]:
        """Loss over the steps, and over the learning rate: the base, a control and the best methods."""
        lines = [line for line in one["lines"] if not line["control"] and line["standing"] != "the base"][:4]
        lines += [line for line in one["lines"] if line["standing"] == "the base"]
        lines += [line for line in one["lines"] if line["control"]][:1]
        name, measure = f"{self.made['track']}-{self.made['profile']}-{index}-{slot}", self.made["measure"]
        drawn = []
        for kind, across, points in (
            ("curve", "steps", lambda line: [tuple(p[:2]) for p in line["curve"]]),
            (
                "lr",
                "learning rate",
                lambda line: [(t["lr"], t["mean"]) for t in line["tuning"] if t["mean"] is not None],
            ),
        ):
            groups = [Group(told(x["arm"]), _role(x), lines={0: points(x)}) for x in lines if points(x)]
            if not groups:
                continue
            text = " ".join(f"{g.label}: least {words.number(min(y for _, y in g.lines[0]))}." for g in groups)
            caption = {
                "curve": "Mean validation loss over the judged seeds, step by step.",
                "lr": "Mean over the tuning seeds at every rate that was tried; a rate at which a seed diverged has no "
                "point.",
            }[kind]
            drawing = figures.lines(
                groups,
                name=f"{name}-{kind}",
                axis=measure,
                across=across,
                title=f"{measure} over {across}, {slot}",
                description=text,
                marks=kind == "lr",
                log_x=kind == "lr",
            )
            drawn.append({"svg": drawing, "caption": f"{caption} The base, the four best methods and a control."})
        return drawn


def _role(line: dict[str, Any]) -> str:
    return "control" if line["control"] else "against" if line["standing"] == "the base" else "method"


class ArenaPage:
    """What the notebook's cells call for one track."""

    def __init__(self, track: str, root: str | Path = "."):
        self.track = track
        self.views = [TrackView(made) for made in tables(Path(root)) if made["track"] == track]
        if not self.views:
            raise ReproError(f"arena: track {track} has not been run; `repro arena --track {track}` measures it")

    def page(self) -> Fragment:
        """The whole page."""
        views = [view.section() for view in self.views]
        return part("arena.html.j2", "page", {"track": self.track, "version": repro.__version__, "views": views})


def summary(root: Path) -> list[dict[str, Any]]:
    """Per track, profile, cell and slot the methods as good as the tuned base: what the comparison page shows."""
    lines = []
    for made in tables(root):
        for cell in made["cells"]:
            for slot, one in cell["slots"].items():
                good = [
                    line for line in one["lines"] if line["standing"] in ("better", "as good") and not line["control"]
                ]
                lines.append(
                    {
                        "track": made["track"],
                        "profile": made["profile"],
                        "what": made["what"],
                        "cell": words.levels(cell["at"]),
                        "slot": slot,
                        "name": SLOT_NAMES.get(slot, slot),
                        "good": [f"{told(line['arm'])} ({line['standing']})" for line in good],
                        "of": len(one["lines"]),
                        "seeds": made["seeds"],
                        "device": made["device"],
                        "usable": one["usable"],
                    }
                )
    return lines
