"""The slots through which a paper passes its method into the models, and the layers those models are built of.

    norm(n) -> Module                                    normalises n features
    act() -> Module                                      an element-wise non-linearity (a class or a function)
    placement(sublayer, norm, dim, index, depth) -> Module    wraps a sub-layer of residual block `index` of `depth`;
                                                              called with x and what else the sub-layer takes
    init(model, generator) -> None                       overwrites the weights of the finished model

All weights are drawn from one explicit CPU generator when a layer is built; biases start at 0, and norms,
activations and placements draw nothing.  So two arms of the same seed start from the same weights.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Norm = Callable[[int], nn.Module]
Act = Callable[[], nn.Module]
Init = Callable[[nn.Module, torch.Generator], None]
Placement = Callable[[nn.Module, Norm, int, int, int], nn.Module]

WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d)


def identity(n: int) -> nn.Module:
    """The norm slot of a network without normalisation."""
    return nn.Identity()


def has_bias(module: nn.Module) -> bool:
    """Whether a norm adds a learned bias of its own, so that the layer before it needs none."""
    return getattr(module, "bias", None) is not None


# --- layers whose weights come from a generator ----------------------------------------------------------------------


def blank(kind: type[nn.Module], *sizes: int, **options: bool) -> nn.Module:
    """A layer whose weights are yet to be drawn: on the CPU, where the generator is, or on meta inside its context."""
    device = "meta" if torch.get_default_device().type == "meta" else "cpu"
    return nn.utils.skip_init(kind, *sizes, device=device, **options)


def draw_(module: nn.Module, std: float, generator: torch.Generator) -> None:
    """weight ~ N(0, std^2), bias = 0; nothing on the meta device."""
    if module.weight.is_meta:
        return
    with torch.no_grad():
        module.weight.normal_(0.0, std, generator=generator)
        if getattr(module, "bias", None) is not None:
            module.bias.zero_()


def linear(n_in: int, n_out: int, *, bias: bool, std: float, generator: torch.Generator) -> nn.Linear:
    layer = blank(nn.Linear, n_in, n_out, bias=bias)
    draw_(layer, std, generator)
    return layer


def embedding(n: int, dim: int, *, std: float, generator: torch.Generator) -> nn.Embedding:
    layer = blank(nn.Embedding, n, dim)
    draw_(layer, std, generator)
    return layer


# --- init ------------------------------------------------------------------------------------------------------------


def fan_in(layer: nn.Module) -> int:
    """Number of inputs that one output unit of a linear or convolution layer sums."""
    return layer.weight[0].numel()


def fan_out(layer: nn.Module) -> int:
    """Number of outputs that one input of a linear or convolution layer feeds (kernel positions x channels)."""
    return layer.weight.numel() // layer.weight.shape[1]


def gaussian(std: float) -> Init:
    """init: every linear and convolution weight ~ N(0, std^2); biases 0."""
    return _each(lambda layer: std)


def scaled_gaussian(gain: float = 1.0, fan: Callable[[nn.Module], int] = fan_in) -> Init:
    """init: every linear and convolution weight ~ N(0, gain^2 / fan); biases 0.

    gain sqrt(2) is He et al. 2015 for ReLU, gain 1 is LeCun's.
    """
    return _each(lambda layer: gain / math.sqrt(fan(layer)))


def _each(std: Callable[[nn.Module], float]) -> Init:
    def init(model: nn.Module, generator: torch.Generator) -> None:
        for layer in model.modules():
            if isinstance(layer, WEIGHTED):
                draw_(layer, std(layer), generator)

    return init


# --- placement -------------------------------------------------------------------------------------------------------


class Pre(nn.Module):
    """y = x + f(Norm(x)), as in pre-activation ResNets and GPT-2."""

    def __init__(self, sublayer: nn.Module, norm: Norm, dim: int, index: int, depth: int):
        super().__init__()
        self.norm, self.sublayer = norm(dim), sublayer

    def forward(self, x: Tensor, *args: Any, **options: Any) -> Tensor:
        return x + self.sublayer(self.norm(x), *args, **options)


class Post(nn.Module):
    """y = Norm(x + f(x)), as in the first Transformer."""

    def __init__(self, sublayer: nn.Module, norm: Norm, dim: int, index: int, depth: int):
        super().__init__()
        self.sublayer, self.norm = sublayer, norm(dim)

    def forward(self, x: Tensor, *args: Any, **options: Any) -> Tensor:
        return self.norm(x + self.sublayer(x, *args, **options))


class Bare(nn.Module):
    """y = x + f(x): a residual connection and no norm."""

    def __init__(self, sublayer: nn.Module, norm: Norm, dim: int, index: int, depth: int):
        super().__init__()
        self.sublayer = sublayer

    def forward(self, x: Tensor, *args: Any, **options: Any) -> Tensor:
        return x + self.sublayer(x, *args, **options)


PLACEMENTS: dict[str, Placement] = {"pre": Pre, "post": Post, "none": Bare}


def placed(placement: str | Placement) -> Placement:
    """A placement by name, or the callable itself."""
    if not isinstance(placement, str):
        return placement
    if placement not in PLACEMENTS:
        raise ValueError(f"placement={placement!r} is unknown; write one of {', '.join(PLACEMENTS)}, or a callable")
    return PLACEMENTS[placement]
