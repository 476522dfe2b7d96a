"""What papers/unified_norm measures: folding, the inequality behind the outlier threshold, what it catches, a ViT, its
cost.
"""

import copy
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from repro.models.norms import over_tokens
from repro.models.slots import Norm, linear
from repro.models.vit import scaled_to_width, vit, without_norms
from repro.papers.batchnorm.method import BatchNorm
from repro.papers.unified_norm.method import UnifiedNorm, fuse_into_linear
from repro.tasks import Measures, Pictures, Timed, Worst, classify, relative, timed
from repro.timing import peak_bytes
from repro.train import cosine, generator


@dataclass(frozen=True, kw_only=True)
class ViT:
    """For grey images of 28 x 28, or those of a data set.  scaled: initial weights scaled to the width."""

    patch: int
    dim: int
    depth: int
    heads: int = 4
    scaled: bool = False

    def build(self, norm: Norm, source: torch.Generator, side: int = 28, channels: int = 1) -> nn.Module:
        shape = {"heads": self.heads, "classes": 10, "channels": channels, "norm": norm, "generator": source}
        init = scaled_to_width if self.scaled else None
        return vit(side, self.patch, self.dim, self.depth, init=init, **shape)


# --- folding ---------------------------------------------------------------------------------------------------------


def fold_of(arm: str, norm: nn.Module, layer: nn.Linear) -> nn.Linear:
    """The folding of an arm: the right one, one that forgets eps, one that forgets the bias of the norm."""
    norm = copy.deepcopy(norm)
    norm.eps = 0.0 if arm == "no_eps" else norm.eps
    norm.bias = None if arm == "no_shift" else norm.bias
    return fuse_into_linear(norm, layer)


@torch.no_grad()
def folding(arm: str, seed: int, config: ViT, device: torch.device) -> dict[str, float]:
    """Layers with random statistics, gains and biases, and a whole ViT of them, against their folded versions."""
    source, fold = generator("unified_norm folding", seed), partial(fold_of, arm)

    def norm(n: int) -> nn.Module:
        made = UnifiedNorm(n, device=device, dtype=torch.float64).eval()
        for t in made.parameters():
            t.copy_(torch.randn(n, generator=source))
        made.running_psi2.copy_(0.1 + torch.rand(n, generator=source))
        return made

    worst = Worst()
    for outputs in (3 * config.dim, 4 * config.dim, 10):  # queries, keys and values; feed-forward; head
        layer = linear(config.dim, outputs, bias=True, std=config.dim**-0.5, generator=source).to(device)
        before, x = norm(config.dim), torch.randn(1000, config.dim, generator=source, dtype=torch.float64).to(device)
        for name, dtype in (("float64_error", torch.float64), ("float32_error", torch.float32)):
            a, b, rounded = before.to(dtype), layer.to(dtype), x.to(dtype)
            worst.relative(name, fold(a, b)(rounded), b(a(rounded)))
    model = config.build(norm, source).double().to(device).eval()
    images = torch.randn(500, 1, 28, 28, generator=source, dtype=torch.float64).to(device)
    y, z = model(images), without_norms(model, fold)(images)
    left = sum(isinstance(module, UnifiedNorm) for module in model.modules())
    return {**worst, "model_error": relative(z, y), "norms_left": left}


# --- the threshold of the outlier filtration -------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Inequality:
    windows: int
    window: int  # M


def inequality(arm: str, seed: int, config: Inequality, device: torch.device) -> dict[str, float]:
    """AM - GM of random windows against its bounds, M / (M - 1) and M times the variance of the roots; excesses over
    AM.
    """
    source, m = generator("unified_norm inequality", seed), config.window
    normal = torch.randn(3, config.windows, m, generator=source, dtype=torch.float64)
    pareto = (1 - torch.rand(config.windows, m, generator=source, dtype=torch.float64)) ** -2
    spike = torch.cat([(3 * normal[1, :, :1]).exp(), torch.ones(config.windows, m - 1)], 1)
    x = torch.cat([(0.05 * normal[0]).exp(), (3 * normal[1]).exp(), normal[2].relu(), pareto, spike]).to(device)
    am, spread = x.mean(1), x.sqrt().var(1, correction=0)
    gap = am - x.log().mean(1).exp()
    upper = {"bound": m * spread, "without_m": spread, "variance_of_x": m * x.var(1, correction=0)}[arm]
    sides = {"above": gap - upper, "below": m / (m - 1) * spread - gap}
    return {name: float((side / am).nan_to_num().max().clamp(min=0)) for name, side in sides.items()}


@dataclass(frozen=True, kw_only=True)
class Filtration:
    channels: int
    batches: int
    fluctuation: float  # deviation of log x2 from batch to batch
    spread: float  # deviation of log x2 from channel to channel


class NewBuffer(UnifiedNorm):
    """Each channel's variance, with this batch among the recorded: by the inequality nothing ever exceeds it."""

    def is_outlier(self, recorded: Tensor, window: Tensor) -> Tensor:
        return (window.mean(0) - window.log().mean(0).exp() > self.window_size * window.sqrt().var(0)).any()


@torch.no_grad()
def filtration(arm: str, seed: int, config: Filtration, device: torch.device) -> dict[str, float | list[float]]:
    """A stream of log-normal x2: how often a usual batch is left out, and one whose x2 is a multiple of the usual, in
    all channels.
    """
    source, n = generator("unified_norm filtration", seed), config.channels
    norm = (
        (NewBuffer if arm == "new_buffer" else UnifiedNorm)(n, warmup_iters=0, outlier_filtration=True)
        .double()
        .to(device)
    )
    noise = torch.randn(config.batches + 1, 1, n, generator=source, dtype=torch.float64).to(device)
    caught: dict[float, list[int]] = {spike: [] for spike in (1.5, 2.0, 3.0, 5.0, 10.0, 30.0)}
    for step in range(config.batches):
        x = (0.5 * (config.spread * noise[-1] + config.fluctuation * noise[step])).exp()  # one token of root x2
        for spike, seen in caught.items() if step > 10 and step % 5 == 0 else ():
            other = copy.deepcopy(norm)
            other(spike**0.5 * x)
            seen.append(int(other.skip_counter - norm.skip_counter))
        norm(x)
    curve = {spike: sum(seen) / len(seen) for spike, seen in caught.items()}
    return {
        "false_alarms": float(norm.skip_counter) / config.batches,
        "caught": curve[10.0],
        "caught_curve": list(curve.values()),
        "spike": list(curve),
    }


# --- a ViT: accuracy, memory, time -----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Accuracy(Pictures, ViT):
    warmup: float = 0.1  # of UN, as a share of the steps


def accuracy(arm: str, seed: int, config: Accuracy, device: torch.device) -> Measures:
    """Test accuracy after training; with UN after folding.  `unit`: the running value put back to 1 before."""
    warm, un = round(config.warmup * config.steps), arm in ("un", "unit", "un_unfiltered")
    unified = partial(UnifiedNorm, warmup_iters=warm, outlier_filtration=arm != "un_unfiltered")
    norm = {"layernorm": nn.LayerNorm, "batchnorm": over_tokens(BatchNorm)}.get(arm, unified)
    model = config.build(norm, generator("unified_norm accuracy", seed), config.side, config.channels)

    def finish(model: nn.Module) -> nn.Module:
        if arm == "unit":
            model.apply(lambda module: module.reset_running_stats() if isinstance(module, UnifiedNorm) else None)
        return without_norms(model, fuse_into_linear) if un else model

    how = {"schedule": cosine(0.1), "weight_decay": 0.05, "finish": finish}
    return classify(model, "unified_norm batches", seed, config, device, **how)


@dataclass(frozen=True, kw_only=True)
class Cost(Timed, ViT):
    batch: int
    dtype: str
    blocks: int = 20
    calls: int = 5
    aa_limit: float = 0.02  # of the speed alone


def inference(arm: str, seed: int, config: Cost, device: torch.device) -> partial:
    """One forward pass of a ViT without gradients."""
    source, like = generator("unified_norm cost", seed), {"device": device, "dtype": getattr(torch, config.dtype)}
    model = config.build(nn.LayerNorm if "layernorm" in arm else UnifiedNorm, source)
    model = (without_norms(model, fuse_into_linear) if arm == "folded" else model.eval()).to(**like)
    return partial(torch.no_grad()(model), torch.randn(config.batch, 1, 28, 28, generator=source).to(**like))


def memory(arm: str, seed: int, config: Cost, device: torch.device) -> dict[str, float]:
    return {"peak_bytes": float(peak_bytes(inference(arm, seed, config, device), device))}


speed_group = timed(inference, reference="layernorm", warmup=10)
