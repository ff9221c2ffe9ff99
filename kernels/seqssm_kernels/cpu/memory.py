"""Reuse of the memory of large results, in huge pages.

The C library allocates a tensor of several megabytes from the system and returns it when freed. Each allocation costs
one page fault and the zeroing of a page per 4 KB, about a third of the time of a training step. This module caches the
storages of such tensors. When no tensor uses a storage any more, the next result of a similar size reuses it. At most
`LIMIT` bytes are cached, the most recently used first; `empty_cache` clears the cache.

The storages are ordinary ones of PyTorch: results can be resized, shared and saved like any other tensor.
"""

from __future__ import annotations

import ctypes
import math
import sys

import torch
from torch import Tensor

POOLED = 512 << 10  # bytes; the C library itself reuses smaller blocks
LIMIT = 256 << 20  # maximum size of the cache in bytes
HUGE_PAGE = 2 << 20
_MADV_HUGEPAGE = 14
_use_count = getattr(torch._C, "_storage_Use_Count", None)
_madvise = None
if sys.platform.startswith("linux"):
    _madvise = getattr(ctypes.CDLL(None), "madvise", None)
if _madvise is not None:
    _madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


class _Entry:
    """A cached storage, and the check that nothing else uses it."""

    def __init__(self, storage: torch.UntypedStorage) -> None:
        self.storage = storage
        self.size, self.address = storage.nbytes(), storage.data_ptr()

    def uses(self) -> tuple[int, int]:
        """References from tensors and other storages' owners in C++, and from Python."""
        assert _use_count is not None
        return _use_count(self.storage._cdata), sys.getrefcount(self.storage)

    def unused(self) -> bool:
        """Whether only this entry refers to the storage, and its memory is unchanged since it was handed out.

        A tensor that was shared with other processes or resized has different memory; one that was converted to a NumPy
        array is no longer resizable.
        """
        return (
            self.uses() == _ALONE
            and self.storage.nbytes() == self.size
            and self.storage.resizable()
            and self.storage.data_ptr() == self.address
        )


def _alone() -> tuple[int, int] | None:
    """Value of `uses` for a storage without other references; None if this PyTorch does not expose the counts."""
    if _use_count is None:
        return None
    tensor = torch.empty(16, dtype=torch.uint8, device="cpu")
    entry = _Entry(tensor.untyped_storage())
    with_tensor = entry.uses()
    del tensor
    alone = entry.uses()
    held = entry.storage
    with_storage = entry.uses()
    del held
    return alone if alone not in (with_tensor, with_storage) else None


_ALONE = _alone()


class Pool:
    """Cached storages, in use or free.

    There is no lock, because a signal handler may run another scan in the middle of any method. Each step is a single
    dict operation, which is atomic for signal handlers and other threads.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._entries: dict[int, _Entry] = {}  # most recently used last

    def take(self, size: int) -> torch.UntypedStorage | None:
        """Return the smallest free storage of `size` to 1.25 `size` bytes, or None."""
        newest_first = list(self._entries.values())[::-1]
        fitting = [e for e in newest_first if size <= e.size <= size + size // 4]
        for entry in sorted(fitting, key=lambda e: e.size):
            # Removed during the check, and referenced before it is put back, so that no other thread takes it.
            if self._entries.pop(id(entry), None) is None:
                continue
            storage = entry.storage if entry.unused() else None
            self._entries[id(entry)] = entry
            if storage is not None:
                return storage
        return None

    def lend(self, storage: torch.UntypedStorage) -> None:
        """Add a storage, and drop the least recently used ones above the limit."""
        entry = _Entry(storage)
        if entry.size > self.limit:
            return
        self._entries[id(entry)] = entry
        while self.remembered() > self.limit:
            self._entries.pop(next(iter(list(self._entries)), 0), None)

    def remembered(self) -> int:
        """Total size of all cached storages in bytes."""
        return sum(entry.size for entry in list(self._entries.values()))

    def unused(self) -> int:
        """Total size of the free storages in bytes."""
        return sum(entry.size for entry in list(self._entries.values()) if entry.unused())

    def clear(self) -> None:
        self._entries.clear()


_pool = Pool(LIMIT)


def empty_cache() -> None:
    """Free the memory that the CPU kernels cache for later results.

    The cache holds at most 256 MB. Tensors in use are not affected; their memory is freed with them.
    """
    _pool.clear()


def _in_huge_pages(storage: torch.UntypedStorage) -> None:
    """Request huge pages for a large new block of memory."""
    if _madvise is not None and storage.nbytes() >= 2 * HUGE_PAGE:
        start = -(-storage.data_ptr() // HUGE_PAGE) * HUGE_PAGE
        end = (storage.data_ptr() + storage.nbytes()) // HUGE_PAGE * HUGE_PAGE
        if end > start:
            _madvise(start, end - start, _MADV_HUGEPAGE)  # best effort: systems without huge pages return an error


def fresh(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, zero: bool = False) -> Tensor:
    """A new CPU tensor, filled with zeros if `zero`.

    torch.zeros would distribute the work over its threads, which then spin and compete with the kernel's threads. Dtype
    and device are explicit because kernels write through the address, regardless of torch.set_default_dtype and
    torch.set_default_device.
    """
    size = math.prod(shape) * dtype.itemsize
    pooled = size >= POOLED and _ALONE is not None and not torch.are_deterministic_algorithms_enabled()
    storage = _pool.take(size) if pooled else None  # deterministic mode fills new memory with NaN
    if storage is None:
        tensor = torch.empty(shape, dtype=dtype, device="cpu")
        if pooled:
            storage = tensor.untyped_storage()
            _in_huge_pages(storage)
            _pool.lend(storage)
    else:
        tensor = torch.empty(0, dtype=dtype, device="cpu")
        tensor.set_(storage, 0, shape)  # type: ignore[call-overload]  # the stride is optional
        if storage.nbytes() > size:  # a saved tensor must not contain an earlier result
            ctypes.memset(storage.data_ptr() + size, 0, storage.nbytes() - size)
    if zero:
        ctypes.memset(tensor.data_ptr(), 0, size)
    return tensor
