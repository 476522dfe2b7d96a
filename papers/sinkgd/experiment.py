"""What papers/sinkgd measures: a decoder on bytes with and without optimizer state, sweeps on its gradients, exact
statements."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from repro import tasks
from repro.experiments import optim_bytes as shared
from repro.experiments.optim_bytes import Arm, OptimBytes
from repro.models.gpt import GPT
from repro.papers.gradient_orthogonalization import polar
from repro.papers.sinkgd import SinkGD, sr_sinkhorn
from repro.train import cross_entropy, draws, generator

# --- arms -------------------------------------------------------------------------------------------------------------

ARMS = {
    "adamw": Arm("repro.experiments.optim_bytes:adamw"),
    "adamw_longer": Arm("repro.experiments.optim_bytes:adamw", length=1.25),
    "sinkgd": Arm("repro.papers.sinkgd.experiment:sinkgd", adam=True),
    "rows": Arm("repro.papers.sinkgd.experiment:rows", adam=True),
    "whole": Arm("repro.papers.sinkgd.experiment:whole", adam=True),
}


class Rows(SinkGD):
    """Rows of the norm sqrt(n), and columns as they come: one norm in place of two."""

    def direction(self, g: Tensor, group: dict) -> Tensor:
        return one_sided(g)


class Whole(SinkGD):
    """The gradient as it is, with a root mean square of 1."""

    def direction(self, g: Tensor, group: dict) -> Tensor:
        return g / g.square().mean().sqrt().clamp_min(1e-30)


def one_sided(g: Tensor) -> Tensor:
    """g with rows of the norm sqrt(n)."""
    return nn.functional.normalize(g, dim=-1, eps=1e-30) * g.shape[-1] ** 0.5


def _made(kind: type[SinkGD]) -> Callable[..., torch.optim.Optimizer]:
    def make(groups: list[dict], lr: float, config: OptimBytes, seed: int) -> torch.optim.Optimizer:
        return kind([{**group, "adam": not group.get("hidden", False)} for group in groups], lr)

    return make


sinkgd, rows, whole = _made(SinkGD), _made(Rows), _made(Whole)


def losses(arm: str, seed: int, config: OptimBytes, device: torch.device) -> tasks.Measures:
    """Held-out loss at the end: `optim_bytes` with the arms of this paper."""
    shared.ARMS[arm] = ARMS[arm]
    return shared.optim_bytes(arm, seed, config, device)


# --- sweeps over the gradients of a decoder ---------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Sweeps:
    width: int
    depth: int
    heads: int
    context: int
    batch: int


def sweeps(arm: str, seed: int, config: Sweeps, device: torch.device) -> tasks.Measures:
    """Largest relative error of a row's norm after the sweeps, in the worst matrix of a decoder at its start."""
    source = generator("sinkgd sweeps", seed)
    model = GPT(
        256, config.context, config.width, config.depth, heads=config.heads, generator=source, norm=nn.RMSNorm,
        std=config.width**-0.5, embedding_std=1.0,
    ).to(device)  # fmt: skip
    text = tasks.TEXTS["shakespeare"](device).train
    at = torch.randint(len(text) - config.context - 1, (config.batch, 1), generator=source).to(device)
    batch = text[at + torch.arange(config.context + 1, device=device)].long()
    cross_entropy(model(batch[:, :-1]), batch[:, 1:]).backward()
    worst, apart = tasks.Worst(), {id(p) for part in (model.embedding, model.head) for p in part.parameters()}
    for p in model.parameters():
        if p.dim() > 1 and id(p) not in apart:
            g = p.grad.double()
            x = one_sided(g).mT if arm == "rows" else sr_sinkhorn(g, {"one_sweep": 1}.get(arm, 5))
            size = x.shape[-1] ** 0.5
            worst.record("row_error", (torch.linalg.vector_norm(x, dim=-1) / size - 1).abs())
    return worst


# --- exact statements, in float64 -------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Exact:
    rows: int
    columns: int
    sweeps: int


def sinkhorn(a: Tensor, sweeps: int) -> Tensor:
    """Sinkhorn's algorithm on a positive matrix (m, n): u_i a_ij v_j with row sums n and column sums m."""
    m, n = a.shape
    v = a.new_ones(n)
    for _ in range(sweeps):
        u = n / (a @ v)
        v = m / (a.mT @ u)
    return u[:, None] * a * v


def exact(arm: str, seed: int, config: Exact, device: torch.device) -> tasks.Measures:
    """Errors of the norms, of the squares beside Sinkhorn's matrix, and under scaled rows and columns."""
    draw = draws(device, "sinkgd exact", seed)
    g, left, right = draw(config.rows, config.columns), draw(config.rows, 1).exp(), draw(config.columns).exp()
    fixed = {"rows": one_sided, "polar": polar}.get(arm, lambda g: sr_sinkhorn(g, config.sweeps))
    x, worst = fixed(g), tasks.Worst()
    for dim, size in ((1, config.columns), (0, config.rows)):
        worst.record("norm_error", (torch.linalg.vector_norm(x, dim=dim) / size**0.5 - 1).abs())
    worst.record("square_error", tasks.relative(x.square(), sinkhorn(g.square(), 10 * config.sweeps)))
    worst.record("square_error", float((x.sign() != g.sign()).double().mean()))
    worst.record("scale_error", tasks.relative(fixed(left * g * right), x))
    return worst
