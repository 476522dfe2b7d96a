"""Every drop-in method in the same models."""
