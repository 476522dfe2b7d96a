"""What papers/glu_variants measures by itself: exact statements; and the broken layers that `byte_decoder` trains.

The language models are in `repro.experiments.byte_decoder`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from repro.papers.glu_variants.method import FFNGEGLU, FFNGLU, FFNBilinear, FFNReGLU, FFNSwiGLU, matched_width
from repro.tasks import Measures, Worst
from repro.train import generator

# --- broken arms of byte_decoder -------------------------------------------------------------------------------------


class Added(FFNSwiGLU):
    """(Swish(x W) + x V) W2: the product made a sum, with the same three matrices."""

    def gated(self, gate: Tensor, up: Tensor) -> Tensor:
        return F.silu(gate) + up


class OpenGate(FFNSwiGLU):
    """x V W2: the gate held at 1, so that the layer is linear; W is there and unused."""

    def gated(self, gate: Tensor, up: Tensor) -> Tensor:
        return up


# --- matching: Sections 2 and 3.1 ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Matching:
    width: int


def matching(arm: str, seed: int, config: Matching, device: torch.device) -> Measures:
    """Parameters and multiplications per token of a gated layer, over those of a layer of two matrices."""
    d, d_ff = config.width, 4 * config.width
    hidden = {"two_thirds": matched_width(d_ff), "same_width": d_ff}[arm]
    gated = FFNSwiGLU(d, hidden, device="meta")
    plain = nn.Sequential(nn.Linear(d, d_ff, False, device="meta"), nn.ReLU(), nn.Linear(d_ff, d, False, device="meta"))
    count, want = (sum(p.numel() for p in layer.parameters()) for layer in (gated, plain))
    multiplications = sum(m.in_features * m.out_features for m in gated.modules() if isinstance(m, nn.Linear))
    return {"parameters": count, "excess_parameters": count - want, "excess_multiplications": multiplications - want}


# --- equations: Eqs. 5 and 6 -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Equations:
    width: int
    tokens: int


GATES = {
    FFNGLU: lambda a: 1 / (1 + torch.exp(-a)),
    FFNBilinear: lambda a: a,
    FFNReGLU: lambda a: a * (a > 0),
    FFNGEGLU: lambda a: a * (1 + torch.erf(a / 2**0.5)) / 2,
    FFNSwiGLU: lambda a: a / (1 + torch.exp(-a)),
}


def equations(arm: str, seed: int, config: Equations, device: torch.device) -> Measures:
    """Largest relative error of each layer against its equation, in float64.

    `other_half` gates with V in place of W, as torch.nn.GLU's order of halves would; `tanh_gelu` has the approximation.
    """
    source, worst = generator("glu_variants equations", seed), Worst()
    d, h = config.width, matched_width(4 * config.width)
    x, w, v, w2 = (
        torch.randn(shape, generator=source, dtype=torch.float64).to(device)
        for shape in ((config.tokens, d), (d, h), (d, h), (h, d))
    )
    for kind, gate in GATES.items():
        layer = kind(d, device=device, dtype=torch.float64)
        layer.load_state_dict({"gate.weight": w.T, "up.weight": v.T, "down.weight": w2.T})
        if arm == "other_half":
            layer.gate, layer.up = layer.up, layer.gate
        got = layer(x)
        if arm == "tanh_gelu" and kind is FFNGEGLU:
            got = (F.gelu(x @ w, approximate="tanh") * (x @ v)) @ w2
        if arm == "other_half" and kind is FFNBilinear:
            continue  # symmetric in W and V
        worst.relative("equation_error", got, (gate(x @ w) * (x @ v)) @ w2)
    return dict(worst)
