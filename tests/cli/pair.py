"""One of two processes, as torchrun would start them: runs the command lines of a JSON file in turn."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
from torch.nn.modules.batchnorm import _BatchNorm


def still_statistics(init=_BatchNorm.__init__):
    """Return a constructor of batch normalisation with frozen running statistics: each process sees different data."""

    def without_momentum(self, *args, **kwargs):
        init(self, *args, **{**kwargs, "momentum": 0.0})

    return without_momentum


if __name__ == "__main__":
    from seqssm.cli.main import main

    torch.set_num_threads(1)
    _BatchNorm.__init__ = still_statistics()
    for port, argv in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
        os.environ["MASTER_PORT"] = str(port)
        os.environ.pop("PL_GLOBAL_SEED", None)
        code = main(argv)
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        if code:
            sys.exit(f"{argv} ended with {code}")
