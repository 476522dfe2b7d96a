"""What papers/depth_use measures: contributions and skipped blocks of a trained model, exactness of skips, a walk."""

from dataclasses import dataclass

import torch
from torch import Tensor

from repro.experiments.trained_lm_depth import Damped, Passages, damaged, passages, rewired
from repro.models.gpt import GPT
from repro.models.pretrained import Decoder, stream
from repro.papers.depth_use.method import contributions, skip_effects, skipped
from repro.tasks import Measures, Worst
from repro.train import generator

# --- a trained model --------------------------------------------------------------------------------------------------


def halves(curve: Tensor) -> float:
    """Mean over the second half of the blocks over that of the first, the first and the last block left out."""
    half = len(curve) // 2
    return float(curve[half:-1].mean() / curve[1:half].mean())


def per_later_block(effects: Tensor) -> Tensor:
    """Of (s, l) the mean over the blocks l after s; the last s has none."""
    after = torch.arange(len(effects) - 1, 0, -1)
    return torch.cat([effects.sum(1)[:-1] / after, effects.new_zeros(1)])


def model_of(arm: str, seed: int, config: Passages, device: torch.device) -> Decoder:
    """The model of an arm; `early_damped` is the mirror of `damped`: the first half adds a tenth."""
    if arm != "early_damped":
        return damaged(arm, seed, config, device)
    model = damaged("trained", seed, config, device)
    half = len(model.blocks) // 2
    return rewired(model, [Damped(block, 0.1 if i < half else 1.0) for i, block in enumerate(model.blocks)])


def trained(arm: str, seed: int, config: Passages, device: torch.device) -> Measures:
    """What each block contributes, and what skipping it changes, at all tokens and at future ones."""
    model, (x_BT, _) = model_of(arm, seed, config, device), passages(seed, config, device)
    relative, cosine = contributions(model, x_BT)
    later, output = skip_effects(model, x_BT, reduction="mean")
    future_later, future_output = skip_effects(model, x_BT, before=config.context // 2, reduction="mean")
    later, future_later = per_later_block(later), per_later_block(future_later)
    third = len(cosine) // 3
    return {
        "output_ratio": halves(output),
        "later_ratio": halves(later),
        "future_output_ratio": halves(future_output),
        "future_later_ratio": halves(future_later),
        "contribution_ratio": halves(relative),
        "cosine_gain": float(cosine[2 * third : -1].mean() - cosine[third : 2 * third].mean()),
        "block": [float(i) for i in range(len(cosine))],
        "outputs": output.tolist(),
        "future_outputs": future_output.tolist(),
        "laters": later.tolist(),
        "contributions": relative.tolist(),
        "cosines": cosine.tolist(),
    }


# --- identities -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Probes:
    width: int
    depth: int


@torch.no_grad()
def probes(arm: str, seed: int, config: Probes, device: torch.device) -> Measures:
    """What skipping a block below position 8 must leave as it was, in float64, and what the block must return there.

    `unmasked` skips the later positions too; `block_before` skips the block before the one that is named.
    """
    source = generator("depth_use probes", seed)
    model = GPT(32, 16, config.width, config.depth, heads=2, std=0.3, generator=source).to(device).double()
    tokens, worst = torch.randint(32, (3, 16), generator=source).to(device), Worst()
    whole = stream(model, tokens)
    for s in range(1, config.depth):
        with skipped(model, s - (arm == "block_before"), None if arm == "unmasked" else 8):
            h = stream(model, tokens)
        for before, after in zip(whole[: s + 1], h, strict=False):
            worst.absolute("past_error", after, before)
        worst.absolute("read_error", h[s + 1][:, 1:8], whole[s][:, 1:8])
        worst.absolute("kept_error", h[s + 1][:, 8:], whole[s + 1][:, 8:])
    return dict(worst)


@dataclass(frozen=True, kw_only=True)
class Walk:
    width: int
    depth: int
    walks: int


def walk(arm: str, seed: int, config: Walk, device: torch.device) -> Measures:
    """Contributions to a stream of independent updates of one size; `renormalised` keeps its length, like Post-LN."""
    source = generator("depth_use walk", seed)
    steps = torch.randn(config.depth + 1, config.walks, config.width, generator=source, dtype=torch.float64).to(device)
    x, relative = steps[0], []
    for step in steps[1:]:
        relative.append((step.norm(dim=-1) / x.norm(dim=-1)).mean())
        x = x + step
        if arm == "renormalised":
            x = x * (config.width**0.5 / x.norm(dim=-1, keepdim=True))
    half = config.depth // 2
    return {"walk_ratio": float(torch.stack(relative[half:]).mean() / torch.stack(relative[:half]).mean())}
