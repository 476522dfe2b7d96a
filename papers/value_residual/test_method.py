import copy
import math

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from repro.models.gpt import GPT, Attention
from repro.models.vit import vit
from repro.papers.value_residual import FirstValues, SharedValueQKV, ValueResidualQKV, resformer_, svformer_
from repro.papers.value_residual.experiment import other_sequence_
from repro.testing import assert_near, draw, mutation, quiet_import

D, HEADS, T, DEPTH = 6, 2, 5, 3


def gpt(depth=DEPTH, seed=0):
    source = torch.Generator().manual_seed(seed)
    return GPT(11, T, D, depth, heads=HEADS, std=0.5, positions="none", generator=source).double()


def tokens(seed=0):
    return torch.randint(11, (2, T), generator=torch.Generator().manual_seed(seed))


def attentions(model):
    return [module for module in model.modules() if isinstance(module, Attention)]


# --- against the equations in Python floats --------------------------------------------------------------------------


def times(rows, weight):
    """rows @ weight.T"""
    return [[math.fsum(a * b for a, b in zip(row, w, strict=True)) for w in weight.tolist()] for row in rows]


def one_head(q, k, v):
    out = []
    for i, query in enumerate(q):
        scores = [math.fsum(a * b for a, b in zip(query, k[j], strict=True)) / len(query) ** 0.5 for j in range(i + 1)]
        exps = [math.exp(s - max(scores)) for s in scores]
        out.append([math.fsum(e * v[j][c] for j, e in enumerate(exps)) / math.fsum(exps) for c in range(len(v[0]))])
    return out


def oracle(layers, x, mix):
    """The outputs of attentions that follow each other without anything between, for one sequence."""
    first, outputs, k = None, [], D // HEADS
    for layer in layers:
        projected = times(x, layer.qkv.weight)
        q, key, own = ([row[i * D : (i + 1) * D] for row in projected] for i in range(3))
        first = first or own
        v = (
            own
            if own is first
            else [[mix(a, b) for a, b in zip(r, s, strict=True)] for r, s in zip(first, own, strict=True)]
        )
        heads = [one_head(*([row[h * k : (h + 1) * k] for row in part] for part in (q, key, v))) for h in range(HEADS)]
        x = times([sum((head[i] for head in heads), []) for i in range(len(x))], layer.out.weight)
        outputs.append(x)
    return torch.tensor(outputs, dtype=torch.float64)


def check(change, mix=lambda first, own: (first + own) / 2):
    """`change(model)` in place; then every attention's output is the oracle's, whatever the sequence."""
    for seed in range(2):
        plain, model = gpt(seed=seed), gpt(seed=seed)
        change(model)
        x = draw(2, T, D, seed=seed)
        want = torch.stack([oracle(attentions(plain), sequence.tolist(), mix) for sequence in x], 1)
        for i, layer in enumerate(attentions(model)):
            x = layer(x)
            assert_near(x.detach(), want[i], f"layer {i + 1}", rel=1e-9)


class Broken(ValueResidualQKV):
    fault = None

    def forward(self, x):
        fault, (q, k, v) = self.fault, nn.functional.linear(x, self.weight).chunk(3, -1)
        if self.index == 0:
            self.first.values = v.detach() if fault == "detached" else v
            if fault == "first from the input":
                self.first.values = x
            if fault == "first keys":
                self.first.values = k
            if fault == "other sequence":
                self.first.values = v.roll(1, 0)
            if fault == "first layer halved":
                v = v / 2
        else:
            own, first = v, self.first.values
            v = (first + own) / 2
            match fault:
                case "sum":
                    v = first + own
                case "first alone":
                    v = first
                case "difference":
                    v = own + 0.4 * (first - own)
                case "into the queries too":
                    q = (q + first) / 2
                case "previous layer":
                    self.first.values = v
                case "one position late":
                    v = (first.roll(1, 1) + own) / 2
        return torch.cat([q, k, v], -1)


def broken(fault):
    def change(model):
        first = FirstValues()
        for i, layer in enumerate(attentions(model)):
            layer.qkv = Broken(layer.qkv, first, i, DEPTH)
            layer.qkv.fault = fault

    return change


test_oracle, test_mutant_dies = mutation(check, broken, resformer_, but=["detached"], source=[Broken])


def test_svformer_against_the_oracle():
    check(svformer_, lambda first, own: first)
    check(lambda model: resformer_(model, 0.3, -2.0), lambda first, own: 0.3 * first - 2.0 * own)
    for wrong in (resformer_, broken("sum"), lambda model: None):
        with pytest.raises(AssertionError):
            check(wrong, lambda first, own: first)


def test_gradient_of_the_first_values():
    """V_1 learns from the last layer alone: a detached copy would have no gradient there."""

    def slope(change):
        model, x = gpt(2), draw(1, T, D)
        change(model)
        first, last = attentions(model)
        first(x)
        return torch.autograd.grad(last(x).sum(), first.qkv.weight, allow_unused=True)[0]

    assert slope(resformer_)[2 * D :].abs().max() > 0 and not slope(resformer_)[: 2 * D].any()
    assert slope(broken("detached")) is None


def test_x_transformers():
    """Its attention, given the first values, with the mixture fixed at 1/2."""
    module = quiet_import("x_transformers.x_transformers")
    theirs = module.Attention(
        D, dim_head=D // HEADS, heads=HEADS, causal=True, learned_value_residual_mix=False
    ).double()
    model, x = gpt(2), draw(2, T, D)
    resformer_(model)
    first, last = attentions(model)
    first(x)
    values = first.qkv.first.values.unflatten(-1, (HEADS, -1)).transpose(1, 2)
    for name, rows in zip(("to_q", "to_k", "to_v"), last.qkv.weight.detach().chunk(3), strict=True):
        getattr(theirs, name).weight.data = rows
    theirs.to_out.weight.data = last.out.weight.detach()
    assert_near(last(x).detach(), theirs(x, value_residual=values).detach(), rel=1e-6)  # its softmax is float32


def test_reduces_to_the_decoder():
    """Where all layers have one W^V and one input, V_n = V_1 and nothing changes; nor does the first layer ever."""
    plain, model = gpt(2), gpt(2)
    for each in (plain, model):
        a, b = attentions(each)
        b.qkv.weight.data[2 * D :] = a.qkv.weight.data[2 * D :]
    resformer_(model)
    x = draw(2, T, D)
    for ours, theirs in zip(attentions(model), attentions(plain), strict=True):
        assert_near(ours(x).detach(), theirs(x).detach(), rel=1e-12)


def test_causal_and_apart():
    model, x = gpt(), tokens()
    resformer_(model)
    want, other = model(x).detach(), x.clone()
    other[0, -1] = (other[0, -1] + 1) % 11
    got = model(other).detach()
    assert torch.equal(got[0, :-1], want[0, :-1]) and torch.equal(got[1], want[1])
    broken_model = gpt()
    other_sequence_(broken_model)
    assert not torch.equal(broken_model(other)[1], broken_model(x)[1])


def test_timm():
    model = vit(8, 4, 8, 3, heads=2, classes=4, channels=1, generator=torch.Generator().manual_seed(0))
    images, before = draw(2, 1, 8, 8, dtype=torch.float32), None
    before = model(images).detach()
    resformer_(model)
    assert isinstance(model.blocks[2].attn.qkv, ValueResidualQKV) and not torch.allclose(model(images), before)
    assert model.blocks[0].attn.qkv.bias is not None


# --- departures ------------------------------------------------------------------------------------------------------


def test_d1_first_values_are_kept_for_one_pass():
    for change in (resformer_, svformer_):
        model = gpt()
        change(model)
        first = attentions(model)[0].qkv.first
        assert all(layer.qkv.first is first for layer in attentions(model))
        want = model(tokens()).detach()
        assert first.values is None and torch.equal(copy.deepcopy(model)(tokens()), want)
        with pytest.raises(RuntimeError, match="call all layers in order"):
            attentions(model)[1](draw(1, T, D))
        whole = checkpoint(model, tokens(), use_reentrant=False)
        whole.sum().backward()
        assert torch.equal(whole, want)
        x = model.embedding(tokens())
        for block in model.blocks:
            x = checkpoint(block, x, use_reentrant=False)
        with pytest.raises(RuntimeError, match="checkpoint the whole stack"):
            x.sum().backward()


def test_d2_lambdas_are_constants():
    plain, model = gpt(), gpt()
    resformer_(model)
    assert {n for n, _ in model.named_parameters()} == {n for n, _ in plain.named_parameters()}
    model.load_state_dict(plain.state_dict())
    assert (attentions(model)[1].qkv.lambda1, attentions(model)[1].qkv.lambda2) == (0.5, 0.5)


def test_parameters():
    plain, shared = gpt(), gpt()
    svformer_(shared)
    saved = sum(p.numel() for p in plain.parameters()) - sum(p.numel() for p in shared.parameters())
    assert saved == (DEPTH - 1) * D * D
    assert [type(layer.qkv) for layer in attentions(shared)] == [ValueResidualQKV, *[SharedValueQKV] * (DEPTH - 1)]


@pytest.mark.parametrize("change", [resformer_, svformer_])
def test_as_a_module(change):
    model = gpt()
    change(model)
    want = model(tokens()).detach()
    fresh = gpt(seed=1)
    change(fresh)
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh.eval()(tokens()), want)
    if change is resformer_:
        compiled = copy.deepcopy(model)
        torch.compiler.reset()
        compiled.compile(backend="eager", fullgraph=True)
        assert_near(compiled(tokens()).detach(), want, rel=1e-9)
    with torch.autocast("cpu", torch.bfloat16):
        assert copy.deepcopy(model).float()(tokens()).isfinite().all()
    model(tokens()).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_errors():
    for model in (gpt(1), nn.Linear(2, 2)):
        with pytest.raises(ValueError, match="write a model with two or more"):
            resformer_(model)
    changed = gpt()
    resformer_(changed)
    with pytest.raises(ValueError, match="not been changed yet"):
        svformer_(changed)
