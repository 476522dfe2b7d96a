"""An experiment that does nothing: what a trial costs beside its own work (`benchmarks/scheduler.py`)."""

from dataclasses import dataclass

import torch

ARMS = {"noop": None}


@dataclass(frozen=True)
class Noop:
    level: int


def noop(arm: str, seed: int, config: Noop, device: torch.device) -> dict[str, float]:
    """The seed itself."""
    return {"seed": float(seed)}
