"""The size of the test under Gaussian seeds: claims judged over and over at the edge of their rules.

This checks the arithmetic of the judge, not its verdicts: that a rule which is just barely false is called
reproduced in
at most one of twenty repeats, if seeds are Gaussian.  It cannot see skew, runs that collapse, tuning, scale or a rule
that asks for too little.

A repeat draws as many seeds as the rows have.  Each part of a rule (a level of `per`, a cell) is Gaussian on the scale
of its parameter with the spread of its real seeds; parts vary together as theirs do.  Only the truth is moved:

    false rate   the claim is false by a hair: of a rule's parts one too few hold, those that are to hold lie where they
                 hold most easily (the middle of R, or far inside), the others on the boundary of R.  Of all such truths
                 the one with the highest rate counts.
    power        the first rule has the paper's effect, where the paper gives a number in the unit of the rule.  Power
                 at the effect seen here would be a function of the p value, and is not given.

Parts that are decided without sampling (seeds without any spread) are right or wrong, in every repeat alike.  A part
decided by the sign test, as its rule asks or because a run diverged, is a coin for each seed at its boundary.  Failure
rates and ranks are exact tests and not simulated.  Controls are not drawn again.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations, islice, product
from typing import Any

import numpy as np

from repro import words
from repro.errors import ReproError
from repro.files.paths import SCHEMA, results
from repro.files.verdict import read_quality
from repro.judge.claims import Case, claim_parts
from repro.judge.decide import INF, POWER, Region, failure_rate, few, sign_p, t_quantile
from repro.judge.rules import Part, unit_of
from repro.judge.values import CannotJudge
from repro.spec import load as papers
from repro.spec.model import Paper, PaperValue
from repro.store import rows_digest

DRAWS = 4000
GOAL = 0.05  # a false "reproduced" in at most one of twenty repeats
MOST_TRUTHS = 5000  # ways of being false that are tried; no rule of the suite has a tenth of it
EXACT = "exact: no sampling"


# ---- the interval rule of `decide`, over many repeats at once --------------------------------------------------------


def intervals(values: np.ndarray, level: float, other: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Middle and half width of Student's (of two samples Welch's) interval over the last axis, each end at `level`."""
    n, variance = values.shape[-1], values.var(axis=-1, ddof=1)
    if other is None:
        return values.mean(axis=-1), t_quantile(level, n - 1.0) * np.sqrt(variance / n)
    from scipy.special import stdtrit

    m = other.shape[-1]
    a, b = variance / n, other.var(axis=-1, ddof=1) / m
    parts = a * a / (n - 1) + b * b / (m - 1)
    df = np.where(parts > 0, (a + b) ** 2 / np.where(parts > 0, parts, 1.0), min(n, m) - 1.0)
    return values.mean(axis=-1) - other.mean(axis=-1), stdtrit(df, level) * np.sqrt(a + b)


def inside(middle: np.ndarray, half: np.ndarray, region: Region, truth: float = 0.0) -> np.ndarray:
    """Whether `decide` says reproduced of intervals around `truth`: they lie wholly in the open region."""
    held = np.ones(middle.shape, bool)
    if region.low != -INF:
        held &= middle - half > region.low - truth
    if region.high != INF:
        held &= middle + half < region.high - truth
    return held


def clopper_pearson(count: int, draws: int) -> list[float]:
    """Return the exact 95 % interval of a rate of which `count` of `draws` were seen."""
    low, high = failure_rate(count, draws, 0.975)
    return [round(low, 5), round(high, 5)]


# ---- parts with a truth that can be moved ----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Exact:
    """A part without chance; its truth says whether it holds."""

    holds: bool
    middle = True
    edges = (False,)


@dataclass(frozen=True)
class _Coins:
    """A part decided by the sign test; its truth is the chance of a seed to lie inside R."""

    n: int
    level: float
    middle = 1.0
    edges = (0.5,)

    @property
    def least(self) -> int:
        """Seeds inside that make it reproduced; n + 1 where n are too few."""
        return next((k for k in range(self.n + 1) if sign_p(k, self.n) <= 1 - self.level + 1e-12), self.n + 1)


@dataclass(frozen=True)
class _Sampled:
    """A part decided by an interval; its truth is the mean of its parameter."""

    part: Part

    @property
    def middle(self) -> float:
        region = self.part.region
        if -INF < region.low and region.high < INF:
            return (region.low + region.high) / 2
        return -INF if region.low == -INF else INF

    @property
    def edges(self) -> tuple[float, ...]:
        return tuple(edge for edge in (self.part.region.low, self.part.region.high) if math.isfinite(edge))

    @property
    def estimate(self) -> float:
        mean = math.fsum(self.part.values) / len(self.part.values)
        return mean if self.part.other is None else mean - math.fsum(self.part.other) / len(self.part.other)


_Any = _Exact | _Coins | _Sampled


def _modelled(part: Part) -> _Any:
    if part.region is None:
        return _Exact(part.decision.inside)
    samples = [part.values] if part.other is None else [part.values, part.other]
    if part.out or not all(math.isfinite(x) for sample in samples for x in sample):
        return _Coins(len(part.values), part.level)
    if all(min(sample) == max(sample) for sample in samples):
        return _Exact(part.decision.inside)
    return _Coins(len(part.values), part.level) if part.sign else _Sampled(part)


class _Repeats:
    """`draws` repeats of all parts around a truth of 0, to be asked about any truth."""

    def __init__(self, parts: list[_Any], draws: int, random: np.random.RandomState):
        self.parts, self.draws, self.random = parts, draws, random
        self.found: dict[tuple, np.ndarray] = {}
        self.around = {}
        sampled = {i: one.part for i, one in enumerate(parts) if isinstance(one, _Sampled)}
        if not sampled:
            return
        arm = self._seeds([part.values for part in sampled.values()])
        others = [part.other for part in sampled.values() if part.other is not None]
        other = iter(self._seeds(others) if others else ())  # unpaired samples share no seeds
        for (i, part), values in zip(sampled.items(), arm, strict=True):
            self.around[i] = intervals(values, part.level, None if part.other is None else next(other))

    def _seeds(self, samples: list[tuple[float, ...]]) -> np.ndarray:
        """(part, repeat, seed): Gaussian with the covariance of the real seeds, as mixtures of their residuals."""
        real = np.array(samples).T
        n = len(real)
        residuals = (real - real.mean(axis=0)) / math.sqrt(n - 1)
        mixed = self.random.standard_normal((self.draws * n, n)) @ residuals
        return np.ascontiguousarray(mixed.reshape(self.draws, n, -1).transpose(2, 0, 1))

    def held(self, i: int, truth: float) -> np.ndarray:
        """The repeats in which a part holds."""
        if (i, truth) not in self.found:
            part = self.parts[i]
            if isinstance(part, _Sampled):
                held = inside(*self.around[i], part.part.region, truth)
            elif isinstance(part, _Coins):
                held = (self.random.random_sample((self.draws, part.n)) < truth).sum(axis=1) >= part.least
            else:
                held = np.full(self.draws, truth)
            self.found[i, truth] = held
        return self.found[i, truth]

    def reproduced(self, rules: list["_Rule"], truths: Mapping[int, float]) -> int:
        """The number of repeats in which every rule holds; parts without a truth lie where they hold most easily."""
        said = np.ones(self.draws, bool)
        for rule in rules:
            held = [self.held(i, truths.get(i, self.parts[i].middle)) for i in rule.parts]
            said &= np.sum(held, axis=0) >= rule.least
        return int(said.sum())


# ---- one claim -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Rule:
    """Which parts a rule has, and how many of them must hold."""

    parts: range
    least: int


def _false_truths(rules: list[_Rule], parts: list[_Any]) -> Iterator[dict[int, float]]:
    """Every way to be false by a hair: the parts of one rule that fail, each at an end of its region."""
    for rule in rules:
        for failing in combinations(rule.parts, len(rule.parts) - rule.least + 1):
            if any(not isinstance(parts[i], _Exact) for i in failing):
                for edges in product(*(parts[i].edges for i in failing)):
                    yield dict(zip(failing, edges, strict=True))


def assess_claim(paper: Paper, profile: str, claim_id: str, rows: list[dict]) -> dict[str, Any]:
    """The error rates of one claim, as `quality.json` holds them; `why` says what a missing one is missing for."""
    none = dict.fromkeys(("false_rate", "false_interval", "allowed", "at", "power", "power_interval", "power_at"))
    n = len(paper.settings(profile, paper.claims[claim_id].experiment).seeds)
    try:
        found = claim_parts(paper, profile, claim_id, rows)
    except CannotJudge as error:
        return {**none, "n": n, "why": str(error)}
    if any(rule.kind in ("failures", "ranks") for rule, _ in found):
        return {**none, "n": n, "why": "an exact test on counts or ranks, which is not simulated"}
    parts = [_modelled(part) for _, own in found for part in own]
    if all(isinstance(part, _Exact) for part in parts):
        return {**none, "n": n, "why": EXACT}
    least = Case.of(paper, profile, claim_id, rows).terms.least
    if n < least:
        return {**none, "n": n, "why": few(n, least)}
    rules, labels = [], []
    for rule, own in found:
        rules.append(_Rule(range(len(labels), len(labels) + len(own)), rule.at_least or len(own)))
        name = [rule.name or f"{rule.kind} of {rule.measure}"] if rule.name or len(found) > 1 else []
        labels += [", ".join([*name, *(f"{k} {v}" for k, v in part.cell.items())]) for part in own]
    key = hashlib.sha256(f"{paper.slug} {profile} {claim_id}".encode()).digest()
    random = np.random.RandomState(int.from_bytes(key[:4], "big"))  # the one generator whose stream never changes
    allowed = min(GOAL, max(1 - rule.level for rule, _ in found))
    result = {**none, **_false_rate(rules, parts, labels, allowed, random), "n": n}
    told, unit = paper.claims[claim_id].paper_value, unit_of(found[0][0], paper.measures)
    effects = _effects(rules, parts, told, unit)
    if isinstance(effects, str):
        return {**result, "why": effects}
    count = _Repeats(parts, DRAWS, random).reproduced(rules, effects)
    return {**result, "power": count / DRAWS, "power_interval": clopper_pearson(count, DRAWS), "power_at": "paper"}


def _false_rate(
    rules: list[_Rule], parts: list[_Any], labels: list[str], allowed: float, random: np.random.RandomState
) -> dict[str, Any]:
    """The rate at the truth that a first set of repeats finds to be the worst, from repeats of its own."""
    pilot = _Repeats(parts, DRAWS, random)
    worst = max(islice(_false_truths(rules, parts), MOST_TRUTHS), key=lambda truths: pilot.reproduced(rules, truths))
    told = {"allowed": round(allowed, 6), "at": _place(parts, labels, worst)}
    certain = [
        isinstance(part, _Exact | _Coins) or math.isinf(part.middle) for i, part in enumerate(parts) if i not in worst
    ]
    failing = [parts[i] for i in worst if not isinstance(parts[i], _Exact)]
    if len(failing) == 1 and isinstance(failing[0], _Coins) and all(certain):
        rate = sign_p(failing[0].least, failing[0].n)  # sums no terms, so 0, where n seeds are too few
        return {"false_rate": rate, "false_interval": [rate, rate], **told}
    # Chance alone carries one of forty intervals past the nominal rate; ten times the repeats tell that from an excess.
    for draws in (DRAWS, 10 * DRAWS):
        count = _Repeats(parts, draws, random).reproduced(rules, worst)
        interval = clopper_pearson(count, draws)
        if interval[0] <= allowed:
            break
    return {
        "false_rate": count / draws,
        "false_interval": interval,
        **({"draws": draws} if draws != DRAWS else {}),
        **told,
    }


def _place(parts: list[_Any], labels: list[str], truths: Mapping[int, float]) -> str:
    """`depth 4 at 0.5`: the parts that fail and the boundary on which each lies."""
    told = []
    for i, truth in truths.items():
        if isinstance(parts[i], _Sampled):
            told.append(f"{labels[i]} at {parts[i].part.region.display(truth) + 0.0:.4g}".strip())  # no -0
        elif isinstance(parts[i], _Coins):
            told.append(f"{labels[i]} at even chances".strip())
    return "; ".join(told)


def _effects(rules: list[_Rule], parts: list[_Any], told: PaperValue, unit: str) -> dict[int, float] | str:
    """The truth of every part, the first rule's being the paper's effect; or why there is none at which it is true."""
    if any(isinstance(part, _Coins) for part in parts):
        return "a sign test is asked for, or a row diverged or never got there, so that there is no spread to draw from"
    here = {i: part.holds if isinstance(part, _Exact) else part.estimate for i, part in enumerate(parts)}
    first = {
        i: _paper_effect(told, unit, parts[i].part.region) for i in rules[0].parts if isinstance(parts[i], _Sampled)
    }
    given = {i: effect for i, effect in first.items() if effect is not None}
    if not given:
        return "the paper gives no number in the unit of the rule"
    truths = {**here, **given}
    true = [
        truths[i] if isinstance(part, _Exact) else part.part.region.holds(truths[i]) for i, part in enumerate(parts)
    ]
    if all(sum(true[i] for i in rule.parts) >= rule.least for rule in rules):
        return truths
    return "at the paper's effect the rules do not all hold"


def _paper_effect(told: PaperValue, unit: str, region: Region) -> float | None:
    """The paper's number on the scale of the parameter; of a range the end that R holds most narrowly.

    None where there is none, or one in another unit.  As in the verdict's magnitude, it speaks of the first rule.
    """
    ends = [told.value] if told.value is not None else [told.low, told.high]
    if (
        None in ends
        or (told.unit or "1") not in (unit, *(("1",) if unit in ("ratio", "exponent") else ()))
        or region.log
        and min(ends) <= 0
    ):
        return None
    ends = [math.log(end) for end in ends] if region.log else ends
    return min(ends, key=lambda end: min(end - region.low, region.high - end))


# ---- documents -------------------------------------------------------------------------------------------------------


def assess(paper: Paper, profile: str, document: Mapping[str, Any]) -> dict[str, Any]:
    """The document of error rates (`quality.json`) of a paper at a profile from its rows document, which was judged."""
    rows = document["rows"]
    return {
        "schema": SCHEMA,
        "paper": paper.slug,
        "profile": profile,
        "rows_digest": rows_digest(rows),
        "draws": DRAWS,
        "claims": {name: assess_claim(paper, profile, name, rows) for name in paper.judged_in(profile)},
    }


def read(slug: str, profile: str) -> dict[str, Any] | None:
    """The stored error rates of a paper, or None where it was judged before there were any."""
    path = results(slug, profile, "quality")
    if not path.exists():
        return None
    return read_quality(path, f"run `repro judge {slug} --profile {profile}`", papers.shown(path))


def text(assessed: Mapping[str, Any]) -> str:
    """A document as it is written."""
    return json.dumps(assessed, indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def above(claim: Mapping[str, Any]) -> bool:
    """Whether a claim is said to be reproduced too often where it is false, beyond what the draws leave open."""
    return claim["false_rate"] is not None and claim["false_interval"][0] > claim["allowed"]


def summary(assessed: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Counts over all claims, the mean of the false rates and the claim with the largest (None where none has one)."""
    claims = [
        {**claim, "paper": one["paper"], "profile": one["profile"], "claim": name}
        for one in assessed
        for name, claim in one["claims"].items()
    ]
    rated = [c for c in claims if c["false_rate"] is not None]
    powers = [c["power"] for c in claims if c["power"] is not None]
    return {
        "claims": len(claims),
        "rated": len(rated),
        "exact": sum(c.get("why") == EXACT for c in claims),
        "above": sum(map(above, rated)),
        "mean": math.fsum(c["false_rate"] for c in rated) / len(rated) if rated else None,
        "largest": max(rated, key=lambda c: c["false_rate"], default=None),
        "powers": len(powers),
        "strong": sum(power >= POWER for power in powers),
    }


# ---- tables ----------------------------------------------------------------------------------------------------------

HEAD = ["paper", "claim", "n", "false reproduced", "power at the paper's effect", "on the edge"]
BEGIN, END = "<!-- GENERATED by `repro quality` -->", "<!-- end of GENERATED -->"


def rate(value: float | None, interval: list[float] | None) -> str:
    """`2.1 % [1.7, 2.6]`."""
    if value is None:
        return "–"
    return f"{words.rate(value)} %" + (
        f" [{', '.join(map(words.rate, interval))}]" if interval[0] != interval[1] else ""
    )


def lines(assessed: Iterable[Mapping[str, Any]]) -> list[list[str]]:
    """The table that `repro quality` prints; what is missing is told in the last column."""
    told = []
    for one in assessed:
        for name, c in one["claims"].items():
            false = (
                "exact" if c.get("why") == EXACT else rate(c["false_rate"], c["false_interval"]) + " ABOVE" * above(c)
            )
            edge = "" if c.get("why") == EXACT else c["at"] or c["why"]
            told.append(
                [
                    f"{one['paper']} {one['profile']}",
                    name,
                    str(c["n"]),
                    false,
                    rate(c["power"], c["power_interval"]),
                    edge,
                ]
            )
    return told


def summary_text(assessed: Iterable[Mapping[str, Any]]) -> str:
    """Return one line: how many claims, the largest false rate, how many lie above the goal."""
    s = summary(assessed)
    text = f"{s['claims']} claims, {s['exact']} of them exact, {s['claims'] - s['exact'] - s['rated']} without a rate"
    if c := s["largest"]:
        largest = f"{rate(c['false_rate'], c['false_interval'])} ({c['paper']} {c['profile']}, {c['claim']})"
        text += f"; false rates of {words.rate(s['mean'])} % on average, the largest {largest}"
        text += f"; {s['above']} above {words.percent(GOAL)}"
        text += f"; power of at least {words.percent(POWER)} in {s['strong']} of {s['powers']}"
    return text


def with_table(page: str, assessed: list[Mapping[str, Any]], dates: Iterable[str | None], shown: str) -> str:
    """A page of Markdown with a fresh table between its marks, and the days on which its rows were measured."""
    if BEGIN not in page or END not in page.split(BEGIN, 1)[1]:
        raise ReproError(f"{shown}: lacks the lines {BEGIN} and {END}, between which the table goes")
    days = sorted(set(filter(None, dates)))
    when = "on no day" if not days else f"on {days[0]}" if len(days) == 1 else f"from {days[0]} to {days[-1]}"
    rows = [
        [cell.replace("|", "\\|").replace("<", "&lt;") for cell in line]
        for line in [HEAD, ["---"] * len(HEAD), *lines(assessed)]
    ]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    head, rest = page.split(BEGIN, 1)
    return f"{head}{BEGIN}\nRows measured {when}: {summary_text(assessed)}.\n\n{table}\n{END}{rest.split(END, 1)[1]}"
