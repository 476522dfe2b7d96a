"""Read GGUF, the file format of llama.cpp: settings, and tensors in F32, F16, Q8_0 and Q4_1, as float32.

    magic "GGUF", version, tensor count, setting count; settings (name, type, value); tensor heads (name, dimensions
    with the fastest first, kind, offset); then, from the next multiple of the alignment, the tensors.

Blocks have 32 values:  Q8_0 is d (float16) and 32 int8 q, x = d q;  Q4_1 is d, m (float16) and 16 bytes, whose low
halves are the first 16 values and whose high halves are the others, x = d q + m.
"""

import struct
from math import prod

import numpy as np
import torch
from torch import Tensor

from repro.errors import ReproError

SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
Q4_1 = np.dtype([("d", "<f2"), ("m", "<f2"), ("q", "u1", 16)])
Q8_0 = np.dtype([("d", "<f2"), ("q", "i1", 32)])


class _Cursor:
    def __init__(self, data: memoryview):
        self.data, self.at = data, 0

    def scalar(self, kind: str):
        (value,) = struct.unpack_from("<" + kind, self.data, self.at)
        self.at += struct.calcsize("<" + kind)
        return value

    def string(self) -> str:
        size = self.scalar("Q")
        self.at += size
        return bytes(self.data[self.at - size : self.at]).decode()

    def value(self, kind: int):
        if kind == STRING:
            return self.string()
        if kind == ARRAY:
            member, count = self.scalar("I"), self.scalar("Q")
            return [self.value(member) for _ in range(count)]
        return self.scalar(SCALARS[kind])


def _values(kind: int, raw: memoryview, count: int) -> np.ndarray:
    if kind in (0, 1):
        return np.frombuffer(raw, "<f4" if kind == 0 else "<f2", count).astype(np.float32)
    if kind == 3:
        blocks = np.frombuffer(raw, Q4_1, count // 32)
        q = np.concatenate([blocks["q"] & 15, blocks["q"] >> 4], axis=1).astype(np.float32)
        return q * blocks["d"].astype(np.float32)[:, None] + blocks["m"].astype(np.float32)[:, None]
    if kind == 8:
        blocks = np.frombuffer(raw, Q8_0, count // 32)
        return blocks["q"].astype(np.float32) * blocks["d"].astype(np.float32)[:, None]
    raise ReproError(f"a tensor of GGUF kind {kind}: only F32, F16, Q4_1 and Q8_0 are read")


def read(content: Tensor) -> tuple[dict, dict[str, Tensor]]:
    """`(settings, {name: float32 tensor})` of a file held as a uint8 vector."""
    data = memoryview(content.numpy())
    cursor = _Cursor(data)
    try:
        if bytes(data[:4]) != b"GGUF":
            raise ValueError("it does not begin with GGUF")
        cursor.at = 4
        if (version := cursor.scalar("I")) not in (2, 3):
            raise ValueError(f"version {version}; 2 and 3 are read")
        tensors, count = cursor.scalar("Q"), cursor.scalar("Q")
        settings = {}
        for _ in range(count):
            name = cursor.string()
            settings[name] = cursor.value(cursor.scalar("I"))
        heads = []
        for _ in range(tensors):
            name = cursor.string()
            shape = [cursor.scalar("Q") for _ in range(cursor.scalar("I"))]
            heads.append((name, shape[::-1], cursor.scalar("I"), cursor.scalar("Q")))
        step = settings.get("general.alignment", 32)
        start = -(-cursor.at // step) * step
        return settings, {
            name: torch.from_numpy(_values(kind, data[start + offset :], prod(shape)).reshape(shape))
            for name, shape, kind, offset in heads
        }
    except (struct.error, ValueError, KeyError, UnicodeDecodeError) as error:
        raise ReproError(f"this is no GGUF file that can be read ({error}); fetch it again") from error
