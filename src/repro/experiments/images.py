"""Image classifiers that several papers share, each on the set that its Config names.

vit                     a ViT of 49 or 64 tokens (patch 4), weights scaled to its width: dyt, slab, unified_norm,
                        dual_patchnorm
resnet                  a CIFAR ResNet whose norms see ghost batches: evonorm, weight_standardization, nf_resnet, nfnet,
                        fixup
sigmoids                784-100-100-100-10 with sigmoids, plain SGD, batches of 60: batchnorm, Section 4.1
permutation_invariant   784-1000-1000-10 with ReLU and Adam, at batches of 128 and 4: layernorm, Section 6.6

Arms name what they import as "module:attribute".  Arms of one seed start from the
same weights where they have the same.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from repro import trivial
from repro.models.convnet import cifar_resnet
from repro.models.mlp import MLP
from repro.models.norms import GhostBatchNorm
from repro.models.slots import fan_in, fan_out, gaussian, scaled_gaussian
from repro.models.vit import scaled_to_width
from repro.models.vit import vit as vision_transformer
from repro.tasks import Measures, Pictures, learning, trained
from repro.train import cosine, evaluate_classifier, generator


def named(name: str) -> Callable:
    """The attribute that "module:attribute" names."""
    module, attribute = name.split(":")
    return getattr(import_module(module), attribute)


@dataclass(frozen=True)
class Arm:
    """norm and its options as (name, value), where the value "steps", "warmup" or "groups" is that of the Config.

    conv, act   of a ResNet
    network     a builder that takes the place of the ResNet's: network(config, generator) -> module
    patches     the embedding of a ViT's patches, and its options
    clip        a function of the parameters that changes their gradients, or a bound of their norm
    groups      parameter groups: groups(model)
    weights     of a sigmoid network: gaussian (deviation 0.1) or glorot
    head        whether the logits are normalised too
    """

    norm: str = "repro.models.slots:identity"
    options: tuple[tuple[str, object], ...] = ()
    conv: str = "torch.nn:Conv2d"
    act: str = "torch.nn:ReLU"
    network: str | None = None
    patches: str | None = None
    patch_options: tuple[tuple[str, object], ...] = ()
    clip: str | float | None = None
    groups: str | None = None
    weights: str = "gaussian"
    head: bool = False


ARMS = {
    # vit
    "vit_layernorm": Arm("torch.nn:LayerNorm"),
    "vit_rmsnorm": Arm("repro.papers.rmsnorm:RMSNorm"),
    "vit_dyt": Arm("repro.papers.dyt:DyT"),
    "vit_batchnorm": Arm("repro.experiments.images:TokenBatchNorm"),
    "vit_repbn": Arm("repro.papers.slab:RepBN"),
    "vit_prepbn": Arm("repro.papers.slab:PRepBN", (("total_steps", "steps"),)),
    "vit_unified_norm": Arm(
        "repro.papers.unified_norm:UnifiedNorm", (("warmup_iters", "warmup"), ("outlier_filtration", True))
    ),
    "vit_dual_patchnorm": Arm("torch.nn:LayerNorm", patches="repro.papers.dual_patchnorm:DualPatchEmbed"),
    "vit_patchnorm_before": Arm(
        "torch.nn:LayerNorm", patches="repro.papers.dual_patchnorm:DualPatchEmbed", patch_options=(("post", False),)
    ),
    "vit_patchnorm_after": Arm(
        "torch.nn:LayerNorm", patches="repro.papers.dual_patchnorm:DualPatchEmbed", patch_options=(("pre", False),)
    ),
    "vit_identity": Arm(),
    # resnet
    "batchnorm": Arm("torch.nn:BatchNorm2d"),
    "ghost_batchnorm": Arm("repro.experiments.images:ghost", (("size", "ghost"),)),
    "groupnorm": Arm("repro.experiments.images:groups_of", (("groups", "groups"),)),
    "groupnorm_ws": Arm(
        "repro.experiments.images:groups_of", (("groups", "groups"),), "repro.papers.weight_standardization:WSConv2d"
    ),
    "ghost_batchnorm_ws": Arm(
        "repro.experiments.images:ghost", (("size", "ghost"),), "repro.papers.weight_standardization:WSConv2d"
    ),
    "batch_channel_norm_ws": Arm(
        "repro.papers.weight_standardization:BatchChannelNorm",
        (("num_groups", "groups"),),
        "repro.papers.weight_standardization:WSConv2d",
    ),
    "nf_resnet": Arm(network="repro.experiments.images:norm_free"),
    "ghost4_batchnorm": Arm("repro.experiments.images:ghost", (("size", 4),)),
    "groupnorm_unequal": Arm(
        "repro.experiments.images:groups_of",
        (("groups", "groups"),),
        "repro.papers.weight_standardization.experiment:UnequalConv2d",
    ),
    "evonorm_s0": Arm(network="repro.papers.evonorm.experiment:s0_network"),
    "evonorm_b0": Arm(network="repro.papers.evonorm.experiment:b0_network"),
    "evonorm_bare": Arm(network="repro.papers.evonorm.experiment:bare_network"),
    "nf_resnet_without_ws": Arm(network="repro.papers.nf_resnet.experiment:without_ws"),
    "nf_resnet_agc": Arm(network="repro.experiments.images:norm_free", clip="repro.papers.nfnet:adaptive_clip_grad_"),
    "nf_resnet_clipped": Arm(network="repro.experiments.images:norm_free", clip=1.0),
    "fixup": Arm(network="repro.experiments.images:fixed_up", groups="repro.papers.fixup:fixup_groups"),
    "no_norm": Arm(),
    # sigmoids
    "sigmoid_baseline": Arm(),
    "sigmoid_batchnorm": Arm("repro.papers.batchnorm:BatchNorm"),
    "sigmoid_glorot": Arm(weights="glorot"),
    # permutation_invariant
    "mlp_layernorm": Arm("repro.papers.layernorm:LayerNorm"),
    "mlp_batchnorm": Arm("torch.nn:BatchNorm1d"),
    "mlp_batchnorm_all": Arm("torch.nn:BatchNorm1d", head=True),
    "mlp_rmsnorm": Arm("repro.papers.rmsnorm:RMSNorm"),
    "mlp_none": Arm(),
}


class TokenBatchNorm(nn.BatchNorm1d):
    """BatchNorm over the tokens of (B, T, D)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(0, -2)).view_as(x)


def ghost(n: int, size: int) -> nn.Module:
    """BatchNorm over `size` images at a time."""
    return GhostBatchNorm(n, size)


def groups_of(n: int, groups: int) -> nn.Module:
    """GroupNorm with `groups` groups."""
    return nn.GroupNorm(groups, n)


def _norm(kind: Arm, config: Pictures) -> Callable[[int], nn.Module]:
    """The norm slot of an arm: options that name a setting of the Config take its value."""
    numbers = {"warmup": round(getattr(config, "warmup", 0) * config.steps), "steps": config.steps}
    options = {
        name: numbers.get(value, getattr(config, value, value)) if isinstance(value, str) else value
        for name, value in kind.options
    }
    return partial(named(kind.norm), **options) if options else named(kind.norm)


def _scored(
    model: nn.Module,
    name: str,
    seed: int,
    config: Pictures,
    device: torch.device,
    flat: bool = False,
    **options: object,
) -> Measures:
    """Train and measure: accuracy and loss on the test images, their curves, and the trivial predictor."""
    train, test = config.load(device)
    if flat:
        train, test = ((x.flatten(1), y) for x, y in (train, test))
    model.to(device)
    shown = min(len(test[1]), config.shown or len(test[1]))  # a curve may be measured on fewer images
    history = trained(
        model,
        train,
        name,
        seed,
        config,
        evaluate=lambda model: evaluate_classifier(model, test[0][:shown], test[1][:shown]),
        eval_every=config.eval_every or None,
        **options,
    )
    last = evaluate_classifier(model, *test)
    beside = trivial.classes(train, test, config.trivial)
    return {
        "accuracy": last["accuracy"],
        "error": last["error"],
        "val_nats": last["loss"],
        "train_nats": evaluate_classifier(model, train[0][: len(test[1])], train[1][: len(test[1])])["loss"],
        "accuracy_curve": history.curves["accuracy"],
        "loss_curve": history.curves["loss"],
        "steps": history.eval_steps,
        **learning(history),
        **beside,
        **{f"{predictor}_error": 1 - value for predictor, value in beside.items()},
    }


# --- vit --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Vit(Pictures):
    """warmup: share of the steps; scaled: initial weights scaled to the width; shown: test images of the curves."""

    patch: int
    dim: int
    depth: int
    warmup: float = 0.05
    weight_decay: float = 0.05
    smoothing: float = 0.1
    clip: float = 1.0
    scaled: bool = True
    eval_every: int = 0
    shown: int = 0


def matrices_decay(model: nn.Module) -> list[dict]:
    """Weight decay for matrices alone: none for gains, biases and other vectors."""
    flat = [p for p in model.parameters() if p.ndim < 2]
    return [{"params": [p for p in model.parameters() if p.ndim >= 2]}, {"params": flat, "weight_decay": 0.0}]


def vit(arm: str, seed: int, config: Vit, device: torch.device) -> Measures:
    """A ViT with AdamW, a cosine and label smoothing."""
    kind = ARMS[arm]
    options = {}
    if kind.patches is not None:
        options["embed_layer"] = partial(named(kind.patches), **dict(kind.patch_options))
    model = vision_transformer(
        config.side,
        config.patch,
        config.dim,
        config.depth,
        heads=max(1, config.dim // 16),
        classes=10,
        channels=config.channels,
        norm=_norm(kind, config),
        init=scaled_to_width if config.scaled else None,
        options=options,
        generator=generator("images vit", seed),
    )
    return _scored(
        model,
        "images vit batches",
        seed,
        config,
        device,
        weight_decay=config.weight_decay,
        groups=matrices_decay,
        schedule=cosine(config.warmup),
        clip=config.clip or None,
        loss=partial(F.cross_entropy, label_smoothing=config.smoothing),
    )


# --- resnet -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ResNet(Pictures):
    """depth 6n + 2; width: channels of the first stage; ghost: images over which ghost_batchnorm normalises."""

    depth: int
    width: int
    ghost: int
    groups: int
    warmup: float = 0.05
    weight_decay: float = 5e-4
    alpha: float = 0.2  # of the norm-free network
    clipping: float = 0.01  # of AGC
    eval_every: int = 0
    shown: int = 0


def norm_free(config: ResNet, source: torch.Generator) -> nn.Module:
    """An NF-ResNet of the same depth and width."""
    from repro.papers.nf_resnet import nf_resnet

    return nf_resnet(config.depth, width=config.width, channels=config.channels, alpha=config.alpha, generator=source)


def fixed_up(config: ResNet, source: torch.Generator) -> nn.Module:
    """A ResNet of the same depth and width with Fixup."""
    from repro.papers.fixup import fixup_resnet

    return fixup_resnet(config.depth, width=config.width, channels=config.channels, generator=source)


def resnet(arm: str, seed: int, config: ResNet, device: torch.device) -> Measures:
    """A ResNet with Nesterov's momentum and a cosine; every arm sees the same batches."""
    kind, source = ARMS[arm], generator("images resnet", seed)
    if kind.network is not None:
        model = named(kind.network)(config, source)
    else:
        model = cifar_resnet(
            config.depth,
            width=config.width,
            channels=config.channels,
            norm=_norm(kind, config),
            act=named(kind.act),
            conv=named(kind.conv),
            shortcut="project",
            generator=source,
        )
    clip = partial(named(kind.clip), clipping=config.clipping) if isinstance(kind.clip, str) else kind.clip
    return _scored(
        model,
        "images resnet batches",
        seed,
        config,
        device,
        optimizer="nesterov",
        weight_decay=config.weight_decay,
        groups=matrices_decay if kind.groups is None else named(kind.groups),
        schedule=cosine(config.warmup),
        clip=clip,
    )


# --- MNIST at the papers' own settings --------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Sigmoids(Pictures):
    """The network of batchnorm, Section 4.1: `depth` layers of `width` sigmoids; the paper takes 50,000 steps of 60."""

    batch: int = 60
    width: int = 100
    depth: int = 3
    data: str = "mnist"
    eval_every: int = 0
    shown: int = 0
    watched: int = 2_000  # test images of which percentiles are taken


def sigmoids(arm: str, seed: int, config: Sigmoids, device: torch.device) -> Measures:
    """Test accuracy along the run; the 15, 50 and 85 percentiles of what a typical last sigmoid reads (Figure 1)."""
    kind = ARMS[arm]
    glorot = scaled_gaussian(1.0, lambda layer: (fan_in(layer) + fan_out(layer)) / 2)
    model = MLP(
        [config.channels * config.side**2, *[config.width] * config.depth, 10],
        norm=_norm(kind, config),
        act=nn.Sigmoid,
        init=glorot if kind.weights == "glorot" else gaussian(0.1),
        generator=generator("images sigmoids", seed),
    )
    measures = _scored(
        model, "images sigmoids batches", seed, config, device, flat=True, optimizer="sgd", schedule="constant"
    )
    seen: list[Tensor] = []
    hook = model.hidden[-1].act.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    evaluate_classifier(model, *(t[: config.watched] for t in config.load(device)[1]))
    hook.remove()
    shares = torch.tensor([0.15, 0.5, 0.85], device=device)
    low, middle, high = torch.quantile(torch.cat(seen), shares, dim=0).median(1).values.tolist()
    return {**measures, "low": low, "middle": middle, "high": high}


@dataclass(frozen=True, kw_only=True)
class PermutationInvariant(Pictures):
    """The network of layernorm, Section 6.6: two layers of `width` ReLUs."""

    width: int = 1_000
    data: str = "mnist"
    eval_every: int = 0
    shown: int = 0


def permutation_invariant(arm: str, seed: int, config: PermutationInvariant, device: torch.device) -> Measures:
    """Test error and training loss after the last step; `mlp_batchnorm_all` normalises the logits too."""
    kind = ARMS[arm]
    norm = _norm(kind, config)
    model = MLP(
        [config.channels * config.side**2, config.width, config.width, 10],
        norm=norm,
        act=nn.ReLU,
        generator=generator("images permutation_invariant", seed),
    )
    if kind.head:
        model.head = nn.Sequential(model.head, norm(10))
    return _scored(model, "images permutation_invariant batches", seed, config, device, flat=True, optimizer="adam")
