"""What papers/neural_ode measures: solvers and gradients against fine solutions, memory, and nets on MNIST."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from repro.papers.neural_ode.method import ODEBlock, odeint_adjoint
from repro.papers.neural_ode.networks import Field, Flipped, middle, network
from repro.papers.neural_ode.solvers import odeint
from repro.tasks import Measures, Pictures, classify, relative
from repro.train import generator

# --- solver: Eq. 1 and 2, and the orders of the methods ---------------------------------------------------------------


@dataclass(frozen=True)
class Solver:
    width: int
    examples: int
    steps: int


def end_slope(f: Callable, z: Tensor, steps: int) -> Tensor:
    """The midpoint method with the slope of the end of the step in place of that of its middle."""
    h = 1 / steps
    for k in range(steps):
        now = torch.tensor(k * h, dtype=z.dtype)
        z = z + h * f(now + h, z + h * f(now, z))
    return z


def solver(arm: str, seed: int, config: Solver, device: torch.device) -> dict[str, float]:
    """Observed order, of steps and twice as many; distance of Euler's method from a residual net of as many blocks."""
    source = generator("neural_ode solver", seed)
    f = Field(config.width, source).to(device).requires_grad_(False)
    z = torch.randn(config.examples, config.width, generator=source, dtype=torch.float64).to(device)
    times = torch.tensor([0.0, 1.0], dtype=torch.float64, device=device)
    true = odeint(f, z, times, rtol=1e-13, atol=1e-13)[-1]
    method = "euler" if arm == "undivided" else arm

    def solved(steps: int) -> Tensor:
        return end_slope(f, z, steps) if arm == "end_slope" else odeint(f, z, times, method=method, steps=steps)[-1]

    errors = [float((solved(steps) - true).norm()) for steps in (config.steps, 2 * config.steps)]
    residual = z
    for k in range(config.steps):
        branch = f(times[1] * k / config.steps, residual)
        residual = residual + (branch if arm == "undivided" else branch / config.steps)
    return {
        "order": float(torch.tensor(errors[0] / errors[1]).log2()),
        "residual_error": relative(solved(config.steps), residual),
    }


# --- gradient: the adjoint equation -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Gradient:
    width: int
    examples: int
    tolerance: float


def gradient(arm: str, seed: int, config: Gradient, device: torch.device) -> dict[str, float]:
    """Relative error of dL/dz(t_0) and dL/dtheta against backpropagation through a solver at 1e-12; evaluations."""
    source = generator("neural_ode gradient", seed)
    f = Field(config.width, source).to(device)
    z = torch.randn(config.examples, config.width, generator=source, dtype=torch.float64).to(device).requires_grad_()
    upstream = torch.randn(z.shape, generator=source, dtype=torch.float64).to(device)
    times, wanted = torch.tensor([0.0, 1.0], dtype=torch.float64, device=device), (z, *f.parameters())

    def grads(end: Tensor) -> list[Tensor]:
        found = torch.autograd.grad((end * upstream).sum(), wanted, allow_unused=True)
        return [torch.zeros_like(x) if g is None else g for x, g in zip(wanted, found, strict=True)]

    true = grads(odeint(f, z, times, rtol=1e-12, atol=1e-12)[-1])
    block = ODEBlock(Flipped(f) if arm == "flipped" else f, rtol=config.tolerance, atol=config.tolerance)
    if arm == "no_parameters":
        options = {"rtol": config.tolerance, "atol": config.tolerance, "adjoint_params": ()}
        return {
            "gradient_error": max(map(relative, grads(odeint_adjoint(block.counted, z, times, **options)[-1]), true))
        }
    end = block(z)
    forward = block.nfe
    found = grads(end)
    return {
        "gradient_error": max(map(relative, found, true)),
        "forward": float(forward),
        "backward": float(block.nfe - forward),
    }


# --- speed: precision against evaluations -----------------------------------------------------------------------------


def speed(arm: str, seed: int, config: Gradient, device: torch.device) -> dict[str, float]:
    """Error of the solution and evaluations of f at a tolerance; the arm rk4 takes ten steps at any tolerance."""
    source = generator("neural_ode speed", seed)
    f = Field(config.width, source).to(device).requires_grad_(False)
    z = torch.randn(config.examples, config.width, generator=source, dtype=torch.float64).to(device)
    times = torch.tensor([0.0, 4.0], dtype=torch.float64, device=device)
    true = odeint(f, z, times, rtol=1e-12, atol=1e-12)[-1]
    block = ODEBlock(f, (0.0, 4.0), method=arm, steps=10, rtol=config.tolerance, atol=config.tolerance, adjoint=False)
    return {"solution_error": relative(block(z), true), "evaluations": float(block.nfe)}


# --- memory: Table 1, last columns ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Memory:
    width: int
    batch: int
    few: int  # steps
    many: int


def kept(model: nn.Module, x: Tensor) -> int:
    """Numbers that autograd keeps for the backward pass, each storage once, parameters left out."""
    storages: dict[int, int] = {}
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def pack(t: Tensor) -> Tensor:
        storages[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes() // t.element_size()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = model(x)
    count = sum(size for pointer, size in storages.items() if pointer not in own)
    y.sum().backward()
    return count


def memory(arm: str, seed: int, config: Memory, device: torch.device) -> dict[str, float]:
    """What one training step of the ODE block keeps with few and with many RK4 steps, and the ratio."""
    x = torch.randn(config.batch, config.width, 6, 6, generator=generator("neural_ode memory", seed)).to(device)
    counts = [
        kept(middle(arm, config.width, steps).to(device), x.clone().requires_grad_())
        for steps in (config.few, config.many)
    ]
    return {"kept_few": float(counts[0]), "kept_many": float(counts[1]), "growth": counts[1] / counts[0]}


# --- mnist: Table 1 ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Mnist(Pictures):
    width: int
    rk_steps: int
    data: str = "mnist"
    pool: int = 2


def drop(step: int, steps: int) -> float:
    """The whole rate, and a tenth of it in the last quarter of the steps."""
    return 0.1 if 4 * step >= 3 * steps else 1.0


def mnist(arm: str, seed: int, config: Mnist, device: torch.device) -> Measures:
    """Test error under SGD with momentum, and the number of parameters."""
    model = network(arm, config.width, config.rk_steps, seed)
    found = classify(
        model, "neural_ode mnist", seed, config, device, score="error", optimizer="momentum", schedule=drop
    )
    sizes = [sum(p.numel() for p in net.parameters()) for net in (model, network("resnet6", config.width, 1, seed))]
    return {**found, "parameters": float(sizes[0]), "parameters_ratio": sizes[0] / sizes[1]}


# --- parameters: those of Table 1 -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Parameters:
    width: int


def parameters(arm: str, seed: int, config: Parameters, device: torch.device) -> dict[str, float]:
    """Parameters of an arm's net over those of the net with six residual blocks."""
    sizes = [sum(p.numel() for p in network(name, config.width, 1, seed).parameters()) for name in (arm, "resnet6")]
    return {"parameters_ratio": sizes[0] / sizes[1]}
