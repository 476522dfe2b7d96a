"""NF-ResNet and Scaled Weight Standardization (Brock, De & Smith, ICLR 2021, arXiv:2101.08692).

    x_{l+1} = x_l + alpha f_l(x_l / beta_l),   beta_l = sqrt(Var x_l),   Var x_0 = 1,   Var x_{l+1} = Var x_l + alpha^2
    W_hat_ij = (W_ij - mu_i) / (sigma_i sqrt(N)),   mu_i, sigma_i: mean and (biased) deviation of W_i1 ... W_iN
    gamma = 1 / sqrt(Var g(z)),   z ~ N(0, 1), g the activation

A branch f_l whose weights are W_hat and whose activations are gamma g keeps variance 1 and channel means near 0, so
Var x_l is known beforehand.  In a transition block (new width or size) the shortcut convolves gamma g(x / beta) too,
and the variance starts again: Var x_{l+1} = 1 + alpha^2.  alpha = 0.2.  N is the fan-in.  Weights are standardised at
every forward pass, so throughout training.

  D1  N sigma^2 is kept from falling below eps = 1e-4, as in the authors' code (google-deepmind/deepmind-research,
      nfnets/base.py); the paper's equation has no eps, and timm adds 1e-6 to sigma^2.
  D2  gamma multiplies the activation, as in the code; the paper writes it in front of W_hat.  So the stem has none.
  D3  From the code: W ~ N(0, 1 / N); a learned gain (starts at 1) and bias (0) per output; a learned scalar, the skip
      gain (0), on each branch.  Signal propagation is plotted at skip_gain=1, since 0 hides the branch.
  D4  The activation reads x / beta, as the paper's equation has it; the code divides after the activation.  The two
      agree for ReLU, not for SiLU or GELU.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from repro.models.affine import leaf, load_with_shape, wide

__all__ = ["NFBlock", "ScaledActivation", "ScaledWSConv2d", "ScaledWSLinear", "activation_gamma", "scaled_ws"]


def function_of(activation: str | Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """An element-wise function by its name in torch.nn.functional, or the callable itself."""
    found = getattr(nn.functional, activation, None) if isinstance(activation, str) else activation
    if not callable(found):
        raise ValueError(f"activation={activation!r} is unknown; write a name of torch.nn.functional, or a callable")
    return found


def activation_gamma(activation: str | Callable[[Tensor], Tensor]) -> float:
    """gamma = 1 / sqrt(Var g(z)), z ~ N(0, 1) (Sec. 4).  activation: a name of torch.nn.functional, or a callable.

    By Simpson's rule in float64 on [-12, 12], in which kinks at multiples of 1/256 do no harm.  ValueError for an
    unknown name, and where g does not vary or is not finite.
    """
    z = torch.linspace(-12, 12, 24 * 512 + 1, dtype=torch.float64, device="cpu")  # whatever the default device is
    p = torch.exp(-z.square() / 2) * (
        1 + torch.arange(len(z), device="cpu") % 2
    )  # Simpson's 2, 4, 2, ...; the ends weigh nothing
    g, p = function_of(activation)(z), p / p.sum()
    variance = float((p * (g - (p * g).sum()).square()).sum())
    if not 1e-24 < variance < float("inf"):
        raise ValueError(f"activation {activation!r} has variance {variance} under N(0, 1); write one that varies")
    return variance**-0.5


class ScaledActivation(nn.Module):
    """y = gamma g(x), of variance 1 for x ~ N(0, 1) (Sec. 4, D2).  activation: as for `activation_gamma`."""

    def __init__(self, activation: str | Callable[[Tensor], Tensor] = "relu"):
        super().__init__()
        self.function, self.gamma = function_of(activation), activation_gamma(activation)

    def forward(self, x: Tensor) -> Tensor:
        return self.gamma * self.function(x)


@leaf
def scaled_ws(weight: Tensor, gain: Tensor, eps: float = 1e-4) -> Tensor:
    """gain_i (W_ij - mu_i) / sqrt(max(N sigma_i^2, eps)) (Sec. 4, D1).  weight: (outputs, ...), gain: (outputs,).

    ValueError at a fan-in of 1, where W_hat would be 0.
    """
    if weight[0].numel() < 2:
        raise ValueError("a fan-in of 1 is standardised to 0; write fewer groups, or a layer without Scaled WS")
    rows = wide(weight).flatten(1)
    variance, mean = torch.var_mean(rows, 1, correction=0, keepdim=True)
    scale = (variance * rows.shape[1]).clamp_min(eps).rsqrt()  # D1
    return ((rows - mean) * scale * gain[:, None]).to(weight.dtype).view_as(weight)


class _ScaledWS(nn.Module):
    def reset_parameters(self) -> None:  # torch.nn's constructors call it once `weight` and `bias` are there
        nn.init.normal_(self.weight, 0.0, self.weight[0].numel() ** -0.5)  # D3
        if not hasattr(self, "gain"):
            self.gain = nn.Parameter(self.weight.new_empty(len(self.weight)))
        nn.init.ones_(self.gain)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class ScaledWSConv2d(_ScaledWS, nn.Conv2d):
    """nn.Conv2d, its weight standardised by `scaled_ws` at each use (Sec. 4).  Arguments of nn.Conv2d.

    State-dict keys `weight`, `bias` as nn.Conv2d, and `gain`: (out_channels,).
    """

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, scaled_ws(self.weight, self.gain), self.bias)


class ScaledWSLinear(_ScaledWS, nn.Linear):
    """nn.Linear, its weight standardised by `scaled_ws` at each use (Sec. 4).  Arguments of nn.Linear.

    State-dict keys `weight`, `bias` as nn.Linear, and `gain`: (out_features,).
    """

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, scaled_ws(self.weight, self.gain), self.bias)


class NFBlock(nn.Module):
    """y = shortcut + alpha skip_gain branch(z), z = act(x / beta) (Sec. 4, D3, D4).  x: (B, channels, ...).

    shortcut: x, or projection(z) in a transition block.  beta: the expected deviation of x.  `variance`: the expected
    variance of y at skip_gain = 1, which is alpha^2 + beta^2, or alpha^2 + 1 after a transition; the next block's beta
    is its root.  branch and projection must give variance 1.  ValueError where beta is not above 0.
    """

    def __init__(
        self,
        act: nn.Module,
        branch: nn.Module,
        projection: nn.Module | None = None,
        *,
        alpha: float = 0.2,
        beta: float = 1.0,
        skip_gain: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        if not beta > 0:
            raise ValueError(f"beta={beta} is no standard deviation; write a number above 0")
        self.act, self.branch, self.projection, self.alpha, self.beta = act, branch, projection, alpha, beta
        self.variance = alpha**2 + (1.0 if projection is not None else beta**2)
        self.skip_gain = nn.Parameter(torch.full((1,), float(skip_gain), device=device, dtype=dtype))
        load_with_shape(self, "skip_gain")  # a scalar once, which fully_shard refuses

    def forward(self, x: Tensor) -> Tensor:
        z = self.act(x / self.beta)
        return (x if self.projection is None else self.projection(z)) + self.alpha * self.skip_gain * self.branch(z)
