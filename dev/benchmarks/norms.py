"""Time and bandwidth of normalization layers, forward and backward, as a share of what a plain copy reaches.

    python dev/benchmarks/norms.py [--device cuda --dtype bfloat16 --graph --cold] [--rows 4096 --width 1024]
        [--compile]

Input (rows, width), normalized over the last axis, with gain and (layer norm) bias.  Traffic is counted as the least
possible, five passes over the tensor: read x and write y; read x and dy and write dx.  Time is CPU time of one thread,
on CUDA event time; see repro.timing.  Compare within one run only.
"""

import argparse
import sys

import torch
from torch import Tensor
from torch.nn import functional as F

from repro.errors import InvalidMeasurement, ReproError
from repro.timing import compare

EPS = 1e-5


def composed_layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Layer norm from elementary operators, as frameworks ran it in 2019."""
    centred = x - x.mean(-1, keepdim=True)
    return weight * centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + EPS) + bias


def composed_rms_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPS)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.layer_norm(x, weight.shape, weight, bias, EPS)


def rms_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.rms_norm(x, weight.shape, weight, EPS)


NORMS = {
    "F.layer_norm": layer_norm,
    "F.rms_norm": rms_norm,
    "composed layer norm": composed_layer_norm,
    "composed rms norm": composed_rms_norm,
}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--blocks", type=int, default=20)
    parser.add_argument("--calls", type=int, default=5, help="per block and norm")
    parser.add_argument("--threads", type=int, default=1, help="of torch on the CPU; more than one means wall time")
    parser.add_argument("--aa-limit", type=float, default=0.02, help="largest A/A gap that counts")
    parser.add_argument("--compile", action="store_true", help="time each norm under torch.compile as well")
    parser.add_argument("--cold", action="store_true", help="overwrite the cache before each call")
    parser.add_argument("--graph", action="store_true", help="CUDA: replay graphs instead of plain calls")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)

    generator = torch.Generator().manual_seed(0)
    x, dy = (
        torch.randn(options.rows, options.width, generator=generator).to(options.device, getattr(torch, options.dtype))
        for _ in range(2)
    )
    x.requires_grad_()
    weight, bias = torch.ones_like(x[0], requires_grad=True), torch.zeros_like(x[0], requires_grad=True)

    def pass_through(norm):
        def call() -> None:
            torch.autograd.grad(norm(x, weight, bias), (x, weight, bias), dy, allow_unused=True)

        return call

    norms = dict(NORMS)
    if options.compile:
        norms |= {f"{name}, compiled": torch.compile(norm) for name, norm in NORMS.items()}
    try:
        timings = compare(
            {name: pass_through(norm) for name, norm in norms.items()},
            reference="F.layer_norm",
            device=options.device,
            blocks=options.blocks,
            calls=options.calls,
            aa_limit=options.aa_limit,
            bytes_moved=dict.fromkeys(norms, 5 * x.nbytes),
            cold=options.cold,
            graph=options.graph,
        )
    except (InvalidMeasurement, ReproError) as error:
        print(error, file=sys.stderr)
        return 2 if isinstance(error, ReproError) else 1

    print(f"{options.device} {options.dtype} ({options.rows}, {options.width}), forward and backward, milliseconds")
    print(f"{'':32}{'p20':>9}{'p50':>9}{'p80':>9}{'wall':>9}{'relative':>10}{'GB/s':>8}{'of copy':>9}{'peak MB':>9}")
    for name, timing in timings.items():
        row = timing.measures()
        times = "".join(f"{1e3 * row[key]:9.3f}" for key in ("p20", "p50", "p80", "wall_seconds"))
        rest = f"{row['relative']:10.3f}{row['bytes_per_s'] / 1e9:8.1f}{row['copy_fraction']:9.1%}"
        print(f"{name:32}{times}{rest}{row['peak_bytes'] / 1e6:9.1f}")
    print(
        f"copy {row['copy_bytes_per_s'] / 1e9:.1f} GB/s; A/A arms {row['aa_gap']:.1%} apart after {row['blocks']:.0f} "
        f"blocks; wall over CPU time {row['contention']:.2f}"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
