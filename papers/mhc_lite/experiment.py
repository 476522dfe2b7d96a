"""What papers/mhc_lite measures by itself: exact statements and times; and the broken mixing of `byte_decoder`.

The language models are in `repro.experiments.byte_decoder`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from repro.models.slots import linear
from repro.papers.mhc_lite.method import MHC, MHCLite, mix_permutations, sinkhorn
from repro.papers.rmsnorm import RMSNorm
from repro.tasks import Measures, Timed, Worst, timed
from repro.train import generator

# --- broken arms of byte_decoder -------------------------------------------------------------------------------------


class Uniform(MHCLite):
    """H_res = 1/n: all streams become their mean at every sub-layer."""

    def residual(self, logits: Tensor) -> Tensor:
        return torch.full((*logits.shape[:-1], self.streams, self.streams), 1 / self.streams).to(logits)


class Cold(MHCLite):
    """H_res = (sum_r p_r P_r) / 2: doubly stochastic but for its scale, so that the streams are halved."""

    def residual(self, logits: Tensor) -> Tensor:
        return super().residual(logits) / 2


# --- doubly stochastic: Section 3 ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stochastic:
    streams: int
    draws: int
    deviations: tuple[float, ...]  # of the logits


def row_softmax(logits: Tensor, table: Tensor) -> Tensor:
    """All permutations but the last, and in its place a matrix whose rows alone sum to 1."""
    table = table.clone()
    table[-1] = 0.0
    table[-1, :, 0] = 1.0
    return mix_permutations(logits, table)


def stochastic(arm: str, seed: int, config: Stochastic, device: torch.device) -> Measures:
    """Largest deviation of row and column sums from 1, in float64 and float32, over logits of several deviations."""
    source, worst = generator("mhc_lite stochastic", seed), Worst()
    table = MHCLite(nn.Identity(), RMSNorm, 1, 0, 1, streams=config.streams).table
    n = config.streams
    for deviation in config.deviations:
        shape = (config.draws, n * n if arm == "sinkhorn" else len(table))
        logits = deviation * torch.randn(shape, generator=source, dtype=torch.float64).to(device)
        for name, dtype in (("", torch.float64), ("_float32", torch.float32)):
            given, permuted = logits.to(dtype), table.to(device, dtype)
            if arm == "sinkhorn":
                h = sinkhorn(given.unflatten(-1, (n, n)))
            else:
                h = {"lite": mix_permutations, "row_softmax": row_softmax}[arm](given, permuted)
            worst.absolute(f"row_error{name}", h.sum(-1), 1.0)
            worst.absolute(f"column_error{name}", h.sum(-2), 1.0)
    return dict(worst)


@dataclass(frozen=True)
class Example:
    alpha: float


def example(arm: str, seed: int, config: Example, device: torch.device) -> Measures:
    """Column sums of [[1, a, a], [1, a, a], [a, 1, 1]] after Sinkhorn, the rows in an order that the seed draws."""
    rows = torch.tensor([[0, 1, 1], [0, 1, 1], [1, 0, 0]], dtype=torch.float64, device=device)
    rows = rows[torch.randperm(3, generator=generator("mhc_lite example", seed))]
    sums = sinkhorn(math.log(config.alpha) * rows, {"rounds_20": 20, "rounds_1000": 1000}[arm]).sum(-2)
    return {"first_column": float(sums[0]), "other_columns": float(sums[1:].mean())}


# --- the start -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Start:
    width: int
    tokens: int


class NoOffset(MHCLite):
    """All permutations start alike."""

    def start(self) -> Tensor:
        return torch.zeros(math.factorial(self.streams))


def start(arm: str, seed: int, config: Start, device: torch.device) -> Measures:
    """The largest gap between the weight of the identity at the start and 1 / (1 + 23 e^-8), whatever the input."""
    kind = {"lite": MHCLite, "no_offset": NoOffset}[arm]
    layer = kind(nn.Identity(), RMSNorm, config.width, 0, 1).double().to(device)
    x = torch.randn(config.tokens, 4, config.width, generator=generator("mhc_lite start", seed), dtype=torch.float64)
    h = layer.mixing(x.to(device))[2].detach()
    p = 1 / (1 + 23 * math.exp(-8))
    # Of the 24 permutations 6 leave a given stream where it is, the identity among them.
    return {"start_error": float((h.diagonal(dim1=-2, dim2=-1) - (p + 5 * (1 - p) / 23)).abs().max())}


# --- time ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Speed(Timed):
    width: int
    tokens: int


def passes(arm: str, seed: int, config: Speed, device: torch.device) -> Callable[[], None]:
    """Forward and backward through one connection around a feed-forward layer."""
    source, d = generator("mhc_lite speed", seed), config.width
    branch = nn.Sequential(*(linear(d, d, bias=False, std=0.02, generator=source) for _ in range(2)))
    kind = {"lite": MHCLite, "mhc": MHC, "mhc_one_round": partial(MHC, iterations=1)}[arm]
    layer = kind(branch, RMSNorm, d, 0, 1).to(device)
    x = torch.randn(config.tokens, 4, d, generator=source).to(device)

    def call() -> None:
        layer.zero_grad()
        layer(x).sum().backward()

    return call


speed_group = timed(passes, reference="mhc", memory=False)
