"""Trivial predictors: what a network must beat before anything is judged of it.

    unigram, bigram, trigram    frequencies of tokens; nats per token on held-out text
    linear                      multinomial logistic regression; accuracy, error and loss on the test set
    nearest_neighbour           the label of the nearest training example; accuracy and error
    mean                        the training mean of a regression target; mean squared and mean absolute error

Each is fitted on the training data that the network gets, has nothing to tune, and is a pure function of its data.
`text` and `classes` return what a row holds: `trivial_bigram`, `trivial_linear`, and so on.  Results are kept for the
life of the process, by a digest of the data, because all arms and seeds of an experiment ask for the same ones.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from functools import wraps

import torch
from torch import Tensor
from torch.nn import functional as F

ORDERS = {"unigram": 1, "bigram": 2, "trigram": 3}
STRENGTHS = (1.0, 4.0, 16.0, 64.0, 256.0)  # of the lower order's share; chosen on the end of the training text
TAIL = 1 << 19  # tokens of that end: a twentieth of the text, but at most so many
DENSE = 1 << 24  # counts of up to so many n-grams stand in a table, more in a sorted list
PIECE = 1 << 22  # tokens that are counted at once
RIDGE = 1e-2  # of the linear model, on inputs of zero mean and unit variance
_results: dict[tuple, object] = {}


# --- kept by content -------------------------------------------------------------------------------------------------


def _digest(value: object) -> object:
    if not isinstance(value, Tensor):
        return tuple(value) if isinstance(value, list) else value
    data = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
    return str(value.dtype), tuple(value.shape), str(value.device), hashlib.sha256(data).digest()


def _kept(function: Callable) -> Callable:
    """Compute once per content of the arguments."""

    @wraps(function)
    def call(*arguments: object, **options: object) -> object:
        named = [(name, _digest(options[name])) for name in sorted(options)]
        key = (function.__name__, *map(_digest, arguments), *named)
        if key not in _results:
            _results[key] = function(*arguments, **options)
        value = _results[key]
        return dict(value) if isinstance(value, dict) else value

    return call


# --- text ------------------------------------------------------------------------------------------------------------


def _rows(tokens: Tensor) -> Tensor:
    """Tokens on the CPU as rows (sequences, length); a vector is one sequence."""
    if tokens.dim() not in (1, 2) or tokens.is_floating_point():
        raise TypeError(f"tokens are {tokens.dtype} of {tokens.dim()} axes: write integers of 1 axis, or 2 (rows)")
    return tokens.cpu().view(1, -1) if tokens.dim() == 1 else tokens.cpu()


def _codes(rows: Tensor, order: int, vocab: int, ignore: int | None) -> Tensor:
    """Every n-gram of `order` tokens as one number, last token least; those that end in `ignore` are left out."""
    length = rows.shape[1] - order + 1
    code = torch.zeros(len(rows), max(length, 0), dtype=torch.int64)
    for k in range(order):
        code.mul_(vocab).add_(rows[:, k : k + length] if length > 0 else 0)
    return code.flatten() if ignore is None else code[code % vocab != ignore]


def _pieces(rows: Tensor, order: int) -> list[Tensor]:
    """The rows in pieces of about PIECE tokens, so that no n-gram is lost or counted twice."""
    if len(rows) > 1:
        return list(rows.split(max(1, PIECE // max(1, rows.shape[1]))))
    return [rows[:, max(0, at - order + 1) : at + PIECE] for at in range(0, rows.shape[1], PIECE)]


class _Counts:
    """How often every n-gram of one order occurs, and how often its first n - 1 tokens occur before any token."""

    def __init__(self, rows: Tensor, order: int, vocab: int, ignore: int | None):
        self.vocab, size = vocab, vocab**order
        codes = (_codes(piece, order, vocab, ignore) for piece in _pieces(rows, order))
        self.keys = None
        if size <= DENSE:
            self.counts = torch.zeros(size, dtype=torch.int64)
            for code in codes:
                self.counts += torch.bincount(code, minlength=size)
            self.contexts = self.counts.view(-1, vocab).sum(1)
            return
        self.keys, self.counts = torch.unique(torch.cat(list(codes)), return_counts=True)
        self.context_keys, where = torch.unique_consecutive(self.keys // vocab, return_inverse=True)
        self.contexts = torch.zeros(len(self.context_keys), dtype=torch.int64).index_add_(0, where, self.counts)

    def __call__(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Counts of the n-grams and of their contexts, float64."""
        if self.keys is None:
            return self.counts[codes].double(), self.contexts[codes // self.vocab].double()
        return _look_up(self.keys, self.counts, codes), _look_up(self.context_keys, self.contexts, codes // self.vocab)


def _look_up(keys: Tensor, counts: Tensor, wanted: Tensor) -> Tensor:
    if not len(keys):
        return torch.zeros(len(wanted), dtype=torch.float64)
    at = torch.searchsorted(keys, wanted).clamp_max(len(keys) - 1)
    return torch.where(keys[at] == wanted, counts[at], 0).double()


def _nats(tables: list[_Counts], rows: Tensor, ignore: int | None, strengths: Sequence[float]) -> float:
    """Mean of -log p over all tokens but the first of each row; a token with fewer tokens before it backs off."""
    total, number, vocab = 0.0, 0, tables[0].vocab
    for piece in rows.split(max(1, PIECE // max(1, rows.shape[1]))):
        for low in range(1, piece.shape[1], PIECE):  # targets low ... high - 1
            high, p = min(low + PIECE, piece.shape[1]), None
            for order, (table, strength) in enumerate(zip(tables, (0.0, *strengths), strict=True), 1):
                shortest = max(low, order - 1)  # earlier targets keep the estimate of the order below
                if shortest >= high:
                    break
                code = _codes(piece[:, shortest - order + 1 : high], order, vocab, None)
                count, context = table(code)
                shape = (len(piece), high - shortest)
                if p is None:
                    p = ((count + 1) / (context + vocab)).view(shape)
                else:
                    late = p[:, shortest - low :]
                    late = (count.view(shape) + strength * late) / (context.view(shape) + strength)
                    p = torch.cat([p[:, : shortest - low], late], 1)
            scored = -p.log()
            if ignore is not None:
                scored = scored[piece[:, low:high] != ignore]
            total, number = total + float(scored.sum()), number + scored.numel()
    if not number:
        raise ValueError("the held-out text has no token after the first of a row: write at least two tokens")
    return total / number


@_kept
def ngram(
    train: Tensor,
    held_out: Tensor,
    order: int,
    *,
    vocab: int = 256,
    strengths: tuple[float, ...] | None = None,
    ignore: int | None = None,
) -> float:
    """Nats per held-out token of an interpolated n-gram model (MacKay & Peto 1995).

        p_1(w)     = (c(w) + 1) / (c + V)
        p_n(w | h) = (c(h w) + s_n p_{n-1}(w | h')) / (c(h) + s_n)        h' is h without its first token

    train, held_out: integers below `vocab`, one sequence (length,) or rows (sequences, length), which n-grams do not
    cross.  The first token of a held-out row is not scored: it is what a network reads first.  Tokens equal to `ignore`
    (padding) are neither counted nor scored.  strengths: s_2 ... s_order; where None, each is chosen in turn
    from `STRENGTHS` on the end of the training text (a twentieth, at most `TAIL`), before all of it is counted.
    """
    if strengths is not None and len(strengths) != order - 1:
        raise ValueError(f"strengths={strengths}: an order of {order} has {order - 1}")
    rows, test = _checked(train, held_out, vocab)
    tables, strengths = _fit(rows, order, vocab, ignore, strengths)
    return _nats(tables, test, ignore, strengths)


def _checked(train: Tensor, held_out: Tensor, vocab: int) -> tuple[Tensor, Tensor]:
    rows, test = _rows(train), _rows(held_out)
    for name, part in (("train", rows), ("held_out", test)):
        if part.numel() and not 0 <= int(part.min()) <= int(part.max()) < vocab:
            raise ValueError(f"{name} holds tokens outside 0 to {vocab - 1}: write another vocab=")
    return rows, test


def _fit(
    rows: Tensor, order: int, vocab: int, ignore: int | None, strengths: tuple[float, ...] | None = None
) -> tuple[list[_Counts], tuple[float, ...]]:
    """The counts of every order up to this, and the strengths; those of a lower order are the first of them."""
    chosen = _choose(rows, order, vocab, ignore) if strengths is None else strengths
    return [_Counts(rows, n, vocab, ignore) for n in range(1, order + 1)], chosen


def _choose(rows: Tensor, order: int, vocab: int, ignore: int | None) -> tuple[float, ...]:
    if len(rows) > 1:
        cut = len(rows) - max(1, min(len(rows) // 20, TAIL // max(1, rows.shape[1])))
        first, last = rows[:cut], rows[cut:]
    else:
        cut = rows.shape[1] - max(2, min(rows.shape[1] // 20, TAIL))
        if cut < 2:
            return (STRENGTHS[1],) * (order - 1)
        first, last = rows[:, :cut], rows[:, cut:]
    tables, chosen = [_Counts(first, 1, vocab, ignore)], ()
    for n in range(2, order + 1):
        tables.append(_Counts(first, n, vocab, ignore))
        chosen += (min(STRENGTHS, key=lambda s: _nats(tables, last, ignore, (*chosen, s))),)
    return chosen


def unigram(train: Tensor, held_out: Tensor, **options: object) -> float:
    """Nats per token of `ngram` of order 1."""
    return ngram(train, held_out, 1, **options)


def bigram(train: Tensor, held_out: Tensor, **options: object) -> float:
    """Nats per token of `ngram` of order 2."""
    return ngram(train, held_out, 2, **options)


def trigram(train: Tensor, held_out: Tensor, **options: object) -> float:
    """Nats per token of `ngram` of order 3."""
    return ngram(train, held_out, 3, **options)


# --- labels and numbers ----------------------------------------------------------------------------------------------


def _flat(x: Tensor) -> Tensor:
    return x.flatten(1).to(torch.promote_types(x.dtype, torch.float32))


@_kept
def linear(
    train_x: Tensor,
    train_y: Tensor,
    test_x: Tensor,
    test_y: Tensor,
    *,
    classes: int | None = None,
    ridge: float = RIDGE,
    steps: int = 100,
) -> dict[str, float]:
    """Accuracy, error and loss (nats) of logistic regression: mean cross-entropy + ridge / 2 |W|^2, least by LBFGS.

    x: (n, ...) flattened, centred by the training mean of each input and divided by one deviation of all;
    y: (n,) of classes.  It is computed on the device of the data and draws nothing.
    """
    x, z = _flat(train_x), _flat(test_x)
    centre = x.mean(0)
    x = x - centre
    scale = x.square().mean().sqrt().clamp_min(1e-12)
    x, z = x / scale, (z - centre) / scale
    k = classes or int(max(train_y.max(), test_y.max())) + 1
    w = torch.zeros(k, x.shape[1] + 1, dtype=x.dtype, device=x.device, requires_grad=True)
    search = torch.optim.LBFGS(
        [w], max_iter=steps, tolerance_grad=1e-4, tolerance_change=1e-7, line_search_fn="strong_wolfe"
    )

    def scores(inputs: Tensor) -> Tensor:
        return (w[:, :-1] @ inputs.T).T + w[:, -1]  # its gradient is a fast product; that of inputs @ w.T is not

    def closure() -> Tensor:
        search.zero_grad()
        value = F.cross_entropy(scores(x), train_y) + ridge / 2 * w[:, :-1].square().sum()
        value.backward()
        return value

    with torch.enable_grad():
        search.step(closure)
    with torch.no_grad():
        logits = scores(z)
        loss = float(F.cross_entropy(logits, test_y))
        accuracy = float((logits.argmax(1) == test_y).double().mean())
    return {"accuracy": accuracy, "error": 1 - accuracy, "loss": loss}


@_kept
@torch.no_grad()
def nearest_neighbour(
    train_x: Tensor, train_y: Tensor, test_x: Tensor, test_y: Tensor, *, chunk: int = 1 << 24
) -> dict[str, float]:
    """Accuracy and error of the label of the nearest training example, by Euclidean distance; of two, the earlier.

    x: (n, ...) flattened.  At most `chunk` distances are held at once.
    """
    x, z = _flat(train_x), _flat(test_x)
    centre = x.mean(0)  # smaller numbers, so that |x|^2 - 2 x z loses fewer digits
    x, z = x - centre, z - centre
    squares, right = x.square().sum(1), 0
    for part, labels in zip(*(t.split(max(1, chunk // len(x))) for t in (z, test_y)), strict=True):
        nearest = torch.addmm(squares, part, x.T, alpha=-2).argmin(1)
        right += int((train_y[nearest] == labels).sum())
    accuracy = right / len(test_y)
    return {"accuracy": accuracy, "error": 1 - accuracy}


@_kept
def mean(train_y: Tensor, test_y: Tensor) -> dict[str, float]:
    """Mean squared error, its root and mean absolute error of the training targets' mean, one of each entry."""
    gap = test_y.double() - train_y.double().mean(0)
    mse = float(gap.square().mean())
    return {"mse": mse, "rmse": math.sqrt(mse), "mae": float(gap.abs().mean())}


# --- what a row holds ------------------------------------------------------------------------------------------------


@_kept
def text(
    train: Tensor,
    held_out: Tensor,
    names: Sequence[str] = ("unigram", "bigram", "trigram"),
    *,
    vocab: int = 256,
    ignore: int | None = None,
) -> dict[str, float]:
    """`{"trivial_<name>": nats per token}` of the n-gram models, which share their counts; arguments as in `ngram`."""
    orders = {name: ORDERS[name] for name in names}
    if not orders:
        return {}
    rows, test = _checked(train, held_out, vocab)
    tables, strengths = _fit(rows, max(orders.values()), vocab, ignore)
    return {f"trivial_{name}": _nats(tables[:n], test, ignore, strengths[: n - 1]) for name, n in orders.items()}


def classes(
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    names: Sequence[str] = ("linear",),
    *,
    measure: str = "accuracy",
) -> dict[str, float]:
    """`{"trivial_<name>": value}` of `linear` and `nearest_neighbour`; measure: accuracy, error or (linear) loss."""
    predictors = {"linear": linear, "nearest_neighbour": nearest_neighbour}
    return {f"trivial_{name}": predictors[name](*train, *test)[measure] for name in names}
