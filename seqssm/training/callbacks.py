"""Callbacks: the epoch log, `best.ckpt` and `last.ckpt`, early stopping, and Ctrl-C with a checkpoint.

Their states are restored from `last.ckpt`: the log, best weights and early stopping of a resumed run are those of an
uninterrupted one.
"""

from __future__ import annotations

import csv
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, Checkpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException

from seqssm.environment import INTERRUPTS, checkpoint_seconds
from seqssm.errors import InputError
from seqssm.files.disk import atomic
from seqssm.metrics.metric import direction
from seqssm.metrics.report import number

LAST_EPOCH = "last_epoch"  # in place of a metric: the last epoch is kept


def cpu_seconds() -> float:
    """Return the CPU time (user and system) of this process and its finished children, seconds."""
    return sum(os.times()[:4])


class EpochLog(Checkpoint):
    """Writes one row per epoch to `log.csv`, to TensorBoard and to the terminal.

    `seconds` and `cpu_seconds` cover the whole epoch with its validation; `cpu_seconds` is summed over the processes.
    The class is a `Checkpoint` only because Lightning calls those after the task has logged its epoch metrics.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows: list[dict[str, Any]] = []
        self.carried = (0.0, 0.0)  # seconds spent on this epoch before an interruption
        self.started = (0.0, 0.0)
        self.validation: dict[str, float] = {}  # metrics of this epoch's last validation
        self.events: Any = None

    def _spent(self) -> tuple[float, float]:
        now = (time.monotonic(), cpu_seconds())
        return tuple(c + n - s for c, n, s in zip(self.carried, now, self.started))  # type: ignore[return-value]

    def on_train_start(self, trainer: Trainer, task: LightningModule) -> None:
        self.started = (time.monotonic(), cpu_seconds())
        if not trainer.is_global_zero:
            self.carried = (0.0, 0.0)  # rank 0 has the sum over the processes
        elif self.rows:
            self._write()  # rows after the checkpoint belong to epochs that will be repeated

    def on_train_batch_end(self, trainer: Trainer, task: LightningModule, outputs: Any, batch: Any, k: int) -> None:
        if trainer.is_global_zero and trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self._writer(trainer).add_scalar("loss", float(outputs["loss"]), trainer.global_step)

    def on_validation_end(self, trainer: Trainer, task: LightningModule) -> None:
        if not trainer.sanity_checking:
            self.validation = {k: float(v) for k, v in trainer.callback_metrics.items() if k[:4] == "val_"}

    def on_train_epoch_end(self, trainer: Trainer, task: LightningModule) -> None:
        seconds, cpu = self._spent()
        if trainer.world_size > 1:
            cpu = float(trainer.strategy.reduce(torch.tensor(cpu, device=task.device), reduce_op="sum"))
        self.carried, self.started = (0.0, 0.0), (time.monotonic(), cpu_seconds())
        found = {name: float(value) for name, value in trainer.callback_metrics.items()}
        values = {name: value for name, value in found.items() if name != "loss" and name[:4] != "val_"}
        values = {"train_loss": values.pop("train_loss", math.nan), **values, **self.validation}
        row: dict[str, Any] = {"epoch": trainer.current_epoch, "step": trainer.global_step}
        row |= {"learning_rate": trainer.optimizers[0].param_groups[0]["lr"], **values}
        # the row of the same epoch is that of an epoch that was cut off, and now completed
        self.rows = [one for one in self.rows if one["epoch"] != row["epoch"]]
        self.rows.append({**row, "seconds": round(seconds, 3), "cpu_seconds": round(cpu, 3)})
        self.validation = {}
        if not trainer.is_global_zero:
            return
        self._write()
        for name, value in self.rows[-1].items():
            self._writer(trainer).add_scalar(name, value, trainer.global_step)
        self._writer(trainer).flush()
        figures = "  ".join(f"{name} {number(value)}" for name, value in values.items())
        line = f"epoch {row['epoch']}  step {row['step']}  {figures}  {seconds:.1f} s"
        bar: Any = trainer.progress_bar_callback
        if bar is not None and bar.is_enabled:
            bar.print(line)
        else:
            print(line, flush=True)

    def _writer(self, trainer: Trainer) -> Any:
        if self.events is None:
            from torch.utils.tensorboard import SummaryWriter

            self.events = SummaryWriter(str(self.folder), purge_step=trainer.global_step)
        return self.events

    def _write(self) -> None:
        columns = list(dict.fromkeys(name for row in self.rows for name in row))
        columns.sort(key=lambda name: name in ("seconds", "cpu_seconds"))
        with atomic(self.folder / "log.csv", "w") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(self.rows)

    def teardown(self, trainer: Trainer, task: LightningModule, stage: str) -> None:
        if self.events is not None:
            self.events.close()
            self.events = None

    def state_dict(self) -> dict[str, Any]:
        rows = [dict(row) for row in self.rows]
        return {"rows": rows, "carried": list(self._spent()), "validation": dict(self.validation)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rows = [dict(row) for row in state["rows"]]
        self.carried = tuple(state["carried"])  # type: ignore[assignment]
        self.validation = dict(state.get("validation", {}))


STATE = "KeepBest"  # key of the following callback's state, its name when the key was introduced


class CheckpointCallback(Checkpoint):
    """Writes `best.ckpt` (weights) after each best validation and `last.ckpt` (full state) after each epoch.

    `last.ckpt` is also written every ten minutes within an epoch, on SIGTERM and on Ctrl-C.

    Args:
        folder: the run's folder.
        monitor: a logged validation metric, or `LAST_EPOCH`. Without validation data, the last epoch is the best one.
        mode: ``"min"`` or ``"max"``.
        patience: number of validations without improvement after which training stops; None for never.
    """

    def __init__(self, folder: Path, monitor: str, mode: Literal["min", "max"], patience: int | None) -> None:
        self.folder, self.monitor, self.mode, self.patience = folder, monitor, mode, patience
        self.interval = checkpoint_seconds()
        self.best: float | None = None
        self.best_epoch: int | None = None
        self.waited = 0
        self.stopped = False
        self.saved_at = time.monotonic()
        self.cut = False  # whether training ends within the epoch, after this batch
        self.deferred: bool | None = None  # whether to stop after the validation that follows this batch
        self.interrupted = False
        self.terminated = False
        self.speaks = True
        self.handlers: dict[int, Any] = {}  # previous handlers

    @property
    def state_key(self) -> str:
        return STATE

    # -- the best ----------------------------------------------------------------------------------------------------

    def on_validation_end(self, trainer: Trainer, task: LightningModule) -> None:
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        self._compare(trainer)
        if self.deferred is not None:
            stop, self.deferred = self.deferred, None
            self._save_last(trainer)
            if stop:
                raise SIGTERMException

    def _compare(self, trainer: Trainer) -> None:
        """Save the model if it is the best so far, otherwise count the validation towards early stopping."""
        metrics = trainer.callback_metrics
        monitor = "val_loss" if self.monitor == LAST_EPOCH else self.monitor
        if monitor not in metrics:
            known = ", ".join(name for name in metrics if name.startswith("val_"))
            raise InputError(f"--early_stopping.monitor {self.monitor}: no such metric; there are: {known}")
        value = float(metrics[monitor])
        if not math.isfinite(value):
            loss = float(metrics.get("val_loss", math.nan))
            why = "training diverged; lower --model.learning_rate"
            if math.isfinite(loss):
                why = (
                    f"the validation split is too small for it (the loss there is {loss:.4g}); add validation records, "
                    "or --early_stopping.monitor val_loss"
                )
            raise InputError(f"{monitor} is {value} in epoch {trainer.current_epoch}: {why}")
        if self.monitor == LAST_EPOCH:
            return  # saved at the end of the epoch
        if self.best is None or (value < self.best if self.mode == "min" else value > self.best):
            self.best, self.best_epoch, self.waited = value, trainer.current_epoch, 0
            self._save_best(trainer)
            return
        self.waited += 1
        if self.patience is not None and self.waited >= self.patience:
            self.stopped = trainer.should_stop = True

    def _save_best(self, trainer: Trainer) -> None:
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            trainer.save_checkpoint(self.folder / "best.ckpt", weights_only=True)

    # -- the last ----------------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: Trainer, task: LightningModule) -> None:
        self.saved_at = time.monotonic()
        if self.stopped:
            trainer.should_stop = True
        if threading.current_thread() is not threading.main_thread():
            return
        # Lightning's handler would communicate at once, while the processes may be in different calls
        self.handlers[signal.SIGTERM] = signal.signal(signal.SIGTERM, self._soft_terminate)
        if signal.getsignal(signal.SIGINT) in (signal.default_int_handler, INTERRUPTS):
            self.handlers[signal.SIGINT] = signal.signal(signal.SIGINT, self._soft_interrupt)
            self.speaks = trainer.is_global_zero

    def _soft_terminate(self, *_: Any) -> None:
        """Handle SIGTERM: stop after the current batch, with a checkpoint; several processes agree on the batch."""
        self.terminated = True

    def _soft_interrupt(self, *_: Any) -> None:
        """Handle Ctrl-C: the first one stops after the current batch, with a checkpoint; the second one immediately."""
        self.interrupted = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if self.speaks:
            print("\nstopping after this batch (press Ctrl-C again to stop immediately)", file=sys.stderr, flush=True)

    def on_train_batch_end(self, trainer: Trainer, task: LightningModule, outputs: Any, batch: Any, k: int) -> None:
        last = k + 1 >= trainer.num_training_batches
        if last or (k + 1) % trainer.accumulate_grad_batches:
            return  # saved at the end of the epoch anyway; partly accumulated gradients cannot be stored
        due = time.monotonic() - self.saved_at >= self.interval
        stop, due = self._agreed(trainer, self._asked_to_stop(trainer), due)
        self.cut = self._at_last_step(trainer)
        if self.cut and self.best is None:
            self.best_epoch = trainer.current_epoch
        if (stop or due or self.cut) and self._validates(trainer):
            self.deferred = stop  # a run continued from here would not validate
            return
        if stop or due or self.cut:
            self._save_last(trainer)
        if stop:
            raise SIGTERMException

    @staticmethod
    def _validates(trainer: Trainer) -> bool:
        """Whether a validation within the epoch (``--trainer.val_check_interval``) follows this batch."""
        loop: Any = trainer.fit_loop
        return not loop.epoch_loop.val_loop.skip and loop.epoch_loop._should_check_val_fx(loop._data_fetcher)

    @staticmethod
    def _at_last_step(trainer: Trainer) -> bool:
        """Whether ``--trainer.max_steps`` or ``max_time`` ends the training after this batch.

        `last.ckpt` is then that of an interruption: a run that is continued with more steps completes the epoch, whose
        row in the log it replaces.
        """
        steps = trainer.max_steps
        return 0 <= steps <= trainer.global_step or trainer.fit_loop.epoch_loop.done

    def _asked_to_stop(self, trainer: Trainer) -> bool:
        return self.interrupted or self.terminated or trainer.received_sigterm

    def _agreed(self, trainer: Trainer, *asked: bool) -> list[bool]:
        """Combine the requests of all processes, which save together or not at all."""
        if trainer.world_size == 1:
            return list(asked)
        flags = torch.tensor(asked, dtype=torch.int32, device=trainer.strategy.root_device)
        return trainer.strategy.reduce(flags, reduce_op="sum").bool().tolist()

    def on_train_epoch_end(self, trainer: Trainer, task: LightningModule) -> None:
        if self.best is None:  # no validation data, or no validation yet
            self.best_epoch = trainer.current_epoch
            self._save_best(trainer)
        if not self.cut:
            self._save_last(trainer)
        if self._agreed(trainer, self._asked_to_stop(trainer))[0]:
            raise SIGTERMException  # ends the trainer in every process; no Ctrl-C is pending at this point

    def _save_last(self, trainer: Trainer) -> None:
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            trainer.save_checkpoint(self.folder / "last.ckpt", weights_only=False)
        self.saved_at = time.monotonic()

    def teardown(self, trainer: Trainer, task: LightningModule, stage: str) -> None:
        while self.handlers:
            signal.signal(*self.handlers.popitem())

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("best", "best_epoch", "waited", "stopped", "monitor")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, value)
        self.stopped = is_stopped(state, self.patience)


def mode_of(task: LightningModule, monitor: str) -> Literal["min", "max"]:
    """Return the direction of improvement of a validation metric.

    Raises:
        InputError: the metric declares no direction.
    """
    metrics: Any = task.metrics
    if monitor in ("val_loss", "train_loss", LAST_EPOCH):
        return "min"
    better = direction(metrics, monitor.removeprefix("val_"))
    if better is None:
        known = [f"val_{metric.name}" for metric in metrics if metric.better and "val" in metric.shown]
        if metrics and monitor.removeprefix("val_") not in [metric.name for metric in metrics]:
            raise InputError(
                f"--early_stopping.monitor {monitor}: no such metric; there are: {', '.join(['val_loss', *known])}"
            )
        raise InputError(f"--early_stopping.monitor {monitor}: give --early_stopping.mode min or max")
    return better


def is_stopped(state: Mapping[str, Any], patience: int | None) -> bool:
    """Whether early stopping has ended a run; a larger patience than it had continues it.

    Args:
        state: state of the run's `CheckpointCallback`.
        patience: patience from now on.
    """
    return bool(state.get("stopped")) and patience is not None and state["waited"] >= patience


class InterruptCheck(Callback):
    """Ends a test or validation after a batch in which an interrupt was lost."""

    def on_test_batch_end(self, *_: Any) -> None:
        INTERRUPTS.check()

    def on_validation_batch_end(self, *_: Any) -> None:
        INTERRUPTS.check()


class CollectiveTimeout(Callback):
    """Sets how long the processes wait for each other once all of them have started.

    Args:
        seconds: the timeout of every collective call.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def setup(self, trainer: Trainer, task: LightningModule, stage: str) -> None:
        from torch.distributed import distributed_c10d, is_initialized

        if is_initialized():
            distributed_c10d._set_pg_timeout(timedelta(seconds=self.seconds))


class OnFitStart(Callback):
    """Calls `begin` in rank 0 once data and model are set up; an old run is not replaced before that."""

    def __init__(self, begin: Callable[[], None]) -> None:
        self.begin = begin

    def on_fit_start(self, trainer: Trainer, task: LightningModule) -> None:
        if trainer.is_global_zero:
            self.begin()
        trainer.strategy.barrier("begin")
