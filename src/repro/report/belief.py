"""What to believe of a paper, in three or four sentences made of stored fields alone."""

from typing import Any

from repro import words
from repro.report import identities
from repro.report.claims import counts
from repro.report.records import Record


def sentences(one: Record) -> list[str]:
    """The headline's verdict, what guards it, how often it was registered before, and what else is known."""
    return [_verdict(one), _guards(one), *_looks(one), _beside(one)]


def _verdict(one: Record) -> str:
    claim = one.paper["claims"][one.headline]
    found = one.strongest(one.headline)
    if found is None:
        return "The claim that the paper is known for has not been measured here yet."
    result, judged = found
    told = words.verdict_words(judged["state"], judged.get("mark"), claim.get("fidelity"))
    value, unit = judged.get("estimate"), judged.get("unit")
    low, high = judged.get("interval") or (None, None)
    ours = words.without_interval(value, low, high, unit)
    if ours is None:
        ends = "" if low is None and high is None else f" [{_end(low, '−∞')}, {_end(high, '∞')}]"
        ours = f"{words.number(value)}{ends}{f' {unit}' if unit else ''}"
    size = "" if ours == "–" else f" (ours {ours}; the paper: {words.told(claim['paper_value'])})"
    late = ", under rules that were changed after the rows were measured" if result.verdict["post_hoc"] else ""
    return f"The claim that the paper is known for is {told}, at profile {result.profile}{size}{late}."


def _end(value: float | None, open_: str) -> str:
    return open_ if value is None else words.number(value)


def _guards(one: Record) -> str:
    found = one.strongest(one.headline)
    if found is None:
        return "Nothing guards a verdict that is not there."
    judged, parts = found[1], []
    if judged.get("mark"):
        parts.append(words.MARKS[judged["mark"]])
    rules = words.rules(judged.get("rule"))
    controls = [k for k in judged.get("controls") or [] if counts(k, rules)]
    positive = judged.get("positive")
    if judged["state"] == "not_reproduced":  # controls guard a positive verdict, and say nothing of this one
        if positive and positive["state"] == "reproduced":
            parts.append(f"the known-good arm ({positive['arm']}) shows the effect in the same setting")
    elif controls:
        came = sum(bool(k["ok"]) for k in controls)
        alone = "the negative control comes" if came else "the negative control does not come"
        told = f"{came} of {len(controls)} negative controls come" if len(controls) > 1 else alone
        parts.append(f"{told} out as expected")
    if trivial := judged.get("trivial"):
        beats = "beats" if trivial["state"] == "reproduced" else "is not shown to beat"
        parts.append(f"the arm {trivial['arm']} {beats} the trivial predictor ({trivial['predictor']})")
    if judged.get("tuned"):
        parts.append("every arm has its own tuning")
    if (mutants := judged.get("mutants")) and judged["state"] == "reproduced":
        missed = [m["arm"] for m in mutants if not m["told"]]
        parts.append(
            f"the verdict cannot tell {words.listed(missed)} from the method"
            if missed
            else f"all {len(mutants)} near wrong methods are told from it"
            if len(mutants) > 1
            else "the near wrong method is told from it"
        )
    text = "; ".join(parts) or "no control guards this verdict"
    return f"{text[0].upper()}{text[1:]}."


def _looks(one: Record) -> list[str]:
    """The registrations whose rows were read before the present one; nothing where there is none."""
    found = one.strongest(one.headline)
    earlier = found[0].earlier if found else []
    if not earlier:
        return []
    judged, several, ends = found[1], len(earlier) > 1, []
    for look in earlier:
        other = "" if look["headline"] in (one.headline, None) else ", with another headline"
        state = words.verdict_words(look["state"]) if look["state"] else "without a verdict"
        ends.append(f"{state} on seeds {look['seeds'][0]} to {look['seeds'][1]}{other}")
    before = f"{words.number(len(earlier))} registrations" if several else "one registration"
    told = (
        f"At this profile {before} with other rules, arms or seeds came before, whose rows were read: "
        f"{words.listed(ends)}; {'each of them' if several else 'it'} was one more chance to err"
    )
    if judged["state"] == "reproduced" and judged.get("p") is not None:
        looks = len(earlier) + 1
        p = min(1.0, looks * judged["p"])
        weak = ", more than the 5 % that one registration is allowed" if p > 0.05 else ""
        told += f" (p is {words.number(judged['p'])}, and {words.number(p)} if it is multiplied by {looks}{weak})"
    return [f"{told}."]


def _beside(one: Record) -> str:
    parts: list[str] = []
    exact = identities.section(one)
    if exact["of"]:
        of = f"{exact['verified']} of {exact['of']} exact statements about the method are"
        alone = f"the exact statement about the method is{'' if exact['verified'] else ' not'}"
        parts.append(f"{of if exact['of'] > 1 else alone} verified")
    others = _states(one)
    if others:
        parts.append(f"of its other claims {words.listed([f'{n} {word}' for word, n in others.items()])}")
    elsewhere = one.paper.get("elsewhere") or []
    if elsewhere:
        agree = {a: sum(e["agrees"] == a for e in elsewhere) for a in ("yes", "partly", "no")}
        told = [
            f"{n} {word}{'s' * (n == 1)}{more}"
            for (a, word, more) in (("yes", "agree", ""), ("partly", "agree", " in part"), ("no", "disagree", ""))
            if (n := agree[a])
        ]
        several = len(elsewhere) != 1
        parts.append(f"of {len(elsewhere)} measurement{'s' * several} elsewhere {words.listed(told)}")
    text = "; ".join(parts) or "nothing else was measured"
    return f"{text[0].upper()}{text[1:]}."


def _states(one: Record) -> dict[str, int]:
    """Words of the verdicts on all claims but the headline, and how often each comes."""
    found: dict[str, int] = {}
    for name, claim in one.paper["claims"].items():
        if name == one.headline:
            continue
        known = one.strongest(name)
        state: dict[str, Any] = known[1] if known else {"state": "untested" if claim.get("untested") else "not_run"}
        word = words.verdict_words(state["state"], state.get("mark"), claim.get("fidelity"))
        found[word] = found.get(word, 0) + 1
    return found
