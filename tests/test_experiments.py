"""The experiments that several papers share."""

import copy

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from repro.experiments import decoder
from repro.experiments.pointwise import SHAPES, least_squares
from repro.probes import Probe
from repro.testing import assert_near, draw
from repro.train import cross_entropy

# --- decoder ----------------------------------------------------------------------------------------------------------

SMALL = decoder.AtInitialization(width=16, depth=6, heads=2, context=6, batch=2, vocab=13, std=0.02, embedding_std=0.1)
OWN = [
    "pre",
    "pre_embedding_norm",
    "post",
    "peri",
    "output_norm_only",
    "reversed_mix",
    "lns_up",
    "lns_final_only",
    "scaled_init",
    "scaled_up_init",
]


def small(arm):
    return decoder.build(arm, 0, SMALL, SMALL.vocab, torch.device("cpu"))


def tokens():
    return torch.randint(13, (2, 2, 6), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("arm", OWN)
def test_arms_start_from_the_same_weights(arm):
    one, other = ([p for p in small(name).parameters() if p.dim() == 2] for name in ("pre", arm))
    factor = {"scaled_init": 12**-0.5, "scaled_up_init": 12**0.5}.get(arm, 1.0)
    ratios = [(b.norm() / a.norm()).item() for a, b in zip(one, other, strict=True)]
    changed = [r for r in ratios if abs(r - 1) > 1e-6]
    assert changed == pytest.approx([factor] * (0 if factor == 1 else 12))  # two output projections in each of 6 blocks
    assert one[2].std().item() == pytest.approx(0.02 * (768 / 16) ** 0.5, rel=0.15)
    assert one[0].std().item() == pytest.approx(0.1, rel=0.15)


def test_arms_differ_as_their_names_say():
    x, _ = tokens()
    streams = {arm: decoder.stream(small(arm), x) for arm in OWN}
    pre, post = streams["pre"], streams["post"]
    for a, b in zip(streams["reversed_mix"][:6], pre[:6], strict=True):  # 6 // 4 = 1 Post-LN block, the last
        assert torch.equal(a, b)
    assert not torch.equal(streams["reversed_mix"][6], pre[6])
    assert torch.equal(streams["lns_up"][1], pre[1]) and not torch.equal(streams["lns_up"][2], pre[2])
    assert all(torch.equal(a, b) for a, b in zip(streams["lns_final_only"], pre, strict=True))
    finals = [small(arm).norm(pre[6]) for arm in ("lns_final_only", "pre")]
    assert_near(finals[0].detach() * 6**0.5, finals[1].detach(), rel=1e-6)
    for arm in ("pre_embedding_norm", "peri", "output_norm_only"):
        assert streams[arm][0].square().mean().item() == pytest.approx(1.0, rel=1e-5)
    assert post[6].square().mean().item() == pytest.approx(1.0, rel=1e-5)
    assert F.mse_loss(streams["output_norm_only"][1], streams["peri"][1]) > 1e-3


def test_propagation_agrees_with_a_probe():
    model, (x, y) = small("peri"), tokens()
    found = decoder.propagation(model, x, y)
    assert all(p.grad is None for p in model.parameters())
    with Probe(model, of=lambda name, module: name.count(".") == 1 and name.startswith("blocks")) as probe:
        cross_entropy(model(x), y).backward()
    assert found["mean_square"] == pytest.approx([row["rms"] ** 2 for row in probe.rows()], rel=1e-5)
    weights = [[p.grad.norm() ** 2 for p in block.parameters() if p.dim() == 2] for block in model.blocks]
    assert found["gradient_norm"] == pytest.approx([float(sum(w)) ** 0.5 for w in weights], rel=1e-5)
    a, b = (s.detach().numpy() for s in decoder.stream(model, x)[:2])
    cosine = (a * b).sum(-1) / np.sqrt((a * a).sum(-1) * (b * b).sum(-1))
    assert found["angular_distance"][0] == pytest.approx(np.arccos(cosine).mean() / np.pi, rel=1e-4)
    assert found["late_distance"] == found["angular_distance"][4]  # the last third of 6 blocks without the last


def test_fits_of_known_profiles():
    block = torch.arange(1, 9, dtype=torch.float64)
    assert decoder.line(block, 3 * block + 1) == pytest.approx((3.0, 1.0))
    assert decoder.line(block.log(), 2 * block.log())[1] == pytest.approx(1.0)
    assert decoder.line(block, block.log())[1] == pytest.approx(np.corrcoef(block, block.log())[0, 1] ** 2)
    assert decoder.line(block, torch.ones(8).double()) == (0.0, 0.0)


def test_drop_increase_deletes_the_named_block():
    model, (x, y) = small("pre"), tokens()
    found = decoder.drop_increase(model, x, y)
    whole = cross_entropy(model(x), y).item()
    for i in range(6):
        without = copy.deepcopy(model)
        del without.blocks[i]
        assert found[i] == pytest.approx(cross_entropy(without(x), y).item() - whole, abs=1e-5)


def test_spikes_are_counted_after_the_window():
    assert decoder.spikes([1.0] * 30) == 0
    assert decoder.spikes([1.0] * 25 + [3.1, 1.0, 2.9, 50.0]) == 2
    assert decoder.spikes([9.0] * 10 + [1.0] * 10) == 0


# --- pointwise --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SHAPES)
def test_least_squares_finds_what_made_the_data(name):
    x = 3 * draw(5000)
    k, a = least_squares(SHAPES[name], x, 7 * SHAPES[name](0.2 * x))
    assert k == pytest.approx(0.2, rel=5e-3) and a == pytest.approx(7, rel=5e-3)
    noisy = 7 * SHAPES[name](0.2 * x) + 0.1 * draw(5000, seed=1)
    k, a = least_squares(SHAPES[name], x, noisy)
    best = (noisy - a * SHAPES[name](k * x)).square().mean()
    for factor in (0.9, 0.99, 1.01, 1.1):
        assert (noisy - a * SHAPES[name](factor * k * x)).square().mean() >= best
        assert (noisy - factor * a * SHAPES[name](k * x)).square().mean() >= best
