import hashlib
import math

import pytest
import torch

from repro.data import gpt2 as data
from repro.data import original
from repro.errors import ReproError
from repro.models import gpt2
from repro.models.pretrained import _letters_of_bytes

VOCAB, CONTEXT, WIDTH, DEPTH, HEADS = 13, 9, 12, 2, 3
TEXT = "It's 2024 \u2014 na\u00efve, \u00bd cup;  x\u00b2\n\n\ttab \u4f60\u597d don't \u0661\u0662 \U0001f642 a\u0301  "


def tensors(prefix: str = "") -> dict[str, torch.Tensor]:
    """Random tensors under the names and in the layout of the Hub."""
    source = torch.Generator().manual_seed(0)
    shapes = {"wte.weight": (VOCAB, WIDTH), "wpe.weight": (CONTEXT, WIDTH), "ln_f": (WIDTH,)}
    for i in range(DEPTH):
        shapes |= {f"h.{i}.ln_1": (WIDTH,), f"h.{i}.ln_2": (WIDTH,)}
        shapes |= {f"h.{i}.attn.c_attn": (WIDTH, 3 * WIDTH), f"h.{i}.attn.c_proj": (WIDTH, WIDTH)}
        shapes |= {f"h.{i}.mlp.c_fc": (WIDTH, 4 * WIDTH), f"h.{i}.mlp.c_proj": (4 * WIDTH, WIDTH)}
    found = {}
    for name, shape in shapes.items():
        if name.endswith(".weight"):
            found[name] = torch.randn(shape, generator=source)
            continue
        found[f"{name}.weight"] = torch.randn(shape, generator=source) / (len(shape) * shape[0]) ** 0.5
        found[f"{name}.bias"] = torch.randn(shape[-1], generator=source) / 3
    found["h.0.attn.bias"] = torch.ones(1, 1, CONTEXT, CONTEXT).tril()  # the mask, which is no bias
    return {prefix + name: t for name, t in found.items()}


def by_the_book(w: dict[str, torch.Tensor], tokens: list[int]) -> torch.Tensor:
    """The decoder in float64, by head and position, its matrices applied as the Hub has them: x W + b."""
    w = {name: t.double() for name, t in w.items()}
    k = WIDTH // HEADS

    def norm(x, name):
        x = x - x.mean(-1, keepdim=True)
        return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]

    def linear(x, name):
        return x @ w[f"{name}.weight"] + w[f"{name}.bias"]

    x = torch.stack([w["wte.weight"][token] + w["wpe.weight"][t] for t, token in enumerate(tokens)])
    for i in range(DEPTH):
        both = linear(norm(x, f"h.{i}.ln_1"), f"h.{i}.attn.c_attn")
        q, key, v = both[:, :WIDTH], both[:, WIDTH : 2 * WIDTH], both[:, 2 * WIDTH :]
        mixed = torch.zeros_like(q)
        for head in range(HEADS):
            mine = slice(head * k, head * k + k)
            for t in range(len(tokens)):
                scores = key[: t + 1, mine] @ q[t, mine] / math.sqrt(k)
                mixed[t, mine] = scores.softmax(0) @ v[: t + 1, mine]
        x = x + linear(mixed, f"h.{i}.attn.c_proj")
        h = linear(norm(x, f"h.{i}.ln_2"), f"h.{i}.mlp.c_fc")
        h = 0.5 * h * (1 + torch.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))
        x = x + linear(h, f"h.{i}.mlp.c_proj")
    return norm(x, "ln_f") @ w["wte.weight"].T


def filled(prefix: str = ""):
    model = gpt2.decoder(VOCAB, CONTEXT, WIDTH, DEPTH, heads=HEADS, dropout=0.5, generator=torch.Generator())
    return gpt2.fill(model, tensors(prefix)).eval()


@torch.no_grad()
@pytest.mark.parametrize("prefix", ["", "transformer."])
def test_the_decoder_is_the_one_of_the_book(prefix):
    tokens = [3, 1, 4, 1, 5, 9, 2]
    got = filled(prefix).double()(torch.tensor([tokens]))[0]
    torch.testing.assert_close(got, by_the_book(tensors(), tokens), rtol=1e-10, atol=1e-10)


def test_small_has_the_parameters_of_gpt2_and_one_embedding():
    model = gpt2.small("meta")
    assert sum(p.numel() for p in model.parameters()) == 124_439_808
    for each in (model, filled()):
        assert each.head.weight is each.embedding.weight and all(p.requires_grad for p in each.parameters())


def test_dropout_is_for_training_alone():
    model, tokens = filled(), torch.tensor([[1, 2, 3]])
    assert torch.equal(model(tokens), model(tokens))
    model.train()
    assert not torch.equal(model(tokens), model(tokens))
    attend = gpt2.DroppedAttention(0.5)
    q = torch.ones(1, 1, 64, 4)
    assert torch.allclose(attend.eval()(q, q, q), q)
    assert set(attend.train()(q, q, q)[0, 0, 0].tolist()) <= {0.0, 2.0}  # the first position reads one value


# --- the tokenizer ---------------------------------------------------------------------------------------------------


def vocabulary() -> tuple[list[str], list[str]]:
    merges = ["a b", "ab c", "\u0120 a", "b c", "2 0", "20 2", "202 4", "' s", "o n", "d on"]
    return [*_letters_of_bytes(), *("".join(m.split(" ")) for m in merges), "<|endoftext|>"], merges


def test_digits_stay_together():
    tokens, merges = vocabulary()
    tokenizer = gpt2.Tokenizer(tokens, merges)
    assert [tokens[i] for i in tokenizer.encode("abc bc2024's")] == ["abc", "\u0120", "bc", "2024", "'s"]
    assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT


def test_the_tokenizer_is_that_of_the_library():
    tokenizers = pytest.importorskip("tokenizers")
    tokens, merges = vocabulary()
    pairs = [tuple(m.split(" ")) for m in merges]
    theirs = tokenizers.Tokenizer(tokenizers.models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=pairs))
    theirs.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    assert gpt2.Tokenizer(tokens, merges).encode(TEXT) == theirs.encode(TEXT).ids


# --- files and texts -------------------------------------------------------------------------------------------------


def test_files_are_checked(tmp_path, monkeypatch):
    (tmp_path / "gpt2").mkdir()
    (tmp_path / "gpt2" / "vocab.json").write_text('{"b": 1, "a": 0}')
    (tmp_path / "gpt2" / "merges.txt").write_text("#version: 0.2\na b\nab c\n")
    with pytest.raises(ReproError, match="sha256"):
        data.vocabulary(tmp_path)
    for name in ("vocab.json", "merges.txt"):
        content = (tmp_path / "gpt2" / name).read_bytes()
        monkeypatch.setitem(data.FILES, name, hashlib.sha256(content).hexdigest())
    assert data.vocabulary(tmp_path) == (["a", "b"], ["a b", "ab c"])


def test_a_text_in_tokens(tmp_path, monkeypatch):
    rows = [{"text": text} for text in ("ab", "c", "de", "fghi", "j")]
    calls = []

    def read(name, split, cache=None, stream=False):
        calls.append((name, split, stream))
        return iter(rows)

    monkeypatch.setattr(original, "rows", read)

    def encode(text):
        return [ord(c) for c in text]

    def found(train: int = 6):
        return data.corpus("openwebtext", encode, train=train, held_out=2, cache=tmp_path)

    for _ in range(2):
        text = found()
        assert text.valid.tolist() == [97, 98, data.END, 99, data.END] and text.valid.dtype == torch.int32
        assert text.train.tolist() == [100, 101, data.END, 102, 103, 104] and text.vocab == 50_257
    assert calls == [("openwebtext", "train", True)]  # then from the cache
    (path,) = (tmp_path / "gpt2").glob("*.tokens")
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert found().train.tolist()[-1] == 104 and len(calls) == 2
    with pytest.raises(ReproError, match="has 10 tokens"):
        found(11)


# --- with the trained weights, against transformers ------------------------------------------------------------------


@pytest.mark.slow
@torch.no_grad()
def test_random_weights_against_transformers():
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": VOCAB, "n_positions": CONTEXT, "n_embd": WIDTH, "n_layer": DEPTH, "n_head": HEADS}
    theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes)).eval()
    model = gpt2.decoder(VOCAB, CONTEXT, WIDTH, DEPTH, heads=HEADS, generator=torch.Generator())
    tokens = torch.tensor([[3, 1, 4, 1, 5, 9, 2]])
    torch.testing.assert_close(gpt2.fill(model, theirs.state_dict()).eval()(tokens), theirs(tokens).logits)


@pytest.mark.slow
@torch.no_grad()
def test_small_is_gpt2():
    try:
        model, tokenizer = gpt2.small().eval(), gpt2.tokenizer()
    except ReproError as error:
        if "cannot be had" not in str(error) and "need the package" not in str(error):  # a damaged file must fail
            raise
        pytest.skip(str(error))
    assert len(tokenizer) == data.VOCAB and tokenizer.tokens[data.END] == "<|endoftext|>"
    assert tokenizer.encode("Hello world") == [15496, 995]
    assert tokenizer.encode("Hello, my dog is cute") == [15496, 11, 616, 3290, 318, 13779]
    next_token = model(torch.tensor([tokenizer.encode("The capital of the United Kingdom is the city of")]))[0, -1]
    assert tokenizer.decode([int(next_token.argmax())]) == " London"
