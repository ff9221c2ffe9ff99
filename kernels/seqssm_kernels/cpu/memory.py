"""Memory for large results that is used again, in huge pages.

A tensor of some megabytes that the C library asks the system for costs a page fault for every 4 KB and the zeroing of
each page, and goes back to the system when it is freed: a training step would spend a third of its time on that. Here
the storages of such tensors are remembered. Once no tensor uses one any more, the next result of about its size gets
it. At most `LIMIT` bytes are remembered, those lent last; `empty_cache` forgets them all.

The storages are ordinary ones of PyTorch: results can be resized, shared and saved like any other tensor.
"""

from __future__ import annotations

import ctypes
import math
import sys

import torch
from torch import Tensor

POOLED = 512 << 10  # bytes; below, the C library keeps freed memory itself
LIMIT = 256 << 20  # bytes that are remembered
HUGE_PAGE = 2 << 20
_MADV_HUGEPAGE = 14
_use_count = getattr(torch._C, "_storage_Use_Count", None)
_madvise = None
if sys.platform.startswith("linux"):
    _madvise = getattr(ctypes.CDLL(None), "madvise", None)
if _madvise is not None:
    _madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


class _Entry:
    """A remembered storage, and how to see that nothing else uses it."""

    def __init__(self, storage: torch.UntypedStorage) -> None:
        self.storage = storage
        self.size, self.address = storage.nbytes(), storage.data_ptr()

    def uses(self) -> tuple[int, int]:
        """References from tensors and other storages' owners in C++, and from Python."""
        assert _use_count is not None
        return _use_count(self.storage._cdata), sys.getrefcount(self.storage)

    def unused(self) -> bool:
        """Whether nothing but this entry refers to the storage, and its memory is still the one that was lent.

        A tensor that was shared with other processes or resized has other memory since; one that was turned into a
        NumPy array must not be resized any more.
        """
        return (
            self.uses() == _ALONE
            and self.storage.nbytes() == self.size
            and self.storage.resizable()
            and self.storage.data_ptr() == self.address
        )


def _alone() -> tuple[int, int] | None:
    """What `uses` is for a storage that nothing else refers to; None where this PyTorch does not let us tell."""
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
    """Remembered storages, lent or unused.

    Without a lock: a signal handler may run another scan in the middle of any method. Each step is one operation on a
    dict, which neither it nor another thread sees half done.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._entries: dict[int, _Entry] = {}  # those lent last come last

    def take(self, size: int) -> torch.UntypedStorage | None:
        """An unused storage of `size` bytes or up to a quarter more, the smallest that fits; None if there is none."""
        newest_first = list(self._entries.values())[::-1]
        fitting = [e for e in newest_first if size <= e.size <= size + size // 4]
        for entry in sorted(fitting, key=lambda e: e.size):
            # Taken out while it is looked at, and referred to before it is put back: nobody else takes it meanwhile.
            if self._entries.pop(id(entry), None) is None:
                continue
            storage = entry.storage if entry.unused() else None
            self._entries[id(entry)] = entry
            if storage is not None:
                return storage
        return None

    def lend(self, storage: torch.UntypedStorage) -> None:
        """Remembers a storage, and forgets those lent longest ago where they become too many."""
        entry = _Entry(storage)
        if entry.size > self.limit:
            return
        self._entries[id(entry)] = entry
        while self.remembered() > self.limit:
            self._entries.pop(next(iter(list(self._entries)), 0), None)

    def remembered(self) -> int:
        """Bytes of all remembered storages."""
        return sum(entry.size for entry in list(self._entries.values()))

    def unused(self) -> int:
        """Bytes of those that no tensor uses."""
        return sum(entry.size for entry in list(self._entries.values()) if entry.unused())

    def clear(self) -> None:
        self._entries.clear()


_pool = Pool(LIMIT)


def empty_cache() -> None:
    """Frees the memory that the CPU kernels keep for later results.

    It is at most 256 MB. Tensors in use are not affected; their memory is freed when they are.
    """
    _pool.clear()


def _in_huge_pages(storage: torch.UntypedStorage) -> None:
    """Asks the system for huge pages inside a large new block of memory."""
    if _madvise is not None and storage.nbytes() >= 2 * HUGE_PAGE:
        start = -(-storage.data_ptr() // HUGE_PAGE) * HUGE_PAGE
        end = (storage.data_ptr() + storage.nbytes()) // HUGE_PAGE * HUGE_PAGE
        if end > start:
            _madvise(start, end - start, _MADV_HUGEPAGE)  # a wish: systems without them return an error


def fresh(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, zero: bool = False) -> Tensor:
    """A new CPU tensor, filled with zeros if `zero`.

    torch.zeros would share the work among its threads, which then spin for a while beside ours. Dtype and device are
    given explicitly: kernels write through the address, whatever torch.set_default_dtype or -device say.
    """
    size = math.prod(shape) * dtype.itemsize
    pooled = size >= POOLED and _ALONE is not None and not torch.are_deterministic_algorithms_enabled()
    storage = _pool.take(size) if pooled else None  # deterministic algorithms fill fresh memory with NaN
    if storage is None:
        tensor = torch.empty(shape, dtype=dtype, device="cpu")
        if pooled:
            storage = tensor.untyped_storage()
            _in_huge_pages(storage)
            _pool.lend(storage)
    else:
        tensor = torch.empty(0, dtype=dtype, device="cpu")
        tensor.set_(storage, 0, shape)  # type: ignore[call-overload]  # a stride may be left out
        if storage.nbytes() > size:  # what is saved with the tensor must not hold an earlier result
            ctypes.memset(storage.data_ptr() + size, 0, storage.nbytes() - size)
    if zero:
        ctypes.memset(tensor.data_ptr(), 0, size)
    return tensor
