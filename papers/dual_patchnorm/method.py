"""Dual PatchNorm (Kumar, Dehghani & Houlsby, TMLR 2023, arXiv:2302.01327), Sec. 3.

    e = LN1( W LN0(p) + b )          the stem of a ViT; position embeddings and a class token come after it

p: (B, N, hp wp c), the pixels of the N patches of hp x wp pixels, of an image x: (B, c, H, W); e: (B, N, embed_dim).
LN0 normalises the raw pixels of a patch, all channels together, LN1 its embedding; both are ordinary layer norms with
gain and bias of their own, which start at 1 and 0 (`repro.papers.layernorm`), eps = 1e-6 as in flax.  W
("dense.weight") starts as flax's nn.Dense does, a normal of variance 1 / (hp wp c) cut at two deviations, b as 0.
The blocks of the ViT stay as they are.  No statistics over cases: train and eval agree.

Departures from the authors' pseudocode (ln0, dense and ln1 are its names):
  D1  images are (B, c, H, W) as everywhere in torch; the pixels of a patch stand in its order (hp, wp, c) all the same.
  D2  timm's VisionTransformer draws every linear layer anew with a deviation of 0.02; `init_weights`, which it calls,
      keeps the initial values above.
"""

import torch
from torch import Tensor, nn

from repro.papers.layernorm.method import LayerNorm

__all__ = ["DualPatchEmbed"]

Size = int | tuple[int, int]
CUT = 0.8796256610342398  # deviation of a standard normal cut at two deviations


class DualPatchEmbed(nn.Module):
    """LN1(W LN0(p) + b) (Sec. 3) in the place and with the arguments of timm's PatchEmbed; x: (B, c, H, W) -> (B, N,
    d).

    vit(..., options={"embed_layer": DualPatchEmbed}) builds `repro.models.vit` (timm's VisionTransformer) with it.
    pre=False leaves LN0 out, post=False LN1 (the paper's ablations Post and Pre); both False is the stem of a plain
    ViT.

    Raises ValueError if the patches do not fill the image, x is of another size, or padding is asked for; TypeError if
    x is an integer.
    """

    def __init__(
        self,
        img_size: Size = 224,
        patch_size: Size = 16,
        in_chans: int = 3,
        embed_dim: int = 768,
        *,
        bias: bool = True,
        pre: bool = True,
        post: bool = True,
        eps: float = 1e-6,
        dynamic_img_pad: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        like = {"device": device, "dtype": dtype}
        self.img_size, self.patch_size = ((n, n) if isinstance(n, int) else tuple(n) for n in (img_size, patch_size))
        if dynamic_img_pad or any(n % p for n, p in zip(self.img_size, self.patch_size, strict=True)):
            raise ValueError(
                f"patch_size={patch_size} must divide img_size={img_size}, and nothing is padded: write another"
            )
        self.grid_size = tuple(n // p for n, p in zip(self.img_size, self.patch_size, strict=True))
        self.num_patches, self.in_chans = self.grid_size[0] * self.grid_size[1], in_chans
        pixels = self.patch_size[0] * self.patch_size[1] * in_chans
        self.ln0 = LayerNorm(pixels, eps, **like) if pre else nn.Identity()
        self.dense = nn.Linear(pixels, embed_dim, bias=bias, **like)
        self.ln1 = LayerNorm(embed_dim, eps, **like) if post else nn.Identity()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for norm in (self.ln0, self.ln1):
            if isinstance(norm, LayerNorm):
                norm.reset_parameters()
        std = self.dense.in_features**-0.5 / CUT
        nn.init.trunc_normal_(self.dense.weight, std=std, a=-2 * std, b=2 * std)
        if self.dense.bias is not None:
            nn.init.zeros_(self.dense.bias)

    def init_weights(self) -> None:  # D2
        self.reset_parameters()

    def patches(self, x: Tensor) -> Tensor:
        """The pixels of each patch: (B, c, H, W) -> (B, N, hp wp c), rows of patches from the top, from left to
        right.
        """
        if not x.is_floating_point():
            raise TypeError(f"a stem needs floating-point pixels, got {x.dtype}: write x.float()")
        if x.shape[1:] != (self.in_chans, *self.img_size):
            wanted = ", ".join(map(str, (self.in_chans, *self.img_size)))
            raise ValueError(f"{tuple(x.shape)} are no images (B, {wanted}): resize them")
        p = x.unflatten(2, (-1, self.patch_size[0])).unflatten(4, (-1, self.patch_size[1]))  # (B, c, ht, hp, wt, wp)
        return p.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)  # D1

    def forward(self, x: Tensor) -> Tensor:
        return self.ln1(self.dense(self.ln0(self.patches(x))))

    def extra_repr(self) -> str:
        return f"img_size={self.img_size}, patch_size={self.patch_size}"
