"""Large results in memory that is used again, in huge pages.

A tensor of some megabytes that the C library asks the system for costs a page fault for every 4 KB and the zeroing of
each page, and goes back to the system when it is freed: a training step would spend a third of its time on that. Here
such memory comes from anonymous maps. When the last tensor that lies in one is freed, the map is kept for the next
tensor of about this size, up to a limit. It is ordinary memory of the process: copied on fork, gone with it.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import mmap
import sys
import weakref

import torch
from torch import Tensor

POOLED = 512 << 10  # bytes; below, the C library keeps freed memory itself
LIMIT = 256 << 20  # bytes that are kept while no tensor uses them
HUGE_PAGE = 2 << 20
_AVAILABLE = sys.platform.startswith("linux")


class _Map:
    """A private map with room for `capacity` bytes from `offset` on, in huge pages where the system gives them."""

    def __init__(self, size: int) -> None:
        self.capacity = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        slack = HUGE_PAGE if size >= 2 * HUGE_PAGE else 0
        self.memory = mmap.mmap(-1, self.capacity + slack, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.offset = 0
        if slack:
            self.offset = -ctypes.addressof(ctypes.c_char.from_buffer(self.memory)) % HUGE_PAGE
            with contextlib.suppress(OSError):  # a system without huge pages
                self.memory.madvise(mmap.MADV_HUGEPAGE, self.offset, self.capacity // HUGE_PAGE * HUGE_PAGE)


class Pool:
    """Maps that no tensor uses at present.

    Without a lock, because a map may come back at any moment, in the middle of `take` too: each step is one operation
    of a dict, which no other thread sees half done.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._free: dict[int, _Map] = {}  # in the order in which they came back
        self._lent: dict[int, weakref.ref] = {}

    def take(self, size: int) -> tuple[_Map, bool]:
        """A map for `size` bytes that is nobody else's, and whether it is a new one, all zero."""
        newest_first = reversed(list(self._free.values()))
        fitting = [m for m in newest_first if size <= m.capacity <= size + size // 4]
        for one in sorted(fitting, key=lambda m: m.capacity):
            if self._free.pop(id(one), None) is not None:
                return one, False
        return _Map(size), True

    def lend(self, one: _Map, view: memoryview) -> None:
        """Hands out a map until nobody holds `view`."""
        self._lent[id(one)] = weakref.ref(view, lambda _: self._take_back(one))

    def _take_back(self, one: _Map) -> None:
        """Keeps a map, and lets go of those unused for longest where they become too much."""
        self._lent.pop(id(one), None)
        if one.capacity > self.limit:
            return
        self._free[id(one)] = one
        while self.kept() > self.limit:
            self._free.pop(next(iter(list(self._free)), 0), None)

    def kept(self) -> int:
        return sum(m.capacity for m in list(self._free.values()))


_pool = Pool(LIMIT)


def fresh(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, zero: bool = False) -> Tensor:
    """A new CPU tensor, zero where asked.

    torch.zeros would share the work among its threads, which then spin for a while beside ours. Dtype and device are
    given in any case: kernels write through the address, whatever torch.set_default_dtype or -device say.
    """
    count = math.prod(shape)
    size = count * dtype.itemsize
    if size < POOLED or not _AVAILABLE or torch.are_deterministic_algorithms_enabled():  # these fill fresh memory
        tensor = torch.empty(shape, dtype=dtype, device="cpu")
    else:
        one, new = _pool.take(size)
        view = memoryview(one.memory)  # lives as long as the tensor's storage, which alone holds it
        _pool.lend(one, view)
        flat = torch.frombuffer(view, dtype=dtype, count=count, offset=one.offset)
        # not flat.view(shape): autograd lets nobody change a view that an operator returns
        tensor = torch.empty(0, dtype=dtype, device="cpu")
        tensor.set_(flat.untyped_storage(), 0, shape)  # type: ignore[call-overload]  # a stride may be left out
        zero = zero and not new
    if zero:
        ctypes.memset(tensor.data_ptr(), 0, size)
    return tensor
