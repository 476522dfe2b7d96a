"""What many verdicts together say: q values of Benjamini and Hochberg, and how many are expected to be chance."""

from collections.abc import Iterable, Mapping
from typing import Any

LEVEL = 0.05


def q_values(p: Iterable[float]) -> list[float]:
    """Return the q value of each p value: the least false discovery rate at which it would be called reproduced."""
    from scipy.stats import false_discovery_control

    p = list(p)
    return [float(q) for q in false_discovery_control(p)] if p else []


def multiplicity(verdicts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what the front page says of all stored verdicts; identities, which have no error rate, take no part.

    {claims, reproduced, expected_false, weak, q}: `q` maps (paper, profile, claim) to its q value, `weak` lists those
    called reproduced whose q value is above 5 %, and `expected_false` is the number of claims called reproduced that
    chance alone would give: 5 % of those that are not true, whose number is estimated from the p values above one half
    (Storey) and is at most all.
    """
    entries = [
        ((document["paper"], document["profile"], name), claim)
        for document in verdicts
        for name, claim in document["claims"].items()
        if claim.get("p") is not None
    ]
    names, ps = [name for name, _ in entries], [claim["p"] for _, claim in entries]
    q = dict(zip(names, q_values(ps), strict=True))
    reproduced = [name for name, claim in entries if claim["state"] == "reproduced"]
    untrue = min(len(ps), 2 * sum(p > 0.5 for p in ps))
    return {
        "claims": len(entries),
        "reproduced": len(reproduced),
        "expected_false": LEVEL * untrue,
        "weak": [name for name in reproduced if q[name] > LEVEL],
        "q": q,
    }
