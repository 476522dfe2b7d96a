"""timm's VisionTransformer, configured small, with slots."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from repro.models.convnet import seeded
from repro.models.slots import Act, Init, Norm, Placement, placed


class Block(nn.Module):
    """Attention, then feed-forward, each under a placement."""

    def __init__(self, attention: nn.Module, feed_forward: nn.Module):
        super().__init__()
        self.attention, self.feed_forward = attention, feed_forward

    def forward(self, x: Tensor) -> Tensor:
        return self.feed_forward(self.attention(x))


def vit(
    image: int,
    patch: int,
    dim: int,
    depth: int,
    *,
    heads: int,
    classes: int,
    generator: torch.Generator,
    channels: int = 3,
    norm: Norm = nn.LayerNorm,
    act: Act = nn.GELU,
    placement: str | Placement = "pre",
    mlp_ratio: float = 4.0,
    class_token: bool = False,
    drop_path: float = 0.0,
    dropout: float = 0.0,
    init: Init | None = None,
    options: dict | None = None,
) -> nn.Module:
    """timm.models.vision_transformer.VisionTransformer.  x: (B, channels, image, image) -> logits (B, classes).

    norm takes every place of LayerNorm.  With a placement other than "pre" each block is its attention and its MLP
    under that placement, and drop_path is not available.  Without class_token the patches are averaged (then the final
    norm follows the average, as timm's fc_norm).  `options` go to timm.
    """
    from timm.models.vision_transformer import VisionTransformer

    if placement != "pre" and drop_path:
        raise ValueError(f"drop_path={drop_path} needs placement='pre'; write drop_path=0")
    model = seeded(
        lambda: VisionTransformer(
            img_size=image,
            patch_size=patch,
            in_chans=channels,
            num_classes=classes,
            embed_dim=dim,
            depth=depth,
            num_heads=heads,
            mlp_ratio=mlp_ratio,
            class_token=class_token,
            global_pool="token" if class_token else "avg",
            drop_path_rate=drop_path,
            proj_drop_rate=dropout,
            norm_layer=lambda n, device=None, dtype=None: norm(n),
            act_layer=act,
            **(options or {}),
        ),
        generator,
    )
    if placement != "pre":
        wrap = placed(placement)
        model.blocks = nn.Sequential(
            *(
                Block(wrap(block.attn, norm, dim, index, depth), wrap(block.mlp, norm, dim, index, depth))
                for index, block in enumerate(model.blocks)
            )
        )
    if init is not None:
        init(model, generator)
    return model


def scaled_to_width(model: nn.Module, generator: torch.Generator) -> None:
    """An init: matrices of blocks and head get the deviation 0.02 sqrt(768 / dim), so that products keep their size.

    timm's 0.02 is made for a width of 768.  Norms rescale what a narrower network makes too small; without norms
    it stays too small.
    """
    with torch.no_grad():
        for layer in (*(m for m in model.blocks.modules() if isinstance(m, nn.Linear)), model.head):
            layer.weight.mul_((768 / model.embed_dim) ** 0.5)


def without_norms(model: nn.Module, fold: Callable[[nn.Module, nn.Linear], nn.Linear]) -> nn.Module:
    """A `vit` for inference, in place, each norm made part of the linear layer behind it: fold(norm, linear)."""
    for block in model.eval().blocks:
        block.attn.qkv, block.norm1 = fold(block.norm1, block.attn.qkv), nn.Identity()
        block.mlp.fc1, block.norm2 = fold(block.norm2, block.mlp.fc1), nn.Identity()
    model.head, model.fc_norm = fold(model.fc_norm, model.head), nn.Identity()
    return model
