"""`fit_batched` against `fit` seed by seed: model-steps a second, one thread (or one GPU).

    python dev/benchmarks/batched_seeds.py [--rounds 5] [--device cpu] [--only small]

Goals on a CPU core: 4x for the width-32 MLP with 32 seeds, 1.5x for the 100k-parameter MLP with 8.  The case with 784
inputs has the same width but is bound by its first product, which stacking cannot shorten.
"""

import argparse
import statistics
import time

import torch

from repro.batched import fit_batched
from repro.models.mlp import MLP
from repro.models.slots import identity
from repro.papers.batchnorm import BatchNorm
from repro.papers.layernorm import LayerNorm
from repro.timing import steady_malloc
from repro.train import fit, generator

CASES = {  # name: (widths, norm, batch, seeds)
    "small": ((64, 32, 32, 10), identity, 64, 32),
    "small784": ((784, 32, 32, 10), identity, 64, 32),
    "small-bn": ((64, 32, 32, 10), BatchNorm, 64, 32),
    "small-ln": ((64, 32, 32, 10), LayerNorm, 64, 32),
    "large": ((784, 100, 100, 100, 10), identity, 128, 8),
    "large-bn": ((784, 100, 100, 100, 10), BatchNorm, 128, 8),
    "large-ln": ((784, 100, 100, 100, 10), LayerNorm, 128, 8),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", choices=CASES)
    options = parser.parse_args()
    torch.set_num_threads(1)
    steady_malloc()
    clock = time.process_time if options.device == "cpu" else time.perf_counter
    for case in [options.only] if options.only else CASES:
        widths, norm, batch, count = CASES[case]
        source = generator("data", 0)
        x = torch.randn(20_000, widths[0], generator=source).to(options.device)
        y = torch.randint(10, (20_000,), generator=source).to(options.device)
        seeds, common = list(range(count)), {"steps": options.steps, "batch": batch, "lr": 1e-3, "optimizer": "adam"}
        times: dict[str, list[float]] = {"sequential": [], "batched": []}
        for turn in range(options.rounds + 1):
            for name in times:
                models = [MLP(widths, norm=norm, generator=generator("model", s)).to(options.device) for s in seeds]
                began = clock()
                if name == "batched":
                    fit_batched(models, (x, y), seeds=seeds, **common)
                else:
                    for model, seed in zip(models, seeds, strict=True):
                        fit(model, (x, y), seed=seed, **common)
                if turn:  # the first round warms up
                    times[name].append(clock() - began)
        rate = {name: count * options.steps / statistics.median(t) for name, t in times.items()}
        gain = statistics.median(a / b for a, b in zip(*times.values(), strict=True))
        print(
            f"{case:9} {count:3} seeds   sequential {rate['sequential']:8.0f}/s   batched {rate['batched']:8.0f}/s   "
            f"{gain:.2f}x",
            flush=True,
        )


if __name__ == "__main__":
    main()
