"""What papers/sam_on measures: training on wrong labels with SAM in parts of the parameters, and exact statements."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from repro import tasks, trivial
from repro.models.convnet import cifar_resnet
from repro.models.mlp import MLP
from repro.papers.bn_only import norm_parameters
from repro.papers.sam import SAM
from repro.papers.sam_on.method import NORMS, SAMON
from repro.papers.wide_resnet import wide_resnet
from repro.train import cosine, cross_entropy, draws, evaluate_classifier, generator

# --- wrong labels -----------------------------------------------------------------------------------------------------


class Masked(SAM):
    """SAM whose e is 0 where a mask is; masks are those of the parameters, in their order."""

    def __init__(self, optimizer: torch.optim.Optimizer, rho: float, masks: list[Tensor], *, model: nn.Module):
        super().__init__(optimizer, rho, model=model)
        self.masks = masks

    def directions(self, parameters: list[Tensor]) -> list[Tensor]:
        kept = [p.grad * mask for p, mask in zip(parameters, self.masks, strict=True)]
        norm = torch.stack([part.norm() for part in kept]).norm()
        return [self.rho * part / norm.clamp_min(1e-30) for part in kept]


class RandomDirection(SAMON):
    """SAM-ON whose e has its length and a random direction."""

    def __init__(self, optimizer: torch.optim.Optimizer, rho: float, source: torch.Generator, *, model: nn.Module):
        super().__init__(optimizer, rho, model=model)
        self.source = source

    def directions(self, parameters: list[Tensor]) -> list[Tensor]:
        drawn = [torch.randn(p.shape, generator=self.source).to(p) for p in parameters]
        norm = torch.stack([part.norm() for part in drawn]).norm()
        return [self.rho * part / norm for part in drawn]


def masks_of(arm: str, model: nn.Module, source: torch.Generator) -> list[Tensor]:
    """1 where an arm perturbs: random entries as many as the norms have, all others, or all but the norms."""
    chosen = {id(p) for p in norm_parameters(model, NORMS).values()}
    parameters = list(model.parameters())
    if arm == "no_norms":
        return [torch.full_like(p, float(id(p) not in chosen)) for p in parameters]
    count, total = (
        sum(p.numel() for p in parameters if among(p)) for among in (lambda p: id(p) in chosen, lambda p: 1)
    )
    flat = torch.zeros(total).index_fill_(0, torch.randperm(total, generator=source)[:count], 1.0)
    flat = flat if arm == "random" else 1 - flat
    parts = flat.to(parameters[0]).split([p.numel() for p in parameters])
    return [part.view_as(p) for part, p in zip(parts, parameters, strict=True)]


@dataclass(frozen=True, kw_only=True)
class Noisy(tasks.Pictures):
    """noise: share of the training labels that are replaced by another class.

    strength multiplies what an arm is tuned by: rho, of the arms that perturb few numbers or nearly all, and of `sgd`
    the weight decay.
    """

    width: int
    noise: float
    strength: float
    rho_few: float
    rho_all: float
    decay: float
    sgd_decay: float
    radius: float = 0.01  # of sharpness, as a share of every weight
    batch: int = 128


@torch.enable_grad()
def sharpness(model: nn.Module, x: Tensor, y: Tensor, radius: float, batch: int) -> float:
    """Mean over batches of L(w + radius |w| sign(g)) - L(w), in evaluation mode: one step of adaptive l_inf ascent."""
    parameters, rises = list(model.parameters()), []
    for part, labels in zip(x.split(batch), y.split(batch), strict=True):
        before = cross_entropy(model(part), labels)
        slopes, kept = torch.autograd.grad(before, parameters), [p.detach().clone() for p in parameters]
        with torch.no_grad():
            for p, g in zip(parameters, slopes, strict=True):
                p.add_(radius * p.abs() * g.sign())
            rises.append(float(cross_entropy(model(part), labels) - before))
            for p, value in zip(parameters, kept, strict=True):
                p.copy_(value)
    return sum(rises) / len(rises)


def noisy_labels(arm: str, seed: int, config: Noisy, device: torch.device) -> tasks.Measures:
    """Accuracy on clean test images at the end, and how sharp the loss of the noisy training labels is there."""
    train, test = ((x.flatten(1), y) for x, y in config.load(device))
    source, (x, y) = generator("sam_on noise", seed), train
    wrong = torch.rand(len(y), generator=source) < config.noise
    shift = torch.randint(1, 10, (len(y),), generator=source)
    y = torch.where(wrong.to(device), (y + shift.to(device)) % 10, y)
    widths = [x.shape[1], config.width, config.width, 10]
    model = MLP(widths, norm=nn.BatchNorm1d, generator=generator("sam_on", seed)).to(device)
    masks = masks_of(arm, model, source) if arm in ("random", "no_norms", "no_random") else []
    few, most = config.strength * config.rho_few, config.strength * config.rho_all

    def optimizer(groups: list[dict], lr: float) -> torch.optim.Optimizer:
        decay = config.strength * config.sgd_decay if arm == "sgd" else config.decay
        base = torch.optim.SGD(groups, lr=lr, momentum=0.9, weight_decay=decay)
        match arm:
            case "sgd":
                return base
            case "sam":
                return SAM(base, most, model=model)
            case "sam_on":
                return SAMON(base, few, model=model)
            case "random_direction":
                return RandomDirection(base, few, source, model=model)
        return Masked(base, few if arm == "random" else most, masks, model=model)

    history = tasks.trained(model, (x, y), "sam_on batches", seed, config, optimizer=optimizer, schedule=cosine())
    model.eval()
    few_images = slice(0, 16 * config.batch)
    return {
        "accuracy": evaluate_classifier(model, *test)["accuracy"],
        "learnt_by_heart": evaluate_classifier(model, x[wrong], y[wrong])["accuracy"] if bool(wrong.any()) else 0.0,
        "sharpness": sharpness(model, x[few_images], y[few_images], config.radius, config.batch),
        **tasks.learning(history),
        **trivial.classes((x, y), test, config.trivial),
    }


# --- exact statements -------------------------------------------------------------------------------------------------


class AllGradients(SAMON):
    """A wrong SAM-ON, whose e is divided by the norm of all gradients."""

    def directions(self, parameters: list[Tensor]) -> list[Tensor]:
        every = [p.grad for group in self.param_groups for p in group["params"]]
        return [self.rho * p.grad / torch.stack([g.norm() for g in every]).norm() for p in parameters]


class ByName(SAMON):
    """SAM-ON that takes what is called norm or bn, and so misses the norms of shortcuts, here called skip."""

    def perturbed(self) -> list[Tensor]:
        return [p for name, p in self.model.named_parameters() if "norm" in name or "bn" in name]


class Subtracted(SAMON):
    """SAM-ON that comes back by subtracting e, which leaves rounding errors."""

    moved: tuple[tuple[Tensor, Tensor], ...] = ()

    def directions(self, parameters: list[Tensor]) -> list[Tensor]:
        found = super().directions(parameters)
        self.moved = tuple(zip(parameters, found, strict=True))
        return found

    @torch.no_grad()
    def restore(self) -> None:
        for p, e in self.moved:
            p.sub_(e)
        self.moved, self.before = (), []


@dataclass(frozen=True, kw_only=True)
class Ascent:
    width: int
    rho: float


KINDS = {"sam_on": SAMON, "all_gradients": AllGradients, "by_name": ByName, "subtracted": Subtracted, "everywhere": SAM}


def ascent(arm: str, seed: int, config: Ascent, device: torch.device) -> tasks.Measures:
    """Length of e, what moves outside the norms, which share of them stays, and what is left after the way back."""
    draw, worst = draws(device, "sam_on ascent", seed), tasks.Worst()
    source = generator("sam_on ascent", seed)
    model = cifar_resnet(8, width=config.width, shortcut="project", generator=source).to(device, torch.float64)
    optimizer = KINDS[arm](torch.optim.SGD(model.parameters(), lr=0.1), config.rho, model=model)
    x, y = draw(16, 3, 8, 8), torch.randint(10, (16,), generator=source).to(device)
    cross_entropy(model(x), y).backward()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer.ascend()
    moved = {name: p.detach() - before[name] for name, p in model.named_parameters()}
    inside = norm_parameters(model, NORMS)
    length = torch.stack([moved[name].norm() for name in moved]).norm()
    worst.record("length_error", (length / config.rho - 1).abs())
    worst.record("outside", torch.stack([e.abs().max() for name, e in moved.items() if name not in inside]).max())
    worst.record("missed", float(torch.cat([(moved[name] == 0).double() for name in inside]).mean()))
    optimizer.restore()
    worst.record("left", torch.stack([(p - before[name]).abs().max() for name, p in model.named_parameters()]).max())
    return worst


@dataclass(frozen=True, kw_only=True)
class Share:
    depth: int


def share(arm: str, seed: int, config: Share, device: torch.device) -> tasks.Measures:
    """Share of all parameters that are gains and shifts of norms; nothing is allocated."""
    source = torch.Generator(device="cpu")
    with torch.device("meta"):
        match arm:
            case "wide_resnet":
                model = wide_resnet(config.depth, 10, 100, generator=source)
            case "encoder":  # of ViT-S
                model = nn.TransformerEncoder(nn.TransformerEncoderLayer(384, 6, 1536), 12, nn.LayerNorm(384), False)
            case "resnet_20":
                model = cifar_resnet(20, generator=source)
    norms = sum(p.numel() for p in norm_parameters(model, NORMS).values())
    return {"share": norms / sum(p.numel() for p in model.parameters())}
