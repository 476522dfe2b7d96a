import copy
import math
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import nn
from torch.nn import functional as F

from repro.models import gpt2
from repro.models.gpt import GPT
from repro.models.slots import Bare
from repro.papers.layernorm import LayerNorm
from repro.papers.ln_removal import (
    FakeLayerNorm,
    LayerNormRemoval,
    auxiliary_loss,
    fold_layernorm,
    openwebtext,
    removal_schedule,
    remove_layernorm,
)
from repro.papers.rmsnorm import RMSNorm
from repro.testing import (
    assert_near,
    assert_same_outcome,
    check_copies,
    check_drop_in,
    check_dtypes,
    check_float32,
    check_gradients,
    check_norm_contract,
    draw,
    hard_inputs,
    mutation,
    norm_inputs,
    scramble,
)
from repro.train import fit

N, V, T, D, L, H = 6, 11, 5, 8, 2, 2


@pytest.fixture(autouse=True)
def one_thread():
    """Small tensors: threads only wait for one another."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def tokens(batch=3, seed=1):
    return torch.randint(V, (batch, T), generator=seeded(seed))


# --- FakeLN against Equations 1 and 2 in plain Python ----------------------------------------------------------------


def sigma_of(row):
    mean = math.fsum(row) / len(row)
    return math.sqrt(math.fsum((v - mean) ** 2 for v in row) / len(row) + 1e-5)


def oracle(x, gain, bias, upstream, constant=None):
    """y and the gradients of sum(upstream * y); constant: sigma_avg, or None for LN."""
    y, dx, dgain, dbias = [], [], [0.0] * N, [0.0] * N
    for row, up in zip(x.flatten(0, -2).tolist(), upstream.flatten(0, -2).tolist(), strict=True):
        mean, sigma = math.fsum(row) / N, constant or sigma_of(row)
        hat = [(v - mean) / sigma for v in row]
        y.append([g * h + b for g, h, b in zip(gain.tolist(), hat, bias.tolist(), strict=True)])
        pull = [u * g for u, g in zip(up, gain.tolist(), strict=True)]
        own = 0.0 if constant else math.fsum(p * h for p, h in zip(pull, hat, strict=True)) / N
        dx.append([(p - math.fsum(pull) / N - h * own) / sigma for p, h in zip(pull, hat, strict=True)])
        for i in range(N):
            dgain[i] += up[i] * hat[i]
            dbias[i] += up[i]
    y, dx, dgain, dbias = (torch.tensor(rows, dtype=torch.float64) for rows in (y, dx, dgain, dbias))
    return {"y": y.view(x.shape), "dx": dx.view(x.shape), "dg": dgain, "db": dbias}


def check(make):
    """Two batches with the norm, then a training batch and one in eval mode without it, on every hard input."""
    for name, x in hard_inputs(3, 4, N).items():
        gain, bias, upstream = 1 + draw(N, seed=1), draw(N, seed=2), draw(3, 4, N, seed=3)
        module, constant = make(N).double().train(), None
        module.load_state_dict({"weight": gain, "bias": bias}, strict=False)
        for step, batch in enumerate((1 + draw(3, 4, N, seed=4), x, 2 * x + 1, x - 3)):
            if step == 2:
                module.remove()
                constant = math.fsum(sigma_of(row) for row in x.flatten(0, 1).tolist()) / 12
            module.train(step < 3)
            leaves = [batch.clone().requires_grad_(), module.weight, module.bias]
            y = module(leaves[0])
            got = (y.detach(), *torch.autograd.grad(y, leaves, upstream))
            want = oracle(batch, gain, bias, upstream, constant)
            for key, value in zip(want, got, strict=True):
                floor = 1e-9 if name == "constant" else 1e-25  # there x - mean is rounding
                assert_near(value, want[key], f"{name}, batch {step}: {key}", floor=floor)


def broken(fault):
    class Broken(FakeLayerNorm):
        def forward(self, x):
            centred = x - x.mean(-1, keepdim=True)
            variance = centred.square().mean(-1, keepdim=True)
            if fault == "unbiased variance":
                variance = x.var(-1, keepdim=True)
            sigma = variance.sqrt() + 1e-5 if fault == "eps outside the root" else (variance + 1e-5).sqrt()
            average = sigma.detach().mean()
            if fault == "root of the mean variance":
                average = (variance + 1e-5).mean().sqrt().detach()
            if fault == "over batch and features, per position":
                average = (x.var(dim=(0, -1), correction=0) + 1e-5).sqrt().mean().detach()
            if fault == "without the first position":
                average = sigma[:, 1:].detach().mean()
            if fault == "first batch" and self.std:
                average = self.std
            if fault == "moving average" and self.std:
                average = 0.9 * self.std + 0.1 * average
            follows = fault == "never frozen" or not self.removed
            if follows and (self.training or fault == "tracked in eval mode too, and after"):
                self.std.copy_(average)
            if fault == "tracked in eval mode too, and after":
                self.std.copy_(average)
            divisor = self.std if self.removed else sigma
            if self.removed:
                if fault == "sigma of the token, detached":
                    divisor = sigma.detach()
                if fault == "mean not subtracted":
                    centred = x
                if fault == "nothing divides":
                    divisor = 1.0
                if fault == "one constant per feature":
                    divisor = (x.std((0, 1), correction=0) + 1e-5).detach()
                if fault == "no gain":
                    return centred / divisor + self.bias + 0 * self.weight
                if fault == "no bias":
                    return centred / divisor * self.weight + 0 * self.bias
                if fault == "bias divided too":
                    return (centred * self.weight + self.bias) / divisor
                if fault == "gain divides":
                    return centred / divisor / self.weight + self.bias
            return centred / divisor * self.weight + self.bias

    return Broken


test_oracle, test_mutant_dies = mutation(check, broken, FakeLayerNorm)


@pytest.mark.parametrize("options", [{}, {"elementwise_affine": False}, {"bias": False}, {"eps": 0.1}])
def test_contract(options):
    check_norm_contract(partial(FakeLayerNorm, 5, **options), None, draw(2, 3, 5))


@pytest.mark.parametrize("training", [True, False])
def test_contract_when_removed(training):
    def make():
        module = FakeLayerNorm(5)
        module(draw(2, 3, 5).float())
        module.remove()
        return module.train(training)

    check_dtypes(make(), draw(2, 3, 5))
    check_copies(make().double(), draw(2, 3, 5))
    check_gradients(make().double(), draw(2, 3, 5))


@pytest.mark.parametrize("training", [True, False])
def test_with_its_norm_it_is_torchs(training):
    ours, theirs = FakeLayerNorm(N, dtype=torch.float64).train(training), nn.LayerNorm(N, dtype=torch.float64)
    missing = ours.load_state_dict({"weight": 1 + draw(N), "bias": draw(N, seed=1)}, strict=False)
    assert missing.missing_keys == ["std", "removed"]
    theirs.load_state_dict({"weight": 1 + draw(N), "bias": draw(N, seed=1)})
    for what, x in hard_inputs(3, 4, N).items():
        results = []
        for module in (ours, theirs):
            leaves = [x.clone().requires_grad_(), *module.parameters()]
            y = module(leaves[0])
            results.append([y.detach(), *torch.autograd.grad(y, leaves, draw(*y.shape, seed=5))])
        for got, want in zip(*results, strict=True):
            assert_near(got, want, what, rel=1e-6, floor=1e-9)


def test_without_it_is_torchs_of_huge_eps():
    """As the released checkpoints are stored: eps 1e12 swamps the variance, and a gain of 1e6 undoes its root."""
    module, x = FakeLayerNorm(N, dtype=torch.float64), 3 + draw(3, 4, N)
    module.weight.data, module.bias.data = 1 + draw(N, seed=1), draw(N, seed=2)
    module(x)
    module.remove()
    stored = F.layer_norm(x, (N,), 1e6 * module.weight / module.std, module.bias, eps=1e12)
    assert_near(module(x).detach(), stored.detach(), rel=1e-9)


@settings(deadline=None, max_examples=30, derandomize=True)
@given(norm_inputs(min_axes=2))
def test_any_input_is_mapped_linearly(x):
    n = x.shape[-1]
    module = FakeLayerNorm(n)
    module.std.fill_(1.5)
    module.remove()
    y = module.eval()(x)
    assert y.shape == x.shape and y.dtype == x.dtype and torch.isfinite(y).all()
    if n:
        exact = module.double()
        assert_near(y.double(), exact(x.double()).detach(), rel=4 * torch.finfo(x.dtype).eps, floor=1e-4)
        assert_near(exact(-2 * x.double()).detach(), -2 * exact(x.double()).detach(), rel=1e-12)


# --- departures ------------------------------------------------------------------------------------------------------


def test_drops_in():
    check_drop_in(FakeLayerNorm)


def test_several_axes():
    x, fake, plain = 3 + draw(2, 3, 4), FakeLayerNorm((3, 4), dtype=torch.float64), nn.LayerNorm((3, 4)).double()
    assert_near(fake(x).detach(), plain(x).detach(), rel=1e-9)
    fake.remove()
    sigma = (x.var((1, 2), correction=0) + 1e-5).sqrt().mean()
    assert_near(fake(x).detach(), (x - x.mean((1, 2), keepdim=True)) / sigma, rel=1e-9)


def test_state_dicts_of_before_load():
    """`removed` was a bool once, which AveragedModel cannot average."""
    fake, state = FakeLayerNorm(4), scramble(FakeLayerNorm(4)).state_dict()
    fake.load_state_dict({**state, "removed": torch.tensor(True)})
    assert fake.removed == 1 and fake.removed.dtype == torch.long


def test_d1_average_of_the_last_batch():
    module = FakeLayerNorm(N, dtype=torch.float64)
    for scale in (5.0, 1.0, 3.0):
        module(scale * draw(3, 4, N))
    want = (3 * draw(3, 4, N)).var(-1, correction=0).add(1e-5).sqrt().mean()
    assert_near(module.std, want, rel=1e-12)
    module.eval()(draw(3, 4, N))
    assert_near(module.std, want, rel=1e-12)


def test_d2_mean_is_subtracted():
    module = FakeLayerNorm(N, dtype=torch.float64)
    module(draw(3, 4, N))
    module.remove()
    assert_near(module(7 + draw(3, 4, N)).detach(), module(draw(3, 4, N)).detach(), rel=1e-12)


def test_d3_first_position_is_like_any_other():
    x = draw(3, 4, N)
    x[:, 0] *= 100
    module, moved = FakeLayerNorm(N, dtype=torch.float64), FakeLayerNorm(N, dtype=torch.float64)
    module(x), moved(x.roll(1, 1))
    assert_near(module.std, moved.std, rel=1e-12)
    module.remove()
    assert_near(module(x.roll(1, 1)).detach(), module(x).detach().roll(1, 1), rel=1e-12)


def test_d4_no_gradient_through_sigma_hat():
    x = draw(3, 4, N).requires_grad_()
    sigma = (x.var(-1, correction=0) + 1e-5).sqrt()
    hat = sigma[:, 1:].mean()
    got = torch.autograd.grad(auxiliary_loss(x), x)[0]
    assert_near(
        got, torch.autograd.grad(0.1 * (sigma - hat.detach()).square().mean(), x, retain_graph=True)[0], rel=1e-12
    )
    with pytest.raises(AssertionError):
        assert_near(got, torch.autograd.grad(0.1 * (sigma - hat).square().mean(), x)[0], rel=1e-3)


def test_float32():
    module, x = FakeLayerNorm(4), torch.tensor([[100.0, 100.5, 101.0, 101.5]])
    check_float32(module, x)
    module.remove()
    check_float32(module, x)
    assert auxiliary_loss(x.bfloat16().expand(2, 3, 4)).dtype == module.std.dtype == torch.float32


def test_d5_mean_of_the_tokens_deviations():
    x = draw(3, 4, N) * torch.tensor([1.0, 10.0, 100.0]).double()[:, None, None]
    module = FakeLayerNorm(N, dtype=torch.float64)
    module(x)
    sigmas = (x.var(-1, correction=0) + 1e-5).sqrt()
    assert_near(module.std, sigmas.mean(), rel=1e-12)
    with pytest.raises(AssertionError):
        assert_near(module.std, x.var((0, -1)).sqrt().mean(), rel=0.2)


# --- the schedule ----------------------------------------------------------------------------------------------------

TABLE_4 = {  # layers, start, gaps of mlp, qk and v -> steps of the first and last removal of each kind, of final
    (12, 20, 2, 2, 3): (20, 42, 44, 66, 68, 101, 104),
    (24, 20, 2, 2, 3): (20, 66, 68, 114, 116, 185, 188),
    (36, 30, 4, 4, 6): (30, 170, 174, 314, 318, 528, 534),
    (48, 50, 4, 4, 6): (50, 238, 242, 430, 434, 716, 722),
}


@pytest.mark.parametrize("setting", TABLE_4)
def test_schedule_of_the_paper(setting):
    depth, start, mlp, qk, v = setting
    schedule = removal_schedule(depth, start=start, gap_mlp=mlp, gap_qk=qk, gap_v=v)
    names = [f"{kind}.{i}" for kind in ("mlp", "qk", "v") for i in range(depth)] + ["final"]
    assert [site for _, site in schedule] == names and [at for at, _ in schedule] == sorted(at for at, _ in schedule)
    at = {site: step for step, site in schedule}
    last = depth - 1
    found = (at["mlp.0"], at[f"mlp.{last}"], at["qk.0"], at[f"qk.{last}"], at["v.0"], at[f"v.{last}"], at["final"])
    assert found == TABLE_4[setting]
    assert {b - a for (a, s), (b, t) in zip(schedule, schedule[1:], strict=False) if s[:2] == t[:2] == "v."} == {v}


def test_default_schedule_is_that_of_gpt2_small():
    assert removal_schedule(12) == removal_schedule(12, start=20, gap_mlp=2, gap_qk=2, gap_v=3)


# --- in a decoder ----------------------------------------------------------------------------------------------------

KINDS = {
    "gpt2": {"positions": "learned", "bias": True, "tied": True},
    "llama": {"gated": True, "act": nn.SiLU},
    "ours": {"norm": LayerNorm},
    "no gain": {"norm": partial(nn.LayerNorm, elementwise_affine=False)},
    "no bias": {"norm": partial(nn.LayerNorm, bias=False)},
}


def decoder(kind="gpt2", seed=0):
    """A float64 decoder whose every parameter matters."""
    model = GPT(V, T, D, L, heads=H, generator=seeded(seed), std=D**-0.5, embedding_std=1.0, **KINDS[kind]).double()
    with torch.no_grad():
        for i, p in enumerate(model.parameters()):
            if p.dim() == 1:
                p.add_(0.5 * draw(*p.shape, seed=i))
    return model


def linearized(kind="gpt2", seed=0):
    """A decoder without its norms, each constant its own, and what removed them."""
    model = decoder(kind, seed)
    removal = remove_layernorm(model)
    model(tokens())
    for i, norm in enumerate(removal.sites.values()):
        norm.std *= 0.5 + i / 4
        norm.remove()
    return model.eval(), removal


@pytest.mark.parametrize("kind", KINDS)
def test_conversion_changes_nothing(kind):
    want, model = decoder(kind), decoder(kind)
    parameters = {id(p) for p in model.parameters()}
    removal = remove_layernorm(model)
    assert {id(p) for p in model.parameters()} == parameters
    assert set(removal.sites) == {site for _, site in removal_schedule(L)} and removal.schedule == removal_schedule(L)
    assert removal.sites["qk.0"].weight is removal.sites["v.0"].weight
    for each in (want, model):
        F.cross_entropy(each(tokens()).flatten(0, 1), tokens(seed=2).flatten()).backward()
    assert_near(model(tokens()).detach(), want(tokens()).detach(), rel=1e-12)
    gradients = {
        n.replace("linear.", "").replace("sublayer.qkv.qk", "norm"): p.grad for n, p in model.named_parameters()
    }
    for name, p in want.named_parameters():
        assert_near(gradients[name], p.grad, name, rel=1e-9, floor=1e-12)


def test_values_have_a_constant_of_their_own():
    """Sabotage: the attention output must answer to the constant of each path, and in its own way."""
    model, removal = linearized()
    outputs = []
    for site in (None, "qk.0", "v.0"):
        changed = copy.deepcopy(model)
        if site:
            path = getattr(changed.blocks[0].attention.sublayer.qkv, site[:-2])
            path.std *= 2
        outputs.append(changed.blocks[0].attention(draw(2, T, D)).detach())
    x = draw(2, T, D)
    assert (outputs[1] - outputs[0]).abs().max() > 1e-2 and (outputs[2] - outputs[1]).abs().max() > 1e-2
    shift = model.blocks[0].attention.sublayer  # a first token attends to itself: only its values count
    assert_near(outputs[1][:, 0], outputs[0][:, 0], rel=1e-12)
    assert shift.qkv(x).shape == (2, T, 3 * D)


def test_hook_removes_at_the_paper_s_steps():
    model = decoder()
    removal, removed = remove_layernorm(model, removal_schedule(L, start=2)), []
    sites = {site: at for at, site in removal.schedule}

    def loss(logits, target):  # called after the forward pass of a step
        removed.append({site for site, norm in removal.sites.items() if norm.removed})
        return F.cross_entropy(logits.flatten(0, 1), target.flatten())

    text = torch.randint(V, (200,), generator=seeded())
    frozen = {}

    def hook(step, model, value):
        before = {site: float(norm.std) for site, norm in removal.sites.items() if not norm.removed}
        removal(step, model, value)
        frozen.update({site: std for site, std in before.items() if removal.sites[site].removed})

    fit(model.float(), text, context=T, steps=20, batch=4, lr=1e-3, seed=0, hook=hook, loss=loss)
    for step, found in enumerate(removed):
        assert found == {site for site, at in sites.items() if at <= step}, step
    assert removed[-1] == set(sites) and sites["final"] == 16
    assert frozen == {
        site: float(norm.std) for site, norm in removal.sites.items()
    }  # of the batch before, and for good


def test_removal_needs_a_batch():
    model = decoder().eval()
    removal = remove_layernorm(model, [(1, "final")])
    model(tokens())
    with pytest.raises(ValueError, match="run the model in training mode"):
        removal(0, model)
    assert not removal.sites["final"].removed


def folded_by_hand(linear, norm, fault=None):
    """Weight and bias of the equation at the head of method.py, in NumPy."""
    w, d = linear.weight.detach().numpy(), linear.in_features
    b = np.zeros(len(w)) if linear.bias is None else linear.bias.detach().numpy()
    gain = np.ones(d) if norm.weight is None else norm.weight.detach().numpy()
    beta = np.zeros(d) if norm.bias is None else norm.bias.detach().numpy()
    std, centre = float(norm.std), np.eye(d) - 1 / d
    if fault == "centred after the gain":
        return w @ centre @ np.diag(gain) / std, b + w @ beta
    if fault == "not centred":
        return w @ np.diag(gain) / std, b + w @ beta
    if fault == "outputs centred":
        return (w - w.mean(0)) @ np.diag(gain) / std, b + w @ beta
    if fault == "no gain":
        return w @ centre / std, b + w @ beta
    if fault == "no constant":
        return w @ np.diag(gain) @ centre, b + w @ beta
    if fault == "no bias of the norm":
        return w @ np.diag(gain) @ centre / std, b
    if fault == "bias divided too":
        return w @ np.diag(gain) @ centre / std, b + w @ beta / std
    if fault == "bias of the layer lost":
        return w @ np.diag(gain) @ centre / std, w @ beta
    if fault == "added to the norm":
        return w @ np.diag(1 + gain) @ centre / std, b + w @ beta
    return w @ np.diag(gain) @ centre / std, b + w @ beta


def fold_by_hand(model, fault=None):
    folded = fold_layernorm(model)
    with torch.no_grad():
        for old, new in zip(model.blocks, folded.blocks, strict=True):
            qkv, ff = old.attention.sublayer.qkv, old.feed_forward.sublayer
            parts = [folded_by_hand(qkv.linear, norm, fault) for norm in (qkv.qk, qkv.v)]
            if fault == "one constant":
                parts[1] = parts[0]
            for i, p in enumerate((new.attention.sublayer.qkv.weight, new.attention.sublayer.qkv.bias)):
                p.copy_(torch.from_numpy(np.concatenate([parts[0][i][: 2 * D], parts[1][i][2 * D :]])))
            for name in ("up", "gate") if ff.gate is not None and fault != "gate forgotten" else ("up",):
                found = folded_by_hand(getattr(ff, name), old.feed_forward.norm, fault)
                getattr(new.feed_forward.sublayer, name).load_state_dict(
                    dict(zip(("weight", "bias"), map(torch.tensor, found), strict=True))
                )
            if fault == "gate forgotten" and ff.gate is not None:
                new.feed_forward.sublayer.gate.weight.copy_(ff.gate.weight)
                new.feed_forward.sublayer.gate.bias.zero_()
        if fault != "head forgotten":
            found = folded_by_hand(model.head, model.norm, fault)
            folded.head.load_state_dict(dict(zip(("weight", "bias"), map(torch.tensor, found), strict=True)))
        else:
            folded.head.weight.copy_(model.head.weight)
    return folded


def check_folding(fold):
    for kind in KINDS:
        model, _ = linearized(kind)
        folded = fold(model)
        assert_near(folded(tokens()).detach(), model(tokens()).detach(), kind, rel=1e-11)


@pytest.mark.parametrize("fold", [fold_layernorm, fold_by_hand], ids=["ours", "by hand"])
def test_folded_decoder_is_the_same(fold):
    check_folding(fold)


FOLDS = [
    "centred after the gain",
    "not centred",
    "outputs centred",
    "no gain",
    "no constant",
    "no bias of the norm",
    "bias divided too",
    "bias of the layer lost",
    "added to the norm",
    "one constant",
    "gate forgotten",
    "head forgotten",
]


@pytest.mark.parametrize("fault", FOLDS)
def test_mutant_folding_dies(fault):
    with pytest.raises(AssertionError):
        check_folding(partial(fold_by_hand, fault=fault))


@pytest.mark.parametrize("kind", KINDS)
def test_folded_weights_are_those_of_the_equation(kind):
    model, _ = linearized(kind)
    ours, want = fold_layernorm(model).state_dict(), fold_by_hand(model).state_dict()
    for name, value in want.items():
        assert_near(ours[name], value, name, rel=1e-12, floor=1e-14)


def test_folded_decoder_has_no_norm():
    model, _ = linearized("gpt2")
    before = {name: t.clone() for name, t in model.state_dict().items()}
    folded = fold_layernorm(model)
    assert not any(isinstance(m, nn.LayerNorm | FakeLayerNorm) for m in folded.modules())
    assert all(type(part) is Bare for block in folded.blocks for part in (block.attention, block.feed_forward))
    assert folded.head.weight is not folded.embedding.weight and model.head.weight is model.embedding.weight
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    pointers = {p.data_ptr() for p in model.parameters()}
    assert not any(p.data_ptr() in pointers for p in folded.parameters())
    loss = F.cross_entropy(folded(tokens()).flatten(0, 1), tokens().flatten())
    loss.backward()
    assert all(p.grad is not None for p in folded.parameters())


def test_folding_in_float32():
    model, _ = linearized()
    want = model(tokens())
    model = model.float()
    assert_near(fold_layernorm(model)(tokens()).detach(), want.detach(), rel=1e-4)


@pytest.mark.parametrize("site", ["final", "qk.1", "v.0", "mlp.1"])
def test_folding_refuses_a_norm(site):
    model, removal = linearized()
    removal.sites[site].removed.fill_(False)
    with pytest.raises(ValueError, match="a norm is left"):
        fold_layernorm(model)


def test_folding_refuses_a_decoder_that_was_not_converted():
    with pytest.raises(ValueError, match="remove_layernorm"):
        fold_layernorm(decoder())


def test_direct_effects_are_linear_once_the_last_norm_is_gone():
    """Equations 4 and 5: what a component adds to the logits does not depend on the rest."""
    model, removal = linearized()
    r, c = draw(4, D), draw(4, D, seed=1)
    effects = []
    for gone in (True, False):
        removal.sites["final"].removed.fill_(gone)
        effects.append([model.head(model.norm(s)) - model.head(model.norm(s - c)) for s in (r, 3 * r)])
    assert_near(effects[0][0].detach(), effects[0][1].detach(), rel=1e-11)
    with pytest.raises(AssertionError):
        assert_near(effects[1][0].detach(), effects[1][1].detach(), rel=0.1)


@pytest.mark.parametrize(
    "model, message",
    [
        (lambda: GPT(V, T, D, L, heads=H, generator=seeded(), placement="post"), "Pre-LN"),
        (lambda: GPT(V, T, D, L, heads=H, generator=seeded(), placement="none"), "Pre-LN"),
        (lambda: GPT(V, T, D, L, heads=H, generator=seeded(), norm=RMSNorm), "norm=nn.LayerNorm"),
        (lambda: GPT(V, T, D, L, heads=H, generator=seeded(), final_norm=False), "norm=nn.LayerNorm"),
        (lambda: nn.Linear(2, 2), "repro.models.gpt.GPT"),
    ],
)
def test_conversion_refuses(model, message):
    with pytest.raises(ValueError, match=message):
        remove_layernorm(model())


@pytest.mark.parametrize("entry", [(2, "mlp.2"), (2, "ln_1"), (2, "qkv.0"), (0, "mlp.0")])
def test_unknown_sites_are_refused_and_nothing_is_changed(entry):
    model = decoder()
    with pytest.raises(ValueError, match="is no step and site of this model"):
        remove_layernorm(model, [(1, "final"), entry])
    assert type(model.norm) is nn.LayerNorm and type(model.blocks[0].attention.norm) is nn.LayerNorm
    remove_layernorm(model)
    with pytest.raises(ValueError, match="Pre-LN"):
        remove_layernorm(model)


# --- the auxiliary loss ----------------------------------------------------------------------------------------------


def by_hand(x, weight, special, fault=None):
    sigma = torch.tensor([[sigma_of(row) for row in sequence] for sequence in x.tolist()], dtype=torch.float64)
    if fault == "variance":
        sigma = sigma**2
    if fault == "norm":
        sigma = x.norm(dim=-1)
    ordinary = [
        (b, s)
        for b in range(x.shape[0])
        for s in range(x.shape[1])
        if (s or fault == "first position too") and not (special[b, s] and fault != "special positions too")
    ]
    hat = math.fsum(float(sigma[b, s]) for b, s in ordinary) / len(ordinary)
    every = (
        ordinary
        if fault == "over ordinary positions"
        else [(b, s) for b in range(x.shape[0]) for s in range(x.shape[1])]
    )
    terms = [(float(sigma[b, s]) - hat) ** 2 for b, s in every]
    if fault == "absolute":
        terms = [abs(float(sigma[b, s]) - hat) for b, s in every]
    return weight * math.fsum(terms) / (1 if fault == "sum" else len(terms))


def check_auxiliary(loss):
    special = torch.zeros(3, 4, dtype=torch.bool)
    special[1, 2] = special[2, 0] = True
    for name, x in hard_inputs(3, 4, N).items():
        if name != "far":
            scale = x.abs().max().item() ** 2
            assert_near(
                torch.tensor(loss(x, 0.3, special)),
                torch.tensor(by_hand(x, 0.3, special)),
                name,
                rel=1e-6,
                floor=1e-14 * scale,
            )


def test_auxiliary_loss():
    check_auxiliary(lambda x, weight, special: float(auxiliary_loss(x, weight, special)))
    x = draw(2, 3, N)
    none = torch.zeros(2, 3, dtype=torch.bool)
    assert float(auxiliary_loss(x)) == pytest.approx(by_hand(x, 0.1, none), rel=1e-12)
    torch.autograd.gradcheck(
        lambda x: auxiliary_loss(torch.cat([x, draw(2, 2, N)], 1)), x[:, :1].clone().requires_grad_()
    )


@pytest.mark.parametrize(
    "fault",
    ["variance", "norm", "first position too", "special positions too", "over ordinary positions", "absolute", "sum"],
)
def test_mutant_auxiliary_loss_dies(fault):
    with pytest.raises(AssertionError):
        check_auxiliary(lambda x, weight, special: by_hand(x, weight, special, fault))


@pytest.mark.parametrize("special", [None, torch.ones(2, 3, dtype=torch.bool)])
def test_auxiliary_loss_needs_an_ordinary_position(special):
    with pytest.raises(ValueError, match="at least 2 tokens"):
        auxiliary_loss(draw(2, 1 if special is None else 3, N), 0.1, special)


# --- as a module -----------------------------------------------------------------------------------------------------


def test_decoder_copies_compiles_and_loads():
    model, _ = linearized()
    x = tokens()
    want = model(x).detach()
    other = decoder(seed=9)
    remove_layernorm(other)
    other.load_state_dict(model.state_dict())  # the constants and what is removed travel with the weights
    compiled = copy.deepcopy(model)
    torch.compiler.reset()
    compiled.compile(backend="aot_eager", fullgraph=True)
    for same in (other.eval(), copy.deepcopy(model), compiled):
        assert_near(same(x).detach(), want, rel=1e-10)
    assert_near(fold_layernorm(other)(x).detach(), want, rel=1e-10)
    with torch.autocast("cpu", torch.bfloat16):
        assert_near(model.float()(x).detach().double(), want, rel=0.1)


def test_projection_trains_as_one_layer_does():
    """In training mode every path sees the batch; a deep copy tracks by itself."""
    model = decoder()
    removal = remove_layernorm(model)
    clone = copy.deepcopy(model)
    assert_same_outcome(clone.blocks[0].attention, model.blocks[0].attention, draw(2, T, D), "deepcopy")
    clone(tokens(seed=5))
    assert isinstance(removal, LayerNormRemoval) and removal.sites["final"].std == 0
    assert clone.norm.std > 0


# --- GPT-2 on OpenWebText (profile `paper`) --------------------------------------------------------------------------


def tuning(**changes):
    sizes = {"text": "shakespeare", "model": "tiny", "context": 8, "windows": 2, "batch": 2, "parts": 16, "steps": 300}
    recipe = {"lr": 6e-4, "warmup": 25, "start": 20, "gaps": (2, 2, 3), "auxiliary": 0.1, "dropout": 0.1}
    return openwebtext.FineTuning(**{**sizes, **recipe, **changes})


def gpt2_decoder(depth=L):
    return gpt2.decoder(V, T, D, depth, heads=H, generator=seeded()).double()


def test_gpt2_loses_its_norms_and_is_folded():
    model = gpt2_decoder()
    with torch.no_grad():
        for i, p in enumerate(model.parameters()):
            p.add_(draw(*p.shape, seed=i) / 3)
    want = model(tokens()).detach()
    removal = remove_layernorm(model)
    assert_near(model(tokens()).detach(), want, rel=1e-12)
    for norm in removal.sites.values():
        norm.remove()
    assert_near(fold_layernorm(model)(tokens()).detach(), model.eval()(tokens()).detach(), rel=1e-11)


def test_recipe_counts_in_batches(monkeypatch):
    """Table 3 and config.py: mlp from step 20, qk from 44, v from 68, final at 104; the rate ends at half."""
    seen = {}
    monkeypatch.setattr(openwebtext.tasks, "trained", lambda *args, **options: seen.update(options))
    openwebtext.fine_tuned(gpt2_decoder(12), "one_by_one", 0, tuning(), SimpleNamespace(train=None))
    at = {site: step / 16 for step, site in seen["hook"].schedule}
    assert [at[site] for site in ("mlp.0", "mlp.11", "qk.0", "v.0", "v.11", "final")] == [20, 42, 44, 68, 101, 104]
    assert seen["steps"] == 4800 and seen["checkpoint_every"] % 16 == 0
    rates = [seen["schedule"](step, 4800) for step in (25 * 16 - 1, 4800)]
    assert rates == pytest.approx([1.0, 0.5])
    for arm, count in (("at_once", 37), ("first_block", 3)):
        openwebtext.fine_tuned(gpt2_decoder(12), arm, 0, tuning(), SimpleNamespace(train=None))
        assert len(seen["hook"].schedule) == count
        assert arm == "first_block" or {step for step, _ in seen["hook"].schedule} == {320}
    openwebtext.fine_tuned(gpt2_decoder(12), "vanilla", 0, tuning(), SimpleNamespace(train=None))
    assert seen["hook"] is None
    flat, matrices = openwebtext.decayed(gpt2_decoder())[::-1]
    assert (
        flat["weight_decay"] == 0 and all(p.dim() == 1 for p in flat["params"]) and len(matrices["params"]) == 2 + 4 * L
    )


def test_accumulated_gradients_are_those_of_one_batch():
    """Two parts of a step, its norm bounded; an optimizer passes over parameters between steps."""
    p = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    update, clip = torch.optim.AdamW([p], lr=0.1, weight_decay=0.5), openwebtext.Accumulated(2, 1.0)
    for _ in range(2):
        for gradient, mean in (((6.0, 0.0), None), ((0.0, 8.0), (0.6, 0.8))):  # of mean (3, 4) and norm 5
            p.grad = torch.tensor(gradient, dtype=torch.float64)
            before = p.detach().clone()
            clip([p])
            update.step()
            assert torch.equal(p.detach(), before) == (mean is None)
            assert p.grad is None if mean is None else p.grad.tolist() == pytest.approx(mean, rel=1e-5)


def test_ends_of_texts_are_special_in_the_auxiliary_loss(monkeypatch):
    monkeypatch.setattr(openwebtext.data, "END", 4)
    model, streams = gpt2_decoder(), []
    model.norm.register_forward_pre_hook(lambda norm, args: streams.append(args[0]))
    loss = openwebtext.tracked_loss(model, 0.3)
    for x in (torch.tensor([[4, 1, 4, 2, 3], [1, 2, 3, 0, 4]]), torch.tensor([[1, 2, 3, 5, 6]])):
        logits = model(x).detach()
        aside = float(loss(logits, x).detach() - F.cross_entropy(logits.flatten(0, 1), x.flatten()))
        assert aside == pytest.approx(by_hand(streams[-1].detach(), 0.3, x == 4), rel=1e-9)


def test_untrained_arms_remove_what_they_say():
    batch = tokens()
    for sites, count in (((), 0), (("v.",), L), (("",), 3 * L + 1)):
        model = gpt2_decoder()
        want = model(batch).detach()
        openwebtext.remove(model, sites, batch)
        gone = [m for m in model.modules() if isinstance(m, FakeLayerNorm) and m.removed]
        assert len(gone) == count and all(norm.std > 0 for norm in gone)
        assert torch.allclose(model.eval()(batch), want, rtol=1e-12, atol=0) == (count == 0)
