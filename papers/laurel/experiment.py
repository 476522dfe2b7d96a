"""What papers/laurel measures by itself: exact statements; and the broken connection that `byte_decoder` trains.

The language models are in `repro.experiments.byte_decoder`.
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from repro.models.gpt import GPT
from repro.models.slots import Pre, identity
from repro.papers.laurel.method import LaurelLR, LaurelPA, LaurelRW, LaurelRWLR, LowRank, ReadHistory, StartHistory
from repro.papers.rmsnorm import RMSNorm
from repro.tasks import Measures, relative
from repro.train import generator


class HalfRW(LaurelRW):
    """(alpha, beta) = softmax(w), which starts at (1/2, 1/2): a connection that halves the stream."""

    total = 1.0


VARIANTS = {
    "rw": LaurelRW,
    "lr": partial(LaurelLR, rank=4),
    "rw_lr": partial(LaurelRWLR, rank=4),
    "pa": LaurelPA,
    "pa_lr": partial(LaurelPA, rank=4),
}


@dataclass(frozen=True)
class Start:
    width: int
    depth: int
    heads: int
    context: int


def decoder(seed: int, config: Start, placement: object, history: bool) -> GPT:
    return GPT(
        256,
        config.context,
        config.width,
        config.depth,
        heads=config.heads,
        norm={"attention": RMSNorm, "feed_forward": RMSNorm, "final": lambda n: ReadHistory(RMSNorm(n))}
        if history
        else RMSNorm,
        placement=placement,
        after_embedding=StartHistory if history else identity,
        std=0.2,
        generator=generator("laurel start", seed),
    ).double()


def start(arm: str, seed: int, config: Start, device: torch.device) -> Measures:
    """How far an untrained decoder of each variant is from the plain one, in float64.

    The arm `random_b` starts B as A, `half` has weights of 1/2.
    """
    tokens = torch.randint(256, (2, config.context), generator=generator("laurel tokens", seed)).to(device)
    plain = decoder(seed, config, Pre, False).to(device)(tokens)
    errors = {}
    for name, placement in VARIANTS.items():
        chosen = HalfRW if arm == "half" and name == "rw" else placement
        model = decoder(seed, config, chosen, name.startswith("pa")).to(device)
        for part in model.modules():
            if arm == "random_b" and isinstance(part, LowRank):
                part.B.data.copy_(part.A.T)
        errors[f"error_{name}"] = relative(model(tokens), plain)
    return {**errors, "start_error": max(errors.values())}


@dataclass(frozen=True)
class Count:
    layers: int
    width: int
    rank: int


def count(arm: str, seed: int, config: Count, device: torch.device) -> Measures:
    """Parameters that RW+LR adds to `layers` connections, less 2 N (r D + 1); `shared` has one A and B for all."""
    made = [
        LaurelRWLR(nn.Identity(), identity, config.width, index, config.layers, rank=config.rank)
        for index in range(config.layers)
    ]
    if arm == "shared":
        for each in made:
            each.low_rank = made[0].low_rank
    added = sum(p.numel() for p in nn.ModuleList(made).parameters())
    return {"added": added, "count_error": added - 2 * config.layers * (config.rank * config.width + 1)}
