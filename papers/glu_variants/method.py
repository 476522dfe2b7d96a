"""GLU variants (Shazeer 2020, arXiv:2002.05202, GLU Variants Improve Transformer), Eqs. 5 and 6.

    FFN(x) = ( g(x W) * (x V) ) W2        * element-wise

    FFNGLU       g = sigmoid        GLU(x) = sigmoid(x W) * x V
    FFNBilinear  g = identity
    FFNReGLU     g = ReLU
    FFNGEGLU     g = GELU
    FFNSwiGLU    g = Swish_1, x sigmoid(x)

x and FFN(x): (..., d).  W and V: d x h, W2: h x d, no biases.  They take the place of FFN(x) = act(x W1) W2 with W1:
d x d_ff, and h = 2 d_ff / 3 keeps parameters and multiplications: 3 d h = 2 d d_ff (3072 -> 2048 at d = 768).  No
dropout.  Training and evaluation agree.

Weights are kept as torch keeps them, transposed, under the names of Llama and of `repro.models.gpt.FeedForward`, whose
checkpoints load: gate (W), up (V), down (W2).

Where the paper is silent:
  D1  GELU is the exact one, by erf.
  D2  weights start as those of nn.Linear; the paper leaves them as in T5, a model that has its own rules.
  D3  hidden_features is 8/3 d unless given, rounded down, so that a gated layer never has more than the one of 4 d.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["FFNBilinear", "FFNGEGLU", "FFNGLU", "FFNReGLU", "FFNSwiGLU", "geglu", "matched_width", "reglu", "swiglu"]


def reglu(gate: Tensor, up: Tensor) -> Tensor:
    """ReLU(gate) * up, tensors of one shape: gate = x W, up = x V."""
    return F.relu(gate) * up


def geglu(gate: Tensor, up: Tensor) -> Tensor:
    """GELU(gate) * up, tensors of one shape: gate = x W, up = x V."""
    return F.gelu(gate) * up


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """Swish_1(gate) * up, tensors of one shape: gate = x W, up = x V."""
    return F.silu(gate) * up


def matched_width(d_ff: int) -> int:
    """The hidden width 2 d_ff / 3 of a gated layer with the parameters of one without a gate, rounded down (Sec. 3.1).

    Raises ValueError where nothing would be left.
    """
    if d_ff < 2:
        raise ValueError(f"d_ff={d_ff} leaves no hidden unit; write 2 or more")
    return 2 * int(d_ff) // 3


class _Gated(nn.Module):
    """(g(x W) * (x V)) W2: (..., in_features) -> (..., in_features)."""

    def __init__(
        self,
        in_features: int,
        hidden_features: int | None = None,
        bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        hidden = matched_width(4 * in_features) if hidden_features is None else hidden_features
        self.gate = nn.Linear(in_features, hidden, bias, device, dtype)
        self.up = nn.Linear(in_features, hidden, bias, device, dtype)
        self.down = nn.Linear(hidden, in_features, bias, device, dtype)

    def reset_parameters(self) -> None:
        """Draw the weights anew, as nn.Linear does (D2)."""
        for layer in (self.gate, self.up, self.down):
            layer.reset_parameters()

    def gated(self, gate: Tensor, up: Tensor) -> Tensor:
        """Return g(gate) * up; every variant has its own."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.gated(self.gate(x), self.up(x)))


class FFNGLU(_Gated):
    """Feed-forward layer (sigmoid(x W) * (x V)) W2: (..., in_features) -> the same; hidden_features 8/3 in_features."""

    def gated(self, gate: Tensor, up: Tensor) -> Tensor:
        return torch.sigmoid(gate) * up


class FFNBilinear(_Gated):
    """Feed-forward layer (x W * x V) W2, without any activation: (..., in_features) -> the same."""

    def gated(self, gate: Tensor, up: Tensor) -> Tensor:
        return gate * up


class FFNReGLU(_Gated):
    """Feed-forward layer (ReLU(x W) * (x V)) W2: (..., in_features) -> the same; hidden_features 8/3 in_features."""

    def gated(self, gate: Tensor, up: Tensor) -> Tensor:
        return reglu(gate, up)


class FFNGEGLU(_Gated):
    """Feed-forward layer (GELU(x W) * (x V)) W2: (..., in_features) -> the same; hidden_features 8/3 in_features."""

    def gated(self, gate: Tensor, up: Tensor) -> Tensor:
        return geglu(gate, up)


class FFNSwiGLU(_Gated):
    """Feed-forward layer (Swish_1(x W) * (x V)) W2: (..., in_features) -> the same; hidden_features 8/3 in_features."""

    def gated(self, gate: Tensor, up: Tensor) -> Tensor:
        return swiglu(gate, up)
