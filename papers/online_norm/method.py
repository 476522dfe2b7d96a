"""Online Normalization (Chiley et al., NeurIPS 2019, arXiv:1905.05894), Section 3.

For every sample t, in order, and every feature (or channel), with s2 the variance and the statistics from BEFORE x_t:

    forward     y_t = (x_t - mu_{t-1}) / sqrt(s2_{t-1} + eps)
                s2_t = a_f s2_{t-1} + a_f (1 - a_f) (x_t - mu_{t-1})^2        mu_t = a_f mu_{t-1} + (1 - a_f) x_t
    backward    q_t = g_t - (1 - a_b) v_{t-1} y_t                             v_t = v_{t-1} + mean(q_t y_t)
                dL/dx_t = q_t / sqrt(s2_{t-1} + eps) - (1 - a_b) u_{t-1}      u_t = u_{t-1} + mean(dL/dx_t)
    output      z_t = f_t / sqrt(mean over all features of f_t^2 + eps), f_t = gamma y_t + beta      (layer scaling)

x and z: (N, C, *).  mean() is over the positions * of a sample; for maps x_t in the two statistics is the mean over
them and s2_t grows by (1 - a_f) times the variance over them.  mu ("running_mean"), s2 ("running_var"): (C,), start
at 0 and 1; u, v, the accumulated errors of the gradient: (C,), start at 0.  gamma ("weight"), beta ("bias"): (C,),
start at 1 and 0.  a_f = 0.999, a_b = 0.99.  No gradient flows through mu, s2, u and v.  Evaluation: mu, s2 stay.

  D1  eps = 1e-5 stands under both roots, as in the authors' code (Cerebras/online-normalization).
  D2  the guard after the affine map is layer scaling; their module has a clamp to [-5, 5] unless told otherwise.
  D3  the samples of a batch go through the recursions in order, as in their kernels; mu, s2 and u, whose recursions
      have constant coefficients, in one product with a triangular matrix: N^2 C operations in place of N steps.
  D4  dL/dx is no derivative of the output, so a second derivative is refused.
"""

import torch
from torch import Tensor

from repro.models.affine import Affine, channels_first, leaf
from repro.models.recompute import Rewind, recomputing
from repro.papers.online_norm.stream import Stream, output

__all__ = ["OnlineNorm"]


@leaf
def inference(
    input: Tensor,
    mu: Tensor,
    s2: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    guard: str | None,
    eps: float,
) -> Tensor:
    """z of `input`: (N, C, *) by statistics that stay."""
    x = channels_first(input, len(mu), 2)
    mu, root, gamma, beta = (
        None if t is None else t.view(-1, *[1] * (x.dim() - 2)) for t in (mu, (s2 + eps).sqrt(), gamma, beta)
    )
    return output((x - mu) / root, gamma, beta, guard, eps, list(range(1, x.dim())))[0].to(input.dtype)


class OnlineNorm(Affine):
    """Online Normalization of (N, C, *), in the place of torch.nn.BatchNorm1d and 2d, whose first arguments it has.

    The samples of a batch are a stream: their order matters, and N = 1 is as good as any.  guard: "scale" (layer
    scaling, Section 3), "clamp" (to [-5, 5], the authors' later choice) or None.  alpha_forward = 1 freezes mu and s2,
    alpha_backward = 1 turns the control of the gradient off.  The backward pass changes the buffers u and v.

    Raises ValueError if the shape of x, an alpha or the guard does not fit, TypeError if x is an integer.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        affine: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        alpha_forward: float = 0.999,
        alpha_backward: float = 0.99,
        guard: str | None = "scale",
    ):
        if not (0 < alpha_forward <= 1 and 0 < alpha_backward <= 1):
            raise ValueError(f"alphas {alpha_forward} and {alpha_backward} are no decay: write 0 < alpha <= 1")
        if guard not in ("scale", "clamp", None):
            raise ValueError(f"guard={guard!r} is unknown: write 'scale', 'clamp' or None")
        super().__init__(num_features, affine, True, device, dtype)
        self.num_features, self.eps, self.guard = int(num_features), eps, guard
        self.alpha_forward, self.alpha_backward = alpha_forward, alpha_backward
        for name in ("running_mean", "running_var", "u", "v"):
            self.register_buffer(name, torch.empty(num_features, device=device, dtype=dtype))
        self.before = Rewind()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        super().reset_parameters()
        for buffer in self.buffers():
            buffer.fill_(1.0 if buffer is self.running_var else 0.0)

    def forward(self, input: Tensor) -> Tensor:
        mu, s2 = self.running_mean, self.running_var
        if not self.training or not input.numel():
            return inference(input, mu, s2, self.weight, self.bias, self.guard, self.eps)
        x, maps = channels_first(input, self.num_features, 2), input.dim() > 2
        x, column = (x.flatten(2), (1, -1, 1)) if maps else (x, (1, -1))
        gamma, beta = (None if t is None else t.view(column) for t in (self.weight, self.bias))
        alphas, before = (
            (self.alpha_forward, self.alpha_backward),
            self.before(lambda: x.transpose(0, 1).sum(1), (mu, s2)),
        )
        z, *_, new_mu, new_s2 = Stream.apply(
            x, gamma, beta, *before, self.u, self.v, *alphas, self.eps, self.guard, maps
        )
        if not recomputing():
            with torch.no_grad():  # by copy_, so that buffers stacked for torch.func.vmap are updated too
                mu.copy_(new_mu)
                s2.copy_(new_s2)
        return z.view(input.shape).to(input.dtype)

    def extra_repr(self) -> str:
        return (
            f"{self.num_features}, eps={self.eps}, affine={self.weight is not None}, guard={self.guard}, "
            f"alpha_forward={self.alpha_forward}, alpha_backward={self.alpha_backward}"
        )
