"""Run a numba kernel over a range of tasks on `torch.get_num_threads()` threads.

The pool consists of Python threads, which suffices because kernels release the GIL. Threads are started on first use
and restarted after a fork (a forked child has none of its parent's threads). The division of a call into parts depends
only on the number of threads, and sums are kept per part, so results do not depend on which thread runs which part. The
calling thread runs parts too; if the pool is busy, for example when several Python threads scan at once, it runs all of
them.

Ctrl-C, and any other exception that a signal handler raises, can interrupt the calling thread between any two of its
instructions. `_Parts` handles this: an interrupted call starts no further parts and waits for the running ones. If a
second interruption ends that wait, the running parts still own the memory that they read and write, and they report
only to their own call.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

import numpy as np
import torch

SMALL = 200_000
"""Units of work (state updates) below which waking another thread costs more than it saves."""


class Scratch(threading.local):
    """Scratch memory of one thread, kept between calls and grown when needed."""

    def __init__(self) -> None:
        self.memory: tuple[np.ndarray, int, int] = (np.empty(0, np.uint8), 0, 0)

    def take(self, size: int) -> tuple[np.ndarray, int, int]:
        """Return an array of at least `size` bytes, its address, and its size.

        The caller must hold the array while it uses the address: a signal handler may run a scan and replace the array.
        """
        if self.memory[2] < size:
            array = np.empty(size, np.uint8)
            self.memory = (array, array.ctypes.data, size)
        return self.memory


class _Parts:
    """The remaining parts of one call, and the threads that work on them.

    Every step is a single list operation, which is atomic for signal handlers and other threads. A thread registers
    before it takes a part and deregisters after its last one. All parts are finished when none is left to take and as
    many threads have deregistered as registered.
    """

    def __init__(self, parts: list[Callable[[], None]]) -> None:
        self.waiting = parts
        self.errors: list[BaseException] = []
        self.entered: list[None] = []
        self.left: list[None] = []
        self.news: SimpleQueue[None] = SimpleQueue()

    def work(self) -> None:
        """Work of a pool thread, where no signal handlers run."""
        self.entered.append(None)
        try:
            self.run_waiting()
        except BaseException as error:  # raised in the calling thread
            self.waiting.clear()
            self.errors.append(error)
        finally:
            self.left.append(None)
            self.news.put(None)

    def run_waiting(self) -> None:
        """Run parts until none is left."""
        while self.waiting:
            try:
                part = self.waiting.pop()
            except IndexError:  # another thread took the last part
                return
            part()

    def over(self) -> bool:
        if self.waiting:
            return False
        left = len(self.left)  # read first: a thread that registers later finds no part
        return left == len(self.entered)

    def wait(self) -> None:
        """Wait until no thread works on a part. Every working thread notifies when it ends, so this cannot hang."""
        while not self.over():
            self.news.get()


class Pool:
    """Worker threads that wait for calls to run parts of."""

    def __init__(self, size: int) -> None:
        self.calls: SimpleQueue[_Parts | None] = SimpleQueue()
        self.size = 0
        self.grow(size)

    def grow(self, size: int) -> None:
        """Start threads up to `size`, or as many as the system allows."""
        while self.size < size:
            try:
                threading.Thread(target=self._work, daemon=True, name="seqssm-scan").start()
            except RuntimeError:  # system limit, or interpreter shutdown: the caller does the work
                return
            self.size += 1

    def _work(self) -> None:
        while (call := self.calls.get()) is not None:
            call.work()
            del call  # drop the reference while waiting for the next call

    def run(self, parts: list[Callable[[], None]]) -> None:
        """Run all parts, the first one in the calling thread; return or raise the first error when all are finished."""
        call = _Parts(parts[:0:-1])  # popped from the end
        try:
            for _ in range(min(len(parts) - 1, self.size)):
                self.calls.put(call)
            parts[0]()
            call.run_waiting()  # if the pool threads are busy
            call.wait()
        except BaseException:
            _abandon(call)
            raise
        if call.errors:
            raise call.errors[0]

    def stop(self) -> None:
        for _ in range(self.size):
            self.calls.put(None)


def _abandon(call: _Parts) -> None:
    """Start no further parts and wait for the running ones, even if interrupted again."""
    interruption: BaseException | None = None
    while True:
        try:
            call.waiting.clear()
            call.wait()
            break
        except BaseException as error:
            interruption = error
    if interruption is not None:
        raise interruption


_scratch = Scratch()
scratch = _scratch.take
_starting = threading.Lock()
_pool: Pool | None = None


def _forget() -> None:
    global _pool, _starting
    _pool, _starting = None, threading.Lock()


def _started(size: int) -> Pool:
    """Return the pool, with `size` threads."""
    global _pool
    pool = _pool
    if pool is None or pool.size < size:
        with _starting:
            pool = _pool
            if pool is None:
                _pool = pool = Pool(0)
            pool.grow(size)
    return pool


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def parts(tasks: int, work: int) -> int:
    """Number of parts into which `tasks` tasks with a total of `work` state updates are divided."""
    return 1 if work < SMALL else max(1, min(torch.get_num_threads(), tasks))


def run(kernel: Any, params: np.ndarray, tasks: int, count: int, size: int, memory: object) -> None:
    """Call ``kernel(params, first, last, part, scratch address)`` for `count` equal parts of the tasks.

    Args:
        kernel: compiled kernel, which releases the GIL.
        params: sizes, strides and addresses, read by the kernel.
        tasks: number of tasks.
        count: number of parts, from `parts`.
        size: bytes of scratch memory per thread.
        memory: owners of the addresses in `params`; held until the last part has ended.
    """

    if count == 1:  # the common case of a small call, without closures
        own = scratch(size)
        kernel(params, 0, tasks, 0, own[1])
        return

    def part(index: int) -> Callable[[], None]:
        first, last = index * tasks // count, (index + 1) * tasks // count

        def work(memory: object = memory) -> None:
            own = scratch(size)
            kernel(params, first, last, index, own[1])

        return work

    _started(count - 1).run([part(index) for index in range(count)])
