"""Whether weight decay would move the arena's optimizers: validation loss with decoupled decay, on tuning seeds.

    python dev/benchmarks/arena_decay.py [--track gpt] [--cell 1] [--decays 0 0.01 0.1 1]

The rates are those that the arena's table has for the arms.  After each step matrices are multiplied by 1 - lr * decay,
whatever the optimizer; gains, shifts and biases are left alone.
"""

import argparse
from statistics import fmean, stdev

import torch

from repro.arena import protocol
from repro.errors import Diverged
from repro.experiments import arena
from repro.run.provenance import root

ARMS = (
    "optimizer:torch.AdamW",
    "optimizer:torch.Muon",
    "optimizer:pytorch_optimizer.SOAP",
    "optimizer:pytorch_optimizer.Lion",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--track", default="gpt")
    parser.add_argument("--profile", default="long")
    parser.add_argument("--cell", type=int, default=1)
    parser.add_argument("--arms", nargs="+", default=ARMS)
    parser.add_argument("--decays", nargs="+", type=float, default=[0.0, 0.01, 0.1, 1.0])
    options = parser.parse_args()
    settings = protocol.track_of(root(), options.track, options.profile)
    cell, table = settings["cells"][options.cell - 1], protocol.read(root(), options.track, options.profile, "table")
    lines = {line["arm"]: line for line in table["cells"][options.cell - 1]["slots"]["optimizer"]["lines"]}
    seeds = range(protocol.TUNING, protocol.TUNING + settings["tuning"]["seeds"])
    for arm in options.arms:
        for decay in options.decays:
            config = arena.Track(
                **{**settings["settings"], **cell, "lr": lines.get(arm, lines.get("base"))["lr"], "decay": decay}
            )
            found = arena.trained(options.track, arm, list(seeds), config, torch.device("cpu"))
            losses = [one["valid_nats"] for one in found if not isinstance(one, Diverged)]
            spread = f"deviation {stdev(losses):.4f}, n = {len(losses)}"
            print(f"{arm:40} lr {config.lr:g} decay {decay:g}: {fmean(losses):.4f} ({spread})", flush=True)


if __name__ == "__main__":
    main()
