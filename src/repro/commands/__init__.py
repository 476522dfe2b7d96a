"""What each command of `repro` does."""
