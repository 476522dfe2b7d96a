import copy
import math

import pytest
import torch
from timm.layers import BatchNormAct2d, create_conv2d
from timm.models import resnetv2
from torch import nn
from torch.nn import functional as F

from repro.models.convnet import Basic, Slots
from repro.papers import preact_resnet as package
from repro.papers.preact_resnet import PreActBlock, PreActBottleneck, PreActResNet, preact_resnet
from repro.papers.preact_resnet.cifar import Networks, network
from repro.testing import assert_near, batch_normalised, draw, mutation, scramble
from repro.train import generator

SHAPES = [(8, 8, 1), (4, 8, 2), (4, 8, 1)]  # c_in, c_out, stride


def slots(act=nn.ReLU):
    return Slots(nn.BatchNorm2d, act, nn.Conv2d, "pad", False, generator("test preact_resnet"))


def source():
    return generator("test preact_resnet")


def mixed(module, seed=0):
    """`scramble`, and weights of either sign."""
    for layer in scramble(module, seed).modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.weight.data -= 1.0
    return module


# --- the units, against a float64 oracle ------------------------------------------------------------------------------


def convolve(x, w, stride=1):
    """A convolution as a matrix product of patches, with zeros around the image."""
    k = w.shape[-1]
    patches = F.unfold(x, k, padding=k // 2, stride=stride)  # (B, C k k, places)
    side = (x.shape[-1] - 1) // stride + 1
    return (w.flatten(1) @ patches).view(len(x), len(w), side, side)


def oracle(x, p, stride, train, layers):
    """Figure 1 (b): BN, ReLU, weight, as often as there are layers; the first layer strides."""
    first = y = batch_normalised(x, p, "norm1", train).clamp_min(0)
    for i in range(1, layers + 1):
        y = y if i == 1 else batch_normalised(y, p, f"norm{i}", train).clamp_min(0)
        y = convolve(y, p[f"conv{i}.weight"], stride if i == 1 else 1)
    return y + (convolve(first, p["skip.weight"], stride) if "skip.weight" in p else x)


def check(block, layers=2):
    for number, (c_in, c_out, stride) in enumerate(SHAPES):
        made = mixed(block(c_in, c_out, stride, slots(), 0, 1).double())
        for train in (True, False):
            x = draw(3, c_in, 6, 6, seed=number)
            p = {name: t.detach().clone() for name, t in made.train(train).state_dict().items()}
            assert_near(made(x).detach(), oracle(x, p, stride, train, layers), rel=1e-10)


def broken(fault):
    class Broken(PreActBlock):
        def forward(self, x):
            z = self.norm1(x) if fault == "no first activation" else self.act1(self.norm1(x))
            y = self.conv1(x if fault == "branch reads the raw input" else z)
            if fault == "norm behind the activation":
                y = self.conv2(self.norm2(self.act2(y)))
            else:
                y = self.conv2(self.act2(self.norm2(y)))
            match fault:
                case "shortcut of the raw input":
                    skip = x if self.skip is None else self.skip(x)
                case "shortcut of the activated input":
                    skip = z if self.skip is None else self.skip(z)
                case _:
                    skip = x if self.skip is None else self.skip(z)
            match fault:
                case "activation behind the addition":
                    return F.relu(skip + y)
                case "activation before the addition":
                    return skip + F.relu(y)
                case "shortcut times 0.5":
                    return 0.5 * skip + y
                case "no shortcut":
                    return y
            return skip + y

    return Broken


test_oracle, test_mutant_dies = mutation(check, broken, PreActBlock)


def test_oracle_of_the_bottleneck():
    check(PreActBottleneck, layers=3)


def test_timm():
    """timm's units with the weights of ours; its bottleneck strides on the 3 x 3 layer, so it is met at stride 1."""
    common = {"conv_layer": create_conv2d, "norm_layer": BatchNormAct2d}
    for ours, theirs, shapes in (
        (PreActBlock, resnetv2.PreActBasic, SHAPES),
        (PreActBottleneck, resnetv2.PreActBottleneck, [(32, 32, 1), (16, 32, 1)]),
    ):
        for c_in, c_out, stride in shapes:
            made, peer = (
                mixed(ours(c_in, c_out, stride, slots(), 0, 1).double()),
                theirs(c_in, c_out, stride=stride, **common),
            )
            if made.skip is not None:
                peer.downsample = nn.Conv2d(c_in, c_out, 1, stride, bias=False)
            state = {name.replace("skip", "downsample"): value for name, value in made.state_dict().items()}
            peer.double().load_state_dict(state)
            x = draw(3, c_in, 6, 6)
            for train in (True, False):
                assert_near(made.train(train)(x).detach(), peer.train(train)(x).detach(), rel=1e-10)


@pytest.mark.parametrize("block", [PreActBlock, PreActBottleneck])
def test_gradients(block):
    made = mixed(block(4, 8, 2, slots(nn.Tanh), 0, 1).double())
    assert torch.autograd.gradcheck(made, 0.3 * draw(2, 4, 4, 4).requires_grad_())


# --- what the paper derives -------------------------------------------------------------------------------------------


def test_sum_of_branches():
    units = [mixed(PreActBlock(4, 4, 1, slots(), i, 5).double().eval(), seed=i) for i in range(5)]
    states = [draw(2, 4, 5, 5)]
    for unit in units:
        states.append(unit(states[-1]))
    branches = [unit.branch(unit.act1(unit.norm1(x))) for unit, x in zip(units, states, strict=False)]
    for low in range(5):  # Eq. 4
        assert_near(states[5].detach(), (states[low] + sum(branches[low:])).detach(), rel=1e-10)


def test_gradient_through_the_shortcuts():
    x = draw(1, 4, 3, 3).requires_grad_()
    y = x
    for i in range(30):
        unit = PreActBlock(4, 4, 1, slots(), i, 30).double()
        nn.init.zeros_(unit.conv2.weight)
        y = unit(y)
    assert torch.equal(torch.autograd.grad(y, x, upstream := draw(1, 4, 3, 3, seed=1))[0], upstream)


# --- the networks -----------------------------------------------------------------------------------------------------


def size(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name, depth, count", [("110", 110, 1730522), ("164", 164, 1703258), ("1001", 1001, 10327706)])
def test_counts(name, depth, count):
    with torch.device("meta"):
        model = getattr(package, f"preact_resnet{name}")(generator=source())
    projections = sum(block.skip is not None for block in model.blocks)
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert size(model) == count and len(layers) - projections == depth
    assert projections == (2 if depth == 110 else 3)
    if depth == 1001:
        norms = sum(p.numel() for m in model.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters())
        assert round((count - norms) / 1e6, 1) == 10.2  # Table 3's caption counts no norms


def test_the_whole_network():
    model = mixed(preact_resnet(11, 5, 1, block=PreActBottleneck, width=4, generator=source()).double())
    x = draw(2, 1, 8, 8)
    y = convolve(x, model.stem.weight)
    for i, block in enumerate(model.blocks):
        p = {name: t.detach() for name, t in block.state_dict().items()}
        y = oracle(y, p, 2 if i else 1, True, 3)
    last = batch_normalised(y, dict(model.norm.state_dict(prefix="norm.")), "norm", True).clamp_min(0).mean((2, 3))
    want = last @ model.head.weight.T + model.head.bias
    assert_near(model(x).detach(), want.detach(), rel=1e-9)


@pytest.mark.parametrize("fault", ["no last norm", "no last activation", "norm and activation after the stem"])
def test_network_mutant_dies(fault):
    class Broken(PreActResNet):
        def forward(self, x):
            x = self.stem(x).relu() if fault == "norm and activation after the stem" else self.stem(x)
            for block in self.blocks:
                x = block(x)
            x = x if fault == "no last norm" else self.norm(x)
            return self.head((x if fault == "no last activation" else self.act(x)).mean((2, 3)))

    options = {"stem_width": 4, "channels": 1}
    wrong = mixed(Broken([1], [8], generator=source(), **options).double())
    right = PreActResNet([1], [8], generator=source(), **options).double()
    right.load_state_dict(wrong.state_dict())
    with pytest.raises(AssertionError):
        assert_near(wrong(draw(2, 1, 6, 6)).detach(), right(draw(2, 1, 6, 6)).detach(), rel=1e-3)


def test_other_depths():
    for depth, hint in ((9, "write 8 or 14"), (2, "write 8 or 14"), (21, "write 20 or 26")):
        with pytest.raises(ValueError, match=hint):
            preact_resnet(depth)
    with pytest.raises(ValueError, match="9n . 2; write 11 or 20"):
        preact_resnet(14, block=PreActBottleneck)


# --- departures -------------------------------------------------------------------------------------------------------


def test_d1_projections_where_the_shape_changes():
    model = preact_resnet(14, width=4, generator=source())
    assert [i for i, block in enumerate(model.blocks) if block.skip is not None] == [2, 4]
    deep = preact_resnet(20, width=4, block=PreActBottleneck, generator=source())
    assert [i for i, block in enumerate(deep.blocks) if block.skip is not None] == [0, 2, 4]
    assert [deep.blocks[2].conv1.stride, deep.blocks[2].conv2.stride, deep.blocks[2].skip.stride] == [
        (2, 2),
        (1, 1),
        (2, 2),
    ]


def test_d2_initial_values():
    model = preact_resnet(20, generator=source())
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            std = math.sqrt(2 / (module.out_channels * module.kernel_size[0] ** 2))
            assert module.bias is None
            assert abs(module.weight.std().item() / std - 1) < 5 / math.sqrt(2 * module.weight.numel()), name
        if isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all() and not module.bias.any(), name
    assert abs(model.head.weight.std().item() * 8 - 1) < 0.15 and not model.head.bias.any()


# --- as a module ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block, depth", [(PreActBlock, 8), (PreActBottleneck, 11)])
def test_as_a_module(block, depth):
    build = {"block": block, "width": 4, "generator": None}
    model = mixed(preact_resnet(depth, 10, 1, **build)).double().eval()
    x = draw(3, 1, 8, 8)
    want = model(x).detach()
    fresh = preact_resnet(depth, 10, 1, **build).double().eval()
    fresh.load_state_dict(model.state_dict())
    for other in (copy.deepcopy(model), fresh):
        assert torch.equal(other(x), want)
    for i in range(3):
        assert_near(model(x[i : i + 1]).detach()[0], want[i], rel=1e-9)
    with torch.autocast("cpu", torch.bfloat16):
        assert copy.deepcopy(model).float()(x.float()).isfinite().all()


# --- the networks of the profile paper --------------------------------------------------------------------------------


def test_networks_of_table_1():
    config = Networks(depth=110, width=16, steps=1, batch=1, lr=0.1)
    with torch.device("meta"):
        made = {arm: network(arm, config, source()) for arm in ("identity", "conv", "preact", "identity20")}
    size = {arm: sum(p.numel() for p in model.parameters()) for arm, model in made.items()}
    assert size["identity"] == 1_727_962 and size["identity20"] == 269_722  # as printed, 1.7 and 0.27 million
    assert size["preact"] == size["identity"] + 16 * 32 + 32 * 64  # D1
    extra = [16 * 16] * 18 + [16 * 32] + [32 * 32] * 17 + [32 * 64] + [64 * 64] * 17  # a norm behind each
    assert size["conv"] == size["identity"] + sum(extra) + 2 * 18 * (16 + 32 + 64)
    assert all(block.skip[0].kernel_size == (1, 1) for block in made["conv"].blocks)
    assert {arm: len(model.blocks) for arm, model in made.items()} == dict.fromkeys(made, 54) | {"identity20": 9}
    assert {type(block) for block in made["identity"].blocks} == {Basic}


def test_half_of_shortcut_and_branch():
    config = Networks(depth=8, width=2, steps=1, batch=1, lr=0.1)
    half, whole = (network(arm, config, source()).double().blocks[0] for arm in ("half", "identity"))
    x = draw(2, 2, 6, 6)
    branch = whole.norm2(whole.conv2(whole.act1(whole.norm1(whole.conv1(x)))))
    assert_near(half(x).detach(), (0.5 * branch + 0.5 * x).clamp_min(0).detach(), rel=1e-12)
