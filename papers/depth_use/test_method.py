from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from repro.models.gpt import GPT
from repro.papers.depth_use import contributions, skip_effects, skipped
from repro.testing import assert_near, mutation
from repro.testing.decoders import decoder_blocks, needs_transformers, tiny_decoder

DEPTH, T = 4, 7
TOKENS = torch.randint(11, (3, T), generator=torch.Generator().manual_seed(1))


def gpt(depth=DEPTH):
    return GPT(11, 8, 8, depth, heads=2, generator=torch.Generator().manual_seed(0), std=0.5).double()


# --- an oracle that calls the blocks in turn --------------------------------------------------------------------------


@torch.no_grad()
def run(model, skip=None, before=None):
    """What the blocks read and the last returns, and the probabilities; block `skip` is left out at 1 to before - 1."""
    reads = []
    hook = model.blocks[0].register_forward_pre_hook(lambda m, args: reads.append(args[0]))
    model(TOKENS)
    hook.remove()
    for i, block in enumerate(model.blocks):
        out = block(reads[-1])
        if i == skip:
            for t in range(1, T if before is None else before):
                out[:, t] = reads[-1][:, t]
        reads.append(out)
    return [h.numpy() for h in reads], model.head(model.norm(reads[-1])).softmax(-1).numpy()


def sizes(x):
    return np.sqrt((x**2).sum(-1))


def oracle_effects(model, before, reduction):
    start, reduce = before or 1, getattr(np, reduction)
    (h, p), depth = run(model), len(model.blocks)
    later, output = np.zeros((depth, depth)), np.zeros(depth)
    for s in range(depth):
        g, q = run(model, s, before)
        output[s] = reduce(sizes(p - q)[:, start:])
        for i in range(s + 1, depth):
            u, v = (x[i + 1] - x[i] for x in (h, g))
            later[s, i] = reduce((sizes(u - v) / sizes(u))[:, start:])
    return torch.tensor(later), torch.tensor(output)


def check_effects(effects):
    model = gpt()
    for before in (None, 4):
        for reduction in ("max", "mean"):
            want = oracle_effects(model, before, reduction)
            for got, each in zip(effects(model, TOKENS, before=before, reduction=reduction), want, strict=True):
                assert_near(got, each, f"{before} {reduction}", rel=1e-5)


def broken_effects(fault):
    def effects(model, tokens, *, before=None, reduction="max"):
        start, reduce = before or 1, getattr(np, reduction)
        h, p = run(model)
        later, output = np.zeros((DEPTH, DEPTH)), np.zeros(DEPTH)
        for s in range(DEPTH):
            g, q = run(model, s, None if fault == "future tokens skipped" else before)
            if fault == "total variation":
                output[s] = reduce(np.abs(p - q).sum(-1)[:, start:] / 2)
            else:
                output[s] = reduce(sizes(p - q)[:, 1 if fault == "all tokens" else start :])
            for i in range(s if fault == "the block itself" else s + 1, DEPTH):
                u, v = (x[i + 1] - x[i] for x in (h, g))
                if fault == "streams":
                    u, v = h[i + 1], g[i + 1]
                below = sizes(h[i]) if fault == "over the stream" else sizes(u)
                below = sizes(v) if fault == "over the changed update" else below
                gap = np.abs(sizes(u) - sizes(v)) if fault == "lengths" else sizes(u - v)
                each = (gap / below)[:, start:]
                later[s, i] = (
                    gap[:, start:].mean() / below[:, start:].mean() if fault == "ratio of means" else reduce(each)
                )
        if fault == "transposed":
            later = later.T
        return torch.tensor(later), torch.tensor(output)

    return effects


test_effects, test_effects_mutant_dies = mutation(check_effects, broken_effects, skip_effects)


# --- contributions ----------------------------------------------------------------------------------------------------


def check_contributions(measure):
    model = gpt()
    h = [x[:, 1:] for x in run(model)[0]]
    relative = [np.mean(sizes(b - a) / sizes(a)) for a, b in zip(h, h[1:], strict=False)]
    cosine = [np.mean(((b - a) * a).sum(-1) / sizes(b - a) / sizes(a)) for a, b in zip(h, h[1:], strict=False)]
    got = measure(model, TOKENS)
    assert_near(got[0], torch.tensor(np.array(relative)), "relative", rel=1e-9)
    assert_near(got[1], torch.tensor(np.array(cosine)), "cosine", rel=1e-9)


def broken_contributions(fault):
    def measure(model, tokens):
        h = [torch.tensor(x)[:, 0 if fault == "first token too" else 1 :] for x in run(model)[0]]
        relative, cosine = [], []
        for a, b in zip(h, h[1:], strict=False):
            u, below = b - a, b if fault == "over the stream after" else a
            if fault == "squares":
                relative.append((u.square().sum(-1) / below.square().sum(-1)).mean())
            elif fault == "ratio of means":
                relative.append(u.norm(dim=-1).mean() / below.norm(dim=-1).mean())
            else:
                relative.append((u.norm(dim=-1) / below.norm(dim=-1)).mean())
            against = b if fault == "with the stream after" else a
            cosine.append(torch.cosine_similarity(b if fault == "of input and output" else u, against, dim=-1).mean())
        return torch.stack(relative), torch.stack(cosine)

    return measure


test_contributions, test_contributions_mutant_dies = mutation(check_contributions, broken_contributions, contributions)


def test_update_is_attention_plus_feed_forward():
    """h_{l+1} - h_l = a_l + m_l, by hooks on the sub-layers."""
    model, added = gpt(), []
    for block in model.blocks:
        for part in (block.attention.sublayer, block.feed_forward.sublayer):
            part.register_forward_hook(lambda m, args, out: added.append(out.detach()))
    h = run(model)[0]
    added = added[2 * DEPTH :]  # the first pass of `run` only looks for the first block's input
    for i in range(DEPTH):
        assert_near(torch.tensor(h[i + 1] - h[i]), added[2 * i] + added[2 * i + 1], rel=1e-12)


# --- departures -------------------------------------------------------------------------------------------------------


def test_d1_the_first_position_stays():
    model = gpt()
    whole = run(model)[0]
    for s in range(DEPTH):
        seen = []
        hook = model.blocks[s].register_forward_hook(lambda m, args, out, seen=seen: seen.append((args[0], out)))
        with skipped(model, s):
            after = model.blocks[s].register_forward_hook(lambda m, args, out, seen=seen: seen.append((args[0], out)))
            model(TOKENS)
        hook.remove(), after.remove()
        (read, done), (_, mixed) = seen
        assert torch.equal(mixed[:, :1], done[:, :1]) and torch.equal(mixed[:, 1:], read[:, 1:])
    assert_near(torch.tensor(run(model)[0][-1]), torch.tensor(whole[-1]), rel=1e-15)  # nothing is left behind


def test_d2_maximum_and_mean():
    model = gpt()
    largest, mean = (skip_effects(model, TOKENS, reduction=r) for r in ("max", "mean"))
    assert torch.equal(largest[1], skip_effects(model, TOKENS)[1])
    assert (largest[1] > mean[1]).all() and (largest[0] >= mean[0]).all()
    with pytest.raises(ValueError, match='write "max" or "mean"'):
        skip_effects(model, TOKENS, reduction="sum")


def test_d3_no_effect_on_the_block_itself_and_before():
    later, output = skip_effects(gpt(), TOKENS)
    assert later.shape == (DEPTH, DEPTH) and output.shape == (DEPTH,)
    assert not later.tril().any() and (later[torch.ones_like(later).triu(1) > 0] > 0).all() and (output > 0).all()
    future = skip_effects(gpt(), TOKENS, before=4)[1]
    assert future[-1] == 0 and (future[:-1] > 0).all()  # nobody reads the last block's output elsewhere


def test_d4_updates_of_length_zero():
    model = gpt()
    for p in model.blocks[2].parameters():
        nn.init.zeros_(p)
    later, _ = skip_effects(model, TOKENS)
    assert later.isfinite().all() and not later[:, 2].any()


@pytest.mark.parametrize("before", [0, 1, T])
def test_refuses_a_position_that_leaves_nothing(before):
    with pytest.raises(ValueError, match="write a position from 2 to 6"):
        skip_effects(gpt(), TOKENS, before=before)


# --- like Hugging Face ------------------------------------------------------------------------------------------------


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, hidden_states, use_cache=False):
        return hidden_states + self.linear(hidden_states).tanh(), "cache"


class LikeHuggingFace(nn.Module):
    """Blocks that take keywords and return tuples, logits in an object."""

    def __init__(self):
        super().__init__()
        self.embed, self.layers = nn.Embedding(11, 4), nn.ModuleList(Layer() for _ in range(3))

    def forward(self, tokens):
        x = self.embed(tokens)
        for layer in self.layers:
            x, cache = layer(hidden_states=x)
            assert cache == "cache"
        return SimpleNamespace(logits=x @ self.embed.weight.T)


def test_blocks_with_keywords_and_tuples():
    torch.manual_seed(0)
    model = LikeHuggingFace()
    later, output = skip_effects(model, TOKENS)
    assert (output > 0).all() and (later.triu(1)[0, 1:] > 0).all()
    assert contributions(model, TOKENS)[0].shape == (3,)
    assert not skip_effects(model, TOKENS, before=3)[1].any()  # no attention: no way to future tokens


def hugging_face(model, skip=None):
    """What the blocks read, what the last returns, and the probabilities, where block `skip` has another forward."""
    last, block = [], None if skip is None else decoder_blocks(model)[skip]
    if block is not None:
        forward = block.forward

        def passes(x, *args, **options):
            out = forward(x, *args, **options)
            done = out[0] if isinstance(out, tuple) else out
            mixed = torch.cat([done[:, :1], x[:, 1:]], 1)
            return (mixed, *out[1:]) if isinstance(out, tuple) else mixed

        block.forward = passes
    hook = decoder_blocks(model)[-1].register_forward_hook(
        lambda m, a, out: last.append(out[0] if type(out) is tuple else out)
    )
    out = model(TOKENS, output_hidden_states=True)
    hook.remove()
    if block is not None:
        del block.forward
    return [x.numpy() for x in (*out.hidden_states[:-1], last[0])], out.logits.softmax(-1).numpy()


@needs_transformers
@pytest.mark.parametrize("kind", ["Llama", "Qwen2", "GPT2"])
@torch.no_grad()
def test_decoders_of_transformers(kind):
    """Both probes, by NumPy from the hidden states that the library returns."""
    model = tiny_decoder(kind, DEPTH)
    h, p = hugging_face(model)
    u = [(b - a)[:, 1:] for a, b in zip(h, h[1:], strict=False)]
    relative = [np.mean(sizes(v) / sizes(x[:, 1:])) for v, x in zip(u, h, strict=False)]
    assert_near(contributions(model, TOKENS)[0], torch.tensor(np.array(relative)), kind, rel=1e-9)
    later, output = np.zeros((DEPTH, DEPTH)), np.zeros(DEPTH)
    for s in range(DEPTH):
        g, q = hugging_face(model, s)
        output[s] = sizes((p - q)[:, 1:]).max()
        for i in range(s + 1, DEPTH):
            later[s, i] = (sizes(u[i] - (g[i + 1] - g[i])[:, 1:]) / sizes(u[i])).max()
    for got, want in zip(skip_effects(model, TOKENS), (later, output), strict=True):
        assert_near(got, torch.tensor(want), kind, rel=1e-5)
    assert np.array_equal(hugging_face(model)[1], p)  # nothing is left behind
