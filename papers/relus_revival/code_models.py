"""GPT-2 on Python code with and without LayerNorm in its blocks (profile `paper`), as in the paper's perplexity table.

Sizes, optimizer and data are those of the authors' code (Nandan91/relu-revival-normfree: run_clm.py, model_utils.py,
train_utils.py and the yaml files).  The files of the set are cut into windows of `context` tokens that never cross from
one file into the next; what is left of a file is dropped.  The loss is the mean over all tokens but the first of each
window.
"""

import functools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from itertools import islice

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from repro import tasks, trivial
from repro.data.archives import Unusable
from repro.data.hub import from_folder, from_hub, parquet_files
from repro.data.sources import cache_root
from repro.data.tokenizer import load as load_tokenizer
from repro.errors import ReproError
from repro.models.gpt import GPT
from repro.papers.relus_revival import method
from repro.papers.relus_revival.experiment import ACTS, Model, groups
from repro.train import evaluate_classifier, generator, linear

DATA = "codeparrot-ds"
SPLITS = {  # repository on the Hub, and its only split
    "train": ("huggingface-course/codeparrot-ds-train", "train"),
    "valid": ("huggingface-course/codeparrot-ds-valid", "validation"),
}
TOKENIZER, VOCAB = "huggingface-course/code-search-net-tokenizer", 50_000
POSITIONS = 1024  # rows of GPT-2's table of positions, of which `context` are read
COUNTED = 100_000  # windows on which the bigram is fitted
PROBED = 256  # held-out windows whose entropies are measured
PARTS = 16  # of a batch, whose losses are computed one after another

Encode = Callable[[list[str]], list[list[int]]]


@dataclass(frozen=True, kw_only=True)
class Code(tasks.Training, Model):
    """context: tokens of a window; of those the model reads all but the last and predicts all but the first.

    data: codeparrot-ds, or a text of the suite, byte by byte.  every: of the training files one in so many is read.
    held_out: held-out files, of a text of the suite windows.  warmup: share of the steps; then linear to 0.
    weight_decay: of matrices.  dropout: of the embedded tokens alone.
    """

    every: int
    held_out: int
    warmup: float
    clip: float
    weight_decay: float
    dropout: float
    data: str = DATA
    trivial: tuple[str, ...] = ("bigram",)

    @property
    def vocab(self) -> int:
        return VOCAB if self.data == DATA else 256


# --- data ------------------------------------------------------------------------------------------------------------


def files(split: str) -> Iterable[str]:
    """The Python files of "train" or "valid": from parquet files in .repro/data/codeparrot-ds, else from the Hub."""
    (repository, official), folder = SPLITS[split], cache_root() / DATA
    try:
        local = folder.is_dir() and parquet_files(folder, official)
        rows = from_folder(folder, official) if local else from_hub(repository, None, official)
    except Unusable as error:
        raise ReproError(
            f"data set {DATA} is not here; tried Hugging Face {repository} ({error}). Connect, or put its parquet "
            f"files ({official}-00000-of-00001.parquet, ...) into {folder}"
        ) from error
    return (row["content"] for row in rows)


def encoder() -> Encode:
    """The authors' byte-level BPE of 50,000 tokens: from .repro/data/codeparrot-ds/tokenizer.json, else the Hub."""
    tokenizer = load_tokenizer(TOKENIZER, cache_root() / DATA / "tokenizer.json")
    return lambda texts: [found.ids for found in tokenizer.encode_batch(texts, add_special_tokens=False)]


def windows(texts: Iterable[str], encode: Encode, length: int) -> Tensor:
    """All whole windows of `length` tokens of every text: (n, length), int32."""
    texts, found = iter(texts), [torch.empty(0, length, dtype=torch.int32)]
    while some := list(islice(texts, 500)):
        for ids in encode(some):
            whole = len(ids) // length * length
            found.append(torch.tensor(ids[:whole], dtype=torch.int32).view(-1, length))
    return torch.cat(found)


@functools.cache
def read(every: int, held_out: int, length: int) -> tuple[Tensor, Tensor]:
    """Training and held-out windows of the original set, on the CPU; kept, as every trial asks for them."""
    encode = encoder()
    train = windows(islice(files("train"), 0, None, every), encode, length)
    return train, windows(islice(files("valid"), held_out), encode, length)


def load(config: Code, device: torch.device) -> tuple[Tensor, Tensor]:
    """Training and held-out windows (n, context), int32; empty ones on the meta device, where no number counts."""
    if config.data != DATA:
        corpus = tasks.TEXTS[config.data](device)
        parts = (part[: len(part) // config.context * config.context] for part in (corpus.train, corpus.valid))
        train, valid = (part.view(-1, config.context).int() for part in parts)
        return train, valid[: config.held_out]
    if device.type == "meta":
        return (torch.zeros(PROBED, config.context, dtype=torch.int32, device=device),) * 2
    train, valid = read(config.every, config.held_out, config.context)
    return train.to(device), valid.to(device)


# --- model -----------------------------------------------------------------------------------------------------------


class QueryKeyBias(nn.Module):
    """x W^T + (b_q, b_k, 0), for the projection of queries, keys and values: the only biases in the authors' blocks."""

    def __init__(self, qkv: nn.Linear):
        super().__init__()
        self.qkv, self.bias = qkv, nn.Parameter(qkv.weight.new_zeros(2 * qkv.in_features))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.qkv.weight, F.pad(self.bias, (0, self.qkv.in_features)))


def network(arm: str, seed: int, config: Code) -> GPT:
    """GPT-2 as the authors change it: "ln_relu" has LayerNorm in its blocks ("SM + LN + R"), "relu" has none."""
    make = partial(GPT, norm=nn.LayerNorm, placement="pre") if arm.startswith("ln_") else method.norm_free_gpt
    model = make(
        config.vocab,
        POSITIONS,
        config.width,
        config.depth,
        heads=config.heads,
        act=ACTS[arm.removeprefix("ln_")],
        positions="learned",
        tied=True,
        generator=generator("relus_revival code", seed),
    )
    model.dropout.p = config.dropout
    for block in model.blocks:
        block.attention.sublayer.qkv = QueryKeyBias(block.attention.sublayer.qkv)
    return model


# --- training --------------------------------------------------------------------------------------------------------


def summed(logits: Tensor, target: Tensor) -> Tensor:
    """Sum of the cross-entropies in nats, in float32.  logits: (N, V), target: (N,)."""
    return F.cross_entropy(logits.float(), target.long(), reduction="sum")


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Mean cross-entropy of logits (B, T, V), computed in parts and again in the backward pass.

    The float32 copies of 65,000 rows of 50,000 logits would take 13 GB each.
    """
    size = -(-target.numel() // PARTS)
    parts = zip(logits.flatten(0, 1).split(size), target.flatten().split(size), strict=True)
    sums = [checkpoint(summed, *part, use_reentrant=False, preserve_rng_state=False) for part in parts]
    return torch.stack(sums).sum() / target.numel()


def code_models(arm: str, seed: int, config: Code, device: torch.device) -> tasks.Measures:
    """Held-out perplexity per token, and the shares of heads in entropic overload."""
    train, valid = load(config, device)
    model = network(arm, seed, config).to(device)
    history = tasks.trained(
        model,
        (train[:, :-1], train[:, 1:]),
        "relus_revival code batches",
        seed,
        config,
        weight_decay=config.weight_decay,
        groups=groups,
        schedule=linear(config.warmup),
        clip=config.clip,
        loss=cross_entropy,
    )
    nats = evaluate_classifier(model, valid[:, :-1], valid[:, 1:].long(), batch=128)["loss"]
    entropy = method.attention_entropy(model, valid[:PROBED, :-1]).cpu()
    top = float(entropy.max())
    beside = trivial.text(train[:COUNTED], valid, config.trivial, vocab=config.vocab)
    return {
        "token_nats": nats,
        "token_perplexity": math.exp(min(nats, 50.0)),
        "overload": float(method.entropy_bands(entropy, top)[3]),
        "early_overload": float(method.entropy_bands(entropy[: -(-config.depth // 2)], top)[3]),
        **tasks.learning(history),
        **{name: math.exp(value) for name, value in beside.items()},
    }
