"""Environment variables of this package, in one table, and those that a launcher sets for its processes."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from seqssm.errors import ExitCode, InputError

CHECKPOINT_SECONDS = "SEQSSM_CHECKPOINT_SECONDS"
DATA = "SEQSSM_DATA"

VARIABLES: dict[str, tuple[str, str]] = {
    DATA: ("folders", "folders with public data sets, laid out as <domain>/<path>"),
    CHECKPOINT_SECONDS: ("seconds", "seconds between checkpoints within an epoch (default 600)"),
    "SEQSSM_CHECK": ("switch", "1 also checks order tables on a GPU"),
    "SEQSSM_TRITON_CONFIG": ("file", "block sizes of the GPU kernels, written by bench_gpu.py --tune"),
}
"""Variable name -> (kind of value, meaning)."""

RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID")
COUNTS = ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "SLURM_NTASKS", "SLURM_STEP_NUM_TASKS", "MASTER_PORT")


class Interrupts:
    """Handler of SIGINT and SIGTERM that notes the interrupt, which a library may drop or make another exception of.

    A function that C code calls back drops it; so does numba's compiler. Half-imported modules fail with other errors.

    Attributes:
        came: whether there was an interrupt.
    """

    came = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Raise KeyboardInterrupt, as Python's own handler does; end the process if PyTorch is being imported.

        An exception in the middle of that import, before which nothing is begun, aborts the process with a dump.
        """
        self.came = True
        while frame is not None:
            if frame.f_code.co_name == "<module>" and frame.f_globals.get("__name__") == "torch":
                if speaks():
                    os.write(2, b"seqssm: interrupted\n")
                os._exit(ExitCode.INTERRUPTED)
            frame = frame.f_back
        raise KeyboardInterrupt

    def check(self) -> None:
        """Raise KeyboardInterrupt if there was an interrupt that did not end the work."""
        if self.came:
            raise KeyboardInterrupt


INTERRUPTS = Interrupts()


def check_variables() -> None:
    """Check the values of all variables that this package or a launcher reads.

    Raises:
        InputError: a variable has a value of the wrong kind.
    """
    for name, (kind, _) in VARIABLES.items():
        value = os.environ.get(name)
        if value and (problem := _problem(kind, value)):
            raise InputError(f"{name}={value}: {problem}; correct or unset the environment variable")
    for name in (*RANKS, *COUNTS):
        value = os.environ.get(name)
        if value is not None and not value.isdecimal():
            raise InputError(f"{name}={value}: expected an integer of at least 0; unset the environment variable")


def _problem(kind: str, value: str) -> str | None:
    """Describe what is wrong with `value`; None if nothing is."""
    if kind == "seconds":
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        return None if 0 <= number < math.inf else "expected a number of seconds, at least 0"
    if kind == "switch":
        return None if value in ("0", "1") else "expected 0 or 1"
    if kind == "file":
        return None if Path(value).is_file() else "no such file"
    for folder in value.split(os.pathsep):
        if folder and Path(folder).exists() and not Path(folder).is_dir():
            return f"{folder} is a file, not a folder" if folder != value else "is a file, not a folder"
    return None


def checkpoint_seconds() -> float:
    """Return the number of seconds between checkpoints within an epoch."""
    return float(os.environ.get(CHECKPOINT_SECONDS) or 600)


@dataclass(frozen=True)
class Launch:
    """Rank and world size of this process, as set by a launcher.

    Attributes:
        launcher: ``"torchrun"``, ``"srun"``, or ``"the environment"`` for any other.
        rank: global rank of the process.
        world: total number of processes.
        local_rank: rank of the process on its machine.
        local_world: number of processes on this machine, None if unknown.
    """

    launcher: str
    rank: int
    world: int
    local_rank: int
    local_world: int | None = None


def launch() -> Launch | None:
    """Read what torchrun, srun, Lightning or the user's script sets for this process; None without a launcher.

    A rank alone is not sufficient evidence: shells, container images and notebooks inherit ``LOCAL_RANK``, ``RANK``,
    ``NODE_RANK`` or ``SLURM_PROCID`` from unrelated jobs. A launcher also sets the number of processes and, except for
    srun, the rendezvous address.

    Raises:
        InputError: a value is not a number, or the rank is not below the number of processes.
    """
    check_variables()
    world = _number("WORLD_SIZE", 1)
    elastic = "TORCHELASTIC_RUN_ID" in os.environ
    if world > 1 and (elastic or "MASTER_ADDR" in os.environ) and {"RANK", "LOCAL_RANK"} & os.environ.keys():
        local = _number("LOCAL_RANK", 0)
        local_world = _number("LOCAL_WORLD_SIZE", 0) or None
        # without RANK it is only known whether this is rank 0, which is all that callers need in that case
        rank = _number("RANK", min(_number("NODE_RANK", 0) + local, world - 1))
        return _checked(Launch("torchrun" if elastic else "the environment", rank, world, local, local_world))
    tasks = _number("SLURM_STEP_NUM_TASKS", 1)  # set by srun only, not in the batch script around it
    if tasks > 1 and "SLURM_PROCID" in os.environ:
        return _checked(Launch("srun", _number("SLURM_PROCID", 0), tasks, _number("SLURM_LOCALID", 0)))
    return None


def speaks() -> bool:
    """Whether this process reports the end of a job."""
    try:
        found = launch()
    except InputError:
        return True
    return found is None or found.rank == 0


def processes_announced() -> int:
    """Return the number of processes set by a launcher, possibly by one that has ended."""
    check_variables()
    return max(_number("WORLD_SIZE", 1), _number("SLURM_STEP_NUM_TASKS", 1))


def _number(name: str, default: int) -> int:
    value = os.environ.get(name)
    return default if value is None else int(value)


def _checked(found: Launch) -> Launch:
    if found.rank >= found.world:
        raise InputError(
            f"{found.launcher} sets rank {found.rank} of {found.world} processes: ranks are counted from 0; "
            "check the environment variables"
        )
    return found


def drop_stray_ranks() -> list[str]:
    """Remove rank variables that Lightning would trust although no launcher started this process.

    Processes on several machines need a rendezvous address, so ranks without one are stale.

    Returns:
        The removed variables whose value was not zero, as ``NAME=value``.
    """
    check_variables()
    if "MASTER_ADDR" in os.environ or "TORCHELASTIC_RUN_ID" in os.environ:
        return []
    found = []
    for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK"):
        value = os.environ.pop(name, "0")
        if int(value):
            found.append(f"{name}={value}")
    return found
