"""What papers/dual_patchnorm measures: what the stem is invariant to, and a ViT trained with and without it."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import fmean, median

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from repro.data import fashion_mnist
from repro.models.vit import vit
from repro.papers.dual_patchnorm.method import DualPatchEmbed
from repro.train import cosine, cross_entropy, evaluate_classifier, fit, generator, seed_of


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
    "pre": partial(DualPatchEmbed, post=False),
    "post": partial(DualPatchEmbed, pre=False),
    "dpn": DualPatchEmbed,
    "image": ImageNorm,
    "crushed": Crushed,
}


def model_of(
    stem: Callable[..., nn.Module], patch: int, dim: int, depth: int, source: torch.Generator, channels: int = 1
) -> nn.Module:
    """A ViT for 28 x 28 pixels; positions start with the deviation 1 / sqrt(dim) of big_vision, which the authors use."""
    return vit(
        28,
        patch,
        dim,
        depth,
        heads=dim // 16,
        classes=10,
        channels=channels,
        generator=source,
        options={"embed_layer": stem},
        init=lambda model, g: nn.init.normal_(model.pos_embed, std=dim**-0.5, generator=g),
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
    """Logits, and gradients of all weights, as each patch p becomes a p + b, a from 0.1 to 10; as shares of the largest."""
    source, moved = generator("dual_patchnorm invariance", seed), {"logits_moved": [], "gradients_moved": []}

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=source, dtype=torch.float64).to(device)

    for _ in range(config.draws):
        model = (
            model_of(partial(STEMS[arm], eps=config.eps), config.patch, config.dim, config.depth, source, channels=3)
            .double()
            .to(device)
        )
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

        for name, before, after in zip(moved, outcome(x), outcome(a * x + b), strict=True):
            moved[name].append((after - before).abs().max() / before.abs().max())
    return {name: float(torch.stack(values).max()) for name, values in moved.items()}


# --- training --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Training:
    dim: int
    depth: int
    examples: int
    test: int
    steps: int
    batch: int
    lr: float
    every: int  # steps between two looks at the gradients
    patch: int


def root_mean_square(p: nn.Parameter) -> float:
    return p.grad.square().mean().sqrt().item()


def training(arm: str, seed: int, config: Training, device: torch.device) -> dict[str, float | list[float]]:
    """A ViT on Fashion-MNIST: test accuracy at the end, and the gradient of the stem's matrix over those of the blocks."""
    data, steps, shares = fashion_mnist.load(device), [], []
    source = generator("dual_patchnorm training", seed)
    model = model_of(STEMS[arm], config.patch, config.dim, config.depth, source).to(device)

    def look(step: int, model: nn.Module, loss: Tensor) -> None:
        if step % config.every == 0:
            blocks = [
                root_mean_square(p) for block in model.blocks for p in (block.attn.qkv.weight, block.mlp.fc1.weight)
            ]
            shares.append(root_mean_square(model.patch_embed.dense.weight) / median(blocks))
            steps.append(step)

    train = data.normalised(data.train_x[: config.examples]), data.train_y[: config.examples]
    fit(
        model,
        train,
        steps=config.steps,
        batch=config.batch,
        lr=config.lr,
        seed=seed_of("dual_patchnorm batches", seed),
        weight_decay=0.05,
        schedule=cosine(0.05),
        hook=look,
        amp=torch.bfloat16 if device.type == "cuda" else None,
    )
    score = evaluate_classifier(model, data.normalised(data.test_x[: config.test]), data.test_y[: config.test])
    return {"accuracy": score["accuracy"], "stem_gradient": fmean(shares), "stem_gradients": shares, "step": steps}
