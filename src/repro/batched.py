"""Several seeds of one small model in one pass: `fit_batched` is `repro.train.fit` with a leading axis of seeds.

The K models' parameters are stacked into tensors (K, ...); linear layers become one batched product, everything else
goes through torch.vmap.  Each seed keeps the weights, the batches and the updates of its sequential run; results differ
by rounding only (tested: losses of 50 steps within 1e-9 relative in float64, 1e-4 in float32).  A seed that diverges
leaves the others alone.  Operators without a batching rule (lerp_, attention on a CPU) work, with a warning.

Worth it where a step is overhead rather than arithmetic: MLPs.  Convolutions lose on a CPU (vmap groups them).
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from repro import live, train
from repro.errors import Diverged, ReproError
from repro.models import mlp, slots
from repro.train import Data, History, Loss, OptimizerFactory, Schedule, cross_entropy

ELEMENTWISE = (
    nn.Identity,
    nn.ReLU,
    nn.LeakyReLU,
    nn.ELU,
    nn.CELU,
    nn.SELU,
    nn.GELU,
    nn.SiLU,
    nn.Mish,
    nn.Sigmoid,
    nn.Tanh,
    nn.Softplus,
    nn.Softsign,
    nn.Hardtanh,
    nn.ReLU6,
    nn.Hardswish,
)
LOOP_FROM = 32_768  # numbers in one seed's slice
# Modules whose forward reads (K, B, n) as well as (B, n) once their children do.
TRANSPARENT = (
    mlp.MLP,
    mlp.ResidualMLP,
    mlp.Layer,
    mlp.Branch,
    slots.Pre,
    slots.Post,
    slots.Bare,
    nn.Sequential,
    nn.ModuleList,
)


# --- K modules as one ------------------------------------------------------------------------------------------------


@dataclass
class Part:
    """A tensor (K, ...) and the K models' own tensors, which are `view(whole[k])` and share its memory."""

    whole: Tensor
    members: list[Tensor]
    view: Callable[[Tensor], Tensor]


def _join(members: list[Tensor], put: Callable[[Tensor], Tensor], view: Callable[[Tensor], Tensor]) -> Part:
    whole = torch.stack([put(t.detach()) for t in members]).contiguous()
    for k, member in enumerate(members):
        member.data = view(whole[k])
    if isinstance(members[0], nn.Parameter):
        whole = nn.Parameter(whole, requires_grad=members[0].requires_grad)
    return Part(whole, members, view)


def _same(t: Tensor) -> Tensor:
    return t


class StackedLinear(nn.Module):
    """K linear layers.  x: (K, B, I) -> (K, B, O); weight: (K, I, O), so that its gradient needs no transposition."""

    def __init__(self, layers: list[nn.Linear]):
        super().__init__()
        self.parts = [_join([layer.weight for layer in layers], Tensor.t, Tensor.t)]
        if layers[0].bias is not None:
            self.parts.append(_join([layer.bias for layer in layers], lambda t: t[None], lambda t: t[0]))
        self.weight, self.bias = self.parts[0].whole, self.parts[1].whole if self.parts[1:] else None

    def forward(self, x: Tensor) -> Tensor:
        if self.bias is None:
            return torch.bmm(x, self.weight)
        return torch.baddbmm(self.bias, x, self.weight)


class Vmapped(nn.Module):
    """K modules of one kind, whatever they are: torch.vmap over their parameters, buffers and inputs (K, B, ...).

    On a CPU one after the other where a slice is large (arithmetic rules, and one slice stays in the cache) and for
    torch's BatchNorm1d, whose batching rule transposes.
    Buffers that forward changes (running statistics), in place or by assignment, are changed in each of the K.
    """

    def __init__(self, modules: list[nn.Module]):
        super().__init__()
        template = copy.deepcopy(modules[0])
        self._template = (template,)  # in a tuple: its tensors are none of ours
        self.parts: list[Part] = []
        self._slots: list[tuple[dict, str]] = []  # where the template keeps a tensor,
        self._values: list[Tensor] = []  # and the K of them
        known: dict[int, Tensor] = {}  # a tensor kept in two places (tied weights) is one
        for path, owner in template.named_modules():
            for kept in ("_parameters", "_buffers"):
                for name in [n for n, t in getattr(owner, kept).items() if t is not None]:
                    members = [getattr(m.get_submodule(path), kept)[name] for m in modules]
                    if id(members[0]) not in known:
                        self.parts.append(_join(members, _same, _same))
                        known[id(members[0])] = self.parts[-1].whole
                    self._slots.append((getattr(owner, kept), name))
                    self._values.append(known[id(members[0])])
        self.stacks = nn.ParameterList(part.whole for part in self.parts if isinstance(part.whole, nn.Parameter))
        self._call = torch.vmap(self._one, randomness="error")

    def train(self, mode: bool = True) -> "Vmapped":
        self._template[0].train(mode)
        return super().train(mode)

    def _one(self, x: Tensor, values: list[Tensor]) -> tuple[Tensor, dict[int, Tensor]]:
        for (tensors, name), value in zip(self._slots, values, strict=True):
            tensors[name] = value
        y = self._template[0](x)
        assigned = {i: tensors[name] for i, (tensors, name) in enumerate(self._slots) if tensors[name] is not values[i]}
        return y, assigned

    def _unbound(self, count: int) -> list[list[Tensor]]:
        # A buffer's slices through .data: one that a backward pass changes must not spoil what the others have saved.
        columns = [value.unbind() if value.requires_grad else value.data.unbind() for value in self._values]
        return [[column[k] for column in columns] for k in range(count)]

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu" and (x[0].numel() >= LOOP_FROM or isinstance(self._template[0], nn.BatchNorm1d)):
            slices = [self._one(*each) for each in zip(x.unbind(), self._unbound(len(x)), strict=True)]
            y = torch.stack([y for y, _ in slices])
            assigned = {i: torch.stack([each[i] for _, each in slices]) for i in slices[0][1]}
        else:
            y, assigned = self._call(x, self._values)
        with torch.no_grad():
            for i, value in assigned.items():
                self._values[i].copy_(value)
        return y


def stack(modules: list[nn.Module]) -> nn.Module:
    """One module over (K, B, ...) that shares the memory of the K `modules`: training it trains them."""
    kind = type(modules[0])
    if kind is nn.Linear:
        return StackedLinear(modules)
    if kind in ELEMENTWISE:
        return copy.copy(modules[0])
    if kind not in TRANSPARENT:
        return Vmapped(modules)
    whole = copy.copy(modules[0])
    whole._modules = {name: stack([m._modules[name] for m in modules]) for name in whole._modules}
    return whole


def parts(whole: nn.Module) -> list[Part]:
    """The parameters of a stack with the models' own."""
    found = [part for module in whole.modules() for part in getattr(module, "parts", ())]
    return [part for part in found if isinstance(part.whole, nn.Parameter)]


def release(models: list[nn.Module]) -> None:
    """Give the models memory of their own again."""
    for model in models:
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.data = tensor.data.clone(memory_format=torch.contiguous_format)


# --- the loop --------------------------------------------------------------------------------------------------------


def fit_batched(
    models: list[nn.Module],
    data: Data | list[Data],
    *,
    seeds: list[int],
    steps: int,
    batch: int,
    lr: float,
    context: int | None = None,
    optimizer: str | OptimizerFactory = "adamw",
    optimizer_options: dict | None = None,
    weight_decay: float = 0.0,
    groups: Callable[[nn.Module], list[dict]] | None = None,
    schedule: str | Schedule = "constant",
    clip: float | None = None,
    loss: Loss = cross_entropy,
    evaluate: Callable[[nn.Module], dict[str, float]] | None = None,
    eval_every: int | None = None,
    hook: Callable[[int, list[nn.Module], Tensor], object] | None = None,
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = None,
    amp: torch.dtype | None = None,
) -> list[History | Diverged]:
    """Train models[k] as `fit(models[k], data, seed=seeds[k], ...)` would, all k in one pass.

    Arguments are those of `fit`.  data may be a list with the data of each seed, all of one length.  The optimizer must
    be element-wise: a name, or a callable with the attribute `elementwise = True`.  hook(step, models, losses) sees
    losses (K,).  Returns a History per seed, or Diverged(step) for a seed whose loss was not finite at `step`.
    """
    count = len(models)
    if count == 0 or len(seeds) != count or len({type(m) for m in models}) > 1:
        raise ReproError(f"fit_batched: {count} models and {len(seeds)} seeds; write one model of one kind per seed")
    if not isinstance(optimizer, str) and not getattr(optimizer, "elementwise", False):
        raise ReproError("optimizer: would mix the seeds' stacked tensors; write one of train.OPTIMIZERS, or use fit")
    if any(isinstance(m, nn.modules.dropout._DropoutNd) and m.p > 0 for m in models[0].modules()):
        raise ReproError("fit_batched: dropout would not repeat the sequential run's; write `batched: false`")
    device = next(models[0].parameters()).device
    batches = _Batches(data, context, device, batch, seeds)
    whole = stack(models)
    leaves = [p for p in whole.parameters() if p.requires_grad]
    factor = train.schedule_of(schedule)
    update = train.make_optimizer(
        optimizer, _groups(groups, models[0], whole), lr, weight_decay=weight_decay, options=optimizer_options
    )
    histories: list[History] = [History() for _ in models]
    diverged: dict[int, Diverged] = {}
    check_every = 64 if device.type == "cuda" else 16
    pending: list[Tensor] = []

    def settle() -> None:
        for row in torch.stack(pending).tolist() if pending else ():
            for k, value in enumerate(row):
                if k in diverged:
                    continue
                if math.isfinite(value):
                    histories[k].train_loss.append(value)
                else:
                    diverged[k] = Diverged(len(histories[k].train_loss))
        pending.clear()
        if alive := [
            history.train_loss for k, history in enumerate(histories) if k not in diverged and history.train_loss
        ]:
            live.tell(len(alive[0]), steps, sum(losses[-1] for losses in alive) / len(alive))

    def losses_of(x: Tensor, y: Tensor) -> Tensor:
        out = whole.rows(x.flatten(2)) if hasattr(whole, "rows") else whole(x)
        if loss is not cross_entropy:
            return torch.vmap(loss)(out, y)
        if out.dim() == 3:  # classes before examples: a CPU vectorises over the longer axis
            return F.cross_entropy(out.transpose(1, 2).contiguous(), y, reduction="none").mean(1)
        return F.cross_entropy(out.flatten(0, -2), y.flatten(), reduction="none").view(count, -1).mean(1)

    for model in models:
        model.train()
    whole.train()
    with train.forked_rng(device):
        for step in range(steps):
            x, y = batches(step)
            if augment is not None:
                x = torch.stack([augment(x[k], train.generator("augment", seed, step)) for k, seed in enumerate(seeds)])
            for p in leaves:
                p.grad = None
            if amp is None:
                losses = losses_of(x, y)
            else:
                with torch.autocast(device.type, amp):
                    losses = losses_of(x, y)
            losses.sum().backward()
            if clip is not None:
                _clip_each([p for p in leaves if p.grad is not None], clip)
            if hook is not None:
                for part in parts(whole):
                    for k, member in enumerate(part.members):
                        member.grad = None if part.whole.grad is None else part.view(part.whole.grad[k])
                hook(step, models, losses.detach())
            train.set_lr(update, lr * factor(step, steps))
            update.step()
            pending.append(losses.detach())
            done = step + 1
            measure = evaluate is not None and (done == steps or (eval_every and done % eval_every == 0))
            if measure or len(pending) == check_every or done == steps:
                settle()
                if len(diverged) == count:
                    break
            if measure:
                for k, model in enumerate(models):
                    if k not in diverged:
                        histories[k].record(done, train.measured(evaluate, model))
    for model in models:
        model.zero_grad(set_to_none=True)
    release(models)
    return [diverged.get(k, history) for k, history in enumerate(histories)]


class _Batches:
    """The K seeds' batches of a step, each in the order of its own sequential run: x (K, B, ...), y (K, B, ...)."""

    def __init__(
        self, data: Data | list[Data], context: int | None, device: torch.device, batch: int, seeds: list[int]
    ):
        sources = [train.Source(each, context, device) for each in (data if isinstance(data, list) else [data])]
        if len(sources) not in (1, len(seeds)) or len({s.n for s in sources}) > 1:
            raise ReproError("data: write one data set, or a list of one per seed, all of one length")
        self.source, self.offset = sources[0], None
        if len(sources) > 1:
            self.source = copy.copy(sources[0])
            for name in ("windows",) if self.source.text else ("x", "y"):
                setattr(self.source, name, torch.cat([getattr(s, name) for s in sources]))
            self.offset = torch.arange(len(seeds), device=device)[:, None] * self.source.n
        self.orders = [self.source.order(batch, seed) for seed in seeds]
        self.steps, self.number, self.rows = self.orders[0].steps, -1, torch.empty(0)
        self.shape, self.device = (len(seeds), batch), device

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        number, row = divmod(step, self.steps)
        if number != self.number:
            blocks = torch.stack([order.block(number) for order in self.orders], 1).to(self.device)  # (steps, K, B)
            self.number, self.rows = number, (blocks if self.offset is None else blocks + self.offset).flatten(1)
        x, y = self.source.take(self.rows[row])
        return x.unflatten(0, self.shape), y.unflatten(0, self.shape)


def _clip_each(leaves: list[Tensor], bound: float) -> None:
    """The bound on the global gradient norm of `fit`, for each seed by itself."""
    squares = torch.stack([p.grad.flatten(1).square().sum(1) for p in leaves]).sum(0)
    scale = (bound / (squares.sqrt() + 1e-6)).clamp(max=1.0)
    for p in leaves:
        p.grad.mul_(scale.view(-1, *[1] * (p.dim() - 1)))


def _groups(groups: Callable[[nn.Module], list[dict]] | None, model: nn.Module, whole: nn.Module) -> list[dict]:
    """The parameter groups of the first model, told of the stacks."""
    if groups is None:
        return [{"params": [p for p in whole.parameters() if p.requires_grad]}]
    of = {id(part.members[0]): part.whole for part in parts(whole)}
    return [{**group, "params": [of[id(p)] for p in group["params"]]} for group in groups(model)]
