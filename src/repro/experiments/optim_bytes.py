"""A small decoder on the bytes of Shakespeare, trained by different optimizers.

Shared by gradient_orthogonalization and ademamix; the arm `adamw` trains once for both.  The decoder is Pre-LN with
RMSNorm, rotary positions and GELU; weights start as N(0, 1 / width), embeddings as N(0, 1).  Arms of one seed start
from the same weights and see the same batches.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import import_module

import torch
from torch import nn

from repro.models.gpt import GPT
from repro.tasks import Measures, Text, language_model
from repro.train import cosine, generator


@dataclass(frozen=True)
class Arm:
    """What trains the decoder.

    optimizer  "module:attribute" of a function (groups, lr, config, seed) -> optimizer; a group may say `hidden`
    length     steps, as a multiple of the Config's, with a cosine of its own
    adam       whether embeddings, head and vectors have the rate `adam_lr` whatever the arm's own
    """

    optimizer: str
    length: float = 1.0
    adam: bool = False


ARMS = {
    "adamw": Arm("repro.experiments.optim_bytes:adamw"),
    "adamw_longer": Arm("repro.experiments.optim_bytes:adamw", length=1.25),
    "muon": Arm("repro.papers.gradient_orthogonalization.experiment:muon", adam=True),
    "orthogonal_sgdm": Arm("repro.papers.gradient_orthogonalization.experiment:orthogonal_sgdm", adam=True),
    "random": Arm("repro.papers.gradient_orthogonalization.experiment:random", adam=True),
    "ademamix": Arm("repro.papers.ademamix.experiment:ademamix"),
    "ademamix_fast": Arm("repro.papers.ademamix.experiment:ademamix_fast"),
    "ademamix_debiased": Arm("repro.papers.ademamix.experiment:ademamix_debiased"),
    "ademamix_cold": Arm("repro.papers.ademamix.experiment:ademamix_cold"),
}


@dataclass(frozen=True, kw_only=True)
class OptimBytes(Text):
    """weight_decay is that of matrices, times the rate as torch has it; momentum that of the arms which have one."""

    width: int
    depth: int
    heads: int
    warmup: float = 0.05
    floor: float = 0.1
    clip: float = 1.0
    weight_decay: float = 0.1
    momentum: float = 0.95
    adam_lr: float = 0.004
    text: str = "shakespeare"
    trivial: tuple[str, ...] = ("bigram", "trigram")


def adamw(groups: list[dict], lr: float, config: OptimBytes, seed: int) -> torch.optim.Optimizer:
    """torch.optim.AdamW with betas 0.9 and 0.999, as in the papers that compare with it."""
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.999), fused=True)


def named(name: str) -> Callable:
    """The attribute that "module:attribute" names."""
    module, attribute = name.split(":")
    return getattr(import_module(module), attribute)


def optim_bytes(arm: str, seed: int, config: OptimBytes, device: torch.device) -> Measures:
    """Held-out loss at the end."""
    kind = ARMS[arm]
    config = replace(config, steps=round(config.steps * kind.length))
    corpus = config.load(device)
    model = GPT(
        corpus.vocab,
        config.context,
        config.width,
        config.depth,
        heads=config.heads,
        generator=generator("optim_bytes", seed),
        norm=nn.RMSNorm,
        std=config.width**-0.5,
        embedding_std=1.0,
    )

    def groups(model: nn.Module) -> list[dict]:
        apart = {id(p) for part in (model.embedding, model.head) for p in part.parameters()}
        matrices = [p for p in model.parameters() if p.dim() > 1]
        scale = {"lr_scale": config.adam_lr / config.lr} if kind.adam else {}
        return [
            {
                "params": [p for p in matrices if id(p) not in apart],
                "weight_decay": config.weight_decay,
                "hidden": True,
            },
            {"params": [p for p in matrices if id(p) in apart], "weight_decay": config.weight_decay, **scale},
            {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0, **scale},
        ]

    def optimizer(groups: list[dict], lr: float) -> torch.optim.Optimizer:
        return named(kind.optimizer)(groups, lr, config, seed)

    return language_model(
        model,
        "optim_bytes batches",
        seed,
        config,
        device,
        corpus=corpus,
        groups=groups,
        optimizer=optimizer,
        schedule=cosine(config.warmup, config.floor),
        clip=config.clip,
    )
