"""Compiles numba kernels once per machine; cached on disk if a folder is writable, else compiled in each process.

The cache is numba's own, with a checksum appended to each file. numba loads machine code without validation, so a
truncated or corrupt file would raise at every start, or crash. Such files are deleted and the kernel is compiled again.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import pickle
import sys
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from llvmlite.binding import get_host_cpu_features
from numba import njit
from numba.core import config

SLOW = 2.0  # seconds before a compilation is announced
PACKAGE = Path(__file__).parents[1]
_said: set[str] = set()
_quiet = False


def source_key(*modules: str) -> int:
    """Checksum of source files, given as paths inside this package without `.py`.

    Kernels hold it in their closure, which makes numba's cache detect changes in the modules that the kernel calls.
    numba itself checks only the kernel's own file.
    """
    return zlib.crc32(b"".join((PACKAGE / f"{name}.py").read_bytes() for name in modules))


def compiled(function: Callable, signature: Any, title: str) -> Any:
    """Compile a kernel for one signature, or load it from the cache; the result releases the GIL.

    With a read-only installation, a missing home folder or a full disk, every process compiles the kernel again.

    Args:
        function: the kernel in numba's Python, a closure over its `source_key`.
        signature: numba's types of the arguments.
        title: name of the kernel in messages, such as `selective_scan backward`.
    """
    folder = cache_folder(function)
    if folder is None:
        _say_once(
            "compiled kernels cannot be cached, because no folder for them is writable: every process compiles them "
            "again, for several seconds; set NUMBA_CACHE_DIR to a writable folder"
        )
        return _compile(function, signature, f"compiling {title}", cache=False)
    files = _Files(function, folder)
    files.delete_damaged()
    announcement = f"compiling {title} for this processor, once; cached in {folder}"
    try:
        return _compile(function, signature, announcement, cache=True)
    except OSError as error:  # the disk is full, or the folder is gone
        _say_once(f"compiled kernels cannot be cached in {folder} ({error}): every process compiles them again")
        return _compile(function, signature, f"compiling {title}", cache=False)
    except Exception as error:
        if not files.delete(type(error).__name__):
            raise  # nothing was loaded: the compilation itself failed
        return _compile(function, signature, announcement, cache=True)


def _compile(function: Callable, signature: Any, announcement: str, *, cache: bool) -> Any:
    """Load or compile; print the announcement if a compilation takes longer than `SLOW`."""
    kernel = njit(nogil=True, error_model="numpy", cache=cache)(function)
    if cache:
        _sign_what_is_written(kernel)
    done = threading.Event()

    def watch() -> None:
        while not done.wait(SLOW):
            if kernel.stats.cache_misses:  # otherwise it is still being loaded
                if not _quiet:
                    _say(announcement)
                return

    threading.Thread(target=watch, daemon=True, name="seqssm-compile").start()
    try:
        kernel.compile(signature)
    finally:
        done.set()
    kernel.disable_compile()
    return kernel


def wide_vectors() -> bool:
    """Whether the target processor has 32 vector registers of 16 float32 lanes (AVX-512)."""
    name, features = getattr(config, "CPU_NAME", None), getattr(config, "CPU_FEATURES", None)  # set by the environment
    if features is not None:
        return "+avx512f" in features.split(",")
    return name in (None, "host") and bool(get_host_cpu_features().get("avx512f", False))


def quietly(make: Callable[..., Any], *args: Any) -> Any:
    """Compile without announcements, for a caller that reports progress itself."""
    global _quiet
    before, _quiet = _quiet, True
    try:
        return make(*args)
    finally:
        _quiet = before


def cache_folder(function: Callable) -> Path | None:
    """The folder of numba's cache for a kernel; None if none is writable."""
    try:
        path = njit(cache=True)(function).stats.cache_path
    except RuntimeError:
        return None
    return Path(path) if path else None


def cache_root(function: Callable) -> str:
    """Description of the cache folder of this package's kernels; `function` is any of them."""
    folder = cache_folder(function)
    if folder is None:
        return "no writable folder: every process compiles; set NUMBA_CACHE_DIR to a writable folder"
    return str(PACKAGE / "*" / folder.name) if PACKAGE in folder.parents else str(folder.parent)


_MARK = b"seqssm-sha256:"
_TRAILER = len(_MARK) + hashlib.sha256().digest_size


def _signed(pickled: bytes) -> bytes:
    """A pickle followed by its checksum, which unpickling ignores."""
    return pickled + _MARK + hashlib.sha256(pickled).digest()


def _cache_file(kernel: Any) -> Any:
    """numba's object that writes the files of a kernel; None if this version of numba has a different one."""
    file = getattr(getattr(kernel, "_cache", None), "_cache_file", None)
    return file if hasattr(file, "_dump") else None


def _sign_what_is_written(kernel: Any) -> None:
    file = _cache_file(kernel)
    if file is not None:
        dump = file._dump
        file._dump = lambda content: _signed(dump(content))


class _Files:
    """The files of one kernel in numba's cache."""

    def __init__(self, function: Callable, folder: Path) -> None:
        self.folder = folder
        self.signed = _cache_file(njit(cache=True)(function)) is not None
        name = function.__qualname__.replace("<", "").replace(">", "")
        self.prefix = f"{Path(function.__code__.co_filename).stem}.{name}-"

    def __iter__(self) -> Iterator[Path]:
        """Index files (.nbi) and code (.nbc)."""
        with contextlib.suppress(OSError):
            for file in sorted(self.folder.iterdir()):
                if file.name.startswith(self.prefix) and file.suffix in (".nbi", ".nbc"):
                    yield file

    def delete_damaged(self) -> None:
        """Delete all files if any does not match its checksum."""
        if self.signed and not all(map(_is_whole, self)):
            self.delete("checksum")

    def delete(self, why: str) -> bool:
        """Delete all files; return whether there were any."""
        found = list(self)
        for file in found:
            with contextlib.suppress(OSError):
                file.unlink()
        if found:
            _say_once(
                f"the cache of compiled kernels in {self.folder} is corrupt or was written by another version ({why}): "
                "compiling again"
            )
        return bool(found)


def _is_whole(file: Path) -> bool:
    """Whether a file matches its checksum; true for a file that another process has just deleted."""
    try:
        content = file.read_bytes()
    except OSError:
        return True
    pickled, trailer = content[:-_TRAILER], content[-_TRAILER:]
    if file.suffix == ".nbi":  # numba's version precedes the signed content
        stream = io.BytesIO(pickled)
        try:
            pickle.load(stream)
        except Exception:
            return False
        pickled = stream.read()
    return trailer == _MARK + hashlib.sha256(pickled).digest()


def _say(text: str) -> None:
    """Print a line to stderr, if it is available."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        print(f"seqssm_kernels: {text}", file=sys.stderr, flush=True)


def _say_once(text: str) -> None:
    if text not in _said:
        _said.add(text)
        _say(text)
