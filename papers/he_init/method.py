"""He initialization (He, Zhang, Ren & Sun, ICCV 2015, arXiv:1502.01852), Sec. 2.2: the variance that rectifiers need.

    y_l = W_l x_l + b_l,    x_l = f(y_{l-1}),    f(y) = max(0, y) + a min(0, y)     a = 0: ReLU; else PReLU

    Var[y_l] = (1 + a^2) / 2  n_l Var[w_l]  Var[y_{l-1}]      forward, n = k^2 c: inputs that one response sums
    Var[dx_l] = (1 + a^2) / 2  m_l Var[w_l]  Var[dx_{l+1}]    backward, m = k^2 d: responses that one input feeds

A rectifier halves the second moment of a symmetric input.  So weights are drawn from N(0, 2 / ((1 + a^2) n))
(Eq. 10 and 15, mode "fan_in") or with m in place of n (Eq. 14, mode "fan_out"); either alone suffices.  Biases are 0.
The first layer, whose inputs no rectifier has halved, takes the same rule "for simplicity".  a = 1 is Xavier's
initialization, N(0, 1 / n).  Weights have the shape (d, c, *kernel).

Where we add something or depart:
  D1  `he_uniform_` draws the same variance from a uniform law; the paper draws Gaussians only.
  D2  `he_init_` gives the last layers the derived variance.  The paper's networks have a deviation of 0.01 in the first
      two fully connected layers and 0.001 in the last, because their images are not normalised.
  D3  n and m count connections: of a group c and d are the group's; in a transposed convolution, which has no place in
      the paper, c and d change places in the weight, and a response sums 1 / stride of the kernel along each axis.
  D4  of channels with different slopes a^2 is the mean over the channels.
"""

import math

import torch
from torch import Tensor, nn

__all__ = ["he_gain", "he_init_", "he_normal_", "he_uniform_"]


def he_gain(a: float = 0.0) -> float:
    """sqrt(2 / (1 + a^2)), the gain for negative slope a (Eq. 15): sqrt(2) for ReLU, 1 for the linear case a = 1."""
    return math.sqrt(2.0 / (1.0 + a * a))


def _fan(tensor: Tensor, mode: str) -> int:
    if tensor.dim() < 2:
        raise ValueError(f"a tensor of shape {tuple(tensor.shape)} has no fan; write a weight (d, c, *kernel)")
    if mode not in ("fan_in", "fan_out"):
        raise ValueError(f"mode={mode!r} is unknown; write fan_in or fan_out")
    return tensor.shape[mode == "fan_in"] * tensor[0, 0].numel()


@torch.no_grad()
def he_normal_(
    tensor: Tensor, a: float = 0.0, mode: str = "fan_in", *, generator: torch.Generator | None = None
) -> Tensor:
    """Draw a weight (d, c, *kernel) from N(0, 2 / ((1 + a^2) fan)) in place, and return it (Eq. 10, 14 and 15).

    a: slope of the negative part of the activation.  mode: fan_in (n, the forward signal) or fan_out (m, the gradient).
    Raises ValueError for a tensor of fewer than two axes and for another mode.
    """
    return tensor.normal_(0.0, he_gain(a) / math.sqrt(_fan(tensor, mode)), generator=generator)


@torch.no_grad()
def he_uniform_(
    tensor: Tensor, a: float = 0.0, mode: str = "fan_in", *, generator: torch.Generator | None = None
) -> Tensor:
    """As `he_normal_`, from the uniform law of the same variance, on [-b, b] with b = sqrt(3) deviations (D1)."""
    bound = math.sqrt(3.0) * he_gain(a) / math.sqrt(_fan(tensor, mode))
    return tensor.uniform_(-bound, bound, generator=generator)


def slope_of(model: nn.Module) -> float:
    """The negative slope that all rectifiers of a model share: ReLU, LeakyReLU or PReLU (D4); 0 where there is none."""
    slopes = set()
    for module in model.modules():
        if isinstance(module, nn.PReLU):
            slopes.add(module.weight.detach().double().square().mean().sqrt().item())
        elif isinstance(module, nn.LeakyReLU):
            slopes.add(module.negative_slope)
        elif isinstance(module, nn.ReLU):
            slopes.add(0.0)
    if len(slopes) > 1:
        raise ValueError(f"the activations have the slopes {sorted(slopes)}; write a=, or draw layer by layer")
    return slopes.pop() if slopes else 0.0


def connections(layer: nn.Module, mode: str) -> float:
    """n (fan_in) or m (fan_out) of a linear, convolution or transposed convolution layer (D3)."""
    groups, transposed = getattr(layer, "groups", 1), getattr(layer, "transposed", False)
    # Groups are stacked along axis 0, which is d of a convolution and c of a transposed one.
    fan = float(_fan(layer.weight, {"fan_in": "fan_out", "fan_out": "fan_in"}.get(mode, mode) if transposed else mode))
    if (mode == "fan_in") == transposed:
        fan /= groups
    return fan / math.prod(layer.stride) if transposed and mode == "fan_in" else fan


@torch.no_grad()
def he_init_(
    model: nn.Module, generator: torch.Generator | None = None, *, a: float | None = None, mode: str = "fan_in"
) -> None:
    """Draw every linear, convolution and transposed convolution layer of a model by He's rule, in place; biases 0.

    Fits the slot `init` of the models.  a: negative slope of the activations, by default that of the model's ReLU,
    LeakyReLU or PReLU modules, and 0 where it has none.  Embeddings, norms and slopes are left as they are.
    Raises ValueError where the slopes differ and `a` is not given, and for another mode than fan_in or fan_out.
    """
    gain = he_gain(slope_of(model) if a is None else a)
    for layer in model.modules():
        if isinstance(layer, nn.Linear | nn.modules.conv._ConvNd):
            layer.weight.normal_(0.0, gain / math.sqrt(connections(layer, mode)), generator=generator)
            if layer.bias is not None:
                layer.bias.zero_()
