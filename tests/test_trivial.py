import math

import pytest
import torch

from repro import trivial


def by_hand(train: list[int], row: list[int], order: int, vocab: int, strengths: tuple[float, ...]) -> list[float]:
    """-log p of every token of a row but its first, by counting in plain Python."""

    def p(context: tuple[int, ...], word: int) -> float:
        if not context:
            return (train.count(word) + 1) / (len(train) + vocab)
        n = len(context)
        grams = [tuple(train[i : i + n + 1]) for i in range(len(train) - n)]
        s = strengths[n - 1]
        together, before = grams.count((*context, word)), sum(g[:-1] == context for g in grams)
        return (together + s * p(context[1:], word)) / (before + s)

    return [-math.log(p(tuple(row[max(0, i - order + 1) : i]), row[i])) for i in range(1, len(row))]


@pytest.fixture(autouse=True)
def nothing_kept():
    trivial._results.clear()


TRAIN = [0, 1, 2, 0, 1, 0, 0, 2, 1, 0, 1, 2, 2, 0, 1]
HELD = [2, 0, 1, 2, 1, 1, 0, 3]


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("piece", [1 << 22, 3])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_ngrams_are_what_one_counts_by_hand(order, piece, dense, monkeypatch):
    monkeypatch.setattr(trivial, "PIECE", piece)
    monkeypatch.setattr(trivial, "DENSE", trivial.DENSE if dense else 4)
    strengths = (2.0, 0.5)[: order - 1]
    got = trivial.ngram(torch.tensor(TRAIN), torch.tensor(HELD), order, vocab=4, strengths=strengths)
    want = by_hand(TRAIN, HELD, order, 4, strengths)
    assert got == pytest.approx(sum(want) / len(want), rel=1e-12)


def test_a_bigram_of_three_letters_in_fractions():
    # "a b a": c(a) = 2, c(b) = 1, V = 2; c(a b) = 1 = c(a .); p_1(b) = 2/5; p(b | a) = (1 + 2/5) / (1 + 1) = 7/10.
    got = trivial.bigram(torch.tensor([0, 1, 0]), torch.tensor([0, 1]), vocab=2, strengths=(1.0,))
    assert got == pytest.approx(-math.log(0.7), rel=1e-12)


def test_ngrams_do_not_cross_rows_and_padding_does_not_count():
    rows = torch.tensor([[1, 2, 3, 0, 0], [1, 3, 2, 2, 0]])
    held = torch.tensor([[1, 2, 0], [1, 3, 2]])
    got = trivial.bigram(rows, held, vocab=4, strengths=(1.0,), ignore=0)
    p = {w: (c + 1) / (7 + 4) for w, c in {1: 2, 2: 3, 3: 2}.items()}
    want = [(1 + p[2]) / (2 + 1), (1 + p[3]) / (2 + 1), (1 + p[2]) / (1 + 1)]
    assert got == pytest.approx(-sum(map(math.log, want)) / 3, rel=1e-12)


def test_probabilities_sum_to_one():
    train = torch.randint(0, 5, (200,), generator=torch.Generator().manual_seed(0))
    for context in ([0, 1], [4, 4]):
        losses = [
            trivial.trigram(train, torch.tensor([*context, w]), vocab=5, strengths=(3.0, 2.0))
            * 2  # two targets; the first has the same loss for every w
            for w in range(5)
        ]
        first = trivial.bigram(train, torch.tensor(context), vocab=5, strengths=(3.0,))
        assert sum(math.exp(-(x - first)) for x in losses) == pytest.approx(1, rel=1e-12)


def test_a_markov_chain_is_learnt_to_its_entropy_rate():
    source = torch.Generator().manual_seed(1)
    table = torch.softmax(2 * torch.randn(6, 6, generator=source, dtype=torch.float64), 1)
    draws, chain = torch.rand(60_000, generator=source, dtype=torch.float64), [0]
    cumulative = table.cumsum(1)
    for u in draws.tolist():
        chain.append(min(int((cumulative[chain[-1]] < u).sum()), 5))
    tokens = torch.tensor(chain)
    train, held = tokens[:50_000], tokens[50_000:]
    got = trivial.text(train, held, vocab=6)
    true = float(-table[held[:-1], held[1:]].log().mean())
    assert got["trivial_bigram"] == pytest.approx(true, abs=2e-3)
    assert got["trivial_trigram"] == pytest.approx(true, abs=6e-3)
    assert got["trivial_unigram"] > true + 0.2


def test_bytes_need_no_vocabulary_and_other_tokens_are_refused():
    text = torch.frombuffer(bytearray(b"to be or not to be, that is the question " * 20), dtype=torch.uint8)
    assert trivial.trigram(text, text[:40]) < trivial.bigram(text, text[:40]) < trivial.unigram(text, text[:40])
    with pytest.raises(ValueError, match="outside 0 to 7"):
        trivial.unigram(text, text, vocab=8)
    with pytest.raises(TypeError, match="integers"):
        trivial.unigram(text.float(), text)


def test_orders_that_share_their_counts_are_those_alone():
    text = torch.frombuffer(bytearray(b"the cat sat on the mat and that was that for the cat. " * 9), dtype=torch.uint8)
    alone = {f"trivial_{n}": getattr(trivial, n)(text, text[:99]) for n in ("unigram", "bigram", "trigram")}
    assert trivial.text(text, text[:99]) == alone and trivial.text(text, text, ()) == {}
    assert trivial.text(text, text[:99], ["bigram"]) == {"trivial_bigram": alone["trivial_bigram"]}


def test_linear_is_the_minimum_of_its_objective():
    """Two classes of one input at +-1 with shares q: the scores' difference d solves sigma(d) - q + ridge d / 2 = 0."""
    q, ridge = 0.8, 0.05
    x = torch.tensor([[1.0]] * 50 + [[-1.0]] * 50, dtype=torch.float64)
    y = torch.tensor([1] * 40 + [0] * 10 + [0] * 40 + [1] * 10)
    got = trivial.linear(x, y, x, y, ridge=ridge)
    low, high = 0.0, 10.0  # w_1 - w_0 = d, and w_1 = -w_0 = d / 2 at the minimum, |W|^2 = d^2 / 2
    for _ in range(200):
        d = (low + high) / 2
        low, high = (d, high) if 1 / (1 + math.exp(-d)) - q + ridge * d / 2 < 0 else (low, d)
    want = q * math.log(1 + math.exp(-d)) + (1 - q) * math.log(1 + math.exp(d))
    assert got["loss"] == pytest.approx(want, abs=2e-5)
    assert got["accuracy"] == pytest.approx(q) and got["error"] == pytest.approx(1 - q)


def test_linear_separates_what_a_line_separates_and_nothing_else():
    source = torch.Generator().manual_seed(0)
    x = torch.randn(2000, 6, generator=source)
    w = torch.randn(6, 3, generator=source)
    y = (x @ w + 0.5).argmax(1)
    got = trivial.classes((x[:1500], y[:1500]), (x[1500:], y[1500:]), ("linear", "nearest_neighbour"))
    assert got["trivial_linear"] > 0.97 > got["trivial_nearest_neighbour"] > 0.6
    parity = (x[:, :2] > 0).sum(1) % 2
    assert abs(trivial.linear(x[:1500], parity[:1500], x[1500:], parity[1500:])["accuracy"] - 0.5) < 0.1


def test_nearest_neighbour_is_the_brute_force_one():
    source = torch.Generator().manual_seed(2)
    x, z = torch.rand(300, 1, 4, 4, generator=source), torch.rand(100, 1, 4, 4, generator=source)
    y, labels = torch.randint(0, 3, (300,), generator=source), torch.randint(0, 3, (100,), generator=source)
    right = 0
    for image, label in zip(z, labels, strict=True):
        distances = [float((image.double() - other.double()).square().sum()) for other in x]
        right += int(y[distances.index(min(distances))] == label)
    got = trivial.nearest_neighbour(x, y, z, labels, chunk=1000)
    assert got == {"accuracy": right / 100, "error": 1 - right / 100}


def test_mean_is_the_training_mean():
    got = trivial.mean(torch.tensor([[1.0, 2.0], [3.0, 6.0]]), torch.tensor([[2.0, 5.0]]))
    assert got == {"mse": 0.5, "rmse": math.sqrt(0.5), "mae": 0.5}


def test_the_same_content_is_computed_once(monkeypatch):
    calls = []
    monkeypatch.setattr(trivial, "_nats", lambda *a: calls.append(a) or 1.0)
    a = torch.tensor(TRAIN)
    assert trivial.unigram(a, a, vocab=4) == trivial.unigram(a.clone(), a, vocab=4) == 1.0
    assert len(calls) == 1
    trivial.unigram(a.flip(0), a, vocab=4)
    assert len(calls) == 2


def test_a_result_that_is_kept_cannot_be_spoilt():
    y = torch.tensor([1.0, 2.0])
    trivial.mean(y, y)["mse"] = 7.0
    assert trivial.mean(y, y)["mse"] == 0.25
