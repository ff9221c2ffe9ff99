"""Sums over the parts that threads or groups of channels computed, in order and in the calling thread."""

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
    """The compiled kernel."""
    return compiled(
        k.make_adder(source_key("cpu/lanes", "cpu/rows")), types.void(*[types.int64] * 4), "sums over parts"
    )


def added(parts: Tensor) -> Tensor:
    """The sum of a dense float32 tensor over its first axis.

    torch's own sum would wake its threads, which then spin for a while beside ours.
    """
    if parts.shape[0] == 1:
        return parts[0]
    total = fresh(tuple(parts.shape[1:]))
    adder()(parts.data_ptr(), parts.shape[0], total.numel(), total.data_ptr())
    return total
