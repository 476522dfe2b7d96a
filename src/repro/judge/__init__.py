"""From rows to verdicts, and how often they err.

values      rows -> one value per arm and seed
decide      one parameter against a region
rules       values -> the decision on a rule
identities  exact statements, verified or violated on every row
claims      rules, controls and gates -> the verdict of a claim
compare     whether two verdicts are the same
multiplicity  q values over all verdicts
quality     the size of the test under Gaussian seeds
"""

from repro.judge.claims import judge, judge_claim, load_rows
from repro.judge.compare import difference, same
from repro.judge.multiplicity import multiplicity

__all__ = ["difference", "judge", "judge_claim", "load_rows", "multiplicity", "same"]
