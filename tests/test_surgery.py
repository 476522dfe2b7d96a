"""`repro.swap` on models of others, built at random: timm's ViT and ResNet, transformers' Llama, Gemma, GPT-2 and
BERT.
"""

import copy
import importlib.util
import pickle
import subprocess
import sys
import textwrap
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
import torch
from torch import nn

import repro
from repro.errors import ReproError
from repro.papers.batchnorm import BatchNorm
from repro.papers.dyt import DyT
from repro.papers.evonorm import EvoNormS0
from repro.papers.layernorm import LayerNorm
from repro.papers.rmsnorm import RMSNorm
from repro.publish import namespaces
from repro.spec.load import load_yaml, paper_dirs, slugs
from repro.surgery import recognise
from repro.testing import assert_near, quiet_import, scramble

if importlib.util.find_spec("transformers") is None:
    pytest.skip("the extra `test` has transformers, which is not installed here", allow_module_level=True)
transformers = quiet_import("transformers")
TOKENS = torch.arange(12).view(2, 6) % 9


def vit():
    return timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=24, depth=2, num_classes=5)


def resnet():
    return timm.models.resnet.ResNet(
        timm.models.resnet.BasicBlock, [1, 1, 1, 1], channels=(8, 8, 16, 16), num_classes=5
    )


def decoder(kind, **options):
    size = {"vocab_size": 17, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    size |= {"intermediate_size": 24, "max_position_embeddings": 16, "num_key_value_heads": 2, "head_dim": 8}
    config = getattr(transformers, f"{kind}Config")(**size, pad_token_id=0, **options)
    return getattr(transformers, f"{kind}ForCausalLM")(config)


def gpt2():
    config = transformers.GPT2Config(vocab_size=17, n_embd=16, n_layer=2, n_head=2, n_positions=16, resid_pdrop=0.0)
    return transformers.GPT2LMHeadModel(config)


def bert():
    size = {"vocab_size": 17, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    return transformers.BertModel(transformers.BertConfig(**size, intermediate_size=24, max_position_embeddings=16))


def logits(model, x=None):
    if x is None:
        x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) if is_timm(model) else TOKENS
    out = model(x)
    return out if isinstance(out, torch.Tensor) else getattr(out, "logits", out[0])


def is_timm(model):
    return type(model).__module__.startswith("timm")


MODELS = {
    "timm ViT": (vit, nn.LayerNorm, LayerNorm, "DyT", 5),
    "timm ResNet": (resnet, nn.BatchNorm2d, BatchNorm, "EvoNormS0", 13),
    "Llama": (partial(decoder, "Llama"), nn.RMSNorm, partial(nn.RMSNorm, eps=1e-6), "DyT", 5),
    "Gemma-2": (partial(decoder, "Gemma2"), nn.RMSNorm, partial(nn.RMSNorm, eps=1e-6), "RMSNorm", 9),
    "GPT-2": (gpt2, nn.LayerNorm, LayerNorm, "RMSNorm", 5),
    "BERT": (bert, nn.LayerNorm, LayerNorm, "DyT", 5),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_same_norm_gives_the_same_model(name):
    """Every norm is found, and a swap for a norm that computes the same changes nothing."""
    build, what, same, _, count = MODELS[name]
    model = scramble(build()).eval()
    want, names = logits(model).detach(), list(model.state_dict())
    report = repro.swap(model, to=same, what=what, quiet=True)
    assert len(report.replaced) == count and report.model is model
    assert_near(logits(model).detach(), want, name, rel=1e-4)
    if "Gemma" not in name:
        assert list(model.state_dict()) == names


@pytest.mark.parametrize("name", MODELS)
def test_a_swapped_model_trains(name, capsys):
    build, what, _, to, count = MODELS[name]
    torch.manual_seed(0)
    model = build()
    report = repro.swap(model, to=to, what=what)
    assert f"replaced {count} " in capsys.readouterr().out
    assert f"by {to}" in str(report)
    optimizer, losses = torch.optim.AdamW(model.parameters(), lr=3e-3), []
    for _ in range(20):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(
            logits(model).flatten(0, -2), torch.arange(logits(model).flatten(0, -2).shape[0]) % 5
        )
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(p.grad is not None for n, p in model.named_parameters() if "pooler" not in n)
    model.eval()
    want = logits(model).detach()
    other = build()
    repro.swap(other, to=to, what=what, quiet=True)
    other.load_state_dict(model.state_dict())
    assert_near(logits(other.eval()).detach(), want, "state dict", rel=1e-6)
    assert_near(logits(copy.deepcopy(model)).detach(), want, "deepcopy", rel=1e-6)
    assert_near(logits(pickle.loads(pickle.dumps(model))).detach(), want, "pickle", rel=1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.isfinite(logits(model)).all()


@pytest.mark.parametrize("name", ["timm ViT", "timm ResNet", "GPT-2"])
def test_a_swapped_model_compiles(name):
    build, what, _, to, _ = MODELS[name]
    model = build().eval()
    repro.swap(model, to=to, what=what, quiet=True)
    torch.compiler.reset()
    with torch.no_grad():
        want = logits(model)
        compiled = torch.compile(model, backend="aot_eager")
        out = compiled(
            torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) if is_timm(model) else TOKENS
        )
    assert_near(getattr(out, "logits", out), want, rel=1e-5)


def test_what_is_inherited():
    """Gain, bias, dtype, device, mode, requires_grad and hooks; gains kept as 1 + weight are written out."""
    calls = []
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4, eps=1e-3)).to(torch.bfloat16).eval()
    scramble(model)[1].bias.requires_grad_(False)
    handle = model[1].register_forward_hook(lambda *_: calls.append(1))
    gain, bias = model[1].weight.clone(), model[1].bias.clone()
    repro.swap(model, to="DyT", quiet=True)
    new = model[1]
    assert isinstance(new, DyT) and not new.training and new.weight.dtype == torch.bfloat16
    assert torch.equal(new.weight, gain) and torch.equal(new.bias, bias)
    assert new.weight.requires_grad and not new.bias.requires_grad
    model(torch.ones(2, 4, dtype=torch.bfloat16))
    handle.remove()
    model(torch.ones(2, 4, dtype=torch.bfloat16))
    assert calls == [1]
    gemma = scramble(quiet_import("transformers.models.gemma2.modeling_gemma2").Gemma2RMSNorm(8))
    layer = recognise(gemma)
    assert (layer.kind, layer.offset, layer.eps) == ("RMSNorm", 1.0, 1e-6)
    report = repro.swap(gemma, to="RMSNorm", what="norm", quiet=True)
    assert isinstance(report.model, RMSNorm) and torch.equal(report.model.weight, gemma.weight + 1)
    meta = nn.Sequential(nn.LayerNorm(4, bias=False, device="meta"))
    repro.swap(meta, to="DyT", quiet=True)
    assert meta[0].weight.is_meta and meta[0].bias is None


def test_layouts():
    """A norm over features takes the place of one over channels, and the other way round."""
    x = torch.randn(2, 4, 5, 6, generator=torch.Generator().manual_seed(0))
    maps = nn.Sequential(nn.BatchNorm2d(4))
    repro.swap(maps, to="RMSNorm", what="BatchNorm", quiet=True)
    assert_near(maps(x).detach(), RMSNorm(4)(x.movedim(1, -1)).movedim(-1, 1).detach())
    tokens = nn.Sequential(nn.LayerNorm(6))
    repro.swap(tokens, to="BatchNorm", quiet=True)
    assert_near(tokens(x).detach(), BatchNorm(6)(x.flatten(0, -2)).view_as(x).detach(), rel=1e-5)
    layer2d = nn.Sequential(timm.layers.LayerNorm2d(4))
    repro.swap(layer2d, to="DyT", quiet=True)
    assert_near(layer2d(x).detach(), torch.tanh(0.5 * x), rel=1e-6)


def test_what_is_left_and_why(capsys):
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4))

        def forward(self, x, gate=None):
            return nn.functional.rms_norm(x, (4,), self.weight)

    class OddNorm(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4))

        def forward(self, x):
            return x / x.abs().mean() * self.weight

    class GatedNorm(Gated):
        pass

    model = nn.ModuleDict(
        {"a": nn.LayerNorm(4), "b": nn.RMSNorm(4), "c": GatedNorm(), "d": OddNorm(), "e": nn.LayerNorm(4)}
    )
    model["f"] = timm.layers.LayerNormAct(4)
    report = repro.swap(model, to="DyT", where="a|f")
    assert [name for name, *_ in report.replaced] == ["a"]
    reasons = {name: why for name, _, why in report.left}
    assert "RMSNorm, which was not asked for" in reasons["b"] and "more than one input" in reasons["c"]
    assert "neither" in reasons["d"] and "where=" in reasons["e"] and "other layers" in reasons["f"]
    assert "left 1" in capsys.readouterr().out
    with pytest.raises(ValueError, match="has no layer of what="):
        repro.swap(nn.Sequential(nn.Linear(3, 3)), to="DyT")
    with pytest.raises(ValueError, match="did you mean 'RMSNorm'"):
        repro.swap(model, to="RMSNrm")
    with pytest.raises(ValueError, match="did you mean 'LayerNorm'"):
        repro.swap(model, to="DyT", what="LayrNorm")


def test_activations():
    for model, what, count in (
        (vit(), nn.GELU, 2),
        (gpt2(), nn.GELU, 2),
        (decoder("Llama"), nn.SiLU, 2),
        (resnet(), nn.ReLU, 9),
    ):
        report = repro.swap(model, to="SELU", what=what, quiet=True)
        assert len(report.replaced) == count, str(report)
        assert torch.isfinite(logits(model)).all()
    assert isinstance(
        repro.swap(nn.Sequential(nn.ReLU()), to=partial(nn.LeakyReLU, 0.2), what="activation", quiet=True).model[0],
        nn.LeakyReLU,
    )


def test_a_shared_norm_stays_shared_and_evonorm_fits():
    norm = nn.LayerNorm(8)
    model = nn.ModuleDict({"a": norm, "b": norm})
    repro.swap(model, to="RMSNorm", quiet=True)
    assert model["a"] is model["b"]
    maps = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8))
    repro.swap(maps, to=EvoNormS0, what="norm", quiet=True)
    assert maps(torch.randn(2, 3, 8, 8)).shape == (2, 8, 6, 6)


def test_torchs_encoder():
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True), 2)
    repro.swap(encoder, to="RMSNorm", quiet=True)
    x, padding = torch.randn(3, 5, 8), torch.arange(5) >= torch.tensor([[5], [4], [3]])
    want = encoder(x, src_key_padding_mask=padding).detach()
    with torch.no_grad():
        assert_near(encoder.eval()(x, src_key_padding_mask=padding), want, rel=1e-5)


def test_namespaces_are_those_of_the_papers():
    provided = [load_yaml(paper_dirs() / slug / "paper.yaml").get("provides") or [] for slug in slugs()]
    papers = [
        SimpleNamespace(slug=slug, provides=[SimpleNamespace(**one) for one in some])
        for slug, some in zip(slugs(), provided, strict=True)
    ]
    root = Path(repro.__file__).parents[2]
    for path, text in namespaces.build(papers).items():
        assert (root / path).read_text() == text, f"{path}: run `repro index`"
    twice = [SimpleNamespace(slug=slug, provides=[]) for slug in ("dyt", "dyt")]
    assert namespaces.homes(twice)["nn"] == {"DyT": "dyt", "convert_ln_to_dyt": "dyt"}
    wrong = SimpleNamespace(slug="dyt", provides=[SimpleNamespace(slot="norm", name="DyTT")])
    with pytest.raises(ReproError, match="papers/dyt/paper.yaml: provides: DyTT is no public.* did you mean 'DyT'"):
        namespaces.homes([wrong])


def test_a_function_stands_where_its_name_and_signature_say(monkeypatch, tmp_path):
    """One function of each kind of the rule, and those beside it that stay in their paper; a clash is an error."""
    source = """
        __all__ = []
        Norm = None
        def he_gain(a: float = 0.0) -> float: ...
        def fill_(tensor: Tensor, *, generator: Generator | None = None) -> Tensor: ...
        def direction(model: nn.Module, generator: Generator) -> dict: ...
        def my_groups(model: nn.Module) -> list[dict]: ...
        def network(depth: int, generator: Generator) -> nn.Sequential: ...
        def _cifar(depth: int) -> Callable[..., nn.Module]: ...
        net20, net32 = _cifar(20), _cifar(32)
        def used(x: Tensor) -> Tensor: ...
        def used_number(x: Tensor) -> float: ...
        def twice(x: Tensor) -> tuple[Tensor, Tensor]: ...
        def my_norm(x: Tensor) -> Tensor: ...
        def clip_(p: Tensor) -> None: ...
        def probe(x: Tensor) -> Tensor: ...
        class MyNorm(nn.Module):
            def forward(self, x): return used(x), used_number(x), twice(x)
        class Wrapper(torch.optim.Optimizer):
            def step(self): clip_(self), used(self)
    """
    path = tmp_path / "method.py"
    path.write_text(textwrap.dedent(source))
    monkeypatch.setattr(namespaces.provenance, "module_file", lambda module: path if module == "m" else None)
    names = (*"he_gain fill_ direction my_groups network net20 net32".split(), "_cifar", "Norm", "gone")
    kinds = [namespaces.kind_of_function("m", name) for name in names]
    assert kinds == ["init", "init", None, "optim", "nn", "nn", "nn", None, None, None]
    functional = {"used": "nn", "twice": "nn", "my_norm": "nn", "clip_": "optim"}
    assert namespaces._functional(["m"]) == functional
    same = [SimpleNamespace(slug=slug, provides=[]) for slug in ("dyt", "snn")]
    monkeypatch.setattr("repro.publish.index.names_of", lambda slug, file: ["my_norm", "MyNorm"])
    monkeypatch.setattr(namespaces.provenance, "module_file", lambda module: path)
    with pytest.raises(ValueError, match="dyt and snn both have a public my_norm: rename one"):
        namespaces.homes(same)


def test_namespaces_import_little():
    """`import repro` imports no torch, and repro.nn no paper; each name is there."""
    script = "import sys, repro; assert 'torch' not in sys.modules; import repro.nn as n; "
    script += "assert not any(m.startswith('repro.papers.') for m in sys.modules); from repro.nn import DyT; "
    script += "assert 'repro.papers.dyt' in sys.modules and 'repro.papers.snn' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)
    from repro import init, optim
    from repro import nn as layers

    for space in (layers, optim, init):
        assert all(getattr(space, name).__doc__ for name in space.__all__) and dir(space) == space.__all__
    assert {"DyT", "RMSNorm", "SELU", "WSConv2d", "MixLN"} <= set(layers.__all__)
    assert {"rms_norm", "swish", "swiglu", "weight_norm", "resnet20", "wrn_28_10", "res2net50_26w_4s"} <= set(
        layers.__all__
    )
    assert {"AGC", "Adam", "Muon", "muon_groups", "fixup_groups", "adaptive_clip_grad_"} <= set(optim.__all__)
    assert {"he_init_", "he_normal_", "kumar_gain", "lecun_normal_"} <= set(init.__all__)
    assert not {"loss_line", "angular_distance", "expected_calibration_error"} & set(dir(layers))
    with pytest.raises(ValueError, match="to='rms_norm' is no layer of repro.nn"):
        repro.swap(nn.Sequential(nn.LayerNorm(4)), to="rms_norm", quiet=True)
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        layers.Nothing  # noqa: B018
