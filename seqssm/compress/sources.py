"""Calibration data: the user's input files, or the validation records of the run."""

from __future__ import annotations

import itertools
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from seqssm.domain import Domain
from seqssm.errors import InputError
from seqssm.nn.projections import merge_adapters, scans
from seqssm.prediction.loop import batched, outcomes
from seqssm.prediction.model import Model
from seqssm.training import run

MINIMUM = 8  # records, or windows of them
WINDOW = 512  # positions; a longer sequence counts as several windows (Quamba calibrates on sequences of this length)
LARGEST = 128  # records that are read by default
BATCH = 16  # records of a forward pass


def count_windows(network: nn.Module, found: list[int]) -> Any:
    """Append to `found` the number of windows of every call of the first scan, until the returned handle is removed.

    Args:
        network: the network.
        found: list to extend.
    """

    def hook(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        rows, positions = inputs[0].shape[:2]
        found.append(rows * max(1, -(-positions // WINDOW)))

    mixers = list(scans(network).values())
    return mixers[0].register_forward_pre_hook(hook) if mixers else None


class Source(ABC):
    """Records that can be run through a network repeatedly.

    Attributes:
        network: the float network, which may be changed in place.
        count: number of records, or of their windows if there are more.
        title: description for the report.
        merged: number of low-rank adapters that were merged into the weights.
        advice: how to have more records, for the message about too few.
    """

    network: nn.Module
    count: int
    title: str
    merged: int = 0
    advice: str = ""

    @abstractmethod
    def outputs(self, few: bool = False) -> Tensor:
        """Run the network over the records.

        Args:
            few: whether to use the first batch only.

        Returns:
            All outputs as one vector, float64; comparable between two calls.
        """

    def _counted(self, unit: str, windows: int) -> str:
        """Describe the number of records, and of windows where there are more; `count` becomes the larger one."""
        text = f"{self.count} {unit}" + (f" ({windows} windows)" if windows > self.count else "")
        self.count = max(self.count, windows)
        return text

    def require_enough(self) -> None:
        """Raise InputError if there are fewer than `MINIMUM` records."""
        if self.count < MINIMUM:
            raise InputError(
                f"{self.count} records or windows for calibration; at least {MINIMUM} are required{self.advice}"
            )


class Files(Source):
    """Input files, as for ``seqssm predict``.

    Args:
        model: the model.
        inputs: the files.
        options: options of the domain's prediction.
        most: maximum number of records.

    Raises:
        InputError: a file is not an input of the model's domain, or there are too few records.
    """

    def __init__(self, model: Model, inputs: Sequence[Path], options: dict[str, Any], most: int = LARGEST) -> None:
        self.model, self.inputs, self.options, self.most = model, list(inputs), options, most
        self.network = model.network
        self.count = 0
        self.failed: list[str] = []
        self.scale: pd.DataFrame | None = None  # mean and std of each column, of the float network
        self.merged = merge_adapters(self.network)
        if "backtest" in options and not options["backtest"]:
            self.advice = "; --backtest N predicts N windows of each series"
        self.model.predictor(options)  # options are checked before the files are read
        windows: list[int] = []
        handle = count_windows(self.network, windows)
        try:
            self.outputs()
        finally:
            if handle is not None:
                handle.remove()
        records = self._counted("records", sum(windows))
        self.title = f"{records} of {', '.join(path.name for path in self.inputs[:3])}"
        self.title += ", ..." if len(self.inputs) > 3 else ""
        if self.failed:
            self.title += f" (without {len(self.failed)} that cannot be predicted; first: {self.failed[0]})"
        self.require_enough()

    def outputs(self, few: bool = False) -> Tensor:
        """Run the prediction; the outputs are the columns of floating-point numbers in its table, standardised."""
        predictor = self.model.predictor(self.options)
        records = itertools.islice(predictor.records(self.inputs), BATCH if few else self.most)
        found: list[pd.DataFrame] = []
        good, self.failed = 0, []
        with tempfile.TemporaryDirectory(prefix="seqssm-") as work:
            predictor.work = Path(work)
            for outcome in outcomes(predictor, batched(records, BATCH)):
                if outcome.traces:
                    raise RuntimeError(outcome.traces[0])
                for record, rows in zip(outcome.records, outcome.rows):
                    if record.reason is None:
                        good += 1
                        found.append(_numbers(rows))
                    elif good == 0 and len(outcome.records) == 1:
                        raise InputError(f"--calibration: {record.reason}")
                    else:
                        self.failed.append(f"{record.id}: {record.reason}")
        if not few:
            self.count = max(self.count, good)
        table = pd.concat(found) if found else pd.DataFrame()
        if self.scale is None:
            self.scale = pd.DataFrame({"mean": table.mean(), "std": table.std(ddof=0)})
        values = (table - self.scale["mean"]) / self.scale["std"].where(self.scale["std"] > 0, 1.0)
        return torch.nan_to_num(torch.from_numpy(values.to_numpy(dtype="float64", copy=True).flatten()))


def _numbers(rows: Any) -> pd.DataFrame:
    """Return the columns of floating-point numbers; integers count or number something, or are decisions."""
    frame = rows if isinstance(rows, pd.DataFrame) else pd.DataFrame(rows)
    return frame.select_dtypes("floating").astype("float64")


class _Keep(Callback):
    """Keeps the first validation batches."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.batches: list[Any] = []
        self.records = 0
        self.windows: list[int] = []
        self.handle: Any = None

    def on_validation_start(self, trainer: Any, task: Any) -> None:
        self.handle = count_windows(task.model, self.windows)

    def on_validation_end(self, trainer: Any, task: Any) -> None:
        if self.handle is not None:
            self.handle.remove()

    def on_validation_batch_start(self, trainer: Any, task: Any, batch: Any, index: int, loader: int = 0) -> None:
        if max(self.records, sum(self.windows)) < self.most:
            self.batches.append(move_data_to_device(batch, "cpu"))  # where the model is after the pass
            self.records += len(batch["index"])
        elif self.handle is not None:
            self.handle.remove()


class Validation(Source):
    """Validation records of the run, from the data with which it was trained.

    Args:
        domain: domain of the model.
        path: the checkpoint.
        overrides: LightningCLI flags of the data.
        most: maximum number of records.

    Raises:
        InputError: the data cannot be found, or there are too few records.
    """

    def __init__(self, domain: Domain, path: Path, overrides: Sequence[str] = (), most: int = LARGEST) -> None:
        with tempfile.TemporaryDirectory(prefix="seqssm-") as folder:
            flags = [*overrides, "--trainer.logger=false", "--trainer.enable_progress_bar=false"]
            cli, _, _ = run.prepare_evaluation(domain, "validate", path, flags, output=folder)
            if cli.datamodule.batch_size > BATCH:
                cli.datamodule.batch_size = BATCH
            keep = _Keep(most)
            cli.trainer.limit_val_batches = -(-most // cli.datamodule.batch_size)
            cli.trainer.callbacks.append(keep)  # type: ignore[attr-defined]
            cli.trainer.validate(cli.model, datamodule=cli.datamodule, ckpt_path=path, verbose=False, weights_only=True)
        self.task: Any = cli.model.eval()
        self.network = self.task.model
        self.merged = merge_adapters(self.network)
        self.batches, self.count = keep.batches, keep.records
        self.title = f"{self._counted('validation records', sum(keep.windows))} of the run"
        self.require_enough()

    @torch.no_grad()
    def outputs(self, few: bool = False) -> Tensor:
        """Run the task; its outputs are those that the scores use."""
        found: list[Tensor] = []
        for batch in self.batches[:1] if few else self.batches:
            _, made = self.task.step(batch)
            leaves = pytree.tree_leaves(made)
            found += [leaf.detach().double().flatten() for leaf in leaves if isinstance(leaf, Tensor)]
        return torch.nan_to_num(torch.cat(found))
