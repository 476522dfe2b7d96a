"""What papers/deeper_layers measures: a trained model without some blocks, exactness of removal, a random walk."""

import copy
from dataclasses import dataclass
from functools import lru_cache
from statistics import median

import torch
from torch import Tensor

from repro.experiments.trained_lm_depth import Passages, damaged, passages
from repro.models.gpt import GPT
from repro.models.pretrained import stream
from repro.papers.deeper_layers.method import angular_distance, block_distances, deepest_block, remove_blocks
from repro.tasks import Measures
from repro.train import cross_entropy, generator

# --- pruning ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Pruning(Passages):
    """n  consecutive blocks that are removed;  calibration  further passages, over which scores are averaged."""

    n: int
    calibration: int


@dataclass(frozen=True)
class Scan:
    """Of each block of n that may go: what it costs, and what different rules look at."""

    whole: float  # nats per token of the whole model
    damage: list[float]  # nats per token more without the block
    angle: list[float]  # at the last token
    all_tokens: list[float]  # angles at all tokens
    euclidean: list[float]  # lengths of the differences at the last token
    deepest: int


@lru_cache(maxsize=1)
@torch.no_grad()
def scan(seed: int, config: Pruning, device: torch.device) -> Scan:
    """One seed's passages through the model without each block in its turn; kept for the other arms of the seed."""
    model, n = damaged("trained", seed, config, device), config.n
    x_BT, y_BT = passages(seed, config, device, windows=config.calibration + config.windows)
    seen_BT, x_BT, y_BT = x_BT[: config.calibration], x_BT[config.calibration :], y_BT[config.calibration :]
    states = stream(model, x_BT)
    whole, damage = float(cross_entropy(model.head(model.norm(states[-1])), y_BT)), []
    for start in range(len(model.blocks) - n):
        x_BTD = states[start]
        for block in model.blocks[start + n :]:
            x_BTD = block(x_BTD)
        damage.append(float(cross_entropy(model.head(model.norm(x_BTD)), y_BT)) - whole)
    seen = stream(model, seen_BT)
    pairs = list(zip(seen, seen[n:-1], strict=False))
    return Scan(
        whole,
        damage,
        block_distances(model, seen_BT, n).tolist(),
        [float(angular_distance(a, b).mean()) for a, b in pairs],
        [float((a - b)[:, -1].norm(dim=-1).mean()) for a, b in pairs],
        deepest_block(model, n),
    )


def spearman(a: list[float], b: list[float]) -> float:
    """Correlation of the ranks; there are no ties."""
    ranks = torch.tensor([a, b], dtype=torch.float64).argsort(1).argsort(1).double()
    return float(torch.corrcoef(ranks)[0, 1])


def pruning(arm: str, seed: int, config: Pruning, device: torch.device) -> Measures:
    """Damage of the block that a rule picks, over the median of all; a rule takes the block of the least score."""
    found = scan(seed, config, device)
    count = len(found.damage)
    shuffle = torch.randperm(count, generator=generator("deeper_layers shuffle", seed)).tolist()
    score = {
        "similar": found.angle,
        "all_tokens": found.all_tokens,
        "euclidean": found.euclidean,
        "farthest": [-angle for angle in found.angle],
        "shuffled": [found.angle[i] for i in shuffle],
        "deepest": [float(abs(start - found.deepest)) for start in range(count)],
        "best": found.damage,
    }[arm]
    start = min(range(count), key=score.__getitem__)
    return {
        "damage": found.damage[start],
        "relative_damage": found.damage[start] / median(found.damage),
        "start": start / (count + config.n),
        "rank_correlation": spearman(score, found.damage),
        "block": [float(i) for i in range(count)],
        "angles": found.angle,
        "damages": found.damage,
        "val_nats": found.whole,
    }


# --- identities -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Rewiring:
    width: int
    depth: int
    n: int


@torch.no_grad()
def rewiring(arm: str, seed: int, config: Rewiring, device: torch.device) -> Measures:
    """Logits without n blocks against x^(l) fed to block l + n, in float64; `one_late` removes l + 1, ..., l + n."""
    source = generator("deeper_layers rewiring", seed)
    model = GPT(32, 16, config.width, config.depth, heads=2, generator=source).to(device).double()
    tokens, error = torch.randint(32, (3, 16), generator=source).to(device), 0.0
    states = stream(model, tokens)
    for start in range(config.depth - config.n - 1):
        x_BTD = states[start]
        for block in model.blocks[start + config.n :]:
            x_BTD = block(x_BTD)
        pruned = remove_blocks(copy.deepcopy(model), start + (arm == "one_late"), config.n)
        error = max(error, float((pruned(tokens) - model.head(model.norm(x_BTD))).abs().max()))
    return {"error": error}


@dataclass(frozen=True, kw_only=True)
class Walk:
    width: int
    depth: int
    walks: int


def walk(arm: str, seed: int, config: Walk, device: torch.device) -> Measures:
    """Exponent with which the angle between neighbours of a random walk falls; `renormalised` keeps its length at that
    of the first step, as Post-LN does.
    """
    source = generator("deeper_layers walk", seed)
    steps = torch.randn(config.depth + 1, config.walks, config.width, generator=source, dtype=torch.float64).to(device)
    x, angles = steps[0], []
    for step in steps[1:]:
        y = x + step
        angles.append(angular_distance(x, y).mean())
        x = y * (config.width**0.5 / y.norm(dim=-1, keepdim=True)) if arm == "renormalised" else y
    depths = torch.arange(1, config.depth + 1, dtype=torch.float64, device=device).log()
    return {"exponent": _slope(depths[8:], torch.stack(angles).log()[8:])}


def _slope(x: Tensor, y: Tensor) -> float:
    return float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())
