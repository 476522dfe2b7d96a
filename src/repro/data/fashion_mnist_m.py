"""Fashion-MNIST-M: Fashion-MNIST blended with photographs, 32x32 colour, as MNIST-M was made (Ganin et al. 2016).

    x = | patch - garment |     the garment padded to 32x32 and repeated over three channels

Patches are cut at random, under a fixed seed, from 22 photographs reduced to about 440 pixels across. A photograph is
divided into five columns of three 88x88 blocks: three columns for training patches, one for validation, one for
test, so that no split sees another's background. The splits of the garments are those of Fashion-MNIST.
"""

from io import BytesIO
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from repro.data import fashion_mnist
from repro.data.archives import Archive, Unusable
from repro.data.kinds import Images
from repro.data.sources import Dataset, File, Source, resident

SIDE, BLOCK, ACROSS, DOWN = 32, 88, 5, 3
MEAN, STD = (0.4270, 0.4215, 0.3611), (0.2835, 0.2645, 0.2774)

BANK = "backgrounds88.u8"  # uint8 [330, 3, 88, 88]
NATURE = "Aqua Blinds Dune FreshFlower Garden GreenMeadow LadyBird RainDrops Storm TwoWings Wood YellowFlower".split()
WALLPAPERS = "BytheWater ColdRipple ColorfulCups EveningGlow FallenLeaf Grey Kite OneStandsOut Path summer_1am".split()


def _blocks(photo: bytes) -> np.ndarray:
    """uint8 `[15, 3, 88, 88]`: the middle of a photograph, averaged over k x k pixels, in reading order."""
    from PIL import Image

    pixels = np.asarray(Image.open(BytesIO(photo)).convert("RGB"), dtype=np.uint32)
    k = pixels.shape[1] // (ACROSS * BLOCK)
    high, wide = DOWN * BLOCK * k, ACROSS * BLOCK * k
    top, left = (pixels.shape[0] - high) // 2, (pixels.shape[1] - wide) // 2
    cut = pixels[top : top + high, left : left + wide]
    total = cut.reshape(DOWN * BLOCK, k, ACROSS * BLOCK, k, 3).sum((1, 3))
    small = ((2 * total + k * k) // (2 * k * k)).astype(np.uint8)
    blocks = small.reshape(DOWN, BLOCK, ACROSS, BLOCK, 3).transpose(0, 2, 4, 1, 3)
    return blocks.reshape(-1, 3, BLOCK, BLOCK)


def _bank(mate: Archive, plasma: Archive) -> dict[str, bytes]:
    try:
        import PIL  # noqa: F401
    except ImportError as error:
        raise Unusable("the package `pillow` is not installed") from error
    photos = [mate.read(f"usr/share/backgrounds/mate/nature/{n}.jpg") for n in NATURE]
    photos += [plasma.read(f"usr/share/wallpapers/{n}/contents/images/2560x1600.jpg") for n in WALLPAPERS]
    return {BANK: b"".join(_blocks(p).tobytes() for p in photos)}


DATASET = Dataset(
    name="fashion_mnist_m",
    what="colour 32x32 pictures: Fashion-MNIST blended with photographs, 10 balanced classes",
    items="55,000 train, 5,000 validation, 10,000 test",
    licence="MIT (garments), GPL-2+ and LGPL-3 (photographs)",
    files=(File(BANK, 7_666_560, "13b1041a9f375948b636f0753ffbc22481e4789406e34e4bc3dc8900797588af"),),
    sources=(Source("debian", ("mate-backgrounds", "plasma-workspace-wallpapers"), (BANK,), _bank),),
)


def blend(garments: Tensor, blocks: Tensor, seed: int) -> Tensor:
    """uint8 `[n, 3, 32, 32]`: garments `[n, 1, 28, 28]` against patches drawn from `blocks` `[b, 3, 88, 88]`."""
    draw = torch.Generator().manual_seed(seed)
    n, last = len(garments), BLOCK - SIDE + 1
    places = [torch.randint(0, high, (n,), generator=draw).to(blocks.device) for high in (len(blocks), last, last)]
    windows = blocks.unfold(2, SIDE, 1).unfold(3, SIDE, 1)  # [b, 3, 57, 57, 32, 32], a view
    margin = (SIDE - garments.shape[-1]) // 2
    out = torch.empty(n, 3, SIDE, SIDE, dtype=torch.uint8, device=blocks.device)
    for at in range(0, n, 5_000):
        part = slice(at, at + 5_000)
        block, y, x = (p[part] for p in places)
        patch = windows[block, :, y, x]
        garment = F.pad(garments[part], (margin,) * 4)
        out[part] = torch.maximum(patch, garment) - torch.minimum(patch, garment)
    return out


@resident
def load(device: torch.device | str = "cpu", cache: str | Path | None = None) -> Images:
    """The set on `device`, fetched if it is not in the cache; the same object at every call of a process."""
    grey = fashion_mnist.load(device, cache)
    bank = DATASET.read(cache)[BANK].view(-1, 3, BLOCK, BLOCK).to(device)
    turn = torch.arange(len(bank), device=device) % ACROSS  # the column of a block
    return Images(
        train_x=blend(grey.train_x, bank[turn < 3], seed=0),
        train_y=grey.train_y,
        valid_x=blend(grey.valid_x, bank[turn == 3], seed=1),
        valid_y=grey.valid_y,
        test_x=blend(grey.test_x, bank[turn == 4], seed=2),
        test_y=grey.test_y,
        classes=10,
        mean=MEAN,
        std=STD,
    )
