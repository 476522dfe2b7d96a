"""Arguments that users of torch's namesakes pass are taken, and do what they say."""

import inspect
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import repro.nn as ours
from repro.models.gpt import GPT
from repro.models.mlp import MLP, ResidualMLP
from repro.models.rnn import RecurrentLM
from repro.models.slots import gaussian
from repro.models.transformer import Transformer
from repro.papers.fixup import fixup_resnet
from repro.papers.layernorm import layer_norm
from repro.papers.nf_resnet import nf_resnet
from repro.papers.preact_resnet import PreActBottleneck, preact_resnet
from repro.papers.resnet import resnet20
from repro.papers.rmsnorm import rms_norm
from repro.papers.scalenorm import FixNormEmbedding
from repro.papers.sdd import SDDLinear
from repro.papers.slab import RepBN
from repro.papers.snn import SELU, AlphaDropout, lecun_normal_
from repro.papers.wide_resnet import wide_resnet
from repro.testing import draw

X = draw(6, 4).float()
WITHOUT = ("elementwise_affine", "affine")


def norms() -> list[type[nn.Module]]:
    """Every norm of the suite that is called as torch's: by a width alone."""
    public = [getattr(ours, name) for name in ours.__all__]
    found = [one for one in public if inspect.isclass(one) and issubclass(one, nn.Module)]
    first = {one: next(iter(inspect.signature(one).parameters)) for one in found}
    return [one for one in found if first[one] in ("normalized_shape", "num_features")]


@pytest.mark.parametrize("kind", norms())
def test_norms_take_what_their_signature_says(kind: type[nn.Module]) -> None:
    """eps=None where the type admits it, no parameters without an affine map, device and dtype by place."""
    parameters = inspect.signature(kind).parameters
    wanted = {name: one for name, one in parameters.items() if one.default is inspect.Parameter.empty}
    needed = {name: 8 for name in list(wanted)[1:]}  # such as the steps of a schedule
    if "eps" in parameters and "None" in str(parameters["eps"].annotation):
        assert torch.isfinite(kind(4, eps=None, **needed).train()(X)).all()
    for name in WITHOUT:
        if name in parameters:
            plain = kind(4, **{name: False}, **needed)
            assert len(list(plain.parameters())) < len(list(kind(4, **needed).parameters())), name
            assert plain.train()(X).shape == X.shape
    places = [name for name, one in parameters.items() if one.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    if "dtype" in places:
        before = [needed.get(name, parameters[name].default) for name in places[1 : places.index("device")]]
        made = kind(4, *before, "cpu", torch.float64)
        assert {p.dtype for p in made.parameters()} <= {torch.float64}, "device and dtype by place"


TAKEN: dict[str, Callable[[], Tensor]] = {
    "RepBN without statistics": lambda: RepBN(4, affine=False, track_running_stats=False).eval()(X),
    "SDDLinear with a bias": lambda: SDDLinear(4, 4, True)(X),
    "SELU in place": lambda: SELU(inplace=True)(X.clone()),
    "AlphaDropout in place": lambda: AlphaDropout(0.1, True)(X.clone()),
    "an embedding of NumPy's sizes": lambda: FixNormEmbedding(np.int64(6), np.int64(4), padding_idx=0)(torch.arange(6)),
    "rms_norm of input=": lambda: rms_norm(input=X, normalized_shape=4),
    "layer_norm of input=": lambda: layer_norm(input=X, normalized_shape=4),
}


@pytest.mark.parametrize("what", TAKEN)
def test_arguments_are_taken(what: str) -> None:
    assert torch.isfinite(TAKEN[what]()).all()


def test_in_place_is_in_place() -> None:
    for layer in (SELU(inplace=True), AlphaDropout(0.1, True).train()):
        x = X.clone()
        assert layer(x).data_ptr() == x.data_ptr()


@pytest.mark.parametrize("kind", [nn.ConvTranspose1d, nn.ConvTranspose2d])
def test_transposed_convolutions_are_initialised_by_their_own_fan_in(kind: type[nn.Module]) -> None:
    """Their weight is (inputs, outputs, *): the fan-in is that of the inputs."""
    layer = kind(64, 8, 3)
    lecun_normal_(nn.Sequential(layer), torch.Generator().manual_seed(0))
    assert layer.weight.std().item() == pytest.approx((64 * layer.weight[0, 0].numel()) ** -0.5, rel=0.1)


NETWORKS = {
    "fixup_resnet": lambda source: fixup_resnet(8, generator=source),
    "nf_resnet": lambda source: nf_resnet(8, generator=source),
    "preact_resnet": lambda source: preact_resnet(11, block=PreActBottleneck, generator=source),
    "wide_resnet": lambda source: wide_resnet(10, 1, generator=source),
    "resnet": lambda source: resnet20(generator=source),
    "MLP": lambda source: MLP((4, 8, 3), generator=source),
    "MLP with init": lambda source: MLP((4, 8, 3), init=gaussian(0.1), generator=source),
    "ResidualMLP": lambda source: ResidualMLP(4, 8, 2, 3, generator=source),
    "RecurrentLM": lambda source: RecurrentLM("lstm", 16, 8, generator=source),
    "GPT": lambda source: GPT(16, 8, 8, 2, heads=2, positions="learned", generator=source),
    "Transformer": lambda source: Transformer(16, 8, 8, 8, 2, heads=2, generator=source),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_is_built_without_memory(name: str) -> None:
    with torch.device("meta"):
        model = NETWORKS[name](torch.Generator())
    assert [key for key, value in model.state_dict().items() if not value.is_meta] == []
    here = NETWORKS[name](torch.Generator().manual_seed(0)).state_dict()
    assert {key: value.shape for key, value in model.state_dict().items()} == {k: v.shape for k, v in here.items()}
