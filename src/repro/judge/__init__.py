"""From rows to verdicts, and how often they err."""

from repro.judge.claims import judge, judge_claim, load_rows

__all__ = ["judge", "judge_claim", "load_rows"]
