"""Rejects absurd sizes before anything is allocated: weights against free memory, counts against bounds.

Imports torch only to count weights, because help pages read the bounds.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seqssm.bounds import Bounds
from seqssm.errors import InputError

if TYPE_CHECKING:
    import torch
    from torch import nn

LARGEST_BATCH = 1_000_000  # records
TIMEOUT = 1800.0  # seconds without a sign of life after which a process counts as hung
WAITING = "time limit for waiting for another process"  # help line of --timeout
PATIENCE = Bounds(0, 30 * 86_400, above=True)  # of --timeout, seconds: up to 30 days
MOST_LAYERS = 1000
MOST_PROCESSES = 100_000  # of one job on all machines
MOST_THREADS = 1024  # of a CPU run; a checkpoint of a larger machine loads on a smaller one
DEPTHS = ("layers", "depth", "n_layers", "num_layers")  # names of arguments that count layers
MOST_TENSORS = 20_000  # weights of a network; the deepest published ones have a tenth of that
TRAINING_COPIES = 4  # weights, gradients, and two moments of AdamW


def processors() -> int:
    """Return the number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def most_processes() -> int:
    """Return the largest sensible number of loader processes, or of CPU processes in one job, on this machine."""
    return max(32, 8 * processors())


def require_sizes(**sizes: int) -> None:
    """Raise InputError for the first argument of a network that counts something and is below 1.

    Args:
        **sizes: arguments of a network by name.
    """
    for name, size in sizes.items():
        if size < 1:
            raise InputError(f"--model.{name} {size}: must be at least 1")


def require_rates(**rates: float) -> None:
    """Raise InputError for the first dropout probability of a network, or other rate, outside [0, 1).

    Args:
        **rates: arguments of a network by name.
    """
    for name, rate in rates.items():
        if not 0 <= rate < 1:
            raise InputError(f"--model.{name} {rate}: must be in [0, 1)")


def require_count(flag: str, value: int, least: int, most: int, bound: str) -> None:
    """Raise InputError unless ``least <= value <= most``.

    Args:
        flag: the option, for the message.
        value: its value.
        least: smallest value.
        most: largest value.
        bound: meaning of `most`, for the message.
    """
    Bounds(least, most, meaning=bound).require(flag, value)


def free_bytes(device: torch.device) -> int | None:
    """Return the free memory of a device in bytes; None if unknown."""
    if device.type == "cuda":
        import torch

        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        return None


def for_weights() -> contextlib.AbstractContextManager:
    """Context in which initial weights are made: on the CPU, so that a seed gives the same on every device.

    On the meta device, where weights are only counted, nothing changes.
    """
    import torch

    return contextlib.nullcontext() if torch.get_default_device().type == "meta" else torch.device("cpu")


def require_depth(hparams: Mapping[str, Any]) -> None:
    """Raise InputError for a number of layers that would take too long to count."""
    for name in DEPTHS:
        value = hparams.get(name)
        if isinstance(value, int) and value > MOST_LAYERS:
            raise InputError(f"--model.{name} {value}: at most {MOST_LAYERS}")


def require_fits(build: Callable[[], nn.Module], most_bytes: int | None, bound: str) -> None:
    """Build a network on the meta device, which allocates nothing, and check the size of its weights.

    Args:
        build: builds the network; the caller calls it again afterwards.
        most_bytes: maximum size of the weights, None for no bound.
        bound: meaning of `most_bytes`, for the message.

    Raises:
        InputError: the weights are larger, there are absurdly many of them, or a size overflows.
    """
    import torch
    from torch.nn.modules.module import register_module_parameter_registration_hook

    count = Count(most_bytes, bound)
    hook = register_module_parameter_registration_hook(count.add)
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            build()
    except (OverflowError, MemoryError) as error:
        raise InputError(f"--model: a size is too large ({error})") from None
    except (RuntimeError, TypeError) as error:
        if _is_size(error):
            first = " ".join(str(error).splitlines()[0].split())[:150]
            raise InputError(f"--model: a size is too large ({first})") from None
        # other errors of a constructor on the meta device: the real construction decides
    except NotImplementedError:
        pass
    finally:
        hook.remove()


def _is_size(error: Exception) -> bool:
    text = str(error).lower()
    return any(
        word in text for word in ("overflow", "numel", "storage size", "too large", "int too big", "must be int")
    )


class Count:
    """Sums the sizes of registered weights, and stops at a bound.

    Args:
        most_bytes: the bound, None for none.
        bound: description of the bound, for the message.
    """

    def __init__(self, most_bytes: int | None, bound: str) -> None:
        self.most_bytes, self.bound = most_bytes, bound
        self.bytes = self.tensors = 0

    def add(self, module: nn.Module, name: str, parameter: Any) -> None:
        if parameter is None or parameter.device.type != "meta":
            return
        self.tensors += 1
        self.bytes += parameter.numel() * parameter.element_size()
        if self.tensors > MOST_TENSORS:
            raise InputError(f"--model: more than {MOST_TENSORS} weight tensors; use fewer layers")
        if self.most_bytes is not None and self.bytes > self.most_bytes:
            raise InputError(
                f"--model: the weights need more than {_readable(self.most_bytes)}, {self.bound}; use a smaller model"
            )


def _readable(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
