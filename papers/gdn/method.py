"""Generalized divisive normalization (Ballé, Laparra & Simoncelli, ICLR 2016, arXiv:1511.06281).

    z = H x        y_i = z_i / D_i^epsilon_i        D_i = beta_i + sum_j gamma_ij |z_j|^alpha_ij
    p(x) = |det dy/dx| N(y; 0, I)
    dy_i/dz_k = D_i^-epsilon_i (delta_ik - epsilon_i z_i / D_i alpha_ik gamma_ik |z_k|^(alpha_ik - 1) sign(z_k))

x, y: (B, d), H: (d, d), beta, epsilon: (d,), gamma, alpha: (d, d); gamma_ij is what j adds to the denominator of i.
beta > 0, gamma >= 0.  All of them are learnt, on the mean of ||y||^2 / 2 - log |det dy/dx|: `Gaussianization`.
`inverse_gdn` finds z from y by z <- y D(z)^epsilon.  In a layer of image models, `GDN`, alpha = 2 and epsilon = 1/2
stay as they are, d is the channels, and every pixel is normalised by itself, alike in training and evaluation.

Where the paper is silent, or the layers that came after it (those of TensorFlow Compression and CompressAI) decide:
  D1  `GDN` starts at beta = 1 and gamma = 0.1 I; its parameters are the roots of beta + 2^-36 and gamma + 2^-36.
  D2  a root that falls below its bound takes the gradient only where that lifts it, so that none sticks at 0.
  D3  `Gaussianization` keeps alpha_ij epsilon_i below 1 for all j, without which y is bounded and has no inverse.
  D4  powers are taken of max(|z_j|, 1e-12), since at z_j = 0 the slope of |z_j|^(alpha - 1) is infinite for alpha < 2.
  D5  `Gaussianization` starts at the H that whitens `like`, beta = 1, gamma = 0.1 I + 0.01, alpha = 2, epsilon = 0.4.
"""

import torch
from torch import Tensor, nn

from repro.models.affine import leaf, wide

__all__ = ["GDN", "Gaussianization", "gdn", "inverse_gdn", "lower_bound"]

PEDESTAL = 2.0**-36


class _LowerBound(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor, bound: float) -> Tensor:
        ctx.save_for_backward(x < bound)
        return x.clamp_min(bound)

    @staticmethod
    def backward(ctx: object, slope: Tensor) -> tuple[Tensor, None]:
        (below,) = ctx.saved_tensors
        return slope.masked_fill(below & (slope > 0), 0.0), None


@leaf
def lower_bound(x: Tensor, bound: float) -> Tensor:
    """Return max(x, bound), whose gradient passes where x is above, and below it where a step would lift x (D2)."""
    return _LowerBound.apply(x, bound)


def _size(z: Tensor) -> Tensor:
    """|z|, kept from 0 (D4)."""
    return z.abs().clamp_min(1e-12)


def _pool(z: Tensor, beta: Tensor, gamma: Tensor, alpha: Tensor | float) -> Tensor:
    """D: (B, d).  alpha: a number, or (d, d)."""
    if isinstance(alpha, Tensor):
        return beta + (gamma * _size(z)[:, None, :] ** alpha).sum(2)
    return beta + (z.square() if alpha == 2 else _size(z) ** alpha) @ gamma.T


def gdn(
    z: Tensor, beta: Tensor, gamma: Tensor, alpha: Tensor | float = 2.0, epsilon: Tensor | float = 0.5
) -> tuple[Tensor, Tensor]:
    """Return y and log |det dy/dz|.  z: (B, d) -> (B, d), (B,)."""
    pooled = _pool(z, beta, gamma, alpha)
    y = z * pooled**-epsilon
    power = alpha if isinstance(alpha, Tensor) else torch.full_like(gamma, alpha)
    slopes = power * gamma * _size(z)[:, None, :] ** (power - 1) * z.sign()[:, None, :]  # dD_i/dz_k
    rows = torch.eye(z.shape[1], device=z.device, dtype=z.dtype) - (epsilon * z / pooled)[:, :, None] * slopes
    return y, torch.linalg.slogdet(rows)[1] - (epsilon * pooled.log()).sum(1)


@torch.no_grad()
def inverse_gdn(
    y: Tensor,
    beta: Tensor,
    gamma: Tensor,
    alpha: Tensor | float = 2.0,
    epsilon: Tensor | float = 0.5,
    *,
    steps: int = 20,
) -> Tensor:
    """Return the z of a given y, by `steps` of z <- y D(z)^epsilon from z = y beta^epsilon.  y: (B, d) -> (B, d)."""
    z = y * beta**epsilon
    for _ in range(steps):
        z = y * _pool(z, beta, gamma, alpha) ** epsilon
    return z


class Gaussianization(nn.Module):
    """x -> y and log |det dy/dx| with all parameters learnt.  like: data (n, d) that H starts by whitening (D3, D5).

    shared: "none" is the paper's transform, "radial" has one denominator for all components, "marginal" has one that
    each component makes for itself.
    """

    def __init__(self, like: Tensor, shared: str = "none"):
        super().__init__()
        if shared not in ("none", "radial", "marginal"):
            raise ValueError(f"shared={shared!r} is unknown; write none, radial or marginal")
        d, self.shared = like.shape[1], shared
        values, vectors = torch.linalg.eigh(like.T.cov().double())
        self.H = nn.Parameter((vectors / values.sqrt()).T.to(like.dtype).contiguous())
        n = 1 if shared == "radial" else d
        mask = torch.eye(d).to(like) if shared == "marginal" else torch.ones(n, n).to(like)
        self.register_buffer("mask", mask, persistent=False)
        self.root_beta = nn.Parameter(torch.ones(n).to(like))
        start = 0.1 / d + 0.01 if shared == "radial" else 0.1 * torch.eye(d) + 0.01
        self.root_gamma = nn.Parameter((torch.as_tensor(start) * torch.ones(n, n)).to(like).sqrt())
        self.log_alpha = nn.Parameter(torch.full((n, n), 2.0).to(like).log())
        self.odds = nn.Parameter(
            torch.full((n,), 4.0).to(like).log()
        )  # of epsilon as a share of its bound 1 / max alpha

    def parts(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return beta, gamma, alpha and epsilon as (d,), (d, d), (d, d) and (d,)."""
        d, alpha = len(self.H), self.log_alpha.exp()
        seen = alpha.masked_fill(self.mask == 0, 0.0)
        epsilon = self.odds.sigmoid() / seen.amax(1)
        gamma, beta = self.root_gamma.square() * self.mask, self.root_beta.square() + 1e-6
        return beta.expand(d), gamma.expand(d, d), alpha.expand(d, d), epsilon.expand(d)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x: (B, d) -> y: (B, d), log |det dy/dx|: (B,)."""
        y, log_det = gdn(x @ self.H.T, *self.parts())
        return y, log_det + torch.linalg.slogdet(self.H)[1]

    def inverse(self, y: Tensor, steps: int = 50) -> Tensor:
        """y: (B, d) -> x: (B, d)."""
        return torch.linalg.solve(self.H, inverse_gdn(y, *self.parts(), steps=steps).T).T


@leaf
def _with_channels(x: Tensor, num_features: int) -> Tensor:
    """Return x.  Raise ValueError where it is not (B, num_features, *)."""
    if x.dim() < 2 or x.shape[1] != num_features:
        raise ValueError(f"input of shape {tuple(x.shape)} is not (B, {num_features}, *)")
    return x


@leaf
def _root(z: Tensor, beta: Tensor, gamma: Tensor) -> Tensor:
    """The denominator for z (B, *, C); autocast would take its product in half precision."""
    with torch.autocast(z.device.type, enabled=False):
        return (beta + z.square() @ gamma.T).sqrt()


class GDN(nn.Module):
    """x_i / sqrt(beta_i + sum_j gamma_ij x_j^2) over the channels of every pixel.  x: (B, C, *) -> (B, C, *).

    inverse: multiply by the root in place of dividing by it (IGDN), the last layers of image decoders.
    """

    def __init__(
        self,
        num_features: int,
        inverse: bool = False,
        *,
        beta_min: float = 1e-6,
        gamma_init: float = 0.1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        self.num_features, self.inverse, self.beta_min, self.gamma_init = num_features, inverse, beta_min, gamma_init
        self.beta = nn.Parameter(torch.empty(num_features, device=device, dtype=dtype))
        self.gamma = nn.Parameter(torch.empty(num_features, num_features, device=device, dtype=dtype))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """beta = 1, gamma = gamma_init I (D1)."""
        self.beta.fill_((1 + PEDESTAL) ** 0.5)
        start = self.gamma_init * torch.eye(self.num_features, device=self.gamma.device, dtype=torch.float32)
        self.gamma.copy_((start + PEDESTAL).sqrt())

    def parts(self) -> tuple[Tensor, Tensor]:
        """Return beta (C,) and gamma (C, C)."""
        bounds = (self.beta_min + PEDESTAL) ** 0.5, PEDESTAL**0.5
        roots = (lower_bound(wide(p), bound) for p, bound in zip((self.beta, self.gamma), bounds, strict=True))
        beta, gamma = (root.square() - PEDESTAL for root in roots)
        return beta, gamma

    def forward(self, x: Tensor) -> Tensor:
        x = _with_channels(x, self.num_features)
        z = wide(x).movedim(1, -1)
        root = _root(z, *self.parts())
        return (z * root if self.inverse else z / root).movedim(-1, 1).to(x.dtype)

    def extra_repr(self) -> str:
        return f"{self.num_features}, inverse={self.inverse}"
