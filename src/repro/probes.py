"""Signal propagation, layer by layer: statistics of outputs or inputs, gradient norms, sizes of updates, sensitivity.

    with Probe(model, of=(nn.Linear,)) as probe:
        loss_of(model(x)).backward()
    for row in probe.rows(): print(row["layer"], row["rms"], row["grad_norm"])

One row per call of a watched module, in the order in which the calls ended, so an unrolled RNN gives one row per time
step (`call` 0, 1, ...).  Training goes on bitwise as without the probe, and nothing stays hooked after the block.

    mean, variance, rms   over all elements; variance is mean (y - mean y)^2; float32 at least, whatever y is
    p15, ...              percentiles over all elements, linear between neighbours (numpy's default)
    grad_norm             ||dL/dy||_2 of this call, of the last backward pass through it; None if there was none
    param_grad_norm       ||dL/dtheta||_2 over the module's parameters, as the last backward pass left it: not clipped
    param_norm            ||theta||_2 when the rows are read
    update, update_ratio  ||theta - theta_0||_2 and that over ||theta_0||_2 (None if that is 0); with updates=True only

theta holds all parameters within the module, so it is common to all rows of a layer; None for a module without any.
Of a nested output (an LSTM's, a dict) the first floating-point tensor is y; a call without one gives no row.  Not for
use inside torch.func transforms; an activation checkpoint's second forward pass is one more call.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from repro.errors import ReproError

Row = dict[str, str | int | float | None]
Which = type[nn.Module] | str | Iterable[type[nn.Module] | str] | Callable[[str, nn.Module], bool] | None


def _first_float(value: object) -> Tensor | None:
    if isinstance(value, Tensor):
        return value if value.is_floating_point() and value.numel() else None
    if isinstance(value, dict):
        value = list(value.values())
    found = (_first_float(item) for item in value) if isinstance(value, (tuple, list)) else ()
    return next((tensor for tensor in found if tensor is not None), None)


def _wide(x: Tensor) -> Tensor:
    return x.detach().to(torch.promote_types(x.dtype, torch.float32))


def _norm(tensors: Iterable[Tensor]) -> Tensor | None:
    """L2 norm over all elements of all tensors, a scalar on the device of the first."""
    norms = [torch.linalg.vector_norm(_wide(tensor)) for tensor in tensors]
    return torch.linalg.vector_norm(torch.stack([norm.to(norms[0]) for norm in norms])) if norms else None


def percentiles(x: Tensor, q: Sequence[float]) -> Tensor:
    """(len(q),) percentiles over all elements of x, by sorting: torch.quantile stops at 2^24 elements."""
    ordered = _wide(x).flatten().sort().values
    at = torch.tensor(q, dtype=torch.float64) / 100 * (len(ordered) - 1)
    low, high = (ordered[i.long().to(x.device)] for i in (at.floor(), at.ceil()))
    return low + (high - low) * at.frac().to(low)


class Probe:
    """Watches modules of `model` while its `with` block lasts.

    of           module types, names (as in named_modules) or a predicate (name, module) -> bool; by default every
                 module that has no children
    at           "output" or "input" (of a pre-activation: the input of its activation)
    percentiles  such as (15, 50, 85), the three of Fig. 1 of the batch normalization paper; they cost a sort
    select       applied to y before its statistics, such as lambda y: y[:, 0] for one unit; grad_norm remains that of y
    updates      keep a copy of the watched parameters, taken on entering and by `clear`, to measure updates from

    Raises ReproError if `of` matches nothing.
    """

    def __init__(
        self,
        model: nn.Module,
        of: Which = None,
        *,
        at: str = "output",
        percentiles: Sequence[float] = (),
        select: Callable[[Tensor], Tensor] | None = None,
        updates: bool = False,
    ):
        if at not in ("output", "input"):
            raise ReproError(f"Probe: at={at!r} is unknown; write output or input")
        wanted = _predicate(of)
        self.modules = {name: module for name, module in model.named_modules() if wanted(name, module)}
        if not self.modules:
            raise ReproError(f"Probe: of={of!r} matches no module; print(model) shows their types and names")
        self.at, self.percentiles, self.select, self.updates = at, tuple(percentiles), select, updates
        self._parameters = {p: None for module in self.modules.values() for p in module.parameters()}
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self._on_tensors: list[torch.utils.hooks.RemovableHandle] = []
        self.clear()

    def __enter__(self) -> "Probe":
        self.clear()
        for name, module in self.modules.items():
            if self.at == "output":
                hook = module.register_forward_hook(lambda module, args, out, name=name: self._record(name, out))
            else:
                hook = module.register_forward_pre_hook(
                    lambda module, args, kwargs, name=name: self._record(name, [args, kwargs]), with_kwargs=True
                )
            self._handles.append(hook)
        for parameter in self._parameters:
            if parameter.requires_grad:
                self._handles.append(parameter.register_post_accumulate_grad_hook(self._record_parameter))
        return self

    def __exit__(self, *exception: object) -> None:
        for handle in self._handles + self._on_tensors:
            handle.remove()
        self._handles, self._on_tensors = [], []

    def clear(self) -> None:
        """Forgets all calls, and starts measuring updates from the parameters as they are now."""
        for handle in self._on_tensors:
            handle.remove()
        self._on_tensors = []
        self._calls: list[tuple[str, int, Tensor, list[Tensor | None]]] = []
        self._count: Counter[str] = Counter()
        self._param_grads: dict[Tensor, Tensor] = {}
        self._start = {p: p.detach().clone() for p in self._parameters} if self.updates else {}

    @torch.no_grad()
    def _record(self, name: str, value: object) -> None:
        y = _first_float(value)
        if y is None:
            return
        x = _wide(y if self.select is None else self.select(y.detach()))
        variance, mean = torch.var_mean(x, correction=0)
        found = torch.stack([mean, variance, torch.linalg.vector_norm(x) / x.numel() ** 0.5])
        if self.percentiles:
            found = torch.cat([found, percentiles(x, self.percentiles)])
        grad: list[Tensor | None] = [None]
        self._calls.append((name, self._count[name], found, grad))
        self._count[name] += 1
        if y.requires_grad:

            def keep(g: Tensor) -> None:
                grad[0] = _norm([g])

            self._on_tensors.append(y.register_hook(keep))

    def _record_parameter(self, parameter: Tensor) -> None:
        self._param_grads[parameter] = _norm([parameter.grad])

    @torch.no_grad()
    def rows(self) -> list[Row]:
        """What was seen so far; the device is waited for here and nowhere else (once per device and dtype)."""
        shared: dict[str, dict[str, Tensor | None]] = {}
        for name in self._count:
            held = list(self.modules[name].parameters())
            size = {"param_grad_norm": _norm([self._param_grads[p] for p in held if p in self._param_grads])}
            size["param_norm"] = _norm(held)
            if self.updates:
                size["update"] = _norm([_wide(p) - _wide(self._start[p]) for p in held])
                size["start"] = _norm([self._start[p] for p in held])
            shared[name] = size
        keys = ["mean", "variance", "rms", *(f"p{q:g}" for q in self.percentiles)]
        rows: list[dict] = [
            {"layer": name, "call": call, **dict(zip(keys, found, strict=True)), "grad_norm": grad[0], **shared[name]}
            for name, call, found, grad in self._calls
        ]
        _to_floats(rows)
        for row in rows:
            if self.updates:
                start, update = row.pop("start"), row["update"]
                row["update_ratio"] = update / start if start else None
        return rows


def _predicate(of: Which) -> Callable[[str, nn.Module], bool]:
    if of is None:
        return lambda name, module: not any(True for _ in module.children())
    if callable(of) and not isinstance(of, type):
        return of
    chosen = list(of) if isinstance(of, Iterable) and not isinstance(of, str) else [of]
    types = tuple(item for item in chosen if isinstance(item, type))
    return lambda name, module: name in chosen or isinstance(module, types)


def _to_floats(rows: list[dict]) -> None:
    """Replaces the scalar tensors in `rows` by floats, with one transfer per device and dtype."""
    groups: dict[tuple[torch.device, torch.dtype], list[tuple[dict, str]]] = {}
    for row in rows:
        for key, value in row.items():
            if isinstance(value, Tensor):
                groups.setdefault((value.device, value.dtype), []).append((row, key))
    for places in groups.values():
        numbers = torch.stack([row[key] for row, key in places]).tolist()
        for (row, key), number in zip(places, numbers, strict=True):
            row[key] = number


@torch.no_grad()
def sensitivity(model: nn.Module, x: Tensor, *, eps: float = 1e-3, draws: int = 4, seed: int = 0) -> float:
    """Gain from input to output, sqrt(E_v ||f(x + h v) - f(x - h v)||^2 / ||2 h v||^2), v ~ N(0, I), h = eps rms(x).

    For a differentiable f and small eps this is ||J||_F / sqrt(n), J the Jacobian and n the number of elements of x: 1
    for an orthogonal map.  f need not be differentiable.  `draws` directions come from a CPU generator; the whole batch
    is perturbed at once.  Buffers (running statistics) and the global generators are left as they were, and both sides
    see the same dropout mask.  Use float32 or more: a difference of half-precision outputs is mostly rounding.
    """
    generator = torch.Generator().manual_seed(seed)
    h = eps * (x.square().mean().sqrt().item() or 1.0)
    top = bottom = 0.0
    for _ in range(draws):
        v = torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x)
        above, below = x + h * v, x - h * v
        difference = _undisturbed(model, above, seed) - _undisturbed(model, below, seed)
        top += difference.square().sum().item()
        bottom += _wide(above - below).square().sum().item()  # as rounded, not as meant
    return (top / bottom) ** 0.5


def _undisturbed(model: nn.Module, x: Tensor, seed: int) -> Tensor:
    """The model's output, wide, from a pass that changes neither its buffers nor any global generator."""
    with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would also seed devices that are not forked
        if x.is_cuda:
            torch.cuda.default_generators[x.device.index].manual_seed(seed)
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        y = _first_float(torch.func.functional_call(model, buffers, (x,)))
    if y is None:
        raise ReproError("sensitivity: the model returns no floating-point tensor; wrap it so that it does")
    return y.to(torch.promote_types(y.dtype, torch.float32))
