"""The invariances of normalization layers: Table 1 of LayerNorm (arXiv:1607.06450) and of RMSNorm (arXiv:1910.07467).

y = norm(W x), W: (outputs, inputs), x: (cases, inputs), in float64.  Six changes of W or x are drawn `draws` times; a
cell of the table is "yes" if y never moves by more than 1e-9 of max|y|, "no" if it always moves by more than 1e-3.
"""

from dataclasses import dataclass
from importlib import import_module

import torch
from torch import Tensor

TRANSFORMATIONS = (
    "weight matrix re-scaling",
    "weight matrix re-centering",
    "weight vector re-scaling",
    "data set re-scaling",
    "data set re-centering",
    "single case re-scaling",
)
TABLE = {  # the papers' rows, in the order above
    "layernorm": (True, True, False, True, False, True),
    "batchnorm": (True, False, True, True, True, False),
    "weight_norm": (True, False, True, False, False, False),
    "rmsnorm": (True, False, False, True, False, True),
}
ARMS = {  # (where the layer is, its options)
    "layernorm": ("repro.papers.layernorm:LayerNorm", {}),
    "batchnorm": ("repro.papers.batchnorm:BatchNorm", {}),
    "rmsnorm": ("repro.papers.rmsnorm:RMSNorm", {}),
    "partial_rmsnorm": ("repro.papers.rmsnorm:PartialRMSNorm", {"p": 0.0625}),
    "weight_norm": None,
    # negative controls: an eps so large that re-scaling shows, and no normalization at all
    "layernorm_eps": ("repro.papers.layernorm:LayerNorm", {"eps": 0.1}),
    "rmsnorm_eps": ("repro.papers.rmsnorm:RMSNorm", {"eps": 0.1}),
    "identity": None,
}


@dataclass(frozen=True)
class Invariance:
    inputs: int
    outputs: int
    cases: int
    draws: int


def layer(arm: str, outputs: int, device: torch.device):
    """y(W, x) of one arm; weight normalization acts on W (Salimans & Kingma, 2016, Eq. 2 with g = 1)."""
    if arm == "identity":
        return lambda w, x: x @ w.T
    if arm == "weight_norm":
        return lambda w, x: x @ (w / torch.linalg.vector_norm(w, dim=1, keepdim=True)).T
    place, options = ARMS[arm]
    module, name = place.split(":")
    norm = getattr(import_module(module), name)(outputs, **{"eps": 0.0, **options}, device=device, dtype=torch.float64)
    return lambda w, x: norm(x @ w.T)


def changed(kind: str, w: Tensor, x: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """W and x after one random transformation."""
    factor = float(2 + 8 * torch.rand(1, generator=generator))
    shift = torch.randn(w.shape[1], generator=generator, dtype=w.dtype).to(w.device)
    first = torch.zeros(max(w.shape[0], x.shape[0]), 1, dtype=w.dtype, device=w.device)
    first[0] = factor - 1
    return {
        "weight matrix re-scaling": (factor * w, x),
        "weight matrix re-centering": (w + shift, x),
        "weight vector re-scaling": (w * (1 + first[: len(w)]), x),
        "data set re-scaling": (w, factor * x),
        "data set re-centering": (w, x + shift),
        "single case re-scaling": (w, x * (1 + first[: len(x)])),
    }[kind]


def weight_gradient(y, w: Tensor, x: Tensor, direction: Tensor) -> Tensor:
    """dL/dW of L = sum(direction * y(W, x))."""
    w = w.detach().requires_grad_()
    return torch.autograd.grad((y(w, x) * direction).sum(), w)[0]


def invariance(arm: str, seed: int, config: Invariance, device: torch.device) -> dict[str, float | list[float]]:
    """Per row of the table, in how many of its six cells this arm disagrees; and the error of dL/d(aW) = dL/dW / a."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(device)

    y = layer(arm, config.outputs, device)
    moves = torch.zeros(config.draws, len(TRANSFORMATIONS), dtype=torch.float64)
    gradient_error = 0.0
    for i in range(config.draws):
        w, x = draw(config.outputs, config.inputs) / config.inputs**0.5, draw(config.cases, config.inputs)
        before = y(w, x)
        for j, kind in enumerate(TRANSFORMATIONS):
            moves[i, j] = (y(*changed(kind, w, x, generator)) - before).abs().max() / before.abs().max()
        factor, direction = float(2 + 8 * torch.rand(1, generator=generator)), draw(config.cases, config.outputs)
        gradient = weight_gradient(y, w, x, direction)
        error = (factor * weight_gradient(y, factor * w, x, direction) - gradient).abs().max() / gradient.abs().max()
        gradient_error = max(gradient_error, float(error))
    still, moved = (moves < 1e-9).all(0).tolist(), (moves > 1e-3).all(0).tolist()
    wrong = {
        f"wrong_{row}": sum(not (still[j] if cell else moved[j]) for j, cell in enumerate(cells))
        for row, cells in TABLE.items()
    }
    return {**wrong, "gradient_error": gradient_error, "largest_moves": moves.max(0).values.tolist()}
