"""Every layer that a paper provides holds the contract of `repro.testing.drop_in`, clause by clause."""

import importlib
import inspect

import pytest
import torch

from repro.spec.load import load_yaml, paper_dirs, slugs
from repro.testing import CLAUSES, check_signature, sized

# Clauses that a layer cannot hold, for the reason that its NOTES.md gives.
EXCEPT: dict[str, set[str]] = {}
LAYERS = ("norm", "act", "weight", "placement")
PROVIDED = [
    pytest.param(slug, drop_in["slot"], drop_in["name"], id=f"{slug}.{drop_in['name']}")
    for slug in slugs()
    for drop_in in load_yaml(paper_dirs() / slug / "paper.yaml").get("provides", ())
    if drop_in["slot"] in LAYERS
]


@pytest.mark.parametrize("clause", list(CLAUSES))
@pytest.mark.parametrize("slug, slot, name", PROVIDED)
def test_clause(slug: str, slot: str, name: str, clause: str) -> None:
    build, x = sized(slot, getattr(importlib.import_module(f"repro.papers.{slug}"), name))
    if clause in EXCEPT.get(name, ()):
        pytest.skip(f"papers/{slug}/NOTES.md says why")
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
