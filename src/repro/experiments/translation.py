"""English to German with the encoder-decoder Transformer, for rmsnorm, scalenorm, powernorm and unified_norm.

Sentence pairs are those of the LibreOffice help (`repro.data.translation`), cut into pieces by one byte pair encoding
of both languages that is learnt on the training side.  Pairs of more than `length` pieces a side are left out.  Arms of
one seed start from the same weights.  Losses are nats per target piece, END included; the trivial predictors are
n-grams of the target side, which know nothing of the source.
"""

import math
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib import import_module

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from repro import trivial
from repro.data import bpe, original
from repro.data import translation as libreoffice
from repro.data.kinds import END, PAD, START, Pairs
from repro.models.slots import Norm
from repro.models.transformer import Transformer
from repro.tasks import Measures, Training, learning, trained
from repro.train import Schedule, cosine, generator, inverse_sqrt, measured


@dataclass(frozen=True)
class Arm:
    """What differs from the Transformer of 2017: names are "module:attribute", so that an arm depends on its own paper.

    options    of the norm, as (name, value)
    warmup     False: the rate does not rise at the start
    trained    False: no step is taken
    """

    norm: str
    placement: str = "repro.models.slots:Post"
    options: tuple[tuple[str, object], ...] = ()
    final: str | None = None  # another norm after each stack
    embedding: str | None = None  # fixed(model): changes the embedding of the finished model
    warmup: bool = True
    trained: bool = True


ARMS = {
    "layernorm": Arm("torch.nn:LayerNorm"),
    "layernorm_cold": Arm("torch.nn:LayerNorm", warmup=False),
    "layernorm_pre": Arm("torch.nn:LayerNorm", "repro.models.slots:Pre"),
    "layernorm_pre_cold": Arm("torch.nn:LayerNorm", "repro.models.slots:Pre", warmup=False),
    "rmsnorm": Arm("repro.papers.rmsnorm:RMSNorm"),
    "rmsnorm_pre": Arm("repro.papers.rmsnorm:RMSNorm", "repro.models.slots:Pre"),
    "prmsnorm": Arm("repro.papers.rmsnorm:PartialRMSNorm", options=(("p", 0.0625),)),
    "scalenorm_pre": Arm("repro.papers.scalenorm:ScaleNorm", "repro.models.slots:Pre"),
    "scalenorm_pre_cold": Arm("repro.papers.scalenorm:ScaleNorm", "repro.models.slots:Pre", warmup=False),
    "scalenorm": Arm("repro.papers.scalenorm:ScaleNorm"),
    "batchnorm": Arm("repro.experiments.translation:TokenBatchNorm"),
    "powernorm": Arm("repro.papers.powernorm:PowerNorm", options=(("warmup_iters", 400),)),
    "powernorm_v": Arm("repro.papers.powernorm:PowerNormV"),
    "unified_norm": Arm("repro.papers.unified_norm:UnifiedNorm", options=(("warmup_iters", 400),)),
    # controls
    "halved_gain": Arm("repro.experiments.translation:HalvedNorm"),
    "unit_scale_pre": Arm("repro.experiments.translation:UnitScale", "repro.models.slots:Pre"),
    "identity": Arm("repro.models.slots:identity"),
    "untrained": Arm("torch.nn:LayerNorm", trained=False),
}


class TokenBatchNorm(nn.BatchNorm1d):
    """BatchNorm over the tokens of (B, T, D), padding among them."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(0, -2)).view_as(x)


class HalvedNorm(nn.LayerNorm):
    """LayerNorm over the first and the second half of the features, each by itself, with the gain at 1/2: a damage."""

    def forward(self, x: Tensor) -> Tensor:
        halves = x.unflatten(-1, (2, -1))
        return (F.layer_norm(halves, halves.shape[-1:], eps=self.eps).flatten(-2) * self.weight + self.bias) / 2


class UnitScale(nn.Module):
    """ScaleNorm whose g stays at 1: x / |x|."""

    def __init__(self, n: int):
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=-1)


@dataclass(frozen=True, kw_only=True)
class Translation(Training):
    """steps, batch (pairs), lr, amp, trivial: as in `tasks.Training`.

    data        libreoffice, or a name of `repro.data.original` such as iwslt14-de-en
    pairs       training pairs that are used, of those that are short enough; 0: all
    held_out    validation pairs that are scored; 0: all
    warmup      steps in which the rate rises, or below 1 their share of all
    schedule    after that: inverse_sqrt or cosine
    translated  held-out pairs that are translated for BLEU; 0: none
    """

    width: int
    depth: int  # blocks of the encoder, and as many of the decoder
    heads: int
    hidden: int
    length: int
    merges: int
    warmup: float
    eval_every: int
    pairs: int = 0
    held_out: int = 0
    translated: int = 0
    schedule: str = "inverse_sqrt"
    smoothing: float = 0.1
    dropout: float = 0.0
    clip: float = 1.0
    tied: bool = True
    data: str = "libreoffice"
    trivial: tuple[str, ...] = ("unigram", "bigram")


@dataclass(frozen=True)
class Sentences:
    """Pairs as pieces, padded: `source` (n, S) ends in END; `target` (n, T + 1) begins with START and ends in END."""

    source: Tensor
    target: Tensor

    def inputs(self) -> Tensor:
        """What the model reads: (n, S + T)."""
        return torch.cat([self.source, self.target[:, :-1]], 1)

    def take(self, count: int) -> "Sentences":
        return Sentences(self.source[:count], self.target[:count]) if count else self


@lru_cache(maxsize=4)
def load(name: str, merges: int, length: int, device: torch.device) -> tuple[bpe.Pieces, Sentences, Sentences]:
    """The pieces, the training and the validation pairs of at most `length` pieces a side, END counted."""
    pairs: Pairs = libreoffice.load() if name == "libreoffice" else original.pairs(name)
    lines = [*pairs.source["train"].lines(), *pairs.target["train"].lines()]
    pieces = bpe.kept(lines, merges, libreoffice.DATASET.folder())
    parts = []
    for split in ("train", "valid"):
        rows = []
        for a, b in zip(pairs.source[split].lines(), pairs.target[split].lines(), strict=True):
            x, y = pieces.encode(a), pieces.encode(b)
            if max(len(x), len(y)) < length:
                x, y = [*x, END], [START, *y, END]
                rows.append(x + [PAD] * (length - len(x)) + y + [PAD] * (length + 1 - len(y)))
        table = torch.tensor(rows, device=device)
        parts.append(Sentences(table[:, :length], table[:, length:]))
    return pieces, *parts


def named(name: str) -> object:
    """The attribute that "module:attribute" names."""
    module, attribute = name.split(":")
    return getattr(import_module(module), attribute)


def build(kind: Arm, seed: int, config: Translation, vocab: int, device: torch.device) -> Transformer:
    """The model of an arm, on the device."""
    norm: Norm = partial(named(kind.norm), **dict(kind.options)) if kind.options else named(kind.norm)
    model = Transformer(
        vocab,
        config.length,
        config.length,
        config.width,
        config.depth,
        heads=config.heads,
        hidden=config.hidden,
        norm=norm if kind.final is None else {"attention": norm, "feed_forward": norm, "final": named(kind.final)},
        placement=named(kind.placement),
        tied=config.tied,
        dropout=config.dropout,
        generator=generator("translation", seed),
    )
    if kind.embedding is not None:
        named(kind.embedding)(model)
    return model.to(device)


def smoothed(smoothing: float):
    """The training loss: cross-entropy over the target's pieces, with label smoothing; padding does not count."""

    def loss(logits: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(logits.flatten(0, 1), target.flatten(), ignore_index=PAD, label_smoothing=smoothing)

    return loss


def cold(schedule: Schedule) -> Schedule:
    """The schedule without its warm-up: 1 until it has reached 1, then the same."""

    def factor(step: int, steps: int) -> float:
        rising = step < steps and schedule(step + 1, steps) > schedule(step, steps)
        return 1.0 if rising else schedule(step, steps)

    return factor


def score(model: Transformer, held_out: Sentences, batch: int) -> dict[str, float]:
    """Nats per target piece, and the share of pieces that are guessed right."""

    def over_all(model: nn.Module) -> dict[str, float]:
        total, right, count = 0.0, 0.0, 0
        for x, y in zip(held_out.inputs().split(batch), held_out.target[:, 1:].split(batch), strict=True):
            logits, y = model(x).flatten(0, 1), y.flatten()
            total += float(F.cross_entropy(logits, y, ignore_index=PAD, reduction="sum"))
            right += float(((logits.argmax(-1) == y) & (y != PAD)).sum())
            count += int((y != PAD).sum())
        return {"loss": total / count, "accuracy": right / count}

    return measured(over_all, model)


def bleu(hypotheses: list[list[str]], references: list[list[str]], order: int = 4) -> float:
    """Corpus BLEU (Papineni et al. 2002) of one reference each, 0 to 100, without smoothing."""
    right, made = [0] * order, [0] * order
    for ours, theirs in zip(hypotheses, references, strict=True):
        for n in range(1, order + 1):
            a, b = (Counter(zip(*(line[i:] for i in range(n)), strict=False)) for line in (ours, theirs))
            right[n - 1] += sum((a & b).values())
            made[n - 1] += sum(a.values())
    if not all(right):
        return 0.0
    length, wanted = (sum(map(len, lines)) for lines in (hypotheses, references))
    mean = sum(math.log(r / m) for r, m in zip(right, made, strict=True)) / order
    return 100 * math.exp(mean + min(0.0, 1 - wanted / length))


def translated(model: Transformer, held_out: Sentences, pieces: bpe.Pieces, batch: int) -> float:
    """BLEU of greedy translations, over words and single marks."""

    def words(rows: Tensor) -> list[list[str]]:
        return [[w.strip(bpe.BLANK) for w in bpe.cut(pieces.decode(row))] for row in rows.tolist()]

    def greedy(model: nn.Module) -> dict[str, float]:
        ours = [row for x in held_out.source.split(batch) for row in words(model.translate(x))]
        return {"bleu": bleu(ours, words(held_out.target))}

    return measured(greedy, model)["bleu"]


def run(kind: Arm, seed: int, config: Translation, device: torch.device) -> Measures:
    """Train one model and measure it: what `translation` does for an arm by name."""
    pieces, train, valid = load(config.data, config.merges, config.length, device)
    train, valid = train.take(config.pairs), valid.take(config.held_out)
    model = build(kind, seed, config, len(pieces), device)
    evaluate = partial(score, held_out=valid, batch=4 * config.batch)
    first, schedule = evaluate(model), (cosine if config.schedule == "cosine" else inverse_sqrt)(config.warmup)
    history = trained(
        model,
        (train.inputs(), train.target[:, 1:]),
        "translation batches",
        seed,
        config,
        **({} if kind.trained else {"steps": 0}),
        optimizer="adam",
        optimizer_options={"betas": (0.9, 0.98), "eps": 1e-9},
        schedule=schedule if kind.warmup else cold(schedule),
        clip=config.clip or None,
        loss=smoothed(config.smoothing),
        evaluate=lambda model: {"loss": evaluate(model)["loss"]},
        eval_every=config.eval_every,
    )
    last = evaluate(model)
    measures = {
        "val_nats": last["loss"],
        "val_accuracy": last["accuracy"],
        "val_curve": [first["loss"], *history.curves.get("loss", ())],
        "steps": [0, *history.eval_steps],
        **learning(history),
        **trivial.text(train.target, valid.target, config.trivial, vocab=len(pieces), ignore=PAD),
    }
    if config.translated:
        measures["bleu"] = translated(model, valid.take(config.translated), pieces, 4 * config.batch)
    return measures


def translation(arm: str, seed: int, config: Translation, device: torch.device) -> Measures:
    """A translation model: held-out loss against steps, BLEU, and what n-grams of the target side score."""
    return run(ARMS[arm], seed, config, device)
