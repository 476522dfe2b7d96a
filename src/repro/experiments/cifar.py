"""Networks on CIFAR under the recipe that their papers share: crops, flips, SGD with momentum, and a rate that falls.

For profiles `paper`, which ask for CIFAR-10 or CIFAR-100 (`repro.data.original`): a paper builds the network of an arm
and hands it to `classified`.  At smoke Fashion-MNIST-M, colour pictures of the same size, stands in.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from repro.data import fashion_mnist_m, original
from repro.data.kinds import Images
from repro.tasks import Examples, Measures, Training, classify
from repro.train import Schedule

CLASSES = {"cifar10": 10, "cifar100": 100, "fashion_mnist_m": 10}


@dataclass(frozen=True, kw_only=True)
class Cifar(Training):
    """The data and the recipe.

    examples, test: at most so many training and test images.  falls: shares of the run at which the rate is multiplied
    by `fall`.  warmup: steps at a tenth of the rate.  crop: pixels of zeros around a picture of which a random place
    is cut out; 0 for none.  flip: whether half of the pictures are mirrored.  width: channels of the first stage, for
    networks that have one.
    """

    data: str = "cifar10"
    examples: int = 50_000
    test: int = 10_000
    weight_decay: float = 1e-4
    falls: tuple[float, ...] = (0.5, 0.75)
    fall: float = 0.1
    warmup: int = 0
    crop: int = 4
    flip: bool = True
    width: int = 16
    trivial: tuple[str, ...] = ("linear",)

    @property
    def classes(self) -> int:
        return CLASSES[self.data]

    def load(self, device: torch.device) -> tuple[Examples, Examples]:
        """Normalised training and test images with their labels; the papers train on all 50,000."""
        images: Images = (
            fashion_mnist_m.load(device) if self.data == "fashion_mnist_m" else original.images(self.data, device)
        )
        x, y = (torch.cat([getattr(images, f"train_{axis}"), getattr(images, f"valid_{axis}")]) for axis in "xy")
        train, test = (x[: self.examples], y[: self.examples]), (images.test_x[: self.test], images.test_y[: self.test])
        return (images.normalised(train[0]), train[1]), (images.normalised(test[0]), test[1])


def falling(falls: tuple[float, ...], fall: float, warmup: int = 0) -> Schedule:
    """1, times `fall` from each share of the run in `falls` on; 0.1 during the first `warmup` steps."""

    def factor(step: int, steps: int) -> float:
        return 0.1 if step < warmup else fall ** sum(step >= share * steps for share in falls)

    return factor


def moved(x: Tensor, generator: torch.Generator, crop: int, flip: bool) -> Tensor:
    """Return (B, C, H, W) pictures, each cut out at a place of its own of itself with `crop` zeros around it.

    flip: half of them are mirrored besides.
    """
    count, _, height, width = x.shape
    if flip:
        mirrored = torch.rand(count, generator=generator) < 0.5
        x = torch.where(mirrored.to(x.device)[:, None, None, None], x.flip(-1), x)
    if crop:
        top, left = torch.randint(2 * crop + 1, (2, count), generator=generator).to(x.device)
        rows = (top[:, None] + torch.arange(height, device=x.device))[:, None, :, None]
        columns = (left[:, None] + torch.arange(width, device=x.device))[:, None, None, :]
        each = torch.arange(count, device=x.device)[:, None, None, None]
        channels = torch.arange(x.shape[1], device=x.device)[None, :, None, None]
        x = F.pad(x, (crop,) * 4)[each, channels, rows, columns]
    return x


def classified(
    model: nn.Module,
    name: str,
    seed: int,
    config: Cifar,
    device: torch.device,
    *,
    data: tuple[Examples, Examples] | None = None,
    **options: object,
) -> Measures:
    """Train a network with the recipe and return its test error; `options` are those of `train.fit` and win over it."""

    def augment(x: Tensor, generator: torch.Generator) -> Tensor:
        return moved(x, generator, config.crop, config.flip)

    recipe = {
        "optimizer": "momentum",
        "weight_decay": config.weight_decay,
        "schedule": falling(config.falls, config.fall, config.warmup),
        "augment": augment if config.crop or config.flip else None,
    }
    return classify(model, name, seed, config, device, data=data, score="error", **{**recipe, **options})
