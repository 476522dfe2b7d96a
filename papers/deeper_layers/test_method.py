import copy
import math
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from repro.models.gpt import GPT
from repro.papers.deeper_layers import angular_distance, block_distances, deepest_block, remove_blocks
from repro.testing import assert_near, check_float32, draw, hard_inputs, mutation
from repro.testing.decoders import decoder_blocks, needs_transformers, tiny_decoder

DEPTH, N = 6, 2
TOKENS = torch.randint(11, (3, 7), generator=torch.Generator().manual_seed(1))


def gpt(depth=DEPTH):
    return GPT(11, 8, 8, depth, heads=2, generator=torch.Generator().manual_seed(0), std=0.5).double()


# --- the angle --------------------------------------------------------------------------------------------------------


def oracle_angle(x, y):
    """arccos of Python floats, with exact sums."""
    rows = []
    for a, b in zip(x.reshape(-1, x.shape[-1]).tolist(), y.reshape(-1, y.shape[-1]).tolist(), strict=True):
        a, b = ([v / (max(map(abs, row)) or 1) for v in row] for row in (a, b))
        dot, sizes = math.fsum(u * v for u, v in zip(a, b, strict=True)), math.hypot(*a) * math.hypot(*b)
        rows.append(math.acos(max(-1.0, min(1.0, dot / sizes))) / math.pi if sizes else 0.5)
    return torch.tensor(rows, dtype=torch.float64).view(x.shape[:-1])


def check_angle(angle):
    for name, x in hard_inputs(3, 4, 5).items():
        y = 1 + draw(3, 4, 5, seed=2)
        if name != "zero":
            assert_near(angle(x, y), oracle_angle(x, y), name, rel=1e-12)
            assert_near(angle(x, -x), torch.ones(3, 4), name, rel=1e-12)
        assert_near(angle(x, y), angle(y, x), name, rel=1e-14)
    small = torch.tensor([[1.0, 0.0], [1.0, 1e-5]], dtype=torch.float64)
    assert_near(angle(small[:1], small[1:]), torch.tensor([math.atan(1e-5) / math.pi], dtype=torch.float64), rel=1e-12)


def broken_angle(fault):
    def angle(x, y):
        if fault == "cosine":
            return (1 - F.cosine_similarity(x, y, dim=-1)) / 2
        if fault == "radians":
            return math.pi * angular_distance(x, y)
        if fault == "absolute":  # the angle between lines
            return torch.minimum(angular_distance(x, y), angular_distance(x, -y))
        if fault == "centred":
            x, y = (v - v.mean(-1, keepdim=True) for v in (x, y))
        if fault == "over the sequence":
            x, y = x.transpose(-1, -2)[..., :4], y.transpose(-1, -2)[..., :4]
            return angular_distance(x, y)[..., :4].reshape(-1)[: x.shape[0] * 4].view(x.shape[0], -1)
        return angular_distance(x, y)

    return angle


test_angle, test_angle_mutant_dies = mutation(check_angle, broken_angle, angular_distance)


def test_against_torch():
    x, y = 1 + draw(5, 9), draw(5, 9, seed=1)
    assert_near(angular_distance(x, y), F.cosine_similarity(x, y, dim=-1).arccos() / math.pi, rel=1e-12)


def test_float32_convention():
    check_float32(lambda x: angular_distance(x, x.flip(-1)).to(x.dtype), draw(4, 5))
    assert angular_distance(draw(2, 3).bfloat16(), draw(2, 3, seed=1).bfloat16()).dtype == torch.float32


def test_d1_small_angles_in_float32():
    x = torch.tensor([1.0, 0.0])
    for angle in (1e-3, 1e-5, 1e-7):
        assert_near(angular_distance(x, torch.tensor([1.0, angle])), torch.tensor(angle / math.pi), rel=1e-5)
    assert F.cosine_similarity(x, torch.tensor([1.0, 1e-5]), dim=-1).arccos() == 0  # what arccos makes of it


def test_d5_zero_vectors():
    zero, x = torch.zeros(2, 3), draw(2, 3).float()
    assert torch.equal(angular_distance(zero, x), torch.full((2,), 0.5))
    assert torch.equal(F.cosine_similarity(zero, x, dim=-1), torch.zeros(2))
    assert not angular_distance(x, x).any()


# --- the distances of blocks ------------------------------------------------------------------------------------------


def hidden(model, tokens):
    """What each block reads, by calling the blocks in turn."""
    states = []
    hook = model.blocks[0].register_forward_pre_hook(lambda m, args: states.append(args[0]))
    model(tokens)
    hook.remove()
    for block in model.blocks:
        states.append(block(states[-1]))
    return [x.detach().numpy() for x in states]


def oracle_distances(model, tokens, n, ends):
    x, out = hidden(model, tokens), []
    for i in range(len(model.blocks) - n):
        angles = []
        for row, end in enumerate(ends):
            a, b = x[i][row, end], x[i + n][row, end]
            angles.append(np.arccos(a @ b / np.linalg.norm(a) / np.linalg.norm(b)) / np.pi)
        out.append(np.mean(angles))
    return torch.tensor(np.array(out))


def check_distances(distances):
    model = gpt()
    for n in (1, N, DEPTH - 1):
        assert_near(distances(model, TOKENS, n), oracle_distances(model, TOKENS, n, [6, 6, 6]), f"n = {n}", rel=1e-9)


def broken_distances(fault):
    def distances(model, tokens, n):
        x = [torch.tensor(h) for h in hidden(model, tokens)]
        reach = len(x) - n if fault == "last block too" else len(x) - 1 - n
        if fault == "updates":
            x = [b - a for a, b in zip(x, x[1:], strict=False)] + [x[-1]]
        if fault == "all tokens":
            return torch.stack([angular_distance(x[i], x[i + n]).mean() for i in range(reach)])
        if fault == "first token":
            return torch.stack([angular_distance(x[i][:, 0], x[i + n][:, 0]).mean() for i in range(reach)])
        if fault == "mean vector":  # the angle of the means
            return torch.stack([angular_distance(x[i][:, -1].mean(0), x[i + n][:, -1].mean(0)) for i in range(reach)])
        if fault == "one block less":
            n = n - 1
        return torch.stack([angular_distance(x[i][:, -1], x[i + n][:, -1]).mean() for i in range(reach)])

    return distances


test_distances, test_distances_mutant_dies = mutation(check_distances, broken_distances, block_distances)


def test_d2_the_last_block_stays():
    model = gpt()
    assert len(block_distances(model, TOKENS, N)) == DEPTH - N
    assert deepest_block(model, N) == DEPTH - 1 - N  # the largest start that block_distances offers
    last = model.blocks[-1]
    for start in range(DEPTH - N):
        assert remove_blocks(copy.deepcopy(model), start, N).blocks[-1].state_dict().keys() == last.state_dict().keys()
    assert remove_blocks(model, deepest_block(model, N), N).blocks[-1] is last


def test_d3_padding_on_the_right():
    model, lengths = gpt(), torch.tensor([7, 3, 5])
    want = oracle_distances(model, TOKENS, N, [6, 2, 4])
    assert_near(block_distances(model, TOKENS, N, lengths), want, rel=1e-9)
    padded = TOKENS.clone()
    padded[1, 3:], padded[2, 5:] = 0, 0  # causal: padding is not seen
    assert_near(block_distances(model, padded, N, lengths), want, rel=1e-9)


# --- removal ----------------------------------------------------------------------------------------------------------


def check_removal(remove):
    model = gpt()
    for start in range(DEPTH - N + 1):
        x = torch.tensor(hidden(model, TOKENS)[start])
        for block in model.blocks[start + N :]:
            x = block(x)
        assert torch.equal(remove(copy.deepcopy(model), start, N)(TOKENS), model.head(model.norm(x))), start


def broken_removal(fault):
    def remove(model, start, n):
        if fault == "one late":
            start = min(start + 1, DEPTH - n)
        if fault == "one more":
            n = min(n + 1, DEPTH - 1, DEPTH - start)
        if fault == "every other":
            for index in range(min(start + 2 * n - 2, DEPTH - 1), start - 1, -2):
                del model.blocks[index]
            return model
        return remove_blocks(model, start, n)

    return remove


test_removal, test_removal_mutant_dies = mutation(check_removal, broken_removal, remove_blocks)


class Attention(nn.Module):
    """Reads its number, as those of Hugging Face do to find their keys and values in a cache."""

    def __init__(self, index):
        super().__init__()
        self.layer_idx, self.linear = index, nn.Linear(4, 4)


class Layer(nn.Module):
    def __init__(self, index):
        super().__init__()
        self.self_attn = Attention(index)

    def forward(self, hidden_states, use_cache=False):
        return hidden_states + self.self_attn.linear(hidden_states).tanh(), None


class LikeHuggingFace(nn.Module):
    """Blocks that take keywords and return tuples, and a config that counts them."""

    def __init__(self, depth):
        super().__init__()
        self.config = SimpleNamespace(num_hidden_layers=depth, layer_types=[f"kind {i}" for i in range(depth)])
        self.embed, self.layers = nn.Embedding(11, 4), nn.ModuleList(Layer(i) for i in range(depth))

    def forward(self, tokens):
        x = self.embed(tokens)
        for i in range(self.config.num_hidden_layers):
            assert self.layers[i].self_attn.layer_idx == i
            x = self.layers[i](hidden_states=x)[0]
        return SimpleNamespace(logits=x @ self.embed.weight.T)


def test_d4_what_hugging_face_counts():
    torch.manual_seed(0)
    model = LikeHuggingFace(5)
    distances = block_distances(model, TOKENS, 2)
    assert distances.shape == (3,) and distances.isfinite().all()
    assert remove_blocks(model, 1, 2) is model and model.config.num_hidden_layers == 3
    assert model.config.layer_types == ["kind 0", "kind 3", "kind 4"]
    assert [layer.self_attn.layer_idx for layer in model.layers] == [0, 1, 2]
    assert model(TOKENS).logits.shape == (3, 7, 11)


# --- decoders of transformers -----------------------------------------------------------------------------------------


@needs_transformers
@pytest.mark.parametrize("kind", ["Llama", "Qwen2", "GPT2"])
@torch.no_grad()
def test_decoders_of_transformers(kind):
    """Distances of the hidden states that the library returns; then a model built with fewer blocks, its cache too."""
    model, start = tiny_decoder(kind, DEPTH), 1
    states = [x.numpy() for x in model(TOKENS, output_hidden_states=True).hidden_states]
    cosines = [(states[i][:, -1] * states[i + N][:, -1]).sum(-1) for i in range(DEPTH - N)]
    sizes = [np.linalg.norm(x[:, -1], axis=-1) for x in states]
    want = [np.mean(np.arccos(c / sizes[i] / sizes[i + N]) / np.pi) for i, c in enumerate(cosines)]
    assert_near(block_distances(model, TOKENS, N), torch.tensor(np.array(want)), kind, rel=1e-9)
    shorter, kept = tiny_decoder(kind, DEPTH - N), {}
    for name, value in model.state_dict().items():
        index = int(re.search(r"\.(?:h|layers)\.(\d+)\.", name + ".h.0.")[1])
        if not start <= index < start + N:
            place = index if index < start else index - N
            kept[re.sub(r"\.(h|layers)\.\d+\.", rf".\g<1>.{place}.", name)] = value
    shorter.load_state_dict(kept)
    assert remove_blocks(model, start, N) is model and len(decoder_blocks(model)) == DEPTH - N
    assert model.config.num_hidden_layers == shorter.config.num_hidden_layers
    assert getattr(model.config, "layer_types", None) == getattr(shorter.config, "layer_types", None)
    assert torch.equal(model(TOKENS).logits, shorter(TOKENS).logits)
    given = {"attention_mask": torch.ones_like(TOKENS[:, :4]), "max_new_tokens": 3, "do_sample": False}
    assert torch.equal(*(model.generate(TOKENS[:, :4], use_cache=cache, **given) for cache in (True, False)))


@pytest.mark.parametrize("n", [0, DEPTH, -1])
def test_refuses_a_useless_n(n):
    for call in (lambda: block_distances(gpt(), TOKENS, n), lambda: deepest_block(gpt(), n)):
        with pytest.raises(ValueError, match="write an n from 1 to 5"):
            call()


@pytest.mark.parametrize("start", [-1, DEPTH - N + 1])
def test_refuses_blocks_that_are_not_there(start):
    with pytest.raises(ValueError, match="write a start from 0 to 4"):
        remove_blocks(gpt(), start, N)
