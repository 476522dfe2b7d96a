"""The small Transformer of Table 1 on IWSLT14 German to English (profile `paper`), as the authors' script trains it."""

import torch
from torch import Tensor, nn

from repro.experiments.iwslt14 import Iwslt14, encoder_norms, translated, translator
from repro.models.affine import rms_norm
from repro.papers.powernorm.method import PowerNorm, PowerNormV, token_mean
from repro.tasks import Measures

LAST = 1000  # warm-up of the norm behind the encoder, to which the authors' code does not hand that of the rate


class PaddedBatchNorm(nn.BatchNorm1d):
    """The BatchNorm of the authors' code: over tokens (B, T, D) that are scaled to an RMS of 1, padding at their mean.

    (MaskSyncBatchNorm, mask_syncbatchnorm.py, on one GPU; the running values move by 0.05.)
    """

    def __init__(self, n: int):
        super().__init__(n, momentum=0.05)

    def forward(self, x: Tensor, pad_mask: Tensor) -> Tensor:
        real, x = ~pad_mask[..., None], rms_norm(x, x.shape[-1:], self.eps)
        x = torch.where(real, x, token_mean(x, real))
        return super().forward(x.flatten(0, -2)).view_as(x)


def norm(arm: str, config: Iwslt14, last: bool) -> nn.Module:
    """A norm of the encoder.  PN-V reads tokens scaled by groups, one a head, as PN does."""
    if arm == "batchnorm":
        return PaddedBatchNorm(config.width)
    if arm == "pn":
        warmup = min(LAST, config.warmup) if last else config.warmup
        return PowerNorm(config.width, groups=config.heads, warmup_iters=warmup)
    made = PowerNormV(config.width)
    made.groups = config.heads
    return made


def iwslt14(arm: str, seed: int, config: Iwslt14, device: torch.device) -> Measures:
    """BLEU of a translator whose encoder has the norm of the arm; its decoder has LN in all of them."""
    text = config.load(device)
    model = translator(len(text.pieces), "powernorm iwslt14", seed, config)
    if arm != "layernorm":
        encoder_norms(model, lambda last: norm(arm, config, last))
    return translated(model, text, "powernorm iwslt14", seed, config, device)
