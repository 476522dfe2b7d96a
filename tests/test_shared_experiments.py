"""The experiments that several papers share: translation, language models, images.  Each arm takes steps."""

import math
import os
import subprocess
import sys
from collections import Counter

import pytest
import torch
from torch.nn import functional as F

from repro import trivial
from repro.data import bpe
from repro.data.kinds import END, PAD, START, Corpus, Images, Pairs, sentences
from repro.experiments import images, language_model, translation
from repro.models.transformer import Transformer
from repro.train import cosine, generator, inverse_sqrt

CPU = torch.device("cpu")


# --- byte pair encoding -----------------------------------------------------------------------------------------------


def slowly(lines: list[str], merges: int) -> list[tuple[str, str]]:
    """Sennrich's algorithm, counting everything again at each step."""
    words = [list(w) for line in lines for w in bpe.cut(line)]
    out = []
    for _ in range(merges):
        pairs = Counter(p for w in words for p in zip(w, w[1:], strict=False))
        if not pairs or max(pairs.values()) < 2:
            break
        best = min(pairs, key=lambda p: (-pairs[p], p))
        out.append(best)
        words = [bpe._merged(w, best) for w in words]
    return out


TEXT = [
    "the cat sat on the mat, the mat!",
    "that cat that sat",
    "aaaa aaa aa baaab",
    "Die Katze sitzt; die Katzen sitzen.",
]


def test_merges_are_those_of_counting_anew():
    assert bpe.learn(TEXT, 40) == slowly(TEXT, 40)
    assert bpe.learn(TEXT, 40) == bpe.learn(list(TEXT), 40) and len(bpe.learn(TEXT, 3)) == 3


def test_kept_pieces_are_read_under_any_locale(tmp_path):
    code = "import pathlib, sys; from repro.data import bpe; bpe.kept(['a rose'], 3, pathlib.Path(sys.argv[1]))"
    environment = {**os.environ, "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    for _ in range(2):  # the second reads what the first wrote
        subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, env=environment)
    (path,) = tmp_path.iterdir()
    assert "\u2581" in path.read_text("utf-8")


def test_pieces_are_reversible_and_kept(tmp_path, monkeypatch):
    pieces = bpe.Pieces.learnt(TEXT, 20)
    for line in TEXT:
        assert pieces.decode([*pieces.encode(line), END, 7]) == " ".join(line.split())
    assert pieces.pieces[:4] == list(bpe.SPECIAL) and pieces.encode("the")[0] > 3
    assert 3 in pieces.encode("\u00df")
    first = bpe.kept(TEXT, 20, tmp_path)
    monkeypatch.setattr(bpe, "learn", None)
    assert bpe.kept(TEXT, 20, tmp_path).pieces == first.pieces == pieces.pieces
    (file,) = tmp_path.iterdir()
    file.write_text(file.read_text() + "x y\n")
    with pytest.raises(TypeError):  # it is learnt again
        bpe.kept(TEXT, 20, tmp_path)


# --- the Transformer --------------------------------------------------------------------------------------------------


def transformer(**options) -> Transformer:
    return Transformer(11, 5, 6, 16, 2, heads=2, generator=generator("t", 0), **options).eval()


def test_the_transformer_looks_only_where_it_may():
    model = transformer()
    source, target = torch.tensor([[4, 5, END, PAD, PAD]]), torch.tensor([[START, 6, 7, 8]])
    logits = model(torch.cat([source, target], 1))
    assert logits.shape == (1, 4, 11)
    later, other = target.clone(), source.clone()
    later[0, 3], other[0, 1] = 9, 6
    changed = model(torch.cat([source, later], 1))
    assert torch.allclose(changed[:, :3], logits[:, :3], atol=1e-6) and not torch.allclose(changed, logits)
    assert not torch.allclose(model(torch.cat([other, target], 1))[:, 0], logits[:, 0])
    memory, keep = model.encode(source)
    assert keep.flatten().tolist() == [True, True, True, False, False]
    short = transformer()
    short.load_state_dict(model.state_dict())
    short.source = 3
    assert torch.allclose(short(torch.cat([source[:, :3], target], 1)), logits, atol=1e-5)
    with pytest.raises(ValueError, match="6 to 11"):
        model(source)


def test_the_transformer_is_the_one_of_torch():
    """One encoder and one decoder block of nn.TransformerEncoderLayer and nn.TransformerDecoderLayer, same weights."""
    model = transformer()
    options = {"dim_feedforward": 64, "dropout": 0.0, "batch_first": True}
    encoder = torch.nn.TransformerEncoderLayer(16, 2, **options)
    decoder = torch.nn.TransformerDecoderLayer(16, 2, **options)

    def copied(attention, theirs):
        layers = (attention.query, attention.key, attention.value)
        theirs.in_proj_weight.data = torch.cat([layer.weight.data for layer in layers])
        theirs.in_proj_bias.data = torch.cat([layer.bias.data for layer in layers])
        theirs.out_proj.load_state_dict(attention.out.state_dict())

    parts, theirs = model.encoder[0], encoder
    copied(parts[0].sublayer, theirs.self_attn)
    theirs.linear1.load_state_dict(parts[1].sublayer.up.state_dict())
    theirs.linear2.load_state_dict(parts[1].sublayer.down.state_dict())
    x = torch.randn(3, 5, 16)
    assert torch.allclose(parts(x), theirs.train()(x), atol=1e-5)
    parts, theirs = model.decoder[0], decoder
    copied(parts[0].sublayer, theirs.self_attn)
    copied(parts[1].sublayer, theirs.multihead_attn)
    theirs.linear1.load_state_dict(parts[2].sublayer.up.state_dict())
    theirs.linear2.load_state_dict(parts[2].sublayer.down.state_dict())
    y, mask = torch.randn(3, 6, 16), torch.nn.Transformer.generate_square_subsequent_mask(6)
    model.around.memory = x
    assert torch.allclose(parts(y), theirs(y, x, tgt_mask=mask), atol=1e-5)


def test_tied_and_untied_and_norms():
    tied, untied = transformer(), transformer(tied=False)
    assert tied.head.weight is tied.embedding.weight is tied.target_embedding.weight
    assert untied.head.weight is not untied.embedding.weight is not untied.target_embedding.weight
    assert isinstance(tied.decoder_norm, torch.nn.Identity)
    assert isinstance(transformer(placement="pre").decoder_norm, torch.nn.LayerNorm)


def test_greedy_translation_takes_the_likeliest_piece():
    model = transformer()
    source = torch.tensor([[4, 5, END, PAD, PAD], [7, END, PAD, PAD, PAD]])
    out = model.translate(source)
    for row, x in zip(out, source, strict=True):
        read = [START]
        for piece in row.tolist():
            logits = model(torch.cat([x, torch.tensor(read)])[None])[0, -1]
            assert piece == int(logits.argmax())
            if piece == END:
                break
            read.append(piece)


# --- translation ------------------------------------------------------------------------------------------------------


@pytest.fixture
def tiny_pairs(monkeypatch, tmp_path):
    english = [f"the {a} {b} here today" for a in ("cat", "dog", "cow", "hen") for b in ("eats", "sleeps", "runs")] * 4
    german = [e.replace("the", "Das").replace("cat", "Tier").replace("eats", "frisst") for e in english]
    sides = [
        {s: sentences([x.encode() for x in lines], "cpu") for s in ("train", "valid")} for lines in (english, german)
    ]
    monkeypatch.setattr(translation.libreoffice, "load", lambda: Pairs(*sides))
    monkeypatch.setattr(type(translation.libreoffice.DATASET), "folder", lambda self, cache=None: tmp_path)
    translation.load.cache_clear()
    yield
    translation.load.cache_clear()


def small_translation(**options) -> translation.Translation:
    chosen = {"steps": 4, "batch": 8, "lr": 3e-3, "width": 16, "depth": 1, "heads": 2, "hidden": 32, "length": 12}
    chosen |= {"merges": 30, "warmup": 0.5, "eval_every": 2}
    return translation.Translation(**{**chosen, **options})


@pytest.mark.parametrize("arm", translation.ARMS)
def test_every_translation_arm_takes_steps(arm, tiny_pairs):
    got = translation.translation(arm, 0, small_translation(), CPU)
    assert math.isfinite(got["val_nats"]) and got["val_curve"][-1] == pytest.approx(got["val_nats"])
    assert got["steps"] == ([0] if arm == "untrained" else [0, 2, 4])


def test_a_translation_model_learns_what_n_grams_cannot(tiny_pairs):
    config = small_translation(steps=150, lr=1e-2, warmup=0.1, smoothing=0.0, translated=8, eval_every=150)
    got = translation.translation("layernorm", 0, config, CPU)
    assert got["val_nats"] < got["trivial_bigram"] < got["trivial_unigram"] and got["bleu"] > 50
    pieces, train, valid = translation.load("libreoffice", 30, 12, CPU)
    rows = [row[: row.index(END) + 1] for row in valid.target.tolist()]
    assert all(row[0] == START for row in rows)
    want = trivial.unigram(train.target, valid.target, vocab=len(pieces), ignore=PAD)
    assert got["trivial_unigram"] == want


@torch.no_grad()
def test_the_score_is_that_of_each_sentence_alone(tiny_pairs):
    config = small_translation()
    pieces, _, valid = translation.load("libreoffice", 30, 12, CPU)
    model = translation.build(translation.ARMS["layernorm"], 0, config, len(pieces), CPU).eval()
    total, count = 0.0, 0
    for x, row in zip(valid.source, valid.target, strict=True):
        y = row[: row.tolist().index(END) + 1]
        logits = model(torch.cat([x, y[:-1]])[None])[0]
        total += float(F.cross_entropy(logits, y[1:], reduction="sum"))
        count += len(y) - 1
    assert translation.score(model, valid, 7)["loss"] == pytest.approx(total / count, rel=1e-5)


def test_bleu_by_hand():
    same = "the quick brown fox jumps over the lazy dog".split()
    assert translation.bleu([same], [same]) == pytest.approx(100)
    # Papineni et al. 2002, Section 2.1: "the" seven times against two: clipped precision 2 / 7.
    reference = "the cat is on the mat".split()
    assert translation.bleu([["the"] * 7], [reference], order=1) == pytest.approx(100 * 2 / 7)
    # matches 5/6, 3/5, 2/4, 1/3 of n-grams; the lengths are equal
    ours, theirs = "a b c d x f".split(), "a b c d e f".split()
    want = (5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25
    assert translation.bleu([ours], [theirs]) == pytest.approx(100 * want)
    # a shorter hypothesis: exp(1 - 6 / 5)
    assert translation.bleu([theirs[:5]], [theirs]) == pytest.approx(100 * math.exp(1 - 6 / 5))
    # over a corpus counts are summed, not scores averaged
    both = translation.bleu([ours, same], [theirs, same])
    want = ((5 + 9) / 15 * (3 + 8) / 13 * (2 + 7) / 11 * (1 + 6) / 9) ** 0.25
    assert both == pytest.approx(100 * want)
    assert translation.bleu([["x"] * 5], [theirs]) == 0


@pytest.mark.parametrize("schedule", [cosine(0.25), inverse_sqrt(0.25)])
def test_a_cold_schedule_is_the_same_after_the_warm_up(schedule):
    cold, steps = translation.cold(schedule), 40
    for step in range(steps):
        assert cold(step, steps) == (pytest.approx(schedule(step, steps)) if step >= 10 else pytest.approx(1.0))


# --- language models --------------------------------------------------------------------------------------------------


@pytest.fixture
def tiny_text(monkeypatch):
    text = torch.frombuffer(bytearray(b"to be, or not to be: that is the question. " * 40), dtype=torch.uint8)
    monkeypatch.setitem(
        language_model.Text.load.__globals__["TEXTS"], "shakespeare", lambda d: Corpus(text, text[:400], text)
    )


def small_model(**options) -> language_model.LanguageModel:
    chosen = {"steps": 2, "batch": 2, "lr": 1e-3, "context": 16, "windows": 4, "text": "shakespeare", "width": 16}
    chosen |= {"depth": 8, "heads": 2, "warmup": 0.5, "eval_every": 1}
    return language_model.LanguageModel(**{**chosen, **options})


@pytest.mark.parametrize("arm", language_model.ARMS)
def test_every_language_model_arm_takes_steps(arm, tiny_text):
    got = language_model.language_model(arm, 0, small_model(), CPU)
    assert got["steps"] == ([0] if arm.endswith("untrained") else [0, 1, 2])
    assert len(got["mean_square"]) == len(got["angular_distance"]) == len(got["drop_increase"]) == 8
    assert math.isfinite(got["val_nats"]) and got["trivial_trigram"] < got["trivial_bigram"]


def test_language_models_start_alike_and_learn(tiny_text):
    config = small_model(steps=60, lr=1e-2, width=32, depth=2, eval_every=60, warmup=0.1)
    got = {a: language_model.language_model(a, 0, config, CPU) for a in ("pre", "lns")}
    assert got["pre"]["val_nats"] < 1.5 < got["pre"]["val_curve"][0]
    builds = [language_model.build(language_model.ARMS[a], 3, config, 256, CPU) for a in ("pre", "post", "scalenorm")]
    for name, p in builds[0].named_parameters():
        if p.dim() == 2:
            assert all(torch.equal(p, dict(b.named_parameters())[name]) for b in builds[1:])


# --- images -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def tiny_images(monkeypatch):
    def made(channels: int, side: int) -> Images:
        source = torch.Generator().manual_seed(0)
        y = torch.arange(60) % 10
        base = torch.randint(0, 256, (10, channels, side, side), generator=source)
        x = (base[y] * 0.7 + torch.randint(0, 76, (60, channels, side, side), generator=source)).byte()
        parts = x[:40], y[:40], x[40:50], y[40:50], x[50:], y[50:]
        return Images(*parts, classes=10, mean=(0.5,) * channels, std=(0.3,) * channels)

    table = images.Pictures.load.__globals__["PICTURES"]
    for name, shape in (("mnist", (1, 28)), ("fashion_mnist", (1, 28)), ("fashion_mnist_m", (3, 32))):
        monkeypatch.setitem(table, name, lambda device, shape=shape: made(*shape))


COMMON = {"examples": 40, "test": 10, "steps": 2, "batch": 8, "lr": 1e-2, "eval_every": 1}


@pytest.mark.parametrize("arm", [a for a in images.ARMS if a.startswith("vit_")])
def test_every_vit_arm_takes_steps(arm, tiny_images):
    config = images.Vit(**COMMON, patch=7, dim=16, depth=1)
    got = images.vit(arm, 0, config, CPU)
    assert math.isfinite(got["val_nats"]) and got["steps"] == [1, 2] and got["trivial_linear"] > 0.5


@pytest.mark.parametrize("arm", [a for a in images.ARMS if not a.startswith(("vit_", "sigmoid_", "mlp_"))])
def test_every_resnet_arm_takes_steps(arm, tiny_images):
    config = images.ResNet(**COMMON, data="fashion_mnist_m", pool=4, depth=8, width=4, ghost=2, groups=2)
    got = images.resnet(arm, 0, config, CPU)
    assert math.isfinite(got["val_nats"]) and len(got["accuracy_curve"]) == 2


@pytest.mark.parametrize("arm", [a for a in images.ARMS if a.startswith("sigmoid_")])
def test_every_sigmoid_arm_takes_steps(arm, tiny_images):
    got = images.sigmoids(arm, 0, images.Sigmoids(**{**COMMON, "batch": 10}, width=12), CPU)
    assert got["low"] <= got["middle"] <= got["high"] and got["error"] == pytest.approx(1 - got["accuracy"])


@pytest.mark.parametrize("arm", [a for a in images.ARMS if a.startswith("mlp_")])
def test_every_perceptron_arm_takes_steps(arm, tiny_images):
    got = images.permutation_invariant(arm, 0, images.PermutationInvariant(**COMMON, width=12), CPU)
    assert math.isfinite(got["train_nats"]) and got["trivial_linear_error"] == pytest.approx(1 - got["trivial_linear"])
