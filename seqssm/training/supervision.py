"""Supervision of a trainer: interruptions and lost or hung processes end all processes of a run, as documented."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

from seqssm.errors import ExitCode, InputError
from seqssm.training.processes import START
from seqssm.training.sizes import PATIENCE

LOOK, GRACE = 0.2, 5.0  # seconds between checks of the other processes, and before a hung process is killed
LOST = ("connection closed by peer", "connection reset by peer", "broken pipe", "remote process exited", "socket")
LATE = ("timed out", "timeout")
OBSERVER = "child-process-observer"  # Lightning's thread that kills every process, this one included, if one has ended


def set_timeout(trainer: Any, seconds: float) -> None:
    """Set the timeout of collective calls.

    Raises:
        InputError: not a positive number.
    """
    PATIENCE.require("--timeout", seconds)
    if trainer.world_size > 1 and hasattr(trainer.strategy, "_timeout"):  # DDP and FSDP
        from seqssm.training.callbacks import CollectiveTimeout

        trainer.strategy._timeout = timedelta(seconds=max(seconds, START))  # passed to the process group
        trainer.callbacks.append(CollectiveTimeout(seconds))


class Watch(threading.Thread):
    """Monitors the other processes of a run that Lightning started on this machine.

    In rank 0, a process that ends prematurely is recorded in `lost`. If rank 0 does not notice in its next collective
    call, which may be uninterruptible, it is ended with a message. The other processes end when rank 0 has ended.

    Args:
        trainer: the trainer of this process.
        hint: returns the command that continues the run, for the message; empty if there is none yet.
        release: called before this process is ended.
    """

    def __init__(self, trainer: Any, hint: Callable[[], str], release: Callable[[], None]) -> None:
        super().__init__(daemon=True, name="seqssm-watch")
        self.launcher, self.rank = trainer.strategy.launcher, trainer.global_rank
        self.local_rank, self.hint, self.release = trainer.local_rank, hint, release
        self.parent = os.getppid()
        self.lost: tuple[int, int] | None = None  # (rank, exit code)
        self.ended = threading.Event()

    def run(self) -> None:
        while not self.ended.wait(LOOK):
            if self.local_rank > 0 and os.getppid() != self.parent:
                os._exit(ExitCode.INPUT)  # rank 0 has ended; it has reported, or was killed
            self.look()
            if self.lost is not None:
                if not self.ended.wait(GRACE):
                    self._end()
                return

    @property
    def others(self) -> list[subprocess.Popen]:
        """List the processes that Lightning started, of local rank 1, 2, ...; none under torchrun and srun."""
        found: list[Any] = getattr(self.launcher, "procs", [])
        return found if all(isinstance(process, subprocess.Popen) for process in found) else []

    def look(self) -> None:
        """Record a process that ended with an error, and end the others, which Lightning's observer no longer does."""
        for thread in threading.enumerate():
            if thread.name == OBSERVER:
                thread._child_processes = []  # type: ignore[attr-defined]  # it ends when it finds none
        for number, process in enumerate(self.others, 1):
            if self.lost is None and process.poll():
                self.lost = (number, process.returncode)
        if self.lost is not None:
            self.stop_others()

    def stop_others(self) -> None:
        """End the processes that Lightning started."""
        running = [process for process in self.others if process.poll() is None]
        self.others.clear()
        for process in running:
            process.terminate()
        end = time.monotonic() + GRACE
        for process in running:
            try:
                process.wait(max(end - time.monotonic(), LOOK))
            except subprocess.TimeoutExpired:  # it hangs or was stopped: only SIGKILL works
                process.kill()
                process.wait()

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C or SIGTERM ended the other process, which can be before this one has noticed it."""
        return self.lost is not None and self.lost[1] in (ExitCode.INTERRUPTED, -signal.SIGINT, -signal.SIGTERM)

    def advice(self) -> str:
        """End of a message: the command that continues the run, if there is one."""
        hint = self.hint()
        return f"; continue with: {hint}" if hint else ""

    def message(self) -> str:
        assert self.lost is not None
        rank, code = self.lost
        hint = self.advice()
        if self.interrupted:
            return f"interrupted{hint}"
        if code < 0:
            return f"process {rank} was killed (signal {-code}, often for lack of memory){hint}"
        return f"process {rank} failed, see above{hint}"

    def code(self) -> ExitCode:
        assert self.lost is not None
        if self.interrupted:
            return ExitCode.INTERRUPTED
        return ExitCode.BUG if self.lost[1] == ExitCode.BUG else ExitCode.INPUT

    def _end(self) -> None:
        with suppress(Exception):
            print(f"seqssm: {self.message()}", file=sys.stderr, flush=True)
            self.release()
        os._exit(self.code())


@contextmanager
def supervised(
    trainer: Any, hint: Callable[[], str] = lambda: "", release: Callable[[], None] = lambda: None
) -> Iterator[None]:
    """Run a trainer's entry point; raise what ended it as an exception that the command line translates.

    Args:
        trainer: the trainer, not yet started.
        hint: returns the command that continues the run, empty if there is nothing to continue yet.
        release: frees resources if this process must be ended from another thread.

    Raises:
        KeyboardInterrupt: interrupted or terminated, in rank 0; its text is that of `hint`.
        SystemExit: in rank 0, raised by a callback or hook of the user. In the other processes the code is 0 if all
            processes agreed to stop, and that of an interruption otherwise: rank 0 may be waiting for this process.
        InputError: another process ended, or did not respond in time.
    """
    watch = Watch(trainer, hint, release)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    if trainer.world_size > 1:
        watch.start()
    try:
        yield
    except (SystemExit, KeyboardInterrupt) as stop:  # Lightning raises the former after Ctrl-C and SIGTERM, too
        from lightning.pytorch.utilities.exceptions import SIGTERMException

        watch.stop_others()
        if trainer.global_rank > 0:
            raise SystemExit(ExitCode.OK if isinstance(stop, SIGTERMException) else ExitCode.INTERRUPTED) from None
        signalled = isinstance(stop, KeyboardInterrupt | SIGTERMException)
        if not signalled and not isinstance(stop.__context__, KeyboardInterrupt):
            raise
        raise KeyboardInterrupt(hint()) from None
    except InputError:
        watch.stop_others()
        raise
    except RuntimeError as error:
        _explain(error, trainer, watch)
        raise
    finally:
        watch.ended.set()
        if threading.current_thread() is threading.main_thread():
            for number, handler in handlers.items():
                # Lightning ignores SIGINT after Ctrl-C, and leaves its SIGTERM handler behind after an error
                if handler is not None:  # None: not set from Python
                    signal.signal(number, handler)


def _explain(error: RuntimeError, trainer: Any, watch: Watch) -> None:
    """Raise the cause of a failed collective call, if `error` is one."""
    text = str(error).lower()
    late = trainer.world_size > 1 and any(word in text for word in LATE)
    if trainer.world_size == 1 or not (late or any(word in text for word in LOST)):
        watch.stop_others()
        return
    if watch.local_rank > 0:
        raise SystemExit(ExitCode.OK) from error  # rank 0 reports
    end = time.monotonic() + GRACE
    while watch.lost is None and time.monotonic() < end and watch.others and not late:
        watch.look()
        time.sleep(LOOK)
    if watch.interrupted:
        raise KeyboardInterrupt(watch.hint()) from error
    if watch.lost is not None:
        raise InputError(watch.message()) from error
    watch.stop_others()
    hint = watch.advice()
    if late:
        raise InputError(f"another process did not respond in time (--timeout SECONDS){hint}") from error
    raise InputError(f"another process of this run ended{hint}") from error
