import copy
import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn
from torchvision import models as torchvision

from repro.models.convnet import Slots
from repro.papers import resnet
from repro.papers.resnet import BasicBlock, BottleneckBlock, PlainBlock, load_torchvision_
from repro.papers.resnet.method import _imagenet
from repro.testing import assert_near, draw, mutation, scramble
from repro.train import generator

EPS = 1e-5


def slots(shortcut="pad", act=nn.ReLU):
    return Slots(nn.BatchNorm2d, act, nn.Conv2d, shortcut, False, generator("test resnet"))


def net(name, **options):
    return getattr(resnet, name)(generator=generator("test resnet"), **options)


# --- the blocks, against a float64 oracle in NumPy --------------------------------------------------------------------


def convolve(x, w, stride=1):
    """x (B, C, H, W), w (O, C, k, k), zero padding k // 2, one output place at a time."""
    k = w.shape[2]
    p = k // 2
    x = np.pad(x, ((0, 0), (0, 0), (p, p), (p, p)))
    height, width = ((n - k) // stride + 1 for n in x.shape[2:])
    y = np.zeros((len(x), len(w), height, width))
    for i, j in itertools.product(range(height), range(width)):
        patch = x[:, :, stride * i : stride * i + k, stride * j : stride * j + k]
        y[:, :, i, j] = np.tensordot(patch, w, axes=([1, 2, 3], [1, 2, 3]))
    return y


def normalise(x, p, name, train):
    """BatchNorm over batch and places; `p` is the state dict as float64 arrays."""
    mean, var = (
        (x.mean((0, 2, 3)), x.var((0, 2, 3))) if train else (p[f"{name}.running_mean"], p[f"{name}.running_var"])
    )
    gain, bias, mean, var = (t[None, :, None, None] for t in (p[f"{name}.weight"], p[f"{name}.bias"], mean, var))
    return (x - mean) / np.sqrt(var + EPS) * gain + bias


def oracle(kind, x, p, stride, train):
    relu = lambda a: np.maximum(a, 0.0)  # noqa: E731
    strides = {1: stride} if kind is not BottleneckBlock else {2: stride}  # D1
    layers, y = 3 if kind is BottleneckBlock else 2, x
    for i in range(1, layers + 1):
        y = normalise(convolve(y, p[f"conv{i}.weight"], strides.get(i, 1)), p, f"norm{i}", train)
        y = y if i == layers else relu(y)
    if kind is PlainBlock:
        return relu(y)
    if "skip.0.weight" in p:
        x = normalise(convolve(x, p["skip.0.weight"], stride), p, "skip.1", train)
    elif x.shape != y.shape:
        kept = x[:, :, ::stride, ::stride]
        x = np.concatenate([kept, np.zeros_like(y[:, kept.shape[1] :])], 1)
    return relu(x + y)


def check(block, kind=BasicBlock):
    """Output of a block like `kind` in both modes, where the shape stays and where it changes by either option."""
    for number, (c_in, c_out, stride, shortcut) in enumerate(
        [(8, 8, 1, "pad"), (4, 8, 2, "pad"), (4, 8, 2, "project")]
    ):
        made, x = scramble(block(c_in, c_out, stride, slots(shortcut), 0, 1).double()), draw(3, c_in, 6, 6, seed=number)
        for train in (True, False):
            p = {name: t.detach().numpy().copy() for name, t in made.train(train).state_dict().items()}
            assert_near(made(x).detach(), torch.from_numpy(oracle(kind, x.numpy(), p, stride, train)), rel=1e-10)


def broken(fault):
    class Broken(BasicBlock):
        def forward(self, x):
            y = self.conv1(x)
            y = self.norm1(self.act1(y)) if fault == "norm behind the activation" else self.act1(self.norm1(y))
            y, skip = self.conv2(y), self.skip(x)
            if fault == "norm behind the addition":
                return self.act2(self.norm2(y + skip))
            y = self.norm2(y)
            match fault:
                case "activation before the addition":
                    return self.act2(y) + skip
                case "no last activation":
                    return y + skip
                case "no shortcut":
                    return self.act2(y)
                case "shortcut twice":
                    return self.act2(y + 2 * skip)
                case "mean of both":
                    return self.act2((y + skip) / 2)
                case "averaged shortcut":
                    if y.shape != x.shape:
                        skip = torch.cat([nn.functional.avg_pool2d(x, 2), torch.zeros_like(y[:, x.shape[1] :])], 1)
                case "zeros before the channels":
                    skip = skip if y.shape == x.shape else skip.flip(1)
            return self.act2(y + skip)

    return Broken


test_oracle, test_mutant_dies = mutation(check, broken, BasicBlock)


@pytest.mark.parametrize("kind", [PlainBlock, BottleneckBlock])
def test_oracle_of_the_other_blocks(kind):
    check(kind, kind)


def test_a_zero_branch_leaves_the_input():
    block, x = BasicBlock(4, 4, 1, slots(), 0, 1).double(), draw(2, 4, 5, 5)
    nn.init.zeros_(block.conv2.weight)
    assert_near(block(x).detach(), x.relu(), rel=1e-12)


def test_gradients():
    block = scramble(BasicBlock(2, 4, 2, slots(act=nn.Tanh), 0, 1).double())
    assert torch.autograd.gradcheck(block, 0.3 * draw(2, 2, 4, 4).requires_grad_())


# --- the networks -----------------------------------------------------------------------------------------------------

COUNTS = {20: 269722, 32: 464154, 44: 658586, 56: 853018, 110: 1727962, 1202: 19421274}
PRINTED = {20: 0.27, 32: 0.46, 44: 0.66, 56: 0.85, 110: 1.7, 1202: 19.4}  # Table 6


def size(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("depth", COUNTS)
def test_cifar_networks(depth):
    with torch.device("meta"):
        model = net(f"resnet{depth}")
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert size(model) == COUNTS[depth] and abs(size(model) / 1e6 - PRINTED[depth]) < 0.05
    assert len(layers) == depth and all(m.bias is None for m in layers[:-1])
    assert {type(b) for b in model.blocks} == {BasicBlock}
    if depth < 110:
        plain = net(f"plain{depth}")
        assert size(plain) == COUNTS[depth] and {type(b) for b in plain.blocks} == {PlainBlock}
    assert f"{depth} layers" in getattr(resnet, f"resnet{depth}").__doc__


def test_option_b_has_more():
    assert size(net("resnet20", shortcut="project")) == COUNTS[20] + 16 * 32 + 32 * 64 + 2 * (32 + 64)


@pytest.mark.parametrize("block", [BasicBlock, BottleneckBlock])
def test_torchvision(block):
    """Outputs in both modes, of networks with one block in each stage."""
    kind = torchvision.resnet.BasicBlock if block is BasicBlock else torchvision.resnet.Bottleneck
    theirs = scramble(torchvision.ResNet(kind, [1, 1, 1, 1], num_classes=7).double())
    ours = _imagenet(10, [1, 1, 1, 1], block)(7, generator=generator("test resnet")).double()
    load_torchvision_(ours, theirs.state_dict())
    x = draw(2, 3, 32, 32)
    for train in (True, False):
        assert_near(ours.train(train)(x).detach(), theirs.train(train)(x).detach(), rel=1e-9)
    with pytest.raises(ValueError, match="write a ResNet of the same depth"):
        load_torchvision_(ours, dict(list(theirs.state_dict().items())[:-1]))


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"])
def test_shapes_of_torchvision(name):
    with torch.device("meta"):
        ours, theirs = getattr(resnet, name)(), getattr(torchvision, name)()
    assert [p.shape for p in ours.parameters()] == [p.shape for p in theirs.parameters()]


@pytest.mark.parametrize("name, low", [("plain18", "resnet18"), ("plain34", "resnet34")])
def test_plain_imagenet_networks(name, low):
    assert size(net(name, width=8)) == size(net(low, width=8, shortcut="pad"))
    assert net(name, width=4, num_classes=3)(draw(2, 3, 32, 32, dtype=torch.float32)).shape == (2, 3)


# --- departures -------------------------------------------------------------------------------------------------------


def test_d1_the_stride_is_on_the_3x3_layer():
    block = BottleneckBlock(8, 16, 2, slots("project"), 0, 1)
    assert [layer.stride for layer in (block.conv1, block.conv2, block.conv3)] == [(1, 1), (2, 2), (1, 1)]


def test_d2_initial_values():
    model = net("resnet20")
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            std = math.sqrt(2 / (module.out_channels * module.kernel_size[0] ** 2))  # fan_out
            assert abs(module.weight.std().item() / std - 1) < 5 / math.sqrt(2 * module.weight.numel()), name
        if isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all() and not module.bias.any(), name
    assert abs(model.head.weight.std().item() * 8 - 1) < 0.15 and not model.head.bias.any()


def test_d3_options():
    assert isinstance(net("resnet18", width=4).blocks[2].skip[1], nn.BatchNorm2d)
    assert not list(net("resnet18", width=4, shortcut="pad").blocks[2].skip.parameters())
    assert not list(net("resnet20", width=4).blocks[3].skip.parameters())
    with pytest.raises(ValueError, match="write pad or project"):
        net("resnet20", shortcut="identity")


# --- as a module ------------------------------------------------------------------------------------------------------


def test_as_a_module():
    model = scramble(net("resnet20", width=2, in_channels=1)).double().eval()
    x = draw(3, 1, 8, 8)
    want = model(x).detach()
    fresh = net("resnet20", width=2, in_channels=1).double().eval()
    fresh.load_state_dict(model.state_dict())
    for other in (copy.deepcopy(model), fresh):
        assert torch.equal(other(x), want)
    for i in range(3):
        assert_near(model(x[i : i + 1]).detach()[0], want[i], rel=1e-9)
    with torch.autocast("cpu", torch.bfloat16):
        assert copy.deepcopy(model).float()(x.float()).isfinite().all()
    again = net("resnet20", width=2, in_channels=1)
    assert torch.equal(again.head.weight, net("resnet20", width=2, in_channels=1).head.weight)
    assert not torch.equal(again.head.weight, resnet.resnet20(width=2, in_channels=1).head.weight)
