"""The formats and paths of rows, verdicts, plans and tables of the arena."""
