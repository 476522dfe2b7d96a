"""SELU, alpha dropout and the initialisation of self-normalizing networks (Klambauer, Unterthiner, Mayr & Hochreiter,
NeurIPS 2017, arXiv:1706.02515): Eq. 2, 4 and 5, paragraphs "Initialization" and "New Dropout Technique".

    selu(x) = lambda x for x > 0, lambda alpha (e^x - 1) for x <= 0         alpha = 1.6733, lambda = 1.0507

alpha and lambda ("scale") are such that mean 0 and variance 1 are a fixed point of the map from one layer to the next;
it attracts, so that activations of deep networks come back to it without a normalisation layer.  This needs weights
from N(0, 1 / fan_in), biases of 0 and inputs of zero mean and unit variance; and dropout that keeps both moments:

    alpha dropout, q = 1 - p, d ~ Bernoulli(q):    y = a (x d + alpha' (1 - d)) + b,    alpha' = -lambda alpha
        a = (q + alpha'^2 q (1 - q))^(-1/2),    b = -a (1 - q) alpha'

The moment map: z = w x is taken as Gaussian with mean mu omega and variance nu tau, where mu and nu are the mean and
the variance of the inputs, omega the sum of the weights and tau the sum of their squares; it gives those of selu(z).

The paper is silent or rounds in three places:
  D1  alpha and lambda are given to the last digit of a double, as in the authors' code (bioinf-jku/SNNs, selu.py).
  D2  alpha and lambda for another fixed point hold at omega = 0 and tau = 1 unless told otherwise; the authors'
      notebook (getSELUparameters.ipynb) takes omega = 1.  The two agree where mu = 0.
  D3  p = 1, which leaves no unit and for which a is infinite, is refused (torch.nn.AlphaDropout returns zeros).
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from repro.models.affine import leaf, wide

__all__ = ["ALPHA", "AlphaDropout", "SCALE", "SELU", "lecun_normal_", "moment_map", "selu", "selu_constants"]

ALPHA = 1.6732632423543772848170429916717  # D1
SCALE = 1.0507009873554804934193349852946


@leaf
def selu(input: Tensor, inplace: bool = False, *, alpha: float = ALPHA, scale: float = SCALE) -> Tensor:
    """Return Eq. 2, element by element: scale x for x > 0, scale alpha (e^x - 1) for x <= 0.

    x: floating point, of any shape; TypeError otherwise.  inplace: write the result into x.  alpha, scale: others than
    those of (0, 1), from `selu_constants`.
    """
    y = (scale * F.elu(wide(input), alpha)).to(input.dtype)
    return input.copy_(y) if inplace else y


class SELU(nn.Module):
    """`selu` (Eq. 2) as a module without parameters; stands where torch.nn.SELU does."""

    def __init__(self, inplace: bool = False, *, alpha: float = ALPHA, scale: float = SCALE):
        super().__init__()
        self.inplace, self.alpha, self.scale = inplace, alpha, scale

    def forward(self, input: Tensor) -> Tensor:
        return selu(input, self.inplace, alpha=self.alpha, scale=self.scale)

    def extra_repr(self) -> str:
        return "" if (self.alpha, self.scale) == (ALPHA, SCALE) else f"alpha={self.alpha}, scale={self.scale}"


class AlphaDropout(nn.Module):
    """Alpha dropout ("New Dropout Technique"): units become -scale alpha with probability p; an affine map follows.

    x of any shape with mean 0 and variance 1 keeps both in expectation; the identity in eval mode.  p is the
    probability of dropping, as in torch.nn.AlphaDropout, 0.05 or 0.1 in the paper; ValueError unless 0 <= p < 1 (D3).
    """

    def __init__(self, p: float = 0.5, inplace: bool = False):
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f"p={p} is no probability of dropping that leaves a unit; write 0 <= p < 1")
        self.p, self.inplace, q, dropped = p, inplace, 1 - p, -SCALE * ALPHA
        a = (q + dropped**2 * q * (1 - q)) ** -0.5
        self.map = (a, -a * (1 - q) * dropped)

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return input
        (a, b), x = self.map, wide(input)
        keep = torch.rand_like(x) >= self.p
        y = (a * torch.where(keep, x, -SCALE * ALPHA) + b).to(input.dtype)
        return input.copy_(y) if self.inplace else y

    def extra_repr(self) -> str:
        return f"p={self.p}"


@torch.no_grad()
def lecun_normal_(target: Tensor | nn.Module, generator: torch.Generator | None = None) -> Tensor | nn.Module:
    """Draw weights ~ N(0, 1 / fan_in) in place ("Initialization": omega = 0 and tau = 1 in expectation); return the
    target.

    target: a weight (n_out, n_in, *), or a module, all of whose linear, convolution and transposed convolution layers
    are drawn and whose biases become 0.  An output of a transposed convolution of stride s sums, on the average over
    places, n_in / groups times the kernel over s^axes weights.  Raises ValueError for a tensor of fewer than two axes.
    """
    if isinstance(target, Tensor):
        if target.dim() < 2:
            raise ValueError(f"a tensor of shape {tuple(target.shape)} has no fan-in; write a weight (n_out, n_in, *)")
        return target.normal_(0, target[0].numel() ** -0.5, generator=generator)
    for layer in target.modules():
        if isinstance(layer, nn.Linear | nn.modules.conv._ConvNd):
            lecun_normal_(layer.weight, generator)
            if getattr(layer, "transposed", False):  # its weight is (n_in, n_out / groups, *)
                summed = layer.in_channels // layer.groups * math.prod(layer.kernel_size) / math.prod(layer.stride)
                layer.weight.mul_((layer.weight[0].numel() / summed) ** 0.5)
            if layer.bias is not None:
                layer.bias.zero_()
    return target


def _halves(mean: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """E[z; z > 0], E[1 - e^z; z <= 0], E[z^2; z > 0] and E[(1 - e^z)^2; z <= 0] of z ~ N(mean, v)."""
    bell = torch.exp(-(mean**2) / (2 * v))

    def below(k: int) -> Tensor:  # E[e^(k z); z <= 0] = 1/2 e^(k mean + k^2 v / 2) erfc((mean + k v) / sqrt(2 v))
        x = (mean + k * v) / (2 * v).sqrt()
        left = torch.exp((k * mean + k * k * v / 2).clamp(max=0)) * torch.erfc(x)  # each side where it cannot overflow
        return torch.where(x < 0, left, bell * torch.special.erfcx(x.clamp(min=0))) / 2

    t0, t1, t2 = below(0), below(1), below(2)
    edge = (v / (2 * math.pi)).sqrt() * bell
    return mean * (1 - t0) + edge, t0 - t1, (mean**2 + v) * (1 - t0) + mean * edge, t2 - 2 * t1 + t0


def moment_map(
    mu: Tensor | float,
    nu: Tensor | float,
    omega: Tensor | float = 0.0,
    tau: Tensor | float = 1.0,
    *,
    alpha: float = ALPHA,
    scale: float = SCALE,
) -> tuple[Tensor, Tensor]:
    """g of Eq. 4 and 5: mean and variance of selu(z), z ~ N(mu omega, nu tau), in float64, for tensors that broadcast.

    Differentiable; the variances nu tau must be positive, ValueError otherwise.
    """
    device = next((t.device for t in (mu, nu, omega, tau) if isinstance(t, Tensor)), None)
    mu, nu, omega, tau = (torch.as_tensor(t, dtype=torch.float64, device=device) for t in (mu, nu, omega, tau))
    mean, v = torch.broadcast_tensors(mu * omega, nu * tau)
    if not (v > 0).all():
        raise ValueError("nu * tau is the variance of a layer's input; write numbers above 0")
    p, q, h, r = _halves(mean, v)
    out = scale * (p - alpha * q)
    return out, scale**2 * (h + alpha**2 * r) - out**2


def selu_constants(mu: float = 0.0, nu: float = 1.0, *, omega: float = 0.0, tau: float = 1.0) -> tuple[float, float]:
    """(alpha, scale) whose moment map has the fixed point of mean mu and variance nu; (0, 1) gives ALPHA and SCALE.

    With p, q, h, r of `_halves`, scale (p - alpha q) = mu and scale^2 (h + alpha^2 r) = nu + mu^2; scale drops out, and
    alpha is the root of a quadratic; at (0, 1) it is the closed form of the paper.  ValueError where no alpha > 0 will
    do.
    """
    if not (nu > 0 and tau > 0):
        raise ValueError(f"nu={nu}, tau={tau}: a variance is above 0")
    z = torch.tensor([mu * omega, nu * tau], dtype=torch.float64)
    p, q, h, r = (float(t) for t in _halves(*z))
    second = nu + mu**2
    lead, root = second * q * q - mu**2 * r, second * (q * q * h + p * p * r) - mu**2 * h * r
    alpha = (second * p * q - mu * math.sqrt(root)) / lead if lead > 0 and root >= 0 else -1.0
    if alpha <= 0:
        raise ValueError(f"no SELU has the fixed point mu={mu}, nu={nu}; write a mean nearer to 0")
    return alpha, math.sqrt(second / (h + alpha**2 * r))
