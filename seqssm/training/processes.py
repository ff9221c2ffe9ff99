"""Process groups, started by a launcher (torchrun, SLURM) or by this package, that communicate through gloo."""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seqssm.environment import launch
from seqssm.errors import ExitCode, InputError, nearest
from seqssm.files.notes import silence
from seqssm.training.sizes import TIMEOUT, most_processes, require_count

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

PATIENCE = timedelta(days=30)  # timeout of collective calls; processes are monitored by their heartbeats instead
START = 120.0  # the same during start-up, until all have loaded their libraries and the model
LOOK = 0.2  # seconds between checks of the other processes


class SingleProcess:
    """One process."""

    rank, world, local_rank = 0, 1, 0
    timeout = TIMEOUT  # seconds to wait for a process without progress

    def broadcast(self, value: Any) -> Any:
        """Return the `value` of rank 0 in every process."""
        return value

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all processes in every process."""
        return [value]

    def beat(self) -> None:
        """Send a heartbeat: shows the other processes that this one makes progress; called during long steps."""

    def close(self, failed: bool = False) -> None:
        """Close the group; after a failure, without waiting for the other processes."""


class ProcessGroup(SingleProcess):
    """One of several processes.

    Args:
        rank: rank of the process, from 0.
        world: number of processes.
        local_rank: rank of the process on its machine.
        address: rendezvous address: ``"env://"``, ``"tcp://..."``, or a file.
        parent: process id of the parent; None if started by a launcher.
    """

    def __init__(self, rank: int, world: int, local_rank: int, address: str | Path, parent: int | None = None) -> None:
        import torch.distributed as dist

        self.rank, self.world, self.local_rank, self.parent = rank, world, local_rank, parent
        self.beats, self.beaten = 0, 0.0
        if parent is not None:
            threading.Thread(target=self._end_with_parent, daemon=True).start()
        how: dict[str, Any] = {"init_method": address}
        if isinstance(address, Path):
            how = {"store": dist.FileStore(str(address), world)}
            self._wait_for_all(how["store"])
        dist.init_process_group("gloo", rank=rank, world_size=world, timeout=PATIENCE, **how)

    def _wait_for_all(self, store: Any) -> None:
        """Wait until all processes have reached the store, or one has ended."""
        store.set(f"here-{self.rank}", "")
        names, began = [f"here-{rank}" for rank in range(self.world)], time.monotonic()
        while not store.check(names):
            self.require_others()
            if time.monotonic() - began > self.timeout:
                raise InputError(f"another process did not start within {self.timeout:g} s; --resume continues")
            time.sleep(LOOK)

    def require_others(self) -> None:
        """Raise RuntimeError if another process is known to have ended."""

    def _end_with_parent(self) -> None:
        while os.getppid() == self.parent:
            time.sleep(LOOK)
        os._exit(ExitCode.INPUT)

    def beat(self) -> None:
        now = time.monotonic()
        if now - self.beaten >= min(1.0, self.timeout / 4):
            self.beats, self.beaten = self.beats + 1, now
            _store().set(f"beat-{self.rank}", str(self.beats))

    def _meet(self) -> None:
        """Wait for all processes.

        Raises:
            InputError: a missing process makes no progress for `timeout` seconds.
            RuntimeError: a process has ended.
        """
        import torch.distributed as dist

        work = dist.barrier(async_op=True)
        known, since = self._progress(), time.monotonic()
        while not work.is_completed():
            self.require_others()
            time.sleep(min(LOOK, self.timeout / 10))
            found = self._progress()
            if found != known:
                known, since = found, time.monotonic()
            if time.monotonic() - since > self.timeout:
                raise InputError(
                    f"another process made no progress for {self.timeout:g} s; --timeout SECONDS waits longer, "
                    "--resume continues"
                )
        work.wait()

    def _progress(self) -> list[bytes]:
        names = [f"beat-{rank}" for rank in range(self.world) if rank != self.rank]
        return [_store().get(name) for name in names if _store().check([name])]

    def broadcast(self, value: Any) -> Any:
        import torch.distributed as dist

        self._meet()
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        import torch.distributed as dist

        self._meet()
        box: list[Any] = [None] * self.world
        dist.all_gather_object(box, value)
        return box

    def close(self, failed: bool = False) -> None:
        import torch.distributed as dist

        if dist.is_initialized():
            dist.destroy_process_group()


class SpawnedGroup(ProcessGroup):
    """Rank 0 of a group whose other processes it starts.

    Args:
        world: number of processes.
        work: module-level function run in the other processes with (their group, *args).
        args: further arguments of `work`.
    """

    def __init__(self, world: int, work: Callable[..., Any], args: tuple) -> None:
        self.meeting = tempfile.TemporaryDirectory(prefix="seqssm-")
        address = Path(self.meeting.name) / "meet"
        context = multiprocessing.get_context("spawn")  # fork does not work once CUDA or OpenMP is initialised
        self.children = [
            context.Process(target=_child, args=(work, args, rank, world, address, os.getpid()))
            for rank in range(1, world)
        ]
        for child in self.children:
            child.start()
        self.gone, self.closing = threading.Event(), threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()
        try:
            super().__init__(0, world, 0, address)
        except BaseException as error:
            lost = self.lost() if self.gone.is_set() else None
            self.close(failed=True)
            if lost:
                raise InputError(f"{lost}; --resume continues") from error
            raise

    def _watch(self) -> None:
        """Record that another process was killed; this one ends at its next heartbeat or barrier."""
        while not self.closing.wait(LOOK):
            if any(child.exitcode is not None and child.exitcode < 0 for child in self.children):
                self.gone.set()
                return

    def require_others(self) -> None:
        if self.gone.is_set():
            raise RuntimeError("another process was killed")

    def beat(self) -> None:
        self.require_others()
        super().beat()

    def lost(self) -> str | None:
        """Describe a process that ended prematurely; None if there is none."""
        for rank, child in enumerate(self.children, 1):
            child.join(timeout=2)
            if child.exitcode is not None and child.exitcode < 0:
                return f"process {rank} was killed (signal {-child.exitcode}, often for lack of memory)"
        return None

    def close(self, failed: bool = False) -> None:
        self.closing.set()
        for child in self.children:
            if failed:
                child.terminate()
                child.join(timeout=5)
                if child.is_alive():
                    child.kill()
            child.join()
        super().close(failed)  # after the other processes have ended
        self.meeting.cleanup()


def _store() -> Any:
    from torch.distributed.distributed_c10d import _get_default_store

    return _get_default_store()


def _child(work: Callable[..., Any], args: tuple, rank: int, world: int, address: Path, parent: int) -> None:
    code = ExitCode.BUG
    try:
        group = ProcessGroup(rank, world, rank, address, parent)
        work(group, *args)
        group.close()
        code = ExitCode.OK
    except KeyboardInterrupt:
        code = ExitCode.INTERRUPTED  # the terminal sends Ctrl-C to all processes; rank 0 reports it
    except InputError:
        pass  # rank 0 has the same error and reports it
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # skip interpreter shutdown, during which gloo's threads may crash


def launched() -> ProcessGroup | None:
    """Return the process group set up by torchrun or srun; None without a launcher.

    Raises:
        InputError: the launcher's environment variables are inconsistent.
    """
    found = launch()
    if found is None:
        return None
    if found.launcher == "srun":
        from lightning.fabric.plugins.environments import SLURMEnvironment

        slurm = SLURMEnvironment()
        return ProcessGroup(found.rank, found.world, found.local_rank, f"tcp://{slurm.main_address}:{slurm.main_port}")
    if "RANK" not in os.environ:
        raise InputError("WORLD_SIZE is set and RANK is not: start predict with torchrun or srun, or unset WORLD_SIZE")
    return ProcessGroup(found.rank, found.world, found.local_rank, "env://")


def require_launched(trainer: Trainer) -> None:
    """Take the rank from the trainer, for everything that only rank 0 does; other ranks print no notes.

    Raises:
        InputError: the launcher started a different number of processes than the trainer expects.
    """
    from lightning.pytorch.utilities import rank_zero_only

    rank_zero_only.rank = trainer.global_rank  # type: ignore[attr-defined]
    silence(trainer.global_rank != 0)
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
    """Return the torch device of a process.

    Args:
        accelerator: ``"auto"``, ``"cpu"``, ``"gpu"`` (or ``"cuda"``), ``"mps"``.
        local_rank: rank of the process on its machine, used as the GPU index.

    Raises:
        InputError: no such device.
    """
    import torch

    if accelerator == "auto":
        accelerator = "gpu" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if accelerator not in ("cpu", "gpu", "cuda", "mps"):
        raise InputError(f"accelerator {accelerator}: expected one of auto, cpu, gpu, cuda, mps")
    if accelerator in ("gpu", "cuda"):
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if local_rank >= count:
            raise InputError(f"--accelerator {accelerator}: process {local_rank} needs a GPU, this machine has {count}")
        torch.cuda.set_device(local_rank)
        use_float32_convolutions()
        return torch.device("cuda", local_rank)
    if accelerator == "mps" and not torch.backends.mps.is_available():
        raise InputError("--accelerator mps: this machine has no such device")
    return torch.device(accelerator)


def use_float32_convolutions() -> None:
    """Compute float32 convolutions on NVIDIA GPUs in float32, as on CPUs: PyTorch's default rounds factors to TF32."""
    import torch

    torch.backends.cudnn.allow_tf32 = False


def require_engine(name: str | None, device: Any) -> None:
    """Check the value of a model's `engine` argument, before anything is computed or replaced.

    Args:
        name: name of the engine; None for the default of the device.
        device: torch device of the network.

    Raises:
        InputError: no such engine, it does not serve the device, or its package is not installed.
    """
    import torch
    from seqssm_kernels.contract.engines import ENGINES, EngineError, choose_engine

    if name is None:
        return
    try:
        choose_engine("selective_scan", name, device.type, torch.float32)
    except EngineError as error:
        raise InputError(f"--model.engine {name}: {error}{nearest(name, ENGINES)}") from None
    package = ENGINES[name].package
    if package and importlib.util.find_spec(package) is None:
        raise InputError(f"--model.engine {name}: the package {package} is not installed ({ENGINES[name].install})")
