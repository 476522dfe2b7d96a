"""Pre-RMSNorm and Pre-CRMSNorm Transformers (Jiang, Gu, Zhu & Pan, NeurIPS 2023, arXiv:2305.14858), Sec. 3.

    Pre-LN block     x <- x + A_o g(A_i LN(x) + b_i) + b_o            x: (..., d), the main branch

Only LayerNorms read the main branch, and LN(x) = LN(x + k): the mean of x is redundant.

    Pre-RMSNorm      x_0 <- x_0 - mean(x_0);  A_o <- A_o - 1 1^T A_o / d,  b_o <- b_o - mean(b_o) (Lemma 3.1);
                     so x keeps zero mean, and LN(x) = RMS(x) = x / sqrt(|x|^2 / d + eps)           (Eq. 1, 2)
    Pre-CRMSNorm     x without its last element x_d = -(x_1 + .. + x_{d-1});  A_o, b_o without their last row;
                     A_i - a_d 1^T, a_d being the last column, without that column (Eq. 6);  CRMS for RMS (Eq. 5)

Weights are (outputs, inputs), so A_o is recentred over its outputs, axis 0.  There are no initial values: a model is
converted, and computes what it did.  For training (`online=True`) the parameters remain those of the Pre-LN model and
are recentred in every forward pass (Sec. 3.5), so that gradients, and with them all optimizer steps, are its own.

The paper is silent, or the authors' code (ZixuanJiang/pre-rmsnorm-transformer) differs, in five places:
  D1  their LinearZeroMeanOutput needs a bias; ZeroMeanLinear does not.
  D2  the paper's norms have no gain and bias.  Both are folded into the layers that read the norm, which get a bias
      where they had none (a head tied to the embedding becomes its own), or stay with the norm if online.
  D3  online, x_0 is recentred as a sum, as in their GPT; their ViT recentres each of its three terms.
  D4  online, dropout behind A_o is refused: it takes the zero mean away, and Sec. 4.1 would recentre x behind it.
  D5  LayerScale is refused: it takes the zero mean away too (Sec. 4.1 holds it harmless) unless A_o, b_o contain it.
"""

import copy

import torch
from torch import Tensor, nn

from repro.models.affine import trailing_axes
from repro.models.gpt import GPT
from repro.models.slots import Pre
from repro.papers.layernorm.method import LayerNorm

__all__ = ["CRMSNorm", "ZeroMeanLinear", "to_pre_crmsnorm", "to_pre_rmsnorm"]

SUBLAYERS = ("Attention", "FeedForward", "Mlp", "GluMlp")
READERS, WRITERS = ("qkv", "gate", "up", "fc1"), ("out", "proj", "down", "fc2")  # their A_i and A_o


def recenter(x: Tensor, axis: int = -1) -> Tensor:
    """x - mean(x) (Sec. 3.1)."""
    return x - x.mean(axis, keepdim=True)


class Recenter(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return recenter(x)


class ZeroMeanLinear(nn.Linear):
    """y = A x + b less its mean over the outputs, by recentring A over its outputs, and b (Lemma 3.1).

    x: (..., in_features), y: (..., out_features).  Arguments, errors, parameters and state dict of torch.nn.Linear.
    """

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, recenter(self.weight, 0), None if self.bias is None else recenter(self.bias))


class RMSNorm(LayerNorm):
    """What a LayerNorm computes of zero-mean vectors: Eq. 2, eps within the root, and that LayerNorm's
    gain and bias.
    """

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.rms_norm(x, self.normalized_shape, self.weight, self.eps)
        return y if self.bias is None else y + self.bias


class CRMSNorm(LayerNorm):
    """RMS norm of the zero-mean vector (z, -sum z), of which z alone is kept (Eq. 5).

        y = z / sqrt((sum_i z_i^2 + (sum_i z_i)^2) / (n + 1) + eps)          z, y: (..., *normalized_shape), n numbers

    Arguments and state dict of torch.nn.LayerNorm: gain and bias follow, unless elementwise_affine=False (the paper's).
    TypeError for integers, ValueError where z does not end in normalized_shape.
    """

    def forward(self, z: Tensor) -> Tensor:
        axes = trailing_axes(z, self.normalized_shape)
        wide = z.to(torch.promote_types(z.dtype, torch.float32))  # at least float32 (docs/conventions.md)
        squares = wide.square().sum(axes, keepdim=True) + wide.sum(axes, keepdim=True).square()
        y = wide / (squares / (torch.Size(self.normalized_shape).numel() + 1) + self.eps).sqrt()
        y = y if self.weight is None else y * self.weight
        return (y if self.bias is None else y + self.bias).to(z.dtype)


NONE = (nn.Identity, Recenter, type(None))
SIZES = dict.fromkeys((nn.Linear, ZeroMeanLinear), ("out_features", "in_features")) | {
    nn.Embedding: ("num_embeddings", "embedding_dim"),
    nn.Conv2d: ("out_channels",),
}


def require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def is_timm(module: nn.Module, name: str) -> bool:
    return f"{type(module).__module__}.{type(module).__name__}" == f"timm.models.vision_transformer.{name}"


def anatomy(model: nn.Module) -> tuple[list[tuple[nn.Module, str, int]], dict[nn.Module, list[nn.Module]], str]:
    """What touches the main branch: the parameters that write it, with the axis along which they do; each norm, with
    the layers that read it; and the name of what stands before the first block.  Raises the errors of
    `to_pre_rmsnorm`."""
    require(
        isinstance(model, GPT) or is_timm(model, "VisionTransformer"), f"{type(model)}: write repro's GPT or timm's ViT"
    )
    if isinstance(model, GPT):
        written = [(table, "weight", 1) for table in (model.embedding, model.positions) if table is not None]
        start, norms = "after_embedding", {model.norm: [model.head]}
    else:
        written = [(model, name, 2) for name in ("pos_embed", "cls_token", "reg_token")]
        written += [(model.patch_embed.proj, "weight", 0), (model.patch_embed.proj, "bias", 0)]
        start, norms = "norm_pre", {model.fc_norm if isinstance(model.norm, NONE) else model.norm: [model.head]}
        require(isinstance(model.patch_embed.norm, NONE), "patch_embed.norm acts on the main branch: leave it out")
        require(model.global_pool in ("", "avg", "token"), f"global_pool='{model.global_pool}': write 'avg' or 'token'")
    require(isinstance(getattr(model, start), NONE), f"{start} acts on the main branch: leave it out")
    for i, block in enumerate(model.blocks):
        if is_timm(block, "Block"):
            require(isinstance(block.ls1, NONE), f"blocks.{i}: LayerScale (D5) must be multiplied into proj and fc2")
            halves = [(block.norm1, block.attn), (block.norm2, block.mlp)]
        else:
            halves = [(half.norm, half.sublayer) for half in block.children() if type(half) is Pre]
            require(
                len(halves) == 2, f"blocks.{i} is no Pre-LN block: write placement='pre' (on Post-LN see Appendix B)"
            )
        for norm, layer in halves:
            require(type(layer).__name__ in SUBLAYERS, f"blocks.{i}: {type(layer).__name__} is none of {SUBLAYERS}")
            norms[norm] = [getattr(layer, name) for name in READERS if getattr(layer, name, None) is not None]
            written += [
                (getattr(layer, name), p, 0) for name in WRITERS if hasattr(layer, name) for p in ("weight", "bias")
            ]
    for norm in norms:
        require(
            type(norm).__name__ == "LayerNorm" or type(norm) is RMSNorm,
            f"{norm!r} is no LayerNorm: write norm=nn.LayerNorm",
        )
    for layer in {layer for layer, *_ in written}.union(*norms.values()) - {model}:
        require(type(layer) in SIZES, f"{layer!r} reads or writes the main branch: write nn.Linear there")
    return [part for part in written if getattr(*part[:2]) is not None], norms, start


def put(owner: nn.Module, name: str, value: Tensor) -> None:
    """Another value for a parameter, which no other module shares any longer."""
    setattr(owner, name, nn.Parameter(value.detach().clone(), requires_grad=getattr(owner, name).requires_grad))
    vars(owner).update(zip(SIZES.get(type(owner), ()) if name == "weight" else (), value.shape, strict=False))


def to_pre_rmsnorm(model: nn.Module, *, online: bool = False) -> nn.Module:
    """A copy of a Pre-LN model as Pre-RMSNorm Transformer (Sec. 3.1): same inputs, outputs and width.

    model: repro.models.gpt.GPT, or the VisionTransformer of timm or repro.models.vit, with LayerNorms before its
    branches.
    online: for training (Sec. 3.5): parameters and their names stay.  Otherwise they are recentred and folded once,
    which costs nothing at inference, but trains otherwise; a model that was trained online may be converted so.  Norms
    within a branch (of queries and keys) are left as they are.

    ValueError for other models, Post-LN and other placements, other norms (BatchNorm, RMSNorm), no final norm, and
    whatever else acts on the main branch: LayerScale, a norm or a scale of the embeddings, dropout if online.
    """
    model = copy.deepcopy(model)
    written, norms, start = anatomy(model)
    for norm, readers in norms.items():
        norm.__class__ = RMSNorm  # with the same parameters
        for layer in () if online else readers:
            if norm.bias is not None:
                bias = layer.weight @ norm.bias + (0 if layer.bias is None else layer.bias)
                layer.bias = nn.Parameter(bias.detach(), requires_grad=layer.weight.requires_grad)
            if norm.weight is not None:
                put(layer, "weight", layer.weight * norm.weight)
        if not online:
            norm.weight, norm.bias, norm.elementwise_affine = None, None, False
    for owner, name, axis in written:
        if not online:
            put(owner, name, recenter(getattr(owner, name), axis))
        if isinstance(owner, nn.Linear):
            owner.__class__ = ZeroMeanLinear if online else nn.Linear
    setattr(model, start, Recenter() if online else nn.Identity())
    for name, module in model.named_modules() if online else ():
        behind = name.endswith(("dropout", "proj_drop", "drop2")) and module.p > 0
        require(not behind, f"{name} takes the zero mean of the main branch away (D4): set p to 0")
    return model


def to_pre_crmsnorm(model: nn.Module) -> nn.Module:
    """A copy of a Pre-LN model as Pre-CRMSNorm Transformer (Sec. 3.2, 3.3): same inputs and outputs, width d - 1.

    model and errors: as `to_pre_rmsnorm`.  For inference: its parameters do not train as those of the Pre-LN model do.
    """
    written, norms, _ = anatomy(model := to_pre_rmsnorm(model))
    for owner, name, axis in written:
        put(owner, name, getattr(owner, name).narrow(axis, 0, getattr(owner, name).shape[axis] - 1))
    for norm, readers in norms.items():
        norm.__class__, norm.normalized_shape = CRMSNorm, (norm.normalized_shape[0] - 1,)
        for layer in readers:
            put(layer, "weight", layer.weight[:, :-1] - layer.weight[:, -1:])
    return model
