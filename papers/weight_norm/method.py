"""Weight Normalization (Salimans & Kingma, NeurIPS 2016, arXiv:1602.07868).

    w = g v / ||v||                                                                                           (Eq. 2)
    dL/dg = (dL/dw . v) / ||v||,     dL/dv = (g / ||v||) dL/dw - (g dL/dg / ||v||^2) v                        (Eq. 3)

v has the shape of the weight, and every output unit has a norm and a gain g of its own: for nn.Linear (out, in) and
convolutions (out, in, *) the norm is taken over all axes but the first.  Training moves g and v; biases stay as they
are.  The gradient of v is orthogonal to v, so that steps of SGD only lengthen v.

`data_dependent_init` (Sec. 3) draws v and passes one batch through the network: every unit's pre-activation t, of mean
mu and deviation sigma over cases and places, becomes (t - mu) / sigma by g <- g / sigma, b <- -mu / sigma, and so goes
on to the next layer.  `MeanOnlyBatchNorm` (Sec. 4) subtracts a batch's mean alone and has the bias:

    training:  t - mean_B(t) + b          inference:  t - E[t] + b,   E[t] <- (1 - momentum) E[t] + momentum mean_B(t)

Initial values: v ~ N(0, 0.05^2), b = 0.  "The authors' code": openai/weightnorm, lasagne/nn.py.

  D1  `weight_norm` alone keeps the function: v is the weight and g its norm, as in torch.  The paper's start is
      `data_dependent_init`.
  D2  The units of a transposed convolution lie along axis 1, where torch's default takes axis 0.
  D3  A unit whose pre-activation is constant over the batch keeps its g; the authors' code would divide by 0.
  D4  No eps, as in the authors' code: v = 0 gives NaN.
  D5  A layer without a bias (one in front of `MeanOnlyBatchNorm`) is scaled, not centred, by the initialization.
"""

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from repro.models.affine import leaf, wide
from repro.models.recompute import recomputing

__all__ = ["MeanOnlyBatchNorm", "WeightNorm", "data_dependent_init", "mean_only_batch_norm", "weight_norm"]

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


class WeightNorm(nn.Module):
    """The parametrization w = g v / ||v|| (Eq. 2), one norm per index of axis `dim`, or one in all if None.

    original0 is g, of size 1 along all axes but `dim`, and original1 is v, as in torch's.
    """

    def __init__(self, dim: int | None = 0):
        super().__init__()
        self.dim = dim

    def norm(self, v: Tensor) -> Tensor:
        """Return ||v|| per unit, of size 1 along the other axes; without axes for dim=None, where g is a scalar."""
        if self.dim is None:
            return torch.linalg.vector_norm(v)
        return torch.linalg.vector_norm(v, dim=[i for i in range(v.dim()) if i != self.dim % v.dim()], keepdim=True)

    def forward(self, g: Tensor, v: Tensor) -> Tensor:
        wide_v = wide(v)
        return (wide(g) * (wide_v / self.norm(wide_v))).to(v.dtype)

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        return self.norm(weight), weight

    def extra_repr(self) -> str:
        return f"dim={self.dim}"


def weight_norm(module: nn.Module, name: str = "weight", dim: int | None | str = "output") -> nn.Module:
    """Reparametrize `name` of a layer in place and return the layer, whose function stays the same (D1).

    dim: the axis of the output units, or None for one norm of the whole tensor.  "output" is axis 0, or 1 of a
    transposed convolution (D2).  `parametrize.remove_parametrizations` puts w back.
    Raises ValueError for a grouped transposed convolution, whose units do not lie along one axis.
    """
    if dim == "output":
        if isinstance(module, TRANSPOSED) and module.groups > 1:
            raise ValueError("the units of a grouped transposed convolution do not lie along one axis: write dim=")
        dim = int(isinstance(module, TRANSPOSED))
    parametrize.register_parametrization(module, name, WeightNorm(dim), unsafe=True)
    return module


def normalised_layers(model: nn.Module, name: str = "weight") -> list[nn.Module]:
    """Return the layers of `model` whose `name` is weight-normalised per unit."""
    kept = [m for m in model.modules() if parametrize.is_parametrized(m, name)]
    return [m for m in kept if isinstance(m.parametrizations[name][0], WeightNorm)]


@torch.no_grad()
def data_dependent_init(
    model: nn.Module, *inputs: Tensor, std: float | None = 0.05, generator: torch.Generator | None = None
) -> None:
    """Initialise every layer under `weight_norm` from one batch (Sec. 3), in the order of the forward pass.

    std: deviation of the new v; None keeps v.  The pass is one of training and its random numbers are torch's own;
    modes are put back.  Layers of (N, out, *) count channels along axis 1, nn.Linear along the last axis.
    Raises ValueError if no layer is normalised per unit, or if one is used twice in a pass.
    """
    layers = normalised_layers(model)
    if not layers or any(layer.parametrizations.weight[0].dim is None for layer in layers):
        raise ValueError("write weight_norm(layer), with a norm for every unit, for the layers to be initialised")
    if std is not None:
        for layer in layers:
            parts = layer.parametrizations.weight
            v = parts.original1
            v.copy_(torch.randn(v.shape, generator=generator, dtype=torch.float32).to(v) * std)
            parts.original0.fill_(1.0)
    seen = []

    def initialise(layer: nn.Module, args: tuple, t: Tensor) -> Tensor:
        if any(layer is other for other in seen):
            raise ValueError("a layer that is used twice has no initialization by one batch")
        seen.append(layer)
        axis = t.dim() - 1 if isinstance(layer, nn.Linear) else 1
        shape = [-1 if i == axis else 1 for i in range(t.dim())]
        rows = t.transpose(0, axis).flatten(1)
        bias = layer.bias
        sigma, mu = torch.std_mean(rows, 1, correction=0)
        sigma = torch.where(sigma > 0, sigma, 1.0)  # D3
        g = layer.parametrizations.weight.original0
        g.div_(sigma.view(g.shape))
        if bias is None:  # D5
            return t / sigma.view(shape)
        bias.copy_((bias - mu) / sigma)
        return (t - mu.view(shape)) / sigma.view(shape)

    modes = [(module, module.training) for module in model.modules()]
    handles = [layer.register_forward_hook(initialise) for layer in layers]
    try:
        model.train()(*inputs)
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes:
            module.training = mode


@leaf
def mean_only_batch_norm(
    input: Tensor,
    running_mean: Tensor,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
) -> Tensor:
    """Return t - mean + b per channel (Sec. 4); in training running_mean is updated in place.  input: (N, C, *)."""
    x = wide(input)
    if x.dim() < 2 or x.shape[1] != len(running_mean):
        raise ValueError(f"input of shape {tuple(x.shape)} is not (N, {len(running_mean)}, *)")
    mean = running_mean
    if training:
        mean = x.mean([0, *range(2, x.dim())])
        if x.numel() and not recomputing():
            with torch.no_grad():
                running_mean.copy_((1 - momentum) * running_mean + momentum * mean)
    shift = mean if bias is None else mean - bias
    return (x - shift.to(x.dtype).view(1, -1, *[1] * (x.dim() - 2))).to(input.dtype)


class MeanOnlyBatchNorm(nn.Module):
    """Mean-only batch normalization of (N, C, *) (Sec. 4), for a weight-normalised layer without a bias of its own.

    bias (C,) starts at 0, the buffer running_mean too.  ValueError for another number of channels, TypeError for
    integers.
    """

    eps = float("nan")  # there is none: nn.TransformerEncoderLayer compares those of its norms, and so fuses neither

    def __init__(
        self,
        num_features: int,
        momentum: float = 0.1,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        self.num_features, self.momentum = int(num_features), momentum
        empty = torch.empty(self.num_features, device=device, dtype=dtype)
        self.register_parameter("bias", nn.Parameter(empty) if bias else None)
        self.register_buffer("running_mean", torch.zeros_like(empty))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.running_mean)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, input: Tensor) -> Tensor:
        return mean_only_batch_norm(input, self.running_mean, self.bias, self.training, self.momentum)

    def extra_repr(self) -> str:
        return f"{self.num_features}, momentum={self.momentum}, bias={self.bias is not None}"
