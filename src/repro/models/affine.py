"""What most norms share beside their idea: a gain and a bias, the axes that they normalise, and the precision they
work in.

The convention of the suite (docs/conventions.md): a method computes in float32 at least (`wide`), and its output has
the dtype of its input, under autocast also.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

Shape = int | Sequence[int]


def leaf(function: Callable[..., Any]) -> Callable[..., Any]:
    """Make a function one node of torch.fx's graphs, whichever module calls it (torch.fx.wrap knows its own module
    only).
    """

    @functools.wraps(function)
    def call(*args: Any, **options: Any) -> Any:
        if args and isinstance(args[0], torch.fx.Proxy):
            return args[0].tracer.create_proxy("call_function", call, args, options)
        return function(*args, **options)

    return call


def as_shape(normalized_shape: Shape) -> tuple[int, ...]:
    """Return normalized_shape as a tuple of Python integers; NumPy's integers are as good as Python's."""
    return tuple(map(int, normalized_shape if hasattr(normalized_shape, "__len__") else (normalized_shape,)))


@leaf
def wide(x: Tensor) -> Tensor:
    """Return `x` in float32 at least, in which a method computes.  Raise TypeError where `x` is not floating point."""
    if not x.is_floating_point():
        raise TypeError(f"a method computes on floating-point input, got {x.dtype}: write x.float()")
    return x.to(torch.promote_types(x.dtype, torch.float32))


@leaf
def trailing_axes(x: Tensor, normalized_shape: Shape) -> tuple[int, ...]:
    """Return the axes (-k, ..., -1) of `x` that `normalized_shape` stands for.

    Raises TypeError if `x` is not floating point, ValueError if its last axes differ from `normalized_shape`.
    """
    shape = as_shape(normalized_shape)
    if not x.is_floating_point():
        raise TypeError(f"a norm needs floating-point input, got {x.dtype}: write x.float()")
    if not shape or x.shape[-len(shape) :] != shape:  # broadcasting would hide this when the axis of x has size 1
        raise ValueError(f"input of shape {tuple(x.shape)} does not end in normalized_shape {shape}")
    return tuple(range(-len(shape), 0))


@leaf
def channels_first(x: Tensor, channels: int, axes: int = 3) -> Tensor:
    """Return x: (N, channels, *) in float32 at least.

    Raises TypeError for integers, ValueError for another shape or fewer than `axes` axes.
    """
    if not x.is_floating_point():
        raise TypeError(f"a norm needs floating-point input, got {x.dtype}: write x.float()")
    if x.dim() < axes or x.shape[1] != channels:
        raise ValueError(f"input of shape {tuple(x.shape)} is not (N, {channels}, *) of at least {axes} axes")
    return x.to(torch.promote_types(x.dtype, torch.float32))


class Length(torch.autograd.Function):
    """vector_norm over `axes`, whose derivatives of every order are 0, not NaN, where all entries are 0."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, axes: tuple[int, ...]) -> Tensor:
        return torch.linalg.vector_norm(x, dim=axes, keepdim=True)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.save_for_backward(inputs[0], output)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None]:
        x, size = ctx.saved_tensors
        zero = size == 0
        return slope.masked_fill(zero, 0.0) * (x / size.masked_fill(zero, 1.0)), None  # torch's, to the last bit


def rms_norm(x: Tensor, shape: Sequence[int], eps: float) -> Tensor:
    """Return F.rms_norm without a gain, written out where ONNX's older exporter, which has no such operator, asks."""
    if torch.onnx.is_in_onnx_export():
        return x * (x.square().mean(tuple(range(-len(shape), 0)), keepdim=True) + eps).rsqrt()
    return nn.functional.rms_norm(x, tuple(shape), eps=eps)


def length(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Return the l2 norm of `x` over `axes`, which are kept as axes of size 1."""
    if x.requires_grad and torch.is_grad_enabled():
        return Length.apply(x, axes)
    return torch.linalg.vector_norm(x, dim=axes, keepdim=True)


def register_affine(
    module: nn.Module,
    shape: Sequence[int],
    weight: bool,
    bias: bool,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Give `module` the parameters `weight` and `bias` of `shape`, uninitialised; None in place of one not wanted."""
    for name, wanted in (("weight", weight), ("bias", bias)):
        empty = torch.empty(tuple(shape), device=device, dtype=dtype) if wanted else None
        module.register_parameter(name, None if empty is None else nn.Parameter(empty))


def reset_affine(module: nn.Module) -> None:
    """Set the gain of `module` to 1 and its bias to 0, where it has them."""
    if module.weight is not None:
        nn.init.ones_(module.weight)
    if module.bias is not None:
        nn.init.zeros_(module.bias)


def apply_affine(y: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """Return weight * y + bias, of which each may be None."""
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


def refuse_nested(module: nn.Module, args: tuple) -> None:
    """Refuse nested tensors.

    As a hook on every norm it has a second task.  At evaluation, torch's nn.TransformerEncoderLayer hands the
    parameters of its norms to one fused kernel that computes a LayerNorm whatever the norms are, unless a module has
    a hook.
    """
    if args and isinstance(args[0], Tensor) and args[0].is_nested:
        raise ValueError(
            f"{type(module).__name__} takes no nested tensors: "
            "write nn.TransformerEncoder(..., enable_nested_tensor=False)"
        )


def never_fuse(module: nn.Module) -> None:
    """Keep torch's fused inference of nn.TransformerEncoderLayer from computing a LayerNorm in the
    place of `module`.
    """
    module.register_forward_pre_hook(refuse_nested)


def load_with_shape(module: nn.Module, *names: str) -> None:
    """Let older state dicts, in which parameters `names` had as many elements in another shape, load into `module`."""

    def reshape(module: nn.Module, state: dict, prefix: str, *_: object) -> None:
        for name in names:
            old, new = state.get(prefix + name), getattr(module, name)
            if old is not None and new is not None and old.shape != new.shape and old.numel() == new.numel():
                state[prefix + name] = old.reshape(new.shape)

    module.register_load_state_dict_pre_hook(reshape)


class Affine(nn.Module):
    """`weight` (starts at 1) and `bias` (starts at 0) of shape normalized_shape, as in torch.nn; None where not wanted.

    normalized_shape, elementwise_affine, bias, device and dtype: as in torch.nn.LayerNorm.
    """

    weight: nn.Parameter | None
    bias: nn.Parameter | None
    eps: float = (
        math.nan
    )  # of a norm without one: torch's encoders ask for it, and NaN tells them that no norm is alike

    def __init__(
        self,
        normalized_shape: Shape,
        elementwise_affine: bool = True,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        self.normalized_shape, self.elementwise_affine = as_shape(normalized_shape), elementwise_affine
        register_affine(self, self.normalized_shape, elementwise_affine, elementwise_affine and bias, device, dtype)
        reset_affine(self)  # a subclass calls its own reset_parameters when it has all of its own
        never_fuse(self)

    def reset_parameters(self) -> None:
        reset_affine(self)

    def extra_repr(self) -> str:
        return f"{self.normalized_shape}, elementwise_affine={self.elementwise_affine}, bias={self.bias is not None}"
