"""Which level of a tuned factor an arm uses: the best mean on its tuning seeds, from rows alone.

Plain Python, so that a bare GPU machine chooses the same level as the judge does later.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Level = bool | int | float | str
TUNING_SEEDS = 1000  # seeds from here on tune, or belong to A/A controls; those below are judged


class Invalid(KeyError):
    """A tuning row that is no measurement, so that no level can be chosen."""

    def __str__(self) -> str:
        return str(self.args[0])


@dataclass(frozen=True)
class Chosen:
    """The level of one arm in one cell of the other factors.

    level: the best one, None where every level diverged.  scores: the mean over the tuning seeds of each level, None
    where a run diverged.  edge: the best level is the first or the last of the grid and nothing beyond it was seen to
    fail, so that a better one may lie outside; never the level 0, beyond which there is nothing, and not where all
    levels are equal, to the last bit, as without training.
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
) -> Chosen:
    """Choose the level of `factor` for `arm` where the other factors are as in `cell`.

    The score of a level is the mean of `measure` over the tuning seeds (of a curve its last point).  A level at which
    any run diverged is worse than every other.  Of equal scores the first counts.  KeyError where a row is missing,
    Invalid where one is neither measured nor diverged.
    """
    found = {
        (row["seed"], row["factors"][factor]): row
        for row in rows
        if row["arm"] == arm and {k: v for k, v in row["factors"].items() if k != factor} == dict(cell)
    }
    scores = {level: _score([found[seed, level] for seed in seeds], measure) for level in levels}
    sign = 1.0 if better == "lower" else -1.0
    ranked = [math.inf if scores[level] is None else sign * scores[level] for level in levels]
    if not ranked or min(ranked) == math.inf:
        return Chosen(None, scores, edge=True)
    best = ranked.index(min(ranked))
    # The neighbour beyond the best level bounds the grid, also where it diverged: only the outermost levels are edges,
    # and a level of 0 (no decay, no noise) is none, since nothing lies beyond it.
    outer = best in (0, len(levels) - 1) and levels[best] != 0
    return Chosen(levels[best], scores, edge=outer and len(set(ranked)) > 1)


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
