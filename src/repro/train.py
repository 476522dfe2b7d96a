"""The one training loop, for classifiers and language models, and what belongs to it: batches, schedules, evaluation.

Everything that happens at a step is a function of (seed, step): which examples are drawn, the learning rate, and the
state of PyTorch's random generators (dropout).  So a run killed at any step and resumed ends bitwise as if undisturbed.
Data stay in tensors on the model's device and are indexed directly.  `repro.batched.fit_batched` is the same loop for
several seeds at once.  In a torch.distributed process group (`repro.run.engines.ranks` makes one under torchrun) `fit`
is data parallel: every rank calls it alike and takes its share of each batch, and what it returns is that of all.
"""

import hashlib
import itertools
import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from repro import live
from repro.errors import Diverged as Diverged
from repro.errors import ReproError
from repro.models.modes import measured as measured
from repro.store import write_file

Loss = Callable[[Tensor, Tensor], Tensor]
Schedule = Callable[[int, int], float]
Data = tuple[Tensor, Tensor] | Tensor
OptimizerFactory = Callable[[list[dict], float], torch.optim.Optimizer]

CHUNK = 256  # steps whose language-model offsets are drawn at once
CHECKPOINTS: Path | None = (
    None  # where set, the n-th `fit` of this process without `checkpoint=` resumes from n.safetensors there
)
_fits = itertools.count()


# --- randomness ------------------------------------------------------------------------------------------------------


def seed_of(*parts: int | str) -> int:
    """A 63-bit seed from names and numbers, equal on every machine: seed_of("model", 3)."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "big") >> 1


def generator(*parts: int | str) -> torch.Generator:
    """A CPU generator seeded by `seed_of(*parts)`; each use should have a name of its own."""
    return torch.Generator().manual_seed(seed_of(*parts))


def draws(device: torch.device, *parts: int | str, dtype: torch.dtype = torch.float64) -> Callable[..., Tensor]:
    """draw(*shape): standard normal numbers on `device`, drawn on the CPU by `generator(*parts)`."""
    source = generator(*parts)
    return lambda *shape: torch.randn(shape, generator=source, dtype=dtype).to(device)


class _StepRandomness:
    """Sets PyTorch's own generators (dropout draws from them) to a function of (seed, step), and of the rank beyond
    0.
    """

    def __init__(self, seed: int, device: torch.device, rank: int = 0):
        self.seed, self.rank, self.generators = seed, (rank,) if rank else (), [torch.default_generator]
        if device.type == "cuda":
            index = torch.cuda.current_device() if device.index is None else device.index
            self.generators.append(torch.cuda.default_generators[index])

    def __call__(self, step: int) -> None:
        value = seed_of("step", self.seed, step, *self.rank)
        for each in self.generators:
            each.manual_seed(value)


def forked_rng(device: torch.device):
    """Put PyTorch's own generators back at the end, as if nothing had drawn from them."""
    return torch.random.fork_rng([device] if device.type == "cuda" else [])


def ranks() -> tuple[int, int]:
    """(rank, world size) of this process in its process group; (0, 1) without one."""
    grouped = dist.is_available() and dist.is_initialized()
    return (dist.get_rank(), dist.get_world_size()) if grouped else (0, 1)


# --- batches ---------------------------------------------------------------------------------------------------------


class Order:
    """Which `batch` of `n` examples a step sees: a pure function of (seed, step).

    Without replacement: epoch e is a permutation seeded by (seed, e), its incomplete last batch left out.
    With replacement: independent uniform draws.
    """

    def __init__(self, n: int, batch: int, seed: int, *, replacement: bool = False, device: torch.device | str = "cpu"):
        if not 1 <= batch <= n and not (replacement and n >= 1):
            raise ReproError(f"batch={batch}: there are {n} examples; write a batch from 1 to {n}")
        self.n, self.batch, self.seed, self.replacement, self.device = n, batch, seed, replacement, device
        self.steps = CHUNK if replacement else n // batch  # steps of one block
        self._block, self._rows = -1, torch.empty(0)

    def block(self, number: int) -> Tensor:
        """All batches of one block (an epoch, or CHUNK steps): (steps, batch), on the CPU."""
        source, shape = generator("batches", self.seed, number), (self.steps, self.batch)
        if self.replacement:
            return torch.randint(self.n, shape, generator=source)
        return torch.randperm(self.n, generator=source)[: self.steps * self.batch].view(shape)

    def __call__(self, step: int) -> Tensor:
        """Indices of the examples of a step: (batch,), on the device."""
        number, row = divmod(step, self.steps)
        if number != self._block:
            self._block, self._rows = number, self.block(number).to(self.device)
        return self._rows[row]


class Source:
    """Examples that stay on the device.  data: (x, y) of equal length, or 1-D tokens with a `context` length T.

    `take(index)` gives x[index], y[index]; of tokens the windows (B, T) that start at index, and those one later.
    """

    def __init__(self, data: Data, context: int | None, device: torch.device, channels_last: bool = False):
        self.text = isinstance(data, Tensor)
        if self.text != (context is not None):
            raise ReproError("data: write (x, y) without context=, or a 1-D tensor of tokens with context=")
        if self.text:
            self.n = len(data) - context
            if self.n < 1:
                raise ReproError(f"context={context}: the text has {len(data)} tokens; write a smaller context")
            self.windows = data.to(device).unfold(0, context + 1, 1)
            return
        self.x, self.y = (part.to(device) for part in data)
        self.n = len(self.x)
        if len(self.y) != self.n:
            raise ReproError(f"data: {self.n} examples and {len(self.y)} targets; write as many of both")
        self.channels_last = channels_last
        if channels_last:  # kept as (N, H, W, C), so that index_select yields channels_last batches
            self.x = self.x.permute(0, 2, 3, 1).contiguous()

    def order(self, batch: int, seed: int) -> Order:
        device = self.windows.device if self.text else self.x.device
        return Order(self.n, batch, seed, replacement=self.text, device=device)

    def take(self, index: Tensor) -> tuple[Tensor, Tensor]:
        if self.text:
            window = self.windows.index_select(0, index).long()
            return window[:, :-1], window[:, 1:]
        x = self.x.index_select(0, index)  # three times as fast as self.x[index] on a CPU
        return x.permute(0, 3, 1, 2) if self.channels_last else x, self.y.index_select(0, index)


# --- learning rate ---------------------------------------------------------------------------------------------------
# A schedule maps (step, steps) to the factor that multiplies lr.  `warmup` below 1 is a share of all steps, else a
# number of steps; during it the factor rises linearly and reaches 1 at its last step.


def constant(warmup: float = 0.0) -> Schedule:
    """1 after the warm-up."""
    return _warmed(warmup, lambda t: 1.0)


def linear(warmup: float = 0.0, floor: float = 0.0) -> Schedule:
    """1 -> floor in a straight line."""
    return _warmed(warmup, lambda t: 1.0 - (1.0 - floor) * t)


def cosine(warmup: float = 0.0, floor: float = 0.0) -> Schedule:
    """floor + (1 - floor) (1 + cos(pi t)) / 2, t from 0 after the warm-up to 1 after the last step."""
    return _warmed(warmup, lambda t: floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * t)))


def one_cycle(peak: float = 0.3, start: float = 1 / 25, floor: float = 1e-5) -> Schedule:
    """Cosine start -> 1 over the first `peak` share of steps, then cosine 1 -> floor."""

    def factor(step: int, steps: int) -> float:
        top = peak * steps
        t, low = (step / top, start) if step < top else ((steps - step) / (steps - top), floor)
        return low + (1.0 - low) * 0.5 * (1.0 - math.cos(math.pi * t))

    return factor


def inverse_sqrt(warmup: float = 0.1) -> Schedule:
    """min(s / w, sqrt(w / s)), s = step + 1, w the length of the warm-up in steps (Vaswani et al. 2017, 5.3)."""

    def factor(step: int, steps: int) -> float:
        w = max(warmup if warmup >= 1 else warmup * steps, 1.0)
        return min((step + 1) / w, math.sqrt(w / (step + 1)))

    return factor


def _warmed(warmup: float, after: Callable[[float], float]) -> Schedule:
    def factor(step: int, steps: int) -> float:
        w = warmup if warmup >= 1 else round(warmup * steps)
        return (step + 1) / w if step < w else after((step - w) / max(steps - w, 1))

    return factor


SCHEDULES: dict[str, Callable[[], Schedule]] = {
    "constant": constant,
    "linear": linear,
    "cosine": cosine,
    "one_cycle": one_cycle,
    "inverse_sqrt": inverse_sqrt,
}


def schedule_of(schedule: str | Schedule) -> Schedule:
    """A schedule by name with its defaults, or the callable itself."""
    if not isinstance(schedule, str):
        return schedule
    if schedule not in SCHEDULES:
        raise ReproError(f"schedule={schedule!r} is unknown; write one of {', '.join(SCHEDULES)}, or a callable")
    return SCHEDULES[schedule]()


# --- optimizer -------------------------------------------------------------------------------------------------------

OPTIMIZERS: dict[str, tuple[type[torch.optim.Optimizer], dict]] = {
    "sgd": (torch.optim.SGD, {}),
    "momentum": (torch.optim.SGD, {"momentum": 0.9}),
    "nesterov": (torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
    "adam": (torch.optim.Adam, {}),
    "adamw": (torch.optim.AdamW, {}),
}


def make_optimizer(
    optimizer: str | OptimizerFactory,
    groups: list[dict],
    lr: float,
    *,
    weight_decay: float = 0.0,
    options: dict | None = None,
) -> torch.optim.Optimizer:
    """An optimizer by name, fused; or `optimizer(groups, lr)`.  A group's `lr_scale` multiplies its learning rate."""
    if not isinstance(optimizer, str):
        return optimizer(groups, lr)
    if optimizer not in OPTIMIZERS:
        raise ReproError(f"optimizer={optimizer!r} is unknown; write one of {', '.join(OPTIMIZERS)}, or a callable")
    kind, preset = OPTIMIZERS[optimizer]
    return kind(groups, lr=lr, fused=True, **{**preset, "weight_decay": weight_decay, **(options or {})})


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set every group's learning rate to lr times its `lr_scale`."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)


# --- the loop --------------------------------------------------------------------------------------------------------


@dataclass
class History:
    """What a run leaves behind: the loss of every step's batch, and curves measured after `eval_steps` steps."""

    train_loss: list[float] = field(default_factory=list)
    eval_steps: list[int] = field(default_factory=list)
    curves: dict[str, list[float]] = field(default_factory=dict)

    @property
    def final(self) -> dict[str, float]:
        """The last value of every curve."""
        return {name: curve[-1] for name, curve in self.curves.items()}

    def record(self, steps: int, values: dict[str, float]) -> None:
        self.eval_steps.append(steps)
        for name, value in values.items():
            self.curves.setdefault(name, []).append(float(value))


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Mean cross-entropy in nats.  logits: (..., C), target: (...)."""
    return F.cross_entropy(logits.flatten(0, -2), target.flatten())


def fit(
    model: nn.Module,
    data: Data,
    *,
    steps: int,
    batch: int,
    lr: float,
    seed: int,
    context: int | None = None,
    optimizer: str | OptimizerFactory = "adamw",
    optimizer_options: dict | None = None,
    weight_decay: float = 0.0,
    groups: Callable[[nn.Module], list[dict]] | None = None,
    schedule: str | Schedule = "constant",
    clip: float | Callable[[list[nn.Parameter]], object] | None = None,
    loss: Loss = cross_entropy,
    evaluate: Callable[[nn.Module], dict[str, float]] | None = None,
    eval_every: int | None = None,
    hook: Callable[[int, nn.Module, Tensor], object] | None = None,
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = None,
    amp: torch.dtype | None = None,
    channels_last: bool = False,
    checkpoint: Path | None = None,
    checkpoint_every: int = 1000,
) -> History:
    """Train `model` in place on its own device for `steps` batches.

    data: (x, y), seen in epochs; or 1-D tokens with `context`, seen in random windows.
    groups(model): parameter groups, each with `params` and, as wanted, `weight_decay` and `lr_scale`.
    clip: bound of the global gradient norm, or a function of the parameters that changes their gradients.
    evaluate(model): measured in eval mode every `eval_every` steps and after the last.
    hook(step, model, loss): called when the gradients of `step` are there and the update is not.
    augment(x, generator): changes a batch; the CPU generator is seeded by (seed, step).
    amp: dtype of autocast.  checkpoint: a file to resume from, written every `checkpoint_every` steps.
    An optimizer with `needs_closure = True` (SAM) gets a closure that computes loss and gradients again.

    With W ranks `batch` is that of all together, `loss` must be a mean over examples, hook sees the rank's own loss,
    BatchNorm normalises the rank's share, evaluate runs on every rank, and rank 0 writes the checkpoint.

    Raises Diverged(step), step the first whose loss is not finite.
    """
    device = next(model.parameters()).device
    rank, world = ranks()
    if batch % world:
        raise ReproError(f"batch={batch}: {world} ranks share it; write a multiple of {world}")
    if channels_last:
        model.to(memory_format=torch.channels_last)
    source = Source(data, context, device, channels_last)
    order, randomness = source.order(batch, seed), _StepRandomness(seed, device, rank)
    parameters = [p for p in model.parameters() if p.requires_grad]
    factor = schedule_of(schedule)
    update = make_optimizer(
        optimizer,
        groups(model) if groups else [{"params": parameters}],
        lr,
        weight_decay=weight_decay,
        options=optimizer_options,
    )
    needs_closure = getattr(update, "needs_closure", False)
    check_every = 64 if device.type == "cuda" else 16
    history, pending, start = History(), [], 0

    saved = None
    if checkpoint is None and CHECKPOINTS is not None:
        checkpoint = CHECKPOINTS / f"{next(_fits)}.safetensors"
    if checkpoint is not None:
        settings = {
            "steps": steps,
            "batch": batch,
            "lr": lr,
            "seed": seed,
            "context": context,
            "examples": source.n,
            "optimizer": _name(optimizer),
            "optimizer_options": repr(optimizer_options),
            "weight_decay": weight_decay,
            "schedule": [factor(step, steps) for step in (0, steps // 3, steps // 2, steps - 1)],
            "clip": _name(clip),
            "loss": _name(loss),
            "augment": _name(augment),
            "amp": str(amp),
            "eval_every": eval_every,
            "ranks": world,
        }
        saved = Checkpoint(Path(checkpoint), settings)
        start = saved.load(model, update, history)
    forward: nn.Module = model
    if world > 1:  # the same function, its gradients averaged over the ranks
        forward = nn.parallel.DistributedDataParallel(model, None if device.type == "cpu" else [device])

    def gradients(step: int, x: Tensor, y: Tensor) -> Tensor:
        for p in parameters:
            p.grad = None
        randomness(step)
        if amp is None:
            value = loss(forward(x), y)
        else:
            with torch.autocast(device.type, amp):
                value = loss(forward(x), y)
        value.backward()
        if clip is not None:
            clip(parameters) if callable(clip) else nn.utils.clip_grad_norm_(parameters, clip)
        return value.detach()

    def settle() -> None:
        """Read the losses that wait on the device; the first that is not finite ends the run, on all ranks alike."""
        if not pending:
            return
        values = torch.stack(pending)
        if world > 1:
            dist.all_reduce(values)
            values = values / world
        for value in values.tolist():
            if not math.isfinite(value):
                raise Diverged(len(history.train_loss))
            history.train_loss.append(value)
        pending.clear()
        live.tell(len(history.train_loss), steps, history.train_loss[-1])

    model.train()
    with forked_rng(device):
        for step in range(start, steps):
            x, y = source.take(order(step))
            if augment is not None:  # of the whole batch: the draws are those of one process
                x = augment(x, generator("augment", seed, step))
            if world > 1:
                x, y = x[rank::world], y[rank::world]
            set_lr(update, lr * factor(step, steps))
            value = gradients(step, x, y)
            if hook is not None:
                hook(step, model, value)
            if needs_closure:
                update.step(lambda step=step, x=x, y=y: gradients(step, x, y))
            else:
                update.step()
            pending.append(value)
            done = step + 1
            if len(pending) == check_every or done == steps:
                settle()
            if evaluate is not None and (done == steps or (eval_every and done % eval_every == 0)):
                settle()
                history.record(done, measured(evaluate, model))
            if saved is not None and (done == steps or done % checkpoint_every == 0):
                settle()
                if rank == 0:
                    saved.save(done, model, update, history)
    return history


def _name(value: object) -> object:
    return getattr(value, "__qualname__", type(value).__qualname__) if callable(value) else value


# --- evaluation ------------------------------------------------------------------------------------------------------


def _score(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> dict[str, float]:
    total, right, count = 0.0, 0.0, 0
    for x, y in batches:
        logits, y = model(x).flatten(0, -2), y.flatten()
        total = total + F.cross_entropy(logits, y, reduction="sum").double()
        right = right + (logits.argmax(-1) == y).sum()
        count += len(y)
    accuracy = float(right) / count
    return {"loss": float(total) / count, "accuracy": accuracy, "error": 1.0 - accuracy}


def evaluate_classifier(model: nn.Module, x: Tensor, y: Tensor, *, batch: int = 2000) -> dict[str, float]:
    """loss (nats), accuracy and error (shares) over all of (x, y), in eval mode."""
    return measured(lambda m: _score(m, zip(x.split(batch), y.split(batch), strict=True)), model)


def evaluate_lm(
    model: nn.Module, tokens: Tensor, context: int, *, batch: int = 64, windows: int | None = None
) -> dict[str, float]:
    """loss (nats per token), accuracy and error over the first `windows` windows, which do not overlap."""
    count = (len(tokens) - 1) // context
    count = min(count, windows or count)
    if count < 1:
        raise ReproError(f"context={context}: the text has {len(tokens)} tokens; write a smaller context")
    x = tokens[: count * context].view(count, context).long()
    y = tokens[1 : count * context + 1].view(count, context).long()
    return evaluate_classifier(model, x, y, batch=batch)


# --- checkpoints -----------------------------------------------------------------------------------------------------


class Checkpoint:
    """One safetensors file: parameters, buffers and optimizer state; the rest as JSON in its metadata, with a digest of
    all.

    State that a module keeps outside parameters and buffers is not saved.
    """

    def __init__(self, path: Path, settings: dict):
        self.path, self.settings = path, json.loads(json.dumps(settings))

    def save(self, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, history: History) -> None:
        from safetensors.torch import save

        tensors = {f"model/{name}": t for name, t in _tensors(model).items()}
        state, plain = optimizer.state_dict(), {}
        for index, entries in state["state"].items():
            for name, value in entries.items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer/{index}/{name}"] = value
                else:
                    plain[f"{index}/{name}"] = value
        groups = [{k: v for k, v in g.items() if isinstance(v, int | float)} for g in state["param_groups"]]
        head = {"settings": self.settings, "step": step, "plain": plain, "groups": groups, "history": vars(history)}
        tensors, told = {k: t.detach().cpu().contiguous().clone() for k, t in tensors.items()}, json.dumps(head)
        write_file(self.path, save(tensors, {"repro": told, "digest": _digest(told, tensors)}))

    def load(self, model: nn.Module, optimizer: torch.optim.Optimizer, history: History) -> int:
        """Fill model, optimizer and history; returns how many steps they have behind them (0 where no file is)."""
        if not self.path.exists():
            return 0
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.path, "pt") as file:
                told, digest = file.metadata()["repro"], file.metadata()["digest"]
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if digest != _digest(told, tensors):
                raise ValueError("its digest does not fit its content")
            head = json.loads(told)
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ReproError(f"{self.path}: no checkpoint ({error}); delete it and start again") from error
        for name, value in self.settings.items():
            if head["settings"].get(name) != value:
                was = head["settings"].get(name)
                raise ReproError(f"{self.path}: written with {name}={was!r}, now {value!r}; write another checkpoint=")
        own = _tensors(model)
        if set(own) != {name.removeprefix("model/") for name in tensors if name.startswith("model/")}:
            raise ReproError(f"{self.path}: written for another model; write another checkpoint=")
        with torch.no_grad():
            for name, t in own.items():
                t.copy_(tensors[f"model/{name}"])
        state: dict[int, dict] = {}
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        for key, value in tensors.items():
            if key.startswith("optimizer/"):
                _, index, name = key.split("/", 2)
                p = parameters[int(index)]
                if value.shape == p.shape and value.dim():  # a fused kernel wants the parameter's memory layout
                    value = torch.empty_like(p, dtype=value.dtype).copy_(value)
                state.setdefault(int(index), {})[name] = value
        for key, value in head["plain"].items():
            index, name = key.split("/", 1)
            state.setdefault(int(index), {})[name] = value
        now = optimizer.state_dict()["param_groups"]
        groups = [{**group, **old} for group, old in zip(now, head["groups"], strict=True)]
        optimizer.load_state_dict({"state": state, "param_groups": groups})
        for name, value in head["history"].items():
            setattr(history, name, value)
        return head["step"]


def _digest(told: str, tensors: dict[str, Tensor]) -> str:
    total = hashlib.sha256(told.encode())
    for name in sorted(tensors):
        total.update(f"{name} {tensors[name].dtype} {list(tensors[name].shape)}".encode())
        total.update(tensors[name].flatten().view(torch.uint8).numpy())
    return total.hexdigest()


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}
