"""One of two processes that a launcher would start: runs the command lines of a JSON file, one after the other."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
from torch.nn.modules.batchnorm import _BatchNorm

LAUNCHERS = ("torchrun", "srun")


def environment(launcher: str, rank: int, port: int) -> dict[str, str]:
    """The variables that a launcher sets for one of two processes on this machine."""
    if launcher == "torchrun":
        counts = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "x"}
        ranks = ("RANK", "LOCAL_RANK")
    else:
        counts = {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_STEP_NUM_TASKS": "2", "SLURM_NNODES": "1"}
        counts |= {"SLURM_JOB_ID": "1", "SLURM_JOB_NAME": "fit", "SLURM_NODELIST": "localhost", "SLURM_NODEID": "0"}
        ranks = ("SLURM_PROCID", "SLURM_LOCALID")
    return {**counts, **dict.fromkeys(ranks, str(rank)), "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}


def still_statistics(init=_BatchNorm.__init__):
    """Return a constructor of batch normalisation with frozen running statistics: each process sees different data."""

    def without_momentum(self, *args, **kwargs):
        init(self, *args, **{**kwargs, "momentum": 0.0})

    return without_momentum


if __name__ == "__main__":
    from seqssm.cli.main import main

    torch.set_num_threads(1)
    _BatchNorm.__init__ = still_statistics()
    for port, launcher, argv in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
        for name in {name for other in LAUNCHERS for name in environment(other, 0, 0)}:
            os.environ.pop(name, None)
        os.environ |= environment(launcher, int(sys.argv[2]), port)
        os.environ.pop("PL_GLOBAL_SEED", None)
        code = main(argv)
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        if code:
            sys.exit(f"{argv} by {launcher} ended with {code}")
