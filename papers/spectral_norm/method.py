"""Spectral Normalization (Miyato, Kataoka, Koyama & Yoshida, ICLR 2018, arXiv:1802.05957).

    W_SN = W / sigma(W),     sigma = u^T W v                                                                   (Eq. 8)
    each training pass, without gradient:   u <- W v / ||W v||,     v <- W^T u / ||W^T u||               (Algorithm 1)

W is the weight as a matrix with a row for each output: (out, in), for convolutions (out, in * kernel).  u (out,) and v
(in,) are buffers; one step of the power iteration in each pass follows the largest singular value while W is trained.
For the gradient u and v are constants, sigma is not:  dL/dW = (G - (sum G * W_SN) u v^T) / sigma,  G = dL/dW_SN.

A critic of linear layers under it, with activations of slopes up to 1, has a Lipschitz constant of at most 1 once sigma
is exact.  sigma of a kernel is not the norm of its convolution, which may be larger by sqrt(kh kw).

"The authors' code": pfnet-research/sngan_projection, source/functions/max_sv.py.  We follow torch's parametrization, so
that state dicts are the same.

  D1  u and v are drawn from N(0, 1), and 15 steps are taken at the start; the authors' code takes none, and its first
      sigma is too small.
  D2  At evaluation sigma comes from the u and v that are kept; the authors' code takes a step that it does not keep.
  D3  A step renews u first and v last, in the authors' code the other way round; sigma is a lower bound in both.
  D4  A weight of one axis, which torch divides by its norm, is refused.
  D5  A pass that activation checkpointing runs again starts from the u and v of the first one and leaves those of today
      as they are.  Of several such passes the last is taken to run again first, as a backward pass does.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from repro.models.recompute import Rewind, recomputing

__all__ = ["SpectralNorm", "spectral_norm"]

WARM_UP = 15
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


class SpectralNorm(nn.Module):
    """The parametrization W / sigma(W) with the buffers _u and _v, as in torch's.

    weight: what it starts from; dim: its axis of outputs.  ValueError for a weight of one axis (D4).
    """

    def __init__(self, weight: Tensor, n_power_iterations: int = 1, dim: int = 0, eps: float = 1e-12):
        super().__init__()
        if weight.dim() < 2:
            raise ValueError("a vector has no spectral norm: write the name of a weight of two or more axes")
        if n_power_iterations < 1:
            raise ValueError(f"n_power_iterations={n_power_iterations}: write 1 or more")
        self.n_power_iterations, self.dim, self.eps = n_power_iterations, dim % weight.dim(), eps
        self.rewind = Rewind()
        matrix = self.matrix(weight.detach())
        for name, size in zip(("_u", "_v"), matrix.shape, strict=True):
            self.register_buffer(name, F.normalize(matrix.new_empty(size).normal_(), dim=0, eps=eps))
        self.iterate(matrix, WARM_UP)

    def matrix(self, weight: Tensor) -> Tensor:
        """Return the weight as (outputs, all else)."""
        return weight.movedim(self.dim, 0).flatten(1)

    @torch.no_grad()
    def iterate(self, matrix: Tensor, steps: int) -> None:
        """Take steps of the power iteration (D3)."""
        for _ in range(steps):
            self._u.copy_(F.normalize(matrix @ self._v, dim=0, eps=self.eps))
            self._v.copy_(F.normalize(matrix.T @ self._u, dim=0, eps=self.eps))

    def sigma(self, weight: Tensor) -> Tensor:
        """Return u^T W v; the gradient goes through W alone."""
        return self._u.clone() @ (self.matrix(weight) @ self._v.clone())

    def forward(self, weight: Tensor) -> Tensor:
        if not self.training:
            return weight / self.sigma(weight)
        before = self.rewind(lambda: weight.new_zeros(()), [self._u, self._v])  # all alike: last in, first out
        if not recomputing():
            self.iterate(self.matrix(weight), self.n_power_iterations)
            return weight / self.sigma(weight)
        today = self._u.clone(), self._v.clone()  # D5
        self._u.copy_(before[0]), self._v.copy_(before[1])
        self.iterate(self.matrix(weight), self.n_power_iterations)
        y = weight / self.sigma(weight)
        self._u.copy_(today[0]), self._v.copy_(today[1])
        return y

    def right_inverse(self, value: Tensor) -> Tensor:
        return value

    def extra_repr(self) -> str:
        return f"n_power_iterations={self.n_power_iterations}, dim={self.dim}, eps={self.eps}"


def spectral_norm(
    module: nn.Module, name: str = "weight", n_power_iterations: int = 1, eps: float = 1e-12, dim: int | None = None
) -> nn.Module:
    """Divide `name` of a layer by its spectral norm, in place, and return the layer.  Arguments of torch's function.

    dim: the axis of outputs; None is 1 for a transposed convolution, else 0.  `parametrize.remove_parametrizations`
    leaves W_SN as an ordinary weight.
    """
    if dim is None:
        dim = int(isinstance(module, TRANSPOSED))
    parametrize.register_parametrization(
        module, name, SpectralNorm(getattr(module, name), n_power_iterations, dim, eps)
    )
    return module
