"""What papers/layernorm measures: independence of the batch, small batches against BatchNorm, a recurrent network.

The invariance table is `repro.experiments.invariance`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from repro.batched import fit_batched
from repro.data import fashion_mnist, shakespeare
from repro.models.mlp import MLP
from repro.models.rnn import RecurrentLM
from repro.models.slots import identity
from repro.papers.batchnorm import BatchNorm
from repro.papers.layernorm.method import LayerNorm
from repro.train import Diverged, evaluate_classifier, evaluate_lm, fit, generator, seed_of


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


NORMS = {"layernorm": LayerNorm, "batchnorm": BatchNorm, "none": identity, "frozen_layernorm": FrozenLayerNorm}


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


@dataclass(frozen=True)
class SmallBatch:
    width: int
    examples: int
    seen: int  # images seen in training, equal at all batch sizes
    lr: float
    batch: int


def small_batch_batch(arm: str, seeds: list[int], config: SmallBatch, device: torch.device) -> list[dict | Diverged]:
    """784-width-width-10 with ReLU and Adam; norms on the two hidden layers, none on the logits (Section 6.6)."""
    data = fashion_mnist.load(device)
    train_x, train_y = data.flat(data.train_x[: config.examples]), data.train_y[: config.examples]
    test_x, test_y = data.flat(data.test_x), data.test_y
    widths = [784, config.width, config.width, 10]
    models = [MLP(widths, norm=NORMS[arm], generator=generator("layernorm weights", seed)).to(device) for seed in seeds]
    histories = fit_batched(
        models,
        (train_x, train_y),
        seeds=[seed_of("layernorm small batch", seed) for seed in seeds],
        steps=config.seen // config.batch,
        batch=config.batch,
        lr=config.lr,
        optimizer="adam",
    )
    return [
        history
        if isinstance(history, Diverged)
        else {
            "error": evaluate_classifier(model, test_x, test_y)["error"],
            "train_nats": evaluate_classifier(model, train_x, train_y)["loss"],
        }
        for model, history in zip(models, histories, strict=True)
    ]


@dataclass(frozen=True)
class LSTM:
    layers: int
    width: int
    context: int
    batch: int
    steps: int
    eval_every: int
    lr: float
    windows: int


def lstm(arm: str, seed: int, config: LSTM, device: torch.device) -> dict[str, list[float]]:
    """LSTM layers as in the supplement: norms on both projections apart, and on the cell on its way out."""
    corpus = shakespeare.load(device)
    model = RecurrentLM(
        "lstm",
        corpus.vocab,
        config.width,
        layers=config.layers,
        norm=NORMS[arm],
        generator=generator("layernorm lstm", seed),
    ).to(device)

    def freeze(step: int, model: nn.Module, loss: Tensor) -> None:
        for layer in model.modules() if step == 0 else ():
            if isinstance(layer, FrozenLayerNorm):
                layer.freeze()

    def evaluate(model: nn.Module) -> dict[str, float]:
        return evaluate_lm(model, corpus.valid, config.context, windows=config.windows)

    history = fit(
        model,
        corpus.train,
        context=config.context,
        steps=config.steps,
        batch=config.batch,
        lr=config.lr,
        seed=seed_of("layernorm lstm batches", seed),
        optimizer="adam",
        clip=1.0,
        hook=freeze,
        evaluate=evaluate,
        eval_every=config.eval_every,
    )
    return {"val_nats": history.curves["loss"], "steps": history.eval_steps}
