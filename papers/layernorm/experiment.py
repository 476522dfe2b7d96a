"""What papers/layernorm measures: independence of the batch, small batches against BatchNorm, a recurrent network.

The invariance table is `repro.experiments.invariance`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from repro import trivial
from repro.models.mlp import MLP
from repro.models.rnn import RecurrentLM
from repro.models.slots import identity
from repro.papers.batchnorm import BatchNorm
from repro.papers.layernorm.method import LayerNorm
from repro.tasks import PICTURES, Measures, Pictures, Text, classify_batch, learning, trained
from repro.train import Diverged, History, evaluate_classifier, evaluate_lm, generator


class FrozenLayerNorm(LayerNorm):
    """LayerNorm during the first batch; from `freeze` on a fixed affine map with the moments that batch had."""

    def __init__(self, n: int):
        super().__init__(n)
        self.seen: list[Tensor] = []
        self.moments: tuple[Tensor, Tensor] | None = None

    def freeze(self) -> None:
        mean, square = torch.stack(self.seen).mean(0)
        self.moments, self.seen = (mean, (square - mean.square() + self.eps).sqrt()), []

    def forward(self, a: Tensor) -> Tensor:
        if self.moments is None:
            self.seen.append(torch.stack([a.detach().mean(), a.detach().square().mean()]))
            return super().forward(a)
        mean, deviation = self.moments
        return (a - mean) / deviation * self.weight + self.bias


NORMS = {
    "layernorm": LayerNorm,
    "batchnorm": BatchNorm,
    "batchnorm_all": BatchNorm,  # of the logits too
    "none": identity,
    "frozen_layernorm": FrozenLayerNorm,
}


@dataclass(frozen=True)
class Company:
    width: int
    depth: int
    others: int


def company(arm: str, seed: int, config: Company, device: torch.device) -> dict[str, float]:
    """How far the output for one case moves between evaluation alone and training in the company of others."""
    source = generator("layernorm company", seed)
    widths = [config.width] * (config.depth + 2)
    model = MLP(widths, norm=NORMS[arm], generator=source).to(device, torch.float64)

    def cases(n: int) -> Tensor:
        return torch.randn(n, config.width, generator=source, dtype=torch.float64).to(device)

    case = cases(1)
    with torch.no_grad():
        alone = model.eval()(case)
        model.train()
        gaps = [(model(torch.cat([case, cases(1 + i % 32)]))[:1] - alone).abs().max() for i in range(config.others)]
    return {"company_gap": float(torch.stack(gaps).max())}


@dataclass(frozen=True, kw_only=True)
class SmallBatch(Pictures):
    width: int
    seen: int  # images seen in training, equal at all batch sizes
    data: str = "mnist"
    test: int = 10_000
    steps: int = 0  # 0: as many as `seen` asks for


def small_batch_batch(
    arm: str, seeds: list[int], config: SmallBatch, device: torch.device
) -> list[Measures | Diverged]:
    """784-width-width-10 with ReLU and Adam; norms on the two hidden layers, in `batchnorm_all` on the logits too
    (Section 6.6).  The rate is chosen by the error on validation images.
    """
    images = PICTURES[config.data](device)
    x, y = images.flat(images.train_x[: config.examples]), images.train_y[: config.examples]
    test_x, test_y = images.flat(images.test_x[: config.test]), images.test_y[: config.test]
    valid = images.flat(images.valid_x[: config.test]), images.valid_y[: config.test]
    widths = [x.shape[1], config.width, config.width, 10]
    models = [MLP(widths, norm=NORMS[arm], generator=generator("layernorm weights", seed)) for seed in seeds]
    for model in models if arm == "batchnorm_all" else ():
        model.head = nn.Sequential(model.head, BatchNorm(10))

    def measure(model: nn.Module, history: History) -> Measures:
        return {
            "error": evaluate_classifier(model, test_x, test_y)["error"],
            "valid_error": evaluate_classifier(model, *valid)["error"],
            "train_nats": evaluate_classifier(model, x, y)["loss"],
        }

    return classify_batch(
        models,
        "layernorm small batch",
        seeds,
        config,
        device,
        data=((x, y), (test_x, test_y)),
        score="error",
        measure=measure,
        steps=config.steps or config.seen // config.batch,
        optimizer="adam",
    )


@dataclass(frozen=True, kw_only=True)
class LSTM(Text):
    layers: int
    width: int
    eval_every: int


def lstm(arm: str, seed: int, config: LSTM, device: torch.device) -> Measures:
    """LSTM layers as in the supplement: norms on both projections apart, and on the cell on its way out."""
    corpus, source = config.load(device), generator("layernorm lstm", seed)
    model = RecurrentLM("lstm", corpus.vocab, config.width, layers=config.layers, norm=NORMS[arm], generator=source).to(
        device
    )

    def freeze(step: int, model: nn.Module, loss: Tensor) -> None:
        for layer in model.modules() if step == 0 else ():
            if isinstance(layer, FrozenLayerNorm):
                layer.freeze()

    def evaluate(model: nn.Module) -> dict[str, float]:
        return evaluate_lm(model, corpus.valid, config.context, windows=config.windows)

    history = trained(
        model,
        corpus.train,
        "layernorm lstm batches",
        seed,
        config,
        optimizer="adam",
        clip=1.0,
        hook=freeze,
        evaluate=evaluate,
        eval_every=config.eval_every,
    )
    return {
        "val_nats": history.curves["loss"],
        "steps": history.eval_steps,
        **learning(history),
        **trivial.text(corpus.train, corpus.valid, config.trivial),
    }
