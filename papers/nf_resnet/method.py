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
  D5  Statistics of weights are taken in float32 at least; W_hat has the dtype of W.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from repro.models.convnet import Basic, Bottleneck, ConvNet, Slots
from repro.models.slots import Act, Init, identity

__all__ = [
    "NFBlock",
    "NFResNet",
    "ScaledActivation",
    "ScaledWSConv2d",
    "ScaledWSLinear",
    "activation_gamma",
    "nf_resnet",
    "scaled_ws",
    "signal_propagation_plot",
]


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
    z = torch.linspace(-12, 12, 24 * 512 + 1, dtype=torch.float64)
    p = torch.exp(-z.square() / 2) * (1 + torch.arange(len(z)) % 2)  # Simpson's 2, 4, 2, ...; the ends weigh nothing
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


def scaled_ws(weight: Tensor, gain: Tensor, eps: float = 1e-4) -> Tensor:
    """gain_i (W_ij - mu_i) / sqrt(max(N sigma_i^2, eps)) (Sec. 4, D1).  weight: (outputs, ...), gain: (outputs,).

    ValueError at a fan-in of 1, where W_hat would be 0.
    """
    if weight[0].numel() < 2:
        raise ValueError("a fan-in of 1 is standardised to 0; write fewer groups, or a layer without Scaled WS")
    wide = weight.to(torch.promote_types(weight.dtype, torch.float32)).flatten(1)  # D5
    variance, mean = torch.var_mean(wide, 1, correction=0, keepdim=True)
    scale = (variance * wide.shape[1]).clamp_min(eps).rsqrt()  # D1
    return ((wide - mean) * scale * gain[:, None]).to(weight.dtype).view_as(weight)


class _ScaledWS(nn.Module):
    def reset_parameters(self) -> None:  # torch.nn's constructors call it once `weight` and `bias` are there
        nn.init.normal_(self.weight, 0.0, self.weight[0].numel() ** -0.5)  # D3
        self.gain = nn.Parameter(self.weight.new_ones(len(self.weight)))
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
        self.skip_gain = nn.Parameter(torch.tensor(float(skip_gain), device=device, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        z = self.act(x / self.beta)
        return (x if self.projection is None else self.projection(z)) + self.alpha * self.skip_gain * self.branch(z)


class NFResNet(ConvNet):
    """ConvNet as a pre-activation network: its activation follows the last block instead of the stem (Sec. 4)."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.stem(x))
        for block in self.blocks:
            x = block(x)
        return self.head(self.act(x).mean((2, 3)))


def nf_resnet(
    depth: int | None = None,
    *,
    generator: torch.Generator,
    blocks: Sequence[int] | None = None,
    widths: Sequence[int] | None = None,
    width: int = 16,
    classes: int = 10,
    channels: int = 3,
    alpha: float = 0.2,
    skip_gain: float = 0.0,
    act: Act = ScaledActivation,
    conv: Callable[..., nn.Module] = ScaledWSConv2d,
    init: Init | None = None,
) -> NFResNet:
    """NF-ResNet of NFBlocks with the betas of Sec. 4.  x: (B, channels, height, width) -> logits (B, classes).

    depth = 6n + 2: three stages of n blocks of two 3 x 3 layers, of width, 2 width and 4 width channels.  Or blocks and
    widths: number and output channels of the bottleneck blocks of each stage (1 x 1, 3 x 3 and 1 x 1, a quarter of the
    channels within).  Other arguments as ConvNet's, with `generator` for the weights.  ValueError for any other depth.
    """
    basic = depth is not None
    if basic != (blocks is None) or basic != (widths is None) or basic and (depth < 8 or depth % 6 != 2):
        raise ValueError(f"depth={depth}: write depth=6n + 2, such as 20, or else blocks= and widths= of each stage")
    made: list[NFBlock] = []

    def block(c_in: int, c_out: int, stride: int, slots: Slots, index: int, total: int) -> NFBlock:
        c = c_out // 4
        layers = (
            [slots.conv3(c_in, c_out, stride), slots.act(), slots.conv3(c_out, c_out)]
            if basic
            else [slots.conv1(c_in, c), slots.act(), slots.conv3(c, c, stride), slots.act(), slots.conv1(c, c_out)]
        )
        projection = None if stride == 1 and c_in == c_out else slots.conv1(c_in, c_out, stride)
        beta = made[-1].variance ** 0.5 if made else 1.0
        made.append(
            NFBlock(slots.act(), nn.Sequential(*layers), projection, alpha=alpha, beta=beta, skip_gain=skip_gain)
        )
        return made[-1]

    return NFResNet(
        blocks or [depth // 6] * 3,
        widths or [width, 2 * width, 4 * width],
        classes=classes,
        act=act,
        conv=conv,
        generator=generator,
        channels=channels,
        block=block,
        norm=identity,
        init=init,
    )


@torch.no_grad()
def signal_propagation_plot(model: nn.Module, x: Tensor | None = None) -> dict[str, list]:
    """The curves of a signal propagation plot (Sec. 3), one number per residual block in the order of the model.

        block            1, 2, ...
        squared_mean     of the block's output: mean over channels of (mean over the other axes)^2
        variance         of the block's output: mean over channels of the (biased) variance over the other axes
        branch_variance  that variance at the end of the residual branch, before alpha, skip gain and addition

    Blocks are NFBlock, and Basic and Bottleneck of repro.models.convnet.  x: 64 images N(0, 1) of 32 x 32 unless given.
    The model stays in its mode, its running statistics stay as they are.  ValueError where there is no block.
    """
    ends = ((NFBlock, "branch"), (Bottleneck, "norm3"), (Basic, "norm2"))
    pairs = [(m, m.get_submodule(end)) for m in model.modules() for kind, end in ends if isinstance(m, kind)]
    if not pairs:
        raise ValueError("the model has no residual block; write one made of NFBlock, Basic or Bottleneck")
    stem = next(model.parameters())
    x = torch.randn(64, stem.shape[1], 32, 32, generator=torch.Generator().manual_seed(0)) if x is None else x
    seen = dict.fromkeys(module for pair in pairs for module in pair)

    def record(module: nn.Module, args: tuple, y: Tensor) -> None:
        if module in seen:
            variance, mean = torch.var_mean(y.double(), [0, *range(2, y.dim())], correction=0)
            seen[module] = float(mean.square().mean()), float(variance.mean())

    with nn.modules.module.register_module_forward_hook(record):
        torch.func.functional_call(model, {k: b.clone() for k, b in model.named_buffers()}, (x.to(stem),))
    rows = [(i, *seen[block], seen[end][1]) for i, (block, end) in enumerate(pairs, 1)]
    names = ("block", "squared_mean", "variance", "branch_variance")
    return dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
