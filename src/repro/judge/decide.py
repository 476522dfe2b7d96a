"""One parameter against a region: Student's t-interval or an exact sign test, and the seeds that would decide.

t   the two-sided interval at 2 level - 1, so that each end is one-sided at `level`; wholly inside the open region R:
    reproduced, wholly outside: not_reproduced (where R is narrow, at the higher level of `_outer_level`, since chance
    could carry the interval past R on either side), else inconclusive
sign test   where a parameter is infinite, cannot be scored or is counted as outside: the number of seeds inside R (or
    on one side outside) against a fair coin, exact and one-sided.  A seed on the boundary, or not scored, counts for
    neither.  At level 0.95 this needs 5 seeds.

needed_seeds   the least number of seeds at which, if effect and spread are as observed, the decision towards which the
    estimate points is made with a probability of at least 80 % (noncentral t; binomial for the sign test)
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

LEAST_SEEDS = 3
POWER = 0.8
MOST_SEEDS = 100_000  # where more would be needed, needed_seeds is None
INF = math.inf


def number(x: float | None) -> str:
    """Four significant digits, as reasons print them."""
    return "unbounded" if x is None else f"{x:.4g}"


@dataclass(frozen=True)
class Region:
    """The open interval (low, high) in which the parameter must lie; `log`: a ratio, kept as its logarithm."""

    low: float = -INF
    high: float = INF
    log: bool = False
    text: str = ""

    def holds(self, x: float) -> bool:
        """Does x lie inside?  Infinity does where that side is open; NaN never does."""
        return (x > self.low or self.low == -INF and x == -INF) and (x < self.high or self.high == INF and x == INF)

    def display(self, x: float | None) -> float | None:
        """A parameter as a reader sees it: ratios as ratios, what is not finite as None."""
        if x is None or not math.isfinite(x):
            return None
        return (math.exp(x) if x < 700 else None) if self.log else x


@dataclass(frozen=True)
class Decision:
    """A state with its reason; `slack` orders reproduced parts by how nearly they failed."""

    state: str
    why: str
    estimate: float | None = None
    interval: tuple[float | None, float | None] = (None, None)
    level: float | None = None
    n: int = 0
    needed: int | None = None
    slack: float = INF
    inside: bool = False  # the point estimate lies in R


@functools.lru_cache(maxsize=4096)
def t_quantile(level: float, df: float) -> float:
    """Quantile of Student's t."""
    from scipy.special import stdtrit

    return float(stdtrit(df, level))


@functools.cache
def sign_p(k: int, n: int) -> float:
    """P(at least k of n fair coins show heads)."""
    return sum(math.comb(n, i) for i in range(k, n + 1)) / 2**n


def _moments(values: list[float]) -> tuple[float, float]:
    """Mean and unbiased variance; exact where all values are equal."""
    if min(values) == max(values):
        return values[0], 0.0
    mean = math.fsum(values) / len(values)
    return mean, math.fsum((x - mean) ** 2 for x in values) / (len(values) - 1)


def decide(
    values: list[float],
    region: Region,
    level: float,
    *,
    other: list[float] | None = None,
    out: frozenset[int] = frozenset(),
    no_level: float | None = None,
) -> Decision:
    """The decision on one parameter: `values` per seed, or two unpaired samples whose difference it is (Welch).

    `out`: seeds that count as outside R whatever their value.  `level` is for reproduced, `no_level` (the same unless
    given) for not_reproduced.
    """
    n, no_level = len(values), level if no_level is None else no_level
    if n < LEAST_SEEDS:
        why = f"{n} seed{'s' if n > 1 else ''}; at least {LEAST_SEEDS} are needed"
        return Decision("inconclusive", why, level=level, n=n, needed=LEAST_SEEDS)
    if out or not all(map(math.isfinite, [*values, *(other or ())])):
        paired = values if other is None else [a - b for a, b in zip(values, other, strict=True)]
        return _sign_decision(paired, region, level, no_level, out)
    mean, variance = _moments(values)
    df = n - 1.0
    if other is not None:
        mean_b, variance_b = _moments(other)
        df = _welch(variance / n, variance_b / len(other), n, len(other))
        mean, variance, share = mean - mean_b, variance + variance_b, (variance, variance_b)
        error = math.sqrt(share[0] / n + share[1] / len(other))
    else:
        error = math.sqrt(variance / n)

    half = t_quantile(level, df) * error
    low, high, used, state = mean - half, mean + half, level, "inconclusive"
    slack = min(low - region.low, region.high - high)
    if slack > 0:
        state = "reproduced"
    elif not region.holds(mean):
        at = _outer_level(no_level, df, (region.high - region.low) / error if error else INF)
        half = t_quantile(at, df) * error
        if mean + half < region.low or mean - half > region.high:
            low, high, used, state = mean - half, mean + half, at, "not_reproduced"
    needed = None
    if state == "inconclusive":
        at_m = (lambda m: m - 1.0) if other is None else (lambda m: _welch(share[0], share[1], m, m))
        needed = _needed_t(mean, math.sqrt(variance), region, level, no_level, n, at_m)
    ends = (region.display(low), region.display(high))
    shown = f"the {100 * (2 * used - 1):.4g} % interval [{number(ends[0])}, {number(ends[1])}]"
    if state == "inconclusive":
        more = f"about {needed} would decide" if needed else "more would hardly decide"
        why = f"{shown} is not clear of the boundary of {region.text}: {n} seeds; {more}"
    else:
        why = f"{shown} lies {'inside' if state == 'reproduced' else 'outside'} {region.text}"
    inside = region.holds(mean)
    return Decision(state, why, region.display(mean), ends, used, n, needed, slack, inside)


def _sign_decision(values: list[float], region: Region, level: float, no_level: float, out: frozenset[int]) -> Decision:
    n = len(values)
    inside = sum(i not in out and region.holds(x) for i, x in enumerate(values))
    below = sum(i in out or x < region.low for i, x in enumerate(values))
    above = sum(i in out or x > region.high for i, x in enumerate(values))
    outside = max(below, above)  # on one side: what is scattered around R says nothing of its median
    state, used = "inconclusive", level
    if sign_p(inside, n) <= 1 - level + 1e-12:
        state = "reproduced"
    elif sign_p(outside, n) <= 1 - no_level + 1e-12:
        state, used = "not_reproduced", no_level
    needed = None
    if state == "inconclusive":
        at = level if inside >= outside else no_level
        needed = _needed_sign(max(inside, outside) / n, at, n)
    count, side = (inside, "inside") if state == "reproduced" or inside > outside else (outside, "outside")
    why = (
        f"{count} of {n} seeds lie {side} {region.text} (exact sign test, as a row diverged or never got there; "
        f"p = {sign_p(count, n):.2g})"
    )
    if needed:
        why += f": about {needed} would decide"
    lows = sorted(-INF if math.isnan(x) else x for x in values)
    highs = sorted(INF if math.isnan(x) else x for x in values)
    cut = max((k for k in range(n) if 1 - sign_p(k + 1, n) <= 1 - used + 1e-12), default=None)  # order statistics
    ends = (None, None) if cut is None else (region.display(lows[cut]), region.display(highs[n - 1 - cut]))
    known = [x for x in values if not math.isnan(x)]
    middle = region.display(median(known)) if known else None
    return Decision(state, why, middle, ends, used, n, needed, 0.0, inside > outside)


def _outer_level(level: float, df: float, width: float) -> float:
    """The level at which an interval must miss a region of `width` standard errors.

    An interval may miss a narrow region on either side; its one-sided level is raised until both together have a chance
    of 1 - level where the truth is an end of the region: from `level` for a wide one to (1 + level) / 2 for a point.
    """
    if width == INF:
        return level
    from scipy.special import stdtr

    low, high = level, (1 + level) / 2
    while high - low > 1e-6 * (1 - level):
        middle = (low + high) / 2
        chance = 1 - middle + float(stdtr(df, -t_quantile(middle, df) - width))
        low, high = (low, middle) if chance <= 1 - level else (middle, high)
    return level if low == level else high


def _welch(a: float, b: float, n: int, m: int) -> float:
    """Welch's degrees of freedom of two variances of means; those of the smaller sample where both vanish."""
    if a + b == 0:
        return min(n, m) - 1.0
    return (a + b) ** 2 / (a * a / (n - 1) + b * b / (m - 1))


def _least(power: Callable[[int], float], above: int) -> int | None:
    """The least m > above with power(m) >= POWER, power rising with m."""
    low, high = above, max(above + 1, 4)
    while not power(high) >= POWER:
        low, high = high, 2 * high
        if low > MOST_SEEDS:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power(middle) >= POWER else (middle, high)
    return high


def _needed_t(
    mean: float, spread: float, region: Region, level: float, no_level: float, n: int, df: Callable[[int], float]
) -> int | None:
    from scipy.special import nctdtr

    inside = region.holds(mean)
    far = (
        [d for d in (mean - region.low, region.high - mean) if d != INF]
        if inside
        else [max(region.low - mean, mean - region.high)]
    )
    if spread == 0 or min(far) <= 0:
        return None

    def power(m: int) -> float:
        critical = t_quantile(level if inside else no_level, df(m))
        shifts = [d * math.sqrt(m) / spread for d in far]
        misses = [0.0 if shift > critical + 30 else float(nctdtr(df(m), shift, critical)) for shift in shifts]
        return 1 - sum(misses)

    return _least(power, n)


@functools.lru_cache(maxsize=1024)
def _needed_sign(share: float, level: float, n: int) -> int | None:
    if share <= 0.5:
        return None

    def power(m: int) -> float:
        from scipy.special import bdtrc

        k = next((k for k in range(m // 2, m + 1) if sign_p(k, m) <= 1 - level + 1e-12), None)
        return 0.0 if k is None else share**m if k == m else float(bdtrc(k - 1, m, share))

    return next((m for m in range(n + 1, 500) if power(m) >= POWER), None)
