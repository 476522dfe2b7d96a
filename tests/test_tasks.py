"""What most experiments call: settings, learning curves, trivial predictors beside the scores,
timings, worst errors.
"""

import inspect
import math
from dataclasses import dataclass, fields

import pytest
import torch
from torch import nn

from repro import tasks, trivial
from repro.errors import Diverged
from repro.models.gpt import GPT
from repro.models.mlp import MLP
from repro.run.execute import make_config
from repro.tasks import Pictures, Text, Timed, Worst
from repro.train import History, evaluate_classifier, evaluate_lm, fit, generator, seed_of

CPU = torch.device("cpu")


def examples(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(n, 6, generator=generator("tasks", seed))
    return x, (x @ torch.randn(6, 3, generator=generator("tasks map"))).argmax(1)


DATA = examples(120, 0), examples(80, 1)
CONFIG = Pictures(examples=120, test=80, steps=9, batch=16, lr=0.1, trivial=("linear", "nearest_neighbour"))


def model(seed: int = 0) -> MLP:
    return MLP([6, 8, 3], generator=generator("tasks model", seed))


def test_classify_is_fit_and_evaluate_with_what_stands_beside() -> None:
    scores = tasks.classify(model(), "batches", 3, CONFIG, CPU, data=DATA, weight_decay=0.05)
    by_hand = model()
    history = fit(by_hand, DATA[0], steps=9, batch=16, lr=0.1, seed=seed_of("batches", 3), weight_decay=0.05)
    assert scores["accuracy"] == evaluate_classifier(by_hand, *DATA[1])["accuracy"]
    assert scores["learning_curve"] == history.train_loss and scores["learning_steps"] == list(range(1, 10))
    for name in ("linear", "nearest_neighbour"):
        assert scores[f"trivial_{name}"] == getattr(trivial, name)(*DATA[0], *DATA[1])["accuracy"]
    errors = tasks.classify(model(), "batches", 3, CONFIG, CPU, data=DATA, weight_decay=0.05, score="error")
    assert errors["error"] == pytest.approx(1 - scores["accuracy"])
    assert errors["trivial_linear"] == pytest.approx(1 - scores["trivial_linear"])


def test_options_win_over_the_config_and_finish_gives_what_is_scored() -> None:
    seen = []
    short = tasks.classify(
        model(), "b", 0, CONFIG, CPU, data=DATA, steps=4, finish=lambda m: seen.append(m) or model(1)
    )
    assert short["learning_steps"] == [1, 2, 3, 4] and len(seen) == 1
    assert short["accuracy"] == evaluate_classifier(model(1), *DATA[1])["accuracy"]


def test_seeds_in_one_batch_are_those_alone() -> None:
    together = tasks.classify_batch([model(s) for s in (0, 1)], "b", [0, 1], CONFIG, CPU, data=DATA, optimizer="sgd")
    for seed, row in enumerate(together):
        alone = tasks.classify(model(seed), "b", seed, CONFIG, CPU, data=DATA, optimizer="sgd")
        assert row.keys() == alone.keys() and row["learning_curve"] == pytest.approx(alone["learning_curve"], rel=1e-4)
    lost = tasks.each([model(), model()], [Diverged(3), History(train_loss=[1.0])], lambda m, h: {"a": 1})
    assert isinstance(lost[0], Diverged) and lost[1] == {"a": 1, "learning_curve": [1.0], "learning_steps": [1]}


def test_language_model_and_its_bigrams() -> None:
    text = torch.randint(0, 9, (600,), generator=generator("tasks text")).cumsum(0).remainder(9).to(torch.uint8)
    corpus = tasks.Corpus(text[:500], text[500:], text[:0], vocab=9)
    config = Text(context=8, windows=5, steps=3, batch=4, lr=0.01, trivial=("unigram", "bigram"))
    make = lambda: GPT(9, 8, 8, 1, heads=2, generator=generator("tasks gpt"))  # noqa: E731
    scores = tasks.language_model(make(), "words", 0, config, CPU, corpus=corpus, clip=1.0)
    by_hand = make()
    fit(by_hand, corpus.train, context=8, steps=3, batch=4, lr=0.01, seed=seed_of("words", 0), clip=1.0)
    assert scores["val_nats"] == evaluate_lm(by_hand, corpus.valid, 8, windows=5)["loss"]
    assert scores["trivial_bigram"] == trivial.ngram(corpus.train, corpus.valid, 2, vocab=9)
    turned = tasks.perplexities(scores, most=1.0)
    assert turned["perplexity"] == math.e and "val_nats" not in turned
    assert turned["trivial_unigram"] == math.exp(min(scores["trivial_unigram"], 1.0))
    assert turned["learning_curve"] == scores["learning_curve"]


def test_a_learning_curve_has_about_twenty_means_that_average_to_the_whole() -> None:
    losses = [float(i % 7) for i in range(1000)]
    curve = tasks.learning(History(train_loss=losses))
    assert len(curve["learning_curve"]) == 20 and curve["learning_steps"][-1] == 1000
    assert sum(curve["learning_curve"]) / 20 == pytest.approx(sum(losses) / 1000)
    assert tasks.learning(History()) == {}


def test_every_keyword_of_fit_is_reachable() -> None:
    decided = set(tasks.settings(CONFIG)) | {"model", "data", "seed", "context", "channels_last"}
    passed = inspect.signature(tasks.classify).parameters["options"]
    assert passed.kind is inspect.Parameter.VAR_KEYWORD
    assert decided <= set(inspect.signature(fit).parameters)
    assert tasks.settings(Text(context=8, windows=1, steps=1, batch=1, lr=1.0, amp="bfloat16"))["amp"] == torch.bfloat16


def test_configs_are_built_of_keywords_alone_and_hold_what_the_data_look_like() -> None:
    for kind in (Pictures, Text, Timed):
        assert all(field.kw_only for field in fields(kind)) and kind.__dataclass_params__.frozen
    assert (CONFIG.side, CONFIG.channels) == (28, 1)
    colour = Pictures(examples=1, test=1, steps=1, batch=1, lr=1.0, data="fashion_mnist_m", pool=2)
    assert (colour.side, colour.channels) == (16, 3)


@dataclass(frozen=True, kw_only=True)
class Passes(Timed):
    size: int


def passes(arm: str, seed: int, config: Passes, device: torch.device):
    x = torch.ones(config.size)
    return lambda: nn.functional.relu(x)


def test_timed_is_a_group_with_the_config_of_its_passes() -> None:
    group = tasks.timed(passes, reference="a", memory=False, calls=lambda config: config.size)
    config = make_config(
        group, {"size": 4, "blocks": 2, "aa_limit": 100.0}, "papers/demo/paper.yaml: profiles.cpu.speed"
    )
    rows = group(["a", "b"], 0, config, CPU)
    assert set(rows) == {"a", "b"} and rows["a"]["relative"] == 1.0 and rows["b"]["seconds"] > 0


def test_worst_keeps_the_largest_and_never_loses_a_nan() -> None:
    worst = Worst("unseen")
    worst.relative("error", torch.tensor([1.0, 2.5]), torch.tensor([1.0, 2.0]))
    worst.absolute("error", torch.tensor([1.0]), 0.9)
    worst.record("other", -3.0)
    assert worst == {"unseen": 0.0, "error": 0.25, "other": -3.0}
    worst.record("error", float("nan"))
    worst.record("error", 1e9)
    assert math.isnan(worst["error"])
