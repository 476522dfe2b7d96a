"""One large trial over several processes of a machine: data parallel through `train.fit`, watched by torchrun.

A profile asks for it: `ranks: 8` in the settings of an experiment.  A rank that dies ends the others; torchrun starts
all again, and every `fit` goes on from its last checkpoint.  An exception of the experiment is an answer, not retried.
The number of ranks is part of a trial's key: rows of another number of ranks are other rows.
"""

import json
import os
import shutil
import subprocess
import sys
import time
import traceback
from pathlib import Path

from repro.errors import Failed
from repro.run.processes import TryAgain, die_with_parent
from repro.store import write_file

RESTARTS = 3  # of all ranks, before the trial counts as lost
PATIENCE = 4.0  # seconds: a peer that died looks like an exception too, but then torchrun ends this rank meanwhile


def execute(unit: dict) -> list[dict]:
    """The results of a unit whose `ranks` share one trial; `unit["scratch"]` is the folder of its checkpoints.

    Raises Failed with what the experiment raised.  Ends this process where torchrun gave up: the engine tries again,
    and the checkpoints are still there.
    """
    folder = Path(unit["scratch"])
    answer = folder / "answer.json"
    answer.unlink(missing_ok=True)
    write_file(folder / "unit.json", json.dumps(unit))
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(unit["ranks"]),
        "--max-restarts",
        str(RESTARTS),
        "--monitor-interval",
        "0.2",
        "--module",
        "repro.run.engines.ranks",
        str(folder),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # torchrun's own default, without its warning
    ended = subprocess.run(command, stdout=sys.stderr, env=environment, preexec_fn=die_with_parent)
    if not answer.exists():
        raise TryAgain(f"torchrun ended with code {ended.returncode} and no answer")
    found = json.loads(answer.read_text())
    shutil.rmtree(folder)
    if "error" in found:
        print(found["traceback"], file=sys.stderr)
        raise Failed(found["error"])
    return found["results"]


def join(backend: str) -> None:
    """Make the process group of this attempt.

    The store of torchrun outlives its attempts, and a rank that read there the address of a dead one would wait for it
    without end: the keys of each attempt have a prefix of their own.
    """
    import torch.distributed as dist

    store = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
    store = dist.PrefixStore(f"attempt {os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group(backend, store=store, rank=rank, world_size=world)


def main() -> None:
    """One rank."""
    die_with_parent()
    folder = Path(sys.argv[1])
    answer = folder / "answer.json"
    if answer.exists():  # a rank has answered already, by an exception: nothing is left to do
        return
    import torch
    import torch.distributed as dist

    from repro import train
    from repro.run import execute as inside

    unit = json.loads((folder / "unit.json").read_text())
    torch.set_num_threads(1)
    cuda = unit["device"].startswith("cuda")
    join("nccl" if cuda else "gloo")
    if cuda:
        torch.cuda.set_device(dist.get_node_local_rank())
        unit["device"] = f"cuda:{dist.get_node_local_rank()}"
    train.CHECKPOINTS = folder
    try:
        found = {"results": inside.execute({**unit, "ranks": None}, watch=True)}
    except BaseException as error:
        found = {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
        time.sleep(PATIENCE)
        if not answer.exists():
            write_file(answer, json.dumps(found))
        os._exit(1)  # without a farewell to ranks that wait in a collective; torchrun ends them
    dist.barrier()
    if dist.get_rank() == 0:
        write_file(answer, json.dumps(found, allow_nan=False))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
