"""GPT-2 Small fine-tuned on OpenWebText (profile `paper`), by the authors' schedule `gpt2_aux` (config.py)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from repro import tasks, trivial
from repro.data import gpt2 as data
from repro.data.kinds import Corpus
from repro.models import gpt2
from repro.models.gpt import GPT
from repro.papers.ln_removal import method
from repro.train import History, Source, cosine, cross_entropy, evaluate_lm, generator

UNTRAINED = {"original": (), "untuned": ("",), "values_untuned": ("v.",)}  # how the sites begin that are removed


@dataclass(frozen=True, kw_only=True)
class FineTuning(tasks.Text):
    """A step has the mean gradient of `parts` batches, of `batch` windows each; `steps` and `start` count such steps.

    model: gpt2, or tiny: a drawn decoder that stands in for it and reads bytes.
    tokens: of the training text.  held_out: documents that validate.  start, gaps: see method.removal_schedule.
    auxiliary: weight of the auxiliary loss.
    """

    model: str
    parts: int
    warmup: int
    start: int
    gaps: tuple[int, int, int]
    auxiliary: float
    dropout: float
    tokens: int = 0
    held_out: int = 0

    def load(self, device: torch.device) -> Corpus:
        """The text as GPT-2's tokens, or as bytes."""
        if self.model == "tiny":
            return super().load(device)
        encode = None if device.type == "meta" else gpt2.tokenizer().encode
        return data.corpus(self.text, encode, train=self.tokens, held_out=self.held_out, device=device)

    def decoder(self, seed: int, device: torch.device) -> GPT:
        """The model that every arm of a seed starts from."""
        if self.model == "gpt2":
            return gpt2.small(device, dropout=self.dropout)
        source = generator("ln_removal tiny", seed)
        return gpt2.decoder(256, self.context, 16, 2, heads=2, dropout=self.dropout, generator=source).to(device)


class Accumulated:
    """`clip` of train.fit: the mean gradient of every `parts` calls, its norm bounded by `most`.

    All calls but the last of `parts` leave no gradient, and the optimizer, which passes over such parameters, no step.
    """

    def __init__(self, parts: int, most: float):
        self.parts, self.most, self.calls = parts, most, 0
        self.sums: list[Tensor] = []

    def __call__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.calls += 1
        last = self.calls % self.parts == 0
        gradients = [p.grad for p in parameters]
        if self.sums:
            torch._foreach_add_(self.sums, gradients)
        else:
            self.sums = gradients
        if last:
            torch._foreach_div_(self.sums, float(self.parts))
        for p, mean in zip(parameters, self.sums, strict=True):
            p.grad = mean if last else None
        if last:
            nn.utils.clip_grad_norm_(parameters, self.most)
            self.sums = []


def tracked_loss(model: GPT, weight: float) -> Callable[[Tensor, Tensor], Tensor]:
    """Cross-entropy and the auxiliary loss of the stream before the last norm; ends of texts are its special tokens."""
    seen: dict[str, Tensor] = {}
    model.register_forward_pre_hook(lambda model, args: seen.update(tokens=args[0]))
    model.norm.register_forward_pre_hook(lambda norm, args: seen.update(stream=args[0]))

    def loss(logits: Tensor, target: Tensor) -> Tensor:
        stream, tokens = seen.pop("stream"), seen.pop("tokens")
        special = None if bool((tokens != data.END).all()) else tokens == data.END
        return cross_entropy(logits, target) + method.auxiliary_loss(stream, weight, special)

    return loss


def decayed(model: nn.Module) -> list[dict]:
    """Weight decay for matrices alone, as the authors' trainer has it."""
    parameters = list(model.parameters())
    flat = [p for p in parameters if p.dim() < 2]
    return [{"params": [p for p in parameters if p.dim() >= 2]}, {"params": flat, "weight_decay": 0.0}]


def fine_tuned(model: GPT, arm: str, seed: int, config: FineTuning, corpus: Corpus) -> History:
    """Train as the arm says, in place.  The loop counts batches, and so the schedule of removal does too."""
    hook, loss = None, cross_entropy
    if arm != "vanilla":
        gaps = dict(zip(("gap_mlp", "gap_qk", "gap_v"), config.gaps, strict=True))
        schedule = method.removal_schedule(len(model.blocks), start=config.start, **gaps)
        if arm == "at_once":
            schedule = [(config.start, site) for _, site in schedule]
        elif arm == "first_block":
            schedule = [(step, site) for step, site in schedule if site.endswith(".0")]
        hook = method.remove_layernorm(model, [(step * config.parts, site) for step, site in schedule])
        loss = tracked_loss(model, config.auxiliary)
    options = {"groups": decayed, "weight_decay": 0.01, "clip": Accumulated(config.parts, 1.0)}
    options |= {"schedule": cosine(config.warmup * config.parts, 0.5), "checkpoint_every": 64 * config.parts}
    steps, name = config.steps * config.parts, "ln_removal openwebtext"
    return tasks.trained(model, corpus.train, name, seed, config, steps=steps, hook=hook, loss=loss, **options)


@torch.no_grad()
def remove(model: GPT, sites: tuple[str, ...], batch: Tensor) -> None:
    """Remove the norms whose sites begin so, each with its sigma_avg of this batch; nothing is trained."""
    removal = method.remove_layernorm(model, [])
    model.eval()
    for norm in removal.sites.values():
        norm.train()  # they look at the batch, and nothing is dropped
    model(batch)
    for site, norm in removal.sites.items():
        norm.removed.fill_(site.startswith(sites))


def openwebtext(arm: str, seed: int, config: FineTuning, device: torch.device) -> tasks.Measures:
    """Held-out loss of GPT-2 fine-tuned as it is (vanilla), with its norms removed meanwhile (one_by_one, at_once;
    first_block: of the norms of one block), or not fine-tuned: original, all norms removed, or those of the values.
    """
    corpus, model, history = config.load(device), config.decoder(seed, device), History()
    if arm not in UNTRAINED:
        history = fine_tuned(model, arm, seed, config, corpus)
    else:
        index = torch.arange(config.batch, device=device) * config.context
        remove(model, UNTRAINED[arm], Source(corpus.train, config.context, device).take(index)[0])
    found = evaluate_lm(model, corpus.valid, config.context, batch=config.batch, windows=config.windows)
    beside = trivial.text(corpus.train, corpus.valid, config.trivial, vocab=corpus.vocab)
    return {"token_nats": found["loss"], **tasks.learning(history), **beside}
