import copy
import math
from functools import partial

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from repro.models.convnet import Bottleneck, ConvNet, Slots
from repro.papers import res2net as package
from repro.papers.res2net import Res2NetBlock
from repro.papers.resnet import load_torchvision_, resnet50
from repro.testing import assert_near, batch_normalised, draw, mixed, mutation
from repro.train import generator

SHAPES = [(64, 64, 1), (16, 64, 1), (32, 64, 2)]  # c_in, c_out, stride
NAMES = [name for name in package.__all__ if name.startswith("res2net")]


def source():
    return generator("test res2net")


def slots(act=nn.ReLU):
    return Slots(nn.BatchNorm2d, act, nn.Conv2d, "project", False, source())


# --- the block, against a float64 oracle ------------------------------------------------------------------------------


def mean_of_nine(x, stride):
    """The mean over 3 x 3 places, zeros around the map counted."""
    x = F.pad(x, (1, 1, 1, 1))
    height, width = x.shape[2:]
    parts = [x[:, :, i : height - 2 + i, j : width - 2 + j] for i in range(3) for j in range(3)]
    return (sum(parts) / 9)[:, :, ::stride, ::stride]


def oracle(x, p, stride, scale, train):
    """Eq. 1 with the subsets in the paper's order, x_1 first: the code's last one (D1)."""
    z = batch_normalised(F.conv2d(x, p["conv1.weight"]), p, "norm1", train).clamp_min(0)
    w = z.shape[1] // scale
    subsets = [z[:, i * w : (i + 1) * w] for i in range(scale)]
    subsets = subsets[-1:] + subsets[:-1] if scale > 1 else subsets
    first = stride != 1 or "skip.0.weight" in p
    ys = []
    for i, subset in enumerate(subsets):  # i + 1 as the paper counts; layer i - 1 of the state dict
        if i == 0 and scale > 1:
            ys.append(mean_of_nine(subset, stride) if first else subset)
            continue
        k = max(i - 1, 0)
        given = subset if i < 2 or first else subset + ys[-1]
        y = batch_normalised(F.conv2d(given, p[f"convs.{k}.weight"], stride=stride, padding=1), p, f"norms.{k}", train)
        ys.append(y.clamp_min(0))
    y = torch.cat(ys[1:] + ys[:1] if scale > 1 else ys, 1)
    y = batch_normalised(F.conv2d(y, p["conv3.weight"]), p, "norm3", train)
    if "skip.0.weight" in p:
        x = batch_normalised(F.conv2d(x, p["skip.0.weight"], stride=stride), p, "skip.1", train)
    return (y + x).clamp_min(0)


def check(block):
    for scale in (1, 2, 4):
        for number, (c_in, c_out, stride) in enumerate(SHAPES):
            made = mixed(block(c_in, c_out, stride, slots(), 0, 1, base_width=26, scale=scale).double())
            x = draw(3, c_in, 6, 6, seed=number)
            for train in (True, False):
                p = {name: t.detach().clone() for name, t in made.train(train).state_dict().items()}
                assert_near(made(x).detach(), oracle(x, p, stride, scale, train), rel=1e-10)


def broken(fault):
    class Broken(Res2NetBlock):
        def hierarchy(self, x):
            splits, y, pool = x.split(self.width, 1), [], self.pool
            for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
                given = splits[i]
                if i and (not self.first or fault == "additions in the first block too") and given.shape == y[-1].shape:
                    match fault:
                        case "no additions":
                            pass
                        case "previous subset added":
                            given = given + splits[i - 1]
                        case "all before added":
                            given = given + sum(y)
                        case "previous alone":
                            given = y[-1]
                        case _:
                            given = given + y[-1]
                out = norm(conv(given))
                y.append(out if fault == "no activation inside" else self.act(out))
            match fault:
                case "no pooling" if self.first:
                    pool = nn.MaxPool2d(1, self.pool.stride)
                case "zeros not counted" if self.first:
                    pool = nn.AvgPool2d(3, self.pool.stride, 1, count_include_pad=False)
                case "largest of nine" if self.first:
                    pool = nn.MaxPool2d(3, self.pool.stride, 1)
            rest = [pool(z) for z in splits[len(y) :]]
            return torch.cat([*rest, *y] if fault == "untouched subset first" else [*y, *rest], 1)

        def forward(self, x):
            y = self.norm1(self.conv1(x))
            y = self.norm3(self.conv3(self.hierarchy(y if fault == "no first activation" else self.act(y))))
            return self.act(y) if fault == "no shortcut" else self.act(y + self.skip(x))

    return Broken


test_oracle, test_mutant_dies = mutation(check, broken, Res2NetBlock)


def test_gradients():
    block = mixed(Res2NetBlock(16, 16, 1, slots(nn.Tanh), 0, 1, base_width=32, scale=3).double())
    assert torch.autograd.gradcheck(block, 0.3 * draw(2, 16, 3, 3).requires_grad_(), fast_mode=True)


def test_one_subset_is_a_bottleneck():
    ours, theirs = Res2NetBlock(32, 64, 2, slots(), 0, 1, base_width=64, scale=1), Bottleneck(32, 64, 2, slots(), 0, 1)
    theirs.load_state_dict(dict(zip(theirs.state_dict(), mixed(ours).state_dict().values(), strict=True)))
    x = draw(2, 32, 6, 6, dtype=torch.float32)
    assert_near(ours(x).detach(), theirs(x).detach(), rel=1e-6)


@pytest.mark.parametrize("scale", [2, 4, 8])
def test_parameters_of_the_3x3_layers(scale):
    block = Res2NetBlock(256, 256, 1, slots(), 0, 1, base_width=64 // scale, scale=scale)
    ours = sum(p.numel() for p in block.convs.parameters())
    assert ours * scale**2 == 9 * 64**2 * (scale - 1)


# --- timm -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("base_width, scale", [(26, 4), (48, 2)])
def test_outputs_of_timm(base_width, scale):
    """A network with two blocks in each of four stages, in both modes."""
    res2net = timm.models.res2net
    options = {"base_width": base_width, "block_args": {"scale": scale}, "num_classes": 7}
    theirs = mixed(timm.models.resnet.ResNet(res2net.Bottle2neck, [2, 1, 1, 1], **options).double())
    ours = ConvNet(
        [2, 1, 1, 1],
        [256, 512, 1024, 2048],
        classes=7,
        block=partial(Res2NetBlock, base_width=base_width, scale=scale),
        stem="imagenet",
        stem_width=64,
        generator=source(),
    ).double()
    load_torchvision_(ours, theirs.state_dict())
    x = draw(2, 3, 32, 32)
    for train in (True, False):
        assert_near(ours.train(train)(x).detach(), theirs.train(train)(x).detach(), rel=1e-8)


@pytest.mark.parametrize("name", NAMES)
def test_shapes_of_timm(name):
    with torch.device("meta"):
        ours, theirs = getattr(package, name)(), timm.create_model(name, pretrained=False)
    assert [p.shape for p in ours.parameters()] == [p.shape for p in theirs.parameters()]
    assert getattr(package, name).__name__ == name


def test_preserved_complexity():
    with torch.device("meta"):
        size = {name: sum(p.numel() for p in getattr(package, name)().parameters()) for name in NAMES}
        thick = sum(p.numel() for p in resnet50().parameters())
    assert thick == 25557032
    for name in NAMES:
        assert (abs(size[name] / thick - 1) < 0.02) == (
            name[-6:] in ("48w_2s", "26w_4s", "14w_8s") and "101" not in name
        ), name


# --- departures -------------------------------------------------------------------------------------------------------


def test_d1_the_last_subset_is_untouched():
    block = Res2NetBlock(64, 64, 1, slots(), 0, 1).double()
    x = draw(2, 4 * block.width, 5, 5)
    assert torch.equal(block.hierarchy(x)[:, -block.width :], x[:, -block.width :])


def test_d2_first_block_of_a_stage():
    block = mixed(Res2NetBlock(32, 64, 2, slots(), 0, 1).double())
    x = draw(2, 4 * block.width, 6, 6)
    for i in range(4):  # every subset by itself
        other = x.clone()
        other[:, i * block.width : (i + 1) * block.width] += 1.0
        moved = (block.eval().hierarchy(x) != block.hierarchy(other)).any(0).any(-1).any(-1).view(4, -1).any(1)
        assert moved.tolist() == [j == i for j in range(4)]
    assert_near(block.hierarchy(x)[:, -block.width :].detach(), mean_of_nine(x, 2)[:, -block.width :], rel=1e-12)


def test_d3_initial_values():
    block = Res2NetBlock(256, 256, 1, slots(), 0, 1)
    for module in block.modules():
        if isinstance(module, nn.Conv2d):
            std = math.sqrt(2 / (module.out_channels * module.kernel_size[0] ** 2))
            assert module.bias is None
            assert abs(module.weight.std().item() / std - 1) < 5 / math.sqrt(2 * module.weight.numel())
        if isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all() and not module.bias.any()


def test_d4_one_group():
    assert {m.groups for m in Res2NetBlock(64, 64, 1, slots(), 0, 1).modules() if isinstance(m, nn.Conv2d)} == {1}


# --- as a module ------------------------------------------------------------------------------------------------------


def test_errors():
    for shape in ({"base_width": 1}, {"scale": 0}):
        with pytest.raises(ValueError, match="write larger ones"):
            Res2NetBlock(64, 64, 1, slots(), 0, 1, **shape)


def test_as_a_module():
    build = partial(package.res2net50_26w_4s, 5, 1, width=4)
    model = mixed(build().double()).eval()
    x = draw(2, 1, 32, 32)
    want, fresh = model(x).detach(), build().double().eval()
    fresh.load_state_dict(model.state_dict())
    for other in (copy.deepcopy(model), fresh):
        assert torch.equal(other(x), want)
    for i in range(2):
        assert_near(model(x[i : i + 1]).detach()[0], want[i], rel=1e-9)
    with torch.autocast("cpu", torch.bfloat16):
        assert copy.deepcopy(model).float()(x.float()).isfinite().all()
    assert torch.equal(build(generator=source()).head.weight, build(generator=source()).head.weight)
