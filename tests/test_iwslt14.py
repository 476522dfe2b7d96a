"""The recipe of IWSLT14: text, batches, the model as fairseq has it, averaged weights, beam search."""

import itertools
import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from repro.data import original
from repro.data.kinds import END, PAD, START, Pairs, sentences
from repro.errors import ReproError
from repro.experiments import iwslt14
from repro.experiments.iwslt14 import Iwslt14, Reader, beam_search, encoder_norms, grouped, translator
from repro.models.slots import identity
from repro.models.transformer import Attention

SMALL = {"width": 8, "depth": 2, "heads": 2, "hidden": 12, "dropout": 0.0, "inner_dropout": 0.0}


def config(**changed):
    return Iwslt14(**{**SMALL, "steps": 1, "batch": 64, "lr": 0.001, "warmup": 2, "averaged": 2, **changed})


def small(**changed):
    return translator(9, "test iwslt14", 0, config(**changed))


def table(*rows):
    return torch.tensor(rows)


# --- text and batches -------------------------------------------------------------------------------------------------


def pairs(german, english):
    text = {"train": (german, english), "valid": (["ja ."], ["yes ."]), "test": (["Nein !"], ["No &apos;s !"])}
    return Pairs(
        *({s: sentences([line.encode() for line in both[k]], "cpu") for s, both in text.items()} for k in (0, 1))
    )


def test_text_is_lower_case_and_its_marks_are_marks(monkeypatch, tmp_path):
    known = pairs(["Es ist &quot; gut &quot; .", "so ."], ["It &apos;s &quot; good &quot; .", "so ."])
    monkeypatch.setattr(original, "pairs", lambda name: known)
    monkeypatch.setattr(iwslt14.libreoffice.DATASET.__class__, "folder", lambda self: tmp_path)
    iwslt14.load.cache_clear()
    text = config(merges=5).load(torch.device("cpu"))
    (source, target), words = text.train[0], [text.pieces.decode(row) for row in text.train[0][1][:, 1:].tolist()]
    assert sorted(words) == ['it \'s " good " .', "so ."]
    assert (target[:, 0] == START).all() and ((source == END).sum(1) == 1).all() and ((target == END).sum(1) == 1).all()
    assert text.test[0][1] == [["no", "'s", "!"]] and len(text.valid) == 1
    assert text.trivial[0].shape[0] == 2 and text.trivial[1].shape[0] == 1
    monkeypatch.setattr(original, "pairs", lambda name: pairs(["gut."], ["Good, it's good."]))
    iwslt14.load.cache_clear()
    with pytest.raises(ReproError, match="are not apart"):
        config(merges=5).load(torch.device("cpu"))
    iwslt14.load.cache_clear()


def test_batches_hold_so_many_pieces_on_the_longer_side():
    source = torch.Generator().manual_seed(0)
    lengths = [tuple(pair) for pair in torch.randint(2, 20, (200, 2), generator=source).tolist()]
    groups = grouped(lengths, 64)
    assert sorted(itertools.chain(*groups)) == list(range(200))
    sizes = [len(group) * max(max(lengths[i]) for i in group) for group in groups]
    assert max(sizes) <= 64 and sum(sizes) / len(sizes) > 48
    assert [lengths[i] for group in groups for i in group] == sorted(lengths)
    for group, after in itertools.pairwise(groups):  # the next one would not have fitted
        assert (len(group) + 1) * max(max(lengths[i]) for i in [*group, after[0]]) > 64
    assert grouped([(90, 3), (2, 2)], 64) == [[1], [0]]  # one that is longer than a batch stands alone


# --- the model --------------------------------------------------------------------------------------------------------


def test_parameters_of_transformer_iwslt_de_en():
    """Per block of the encoder 4 (D^2 + D) + 2 D H + D + H + 4 D, of the decoder 8 (D^2 + D) + 2 D H + D + H + 6 D."""
    with torch.device("meta"):
        model = translator(10_152, "test iwslt14", 0, Iwslt14(steps=1, batch=1, lr=1.0, warmup=1, averaged=1))
    d, h = 512, 1024
    blocks = 12 * (d * d + d) + 2 * (2 * d * h + d + h) + 10 * d
    assert sum(p.numel() for p in model.parameters()) == 6 * blocks + 2 * 2 * d + 10_152 * d == 36_743_168
    assert [part.p for part in model.modules() if isinstance(part, nn.Dropout)].count(0.1) == 12  # behind each ReLU
    assert all(part.attend.rate == 0.1 for part in model.modules() if isinstance(part, Attention))


def test_first_weights():
    model = small(width=64, hidden=128, heads=4)
    for part in model.modules():
        if isinstance(part, Attention):
            for layer, variance in ((part.query, 0.5), (part.key, 0.5), (part.value, 0.5), (part.out, 1.0)):
                assert layer.weight.square().mean().item() == pytest.approx(variance / 64, rel=0.1)
    assert not model.embedding.weight[PAD].any() and model.embedding.weight[PAD + 1].any()
    assert model.head.weight is model.embedding.weight is model.target_embedding.weight


def test_attention_drops_weights_in_training_alone():
    dropped, q = iwslt14.Dropped(0.5), torch.randn(1, 1, 3, 4, generator=torch.Generator().manual_seed(0))
    want = F.scaled_dot_product_attention(q, q, q)
    torch.testing.assert_close(dropped.eval()(q, q, q, None, False), want)
    assert not torch.allclose(dropped.train()(q, q, q, None, False), want)


def test_padding_changes_nothing_and_norms_are_told_of_it():
    seen = []

    class Norm(nn.Module):
        def forward(self, x, mask):
            seen.append(mask)
            return x * (~mask)[..., None]

    model = small().double()
    encoder_norms(model, lambda last: Norm())
    short, long = table([4, 5, END]), table([4, 5, END, PAD, PAD])
    (one, _), (other, keep) = model.encode(short), model.encode(long)
    torch.testing.assert_close(other[:, :3], one)
    assert len(seen) == 2 * (2 * 2 + 1) and seen[-1].tolist() == [[False] * 3 + [True] * 2]
    assert model.padding.mask is None and keep[0, 0, 0].tolist() == [True] * 3 + [False] * 2
    assert isinstance(model.decoder[0][0].norm, nn.LayerNorm) and isinstance(model.decoder_norm, nn.LayerNorm)
    assert not model._read(model.embedding, long)[0, 3:].any()


# --- averaged weights -------------------------------------------------------------------------------------------------


def test_weights_of_the_last_epochs_are_averaged(monkeypatch):
    """Three batches an epoch, ten steps, the ends of three epochs: after 4, 7 and 10 updates."""
    model, taken, read = small(), [], []
    batches = [(table([4, END]), table([START, 5, END]))] * 3
    rows = table([1, 4]), table([1, 4])
    text = SimpleNamespace(train=batches, valid=batches, test=[], pieces=range(9), trivial=rows)
    take, forward = Reader.take, Reader.forward
    monkeypatch.setattr(iwslt14, "bleu", lambda ours, theirs: 7.0)
    monkeypatch.setattr(Reader, "forward", lambda self, number: (read.append(number), forward(self, number))[1])
    monkeypatch.setattr(
        Reader, "take", lambda self: (taken.append((len(read), model.head.weight.clone())), take(self))[1]
    )
    chosen = config(steps=10, averaged=3, trivial=())
    found = iwslt14.translated(model, text, "test iwslt14", 0, chosen, torch.device("cpu"))
    assert [count for count, _ in taken] == [5, 8, 10]  # a batch is read before the update
    assert found["val_steps"] == [3, 6, 9, 10] and len(found["val_curve"]) == 4 and found["bleu"] == 7.0
    torch.testing.assert_close(model.head.weight, torch.stack([weight for _, weight in taken]).mean(0))


def test_buffers_are_averaged_too():
    model = translator(9, "test iwslt14", 0, config(), nn.LayerNorm)
    model.encoder_norm = nn.BatchNorm1d(8)
    reader = Reader(model, [])
    for value in (1.0, 2.0, 6.0):
        model.encoder_norm.running_mean.fill_(value)
        reader.take()
    reader.settle()
    assert model.encoder_norm.running_mean.tolist() == [3.0] * 8 and model.encoder_norm.num_batches_tracked == 0
    assert {"taken", "mean_0"} <= set(reader.state_dict())


# --- beam search ------------------------------------------------------------------------------------------------------


class Chain:
    """A model whose next piece hangs on the last one alone, by a table of probabilities, one table a source."""

    def __init__(self, *tables):
        self.tables = torch.tensor(tables, dtype=torch.float64).log()

    def encode(self, source):
        return source, source

    def decode(self, memory, keep, read):
        return self.tables[memory[:, 0]][torch.arange(len(read))[:, None], read]


def exhaustive(table, penalty, longest):
    best = (-math.inf, ())
    for count in range(1, longest + 1):
        for middle in itertools.product(range(END + 1, len(table)), repeat=count):
            path = [START, *middle, END]
            total = sum(float(table[a, b]) for a, b in itertools.pairwise(path)) / (count + 1) ** penalty
            best = max(best, (total, tuple(path[1:])))
    return list(best[1])


@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.0])
def test_a_wide_beam_finds_the_best_of_all(penalty):
    source = torch.Generator().manual_seed(3)
    chain = Chain(*torch.rand(6, 6, 6, generator=source).add(0.02).log_softmax(-1).exp().tolist())
    got = beam_search(chain, torch.arange(6)[:, None], 120, penalty, 3)
    for row, table_ in zip(got.tolist(), chain.tables.log_softmax(-1), strict=True):
        want = exhaustive(table_, penalty, 3)
        assert row == want + [PAD] * (4 - len(want))


def test_two_hypotheses_find_what_one_misses():
    """a (0.6) leads to ends of 0.3 alone, b (0.4) to a sure one."""
    rare, a, b, c = 1e-9, 3, 4, 5
    rows = [[rare] * 6 for _ in range(6)]
    rows[START][a], rows[START][b] = 0.6, 0.4
    rows[a][END], rows[a][c], rows[a][a] = 0.3, 0.35, 0.35
    rows[b][END], rows[c][END] = 1.0, 0.3
    rows[c][c] = 0.7
    one, two = (beam_search(Chain(rows), table([0]), beam, 1.0, 4)[0].tolist() for beam in (1, 2))
    assert two == [b, END, PAD, PAD, PAD] and one[0] == a


def test_neither_an_empty_translation_nor_one_without_end():
    rows = [[0.01] * 5 for _ in range(5)]
    rows[START][END], rows[3][3] = 0.9, 0.9
    got = beam_search(Chain(rows), table([0]), 2, 1.0, 3)[0].tolist()
    assert got[0] not in (PAD, START, END) and END in got and START not in got


@torch.no_grad()
def test_one_hypothesis_is_the_likeliest_piece_step_by_step():
    model = small().eval()
    for row in beam_search(model, source := table([4, 5, END, PAD], [6, 7, 8, END]), 1, 1.0, 12).tolist():
        words, read = source[0][source[0] != PAD][None], [START]
        source = source[1:]
        while read[-1] != END and len(read) <= 12:
            likely = model.decode(*model.encode(words), table(read))[0, -1]
            likely[[PAD, START, *([END] if len(read) == 1 else [])]] = -torch.inf
            read.append(int(likely.argmax()))
        ours = read[1:] if read[-1] == END else [*read[1:], END]
        assert row == ours + [PAD] * (13 - len(ours))


def test_norms_of_the_slot_pass_through():
    assert not [
        m for m in translator(9, "test iwslt14", 0, config(), identity).modules() if isinstance(m, nn.LayerNorm)
    ]
