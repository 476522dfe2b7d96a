import copy
import math
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from repro.experiments.cifar import Cifar
from repro.models.convnet import Slots
from repro.papers import wide_resnet as package
from repro.papers.preact_resnet import PreActBlock
from repro.papers.wide_resnet import WideBlock, wide_resnet
from repro.papers.wide_resnet.cifar import cifar, reflected
from repro.testing import assert_near, batch_normalised, draw, mixed, mutation
from repro.train import generator


def source():
    return generator("test wide_resnet")


def slots():
    return Slots(nn.BatchNorm2d, nn.ReLU, nn.Conv2d, "pad", False, source())


# --- the unit, against a float64 oracle -------------------------------------------------------------------------------


def oracle(x, p, stride, train, rate=0.0):
    """The authors' PyTorch block, with the dropout of their Torch code: o1, y, o2, z."""
    o1 = batch_normalised(x, p, "norm1", train).clamp_min(0)
    y = F.conv2d(o1, p["conv1.weight"], stride=stride, padding=1)
    o2 = batch_normalised(y, p, "norm2", train).clamp_min(0)
    if train and rate:
        o2 = o2 * torch.bernoulli(torch.full_like(o2, 1 - rate)) / (1 - rate)
    z = F.conv2d(o2, p["conv2.weight"], padding=1)
    return z + (F.conv2d(o1, p["skip.weight"], stride=stride) if "skip.weight" in p else x)


def check(block):
    for number, (c_in, c_out, stride) in enumerate([(8, 8, 1), (4, 8, 2), (4, 8, 1)]):
        for rate in (0.0, 0.4):
            made, x = (
                mixed(block(c_in, c_out, stride, slots(), 0, 1, dropout=rate).double()),
                draw(4, c_in, 6, 6, seed=number),
            )
            for train in (True, False):
                p = {name: t.detach().clone() for name, t in made.train(train).state_dict().items()}
                with torch.random.fork_rng([]):
                    torch.manual_seed(3)
                    got = made(x).detach()
                    torch.manual_seed(3)
                    assert_near(got, oracle(x, p, stride, train, rate), rel=1e-10)


def broken(fault):
    class Broken(WideBlock):
        def __init__(self, *arguments, dropout=0.0):
            super().__init__(*arguments)
            self.rate = dropout

        def drop(self, x, place):
            here = (
                fault if fault in ("on the input", "before the norm", "on the output", "on the shortcut") else "between"
            )
            if here != place:
                return x
            if fault == "in evaluation too":
                return F.dropout(x, self.rate, True)
            if fault == "whole channels":
                return F.dropout2d(x, self.rate, self.training)
            return F.dropout(
                x, 1 - self.rate if fault == "share that is kept" and self.rate else self.rate, self.training
            )

        def forward(self, x):
            z = self.act1(self.norm1(x))
            y = self.conv1(self.drop(z, "on the input"))
            y = self.conv2(self.drop(self.act2(self.norm2(self.drop(y, "before the norm"))), "between"))
            raw = fault == "projection of the raw input"
            skip = x if self.skip is None else self.skip(x if raw else z)
            return self.drop(self.drop(skip, "on the shortcut") + y, "on the output")

    return Broken


test_oracle, test_mutant_dies = mutation(check, broken, WideBlock)


def test_without_dropout_it_is_the_pre_activation_unit():
    wide, plain = WideBlock(4, 8, 2, slots(), 0, 1).double(), PreActBlock(4, 8, 2, slots(), 0, 1).double()
    assert wide.state_dict().keys() == plain.state_dict().keys()
    plain.load_state_dict(wide.state_dict())
    assert torch.equal(wide(draw(2, 4, 6, 6)), plain(draw(2, 4, 6, 6)))


# --- the networks -----------------------------------------------------------------------------------------------------

COUNTS = {  # Table 4 to the last parameter
    (40, 1): 563930,
    (40, 2): 2243546,
    (40, 4): 8949210,
    (40, 8): 35748314,
    (28, 10): 36479194,
    (28, 12): 52517850,
    (22, 8): 17158106,
    (22, 10): 26797914,
    (16, 8): 10961370,
    (16, 10): 17116634,
}


def size(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("depth, k", COUNTS)
def test_counts(depth, k):
    with torch.device("meta"):
        model = wide_resnet(depth, k, dropout=0.3)
    assert size(model) == COUNTS[depth, k]
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) == depth - (k == 1)  # with three projections, which k = 1 lacks in the first group


@pytest.mark.parametrize("name", ["wrn_16_4", "wrn_16_8", "wrn_28_10", "wrn_40_2", "wrn_40_4"])
def test_names(name):
    depth, k = map(int, name.split("_")[1:])
    with torch.device("meta"):
        ours, again = getattr(package, name)(dropout=0.3), wide_resnet(depth, k, dropout=0.3)
    assert repr(ours) == repr(again) and [p.shape for p in ours.parameters()] == [p.shape for p in again.parameters()]
    assert f"{size(ours) / 1e6:.1f} million" in getattr(package, name).__doc__


def test_parameters_and_operations_grow_with_the_square():
    with torch.device("meta"):
        nets = {k: wide_resnet(16, k) for k in (8, 16)}
        deep = wide_resnet(28, 8)
    assert 3.9 < size(nets[16]) / size(nets[8]) < 4.0
    assert 2.0 < size(deep) / size(nets[8]) < 2.2  # N = 4 against 2
    with FlopCounterMode(display=False) as count:
        wide_resnet(16, 1)(torch.zeros(1, 3, 32, 32))
    thin = count.get_total_flops()
    with FlopCounterMode(display=False) as count:
        wide_resnet(16, 2)(torch.zeros(1, 3, 32, 32))
    assert 3.4 < count.get_total_flops() / thin < 4.0


def test_the_whole_network():
    model = mixed(wide_resnet(10, 2, 5, 1, width=4, generator=source()).double())
    x = draw(2, 1, 8, 8)
    y = F.conv2d(x, model.stem.weight, padding=1)
    for i, block in enumerate(model.blocks):
        y = oracle(y, {name: t.detach() for name, t in block.state_dict().items()}, 2 if i else 1, True)
    last = batch_normalised(y, dict(model.norm.state_dict(prefix="norm.")), "norm", True).clamp_min(0).mean((2, 3))
    assert_near(model(x).detach(), (last @ model.head.weight.T + model.head.bias).detach(), rel=1e-9)


@pytest.mark.parametrize("depth, k", [(15, 1), (4, 1), (16, 0)])
def test_other_sizes(depth, k):
    with pytest.raises(ValueError, match=r"is not WRN-\(6N \+ 4\)-k; write 1[06]"):
        wide_resnet(depth, k)


# --- departures -------------------------------------------------------------------------------------------------------


def test_d1_dropout_of_single_numbers():
    assert not any(isinstance(m, nn.Dropout) for m in wide_resnet(10, 1, width=2).modules())
    found = [m for m in wide_resnet(10, 1, width=2, dropout=0.3).modules() if "Dropout" in type(m).__name__]
    assert [(type(m), m.p) for m in found] == [(nn.Dropout, 0.3)] * 3


def test_d2_initial_values():
    model = wide_resnet(16, 2, generator=source())
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            std = math.sqrt(2 / (module.out_channels * module.kernel_size[0] ** 2))
            assert module.bias is None
            assert abs(module.weight.std().item() / std - 1) < 5 / math.sqrt(2 * module.weight.numel()), name
        if isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all() and not module.bias.any(), name
    assert abs(model.head.weight.std().item() * 128**0.5 - 1) < 0.15 and not model.head.bias.any()


def test_d3_projections():
    for k, where in ((1, [2, 4]), (2, [0, 2, 4])):
        model = wide_resnet(16, k, width=2)
        assert [i for i, block in enumerate(model.blocks) if block.skip is not None] == where
        assert not isinstance(model.norm, nn.Identity) and model.norm.num_features == 8 * k


# --- as a module ------------------------------------------------------------------------------------------------------


def test_as_a_module():
    build = partial(wide_resnet, 10, 2, 10, 1, dropout=0.3, width=4)
    model = mixed(build().double()).eval()
    x = draw(3, 1, 8, 8)
    want, fresh = model(x).detach(), build().double().eval()
    fresh.load_state_dict(model.state_dict())
    for other in (copy.deepcopy(model), fresh):
        assert torch.equal(other(x), want)
    for i in range(3):
        assert_near(model(x[i : i + 1]).detach()[0], want[i], rel=1e-9)
    with torch.autocast("cpu", torch.bfloat16):
        assert copy.deepcopy(model).float()(x.float()).isfinite().all()
    assert torch.equal(build(generator=source()).head.weight, build(generator=source()).head.weight)


# --- the profile paper ------------------------------------------------------------------------------------------------


def test_crops_of_reflections():
    x = draw(32, 2, 8, 8)
    seen = set()
    for one, got in zip(x, reflected(x, source()), strict=True):
        large = [F.pad(each, (4,) * 4, mode="reflect") for each in (one, one.flip(-1))]
        places = [(m, i, j) for m in range(2) for i in range(9) for j in range(9)]
        found = {(m, i, j) for m, i, j in places if torch.equal(large[m][:, i : i + 8, j : j + 8], got)}
        assert found  # two where the place is its own mirror image
        seen |= found
    assert len(seen) > 20 and {m for m, _, _ in seen} == {0, 1}
    assert {i for _, i, _ in seen} == set(range(9)) == {j for _, _, j in seen}


def test_network_and_recipe_of_table_6(monkeypatch):
    config = Cifar(width=16, steps=1, batch=1, lr=0.1)
    monkeypatch.setattr("repro.papers.wide_resnet.cifar.classified", lambda model, *_, **more: (model, more))
    with torch.device("meta"):
        model, more = cifar("wrn_52_1", 0, config, torch.device("meta"))
    assert more == {"optimizer": "nesterov", "augment": reflected}
    assert size(model) == 758_362 and len(model.blocks) == 24  # 8 in each group
