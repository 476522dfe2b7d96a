"""Replace the norms or the activations of a finished model, whoever wrote it.

    import repro
    report = repro.swap(model, to="DyT", what=nn.LayerNorm)

Layers are recognised by what they compute, not by their names: Llama's RMSNorm, Gemma's RMSNorm with the gain 1 +
weight and timm's norms over channels are classes of their own, and a class called LayerNorm may hold an activation.
"""

import copy
import difflib
import functools
import inspect
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Swap", "swap"]

What = str | type | tuple[str | type, ...]
BATCH = (nn.modules.batchnorm._BatchNorm,)
KINDS = {  # kind: the classes of torch that stand for it
    "LayerNorm": (nn.LayerNorm,),
    "RMSNorm": (nn.RMSNorm,),
    "BatchNorm": BATCH,
    "GroupNorm": (nn.GroupNorm,),
    "InstanceNorm": (nn.modules.instancenorm._InstanceNorm,),
}
ACTIVATIONS: dict[str, tuple[type, Callable[[Tensor], Tensor]]] = {
    "ReLU": (nn.ReLU, F.relu),
    "GELU": (nn.GELU, F.gelu),
    "GELU (tanh)": (nn.GELU, functools.partial(F.gelu, approximate="tanh")),
    "SiLU": (nn.SiLU, F.silu),
    "Tanh": (nn.Tanh, torch.tanh),
    "Sigmoid": (nn.Sigmoid, torch.sigmoid),
    "ELU": (nn.ELU, F.elu),
    "SELU": (nn.SELU, F.selu),
    "Mish": (nn.Mish, F.mish),
    "Softplus": (nn.Softplus, F.softplus),
    "Hardswish": (nn.Hardswish, F.hardswish),
    "LeakyReLU": (nn.LeakyReLU, F.leaky_relu),
    "ReLU6": (nn.ReLU6, F.relu6),
}
NAMES = re.compile(r"norm|\bLN\b|^ln", re.IGNORECASE)


@dataclass
class Layer:
    """What is known of one layer: its kind, and for a norm its width, gain, bias and on which axis it works."""

    kind: str
    size: tuple[int, ...] = ()
    gain: Tensor | None = None
    bias: Tensor | None = None
    offset: float = 0.0  # the layer multiplies by offset + gain
    channels: bool = False  # the second axis is normalised or holds the gains, not the last one
    eps: float | None = None


@dataclass
class Swap:
    """What `swap` did: names of the layers replaced and left, with the class before and after, or the reason."""

    model: nn.Module
    replaced: list[tuple[str, str, str]] = field(default_factory=list)
    left: list[tuple[str, str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = []
        for (old, new), count in Counter((old, new) for _, old, new in self.replaced).items():
            names = [name or "the model itself" for name, a, b in self.replaced if (a, b) == (old, new)]
            lines.append(f"replaced {count} {old} by {new}: {_some(names)}")
        for (kind, why), count in Counter((kind, why) for _, kind, why in self.left).items():
            names = [name or "the model itself" for name, a, b in self.left if (a, b) == (kind, why)]
            lines.append(f"left {count} {kind} ({why}): {_some(names)}")
        return "\n".join([*lines, *self.notes])


def _some(names: list[str]) -> str:
    return ", ".join(names if len(names) < 5 else [*names[:2], "...", names[-1]])


# --- what a layer computes --------------------------------------------------------------------------------------------


def _single_input(module: nn.Module) -> bool:
    """Whether forward takes one tensor and nothing else, so that another layer can be called in its place."""
    return len(inspect.signature(module.forward).parameters) == 1


def _probe(module: nn.Module, n: int) -> Layer | None:
    """Recognise a layer norm or an RMS norm by its output for random parameters, over the last axis or
    over channels.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            trial = copy.deepcopy(module).to_empty(device="cpu").float().eval()
            with torch.no_grad():
                for p in trial.parameters():
                    p.uniform_(0.5, 1.5)
            x = 0.3 + torch.randn(2, 3, 4, n)
            outputs = {}
            for channels in (False, True):
                try:
                    with torch.no_grad():
                        y = trial(x.movedim(-1, 1).contiguous() if channels else x)
                    outputs[channels] = y.movedim(1, -1) if channels else y
                except Exception:
                    continue
        except Exception:  # a layer that cannot be copied or called is none that we know
            return None
    flat = {name: p.detach() for name, p in trial.named_parameters()}
    normal = {"LayerNorm": F.layer_norm(x, (n,), eps=1e-9), "RMSNorm": F.rms_norm(x, (n,), eps=1e-9)}
    for channels, y in outputs.items():
        if not isinstance(y, Tensor) or y.shape != x.shape:
            continue
        for kind, unit in normal.items():
            for gain in (None, *flat):
                for bias in (None, *(name for name in flat if name != gain)):
                    if len(flat) != (gain is not None) + (bias is not None):
                        continue
                    for offset in (0.0,) if gain is None else (0.0, 1.0):
                        want = unit if gain is None else unit * (offset + flat[gain])
                        want = want if bias is None else want + flat[bias]
                        if torch.allclose(y, want, rtol=1e-3, atol=1e-2):
                            named = dict(module.named_parameters())
                            return Layer(kind, (n,), named.get(gain), named.get(bias), offset, channels)
    return None


def recognise(module: nn.Module) -> Layer | str | None:
    """Return what a norm or activation is; a text says why a layer that looks like one is not; None: it is neither."""
    if type(module) in (nn.LayerNorm, nn.RMSNorm):
        bias = getattr(module, "bias", None)
        return Layer(type(module).__name__, tuple(module.normalized_shape), module.weight, bias, eps=module.eps)
    for kind in ("BatchNorm", "GroupNorm", "InstanceNorm"):
        if isinstance(module, KINDS[kind]):
            if getattr(module, "act", None) is not None and not isinstance(module.act, nn.Identity):
                return "it holds an activation, which the new layer would drop"
            n = getattr(module, "num_features", None) or module.num_channels
            return Layer(kind, (n,), module.weight, module.bias, channels=True, eps=module.eps)
    if any(True for _ in module.children()):
        acts = [child for child in module.children() if not isinstance(child, nn.Identity)]
        return "it holds other layers" if NAMES.search(type(module).__name__) and acts else None
    parameters = list(module.parameters())
    shape = getattr(module, "normalized_shape", None)
    shape = (shape,) if isinstance(shape, int) else tuple(shape or ())
    if parameters and {p.dim() for p in parameters} == {1} and len({p.shape for p in parameters}) == 1:
        shape = shape or tuple(parameters[0].shape)
    if shape and len(parameters) <= 2:
        if not _single_input(module):
            return "it takes more than one input" if NAMES.search(type(module).__name__) else None
        found = _probe(module, shape[0]) if len(shape) == 1 else None
        if found is not None:
            for name in ("eps", "variance_epsilon", "epsilon"):
                found.eps = getattr(module, name, found.eps)
            return found
        return "it computes neither a LayerNorm nor an RMSNorm" if NAMES.search(type(module).__name__) else None
    if not parameters and not list(module.buffers()) and not isinstance(module, nn.Identity):
        return _activation(module)
    return "it has no width of which we know" if NAMES.search(type(module).__name__) else None


def _activation(module: nn.Module) -> Layer | str | None:
    if isinstance(module, nn.Dropout | nn.Flatten | nn.AvgPool2d | nn.MaxPool2d | nn.AdaptiveAvgPool2d | nn.Softmax):
        return None
    x = torch.linspace(-4, 4, 41).view(1, 41)
    try:
        with torch.no_grad():
            y = copy.deepcopy(module).eval()(x.clone())
    except Exception:
        return None
    if not isinstance(y, Tensor) or y.shape != x.shape:
        return None
    for kind, (_, function) in ACTIVATIONS.items():
        if torch.allclose(y, function(x), rtol=1e-5, atol=1e-6):
            return Layer(kind.partition(" ")[0])
    return None


# --- the new layer ----------------------------------------------------------------------------------------------------


def _target(to: str | Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    if not isinstance(to, str):
        return to
    from repro import nn as ours

    layers = [name for name in ours.__all__ if name[0].isupper()]  # beside them stand functions and networks
    if to in layers:
        return getattr(ours, to)
    if isinstance(made := getattr(nn, to, None), type) and issubclass(made, nn.Module):
        return made
    near = difflib.get_close_matches(to, layers, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(
        f"to={to!r} is no layer of repro.nn or torch.nn{hint} A class, or a function of the width, will do"
    )


def _takes(make: Callable[..., nn.Module]) -> set[str]:
    try:
        return set(inspect.signature(make).parameters)
    except (TypeError, ValueError):
        return set()


def _build(make: Callable[..., nn.Module], layer: Layer, like: Tensor | None) -> nn.Module:
    takes, options = _takes(make), {}
    if layer.size:
        fixed = set(getattr(make, "keywords", ()))
        for name in ("elementwise_affine", "affine"):
            if name in takes - fixed:
                options[name] = layer.gain is not None
        if "bias" in takes - fixed:
            options["bias"] = layer.bias is not None
        if layer.kind == getattr(make, "__name__", "") == "LayerNorm" and layer.eps is not None:
            options["eps"] = layer.eps
    if like is not None and {"device", "dtype"} <= takes:
        options |= {"device": like.device, "dtype": like.dtype}
    size = layer.size[0] if len(layer.size) == 1 else layer.size
    try:
        new = make(size, **options) if layer.size else make(**options)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{_name(make)} cannot be made for a layer of size {layer.size}: {error}") from error
    return new if like is None else new.to(device=like.device, dtype=like.dtype)


def _name(make: object) -> str:
    return getattr(getattr(make, "func", make), "__name__", repr(make))


@functools.lru_cache(maxsize=256)
def _works_on_channels(make: Callable[..., nn.Module]) -> bool:
    """Whether what `make` builds takes (N, C, *) and not (..., C): tried out."""
    n = 12
    with torch.device("cpu"):
        trial = make(n).float().eval()
    accepts = []
    with torch.no_grad():
        for shape in ((2, 5, 5, n), (2, n, 5, 5)):
            try:
                accepts.append(trial(torch.randn(shape, generator=torch.Generator().manual_seed(0))).shape == shape)
            except Exception:
                accepts.append(False)
    if not any(accepts):
        raise ValueError(f"{_name(make)} takes neither (..., {n}) nor (N, {n}, *): it fits no norm's place")
    return not accepts[0]


def channels_to_the_end(module: nn.Module, args: tuple) -> tuple:
    return args[0].movedim(1, -1), *args[1:]


def channels_to_the_second(module: nn.Module, args: tuple, *output: Tensor) -> Tensor | tuple:
    return output[0].movedim(-1, 1) if output else (args[0].movedim(-1, 1), *args[1:])


def channels_back_to_the_end(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
    return output.movedim(1, -1)


@torch.no_grad()
def _inherit(new: nn.Module, old: nn.Module, layer: Layer) -> list[str]:
    """Copy gain, bias, statistics, mode and hooks; return the names of parameters that found no place."""
    lost = []
    for name, value in (("weight", layer.gain), ("bias", layer.bias)):
        mine = getattr(new, name, None)
        if value is None:
            continue
        if not isinstance(mine, nn.Parameter) or mine.numel() != value.numel():
            lost.append({"weight": "gain"}.get(name, name))
            continue
        mine.copy_((value + layer.offset).reshape(mine.shape) if name == "weight" else value.reshape(mine.shape))
        mine.requires_grad_(value.requires_grad)
    theirs = dict(old.named_buffers())
    for name, mine in new.named_buffers():
        if name in theirs and theirs[name].shape == mine.shape and layer.kind == "BatchNorm":
            mine.copy_(theirs[name])
    for name, hooks in vars(old).items():  # the same dictionaries, so that a handle still removes its hook
        if re.fullmatch(r"_(forward|backward|state_dict|load_state_dict)\w*hooks\w*", name) and hooks:
            hooks.update(getattr(new, name))
            setattr(new, name, hooks)
    new.train(old.training)
    return lost


# --- the swap ---------------------------------------------------------------------------------------------------------


def _wanted(what: What) -> tuple[set[str], tuple[type, ...]]:
    """The kinds and the classes that `what` names."""
    kinds, classes = set(), ()
    for one in what if isinstance(what, tuple | list) else (what,):
        names = {"norm": set(KINDS), "activation": {kind.partition(" ")[0] for kind in ACTIVATIONS}}
        if isinstance(one, str):
            known = {*KINDS, *names["activation"]}
            if one not in names and one not in known:
                near = difflib.get_close_matches(one, [*known, *names], n=1, cutoff=0.5)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise ValueError(f"what={one!r} is no kind of layer{hint} Write one of {', '.join([*names, *KINDS])}")
            kinds |= names.get(one, {one})
        else:
            mine = {kind for kind, of in KINDS.items() if issubclass(one, of)}
            mine |= {kind.partition(" ")[0] for kind, (of, _) in ACTIVATIONS.items() if one is of}
            kinds, classes = kinds | mine, classes if mine else (*classes, one)
    return kinds, classes


def swap(
    model: nn.Module,
    to: str | Callable[..., nn.Module],
    what: What = nn.LayerNorm,
    *,
    where: str | Callable[[str, nn.Module], bool] | None = None,
    quiet: bool = False,
) -> Swap:
    """Replace layers of `model` in place, say what was replaced and what was not, and return that as a report.

    to: the name of a layer of repro.nn or torch.nn, a class, or a function of the width such as
        partial(DyT, alpha_init=0.8); for activations a function without arguments.
    what: nn.LayerNorm, nn.RMSNorm, nn.BatchNorm2d, nn.GELU, ...: all layers that compute that, of whatever class;
        "norm" or "activation"; a class of your own; or a tuple of these.
    where: a regular expression that names of layers must contain, or a function of name and layer.

    The new layer takes over gain and bias where it has them (and running statistics, between batch norms), dtype,
    device, training mode and hooks.  Do this before the optimizer is made, since the parameters are new ones.  Layers
    that are used twice stay one.  If `model` is itself such a layer, the new one is `report.model`. Raises ValueError
    where nothing is there to replace, with what there is.
    """
    make, (kinds, classes), report = _target(to), _wanted(what), Swap(model)
    made: dict[nn.Module, nn.Module] = {}
    lost: Counter[str] = Counter()
    first = next(model.parameters(), None)
    for name, old in list(model.named_modules(remove_duplicate=False)):
        if old in made:
            model.set_submodule(name, made[old])
            continue
        layer = recognise(old)
        if layer is None and not isinstance(old, classes):
            continue
        own = type(old).__name__
        if isinstance(layer, str) or layer is None:
            if layer is None:
                layer = "it has no width of which we know"
            report.left.append((name, own, layer))
        elif layer.kind not in kinds and not isinstance(old, classes):
            if bool(layer.size) == bool(kinds & set(KINDS)):
                report.left.append((name, own, f"a {layer.kind}, which was not asked for"))
        elif where is not None and not (re.search(where, name) if isinstance(where, str) else where(name, old)):
            report.left.append((name, own, "left out by where="))
        else:
            like = layer.gain if layer.gain is not None else first
            new = _build(make, layer, like if layer.size or list(old.parameters()) else None)
            if layer.size:
                lost.update(_inherit(new, old, layer))
                channels = _works_on_channels(make)
                if layer.channels and not channels:
                    new.register_forward_pre_hook(channels_to_the_end, prepend=True)
                    new.register_forward_hook(channels_to_the_second)
                elif channels and not layer.channels:
                    new.register_forward_pre_hook(channels_to_the_second, prepend=True)
                    new.register_forward_hook(channels_back_to_the_end)
            else:
                _inherit(new, old, layer)
            made[old] = new
            report.replaced.append((name, own, type(new).__name__))
            if name:
                model.set_submodule(name, new)
            else:
                report.model = new
    if not report.replaced:
        there = f"; there is: {report}" if report.left else ""
        raise ValueError(f"{type(model).__name__} has no layer of what={what!r} to replace{there}")
    for encoder in model.modules():
        if isinstance(encoder, nn.TransformerEncoder):
            encoder.use_nested_tensor = False  # only torch's fused LayerNorm takes nested tensors
    plural = {name: name + ("es" if name.endswith("s") else "s") for name in lost}
    report.notes += [f"{count} {plural[name]} have no place in {report.replaced[0][2]}" for name, count in lost.items()]
    if not quiet:
        print(report)
    return report
