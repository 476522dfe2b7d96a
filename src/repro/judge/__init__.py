"""From rows to verdicts, and how often they err."""
