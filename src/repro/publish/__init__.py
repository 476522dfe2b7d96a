"""Generated files: DVC stages, READMEs, citations."""
