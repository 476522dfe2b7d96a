"""One parameter against a region: Student's t-interval or an exact sign test, and the seeds that would decide.

t   the two-sided interval at 2 level - 1, so that each end is one-sided at `level`; wholly inside the open region R:
    reproduced, wholly outside: not_reproduced (where R is narrow, at the higher level of `_outer_level`, since chance
    could carry the interval past R on either side), else inconclusive
sign test   where a parameter is infinite, cannot be scored or is counted as outside, and where a rule asks for it (a
    worst case or an R2 is skewed, and t is wrong there): the number of seeds inside R (or on one side outside) against
    a fair coin, exact and one-sided.  A seed on the boundary, or not scored, counts for neither.  At level 0.95 this
    needs 5 seeds; not_reproduced of an R with two ends needs 6, since chance could carry the seeds past either end.

failure rate   the share of runs that failed, with the exact (Clopper-Pearson) interval of a binomial

needed_seeds   the least number of seeds at which, if effect and spread are as observed, the decision towards which the
    estimate points is made with a probability of at least 80 % (noncentral t; binomial for the sign test).  Of k parts
    that must all hold each holds with the k-th root of 80 %, so that all of them do with 80 %.  It is for planning a
    new registration with fresh seeds.  Looking again raises the 5 % however it is done: adding seeds to those seen to
    9 % within two looks, fresh seeds in place of those seen to 1 - 0.95^2 = 9.75 % within two registrations and to
    14.3 % within three.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

LEAST_SEEDS = 3
LEAST_TRAINED = 5  # of a claim about trained arms
POWER = 0.8
MOST_RUNS = 500  # where as many would be needed by a test that counts, needed_seeds is None
MOST_ADVISED = 1000  # where more would be needed, nobody is told to run them
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
    p: float | None = None  # the least 1 - level at which it would be reproduced


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
    least: int = LEAST_SEEDS,
    sign: bool = False,
    pairs: int | None = None,
    power: float = POWER,
) -> Decision:
    """Decide on one parameter: `values` per seed, or two unpaired samples whose difference it is (Welch).

    `out`: seeds that count as outside R whatever their value; where all do, nothing is left to test.
    `level` is for reproduced, `no_level` (the same unless
    given) for not_reproduced.  `least`: with fewer seeds nothing is decided.  `sign`: the sign test in place of t.
    `pairs`: the values are those of so many pairs that differ, and what would decide is said in pairs.  `power`: the
    chance with which `needed` seeds show that the parameter lies in R; that it does not, they show with POWER.
    """
    n, no_level = len(values), level if no_level is None else no_level
    if n < least:
        return Decision("inconclusive", few(n, least), level=level, n=n, needed=least)
    if len(out) == n:
        why = f"all {n} runs diverged."
        return Decision("not_reproduced", why, level=no_level, n=n, slack=-INF, p=1.0)
    if sign or out or not all(map(math.isfinite, [*values, *(other or ())])):
        paired = values if other is None else [a - b for a, b in zip(values, other, strict=True)]
        return _sign_decision(paired, region, level, no_level, out, pairs, power)
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
        low, high, used = mean - half, mean + half, at  # the interval that decides there
        if high < region.low or low > region.high:
            state = "not_reproduced"
    needed = None
    if state == "inconclusive":
        at_m = (lambda m: m - 1.0) if other is None else (lambda m: _welch(share[0], share[1], m, m))
        needed = _needed_t(mean, math.sqrt(variance), region, level, no_level, n, at_m, power)
    ends = (region.display(low), region.display(high))
    shown = f"the {100 * (2 * used - 1):.4g} % interval [{number(ends[0])}, {number(ends[1])}]"
    if state == "inconclusive":
        why = f"{shown} reaches over the boundary of {region.text}. {advice(n, needed)}"
    else:
        why = f"{shown} lies {'inside' if state == 'reproduced' else 'outside'} {region.text}."
    inside = region.holds(mean)
    p = _p_inside(mean, error, df, region)
    return Decision(state, why, region.display(mean), ends, used, n, needed, slack, inside, p)


def few(n: int, least: int) -> str:
    """Say that so many seeds decide nothing."""
    return f"there {'is' if n == 1 else 'are'} only {n} seed{'s' if n != 1 else ''}, and at least {least} are needed."


def advice(n: int, needed: int | None) -> str:
    """Say what would decide, in words that do not invite to add seeds until it does."""
    if needed is None:
        return f"More seeds than these {n} would hardly decide it."
    if needed > MOST_ADVISED:
        return f"Some {needed} seeds would be needed to decide it, so small is what is seen against the spread."
    return (
        f"A new registration with about {needed} fresh seeds in place of these {n} would decide it four times out of "
        "five, if effect and spread are as they seem here."
    )


def _p_inside(mean: float, error: float, df: float, region: Region) -> float:
    """The least 1 - level at which the interval would lie inside R: the larger p of the two ends."""
    gaps = [gap for gap in (mean - region.low, region.high - mean) if gap != INF]
    if not gaps:
        return 0.0
    if error == 0:
        return 0.0 if min(gaps) > 0 else 1.0
    from scipy.special import stdtr

    return max(float(stdtr(df, -gap / error)) for gap in gaps)


def failure_rate(failed: int, n: int, level: float) -> tuple[float, float]:
    """Return the exact bounds of a failure rate of which `failed` of `n` runs were seen, each one-sided at `level`."""
    from scipy.stats import binomtest

    interval = binomtest(failed, n).proportion_ci(2 * level - 1, method="exact")
    return float(interval.low), float(interval.high)


def _below(failed: int, n: int, rate: float) -> float:
    """P(so few fail) at a failure rate: small where the rate of the runs is below it."""
    from scipy.special import bdtr

    return 0.0 if rate >= 1 else 1.0 if rate <= 0 else float(bdtr(failed, n, rate))


def _above(failed: int, n: int, rate: float) -> float:
    """P(so many fail) at a failure rate: small where the rate of the runs is above it."""
    from scipy.special import bdtrc

    return (
        0.0
        if rate < 0
        else 1.0
        if failed == 0 or rate >= 1
        else 0.0
        if rate == 0
        else float(bdtrc(failed - 1, n, rate))
    )


def decide_rate(
    failed: int,
    n: int,
    region: Region,
    level: float,
    no_level: float,
    least: int = LEAST_SEEDS,
    power: float = POWER,
) -> Decision:
    """Decide whether a failure rate lies in R, from `failed` of `n` runs."""
    if n < least:
        return Decision("inconclusive", few(n, least), level=level, n=n, needed=least)

    state = _rate_state(failed, n, region.low, region.high, level, no_level)
    needed = None
    if state == "inconclusive":
        goal = power if region.holds(failed / n) else POWER
        needed = _needed_rate(failed, n, region.low, region.high, level, no_level, goal)
    used = no_level if state == "not_reproduced" else level
    low, high = failure_rate(failed, n, used)
    where = f"and the {100 * (2 * used - 1):.4g} % interval of the failure rate, [{low:.3f}, {high:.3f}], "
    runs = f"{failed} of {n} runs failed, "
    if state == "inconclusive":
        why = f"{runs}{where}reaches over the boundary of {region.text}. {advice(n, needed)}"
    else:
        why = f"{runs}{where}lies {'inside' if state == 'reproduced' else 'outside'} {region.text}."
    p = max(_below(failed, n, region.high), _above(failed, n, region.low))
    share = failed / n
    slack = min(low - region.low, region.high - high)
    return Decision(state, why, share, (low, high), used, n, needed, slack, region.holds(share), p)


def _rate_state(failed: int, n: int, low: float, high: float, level: float, no_level: float) -> str:
    if _below(failed, n, high) <= 1 - level and _above(failed, n, low) <= 1 - level:
        return "reproduced"
    far = min(_above(failed, n, high), _below(failed, n, low))
    return "not_reproduced" if far <= 1 - no_level else "inconclusive"


@functools.lru_cache(maxsize=1024)
def _needed_rate(
    failed: int, n: int, low: float, high: float, level: float, no_level: float, goal: float
) -> int | None:
    """The least number of runs above n that decide with a chance of `goal`, at the failure rate that was seen."""
    from scipy.stats import binom

    def power(m: int) -> float:
        chances = binom.pmf(range(m + 1), m, failed / n)
        likely = [k for k in range(m + 1) if chances[k] > 1e-4]
        return sum(chances[k] for k in likely if _rate_state(k, m, low, high, level, no_level) != "inconclusive")

    return _first(power, n, goal)


def _sign_decision(
    values: list[float],
    region: Region,
    level: float,
    no_level: float,
    out: frozenset[int],
    pairs: int | None,
    power: float,
) -> Decision:
    n = len(values)
    if region.low != -INF and region.high != INF:  # chance could carry the seeds past either end, as in `_outer_level`
        no_level = (1 + no_level) / 2
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
        at, goal = (level, power) if inside >= outside else (no_level, POWER)
        share = max(inside, outside) / n
        needed = _needed_sign(share, at, n, goal) if pairs is None else _needed_pairs(share, at, n, pairs, goal)
    count, side = (inside, "inside") if state == "reproduced" or inside > outside else (outside, "outside")
    at_most = 1 - (level if side == "inside" else no_level)
    why = f"{count} of {n} seeds lie {side} {region.text} (exact sign test, p = {sign_p(count, n):.2g}"
    why += f", where at most {at_most:.2g} decides)." if state == "inconclusive" else ")."
    if out or not all(map(math.isfinite, values)):
        why += " The sign test is used because a run diverged or never reached its target."
    if state == "inconclusive":
        why += f" {advice(pairs or n, needed)}"
    lows = sorted(-INF if math.isnan(x) else x for x in values)
    highs = sorted(INF if math.isnan(x) else x for x in values)
    cut = max((k for k in range(n) if 1 - sign_p(k + 1, n) <= 1 - used + 1e-12), default=None)  # order statistics
    ends = (None, None) if cut is None else (region.display(lows[cut]), region.display(highs[n - 1 - cut]))
    known = [x for x in values if not math.isnan(x)]
    middle = region.display(median(known)) if known else None
    return Decision(state, why, middle, ends, used, n, needed, 0.0, inside > outside, sign_p(inside, n))


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


def _least(power: Callable[[int], float], above: int, goal: float) -> int | None:
    """The least m > above with power(m) >= goal, power rising with m."""
    low, high = above, max(above + 1, 4)
    while not power(high) >= goal:
        low, high = high, 2 * high
        if low > MOST_SEEDS:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power(middle) >= goal else (middle, high)
    return high


def _needed_t(
    mean: float,
    spread: float,
    region: Region,
    level: float,
    no_level: float,
    n: int,
    df: Callable[[int], float],
    goal: float,
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

    return _least(power, n, goal if inside else POWER)


@functools.lru_cache(maxsize=1024)
def _needed_sign(share: float, level: float, n: int, goal: float) -> int | None:
    return None if share <= 0.5 else _first(lambda m: _sign_power(m, share, level), n, goal)


@functools.lru_cache(maxsize=1024)
def _needed_pairs(share: float, level: float, differ: int, pairs: int, goal: float) -> int | None:
    """The least number of pairs at which a sign test of those that differ decides with a chance of `goal`.

    differ: of the `pairs` that were seen, so many differ, of which this share in one direction.
    """
    from scipy.stats import binom

    def power(m: int) -> float:
        chances = binom.pmf(range(m + 1), m, differ / pairs)
        return sum(chances[k] * _sign_power(k, share, level) for k in range(1, m + 1) if chances[k] > 1e-6)

    return _first(power, pairs, goal)


def _sign_power(n: int, share: float, level: float) -> float:
    """The chance that a sign test of n values decides, of which this share lies on one side in the long run."""
    from scipy.special import bdtrc

    k = next((k for k in range(n // 2, n + 1) if sign_p(k, n) <= 1 - level + 1e-12), None)
    return 0.0 if k is None else share**n if k == n else float(bdtrc(k - 1, n, share))


def _first(power: Callable[[int], float], above: int, goal: float) -> int | None:
    """The least m > above with power(m) >= goal, where power rises in steps and falls between them."""
    return next((m for m in range(above + 1, MOST_RUNS) if power(m) >= goal), None)
