"""Neural ordinary differential equations (Chen, Rubanova, Bettencourt & Duvenaud, NeurIPS 2018, arXiv:1806.07366).

    dz/dt = f(t, z; theta),    z(t_1) = z(t_0) + int f dt                        z: any shape, the same for f(t, z)

by a numerical solver; a residual network z_{k+1} = z_k + h f(z_k) is Euler's method (Eq. 1 and 2).  Gradients come from
a second equation that is solved backwards in time (Sec. 2, Appendix B and C), a = dL/dz:

    da/dt = -a^T df/dz,    dL/dtheta = -int_{t_1}^{t_0} a^T df/dtheta dt,    dL/dt_1 = a^T f(t_1, z(t_1))

together with z itself, from [z(t_1), dL/dz(t_1), 0]: nothing is kept between output times, however many the steps.
With several output times dL/dz(t_i) is added to a at each of them.

Where the paper leaves a choice (its solver is a library's):
  D1  the adaptive method is Dormand and Prince's of order 5(4), whose last step ends at the output time; the authors'
      library (rtqichen/torchdiffeq) steps beyond it and interpolates.  Step control is that of scipy's RK45.
  D2  rk4 is the classical method of Runge and Kutta; the authors' library has the 3/8 rule under that name.
  D3  the backward equation is solved with the method, tolerances and steps of the forward one.  Its error is the
      largest of the errors of z, a, dL/dtheta and dL/dt, each a root mean square.
  D4  f takes (t, z) in this order, as in the authors' library; the paper writes f(z(t), t, theta).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from repro.papers.neural_ode.solvers import Function, odeint, rms, solve

__all__ = ["ODEBlock", "odeint_adjoint"]


class Adjoint(torch.autograd.Function):
    """`odeint` without a graph, and the backward equation."""

    @staticmethod
    def forward(ctx, func, options, y0, t, *params):
        ctx.func, ctx.options = func, options
        with torch.no_grad():
            found = solve(func, y0, t, *options, rms)
        ctx.save_for_backward(found, t, *params)
        return found

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, upstream):
        found, t, *params = ctx.saved_tensors
        sizes = [found[0].numel(), found[0].numel(), 1, *(p.numel() for p in params)]

        def norm(x: Tensor) -> float:  # D3
            z, a, time, *theta = x.split(sizes)
            return max(map(rms, [z, a, time, *([torch.cat(theta)] if theta else [])]))

        def backwards(now: Tensor, state: Tensor) -> Tensor:
            """d/dt of [z, a, dL/dt, dL/dtheta], flat."""
            with torch.enable_grad():
                now, z = now.detach().requires_grad_(), state[: sizes[0]].view_as(found[0]).detach().requires_grad_()
                slope, a = ctx.func(now, z), state[sizes[0] : 2 * sizes[0]].view_as(found[0])
                inputs = (z, now, *params)
                products = torch.autograd.grad(slope, inputs, -a, allow_unused=True)
            products = [torch.zeros_like(x) if p is None else p for x, p in zip(inputs, products, strict=True)]
            return torch.cat([slope.detach().flatten(), *(p.flatten().to(slope) for p in products)])

        state = torch.cat([found[-1].flatten(), upstream[-1].flatten(), found.new_zeros(sum(sizes[2:]))])
        times = torch.zeros_like(t)
        for i in range(len(t) - 1, 0, -1):
            times[i] = (ctx.func(t[i], found[i]) * upstream[i]).sum()
            state[2 * sizes[0]] -= times[i]
            state = solve(backwards, state, t[[i, i - 1]], *ctx.options, norm)[-1]
            state[: sizes[0]] = found[i - 1].flatten()
            state[sizes[0] : 2 * sizes[0]] += upstream[i - 1].flatten()
        _, a, times[0], *theta = state.split(sizes)
        return None, None, a.view_as(found[0]), times, *(g.view_as(p).to(p) for g, p in zip(theta, params, strict=True))


def odeint_adjoint(
    func: Function,
    y0: Tensor,
    t: Tensor,
    *,
    rtol: float = 1e-7,
    atol: float = 1e-9,
    method: str = "dopri5",
    steps: int = 1,
    adjoint_params: Sequence[Tensor] | None = None,
) -> Tensor:
    """As `odeint`, with gradients from the backward equation: what is kept does not grow with the number of steps.

    adjoint_params: tensors that func uses and that get gradients, by default its parameters.  Raises ValueError as
    `odeint` does, and where func is no module and `adjoint_params` is not given.
    """
    if adjoint_params is None:
        if not isinstance(func, nn.Module):
            raise ValueError("func is no module, so its parameters are unknown; write adjoint_params=")
        adjoint_params = tuple(func.parameters())
    params = [p for p in adjoint_params if p.requires_grad]
    return Adjoint.apply(func, (rtol, atol, method, steps), y0, t, *params)


class ODEBlock(nn.Module):
    """z(t_1) from z(t_0) = x, with dz/dt = func(t, z); x and the output have one shape.

    Options are those of `odeint`; adjoint: gradients from the backward equation.  `nfe` counts evaluations of func,
    forward and backward, until it is set to 0.
    """

    def __init__(
        self,
        func: nn.Module,
        t: tuple[float, float] = (0.0, 1.0),
        *,
        rtol: float = 1e-3,
        atol: float = 1e-3,
        method: str = "dopri5",
        steps: int = 1,
        adjoint: bool = True,
    ):
        super().__init__()
        self.func, self.t, self.adjoint, self.nfe = func, t, adjoint, 0
        self.rtol, self.atol, self.method, self.steps = rtol, atol, method, steps

    def counted(self, t: Tensor, z: Tensor) -> Tensor:
        self.nfe += 1
        return self.func(t, z)

    def forward(self, x: Tensor) -> Tensor:
        options = {"rtol": self.rtol, "atol": self.atol, "method": self.method, "steps": self.steps}
        times = torch.tensor(self.t, dtype=x.dtype, device=x.device)
        if self.adjoint:
            return odeint_adjoint(self.counted, x, times, **options, adjoint_params=tuple(self.func.parameters()))[-1]
        return odeint(self.counted, x, times, **options)[-1]

    def extra_repr(self) -> str:
        return f"t={self.t}, method={self.method!r}, steps={self.steps}, adjoint={self.adjoint}"
