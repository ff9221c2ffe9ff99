"""Runs a numba kernel over a range of tasks on as many threads as torch is set to use.

The pool is our own: kernels release the GIL, so plain Python threads do. Its threads are started on first use and anew
after a fork (a forked child has none of its parent's). A call is divided into parts by the number of threads alone, and
sums are kept per part, so results do not depend on which thread runs which part. The calling thread takes part; where
the pool is busy, as when several Python threads scan at once, it runs all parts itself.

Ctrl-C, and any other exception that a signal handler raises, can interrupt the calling thread between any two of its
instructions. `_Parts` makes this harmless: an interrupted call starts no further part and waits for the running ones.
Should a second interruption end even that wait, the running parts still own the memory that they read and write, and
they report to their own call only, never to a later one.
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
    """Memory of one thread, kept between calls and grown when needed."""

    def __init__(self) -> None:
        self.memory: tuple[np.ndarray, int, int] = (np.empty(0, np.uint8), 0, 0)

    def take(self, size: int) -> tuple[np.ndarray, int, int]:
        """An array, its address, and its size of at least `size` bytes.

        The caller holds the array while it uses the address: a signal handler may scan too, and replace it here.
        """
        if self.memory[2] < size:
            array = np.empty(size, np.uint8)
            self.memory = (array, array.ctypes.data, size)
        return self.memory


class _Parts:
    """The parts of one call that any thread may take, and which threads are at work on them.

    Every step is one operation on a list, which no signal handler and no other thread sees half done: a thread
    enters itself before it takes a part and after its last one it leaves, so all parts are over when none is left to
    take and as many have left as have entered.
    """

    def __init__(self, parts: list[Callable[[], None]]) -> None:
        self.waiting = parts
        self.errors: list[BaseException] = []
        self.entered: list[None] = []
        self.left: list[None] = []
        self.news: SimpleQueue[None] = SimpleQueue()

    def work(self) -> None:
        """What a thread of the pool does; no signal handler runs there."""
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
        """Runs parts until none is left to take."""
        while self.waiting:
            try:
                part = self.waiting.pop()
            except IndexError:  # another thread took the last one
                return
            part()

    def over(self) -> bool:
        if self.waiting:
            return False
        left = len(self.left)  # read first: a thread that enters after this finds nothing to take
        return left == len(self.entered)

    def wait(self) -> None:
        """Waits until no thread works on a part. Whoever is at work now sends news later, so this cannot hang."""
        while not self.over():
            self.news.get()


class Pool:
    """Waiting threads that join in the calls they are told of."""

    def __init__(self, size: int) -> None:
        self.calls: SimpleQueue[_Parts | None] = SimpleQueue()
        self.size = 0
        self.grow(size)

    def grow(self, size: int) -> None:
        """Starts threads until there are `size` of them, or as many as the system grants."""
        while self.size < size:
            try:
                threading.Thread(target=self._work, daemon=True, name="seqssm-scan").start()
            except RuntimeError:  # a limit of the system, or the interpreter is ending: the caller does the work
                return
            self.size += 1

    def _work(self) -> None:
        while (call := self.calls.get()) is not None:
            call.work()
            del call  # not held while waiting for the next one

    def run(self, parts: list[Callable[[], None]]) -> None:
        """Runs all parts, the first one in the calling thread; returns or raises the first error when all are over."""
        call = _Parts(parts[:0:-1])  # taken from the end
        try:
            for _ in range(min(len(parts) - 1, self.size)):
                self.calls.put(call)
            parts[0]()
            call.run_waiting()  # where the threads of the pool are busy elsewhere
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
    """Starts no further part and waits for the running ones, whatever is raised meanwhile."""
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
    """The pool, with `size` threads."""
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
    """Into how many parts `run` divides `tasks` tasks of `work` state updates in all."""
    return 1 if work < SMALL else max(1, min(torch.get_num_threads(), tasks))


def run(kernel: Any, params: np.ndarray, tasks: int, count: int, size: int, memory: object) -> None:
    """Calls ``kernel(params, first, last, part, scratch address)`` for `count` even parts of the tasks.

    Args:
        kernel: the compiled kernel, which releases the GIL.
        params: sizes, strides and addresses, read by the kernel.
        tasks: number of tasks.
        count: number of parts, from `parts`.
        size: bytes of scratch memory that a thread needs for itself.
        memory: whatever owns the addresses in `params`; held until the last part has ended.
    """

    def part(index: int) -> Callable[[], None]:
        first, last = index * tasks // count, (index + 1) * tasks // count

        def work(memory: object = memory) -> None:
            own = scratch(size)
            kernel(params, first, last, index, own[1])

        return work

    if count == 1:
        part(0)()
    else:
        _started(count - 1).run([part(index) for index in range(count)])
