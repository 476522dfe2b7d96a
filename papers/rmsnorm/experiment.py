"""What papers/rmsnorm measures: its relation to LayerNorm, the time of a training step, the quality of a language model.

The invariance table is `repro.experiments.invariance`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from repro.data import shakespeare
from repro.models.gpt import GPT
from repro.models.rnn import RNN
from repro.models.slots import identity
from repro.papers.layernorm import LayerNorm, layer_norm
from repro.papers.rmsnorm.method import PartialRMSNorm, RMSNorm, rms_norm
from repro.timing import compare
from repro.train import cross_entropy, evaluate_lm, fit, generator, seed_of


class CentredRMSNorm(RMSNorm):
    """RMSNorm that also computes and subtracts the mean: LayerNorm by another name."""

    def forward(self, a: Tensor) -> Tensor:
        return super().forward(a - a.mean(-1, keepdim=True))


NORMS = {
    "layernorm": LayerNorm,
    "rmsnorm": RMSNorm,
    "partial_rmsnorm": PartialRMSNorm,
    "one_input_rmsnorm": lambda n: PartialRMSNorm(n, p=1 / n),
    "centred_rmsnorm": CentredRMSNorm,
    "none": identity,
    "torch_layernorm": nn.LayerNorm,  # today's library kernels
    "torch_rmsnorm": nn.RMSNorm,
}


@dataclass(frozen=True)
class Equivalence:
    widths: tuple[int, ...]
    draws: int


def sum_rms(a: Tensor) -> Tensor:
    """The root of the sum of squares in place of their mean, a known mistake."""
    return a / torch.linalg.vector_norm(a, dim=-1, keepdim=True)


def equivalence(arm: str, seed: int, config: Equivalence, device: torch.device) -> dict[str, float]:
    """norm(a - mean(a)) against LN(a): largest relative error of outputs and gradients; and the gap if a is not centred."""
    source, errors, gaps = generator("rmsnorm equivalence", seed), [], []
    for n in config.widths:
        norm = {"rmsnorm": lambda a, n=n: rms_norm(a, n, eps=0.0), "sum_rms": sum_rms}[arm]
        for _ in range(config.draws):
            a, direction = (torch.randn(n, generator=source, dtype=torch.float64).to(device) for _ in range(2))
            # n = 2: the gradient of LN is 0 in exact arithmetic, so errors are relative to that of a / sigma.
            scale = direction.abs().max() / a.std(correction=0)

            def run(
                f: Callable[[Tensor], Tensor], a: Tensor = a, direction: Tensor = direction
            ) -> tuple[Tensor, Tensor]:
                x = a.clone().requires_grad_()
                y = f(x)
                return y.detach(), torch.autograd.grad((y * direction).sum(), x)[0]

            y, gradient = run(lambda x, norm=norm: norm(x - x.mean()))
            wanted_y, wanted_gradient = run(lambda x, n=n: layer_norm(x, n, eps=0.0))
            errors += [
                (y - wanted_y).abs().max() / wanted_y.abs().max(),
                (gradient - wanted_gradient).abs().max() / scale,
            ]
            shifted = (a - a.mean()) / a.std(correction=0) + 1  # mean / deviation = 1
            gaps.append((norm(shifted) - layer_norm(shifted, n, eps=0.0)).abs().max())
    return {"projection_error": float(torch.stack(errors).max()), "offset_gap": float(torch.stack(gaps).min())}


@dataclass(frozen=True)
class RunningTime:
    model: str
    width: int
    depth: int
    length: int
    batch: int
    blocks: int
    aa_limit: float


def training_step(arm: str, seed: int, config: RunningTime, device: torch.device) -> Callable[[], None]:
    """One whole step of SGD: forward, backward, update.  All arms do the same but for their norm."""
    source, norm = generator("rmsnorm running time", seed), NORMS[arm]
    if config.model == "rnn":  # tanh RNN, a norm on each of both projections, as in RNNSearch
        model = RNN("tanh", config.width, config.width, norm=norm, generator=source)
        x, y = torch.randn(2, config.batch, config.length, config.width, generator=source).to(device)
    elif config.model == "transformer":
        model = GPT(256, config.length, config.width, config.depth, heads=8, norm=norm, generator=source)
        x, y = torch.randint(256, (2, config.batch, config.length), generator=source).to(device)
    model.to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        out = model(x)
        loss = cross_entropy(out, y) if config.model == "transformer" else (out[0] - y).square().mean()
        loss.backward()
        optimizer.step()

    return step


CALLS = {"rnn": 4, "transformer": 1}  # steps per timed block, so that blocks last about as long


def running_time_group(
    arms: list[str], seed: int, config: RunningTime, device: torch.device
) -> dict[str, dict[str, float]]:
    steps = {arm: training_step(arm, seed, config, device) for arm in arms}
    timings = compare(
        steps,
        reference="layernorm",
        device=device,
        blocks=config.blocks,
        calls=CALLS[config.model],
        warmup=10,
        seed=seed,
        aa_limit=config.aa_limit,
    )
    return {arm: {"seconds": timing.percentile(50), **timing.measures()} for arm, timing in timings.items()}


@dataclass(frozen=True)
class Quality:
    depth: int
    width: int
    context: int
    batch: int
    steps: int
    lr: float
    windows: int


def quality(arm: str, seed: int, config: Quality, device: torch.device) -> dict[str, float]:
    """A pre-norm decoder on the bytes of Shakespeare; held-out loss after the last step."""
    corpus = shakespeare.load(device)
    weights = generator("rmsnorm quality", seed)
    model = GPT(
        corpus.vocab, config.context, config.width, config.depth, heads=4, norm=NORMS[arm], generator=weights
    ).to(device)
    fit(
        model,
        corpus.train,
        context=config.context,
        steps=config.steps,
        batch=config.batch,
        lr=config.lr,
        seed=seed_of("rmsnorm quality batches", seed),
        optimizer="adamw",
        schedule="one_cycle",
    )
    return {"val_nats": evaluate_lm(model, corpus.valid, config.context, windows=config.windows)["loss"]}
