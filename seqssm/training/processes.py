"""The processes of one job, as a launcher (torchrun, SLURM) or we ourselves started them; they talk through gloo."""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seqssm.environment import launch
from seqssm.errors import ExitCode, InputError, nearest
from seqssm.training.sizes import most_processes, require_count

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

PATIENCE = timedelta(days=30)  # the first process may count or merge for long; who dies is noticed at once anyway


class Alone:
    """One process."""

    rank, world, local_rank = 0, 1, 0

    def broadcast(self, value: Any) -> Any:
        """`value` of the first process, in every process."""
        return value

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, in every process."""
        return [value]

    def abandoned(self) -> bool:
        """Whether the process that started this one is gone."""
        return False

    def close(self, failed: bool = False) -> None:
        """Ends the group; after a failure without waiting for the others."""


class Group(Alone):
    """One of several processes.

    Args:
        rank: number of the process, from 0.
        world: number of processes.
        local_rank: number of the process on its machine.
        address: where the processes meet, ``"env://"`` or ``"file://..."``.
        parent: id of the process that started this one, None when a launcher did.
    """

    def __init__(self, rank: int, world: int, local_rank: int, address: str, parent: int | None = None) -> None:
        import torch.distributed as dist

        self.rank, self.world, self.local_rank, self.parent = rank, world, local_rank, parent
        dist.init_process_group("gloo", init_method=address, rank=rank, world_size=world, timeout=PATIENCE)

    def broadcast(self, value: Any) -> Any:
        import torch.distributed as dist

        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        import torch.distributed as dist

        box: list[Any] = [None] * self.world
        dist.all_gather_object(box, value)
        return box

    def abandoned(self) -> bool:
        return self.parent is not None and os.getppid() != self.parent

    def close(self, failed: bool = False) -> None:
        import torch.distributed as dist

        if dist.is_initialized():
            dist.destroy_process_group()


class Started(Group):
    """The first process of a group that it starts itself.

    Args:
        world: number of processes.
        work: module-level function that the others run with (their group, *args).
        args: further arguments of `work`.
    """

    def __init__(self, world: int, work: Callable[..., Any], args: tuple) -> None:
        self.meeting = tempfile.TemporaryDirectory(prefix="seqssm-")
        address = (Path(self.meeting.name) / "meet").as_uri()
        context = multiprocessing.get_context("spawn")  # a fork after CUDA or OpenMP has started does not work
        self.children = [
            context.Process(target=_child, args=(work, args, rank, world, address, os.getpid()))
            for rank in range(1, world)
        ]
        for child in self.children:
            child.start()
        try:
            super().__init__(0, world, 0, address)
        except BaseException:
            self.close(failed=True)
            raise

    def lost(self) -> str | None:
        """What became of a process that ended before its time, or None."""
        for rank, child in enumerate(self.children, 1):
            child.join(timeout=2)
            if child.exitcode is not None and child.exitcode < 0:
                return f"process {rank} was ended from outside (signal {-child.exitcode}, often lack of memory)"
        return None

    def close(self, failed: bool = False) -> None:
        for child in self.children:
            if failed:
                child.terminate()
            child.join()
        super().close(failed)
        self.meeting.cleanup()


def _child(work: Callable[..., Any], args: tuple, rank: int, world: int, address: str, parent: int) -> None:
    code = ExitCode.BUG
    try:
        group = Group(rank, world, rank, address, parent)
        work(group, *args)
        group.close()
        code = ExitCode.OK
    except KeyboardInterrupt:
        code = ExitCode.INTERRUPTED  # the terminal sends Ctrl-C to all; the first process speaks for them
    except InputError:
        pass  # the first process has the same error, and says it
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # not through the interpreter's end, where gloo's threads may outlive what they use


def launched() -> Group | None:
    """The group that torchrun or srun put this process into, or None when it runs by itself.

    Raises:
        InputError: the launcher's environment variables make no sense.
    """
    found = launch()
    if found is None:
        return None
    if found.launcher == "srun":
        from lightning.fabric.plugins.environments import SLURMEnvironment

        slurm = SLURMEnvironment()
        return Group(found.rank, found.world, found.local_rank, f"tcp://{slurm.main_address}:{slurm.main_port}")
    if "RANK" not in os.environ:
        raise InputError("WORLD_SIZE is set and RANK is not: start predict with torchrun or srun, or unset WORLD_SIZE")
    return Group(found.rank, found.world, found.local_rank, "env://")


def require_launched(trainer: Trainer) -> None:
    """Takes the rank from the trainer, which alone knows it, for everything that only the first process does.

    Raises:
        InputError: the launcher started other processes than the trainer was told of.
    """
    from lightning.pytorch.utilities import rank_zero_only

    rank_zero_only.rank = trainer.global_rank  # type: ignore[attr-defined]
    found, world = launch(), trainer.world_size
    if found is not None and found.world != world:
        machine = found.local_world or found.world
        nodes = f" --trainer.num_nodes {found.world // machine}" if machine < found.world else ""
        raise InputError(
            f"{found.launcher} started {found.world} processes, --trainer.devices asks for {world}: pass "
            f"--trainer.devices {machine}{nodes} --trainer.strategy ddp"
        )
    if trainer.strategy.root_device.type == "cpu":
        require_count(
            "--trainer.devices", trainer.num_devices, 1, most_processes(), "for the processors of this machine"
        )
    if trainer.global_rank >= world:
        raise InputError(
            f"NODE_RANK or GROUP_RANK make this process number {trainer.global_rank} of {world}: unset them"
        )


def choose_device(accelerator: str, local_rank: int) -> Any:
    """The torch device of a process.

    Args:
        accelerator: ``"auto"``, ``"cpu"``, ``"gpu"`` (or ``"cuda"``), ``"mps"``.
        local_rank: the process's number on its machine; takes the GPU of that number.

    Raises:
        InputError: there is no such device.
    """
    import torch

    if accelerator == "auto":
        accelerator = "gpu" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if accelerator not in ("cpu", "gpu", "cuda", "mps"):
        raise InputError(f"accelerator {accelerator}: one of auto, cpu, gpu, cuda, mps is needed")
    if accelerator in ("gpu", "cuda"):
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if local_rank >= count:
            raise InputError(f"--accelerator {accelerator}: process {local_rank} needs a GPU, this machine has {count}")
        torch.cuda.set_device(local_rank)
        return torch.device("cuda", local_rank)
    if accelerator == "mps" and not torch.backends.mps.is_available():
        raise InputError("--accelerator mps: this machine has no such device")
    return torch.device(accelerator)


def require_engine(name: str | None, device: Any) -> None:
    """Checks the engine that a model's `engine` argument names, before anything is computed or replaced.

    Args:
        name: the engine, None for the default of the device.
        device: torch device on which the network will run.

    Raises:
        InputError: there is no such engine, it does not serve the device, or its package is missing.
    """
    import torch
    from seqssm_kernels.contract.engines import ENGINES, EngineError, choose

    if name is None:
        return
    try:
        choose("selective_scan", name, device.type, torch.float32)
    except EngineError as error:
        raise InputError(f"--model.engine {name}: {error}{nearest(name, ENGINES)}") from None
    package = ENGINES[name].package
    if package and importlib.util.find_spec(package) is None:
        raise InputError(f"--model.engine {name}: the package {package} is not installed ({ENGINES[name].install})")
