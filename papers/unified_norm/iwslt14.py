"""The small Transformer on IWSLT14 German to English (profile `paper`), as the authors' scripts train it."""

import torch
from torch import nn

from repro.experiments.iwslt14 import Iwslt14, translated, translator
from repro.models.norms import over_tokens
from repro.papers.rmsnorm import RMSNorm
from repro.papers.unified_norm.method import UnifiedNorm
from repro.tasks import Measures

NORMS = {
    "layernorm": nn.LayerNorm,
    "un": UnifiedNorm,  # a window of 4 batches after 4,000 of warm-up, no filtration
    "batchnorm": over_tokens(nn.BatchNorm1d),
    "rmsnorm": RMSNorm,
}


def iwslt14(arm: str, seed: int, config: Iwslt14, device: torch.device) -> Measures:
    """BLEU of a translator all of whose norms are those of the arm; as in the authors' code padding counts in them."""
    text = config.load(device)
    model = translator(len(text.pieces), "unified_norm iwslt14", seed, config, NORMS[arm])
    return translated(model, text, "unified_norm iwslt14", seed, config, device)
