"""Execution plan of one call on the CPU: division into tasks, and the parameter array of the kernels.

A task is one batch entry and one group of neighbouring channels, whose rows fit a cache; a part is the range of tasks
of one thread.
"""

from __future__ import annotations

from typing import Any, Generic, TypeVar

import numpy as np
import torch
from numba import types
from torch import Tensor

from seqssm_kernels.contract.calls import ConvSizes, Scales, ScanSizes, SsdSizes
from seqssm_kernels.cpu import rows as k
from seqssm_kernels.cpu import threads
from seqssm_kernels.cpu.lanes import BFLOAT16, FLOAT16, FLOAT32, INT8, LANES

KINDS = {torch.float32: FLOAT32, torch.bfloat16: BFLOAT16, torch.float16: FLOAT16}
WITH_INTEGERS = KINDS | {torch.int8: INT8}
WIDEST = 8  # blocks of 16 channels in a group
SIGNATURE = types.void(types.int64[::1], types.int64, types.int64, types.int64, types.int64)
"""Signature of a kernel: params, first task, end of the tasks, part, address of scratch memory."""

Sizes = TypeVar("Sizes", ScanSizes, ConvSizes, SsdSizes)


def covers(order: Tensor | None, length: int) -> bool:
    """Whether each row of a checked order visits every position."""
    if order is None:
        return True
    return order.shape[2] >= length and order.numel() > 0 and int((order >= 0).sum(2).min()) == length


class Plan(Generic[Sizes]):
    """Base of the plans; an operation adds its own tensors and scratch memory.

    Attributes:
        sizes: sizes of the call.
        workers: number of threads that the amount of work justifies.
        params: content of the array described in `cpu.rows`; a list, because setting items of an array takes ten times
            as long.
        kept: owners of the addresses in `params`.
    """

    def __init__(self, sizes: Sizes, work: int, order: Tensor | None, cu_seqlens: Tensor | None) -> None:
        self.sizes: Sizes = sizes
        self.blocks = -(-sizes.channels // LANES)
        self.workers = threads.parts(self.blocks * sizes.batch, work)
        self.kept: list[Tensor] = []
        p = self.params = [0] * k.LENGTH
        if order is not None:
            p[k.ORDER : k.ORDER + 3] = (
                self.address(order),
                4 * order.stride(0) if order.shape[0] > 1 else 0,
                4 * order.stride(1) if order.shape[1] > 1 else 0,
            )
        if cu_seqlens is not None:
            p[k.CU_SEQLENS] = self.address(cu_seqlens)
        p[k.BATCH : k.BATCH + 4] = sizes.batch, sizes.steps, sizes.routes, sizes.channels
        p[k.SEQUENCES] = 1 if cu_seqlens is None else sizes.sequences

    def least_groups(self) -> int:
        """Smallest number of groups whose rows fit the cache and which give every thread a task."""
        return max(-(-self.blocks // WIDEST), min(self.blocks, -(-self.workers // max(1, self.sizes.batch))))

    def divide(self, groups: int) -> None:
        """Set the groups of channels, their width, and the numbers of tasks and parts."""
        self.width = LANES * -(-self.blocks // groups) if self.blocks else LANES
        self.groups = -(-self.sizes.channels // self.width)
        self.tasks = self.groups * self.sizes.batch
        self.parts = min(self.workers, max(1, self.tasks))
        self.params[k.WIDTH] = self.width

    def address(self, tensor: Tensor) -> int:
        """Address of a tensor, to which the plan keeps a reference."""
        self.kept.append(tensor)
        return tensor.data_ptr()

    def tensor(self, at: int, tensor: Tensor | None) -> None:
        """Set address, kind and byte strides of a (B, L, 1 or R, n) tensor; its last axis is made contiguous."""
        if tensor is None:
            return
        b, place, route, channel = tensor.stride()
        if channel != 1 and tensor.shape[3] > 1:
            tensor = tensor.contiguous()
            b, place, route, _ = tensor.stride()
        size = tensor.element_size()
        self.kept.append(tensor)
        self.params[at : at + 5] = (
            tensor.data_ptr(), WITH_INTEGERS[tensor.dtype], size * b, size * place,
            size * route if tensor.shape[2] > 1 else 0,
        )  # fmt: skip

    def vector(self, at: int, vector: Tensor | None) -> None:
        """Set address and byte stride of the routes of a float32 (1 or R, E) tensor."""
        if vector is not None:
            vector = vector if vector.stride(1) == 1 or vector.shape[1] == 1 else vector.contiguous()
            self.params[at] = self.address(vector)
            self.params[at + 1] = 4 * vector.stride(0) if vector.shape[0] > 1 else 0

    def scale(self, scales: Scales | None) -> None:
        """Set the scales of integer x, B and C."""
        for at, scale in zip((k.X_SCALE, k.B_SCALE, k.C_SCALE), scales or ()):
            self.vector(at, scale.flatten(1))

    def execute(self, kernel: Any, scratch: int) -> None:
        """Run a kernel over all tasks, with `scratch` bytes per thread."""
        if self.tasks:
            params = np.array(self.params, np.int64)
            threads.run(kernel, params, self.tasks, self.parts, scratch, self.kept)
