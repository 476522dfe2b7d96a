"""`repro.train.fit` against the same loop written by hand: CPU time a step, goal at most 1.03x.

    python dev/benchmarks/harness.py [--steps 2000] [--rounds 7] [--device cpu]

One thread, arms interleaved, median of rounds; the raw loop appears twice, and the ratio of the two is the error of
the comparison (above 1.02 it says nothing).
"""

import argparse
import statistics
import time

import torch
from torch.nn import functional as F

from repro.models.mlp import MLP
from repro.timing import steady_malloc
from repro.train import fit, generator

BATCH, LR = 128, 0.05


def model_of(device: str) -> MLP:
    return MLP((784, 100, 100, 100, 10), generator=generator("harness", 0)).to(device)


def raw(x: torch.Tensor, y: torch.Tensor, steps: int, device: str, optimizer: str) -> float:
    """The loop that one would write: resident tensors, indexed directly, the loss of every step kept."""
    model = model_of(device)
    make = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}[optimizer]
    update, order, losses = make(model.parameters(), lr=LR, fused=True), torch.Generator().manual_seed(0), []
    per_epoch = len(x) // BATCH
    for step in range(steps):
        if step % per_epoch == 0:
            permutation = torch.randperm(len(x), generator=order).to(device)
        at = step % per_epoch * BATCH
        index = permutation[at : at + BATCH]
        loss = F.cross_entropy(model(x.index_select(0, index)), y.index_select(0, index))
        update.zero_grad(set_to_none=True)
        loss.backward()
        update.step()
        losses.append(loss.detach())
    return float(torch.stack(losses)[-1])


def ours(x: torch.Tensor, y: torch.Tensor, steps: int, device: str, optimizer: str) -> float:
    options = {"weight_decay": 0.01} if optimizer == "adamw" else {}
    history = fit(model_of(device), (x, y), steps=steps, batch=BATCH, lr=LR, seed=0, optimizer=optimizer, **options)
    return history.train_loss[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(1)
    steady_malloc()
    clock = time.process_time if options.device == "cpu" else time.perf_counter
    source = generator("data", 0)
    x = torch.randn(20_000, 784, generator=source).to(options.device)
    y = torch.randint(10, (20_000,), generator=source).to(options.device)
    for optimizer in ("sgd", "adamw"):
        arms = {"raw": raw, "raw again": raw, "fit": ours}
        times: dict[str, list[float]] = {name: [] for name in arms}
        for turn in range(options.rounds + 1):
            for name in list(arms) if turn % 2 else list(reversed(arms)):
                began = clock()
                arms[name](x, y, options.steps, options.device, optimizer)
                if turn:  # the first round warms up
                    times[name].append((clock() - began) / options.steps * 1e6)
        for name, t in times.items():
            ratio = statistics.median(a / b for a, b in zip(t, times["raw"], strict=True))
            print(f"{optimizer:6} {name:10} {statistics.median(t):8.1f} us/step   {ratio:.3f}x raw", flush=True)


if __name__ == "__main__":
    main()
