import copy
import math
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from repro.models.gpt import GPT
from repro.models.vit import vit
from repro.papers.relu_attention import ACTIVATIONS, ReLUAttention, relu_attention
from repro.papers.relu_attention.experiment import off, summed
from repro.testing import assert_near, check_float32, draw, mutation

T, L, D, E = 3, 5, 4, 2
FUNCTIONS = {  # in Python floats
    "relu": lambda a: max(a, 0.0),
    "relu2": lambda a: max(a, 0.0) ** 2,
    "gelu": lambda a: a * 0.5 * math.erfc(-a / math.sqrt(2)),
    "softplus": lambda a: math.log1p(math.exp(a)),
    "identity": lambda a: a,
    "relu6": lambda a: min(max(a, 0.0), 6.0),
    "sigmoid": lambda a: 1 / (1 + math.exp(-a)),
}


def inputs(t=T):
    return 3 * draw(2, t, D, seed=1), draw(2, L, D, seed=2), draw(2, L, E, seed=3)


def oracle(q, k, v, activation, alpha, seen):
    """One head in Python floats; seen(i, j): query i sees key j."""
    out = []
    for i, query in enumerate(q):
        scores = [math.fsum(a * b for a, b in zip(query, key, strict=True)) / math.sqrt(len(query)) for key in k]
        w = [FUNCTIONS[activation](s) / len(k) ** alpha if seen(i, j) else 0.0 for j, s in enumerate(scores)]
        out.append([math.fsum(a * row[c] for a, row in zip(w, v, strict=True)) for c in range(len(v[0]))])
    return out


def check(attend):
    """`attend(q, k, v, mask, causal, activation, alpha)` for every function, exponent and mask."""
    mask = torch.tensor([[1, 1, 0, 1, 0]] * L).bool()
    for activation in FUNCTIONS:
        for alpha in (1.0, 0.5, 0.0):
            for causal, shown in ((False, None), (True, None), (False, mask), (True, mask)):
                q, k, v = inputs(L)

                def seen(i, j, causal=causal, shown=shown):
                    return (not causal or j <= i) and (shown is None or bool(shown[i, j]))

                want = [
                    oracle(*(x.tolist() for x in head), activation, alpha, seen) for head in zip(q, k, v, strict=True)
                ]
                got = attend(q, k, v, shown, causal, activation, alpha)
                assert_near(got, torch.tensor(want, dtype=torch.float64), f"{activation}, {alpha}, {causal}", rel=1e-9)


def ours(q, k, v, mask, causal, activation, alpha):
    return relu_attention(q, k, v, mask, causal, activation=activation, alpha=alpha)


def broken(fault):
    def attend(q, k, v, mask, causal, activation, alpha):
        scores = q @ k.mT / math.sqrt(D if fault != "scaled by the width of values" else E)
        if fault == "not scaled":
            scores = q @ k.mT
        length = L
        if fault == "division inside the function":
            return kept(ACTIVATIONS[activation](scores / L**alpha), mask, causal) @ v
        if fault == "masked before with zero":
            return ACTIVATIONS[activation](kept(scores, mask, causal)) / L**alpha @ v
        if fault == "masked before with minus infinity":
            hidden = ~kept(torch.ones_like(scores), mask, causal).bool()
            return ACTIVATIONS[activation](scores.masked_fill(hidden, -math.inf)) / L**alpha @ v
        weights = ACTIVATIONS[activation](scores)
        match fault:
            case "root of the length":
                length = L**0.5
            case "length of the keys' width":
                length = D
            case "length that is seen":
                length = kept(torch.ones_like(scores), mask, causal).sum(-1, keepdim=True)
        if fault == "rows sum to 1":
            weights = weights / weights.sum(-1, keepdim=True)
        return kept(weights / length**alpha, mask, causal) @ v

    def kept(x, mask, causal):
        x = x.tril() if causal and fault != "causal left out" else x
        return x if mask is None else x * mask

    return attend


test_oracle, test_mutant_dies = mutation(check, broken, ours)


def test_softmax_is_another_thing():
    q, k, v = inputs()
    assert not torch.allclose(relu_attention(q, k, v), F.scaled_dot_product_attention(q, k, v))
    # for the identity the order of products does not matter: linear attention
    assert_near(relu_attention(q, k, v, activation="identity"), q @ (k.mT @ v) / math.sqrt(D) / L, rel=1e-12)


def test_order_of_keys_and_padding():
    q, k, v = inputs()
    order = torch.tensor([3, 0, 4, 1, 2])
    assert_near(relu_attention(q, k[:, order], v[:, order]), relu_attention(q, k, v), rel=1e-12)
    mask = torch.tensor([True, True, True, False, False])
    short = relu_attention(q, k[:, :3], v[:, :3], length=L)
    assert_near(relu_attention(q, k, v, mask), short, rel=1e-12)


def test_scale_of_the_weights():
    """The mean of max(0, z) is 1 / sqrt(2 pi), whatever the length; undivided it grows with it."""
    for length in (256, 1024):
        q, k = draw(4, length, 64, seed=length), draw(4, length, 64, seed=length + 1)
        one = torch.ones(4, length, 1, dtype=torch.float64)
        assert relu_attention(q, k, one).mean().item() == pytest.approx(1 / math.sqrt(2 * math.pi), rel=0.03)
        assert relu_attention(q, k, one, alpha=0.0).mean().item() == pytest.approx(length * 0.399, rel=0.03)


# --- departures ------------------------------------------------------------------------------------------------------


def test_d1_masked_after_the_function():
    q, k, v = inputs(L)
    for activation in ACTIVATIONS:
        y = relu_attention(q, k, v, is_causal=True, activation=activation)
        assert y.isfinite().all()
        changed = relu_attention(q, k, torch.cat([v[:, :1], v[:, 1:] + 1], 1), is_causal=True, activation=activation)
        assert torch.equal(y[:, 0], changed[:, 0])


def test_d2_length():
    q, k, v = inputs()
    assert_near(relu_attention(q, k, v, length=10), relu_attention(q, k, v) / 2, rel=1e-12)
    assert_near(relu_attention(q, k, v, length=10, alpha=2.0), relu_attention(q, k, v) / 20, rel=1e-12)


# --- in models -------------------------------------------------------------------------------------------------------


def test_float32_convention():
    check_float32(relu_attention, *inputs())


def test_in_a_decoder():
    options = {"heads": 2, "generator": torch.Generator().manual_seed(0)}
    model = GPT(11, 8, 8, 2, attend=partial(relu_attention, is_causal=True), **options)
    tokens = torch.arange(8)[None]
    changed = tokens.clone()
    changed[0, -1] = 10
    assert torch.equal(model(tokens)[0, :-1], model(changed)[0, :-1])
    model(tokens).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def images_and_model():
    source = torch.Generator().manual_seed(0)
    model = vit(8, 4, 8, 2, heads=2, classes=4, channels=1, options={"qk_norm": True}, generator=source)
    return draw(2, 1, 8, 8, dtype=torch.float32), model


def test_timm():
    """With softmax the module is timm's attention; with ReLU it is another, and its state dict loads either way."""
    images, model = images_and_model()
    want, state = model(images).detach(), copy.deepcopy(model.state_dict())
    for attend, same in ((F.scaled_dot_product_attention, True), (relu_attention, False)):
        for block in model.blocks:
            block.attn = ReLUAttention(block.attn, attend)
        assert torch.allclose(model(images), want, atol=1e-6) == same
        model.load_state_dict(state)
    x, attention = draw(1, 4, 8, dtype=torch.float32), model.blocks[0].attn
    first = [attention(x + (torch.arange(4) == 3)[:, None] * i, is_causal=True)[0, 0] for i in range(2)]
    assert torch.equal(*first) and not torch.equal(attention(x)[0, 0], first[0])


def test_as_a_module():
    images, model = images_and_model()
    for block in model.blocks:
        block.attn = ReLUAttention(block.attn)
    want = model(images).detach()
    assert torch.equal(copy.deepcopy(model).eval()(images), want)
    compiled = copy.deepcopy(model.blocks[0])
    torch.compiler.reset()
    compiled.compile(backend="eager", fullgraph=True)
    x = draw(2, 4, 8, dtype=torch.float32)
    assert_near(compiled(x).detach(), model.blocks[0](x).detach(), rel=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert model(images).isfinite().all()
    q, k, v = (x.requires_grad_() for x in inputs())
    torch.autograd.gradcheck(partial(relu_attention, is_causal=True), (q, k, v))


def test_broken_arms():
    q, k, v = inputs()
    assert not off(q, k, v).any()
    rows = summed(q, k, torch.ones(2, L, D, dtype=torch.float64))
    assert ((rows - 1).abs() < 1e-6).logical_or(rows == 0).all()


def test_errors():
    q, k, v = inputs()
    with pytest.raises(ValueError, match="write one of relu"):
        relu_attention(q, k, v, activation="tanh")
    with pytest.raises(ValueError, match="write booleans"):
        relu_attention(q, k, v, torch.zeros(T, L))
    assert isinstance(ReLUAttention(images_and_model()[1].blocks[0].attn).qkv, nn.Linear)
