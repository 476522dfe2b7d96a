"""LLaMA on C4 by the recipe of GaLore's repository, for profiles `paper` of mix_ln and curse_of_depth.

The arms are those of `repro.experiments.language_model`.  A document of C4 is its first `context` tokens by T5's
tokenizer, the end-of-text token last; a shorter one is padded, and padding is not scored.  Models have RMSNorm with
LLaMA's eps of 1e-6, and deviations that do not depend on the width.  At smoke pieces of another text stand in, byte by
byte.  Perplexities are exp of nats per token.
"""

import contextlib
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from repro import trivial
from repro.data import original
from repro.data.sources import cache_root
from repro.data.tokenizer import load as load_tokenizer
from repro.errors import ReproError
from repro.experiments.language_model import ARMS, LanguageModel, build
from repro.models.gpt import GPT
from repro.tasks import TEXTS, Measures, learning, perplexities, trained
from repro.train import cosine, generator

TOKENIZER = "google-t5/t5-base"
VOCAB, PAD, UNKNOWN = 32_000, 0, 2  # T5 has 100 marks more, which no text holds but by accident
KNOWN = (
    "translate English to German: The house is wonderful.",
    [13959, 1566, 12, 2968, 10, 37, 629, 19, 1627, 5, 1],
)


@dataclass(frozen=True, kw_only=True)
class C4(LanguageModel):
    """steps, batch (documents), lr, context, amp: as in `tasks.Text`; the defaults are those of the papers' scripts.

    windows   held-out documents that are scored; about ten million tokens
    part      documents of a batch that are in memory at once
    counted   training documents of which n-grams are counted
    compiled  whether the model is compiled, on a GPU
    """

    windows: int = 46_080
    floor: float = 0.1
    clip: float = 0.0
    weight_decay: float = 0.0
    text: str = "c4"
    trivial: tuple[str, ...] = ("bigram",)
    part: int = 64
    counted: int = 200_000
    compiled: bool = False


# --- tokens ----------------------------------------------------------------------------------------------------------


def tokenizer(length: int) -> Any:
    """T5's tokenizer, from a folder or the Hub: it ends a document by </s> and cuts or pads it to `length` tokens."""
    file = cache_root() / "t5-base" / "tokenizer.json"
    made = load_tokenizer(TOKENIZER, file)
    if made.encode(KNOWN[0]).ids != KNOWN[1]:
        raise ReproError(f"the tokenizer is not that of {TOKENIZER}: put its tokenizer.json into {file}")
    made.enable_truncation(length)
    made.enable_padding(length=length, pad_id=PAD)
    return made


def documents(split: str, count: int, length: int) -> Tensor:
    """The first `count` documents of a split of C4 as tokens: (count, length) int16, kept in a file beside the set."""
    file = cache_root() / "c4" / f"t5-base-{split}-{count}x{length}.npy"
    if not file.is_file():
        _write(file, split, count, length)
    return torch.from_numpy(np.array(np.lib.format.open_memmap(file, "r")))


def _write(file: Path, split: str, count: int, length: int) -> None:
    cut, rows, done = tokenizer(length), islice(original.rows("c4", split, stream=True), count), 0
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_suffix(f".{os.getpid()}")
    try:
        table = np.lib.format.open_memmap(unfinished, "w+", np.int16, (count, length))
        while some := [row["text"] for row in islice(rows, 8192)]:
            ids = np.array([found.ids for found in cut.encode_batch(some)])
            table[done : done + len(ids)] = np.where(ids < VOCAB, ids, UNKNOWN)
            done += len(ids)
        if done < count:
            raise ReproError(f"c4: {done} documents in the split {split!r}, {count} wanted; fetch more of its files")
        table.flush()
        unfinished.replace(file)
    finally:
        unfinished.unlink(missing_ok=True)


@lru_cache(maxsize=1)
def load(text: str, count: int, held_out: int, length: int, device: torch.device) -> tuple[int, Tensor, Tensor]:
    """Vocabulary, training and held-out documents (documents, length) on the device."""
    if text != "c4":
        corpus = TEXTS[text](device)
        cut = [x[: len(x) // length * length].view(-1, length) for x in (corpus.train, corpus.valid)]
        return corpus.vocab, cut[0][:count], cut[1][:held_out]
    if device.type == "meta":  # a GPU that is not there reads nothing: a few tokens are drawn
        drawn = torch.randint(VOCAB, (64, length), generator=generator("c4 drawn"), dtype=torch.int16).to(device)
        return VOCAB, drawn, drawn
    return VOCAB, documents("train", count, length).to(device), documents("valid", held_out, length).to(device)


# --- the model -------------------------------------------------------------------------------------------------------


class SumOfParts(torch.autograd.Function):
    """The sum of what several calls return, each differentiated before the next begins: one is in memory at once."""

    @staticmethod
    def forward(ctx: Any, parts: list[Callable[[], Tensor]], *parameters: Tensor) -> Tensor:
        values, sums = [], None
        for part in parts:
            with torch.enable_grad():
                value = part()
            gradients = torch.autograd.grad(value, parameters)
            values.append(value.detach())
            sums = gradients if sums is None else [a + b for a, b in zip(sums, gradients, strict=True)]
        ctx.save_for_backward(*sums)
        return torch.stack(values).sum()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        return None, *(upstream * gradient for gradient in ctx.saved_tensors)


class Reader(nn.Module):
    """documents (B, T) -> the mean of -log p over the tokens that follow another and are no padding: a scalar."""

    def __init__(self, model: nn.Module, part: int, amp: str = "none"):
        super().__init__()
        self.model, self.part, self.amp = model, part, amp

    def nats(self, documents_BT: Tensor) -> Tensor:
        """The sum of -log p."""
        x_BT, y_BT = documents_BT[:, :-1].long(), documents_BT[:, 1:].long()
        cast = self.amp != "none"
        with torch.autocast(x_BT.device.type, getattr(torch, self.amp)) if cast else contextlib.nullcontext():
            logits_BTV = self.model(x_BT)
        return F.cross_entropy(logits_BTV.flatten(0, 1).float(), y_BT.flatten(), ignore_index=PAD, reduction="sum")

    def forward(self, documents_BT: Tensor) -> Tensor:
        parts = [partial(self.nats, part) for part in documents_BT.split(self.part)]
        if torch.is_grad_enabled():
            total = SumOfParts.apply(parts, *self.parameters())
        else:
            total = torch.stack([part() for part in parts]).sum()
        return total / (documents_BT[:, 1:] != PAD).sum()


def llama(arm: str, seed: int, config: C4, vocab: int, device: torch.device) -> GPT:
    """The model of an arm, on the device."""
    kind = replace(ARMS[arm], norm="torch.nn:RMSNorm", options=(("eps", 1e-6),))
    narrower = math.sqrt(config.width / 768)  # `build` divides both deviations by it; the papers' code does not
    plain = replace(config, std=config.std * narrower, embedding_std=config.embedding_std * narrower)
    return build(kind, seed, plain, vocab, device)


def c4(arm: str, seed: int, config: C4, device: torch.device) -> Measures:
    """Held-out perplexity of a LLaMA, after training and in its course."""
    vocab, train, held_out = load(config.text, config.steps * config.batch, config.windows, config.context, device)
    model = llama(arm, seed, config, vocab, device)
    if config.compiled and device.type == "cuda":
        model.compile()
    reader = Reader(model, config.part, config.amp)
    history = trained(
        reader,
        (train, train),
        "c4 batches",
        seed,
        config,
        context=None,
        amp=None,  # the reader casts by itself
        optimizer="adam",
        weight_decay=config.weight_decay,
        schedule=cosine(config.warmup if ARMS[arm].warmup else 0.0, config.floor),
        clip=config.clip or None,
        loss=lambda nats, _: nats,
        evaluate=lambda reader: {"loss": reader(held_out)},
        eval_every=config.eval_every,
    )
    beside = trivial.text(train[: config.counted], held_out, config.trivial, vocab=vocab, ignore=PAD)
    return {
        **perplexities({"val_nats": history.final["loss"], **beside}),
        "token_curve": history.curves["loss"],
        "steps": history.eval_steps,
        **learning(history),
    }
