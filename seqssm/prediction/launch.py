"""The process group of a prediction job: the launcher's, processes started here, or this process alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from seqssm.errors import InputError
from seqssm.prediction.job import Job, run_job
from seqssm.training import processes as groups
from seqssm.training.sizes import most_processes, require_count


@contextmanager
def processes(devices: str | None, job: Job) -> Iterator[groups.SingleProcess]:
    """Return the process group of the job: the launcher's, processes started here, or this process alone."""
    group: groups.SingleProcess | None = groups.launched()
    if group is None:
        count = device_count(devices, job.accelerator)
        group = groups.SingleProcess() if count == 1 else groups.SpawnedGroup(count, run_job, (job,))
    try:
        yield group
    except BaseException as error:
        lost = None
        if isinstance(group, groups.SpawnedGroup) and (isinstance(error, RuntimeError) or group.gone.is_set()):
            lost = group.lost()
        group.close(failed=True)
        if lost:
            raise InputError(f"{lost}; --resume continues") from error
        raise
    group.close()


def device_count(devices: str | None, accelerator: str) -> int:
    """Return the number of processes that ``--devices`` requests."""
    import torch

    gpus = torch.cuda.device_count() if accelerator in ("auto", "gpu", "cuda") else 0
    if devices is None:
        return 1
    if devices == "auto":
        return max(1, gpus)
    if not devices.isdigit() or int(devices) < 1:
        raise InputError(f"--devices {devices}: expected a number of processes, or auto")
    if not gpus:
        require_count("--devices", int(devices), 1, most_processes(), "for the processors of this machine")
    if gpus and int(devices) > gpus:
        raise InputError(f"--devices {devices}: this machine has {gpus} GPUs")
    return int(devices)
