import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from repro.data import minilm as minilm_data
from repro.data import smollm2 as smollm2_data
from repro.models import pretrained

WIDTH, HEADS, SHARED, HIDDEN, VOCAB, EPS = 24, 6, 2, 40, 17, 1e-5
PARTS = {
    "attn_norm": (WIDTH,),
    "ffn_norm": (WIDTH,),
    "attn_q": (WIDTH, WIDTH),
    "attn_k": (WIDTH // 3, WIDTH),
    "attn_v": (WIDTH // 3, WIDTH),
    "attn_output": (WIDTH, WIDTH),
    "ffn_gate": (HIDDEN, WIDTH),
    "ffn_up": (HIDDEN, WIDTH),
    "ffn_down": (WIDTH, HIDDEN),
}


def small(depth: int = 2) -> tuple[dict, dict[str, torch.Tensor]]:
    source = torch.Generator().manual_seed(0)
    settings = {
        "llama.attention.head_count": HEADS,
        "llama.attention.head_count_kv": SHARED,
        "llama.embedding_length": WIDTH,
        "llama.block_count": depth,
        "llama.feed_forward_length": HIDDEN,
        "llama.rope.freq_base": 100.0,
        "llama.attention.layer_norm_rms_epsilon": EPS,
        "llama.vocab_size": VOCAB,
    }
    tensors = {
        "token_embd.weight": torch.randn(VOCAB, WIDTH, generator=source),
        "output_norm.weight": 1 + 0.1 * torch.randn(WIDTH, generator=source),
    }
    for i in range(depth):
        for name, shape in PARTS.items():
            tensors[f"blk.{i}.{name}.weight"] = torch.randn(shape, generator=source) / (len(shape) * WIDTH) ** 0.5
    return settings, tensors


def by_the_book(tensors: dict[str, torch.Tensor], tokens: list[int], depth: int) -> torch.Tensor:
    """The decoder in float64, by head and position, its rotary pairs side by side as llama.cpp has them."""
    w = {name: t.double() for name, t in tensors.items()}
    k, group = WIDTH // HEADS, HEADS // SHARED

    def norm(x, gain):
        return gain * x / (x.square().mean(-1, keepdim=True) + EPS).sqrt()

    def turned(x, t):
        out = x.clone()
        for i in range(k // 2):
            angle = t * 100.0 ** (-2 * i / k)
            a, b = x[2 * i], x[2 * i + 1]
            out[2 * i] = a * math.cos(angle) - b * math.sin(angle)
            out[2 * i + 1] = a * math.sin(angle) + b * math.cos(angle)
        return out

    x = w["token_embd.weight"][tokens]
    for i in range(depth):
        p = {name: w[f"blk.{i}.{name}.weight"] for name in PARTS}
        h = norm(x, p["attn_norm"])
        q, key, v = h @ p["attn_q"].T, h @ p["attn_k"].T, h @ p["attn_v"].T
        mixed = torch.zeros_like(q)
        for head in range(HEADS):
            mine, theirs = slice(head * k, head * k + k), slice(head // group * k, head // group * k + k)
            for t in range(len(tokens)):
                query = turned(q[t, mine], t)
                scores = torch.stack([query @ turned(key[s, theirs], s) for s in range(t + 1)]) / math.sqrt(k)
                mixed[t, mine] = scores.softmax(0) @ v[: t + 1, theirs]
        x = x + mixed @ p["attn_output"].T
        h = norm(x, p["ffn_norm"])
        x = x + (F.silu(h @ p["ffn_gate"].T) * (h @ p["ffn_up"].T)) @ p["ffn_down"].T
    return norm(x, w["output_norm.weight"]) @ w["token_embd.weight"].T


def test_the_decoder_is_the_one_of_the_book():
    settings, tensors = small()
    tokens = [3, 1, 4, 1, 5, 9, 2, 6]
    model = pretrained.decoder(settings, tensors, context=16)
    got = model(torch.tensor([tokens]))[0]
    assert torch.allclose(got.double(), by_the_book(tensors, tokens, 2), atol=2e-5)
    assert model.head.weight is model.embedding.weight


def test_an_untied_head_is_read():
    settings, tensors = small()
    tensors["output.weight"] = 2 * tensors["token_embd.weight"]
    tokens = torch.tensor([[0, 7, 3]])
    assert torch.allclose(
        pretrained.decoder(settings, tensors, 8)(tokens), 2 * pretrained.decoder(*small(), 8)(tokens), atol=1e-5
    )


@torch.no_grad()
def test_stream_and_deleted_blocks():
    model = pretrained.decoder(*small(3), context=16)
    tokens = torch.tensor([[3, 1, 4, 1], [5, 9, 2, 6]])
    states, whole = pretrained.stream(model, tokens), model(tokens)
    assert len(states) == 4 and torch.equal(states[0], model.embedding(tokens))
    assert torch.equal(model.head(model.norm(states[-1])), whole)
    with pretrained.deleted(model, 1):
        assert torch.equal(model(tokens), model.head(model.norm(model.blocks[2](states[1]))))
        assert torch.equal(pretrained.stream(model, tokens)[1], states[1])
    assert torch.equal(model(tokens), whole)


class Theirs(nn.Module):
    """Blocks as some libraries have them: called by keyword, answering with a tuple, logits in a record."""

    class Block(nn.Module):
        def forward(self, hidden_states, mask=None):
            return 2 * hidden_states, "cache"

    class Output:
        def __init__(self, logits):
            self.logits = logits

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.layers = nn.ModuleList(self.Block() for _ in range(3))

    def forward(self, tokens):
        x = self.embed(tokens)
        for layer in self.layers:
            x, _ = layer(hidden_states=x, mask=None)
        return self.Output(x)


@torch.no_grad()
def test_other_decoders_are_probed_alike():
    model, tokens = Theirs(), torch.tensor([[1, 2]])
    x = model.embed(tokens)
    assert pretrained.blocks(model) is model.layers
    assert all(torch.equal(s, 2**i * x) for i, s in enumerate(pretrained.stream(model, tokens)))
    with pretrained.deleted(model, 0, 2):
        assert torch.equal(pretrained.logits(model, tokens), 2 * x)
    assert torch.equal(pretrained.logits(model, tokens), 8 * x)


def test_byte_pairs_by_hand():
    letters = pretrained._letters_of_bytes()
    assert letters[ord("a")] == "a" and letters[ord(" ")] == "\u0120" and len(set(letters)) == 256
    merges = ["a b", "ab c", "\u0120 a", "b c"]
    tokens = [*letters, *("".join(m.split(" ")) for m in merges)]
    tokenizer = pretrained.BytePairs(tokens, merges)

    def pieces(text):
        return [tokens[i] for i in tokenizer.encode(text)]

    assert pieces("abc bc abc") == ["abc", "\u0120", "bc", "\u0120", "abc"]
    assert pieces("ac ac") == ["a", "c", "\u0120a", "c"]
    assert pieces("ab12") == ["ab", "1", "2"]
    for text in ("na\u00efve \u00bd cup\n\n\t it's \u4f60\u597d 3.14", "", "  "):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_word_pieces_by_hand():
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "un", "##believ", "##able", "dogs", "!", "naive"]
    tokenizer = pretrained.WordPieces(pieces)
    assert tokenizer.encode("Unbelievable DOGS!") == [2, 4, 5, 6, 7, 8, 3]
    assert tokenizer.encode("na\u00efve cats") == [2, 9, 1, 3]


def test_the_encoder_is_post_ln():
    torch.manual_seed(0)
    model = pretrained.Encoder(20, 16, 2, heads=4, hidden=32, context=12, eps=1e-12).eval()
    tokens = torch.randint(20, (3, 7))
    theirs = nn.TransformerEncoderLayer(16, 4, 32, 0.0, "gelu", 1e-12, batch_first=True).eval()
    block = model.blocks[0]
    a = block.attention
    with torch.no_grad():
        theirs.self_attn.in_proj_weight.copy_(torch.cat([a.query.weight, a.key.weight, a.value.weight]))
        theirs.self_attn.in_proj_bias.copy_(torch.cat([a.query.bias, a.key.bias, a.value.bias]))
        for ours, other in (
            (a.out, theirs.self_attn.out_proj),
            (block.up, theirs.linear1),
            (block.down, theirs.linear2),
        ):
            other.load_state_dict(ours.state_dict())
        x = torch.randn(3, 7, 16)
        assert torch.allclose(block(x), theirs(x), atol=1e-5)
        keep = torch.arange(7) < torch.tensor([[7], [4], [5]])
        changed = torch.where(keep, tokens, 0)
        assert torch.allclose(model(tokens, keep)[keep], model(changed, keep)[keep], atol=1e-5)
        assert torch.allclose(model.sentence(tokens, keep).norm(dim=-1), torch.ones(3))


# With the weights, against transformers


@pytest.mark.slow
@torch.no_grad()
def test_smollm2_is_llama():
    transformers, tokenizers = pytest.importorskip("transformers"), pytest.importorskip("tokenizers")
    from repro.data import prose

    settings, _ = smollm2_data.load()
    model, tokenizer = pretrained.smollm2()
    text = bytes(prose.load().part("austen").valid[:20_000].numpy()).decode()
    words = settings["tokenizer.ggml.tokens"]
    merges = [tuple(m.split(" ")) for m in settings["tokenizer.ggml.merges"]]
    theirs = tokenizers.Tokenizer(tokenizers.models.BPE(vocab={w: i for i, w in enumerate(words)}, merges=merges))
    splits = tokenizers.pre_tokenizers
    theirs.pre_tokenizer = splits.Sequence([splits.Digits(individual_digits=True), splits.ByteLevel(False)])
    for sample in (
        text,
        "It's 3.14 \u2014 na\u00efve, \u00bd cup;  x\u00b2\n\n\ttab \u4f60 don't \u0661\u0662 \U0001f642 a\u0301",
    ):
        assert tokenizer.encode(sample) == theirs.encode(sample).ids
    config = transformers.LlamaConfig(
        vocab_size=len(words),
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        rms_norm_eps=settings["llama.attention.layer_norm_rms_epsilon"],
        rope_parameters={"rope_type": "default", "rope_theta": 100_000.0},
        tie_word_embeddings=True,
    )
    names = {
        "norm1": "input_layernorm",
        "norm2": "post_attention_layernorm",
        "attention.query": "self_attn.q_proj",
        "attention.key": "self_attn.k_proj",
        "attention.value": "self_attn.v_proj",
        "attention.out": "self_attn.o_proj",
        "feed_forward.gate": "mlp.gate_proj",
        "feed_forward.up": "mlp.up_proj",
        "feed_forward.down": "mlp.down_proj",
    }
    state = {"model.embed_tokens.weight": model.embedding.weight, "model.norm.weight": model.norm.weight}
    state["lm_head.weight"] = model.head.weight
    for i, block in enumerate(model.blocks):
        for ours, other in names.items():
            state[f"model.layers.{i}.{other}.weight"] = block.get_submodule(ours).weight
    reference = transformers.LlamaForCausalLM(config).eval()
    reference.load_state_dict(state)
    tokens = torch.tensor([tokenizer.encode(text)[:256]])
    got = model(tokens)
    assert torch.allclose(got, pretrained.logits(reference, tokens), atol=1e-3)
    loss = float(F.cross_entropy(got[0, :-1], tokens[0, 1:]))
    assert 2.9 < loss < 3.9
    for a, b in zip(pretrained.stream(model, tokens), pretrained.stream(reference, tokens), strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-4 * float(b.abs().max()))
    with pretrained.deleted(model, 2), pretrained.deleted(reference, 2):
        assert torch.allclose(model(tokens), pretrained.logits(reference, tokens), atol=1e-3)


@pytest.mark.slow
@torch.no_grad()
def test_minilm_is_bert(tmp_path):
    transformers, tokenizers = pytest.importorskip("transformers"), pytest.importorskip("tokenizers")
    pieces, tensors = minilm_data.load()
    model, tokenizer = pretrained.minilm()
    config = transformers.BertConfig(
        vocab_size=30_522,
        hidden_size=384,
        num_hidden_layers=6,
        num_attention_heads=12,
        intermediate_size=1536,
        layer_norm_eps=1e-12,
    )
    reference = transformers.BertModel(config).eval()
    reference.load_state_dict(tensors, strict=False)
    (tmp_path / "vocab.txt").write_text("\n".join(pieces))
    theirs = tokenizers.BertWordPieceTokenizer(str(tmp_path / "vocab.txt"), lowercase=True)
    text = "The quick brown fox, na\u00efvely, jumped over 3 unbelievable dogs \u2014 isn't it \u4f60?"
    ids = tokenizer.encode(text)
    assert ids == theirs.encode(text).ids
    tokens = torch.tensor([ids + [0] * 5])
    keep = tokens != 0
    want = reference(tokens, attention_mask=keep.long()).last_hidden_state
    assert torch.allclose(model(tokens, keep)[keep], want[keep], atol=1e-4)
