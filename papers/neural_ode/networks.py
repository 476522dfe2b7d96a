"""The nets of the authors' example (rtqichen/torchdiffeq, examples/odenet_mnist.py), narrower, and small equations."""

import torch
from torch import Tensor, nn

from repro.papers.neural_ode.method import ODEBlock, odeint_adjoint

CLASSES = 10


class Field(nn.Module):
    """f(t, z) = W2 tanh(W1 z + t u), in float64."""

    def __init__(self, width: int, source: torch.Generator):
        super().__init__()
        shapes = [(4 * width, width), (width, 4 * width), (4 * width,)]
        scales = [width**-0.5, (4 * width) ** -0.5, 1.0]
        draws = [torch.randn(s, generator=source, dtype=torch.float64) * k for s, k in zip(shapes, scales, strict=True)]
        self.up, self.down, self.time = (nn.Parameter(w) for w in draws)

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return torch.tanh(z @ self.up.T + t * self.time) @ self.down.T


class Flipped(nn.Module):
    """f, whose vector-Jacobian products have the wrong sign."""

    def __init__(self, f: nn.Module):
        super().__init__()
        self.f = f

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        y = self.f(t, z)
        return 2 * y.detach() - y


def norm(width: int) -> nn.Module:
    """Two channels a group, as the example's 64 channels in 32 groups."""
    return nn.GroupNorm(width // 2, width)


class ConcatConv(nn.Conv2d):
    """A 3 x 3 convolution of z and a channel that is t everywhere."""

    def __init__(self, width: int):
        super().__init__(width + 1, width, 3, padding=1)

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        return super().forward(torch.cat([torch.ones_like(z[:, :1]) * t, z], 1))


class ConvField(nn.Module):
    """f(t, z) of the example: norm, ReLU, convolution, norm, ReLU, convolution, norm."""

    def __init__(self, width: int):
        super().__init__()
        self.norm1, self.norm2, self.norm3 = norm(width), norm(width), norm(width)
        self.conv1, self.conv2 = ConcatConv(width), ConcatConv(width)

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        z = self.conv1(t, self.norm1(z).relu())
        return self.norm3(self.conv2(t, self.norm2(z).relu()))


class Residual(nn.Module):
    """z + conv(relu(norm(conv(relu(norm(z)))))), without biases."""

    def __init__(self, width: int):
        super().__init__()
        self.norm1, self.norm2 = norm(width), norm(width)
        self.conv1, self.conv2 = (nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in range(2))

    def forward(self, z: Tensor) -> Tensor:
        return z + self.conv2(self.norm2(self.conv1(self.norm1(z).relu())).relu())


class EveryState(ODEBlock):
    """An adjoint that keeps z at every step."""

    def forward(self, x: Tensor) -> Tensor:
        times = torch.linspace(*self.t, self.steps + 1, dtype=x.dtype, device=x.device)
        return odeint_adjoint(self.counted, x, times, method=self.method, adjoint_params=tuple(self.func.parameters()))[
            -1
        ]


def middle(arm: str, width: int, steps: int) -> nn.Module:
    """What stands between stem and head: six residual blocks, one, an ODE block of RK4 steps, or nothing."""
    if arm.startswith("resnet"):
        return nn.Sequential(*(Residual(width) for _ in range(int(arm.removeprefix("resnet")))))
    if arm == "none":
        return nn.Identity()
    f = Flipped(ConvField(width)) if arm == "flipped" else ConvField(width)
    kind = EveryState if arm == "every_state" else ODEBlock
    return kind(f, method="rk4", steps=steps, adjoint=arm != "direct")


def network(arm: str, width: int, steps: int, seed: int) -> nn.Module:
    """The example's net, its stem for pictures of 14 x 14 pixels with one strided convolution in place of two."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        stem = nn.Conv2d(1, width, 3), norm(width), nn.ReLU(), nn.Conv2d(width, width, 4, 2, 1)
        head = norm(width), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, CLASSES)
        return nn.Sequential(*stem, middle(arm, width, steps), *head)  # stem and head alike in all arms
