"""Every layer that a paper provides holds the contract of `repro.testing.drop_in`, clause by clause."""

import importlib
import inspect
from functools import partial

import pytest
import torch

from repro.spec.load import load_yaml, paper_dirs, slugs
from repro.testing import CLAUSES, check_signature, draw, sized

# Clauses that a layer cannot hold, for the reason that its NOTES.md gives.
LAYERS = ("norm", "act", "weight", "placement")
PROVIDED = [
    pytest.param(slug, drop_in["slot"], drop_in["name"], id=f"{slug}.{drop_in['name']}")
    for slug in slugs()
    for drop_in in load_yaml(paper_dirs() / slug / "paper.yaml").get("provides", ())
    if drop_in["slot"] in LAYERS
]

# Layers that papers have beside those that they provide: how each is built and an input, where these are not the usual.
IMAGES = draw(4, 6, 6, 6)
NORMS = {
    "slab.PRepBN": ({"total_steps": 10}, None),
    "weight_standardization.EstBN": ({}, None),
    "region_norm.RegionNormL": ({}, IMAGES),
    "evonorm.EvoNormB0": ({}, None),
    "evonorm.EvoNormS0": ({"num_groups": 2}, None),
    "ln_removal.FakeLayerNorm": ({}, None),
}
ACTIVATIONS = ("relus_revival.LearnableLeakyReLU", "nf_resnet.ScaledActivation", "snn.AlphaDropout")
PLACEMENTS = ("peri_ln.PostLN", "peri_ln.PreLN")
LINEAR = (
    "sdd.SDDLinear",
    "nf_resnet.ScaledWSLinear",
    "pre_rmsnorm.ZeroMeanLinear",
    "glu_variants.FFNGLU",
    "glu_variants.FFNBilinear",
    "glu_variants.FFNReGLU",
    "glu_variants.FFNGEGLU",
    "glu_variants.FFNSwiGLU",
)
OTHERS = {  # what the contract does not reach: models and blocks, an embedding, attention, and what takes a mask
    "dual_patchnorm.DualPatchEmbed",
    "fixup.FixupBasicBlock",
    "fixup.FixupBottleneck",
    "gdn.GDN",  # a norm of which gamma is a matrix
    "gdn.Gaussianization",
    "glu_variants.GEGLU",  # gates that halve an axis
    "glu_variants.ReGLU",
    "glu_variants.SwiGLU",
    "laurel.LaurelPA",
    "laurel.ReadHistory",
    "laurel.StartHistory",
    "mhc_lite.ExpandStreams",
    "mhc_lite.MHC",
    "mhc_lite.MHCLite",
    "mhc_lite.SumStreams",
    "neural_ode.ODEBlock",
    "nf_resnet.NFBlock",
    "nf_resnet.NFResNet",
    "nfnet.NFNetBlock",
    "preact_resnet.PreActBlock",
    "preact_resnet.PreActBottleneck",
    "preact_resnet.PreActResNet",
    "region_norm.RegionNormB",
    "relu_attention.ReLUAttention",
    "res2net.Res2NetBlock",
    "resnet.BasicBlock",
    "resnet.BottleneckBlock",
    "resnet.PlainBlock",
    "scalenorm.FixNormEmbedding",
    "slab.SLA",
    "spectral_norm.SpectralNorm",
    "value_residual.SharedValueQKV",
    "value_residual.ValueResidualQKV",
    "weight_norm.WeightNorm",
    "wide_resnet.WideBlock",
}
# Clauses that such a layer cannot hold, and why.
BESIDE = {  # clauses that a layer cannot hold, with the reason
    "region_norm.RegionNormL": {"encoder", "parameters", "zeros"},  # images alone; its kernels are convolutions
}


def other(path: str):
    """A layer by its paper and name."""
    slug, _, name = path.partition(".")
    return getattr(importlib.import_module(f"repro.papers.{slug}"), name)


def beside(path: str):
    """The slot of a layer, what builds it, and an input."""
    kind = other(path)
    if path in NORMS:
        more, x = NORMS[path]
        build, usual = sized("norm", partial(kind, **more))
        return "norm", build, usual if x is None else x
    if path in ACTIVATIONS or path in PLACEMENTS:
        slot = "act" if path in ACTIVATIONS else "placement"
        return slot, *sized(slot, kind)
    return "weight", lambda size=int, **options: kind(size(6), size(4), **options), draw(4, 6)


WALKED = [
    (path, clause)
    for path in (*NORMS, *ACTIVATIONS, *PLACEMENTS, *LINEAR)
    for clause in CLAUSES
    if clause not in BESIDE.get(path, ())
]


@pytest.mark.parametrize("path, clause", WALKED)
def test_clause_beside_what_is_provided(path: str, clause: str) -> None:
    slot, build, x = beside(path)
    CLAUSES[clause](build, x, slot)


@pytest.mark.parametrize(
    "name, options, shape",
    [
        ("gdn.GDN", None, (4, 6, 3)),
        ("mhc_lite.MHC", {"streams": 3}, (4, 3, 6)),
        ("mhc_lite.MHCLite", {"streams": 3}, (4, 3, 6)),
        ("laurel.LaurelPA", {"k": 3}, (4, 3, 6)),
        ("laurel.StartHistory", None, (4, 6)),
    ],
)
def test_export_of_what_the_contract_does_not_reach(name: str, options: dict | None, shape: tuple) -> None:
    def build() -> torch.nn.Module:
        if options is None:
            return other(name)(6)
        return other(name)(torch.nn.Linear(6, 6), torch.nn.LayerNorm, 6, 0, 2, **options)

    CLAUSES["export"](build, draw(*shape), "")


def test_every_layer_is_walked_or_named() -> None:
    """A layer that a paper exports holds the contract, or stands in the list of those that it does not reach."""
    provided = {f"{case.values[0]}.{case.values[2]}" for case in PROVIDED}
    public = set()
    for slug in slugs():
        module = importlib.import_module(f"repro.papers.{slug}")
        for name in module.__all__:
            if inspect.isclass(getattr(module, name)) and issubclass(getattr(module, name), torch.nn.Module):
                public.add(f"{slug}.{name}")
    assert public - provided == {*NORMS, *ACTIVATIONS, *PLACEMENTS, *LINEAR, *OTHERS}


@pytest.mark.parametrize("clause", list(CLAUSES))
@pytest.mark.parametrize("slug, slot, name", PROVIDED)
def test_clause(slug: str, slot: str, name: str, clause: str) -> None:
    build, x = sized(slot, getattr(importlib.import_module(f"repro.papers.{slug}"), name))
    CLAUSES[clause](build, x, slot)


@pytest.mark.slow
@pytest.mark.parametrize("slug, slot, name", PROVIDED)
def test_inductor_compiles_training(slug: str, slot: str, name: str) -> None:
    build, x = sized(slot, getattr(importlib.import_module(f"repro.papers.{slug}"), name))
    CLAUSES["compilation"](build, x, slot, "inductor")


@pytest.mark.parametrize("slug", slugs())
def test_namesakes_take_the_arguments_of_torch(slug: str) -> None:
    module = importlib.import_module(f"repro.papers.{slug}")
    for name in module.__all__:
        if inspect.isclass(getattr(module, name)) or inspect.isfunction(getattr(module, name)):
            check_signature(getattr(module, name))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module:UserWarning")  # advice about outputs that are views
def test_parameters_are_sharded() -> None:
    """fully_shard itself, in a group of one process, on every provided layer."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        for slug, slot, name in (case.values for case in PROVIDED):
            build, x = sized(slot, getattr(importlib.import_module(f"repro.papers.{slug}"), name))
            module = fully_shard(build(), mesh=mesh).train()
            assert torch.isfinite(module(x.float())).all(), name
    finally:
        dist.destroy_process_group()
