import sys
from pathlib import Path

from repro.arena.protocol import measure
from repro.errors import ReproError, one_line
from repro.files.plan import read_arena_plan
from repro.run import measure as run
from repro.run import provenance
from repro.run.processes import here


def main(arguments: list[str] | None = None) -> int:
    """`python -m repro.arena plan.json --out DIR`: measure planned tracks where only torch and numpy are installed."""
    parser = run.Arguments(prog="python -m repro.arena", description=main.__doc__)
    parser.add_argument("plan", type=Path, help="written by `repro arena --plan`")
    parser.add_argument("--out", type=Path, required=True, help="rows go to DIR/<track>.<profile>.rows.json")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--jobs", type=run.positive)
    options = parser.parse_args(arguments)
    root = provenance.root()
    try:
        from repro.experiments.arena import SLOTS

        again = "write it with `repro arena --plan > plan.json`"
        for one in read_arena_plan(options.plan, again, SLOTS)["tracks"]:
            device = run.resolve_device(options.device, one["profile"])
            document = measure(
                one,
                root,
                device=device,
                jobs=options.jobs or run.default_jobs(device),
                force=False,
                progress=run.Progress(),
            )
            run.write_rows(options.out / f"{one['track']}.{one['profile']}.rows.json", document)
    except ReproError as error:
        print(one_line(error), file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(here("repro.arena", main))
