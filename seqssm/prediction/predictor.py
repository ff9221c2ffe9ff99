"""Prediction from a checkpoint and the user's files: the domain's side (`Record`, `Predictor`) and `load`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from seqssm.domain import Domain, find_domain, resolve
from seqssm.errors import InputError

if TYPE_CHECKING:
    import pandas as pd


@dataclass
class Record:
    """One record of the user's input: a series file, a FASTA record, a WFDB record, a case.

    Attributes:
        index: its number in input order, from 0.
        id: the user's own name for it.
        item: what `Predictor.predict` needs, as light as possible until `Predictor.prepare` has read it.
        reason: set when the record cannot be predicted; it keeps its row, with this reason.
    """

    index: int
    id: str
    item: Any = None
    reason: str | None = None


class Predictor(ABC):
    """A domain's prediction: turns files into records and records into rows.

    Args:
        model: the trained network in eval mode, on its device.
        summary: what the checkpoint says about the data (`seqssm.training.data.DataModule.summary`).
        options: the domain's own options by name, with their defaults.

    Rows are dicts of the value `columns`, in the user's own names and units. Several rows a record are fine; the writer
    puts ``index, id`` before and ``status, reason`` after.
    """

    columns: list[str]
    """Of the class, or set in `__init__` where they depend on the summary or the options."""

    output: Path | None = None
    """The table that the command line writes, for a domain whose options put further files beside it."""

    def __init__(self, model: nn.Module, summary: dict[str, Any], options: dict[str, Any]) -> None:
        self.model, self.summary, self.options = model, summary, options

    @property
    def device(self) -> Any:
        """Where the network's weights are."""
        return next(self.model.parameters()).device

    @abstractmethod
    def records(self, inputs: list[Path]) -> Iterator[Record]:
        """The records of `inputs`, lazily, in input order.

        Raises:
            InputError: a file that is not usable at all. A bad record in a good file is a `Record` with a reason.
        """

    def prepare(self, record: Record) -> Record:
        """Reads what a record needs; runs in the loader's processes with ``--num-workers``. CPU only."""
        return record

    @abstractmethod
    def predict(self, records: list[Record]) -> Sequence[list[dict[str, Any]] | pd.DataFrame]:
        """The rows of each record, in order; called without gradients, with records that have no reason.

        They are dicts, or, where a record has very many, a frame with some of `columns`.

        A record found to be unusable only here gets its `reason` set, and its rows from `failed`.
        """

    def failed(self, record: Record) -> list[dict[str, Any]]:
        """The rows of a record that cannot be predicted: by default one without values."""
        return [{}]

    def figures(self, record: Record, rows: Any, folder: Path) -> list[Path]:
        """Draws a record's figures into `folder`; only called with ``--figures``. `rows` are what `predict` gave."""
        return []


class Model:
    """A trained model, ready to predict.

    Args:
        path: a checkpoint, or a run's folder.
        accelerator: ``"auto"``, ``"cpu"``, ``"gpu"`` or ``"mps"``.
        precision: ``"32-true"``, ``"bf16-mixed"`` or ``"16-mixed"``.

    Attributes:
        domain: the science it is of.
        network: the `nn.Module`, in eval mode, on its device.
        summary: what the checkpoint says about the data it was trained on.

    Raises:
        InputError: the checkpoint is not usable, the device not there, or the precision unknown.
    """

    def __init__(self, path: str | Path, accelerator: str = "auto", precision: str = "32-true") -> None:
        from seqssm.prediction.loop import PRECISIONS
        from seqssm.training import checkpoint
        from seqssm.training.processes import choose_device

        if precision not in PRECISIONS:
            raise InputError(f"precision {precision}: one of {', '.join(PRECISIONS)} is needed")
        self.path = checkpoint.locate(path)
        content = checkpoint.read(self.path)
        entry = content["seqssm"]
        self.domain: Domain = find_domain(entry["domain"], file=self.path)
        self.summary = checkpoint.Summary(entry["data"], self.path)
        self.precision = precision
        device = choose_device(accelerator, 0)
        self.network: nn.Module = checkpoint.build_task(content, self.path).model.to(device)

    def predictor(self, options: dict[str, Any]) -> Predictor:
        """The domain's predictor with `options`; those not given have their defaults.

        Raises:
            InputError: the domain has no such option, or not this value.
        """
        known = {option.name: option for option in self.domain.predict_options}
        for name, value in options.items():
            if name not in known:
                from seqssm.errors import nearest

                raise InputError(f"{self.domain.name} has no option {name}{nearest(name, known)}")
            choices = known[name].choices
            if choices and value is not None and value not in choices:
                raise InputError(f"{name} is one of {', '.join(choices)}, not {value}")
        defaults = {name: option.default for name, option in known.items()}
        return resolve(self.domain.predictor)(self.network, self.summary, {**defaults, **options})

    def predict(
        self,
        inputs: str | Path | Sequence[str | Path],
        *,
        batch_size: int = 32,
        num_workers: int = 0,
        figures: str | Path | None = None,
        **options: Any,
    ) -> pd.DataFrame:
        """The table that ``seqssm predict`` writes, as a frame.

        Args:
            inputs: one file or several, as on the command line.
            batch_size: records a batch.
            num_workers: processes that read the records.
            figures: folder for a figure of each record.
            **options: the domain's own, as ``seqssm predict MODEL.ckpt --help`` lists them: ``horizon=96``.

        Returns:
            Columns ``index, id``, the domain's own, ``status`` ("ok" or "failed"), ``reason``; every record is there.
        """
        import pyarrow as pa

        from seqssm.prediction.loop import batched, outcomes
        from seqssm.prediction.table import common_schema, conform, tabulate

        for name, value, least in (("batch_size", batch_size, 1), ("num_workers", num_workers, 0)):
            if value < least:
                raise InputError(f"{name} {value}: must be at least {least}")
        many = [inputs] if isinstance(inputs, str | Path) else inputs
        predictor = self.predictor(options)
        folder = None if figures is None else Path(figures)
        batches = batched(predictor.records([Path(name) for name in many]), batch_size)
        tables = [
            tabulate(outcome.records, outcome.rows, predictor.columns)
            for outcome in outcomes(predictor, batches, num_workers, self.precision, folder)
        ] or [tabulate([], [], predictor.columns)]
        schema = common_schema(table.schema for table in tables)
        return pa.concat_tables([conform(table, schema) for table in tables]).to_pandas()


def load(path: str | Path, accelerator: str = "auto", precision: str = "32-true") -> Model:
    """Opens a checkpoint: ``seqssm.load("best.ckpt").predict("series.csv")``. See `Model`."""
    return Model(path, accelerator, precision)
