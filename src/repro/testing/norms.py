"""What the tests of several papers share: hostile inputs, a relative comparison, and the contract of a drop-in norm.

A paper's own `test_method.py` keeps what is its own: the float64 oracle, the departures and the mutants.
Only tests import this module, so its digest is in no trial. It needs the extra `test` (hypothesis).
"""

import copy
import importlib
import math
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

MakeModule = Callable[..., nn.Module]


def quiet_import(name: str) -> ModuleType:
    """Import an independent library, whose own import-time warnings are none of our business."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(name)


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Standard normal numbers from a generator of their own."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def hard_inputs(*shape: int, seed: int = 0) -> dict[str, Tensor]:
    """float64 inputs that tell a right norm from a wrong one; zero-mean unit noise alone hides most mistakes."""
    x = draw(*shape, seed=seed)
    spiked = x.clone()
    spiked.view(-1)[0] = 1e4
    return {
        "plain": x,
        "shifted": 3 + x,
        "far": 1e6 + x,  # E[x^2] - E[x]^2 fails here
        "small": 1e-3 * x,  # the variance is of the size of eps = 1e-5: its place shows
        "minute": 1e-7 * (1 + x),  # the same for eps = 1e-8
        "tiny": 1e-18 * x,
        "huge": 1e18 * x,
        "spiked": spiked,
        "zero": torch.zeros_like(x),
        "constant": torch.full_like(x, 3.7),
    }


def assert_near(got: Tensor, want: Tensor, what: str = "", *, rel: float = 1e-7, floor: float = 1e-25) -> None:
    """max |got - want| <= rel * max |want| + floor; NaN fails. Scale-free, so that tiny results are tested too."""
    assert got.shape == want.shape, f"{what}: shape {tuple(got.shape)}, want {tuple(want.shape)}"
    if want.numel():
        error, size = (got.double() - want.double()).abs().max().item(), want.double().abs().max().item()
        assert error <= rel * size + floor, f"{what}: off by {error:.3g}, largest wanted value {size:.3g}"


def norm_inputs(min_axes: int = 1) -> Any:
    """Hypothesis strategy: float tensors of any shape (empty too), dtype, memory layout, shift and scale."""
    from hypothesis import strategies as st

    @st.composite
    def build(pick: Callable[[Any], Any]) -> Tensor:
        shape = pick(st.lists(st.integers(0, 5), min_size=min_axes, max_size=4))
        dtype = pick(st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]))
        layout = pick(st.sampled_from(["contiguous", "transposed", "strided", "expanded"]))
        scales = [1e-18, 1e-3, 1.0, 1e3] + ([] if dtype is torch.float16 else [1e15])
        scale, shift = pick(st.sampled_from(scales)), pick(st.sampled_from([0.0, 1.0, 30.0]))
        wide = [*shape[:-1], 2 * shape[-1]] if layout == "strided" else shape
        x = (scale * (shift + draw(*wide, seed=pick(st.integers(0, 99))))).to(dtype)
        if layout == "transposed":
            return x.transpose(0, -1).contiguous().transpose(0, -1)
        if layout == "strided":
            return x[..., ::2]
        return x[:1].expand(shape) if layout == "expanded" and shape[0] else x

    return build()


def scramble(module: nn.Module, seed: int = 0) -> nn.Module:
    """Give parameters and floating buffers values in [0.5, 1.5], so that no gain is 1 and no bias 0; in place."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for t in (*module.parameters(), *module.buffers()):
            if t.is_floating_point():
                t.copy_(torch.rand(t.shape, generator=generator) + 0.5)
    return module


def mixed(module: nn.Module, seed: int = 0) -> nn.Module:
    """`scramble`, and weights of either sign in linear layers and convolutions; in place."""
    for layer in scramble(module, seed).modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.weight.data -= 1.0
    return module


def batch_normalised(x: Tensor, p: dict[str, Tensor], name: str, train: bool, eps: float = 1e-5) -> Tensor:
    """What BatchNorm makes of x (B, C, H, W), written out; `p` is a state dict that holds the layer `name`."""
    mean, var = p[f"{name}.running_mean"], p[f"{name}.running_var"]
    if train:
        mean = x.mean((0, 2, 3))
        var = ((x - mean[:, None, None]) ** 2).mean((0, 2, 3))
    gain = p[f"{name}.weight"] / (var + eps).sqrt()
    return (x - mean[:, None, None]) * gain[:, None, None] + p[f"{name}.bias"][:, None, None]


def check_extremes(ours: nn.Module, theirs: nn.Module, dtype: torch.dtype) -> None:
    """Values and gradients of an activation are those of its twin, and finite, on [-1e4, 1e4]."""
    x = torch.cat([torch.linspace(-1e4, 1e4, 4001), torch.linspace(-120, 120, 4801), torch.tensor([1e-30, -1e-30])])
    found = []
    for act in (ours, theirs):
        leaf = x.to(dtype).requires_grad_()
        y = act(leaf)
        found.append((y.detach(), torch.autograd.grad(y, leaf, torch.ones_like(y))[0]))
    for got, want in zip(*found, strict=True):
        assert got.isfinite().all() and got.dtype == dtype
        rounding = 4 * torch.finfo(dtype).eps
        torch.testing.assert_close(got, want, rtol=rounding, atol=rounding)


def outcome(module: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Output, gradients of x and of the parameters for a fixed upstream gradient, and the buffers afterwards."""
    x = x.detach().clone().requires_grad_()
    y = module(x)
    names, params = zip(*[("x", x), *module.named_parameters()], strict=True)
    grads = torch.autograd.grad(y, params, draw(*y.shape, seed=77).to(y))
    return {"y": y.detach(), **{f"d {n}": g for n, g in zip(names, grads, strict=True)}, **dict(module.named_buffers())}


def assert_same_outcome(one: nn.Module, other: nn.Module, x: Tensor, what: str, rel: float = 1e-6) -> None:
    """Both modules give the same output, gradients and buffers on `x`."""
    got, want = outcome(one, x), outcome(other, x)
    assert got.keys() == want.keys(), f"{what}: {sorted(got)} against {sorted(want)}"
    for name in want:
        assert got[name].dtype == want[name].dtype, f"{what}: dtype of {name}"
        assert_near(got[name], want[name], f"{what}: {name}", rel=rel)


def check_norm_contract(make: MakeModule, twin: MakeModule | None, x: Tensor, *, second_order: bool = True) -> None:
    """All that makes a norm a drop-in one, in training and in eval mode.

    make, twin: called with `device=`, `dtype=` (or nothing), give our module and its torch.nn twin (None: no twin).
    x: a small float64 input, at least two axes, that both accept.

    Agrees with the twin (values, gradients, buffers, state dict both ways); keeps the dtype of its input, with and
    without autocast, and takes statistics in float32 at least; survives deepcopy, torch.compile(fullgraph=True),
    torch.func.vmap over stacked parameters and buffers, other memory layouts and an empty batch; passes gradcheck,
    and gradgradcheck if `second_order`; refuses integers.
    """
    for training in (True, False):
        check_factory(make)
        module = scramble(make(dtype=torch.float64)).train(training)
        if twin is not None:
            check_twin(module, twin(dtype=torch.float64).train(training), x)
        check_dtypes(make().train(training), x)
        check_copies(module, x)
        check_layouts(module, x)
        check_vmap([scramble(make(dtype=torch.float64), seed).train(training) for seed in range(3)], x)
        check_gradients(module, x, second_order=second_order)


def check_factory(make: MakeModule) -> None:
    """device= and dtype= reach every tensor, and reset_parameters restores the initial values."""
    fresh = make(dtype=torch.float64)
    for name, t in fresh.state_dict().items():
        assert t.dtype == torch.float64 or not t.is_floating_point(), f"{name} ignores dtype="
    abstract = make(device="meta")
    for name, t in abstract.state_dict().items():
        assert t.is_meta, f"{name} ignores device="
    rebuilt = abstract.to_empty(device="cpu").double()
    scramble(rebuilt)
    rebuilt.reset_parameters()
    for name, t in fresh.state_dict().items():
        assert torch.equal(rebuilt.state_dict()[name], t), f"reset_parameters leaves {name} changed"
    eps = getattr(fresh, "eps", math.nan)
    assert "eps=" in repr(fresh) or math.isnan(eps), f"{fresh!r} does not show eps"


def check_twin(module: nn.Module, twin: nn.Module, x: Tensor) -> None:
    """Same state-dict keys, which load strictly in both directions, and the same outcome."""
    assert list(module.state_dict()) == list(twin.state_dict()), f"state dict: {list(module.state_dict())}"
    twin.load_state_dict(module.state_dict())
    module.load_state_dict(copy.deepcopy(twin.state_dict()))
    assert_same_outcome(copy.deepcopy(module), twin, x, "against the twin")


def check_dtypes(module: nn.Module, x: Tensor) -> None:
    """The output has the dtype of the input, also under autocast, and is the float64 result rounded once."""
    exact = copy.deepcopy(module).double()
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        narrow = (30 + x).to(dtype)  # shifted: statistics in half precision would be far off
        want, rounding = copy.deepcopy(exact)(narrow.double()), torch.finfo(dtype).eps
        got = copy.deepcopy(module)(narrow)
        assert got.dtype == dtype, f"{dtype} became {got.dtype}"
        torch.testing.assert_close(got.double(), want, rtol=rounding, atol=1e-4, msg=lambda m, d=dtype: f"{d}: {m}")
        for reduced in (torch.bfloat16, torch.float16):
            with torch.autocast("cpu", reduced):
                under = copy.deepcopy(module)(narrow)
            assert torch.equal(under, got), f"autocast({reduced}) changes the result for {dtype}"
    try:
        module(torch.ones(x.shape, dtype=torch.long))
    except TypeError:
        return
    raise AssertionError("an integer input was accepted")


def check_copies(module: nn.Module, x: Tensor) -> None:
    """A deep copy and a compiled one do as the original does, and the copy shares no memory with it."""
    clone = copy.deepcopy(module)
    for name, t in clone.state_dict().items():
        assert t.data_ptr() != module.state_dict()[name].data_ptr(), f"the copy shares {name}"
    assert_same_outcome(clone, copy.deepcopy(module), x, "deepcopy")
    torch.compiler.reset()
    plain, original = copy.deepcopy(module), copy.deepcopy(module)
    original.compile(backend="aot_eager", fullgraph=True)  # in place: names of parameters stay
    assert_same_outcome(original, plain, x, "torch.compile")


def check_layouts(module: nn.Module, x: Tensor) -> None:
    """Memory layout plays no part, and an empty batch gives an empty output and finite (zero) gradients."""
    turned = x.transpose(0, -1).contiguous().transpose(0, -1)
    strided = torch.stack([x, -x], dim=-1)[..., 0]
    want = copy.deepcopy(module)(x)
    for other in (turned, strided):
        assert_near(copy.deepcopy(module)(other), want, "non-contiguous", rel=1e-12)
    none = outcome(copy.deepcopy(module), x[:0])
    assert none["y"].shape == x[:0].shape, f"an empty batch gives shape {tuple(none['y'].shape)}"
    for name, t in none.items():
        assert torch.isfinite(t).all(), f"an empty batch leaves {name} non-finite"


def check_vmap(modules: list[nn.Module], x: Tensor) -> None:
    """vmap over stacked parameters and buffers does as a loop over the modules: values, gradients, buffers."""
    params, buffers = stack_module_state(modules)
    base = copy.deepcopy(modules[0]).to("meta")
    inputs = torch.stack([x + i for i in range(len(modules))])
    weights = draw(*x.shape, seed=5)

    def loss(p: dict[str, Tensor], b: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
        y = functional_call(base, (p, b), (x,))
        return (weights * y).sum(), y

    slopes, outputs = vmap(torch.func.grad(loss, argnums=2, has_aux=True))(params, buffers, inputs)
    for i, module in enumerate(modules):
        alone = inputs[i].clone().requires_grad_()
        y = module(alone)
        assert_near(outputs[i], y.detach(), "vmap", rel=1e-12)
        assert_near(slopes[i], torch.autograd.grad(y, alone, weights)[0], "grad under vmap", rel=1e-9)
        for name, t in module.named_buffers():
            assert_near(buffers[name][i], t, f"{name} under vmap", rel=1e-12)


def check_gradients(module: nn.Module, x: Tensor, *, second_order: bool = True) -> None:
    """gradcheck and gradgradcheck in float64, with respect to the input and every parameter."""
    names = [name for name, _ in module.named_parameters()]

    def f(x: Tensor, *params: Tensor) -> Tensor:
        return functional_call(module, dict(zip(names, params, strict=True)), (x,))

    leaves = [t.detach().clone().requires_grad_() for t in (x, *module.parameters())]
    torch.autograd.gradcheck(f, leaves)  # raises where it fails
    if second_order:
        torch.autograd.gradgradcheck(f, leaves)


def residual_mlp_in_numpy(model: nn.Module, x: Tensor, block: Callable[..., Any]) -> Tensor:
    """`repro.models.mlp.ResidualMLP` with layer norms and ReLU, in float64 NumPy: the oracle of a placement.

    block(index, x, f, norm) -> x is one residual block; f(x) is its branch, norm(x) its layer norm.  x: (n, n_in).
    """
    import numpy as np

    p = {name: t.detach().double().numpy() for name, t in model.named_parameters()}

    def affine(x: Any, name: str) -> Any:
        return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]

    def norm(x: Any, name: str) -> Any:
        centred = x - x.mean(-1, keepdims=True)
        return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * p[f"{name}.weight"] + p[f"{name}.bias"]

    x = affine(x.double().numpy(), "stem")
    for index in range(len(model.blocks)):
        own = f"blocks.{index}"
        x = block(
            index,
            x,
            lambda x, own=own: affine(np.maximum(affine(x, f"{own}.sublayer.up"), 0), f"{own}.sublayer.down"),
            lambda x, own=own: norm(x, f"{own}.norm"),
        )
    return torch.from_numpy(affine(norm(x, "norm"), "head"))
