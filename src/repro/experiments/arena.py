"""The arena: every drop-in method of the suite in the same model, on the same data, with the same budget.

An arm "norm:rmsnorm.RMSNorm" puts `repro.papers.rmsnorm.RMSNorm` into the slot `norm` of a track's model.  The module
`control` holds negative controls, `torch`, `models` and `pytorch_optimizer` hold what no paper of the suite brought.
"base" changes nothing.  A method enters with its paper's recipe (`COMPANIONS`).  What a slot asks of a method:

    norm        name(n) -> Module over the last axis (n features); of a convnet over the channels of (B, C, H, W)
    act         name() -> element-wise Module
    placement   a class (sublayer, norm, dim, index, depth) -> Module, or a class whose instance is one
    init        name(model, generator) -> None
    weight      a subclass of nn.Conv2d
    feed_forward  name(width, hidden) -> Module of three matrices, at 2/3 of the base's hidden width (see `PARTS`)
    attention   what changes the attentions of a finished decoder (see `PARTS`)
    optimizer   an Optimizer class (groups, lr=), or a class that wraps one (here AdamW)
    pair        a norm and an optimizer at once (`PAIRS`): whether the one depends on the other

Weights start as N(0, 1 / width) and embeddings as N(0, 1): the usual 0.02 is right at width 2,500 and starves a width
of 64, where a track would only measure which norm repairs that.
"""

import copy
import functools
import inspect
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module

import torch
from torch import Tensor, nn

from repro import trivial
from repro.batched import fit_batched
from repro.data import fashion_mnist, fashion_mnist_m, prose
from repro.errors import Diverged
from repro.models import vit as vision
from repro.models.convnet import cifar_resnet
from repro.models.gpt import GPT, Attention, FeedForward
from repro.models.mlp import ResidualMLP
from repro.models.slots import Bare, Post, identity, scaled_gaussian
from repro.timing import compare, peak_bytes
from repro.train import (
    constant,
    cosine,
    cross_entropy,
    evaluate_classifier,
    evaluate_lm,
    fit,
    generator,
    make_optimizer,
    seed_of,
)

SLOTS = {
    "mlp": ("norm", "act", "placement", "init", "optimizer"),
    "convnet": ("norm", "act", "init", "weight", "optimizer"),
    "vit": ("norm", "act", "placement", "init", "optimizer"),
    "gpt": ("norm", "act", "placement", "feed_forward", "attention", "init", "optimizer", "pair"),
}


# --- controls: methods that are wrong on purpose ---------------------------------------------------------------------


class Broken(nn.Module):
    """A norm that centres and divides by ten instead of by the deviation."""

    def __init__(self, n: int):
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        return (x - x.mean(-1, keepdim=True)) / 10


class Fixed(nn.Conv2d):
    """A convolution whose weights stay as they were drawn."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.weight.requires_grad_(False)


class Noisy(torch.optim.AdamW):
    """AdamW on gradients to which noise of three times their own size has been added."""

    def __init__(self, params, lr: float):
        super().__init__(params, lr=lr, weight_decay=0.0)
        self.source = generator("arena noise")

    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    noise = torch.randn(p.shape, generator=self.source).to(p)
                    p.grad.add_(noise * (3 * p.grad.norm() / max(p.numel(), 1) ** 0.5))
        return super().step(closure)


def plain_sgd(groups: list[dict], lr: float) -> torch.optim.Optimizer:
    """Gradient descent without momentum, which is known to be far behind on Transformers."""
    return torch.optim.SGD(groups, lr=lr)


def he_bare(model: nn.Module, source: torch.Generator) -> None:
    """He et al. 2015 in every layer; the arm has no norm, so that the variance doubles in every residual branch."""
    scaled_gaussian(math.sqrt(2.0))(model, source)


def too_large(model: nn.Module, source: torch.Generator) -> None:
    """Weights six times as large as LeCun's."""
    scaled_gaussian(6.0)(model, source)


class Linear(nn.Module):
    """Two linear layers without a function between them, as large as the base's feed-forward layer."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.up = nn.Linear(width, 3 * hidden // 2, bias=False)
        self.down = nn.Linear(3 * hidden // 2, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.up(x))


def unread(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Every position reads its own value alone."""
    return v


CONTROLS: dict[str, dict[str, object]] = {
    "norm": {"identity": identity, "broken": Broken},
    "act": {"linear": nn.Identity},
    "placement": {"none": Bare},
    "init": {"he_bare": he_bare, "too_large": too_large},
    "weight": {"fixed": Fixed},
    "feed_forward": {"linear": Linear},
    "attention": {"off": unread},
    "optimizer": {"sgd": plain_sgd, "noisy": Noisy},
}


# --- what no paper of the suite brings -------------------------------------------------------------------------------


class Derf(nn.Module):
    """weight * erf(alpha x + shift) + bias, with alpha = 0.5 and shift = 0 at the start (arXiv:2512.10938)."""

    def __init__(self, n: int):
        super().__init__()
        self.alpha, self.shift = nn.Parameter(torch.tensor([0.5])), nn.Parameter(torch.zeros(1))
        self.weight, self.bias = nn.Parameter(torch.ones(n)), nn.Parameter(torch.zeros(n))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * torch.erf(self.alpha * x + self.shift) + self.bias


class Muon(torch.optim.Optimizer):
    """torch.optim.Muon on hidden matrices at the scale of Adam's steps, AdamW on all else, as its author has it."""

    def __init__(self, params, lr: float):
        params = list(params)
        matrices = [g for g in params if g.get("matrix")]
        others = [g for g in params if not g.get("matrix")]
        self.parts = [torch.optim.AdamW(others, lr=lr, weight_decay=0.0)] if others else []
        if matrices:
            muon = torch.optim.Muon(matrices, lr=lr, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
            self.parts.append(muon)
        super().__init__([{"params": [p for g in params for p in g["params"]]}], {"lr": lr})
        self.param_groups = [g for part in self.parts for g in part.param_groups]  # the schedule reaches the parts

    def step(self, closure=None):
        for part in self.parts:
            part.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        for part in self.parts:
            part.zero_grad(set_to_none)


def _torch(name: str, **options) -> Callable:
    return lambda groups, lr: getattr(torch.optim, name)(groups, lr=lr, **options)


def _library(name: str, **options) -> Callable:
    """An optimizer of pytorch_optimizer, without the weight decay that no other arm has."""

    def make(groups: list[dict], lr: float) -> torch.optim.Optimizer:
        import pytorch_optimizer

        return getattr(pytorch_optimizer, name)(groups, lr=lr, weight_decay=0.0, **options)

    return make


EXTRA: dict[str, dict[str, object]] = {
    "norm:models": {"Derf": Derf},
    "act:torch": {"Tanh": nn.Tanh, "SiLU": nn.SiLU, "LeakyReLU": nn.LeakyReLU},
    "placement:models": {"Post": Post},
    "optimizer:torch": {
        "SGD": _torch("SGD", momentum=0.9, nesterov=True),
        "AdamW": _torch("AdamW", weight_decay=0.0),
        "NAdam": _torch("NAdam"),
        "Adafactor": _torch("Adafactor", weight_decay=0.0),
        "Muon": Muon,
    },
    "optimizer:pytorch_optimizer": {
        "Lion": _library("Lion"),
        "SOAP": _library("SOAP"),
        "AdEMAMix": _library("AdEMAMix"),
        "ScheduleFreeAdamW": _library("ScheduleFreeAdamW"),
    },
}


PARTS = {  # what papers bring into a decoder beside what `provides:` names: the arms of two slots
    "feed_forward:glu_variants": ("FFNGLU", "FFNBilinear", "FFNReGLU", "FFNGEGLU", "FFNSwiGLU"),
    "attention:value_residual": ("resformer_", "svformer_"),
    "attention:relu_attention": ("relu_attention",),
}


PAIRS = {  # arm -> the arms whose methods it holds: the factorial of norms and optimizers
    "pair:dyt.DyT_Muon": ("norm:dyt.DyT", "optimizer:torch.Muon"),
    "pair:models.Derf_Muon": ("norm:models.Derf", "optimizer:torch.Muon"),
    "pair:rmsnorm.RMSNorm_Muon": ("norm:rmsnorm.RMSNorm", "optimizer:torch.Muon"),
}


def exchanged(method: Callable, model: GPT, config: "Track", source: torch.Generator) -> None:
    """Put a method of the slots `feed_forward` or `attention` into a finished decoder.

    A class takes the place of every feed-forward layer, a function of (model) changes the model, and one of queries,
    keys and values that of every attention.
    """
    if inspect.isclass(method):
        for holder in [m for m in model.modules() if isinstance(getattr(m, "sublayer", None), FeedForward)]:
            holder.sublayer = method(config.width, 2 * 4 * config.width // 3)
            for layer in (m for m in holder.sublayer.modules() if isinstance(m, nn.Linear)):
                with torch.no_grad():
                    layer.weight.normal_(0.0, config.width**-0.5, generator=source)
    elif len(parameters := inspect.signature(method).parameters) and next(iter(parameters)) == "model":
        method(model)
    else:
        causal = {"is_causal": True} if "is_causal" in parameters else {}
        for attention in (m for m in model.modules() if isinstance(m, Attention)):
            attention.attend = functools.partial(method, **causal)


def _snn(name: str) -> object:
    return getattr(import_module("repro.papers.snn"), name)


COMPANIONS: dict[str, Callable[[str], dict[str, object]]] = {  # arm -> the rest of its paper's recipe, by track
    "placement:peri_ln.PeriLN": lambda track: {"after_embedding": nn.LayerNorm} if track == "gpt" else {},
    "init:fixup.fixup_init_": lambda track: {"norm": identity},
    "init:control.he_bare": lambda track: {"norm": identity},
    "act:snn.SELU": lambda track: {"norm": identity, "init": _snn("lecun_normal_")},
    "optimizer:pytorch_optimizer.ScheduleFreeAdamW": lambda track: {"schedule": constant(0.1)},
    "optimizer:adamp.SGDP": lambda track: {"optimizer": _momentum("optimizer:adamp.SGDP")},
    "optimizer:sinkgd.SinkGD": lambda track: {"optimizer": _of_matrices("optimizer:sinkgd.SinkGD")},
    "optimizer:gradient_orthogonalization.Muon": lambda track: {
        "optimizer": _of_matrices("optimizer:gradient_orthogonalization.Muon", scale="match_rms_adamw")
    },
}


def _momentum(arm: str) -> Callable:
    """An optimizer that has no momentum by default, with the one of torch.SGD here and of its paper."""
    return lambda groups, lr: method_of(arm)(groups, lr=lr, momentum=0.9, nesterov=True)


def _of_matrices(arm: str, **options: object) -> Callable:
    """An optimizer of hidden matrices, which gives all else to its Adam at the same rate."""

    def make(groups: list[dict], lr: float) -> torch.optim.Optimizer:
        return method_of(arm)([{**group, "adam": not group["matrix"]} for group in groups], lr, **options)

    return make


@dataclass(frozen=True)
class Track:
    """One model and its training; `depth`, `batch`, `steps`, `width`, `lr` and `decay` are levels, two are tuned."""

    depth: int
    width: int
    batch: int
    steps: int
    lr: float
    decay: float = 0.0  # matrices are multiplied by 1 - lr * decay after each step; tuned for optimizers
    examples: int = 0  # training images; 0: all
    context: int = 0  # length of a text's windows
    heads: int = 4
    evaluations: int = 8  # points of the validation curve
    windows: int = 256  # held-out windows of a text
    amp: bool = False  # bfloat16 autocast


ADAMW = "optimizer:torch.AdamW"  # the base with its decay tuned: what optimizers are compared with


def arms_of(track: str) -> list[str]:
    """The arms of a track that no paper provides, controls last."""
    extra = [f"{place}.{name}" for place, names in (EXTRA | PARTS).items() for name in names]
    extra += PAIRS
    controls = [f"{slot}:control.{name}" for slot in SLOTS[track] for name in CONTROLS.get(slot, {})]
    return [arm for arm in extra if arm.partition(":")[0] in SLOTS[track]] + controls


def is_control(arm: str) -> bool:
    return ":control." in arm


def method_of(arm: str) -> object:
    """What an arm puts into its slot."""
    slot, _, place = arm.partition(":")
    module, _, name = place.partition(".")
    if module == "control":
        return CONTROLS[slot][name]
    if f"{slot}:{module}" in EXTRA:
        return EXTRA[f"{slot}:{module}"][name]
    return getattr(import_module(f"repro.papers.{module}"), name)


def slots_of(track: str, arm: str) -> dict[str, object]:
    """The keyword arguments of a model (and `optimizer`, `schedule` of the loop) that put an arm's method in place."""
    if arm == "base":
        return {}
    if arm in PAIRS:
        return {name: part for one in PAIRS[arm] for name, part in slots_of(track, one).items()}
    slot, method = arm.partition(":")[0], method_of(arm)
    if slot == "placement" and not (inspect.isclass(method) and issubclass(method, nn.Module)):
        method = method()
    if slot == "optimizer":
        method = optimizer(method)
    beside = COMPANIONS[arm](track) if arm in COMPANIONS else {}
    return {{"weight": "conv"}.get(slot, slot): method, **beside}


def optimizer(method: Callable) -> Callable:
    """`factory(groups, lr)` of an optimizer class, or of one that wraps the optimizer of the track."""
    if "lr" in inspect.signature(method).parameters:
        return lambda groups, lr: method(groups, lr=lr)
    return lambda groups, lr: method(make_optimizer("adamw", groups, lr))


def decayed(optimizer: torch.optim.Optimizer, decay: float) -> torch.optim.Optimizer:
    """An optimizer whose steps end with AdamW's decay of matrices, whatever its rule; gains and biases stay.

    Of Schedule-Free the sequence z, which it averages, is decayed too.
    """
    step = optimizer.step

    @functools.wraps(step)
    def stepped(*arguments: object) -> object:
        loss = step(*arguments)
        with torch.no_grad():
            for group in optimizer.param_groups:
                for p in (p for p in group["params"] if p.ndim >= 2):
                    for x in (p, optimizer.state[p].get("z") if p in optimizer.state else None):
                        if x is not None:
                            x.mul_(1 - group["lr"] * decay)
        return loss

    optimizer.step = stepped
    return optimizer


def hidden_matrices(model: nn.Module) -> list[dict]:
    """Parameter groups: the matrices of hidden layers (`matrix`: True), and all else."""
    outer = ("head", "stem", "embedding", "positions", "patches")
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, p in model.named_parameters():
        if p.requires_grad:
            groups[p.ndim == 2 and name.partition(".")[0] not in outer].append(p)
    return [{"params": params, "matrix": matrix} for matrix, params in groups.items() if params]


def build(track: str, slots: dict, config: Track, source: torch.Generator) -> nn.Module:
    """The track's model: LayerNorm (BatchNorm in the convnet), ReLU or GELU, Pre-LN, unless a slot says otherwise."""
    parts = [slots[k] for k in ("feed_forward", "attention") if k in slots]
    slots = {k: v for k, v in slots.items() if k not in ("optimizer", "schedule", "feed_forward", "attention")}
    if track == "mlp":
        return ResidualMLP(196, config.width, config.depth, 10, **{"norm": nn.LayerNorm, "generator": source, **slots})
    if track == "convnet":
        return cifar_resnet(config.depth, width=config.width, **slots, generator=source)
    if track == "vit":
        return vision.vit(32, 4, config.width, config.depth, heads=config.heads, classes=10, **slots, generator=source)
    scale = {"std": config.width**-0.5, "embedding_std": 1.0}
    model = GPT(256, config.context, config.width, config.depth, heads=config.heads, **scale, **slots, generator=source)
    for method in parts:
        exchanged(method, model, config, source)
    return model


def data_of(track: str, config: Track, device: torch.device) -> dict[str, tuple[Tensor, Tensor] | Tensor]:
    """Training and validation data of a track, in the form in which `fit` takes them."""
    if track == "gpt":
        corpus = prose.load(device)
        return {"train": corpus.train, "valid": corpus.valid}
    images = (fashion_mnist if track == "mlp" else fashion_mnist_m).load(device)
    pick = slice(config.examples or None)

    def ready(x: Tensor) -> Tensor:
        x = images.normalised(x)
        return nn.functional.avg_pool2d(x, 2) if track == "mlp" else x

    return {
        "train": (ready(images.train_x[pick]), images.train_y[pick]),
        "valid": (ready(images.valid_x), images.valid_y),
    }


def thresholds(track: str, data: dict) -> dict[str, float]:
    """Two losses: a run that ends above `fails_above` has failed; the base must end below `learns_below` to be judged.

    Of a text those of the letters' frequencies and of a table of pairs (`repro.trivial`), fitted on the training text;
    of ten classes 90 % of log 10, the loss of a guess.
    """
    if track != "gpt":
        return {"fails_above": 0.9 * math.log(10), "learns_below": 0.9 * math.log(10)}
    found = trivial.text(data["train"], data["valid"], ("unigram", "bigram"))
    return {"fails_above": found["trivial_unigram"], "learns_below": found["trivial_bigram"]}


def _settings(track: str, config: Track, slots: dict, data: dict) -> dict:
    """The arguments of `fit` that all arms share."""
    made: list[torch.optim.Optimizer] = []

    def factory(groups: list[dict], lr: float) -> torch.optim.Optimizer:
        made[:] = [slots["optimizer"](groups, lr)]
        return decayed(made[0], config.decay) if config.decay else made[0]

    def evaluate(model: nn.Module) -> dict[str, float]:
        averages = [one for one in made if hasattr(one, "eval")]  # Schedule-Free evaluates at its average
        for one in averages:
            one.eval()
        if track == "gpt":
            scores = evaluate_lm(model, data["valid"], config.context, windows=config.windows)
        else:
            scores = evaluate_classifier(model, *data["valid"])
        for one in averages:
            one.train()
        return scores

    return {
        "steps": config.steps,
        "batch": config.batch,
        "lr": config.lr,
        "schedule": slots.get("schedule", cosine(0.1)),
        "evaluate": evaluate,
        "eval_every": max(config.steps // config.evaluations, 1),
        "optimizer": factory if "optimizer" in slots else "adamw",
        "groups": hidden_matrices,
        "context": config.context or None,
        "amp": torch.bfloat16 if config.amp else None,
    }


def _measures(history, limits: dict[str, float]) -> dict[str, float | list[float]] | Diverged:
    if isinstance(history, Diverged):
        return history
    last = history.final
    return {
        "valid_nats": last["loss"],
        "valid_error": last["error"],
        "best_nats": min(history.curves["loss"]),
        "curve": history.curves["loss"],
        "steps": history.eval_steps,
        **limits,
    }


def trained(track: str, arm: str, seeds: list[int], config: Track, device: torch.device) -> list[dict | Diverged]:
    """Train the track's model with the method of `arm`; all seeds in one pass where that is faster (small MLPs)."""
    data, slots = data_of(track, config, device), slots_of(track, arm)
    models = [build(track, slots, config, generator("arena", track, seed)).to(device) for seed in seeds]
    settings, orders = _settings(track, config, slots, data), [seed_of("arena batches", track, seed) for seed in seeds]
    limits = thresholds(track, data)
    if track == "mlp" and isinstance(settings["optimizer"], str):
        settings.pop("groups")
        return [_measures(h, limits) for h in fit_batched(models, data["train"], seeds=orders, **settings)]
    results = []
    for model, seed in zip(models, orders, strict=True):
        try:
            history = fit(model, data["train"], seed=seed, channels_last=track == "convnet", **settings)
            results.append(_measures(history, limits))
        except Diverged as error:
            results.append(error)
    return results


def mlp_batch(arm: str, seeds: list[int], config: Track, device: torch.device) -> list[dict | Diverged]:
    return trained("mlp", arm, seeds, config, device)


def _one(track: str, arm: str, seed: int, config: Track, device: torch.device) -> dict:
    (result,) = trained(track, arm, [seed], config, device)
    if isinstance(result, Diverged):
        raise result
    return result


def convnet(arm: str, seed: int, config: Track, device: torch.device) -> dict:
    return _one("convnet", arm, seed, config, device)


def vit(arm: str, seed: int, config: Track, device: torch.device) -> dict:
    return _one("vit", arm, seed, config, device)


def gpt(arm: str, seed: int, config: Track, device: torch.device) -> dict:
    return _one("gpt", arm, seed, config, device)


# --- the cost of a step ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cost(Track):
    track: str = "mlp"
    blocks: int = 10
    calls: int = 1
    aa_limit: float = 0.05


def inputs(config: Cost, source: torch.Generator, device: torch.device) -> tuple[Tensor, Tensor]:
    """A batch of the track's shapes, of random numbers."""
    if config.track == "gpt":
        return tuple(torch.randint(256, (2, config.batch, config.context), generator=source).to(device))
    shape = (196,) if config.track == "mlp" else (3, 32, 32)
    x = torch.randn(config.batch, *shape, generator=source)
    return x.to(device), torch.randint(10, (config.batch,), generator=source).to(device)


def step_of(arm: str, seed: int, config: Cost, device: torch.device):
    """One whole training step of an arm: forward, backward, update."""
    slots, source = slots_of(config.track, arm), generator("arena cost", config.track, seed)
    model = build(config.track, slots, config, source).to(device)
    x, y = inputs(config, source, device)
    update = make_optimizer(slots.get("optimizer", "adamw"), hidden_matrices(model), 1e-4)

    def step() -> None:
        update.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=config.amp):
            loss = cross_entropy(model(x), y)
        loss.backward()
        update.step()

    return step


def cost_group(arms: list[str], seed: int, config: Cost, device: torch.device) -> dict[str, dict[str, float]]:
    """Seconds of a training step, all arms interleaved, and the most bytes alive during one beyond the weights."""
    steps = {arm: step_of(arm, seed, config, device) for arm in arms}
    timings = compare(
        steps,
        reference=arms[0],
        device=device,
        blocks=config.blocks,
        calls=config.calls,
        warmup=3,
        seed=seed,
        aa_limit=config.aa_limit,
    )
    return {
        arm: {"seconds": t.percentile(50), "peak_bytes": peak_bytes(steps[arm], device), "aa_gap": t.aa_gap}
        for arm, t in timings.items()
    }


# --- what fits -------------------------------------------------------------------------------------------------------


def tiny(track: str, depth: int | None = None) -> Cost:
    """A model of a few thousand weights, to try what fits."""
    depth = depth or (8 if track == "convnet" else 2)
    return Cost(track=track, depth=depth, width=8, batch=4, steps=1, lr=1e-4, context=6, heads=2)


def misfit(track: str, arm: str) -> str | None:
    """Why the method of `arm` cannot take part in a track, tried on a tiny model; None where it can."""
    config = tiny(track)
    try:
        slots, source = slots_of(track, arm), generator("arena fit")
        model = build(track, slots, config, source)
        step_of(arm, 0, config, torch.device("cpu"))()
        if track != "gpt":
            return None
        x, _ = inputs(config, source, torch.device("cpu"))
        other, changed = copy.deepcopy(model), x.clone()  # with the running statistics that the first pass meets
        changed[:, -1] = (changed[:, -1] + 1) % 256
        gap = (other(changed) - model(x))[:, :-1].abs().max()
    except (ImportError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else 'no message'}"
    return "later tokens leak into earlier ones" if gap > 1e-6 else None


def outputs_of(track: str, arm: str, depth: int) -> Iterator[Tensor]:
    """What a tiny model computes at the start and after each of three steps, in float64."""
    config, slots = tiny(track, depth), slots_of(track, arm)
    model = build(track, slots, config, generator("arena same", track, depth)).double()
    x, y = inputs(config, generator("arena same inputs", track), torch.device("cpu"))
    x = x if track == "gpt" else x.double()
    if "optimizer" in slots:
        update = slots["optimizer"](hidden_matrices(model), 1e-3)
    else:  # plain descent magnifies no rounding, as AdamW does where a gradient is zero
        update = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(4):
        update.zero_grad()
        logits = model(x)
        yield logits.detach().flatten()
        cross_entropy(logits, y).backward()
        update.step()


@functools.cache
def _of_the_base(track: str, arm: str, depth: int) -> list[Tensor]:
    return list(outputs_of(track, arm, depth))


def same_model(track: str, arm: str, depth: int) -> bool:
    """Whether an arm and the base are one model at this depth (Mix-LN without a Post-LN block, LayerNorm itself)."""
    if arm in ("base", ADAMW):
        return arm != "base"
    base = ADAMW if arm.startswith("optimizer:") else "base"
    pairs = zip(outputs_of(track, arm, depth), _of_the_base(track, base, depth), strict=True)
    return all(bool((ours - theirs).abs().max() < 1e-6) for ours, theirs in pairs)
