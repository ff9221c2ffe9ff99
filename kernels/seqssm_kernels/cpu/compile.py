"""Compiles numba kernels once a machine: cached on disk where a folder can be written, in memory where none can."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from numba import njit


def source_key(*modules: str) -> int:
    """A checksum of source files, given as paths inside this package without `.py`.

    In a kernel's closure it makes numba's cache notice changes in the modules that the kernel calls: numba itself looks
    at the kernel's own file only.
    """
    folder = Path(__file__).parents[1]
    return zlib.crc32(b"".join((folder / f"{name}.py").read_bytes() for name in modules))


def compiled(function: Callable, signature: Any) -> Any:
    """`function` compiled for `signature`, without the GIL, from numba's cache on disk where that is possible.

    A read-only installation, a missing home or a full disk only costs the compilation in each process.
    """
    try:
        return njit(signature, nogil=True, error_model="numpy", cache=True)(function)
    except (RuntimeError, OSError):  # no writable folder; the disk is full
        return njit(signature, nogil=True, error_model="numpy")(function)
