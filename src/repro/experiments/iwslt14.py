"""IWSLT14 German to English with the small Transformer of fairseq, for the profiles `paper` of papers on its norms.

The recipe is that of the authors' scripts of powernorm (sIncerass/powernorm, train-iwslt14.sh) and of unified_norm
(hikvision-research/Unified-Normalization, run_iwslt14_train_un.sh): norms before the sub-layers, one embedding for both
languages and the head, batches of like lengths, Adam with decoupled decay, the mean of the weights at the end of the
last epochs, beam search, and BLEU over the words of the tokenised text in lower case.  At smoke and on the pretended
GPU of a rehearsal the LibreOffice help (English to German) stands in for the set, which may still have to be fetched.
"""

import html
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from repro import trivial
from repro.data import bpe, original
from repro.data import translation as libreoffice
from repro.data.kinds import END, PAD, START, Pairs
from repro.errors import ReproError
from repro.experiments.translation import bleu, smoothed
from repro.models.slots import Norm
from repro.models.transformer import Attention, Transformer
from repro.tasks import Measures, Training, learning, trained
from repro.train import generator, inverse_sqrt, measured

LENGTH = 1024  # pieces a side; training pairs that are longer are left out
REHEARSED = 400  # pairs on the pretended GPU
Batch = tuple[Tensor, Tensor]  # source (B, S), ending in END; target (B, T + 1), from START to END


@dataclass(frozen=True, kw_only=True)
class Iwslt14(Training):
    """steps, lr, amp, trivial: as in `tasks.Training`.

    batch           pieces of a batch on its longer side, padding among them
    warmup          steps in which the rate rises; then it falls as 1 / sqrt(step)
    inner_dropout   on attention weights and behind the ReLU; `dropout` on embeddings and sub-layers
    averaged        ends of epochs, counted from the last step, whose weights are averaged
    beam, longest   hypotheses of the beam search, and pieces of a translation; a score is over length^length_penalty
    pairs, scored   training pairs that are used and test pairs that are translated; 0: all
    """

    warmup: int
    averaged: int
    width: int = 512
    depth: int = 6  # blocks of the encoder, and as many of the decoder
    heads: int = 4
    hidden: int = 1024
    merges: int = 10_000
    dropout: float = 0.3
    inner_dropout: float = 0.1
    smoothing: float = 0.1
    weight_decay: float = 1e-4
    beam: int = 5
    length_penalty: float = 1.0
    longest: int = 200
    pairs: int = 0
    scored: int = 0
    data: str = "iwslt14-de-en"
    trivial: tuple[str, ...] = ("unigram", "bigram")

    def load(self, device: torch.device) -> "Text":
        """The set as batches on the device."""
        few = (self.pairs, self.scored) if device.type != "meta" else (REHEARSED, REHEARSED)
        return load(self.data if device.type != "meta" else "libreoffice", self.merges, self.batch, *few, device)


# --- data -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Text:
    """train, valid: batches.  test: batches of sources, each with the words of its references.

    trivial: the training and validation targets as rows, on the CPU, for predictors that know nothing of the source.
    """

    pieces: bpe.Pieces
    train: list[Batch]
    valid: list[Batch]
    test: list[tuple[Tensor, list[list[str]]]]
    trivial: tuple[Tensor, Tensor]


def plain(line: str) -> str:
    """The line in lower case, with the marks that Moses writes as `&apos;` and the like."""
    return html.unescape(line).lower()


def tokenised(lines: list[str]) -> bool:
    """Whether full stops stand apart from the last word, as Moses leaves them."""
    stops = [line.endswith(" .") for line in lines if line.endswith(".")]
    return 2 * sum(stops) >= len(stops)


def grouped(lengths: list[tuple[int, int]], pieces: int) -> list[list[int]]:
    """Sentences of like lengths (source, then target) together: as many as, padded, have at most `pieces` on the longer
    side; in an order that is drawn where lengths are equal."""
    drawn = torch.randperm(len(lengths), generator=generator("iwslt14 groups")).tolist()
    groups, widest = [], 0
    for i in sorted(drawn, key=lengths.__getitem__):
        widest = max(widest, *lengths[i])
        if not groups or (len(groups[-1]) + 1) * widest > pieces:
            groups.append([])
            widest = max(lengths[i])
        groups[-1].append(i)
    return groups


def padded(rows: list[list[int]], device: torch.device | str = "cpu") -> Tensor:
    """Rows of ids, filled up with PAD: (n, longest)."""
    return pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=PAD).to(device)


@lru_cache(maxsize=2)
def load(name: str, merges: int, batch: int, pairs: int, scored: int, device: torch.device) -> Text:
    """The set as batches; the vocabulary is learnt on both sides of the training pairs that are used."""
    found: Pairs = libreoffice.load() if name == "libreoffice" else original.pairs(name)
    limits = {"train": pairs, "valid": scored, "test": scored}
    lines = {
        split: [[plain(line) for line in side[split].lines()[: limit or None]] for side in (found.source, found.target)]
        for split, limit in limits.items()
    }
    if name != "libreoffice" and not tokenised(lines["train"][1]):
        raise ReproError(f"{name}: words and full stops are not apart; put the set as fairseq prepares it in its place")
    pieces = bpe.kept([*lines["train"][0], *lines["train"][1]], merges, libreoffice.DATASET.folder())
    ids = {
        split: [([*pieces.encode(a), END], [START, *pieces.encode(b), END]) for a, b in zip(*lines[split], strict=True)]
        for split in limits
    }
    ids["train"] = [(a, b) for a, b in ids["train"] if max(len(a), len(b)) <= LENGTH]

    def groups(split: str) -> list[list[int]]:
        return grouped([(len(a), len(b) - 1) for a, b in ids[split]], batch)

    def batches(split: str) -> list[Batch]:
        return [
            tuple(padded([ids[split][i][side] for i in group], device) for side in (0, 1)) for group in groups(split)
        ]

    test = [
        (padded([ids["test"][i][0] for i in group], device), [lines["test"][1][i].split() for i in group])
        for group in groups("test")
    ]
    targets = tuple(padded([b for _, b in ids[split]]) for split in ("train", "valid"))
    return Text(pieces, batches("train"), batches("valid"), test, targets)


# --- model ------------------------------------------------------------------------------------------------------------


class Dropped(nn.Module):
    """Softmax attention with dropout on its weights."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, q: Tensor, k: Tensor, v: Tensor, keep: Tensor | None, causal: bool) -> Tensor:
        rate = self.rate if self.training else 0.0
        return F.scaled_dot_product_attention(q, k, v, attn_mask=keep, is_causal=causal, dropout_p=rate)


class Padding:
    """Where the sources that are being encoded have padding: (B, S)."""

    mask: Tensor | None = None


class Masked(nn.Module):
    """A norm of the encoder, norm(x, mask), that is told where padding is."""

    def __init__(self, norm: nn.Module, padding: Padding):
        super().__init__()
        self.norm, self.padding = norm, padding

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x, self.padding.mask)


class Translator(Transformer):
    """The Transformer as fairseq has it: padding has no position, and norms of the encoder may know where it is."""

    def __init__(self, *sizes: int, **options: object):
        super().__init__(*sizes, **options)
        self.padding = Padding()

    def _read(self, table: nn.Embedding, tokens: Tensor) -> Tensor:
        places = self.positions[: tokens.shape[1]] * (tokens != PAD)[..., None]
        return self.dropout(self.scale * table(tokens) + places)

    def encode(self, source_BS: Tensor) -> tuple[Tensor, Tensor]:
        self.padding.mask = source_BS == PAD
        encoded = super().encode(source_BS)
        self.padding.mask = None
        return encoded


@torch.no_grad()
def initial(model: Transformer, generator: torch.Generator) -> None:
    """fairseq's first weights: half the variance for queries, keys and values, and nothing for padding."""
    for part in model.modules():
        if isinstance(part, Attention):
            for layer in (part.query, part.key, part.value):
                layer.weight.mul_(0.5**0.5)
    model.embedding.weight[PAD] = 0


def translator(vocab: int, name: str, seed: int, config: Iwslt14, norm: Norm = nn.LayerNorm) -> Translator:
    """`transformer_iwslt_de_en` with norms before the sub-layers and behind each stack; `name` and `seed` draw it."""
    return Translator(
        vocab,
        LENGTH,
        LENGTH,
        config.width,
        config.depth,
        heads=config.heads,
        hidden=config.hidden,
        norm=norm,
        placement="pre",
        act=lambda: nn.Sequential(nn.ReLU(), nn.Dropout(config.inner_dropout)),
        attend=Dropped(config.inner_dropout),
        dropout=config.dropout,
        init=initial,
        generator=generator(name, seed),
    )


def encoder_norms(model: Translator, norm: Callable[[bool], nn.Module]) -> None:
    """Put norm(last) in place of every norm of the encoder; they are called with (x, mask)."""
    for block in model.encoder:
        for part in block:
            part.norm = Masked(norm(False), model.padding)
    model.encoder_norm = Masked(norm(True), model.padding)


# --- training ---------------------------------------------------------------------------------------------------------


class Reader(nn.Module):
    """What `train.fit` trains: the model, given the number of a batch, since batches differ in shape.

    It also holds the mean of the model's weights and buffers over the times that `take` was called.
    """

    def __init__(self, model: Translator, batches: list[Batch]):
        super().__init__()
        self.model, self.batches = model, batches
        self.register_buffer("taken", torch.zeros((), dtype=torch.long))
        for i, t in enumerate(self.state()):
            self.register_buffer(f"mean_{i}", torch.zeros_like(t))

    def forward(self, number: Tensor) -> Batch:
        """Logits (B, T, V) and targets (B, T)."""
        source, target = self.batches[int(number)]
        return self.model.decode(*self.model.encode(source), target[:, :-1]), target[:, 1:]

    def state(self) -> list[Tensor]:
        return [t for t in self.model.state_dict().values() if t.is_floating_point()]

    def means(self) -> list[Tensor]:
        return [self.get_buffer(f"mean_{i}") for i in range(len(self.state()))]

    @torch.no_grad()
    def take(self) -> None:
        self.taken += 1
        for mean, t in zip(self.means(), self.state(), strict=True):
            mean += (t - mean) / self.taken

    @torch.no_grad()
    def settle(self) -> None:
        """Put the mean in place of the weights."""
        for mean, t in zip(self.means(), self.state(), strict=True):
            t.copy_(mean)


def nats(model: Translator, batches: list[Batch]) -> float:
    """Nats per target piece, END included."""
    total, count = 0.0, 0
    for source, target in batches:
        logits, y = model.decode(*model.encode(source), target[:, :-1]), target[:, 1:]
        total += F.cross_entropy(logits.flatten(0, 1), y.flatten(), ignore_index=PAD, reduction="sum").double()
        count += (y != PAD).sum()
    return float(total / count)


@torch.no_grad()
def beam_search(model: Transformer, source_BS: Tensor, beam: int, penalty: float, longest: int) -> Tensor:
    """The best translation of each source: (B, longest + 1), ending in END, then PAD; as fairseq searches.

    A hypothesis that ends has the score log p / length^penalty, END counted.  Of the 2 `beam` likeliest pieces at a
    step those that are END and among the first `beam` end one; the others go on, at most `beam` of them.  A sentence is
    done when `beam` of its hypotheses have ended.  A translation has one piece at least and `longest` at most.
    """
    count, device = len(source_BS), source_BS.device
    memory, keep = (t.repeat_interleave(beam, 0) for t in model.encode(source_BS))
    read = torch.full((count, beam, 1), START, device=device)
    score = torch.full((count, beam), -torch.inf, device=device)
    score[:, 0] = 0.0
    best, ended = torch.full((count,), -torch.inf, device=device), torch.zeros(count, dtype=torch.long, device=device)
    out = torch.full((count, longest + 1), PAD, device=device)

    def follow(tensor: Tensor, at: Tensor) -> Tensor:  # (count, beam, t) at (count, k) -> (count, k, t)
        return tensor.gather(1, at[..., None].expand(*at.shape, tensor.shape[-1]))

    for length in range(1, longest + 2):
        likely = (
            model.decode(memory, keep, read.flatten(0, 1))[:, -1].float().log_softmax(-1).unflatten(0, (count, beam))
        )
        likely[..., [PAD, START]] = -torch.inf
        if length == 1:
            likely[..., END] = -torch.inf
        elif length > longest:
            likely[..., :END] = likely[..., END + 1 :] = -torch.inf
        vocab = likely.shape[-1]
        found, where = (score[..., None] + likely).flatten(1).topk(2 * beam)
        hypothesis, piece = where // vocab, where % vocab
        is_end = piece == END
        done = is_end[:, :beam] & found[:, :beam].isfinite()
        done &= ended[:, None] + done.cumsum(1) <= beam
        top, at = torch.where(done, found[:, :beam] / length**penalty, -torch.inf).max(1, keepdim=True)
        whole = F.pad(follow(read, hypothesis.gather(1, at))[:, 0, 1:], (0, 1), value=END)
        better = top[:, 0] > best
        out = torch.where(better[:, None], F.pad(whole, (0, longest + 1 - length), value=PAD), out)
        best, ended = torch.where(better, top[:, 0], best), ended + done.sum(1)
        if bool((ended >= beam).all()):
            break
        score, at = found.masked_fill(is_end, -torch.inf).topk(beam)
        read = torch.cat([follow(read, hypothesis.gather(1, at)), piece.gather(1, at)[..., None]], 2)
    return out


def score(model: Translator, text: Text, config: Iwslt14) -> float:
    """BLEU of the translations of the test sentences, over words."""
    ours, theirs = [], []
    for source, references in text.test:
        rows = beam_search(model, source, config.beam, config.length_penalty, config.longest)
        ours += [text.pieces.decode(row).split() for row in rows.tolist()]
        theirs += references
    return bleu(ours, theirs)


def translated(model: Translator, text: Text, name: str, seed: int, config: Iwslt14, device: torch.device) -> Measures:
    """Train the model; BLEU on the test sentences and nats per validation piece, both by the averaged weights."""
    reader = Reader(model.to(device), text.train).to(device)
    epoch, numbers, loss = len(text.train), torch.arange(len(text.train)), smoothed(config.smoothing)
    ends = {config.steps - k * epoch for k in range(1, config.averaged)}

    def at_ends(step: int, reader: Reader, value: Tensor) -> None:
        if step in ends and step > 0:  # so many updates lie behind it
            reader.take()

    history = trained(
        reader,
        (numbers, numbers),
        name,
        seed,
        config,
        batch=1,
        optimizer="adamw",
        optimizer_options={"betas": (0.9, 0.98)},
        weight_decay=config.weight_decay,
        schedule=inverse_sqrt(config.warmup),
        loss=lambda output, _: loss(*output),
        evaluate=lambda reader: {"nats": nats(reader.model, text.valid)},
        eval_every=epoch,
        hook=at_ends,
    )
    reader.take()
    reader.settle()
    return {
        "bleu": measured(lambda model: score(model, text, config), model),
        "val_nats": measured(lambda model: nats(model, text.valid), model),
        "val_curve": history.curves["nats"],
        "val_steps": history.eval_steps,
        **learning(history),
        **trivial.text(*text.trivial, config.trivial, vocab=len(text.pieces), ignore=PAD),
    }
