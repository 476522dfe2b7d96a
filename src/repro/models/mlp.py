"""Multi-layer perceptrons: the plain one, and a residual one."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from repro.models.slots import Act, Init, Norm, Placement, has_bias, identity, linear, placed


class Layer(nn.Module):
    """y = act(Norm(W x + b)); b is dropped where the norm has a bias of its own (`bias=None`)."""

    def __init__(self, n_in: int, n_out: int, *, norm: Norm, act: Act, bias: bool | None, generator: torch.Generator):
        super().__init__()
        self.norm = norm(n_out)
        bias = not has_bias(self.norm) if bias is None else bias
        self.linear = linear(n_in, n_out, bias=bias, std=math.sqrt(2 / n_in), generator=generator)
        self.act = act()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(self.linear(x)))


class MLP(nn.Module):
    """x: (B, ...) flattened to (B, widths[0]) -> logits (B, widths[-1]); the output layer is never normalised.

    Weights start as N(0, 2 / fan_in), those of the output layer as N(0, 1 / fan_in), biases as 0, unless `init` says
    otherwise.
    """

    def __init__(
        self,
        widths: Sequence[int],
        *,
        generator: torch.Generator,
        norm: Norm = identity,
        act: Act = nn.ReLU,
        init: Init | None = None,
        bias: bool | None = None,
    ):
        super().__init__()
        if len(widths) < 2:
            raise ValueError(f"widths={tuple(widths)} names no layer; write at least (inputs, outputs)")
        *hidden, n_out = widths
        self.hidden = nn.ModuleList(
            Layer(a, b, norm=norm, act=act, bias=bias, generator=generator)
            for a, b in zip(hidden, hidden[1:], strict=False)
        )
        self.head = linear(hidden[-1], n_out, bias=True, std=hidden[-1] ** -0.5, generator=generator)
        if init is not None:
            init(self, generator)

    def forward(self, x: Tensor) -> Tensor:
        return self.rows(x.flatten(1))

    def rows(self, x: Tensor) -> Tensor:
        """x: (..., widths[0]) -> (..., widths[-1]); `repro.batched` calls it with seeds as the first axis."""
        for layer in self.hidden:
            x = layer(x)
        return self.head(x)


class Branch(nn.Module):
    """f(x) = W2 act(W1 x + b1) + b2, the residual branch of `ResidualMLP`."""

    def __init__(self, dim: int, hidden: int, *, act: Act, bias: bool, generator: torch.Generator):
        super().__init__()
        self.up = linear(dim, hidden, bias=bias, std=math.sqrt(2 / dim), generator=generator)
        self.act = act()
        self.down = linear(hidden, dim, bias=bias, std=hidden**-0.5, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.act(self.up(x)))


class ResidualMLP(nn.Module):
    """stem, `depth` residual branches of width `dim` under a placement, optional final norm, head.

    x: (B, ...) flattened to (B, n_in) -> logits (B, n_out).
    """

    def __init__(
        self,
        n_in: int,
        dim: int,
        depth: int,
        n_out: int,
        *,
        generator: torch.Generator,
        hidden: int | None = None,
        norm: Norm = identity,
        act: Act = nn.ReLU,
        placement: str | Placement = "pre",
        final_norm: bool = True,
        init: Init | None = None,
        bias: bool = True,
    ):
        super().__init__()
        self.stem = linear(n_in, dim, bias=bias, std=n_in**-0.5, generator=generator)
        self.blocks = nn.ModuleList(
            placed(placement)(
                Branch(dim, hidden or dim, act=act, bias=bias, generator=generator), norm, dim, index, depth
            )
            for index in range(depth)
        )
        self.norm = norm(dim) if final_norm else nn.Identity()
        self.head = linear(dim, n_out, bias=True, std=dim**-0.5, generator=generator)
        if init is not None:
            init(self, generator)

    def forward(self, x: Tensor) -> Tensor:
        return self.rows(x.flatten(1))

    def rows(self, x: Tensor) -> Tensor:
        """x: (..., n_in) -> (..., n_out); see `MLP.rows`."""
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))
