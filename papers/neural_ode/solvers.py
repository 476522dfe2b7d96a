"""Runge-Kutta methods for dz/dt = f(t, z): Euler's, the midpoint, the classical one of order 4, Dormand and Prince's.

A step from (t, z) evaluates slopes k_i = f(t + c_i h, z + h sum_j a_ij k_j) and returns z + h sum_i b_i k_i; c_i is the
sum of row i of A.  Dormand and Prince's pair has a second result of order 4, whose difference is the estimated error.
"""

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["odeint"]

Function = Callable[[Tensor, Tensor], Tensor]
TABLEAUX: dict[str, tuple[list[list[float]], list[float]]] = {  # rows of A from the second on; b
    "euler": ([], [1.0]),
    "midpoint": ([[0.5]], [0.0, 1.0]),
    "rk4": ([[0.5], [0.0, 0.5], [0.0, 0.0, 1.0]], [1 / 6, 1 / 3, 1 / 3, 1 / 6]),
    "dopri5": (
        [
            [1 / 5],
            [3 / 40, 9 / 40],
            [44 / 45, -56 / 15, 32 / 9],
            [19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729],
            [9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656],
        ],
        [35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84],
    ),
}
ERROR = [-71 / 57600, 0.0, 71 / 16695, -71 / 1920, 17253 / 339200, -22 / 525, 1 / 40]  # order 4 less order 5


def number(x: Tensor) -> float:
    return float(x.detach())


def rms(x: Tensor) -> float:
    return number(x.square().mean().sqrt())


def combine(weights: list[float], slopes: list[Tensor]) -> Tensor:
    return sum(w * k for w, k in zip(weights, slopes, strict=True) if w)


def step(f: Function, t: Tensor, h: Tensor, z: Tensor, first: Tensor, method: str) -> tuple[Tensor, list[Tensor]]:
    """One Runge-Kutta step from (t, z), where f is `first`: z(t + h) and the slopes at the stages."""
    rows, b = TABLEAUX[method]
    slopes = [first]
    for row in rows:
        slopes.append(f(t + sum(row) * h, z + h * combine(row, slopes)))
    return z + h * combine(b, slopes), slopes


def first_step(f: Function, t: Tensor, z: Tensor, slope: Tensor, span: Tensor, rtol: float, atol: float, norm) -> float:
    """A step for which an explicit Euler step would be accurate (Hairer, Norsett & Wanner 1993, Sec. II.4)."""
    scale, sign = atol + z.detach().abs() * rtol, 1 if span > 0 else -1
    d0, d1 = norm(z / scale), norm(slope / scale)
    h0 = min(1e-6 if d0 < 1e-5 or d1 < 1e-5 else 0.01 * d0 / d1, abs(number(span)))
    with torch.no_grad():
        d2 = norm((f(t + sign * h0, z + sign * h0 * slope) - slope) / scale) / h0
    h1 = max(1e-6, h0 * 1e-3) if max(d1, d2) <= 1e-15 else (0.01 / max(d1, d2)) ** 0.2
    return min(100 * h0, h1, abs(number(span)))


def dopri5(f: Function, times: Tensor, z: Tensor, rtol: float, atol: float, norm: Callable[[Tensor], float]):
    """The solution at times[1:], with steps whose estimated error is within the tolerances (D1)."""
    t, slope, size, found = times[0], f(times[0], z), None, []
    for end in times[1:]:
        size = first_step(f, t, z, slope, end - t, rtol, atol, norm) if size is None else size
        refused, sign = False, 1 if end > t else -1
        while (left := abs(number(end - t))) > 0:
            if size < 10 * torch.finfo(t.dtype).eps * abs(number(t)):
                raise RuntimeError(
                    f"t = {number(t)}: the step underflows; the equation is too stiff, or f is not finite"
                )
            last = size >= left
            h = end - t if last else sign * torch.full_like(t, size)
            new, slopes = step(f, t, h, z, slope, "dopri5")
            after = f(t + h, new)
            scale = atol + rtol * torch.maximum(z.detach().abs(), new.detach().abs())
            error = norm(h * combine(ERROR, [*slopes, after]) / scale)
            factor = 10.0 if error == 0 else 0.9 * error**-0.2
            size = min(size, left)
            if error < 1:
                t, z, slope = end if last else t + h, new, after
                size *= min(1.0 if refused else 10.0, factor)
            else:  # NaN too
                size *= max(0.2, factor) if factor == factor else 0.2
            refused = not error < 1
        found.append(z)
    return found


def solve(f: Function, z: Tensor, times: Tensor, rtol: float, atol: float, method: str, steps: int, norm) -> Tensor:
    if method not in TABLEAUX:
        raise ValueError(f"method={method!r} is unknown; write one of {', '.join(TABLEAUX)}")
    if times.dim() != 1 or len(times) < 2 or steps < 1:
        raise ValueError("write at least two times, as a vector, and at least one step between them")
    moves = times.detach().diff()
    if not ((moves > 0).all() or (moves < 0).all()):
        raise ValueError(f"times {times.tolist()} must rise, or fall, strictly")
    if method == "dopri5":
        return torch.stack([z, *dopri5(f, times, z, rtol, atol, norm)])
    found = [z]
    for start, end in zip(times[:-1], times[1:], strict=True):
        h = (end - start) / steps
        for k in range(steps):
            z = step(f, start + k * h, h, z, f(start + k * h, z), method)[0]
        found.append(z)
    return torch.stack(found)


def odeint(
    func: Function,
    y0: Tensor,
    t: Tensor,
    *,
    rtol: float = 1e-7,
    atol: float = 1e-9,
    method: str = "dopri5",
    steps: int = 1,
) -> Tensor:
    """Solve dz/dt = func(t, z) from z(t[0]) = y0; z at all times t, (len(t), *y0.shape).  Autograd sees every step.

    t: times that rise or fall strictly.  method: dopri5, within rtol and atol, or euler, midpoint and rk4 with `steps`
    equal steps between two times.  Raises ValueError for another method or other times, RuntimeError where the step
    underflows.
    """
    return solve(func, y0, t, rtol, atol, method, steps, rms)
