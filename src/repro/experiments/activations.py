"""Networks that differ in their activation alone: swish, mish, golu.

bn_mlp    784-width-...-width-10 with BatchNorm and dropout, plain SGD: mish, the experiment on the number of layers
convnet   convolutions, BatchNorm and activations without shortcuts, so that each activation reads what BatchNorm gives

An arm names its activation as "module:attribute".  Arms of one seed have the same first weights and the same batches.
One seed is trained at a time: `repro.batched` takes no dropout, and gains nothing where BatchNorm or convolutions rule.
"""

import math
from dataclasses import dataclass
from functools import partial
from importlib import import_module

import torch
from torch import Tensor, nn

from repro.models.convnet import ConvNet, Plain
from repro.models.mlp import MLP
from repro.models.slots import Act
from repro.tasks import Measures, Pictures, classify
from repro.train import evaluate_classifier, generator


@dataclass(frozen=True)
class Arm:
    """act: a class or function that builds an activation, as "module:attribute"; options: its arguments by name."""

    act: str
    options: tuple[tuple[str, object], ...] = ()


ARMS = {
    "relu": Arm("torch.nn:ReLU"),
    "gelu": Arm("torch.nn:GELU"),
    "linear": Arm("torch.nn:Identity"),
    "swish": Arm("repro.papers.swish:Swish"),
    "swish_learned": Arm("repro.papers.swish:Swish", (("learnable", True),)),
    "swish_0": Arm("repro.papers.swish:Swish", (("beta", 0.0),)),
    "mish": Arm("repro.papers.mish:Mish"),
    "golu": Arm("repro.papers.golu:GoLU"),
    "golu_mirrored": Arm("repro.papers.golu.experiment:Mirrored"),
}


def activation(arm: Arm) -> Act:
    """What builds the activation of an arm."""
    module, attribute = arm.act.split(":")
    return partial(getattr(import_module(module), attribute), **dict(arm.options))


# --- bn_mlp -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Perceptron(Pictures):
    """layers: hidden layers of each network of a row; shape: plain, or skip with a shortcut over every two layers."""

    layers: tuple[int, ...]
    shape: str
    width: int
    dropout: float
    data: str = "mnist"


class SkipMLP(MLP):
    """An MLP of an odd number of hidden layers: x <- x + layer(layer(x)) after the first."""

    def rows(self, x: Tensor) -> Tensor:
        first, *rest = self.hidden
        x = first(x)
        for one, two in zip(rest[::2], rest[1::2], strict=True):
            x = x + two(one(x))
        return self.head(x)


def perceptron(
    act: Act, widths: list[int], source: torch.Generator, *, dropout: float = 0.0, shape: str = "plain"
) -> MLP:
    """Every hidden layer is linear, BatchNorm, activation, dropout; weights start as N(0, 2 / fan_in)."""

    def dropped() -> nn.Module:
        return nn.Sequential(act(), nn.Dropout(dropout))

    build = {"plain": MLP, "skip": SkipMLP}[shape]
    return build(widths, norm=nn.BatchNorm1d, act=dropped if dropout else act, generator=source)


def renormalised(model: nn.Module, x: Tensor, batch: int = 500) -> nn.Module:
    """Give every BatchNorm the mean and variance of x as they are without dropout; the model is left in eval mode."""
    model.eval()
    for norm in (module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)):
        norm.reset_running_stats()
        norm.momentum = None  # the plain average over batches
        norm.train()
    with torch.no_grad():
        for part in x.split(batch):
            model(part)
    return model.eval()


def bn_mlp(arm: str, seed: int, config: Perceptron, device: torch.device) -> Measures:
    """Test accuracy at every depth, and with BatchNorm's statistics taken anew without dropout."""
    train, test = ((x.flatten(1), y) for x, y in config.load(device))
    results: Measures = {}
    for layers in config.layers:
        widths = [train[0].shape[1], *[config.width] * layers, 10]
        source = generator("activations bn_mlp", seed)
        model = perceptron(activation(ARMS[arm]), widths, source, dropout=config.dropout, shape=config.shape)
        run = classify(model, "activations bn_mlp", seed, config, device, data=(train, test), optimizer="sgd")
        again = evaluate_classifier(renormalised(model, train[0][:5_000]), *test)
        results |= {**run, f"accuracy_{layers}": run["accuracy"], f"clean_accuracy_{layers}": again["accuracy"]}
    accuracies = [results[f"accuracy_{layers}"] for layers in config.layers]
    depths = [float(layers) for layers in config.layers]
    return {**results, "accuracies": accuracies, "layers": depths, "lost": accuracies[0] - accuracies[-1]}


# --- convnet ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Convolutions(Pictures):
    """blocks: blocks of two convolutions in each of three stages of width, 2 width and 4 width channels."""

    blocks: int
    width: int
    probed: int = 1_000  # test images at which variances are taken


def convolutions(act: Act, blocks: int, width: int, channels: int, source: torch.Generator) -> ConvNet:
    """1 + 6 blocks convolutions, each followed by BatchNorm and the activation; no shortcut."""
    return ConvNet(
        [blocks] * 3,
        [width, 2 * width, 4 * width],
        classes=10,
        channels=channels,
        block=Plain,
        act=act,
        generator=source,
    )


@torch.no_grad()
def output_variances(model: ConvNet, x: Tensor) -> list[float]:
    """The variance over all outputs of every activation, in the order of the layers; the model is left in eval mode."""
    found: list[float] = []
    hooks = [
        module.register_forward_hook(lambda module, inputs, y: found.append(float(y.var())))
        for name, module in model.named_modules()
        if name.rpartition(".")[2] in ("act", "act1", "act2")
    ]
    model.eval()(x)
    for hook in hooks:
        hook.remove()
    return found


def convnet(arm: str, seed: int, config: Convolutions, device: torch.device) -> Measures:
    """Test accuracy after one cosine of Nesterov's momentum, and the geometric mean of the activations' variances."""
    train, test = config.load(device)
    source = generator("activations convnet", seed)
    model = convolutions(activation(ARMS[arm]), config.blocks, config.width, config.channels, source)
    measures = classify(
        model,
        "activations convnet",
        seed,
        config,
        device,
        data=(train, test),
        optimizer="nesterov",
        schedule="cosine",
    )
    variances = output_variances(model, test[0][: config.probed])
    return {
        **measures,
        "error": 1 - measures["accuracy"],
        "variance": math.exp(sum(map(math.log, variances)) / len(variances)),
        "variances": variances,
        "site": [float(i + 1) for i in range(len(variances))],
    }
