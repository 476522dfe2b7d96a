"""What papers/bn_only measures: residual networks of which a part is trained, counts, and what stays as it was."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from repro import tasks, trivial
from repro.models.convnet import ConvNet, cifar_resnet
from repro.papers.bn_only import norm_parameters, train_only_norms_
from repro.train import cosine, cross_entropy, evaluate_classifier, generator

# --- arms -------------------------------------------------------------------------------------------------------------


def random_two_(model: nn.Module, source: torch.Generator) -> None:
    """Train two random weights for each channel of every convolution, as many as BatchNorm has, and nothing else."""
    train_only_norms_(model, generator=source)
    for p in model.parameters():
        p.requires_grad_(False)
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            scores = torch.rand(layer.weight.flatten(1).shape, generator=source)
            chosen = torch.zeros_like(scores).scatter_(1, scores.topk(2, 1).indices, 1.0)
            keep = chosen.view_as(layer.weight).to(layer.weight)
            layer.weight.requires_grad_(True)
            layer.weight.register_hook(lambda g, keep=keep: g * keep.to(g))


def choose_(arm: str, model: ConvNet, source: torch.Generator) -> None:
    """Let that part of a model be trained which the arm names; gamma starts as U(0, 1) in all of them."""
    if arm.startswith("random"):
        random_two_(model, source)
        return
    train_only_norms_(model, generator=source)
    if arm.startswith("all"):
        for p in model.parameters():
            p.requires_grad_(True)
    elif arm.startswith("output"):
        for p in model.parameters():
            p.requires_grad_(False)
        for p in model.head.parameters():
            p.requires_grad_(True)


# --- accuracy ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Parts(tasks.Pictures):
    """width: channels of the first stage; the depth is part of the arm's name."""

    width: int
    data: str = "fashion_mnist_m"
    warmup: float = 0.1


def parts(arm: str, seed: int, config: Parts, device: torch.device) -> tasks.Measures:
    """Test accuracy of a network of which a part is trained, and the share of channels that are as good as off."""
    train, test = config.load(device)
    source = generator("bn_only", seed)
    depth = int(arm.rpartition("_")[2])
    model = cifar_resnet(
        depth, width=config.width, channels=config.channels, shortcut="project", bias=False, generator=source
    )
    choose_(arm, model, source)
    model.to(device)
    history = tasks.trained(
        model,
        train,
        "bn_only batches",
        seed,
        config,
        optimizer="momentum",
        groups=lambda model: [{"params": [p for p in model.parameters() if p.requires_grad]}],
        schedule=cosine(config.warmup),
    )
    gammas = torch.cat([p.detach().flatten() for name, p in norm_parameters(model).items() if name.endswith("weight")])
    return {
        "accuracy": evaluate_classifier(model, *test)["accuracy"],
        "off": float((gammas.abs() < 0.01).float().mean()),
        "trained": float(sum(p.numel() for p in model.parameters() if p.requires_grad)),
        **tasks.learning(history),
        **trivial.classes(train, test, config.trivial),
    }


# --- counts, and what is frozen ---------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Counts:
    depths: tuple[int, ...]
    printed: tuple[int, ...]


def counts(arm: str, seed: int, config: Counts, device: torch.device) -> dict[str, float]:
    """Largest difference between the numbers of trained parameters and those of the paper's networks."""
    shortcut, worst = "pad" if arm == "without_shortcuts" else "project", tasks.Worst()
    for depth, printed in zip(config.depths, config.printed, strict=True):
        with torch.device("meta"):
            model = cifar_resnet(depth, shortcut=shortcut, bias=False, generator=torch.Generator(device="cpu"))
        worst.record("count_error", abs(float(sum(p.numel() for p in norm_parameters(model).values()) - printed)))
    return dict(worst)


@dataclass(frozen=True, kw_only=True)
class Frozen:
    depth: int
    width: int
    steps: int


def frozen(arm: str, seed: int, config: Frozen, device: torch.device) -> dict[str, float]:
    """How far what should stand still has moved after some steps of SGD, and that running statistics have moved."""
    source = generator("bn_only frozen", seed)
    model = cifar_resnet(config.depth, width=config.width, shortcut="project", bias=False, generator=source).to(device)
    choose_(f"{'output' if arm == 'output' else 'norms'}_{config.depth}", model, source)
    names = set(norm_parameters(model))
    before = {name: value.detach().clone() for name, value in model.state_dict().items()}
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.1, momentum=0.9)
    x = torch.randn(8, 3, 8, 8, generator=source).to(device)
    y = torch.randint(10, (8,), generator=source).to(device)
    for _ in range(config.steps):
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()
        optimizer.step()
    moved: dict[str, Tensor] = {name: (value - before[name]).abs().max() for name, value in model.state_dict().items()}
    statistics = {name for name in moved if "running" in name or "num_batches" in name}
    return {
        "frozen_change": float(max(moved[name] for name in moved if name not in names | statistics)),
        "norms_change": float(min(moved[name] for name in names)),
        "statistics_change": float(min(moved[name] for name in statistics)),
    }
