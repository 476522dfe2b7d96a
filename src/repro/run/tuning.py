"""Which level of a tuned factor an arm uses: the best mean on its tuning seeds, from rows alone.

Plain Python, so that a bare GPU machine chooses the same level as the judge does later.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Level = bool | int | float | str
TUNING_SEEDS = 1000  # seeds from here on tune, or belong to A/A controls; those below are judged


class Further(KeyError):
    """The best level tried so far is the outermost one, and rows of those beyond it are missing.

    levels: all that are to be tried by now.
    """

    def __init__(self, levels: Sequence[Level]):
        super().__init__(levels)
        self.levels = list(levels)


class Invalid(KeyError):
    """A tuning row that is no measurement, so that no level can be chosen."""

    def __str__(self) -> str:
        return str(self.args[0])


@dataclass(frozen=True)
class Chosen:
    """The level of one arm in one cell of the other factors.

    level: the best one, None where every level diverged.  scores: of each level that was tried the mean over the tuning
    seeds, None where a run diverged.  edge: the best level is the first or the last of the grid and nothing beyond it
    was seen to fail, so that a better one may lie outside; never the level 0, beyond which there is nothing, and not
    where all levels are equal, to the last bit, as without training.
    """

    level: Level | None
    scores: dict[Level, float | None]
    edge: bool


def choose(
    rows: Iterable[Mapping[str, Any]],
    *,
    arm: str,
    cell: Mapping[str, Level],
    factor: str,
    levels: Sequence[Level],
    seeds: Sequence[int],
    measure: str,
    better: Literal["lower", "higher"],
    start: Sequence[Level] | None = None,
) -> Chosen:
    """Choose the level of `factor` for `arm` where the other factors are as in `cell`.

    start: the levels that are tried first, all unless given.  While the best one is the outermost of those tried, the
    next level of the grid is tried too; where all are alike (every run diverged), all that are left are.

    The score of a level is the mean of `measure` over the tuning seeds (of a curve its last point).  A level at which
    any run diverged is worse than every other.  Of equal scores the first counts.  KeyError where a row is missing,
    Further where it is one to which the climb from `start` has led, Invalid where one is neither measured nor diverged.
    """
    found = {
        (row["seed"], row["factors"][factor]): row
        for row in rows
        if row["arm"] == arm and {k: v for k, v in row["factors"].items() if k != factor} == dict(cell)
    }

    def score(level: Level) -> float | None:
        return _score([found[seed, level] for seed in seeds], measure)

    sign = 1.0 if better == "lower" else -1.0
    scores = {level: score(level) for level in levels if start is None or level in start}
    while more := _beyond(levels, scores, sign):
        try:
            scores |= {level: score(level) for level in more}
        except Invalid:
            raise
        except KeyError:
            raise Further([level for level in levels if level in scores or level in more]) from None
        scores = {level: scores[level] for level in levels if level in scores}
    ranked = _ranked(scores, sign)
    if not ranked or min(ranked) == math.inf:
        return Chosen(None, scores, edge=True)
    best = list(scores)[ranked.index(min(ranked))]
    # The neighbour beyond the best level bounds the grid, also where it diverged: only the outermost levels are edges,
    # and a level of 0 (no decay, no noise) is none, since nothing lies beyond it.
    outer = best in (levels[0], levels[-1]) and best != 0
    return Chosen(best, scores, edge=outer and len(set(ranked)) > 1)


def _ranked(scores: Mapping[Level, float | None], sign: float) -> list[float]:
    """The scores as numbers of which the lowest is best."""
    return [math.inf if score is None else sign * score for score in scores.values()]


def _beyond(levels: Sequence[Level], scores: Mapping[Level, float | None], sign: float) -> list[Level]:
    """The levels of the grid to try next; none where the best of those tried lies inside them or ends the grid."""
    left, ranked = [level for level in levels if level not in scores], _ranked(scores, sign)
    if not left or len(set(ranked)) == 1:
        return left
    at = levels.index(list(scores)[ranked.index(min(ranked))])
    return [level for level in levels[max(0, at - 1) : at + 2] if level in left]


def level_to_run(chosen: Chosen) -> Level:
    """The level at which the judged seeds run: the chosen one; the first of the grid where every level diverged."""
    return next(iter(chosen.scores)) if chosen.level is None else chosen.level


def _score(rows: Sequence[Mapping[str, Any]], measure: str) -> float | None:
    """The mean of the last values; None where a run diverged."""
    values = []
    for row in rows:
        if row["status"] not in ("ok", "diverged"):
            why = row.get("why", "no reason given")
            raise Invalid(f"the tuning row of {row['arm']}, seed {row['seed']}, is {row['status']}: {why}.")
        value = row["measures"].get(measure) if row["status"] == "ok" else None
        value = value[-1] if isinstance(value, list) and value else value
        if not isinstance(value, int | float) or not math.isfinite(value):
            return None
        values.append(float(value))
    return math.fsum(values) / len(values) if values else None
