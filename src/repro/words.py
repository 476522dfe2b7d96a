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
}
SIGNS = {
    "reproduced": "✓",
    "not_reproduced": "✕",
    "inconclusive": "≈",
    "not_run": "–",
    "untested": "–",
    "stale": "↻",
    "post_hoc": "†",
}
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
    if select := rule.get("select"):
        told.append(f"with {select['factor']} chosen on the tuning seeds")
    if rule["kind"] != "identity":
        paired = "" if not against else ", not paired" if rule.get("pair") is False else ", paired by seed"
        told.append(f"at level {percent(rule.get('level') or 0.95)}{paired}")
    sentence = "; ".join(told) + "."
    if rule.get("name"):
        return f"{rule['name']}: {sentence}"
    return sentence if sentence.startswith(rule["measure"]) else sentence[0].upper() + sentence[1:]


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
    words = [f"{new} in place of {old}" for old, new in (control.get("replace") or {}).items()]
    if control.get("at"):
        words.append(f"at {levels(control['at'])}")
    if control.get("experiment"):
        words.append(f"on {control['experiment']}")
    if control.get("seed_offset"):
        words.append("other seeds")
    return ", ".join(words) or "the same rule"


EXPECTED = {"not_reproduced": "not reproduced", "not_met": "anything but reproduced"}
