"""What papers/ademamix measures: a decoder trained with and without the slow mean, and sizes of steps."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from repro import tasks
from repro.experiments.optim_bytes import OptimBytes
from repro.experiments.walks import walk
from repro.papers.ademamix import AdEMAMix, beta3_at
from repro.train import draws

ALPHA = 5.0


class Debiased(AdEMAMix):
    """A wrong AdEMAMix, which corrects the slow mean for its start, as the fast one; right for a constant b3."""

    def update(self, p: Tensor, g: Tensor, state: dict, group: dict) -> None:
        t, b3 = state["step"], group["betas"][2]
        super().update(p, g, state, {**group, "alpha": group["alpha"] / (1 - b3**t)})


def _make(kind: type[AdEMAMix], slow: bool = True, warm: bool = True) -> Callable[..., torch.optim.Optimizer]:
    def make(groups: list[dict], lr: float, config: OptimBytes, seed: int) -> torch.optim.Optimizer:
        b3 = 0.5 ** (8 / config.steps) if slow else 0.9  # a half-life of an eighth of the run
        steps = config.steps if warm else 0
        betas = (0.9, 0.999, b3)
        return kind(groups, lr=lr, betas=betas, alpha=ALPHA, alpha_warmup=steps, beta3_warmup=steps if slow else 0)

    return make


ademamix = _make(AdEMAMix)
ademamix_fast = _make(AdEMAMix, slow=False)
ademamix_debiased = _make(Debiased)
ademamix_cold = _make(AdEMAMix, warm=False)


# --- sizes of steps, in float64 ---------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Steps:
    width: int
    steps: int


def steps(arm: str, seed: int, config: Steps, device: torch.device) -> tasks.Measures:
    """Distance from AdamW where alpha is 0, growth of a step along a constant gradient, evenness of the half-life."""
    draw, b3 = draws(device, "ademamix steps", seed), 0.999
    kind = Debiased if arm == "debiased" else AdEMAMix
    alpha = 1.0 if arm == "with_alpha" else 0.0
    g = draw(config.steps, config.width)
    ours = walk(lambda p: kind(p, alpha=alpha, weight_decay=0.1), g, 1.0)
    theirs = walk(lambda p: torch.optim.AdamW(p, weight_decay=0.1), g, 1.0)
    constant = torch.full((config.steps, 1), float(draw(1).exp()), dtype=torch.float64, device=device)
    path = walk(lambda p: kind(p, lr=1.0, betas=(0.9, 0.999, b3), alpha=3.0, eps=0.0), constant)
    t = torch.arange(2, config.steps + 1, dtype=torch.float64, device=device)
    expected = 1 + 3.0 * (1 - b3**t)
    shares = [i / 8 for i in range(9)]
    betas = [0.9 + share * (b3 - 0.9) if arm == "even_beta" else beta3_at(share, 0.9, b3) for share in shares]
    lives = torch.tensor(betas, dtype=torch.float64).log().reciprocal()
    return {
        "adamw_error": tasks.relative(ours, theirs),
        "growth_error": tasks.relative(path.diff(dim=0).abs()[:, 0], expected),
        "life_error": float(lives.diff().diff().abs().max() / lives.abs().max()),
    }
