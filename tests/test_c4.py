"""LLaMA on C4: the model that the papers print, documents as T5's tokens, and a batch that is read in parts."""

import json
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from repro.data import original
from repro.errors import ReproError
from repro.experiments import c4
from repro.experiments.c4 import C4, PAD, Reader, documents, llama, load, tokenizer
from repro.papers.curse_of_depth import LayerNormScaling
from repro.testing import assert_near
from repro.train import fit

SMALL = {"depth": 2, "context": 8, "batch": 4, "steps": 2, "lr": 0.1, "warmup": 0.5, "eval_every": 1}
META = torch.device("meta")


def config(width=8, heads=2, **options):
    return C4(**{**SMALL, "width": width, "heads": heads, **options})


def size(model):
    return sum(p.numel() for p in model.parameters())


# --- the model -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width, heads, hidden, count", [(512, 8, 1368, 70_578_688), (768, 12, 2048, 134_105_856)])
def test_the_models_of_the_papers(width, heads, hidden, count):
    """Hidden widths and sizes as in the authors' configs/llama_71m.json and llama_130m.json."""
    with META:
        model = llama("mix", 0, config(width, heads, depth=12, context=256), c4.VOCAB, META)
    assert size(model) == count and model.blocks[0].feed_forward.sublayer.up.out_features == hidden
    assert count == 2 * 32_000 * width + 12 * (4 * width**2 + 3 * width * hidden + 2 * width) + width
    assert {m.eps for m in model.modules() if isinstance(m, nn.RMSNorm)} == {1e-6}
    assert [type(b.attention).__name__ for b in model.blocks] == ["Post"] * 3 + ["Pre"] * 9


def test_deviations_do_not_depend_on_the_width():
    for width in (48, 192):
        model = llama("lns", 0, config(width), 512, torch.device("cpu"))
        assert isinstance(model.blocks[1].attention, LayerNormScaling)
        for weight in (model.embedding.weight, model.head.weight, model.blocks[1].attention.sublayer.qkv.weight):
            assert weight.std().item() == pytest.approx(0.02, rel=0.05)
    scaled = llama("scaled_init", 0, config(192, depth=8), 512, torch.device("cpu"))
    assert scaled.blocks[0].attention.sublayer.out.weight.std().item() == pytest.approx(0.02 / 4, rel=0.05)


# --- a batch in parts ------------------------------------------------------------------------------------------------


def padded(count=5, length=8, vocab=11):
    """Documents of which some end in padding."""
    tokens = torch.randint(1, vocab, (count, length), generator=torch.Generator().manual_seed(0))
    for row, end in enumerate((8, 3, 8, 1, 6)):
        tokens[row, end:] = PAD
    return tokens.to(torch.int16)


@pytest.mark.parametrize("part", [1, 2, 5])
def test_parts_have_the_loss_and_the_gradient_of_the_whole(part):
    model, tokens = llama("mix", 0, config(), 11, torch.device("cpu")).double(), padded()
    x, y = tokens[:, :-1].long(), tokens[:, 1:].long()
    want = F.cross_entropy(model(x).flatten(0, 1), y.masked_fill(y == PAD, -100).flatten())
    gradients = torch.autograd.grad(3 * want, list(model.parameters()))
    reader = Reader(model, part)
    got = reader(tokens)
    (3 * got).backward()
    assert_near(got.detach().double(), want.detach(), rel=1e-6)
    for p, gradient in zip(model.parameters(), gradients, strict=True):
        assert_near(p.grad, gradient, rel=1e-5, floor=1e-8)
    with torch.no_grad():
        assert_near(reader(tokens), got.detach(), rel=1e-6)


def test_parts_train_as_the_whole_does():
    found = []
    for part in (1, 4):
        reader = Reader(llama("pre", 0, config(), 11, torch.device("cpu")), part)
        tokens = padded()
        options = {"steps": 3, "batch": 4, "lr": 0.01, "seed": 0, "optimizer": "adam", "loss": lambda nats, _: nats}
        history = fit(reader, (tokens, tokens), **options)
        found.append((history.train_loss, [p.detach() for p in reader.parameters()]))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    for one, other in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_padding_is_neither_read_nor_scored():
    model, tokens = llama("post", 0, config(), 11, torch.device("cpu")), padded()[1:2]
    with torch.no_grad():
        assert_near(Reader(model, 4)(tokens), Reader(model, 4)(tokens[:, :3]), rel=1e-6)


def test_perplexity_of_a_stand_in():
    small = config(text="shakespeare", windows=4, part=2, trivial=())
    found = c4.c4("lns", 0, small, torch.device("cpu"))
    assert found["perplexity"] == pytest.approx(math.exp(found["token_curve"][-1])) and found["steps"] == [1, 2]
    assert 50 < found["perplexity"] < 300  # of 256 bytes, after two steps
    vocab, train, held_out = load("shakespeare", 8, 4, 8, torch.device("cpu"))
    assert (vocab, train.shape, held_out.shape) == (256, (8, 8), (4, 8)) and PAD not in train
    vocab, train, _ = load("c4", 1 << 30, 1, 8, META)
    assert vocab == 32_000 and train.shape == (64, 8) and train.is_meta


# --- tokens ----------------------------------------------------------------------------------------------------------

WORDS = "translate English to German : The house is wonderful . a b".split()


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A tokenizer with T5's ids for its known sentence, one id for all else, in the place where one is looked for."""
    pytest.importorskip("tokenizers")
    ids = dict(zip(WORDS, c4.KNOWN[1][:-1] + [100, 32_050], strict=True))
    named = {"<pad>": PAD, "</s>": 1, "<unk>": c4.UNKNOWN, **ids}
    end = {"SpecialToken": {"id": "</s>", "type_id": 0}}
    made = {
        "version": "1.0",
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"Sequence": {"id": "A", "type_id": 0}}, end],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, end, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"</s>": {"id": "</s>", "ids": [1], "tokens": ["</s>"]}},
        },
        "model": {"type": "WordLevel", "vocab": named, "unk_token": "<unk>"},
        "added_tokens": [],
    }
    monkeypatch.setattr(c4, "cache_root", lambda: tmp_path)
    (tmp_path / "t5-base").mkdir()
    (tmp_path / "t5-base" / "tokenizer.json").write_text(json.dumps(made))
    return tmp_path


def test_documents_end_and_are_cut_or_padded(files, monkeypatch):
    texts = ["The house", "a a a a a a a a a", "b what", ""]
    asked = []

    def rows(name, split, stream):
        asked.append((name, split, stream))
        return ({"text": text} for text in texts)

    monkeypatch.setattr(original, "rows", rows)
    want = [[37, 629, 1, 0, 0], [100, 100, 100, 100, 1], [2, 2, 1, 0, 0]]  # b is one of T5's marks beyond the model's
    for _ in range(2):
        got = documents("train", 3, 5)
        assert got.dtype == torch.int16 and got.tolist() == want
    assert asked == [("c4", "train", True)], "read again from its file"
    with pytest.raises(ReproError, match="4 documents in the split 'valid', 5 wanted"):
        documents("valid", 5, 5)
    assert [path.name for path in (files / "c4").iterdir()] == ["t5-base-train-3x5.npy"]


def test_another_tokenizer_is_refused(files):
    file = files / "t5-base" / "tokenizer.json"
    assert tokenizer(4).encode("The").ids == [37, 1, 0, 0]
    file.write_text(file.read_text().replace("13959", "13958"))
    with pytest.raises(ReproError, match="is not that of google-t5/t5-base"):
        tokenizer(4)
    file.write_text("{}")
    with pytest.raises(ReproError, match="no tokenizer google-t5/t5-base"):
        tokenizer(4)
