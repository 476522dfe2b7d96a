"""Clipping the norm, and keeping it through time (Pascanu, Mikolov & Bengio, ICML 2013, arXiv:1211.5063).

    clipping      g <- g min(1, threshold / |g|)            g: the gradient of all parameters together (Algorithm 1)
    regulariser   Omega = sum_t ( |d_{t+1} dx_{t+1}/dx_t| / |d_{t+1}| - 1 )^2       d_t = dE / dx_t
    x_t = tanh(W x_{t-1} + V u_t + b)     dx_{t+1}/dx_t = diag(1 - x_{t+1}^2) W

x, d: (T, B, H); W: (H, H).  SGD-C clips, SGD-CR clips the gradient of E + weight * Omega.  Of Omega's slope only the
immediate part is used: with respect to W, while x and d are constants.

    states = ...                                                   a list of x_1, ..., x_T, each (B, H), from which
    loss = ...                                                     the loss is computed
    regularised_backward(loss, states, model.recurrent, weight=2.0)        in place of loss.backward()
    clip_grad_norm(model.parameters(), 1.0)

Where the paper is silent, or its code (pascanu/trainingRNNs) differs:
  D1  Omega is divided by the number of terms, the mean over batch and time, as in the code; the paper has a sum over t.
  D2  The ratio of norms is squared in Equation 10 and in the code; here it is not, as in Equation 9.  `squared=True`
      takes the code's.
  D3  Terms with |d_{t+1}|^2 below 1e-20 are left out, as in the code.
  D4  A norm that is not finite leaves the gradients as they are, as torch does; the code decays W by 2 % there.
  D5  The network applies tanh to the sum, as the code does; the paper writes x_t = W s(x_{t-1}) + V u_t + b, which is
      the same network with another name for its state.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

__all__ = ["clip_grad_norm", "clip_norm_", "omega", "regularised_backward", "smart_tanh_"]

BOUND = 1e-20  # of |d|^2, below which a term says nothing  (D3)


def clip_grad_norm(parameters: Iterable[nn.Parameter], threshold: float) -> Tensor:
    """Scale all gradients together, in place, so that their norm is at most `threshold`; return the norm before.

    Raises ValueError unless threshold > 0.
    """
    return clip_norm_([p.grad for p in parameters if p.grad is not None], threshold)


@torch.no_grad()
def clip_norm_(gradients: list[Tensor], threshold: float) -> Tensor:
    """The same for tensors, such as the slices of one network in a stack of several."""
    if not threshold > 0:
        raise ValueError(f"threshold={threshold}: write a norm above 0, such as 1.0")
    if not gradients:
        return torch.zeros(())
    norm = torch.stack([g.double().norm() if g.dtype == torch.float64 else g.float().norm() for g in gradients]).norm()
    if norm.isfinite() and norm > threshold:  # D4
        for g in gradients:
            g.mul_(threshold / norm)
    return norm


@torch.no_grad()
def smart_tanh_(weight: Tensor, generator: torch.Generator, *, radius: float = 0.95, fan_in: int = 15) -> Tensor:
    """Draw a recurrent weight (H, H) in place: `fan_in` normal entries a row, scaled to a spectral radius."""
    fresh = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
    fresh *= torch.rand(weight.shape, generator=generator).argsort(-1) < fan_in
    return weight.copy_(radius * fresh / torch.linalg.eigvals(fresh).abs().max())


class TemporalRNN(nn.Module):
    """The network of the temporal order task.  u: (T, B, I) -> logits (B, O) at the last step; `states`: T of (B, H).

    V and the output weight start as N(0, 0.01^2), W by `smart_tanh_`, biases and x_0 as 0, as in the authors' code.
    Parameters with an axis of networks in front, (K, H, H) and so on, read u: (T, K, B, I) and give (K, B, O).
    """

    def __init__(self, inputs: int, hidden: int, outputs: int, *, generator: torch.Generator):
        super().__init__()
        self.recurrent = nn.Parameter(smart_tanh_(torch.empty(hidden, hidden), generator))
        self.input = nn.Parameter(0.01 * torch.randn(hidden, inputs, generator=generator))
        self.output = nn.Parameter(0.01 * torch.randn(outputs, hidden, generator=generator))
        self.bias, self.output_bias = nn.Parameter(torch.zeros(hidden)), nn.Parameter(torch.zeros(outputs))

    def states(self, u_TBI: Tensor) -> list[Tensor]:
        """The states after each step: T of (B, H)."""
        driven_TBH, x_BH, states = u_TBI @ self.input.mT + self.bias[..., None, :], None, []
        for driven_BH in driven_TBH.unbind():
            x_BH = torch.tanh(driven_BH if x_BH is None else driven_BH + x_BH @ self.recurrent.mT)  # D5
            states.append(x_BH)
        return states

    def read(self, x_BH: Tensor) -> Tensor:
        """Logits (B, O) of a state."""
        return x_BH @ self.output.mT + self.output_bias[..., None, :]

    def forward(self, u_TBI: Tensor) -> Tensor:
        return self.read(self.states(u_TBI)[-1])


def omega(weight_HH: Tensor, x_TBH: Tensor, d_TBH: Tensor, *, squared: bool = False) -> Tensor:
    """Omega of states x and gradients d = dE/dx of the same steps, which are constants: only W has a slope."""
    x_TBH, d_TBH = x_TBH.detach()[1:], d_TBH.detach()[1:]
    back = ((d_TBH * (1 - x_TBH.square())) @ weight_HH).square().sum(-1)  # |d_{t+1} dx_{t+1}/dx_t|^2
    size = d_TBH.square().sum(-1)
    told = size >= BOUND
    ratio = torch.where(told, back, 1.0) / torch.where(told, size, 1.0)
    terms = ((ratio if squared else ratio.clamp_min(1e-30).sqrt()) - 1).square()  # D2
    return terms.sum((0, -1)) / told.sum((0, -1)).clamp_min(1)  # D1


def regularised_backward(
    loss: Tensor, states: list[Tensor], recurrent: Tensor, weight: float, *, squared: bool = False
) -> Tensor:
    """Backpropagate E + weight * Omega into the gradients of all parameters, in place of loss.backward(); return Omega.

    loss: E, of which `states` (T of (B, H)) are a part of the graph;  recurrent: the parameter W.  weight = 0 leaves
    Omega out, and returns 0.  With an axis of networks in front loss and Omega are (K,).
    """
    for x in states:
        x.retain_grad()
    loss.sum().backward()
    if not weight:
        return torch.zeros_like(loss)
    penalty = omega(recurrent, torch.stack(states), torch.stack([x.grad for x in states]), squared=squared)
    (weight * penalty).sum().backward()
    return penalty.detach()
