import copy
import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from repro.models.convnet import Basic, ConvNet, Slots, cifar_resnet
from repro.models.gpt import GPT
from repro.models.mlp import MLP, ResidualMLP
from repro.models.slots import identity
from repro.models.vit import vit
from repro.papers.fixup import FixupBasicBlock, FixupBottleneck, fixup_groups, fixup_init_, fixup_resnet
from repro.papers.fixup.cifar import Deep, cifar
from repro.papers.fixup.method import find_branches
from repro.papers.fixup.networks import Bias
from repro.testing import assert_near, draw, mutation, scramble
from repro.train import fit, generator


def source(seed=0):
    return generator("test fixup", seed)


def slots(act=nn.ReLU, shortcut="pad"):
    return Slots(identity, act, nn.Conv2d, shortcut, False, source())


# --- the block, against a float64 oracle ------------------------------------------------------------------------------


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


def oracle(x, p, stride, bottleneck):
    """Figure 1 (right), layer by layer; `p` is the state dict as float64 arrays."""
    relu = lambda a: np.maximum(a, 0.0)  # noqa: E731
    if bottleneck:
        y = relu(convolve(x + p["bias1a"], p["conv1.weight"]) + p["bias1b"])
        y = relu(convolve(y + p["bias2a"], p["conv2.weight"], stride) + p["bias2b"])
        y = p["scale"] * convolve(y + p["bias3a"], p["conv3.weight"]) + p["bias3b"]
    else:
        y = relu(convolve(x + p["bias1a"], p["conv1.weight"], stride) + p["bias1b"])
        y = p["scale"] * convolve(y + p["bias2a"], p["conv2.weight"]) + p["bias2b"]
    if stride == 1 and x.shape[1] == y.shape[1]:
        return relu(x + y)
    if bottleneck:
        return relu(convolve(x + p["bias1a"], p["skip.0.weight"], stride) + y)
    kept = (x + p["bias1a"])[:, :, ::stride, ::stride]
    return relu(np.concatenate([kept, np.zeros_like(y[:, kept.shape[1] :])], 1) + y)


def check_block(block, bottleneck=False):
    for number, (c_in, c_out, stride) in enumerate([(8, 8, 1), (4, 8, 2)]):
        module = block(c_in, c_out, stride, slots(shortcut="project" if bottleneck else "pad"), 0, 3).double()
        with torch.no_grad():
            for i, parameter in enumerate(module.parameters()):
                parameter.copy_(draw(*parameter.shape, seed=50 * number + i))
        x = draw(2, c_in, 6, 6, seed=99)
        values = {name: parameter.detach().numpy() for name, parameter in module.named_parameters()}
        want = torch.from_numpy(oracle(x.numpy(), values, stride, bottleneck))
        assert_near(module(x).detach(), want, rel=1e-12)


def broken(fault):
    class Broken(FixupBasicBlock):
        def branch(self, x):
            first = x if fault == "no bias before the convolution" else x + self.bias1a
            y = self.conv1(first)
            y = self.act(y) + self.bias1b if fault == "bias after the activation" else self.act(y + self.bias1b)
            y = self.conv2(y + self.bias2a)
            if fault == "no multiplier":
                return y + self.bias2b
            if fault == "bias inside the multiplier":
                return (y + self.bias2b) * self.scale
            if fault == "branch not linear at its end":
                y = self.act(y)
            return y * self.scale + self.bias2b

        def forward(self, x):
            skip = x if isinstance(self.skip, nn.Identity) else self.skip(x + self.bias1a)
            if fault == "shortcut without the bias":
                skip = self.skip(x)
            if fault == "identity shortcut with the bias":
                skip = self.skip(x + self.bias1a)
            if fault == "multiplier on the shortcut":
                skip = skip * self.scale
            if fault == "no activation after the sum":
                return skip + self.branch(x)
            return self.act(skip + self.branch(x))

    return Broken


test_oracle, test_mutant_dies = mutation(check_block, broken, FixupBasicBlock)


def test_oracle_of_the_bottleneck():
    check_block(FixupBottleneck, bottleneck=True)


@pytest.mark.parametrize("block", [FixupBasicBlock, FixupBottleneck])
def test_gradients(block):
    shortcut = "pad" if block is FixupBasicBlock else "project"
    module = scramble(block(4, 8, 2, slots(nn.Tanh, shortcut), 0, 2).double())
    names = [name for name, _ in module.named_parameters()]

    def f(x, *values):
        return torch.func.functional_call(module, dict(zip(names, values, strict=True)), (x,))

    leaves = [0.3 * draw(1, 4, 4, 4), *(0.3 * p.detach() for p in module.parameters())]
    assert torch.autograd.gradcheck(f, [leaf.requires_grad_() for leaf in leaves])


# --- the three rules --------------------------------------------------------------------------------------------------


def check_rules(build, block=FixupBasicBlock):
    """`build(depth)` gives a CIFAR network that starts by Rules 1 to 3, at two depths."""
    m = block.m
    for n in (1, 9):
        net = build(3 * m * n + 2)
        assert len(net.blocks) == 3 * n
        for module in net.blocks:
            *inner, last = (getattr(module, f"conv{i + 1}").weight for i in range(m))
            assert not last.any(), "Rule 1"
            for weight in inner:
                he = math.sqrt(2 / (weight.shape[0] * weight.shape[2] * weight.shape[3]))
                want = he * (3 * n) ** (-1 / (2 * m - 2))
                slack = 5 / math.sqrt(2 * weight.numel())
                assert abs(weight.std().item() / want - 1) < slack, "Rule 2"
            scalars = {name: p for name, p in module.named_parameters(recurse=False)}
            assert set(scalars) == {"scale", *(f"bias{i + 1}{side}" for i in range(m) for side in "ab")}
            assert all(p.shape == (1,) and p.item() == (name == "scale") for name, p in scalars.items()), "Rule 3"
            for name, child in module.named_modules():
                assert getattr(child, "bias", None) is None, f"{name} has a bias of its own"
        stem = net.stem.weight
        assert abs(stem.std().item() / math.sqrt(2 / (9 * len(stem))) - 1) < 5 / math.sqrt(2 * stem.numel()), "stem"
        head = [module for module in net.modules() if isinstance(module, nn.Linear)][-1]
        assert not head.weight.any() and not head.bias.any(), "Rule 1, classifier"
        assert isinstance(net.norm, Bias) and isinstance(net.head[0], Bias), "Rule 3, stem and head"
        assert not any(isinstance(module, nn.modules.batchnorm._NormBase) for module in net.modules())
        if m == 3:
            skip = net.blocks[0].skip[0].weight
            assert abs(skip.std().item() / math.sqrt(2 / skip.shape[0]) - 1) < 5 / math.sqrt(2 * skip.numel()), (
                "projection"
            )


def resnet(depth, block=FixupBasicBlock):
    return fixup_resnet(depth, generator=source(), width=16, channels=3, block=block)


def mutant(fault):
    @torch.no_grad()
    def build(depth):
        net = resnet(depth)
        branches = len(net.blocks)
        for block in net.blocks:
            if fault == "L counts layers":
                block.conv1.weight *= 2**-0.5
            if fault == "exponent of m = 3":
                block.conv1.weight *= branches**0.25
            if fault == "no Rule 2":
                block.conv1.weight *= branches**0.5
            if fault == "fan_in":
                block.conv1.weight *= (block.conv1.weight.shape[0] / block.conv1.weight.shape[1]) ** 0.5
            if fault == "last layer drawn":
                block.conv2.weight.normal_(0.0, 0.01)
            if fault == "first layer zero":
                block.conv2.weight.copy_(draw(*block.conv2.weight.shape) * 0.1)
                block.conv1.weight.zero_()
            if fault == "multiplier from 0":
                block.scale.zero_()
            if fault == "a bias for each channel":
                block.bias1a = nn.Parameter(torch.zeros(block.conv1.weight.shape[1], 1, 1))
            if fault == "convolutions with a bias":
                block.conv1.bias = nn.Parameter(torch.zeros(len(block.conv1.weight)))
        if fault == "stem scaled":
            net.stem.weight *= branches**-0.5
        if fault == "classifier drawn":
            net.head[1].weight.normal_()
        if fault == "no bias before the classifier":
            net.head[0] = nn.Identity()
        return net

    return build


@pytest.mark.parametrize("block", [FixupBasicBlock, FixupBottleneck])
def test_rules(block):
    check_rules(lambda depth: resnet(depth, block), block)


def test_rules_again_after_training():
    def build(depth):
        net = scramble(resnet(depth))
        net.stem.load_state_dict(resnet(depth).stem.state_dict())
        fixup_init_(net, source(1))
        return net

    check_rules(build)


@pytest.mark.parametrize(
    "fault",
    [
        "L counts layers",
        "exponent of m = 3",
        "no Rule 2",
        "fan_in",
        "last layer drawn",
        "first layer zero",
        "multiplier from 0",
        "a bias for each channel",
        "convolutions with a bias",
        "stem scaled",
        "classifier drawn",
        "no bias before the classifier",
    ],
)
def test_init_mutant_dies(fault):
    with pytest.raises(AssertionError):
        check_rules(mutant(fault))


def test_every_branch_starts_at_zero():
    net, x = resnet(20).double(), draw(2, 3, 8, 8)
    assert not net(x).any()  # the loss is log 10, as is the entropy: the bound of Theorem 1 is 0
    state = net.act(net.stem(x))
    assert torch.equal(net.blocks[0](state), state)


def test_the_first_step_moves_the_classifier_alone():
    net = resnet(8)
    nn.functional.cross_entropy(net(draw(4, 3, 8, 8, dtype=torch.float32)), torch.arange(4)).backward()
    moved = {name for name, p in net.named_parameters() if p.grad is not None and p.grad.any()}
    assert moved == {"head.1.weight", "head.1.bias"}


# --- departures -------------------------------------------------------------------------------------------------------


def test_d1_fan_of_the_standard_method():
    net = ResidualMLP(8, 64, 4, 2, hidden=256, generator=source())
    fixup_init_(net, source())
    for block in net.blocks:
        assert abs(block.sublayer.up.weight.std().item() / math.sqrt(2 / 64 / 4) - 1) < 0.05  # fan_in 64, L = 4
    first = resnet(20).blocks[3].conv1.weight  # 16 -> 32 channels, L = 9
    assert abs(first.std().item() / math.sqrt(2 / (32 * 9) / 9) - 1) < 0.05  # fan_out
    before = {name: p.clone() for name, p in net.named_parameters() if name.startswith(("stem", "norm"))}
    fixup_init_(net, source(1))
    assert all(torch.equal(p, dict(net.named_parameters())[name]) for name, p in before.items())


def test_d2_attention_counts_as_four_layers():
    net = GPT(16, 8, 64, 3, heads=2, generator=source())
    fixup_init_(net, source())
    for block in net.blocks:  # L = 6
        qkv, up = block.attention.sublayer.qkv.weight, block.feed_forward.sublayer.up.weight
        assert abs(qkv.std().item() / (64**-0.5 * 6 ** (-1 / 6)) - 1) < 0.05
        assert abs(up.std().item() / ((2 / 64) ** 0.5 * 6**-0.5) - 1) < 0.05
        assert not block.attention.sublayer.out.weight.any() and not block.feed_forward.sublayer.down.weight.any()
    assert not net.head.weight.any() and net.embedding.weight.all()


def test_d3_gate_counts_as_a_layer():
    net = GPT(16, 8, 64, 3, heads=2, gated=True, generator=source())
    fixup_init_(net, source())
    for block in net.blocks:
        for layer in (block.feed_forward.sublayer.up, block.feed_forward.sublayer.gate):
            assert abs(layer.weight.std().item() / ((2 / 64) ** 0.5 * 6**-0.25) - 1) < 0.05


def test_d4_shortcut_reads_the_bias():
    block = FixupBasicBlock(4, 8, 2, slots(), 0, 1).double()
    x = draw(1, 4, 4, 4).abs()
    with torch.no_grad():
        block.bias1a.fill_(0.5)  # the branch is 0
        assert torch.equal(block(x), torch.cat([x[:, :, ::2, ::2] + 0.5, torch.zeros(1, 4, 2, 2)], 1))
        still = FixupBasicBlock(4, 4, 1, slots(), 0, 1).double()
        still.bias1a.fill_(0.5)
        assert torch.equal(still(x), x)
    projected = FixupBottleneck(4, 8, 2, slots(shortcut="project"), 0, 100).skip[0]
    assert projected.bias is None and projected.weight.std() > 0.2  # sqrt(2 / 8), unscaled


def test_d5_slow_groups():
    net = resnet(8)
    groups = fixup_groups(net)
    assert [group.get("lr_scale") for group in groups] == [None, 0.1]
    slow = {name for name, p in net.named_parameters() if any(p is q for q in groups[1]["params"])}
    assert {"norm.bias", "head.0.bias", "head.1.bias", "blocks.0.scale", "blocks.2.bias2b"} <= slow
    assert not any("weight" in name for name in slow) and len(slow) == 3 + 5 * 3
    assert sum(len(group["params"]) for group in groups) == len(list(net.parameters()))
    start = copy.deepcopy(net.state_dict())
    data = draw(8, 3, 8, 8, dtype=torch.float32), torch.arange(8) % 3
    seen = {}
    fit(
        net,
        data,
        steps=1,
        batch=8,
        lr=0.1,
        seed=0,
        optimizer="sgd",
        groups=fixup_groups,
        hook=lambda step, model, loss: seen.update({n: p.grad.clone() for n, p in model.named_parameters()}),
    )
    for name, rate in (("head.1.bias", 0.01), ("head.1.weight", 0.1)):
        torch.testing.assert_close(net.state_dict()[name], start[name] - rate * seen[name])
    assert fixup_groups(nn.Linear(2, 2, bias=False))[1]["params"] == []


# --- fixup_init_ on other models --------------------------------------------------------------------------------------


def torch_encoder():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    return nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)


def torch_decoder():
    return nn.Sequential(nn.TransformerDecoder(nn.TransformerDecoderLayer(8, 2, 16), 2), nn.Linear(8, 4))


MODELS = {
    "mlp": (lambda: ResidualMLP(6, 8, 3, 4, generator=source()), [2] * 3),
    "gpt": (lambda: GPT(16, 8, 8, 2, heads=2, bias=True, generator=source()), [4, 2] * 2),
    "timm vit": (lambda: vit(8, 4, 8, 2, heads=2, classes=4, channels=1, generator=source()), [4, 2] * 2),
    "vit, post": (
        lambda: vit(8, 4, 8, 2, heads=2, classes=4, channels=1, placement="post", generator=source()),
        [4, 2] * 2,
    ),
    "torch encoder": (torch_encoder, [4, 2] * 3),
    "torch decoder": (torch_decoder, [4, 2, 4] * 2),
    "convnet": (
        lambda: ConvNet([2], [8], classes=4, block=FixupBasicBlock, norm=identity, bias=False, generator=source()),
        [2] * 2,
    ),
}


@pytest.mark.parametrize("kind", MODELS)
def test_init_of(kind):
    build, layers = MODELS[kind]
    net = build()
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    fixup_init_(net, source(1))
    found = find_branches(net)
    assert [m for _, m in found] == layers
    inside = {id(weight) for weights, _ in found for weight in weights}
    for weights, _ in found:
        assert not weights[-1].any() and all(weight.any() for weight in weights[:-1])
    heads = [module for module in net.modules() if isinstance(module, nn.Linear) and module.out_features == 4]
    assert not any(p.any() for head in heads for p in head.parameters())
    for name, p in net.named_parameters():
        if "bias" in name.rpartition(".")[2]:
            assert not p.any() or torch.equal(p, before[name])
        elif id(p) not in inside and "head" not in name and name != "1.weight":
            assert torch.equal(p, before[name]), f"{name} is outside the branches"
    again, other = build(), build()
    fixup_init_(again, source(1))
    fixup_init_(other, source(2))
    pairs = zip(net.parameters(), again.parameters(), strict=True)
    assert kind.startswith("torch") or all(torch.equal(p, q) for p, q in pairs)
    assert any(not torch.equal(p, q) for p, q in zip(net.parameters(), other.parameters(), strict=True))


def test_biases_of_branches_are_zero():
    net = torch_encoder()
    fixup_init_(net)
    assert not any(p.any() for name, p in net.named_parameters() if "bias" in name.rpartition(".")[2])
    x = draw(2, 3, 8, dtype=torch.float32)
    want = x
    for layer in net.layers:  # post-norm: what is left is the norms
        want = layer.norm2(layer.norm1(want))
    torch.testing.assert_close(net(x), want)


def test_slot_and_global_generator():
    slotted = ResidualMLP(6, 8, 3, 4, generator=source(), init=fixup_init_)
    assert not slotted(draw(2, 6, dtype=torch.float32)).any()
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        fixup_init_(slotted)
        first = slotted.blocks[0].sublayer.up.weight.clone()
        torch.manual_seed(0)
        fixup_init_(slotted)
    assert torch.equal(first, slotted.blocks[0].sublayer.up.weight)


def test_branches_by_hand():
    net = cifar_resnet(8, generator=source(), norm=identity, width=4)
    fixup_init_(net, source(), branches=[[block.conv1.weight, block.conv2.weight] for block in net.blocks])
    assert (
        not any(block.conv2.weight.any() or block.conv2.bias.any() for block in net.blocks)
        and not net.head.weight.any()
    )
    assert abs(net.blocks[2].conv1.weight.std().item() / math.sqrt(2 / (9 * 16) / 3) - 1) < 0.1


@pytest.mark.parametrize(
    "net", [MLP([4, 4, 2], generator=source()), cifar_resnet(8, generator=source()), nn.Linear(2, 2)]
)
def test_no_branch_is_an_error(net):
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(ValueError, match=r"write branches=\[\["):
        fixup_init_(net)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_other_errors():
    with pytest.raises(ValueError, match="untie"):
        fixup_init_(GPT(16, 8, 8, 1, heads=2, tied=True, generator=source()))
    with pytest.raises(ValueError, match="2 or more layers"):
        fixup_init_(nn.Linear(2, 2), branches=[[torch.zeros(2, 2)]])
    for depth, hint in ((9, "write 8 or 14"), (2, "write 8 or 14"), (21, "write 20 or 26")):
        with pytest.raises(ValueError, match=hint):
            fixup_resnet(depth, generator=source())
    with pytest.raises(ValueError, match="9n . 2; write 11 or 20"):
        fixup_resnet(14, generator=source(), block=FixupBottleneck)


def test_subclass_counts_as_its_base():
    class Mine(FixupBasicBlock):
        pass

    assert [m for _, m in find_branches(resnet(8, Mine))] == [2] * 3
    assert find_branches(Basic(4, 4, 1, slots(), 0, 1)) == []  # ResNet's own block is not listed: norms may follow


# --- as a module ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block, depth", [(FixupBasicBlock, 8), (FixupBottleneck, 11)])
def test_as_a_module(block, depth):
    net = scramble(fixup_resnet(depth, generator=source(), width=4, channels=1, block=block)).double()
    x = draw(3, 1, 8, 8)
    want = net(x).detach()
    assert want.shape == (3, 10)
    clone = copy.deepcopy(net)
    fresh = fixup_resnet(depth, generator=source(1), width=4, channels=1, block=block).double()
    fresh.load_state_dict(net.state_dict())
    compiled = copy.deepcopy(net)
    torch.compiler.reset()
    compiled.compile(backend="aot_eager", fullgraph=True)
    for other in (clone, fresh, compiled, net.eval()):  # eval as in training
        assert_near(other(x).detach(), want, rel=1e-9)
    for i in range(3):  # no case depends on the others
        assert_near(net(x[i : i + 1]).detach()[0], want[i], rel=1e-9)
    with torch.autocast("cpu", torch.bfloat16):
        low = copy.deepcopy(net).float()(x.float())
    assert low.isfinite().all() and net(x[:0]).shape == (0, 10)


def test_a_deep_one_trains():
    y = torch.arange(16) % 2
    x = draw(16, 1, 4, 4, dtype=torch.float32) + (2 * y - 1).view(-1, 1, 1, 1)
    net = fixup_resnet(38, generator=source(), width=4, channels=1, classes=2)
    history = fit(net, (x, y), steps=15, batch=16, lr=0.1, seed=0, optimizer="momentum", groups=fixup_groups)
    assert abs(history.train_loss[0] - math.log(2)) < 1e-6 and history.train_loss[-1] < 0.3


# --- the profile paper ------------------------------------------------------------------------------------------------


def test_networks_of_table_1(monkeypatch):
    def seen(model, name, seed, config, device, groups):
        return model, config.warmup, groups

    monkeypatch.setattr("repro.papers.fixup.cifar.classified", seen)
    config = Deep(depth=110, width=16, steps=1, batch=1, lr=0.1, warmup=400)
    with torch.device("meta"):
        made = {arm: cifar(arm, 0, config, torch.device("cpu")) for arm in ("fixup", "batchnorm", "fixup20")}
    size = {arm: sum(p.numel() for p in model.parameters()) for arm, (model, _, _) in made.items()}
    norms = 2 * (16 + 36 * (16 + 32 + 64))
    assert size["batchnorm"] == 1_727_962 and size["fixup"] == 1_727_962 - norms + 54 * 5 + 2
    assert {arm: len(model.blocks) for arm, (model, _, _) in made.items()} == {
        "fixup": 54,
        "batchnorm": 54,
        "fixup20": 9,
    }
    assert {arm: rest for arm, (_, *rest) in made.items()} == {
        "fixup": [0, fixup_groups],
        "fixup20": [0, fixup_groups],
        "batchnorm": [400, None],
    }


def test_rule_2_alone_is_missing(monkeypatch):
    monkeypatch.setattr("repro.papers.fixup.cifar.classified", lambda model, *_, **options: (model, options))
    config = Deep(depth=20, width=4, steps=1, batch=1, lr=0.1)
    (whole, options), (broken, same) = (cifar(arm, 0, config, torch.device("cpu")) for arm in ("fixup", "no_rule2"))
    assert options == same == {"groups": fixup_groups}
    for (name, p), q in zip(whole.named_parameters(), broken.parameters(), strict=True):
        factor = 3.0 if ".conv1." in name else 1.0  # 9 branches
        torch.testing.assert_close(q, p * factor)
