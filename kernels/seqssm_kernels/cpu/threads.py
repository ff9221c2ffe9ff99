"""Runs a numba kernel over a range of tasks on as many threads as torch is set to use.

The pool is our own: kernels release the GIL, so plain Python threads do. It is made on first use and anew after a
fork (a forked child has no threads of its parent), takes part of the work in the calling thread, and never nests:
when the pool is busy, as when several Python threads scan at once, the caller does all parts itself. The parts are
the same either way, so results depend on the number of threads alone.
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
        self.memory = np.empty(0, np.uint8)
        self.size = self.start = 0

    def address(self, size: int) -> int:
        if self.size < size:
            self.memory = np.empty(size, np.uint8)
            self.size, self.start = size, self.memory.ctypes.data
        return self.start


class Pool:
    """`size` waiting threads."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.jobs: list[SimpleQueue] = [SimpleQueue() for _ in range(size)]
        self.done: SimpleQueue = SimpleQueue()
        for jobs in self.jobs:
            threading.Thread(target=self._work, args=(jobs,), daemon=True, name="seqssm-scan").start()

    def _work(self, jobs: SimpleQueue) -> None:
        while (job := jobs.get()) is not None:
            try:
                job()
                self.done.put(None)
            except BaseException as error:  # handed to the caller
                self.done.put(error)

    def run(self, jobs: list[Callable[[], None]]) -> None:
        """Runs the first job here and the others on the pool's threads; raises the first error."""
        for queue, job in zip(self.jobs, jobs[1:]):
            queue.put(job)
        error: BaseException | None = None
        try:
            jobs[0]()
        except BaseException as caught:
            error = caught
        for _ in jobs[1:]:
            error = self.done.get() or error
        if error is not None:
            raise error

    def stop(self) -> None:
        for jobs in self.jobs:
            jobs.put(None)


_scratch = Scratch()
_busy = threading.Lock()
_pool: Pool | None = None


def _forget() -> None:
    global _pool, _busy
    _pool, _busy = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def parts(tasks: int, work: int) -> int:
    """Into how many parts `run` divides `tasks` tasks of `work` state updates in all."""
    return 1 if work < SMALL else max(1, min(torch.get_num_threads(), tasks))


def run(kernel: Any, params: np.ndarray, tasks: int, count: int, scratch: int) -> None:
    """Calls ``kernel(params, first, last, part, scratch address)`` for `count` even parts of the tasks."""
    global _pool
    if count == 1:
        kernel(params, 0, tasks, 0, _scratch.address(scratch))
        return

    def part(index: int) -> Callable[[], None]:
        first, last = index * tasks // count, (index + 1) * tasks // count
        return lambda: kernel(params, first, last, index, _scratch.address(scratch))

    jobs = [part(index) for index in range(count)]
    if not _busy.acquire(blocking=False):
        for job in jobs:
            job()
        return
    try:
        if _pool is None or _pool.size < count - 1:
            if _pool is not None:
                _pool.stop()
            _pool = Pool(count - 1)
        _pool.run(jobs)
    finally:
        _busy.release()
