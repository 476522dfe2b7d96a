"""Synthetic rows whose answer is known, and a paper of two experiments that they belong to."""

import json
from pathlib import Path

from repro.files.paths import SCHEMA
from repro.judge import judge
from repro.judge.rules import Terms, judge_rule
from repro.spec.load import load
from repro.spec.model import KINDS, Measure, Settings
from repro.store import rows_digest

MEASURES = {
    "loss": Measure(unit="nats", better="lower"),
    "score": Measure(unit="points", better="higher"),
    "curve": Measure(unit="nats", better="lower"),
    "steps": Measure(unit="steps"),
    "plain": Measure(unit="1"),
}
DEPTHS = {"depth": [4, 12]}


def rule(kind, arm="a", measure="loss", **options):
    return KINDS[kind](kind=kind, arm=arm, measure=measure, **options)


def settings(n=5, factors=None, tuning=()):
    return Settings(
        arms=["a", "b", "c"],
        factors=factors or {},
        seeds=list(range(n)),
        tuning_seeds=list(tuning),
        offset_seeds={},
        batched=False,
        ranks=None,
        exclusive=False,
        module=None,
        function="e",
        config={},
    )


def row(arm, seed, value=None, measure="loss", status="ok", factors=None, **more):
    measures = more.pop("measures", {} if value is None else {measure: value})
    return {
        "experiment": "e",
        "arm": arm,
        "seed": seed,
        "factors": factors or {},
        "status": status,
        "seconds": 1.0,
        "measures": measures,
        **more,
    }


def rows_of(factors=None, measure="loss", **arms):
    """One row per value; a value None is a diverged row."""
    return [
        row(arm, seed, value, measure, "diverged" if value is None else "ok", factors)
        for arm, values in arms.items()
        for seed, value in enumerate(values)
    ]


def judged(r, rows, n=5, measures=MEASURES, terms=Terms(), **more):  # noqa: B008
    return judge_rule(r, rows, measures, settings(n, **more), terms=terms)


def state(r, rows, n=5, **more):
    return judged(r, rows, n, **more)["state"]


NOISE = (-0.02, -0.01, 0.0, 0.01, 0.02)


def around(centre, scale=1.0):
    return [centre + scale * x for x in NOISE]


PAPER = """\
slug: p
title: T
authors: [A]
year: 2019
venue: V
arxiv: '1910.07467'
family: normalization
summary: S.
equation: y
headline: main
measures:
  loss: {unit: nats, better: lower, positive: true}
  worst: {unit: nats, better: lower, skewed: true}
  trivial_linear: {unit: nats}
experiments: {e: {arms: [a, b, c, d, p]}, f: {arms: [a, b, c]}}
claims:
  main:
    statement: S
    paper_value: {value: -0.5, unit: nats}
    where: W
    fidelity: scaled
    experiment: e
    rule: RULE
    EXTRA: []
profiles: {smoke: {seeds: 1, e: {}}, cpu: {seeds: 5, e: {}, f: {}}}
"""
ORDER = "{kind: ordering, measure: loss, arm: a, against: b}"
BROKEN = "[{replace: {a: c}, expect: not_reproduced}]"


def maker(tmp_path: Path):
    """Return a function that writes a paper with the given rule and other keys of its claim, and loads it."""

    def make(rule_text=ORDER, controls=BROKEN, change=None, replace=(), **keys):
        extra = "".join(f"\n    {key}: {value}" for key, value in keys.items())
        text = PAPER.replace("RULE", rule_text).replace("EXTRA: []", f"controls: {controls}{extra}")
        for old, new in [change] if change else replace:
            text = text.replace(old, new)
        path = tmp_path / "papers" / "p" / "paper.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return load(path)

    return make


def document(paper, rows, registered=None):
    return {
        "schema": SCHEMA,
        "paper": "p",
        "profile": "cpu",
        "provenance": {"digest": rows_digest(rows)},
        "registered": registered or paper.registration("cpu"),
        "rows": rows,
    }


def claim(paper, rows):
    verdict = judge(paper, "cpu", document(paper, rows))
    json.dumps(verdict, allow_nan=False)
    return verdict["claims"]["main"]


GOOD = {"a": around(0.5), "b": around(1, -1), "c": around(1.5)}
