"""Sums of the partial results of threads or channel groups, in a fixed order and in the calling thread."""

from __future__ import annotations

from functools import cache
from typing import Any

from numba import types
from torch import Tensor

from seqssm_kernels.cpu import rows as k
from seqssm_kernels.cpu.compile import compiled, source_key
from seqssm_kernels.cpu.memory import fresh


@cache
def adder() -> Any:
    """Return the compiled kernel."""
    return compiled(
        k.make_adder(source_key("cpu/lanes", "cpu/rows")), types.void(*[types.int64] * 4), "sums over parts"
    )


def added(parts: Tensor) -> Tensor:
    """Sum a contiguous float32 tensor over its first axis.

    torch.sum would wake torch's threads, which then spin and compete with the kernel's threads.
    """
    if parts.shape[0] == 1:
        return parts[0]
    total = fresh(tuple(parts.shape[1:]))
    adder()(parts.data_ptr(), parts.shape[0], total.numel(), total.data_ptr())
    return total
