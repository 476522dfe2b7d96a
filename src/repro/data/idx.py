"""The IDX files of MNIST and its kin: training and test images and labels, as bytes behind a short head."""

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor

from repro.data.kinds import Images

NAMES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def head(*shape: int) -> bytes:
    """Head of an IDX file of bytes: 0, 0, type 8, number of dimensions, then each as a big-endian 32-bit number."""
    return bytes((0, 0, 8, len(shape))) + b"".join(n.to_bytes(4, "big") for n in shape)


def from_hub(load: Callable[[str], Iterable[dict[str, Any]]]) -> dict[str, bytes]:
    """Write the Hub's pictures, in their order, as the IDX files that they were made from."""
    made = {}
    for split, prefix in (("train", "train"), ("test", "t10k")):
        pixels, labels = bytearray(), bytearray()
        for row in load(split):
            pixels += row["image"].convert("L").tobytes()
            labels.append(row["label"])
        made[f"{prefix}-images-idx3-ubyte"] = head(len(labels), 28, 28) + bytes(pixels)
        made[f"{prefix}-labels-idx1-ubyte"] = head(len(labels)) + bytes(labels)
    return made


def tensors(raw: dict[str, Tensor], names: tuple[str, ...]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`(train x, train y, test x, test y)` of the four files: x uint8 `[N, 1, 28, 28]`, y int64."""
    tx, ty, ex, ey = (raw[name] for name in names)
    return tx[16:].view(-1, 1, 28, 28), ty[8:].long(), ex[16:].view(-1, 1, 28, 28), ey[8:].long()


def images(parts: list[Tensor], valid: int, mean: tuple[float, ...], std: tuple[float, ...]) -> Images:
    """The set with its last `valid` training images held out for validation."""
    train_x, train_y, test_x, test_y = parts
    return Images(
        train_x=train_x[:-valid],
        train_y=train_y[:-valid],
        valid_x=train_x[-valid:],
        valid_y=train_y[-valid:],
        test_x=test_x,
        test_y=test_y,
        classes=10,
        mean=mean,
        std=std,
    )
