"""What papers/dual_patchnorm measures: what the stem is invariant to, and a ViT trained with and without it."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from statistics import fmean, median

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from repro.models.vit import scaled_to_width, vit
from repro.papers.dual_patchnorm.method import DualPatchEmbed
from repro.tasks import Measures, Pictures, Worst, classify
from repro.train import cosine, cross_entropy, generator


class ImageNorm(DualPatchEmbed):
    """LN0 with the statistics of the whole image in place of each patch's, a known mistake."""

    def forward(self, x: Tensor) -> Tensor:
        p = self.patches(F.layer_norm(x, x.shape[1:], eps=self.ln0.eps))
        return self.ln1(self.dense(p * self.ln0.weight + self.ln0.bias))


class Crushed(DualPatchEmbed):
    """Gains fixed at 0.01, so that the positions drown the pixels."""

    def reset_parameters(self) -> None:
        super().reset_parameters()
        for norm in (self.ln0, self.ln1):
            nn.init.constant_(norm.weight.requires_grad_(False), 0.01)


STEMS: dict[str, Callable[..., nn.Module]] = {
    "none": partial(DualPatchEmbed, pre=False, post=False),
    "longer": partial(DualPatchEmbed, pre=False, post=False),
    "pre": partial(DualPatchEmbed, post=False),
    "post": partial(DualPatchEmbed, pre=False),
    "dpn": DualPatchEmbed,
    "image": ImageNorm,
    "crushed": Crushed,
}


def model_of(
    stem: Callable[..., nn.Module],
    config: "Invariance | Training",
    source: torch.Generator,
    *,
    side: int = 28,
    channels: int = 1,
    scaled: bool = False,
) -> nn.Module:
    """A ViT; positions start with the deviation 1 / sqrt(dim) of big_vision, which the authors use."""

    def init(model: nn.Module, source: torch.Generator) -> None:
        nn.init.normal_(model.pos_embed, std=config.dim**-0.5, generator=source)
        if scaled:
            scaled_to_width(model, source)

    return vit(
        side,
        config.patch,
        config.dim,
        config.depth,
        heads=config.dim // 16,
        classes=10,
        channels=channels,
        generator=source,
        options={"embed_layer": stem},
        init=init,
    )


# --- invariance ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Invariance:
    patch: int
    dim: int
    depth: int
    images: int
    draws: int
    eps: float


def invariance(arm: str, seed: int, config: Invariance, device: torch.device) -> dict[str, float]:
    """Logits, and gradients of all weights, as each patch p becomes a p + b, a from 0.1 to 10; as shares of the
    largest.
    """
    source, worst = generator("dual_patchnorm invariance", seed), Worst()

    def draw(*shape: int) -> Tensor:  # from the generator that draws the models too
        return torch.randn(*shape, generator=source, dtype=torch.float64).to(device)

    for _ in range(config.draws):
        model = model_of(partial(STEMS[arm], eps=config.eps), config, source, channels=3).double().to(device)
        for name, parameter in model.named_parameters():
            if ".ln" in name or "norm" in name:  # no gain is 1 and no bias 0
                parameter.data += 0.3 * draw(*parameter.shape)
        x, y = 0.3 * draw(config.images, 3, 28, 28), torch.randint(10, (config.images,), generator=source).to(device)
        grid = 28 // config.patch
        a, b = (
            t.repeat_interleave(config.patch, 2).repeat_interleave(config.patch, 3)
            for t in (
                10 ** draw(config.images, 1, grid, grid).clamp(-1, 1),
                draw(config.images, 1, grid, grid).clamp(-1, 1),
            )
        )

        def outcome(x: Tensor, model: nn.Module = model, y: Tensor = y) -> tuple[Tensor, Tensor]:
            logits = model(x)
            slopes = torch.autograd.grad(cross_entropy(logits, y), list(model.parameters()))
            return logits.detach(), torch.cat([slope.flatten() for slope in slopes])

        names = ("logits_moved", "gradients_moved")
        for name, before, after in zip(names, outcome(x), outcome(a * x + b), strict=True):
            worst.relative(name, after, before)
    return worst


# --- training --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Training(Pictures):
    patch: int
    dim: int
    depth: int
    every: int  # steps between two looks at the gradients
    scaled: bool = False  # initial weights scaled to the width
    crop: int = 0  # pixels by which training images are shifted at random; they are then mirrored too


def shifted(x: Tensor, source: torch.Generator, *, crop: int) -> Tensor:
    """Each image moved by up to `crop` pixels, zeros coming in, and mirrored with probability 1/2."""
    side, (down, right) = x.shape[-1], torch.randint(2 * crop + 1, (2, len(x), 1), generator=source).to(x.device)
    mirrored = torch.rand(len(x), 1, generator=source).to(x.device) < 0.5
    row, column = (torch.arange(side, device=x.device) + start for start in (down, right))
    column = torch.where(mirrored, column.flip(1), column)
    image = torch.arange(len(x), device=x.device)[:, None, None]
    return F.pad(x, (crop,) * 4)[image, :, row[:, :, None], column[:, None, :]].permute(0, 3, 1, 2)


def root_mean_square(p: nn.Parameter) -> float:
    return p.grad.square().mean().sqrt().item()


def training(arm: str, seed: int, config: Training, device: torch.device) -> Measures:
    """A ViT on pictures: test accuracy at the end, and the gradient of the stem's matrix over those of the blocks."""
    steps, shares, source = [], [], generator("dual_patchnorm training", seed)
    config = replace(config, steps=2 * config.steps) if arm == "longer" else config
    model = model_of(STEMS[arm], config, source, side=config.side, channels=config.channels, scaled=config.scaled)

    def look(step: int, model: nn.Module, loss: Tensor) -> None:
        if step % config.every == 0:
            blocks = [
                root_mean_square(p) for block in model.blocks for p in (block.attn.qkv.weight, block.mlp.fc1.weight)
            ]
            shares.append(root_mean_square(model.patch_embed.dense.weight) / median(blocks))
            steps.append(step)

    scores = classify(
        model,
        "dual_patchnorm batches",
        seed,
        config,
        device,
        weight_decay=0.05,
        schedule=cosine(0.05),
        hook=look,
        augment=partial(shifted, crop=config.crop) if config.crop else None,
    )
    return {**scores, "stem_gradient": fmean(shares), "stem_gradients": shares, "step": steps}
