"""What most norms have in common beside their idea: a gain and a bias per feature or per channel, and how they take x."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Affine(nn.Module):
    """`weight` (starts at 1) and `bias` (starts at 0) of shape normalized_shape, named as in torch.nn; None where not wanted.

    normalized_shape, elementwise_affine, bias, device and dtype: as in torch.nn.LayerNorm.
    """

    weight: nn.Parameter | None
    bias: nn.Parameter | None

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        elementwise_affine: bool = True,
        bias: bool = True,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        single = isinstance(normalized_shape, int)
        self.normalized_shape = (normalized_shape,) if single else tuple(normalized_shape)
        self.elementwise_affine = elementwise_affine
        for name, wanted in (("weight", elementwise_affine), ("bias", elementwise_affine and bias)):
            empty = torch.empty(self.normalized_shape, device=device, dtype=dtype) if wanted else None
            self.register_parameter(name, None if empty is None else nn.Parameter(empty))
        Affine.reset_parameters(self)  # a subclass has nothing of its own yet: it calls its own when it has

    def reset_parameters(self) -> None:
        if self.weight is not None:
            nn.init.ones_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def extra_repr(self) -> str:
        return f"{self.normalized_shape}, elementwise_affine={self.elementwise_affine}, bias={self.bias is not None}"


def channels_first(x: Tensor, channels: int, axes: int = 3) -> Tensor:
    """x: (N, channels, *), in float32 at least; TypeError for integers, ValueError for another shape or fewer than `axes` axes."""
    if not x.is_floating_point():
        raise TypeError(f"a norm needs floating-point input, got {x.dtype}: write x.float()")
    if x.dim() < axes or x.shape[1] != channels:
        raise ValueError(f"input of shape {tuple(x.shape)} is not (N, {channels}, *) of at least {axes} axes")
    return x.to(torch.promote_types(x.dtype, torch.float32))
