"""Kumar's initialization (Kumar 2017, arXiv:1704.08863): a variance for every activation that is differentiable at 0.

    y_m = W_m x_m,    x_{m+1} = g(y_m) ~ g(0) + g'(0) y_m        E[x_m] = g(0), Var[x_m] = 1, N weights in a response

    Var[x_{m+1}] = g'(0)^2 N v^2 (1 + g(0)^2) = 1        so        v^2 = 1 / (N g'(0)^2 (1 + g(0)^2))

Weights are drawn from N(0, v^2), biases are 0.  For tanh v^2 = 1 / N, Xavier's; for the sigmoid, with g(0) = 1/2 and
g'(0) = 1/4, v^2 = 12.8 / N, so v = 3.58 / sqrt(N), which the paper writes as 3.6 / sqrt(N).  ReLU, which has no g'(0),
is treated apart and gets He's v^2 = 2 / N.  Weights have the shape (out, N / places, *kernel).

Where we add something or depart:
  D1  v is the deviation.  The author's script for Figure 3 hands 3.6 to an initializer that takes a variance: 3.6 / N.
  D2  other activations with a kink at 0 and g(0) = 0, such as leaky ReLU, get He's rule for their two slopes.
  D3  the first layer takes the same rule, as in the script, although E[x] = 0 there.  So does the last one, which the
      script leaves to Keras' default.
  D4  the law is Gaussian; that of the script, Keras' "normal" of 2017, cuts it at two deviations.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules import activation as activations

from repro.papers.he_init import he_gain, he_init_, he_normal_

__all__ = ["kumar_gain", "kumar_init_", "kumar_normal_"]

Activation = Callable[[Tensor], Tensor]
NO_ACTIVATION = (nn.MultiheadAttention, nn.GLU, nn.Softmax, nn.Softmax2d, nn.Softmin, nn.LogSoftmax)
NEAR = 1e-9  # where the two slopes of a kink are taken


def at_zero(activation: Activation) -> tuple[float, float, float]:
    """g(0), and g' just below and just above 0, in float64."""
    if isinstance(activation, nn.Module):
        kept = {name: t.detach().double() for name, t in activation.state_dict().items()}
        call = lambda x: torch.func.functional_call(activation, kept, (x,))  # noqa: E731
    else:
        call = activation
    with torch.enable_grad():
        x = torch.tensor([-NEAR, 0.0, NEAR], dtype=torch.float64, requires_grad=True)
        y = call(x.view(3, 1))
        below, _, above = torch.autograd.grad(y.sum(), x)[0].tolist() if y.requires_grad else (0.0, 0.0, 0.0)
    return float(y.detach().flatten()[1]), below, above


def kumar_gain(activation: Activation) -> float:
    """sqrt(N) v = 1 / (|g'(0)| sqrt(1 + g(0)^2)): sqrt(12.8) for the sigmoid, 1 for tanh; sqrt(2) for ReLU (D2).

    activation: an element-wise function or module, which autograd differentiates at 0.  Raises ValueError where g'(0)
    is 0 or not finite, and for a kink at which g(0) is not 0.
    """
    value, below, above = at_zero(activation)
    if not all(map(math.isfinite, (value, below, above))) or max(abs(below), abs(above)) < 1e-6:
        raise ValueError(
            f"g(0) = {value}, g'(0) = {above}: the rule divides by g'(0); write another activation or gain"
        )
    if abs(above - below) <= 1e-6 * max(abs(above), abs(below)):
        return 2.0 / (abs(above + below) * math.sqrt(1.0 + value * value))
    if value != 0:
        raise ValueError(f"g has a kink at 0, where its value is {value}: neither rule is derived for that")
    return he_gain(below / above) / abs(above) if above else math.sqrt(2.0) / abs(below)


@torch.no_grad()
def kumar_normal_(
    tensor: Tensor, activation: Activation = torch.sigmoid, *, generator: torch.Generator | None = None
) -> Tensor:
    """Draw a weight (out, in, *kernel) from N(0, gain^2 / N), N = in * places, in place, and return it.

    activation: g, which the layer before applies and the one after sees.  Raises ValueError as `kumar_gain` does, and
    for a tensor of fewer than two axes.
    """
    gain = kumar_gain(activation)
    return he_normal_(tensor, 1.0, generator=generator).mul_(gain)


def gain_of(model: nn.Module) -> float:
    """The gain that all activation modules of torch in a model share."""
    found = {
        type(module).__name__: kumar_gain(module)
        for module in model.modules()
        if type(module).__module__ == activations.__name__ and not isinstance(module, NO_ACTIVATION)
    }
    gains = list(found.values())
    if not gains or max(gains) > min(gains) * (1 + 1e-9):
        raise ValueError(f"the model has the activations {sorted(found)}: write activation=, such as torch.sigmoid")
    return gains[0]


@torch.no_grad()
def kumar_init_(
    model: nn.Module, generator: torch.Generator | None = None, *, activation: Activation | None = None
) -> None:
    """Draw every linear, convolution and transposed convolution layer of a model by Kumar's rule, in place; biases 0.

    Fits the slot `init` of the models.  activation: g, by default that of the model's activation modules (those of
    torch.nn).  N counts the connections of a response as `repro.papers.he_init` does.  Raises ValueError where the
    modules have no common gain and `activation` is not given.
    """
    gain = gain_of(model) if activation is None else kumar_gain(activation)
    he_init_(model, generator, a=1.0)
    for layer in model.modules():
        if isinstance(layer, nn.Linear | nn.modules.conv._ConvNd):
            layer.weight.mul_(gain)
