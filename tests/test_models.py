"""The models: shapes, slots, weights paired over arms, and their equations in plain float64 loops."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from repro.models import slots
from repro.models.convnet import Bottleneck, ConvNet, Slots, cifar_resnet
from repro.models.gpt import GPT, FeedForward, rotary_table, rotate
from repro.models.mlp import MLP, ResidualMLP
from repro.models.rnn import GATES, RNN, RecurrentLM
from repro.models.vit import vit

IMAGE = (2, 3, 16, 16)


def source(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(seed: int = 9) -> torch.Tensor:
    return torch.randn(IMAGE, generator=source(seed))


def tokens(t: int = 8, vocab: int = 17) -> torch.Tensor:
    return torch.randint(vocab, (2, t), generator=source(9))


class Marker(nn.Module):
    """A norm or activation that can be counted."""

    def __init__(self, n: int = 0):
        super().__init__()
        self.n = n

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


class OwnNorm(nn.Module):
    """A norm of a paper: a gain, no bias, nothing drawn."""

    def __init__(self, n: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(n))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shape = (1, -1, 1, 1) if x.dim() == 4 else (-1,)
        return x * self.weight.view(shape)


# name: (model from norm and act and generator, input, widths at which norms stand)
BUILD = {
    "mlp": (lambda norm, act, g: MLP((768, 12, 10, 5), norm=norm, act=act, generator=g), images, [10, 12]),
    "residual mlp": (
        lambda norm, act, g: ResidualMLP(768, 12, 2, 5, norm=norm, act=act, generator=g),
        images,
        [12, 12, 12],
    ),
    "resnet": (
        lambda norm, act, g: cifar_resnet(8, classes=5, width=4, norm=norm, act=act, generator=g),
        images,
        [4, 4, 4, 8, 8, 16, 16],
    ),
    "plain": (
        lambda norm, act, g: cifar_resnet(8, classes=5, width=4, residual=False, norm=norm, act=act, generator=g),
        images,
        [4, 4, 4, 8, 8, 16, 16],
    ),
    "bottleneck": (
        lambda norm, act, g: ConvNet(
            [1, 1], [8, 16], classes=5, block=Bottleneck, stem="imagenet", norm=norm, act=act, generator=g
        ),
        images,
        [2, 2, 4, 4, 8, 8, 16, 16],
    ),
    "vit": (
        lambda norm, act, g: vit(16, 4, 8, 2, heads=2, classes=5, norm=norm, act=act, generator=g),
        images,
        [8] * 5,
    ),
    "gpt": (
        lambda norm, act, g: GPT(17, 8, 12, 2, heads=2, norm=norm, act=act, generator=g),
        tokens,
        [12] * 5,
    ),
}


# --- slots -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BUILD)
def test_slots_are_used_and_nothing_else_normalises(name):
    build, inputs, widths = BUILD[name]
    acts = []

    class Act(Marker):
        def __init__(self):
            super().__init__()
            acts.append(self)

    model = build(Marker, Act, source())
    norms = [m for m in model.modules() if isinstance(m, Marker) and not isinstance(m, Act)]
    assert sorted(m.n for m in norms) == sorted(widths)
    assert acts and all(any(m is a for m in model.modules()) for a in acts)
    kinds = {type(m).__name__ for m in model.modules()}
    assert not [k for k in kinds if "Norm" in k or k in ("ReLU", "GELU", "SiLU", "Tanh")]
    calls = []
    for m in [*norms, *acts]:
        m.register_forward_hook(lambda m, *_: calls.append(m))
    x = inputs()
    out = model(x)
    assert len(calls) == len(norms) + len(acts)
    assert out.shape == ((2, 8, 17) if name == "gpt" else (2, 5)) and out.isfinite().all()


@pytest.mark.parametrize("name", [*BUILD, *GATES])
def test_arms_of_one_seed_start_from_the_same_weights(name):
    def build(norm: slots.Norm, seed: int) -> nn.Module:
        if name in GATES:
            return RecurrentLM(name, 17, 8, layers=2, norm=norm, generator=source(seed))
        return BUILD[name][0](norm, nn.ReLU, source(seed))

    library = nn.BatchNorm2d if name in ("resnet", "plain", "bottleneck") else nn.LayerNorm
    before = torch.get_rng_state()
    arms = [{n: p for n, p in build(norm, 1).named_parameters()} for norm in (Marker, library, OwnNorm)]
    assert torch.equal(torch.get_rng_state(), before), "drew from PyTorch's own generator"
    drawn = [n for n, p in arms[0].items() if p.dim() > 1]
    assert len(drawn) > 2
    for arm in arms[1:]:
        assert [n for n in drawn if n not in arm] == []
        assert all(torch.equal(arm[n], arms[0][n]) for n in drawn)
        assert not any(p.dim() > 1 for n, p in arm.items() if n not in drawn)
    other = dict(build(Marker, 2).named_parameters())
    assert not any(torch.equal(other[n], arms[0][n]) for n in drawn if arms[0][n].any())


def test_biases_start_at_zero_and_go_where_the_norm_has_one():
    for norm, biased in ((nn.LayerNorm, False), (OwnNorm, True), (slots.identity, True)):
        model = MLP((6, 5, 4, 3), norm=norm, generator=source())
        assert [layer.linear.bias is not None for layer in model.hidden] == [biased, biased]
        assert not model.head.bias.any()
        assert not biased or not model.hidden[0].linear.bias.any()
    assert MLP((6, 5, 3), norm=nn.LayerNorm, bias=True, generator=source()).hidden[0].linear.bias is not None
    assert cifar_resnet(8, width=4, norm=OwnNorm, generator=source()).stem.bias is not None
    assert cifar_resnet(8, width=4, generator=source()).stem.bias is None


def test_default_and_other_inits():
    model = MLP((400, 300, 300, 10), generator=source())
    stds = [m.weight.std().item() * math.sqrt(slots.fan_in(m)) for m in model.modules() if isinstance(m, nn.Linear)]
    assert stds == pytest.approx([math.sqrt(2), math.sqrt(2), 1.0], rel=0.05)
    model = MLP((400, 300, 300, 10), init=slots.scaled_gaussian(3.0), generator=source())
    stds = [m.weight.std().item() * math.sqrt(slots.fan_in(m)) for m in model.modules() if isinstance(m, nn.Linear)]
    assert stds == pytest.approx([3.0] * 3, rel=0.05)
    model = MLP((400, 300, 300, 10), init=slots.gaussian(0.1), generator=source())
    assert model.head.weight.std().item() == pytest.approx(0.1, rel=0.05)
    conv = cifar_resnet(8, width=64, generator=source()).blocks[0].conv1
    assert conv.weight.std().item() == pytest.approx(math.sqrt(2 / (64 * 9)), rel=0.02)
    assert slots.fan_out(conv) == slots.fan_in(conv) == 64 * 9
    wide = nn.Conv2d(4, 8, 3)
    assert (slots.fan_in(wide), slots.fan_out(wide)) == (36, 72)
    assert (slots.fan_in(nn.Linear(4, 8)), slots.fan_out(nn.Linear(4, 8))) == (4, 8)


class Shift(nn.Module):
    """A norm of known effect."""

    def __init__(self, n: int):
        super().__init__()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * x


@pytest.mark.parametrize("name, wanted", [("pre", 1 + 20), ("post", 2 * 11), ("none", 11)])
def test_placements(name, wanted):
    class Ten(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 10 * x

    block = slots.placed(name)(Ten(), Shift, 4, 0, 1)
    assert block(torch.ones(4)).tolist() == [wanted] * 4
    with pytest.raises(ValueError, match="pre, post, none"):
        slots.placed("sandwich")


@pytest.mark.parametrize("name", ["gpt", "vit", "residual mlp"])
def test_a_placement_is_told_what_it_wraps(name):
    told = []

    def placement(sublayer: nn.Module, norm: slots.Norm, dim: int, index: int, depth: int) -> nn.Module:
        told.append((type(sublayer).__name__, dim, index, depth))
        return slots.Post(sublayer, norm, dim, index, depth)

    x = images()
    if name == "gpt":
        GPT(17, 8, 12, 3, heads=2, placement=placement, generator=source())(tokens())
        names = ("Attention", "FeedForward")
    elif name == "vit":
        vit(16, 4, 12, 3, heads=2, classes=5, placement=placement, generator=source())(x)
        names = ("Attention", "Mlp")
    else:
        ResidualMLP(768, 12, 3, 5, placement=placement, generator=source())(x)
        names = ("Branch",)
    assert told == [(each, 12, index, 3) for index in range(3) for each in names]


# --- convolution networks and ViT ------------------------------------------------------------------------------------


def test_cifar_resnets_have_the_sizes_of_the_paper():
    def count(model: nn.Module) -> int:
        return sum(p.numel() for p in model.parameters())

    # He et al. 2016, Table 6: 0.27M, 0.46M, 0.66M, 0.85M parameters.
    sizes = [count(cifar_resnet(depth, generator=source())) for depth in (20, 32, 44, 56)]
    assert [round(size / 1e6, 2) for size in sizes] == [0.27, 0.46, 0.66, 0.85]
    layers = [m for m in cifar_resnet(20, generator=source()).modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(layers) == 20
    assert count(cifar_resnet(20, residual=False, generator=source())) == sizes[0]  # option A adds none
    with pytest.raises(ValueError, match="write 20 or 26"):
        cifar_resnet(21, generator=source())


@pytest.mark.parametrize("shortcut", ["pad", "project"])
def test_shortcuts(shortcut):
    model = cifar_resnet(8, width=4, shortcut=shortcut, norm=slots.identity, generator=source())
    first, second = model.blocks[0], model.blocks[1]
    x = images()[:, :1].expand(-1, 4, -1, -1).abs()
    with torch.no_grad():
        for block in (first, second):
            block.conv2.weight.zero_()
    assert torch.equal(first(x), x)
    y = second(x)
    assert y.shape == (2, 8, 8, 8)
    if shortcut == "pad":
        assert torch.equal(y[:, :4], x[:, :, ::2, ::2]) and not y[:, 4:].any()
    else:
        assert torch.allclose(y, F.relu(F.conv2d(x, second.skip[0].weight, second.skip[0].bias, stride=2)))


def test_a_plain_network_has_no_shortcut():
    model = cifar_resnet(8, width=4, residual=False, norm=slots.identity, generator=source())
    with torch.no_grad():
        model.blocks[0].conv2.weight.zero_()
    assert not model.blocks[0](images()[:, :1].expand(-1, 4, -1, -1)).any()


def test_conv_and_block_slots():
    class OwnConv(nn.Conv2d):
        pass

    class OwnBlock(nn.Module):
        def __init__(self, c_in: int, c_out: int, stride: int, parts: Slots, index: int, depth: int):
            super().__init__()
            self.place, self.conv = (index, depth), parts.conv3(c_in, c_out, stride)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(x)

    model = ConvNet([2, 1], [4, 8], classes=5, conv=OwnConv, block=OwnBlock, generator=source())
    assert [block.place for block in model.blocks] == [(0, 3), (1, 3), (2, 3)]
    assert all(type(m) is OwnConv for m in model.modules() if isinstance(m, nn.Conv2d))
    assert model(images()).shape == (2, 5)


def test_vit_placements():
    models = {p: vit(16, 4, 8, 2, heads=2, classes=5, placement=p, generator=source()) for p in ("pre", "post", "none")}
    outs = [model.eval()(images()) for model in models.values()]
    assert all(out.shape == (2, 5) for out in outs) and not torch.allclose(outs[0], outs[1])
    assert sum(isinstance(m, nn.LayerNorm) for m in models["none"].modules()) == 1  # the last
    wrapped = vit(16, 4, 8, 2, heads=2, classes=5, placement=slots.Pre, generator=source()).eval()
    torch.testing.assert_close(wrapped(images()), outs[0])


# --- GPT -------------------------------------------------------------------------------------------------------------

DIALECTS = {
    "rotary": {},
    "llama": {"gated": True, "act": nn.SiLU, "norm": nn.RMSNorm, "tied": True},
    "gpt2": {"positions": "learned", "bias": True, "tied": True},
    "post": {"positions": "none", "placement": "post", "qk_norm": nn.RMSNorm, "after_embedding": nn.LayerNorm},
}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_gpt_reads_the_past_only(dialect):
    model = GPT(17, 8, 12, 2, heads=2, std=0.3, generator=source(), **DIALECTS[dialect]).double()
    x = tokens()
    changed = x.clone()
    changed[:, 5] = (x[:, 5] + 1) % 17
    a, b = model(x), model(changed)
    assert torch.equal(a[:, :5], b[:, :5])
    assert (a[:, 5:] != b[:, 5:]).any(-1).all()
    torch.testing.assert_close(model(x[:, :3]), a[:, :3])
    with pytest.raises(ValueError, match="context=8"):
        model(tokens(9))


def test_gpt_options():
    tied = GPT(17, 8, 12, 1, heads=2, tied=True, generator=source())
    assert tied.head.weight is tied.embedding.weight
    free = GPT(17, 8, 12, 1, heads=2, generator=source())
    assert not torch.equal(free.head.weight, free.embedding.weight)
    norms = {"attention": nn.RMSNorm, "feed_forward": nn.LayerNorm, "final": OwnNorm}
    model = GPT(17, 8, 12, 1, heads=2, norm=norms, generator=source())
    block = model.blocks[0]
    assert [type(n) for n in (block.attention.norm, block.feed_forward.norm, model.norm)] == list(norms.values())
    assert not any(p.dim() == 1 and "norm" not in n for n, p in model.named_parameters())  # no biases
    gated = GPT(17, 8, 24, 1, heads=2, gated=True, generator=source())
    assert gated.blocks[0].feed_forward.sublayer.up.out_features == 64
    model = GPT(17, 8, 12, 1, heads=2, final_norm=False, attend=lambda q, k, v: v, generator=source())
    assert isinstance(model.norm, nn.Identity) and model(tokens()).shape == (2, 8, 17)
    wide = GPT(17, 8, 200, 1, heads=2, embedding_std=0.6, generator=source())
    assert wide.embedding.weight.std().item() == pytest.approx(0.6, rel=0.05)
    for wrong in ({"heads": 5}, {"heads": 4}, {"heads": 2, "positions": "alibi"}):
        with pytest.raises(ValueError, match="write|heads of one even size"):
            GPT(17, 8, 12, 1, generator=source(), **wrong)


def test_rotary_positions_against_the_paper():
    t, k, base = 13, 8, 10_000.0
    x = torch.randn(t, k, generator=source(), dtype=torch.float64)
    cos, sin = rotary_table(t, k)
    turned = rotate(x, cos.double(), sin.double())
    for m in range(t):
        for i in range(k // 2):  # Su et al. 2021, Eq. 15, on the pair (i, i + k/2)
            angle = m * base ** (-2 * i / k)
            a, b = x[m, i].item(), x[m, i + k // 2].item()
            assert turned[m, i].item() == pytest.approx(a * math.cos(angle) - b * math.sin(angle), abs=1e-6)
            assert turned[m, i + k // 2].item() == pytest.approx(a * math.sin(angle) + b * math.cos(angle), abs=1e-6)
    q, key = torch.randn(2, k, generator=source(1), dtype=torch.float64)
    q, key = (rotate(v.expand(t, k), cos.double(), sin.double()) for v in (q, key))
    scores = q @ key.T
    for shift in range(-4, 5):  # a score depends on the distance only
        assert torch.diagonal(scores, shift).std().item() < 1e-5
    with pytest.raises(ValueError, match="even"):
        GPT(17, 8, 6, 1, heads=2, generator=source())


def test_attention_and_feed_forward_against_loops():
    model = GPT(17, 8, 12, 1, heads=2, std=0.3, bias=True, positions="none", generator=source()).double()
    attention = model.blocks[0].attention.sublayer
    x = torch.randn(1, 5, 12, generator=source(), dtype=torch.float64)
    qkv = (x[0] @ attention.qkv.weight.T + attention.qkv.bias).detach()
    q, k, v = (part.view(5, 2, 6) for part in qkv.split(12, -1))
    out = torch.zeros(5, 12, dtype=torch.float64)
    for t in range(5):
        for h in range(2):
            scores = [float(q[t, h] @ k[s, h]) / math.sqrt(6) for s in range(t + 1)]
            total = sum(math.exp(s) for s in scores)
            for s, score in enumerate(scores):
                out[t, 6 * h : 6 * h + 6] += math.exp(score) / total * v[s, h]
    wanted = out @ attention.out.weight.T + attention.out.bias
    torch.testing.assert_close(attention(x)[0], wanted, rtol=1e-10, atol=1e-12)

    gated = FeedForward(4, 6, generator=source(), act=nn.SiLU, gated=True, bias=False, std=1.0).double()
    row = torch.randn(4, generator=source(), dtype=torch.float64)
    g, u = gated.gate.weight @ row, gated.up.weight @ row
    wanted = gated.down.weight @ (g / (1 + torch.exp(-g)) * u)
    torch.testing.assert_close(gated(row), wanted, rtol=1e-10, atol=1e-12)


# --- recurrent networks ----------------------------------------------------------------------------------------------


def rnn(cell: str, norm: slots.Norm = slots.identity, n_in: int = 5, width: int = 6, **options) -> RNN:
    model = RNN(cell, n_in, width, norm=norm, generator=source(), **options).double()
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() == 1:
                p.add_(0.3 * torch.randn(p.shape, generator=source(3), dtype=p.dtype))
    return model


def layer_norm(a: list[float], module: nn.Module) -> list[float]:
    if isinstance(module, nn.Identity):
        return a
    mean = sum(a) / len(a)
    deviation = math.sqrt(sum((v - mean) ** 2 for v in a) / len(a) + module.eps)
    gain, bias = module.weight.tolist(), module.bias.tolist()
    return [g * (v - mean) / deviation + b for v, g, b in zip(a, gain, bias, strict=True)]


def plus(*rows: list[float]) -> list[float]:
    return [sum(values) for values in zip(*rows, strict=True)]


def squash(v: float) -> float:
    return 1 / (1 + math.exp(-v))


def by_hand(model: RNN, x: list[list[float]]) -> list[list[float]]:
    """The equations in the header of rnn.py, one case, in Python floats."""
    width = model.width
    bias = [0.0] * model.input.out_features if model.bias is None else model.bias.tolist()

    def product(matrix: torch.Tensor, row: list[float]) -> list[float]:
        return [sum(w * v for w, v in zip(line, row, strict=True)) for line in matrix.tolist()]

    h, c, outputs = [0.0] * width, [0.0] * width, []
    for row in x:
        wx, uh = product(model.input.weight, row), product(model.hidden.weight, h)
        if model.cell == "tanh":
            a = (
                layer_norm(plus(wx, uh), model.norm_h)
                if model.joint
                else plus(layer_norm(wx, model.norm_x), layer_norm(uh, model.norm_h))
            )
            h = [math.tanh(v) for v in plus(a, bias)]
        elif model.cell == "lstm":
            a = plus(layer_norm(wx, model.norm_x), layer_norm(uh, model.norm_h), bias)
            i, f, o, g = (a[k * width : (k + 1) * width] for k in range(4))
            c = [squash(f[k]) * c[k] + squash(i[k]) * math.tanh(g[k]) for k in range(width)]
            out = layer_norm(c, model.norm_c)
            h = [squash(o[k]) * math.tanh(out[k]) for k in range(width)]
        else:
            n = 2 * width
            a = plus(layer_norm(wx[:n], model.norm_x), layer_norm(uh[:n], model.norm_h), bias[:n])
            xk, hk = plus(layer_norm(wx[n:], model.norm_xk), bias[n:]), layer_norm(uh[n:], model.norm_hk)
            z, r = a[:width], a[width:]
            k = [math.tanh(xk[j] + squash(r[j]) * hk[j]) for j in range(width)]
            h = [(1 - squash(z[j])) * h[j] + squash(z[j]) * k[j] for j in range(width)]
        outputs.append(h)
    return outputs


@pytest.mark.parametrize("norm", [slots.identity, nn.LayerNorm])
@pytest.mark.parametrize("cell, options", [("tanh", {}), ("tanh", {"joint": True}), ("lstm", {}), ("gru", {})])
def test_recurrent_networks_against_the_equations(cell, options, norm):
    model = rnn(cell, norm, **options)
    x = torch.randn(2, 7, 5, generator=source(1), dtype=torch.float64) * 2 + 0.5
    outputs, state = model(x)
    for case in range(2):
        wanted = torch.tensor(by_hand(model, x[case].tolist()), dtype=torch.float64)
        torch.testing.assert_close(outputs[case], wanted, rtol=1e-10, atol=1e-12)
    h = state[0] if cell == "lstm" else state
    assert torch.equal(h, outputs[:, -1])
    first, middle = model(x[:, :3])
    rest, _ = model(x[:, 3:], middle)
    torch.testing.assert_close(torch.cat([first, rest], 1), outputs, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("cell", GATES)
def test_recurrent_networks_without_norm_against_torch(cell):
    """Gates reordered; the GRU of torch keeps the old state where ours takes the new, so its update gate is negated."""
    model = rnn(cell)
    twin = {"tanh": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}[cell](5, 6, batch_first=True).double()

    def reorder(t: torch.Tensor) -> torch.Tensor:
        if cell == "lstm":  # ours i f o g, torch's i f g o
            i, f, o, g = t.chunk(4)
            return torch.cat([i, f, g, o])
        if cell == "gru":  # ours z r k, torch's r (1 - z) k
            z, r, k = t.chunk(3)
            return torch.cat([r, -z, k])
        return t

    with torch.no_grad():
        twin.weight_ih_l0.copy_(reorder(model.input.weight))
        twin.weight_hh_l0.copy_(reorder(model.hidden.weight))
        twin.bias_ih_l0.copy_(reorder(model.bias))
        twin.bias_hh_l0.zero_()  # of a GRU, what ours leaves out
    x = torch.randn(3, 7, 5, generator=source(1), dtype=torch.float64, requires_grad=True)
    ours, theirs = model(x)[0], twin(x)[0]
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    direction = torch.randn(ours.shape, generator=source(2), dtype=torch.float64)
    for parameter, other in ((model.input.weight, twin.weight_ih_l0), (model.hidden.weight, twin.weight_hh_l0)):
        (a,), (b,) = (
            torch.autograd.grad((out * direction).sum(), p, retain_graph=True)
            for out, p in ((ours, parameter), (theirs, other))
        )
        torch.testing.assert_close(reorder(a), b, rtol=1e-9, atol=1e-11)


def test_recurrent_biases_and_mistakes():
    assert rnn("tanh", nn.LayerNorm).bias is None and rnn("gru", nn.LayerNorm).bias is None
    assert rnn("lstm", nn.LayerNorm).bias is not None and rnn("tanh", OwnNorm).bias is not None
    assert sorted(m.n for m in rnn("lstm", Marker).modules() if isinstance(m, Marker)) == [6, 24, 24]
    assert sorted(m.n for m in rnn("gru", Marker).modules() if isinstance(m, Marker)) == [6, 6, 12, 12]
    assert [m.n for m in rnn("tanh", Marker, joint=True).modules() if isinstance(m, Marker)] == [6]
    with pytest.raises(ValueError, match="tanh, lstm, gru"):
        RNN("elman", 3, 4, generator=source())
    with pytest.raises(ValueError, match="Eq. 4"):
        RNN("gru", 3, 4, joint=True, generator=source())


def test_recurrent_language_model():
    model = RecurrentLM("gru", 17, 8, layers=2, norm=nn.LayerNorm, generator=source())
    x = tokens()
    out = model(x)
    changed = x.clone()
    changed[:, 5] = (x[:, 5] + 1) % 17
    assert out.shape == (2, 8, 17) and torch.equal(model(changed)[:, :5], out[:, :5])


# --- compilation -----------------------------------------------------------------------------------------------------


def test_models_trace_without_graph_breaks():
    model = GPT(17, 8, 12, 1, heads=2, gated=True, act=nn.SiLU, norm=nn.RMSNorm, generator=source())
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(tokens()), model(tokens()))
