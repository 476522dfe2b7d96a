"""The contract of everything that drops into a model: what users of such suites do with a layer beside a forward pass.

`check_drop_in` walks all of it for one layer; tests/test_drop_in.py does so for every layer that a paper provides.
"""

import copy
import importlib.util
import inspect
import io
import re
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from repro.testing.norms import assert_near, draw, scramble

Kind = Callable[..., nn.Module]


# --- how a layer is called --------------------------------------------------------------------------------------------


class Sublayer(nn.Module):
    """A feed-forward sub-layer with the arguments of an attention: a placement must hand them on."""

    def __init__(self, dim: int):
        super().__init__()
        self.up, self.out = nn.Linear(dim, 2 * dim), nn.Linear(2 * dim, dim)

    def forward(self, x: Tensor, mask: Tensor | None = None, *, position: int = 0) -> Tensor:
        y = self.out(torch.tanh(self.up(x))) + position
        return y if mask is None else y * mask


def sized(slot: str, kind: Kind) -> tuple[Callable[..., nn.Module], Tensor]:
    """Return what builds a layer of a slot, called as build(size=int, device=, dtype=), and an input that it takes.

    The input of a norm has as many entries along its second axis as along its last: it is right for norms over channels
    and for norms over features.
    """
    if slot == "norm":
        return lambda size=int, **options: kind(size(6), **options), 0.5 + draw(4, 6, 6)
    if slot == "weight":
        return lambda size=int, **options: kind(size(4), size(6), size(3), **options), draw(4, 4, 5, 5)
    if slot == "act":
        return lambda size=int, **options: kind(), draw(4, 6)
    if slot == "placement":
        place = kind if inspect.isclass(kind) and issubclass(kind, nn.Module) else kind()

        def build(size: type = int, device: object = None, dtype: object = None) -> nn.Module:
            with torch.random.fork_rng():
                torch.manual_seed(0)
                made = place(Sublayer(6), nn.LayerNorm, size(6), size(1), size(4))
            return made.to(device=device, dtype=dtype)

        return build, draw(4, 3, 6)
    raise ValueError(f"slot {slot!r} holds no layers")


def run(call: Callable[..., Tensor], module: nn.Module, inputs: list[Tensor], *, together: bool = False) -> dict:
    """Return outputs, gradients and buffers of training passes, each with its backward pass, or with one for all."""
    leaves, outputs = [x.detach().clone().requires_grad_() for x in inputs], []
    module.zero_grad()
    torch.manual_seed(0)
    for i, x in enumerate(leaves):
        y = call(x)
        outputs.append(y)
        if not together:
            y.backward(draw(*y.shape, seed=i).to(y))
    if together:
        torch.autograd.backward(outputs, [draw(*y.shape, seed=i).to(y) for i, y in enumerate(outputs)])
    results = {f"output {i}": y.detach() for i, y in enumerate(outputs)}
    results |= {f"gradient {i}": x.grad for i, x in enumerate(leaves)}
    results |= {f"gradient of {name}": p.grad for name, p in module.named_parameters() if p.grad is not None}
    return {**results, **{name: b.clone() for name, b in module.named_buffers()}}


def assert_alike(got: dict, want: dict, what: str, rel: float = 1e-9) -> None:
    """Check that two runs ended alike."""
    assert got.keys() == want.keys(), f"{what}: {sorted(got.keys() ^ want.keys())}"
    for name in want:
        assert_near(got[name], want[name], f"{what}: {name}", rel=rel)


@contextmanager
def quiet() -> Iterator[None]:
    """Ignore the warnings of torch's tracers and exporters about themselves."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class NoFloat64(TorchDispatchMode):
    """Fails where an operation gives float64: some devices have none."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for t in result if isinstance(result, tuple | list) else [result]:
            assert not (isinstance(t, Tensor) and t.dtype == torch.float64), f"{function} computes in float64"
        return result


# --- the clauses ------------------------------------------------------------------------------------------------------


def clause_construction(build: Kind, x: Tensor, slot: str) -> None:
    """NumPy's integers are sizes; torch.device("meta") builds and shows the layer; to_empty and reset give a fresh
    one.
    """
    import numpy as np

    torch.manual_seed(0)
    fresh = build()
    torch.manual_seed(0)
    other = build(size=np.int64)
    text = re.sub(r"np\.int64\((\d+)\)", r"\1", repr(other))  # torch's own layers keep NumPy's
    assert text == repr(fresh), f"{other!r} of NumPy's integers is not {fresh!r}"
    with torch.device("meta"):
        abstract = build()
    repr(abstract)
    assert all(t.is_meta for t in abstract.state_dict().values()), "a parameter or buffer ignores the meta device"
    kept = {name: id(p) for name, p in other.named_parameters()}
    if hasattr(fresh, "reset_parameters"):
        rebuilt = abstract.to_empty(device="cpu")
        for module in (rebuilt, scramble(other)):
            torch.manual_seed(0)
            module.reset_parameters()
            for name, t in fresh.state_dict().items():
                assert torch.equal(module.state_dict()[name], t), f"reset_parameters leaves {name} changed"
    assert {name: id(p) for name, p in other.named_parameters()} == kept, "reset_parameters replaces a Parameter"
    shown = inspect.signature(type(fresh).__init__).parameters
    for name in ("device", "dtype"):
        assert name not in shown or shown[name].kind is inspect.Parameter.POSITIONAL_OR_KEYWORD, (
            f"{name} by keyword only"
        )
    for base in type(fresh).__mro__[1:]:
        if base.__module__.startswith("torch.nn.modules") and base is not nn.Module and "__init__" in vars(base):
            promised = set(inspect.signature(base.__init__).parameters) - {"args", "kwargs", "_weight", "_freeze"}
            if not base.__name__.startswith("_"):
                assert promised <= set(shown) | {"args"}, (
                    f"arguments of nn.{base.__name__} refused: {promised - set(shown)}"
                )


def clause_parameters(build: Kind, x: Tensor, slot: str) -> None:
    """No parameter is a scalar, which fully_shard refuses; those of a norm have one axis, so that no ndim rule decays
    them.
    """
    for name, p in build().named_parameters():
        assert p.dim() >= 1, f"{name} is a scalar, which torch's fully_shard refuses: give it the shape (1,)"
        assert slot != "norm" or p.dim() == 1, (
            f"{name} has {p.dim()} axes: weight decay by the ndim rule would reach it"
        )


def clause_averages(build: Kind, x: Tensor, slot: str) -> None:
    """AveragedModel averages parameters and buffers, twice."""
    module = build(dtype=torch.float64).train()
    if not module.state_dict():
        return
    average = torch.optim.swa_utils.AveragedModel(module, use_buffers=True)
    for _ in range(2):
        module(x)
        average.update_parameters(module)
    average.module.eval()(x)


def clause_batch_statistics(build: Kind, x: Tensor, slot: str) -> None:
    """Where there are batch statistics as in nn.BatchNorm: update_bn renews them, SyncBatchNorm takes them over."""
    module = scramble(build(dtype=torch.float64))
    layers = [layer for layer in module.modules() if hasattr(layer, "running_mean") and hasattr(layer, "running_var")]
    for layer in layers:
        if getattr(layer, "num_batches_tracked", None) is None or not hasattr(layer, "momentum"):
            continue
        assert isinstance(layer, nn.modules.batchnorm._BatchNorm), f"{type(layer).__name__} is unknown to update_bn"
    if any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in layers):
        torch.optim.swa_utils.update_bn([x, 2 * x], module)
        assert all(layer.num_batches_tracked == 2 for layer in layers), "update_bn leaves batches uncounted"
        if layers == [module]:
            both = 1.5 * x.transpose(0, 1).flatten(1)
            assert_near(layers[0].running_mean, both.mean(1), "the mean after update_bn", rel=1e-9)
        synced = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(module)).eval()
        assert_near(synced(x).detach(), module.eval()(x).detach(), "convert_sync_batchnorm", rel=1e-9)
        state = {name: t for name, t in module.state_dict().items() if "num_batches_tracked" not in name}
        build(dtype=torch.float64).load_state_dict(dict(state))


def clause_recomputation(build: Kind, x: Tensor, slot: str) -> None:
    """Activation checkpointing, which runs forward passes twice, changes neither gradients nor buffers (both
    variants).
    """
    module = scramble(build(dtype=torch.float64)).train()
    inputs = [x, 1.5 * x + 0.1, 0.7 * x.flip(0) - 0.2]  # no two have the same statistics
    for together in (False, True):
        plain = copy.deepcopy(module)
        want = run(plain, plain, inputs, together=together)
        for reentrant in (False, True):
            again = copy.deepcopy(module)
            got = run(partial(checkpoint, again, use_reentrant=reentrant), again, inputs, together=together)
            assert_alike(got, want, f"checkpoint(use_reentrant={reentrant})")


def clause_compilation(build: Kind, x: Tensor, slot: str, backend: str = "aot_eager_decomp_partition") -> None:
    """torch.compile of training steps gives the eager gradients and buffers, also where the batch changes its size.

    The backend partitions as inductor does: what the backward pass computes again, it computes again here too.
    """
    module = scramble(build(dtype=torch.float64)).train()
    plain, compiled = copy.deepcopy(module), copy.deepcopy(module)
    inputs = [x, 1.5 * x + 0.1, torch.cat([x, x[:1] - 1])]
    torch.compiler.reset()
    compiled.compile(backend=backend, fullgraph=True, dynamic=True)
    assert_alike(run(compiled, compiled, inputs), run(plain, plain, inputs), f"torch.compile({backend})", rel=1e-7)


def clause_export(build: Kind, x: Tensor, slot: str) -> None:
    """torch.jit.trace, torch.fx and torch.export with a dynamic batch give the layer of evaluation, for other batches
    too.
    """
    module = scramble(build()).eval()
    x, other = x.float(), torch.cat([x, x[:1] - 1]).float()
    want = module(other).detach()
    exported = torch.export.export(module, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=2, max=64)},))
    with quiet():
        traced = torch.jit.trace(module, x, check_trace=False)
    for name, made in {
        "torch.export": exported.module(),
        "torch.jit.trace": traced,
        "torch.fx": torch.fx.symbolic_trace(nn.Sequential(module)),
    }.items():
        assert_near(made(other).detach(), want, name, rel=1e-6)


def clause_onnx(build: Kind, x: Tensor, slot: str) -> None:
    """Both ONNX exporters write the layer of evaluation.  Checked where the packages onnx and onnxscript are
    installed.
    """
    if any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxscript")):
        return
    module, x = scramble(build()).eval(), x.float()
    with quiet():
        torch.onnx.export(module, (x,), io.BytesIO(), dynamo=False, input_names=["x"], dynamic_axes={"x": {0: "batch"}})
        torch.onnx.export(module, (x,), dynamo=True, dynamic_shapes=({0: "batch"},), verbose=False)


def clause_precision(build: Kind, x: Tensor, slot: str) -> None:
    """A float32 layer needs no float64, which some devices have not, in training, its backward pass and evaluation."""
    module = build().train()
    with NoFloat64():
        y = module(x.float().requires_grad_())
        y.sum().backward()
        module.eval()(x.float())


def clause_shared(build: Kind, x: Tensor, slot: str) -> None:
    """A layer that is used twice before one backward pass has finite gradients."""
    module = scramble(build(dtype=torch.float64)).train()
    for name, t in run(module, module, [x, 2 * x], together=True).items():
        assert torch.isfinite(t.double()).all(), f"two uses, one backward pass: {name}"


def clause_encoder(build: Kind, x: Tensor, slot: str) -> None:
    """Inside nn.TransformerEncoderLayer a norm stays itself at evaluation, where torch would compute a LayerNorm."""
    if slot != "norm":
        return
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(6, 2, 12, dropout=0.0, batch_first=True, dtype=torch.float64)
    layer.norm1, layer.norm2 = (scramble(build(dtype=torch.float64), seed) for seed in range(2))
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    padding = torch.zeros(4, 6, dtype=torch.bool)
    padding[1:, 4:] = True
    for mask in (None, padding):
        want = model(x, src_key_padding_mask=mask).detach()
        with torch.no_grad():
            assert_near(model(x, src_key_padding_mask=mask), want, "in torch's encoder without gradients", rel=1e-9)


def clause_padding(build: Kind, x: Tensor, slot: str) -> None:
    """NaN and infinity at padding reach neither the running statistics nor the other tokens nor a gradient."""
    module = scramble(build(dtype=torch.float64)).train()
    if "pad_mask" not in inspect.signature(module.forward).parameters:
        return
    padding = torch.zeros(x.shape[:-1], dtype=torch.bool)
    padding[1:, 4:] = True
    runs = []
    for fill in (0.0, float("nan"), float("inf")):
        own, leaf = copy.deepcopy(module), x.masked_fill(padding[..., None], fill).requires_grad_()
        y = own(leaf, pad_mask=padding).masked_fill(padding[..., None], 0.0)
        y.backward(draw(*y.shape, seed=1))
        runs.append({"y": y.detach(), "gradient": leaf.grad.masked_fill(padding[..., None], 0.0)})
        runs[-1] |= {f"gradient of {name}": p.grad for name, p in own.named_parameters()} | dict(own.named_buffers())
    for fill, got in zip(("NaN", "infinity"), runs[1:], strict=True):
        assert_alike(got, runs[0], f"{fill} at padding")


def clause_zeros(build: Kind, x: Tensor, slot: str) -> None:
    """At a zero row the second derivatives are finite (where the layer has any), and in float16 the first ones."""
    if slot != "norm":
        return
    for training in (True, False):
        leaf = x.masked_fill(torch.arange(6) == 0, 0.0).index_fill(1, torch.tensor([2]), 0.0).requires_grad_()
        module = build(dtype=torch.float64).train(training)
        (slope,) = torch.autograd.grad((module(leaf) * draw(*x.shape, seed=1)).sum(), leaf, create_graph=True)
        assert torch.isfinite(slope).all(), "the first derivative at a zero row"
        try:
            (second,) = torch.autograd.grad((slope * draw(*x.shape, seed=2)).sum(), leaf, allow_unused=True)
        except RuntimeError as error:  # a backward pass that is no derivative refuses a second one
            assert "once_differentiable" in str(error) or "does not require grad" in str(error), error
        else:
            assert second is None or torch.isfinite(second).all(), "the second derivative at a zero row"
        half = leaf.detach().half().requires_grad_()
        build().train(training)(half).sum().backward()
        assert torch.isfinite(half.grad).all(), "the first derivative at a zero row in float16"


def clause_arguments(build: Kind, x: Tensor, slot: str) -> None:
    """A placement hands masks, positions and caches on to its sub-layer."""
    if slot != "placement":
        return
    module, mask = build(dtype=torch.float64), (draw(*x.shape, seed=3) > 0).double()
    changed = [module(x).detach(), module(x, mask).detach(), module(x, mask=mask, position=1).detach()]
    assert not torch.equal(changed[0], changed[1]) and not torch.equal(changed[1], changed[2]), (
        "arguments are swallowed"
    )
    seen: list[dict] = []
    module.sublayer.register_forward_pre_hook(lambda m, a, k: seen.append({"mask": a[1:], **k}), with_kwargs=True)
    module(x, mask, position=2)
    assert seen == [{"mask": (mask,), "position": 2}], f"the sub-layer got {seen}"


CLAUSES: "OrderedDict[str, Callable[..., None]]" = OrderedDict(
    (name.removeprefix("clause_"), value) for name, value in list(globals().items()) if name.startswith("clause_")
)


def check_drop_in(kind: Kind, slot: str = "norm", x: Tensor | None = None, *, but: tuple[str, ...] = ()) -> None:
    """Check every clause of the contract for a layer of a slot: norm, act, weight or placement.

    kind: the class (or, for a placement, what builds one).  x: another input than the usual one.  but: clauses that
    this layer cannot hold, each of which its NOTES.md explains.
    """
    build, usual = sized(slot, kind)
    unknown = set(but) - set(CLAUSES)
    if unknown:
        raise ValueError(f"there is no clause {sorted(unknown)}: write one of {', '.join(CLAUSES)}")
    for name, clause in CLAUSES.items():
        if name not in but:
            try:
                clause(build, usual if x is None else x, slot)
            except Exception as error:
                error.add_note(f"in the clause '{name}': {clause.__doc__}")
                raise


def check_signature(public: Callable[..., Any]) -> None:
    """Check that a function or class with a namesake in torch takes its arguments, by the same names and places."""
    twin = getattr(F, public.__name__, None) or getattr(nn, public.__name__, None)
    if twin is None:
        return
    try:
        theirs = inspect.signature(twin)
    except ValueError:  # a built-in
        return
    names = [name for name in theirs.parameters if name not in ("args", "kwargs")]
    ours = list(inspect.signature(public).parameters)
    places = [name for name in names if theirs.parameters[name].kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    assert ours[: len(places)] == places, f"{public.__name__}{tuple(ours)}: torch has {tuple(places)}"
