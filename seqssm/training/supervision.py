"""A trainer under supervision: interruptions and lost or hung processes end every process of a run, as documented."""

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

LOOK, GRACE = 0.2, 5.0  # seconds between looks at the other processes, and before a process that hangs is ended
LOST = ("connection closed by peer", "connection reset by peer", "broken pipe", "remote process exited", "socket")
LATE = ("timed out", "timeout")


def set_timeout(trainer: Any, seconds: float) -> None:
    """Sets how long a process waits for another one in a collective call.

    Raises:
        InputError: not a positive number.
    """
    if not 0 < seconds < float("inf"):
        raise InputError(f"--timeout {seconds:g}: a number of seconds above 0")
    if trainer.world_size > 1 and hasattr(trainer.strategy, "_timeout"):  # of DDP and FSDP
        from seqssm.training.callbacks import CollectiveTimeout

        trainer.strategy._timeout = timedelta(seconds=max(seconds, START))  # goes to the process group
        trainer.callbacks.append(CollectiveTimeout(seconds))


class Watch(threading.Thread):
    """Looks after the other processes of a run that Lightning started on this machine.

    In the first process: one that ends before its time is noted in `lost`; when the first process does not notice in
    its next collective call (it may wait in one that cannot be interrupted), it is ended with a message. In the others:
    when the first one is gone, they end.

    Args:
        trainer: the trainer of this process.
        hint: command that continues the run, for the message; empty if there is none.
        release: called before the process is ended from here.
    """

    def __init__(self, trainer: Any, hint: str, release: Callable[[], None]) -> None:
        super().__init__(daemon=True, name="seqssm-watch")
        self.launcher, self.rank = trainer.strategy.launcher, trainer.global_rank
        self.local_rank, self.hint, self.release = trainer.local_rank, hint, release
        self.parent = os.getppid()
        self.lost: tuple[int, int] | None = None  # (rank, exit code)
        self.ended = threading.Event()

    def run(self) -> None:
        while not self.ended.wait(LOOK):
            if self.local_rank > 0 and os.getppid() != self.parent:
                os._exit(ExitCode.INPUT)  # the first process is gone; it has reported, or was killed
            self.look()
            if self.lost is not None:
                if not self.ended.wait(GRACE):
                    self._end()
                return

    @property
    def others(self) -> list[subprocess.Popen]:
        """The processes that Lightning started, of local rank 1, 2, ...; none where torchrun or srun started them."""
        found: list[Any] = getattr(self.launcher, "procs", [])
        return found if all(isinstance(process, subprocess.Popen) for process in found) else []

    def look(self) -> None:
        """Notes a process that has ended with an error, and ends the others."""
        for number, process in enumerate(self.others, 1):
            if self.lost is None and process.poll():
                self.lost = (number, process.returncode)
        if self.lost is not None:
            self.stop_others()

    def stop_others(self) -> None:
        """Ends the processes that Lightning started, and its own observer, which would kill this process too."""
        running = [process for process in self.others if process.poll() is None]
        self.others.clear()
        for process in running:
            process.terminate()
        end = time.monotonic() + GRACE
        for process in running:
            try:
                process.wait(max(end - time.monotonic(), LOOK))
            except subprocess.TimeoutExpired:  # it hangs, or was stopped: no other signal reaches it
                process.kill()
                process.wait()

    def message(self) -> str:
        assert self.lost is not None
        rank, code = self.lost
        hint = f"; continue with: {self.hint}" if self.hint else ""
        if code < 0:
            return f"process {rank} was ended from outside (signal {-code}, often for lack of memory){hint}"
        return f"process {rank} ended with an error of its own, see above{hint}"

    def code(self) -> ExitCode:
        assert self.lost is not None
        return ExitCode.BUG if self.lost[1] == ExitCode.BUG else ExitCode.INPUT

    def _end(self) -> None:
        with suppress(Exception):
            print(f"seqssm: {self.message()}", file=sys.stderr, flush=True)
            self.release()
        os._exit(self.code())


@contextmanager
def supervised(trainer: Any, hint: str = "", release: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Runs a trainer's entry point; what ends it becomes the exception that the command line translates.

    Args:
        trainer: the trainer, not yet started.
        hint: command that continues the run, empty if there is none.
        release: frees what this process holds, when it must be ended from another thread.

    Raises:
        KeyboardInterrupt: interrupted or terminated, in the first process; its text is `hint`.
        SystemExit: in the other processes, with code 0: the first one reports.
        InputError: another process was lost, or did not answer in time.
    """
    watch = Watch(trainer, hint, release)
    interrupt = signal.getsignal(signal.SIGINT)
    if trainer.world_size > 1:
        watch.start()
    try:
        yield
    except (SystemExit, KeyboardInterrupt):  # Lightning ends with the former after Ctrl-C and SIGTERM
        watch.stop_others()
        if trainer.global_rank > 0:
            raise SystemExit(ExitCode.OK) from None
        raise KeyboardInterrupt(hint) from None
    except InputError:
        watch.stop_others()
        raise
    except RuntimeError as error:
        _explain(error, trainer, watch)
        raise
    finally:
        watch.ended.set()
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, interrupt)  # Lightning leaves it ignored after Ctrl-C


def _explain(error: RuntimeError, trainer: Any, watch: Watch) -> None:
    """Raises what is behind a failed collective call, if it was one."""
    text = str(error).lower()
    late = trainer.world_size > 1 and any(word in text for word in LATE)
    if trainer.world_size == 1 or not (late or any(word in text for word in LOST)):
        watch.stop_others()
        return
    if watch.local_rank > 0:
        raise SystemExit(ExitCode.OK) from error  # the first process reports
    end = time.monotonic() + GRACE
    while watch.lost is None and time.monotonic() < end and watch.others and not late:
        watch.look()
        time.sleep(LOOK)
    if watch.lost is not None:
        raise InputError(watch.message()) from error
    watch.stop_others()
    hint = f"; continue with: {watch.hint}" if watch.hint else ""
    if late:
        raise InputError(f"another process did not answer in time (--timeout SECONDS){hint}") from error
    raise InputError(f"another process of this run ended{hint}") from error
