"""What papers/rmsnorm measures: its relation to LayerNorm, the time of a training step, the quality of a language
model.

The invariance table is `repro.experiments.invariance`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from repro.models.gpt import GPT
from repro.models.rnn import RNN
from repro.models.slots import identity
from repro.papers.layernorm import LayerNorm, layer_norm
from repro.papers.rmsnorm.method import PartialRMSNorm, RMSNorm, rms_norm
from repro.tasks import Measures, Text, Timed, Worst, language_model, timed
from repro.train import cross_entropy, draws, generator


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


@dataclass(frozen=True, kw_only=True)
class Equivalence:
    widths: tuple[int, ...]
    draws: int


def sum_rms(a: Tensor) -> Tensor:
    """The root of the sum of squares in place of their mean, a known mistake."""
    return a / torch.linalg.vector_norm(a, dim=-1, keepdim=True)


def equivalence(arm: str, seed: int, config: Equivalence, device: torch.device) -> dict[str, float]:
    """norm(a - mean(a)) against LN(a): largest relative error of outputs and gradients; and the gap if a is not
    centred.
    """
    draw, worst, gaps = draws(device, "rmsnorm equivalence", seed), Worst(), []
    for n in config.widths:
        norm = {"rmsnorm": lambda a, n=n: rms_norm(a, n, eps=0.0), "sum_rms": sum_rms}[arm]
        for _ in range(config.draws):
            a, direction = draw(n), draw(n)
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
            worst.relative("projection_error", y, wanted_y)
            worst.record("projection_error", (gradient - wanted_gradient).abs().max() / scale)
            shifted = (a - a.mean()) / a.std(correction=0) + 1  # mean / deviation = 1
            gaps.append((norm(shifted) - layer_norm(shifted, n, eps=0.0)).abs().max())
    return {**worst, "offset_gap": float(torch.stack(gaps).min())}


@dataclass(frozen=True, kw_only=True)
class RunningTime(Timed):
    model: str
    width: int
    depth: int
    length: int
    batch: int


class ComposedRMSNorm(RMSNorm):
    """RMSNorm of elementary operators alone, as `layernorm` here is, without the method's own rule for zero rows."""

    def forward(self, a: Tensor) -> Tensor:
        return a / (torch.linalg.vector_norm(a, dim=-1, keepdim=True) * self.k**-0.5 + self.eps) * self.weight


class ComposedCentredRMSNorm(ComposedRMSNorm):
    """The same with the mean computed and subtracted."""

    def forward(self, a: Tensor) -> Tensor:
        return super().forward(a - a.mean(-1, keepdim=True))


TIMED = {**NORMS, "rmsnorm": ComposedRMSNorm, "centred_rmsnorm": ComposedCentredRMSNorm}


def training_step(arm: str, seed: int, config: RunningTime, device: torch.device) -> Callable[[], None]:
    """One whole step of SGD: forward, backward, update.  All arms do the same but for their norm."""
    source, norm = generator("rmsnorm running time", seed), TIMED[arm]
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


running_time_group = timed(training_step, reference="layernorm", calls=lambda config: CALLS[config.model], warmup=10)


@dataclass(frozen=True, kw_only=True)
class Quality(Text):
    depth: int
    width: int
    heads: int = 4


def quality(arm: str, seed: int, config: Quality, device: torch.device) -> Measures:
    """A pre-norm decoder on the bytes of a text; held-out loss after the last step."""
    shape, source = (256, config.context, config.width, config.depth), generator("rmsnorm quality", seed)
    model = GPT(*shape, heads=config.heads, norm=NORMS[arm], generator=source)
    return language_model(model, "rmsnorm quality batches", seed, config, device, schedule="one_cycle")
