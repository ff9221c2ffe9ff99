"""Large results in huge pages: a fresh 32 MB tensor otherwise costs 8,000 page faults, nearly as much as the scan."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable

import torch
from torch import Tensor

LARGE = 4 << 20  # bytes
HUGE_PAGE = 2 << 20
MADV_HUGEPAGE = 14


def _madvise() -> Callable[[int, int, int], int] | None:
    if not sys.platform.startswith("linux"):
        return None
    try:
        function = ctypes.CDLL(None).madvise
    except (OSError, AttributeError):
        return None
    function.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return function


_advise = _madvise()


def fresh(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, zero: bool = False) -> Tensor:
    """A new CPU tensor, zero where asked; the system is free to ignore the wish for huge pages.

    torch.zeros would share the work among its threads, which then spin for a while beside ours. Dtype and device are
    given in any case: kernels write through the address, whatever torch.set_default_dtype or -device say.
    """
    tensor = torch.empty(shape, dtype=dtype, device="cpu")
    size = tensor.numel() * tensor.element_size()
    if size >= LARGE and _advise is not None:
        start = -(-tensor.data_ptr() // HUGE_PAGE) * HUGE_PAGE
        end = (tensor.data_ptr() + size) // HUGE_PAGE * HUGE_PAGE
        if end > start:
            _advise(start, end - start, MADV_HUGEPAGE)
    if zero:
        ctypes.memset(tensor.data_ptr(), 0, size)
    return tensor
