"""What papers/novograd measures: errors of a perceptron, errors from other initial weights, and exact statements."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from repro import tasks
from repro.errors import Diverged
from repro.experiments.optim_images import OptimImages, optim_images
from repro.experiments.walks import walk
from repro.papers.novograd import NovoGrad
from repro.train import draws

# --- arms -------------------------------------------------------------------------------------------------------------


class Whole(NovoGrad):
    """One norm for all gradients together in place of one for each tensor."""

    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """Take the sum over all tensors first."""
        self.sum = sum(p.grad.square().sum() for group in self.param_groups for p in group["params"])
        return super().step(closure)

    def square(self, g: Tensor) -> Tensor:
        return self.sum


class FromZero(NovoGrad):
    """A wrong NovoGrad, whose v starts as Adam's, at (1 - b2) ||g||^2: the first step is seven times too long."""

    def start(self, p: Tensor, group: dict) -> dict:
        state = super().start(p, group)
        return {**state, "exp_avg_sq": state["exp_avg_sq"] + 1e-30}


class Plain(NovoGrad):
    """No normalization, which is SGD with momentum."""

    def square(self, g: Tensor) -> Tensor:
        return torch.ones_like(g.sum())


class Once(NovoGrad):
    """Gradients are divided by the norm of the first one for ever."""

    def update(self, p: Tensor, g: Tensor, state: dict, group: dict) -> None:
        super().update(p, g, state, {**group, "betas": (group["betas"][0], 1.0)})


class Mean(NovoGrad):
    """A wrong NovoGrad, which has the mean of the squares in place of their sum."""

    def square(self, g: Tensor) -> Tensor:
        return g.square().mean()


def _made(kind: type[NovoGrad]) -> Callable[..., torch.optim.Optimizer]:
    def make(groups: list[dict], lr: float, config: OptimImages) -> torch.optim.Optimizer:
        return kind(groups, lr)

    return make


novograd, whole, from_zero, plain, once = (_made(kind) for kind in (NovoGrad, Whole, FromZero, Plain, Once))


def last(groups: list[dict], lr: float, config: OptimImages) -> torch.optim.Optimizer:
    """NovoGrad for the output layer alone; all else stays as it was drawn."""
    return NovoGrad([{**group, "params": group["params"][-1:]} for group in groups], lr)


# --- other initial weights --------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Initial(OptimImages):
    """gains: other factors of the initial weights than 1."""

    gains: tuple[float, ...]
    norm: bool = False


def initialization(arm: str, seed: int, config: Initial, device: torch.device) -> tasks.Measures:
    """Test error from the usual initial weights, and the largest from weights that are smaller or larger."""
    usual, worst = optim_images(arm, seed, config, device), 0.0
    for gain in config.gains:
        try:
            error = optim_images(arm, seed, replace(config, gain=gain, trivial=()), device)["error"]
        except Diverged:
            error = 0.9
        worst = max(worst, error)
    return {**usual, "worst_error": worst}


# --- exact statements, in float64 -------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Exact:
    rows: int
    columns: int
    steps: int


def exact(arm: str, seed: int, config: Exact, device: torch.device) -> tasks.Measures:
    """Errors under scaled gradients, of the first step and of the last under a constant gradient, and of the state."""
    draw, shape = draws(device, "novograd exact", seed), (config.rows, config.columns)
    kind = {"plain": Plain, "mean": Mean, "from_zero": FromZero}.get(arm, NovoGrad)
    g = draw(config.steps, *shape)
    scale = draw(*shape).exp() if arm == "each_entry" else 1e4 * draw(1).exp()

    def make(p: list[Tensor]) -> torch.optim.Optimizer:
        return torch.optim.Adam(p, lr=0.01) if arm == "adam" else kind(p, lr=0.01, eps=0.0)

    steps = walk(make, g[:1].expand(400, *shape)).diff(
        dim=0, prepend=torch.zeros(1, *shape, dtype=g.dtype, device=device)
    )
    lengths = torch.linalg.vector_norm(steps.flatten(1), dim=1)
    model = nn.Sequential(nn.Linear(config.columns, config.rows), nn.Linear(config.rows, config.columns)).to(device)
    chosen = make(list(model.parameters()))
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    chosen.step()
    kept = sum(
        t.numel() for state in chosen.state.values() for n, t in state.items() if n != "step" and torch.is_tensor(t)
    )
    return {
        "scale_error": tasks.relative(walk(make, scale * g), walk(make, g)),
        "first_error": float((lengths[0] / 0.01 - 1).abs()),
        "last_error": float((lengths[-1] / 0.2 - 1).abs()),
        "state": kept / (2 * sum(p.numel() for p in model.parameters())),
    }
