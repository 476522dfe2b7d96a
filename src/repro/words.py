"""Numbers, rules and states as a reader meets them."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

STATES = {
    "reproduced": "reproduced",
    "not_reproduced": "not reproduced",
    "inconclusive": "inconclusive",
    "not_run": "not run",
    "untested": "not tested",
    "verified": "verified",
    "violated": "violated",
    "incomplete": "incomplete",
}
SIGNS = {
    "reproduced": "✓",
    "not_reproduced": "✕",
    "inconclusive": "≈",
    "not_run": "–",
    "untested": "–",
    "stale": "↻",
    "post_hoc": "†",
    "verified": "=",
    "violated": "≠",
    "incomplete": "–",
}
MARKS = {
    "not_shown": "not shown here: no arm that is known to show the effect shows it in this setting",
    "phenomenon_only": "phenomenon only: the method without its idea meets the rule too",
    "not_learnt": "the baseline has not learnt: it does not beat the trivial predictor",
    "edge_of_grid": "edge of the grid: the best level of the tuned factor is the first or the last that was tried",
}
SCALES = {"scaled": "at small scale", "proxy": "on another task", "analytic": "in calculation"}
SMALLER = {"reproduced": "supported", "not_reproduced": "contradicted", "inconclusive": "undecided"}
FIDELITY = {
    "analytic": "analytic: an identity or a fixed point, which needs no training",
    "same": "same: the paper's own setting",
    "scaled": "scaled: the paper's task with a smaller model or less data",
    "proxy": "proxy: another task that shows the same effect",
}
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def number(value: float | None, digits: int = 3) -> str:
    """`value` to three significant digits, with a true minus sign and powers of ten: −0.0113, 1.3 × 10⁻⁷."""
    if value is None:
        return "–"
    if math.isinf(value):
        return "−∞" if value < 0 else "∞"
    if value == 0:
        return "0"
    if abs(value) < 1e6 and value == int(value) and (isinstance(value, int) or abs(value) >= 100):
        return f"{int(value):,}".replace(",", "\u202f").replace("-", "−")
    text = f"{value:.{digits - 1}e}"
    mantissa, _, power = text.partition("e")
    exponent = int(power)
    if -4 <= exponent < 6:
        return f"{float(text):.{max(0, digits - 1 - exponent)}f}".replace("-", "−")
    return f"{mantissa} × 10{str(exponent).translate(_SUPERSCRIPT)}".replace("-", "−")


def with_ends(value: float | None, low: float | None, high: float | None) -> tuple[str, str, str]:
    """An estimate and the ends of its interval, with enough digits that half of the interval shows two: 1.0266, 1.0249.

    An end that is None is infinite.
    """
    finite = [x for x in (low, value, high) if x is not None and math.isfinite(x)]
    half = (max(finite) - min(finite)) / 2 if finite else 0.0

    def told(x: float | None) -> str:
        if not half or x is None or not math.isfinite(x) or x == 0:
            return number(x)
        return number(x, min(6, max(3, math.floor(math.log10(abs(x))) + 2 - math.floor(math.log10(half)))))

    return told(value), "−∞" if low is None else told(low), "∞" if high is None else told(high)


def is_count(unit: str | None) -> bool:
    """Whether an estimate of this unit counts the cells in which a condition holds: `of 3 cells`."""
    return (unit or "").startswith("of ")


def without_interval(value: float | None, low: float | None, high: float | None, unit: str | None) -> str | None:
    """What an estimate is that is no number with an interval around it; None for one that is.

    Nothing is `–`; a run that never reached its target leaves one end, `below 0.09`; a count of cells goes from those
    that hold to those that are not shown to fail, `0 to 4 of 4 cells`.
    """
    if value is None and low is None and high is None:
        return "–"
    if value is None and None in (low, high):
        told = f"below {number(high)}" if low is None else f"above {number(low)}"
        return told if unit in (None, "", "ratio") else f"{told} {unit}"
    if value is not None and is_count(unit):
        several = None not in (low, high) and low != high
        return f"{low:g} to {high:g} {unit}" if several else f"{round(value)} {unit}"
    return None


def exactly(value: float) -> str:
    """A number that somebody wrote down, with no digit added or lost: 0.02, 10⁻¹⁰, 1,234 as 1 234."""
    if value == int(value) and abs(value) < 1e6:
        return number(int(value))
    if 1e-4 <= abs(value) < 1e6:
        return f"{value!r}".replace("-", "−")
    mantissa, _, power = f"{value:.15e}".partition("e")
    digits = mantissa.rstrip("0").rstrip(".").replace("-", "−")
    ten = f"10{str(int(power)).translate(_SUPERSCRIPT)}"
    return ten if digits == "1" else f"{digits} × {ten}"


def verdict_words(state: str, mark: str | None = None, fidelity: str | None = None) -> str:
    """Return a verdict as people read it: `reproduced` at the paper's own scale alone, else `supported at small scale`.

    The mark `not_shown` reads "not shown here" and `phenomenon_only` "phenomenon only"; both name the scale as well.
    What is no state of a claim (not run, untested, verified, violated) reads as it is.
    """
    scale = SCALES.get(fidelity or "")
    if state not in SMALLER:
        return STATES.get(state, state)
    if state == "inconclusive" and mark in ("not_shown", "phenomenon_only"):
        word = {"not_shown": "not shown here", "phenomenon_only": "phenomenon only"}[mark]
        return f"{word}, {scale}" if scale else word
    return f"{SMALLER[state]} {scale}" if scale else STATES[state]


def sentence(text: str) -> str:
    """Return a reason with a capital at its beginning and a full stop at its end."""
    text = text.strip()
    if not text:
        return text
    first = (
        text if text.split(" ", 1)[0].isidentifier() and "_" in text.split(" ", 1)[0] else text[0].upper() + text[1:]
    )
    return first if first[-1] in ".!?" else f"{first}."


def percent(level: float) -> str:
    return f"{100 * level:.4g} %"


def rate(value: float) -> str:
    """A share in per cent, to one decimal and without the sign: 0.0213 as 2.1; none and all as 0 and 100."""
    return f"{100 * value:.0f}" if value in (0, 1) else f"{100 * value:.1f}"


def seconds(value: float) -> str:
    """A cost: `0.4 s`, `12 s`, `3.5 min`, `2.1 h`."""
    for size, unit in ((3600, "h"), (60, "min")):
        if value >= 1.5 * size:
            return f"{value / size:.1f} {unit}"
    return f"{value:.0f} s" if value >= 9.95 else f"{value:.1f} s"


def listed(items: Sequence[Any], last: str = "and") -> str:
    words = [str(i) for i in items]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} {last} {words[-1]}" if words else ""


def all_of(count: int) -> str:
    """`both`, or `all 3`."""
    return "both" if count == 2 else f"all {count}"


def levels(factors: Mapping[str, Any]) -> str:
    """`depth 4, lr 0.01`."""
    return ", ".join(f"{k} {v}" for k, v in factors.items())


def told(value: Mapping[str, Any]) -> str:
    """The paper's number in its own words, else as numbers with the unit."""
    if text := value.get("text"):
        return re.sub(r"(?<=\d) (?=%)", "\u00a0", str(text))
    unit = f" {value['unit']}" if value.get("unit") else ""
    if value.get("value") is not None:
        return exactly(value["value"]) + unit
    ends = [exactly(value[k]) for k in ("low", "high") if value.get(k) is not None]
    return "–".join(ends) + unit if ends else "no number given"


def region_text(rule: Mapping[str, Any], unit: str = "") -> str:
    """`above 2 ms`, `between 0.05 and 0.7`; empty where the rule gives no region."""
    unit = f" {unit}" if unit else ""
    if rule.get("between") is not None:
        low, high = rule["between"]
        return f"between {exactly(low)} and {exactly(high)}{unit}"
    if rule.get("min") is not None:
        return f"above {exactly(rule['min'])}{unit}"
    return f"below {exactly(rule['max'])}{unit}" if rule.get("max") is not None else ""


def rules(rule: Any) -> list[Mapping[str, Any]]:
    """A rule or a list of rules as a list."""
    return [] if rule is None else list(rule) if isinstance(rule, Sequence) else [rule]


def rule_text(rule: Mapping[str, Any], measures: Mapping[str, Mapping[str, Any]]) -> str:
    """One rule as a sentence."""
    against, told = rule.get("against"), [_statement(rule, measures)]
    if rule.get("at"):
        told[0] += f" at {levels(rule['at'])}"
    if rule.get("per") is not None:
        some = f"at {rule['at_least']} or more levels of" if rule.get("at_least") else "at every"
        told.append(f"{some} {rule['per']}")
    if rule.get("statistic") == "sign":
        told.append("judged by the exact sign test")
    if rule["kind"] != "identity":
        paired = "" if not against else ", not paired" if rule.get("pair") is False else ", paired by seed"
        told.append(f"at level {percent(rule.get('level') or 0.95)}{paired}")
    text = "; ".join(told) + "."
    if rule.get("name"):
        return f"{rule['name']}: {text}"
    return text if text.startswith(rule["measure"]) else text[0].upper() + text[1:]


def _subject(rule: Mapping[str, Any], measures: Mapping[str, Mapping[str, Any]]) -> tuple[str, str]:
    """What a rule speaks of, and its unit: `val_nats of rmsnorm`, `the step at which rmsnorm reaches loss 2.2`."""
    measure, arm, against = rule["measure"], rule["arm"], rule.get("against")
    subject, unit = f"{measure} of {arm}", measures.get(measure, {}).get("unit", "")
    if steps := rule.get("steps_to"):
        best = steps["target"] == "best"
        goal = f"the best {measure} of {against}" if best else f"{measure} {exactly(steps['target'])}"
        subject = f"the {steps['axis']} at which {arm} reaches {goal}"
        unit = measures.get(steps["axis"], {}).get("unit", "")
    if contrast := rule.get("contrast"):
        ratio = contrast["as"] == "ratio"
        first, second = contrast["levels"]
        how = "divided by that at" if ratio else "minus that at"
        subject, unit = f"{subject} at {contrast['factor']} {first} {how} {second}", "" if ratio else unit
    return subject, unit


def _statement(rule: Mapping[str, Any], measures: Mapping[str, Mapping[str, Any]]) -> str:
    kind, against = rule["kind"], rule.get("against")
    subject, unit = _subject(rule, measures)
    higher = measures.get(rule["measure"], {}).get("better") == "higher" and not rule.get("steps_to")
    better, worse = ("higher", "lower") if higher else ("lower", "higher")
    margin = exactly(rule.get("margin") or 0) + (f" {unit}" if unit else "")
    more = f" by more than {margin}" if rule.get("margin") else ""
    if kind == "identity" and rule.get("bound") is None:
        return f"{subject} is {region_text(rule, unit)} on every row"
    if kind == "failures":
        past = f"below {exactly(rule['below'])}" if rule.get("below") is not None else f"above {exactly(rule['above'])}"
        share = f"the share of runs of {rule['arm']} that fail (diverge, or end with {rule['measure']} {past})"
        return f"{share} is {f'smaller than that of {against}' if against else region_text(rule)}"
    if kind == "ranks":
        return (
            f"{rule['arm']} ranks before {listed(rule['others'])} in {rule['measure']}, over all levels of "
            f"{rule['over']} (Friedman's test, then Wilcoxon's of each pair)"
        )
    if kind == "identity":
        return f"|{rule['measure']}| of {rule['arm']} stays below {exactly(rule['bound'])} on every row"
    if kind == "bound":
        return f"the mean of {subject} is {region_text(rule, unit)}"
    if kind == "ratio":
        return f"{subject} divided by that of {against} is {region_text(rule)}"
    if kind == "ordering":
        return f"{subject} is {better} than that of {against}{more}"
    if kind == "noninferiority":
        return f"{subject} is not worse ({worse}) than that of {against} by {margin} or more"
    if kind == "equivalence" and rule.get("ratio") is not None:
        return f"{subject} divided by that of {against} is {region_text({'between': rule['ratio']})}"
    if kind == "equivalence":
        return f"{subject} and that of {against} differ by less than {margin}"
    if kind == "slope":
        x = rule["x"]
        axes = {"logx": f"log {x}", "logy": f"{x}, on a log scale,", "loglog": f"{x}, on log-log axes,"}
        over = axes.get(rule.get("scale", ""), x)
        less = f" minus that of {against}" if against else ""
        return f"the slope of {subject} over {over}{less} is {region_text(rule)}"
    if kind == "count":
        cells = [rule["cells"]] if isinstance(rule["cells"], str) else rule["cells"]
        cell = f"is {better} than that of {against}{more}"
        if region := region_text(rule, "" if against else unit):
            cell = f"divided by that of {against} is {region}" if against else f"is {region}"
        return f"in at least {rule['at_least']} cells of {listed(cells)}, {subject} {cell}"
    return f"{kind} of {subject}"


def control_text(control: Mapping[str, Any]) -> str:
    """`layernorm in place of rmsnorm`."""
    swaps = (control.get("replace") or {}).items()
    words = [f"{new} in place of {old}" for old, new in swaps if old != new or not control.get("seed_offset")]
    words += [new for old, new in swaps if old == new and control.get("seed_offset")]
    if control.get("at"):
        words.append(f"at {levels(control['at'])}")
    if control.get("experiment"):
        words.append(f"on {control['experiment']}")
    if control.get("seed_offset"):
        words.append("under other seeds")
    return ", ".join(words) or "the same rule"


def itself(rule: Mapping[str, Any], replace: Mapping[str, str]) -> bool:
    """Whether a rule, with these arms replaced, only compares an arm with itself."""
    others = rule.get("others") or [rule[k] for k in ("against",) if rule.get(k)]
    arm = replace.get(rule["arm"], rule["arm"])
    return bool(others) and all(replace.get(other, other) == arm for other in others)


def alone(control: Mapping[str, Any], rules: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The rules in which a control only compares an arm with itself, at the same seeds."""
    return [r for r in rules if not control.get("seed_offset") and itself(r, control.get("replace") or {})]


def alone_text(control: Mapping[str, Any], rules: Sequence[Mapping[str, Any]]) -> str | None:
    """What is to be said of a control that compares an arm with itself, in every rule or in some; None of others."""
    own = alone(control, rules)
    if not own:
        return None
    where = "" if len(own) == len(rules) else f"in {listed([r.get('name') or r['kind'] for r in own])} "
    return f"{where}the comparator against itself, which shows nothing"


def expected(control: Mapping[str, Any]) -> str:
    """What must come of a control; the method without its idea must fail, whatever is written."""
    return EXPECTED["not_reproduced" if control.get("without") == "idea" else control["expect"]]


EXPECTED = {"not_reproduced": "not reproduced", "not_met": "anything but reproduced", "violated": "violated"}
